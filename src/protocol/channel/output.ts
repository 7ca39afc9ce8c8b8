/**
 * Bytes on their way to a stream: frames are built in place in a larger piece of memory,
 * so that many records leave with one write and nothing is joined or copied again.
 */

/** Size of the first piece, enough for a handshake, and of the largest; a larger frame gets a piece of its own size. */
const FIRST_PIECE_SIZE = 512;
const PIECE_SIZE = 16_384;

/** Collects frames until `take`. The bytes taken are never written to again. */
export class OutputBuffer {
  /** Where the next frame is built: at `offset` of `buffer`, after `reserve`. */
  buffer: Buffer = Buffer.alloc(0);
  offset = 0;
  #start = 0;
  #full: Buffer[] = [];
  #fullSize = 0;

  /** Bytes that wait to be taken. */
  get size(): number {
    return this.#fullSize + this.offset - this.#start;
  }

  /** Makes sure that `size` bytes are free at `offset`. */
  reserve(size: number): void {
    if (this.buffer.length - this.offset >= size) return;
    const waiting = this.offset - this.#start;
    const next = Math.min(PIECE_SIZE, Math.max(FIRST_PIECE_SIZE, 2 * this.buffer.length));
    // What waits in a small piece moves along, so that it still leaves with one write.
    const moves = waiting + size <= PIECE_SIZE;
    const larger = Buffer.allocUnsafeSlow(Math.max(next, moves ? waiting + size : size));
    if (moves) this.buffer.copy(larger, 0, this.#start, this.offset);
    else this.#cut();
    this.buffer = larger;
    this.offset = moves ? waiting : 0;
    this.#start = 0;
  }

  /** Appends a finished frame. */
  append(bytes: Uint8Array): void {
    this.reserve(bytes.length);
    this.buffer.set(bytes, this.offset);
    this.offset += bytes.length;
  }

  /** All bytes so far, in order, usually as one piece. */
  take(): Buffer[] {
    this.#cut();
    const taken = this.#full;
    this.#full = [];
    this.#fullSize = 0;
    return taken;
  }

  #cut(): void {
    if (this.offset === this.#start) return;
    this.#full.push(this.buffer.subarray(this.#start, this.offset));
    this.#fullSize += this.offset - this.#start;
    this.#start = this.offset;
  }
}
