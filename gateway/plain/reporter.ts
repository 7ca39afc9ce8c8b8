/**
 * Tells the key server what our plain port has seen (docs/protocol.md 8.2). It keeps what is so, and what of it was
 * told: after a new registration everything is told again, and a report that failed is made again.
 */
import { RequestError } from '../../src/net/channel.js';
import { type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import { MAX_REPORTED } from '../../src/protocol/messages.js';

/** As many as a data plane learns; what is more is not believed of it. */
const MAX_SEEN = 8_192;
/** Addresses that are gone and wait to be told; the key server forgets the rest by itself. */
const MAX_GONE = 8_192;
/** Members' own addresses that came as a source from outside, and wait to be told. */
const MAX_SPOOFED = 64;
/** The protocol's longest age of a sighting. */
const MAX_AGO_MS = 86_400_000;
const RETRY_FIRST_MS = 200;
const RETRY_MAX_MS = 10_000;
/** What the key server allows in a second is soon free again. */
const LIMITED_MS = 250;

/** One report as it is sent. */
export interface Report {
  readonly entries: readonly {
    readonly vlan: number;
    readonly mac: Uint8Array;
    readonly seq: number;
    readonly ago: number;
  }[];
  readonly gone: readonly { readonly vlan: number; readonly mac: Uint8Array }[];
}

/** What is wanted of the surroundings. */
export interface ReporterDeps {
  /** A clock in ms that does not go back. */
  readonly now: () => number;
  /** Key-server time: where numbers begin, so that they rise over restarts. */
  readonly serverNow: () => number;
  readonly send: (report: Report) => Promise<{ readonly refused: number }>;
  readonly onFailed: (thrown: unknown, retryInMs: number) => void;
}

interface Sighting {
  readonly vlan: number;
  readonly mac: MacAddress;
  /** By `now`. */
  readonly at: number;
}

/** Counters for status and metrics. */
export interface ReporterStatus {
  /** Addresses that the port knows. */
  readonly seen: number;
  readonly reports: number;
  /** Entries that the key server did not take. */
  readonly refused: number;
  /** Members' own addresses that came from outside. */
  readonly spoofed: number;
  /** Not kept for want of room. */
  readonly overflow: number;
}

/** Reports of one port. */
export class Reporter {
  readonly #deps: ReporterDeps;
  readonly #seen = new Map<string, Sighting>();
  /** Names to be told, new ones before those that are told again. */
  readonly #fresh = new Set<string>();
  readonly #again = new Set<string>();
  readonly #gone = new Map<string, Omit<Sighting, 'at'>>();
  readonly #spoofed = new Map<string, Sighting>();
  #seq = 0;
  #ready = false;
  #busy = false;
  #failures = 0;
  #timer: NodeJS.Timeout | undefined;
  #reports = 0;
  #refused = 0;
  #spoofs = 0;
  #overflow = 0;

  constructor(deps: ReporterDeps) {
    this.#deps = deps;
  }

  get status(): ReporterStatus {
    return {
      seen: this.#seen.size,
      reports: this.#reports,
      refused: this.#refused,
      spoofed: this.#spoofs,
      overflow: this.#overflow,
    };
  }

  /** The data plane has seen these; `ageMs`: how long ago. */
  learned(
    entries: readonly { readonly vlan: number; readonly mac: MacAddress; readonly ageMs: number }[],
  ): void {
    const now = this.#deps.now();
    for (const { vlan, mac, ageMs } of entries) {
      const name = `${vlan} ${mac}`;
      const known = this.#seen.has(name);
      if (!known && this.#seen.size >= MAX_SEEN) {
        this.#overflow += 1;
        continue;
      }
      this.#seen.set(name, { vlan, mac, at: now - ageMs });
      this.#gone.delete(name);
      if (known && !this.#fresh.has(name)) this.#again.add(name);
      else this.#fresh.add(name);
    }
    this.#pump();
  }

  /** It has forgotten these. */
  unlearned(entries: readonly { readonly vlan: number; readonly mac: MacAddress }[]): void {
    for (const { vlan, mac } of entries) {
      const name = `${vlan} ${mac}`;
      if (!this.#seen.delete(name)) continue;
      this.#fresh.delete(name);
      this.#again.delete(name);
      if (this.#gone.size < MAX_GONE) this.#gone.set(name, { vlan, mac });
    }
    this.#pump();
  }

  /** A frame from outside had a member's own source: the key server refuses it, and so it is audited. */
  spoofed(vlan: number, mac: MacAddress): void {
    this.#spoofs += 1;
    if (this.#spoofed.size >= MAX_SPOOFED) return;
    this.#spoofed.set(`${vlan} ${mac}`, { vlan, mac, at: this.#deps.now() });
    this.#pump();
  }

  /** We are registered: from now on reports are taken, and nothing counts as told. */
  registered(): void {
    this.#ready = true;
    this.#failures = 0;
    for (const name of this.#seen.keys()) if (!this.#fresh.has(name)) this.#again.add(name);
    this.#pump();
  }

  /** The data plane is gone. What it had learned is most likely still there, so nobody is told otherwise. */
  detached(): void {
    this.#seen.clear();
    this.#fresh.clear();
    this.#again.clear();
  }

  /** There is no channel: it all waits. */
  disconnected(): void {
    this.#ready = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  stop(): void {
    this.disconnected();
  }

  #pump(): void {
    if (!this.#ready || this.#busy || this.#timer !== undefined) return;
    const report = this.#next();
    if (report === undefined) return;
    this.#busy = true;
    void this.#send(report).finally(() => {
      this.#busy = false;
      this.#pump();
    });
  }

  async #send({ report, names, gone, spoofed }: Batch): Promise<void> {
    try {
      const { refused } = await this.#deps.send(report);
      this.#failures = 0;
      this.#reports += 1;
      this.#refused += refused;
    } catch (thrown) {
      for (const name of names) if (this.#seen.has(name)) this.#fresh.add(name);
      for (const [name, key] of gone) if (!this.#seen.has(name)) this.#gone.set(name, key);
      for (const [name, sighting] of spoofed) this.#spoofed.set(name, sighting);
      this.#retry(thrown);
    }
  }

  #retry(thrown: unknown): void {
    if (!this.#ready) return;
    const limited = thrown instanceof RequestError && thrown.code === 'limit';
    const wait = limited
      ? LIMITED_MS
      : Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** Math.min(this.#failures, 8));
    this.#failures += 1;
    if (!limited) this.#deps.onFailed(thrown, wait);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, wait);
    this.#timer.unref();
  }

  #next(): Batch | undefined {
    const names: string[] = [];
    for (const set of [this.#fresh, this.#again]) {
      for (const name of set) {
        if (names.length + this.#spoofed.size >= MAX_REPORTED) break;
        names.push(name);
        set.delete(name);
        if (set === this.#fresh) this.#again.delete(name);
      }
    }
    const gone = [...this.#gone].slice(0, MAX_REPORTED);
    for (const [name] of gone) this.#gone.delete(name);
    const spoofed = [...this.#spoofed];
    this.#spoofed.clear();
    const sightings = [
      ...names.flatMap((name) => this.#seen.get(name) ?? []),
      ...spoofed.map(([, sighting]) => sighting),
    ];
    if (sightings.length + gone.length === 0) return undefined;
    const now = this.#deps.now();
    const entries = sightings.map(({ vlan, mac, at }) => ({
      vlan,
      mac: macToBytes(mac),
      seq: this.#nextSeq(),
      ago: Math.min(MAX_AGO_MS, Math.max(0, Math.round(now - at))),
    }));
    const report = {
      entries,
      gone: gone.map(([, { vlan, mac }]) => ({ vlan, mac: macToBytes(mac) })),
    };
    return { report, names, gone, spoofed };
  }

  #nextSeq(): number {
    this.#seq = Math.max(this.#seq + 1, Math.floor(this.#deps.serverNow()));
    return this.#seq;
  }
}

interface Batch {
  readonly report: Report;
  readonly names: readonly string[];
  readonly gone: readonly (readonly [string, Omit<Sighting, 'at'>])[];
  readonly spoofed: readonly (readonly [string, Sighting])[];
}
