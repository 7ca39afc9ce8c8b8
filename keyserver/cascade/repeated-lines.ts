/** Lines of the log that somebody else can cause: the first of a kind is written, its repeats within a minute are one line. */
import type { Logger } from '../../src/runtime/log.js';

const REPEAT_WINDOW = 60_000;
/** Kinds that are told apart; the rest counts together. */
const MAX_KINDS = 256;
const OTHERS = 'others';

interface Window {
  readonly until: number;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly message: string;
  repeats: number;
}

/** Writes warnings, each kind at most twice a minute. */
export class RepeatedLines {
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #windows = new Map<string, Window>();

  /** @param now a clock that never goes back, ms */
  constructor(log: Logger, now: () => number = () => performance.now()) {
    this.#log = log;
    this.#now = now;
  }

  /** Writes a line, or counts it. @param kind what makes a line a repeat of another one */
  warn(kind: string, facts: Readonly<Record<string, unknown>>, message: string): void {
    const now = this.#now();
    for (const [name, { until }] of this.#windows) if (until <= now) this.#end(name);
    const name = this.#windows.has(kind) || this.#windows.size < MAX_KINDS ? kind : OTHERS;
    const open = this.#windows.get(name);
    if (open !== undefined) {
      open.repeats += 1;
      return;
    }
    this.#windows.set(name, { until: now + REPEAT_WINDOW, facts, message, repeats: 0 });
    this.#log.warn(facts, message);
  }

  /** Writes what was counted. */
  close(): void {
    for (const name of [...this.#windows.keys()]) this.#end(name);
  }

  #end(name: string): void {
    const window = this.#windows.get(name);
    this.#windows.delete(name);
    if (window === undefined || window.repeats === 0) return;
    const { facts, message, repeats } = window;
    this.#log.warn({ ...facts, repeats }, `${message} (the same again)`);
  }
}
