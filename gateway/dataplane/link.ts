/**
 * Keeps this control plane attached to whatever data plane runs: connects, claims control with
 * an epoch that only grows (threats.md M19), and starts over when the data plane is gone.
 *
 *   connecting --attached--> attached --closed--> waiting --time--> connecting
 *   any --stop--> stopped
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { type CommandPort, DataPlaneClient } from './client.js';
import type { AnswerTo, CommandFields, CommandType, Event } from './messages.gen.js';

const FIRST_WAIT_MS = 50;
const LONGEST_WAIT_MS = 1_000;
/** A connection that ended sooner than this counts as a failure for the waiting time. */
const LIVED_MS = 2_000;

export type LinkState = 'connecting' | 'attached' | 'waiting' | 'stopped';

/** What the owner of a link wants to hear. */
export interface LinkHandlers {
  /** Every start of a connection; the answer tells what the data plane still holds. */
  attached(answer: AnswerTo<'attach'>): Promise<void> | void;
  event(event: Event): void;
  gone(error: PairwireError): void;
}

/** An attached data plane, however often it has to be found again. */
export class DataPlaneLink implements CommandPort {
  readonly #path: string;
  readonly #nextEpoch: () => number;
  readonly #handlers: LinkHandlers;
  readonly #stop = new AbortController();
  #client: DataPlaneClient | undefined;
  #running: Promise<void> | undefined;
  #state: LinkState = 'connecting';
  #restarts = 0;
  #instance: string | undefined;

  constructor(path: string, nextEpoch: () => number, handlers: LinkHandlers) {
    this.#path = path;
    this.#nextEpoch = nextEpoch;
    this.#handlers = handlers;
  }

  get state(): LinkState {
    return this.#state;
  }

  /** How often another data plane was found than the one before: it had ended. */
  get restarts(): number {
    return this.#restarts;
  }

  /** Events refused by rate on the present connection. */
  get eventsRefused(): number {
    return this.#client?.eventsRefused ?? 0;
  }

  /** Begins to connect, and never gives up until `stop`. */
  start(): void {
    this.#running ??= this.#run();
  }

  /** Ends the connection. Traffic goes on. */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#state = 'stopped';
    this.#client?.close();
    await this.#running;
  }

  /** Ends the present connection and makes another: the data plane's state has to be read again. */
  reattach(): void {
    this.#client?.close();
  }

  request<T extends CommandType>(
    type: T,
    fields: CommandFields<T>,
    timeoutMs?: number,
  ): Promise<AnswerTo<T>> {
    if (this.#client === undefined) {
      return Promise.reject(new PairwireError('DATAPLANE_GONE', 'the data plane is not there'));
    }
    return this.#client.request(type, fields, timeoutMs);
  }

  /** The same instance again is no restart: `reattach`, or a connection that broke. */
  #count(bytes: Uint8Array): void {
    const instance = Buffer.from(bytes).toString('hex');
    if (this.#instance !== undefined && this.#instance !== instance) this.#restarts += 1;
    this.#instance = instance;
  }

  async #run(): Promise<void> {
    let wait = FIRST_WAIT_MS;
    while (!this.#stop.signal.aborted) {
      this.#state = 'connecting';
      const began = performance.now();
      await this.#once();
      const lived = performance.now() - began >= LIVED_MS;
      if (this.#stop.signal.aborted) return;
      wait = lived ? FIRST_WAIT_MS : Math.min(wait * 2, LONGEST_WAIT_MS);
      this.#state = 'waiting';
      await sleep(wait, undefined, { signal: this.#stop.signal }).catch(() => {});
    }
  }

  /** One connection from beginning to end. */
  async #once(): Promise<void> {
    let onAbort: (() => void) | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        const events = {
          event: (event: Event) => this.#handlers.event(event),
          close: (error: PairwireError) => reject(error),
        };
        let connected: DataPlaneClient | undefined;
        DataPlaneClient.connect(this.#path, events)
          .then(async (client) => {
            connected = client;
            if (this.#stop.signal.aborted) {
              client.close();
              return;
            }
            const answer = await client.request('attach', { epoch: this.#nextEpoch() });
            this.#client = client;
            this.#state = 'attached';
            this.#count(answer.instance);
            await this.#handlers.attached(answer);
          })
          .catch((thrown: unknown) => {
            // Also one that was never attached, for want of an epoch, say.
            connected?.close();
            reject(thrown);
          });
        onAbort = () => resolve();
        this.#stop.signal.addEventListener('abort', onAbort, { once: true });
      });
    } catch (thrown) {
      const error =
        thrown instanceof PairwireError
          ? thrown
          : new PairwireError('DATAPLANE_GONE', messageOf(thrown), { cause: thrown });
      if (!this.#stop.signal.aborted) this.#handlers.gone(error);
    } finally {
      if (onAbort !== undefined) this.#stop.signal.removeEventListener('abort', onAbort);
      this.#client?.close();
      this.#client = undefined;
    }
  }
}
