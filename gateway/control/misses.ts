/**
 * From a missing key to a request. The data plane reports
 *
 *   miss.mac    a frame of ours for an address without a key    ┐ outbound: we caused it
 *   miss.group  a group frame of ours without a group key       ┘
 *   miss.index  a frame from outside with an unknown index or kid  inbound: anybody can cause it
 *
 * and each is, in this order: already asked, known not to exist, in the table after all
 * (installed again), over budget, or asked. Inbound misses have a budget of their own, by source
 * prefix and in all, and can never use up the share of outbound ones (threats.md C10): the two
 * sums stay below the key server's limit of 50/s, burst 500, for each member.
 */
import { unmapped } from '../../src/protocol/ip.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { Endpoint } from '../../src/protocol/messages.js';
import type { PeerEntry } from '../key-table/peer-table.js';
import { TokenBucket } from '../rate-limit.js';

/** Requests in a second and at once; outbound and inbound add up to less than the server allows. */
const OUTBOUND = { perSecond: 40, burst: 400, inFlight: 64, waiting: 256 } as const;
const INBOUND = { perSecond: 8, burst: 64, inFlight: 16 } as const;
/** Inbound requests that one source prefix (IPv4 /32, IPv6 /64) may cause. */
const PREFIX = { perSecond: 2, burst: 16, remembered: 1_024 } as const;
/** How long 'no such member' holds for an address. */
export const REFUSE_MS = 2_000;
/** How long 'not known' holds for an index and kid. */
const INBOUND_REFUSE_MS = 10_000;
/** After an answer, frames under way may still report the same miss. */
const SETTLE_MS = 500;
/** A key that is nearly worn out is asked for at most so often, whatever the data plane says. */
const WORN_MS = 30_000;
/** The keys with a peer are installed again at most so often. */
const REINSTALL_MS = 1_000;
/** A kid for which that was tried is asked about for so long: it may be of a generation that we were not told of. */
const TRIED_MS = 60_000;
const REMEMBERED = 1_024;
/** VLANs in which an address is known to be nobody's, of each address. */
const VLANS_REMEMBERED = 64;

/** What became of a request. */
export type Outcome = 'installed' | 'none' | 'later' | 'limited';

/** What the key server is asked. `pwId` is the generation that we hold. */
export type Question =
  | {
      readonly kind: 'mac';
      readonly mac: MacAddress;
      /** VLAN id of the frame, 0 without one. */
      readonly vlan: number;
      readonly pwId?: number;
      /** The generation that we hold is nearly used up. */
      readonly worn?: boolean;
    }
  | { readonly kind: 'group'; readonly pwId?: number; readonly worn?: boolean }
  | {
      readonly kind: 'index';
      readonly index: number;
      readonly kid: number;
      readonly group: boolean;
      readonly pwId?: number;
    };

/** The surroundings. */
export interface MissDeps {
  /** A clock in ms that does not go back. */
  readonly now: () => number;
  readonly table: {
    byMac(mac: MacAddress): PeerEntry | undefined;
    byIndex(index: number): PeerEntry | undefined;
    reinstall(entry: PeerEntry): boolean;
    reinstallGroup(): boolean;
    readonly group: { readonly pwId: number } | undefined;
  };
  /** Asks and takes the answer into the table. */
  readonly ask: (question: Question) => Promise<Outcome>;
  /** Tells the data plane that an address has no key for so long; 0 takes it back. */
  readonly refuse: (mac: MacAddress, ms: number) => void;
  readonly random?: () => number;
}

/** Counters for status and metrics. */
export interface MissCounters {
  mac: number;
  group: number;
  index: number;
  asked: number;
  coalesced: number;
  installed: number;
  reinstalled: number;
  none: number;
  negative: number;
  failed: number;
  overBudgetOutbound: number;
  overBudgetInbound: number;
  /** What was forgotten, or not remembered at all, for want of room: it is asked again sooner. */
  forgotten: number;
}

/** The misses of one port. */
export class Misses {
  readonly counters: MissCounters = {
    mac: 0,
    group: 0,
    index: 0,
    asked: 0,
    coalesced: 0,
    installed: 0,
    reinstalled: 0,
    none: 0,
    negative: 0,
    failed: 0,
    overBudgetOutbound: 0,
    overBudgetInbound: 0,
    forgotten: 0,
  };
  readonly #deps: MissDeps;
  readonly #random: () => number;
  readonly #outbound: TokenBucket;
  readonly #inbound: TokenBucket;
  readonly #prefixes = new Map<string, TokenBucket>();
  /** Questions asked or waiting, by their name. */
  readonly #open = new Set<string>();
  readonly #waiting: { name: string; question: () => Question }[] = [];
  /** Names that need not be asked before a time. */
  readonly #quiet = new Map<string, number>();
  /** Those of them that are about an address in a VLAN, by address. */
  readonly #tagged = new Map<MacAddress, Set<string>>();
  readonly #reinstalled = new Map<string, number>();
  #outboundInFlight = 0;
  #inboundInFlight = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(deps: MissDeps) {
    this.#deps = deps;
    this.#random = deps.random ?? Math.random;
    const now = deps.now();
    this.#outbound = new TokenBucket(OUTBOUND.perSecond, OUTBOUND.burst, now);
    this.#inbound = new TokenBucket(INBOUND.perSecond, INBOUND.burst, now);
  }

  /** A frame of ours found no key for its destination. */
  mac(mac: MacAddress, vlan = 0): void {
    this.counters.mac += 1;
    const name = macName(mac, vlan);
    if (this.#isOpen(name)) return;
    const until = this.#quiet.get(name);
    if (until !== undefined && until > this.#deps.now()) {
      this.counters.negative += 1;
      this.#deps.refuse(mac, Math.ceil(until - this.#deps.now()));
      return;
    }
    const entry = this.#deps.table.byMac(mac);
    if (entry !== undefined && this.#mayReinstall(name) && this.#deps.table.reinstall(entry)) {
      this.counters.reinstalled += 1;
      return;
    }
    this.#askOutbound(name, () => {
      const pwId = this.#deps.table.byMac(mac)?.key?.pwId;
      return { kind: 'mac', mac, vlan, ...(pwId === undefined ? {} : { pwId }) };
    });
  }

  /** A group frame of ours found no key. */
  group(): void {
    this.counters.group += 1;
    const name = 'group';
    if (this.#isOpen(name) || this.#isQuiet(name)) return;
    if (this.#mayReinstall(name) && this.#deps.table.reinstallGroup()) {
      this.counters.reinstalled += 1;
      return;
    }
    this.#askOutbound(name, () => {
      const pwId = this.#deps.table.group?.pwId;
      return { kind: 'group', ...(pwId === undefined ? {} : { pwId }) };
    });
  }

  /** A frame came whose index or kid is not held. */
  index(index: number, kid: number, group: boolean, from: Endpoint): void {
    this.counters.index += 1;
    // No sender has it, and a request for it would be malformed: it would end our channel.
    if (index === 0) return;
    const name = `index ${index}/${kid}${group ? ' group' : ''}`;
    if (this.#isOpen(name) || this.#isQuiet(name)) return;
    if (!this.#takeInbound(from)) {
      this.counters.overBudgetInbound += 1;
      return;
    }
    const { table } = this.#deps;
    const entry = table.byIndex(index);
    const place = `index ${index}${group ? ' group' : ''}`;
    if (entry !== undefined && this.#longAgo(name, TRIED_MS) && this.#mayReinstall(place)) {
      this.#remember(this.#reinstalled, name, this.#deps.now());
      const again = group ? table.reinstallGroup() : table.reinstall(entry);
      if (again) {
        this.counters.reinstalled += 1;
        return;
      }
    }
    const pwId = group ? table.group?.pwId : entry?.key?.pwId;
    const question: Question = {
      kind: 'index',
      index,
      kid,
      group,
      ...(pwId === undefined ? {} : { pwId }),
    };
    this.#inboundInFlight += 1;
    void this.#ask(name, question, INBOUND_REFUSE_MS).finally(() => {
      this.#inboundInFlight -= 1;
    });
  }

  /** A key is nearly worn out; `mac` is one of its peer, undefined means the group key. */
  worn(mac: MacAddress | undefined): void {
    const name = `worn ${mac ?? 'group'}`;
    if (this.#isOpen(name) || this.#isQuiet(name)) return;
    this.#remember(this.#quiet, name, this.#deps.now() + WORN_MS);
    this.#askOutbound(name, () => {
      const { table } = this.#deps;
      const pwId = mac === undefined ? table.group?.pwId : table.byMac(mac)?.key?.pwId;
      const held = pwId === undefined ? {} : { pwId };
      return mac === undefined
        ? { kind: 'group', ...held, worn: true }
        : { kind: 'mac', mac, vlan: 0, ...held, worn: true };
    });
  }

  /** A change brought this address: a 'no such member' about it is void. */
  appeared(mac: MacAddress): void {
    let quiet = this.#quiet.delete(macName(mac, 0));
    for (const name of this.#tagged.get(mac) ?? []) quiet = this.#quiet.delete(name) || quiet;
    this.#tagged.delete(mac);
    if (quiet) this.#deps.refuse(mac, 0);
  }

  /** The channel is open again or the table was emptied: nothing that was said before holds. */
  reset(): void {
    this.#quiet.clear();
    this.#tagged.clear();
    this.#reinstalled.clear();
  }

  /** Stops waiting requests. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#waiting.length = 0;
  }

  #isOpen(name: string): boolean {
    if (!this.#open.has(name)) return false;
    this.counters.coalesced += 1;
    return true;
  }

  #isQuiet(name: string): boolean {
    const until = this.#quiet.get(name);
    if (until === undefined || until <= this.#deps.now()) return false;
    this.counters.negative += 1;
    return true;
  }

  #mayReinstall(name: string): boolean {
    if (!this.#longAgo(name, REINSTALL_MS)) return false;
    this.#remember(this.#reinstalled, name, this.#deps.now());
    return true;
  }

  /** Whether this was not installed again for so long. */
  #longAgo(name: string, ms: number): boolean {
    const last = this.#reinstalled.get(name);
    return last === undefined || this.#deps.now() - last >= ms;
  }

  #takeInbound(from: Endpoint): boolean {
    if (this.#inboundInFlight >= INBOUND.inFlight) return false;
    const now = this.#deps.now();
    const prefix = prefixOf(from);
    let bucket = this.#prefixes.get(prefix);
    if (bucket === undefined) {
      bucket = new TokenBucket(PREFIX.perSecond, PREFIX.burst, now);
      this.#evict(this.#prefixes, PREFIX.remembered);
      this.#prefixes.set(prefix, bucket);
    }
    return bucket.take(now) && this.#inbound.take(now);
  }

  #askOutbound(name: string, question: () => Question): void {
    if (this.#waiting.length >= OUTBOUND.waiting) {
      this.counters.overBudgetOutbound += 1;
      return;
    }
    this.#open.add(name);
    this.#waiting.push({ name, question });
    this.#pump();
  }

  #pump(): void {
    clearTimeout(this.#timer);
    const now = this.#deps.now();
    while (this.#waiting.length > 0 && this.#outboundInFlight < OUTBOUND.inFlight) {
      if (!this.#outbound.take(now)) {
        this.#timer = setTimeout(() => this.#pump(), this.#outbound.waitMs(now));
        this.#timer.unref();
        return;
      }
      const next = this.#waiting.shift();
      if (next === undefined) return;
      this.#outboundInFlight += 1;
      void this.#ask(next.name, next.question(), REFUSE_MS).finally(() => {
        this.#outboundInFlight -= 1;
        this.#pump();
      });
    }
  }

  async #ask(name: string, question: Question, refuseMs: number): Promise<void> {
    this.#open.add(name);
    this.counters.asked += 1;
    let outcome: Outcome;
    try {
      outcome = await this.#deps.ask(question);
    } catch {
      outcome = 'later';
    }
    this.#open.delete(name);
    const now = this.#deps.now();
    if (outcome === 'installed') {
      this.counters.installed += 1;
      if (question.kind === 'index') this.#remember(this.#quiet, name, now + SETTLE_MS);
    } else if (outcome === 'none') {
      this.counters.none += 1;
      const tagged = question.kind === 'mac' && question.vlan > 0;
      // Nothing is remembered that `appeared` could not take back.
      if (!tagged || this.#noteTagged(question.mac, name)) {
        this.#remember(this.#quiet, name, now + refuseMs);
      }
      if (question.kind === 'mac') this.#deps.refuse(question.mac, refuseMs);
    } else {
      this.counters.failed += 1;
      if (outcome === 'limited') {
        (question.kind === 'index' ? this.#inbound : this.#outbound).drain(now);
      }
    }
  }

  /** False if an address has too many VLANs already in which it is nobody's. */
  #noteTagged(mac: MacAddress, name: string): boolean {
    const names = this.#tagged.get(mac);
    if (names !== undefined && names.size >= VLANS_REMEMBERED && !names.has(name)) {
      this.counters.forgotten += 1;
      return false;
    }
    if (names === undefined) {
      const gone = this.#evict(this.#tagged, REMEMBERED);
      for (const one of gone ?? []) this.#quiet.delete(one);
    }
    this.#tagged.set(mac, (names ?? new Set<string>()).add(name));
    return true;
  }

  #remember(map: Map<string, number>, name: string, value: number): void {
    if (!map.has(name)) this.#evict(map, REMEMBERED);
    map.set(name, value);
  }

  /** Makes room by forgetting one at random, so that nobody can choose what is forgotten. */
  #evict<K, V>(map: Map<K, V>, limit: number): V | undefined {
    if (map.size < limit) return undefined;
    let skip = Math.floor(this.#random() * map.size);
    for (const [key, value] of map) {
      if (skip === 0) {
        map.delete(key);
        this.counters.forgotten += 1;
        return value;
      }
      skip -= 1;
    }
    return undefined;
  }
}

function macName(mac: MacAddress, vlan: number): string {
  return vlan === 0 ? `mac ${mac}` : `mac ${mac} ${vlan}`;
}

/** IPv4 address, or the /64 of an IPv6 one (an IPv4 address mapped into IPv6 counts as IPv4). */
function prefixOf(from: { readonly ip: Uint8Array }): string {
  const bytes = unmapped(from.ip);
  return bytes.subarray(0, bytes.length === 16 ? 8 : 4).toString('hex');
}
