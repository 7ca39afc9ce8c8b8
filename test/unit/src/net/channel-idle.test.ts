/**
 * A channel that nobody uses costs nothing, whatever became of its other end: the event loop
 * turns and packets leave for keepalives, and for attempts with a back-off, only.
 */

import { Socket as UdpSocket } from 'node:dgram';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { connect, createServer, type Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { median } from '../../../../scripts/benchmark/statistics.js';
import type { Malice } from './support.js';
import { CLIENT, cleanup, client, hostileForwarder, serve, until } from './support.js';

const SLICES = 10;
const SLICE_MS = 100;
/** What was under way when the interval begins may come to rest first. */
const SETTLE_MS = 500;
/** What both ends together may do in most slices; a timer that rings each millisecond does more. */
const MAX_TURNS = 30;
/** And in all of them. */
const MAX_SENT = 60;

afterEach(() => {
  vi.restoreAllMocks();
});

const rest = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * What this process does while the test waits: turns of the event loop in the median slice, and datagrams and POSTs sent in all.
 * The median, for V8's sweeper wakes the loop thousands of times within some 50 ms while its helper threads get no processor.
 */
async function idle(): Promise<{ turns: number; sent: number }> {
  await rest(SETTLE_MS);
  const datagrams = vi.spyOn(UdpSocket.prototype, 'send');
  let posts = 0;
  const count = (): void => {
    posts += 1;
  };
  subscribe('http.client.request.start', count);
  const slices: number[] = [];
  while (slices.length < SLICES) {
    const before = performance.nodeTiming.uvMetricsInfo.loopCount;
    await rest(SLICE_MS);
    slices.push(performance.nodeTiming.uvMetricsInfo.loopCount - before);
  }
  unsubscribe('http.client.request.start', count);
  const sent = datagrams.mock.calls.length + posts;
  datagrams.mockRestore();
  return { turns: median(slices), sent };
}

async function expectRest(): Promise<void> {
  const { turns, sent } = await idle();
  expect(turns).toBeLessThan(MAX_TURNS);
  expect(sent).toBeLessThan(MAX_SENT);
}

/** A way to the server on which one direction or both can be cut, without anybody being told. */
interface Way {
  readonly port: number;
  cut(direction: 'there' | 'back' | 'both'): void;
}

async function udpWay(target: number): Promise<Way> {
  const malice: Malice = { drop: 0, double: 0, delay: 0, late: 0, spoof: 0 };
  const { port } = await hostileForwarder(target, malice);
  return {
    port,
    cut: (direction) => {
      if (direction === 'both') malice.drop = 1;
      else malice.cut = direction;
    },
  };
}

async function tcpWay(target: number): Promise<Way> {
  const sockets = new Set<Socket>();
  let cut: 'there' | 'back' | 'both' | undefined;
  const forwarder = createServer((front) => {
    const back = connect(target, '127.0.0.1');
    for (const [from, to, direction] of [
      [front, back, 'there'],
      [back, front, 'back'],
    ] as const) {
      sockets.add(from);
      from.on('data', (bytes) => {
        if (cut !== 'both' && cut !== direction) to.write(bytes);
      });
      from.on('error', () => {});
      from.on('close', () => {
        sockets.delete(from);
        if (cut === undefined) to.destroy();
      });
    }
  });
  await new Promise<void>((bound) => forwarder.listen(0, '127.0.0.1', () => bound()));
  cleanup(() => {
    forwarder.close();
    for (const socket of sockets) socket.destroy();
  });
  const address = forwarder.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    cut: (direction) => {
      cut = direction;
    },
  };
}

describe.each(['tcp', 'udp', 'http'] as const)('over %s', (scheme) => {
  const makeWay = scheme === 'udp' ? udpWay : tcpWay;

  /** A server, and a client with a channel to it that was used a little in both directions. */
  async function used(port: (server: number) => number | Promise<number> = (own) => own) {
    const s = await serve(scheme);
    // No jitter: the back-off is as long as it may be.
    const c = client(scheme, await port(s.port), { random: () => 1 });
    await Promise.all(Array.from({ length: 50 }, (_, n) => c.client.request({ t: 'echo', n })));
    for (let n = 0; n < 50; n += 1) s.sessions[0]?.push({ t: 'event', n });
    await until(() => c.pushes.length === 50);
    return { ...s, ...c };
  }

  async function usedOver() {
    let way: Way | undefined;
    const both = await used(async (own) => {
      way = await makeWay(own);
      return way.port;
    });
    if (way === undefined) throw new Error('no way was made');
    return { ...both, way };
  }

  it('fresh', async () => {
    const s = await serve(scheme);
    const c = client(scheme, s.port);
    await until(() => c.client.state.kind === 'open');
    await expectRest();
    expect(s.server.counters).toMatchObject({ sessions: 1, established: 1 });
  }, 20_000);

  it('after requests and pushes', async () => {
    const { server } = await used();
    await expectRest();
    expect(server.counters).toMatchObject({ sessions: 1, established: 1 });
  }, 20_000);

  it('after a renewal of the keys', async () => {
    const s = await serve(scheme, { terms: { recordLimit: 20 } });
    const c = client(scheme, s.port);
    for (let n = 0; n < 50; n += 1) await c.client.request({ t: 'echo', n });
    await until(() => s.server.counters.renewals > 0);
    await expectRest();
    expect(s.server.counters).toMatchObject({ sessions: 1, established: 1 });
  }, 20_000);

  it('after the server stopped and stays away', async () => {
    const { server, ...c } = await used();
    await server.close();
    // Told by the farewell, or by nobody answering if that was lost.
    await until(() => c.client.state.kind !== 'open', 15_000);
    await expectRest();
  }, 20_000);

  it('after the server was started again', async () => {
    const { server, port, ...c } = await used();
    await server.close();
    const second = await serve(scheme, { port });
    await c.client.request({ t: 'echo', n: 1 });
    await expectRest();
    expect(second.server.counters).toMatchObject({ sessions: 1, established: 1 });
  }, 20_000);

  it('after the client stopped', async () => {
    const { server, ...c } = await used();
    c.client.stop();
    await until(() => server.counters.sessions === 0);
    await expectRest();
  }, 20_000);

  it('after its session was ended by the server, and while it is let in no more', async () => {
    let welcome = true;
    const s = await serve(scheme, { authorise: () => welcome });
    const c = client(scheme, s.port, { random: () => 1 });
    await c.client.request({ t: 'echo', n: 1 });
    welcome = false;
    s.sessions[0]?.close();
    await until(() => c.client.state.kind !== 'open');
    await expectRest();
    expect(s.server.counters.sessions).toBe(0);
  }, 20_000);

  it('after another session of the same key took its place', async () => {
    const s = await serve(scheme, { limits: { maxPerKey: 1 } });
    const first = client(scheme, s.port);
    await first.client.request({ t: 'echo', n: 1 });
    const second = client(scheme, s.port);
    await second.client.request({ t: 'echo', n: 2 });
    await until(() => s.ends.includes('too_many_connections'));
    first.client.stop();
    await second.client.request({ t: 'echo', n: 3 });
    await expectRest();
    expect(s.sessions[0]?.remoteKey).toEqual(CLIENT.publicKey);
  }, 20_000);

  it.each(['there', 'back', 'both'] as const)(
    'after packets stopped getting through %s, with a request and a push under way',
    async (direction) => {
      const { way, sessions, ...c } = await usedOver();
      way.cut(direction);
      c.client.request({ t: 'echo', n: 1 }).catch(() => {});
      for (let n = 0; n < 50; n += 1) sessions[0]?.push({ t: 'event', n });
      await expectRest();
    },
    20_000,
  );

  it('after the server was killed behind a network that tells nobody', async () => {
    const { way, server, ...c } = await usedOver();
    way.cut('both');
    await server.close();
    c.client.request({ t: 'echo', n: 1 }).catch(() => {});
    await expectRest();
  }, 20_000);
});
