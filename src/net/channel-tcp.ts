/**
 * The secure channel over TCP, docs/protocol.md section 6: a server that accepts many
 * channels, and a client that keeps one to any of several servers, with requests that
 * survive a reconnect. What goes wrong ends one connection, is counted by reason and told
 * to nobody but the owner.
 */
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net';
import { type Envelope, encodeMessage, encodeShared } from '../protocol/channel/codec.js';
import {
  type ChannelTerms,
  type ChannelToken,
  ClientConnection,
  type Hello,
  ServerConnection,
} from '../protocol/channel/connection.js';
import { FAILURE_REASONS, type FailureReason, failureError } from '../protocol/channel/failures.js';
import type { KeyPair } from '../protocol/channel/keys.js';
import { OutputBuffer } from '../protocol/channel/output.js';
import {
  type Clock,
  ServerClock,
  ServerTime,
  SystemClock,
  type TimeSource,
} from '../runtime/clock.js';
import { PairwireError, PEER_CODES, type PeerCode } from '../runtime/errors.js';
import { BACKLOG_LIMIT, Transmitter } from './transmitter.js';

/** Implementation constants, ms unless stated. */
const HANDSHAKE_TIMEOUT = 10_000;
const CONNECT_TIMEOUT = 5_000;
const SERVER_IDLE_TIMEOUT = 60_000;
const KEEPALIVE_INTERVAL = 10_000;
/** Two keepalives without an answer and a little more. */
const CLIENT_IDLE_TIMEOUT = 2 * KEEPALIVE_INTERVAL + 5_000;
const TICK_INTERVAL = 1_000;
const MAX_CONNECTIONS = 20_000;
const MAX_HALF_OPEN = 1_024;
/** Sessions of one static key; an honest member has one, and for a moment the one before. */
const MAX_PER_KEY = 64;
/** Requests of one session that may wait for their handler before no more are read. */
const MAX_IN_FLIGHT = 1_024;
const REQUEST_TIMEOUT = 30_000;
/** Back-off: full jitter between 0 and 100 ms * 2^n. While a server is away for less than QUICK_PERIOD it is looked for every second at least. */
const BACKOFF_FIRST = 100;
const BACKOFF_MAX = 30_000;
const BACKOFF_QUICK = 1_000;
const QUICK_PERIOD = 30_000;
/** A channel that ends sooner than this after it opened counts as a failure for the back-off. */
const LIVED_MS = 5_000;
/** What a server's refusal may say: it is shown to people. */
const MAX_DETAIL = 200;
/** How often one request is sent again because the server answered `expired`. */
const MAX_EXPIRED_RESENDS = 5;

/** A request that was answered with an error. On the server, a handler throws it to choose what the peer is told. */
export class RequestError extends Error {
  readonly code: PeerCode;
  readonly detail: string | undefined;

  constructor(code: PeerCode, detail?: string) {
    super(detail === undefined ? code : `${code}: ${detail}`);
    this.name = 'RequestError';
    this.code = code;
    this.detail = detail;
  }
}

/** A message before it has an id: a map with a type. */
export interface Message {
  readonly t: string;
  readonly [key: string]: unknown;
}

/** The fields of an answer; `t` and `id` are added. */
export type Answer = Readonly<Record<string, unknown>>;

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

/** What a server has counted since it started, and how many there are now. */
export interface ChannelCounters {
  /** Now. */
  connections: number;
  halfOpen: number;
  sessions: number;
  /** Since the start. */
  accepted: number;
  established: number;
  renewals: number;
  requests: number;
  pushes: number;
  superseded: number;
  readonly closed: Record<FailureReason, number>;
}

/** One peer on one connection, from its first record to the end of the connection. */
export interface Session {
  /** Number of the connection in this process. */
  readonly id: number;
  /** The peer's static public key, 32 bytes, proven. */
  readonly remoteKey: Buffer;
  /** The join token (16 bytes) if the channel was made with IKpsk2. */
  readonly tokenId: Buffer | undefined;
  /** Address and port of the peer. */
  readonly remoteAddress: string;
  readonly closed: boolean;
  /**
   * Sends a push. With a `key`, an earlier push of that key that still waits is dropped.
   * @throws PairwireError CHANNEL_LIMIT for a message over 1 MiB
   */
  push(message: Message, options?: { readonly key?: string }): void;
  /** Ends the connection. */
  close(): void;
}

export interface ChannelServerOptions<Request> {
  readonly host?: string;
  /** 0 takes a free port. */
  readonly port: number;
  readonly staticKeys: KeyPair;
  readonly clock?: Clock;
  /** Key-server time; the default takes the wall time once. */
  readonly time?: TimeSource;
  /** May the holder of this static key come in without a token? Asked at each handshake, renewals included. */
  readonly authorise: (remoteKey: Buffer) => boolean | Promise<boolean>;
  /** The PSK (`tokenPsk`) of a join token, undefined for one that is not valid. */
  readonly psk: (tokenId: Buffer) => Promise<Uint8Array | undefined> | Uint8Array | undefined;
  /** Types of requests and pushes that are known; others are answered `unsupported`. */
  readonly types?: ReadonlySet<string>;
  /** Checks a message, for example with a zod schema; what it throws closes the channel. */
  readonly parse: (message: unknown) => Request;
  readonly onSession?: (session: Session) => void;
  readonly onSessionEnd?: (session: Session, reason: FailureReason) => void;
  /** Answers a request. A RequestError chooses the code that the peer sees; anything else becomes `unavailable`. */
  readonly onRequest: (session: Session, request: Request) => Promise<Answer> | Answer;
  /** A message without an id. */
  readonly onPush?: (session: Session, message: Request) => void;
  /** Told of each connection that ended: for the log. */
  readonly onClose?: (end: { address: string; reason: FailureReason; session?: Session }) => void;
  /** Told what a handler threw: for the log. */
  readonly onError?: (thrown: unknown) => void;
  readonly terms?: Partial<ChannelTerms>;
  readonly limits?: {
    readonly maxConnections?: number;
    readonly maxHalfOpen?: number;
    readonly maxPerKey?: number;
    readonly handshakeTimeoutMs?: number;
    readonly idleTimeoutMs?: number;
    readonly tickMs?: number;
  };
}

/** Accepts secure channels on a TCP port. */
export class ChannelServer<Request> {
  readonly counters: ChannelCounters = {
    connections: 0,
    halfOpen: 0,
    sessions: 0,
    accepted: 0,
    established: 0,
    renewals: 0,
    requests: 0,
    pushes: 0,
    superseded: 0,
    closed: Object.fromEntries(FAILURE_REASONS.map((reason) => [reason, 0])) as Record<
      FailureReason,
      number
    >,
  };
  readonly #options: ChannelServerOptions<Request>;
  readonly #shared: Shared<Request>;
  readonly #peers = new Set<ServerPeer<Request>>();
  /** Sessions by static key, in the order of their arrival. */
  readonly #byKey = new Map<string, Set<ServerPeer<Request>>>();
  /** In the order of their arrival: the oldest makes room for the next. */
  readonly #halfOpen = new Set<ServerPeer<Request>>();
  readonly #server: Server;
  #timer: NodeJS.Timeout | undefined;
  #nextId = 1;

  constructor(options: ChannelServerOptions<Request>) {
    this.#options = options;
    const clock = options.clock ?? new SystemClock();
    this.#shared = {
      options,
      clock,
      time: options.time ?? new ServerClock(clock),
      counters: this.counters,
      established: (peer) => this.#established(peer),
      ended: (peer, reason) => this.#ended(peer, reason),
    };
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
  }

  /** The server's key-server time. */
  get time(): TimeSource {
    return this.#shared.time;
  }

  /** The sessions there are now. */
  *sessions(): Iterable<Session> {
    for (const peer of this.#peers) if (!this.#halfOpen.has(peer)) yield peer;
  }

  /** Begins to listen. @returns the address in use. @throws PairwireError CHANNEL_UNREACHABLE if the port can't be had */
  listen(): Promise<{ host: string; port: number }> {
    const { host = '0.0.0.0', port, limits } = this.#options;
    return new Promise((resolve, reject) => {
      const failed = (cause: Error): void => {
        const text = `cannot listen: ${cause.message}`;
        reject(new PairwireError('CHANNEL_UNREACHABLE', text, { where: `${host}:${port}`, cause }));
      };
      this.#server.once('error', failed);
      this.#server.listen({ host, port, backlog: 1_024 }, () => {
        this.#server.off('error', failed);
        // Out of file descriptors and the like: the listener goes on.
        this.#server.on('error', (thrown) => this.#options.onError?.(thrown));
        this.#timer = setInterval(() => this.#tick(), limits?.tickMs ?? TICK_INTERVAL);
        const address = this.#server.address();
        resolve({
          host,
          port: typeof address === 'object' && address !== null ? address.port : port,
        });
      });
    });
  }

  /** Stops listening and ends every connection. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    for (const peer of [...this.#peers]) peer.end('stopped');
    await closed;
  }

  #accept(socket: Socket): void {
    this.counters.accepted += 1;
    const { limits } = this.#options;
    if (this.#peers.size >= (limits?.maxConnections ?? MAX_CONNECTIONS)) {
      this.counters.closed.too_many_connections += 1;
      socket.destroy();
      return;
    }
    if (this.#halfOpen.size >= (limits?.maxHalfOpen ?? MAX_HALF_OPEN)) {
      // An honest peer is through in milliseconds, so the one that waits longest goes.
      for (const oldest of this.#halfOpen) {
        oldest.end('too_many_half_open');
        break;
      }
    }
    const peer = new ServerPeer(this.#nextId, socket, this.#shared);
    this.#nextId += 1;
    this.#peers.add(peer);
    this.#halfOpen.add(peer);
    this.#count();
  }

  #established(peer: ServerPeer<Request>): void {
    this.#halfOpen.delete(peer);
    this.counters.established += 1;
    this.#count();
    this.#limitKey(peer);
    this.#options.onSession?.(peer);
  }

  /** One member can't take the connections of all others: its oldest session makes room. */
  #limitKey(peer: ServerPeer<Request>): void {
    const key = peer.remoteKey.toString('latin1');
    const same = this.#byKey.get(key) ?? new Set();
    this.#byKey.set(key, same.add(peer));
    if (same.size <= (this.#options.limits?.maxPerKey ?? MAX_PER_KEY)) return;
    for (const oldest of same) {
      oldest.end('too_many_connections');
      break;
    }
  }

  #forgetKey(peer: ServerPeer<Request>): void {
    const key = peer.remoteKey.toString('latin1');
    const same = this.#byKey.get(key);
    if (same?.delete(peer) === true && same.size === 0) this.#byKey.delete(key);
  }

  #ended(peer: ServerPeer<Request>, reason: FailureReason): void {
    this.#forgetKey(peer);
    const wasSession = !this.#halfOpen.delete(peer) && this.#peers.has(peer);
    this.#peers.delete(peer);
    this.#count();
    this.counters.closed[reason] += 1;
    this.counters.superseded += peer.superseded;
    if (wasSession) this.#options.onSessionEnd?.(peer, reason);
    this.#options.onClose?.({
      address: peer.remoteAddress,
      reason,
      ...(wasSession ? { session: peer } : {}),
    });
  }

  #count(): void {
    this.counters.connections = this.#peers.size;
    this.counters.halfOpen = this.#halfOpen.size;
    this.counters.sessions = this.#peers.size - this.#halfOpen.size;
  }

  #tick(): void {
    const now = this.#shared.clock.bootMs();
    const { limits } = this.#options;
    const handshakeTimeout = limits?.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT;
    for (const peer of this.#halfOpen) {
      if (now - peer.startedAt < handshakeTimeout) break;
      peer.end('handshake_timeout');
    }
    const idleTimeout = limits?.idleTimeoutMs ?? SERVER_IDLE_TIMEOUT;
    for (const peer of this.#peers) peer.tick(now, idleTimeout);
  }
}

/** What all connections of a server share. */
interface Shared<Request> {
  readonly options: ChannelServerOptions<Request>;
  readonly clock: Clock;
  readonly time: TimeSource;
  readonly counters: ChannelCounters;
  readonly established: (peer: ServerPeer<Request>) => void;
  readonly ended: (peer: ServerPeer<Request>, reason: FailureReason) => void;
}

const NO_KEY: Buffer = Buffer.alloc(0);

/** One connection of a server. */
class ServerPeer<Request> implements Session {
  readonly id: number;
  readonly remoteAddress: string;
  readonly startedAt: number;
  remoteKey: Buffer = NO_KEY;
  tokenId: Buffer | undefined;
  readonly #socket: Socket;
  readonly #shared: Shared<Request>;
  readonly #connection: ServerConnection;
  readonly #transmitter: Transmitter;
  #heardAt: number;
  #inFlight = 0;
  #paused = false;
  #closed = false;

  constructor(id: number, socket: Socket, shared: Shared<Request>) {
    this.id = id;
    this.#socket = socket;
    this.#shared = shared;
    this.remoteAddress = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    this.startedAt = shared.clock.bootMs();
    this.#heardAt = this.startedAt;
    const { staticKeys, terms } = shared.options;
    const out = new OutputBuffer();
    this.#connection = new ServerConnection(
      { staticKeys, clock: shared.clock, time: shared.time, ...(terms ? { terms } : {}) },
      out,
      {
        hello: (hello) => this.#hello(hello),
        confirmed: (renewed) => this.#confirmed(renewed),
        message: (message) => this.#message(message),
        closed: (reason) => this.#ended(reason),
      },
    );
    this.#transmitter = new Transmitter(socket, out, this.#connection, shared.clock);
    socket.on('data', (chunk) => this.#data(chunk));
    socket.on('drain', () => this.#throttle());
    socket.on('error', () => this.end('network'));
    socket.on('close', () => this.end('peer_closed'));
  }

  get closed(): boolean {
    return this.#closed;
  }

  get superseded(): number {
    return this.#transmitter.superseded;
  }

  push(message: Message, options: { readonly key?: string } = {}): void {
    if (this.#closed) return;
    this.#transmitter.offer(encodeShared(message), options);
    this.#shared.counters.pushes += 1;
    if (this.#transmitter.stuck) this.end('backlog');
  }

  close(): void {
    this.end('stopped');
  }

  end(reason: FailureReason): void {
    this.#connection.close(reason);
  }

  tick(now: number, idleTimeoutMs: number): void {
    if (now - this.#heardAt > idleTimeoutMs && !this.#paused) this.end('idle');
    else if (this.#transmitter.stuck) this.end('backlog');
    else this.#connection.tick();
    this.#transmitter.schedule();
  }

  #data(chunk: Buffer): void {
    this.#heardAt = this.#shared.clock.bootMs();
    this.#connection.receive(chunk);
    this.#transmitter.schedule();
    this.#throttle();
  }

  #ended(reason: FailureReason): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.destroy();
    this.#shared.ended(this, reason);
  }

  #hello(hello: Hello): void {
    const { authorise, psk } = this.#shared.options;
    const { tokenId, remoteKey } = hello;
    const decided = (key: Uint8Array | boolean | undefined): void => {
      if (key === undefined || key === false) {
        this.#connection.refuse(tokenId === undefined ? 'unknown_key' : 'unknown_token');
        return;
      }
      if (!hello.renewal) {
        this.remoteKey = remoteKey;
        this.tokenId = tokenId;
      }
      this.#connection.accept(key === true ? undefined : key);
      this.#transmitter.schedule();
    };
    const failed = (thrown: unknown): void => {
      this.#shared.options.onError?.(thrown);
      this.#connection.refuse('internal');
    };
    try {
      const answer = tokenId === undefined ? authorise(remoteKey) : psk(tokenId);
      if (answer instanceof Promise) answer.then(decided).catch(failed);
      else decided(answer);
    } catch (thrown) {
      failed(thrown);
    }
  }

  #confirmed(renewed: boolean): void {
    if (renewed) this.#shared.counters.renewals += 1;
    else this.#shared.established(this);
    this.#transmitter.pump();
  }

  #message(message: Envelope): void {
    const { options, counters, time } = this.#shared;
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
    this.#throttle();
  }

  #answer(id: number, answer: Answer): void {
    let bytes: Uint8Array;
    try {
      bytes = encodeShared({ ...answer, t: 'ok', id });
    } catch (thrown) {
      this.#refuse(id, thrown);
      return;
    }
    this.#transmitter.offer(bytes);
  }

  #refuse(id: number, thrown: unknown): void {
    if (!(thrown instanceof RequestError)) this.#shared.options.onError?.(thrown);
    const { code, detail } =
      thrown instanceof RequestError ? thrown : new RequestError('unavailable');
    this.#transmitter.offer(encodeShared({ t: 'error', id, code, detail }));
  }

  /** Stops reading while the peer does not read its answers or has too many requests open. */
  #throttle(): void {
    const full = this.#transmitter.backlog > BACKLOG_LIMIT || this.#inFlight > MAX_IN_FLIGHT;
    if (full === this.#paused || this.#closed) return;
    this.#paused = full;
    if (full) this.#socket.pause();
    else this.#socket.resume();
    this.#heardAt = this.#shared.clock.bootMs();
  }
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** A server that the client may use. */
export interface ServerEndpoint {
  readonly host: string;
  readonly port: number;
  /** Its static public key, 32 bytes. */
  readonly publicKey: Uint8Array;
}

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
interface Link {
  readonly server: ServerEndpoint;
  readonly socket: Socket;
  readonly connection: ClientConnection;
  readonly transmitter: Transmitter;
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
  #link: Link | undefined;
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
    this.#link?.connection.close('stopped');
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
          this.#link?.connection.close('message_malformed');
          return;
        }
        clearTimeout(timer);
        this.#pending.delete(id);
        resolve(value);
      };
      this.#pending.set(id, { id, bytes, timer, resends: 0, answered, failed });
      // Without an open channel it waits in the map; `opened` offers all of it.
      const link = this.#link;
      if (link !== undefined && isOpen(link.connection)) link.transmitter.offer(bytes);
    });
  }

  #connect(): void {
    const { servers, staticKeys } = this.#options;
    const server = servers[this.#serverIndex % servers.length] ?? servers[0];
    const socket = netConnect({ host: server.host, port: server.port, noDelay: true });
    const out = new OutputBuffer();
    const token = this.#token;
    const connection = new ClientConnection(
      {
        staticKeys,
        serverKey: server.publicKey,
        clock: this.#clock,
        time: this.time,
        ...(token === undefined ? {} : { token }),
      },
      out,
      {
        opened: (_terms, renewed) => this.#opened(link, renewed),
        message: (message) => this.#message(link, message),
        closed: (reason) => this.#closed(link, reason),
      },
    );
    const now = this.#clock.bootMs();
    const link: Link = {
      server,
      socket,
      connection,
      transmitter: new Transmitter(socket, out, connection, this.#clock),
      startedAt: now,
      heardAt: now,
      pingedAt: now,
      openedAt: undefined,
      ping: undefined,
    };
    this.#link = link;
    this.#setState({ kind: 'connecting', server });
    socket.on('connect', () => {
      connection.start();
      link.transmitter.flush();
    });
    socket.on('data', (chunk) => {
      link.heardAt = this.#clock.bootMs();
      connection.receive(chunk);
      link.transmitter.schedule();
    });
    socket.on('error', () => connection.close('network'));
    socket.on('close', () => connection.close('peer_closed'));
  }

  #opened(link: Link, renewed: boolean): void {
    link.openedAt ??= this.#clock.bootMs();
    // The first record, at once: the server has nothing to say before it.
    this.#ping(link);
    if (renewed) link.transmitter.pump();
    else for (const pending of this.#pending.values()) link.transmitter.offer(pending.bytes);
    this.#setState({ kind: 'open', server: link.server, renewed });
  }

  #message(link: Link, message: Envelope): void {
    const { id } = message;
    if (id === undefined) {
      this.#options.onPush?.(message);
      return;
    }
    if (id === link.ping?.id) {
      const { sealedAt } = link.ping;
      link.ping = undefined;
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
      this.#refused(link, pending, message);
    } else {
      link.connection.close('message_malformed');
    }
  }

  #refused(link: Link, pending: Pending, message: Envelope): void {
    const code = PEER_CODES.find((known) => known === message.code) ?? 'unavailable';
    if (code === 'expired' && pending.resends < MAX_EXPIRED_RESENDS) {
      pending.resends += 1;
      link.transmitter.offer(pending.bytes);
      return;
    }
    pending.failed(new RequestError(code, detailOf(message.detail)));
  }

  #ping(link: Link): void {
    const ping = { id: this.#nextId, sealedAt: undefined as number | undefined };
    this.#nextId += 1;
    link.ping = ping;
    link.pingedAt = this.#clock.bootMs();
    link.transmitter.offer(encodeShared({ t: 'ping', id: ping.id }), {
      onSealed: () => {
        ping.sealedAt = this.#clock.bootMs();
      },
    });
  }

  #closed(link: Link, reason: FailureReason): void {
    link.socket.destroy();
    if (this.#link !== link) return;
    this.#link = undefined;
    if (this.#timer === undefined) return;
    const now = this.#clock.bootMs();
    // One that ends again and again right after its handshake must not come back at once each time.
    if (link.openedAt !== undefined && now - link.openedAt >= LIVED_MS) {
      this.#failures = 0;
      this.#downSince = undefined;
    }
    this.#downSince ??= now;
    const retryInMs = this.#backoff(now - this.#downSince);
    // The same server once more, then round them all.
    if (this.#failures > 0) this.#serverIndex += 1;
    this.#failures += 1;
    this.#retry = setTimeout(() => this.#connect(), retryInMs);
    const error = failureError(reason, `${link.server.host}:${link.server.port}`);
    this.#setState({ kind: 'down', error, retryInMs });
  }

  #backoff(downForMs: number): number {
    const { servers, limits, random = Math.random } = this.#options;
    const round = Math.floor(this.#failures / servers.length);
    const most = limits?.backoffMaxMs ?? BACKOFF_MAX;
    const ceiling = Math.min(most, BACKOFF_FIRST * 2 ** Math.min(round, 20));
    const quick = downForMs < QUICK_PERIOD ? Math.min(ceiling, BACKOFF_QUICK) : ceiling;
    return random() * quick;
  }

  #tick(): void {
    const link = this.#link;
    if (link === undefined) return;
    const now = this.#clock.bootMs();
    const { limits } = this.#options;
    if (!isOpen(link.connection)) {
      const timeout = limits?.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT;
      if (link.socket.connecting && now - link.startedAt > Math.min(CONNECT_TIMEOUT, timeout)) {
        link.connection.close('connect_timeout');
      } else if (now - link.startedAt > timeout) {
        link.connection.close('handshake_timeout');
      }
      return;
    }
    if (now - link.heardAt > (limits?.idleTimeoutMs ?? CLIENT_IDLE_TIMEOUT)) {
      link.connection.close('idle');
      return;
    }
    if (now - link.pingedAt >= (limits?.keepaliveMs ?? KEEPALIVE_INTERVAL)) this.#ping(link);
    link.connection.tick();
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

/** True from the first message 2 on, in a renewal too: what is offered then goes out afterwards. */
function isOpen(connection: ClientConnection): boolean {
  return connection.state === 'open' || connection.state === 'renewing';
}
