/**
 * The members that this gateway may hear and the keys that it shares with them: what the key
 * server said, after verification, as commands to the data plane.
 *
 *   record -> Verifier -> entry -> peer.set, key.pair        (a contradiction: peer.remove)
 *
 * The table holds state, not events: `installAll` brings a data plane that knows nothing to
 * the same state, and every command may be repeated, because a key that the data plane holds is
 * left as it is (threats.md C1). Commands of one peer leave in the order of the calls.
 */
import type { Id } from '../../src/protocol/ids.js';
import { type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import type { Endpoint, PeerRecord } from '../../src/protocol/messages.js';
import {
  decide,
  groupModeOf,
  inGroupTraffic,
  type Policy,
  type Subject,
  subjectOf,
} from '../../src/protocol/policy.js';
import type { Right, Role, Settings } from '../../src/protocol/records.js';
import type { PairwireError } from '../../src/runtime/errors.js';
import type { CommandPort } from '../dataplane/client.js';
import type { CommandFields, CommandType } from '../dataplane/messages.gen.js';
import { type Told, tellDataPlane } from '../dataplane/tell.js';
import { rightsBits } from '../guard/rights.js';
import { asPairwireError, fingerprint, keyFingerprint } from './installed.js';
import type { VerifiedPeer, Verifier } from './verifier.js';

/** How long a former generation may still be heard. */
const GRACE_MS = 10_000;
/** Commands sent before their answers are awaited, when everything is installed anew. */
const BATCH = 256;

/** What is wanted of the surroundings. */
export interface PeerTableDeps {
  readonly self: Subject;
  /** Number of the port in the data plane. */
  readonly port: number;
  readonly verifier: Pick<Verifier, 'peer' | 'forget' | 'revoked'>;
  readonly dataPlane: CommandPort;
  /** False for endpoints that no peer may send us to (loopback, multicast). */
  readonly acceptsEndpoint: (endpoint: Endpoint) => boolean;
  /** Whether an endpoint is on a network that we are on, too. */
  readonly isNear: (endpoint: Endpoint) => boolean;
  /** A member was refused: log it, count it. */
  readonly onRefused: (id: Id, error: PairwireError) => void;
  /** The server introduced a member that the policy keeps from us: on its way when that came, or the server does not go by it. */
  readonly onDenied: (id: Id) => void;
  /** A command failed for another reason than a missing data plane. */
  readonly onCommandFailed: (error: PairwireError) => void;
  /** The data plane can receive under the next generation with this peer; said again when the server asks again. */
  readonly onPrepared: (peer: Id) => void;
  /** The same of the group key. */
  readonly onGroupPrepared: () => void;
  /** An address has an owner with an index now: negative answers are void. */
  readonly onAddress: (mac: MacAddress) => void;
  /** Makes the key of loop probes from a generation of the group key, for a plain port. */
  readonly probeKey?: ((generation: Generation) => Uint8Array) | undefined;
}

/** A key as the key server gave it, with its generation. */
export interface Generation {
  readonly pwId: number;
  readonly key: Uint8Array;
}

/** A pair's key with the next one, if one is prepared. */
export interface PairGenerations extends Generation {
  readonly next?: Generation | undefined;
}

/** The group key with the next one, and which generation is the oldest that may be heard. */
export interface GroupGenerations extends PairGenerations {
  readonly oldest: number;
}

/**
 * One member.
 *
 *   absent (no boot record or index) <-> ready <-> refused (a record contradicted)
 *   unconfirmed (the KMS was not heard yet) -> one of them
 */
export interface PeerEntry {
  readonly id: Id;
  role: Role | undefined;
  /** As the policy sees it; undefined until there was a good record. */
  subject: Subject | undefined;
  /** Of its grant. */
  rights: readonly Right[];
  state: 'absent' | 'ready' | 'refused' | 'unconfirmed';
  /** As it was told last. */
  record: PeerRecord | undefined;
  /** Why, if refused: code and message. */
  refusal: { code: string; message: string } | undefined;
  online: boolean;
  index: number | undefined;
  boot: Uint8Array | undefined;
  bootSequence: number;
  macs: readonly MacAddress[];
  ips: readonly string[];
  endpoints: readonly Endpoint[];
  key: Generation | undefined;
  /** The generation that both ends are to have before either sends with it. */
  next: Generation | undefined;
  /** Number of the last change applied, so that an older one changes nothing. */
  seq: number;
  keySeq: number;
}

/** Installed state of a peer: repeated commands are not sent. */
interface Sent {
  peer: string;
  key: string;
  next: string;
  /** Commands that the data plane has not answered yet. */
  underWay: number;
}

/** Members and keys of one port. */
export class PeerTable {
  readonly #deps: PeerTableDeps;
  readonly #entries = new Map<Id, PeerEntry>();
  readonly #byMac = new Map<MacAddress, Id>();
  readonly #byIndex = new Map<number, Id>();
  readonly #sent = new Map<Id, Sent>();
  /** Peers whose next generation the data plane has. */
  readonly #prepared = new Set<Id>();
  #group: Generation | undefined;
  #nextGroup: Generation | undefined;
  /** The oldest generation of the group key that may be heard. */
  #oldestGroup = 0;
  /** The next generation that the data plane has. */
  #preparedGroup: number | undefined;
  /** Generations that we send with and that the server has as next ones: it was put back, and waits for our word. */
  readonly #overtaken = new Map<Id, number>();
  #overtakenGroup: number | undefined;
  #groupSeq = 0;
  #groupWanted = true;
  #policy: Policy | undefined;
  readonly #denied = new Set<Id>();
  /** Generations that we hold and that the server can't have made: its database was put back. */
  readonly #unknownToServer = new Map<Id, number>();
  #groupUnknownToServer: number | undefined;
  /** Newest generations that a data plane had when we came, by peer; their keys it does not give away. */
  #found = new Map<string, number>();
  #foundGroup = 0;
  #ownBoot: number | undefined;
  /** Ids, and those of them with a pair key, that were named during a full synchronisation; undefined outside of one. */
  #seen: Set<Id> | undefined;
  #seenPairs: Set<Id> | undefined;

  constructor(deps: PeerTableDeps) {
    this.#deps = deps;
  }

  entries(): IterableIterator<PeerEntry> {
    return this.#entries.values();
  }

  get(id: Id): PeerEntry | undefined {
    return this.#entries.get(id);
  }

  /** The member that sends and receives for an address. */
  byMac(mac: MacAddress): PeerEntry | undefined {
    const id = this.#byMac.get(mac);
    return id === undefined ? undefined : this.#entries.get(id);
  }

  byIndex(index: number): PeerEntry | undefined {
    const id = this.#byIndex.get(index);
    return id === undefined ? undefined : this.#entries.get(id);
  }

  get group(): Generation | undefined {
    return this.#group;
  }

  /** Takes a member's record. False if it was refused. */
  takeMember(record: PeerRecord, seq?: number): boolean {
    if (record.id === this.#deps.self.id) return true;
    const known = this.#entries.get(record.id);
    if (seq !== undefined && known !== undefined && seq < known.seq) {
      return known.state !== 'refused';
    }
    let verified: VerifiedPeer;
    try {
      verified = this.#deps.verifier.peer(record);
    } catch (thrown) {
      this.#seen?.add(record.id);
      const refused = this.#entry(record.id);
      refused.record = record;
      if (seq !== undefined) refused.seq = seq;
      this.refuse(record.id, asPairwireError(thrown));
      return false;
    }
    if (!this.#mayMeet(subjectOf(record.id, verified.member.grant))) {
      this.#deps.onDenied(record.id);
      return false;
    }
    this.#seen?.add(record.id);
    const entry = this.#entry(record.id);
    if (seq !== undefined) entry.seq = seq;
    entry.record = record;
    this.#apply(entry, record, verified);
    if (entry.state === 'ready') this.#install(entry);
    else if (this.#sent.has(entry.id)) this.#remove(entry.id);
    return true;
  }

  /** Takes what was told last of a member, or of all, once more: what is known of who they are is new. */
  takeAgain(id?: Id): void {
    const entries = id === undefined ? [...this.#entries.values()] : [this.#entries.get(id)];
    for (const entry of entries) {
      if (entry?.record !== undefined) this.takeMember(entry.record);
    }
  }

  /**
   * Takes a pair's key, and with a change the next generation or that there is none. An older
   * generation than the one held is left aside, as is another key with its number; where that shows that the server
   * has forgotten what it made, `unknownToServer` names the peer.
   */
  takePair(peer: Id, generation: PairGenerations, seq?: number): void {
    if (this.#denied.has(peer)) return;
    const entry = this.#entry(peer);
    this.#seen?.add(peer);
    if (seq !== undefined) {
      if (seq < entry.keySeq) return;
      entry.keySeq = seq;
    }
    const { key: former, next: formerNext } = entry;
    this.#seenPairs?.add(peer);
    const found = this.#found.get(peer) ?? 0;
    const verdict = compare(entry, found, generation, this.#seen !== undefined);
    if (verdict === 'server knows less') this.#unknownToServer.set(peer, highest(entry, found));
    if (verdict === 'leave' && this.#overtakes(former, generation)) {
      this.#overtaken.set(peer, generation.next.pwId);
      this.#deps.onPrepared(peer);
    }
    if (verdict !== 'take') return;
    this.#unknownToServer.delete(peer);
    this.#overtaken.delete(peer);
    this.#found.delete(peer);
    entry.key = copyOf(generation);
    if (seq !== undefined) {
      entry.next = generation.next === undefined ? undefined : copyOf(generation.next);
    } else if (formerNext !== undefined && formerNext.pwId <= generation.pwId) {
      entry.next = undefined;
    }
    this.#install(entry);
    if (former !== undefined && former.pwId < generation.pwId)
      this.#drop(peer, generation.pwId - 1);
    former?.key.fill(0);
    if (formerNext !== entry.next) formerNext?.key.fill(0);
  }

  /** A frame opened under the next generation of a peer: the commit is on its way, or was lost. */
  committed(peer: Id, pwId: number): void {
    const entry = this.#entries.get(peer);
    if (entry?.next?.pwId !== pwId) return;
    const former = entry.key;
    entry.key = entry.next;
    entry.next = undefined;
    this.#install(entry);
    if (former === undefined) return;
    this.#drop(peer, former.pwId);
    former.key.fill(0);
  }

  /** The next generations that the data plane can receive under. */
  prepared(): { readonly peer: Id; readonly pwId: number }[] {
    const all: { readonly peer: Id; readonly pwId: number }[] = [];
    for (const id of this.#prepared) {
      const pwId = this.#entries.get(id)?.next?.pwId;
      if (pwId === undefined) this.#prepared.delete(id);
      else all.push({ peer: id, pwId });
    }
    for (const [id, pwId] of this.#overtaken) {
      if (this.#entries.get(id)?.key?.pwId !== pwId) this.#overtaken.delete(id);
      else all.push({ peer: id, pwId });
    }
    return all;
  }

  /** The next generation of the group key that the data plane can receive under. */
  preparedGroup(): number | undefined {
    if (this.#overtakenGroup !== undefined && this.#group?.pwId === this.#overtakenGroup) {
      return this.#overtakenGroup;
    }
    return this.#nextGroup?.pwId === this.#preparedGroup ? this.#preparedGroup : undefined;
  }

  /** Takes the group key, and with a change the next generation or that there is none. */
  takeGroup(generation: GroupGenerations, seq?: number): void {
    if (seq !== undefined) {
      if (seq < this.#groupSeq) return;
      this.#groupSeq = seq;
    }
    const former = this.#group;
    const formerNext = this.#nextGroup;
    const held = { key: former, next: formerNext };
    const found = this.#foundGroup;
    const verdict = compare(held, found, generation, this.#seen !== undefined);
    if (verdict === 'server knows less') this.#groupUnknownToServer = highest(held, found);
    if (verdict === 'leave' && this.#overtakes(former, generation)) {
      this.#overtakenGroup = generation.next.pwId;
      this.#deps.onGroupPrepared();
    }
    if (verdict !== 'take') return;
    this.#overtakenGroup = undefined;
    this.#groupUnknownToServer = undefined;
    this.#foundGroup = 0;
    this.#group = copyOf(generation);
    this.#oldestGroup = generation.oldest;
    if (seq !== undefined) {
      this.#nextGroup = generation.next === undefined ? undefined : copyOf(generation.next);
    } else if (formerNext !== undefined && formerNext.pwId <= generation.pwId) {
      this.#nextGroup = undefined;
    }
    this.#installGroup();
    former?.key.fill(0);
    if (formerNext !== this.#nextGroup) formerNext?.key.fill(0);
  }

  /**
   * Generations that we hold although the server made none so high, or another key with that number: it is to be
   * told, and makes others above them.
   */
  unknownToServer(): {
    readonly pairs: readonly { readonly peer: Id; readonly pwId: number }[];
    readonly group: number | undefined;
  } {
    const pairs = [...this.#unknownToServer].map(([peer, pwId]) => ({ peer, pwId }));
    return { pairs, group: this.#groupUnknownToServer };
  }

  /** A group frame opened under the next generation: the commit is on its way, or was lost. */
  committedGroup(pwId: number): void {
    if (this.#nextGroup?.pwId !== pwId) return;
    this.#group?.key.fill(0);
    this.#group = this.#nextGroup;
    this.#nextGroup = undefined;
    this.#installGroup();
  }

  /** A member was revoked: it is gone, and no record of it is believed again. */
  revoked(id: Id, number: number): void {
    this.#deps.verifier.revoked(id, number);
    this.gone(id);
  }

  /** A member has left: keys and addresses are forgotten at once. */
  gone(id: Id, seq?: number): void {
    const entry = this.#entries.get(id);
    if (entry === undefined || (seq !== undefined && seq < entry.seq)) return;
    this.#unlink(entry);
    entry.key?.key.fill(0);
    entry.next?.key.fill(0);
    this.#prepared.delete(id);
    this.#unknownToServer.delete(id);
    this.#overtaken.delete(id);
    this.#found.delete(id);
    this.#entries.delete(id);
    this.#deps.verifier.forget(id);
    this.#remove(id);
  }

  /** Stops one member because of a contradiction; a later good record brings it back. */
  refuse(id: Id, error: PairwireError): void {
    const entry = this.#entry(id);
    this.#unlink(entry);
    entry.state = 'refused';
    entry.refusal = { code: error.code, message: error.message };
    this.#remove(id);
    this.#deps.onRefused(id, error);
  }

  /** Begins a synchronisation from nothing: who is not named until `endFull` is gone. */
  beginFull(): void {
    this.#seen = new Set();
    this.#seenPairs = new Set();
    this.#groupSeq = 0;
    for (const entry of this.#entries.values()) {
      entry.seq = 0;
      entry.keySeq = 0;
    }
  }

  /** Ends it. `leftovers` are peers that only the data plane still knows. */
  endFull(leftovers: Iterable<string> = []): void {
    const seen = this.#seen;
    const pairs = this.#seenPairs;
    if (seen === undefined) return;
    this.#seen = undefined;
    this.#seenPairs = undefined;
    for (const entry of [...this.#entries.values()]) {
      if (!seen.has(entry.id)) this.gone(entry.id);
      else if (pairs?.has(entry.id) === false) {
        const newest = highest(entry, this.#found.get(entry.id) ?? 0);
        if (newest > 0) this.#unknownToServer.set(entry.id, newest);
      }
    }
    for (const id of leftovers) {
      if (!this.#entries.has(id as Id)) this.#remove(id as Id);
    }
  }

  /**
   * Notes what a data plane holds that outlived its control plane, so that a server whose database was put back
   * meanwhile does not give those numbers to other keys. Replaces what was found before.
   */
  foundInDataPlane(
    pairs: Iterable<{ readonly peer: string; readonly pwId: number }>,
    group: Iterable<{ readonly pwId: number }>,
  ): void {
    this.#found = new Map();
    for (const { peer, pwId } of pairs) {
      this.#found.set(peer, Math.max(pwId, this.#found.get(peer) ?? 0));
    }
    this.#foundGroup = Math.max(0, ...[...group].map(({ pwId }) => pwId));
  }

  /**
   * Goes by other settings: whom the policy keeps from us is forgotten at once, whatever a server says, and with
   * `group.mode: pairwise` no group key is used.
   */
  useSettings(settings: Settings): void {
    const wanted = groupModeOf(settings) === 'shared';
    this.#policy = settings.policy;
    this.#denied.clear();
    for (const entry of [...this.#entries.values()]) {
      if (entry.subject === undefined) continue;
      if (!this.#mayMeet(entry.subject)) continue;
      this.#install(entry);
    }
    if (wanted === this.#groupWanted) return;
    this.#groupWanted = wanted;
    this.#installGroup();
  }

  /** Members that are there and that no key is held with, by the address to ask for. */
  *withoutKey(): IterableIterator<MacAddress> {
    for (const entry of this.#entries.values()) {
      const mac = entry.macs[0];
      if (entry.state !== 'ready' || !entry.online || entry.key !== undefined) continue;
      if (entry.role !== 'link' && mac !== undefined) yield mac;
    }
  }

  /** False, with the member forgotten, if the policy keeps it from us. */
  #mayMeet(member: Subject): boolean {
    if (decide(this.#policy, this.#deps.self, member).allowed) return true;
    this.gone(member.id);
    this.#denied.add(member.id);
    return false;
  }

  /**
   * Brings a data plane to this table's state under our boot key. Called for a new data
   * plane, a new boot key of ours, and after an attach.
   */
  async installAll(ownBoot: number): Promise<void> {
    this.#ownBoot = ownBoot;
    this.#sent.clear();
    this.#prepared.clear();
    this.#preparedGroup = undefined;
    this.#overtaken.clear();
    this.#overtakenGroup = undefined;
    let sent: Promise<unknown>[] = [];
    for (const entry of [...this.#entries.values()]) {
      if (this.#entries.get(entry.id) !== entry) continue;
      sent.push(...this.#install(entry));
      if (sent.length < BATCH) continue;
      await Promise.all(sent);
      sent = [];
    }
    await Promise.all([...sent, ...this.#installGroup()]);
  }

  /** The data plane is gone: nothing is installed until `installAll`. */
  detached(): void {
    this.#ownBoot = undefined;
    this.#sent.clear();
    this.#prepared.clear();
    this.#preparedGroup = undefined;
    this.#overtaken.clear();
    this.#overtakenGroup = undefined;
  }

  /** Whether we, with a data plane, send with what the server has as the next generation. */
  #overtakes(
    held: Generation | undefined,
    told: PairGenerations,
  ): told is PairGenerations & { readonly next: Generation } {
    return this.#ownBoot !== undefined && told.next !== undefined && told.next.pwId === held?.pwId;
  }

  /**
   * Sends everything about a peer once more: the data plane asked for what it should have. What is on its way to it,
   * because the far end's frame was quicker, is not sent twice.
   * @returns false if there is nothing that it could be sent
   */
  reinstall(entry: PeerEntry): boolean {
    if (entry.state !== 'ready' || entry.key === undefined || this.#ownBoot === undefined) {
      return false;
    }
    if ((this.#sent.get(entry.id)?.underWay ?? 0) > 0) return true;
    this.#sent.delete(entry.id);
    this.#install(entry);
    return true;
  }

  /** The same for the group key. False if there is none. */
  reinstallGroup(): boolean {
    return this.#installGroup().length > 0;
  }

  /** Wipes the keys held here. */
  wipe(): void {
    for (const { key, next } of this.#entries.values()) {
      key?.key.fill(0);
      next?.key.fill(0);
    }
    this.#prepared.clear();
    this.#overtaken.clear();
    this.#overtakenGroup = undefined;
    this.#unknownToServer.clear();
    this.#groupUnknownToServer = undefined;
    this.#found.clear();
    this.#foundGroup = 0;
    this.#group?.key.fill(0);
    this.#nextGroup?.key.fill(0);
    this.#group = undefined;
    this.#nextGroup = undefined;
    this.#entries.clear();
    this.#byMac.clear();
    this.#byIndex.clear();
    this.#sent.clear();
  }

  #entry(id: Id): PeerEntry {
    const known = this.#entries.get(id);
    if (known !== undefined) return known;
    const entry: PeerEntry = {
      id,
      role: undefined,
      subject: undefined,
      rights: [],
      state: 'absent',
      record: undefined,
      refusal: undefined,
      online: false,
      index: undefined,
      boot: undefined,
      bootSequence: 0,
      macs: [],
      ips: [],
      endpoints: [],
      key: undefined,
      next: undefined,
      seq: 0,
      keySeq: 0,
    };
    this.#entries.set(id, entry);
    return entry;
  }

  #apply(entry: PeerEntry, record: PeerRecord, verified: VerifiedPeer): void {
    this.#unlink(entry);
    entry.role = verified.member.role;
    entry.subject = subjectOf(entry.id, verified.member.grant);
    entry.rights = verified.member.grant.rights;
    entry.refusal = undefined;
    entry.online = record.online;
    entry.ips = record.ips;
    entry.endpoints = record.endpoints.filter(this.#deps.acceptsEndpoint);
    if (verified.waits === true) {
      entry.state = 'unconfirmed';
      entry.index = undefined;
      entry.boot = undefined;
      entry.macs = [];
      return;
    }
    entry.index = record.index;
    entry.boot = verified.boot?.boot;
    entry.bootSequence = verified.boot?.sequence ?? 0;
    entry.macs = verified.boot?.macs ?? [];
    entry.state = entry.boot === undefined || entry.index === undefined ? 'absent' : 'ready';
    if (entry.state !== 'ready') return;
    if (entry.index !== undefined) this.#byIndex.set(entry.index, entry.id);
    for (const mac of entry.macs) {
      this.#byMac.set(mac, entry.id);
      this.#deps.onAddress(mac);
    }
  }

  #unlink(entry: PeerEntry): void {
    if (entry.index !== undefined && this.#byIndex.get(entry.index) === entry.id) {
      this.#byIndex.delete(entry.index);
    }
    for (const mac of entry.macs) {
      if (this.#byMac.get(mac) === entry.id) this.#byMac.delete(mac);
    }
  }

  #install(entry: PeerEntry): Promise<unknown>[] {
    const { index, boot, subject } = entry;
    const ownBoot = this.#ownBoot;
    if (ownBoot === undefined || entry.state !== 'ready') return [];
    if (index === undefined || boot === undefined || subject === undefined) return [];
    const sent = this.#sent.get(entry.id) ?? { peer: '', key: '', next: '', underWay: 0 };
    this.#sent.set(entry.id, sent);
    const commands: Promise<unknown>[] = [];
    const tell = <T extends CommandType>(type: T, fields: CommandFields<T>): Promise<Told> => {
      sent.underWay += 1;
      return tellDataPlane(this.#deps, type, fields).finally(() => {
        sent.underWay -= 1;
      });
    };
    // The outside of a NAT box lets nobody in who was not called, however near it is.
    const near = entry.endpoints.filter((one) => one.seen !== true && this.#deps.isNear(one));
    const far = entry.endpoints.filter((one) => !near.includes(one));
    const peer: CommandFields<'peer.set'> = {
      port: this.#deps.port,
      peer: entry.id,
      index,
      boot,
      macs: entry.macs.map(macToBytes),
      endpoints: [...near, ...far].map(({ ip, port }) => ({ ip, port })),
      // Group frames would be nothing to a link port: in its own subnet it is not heard and does not hear.
      online: entry.online && entry.role !== 'link',
      relayFirst: near.length === 0,
      plain: entry.role === 'plain',
      rights: rightsBits(entry.rights, inGroupTraffic(this.#policy, subject)),
    };
    const peerText = fingerprint(peer);
    if (sent.peer !== peerText) {
      sent.peer = peerText;
      commands.push(tell('peer.set', peer));
    }
    if (entry.key === undefined) return commands;
    const command = ({ key, pwId }: Generation, send: boolean): CommandFields<'key.pair'> => {
      return { port: this.#deps.port, peer: entry.id, boot: ownBoot, key, pwId, send };
    };
    const key = command(entry.key, true);
    const keyText = keyFingerprint(key, index, boot);
    if (sent.key !== keyText) {
      sent.key = keyText;
      commands.push(tell('key.pair', key));
    }
    if (entry.next === undefined) return commands;
    const next = command(entry.next, false);
    const nextText = keyFingerprint(next, index, boot);
    if (sent.next === nextText) {
      // Told once more: perhaps our confirmation was lost.
      if (this.#prepared.has(entry.id)) this.#deps.onPrepared(entry.id);
      return commands;
    }
    sent.next = nextText;
    this.#prepared.delete(entry.id);
    commands.push(
      tell('key.pair', next).then((told) => {
        if (told !== 'done' || sent.next !== nextText) return;
        this.#prepared.add(entry.id);
        this.#deps.onPrepared(entry.id);
      }),
    );
    return commands;
  }

  #installGroup(): Promise<unknown>[] {
    if (this.#group === undefined || this.#ownBoot === undefined) return [];
    const { port } = this.#deps;
    const next = this.#nextGroup;
    const install = ({ pwId, key }: Generation, send: boolean): Promise<Told> =>
      tellDataPlane(this.#deps, 'key.group', { port, key, pwId, send });
    const commands: Promise<unknown>[] = [];
    // Without it none of an earlier time stays either; loop probes go by it all the same.
    if (this.#groupWanted) commands.push(install(this.#group, true));
    else this.#drop('', Math.max(this.#group.pwId, next?.pwId ?? 0), 0);
    for (const generation of [this.#group, ...(next === undefined ? [] : [next])]) {
      const probe = this.#deps.probeKey?.(generation);
      if (probe === undefined) continue;
      const { pwId } = generation;
      commands.push(tellDataPlane(this.#deps, 'probe.key', { port, key: probe, pwId }));
    }
    // Whatever an earlier control plane left in the data plane is covered, too.
    const { pwId } = this.#group;
    if (this.#oldestGroup > 1) this.#drop('', this.#oldestGroup - 1, 0);
    if (pwId > this.#oldestGroup) this.#drop('', pwId - 1, GRACE_MS);
    if (next === undefined) return commands;
    // Who does not use it keeps nobody from the next one.
    const prepared = this.#groupWanted ? install(next, false) : Promise.resolve<Told>('done');
    commands.push(
      prepared.then((told) => {
        if (told !== 'done' || this.#nextGroup?.pwId !== next.pwId) return;
        this.#preparedGroup = next.pwId;
        this.#deps.onGroupPrepared();
      }),
    );
    return commands;
  }

  #drop(peer: Id | '', pwId: number, graceMs = GRACE_MS): void {
    if (this.#ownBoot === undefined) return;
    const drop = { port: this.#deps.port, peer, pwId, graceMs };
    void tellDataPlane(this.#deps, 'key.drop', drop);
  }

  #remove(id: Id): void {
    this.#sent.delete(id);
    this.#prepared.delete(id);
    if (this.#ownBoot === undefined) return;
    void tellDataPlane(this.#deps, 'peer.remove', { port: this.#deps.port, peer: id });
  }
}

/** What is held of a key: in force, and what both ends are to have before either sends with it. */
interface Held {
  readonly key: Generation | undefined;
  readonly next: Generation | undefined;
}

/** The newest generation that is held, or was `found` in the data plane. */
function highest({ key, next }: Held, found: number): number {
  return Math.max(key?.pwId ?? 0, next?.pwId ?? 0, found);
}

/**
 * What a generation that the server tells of is to one that holds others. A push may come behind an answer, or a
 * frame, that told us more: that one is left aside. Two keys with one number, or a server that knows less when it
 * tells everything anew (`full`), mean that its database was put back.
 */
function compare(
  held: Held,
  found: number,
  told: PairGenerations,
  full: boolean,
): 'take' | 'leave' | 'server knows less' {
  const ours = [held.key, held.next].filter((one) => one !== undefined);
  const theirs = [told, told.next].filter((one) => one !== undefined);
  const clash = ours.some((one) =>
    theirs.some((other) => one.pwId === other.pwId && Buffer.compare(one.key, other.key) !== 0),
  );
  if (clash) return 'server knows less';
  const newest = Math.max(...theirs.map(({ pwId }) => pwId));
  if (full && newest < highest(held, found)) return 'server knows less';
  return told.pwId < (held.key?.pwId ?? 0) || newest < found ? 'leave' : 'take';
}

/** One of our own: what it came in is wiped or changed. */
export function copyOf({ pwId, key }: Generation): Generation {
  return { pwId, key: Uint8Array.from(key) };
}
