/** What a plain port has seen reaches the key server: soon, all of it, and again after whatever was lost. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { type Report, Reporter } from '../../../../gateway/plain/reporter.js';
import { RequestError } from '../../../../src/net/channel.js';
import { type MacAddress, macFromBytes } from '../../../../src/protocol/mac.js';
import { MAX_REPORTED } from '../../../../src/protocol/messages.js';
import { until } from '../support/until.js';

function nth(at: number): MacAddress {
  const bytes = Buffer.from([0x0a, 0, 0, 0, 0, 0]);
  bytes.writeUInt32BE(at, 2);
  return macFromBytes(bytes);
}
const seen = (at: number, ageMs = 0) => ({ vlan: 0, mac: nth(at), ageMs });
const all = (from: number, to: number) =>
  Array.from({ length: to - from }, (_unused, at) => seen(from + at));

class Server {
  readonly reports: Report[] = [];
  /** Thrown for the next reports. */
  readonly failures: unknown[] = [];
  /** What it knows now. */
  readonly known = new Map<string, { seq: number; ago: number }>();
  readonly reporter: Reporter;
  now = 5_000;
  failed = 0;

  constructor() {
    this.reporter = new Reporter({
      now: () => this.now,
      serverNow: () => 1_000_000,
      send: async (report) => {
        await sleep(1);
        const failure = this.failures.shift();
        if (failure !== undefined) throw failure;
        this.reports.push(report);
        for (const { mac, vlan, seq, ago } of report.entries) {
          this.known.set(`${vlan} ${macFromBytes(mac)}`, { seq, ago });
        }
        for (const { mac, vlan } of report.gone) this.known.delete(`${vlan} ${macFromBytes(mac)}`);
        return { refused: 0 };
      },
      onFailed: () => {
        this.failed += 1;
      },
    });
  }
}

describe('reports of a plain port', () => {
  let server = new Server();
  const knows = (count: number) => until('all is told', async () => server.known.size === count);
  afterEach(() => {
    server.reporter.stop();
    server = new Server();
  });

  it('wait for the registration, go in batches, and say how long ago', async () => {
    server.reporter.learned([seen(0, 2_000), ...all(1, 1_000)]);
    await sleep(10);
    expect(server.reports).toEqual([]);
    server.now += 500;
    server.reporter.registered();
    await knows(1_000);
    expect(server.reports.length).toBe(4);
    for (const { entries } of server.reports) {
      expect(entries.length).toBeLessThanOrEqual(MAX_REPORTED);
    }
    expect(server.known.get(`0 ${nth(0)}`)?.ago).toBe(2_500);
    const numbers = server.reports.flatMap(({ entries }) => entries.map(({ seq }) => seq));
    expect(numbers).toEqual([...numbers].sort((a, b) => a - b));
    expect(new Set(numbers).size).toBe(1_000);
    expect(Math.min(...numbers)).toBeGreaterThanOrEqual(1_000_000);
  });

  it('tell what is new before what is only seen again', async () => {
    server.reporter.registered();
    server.reporter.learned(all(0, 1_000));
    await knows(1_000);
    const before = server.reports.length;
    server.reporter.learned(all(0, 1_000));
    server.reporter.learned([seen(5_000)]);
    await until('two more', async () => server.reports.length >= before + 2);
    const next = server.reports.slice(before, before + 2).flatMap(({ entries }) => entries);
    expect(next.map(({ mac }) => macFromBytes(mac))).toContain(nth(5_000));
  });

  it('come again after a failure, a limit and a new registration; what is gone stays gone', async () => {
    server.failures.push(new Error('no answer'), new RequestError('limit'));
    server.reporter.registered();
    server.reporter.learned(all(0, 10));
    await knows(10);
    expect(server.failed).toBe(1);
    // A key server that was put back knows nothing of it.
    server.known.clear();
    server.reporter.disconnected();
    server.reporter.unlearned([seen(3)]);
    server.reporter.learned([seen(11)]);
    server.reporter.registered();
    await knows(10);
    expect(server.known.has(`0 ${nth(3)}`)).toBe(false);
    expect(server.known.has(`0 ${nth(11)}`)).toBe(true);
  });

  it('tell what is gone, and that it is back', async () => {
    server.reporter.registered();
    server.reporter.learned(all(0, 3));
    await knows(3);
    server.reporter.unlearned([seen(1)]);
    await knows(2);
    server.reporter.unlearned([seen(2)]);
    server.reporter.learned([seen(2)]);
    await sleep(20);
    expect(server.known.has(`0 ${nth(2)}`)).toBe(true);
  });

  it('tell of a member’s own address that came from outside, once for many frames', async () => {
    for (let at = 0; at < 100; at += 1) server.reporter.spoofed(0, nth(7));
    server.reporter.registered();
    await knows(1);
    expect(server.reports.flatMap(({ entries }) => entries)).toHaveLength(1);
    expect(server.reporter.status).toMatchObject({ spoofed: 100, seen: 0 });
  });

  it('keep to 8,192 addresses, whatever a data plane says', async () => {
    server.reporter.learned(all(0, 9_000));
    expect(server.reporter.status).toMatchObject({ seen: 8_192, overflow: 808 });
    server.reporter.registered();
    await knows(8_192);
  });
});
