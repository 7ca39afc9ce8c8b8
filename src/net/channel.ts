/**
 * The secure channel as its users see it (docs/protocol.md section 6), whatever carries it:
 * addresses, sessions, requests and what is counted. `ChannelServer` and `ChannelClient`
 * stand in files of their own.
 */
import { type DiscardReason, discardCounters } from '../protocol/channel/datagram.js';
import { FAILURE_REASONS, type FailureReason } from '../protocol/channel/failures.js';
import type { ChannelTerms } from '../protocol/channel/handshake-payload.js';
import type { KeyPair } from '../protocol/channel/keys.js';
import type { Clock, TimeSource } from '../runtime/clock.js';
import type { PeerCode } from '../runtime/errors.js';
import type { Scheme } from './address.js';

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

/** What a server has counted since it started, and how many there are now. */
export interface ChannelCounters {
  /** Now. */
  connections: number;
  halfOpen: number;
  sessions: number;
  /** Handshakes that wait for the thread that computes them. */
  handshakeQueue: number;
  /** Bytes kept out of order on datagrams. */
  reassembly: number;
  /** Since the start. */
  accepted: number;
  established: number;
  renewals: number;
  requests: number;
  pushes: number;
  superseded: number;
  cookies: number;
  resets: number;
  /** Times that the server stopped reading of a peer that had too much open. */
  paused: number;
  /** What had to be forgotten for want of room. */
  readonly forgotten: Record<'answer' | 'ticket', number>;
  readonly closed: Record<FailureReason, number>;
  /** Datagrams thrown away; none of them ended anything. */
  readonly discarded: Record<DiscardReason, number>;
}

export function channelCounters(): ChannelCounters {
  return {
    connections: 0,
    halfOpen: 0,
    sessions: 0,
    handshakeQueue: 0,
    reassembly: 0,
    accepted: 0,
    established: 0,
    renewals: 0,
    requests: 0,
    pushes: 0,
    superseded: 0,
    cookies: 0,
    resets: 0,
    paused: 0,
    forgotten: { answer: 0, ticket: 0 },
    closed: Object.fromEntries(FAILURE_REASONS.map((reason) => [reason, 0])) as Record<
      FailureReason,
      number
    >,
    discarded: discardCounters(),
  };
}

/** One peer on one channel, from its first record to the end. */
export interface Session {
  /** Number of the channel in this process. */
  readonly id: number;
  /** The peer's static public key, 32 bytes, proven. */
  readonly remoteKey: Buffer;
  /** The join token (16 bytes) if the channel was made with IKpsk2. */
  readonly tokenId: Buffer | undefined;
  /** Address and port of the peer; on datagrams they may change. */
  readonly remoteAddress: string;
  readonly closed: boolean;
  /**
   * Sends a push. With a `key`, an earlier push of that key that still waits is dropped.
   * @throws PairwireError CHANNEL_LIMIT for a message over 1 MiB
   */
  push(message: Message, options?: { readonly key?: string }): void;
  /**
   * Finds out whether the peer is still there. On a stream its kernel tells, as soon as anything
   * is sent; on datagrams the channel ends unless the peer answers within 2 s.
   */
  probe(): void;
  /** Ends the channel. */
  close(): void;
}

/** Where a server listens. */
export interface ListenAddress {
  readonly scheme: Scheme;
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
}

export interface ChannelServerOptions<Request> {
  readonly listen: readonly ListenAddress[];
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
  /** Told of each connection that ended, and of each peer that was turned away: for the log. */
  readonly onClose?: (end: { address: string; reason: FailureReason; session?: Session }) => void;
  /** Told what a handler threw: for the log. */
  readonly onError?: (thrown: unknown) => void;
  readonly terms?: Partial<ChannelTerms>;
  readonly limits?: ChannelLimits;
}

/** Connections of a server, and those of them that are not through the handshake yet, by default. */
export const MAX_CONNECTIONS = 20_000;
export const MAX_HALF_OPEN = 1_024;
/** Sessions of one static key; an honest member has one, and for a moment the one before. */
export const MAX_PER_KEY = 64;

/** Limits of a server; each has a default. */
export interface ChannelLimits {
  readonly maxConnections?: number;
  readonly maxHalfOpen?: number;
  readonly maxPerKey?: number;
  readonly handshakeTimeoutMs?: number;
  readonly idleTimeoutMs?: number;
  readonly tickMs?: number;
  /** Handshakes that wait, beyond which a message 1 must have a cookie or a ticket; 0: always. */
  readonly cookieAbove?: number;
  /** Handshakes that may wait in all. */
  readonly maxQueue?: number;
  /** Handshakes of one prefix (/32, /64) once cookies are asked for. */
  readonly perPrefix?: { readonly burst: number; readonly perSecond: number };
  /** Bytes kept out of order on all channels. */
  readonly reassemblyBytes?: number;
}
