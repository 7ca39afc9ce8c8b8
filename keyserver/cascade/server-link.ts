/**
 * The channel to a key server of this subnet that we come to: one question at a time, when it opens, when something is
 * new here, at each push, and every 30 s. What is said is the business of exchange.ts.
 */
import { ChannelClient } from '../../src/net/channel-client.js';
import { serverEndpoints } from '../../src/net/client-link.js';
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import { answerSchemas, type CascadeWord } from '../../src/protocol/messages.js';
import type { Clock } from '../../src/runtime/clock.js';
import type { ServerContact } from '../storage/store.js';

const SYNC_INTERVAL = 30_000;
/** What becomes known within so many ms is said together; so no honest server says more than 40 words a second. */
const GATHER = 25;
/** After a failure it is said again so many ms later. */
const RETRY = 1_000;
const REQUEST_TIMEOUT = 15_000;

export interface ServerLinkOptions {
  readonly contact: ServerContact;
  readonly channel: KeyPair;
  readonly clock: Clock;
  /** What is to be said now. */
  word(): Promise<CascadeWord>;
  /** What the other one answered. @returns whether there is more to say, or to hear */
  heard(answer: CascadeWord): Promise<boolean>;
  failed(problem: Error): void;
  lost(problem: Error): void;
}

/** One channel. */
export class ServerLink {
  readonly #options: ServerLinkOptions;
  readonly #client: ChannelClient;
  readonly #timer: NodeJS.Timeout;
  #asking = false;
  #again = false;
  #closed = false;

  constructor(options: ServerLinkOptions) {
    this.#options = options;
    const { contact, channel, clock, lost } = options;
    this.#client = new ChannelClient({
      servers: serverEndpoints(contact.servers),
      staticKeys: channel,
      clock,
      onPush: (message) => {
        if (message.t === 'cascade') this.ask();
      },
      onState: (state) => {
        if (state.kind === 'open' && !state.renewed) this.ask();
        if (state.kind === 'down') lost(state.error);
      },
    });
    this.#timer = setInterval(() => this.ask(), SYNC_INTERVAL);
    this.#timer.unref();
    this.#client.start();
  }

  get isOpen(): boolean {
    return this.#client.state.kind === 'open';
  }

  /** The other server's time; undefined until it has told it. */
  get time(): number | undefined {
    return this.#client.time.known ? this.#client.time.now() : undefined;
  }

  /** Says what is new, and asks what is new there, soon. */
  ask(): void {
    this.#again = true;
    if (this.#asking || this.#closed) return;
    this.#asking = true;
    void this.#askOn();
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#client.stop();
  }

  async #askOn(): Promise<void> {
    while (this.#again && !this.#closed) {
      this.#again = false;
      await new Promise((resolve) => setTimeout(resolve, GATHER).unref());
      try {
        if (await this.#askOnce()) this.#again = true;
      } catch (thrown) {
        if (this.#closed) return;
        if (thrown instanceof Error) this.#options.failed(thrown);
        // What was to be said is still to be said: on a channel that is down, when it is open again.
        if (!this.isOpen) break;
        this.#again = true;
        await new Promise((resolve) => setTimeout(resolve, RETRY).unref());
      }
    }
    this.#asking = false;
  }

  async #askOnce(): Promise<boolean> {
    if (!this.isOpen || this.#closed) return false;
    const word = await this.#options.word();
    const answer = await this.#client.request(
      { t: 'cascade.sync', word },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['cascade.sync'].parse(value) },
    );
    return this.#closed ? false : this.#options.heard(answer.word);
  }
}
