/**
 * The life of a process: parts are stopped in the opposite order of their start, each with
 * a time limit, once, whether a signal or the program asks for it.
 *
 *   SIGTERM, SIGINT   stop in order, exit 0; the second one exits at once
 *   SIGHUP            reload, if there is something to reload
 */
import { messageOf } from './errors.js';
import type { Logger } from './log.js';

const STOP_TIMEOUT_MS = 10_000;

/** Keeps what is to be stopped, and stops it. */
export class Lifecycle {
  readonly #log: Logger;
  readonly #parts: { readonly name: string; readonly stop: () => Promise<void> | void }[] = [];
  #stopping: Promise<void> | undefined;
  #signalled: (() => void) | undefined;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** Notes a part that has been started. */
  started(name: string, stop: () => Promise<void> | void): void {
    this.#parts.push({ name, stop });
  }

  /** Stops every part, the last started first. A part that fails or hangs holds up nobody. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stopAll();
    return this.#stopping;
  }

  /** Waits for a signal to stop, then stops. `reload` is called at each SIGHUP. */
  async untilSignal(reload?: () => void): Promise<void> {
    const onSignal = (signal: NodeJS.Signals): void => {
      if (this.#signalled === undefined) process.exit(1);
      this.#log.info({ signal }, 'stopping');
      this.#signalled();
      this.#signalled = undefined;
    };
    const onHangup = (): void => reload?.();
    const asked = new Promise<void>((resolve) => {
      this.#signalled = resolve;
    });
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
    process.on('SIGHUP', onHangup);
    await asked;
    await this.stop();
    process.off('SIGTERM', onSignal);
    process.off('SIGINT', onSignal);
    process.off('SIGHUP', onHangup);
  }

  async #stopAll(): Promise<void> {
    for (const { name, stop } of this.#parts.splice(0).reverse()) {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<never>((_resolve, reject) => {
        timer = setTimeout(() => reject(new Error('it takes too long')), STOP_TIMEOUT_MS);
      });
      try {
        await Promise.race([Promise.resolve(stop()), late]);
      } catch (thrown) {
        this.#log.error({ part: name, reason: messageOf(thrown) }, 'a part did not stop');
      } finally {
        clearTimeout(timer);
      }
    }
  }
}
