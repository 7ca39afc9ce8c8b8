/**
 * What waits to go out on one channel over a stream. Messages wait in clear and are
 * stamped and sealed when the socket takes them, so that a slow reader can't age a
 * one-time password (docs/protocol.md 6.3, design 03). Records that are sealed in one turn
 * of the event loop leave with one write.
 */
import type { Writable } from 'node:stream';
import type { OutputBuffer } from '../protocol/channel/output.js';
import type { Clock } from '../runtime/clock.js';

/** Implementation constants. */
/** Sealed bytes that may wait in our own memory for the socket. */
const SEALED_LIMIT = 256 * 1_024;
/** Messages waiting beyond this make the owner stop reading. */
export const BACKLOG_LIMIT = 1_048_576;
/** Waiting messages beyond this, or one that waits longer than this, end the channel. */
const BACKLOG_HARD_LIMIT = 8 * BACKLOG_LIMIT;
const BACKLOG_HARD_AGE_MS = 60_000;

/** The end of a channel that seals; `ClientConnection` and `ServerConnection` are such. */
export interface Sealer {
  readonly sendable: boolean;
  send(message: Uint8Array): boolean;
}

export interface TransmitOptions {
  /** A later message with the same key makes this one superfluous while it still waits. */
  readonly key?: string;
  /** Called when the message is stamped. */
  readonly onSealed?: () => void;
}

interface Waiting {
  bytes: Uint8Array | undefined;
  readonly key: string | undefined;
  readonly onSealed: (() => void) | undefined;
  readonly queuedAt: number;
}

/** The outgoing side of one connection. */
export class Transmitter {
  readonly #socket: Writable;
  readonly #out: OutputBuffer;
  readonly #sealer: Sealer;
  readonly #clock: Clock;
  #queue: Waiting[] = [];
  #head = 0;
  #backlog = 0;
  #superseded = 0;
  #flushing = false;
  readonly #byKey = new Map<string, Waiting>();

  constructor(socket: Writable, out: OutputBuffer, sealer: Sealer, clock: Clock) {
    this.#socket = socket;
    this.#out = out;
    this.#sealer = sealer;
    this.#clock = clock;
    socket.on('drain', () => this.pump());
  }

  /** Bytes of messages that wait to be sealed. */
  get backlog(): number {
    return this.#backlog;
  }

  /** Messages dropped because a later one with the same key came. */
  get superseded(): number {
    return this.#superseded;
  }

  /** True if the peer has not read for so long that the channel should end. */
  get stuck(): boolean {
    if (this.#backlog > BACKLOG_HARD_LIMIT) return true;
    const oldest = this.#queue[this.#head];
    return oldest !== undefined && this.#clock.bootMs() - oldest.queuedAt > BACKLOG_HARD_AGE_MS;
  }

  /** Sends an encoded message as soon as possible. The bytes are read before this returns only if it returns true; else they are copied. */
  offer(message: Uint8Array, options: TransmitOptions = {}): boolean {
    if (this.#head === this.#queue.length && this.#hasRoom() && this.#sealer.send(message)) {
      options.onSealed?.();
      this.schedule();
      return true;
    }
    const waiting: Waiting = {
      // Not slice(): that of a Buffer shares the memory.
      bytes: new Uint8Array(message),
      key: options.key,
      onSealed: options.onSealed,
      queuedAt: this.#clock.bootMs(),
    };
    if (options.key !== undefined) {
      this.#supersede(options.key);
      this.#byKey.set(options.key, waiting);
    }
    this.#queue.push(waiting);
    this.#backlog += message.length;
    return false;
  }

  /** Seals what waits, as far as the socket has room. */
  pump(): void {
    while (this.#head < this.#queue.length && this.#hasRoom()) {
      const waiting = this.#queue[this.#head];
      if (waiting?.bytes !== undefined) {
        if (!this.#sealer.send(waiting.bytes)) break;
        this.#backlog -= waiting.bytes.length;
        if (waiting.key !== undefined && this.#byKey.get(waiting.key) === waiting) {
          this.#byKey.delete(waiting.key);
        }
        waiting.onSealed?.();
      }
      this.#head += 1;
    }
    if (this.#head === this.#queue.length) {
      this.#queue = [];
      this.#head = 0;
    } else if (this.#head > 1_024 && this.#head * 2 > this.#queue.length) {
      this.#queue = this.#queue.slice(this.#head);
      this.#head = 0;
    }
    this.schedule();
  }

  /** Lets the sealed bytes go at the end of this turn; answers of promises that settle in it join them. */
  schedule(): void {
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

  #hasRoom(): boolean {
    return this.#sealer.sendable && this.#socket.writableLength + this.#out.size < SEALED_LIMIT;
  }

  #supersede(key: string): void {
    const old = this.#byKey.get(key);
    if (old?.bytes === undefined) return;
    this.#backlog -= old.bytes.length;
    old.bytes = undefined;
    this.#superseded += 1;
  }
}
