/**
 * Two linked subnets whose way to each other is bad: a router with connection tracking and a small MTU, and a line that
 * loses, doubles and reorders what is on it.
 *
 *   alice   gw-east                                                 gw-west   bob
 *     └──────┴─ east ── router-east ── [line] ── router-west ── west ─┴───────┘
 *        server-east ──┘  tracks connections                 └── server-west
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { signal, waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';
import { waitForLinks } from './helpers/links.js';
import { randomFile, sendFile, waitForLine } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';

const MIXER = fileURLToPath(new URL('./helpers/programs/mixer.py', import.meta.url));
const EAST = '198.51.100.0/24';
const WEST = '203.0.113.0/24';
const ADDRESS = { alice: '198.51.100.11', bob: '203.0.113.11' } as const;
/** Of the line; what the link gateways have by themselves is 1,500. */
const MTU = 1_400;
const PER_MILLE = 50;
const FILE_BYTES = 1 << 20;
const PATIENCE_MS = 60_000;

const at = (segment: string, number: number, router: number) => ({
  // The line carries frames of a wire only.
  interfaces: [
    { segment, name: 'eth0', addresses: [`192.0.2.${number}/26`], offload: 'wire' as const },
  ],
  routes: [{ to: 'default' as const, via: `192.0.2.${router}` }],
});
const router = (side: string, inside: string, core: number, other: number) => ({
  kind: 'router' as const,
  interfaces: [
    { segment: side, name: 'inside', addresses: [inside], offload: 'wire' as const },
    {
      ...{ segment: `core-${side}`, name: 'core', addresses: [`192.0.2.${core}/28`] },
      ...{ mtu: MTU, offload: 'wire' as const },
    },
  ],
  routes: [{ to: 'default' as const, via: `192.0.2.${other}` }],
});
const gateways = (side: 'east' | 'west', ours: string, other: string, theirs: string) => {
  const net = ours.replace('.0/24', '');
  const host = `gw-${side}`;
  return [
    { host, subnet: side, addresses: [`${net}.1/24`], join: ['--forward', 'link0'] },
    {
      ...{ host, subnet: side, as: 'link', id: 'link', interface: 'link0', port: 7_010 },
      token: ['--role', 'link'],
      join: ['--prefix', ours, '--net', `${other}=${theirs}`, '--inside', 'pw0'],
    },
    {
      ...{ host: side === 'east' ? 'alice' : 'bob', subnet: side, addresses: [`${net}.11/24`] },
      routes: [{ to: theirs, via: `${net}.1` }],
    },
  ];
};

const topology: TopologyInput = {
  segments: { east: {}, west: {}, 'core-east': { mtu: MTU }, 'core-west': { mtu: MTU } },
  hosts: {
    alice: at('east', 11, 62),
    'gw-east': { ...at('east', 2, 62), kind: 'router' },
    'server-east': at('east', 1, 62),
    'router-east': router('east', '192.0.2.62/26', 129, 130),
    line: {
      interfaces: ['east', 'west'].map((side) => ({
        ...{ segment: `core-${side}`, name: side, offload: 'wire' as const },
      })),
    },
    'router-west': router('west', '192.0.2.126/26', 130, 129),
    bob: at('west', 75, 126),
    'gw-west': { ...at('west', 66, 126), kind: 'router' },
    'server-west': at('west', 65, 126),
  },
  keyServers: {
    east: { host: 'server-east', listen: '192.0.2.1:7100', init: ['--prefix', EAST] },
    west: { host: 'server-west', listen: '192.0.2.65:7100', init: ['--prefix', WEST] },
  },
  peerings: [{ maker: 'east', asker: 'west', prefixes: { east: [EAST], west: [WEST] } }],
  gateways: [...gateways('east', EAST, 'west', WEST), ...gateways('west', WEST, 'east', EAST)],
};

/** Lets pass what belongs to a flow that it knows, and what begins one as it should. */
const TRACKING =
  'add table inet track; add chain inet track forward { type filter hook forward priority 0; policy drop; };' +
  'add rule inet track forward ct state invalid counter drop;' +
  'add rule inet track forward ct state { new, established, related } accept';

describe('a link over a bad way', () => {
  const handle = useLab(topology, { startPrograms: false });
  let line: Awaited<ReturnType<typeof startLine>>;

  /** A line that loses, repeats and delays so many frames of 1,000. */
  async function startLine(perMille: number) {
    const shares = Array.from({ length: 3 }, () => String(perMille));
    const started = handle.lab.spawn('line', ['python3', MIXER, 'east', 'west', ...shares]);
    await waitForLine(started.log, 'ready');
    return started;
  }

  beforeAll(async () => {
    const { lab } = handle;
    line = await startLine(0);
    for (const side of ['east', 'west']) await lab.exec(`router-${side}`, ['nft', TRACKING]);
    await lab.startPrograms();
    await waitForLinks(lab, { 'gw-east/link': 1, 'gw-west/link': 1 });
  }, 180_000);

  test.each([
    ['alice', 'bob'],
    ['bob', 'alice'],
  ] as const)(
    'a packet of 8,000 bytes, in fragments, gets from %s to %s through routers with a small MTU that track connections',
    async (from, to) => {
      const { lab } = handle;
      // The first ones learn the way's MTU: they are too long for it.
      await waitFor(
        async () => (await ping(lab, from, ADDRESS[to], { size: 8_000 })).received === 1,
        { what: 'the first long packet', timeoutMs: PATIENCE_MS, everyMs: 200 },
      );
      const options = { count: 10, intervalMs: 100, size: 8_000, waitMs: 4_000 };
      const outside = await lab.capture('core-east', { filter: 'udp' });
      expect((await ping(lab, from, ADDRESS[to], options)).received).toBe(10);
      const packets = await outside.stop();
      expect(packets.length).toBeGreaterThanOrEqual(2 * 10 * 6);
      // None of what is sealed is in fragments itself: what tracks connections would have to put it together again.
      expect(packets.filter(({ bytes }) => (bytes.readUInt16BE(20) & 0x3fff) !== 0)).toEqual([]);
      expect(Math.max(...packets.map(({ length }) => length))).toBeLessThanOrEqual(MTU + 14);
    },
    120_000,
  );

  test('TCP crosses the small MTU both ways, byte for byte', async () => {
    const { lab } = handle;
    const file = await randomFile(FILE_BYTES);
    try {
      const [east, west] = await Promise.all([
        sendFile(lab, { from: 'alice', to: 'bob', address: ADDRESS.bob }, file, 6_011),
        sendFile(lab, { from: 'bob', to: 'alice', address: ADDRESS.alice }, file, 6_012),
      ]);
      expect([east, west]).toEqual([file.sha256, file.sha256]);
    } finally {
      file.remove();
    }
  }, 120_000);

  test('over a line that loses, doubles and reorders, TCP delivers every byte and no datagram comes twice', async () => {
    const { lab } = handle;
    const file = await randomFile(FILE_BYTES);
    await lab.stop(line);
    line = await startLine(PER_MILLE);
    try {
      const stream = await NumberedStream.start(lab, {
        ...{ from: 'alice', to: 'bob', address: ADDRESS.bob },
        ...{ port: 9_011, perSecond: 200, size: 100 },
      });
      const before = (await lab.port('gw-west/link')).drops;
      const digests = await Promise.all([
        sendFile(lab, { from: 'alice', to: 'bob', address: ADDRESS.bob }, file, 6_013),
        sendFile(lab, { from: 'bob', to: 'alice', address: ADDRESS.alice }, file, 6_014),
      ]);
      expect(digests).toEqual([file.sha256, file.sha256]);
      await stream.more(500);
      const { lost, repeated } = await stream.stop();
      const { drops } = await lab.port('gw-west/link');
      expect(repeated).toBe(0);
      expect(lost).toBeGreaterThan(0);
      expect(drops.replayed).toBeGreaterThan(before.replayed ?? 0);
      expect(drops.not_authentic ?? 0).toBe(before.not_authentic ?? 0);
      // The line has been as bad as it should: else all of this says nothing.
      signal(line, 'SIGTERM');
      const text = await waitFor(() => /\{.*\}/.exec(readFileSync(line.log, 'utf8'))?.[0], {
        what: 'what the bad line did',
      });
      const did = z
        .object({ frames: z.int(), lost: z.int(), repeated: z.int(), late: z.int() })
        .parse(JSON.parse(text));
      for (const what of ['lost', 'repeated', 'late'] as const) {
        expect(did[what], what).toBeGreaterThan((did.frames * PER_MILLE) / 2_000);
      }
    } finally {
      file.remove();
      line = await startLine(0);
    }
  }, 180_000);

  test('a new net key crosses the bad line, too: nothing that gets through is refused', async () => {
    const { lab } = handle;
    await lab.stop(line);
    line = await startLine(PER_MILLE);
    try {
      const generation = async (name: string) => (await lab.port(name)).link?.nets[0]?.pwId ?? 0;
      const first = await generation('gw-east/link');
      await lab.pairwire('server-east', ['rekey', '--dir', lab.serverDir('east'), '--net', 'west']);
      for (const name of ['gw-east/link', 'gw-west/link']) {
        await waitFor(async () => (await generation(name)) > first, {
          ...{ what: `the next key at ${name}`, timeoutMs: PATIENCE_MS, everyMs: 100 },
        });
      }
      await waitFor(async () => (await ping(lab, 'alice', ADDRESS.bob)).received === 1, {
        ...{ what: 'bob to be reached under it', timeoutMs: PATIENCE_MS },
      });
    } finally {
      await lab.stop(line);
      line = await startLine(0);
    }
  }, 180_000);
});
