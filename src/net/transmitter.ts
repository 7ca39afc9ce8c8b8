/**
 * What waits to go out on one channel over a stream: a `Backlog` in front of a socket.
 * Records that are sealed in one turn of the event loop leave with one write.
 */
import type { Writable } from 'node:stream';
import type { OutputBuffer } from '../protocol/channel/output.js';
import type { Clock } from '../runtime/clock.js';
import { Backlog, type Sealer } from './backlog.js';

/** Sealed bytes that may wait in our own memory for the socket. */
const SEALED_LIMIT = 256 * 1_024;

/** The outgoing side of one connection. */
export class Transmitter extends Backlog {
  readonly #socket: Writable;
  readonly #out: OutputBuffer;
  #flushing = false;

  constructor(socket: Writable, out: OutputBuffer, sealer: Sealer, clock: Clock) {
    super(sealer, clock);
    this.#socket = socket;
    this.#out = out;
    socket.on('drain', () => this.pump());
  }

  /** Lets the sealed bytes go at the end of this turn; answers of promises that settle in it join them. */
  override schedule(): void {
    if (this.#flushing || this.#out.size === 0) return;
    this.#flushing = true;
    process.nextTick(() => {
      this.#flushing = false;
      this.flush();
    });
  }

  /** Hands all sealed bytes to the socket now. */
  flush(): void {
    if (this.#out.size === 0) return;
    const pieces = this.#out.take();
    if (!this.#socket.writable) return;
    if (pieces.length > 1) this.#socket.cork();
    for (const piece of pieces) this.#socket.write(piece);
    if (pieces.length > 1) this.#socket.uncork();
  }

  protected override hasRoom(): boolean {
    return this.#socket.writableLength + this.#out.size < SEALED_LIMIT;
  }
}
