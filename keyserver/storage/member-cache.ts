/**
 * Members and pair keys as they were last read, so that a key request that was answered
 * before costs no query (about 100 us for its three), and a transaction that only asks whether a
 * member is still one costs none either. Only for a process that is the database's one writer: what a
 * transaction touches is dropped when it has committed, before it is answered, and until then others
 * in its batch read it from the database.
 */
import { type Id, orderedPair } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { Member, PairKey } from './store.js';

/** About 2 KiB for each member and 300 bytes for each pair key. */
export const MAX_MEMBERS = 20_000;
export const MAX_NAMES = 40_000;
export const MAX_PAIRS = 100_000;

/** What a transaction has changed. */
export class Touched {
  readonly members = new Set<Id>();
  readonly macs = new Set<MacAddress>();
  readonly pairs = new Set<string>();
  all = false;
  /** The store's epoch from now on. */
  epoch: Buffer | undefined;

  get changesMembers(): boolean {
    return this.all || this.members.size > 0;
  }

  hasMember(id: Id): boolean {
    return this.all || this.members.has(id);
  }
}

/** Bounded maps; the oldest entry makes room. */
export class MemberCache {
  readonly #members = new Map<Id, Member>();
  readonly #macs = new Map<MacAddress, Id>();
  readonly #indices = new Map<number, Id>();
  readonly #pairs = new Map<string, PairKey>();
  #generation = 0;
  #evicted = 0;

  /** Entries that made room for others since the start. */
  get evicted(): number {
    return this.#evicted;
  }

  /** Counts commits that touched something; what was read under an older one is not kept. */
  get generation(): number {
    return this.#generation;
  }

  member(id: Id): Member | undefined {
    return this.#members.get(id);
  }

  byMac(mac: MacAddress): Member | undefined {
    const id = this.#macs.get(mac);
    return id === undefined ? undefined : this.#members.get(id);
  }

  byIndex(index: number): Member | undefined {
    const id = this.#indices.get(index);
    const member = id === undefined ? undefined : this.#members.get(id);
    return member?.boot?.index === index ? member : undefined;
  }

  pair(a: Id, b: Id): PairKey | undefined {
    return this.#pairs.get(pairName(a, b));
  }

  keepMember(generation: number, member: Member | undefined, mac?: MacAddress): void {
    if (member === undefined || generation !== this.#generation) return;
    this.#put(this.#members, member.id, member, MAX_MEMBERS);
    if (mac !== undefined) this.#put(this.#macs, mac, member.id, MAX_NAMES);
    if (member.boot !== undefined) {
      this.#put(this.#indices, member.boot.index, member.id, MAX_NAMES);
    }
  }

  keepPair(generation: number, pair: PairKey | undefined): void {
    if (pair === undefined || generation !== this.#generation) return;
    this.#put(this.#pairs, pairName(pair.a, pair.b), pair, MAX_PAIRS);
  }

  /** Drops what a committed transaction has changed. */
  drop(touched: Touched): void {
    this.#generation += 1;
    if (touched.all) {
      for (const map of [this.#members, this.#macs, this.#indices, this.#pairs]) map.clear();
      return;
    }
    for (const id of touched.members) this.#members.delete(id);
    for (const mac of touched.macs) this.#macs.delete(mac);
    for (const pair of touched.pairs) this.#pairs.delete(pair);
  }

  #put<K, V>(map: Map<K, V>, key: K, value: V, max: number): void {
    if (map.size >= max && !map.has(key)) {
      for (const oldest of map.keys()) {
        map.delete(oldest);
        this.#evicted += 1;
        break;
      }
    }
    map.set(key, value);
  }
}

export function pairName(a: Id, b: Id): string {
  const [first, second] = orderedPair(a, b);
  return `${first} ${second}`;
}
