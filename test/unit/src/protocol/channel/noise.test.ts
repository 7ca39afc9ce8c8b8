/** Tests of src/protocol/channel/noise.ts against published vectors and @noble. */
import { readFileSync } from 'node:fs';
import { gcm } from '@noble/ciphers/aes.js';
import { x25519 } from '@noble/curves/ed25519.js';
import { expand, extract } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { describe, expect, it } from 'vitest';
import { generateKeyPair, keyPairFromPrivate } from '../../../../../src/protocol/channel/keys.js';
import {
  CipherState,
  HandshakeState,
  MESSAGE_1_OVERHEAD,
  MESSAGE_2_OVERHEAD,
  type PatternName,
  SymmetricState,
} from '../../../../../src/protocol/channel/noise.js';

interface Vector {
  protocol_name: string;
  init_prologue: string;
  init_static: string;
  init_ephemeral: string;
  init_remote_static: string;
  init_psks?: string[];
  resp_prologue: string;
  resp_static: string;
  resp_ephemeral: string;
  resp_psks?: string[];
  handshake_hash: string;
  messages: { payload: string; ciphertext: string }[];
}
const file = new URL('../../../../vectors/noise/cacophony.json', import.meta.url);
const { vectors } = JSON.parse(readFileSync(file, 'utf8')) as { vectors: Vector[] };
const hex = (text: string | undefined): Buffer => Buffer.from(text ?? '', 'hex');
const NO_AD = new Uint8Array(0);

function pair(vector: Vector): { initiator: HandshakeState; responder: HandshakeState } {
  const pattern = vector.protocol_name.split('_')[1] as PatternName;
  return {
    initiator: new HandshakeState({
      pattern,
      initiator: true,
      prologue: hex(vector.init_prologue),
      staticKeys: keyPairFromPrivate(hex(vector.init_static)),
      remoteStatic: hex(vector.init_remote_static),
      fixedEphemeralForTestingOnly: keyPairFromPrivate(hex(vector.init_ephemeral)),
      ...(vector.init_psks ? { psk: hex(vector.init_psks[0]) } : {}),
    }),
    responder: new HandshakeState({
      pattern,
      initiator: false,
      prologue: hex(vector.resp_prologue),
      staticKeys: keyPairFromPrivate(hex(vector.resp_static)),
      fixedEphemeralForTestingOnly: keyPairFromPrivate(hex(vector.resp_ephemeral)),
    }),
  };
}

describe('the published vectors', () => {
  it('are those of both patterns', () => {
    expect(vectors.map((v) => v.protocol_name)).toEqual([
      'Noise_IK_25519_AESGCM_SHA256',
      'Noise_IKpsk2_25519_AESGCM_SHA256',
    ]);
  });

  for (const vector of vectors) {
    it(`${vector.protocol_name}: handshake, hash and transport messages`, () => {
      const { initiator, responder } = pair(vector);
      const [m1, m2, ...transport] = vector.messages;
      if (m1 === undefined || m2 === undefined) throw new Error('a vector without messages');

      expect(initiator.writeMessage(hex(m1.payload)).toString('hex')).toBe(m1.ciphertext);
      expect(responder.readMessage(hex(m1.ciphertext)).toString('hex')).toBe(m1.payload);
      const initiatorKey = keyPairFromPrivate(hex(vector.init_static)).publicKey;
      expect(responder.remoteStatic).toEqual(initiatorKey);
      if (vector.resp_psks) responder.setPsk(hex(vector.resp_psks[0]));
      expect(responder.writeMessage(hex(m2.payload)).toString('hex')).toBe(m2.ciphertext);
      expect(initiator.readMessage(hex(m2.ciphertext)).toString('hex')).toBe(m2.payload);

      const a = initiator.finish();
      const b = responder.finish();
      expect(a).toEqual(b);
      expect(a.handshakeHash.toString('hex')).toBe(vector.handshake_hash);

      const ways = [new CipherState(), new CipherState()];
      ways[0]?.initializeKey(a.initiatorKey);
      ways[1]?.initializeKey(a.responderKey);
      transport.forEach((message, i) => {
        const sealed = ways[i % 2]?.encryptWithAd(NO_AD, hex(message.payload));
        expect(sealed?.toString('hex')).toBe(message.ciphertext);
      });
      const way = new CipherState();
      way.initializeKey(b.initiatorKey);
      expect(way.decryptWithAd(NO_AD, hex(transport[0]?.ciphertext)).toString('hex')).toBe(
        transport[0]?.payload,
      );
    });
  }
});

describe('Split', () => {
  it('gives HKDF(ck, empty, 3), whose first two outputs are those of Noise', () => {
    const symmetric = new SymmetricState('Noise_IK_25519_AESGCM_SHA256');
    const name = Buffer.alloc(32);
    name.write('Noise_IK_25519_AESGCM_SHA256');
    const chainingKey = extract(sha256, Buffer.from('ikm'), name);
    const first = expand(sha256, chainingKey, NO_AD, 64).slice(0, 32);
    symmetric.mixKey(Buffer.from('ikm'));
    const { initiatorKey, responderKey, otpKey } = symmetric.split();
    const all = expand(sha256, extract(sha256, NO_AD, first), NO_AD, 96);
    expect(Buffer.concat([initiatorKey, responderKey, otpKey])).toEqual(Buffer.from(all));
  });
});

describe('CipherState', () => {
  it('agrees with @noble/ciphers and counts its nonces big-endian', () => {
    const key = Buffer.alloc(32, 3);
    const cipher = new CipherState();
    cipher.initializeKey(Buffer.from(key));
    const ad = Buffer.from('ad');
    for (let n = 0; n < 300; n += 1) {
      const nonce = Buffer.alloc(12);
      nonce.writeBigUInt64BE(BigInt(n), 4);
      const expected = gcm(key, nonce, ad).encrypt(Buffer.from('text'));
      expect(cipher.encryptWithAd(ad, Buffer.from('text'))).toEqual(Buffer.from(expected));
    }
  });

  it('keeps its nonce when a message is refused', () => {
    const [tx, rx] = [new CipherState(), new CipherState()];
    tx.initializeKey(Buffer.alloc(32, 1));
    rx.initializeKey(Buffer.alloc(32, 1));
    const sealed = tx.encryptWithAd(NO_AD, Buffer.from('a'));
    expect(() => rx.decryptWithAd(NO_AD, Buffer.alloc(17))).toThrow();
    expect(rx.decryptWithAd(NO_AD, sealed).toString()).toBe('a');
  });
});

describe('HandshakeState', () => {
  const server = generateKeyPair();
  const client = generateKeyPair();
  const make = (pattern: PatternName, psk?: Buffer, serverPsk?: Buffer) => {
    const common = { pattern, prologue: Buffer.from('p') };
    return {
      initiator: new HandshakeState({
        ...common,
        initiator: true,
        staticKeys: client,
        remoteStatic: server.publicKey,
        ...(psk ? { psk } : {}),
      }),
      responder: new HandshakeState({
        ...common,
        initiator: false,
        staticKeys: server,
        ...(serverPsk ? { psk: serverPsk } : {}),
      }),
    };
  };

  it('has the overhead that it says', () => {
    const { initiator, responder } = make('IK');
    const m1 = initiator.writeMessage(Buffer.alloc(10));
    expect(m1.length).toBe(10 + MESSAGE_1_OVERHEAD);
    responder.readMessage(m1);
    expect(responder.writeMessage(Buffer.alloc(10)).length).toBe(10 + MESSAGE_2_OVERHEAD);
  });

  it('makes its DH results as @noble/curves does', () => {
    // -> e, es: the static key in message 1 opens under the key of MixKey(DH(e, rs)).
    const rawServer = Buffer.alloc(32, 5);
    const initiator = new HandshakeState({
      pattern: 'IK',
      initiator: true,
      prologue: NO_AD,
      staticKeys: client,
      remoteStatic: x25519.getPublicKey(rawServer),
    });
    const m1 = initiator.writeMessage(NO_AD);
    const e = m1.subarray(0, 32);
    const name = Buffer.alloc(32);
    name.write('Noise_IK_25519_AESGCM_SHA256');
    let h: Uint8Array = sha256(name);
    h = sha256(Buffer.concat([h, x25519.getPublicKey(rawServer)]));
    h = sha256(Buffer.concat([h, e]));
    const prk = extract(sha256, x25519.getSharedSecret(rawServer, e), name);
    const key = expand(sha256, prk, NO_AD, 64).slice(32);
    const opened = gcm(key, new Uint8Array(12), h).decrypt(m1.subarray(32, 80));
    expect(Buffer.from(opened)).toEqual(client.publicKey);
  });

  it('fails with a wrong server key at message 1', () => {
    const { initiator } = make('IK');
    const { responder } = {
      responder: new HandshakeState({
        pattern: 'IK',
        initiator: false,
        prologue: Buffer.from('p'),
        staticKeys: generateKeyPair(),
      }),
    };
    expect(() => responder.readMessage(initiator.writeMessage(NO_AD))).toThrow(
      expect.objectContaining({ code: 'CHANNEL_HANDSHAKE' }),
    );
  });

  it('fails with a wrong PSK at message 2', () => {
    const { initiator, responder } = make('IKpsk2', Buffer.alloc(32, 1), Buffer.alloc(32, 2));
    responder.readMessage(initiator.writeMessage(NO_AD));
    expect(() => initiator.readMessage(responder.writeMessage(NO_AD))).toThrow(/not authentic/);
  });

  it('fails without a PSK, with another pattern and with another prologue', () => {
    const a = make('IKpsk2', Buffer.alloc(32, 1));
    a.responder.readMessage(a.initiator.writeMessage(NO_AD));
    expect(() => a.responder.writeMessage(NO_AD)).toThrow(/pre-shared/);
    const m1 = make('IK').initiator.writeMessage(NO_AD);
    expect(() => make('IKpsk2').responder.readMessage(m1)).toThrow(/not authentic/);
    const other = new HandshakeState({
      pattern: 'IK',
      initiator: false,
      prologue: Buffer.from('q'),
      staticKeys: server,
    });
    expect(() => other.readMessage(make('IK').initiator.writeMessage(NO_AD))).toThrow();
  });

  it('fails for every flipped bit and every cut of both messages', () => {
    const m1 = make('IK').initiator.writeMessage(Buffer.from('hello'));
    for (let bit = 0; bit < m1.length * 8; bit += 7) {
      const bad = Buffer.from(m1);
      bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      // The top bit of an X25519 public key does not enter the DH, but it enters the hash.
      expect(() => make('IK').responder.readMessage(bad)).toThrow();
    }
    for (let size = 0; size < m1.length; size += 1) {
      expect(() => make('IK').responder.readMessage(m1.subarray(0, size))).toThrow(
        expect.objectContaining({ code: 'CHANNEL_HANDSHAKE' }),
      );
    }
  });

  it('keeps its turn and is dead after a failure and after finish', () => {
    const { initiator, responder } = make('IK');
    expect(() => make('IK').responder.writeMessage(NO_AD)).toThrow(/turn/);
    expect(() => make('IK').initiator.finish()).toThrow(/not complete/);
    const m1 = initiator.writeMessage(NO_AD);
    expect(() => responder.readMessage(m1.subarray(1))).toThrow();
    expect(() => responder.readMessage(m1)).toThrow(/over/);
    const b = make('IK');
    b.responder.readMessage(b.initiator.writeMessage(NO_AD));
    b.initiator.readMessage(b.responder.writeMessage(NO_AD));
    b.initiator.finish();
    expect(() => b.initiator.finish()).toThrow(/over/);
  });
});
