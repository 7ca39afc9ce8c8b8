/** Token buckets: so many at once, so many in a second. Time comes in by the caller. */

/** A budget that refills evenly. */
export class TokenBucket {
  readonly #perSecond: number;
  readonly #burst: number;
  #tokens: number;
  #at: number;

  constructor(perSecond: number, burst: number, nowMs: number) {
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#tokens = burst;
    this.#at = nowMs;
  }

  /** Takes a token if there is one. */
  take(nowMs: number): boolean {
    this.#refill(nowMs);
    if (this.#tokens < 1) return false;
    this.#tokens -= 1;
    return true;
  }

  /** Milliseconds until a token is there; 0 if one is. */
  waitMs(nowMs: number): number {
    this.#refill(nowMs);
    return this.#tokens >= 1 ? 0 : Math.ceil(((1 - this.#tokens) * 1_000) / this.#perSecond);
  }

  /** Empties the bucket: the other side said that it was too much. */
  drain(nowMs: number): void {
    this.#refill(nowMs);
    this.#tokens = 0;
  }

  #refill(nowMs: number): void {
    const grown = this.#tokens + (Math.max(0, nowMs - this.#at) * this.#perSecond) / 1_000;
    this.#tokens = Math.min(this.#burst, grown);
    this.#at = Math.max(this.#at, nowMs);
  }
}
