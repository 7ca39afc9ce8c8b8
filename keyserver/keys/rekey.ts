/**
 * Generations of pair keys (docs/protocol.md 3.5). All state is in the store, so a server may die at
 * any moment; what is pushed are hints of it, and `sync` brings the same.
 *
 *   in force: n --prepare--> in force: n, next: n+1 --both ends confirm--> in force: n+1
 *                                   \--------------- force -------------/
 *
 * Prepared, both ends can receive under n+1 and send under n; an end that has not confirmed keeps
 * both on n and is told again. Forced, n+1 holds at once: an end that is not told is healed by the
 * document's two cases:
 *
 *   case 1   it gets a frame under n+1, holds it and asks: (ID_2, MAC_1 or index, PW_ID_OLD)
 *   case 2   it sends under n; the other end tells of it: (ID_1, MAC_2 or index, PW_ID_NEW)
 *
 * A generation that was stored is never replaced by another one with its number.
 *
 * A key in the database that is not what was sealed there is told to nobody, so no end can be prepared for another one: such a
 * pair is *mended*. A new key, above all numbers that the row names, is in force at once, as when one is forced.
 */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { type Id, orderedPair, typedId } from '../../src/protocol/ids.js';
import { mayPairIds } from '../registry/policy.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type {
  BrokenPair,
  ConfirmedPair,
  KnownPair,
  PairEnds,
  PairKey,
  StoreTransaction,
  ToldPair,
} from '../storage/store.js';
import { AGAIN, dueAfter, MIN_AGE, noteCase1, numberAbove, Rounds } from './renewal.js';

/** Implementation constants, ms unless stated. */
/** A pair of which an end is away is looked at again after this. */
const POSTPONE = 60_000;
/** Pairs prepared in one transaction. */
const BATCH = 500;
/** Pairs that are prepared before their ends are told: about two seconds' work. */
const TOLD_TOGETHER = 50_000;
/** Prepared pairs that are looked after at a time. */
export const MAX_WAITING = 100_000;
/** Notices of a member: so many at once, then so many a second. */
const NOTICE_BURST = 20;
const NOTICES_PER_SECOND = 2;

/** Why a generation was made, as the `keys` list shows it. */
export type RekeyReason = 'age' | 'limit' | 'operator' | 'restored' | 'broken';

/** Pairs with an end at home at another key server. */
export interface PairsElsewhere {
  /** The member is at home there, and online. */
  isAround(id: Id): Promise<boolean>;
  /** Tells the server that makes the key that our end can receive under its next generation. */
  confirm(pair: Pick<PairKey, 'a' | 'b' | 'maker'>, pwId: number): void;
  /** Tells it that the key is worn. */
  worn(pair: PairKey): void;
}

/** What is wanted of the sessions. */
export interface RekeyDeps {
  isLive(id: Id): boolean;
  /** Pushes a pair's state to one of its ends. */
  push(to: Id, pair: ToldPair): void;
  /** The other key servers of this subnet, if there are any. */
  readonly elsewhere?: PairsElsewhere;
  readonly random?: () => number;
}

/** Renews pair keys. */
export class Rekey {
  readonly #services: Services;
  readonly #deps: RekeyDeps;
  readonly #random: () => number;
  readonly #elapsed: () => number;
  readonly #notices = new TokenBuckets(NOTICE_BURST, NOTICES_PER_SECOND);
  /** Prepared pairs by when their ends were last told. */
  readonly #waiting = new Map<string, { readonly pair: PairEnds; toldAt: number }>();
  readonly #rounds: Rounds;

  constructor(services: Services, deps: RekeyDeps) {
    this.#services = services;
    this.#deps = deps;
    this.#random = deps.random ?? Math.random;
    this.#elapsed = services.elapsed ?? services.now;
    this.#rounds = new Rounds(
      async () => {
        await this.#renewOld();
        await this.#tellAgain();
      },
      (err) => services.log.warn({ err }, 'keys were not renewed'),
    );
  }

  /** Takes up what was prepared before a restart. */
  async resume(): Promise<void> {
    const prepared = await this.#services.store.pairsPrepared(MAX_WAITING);
    for (const pair of prepared) {
      const reason = pair.key === undefined ? 'broken' : (pair.next?.reason ?? '');
      this.#wait(pair, Number.NEGATIVE_INFINITY, reason);
    }
  }

  close(): void {
    this.#rounds.close();
  }

  /** When a key made now gets too old; 0: never. */
  dueAt(now: number): number {
    return dueAfter(this.#services.settings.settings.rekeySeconds * 1_000, now, this.#random);
  }

  /** Prepares what is due, tells again who has not confirmed. */
  tick(): Promise<void> {
    return this.#rounds.once();
  }

  /**
   * Renews the key of pairs. One that has a next generation already gets no other; forced, that one is in force.
   * One with a broken seal is mended, unless another server makes it.
   * @param force puts it in force without waiting for the ends
   * @returns how many were prepared, or put in force
   */
  async renew(
    pairs: readonly (KnownPair | BrokenPair)[],
    reason: RekeyReason,
    force: boolean,
  ): Promise<number> {
    const { store, metrics } = this.#services;
    let renewed = 0;
    let untold: ToldPair[] = [];
    const tell = (): void => {
      for (const pair of untold) this.#tell(pair);
      untold = [];
    };
    for (let at = 0; at < pairs.length; at += BATCH) {
      const batch = pairs.slice(at, at + BATCH);
      const done = await store.write(async (tx) => {
        const changed: ToldPair[] = [];
        const mended: ToldPair[] = [];
        let number = await tx.nextChanges(2 * batch.length);
        // One draw: a call for each key costs as much as storing it.
        const drawn = randomBytes(KEY_SIZE * batch.length);
        for (const [at, pair] of batch.entries()) {
          const next = { key: drawn.subarray(at * KEY_SIZE, (at + 1) * KEY_SIZE), reason };
          const prepared =
            pair.key === undefined
              ? undefined
              : ((await tx.prepareNext(pair, next, number++)) ??
                // What is prepared waits for an end, and shall not any more: no other one has its number.
                (force ? await this.#preparedBefore(tx, pair) : undefined));
          if (prepared === undefined) {
            // Also one whose seal was broken since it was read.
            const whole = await this.#mendIn(tx, pair, next.key, number++);
            if (whole !== undefined) mended.push(whole);
            continue;
          }
          const after = force ? await tx.commitNext(prepared, this.#times(), number++) : prepared;
          if (after !== undefined) changed.push(after);
        }
        await this.#noteMended(tx, this.#self, mended);
        return { changed, mended };
      });
      const { changed, mended } = done;
      metrics.rekeys.inc({ reason, step: force ? 'forced' : 'prepared' }, changed.length);
      for (const pair of changed) {
        if (force) this.#waiting.delete(nameOf(pair));
        else this.#wait(pair, this.#elapsed(), reason);
      }
      this.#countMended(mended);
      renewed += changed.length + mended.length;
      // A member of many pairs is told of them, and confirms them, together.
      untold.push(...changed, ...mended);
      if (force || untold.length >= TOLD_TOGETHER) tell();
    }
    tell();
    return renewed;
  }

  async #preparedBefore(
    tx: StoreTransaction,
    { a, b }: PairEnds,
  ): Promise<(ToldPair & Pick<ConfirmedPair, 'next'>) | undefined> {
    const pair = await tx.anyPair(a, b);
    if (pair?.key === undefined || pair.maker !== undefined) return undefined;
    const { next } = pair;
    return next === undefined ? undefined : { ...pair, next };
  }

  /** The pair of two members, all pairs of one, or all there are. */
  async named(a: Id | undefined, b: Id | undefined): Promise<readonly (KnownPair | BrokenPair)[]> {
    const { store } = this.#services;
    if (a !== undefined && b !== undefined) {
      const pair = await store.anyPair(a, b);
      return pair === undefined ? [] : [pair];
    }
    const one = a ?? b;
    if (one !== undefined) return store.pairsOf(one);
    const all: (KnownPair | BrokenPair)[] = [];
    for (let after = 0; ; ) {
      const page = await store.pairsAfter(after, BATCH);
      all.push(...page);
      const last = page.at(-1);
      if (last === undefined) return all;
      after = last.serial;
    }
  }

  /**
   * An end of a pair wants its key, and that has a broken seal: they get another one.
   * @returns undefined if that is not to be: an end was revoked, other settings have come, or another server makes the key
   */
  async mend(asker: Id, peer: Id): Promise<PairKey | undefined> {
    const { store, settings } = this.#services;
    const [a, b] = orderedPair(asker, peer);
    const done = await store.write(async (tx) => {
      for (const end of [a, b]) if ((await tx.member(end))?.state !== 'active') return undefined;
      if ((await tx.settingsVersion()) !== settings.settings.version) return undefined;
      const number = await tx.nextChange();
      const mended = await this.#mendIn(tx, { a, b }, randomBytes(KEY_SIZE), number);
      if (mended !== undefined) await this.#noteMended(tx, asker, [mended]);
      await tx.markPairAsked(a, b, asker, number);
      const pair = await tx.anyPair(a, b);
      return { mended, pair: pair?.key === undefined ? undefined : pair };
    });
    if (done?.mended !== undefined) {
      this.#countMended([done.mended]);
      this.#tell(done.mended);
    }
    return done?.pair;
  }

  /** An end of a pair finds its key nearly used up. */
  async wornOut(pair: PairKey): Promise<void> {
    if (pair.maker !== undefined) {
      this.#deps.elsewhere?.worn(pair);
      return;
    }
    if (pair.next !== undefined || this.#services.now() - pair.createdAt < MIN_AGE) return;
    await this.renew([pair], 'limit', false);
  }

  /** `asker` can receive under these next generations. */
  async confirm(
    asker: Id,
    pairs: readonly { readonly peer: Id; readonly pwId: number }[],
  ): Promise<void> {
    const { store, metrics } = this.#services;
    if (pairs.length === 0) return;
    const foreign: ConfirmedPair[] = [];
    const committed = await store.write(async (tx) => {
      foreign.length = 0;
      const changed: { readonly pair: ToldPair; readonly reason: string }[] = [];
      let number: number | undefined;
      for (const { peer, pwId } of pairs) {
        const [a, b] = orderedPair(asker, peer);
        const before = await tx.confirmNext({ a, b }, asker, pwId);
        if (before === undefined) continue;
        if (before.maker !== undefined) {
          foreign.push(before);
          continue;
        }
        const { confirmedA, confirmedB, reason } = before.next;
        if (!(peer === a ? confirmedA : confirmedB) && this.#holds(before, peer)) continue;
        number ??= await tx.nextChanges(pairs.length);
        const pair = await tx.commitNext(before, this.#times(), number++);
        if (pair !== undefined) changed.push({ pair, reason });
      }
      return changed;
    });
    for (const pair of foreign) this.#deps.elsewhere?.confirm(pair, pair.next.pwId);
    for (const { pair, reason } of committed) {
      metrics.rekeys.inc({ reason, step: 'committed' });
      this.#waiting.delete(nameOf(pair));
      this.#tell(pair);
    }
  }

  /**
   * The database was put back, and `asker` holds these generations, made since then: each pair gets one above it, in
   * force at once, so that no number is used for two keys. One that is above already stays. A pair of which the other
   * end is not here yet has to wait: it goes on with what both hold, and that end reports it, too.
   * @returns how many pairs got one
   */
  async putAbove(
    asker: Id,
    held: readonly { readonly peer: Id; readonly pwId: number }[],
  ): Promise<number> {
    const { store, metrics } = this.#services;
    const reason: RekeyReason = 'restored';
    const around = new Set<Id>();
    for (const { peer } of held) {
      if (await this.#isThere(peer)) around.add(peer);
    }
    const changed = await store.write(async (tx) => {
      const pairs: PairKey[] = [];
      for (const { peer, pwId } of held) {
        if (peer === asker || !around.has(peer)) continue;
        const other = await tx.member(peer);
        if (other?.state !== 'active') continue;
        if (!(await mayPairIds(tx, this.#services.settings.settings.policy, asker, peer))) continue;
        // The server that makes it goes above what its own end holds.
        if (other.home !== undefined && peer < asker) continue;
        const [a, b] = orderedPair(asker, peer);
        const before = await tx.anyPair(a, b);
        if (before?.key !== undefined && before.pwId > pwId) continue;
        // Nor is the number of one that is prepared used again: somebody may have it.
        const stored = before?.key === undefined ? before?.pwId : before.next?.pwId;
        const above = numberAbove(pwId, stored ?? 0);
        const change = await tx.nextChange();
        const made = {
          ...{ key: randomBytes(KEY_SIZE), pwId: above, reason },
          ...this.#times(),
        };
        if (before === undefined) {
          const asked = asker === a ? { askedA: change, askedB: 0 } : { askedA: 0, askedB: change };
          await tx.insertPair({ a, b, ...made, ...asked, serial: change, changed: change });
        } else {
          await tx.replacePair({ a, b }, made, change);
        }
        const after = await tx.pairKey(a, b);
        if (after !== undefined) pairs.push(after);
      }
      return pairs;
    });
    for (const pair of changed) {
      metrics.rekeys.inc({ reason, step: 'forced' });
      this.#tell(pair);
    }
    return changed.length;
  }

  /** Case 1: an end asks with a generation that is not in force any more. */
  askedWith(asker: Id, pair: PairKey, held: number | undefined): void {
    noteCase1(this.#services, asker, otherOf(pair, asker), pair.pwId, held);
  }

  /** Case 2: `asker`, with the newest generation, hears `peer` send with an older one. */
  async notice(asker: Id, peer: Id, pwId: number): Promise<'told' | 'outdated' | 'limited'> {
    const { store, metrics, log } = this.#services;
    if (!this.#notices.take(asker, this.#elapsed())) return 'limited';
    const pair = await store.pairKey(asker, peer);
    if (pair === undefined || pair.pwId !== pwId) {
      // The asker itself lags: it is told, nobody else.
      if (pair !== undefined) this.#deps.push(asker, pair);
      return 'outdated';
    }
    metrics.rekeyCases.inc({ case: '2' });
    log.info(
      { member: asker, peer, pwId },
      `case 2: (${asker}, ${peer}, ${pwId}) is the newest generation, and ${peer} lags`,
    );
    this.#tell(pair);
    return 'told';
  }

  async #renewOld(): Promise<void> {
    const { store, now } = this.#services;
    const due = await store.pairsDue(now(), BATCH);
    if (due.length === 0) return;
    const both: (PairKey | BrokenPair)[] = [];
    const away: PairEnds[] = [];
    for (const pair of due) {
      const there = (await this.#isThere(pair.a)) && (await this.#isThere(pair.b));
      (there ? both : away).push(pair);
    }
    if (away.length > 0) {
      // All change or none does: a pair that is not there can't.
      await store.write(async (tx) => {
        const until = now() + POSTPONE;
        for (const pair of away) await tx.postponePair(pair, until);
      });
    }
    await this.renew(both, 'age', false);
  }

  async #tellAgain(): Promise<void> {
    const broken: BrokenPair[] = [];
    await this.#tellWaiting(broken);
    await this.renew(broken, 'broken', true);
  }

  /** @param broken gets those that have a broken seal */
  async #tellWaiting(broken: BrokenPair[]): Promise<void> {
    const { store } = this.#services;
    let told = 0;
    for (const [name, waiting] of this.#waiting) {
      if (this.#elapsed() - waiting.toldAt < AGAIN) continue;
      const pair = await store.anyPair(waiting.pair.a, waiting.pair.b);
      if (pair?.key === undefined || pair.next === undefined) {
        this.#waiting.delete(name);
        // Of a generation with a broken seal no end can be told.
        if (pair !== undefined && pair.key === undefined) broken.push(pair);
        continue;
      }
      waiting.toldAt = this.#elapsed();
      // Of a pair that is made elsewhere our end is b.
      if (pair.maker !== undefined && pair.next.confirmedB) {
        this.#deps.elsewhere?.confirm(pair, pair.next.pwId);
      }
      for (const end of [pair.a, pair.b]) {
        const confirmed = end === pair.a ? pair.next.confirmedA : pair.next.confirmedB;
        if (!confirmed && this.#holds(pair, end)) this.#deps.push(end, pair);
      }
      told += 1;
      if (told >= BATCH) return;
    }
  }

  /** Puts another key in force if a seal of the pair is broken and its key is made here. @returns the pair if it did */
  async #mendIn(
    tx: StoreTransaction,
    { a, b }: PairEnds,
    key: Buffer,
    changed: number,
  ): Promise<ToldPair | undefined> {
    const broken = await tx.anyPair(a, b);
    if (broken === undefined || broken.key !== undefined || broken.maker !== undefined) {
      return undefined;
    }
    const pwId = numberAbove(broken.pwId);
    await tx.replacePair({ a, b }, { key, pwId, reason: 'broken', ...this.#times() }, changed);
    const { askedA, askedB } = broken;
    return { a, b, key, pwId, askedA, askedB, changed, next: undefined };
  }

  async #noteMended(
    tx: StoreTransaction,
    actor: string,
    pairs: readonly ToldPair[],
  ): Promise<void> {
    const [first] = pairs;
    if (first === undefined) return;
    const { audit } = this.#services;
    const detail = { pairs: pairs.length, members: [first.a, first.b], pwId: first.pwId };
    await audit.append(tx, { actor, action: 'pair_mended', outcome: 'done', detail });
  }

  #countMended(pairs: readonly ToldPair[]): void {
    const [first] = pairs;
    if (first === undefined) return;
    const { metrics, log } = this.#services;
    metrics.rekeys.inc({ reason: 'broken', step: 'forced' }, pairs.length);
    log.warn(
      { pairs: pairs.length, members: [first.a, first.b], pwId: first.pwId },
      'pairs whose key in the database was not what was sealed there have another one',
    );
    for (const pair of pairs) this.#waiting.delete(nameOf(pair));
  }

  get #self(): string {
    return typedId('server', this.#services.server);
  }

  /** Another server makes this key, and has told of it. */
  learned(pair: PairKey): void {
    if (pair.next !== undefined) this.#wait(pair, this.#elapsed(), pair.next.reason);
    this.#tell(pair);
  }

  async #isThere(id: Id): Promise<boolean> {
    return this.#deps.isLive(id) || (await this.#deps.elsewhere?.isAround(id)) === true;
  }

  #wait(pair: PairEnds, toldAt: number, reason: string): void {
    if (this.#waiting.size >= MAX_WAITING) {
      this.#services.metrics.rekeys.inc({ reason, step: 'not_watched' });
      return;
    }
    this.#waiting.set(nameOf(pair), { pair: { a: pair.a, b: pair.b }, toldAt });
  }

  #tell(pair: ToldPair): void {
    for (const end of [pair.a, pair.b]) if (this.#holds(pair, end)) this.#deps.push(end, pair);
  }

  /** By the documents' own rule (hold = 0) an end has the key once it asked for it. */
  #holds(pair: Pick<PairKey, 'a' | 'askedA' | 'askedB'>, end: Id): boolean {
    if (this.#services.settings.settings.hold > 0) return true;
    return (end === pair.a ? pair.askedA : pair.askedB) > 0;
  }

  /** Of a generation that comes into force now. */
  #times(): { readonly createdAt: number; readonly dueAt: number } {
    const now = this.#services.now();
    return { createdAt: now, dueAt: this.dueAt(now) };
  }
}

function nameOf({ a, b }: PairEnds): string {
  return `${a} ${b}`;
}

function otherOf({ a, b }: PairEnds, id: Id): Id {
  return id === a ? b : a;
}
