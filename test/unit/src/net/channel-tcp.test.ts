/** Tests of src/net/channel-tcp.ts over loopback: sessions, refusals, reconnects, renewals, bad peers. */
import { randomBytes } from 'node:crypto';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  type ChannelServerOptions,
  RequestError,
  type Session,
} from '../../../../src/net/channel.js';
import {
  ChannelClient,
  type ChannelClientOptions,
  type ClientState,
} from '../../../../src/net/channel-client.js';
import { ChannelServer } from '../../../../src/net/channel-server.js';
import type { Envelope } from '../../../../src/protocol/channel/codec.js';
import type { FailureReason } from '../../../../src/protocol/channel/failures.js';
import { generateKeyPair } from '../../../../src/protocol/channel/keys.js';
import { tokenPsk } from '../../../../src/protocol/token.js';
import { FakeClock } from '../../../../src/runtime/clock.js';

const SERVER = generateKeyPair();
const CLIENT = generateKeyPair();
const Request = z.object({ t: z.literal('echo'), id: z.number().optional(), n: z.number() });
type Request = z.infer<typeof Request>;

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function until(condition: () => boolean, ms = 5_000): Promise<void> {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error('the condition did not come true in time');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function serve({
  port: wanted = 0,
  ...options
}: Partial<ChannelServerOptions<Request>> & { port?: number } = {}) {
  const ends: FailureReason[] = [];
  const sessions: Session[] = [];
  const server = new ChannelServer<Request>({
    listen: [{ scheme: 'tcp', host: '127.0.0.1', port: wanted }],
    staticKeys: SERVER,
    authorise: () => true,
    psk: () => undefined,
    types: new Set(['echo']),
    parse: (message) => Request.parse(message),
    onRequest: async (_session, request) => ({ n: request.n }),
    onSession: (session) => sessions.push(session),
    onClose: (end) => ends.push(end.reason),
    ...options,
  });
  const [{ port } = { port: 0 }] = await server.listen();
  cleanups.push(() => server.close());
  return { server, port, ends, sessions };
}

function client(port: number | number[], options: Partial<ChannelClientOptions> = {}) {
  const states: ClientState[] = [];
  const pushes: Envelope[] = [];
  const [first = 0, ...rest] = [port].flat();
  const endpoint = (p: number) => ({ host: '127.0.0.1', port: p, publicKey: SERVER.publicKey });
  const it = new ChannelClient({
    servers: [endpoint(first), ...rest.map(endpoint)],
    staticKeys: CLIENT,
    onState: (state) => states.push(state),
    onPush: (message) => pushes.push(message),
    ...options,
  });
  it.start();
  cleanups.push(() => it.stop());
  return { client: it, states, pushes };
}

describe('a session', () => {
  it('answers requests, pushes, shows the peer and gives the time', async () => {
    const s = await serve();
    const c = client(s.port);
    const answers = await Promise.all(
      Array.from({ length: 300 }, (_, n) =>
        c.client.request(
          { t: 'echo', n },
          { parse: (a) => z.object({ n: z.number() }).parse(a).n },
        ),
      ),
    );
    expect(answers).toEqual(Array.from({ length: 300 }, (_, n) => n));
    expect(s.sessions[0]?.remoteKey).toEqual(CLIENT.publicKey);
    expect(s.sessions[0]?.tokenId).toBeUndefined();
    expect(s.sessions[0]?.remoteAddress).toMatch(/^127\.0\.0\.1:\d+$/);
    s.sessions[0]?.push({ t: 'event', text: 'hello' });
    await until(() => c.pushes.length > 0);
    expect(c.pushes).toEqual([{ t: 'event', text: 'hello' }]);
    expect(Math.abs(c.client.time.now() - s.server.time.now())).toBeLessThan(50);
    expect(c.client.time.age()).toBeLessThan(5_000);
    expect(s.server.counters).toMatchObject({
      established: 1,
      sessions: 1,
      halfOpen: 0,
      requests: 300,
    });
    expect([...s.server.sessions()].length).toBe(1);
  });

  it('passes refusals with a code and nothing else', async () => {
    const thrown: unknown[] = [];
    const s = await serve({
      onRequest: (_session, request) => {
        if (request.n === 1) throw new RequestError('not_found', 'no such member');
        throw new Error('a secret');
      },
      onError: (t) => thrown.push(t),
    });
    const c = client(s.port);
    await expect(c.client.request({ t: 'echo', n: 1 })).rejects.toMatchObject({
      code: 'not_found',
      detail: 'no such member',
    });
    await expect(c.client.request({ t: 'echo', n: 2 })).rejects.toMatchObject({
      code: 'unavailable',
      detail: undefined,
      message: 'unavailable',
    });
    expect(String(thrown[0])).toContain('a secret');
    await expect(c.client.request({ t: 'what' })).rejects.toMatchObject({ code: 'unsupported' });
  });

  it('shows nothing of a refusal that could steer a terminal', async () => {
    const s = await serve({
      onRequest: () => {
        throw new RequestError('refused', `\u001b[2J${'x'.repeat(500)}`);
      },
    });
    const c = client(s.port);
    await expect(c.client.request({ t: 'echo', n: 1 })).rejects.toMatchObject({
      detail: `?[2J${'x'.repeat(196)}`,
    });
  });

  it('makes room when there are too many of one key, and leaves other keys alone', async () => {
    const s = await serve({ limits: { maxPerKey: 2 } });
    const other = client(s.port, { staticKeys: generateKeyPair() });
    await other.client.request({ t: 'echo', n: 0 });
    // Quiet ones, which do not come back: their back-off is long.
    for (let n = 0; n < 3; n += 1) {
      const c = client(s.port, { random: () => 1_000 });
      await c.client.request({ t: 'echo', n });
    }
    await until(() => s.ends.includes('too_many_connections'));
    expect(s.server.counters.sessions).toBe(3);
    expect(s.sessions.map((session) => session.closed)).toEqual([false, true, false, false]);
  });

  it('closes for a message that the schema refuses, and lets the others live', async () => {
    const s = await serve();
    const bad = client(s.port);
    const good = client(s.port);
    await good.client.request({ t: 'echo', n: 1 });
    await expect(
      bad.client.request({ t: 'echo', n: 'x' }, { timeoutMs: 300 }),
    ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
    expect(s.ends).toContain('message_malformed');
    expect(s.server.counters.closed.message_malformed).toBeGreaterThan(0);
    await good.client.request({ t: 'echo', n: 1 });
    expect(good.states.filter((state) => state.kind === 'open').length).toBe(1);
  });

  it('reports an answer that the caller refuses', async () => {
    const s = await serve();
    const c = client(s.port);
    const parse = (): never => {
      throw new Error('no');
    };
    await expect(c.client.request({ t: 'echo', n: 1 }, { parse })).rejects.toMatchObject({
      code: 'CHANNEL_MALFORMED',
    });
  });

  it('carries messages of 1 MiB and refuses longer ones', async () => {
    const s = await serve({
      parse: (m) => m as Request,
      onRequest: (_session, request) => ({
        n: (request as unknown as { b: Uint8Array }).b.length,
        b: randomBytes(1_000_000),
      }),
    });
    const c = client(s.port);
    const answer = await c.client.request({ t: 'echo', b: Buffer.alloc(1_048_000) });
    expect(answer.n).toBe(1_048_000);
    await expect(c.client.request({ t: 'echo', b: Buffer.alloc(1_048_577) })).rejects.toMatchObject(
      {
        code: 'CHANNEL_LIMIT',
      },
    );
  });
});

describe('who may come in', () => {
  it('an unknown static key is refused before message 2', async () => {
    const s = await serve({ authorise: async (key) => !key.equals(CLIENT.publicKey) });
    let received = 0;
    const c = client(s.port);
    await until(() => s.ends.includes('unknown_key'));
    expect(s.sessions).toEqual([]);
    await until(() => c.states.some((state) => state.kind === 'down'));
    const down = c.states.find((state) => state.kind === 'down');
    expect(down?.kind === 'down' && down.error.code).toBe('CHANNEL_CLOSED');
    const probe = connect(s.port, '127.0.0.1');
    probe.on('data', (chunk) => {
      received += chunk.length;
    });
    probe.destroy();
    expect(received).toBe(0);
  });

  it('a token lets a new key in, with its id and PSK', async () => {
    const id = randomBytes(16);
    const key = randomBytes(32);
    const enrolled = new Set<string>();
    const s = await serve({
      authorise: (k) => enrolled.has(k.toString('hex')),
      psk: async (tokenId) => (tokenId.equals(id) ? tokenPsk(key, id) : undefined),
      onRequest: async (session, request) => {
        enrolled.add(session.remoteKey.toString('hex'));
        return { n: request.n };
      },
    });
    const c = client(s.port, { token: { id, psk: tokenPsk(key, id) } });
    await c.client.request({ t: 'echo', n: 1 });
    expect(s.sessions[0]?.tokenId).toEqual(id);
    // From now on without it.
    c.client.forgetToken();
    s.sessions[0]?.close();
    await c.client.request({ t: 'echo', n: 2 });
    expect(s.sessions[1]?.tokenId).toBeUndefined();
  });

  it('a wrong PSK and an unknown token don’t', async () => {
    const id = randomBytes(16);
    const s = await serve({ psk: (tokenId) => (tokenId.equals(id) ? randomBytes(32) : undefined) });
    const wrong = client(s.port, { token: { id, psk: randomBytes(32) } });
    await until(() => wrong.states.some((state) => state.kind === 'down'));
    const down = wrong.states.find((state) => state.kind === 'down');
    expect(down?.kind === 'down' && down.error.code).toBe('CHANNEL_HANDSHAKE');
    client(s.port, { token: { id: randomBytes(16), psk: randomBytes(32) } });
    await until(() => s.ends.includes('unknown_token'));
    expect(s.sessions).toEqual([]);
  });

  it('a client with the wrong server key does not get in', async () => {
    const s = await serve();
    client(s.port, {
      servers: [{ host: '127.0.0.1', port: s.port, publicKey: generateKeyPair().publicKey }],
    });
    await until(() => s.ends.includes('handshake_message'));
    expect(s.sessions).toEqual([]);
  });

  it('a callback that fails is counted as ours', async () => {
    const s = await serve({ authorise: () => Promise.reject(new Error('store')) });
    client(s.port);
    await until(() => s.ends.includes('internal'));
  });
});

describe('renewal', () => {
  it('in the middle of 1,000 requests loses none', async () => {
    const s = await serve({ terms: { recordLimit: 100 } });
    const c = client(s.port);
    const seen = new Set<number>();
    await Promise.all(
      Array.from({ length: 20 }, async (_, worker) => {
        for (let i = 0; i < 50; i += 1) {
          const n = worker * 50 + i;
          const answer = await c.client.request({ t: 'echo', n });
          expect(answer.n).toBe(n);
          seen.add(n);
        }
      }),
    );
    expect(seen.size).toBe(1_000);
    expect(s.server.counters.renewals).toBeGreaterThan(3);
    expect(s.server.counters).toMatchObject({ established: 1, requests: 1_000 });
    expect(s.ends).toEqual([]);
  });

  it('is refused to a key that is no longer known', async () => {
    let known = true;
    const s = await serve({ terms: { recordLimit: 20 }, authorise: () => known });
    const c = client(s.port);
    await c.client.request({ t: 'echo', n: 0 });
    known = false;
    const many = Array.from({ length: 50 }, (_, n) =>
      c.client.request({ t: 'echo', n }, { timeoutMs: 500 }).catch(() => undefined),
    );
    await until(() => s.ends.includes('unknown_key'));
    await Promise.all(many);
  });
});

describe('reconnect', () => {
  it('to a server that was killed and restarted answers all requests, in well under 2 s', async () => {
    const first = await serve({
      // Half of the answers never come.
      onRequest: (_session, request) =>
        request.n % 2 === 0 ? { n: request.n } : new Promise(() => {}),
    });
    const c = client(first.port);
    const answers = Array.from({ length: 200 }, (_, n) => c.client.request({ t: 'echo', n }));
    await until(() => c.client.outstanding === 100);
    await first.server.close();
    await until(() => c.states.some((state) => state.kind === 'down'));
    await new Promise((resolve) => setTimeout(resolve, 700));
    const second = await serve({ port: first.port });
    const restarted = Date.now();
    const got = await Promise.all(answers);
    expect(Date.now() - restarted).toBeLessThan(2_000);
    expect(got.map((answer) => answer.n)).toEqual(Array.from({ length: 200 }, (_, n) => n));
    expect(second.server.counters.requests).toBe(100);
  });

  it('goes on to the next server', async () => {
    const dead = await serve();
    await dead.server.close();
    const s = await serve();
    const c = client([dead.port, s.port]);
    await c.client.request({ t: 'echo', n: 1 });
    const open = c.states.find((state) => state.kind === 'open');
    expect(open?.kind === 'open' && open.server.port).toBe(s.port);
  });

  it('backs off with full jitter, and quickly at first', async () => {
    const s = await serve();
    await s.server.close();
    const c = client(s.port, { random: () => 1, limits: { backoffMaxMs: 250 } });
    await until(() => c.states.filter((state) => state.kind === 'down').length >= 4);
    const delays = c.states.flatMap((state) => (state.kind === 'down' ? [state.retryInMs] : []));
    expect(delays.slice(0, 4)).toEqual([100, 200, 250, 250]);
  });

  /** One that accepts connections and hangs up, as a server that is full does. */
  async function full(): Promise<number> {
    const listener = createServer((socket) => socket.destroy());
    cleanups.push(() => new Promise<void>((resolve) => listener.close(() => resolve())));
    await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
    return (listener.address() as AddressInfo).port;
  }

  it('asks each of several servers once before it waits longer', async () => {
    const port = await full();
    const c = client([port, port, port], { random: () => 1 });
    await until(() => c.states.filter((state) => state.kind === 'down').length >= 8);
    const delays = c.states.flatMap((state) => (state.kind === 'down' ? [state.retryInMs] : []));
    expect(delays.slice(0, 8)).toEqual([100, 100, 100, 200, 100, 100, 400, 100]);
  });

  it('looks for the one of several that takes over while nobody listens, for a few seconds', async () => {
    const clock = new FakeClock();
    const s = await serve();
    await s.server.close();
    const c = client([s.port, s.port, s.port], { clock, random: () => 1 });
    const delays = () =>
      c.states.flatMap((state) => (state.kind === 'down' ? [state.retryInMs] : []));
    await until(() => delays().length >= 8);
    expect(delays().slice(0, 8)).toEqual([150, 25, 25, 150, 25, 25, 150, 25]);
    clock.advance(4_000);
    const before = delays().length;
    await until(() => delays().length >= before + 4);
    expect(Math.max(...delays().slice(before))).toBeGreaterThan(150);
  });

  it('does not become a storm at a server that hangs up after each handshake', async () => {
    const s = await serve({ onSession: (session) => setTimeout(() => session.close(), 10) });
    const c = client(s.port, { random: () => 1 });
    await until(() => c.states.filter((state) => state.kind === 'down').length >= 4);
    const delays = c.states.flatMap((state) => (state.kind === 'down' ? [state.retryInMs] : []));
    expect(delays.slice(0, 4)).toEqual([100, 200, 400, 800]);
  });

  it('stays quick at a server that is restarted again and again', async () => {
    const clock = new FakeClock();
    const s = await serve();
    const c = client(s.port, { clock, random: () => 0.01 });
    const rounds = 14;
    for (let round = 1; round <= rounds; round += 1) {
      await until(() => s.sessions.length === round && c.states.at(-1)?.kind === 'open');
      clock.advance(3_000);
      s.sessions.at(-1)?.close();
    }
    await until(() => c.states.filter((state) => state.kind === 'down').length === rounds);
    const delays = c.states.flatMap((state) => (state.kind === 'down' ? [state.retryInMs] : []));
    // A hundredth of a second at most, because random() is; the first delay would be 1 ms.
    expect(Math.max(...delays)).toBeLessThanOrEqual(10);
  });

  it('happens when the server falls silent', async () => {
    const silent: Socket[] = [];
    const s = await serve();
    // A relay that stops carrying bytes.
    let carry = true;
    const relay = createServer((down) => {
      const up = connect(s.port, '127.0.0.1');
      silent.push(down, up);
      down.on('data', (chunk) => carry && up.write(chunk));
      up.on('data', (chunk) => carry && down.write(chunk));
      for (const socket of [up, down]) socket.on('error', () => {});
    });
    await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
    cleanups.push(() => {
      for (const socket of silent) socket.destroy();
      relay.close();
    });
    const address = relay.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const c = client(port, { limits: { keepaliveMs: 50, idleTimeoutMs: 200, tickMs: 20 } });
    await c.client.request({ t: 'echo', n: 1 });
    carry = false;
    const answer = c.client.request({ t: 'echo', n: 2 });
    await until(() => c.states.some((state) => state.kind === 'down'));
    carry = true;
    expect((await answer).n).toBe(2);
    const down = c.states.find((state) => state.kind === 'down');
    expect(down?.kind === 'down' && down.error.message).toContain('(idle)');
  });

  it('ends with stop: what is outstanding fails', async () => {
    const s = await serve({ onRequest: () => new Promise(() => {}) });
    const c = client(s.port);
    const answer = c.client.request({ t: 'echo', n: 1 });
    await until(() => s.server.counters.requests === 1);
    c.client.stop();
    await expect(answer).rejects.toMatchObject({ code: 'CHANNEL_CLOSED' });
    expect(c.client.state).toEqual({ kind: 'stopped' });
    await until(() => s.server.counters.connections === 0);
  });
});

describe('bad peers', () => {
  function raw(port: number): Socket {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => {});
    cleanups.push(() => {
      socket.destroy();
    });
    return socket;
  }

  it('random bytes end a connection with a reason, and the server lives', async () => {
    const s = await serve();
    for (let i = 0; i < 50; i += 1) raw(s.port).write(randomBytes(1 + ((i * 37) % 400)));
    await until(() => s.ends.length >= 40);
    for (const reason of s.ends) expect(reason).toMatch(/^(frame_|handshake_message)/);
    await client(s.port).client.request({ t: 'echo', n: 1 });
  });

  it('idle connections are dropped after the handshake timeout', async () => {
    const s = await serve({ limits: { handshakeTimeoutMs: 100, tickMs: 20 } });
    for (let i = 0; i < 20; i += 1) raw(s.port);
    await until(() => s.server.counters.halfOpen === 20);
    await until(() => s.server.counters.connections === 0);
    expect(s.server.counters.closed.handshake_timeout).toBe(20);
  });

  it('a flood of half-open connections does not keep an honest peer out', async () => {
    const s = await serve({ limits: { maxHalfOpen: 8 } });
    for (let i = 0; i < 40; i += 1) raw(s.port);
    await until(() => s.server.counters.accepted === 40);
    expect(s.server.counters.halfOpen).toBeLessThanOrEqual(8);
    await client(s.port).client.request({ t: 'echo', n: 1 });
    expect(s.server.counters.closed.too_many_half_open).toBeGreaterThanOrEqual(32);
  });

  it('more connections than allowed are closed at once', async () => {
    const s = await serve({ limits: { maxConnections: 3 } });
    for (let i = 0; i < 10; i += 1) raw(s.port);
    await until(() => s.server.counters.closed.too_many_connections === 7);
    expect(s.server.counters.connections).toBe(3);
  });

  it('one that never reads its answers makes the server stop reading, not grow', async () => {
    const s = await serve({
      parse: (m) => m as Request,
      onRequest: async () => ({ b: Buffer.alloc(500_000) }),
    });
    // A relay that takes from the server nothing but the handshake.
    let taken = 0;
    const relay = createServer((down) => {
      const up = connect(s.port, '127.0.0.1');
      cleanups.push(() => {
        up.destroy();
        down.destroy();
      });
      down.on('data', (chunk) => up.write(chunk));
      up.on('data', (chunk) => {
        taken += chunk.length;
        down.write(chunk);
        if (taken > 100) up.pause();
      });
      for (const socket of [up, down]) socket.on('error', () => {});
    });
    await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
    cleanups.push(() => {
      relay.close();
    });
    const address = relay.address();
    const c = client(typeof address === 'object' && address !== null ? address.port : 0);
    for (let n = 0; n < 2_000; n += 1) {
      c.client
        .request({ t: 'echo', pad: Buffer.alloc(2_000) }, { timeoutMs: 60_000 })
        .catch(() => {});
    }
    await until(() => s.server.counters.requests > 5);
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { requests } = s.server.counters;
    expect(requests).toBeLessThan(500);
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(s.server.counters.requests).toBe(requests);
  });
});
