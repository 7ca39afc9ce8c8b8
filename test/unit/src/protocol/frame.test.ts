/** The sealed frame against its vectors, and what must never open (docs/protocol.md section 2). */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  FLAG_FRAGMENT,
  FRAME_OVERHEAD,
  FrameKind,
  SUITES,
} from '../../../../src/protocol/constants.js';
import {
  decodeDescription,
  decodeShim,
  encodeDescription,
  encodeShim,
  frameTime,
  openFrame,
  PLAIN_DESCRIPTION,
  sealFrame,
} from '../../../../src/protocol/frame.js';

const vectorSchema = z.array(
  z.object({
    suite: z.enum(SUITES),
    key: z.string(),
    kind: z.union([z.literal(1), z.literal(2)]),
    flags: z.number(),
    kid: z.number(),
    index: z.number(),
    counter: z.string(),
    aadTail: z.string(),
    time: z.number(),
    desc: z.string(),
    payload: z.string(),
    sealed: z.string(),
  }),
);
const vectors = vectorSchema.parse(
  JSON.parse(readFileSync(new URL('../../../vectors/frame.json', import.meta.url), 'utf8')),
);
const hex = (text: string) => Buffer.from(text, 'hex');

describe('sealed frame vectors', () => {
  it('there are vectors for both suites and for group and pair frames', () => {
    expect(new Set(vectors.map((v) => v.suite)).size).toBe(2);
    expect(new Set(vectors.map((v) => v.kind)).size).toBe(2);
  });

  it.each(vectors.map((v) => [`${v.suite}, ${v.payload.length / 2} bytes`, v] as const))(
    '%s',
    (_, v) => {
      const opened = openFrame({
        suite: v.suite,
        key: hex(v.key),
        frame: hex(v.sealed),
        aadTail: hex(v.aadTail),
      });
      expect(opened?.shim).toEqual({
        kind: v.kind,
        flags: v.flags,
        kid: v.kid,
        index: v.index,
        counter: BigInt(v.counter),
      });
      expect(opened?.time).toBe(v.time);
      expect(Buffer.from(opened?.payload ?? []).toString('hex')).toBe(v.payload);
      expect(encodeDescription(opened?.description ?? PLAIN_DESCRIPTION).toString('hex')).toBe(
        v.desc,
      );
    },
  );
});

const fragmentSchema = z.array(
  z.object({
    suite: z.enum(SUITES),
    key: z.string(),
    counter: z.string(),
    partialChecksum: z.boolean(),
    aadTail: z.string(),
    parts: z.array(z.string()),
    frame: z.string(),
  }),
);

describe('frames in parts', () => {
  const cases = fragmentSchema.parse(
    JSON.parse(readFileSync(new URL('../../../vectors/fragment.json', import.meta.url), 'utf8')),
  );

  it.each(cases.map((v) => [`${v.parts.length} parts, ${v.suite}`, v] as const))('%s', (_, v) => {
    const opened = v.parts.map((part) =>
      openFrame({ suite: v.suite, key: hex(v.key), frame: hex(part), aadTail: hex(v.aadTail) }),
    );
    for (const [number, part] of opened.entries()) {
      expect(part?.shim.flags).toBe(FLAG_FRAGMENT);
      // The counters are consecutive, so (key, counter) of part 0 names the set.
      expect(part?.shim.counter).toBe(BigInt(v.counter) + BigInt(number));
      expect(part?.description).toMatchObject({
        part: number,
        lastPart: number + 1 === v.parts.length,
        partialChecksum: v.partialChecksum,
      });
    }
    const payload = Buffer.concat(opened.map((part) => part?.payload ?? Buffer.alloc(0)));
    expect(Buffer.concat([hex(v.aadTail), payload]).toString('hex')).toBe(v.frame);
  });

  it('a fourth part is not opened', () => {
    const key = Buffer.alloc(32, 7);
    const shim = {
      kind: FrameKind.pair,
      flags: FLAG_FRAGMENT,
      kid: 1,
      index: 1,
      counter: 3n,
    } as const;
    const description = { ...PLAIN_DESCRIPTION, part: 3, lastPart: true };
    const frame = sealFrame({
      suite: 'aes-256-gcm',
      key,
      shim,
      time: 1,
      description,
      payload: Buffer.alloc(9),
    });
    expect(openFrame({ suite: 'aes-256-gcm', key, frame })).toBeUndefined();
  });
});

describe('what does not open', () => {
  const key = Buffer.alloc(32, 7);
  const shim = { kind: FrameKind.pair, flags: 0, kid: 0x1234, index: 99, counter: 5n } as const;
  const frame = sealFrame({
    suite: 'aes-256-gcm',
    key,
    shim,
    time: 1,
    payload: Buffer.from('inner frame'),
  });

  it('is 40 bytes longer than its payload', () => {
    expect(frame.length).toBe('inner frame'.length + FRAME_OVERHEAD);
  });

  it('no frame opens with any single bit changed', () => {
    for (let bit = 0; bit < frame.length * 8; bit++) {
      const changed = Buffer.from(frame);
      changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      expect(openFrame({ suite: 'aes-256-gcm', key, frame: changed })).toBeUndefined();
    }
  });

  it('no truncated frame, no longer frame', () => {
    for (let length = 0; length < frame.length; length++) {
      expect(
        openFrame({ suite: 'aes-256-gcm', key, frame: frame.subarray(0, length) }),
      ).toBeUndefined();
    }
    expect(
      openFrame({ suite: 'aes-256-gcm', key, frame: Buffer.concat([frame, Buffer.alloc(1)]) }),
    ).toBeUndefined();
  });

  it('not as another transport, whose associated data is longer', () => {
    expect(
      openFrame({ suite: 'aes-256-gcm', key, frame, aadTail: Buffer.alloc(12) }),
    ).toBeUndefined();
  });

  it('padding longer than the frame', () => {
    const padded = sealFrame({
      suite: 'aes-256-gcm',
      key,
      shim,
      time: 1,
      payload: Buffer.alloc(0),
      description: { ...PLAIN_DESCRIPTION, padding: 4 },
    });
    expect(openFrame({ suite: 'aes-256-gcm', key, frame: padded })?.payload.length).toBe(0);
    const liar = Buffer.from(padded);
    expect(openFrame({ suite: 'aes-256-gcm', key, frame: liar.subarray(0, -1) })).toBeUndefined();
  });

  it('random bytes never throw', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(openFrame({ suite: 'chacha20-poly1305', key, frame: bytes })).toBeUndefined();
      }),
    );
  });
});

describe('shim and description', () => {
  it('come back as they went', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.values(FrameKind)),
        fc.integer({ min: 0, max: 255 }),
        fc.integer({ min: 0, max: 0xffff }),
        fc.integer({ min: 0, max: 0xffff_ffff }),
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        (kind, flags, kid, index, counter) => {
          const shim = { kind, flags, kid, index, counter };
          expect(decodeShim(Buffer.concat([encodeShim(shim), Buffer.alloc(24)]))).toEqual(shim);
        },
      ),
    );
  });

  it('another version or kind is no frame', () => {
    const bytes = Buffer.alloc(FRAME_OVERHEAD);
    for (let first = 0; first < 256; first++) {
      bytes.writeUInt8(first, 0);
      const known = first >> 4 === 1 && (first & 15) >= 1 && (first & 15) <= 5;
      expect(decodeShim(bytes) !== undefined).toBe(known);
    }
  });

  it('a reserved bit of the description is refused', () => {
    for (const bit of [0x10, 0x20, 0x40, 0x80]) {
      expect(decodeDescription(Buffer.from([bit, 0, 0, 0]))).toBeUndefined();
    }
  });
});

describe('frame time', () => {
  it('counts 256 a second and wraps at 2^32', () => {
    expect(frameTime(1000)).toBe(256);
    expect(frameTime(500)).toBe(128);
    const wrapMs = (2 ** 32 / 256) * 1000;
    expect(frameTime(wrapMs)).toBe(0);
    expect(frameTime(wrapMs + 1000)).toBe(256);
  });
});
