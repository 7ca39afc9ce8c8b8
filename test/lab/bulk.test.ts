/**
 * The bulk path with real kernels and programs: super-frames go in at one TAP and come out at another,
 * whatever is in them, and whatever the far end does with them.
 *
 *       wire 192.0.2.0/24                        slow (behind a line that loses and reorders)
 *   ──┬────────┬────────┬────────┬────────[mixer]────┬──
 *   alice     bob     carol    server              dave
 *    .11       │       .13                          .14     subnet `lan`, 198.51.100.0/24
 *        bridge│       │ router
 *      ──┬─────┴─    ──┴───┬──
 *      plain .50         remote 203.0.113.9, 2001:db8:cc::9
 *
 * bob has no address: its TAP is a port of a bridge. plain and remote know nothing of Pairwire.
 */

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { cutOffloads } from '../../scripts/laboratory/network.js';
import { run, signal, waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { linkOf, ping } from './helpers/hosts.js';
import { DATA_PORT, SERVER_PORT, SUBNET } from './helpers/topologies.js';
import {
  randomFile,
  sendDatagrams,
  sendFile,
  type TestFile,
  tapCounters,
  waitForLine,
} from './helpers/transfer.js';
import { SMALL, useLab } from './helpers/use-lab.js';

const MIXER = fileURLToPath(new URL('./helpers/programs/mixer.py', import.meta.url));
const VLAN_SEND = fileURLToPath(new URL('./helpers/programs/vlan-send.py', import.meta.url));
const MiB = 1 << 20;
/** 1,500 bytes, the Ethernet header and two tags. */
const WIRE_FRAME = 1522;
/** Protocols of a frame, down to where payload begins, by tshark's names. */
const LAYERS = ['frame', 'eth', 'ieee8021ad', 'vlan', 'ip', 'ipv6', 'tcp', 'udp'];
const PLAIN_MAC = '02:00:00:00:50:50';

const CAROL = { v4: '198.51.100.13', v6: '2001:db8:51::13' };
const PLAIN = { v4: '198.51.100.50', v6: '2001:db8:51::50' };
const REMOTE = { v4: '203.0.113.9', v6: '2001:db8:cc::9' };
const DAVE = { v4: '198.51.100.14', v6: '2001:db8:51::14' };

const wire = (host: number, segment = 'wire') => ({
  segment,
  name: 'eth0',
  addresses: [`192.0.2.${host}/24`],
  ...(segment === 'slow' ? { offload: 'wire' as const } : {}),
});
const inner = (host: number) => [`198.51.100.${host}/24`, `2001:db8:51::${host}/64`];
const gateway = (host: string, addresses: string[]) => ({
  host,
  subnet: SUBNET,
  port: DATA_PORT,
  addresses,
});

const topology: TopologyInput = {
  segments: { wire: {}, slow: {}, back: {}, far: {} },
  hosts: {
    alice: { interfaces: [wire(11)] },
    bob: {
      interfaces: [wire(12), { segment: 'back', name: 'eth1', addresses: [], offload: 'wire' }],
    },
    carol: {
      kind: 'router',
      interfaces: [
        wire(13),
        {
          segment: 'far',
          name: 'eth1',
          addresses: ['203.0.113.1/24', '2001:db8:cc::1/64'],
          offload: 'wire',
        },
      ],
    },
    dave: { interfaces: [wire(14, 'slow')] },
    server: { interfaces: [wire(1)] },
    mixer: {
      interfaces: [
        { segment: 'wire', name: 'left', addresses: [], offload: 'wire' },
        { segment: 'slow', name: 'right', addresses: [], offload: 'wire' },
      ],
    },
    plain: {
      kind: 'plain',
      interfaces: [
        { segment: 'back', name: 'eth0', addresses: inner(50), mac: PLAIN_MAC, offload: 'wire' },
      ],
    },
    remote: {
      kind: 'plain',
      interfaces: [
        {
          segment: 'far',
          name: 'eth0',
          addresses: [`${REMOTE.v4}/24`, `${REMOTE.v6}/64`],
          offload: 'wire',
        },
      ],
      routes: [
        { to: 'default', via: '203.0.113.1' },
        { to: 'default6', via: '2001:db8:cc::1' },
      ],
    },
  },
  keyServers: { [SUBNET]: { host: 'server', listen: `192.0.2.1:${SERVER_PORT}` } },
  gateways: [
    gateway('alice', inner(11)),
    {
      ...gateway('bob', []),
      // Its own address, and that of the machine behind its bridge.
      token: ['--mac', defaultMac(parseId(SUBNET), parseId('bob')), '--mac', PLAIN_MAC],
    },
    { ...gateway('carol', inner(13)), config: { 'ports.0.forward': true } },
    gateway('dave', inner(14)),
  ],
};

const handle = useLab(topology, { startPrograms: false });
let file: TestFile;
let mixer: { readonly pid: number; readonly start: string; readonly log: string };

beforeAll(async () => {
  const { lab } = handle;
  file = await randomFile((SMALL ? 4 : 64) * MiB);
  await cutTowardsMixer();
  mixer = lab.spawn('mixer', ['python3', MIXER, 'left', 'right', '10', '10', '60']);
  await waitForLine(mixer.log, 'ready');
  await lab.startPrograms();
  for (const argv of [
    ['ip', 'link', 'add', 'br0', 'type', 'bridge', 'forward_delay', '0', 'mcast_snooping', '0'],
    ['ip', 'link', 'set', 'pw0', 'master', 'br0'],
    ['ip', 'link', 'set', 'eth1', 'master', 'br0'],
    ['ip', 'link', 'set', 'br0', 'up'],
  ]) {
    await lab.exec('bob', argv);
  }
  // What is behind a TAP has its MTU.
  const { mtu } = await linkOf(lab, 'bob', 'pw0');
  await lab.exec('plain', ['ip', 'link', 'set', 'eth0', 'mtu', String(mtu)]);
  await lab.exec('alice', ['ip', 'route', 'add', '203.0.113.0/24', 'via', CAROL.v4]);
  await lab.exec('alice', ['ip', '-6', 'route', 'add', '2001:db8:cc::/64', 'via', CAROL.v6]);
});
afterAll(() => file?.remove());

/** What the segment hands to the mixer are frames of a wire: in one piece each, with checksums. */
async function cutTowardsMixer(): Promise<void> {
  const { lab } = handle;
  const { stdout: other } = await lab.exec('mixer', ['cat', '/sys/class/net/left/iflink']);
  const { stdout } = await lab.exec('wire', ['ip', '-json', 'link']);
  const links = z
    .array(z.object({ ifindex: z.int(), ifname: z.string() }))
    .parse(JSON.parse(stdout));
  const port = links.find((link) => link.ifindex === Number(other));
  if (port === undefined) throw new Error('the segment has no port to the mixer');
  await cutOffloads(lab.namespace('wire'), port.ifname);
}

let nextPort = 6000;
const freshPort = () => nextPort++;

/** A file over TCP both ways at once. */
async function bothWays(
  one: { readonly host: string; readonly address: string },
  other: { readonly host: string; readonly address: string },
  what = file,
): Promise<void> {
  const received = await Promise.all([
    sendFile(
      handle.lab,
      { from: one.host, to: other.host, address: other.address },
      what,
      freshPort(),
    ),
    sendFile(
      handle.lab,
      { from: other.host, to: one.host, address: one.address },
      what,
      freshPort(),
    ),
  ]);
  expect(received).toEqual([what.sha256, what.sha256]);
}

const ALICE = { v4: '198.51.100.11', v6: '2001:db8:51::11' };

describe('between members', () => {
  test.each(['v4', 'v6'] as const)(
    'TCP over IP%s arrives, in super-frames on both sides',
    async (ip) => {
      const { lab } = handle;
      const before = {
        alice: await tapCounters(lab, 'alice'),
        carol: await tapCounters(lab, 'carol'),
      };
      const way = { from: 'alice', to: 'carol', address: CAROL[ip] };
      expect(await sendFile(lab, way, file, freshPort())).toBe(file.sha256);
      const after = {
        alice: await tapCounters(lab, 'alice'),
        carol: await tapCounters(lab, 'carol'),
      };
      const perPacket = (host: 'alice' | 'carol', way: 'in' | 'out') =>
        (after[host][way].frames - before[host][way].frames) /
        (after[host][way].packets - before[host][way].packets);
      expect(perPacket('alice', 'out'), 'frames that a packet of the TAP became').toBeGreaterThan(
        4,
      );
      expect(perPacket('carol', 'in'), 'frames in a packet to the TAP').toBeGreaterThan(4);
    },
  );

  test.each([
    ['v4', 1300],
    ['v6', 1300],
    ['v4', 257],
    ['v6', 100],
  ] as const)('UDP super-frames over IP%s of %i bytes arrive', async (ip, size) => {
    const { lab } = handle;
    const way = { from: 'alice', to: 'carol', address: CAROL[ip] };
    const result = await sendDatagrams(lab, way, { size, count: 100, port: freshPort() });
    expect(result).toMatchObject({ altered: 0 });
    expect(result.datagrams).toBeGreaterThanOrEqual(result.sent);
    // Small datagrams are not worth joining, and would be an amplifier in a peer's hand.
    if (size > 256) expect(result.joined).toBeGreaterThan(50);
  });
});

/**
 * What tshark finds wrong in a capture of the segment behind: bad checksums, and frames that no wire
 * would carry. `looked`: TCP and UDP checksums that it found right.
 */
async function wrongIn(pcap: string): Promise<{ looked: number; wrong: string[] }> {
  const checks = ['ip', 'tcp', 'udp'].flatMap((one) => ['-o', `${one}.check_checksum:TRUE`]);
  // No payload is looked into: random bytes may pass for a tunnel, with packets of bad checksums in it.
  const known = LAYERS.flatMap((one) => ['--enable-protocol', one]);
  const lines = async (filter: string) => {
    const dissect = ['--disable-protocol', 'ALL', ...known, ...checks];
    const argv = ['tshark', '-n', '-r', pcap, ...dissect, '-Y', filter];
    return (await run(argv)).stdout.split('\n').filter((line) => line !== '');
  };
  const status = (value: string) =>
    ['ip', 'tcp', 'udp'].map((one) => `${one}.checksum.status == "${value}"`).join(' or ');
  return {
    looked: (await lines('tcp.checksum.status == "Good" or udp.checksum.status == "Good"')).length,
    wrong: (await lines(`${status('Bad')} or frame.len > ${WIRE_FRAME}`)).slice(0, 10),
  };
}

/** The kernel of a test machine need not have VLANs: the frames are made by hand, all else is the kernel's. */
describe('VLANs', () => {
  const schema = z.record(z.string(), z.object({ segments: z.int(), sha256: z.string() }));
  const FILTER = {
    tcp4: 'ip.version == 4 and tcp',
    tcp6: 'ipv6 and tcp',
    udp4: 'ip.version == 4 and udp',
    udp6: 'ipv6 and udp',
  } as const;

  test.each([
    ['one tag', ['8100:6007'], 'vlan.id == 7 and vlan.priority == 3'],
    ['two tags', ['88a8:0009', '8100:0007'], 'ieee8021ad.id == 9 and vlan.id == 7'],
  ])(
    'super-frames with %s leave the far bridge cut, with their tags, summed up',
    async (_what, tags, tagged) => {
      const { lab } = handle;
      const { address } = await linkOf(lab, 'alice', 'pw0');
      // alice has a key to what is behind bob, and both have room for tags.
      expect(await ping(lab, 'alice', PLAIN.v4, { count: 3 })).toMatchObject({ received: 3 });
      const capture = await lab.capture('back', { filter: 'vlan' });
      const args = ['pw0', address, PLAIN_MAC, '20', '1200', ...tags];
      const { stdout } = await lab.exec('alice', ['python3', VLAN_SEND, ...args]);
      const sent = schema.parse(JSON.parse(stdout));
      const segments = Object.values(sent).reduce((sum, one) => sum + one.segments, 0);
      await waitFor(() => capture.packets().length >= segments, {
        what: 'all segments behind the bridge',
      }).catch(() => undefined); // the comparison says more
      await capture.stop();
      for (const [kind, filter] of Object.entries(FILTER)) {
        const argv = ['tshark', '-n', '-r', capture.file, '-Y', `${filter} and ${tagged}`];
        const fields = ['-T', 'fields', '-e', `${kind.slice(0, 3)}.payload`];
        const lines = (await run([...argv, ...fields])).stdout.trim().split('\n');
        const digest = createHash('sha256')
          .update(Buffer.from(lines.join(''), 'hex'))
          .digest('hex');
        expect({ segments: lines.length, sha256: digest }, kind).toEqual(sent[kind]);
      }
      const { looked, wrong } = await wrongIn(capture.file);
      expect(wrong).toEqual([]);
      expect(looked).toBe(segments);
    },
  );
});

describe.each([
  ['a bridge', 'back', 'plain', PLAIN],
  ['a router', 'far', 'remote', REMOTE],
] as const)('forwarded at the far end by %s', (_what, segment, host, address) => {
  test('TCP and UDP, both ways, with right checksums on the wire behind', async () => {
    const { lab } = handle;
    const small = await randomFile((SMALL ? 1 : 8) * MiB);
    const capture = await lab.capture(segment, { filter: 'tcp or udp', bulk: true });
    try {
      for (const ip of ['v4', 'v6'] as const) {
        await bothWays(
          { host: 'alice', address: ALICE[ip] },
          { host, address: address[ip] },
          small,
        );
        const way = { from: 'alice', to: host, address: address[ip] };
        const udp = await sendDatagrams(lab, way, { size: 1300, count: 20, port: freshPort() });
        expect(udp.altered).toBe(0);
        expect(udp.datagrams).toBeGreaterThanOrEqual(udp.sent);
      }
      await capture.stop();
      const { looked, wrong } = await wrongIn(capture.file);
      expect(wrong).toEqual([]);
      // Two versions of IP, two ways. What tcpdump had no time for can't be judged.
      expect(looked + capture.lost()).toBeGreaterThan((2 * 2 * small.bytes) / 1500);
    } finally {
      small.remove();
    }
  });
});

describe('ECN', () => {
  /** Counts packets with a TCP flag on their way out of or into a host. */
  async function countFlags(host: string, port: number): Promise<void> {
    const counted = (name: string, match: string) =>
      `tcp dport ${port} ${match} counter name ${name}`;
    const back = (name: string, match: string) => `tcp sport ${port} ${match} counter name ${name}`;
    const cwr = 'tcp flags & (syn | cwr) == cwr';
    const ece = 'tcp flags & (syn | ecn) == ecn';
    await handle.lab.exec(host, ['nft', '-f', '-'], {
      input: [
        'table inet marks {',
        ...['cwr_out', 'cwr_in', 'ece_out', 'ece_in', 'ce_in', 'marked'].map(
          (one) => `counter ${one} {}`,
        ),
        'chain out { type filter hook postrouting priority filter;',
        `oifname pw0 ${counted('cwr_out', cwr)}`,
        `oifname pw0 ${back('ece_out', ece)}`,
        '}',
        'chain in { type filter hook prerouting priority filter;',
        `iifname pw0 ${counted('cwr_in', cwr)}`,
        `iifname pw0 ${back('ece_in', ece)}`,
        `iifname pw0 tcp dport ${port} ip ecn ce counter name ce_in`,
        '}',
        // A congested router: it marks now and then what may be marked.
        'chain congested { type filter hook postrouting priority mangle;',
        `oifname pw0 tcp dport ${port} ip ecn ect0 numgen random mod 100 < 2 ip ecn set ce counter name marked`,
        '}',
        '}',
      ].join('\n'),
    });
  }

  async function flags(host: string): Promise<Record<string, number>> {
    const { stdout } = await handle.lab.exec(host, [
      'nft',
      'list',
      'counters',
      'table',
      'inet',
      'marks',
    ]);
    return Object.fromEntries(
      [...stdout.matchAll(/counter (\w+) \{\s*packets (\d+)/g)].map((match) => [
        match[1],
        Number(match[2]),
      ]),
    );
  }

  async function marked(): Promise<Record<'alice' | 'carol', Record<string, number>>> {
    const { lab } = handle;
    const port = freshPort();
    for (const host of ['alice', 'carol'] as const) {
      await lab.exec(host, ['sysctl', '-q', '-w', `net.ipv4.tcp_ecn=1`]);
      await countFlags(host, port);
    }
    try {
      const way = { from: 'alice', to: 'carol', address: CAROL.v4 };
      expect(await sendFile(lab, way, file, port)).toBe(file.sha256);
      return { alice: await flags('alice'), carol: await flags('carol') };
    } finally {
      for (const host of ['alice', 'carol'] as const) {
        await lab.exec(host, ['nft', 'delete', 'table', 'inet', 'marks']);
      }
    }
  }

  test('CE, ECE and CWR (RFC 3168) arrive as they were sent, CWR not once more', async () => {
    const { alice, carol } = await marked();
    expect(alice.marked).toBeGreaterThan(0);
    expect(carol.ce_in).toBeGreaterThanOrEqual(alice.marked ?? 0);
    expect(alice.cwr_out).toBeGreaterThan(0);
    // A super-frame has CWR on its first segment only, which stays alone.
    expect(carol.cwr_in).toBe(alice.cwr_out);
    expect(carol.ece_out).toBeGreaterThan(0);
    expect(alice.ece_in).toBe(carol.ece_out);
  });
});

test('over a line that loses, repeats and reorders, TCP arrives and nothing is let in twice', async () => {
  const { lab } = handle;
  const before = (await lab.port('dave')).drops;
  const small = await randomFile((SMALL ? 1 : 4) * MiB);
  try {
    await bothWays({ host: 'alice', address: ALICE.v4 }, { host: 'dave', address: DAVE.v4 }, small);
    await bothWays({ host: 'alice', address: ALICE.v6 }, { host: 'dave', address: DAVE.v6 }, small);
    const way = { from: 'alice', to: 'dave', address: DAVE.v4 };
    const udp = await sendDatagrams(lab, way, { size: 300, count: 10, port: freshPort() });
    expect(udp.altered).toBe(0);
  } finally {
    small.remove();
  }
  const { drops } = await lab.port('dave');
  expect(drops.not_authentic).toBe(before.not_authentic);
  expect(drops.replayed).toBeGreaterThan(before.replayed ?? 0);
  signal(mixer, 'SIGTERM');
  const done = await waitFor(() => /\{.*\}/.exec(readFileSync(mixer.log, 'utf8'))?.[0], {
    what: 'what the bad line did',
  });
  const did: unknown = JSON.parse(done);
  expect(did).toMatchObject({ lost: expect.any(Number) });
});
