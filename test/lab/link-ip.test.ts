/**
 * Two subnets, linked at level `ip`: on each side a bump in the wire between the subnet and its router. The routers are
 * ordinary ones and the packets keep their IP header (config/lab/bump-in-the-wire.yaml has the picture).
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { beforeAll, describe, expect, test } from 'vitest';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { gatewayPaths } from '../../gateway/paths.js';
import type { Lab } from '../../scripts/laboratory/lab.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import { readTopology } from '../../scripts/laboratory/topology.js';
import { growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { randomFile, sendFile } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';

const SIDES = ['east', 'west'] as const;
type Side = (typeof SIDES)[number];
const MEMBER = { east: 'alice', west: 'bob' } as const;
const OTHER = { east: 'west', west: 'east' } as const;
/** Inside: the router is .1, the member .2. */
const INNER4 = { east: '198.51.100', west: '203.0.113' } as const;
const INNER6 = { east: '2001:db8:e', west: '2001:db8:f' } as const;
const address4 = (side: Side, number = 2) => `${INNER4[side]}.${number}`;
const address6 = (side: Side, number = 2) => `${INNER6[side]}::${number}`;
const link = (side: Side) => `gate-${side}/link`;

const READY_MS = 60_000;
/** 16 bytes, of which ping makes its payload. */
const MARKER = 'marker-marker-m!';
const ETHERTYPE = { ipv4: 0x0800, arp: 0x0806, ipv6: 0x86dd } as const;
const PAIRWIRE = 253;
const ICMPV6 = 58;

/** What an Ethernet frame carries: `arp`, `nd`, `sealed`, or what it should not. */
function contentOf(bytes: Buffer): string {
  const type = bytes.readUInt16BE(12);
  if (type === ETHERTYPE.arp) return 'arp';
  if (type === ETHERTYPE.ipv4) {
    const protocol = bytes.readUInt8(23);
    return protocol === PAIRWIRE ? 'sealed' : `IPv4 protocol ${protocol}`;
  }
  if (type !== ETHERTYPE.ipv6) return `EtherType ${type.toString(16)}`;
  const next = bytes.readUInt8(20);
  if (next === PAIRWIRE) return 'sealed';
  const kind = next === ICMPV6 ? bytes.readUInt8(54) : 0;
  if (kind >= 133 && kind <= 137) return 'nd';
  // What routers' kernels say by themselves about the groups that they are in (MLD, behind a hop-by-hop header).
  return next === 0 && bytes.readUInt8(54) === ICMPV6 ? 'mld' : `IPv6 next header ${next}`;
}

const routesSchema = z.array(
  z.object({ metrics: z.array(z.object({ mtu: z.int().optional() })).optional() }),
);

/** The MTU that a host has been told of for the way to an address; undefined: none. */
async function pathMtu(lab: Lab, host: string, address: string): Promise<number | undefined> {
  const { stdout } = await lab.exec(host, ['ip', '-json', 'route', 'get', address]);
  return routesSchema.parse(JSON.parse(stdout))[0]?.metrics?.find(({ mtu }) => mtu !== undefined)
    ?.mtu;
}

async function hopsOf(lab: Lab, from: string, to: string): Promise<(string | undefined)[]> {
  const { stdout } = await lab.exec(from, [
    'traceroute',
    '-n',
    '-q',
    '1',
    '-N',
    '1',
    '-w',
    '3',
    '-m',
    '6',
    to,
  ]);
  return [...stdout.matchAll(/^ *\d+ +(\S+)/gm)].map(([, hop]) => hop);
}

describe('two subnets, linked at level ip', () => {
  const handle = useLab(readTopology('config/lab/bump-in-the-wire.yaml'));

  beforeAll(async () => {
    const { lab } = handle;
    await waitFor(
      async () => {
        const ports = await Promise.all(SIDES.map((side) => lab.port(link(side))));
        return ports.every(({ peers }) => peers.some(({ hasKey }) => hasKey));
      },
      { what: 'the net key', timeoutMs: READY_MS, everyMs: 100 },
    );
    for (const side of SIDES) {
      for (const address of [address4(OTHER[side]), address6(OTHER[side])]) {
        await waitFor(
          async () => (await ping(lab, MEMBER[side], address, { waitMs: 500 })).received === 1,
          {
            what: `${MEMBER[side]} to reach ${address}`,
            timeoutMs: READY_MS,
          },
        );
      }
    }
  }, 240_000);

  test.each([
    ['alice', address4('west')],
    ['bob', address4('east')],
    ['alice', address6('west')],
    ['bob', address6('east')],
  ])('%s reaches %s', async (from, address) => {
    const { received } = await ping(handle.lab, from, address, { count: 20, intervalMs: 20 });
    expect(received).toBe(20);
  });

  test('routers see who speaks to whom, and nothing of what is said; ARP and neighbour discovery cross in clear', async () => {
    const { lab } = handle;
    const places = ['door-east', 'core', 'door-west'];
    const captures = await Promise.all(places.map((place) => lab.capture(place)));
    const pattern = Buffer.from(MARKER).toString('hex');
    for (const address of [address4('west'), address6('west')]) {
      // The neighbours are looked for once more.
      await lab.exec('router-east', ['ip', 'neigh', 'flush', 'dev', 'east']);
      const options = { count: 10, intervalMs: 20, pattern };
      expect((await ping(lab, 'alice', address, options)).received).toBe(10);
    }
    const seen = await Promise.all(captures.map((capture) => capture.stop()));
    for (const frames of seen) {
      expect(frames.filter(({ bytes }) => bytes.includes(MARKER))).toEqual([]);
      const contents = new Set(frames.map(({ bytes }) => contentOf(bytes)));
      for (const allowed of ['arp', 'nd', 'sealed', 'mld']) contents.delete(allowed);
      expect([...contents]).toEqual([]);
      expect(
        frames.filter(({ bytes }) => contentOf(bytes) === 'sealed').length,
      ).toBeGreaterThanOrEqual(40);
    }
    const contents = seen[0]?.map(({ bytes }) => contentOf(bytes));
    expect(contents).toContain('arp');
    expect(contents).toContain('nd');
  });

  test('TCP crosses in both directions, byte for byte', async () => {
    const { lab } = handle;
    const file = await randomFile(8_388_608);
    try {
      for (const side of SIDES) {
        for (const address of [address4(OTHER[side]), address6(OTHER[side])]) {
          const way = { from: MEMBER[side], to: MEMBER[OTHER[side]], address };
          expect(await sendFile(lab, way, file, 9_600)).toBe(file.sha256);
        }
      }
    } finally {
      file.remove();
    }
  }, 120_000);

  test('what routers say of sealed packets reaches who sent them: traceroute shows each', async () => {
    const { lab } = handle;
    expect(await hopsOf(lab, 'alice', address4('west'))).toEqual([
      ...[address4('east', 1), '192.0.2.162', address4('west')],
    ]);
    expect(await hopsOf(lab, 'alice', address6('west'))).toEqual([
      ...[address6('east', 1), '2001:db8:c::2', address6('west')],
    ]);
  }, 60_000);

  test('a network on the way with a small MTU is found out, and TCP goes on through it', async () => {
    const { lab } = handle;
    const routers = ['router-east', 'router-west'];
    for (const router of routers)
      await lab.exec(router, ['ip', 'link', 'set', 'core', 'mtu', '1400']);
    const file = await randomFile(2_097_152);
    try {
      for (const [address, mtu] of [
        [address4('west'), 1_400 - 60],
        [address6('west'), 1_400 - 80],
      ] as const) {
        const way = { from: 'alice', to: 'bob', address };
        expect(await sendFile(lab, way, file, 9_601)).toBe(file.sha256);
        expect(await pathMtu(lab, 'alice', address)).toBe(mtu);
        // What may be cut crosses in full length, once the far side knows of the way back as well.
        const big = ['ping', '-n', '-c', '3', '-i', '0.2', '-W', '2', '-s', '1340', address];
        await waitFor(
          async () => / 3 received/.test((await lab.exec('alice', big, { check: false })).stdout),
          { what: 'three pings of full length', timeoutMs: READY_MS },
        );
      }
    } finally {
      file.remove();
      for (const router of routers)
        await lab.exec(router, ['ip', 'link', 'set', 'core', 'mtu', '1500']);
      for (const member of Object.values(MEMBER)) {
        await lab.exec(member, ['ip', 'route', 'flush', 'cache']);
        await lab.exec(member, ['ip', '-6', 'route', 'flush', 'cache']);
      }
    }
  }, 120_000);

  test('large packets, which their sender cuts, cross routers that track connections', async () => {
    const { lab } = handle;
    for (const router of ['router-east', 'router-west']) {
      await lab.exec(router, ['nft', '-f', '-'], {
        input:
          'table inet track {\n chain watch { type filter hook forward priority 0; ct state invalid drop; ct state new,established,related accept; }\n}',
      });
    }
    try {
      for (const address of [address4('west'), address6('west')]) {
        const big = await lab.exec('alice', [
          'ping',
          '-n',
          '-c',
          '5',
          '-i',
          '0.1',
          '-s',
          '8000',
          address,
        ]);
        expect(big.stdout).toMatch(/ 5 received/);
      }
    } finally {
      for (const router of ['router-east', 'router-west']) {
        await lab.exec(router, ['nft', 'delete', 'table', 'inet', 'track']);
      }
    }
  }, 60_000);

  test('nobody is spoken to in clear: not the router, not what is behind it, and they reach nobody', async () => {
    const { lab } = handle;
    const outside = '192.0.2.162';
    await lab.exec('alice', ['ip', 'route', 'add', `${outside}/32`, 'via', address4('east', 1)]);
    const door = await lab.capture('door-east');
    const before = (await lab.port(link('east'))).drops;
    try {
      for (const address of [address4('east', 1), outside]) {
        expect((await ping(lab, 'alice', address, { count: 3, waitMs: 300 })).received).toBe(0);
      }
      const toMember = await ping(lab, 'router-east', address4('east'), { count: 3, waitMs: 300 });
      expect(toMember.received).toBe(0);
    } finally {
      await lab.exec('alice', ['ip', 'route', 'del', `${outside}/32`]);
    }
    const grown = growth(before, (await lab.port(link('east'))).drops);
    expect(grown.net_destination).toBe(6);
    expect(grown.net_clear).toBe(3);
    const said = (await door.stop()).filter(({ bytes }) => contentOf(bytes) === 'IPv4 protocol 1');
    // The router's own attempts alone.
    expect(said).toHaveLength(3);
  });

  test('fresh boot keys and renewals of the net key under a stream lose nothing and double nothing', async () => {
    const { lab } = handle;
    const generation = async () => (await lab.port(link('east'))).link?.nets[0]?.pwId ?? 0;
    const shape = { from: 'alice', to: 'bob', address: address4('west'), port: 9_505 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 500, size: 200 });
    const first = await generation();
    for (let round = 1; round <= 5; round += 1) {
      await lab.pairwire('server-east', ['rekey', '--dir', lab.serverDir('east'), '--net', 'west']);
      await waitFor(async () => (await generation()) >= first + round, {
        ...{ what: `generation ${first + round}`, timeoutMs: 15_000, everyMs: 50 },
      });
    }
    for (const side of SIDES) {
      await lab.pairwire(`gate-${side}`, ['renew', '--dir', lab.gatewayDir(link(side))]);
    }
    await stream.more(2_500);
    const { lost, missing, repeated } = await stream.stop();
    expect({ lost, missing, repeated }).toEqual({ lost: 0, missing: [], repeated: 0 });
  }, 120_000);

  test('status and doctor show the link', async () => {
    const { lab } = handle;
    const dir = ['--dir', lab.gatewayDir(link('east'))];
    const { stdout } = await lab.pairwire('gate-east', ['status', ...dir]);
    expect(stdout).toMatch(/level ip, net east/);
    expect(stdout).toMatch(/ip protocol 253/);
    expect(stdout).toMatch(/west\/link +ready +yes +\d+ +routed/);
    const found = await lab.pairwire('gate-east', ['doctor', ...dir, '--json'], { check: false });
    const schema = z.object({
      findings: z.array(z.object({ check: z.string(), state: z.string() })),
    });
    const states = schema
      .parse(JSON.parse(found.stdout))
      .findings.filter(({ check }) => ['link', 'bridge', 'port'].includes(check));
    expect(states.map(({ check, state }) => `${check} ${state}`).sort()).toEqual([
      ...['bridge ok', 'link ok', 'port ok'],
    ]);
  });

  test('what the configuration lets pass crosses in clear, and nothing else', async () => {
    const { lab } = handle;
    const file = gatewayPaths(lab.gatewayDir(link('east'))).config;
    const config = parseDocument(readFileSync(file, 'utf8'));
    config.setIn(['ports', 0, 'pass'], ['icmp']);
    writeFileSync(file, config.toString());
    await lab.stopGateway(link('east'));
    await lab.startGateway(link('east'));
    const router = address4('east', 1);
    expect((await ping(lab, 'alice', router, { count: 5 })).received).toBe(5);
    expect((await ping(lab, 'alice', address6('east', 1), { waitMs: 300 })).received).toBe(0);
    const door = await lab.capture('door-east');
    const options = { count: 5, pattern: Buffer.from(MARKER).toString('hex') };
    expect((await ping(lab, 'alice', router, options)).received).toBe(5);
    // Between subnets it is sealed all the same.
    expect((await ping(lab, 'alice', address4('west'), { count: 5 })).received).toBe(5);
    const clear = (await door.stop()).filter(
      ({ bytes }) => !['arp', 'nd', 'mld', 'sealed'].includes(contentOf(bytes)),
    );
    expect(clear).toHaveLength(10);
    expect(clear.every(({ bytes }) => bytes.includes(MARKER))).toBe(true);
  }, 60_000);

  test('without the link nothing gets past the gate, and it is back by itself', async () => {
    const { lab } = handle;
    const door = await lab.capture('door-east');
    await lab.downGateway(link('east'));
    for (const address of [address4('west'), address6('west')]) {
      const { received } = await ping(lab, 'alice', address, {
        count: 5,
        intervalMs: 50,
        waitMs: 300,
      });
      expect(received).toBe(0);
    }
    const said = (await door.stop()).filter(({ bytes }) => {
      const content = contentOf(bytes);
      return (
        content !== 'sealed' && bytes.includes(Buffer.from(address4('west').split('.').map(Number)))
      );
    });
    expect(said).toEqual([]);
    await lab.startGateway(link('east'));
    for (const address of [address4('west'), address6('west')]) {
      await waitFor(
        async () => (await ping(lab, 'alice', address, { waitMs: 500 })).received === 1,
        {
          ...{ what: `${address} to be reached again`, timeoutMs: READY_MS },
        },
      );
    }
  }, 120_000);
});
