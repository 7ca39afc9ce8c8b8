/**
 * Sealed records as datagrams, docs/protocol.md 6.7:
 *
 *   type (1) = 4 | channel id (8) | record number (8) | AES-256-GCM( one-time password (16) | frames ) | tag (16)
 *
 * The 17 bytes in clear are the associated data; the nonce is 4 zero bytes and the record
 * number, which is explicit because datagrams come in any order.
 */
import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject } from 'node:crypto';
import { TAG_SIZE } from '../constants.js';
import {
  CHANNEL_ID_SIZE,
  DATAGRAM_OVERHEAD,
  DatagramType,
  type DiscardReason,
  RECORD_HEADER_SIZE,
} from './datagram.js';
import { type Direction, OneTimePasswords, OTP_SIZE } from './otp.js';
import { ReplayWindow } from './replay-window.js';

const GCM = { authTagLength: TAG_SIZE };
const NUMBER_AT = 1 + CHANNEL_ID_SIZE;

/** Where the frames begin in the plaintext of a record. */
export const FRAMES_AT = OTP_SIZE;

/** Seals the records of one direction under one key. */
export class DatagramSealer {
  readonly #key: KeyObject;
  readonly #passwords: OneTimePasswords;
  readonly #receiver: Buffer;
  readonly #nonce = Buffer.alloc(12);
  #count = 0;

  /** `key` and `otpKey` (32 bytes each) are copied; the caller wipes them. `receiver` is the peer's channel id. */
  constructor(key: Uint8Array, otpKey: Uint8Array, direction: Direction, receiver: Uint8Array) {
    this.#key = createSecretKey(key);
    this.#passwords = new OneTimePasswords(otpKey, direction);
    this.#receiver = Buffer.from(receiver);
  }

  /** Records sealed so far. */
  get count(): number {
    return this.#count;
  }

  /**
   * Stamps and seals `plain`, whose first 16 bytes are free for the one-time password. It is
   * zeroed. `timeMs` is key-server time.
   */
  seal(plain: Buffer, timeMs: number): Buffer {
    const number = this.#count;
    const out = Buffer.allocUnsafe(RECORD_HEADER_SIZE + plain.length + TAG_SIZE);
    out[0] = DatagramType.record;
    out.set(this.#receiver, 1);
    writeNumber(out, NUMBER_AT, number);
    writeNumber(this.#nonce, 4, number);
    this.#passwords.write(plain, 0, timeMs, number);
    const cipher = createCipheriv('aes-256-gcm', this.#key, this.#nonce, GCM);
    cipher.setAAD(out.subarray(0, RECORD_HEADER_SIZE));
    out.set(cipher.update(plain), RECORD_HEADER_SIZE);
    cipher.final();
    out.set(cipher.getAuthTag(), out.length - TAG_SIZE);
    plain.fill(0);
    this.#count += 1;
    return out;
  }

  wipe(): void {
    this.#passwords.wipe();
  }
}

/** A record that was opened, or why it was thrown away. */
export type OpenedDatagram =
  | { readonly ok: true; readonly frames: Buffer; readonly newest: boolean }
  | { readonly ok: false; readonly reason: DiscardReason };

const SHAPE: OpenedDatagram = { ok: false, reason: 'shape' };
const REPLAYED: OpenedDatagram = { ok: false, reason: 'replayed' };
const TAG: OpenedDatagram = { ok: false, reason: 'record' };
const OTP: OpenedDatagram = { ok: false, reason: 'otp' };

/** Opens the records of one direction under one key; one that fails leaves everything as it was. */
export class DatagramOpener {
  readonly #key: KeyObject;
  readonly #passwords: OneTimePasswords;
  readonly #window = new ReplayWindow();
  readonly #nonce = Buffer.alloc(12);
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

  /** Opens a whole datagram of type 4. Check, open, mark: the window moves only for an authentic record. Never throws. */
  open(datagram: Buffer, nowMs: number, validityMs: number): OpenedDatagram {
    if (datagram.length < DATAGRAM_OVERHEAD) return SHAPE;
    const high = datagram.readUInt32BE(NUMBER_AT);
    const number = high * 0x1_0000_0000 + datagram.readUInt32BE(NUMBER_AT + 4);
    // Beyond 2^53 a number is none that our sealer makes.
    if (high > 0x1f_ffff || !this.#window.allows(number)) return REPLAYED;
    const sealedEnd = datagram.length - TAG_SIZE;
    writeNumber(this.#nonce, 4, number);
    const decipher = createDecipheriv('aes-256-gcm', this.#key, this.#nonce, GCM);
    decipher.setAAD(datagram.subarray(0, RECORD_HEADER_SIZE));
    decipher.setAuthTag(datagram.subarray(sealedEnd));
    const plain = decipher.update(datagram.subarray(RECORD_HEADER_SIZE, sealedEnd));
    try {
      decipher.final();
    } catch {
      plain.fill(0);
      return TAG;
    }
    if (this.#passwords.check(plain, number, nowMs, validityMs) !== undefined) return OTP;
    const newest = number > this.#window.highest;
    this.#window.mark(number);
    this.#count += 1;
    return { ok: true, frames: plain.subarray(OTP_SIZE), newest };
  }

  wipe(): void {
    this.#passwords.wipe();
  }
}

function writeNumber(out: Buffer, at: number, number: number): void {
  out.writeUInt32BE(Math.floor(number / 0x1_0000_0000), at);
  out.writeUInt32BE(number >>> 0, at + 4);
}
