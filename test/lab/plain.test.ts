/**
 * What must not happen at plain ports: unicast of members on the plain side, loops, a flood that
 * harms members, traffic that ends with one gateway. Three gateways serve one bridge here:
 *
 *   alice, bob, server, gate1, gate2, gate3 on the underlay; gate1, gate2, gate3, p1, p2, p3, p4 on `lan1`
 */
import { readFileSync, readlinkSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, test } from 'vitest';
import { pidsIn } from '../../scripts/laboratory/network.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { askForNobody, linkOf, ping } from './helpers/hosts.js';
import { plain4, plain6, plainTopology } from './helpers/plain.js';
import { SUBNET } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { markersIn } from './helpers/wire.js';

const PROGRAM = fileURLToPath(new URL('./helpers/programs/plain-side.py', import.meta.url));
const MAX_LEARNED = 8_192;
const TAKE_OVER_MS = 8_000;
/** The switch between is shown the new way to alice as soon as the port forwards. */
const RELEARN_MS = 5_000;
/** Of a data plane with all its tables, KiB: far more than an ordinary one, far less than a flood's. */
const MEMORY_KIB = 400_000;

const LAN_GATES = ['gate1', 'gate2', 'gate3'] as const;
type Gate = (typeof LAN_GATES)[number];

/** The topology of the matrix, with everything plain on one segment, and one more gateway there. */
function oneLan(): TopologyInput {
  const topology = plainTopology();
  const model = topology.hosts.gate2;
  const gateways = topology.gateways ?? [];
  const gateway = gateways.find(({ host }) => host === 'gate2');
  if (model === undefined || gateway === undefined) throw new Error('no gate2 to take as a model');
  const renumbered = (addresses: readonly string[]) =>
    addresses.map((one) => one.replace('192.0.2.22', '192.0.2.23'));
  topology.hosts.gate3 = {
    ...model,
    interfaces: (model.interfaces ?? []).map((one) => ({
      ...one,
      ...(one.addresses === undefined ? {} : { addresses: renumbered(one.addresses) }),
    })),
  };
  for (const host of Object.values(topology.hosts)) {
    for (const one of host.interfaces ?? []) {
      if (one.segment === 'lan2') one.segment = 'lan1';
    }
  }
  const { lan2: _, ...segments } = topology.segments;
  return { ...topology, segments, gateways: [...gateways, { ...gateway, host: 'gate3' }] };
}

const handle = useLab(oneLan(), { restarts: true });

async function loopOf(gate: Gate): Promise<string | null | undefined> {
  return (await handle.lab.port(gate)).plain?.loop;
}

/** Waits until one forwards and the others stand by. */
async function elected(forward: Gate, ...standby: readonly Gate[]): Promise<void> {
  await waitFor(
    async () => {
      const states = await Promise.all([forward, ...standby].map(loopOf));
      return states.every((state, at) => state === (at === 0 ? 'forward' : 'standby'));
    },
    { what: `${forward} to forward and ${standby} not to`, timeoutMs: 15_000, everyMs: 100 },
  );
}

/** 16 bytes for `ping -p`, repeated in its payload. */
function marker(text: string): { pattern: string; bytes: Buffer } {
  const bytes = Buffer.from(text.padEnd(16, '.').slice(0, 16));
  return { pattern: bytes.toString('hex'), bytes };
}

async function dataPlaneOf(gate: Gate): Promise<number> {
  const pids = await pidsIn(handle.lab.namespace(gate));
  const found = pids.find((pid) => readlinkSync(`/proc/${pid}/exe`).includes('pairwire-dataplane'));
  if (found === undefined) throw new Error(`${gate} has no data plane`);
  return found;
}

beforeAll(() => elected('gate1', 'gate2', 'gate3'));

describe('three plain gateways on one bridge', () => {
  test('one forwards, so a broadcast crosses once each way and comes round to nobody', async () => {
    const { lab } = handle;
    for (const [from, inside, to, there] of [
      ['p1', 'eth0', 'alice', 'pw0'],
      ['alice', 'pw0', 'p1', 'eth0'],
    ] as const) {
      const { address } = await linkOf(lab, from, inside);
      const filter = `arp and ether src ${address} and ether broadcast`;
      const seen = await lab.capture(to, { interface: there, filter });
      const back = await lab.capture(from, { interface: inside, filter });
      await askForNobody(lab, from, inside, 3);
      const sent = (await back.stop()).length;
      expect(sent).toBeGreaterThan(0);
      expect((await seen.stop()).length, `${from} to ${to}`).toBe(sent);
    }
    for (const gate of ['gate2', 'gate3'] as const) {
      const { drops } = await lab.port(gate);
      expect(drops.plain_standby, gate).toBeGreaterThan(0);
    }
  });

  test('machines and members talk by it', async () => {
    const { lab } = handle;
    for (const address of [plain4('alice'), plain6('alice')]) {
      expect(await ping(lab, 'p1', address, { count: 3 })).toMatchObject({ received: 3 });
    }
    expect(await ping(lab, 'bob', plain4('p4'), { count: 3 })).toMatchObject({ received: 3 });
  });
});

describe('the plain side', () => {
  test('sees what is for machines on it, and no unicast of members, also to one that is gone', async () => {
    const { lab } = handle;
    const inside = marker('members only');
    const gone = marker('for who is gone');
    const outside = marker('for a machine');
    await ping(lab, 'alice', plain4('bob'));
    const { address } = await linkOf(lab, 'bob', 'pw0');
    const capture = await lab.capture('lan1');
    await ping(lab, 'alice', plain4('bob'), { count: 5, pattern: inside.pattern });
    await ping(lab, 'alice', plain4('p1'), { count: 2, pattern: outside.pattern });

    await lab.downGateway('bob');
    const neighbour = ['ip', 'neigh', 'replace', plain4('bob'), 'lladdr', address, 'dev', 'pw0'];
    await lab.exec('alice', neighbour);
    const lost = await ping(lab, 'alice', plain4('bob'), {
      count: 5,
      waitMs: 500,
      pattern: gone.pattern,
    });
    expect(lost.received).toBe(0);
    const packets = await capture.stop();
    expect(
      markersIn(packets, { inside: inside.bytes, gone: gone.bytes, outside: outside.bytes }),
    ).toEqual(['outside']);

    await lab.stopGateway('bob');
    await lab.startGateway('bob');
    await lab.exec('alice', ['ip', 'neigh', 'del', plain4('bob'), 'dev', 'pw0'], { check: false });
    await waitFor(async () => (await ping(lab, 'alice', plain4('bob'))).received === 1, {
      what: 'bob to be back',
      timeoutMs: 20_000,
    });
  });
});

describe('what happens to the one that forwards', () => {
  test('when the one that forwards is killed the next takes over, and gives back', async () => {
    const { lab } = handle;
    const { restarts } = (await lab.status('gate1')).dataPlane;
    process.kill(await dataPlaneOf('gate1'), 'SIGKILL');
    // It is started again at once, and listens before it forwards.
    await waitFor(async () => (await lab.status('gate1')).dataPlane.restarts > restarts, {
      what: 'the data plane of gate1 to be started again',
    });
    await elected('gate1', 'gate2', 'gate3');
    expect((await ping(lab, 'p1', plain4('alice'), { count: 3 })).received).toBe(3);

    for (const [ends, next] of [
      ['gate1', 'gate2'],
      ['gate2', 'gate3'],
    ] as const) {
      await lab.downGateway(ends);
      await waitFor(async () => (await loopOf(next)) === 'forward', {
        what: `${next} to take over`,
        timeoutMs: TAKE_OVER_MS,
        everyMs: 100,
      });
      await waitFor(async () => (await ping(lab, 'p1', plain4('alice'))).received === 1, {
        what: `p1 to reach alice by ${next}`,
        timeoutMs: RELEARN_MS,
      });
    }
    const links = await lab.exec('gate1', ['ip', '-br', 'link']);
    expect(links.stdout).not.toMatch(/\b(pw0|br0)\b/);

    for (const gate of ['gate2', 'gate1'] as const) {
      await lab.stopGateway(gate);
      await lab.startGateway(gate);
    }
    await elected('gate1', 'gate2', 'gate3');
    await waitFor(async () => (await ping(lab, 'p1', plain4('alice'))).received === 1, {
      what: 'p1 to reach alice by gate1 again',
      timeoutMs: RELEARN_MS,
    });
  });

  test('with 100,000 made-up sources on the plain side members and known machines go on', async () => {
    const { lab } = handle;
    await ping(lab, 'p1', plain4('alice'));
    const flood = lab.exec('p2', [PROGRAM, 'flood', 'eth0', '100000'], { timeoutMs: 60_000 });
    const [members, machine] = await Promise.all([
      ping(lab, 'alice', plain4('bob'), { count: 20, intervalMs: 200 }),
      ping(lab, 'p1', plain4('alice'), { count: 20, intervalMs: 200 }),
    ]);
    await flood;
    expect(members.received).toBe(20);
    // What goes by the bridge itself may be lost there.
    expect(machine.received).toBeGreaterThanOrEqual(15);
    const { plain, counters } = await lab.port('gate1');
    expect(plain?.learned).toBeLessThanOrEqual(MAX_LEARNED);
    expect(counters.learn_full).toBeGreaterThan(0);
    const status = readFileSync(`/proc/${await dataPlaneOf('gate1')}/status`, 'latin1');
    expect(Number(/VmRSS:\s+(\d+)/.exec(status)?.[1])).toBeLessThan(MEMORY_KIB);
    expect((await ping(lab, 'p1', plain4('alice'))).received).toBe(1);
  });

  test('of what is for a member that was revoked the plain side sees nothing', async () => {
    const { lab } = handle;
    const { address } = await linkOf(lab, 'bob', 'pw0');
    expect((await ping(lab, 'alice', plain4('bob'))).received).toBe(1);
    const { host } = lab.keyServer(SUBNET);
    await lab.pairwire(host, ['revoke', 'bob', '--dir', lab.serverDir(SUBNET)]);
    // Also not while nobody remembers whose the address was.
    const neighbour = ['ip', 'neigh', 'replace', plain4('bob'), 'lladdr', address, 'dev', 'pw0'];
    await lab.exec('alice', neighbour);
    const revoked = marker('for the revoked');
    const outside = marker('for a machine');
    const capture = await lab.capture('lan1');
    await ping(lab, 'alice', plain4('p1'), { count: 2, pattern: outside.pattern });
    const shape = { count: 5, waitMs: 500, pattern: revoked.pattern };
    expect((await ping(lab, 'alice', plain4('bob'), shape)).received).toBe(0);
    await lab.downGateway('alice');
    await lab.stopGateway('alice');
    await lab.startGateway('alice');
    await waitFor(async () => (await ping(lab, 'alice', plain4('p1'))).received === 1, {
      what: 'alice to be back',
      timeoutMs: 20_000,
    });
    await lab.exec('alice', neighbour);
    expect((await ping(lab, 'alice', plain4('bob'), shape)).received).toBe(0);
    const packets = await capture.stop();
    expect(markersIn(packets, { revoked: revoked.bytes, outside: outside.bytes })).toEqual([
      'outside',
    ]);
  });

  test('a port that hears itself is blocked', async () => {
    const { lab } = handle;
    await lab.exec('p3', [PROGRAM, 'reflect', 'eth0', 'gate1']);
    await waitFor(async () => (await loopOf('gate1')) === 'blocked', {
      what: 'gate1 to be blocked',
    });
  });
});
