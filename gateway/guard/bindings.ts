/**
 * Which MAC address announces which IP address, as the key server says (docs/protocol.md 8.6), as commands to the
 * data plane, which refuses ARP and neighbour discovery that say otherwise and answers questions by it.
 *
 * State, not events: `installAll` brings a data plane that knows nothing to the same state. Changes are collected
 * until `flush`, so that a thousand of them are a few commands.
 */
import { ipToBytes } from '../../src/protocol/ip.js';
import { type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import type { IpBinding } from '../../src/protocol/messages.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { CommandFields } from '../dataplane/messages.gen.js';
import { batches, listParts, type TellDeps, tellDataPlane } from '../dataplane/tell.js';

/** As many as a data plane takes. */
const MAX_BINDINGS = 65_536;
/** Freed addresses whose change number is remembered. */
const MAX_FREED = 65_536;
/** Addresses in one command. */
const BATCH = 4_096;

/** What is wanted of the surroundings. */
export interface BindingsDeps extends TellDeps {
  /** Number of the port in the data plane. */
  readonly port: number;
}

/** Bound addresses, for one port. */
export class Bindings {
  readonly #deps: BindingsDeps;
  readonly #bound = new Map<string, MacAddress>();
  /** Number of the last change about an address, so that an older one changes nothing. */
  readonly #seqs = new Map<string, number>();
  #attached = false;
  /** All was told once: what is not here is not so. */
  #complete = false;
  /** Named during a full synchronisation. */
  #seen: Set<string> | undefined;
  /** The data plane is to get the whole list, not what changed. */
  #whole = true;
  #changed = new Set<string>();

  constructor(deps: BindingsDeps) {
    this.#deps = deps;
  }

  /** How many addresses are bound. */
  get size(): number {
    return this.#bound.size;
  }

  /** Takes a change; without `mac` anybody may announce the address. @throws PairwireError for one too many */
  take(ip: string, mac: MacAddress | undefined, seq: number): void {
    if (seq < (this.#seqs.get(ip) ?? 0)) return;
    if (mac === undefined) {
      this.#bound.delete(ip);
    } else {
      if (this.#bound.size >= MAX_BINDINGS && !this.#bound.has(ip)) {
        throw new PairwireError('RECORD_MALFORMED', 'there are too many bound IP addresses');
      }
      this.#seen?.add(ip);
      this.#bound.set(ip, mac);
    }
    // A push that was overtaken by a newer one is seconds old, so what was freed long ago may be forgotten.
    if (this.#seqs.size >= MAX_BINDINGS + MAX_FREED) this.#seqs.clear();
    this.#seqs.set(ip, seq);
    // Also if it is new to us: a data plane that outlived its control plane may know it.
    this.#changed.add(ip);
  }

  /** Begins a synchronisation from nothing. */
  beginFull(): void {
    this.#seen = new Set();
    this.#seqs.clear();
  }

  /** Ends it: what was not named is not so. @returns those, because a server that was put back may have forgotten them */
  endFull(): readonly IpBinding[] {
    const seen = this.#seen;
    if (seen === undefined) return [];
    this.#seen = undefined;
    if (!this.#complete) {
      this.#complete = true;
      this.#whole = true;
    }
    const forgotten = [...this.#bound]
      .filter(([ip]) => !seen.has(ip))
      .map(([ip, mac]) => ({ ip, mac }));
    for (const { ip } of forgotten) {
      this.#bound.delete(ip);
      this.#changed.add(ip);
    }
    this.flush();
    return forgotten;
  }

  /** Tells a data plane all there is. */
  async installAll(): Promise<void> {
    this.#attached = true;
    this.#whole = true;
    await Promise.all(this.#flush());
  }

  /** The data plane is gone. */
  detached(): void {
    this.#attached = false;
  }

  /** Tells the data plane what has changed. */
  flush(): void {
    this.#flush();
  }

  /** Before all was told there is no list: a data plane that outlived its control plane knows more. */
  #flush(): Promise<unknown>[] {
    if (!this.#attached || !this.#complete) return [];
    const { port } = this.#deps;
    const changed = [...this.#changed];
    this.#changed.clear();
    const whole = this.#whole;
    this.#whole = false;
    const entries = [...(whole ? this.#bound.keys() : changed)].flatMap((ip) => this.#entry(ip));
    const gone = whole ? [] : changed.filter((ip) => !this.#bound.has(ip)).map(bytesOf);
    const sent: Promise<unknown>[] = [];
    // First those that go: there must be room for those that come.
    for (const ips of batches(gone, BATCH)) {
      sent.push(tellDataPlane(this.#deps, 'bind.remove', { port, ips }));
    }
    for (const { reset, more, some } of listParts(entries, BATCH, whole)) {
      sent.push(tellDataPlane(this.#deps, 'bind.set', { port, reset, more, entries: some }));
    }
    return sent;
  }

  #entry(ip: string): CommandFields<'bind.set'>['entries'] {
    const mac = this.#bound.get(ip);
    return mac === undefined ? [] : [{ ip: bytesOf(ip), mac: macToBytes(mac) }];
  }
}

/** Of text that a schema has accepted. */
function bytesOf(ip: string): Buffer {
  const bytes = ipToBytes(ip);
  if (bytes === undefined) throw new PairwireError('RECORD_MALFORMED', `${ip} is no IP address`);
  return bytes;
}
