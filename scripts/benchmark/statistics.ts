/** What several runs of one measurement amount to. */
import { z } from 'zod';

/** A figure of the result: the median counts, the rest shows how far runs lay apart. */
export const figureSchema = z.object({
  median: z.number(),
  min: z.number(),
  max: z.number(),
  /** In the order of the runs. */
  values: z.array(z.number()).min(1),
});
export type Figure = z.infer<typeof figureSchema>;

/** The middle value, or the mean of both middle ones. @throws Error without values */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((x, y) => x - y);
  const upper = sorted[Math.floor(sorted.length / 2)];
  const lower = sorted[Math.floor((sorted.length - 1) / 2)];
  if (upper === undefined || lower === undefined) throw new Error('no values, no median');
  return (lower + upper) / 2;
}

/** @throws Error without values */
export function figureOf(values: readonly number[]): Figure {
  return {
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    values: [...values],
  };
}
