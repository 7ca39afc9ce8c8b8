/** Tests of src/protocol/channel/keys.ts against @noble/curves. */
import { x25519 } from '@noble/curves/ed25519.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { describe, expect, it } from 'vitest';
import {
  generateKeyPair,
  keyPairFromPrivate,
  publicKeyFromRaw,
  sharedSecret,
} from '../../../../../src/protocol/channel/keys.js';
import { generateRawKeyPair } from '../../../../../src/protocol/public-keys.js';
import { tokenPsk } from '../../../../../src/protocol/token.js';

describe('X25519 keys', () => {
  it('agree with @noble/curves on public keys and shared secrets', () => {
    for (let i = 0; i < 20; i += 1) {
      const a = generateRawKeyPair('x25519');
      const b = generateKeyPair();
      expect(a.publicKey).toEqual(Buffer.from(x25519.getPublicKey(a.privateKey)));
      const ab = sharedSecret(
        keyPairFromPrivate(a.privateKey).privateKey,
        publicKeyFromRaw(b.publicKey),
      );
      const ba = sharedSecret(b.privateKey, publicKeyFromRaw(a.publicKey));
      expect(ab).toEqual(ba);
      expect(ab).toEqual(Buffer.from(x25519.getSharedSecret(a.privateKey, b.publicKey)));
    }
  });

  it('refuse public keys of low order (RFC 7748 section 6.1)', () => {
    const own = generateKeyPair();
    const points = [
      '0000000000000000000000000000000000000000000000000000000000000000',
      '0100000000000000000000000000000000000000000000000000000000000000',
      'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
      '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
      'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
      'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
      'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
    ];
    for (const point of points) {
      expect(() =>
        sharedSecret(own.privateKey, publicKeyFromRaw(Buffer.from(point, 'hex'))),
      ).toThrow(expect.objectContaining({ code: 'CHANNEL_HANDSHAKE' }));
    }
  });

  it('refuse a wrong length', () => {
    expect(() => publicKeyFromRaw(Buffer.alloc(31))).toThrow(/31 bytes/);
    expect(() => keyPairFromPrivate(Buffer.alloc(33))).toThrow(/33 bytes/);
  });

  it('do not hang in key generation (docs/dependencies.md)', () => {
    for (let i = 0; i < 3_000; i += 1) generateKeyPair();
  });
});

describe('tokenPsk', () => {
  it('is HMAC-SHA256(token key, label || token id)', () => {
    const key = Buffer.alloc(32, 7);
    const id = Buffer.alloc(16, 9);
    const expected = hmac(sha256, key, Buffer.concat([Buffer.from('pairwire/1 psk'), id]));
    expect(tokenPsk(key, id)).toEqual(Buffer.from(expected));
  });
});
