/** Tests of src/protocol/channel/codec.ts: round trips, limits, and errors without contents. */
import { decode, encode } from '@msgpack/msgpack';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeEnvelope,
  decodeMessage,
  encodeMessage,
} from '../../../../../src/protocol/channel/codec.js';

const MALFORMED = expect.objectContaining({ code: 'CHANNEL_MALFORMED' });

describe('decodeMessage', () => {
  it('gives back what encodeMessage took', () => {
    const { value } = fc.letrec((tie) => ({
      value: fc.oneof(
        { maxDepth: 6 },
        fc.integer(),
        fc.double({ noNaN: true }),
        fc.boolean(),
        fc.constant(null),
        fc.string({ maxLength: 300 }),
        fc.uint8Array({ maxLength: 300 }),
        fc.array(tie('value'), { maxLength: 20 }),
        fc.dictionary(
          fc.string().filter((k) => k !== '__proto__'),
          tie('value'),
          {
            maxKeys: 20,
            noNullPrototype: true,
          },
        ),
      ),
    }));
    fc.assert(
      fc.property(value, (v) => {
        const bytes = encodeMessage(v);
        expect(decodeMessage(bytes)).toEqual(decode(encode(v)));
      }),
      { numRuns: 300 },
    );
  });

  it('throws nothing but CHANNEL_MALFORMED for random bytes, and agrees with the decoder', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          decodeMessage(bytes);
        } catch (thrown) {
          expect(thrown).toMatchObject({ code: 'CHANNEL_MALFORMED' });
        }
      }),
      { numRuns: 3_000 },
    );
  });

  it('refuses a bomb of nested arrays before it takes memory', () => {
    const bomb = Buffer.alloc(1_000_000);
    for (let at = 0; at + 5 <= bomb.length; at += 5) {
      bomb[at] = 0xdd; // array 32 with 65,535 elements
      bomb.writeUInt32BE(65_535, at + 1);
    }
    const before = process.memoryUsage().rss;
    expect(() => decodeMessage(bomb)).toThrow(MALFORMED);
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1_048_576);
    // 31 levels only, a million elements each: 240 MB for 155 bytes.
    const shallow = Buffer.from('dd000f4240'.repeat(31), 'hex');
    expect(() => decodeMessage(Buffer.concat([shallow, Buffer.alloc(10)]))).toThrow(MALFORMED);
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1_048_576);
    expect(() => decodeMessage(Buffer.from('dd7fffffff', 'hex'))).toThrow(MALFORMED);
    expect(() => decodeMessage(Buffer.alloc(40, 0x91))).toThrow(MALFORMED);
    expect(() =>
      decodeMessage(Buffer.concat([Buffer.alloc(33, 0x91), Buffer.from([0xc0])])),
    ).toThrow(MALFORMED);
    decodeMessage(Buffer.concat([Buffer.alloc(32, 0x91), Buffer.from([0xc0])]));
  });

  it('refuses extensions, trailing bytes and __proto__ without a word of the contents', () => {
    for (const bad of ['d6ff00000000', 'c0c0', '', 'c1']) {
      expect(() => decodeMessage(Buffer.from(bad, 'hex'))).toThrow(MALFORMED);
    }
    const evil = Buffer.concat([
      Buffer.from([0x81, 0xa9]),
      Buffer.from('__proto__'),
      Buffer.from([0x80]),
    ]);
    expect(() => decodeMessage(evil)).toThrow(MALFORMED);
    const secret = Buffer.concat([encodeMessage({ key: 'secret' }), Buffer.from([1])]);
    try {
      decodeMessage(secret);
      expect.unreachable();
    } catch (thrown) {
      expect(JSON.stringify(thrown) + String(thrown)).not.toContain('secret');
      expect((thrown as Error).cause).toBeUndefined();
    }
  });
});

describe('decodeEnvelope', () => {
  it('wants a map with a string t and a natural id', () => {
    for (const bad of [
      [],
      'x',
      null,
      {},
      { t: 1 },
      { t: 'a', id: -1 },
      { t: 'a', id: 'x' },
      { t: 'a', id: 1.5 },
    ]) {
      expect(() => decodeEnvelope(encode(bad))).toThrow(MALFORMED);
    }
    expect(decodeEnvelope(encode({ t: 'a', id: 3, x: 1 }))).toEqual({ t: 'a', id: 3, x: 1 });
  });
});

describe('encodeMessage', () => {
  it('leaves out undefined and refuses more than 1 MiB', () => {
    expect(decodeMessage(encodeMessage({ t: 'a', id: undefined }))).toEqual({ t: 'a' });
    expect(() => encodeMessage({ t: 'a', b: Buffer.alloc(1_048_577) })).toThrow(
      expect.objectContaining({ code: 'CHANNEL_LIMIT' }),
    );
  });
});
