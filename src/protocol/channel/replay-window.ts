/**
 * The window of record numbers on datagrams, docs/protocol.md 6.7: numbers may come in any
 * order, each once. It is asked before a record is opened and told after it was.
 */

/** Numbers behind the highest that can still be told apart. */
export const REPLAY_WINDOW = 8_192;
const WORDS = REPLAY_WINDOW / 32;

/** Which record numbers of one direction under one key have been. */
export class ReplayWindow {
  readonly #seen = new Uint32Array(WORDS);
  #highest = -1;

  /** The highest number so far, -1 if there was none. */
  get highest(): number {
    return this.#highest;
  }

  /** False for a number that has been, or that is too far behind to tell. */
  allows(number: number): boolean {
    if (number > this.#highest) return true;
    if (this.#highest - number >= REPLAY_WINDOW) return false;
    const slot = number % REPLAY_WINDOW;
    return (((this.#seen[slot >>> 5] ?? 0) >>> (slot & 31)) & 1) === 0;
  }

  /** Notes a number that `allows` let pass and whose record was authentic. */
  mark(number: number): void {
    if (number > this.#highest) {
      if (number - this.#highest >= REPLAY_WINDOW) this.#seen.fill(0);
      else for (let next = this.#highest + 1; next < number; next += 1) this.#set(next, false);
      this.#highest = number;
    }
    this.#set(number, true);
  }

  #set(number: number, value: boolean): void {
    const slot = number % REPLAY_WINDOW;
    const bit = 1 << (slot & 31);
    const word = this.#seen[slot >>> 5] ?? 0;
    this.#seen[slot >>> 5] = value ? word | bit : word & ~bit;
  }
}
