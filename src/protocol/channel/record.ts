/**
 * Sealed records, docs/protocol.md 6.3:
 *
 *   length (4) | type (1) = 4 | AES-256-GCM( one-time password (16) | message ) | tag (16)
 *
 * The 5 header bytes are the associated data; the nonce is 4 zero bytes and the record
 * number (8), each direction from 0. A record that comes twice or out of order meets
 * another nonce and so fails at its tag.
 */
import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject } from 'node:crypto';
import { TAG_SIZE } from '../constants.js';
import { FRAME_HEADER_SIZE, FrameType, writeFrameHeader } from './framing.js';
import { type Direction, OneTimePasswords, OTP_SIZE, type OtpFailure } from './otp.js';

/** What a record is longer than its message: 5 + 16 + 16. */
export const RECORD_OVERHEAD = FRAME_HEADER_SIZE + OTP_SIZE + TAG_SIZE;
/** The longest message, 1 MiB. */
export const MAX_MESSAGE_SIZE = 1_048_576;

const GCM = { authTagLength: TAG_SIZE };
/** Up to this size the plaintext is put together in a buffer that is used again. */
const SCRATCH_SIZE = 16_384;
const SCRATCH = Buffer.allocUnsafeSlow(SCRATCH_SIZE);

/** Written anew for each record of whatever channel: a channel with buffers of its own for them takes more memory. */
const HEADER = Buffer.alloc(FRAME_HEADER_SIZE);
const NONCE = Buffer.alloc(12);

/** The nonce of a record: 4 zero bytes | record number (8). Good until the next call. */
function nonceOf(recordNumber: number): Buffer {
  NONCE.writeUInt32BE(Math.floor(recordNumber / 0x1_0000_0000), 4);
  NONCE.writeUInt32BE(recordNumber >>> 0, 8);
  return NONCE;
}

/** The header of a record frame. Good until the next call. */
function headerOf(bodySize: number): Buffer {
  writeFrameHeader(HEADER, 0, FrameType.record, bodySize);
  return HEADER;
}

/** Seals the records of one direction under one key. */
export class RecordSealer {
  readonly #key: KeyObject;
  readonly #passwords: OneTimePasswords;
  #count = 0;

  /** `key` and `otpKey` (32 bytes each) are copied; the caller wipes them. */
  constructor(key: Uint8Array, otpKey: Uint8Array, direction: Direction) {
    this.#key = createSecretKey(key);
    this.#passwords = new OneTimePasswords(otpKey, direction);
  }

  /** Records sealed so far. */
  get count(): number {
    return this.#count;
  }

  /**
   * Stamps and seals `message` into `out` at `offset`, where RECORD_OVERHEAD more bytes than
   * the message must be free. `timeMs` is key-server time.
   * @returns the number of bytes written
   */
  sealInto(out: Buffer, offset: number, message: Uint8Array, timeMs: number): number {
    const plainSize = OTP_SIZE + message.length;
    const total = RECORD_OVERHEAD + message.length;
    const header = headerOf(plainSize + TAG_SIZE);
    out.set(header, offset);
    const plain = plainSize <= SCRATCH_SIZE ? SCRATCH : Buffer.allocUnsafeSlow(plainSize);
    this.#passwords.write(plain, 0, timeMs, this.#count);
    plain.set(message, OTP_SIZE);

    const cipher = createCipheriv('aes-256-gcm', this.#key, nonceOf(this.#count), GCM);
    cipher.setAAD(header);
    out.set(cipher.update(plain.subarray(0, plainSize)), offset + FRAME_HEADER_SIZE);
    cipher.final();
    out.set(cipher.getAuthTag(), offset + total - TAG_SIZE);
    plain.fill(0, 0, plainSize);
    this.#count += 1;
    return total;
  }

  /** The record for `message` in a buffer of its own. */
  seal(message: Uint8Array, timeMs: number): Buffer {
    const out = Buffer.allocUnsafe(RECORD_OVERHEAD + message.length);
    this.sealInto(out, 0, message, timeMs);
    return out;
  }
}

/** A record that was opened, or why it was not. */
export type Opened =
  | { readonly ok: true; readonly message: Buffer }
  | { readonly ok: false; readonly reason: 'record_short' | 'record_tag' | OtpFailure };

const SHORT: Opened = { ok: false, reason: 'record_short' };
const TAG: Opened = { ok: false, reason: 'record_tag' };

/** Opens the records of one direction under one key. After a failure it must not be used again on a stream. */
export class RecordOpener {
  readonly #key: KeyObject;
  readonly #passwords: OneTimePasswords;
  #count = 0;

  /** `key` and `otpKey` (32 bytes each) are copied; the caller wipes them. */
  constructor(key: Uint8Array, otpKey: Uint8Array, direction: Direction) {
    this.#key = createSecretKey(key);
    this.#passwords = new OneTimePasswords(otpKey, direction);
  }

  /** Records opened so far. */
  get count(): number {
    return this.#count;
  }

  /**
   * Opens the body of a record frame and checks its one-time password against `nowMs`, our
   * key-server time. Never throws.
   */
  open(body: Buffer, nowMs: number, validityMs: number): Opened {
    if (body.length < OTP_SIZE + TAG_SIZE) return SHORT;
    const sealedSize = body.length - TAG_SIZE;
    const decipher = createDecipheriv('aes-256-gcm', this.#key, nonceOf(this.#count), GCM);
    decipher.setAAD(headerOf(body.length));
    decipher.setAuthTag(body.subarray(sealedSize));
    const plain = decipher.update(body.subarray(0, sealedSize));
    try {
      decipher.final();
    } catch {
      plain.fill(0);
      return TAG;
    }
    const failure = this.#passwords.check(plain, this.#count, nowMs, validityMs);
    if (failure !== undefined) return { ok: false, reason: failure };
    this.#count += 1;
    return { ok: true, message: plain.subarray(OTP_SIZE) };
  }
}
