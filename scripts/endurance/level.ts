/**
 * Whether a figure of a process stays level, in spite of a warm-up and of a garbage collector:
 * the first part of the process's life is left out, the rest is cut into windows, and the
 * slope is that of the lowest values of the windows (Theil and Sen: the median of the slopes
 * between every two), which neither a peak nor a late collection moves. What leaks raises the lows.
 */

/** A value at a time in seconds. */
export interface Point {
  readonly at: number;
  readonly value: number;
}

export interface Level {
  readonly level: boolean;
  /** Growth from the first window to the last along the slope. */
  readonly growth: number;
  /** The same for an hour. */
  readonly perHour: number;
  /** False: too few samples to say anything. */
  readonly enough: boolean;
}

/** Part of a life that is warm-up. */
const WARM_UP = 0.35;
const WINDOWS = 8;
const MIN_WINDOWS = 3;
const MIN_WINDOW_POINTS = 2;

/** @param allowance growth over the time looked at that is still called level */
export function levelOf(points: readonly Point[], allowance: number): Level {
  const begin = points[0]?.at ?? 0;
  const end = points.at(-1)?.at ?? 0;
  const warm = points.filter(({ at }) => at >= begin + WARM_UP * (end - begin));
  const windows = Math.min(WINDOWS, Math.floor(warm.length / MIN_WINDOW_POINTS));
  if (windows < MIN_WINDOWS) return { level: true, growth: 0, perHour: 0, enough: false };
  const lows = Array.from({ length: windows }, (_, window): Point => {
    const from = Math.floor((window * warm.length) / windows);
    const part = warm.slice(from, Math.floor(((window + 1) * warm.length) / windows));
    const middle = part[Math.floor(part.length / 2)];
    return { at: middle?.at ?? 0, value: Math.min(...part.map(({ value }) => value)) };
  });
  const slope = medianSlope(lows);
  const growth = slope * ((lows.at(-1)?.at ?? 0) - (lows[0]?.at ?? 0));
  return { level: growth <= allowance, growth, perHour: slope * 3_600, enough: true };
}

function medianSlope(points: readonly Point[]): number {
  const slopes = points.flatMap((a, at) =>
    points
      .slice(at + 1)
      .filter((b) => b.at > a.at)
      .map((b) => (b.value - a.value) / (b.at - a.at)),
  );
  const sorted = slopes.toSorted((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  const upper = sorted[half] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[half - 1] ?? 0)) / 2;
}
