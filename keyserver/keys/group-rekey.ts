/**
 * Generations of the group key (docs/protocol.md 3.6). All state but who confirmed is in the store.
 *
 *   in force: n --prepare--> in force: n, next: n+1 --all who are online confirm--> in force: n+1
 *                                   \------------- force, or patience ends ------------/
 *   revocation: in force: n (and perhaps next: n+1) --> in force: a new key, and nothing older is heard
 *
 * Renewing and revoking go by numbers and need no key that was there before. So where one in the database is not what was sealed
 * there (docs/protocol.md 11.1), or is gone, a revocation works all the same, and whatever else renews the key puts another
 * one in force at once: nobody can be prepared for it, since nobody is told of a broken one.
 *
 * A member that is told late catches up by itself: by its sync, by the first group frame that it hears
 * under the new generation, or by asking for a kid that it does not know.
 */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { GROUP_ID, type Id, typedId } from '../../src/protocol/ids.js';
import { groupInterval } from '../current-settings.js';
import { Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { BrokenGroup, GroupKey, StoreReads, StoreTransaction } from '../storage/store.js';
import { AGAIN, dueAfter, MIN_AGE, noteCase1, numberAbove, Rounds } from './renewal.js';

/** One member that never confirms must not keep an old key in force for everybody, ms. */
const PATIENCE = 60_000;

/** Why a generation was made, as the `keys` list shows it. */
export type GroupRekeyReason = 'age' | 'limit' | 'operator' | 'revocation' | 'restored' | 'broken';

/** What there is to know of a group key that is not in the database at all. */
const GONE: BrokenGroup = {
  ...{ id: GROUP_ID, key: undefined, pwId: 0, createdAt: 0, oldest: 0, dueAt: 0, changed: 0 },
  next: undefined,
};

/** The group key where there are several key servers: one makes it. */
export interface GroupElsewhere {
  /** The server that makes it; undefined: this one. */
  maker(): Id | undefined;
  /** The other servers that are there. */
  servers(): Iterable<Id>;
  /** Tells the maker that all our members can receive under its next generation. */
  confirm(pwId: number): void;
  /** Tells it that the key is worn. */
  worn(pwId: number): void;
}

/** What is wanted of the sessions. */
export interface GroupRekeyDeps {
  /** Members with a registered session, and how many. */
  live(): Iterable<Id>;
  liveCount(): number;
  /** Tells everybody who holds the key of its state. */
  tellAll(): void;
  /** Tells one member. */
  tell(to: Id): void;
  /** The other key servers of this subnet, if there are any. */
  readonly elsewhere?: GroupElsewhere;
  readonly random?: () => number;
}

/** What is waited for while a generation is prepared. */
interface Waiting {
  readonly pwId: number;
  readonly since: number;
  /** It was prepared before this server started. */
  readonly resumed: boolean;
  toldAt: number;
  readonly confirmed: Set<Id>;
  /** Servers all of whose members can. */
  readonly servers: Set<Id>;
}

/** Renews the group key. */
export class GroupRekey {
  readonly #services: Services;
  readonly #deps: GroupRekeyDeps;
  readonly #random: () => number;
  readonly #elapsed: () => number;
  readonly #rounds: Rounds;
  #waiting: Waiting | undefined;
  /** It was said that the key is broken. */
  #told = false;

  constructor(services: Services, deps: GroupRekeyDeps) {
    this.#services = services;
    this.#deps = deps;
    this.#random = deps.random ?? Math.random;
    this.#elapsed = services.elapsed ?? services.now;
    this.#rounds = new Rounds(
      () => this.#round(),
      (err) => services.log.warn({ err }, 'the group key was not renewed'),
    );
  }

  /** Takes up what was prepared before a restart; who had confirmed is asked once more. */
  async resume(): Promise<void> {
    const group = await this.#group(this.#services.store);
    if (group.key === undefined) await this.#tellBroken(group);
    else if (group.next !== undefined) this.#wait(group.next.pwId, true);
  }

  close(): void {
    this.#rounds.close();
  }

  /** Prepares what is due, tells again who has not confirmed, commits when nobody is waited for. */
  tick(): Promise<void> {
    return this.#rounds.once();
  }

  /**
   * Prepares the next generation, unless there is one already. In place of a broken one another is in force at once.
   * @param force puts it in force without waiting for anybody
   * @returns its number
   */
  async renew(reason: GroupRekeyReason, force: boolean): Promise<number> {
    const { store, metrics, audit, log } = this.#services;
    const maker = this.#maker;
    if (maker !== undefined) {
      const why = `the group key is made by ${maker}: renew it there`;
      throw new Refusal('refused', 'cascade_home', why, { server: maker });
    }
    const { pwId, mended } = await store.write(async (tx) => {
      const group = await this.#group(tx);
      if (group.key === undefined) {
        const above = aboveAll(group);
        // Who holds what was in force before is heard for the grace period.
        const oldest = Math.max(1, Math.min(group.pwId, above));
        await this.#replace(tx, above, 'broken', oldest);
        const actor = typedId('server', this.#services.server);
        const detail = { group: GROUP_ID, pwId: above };
        await audit.append(tx, { actor, action: 'group_mended', outcome: 'done', detail });
        return { pwId: above, mended: true };
      }
      const { pwId: number, next } = group;
      if (next === undefined) {
        const change = await tx.nextChange();
        const made = { key: randomBytes(KEY_SIZE), pwId: number + 1, reason, serial: change };
        await tx.prepareGroup(GROUP_ID, made, change);
      }
      if (force) await this.#commit(tx);
      return { pwId: number + 1, mended: false };
    });
    if (mended) log.warn({ pwId }, 'there is another group key in place of the broken one');
    const forced = force || mended;
    metrics.groupRekeys.inc({
      reason: mended ? 'broken' : reason,
      step: forced ? 'forced' : 'prepared',
    });
    if (forced) this.#waiting = undefined;
    else if (this.#waiting?.pwId !== pwId) this.#wait(pwId);
    this.#deps.tellAll();
    return pwId;
  }

  /** A member finds the group key nearly used up. */
  async wornOut(held: number | undefined): Promise<void> {
    const { pwId, createdAt, next } = await this.#group(this.#services.store);
    if (this.#maker !== undefined) {
      if (held === pwId) this.#deps.elsewhere?.worn(pwId);
      return;
    }
    const young = this.#services.now() - createdAt < MIN_AGE;
    if (next === undefined && held === pwId && !young) await this.renew('limit', false);
  }

  /**
   * Part of a revocation: a key that the revoked member never had is in force, and nothing older is to be
   * heard, because he could forge as anybody in it (C6). Also what was prepared is not used: he may have it.
   */
  async revokeIn(tx: StoreTransaction): Promise<void> {
    if (!this.#renewsOnRevocation()) return;
    const pwId = aboveAll(await this.#group(tx));
    await this.#replace(tx, pwId, 'revocation', pwId);
  }

  /** The transaction with `revokeIn` has committed. */
  revoked(): void {
    if (!this.#renewsOnRevocation()) return;
    this.#waiting = undefined;
    this.#services.metrics.groupRekeys.inc({ reason: 'revocation', step: 'forced' });
    this.#deps.tellAll();
  }

  /**
   * The database was put back, and a member holds this generation, made since then: one above it is in force at once.
   * @returns false if that is so already, or the key is too young for it
   */
  async putAbove(held: number): Promise<boolean> {
    const { store, metrics, now } = this.#services;
    if (this.#maker !== undefined) return false;
    const done = await store.write(async (tx) => {
      const { pwId, createdAt, next } = await this.#group(tx);
      if (pwId > held || now() - createdAt < MIN_AGE) return false;
      // Who holds what the server forgot is heard for the grace period.
      await this.#replace(tx, numberAbove(held, next?.pwId ?? 0), 'restored', held);
      return true;
    });
    if (!done) return false;
    this.#waiting = undefined;
    metrics.groupRekeys.inc({ reason: 'restored', step: 'forced' });
    this.#deps.tellAll();
    return true;
  }

  /** A member can receive under a next generation. */
  async confirm(id: Id, pwId: number): Promise<void> {
    const waiting = this.#waiting;
    if (waiting?.pwId !== pwId) return;
    waiting.confirmed.add(id);
    // A number is cheap, looking at everybody is not.
    if (waiting.confirmed.size >= this.#deps.liveCount()) await this.#lookAfter(pwId);
  }

  /** All members of another server can. */
  async confirmServer(server: Id, pwId: number): Promise<void> {
    if (this.#waiting?.pwId !== pwId) return;
    this.#waiting.servers.add(server);
    await this.#lookAfter(pwId);
  }

  /** The server that makes the key has told of it. */
  async learned({ next }: GroupKey): Promise<void> {
    if (next === undefined) this.#waiting = undefined;
    else if (this.#waiting?.pwId !== next.pwId) this.#wait(next.pwId);
    this.#deps.tellAll();
    if (next !== undefined) await this.#lookAfter(next.pwId);
  }

  get #maker(): Id | undefined {
    return this.#deps.elsewhere?.maker();
  }

  /** Where another server makes the key, it makes another one as soon as it hears of the revocation. */
  #renewsOnRevocation(): boolean {
    const { rekey } = this.#services.settings.settings.group;
    return rekey !== 'never' && this.#maker === undefined;
  }

  /** A member asks with a generation that is not in force any more: case 1. */
  askedWith(asker: Id, key: GroupKey, held: number | undefined): void {
    noteCase1(this.#services, asker, 'group', key.pwId, held);
  }

  async #round(): Promise<void> {
    const { store, now } = this.#services;
    const group = await this.#group(store);
    const { dueAt, next } = group;
    if (group.key === undefined) {
      this.#waiting = undefined;
      await this.#tellBroken(group);
    } else this.#told = false;
    if (group.key !== undefined && next !== undefined) {
      await this.#lookAfter(next.pwId);
      return;
    }
    this.#waiting = undefined;
    if (this.#maker !== undefined) return;
    // A renewal that had begun goes on with another key, if the one that was prepared is broken.
    if (next !== undefined || (dueAt > 0 && dueAt <= now())) await this.renew('age', false);
  }

  /** Once, until it is whole again: nobody gets it meanwhile, so a member that starts hears and sends no broadcasts. */
  async #tellBroken({ pwId }: BrokenGroup): Promise<void> {
    if (this.#told) return;
    this.#told = true;
    const { store, audit, log, server } = this.#services;
    log.error(
      { group: GROUP_ID, pwId, hint: 'pairwire rekey --group --force makes another one' },
      'the group key in the database is not what was sealed there: it is handed to nobody',
    );
    const detail = { group: GROUP_ID, pwId };
    const actor = typedId('server', server);
    await store.write((tx) =>
      audit.append(tx, { actor, action: 'group_broken', outcome: 'done', detail }),
    );
  }

  async #lookAfter(pwId: number): Promise<void> {
    const { metrics, store, log } = this.#services;
    if (this.#waiting?.pwId !== pwId) this.#wait(pwId);
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    const missing: Id[] = [];
    for (const id of this.#deps.live()) {
      if (!waiting.confirmed.has(id) && (await this.#holds(id))) missing.push(id);
    }
    if (this.#maker !== undefined) {
      // After a restart not everybody is here yet. It is said again as long as it is not in force.
      const here = !waiting.resumed || this.#elapsed() - waiting.since >= AGAIN;
      if (missing.length === 0 && here) this.#deps.elsewhere?.confirm(pwId);
      if (this.#elapsed() - waiting.toldAt < AGAIN) return;
      waiting.toldAt = this.#elapsed();
      for (const id of missing) this.#deps.tell(id);
      return;
    }
    for (const server of this.#deps.elsewhere?.servers() ?? []) {
      if (!waiting.servers.has(server)) missing.push(server);
    }
    // After a restart of the server not everybody is here yet: who is, is not everybody's agreement.
    const settled =
      this.#elapsed() - waiting.since >= AGAIN ||
      (!waiting.resumed && waiting.confirmed.size + waiting.servers.size > 0);
    const impatient = this.#elapsed() - waiting.since >= PATIENCE;
    if ((missing.length === 0 && settled) || impatient) {
      if (missing.length > 0) {
        log.warn({ members: missing.slice(0, 20), pwId }, 'not waited for with the group key');
      }
      const reason = await store.write(async (tx) => {
        const group = await this.#group(tx);
        if (group.key === undefined || group.next?.pwId !== pwId) return undefined;
        await this.#commit(tx);
        return group.next.reason;
      });
      if (this.#waiting === waiting) this.#waiting = undefined;
      if (reason === undefined) return;
      metrics.groupRekeys.inc({ reason, step: 'committed' });
      this.#deps.tellAll();
      return;
    }
    if (this.#elapsed() - waiting.toldAt < AGAIN) return;
    waiting.toldAt = this.#elapsed();
    for (const id of missing) this.#deps.tell(id);
  }

  /** By the documents' own rule (hold = 0) a member has the key once it asked for it. */
  async #holds(id: Id): Promise<boolean> {
    if (this.#services.settings.settings.hold > 0) return true;
    return ((await this.#services.store.member(id))?.groupAsked ?? 0) > 0;
  }

  #wait(pwId: number, resumed = false): void {
    const now = this.#elapsed();
    this.#waiting = {
      pwId,
      since: now,
      resumed,
      toldAt: now,
      confirmed: new Set(),
      servers: new Set(),
    };
  }

  async #replace(
    tx: StoreTransaction,
    pwId: number,
    reason: GroupRekeyReason,
    oldest: number,
  ): Promise<void> {
    const change = await tx.nextChange();
    await tx.replaceGroup({
      ...{ id: GROUP_ID, key: randomBytes(KEY_SIZE), pwId, reason, oldest },
      ...{ createdAt: this.#services.now(), dueAt: this.#dueAt(), serial: change, changed: change },
    });
  }

  async #commit(tx: StoreTransaction): Promise<void> {
    // The former generation may be heard for the grace period that its holders count.
    const { pwId } = await this.#group(tx);
    const times = { createdAt: this.#services.now(), dueAt: this.#dueAt(), oldest: pwId };
    await tx.commitGroup(GROUP_ID, times, await tx.nextChange());
  }

  /** When a key made now gets too old; 0: never. */
  #dueAt(): number {
    const { settings, now } = this.#services;
    return dueAfter(groupInterval(settings.settings.group.rekey), now(), this.#random);
  }

  async #group(from: Pick<StoreReads, 'anyGroup'>): Promise<GroupKey | BrokenGroup> {
    return (await from.anyGroup(GROUP_ID)) ?? GONE;
  }
}

/** A number above all that were given to a group key; also to one that was only prepared. */
function aboveAll({ pwId, next }: Pick<BrokenGroup, 'pwId' | 'next'>): number {
  return numberAbove(pwId, next?.pwId ?? 0);
}
