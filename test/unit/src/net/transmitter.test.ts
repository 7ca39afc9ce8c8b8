/** Tests of src/net/transmitter.ts: records are stamped when the socket takes them, pushes supersede each other. */
import { Writable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { Transmitter } from '../../../../src/net/transmitter.js';
import { Direction } from '../../../../src/protocol/channel/otp.js';
import { OutputBuffer } from '../../../../src/protocol/channel/output.js';
import { RecordOpener, RecordSealer } from '../../../../src/protocol/channel/record.js';
import { FakeClock } from '../../../../src/runtime/clock.js';

const KEY = Buffer.alloc(32, 1);
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A transmitter into a socket that takes nothing until it is told to. */
function slowPeer() {
  const clock = new FakeClock();
  const writes: Buffer[] = [];
  const waiting: (() => void)[] = [];
  const socket = new Writable({
    highWaterMark: 16_384,
    write: (chunk: Buffer, _encoding, done) => {
      waiting.push(() => {
        writes.push(chunk);
        done();
      });
    },
  });
  const out = new OutputBuffer();
  const tx = new RecordSealer(KEY, KEY, Direction.toInitiator);
  const rx = new RecordOpener(KEY, KEY, Direction.toInitiator);
  const sealer = {
    sendable: true,
    send: (message: Uint8Array) => {
      out.reserve(message.length + 37);
      out.offset += tx.sealInto(out.buffer, out.offset, message, Math.floor(clock.wallMs()));
      return true;
    },
  };
  const transmitter = new Transmitter(socket, out, sealer, clock);
  /** Opens everything that was written, at the present time. */
  const receive = (): (string | number)[] => {
    const got: (string | number)[] = [];
    let stream = Buffer.concat(writes.splice(0));
    while (stream.length > 0) {
      const end = 4 + stream.readUInt32BE(0);
      const opened = rx.open(stream.subarray(5, end), Math.floor(clock.wallMs()), 30_000);
      got.push(opened.ok ? opened.message.readUInt32BE(0) : opened.reason);
      stream = stream.subarray(end);
    }
    return got;
  };
  const take = async (): Promise<void> => {
    waiting.shift()?.();
    await turn();
  };
  return { clock, transmitter, sealer, receive, take, writes, waiting, socket };
}
function message(n: number, size = 65_536): Buffer {
  const bytes = Buffer.alloc(size);
  bytes.writeUInt32BE(n, 0);
  return bytes;
}

describe('Transmitter', () => {
  it('puts the records of one turn into one write', async () => {
    const p = slowPeer();
    for (let n = 0; n < 10; n += 1) p.transmitter.offer(message(n, 100));
    await turn();
    expect(p.waiting.length).toBe(1);
    await p.take();
    expect(p.receive()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  it('does not age the passwords of what a slow reader has not taken', async () => {
    const p = slowPeer();
    for (let n = 0; n < 40; n += 1) p.transmitter.offer(message(n));
    await turn();
    expect(p.transmitter.backlog).toBeGreaterThan(2_000_000);
    const got: (string | number)[] = [];
    for (let i = 0; i < 60; i += 1) {
      // 256 KiB are sealed ahead; each piece of 64 KiB takes 5 s to go.
      p.clock.advance(5_000);
      await p.take();
      got.push(...p.receive());
    }
    expect(got).toEqual(Array.from({ length: 40 }, (_, n) => n));
    expect(p.transmitter.backlog).toBe(0);
  });

  it('drops a waiting push when a later one has its key, and only then', async () => {
    const p = slowPeer();
    for (let n = 0; n < 10; n += 1) p.transmitter.offer(message(n));
    p.transmitter.offer(message(100), { key: 'state' });
    p.transmitter.offer(message(101), { key: 'other' });
    p.transmitter.offer(message(102), { key: 'state' });
    expect(p.transmitter.superseded).toBe(1);
    const got: (string | number)[] = [];
    for (let i = 0; i < 30; i += 1) {
      await p.take();
      got.push(...p.receive());
    }
    expect(got).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 101, 102]);
    p.transmitter.offer(message(103), { key: 'state' });
    expect(p.transmitter.superseded).toBe(1);
  });

  it('waits while the channel can not seal, and keeps the bytes that it was given', async () => {
    const p = slowPeer();
    p.sealer.sendable = false;
    const shared = message(1, 100);
    let sealed = 0;
    expect(
      p.transmitter.offer(shared, {
        onSealed: () => {
          sealed += 1;
        },
      }),
    ).toBe(false);
    shared.fill(0xff);
    await turn();
    expect(sealed).toBe(0);
    p.sealer.sendable = true;
    p.transmitter.pump();
    expect(sealed).toBe(1);
    await turn();
    await p.take();
    expect(p.receive()).toEqual([1]);
  });

  it('says when the peer is beyond hope', () => {
    const p = slowPeer();
    for (let n = 0; n < 20; n += 1) p.transmitter.offer(message(n));
    expect(p.transmitter.stuck).toBe(false);
    p.clock.advance(60_001);
    expect(p.transmitter.stuck).toBe(true);
    const q = slowPeer();
    for (let n = 0; n < 140; n += 1) q.transmitter.offer(message(n));
    expect(q.transmitter.stuck).toBe(true);
  });
});
