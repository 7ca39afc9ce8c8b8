/** Tests of src/protocol/channel/framing.ts: any chunking, bounds before memory, linear work. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  encodeFrame,
  FrameType,
  MAX_FRAME_LENGTH,
  MAX_HANDSHAKE_LENGTH,
  StreamFramer,
} from '../../../../../src/protocol/channel/framing.js';

function collector(accepts: (type: FrameType) => boolean = () => true) {
  const frames: { type: FrameType; body: Buffer }[] = [];
  const framer = new StreamFramer({
    accepts,
    frame: (type, body) => {
      frames.push({ type, body: Buffer.from(body) });
      return true;
    },
  });
  return { frames, framer };
}
function header(length: number, type: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes.writeUInt32BE(length, 0);
  bytes[4] = type;
  return bytes;
}

describe('StreamFramer', () => {
  it('gives the same frames however the stream is cut', () => {
    const frame = fc.record({
      type: fc.constantFrom(...Object.values(FrameType)),
      body: fc.uint8Array({ maxLength: 4_000 }),
    });
    fc.assert(
      fc.property(
        fc.array(frame, { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 900 })),
        (frames, cuts) => {
          const stream = Buffer.concat(frames.map((f) => encodeFrame(f.type, f.body)));
          const { frames: got, framer } = collector();
          let at = 0;
          for (let i = 0; at < stream.length; i += 1) {
            const size = cuts.length === 0 ? stream.length : (cuts[i % cuts.length] ?? 1);
            // A buffer of its own: the framer may not count on old chunks.
            const chunk = Buffer.from(stream.subarray(at, at + size));
            expect(framer.push(chunk)).toBeUndefined();
            chunk.fill(0);
            at += size;
          }
          expect(got).toEqual(frames.map((f) => ({ type: f.type, body: Buffer.from(f.body) })));
          expect(framer.held).toBe(0);
        },
      ),
      { numRuns: 200 },
    );
  });

  it('takes the longest frame and refuses one byte more at its header', () => {
    const longest = collector();
    longest.framer.push(encodeFrame(FrameType.record, Buffer.alloc(MAX_FRAME_LENGTH - 1)));
    expect(longest.frames[0]?.body.length).toBe(MAX_FRAME_LENGTH - 1);
    expect(collector().framer.push(header(MAX_FRAME_LENGTH + 1, 4))).toBe('frame_length');
    expect(collector().framer.push(header(0xffffffff, 4))).toBe('frame_length');
    expect(collector().framer.push(header(0, 4))).toBe('frame_length');
    expect(collector().framer.push(header(MAX_HANDSHAKE_LENGTH, 1))).toBeUndefined();
    expect(collector().framer.push(header(MAX_HANDSHAKE_LENGTH + 1, 1))).toBe('frame_length');
  });

  it('refuses types that are unknown or not welcome, and stays refused', () => {
    for (const type of [0, 5, 255]) {
      expect(collector().framer.push(header(10, type))).toBe('frame_type');
    }
    const { framer, frames } = collector((type) => type !== FrameType.record);
    expect(framer.push(header(1, 4))).toBe('frame_unexpected');
    expect(framer.push(encodeFrame(FrameType.message1, Buffer.alloc(3)))).toBeUndefined();
    expect(frames).toEqual([]);
  });

  it('takes memory for what has come, not for what was announced', () => {
    const { framer } = collector();
    framer.push(header(1_000_000, 4));
    expect(framer.held).toBe(0);
    framer.push(Buffer.alloc(10));
    expect(framer.held).toBeLessThanOrEqual(4_096);
    framer.push(Buffer.alloc(100_000));
    expect(framer.held).toBeLessThanOrEqual(2 * 100_010);
  });

  it('copies a bounded number of times: 1 MiB byte by byte is no problem', () => {
    const { framer, frames } = collector();
    const stream = encodeFrame(FrameType.record, Buffer.alloc(1_048_576, 7));
    for (let i = 0; i < stream.length; i += 1) framer.push(stream.subarray(i, i + 1));
    expect(frames[0]?.body.length).toBe(1_048_576);
  });

  it('stops when the handler says so', () => {
    let count = 0;
    const framer = new StreamFramer({
      accepts: () => true,
      frame: () => {
        count += 1;
        return false;
      },
    });
    const one = encodeFrame(FrameType.record, Buffer.alloc(1));
    framer.push(Buffer.concat([one, one, one]));
    expect(count).toBe(1);
  });
});
