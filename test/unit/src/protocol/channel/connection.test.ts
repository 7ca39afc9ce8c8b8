/** Tests of src/protocol/channel/connection.ts: both machines joined by hand, with a fake clock. */
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeMessage,
  type Envelope,
  encodeMessage,
} from '../../../../../src/protocol/channel/codec.js';
import {
  ClientConnection,
  type Hello,
  ServerConnection,
} from '../../../../../src/protocol/channel/connection.js';
import {
  FAILURE_REASONS,
  type FailureReason,
  failureError,
} from '../../../../../src/protocol/channel/failures.js';
import { encodeFrame, FrameType } from '../../../../../src/protocol/channel/framing.js';
import type {
  ChannelTerms,
  ChannelToken,
} from '../../../../../src/protocol/channel/handshake-payload.js';
import { generateKeyPair } from '../../../../../src/protocol/channel/keys.js';
import { HandshakeState } from '../../../../../src/protocol/channel/noise.js';
import { OutputBuffer } from '../../../../../src/protocol/channel/output.js';
import { FakeClock, ServerClock, ServerTime } from '../../../../../src/runtime/clock.js';

const SERVER = generateKeyPair();
const CLIENT = generateKeyPair();

interface Options {
  serverKey?: Buffer;
  token?: ChannelToken;
  terms?: Partial<ChannelTerms>;
  hello?: (hello: Hello, server: ServerConnection) => void;
}

/** A client and a server, with the bytes between them under the test's control. */
function channel(options: Options = {}) {
  const clock = new FakeClock();
  const serverTime = new ServerClock(clock);
  const time = new ServerTime(clock);
  const log = {
    hello: [] as Hello[],
    opened: [] as boolean[],
    confirmed: [] as boolean[],
    client: [] as Envelope[],
    server: [] as Envelope[],
    clientClosed: [] as FailureReason[],
    serverClosed: [] as FailureReason[],
  };
  const clientOut = new OutputBuffer();
  const serverOut = new OutputBuffer();
  const client = new ClientConnection(
    {
      staticKeys: CLIENT,
      serverKey: options.serverKey ?? SERVER.publicKey,
      clock,
      time,
      ...(options.token ? { token: options.token } : {}),
    },
    clientOut,
    {
      opened: (_terms, renewed) => {
        log.opened.push(renewed);
        client.send(encodeMessage({ t: 'ping', id: 0 }));
      },
      message: (message) => log.client.push(message),
      closed: (reason) => log.clientClosed.push(reason),
    },
  );
  const server: ServerConnection = new ServerConnection(
    {
      staticKeys: SERVER,
      clock,
      time: serverTime,
      ...(options.terms ? { terms: options.terms } : {}),
    },
    serverOut,
    {
      hello: (hello) => {
        log.hello.push(hello);
        if (options.hello) options.hello(hello, server);
        else server.accept();
      },
      confirmed: (renewed) => log.confirmed.push(renewed),
      message: (message) => log.server.push(message),
      closed: (reason) => log.serverClosed.push(reason),
    },
  );
  const toServer = (): Buffer => Buffer.concat(clientOut.take());
  const toClient = (): Buffer => Buffer.concat(serverOut.take());
  /** Carries bytes both ways until none are left. */
  const settle = (): void => {
    for (let i = 0; i < 100; i += 1) {
      const [a, b] = [toServer(), toClient()];
      if (a.length + b.length === 0) return;
      if (a.length > 0) server.receive(a);
      if (b.length > 0) client.receive(b);
    }
    throw new Error('the two never come to rest');
  };
  const open = (): void => {
    client.start();
    settle();
  };
  return { clock, time, log, client, server, toServer, toClient, settle, open };
}

describe('a first handshake', () => {
  it('opens the channel, shows the key and aligns the clock', () => {
    const c = channel();
    c.open();
    expect(c.log).toMatchObject({ opened: [false], confirmed: [false], server: [{ t: 'ping' }] });
    expect(c.log.hello[0]?.remoteKey).toEqual(CLIENT.publicKey);
    expect(c.log.hello[0]?.tokenId).toBeUndefined();
    expect(c.time.now()).toBe(Math.floor(c.clock.wallMs()));
    c.server.send(encodeMessage({ t: 'event', text: 'hi' }));
    c.settle();
    expect(c.log.client).toEqual([{ t: 'event', text: 'hi' }]);
  });

  it('with a token names the token, and works with the right PSK only', () => {
    const token = { id: randomBytes(16), psk: randomBytes(32) };
    const good = channel({ token, hello: (_h, server) => server.accept(token.psk) });
    good.open();
    expect(good.log.hello[0]?.tokenId).toEqual(token.id);
    expect(good.log.confirmed).toEqual([false]);
    const bad = channel({ token, hello: (_h, server) => server.accept(randomBytes(32)) });
    bad.open();
    expect(bad.log.clientClosed).toEqual(['handshake_message']);
    expect(bad.log.confirmed).toEqual([]);
    expect(bad.server.sendable).toBe(false);
  });

  it('with a wrong server key ends at message 1', () => {
    const c = channel({ serverKey: generateKeyPair().publicKey });
    c.open();
    expect(c.log.serverClosed).toEqual(['handshake_message']);
    expect(c.log.hello).toEqual([]);
  });

  it('is refused for an unknown key before message 2, without a byte', () => {
    const c = channel({ hello: (_h, server) => server.refuse('unknown_key') });
    c.open();
    expect(c.log.serverClosed).toEqual(['unknown_key']);
    expect(c.toClient().length).toBe(0);
  });

  it('can be decided later', () => {
    const c = channel({ hello: () => {} });
    c.open();
    expect(c.server.state).toBe('deciding');
    c.server.accept();
    c.settle();
    expect(c.log.confirmed).toEqual([false]);
  });

  it('replayed gives no session: nothing is sent but message 2, and a record must come', () => {
    const c = channel();
    c.client.start();
    const recording = c.toServer();
    const replay = channel();
    replay.server.receive(recording);
    expect(replay.server.state).toBe('unconfirmed');
    expect(replay.server.send(encodeMessage({ t: 'secret' }))).toBe(false);
    expect(replay.log.confirmed).toEqual([]);
    replay.server.receive(recording);
    expect(replay.log.serverClosed).toEqual(['frame_unexpected']);
  });

  it('refuses payloads that are not what the protocol says', () => {
    for (const [type, payload] of [
      [FrameType.message1, { v: 2 }],
      [FrameType.message1, []],
      [FrameType.message1Psk, { v: 1 }],
      [FrameType.message1Psk, { v: 1, token: new Uint8Array(15) }],
    ] as const) {
      const c = channel();
      const handshake = new HandshakeState({
        pattern: type === FrameType.message1 ? 'IK' : 'IKpsk2',
        initiator: true,
        prologue: Buffer.from('pairwire/1 channel'),
        staticKeys: CLIENT,
        remoteStatic: SERVER.publicKey,
      });
      c.server.receive(encodeFrame(type, handshake.writeMessage(encodeMessage(payload))));
      expect(c.log.serverClosed).toEqual(['handshake_payload']);
    }
  });

  it('has the payloads of the protocol', () => {
    const responder = new HandshakeState({
      pattern: 'IK',
      initiator: false,
      prologue: Buffer.from('pairwire/1 channel'),
      staticKeys: SERVER,
    });
    const c = channel();
    c.client.start();
    const frame = c.toServer();
    expect(frame.readUInt32BE(0)).toBe(frame.length - 4);
    expect(frame[4]).toBe(1);
    expect(decodeMessage(responder.readMessage(frame.subarray(5)))).toEqual({ v: 1 });
    const welcome = {
      time: 1_700_000_000_000,
      lifetime: 3_600,
      records: 2 ** 20,
      validity: 30_000,
    };
    const m2 = responder.writeMessage(encodeMessage(welcome));
    c.client.receive(encodeFrame(FrameType.message2, m2));
    expect(c.log.opened).toEqual([false]);
    expect(c.time.now()).toBe(welcome.time);
  });
});

describe('bad bytes', () => {
  const REASONS = new Set<string>(FAILURE_REASONS);

  it('at any moment close with a typed reason, never throw, never open a session', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('waiting', 'deciding', 'unconfirmed', 'open'),
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { minLength: 1, maxLength: 10 }),
        (moment, chunks) => {
          const c = channel(moment === 'deciding' ? { hello: () => {} } : {});
          if (moment === 'open') c.open();
          else if (moment !== 'waiting') {
            c.client.start();
            c.server.receive(c.toServer());
          }
          const before = c.log.server.length;
          for (const chunk of chunks) {
            c.server.receive(Buffer.from(chunk));
            c.client.receive(Buffer.from(chunk));
          }
          expect(c.log.serverClosed.length).toBeLessThanOrEqual(1);
          for (const reason of [...c.log.serverClosed, ...c.log.clientClosed]) {
            expect(REASONS.has(reason)).toBe(true);
            expect(reason).not.toBe('internal');
          }
          expect(c.log.server.length).toBe(before);
        },
      ),
      { numRuns: 300 },
    );
  });

  it('a flipped bit anywhere in a stream ends it there; what came before is delivered', () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 1, max: 64 }), (place, cut) => {
        const c = channel();
        c.open();
        for (let n = 0; n < 5; n += 1) c.client.send(encodeMessage({ t: 'a', id: n }));
        const stream = c.toServer();
        const at = place % stream.length;
        stream[at] = (stream[at] ?? 0) ^ (1 << (place & 7));
        for (let i = 0; i < stream.length; i += cut) c.server.receive(stream.subarray(i, i + cut));
        const whole = Math.floor(at / (stream.length / 5));
        const delivered = c.log.server.filter((m) => m.t === 'a').map((m) => m.id);
        expect(delivered).toEqual([0, 1, 2, 3, 4].slice(0, whole));
        // A longer length only makes the server wait for bytes that don't come.
        if (c.log.serverClosed.length === 0) expect(at % (stream.length / 5)).toBeLessThan(4);
      }),
      { numRuns: 150 },
    );
  });

  it.each([
    ['a repeated record', (r: Buffer[]) => [r[0], r[0]], 'record_tag'],
    ['a record left out', (r: Buffer[]) => [r[1]], 'record_tag'],
    ['records exchanged', (r: Buffer[]) => [r[1], r[0]], 'record_tag'],
    ['message 2 at the server', () => [encodeFrame(3, Buffer.alloc(60))], 'frame_unexpected'],
    ['a second message 1', () => [encodeFrame(1, Buffer.alloc(120))], 'frame_unexpected'],
    ['a record too short', () => [encodeFrame(4, Buffer.alloc(31))], 'record_short'],
    ['a length of 2^32 - 1', () => [Buffer.from('ffffffff04', 'hex')], 'frame_length'],
  ])('%s closes', (_name, make, reason) => {
    const c = channel();
    c.open();
    const records: Buffer[] = [];
    for (let n = 0; n < 2; n += 1) {
      c.client.send(encodeMessage({ t: 'a', id: n }));
      records.push(c.toServer());
    }
    for (const frame of make(records)) if (frame) c.server.receive(frame);
    expect(c.log.serverClosed).toEqual([reason]);
  });

  it('an old and a future one-time password close, in both directions', () => {
    for (const [ms, reason] of [
      [30_001, 'otp_old'],
      [30_000, undefined],
    ] as const) {
      const c = channel();
      c.open();
      c.client.send(encodeMessage({ t: 'a' }));
      c.server.send(encodeMessage({ t: 'b' }));
      const [a, b] = [c.toServer(), c.toClient()];
      c.clock.advance(ms);
      c.server.receive(a);
      c.client.receive(b);
      expect(c.log.serverClosed).toEqual(reason ? [reason] : []);
      expect(c.log.clientClosed).toEqual(reason ? [reason] : []);
    }
    const c = channel();
    c.open();
    // The client is made to believe in a time that is far ahead.
    c.time.sample(c.clock.wallMs() + 40_000, c.clock.bootMs());
    c.client.send(encodeMessage({ t: 'a' }));
    c.settle();
    expect(c.log.serverClosed).toEqual(['otp_future']);
  });

  it('a message that is no map closes', () => {
    const c = channel();
    c.open();
    c.client.send(encodeMessage([1, 2]));
    c.settle();
    expect(c.log.serverClosed).toEqual(['message_malformed']);
  });

  it('an event that throws closes with the reason internal', () => {
    const c = channel({
      hello: () => {
        throw new Error('x');
      },
    });
    c.open();
    expect(c.log.serverClosed).toEqual(['internal']);
  });

  it('every reason has an error with a code', () => {
    for (const reason of FAILURE_REASONS) {
      expect(failureError(reason, '192.0.2.1:5').code).toMatch(/^CHANNEL_/);
    }
  });
});

describe('renewal', () => {
  it('after the record limit loses nothing of 1,000 requests, whichever way they cross', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 5, max: 200 }),
        fc.integer({ min: 1, max: 700 }),
        (limit, cut) => {
          const c = channel({ terms: { recordLimit: limit } });
          c.open();
          const answers: number[] = [];
          let sent = 0;
          let answered = 0;
          const inbox: Envelope[] = [];
          for (let round = 0; answers.length < 1_000 && round < 20_000; round += 1) {
            while (sent < 1_000 && sent - answers.length < 50 && c.client.sendable) {
              sent += 1;
              c.client.send(encodeMessage({ t: 'q', id: sent }));
            }
            // Both ways at once, in small pieces.
            const [a, b] = [c.toServer(), c.toClient()];
            for (let i = 0; i < Math.max(a.length, b.length); i += cut) {
              if (i < a.length) c.server.receive(a.subarray(i, i + cut));
              if (i < b.length) c.client.receive(b.subarray(i, i + cut));
            }
            inbox.push(...c.log.server.splice(0).filter((m) => m.t === 'q'));
            while (answered < inbox.length && c.server.sendable) {
              c.server.send(encodeMessage({ t: 'ok', id: inbox[answered]?.id }));
              answered += 1;
            }
            for (const m of c.log.client.splice(0)) if (m.id !== undefined) answers.push(m.id);
          }
          expect(c.log.clientClosed).toEqual([]);
          expect(c.log.serverClosed).toEqual([]);
          expect(answers).toEqual(Array.from({ length: 1_000 }, (_, i) => i + 1));
          // A burst of 50 may go over the limit before the client hears of it.
          expect(c.log.opened.filter(Boolean).length).toBeGreaterThan(2);
          expect(c.log.confirmed.length).toBe(c.log.opened.length);
        },
      ),
      { numRuns: 15 },
    );
  });

  it('comes with age, too, by tick alone', () => {
    const c = channel({ terms: { lifetimeMs: 60_000 } });
    c.open();
    c.clock.advance(59_999);
    c.server.tick();
    c.settle();
    expect(c.log.opened).toEqual([false]);
    c.clock.advance(1);
    c.server.tick();
    c.settle();
    expect(c.log.opened).toEqual([false, true]);
    expect(c.log.hello[1]?.renewal).toBe(true);
    expect(c.log.confirmed).toEqual([false, true]);
  });

  it('of a first contact uses IK, not the token again', () => {
    const token = { id: randomBytes(16), psk: randomBytes(32) };
    const c = channel({
      token,
      terms: { lifetimeMs: 60_000 },
      hello: (hello, server) => server.accept(hello.tokenId ? token.psk : undefined),
    });
    c.open();
    c.clock.advance(60_000);
    c.server.tick();
    c.settle();
    expect(c.log.hello.map((h) => h.tokenId?.length)).toEqual([16, undefined]);
    expect(c.log.confirmed).toEqual([false, true]);
  });

  it('that the client does not follow closes after 30 s', () => {
    const c = channel({ terms: { lifetimeMs: 60_000 } });
    c.open();
    c.clock.advance(60_000);
    c.server.tick();
    c.clock.advance(30_001);
    c.server.tick();
    expect(c.log.serverClosed).toEqual(['expired']);
  });

  it('that the server forgets closes at the client', () => {
    const c = channel();
    c.open();
    c.clock.advance(3_600_000 + 60_001);
    c.client.tick();
    expect(c.log.clientClosed).toEqual(['expired']);
  });

  it('with another static key is refused', () => {
    const c = channel({ terms: { lifetimeMs: 60_000 } });
    c.open();
    c.clock.advance(60_000);
    c.server.tick();
    const other = new HandshakeState({
      pattern: 'IK',
      initiator: true,
      prologue: Buffer.from('pairwire/1 channel'),
      staticKeys: generateKeyPair(),
      remoteStatic: SERVER.publicKey,
    });
    c.server.receive(encodeFrame(1, other.writeMessage(encodeMessage({ v: 1 }))));
    expect(c.log.serverClosed).toEqual(['handshake_key_changed']);
  });
});
