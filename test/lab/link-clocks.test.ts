/**
 * Linked subnets whose key servers have other clocks: traffic goes on, and there is an alarm. In a row of three the ends
 * know nothing of each other's clocks. The hosts share one kernel; a key server's own clock is shifted as its process starts.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import { readTopology } from '../../scripts/laboratory/topology.js';
import { growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { waitForLinks } from './helpers/links.js';
import { useLab } from './helpers/use-lab.js';

/** b is ahead of a, c behind: each pair of neighbours is further apart than a frame may be late (30 s). */
const AHEAD_MS = { a: 0, b: 60_000, c: -45_000 } as const;
const ADDRESS = { alice: '198.51.100.11', bob: '198.51.100.75', carol: '198.51.100.139' } as const;
const LINKS = { 'gw-a/link': 1, 'gw-b/link-a': 1, 'gw-b/link-c': 1, 'gw-c/link': 1 } as const;
const PATIENCE_MS = 90_000;
/** Ten gateways and three key servers. */
const UP_MS = 300_000;
const netsSchema = z.array(z.object({ net: z.string(), skewMs: z.number().nullable() }));

const dir = mkdtempSync(join(tmpdir(), 'pairwire-clocks-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** Environment of a process whose time of day is another one. */
function shifted(ms: number): Record<string, string> {
  const file = join(dir, `clock${ms}.mjs`);
  writeFileSync(file, `const now = Date.now;\nDate.now = () => now() + ${ms};\n`);
  return { NODE_OPTIONS: `--import=${pathToFileURL(file).href}` };
}

const row = readTopology(new URL('../../config/lab/row.yaml', import.meta.url).pathname);
const topology = {
  ...row,
  keyServers: Object.fromEntries(
    Object.entries(row.keyServers).map(([subnet, server]) => [
      subnet,
      { ...server, env: shifted(AHEAD_MS[subnet as keyof typeof AHEAD_MS]) },
    ]),
  ),
};

describe('linked subnets whose key servers have other clocks', () => {
  // Who is told another time while it runs takes itself for resumed from a snapshot, and starts its data plane anew.
  const handle = useLab(topology, { restarts: true, upMs: UP_MS });
  beforeAll(() => waitForLinks(handle.lab, LINKS), 180_000);

  const reaches = (from: keyof typeof ADDRESS, to: keyof typeof ADDRESS) =>
    waitFor(async () => (await ping(handle.lab, from, ADDRESS[to])).received === 1, {
      ...{ what: `${from} to reach ${to}`, timeoutMs: PATIENCE_MS },
    });

  test('their clocks are as far apart as this test says', async () => {
    const { lab } = handle;
    const skew = async (at: 'b' | 'c', of: 'a' | 'b') => {
      const argv = ['peer', 'list', '--json', '--dir', lab.serverDir(at)];
      const { stdout } = await lab.pairwire(`server-${at}`, argv);
      const rows = netsSchema.parse(JSON.parse(stdout));
      return Math.round((rows.find(({ net }) => net === of)?.skewMs ?? 0) / 1_000);
    };
    expect(await skew('b', 'a')).toBe((AHEAD_MS.a - AHEAD_MS.b) / 1_000);
    expect(await skew('c', 'b')).toBe((AHEAD_MS.b - AHEAD_MS.c) / 1_000);
  }, 60_000);

  test.each([
    ['alice', 'bob'],
    ['bob', 'carol'],
    ['alice', 'carol'],
    ['carol', 'alice'],
  ] as const)(
    '%s and %s go on, and no frame is late',
    async (from, to) => {
      const { lab } = handle;
      await reaches(from, to);
      const names = Object.keys(LINKS);
      const drops = () => Promise.all(names.map(async (name) => (await lab.port(name)).drops));
      const before = await drops();
      const { received } = await ping(lab, from, ADDRESS[to], { count: 20, intervalMs: 20 });
      expect(received).toBe(20);
      const after = await drops();
      const late = names.map(
        (_name, at) => growth(before[at] ?? {}, after[at] ?? {}).not_fresh ?? 0,
      );
      expect(late).toEqual(names.map(() => 0));
    },
    120_000,
  );

  test('link ports wait with their clock until they know which one, so none has had to start anew', async () => {
    const { lab } = handle;
    const restarts = Object.keys(LINKS).map(
      async (name) => (await lab.status(name)).dataPlane.restarts,
    );
    expect(await Promise.all(restarts)).toEqual([0, 0, 0, 0]);
  });

  test('the key servers that ask say in their logs that the clocks differ', () => {
    const { lab } = handle;
    const logs = lab.logTails(Number.POSITIVE_INFINITY);
    const alarms = [
      ...logs.matchAll(/"skewMs":(-?\d+)[^\n]*the clocks of two key servers differ/g),
    ];
    const rounded = alarms.map(([, ms]) => Math.round(Number(ms) / 1_000)).sort((a, b) => a - b);
    expect([...new Set(rounded)]).toEqual([-60, 105]);
  });

  test('a link gateway that starts anew while all key servers but its own are away goes on by the same time', async () => {
    const { lab } = handle;
    for (const subnet of ['a', 'c']) await lab.stopKeyServer(subnet);
    await lab.stopKeyServer('b');
    await lab.startKeyServer('b');
    await lab.downGateway('gw-c/link');
    for (const subnet of ['a', 'c']) await lab.startKeyServer(subnet);
    await lab.startGateway('gw-c/link');
    await reaches('carol', 'alice');
  }, 180_000);

  test('when a clock is put right, traffic goes on', async () => {
    const { lab } = handle;
    const shape = { from: 'alice', to: 'bob', address: ADDRESS.bob, port: 9_021 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 100, size: 100 });
    await lab.stopKeyServer('b');
    const server = lab.keyServer('b');
    Object.assign(server.env, { NODE_OPTIONS: '' });
    await lab.startKeyServer('b');
    await waitFor(
      async () => {
        const argv = ['peer', 'list', '--json', '--dir', lab.serverDir('b')];
        const { stdout } = await lab.pairwire('server-b', argv);
        const rows = netsSchema.parse(JSON.parse(stdout));
        const skew = rows.find(({ net }) => net === 'a')?.skewMs;
        return typeof skew === 'number' && Math.abs(skew) < 2_000;
      },
      { what: 'the clock that is right', timeoutMs: PATIENCE_MS, everyMs: 1_000 },
    );
    await reaches('alice', 'bob');
    await reaches('alice', 'carol');
    await stream.more(200, PATIENCE_MS);
    const { repeated } = await stream.stop();
    expect(repeated).toBe(0);
  }, 240_000);
});
