/** The group key (ID_M, KEY_M): made by `init`, kept apart from the pair keys. */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { GROUP_ID } from '../../src/protocol/ids.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { GroupKey, Member, StoreTransaction } from '../storage/store.js';

/** Makes the first generation. @param interval age at which it is renewed, ms; 0: not by age */
export async function makeGroupKey(
  tx: StoreTransaction,
  now: number,
  interval: number,
): Promise<void> {
  const number = await tx.nextChange();
  await tx.replaceGroup({
    id: GROUP_ID,
    key: randomBytes(KEY_SIZE),
    pwId: 1,
    reason: 'init',
    createdAt: now,
    serial: number,
    changed: number,
    oldest: 1,
    dueAt: interval === 0 ? 0 : now + interval,
  });
}

/** The group key for a member that asks for it. */
export async function groupKeyFor(services: Services, member: Member): Promise<GroupKey> {
  const { store, settings } = services;
  if (settings.settings.hold === 0 && member.groupAsked === 0) {
    await store.write(async (tx) => tx.markGroupAsked(member.id, await tx.nextChange()));
  }
  const key = await store.groupKey(GROUP_ID);
  if (key === undefined) throw new PairwireError('STORE_FAILED', 'there is no group key');
  // Read after the key: who was revoked meanwhile must not get one that was made because of that.
  const asker = await store.member(member.id);
  if (asker?.state !== 'active') throw new Refusal('refused', 'unknown_member', 'not a member');
  return key;
}
