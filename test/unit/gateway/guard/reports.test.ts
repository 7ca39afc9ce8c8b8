/** What a data plane says of addresses and refusals, as the key server is told: in few messages, and nothing that is not so. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Claims } from '../../../../gateway/guard/claims.js';
import { type GuardedEvent, GuardedReports } from '../../../../gateway/guard/guarded.js';
import { RequestError } from '../../../../src/net/channel.js';
import { type MacAddress, macToBytes } from '../../../../src/protocol/mac.js';
import {
  bindingSchema,
  type Guarded,
  guardedSchema,
  type IpBinding,
} from '../../../../src/protocol/messages.js';

const MAC = '02:00:00:00:00:01' as MacAddress;
const OTHER = '02:00:00:00:00:02' as MacAddress;
const v4 = (...bytes: number[]) => Uint8Array.from(bytes);

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

describe('own IP addresses', () => {
  function bench(answer: (entries: readonly IpBinding[]) => Promise<{ refused: string[] }>) {
    const sent: (readonly IpBinding[])[] = [];
    const complaints: (readonly string[])[] = [];
    const claims = new Claims({
      now: () => performance.now(),
      macs: [MAC],
      send: (entries) => {
        for (const entry of entries) bindingSchema.parse(entry);
        sent.push(entries);
        return answer(entries);
      },
      onRefused: (ips) => complaints.push(ips),
    });
    return { claims, sent, complaints };
  }

  it('that come at once are told in one message, each once, as soon as there is a channel', async () => {
    const { claims, sent } = bench(async () => ({ refused: [] }));
    for (let at = 1; at < 100; at += 1) claims.claim(v4(10, 0, 0, at), MAC);
    claims.claim(v4(10, 0, 0, 1), MAC);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(sent).toEqual([]);
    claims.registered();
    await vi.advanceTimersByTimeAsync(25);
    expect(sent.map((one) => one.length)).toEqual([64]);
    await vi.advanceTimersByTimeAsync(100);
    expect(sent.map((one) => one.length)).toEqual([64, 35]);
    expect(claims.status).toEqual({ claims: 99, refused: 0, overflow: 0 });
  });

  it('are only those that can be one’s own, whatever the data plane says', async () => {
    const { claims, sent } = bench(async () => ({ refused: [] }));
    claims.registered();
    for (const ip of [v4(127, 0, 0, 1), v4(0, 0, 0, 0), v4(224, 0, 0, 1), v4(1, 2, 3), v4()]) {
      claims.claim(ip, MAC);
    }
    claims.claim(v4(10, 0, 0, 1), OTHER);
    for (let at = 0; at < 1_000; at += 1) claims.claim(v4(10, 1, at >> 8, at & 255), MAC);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(sent.flat().every(({ mac, ip }) => mac === MAC && ip.startsWith('10.1.'))).toBe(true);
    expect(sent.flat()).toHaveLength(256);
    expect(claims.status.overflow).toBe(5 + 744);
  });

  it('that are refused are told of once a minute, those that failed are told again', async () => {
    let fails: Error | undefined = new Error('no channel');
    const { claims, sent, complaints } = bench(async (entries) => {
      if (fails !== undefined) throw fails;
      return { refused: entries.map(({ ip }) => ip) };
    });
    claims.registered();
    claims.claim(v4(10, 0, 0, 1), MAC);
    await vi.advanceTimersByTimeAsync(30);
    fails = new RequestError('limit');
    await vi.advanceTimersByTimeAsync(1_000);
    expect(sent).toHaveLength(2);
    fails = undefined;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(sent).toHaveLength(3);
    expect(complaints).toEqual([['10.0.0.1']]);
    for (let at = 2; at < 40; at += 1) {
      claims.claim(v4(10, 0, 0, at), MAC);
      await vi.advanceTimersByTimeAsync(1_000);
    }
    expect(complaints).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(60_000);
    claims.claim(v4(10, 0, 0, 99), MAC);
    await vi.advanceTimersByTimeAsync(100);
    expect(complaints).toHaveLength(2);
    expect(complaints[1]?.length).toBe(8);
    // Refused as a whole: not again and again.
    fails = new RequestError('refused');
    claims.claim(v4(10, 0, 0, 1), MAC);
    const before = sent.length;
    await vi.advanceTimersByTimeAsync(5_000);
    expect(sent.length).toBe(before + 1);
  });
});

describe('what the guard refused', () => {
  function bench() {
    const sent: (readonly Guarded[])[] = [];
    const told: Guarded[] = [];
    const state = { fails: false };
    const reports = new GuardedReports({
      now: () => performance.now(),
      send: async (entries) => {
        for (const entry of entries) guardedSchema.parse(entry);
        if (state.fails) throw new Error('no channel');
        sent.push(entries);
      },
      onGuarded: (first) => told.push(first),
    });
    const event = (more: Partial<GuardedEvent>): GuardedEvent => ({
      t: 'guarded',
      port: 1,
      kind: 'arp',
      peer: 'mallory',
      mac: macToBytes(MAC),
      ip: v4(10, 0, 0, 1),
      ...more,
    });
    return { reports, sent, told, state, event };
  }

  it('is told once a second, by kind and source, with counts', async () => {
    const { reports, sent, told, event } = bench();
    reports.registered();
    for (let at = 0; at < 10; at += 1) reports.take(event({ ip: v4(10, 0, 0, at) }));
    reports.take(event({ kind: 'ra', ip: v4() }));
    reports.take(event({ kind: 'dhcp', peer: '', ip: v4() }));
    await vi.advanceTimersByTimeAsync(1_100);
    expect(sent).toEqual([
      [
        { kind: 'arp', peer: 'mallory', mac: MAC, ip: '10.0.0.9', count: 10 },
        { kind: 'ra', peer: 'mallory', mac: MAC, count: 1 },
        { kind: 'dhcp', mac: MAC, count: 1 },
      ],
    ]);
    expect(reports.told).toBe(12);
    expect(told.map(({ kind }) => kind)).toEqual(['arp', 'ra', 'dhcp']);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(sent).toHaveLength(1);
  });

  it('survives a failure with its count, and what a hostile data plane makes up is left out', async () => {
    const { reports, sent, state, event } = bench();
    reports.registered();
    state.fails = true;
    reports.take(event({}));
    await vi.advanceTimersByTimeAsync(1_100);
    state.fails = false;
    reports.take(event({}));
    for (const wrong of [
      event({ kind: 'what' }),
      event({ peer: 'No Id' }),
      event({ mac: v4(1, 2, 3) }),
      event({ ip: v4(1, 2, 3) }),
    ]) {
      reports.take(wrong);
    }
    await vi.advanceTimersByTimeAsync(2_000);
    expect(sent).toEqual([[{ kind: 'arp', peer: 'mallory', mac: MAC, ip: '10.0.0.1', count: 2 }]]);
    for (let at = 0; at < 500; at += 1) reports.take(event({ peer: `m${at}` }));
    await vi.advanceTimersByTimeAsync(1_100);
    expect(sent[1]).toHaveLength(64);
  });
});
