/**
 * What a server does with one peer, whatever carries the channel: asks its owner whether the
 * peer may come in, dispatches messages, answers, and holds back who has too much open.
 */
import { type Envelope, encodeShared } from '../protocol/channel/codec.js';
import type { FailureReason } from '../protocol/channel/failures.js';
import type { Clock, TimeSource } from '../runtime/clock.js';
import { BACKLOG_LIMIT, type Backlog } from './backlog.js';
import {
  type Answer,
  type ChannelCounters,
  type ChannelServerOptions,
  type Message,
  RequestError,
  type Session,
} from './channel.js';

/** Requests of one session that may wait for their handler before no more are read. */
const MAX_IN_FLIGHT = 1_024;
const NO_KEY: Buffer = Buffer.alloc(0);

/** What all channels of a server share. */
export interface ServerCore<Request> {
  readonly options: ChannelServerOptions<Request>;
  readonly clock: Clock;
  readonly time: TimeSource;
  readonly counters: ChannelCounters;
  /** Makes room for one more without a session: the oldest goes. False if there are too many connections. */
  room(): boolean;
  nextId(): number;
  /** A peer without a session, until `established`. */
  added(peer: ServerPeer<Request>): void;
  established(peer: ServerPeer<Request>): void;
  ended(peer: ServerPeer<Request>, reason: FailureReason): void;
  /** A peer was turned away before there was anything to end. */
  refused(address: string, reason: FailureReason): void;
}

/** Waits for peers on one address. */
export interface Listener {
  /** @returns the port in use. @throws PairwireError CHANNEL_UNREACHABLE if it can't be had */
  listen(): Promise<number>;
  close(): Promise<void>;
}

/** May this peer come in? `decided` gets the PSK of its token if it named one. */
export function decide<Request>(
  core: ServerCore<Request>,
  hello: { readonly remoteKey: Buffer; readonly tokenId: Buffer | undefined },
  decided: (psk: Uint8Array | undefined) => void,
  refused: (reason: 'unknown_key' | 'unknown_token' | 'internal') => void,
): void {
  const { authorise, psk, onError } = core.options;
  const { tokenId, remoteKey } = hello;
  const settled = (answer: Uint8Array | boolean | undefined): void => {
    if (answer === undefined || answer === false) {
      refused(tokenId === undefined ? 'unknown_key' : 'unknown_token');
    } else {
      decided(answer === true ? undefined : answer);
    }
  };
  const failed = (thrown: unknown): void => {
    onError?.(thrown);
    refused('internal');
  };
  try {
    const answer = tokenId === undefined ? authorise(remoteKey) : psk(tokenId);
    if (answer instanceof Promise) answer.then(settled).catch(failed);
    else settled(answer);
  } catch (thrown) {
    failed(thrown);
  }
}

/** One channel of a server. */
export abstract class ServerPeer<Request> implements Session {
  readonly id: number;
  readonly startedAt: number;
  remoteKey: Buffer = NO_KEY;
  tokenId: Buffer | undefined;
  protected readonly core: ServerCore<Request>;
  #heardAt: number;
  #inFlight = 0;
  #paused = false;
  #closed = false;

  constructor(core: ServerCore<Request>) {
    this.core = core;
    this.id = core.nextId();
    this.startedAt = core.clock.bootMs();
    this.#heardAt = this.startedAt;
  }

  abstract get remoteAddress(): string;
  /** Ends the channel for a reason. */
  abstract end(reason: FailureReason): void;
  protected abstract get backlog(): Backlog;
  /** Stops taking what the peer sends, or goes on. */
  protected abstract hold(paused: boolean): void;
  /** Lets go of what carried the channel. */
  protected abstract release(): void;
  /** Once a second, after the checks that all have in common. */
  protected abstract tickChannel(): void;

  get closed(): boolean {
    return this.#closed;
  }

  get superseded(): number {
    return this.backlog.superseded;
  }

  push(message: Message, options: { readonly key?: string } = {}): void {
    if (this.#closed) return;
    this.backlog.offer(encodeShared(message), options);
    this.core.counters.pushes += 1;
    if (this.backlog.stuck) this.end('backlog');
  }

  probe(): void {}

  close(): void {
    this.end('stopped');
  }

  /** When something of the peer came last. */
  protected get heardAt(): number {
    return this.#heardAt;
  }

  tick(now: number, idleTimeoutMs: number): void {
    if (now - this.#heardAt > idleTimeoutMs && !this.#paused) this.end('idle');
    else if (this.backlog.stuck) this.end('backlog');
    else this.tickChannel();
    this.backlog.schedule();
  }

  /** Something of the peer came. */
  protected heard(): void {
    this.#heardAt = this.core.clock.bootMs();
  }

  protected channelClosed(reason: FailureReason): void {
    if (this.#closed) return;
    this.#closed = true;
    this.release();
    this.core.ended(this, reason);
  }

  protected confirmed(renewed: boolean): void {
    if (renewed) this.core.counters.renewals += 1;
    else this.core.established(this);
    this.backlog.pump();
  }

  protected message(message: Envelope): void {
    const { options, counters, time } = this.core;
    const { id } = message;
    if (message.t === 'ping') {
      if (id !== undefined) this.#answer(id, { time: time.now() });
      return;
    }
    if (options.types !== undefined && !options.types.has(message.t)) {
      if (id !== undefined) this.#refuse(id, new RequestError('unsupported'));
      return;
    }
    let request: Request;
    try {
      request = options.parse(message);
    } catch {
      this.end('message_malformed');
      return;
    }
    if (id === undefined) {
      options.onPush?.(this, request);
      return;
    }
    counters.requests += 1;
    try {
      const answer = options.onRequest(this, request);
      if (!(answer instanceof Promise)) {
        this.#answer(id, answer);
        return;
      }
      this.#inFlight += 1;
      answer.then(
        (value) => this.#settled(() => this.#answer(id, value)),
        (thrown) => this.#settled(() => this.#refuse(id, thrown)),
      );
    } catch (thrown) {
      this.#refuse(id, thrown);
    }
  }

  #settled(step: () => void): void {
    this.#inFlight -= 1;
    if (this.#closed) return;
    step();
    this.throttle();
  }

  #answer(id: number, answer: Answer): void {
    let bytes: Uint8Array;
    try {
      bytes = encodeShared({ ...answer, t: 'ok', id });
    } catch (thrown) {
      this.#refuse(id, thrown);
      return;
    }
    this.backlog.offer(bytes);
  }

  #refuse(id: number, thrown: unknown): void {
    if (!(thrown instanceof RequestError)) this.core.options.onError?.(thrown);
    const { code, detail } =
      thrown instanceof RequestError ? thrown : new RequestError('unavailable');
    this.backlog.offer(encodeShared({ t: 'error', id, code, detail }));
  }

  /** Stops reading while the peer does not read its answers or has too many requests open. */
  protected throttle(): void {
    const full = this.backlog.backlog > BACKLOG_LIMIT || this.#inFlight > MAX_IN_FLIGHT;
    if (full === this.#paused || this.#closed) return;
    this.#paused = full;
    if (full) this.core.counters.paused += 1;
    this.hold(full);
    this.heard();
  }
}
