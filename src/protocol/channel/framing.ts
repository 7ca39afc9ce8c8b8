/**
 * Frames of the secure channel on a stream, docs/protocol.md 6.1:
 *
 *   length (4) | type (1) | body (length - 1 bytes)
 *
 * The length is checked as soon as the header is there. Memory grows with what has
 * arrived, at most to its double, never with what was announced; every byte is copied a
 * bounded number of times, however the stream is cut.
 */

/** Frame types and their bodies. */
export const FrameType = {
  message1: 1, // Noise_IK message 1
  message1Psk: 2, // Noise_IKpsk2 message 1
  message2: 3, // Noise message 2 of either
  record: 4, // sealed record
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

/** Sizes in bytes. */
export const FRAME_HEADER_SIZE = 5;
/** Largest value of `length`: 1 MiB and 64 bytes for what surrounds a message. */
export const MAX_FRAME_LENGTH = 1_048_576 + 64;
/** Largest value of `length` of a handshake frame, so that a stranger can't make us keep more. */
export const MAX_HANDSHAKE_LENGTH = 4_096;
/** The first piece of memory for a body that did not come in one chunk. */
const FIRST_PIECE = 4_096;

/** Why a stream can't be cut into frames. */
export type FramingFailure = 'frame_length' | 'frame_type' | 'frame_unexpected';

/** Writes `length` and `type` for a body of `bodySize` bytes. */
export function writeFrameHeader(
  out: Buffer,
  offset: number,
  type: FrameType,
  bodySize: number,
): void {
  out.writeUInt32BE(bodySize + 1, offset);
  out[offset + 4] = type;
}

/** A frame in a buffer of its own. */
export function encodeFrame(type: FrameType, body: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(FRAME_HEADER_SIZE + body.length);
  writeFrameHeader(out, 0, type, body.length);
  out.set(body, FRAME_HEADER_SIZE);
  return out;
}

/** What the framer calls. */
export interface FrameHandler {
  /** A header has come: false refuses the frame before its body is kept. */
  accepts(type: FrameType): boolean;
  /** A whole frame. `body` may lie in the caller's chunk: it is good until the call returns. False stops the framer. */
  frame(type: FrameType, body: Buffer): boolean;
}

/** Cuts a stream into frames. After a failure, or after the handler said stop, it takes nothing more. */
export class StreamFramer {
  readonly #handler: FrameHandler;
  readonly #header = Buffer.alloc(FRAME_HEADER_SIZE);
  #headerSize = 0;
  #type: FrameType = FrameType.record;
  #bodySize = 0;
  #body: Buffer | undefined;
  #have = 0;
  #done = false;

  constructor(handler: FrameHandler) {
    this.#handler = handler;
  }

  /** Bytes of memory held for a frame that is not complete. */
  get held(): number {
    return this.#body?.length ?? 0;
  }

  /** Takes the next bytes of the stream. @returns why the stream is not valid, or undefined */
  push(chunk: Buffer): FramingFailure | undefined {
    let at = 0;
    while (!this.#done && at < chunk.length) {
      if (this.#headerSize < FRAME_HEADER_SIZE) {
        at += this.#takeHeader(chunk, at);
        if (this.#headerSize < FRAME_HEADER_SIZE) return undefined;
        const failure = this.#checkHeader();
        if (failure !== undefined) return this.#stop(failure);
      }
      if (this.#body === undefined && chunk.length - at >= this.#bodySize) {
        // The whole body lies in this chunk: nothing is copied.
        const body = chunk.subarray(at, at + this.#bodySize);
        at += this.#bodySize;
        this.#deliver(body);
        continue;
      }
      at += this.#takeBody(chunk, at);
      if (this.#body !== undefined && this.#have === this.#bodySize) {
        this.#deliver(this.#body.subarray(0, this.#have));
      }
    }
    return undefined;
  }

  #takeHeader(chunk: Buffer, at: number): number {
    const size = Math.min(FRAME_HEADER_SIZE - this.#headerSize, chunk.length - at);
    chunk.copy(this.#header, this.#headerSize, at, at + size);
    this.#headerSize += size;
    return size;
  }

  #checkHeader(): FramingFailure | undefined {
    const length = this.#header.readUInt32BE(0);
    const type = this.#header[4];
    if (length < 1 || length > MAX_FRAME_LENGTH) return 'frame_length';
    switch (type) {
      case FrameType.message1:
      case FrameType.message1Psk:
      case FrameType.message2:
        if (length > MAX_HANDSHAKE_LENGTH) return 'frame_length';
        break;
      case FrameType.record:
        break;
      default:
        return 'frame_type';
    }
    if (!this.#handler.accepts(type)) return 'frame_unexpected';
    this.#type = type;
    this.#bodySize = length - 1;
    this.#have = 0;
    return undefined;
  }

  #takeBody(chunk: Buffer, at: number): number {
    const size = Math.min(this.#bodySize - this.#have, chunk.length - at);
    const need = this.#have + size;
    const capacity = this.#body?.length ?? 0;
    if (need > capacity) {
      const larger = Buffer.allocUnsafeSlow(
        Math.min(this.#bodySize, Math.max(need, 2 * capacity, FIRST_PIECE)),
      );
      this.#body?.copy(larger, 0, 0, this.#have);
      this.#body = larger;
    }
    if (this.#body !== undefined) chunk.copy(this.#body, this.#have, at, at + size);
    this.#have = need;
    return size;
  }

  #deliver(body: Buffer): void {
    this.#body = undefined;
    this.#headerSize = 0;
    if (!this.#handler.frame(this.#type, body)) this.#done = true;
  }

  #stop(failure: FramingFailure): FramingFailure {
    this.#done = true;
    this.#body = undefined;
    return failure;
  }
}
