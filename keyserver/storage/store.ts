/**
 * The store at the level of the domain: what the key server knows, read and written in its
 * own terms. Every method is asynchronous, so that SQLite and PostgreSQL serve alike.
 *
 * Reads see committed state only. Writes happen inside `write(fn)`, which is atomic and
 * settles only when the commit is on the disk; so whatever was answered after it survives
 * kill -9 and a power cut. `fn` may await nothing but its own transaction.
 *
 * Keys are sealed where they are stored, and open here (key-ring.ts, docs/protocol.md section 11). Identity documents are in
 * memberships in clear, and beside them as the KMS has sealed them.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { Endpoint, NetFar } from '../../src/protocol/messages.js';
import type { Role } from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import type { ServerAddress } from '../../src/protocol/token.js';
import type { RowGuard } from './row-guard.js';

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
  /** The high 8 bits of the sender indices that this server draws; 0 for the first server of a subnet. */
  readonly number: number;
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
  readonly state: 'active' | 'revoked';
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
  /** The server where it is at home; undefined: this one. */
  readonly home: Id | undefined;
}

export type NewMember = Omit<
  Member,
  'boot' | 'groupAsked' | 'online' | 'endpoints' | 'state' | 'home'
> & { readonly home?: Id };

/** `freed`: it was a tombstone; the row says so to those who were told of it. */
export type MacKind = 'own' | 'tombstone' | 'freed';

export interface MacEntry {
  readonly mac: MacAddress;
  /** True for an address that was granted to several members. */
  readonly shared: boolean;
  readonly member: Id;
  readonly kind: MacKind;
  readonly serial: number;
  readonly seenAt: number;
  /** Change number of when it became a member's own, or was freed. */
  readonly changed: number;
}

/** An address outside, and the plain member that it is behind. */
export interface Learned {
  readonly vlan: number;
  readonly mac: MacAddress;
  /** Undefined: nobody's any more. */
  readonly member: Id | undefined;
  readonly since: number;
  /** Key-server time of the newest sighting, and its number at the member. */
  readonly sighted: number;
  readonly sighting: number;
  /** When it was last reported. */
  readonly refreshed: number;
  /** Times of its last moves. */
  readonly moves: readonly number[];
  /** For how long which member had it, ms. */
  readonly held: Readonly<Record<string, number>>;
  /** It stays where it is until then; 0: it may move. */
  readonly frozenUntil: number;
  readonly pinned: boolean;
  /** It was pinned once: its row is never forgotten. */
  readonly kept: boolean;
  readonly serial: number;
  readonly changed: number;
}

/** Why an IP address is announced by one MAC address alone; `freed`: it is not any more, and the row says so. */
export type BindingKind = 'granted' | 'pinned' | 'seen' | 'freed';

/** An IP address of the subnet and the MAC address that may announce it. */
export interface Binding {
  /** Canonical text. */
  readonly ip: string;
  readonly mac: MacAddress;
  readonly kind: BindingKind;
  /** Whose it is, or was; undefined for one that was pinned. */
  readonly member: Id | undefined;
  /** When this MAC address got it. */
  readonly since: number;
  /** When it was last reported, or freed. */
  readonly refreshed: number;
  readonly serial: number;
  readonly changed: number;
}

/** A generation that both ends are to have before either sends with it. */
export interface NextGeneration {
  readonly key: Buffer;
  readonly pwId: number;
  readonly reason: string;
  readonly confirmedA: boolean;
  readonly confirmedB: boolean;
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
  /** When it gets too old, key-server time. */
  readonly dueAt: number;
  readonly next: NextGeneration | undefined;
  /** The server that makes it; undefined: this one. */
  readonly maker: Id | undefined;
}

/** The ends of a pair. */
export type PairEnds = Pick<PairKey, 'a' | 'b'>;

/** A pair as it is read in order to renew its key: of all pairs, so no more than that takes. */
export type KnownPair = Pick<PairKey, 'a' | 'b' | 'key' | 'pwId' | 'askedA' | 'askedB'>;

/** A pair of which a key is not what was sealed there (docs/protocol.md 11.1): what its row says beside that. */
export interface BrokenPair
  extends Pick<PairKey, 'a' | 'b' | 'askedA' | 'askedB' | 'serial' | 'changed' | 'maker'> {
  readonly key: undefined;
  /** The highest number that the row gives to a key; who broke the key may have changed it, too. */
  readonly pwId: number;
}

/** A pair as its ends are told of it. */
export interface ToldPair extends KnownPair {
  readonly changed: number;
  readonly next: Pick<NextGeneration, 'key' | 'pwId'> | undefined;
}

/** A pair with a next generation, after an end has confirmed it: which ends have, and what comes into force. */
export interface ConfirmedPair extends PairEnds {
  readonly askedA: number;
  readonly askedB: number;
  readonly next: NextGeneration;
  readonly maker: Id | undefined;
}

export interface GroupKey {
  readonly id: Id;
  readonly key: Buffer;
  readonly pwId: number;
  readonly reason: string;
  readonly createdAt: number;
  readonly serial: number;
  readonly changed: number;
  /** Oldest generation that may still be heard: this one after a revocation (C6). */
  readonly oldest: number;
  /** When it gets too old, key-server time; 0: never. */
  readonly dueAt: number;
  readonly next: NextGroup | undefined;
}

/** A group of which a key is not what was sealed there: what its rows say beside that. */
export interface BrokenGroup
  extends Pick<GroupKey, 'id' | 'pwId' | 'createdAt' | 'oldest' | 'dueAt' | 'changed'> {
  readonly key: undefined;
  readonly next: Pick<NextGroup, 'pwId'> | undefined;
}

/** A generation that all holders are to have before anybody sends with it. */
export interface NextGroup {
  readonly key: Buffer;
  readonly pwId: number;
  readonly reason: string;
}

/** How a key server of another subnet is reached, and as whom. */
export interface NetContact {
  readonly subnet: Id;
  /** Our id there. */
  readonly member: Id;
  readonly servers: readonly ServerAddress[];
  /** The operator's public key there. */
  readonly operator: Uint8Array;
}

/** Another subnet that this one is linked with, and the net key with it. */
export interface Net {
  readonly net: Id;
  /** The far key server's member id here, if it asks us: then we make the key. */
  readonly member: Id | undefined;
  /** How we ask it, if it makes the key. */
  readonly contact: NetContact | undefined;
  /** Prefixes that may be behind it, as the operator here has named them. */
  readonly local: readonly string[];
  /** Those that its key server names. */
  readonly told: readonly string[];
  /** What its key server tells of its link ports, and of the time. */
  readonly far: NetFar | undefined;
  /** Undefined: none yet, or the link has ended. */
  readonly key: Buffer | undefined;
  /** Number of the key, or of the last one there was; 0 before the first. */
  readonly pwId: number;
  readonly oldest: number;
  readonly reason: string;
  readonly createdAt: number;
  /**
   * Of a key made here: when it gets too old, key-server time, 0: never. Of one that is made elsewhere: since when we want
   * another one of its maker, for a link port that had this one is revoked; 0: we do not.
   */
  readonly dueAt: number;
  readonly next: NextGroup | undefined;
  readonly serial: number;
  readonly changed: number;
}

/**
 * A linked subnet of which a key is not what was sealed there: as if it had none. `pwId` is the highest number that the row
 * gives to a key.
 */
export interface BrokenNet extends Omit<Net, 'key' | 'next'> {
  readonly key: undefined;
  readonly next: undefined;
  readonly isBroken: true;
}

/** How a key server of this subnet is reached, and as whom. */
export type ServerContact = Pick<NetContact, 'member' | 'servers'>;

/** Another key server of this subnet. */
export interface PeerServer {
  readonly server: Id;
  /** Its member id here, if it comes to us. */
  readonly member: Id | undefined;
  /** How we come to it otherwise. */
  readonly contact: ServerContact | undefined;
  /** The high 8 bits of the sender indices that it draws; undefined until it has said so. */
  readonly number: number | undefined;
  /** Its store, and up to where we have what is at home there. */
  readonly epoch: Buffer;
  readonly cursor: number;
  /** We have had all of it once. */
  readonly complete: boolean;
  /** How far the subnet's time, which it tells, is ahead of our clock, ms. */
  readonly timeOffset: number;
  readonly serial: number;
  /** When all of it was known last, key-server time; 0: never. */
  readonly currentAt: number;
  /** The start of that server (docs/protocol.md 3.8) that `cursor` is of; undefined until told. */
  readonly run: Buffer | undefined;
}

/** A pair key as another server has told it. */
export interface ForeignPair extends PairEnds {
  readonly maker: Id;
  readonly key: Buffer;
  readonly pwId: number;
  readonly next: Pick<NextGeneration, 'key' | 'pwId'> | undefined;
  readonly createdAt: number;
}

/** A sealed identity document and the sealed DEK that opens it. */
export interface IdentityPair {
  readonly document: Buffer;
  readonly dek: Buffer;
}

/** A start of a server on this database, and the last change number before it. */
export interface Run {
  readonly id: Buffer;
  readonly after: number;
}

/** A member that was revoked; numbers rise by one. */
export interface Revocation {
  readonly number: number;
  readonly member: Id;
  readonly revokedAt: number;
  readonly changed: number;
}

export interface StoredSettings {
  readonly version: number;
  readonly record: Signed;
  readonly changed: number;
}

/** Who has seen entries that an audit log lacks. */
export interface StoredWitness {
  /** A member's id, `-` for the server itself, `+` for the operator's last `restore confirm`. */
  readonly witness: string;
  /** A head of the log that the server has signed. */
  readonly record: Signed;
  /** When it was told, ms. */
  readonly at: number;
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
  readonly next: { readonly key: Buffer; readonly pwId: number } | undefined;
}

/** One of which a key is not what was sealed there. */
export interface BrokenSeenPair extends Pick<SeenPair, 'seq' | 'peer'> {
  readonly key: undefined;
}

/** A window of change numbers: after < seq <= upTo, at most `limit` rows by rising seq. */
export interface ChangeWindow {
  readonly after: number;
  readonly upTo: number;
  readonly limit: number;
}

/** A row of the ID-ID-KEY list without its key. Of a group and of a net, `b` is undefined. */
export interface KeyListEntry {
  readonly kind: 'pair' | 'group' | 'net';
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
  /** The last revocation's number. */
  readonly revocation: number;
  /** The database was put back from a backup, and its operator has not confirmed it yet. */
  readonly putBack: boolean;
}

/** Questions. */
export interface StoreReads {
  counters(): Promise<Counters>;
  member(id: Id): Promise<Member | undefined>;
  /** Also one whose row is not what was written (docs/protocol.md 11.9): what it says is not to be believed. */
  anyMember(id: Id): Promise<Member | undefined>;
  /** Revoked ones, too: a channel key is never another member's. */
  memberByChannel(channel: Uint8Array): Promise<Member | undefined>;
  /** The member that owns an address; of several that share it, one that is online, then the latest start. */
  memberByMac(mac: MacAddress): Promise<Member | undefined>;
  /** The member whose newest boot record has this sender index. */
  memberByIndex(index: number): Promise<Member | undefined>;
  /** @throws PairwireError SEAL_BROKEN */
  pairKey(a: Id, b: Id): Promise<PairKey | undefined>;
  /** The same, also of a pair with a broken seal. */
  anyPair(a: Id, b: Id): Promise<PairKey | BrokenPair | undefined>;
  /** Pairs whose key is too old and that have no next generation yet, the oldest first. */
  pairsDue(now: number, limit: number): Promise<readonly (PairKey | BrokenPair)[]>;
  /** Pairs with a next generation that is not in force. */
  pairsPrepared(limit: number): Promise<readonly (PairKey | BrokenPair)[]>;
  /** All pairs by rising serial number. */
  pairsAfter(
    serial: number,
    limit: number,
  ): Promise<readonly ((KnownPair & { readonly serial: number }) | BrokenPair)[]>;
  /** All pair keys of a member. */
  pairsOf(id: Id): Promise<readonly (PairKey | BrokenPair)[]>;
  /** What is in force and what is prepared. @throws PairwireError SEAL_BROKEN */
  groupKey(id: Id): Promise<GroupKey | undefined>;
  /** The same, also of a group with a broken seal. */
  anyGroup(id: Id): Promise<GroupKey | BrokenGroup | undefined>;
  /** One linked subnet; also one whose link has ended. */
  net(id: Id): Promise<Net | undefined>;
  /** All of them, by serial number, but those with a broken seal. */
  nets(): Promise<readonly Net[]>;
  /** Those, too. */
  anyNets(): Promise<readonly (Net | BrokenNet)[]>;
  settings(): Promise<StoredSettings | undefined>;
  /** Version of the newest settings; 0: there are none. */
  settingsVersion(): Promise<number>;
  /** Revocations by rising change number. */
  revocations(window: ChangeWindow): Promise<readonly Revocation[]>;
  revocationOf(id: Id): Promise<Revocation | undefined>;
  /** The ids that hold a pair key with this member. */
  peersOf(id: Id): Promise<readonly Id[]>;
  /** Active members with the role link that were marked online. */
  linksOnline(): Promise<readonly Id[]>;
  /** Active members with the role link, those that were marked online first. */
  links(): Promise<readonly Member[]>;
  /** The other key servers of this subnet, by id. */
  peerServers(): Promise<readonly PeerServer[]>;
  peerServer(id: Id): Promise<PeerServer | undefined>;
  /** Active members at home at another server. */
  membersAt(home: Id): Promise<readonly Id[]>;
  /** How many are or were, and how many more it has only revoked. */
  countMembersAt(home: Id): Promise<number>;
  /** Whether a server has revoked an id before it told of it. */
  isRevokedAt(home: Id, id: Id): Promise<boolean>;
  /** A member's identity document as the KMS has sealed it. */
  identityPair(id: Id): Promise<IdentityPair | undefined>;
  /** Who says that the database was put back, since its operator confirmed it last. */
  restoreClaims(): Promise<readonly string[]>;
  /** Whether a server was another one of this subnet once, and was removed. */
  wasPeerServer(server: Id): Promise<boolean>;
  /** Changed members that are at home here and take part in traffic. */
  ownMembersChanged(window: ChangeWindow): Promise<readonly Member[]>;
  /** Changed pair keys that are made here, with members at home at another server. */
  pairsWithChanged(window: ChangeWindow, home: Id): Promise<readonly (PairKey | BrokenPair)[]>;
  /** Members at home here that were marked online. */
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
  pairsChanged(
    window: ChangeWindow,
    id: Id,
    askedOnly: boolean,
  ): Promise<readonly (SeenPair | BrokenSeenPair)[]>;
  macsOf(id: Id): Promise<readonly MacEntry[]>;
  /** All that is known of an address as somebody's own. */
  macEntries(mac: MacAddress): Promise<readonly MacEntry[]>;
  /** Members' own addresses and freed ones by rising change number; each address by its newest row. */
  macsChanged(window: ChangeWindow): Promise<readonly MacEntry[]>;
  learned(vlan: number, mac: MacAddress): Promise<Learned | undefined>;
  /** The same address in all VLANs. */
  learnedAt(mac: MacAddress): Promise<readonly Learned[]>;
  learnedChanged(window: ChangeWindow): Promise<readonly Learned[]>;
  /** Addresses of a member, oldest report first: all, or those that were not reported since a time. */
  learnedBehind(
    id: Id | undefined,
    refreshedBefore: number,
    limit: number,
  ): Promise<readonly Learned[]>;
  /** Frozen addresses that may move again. */
  learnedThawed(now: number, limit: number): Promise<readonly Learned[]>;
  /** How many addresses are behind a member. */
  countLearned(id: Id): Promise<number>;
  binding(ip: string): Promise<Binding | undefined>;
  /** Granted and seen addresses of a member. */
  bindingsOf(id: Id): Promise<readonly Binding[]>;
  bindingsChanged(window: ChangeWindow): Promise<readonly Binding[]>;
  /** Rows of a kind that were not refreshed since a time, the oldest first. */
  bindingsBefore(
    kind: BindingKind,
    refreshedBefore: number,
    limit: number,
  ): Promise<readonly Binding[]>;
  /** All rows, freed ones too. */
  countBindings(): Promise<number>;
  /** Members whose grants name this address or prefix. */
  ipHolders(prefix: string): Promise<readonly Id[]>;
  /** Active members with the role plain, by id. */
  plainMembers(): Promise<readonly { readonly id: Id; readonly online: boolean }[]>;
  listMembers(after: number, limit: number): Promise<readonly Member[]>;
  listKeys(after: number, limit: number): Promise<readonly KeyListEntry[]>;
  /** Own addresses, tombstones, and addresses outside. */
  listMacs(after: number, limit: number): Promise<readonly (MacEntry | Learned)[]>;
  listBindings(after: number, limit: number): Promise<readonly Binding[]>;
  listAudit(server: Id, after: number, limit: number): Promise<readonly AuditEntry[]>;
  lastAudit(server: Id): Promise<AuditEntry | undefined>;
  /** Who has seen entries that the audit log of a server lacks, as far as somebody has not changed that (audit-shared.ts). */
  auditWitnesses(server: Id, limit: number): Promise<readonly StoredWitness[]>;
}

/** Questions and changes inside one transaction. */
export interface StoreTransaction extends StoreReads {
  /** The next change number; numbers rise in the order of commits. */
  nextChange(): Promise<number>;
  /** So many of them, without a gap. @returns the first */
  nextChanges(count: number): Promise<number>;
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
  /** Replaces what is known of an address outside. */
  putLearned(entry: Learned): Promise<void>;
  countPins(): Promise<number>;
  /** Deletes addresses that have been nobody's since before a time. */
  forgetLearned(refreshedBefore: number): Promise<void>;
  /** Replaces what is known of an IP address. */
  putBinding(entry: Binding): Promise<void>;
  /** Deletes rows that were freed before a time. */
  forgetBindings(freedBefore: number): Promise<void>;
  /** Who has bound this address or prefix exclusively. */
  ipOwner(prefix: string): Promise<Id | undefined>;
  /** Replaces the addresses granted to a member. */
  bindIps(id: Id, prefixes: readonly string[], shared: boolean, now: number): Promise<void>;
  /** How many members at home at a server have the grant of a token, also if they are revoked. */
  membersByToken(home: Id, tokenId: Uint8Array): Promise<number>;
  tokenUses(tokenId: Uint8Array): Promise<number>;
  countToken(tokenId: Uint8Array, now: number): Promise<void>;
  /** Inserts unless the pair has a key. @returns true if this one was inserted */
  insertPair(pair: Omit<PairKey, 'next' | 'maker'>): Promise<boolean>;
  /** Stores a pair key that another server makes, in place of what was known of it. */
  putForeignPair(pair: ForeignPair, changed: number): Promise<void>;
  /** The same of the group key. */
  learnGroup(key: GroupKey): Promise<void>;
  putPeerServer(peer: PeerServer): Promise<void>;
  /** Remembers that a server has revoked an id of which it had not told. */
  noteRevokedAt(home: Id, id: Id): Promise<void>;
  putAuditWitness(server: Id, witness: StoredWitness): Promise<void>;
  /** Forgets all of a server. */
  clearAuditWitnesses(server: Id): Promise<void>;
  /** Keeps a member's sealed identity document, in the place of the one before. */
  putIdentityPair(id: Id, pair: IdentityPair, now: number): Promise<void>;
  /** Notes who says that the database was put back; forgotten when its operator confirms. */
  addRestoreClaim(claimant: string): Promise<void>;
  /** Remembers a server that is removed. */
  noteFormerServer(server: Id): Promise<void>;
  removePeerServer(id: Id): Promise<void>;
  /** Nobody else has this sender index any more: its server says whose it is. */
  takeIndexFromOthers(index: number, id: Id): Promise<void>;
  /**
   * Stores the next generation of a pair that has none.
   * @param pair as it was last read; it is read again if another generation is in force by now
   * @returns the pair, or undefined: there is none, it has a next generation, or a broken seal
   */
  prepareNext(
    pair: KnownPair,
    next: { readonly key: Buffer; readonly reason: string },
    changed: number,
  ): Promise<(ToldPair & Pick<ConfirmedPair, 'next'>) | undefined>;
  /**
   * Notes that `id`, an end of the pair, has this next generation. @returns the pair, or undefined: it is not the pair's
   * next one, or its seal is broken
   */
  confirmNext(pair: PairEnds, id: Id, pwId: number): Promise<ConfirmedPair | undefined>;
  /** Puts this next generation in force. @returns the pair, or undefined: it is not the pair's next one */
  commitNext(
    pair: Omit<ConfirmedPair, 'maker'>,
    times: { readonly createdAt: number; readonly dueAt: number },
    changed: number,
  ): Promise<ToldPair | undefined>;
  /** Puts a key in force in place of whatever is in force or prepared. */
  replacePair(
    pair: PairEnds,
    key: Pick<PairKey, 'key' | 'pwId' | 'reason' | 'createdAt' | 'dueAt'>,
    changed: number,
  ): Promise<void>;
  /** Gives a pair another change number, so that whoever follows it is told of it anew. */
  renumberPair(pair: PairEnds, changed: number): Promise<void>;
  /** The ends of all pairs that have a key. */
  pairEnds(): Promise<readonly PairEnds[]>;
  /** Takes a pair's key, and the one that is prepared. */
  removePair(a: Id, b: Id): Promise<void>;
  postponePair(pair: PairEnds, dueAt: number): Promise<void>;
  /** Another interval holds from now on: each pair is due so long after its key was made. */
  redatePairs(intervalMs: number): Promise<void>;
  /** Notes that `id`, an end of (a, b), asked for the key itself. */
  markPairAsked(a: Id, b: Id, id: Id, change: number): Promise<void>;
  markGroupAsked(id: Id, change: number): Promise<void>;
  /** Puts a key in force; what was in force or prepared before is erased. */
  replaceGroup(key: Omit<GroupKey, 'next'>): Promise<void>;
  /** Stores the next generation of a group that has none. */
  prepareGroup(
    id: Id,
    next: NextGroup & { readonly serial: number },
    changed: number,
  ): Promise<void>;
  /** Puts the next generation in force and erases the one before. */
  commitGroup(
    id: Id,
    times: { readonly createdAt: number; readonly dueAt: number; readonly oldest: number },
    changed: number,
  ): Promise<void>;
  /** Another interval holds from now on, 0: never by age. */
  redateGroup(intervalMs: number): Promise<void>;
  /** Replaces what is known of a linked subnet. */
  putNet(net: Net): Promise<void>;
  /** Another interval holds from now on for net keys that are made here, 0: never by age. */
  redateNets(intervalMs: number): Promise<void>;
  /**
   * Revokes an active member: its keys, addresses and index are gone, its id stays taken. @returns the
   * revocation's number
   */
  revoke(id: Id, at: number, changed: number): Promise<number>;
  /** The last starts of a server, the newest last. */
  runs(): Promise<readonly Run[]>;
  setRuns(runs: readonly Run[]): Promise<void>;
  /** From now on cursors given before mean nothing: the database was put back. `meta` shows it after the commit. */
  renewEpoch(epoch: Uint8Array): Promise<void>;
  /** Notes that the database was put back, or that its operator has confirmed it. */
  setPutBack(putBack: boolean): Promise<void>;
  /** Raises the last revocation's number, so that what a restored database forgot is not used again. */
  raiseRevocation(atLeast: number): Promise<void>;
  insertSettings(settings: StoredSettings, now: number): Promise<void>;
  /** Gives every member that takes part in traffic a new change number, so that all see it anew. */
  renumberMembers(): Promise<void>;
  /** Gives pair keys that one end has not asked for, and group keys, new change numbers. */
  renumberKeys(): Promise<void>;
  appendAudit(entry: AuditEntry): Promise<void>;
}

export interface Store extends StoreReads {
  readonly meta: StoreMeta;
  /** What looks after the MACs over rows; undefined in a store without its keys. */
  readonly rows: RowGuard | undefined;
  /** Entries of its memory that made room for others since the start: they are read from the database again. */
  readonly evicted: number;
  /** Runs `fn` atomically; settles after the commit is durable. @throws PairwireError STORE_FAILED, or what `fn` threw */
  write<T>(fn: (tx: StoreTransaction) => Promise<T>): Promise<T>;
  /** Settles when nobody else can have written until after the call, so that what is in memory still held. @throws PairwireError STORE_FAILED */
  prove(): Promise<void>;
  close(): Promise<void>;
}
