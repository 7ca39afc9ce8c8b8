/**
 * Pushes: what changed, told to whom it concerns, in batches. They are hints: whoever misses
 * one has the same by its next sync, so they may be late, doubled or dropped.
 */
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import { type Change, MAX_ROWS } from '../../src/protocol/messages.js';
import type { Signed } from '../../src/protocol/signed.js';
import { peerRecordSize } from '../registry/peer-record.js';
import { mayPairIds } from '../registry/policy.js';
import type { Services } from '../services.js';
import { pairName } from '../storage/member-cache.js';
import type { Member, PairKey, ToldPair } from '../storage/store.js';
import { BATCH_BYTES, groupChange, memberChange, pairChange, revokedChange } from './collect.js';
import { BINDING_BYTES, bindingChange } from './collect-bindings.js';
import {
  BEHIND_BYTES,
  behindChange,
  dealingWithPlain,
  OWN_BYTES,
  ownChange,
} from './collect-plain.js';

/**
 * Changes of so many milliseconds go out together; after a round of many messages of more of them, because then each
 * member has more to hear, and one message costs nearly as much as a long one.
 */
const FLUSH_MS = 20;
const FLUSH_MS_PER_MESSAGE = 0.2;
const FLUSH_MS_BUSY = 250;
/** After so many messages (10 to 20 ms) what was sealed leaves, and requests have their turn. */
const MESSAGES_AT_ONCE = 256;
export const MAX_INTRODUCED = 4_096;

/** A session as far as pushes go. */
export interface HintTarget {
  /** It has asked for its state, so it knows what came before. */
  readonly synced: boolean;
  /** Who was introduced to it, and as of which change. */
  readonly introduced: Map<Id, number>;
  push(message: { readonly t: string; readonly [key: string]: unknown }, key?: string): void;
}

/** The sessions there are, by member. */
export interface HintTargets {
  get(member: string): HintTarget | undefined;
  all(): Iterable<readonly [string, HintTarget]>;
}

/** A pair key with the next one, about. */
const PAIR_BYTES = 192;

const NO_PAIRS: ReadonlyMap<string, ToldPair> = new Map();

/** Collects what changed and pushes it. */
export class Hints {
  readonly #services: Services;
  readonly #targets: HintTargets;
  readonly #onChange: () => void;
  readonly #members = new Set<Id>();
  readonly #pairs = new Map<Id, Map<string, ToldPair>>();
  readonly #revoked = new Set<Id>();
  /** Whom to tell of the group key; undefined: everybody who holds it. */
  #group: Set<Id> | undefined = new Set();
  #settings = false;
  #head = false;
  /** Members' own addresses that are new or freed. */
  readonly #own = new Set<MacAddress>();
  /** Addresses outside whose place has changed: `VLAN MAC`. */
  readonly #behind = new Map<string, { readonly vlan: number; readonly mac: MacAddress }>();
  /** IP addresses that another announces from now on, or anybody. */
  readonly #bindings = new Set<string>();
  #timer: NodeJS.Timeout | undefined;
  /** Messages of this round. */
  #pushed = 0;
  #closed = false;

  /** @param onChange is told that something has changed, before anybody is told what */
  constructor(services: Services, targets: HintTargets, onChange: () => void = () => {}) {
    this.#services = services;
    this.#targets = targets;
    this.#onChange = onChange;
  }

  memberChanged(id: Id): void {
    this.#members.add(id);
    this.#schedule();
  }

  settingsChanged(): void {
    this.#settings = true;
    this.#schedule();
  }

  /** Tells everybody of the head of the audit log. */
  headSigned(): void {
    this.#head = true;
    this.#schedule(false);
  }

  /**
   * Tells `to` at once of a member that is about to send to it, and of their key, so that its
   * frames don't come as a surprise (C10). Nothing is sent twice.
   */
  introduce(to: Id, about: Member, pair: PairKey): void {
    const target = this.#targets.get(to);
    if (target === undefined) {
      // It may be at home at another server.
      this.#onChange();
      return;
    }
    const seq = Math.max(about.changed, pair.changed);
    if ((target.introduced.get(about.id) ?? 0) >= seq) return;
    if (target.introduced.size >= MAX_INTRODUCED) target.introduced.clear();
    target.introduced.set(about.id, seq);
    this.#push(target, [memberChange(about, about.changed), pairChange(pair, to)]);
    this.#services.metrics.introductions.inc();
  }

  /** Tells an end of a pair of its key and of the next one; with what else is due to it soon. */
  pairChanged(to: Id, pair: ToldPair): void {
    const list = this.#pairs.get(to) ?? new Map<string, ToldPair>();
    this.#pairs.set(to, list.set(pairName(pair.a, pair.b), pair));
    this.#schedule();
  }

  /** Tells everybody who holds the group key of it and of the next one, or `to` alone. */
  groupChanged(to?: Id): void {
    if (to === undefined) this.#group = undefined;
    else this.#group?.add(to);
    this.#schedule();
  }

  /** Tells those who deal with plain ports that an address became, or ceased to be, a member's own. */
  ownChanged(mac: MacAddress): void {
    this.#own.add(mac);
    this.#schedule();
  }

  /** Tells them that an address outside is behind another port, or none. */
  behindChanged(vlan: number, mac: MacAddress): void {
    this.#behind.set(`${vlan} ${mac}`, { vlan, mac });
    this.#schedule();
  }

  /** Tells everybody who announces an IP address from now on. */
  bindingChanged(ip: string): void {
    this.#bindings.add(ip);
    this.#schedule();
  }

  /** Tells everybody that a member was revoked. */
  revoked(id: Id): void {
    this.#members.delete(id);
    this.#revoked.add(id);
    this.#schedule();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #schedule(isState = true): void {
    if (this.#closed) return;
    if (isState) this.#onChange();
    const delay = Math.min(FLUSH_MS_BUSY, FLUSH_MS + this.#pushed * FLUSH_MS_PER_MESSAGE);
    this.#timer ??= setTimeout(() => {
      this.#pushed = 0;
      this.#flush()
        .catch((err: unknown) => this.#services.log.warn({ err }, 'changes were not pushed'))
        .finally(() => {
          this.#timer = undefined;
          if (this.#waiting()) this.#schedule();
        });
    }, delay);
  }

  #waiting(): boolean {
    const group = this.#group === undefined || this.#group.size > 0;
    const { size } = this.#revoked;
    if (this.#head) return true;
    if (this.#own.size + this.#behind.size + this.#bindings.size > 0) return true;
    return this.#members.size > 0 || this.#pairs.size > 0 || size > 0 || group || this.#settings;
  }

  async #flush(): Promise<void> {
    const { store, settings } = this.#services;
    const revoked = [...this.#revoked];
    this.#revoked.clear();
    const groupTo = this.#group;
    this.#group = new Set();
    const ids = [...this.#members];
    this.#members.clear();
    const pairs = new Map(this.#pairs);
    this.#pairs.clear();
    const common: Sized[] = [];
    if (this.#settings) {
      this.#settings = false;
      const { record, changed } = settings.inForce;
      common.push({
        change: { kind: 'settings', seq: changed, settings: record },
        bytes: record.b.length,
      });
    }
    const head = this.#head ? this.#services.audit.head : undefined;
    this.#head = false;
    for (const id of revoked) {
      const revocation = await store.revocationOf(id);
      if (revocation !== undefined) common.push({ change: revokedChange(revocation), bytes: 64 });
    }
    for (const ip of [...this.#bindings]) {
      this.#bindings.delete(ip);
      const entry = await store.binding(ip);
      if (entry !== undefined) common.push({ change: bindingChange(entry), bytes: BINDING_BYTES });
    }
    const found =
      groupTo === undefined || groupTo.size > 0 ? await store.anyGroup(GROUP_ID) : undefined;
    // One with a broken seal is told to nobody, and must not keep the rest from anybody.
    const group = found?.key === undefined ? undefined : found;
    const { talkers } = await store.counters();
    const all = settings.showsAll(talkers);
    const own = new Map<string, Sized[]>();
    for (const id of ids) {
      const member = await store.member(id);
      if (member?.state !== 'active') continue;
      const item = {
        change: memberChange(member, member.changed),
        bytes: peerRecordSize(member),
        about: id,
      };
      if (all) {
        common.push(item);
        continue;
      }
      for (const peer of await store.peersOf(id)) {
        if (this.#targets.get(peer) === undefined) continue;
        const list = own.get(peer) ?? [];
        list.push(item);
        own.set(peer, list);
      }
    }
    const plain = await this.#plainChanges();
    const told = plain.length > 0 ? await dealingWithPlain(store) : new Set<Id>();
    if (this.#closed) return;
    // What concerns few must not cost a look at everybody.
    const few = common.length === 0 && group === undefined && head === undefined;
    const concerned = few ? new Set([...own.keys(), ...pairs.keys(), ...told]) : undefined;
    let pauseAt = this.#pushed + MESSAGES_AT_ONCE;
    for (const [name, target] of this.#targetsOf(concerned)) {
      if (this.#pushed >= pauseAt) {
        await new Promise(setImmediate);
        if (this.#closed) return;
        pauseAt = this.#pushed + MESSAGES_AT_ONCE;
      }
      if (!target.synced) continue;
      const id = name as Id;
      const keys = [...this.#pairsOf(id, pairs).values()].map(
        (pair): Sized => ({
          change: pairChange(pair, id),
          bytes: PAIR_BYTES,
          about: pair.a === id ? pair.b : pair.a,
        }),
      );
      const forAll = [...common];
      if (group !== undefined && (groupTo?.has(id) ?? true) && (await this.#holdsGroup(id))) {
        forAll.push({ change: groupChange(group, group.changed), bytes: PAIR_BYTES });
      }
      if (told.has(id)) forAll.push(...plain);
      const items: Sized[] = [];
      for (const item of [...forAll, ...(own.get(id) ?? []), ...keys]) {
        const { about } = item;
        if (about === id) continue;
        const { policy } = settings.settings;
        if (about === undefined || (await mayPairIds(store, policy, id, about))) items.push(item);
      }
      let untold = head;
      for (const batch of batches(items)) {
        this.#push(target, batch, untold);
        untold = undefined;
      }
      if (untold !== undefined) this.#push(target, [], untold);
    }
  }

  /** The pairs that a member is to be told of, those included that have changed since the round began. */
  #pairsOf(
    id: Id,
    before: ReadonlyMap<Id, ReadonlyMap<string, ToldPair>>,
  ): ReadonlyMap<string, ToldPair> {
    const since = this.#pairs.get(id);
    this.#pairs.delete(id);
    const known = before.get(id);
    if (known === undefined || since === undefined) return known ?? since ?? NO_PAIRS;
    return new Map([...known, ...since]);
  }

  *#targetsOf(ids: Iterable<string> | undefined): Iterable<readonly [string, HintTarget]> {
    if (ids === undefined) {
      yield* this.#targets.all();
      return;
    }
    for (const id of ids) {
      const target = this.#targets.get(id);
      if (target !== undefined) yield [id, target];
    }
  }

  async #plainChanges(): Promise<readonly Sized[]> {
    const { store, now } = this.#services;
    const own = [...this.#own];
    const behind = [...this.#behind.values()];
    this.#own.clear();
    this.#behind.clear();
    const items: Sized[] = [];
    for (const mac of own) {
      const change = ownChange(await store.macEntries(mac));
      if (change !== undefined) items.push({ change, bytes: OWN_BYTES });
    }
    for (const { vlan, mac } of behind) {
      const entry = await store.learned(vlan, mac);
      if (entry === undefined) continue;
      items.push({ change: behindChange(entry, now()), bytes: BEHIND_BYTES });
    }
    return items;
  }

  /** With hold = 0 who has asked for it; never who was revoked while this was prepared. */
  async #holdsGroup(id: Id): Promise<boolean> {
    const { store, settings } = this.#services;
    const member = await store.member(id);
    if (member?.state !== 'active') return false;
    return settings.settings.hold > 0 || member.groupAsked > 0;
  }

  #push(target: HintTarget, changes: readonly Change[], head?: Signed): void {
    if (changes.length === 0 && head === undefined) return;
    const { epoch } = this.#services.store.meta;
    const audit = head === undefined ? {} : { audit: head };
    target.push({ t: 'changes', epoch, changes, ...audit }, superseding(changes, head));
    this.#pushed += 1;
    this.#services.metrics.hints.inc(changes.length);
  }
}

interface Sized {
  readonly change: Change;
  readonly bytes: number;
  readonly about?: Id;
}

/** What waits under this name is made superfluous by the next of it: a single record, or a head by itself. */
function superseding(changes: readonly Change[], head: Signed | undefined): string | undefined {
  const [first] = changes;
  if (first === undefined) return 'audit';
  if (changes.length > 1 || head !== undefined || first.kind !== 'member') return undefined;
  return `member ${first.member.id}`;
}

/** Cuts into messages. */
function* batches(items: readonly Sized[]): Iterable<readonly Change[]> {
  let batch: Change[] = [];
  let bytes = 0;
  for (const item of items) {
    if (batch.length === MAX_ROWS || (batch.length > 0 && bytes + item.bytes > BATCH_BYTES)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(item.change);
    bytes += item.bytes;
  }
  if (batch.length > 0) yield batch;
}
