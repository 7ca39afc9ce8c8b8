/**
 * Members behind NAT boxes of their own: they find each other by the addresses that the relay saw,
 * talk through it where that does not help, and go on when one of them or both move.
 */
import { readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { pidsIn } from '../../scripts/laboratory/network.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';
import { inner4, SUBNET } from './helpers/topologies.js';
import { type LabHandle, useLab } from './helpers/use-lab.js';

const RELAY = '203.0.113.1:7901';
const PATH_MS = 20_000;
/** A hello is due every 20 s, and a channel that died shows after as long. */
const ROAM_MS = 60_000;

/** alice and bob behind a box each, carol and the key server with its relay outside. */
function behindNat(symmetric: boolean): TopologyInput {
  const box = (outside: string, home: string, inside: string) => ({
    kind: 'nat' as const,
    masquerade: 'outside',
    symmetric,
    interfaces: [
      { segment: 'wire', name: 'outside', addresses: [`${outside}/24`] },
      { segment: home, name: 'inside', addresses: [`${inside}/25`] },
    ],
  });
  return {
    segments: { wire: {}, 'home-a': {}, 'home-b': {} },
    hosts: {
      server: { interfaces: [{ segment: 'wire', name: 'eth0', addresses: ['203.0.113.1/24'] }] },
      carol: { interfaces: [{ segment: 'wire', name: 'eth0', addresses: ['203.0.113.13/24'] }] },
      'nat-a': box('203.0.113.2', 'home-a', '192.0.2.1'),
      'nat-b': box('203.0.113.3', 'home-b', '192.0.2.129'),
      alice: {
        interfaces: [{ segment: 'home-a', name: 'eth0', addresses: ['192.0.2.11/25'] }],
        routes: [{ to: 'default', via: '192.0.2.1' }],
      },
      bob: {
        interfaces: [{ segment: 'home-b', name: 'eth0', addresses: ['192.0.2.140/25'] }],
        routes: [{ to: 'default', via: '192.0.2.129' }],
      },
    },
    keyServers: {
      [SUBNET]: { host: 'server', listen: '203.0.113.1:7100', init: ['--relay', RELAY] },
    },
    gateways: (['alice', 'bob', 'carol'] as const).map((host) => ({
      host,
      subnet: SUBNET,
      addresses: [`${inner4(host)}/24`],
    })),
  };
}

async function pathTo({ lab }: LabHandle, host: string, peer: string) {
  const found = (await lab.port(host)).peers.find((one) => one.id === peer);
  if (found === undefined) throw new Error(`${host} does not know ${peer}`);
  return found;
}

/** Waits until frames take this kind of path, which needs frames. */
async function untilPath(
  handle: LabHandle,
  host: 'alice' | 'bob' | 'carol',
  peer: 'alice' | 'bob' | 'carol',
  path: 'direct' | 'relay',
  endpoint?: string,
): Promise<void> {
  await waitFor(
    async () => {
      await ping(handle.lab, host, inner4(peer), { waitMs: 300 });
      const now = await pathTo(handle, host, peer);
      return now.path === path && (endpoint === undefined || now.endpoint === endpoint);
    },
    {
      what: `${host} to reach ${peer}: ${path} ${endpoint ?? ''}`,
      timeoutMs: PATH_MS,
      everyMs: 100,
    },
  );
}

describe('both members behind a NAT box', () => {
  const handle = useLab(behindNat(false));

  test('the change from the relay to the direct path loses nothing and doubles nothing', async () => {
    const { lab } = handle;
    const shape = { from: 'alice', to: 'bob', address: inner4('bob'), port: 9_503 };
    const stream = await NumberedStream.start(lab, { ...shape, perSecond: 500, size: 100 });
    const relayed = async () => (await lab.port('alice')).counters.outbound_relayed ?? 0;
    await untilPath(handle, 'alice', 'bob', 'direct');
    const before = await relayed();
    await stream.more(1_000);
    const { lost, missing, repeated } = await stream.stop();
    expect({ lost, missing, repeated }).toEqual({ lost: 0, missing: [], repeated: 0 });
    // Some went each way.
    expect(before).toBeGreaterThan(0);
    expect(await relayed()).toBeLessThan(before + 100);
  });

  test('they talk, directly: the key server tells each the address of the other', async () => {
    const { lab } = handle;
    const first = await ping(lab, 'alice', inner4('bob'), { count: 10, intervalMs: 50 });
    expect(first.received).toBe(10);
    await untilPath(handle, 'alice', 'bob', 'direct');
    await untilPath(handle, 'bob', 'alice', 'direct');
    // The outside of the boxes, which neither host has among its own addresses.
    expect((await pathTo(handle, 'alice', 'bob')).endpoint).toMatch(/^203\.0\.113\.3:/);
    expect((await pathTo(handle, 'bob', 'alice')).endpoint).toMatch(/^203\.0\.113\.2:/);
    // And the relay sees none of it any more.
    const before = (await lab.port('alice')).counters.outbound_relayed;
    expect((await ping(lab, 'alice', inner4('bob'), { count: 20, intervalMs: 20 })).received).toBe(
      20,
    );
    // An answer to a probe that bob sent by the relay may still be under way.
    expect((await lab.port('alice')).counters.outbound_relayed).toBeLessThan((before ?? 0) + 5);
  });

  test('a member outside is reached from behind a box, and the other way round', async () => {
    const { lab } = handle;
    expect((await ping(lab, 'carol', inner4('alice'), { count: 5 })).received).toBe(5);
    expect((await ping(lab, 'bob', inner4('carol'), { count: 5 })).received).toBe(5);
    await untilPath(handle, 'carol', 'alice', 'direct');
  });
});

describe('both members behind a box that gives every flow another port', () => {
  const handle = useLab(behindNat(true));

  test('they talk by the relay, with frames of every size', async () => {
    const { lab } = handle;
    const first = await ping(lab, 'alice', inner4('bob'), { count: 10, intervalMs: 50 });
    expect(first.received).toBe(10);
    await untilPath(handle, 'alice', 'bob', 'relay', RELAY);
    await untilPath(handle, 'bob', 'alice', 'relay', RELAY);
    const { mtu } = await lab.port('alice');
    const large = await ping(lab, 'alice', inner4('bob'), { count: 5, size: mtu - 28 });
    expect(large.received).toBe(5);
  });

  test('fresh boot keys at both ends lose nothing on the way through the relay', async () => {
    const { lab } = handle;
    await untilPath(handle, 'alice', 'bob', 'relay', RELAY);
    const shape = { perSecond: 500, size: 100 };
    const streams = await Promise.all(
      (
        [
          ['alice', 'bob', 9_501],
          ['bob', 'alice', 9_502],
        ] as const
      ).map(([from, to, port]) =>
        NumberedStream.start(lab, { from, to, address: inner4(to), port, ...shape }),
      ),
    );
    for (const host of ['alice', 'bob'] as const) {
      const before = (await lab.port(host)).index;
      await lab.pairwire(host, ['renew', '--dir', lab.gatewayDir(host)]);
      await waitFor(
        async () => {
          const { index } = await lab.port(host);
          return index !== null && index !== before;
        },
        { what: `another index of ${host}`, everyMs: 50 },
      );
    }
    // Longer than anybody keeps the index before, but shorter than the relay does.
    await sleep(20_000);
    await Promise.all(streams.map((stream) => stream.more(500)));
    for (const stream of streams) {
      const { lost, missing, repeated, late } = await stream.stop();
      const found = { lost, missing, repeated, late };
      expect(found, stream.name).toEqual({ lost: 0, missing: [], repeated: 0, late: 0 });
    }
    expect((await pathTo(handle, 'alice', 'bob')).path).toBe('relay');
  }, 90_000);

  test('a relay that was killed is started again, and they go on', async () => {
    const { lab } = handle;
    const pids = await pidsIn(lab.namespace('server'));
    const relay = pids.find((pid) => readlinkSync(`/proc/${pid}/exe`).includes('pairwire-relay'));
    if (relay === undefined) throw new Error('there is no relay');
    process.kill(relay, 'SIGKILL');
    await waitFor(
      async () => (await ping(lab, 'alice', inner4('bob'), { waitMs: 300 })).received === 1,
      { what: 'a ping by the new relay', timeoutMs: PATH_MS, everyMs: 100 },
    );
    expect((await pathTo(handle, 'alice', 'bob')).path).not.toBe('direct');
  });
});

describe('members that move', () => {
  const handle = useLab(behindNat(false));

  /** Gives a NAT box another address outside; flows through the old one are cut. */
  async function moveBox(box: 'nat-a' | 'nat-b', from: string, to: string): Promise<void> {
    const { lab } = handle;
    // The old one first: a second address of its prefix would go with it.
    await lab.exec(box, ['ip', 'address', 'del', `${from}/24`, 'dev', 'outside']);
    await lab.exec(box, ['ip', 'address', 'add', `${to}/24`, 'dev', 'outside']);
  }

  test('one side: the other finds it at its new address', async () => {
    await untilPath(handle, 'alice', 'bob', 'direct');
    await moveBox('nat-a', '203.0.113.2', '203.0.113.22');
    await waitFor(
      async () => {
        await ping(handle.lab, 'alice', inner4('bob'), { waitMs: 300 });
        const { path, endpoint } = await pathTo(handle, 'bob', 'alice');
        return path === 'direct' && endpoint?.startsWith('203.0.113.22:') === true;
      },
      { what: 'bob to reach alice at her new address', timeoutMs: ROAM_MS, everyMs: 100 },
    );
  });

  test('both sides at once: the relay brings them together again', async () => {
    await untilPath(handle, 'alice', 'bob', 'direct');
    await Promise.all([
      moveBox('nat-a', '203.0.113.22', '203.0.113.32'),
      moveBox('nat-b', '203.0.113.3', '203.0.113.33'),
    ]);
    await waitFor(
      async () => {
        await ping(handle.lab, 'alice', inner4('bob'), { waitMs: 300 });
        const there = await pathTo(handle, 'bob', 'alice');
        const back = await pathTo(handle, 'alice', 'bob');
        return (
          there.path === 'direct' &&
          there.endpoint?.startsWith('203.0.113.32:') === true &&
          back.endpoint?.startsWith('203.0.113.33:') === true
        );
      },
      { what: 'both to reach each other', timeoutMs: ROAM_MS, everyMs: 100 },
    );
  });
});
