/**
 * What the two messages of a handshake carry, docs/protocol.md 6.2 and 6.8:
 *
 *   message 1  {v: 1, token?: 16 bytes}
 *   message 2  {time: ms, lifetime: s, records: count, validity: ms}, and on datagrams
 *              {..., channel: 8 bytes, reset: 16 bytes, ticket: 16 bytes, key: 32 bytes}
 */
import { KEY_SIZE } from '../constants.js';
import { decodeMessage, encodeMessage } from './codec.js';
import { CHANNEL_ID_SIZE, RESET_TOKEN_SIZE, TICKET_SIZE } from './datagram.js';

/** Specification values. */
const HANDSHAKE_VERSION = 1;
const TOKEN_ID_SIZE = 16;
const CHANNEL_LIFETIME_MS = 3_600_000;
const CHANNEL_RECORD_LIMIT = 2 ** 20;
const CHANNEL_VALIDITY_MS = 30_000;

/** The terms that the server states in message 2. */
export interface ChannelTerms {
  readonly lifetimeMs: number;
  readonly recordLimit: number;
  readonly validityMs: number;
}

/** Terms with the defaults: 3,600 s, 2^20 records, 30 s. */
export function completeTerms(terms: Partial<ChannelTerms> = {}): ChannelTerms {
  return {
    lifetimeMs: terms.lifetimeMs ?? CHANNEL_LIFETIME_MS,
    recordLimit: terms.recordLimit ?? CHANNEL_RECORD_LIMIT,
    validityMs: terms.validityMs ?? CHANNEL_VALIDITY_MS,
  };
}

/** A join token as the channel uses it: its id (16 bytes) and `tokenPsk` of its key (32 bytes). */
export interface ChannelToken {
  readonly id: Uint8Array;
  readonly psk: Uint8Array;
}

export function encodeGreeting(tokenId: Uint8Array | undefined): Uint8Array {
  return encodeMessage({ v: HANDSHAKE_VERSION, token: tokenId });
}

export function parseGreeting(
  bytes: Uint8Array,
  withToken: boolean,
): { readonly tokenId: Buffer | undefined } | undefined {
  const map = decodeMap(bytes);
  if (map?.v !== HANDSHAKE_VERSION) return undefined;
  if (!withToken) return { tokenId: undefined };
  const tokenId = bytesOf(map.token, TOKEN_ID_SIZE);
  return tokenId === undefined ? undefined : { tokenId };
}

/** What message 2 says on datagrams besides. */
export interface DatagramWelcome {
  /** The server's channel id. */
  readonly channel: Buffer;
  /** What a reset must show to be believed. */
  readonly reset: Buffer;
  /** Name and key of the ticket for the next message 1. */
  readonly ticket: Buffer;
  readonly key: Buffer;
}

export function encodeWelcome(
  timeMs: number,
  terms: ChannelTerms,
  more: DatagramWelcome | Record<never, never> = {},
): Uint8Array {
  return encodeMessage({
    time: timeMs,
    lifetime: terms.lifetimeMs / 1_000,
    records: terms.recordLimit,
    validity: terms.validityMs,
    ...more,
  });
}

export interface Welcome {
  readonly time: number;
  readonly terms: ChannelTerms;
}

export function parseWelcome(bytes: Uint8Array): Welcome | undefined {
  const map = decodeMap(bytes);
  return map === undefined ? undefined : welcomeOf(map);
}

export function parseDatagramWelcome(bytes: Uint8Array): (Welcome & DatagramWelcome) | undefined {
  const map = decodeMap(bytes);
  const welcome = map === undefined ? undefined : welcomeOf(map);
  const channel = bytesOf(map?.channel, CHANNEL_ID_SIZE);
  const reset = bytesOf(map?.reset, RESET_TOKEN_SIZE);
  const ticket = bytesOf(map?.ticket, TICKET_SIZE);
  const key = bytesOf(map?.key, KEY_SIZE);
  if (welcome === undefined || channel === undefined || reset === undefined) return undefined;
  if (ticket === undefined || key === undefined) return undefined;
  return { ...welcome, channel, reset, ticket, key };
}

function welcomeOf(map: Record<string, unknown>): Welcome | undefined {
  const { time, lifetime, records, validity } = map;
  if (!natural(time, 2 ** 48 - 1)) return undefined;
  if (!natural(records, 2 ** 32) || records < 1) return undefined;
  if (!natural(validity, 3_600_000) || validity < 1) return undefined;
  if (typeof lifetime !== 'number' || !(lifetime > 0 && lifetime <= 86_400)) return undefined;
  const terms = { lifetimeMs: lifetime * 1_000, recordLimit: records, validityMs: validity };
  return { time, terms };
}

/** A copy of a byte string of that size. */
function bytesOf(value: unknown, size: number): Buffer | undefined {
  return value instanceof Uint8Array && value.length === size ? Buffer.from(value) : undefined;
}

function decodeMap(bytes: Uint8Array): Record<string, unknown> | undefined {
  try {
    const value = decodeMessage(bytes);
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
    return value as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

function natural(value: unknown, most: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= most;
}
