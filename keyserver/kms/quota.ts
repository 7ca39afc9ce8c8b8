/**
 * What one key server may have of its KMS in an hour or a day: one that somebody has taken over must neither fill the disk with
 * root keys and log lines, nor have every DEK of a stolen database opened as fast as it can ask. Counted from the start of the KMS.
 */
import { z } from 'zod';
import { type KmsLimited, NOT_LIMITED } from '../../src/protocol/kms-messages.js';
import { PairwireError } from '../../src/runtime/errors.js';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

const amount = z.int().min(1).max(1_000_000);
/** `limits` of kms.yaml. */
export const quotaSchema = z.strictObject({
  /** Requests of a key server in a second; so many at once, too. */
  requestsPerSecond: amount.default(50),
  /** Questions of members that it passes on (docs/protocol.md 11.7), apart from its own. */
  memberQuestionsPerSecond: amount.default(200),
  dekMakesPerHour: amount.default(60),
  dekOpensPerHour: amount.default(5_000),
  rootKeysPerDay: amount.default(24),
});
export type QuotaConfig = z.output<typeof quotaSchema>;

export type QuotaKind = keyof KmsLimited;
const NAMES: Readonly<Record<QuotaKind, string>> = {
  request: 'requests',
  question: "members' questions",
  make: 'DEKs made',
  open: 'DEKs opened',
  root: 'root keys made',
};

interface Bucket {
  left: number;
  at: number;
}

/** Buckets of all key servers: each is full at first, and fills evenly. */
export class Quotas {
  readonly #sizes: Readonly<Record<QuotaKind, { readonly most: number; readonly per: number }>>;
  readonly #now: () => number;
  readonly #buckets = new Map<string, Bucket>();
  readonly #refusals: Record<QuotaKind, number> = { ...NOT_LIMITED };

  /** @param now counts ms and never goes back */
  constructor(config: QuotaConfig, now: () => number = () => performance.now()) {
    this.#now = now;
    this.#sizes = {
      request: { most: config.requestsPerSecond, per: 1_000 },
      question: { most: config.memberQuestionsPerSecond, per: 1_000 },
      make: { most: config.dekMakesPerHour, per: HOUR_MS },
      open: { most: config.dekOpensPerHour, per: HOUR_MS },
      root: { most: config.rootKeysPerDay, per: DAY_MS },
    };
  }

  /** Takes so many for a key server of kms.yaml. @throws PairwireError LIMIT */
  take(server: string, kind: QuotaKind, count = 1): void {
    const { most, per } = this.#sizes[kind];
    const now = this.#now();
    const name = `${kind} ${server}`;
    const bucket = this.#buckets.get(name) ?? { left: most, at: now };
    this.#buckets.set(name, bucket);
    bucket.left = Math.min(most, bucket.left + ((now - bucket.at) * most) / per);
    bucket.at = now;
    if (bucket.left < count) {
      this.#refusals[kind] += 1;
      throw new PairwireError('LIMIT', `key server ${server} wants too much: ${NAMES[kind]}`, {
        hint: `kms.yaml allows ${most} in ${per / 1_000} s (limits); ask why it needs more before you allow it`,
      });
    }
    bucket.left -= count;
  }

  /** Does something that counts as one only if it succeeds. @throws PairwireError LIMIT, and as the work */
  spend<T>(server: string, kind: QuotaKind, work: () => T): T {
    this.take(server, kind);
    try {
      return work();
    } catch (thrown) {
      // A token that was pulled must not cost the key server what it needs when that is back.
      const bucket = this.#buckets.get(`${kind} ${server}`);
      if (bucket !== undefined) bucket.left += 1;
      throw thrown;
    }
  }

  /** How often each limit was met since the start, by all key servers. */
  get refusals(): KmsLimited {
    return { ...this.#refusals };
  }
}
