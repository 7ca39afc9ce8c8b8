/**
 * Every process is killed with -9 under load, in every order, and each frame on the underlay is looked at
 * afterwards: no two were sealed under one key and counter.
 *
 * Streams of numbered datagrams run all the time, so each lost one is known, and how long nothing
 * came. The times are printed (docs/security.md has them); what is asserted of them is generous.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import type { Capture } from '../../scripts/laboratory/capture.js';
import {
  type GatewayProgram,
  killProgram,
  programsOf,
} from '../../scripts/laboratory/gateway-programs.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream, type StreamResult } from '../../scripts/laboratory/stream.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { dropsOf, growth } from './helpers/drops.js';
import { SealedPort } from './helpers/sealed-port.js';
import {
  inner4,
  type Member,
  outerBoth,
  SEGMENT,
  SERVER_PORT,
  SUBNET,
  threeHosts,
} from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { reusedNonces, sealedFrames } from './helpers/wire.js';

const handle = useLab(threeHosts({ offload: 'wire' }), { restarts: true });
/** Back within this time; far more than it takes, because a busy machine decides no test. */
const BACK_MS = 10_000;
/** Datagrams a second of each stream, and their size. */
const LOAD = { perSecond: 500, size: 100 } as const;

let wire: Capture;
beforeAll(async () => {
  // The shim and what is needed to tell one frame from another, of everything that is ever sent.
  wire = await handle.lab.capture(SEGMENT, { filter: `not tcp port ${SERVER_PORT}` });
});

const streams: NumberedStream[] = [];
let port = 9_100;
afterEach(async () => {
  for (const stream of streams.splice(0)) await stream.stop();
});

async function load(...pairs: readonly (readonly [Member, Member])[]): Promise<NumberedStream[]> {
  const started = pairs.map(([from, to]) => {
    port += 1;
    const way = { from, to, address: inner4(to), port };
    return NumberedStream.start(handle.lab, { ...way, ...LOAD });
  });
  streams.push(...(await Promise.all(started)));
  return [...streams];
}

/** Ends all streams; what became of each, by its name. */
async function ended(): Promise<Record<string, StreamResult>> {
  const results: Record<string, StreamResult> = {};
  await Promise.all(
    streams.splice(0).map(async (stream) => {
      results[stream.name] = await stream.stop();
    }),
  );
  return results;
}

function longestSilence(result: StreamResult | undefined): number {
  return Math.max(0, ...(result?.silences ?? []).map(([, ms]) => ms));
}

/** kill -9 of everything that makes up a gateway: control plane, broker, data plane. */
async function killGateway(host: Member): Promise<void> {
  const { lab } = handle;
  await lab.stopGateway(host, 'SIGKILL');
  // The broker first: else it would start the data plane again.
  await killProgram(lab, host, 'pairwire-devices');
  await killProgram(lab, host, 'pairwire-dataplane');
}

describe('kill -9 under load', () => {
  test('of the control plane: not a frame is lost, in either direction, and a new one attaches', async () => {
    const { lab } = handle;
    const [there] = await load(['alice', 'bob'], ['bob', 'alice']);
    const before = await lab.status('bob');
    await there?.more(500);
    await lab.stopGateway('bob', 'SIGKILL');
    await there?.more(1_000);
    const begin = performance.now();
    await lab.startGateway('bob');
    const attachedMs = performance.now() - begin;
    await there?.more(500);
    const after = await lab.status('bob');
    const results = await ended();
    console.log(
      `control plane: attached and connected ${attachedMs.toFixed(0)} ms after its start`,
    );
    for (const [name, { lost, repeated }] of Object.entries(results)) {
      expect({ lost, repeated }, name).toEqual({ lost: 0, repeated: 0 });
    }
    expect(after.pid).not.toBe(before.pid);
    // The same data plane with the same keys, under a new controller.
    expect(after.dataPlane).toMatchObject({
      state: 'attached',
      instance: before.dataPlane.instance,
    });
    expect(after.ports[0]?.index).toBe(before.ports[0]?.index);
  });

  test('of the data plane: a new one is back, with a new boot key and index', async () => {
    const { lab } = handle;
    const [there] = await load(['alice', 'bob'], ['bob', 'alice']);
    const before = await lab.status('bob');
    await there?.more(500);
    await killProgram(lab, 'bob', 'pairwire-dataplane');
    await waitFor(
      async () => (await lab.status('bob')).dataPlane.instance !== before.dataPlane.instance,
      {
        what: 'a new data plane',
        timeoutMs: BACK_MS,
        everyMs: 10,
      },
    );
    for (const stream of streams) await stream.more(500);
    const after = await lab.status('bob');
    const results = await ended();
    for (const [name, result] of Object.entries(results)) {
      console.log(
        `data plane: ${name}: ${longestSilence(result)} ms without a frame, ${result.lost} lost`,
      );
      expect(longestSilence(result), name).toBeLessThan(BACK_MS);
      expect(result.repeated, name).toBe(0);
    }
    expect(after.ports[0]?.index).not.toBe(before.ports[0]?.index);
  });

  test('of the broker: not a frame is lost, and the next one adopts the data plane', async () => {
    const { lab } = handle;
    const [there] = await load(['alice', 'carol'], ['carol', 'alice']);
    const [dataPlane] = await programsOf(lab, 'carol', 'pairwire-dataplane');
    await killProgram(lab, 'carol', 'pairwire-devices');
    await there?.more(500);
    // A control plane that starts finds no broker and starts one.
    await lab.stopGateway('carol', 'SIGKILL');
    await lab.startGateway('carol');
    await waitFor(async () => (await programsOf(lab, 'carol', 'pairwire-devices')).length === 1, {
      what: 'a broker on carol',
    });
    await there?.more(500);
    for (const [name, { lost }] of Object.entries(await ended())) expect(lost, name).toBe(0);
    expect(await programsOf(lab, 'carol', 'pairwire-dataplane')).toEqual([dataPlane]);
  });

  test('of broker and data plane at once: the gateway is back after a start', async () => {
    const { lab } = handle;
    await load(['alice', 'carol']);
    const programs: GatewayProgram[] = ['pairwire-devices', 'pairwire-dataplane'];
    for (const program of programs) await killProgram(lab, 'carol', program);
    await lab.stopGateway('carol', 'SIGKILL');
    await lab.startGateway('carol');
    for (const stream of streams) await stream.more(500);
    const [result] = Object.values(await ended());
    console.log(
      `broker and data plane: ${longestSilence(result)} ms without a frame, with the start`,
    );
  });
});

describe('key server and gateways, killed and started in every order, during traffic', () => {
  const PARTS = ['key server', 'alice', 'bob'] as const;
  type Part = (typeof PARTS)[number];
  const kill = (part: Part) =>
    part === 'key server' ? handle.lab.stopKeyServer(SUBNET, 'SIGKILL') : killGateway(part);
  const start = async (part: Part, running: ReadonlySet<Part>): Promise<void> => {
    if (part === 'key server') await handle.lab.startKeyServer(SUBNET);
    else await handle.lab.startGateway(part, { connected: running.has('key server') });
  };

  const order: readonly (readonly [Part, Part, Part])[] = [
    ['key server', 'alice', 'bob'],
    ['key server', 'bob', 'alice'],
    ['alice', 'key server', 'bob'],
    ['alice', 'bob', 'key server'],
    ['bob', 'key server', 'alice'],
    ['bob', 'alice', 'key server'],
  ];

  const pairs = [
    ['alice', 'bob'],
    ['bob', 'carol'],
    ['carol', 'alice'],
  ] as const;
  let recorder: SealedPort;
  const running: NumberedStream[] = [];
  let known = new Set<string>();
  beforeAll(async () => {
    recorder = await SealedPort.open(handle.lab, 'mallory');
    running.push(...(await load(...pairs)));
    streams.length = 0; // they run over all orders
    known = await acknowledged();
  });
  afterAll(async () => {
    recorder?.close();
    await Promise.all(running.map((stream) => stream.stop()));
  });

  /** What the key server has acknowledged so far: keys and members, without what may change. */
  async function acknowledged(): Promise<Set<string>> {
    const { lab } = handle;
    const lists = (['keys', 'members'] as const).map(async (what) => {
      const argv = [what, '--json', '--dir', lab.serverDir(SUBNET)];
      const { stdout } = await lab.pairwire('server', argv);
      const rows = z.array(z.record(z.string(), z.unknown())).parse(JSON.parse(stdout));
      return rows.map(({ id, a, b, kind, pwId, role }) =>
        JSON.stringify({ what, id, a, b, kind, pwId, role }),
      );
    });
    return new Set((await Promise.all(lists)).flat());
  }

  test.each(order)('%s, %s, %s', async (...parts) => {
    const { lab } = handle;
    for (const stream of running) await stream.more(100);
    const recorded = sealedFrames(wire.packets().slice(-3_000)).frames;

    const down = new Set<Part>();
    for (const part of parts) {
      await kill(part);
      down.add(part);
      // Whoever has keys goes on, whatever else is gone.
      for (const [at, pair] of pairs.entries()) {
        if (!pair.some((end) => down.has(end as Part))) await running[at]?.more(100);
      }
    }
    const up = new Set<Part>();
    for (const part of parts) {
      await start(part, up);
      up.add(part);
    }
    const begin = performance.now();
    await Promise.all(running.map((stream) => stream.more(1, BACK_MS)));
    const backMs = performance.now() - begin;
    const what = parts[2] === 'key server' ? 'the key server answers' : `${parts[2]} is connected`;
    console.log(
      `${parts.join(', ')}: all pairs have traffic ${backMs.toFixed(0)} ms after ${what}`,
    );

    // What was recorded before does not open. (If it did, the streams' receivers would count a repetition.)
    const again = recorded
      .filter(
        ({ shim, destination }) =>
          shim.kind === FrameKind.pair && outerBoth('bob').includes(destination),
      )
      .slice(-50);
    expect(again.length).toBe(50);
    const before = await lab.port('bob');
    for (const frame of again) recorder.send('bob', frame);
    let grown: Readonly<Record<string, number>> = {};
    const refused = () => (grown.unknown_index ?? 0) + (grown.unknown_kid ?? 0);
    await waitFor(
      async () => {
        grown = growth(before.drops, await dropsOf(lab, 'bob'));
        return refused() >= again.length;
      },
      { what: 'the recordings to be refused' },
    ).catch(() => undefined); // the comparison says more
    expect(refused(), JSON.stringify(grown)).toBeGreaterThanOrEqual(again.length);
  });

  test('no datagram came twice, and nothing that the key server had acknowledged is gone', async () => {
    const results = await Promise.all(running.splice(0).map((stream) => stream.stop()));
    expect(results.map(({ repeated }) => repeated)).toEqual([0, 0, 0]);
    const left = await acknowledged();
    expect(known.size).toBeGreaterThan(3);
    expect([...known].filter((row) => !left.has(row))).toEqual([]);
  });
});

test('over all kills no two frames had one key and one counter', async () => {
  const { frames, wrong } = sealedFrames(await wire.stop());
  expect(wrong).toEqual([]);
  const keys = new Set(frames.map(({ shim }) => `${shim.index}/${shim.kid}`));
  console.log(`${frames.length} frames on the underlay under ${keys.size} keys`);
  // Each start of a data plane has keys of its own; and the capture was not lame.
  expect(keys.size).toBeGreaterThan(20);
  expect(frames.length).toBeGreaterThan(5_000);
  expect(reusedNonces(frames)).toEqual([]);
});
