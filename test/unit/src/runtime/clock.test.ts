/** Tests of src/runtime/clock.ts: boot time over a suspend, key-server time from samples. */
import { describe, expect, it } from 'vitest';
import { FakeClock, ServerClock, ServerTime, SystemClock } from '../../../../src/runtime/clock.js';

describe('SystemClock', () => {
  it('follows /proc/uptime on this machine within its resolution', async () => {
    const { readFileSync } = await import('node:fs');
    const uptime = Number.parseFloat(readFileSync('/proc/uptime', 'latin1')) * 1_000;
    expect(Math.abs(new SystemClock().bootMs() - uptime)).toBeLessThan(100);
  });

  it('never goes back and has a resolution far below 10 ms', () => {
    const clock = new SystemClock();
    const seen = new Set<number>();
    let last = 0;
    for (let i = 0; i < 1_000; i += 1) {
      const now = clock.bootMs();
      expect(now).toBeGreaterThanOrEqual(last);
      last = now;
      seen.add(now);
    }
    expect(seen.size).toBeGreaterThan(100);
  });

  it('counts the time of a suspend at once, and ignores a wall clock that is set', () => {
    const at = { monotonic: 5_000, uptime: 5_000, wall: 1_000_000 };
    const clock = new SystemClock({
      monotonicMs: () => at.monotonic,
      uptimeMs: () => Math.floor(at.uptime / 10) * 10,
      wallMs: () => at.wall,
    });
    expect(clock.bootMs()).toBe(5_000);
    at.monotonic += 3;
    at.uptime += 3;
    at.wall += 3;
    expect(clock.bootMs()).toBe(5_003);
    // One hour asleep: the monotonic clock stood still.
    at.uptime += 3_600_000;
    at.wall += 3_600_000;
    expect(Math.abs(clock.bootMs() - 3_605_003)).toBeLessThanOrEqual(15);
    const before = clock.bootMs();
    at.wall -= 86_400_000;
    expect(clock.bootMs()).toBe(before);
  });

  it('works without /proc', () => {
    const clock = new SystemClock({
      monotonicMs: () => 42,
      uptimeMs: () => undefined,
      wallMs: () => 7,
    });
    expect(clock.bootMs()).toBe(42);
  });
});

describe('ServerClock', () => {
  it('asks the wall clock once', () => {
    const clock = new FakeClock({ wallMs: 1_000_000 });
    const time = new ServerClock(clock);
    clock.advance(5_000);
    clock.setWall(0);
    expect(time.now()).toBe(1_005_000);
  });
});

describe('ServerTime', () => {
  /** A server whose clock reads `wall`, asked over a path with these delays. */
  function ask(clock: FakeClock, time: ServerTime, offset: number, there: number, back: number) {
    const sentAt = clock.bootMs();
    clock.advance(there);
    const serverMs = clock.bootMs() + offset;
    clock.advance(back);
    return time.sample(serverMs, sentAt);
  }
  const OFFSET = 1_700_000_000_000;

  it('corrects by half the round trip', () => {
    const clock = new FakeClock();
    const time = new ServerTime(clock);
    expect(ask(clock, time, OFFSET, 40, 40)).toBe(true);
    expect(time.now()).toBe(clock.bootMs() + OFFSET);
  });

  it('prefers the sample with the smallest round trip among the last 8', () => {
    const clock = new FakeClock();
    const time = new ServerTime(clock);
    ask(clock, time, OFFSET, 1, 1);
    for (let i = 0; i < 7; i += 1) ask(clock, time, OFFSET, 0, 400);
    clock.advance(60_000);
    expect(time.now()).toBe(clock.bootMs() + OFFSET);
    expect(time.roundTrip()).toBe(2);
    // The ninth pushes the good one out; what is left is wrong by half of 400 ms.
    ask(clock, time, OFFSET, 0, 400);
    clock.advance(60_000);
    expect(time.now()).toBe(clock.bootMs() + OFFSET - 200);
  });

  it('refuses a sample over 1 s, but takes any time rather than none', () => {
    const clock = new FakeClock();
    const time = new ServerTime(clock);
    expect(ask(clock, time, OFFSET, 0, 1_400)).toBe(false);
    expect(time.known).toBe(true);
    expect(time.age()).toBe(Number.POSITIVE_INFINITY);
    expect(time.now()).toBe(clock.bootMs() + OFFSET - 700);
    expect(ask(clock, time, OFFSET, 5, 5)).toBe(true);
    expect(time.now()).toBe(clock.bootMs() + OFFSET);
    expect(ask(clock, time, OFFSET + 900, 0, 1_001)).toBe(false);
    clock.advance(60_000);
    expect(time.now()).toBe(clock.bootMs() + OFFSET);
    expect(time.age()).toBe(61_001);
  });

  it('slews what is below 1 s and never goes back', () => {
    const clock = new FakeClock();
    const alarms: number[] = [];
    const time = new ServerTime(clock, (difference) => alarms.push(difference));
    ask(clock, time, OFFSET, 5, 5);
    let last = time.now();
    ask(clock, time, OFFSET - 800, 1, 1);
    expect(time.now()).toBeGreaterThanOrEqual(last + 1);
    last = time.now();
    for (let i = 0; i < 170; i += 1) {
      clock.advance(100);
      const now = time.now();
      expect(now - last).toBeGreaterThan(0);
      expect(Math.abs(now - last - 100)).toBeLessThanOrEqual(6);
      last = now;
    }
    expect(time.now()).toBe(clock.bootMs() + OFFSET - 800);
    expect(alarms).toEqual([]);
  });

  it('steps above 1 s after the alarm', () => {
    const clock = new FakeClock();
    const alarms: number[] = [];
    const time = new ServerTime(clock, (difference) => alarms.push(difference));
    ask(clock, time, OFFSET, 5, 5);
    ask(clock, time, OFFSET + 5_000, 50, 50);
    expect(alarms).toEqual([5_000]);
    expect(time.now()).toBe(clock.bootMs() + OFFSET + 5_000);
  });

  it('refuses nonsense', () => {
    const clock = new FakeClock();
    const time = new ServerTime(clock);
    expect(time.sample(Number.NaN, clock.bootMs())).toBe(false);
    expect(time.sample(1, clock.bootMs() + 1)).toBe(false);
    expect(time.known).toBe(false);
  });
});
