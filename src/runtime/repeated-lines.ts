/** Lines of the log that somebody else can cause: the first of a kind is written, its repeats within a minute are one line. */
import type { Logger } from './log.js';

const REPEAT_WINDOW = 60_000;
/** Kinds that are told apart, unless their writer says less; the rest counts together. */
const MAX_KINDS = 256;
type Level = 'info' | 'warn' | 'error';
const OTHERS = 'others';

interface Window {
  readonly until: number;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly message: string;
  readonly level: Level;
  repeats: number;
}

/** Writes lines, each kind at most twice a minute: so never more than twice as many as kinds are told apart, and two. */
export class RepeatedLines {
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #kinds: number;
  readonly #windows = new Map<string, Window>();

  /**
   * @param now a clock that never goes back, ms
   * @param kinds how many are told apart in a minute
   */
  constructor(log: Logger, now: () => number = () => performance.now(), kinds: number = MAX_KINDS) {
    this.#log = log;
    this.#now = now;
    this.#kinds = kinds;
  }

  /** Writes a warning, or counts it. @param kind what makes a line a repeat of another one */
  warn(kind: string, facts: Readonly<Record<string, unknown>>, message: string): void {
    this.write('warn', kind, facts, message);
  }

  /** The same at any level. */
  write(
    level: Level,
    kind: string,
    facts: Readonly<Record<string, unknown>>,
    message: string,
  ): void {
    const now = this.#now();
    for (const [name, { until }] of this.#windows) if (until <= now) this.#end(name);
    const name = this.#windows.has(kind) || this.#windows.size < this.#kinds ? kind : OTHERS;
    const open = this.#windows.get(name);
    if (open !== undefined) {
      open.repeats += 1;
      return;
    }
    this.#windows.set(name, { until: now + REPEAT_WINDOW, facts, message, level, repeats: 0 });
    this.#log[level](facts, message);
  }

  /** Writes what was counted. */
  close(): void {
    for (const name of [...this.#windows.keys()]) this.#end(name);
  }

  #end(name: string): void {
    const window = this.#windows.get(name);
    this.#windows.delete(name);
    if (window === undefined || window.repeats === 0) return;
    const { facts, message, level, repeats } = window;
    this.#log[level]({ ...facts, repeats }, `${message} (the same again)`);
  }
}
