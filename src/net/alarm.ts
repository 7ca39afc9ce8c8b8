/** One timer that follows a deadline which moves often: it is set anew only when it must ring earlier. */
import type { Clock } from '../runtime/clock.js';

export class Alarm {
  readonly #clock: Clock;
  readonly #ring: () => void;
  #timer: NodeJS.Timeout | undefined;
  #armedFor = Number.POSITIVE_INFINITY;
  #deadline: number | undefined;

  constructor(clock: Clock, ring: () => void) {
    this.#clock = clock;
    this.#ring = ring;
  }

  /** Rings once at `deadline` (boot time, ms); undefined: not at all. */
  set(deadline: number | undefined): void {
    this.#deadline = deadline;
    if (deadline === undefined || deadline >= this.#armedFor) return;
    clearTimeout(this.#timer);
    this.#armedFor = deadline;
    const ms = Math.max(1, Math.ceil(deadline - this.#clock.bootMs()));
    this.#timer = setTimeout(() => this.#fired(), ms);
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#armedFor = Number.POSITIVE_INFINITY;
    this.#deadline = undefined;
  }

  #fired(): void {
    this.#armedFor = Number.POSITIVE_INFINITY;
    const deadline = this.#deadline;
    if (deadline === undefined) return;
    if (this.#clock.bootMs() >= deadline) {
      this.#deadline = undefined;
      this.#ring();
    } else {
      this.set(deadline);
    }
  }
}
