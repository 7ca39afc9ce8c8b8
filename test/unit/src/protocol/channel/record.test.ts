/** Tests of src/protocol/channel/record.ts and otp.ts: docs/protocol.md 6.3 byte for byte, and every refusal. */
import { randomBytes } from 'node:crypto';
import { gcm } from '@noble/ciphers/aes.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Direction, OneTimePasswords } from '../../../../../src/protocol/channel/otp.js';
import {
  RECORD_OVERHEAD,
  RecordOpener,
  RecordSealer,
} from '../../../../../src/protocol/channel/record.js';

const KEY = Buffer.alloc(32, 1);
const OTP_KEY = Buffer.alloc(32, 2);
const NOW = 1_800_000_000_000;
const VALIDITY = 30_000;

function ends(direction: Direction = Direction.toResponder) {
  return {
    tx: new RecordSealer(KEY, OTP_KEY, direction),
    rx: new RecordOpener(KEY, OTP_KEY, direction),
  };
}
const body = (frame: Buffer): Buffer => frame.subarray(5);

/** A record by @noble alone, from the text of the protocol. */
function reference(
  message: Uint8Array,
  number: number,
  time: number,
  direction: number,
  otpKey: Uint8Array = OTP_KEY,
): Buffer {
  const input = Buffer.alloc(15);
  input[0] = direction;
  input.writeUIntBE(time, 1, 6);
  input.writeBigUInt64BE(BigInt(number), 7);
  const otp = Buffer.concat([input.subarray(1, 7), hmac(sha256, otpKey, input).slice(0, 10)]);
  const header = Buffer.alloc(5);
  header.writeUInt32BE(1 + 16 + message.length + 16, 0);
  header[4] = 4;
  const nonce = Buffer.alloc(12);
  nonce.writeBigUInt64BE(BigInt(number), 4);
  return Buffer.concat([header, gcm(KEY, nonce, header).encrypt(Buffer.concat([otp, message]))]);
}

describe('a record', () => {
  it('is what the protocol says, byte for byte', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 400 }), { minLength: 1, maxLength: 5 }),
        fc.integer({ min: 0, max: 2 ** 48 - 1 }),
        fc.constantFrom(Direction.toResponder, Direction.toInitiator),
        (messages, time, direction) => {
          const { tx, rx } = ends(direction);
          messages.forEach((message, number) => {
            const sealed = tx.seal(message, time);
            expect(sealed).toEqual(reference(message, number, time, direction));
            expect(sealed.length).toBe(message.length + RECORD_OVERHEAD);
            const opened = rx.open(body(sealed), time, VALIDITY);
            expect(opened).toEqual({ ok: true, message: Buffer.from(message) });
          });
        },
      ),
      { numRuns: 40 },
    );
  });

  it('may be 1 MiB long', () => {
    const { tx, rx } = ends();
    const message = randomBytes(1_048_576);
    const opened = rx.open(body(tx.seal(message, NOW)), NOW, VALIDITY);
    expect(opened.ok && opened.message.equals(message)).toBe(true);
  });

  it('is refused when it is repeated, left out or out of order', () => {
    const { tx, rx } = ends();
    const [a, b, c] = [1, 2, 3].map((n) => tx.seal(Buffer.from([n]), NOW));
    if (!a || !b || !c) throw new Error('unreachable');
    expect(rx.open(body(a), NOW, VALIDITY).ok).toBe(true);
    expect(rx.open(body(a), NOW, VALIDITY)).toEqual({ ok: false, reason: 'record_tag' });
    expect(rx.open(body(c), NOW, VALIDITY)).toEqual({ ok: false, reason: 'record_tag' });
    expect(rx.count).toBe(1);
  });

  it('is refused for every bit that is flipped, and when it is cut', () => {
    const sealed = body(ends().tx.seal(Buffer.from('message'), NOW));
    for (let bit = 0; bit < sealed.length * 8; bit += 1) {
      const bad = Buffer.from(sealed);
      bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(ends().rx.open(bad, NOW, VALIDITY)).toEqual({ ok: false, reason: 'record_tag' });
    }
    for (let size = 0; size < sealed.length; size += 1) {
      const reason = size < 32 ? 'record_short' : 'record_tag';
      expect(ends().rx.open(sealed.subarray(0, size), NOW, VALIDITY)).toEqual({
        ok: false,
        reason,
      });
    }
  });

  it('of the other direction is refused even under the same key', () => {
    const sealed = ends(Direction.toInitiator).tx.seal(Buffer.from('m'), NOW);
    expect(ends(Direction.toResponder).rx.open(body(sealed), NOW, VALIDITY)).toEqual({
      ok: false,
      reason: 'otp_hmac',
    });
  });
});

describe('the one-time password', () => {
  const at = (time: number) =>
    ends().rx.open(body(ends().tx.seal(Buffer.from('m'), time)), NOW, VALIDITY);

  it('is good for the validity, in both directions of time, and no longer', () => {
    expect(at(NOW - VALIDITY).ok).toBe(true);
    expect(at(NOW + VALIDITY).ok).toBe(true);
    expect(at(NOW - VALIDITY - 1)).toEqual({ ok: false, reason: 'otp_old' });
    expect(at(NOW + VALIDITY + 1)).toEqual({ ok: false, reason: 'otp_future' });
  });

  it('with another HMAC key is refused though the record is authentic', () => {
    const sealed = reference(Buffer.from('m'), 0, NOW, 1, Buffer.alloc(32, 9));
    expect(ends().rx.open(body(sealed), NOW, VALIDITY)).toEqual({ ok: false, reason: 'otp_hmac' });
  });

  it('fits no other record number', () => {
    const otp = new OneTimePasswords(OTP_KEY, Direction.toResponder);
    const bytes = Buffer.alloc(16);
    otp.write(bytes, 0, NOW, 5);
    expect(otp.check(bytes, 5, NOW, VALIDITY)).toBeUndefined();
    expect(otp.check(bytes, 6, NOW, VALIDITY)).toBe('otp_hmac');
    expect(otp.check(bytes, 5 + 2 ** 32, NOW, VALIDITY)).toBe('otp_hmac');
  });
});
