/** Tests of src/protocol/channel/reliable.ts: what a peer that is authentic and hostile can make each half keep. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  RECEIVE_WINDOW,
  ReassemblyBudget,
  ReliableReceiver,
  ReliableSender,
} from '../../../../../src/protocol/channel/reliable.js';

describe('a sender', () => {
  it('refuses a window that no receiver grants, and sends nothing beyond the one it has', () => {
    const sender = new ReliableSender();
    sender.append(Buffer.alloc(2 * RECEIVE_WINDOW));
    expect(sender.acknowledge(0, [], RECEIVE_WINDOW + 1, 0)).toBe(false);
    let sent = 0;
    for (let now = 1; now < 2_000; now += 1) {
      const segment = sender.take(1_000, now);
      if (segment === undefined) continue;
      sent = Math.max(sent, segment.offset + segment.bytes.length);
      // All but the first thousand bytes arrive, so everything behind them stays in our memory.
      if (sent > 1_000) sender.acknowledge(0, [{ start: 1_000, end: sent }], RECEIVE_WINDOW, now);
    }
    expect(sent).toBe(RECEIVE_WINDOW - (RECEIVE_WINDOW % 1_000));
    expect(sender.acknowledge(sent, [], sent + RECEIVE_WINDOW, 3_000)).toBe(true);
  });
});

describe('a receiver', () => {
  /** Pieces of a stream of 400 bytes that overlap as they like. */
  const pieces = fc.array(fc.tuple(fc.nat(399), fc.integer({ min: 1, max: 80 })), {
    maxLength: 60,
  });
  const stream = Buffer.from(Array.from({ length: 400 }, (_, at) => at & 0xff));

  it('delivers each byte once and in order, and owes its budget nothing afterwards', () => {
    fc.assert(
      fc.property(pieces, (cuts) => {
        const budget = new ReassemblyBudget(10_000);
        const got: Buffer[] = [];
        const receiver = new ReliableReceiver(budget, (bytes) => got.push(Buffer.from(bytes)));
        for (const [start, size] of cuts) {
          receiver.take(start, stream.subarray(start, start + size));
          expect(budget.used).toBeGreaterThanOrEqual(0);
        }
        receiver.take(0, stream);
        expect(Buffer.concat(got)).toEqual(stream);
        expect(budget.used).toBe(0);
      }),
    );
  });

  it('may be closed by what it delivers, and gives back what it kept once', () => {
    const budget = new ReassemblyBudget(10_000);
    const receiver = new ReliableReceiver(budget, (bytes) => {
      if (bytes[0] === 10) receiver.close();
    });
    receiver.take(10, stream.subarray(10, 20));
    receiver.take(20, stream.subarray(20, 30));
    expect(budget.used).toBe(20);
    receiver.take(0, stream.subarray(0, 10));
    expect(budget.used).toBe(0);
  });
});
