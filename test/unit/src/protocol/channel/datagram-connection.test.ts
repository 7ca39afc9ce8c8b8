/**
 * Tests of src/protocol/channel/datagram-connection.ts: both machines over a network that a
 * test makes as bad as it likes, with a fake clock and a fixed seed.
 */
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Admission } from '../../../../../src/protocol/channel/admission.js';
import { type Envelope, encodeMessage } from '../../../../../src/protocol/channel/codec.js';
import {
  CHANNEL_ID_SIZE,
  DATAGRAM_OVERHEAD,
  DatagramType,
  type DiscardReason,
  encodeReset,
  encodeWelcome as encodeWelcomeDatagram,
  MAX_MESSAGE_2,
  MIN_MESSAGE_1,
  parseOpening,
} from '../../../../../src/protocol/channel/datagram.js';
import {
  DatagramClientConnection,
  DatagramServerConnection,
  datagramPrologue,
  makeDatagramKeys,
} from '../../../../../src/protocol/channel/datagram-connection.js';
import type { DatagramKeys } from '../../../../../src/protocol/channel/exchange.js';
import type { FailureReason } from '../../../../../src/protocol/channel/failures.js';
import {
  type ChannelTerms,
  completeTerms,
  encodeWelcome,
} from '../../../../../src/protocol/channel/handshake-payload.js';
import { generateKeyPair } from '../../../../../src/protocol/channel/keys.js';
import { ReassemblyBudget } from '../../../../../src/protocol/channel/reliable.js';
import { InlineResponder } from '../../../../../src/protocol/channel/responder.js';
import { FakeClock, ServerClock, ServerTime } from '../../../../../src/runtime/clock.js';

const SERVER = generateKeyPair();
const CLIENT = generateKeyPair();
const ADDRESS = Buffer.from('192.0.2.7:4000');

/** Random numbers that are the same in each run. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

interface Weather {
  readonly drop?: number;
  readonly double?: number;
  /** Longest delay, ms: each datagram waits between 1 ms and this. */
  readonly delay?: number;
  readonly seed?: number;
}

interface Options {
  readonly weather?: Weather;
  readonly terms?: Partial<ChannelTerms>;
  /** Answers with a cookie unless message 1 has one. */
  readonly cookies?: boolean;
  readonly budget?: ReassemblyBudget;
}

/** A client, a server and what is between them. */
class World {
  readonly clock = new FakeClock();
  readonly discarded: DiscardReason[] = [];
  readonly clientGot: Envelope[] = [];
  readonly serverGot: Envelope[] = [];
  readonly clientEnds: FailureReason[] = [];
  readonly serverEnds: FailureReason[] = [];
  readonly opened: boolean[] = [];
  readonly confirmed: boolean[] = [];
  /** Everything that was ever on the wire. */
  readonly wire: { readonly to: 'client' | 'server'; readonly datagram: Buffer }[] = [];
  readonly admission = new Admission(SERVER, this.clock);
  readonly budget: ReassemblyBudget;
  readonly client: DatagramClientConnection;
  server: DatagramServerConnection | undefined;
  weather: Weather;
  handshakes = 0;
  /** What the server answers to a message; nothing by default. */
  answer: (message: Envelope) => Record<string, unknown> | undefined = () => undefined;
  readonly #options: Options;
  readonly #responder = new InlineResponder(SERVER);
  readonly #serverTime = new ServerClock(this.clock);
  readonly #random: () => number;
  #flying: { at: number; to: 'client' | 'server'; datagram: Buffer }[] = [];
  #answers = new Map<string, Buffer>();

  constructor(options: Options = {}) {
    this.#options = options;
    this.weather = options.weather ?? {};
    this.#random = generator(options.weather?.seed ?? 1);
    this.budget = options.budget ?? new ReassemblyBudget(1 << 24);
    const time = new ServerTime(this.clock);
    this.client = new DatagramClientConnection(
      {
        staticKeys: CLIENT,
        serverKey: SERVER.publicKey,
        clock: this.clock,
        time,
        budget: new ReassemblyBudget(1 << 24),
        maxRecord: 1_232,
      },
      {
        transmit: (datagram) => this.put('server', datagram),
        opened: (_terms, renewed) => {
          this.opened.push(renewed);
          this.client.send(encodeMessage({ t: 'ping', id: 0 }));
        },
        message: (message) => this.clientGot.push(message),
        ticket: () => {},
        heard: () => {},
        discarded: (reason) => this.discarded.push(reason),
        closed: (reason) => this.clientEnds.push(reason),
      },
    );
  }

  /** Lets a datagram go into the weather. */
  put(to: 'client' | 'server', datagram: Buffer): void {
    this.wire.push({ to, datagram: Buffer.from(datagram) });
    const { drop = 0, double = 0, delay = 1 } = this.weather;
    const copies = this.#random() < double ? 2 : 1;
    for (let copy = 0; copy < copies; copy += 1) {
      if (this.#random() < drop) continue;
      const at = this.clock.bootMs() + 1 + Math.floor(this.#random() * delay);
      this.#flying.push({ at, to, datagram: Buffer.from(datagram) });
    }
  }

  /** Delivers a datagram now. */
  deliver(to: 'client' | 'server', datagram: Buffer): void {
    if (to === 'client') this.client.receive(datagram);
    else if (datagram[0] === DatagramType.record) this.server?.receive(datagram);
    else this.#greet(datagram);
  }

  /** Lets time pass, 1 ms at a time. */
  run(ms: number, until: () => boolean = () => false): void {
    for (let passed = 0; passed < ms && !until(); passed += 1) {
      this.clock.advance(1);
      const now = this.clock.bootMs();
      const due = this.#flying.filter((one) => one.at <= now);
      this.#flying = this.#flying.filter((one) => one.at > now);
      for (const { to, datagram } of due) this.deliver(to, datagram);
      for (const end of [this.client, this.server]) {
        if (end === undefined) continue;
        end.flush();
        if (end.deadline !== undefined && end.deadline <= now) end.expire();
        if (passed % 1_000 === 0) end.tick();
      }
    }
  }

  open(): void {
    this.client.start();
    this.run(10_000, () => this.server?.state === 'open' && this.client.state === 'open');
    expect(this.client.state).toBe('open');
    expect(this.server?.state).toBe('open');
  }

  #greet(datagram: Buffer): void {
    const opening = parseOpening(datagram);
    if (opening === undefined) return;
    if (!this.admission.isOurs(opening)) return;
    const standing = this.admission.judge(opening, ADDRESS);
    if (this.#options.cookies === true && standing === 'unproven') {
      this.put('client', this.admission.cookieReply(opening, ADDRESS));
      return;
    }
    const known = this.#answers.get(opening.noise.toString('hex'));
    if (known !== undefined) {
      this.put('client', known);
      return;
    }
    const clientId = Buffer.from(opening.sender);
    this.#keysFor(clientId, opening.noise, (keys, noise) => {
      this.handshakes += 1;
      const answer = encodeWelcomeDatagram(clientId, noise);
      expect(answer.length).toBeLessThanOrEqual(MAX_MESSAGE_2);
      this.#answers.set(opening.noise.toString('hex'), answer);
      this.server = this.#makeServer(keys);
      this.put('client', answer);
    });
  }

  #keysFor(
    clientId: Buffer,
    noise: Buffer,
    done: (keys: DatagramKeys, noise: Uint8Array) => void,
  ): void {
    const greeting = { pattern: 'IK', prologue: datagramPrologue(clientId), noise } as const;
    this.#responder.greet(greeting, (greeted) => {
      if (greeted === undefined) return;
      const local = randomBytes(CHANNEL_ID_SIZE);
      const ticket = this.admission.ticket();
      const payload = encodeWelcome(this.#serverTime.now(), completeTerms(this.#options.terms), {
        channel: local,
        reset: this.admission.resetToken(local),
        ticket: ticket.name,
        key: ticket.key,
      });
      this.#responder.finish(greeted.handle, payload, undefined, (answered) => {
        if (answered === undefined) throw new Error('the responder failed');
        const ids = { local, remote: clientId };
        done(makeDatagramKeys(answered, false, ids, this.clock.bootMs()), answered.noise);
      });
    });
  }

  #makeServer(first: DatagramKeys): DatagramServerConnection {
    const server: DatagramServerConnection = new DatagramServerConnection(
      {
        clock: this.clock,
        time: this.#serverTime,
        budget: this.budget,
        maxRecord: 1_232,
        ...(this.#options.terms ? { terms: this.#options.terms } : {}),
      },
      first,
      {
        transmit: (datagram) => this.put('client', datagram),
        confirmed: (renewed) => this.confirmed.push(renewed),
        message: (message) => {
          this.serverGot.push(message);
          const answer = this.answer(message);
          if (answer !== undefined) server.send(encodeMessage(answer));
        },
        renew: (hello, noise) =>
          this.#keysFor(hello.subarray(0, CHANNEL_ID_SIZE), noise, (keys, welcome) =>
            server.acceptRenewal(hello, keys, welcome),
          ),
        forgotten: () => {},
        discarded: (reason) => this.discarded.push(reason),
        closed: (reason) => this.serverEnds.push(reason),
      },
    );
    return server;
  }
}

const numbers = (messages: readonly Envelope[]): unknown[] =>
  messages.filter((message) => message.n !== undefined).map((message) => message.n);

describe('a channel on datagrams', () => {
  it('carries messages in order, and nothing but message 2 before the client has spoken', () => {
    const world = new World();
    world.client.start();
    world.run(3);
    expect(world.wire.filter((one) => one.to === 'client').length).toBeLessThanOrEqual(1);
    world.run(100);
    for (let n = 0; n < 50; n += 1) world.client.send(encodeMessage({ t: 'x', n }));
    world.run(200);
    expect(numbers(world.serverGot)).toEqual(Array.from({ length: 50 }, (_, n) => n));
    expect(world.wire[0]?.datagram.length).toBeGreaterThanOrEqual(MIN_MESSAGE_1);
    for (const { datagram } of world.wire) expect(datagram.length).toBeLessThanOrEqual(1_232);
    expect(world.discarded).toEqual([]);
  });

  it('carries 1 MiB each way over loss, doubles and reordering, in bounded memory', () => {
    const world = new World({ weather: { drop: 0.05, double: 0.05, delay: 20, seed: 7 } });
    world.open();
    const big = randomBytes(1_048_000);
    world.answer = (message) =>
      message.b instanceof Uint8Array ? { t: 'ok', b: message.b } : undefined;
    expect(world.client.send(encodeMessage({ t: 'x', b: big }))).toBe(true);
    let most = 0;
    world.run(60_000, () => {
      most = Math.max(most, world.budget.used);
      return world.clientGot.some((message) => message.b !== undefined);
    });
    const got = world.clientGot.find((message) => message.b instanceof Uint8Array)?.b;
    expect(Buffer.from(got as Uint8Array).equals(big)).toBe(true);
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(262_144);
    world.run(1_000);
    expect(world.budget.used).toBe(0);
  });

  it('answers 2,000 requests over a network with 20 % loss, half of all doubled, without ending', () => {
    const world = new World({ weather: { drop: 0.2, double: 0.5, delay: 30, seed: 3 } });
    world.answer = (message) => (message.t === 'x' ? { t: 'ok', n: message.n } : undefined);
    world.open();
    let next = 0;
    world.run(120_000, () => {
      while (next < 2_000 && next < numbers(world.clientGot).length + 40) {
        if (!world.client.send(encodeMessage({ t: 'x', n: next }))) break;
        next += 1;
      }
      return numbers(world.clientGot).length === 2_000;
    });
    expect(numbers(world.clientGot)).toEqual(Array.from({ length: 2_000 }, (_, n) => n));
    expect(world.clientEnds).toEqual([]);
    expect(world.serverEnds).toEqual([]);
    expect(world.handshakes).toBe(1);
    expect(world.discarded.every((reason) => reason === 'replayed' || reason === 'channel')).toBe(
      true,
    );
  });

  it('renews its keys under way, over the same bad network, and loses nothing', () => {
    const world = new World({
      weather: { drop: 0.1, double: 0.2, delay: 20, seed: 5 },
      terms: { recordLimit: 50 },
    });
    world.answer = (message) => (message.t === 'x' ? { t: 'ok', n: message.n } : undefined);
    world.open();
    let next = 0;
    world.run(300_000, () => {
      while (next < 3_000 && next < numbers(world.clientGot).length + 20) {
        if (!world.client.send(encodeMessage({ t: 'x', n: next }))) break;
        next += 1;
      }
      return numbers(world.clientGot).length === 3_000;
    });
    expect(numbers(world.clientGot)).toEqual(Array.from({ length: 3_000 }, (_, n) => n));
    expect(world.confirmed.filter((renewed) => renewed).length).toBeGreaterThan(2);
    expect(world.clientEnds).toEqual([]);
    expect(world.serverEnds).toEqual([]);
  });

  it('takes nothing under the keys before once their overlap is over', () => {
    const world = new World({ terms: { lifetimeMs: 5_000 } });
    world.open();
    const before = world.wire.findLast(
      (one) => one.to === 'server' && one.datagram[0] === DatagramType.record,
    )?.datagram;
    world.run(9_000);
    expect(world.confirmed).toContain(true);
    world.discarded.length = 0;
    if (before === undefined) throw new Error('there was no record');
    world.deliver('server', before);
    expect(world.discarded).toEqual(['replayed']);
    world.run(12_000);
    world.discarded.length = 0;
    world.deliver('server', before);
    expect(world.discarded).toEqual(['channel']);
  });

  it('asks again when message 1 or message 2 is lost, with one handshake at the server', () => {
    const world = new World({ weather: { drop: 0.5, seed: 11 } });
    world.open();
    expect(world.handshakes).toBe(1);
  });

  it('goes through a cookie, with loss', () => {
    const world = new World({ cookies: true, weather: { drop: 0.3, double: 0.3, seed: 4 } });
    world.open();
    expect(world.wire.some((one) => one.datagram[0] === DatagramType.cookie)).toBe(true);
  });

  it('tells a peer that it ends, and a reset is believed with its token only', () => {
    const first = new World();
    first.open();
    first.server?.close('stopped');
    first.run(20);
    expect(first.clientEnds).toEqual(['peer_closed']);

    const second = new World();
    second.open();
    const record = second.wire.findLast(
      (one) => one.to === 'server' && one.datagram[0] === DatagramType.record,
    )?.datagram;
    const id = record?.subarray(1, 9) ?? Buffer.alloc(8);
    second.deliver('client', encodeReset(id, randomBytes(16)));
    expect(second.clientEnds).toEqual([]);
    second.deliver('client', second.admission.reset(id));
    expect(second.clientEnds).toEqual(['peer_closed']);
  });
});

describe('bad input on datagrams', () => {
  it('a false message 2 is counted, and the true one still opens the channel', () => {
    const world = new World();
    world.client.start();
    const id = world.wire[0]?.datagram.subarray(1, 9) ?? Buffer.alloc(8);
    for (let i = 0; i < 10; i += 1) {
      world.deliver('client', encodeWelcomeDatagram(id, randomBytes(200)));
    }
    expect(world.discarded).toEqual(Array.from({ length: 10 }, () => 'handshake'));
    world.run(200);
    expect(world.client.state).toBe('open');
    expect(world.handshakes).toBe(1);
  });

  it('cookies without end make the client send once more, and the timer goes on', () => {
    const world = new World({ weather: { drop: 1 } });
    world.client.start();
    const opening = parseOpening(world.wire[0]?.datagram ?? Buffer.alloc(0));
    if (opening === undefined) throw new Error('no message 1');
    for (let i = 0; i < 50; i += 1) {
      // Whoever sees message 1 and knows the server's public key can make a cookie reply.
      const forger = new Admission(SERVER, world.clock);
      world.deliver('client', forger.cookieReply(opening, ADDRESS));
    }
    expect(world.wire.length).toBe(2);
    world.run(300);
    expect(world.wire.length).toBe(3);
  });

  it('random, truncated, altered and repeated records are counted and end nothing', () => {
    const world = new World();
    world.answer = (message) => (message.t === 'x' ? { t: 'ok', n: message.n } : undefined);
    world.open();
    world.client.send(encodeMessage({ t: 'x', n: 1 }));
    world.run(100);
    for (const to of ['client', 'server'] as const) {
      const records = world.wire.filter(
        (one) => one.to === to && one.datagram[0] === DatagramType.record,
      );
      fc.assert(
        fc.property(
          fc.nat(records.length - 1),
          fc.nat(2_000),
          fc.integer({ min: 1, max: 255 }),
          (which, at, flip) => {
            const record = records[which]?.datagram ?? Buffer.alloc(0);
            const altered = Buffer.from(record);
            altered[at % altered.length] = (altered[at % altered.length] ?? 0) ^ flip;
            world.deliver(to, altered);
            world.deliver(to, record.subarray(0, at % record.length));
            world.deliver(to, Buffer.concat([record, Buffer.alloc(1 + (at % 40))]));
            world.deliver(to, record);
          },
        ),
        { numRuns: 200 },
      );
      for (let size = 0; size < 1_400; size += 13) world.deliver(to, randomBytes(size));
    }
    expect(world.clientEnds).toEqual([]);
    expect(world.serverEnds).toEqual([]);
    const before = numbers(world.serverGot).length;
    world.client.send(encodeMessage({ t: 'x', n: 2 }));
    world.run(100);
    expect(numbers(world.serverGot).length).toBe(before + 1);
    expect(numbers(world.clientGot).at(-1)).toBe(2);
    expect(new Set(world.discarded)).toContain('replayed');
    expect(new Set(world.discarded)).toContain('record');
  });

  it('a record that was held back longer than a password lives is thrown away', () => {
    const world = new World();
    world.open();
    const seen = world.wire.length;
    world.weather = { drop: 1 };
    world.client.send(encodeMessage({ t: 'x', n: 1 }));
    world.run(50);
    const held = world.wire
      .slice(seen)
      .find((one) => one.to === 'server' && one.datagram.length > DATAGRAM_OVERHEAD + 20);
    world.weather = {};
    world.run(31_000, () => numbers(world.serverGot).length > 0);
    world.run(31_000);
    world.discarded.length = 0;
    world.deliver('server', held?.datagram ?? Buffer.alloc(0));
    expect(world.discarded).toEqual(['otp']);
    // Sent again with a fresh password, the message came through.
    expect(numbers(world.serverGot)).toEqual([1]);
  });

  it('out-of-order data stops at the budget of the server and is made up for later', () => {
    const world = new World({
      budget: new ReassemblyBudget(5_000),
      weather: { drop: 0.1, delay: 30, seed: 9 },
    });
    world.open();
    const big = randomBytes(200_000);
    world.client.send(encodeMessage({ t: 'x', n: 1, b: big }));
    world.run(120_000, () => numbers(world.serverGot).length > 0);
    expect(numbers(world.serverGot)).toEqual([1]);
    expect(world.discarded).toContain('memory');
    expect(world.budget.used).toBeLessThanOrEqual(5_000);
  });

  it('an authentic peer that sends nonsense is closed', () => {
    const world = new World();
    world.open();
    // 0xc1 is no MessagePack.
    world.client.send(Buffer.from([0xc1]));
    world.run(50);
    expect(world.serverEnds).toEqual(['message_malformed']);
    expect(world.clientEnds).toEqual(['peer_closed']);
  });
});
