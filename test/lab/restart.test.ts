/**
 * Stops and starts under traffic: who has keys goes on, whoever was restarted is back soon; the times are
 * printed.
 */
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { killDataPlane } from '../../scripts/laboratory/gateway-programs.js';
import { type ProcessId, waitFor } from '../../scripts/laboratory/processes.js';
import { parsePing, ping } from './helpers/hosts.js';
import { inner4, type Member, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

const handle = useLab(threeHosts(), { restarts: true });
const INTERVAL_MS = 20;
/** Asked for are 2 s. They are printed; a busy machine fails no test before this. */
const BACK_MS = 30_000;

/** A ping that goes on until it is stopped. */
class Stream {
  private constructor(
    private readonly process: ProcessId,
    private readonly log: string,
    readonly name: string,
  ) {}

  static async start(from: Member, to: Member): Promise<Stream> {
    const { lab } = handle;
    await ping(lab, from, inner4(to), { count: 2 });
    const argv = ['ping', '-n', '-O', '-i', String(INTERVAL_MS / 1000), inner4(to)];
    const { log, ...process } = lab.spawn(from, argv);
    const stream = new Stream(process, log, `${from} to ${to}`);
    await stream.answeredAfter(0);
    return stream;
  }

  private get answered(): number[] {
    return [...parsePing(readFileSync(this.log, 'utf8')).answered.keys()];
  }

  /** The highest sequence number that was answered. */
  get newest(): number {
    return Math.max(0, ...this.answered);
  }

  /** Waits until some ping with a later number is answered. */
  async answeredAfter(sequence: number, timeoutMs = 10_000): Promise<number> {
    return waitFor(() => this.answered.find((one) => one > sequence), {
      what: `an answer to a ping from ${this.name}`,
      timeoutMs,
      everyMs: 10,
    });
  }

  /** Ends it; sequence numbers without an answer. */
  async stop(): Promise<number[]> {
    await handle.lab.stop(this.process, 'SIGINT');
    const answered = new Set(this.answered);
    const newest = Math.max(0, ...answered);
    return Array.from({ length: newest }, (_, at) => at + 1).filter((one) => !answered.has(one));
  }
}

const streams: Stream[] = [];
afterEach(async () => {
  for (const stream of streams.splice(0)) await stream.stop();
});

async function traffic(...pairs: [Member, Member][]): Promise<Stream[]> {
  for (const [from, to] of pairs) streams.push(await Stream.start(from, to));
  return [...streams];
}

async function lost(): Promise<Record<string, number[]>> {
  const result: Record<string, number[]> = {};
  for (const stream of streams.splice(0)) result[stream.name] = await stream.stop();
  return result;
}

describe('traffic of pairs that have keys', () => {
  test('goes on without a loss while the key server is stopped and started again', async () => {
    const { lab } = handle;
    const [stream] = await traffic(['alice', 'bob'], ['bob', 'carol']);
    await lab.stopKeyServer(SUBNET);
    const away = stream?.newest ?? 0;
    await stream?.answeredAfter(away + 50);
    await waitFor(async () => !(await lab.status('alice')).server.connected, {
      what: 'alice to notice',
    });
    const begin = performance.now();
    await lab.startKeyServer(SUBNET);
    await waitFor(
      async () => {
        const all = await Promise.all(
          (['alice', 'bob', 'carol'] as const).map((host) => lab.status(host)),
        );
        return all.every((status) => status.server.connected && status.state === 'up');
      },
      { what: 'all gateways to be connected again', everyMs: 20 },
    );
    const backMs = performance.now() - begin;
    console.log(`key server: started again and all gateways connected in ${backMs.toFixed(0)} ms`);
    expect(await lost()).toEqual({ 'alice to bob': [], 'bob to carol': [] });
    expect(backMs).toBeLessThan(BACK_MS);
  });

  test('goes on without a loss while the key server is killed', async () => {
    const { lab } = handle;
    const [stream] = await traffic(['alice', 'bob']);
    await lab.stopKeyServer(SUBNET, 'SIGKILL');
    await stream?.answeredAfter((stream?.newest ?? 0) + 100);
    await lab.startKeyServer(SUBNET);
    expect(await lost()).toEqual({ 'alice to bob': [] });
  });

  test('goes on while the control plane of an end is killed, and while it comes back', async () => {
    const { lab } = handle;
    const [stream] = await traffic(['alice', 'bob']);
    await lab.stopGateway('bob', 'SIGKILL');
    await stream?.answeredAfter((stream?.newest ?? 0) + 50);
    const begin = performance.now();
    await lab.startGateway('bob');
    console.log(
      `control plane: connected ${(performance.now() - begin).toFixed(0)} ms after its start`,
    );
    await stream?.answeredAfter((stream?.newest ?? 0) + 50);
    expect(await lost()).toEqual({ 'alice to bob': [] });
    expect((await lab.status('bob')).dataPlane.state).toBe('attached');
  });

  test('goes on after an orderly stop of the control plane', async () => {
    const { lab } = handle;
    const [stream] = await traffic(['carol', 'alice']);
    await lab.stopGateway('carol');
    await stream?.answeredAfter((stream?.newest ?? 0) + 50);
    await lab.startGateway('carol');
    expect(await lost()).toEqual({ 'carol to alice': [] });
  });
});

describe('a gateway', () => {
  test('that is taken down and started again soon has traffic', async () => {
    const { lab } = handle;
    const [stream, other] = await traffic(['alice', 'bob'], ['alice', 'carol']);
    await lab.downGateway('bob');
    await lab.stopGateway('bob');
    await other?.answeredAfter((other?.newest ?? 0) + 20);
    const before = stream?.newest ?? 0;
    const begin = performance.now();
    const up = lab.startGateway('bob');
    await stream?.answeredAfter(before, BACK_MS);
    const backMs = performance.now() - begin;
    console.log(`gateway: first answer ${backMs.toFixed(0)} ms after its start`);
    await up;
    expect(backMs).toBeLessThan(BACK_MS);
    const losses = await lost();
    expect(losses['alice to carol']).toEqual([]);
  });

  test('whose data plane dies has a new one, with a new boot key, soon', async () => {
    const { lab } = handle;
    const [stream] = await traffic(['alice', 'bob']);
    const before = await lab.status('bob');
    const killed = stream?.newest ?? 0;
    const begin = performance.now();
    await killDataPlane(lab, 'bob');
    await stream?.answeredAfter(killed + 5);
    const backMs = performance.now() - begin;
    console.log(`data plane: traffic again ${backMs.toFixed(0)} ms after it was killed`);
    const after = await lab.status('bob');
    expect(after.dataPlane.instance).not.toBe(before.dataPlane.instance);
    expect(after.ports[0]?.index).not.toBe(before.ports[0]?.index);
    expect(backMs).toBeLessThan(BACK_MS);
  });

  test('that starts while the key server is down works with known pairs as soon as it is back', async () => {
    const { lab } = handle;
    await ping(lab, 'alice', inner4('bob'), { count: 2 });
    await lab.stopKeyServer(SUBNET);
    await lab.stopGateway('bob');
    await lab.startGateway('bob', { connected: false });
    const meanwhile = await ping(lab, 'alice', inner4('bob'), { count: 10, intervalMs: 50 });
    expect(meanwhile.received).toBe(10);
    await lab.startKeyServer(SUBNET);
    await waitFor(async () => (await lab.status('bob')).server.connected, {
      what: 'bob to be connected',
    });
    const result = await ping(lab, 'bob', inner4('alice'), { count: 5, intervalMs: 50 });
    expect(result.received).toBe(5);
  });
});
