/**
 * What the key server says of addresses on the plain side (docs/protocol.md section 8): which are
 * members' own, and which plain member an address outside is behind. As commands to the data plane, which decides
 * by them where frames go and from whom they are taken.
 *
 * State, not events: `installAll` brings a data plane that knows nothing to the same state. Changes are
 * collected until `flush`, so that a thousand of them are a few commands.
 */
import type { Id } from '../../src/protocol/ids.js';
import { type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import type { Behind, Change } from '../../src/protocol/messages.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { CommandFields } from '../dataplane/messages.gen.js';
import { batches, listParts, type TellDeps, tellDataPlane } from '../dataplane/tell.js';

/** As many as a data plane holds; the oldest goes. */
const MAX_BEHIND = 16_384;
/** Members' own addresses, as many as a data plane takes. */
const MAX_OWN = 262_144;
/** Addresses in one command. */
const OWN_BATCH = 8_192;
const BEHIND_BATCH = 4_096;

/** What is wanted of the surroundings. */
export interface OutsideDeps extends TellDeps {
  /** Number of the port in the data plane. */
  readonly port: number;
  /** A clock in ms that does not go back. */
  readonly now: () => number;
  /** An address is behind somebody now: negative answers about it are void. */
  readonly onAddress: (mac: MacAddress) => void;
}

interface Place {
  readonly vlan: number;
  readonly mac: MacAddress;
  readonly peer: Id;
  readonly pinned: boolean;
  /** When it ends, by `now`; undefined: until something else is told. */
  readonly until: number | undefined;
}

export type BehindChange = Extract<Change, { kind: 'behind' }>;

/** Addresses of the plain side, for one port. */
export class Outside {
  readonly #deps: OutsideDeps;
  readonly #own = new Set<MacAddress>();
  readonly #behind = new Map<string, Place>();
  /** Number of the last change about a name, so that an older one changes nothing. */
  readonly #seqs = new Map<string, number>();
  #attached = false;
  /** All was told once: what is not here is not so. */
  #complete = false;
  /** Named during a full synchronisation. */
  #seen: Set<string> | undefined;
  /** The data plane is to get the whole list, not what changed. */
  #ownWhole = true;
  #ownAdded = new Set<MacAddress>();
  #ownRemoved = new Set<MacAddress>();
  #changed = new Set<string>();

  constructor(deps: OutsideDeps) {
    this.#deps = deps;
  }

  /** How many members' own addresses and how many addresses outside are known. */
  get size(): { readonly own: number; readonly behind: number } {
    return { own: this.#own.size, behind: this.#behind.size };
  }

  /** Whether an address is or was a member's own. */
  isOwn(mac: MacAddress): boolean {
    return this.#own.has(mac);
  }

  /** Takes a change of kind own or own.freed. @throws PairwireError for one too many */
  takeOwn(mac: MacAddress, seq: number, owned: boolean): void {
    const name = `own ${mac}`;
    if (!this.#isNewer(name, seq)) return;
    if (owned) {
      this.#seen?.add(name);
      if (this.#own.size >= MAX_OWN && !this.#own.has(mac)) {
        throw new PairwireError('RECORD_MALFORMED', 'there are too many addresses of members');
      }
      this.#own.add(mac);
      this.#ownRemoved.delete(mac);
      this.#ownAdded.add(mac);
    } else {
      this.#own.delete(mac);
      this.#ownAdded.delete(mac);
      this.#ownRemoved.add(mac);
    }
  }

  /** Takes a change of kind behind. */
  takeBehind(change: BehindChange): void {
    const { vlan, mac, member } = change;
    const name = nameOf(vlan, mac);
    if (!this.#isNewer(name, change.seq)) return;
    if (member === undefined) {
      this.#behind.delete(name);
      // Also if it is new to us: a data plane that outlived its control plane may know it.
      this.#changed.add(name);
      return;
    }
    this.#seen?.add(name);
    this.#put(member, change);
  }

  /** Takes an answer of the key server about an address of our question, and tells the data plane. */
  answered(peer: Id, behind: Behind): void {
    this.#put(peer, behind);
    this.flush();
  }

  /** Begins a synchronisation from nothing. */
  beginFull(): void {
    this.#seen = new Set();
    this.#seqs.clear();
  }

  /** Ends it: what was not named is not so. `told`: the key server told of the plain side at all. */
  endFull(told: boolean): void {
    const seen = this.#seen;
    if (seen === undefined) return;
    this.#seen = undefined;
    if (told && !this.#complete) {
      this.#complete = true;
      this.#ownWhole = true;
    }
    // A server never forgets who had an address; one that names fewer was put back, and must not make a member's
    // address anybody's. Only freeing takes one out.
    if (!told) {
      for (const mac of this.#own) this.#ownRemoved.add(mac);
      this.#own.clear();
    }
    for (const name of this.#behind.keys()) {
      if (seen.has(name)) continue;
      this.#behind.delete(name);
      this.#changed.add(name);
    }
    this.flush();
  }

  /** Tells a data plane all there is. */
  async installAll(): Promise<void> {
    this.#attached = true;
    this.#ownWhole = true;
    for (const name of this.#behind.keys()) this.#changed.add(name);
    await Promise.all([...this.#flushOwn(), ...this.#flushBehind()]);
  }

  /** The data plane is gone. */
  detached(): void {
    this.#attached = false;
  }

  /** Tells the data plane what has changed. */
  flush(): void {
    this.#flushOwn();
    this.#flushBehind();
  }

  /** Before all was told there is no list: a plain port does nothing without a complete one. */
  #flushOwn(): Promise<unknown>[] {
    if (!this.#attached || !this.#complete) return [];
    const { port } = this.#deps;
    const sent: Promise<unknown>[] = [];
    const tell = (macs: readonly MacAddress[], whole: boolean): void => {
      for (const { reset, more, some } of listParts(macs, OWN_BATCH, whole)) {
        const command = { port, reset, more, macs: some.map(macToBytes) };
        sent.push(tellDataPlane(this.#deps, 'own.set', command));
      }
    };
    if (this.#ownWhole) {
      tell([...this.#own], true);
    } else {
      tell([...this.#ownAdded], false);
      for (const macs of batches([...this.#ownRemoved], OWN_BATCH)) {
        sent.push(tellDataPlane(this.#deps, 'own.remove', { port, macs: macs.map(macToBytes) }));
      }
    }
    this.#ownWhole = false;
    this.#ownAdded.clear();
    this.#ownRemoved.clear();
    return sent;
  }

  #flushBehind(): Promise<unknown>[] {
    if (!this.#attached || this.#changed.size === 0) return [];
    const { port, now } = this.#deps;
    const gone: CommandFields<'behind.forget'>['entries'][number][] = [];
    const by = new Map<Id, CommandFields<'behind.set'>['entries'][number][]>();
    const time = now();
    for (const name of this.#changed) {
      const place = this.#behind.get(name);
      const [vlan = '0', mac = ''] = name.split(' ');
      if (place === undefined) {
        gone.push({ vlan: Number(vlan), mac: macToBytes(mac as MacAddress) });
        continue;
      }
      const ms = place.until === undefined ? 0 : Math.ceil(place.until - time);
      if (place.until !== undefined && ms <= 0) {
        this.#behind.delete(name);
        continue;
      }
      const list = by.get(place.peer) ?? [];
      list.push({ vlan: place.vlan, mac: macToBytes(place.mac), ms, pinned: place.pinned });
      by.set(place.peer, list);
    }
    this.#changed.clear();
    const sent: Promise<unknown>[] = [];
    for (const entries of batches(gone, BEHIND_BATCH)) {
      sent.push(tellDataPlane(this.#deps, 'behind.forget', { port, entries }));
    }
    for (const [peer, list] of by) {
      for (const entries of batches(list, BEHIND_BATCH)) {
        sent.push(tellDataPlane(this.#deps, 'behind.set', { port, peer, entries }));
      }
    }
    return sent;
  }

  #put(peer: Id, { vlan, mac, ms, pinned }: Behind): void {
    // Whatever a server says: what is or was a member's own is never outside.
    if (this.#own.has(mac)) return;
    const name = nameOf(vlan, mac);
    // Newest last, so that the oldest gives way.
    this.#behind.delete(name);
    for (const oldest of this.#behind.keys()) {
      if (this.#behind.size < MAX_BEHIND) break;
      this.#behind.delete(oldest);
      this.#seqs.delete(oldest);
      this.#changed.add(oldest);
    }
    const until = ms === 0 ? undefined : this.#deps.now() + ms;
    this.#behind.set(name, { vlan, mac, peer, pinned, until });
    this.#changed.add(name);
    this.#deps.onAddress(mac);
  }

  #isNewer(name: string, seq: number): boolean {
    if (seq < (this.#seqs.get(name) ?? 0)) return false;
    if (this.#seqs.size >= MAX_OWN + MAX_BEHIND) this.#seqs.clear();
    this.#seqs.set(name, seq);
    return true;
  }
}

function nameOf(vlan: number, mac: MacAddress): string {
  return `${vlan} ${mac}`;
}
