/**
 * Raw public and private keys of Ed25519 and X25519 as KeyObjects and back. Keys are made with the
 * encodings passed to the generator: exporting a JWK from a KeyObject that
 * generateKeyPairSync returned can deadlock Node.js 20 (docs/dependencies.md).
 */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
} from 'node:crypto';
import { PairwireError } from '../runtime/errors.js';
import { KEY_SIZE } from './constants.js';

export type Curve = 'ed25519' | 'x25519';

const JWK_CURVE = { ed25519: 'Ed25519', x25519: 'X25519' } as const;
/** PKCS #8 in front of a raw private key (RFC 8410). */
const PKCS8_PREFIX = {
  ed25519: Buffer.from('302e020100300506032b657004220420', 'hex'),
  x25519: Buffer.from('302e020100300506032b656e04220420', 'hex'),
} as const;
/** SubjectPublicKeyInfo in front of a raw public key (RFC 8410). */
const SPKI_PREFIX_SIZE = 12;

/** A key pair as raw bytes, 32 each. The caller zeroes `privateKey` when done. */
export interface RawKeyPair {
  readonly privateKey: Buffer;
  readonly publicKey: Buffer;
}

export function generateRawKeyPair(curve: Curve): RawKeyPair {
  const pair =
    curve === 'ed25519'
      ? generateKeyPairSync('ed25519', {
          publicKeyEncoding: { type: 'spki', format: 'der' },
          privateKeyEncoding: { type: 'pkcs8', format: 'der' },
        })
      : generateKeyPairSync('x25519', {
          publicKeyEncoding: { type: 'spki', format: 'der' },
          privateKeyEncoding: { type: 'pkcs8', format: 'der' },
        });
  const der = pair.privateKey;
  const privateKey = Buffer.from(der.subarray(PKCS8_PREFIX[curve].length));
  der.fill(0);
  return { privateKey, publicKey: Buffer.from(pair.publicKey.subarray(SPKI_PREFIX_SIZE)) };
}

/** A raw public key as a KeyObject. JWK, because importing DER costs 16 times as much. */
export function importPublic(curve: Curve, raw: Uint8Array): KeyObject {
  requireKeySize(raw);
  return createPublicKey({
    key: { kty: 'OKP', crv: JWK_CURVE[curve], x: Buffer.from(raw).toString('base64url') },
    format: 'jwk',
  });
}

/** A raw private key as a KeyObject. */
export function importPrivate(curve: Curve, raw: Uint8Array): KeyObject {
  requireKeySize(raw);
  const der = Buffer.concat([PKCS8_PREFIX[curve], raw]);
  try {
    return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  } finally {
    der.fill(0);
  }
}

/** The raw public half of a private KeyObject. */
export function publicOf(key: KeyObject): Buffer {
  const der = createPublicKey(key).export({ format: 'der', type: 'spki' });
  return Buffer.from(der.subarray(SPKI_PREFIX_SIZE));
}

function requireKeySize(raw: Uint8Array): void {
  if (raw.length !== KEY_SIZE) throw new PairwireError('RECORD_MALFORMED', 'a key has 32 bytes');
}
