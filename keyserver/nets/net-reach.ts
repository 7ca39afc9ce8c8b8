/**
 * Whether the key servers of other subnets hear of our link ports. While one does not, its own count as offline: ours
 * then put off what the others would have to hear of, as a fresh boot key (docs/protocol.md 9.4). When it speaks again,
 * it tells how they are.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { Services } from '../services.js';
import type { Net } from '../storage/store.js';

/** How long a server may be away before that counts, ms. */
export const REACH_GRACE = 10_000;
/** The same after a start, when everybody comes back at once. */
const REACH_GRACE_AFTER_START = 45_000;

/** Notes which of them are away. */
export class NetReach {
  readonly #services: Services;
  readonly #changed: (entry: Net) => void;
  readonly #graceMs: number;
  readonly #timers = new Map<Id, NodeJS.Timeout>();
  #closed = false;

  /** @param changed is told of a net whose link ports count as offline from now on */
  constructor(services: Services, changed: (entry: Net) => void, graceMs = REACH_GRACE) {
    this.#services = services;
    this.#changed = changed;
    this.#graceMs = graceMs;
  }

  /** After a start: who does not speak is away. */
  async resume(): Promise<void> {
    const grace = Math.max(REACH_GRACE_AFTER_START, this.#graceMs);
    for (const { net, far } of await this.#services.store.nets()) {
      if (far !== undefined) this.#later(net, grace);
    }
  }

  /** A net's server has spoken. */
  heard(net: Id): void {
    clearTimeout(this.#timers.get(net));
    this.#timers.delete(net);
  }

  /** The channel to a net's server has ended, or can't be opened. */
  lost(net: Id): void {
    if (!this.#timers.has(net)) this.#later(net, this.#graceMs);
  }

  /** The same of a server that asks us. */
  async lostServer(member: Id): Promise<void> {
    for (const entry of await this.#services.store.nets()) {
      if (entry.member === member) this.lost(entry.net);
    }
  }

  close(): void {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }

  #later(net: Id, ms: number): void {
    if (this.#closed) return;
    const timer = setTimeout(() => {
      this.#timers.delete(net);
      this.#away(net).catch((err: unknown) =>
        this.#services.log.warn({ net, err }, 'link ports of a net were not marked as offline'),
      );
    }, ms);
    timer.unref();
    this.#timers.set(net, timer);
  }

  async #away(net: Id): Promise<void> {
    const entry = await this.#services.store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.far?.ports.some(({ online }) => online) !== true) return undefined;
      const ports = row.far.ports.map((port) => ({ ...port, online: false }));
      const away: Net = { ...row, far: { ...row.far, ports }, changed: await tx.nextChange() };
      await tx.putNet(away);
      return away;
    });
    if (entry === undefined || this.#closed) return;
    this.#services.log.warn({ net }, 'the key server of another subnet is away');
    this.#changed(entry);
  }
}
