/**
 * Group commit: writes that were queued in one turn of the event loop run in one transaction,
 * because what a write costs is mostly its commit. How a batch is committed is the driver's business.
 */
import { PairwireError } from '../../src/runtime/errors.js';
import type { SqlConnection } from './sql.js';

/** One write of a batch. */
export interface Job {
  readonly run: (connection: SqlConnection) => Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** A queue of writes, and one batch of them at a time. */
export class GroupCommit {
  readonly #most: number;
  readonly #where: string;
  readonly #commit: (batch: readonly Job[]) => Promise<void>;
  #queue: Job[] = [];
  #draining: Promise<void> | undefined;
  #closed = false;

  /**
   * @param most writes of one batch
   * @param where the database, for errors
   * @param commit settles every job of its batch, and never rejects
   */
  constructor(most: number, where: string, commit: (batch: readonly Job[]) => Promise<void>) {
    this.#most = most;
    this.#where = where;
    this.#commit = commit;
  }

  /** True while nothing waits or runs. */
  get idle(): boolean {
    return this.#draining === undefined;
  }

  /** Queues a write. @throws PairwireError STORE_FAILED after `close` */
  add<T>(fn: (connection: SqlConnection) => Promise<T>): Promise<T> {
    if (this.#closed) {
      return Promise.reject(
        new PairwireError('STORE_FAILED', 'the store is closed', { where: this.#where }),
      );
    }
    return new Promise<T>((resolve, reject) => {
      let result: T;
      this.#queue.push({
        run: async (connection) => {
          result = await fn(connection);
        },
        resolve: () => resolve(result),
        reject,
      });
      this.#draining ??= this.#drain();
    });
  }

  /** Takes no more; settles when what was queued is done. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#draining;
  }

  async #drain(): Promise<void> {
    // After this turn's reads from sockets, so that one commit serves them all.
    await new Promise(setImmediate);
    while (this.#queue.length > 0) {
      const batch = this.#queue.splice(0, this.#most);
      await this.#commit(batch);
      if (this.#queue.length > 0) await new Promise(setImmediate);
    }
    this.#draining = undefined;
  }
}
