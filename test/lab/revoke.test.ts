/**
 * `pairwire revoke` while there is traffic: the member is out at every holder, also at one that was away, and
 * also if it keeps its keys and its client does what it likes.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { parseId } from '../../src/protocol/ids.js';
import type { TrafficKey } from '../../src/protocol/kdf.js';
import { BROADCAST_MAC, defaultMac } from '../../src/protocol/mac.js';
import { dropsOf, growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { type KnownPeer, ModifiedMember } from './helpers/modified-member.js';
import { keepFrom } from './helpers/muted.js';
import { echoRequest, ethernet } from './helpers/packets.js';
import { DATA_PORT, inner4, type Member, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

const handle = useLab(threeHosts({ offload: 'wire' }));
const MALLORY_IP = '198.51.100.66';
const MALLORY_OUTER = '192.0.2.66';
const MARKER = 'marker-of-the-revoked';
const LOAD = { perSecond: 300, size: 100 } as const;

function mac(id: string) {
  return defaultMac(SUBNET, parseId(id));
}

async function revoke(id: string): Promise<void> {
  const { lab } = handle;
  await lab.pairwire('server', ['revoke', id, '--dir', lab.serverDir(SUBNET)]);
}

async function peersOf(host: Member): Promise<(string | null)[]> {
  return (await handle.lab.port(host)).peers.map(({ id }) => id);
}

/** How many more frames a host refused because it knows neither sender nor key. */
async function refusedSince(host: Member, before: Readonly<Record<string, number>>) {
  const grown = growth(before, await dropsOf(handle.lab, host));
  return (grown.unknown_index ?? 0) + (grown.unknown_kid ?? 0) + (grown.stale_kid ?? 0);
}

describe('a member with a modified client that is revoked', () => {
  let mallory: ModifiedMember;
  let bob: KnownPeer;
  let asMallory: TrafficKey;
  let asAlice: { readonly key: TrafficKey; readonly index: number };
  let own: TrafficKey;

  const shout = (key: TrafficKey, from: string, text: string, more: object = {}) => {
    const frame = ethernet(BROADCAST_MAC, mac(from), 0x88b6, Buffer.from(text));
    mallory.port.send('bob', mallory.seal(key, frame, { kind: FrameKind.group, ...more }));
  };
  const say = () => {
    const frame = echoRequest({
      from: mallory.mac,
      to: mac('bob'),
      fromIp: MALLORY_IP,
      toIp: inner4('bob'),
      marker: MARKER,
    });
    mallory.port.send('bob', mallory.seal(asMallory, frame));
  };

  beforeAll(async () => {
    const { lab } = handle;
    const place = { host: 'mallory', address: MALLORY_OUTER, port: DATA_PORT };
    mallory = await ModifiedMember.join(lab, place, SUBNET, 'mallory');
    bob = await mallory.pairWith('bob');
    asMallory = mallory.trafficKeys(bob).to;
    const group = await mallory.group();
    own = mallory.groupTraffic(group);
    const alice = await mallory.pairWith('alice');
    asAlice = { key: mallory.groupTraffic(group, alice), index: alice.index };
    await ping(lab, 'alice', inner4('bob'), { count: 3 });
  });
  afterAll(() => mallory?.leave());

  test('is heard before; afterwards nothing of it is: pair key, group key, or as another (C6)', async () => {
    const { lab } = handle;
    const tap = await lab.capture('bob', { interface: 'pw0' });
    const seen = (text: string) => tap.packets().filter(({ bytes }) => bytes.includes(text)).length;
    let counter = 1_000_000n;
    // All three are heard as long as it is a member: so what is not heard later is the revocation's doing.
    await waitFor(
      () => {
        counter += 1n;
        say();
        shout(own, 'mallory', 'as itself');
        shout(asAlice.key, 'alice', 'as another', { index: asAlice.index, counter });
        return seen(MARKER) > 0 && seen('as itself') > 0 && seen('as another') > 0;
      },
      { what: 'all three kinds of frames at bob', everyMs: 100 },
    );
    const stream = await NumberedStream.start(lab, {
      from: 'alice',
      to: 'bob',
      address: inner4('bob'),
      port: 7501,
      ...LOAD,
    });

    const begin = performance.now();
    await revoke('mallory');
    await waitFor(async () => !(await peersOf('bob')).includes('mallory'), {
      what: 'bob to forget mallory',
      everyMs: 20,
    });
    const took = performance.now() - begin;
    console.log(
      `revoked and forgotten by bob after ${took.toFixed(0)} ms, with the command's start`,
    );
    const settled = async () => {
      const marks = [seen(MARKER), seen('as itself'), seen('as another')];
      await stream.more(60);
      return marks;
    };
    const heard = await settled();
    const before = await dropsOf(lab, 'bob');
    for (let round = 0; round < 20; round += 1) {
      counter += 1n;
      say();
      shout(own, 'mallory', 'as itself');
      shout(asAlice.key, 'alice', 'as another', { index: asAlice.index, counter });
    }
    await waitFor(async () => (await refusedSince('bob', before)) >= 60, {
      what: '60 refusals at bob',
    });
    expect(await settled()).toEqual(heard);
    await tap.stop();
    // The others have noticed nothing.
    const { lost, repeated } = await stream.stop();
    expect({ lost, repeated }).toEqual({ lost: 0, repeated: 0 });
  });

  test('gets nothing from the key server any more, by its old channel or a new one', async () => {
    await waitFor(() => mallory.client.state.kind === 'down', { what: 'the end of its channel' });
    const asked = mallory.askKey(mac('alice')).then(
      () => 'answered',
      () => 'refused',
    );
    expect(await asked).toBe('refused');
    const { lab } = handle;
    const audit = await lab.pairwire('server', ['audit', '--json', '--dir', lab.serverDir(SUBNET)]);
    expect(
      z.array(z.looseObject({ action: z.string() })).parse(JSON.parse(audit.stdout)),
    ).toContainEqual(
      expect.objectContaining({
        actor: 'admin',
        action: 'revoke',
        outcome: 'done',
        detail: { member: 'mallory', number: 1 },
      }),
    );
  });
});

describe('a member that is cut off from the key server', () => {
  const short = useLab(threeHosts({ init: ['--lease', '12s'], members: ['alice', 'bob'] }));

  test('hears nobody when its lease ends (M5), and is back when the server answers', async () => {
    const { lab } = short;
    const shape = { address: inner4('bob'), port: 7503, ...LOAD };
    const stream = await NumberedStream.start(lab, { from: 'alice', to: 'bob', ...shape });
    // For more than one lease, so that what is shown next is not the first one running out.
    const begin = performance.now();
    await stream.more(Math.ceil(LOAD.perSecond * 14), 40_000);
    console.log(
      `${((performance.now() - begin) / 1_000).toFixed(1)} s of traffic on a lease of 12 s`,
    );
    const bob = await keepFrom(lab, 'bob');
    const before = await dropsOf(lab, 'bob');
    await waitFor(
      async () => (growth(before, await dropsOf(lab, 'bob')).lease_over ?? 0) > LOAD.perSecond,
      { what: 'frames that are dropped as `lease_over`', timeoutMs: 40_000 },
    );
    const { received } = stream.progress();
    await waitFor(
      async () => (growth(before, await dropsOf(lab, 'bob')).lease_over ?? 0) > 2 * LOAD.perSecond,
      { what: 'more of them', timeoutMs: 40_000 },
    );
    expect(stream.progress().received).toBe(received);
    await bob.pass();
    await stream.more(100, 60_000);
    expect((await stream.stop()).repeated).toBe(0);
  });
});

describe('an ordinary member that is revoked', () => {
  test('is out at the one that was away, too, and the rest have a new group key', async () => {
    const { lab } = handle;
    const shape = { ...LOAD, port: 7502 };
    await ping(lab, 'carol', inner4('bob'), { count: 3 });
    await ping(lab, 'carol', inner4('alice'), { count: 3 });
    const stream = await NumberedStream.start(lab, {
      from: 'carol',
      to: 'alice',
      address: inner4('alice'),
      ...shape,
    });
    // Bob's control plane is away: his data plane goes on with the keys that it has.
    await lab.stopGateway('bob', 'SIGKILL');
    await revoke('carol');
    await waitFor(async () => !(await peersOf('alice')).includes('carol'), {
      what: 'alice to forget carol',
      everyMs: 20,
    });
    const still = await ping(lab, 'carol', inner4('bob'), { count: 3, intervalMs: 100 });
    const received = stream.progress().received;
    expect(still.received, 'bob could not know').toBe(3);

    await lab.startGateway('bob');
    await waitFor(async () => !(await peersOf('bob')).includes('carol'), {
      what: 'bob to forget carol',
    });
    const gone = await ping(lab, 'carol', inner4('bob'), { count: 5, intervalMs: 100 });
    expect(gone.received).toBe(0);
    // Alice heard nothing more all the time.
    expect(stream.progress().received).toBe(received);
    await stream.stop();
    // Those who stay have one group key and reach each other with it.
    await lab.exec('alice', ['ip', 'neighbour', 'flush', 'dev', 'pw0']);
    const rest = await ping(lab, 'alice', inner4('bob'), { count: 10, intervalMs: 50 });
    expect(rest.received).toBe(10);
  });

  test('can not join again under its id', async () => {
    const { lab } = handle;
    const token = await lab.token(SUBNET, 'carol', []);
    const scratch = mkdtempSync(join(tmpdir(), 'pairwire-again-'));
    const file = join(scratch, 'token');
    writeFileSync(file, `${token}\n`, { mode: 0o600 });
    const argv = ['join', '--token-file', file, '--dir', join(scratch, 'gateway')];
    const again = await lab.pairwire('mallory', argv, { check: false });
    rmSync(scratch, { recursive: true });
    expect(again.code).not.toBe(0);
    expect(again.stderr).toContain('revoked');
  });
});
