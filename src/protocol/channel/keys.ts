/**
 * X25519 keys (RFC 7748) of the channel. A KeyObject that came from generateKeyPairSync is never exported as JWK: on
 * Node.js 20 a garbage collection inside that export can take the key's mutex a second
 * time and hang the process. An ephemeral pair is generated with the public half encoded
 * by the generator itself, which is also the fastest way: 38 us, against 156 us with DER
 * encodings and 364 us for a PKCS8 import (measured on Node.js 20.20, 300,000 in a row).
 */
import { diffieHellman, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { PairwireError } from '../../runtime/errors.js';
import { KEY_SIZE } from '../constants.js';
import { importPrivate, importPublic, publicOf } from '../public-keys.js';

/** An X25519 key pair: the private half stays in node:crypto, the public half is raw. */
export interface KeyPair {
  readonly privateKey: KeyObject;
  readonly publicKey: Buffer;
}

interface OkpJwk {
  readonly kty: string;
  readonly crv: string;
  readonly x: string;
}

// @types/node 20 knows only the PEM and DER encodings; `jwk` is there since Node.js 15.9.
const generateWithJwk = generateKeyPairSync as unknown as (
  type: 'x25519',
  options: { publicKeyEncoding: { format: 'jwk' } },
) => { publicKey: OkpJwk; privateKey: KeyObject };

/** Makes an ephemeral key pair. */
export function generateKeyPair(): KeyPair {
  const pair = generateWithJwk('x25519', { publicKeyEncoding: { format: 'jwk' } });
  return { privateKey: pair.privateKey, publicKey: Buffer.from(pair.publicKey.x, 'base64url') };
}

/**
 * Imports a raw private key; the public half is computed. Slow (0.4 ms): once for a stored key.
 * @throws PairwireError CHANNEL_HANDSHAKE if it is not 32 bytes
 */
export function keyPairFromPrivate(raw: Uint8Array): KeyPair {
  checkSize(raw);
  const privateKey = importPrivate('x25519', raw);
  return { privateKey, publicKey: publicOf(privateKey) };
}

/**
 * Imports a raw public key.
 * @throws PairwireError CHANNEL_HANDSHAKE if it is not 32 bytes
 */
export function publicKeyFromRaw(raw: Uint8Array): KeyObject {
  checkSize(raw);
  return importPublic('x25519', raw);
}

/**
 * X25519. node:crypto (OpenSSL) refuses an all-zero result by itself, as RFC 7748 6.1 allows
 * and docs/protocol.md section 1 demands; test/unit/src/protocol/channel/keys.test.ts holds it to that.
 * @throws PairwireError CHANNEL_HANDSHAKE for a public key of low order
 */
export function sharedSecret(own: KeyObject, peer: KeyObject): Buffer {
  try {
    return diffieHellman({ privateKey: own, publicKey: peer });
  } catch (cause) {
    throw new PairwireError('CHANNEL_HANDSHAKE', 'an X25519 public key is of low order', { cause });
  }
}

function checkSize(raw: Uint8Array): void {
  if (raw.length !== KEY_SIZE) {
    throw new PairwireError('CHANNEL_HANDSHAKE', `an X25519 key has ${raw.length} bytes, not 32`);
  }
}
