/**
 * Bytes on their way to a stream: frames are built in place in a larger piece of memory,
 * so that many records leave with one write and nothing is joined or copied again.
 */

/** Size up to which frames of one turn are put together; a larger frame gets a piece of its own size. */
const PIECE_SIZE = 16_384;
/**
 * What pieces are cut from, for all channels together. Not Node.js' own pool: what lives long, such as a peer's key,
 * would keep whole pools of sent bytes in memory.
 */
const SLAB_SIZE = 65_536;
let slab = Buffer.allocUnsafeSlow(SLAB_SIZE);
let slabUsed = 0;

function cutPiece(size: number): Buffer {
  if (size > PIECE_SIZE) return Buffer.allocUnsafeSlow(size);
  if (SLAB_SIZE - slabUsed < size) {
    slab = Buffer.allocUnsafeSlow(SLAB_SIZE);
    slabUsed = 0;
  }
  slabUsed += size;
  return slab.subarray(slabUsed - size, slabUsed);
}

const NOTHING: Buffer = Buffer.alloc(0);

/** Collects frames until `take`; holds no memory when there are none. The bytes taken are never written to again. */
export class OutputBuffer {
  /** Where the next frame is built: at `offset` of `buffer`, after `reserve`. */
  buffer: Buffer = NOTHING;
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
    // The first frame of a turn is mostly the only one, so it gets what it needs.
    const next = Math.min(PIECE_SIZE, 2 * this.buffer.length);
    // What waits in a small piece moves along, so that it still leaves with one write.
    const moves = waiting + size <= PIECE_SIZE;
    const larger = cutPiece(Math.max(next, moves ? waiting + size : size));
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
    this.buffer = NOTHING;
    this.offset = 0;
    this.#start = 0;
    return taken;
  }

  #cut(): void {
    if (this.offset === this.#start) return;
    this.#full.push(this.buffer.subarray(this.#start, this.offset));
    this.#fullSize += this.offset - this.#start;
    this.#start = this.offset;
  }
}
