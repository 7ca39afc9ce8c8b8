/**
 * SHA-256 and HMAC-SHA256 (FIPS 180-4, RFC 2104) over one-shot hashing. node:crypto's
 * createHmac makes a stream object for each use: 2.2 us against 1.7 us for two one-shot
 * hashes into Buffers and 0.7 us into strings, and more work for the garbage collector
 * (Node.js 20.20, 15 bytes of input).
 * test/unit/src/protocol/channel/hash.test.ts holds it to createHmac and to @noble/hashes.
 */
import { createHash, hash } from 'node:crypto';

const BLOCK_SIZE = 64;
const DIGEST_SIZE = 32;

/** SHA-256 of `data`. */
export const sha256: (data: Uint8Array) => Buffer =
  typeof hash === 'function'
    ? (data) => hash('sha256', data, 'buffer')
    : (data) => createHash('sha256').update(data).digest();

/** The same as a string of one character for each byte. It costs no memory outside the heap, a Buffer of 32 bytes costs more than the hash. */
const sha256Latin1: (data: Uint8Array) => string =
  typeof hash === 'function'
    ? (data) => hash('sha256', data, 'binary')
    : (data) => createHash('sha256').update(data).digest('binary');

/** Where `HmacSha256` puts its result. */
const RESULT = Buffer.alloc(DIGEST_SIZE);

/**
 * HMAC-SHA256 under one key for inputs of one size. The input is written into `input`, so
 * nothing is copied or allocated but the two digests.
 */
export class HmacSha256 {
  /** Where the input goes before `digest`. */
  readonly input: Buffer;
  // key ^ ipad | input
  readonly #inner: Buffer;
  // key ^ opad | inner digest
  readonly #outer: Buffer;

  /** `key` (at most 64 bytes) is copied; the caller wipes it. @throws RangeError for a longer one */
  constructor(key: Uint8Array, inputSize: number) {
    if (key.length > BLOCK_SIZE) throw new RangeError('an HMAC key is longer than a block');
    // One allocation for both: there are two such objects in each channel.
    const memory = Buffer.alloc(2 * BLOCK_SIZE + inputSize + DIGEST_SIZE);
    this.#inner = memory.subarray(0, BLOCK_SIZE + inputSize);
    this.#outer = memory.subarray(BLOCK_SIZE + inputSize);
    this.input = this.#inner.subarray(BLOCK_SIZE);
    for (let i = 0; i < BLOCK_SIZE; i += 1) {
      const byte = key[i] ?? 0;
      this.#inner[i] = byte ^ 0x36;
      this.#outer[i] = byte ^ 0x5c;
    }
  }

  /** HMAC of what stands in `input`; good until the next HMAC of whatever key. */
  digest(): Buffer {
    this.#outer.write(sha256Latin1(this.#inner), BLOCK_SIZE, 'latin1');
    RESULT.write(sha256Latin1(this.#outer), 0, 'latin1');
    return RESULT;
  }

  /** Zeroes the key. */
  wipe(): void {
    this.#inner.fill(0);
    this.#outer.fill(0);
  }
}

/** HMAC-SHA256 of the joined parts. `key` is at most 64 bytes. */
export function hmacSha256(key: Uint8Array, ...parts: readonly Uint8Array[]): Buffer {
  let size = 0;
  for (const part of parts) size += part.length;
  const hmac = new HmacSha256(key, size);
  let at = 0;
  for (const part of parts) {
    hmac.input.set(part, at);
    at += part.length;
  }
  const digest = Buffer.from(hmac.digest());
  hmac.wipe();
  return digest;
}
