/**
 * Messages that wait for a channel. They wait in clear and are stamped and sealed when the
 * channel takes them, so that a slow reader can't age a one-time password (docs/protocol.md
 * 6.3, design 03).
 */
import type { Clock } from '../runtime/clock.js';

/** Implementation constants. */
/** Messages waiting beyond this make the owner stop reading. */
export const BACKLOG_LIMIT = 1_048_576;
/** Waiting messages beyond this, or one that waits longer than this, end the channel. */
const BACKLOG_HARD_LIMIT = 8 * BACKLOG_LIMIT;
const BACKLOG_HARD_AGE_MS = 60_000;

/** The end of a channel that seals; the connections of src/protocol/channel are such. */
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

/** Messages for one channel, in order. */
export abstract class Backlog {
  readonly #sealer: Sealer;
  readonly #clock: Clock;
  #queue: Waiting[] = [];
  #head = 0;
  #backlog = 0;
  #superseded = 0;
  readonly #byKey = new Map<string, Waiting>();

  constructor(sealer: Sealer, clock: Clock) {
    this.#sealer = sealer;
    this.#clock = clock;
  }

  /** Sees to it that what was sealed leaves at the end of this turn. */
  abstract schedule(): void;

  /** False while what carries the channel takes nothing more. */
  protected hasRoom(): boolean {
    return true;
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
    if (this.#head === this.#queue.length && this.#ready() && this.#sealer.send(message)) {
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

  /** Seals what waits, as far as there is room, and sees to it that it leaves. */
  pump(): void {
    this.seal();
    this.schedule();
  }

  /**
   * Seals what waits, for an owner that lets it leave itself. One that is called by `schedule`
   * must use this: with `pump` it would call itself for ever.
   */
  seal(): void {
    while (this.#head < this.#queue.length && this.#ready()) {
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
  }

  #ready(): boolean {
    return this.#sealer.sendable && this.hasRoom();
  }

  #supersede(key: string): void {
    const old = this.#byKey.get(key);
    if (old?.bytes === undefined) return;
    this.#backlog -= old.bytes.length;
    old.bytes = undefined;
    this.#superseded += 1;
  }
}

/** A backlog whose owner lets things leave in its own time: `schedule` tells it that there is something. */
export class ScheduledBacklog extends Backlog {
  readonly #schedule: () => void;

  constructor(
    ...[sealer, clock, schedule]: [...ConstructorParameters<typeof Backlog>, () => void]
  ) {
    super(sealer, clock);
    this.#schedule = schedule;
  }

  override schedule(): void {
    this.#schedule();
  }
}
