/**
 * What our address guard refused, for the key server's audit log (docs/protocol.md 8.6): collected by kind and
 * source, so that a flood is one line with its count.
 */
import { type Id, idSchema } from '../../src/protocol/ids.js';
import { ipToText } from '../../src/protocol/ip.js';
import { macFromBytes } from '../../src/protocol/mac.js';
import {
  GUARDED,
  type Guarded,
  type GuardedKind,
  MAX_GUARDED,
} from '../../src/protocol/messages.js';
import type { Event } from '../dataplane/messages.gen.js';

/** What comes within so long goes in one message. */
const COLLECT_MS = 1_000;
/** How often the log says it. */
const COMPLAIN_MS = 60_000;
const MAC_SIZE = 6;

export type GuardedEvent = Extract<Event, { t: 'guarded' }>;

/** What is wanted of the surroundings. */
export interface GuardedDeps {
  /** A clock in ms that does not go back. */
  readonly now: () => number;
  readonly send: (entries: readonly Guarded[]) => Promise<unknown>;
  /** Something was refused; at most once a minute for each kind. */
  readonly onGuarded: (first: Guarded) => void;
}

/** Refusals of one port. */
export class GuardedReports {
  readonly #deps: GuardedDeps;
  readonly #waiting = new Map<string, Guarded>();
  readonly #complainAt = new Map<GuardedKind, number>();
  #ready = false;
  #busy = false;
  #timer: NodeJS.Timeout | undefined;
  #told = 0;

  constructor(deps: GuardedDeps) {
    this.#deps = deps;
  }

  /** Frames that the key server was told of. */
  get told(): number {
    return this.#told;
  }

  /** The data plane refused a frame. It may be hostile, so what can't be is left out. */
  take({ kind, peer, mac, ip }: GuardedEvent): void {
    if (!isKind(kind) || mac.length !== MAC_SIZE || ![0, 4, 16].includes(ip.length)) return;
    const from = peer === '' ? undefined : idSchema.safeParse(peer);
    if (from?.success === false) return;
    const entry: Guarded = {
      kind,
      ...(from === undefined ? {} : { peer: from.data as Id }),
      mac: macFromBytes(mac),
      ...(ip.length === 0 ? {} : { ip: ipToText(ip) }),
      count: 1,
    };
    this.#complain(entry);
    const name = `${kind} ${peer} ${entry.mac}`;
    const known = this.#waiting.get(name);
    // What finds no place is counted by the data plane all the same.
    if (known === undefined && this.#waiting.size >= MAX_GUARDED) return;
    this.#waiting.set(name, { ...entry, count: (known?.count ?? 0) + 1 });
    this.#schedule();
  }

  /** We are registered: from now on reports are taken. */
  registered(): void {
    this.#ready = true;
    this.#schedule();
  }

  /** There is no channel: it all waits. */
  disconnected(): void {
    this.#ready = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  stop(): void {
    this.disconnected();
  }

  #schedule(): void {
    if (!this.#ready || this.#busy || this.#waiting.size === 0) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#busy = true;
      void this.#tell().finally(() => {
        this.#busy = false;
        this.#schedule();
      });
    }, COLLECT_MS);
    this.#timer.unref();
  }

  async #tell(): Promise<void> {
    const some = [...this.#waiting];
    this.#waiting.clear();
    try {
      const entries = some.map(([, entry]) => entry);
      await this.#deps.send(entries);
      for (const { count } of entries) this.#told += count;
    } catch {
      for (const [name, entry] of some) {
        const since = this.#waiting.get(name)?.count ?? 0;
        this.#waiting.set(name, { ...entry, count: entry.count + since });
      }
      for (const name of [...this.#waiting.keys()].slice(MAX_GUARDED)) this.#waiting.delete(name);
    }
  }

  #complain(entry: Guarded): void {
    const now = this.#deps.now();
    if (now < (this.#complainAt.get(entry.kind) ?? 0)) return;
    this.#complainAt.set(entry.kind, now + COMPLAIN_MS);
    this.#deps.onGuarded(entry);
  }
}

function isKind(text: string): text is GuardedKind {
  return (GUARDED as readonly string[]).includes(text);
}
