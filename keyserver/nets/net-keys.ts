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
import type { NetFar, NetPorts, NetSyncAnswer } from '../../src/protocol/messages.js';
import { covers, networkOf, overlap } from '../../src/protocol/prefixes.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { AGAIN, MIN_AGE, Rounds } from '../keys/renewal.js';
import { NotFound, NotYet, Refusal } from '../refusal.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type { Net, NetContact } from '../storage/store.js';
import { type NetChange, netChange, netMark } from './net-change.js';
import { inForceNow, madeNow, mendNets } from './net-members.js';
import { isSameFar, isSameSubnet, ownPorts, portsIn, prefixesFor } from './net-ports.js';
import { keptAhead, linkAhead } from './net-time.js';

/** Requests of a far key server: so many at once, so many a second. */
export const NET_REQUEST_BURST = 50;
export const NET_REQUESTS_PER_SECOND = 10;
/** No generation is so far ahead of the last one that was known: a server that says so lies. */
const MAX_NET_AHEAD = 1_000_000;
/** Generations that a far server makes us put above what it holds: so many at once, then one in so many seconds. */
export const NET_RESTORE_BURST = 3;
export const NET_RESTORES_PER_SECOND = 0.1;
/** Who has not confirmed after so long is named in the log, ms. */
const SLOW = 60_000;

/** Why a generation was made, as the `keys` list shows it. */
export type NetRekeyReason = 'age' | 'operator' | 'restored';

/** What is wanted of the sessions and of the servers that we ask. */
export interface NetKeysDeps {
  /** Tells them what became of a net. */
  tellLinks(change: NetChange): void;
  /** Tells the far key server, if it is there, that it should ask. */
  tellServer(member: Id): void;
  /** Tells the server that made it that our link ports can receive under a next generation. */
  confirmToMaker(net: Id, pwId: number): void;
  /** Asks those who make keys of nets for them. */
  askMakers(): void;
}

/** What a far key server says and asks. */
export interface NetQuestion extends NetPorts {
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
  namedAt: number;
  /** The far key server has confirmed. */
  far: boolean;
  readonly links: Set<Id>;
}

/** Keeps the net keys of both kinds: those made here, and those that others make. */
export class NetKeys {
  readonly #services: Services;
  readonly #deps: NetKeysDeps;
  readonly #buckets = new TokenBuckets(NET_REQUEST_BURST, NET_REQUESTS_PER_SECOND);
  readonly #restores = new TokenBuckets(NET_RESTORE_BURST, NET_RESTORES_PER_SECOND);
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

  /** Tells link ports of a net, and the far server that there is something to ask for. */
  changed(entry: Net): void {
    this.tellLinks(entry);
    if (entry.member !== undefined) this.#deps.tellServer(entry.member);
  }

  // ------------------------------------------------------------ asked by a far key server

  /** The far server's question: takes what it says of its net, and answers with the key. @throws Refusal */
  async sync(member: Id, request: NetQuestion): Promise<Omit<NetSyncAnswer, 't' | 'id'>> {
    const { net: own, store, now, audit } = this.#services;
    this.#limit(member);
    const far = portsIn(request);
    requireSameSubnet(member, await this.#of(store, member, request.net), far);
    // A database that was put back may have forgotten that this server was revoked.
    if ((await store.counters()).putBack) throw new NotYet();
    const told = request.prefixes.map(networkOf);
    const { entry, news } = await store.write(async (tx) => {
      let row = await this.#of(tx, member, request.net);
      requireSameSubnet(member, row, far);
      const newest = row.next?.pwId ?? row.pwId;
      // It has said that the link has ended, and here it is again.
      const again = row.key === undefined;
      const forgotten = !again && (request.held > newest || isAnother(row, request));
      const differs = row.told.join() !== told.join();
      if (!again && !forgotten && !differs && isSameFar(row.far, far)) {
        return { entry: row, news: undefined };
      }
      if (request.held - newest > MAX_NET_AHEAD) {
        throw new Refusal('refused', 'net_foreign', 'there was no such generation', {
          id: member,
          net: row.net,
        });
      }
      if ((again || forgotten) && !this.#restores.take(member, now())) throw tooOften(member);
      row = { ...row, told, far, changed: await tx.nextChange() };
      if (again) {
        const pwId = Math.max(request.held, newest) + 1;
        row = { ...row, ...madeNow(this.#services), pwId, oldest: pwId, reason: 'first' };
      }
      if (forgotten) {
        // The database was put back, and the far side holds what was made since: go on above it.
        const pwId = Math.max(request.held, newest) + 1;
        row = {
          ...row,
          ...madeNow(this.#services),
          ...{ pwId, oldest: request.held, reason: 'restored' },
        };
        await audit.append(tx, {
          actor: member,
          action: 'net_restore',
          outcome: 'done',
          detail: { net: row.net, held: request.held, pwId },
        });
      }
      await tx.putNet(row);
      return { entry: row, news: { differs, restored: forgotten, again } };
    });
    if (news !== undefined) {
      if (news.restored) this.#count('restored', 'forced');
      if (news.again) this.#count('first', 'made');
      if (news.differs) this.#judge(member, entry, told);
      this.tellLinks(entry);
    }
    const { key, pwId, oldest, next } = entry;
    if (key === undefined) throw new NotFound();
    const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
    const ports = await ownPorts(this.#services, request.net);
    const prefixes = prefixesFor(this.#services, request.net);
    const time = { ahead: linkAhead(await store.nets()) };
    return { net: own.id, prefixes, ...time, key, pwId, oldest, ...after, ...ports };
  }

  /** The far server's link ports can receive under a next generation. @throws Refusal */
  async confirmedByServer(member: Id, net: Id, pwId: number): Promise<void> {
    this.#limit(member);
    const entry = await this.#of(this.#services.store, member, net);
    if (entry.next?.pwId !== pwId) return;
    this.#waitFor(net, pwId).far = true;
    await this.#lookAfter(net);
  }

  /** The far server's operator wants another key. @returns the number of the generation @throws Refusal */
  async renewForServer(member: Id, net: Id, force: boolean): Promise<number> {
    this.#limit(member);
    await this.#of(this.#services.store, member, net);
    return this.renew(net, 'operator', force, member);
  }

  /** The far server's operator has ended the link: our link ports forget the key. Its next question would be a new beginning. @throws Refusal */
  async endedByServer(member: Id, net: Id): Promise<void> {
    const { store, audit, log } = this.#services;
    this.#limit(member);
    const entry = await store.write(async (tx) => {
      const row = await this.#of(tx, member, net);
      if (row.key === undefined) return undefined;
      // Also a number that was only prepared has been given to a key. Of the subnet and its operator the word of
      // before holds on.
      const pwId = row.next?.pwId ?? row.pwId;
      const far = row.far === undefined ? undefined : { ...row.far, ports: [] };
      const changed = await tx.nextChange();
      const ended: Net = { ...row, key: undefined, next: undefined, pwId, far, changed };
      await tx.putNet(ended);
      const detail = { net };
      await audit.append(tx, { actor: member, action: 'net_end', outcome: 'done', detail });
      return ended;
    });
    if (entry === undefined) return;
    this.#waiting.delete(net);
    log.info({ net, member }, 'the key server of another subnet has ended the link');
    this.tellLinks(entry);
  }

  // ------------------------------------------------------------------------ made here

  /**
   * Prepares the next generation of a key that is made here, unless there is one already.
   * @param force puts it in force without waiting for anybody
   * @param far the far server, if it wants this: of a young key it gets none
   * @returns its number
   * @throws NotFound, Refusal
   */
  async renew(net: Id, reason: NetRekeyReason, force: boolean, far?: Id): Promise<number> {
    const { store, now, audit } = this.#services;
    const { entry, fresh } = await store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.key === undefined || row.member === undefined) throw new NotFound();
      if (row.next !== undefined && !force) return { entry: row, fresh: false };
      if (far !== undefined) {
        if (now() - row.createdAt < MIN_AGE) throw tooOften(far);
        const detail = { net, force };
        await audit.append(tx, { actor: far, action: 'rekey', outcome: 'done', detail });
      }
      const changed = await tx.nextChange();
      const next = row.next ?? { key: randomBytes(KEY_SIZE), pwId: row.pwId + 1, reason };
      const prepared: Net = { ...row, next, changed };
      const stored = force ? this.#inForce(prepared) : prepared;
      await tx.putNet(stored);
      return { entry: stored, fresh: true };
    });
    if (!fresh) return entry.next?.pwId ?? entry.pwId;
    this.#count(reason, force ? 'forced' : 'prepared');
    if (force) this.#waiting.delete(net);
    else if (entry.next !== undefined) this.#waitFor(net, entry.next.pwId);
    this.changed(entry);
    return entry.next?.pwId ?? entry.pwId;
  }

  // ------------------------------------------------------------------ made by a far server

  /**
   * What the server that makes the key has answered.
   * @param contact whom we asked
   * @param skewMs how far its clock is ahead of ours; undefined if that is not known
   * @throws PairwireError if it tells an older key, or another one of the same number: it was put back since it was
   * asked, or worse. It hears with the next question what we hold, and goes on above it.
   */
  async learn(
    net: Id,
    contact: NetContact,
    answer: NetSyncAnswer,
    skewMs: number | undefined,
  ): Promise<void> {
    const { store, metrics } = this.#services;
    const told = answer.prefixes.map(networkOf);
    const { oldest, pwId } = answer;
    const key = Buffer.from(answer.key);
    const ports = portsIn(answer);
    if (!isSameSubnet(contact, ports)) {
      throw new PairwireError('REFUSED', 'it speaks for another subnet or operator', {
        where: net,
      });
    }
    const entry = await store.write(async (tx) => {
      const row = await tx.net(net);
      if (row === undefined || !isSameContact(row.contact, contact)) return undefined;
      const measured = skewMs === undefined ? undefined : skewMs + (answer.ahead ?? 0);
      const ahead = keptAhead(row.far?.ahead, measured);
      const far: NetFar = ahead === undefined ? ports : { ...ports, ahead };
      const another = pwId === row.pwId && row.key?.equals(key) === false;
      const order = answer.next === undefined || answer.next.pwId === pwId + 1;
      if (
        pwId < row.pwId ||
        pwId - row.pwId > MAX_NET_AHEAD ||
        another ||
        !order ||
        oldest > pwId
      ) {
        throw new PairwireError('REFUSED', 'it tells a net key that can not be', { where: net });
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
        row.told.join() === told.join() &&
        isSameFar(row.far, far);
      if (same) return undefined;
      const since = row.pwId === pwId ? {} : { createdAt: this.#services.now(), reason: 'learned' };
      const changed = await tx.nextChange();
      const learned: Net = { ...row, ...since, told, far, key, pwId, oldest, next, changed };
      await tx.putNet(learned);
      return { row, learned };
    });
    if (entry === undefined) return;
    const { row, learned } = entry;
    if (row.pwId !== pwId) metrics.netRekeys.inc({ reason: 'learned', step: 'learned' });
    if (row.told.join() !== told.join()) this.#judge(net, learned, told);
    this.tellLinks(learned);
    if (row.far?.ahead !== learned.far?.ahead) await this.#tellTime();
    if (learned.next === undefined) this.#waiting.delete(net);
    else await this.#lookAfter(net);
  }

  // ------------------------------------------------------------------------------ both

  /** Gives nets with a broken seal another key, or has it told anew. @returns which */
  async mend(actor: string, which?: readonly Id[]): Promise<readonly Id[]> {
    const { store, log } = this.#services;
    const mended = await store.write((tx) => mendNets(tx, this.#services, actor, which));
    if (mended.length === 0) return [];
    for (const entry of mended) {
      this.#waiting.delete(entry.net);
      this.#count('broken', entry.key === undefined ? 'forgotten' : 'forced');
      this.changed(entry);
    }
    this.#deps.askMakers();
    const nets = mended.map(({ net }) => net);
    log.warn({ nets }, 'keys of nets that were not what had been sealed there are replaced');
    return nets;
  }

  /** Those who ask us may go by our time, and that has changed. */
  async #tellTime(): Promise<void> {
    for (const { member, key } of await this.#services.store.nets()) {
      if (member !== undefined && key !== undefined) this.#deps.tellServer(member);
    }
  }

  /** A link port can receive under next generations. */
  async confirmedByLink(
    id: Id,
    nets: readonly { readonly net: Id; readonly pwId: number }[],
  ): Promise<void> {
    for (const { net, pwId } of nets) {
      const entry = await this.#services.store.net(net);
      if (entry?.next?.pwId !== pwId) continue;
      this.#waitFor(net, pwId).links.add(id);
      await this.#lookAfter(net);
    }
  }

  /** Prepares what is due, tells again who has not confirmed, commits when nobody is waited for. */
  async #round(): Promise<void> {
    const { store, now } = this.#services;
    const all = await store.anyNets();
    if (all.some((entry) => 'isBroken' in entry)) await this.mend('-');
    for (const entry of all) {
      const { net, key, member, next, dueAt } = entry;
      if (key === undefined) continue;
      if (next !== undefined) await this.#lookAfter(net);
      else if (member !== undefined && dueAt > 0 && dueAt <= now()) {
        await this.renew(net, 'age', false);
      }
    }
  }

  /** Goes on with a prepared generation as far as those allow who have confirmed. */
  async #lookAfter(net: Id): Promise<void> {
    const { now, store, log } = this.#services;
    // Also who is away for a moment counts, and who has not come back yet since this server started.
    const links = await store.linksOnline();
    const entry = await store.net(net);
    if (entry?.next === undefined) return;
    const { next, member } = entry;
    const waiting = this.#waitFor(net, next.pwId);
    const missing = links.filter((id) => !waiting.links.has(id));
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
    if (missing.length > 0) this.tellLinks(entry);
    if (member !== undefined && !waiting.far) this.#deps.tellServer(member);
    if (now() - waiting.namedAt < SLOW) return;
    waiting.namedAt = now();
    const far = member !== undefined && !waiting.far ? { server: member } : {};
    log.warn(
      { net, pwId: next.pwId, members: missing.slice(0, 20), ...far },
      'a net key waits for those who have not confirmed it',
    );
  }

  async #commit(net: Id, pwId: number): Promise<void> {
    const entry = await this.#services.store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.member === undefined || row.next?.pwId !== pwId) return undefined;
      const committed = this.#inForce({ ...row, changed: await tx.nextChange() });
      await tx.putNet(committed);
      return committed;
    });
    if (entry === undefined) return;
    if (this.#waiting.get(net)?.pwId === pwId) this.#waiting.delete(net);
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
      ...inForceNow(this.#services),
    };
  }

  #waitFor(net: Id, pwId: number): Waiting {
    const known = this.#waiting.get(net);
    if (known?.pwId === pwId) return known;
    const now = this.#services.now();
    const waiting = { pwId, toldAt: now, namedAt: now, far: false, links: new Set<Id>() };
    this.#waiting.set(net, waiting);
    return waiting;
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
    throw tooOften(member);
  }

  /** Tells our link ports of a net. */
  tellLinks(entry: Net): void {
    this.#deps.tellLinks(netChange(entry, this.#services.net));
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

/** The word of a far server about its subnet and operator holds as long as it is the one that speaks for that net. */
function requireSameSubnet(member: Id, { net, far: known }: Net, far: NetPorts): void {
  if (known === undefined || isSameSubnet(known, far)) return;
  throw new Refusal('refused', 'net_foreign', 'that net has another subnet or operator', {
    id: member,
    net,
  });
}

function tooOften(member: Id): Refusal {
  return new Refusal('limit', 'net_rate', 'too much about nets; wait', { id: member });
}

/** True if a row still names the server that was asked. */
function isSameContact(stored: NetContact | undefined, asked: NetContact): boolean {
  return (
    stored !== undefined &&
    stored.subnet === asked.subnet &&
    stored.member === asked.member &&
    Buffer.compare(stored.operator, asked.operator) === 0
  );
}
