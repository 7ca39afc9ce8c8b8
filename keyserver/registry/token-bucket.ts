/** Token buckets, one for each name: a burst, then a steady rate. */

/** Limits how often each of many names may do something. */
export class TokenBuckets {
  readonly #burst: number;
  readonly #perMs: number;
  readonly #buckets = new Map<string, { tokens: number; at: number }>();
  #sweepAt = 0;

  /** @param perSecond tokens that come back in a second */
  constructor(burst: number, perSecond: number) {
    this.#burst = burst;
    this.#perMs = perSecond / 1_000;
  }

  /** Takes one token. @returns false if there is none */
  take(name: string, now: number): boolean {
    this.#sweep(now);
    let bucket = this.#buckets.get(name);
    if (bucket === undefined) {
      bucket = { tokens: this.#burst, at: now };
      this.#buckets.set(name, bucket);
    }
    bucket.tokens = Math.min(
      this.#burst,
      bucket.tokens + Math.max(0, now - bucket.at) * this.#perMs,
    );
    bucket.at = now;
    if (bucket.tokens < 1) return false;
    bucket.tokens -= 1;
    return true;
  }

  /** Forgets buckets that are full again, now and then. */
  #sweep(now: number): void {
    if (now < this.#sweepAt) return;
    const refill = this.#burst / this.#perMs;
    this.#sweepAt = now + refill;
    for (const [name, { at }] of this.#buckets) if (now - at >= refill) this.#buckets.delete(name);
  }
}
