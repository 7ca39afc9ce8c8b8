/**
 * Tells the key server which IP addresses our own MAC addresses announce (docs/protocol.md 8.6), in batches. The data
 * plane tells of each again, so what is lost on the way is not lost for good; what waits for a channel is kept.
 */
import { RequestError } from '../../src/net/channel.js';
import { ipToText, whyNotBindable } from '../../src/protocol/ip.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import { type IpBinding, MAX_BOUND } from '../../src/protocol/messages.js';

/** What comes within so long goes in one message. */
const COLLECT_MS = 20;
/** Addresses that wait to be told: more than a member can have. */
const MAX_CLAIMS = 256;
/** What the key server allows in a second is soon free again. */
const LIMITED_MS = 1_000;
/** How often refused addresses are told of. */
const COMPLAIN_MS = 60_000;
/** Addresses in one complaint. */
const COMPLAINED_OF = 8;

/** What is wanted of the surroundings. */
export interface ClaimsDeps {
  /** A clock in ms that does not go back. */
  readonly now: () => number;
  readonly macs: readonly MacAddress[];
  readonly send: (
    entries: readonly IpBinding[],
  ) => Promise<{ readonly refused: readonly string[] }>;
  /** The key server did not take these, at most once a minute. */
  readonly onRefused: (ips: readonly string[]) => void;
}

/** Counters for status and metrics. */
export interface ClaimsStatus {
  /** Addresses that were told. */
  readonly claims: number;
  /** Of these, not taken. */
  readonly refused: number;
  /** Not kept for want of room, or not ours to claim. */
  readonly overflow: number;
}

/** Claims of one port. */
export class Claims {
  readonly #deps: ClaimsDeps;
  readonly #waiting = new Map<string, MacAddress>();
  #ready = false;
  #busy = false;
  #timer: NodeJS.Timeout | undefined;
  #claims = 0;
  #refused = 0;
  #overflow = 0;
  readonly #complaints = new Set<string>();
  #complainAt = 0;

  constructor(deps: ClaimsDeps) {
    this.#deps = deps;
  }

  get status(): ClaimsStatus {
    return { claims: this.#claims, refused: this.#refused, overflow: this.#overflow };
  }

  /** The data plane saw one of our own addresses announce this. It may be hostile, so what can't be is left out. */
  claim(ip: Uint8Array, mac: MacAddress): void {
    const isIp = ip.length === 4 || ip.length === 16;
    if (!isIp || whyNotBindable(ip) !== undefined) {
      this.#overflow += 1;
      return;
    }
    this.again([{ ip: ipToText(ip), mac }]);
  }

  /** Tells these, as far as they are our own: a server that was put back has forgotten them. */
  again(entries: readonly IpBinding[]): void {
    for (const { ip, mac } of entries) {
      if (!this.#deps.macs.includes(mac)) continue;
      if (this.#waiting.size >= MAX_CLAIMS && !this.#waiting.has(ip)) this.#overflow += 1;
      else this.#waiting.set(ip, mac);
    }
    this.#schedule(COLLECT_MS);
  }

  /** We are registered: from now on claims are taken. */
  registered(): void {
    this.#ready = true;
    this.#schedule(COLLECT_MS);
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

  #schedule(ms: number): void {
    if (!this.#ready || this.#busy || this.#waiting.size === 0) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#busy = true;
      void this.#tell().then((wait) => {
        this.#busy = false;
        this.#schedule(wait);
      });
    }, ms);
    this.#timer.unref();
  }

  /** @returns after how long to go on */
  async #tell(): Promise<number> {
    const some = [...this.#waiting].slice(0, MAX_BOUND);
    for (const [ip] of some) this.#waiting.delete(ip);
    try {
      const { refused } = await this.#deps.send(some.map(([ip, mac]) => ({ ip, mac })));
      this.#claims += some.length;
      this.#refused += refused.length;
      this.#complain(refused);
      return COLLECT_MS;
    } catch (thrown) {
      // Refused as a whole: it would be again. The data plane will tell of it again.
      const limited = thrown instanceof RequestError && thrown.code === 'limit';
      if (thrown instanceof RequestError && !limited) return COLLECT_MS;
      for (const [ip, mac] of some) if (!this.#waiting.has(ip)) this.#waiting.set(ip, mac);
      return LIMITED_MS;
    }
  }

  #complain(refused: readonly string[]): void {
    for (const ip of refused) if (this.#complaints.size < COMPLAINED_OF) this.#complaints.add(ip);
    const now = this.#deps.now();
    if (this.#complaints.size === 0 || now < this.#complainAt) return;
    this.#complainAt = now + COMPLAIN_MS;
    this.#deps.onRefused([...this.#complaints]);
    this.#complaints.clear();
  }
}
