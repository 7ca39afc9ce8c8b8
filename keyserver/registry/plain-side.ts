/**
 * Addresses outside, as plain ports report them (docs/protocol.md section 8): which port an address is
 * behind, by (VLAN, MAC).
 *
 *   nobody -- first report --> learned -- newer sighting elsewhere --> learned (moved)
 *     ^                          |  5 moves in 30 s: frozen for 5 min where it was longest
 *     +-- gone, aged, revoked ---+  pinned by the operator: stays
 *
 * A row that is nobody's stays for a while, so that those who were told of it can be told.
 */
import { type Id, typedId } from '../../src/protocol/ids.js';
import { isGroupMac, type MacAddress, macFromBytes } from '../../src/protocol/mac.js';
import type { Request, Sighting } from '../../src/protocol/messages.js';
import { NotFound, Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Learned, StoreTransaction } from '../storage/store.js';
import { counts, isFrozen, isOwned, LEARNED_FOR_MS } from './directory.js';
import { TokenBuckets } from './token-bucket.js';

/** Addresses behind one plain member: new ones are refused then, old ones kept. */
export const MAX_LEARNED = 8_192;
/** Addresses that the operator may ever tie to a member. */
export const MAX_PINS = 1_024;
/** Members whose time with an address is remembered. */
const MAX_HELD = 16;
/** So many moves in so long freeze an address for so long. */
const FLAP_MOVES = 5;
const FLAP_WINDOW_MS = 30_000;
const FROZEN_MS = 300_000;
/** How long a row stays that is nobody's: longer than what was told of it counts. */
const FORGET_AFTER_MS = 2 * LEARNED_FOR_MS;
/** Reports of a member, each of up to 256 addresses: a whole table at once, then so many a second. */
const REPORT_BURST = 64;
const REPORTS_PER_SECOND = 16;
/** Addresses of a member that nobody had before, gone ones included: else reports and goodbyes in turn would fill the disk. */
const NEW_BURST = 16_384;
const NEW_PER_SECOND = 20;
/** Rows that one round of ageing looks at. */
const AGE_BATCH = 1_000;
const ANY_TIME = Number.MAX_SAFE_INTEGER;

export type LearnedRequest = Extract<Request, { t: 'learned' }>;

/** What became of one sighting. */
type Verdict =
  | 'new'
  | 'refreshed'
  | 'moved'
  | 'flapped'
  /** Another port has seen it later. */
  | 'stale'
  | 'frozen'
  | 'own'
  | 'pinned'
  | 'full'
  | 'group';

/** Reports, pins and ageing. */
export class PlainSide {
  readonly #services: Services;
  readonly #changed: (vlan: number, mac: MacAddress) => void;
  readonly #freed: (mac: MacAddress) => void;
  /** When rows that are nobody's are looked for next. */
  #forgetAt = 0;
  readonly #reports = new TokenBuckets(REPORT_BURST, REPORTS_PER_SECOND);
  readonly #fresh = new TokenBuckets(NEW_BURST, NEW_PER_SECOND);

  /**
   * @param changed is told of each address outside whose place has changed
   * @param freed is told of each address that is no member's own any more
   */
  constructor(
    services: Services,
    changed: (vlan: number, mac: MacAddress) => void,
    freed: (mac: MacAddress) => void,
  ) {
    this.#services = services;
    this.#changed = changed;
    this.#freed = freed;
  }

  /** What a plain member's port has seen. @returns how many entries were not taken. @throws Refusal */
  async report(id: Id, request: LearnedRequest): Promise<number> {
    const { store, now, metrics, audit } = this.#services;
    const time = now();
    if (!this.#reports.take(id, time)) {
      throw new Refusal('limit', 'learned_rate', 'too many reports; wait');
    }
    const { verdicts, changed } = await store.write(async (tx) => {
      const member = await tx.member(id);
      if (member?.state !== 'active' || member.role !== 'plain') {
        throw new Refusal('refused', 'unknown_member', 'not a plain member');
      }
      return this.#take(tx, id, request, time);
    });
    for (const { vlan, mac } of changed) this.#changed(vlan, mac);
    let refused = 0;
    for (const { verdict, sighting } of verdicts) {
      metrics.learned.inc({ result: verdict });
      const kind = REFUSED[verdict];
      if (verdict === 'full' || verdict === 'group' || verdict === 'frozen') refused += 1;
      if (kind === undefined) continue;
      if (verdict !== 'flapped') refused += 1;
      const mac = macFromBytes(sighting.mac);
      const facts = { mac, vlan: sighting.vlan };
      metrics.refusals.inc({ kind });
      // By address alone: each of its VLANs as a source of its own would use up the member's share of the log.
      audit.refused(id, new Refusal('refused', kind, kind, facts), mac);
    }
    return refused;
  }

  /** Ties an address to a plain member, whatever is seen where. @throws NotFound, Refusal */
  async pin(actor: Id, vlan: number, mac: MacAddress, id: Id): Promise<void> {
    const { store, now, audit } = this.#services;
    await store.write(async (tx) => {
      const member = await tx.member(id);
      if (member?.state !== 'active' || member.role !== 'plain') throw new NotFound();
      if (isGroupMac(mac) || (await isOwned(tx, mac))) {
        throw new Refusal('refused', 'pin_address', `${mac} is or was a member's own`, { mac });
      }
      const before = await tx.learned(vlan, mac);
      if (before?.kept !== true && (await tx.countPins()) >= MAX_PINS) {
        throw new Refusal('limit', 'pin_address', `more than ${MAX_PINS} addresses were pinned`);
      }
      const time = now();
      const number = await tx.nextChange();
      await tx.putLearned({
        ...(before ?? blank(vlan, mac, number)),
        member: id,
        since: before?.member === id ? before.since : time,
        refreshed: time,
        frozenUntil: 0,
        moves: [],
        pinned: true,
        kept: true,
        changed: number,
      });
      await audit.append(tx, {
        actor,
        action: 'mac_pin',
        outcome: 'done',
        detail: { vlan, mac, member: typedId('member', id) },
      });
    });
    this.#changed(vlan, mac);
  }

  /** Frees an address: tombstones and pins of it go. @throws NotFound, Refusal for a member's own */
  async free(actor: Id, mac: MacAddress): Promise<{ tombstones: number; pins: number }> {
    const { store, now, audit } = this.#services;
    const { tombstones, pinned } = await store.write(async (tx) => {
      const entries = await tx.macEntries(mac);
      if (entries.some(({ kind }) => kind === 'own')) {
        throw new Refusal('refused', 'free_address', `${mac} is a member's own`, { mac });
      }
      const graves = entries.filter(({ kind }) => kind === 'tombstone');
      const pins = (await tx.learnedAt(mac)).filter(({ pinned: is }) => is);
      if (graves.length + pins.length === 0) throw new NotFound();
      for (const entry of graves) {
        await tx.putMac({ ...entry, kind: 'freed', seenAt: now(), changed: await tx.nextChange() });
      }
      for (const pin of pins) {
        // It is where it was until its port says otherwise, or nothing for long.
        await tx.putLearned({
          ...pin,
          pinned: false,
          refreshed: now(),
          changed: await tx.nextChange(),
        });
      }
      await audit.append(tx, {
        actor,
        action: 'mac_free',
        outcome: 'done',
        detail: { mac, tombstones: graves.length, pins: pins.length },
      });
      return { tombstones: graves.length, pinned: pins };
    });
    if (tombstones > 0) this.#freed(mac);
    for (const { vlan } of pinned) this.#changed(vlan, mac);
    return { tombstones, pins: pinned.length };
  }

  /** Addresses that nobody reports any more are nobody's; frozen ones may move again. */
  async tick(): Promise<void> {
    const { store, now, metrics } = this.#services;
    const time = now();
    const due = [
      ...(await store.learnedBehind(undefined, time - LEARNED_FOR_MS, 1)),
      ...(await store.learnedThawed(time, 1)),
    ];
    if (due.length === 0 && time < this.#forgetAt) return;
    this.#forgetAt = time + LEARNED_FOR_MS;
    const changed = await store.write(async (tx) => {
      const old = await tx.learnedBehind(undefined, time - LEARNED_FOR_MS, AGE_BATCH);
      const aged = old.filter((entry) => !isFrozen(entry, time));
      for (const entry of aged) await dropLearned(tx, entry, time);
      const thawed = await tx.learnedThawed(time, AGE_BATCH);
      for (const entry of thawed) {
        if (aged.some(({ vlan, mac }) => vlan === entry.vlan && mac === entry.mac)) continue;
        await tx.putLearned({
          ...entry,
          frozenUntil: 0,
          moves: [],
          changed: await tx.nextChange(),
        });
      }
      await tx.forgetLearned(time - FORGET_AFTER_MS);
      metrics.learned.inc({ result: 'aged' }, aged.length);
      return [...aged, ...thawed];
    });
    for (const { vlan, mac } of changed) this.#changed(vlan, mac);
  }

  async #take(
    tx: StoreTransaction,
    id: Id,
    { entries, gone }: LearnedRequest,
    time: number,
  ): Promise<{
    readonly verdicts: readonly { readonly verdict: Verdict; readonly sighting: Sighting }[];
    readonly changed: readonly { readonly vlan: number; readonly mac: MacAddress }[];
  }> {
    const verdicts: { verdict: Verdict; sighting: Sighting }[] = [];
    const changed: { vlan: number; mac: MacAddress }[] = [];
    let count = await tx.countLearned(id);
    const room = () => this.#fresh.take(id, time);
    for (const sighting of entries) {
      const { vlan } = sighting;
      const mac = macFromBytes(sighting.mac);
      const { verdict, entry } = await judge(tx, id, sighting, { count, room }, time);
      verdicts.push({ verdict, sighting });
      if (entry === undefined) continue;
      const told = verdict !== 'refreshed';
      if (entry.member === id && verdict !== 'refreshed') count += 1;
      await tx.putLearned({ ...entry, ...(told ? { changed: await tx.nextChange() } : {}) });
      if (told) changed.push({ vlan, mac });
    }
    for (const { vlan, mac: bytes } of gone) {
      const entry = await tx.learned(vlan, macFromBytes(bytes));
      if (entry?.member !== id || entry.pinned || isFrozen(entry, time)) continue;
      await dropLearned(tx, entry, time);
      this.#services.metrics.learned.inc({ result: 'gone' });
      changed.push({ vlan, mac: entry.mac });
    }
    return { verdicts, changed };
  }
}

const REFUSED: Partial<
  Readonly<Record<Verdict, 'learned_own' | 'learned_pinned' | 'address_flaps'>>
> = { own: 'learned_own', pinned: 'learned_pinned', flapped: 'address_flaps' };

/** Makes an address nobody's. */
export async function dropLearned(
  tx: StoreTransaction,
  entry: Learned,
  time: number,
): Promise<void> {
  await tx.putLearned({
    ...entry,
    member: undefined,
    held: heldUntil(entry, time),
    frozenUntil: 0,
    pinned: false,
    refreshed: time,
    changed: await tx.nextChange(),
  });
}

/** Everything behind a member is nobody's: it was revoked. @returns what was */
export async function dropAllBehind(
  tx: StoreTransaction,
  id: Id,
  time: number,
): Promise<readonly Learned[]> {
  const entries = await tx.learnedBehind(id, ANY_TIME, MAX_LEARNED + MAX_PINS);
  for (const entry of entries) await dropLearned(tx, entry, time);
  return entries;
}

/**
 * What a sighting changes.
 * @param member.count addresses that it has already
 * @param member.room whether it may have one that nobody had before
 */
async function judge(
  tx: StoreTransaction,
  id: Id,
  sighting: Sighting,
  { count, room }: { readonly count: number; readonly room: () => boolean },
  time: number,
): Promise<{ readonly verdict: Verdict; readonly entry?: Learned }> {
  const { vlan, seq, ago } = sighting;
  const mac = macFromBytes(sighting.mac);
  if (isGroupMac(mac) || mac === '00:00:00:00:00:00') return { verdict: 'group' };
  const sighted = time - ago;
  if (await isOwned(tx, mac)) return { verdict: 'own' };
  const before = await tx.learned(vlan, mac);
  if (before !== undefined && before.member === id) {
    const late = seq <= before.sighting && sighted <= before.sighted;
    const newest = late ? {} : { sighted: Math.max(sighted, before.sighted), sighting: seq };
    return { verdict: 'refreshed', entry: { ...before, ...newest, refreshed: time } };
  }
  if (before?.pinned === true) return { verdict: 'pinned' };
  if (before !== undefined && isFrozen(before, time)) return { verdict: 'frozen' };
  const has = before !== undefined && counts(before, time);
  if (has && sighted <= before.sighted) return { verdict: 'stale' };
  if (count >= MAX_LEARNED || (before === undefined && !room())) return { verdict: 'full' };
  const base = before ?? blank(vlan, mac, await tx.nextChange());
  const moved = {
    ...base,
    member: id,
    since: time,
    sighted,
    sighting: seq,
    refreshed: time,
    frozenUntil: 0,
  };
  if (!has) return { verdict: 'new', entry: { ...moved, moves: [] } };
  const held = heldUntil(before, time);
  const moves = [...before.moves, time].filter((at) => time - at < FLAP_WINDOW_MS);
  if (moves.length < FLAP_MOVES) return { verdict: 'moved', entry: { ...moved, held, moves } };
  const ports = new Set<string>((await tx.plainMembers()).map(({ id: port }) => port));
  const longest = longestIn(held, ports, id);
  return {
    verdict: 'flapped',
    entry: {
      ...moved,
      held,
      moves: [],
      member: longest,
      since: longest === before.member ? before.since : time,
      frozenUntil: time + FROZEN_MS,
    },
  };
}

function blank(vlan: number, mac: MacAddress, serial: number): Learned {
  return {
    vlan,
    mac,
    member: undefined,
    since: 0,
    sighted: 0,
    sighting: 0,
    refreshed: 0,
    moves: [],
    held: {},
    frozenUntil: 0,
    pinned: false,
    kept: false,
    serial,
    changed: serial,
  };
}

/** For how long which member has had it; the shortest are forgotten. */
function heldUntil({ member, since, held }: Learned, time: number): Record<string, number> {
  if (member === undefined) return { ...held };
  const all = { ...held, [member]: (held[member] ?? 0) + Math.max(0, time - since) };
  return Object.fromEntries(
    Object.entries(all)
      .sort(([, a], [, b]) => b - a)
      .slice(0, MAX_HELD),
  );
}

function longestIn(
  held: Readonly<Record<string, number>>,
  ports: ReadonlySet<string>,
  otherwise: Id,
): Id {
  const [first] = Object.entries(held)
    .filter(([id]) => ports.has(id))
    .sort(([, a], [, b]) => b - a);
  return first === undefined ? otherwise : (first[0] as Id);
}
