/** What the renewal of pair keys (rekey.ts) and of the group key (group-rekey.ts) share. */
import type { Id } from '../../src/protocol/ids.js';
import type { Services } from '../services.js';

/** Who has not confirmed a prepared generation is told again so often, ms. */
export const AGAIN = 5_000;
/** A key younger than this is not renewed for a member's asking, ms. */
export const MIN_AGE = 10_000;
const TICK = 1_000;
/** Nobody holds a higher one honestly: two renewals a second for a million years. */
export const MAX_HELD = 2 ** 46;

/** Does `work` every second, never twice at once; what it throws is logged. */
export class Rounds {
  readonly #work: () => Promise<void>;
  readonly #failed: (thrown: unknown) => void;
  readonly #timer: NodeJS.Timeout;
  #working = false;
  #closed = false;

  constructor(work: () => Promise<void>, failed: (thrown: unknown) => void) {
    this.#work = work;
    this.#failed = failed;
    this.#timer = setInterval(() => void this.once(), TICK);
    this.#timer.unref();
  }

  /** One round, unless one is under way. */
  async once(): Promise<void> {
    if (this.#working || this.#closed) return;
    this.#working = true;
    try {
      await this.#work();
    } catch (thrown) {
      this.#failed(thrown);
    } finally {
      this.#working = false;
    }
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
  }
}

/** When a key made now gets too old: after the interval (ms), give or take a tenth; 0: never. */
export function dueAfter(interval: number, now: number, random: () => number): number {
  return interval === 0 ? 0 : Math.floor(now + interval * (0.9 + 0.2 * random()));
}

/**
 * The number of a generation that is to be above all of these. One that nobody can hold was written into the database by
 * somebody else, and does not count.
 */
export function numberAbove(...held: readonly number[]): number {
  return Math.max(0, ...held.filter((pwId) => pwId <= MAX_HELD)) + 1;
}

/** Case 1: a member asks with a generation that is not in force any more. `whom` is the peer, or `group`. */
export function noteCase1(
  { metrics, log }: Services,
  asker: Id,
  whom: string,
  pwId: number,
  held: number | undefined,
): void {
  if (held === undefined || held >= pwId) return;
  metrics.rekeyCases.inc({ case: '1' });
  log.info(
    { member: asker, held, pwId },
    `case 1: (${asker}, ${whom}, ${held}) was not told of generation ${pwId}`,
  );
}
