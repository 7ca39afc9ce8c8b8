/**
 * The store at the level of the domain: what the key server knows, read and written in its
 * own terms. Every method is asynchronous, so that SQLite and PostgreSQL serve alike.
 *
 * Reads see committed state only. Writes happen inside `write(fn)`, which is atomic and
 * settles only when the commit is on the disk; so whatever was answered after it survives
 * kill -9 and a power cut. `fn` may await nothing but its own transaction.
 *
 * Until there is a KMS, keys lie in the store in clear (file mode 0600) and identity
 * documents are served in clear.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { Endpoint } from '../../src/protocol/messages.js';
import type { Role } from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';

/** What a store is, drawn once by `init`. */
export interface StoreMeta {
  /** 8 random bytes: cursors of another store mean nothing here. */
  readonly epoch: Buffer;
  readonly subnet: Id;
  readonly server: Id;
  /** Subnet tag of the `ethernet` transport, 0 to 63. */
  readonly tag: number;
  /** The operator's public key (Ed25519). */
  readonly operator: Buffer;
}

/** The registered start of a member's data plane. */
export interface Boot {
  readonly record: Signed;
  readonly key: Buffer;
  readonly sequence: number;
  readonly index: number;
  readonly registeredAt: number;
}

/** A member with its newest boot record. */
export interface Member {
  readonly id: Id;
  readonly serial: number;
  readonly role: Role;
  readonly state: 'active';
  readonly channel: Buffer;
  readonly membership: Signed;
  readonly identityDigest: Buffer;
  readonly tokenId: Buffer;
  readonly ips: readonly string[];
  readonly online: boolean;
  readonly endpoints: readonly Endpoint[];
  /** Change number of its first request for the group key, 0 if it never asked. */
  readonly groupAsked: number;
  readonly enrolledAt: number;
  readonly changed: number;
  readonly boot: Boot | undefined;
}

export type NewMember = Omit<Member, 'boot' | 'groupAsked' | 'online' | 'endpoints' | 'state'>;

export type MacKind = 'own' | 'learned' | 'tombstone';

export interface MacEntry {
  readonly mac: MacAddress;
  /** True for an address that was granted to several members. */
  readonly shared: boolean;
  readonly member: Id;
  readonly kind: MacKind;
  readonly serial: number;
  readonly seenAt: number;
}

/** A pair key; `a` is the smaller id. */
export interface PairKey {
  readonly a: Id;
  readonly b: Id;
  readonly key: Buffer;
  readonly pwId: number;
  readonly reason: string;
  readonly createdAt: number;
  readonly serial: number;
  readonly askedA: number;
  readonly askedB: number;
  readonly changed: number;
}

export interface GroupKey {
  readonly id: Id;
  readonly key: Buffer;
  readonly pwId: number;
  readonly reason: string;
  readonly createdAt: number;
  readonly serial: number;
  readonly changed: number;
}

export interface StoredSettings {
  readonly version: number;
  readonly record: Signed;
  readonly changed: number;
}

export interface AuditEntry {
  readonly server: Id;
  readonly seq: number;
  readonly at: number;
  /** Who: a member's id, or `-` for somebody unknown. */
  readonly actor: string;
  readonly action: string;
  readonly outcome: 'done' | 'refused';
  /** JSON object. */
  readonly detail: string;
  readonly count: number;
  /** HMAC over the entry before and this one. */
  readonly mac: Buffer;
}

/** A pair key as one of its ends sees it: `seq` is when that end came to have it. */
export interface SeenPair {
  readonly seq: number;
  readonly peer: Id;
  readonly key: Buffer;
  readonly pwId: number;
}

/** A window of change numbers: after < seq <= upTo, at most `limit` rows by rising seq. */
export interface ChangeWindow {
  readonly after: number;
  readonly upTo: number;
  readonly limit: number;
}

/** A row of the ID-ID-KEY list without its key. Of a group, `b` is undefined. */
export interface KeyListEntry {
  readonly kind: 'pair' | 'group';
  readonly a: Id;
  readonly b: Id | undefined;
  readonly pwId: number;
  readonly reason: string;
  readonly createdAt: number;
  readonly serial: number;
}

export interface Counters {
  /** The last change number. */
  readonly change: number;
  /** Active members whose role takes part in traffic. */
  readonly talkers: number;
}

/** Questions. */
export interface StoreReads {
  counters(): Promise<Counters>;
  member(id: Id): Promise<Member | undefined>;
  memberByChannel(channel: Uint8Array): Promise<Member | undefined>;
  /** The member that owns an address; of several that share it, one that is online, then the latest start. */
  memberByMac(mac: MacAddress): Promise<Member | undefined>;
  /** The member whose newest boot record has this sender index. */
  memberByIndex(index: number): Promise<Member | undefined>;
  pairKey(a: Id, b: Id): Promise<PairKey | undefined>;
  /** The newest generation. */
  groupKey(id: Id): Promise<GroupKey | undefined>;
  settings(): Promise<StoredSettings | undefined>;
  /** The ids that hold a pair key with this member. */
  peersOf(id: Id): Promise<readonly Id[]>;
  /** Members that were marked online. */
  membersOnline(): Promise<readonly Id[]>;
  /**
   * Changed members that take part in traffic; with `holder`, only those that have a pair key
   * with it, and with `askedOnly` only if the holder asked for that key itself.
   */
  membersChanged(
    window: ChangeWindow,
    holder: Id | undefined,
    askedOnly: boolean,
  ): Promise<readonly { readonly member: Member; readonly pairChanged: number }[]>;
  /** Changed pair keys of a member; with `askedOnly`, those that it asked for itself. */
  pairsChanged(window: ChangeWindow, id: Id, askedOnly: boolean): Promise<readonly SeenPair[]>;
  macsOf(id: Id): Promise<readonly MacEntry[]>;
  listMembers(after: number, limit: number): Promise<readonly Member[]>;
  listKeys(after: number, limit: number): Promise<readonly KeyListEntry[]>;
  listMacs(after: number, limit: number): Promise<readonly MacEntry[]>;
  listAudit(server: Id, after: number, limit: number): Promise<readonly AuditEntry[]>;
  lastAudit(server: Id): Promise<AuditEntry | undefined>;
}

/** Questions and changes inside one transaction. */
export interface StoreTransaction extends StoreReads {
  /** The next change number; numbers rise in the order of commits. */
  nextChange(): Promise<number>;
  macEntries(mac: MacAddress): Promise<readonly MacEntry[]>;
  insertMember(member: NewMember): Promise<void>;
  /** A new membership of the same identity. */
  updateMembership(member: NewMember): Promise<void>;
  /** Whether it is online, and where (undefined: as before). */
  updatePresence(
    id: Id,
    presence: { readonly online: boolean; readonly endpoints?: readonly Endpoint[] },
    changed: number,
  ): Promise<void>;
  touchMember(id: Id, changed: number): Promise<void>;
  setBoot(id: Id, boot: Boot): Promise<void>;
  /** @returns false if the index is in use or rests */
  takeIndex(index: number, id: Id, bootDigest: Buffer, now: number): Promise<boolean>;
  releaseIndex(index: number, now: number): Promise<void>;
  /** Forgets indices that were released before a time. */
  forgetIndices(releasedBefore: number): Promise<void>;
  putMac(entry: MacEntry): Promise<void>;
  /** Who has bound this address or prefix exclusively. */
  ipOwner(prefix: string): Promise<Id | undefined>;
  /** Replaces the addresses granted to a member. */
  bindIps(id: Id, prefixes: readonly string[], shared: boolean, now: number): Promise<void>;
  tokenUses(tokenId: Uint8Array): Promise<number>;
  countToken(tokenId: Uint8Array, now: number): Promise<void>;
  /** Inserts unless the pair has a key. @returns true if this one was inserted */
  insertPair(pair: PairKey): Promise<boolean>;
  /** Notes that `id`, an end of (a, b), asked for the key itself. */
  markPairAsked(a: Id, b: Id, id: Id, change: number): Promise<void>;
  markGroupAsked(id: Id, change: number): Promise<void>;
  insertGroupKey(key: GroupKey): Promise<void>;
  insertSettings(settings: StoredSettings, now: number): Promise<void>;
  /** Gives every member that takes part in traffic a new change number, so that all see it anew. */
  renumberMembers(): Promise<void>;
  /** Gives pair keys that one end has not asked for, and group keys, new change numbers. */
  renumberKeys(): Promise<void>;
  appendAudit(entry: AuditEntry): Promise<void>;
}

export interface Store extends StoreReads {
  readonly meta: StoreMeta;
  /** Runs `fn` atomically; settles after the commit is durable. @throws PairwireError STORE_FAILED, or what `fn` threw */
  write<T>(fn: (tx: StoreTransaction) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}
