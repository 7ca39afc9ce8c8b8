/**
 * The time of a subnet with several key servers: that of the first one. Another server keeps its clock and how far the
 * first one's is ahead of it, and tells its members that time, so that all frames carry one time, however wrong the
 * clock of a machine is (docs/protocol.md 10.5).
 */
import type { TimeSource } from '../../src/runtime/clock.js';

/** This server's clock, and the subnet's time by it. */
export class SubnetTime implements TimeSource {
  readonly #own: TimeSource;
  #offset = 0;

  constructor(own: TimeSource) {
    this.#own = own;
  }

  now(): number {
    return this.#own.now() + this.#offset;
  }

  /** How far the subnet's time is ahead of our clock, ms. */
  get offset(): number {
    return this.#offset;
  }

  /** The subnet's time is so far ahead of our clock from now on. */
  follow(offset: number): void {
    this.#offset = Math.round(offset);
  }

  /** How far a time is ahead of our clock. */
  ahead(time: number): number {
    return time - this.#own.now();
  }
}
