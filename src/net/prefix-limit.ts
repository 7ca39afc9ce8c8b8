/** Limits by network prefix: so many at once, so many in a second, for at most so many prefixes. */
import { isIPv4 } from 'node:net';
import type { Clock } from '../runtime/clock.js';

/** Prefixes that are remembered; the one that was seen longest ago is forgotten first. */
const MAX_PREFIXES = 8_192;

interface Bucket {
  tokens: number;
  at: number;
}

/** A token bucket for each prefix. */
export class PrefixLimit {
  readonly #clock: Clock;
  readonly #burst: number;
  readonly #perSecond: number;
  readonly #buckets = new Map<string, Bucket>();

  constructor(clock: Clock, limit: { readonly burst: number; readonly perSecond: number }) {
    this.#clock = clock;
    this.#burst = limit.burst;
    this.#perSecond = limit.perSecond;
  }

  /** Takes one for an address. @returns false if its prefix has none left */
  take(address: string): boolean {
    const prefix = prefixOf(address);
    const now = this.#clock.bootMs();
    const bucket = this.#buckets.get(prefix) ?? { tokens: this.#burst, at: now };
    this.#buckets.delete(prefix);
    this.#buckets.set(prefix, bucket);
    if (this.#buckets.size > MAX_PREFIXES) {
      for (const oldest of this.#buckets.keys()) {
        this.#buckets.delete(oldest);
        break;
      }
    }
    const gained = ((now - bucket.at) / 1_000) * this.#perSecond;
    bucket.tokens = Math.min(this.#burst, bucket.tokens + gained);
    bucket.at = now;
    if (bucket.tokens < 1) return false;
    bucket.tokens -= 1;
    return true;
  }
}

/** An IPv4 address as it is, also one that IPv6 maps; the first 64 bits of any other. */
export function prefixOf(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  if (isIPv4(address)) return address;
  const [head = '', tail] = (address.split('%')[0] ?? '').toLowerCase().split('::');
  const first = head === '' ? [] : head.split(':');
  const last = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - first.length - last.length);
  const groups = [...first, ...Array.from({ length: zeros }, () => '0'), ...last];
  return groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':');
}
