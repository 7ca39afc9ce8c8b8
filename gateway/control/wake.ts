/** A bell: a loop waits for it or for a time, and a ring while nobody waits is not lost. */
export class Wake {
  #rung = false;
  #resolve: (() => void) | undefined;

  /** Ends the present wait, or the next one at once. */
  now(): void {
    this.#rung = true;
    this.#resolve?.();
  }

  /** Waits for a ring, at most so long. */
  async wait(ms: number): Promise<void> {
    if (!this.#rung) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        this.#resolve = resolve;
        timer = setTimeout(resolve, ms);
      });
      clearTimeout(timer);
      this.#resolve = undefined;
    }
    this.#rung = false;
  }
}
