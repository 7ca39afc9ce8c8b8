/**
 * Two subnets behind ordinary routers, linked at level `udp`: members of either talk to those of the other, IPv4 and
 * IPv6, and nobody on the way sees anything. Their key servers are peered; each link gateway is a host with two
 * members, one in its subnet (pw0, the next hop of the others) and the link port (link0).
 *
 *     alice   gw-east            gw-west   bob
 *       └──────┴──── east ─┐   ┌─ west ─────┴──┘      underlay 192.0.2.0/26 and 192.0.2.64/26
 *         server-east ─────┤   ├───── server-west
 *                        middle
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import type { Capture } from '../../scripts/laboratory/capture.js';
import type { Lab } from '../../scripts/laboratory/lab.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { renderedMetrics } from '../unit/gateway/support/metrics.js';
import { growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { rogueClient } from './helpers/rogue-server.js';
import { useLab } from './helpers/use-lab.js';

const SIDES = ['east', 'west'] as const;
type Side = (typeof SIDES)[number];
const OTHER = { east: 'west', west: 'east' } as const;
const MEMBER = { east: 'alice', west: 'bob' } as const;
/** Inside: the gateway is .1, the member .2. */
const INNER4 = { east: '198.51.100', west: '203.0.113' } as const;
const INNER6 = { east: '2001:db8:e', west: '2001:db8:f' } as const;
const UNDERLAY = {
  east: { router: '192.0.2.62', server: '192.0.2.1', gateway: '192.0.2.2', member: '192.0.2.3' },
  west: {
    router: '192.0.2.126',
    server: '192.0.2.65',
    gateway: '192.0.2.66',
    member: '192.0.2.67',
  },
} as const;
const LINK_PORT = 7_010;
const READY_MS = 30_000;
const findingsSchema = z.object({
  findings: z.array(z.object({ check: z.string(), state: z.string() })),
});
/** 16 bytes, of which ping makes its payload. */
const MARKER = 'marker-marker-m!';
const hex = (text: string) => Buffer.from(text).toString('hex');

const address4 = (side: Side, number = 2) => `${INNER4[side]}.${number}`;
const address6 = (side: Side, number = 2) => `${INNER6[side]}::${number}`;
const link = (side: Side) => `gw-${side}/link`;

function hostsOf(side: Side): TopologyInput['hosts'] {
  const { router, server, gateway, member } = UNDERLAY[side];
  const at = (address: string) => ({
    interfaces: [{ segment: side, name: 'eth0', addresses: [`${address}/26`] }],
    routes: [{ to: 'default' as const, via: router }],
  });
  return {
    [`server-${side}`]: at(server),
    [`gw-${side}`]: { ...at(gateway), kind: 'router' },
    [MEMBER[side]]: at(member),
  };
}

const prefixes = (of: Side) => [`${INNER4[of]}.0/24`, `${INNER6[of]}::/64`];

function gatewaysOf(side: Side): NonNullable<TopologyInput['gateways']> {
  const inside = (number: number) => [
    `${address4(side, number)}/24`,
    `${address6(side, number)}/64`,
  ];
  const other = OTHER[side];
  return [
    {
      host: `gw-${side}`,
      subnet: side,
      addresses: inside(1),
      join: ['--forward', 'link0'],
    },
    {
      host: `gw-${side}`,
      subnet: side,
      as: 'link',
      id: 'link',
      interface: 'link0',
      port: LINK_PORT,
      token: ['--role', 'link'],
      join: [
        ...prefixes(side).flatMap((prefix) => ['--prefix', prefix]),
        ...prefixes(other).flatMap((prefix) => ['--net', `${other}=${prefix}`]),
        ...['--inside', 'pw0'],
      ],
    },
    {
      ...{ host: MEMBER[side], subnet: side, addresses: inside(2) },
      // Members learn the way to the other subnet as from any router.
      routes: [
        { to: `${INNER4[other]}.0/24`, via: address4(side, 1) },
        { to: `${INNER6[other]}::/64`, via: address6(side, 1) },
      ],
    },
  ];
}

/** With `nat` the box in the middle hides everything in the west behind one address of its own, and lets nobody in. */
function topology(nat = false): TopologyInput {
  const server = (side: Side) => ({
    host: `server-${side}`,
    listen: `${UNDERLAY[side].server}:7100`,
    init: prefixes(side).flatMap((prefix) => ['--prefix', prefix]),
  });
  return {
    segments: { east: {}, west: {} },
    hosts: {
      ...hostsOf('east'),
      ...hostsOf('west'),
      middle: {
        ...(nat ? { kind: 'nat', masquerade: 'east' } : { kind: 'router' }),
        interfaces: SIDES.map((side) => ({
          segment: side,
          name: side,
          addresses: [`${UNDERLAY[side].router}/26`],
        })),
      },
    },
    keyServers: { east: server('east'), west: server('west') },
    gateways: [...gatewaysOf('east'), ...gatewaysOf('west')],
    peerings: [
      {
        ...{ maker: 'east', asker: 'west' },
        prefixes: { east: prefixes('east'), west: prefixes('west') },
      },
    ],
  };
}

/** Waits until each link port has a key, and a way to the other that answers. */
async function linked(lab: Lab): Promise<void> {
  await waitFor(
    async () => {
      const ports = await Promise.all(SIDES.map((side) => lab.port(link(side))));
      return ports.every(({ peers }) => peers.some((one) => one.hasKey && one.path === 'direct'));
    },
    { what: 'the link', timeoutMs: READY_MS, everyMs: 100 },
  );
}

const containing = async (capture: Capture, text: string) =>
  (await capture.stop()).filter(({ bytes }) => bytes.includes(text)).length;

describe('two subnets, linked at level udp', () => {
  const handle = useLab(topology());

  beforeAll(() => linked(handle.lab));

  test.each([
    ['alice', 'bob', address4('west')],
    ['bob', 'alice', address4('east')],
    ['alice', 'bob', address6('west')],
    ['bob', 'alice', address6('east')],
    ['alice', 'the other gateway', address4('west', 1)],
    ['gw-east', 'bob', address4('west')],
  ])('%s reaches %s at %s', async (from, _to, address) => {
    // What a gateway says itself needs an address of its subnet.
    const source = from === 'gw-east' ? address4('east', 1) : undefined;
    const { received } = await ping(handle.lab, from, address, { count: 5, source });
    expect(received).toBeGreaterThanOrEqual(4);
    expect((await ping(handle.lab, from, address, { count: 5, source })).received).toBe(5);
  });

  test('nothing of it can be read in the underlay of either side, and it comes out in clear at the members', async () => {
    const { lab } = handle;
    const places = await Promise.all(SIDES.map((side) => lab.capture(side)));
    const inside = await lab.capture('bob', { interface: 'pw0' });
    const options = { count: 10, intervalMs: 20, pattern: hex(MARKER) };
    expect((await ping(lab, 'alice', address4('west'), options)).received).toBe(10);
    expect(await containing(inside, MARKER)).toBe(20);
    const packets = (await Promise.all(places.map((place) => place.stop()))).flat();
    expect(packets.filter(({ bytes }) => bytes.includes(MARKER))).toEqual([]);
    const addresses = [INNER4.east, INNER4.west].map((text) =>
      Buffer.from(text.split('.').map(Number)),
    );
    for (const inner of addresses) {
      expect(packets.filter(({ bytes }) => bytes.includes(inner))).toEqual([]);
    }
    // On the way between the gateways there are frames of the kind net, and no others.
    const between = packets
      .map(({ bytes }) => bytes)
      .filter((bytes) => bytes.readUInt16BE(12) === 0x0800 && bytes.readUInt8(23) === 17)
      .filter((bytes) => bytes.readUInt16BE(36) === LINK_PORT)
      .map((bytes) => bytes.readUInt8(42) & 0x0f);
    expect(between.filter((kind) => kind === FrameKind.net).length).toBeGreaterThanOrEqual(40);
    expect(between.filter((kind) => kind !== FrameKind.net && kind !== FrameKind.path)).toEqual([]);
  });

  test('TCP crosses in both directions, 1 MiB each, byte for byte', async () => {
    const { lab } = handle;
    for (const side of SIDES) {
      const target = MEMBER[OTHER[side]];
      const receiver = lab.spawn(
        target,
        ['sh', '-c', 'socat -u TCP-LISTEN:9600,reuseaddr - | sha256sum'],
        { label: 'sum' },
      );
      await waitFor(
        async () => (await lab.exec(target, ['ss', '-Hltn', 'sport = :9600'])).stdout !== '',
        { what: 'socat', timeoutMs: 10_000 },
      );
      const made = await lab.exec(MEMBER[side], [
        ...['sh', '-c'],
        `head -c 1048576 /dev/urandom | tee /dev/stderr 2>/tmp/link-sum | sha256sum; socat -u - TCP:${address4(OTHER[side])}:9600 </tmp/link-sum`,
      ]);
      const { readFileSync } = await import('node:fs');
      await waitFor(() => readFileSync(receiver.log, 'utf8').includes('-'), {
        what: 'the sum',
        timeoutMs: 20_000,
      });
      expect(readFileSync(receiver.log, 'utf8').trim()).toBe(made.stdout.trim());
    }
  });

  test('each hop counts, and traceroute shows the gateways', async () => {
    const { lab } = handle;
    const { stdout } = await lab.exec('alice', [
      ...['traceroute', '-n', '-q', '1', '-w', '3', '-m', '6', address4('west')],
    ]);
    const hops = [...stdout.matchAll(/^ *\d+ +(\S+)/gm)].map(([, hop]) => hop);
    expect(hops.at(0)).toBe(address4('east', 1));
    expect(hops.at(-1)).toBe(address4('west'));
    expect(hops).toHaveLength(3);
  });

  test('a packet that is too long is answered towards its sender, and path MTU discovery ends', async () => {
    const { lab } = handle;
    const big = async (size: number) =>
      (
        await lab.exec(
          'alice',
          [
            'ping',
            '-n',
            '-c',
            '3',
            '-i',
            '0.2',
            '-W',
            '2',
            '-M',
            'do',
            '-s',
            String(size),
            address4('west'),
          ],
          { check: false },
        )
      ).stdout;
    const { mtu } = await lab.port('alice');
    // On a busy machine a path may be thought shorter for a while, and the kernel keeps what it was told.
    await waitFor(
      async () => {
        await lab.exec('alice', ['ip', 'route', 'flush', 'cache']);
        return / 3 received/.test(await big(mtu - 28));
      },
      { what: 'a packet of full length', timeoutMs: READY_MS, everyMs: 500 },
    );
    await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'mtu', '1300']);
    try {
      expect(await big(1_400 - 28)).toMatch(/mtu ?= ?1300/);
      expect(await big(1_300 - 28)).toMatch(/ 3 received/);
    } finally {
      await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'mtu', String(mtu)]);
      await lab.exec('alice', ['ip', 'route', 'flush', 'cache']);
    }
  });

  test('a source that is not of the subnet does not leave, and nothing comes in from there', async () => {
    const { lab } = handle;
    const before = (await lab.port(link('east'))).drops;
    await lab.exec('alice', ['ip', 'addr', 'add', '10.9.9.9/32', 'dev', 'lo']);
    await lab.exec('gw-east', ['ip', 'route', 'add', '10.9.9.9/32', 'via', address4('east', 2)]);
    try {
      const seen = await lab.capture('bob', { interface: 'pw0', filter: 'host 10.9.9.9' });
      const { received } = await ping(lab, 'alice', address4('west'), {
        ...{ count: 3, waitMs: 500, source: '10.9.9.9' },
      });
      expect(received).toBe(0);
      expect(await seen.stop()).toEqual([]);
      const grown = growth(before, (await lab.port(link('east'))).drops);
      expect(grown.net_source).toBe(3);
    } finally {
      await lab.exec('alice', ['ip', 'addr', 'del', '10.9.9.9/32', 'dev', 'lo']);
      await lab.exec('gw-east', ['ip', 'route', 'del', '10.9.9.9/32']);
    }
  });

  test('when the link is down nothing goes round it in clear, nor what the gateway says itself', async () => {
    const { lab } = handle;
    const filter = `net ${INNER4.west}.0/24 or net ${INNER6.west}::/64`;
    const wire = await lab.capture('east', { filter });
    await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'down']);
    const options = { count: 5, intervalMs: 50, waitMs: 300 };
    expect((await ping(lab, 'alice', address4('west'), options)).received).toBe(0);
    expect((await ping(lab, 'alice', address6('west'), options)).received).toBe(0);
    for (const address of [address4('west'), address6('west')]) {
      await lab.exec('gw-east', ['ping', '-n', '-c', '2', '-W', '1', address], { check: false });
    }
    await lab.exec('gw-east', ['ip', 'link', 'set', 'link0', 'up']);
    expect(await wire.stop()).toEqual([]);
    // Its routes come back by themselves.
    for (const address of [address4('west'), address6('west')]) {
      await waitFor(async () => (await ping(lab, 'alice', address)).received === 1, {
        ...{ what: `${address} to be reached again`, timeoutMs: READY_MS },
      });
    }
  });

  test('status, metrics and doctor show the link, and doctor what is amiss', async () => {
    const { lab } = handle;
    const dir = ['--dir', lab.gatewayDir(link('east'))];
    const { stdout } = await lab.pairwire('gw-east', ['status', ...dir]);
    expect(stdout).toMatch(/level udp, net east: 198\.51\.100\.0\/24 2001:db8:e::\/64/);
    expect(stdout).toMatch(/to west: .*203\.0\.113\.0\/24.*net key generation \d+/);
    expect(stdout).toMatch(/west\/link +ready +yes +\d+ +direct/);
    const metrics = await renderedMetrics(await lab.status(link('east')));
    expect(metrics).toMatch(/gateway_net_key_generation\{port="link",net="west"\} [1-9]/);
    expect(metrics).toMatch(/gateway_net_link_ports_alive\{port="link",net="west"\} 1/);
    const verdict = async () => {
      const found = await lab.pairwire('gw-east', ['doctor', ...dir, '--json'], { check: false });
      const { findings } = findingsSchema.parse(JSON.parse(found.stdout));
      return findings.filter(({ check }) => check === 'link').map(({ state }) => state);
    };
    expect(await verdict()).toEqual(['ok']);
    const west = [`${INNER4.west}.0/24`, 'dev', 'link0'];
    await lab.exec('gw-east', ['sysctl', '-q', '-w', 'net.ipv4.ip_forward=0']);
    await lab.exec('gw-east', ['ip', 'route', 'del', ...west]);
    expect(await verdict()).toEqual(['fail', 'fail']);
    await lab.exec('gw-east', ['sysctl', '-q', '-w', 'net.ipv4.ip_forward=1']);
    await lab.exec('gw-east', ['ip', 'route', 'add', ...west]);
    expect(await verdict()).toEqual(['ok']);
  }, 60_000);

  test('ten renewals of the net key under a stream lose nothing and double nothing', async () => {
    const { lab } = handle;
    const generation = async () => (await lab.port(link('east'))).link?.nets[0]?.pwId ?? 0;
    const first = await generation();
    const shape = { from: 'alice', to: 'bob', address: address4('west'), port: 9_505 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 500, size: 200 });
    for (let round = 1; round <= 10; round += 1) {
      const args = ['rekey', '--dir', lab.serverDir('east'), '--net', 'west'];
      await lab.pairwire('server-east', args);
      await waitFor(async () => (await generation()) >= first + round, {
        ...{ what: `generation ${first + round}`, timeoutMs: 15_000, everyMs: 50 },
      });
    }
    await stream.more(500);
    const { lost, missing, repeated } = await stream.stop();
    expect({ lost, missing, repeated }).toEqual({ lost: 0, missing: [], repeated: 0 });
    const ports = await Promise.all(SIDES.map((side) => lab.port(link(side))));
    expect(ports.map((port) => port.peers[0]?.sendPwId)).toEqual([first + 10, first + 10]);
  }, 120_000);

  test('fresh boot keys at either link port lose nothing', async () => {
    const { lab } = handle;
    const shape = { from: 'bob', to: 'alice', address: address4('east'), port: 9_506 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 500, size: 200 });
    for (const side of SIDES) {
      await lab.pairwire(`gw-${side}`, ['renew', '--dir', lab.gatewayDir(link(side))]);
    }
    await stream.more(2_500);
    await sleep(5_000);
    await stream.more(2_500);
    const { lost, missing, repeated } = await stream.stop();
    expect({ lost, missing, repeated }).toEqual({ lost: 0, missing: [], repeated: 0 });
  }, 60_000);

  test('a link gateway that gets another address is found again', async () => {
    const { lab } = handle;
    const { gateway, router } = UNDERLAY.east;
    const place = (address: string) => `${address}/26`;
    const moved = '192.0.2.9';
    await lab.exec('gw-east', ['ip', 'addr', 'del', place(gateway), 'dev', 'eth0']);
    await lab.exec('gw-east', ['ip', 'addr', 'add', place(moved), 'dev', 'eth0']);
    await lab.exec('gw-east', ['ip', 'route', 'replace', 'default', 'via', router]);
    await waitFor(
      async () => (await ping(lab, 'bob', address4('east'), { waitMs: 500 })).received === 1,
      { what: 'the link after the move', timeoutMs: READY_MS },
    );
    const [there] = (await lab.port(link('west'))).peers;
    expect(there?.endpoint).toBe(`${moved}:${LINK_PORT}`);
  }, 60_000);

  test('both key servers away: traffic goes on, and a link gateway that starts anew is found again when they are back', async () => {
    const { lab } = handle;
    for (const side of SIDES) await lab.stopKeyServer(side, 'SIGKILL');
    expect(
      (await ping(lab, 'alice', address4('west'), { count: 10, intervalMs: 50 })).received,
    ).toBe(10);
    for (const side of SIDES) await lab.startKeyServer(side);
    await lab.stopGateway(link('west'), 'SIGKILL');
    expect(
      (await ping(lab, 'alice', address4('west'), { count: 10, intervalMs: 50 })).received,
    ).toBe(10);
    await lab.downGateway(link('west'));
    await lab.startGateway(link('west'));
    await waitFor(
      async () => (await ping(lab, 'alice', address4('west'), { waitMs: 500 })).received === 1,
      { what: 'the link after a new start', timeoutMs: READY_MS },
    );
    expect((await ping(lab, 'bob', address4('east'), { count: 5 })).received).toBe(5);
  }, 120_000);

  test('a key server of a third net that lies about this link gets and changes nothing (M17)', async () => {
    const { lab } = handle;
    const dir = lab.serverDir('east');
    const argv = ['peer', 'token', '--dir', dir, '--net', 'north', '--prefix', '192.168.9.0/24'];
    const { stdout } = await lab.pairwire('server-east', argv);
    const rogue = await rogueClient(lab, 'middle', stdout);
    const ask = (question: { readonly t: string; readonly [key: string]: unknown }) =>
      rogue.client.request(question, { timeoutMs: 5_000 });
    const far = { subnet: 'north', operator: Buffer.alloc(32, 1), ports: [] };
    const shape = { from: 'alice', to: 'bob', address: address4('west'), port: 9_507 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 200, size: 100 });
    try {
      const before = (await lab.port(link('east'))).link?.nets[0];
      // In the name of the other net it learns no key, ends nothing and renews nothing.
      for (const question of [
        { t: 'net.sync', net: 'west', prefixes: prefixes('west'), held: 0, ...far },
        { t: 'net.confirm', net: 'west', pwId: 99 },
        { t: 'net.rekey', net: 'west', force: true },
        { t: 'net.end', net: 'west' },
      ]) {
        await expect(ask(question)).rejects.toMatchObject({ code: 'refused' });
      }
      // In its own it claims what is behind the two others.
      const claims = [...prefixes('west'), ...prefixes('east')];
      await ask({ t: 'net.sync', net: 'north', prefixes: claims, held: 0, ...far });
      await stream.more(200);
      const { lost, repeated } = await stream.stop();
      expect({ lost, repeated }).toEqual({ lost: 0, repeated: 0 });
      await waitFor(
        async () => {
          const audit = ['audit', '--json', '--dir', dir];
          const said = z
            .array(z.object({ actor: z.string(), action: z.string() }))
            .parse(JSON.parse((await lab.pairwire('server-east', audit)).stdout))
            .filter(({ actor }) => actor === 'north');
          return ['net_foreign', 'net_prefix'].every((kind) =>
            said.some(({ action }) => action === kind),
          );
        },
        { what: 'the audit entries', timeoutMs: 15_000 },
      );
      // The link port takes no net that its own host does not name, and that one is as it was.
      const after = (await lab.port(link('east'))).link?.nets;
      expect(after).toMatchObject([
        { net: 'west', pwId: before?.pwId, prefixes: before?.prefixes },
      ]);
      await lab.pairwire('server-east', ['revoke', '--dir', dir, 'north']);
      const gone = { t: 'net.sync', net: 'north', prefixes: [], held: 0, ...far };
      await expect(ask(gone)).rejects.toThrow();
      expect((await ping(lab, 'bob', address4('east'), { count: 3 })).received).toBe(3);
    } finally {
      rogue.stop();
    }
  }, 90_000);

  test('a revoked link port carries nothing from then on', async () => {
    const { lab } = handle;
    expect((await ping(lab, 'alice', address4('west'), { count: 2 })).received).toBe(2);
    await lab.pairwire('server-west', ['revoke', '--dir', lab.serverDir('west'), 'link']);
    await waitFor(async () => (await lab.port(link('east'))).peers.every(({ hasKey }) => !hasKey), {
      what: 'the other side to forget it',
      timeoutMs: 10_000,
      everyMs: 50,
    });
    expect((await ping(lab, 'alice', address4('west'), { count: 3, waitMs: 300 })).received).toBe(
      0,
    );
  });
});

describe('one subnet behind a NAT box', () => {
  const handle = useLab(topology(true));
  beforeAll(() => linked(handle.lab));

  test('the way is held open from inside, so both sides may begin', async () => {
    const { lab } = handle;
    const seen = (await lab.port(link('east'))).peers[0]?.endpoint;
    // The outside of the box, which the link port in the west does not know of itself.
    expect(seen).toMatch(new RegExp(`^${UNDERLAY.east.router.replaceAll('.', '\\.')}:`));
    // Longer than the box remembers a flow of one packet each way (30 s).
    await sleep(35_000);
    expect((await ping(lab, 'alice', address4('west'), { count: 3 })).received).toBe(3);
    expect((await ping(lab, 'bob', address4('east'), { count: 3 })).received).toBe(3);
  }, 90_000);
});
