/**
 * What another key server of this subnet tells, judged and stored as ordinary rows. Its word counts only for members at
 * home there (M17): whatever it says of others, or without the signatures of operator and member, is refused and noted.
 *
 *   member    the operator signed the grant, which names that server as home; the identity is the one known before; the
 *             boot record is the member's, and not older; the sender index is one of that server
 *   revoked   of a member at home there; nothing takes it back
 *   pair      its smaller id is at home there, the other one here; never an older generation, or another key of one number
 *   group     from the first server alone, with the same two conditions
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
const MAX_CASCADE_AHEAD = 1_000_000;
const INDEX_BITS = 24;

type MemberRecord = Extract<HomeChange, { kind: 'member' }>['member'];
type PairChange = Extract<HomeChange, { kind: 'pair' }>;
type GroupChange = Extract<HomeChange, { kind: 'group' }>;

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
}

/** Takes what one server after another tells. */
export class Intake {
  readonly #services: Services;
  readonly #deps: IntakeDeps;

  constructor(services: Services, deps: IntakeDeps) {
    this.#services = services;
    this.#deps = deps;
  }

  /** @param first the subnet's first server */
  async take(from: PeerServer, first: Id, change: HomeChange): Promise<void> {
    try {
      switch (change.kind) {
        case 'member':
          return await this.#member(from, change.member);
        case 'revoked':
          return await this.#revoked(from, change.id);
        case 'pair':
          return await this.#pair(from, change);
        case 'group':
          return await this.#group(from, first, change);
      }
    } catch (thrown) {
      if (!(thrown instanceof Refusal)) throw thrown;
      this.#deps.refused(from.server, thrown);
    }
  }

  async #member(from: PeerServer, record: MemberRecord): Promise<void> {
    const { store, subnet, operator, now } = this.#services;
    const { server } = from;
    const verified = refusing('cascade_record', () =>
      verifyMembership(subnet, record.membership, operator),
    );
    const { id, grant } = verified;
    const facts = { id, server };
    const wrong = (why: string): Refusal => new Refusal('refused', 'cascade_record', why, facts);
    if (grant.home !== server) throw notAtHome(server, id);
    if (!TALKER_ROLES.includes(verified.role)) throw wrong('no member that takes part in traffic');
    const known = await store.member(id);
    if (known !== undefined && known.home !== server) throw notAtHome(server, id);
    // Said before it knew, or after its database was put back: nothing takes a revocation back.
    if (known?.state === 'revoked') return;
    if (known !== undefined && !known.identityDigest.equals(verified.identityDigest)) {
      throw wrong('another identity of a member that is known');
    }
    const boot = record.boot === undefined ? undefined : this.#boot(verified, record.boot, known);
    if (boot !== undefined && indexServer(record.index) !== from.number) {
      throw wrong('a sender index that is not of that server');
    }
    if (known !== undefined && isSame(known, record, verified)) return;
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
    if (!changed) return;
    this.#deps.memberChanged(id);
    for (const mac of addresses?.macs ?? []) {
      this.#deps.ownChanged(mac);
      for (const { vlan } of await store.learnedAt(mac)) this.#deps.behindChanged(vlan, mac);
    }
    for (const ip of addresses?.bindings ?? []) this.#deps.bindingChanged(ip);
    const taken = addresses?.refused ?? [];
    if (taken.length > 0) {
      const told = 'another member has its address';
      throw new Refusal('refused', 'cascade_address', told, { ...facts, addresses: taken.join() });
    }
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

  async #revoked({ server }: PeerServer, id: Id): Promise<void> {
    const known = await this.#services.store.member(id);
    if (known === undefined) return;
    if (known.home !== server) throw notAtHome(server, id);
    if (known.state === 'active') await this.#deps.revoke(id, server);
  }

  async #pair({ server }: PeerServer, change: PairChange): Promise<void> {
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
      const before = await tx.pairKey(a, b);
      const next = nextOf(change);
      if (before !== undefined) {
        if (before.maker !== server) throw wrong('the key of that pair is made here');
        if (!follows(before, change)) throw wrong('a generation that can not be');
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
    if (learned !== undefined) this.#deps.pairLearned(learned);
  }

  async #group({ server }: PeerServer, first: Id, change: GroupChange): Promise<void> {
    const { store, now } = this.#services;
    const { pwId, oldest } = change;
    const wrong = (why: string): Refusal =>
      new Refusal('refused', 'cascade_key', why, { group: GROUP_ID, server, pwId });
    if (server !== first) throw wrong('the group key is not made there');
    const learned = await store.write(async (tx) => {
      if ((await tx.peerServer(server)) === undefined) return undefined;
      const before = await tx.groupKey(GROUP_ID);
      const next = nextOf(change);
      if (before !== undefined) {
        if (!follows(before, change) || oldest > pwId || oldest < before.oldest) {
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
    if (learned !== undefined) this.#deps.groupLearned(learned);
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

function isSame(known: Member, record: MemberRecord, verified: VerifiedMember): boolean {
  const { boot, index, endpoints } = record;
  const sameBoot =
    boot === undefined
      ? known.boot === undefined
      : known.boot !== undefined &&
        sameSigned(known.boot.record, boot) &&
        known.boot.index === index;
  return (
    known.role === verified.role &&
    known.online === record.online &&
    sameSigned(known.membership, record.membership) &&
    sameBoot &&
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
