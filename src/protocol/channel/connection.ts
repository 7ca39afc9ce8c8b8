/**
 * The secure channel on a stream as two machines without I/O, docs/protocol.md section 6:
 * bytes go in by `receive`, bytes come out in an `OutputBuffer`, everything else through
 * the events that the owner passes in. Time comes from a clock that the owner passes in;
 * `tick` is to be called about once a second.
 *
 * Error contract: no method throws on account of what a peer sent. The first failure
 * closes the machine, calls `closed` once with the reason and ignores what comes later.
 * An exception out of an event of the owner closes it with the reason `internal`.
 */
import type { Clock, ServerTime, TimeSource } from '../../runtime/clock.js';
import { LABEL } from '../constants.js';
import { decodeEnvelope, type Envelope, encodeMessage } from './codec.js';
import type { FailureReason } from './failures.js';
import { encodeFrame, FrameType, StreamFramer } from './framing.js';
import {
  type ChannelTerms,
  type ChannelToken,
  completeTerms,
  encodeGreeting,
  encodeWelcome,
  parseGreeting,
  parseWelcome,
} from './handshake-payload.js';
import type { KeyPair } from './keys.js';
import { type HandshakeResult, HandshakeState } from './noise.js';
import { Direction } from './otp.js';
import type { OutputBuffer } from './output.js';
import { MAX_MESSAGE_SIZE, RECORD_OVERHEAD, RecordOpener, RecordSealer } from './record.js';

const PROLOGUE = Buffer.from(LABEL.channel, 'ascii');

/** How long after the expiry instruction a channel may go on, and how many records more than its limit. */
export const EXPIRY_GRACE_MS = 30_000;
export const EXPIRY_GRACE_RECORDS = (limit: number): number => 2 * limit + 1_024;

/** The keys between one message 2 and the next. */
interface Session {
  readonly tx: RecordSealer;
  readonly rx: RecordOpener;
  readonly startedAt: number;
}

function makeSession(result: HandshakeResult, initiator: boolean, startedAt: number): Session {
  const { initiatorKey, responderKey, otpKey } = result;
  const [txKey, rxKey] = initiator ? [initiatorKey, responderKey] : [responderKey, initiatorKey];
  const [txWay, rxWay] = initiator
    ? [Direction.toResponder, Direction.toInitiator]
    : [Direction.toInitiator, Direction.toResponder];
  const session = {
    tx: new RecordSealer(txKey, otpKey, txWay),
    rx: new RecordOpener(rxKey, otpKey, rxWay),
    startedAt,
  };
  for (const key of [initiatorKey, responderKey, otpKey]) key.fill(0);
  return session;
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/**
 * States of a client:
 *
 *   idle --start--> greeting --message 2--> open --{t: expire}--> renewing --message 2--> open
 *   any  --failure or close--> closed
 */
type ClientState =
  | { readonly kind: 'idle' }
  /** Message 1 is out. */
  | { readonly kind: 'greeting'; readonly handshake: HandshakeState; readonly sentAt: number }
  | { readonly kind: 'open'; readonly session: Session; readonly terms: ChannelTerms }
  /** Message 1 of a renewal is out: nothing may be sent, records of the old keys still come. */
  | {
      readonly kind: 'renewing';
      readonly handshake: HandshakeState;
      readonly sentAt: number;
      readonly session: Session;
      readonly terms: ChannelTerms;
    }
  | { readonly kind: 'closed'; readonly reason: FailureReason };

export interface ClientConnectionOptions {
  readonly staticKeys: KeyPair;
  /** The server's static public key, 32 bytes. */
  readonly serverKey: Uint8Array;
  /** For a first contact; a renewal never uses it. */
  readonly token?: ChannelToken;
  readonly clock: Clock;
  readonly time: ServerTime;
}

export interface ClientEvents {
  /** The channel can carry records. The owner must send one at once, because the server waits for it. */
  opened(terms: ChannelTerms, renewed: boolean): void;
  message(message: Envelope): void;
  closed(reason: FailureReason): void;
}

/** The initiator's end of a channel. */
export class ClientConnection {
  readonly #options: ClientConnectionOptions;
  readonly #events: ClientEvents;
  readonly #out: OutputBuffer;
  readonly #framer: StreamFramer;
  #state: ClientState = { kind: 'idle' };

  constructor(options: ClientConnectionOptions, out: OutputBuffer, events: ClientEvents) {
    this.#options = options;
    this.#out = out;
    this.#events = events;
    this.#framer = new StreamFramer({
      accepts: (type) => this.#accepts(type),
      frame: (type, body) => this.#frame(type, body),
    });
  }

  get state(): ClientState['kind'] {
    return this.#state.kind;
  }

  /** True if `send` would take a message now. */
  get sendable(): boolean {
    return this.#state.kind === 'open';
  }

  /** Puts out message 1. */
  start(): void {
    if (this.#state.kind !== 'idle') return;
    const { token } = this.#options;
    this.#guard(() => {
      const handshake = this.#greet(token);
      this.#state = { kind: 'greeting', handshake, sentAt: this.#options.clock.bootMs() };
    });
  }

  /** Takes the next bytes of the stream. Never throws. */
  receive(chunk: Buffer): void {
    if (this.#state.kind === 'closed') return;
    this.#guard(() => {
      const failure = this.#framer.push(chunk);
      if (failure !== undefined) this.close(failure);
    });
  }

  /** Stamps and seals an encoded message (at most 1 MiB). @returns false if the channel can't take it now */
  send(message: Uint8Array): boolean {
    if (this.#state.kind !== 'open' || message.length > MAX_MESSAGE_SIZE) return false;
    const { session, terms } = this.#state;
    if (session.tx.count >= EXPIRY_GRACE_RECORDS(terms.recordLimit)) {
      this.close('expired');
      return false;
    }
    put(this.#out, session.tx, message, this.#options.time.now());
    return true;
  }

  /** Closes a channel that the server has let live too long. */
  tick(): void {
    if (this.#state.kind !== 'open' && this.#state.kind !== 'renewing') return;
    const age = this.#options.clock.bootMs() - this.#state.session.startedAt;
    if (age > this.#state.terms.lifetimeMs + 2 * EXPIRY_GRACE_MS) this.close('expired');
  }

  /** Ends the channel. */
  close(reason: FailureReason): void {
    if (this.#state.kind === 'closed') return;
    if ('handshake' in this.#state) this.#state.handshake.wipe();
    this.#state = { kind: 'closed', reason };
    this.#events.closed(reason);
  }

  /** -> e, es, s, ss */
  #greet(token: ChannelToken | undefined): HandshakeState {
    const handshake = new HandshakeState({
      pattern: token === undefined ? 'IK' : 'IKpsk2',
      initiator: true,
      prologue: PROLOGUE,
      staticKeys: this.#options.staticKeys,
      remoteStatic: this.#options.serverKey,
      ...(token === undefined ? {} : { psk: token.psk }),
    });
    const payload = encodeGreeting(token?.id);
    const type = token === undefined ? FrameType.message1 : FrameType.message1Psk;
    this.#out.append(encodeFrame(type, handshake.writeMessage(payload)));
    return handshake;
  }

  #accepts(type: FrameType): boolean {
    switch (this.#state.kind) {
      case 'greeting':
        return type === FrameType.message2;
      case 'open':
        return type === FrameType.record;
      case 'renewing':
        return type === FrameType.record || type === FrameType.message2;
      default:
        return false;
    }
  }

  #frame(type: FrameType, body: Buffer): boolean {
    const state = this.#state;
    if (type === FrameType.message2 && (state.kind === 'greeting' || state.kind === 'renewing')) {
      this.#welcome(state, body);
    } else if (type === FrameType.record && (state.kind === 'open' || state.kind === 'renewing')) {
      this.#record(state.session, state.terms, body);
    } else {
      this.close('frame_unexpected');
    }
    return this.#state.kind !== 'closed';
  }

  /** <- e, ee, se (psk) */
  #welcome(state: ClientState & { kind: 'greeting' | 'renewing' }, body: Buffer): void {
    const { clock, time } = this.#options;
    let payload: Buffer;
    let result: HandshakeResult;
    try {
      payload = state.handshake.readMessage(body);
      result = state.handshake.finish();
    } catch {
      this.close('handshake_message');
      return;
    }
    const welcome = parseWelcome(payload);
    if (welcome === undefined) {
      this.close('handshake_payload');
      return;
    }
    time.sample(welcome.time, state.sentAt);
    const session = makeSession(result, true, clock.bootMs());
    this.#state = { kind: 'open', session, terms: welcome.terms };
    this.#events.opened(welcome.terms, state.kind === 'renewing');
  }

  #record(session: Session, terms: ChannelTerms, body: Buffer): void {
    const opened = session.rx.open(body, this.#options.time.now(), terms.validityMs);
    if (!opened.ok) {
      this.close(opened.reason);
      return;
    }
    const message = decode(opened.message);
    if (message === undefined) this.close('message_malformed');
    else if (message.t !== 'expire') this.#events.message(message);
    else if (this.#state.kind === 'open') this.#renew(this.#state);
  }

  #renew(state: ClientState & { kind: 'open' }): void {
    const handshake = this.#greet(undefined);
    const sentAt = this.#options.clock.bootMs();
    this.#state = { ...state, kind: 'renewing', handshake, sentAt };
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

/**
 * States of a server's connection:
 *
 *   waiting --message 1--> deciding --accept--> unconfirmed --first record--> open
 *   open --age or records--> open, expiring --message 1 (IK)--> deciding --accept--> unconfirmed ...
 *   any  --failure, refuse or close--> closed
 *
 * Message 1 can be a replay of somebody's recording; only a record under the new keys
 * shows that the peer is there. Nothing is sent but message 2 before that.
 */
type ServerState =
  | { readonly kind: 'waiting' }
  /** The owner is asked whether the peer may come in. */
  | { readonly kind: 'deciding'; readonly handshake: HandshakeState; readonly renewal: boolean }
  /** Message 2 is out. */
  | { readonly kind: 'unconfirmed'; readonly session: Session; readonly renewal: boolean }
  /** `expiringSince` is when the expiry instruction went out. */
  | { readonly kind: 'open'; readonly session: Session; readonly expiringSince: number | undefined }
  | { readonly kind: 'closed'; readonly reason: FailureReason };

/** Who asks to come in. */
export interface Hello {
  /** The peer's static public key, 32 bytes; whether it holds the private half shows at `confirmed`. */
  readonly remoteKey: Buffer;
  /** The join token (16 bytes) that an IKpsk2 handshake names. */
  readonly tokenId: Buffer | undefined;
  readonly renewal: boolean;
}

export interface ServerConnectionOptions {
  readonly staticKeys: KeyPair;
  readonly clock: Clock;
  readonly time: TimeSource;
  /** Defaults: 3,600 s, 2^20 records, 30 s. */
  readonly terms?: Partial<ChannelTerms>;
}

export interface ServerEvents {
  /** Message 1 was authentic as far as it can be: call `accept` or `refuse`, now or later. */
  hello(hello: Hello): void;
  /** The first record has come: the peer is there and holds its key. */
  confirmed(renewed: boolean): void;
  message(message: Envelope): void;
  closed(reason: FailureReason): void;
}

/** The responder's end of a channel. */
export class ServerConnection {
  readonly #options: ServerConnectionOptions;
  readonly #terms: ChannelTerms;
  readonly #events: ServerEvents;
  readonly #out: OutputBuffer;
  readonly #framer: StreamFramer;
  #state: ServerState = { kind: 'waiting' };
  #remoteKey: Buffer | undefined;

  constructor(options: ServerConnectionOptions, out: OutputBuffer, events: ServerEvents) {
    this.#options = options;
    this.#terms = completeTerms(options.terms);
    this.#out = out;
    this.#events = events;
    this.#framer = new StreamFramer({
      accepts: (type) => this.#accepts(type),
      frame: (type, body) => this.#frame(type, body),
    });
  }

  get state(): ServerState['kind'] {
    return this.#state.kind;
  }

  /** True if `send` would take a message now. */
  get sendable(): boolean {
    return this.#state.kind === 'open';
  }

  /** Takes the next bytes of the stream. Never throws. */
  receive(chunk: Buffer): void {
    if (this.#state.kind === 'closed') return;
    this.#guard(() => {
      const failure = this.#framer.push(chunk);
      if (failure !== undefined) this.close(failure);
    });
  }

  /** Lets the peer in: message 2 goes out. `psk` is that of the token that `hello` named. */
  accept(psk?: Uint8Array): void {
    const state = this.#state;
    if (state.kind !== 'deciding') return;
    this.#guard(() => {
      // <- e, ee, se (psk)
      if (psk !== undefined) state.handshake.setPsk(psk);
      const payload = encodeWelcome(this.#options.time.now(), this.#terms);
      const message = state.handshake.writeMessage(payload);
      this.#out.append(encodeFrame(FrameType.message2, message));
      const startedAt = this.#options.clock.bootMs();
      const session = makeSession(state.handshake.finish(), false, startedAt);
      this.#state = { kind: 'unconfirmed', session, renewal: state.renewal };
    });
  }

  /** Turns the peer away without telling why. */
  refuse(reason: 'unknown_key' | 'unknown_token' | 'internal'): void {
    if (this.#state.kind === 'deciding') this.close(reason);
  }

  /** Stamps and seals an encoded message (at most 1 MiB). @returns false if the channel can't take it now */
  send(message: Uint8Array): boolean {
    if (this.#state.kind !== 'open' || message.length > MAX_MESSAGE_SIZE) return false;
    put(this.#out, this.#state.session.tx, message, this.#options.time.now());
    this.#watchLifetime();
    return true;
  }

  /** Sends the expiry instruction when the time has come, and ends a channel that does not follow it. */
  tick(): void {
    this.#watchLifetime(true);
  }

  /** Ends the channel. */
  close(reason: FailureReason): void {
    if (this.#state.kind === 'closed') return;
    if (this.#state.kind === 'deciding') this.#state.handshake.wipe();
    this.#state = { kind: 'closed', reason };
    this.#events.closed(reason);
  }

  #accepts(type: FrameType): boolean {
    switch (this.#state.kind) {
      case 'waiting':
        return type === FrameType.message1 || type === FrameType.message1Psk;
      case 'unconfirmed':
        return type === FrameType.record;
      case 'open':
        if (type === FrameType.record) return true;
        return type === FrameType.message1 && this.#state.expiringSince !== undefined;
      default:
        return false;
    }
  }

  #frame(type: FrameType, body: Buffer): boolean {
    const state = this.#state;
    if (type === FrameType.record && (state.kind === 'open' || state.kind === 'unconfirmed')) {
      this.#record(state, body);
    } else if (type !== FrameType.record && (state.kind === 'open' || state.kind === 'waiting')) {
      this.#greeted(type, body, state.kind === 'open');
    } else {
      this.close('frame_unexpected');
    }
    return this.#state.kind !== 'closed';
  }

  /** -> e, es, s, ss */
  #greeted(type: FrameType, body: Buffer, renewal: boolean): void {
    const withToken = type === FrameType.message1Psk;
    const handshake = new HandshakeState({
      pattern: withToken ? 'IKpsk2' : 'IK',
      initiator: false,
      prologue: PROLOGUE,
      staticKeys: this.#options.staticKeys,
    });
    let payload: Buffer;
    try {
      payload = handshake.readMessage(body);
    } catch {
      this.close('handshake_message');
      return;
    }
    const greeting = parseGreeting(payload, withToken);
    const remoteKey = handshake.remoteStatic;
    if (greeting === undefined || remoteKey === undefined) {
      handshake.wipe();
      this.close('handshake_payload');
      return;
    }
    if (renewal && this.#remoteKey?.equals(remoteKey) !== true) {
      handshake.wipe();
      this.close('handshake_key_changed');
      return;
    }
    this.#remoteKey = remoteKey;
    this.#state = { kind: 'deciding', handshake, renewal };
    this.#events.hello({ remoteKey, tokenId: greeting.tokenId, renewal });
  }

  #record(state: ServerState & { kind: 'open' | 'unconfirmed' }, body: Buffer): void {
    const { rx } = state.session;
    const opened = rx.open(body, this.#options.time.now(), this.#terms.validityMs);
    if (!opened.ok) {
      this.close(opened.reason);
      return;
    }
    if (state.kind === 'unconfirmed') {
      this.#state = { kind: 'open', session: state.session, expiringSince: undefined };
      this.#events.confirmed(state.renewal);
    }
    const message = decode(opened.message);
    if (message === undefined) {
      this.close('message_malformed');
      return;
    }
    this.#watchLifetime();
    if (this.state !== 'closed') this.#events.message(message);
  }

  /** `always` asks for the age, too, at every call; records that come in numbers ask at each 64th. */
  #watchLifetime(always = false): void {
    const state = this.#state;
    if (state.kind !== 'open') return;
    const { tx, rx, startedAt } = state.session;
    const records = Math.max(tx.count, rx.count);
    if (state.expiringSince === undefined) {
      if (records < this.#terms.recordLimit) {
        if (!always && records % 64 !== 0) return;
        if (this.#options.clock.bootMs() - startedAt < this.#terms.lifetimeMs) return;
      }
      this.#expire(state);
      return;
    }
    const late = this.#options.clock.bootMs() - state.expiringSince > EXPIRY_GRACE_MS;
    if (late || records >= EXPIRY_GRACE_RECORDS(this.#terms.recordLimit)) this.close('expired');
  }

  #expire(state: ServerState & { kind: 'open' }): void {
    const expiringSince = this.#options.clock.bootMs();
    this.#state = { ...state, expiringSince };
    put(this.#out, state.session.tx, encodeMessage({ t: 'expire' }), this.#options.time.now());
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
// Both
// ---------------------------------------------------------------------------------------

function put(out: OutputBuffer, tx: RecordSealer, message: Uint8Array, timeMs: number): void {
  out.reserve(RECORD_OVERHEAD + message.length);
  out.offset += tx.sealInto(out.buffer, out.offset, message, timeMs);
}

function decode(bytes: Buffer): Envelope | undefined {
  try {
    return decodeEnvelope(bytes);
  } catch {
    return undefined;
  }
}
