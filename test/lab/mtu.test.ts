/**
 * An underlay whose MTU falls while traffic is under way, with and without the ICMP that would tell:
 *
 *       near 192.0.2.0/24                far 203.0.113.0/24
 *   ──┬─────────┬──────────┬──      ──┬──────────┬──
 *   alice     server      router ── router       bob
 *    .11        .1          .254      .254        .12
 *
 * Or the same with 2001:db8:1::/64 and 2001:db8:2::/64, and no IPv4 outside at all.
 *
 * The router's interface on `far` goes from 1,500 to 1,280. Frames from alice meet it when they leave
 * there (ICMP, if that is not kept back), frames from bob when they arrive (never any ICMP).
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { listening, ping } from './helpers/hosts.js';
import { randomFile, type TestFile } from './helpers/transfer.js';
import { SMALL, useLab } from './helpers/use-lab.js';

const MiB = 1024 * 1024;
const LOCAL_EXPERIMENTS = 0x88b6;
const INNER = {
  alice: { v4: '198.51.100.11', v6: '2001:db8:51::11' },
  bob: { v4: '198.51.100.12', v6: '2001:db8:51::12' },
} as const;
type Host = keyof typeof INNER;

const onWire = (segment: string, name: string, address: string) => ({
  segment,
  name,
  addresses: [address],
  offload: 'wire' as const,
});

/** With an underlay of IPv4 or of IPv6. */
function topology(outer: 4 | 6): TopologyInput {
  const near = (host: number) => (outer === 4 ? `192.0.2.${host}` : `2001:db8:1::${host}`);
  const far = (host: number) => (outer === 4 ? `203.0.113.${host}` : `2001:db8:2::${host}`);
  const length = outer === 4 ? 24 : 64;
  const to = outer === 4 ? 'default' : 'default6';
  const on = (segment: 'near' | 'far', name: string, host: number) =>
    onWire(segment, name, `${(segment === 'near' ? near : far)(host)}/${length}`);
  const byRouter = (address: string) => [{ to, via: address } as const];
  return {
    segments: { near: {}, far: {} },
    hosts: {
      alice: { interfaces: [on('near', 'eth0', 11)], routes: byRouter(near(254)) },
      server: { interfaces: [on('near', 'eth0', 1)], routes: byRouter(near(254)) },
      router: {
        kind: 'router',
        interfaces: [on('near', 'eth0', 254), on('far', 'eth1', 254)],
      },
      bob: { interfaces: [on('far', 'eth0', 12)], routes: byRouter(far(254)) },
    },
    keyServers: {
      lan: { host: 'server', listen: outer === 4 ? `${near(1)}:7100` : `[${near(1)}]:7100` },
    },
    gateways: (['alice', 'bob'] as const).map((host) => ({
      host,
      subnet: 'lan',
      addresses: [`${INNER[host].v4}/24`, `${INNER[host].v6}/64`],
    })),
  };
}

describe.each([
  ['IPv4 and ICMP says so', 4, true],
  ['IPv4 and nobody says so', 4, false],
  ['IPv6 and nobody says so', 6, false],
] as const)('the MTU of the underlay falls to 1,280 half-way, %s', (_, outer, icmp) => {
  const handle = useLab(topology(outer));
  let file: TestFile;
  let dir: string;

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-mtu-'));
    file = await randomFile((SMALL ? 4 : 16) * MiB);
    if (icmp) return;
    await handle.lab.exec('router', ['nft', '-f', '-'], {
      input: [
        'table inet mute { chain out { type filter hook output priority 0;',
        'icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }',
      ].join('\n'),
    });
  });
  afterAll(() => {
    file?.remove();
    rmSync(dir, { recursive: true, force: true });
  });

  const pathMtu = async (host: Host, other: Host) => {
    const { peers } = await handle.lab.port(host);
    return peers.find((peer) => peer.id === other);
  };
  const counter = async (host: Host, name: string) =>
    (await handle.lab.port(host)).counters[name] ?? 0;

  /** Sends half of the file, waits for the flag, sends the rest; the digest of what arrived. */
  async function sendInHalves(from: Host, to: Host, address: string, port: number, flag: string) {
    const { lab } = handle;
    const v6 = address.includes(':');
    const listen = `TCP${v6 ? 6 : 4}-LISTEN:${port},reuseaddr`;
    const target = v6 ? `TCP6:[${address}]:${port}` : `TCP4:${address}:${port}`;
    const half = file.bytes / 2;
    const halves = `head -c ${half} ${file.path}; until [ -e ${flag} ]; do sleep 0.05; done; tail -c ${half} ${file.path}`;
    const timeoutMs = 90_000;
    const receive = lab.exec(to, ['sh', '-c', `socat -u ${listen} STDOUT | sha256sum`], {
      timeoutMs,
    });
    await listening(lab, to, 'tcp', port);
    await lab.exec(from, ['sh', '-c', `(${halves}) | socat -u STDIN ${target}`], { timeoutMs });
    return (await receive).stdout.split(' ')[0];
  }

  test('TCP both ways, over IPv4 and IPv6, delivers every byte', async () => {
    const { lab } = handle;
    expect((await ping(lab, 'alice', INNER.bob.v4)).received).toBe(1);
    for (const [host, other] of [
      ['alice', 'bob'],
      ['bob', 'alice'],
    ] as const) {
      await waitFor(async () => (await pathMtu(host, other))?.pathMtuProved === true, {
        what: `the path from ${host} to be proved`,
      });
      expect((await pathMtu(host, other))?.pathMtu).toBe(1_500);
    }
    expect(await counter('alice', 'frames_cut')).toBe(0);

    const flag = join(dir, 'fallen');
    const transfers = [
      sendInHalves('alice', 'bob', INNER.bob.v4, 6001, flag),
      sendInHalves('alice', 'bob', INNER.bob.v6, 6002, flag),
      sendInHalves('bob', 'alice', INNER.alice.v4, 6003, flag),
      sendInHalves('bob', 'alice', INNER.alice.v6, 6004, flag),
    ];
    // So much has crossed that each of the four has.
    await waitFor(async () => ((await lab.port('bob')).rx.bytes ?? 0) >= file.bytes - MiB, {
      what: 'the first halves',
      timeoutMs: 60_000,
    });
    await lab.exec('router', ['ip', 'link', 'set', 'eth1', 'mtu', '1280']);
    writeFileSync(flag, '');
    for (const digest of await Promise.all(transfers)) expect(digest).toBe(file.sha256);

    for (const [host, other] of [
      ['alice', 'bob'],
      ['bob', 'alice'],
    ] as const) {
      await waitFor(async () => (await pathMtu(host, other))?.pathMtu === 1_280, {
        what: `${host} to know the path`,
        timeoutMs: 30_000,
      });
    }
  }, 120_000);

  test('a large ping with DF gets an answer or an error, never silence', async () => {
    const { lab } = handle;
    for (const [host, address] of [
      ['alice', INNER.bob.v4],
      ['alice', INNER.bob.v6],
      ['bob', INNER.alice.v4],
      ['bob', INNER.alice.v6],
    ] as const) {
      const argv = ['ping', '-n', '-c', '5', '-i', '0.2', '-W', '3', '-M', 'do', '-s', '1330'];
      const { stdout, stderr } = await lab.exec(host, [...argv, address], {
        check: false,
        timeoutMs: 20_000,
      });
      const said = `${stdout}${stderr}`;
      const answers = said.match(/bytes from .*time=/g)?.length ?? 0;
      // Of our host's own kernel, which has learned, and of the gateway, which teaches it.
      const errors = said.match(/message too long|Frag needed|Packet too big/gi)?.length ?? 0;
      expect(answers + errors, said).toBeGreaterThanOrEqual(5);
    }
    expect(await counter('alice', 'too_big_answers')).toBeGreaterThan(0);
    expect(await counter('bob', 'too_big_answers')).toBeGreaterThan(0);
  }, 60_000);

  test('IPv6 packets of 1,280 bytes, which nobody may refuse, cross in two parts', async () => {
    const before = await counter('bob', 'frames_reassembled');
    const result = await ping(handle.lab, 'alice', INNER.bob.v6, { count: 5, size: 1_280 - 48 });
    expect(result.received).toBe(5);
    expect(await counter('bob', 'frames_reassembled')).toBeGreaterThanOrEqual(before + 5);
  });

  test('a full group frame that is no IP, so nobody can be told, arrives whole', async () => {
    const { lab } = handle;
    const marker = 'a full group frame'.padEnd(1_380, '.');
    const program = [
      'import socket, sys',
      's = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)',
      's.bind(("pw0", 0))',
      'mac = s.getsockname()[4]',
      `s.send(b"\\xff" * 6 + mac + (${LOCAL_EXPERIMENTS}).to_bytes(2, "big") + sys.stdin.buffer.read())`,
    ].join('\n');
    const tap = await lab.capture('bob', { interface: 'pw0' });
    await lab.exec('alice', ['python3', '-c', program], { input: marker });
    await tap.waitForPacket(
      (packet) => packet.bytes.subarray(14).toString('latin1') === marker,
      'the whole frame at bob',
    );
    await tap.stop();
  });
});
