/**
 * Machines without keys take part: everybody speaks to everybody, as on one wire, and what the key
 * server knows of it is right.
 */
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Capture } from '../../scripts/laboratory/capture.js';
import type { Lab } from '../../scripts/laboratory/lab.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { BROADCAST_MAC, macSchema } from '../../src/protocol/mac.js';
import { dropsOf, growth } from './helpers/drops.js';
import { linkOf, listening, ping } from './helpers/hosts.js';
import {
  EVERYBODY,
  GATES,
  insideOf,
  LAN,
  MACHINES,
  macOf,
  PLAIN_MEMBERS,
  plain4,
  plain6,
  plainTopology,
  type Station,
  sendRaw,
  textFrame,
} from './helpers/plain.js';
import { SUBNET } from './helpers/topologies.js';
import { randomFile, sendFile } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';

const MiB = 1 << 20;
const UDHCPC = fileURLToPath(new URL('./helpers/programs/udhcpc.sh', import.meta.url));

// DHCP servers stand behind gate1 and at alice.
const handle = useLab(
  plainTopology({ token: { gate1: ['--grant', 'dhcp'], alice: ['--grant', 'dhcp'] } }),
);

interface MacRow {
  readonly mac: string;
  readonly vlan: number | null;
  readonly member: string;
  readonly kind: string;
}

/** `pairwire macs` or `audit`, as rows. */
async function list<T>(lab: Lab, what: 'macs' | 'audit'): Promise<T[]> {
  const { host } = lab.keyServer(SUBNET);
  const { stdout } = await lab.pairwire(host, [what, '--dir', lab.serverDir(SUBNET), '--json']);
  return JSON.parse(stdout) as T[];
}

/** Where the key server says that an address is. */
async function placeOf(lab: Lab, mac: string, vlan = 0): Promise<string | undefined> {
  const rows = await list<MacRow>(lab, 'macs');
  return rows.find((row) => row.mac === mac && row.vlan === vlan)?.member;
}

const pairs = EVERYBODY.flatMap((from) =>
  EVERYBODY.filter((to) => to !== from).map((to) => [from, to] as const),
);

/** Forgets what a station knows of its neighbours. */
async function forget(lab: Lab, station: Station): Promise<void> {
  await lab.exec(station, ['ip', 'neigh', 'flush', 'dev', insideOf(station)]);
}

/** What every port dropped since it began, for who looks into a ping that was lost. */
async function allDrops(lab: Lab): Promise<string> {
  const hosts = [...PLAIN_MEMBERS, ...GATES];
  const drops = await Promise.all(
    hosts.map(async (host) => [host, growth({}, await dropsOf(lab, host))]),
  );
  return JSON.stringify(Object.fromEntries(drops));
}

/** A plain port listens before it takes or emits anything. */
beforeAll(async () => {
  for (const gate of GATES) {
    await waitFor(async () => (await handle.lab.port(gate)).plain?.loop === 'forward', {
      what: `${gate} to forward`,
      timeoutMs: 10_000,
    });
  }
});

describe('members and machines outside', () => {
  test('the plain ports are up, in their bridges, and forward', async () => {
    const { lab } = handle;
    for (const gate of GATES) {
      const port = await lab.port(gate);
      expect(port).toMatchObject({ kind: 'plain', mtu: 1_500, plain: { bridge: 'br0' } });
      const { stdout } = await lab.exec(gate, ['ip', '-json', 'link', 'show', 'master', 'br0']);
      const names = (JSON.parse(stdout) as { ifname: string }[]).map(({ ifname }) => ifname);
      expect(names.sort()).toEqual(['lan0', 'pw0']);
    }
  });

  test('the very first frame of a machine arrives, and so does the first to it', async () => {
    const { lab } = handle;
    expect(await ping(lab, 'p1', plain4('alice'))).toMatchObject({ sent: 1, received: 1 });
    expect(await ping(lab, 'bob', plain4('p3'))).toMatchObject({ sent: 1, received: 1 });
  });

  test.each(pairs)('%s reaches %s: IPv4, IPv6, full frames', async (from, to) => {
    const { lab } = handle;
    for (const address of [plain4(to), plain6(to)]) {
      const result = await ping(lab, from, address, { count: 3, intervalMs: 20 });
      const about = result.received === 3 ? address : `${address}; drops ${await allDrops(lab)}`;
      expect(result, about).toMatchObject({ sent: 3, received: 3 });
    }
    const { mtu } = await linkOf(lab, from, insideOf(from));
    const size = mtu - 28;
    const full = await ping(lab, from, plain4(to), { count: 2, intervalMs: 20, size });
    expect(full, `${size} bytes`).toMatchObject({ sent: 2, received: 2 });
  });

  test('broadcast reaches everybody', async () => {
    const { lab } = handle;
    for (const from of ['alice', 'p1', 'p3'] as const) {
      for (const to of EVERYBODY) {
        if (to === from) continue;
        await forget(lab, from);
        // Broadcast, and the answer as unicast.
        const argv = ['arping', '-I', insideOf(from), '-c', '1', '-w', '3', plain4(to)];
        const { stdout } = await lab.exec(from, argv, { check: false });
        const { address } = await linkOf(lab, to, insideOf(to));
        expect(stdout.toLowerCase(), `${from} asks for ${to}`).toContain(address);
      }
    }
  });

  test.each([
    ['alice', 'p2'],
    ['p2', 'bob'],
    ['p1', 'p4'],
  ] as const)('TCP from %s to %s carries what was sent', async (from, to) => {
    const { lab } = handle;
    const file = await randomFile(4 * MiB);
    try {
      const way = { from, to, address: plain4(to) };
      expect(await sendFile(lab, way, file, 5_301)).toBe(file.sha256);
    } finally {
      file.remove();
    }
  });

  test('machines behind two ports send segments that need not be cut on the way', async () => {
    const { lab } = handle;
    const counted = async (name: string) => {
      const ports = await Promise.all(GATES.map((gate) => lab.port(gate)));
      return ports.map(({ counters }) => counters[name] ?? 0);
    };
    const cut = await counted('frames_cut');
    const clamped = await counted('mss_clamped');
    const file = await randomFile(MiB);
    try {
      for (const address of [plain4('p3'), plain6('p3')]) {
        const way = { from: 'p2', to: 'p3', address };
        expect(await sendFile(lab, way, file, 5_302)).toBe(file.sha256);
      }
    } finally {
      file.remove();
    }
    expect(await counted('frames_cut')).toEqual(cut);
    // The question at one gateway, the answer at the other, for both versions of IP.
    expect(await counted('mss_clamped')).toEqual(clamped.map((one) => one + 2));
  });

  test('the key server knows which gateway each machine is behind', async () => {
    const { lab } = handle;
    for (const machine of MACHINES) {
      const gate = LAN[machine] === 'lan1' ? 'gate1' : 'gate2';
      await waitFor(async () => (await placeOf(lab, macOf(machine))) === gate, {
        what: `${machine} behind ${gate}`,
        timeoutMs: 5_000,
      });
    }
    const own = (await list<MacRow>(lab, 'macs')).filter(({ kind }) => kind === 'own');
    expect(own.map(({ member }) => member).sort()).toEqual(['alice', 'bob', 'gate1', 'gate2']);
  });

  test.each([
    ['p2', 'alice', 'p3'],
    ['alice', 'p1', 'p4'],
  ] as const)('a DHCP server at %s serves %s and %s', async (server, ...clients) => {
    const { lab } = handle;
    const range = server === 'alice' ? 2 : 1;
    const at = insideOf(server);
    await lab.exec(server, ['ip', 'address', 'add', `10.5.${range}.1/24`, 'dev', at]);
    const dnsmasq = lab.spawn(server, [
      ...['dnsmasq', '--keep-in-foreground', '--port=0', '--conf-file=/dev/null', '--user=root'],
      ...[`--interface=${at}`, '--bind-dynamic', '--leasefile-ro', '--pid-file='],
      `--dhcp-range=10.5.${range}.50,10.5.${range}.99,255.255.255.0,1h`,
    ]);
    try {
      await listening(lab, server, 'udp', 67);
      for (const client of clients) {
        const argv = ['busybox', 'udhcpc', '-i', insideOf(client), '-n', '-q', '-f'];
        const { stdout, stderr } = await lab.exec(
          client,
          [...argv, '-t', '5', '-T', '1', '-s', UDHCPC],
          { timeoutMs: 20_000 },
        );
        expect(`${stdout}${stderr}`, client).toContain(`bound 10.5.${range}.`);
      }
    } finally {
      await lab.stop(dnsmasq);
    }
  });

  test('doctor says what is wrong with the bridge of a plain port, and nothing while nothing is', async () => {
    const { lab } = handle;
    const look = async () => {
      const argv = ['doctor', '--dir', lab.gatewayDir('gate1'), '--json'];
      const { stdout } = await lab.pairwire('gate1', argv, { check: false, timeoutMs: 60_000 });
      const { findings } = JSON.parse(stdout) as {
        findings: { check: string; state: string; message: string }[];
      };
      return findings.filter(({ check }) => check === 'bridge');
    };
    expect(await look()).toMatchObject([{ state: 'ok', message: 'br0 with lan0' }]);
    await lab.exec('gate1', ['ip', 'link', 'set', 'lan0', 'nomaster']);
    expect(await look()).toMatchObject([{ state: 'fail', message: 'lan0 is not in br0' }]);
    await lab.exec('gate1', ['ip', 'link', 'set', 'lan0', 'master', 'br0']);
  });

  test('the same address in two VLANs and in none is three machines', async () => {
    const { lab } = handle;
    const mac = macSchema.parse('0a:00:00:00:07:07');
    const alice = macSchema.parse((await linkOf(lab, 'alice', 'pw0')).address);
    // Unicast: a bridge that does not look at VLANs must not see the address on both sides.
    await sendRaw(lab, 'p2', textFrame(alice, mac, 7, 'here in 7'));
    await sendRaw(lab, 'p3', textFrame(alice, mac, 8, 'here in 8'));
    for (const [vlan, gate] of [
      [7, 'gate1'],
      [8, 'gate2'],
    ] as const) {
      await waitFor(async () => (await placeOf(lab, mac, vlan)) === gate, {
        what: `VLAN ${vlan} behind ${gate}`,
        timeoutMs: 5_000,
      });
    }
    expect(await placeOf(lab, mac, 0)).toBeUndefined();
    const filter = `ether dst ${mac}`;
    const at = {
      p2: await lab.capture('p2', { filter }),
      p3: await lab.capture('p3', { filter }),
    };
    for (const vlan of [7, 8]) {
      const frames = [1, 2, 3].map((n) => textFrame(mac, alice, vlan, `alice in ${vlan}, ${n};`));
      await sendRaw(lab, 'alice', ...frames);
    }
    const texts = async (capture: Capture, vlan: number) => {
      await waitFor(() => capture.packets().length >= 3, {
        what: `frames in VLAN ${vlan}`,
        timeoutMs: 5_000,
      }).catch(() => undefined);
      return (await capture.stop()).map(
        ({ bytes }) => /alice in \d, \d/.exec(bytes.toString())?.[0],
      );
    };
    expect(await texts(at.p2, 7)).toEqual([1, 2, 3].map((n) => `alice in 7, ${n}`));
    expect(await texts(at.p3, 8)).toEqual([1, 2, 3].map((n) => `alice in 8, ${n}`));
  });

  test('an address that the operator has pinned stays behind its port until it is freed', async () => {
    const { lab } = handle;
    const mac = macSchema.parse('0a:00:00:00:00:55');
    const { host } = lab.keyServer(SUBNET);
    const dir = lab.serverDir(SUBNET);
    await lab.pairwire(host, ['mac', 'pin', '--dir', dir, '0', mac, 'gate1']);
    // Its own gateway has been told, and takes nothing from there.
    await waitFor(
      async () => {
        await sendRaw(lab, 'p4', textFrame(BROADCAST_MAC, mac, 0, 'p4 has the router'));
        return ((await lab.port('gate2')).drops.pinned_elsewhere ?? 0) > 0;
      },
      { what: 'the frame to be dropped', timeoutMs: 5_000, everyMs: 100 },
    );
    const rows = await list<MacRow>(lab, 'macs');
    expect(rows.find((row) => row.mac === mac)).toMatchObject({ kind: 'pinned', member: 'gate1' });
    const freed = await lab.pairwire(host, ['mac', 'free', '--dir', dir, mac, '--json']);
    expect(JSON.parse(freed.stdout)).toMatchObject({ tombstones: 0, pins: 1 });
  });

  test('a machine that moves to the other bridge is found within a second of its first frame, and back', async () => {
    const { lab } = handle;
    const mac = macSchema.parse('0a:00:00:00:00:77');
    /** The machine at another switch: an interface with its addresses, and nobody with them at the old one. */
    const put = async (host: 'p2' | 'p4') => {
      await lab.exec(host, ['ip', 'link', 'set', 'dev', 'eth0', 'address', mac]);
      await lab.exec(host, ['ip', 'address', 'add', '10.9.0.2/24', 'dev', 'eth0']);
    };
    const take = async (host: 'p2' | 'p4') => {
      await lab.exec(host, ['ip', 'address', 'delete', '10.9.0.2/24', 'dev', 'eth0']);
      await lab.exec(host, ['ip', 'link', 'set', 'dev', 'eth0', 'address', macOf(host)]);
    };
    await lab.exec('alice', ['ip', 'address', 'add', '10.9.0.1/24', 'dev', 'pw0']);
    // Alice knows its MAC address all the time, so she sends unicast and asks nobody.
    await lab.exec('alice', ['ip', 'neigh', 'replace', '10.9.0.2', 'lladdr', mac, 'dev', 'pw0']);
    let before: 'p2' | 'p4' | undefined;
    for (const host of ['p2', 'p4', 'p2'] as const) {
      if (before !== undefined) {
        // Nobody pulls a cable and plugs it in again faster: a port tells of an address twice a second at most.
        await setTimeout(600);
        await take(before);
      }
      await put(host);
      before = host;
      await sendRaw(lab, host, textFrame(BROADCAST_MAC, mac, 0, `I am at ${host}`));
      const began = performance.now();
      await waitFor(
        async () => (await ping(lab, 'alice', '10.9.0.2', { waitMs: 100 })).received > 0,
        { what: `alice to reach it at ${host}`, timeoutMs: 5_000, everyMs: 20 },
      ).catch(async (error: unknown) => {
        const drops = async (one: string) => (await lab.port(one)).drops;
        const neighbours = async (one: string) =>
          (await lab.exec(one, ['ip', 'neigh', 'show', 'to', '10.9.0.0/24'])).stdout;
        const seen = {
          place: await placeOf(lab, mac),
          drops: { alice: await drops('alice'), gate1: await drops('gate1') },
          neighbours: [await neighbours('alice'), await neighbours(host)],
        };
        throw new Error(`${String(error)}; ${JSON.stringify(seen)}`);
      });
      expect(performance.now() - began, host).toBeLessThan(1_000);
    }
    expect(await placeOf(lab, mac)).toBe('gate1');
    await take('p2');
  });

  test('a machine that pretends to be a member gets nothing through, and the attempt is in the audit log', async () => {
    const { lab } = handle;
    const [alice, bob] = await Promise.all(
      (['alice', 'bob'] as const).map(async (member) =>
        macSchema.parse((await linkOf(lab, member, 'pw0')).address),
      ),
    );
    if (alice === undefined || bob === undefined) throw new Error('no addresses');
    const capture = await lab.capture('bob', { interface: 'pw0' });
    await sendRaw(
      lab,
      'p1',
      ...[bob, BROADCAST_MAC].map((to) => textFrame(to, alice, 0, 'p1 pretends to be alice')),
      textFrame(bob, macOf('p1'), 0, 'p1 as itself'),
    );
    await capture.waitForPacket(({ bytes }) => bytes.includes('p1 as itself'), 'the honest frame');
    expect((await lab.port('gate1')).drops.plain_spoof ?? 0).toBeGreaterThanOrEqual(2);
    await waitFor(
      async () =>
        (
          await list<{ action: string; actor: string; detail: { mac?: string } }>(lab, 'audit')
        ).some(
          ({ action, actor, detail }) =>
            action === 'learned_own' && actor === 'gate1' && detail.mac === alice,
        ),
      { what: 'the entry in the audit log', timeoutMs: 5_000 },
    );
    const heard = (await capture.stop()).filter(({ bytes }) => bytes.includes('p1 pretends'));
    expect(heard).toEqual([]);
    // And alice is where she was.
    expect(await ping(lab, 'p1', plain4('alice'))).toMatchObject({ received: 1 });
  });
});
