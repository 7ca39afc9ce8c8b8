/**
 * Who is online and where. A member is online from its registration until its channel has
 * been gone for a while: a gateway or a key server that restarts changes nothing for
 * anybody. Each true change gets a change number, so it reaches others by sync like all state.
 */
import type { Id } from '../../src/protocol/ids.js';
import { type Endpoint, MAX_ENDPOINTS } from '../../src/protocol/messages.js';
import { Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import { TokenBuckets } from './token-bucket.js';

/** Changes of a member's endpoints: each is a write and a push to everybody, and a gateway looks every 3 s. */
const ENDPOINTS_BURST = 20;
const ENDPOINTS_PER_SECOND = 1;

/** How long a member stays online without a channel. */
const OFFLINE_AFTER_MS = 10_000;
/** The same after a start of the server, when everybody comes back at once. */
const OFFLINE_AFTER_START_MS = 45_000;

/** Notes and changes what the store says of members' presence. */
export class Presence {
  readonly #services: Services;
  readonly #changed: (id: Id) => void;
  readonly #isLive: (id: Id) => boolean;
  readonly #offlineAfterMs: number;
  #closed = false;
  /** One for each member that left last, so that a short visit does not end it early. */
  readonly #timers = new Map<Id | '', NodeJS.Timeout>();
  readonly #rate = new TokenBuckets(ENDPOINTS_BURST, ENDPOINTS_PER_SECOND);

  /** @param changed is told of each member whose record has changed */
  constructor(
    services: Services,
    isLive: (id: Id) => boolean,
    changed: (id: Id) => void,
    offlineAfterMs = OFFLINE_AFTER_MS,
  ) {
    this.#services = services;
    this.#isLive = isLive;
    this.#changed = changed;
    this.#offlineAfterMs = offlineAfterMs;
  }

  /** After a start: whoever was online and does not come back is offline. */
  async resume(): Promise<void> {
    const online = await this.#services.store.membersOnline();
    if (online.length === 0) return;
    this.#later('', Math.max(OFFLINE_AFTER_START_MS, this.#offlineAfterMs), async () => {
      for (const id of online) await this.#offline(id);
    });
  }

  /** A member's channel has ended. */
  left(id: Id): void {
    this.#later(id, this.#offlineAfterMs, () => this.#offline(id));
  }

  /** A member says where its data plane may be reached. @returns false if that is known. @throws Refusal for too many changes */
  async setEndpoints(id: Id, endpoints: readonly Endpoint[]): Promise<boolean> {
    const { store } = this.#services;
    const known = await store.member(id);
    if (known === undefined || sameEndpoints(known.endpoints, endpoints)) return false;
    if (!this.#rate.take(id, this.#services.now())) {
      throw new Refusal('limit', 'endpoints_rate', 'too many changes of endpoints; wait');
    }
    await store.write(async (tx) => {
      const member = await tx.member(id);
      if (member === undefined) return;
      await tx.updatePresence(id, { online: member.online, endpoints }, await tx.nextChange());
    });
    this.#changed(id);
    return true;
  }

  close(): void {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }

  async #offline(id: Id): Promise<void> {
    if (this.#isLive(id)) return;
    const changed = await this.#services.store.write(async (tx) => {
      const member = await tx.member(id);
      if (member?.online !== true || this.#isLive(id)) return false;
      await tx.updatePresence(id, { online: false }, await tx.nextChange());
      return true;
    });
    if (changed) this.#changed(id);
  }

  #later(name: Id | '', ms: number, fn: () => Promise<void>): void {
    if (this.#closed) return;
    clearTimeout(this.#timers.get(name));
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      fn().catch((err: unknown) => this.#services.log.error({ err }, 'presence was not stored'));
    }, ms);
    timer.unref();
    this.#timers.set(name, timer);
  }
}

/** The address that others see in front of those that the member knows itself, unless it is one of them; at most 8. */
export function withSeen(seen: Endpoint | undefined, told: readonly Endpoint[]): Endpoint[] {
  const own = told.map(({ ip, port }) => ({ ip, port }));
  if (seen === undefined || own.some((one) => sameEndpoints([one], [seen]))) return own;
  return [{ ...seen, seen: true as const }, ...own].slice(0, MAX_ENDPOINTS);
}

function sameEndpoints(a: readonly Endpoint[], b: readonly Endpoint[]): boolean {
  return (
    a.length === b.length &&
    a.every((one, at) => {
      const other = b[at];
      return (
        other !== undefined &&
        one.port === other.port &&
        one.seen === other.seen &&
        Buffer.compare(one.ip, other.ip) === 0
      );
    })
  );
}
