/**
 * Fresh boot keys under load (docs/protocol.md 3.1): nothing is lost, doubled or out of order, in either
 * direction and in the group, whoever changes at one moment with whom, and whatever becomes of the
 * control plane; and what was recorded before does not open afterwards.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import type { Capture } from '../../scripts/laboratory/capture.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { dropsOf, growth } from './helpers/drops.js';
import { listening, ping } from './helpers/hosts.js';
import { SealedPort } from './helpers/sealed-port.js';
import {
  inner4,
  MEMBERS,
  type Member,
  SEGMENT,
  SERVER_PORT,
  SUBNET,
  threeHosts,
} from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { reusedNonces, type SeenFrame, sealedFrames } from './helpers/wire.js';

const handle = useLab(threeHosts({ offload: 'wire' }));
const TEST_MS = 300_000;
/** From one renewal until the next one by order is allowed, and patience for a busy machine. */
const AGAIN_MS = 40_000;
/** The least interval, with its jitter, a postponement, and patience. */
const BY_AGE_MS = 80_000;
/** A control plane is away for longer than peers keep the index before. */
const AWAY_MS = 12_000;
/** Datagrams longer than this are the TCP connection's, and left out of the capture: 100 Mbit/s fill a disk. */
const CAPTURED = 400;
const BROADCAST = '198.51.100.255';
const IPERF_PORT = 5201;

let wire: Capture;
beforeAll(async () => {
  const { lab } = handle;
  for (const [from, to] of [
    ['alice', 'bob'],
    ['bob', 'carol'],
    ['carol', 'alice'],
  ] as const) {
    await ping(lab, from, inner4(to), { count: 2 });
  }
  wire = await lab.capture(SEGMENT, {
    filter: `not tcp port ${SERVER_PORT} and less ${CAPTURED}`,
  });
});

async function renew(host: Member): Promise<void> {
  await handle.lab.pairwire(host, ['renew', '--dir', handle.lab.gatewayDir(host)]);
}

const indices = new Map<Member, number[]>(MEMBERS.map((host) => [host, []]));

/** Notes a member's index, once it has another than the last one noted. */
async function nextIndex(host: Member, timeoutMs?: number): Promise<number> {
  const noted = indices.get(host) ?? [];
  const next = await waitFor(
    async () => {
      const { index } = await handle.lab.port(host);
      return index === null || index === noted.at(-1) ? undefined : index;
    },
    {
      what: `another index of ${host}`,
      everyMs: 50,
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
    },
  );
  noted.push(next);
  return next;
}

/** Replaces the boot key as soon as the last change is over. */
async function renewAgain(host: Member): Promise<void> {
  await waitFor(
    () =>
      renew(host).then(
        () => true,
        () => false,
      ),
    { what: `a renewal of ${host}`, timeoutMs: AGAIN_MS, everyMs: 500 },
  );
}

async function load(): Promise<NumberedStream[]> {
  const ways = [
    ['alice', 'bob', inner4('bob'), 1_000],
    ['bob', 'alice', inner4('alice'), 1_000],
    ['carol', 'alice', inner4('alice'), 500],
    ['bob', 'carol', inner4('carol'), 500],
    // To all of the group. Nobody sends them to a member without control plane, so none is read at alice.
    ['alice', 'carol', BROADCAST, 200],
    ['bob', 'carol', BROADCAST, 200],
    ['carol', 'bob', BROADCAST, 200],
  ] as const;
  return Promise.all(
    ways.map(([from, to, address, perSecond], at) =>
      NumberedStream.start(handle.lab, {
        ...{ from, to, address, perSecond },
        port: 9_300 + at,
        size: 64,
      }),
    ),
  );
}

/** Without figures where it could not even connect. */
const iperfSchema = z.object({
  error: z.string().optional(),
  end: z.object({ sum_sent: z.object({ bytes: z.number() }).optional() }),
});

/** Frames from before that their receiver is given once more are refused, and not as repetitions. */
async function expectForgotten(recorded: readonly SeenFrame[], from: number): Promise<void> {
  const { lab } = handle;
  const recorder = await SealedPort.open(lab, 'mallory');
  const old = recorded.filter(({ shim }) => shim.index === from);
  const pair = old.filter(({ shim }) => shim.kind === FrameKind.pair).slice(-20);
  const group = old.filter(({ shim }) => shim.kind === FrameKind.group).slice(-20);
  expect([pair.length, group.length]).toEqual([20, 20]);
  try {
    for (const host of ['bob', 'carol'] as const) {
      await waitFor(
        async () => {
          const before = await dropsOf(lab, host);
          for (const frame of [...pair, ...group]) recorder.send(host, frame);
          // Those without an index wait for a key, in vain.
          await sleep(1_500);
          const grown = growth(before, await dropsOf(lab, host));
          return (grown.unknown_index ?? 0) >= pair.length + group.length;
        },
        { what: `${host} to have forgotten`, timeoutMs: AGAIN_MS },
      );
    }
  } finally {
    recorder.close();
  }
}

test(
  'fresh boot keys of all members, at once and one after the other, by order and by age',
  async () => {
    const { lab } = handle;
    const streams = await load();
    const server = lab.spawn('carol', ['iperf3', '-s', '-1'], { label: 'iperf3' });
    await listening(lab, 'carol', 'tcp', IPERF_PORT);
    const bulk = lab.spawn(
      'bob',
      [
        'iperf3',
        '-c',
        inner4('carol'),
        '-b',
        '100M',
        '-t',
        '600',
        '-J',
        '--connect-timeout',
        '9000',
      ],
      { label: 'iperf3' },
    );
    for (const host of MEMBERS) await nextIndex(host);
    const first = indices.get('alice')?.[0] ?? 0;

    await Promise.all(streams.map((stream) => stream.more(100)));
    const recorded = sealedFrames(wire.packets()).frames;

    // All at one moment: each end changes while the other does.
    await Promise.all(MEMBERS.map(renew));
    await Promise.all(MEMBERS.map((host) => nextIndex(host)));

    // From now on by age, too: the setting changes, and nothing is restarted.
    const settings = ['settings', '--dir', lab.serverDir(SUBNET), '--rekey-boot', '30s'];
    await lab.pairwire('server', settings);
    // Each while the change before is under way.
    for (const host of ['carol', 'bob', 'alice'] as const) {
      await renewAgain(host);
      await nextIndex(host);
    }
    // Now alice's control plane dies, in the middle of her change, for longer than that takes.
    await lab.stopGateway('alice', 'SIGKILL');
    const dying = indices.get('alice')?.at(-1);
    for (const stream of streams) await stream.more(100);
    await sleep(AWAY_MS);
    await lab.startGateway('alice');
    expect((await lab.port('alice')).index).toBe(dying);

    // By age.
    await Promise.all((['bob', 'carol'] as const).map((host) => nextIndex(host, BY_AGE_MS)));
    await expectForgotten(recorded, first);
    await Promise.all(streams.map((stream) => stream.more(200)));

    await lab.stop(bulk, 'SIGINT');
    const results = await Promise.all(
      streams.map(async (stream) => [stream.name, await stream.stop()] as const),
    );
    await lab.stop(server);
    for (const [name, { sent, lost, repeated, late, missing }] of results) {
      expect(sent, name).toBeGreaterThan(1_000);
      const found = { lost, missing, repeated, late };
      expect(found, name).toEqual({ lost: 0, missing: [], repeated: 0, late: 0 });
    }
    // It was interrupted, and says so behind its figures.
    const figures = readFileSync(bulk.log, 'utf8').replace(/\}[^}]*$/, '}');
    const { error, end } = iperfSchema.parse(JSON.parse(figures));
    expect(end.sum_sent?.bytes, error).toBeGreaterThan(10_000_000);
    for (const host of MEMBERS) {
      const all = indices.get(host) ?? [];
      expect(new Set(all).size, host).toBe(all.length);
      expect(all.length, host).toBeGreaterThanOrEqual(3);
      expect((await lab.status(host)).dataPlane.commandsFailed, host).toBe(0);
    }

    const { frames, wrong } = sealedFrames(await wire.stop());
    expect(wrong).toEqual([]);
    // Pair and group were sent under every index that there was.
    const seen = new Set(frames.map(({ shim }) => `${shim.kind} ${shim.index}`));
    const missing = [...indices.values()]
      .flat()
      .flatMap((index) => [FrameKind.pair, FrameKind.group].map((kind) => `${kind} ${index}`))
      .filter((one) => !seen.has(one));
    expect(missing).toEqual([]);
    console.log(`${frames.length} frames looked at`);
    expect(reusedNonces(frames)).toEqual([]);
  },
  TEST_MS,
);
