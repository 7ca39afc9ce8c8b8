/** What every adapter of the channel does alike, over loopback: sessions, pushes, large messages, renewal, reconnect, limits. */
import { randomBytes } from 'node:crypto';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { encodeBody, HTTP_PATH, MAX_BODY } from '../../../../src/net/channel-http.js';
import { ChannelServer } from '../../../../src/net/channel-server.js';
import { generateKeyPair } from '../../../../src/protocol/channel/keys.js';
import { tokenPsk } from '../../../../src/protocol/token.js';
import { CLIENT, cleanup, client, type EchoRequest, SERVER, serve, until } from './support.js';

describe.each(['tcp', 'udp', 'http'] as const)('over %s', (scheme) => {
  it('answers requests, pushes in order, and shows the peer', async () => {
    const s = await serve(scheme);
    const c = client(scheme, s.port);
    const answers = await Promise.all(
      Array.from({ length: 300 }, (_, n) => c.client.request({ t: 'echo', n })),
    );
    expect(answers.map((answer) => answer.n)).toEqual(Array.from({ length: 300 }, (_, n) => n));
    expect(s.sessions[0]?.remoteKey).toEqual(CLIENT.publicKey);
    expect(s.sessions[0]?.remoteAddress).toMatch(/127\.0\.0\.1:\d+$/);
    for (let n = 0; n < 100; n += 1) s.sessions[0]?.push({ t: 'event', n });
    await until(() => c.pushes.length === 100);
    expect(c.pushes.map((push) => push.n)).toEqual(Array.from({ length: 100 }, (_, n) => n));
    // After a rest, too: a push needs no request before it.
    await new Promise((resolve) => setTimeout(resolve, 300));
    s.sessions[0]?.push({ t: 'event', n: 'late' });
    await until(() => c.pushes.length === 101);
    expect(Math.abs(c.client.time.now() - s.server.time.now())).toBeLessThan(200);
    expect(s.server.counters).toMatchObject({ established: 1, sessions: 1, requests: 300 });
    expect(c.states.filter((state) => state.kind === 'open').length).toBe(1);
  });

  it('carries messages of 1 MiB both ways', async () => {
    const s = await serve(scheme, {
      parse: (message) => message as EchoRequest,
      onRequest: (_session, request) => ({
        n: (request as unknown as { b: Uint8Array }).b.length,
        b: randomBytes(1_000_000),
      }),
    });
    const c = client(scheme, s.port);
    const answer = await c.client.request({ t: 'echo', b: Buffer.alloc(1_048_000) });
    expect(answer.n).toBe(1_048_000);
    expect(answer.b).toHaveLength(1_000_000);
  });

  it('a token lets a new key in, and a wrong one does not', async () => {
    const id = randomBytes(16);
    const key = randomBytes(32);
    const s = await serve(scheme, {
      authorise: () => false,
      psk: async (tokenId) => (tokenId.equals(id) ? tokenPsk(key, id) : undefined),
    });
    await client(scheme, s.port, { token: { id, psk: tokenPsk(key, id) } }).client.request({
      t: 'echo',
      n: 1,
    });
    expect(s.sessions[0]?.tokenId).toEqual(id);
    const wrong = client(scheme, s.port, { token: { id, psk: randomBytes(32) } });
    await expect(
      wrong.client.request({ t: 'echo', n: 2 }, { timeoutMs: 700 }),
    ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
    expect(s.sessions.length).toBe(1);
  });

  it('renews its keys twice in the middle of requests and loses none', async () => {
    const s = await serve(scheme, { terms: { recordLimit: 100 } });
    const c = client(scheme, s.port);
    let asked = 0;
    // How many records pass while a renewal is computed is the machine's business: go on until two are through.
    const more = (): boolean =>
      asked < 1_000 || (s.server.counters.renewals < 2 && asked < 100_000);
    await Promise.all(
      Array.from({ length: 4 }, async () => {
        while (more()) {
          const n = asked;
          asked += 1;
          expect((await c.client.request({ t: 'echo', n })).n).toBe(n);
        }
      }),
    );
    expect(s.server.counters.renewals).toBeGreaterThan(1);
    expect(s.server.counters).toMatchObject({ established: 1, requests: asked });
    expect(s.ends).toEqual([]);
  });

  it('a renewal is refused to a key that is no longer known', async () => {
    let known = true;
    const s = await serve(scheme, { terms: { recordLimit: 20 }, authorise: () => known });
    const c = client(scheme, s.port);
    await c.client.request({ t: 'echo', n: 0 });
    known = false;
    for (let n = 0; n < 60 && s.ends.length === 0; n += 1) {
      await c.client.request({ t: 'echo', n }, { timeoutMs: 500 }).catch(() => undefined);
    }
    await until(() => s.ends.includes('unknown_key'));
  });

  it('comes back to a server that was closed and started again', async () => {
    const first = await serve(scheme);
    const c = client(scheme, first.port);
    await c.client.request({ t: 'echo', n: 1 });
    await first.server.close();
    await until(() => c.states.some((state) => state.kind === 'down'));
    const second = await serve(scheme, { port: first.port });
    expect((await c.client.request({ t: 'echo', n: 2 })).n).toBe(2);
    expect(second.sessions.length).toBe(1);
  });

  it('tells the server when a client stops', async () => {
    const s = await serve(scheme);
    const c = client(scheme, s.port);
    await c.client.request({ t: 'echo', n: 1 });
    c.client.stop();
    await until(() => s.server.counters.sessions === 0);
    expect(s.ends).toEqual(['peer_closed']);
  });

  it('a probe does no harm to a peer that is there', async () => {
    const s = await serve(scheme);
    const c = client(scheme, s.port);
    await c.client.request({ t: 'echo', n: 1 });
    s.sessions[0]?.probe();
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect(s.sessions[0]?.closed).toBe(false);
    expect((await c.client.request({ t: 'echo', n: 2 })).n).toBe(2);
  });

  it('makes room when there are too many of one key, and leaves other keys alone', async () => {
    const s = await serve(scheme, { limits: { maxPerKey: 2 } });
    const other = client(scheme, s.port, { staticKeys: generateKeyPair() });
    await other.client.request({ t: 'echo', n: 0 });
    for (let n = 0; n < 3; n += 1) {
      const c = client(scheme, s.port, { random: () => 1_000 });
      await c.client.request({ t: 'echo', n });
    }
    await until(() => s.ends.includes('too_many_connections'));
    expect(s.sessions.map((session) => session.closed)).toEqual([false, true, false, false]);
  });

  it('a message that the schema refuses ends that channel only', async () => {
    const s = await serve(scheme);
    const bad = client(scheme, s.port, { random: () => 1_000 });
    const good = client(scheme, s.port);
    await good.client.request({ t: 'echo', n: 1 });
    await expect(
      bad.client.request({ t: 'echo', n: 'x' }, { timeoutMs: 500 }),
    ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
    expect(s.ends).toContain('message_malformed');
    await good.client.request({ t: 'echo', n: 2 });
    expect(good.states.filter((state) => state.kind === 'open').length).toBe(1);
  });

  it('a peer that does not read its answers makes the server stop reading, not grow', async () => {
    const s = await serve(scheme, {
      // Handlers that never end.
      onRequest: () => new Promise(() => {}),
    });
    const c = client(scheme, s.port);
    const pad = Buffer.alloc(1_000);
    for (let n = 0; n < 6_000; n += 1) {
      c.client.request({ t: 'echo', n, pad }, { timeoutMs: 60_000 }).catch(() => {});
    }
    await until(() => s.server.counters.requests > 1_000);
    let before = -1;
    while (before !== s.server.counters.requests) {
      before = s.server.counters.requests;
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
    // What is open, and what was granted before the server stopped reading.
    expect(before).toBeLessThan(2_000);
    expect(s.server.counters.paused).toBe(1);
  });
});

it('one server serves all three at once, with common limits and counters', async () => {
  const host = '127.0.0.1';
  const server = new ChannelServer<EchoRequest>({
    listen: [
      { scheme: 'tcp', host, port: 0 },
      { scheme: 'udp', host, port: 0 },
      { scheme: 'http', host, port: 0 },
    ],
    staticKeys: SERVER,
    authorise: () => true,
    psk: () => undefined,
    parse: (message) => message as EchoRequest,
    onRequest: (_session, request) => ({ n: request.n }),
  });
  cleanup(() => server.close());
  for (const { scheme, port } of await server.listen()) {
    const c = client(scheme, port);
    expect((await c.client.request({ t: 'echo', n: port })).n).toBe(port);
  }
  expect(server.counters).toMatchObject({ sessions: 3, requests: 3, established: 3 });
});

describe('bad input over http', () => {
  function raw(port: number): Socket {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => {});
    cleanup(() => {
      socket.destroy();
    });
    return socket;
  }

  /** Sends a request as bytes and gives what comes back until the end. */
  function exchange(port: number, bytes: Buffer | string): Promise<string> {
    return new Promise((resolve) => {
      const socket = raw(port);
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1');
      });
      socket.on('close', () => resolve(text));
      socket.write(bytes);
    });
  }

  function post(body: Buffer, headers = `content-length: ${body.length}\r\n`): Buffer {
    const head = `POST ${HTTP_PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n${headers}\r\n`;
    return Buffer.concat([Buffer.from(head), body]);
  }

  it('random bytes, other paths, broken rows and oversized bodies are refused, and the server lives', async () => {
    const s = await serve('http');
    expect(await exchange(s.port, 'GET / HTTP/1.1\r\nhost: x\r\n\r\n')).toContain(' 404 ');
    expect(await exchange(s.port, randomBytes(300))).toContain(' 400 ');
    expect(await exchange(s.port, post(randomBytes(50).fill(0xff, 0, 2)))).toContain(' 400 ');
    expect(await exchange(s.port, post(Buffer.from([0])))).toContain(' 400 ');
    // Announced too long: refused before a byte of it is read.
    const announced = post(Buffer.alloc(0), `content-length: ${MAX_BODY + 1}\r\n`);
    expect(await exchange(s.port, announced)).toContain(' 413 ');
    // Not announced, and longer than allowed.
    const chunk = Buffer.alloc(MAX_BODY + 100);
    const chunked = post(
      Buffer.concat([Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk]),
      'transfer-encoding: chunked\r\n',
    );
    expect(await exchange(s.port, chunked)).toContain(' 413 ');
    expect(s.server.counters.discarded.body).toBe(2);
    const { length } = `POST ${HTTP_PATH} HTTP/1.1host: xx:`;
    const headers = (size: number) => post(Buffer.alloc(0), `x: ${'x'.repeat(size - length)}\r\n`);
    expect(await exchange(s.port, headers(4_000))).toContain(' 200 ');
    expect(await exchange(s.port, headers(5_000))).toContain(' 431 ');
    const row = encodeBody(Array.from({ length: 40 }, (_, i) => randomBytes(1 + i * 30)));
    expect(await exchange(s.port, post(row))).toContain(' 200 ');
    expect(s.ends).toEqual([]);
    await client('http', s.port).client.request({ t: 'echo', n: 1 });
  });

  it('bodies that never end share a bounded memory, however they come', async () => {
    const s = await serve('http');
    const heap = (): number => process.memoryUsage().heapUsed + process.memoryUsage().external;
    const before = heap();
    // 300 times 255 KiB are 77 MiB, more than the listener keeps.
    const size = MAX_BODY - 1_024;
    let refused = 0;
    const head = `POST ${HTTP_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: ${size + 1}\r\n\r\n`;
    for (let i = 0; i < 300; i += 1) {
      const socket = raw(s.port);
      socket.on('data', () => {
        refused += 1;
      });
      socket.write(head);
      socket.write(Buffer.alloc(size));
    }
    await until(() => refused > 0);
    expect(s.server.counters.discarded.body).toBeGreaterThan(0);
    // Byte by byte, a body costs no more than its bytes.
    const slow = raw(s.port);
    slow.write(`POST ${HTTP_PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n`);
    for (let i = 0; i < 50_000; i += 1) slow.write('1\r\nx\r\n');
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(heap() - before).toBeLessThan(150 * 1_048_576);
    slow.destroy();
  });

  it('what waits for a client that has no POST open is bounded, and what is lost comes again', async () => {
    const s = await serve('http');
    let cut = false;
    const open = new Set<Socket>();
    const way = createServer((near) => {
      if (cut) {
        near.destroy();
        return;
      }
      const far = connect(s.port, '127.0.0.1');
      open.add(near).add(far);
      near.pipe(far).pipe(near);
      for (const socket of [near, far]) socket.on('error', () => {});
    });
    await new Promise<void>((resolve) => way.listen(0, '127.0.0.1', resolve));
    cleanup(() => {
      way.close();
      for (const socket of open) socket.destroy();
    });
    const c = client('http', (way.address() as AddressInfo).port);
    await c.client.request({ t: 'echo', n: 1 });
    cut = true;
    for (const socket of open) socket.destroy();
    // One turn of the event loop each, else they would share records.
    for (let n = 0; n < 200; n += 1) {
      s.sessions[0]?.push({ t: 'event', n });
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await until(() => s.server.counters.discarded.waiting > 0);
    cut = false;
    await until(() => c.pushes.length === 200);
    expect(c.pushes.map((push) => push.n)).toEqual(Array.from({ length: 200 }, (_, n) => n));
    expect(s.ends).toEqual([]);
  }, 30_000);

  it('POSTs that do not wait for their answers end their connection', async () => {
    const s = await serve('http');
    // Nothing to answer: this one would be kept open.
    const opening = Buffer.concat([Buffer.from([1]), randomBytes(300)]);
    const one = post(encodeBody([opening]))
      .toString('latin1')
      .replace('connection: close\r\n', '');
    const answer = await exchange(s.port, Buffer.from(one.repeat(20), 'latin1'));
    expect(answer).not.toContain(' 200 ');
    expect(s.server.counters.discarded.shape).toBeGreaterThan(0);
    await client('http', s.port).client.request({ t: 'echo', n: 1 });
  });

  it('connections without end keep nobody out, and nobody who is in', async () => {
    const s = await serve('http', { limits: { maxConnections: 60, maxHalfOpen: 20 } });
    const before = client('http', s.port);
    await before.client.request({ t: 'echo', n: 1 });
    const strangers = Array.from({ length: 200 }, () => raw(s.port));
    await until(() => s.server.counters.closed.too_many_half_open >= 150);
    await before.client.request({ t: 'echo', n: 2 });
    expect(before.states.filter((state) => state.kind === 'open').length).toBe(1);
    await client('http', s.port).client.request({ t: 'echo', n: 3 });
    for (const socket of strangers) socket.destroy();
  });

  it('connections that say nothing or stop half-way are dropped', async () => {
    const s = await serve('http', { limits: { handshakeTimeoutMs: 200, tickMs: 20 } });
    const silent = Array.from({ length: 50 }, () => raw(s.port));
    const half = Array.from({ length: 50 }, () => {
      const socket = raw(s.port);
      socket.write(`POST ${HTTP_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc`);
      return socket;
    });
    let closed = 0;
    for (const socket of [...silent, ...half]) {
      socket.resume();
      socket.on('close', () => {
        closed += 1;
      });
    }
    await until(() => closed === 100);
    await client('http', s.port).client.request({ t: 'echo', n: 1 });
  });
});
