/**
 * Datagrams of the secure channel, docs/protocol.md 6.7:
 *
 *   message 1  type (1) = 1, 2 | sender's channel id (8) | length (2) | Noise message 1 (length)
 *              | zeros | mac1 (16) | ticket (16) | mac2 (16)
 *   message 2  type (1) = 3 | receiver's channel id (8) | Noise message 2
 *   record     type (1) = 4 | receiver's channel id (8) | record number (8) | sealed
 *   cookie     type (1) = 5 | receiver's channel id (8) | salt (16) | sealed cookie (16 + 16)
 *   reset      type (1) = 6 | receiver's channel id (8) | reset token (16)
 *
 * The same bytes are the payload of a UDP datagram or one part of the body of an HTTP POST.
 */
import { KEY_SIZE, TAG_SIZE } from '../constants.js';
import { MESSAGE_1_OVERHEAD } from './noise.js';
import { OTP_SIZE } from './otp.js';

/** Datagram types. The first four have the numbers of the stream's frames. */
export const DatagramType = {
  message1: 1, // Noise_IK message 1
  message1Psk: 2, // Noise_IKpsk2 message 1
  message2: 3, // Noise message 2 of either
  record: 4, // sealed record
  cookie: 5, // "come again with this": no state is kept for it
  reset: 6, // "I don't know this channel any more", with the token that message 2 carried
} as const;
export type DatagramType = (typeof DatagramType)[keyof typeof DatagramType];

/** Sizes in bytes. */
export const CHANNEL_ID_SIZE = 8;
export const MAC_SIZE = 16;
export const TICKET_SIZE = 16;
export const COOKIE_SIZE = 16;
export const SALT_SIZE = 16;
export const RESET_TOKEN_SIZE = 16;
const TYPE_AND_ID = 1 + CHANNEL_ID_SIZE;
const NOISE_AT = TYPE_AND_ID + 2;
/** mac1, ticket and mac2 at the end of a message 1. */
export const TRAILER_SIZE = MAC_SIZE + TICKET_SIZE + MAC_SIZE;
/** A message 1 is filled up to this, so that no answer to a stranger is longer than his question. */
export const MIN_MESSAGE_1 = 320;
export const MAX_MESSAGE_1 = 1_024;
/** A message 2 is never longer than the shortest message 1. */
export const MAX_MESSAGE_2 = MIN_MESSAGE_1;
export const COOKIE_REPLY_SIZE = TYPE_AND_ID + SALT_SIZE + COOKIE_SIZE + TAG_SIZE;
export const RESET_SIZE = TYPE_AND_ID + RESET_TOKEN_SIZE;
/** type | channel id | record number, in clear and authenticated. */
export const RECORD_HEADER_SIZE = TYPE_AND_ID + 8;
/** What a record adds to its frames: 17 + 16 + 16. */
export const DATAGRAM_OVERHEAD = RECORD_HEADER_SIZE + OTP_SIZE + TAG_SIZE;
/** The largest record over UDP: 1,280 (the least MTU of IPv6) less 40 and 8. */
export const MAX_UDP_RECORD = 1_232;
/** The largest record in the body of a POST. */
export const MAX_HTTP_RECORD = 16_384;

/** A message 1 in its parts. */
export interface Opening {
  readonly type: typeof DatagramType.message1 | typeof DatagramType.message1Psk;
  /** The client's channel id. */
  readonly sender: Buffer;
  readonly noise: Buffer;
  /** What mac1 and mac2 are made over. */
  readonly beforeMac1: Buffer;
  readonly mac1: Buffer;
  readonly ticket: Buffer;
  readonly beforeMac2: Buffer;
  readonly mac2: Buffer;
}

/** A message 1 whose mac1, ticket and mac2 are still zero. @throws RangeError if it would be too long */
export function encodeOpening(
  type: Opening['type'],
  sender: Uint8Array,
  noise: Uint8Array,
): Buffer {
  const size = Math.max(MIN_MESSAGE_1, NOISE_AT + noise.length + TRAILER_SIZE);
  if (size > MAX_MESSAGE_1) throw new RangeError('a message 1 is too long for a datagram');
  const out = Buffer.alloc(size);
  out[0] = type;
  out.set(sender, 1);
  out.writeUInt16BE(noise.length, TYPE_AND_ID);
  out.set(noise, NOISE_AT);
  return out;
}

/** Cuts a message 1 into its parts, which share its memory; undefined for anything else. */
export function parseOpening(datagram: Buffer): Opening | undefined {
  const type = datagram[0];
  if (type !== DatagramType.message1 && type !== DatagramType.message1Psk) return undefined;
  if (datagram.length < MIN_MESSAGE_1 || datagram.length > MAX_MESSAGE_1) return undefined;
  const noiseSize = datagram.readUInt16BE(TYPE_AND_ID);
  const mac1At = datagram.length - TRAILER_SIZE;
  if (noiseSize < MESSAGE_1_OVERHEAD || NOISE_AT + noiseSize > mac1At) return undefined;
  const ticketAt = mac1At + MAC_SIZE;
  const mac2At = ticketAt + TICKET_SIZE;
  return {
    type,
    sender: datagram.subarray(1, TYPE_AND_ID),
    noise: datagram.subarray(NOISE_AT, NOISE_AT + noiseSize),
    beforeMac1: datagram.subarray(0, mac1At),
    mac1: datagram.subarray(mac1At, ticketAt),
    ticket: datagram.subarray(ticketAt, mac2At),
    beforeMac2: datagram.subarray(0, mac2At),
    mac2: datagram.subarray(mac2At),
  };
}

/** The ephemeral key with which every Noise message 1 begins: names it among others. */
export function ephemeralOf(noise: Buffer): string {
  return noise.toString('latin1', 0, KEY_SIZE);
}

export function encodeWelcome(receiver: Uint8Array, noise: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(TYPE_AND_ID + noise.length);
  out[0] = DatagramType.message2;
  out.set(receiver, 1);
  out.set(noise, TYPE_AND_ID);
  return out;
}

/** The Noise message 2 in a datagram of that type. */
export function noiseOfWelcome(datagram: Buffer): Buffer {
  return datagram.subarray(TYPE_AND_ID);
}

/** The receiver's channel id in a datagram of any type but message 1, as the key of a map; undefined if it is too short. */
export function receiverOf(datagram: Buffer): string | undefined {
  return datagram.length < TYPE_AND_ID ? undefined : datagram.toString('latin1', 1, TYPE_AND_ID);
}

/** A channel id as the key of a map. */
export function idKey(id: Buffer): string {
  return id.toString('latin1', 0, CHANNEL_ID_SIZE);
}

export function encodeReset(receiver: Uint8Array, token: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(RESET_SIZE);
  out[0] = DatagramType.reset;
  out.set(receiver, 1);
  out.set(token, TYPE_AND_ID);
  return out;
}

/** The token of a reset; undefined if the datagram is none. */
export function parseReset(datagram: Buffer): Buffer | undefined {
  if (datagram.length !== RESET_SIZE || datagram[0] !== DatagramType.reset) return undefined;
  return datagram.subarray(TYPE_AND_ID);
}

/** Salt and sealed cookie of a cookie reply; undefined if the datagram is none. */
export function parseCookieReply(
  datagram: Buffer,
): { readonly header: Buffer; readonly salt: Buffer; readonly sealed: Buffer } | undefined {
  if (datagram.length !== COOKIE_REPLY_SIZE || datagram[0] !== DatagramType.cookie) {
    return undefined;
  }
  const saltEnd = TYPE_AND_ID + SALT_SIZE;
  return {
    header: datagram.subarray(0, TYPE_AND_ID),
    salt: datagram.subarray(TYPE_AND_ID, saltEnd),
    sealed: datagram.subarray(saltEnd),
  };
}

/** type (1) = 5 | receiver: the part of a cookie reply before the salt. */
export function cookieHeader(receiver: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(TYPE_AND_ID);
  out[0] = DatagramType.cookie;
  out.set(receiver, 1);
  return out;
}

/** Why a datagram was thrown away: a counter label. Nothing of this ends a channel. */
export const DISCARD_REASONS = [
  'shape', // too short, too long, or of no known type
  'mac1', // a message 1 that was not made for this server
  'rate', // its prefix has had its share of handshakes, after the cookie
  'queue', // too many handshakes wait
  'handshake', // a message 1 or 2 that is not authentic or has another payload
  'refused', // a static key or token that is not known here
  'channel', // no such channel
  'record', // a record whose tag is wrong
  'replayed', // a record number that has been, or is too old to tell
  'otp', // a one-time password that is wrong or out of time
  'frame', // an authentic record with frames that make no sense
  'window', // data beyond what was allowed to be sent
  'memory', // out-of-order data while the server holds as much as it may
  'body', // a POST that is too long, or while as many bodies are under way as there is memory for
  'waiting', // ours, for a peer that has no POST open for it; sent again
] as const;
export type DiscardReason = (typeof DISCARD_REASONS)[number];

/** A counter for each reason. */
export function discardCounters(): Record<DiscardReason, number> {
  return Object.fromEntries(DISCARD_REASONS.map((reason) => [reason, 0])) as Record<
    DiscardReason,
    number
  >;
}
