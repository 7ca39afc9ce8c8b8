/**
 * The address guard (threats.md C2): nobody takes an address, a route or a lease that is not his to
 * give, from outside or inside; and who asks for a neighbour that is known is answered at once.
 *
 * Of the plain gateways gate2 alone may speak for routers and DHCP servers behind it (p3, p4); gate1
 * (p1, p2) and the members may not.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { ipToBytes } from '../../src/protocol/ip.js';
import { BROADCAST_MAC, type MacAddress, macSchema, macToBytes } from '../../src/protocol/mac.js';
import { dropsOf } from './helpers/drops.js';
import { addressesOf, askForNobody, linkOf, listening, NOBODY, ping } from './helpers/hosts.js';
import { ethernet, icmpv6 } from './helpers/packets.js';
import {
  GATES,
  insideOf,
  macOf,
  plain4,
  plain6,
  plainTopology,
  type Station,
  sendRaw,
  textFrame,
} from './helpers/plain.js';
import { SUBNET } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { markersIn } from './helpers/wire.js';

const UDHCPC = fileURLToPath(new URL('./helpers/programs/udhcpc.sh', import.meta.url));
const ARP = 0x0806;
const ALL_NODES = macSchema.parse('33:33:00:00:00:01');
const SETTLE_MS = 10_000;

const handle = useLab(plainTopology({ token: { gate2: ['--grant', 'router,dhcp'] } }));
const scratch = mkdtempSync(join(tmpdir(), 'pairwire-guard-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

let alice: MacAddress;
let bob: MacAddress;

function bytesOf(ip: string): Buffer {
  const bytes = ipToBytes(ip);
  if (bytes === undefined) throw new RangeError(`${ip} is no IP address`);
  return bytes;
}

/** An ARP packet (1 request, 2 reply) that says: `ip` is at `mac`. */
function arp(operation: 1 | 2, mac: MacAddress, ip: string, to: MacAddress, asked: string): Buffer {
  return Buffer.concat([
    Buffer.from(`00010800060400${operation.toString(16).padStart(2, '0')}`, 'hex'),
    macToBytes(mac),
    bytesOf(ip),
    macToBytes(to),
    bytesOf(asked),
  ]);
}

/** A neighbour advertisement, to all, that overrides what they know: `ip` is at `mac`. */
function advertisement(mac: MacAddress, ip: string): Buffer {
  const message = Buffer.concat([
    Buffer.from('8800000020000000', 'hex'),
    bytesOf(ip),
    Buffer.from('0201', 'hex'),
    macToBytes(mac),
  ]);
  return ethernet(ALL_NODES, mac, 0x86dd, icmpv6(bytesOf(ip), bytesOf('ff02::1'), message));
}

interface Row {
  readonly ip: string;
  readonly mac: string;
  readonly kind: string;
  readonly member: string | null;
}
interface AuditRow {
  readonly action: string;
  readonly actor: string;
}

async function server<T>(...argv: readonly string[]): Promise<T> {
  const { lab } = handle;
  const { host } = lab.keyServer(SUBNET);
  const dir = ['--dir', lab.serverDir(SUBNET), '--json'];
  return JSON.parse((await lab.pairwire(host, [...argv, ...dir])).stdout) as T;
}

async function audited(action: string, actor: string): Promise<void> {
  const found = async () =>
    (await server<AuditRow[]>('audit')).some((row) => row.action === action && row.actor === actor);
  await waitFor(found, { what: `${action} of ${actor} in the audit log`, timeoutMs: SETTLE_MS });
}

async function counted(host: string, reason: string, than: number): Promise<void> {
  await waitFor(async () => ((await dropsOf(handle.lab, host))[reason] ?? 0) > than, {
    what: `${reason} at ${host}`,
    timeoutMs: SETTLE_MS,
    everyMs: 100,
  });
}

/** What a host thinks where a neighbour is. */
async function neighbour(host: Station, ip: string): Promise<string> {
  const argv = ['ip', 'neigh', 'show', ip, 'dev', insideOf(host)];
  const { stdout } = await handle.lab.exec(host, argv);
  return /lladdr (\S+)/.exec(stdout)?.[1] ?? 'nowhere';
}

async function forget(host: Station): Promise<void> {
  await handle.lab.exec(host, ['ip', 'neigh', 'flush', 'dev', insideOf(host)]);
}

/** Until the server knows members' addresses, and the gateways what it knows. */
beforeAll(async () => {
  const { lab } = handle;
  for (const gate of GATES) {
    await waitFor(async () => (await lab.port(gate)).plain?.loop === 'forward', {
      what: `${gate} to forward`,
      timeoutMs: 10_000,
    });
  }
  alice = macSchema.parse((await linkOf(lab, 'alice', 'pw0')).address);
  bob = macSchema.parse((await linkOf(lab, 'bob', 'pw0')).address);
  for (const address of [plain4('bob'), plain6('bob')]) {
    expect((await ping(lab, 'alice', address, { count: 2 })).received).toBeGreaterThan(0);
  }
  const wanted = (['alice', 'bob'] as const).flatMap((one) => [plain4(one), plain6(one)]);
  await waitFor(
    async () => {
      const bound = (await server<Row[]>('ip')).map(({ ip }) => ip);
      if (!wanted.every((ip) => bound.includes(ip))) return false;
      const ports = await Promise.all(
        [...GATES, 'alice', 'bob'].map(async (host) => lab.port(host)),
      );
      return ports.every(({ counters }) => (counters.bindings ?? 0) >= bound.length);
    },
    { what: 'addresses of members to be bound', timeoutMs: SETTLE_MS, everyMs: 200 },
  );
});

describe("a member's address", () => {
  test('is bound to its MAC address once it was used', async () => {
    const rows = await server<Row[]>('ip');
    for (const [member, mac] of [
      ['alice', alice],
      ['bob', bob],
    ] as const) {
      for (const ip of [plain4(member), plain6(member)]) {
        expect(rows.find((row) => row.ip === ip)).toMatchObject({ mac, member });
      }
    }
  });

  test('is not taken over from outside by ARP: no traffic between members is pulled out (E4)', async () => {
    const { lab } = handle;
    const before = (await dropsOf(lab, 'gate1')).arp_spoof ?? 0;
    const capture = await lab.capture('lan1');
    const mac = macOf('p1');
    const marker = Buffer.from('to bob alone....');
    await ping(lab, 'alice', plain4('bob'));
    await sendRaw(
      lab,
      'p1',
      ethernet(BROADCAST_MAC, mac, ARP, arp(1, mac, plain4('bob'), mac, plain4('bob'))),
      ethernet(alice, mac, ARP, arp(2, mac, plain4('bob'), alice, plain4('alice'))),
      ethernet(alice, mac, ARP, arp(1, mac, plain4('bob'), alice, plain4('alice'))),
      // In the name of bob's MAC address, and behind a priority tag, which machines do not look at.
      ethernet(alice, mac, ARP, arp(2, bob, NOBODY, alice, plain4('alice'))),
      ethernet(
        alice,
        mac,
        0x8100,
        Buffer.concat([
          Buffer.from('00000806', 'hex'),
          arp(2, mac, plain4('bob'), alice, plain4('alice')),
        ]),
      ),
      textFrame(BROADCAST_MAC, mac, 0, 'p1 is done'),
    );
    await counted('gate1', 'arp_spoof', before + 4);
    expect(await neighbour('alice', plain4('bob'))).toBe(bob);
    const pinged = await ping(lab, 'alice', plain4('bob'), {
      count: 3,
      pattern: marker.toString('hex'),
    });
    expect(pinged.received).toBe(3);
    const packets = await capture.stop();
    expect(markersIn(packets, { marker })).toEqual([]);
    await audited('arp_spoof', 'gate1');
    // p1 as itself is heard as ever.
    expect((await ping(lab, 'p1', plain4('alice'))).received).toBe(1);
  });

  test('is not taken over from outside by neighbour discovery', async () => {
    const { lab } = handle;
    const before = (await dropsOf(lab, 'gate1')).nd_spoof ?? 0;
    await ping(lab, 'alice', plain6('bob'));
    await sendRaw(lab, 'p1', advertisement(macOf('p1'), plain6('bob')));
    await counted('gate1', 'nd_spoof', before);
    expect(await neighbour('alice', plain6('bob'))).toBe(bob);
    await audited('nd_spoof', 'gate1');
  });

  test('is not taken over from inside: a member that claims it is refused at its own TAP', async () => {
    const { lab } = handle;
    const before = (await dropsOf(lab, 'bob')).arp_spoof ?? 0;
    await ping(lab, 'p1', plain4('alice'));
    await sendRaw(
      lab,
      'bob',
      ethernet(BROADCAST_MAC, bob, ARP, arp(1, bob, plain4('alice'), bob, plain4('alice'))),
    );
    await counted('bob', 'arp_spoof', before);
    expect(await neighbour('p1', plain4('alice'))).toBe(alice);
    await audited('arp_spoof', 'bob');
    // Nor is it given to bob because he said so.
    const rows = await server<Row[]>('ip');
    expect(rows.find(({ ip }) => ip === plain4('alice'))).toMatchObject({ member: 'alice' });
  });

  test('an address of a machine outside is guarded once the operator has pinned it', async () => {
    const { lab } = handle;
    const before = (await dropsOf(lab, 'gate1')).arp_spoof ?? 0;
    await server('ip', 'pin', plain4('p1'), macOf('p1'));
    const claim = ethernet(
      BROADCAST_MAC,
      macOf('p2'),
      ARP,
      arp(1, macOf('p2'), plain4('p1'), macOf('p2'), plain4('p1')),
    );
    await waitFor(
      async () => {
        await sendRaw(lab, 'p2', claim);
        return ((await dropsOf(lab, 'gate1')).arp_spoof ?? 0) > before;
      },
      { what: 'the claim to be refused', timeoutMs: SETTLE_MS, everyMs: 200 },
    );
    expect((await ping(lab, 'alice', plain4('p1'), { count: 3 })).received).toBe(3);
    await server('ip', 'free', plain4('p1'));
  });
});

describe('questions for members', () => {
  test.each([
    ['p1', 'alice'],
    ['alice', 'bob'],
  ] as const)('%s asks for %s, is answered, and nobody else hears of it', async (from, to) => {
    const { lab } = handle;
    const port = from === 'p1' ? 'gate1' : from;
    const before = await lab.port(port);
    const inside = insideOf(to);
    const source = (await linkOf(lab, from, insideOf(from))).address;
    const capture = await lab.capture(to, {
      interface: inside,
      filter: `ether src ${source} and (arp or icmp6) and ether[0] & 1 != 0`,
    });
    await forget(from);
    const argv = ['arping', '-b', '-c', '3', '-w', '5', '-I', insideOf(from), plain4(to)];
    const { stdout } = await lab.exec(from, argv);
    const mac = to === 'alice' ? alice : bob;
    const answers = [...stdout.matchAll(/\[([0-9A-Fa-f:]+)\]/g)].map(([, one]) =>
      one?.toLowerCase(),
    );
    expect(answers).toEqual([mac, mac, mac]);
    const ndisc = await lab.exec(from, ['ndisc6', '-1', plain6(to), insideOf(from)]);
    expect(ndisc.stdout.toLowerCase()).toContain(mac);
    // One that nobody can answer here goes on.
    await askForNobody(lab, from, insideOf(from), 1);
    await capture.waitForPacket(
      ({ bytes }) => bytes.includes(bytesOf(NOBODY)),
      'the question for nobody',
    );
    const seen = await capture.stop();
    expect(seen.filter(({ bytes }) => bytes.includes(bytesOf(plain4(to))))).toEqual([]);
    expect(seen.filter(({ bytes }) => bytes.includes(bytesOf(plain6(to))))).toEqual([]);
    const { counters } = await lab.port(port);
    expect((counters.answered_arp ?? 0) - (before.counters.answered_arp ?? 0)).toBeGreaterThan(2);
    expect(counters.answered_nd ?? 0).toBeGreaterThan(before.counters.answered_nd ?? 0);
    // And it is the right answer.
    await forget(from);
    for (const address of [plain4(to), plain6(to)]) {
      expect((await ping(lab, from, address, { count: 2 })).received).toBe(2);
    }
  });
});

describe('routers and DHCP servers', () => {
  const PREFIX = { p1: '2001:db8:66:', p3: '2001:db8:77:' } as const;

  async function radvd(host: 'p1' | 'p3') {
    const { lab } = handle;
    const config = join(scratch, `${host}.conf`);
    writeFileSync(
      config,
      `interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;
         prefix ${PREFIX[host]}:/64 { AdvOnLink on; AdvAutonomous on; }; };\n`,
      { mode: 0o644 },
    );
    await lab.exec(host, ['sysctl', '-q', '-w', 'net.ipv6.conf.all.forwarding=1']);
    const pid = join(scratch, `${host}.pid`);
    return lab.spawn(host, ['radvd', '-n', '-C', config, '-p', pid, '-m', 'stderr']);
  }
  const has = async (prefix: string) =>
    (await addressesOf(handle.lab, 'alice', 'pw0')).some((one) => one.startsWith(prefix));

  test('a router behind a gateway with the right is heard, one without is not', async () => {
    const { lab } = handle;
    const rogue = await radvd('p1');
    const router = await radvd('p3');
    try {
      await counted('gate1', 'ra_guard', 0);
      await waitFor(() => has(PREFIX.p3), {
        what: 'an address of the router that may',
        timeoutMs: 20_000,
        everyMs: 200,
      });
      await counted('gate1', 'ra_guard', 1);
      expect(await has(PREFIX.p1)).toBe(false);
      await audited('ra_guard', 'gate1');
    } finally {
      await lab.stop(rogue);
      await lab.stop(router);
    }
  });

  test('a DHCP server likewise', async () => {
    const { lab } = handle;
    const serve = async (host: 'p2' | 'p4', net: string) => {
      await lab.exec(host, ['ip', 'address', 'add', `${net}.1/24`, 'dev', 'eth0']);
      const dnsmasq = lab.spawn(host, [
        ...['dnsmasq', '--keep-in-foreground', '--port=0', '--conf-file=/dev/null', '--user=root'],
        ...['--interface=eth0', '--bind-dynamic', '--leasefile-ro', '--no-ping', '--pid-file='],
        `--dhcp-range=${net}.50,${net}.99,255.255.255.0,1h`,
      ]);
      await listening(lab, host, 'udp', 67);
      return dnsmasq;
    };
    const client = async () => {
      const argv = ['busybox', 'udhcpc', '-i', 'pw0', '-n', '-q', '-f', '-t', '3', '-T', '1'];
      const { stdout, stderr } = await lab.exec('alice', [...argv, '-s', UDHCPC], {
        check: false,
        timeoutMs: 20_000,
      });
      return /bound (\S+)\.\d+\//.exec(`${stdout}${stderr}`)?.[1];
    };
    const rogue = await serve('p2', '10.6.1');
    let honest: Awaited<ReturnType<typeof serve>> | undefined;
    try {
      expect(await client()).toBeUndefined();
      await counted('gate1', 'dhcp_guard', 0);
      honest = await serve('p4', '10.6.2');
      expect(await client()).toBe('10.6.2');
      await audited('dhcp_guard', 'gate1');
    } finally {
      await lab.stop(rogue);
      if (honest !== undefined) await lab.stop(honest);
    }
  });
});
