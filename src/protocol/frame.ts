/**
 * The sealed frame, docs/protocol.md section 2, on @noble:
 *
 *   version(4b) kind(4b) | flags(8b) | kid(16b) | sender index(32b) | counter(64b) | AEAD(...)
 *
 * The data plane has its own implementation. This one serves tests, vectors and tools;
 * it never seals live traffic, because a counter under a traffic key belongs to the
 * data plane alone (threats.md C1: one sealer for each key).
 */
import { gcm } from '@noble/ciphers/aes.js';
import { chacha20poly1305 } from '@noble/ciphers/chacha.js';
import {
  FRAME_OVERHEAD,
  FRAME_TICKS_PER_SECOND,
  FrameKind,
  INNER_HEADER_SIZE,
  MAX_PARTS,
  PROTOCOL_VERSION,
  SHIM_SIZE,
  type Suite,
} from './constants.js';

/** The clear, authenticated header. */
export interface Shim {
  readonly kind: FrameKind;
  readonly flags: number;
  readonly kid: number;
  readonly index: number;
  readonly counter: bigint;
}

/** The four description bytes. */
export interface Description {
  readonly partialChecksum: boolean;
  readonly part: number;
  readonly lastPart: boolean;
  readonly trainPlace: number;
  readonly padding: number;
}

export const PLAIN_DESCRIPTION: Description = {
  partialChecksum: false,
  part: 0,
  lastPart: false,
  trainPlace: 0,
  padding: 0,
};

/** What was inside a seal. */
export interface OpenedFrame {
  readonly shim: Shim;
  /** Key-server time of the sender in 1/256 s, modulo 2^32. */
  readonly time: number;
  readonly description: Description;
  readonly payload: Uint8Array;
}

const KINDS: ReadonlySet<number> = new Set(Object.values(FrameKind));

/** The 16 bytes of a shim. */
export function encodeShim(shim: Shim): Buffer {
  const bytes = Buffer.alloc(SHIM_SIZE);
  bytes.writeUInt8((PROTOCOL_VERSION << 4) | shim.kind, 0);
  bytes.writeUInt8(shim.flags, 1);
  bytes.writeUInt16BE(shim.kid, 2);
  bytes.writeUInt32BE(shim.index, 4);
  bytes.writeBigUInt64BE(shim.counter, 8);
  return bytes;
}

/** Parses the front of a frame; undefined if it is shorter than any frame, of another version or of an unknown kind. */
export function decodeShim(frame: Uint8Array): Shim | undefined {
  if (frame.length < FRAME_OVERHEAD) return undefined;
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  const first = bytes.readUInt8(0);
  const kind = first & 0x0f;
  if (first >> 4 !== PROTOCOL_VERSION || !isKind(kind)) return undefined;
  return {
    kind,
    flags: bytes.readUInt8(1),
    kid: bytes.readUInt16BE(2),
    index: bytes.readUInt32BE(4),
    counter: bytes.readBigUInt64BE(8),
  };
}

function isKind(kind: number): kind is FrameKind {
  return KINDS.has(kind);
}

/** The four description bytes. */
export function encodeDescription(description: Description): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt8(
    (description.partialChecksum ? 0x01 : 0) |
      (description.part << 1) |
      (description.lastPart ? 0x08 : 0),
    0,
  );
  bytes.writeUInt8(description.trainPlace, 1);
  bytes.writeUInt16BE(description.padding, 2);
  return bytes;
}

/** Parses the description; undefined if a reserved bit is set or the part number is 3. */
export function decodeDescription(bytes: Buffer): Description | undefined {
  const first = bytes.readUInt8(0);
  const part = (first >> 1) & 0x03;
  if ((first & 0xf0) !== 0 || part >= MAX_PARTS) return undefined;
  return {
    partialChecksum: (first & 0x01) !== 0,
    part,
    lastPart: (first & 0x08) !== 0,
    trainPlace: bytes.readUInt8(1),
    padding: bytes.readUInt16BE(2),
  };
}

/** Key-server time in ms as the 32-bit time of a frame. */
export function frameTime(serverMs: number): number {
  return Number(BigInt.asUintN(32, BigInt(Math.floor((serverMs * FRAME_TICKS_PER_SECOND) / 1000))));
}

function nonceOf(counter: bigint): Buffer {
  const nonce = Buffer.alloc(12);
  nonce.writeBigUInt64BE(counter, 4);
  return nonce;
}

function cipherOf(suite: Suite, key: Uint8Array, nonce: Uint8Array, aad: Uint8Array) {
  return suite === 'aes-256-gcm' ? gcm(key, nonce, aad) : chacha20poly1305(key, nonce, aad);
}

/**
 * Seals a payload. `aadTail` is what stands behind the shim in the associated data:
 * nothing for `udp`, the outer addresses for the other transports.
 */
export function sealFrame(input: {
  readonly suite: Suite;
  readonly key: Uint8Array;
  readonly shim: Shim;
  readonly time: number;
  readonly description?: Description;
  readonly payload: Uint8Array;
  readonly aadTail?: Uint8Array;
}): Buffer {
  const shim = encodeShim(input.shim);
  const time = Buffer.alloc(4);
  time.writeUInt32BE(input.time);
  const description = input.description ?? PLAIN_DESCRIPTION;
  const plain = Buffer.concat([
    time,
    encodeDescription(description),
    input.payload,
    Buffer.alloc(description.padding),
  ]);
  const aad = Buffer.concat([shim, input.aadTail ?? Buffer.alloc(0)]);
  const cipher = cipherOf(input.suite, input.key, nonceOf(input.shim.counter), aad);
  return Buffer.concat([shim, cipher.encrypt(plain)]);
}

/** Opens a frame; undefined if anything about it is wrong. */
export function openFrame(input: {
  readonly suite: Suite;
  readonly key: Uint8Array;
  readonly frame: Uint8Array;
  readonly aadTail?: Uint8Array;
}): OpenedFrame | undefined {
  const shim = decodeShim(input.frame);
  if (shim === undefined) return undefined;
  const aad = Buffer.concat([input.frame.subarray(0, SHIM_SIZE), input.aadTail ?? Buffer.alloc(0)]);
  const cipher = cipherOf(input.suite, input.key, nonceOf(shim.counter), aad);
  let plain: Buffer;
  try {
    plain = Buffer.from(cipher.decrypt(input.frame.subarray(SHIM_SIZE)));
  } catch {
    return undefined;
  }
  const description = decodeDescription(plain.subarray(4, 8));
  if (description === undefined) return undefined;
  const end = plain.length - description.padding;
  if (end < INNER_HEADER_SIZE) return undefined;
  return {
    shim,
    time: plain.readUInt32BE(0),
    description,
    payload: plain.subarray(INNER_HEADER_SIZE, end),
  };
}
