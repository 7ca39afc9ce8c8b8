/**
 * The one-time password in each record, docs/protocol.md 6.3:
 *
 *   time (6) | HMAC-SHA256(otp key, direction (1) | time (6) | record number (8)), first 10 bytes
 *
 * time is key-server time in ms. A password is bound to its direction and record number,
 * so it fits one place in one channel for the time of its validity.
 */
import { timingSafeEqual } from 'node:crypto';
import { HmacSha256 } from './hash.js';

/** Sizes in bytes. */
export const OTP_SIZE = 16;
const TIME_SIZE = 6;
const MAC_SIZE = OTP_SIZE - TIME_SIZE;
const INPUT_SIZE = 1 + TIME_SIZE + 8;

/** From whom to whom a record goes. */
export const Direction = { toResponder: 1, toInitiator: 2 } as const;
export type Direction = (typeof Direction)[keyof typeof Direction];

/** What is wrong with a password. */
export type OtpFailure = 'otp_hmac' | 'otp_old' | 'otp_future';

/** Makes and checks the passwords of one direction. */
export class OneTimePasswords {
  readonly #hmac: HmacSha256;
  /** direction (1) | time (6) | record number (8), a part of what is hashed. */
  readonly #input: Buffer;

  /** `key` is the 32-byte otp key; it is copied, the caller wipes it. */
  constructor(key: Uint8Array, direction: Direction) {
    this.#hmac = new HmacSha256(key, INPUT_SIZE);
    this.#input = this.#hmac.input;
    this.#input[0] = direction;
  }

  /** Writes the 16 bytes for a record to `out` at `offset`. `timeMs` is key-server time. */
  write(out: Buffer, offset: number, timeMs: number, recordNumber: number): void {
    out.writeUIntBE(timeMs, offset, TIME_SIZE);
    const mac = this.#mac(timeMs, recordNumber);
    // Ten bytes: a loop is faster than copy(), which checks and wraps (Node.js 20.20).
    for (let i = 0; i < MAC_SIZE; i += 1) out[offset + TIME_SIZE + i] = mac[i] ?? 0;
  }

  /**
   * Checks the 16 bytes at the start of `plaintext`: the HMAC in constant time, then the age.
   * @returns what is wrong, or undefined
   */
  check(
    plaintext: Buffer,
    recordNumber: number,
    nowMs: number,
    validityMs: number,
  ): OtpFailure | undefined {
    const timeMs = plaintext.readUIntBE(0, TIME_SIZE);
    const expected = this.#mac(timeMs, recordNumber).subarray(0, MAC_SIZE);
    if (!timingSafeEqual(expected, plaintext.subarray(TIME_SIZE, OTP_SIZE))) return 'otp_hmac';
    if (nowMs - timeMs > validityMs) return 'otp_old';
    if (timeMs - nowMs > validityMs) return 'otp_future';
    return undefined;
  }

  wipe(): void {
    this.#hmac.wipe();
  }

  #mac(timeMs: number, recordNumber: number): Buffer {
    const input = this.#input;
    input.writeUIntBE(timeMs, 1, TIME_SIZE);
    input.writeUInt32BE(Math.floor(recordNumber / 0x1_0000_0000), 7);
    input.writeUInt32BE(recordNumber >>> 0, 11);
    return this.#hmac.digest();
  }
}
