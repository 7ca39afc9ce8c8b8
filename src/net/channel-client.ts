/**
 * The client of the secure channel, docs/protocol.md section 6: keeps one channel to any of
 * several servers, over TCP, UDP or HTTP, with requests that survive a reconnect.
 */
import type { Ticket } from '../protocol/channel/admission.js';
import { type Envelope, encodeMessage, encodeShared } from '../protocol/channel/codec.js';
import { type FailureReason, failureError } from '../protocol/channel/failures.js';
import type { ChannelToken } from '../protocol/channel/handshake-payload.js';
import type { KeyPair } from '../protocol/channel/keys.js';
import { type Clock, ServerTime, SystemClock } from '../runtime/clock.js';
import { PairwireError, PEER_CODES } from '../runtime/errors.js';
import { formatChannelAddress, type Scheme } from './address.js';
import { type Message, RequestError } from './channel.js';
import { openHttpLink } from './channel-http.js';
import { openTcpLink } from './channel-tcp.js';
import { openUdpLink } from './channel-udp.js';
import type { ClientLink, LinkEvents, LinkOptions, ServerEndpoint } from './client-link.js';

/** Implementation constants, ms unless stated. */
const HANDSHAKE_TIMEOUT = 10_000;
const CONNECT_TIMEOUT = 5_000;
const KEEPALIVE_INTERVAL = 10_000;
/** Two keepalives without an answer and a little more. */
const CLIENT_IDLE_TIMEOUT = 2 * KEEPALIVE_INTERVAL + 5_000;
const TICK_INTERVAL = 1_000;
const REQUEST_TIMEOUT = 30_000;
/** Back-off: full jitter between 0 and 100 ms * 2^n, n being how often all servers were asked. While a server is away for less than QUICK_PERIOD it is looked for every second at least. */
const BACKOFF_FIRST = 100;
const BACKOFF_MAX = 30_000;
const BACKOFF_QUICK = 1_000;
const QUICK_PERIOD = 30_000;
/**
 * Several servers of which one takes over from another listen after a second or two, and until then refuse at once: so long each is
 * asked again, after BACKOFF_NEXT at most, and after BACKOFF_ROUND before the first one again. A refusal of the kernel's costs a
 * server nothing; one that answers and hangs up, or does not answer, gets the waits above.
 */
const TAKE_OVER_PERIOD = 4_000;
const BACKOFF_NEXT = 25;
const BACKOFF_ROUND = 150;
/**
 * A channel that ends sooner than this after it opened counts as a failure for the back-off. One that lived for
 * as long as BACKOFF_QUICK costs its server no more than the quick search does: it may come back as quickly, or a
 * server that is restarted several times in a row finds its members only after half a minute.
 */
const LIVED_MS = BACKOFF_QUICK;
/** What a server's refusal may say: it is shown to people. */
const MAX_DETAIL = 200;
/** How often one request is sent again because the server answered `expired`. */
const MAX_EXPIRED_RESENDS = 5;

/** The adapters. */
const LINKS: Record<Scheme, (options: LinkOptions, events: LinkEvents) => ClientLink> = {
  tcp: openTcpLink,
  udp: openUdpLink,
  http: openHttpLink,
};

/** What the client is doing. */
export type ClientState =
  | { readonly kind: 'connecting'; readonly server: ServerEndpoint }
  | { readonly kind: 'open'; readonly server: ServerEndpoint; readonly renewed: boolean }
  | { readonly kind: 'down'; readonly error: PairwireError; readonly retryInMs: number }
  | { readonly kind: 'stopped' };

export interface ChannelClientOptions {
  readonly servers: readonly [ServerEndpoint, ...ServerEndpoint[]];
  readonly staticKeys: KeyPair;
  /** For a first contact; used until `forgetToken`. */
  readonly token?: ChannelToken;
  readonly clock?: Clock;
  /** Key-server time; give one to share it or to hear of its alarms. */
  readonly time?: ServerTime;
  readonly onPush?: (message: Envelope) => void;
  readonly onState?: (state: ClientState) => void;
  /** For the back-off; the default is Math.random. */
  readonly random?: () => number;
  readonly limits?: {
    readonly keepaliveMs?: number;
    readonly idleTimeoutMs?: number;
    readonly handshakeTimeoutMs?: number;
    readonly backoffMaxMs?: number;
    readonly tickMs?: number;
  };
}

export interface RequestOptions<T> {
  /** The whole time, reconnects included; 30 s by default. */
  readonly timeoutMs?: number;
  /** Checks the answer, for example with a zod schema; what it throws ends the connection. */
  readonly parse?: (answer: unknown) => T;
}

interface Pending {
  readonly id: number;
  readonly bytes: Uint8Array;
  readonly timer: NodeJS.Timeout;
  resends: number;
  readonly answered: (answer: Envelope) => void;
  readonly failed: (error: Error) => void;
}

/** One connection attempt and what became of it. */
interface Attempt {
  readonly server: ServerEndpoint;
  readonly link: ClientLink;
  readonly startedAt: number;
  heardAt: number;
  pingedAt: number;
  openedAt: number | undefined;
  ping: { readonly id: number; sealedAt: number | undefined } | undefined;
}

/**
 * Keeps a channel to one of several servers. Requests wait while there is none, are sent
 * again after a reconnect until they are answered or their time is over, and so must be
 * idempotent.
 */
export class ChannelClient {
  readonly time: ServerTime;
  readonly #options: ChannelClientOptions;
  readonly #clock: Clock;
  readonly #pending = new Map<number, Pending>();
  #token: ChannelToken | undefined;
  readonly #tickets = new Map<string, Ticket>();
  #attempt: Attempt | undefined;
  #state: ClientState = { kind: 'stopped' };
  #timer: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;
  #nextId = 1;
  #serverIndex = 0;
  #failures = 0;
  #downSince: number | undefined;

  constructor(options: ChannelClientOptions) {
    this.#options = options;
    this.#clock = options.clock ?? new SystemClock();
    this.time = options.time ?? new ServerTime(this.#clock);
    this.#token = options.token;
  }

  get state(): ClientState {
    return this.#state;
  }

  /** Requests without an answer. */
  get outstanding(): number {
    return this.#pending.size;
  }

  /** Begins to connect. */
  start(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#tick(), this.#options.limits?.tickMs ?? TICK_INTERVAL);
    this.#connect();
  }

  /** Ends the channel; requests without an answer fail with CHANNEL_CLOSED. */
  stop(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#retry);
    this.#timer = undefined;
    this.#attempt?.link.close('stopped');
    this.#setState({ kind: 'stopped' });
    for (const pending of [...this.#pending.values()]) pending.failed(failureError('stopped'));
  }

  /** From the next connection on the static key must be enough: the member is enrolled. */
  forgetToken(): void {
    this.#token = undefined;
  }

  /**
   * Sends a request and waits for its answer.
   * @throws RequestError the server's refusal; PairwireError CHANNEL_TIMEOUT, CHANNEL_CLOSED
   * after `stop`, CHANNEL_LIMIT over 1 MiB, CHANNEL_MALFORMED for an answer that `parse` refuses
   */
  request(message: Message): Promise<Envelope>;
  request<T>(
    message: Message,
    options: RequestOptions<T> & { parse: (a: unknown) => T },
  ): Promise<T>;
  request(message: Message, options: RequestOptions<never>): Promise<Envelope>;
  request(message: Message, options: RequestOptions<unknown> = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const id = this.#nextId;
      this.#nextId += 1;
      const bytes = encodeMessage({ ...message, id });
      const timer = setTimeout(() => {
        failed(new PairwireError('CHANNEL_TIMEOUT', `no answer to "${message.t}" in time`));
      }, options.timeoutMs ?? REQUEST_TIMEOUT);
      const failed = (error: Error): void => {
        clearTimeout(timer);
        this.#pending.delete(id);
        reject(error);
      };
      const answered = (answer: Envelope): void => {
        let value: unknown = answer;
        try {
          if (options.parse !== undefined) value = options.parse(answer);
        } catch {
          failed(failureError('message_malformed'));
          this.#attempt?.link.close('message_malformed');
          return;
        }
        clearTimeout(timer);
        this.#pending.delete(id);
        resolve(value);
      };
      this.#pending.set(id, { id, bytes, timer, resends: 0, answered, failed });
      // Without an open channel it waits in the map; `opened` offers all of it.
      const link = this.#attempt?.link;
      if (link?.open === true) link.backlog.offer(bytes);
    });
  }

  #connect(): void {
    const { servers, staticKeys } = this.#options;
    const server = servers[this.#serverIndex % servers.length] ?? servers[0];
    const name = formatChannelAddress(server);
    const ticket = this.#tickets.get(name);
    this.#tickets.delete(name);
    const now = this.#clock.bootMs();
    const open = LINKS[server.scheme ?? 'tcp'];
    const link = open(
      { server, staticKeys, token: this.#token, clock: this.#clock, time: this.time, ticket },
      {
        opened: (renewed) => this.#opened(attempt, renewed),
        message: (message) => this.#message(attempt, message),
        heard: () => {
          attempt.heardAt = this.#clock.bootMs();
        },
        ticket: (next) => this.#tickets.set(name, next),
        closed: (reason) => this.#closed(attempt, reason),
      },
    );
    const attempt: Attempt = {
      server,
      link,
      startedAt: now,
      heardAt: now,
      pingedAt: now,
      openedAt: undefined,
      ping: undefined,
    };
    this.#attempt = attempt;
    this.#setState({ kind: 'connecting', server });
  }

  #opened(attempt: Attempt, renewed: boolean): void {
    attempt.openedAt ??= this.#clock.bootMs();
    // The first record, at once: the server has nothing to say before it.
    this.#ping(attempt);
    if (renewed) attempt.link.backlog.pump();
    else for (const pending of this.#pending.values()) attempt.link.backlog.offer(pending.bytes);
    this.#setState({ kind: 'open', server: attempt.server, renewed });
  }

  #message(attempt: Attempt, message: Envelope): void {
    const { id } = message;
    if (id === undefined) {
      this.#options.onPush?.(message);
      return;
    }
    if (id === attempt.ping?.id) {
      const { sealedAt } = attempt.ping;
      attempt.ping = undefined;
      if (sealedAt !== undefined && typeof message.time === 'number') {
        this.time.sample(message.time, sealedAt);
      }
      return;
    }
    // Unknown: its time was over, or it was sent twice and answered twice.
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    if (message.t === 'ok') {
      pending.answered(message);
    } else if (message.t === 'error') {
      this.#refused(attempt, pending, message);
    } else {
      attempt.link.close('message_malformed');
    }
  }

  #refused(attempt: Attempt, pending: Pending, message: Envelope): void {
    const code = PEER_CODES.find((known) => known === message.code) ?? 'unavailable';
    if (code === 'expired' && pending.resends < MAX_EXPIRED_RESENDS) {
      pending.resends += 1;
      attempt.link.backlog.offer(pending.bytes);
      return;
    }
    pending.failed(new RequestError(code, detailOf(message.detail)));
  }

  #ping(attempt: Attempt): void {
    const ping = { id: this.#nextId, sealedAt: undefined as number | undefined };
    this.#nextId += 1;
    attempt.ping = ping;
    attempt.pingedAt = this.#clock.bootMs();
    attempt.link.backlog.offer(encodeShared({ t: 'ping', id: ping.id }), {
      onSealed: () => {
        ping.sealedAt = this.#clock.bootMs();
      },
    });
  }

  #closed(attempt: Attempt, reason: FailureReason): void {
    if (this.#attempt !== attempt) return;
    this.#attempt = undefined;
    if (this.#timer === undefined) return;
    const now = this.#clock.bootMs();
    // One that ends again and again right after its handshake must not come back at once each time.
    if (attempt.openedAt !== undefined && now - attempt.openedAt >= LIVED_MS) {
      this.#failures = 0;
      this.#downSince = undefined;
    }
    this.#downSince ??= now;
    const retryInMs = this.#backoff(now - this.#downSince, attempt.link.refused);
    // The same server once more, then round them all.
    if (this.#failures > 0) this.#serverIndex += 1;
    this.#failures += 1;
    this.#retry = setTimeout(() => this.#connect(), retryInMs);
    const error = failureError(reason, formatChannelAddress(attempt.server));
    this.#setState({ kind: 'down', error, retryInMs });
  }

  /** @param isRefused nobody listened there */
  #backoff(downForMs: number, isRefused: boolean): number {
    const { servers, limits, random = Math.random } = this.#options;
    const round = Math.floor(this.#failures / servers.length);
    const most = limits?.backoffMaxMs ?? BACKOFF_MAX;
    // Of several servers each is asked once before the longer wait: one of them serves, and which is not known.
    const isRoundOver = this.#failures % servers.length === 0;
    if (isRefused && servers.length > 1 && downForMs < TAKE_OVER_PERIOD) {
      return random() * Math.min(most, isRoundOver ? BACKOFF_ROUND : BACKOFF_NEXT);
    }
    const ceiling = Math.min(most, BACKOFF_FIRST * 2 ** (isRoundOver ? Math.min(round, 20) : 0));
    const quick = downForMs < QUICK_PERIOD ? Math.min(ceiling, BACKOFF_QUICK) : ceiling;
    return random() * quick;
  }

  #tick(): void {
    const attempt = this.#attempt;
    if (attempt === undefined) return;
    const { link, startedAt } = attempt;
    const now = this.#clock.bootMs();
    const { limits } = this.#options;
    if (!link.open) {
      const timeout = limits?.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT;
      if (link.connecting && now - startedAt > Math.min(CONNECT_TIMEOUT, timeout)) {
        link.close('connect_timeout');
      } else if (now - startedAt > timeout) {
        link.close('handshake_timeout');
      }
      return;
    }
    if (now - attempt.heardAt > (limits?.idleTimeoutMs ?? CLIENT_IDLE_TIMEOUT)) {
      link.close('idle');
      return;
    }
    if (now - attempt.pingedAt >= (limits?.keepaliveMs ?? KEEPALIVE_INTERVAL)) this.#ping(attempt);
    link.tick();
  }

  #setState(state: ClientState): void {
    this.#state = state;
    this.#options.onState?.(state);
  }
}

/** A server may be hostile: no control characters of its own reach a terminal. */
function detailOf(value: unknown): string | undefined {
  if (typeof value !== 'string') return undefined;
  return value.slice(0, MAX_DETAIL).replace(/[^\x20-\x7e]/g, '?');
}
