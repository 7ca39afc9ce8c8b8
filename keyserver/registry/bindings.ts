/**
 * Which MAC address announces which IP address (docs/protocol.md 8.6). Gateways refuse ARP and neighbour discovery
 * that say otherwise, and since each frame's source is bound to its member, that ties an IP address to a member.
 *
 *   nobody -- announced by a member --> seen -- not reported for a day, or the operator --> freed
 *      |                                 ^ |  another member: only after an hour of silence
 *      |                                 +-+
 *      +-- named by a grant --> granted, +-- tied by the operator --> pinned: nobody else's
 *
 * A freed row stays for a while, so that those who were told of it can be told.
 */
import { type Id, typedId } from '../../src/protocol/ids.js';
import { inPrefix, ipToBytes, isLinkLocal, whyNotBindable } from '../../src/protocol/ip.js';
import { isGroupMac, type MacAddress } from '../../src/protocol/mac.js';
import type { IpBinding } from '../../src/protocol/messages.js';
import type { VerifiedMember } from '../../src/protocol/records.js';
import { NotFound, Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Binding, BindingKind, Member, StoreTransaction } from '../storage/store.js';
import { TokenBuckets } from './token-bucket.js';

/** Rows in all, as many as a data plane holds; the last of them are for what the operator says. */
export const MAX_BINDINGS = 65_536;
export const FOR_OPERATOR = 4_096;
/** Addresses that one member has without a grant: the one that was not reported for longest gives way. */
export const MAX_SEEN = 64;
/** Addresses that the operator may tie. */
export const MAX_IP_PINS = 1_024;
/** Who is silent for so long about an address may lose it to another member. */
const HELD_FOR_MS = 3_600_000;
/** Who is silent for so long loses it to nobody. */
const SEEN_FOR_MS = 86_400_000;
/** How long a freed row stays: longer than a member can be away without beginning anew. */
const FREED_FOR_MS = 2 * SEEN_FOR_MS;
/** What a report changes is pushed to everybody: so many changes of a member at once, then so many a second. */
const CHANGE_BURST = 256;
const CHANGES_PER_SECOND = 0.01;
/** Reports of a member: a data plane tells of 20 addresses a second at most. */
const REPORT_BURST = 64;
const REPORTS_PER_SECOND = 20;
/** Rows that one round of ageing looks at. */
const AGE_BATCH = 1_000;
const AGE_EVERY_MS = 600_000;
const ANY_TIME = Number.MAX_SAFE_INTEGER;

/** What became of one announced address. */
type Verdict =
  | 'new'
  | 'refreshed'
  | 'moved'
  /** It is granted to, pinned to or was lately announced by somebody else. */
  | 'taken'
  /** The MAC address is not the member's own. */
  | 'foreign'
  /** Nobody can have it. */
  | 'unusable'
  /** The member's grant names others only. */
  | 'not_granted'
  | 'full'
  | 'limited';

const TAKEN_IN: ReadonlySet<Verdict> = new Set(['new', 'refreshed', 'moved']);

/** Reports, pins and ageing. */
export class Bindings {
  readonly #services: Services;
  readonly #changed: (ip: string) => void;
  readonly #reports = new TokenBuckets(REPORT_BURST, REPORTS_PER_SECOND);
  readonly #changes = new TokenBuckets(CHANGE_BURST, CHANGES_PER_SECOND);
  /** When freed rows are looked for next. */
  #forgetAt = 0;

  /** @param changed is told of each address that another MAC address announces from now on, or anybody */
  constructor(services: Services, changed: (ip: string) => void) {
    this.#services = services;
    this.#changed = changed;
  }

  /** What a member's own addresses announce. @returns those that were not taken. @throws Refusal */
  async report(id: Id, entries: readonly IpBinding[]): Promise<string[]> {
    const { store, now, metrics, audit } = this.#services;
    const time = now();
    if (!this.#reports.take(id, time)) {
      throw new Refusal('limit', 'bind_rate', 'too many reports; wait');
    }
    const changed = new Set<string>();
    const judged = await store.write(async (tx) => {
      const member = await tx.member(id);
      if (member?.state !== 'active') {
        throw new Refusal('refused', 'unknown_member', 'not a member');
      }
      const own = (await tx.macsOf(id)).filter(({ kind }) => kind === 'own');
      const macs = new Set(own.map(({ mac }) => mac));
      const verdicts: { readonly entry: IpBinding; readonly verdict: Verdict }[] = [];
      for (const entry of entries) {
        const verdict = await this.#take(tx, member, macs, entry, time, changed);
        verdicts.push({ entry, verdict });
      }
      return verdicts;
    });
    for (const ip of changed) this.#changed(ip);
    const refused: string[] = [];
    for (const { entry, verdict } of judged) {
      metrics.bindings.inc({ result: verdict });
      if (TAKEN_IN.has(verdict)) continue;
      refused.push(entry.ip);
      if (verdict !== 'taken') continue;
      metrics.refusals.inc({ kind: 'ip_taken' });
      audit.refused(id, new Refusal('refused', 'ip_taken', 'ip_taken', { ...entry }), entry.ip);
    }
    return refused;
  }

  /** Ties an address to a MAC address, whoever announces it. @throws Refusal */
  async pin(actor: Id, { ip, mac }: IpBinding): Promise<void> {
    const { store, now, audit } = this.#services;
    const why = whyNotBindable(bytesOf(ip));
    if (why !== undefined) throw new Refusal('refused', 'pin_address', `${ip} ${why}`, { ip });
    if (isGroupMac(mac) || mac === '00:00:00:00:00:00') {
      throw new Refusal('refused', 'pin_address', `${mac} is nobody's address`, { mac });
    }
    const changed = await store.write(async (tx) => {
      const before = await tx.binding(ip);
      const [holder] = await tx.ipHolders(ip);
      if (holder !== undefined && !(await ownsMac(tx, holder, mac))) {
        const told = `${ip} is granted to ${typedId('member', holder)}, whose address ${mac} is not`;
        throw new Refusal('refused', 'pin_address', told, { ip, mac });
      }
      const pins = await tx.bindingsBefore('pinned', ANY_TIME, MAX_IP_PINS);
      if (before?.kind !== 'pinned' && pins.length >= MAX_IP_PINS) {
        const told = `more than ${MAX_IP_PINS} addresses are pinned`;
        throw new Refusal('limit', 'pin_address', told, { ip });
      }
      await requireRoom(tx, before);
      await audit.append(tx, {
        actor,
        action: 'ip_pin',
        outcome: 'done',
        detail: { ip, mac },
      });
      return put(tx, before, { ip, mac, kind: 'pinned', member: undefined }, now());
    });
    if (changed) this.#changed(ip);
  }

  /** Frees an address that was pinned, or that a member has announced. @throws NotFound, Refusal for a granted one */
  async free(
    actor: Id,
    ip: string,
  ): Promise<{ readonly was: 'pinned' | 'seen'; readonly mac: MacAddress }> {
    const { store, now, audit } = this.#services;
    const { entry, changed } = await store.write(async (tx) => {
      const before = await tx.binding(ip);
      if (before === undefined || before.kind === 'freed') throw new NotFound();
      const { kind, mac } = before;
      if (kind === 'granted') {
        const told = `${ip} is granted to ${before.member ?? 'a member'}: it goes with its token`;
        throw new Refusal('refused', 'free_address', told, { ip });
      }
      await audit.append(tx, {
        actor,
        action: 'ip_free',
        outcome: 'done',
        detail: { ip, mac, was: kind },
      });
      return { entry: { was: kind, mac }, changed: await release(tx, before, now()) };
    });
    if (changed) this.#changed(ip);
    return entry;
  }

  /** What nobody announces any more is nobody's. */
  async tick(): Promise<void> {
    const { store, now, metrics } = this.#services;
    const time = now();
    const due = await store.bindingsBefore('seen', time - SEEN_FOR_MS, 1);
    if (due.length === 0 && time < this.#forgetAt) return;
    this.#forgetAt = time + AGE_EVERY_MS;
    const freed = await store.write(async (tx) => {
      const old = await tx.bindingsBefore('seen', time - SEEN_FOR_MS, AGE_BATCH);
      for (const entry of old) await release(tx, entry, time);
      await tx.forgetBindings(time - FREED_FOR_MS);
      return old;
    });
    metrics.bindings.inc({ result: 'aged' }, freed.length);
    for (const { ip } of freed) this.#changed(ip);
  }

  /** Judges one announced address and takes it. */
  async #take(
    tx: StoreTransaction,
    member: Member,
    macs: ReadonlySet<MacAddress>,
    { ip, mac }: IpBinding,
    time: number,
    changed: Set<string>,
  ): Promise<Verdict> {
    const { id } = member;
    if (!macs.has(mac)) return 'foreign';
    if (whyNotBindable(bytesOf(ip)) !== undefined) return 'unusable';
    const before = await tx.binding(ip);
    const has = before !== undefined && before.kind !== 'freed';
    const kind = has && before.kind !== 'seen' ? before.kind : 'seen';
    if (has && before.mac === mac && (kind === 'pinned' || before.member === id)) {
      await put(tx, before, { ip, mac, kind, member: before.member }, time);
      return 'refreshed';
    }
    if (has && !(await mayHave(tx, member, before, mac, time))) return 'taken';
    // Who has it already may keep it, whatever a later grant says: enrolment frees what it takes away.
    if (!isPermitted(member.ips, ip)) return 'not_granted';
    if (!this.#changes.take(id, time)) return 'limited';
    if (kind === 'seen' && (!has || before.member !== id)) {
      const seen = (await tx.bindingsOf(id)).filter((one) => one.kind === 'seen');
      for (const oldest of seen.slice(0, Math.max(0, seen.length + 1 - MAX_SEEN))) {
        if (await release(tx, oldest, time)) changed.add(oldest.ip);
        this.#services.metrics.bindings.inc({ result: 'displaced' });
      }
      const rows = await tx.countBindings();
      if (before === undefined && rows >= MAX_BINDINGS - FOR_OPERATOR) return 'full';
    }
    if (await put(tx, before, { ip, mac, kind, member: id }, time)) changed.add(ip);
    return has ? 'moved' : 'new';
  }
}

/**
 * Gives a member that enrols the addresses that its grant names one by one, and takes those away that it may not
 * announce any more.
 * @returns addresses of which others are to be told
 * @throws Refusal for one that is pinned to a MAC address of somebody else
 */
export async function grantBindings(
  tx: StoreTransaction,
  { id, macs, grant }: Pick<VerifiedMember, 'id' | 'macs' | 'grant'>,
  prefixes: readonly string[],
  time: number,
): Promise<readonly string[]> {
  const changed = new Set<string>();
  const [first] = macs;
  const granted = new Set(prefixes.filter(isOneAddress));
  for (const entry of await tx.bindingsOf(id)) {
    const stays =
      entry.kind === 'granted'
        ? granted.has(entry.ip)
        : macs.includes(entry.mac) && isPermitted(grant.ips, entry.ip);
    if (!stays && (await release(tx, entry, time))) changed.add(entry.ip);
  }
  for (const ip of granted) {
    if (first === undefined) break;
    const before = await tx.binding(ip);
    const isOurs = before !== undefined && macs.includes(before.mac);
    if (before?.kind === 'pinned') {
      if (isOurs) continue;
      const told = `${ip} is pinned to another MAC address`;
      throw new Refusal('refused', 'enrol_address', told, { id });
    }
    // One of several that share it has it already.
    if (before?.kind === 'granted' && before.member !== id) continue;
    await requireRoom(tx, before);
    const mac = isOurs && before.kind !== 'freed' ? before.mac : first;
    if (await put(tx, before, { ip, mac, kind: 'granted', member: id }, time)) changed.add(ip);
  }
  return [...changed];
}

/** Frees all that a member has: it was revoked. @returns addresses of which others are to be told */
export async function releaseAll(
  tx: StoreTransaction,
  id: Id,
  time: number,
): Promise<readonly string[]> {
  const changed: string[] = [];
  for (const entry of await tx.bindingsOf(id)) {
    if (await release(tx, entry, time)) changed.push(entry.ip);
  }
  return changed;
}

/** Whether a member may take over an address that another MAC address has. */
async function mayHave(
  tx: StoreTransaction,
  { id }: Member,
  before: Binding,
  mac: MacAddress,
  time: number,
): Promise<boolean> {
  switch (before.kind) {
    case 'pinned':
      return false;
    case 'granted':
      return before.member === id || (await tx.ipHolders(before.ip)).includes(id);
    default:
      return (
        before.member === id ||
        // Of a virtual router's address: who shares it announces it in turn.
        before.mac === mac ||
        time - before.refreshed >= HELD_FOR_MS
      );
  }
}

/** Each interface gives itself a link-local address, so no grant needs to name that. */
function isPermitted(prefixes: readonly string[], ip: string): boolean {
  const bytes = bytesOf(ip);
  if (prefixes.length === 0 || isLinkLocal(bytes)) return true;
  return prefixes.some((prefix) => inPrefix(prefix, bytes));
}

/** @param prefix canonical: without a length it is one address */
function isOneAddress(prefix: string): boolean {
  return !prefix.includes('/') && whyNotBindable(bytesOf(prefix)) === undefined;
}

/** @throws Refusal if there is no place for what the operator says */
async function requireRoom(tx: StoreTransaction, before: Binding | undefined): Promise<void> {
  if (before !== undefined || (await tx.countBindings()) < MAX_BINDINGS) return;
  throw new Refusal('limit', 'pin_address', `more than ${MAX_BINDINGS} IP addresses are bound`);
}

/** Takes an address from who has it: whom it is granted to gets it, else anybody. @returns whether others are to be told */
async function release(tx: StoreTransaction, entry: Binding, time: number): Promise<boolean> {
  const { ip, mac, member } = entry;
  for (const holder of await tx.ipHolders(ip)) {
    if (holder === member) continue;
    const keeps = await ownsMac(tx, holder, mac);
    const own = (await tx.macsOf(holder)).find(({ kind }) => kind === 'own')?.mac;
    const next = keeps ? mac : own;
    if (next === undefined) continue;
    return put(tx, entry, { ip, mac: next, kind: 'granted', member: holder }, time);
  }
  return put(tx, entry, { ip, mac, kind: 'freed', member }, time);
}

async function ownsMac(tx: StoreTransaction, id: Id, mac: MacAddress): Promise<boolean> {
  return (await tx.macsOf(id)).some((entry) => entry.kind === 'own' && entry.mac === mac);
}

interface NextBinding {
  readonly ip: string;
  readonly mac: MacAddress;
  readonly kind: BindingKind;
  readonly member: Id | undefined;
}

/** Stores what holds from now on. @returns whether others are to be told: only who announces it matters to them */
async function put(
  tx: StoreTransaction,
  before: Binding | undefined,
  next: NextBinding,
  time: number,
): Promise<boolean> {
  const had = before !== undefined && before.kind !== 'freed' ? before.mac : undefined;
  const has = next.kind === 'freed' ? undefined : next.mac;
  const told = had !== has;
  const changed = told || before === undefined ? await tx.nextChange() : before.changed;
  await tx.putBinding({
    ...next,
    since: told || before === undefined ? time : before.since,
    refreshed: time,
    serial: before?.serial ?? changed,
    changed,
  });
  return told;
}

function bytesOf(ip: string): Buffer {
  return ipToBytes(ip) ?? Buffer.alloc(4);
}
