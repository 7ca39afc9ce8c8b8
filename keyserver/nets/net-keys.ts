/**
 * Net keys: one for each pair of linked subnets, made by the key server of the smaller net id, with
 * generations as those of pair keys (docs/protocol.md 9.2). The other subnet's key server is one end, our link
 * ports are the other; at the far side the link ports there confirm to their own server, and that to us.
 *
 *   maker:  in force: n --prepare--> in force: n, next: n+1 --links and the far server confirm--> in force: n+1
 *   far:    learns n and n+1 --its links confirm--> tells the maker --learns that n+1 is in force
 *
 * All state but who confirmed is in the store.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import type { Change, NetSyncAnswer } from '../../src/protocol/messages.js';
import { covers, networkOf, overlap } from '../../src/protocol/prefixes.js';
import { AGAIN, dueAfter, MIN_AGE, Rounds } from '../keys/renewal.js';
import { NotFound, Refusal } from '../refusal.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type { Net } from '../storage/store.js';
import { netChange, netMark } from './net-change.js';

/** Requests of a far key server: so many at once, so many a second. */
export const NET_REQUEST_BURST = 50;
export const NET_REQUESTS_PER_SECOND = 10;
/** No generation is so far ahead of what was made: a server that says so lies. */
const MAX_NET_AHEAD = 1_000_000;

/** Why a generation was made, as the `keys` list shows it. */
export type NetRekeyReason = 'age' | 'operator' | 'restored';

/** What is wanted of the sessions and of the servers that we ask. */
export interface NetKeysDeps {
  /** Link ports with a registered session. */
  links(): Iterable<Id>;
  /** Tells them what became of a net. */
  tellLinks(change: Change): void;
  /** Tells the far key server, if it is there, that it should ask. */
  tellServer(member: Id): void;
  /** Tells the server that made it that our link ports can receive under a next generation. */
  confirmToMaker(net: Id, pwId: number): void;
}

/** What a far key server says and asks. */
export interface NetQuestion {
  readonly net: Id;
  readonly prefixes: readonly string[];
  /** The newest generation that it holds, 0 if none, and a mark of its key. */
  readonly held: number;
  readonly mark?: Uint8Array | undefined;
}

/** What is waited for while a generation is prepared. */
interface Waiting {
  readonly pwId: number;
  toldAt: number;
  /** The far key server has confirmed. */
  far: boolean;
  readonly links: Set<Id>;
}

/** Keeps the net keys of both kinds: those made here, and those that others make. */
export class NetKeys {
  readonly #services: Services;
  readonly #deps: NetKeysDeps;
  readonly #buckets = new TokenBuckets(NET_REQUEST_BURST, NET_REQUESTS_PER_SECOND);
  readonly #waiting = new Map<Id, Waiting>();
  readonly #rounds: Rounds;

  constructor(services: Services, deps: NetKeysDeps) {
    this.#services = services;
    this.#deps = deps;
    this.#rounds = new Rounds(
      () => this.#round(),
      (err) => services.log.warn({ err }, 'net keys were not renewed'),
    );
  }

  close(): void {
    this.#rounds.close();
  }

  /** Prepares what is due, tells again who has not confirmed, commits when nobody is waited for. */
  tick(): Promise<void> {
    return this.#rounds.once();
  }

  /** Tells link ports of a net, and the far server that there is something to ask for. */
  changed(entry: Net): void {
    this.#deps.tellLinks(netChange(entry));
    if (entry.member !== undefined) this.#deps.tellServer(entry.member);
  }

  // ------------------------------------------------------------ asked by a far key server

  /** The far server's question: takes what it says of its net, and answers with the key. @throws Refusal */
  async sync(member: Id, request: NetQuestion): Promise<Omit<NetSyncAnswer, 't' | 'id'>> {
    const { net: own, store, now } = this.#services;
    this.#limit(member);
    await this.#of(store, member, request.net);
    const told = request.prefixes.map(networkOf);
    const { entry, news } = await store.write(async (tx) => {
      let row = await this.#of(tx, member, request.net);
      const newest = row.next?.pwId ?? row.pwId;
      const forgotten = request.held > newest || isAnother(row, request);
      const differs = row.told.join() !== told.join();
      if (!forgotten && !differs) return { entry: row, news: undefined };
      if (request.held - newest > MAX_NET_AHEAD) {
        throw new Refusal('refused', 'net_foreign', 'there was no such generation', {
          id: member,
          net: row.net,
        });
      }
      row = { ...row, told, changed: await tx.nextChange() };
      if (forgotten) {
        // The database was put back, and the far side holds what was made since: go on above it.
        const pwId = Math.max(request.held, newest) + 1;
        row = {
          ...row,
          ...{ key: randomBytes(KEY_SIZE), pwId, oldest: request.held },
          ...{ reason: 'restored', createdAt: now(), dueAt: this.#dueAt(), next: undefined },
        };
      }
      await tx.putNet(row);
      return { entry: row, news: { differs, restored: forgotten } };
    });
    if (news !== undefined) {
      if (news.restored) this.#count('restored', 'forced');
      if (news.differs) this.#judge(member, entry, told);
      this.#deps.tellLinks(netChange(entry));
    }
    const { key, pwId, oldest, next } = entry;
    if (key === undefined) throw new NotFound();
    const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
    return { net: own.id, prefixes: [...own.prefixes], key, pwId, oldest, ...after };
  }

  /** The far server's link ports can receive under a next generation. @throws Refusal */
  async confirmedByServer(member: Id, net: Id, pwId: number): Promise<void> {
    this.#limit(member);
    const entry = await this.#of(this.#services.store, member, net);
    if (entry.next?.pwId !== pwId) return;
    this.#waitFor(net, pwId).far = true;
    await this.#lookAfter(entry);
  }

  /** The far server's operator wants another key. @returns the number of the generation @throws Refusal */
  async renewForServer(member: Id, net: Id, force: boolean): Promise<number> {
    this.#limit(member);
    const entry = await this.#of(this.#services.store, member, net);
    if (this.#services.now() - entry.createdAt < MIN_AGE) {
      throw new Refusal('limit', 'net_rate', 'the net key is too young; wait', { id: member });
    }
    return this.renew(net, 'operator', force);
  }

  // ------------------------------------------------------------------------ made here

  /**
   * Prepares the next generation of a key that is made here, unless there is one already.
   * @param force puts it in force without waiting for anybody
   * @returns its number
   * @throws NotFound
   */
  async renew(net: Id, reason: NetRekeyReason, force: boolean): Promise<number> {
    const { store } = this.#services;
    const entry = await store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.key === undefined || row.member === undefined) throw new NotFound();
      const changed = await tx.nextChange();
      const next = row.next ?? { key: randomBytes(KEY_SIZE), pwId: row.pwId + 1, reason };
      const prepared: Net = { ...row, next, changed };
      const stored = force ? this.#inForce(prepared) : prepared;
      await tx.putNet(stored);
      return stored;
    });
    this.#count(reason, force ? 'forced' : 'prepared');
    if (force) this.#waiting.delete(net);
    else if (entry.next !== undefined) this.#waitFor(net, entry.next.pwId);
    this.changed(entry);
    return entry.next?.pwId ?? entry.pwId;
  }

  // ------------------------------------------------------------------ made by a far server

  /** What the server that makes the key has answered. */
  async learn(net: Id, answer: NetSyncAnswer): Promise<void> {
    const { store, log, metrics } = this.#services;
    const told = answer.prefixes.map(networkOf);
    const { oldest, pwId } = answer;
    const key = Buffer.from(answer.key);
    const entry = await store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.contact === undefined) return undefined;
      if (pwId < row.pwId || (pwId === row.pwId && row.key?.equals(key) === false)) {
        // Put back since it was asked, or worse. It hears what we hold, and goes on above it.
        log.error({ net, pwId, held: row.pwId }, 'a key server tells an older or another net key');
        return undefined;
      }
      const next =
        answer.next === undefined
          ? undefined
          : {
              key: Buffer.from(answer.next.key),
              pwId: answer.next.pwId,
              reason: 'learned',
            };
      const same =
        row.key !== undefined &&
        row.pwId === pwId &&
        row.oldest === oldest &&
        row.next?.pwId === next?.pwId &&
        row.told.join() === told.join();
      if (same) return undefined;
      const since = row.pwId === pwId ? {} : { createdAt: this.#services.now(), reason: 'learned' };
      const changed = await tx.nextChange();
      const learned: Net = { ...row, ...since, told, key, pwId, oldest, next, changed };
      await tx.putNet(learned);
      return { row, learned };
    });
    if (entry === undefined) return;
    const { row, learned } = entry;
    if (row.pwId !== pwId) metrics.netRekeys.inc({ reason: 'learned', step: 'learned' });
    if (row.told.join() !== told.join()) this.#judge(net, learned, told);
    this.#deps.tellLinks(netChange(learned));
    if (learned.next === undefined) this.#waiting.delete(net);
    else await this.#lookAfter(learned);
  }

  // ------------------------------------------------------------------------------ both

  /** A link port can receive under next generations. */
  async confirmedByLink(
    id: Id,
    nets: readonly { readonly net: Id; readonly pwId: number }[],
  ): Promise<void> {
    for (const { net, pwId } of nets) {
      const entry = await this.#services.store.net(net);
      if (entry?.next?.pwId !== pwId) continue;
      this.#waitFor(net, pwId).links.add(id);
      await this.#lookAfter(entry);
    }
  }

  async #round(): Promise<void> {
    const { store, now } = this.#services;
    for (const entry of await store.nets()) {
      const { net, key, member, next, dueAt } = entry;
      if (key === undefined) continue;
      if (next !== undefined) await this.#lookAfter(entry);
      else if (member !== undefined && dueAt > 0 && dueAt <= now()) {
        await this.renew(net, 'age', false);
      }
    }
  }

  /** Goes on with a prepared generation as far as those allow who have confirmed. */
  async #lookAfter(entry: Net): Promise<void> {
    const { net, next, member } = entry;
    if (next === undefined) return;
    const { now } = this.#services;
    const waiting = this.#waitFor(net, next.pwId);
    const missing = [...this.#deps.links()].filter((id) => !waiting.links.has(id));
    if (missing.length === 0 && member !== undefined && waiting.far) {
      await this.#commit(net, next.pwId);
      return;
    }
    const due = now() - waiting.toldAt >= AGAIN;
    // What our links can receive is news for the maker at once, and again until it is in force.
    if (missing.length === 0 && member === undefined && (due || !waiting.far)) {
      waiting.far = true;
      waiting.toldAt = now();
      this.#deps.confirmToMaker(net, next.pwId);
      return;
    }
    if (!due) return;
    waiting.toldAt = now();
    if (missing.length > 0) this.#deps.tellLinks(netChange(entry));
    if (member !== undefined && !waiting.far) this.#deps.tellServer(member);
  }

  async #commit(net: Id, pwId: number): Promise<void> {
    const entry = await this.#services.store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.member === undefined || row.next?.pwId !== pwId) return undefined;
      const committed = this.#inForce({ ...row, changed: await tx.nextChange() });
      await tx.putNet(committed);
      return committed;
    });
    this.#waiting.delete(net);
    if (entry === undefined) return;
    this.#count(entry.reason, 'committed');
    this.changed(entry);
  }

  /** The generation before may be heard for the grace period that its holders count. */
  #inForce(row: Net): Net {
    const { next } = row;
    if (next === undefined) return row;
    return {
      ...row,
      ...{ key: next.key, pwId: next.pwId, reason: next.reason, oldest: row.pwId },
      ...{ createdAt: this.#services.now(), dueAt: this.#dueAt(), next: undefined },
    };
  }

  #waitFor(net: Id, pwId: number): Waiting {
    const known = this.#waiting.get(net);
    if (known?.pwId === pwId) return known;
    const waiting = { pwId, toldAt: this.#services.now(), far: false, links: new Set<Id>() };
    this.#waiting.set(net, waiting);
    return waiting;
  }

  #dueAt(): number {
    const { settings, now } = this.#services;
    return dueAfter(settings.settings.rekeySeconds * 1_000, now(), Math.random);
  }

  async #of(from: { net(id: Id): Promise<Net | undefined> }, member: Id, net: Id): Promise<Net> {
    const entry = await from.net(net);
    if (entry?.member === member) return entry;
    throw new Refusal('refused', 'net_foreign', 'you do not speak for that net', {
      id: member,
      net,
    });
  }

  #limit(member: Id): void {
    if (this.#buckets.take(member, this.#services.now())) return;
    throw new Refusal('limit', 'net_rate', 'too many requests about nets; wait', { id: member });
  }

  /** Prefixes that a far server claims and that can't be behind its net: nothing comes of them, but it is told. */
  #judge(actor: Id, { net, local }: Net, told: readonly string[]): void {
    const { net: own, audit, metrics, log } = this.#services;
    const wrong = told.filter(
      (prefix) =>
        own.prefixes.some((ours) => overlap(ours, prefix)) ||
        !local.some((allowed) => covers(allowed, prefix)),
    );
    if (wrong.length === 0) return;
    const prefixes = wrong.slice(0, 8).join(' ');
    const refusal = new Refusal('refused', 'net_prefix', 'prefixes that are not behind that net', {
      net,
      prefixes,
    });
    metrics.refusals.inc({ kind: refusal.kind });
    audit.refused(actor, refusal, net);
    log.warn({ net, prefixes }, 'a key server claims prefixes that can not be behind its net');
  }

  #count(reason: string, step: string): void {
    this.#services.metrics.netRekeys.inc({ reason, step });
  }
}

/** True if the far side holds another key under a number that was made here. */
function isAnother({ key, pwId, next }: Net, { held, mark }: NetQuestion): boolean {
  const own = held === pwId ? key : held === next?.pwId ? next.key : undefined;
  return own !== undefined && mark !== undefined && !timingSafeEqual(netMark(own), mark);
}
