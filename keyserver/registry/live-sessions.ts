/**
 * Which session speaks for which member. Two machines with one identity (a cloned disk, C9)
 * must not take turns: a boot registration carries the machine's id and the nonce of the
 * gateway's start, and a second session with another pair of them gets in only if
 * the first one's channel is dead.
 *
 *   same machine, same nonce     the same gateway came back: the newest session wins
 *   first channel open           wait up to 5 s for it to end, else the newcomer is a duplicate
 *   first channel ended          same machine: the newcomer wins (a restart);
 *                                another machine: only 5 s after the end
 */

/** What a boot registration says of the process behind it. */
export interface Instance {
  readonly machine: Buffer;
  readonly nonce: Buffer;
}

export type Verdict =
  | { readonly kind: 'take' }
  | { readonly kind: 'wait'; readonly ms: number }
  | { readonly kind: 'duplicate' };

/** How long a channel must be dead before another machine may speak for its member. */
export const DEAD_FOR_MS = 5_000;
const POLL_MS = 50;

interface Entry<S> {
  readonly session: S;
  readonly instance: Instance;
  /** When its channel ended; undefined while it is open. */
  endedAt: number | undefined;
}

/** The one registered session of each member. */
export class LiveSessions<S> {
  readonly #entries = new Map<string, Entry<S>>();
  readonly #deadForMs: number;
  #size = 0;

  constructor(deadForMs = DEAD_FOR_MS) {
    this.#deadForMs = deadForMs;
  }

  /** The session that speaks for a member now. */
  get(member: string): S | undefined {
    const entry = this.#entries.get(member);
    return entry?.endedAt === undefined ? entry?.session : undefined;
  }

  /** How many members have one. */
  get size(): number {
    return this.#size;
  }

  /** All members that have one. */
  *all(): Iterable<readonly [string, S]> {
    for (const [member, { session, endedAt }] of this.#entries) {
      if (endedAt === undefined) yield [member, session];
    }
  }

  /** May this session, whose register request came `waitedMs` ago, speak for the member? */
  judge(member: string, session: S, instance: Instance, now: number, waitedMs: number): Verdict {
    const entry = this.#entries.get(member);
    if (entry === undefined || entry.session === session) return { kind: 'take' };
    const sameMachine = entry.instance.machine.equals(instance.machine);
    if (sameMachine && entry.instance.nonce.equals(instance.nonce)) return { kind: 'take' };
    if (entry.endedAt === undefined) {
      return waitedMs >= this.#deadForMs ? { kind: 'duplicate' } : { kind: 'wait', ms: POLL_MS };
    }
    const left = sameMachine ? 0 : entry.endedAt + this.#deadForMs - now;
    return left <= 0 ? { kind: 'take' } : { kind: 'wait', ms: Math.min(left, POLL_MS) };
  }

  /** Lets a session speak for a member. @returns the session that did before and is still open */
  take(member: string, session: S, instance: Instance): S | undefined {
    const before = this.get(member);
    if (before === undefined) this.#size += 1;
    this.#entries.set(member, { session, instance, endedAt: undefined });
    return before === session ? undefined : before;
  }

  /** A session's channel has ended. @returns true if it spoke for the member */
  ended(member: string, session: S, now: number): boolean {
    const entry = this.#entries.get(member);
    if (entry?.session !== session || entry.endedAt !== undefined) return false;
    entry.endedAt = now;
    this.#size -= 1;
    return true;
  }

  /** Forgets members whose channel ended so long ago that it no longer matters. */
  sweep(now: number): void {
    for (const [member, { endedAt }] of this.#entries) {
      if (endedAt !== undefined && now - endedAt > this.#deadForMs) this.#entries.delete(member);
    }
  }
}
