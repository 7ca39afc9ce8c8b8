/**
 * The documents' own rule for a missing key (document 002; `hold: 0`): a frame without a key is
 * lost, the key is asked for, and the sender repeats. Without IPv6 and with neighbours known beforehand
 * nothing but the test's own frames is on the wire:
 *
 *   1st ping  alice has no key for MAC_bob    lost at alice   alice asks (alice, MAC_bob)
 *   2nd ping  bob has no key of this sender   lost at bob     bob asks (bob, alice's index)
 *   3rd ping  both have it                    answered
 *
 * and the same for the group key.
 */
import { beforeAll, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { parseId } from '../../src/protocol/ids.js';
import { BROADCAST_MAC, defaultMac, type MacAddress } from '../../src/protocol/mac.js';
import { dropsOf, growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { type KeyRequest, keyRequests } from './helpers/key-requests.js';
import { inner4, MEMBERS, type Member, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

const handle = useLab(threeHosts({ hold: 0, ipv6: false }));
const mac = (id: Member): MacAddress => defaultMac(SUBNET, parseId(id));
/** Long enough for a request to the key server, far shorter than anything else that would answer. */
const LOST_MS = 500;

beforeAll(async () => {
  const { lab } = handle;
  for (const host of MEMBERS) {
    for (const other of MEMBERS) {
      if (other === host) continue;
      const neighbour = ['ip', 'neighbour', 'replace', inner4(other), 'lladdr', mac(other)];
      await lab.exec(host, [...neighbour, 'dev', 'pw0', 'nud', 'permanent']);
    }
  }
});

/** Drops at each of the three during an action, and what the key server was asked. */
async function during(action: () => Promise<unknown>): Promise<{
  drops: Record<Member, Readonly<Record<string, number>>>;
  requests: KeyRequest[];
}> {
  const { lab } = handle;
  const all = () => Promise.all(MEMBERS.map((host) => dropsOf(lab, host)));
  const [before, asked] = [await all(), (await keyRequests(lab)).length];
  await action();
  const after = await all();
  const [alice, bob, carol] = MEMBERS.map((_, at) => growth(before[at] ?? {}, after[at] ?? {}));
  return {
    drops: { alice: alice ?? {}, bob: bob ?? {}, carol: carol ?? {} },
    requests: (await keyRequests(lab)).slice(asked),
  };
}

async function indexOf(host: Member): Promise<number> {
  const { index } = await handle.lab.port(host);
  if (index === null) throw new Error(`${host} has no index`);
  return index;
}

test('the key server has made the group key before anybody asks, and nobody has asked', async () => {
  const { lab } = handle;
  const { stdout } = await lab.pairwire('server', [
    'keys',
    '--json',
    '--dir',
    lab.serverDir(SUBNET),
  ]);
  expect(JSON.parse(stdout)).toEqual([expect.objectContaining({ kind: 'group', reason: 'init' })]);
  expect(await keyRequests(lab)).toEqual([]);
});

test('the first ping is lost at the sender, which asks (ID_1, MAC_2)', async () => {
  const { drops, requests } = await during(async () => {
    const { received } = await ping(handle.lab, 'alice', inner4('bob'), { waitMs: LOST_MS });
    expect(received).toBe(0);
  });
  expect(drops).toEqual({ alice: { hold_off: 1 }, bob: {}, carol: {} });
  expect(requests).toEqual([{ requester: 'alice', mac: mac('bob') }]);
});

test('the second is lost at the receiver, which asks (ID_2, index of ID_1)', async () => {
  const { drops, requests } = await during(async () => {
    const { received } = await ping(handle.lab, 'alice', inner4('bob'), { waitMs: LOST_MS });
    expect(received).toBe(0);
  });
  expect(drops).toEqual({ alice: {}, bob: { unknown_kid: 1 }, carol: {} });
  const index = await indexOf('alice');
  expect(requests).toEqual([{ requester: 'bob', index, kid: expect.any(Number) }]);
});

test('the third is answered, and so is every other one, with no further request', async () => {
  const { drops, requests } = await during(async () => {
    const third = await ping(handle.lab, 'alice', inner4('bob'));
    expect(third.received).toBe(1);
    const back = await ping(handle.lab, 'bob', inner4('alice'), { count: 10, intervalMs: 20 });
    expect(back.received).toBe(10);
  });
  expect(drops).toEqual({ alice: {}, bob: {}, carol: {} });
  expect(requests).toEqual([]);
});

test('a broadcast without a group key is lost at the sender, then at the receivers, then arrives', async () => {
  const { lab } = handle;
  const shout = (text: string) =>
    lab.exec('alice', ['socat', '-u', '-', 'UDP4-DATAGRAM:198.51.100.255:9,broadcast'], {
      input: text,
    });
  const taps = await Promise.all(
    (['bob', 'carol'] as const).map((host) => lab.capture(host, { interface: 'pw0' })),
  );
  const askedBy = async (...members: Member[]) => {
    const requests = await keyRequests(lab);
    return members.every((member) => requests.some((one) => one.requester === member));
  };

  const first = await during(async () => {
    await shout('first');
    const asked = async () =>
      (await keyRequests(lab)).some(
        (one) => one.requester === 'alice' && one.mac === BROADCAST_MAC,
      );
    await waitFor(asked, { what: 'alice to ask for the group key' });
    await waitFor(async () => (await lab.port('alice')).group.pwId !== null, {
      what: 'alice to have the group key',
    });
  });
  expect(first.drops).toEqual({ alice: { hold_off: 1 }, bob: {}, carol: {} });
  expect(first.requests).toEqual([{ requester: 'alice', mac: BROADCAST_MAC }]);

  const second = await during(async () => {
    await shout('second');
    await waitFor(() => askedBy('bob', 'carol'), { what: 'the receivers to ask' });
    for (const host of ['bob', 'carol'] as const) {
      await waitFor(async () => (await lab.port(host)).group.pwId !== null, {
        what: `${host} to have the group key`,
      });
    }
  });
  expect(second.drops).toEqual({ alice: {}, bob: { unknown_kid: 1 }, carol: { unknown_kid: 1 } });
  const index = await indexOf('alice');
  expect(new Set(second.requests.map((one) => one.requester))).toEqual(new Set(['bob', 'carol']));
  for (const one of second.requests) expect(one.index).toBe(index);

  await shout('third');
  for (const tap of taps) {
    await tap.waitForPacket((packet) => packet.bytes.includes('third'), 'the third broadcast');
    const texts = (await tap.stop()).map((packet) => packet.bytes);
    expect(texts.some((bytes) => bytes.includes('first') || bytes.includes('second'))).toBe(false);
  }
});
