/** Tests of src/net/channel-udp.ts over loopback: a hostile network, floods, bad peers, floods of handshakes. */
import { randomBytes } from 'node:crypto';
import { Socket as UdpSocket } from 'node:dgram';
import { describe, expect, it, vi } from 'vitest';
import { ChannelClient } from '../../../../src/net/channel-client.js';
import { publicMacKeys, stampOpening } from '../../../../src/protocol/channel/admission.js';
import { DatagramType, encodeOpening } from '../../../../src/protocol/channel/datagram.js';
import { datagramPrologue } from '../../../../src/protocol/channel/datagram-connection.js';
import { encodeGreeting } from '../../../../src/protocol/channel/handshake-payload.js';
import { generateKeyPair } from '../../../../src/protocol/channel/keys.js';
import { HandshakeState } from '../../../../src/protocol/channel/noise.js';
import { FakeClock } from '../../../../src/runtime/clock.js';
import {
  CLIENT,
  cleanup,
  client,
  hostileForwarder,
  rawUdp,
  SERVER,
  serve,
  until,
} from './support.js';

/** A message 1 of this key, as a client makes it. */
function message1(staticKeys = CLIENT, serverKey = SERVER.publicKey): Buffer {
  const id = randomBytes(8);
  const handshake = new HandshakeState({
    pattern: 'IK',
    initiator: true,
    prologue: datagramPrologue(id),
    staticKeys,
    remoteStatic: serverKey,
  });
  const noise = handshake.writeMessage(encodeGreeting(undefined));
  const datagram = encodeOpening(DatagramType.message1, id, noise);
  stampOpening(datagram, publicMacKeys(serverKey));
  return datagram;
}

/** One that costs its sender nothing: mac1 is right, the rest is noise. */
function bogusMessage1(): Buffer {
  const datagram = encodeOpening(DatagramType.message1, randomBytes(8), randomBytes(100));
  stampOpening(datagram, publicMacKeys(SERVER.publicKey));
  return datagram;
}

describe('a hostile network', () => {
  it('that drops, doubles, reorders, delays and spoofs: handshakes and 10,000 requests answered, no reconnect', async () => {
    const s = await serve('udp', { terms: { recordLimit: 1_000 } });
    const way = await hostileForwarder(s.port, {
      drop: 0.05,
      double: 0.1,
      delay: 8,
      late: 0.01,
      spoof: 0.3,
    });
    const clients = Array.from({ length: 8 }, () =>
      client('udp', way.port, { staticKeys: generateKeyPair() }),
    );
    let answered = 0;
    await Promise.all(
      clients.flatMap((c, at) =>
        Array.from({ length: 5 }, async (_, worker) => {
          for (let i = 0; i < 250; i += 1) {
            const n = at * 10_000 + worker * 250 + i;
            const answer = await c.client.request({ t: 'echo', n }, { timeoutMs: 60_000 });
            expect(answer.n).toBe(n);
            answered += 1;
          }
        }),
      ),
    );
    expect(answered).toBe(10_000);
    for (const c of clients) {
      expect(c.states.filter((state) => state.kind === 'open' && !state.renewed).length).toBe(1);
      expect(c.states.some((state) => state.kind === 'down')).toBe(false);
    }
    const { counters } = s.server;
    expect(counters).toMatchObject({ sessions: 8, established: 8, requests: 10_000 });
    expect(counters.discarded.replayed).toBeGreaterThan(0);
    expect(counters.discarded.record).toBeGreaterThan(0);
    expect(counters.discarded.shape).toBeGreaterThan(0);
    expect(way.counts.dropped).toBeGreaterThan(50);
    expect(way.counts.spoofed).toBeGreaterThan(500);
    const ends = s.ends.filter((reason) => reason !== 'handshake_timeout');
    expect(ends).toEqual([]);
  }, 120_000);
});

describe('a restart and a silent server', () => {
  it('a client of a server that was killed and restarted comes back at once, told by a reset', async () => {
    const first = await serve('udp');
    const malice = { drop: 0, double: 0, delay: 0, late: 0, spoof: 0 };
    const way = await hostileForwarder(first.port, malice);
    const c = client('udp', way.port);
    await c.client.request({ t: 'echo', n: 1 });
    // Killed: no farewell gets through.
    malice.drop = 1;
    await first.server.close();
    await new Promise((resolve) => setTimeout(resolve, 20));
    malice.drop = 0;
    const second = await serve('udp', { port: first.port });
    const answer = await c.client.request({ t: 'echo', n: 2 }, { timeoutMs: 5_000 });
    expect(answer.n).toBe(2);
    expect(second.server.counters.resets).toBeGreaterThan(0);
    expect(second.sessions.length).toBe(1);
  });

  it('a probe ends the channel of a peer that is gone', async () => {
    const s = await serve('udp');
    const malice = { drop: 0, double: 0, delay: 0, late: 0, spoof: 0 };
    const way = await hostileForwarder(s.port, malice);
    await client('udp', way.port).client.request({ t: 'echo', n: 1 });
    malice.drop = 1;
    s.sessions[0]?.probe();
    await until(() => s.sessions[0]?.closed === true);
    expect(s.ends).toEqual(['idle']);
  });

  it('a reset without the token does not end a channel', async () => {
    const s = await serve('udp');
    const c = client('udp', s.port);
    await c.client.request({ t: 'echo', n: 1 });
    const socket = await rawUdp();
    for (let i = 0; i < 50; i += 1)
      socket.send(Buffer.concat([Buffer.from([6]), randomBytes(24)]), s.port);
    await c.client.request({ t: 'echo', n: 2 });
    expect(c.states.filter((state) => state.kind === 'open').length).toBe(1);
  });
});

describe('a flood of handshakes', () => {
  it('by somebody with a key: 4,096 answers are kept, and with one more the oldest is made anew', async () => {
    // Answers are forgotten after a while, too: it stands still.
    const clock = new FakeClock();
    const s = await serve('udp', { clock, limits: { cookieAbove: 10_000, maxQueue: 10_000 } });
    const socket = await rawUdp();
    const answers: Buffer[] = [];
    socket.on('message', (datagram) => answers.push(datagram));
    const ask = async (datagram: Buffer): Promise<Buffer | undefined> => {
      const before = answers.length;
      socket.send(datagram, s.port);
      await until(() => answers.length > before);
      return answers.at(-1);
    };
    const [first, second] = [message1(), message1()];
    const answer = await ask(first);
    const other = await ask(second);
    for (let sent = 2; sent < 4_096; sent += 64) {
      const until64 = Math.min(4_096, sent + 64);
      for (let n = sent; n < until64; n += 1) socket.send(message1(), s.port);
      await until(() => answers.length === until64);
    }
    // Message 2 was lost: the same message 1 gets the same again, without another handshake.
    expect(await ask(first)).toEqual(answer);
    const { counters } = s.server;
    expect(counters.accepted).toBe(4_096);
    expect(counters.forgotten.answer).toBe(0);
    await ask(message1());
    expect(counters.forgotten.answer).toBe(1);
    expect(await ask(second)).toEqual(other);
    expect(counters.accepted).toBe(4_097);
    expect(await ask(first)).not.toEqual(answer);
    expect(counters.accepted).toBe(4_098);
  }, 60_000);

  it('without mac1 costs no public-key operation and keeps nobody out', async () => {
    const s = await serve('udp');
    const socket = await rawUdp();
    const flood = setInterval(() => {
      for (let i = 0; i < 50; i += 1) {
        const datagram = encodeOpening(DatagramType.message1, randomBytes(8), randomBytes(100));
        socket.send(datagram, s.port);
      }
    }, 2);
    cleanup(() => clearInterval(flood));
    await until(() => s.server.counters.discarded.mac1 > 1_000);
    await client('udp', s.port).client.request({ t: 'echo', n: 1 });
    expect(s.server.counters.discarded.handshake).toBe(0);
  });

  it('with mac1 is answered with cookies before any public-key operation, and an honest client gets in', async () => {
    const s = await serve('udp', { limits: { cookieAbove: 0 } });
    const socket = await rawUdp();
    let longest = 0;
    let answers = 0;
    socket.on('message', (datagram) => {
      answers += 1;
      longest = Math.max(longest, datagram.length);
    });
    const sent = bogusMessage1();
    const flood = setInterval(() => {
      for (let i = 0; i < 20; i += 1) socket.send(bogusMessage1(), s.port);
    }, 2);
    cleanup(() => clearInterval(flood));
    await client('udp', s.port).client.request({ t: 'echo', n: 1 });
    await until(() => answers > 100);
    expect(s.server.counters.cookies).toBeGreaterThan(100);
    expect(s.server.counters.discarded.handshake).toBe(0);
    expect(longest).toBeLessThan(sent.length);
  });

  it('after the cookie a prefix has its limit, and a ticket gets past it', async () => {
    const s = await serve('udp', {
      limits: { cookieAbove: 0, perPrefix: { burst: 2, perSecond: 0.001 } },
    });
    const member = client('udp', s.port);
    await member.client.request({ t: 'echo', n: 1 });
    // Strangers of the same prefix use up what is left of its share.
    const strangers = Array.from({ length: 3 }, () =>
      client('udp', s.port, { staticKeys: generateKeyPair() }),
    );
    await until(() => s.server.counters.discarded.rate > 0);
    const cookies = s.server.counters.cookies;
    s.sessions[0]?.close();
    const answer = await member.client.request({ t: 'echo', n: 2 }, { timeoutMs: 5_000 });
    expect(answer.n).toBe(2);
    expect(member.states.filter((state) => state.kind === 'open').length).toBe(2);
    for (const stranger of strangers) stranger.client.stop();
    expect(cookies).toBeGreaterThan(0);
  });

  it('ten thousand half-open channels take bounded room, and go', async () => {
    const s = await serve('udp', { limits: { maxHalfOpen: 64, cookieAbove: 1e9, maxQueue: 1e5 } });
    const socket = await rawUdp();
    const openings = Array.from({ length: 200 }, () => message1());
    for (let i = 0; i < 10_000; i += 1) {
      const opening = openings[i % openings.length] ?? Buffer.alloc(0);
      socket.send(opening, s.port);
      if (i % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await until(() => s.server.counters.accepted >= openings.length, 20_000);
    expect(s.server.counters.halfOpen).toBeLessThanOrEqual(64);
    // The same message 1 again is answered from memory, not computed.
    expect(s.server.counters.accepted).toBe(openings.length);
    expect(s.server.counters.closed.too_many_half_open).toBeGreaterThanOrEqual(136);
    expect(s.sessions).toEqual([]);
    await client('udp', s.port).client.request({ t: 'echo', n: 1 });
  });

  it('a peer that stops half-way is forgotten', async () => {
    const s = await serve('udp', { limits: { handshakeTimeoutMs: 100, tickMs: 20 } });
    const socket = await rawUdp();
    socket.send(message1(), s.port);
    await until(() => s.server.counters.halfOpen === 1);
    await until(() => s.server.counters.halfOpen === 0);
    expect(s.ends).toEqual(['handshake_timeout']);
  });
});

describe('bad input', () => {
  it('random and oversized datagrams end nothing', async () => {
    const s = await serve('udp');
    const c = client('udp', s.port);
    await c.client.request({ t: 'echo', n: 1 });
    const socket = await rawUdp();
    for (let i = 0; i < 500; i += 1) socket.send(randomBytes((i * 131) % 9_000), s.port);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await c.client.request({ t: 'echo', n: 2 });
    expect(s.ends).toEqual([]);
    expect(c.states.filter((state) => state.kind === 'open').length).toBe(1);
    expect(s.server.counters.discarded.shape).toBeGreaterThan(100);
  });

  it('a datagram from port 0, to which nobody can answer, does not end the server', async () => {
    // No ordinary socket sends from port 0, so the server's own is told that one did.
    const bind = vi.spyOn(UdpSocket.prototype, 'bind');
    const s = await serve('udp');
    const [socket] = bind.mock.contexts as UdpSocket[];
    bind.mockRestore();
    const from = { address: '127.0.0.1', family: 'IPv4', port: 0, size: 0 };
    socket?.emit('message', message1(), from);
    const lost = Buffer.concat([Buffer.from([DatagramType.record]), randomBytes(60)]);
    socket?.emit('message', lost, from);
    expect(s.server.counters.discarded.shape).toBe(2);
    await client('udp', s.port).client.request({ t: 'echo', n: 1 });
  });

  it('word that nobody listens, which anybody can send, does not end an attempt that is answered', async () => {
    const s = await serve('udp');
    const connect = UdpSocket.prototype.connect;
    vi.spyOn(UdpSocket.prototype, 'connect').mockImplementation(function (
      this: UdpSocket,
      ...to: Parameters<UdpSocket['connect']>
    ) {
      this.once('connect', () => this.emit('error', new Error('connect ECONNREFUSED')));
      connect.apply(this, to);
    });
    cleanup(() => {
      vi.restoreAllMocks();
    });
    const c = client('udp', s.port);
    await c.client.request({ t: 'echo', n: 1 });
    expect(c.states.map((state) => state.kind)).toEqual(['connecting', 'open']);
  });

  it('a wrong server key, an unknown static key and a wrong token do not come in', async () => {
    const s = await serve('udp', { authorise: (key) => key.equals(CLIENT.publicKey) });
    const wrongServer = new ChannelClient({
      servers: [
        { scheme: 'udp', host: '127.0.0.1', port: s.port, publicKey: generateKeyPair().publicKey },
      ],
      staticKeys: CLIENT,
    });
    wrongServer.start();
    await until(() => s.server.counters.discarded.mac1 > 0);
    wrongServer.stop();
    client('udp', s.port, { staticKeys: generateKeyPair() });
    await until(() => s.ends.includes('unknown_key'));
    client('udp', s.port, { token: { id: randomBytes(16), psk: randomBytes(32) } });
    await until(() => s.ends.includes('unknown_token'));
    expect(s.sessions).toEqual([]);
    await client('udp', s.port).client.request({ t: 'echo', n: 1 });
  });
});
