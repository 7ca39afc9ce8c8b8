/** Rates from counters that only grow: what grew between two samples, by the time between them. */
import type { Traffic } from './snapshot.js';

interface Sample {
  readonly atMs: number;
  readonly frames: number;
  readonly bytes: number;
}

/** Samples closer together than this are taken as one, so that rates don't jump. */
const SHORTEST_MS = 400;

/** One rate for each name; names that are not sampled for a minute are forgotten. */
export class Rates {
  readonly #samples = new Map<string, { last: Sample; rate: Traffic }>();

  /** Takes a counter's value and returns it with its rate. */
  sample(name: string, atMs: number, frames: number, bytes: number): Traffic {
    const known = this.#samples.get(name);
    const sample = { atMs, frames, bytes };
    if (known === undefined || bytes < known.last.bytes || frames < known.last.frames) {
      const rate = { frames, bytes, framesPerSecond: 0, bitsPerSecond: 0 };
      this.#samples.set(name, { last: sample, rate });
      return rate;
    }
    const elapsed = atMs - known.last.atMs;
    if (elapsed < SHORTEST_MS) return { ...known.rate, frames, bytes };
    const rate = {
      frames,
      bytes,
      framesPerSecond: Math.round(((frames - known.last.frames) * 1_000) / elapsed),
      bitsPerSecond: Math.round(((bytes - known.last.bytes) * 8_000) / elapsed),
    };
    this.#samples.set(name, { last: sample, rate });
    return rate;
  }

  /** Forgets names whose last sample is older than a minute. */
  forgetOld(nowMs: number): void {
    for (const [name, { last }] of this.#samples) {
      if (nowMs - last.atMs > 60_000) this.#samples.delete(name);
    }
  }
}
