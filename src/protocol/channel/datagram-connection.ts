/**
 * The secure channel on datagrams as two machines without I/O, docs/protocol.md 6.7 to 6.9.
 * Datagrams go in by `receive`, everything comes out through the events that the owner passes
 * in. Time comes from a clock; `expire` is to be called at `deadline`, `tick` about once a
 * second, `flush` after anything else (at the end of a turn, so that much leaves in few records).
 *
 * Error contract: no method throws on account of what a peer sent. What is not authentic is
 * thrown away and counted; what an authentic peer did wrong closes the machine, which calls
 * `closed` once.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { Clock, ServerTime, TimeSource } from '../../runtime/clock.js';
import {
  mac1Of,
  openCookieReply,
  type PublicMacKeys,
  publicMacKeys,
  stampOpening,
  type Ticket,
} from './admission.js';
import { type Envelope, encodeMessage } from './codec.js';
import { EXPIRY_GRACE_MS, EXPIRY_GRACE_RECORDS } from './connection.js';
import {
  CHANNEL_ID_SIZE,
  DatagramType,
  type DiscardReason,
  encodeOpening,
  idKey,
  noiseOfWelcome,
  parseReset,
  receiverOf,
} from './datagram.js';
import { DatagramOpener, DatagramSealer } from './datagram-record.js';
import { type DatagramKeys, Exchange, type ExchangeEvents } from './exchange.js';
import type { FailureReason } from './failures.js';
import {
  type ChannelTerms,
  type ChannelToken,
  completeTerms,
  encodeGreeting,
  parseDatagramWelcome,
} from './handshake-payload.js';
import type { KeyPair } from './keys.js';
import { HandshakeState } from './noise.js';
import { Direction } from './otp.js';
import type { ReassemblyBudget } from './reliable.js';

const PROLOGUE = Buffer.from('pairwire/1 datagram', 'ascii');
/** A message 1 without an answer goes again after this, twice as long each time. */
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 2_000;
/** A cookie is good for 2 minutes at least. */
const COOKIE_LIFETIME_MS = 110_000;
/** False messages 2 that one handshake looks at before it begins again; only who sees our datagrams can send them. */
const MAX_FALSE_WELCOMES = 64;

/** Prologue of a handshake on datagrams: the label and the client's channel id. */
export function datagramPrologue(clientId: Uint8Array): Buffer {
  return Buffer.concat([PROLOGUE, clientId]);
}

/** The three keys of a handshake; they are copied, and zeroed here. */
export interface SplitKeys {
  readonly initiatorKey: Uint8Array;
  readonly responderKey: Uint8Array;
  readonly otpKey: Uint8Array;
}

/** The keys of one end from those of a handshake. */
export function makeDatagramKeys(
  split: SplitKeys,
  initiator: boolean,
  ids: { readonly local: Buffer; readonly remote: Buffer },
  startedAt: number,
): DatagramKeys {
  const { initiatorKey, responderKey, otpKey } = split;
  const { toResponder, toInitiator } = Direction;
  const keys = {
    tx: initiator
      ? new DatagramSealer(initiatorKey, otpKey, toResponder, ids.remote)
      : new DatagramSealer(responderKey, otpKey, toInitiator, ids.remote),
    rx: initiator
      ? new DatagramOpener(responderKey, otpKey, toInitiator)
      : new DatagramOpener(initiatorKey, otpKey, toResponder),
    localId: ids.local,
    startedAt,
  };
  for (const key of [initiatorKey, responderKey, otpKey]) key.fill(0);
  return keys;
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** A message 1 that waits for its answer. */
interface Greeting {
  readonly handshake: HandshakeState;
  readonly localId: Buffer;
  readonly sentAt: number;
  /** The datagram, or the body of a `renew` frame. */
  readonly bytes: Buffer;
  retryAt: number;
  retries: number;
  /** A cookie was answered since the last of them. */
  cookieTaken: boolean;
  falseWelcomes: number;
}

/**
 * States of a client:
 *
 *   idle --start--> greeting --message 2--> open --{t: expire}--> open, renewing --renewed--> open
 *   any  --failure or close--> closed
 */
type ClientState =
  | { readonly kind: 'idle' }
  | { readonly kind: 'greeting'; readonly greeting: Greeting }
  | {
      readonly kind: 'open';
      readonly terms: ChannelTerms;
      /** Server's channel id and the token of a reset for it. */
      readonly remoteId: Buffer;
      readonly resetToken: Buffer;
      readonly renewal: Greeting | undefined;
    }
  | { readonly kind: 'closed'; readonly reason: FailureReason };

export interface DatagramClientOptions {
  readonly staticKeys: KeyPair;
  /** The server's static public key, 32 bytes. */
  readonly serverKey: Uint8Array;
  readonly token?: ChannelToken;
  /** From an earlier channel to this server: used up by `start`. */
  readonly ticket?: Ticket;
  readonly clock: Clock;
  readonly time: ServerTime;
  readonly budget: ReassemblyBudget;
  readonly maxRecord: number;
  /** For channel ids; the default is `randomBytes`. */
  readonly random?: (size: number) => Buffer;
}

export interface DatagramClientEvents {
  transmit(datagram: Buffer): void;
  /** The channel can carry messages. The owner must send one at once, because the server waits for it. */
  opened(terms: ChannelTerms, renewed: boolean): void;
  message(message: Envelope): void;
  /** A ticket for the next handshake with this server. */
  ticket(ticket: Ticket): void;
  /** An authentic record came. */
  heard(): void;
  discarded(reason: DiscardReason): void;
  closed(reason: FailureReason): void;
}

/** The initiator's end of a channel on datagrams. */
export class DatagramClientConnection {
  readonly #options: DatagramClientOptions;
  readonly #events: DatagramClientEvents;
  readonly #macKeys: PublicMacKeys;
  readonly #random: (size: number) => Buffer;
  #exchange: Exchange | undefined;
  #state: ClientState = { kind: 'idle' };
  #ticket: Ticket | undefined;
  #cookie: { readonly value: Buffer; readonly until: number } | undefined;

  constructor(options: DatagramClientOptions, events: DatagramClientEvents) {
    this.#options = options;
    this.#events = events;
    this.#macKeys = publicMacKeys(options.serverKey);
    this.#random = options.random ?? randomBytes;
    this.#ticket = options.ticket;
  }

  get state(): ClientState['kind'] {
    return this.#state.kind;
  }

  /** True if `send` would take a message now. */
  get sendable(): boolean {
    return this.#state.kind === 'open' && this.#exchange?.sendable === true;
  }

  /** Puts out message 1. */
  start(): void {
    if (this.#state.kind !== 'idle') return;
    this.#guard(() => this.#greet());
  }

  /** Takes a datagram. Never throws. @returns false if it was thrown away */
  receive(datagram: Buffer): boolean {
    if (this.#state.kind === 'closed' || this.#state.kind === 'idle') return false;
    let taken = false;
    this.#guard(() => {
      const reason = this.#receive(datagram);
      taken = reason === undefined;
      if (reason !== undefined) this.#events.discarded(reason);
    });
    return taken;
  }

  /** Takes an encoded message (at most 1 MiB). @returns false if the channel can't take it now */
  send(message: Uint8Array): boolean {
    const state = this.#state;
    if (state.kind !== 'open' || this.#exchange === undefined) return false;
    if (this.#exchange.records >= EXPIRY_GRACE_RECORDS(state.terms.recordLimit)) {
      this.close('expired');
      return false;
    }
    return this.#exchange.send(message);
  }

  /** Puts out what waits. */
  flush(): void {
    this.#guard(() => this.#exchange?.flush());
  }

  /** Puts out a record even if there is nothing to say. */
  poll(): void {
    this.#guard(() => this.#exchange?.poll());
  }

  /** When `expire` is to be called. */
  get deadline(): number | undefined {
    const retryAt = this.#greeting?.retryAt;
    const deadline = this.#exchange?.deadline;
    if (retryAt === undefined) return deadline;
    return deadline === undefined ? retryAt : Math.min(retryAt, deadline);
  }

  /** Looks at the timers. */
  expire(): void {
    this.#guard(() => {
      const greeting = this.#greeting;
      if (greeting !== undefined && this.#options.clock.bootMs() >= greeting.retryAt) {
        this.#retry(greeting);
      }
      this.#exchange?.expire();
      this.#exchange?.flush();
    });
  }

  /** Closes a channel that the server has let live too long. */
  tick(): void {
    const keys = this.#exchange?.keys;
    if (this.#state.kind !== 'open' || keys === undefined) return;
    this.#exchange?.tick();
    const age = this.#options.clock.bootMs() - keys.startedAt;
    if (age > this.#state.terms.lifetimeMs + 2 * EXPIRY_GRACE_MS) this.close('expired');
  }

  /** Ends the channel. */
  close(reason: FailureReason): void {
    if (this.#state.kind === 'closed') return;
    this.#greeting?.handshake.wipe();
    this.#state = { kind: 'closed', reason };
    this.#exchange?.close(reason !== 'peer_closed');
    this.#events.closed(reason);
  }

  get #greeting(): Greeting | undefined {
    if (this.#state.kind === 'greeting') return this.#state.greeting;
    return this.#state.kind === 'open' ? this.#state.renewal : undefined;
  }

  // ------------------------------------------------------------------ handshake

  /** -> e, es, s, ss */
  #message1(token: ChannelToken | undefined): {
    readonly handshake: HandshakeState;
    readonly localId: Buffer;
    readonly noise: Buffer;
  } {
    const localId = this.#random(CHANNEL_ID_SIZE);
    const handshake = new HandshakeState({
      pattern: token === undefined ? 'IK' : 'IKpsk2',
      initiator: true,
      prologue: datagramPrologue(localId),
      staticKeys: this.#options.staticKeys,
      remoteStatic: this.#options.serverKey,
      ...(token === undefined ? {} : { psk: token.psk }),
    });
    return { handshake, localId, noise: handshake.writeMessage(encodeGreeting(token?.id)) };
  }

  #greet(): void {
    const { token } = this.#options;
    const { handshake, localId, noise } = this.#message1(token);
    const type = token === undefined ? DatagramType.message1 : DatagramType.message1Psk;
    const bytes = encodeOpening(type, localId, noise);
    const ticket = this.#ticket;
    this.#ticket = undefined;
    this.#stamp(bytes, ticket);
    this.#state = { kind: 'greeting', greeting: this.#waiting(handshake, localId, bytes) };
    this.#events.transmit(bytes);
  }

  #waiting(handshake: HandshakeState, localId: Buffer, bytes: Buffer): Greeting {
    const sentAt = this.#options.clock.bootMs();
    const retryAt = sentAt + FIRST_RETRY_MS;
    return {
      handshake,
      localId,
      bytes,
      sentAt,
      retryAt,
      retries: 0,
      cookieTaken: false,
      falseWelcomes: 0,
    };
  }

  #stamp(bytes: Buffer, ticket: Ticket | undefined): void {
    const cookie = this.#cookie;
    const fresh = cookie !== undefined && this.#options.clock.bootMs() < cookie.until;
    if (ticket !== undefined) stampOpening(bytes, this.#macKeys, { ticket });
    else if (fresh) stampOpening(bytes, this.#macKeys, { cookie: cookie.value });
    else stampOpening(bytes, this.#macKeys);
  }

  /** The same message 1 again: the server knows it by its ephemeral key and answers the same. */
  #retry(greeting: Greeting): void {
    greeting.retries += 1;
    greeting.cookieTaken = false;
    const wait = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** greeting.retries);
    greeting.retryAt = this.#options.clock.bootMs() + wait;
    if (this.#state.kind === 'open') {
      this.#exchange?.sendRenewal('renew', greeting.bytes);
    } else if (greeting.falseWelcomes >= MAX_FALSE_WELCOMES) {
      greeting.handshake.wipe();
      this.#greet();
    } else {
      this.#events.transmit(greeting.bytes);
    }
  }

  #receive(datagram: Buffer): DiscardReason | undefined {
    const state = this.#state;
    switch (datagram[0]) {
      case DatagramType.message2:
        if (state.kind !== 'greeting') return 'channel';
        if (receiverOf(datagram) !== idKey(state.greeting.localId)) return 'channel';
        return this.#welcome(state.greeting, noiseOfWelcome(datagram));
      case DatagramType.cookie:
        return state.kind === 'greeting' ? this.#takeCookie(state.greeting, datagram) : 'channel';
      case DatagramType.record:
        return state.kind === 'open' ? this.#record(datagram) : 'channel';
      case DatagramType.reset:
        return state.kind === 'open' ? this.#reset(state, datagram) : 'channel';
      default:
        return 'shape';
    }
  }

  #takeCookie(greeting: Greeting, datagram: Buffer): DiscardReason | undefined {
    if (receiverOf(datagram) !== idKey(greeting.localId)) return 'channel';
    const value = openCookieReply(datagram, this.#macKeys, mac1Of(greeting.bytes));
    if (value === undefined) return 'handshake';
    this.#cookie = { value, until: this.#options.clock.bootMs() + COOKIE_LIFETIME_MS };
    this.#stamp(greeting.bytes, undefined);
    // One that is seen on its way could be answered with any number of cookies; only one of them
    // makes us send before the timer does.
    if (greeting.cookieTaken) return undefined;
    greeting.cookieTaken = true;
    this.#events.transmit(greeting.bytes);
    return undefined;
  }

  /** <- e, ee, se (psk) */
  #welcome(greeting: Greeting, noise: Buffer): DiscardReason | undefined {
    if (greeting.falseWelcomes >= MAX_FALSE_WELCOMES) return 'handshake';
    const attempt = greeting.handshake.fork();
    let payload: Buffer;
    let split: SplitKeys;
    try {
      payload = attempt.readMessage(noise);
      split = attempt.finish();
    } catch {
      greeting.falseWelcomes += 1;
      return 'handshake';
    }
    greeting.handshake.wipe();
    const welcome = parseDatagramWelcome(payload);
    if (welcome === undefined) {
      this.close('handshake_payload');
      return 'handshake';
    }
    const { clock, time } = this.#options;
    time.sample(welcome.time, greeting.sentAt);
    const ids = { local: greeting.localId, remote: welcome.channel };
    const keys = makeDatagramKeys(split, true, ids, clock.bootMs());
    const { terms } = welcome;
    const renewed = this.#exchange !== undefined;
    this.#exchange ??= this.#makeExchange(terms);
    this.#exchange.install(keys, terms.validityMs);
    this.#state = {
      kind: 'open',
      terms,
      remoteId: welcome.channel,
      resetToken: welcome.reset,
      renewal: undefined,
    };
    this.#events.ticket({ name: welcome.ticket, key: welcome.key });
    this.#events.opened(terms, renewed);
    return undefined;
  }

  // ------------------------------------------------------------------ records

  #makeExchange(terms: ChannelTerms): Exchange {
    const events: ExchangeEvents = {
      transmit: (datagram) => this.#events.transmit(datagram),
      message: (message) => this.#message(message),
      renew: () => this.close('frame_unexpected'),
      renewed: (noise) => {
        if (this.#state.kind !== 'open' || this.#state.renewal === undefined) return;
        const reason = this.#welcome(this.#state.renewal, noise);
        if (reason !== undefined) this.#events.discarded(reason);
      },
      confirmed: () => {},
      forgotten: () => {},
      ended: (reason) => this.close(reason),
    };
    return new Exchange(this.#options, terms.validityMs, events, (reason) =>
      this.#events.discarded(reason),
    );
  }

  #record(datagram: Buffer): DiscardReason | undefined {
    const received = this.#exchange?.receive(datagram);
    if (received !== undefined && received.discarded === undefined) this.#events.heard();
    return received === undefined ? 'channel' : received.discarded;
  }

  #message(message: Envelope): void {
    if (message.t !== 'expire') {
      this.#events.message(message);
      return;
    }
    if (this.#state.kind !== 'open' || this.#state.renewal !== undefined) return;
    const { handshake, localId, noise } = this.#message1(undefined);
    const bytes = Buffer.concat([localId, noise]);
    this.#state = { ...this.#state, renewal: this.#waiting(handshake, localId, bytes) };
    this.#exchange?.sendRenewal('renew', bytes);
  }

  /** The server has forgotten us, as after a restart. Only it knows the token. */
  #reset(state: ClientState & { kind: 'open' }, datagram: Buffer): DiscardReason | undefined {
    const token = parseReset(datagram);
    if (token === undefined) return 'shape';
    if (receiverOf(datagram) !== idKey(state.remoteId)) return 'channel';
    if (!timingSafeEqual(token, state.resetToken)) return 'record';
    this.close('peer_closed');
    return undefined;
  }

  #guard(step: () => void): void {
    try {
      step();
    } catch {
      this.close('internal');
    }
  }
}

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

export interface DatagramServerOptions {
  readonly clock: Clock;
  readonly time: TimeSource;
  readonly budget: ReassemblyBudget;
  readonly maxRecord: number;
  readonly terms?: Partial<ChannelTerms>;
}

export interface DatagramServerEvents {
  transmit(datagram: Buffer): void;
  /** The first record under new keys has come: the peer is there and holds its key. */
  confirmed(renewed: boolean): void;
  message(message: Envelope): void;
  /** A renewal's client channel id and Noise message 1: answer with `acceptRenewal` or `refuseRenewal`. */
  renew(clientId: Buffer, noise: Buffer): void;
  /** A channel id is no longer ours. */
  forgotten(localId: Buffer): void;
  discarded(reason: DiscardReason): void;
  closed(reason: FailureReason): void;
}

/** How far a renewal is. */
type Renewal =
  | { readonly kind: 'deciding'; readonly hello: Buffer }
  | { readonly kind: 'answered'; readonly hello: Buffer; readonly welcome: Buffer };

/**
 * The responder's end of a channel on datagrams, from message 2 on: message 1 is the owner's,
 * because it must cost nothing until it is believed.
 *
 *   unconfirmed --first record--> open --age or records--> open, expiring --renew--> open
 *   any  --failure or close--> closed
 */
export class DatagramServerConnection {
  readonly #options: DatagramServerOptions;
  readonly #events: DatagramServerEvents;
  readonly #terms: ChannelTerms;
  readonly #exchange: Exchange;
  #state: 'unconfirmed' | 'open' | 'closed' = 'unconfirmed';
  #expiringSince: number | undefined;
  #renewal: Renewal | undefined;

  /** `keys` are those of message 2, which the owner sends. */
  constructor(options: DatagramServerOptions, keys: DatagramKeys, events: DatagramServerEvents) {
    this.#options = options;
    this.#events = events;
    this.#terms = completeTerms(options.terms);
    this.#exchange = new Exchange(
      options,
      this.#terms.validityMs,
      {
        transmit: (datagram) => events.transmit(datagram),
        message: (message) => this.#message(message),
        renew: (body) => this.#renew(body),
        renewed: () => this.close('frame_unexpected'),
        confirmed: () => this.#confirmed(),
        forgotten: (localId) => events.forgotten(localId),
        ended: (reason) => this.close(reason),
      },
      (reason) => events.discarded(reason),
    );
    this.#exchange.offer(keys);
  }

  get state(): 'unconfirmed' | 'open' | 'closed' {
    return this.#state;
  }

  get sendable(): boolean {
    return this.#state === 'open' && this.#exchange.sendable;
  }

  /** Takes a datagram of type 4. Never throws. @returns true if its sender's address is the peer's now */
  receive(datagram: Buffer): { readonly authentic: boolean; readonly newest: boolean } {
    if (this.#state === 'closed') return { authentic: false, newest: false };
    try {
      const { discarded, newest } = this.#exchange.receive(datagram);
      if (discarded !== undefined) this.#events.discarded(discarded);
      else if (this.#exchange.records % 64 === 0) this.#watchLifetime();
      return { authentic: discarded === undefined, newest };
    } catch {
      this.close('internal');
      return { authentic: false, newest: false };
    }
  }

  /** Takes an encoded message (at most 1 MiB). @returns false if the channel can't take it now */
  send(message: Uint8Array): boolean {
    return this.#state === 'open' && this.#exchange.send(message);
  }

  flush(): void {
    if (this.#state !== 'open') return;
    this.#exchange.flush();
    if (this.#exchange.records >= this.#terms.recordLimit) this.#watchLifetime();
  }

  get deadline(): number | undefined {
    return this.#state === 'open' ? this.#exchange.deadline : undefined;
  }

  expire(): void {
    if (this.#state !== 'open') return;
    this.#exchange.expire();
    this.flush();
  }

  /** Sends the expiry instruction when the time has come, and ends a channel that does not follow it. */
  tick(): void {
    this.#exchange.tick();
    this.#watchLifetime();
  }

  /** Asks the peer for a sign of life. */
  probe(): void {
    if (this.#state !== 'open') return;
    this.#exchange.probe();
    this.flush();
  }

  /** Grants the peer no more window while true. */
  pause(paused: boolean): void {
    this.#exchange.pause(paused);
  }

  close(reason: FailureReason): void {
    if (this.#state === 'closed') return;
    const farewell = this.#state === 'open' && reason !== 'peer_closed';
    this.#state = 'closed';
    this.#exchange.close(farewell);
    this.#events.closed(reason);
  }

  /** The keys of a renewal and its Noise message 2. @returns false if they are not wanted any more */
  acceptRenewal(hello: Buffer, keys: DatagramKeys, welcome: Uint8Array): boolean {
    if (this.#renewal?.hello !== hello || this.#state !== 'open') return false;
    this.#exchange.offer(keys);
    this.#renewal = { kind: 'answered', hello, welcome: Buffer.from(welcome) };
    this.#exchange.sendRenewal('renewed', welcome);
    return true;
  }

  /** A renewal that is not authentic is as if it had not come; one that may not be ends the channel. */
  refuseRenewal(hello: Buffer, reason: FailureReason | undefined): void {
    if (this.#renewal?.hello !== hello) return;
    this.#renewal = undefined;
    if (reason === undefined) this.#events.discarded('handshake');
    else this.close(reason);
  }

  #confirmed(): void {
    const renewed = this.#state === 'open';
    this.#state = 'open';
    this.#expiringSince = undefined;
    this.#renewal = undefined;
    this.#events.confirmed(renewed);
  }

  #message(message: Envelope): void {
    if (this.#state === 'open') this.#events.message(message);
  }

  #renew(body: Buffer): void {
    if (this.#expiringSince === undefined && this.#renewal === undefined) {
      // A late copy of one that is done.
      this.#events.discarded('frame');
      return;
    }
    if (body.length <= CHANNEL_ID_SIZE) {
      this.close('frame_length');
      return;
    }
    const known = this.#renewal;
    if (known?.hello.equals(body) === true) {
      if (known.kind === 'answered') this.#exchange.sendRenewal('renewed', known.welcome);
      return;
    }
    // One at a time: each costs a handshake, and the share of the queue is everybody's.
    if (known?.kind === 'deciding') {
      this.#events.discarded('frame');
      return;
    }
    const hello = Buffer.from(body);
    this.#exchange.withdraw();
    this.#renewal = { kind: 'deciding', hello };
    this.#events.renew(hello, hello.subarray(CHANNEL_ID_SIZE));
  }

  #watchLifetime(): void {
    const { keys } = this.#exchange;
    if (this.#state !== 'open' || keys === undefined) return;
    const now = this.#options.clock.bootMs();
    const { records } = this.#exchange;
    if (this.#expiringSince === undefined) {
      const old = now - keys.startedAt >= this.#terms.lifetimeMs;
      if (!old && records < this.#terms.recordLimit) return;
      this.#expiringSince = now;
      this.#exchange.sendAnyway(encodeMessage({ t: 'expire' }));
      return;
    }
    const late = now - this.#expiringSince > EXPIRY_GRACE_MS;
    if (late || records >= EXPIRY_GRACE_RECORDS(this.#terms.recordLimit)) this.close('expired');
  }
}
