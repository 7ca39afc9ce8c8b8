/**
 * A real routing daemon (FRR, OSPF) over the multicast of encrypted subnets: routers are members, and link gateways tell
 * what is behind the link. No route of members is written by hand.
 *
 *   till ── office ── alice   carol   gw-east             gw-west   bob
 *        10.51.0.0/24   └───────┴──────┴── east ─┐   ┌─ west ─┴──────┘       underlay
 *                        server-east ────────────┤   ├──── server-west
 *                                              middle
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';
import { packetsWith, waitForLinks } from './helpers/links.js';
import { OspfRouter } from './helpers/ospf.js';
import { useLab } from './helpers/use-lab.js';

const EAST = '198.51.100.0/24';
const WEST = '203.0.113.0/24';
const OFFICE = '10.51.0.0/24';
const TILL = '10.51.0.9';
const INNER = {
  ...{ 'gw-east': '198.51.100.1', alice: '198.51.100.11', carol: '198.51.100.12' },
  ...{ 'gw-west': '203.0.113.1', bob: '203.0.113.11' },
} as const;
type Router = keyof typeof INNER;
/** 16 bytes, of which ping makes its payload. */
const MARKER = 'marker-marker-m!';
/** Routers wait for a while whether there are others before they choose one to speak for all. */
const OSPF_MS = 90_000;

const at = (segment: string, number: number, router: number) => ({
  interfaces: [{ segment, name: 'eth0', addresses: [`192.0.2.${number}/26`] }],
  routes: [{ to: 'default' as const, via: `192.0.2.${router}` }],
});
const link = (host: string, subnet: string, ours: string[], other: string, theirs: string[]) => ({
  ...{ host, subnet, as: 'link', id: 'link', interface: 'link0', port: 7_010 },
  token: ['--role', 'link'],
  join: [
    ...ours.flatMap((prefix) => ['--prefix', prefix]),
    ...theirs.flatMap((prefix) => ['--net', `${other}=${prefix}`]),
    ...['--inside', 'pw0'],
  ],
});
const member = (host: Router, subnet: string, more: { join?: string[] } = {}) => ({
  ...{ host, subnet, addresses: [`${INNER[host]}/24`], join: more.join ?? [] },
});

const topology: TopologyInput = {
  segments: { office: {}, east: {}, west: {} },
  hosts: {
    till: {
      kind: 'plain',
      interfaces: [{ segment: 'office', name: 'eth0', addresses: [`${TILL}/24`] }],
      routes: [{ to: 'default', via: '10.51.0.1' }],
    },
    alice: {
      kind: 'router',
      interfaces: [
        { segment: 'east', name: 'eth0', addresses: ['192.0.2.11/26'] },
        { segment: 'office', name: 'lan0', addresses: ['10.51.0.1/24'] },
      ],
      routes: [{ to: 'default', via: '192.0.2.62' }],
    },
    carol: at('east', 12, 62),
    'gw-east': { ...at('east', 2, 62), kind: 'router' },
    'server-east': at('east', 1, 62),
    middle: {
      kind: 'router',
      interfaces: [
        { segment: 'east', name: 'east', addresses: ['192.0.2.62/26'] },
        { segment: 'west', name: 'west', addresses: ['192.0.2.126/26'] },
      ],
    },
    bob: at('west', 75, 126),
    'gw-west': { ...at('west', 66, 126), kind: 'router' },
    'server-west': at('west', 65, 126),
  },
  keyServers: {
    east: {
      ...{ host: 'server-east', listen: '192.0.2.1:7100' },
      init: ['--prefix', EAST, '--prefix', OFFICE],
    },
    west: { host: 'server-west', listen: '192.0.2.65:7100', init: ['--prefix', WEST] },
  },
  peerings: [{ maker: 'east', asker: 'west', prefixes: { east: [EAST, OFFICE], west: [WEST] } }],
  gateways: [
    member('gw-east', 'east', { join: ['--forward', 'link0'] }),
    link('gw-east', 'east', [EAST, OFFICE], 'west', [WEST]),
    member('alice', 'east', { join: ['--forward', 'lan0'] }),
    member('carol', 'east'),
    member('gw-west', 'west', { join: ['--forward', 'link0'] }),
    link('gw-west', 'west', [WEST], 'east', [EAST, OFFICE]),
    member('bob', 'west'),
  ],
};

describe('OSPF between members, and over link gateways', () => {
  const handle = useLab(topology);
  const routers = new Map<Router, OspfRouter>();
  const router = (host: Router): OspfRouter => {
    const one = routers.get(host);
    if (one === undefined) throw new Error(`${host} has no routing daemon`);
    return one;
  };

  beforeAll(async () => {
    const { lab } = handle;
    await waitForLinks(lab, { 'gw-east/link': 1, 'gw-west/link': 1 });
    const networks = (host: Router) => [host.endsWith('west') || host === 'bob' ? WEST : EAST];
    const shapes = {
      'gw-east': { tells: 'link0' },
      'gw-west': { tells: 'link0' },
      alice: { passive: ['lan0'] },
      carol: {},
      bob: {},
    };
    for (const host of Object.keys(INNER) as Router[]) {
      const more = host === 'alice' ? [OFFICE] : [];
      const shape = { id: INNER[host], networks: [...networks(host), ...more], ...shapes[host] };
      routers.set(host, await OspfRouter.start(lab, host, shape));
    }
  }, 180_000);
  afterAll(async () => {
    for (const one of routers.values()) await one.stop();
  });

  const becomes = (host: Router, network: string, via: Router | undefined) =>
    waitFor(async () => (await router(host).learned(network)) === (via && INNER[via]), {
      what: `${host} to send ${network} ${via === undefined ? 'nowhere' : `via ${via}`}`,
      ...{ timeoutMs: OSPF_MS, everyMs: 250 },
    });

  const reaches = (from: string, address: string) =>
    waitFor(async () => (await ping(handle.lab, from, address)).received === 1, {
      ...{ what: `${from} to reach ${address}`, timeoutMs: 30_000 },
    });

  test.each([
    ['alice', ['carol', 'gw-east']],
    ['carol', ['alice', 'gw-east']],
    ['gw-east', ['alice', 'carol']],
    ['gw-west', ['bob']],
    ['bob', ['gw-west']],
  ] as const)(
    '%s is a full neighbour of %s',
    async (host, others) => {
      const wanted = others.map((one) => INNER[one]).sort();
      // Of three on a segment two speak for all, so each pair of them has one that does, and becomes full.
      await waitFor(
        async () => {
          const full = await router(host).fullNeighbours();
          return wanted.every((one) => full.includes(one));
        },
        { what: `${host} to have neighbours`, timeoutMs: OSPF_MS, everyMs: 250 },
      );
    },
    120_000,
  );

  test('a network behind a member is learned by the others, and traffic follows', async () => {
    const { lab } = handle;
    await becomes('carol', OFFICE, 'alice');
    await reaches('carol', TILL);
    const wire = await lab.capture('east');
    const office = await lab.capture('office');
    const options = { count: 10, intervalMs: 20, pattern: Buffer.from(MARKER).toString('hex') };
    expect((await ping(lab, 'carol', TILL, options)).received).toBe(10);
    expect(await packetsWith([office], MARKER)).toBe(20);
    expect(await packetsWith([wire], MARKER)).toBe(0);
  }, 150_000);

  test('what the routers tell each other is not seen on the way', async () => {
    const { lab } = handle;
    const wires = await Promise.all(['east', 'west'].map((one) => lab.capture(one)));
    const inside = await lab.capture('carol', { interface: 'pw0', filter: 'ip proto 89' });
    await waitFor(() => inside.packets().length >= 5, {
      ...{ what: 'hellos inside', timeoutMs: 60_000, everyMs: 250 },
    });
    const packets = (await Promise.all(wires.map((one) => one.stop()))).flat();
    await inside.stop();
    const protocols = packets
      .filter(({ bytes }) => bytes.readUInt16BE(12) === 0x0800)
      .map(({ bytes }) => bytes.readUInt8(23));
    expect(protocols.length).toBeGreaterThan(0);
    // TCP to the key servers, and sealed frames in UDP.
    expect(protocols.filter((one) => one !== 6 && one !== 17)).toEqual([]);
    const group = Buffer.from([224, 0, 0, 5]);
    expect(packets.filter(({ bytes }) => bytes.includes(group))).toEqual([]);
  }, 90_000);

  test('what is behind a link is told to members by its gateway, and traffic follows it to the network behind a member there', async () => {
    const { lab } = handle;
    await becomes('carol', WEST, 'gw-east');
    await becomes('alice', WEST, 'gw-east');
    await becomes('bob', EAST, 'gw-west');
    await becomes('bob', OFFICE, 'gw-west');
    await becomes('gw-east', OFFICE, 'alice');
    await reaches('carol', INNER.bob);
    await reaches('bob', INNER.carol);
    await reaches('bob', TILL);
    expect((await ping(lab, 'bob', TILL, { count: 10, intervalMs: 20 })).received).toBe(10);
    expect((await ping(lab, 'till', INNER.bob, { count: 10, intervalMs: 20 })).received).toBe(10);
  }, 240_000);

  test('when the link goes down members hear that there is no way, and when it is back they use it again', async () => {
    const { lab } = handle;
    await becomes('carol', WEST, 'gw-east');
    await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'down']);
    await becomes('carol', WEST, undefined);
    await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'up']);
    await becomes('carol', WEST, 'gw-east');
    await reaches('carol', INNER.bob);
  }, 240_000);
});
