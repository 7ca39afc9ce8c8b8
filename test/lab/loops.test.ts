/**
 * Routes of the inside that catch the outside: a default route into the TAP, an inner prefix that
 * covers the addresses of members on the underlay. Sealed frames must not go round.
 *
 *   198.51.100.0/24, the encrypted subnet: .11 .13 .14 .12
 *
 *   alice .11 ──┐ 192.0.2.0/24              203.0.113.0/24
 *   carol .13 ──┼──────── .1 [ router ] .1 ────────┬── bob .12
 *   dave  .14 ──┘                                  └── server .2
 *
 * alice does nothing about it; carol binds the underlay to its interface (`transport.device`); dave marks
 * sealed frames (`transport.mark`) and has a routing rule by that mark.
 */
import { beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { askForNobody, linkOf, ping } from './helpers/hosts.js';
import { useLab } from './helpers/use-lab.js';
import { sealedFrames, strangers } from './helpers/wire.js';

const SUBNET = 'lan';
const BOB_OUTER = '203.0.113.12';
const SERVER = '203.0.113.2';
/** Of bob alone, and of no prefix that anybody has a route for but the default one. */
const BEHIND_BOB = '10.77.0.1';
const MARK = 20_567;
const NUMBER = { alice: 11, bob: 12, carol: 13, dave: 14 } as const;
type Host = keyof typeof NUMBER;
const inner = (host: Host) => `198.51.100.${NUMBER[host]}`;

const left = (host: Host) => ({
  ipv6: false,
  interfaces: [
    {
      segment: 'left',
      name: 'eth0',
      addresses: [`192.0.2.${NUMBER[host]}/24`],
      offload: 'wire' as const,
    },
  ],
  routes: [{ to: 'default' as const, via: '192.0.2.1' }],
});
const right = (address: string) => ({
  ipv6: false,
  interfaces: [{ segment: 'right', name: 'eth0', addresses: [`${address}/24`] }],
  routes: [{ to: 'default' as const, via: '203.0.113.1' }],
});
const gateway = (host: Host, config: Record<string, string | number> = {}) => ({
  host,
  subnet: SUBNET,
  addresses: [`${inner(host)}/24`],
  config,
});
const topology: TopologyInput = {
  segments: { left: {}, right: {} },
  hosts: {
    alice: left('alice'),
    carol: left('carol'),
    dave: left('dave'),
    bob: right(BOB_OUTER),
    server: right(SERVER),
    router: {
      kind: 'router',
      interfaces: [
        { segment: 'left', name: 'west', addresses: ['192.0.2.1/24'] },
        { segment: 'right', name: 'east', addresses: ['203.0.113.1/24'] },
      ],
    },
  },
  keyServers: { [SUBNET]: { host: 'server', listen: `${SERVER}:7100` } },
  gateways: [
    gateway('alice'),
    gateway('bob'),
    gateway('carol', { 'transport.device': 'eth0' }),
    gateway('dave', { 'transport.mark': MARK }),
  ],
};
const handle = useLab(topology);

const findingSchema = z.object({
  check: z.string(),
  state: z.string(),
  message: z.string(),
  fix: z.string().nullable(),
});

async function doctorOnRoutes(host: Host): Promise<z.infer<typeof findingSchema>[]> {
  const { lab } = handle;
  const argv = ['doctor', '--json', '--dir', lab.gatewayDir(host)];
  const { stdout } = await lab.pairwire(host, argv, { check: false });
  const { findings } = z.object({ findings: z.array(findingSchema) }).parse(JSON.parse(stdout));
  return findings.filter(({ check }) => check === 'routes');
}

async function ip(host: Host, words: string): Promise<void> {
  await handle.lab.exec(host, ['ip', ...words.split(' ')]);
}

async function counted(host: Host) {
  const { drops, counters } = await handle.lab.port(host);
  return { loop: drops.loop ?? 0, sealed: counters.outbound_frames ?? 0 };
}

beforeAll(async () => {
  const { lab } = handle;
  await ip('bob', `address add ${BEHIND_BOB}/32 dev lo`);
  for (const host of ['alice', 'carol', 'dave'] as const) {
    const result = await ping(lab, host, inner('bob'), { count: 3, intervalMs: 50 });
    expect(result.received, `${host} before anything is changed`).toBe(3);
  }
});

describe.each([
  [
    'a default route into the TAP',
    'route replace default dev pw0',
    'route replace default via 192.0.2.1',
  ],
  [
    'an inner prefix that covers the underlay of another member',
    'address add 203.0.113.99/24 dev pw0',
    'address delete 203.0.113.99/24 dev pw0',
  ],
])('%s', (_what, set, reset) => {
  test('sealed frames that come into the TAP go no further: dropped as `loop`, each once, and doctor says why', async () => {
    const { lab } = handle;
    // Without it the kernel would ask for the neighbour first, and nothing would come at all.
    const bob = defaultMac(parseId(SUBNET), parseId('bob'));
    await ip('alice', `neighbour replace ${BOB_OUTER} lladdr ${bob} dev pw0 nud permanent`);
    const before = await counted('alice');
    await ip('alice', set);
    const wire = await lab.capture('left', {
      filter: `udp and src host 192.0.2.11 and dst host ${BOB_OUTER}`,
    });
    const during = await ping(lab, 'alice', inner('bob'), {
      count: 20,
      intervalMs: 20,
      waitMs: 500,
    });
    await waitFor(async () => (await counted('alice')).loop > before.loop, {
      what: 'frames that come back to be counted',
    });
    const findings = await doctorOnRoutes('alice');
    const after = await counted('alice');
    const { frames } = sealedFrames(await wire.stop());
    await ip('alice', reset);
    await ip('alice', `neighbour delete ${BOB_OUTER} dev pw0`);

    expect(during.received).toBe(0);
    expect(frames.length, 'on the wire').toBe(0);
    // Each ping was sealed once and came back once; the rest are the kernel's own packets in a few seconds.
    expect(after.sealed - before.sealed).toBeLessThan(100);
    expect(after.loop - before.loop).toBeLessThan(200);
    expect(findings).toEqual(
      expect.arrayContaining([
        expect.objectContaining({
          state: 'fail',
          message: expect.stringContaining(`the way to ${BOB_OUTER} leads into pw0`),
          fix: expect.stringContaining('transport.mark'),
        }),
        expect.objectContaining({
          state: 'fail',
          message: expect.stringContaining(`the way to ${SERVER} leads into pw0`),
        }),
      ]),
    );
    // Nothing is left of it once the route is right.
    await waitFor(async () => (await ping(lab, 'alice', inner('bob'))).received === 1, {
      what: 'traffic after the route was mended',
    });
    expect((await doctorOnRoutes('alice')).map(({ state }) => state)).toEqual(['ok']);
  });
});

test('`transport.device` keeps sealed frames out of an inner prefix that covers the underlay', async () => {
  const { lab } = handle;
  await ip('carol', `route add ${SERVER} via 192.0.2.1`);
  await ip('carol', 'address add 203.0.113.98/24 dev pw0');
  const before = await counted('carol');
  const result = await ping(lab, 'carol', inner('bob'), { count: 10, intervalMs: 20 });
  expect(result.received).toBe(10);
  expect((await counted('carol')).loop).toBe(before.loop);
  expect((await doctorOnRoutes('carol')).map(({ state }) => state)).toEqual(['ok']);
});

test('`transport.mark` and a rule: everything goes through the TAP, sealed frames outside', async () => {
  const { lab } = handle;
  // The rules of a full tunnel: all but marked packets look at table 100, which sends them to bob.
  await ip('dave', `route add default via ${inner('bob')} dev pw0 table 100`);
  await ip('dave', `route add ${SERVER} via 192.0.2.1 table 100`);
  await ip('dave', `rule add not fwmark ${MARK} table 100 priority 200`);
  await ip('dave', 'rule add table main suppress_prefixlength 0 priority 100');
  const before = await counted('dave');
  const wire = await lab.capture('left', { filter: 'host 192.0.2.14 or host 10.77.0.1' });
  const result = await ping(lab, 'dave', BEHIND_BOB, { count: 10, intervalMs: 20 });
  expect(result.received).toBe(10);
  // Control: to bob's underlay address, too, only sealed frames go outside.
  const outer = await ping(lab, 'dave', BOB_OUTER, { count: 3, intervalMs: 20 });
  expect(outer.received).toBe(3);
  const packets = await wire.stop();
  expect(sealedFrames(packets).frames.length).toBeGreaterThanOrEqual(26);
  expect(strangers(packets)).toEqual([]);
  expect((await counted('dave')).loop).toBe(before.loop);
  expect((await lab.status('dave')).server.connected).toBe(true);
  expect((await doctorOnRoutes('dave')).map(({ state }) => state)).toEqual(['ok']);
});

/**
 * The underlay of a plain gateway is in the bridge of its TAP, put there by somebody else once all was up:
 *
 *   wire   192.0.2.0/24, and plain 198.51.100.0/24
 *   ──┬───────┬───────┬────────────┬──
 *   alice  server     p .31   eth0 ┤
 *                              br0 .21 gate
 *                              pw0 ┘
 */
describe('underlay and TAP in one bridge', () => {
  const on = (...addresses: string[]) => ({
    interfaces: [{ segment: 'wire', name: 'eth0', addresses, offload: 'wire' as const }],
  });
  const P = '198.51.100.31';
  const own = useLab({
    segments: { wire: {} },
    hosts: {
      alice: on('192.0.2.11/24'),
      gate: on('192.0.2.21/24'),
      server: on('192.0.2.1/24'),
      p: { kind: 'plain', ...on(`${P}/24`) },
    },
    keyServers: {
      [SUBNET]: { host: 'server', listen: '192.0.2.1:7100', init: ['--unknown', 'plain'] },
    },
    gateways: [
      { host: 'alice', subnet: SUBNET, addresses: [`${inner('alice')}/24`] },
      { host: 'gate', subnet: SUBNET, token: ['--role', 'plain'], join: ['--bridge', 'br0'] },
    ],
  });
  /** Frames that a single pass would have, and as many again for what else the hosts have to say. */
  const SPARE = 2;

  beforeAll(async () => {
    const { lab } = own;
    for (const words of [
      'address flush dev eth0',
      'link set eth0 master br0',
      'address add 192.0.2.21/24 dev br0',
      // It learns nothing, so it gives every frame for somebody else to the TAP, sealed ones too.
      'link set br0 type bridge ageing_time 0',
    ]) {
      await lab.exec('gate', ['ip', ...words.split(' ')]);
    }
    await waitFor(async () => (await ping(lab, 'p', inner('alice'))).received === 1, {
      what: 'p to reach alice',
      timeoutMs: 20_000,
    });
  });

  test('a broadcast crosses once each way, sealed frames are not sealed again, and all talk', async () => {
    const { lab } = own;
    const { address: alice } = await linkOf(lab, 'alice', 'pw0');
    const { address: p } = await linkOf(lab, 'p', 'eth0');
    const before = await lab.port('gate');
    for (const [from, inside, to, there, source] of [
      ['alice', 'pw0', 'p', 'eth0', alice],
      ['p', 'eth0', 'alice', 'pw0', p],
    ] as const) {
      const filter = `arp and ether src ${source} and ether broadcast`;
      const sent = await lab.capture(from, { interface: inside, filter });
      const seen = await lab.capture(to, { interface: there, filter });
      await askForNobody(lab, from, inside, 3);
      const count = (await sent.stop()).length;
      // None of its own comes round to the sender as one more.
      expect(count, from).toBeGreaterThan(0);
      expect((await seen.stop()).length, `${from} to ${to}`).toBe(count);
    }
    const sealed = await lab.capture('wire', {
      filter: 'udp and host 192.0.2.11 and host 192.0.2.21',
    });
    const result = await ping(lab, 'p', inner('alice'), { count: 20, intervalMs: 50 });
    expect(result.received).toBe(20);
    const { frames, wrong } = sealedFrames(await sealed.stop());
    expect(wrong).toEqual([]);
    expect(frames.length).toBeGreaterThanOrEqual(40);
    expect(frames.length).toBeLessThan(40 * SPARE);
    const { drops } = await lab.port('gate');
    // They did come to the TAP.
    expect(drops.loop).toBeGreaterThan(before.drops.loop ?? 0);
  });
});
