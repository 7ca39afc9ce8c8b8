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
import { createHash } from 'node:crypto';
import { fields } from '../../src/protocol/fields.js';
import type { Id } from '../../src/protocol/ids.js';
import { type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import type { Endpoint, PeerRecord } from '../../src/protocol/messages.js';
import type { Role } from '../../src/protocol/records.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { CommandPort } from '../dataplane/client.js';
import type { CommandFields } from '../dataplane/messages.gen.js';
import type { VerifiedPeer, Verifier } from './verifier.js';

/** How long a former generation may still be heard. */
const GRACE_MS = 10_000;
/** Commands sent before their answers are awaited, when everything is installed anew. */
const BATCH = 256;

/** What is wanted of the surroundings. */
export interface PeerTableDeps {
  readonly self: Id;
  /** Number of the port in the data plane. */
  readonly port: number;
  readonly verifier: Pick<Verifier, 'peer' | 'forget'>;
  readonly dataPlane: CommandPort;
  /** False for endpoints that no peer may send us to (loopback, multicast). */
  readonly acceptsEndpoint: (endpoint: Endpoint) => boolean;
  /** A member was refused: log it, count it. */
  readonly onRefused: (id: Id, error: PairwireError) => void;
  /** A command failed for another reason than a missing data plane. */
  readonly onCommandFailed: (error: PairwireError) => void;
  /** An address has an owner with an index now: negative answers are void. */
  readonly onAddress: (mac: MacAddress) => void;
}

/** A key as the key server gave it, with its generation. */
export interface Generation {
  readonly pwId: number;
  readonly key: Uint8Array;
}

/**
 * One member.
 *
 *   absent (no boot record or index) <-> ready <-> refused (a record contradicted)
 */
export interface PeerEntry {
  readonly id: Id;
  role: Role | undefined;
  state: 'absent' | 'ready' | 'refused';
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
  /** Number of the last change applied, so that an older one changes nothing. */
  seq: number;
  keySeq: number;
}

/** Installed state of a peer: repeated commands are not sent. */
interface Sent {
  peer: string;
  key: string;
}

/** Members and keys of one port. */
export class PeerTable {
  readonly #deps: PeerTableDeps;
  readonly #entries = new Map<Id, PeerEntry>();
  readonly #byMac = new Map<MacAddress, Id>();
  readonly #byIndex = new Map<number, Id>();
  readonly #sent = new Map<Id, Sent>();
  #group: Generation | undefined;
  #groupSeq = 0;
  #groupWanted = true;
  #ownBoot: number | undefined;
  /** Ids named during a full synchronisation; undefined outside of one. */
  #seen: Set<Id> | undefined;

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
    if (record.id === this.#deps.self) return true;
    this.#seen?.add(record.id);
    const entry = this.#entry(record.id);
    if (seq !== undefined) {
      if (seq < entry.seq) return entry.state !== 'refused';
      entry.seq = seq;
    }
    let verified: VerifiedPeer;
    try {
      verified = this.#deps.verifier.peer(record);
    } catch (thrown) {
      this.refuse(record.id, asPairwireError(thrown));
      return false;
    }
    this.#apply(entry, record, verified);
    if (entry.state === 'ready') this.#install(entry);
    else if (this.#sent.has(entry.id)) this.#remove(entry.id);
    return true;
  }

  /** Takes a pair's key. An older generation than the one held is left aside. */
  takePair(peer: Id, generation: Generation, seq?: number): void {
    const entry = this.#entry(peer);
    this.#seen?.add(peer);
    if (seq !== undefined) {
      if (seq < entry.keySeq) return;
      entry.keySeq = seq;
    } else if (entry.key !== undefined && generation.pwId < entry.key.pwId) {
      return;
    }
    const former = entry.key;
    entry.key = { pwId: generation.pwId, key: Uint8Array.from(generation.key) };
    this.#install(entry);
    if (former === undefined) return;
    if (former.pwId < generation.pwId) this.#drop(peer, former.pwId);
    former.key.fill(0);
  }

  /** Takes the group key. */
  takeGroup(generation: Generation, seq?: number): void {
    if (seq !== undefined) {
      if (seq < this.#groupSeq) return;
      this.#groupSeq = seq;
    } else if (this.#group !== undefined && generation.pwId < this.#group.pwId) {
      return;
    }
    const former = this.#group;
    this.#group = { pwId: generation.pwId, key: Uint8Array.from(generation.key) };
    this.#installGroup();
    if (former === undefined) return;
    if (former.pwId < generation.pwId) this.#drop('', former.pwId);
    former.key.fill(0);
  }

  /** A member has left or was revoked: keys and addresses are forgotten at once. */
  gone(id: Id, seq?: number): void {
    const entry = this.#entries.get(id);
    if (entry === undefined || (seq !== undefined && seq < entry.seq)) return;
    this.#unlink(entry);
    entry.key?.key.fill(0);
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
    this.#groupSeq = 0;
    for (const entry of this.#entries.values()) {
      entry.seq = 0;
      entry.keySeq = 0;
    }
  }

  /** Ends it. `leftovers` are peers that only the data plane still knows. */
  endFull(leftovers: Iterable<string> = []): void {
    const seen = this.#seen;
    if (seen === undefined) return;
    this.#seen = undefined;
    for (const id of [...this.#entries.keys()]) if (!seen.has(id)) this.gone(id);
    for (const id of leftovers) {
      if (!this.#entries.has(id as Id)) this.#remove(id as Id);
    }
  }

  /** Turns the group key off (`group.mode: pairwise` has none) or on. */
  wantGroup(wanted: boolean): void {
    this.#groupWanted = wanted;
  }

  /**
   * Brings a data plane to this table's state under our boot key. Called for a new data
   * plane, a new boot key of ours, and after an attach.
   */
  async installAll(ownBoot: number): Promise<void> {
    this.#ownBoot = ownBoot;
    this.#sent.clear();
    let sent: Promise<void>[] = [];
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
  }

  /** Sends everything about a peer once more: the data plane asked for what it should have. */
  reinstall(entry: PeerEntry): boolean {
    if (entry.state !== 'ready' || entry.key === undefined || this.#ownBoot === undefined) {
      return false;
    }
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
    for (const entry of this.#entries.values()) entry.key?.key.fill(0);
    this.#group?.key.fill(0);
    this.#group = undefined;
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
      state: 'absent',
      refusal: undefined,
      online: false,
      index: undefined,
      boot: undefined,
      bootSequence: 0,
      macs: [],
      ips: [],
      endpoints: [],
      key: undefined,
      seq: 0,
      keySeq: 0,
    };
    this.#entries.set(id, entry);
    return entry;
  }

  #apply(entry: PeerEntry, record: PeerRecord, verified: VerifiedPeer): void {
    this.#unlink(entry);
    entry.role = verified.member.role;
    entry.refusal = undefined;
    entry.online = record.online;
    entry.ips = record.ips;
    entry.endpoints = record.endpoints.filter(this.#deps.acceptsEndpoint);
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

  #install(entry: PeerEntry): Promise<void>[] {
    const { index, boot } = entry;
    const ownBoot = this.#ownBoot;
    if (ownBoot === undefined || entry.state !== 'ready') return [];
    if (index === undefined || boot === undefined) return [];
    const sent = this.#sent.get(entry.id) ?? { peer: '', key: '' };
    this.#sent.set(entry.id, sent);
    const commands: Promise<void>[] = [];
    const peer: CommandFields<'peer.set'> = {
      port: this.#deps.port,
      peer: entry.id,
      index,
      boot,
      macs: entry.macs.map(macToBytes),
      endpoints: [...entry.endpoints],
      online: entry.online,
    };
    const peerText = fingerprint(peer);
    if (sent.peer !== peerText) {
      sent.peer = peerText;
      commands.push(this.#settle(this.#deps.dataPlane.request('peer.set', peer)));
    }
    if (entry.key === undefined) return commands;
    const key: CommandFields<'key.pair'> = {
      port: this.#deps.port,
      peer: entry.id,
      boot: ownBoot,
      key: entry.key.key,
      pwId: entry.key.pwId,
      send: true,
    };
    const keyText = keyFingerprint(key, index, boot);
    if (sent.key !== keyText) {
      sent.key = keyText;
      commands.push(this.#settle(this.#deps.dataPlane.request('key.pair', key)));
    }
    return commands;
  }

  #installGroup(): Promise<void>[] {
    if (this.#group === undefined || this.#ownBoot === undefined || !this.#groupWanted) return [];
    const { pwId, key } = this.#group;
    const port = this.#deps.port;
    return [
      this.#settle(this.#deps.dataPlane.request('key.group', { port, key, pwId, send: true })),
    ];
  }

  #drop(peer: Id | '', pwId: number): void {
    if (this.#ownBoot === undefined) return;
    const drop = { port: this.#deps.port, peer, pwId, graceMs: GRACE_MS };
    void this.#settle(this.#deps.dataPlane.request('key.drop', drop));
  }

  #remove(id: Id): void {
    this.#sent.delete(id);
    if (this.#ownBoot === undefined) return;
    void this.#settle(
      this.#deps.dataPlane.request('peer.remove', { port: this.#deps.port, peer: id }),
    );
  }

  /** A missing data plane is no failure: `installAll` will say it all again. */
  async #settle(command: Promise<unknown>): Promise<void> {
    try {
      await command;
    } catch (thrown) {
      const error = asPairwireError(thrown);
      if (error.code !== 'DATAPLANE_GONE') this.#deps.onCommandFailed(error);
    }
  }
}

/** What makes one installation of a key differ from another, without keeping the key. */
function keyFingerprint(
  key: CommandFields<'key.pair'>,
  peerIndex: number,
  peerBoot: Uint8Array,
): string {
  const values = fields(key.key, key.pwId, key.boot, peerIndex, peerBoot);
  const digest = createHash('sha256').update(values).digest('base64');
  values.fill(0);
  return digest;
}

function fingerprint(value: unknown): string {
  return JSON.stringify(value, (_name, part: unknown) =>
    part instanceof Uint8Array ? Buffer.from(part).toString('base64') : part,
  );
}

function asPairwireError(thrown: unknown): PairwireError {
  return thrown instanceof PairwireError
    ? thrown
    : new PairwireError('RECORD_MALFORMED', messageOf(thrown), { cause: thrown });
}
