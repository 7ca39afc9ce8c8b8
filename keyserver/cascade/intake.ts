/**
 * What another key server of this subnet tells, judged and stored as ordinary rows. Its word counts only for members at
 * home there (M17): whatever it says of others, or without the signatures of operator and member, is refused and noted.
 *
 *   member    the operator signed the grant, which names that server as home; the identity is the one known before; the
 *             boot record is the member's, and not older; the sender index is one of that server; and a grant that is new
 *             here had not expired when all that was at home there was known last
 *   revoked   of a member at home there, also of one that it has not told of yet; nothing takes it back
 *   pair      its smaller id is at home there, the other one here; never an older generation, or another key of one number
 *   group     from the first server alone, with the same two conditions
 *
 * What is known already, byte for byte, is not verified again: that is what a server that is back mostly tells.
 */
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { HomeChange } from '../../src/protocol/messages.js';
import {
  type BootRecord,
  TALKER_ROLES,
  type VerifiedMember,
  verifyBoot,
  verifyMembership,
} from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { Refusal, refusing } from '../refusal.js';
import type { Services } from '../services.js';
import type { GroupKey, Member, PairKey, PeerServer } from '../storage/store.js';
import { claimForeign } from './foreign-addresses.js';

/** No generation is so far ahead of the last one that was known: a server that says so lies. */
export const MAX_CASCADE_AHEAD = 1_000_000;
const INDEX_BITS = 24;
/** Members of another server that are taken, revoked ones included, unless the configuration says another number. */
export const MAX_MEMBERS_ELSEWHERE = 100_000;
/** Between an enrolment and the word of it may lie so much, ms. */
const GRANT_SLACK = 60_000;

type MemberRecord = Extract<HomeChange, { kind: 'member' }>['member'];
type PairChange = Extract<HomeChange, { kind: 'pair' }>;
type GroupChange = Extract<HomeChange, { kind: 'group' }>;

/** What became of a change: known already, stored, or not taken. */
export type Taken = 'same' | 'taken' | 'refused';

/** A generation that is held here, and that the server which makes the key has forgotten. */
export type Held =
  | { readonly kind: 'pair'; readonly a: Id; readonly b: Id; readonly pwId: number }
  | { readonly kind: 'group'; readonly pwId: number };

/** Who is told of what was stored. */
export interface IntakeDeps {
  memberChanged(id: Id): void;
  ownChanged(mac: MacAddress): void;
  behindChanged(vlan: number, mac: MacAddress): void;
  bindingChanged(ip: string): void;
  /** A pair key with one of our members. */
  pairLearned(pair: PairKey): void;
  groupLearned(group: GroupKey): void;
  /** The member is out, with all that follows from it. */
  revoke(id: Id, from: Id): Promise<void>;
  refused(from: Id, refusal: Refusal): void;
  /** Most members of one other server. */
  readonly maxMembers?: number | undefined;
}

/** Takes what one server after another tells. */
export class Intake {
  readonly #services: Services;
  readonly #deps: IntakeDeps;
  readonly #holds: (maker: Id, held: Held) => void;
  /** How many members of each server are or were known. */
  readonly #counts = new Map<Id, number>();

  /** @param holds is told of a generation above what its maker tells */
  constructor(services: Services, deps: IntakeDeps, holds: (maker: Id, held: Held) => void) {
    this.#services = services;
    this.#deps = deps;
    this.#holds = holds;
  }

  /** Members of each server, as far as they were counted. */
  get counts(): ReadonlyMap<Id, number> {
    return this.#counts;
  }

  /** A server is revoked or removed. */
  forget(server: Id): void {
    this.#counts.delete(server);
  }

  /**
   * @param first the subnet's first server
   * @param isDoubted this database may have forgotten who was revoked: nothing is taken but what can only take rights
   * away, and where known members are
   */
  async take(
    from: PeerServer,
    first: Id,
    change: HomeChange,
    isDoubted: boolean = false,
  ): Promise<Taken> {
    try {
      switch (change.kind) {
        case 'member':
          return await this.#member(from, change.member, isDoubted);
        case 'revoked':
          return await this.#revoked(from, change.id);
        case 'pair':
          return isDoubted ? 'same' : await this.#pair(from, change);
        case 'group':
          return isDoubted ? 'same' : await this.#group(from, first, change);
      }
    } catch (thrown) {
      if (!(thrown instanceof Refusal)) throw thrown;
      this.#deps.refused(from.server, thrown);
      return 'refused';
    }
  }

  async #member(from: PeerServer, record: MemberRecord, isDoubted: boolean): Promise<Taken> {
    const { store, subnet, operator, now } = this.#services;
    const { server } = from;
    const told = await store.member(record.id);
    if (isDoubted && told === undefined) return 'same';
    if (told !== undefined && told.home === server && hasRecords(told, record)) {
      // Verified when they were stored.
      return this.#presence(told, record);
    }
    const verified = refusing('cascade_record', () =>
      verifyMembership(subnet, record.membership, operator),
    );
    const { id, grant } = verified;
    const facts = { id, server };
    const wrong = (why: string): Refusal => new Refusal('refused', 'cascade_record', why, facts);
    if (grant.home !== server) throw notAtHome(server, id);
    if (!TALKER_ROLES.includes(verified.role)) throw wrong('no member that takes part in traffic');
    if (id !== record.id) throw wrong('the record is of another id');
    const known = await store.member(id);
    if (known !== undefined && known.home !== server) throw notAtHome(server, id);
    // Said before it knew, or after its database was put back: nothing takes a revocation back.
    if (known?.state === 'revoked') return 'same';
    if (known === undefined && (await store.isRevokedAt(server, id))) return 'same';
    if (known !== undefined && !known.identityDigest.equals(verified.identityDigest)) {
      throw wrong('another identity of a member that is known');
    }
    const boot = record.boot === undefined ? undefined : this.#boot(verified, record.boot, known);
    if (boot !== undefined && indexServer(record.index) !== from.number) {
      throw wrong('a sender index that is not of that server');
    }
    if (known === undefined) await this.#requireRoom(server, facts);
    const { addresses, changed } = await store.write(async (tx) => {
      const holder = await tx.memberByChannel(verified.channel);
      if (holder !== undefined && holder.id !== id) {
        throw wrong('the channel key belongs to another member');
      }
      const before = await tx.member(id);
      // Revoked here meanwhile, or its server.
      const isOut = before?.state === 'revoked' || (await tx.peerServer(server)) === undefined;
      if (isOut) return { addresses: undefined, changed: false };
      // As at an enrolment: its server may be hostile, and have a grant that names no id.
      const tokenId = Buffer.from(grant.tokenId);
      const sameGrant = before?.tokenId.equals(tokenId) === true;
      // Nobody enrols with it any more, and whoever had was told of.
      if (!sameGrant && grant.notAfter + GRANT_SLACK < from.currentAt) {
        throw wrong('its grant has expired');
      }
      if (!sameGrant && (await tx.membersByToken(server, tokenId)) >= grant.uses) {
        throw wrong('more members than its grant is for');
      }
      const time = now();
      const number = await tx.nextChange();
      const row = {
        ...{ id, serial: before?.serial ?? number, role: verified.role },
        channel: Buffer.from(verified.channel),
        membership: record.membership,
        identityDigest: verified.identityDigest,
        tokenId,
        ...{
          ips: grant.ips,
          enrolledAt: before?.enrolledAt ?? time,
          changed: number,
          home: server,
        },
      };
      const renewed = before === undefined || !sameSigned(before.membership, record.membership);
      if (before === undefined) await tx.insertMember(row);
      else if (renewed) await tx.updateMembership(row);
      const claimed = renewed ? await claimForeign(tx, verified, time) : undefined;
      if (boot !== undefined && record.boot !== undefined && record.index !== undefined) {
        await tx.takeIndexFromOthers(record.index, id);
        const key = Buffer.from(boot.boot);
        await tx.setBoot(id, {
          ...{ record: record.boot, key, sequence: boot.sequence, index: record.index },
          registeredAt: before?.boot?.key.equals(key) === true ? before.boot.registeredAt : time,
        });
      }
      const { online, endpoints } = record;
      await tx.updatePresence(id, { online, endpoints }, await tx.nextChange());
      return { addresses: claimed, changed: true };
    });
    if (!changed) return 'same';
    if (known === undefined) this.#counts.set(server, (await this.#count(server)) + 1);
    this.#deps.memberChanged(id);
    for (const mac of addresses?.macs ?? []) {
      this.#deps.ownChanged(mac);
      for (const { vlan } of await store.learnedAt(mac)) this.#deps.behindChanged(vlan, mac);
    }
    for (const ip of addresses?.bindings ?? []) this.#deps.bindingChanged(ip);
    const taken = addresses?.refused ?? [];
    if (taken.length > 0) {
      const why = 'another member has its address';
      throw new Refusal('refused', 'cascade_address', why, { ...facts, addresses: taken.join() });
    }
    return 'taken';
  }

  /** Whether a member is online, and where, is its server's word alone. */
  async #presence(known: Member, { online, endpoints }: MemberRecord): Promise<Taken> {
    const { store } = this.#services;
    if (known.state === 'revoked') return 'same';
    if (known.online === online && sameEndpoints(known, endpoints)) return 'same';
    const changed = await store.write(async (tx) => {
      if ((await tx.member(known.id))?.state !== 'active') return false;
      await tx.updatePresence(known.id, { online, endpoints }, await tx.nextChange());
      return true;
    });
    if (changed) this.#deps.memberChanged(known.id);
    return changed ? 'taken' : 'same';
  }

  async #count(server: Id): Promise<number> {
    const known = this.#counts.get(server);
    if (known !== undefined) return known;
    const found = await this.#services.store.countMembersAt(server);
    this.#counts.set(server, found);
    return found;
  }

  /** @throws Refusal if there are as many members of a server as may be */
  async #requireRoom(server: Id, facts: Readonly<Record<string, string>>): Promise<void> {
    const max = this.#deps.maxMembers ?? MAX_MEMBERS_ELSEWHERE;
    if ((await this.#count(server)) < max) return;
    const why = `there are ${max} members of that server already (limits.membersElsewhere)`;
    throw new Refusal('limit', 'cascade_members', why, facts);
  }

  /** @returns undefined for one that has expired: its member has been away for long */
  #boot(
    verified: VerifiedMember,
    record: Signed,
    known: Member | undefined,
  ): BootRecord | undefined {
    const before = known?.boot;
    let boot: BootRecord;
    try {
      boot = verifyBoot(verified, record, this.#services.now(), before?.sequence ?? 0);
    } catch (thrown) {
      if (thrown instanceof PairwireError && thrown.code === 'RECORD_EXPIRED') return undefined;
      return refusing('cascade_record', () => {
        throw thrown;
      });
    }
    const same = before?.key.equals(Buffer.from(boot.boot)) === true;
    if (before !== undefined && !same && boot.sequence === before.sequence) {
      const why = 'another boot key has this sequence';
      throw new Refusal('refused', 'cascade_record', why, { id: verified.id });
    }
    return boot;
  }

  async #revoked({ server }: PeerServer, id: Id): Promise<Taken> {
    const { store } = this.#services;
    const known = await store.member(id);
    if (known === undefined) {
      if (await store.isRevokedAt(server, id)) return 'same';
      // It may be told of later, or it was kept back: it is out already.
      await this.#requireRoom(server, { id, server });
      await store.write((tx) => tx.noteRevokedAt(server, id));
      this.#counts.set(server, (await this.#count(server)) + 1);
      return 'taken';
    }
    if (known.home !== server) throw notAtHome(server, id);
    if (known.state !== 'active') return 'same';
    await this.#deps.revoke(id, server);
    return 'taken';
  }

  async #pair({ server }: PeerServer, change: PairChange): Promise<Taken> {
    const { store, now } = this.#services;
    const { a, b, pwId } = change;
    const wrong = (why: string): Refusal =>
      new Refusal('refused', 'cascade_key', why, { a, b, server, pwId });
    if (a >= b) throw wrong('no pair in its order');
    const learned = await store.write(async (tx) => {
      if ((await tx.peerServer(server)) === undefined) return undefined;
      const [maker, other] = [await tx.member(a), await tx.member(b)];
      if (maker?.home !== server || other === undefined || other.home !== undefined) {
        throw wrong('the key of that pair is not made there');
      }
      if (maker.state !== 'active' || other.state !== 'active') return undefined;
      const stored = await tx.anyPair(a, b);
      if (stored?.key === undefined && stored !== undefined && stored.maker !== server) {
        throw wrong('the key of that pair is made here');
      }
      // With a broken seal nothing is known of it: its maker's word holds.
      const before = stored?.key === undefined ? undefined : stored;
      const next = nextOf(change);
      if (before !== undefined) {
        if (before.maker !== server) throw wrong('the key of that pair is made here');
        if (!follows(before, change)) {
          const held = heldAbove(before, change);
          if (held !== undefined) this.#holds(server, { kind: 'pair', a, b, pwId: held });
          throw wrong('a generation that can not be');
        }
        if (before.pwId === pwId && before.next?.pwId === next?.pwId) return undefined;
      }
      const createdAt = before?.pwId === pwId ? before.createdAt : now();
      const key = Buffer.from(change.key);
      await tx.putForeignPair(
        { a, b, maker: server, key, pwId, next, createdAt },
        await tx.nextChange(),
      );
      return tx.pairKey(a, b);
    });
    if (learned === undefined) return 'same';
    this.#deps.pairLearned(learned);
    return 'taken';
  }

  async #group({ server }: PeerServer, first: Id, change: GroupChange): Promise<Taken> {
    const { store, now } = this.#services;
    const { pwId, oldest } = change;
    const wrong = (why: string): Refusal =>
      new Refusal('refused', 'cascade_key', why, { group: GROUP_ID, server, pwId });
    if (server !== first) throw wrong('the group key is not made there');
    const learned = await store.write(async (tx) => {
      if ((await tx.peerServer(server)) === undefined) return undefined;
      const stored = await tx.anyGroup(GROUP_ID);
      const before = stored?.key === undefined ? undefined : stored;
      const next = nextOf(change);
      if (before !== undefined) {
        if (!follows(before, change) || oldest > pwId || oldest < before.oldest) {
          const held = heldAbove(before, change);
          if (held !== undefined) this.#holds(server, { kind: 'group', pwId: held });
          throw wrong('a generation that can not be');
        }
        if (before.pwId === pwId && before.next?.pwId === next?.pwId) return undefined;
      }
      const number = await tx.nextChange();
      const group: GroupKey = {
        ...{ id: GROUP_ID, key: Buffer.from(change.key), pwId, oldest, reason: 'learned' },
        createdAt: before?.pwId === pwId ? before.createdAt : now(),
        ...{ serial: number, changed: number, dueAt: 0 },
        next: next === undefined ? undefined : { ...next, reason: 'learned' },
      };
      await tx.learnGroup(group);
      return group;
    });
    if (learned === undefined) return 'same';
    this.#deps.groupLearned(learned);
    return 'taken';
  }
}

function notAtHome(server: Id, id: Id): Refusal {
  return new Refusal('refused', 'cascade_home', 'that member is not at home there', { id, server });
}

/** The server that a sender index names. */
function indexServer(index: number | undefined): number | undefined {
  return index === undefined ? undefined : Math.floor(index / 2 ** INDEX_BITS);
}

function nextOf({ next }: Pick<PairChange, 'next'>) {
  return next === undefined ? undefined : { key: Buffer.from(next.key), pwId: next.pwId };
}

interface Generations {
  readonly key: Uint8Array;
  readonly pwId: number;
  readonly next?: { readonly key: Uint8Array; readonly pwId: number } | undefined;
}

/** Whether generations can come after those that are known: none goes back, and no number is used for two keys. */
function follows(before: Generations, after: Generations): boolean {
  const { pwId, next } = after;
  if (pwId < before.pwId || pwId - before.pwId > MAX_CASCADE_AHEAD) return false;
  if (next !== undefined && next.pwId !== pwId + 1) return false;
  const known = new Map([[before.pwId, before.key]]);
  if (before.next !== undefined) known.set(before.next.pwId, before.next.key);
  const told = next === undefined ? [after] : [after, next];
  return told.every(({ pwId: number, key }) => {
    const other = known.get(number);
    return other === undefined || Buffer.compare(other, key) === 0;
  });
}

/**
 * The generation that is held if its maker has forgotten it: it tells an older one, or another key with a number that is
 * known. Undefined if it only leaps ahead.
 */
function heldAbove(before: Generations, after: Generations): number | undefined {
  if (after.pwId - before.pwId > MAX_CASCADE_AHEAD) return undefined;
  return Math.max(before.pwId, before.next?.pwId ?? 0);
}

/** Whether a record says nothing of a member that was not verified when it was stored. */
function hasRecords(known: Member, { role, membership, boot, index }: MemberRecord): boolean {
  if (known.role !== role || !sameSigned(known.membership, membership)) return false;
  if (boot === undefined || known.boot === undefined) return boot === known.boot;
  return sameSigned(known.boot.record, boot) && known.boot.index === index;
}

function sameEndpoints(known: Member, endpoints: MemberRecord['endpoints']): boolean {
  return (
    known.endpoints.length === endpoints.length &&
    known.endpoints.every((one, at) => {
      const other = endpoints[at];
      return (
        other !== undefined &&
        one.port === other.port &&
        one.seen === other.seen &&
        Buffer.compare(one.ip, other.ip) === 0
      );
    })
  );
}

function sameSigned(a: Signed, b: Signed): boolean {
  return Buffer.compare(a.b, b.b) === 0 && Buffer.compare(a.s, b.s) === 0;
}
