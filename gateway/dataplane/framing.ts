/**
 * Frames of the data-plane socket: 4-byte big-endian length, then one MessagePack map. The
 * reader takes hostile bytes: a length is checked before memory is taken, and what is not
 * one MessagePack value of modest size throws.
 */
import { encode } from '@msgpack/msgpack';
import { decodeMessage } from '../../src/protocol/channel/codec.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { MAX_MESSAGE } from './messages.gen.js';

const HEADER_SIZE = 4;

/** One message as it stands on the socket. @throws PairwireError DATAPLANE_PROTOCOL if it is too long */
export function encodeMessage(message: Readonly<Record<string, unknown>>): Buffer {
  const body = encode(message);
  if (body.length > MAX_MESSAGE) {
    throw new PairwireError('DATAPLANE_PROTOCOL', 'a command is longer than a message may be');
  }
  const frame = Buffer.allocUnsafe(HEADER_SIZE + body.length);
  frame.writeUInt32BE(body.length, 0);
  frame.set(body, HEADER_SIZE);
  return frame;
}

/** Cuts a byte stream into decoded messages. After a throw it must not be used again. */
export class MessageReader {
  #chunks: Buffer[] = [];
  #size = 0;

  /** Takes bytes; yields what became complete. @throws PairwireError DATAPLANE_PROTOCOL */
  *push(chunk: Buffer): Generator<unknown> {
    this.#chunks.push(chunk);
    this.#size += chunk.length;
    while (this.#size >= HEADER_SIZE) {
      const length = this.#peekLength();
      if (length === 0 || length > MAX_MESSAGE) {
        throw new PairwireError('DATAPLANE_PROTOCOL', `a message of ${length} bytes was announced`);
      }
      if (this.#size < HEADER_SIZE + length) return;
      const frame = this.#take(HEADER_SIZE + length);
      yield decodeBody(frame.subarray(HEADER_SIZE));
    }
  }

  #peekLength(): number {
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= HEADER_SIZE) return first.readUInt32BE(0);
    this.#merge();
    return this.#chunks[0]?.readUInt32BE(0) ?? 0;
  }

  #take(size: number): Buffer {
    if ((this.#chunks[0]?.length ?? 0) < size) this.#merge();
    const all = this.#chunks[0] ?? Buffer.alloc(0);
    const rest = all.subarray(size);
    if (rest.length > 0) this.#chunks[0] = rest;
    else this.#chunks.shift();
    this.#size -= size;
    return all.subarray(0, size);
  }

  #merge(): void {
    this.#chunks = [Buffer.concat(this.#chunks)];
  }
}

function decodeBody(body: Uint8Array): unknown {
  try {
    // Measured before it is decoded, so that nested announcements of arrays take no memory.
    return decodeMessage(body);
  } catch {
    throw new PairwireError('DATAPLANE_PROTOCOL', 'a message is not MessagePack');
  }
}
