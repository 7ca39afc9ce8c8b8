/**
 * A database that was put back from a backup (docs/protocol.md 3.8) has forgotten generations that members hold, and
 * would give their numbers to other keys. It shows by what members say:
 *
 *   a cursor from then         -> another epoch, so everybody asks for everything anew
 *   a generation from then     -> one above it, in force at once
 *   an address of a member that it has forgotten -> is not known any more, so until the operator confirms nothing
 *                                 for an address that nobody is known to have goes to a plain port (directory.ts)
 *
 * Each start of a server is a run, and is noted in the database: a cursor is from then if its run is not noted, or if
 * it lies beyond where the next run began. (Change numbers alone don't show it: they are soon as high as before.)
 *
 * A member can lie about both. The first is believed once in a run, which is as often as it can be true; the second
 * concerns the member's own pairs, and the group key only every few seconds. Both stand in the audit log with its name.
 * What would cut other key servers of the subnet off (`isCertain`) takes a second one who says so.
 */
import { randomBytes } from 'node:crypto';
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import type { Request } from '../../src/protocol/messages.js';
import { Refusal } from '../refusal.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type { PairEnds, Run } from '../storage/store.js';
import type { Position } from '../sync/collect.js';
import type { GroupRekey } from './group-rekey.js';
import type { Rekey } from './rekey.js';
import { MAX_HELD } from './renewal.js';

/** Starts of a server that are noted; a member that was away for more has to ask for everything anew, with all others. */
export const MAX_RUNS = 1_024;
/** Reports of a member, of up to MAX_ROWS generations each: so many at once, then so many a second. */
const REPORT_BURST = 40;
const REPORTS_PER_SECOND = 0.2;

/** So many have to say that the database was put back before other key servers get no more keys. */
export const CERTAIN_CLAIMS = 2;

type HeldRequest = Extract<Request, { t: 'key.held' }>;

/** Finds out that the database was put back, and what follows from it. */
export class PutBack {
  readonly #services: Services;
  readonly #rekey: Rekey;
  readonly #groups: GroupRekey;
  readonly #reports = new TokenBuckets(REPORT_BURST, REPORTS_PER_SECOND);
  readonly #run = randomBytes(8);
  /** Those before this one, and the last change number of each; the newest last. */
  #runs: readonly (Run & { readonly upTo: number })[] = [];
  #renewal: Promise<void> | undefined;

  constructor(services: Services, rekey: Rekey, groups: GroupRekey) {
    this.#services = services;
    this.#rekey = rekey;
    this.#groups = groups;
  }

  /** Notes this start. To be called before anybody is answered. */
  async begin(): Promise<void> {
    await this.#services.store.write(async (tx) => {
      const runs = await tx.runs();
      const { change } = await tx.counters();
      this.#runs = runs.map((run, at) => ({ ...run, upTo: runs[at + 1]?.after ?? change }));
      await tx.setRuns([...runs.slice(1 - MAX_RUNS), { id: this.#run, after: change }]);
    });
  }

  /** The run that cursors are of which are given now. */
  get run(): Buffer {
    return this.#run;
  }

  /** Looks at where a member stands, before it gets its answer. `run` is that of its cursor. */
  async lookAt(
    id: string,
    { cursor, epoch }: Position,
    run: Uint8Array | undefined,
  ): Promise<void> {
    const { store } = this.#services;
    if (epoch === undefined) return;
    if (Buffer.compare(epoch, store.meta.epoch) !== 0) {
      // It is told everything anew whatever it says; but change numbers go on, and so it may say the same as the first one.
      if (run === undefined || !(await store.counters()).putBack) return;
      if (!(await this.#gave(cursor, run))) await this.claim(id);
      return;
    }
    const gave = await this.#gave(cursor, run);
    if (this.#renewal === undefined && gave) return;
    this.#renewal ??= this.#renew(id, cursor);
    await this.#renewal;
    if (!gave) await this.claim(id);
  }

  /** Notes who says that the database was put back; more than are needed are not noted. */
  async claim(claimant: string): Promise<void> {
    const { store, log } = this.#services;
    const before = await store.restoreClaims();
    if (before.length >= CERTAIN_CLAIMS || before.includes(claimant)) return;
    await store.write((tx) => tx.addRestoreClaim(claimant));
    if (before.length + 1 < CERTAIN_CLAIMS) return;
    log.error(
      { claimants: [...before, claimant] },
      'the database was put back: other key servers of this subnet get no keys until its operator confirms',
    );
  }

  /** The database was put back, as more than one says, and the operator has not confirmed it. */
  async isCertain(): Promise<boolean> {
    const { store } = this.#services;
    if (!(await store.counters()).putBack) return false;
    return (await store.restoreClaims()).length >= CERTAIN_CLAIMS;
  }

  /** Once in a run; what fails is tried again for the next who shows it. */
  async #renew(id: string, cursor: number): Promise<void> {
    const { store, audit, log } = this.#services;
    log.error(
      { member: id, cursor },
      'a member has seen changes that this database has not: it was put back; addresses that nobody is known to have go to no plain port until its operator confirms (pairwire restore confirm)',
    );
    try {
      await store.write(async (tx) => {
        await tx.renewEpoch(randomBytes(8));
        await tx.setPutBack(true);
        await tx.addRestoreClaim(id);
        const detail = { cursor };
        await audit.append(tx, { actor: id, action: 'put_back', outcome: 'done', detail });
      });
    } catch (thrown) {
      this.#renewal = undefined;
      throw thrown;
    }
  }

  /** Whether a server with what this database knows can have given a cursor. */
  async #gave(cursor: number, run: Uint8Array | undefined): Promise<boolean> {
    const { change } = await this.#services.store.counters();
    if (run === undefined || this.#run.equals(run)) return cursor <= change;
    const known = this.#runs.find(({ id }) => id.equals(run));
    return known !== undefined && cursor <= known.upTo;
  }

  /** One with a number that nobody can hold honestly is left aside. @throws Refusal for too many reports */
  async held(id: Id, { pairs, group }: HeldRequest): Promise<void> {
    const { store, audit, now, elapsed = now } = this.#services;
    if (!this.#reports.take(id, elapsed())) {
      throw new Refusal('limit', 'held_rate', 'too many reports; wait');
    }
    const credible = (pwId: number): boolean => pwId <= MAX_HELD;
    const made = await this.#rekey.putAbove(
      id,
      pairs.filter(({ pwId }) => credible(pwId)),
    );
    const groupMade =
      group !== undefined && credible(group) && (await this.#groups.putAbove(group));
    if (made === 0 && !groupMade) return;
    const detail = { pairs: made, ...(groupMade ? { group: GROUP_ID } : {}) };
    await store.write((tx) =>
      audit.append(tx, { actor: id, action: 'generations_held', outcome: 'done', detail }),
    );
  }

  /**
   * The same of another key server, for its members `b`, of pairs whose keys we make. It says so again until it was told
   * of a newer one, so what comes too often is left aside.
   */
  async heldElsewhere(
    actor: string,
    pairs: readonly (PairEnds & { readonly pwId: number })[],
    group: number | undefined,
  ): Promise<void> {
    const { store, audit, now, elapsed = now } = this.#services;
    if (!this.#reports.take(actor, elapsed())) return;
    let made = 0;
    for (const { a, b, pwId } of pairs) {
      if (pwId <= MAX_HELD) made += await this.#rekey.putAbove(b, [{ peer: a, pwId }]);
    }
    const groupMade =
      group !== undefined && group <= MAX_HELD && (await this.#groups.putAbove(group));
    if (made === 0 && !groupMade) return;
    const detail = { pairs: made, ...(groupMade ? { group: GROUP_ID } : {}) };
    await store.write((tx) =>
      audit.append(tx, { actor, action: 'generations_held', outcome: 'done', detail }),
    );
  }
}
