/**
 * What another key server may cost this one: a verified change costs 1, one that was refused much more, one that says what
 * is known next to nothing. Who has spent more than it had waits for its answer, and who has spent far more is refused, so
 * an honest server is never told less, only later.
 */

/** What a server may cost at once, and in a second: changes that are verified and stored. */
export const CHANGE_BURST = 20_000;
export const CHANGES_PER_SECOND = 500;
/** What changes of each kind cost. */
export const COST = { same: 0.1, key: 0.2, taken: 1, refused: 20 } as const;
/** The longest that a word waits for what was spent before it, ms; within the patience of who waits. */
export const MAX_PAUSE = 10_000;

/** The budget of one server. */
export class ChangeBudget {
  readonly #now: () => number;
  #left = CHANGE_BURST;
  #at: number;

  /** @param now a clock that never goes back, ms */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#at = now();
  }

  /** Takes from it, also what is not there. */
  spend(cost: number): void {
    this.#refill();
    this.#left -= cost;
  }

  /** For how long there is nothing in it, ms; 0: there is something. */
  get debtMs(): number {
    this.#refill();
    return this.#left >= 0 ? 0 : (-this.#left / CHANGES_PER_SECOND) * 1_000;
  }

  #refill(): void {
    const now = this.#now();
    this.#left = Math.min(
      CHANGE_BURST,
      this.#left + ((now - this.#at) * CHANGES_PER_SECOND) / 1_000,
    );
    this.#at = now;
  }
}
