/**
 * Messages as MessagePack, docs/protocol.md 6.5. Bytes from a peer are measured before
 * they are decoded: a decoder takes memory for as many elements as an array announces,
 * and nested announcements in one message of 1 MiB add up to gigabytes. What is allowed:
 * 32 levels, no more elements outstanding than bytes left, no extension types.
 */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { PairwireError } from '../../runtime/errors.js';
import { MAX_MESSAGE_SIZE } from './record.js';

/** Implementation limits. */
const MAX_DEPTH = 32;

const encoder = new Encoder({ ignoreUndefined: true, maxDepth: MAX_DEPTH });
const decoder = new Decoder({
  maxStrLength: MAX_MESSAGE_SIZE,
  maxBinLength: MAX_MESSAGE_SIZE,
  maxArrayLength: MAX_MESSAGE_SIZE,
  maxMapLength: MAX_MESSAGE_SIZE,
  maxExtLength: 0,
});

/**
 * Encodes a message; keys with the value undefined are left out.
 * @returns bytes that stay valid only until the next call: seal or copy them first
 * @throws PairwireError CHANNEL_LIMIT if it is longer than 1 MiB
 */
export function encodeShared(message: unknown): Uint8Array {
  const bytes = encoder.encodeSharedRef(message);
  if (bytes.length > MAX_MESSAGE_SIZE) {
    throw new PairwireError('CHANNEL_LIMIT', `a message has ${bytes.length} bytes, over 1 MiB`);
  }
  return bytes;
}

/** Encodes a message into bytes of its own. @throws PairwireError CHANNEL_LIMIT if it is longer than 1 MiB */
export function encodeMessage(message: unknown): Uint8Array {
  return new Uint8Array(encodeShared(message));
}

/**
 * Decodes the bytes of one message. Byte strings in it share memory with `bytes`.
 * @throws PairwireError CHANNEL_MALFORMED without a word of the contents
 */
export function decodeMessage(bytes: Uint8Array): unknown {
  if (bytes.length > MAX_MESSAGE_SIZE || !measure(bytes)) throw malformed();
  try {
    return decoder.decode(bytes);
  } catch {
    // The decoder's own texts may carry contents, so they end here.
    throw malformed();
  }
}

/** A message as it looks before any schema: a map with a type and perhaps an id. */
export interface Envelope {
  readonly t: string;
  readonly id?: number;
  readonly [key: string]: unknown;
}

/** Decodes a message and checks that it is a map with a string `t` and, if any, an id that is a natural number. */
export function decodeEnvelope(bytes: Uint8Array): Envelope {
  const value = decodeMessage(bytes);
  if (!isEnvelope(value)) throw malformed();
  return value;
}

function isEnvelope(value: unknown): value is Envelope {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const { t, id } = value as { t?: unknown; id?: unknown };
  if (typeof t !== 'string') return false;
  return id === undefined || (typeof id === 'number' && Number.isSafeInteger(id) && id >= 0);
}

function malformed(): PairwireError {
  return new PairwireError('CHANNEL_MALFORMED', 'a message is not valid MessagePack or too deep');
}

/** Outstanding elements at each level; maps hold keys and values. Decoding is not re-entrant, so one will do. */
const outstanding = new Float64Array(MAX_DEPTH + 1);

/** Walks over one value without decoding it. True if it fills `bytes` exactly within the limits. */
function measure(bytes: Uint8Array): boolean {
  const end = bytes.length;
  let at = 0;
  let depth = 0;
  let pending = 1;
  outstanding[0] = 1;
  while (pending > 0) {
    if (pending > end - at) return false;
    const head = bytes[at] ?? 0xc1;
    at += 1;
    pending -= 1;
    outstanding[depth] = (outstanding[depth] ?? 0) - 1;
    let skip = 0;
    let elements = -1;
    if (head <= 0x7f || head >= 0xe0) {
      // positive or negative fixint
    } else if (head <= 0x8f) {
      elements = 2 * (head & 0x0f); // fixmap
    } else if (head <= 0x9f) {
      elements = head & 0x0f; // fixarray
    } else if (head <= 0xbf) {
      skip = head & 0x1f; // fixstr
    } else {
      switch (head) {
        case 0xc0: // nil
        case 0xc2: // false
        case 0xc3: // true
          break;
        case 0xc4: // bin 8
        case 0xd9: // str 8
          skip = 1 + unsigned(bytes, at, 1);
          break;
        case 0xc5: // bin 16
        case 0xda: // str 16
          skip = 2 + unsigned(bytes, at, 2);
          break;
        case 0xc6: // bin 32
        case 0xdb: // str 32
          skip = 4 + unsigned(bytes, at, 4);
          break;
        case 0xcc: // uint 8
        case 0xd0: // int 8
          skip = 1;
          break;
        case 0xcd: // uint 16
        case 0xd1: // int 16
          skip = 2;
          break;
        case 0xca: // float 32
        case 0xce: // uint 32
        case 0xd2: // int 32
          skip = 4;
          break;
        case 0xcb: // float 64
        case 0xcf: // uint 64
        case 0xd3: // int 64
          skip = 8;
          break;
        case 0xdc: // array 16
          skip = 2;
          elements = unsigned(bytes, at, 2);
          break;
        case 0xdd: // array 32
          skip = 4;
          elements = unsigned(bytes, at, 4);
          break;
        case 0xde: // map 16
          skip = 2;
          elements = 2 * unsigned(bytes, at, 2);
          break;
        case 0xdf: // map 32
          skip = 4;
          elements = 2 * unsigned(bytes, at, 4);
          break;
        default: // never used, extension types
          return false;
      }
    }
    at += skip;
    if (at > end) return false;
    if (elements > 0) {
      depth += 1;
      if (depth > MAX_DEPTH) return false;
      pending += elements;
      outstanding[depth] = elements;
    }
    while (depth > 0 && outstanding[depth] === 0) depth -= 1;
  }
  return at === end;
}

function unsigned(bytes: Uint8Array, at: number, size: number): number {
  let value = 0;
  for (let i = 0; i < size; i += 1) value = value * 256 + (bytes[at + i] ?? 0);
  return value;
}
