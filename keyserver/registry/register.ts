/**
 * Registration of a boot record: a start of a member's data plane. The record is verified
 * against the member's identity and the highest sequence; a new boot key draws a new sender
 * index, the same one keeps its index, so a reconnect changes nothing.
 */
import { createHash, randomInt } from 'node:crypto';
import { LABEL } from '../../src/protocol/constants.js';
import { bootRecordSchema, type VerifiedMember, verifyBoot } from '../../src/protocol/records.js';
import { readUnverified, type Signed } from '../../src/protocol/signed.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { Refusal, refusing } from '../refusal.js';
import type { Services } from '../services.js';
import type { StoreTransaction } from '../storage/store.js';
import { TokenBuckets } from './token-bucket.js';

/** The high 8 bits of an index name the server; those of a subnet's first one are zero. */
const INDEX_BITS = 24;
/** How long an index rests after its boot record was replaced (M14). */
const INDEX_REST_MS = 24 * 3_600_000;
const MAX_DRAWS = 1_000;
/** New boot keys of a member: three at once, then one in 10 s (M7). */
const BOOT_BURST = 3;
const BOOTS_PER_SECOND = 0.1;
/** Records of a boot key that is known: a control plane's restart or a renewal. Each is a write and a push to everybody. */
const RENEWAL_BURST = 20;
const RENEWALS_PER_SECOND = 1;

/** What became of a registration; `changed` is false if everything was so already. */
export interface Registered {
  readonly index: number;
  readonly changed: boolean;
}

/** Registers boot records. */
export class BootRegistry {
  readonly #services: Services;
  readonly #rate = new TokenBuckets(BOOT_BURST, BOOTS_PER_SECOND);
  readonly #renewals = new TokenBuckets(RENEWAL_BURST, RENEWALS_PER_SECOND);

  constructor(services: Services) {
    this.#services = services;
  }

  /** @throws Refusal for a record that is not good, or too many new ones */
  async register(verified: VerifiedMember, record: Signed): Promise<Registered> {
    const { store, now, audit } = this.#services;
    const { id } = verified;
    const time = now();
    const claimed = refusing('register_record', () =>
      readUnverified(LABEL.boot, record, bootRecordSchema),
    );
    const present = await store.member(id);
    const isNew = present?.boot?.key.equals(claimed.boot) !== true;
    if (!isNew && present?.online === true && sameRecord(present.boot?.record, record)) {
      return { index: present.boot?.index ?? 0, changed: false };
    }
    // A record that isn't good must not use up the member's rate, so it is checked before and inside.
    refusing('register_record', () =>
      verifyBoot(verified, record, time, present?.boot?.sequence ?? 0),
    );
    if (isNew && !this.#rate.take(id, time)) {
      throw new Refusal('limit', 'register_rate', 'too many new boot keys; wait 10 s');
    }
    if (!isNew && !this.#renewals.take(id, time)) {
      throw new Refusal('limit', 'register_rate', 'too many records of one boot key; wait');
    }
    return store.write(async (tx) => {
      const member = await tx.member(id);
      if (member?.state !== 'active') {
        throw new Refusal('refused', 'unknown_member', 'the member does not exist');
      }
      const before = member.boot;
      const boot = refusing('register_record', () =>
        verifyBoot(verified, record, time, before?.sequence ?? 0),
      );
      const key = Buffer.from(boot.boot);
      const same = before?.key.equals(key) === true;
      if (before !== undefined && !same && boot.sequence === before.sequence) {
        throw new Refusal('refused', 'register_record', 'another boot key has this sequence');
      }
      const { number } = store.meta;
      const index = same ? before.index : await drawIndex(tx, number, id, record, time);
      if (before !== undefined && !same) await tx.releaseIndex(before.index, time);
      await tx.setBoot(id, {
        record,
        key,
        sequence: boot.sequence,
        index,
        registeredAt: same ? before.registeredAt : time,
      });
      await tx.updatePresence(id, { online: true }, await tx.nextChange());
      if (!same) {
        await audit.append(tx, {
          actor: id,
          action: 'register',
          outcome: 'done',
          detail: { index, sequence: boot.sequence },
        });
      }
      return { index, changed: true };
    });
  }
}

/** Draws a sender index that is neither in use nor resting. */
async function drawIndex(
  tx: StoreTransaction,
  server: number,
  id: VerifiedMember['id'],
  record: Signed,
  now: number,
): Promise<number> {
  await tx.forgetIndices(now - INDEX_REST_MS);
  const digest = createHash('sha256').update(record.b).update(record.s).digest();
  for (let draw = 0; draw < MAX_DRAWS; draw += 1) {
    const index = server * 2 ** INDEX_BITS + randomInt(1, 2 ** INDEX_BITS);
    if (await tx.takeIndex(index, id, digest, now)) return index;
  }
  throw new PairwireError('STORE_FAILED', 'there is no free sender index');
}

function sameRecord(a: Signed | undefined, b: Signed): boolean {
  return a !== undefined && Buffer.compare(a.b, b.b) === 0 && Buffer.compare(a.s, b.s) === 0;
}
