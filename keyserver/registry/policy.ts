/**
 * The policy in force, for members as the store has them. What a grant says of one is read once for each
 * membership; it was verified when that came in.
 */

import { LABEL } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { decide, type Policy, type Subject, subjectOf } from '../../src/protocol/policy.js';
import { grantSchema, membershipSchema } from '../../src/protocol/records.js';
import { readUnverified, type Signed } from '../../src/protocol/signed.js';
import type { Member, StoreReads, StoreTransaction } from '../storage/store.js';

/** By membership: it is part of the store's cache, and goes with it. */
const subjects = new WeakMap<Signed, Subject>();

/** A member as policies see it. */
export function subjectFor({ id, membership }: Pick<Member, 'id' | 'membership'>): Subject {
  const known = subjects.get(membership);
  if (known !== undefined) return known;
  const { grant } = readUnverified(LABEL.member, membership, membershipSchema);
  const subject = subjectOf(id, readUnverified(LABEL.grant, grant, grantSchema));
  subjects.set(membership, subject);
  return subject;
}

/** Whether two members may have a key, and see each other. */
export function mayPair(policy: Policy | undefined, one: Member, other: Member): boolean {
  return policy === undefined || decide(policy, subjectFor(one), subjectFor(other)).allowed;
}

/** As `mayPair`, by ids; who is not there is left to whoever looks for him. */
export async function mayPairIds(
  store: StoreReads,
  policy: Policy | undefined,
  one: Id,
  other: Id,
): Promise<boolean> {
  if (policy === undefined) return true;
  const [a, b] = [await store.member(one), await store.member(other)];
  return a === undefined || b === undefined || mayPair(policy, a, b);
}

/**
 * Takes the keys of pairs that are denied from now on, so that nothing renews or tells them, and gives
 * members new numbers, so that whoever may see one again does. A part of installing settings.
 */
export async function applyPolicy(tx: StoreTransaction, policy: Policy | undefined): Promise<void> {
  if (policy !== undefined) {
    // Each member is in many pairs.
    const known = new Map<Id, Member | undefined>();
    const member = async (id: Id): Promise<Member | undefined> => {
      if (!known.has(id)) known.set(id, await tx.member(id));
      return known.get(id);
    };
    for (const { a, b } of await tx.pairEnds()) {
      const [one, other] = [await member(a), await member(b)];
      if (one === undefined || other === undefined) continue;
      if (!mayPair(policy, one, other)) await tx.removePair(a, b);
    }
  }
  await tx.renumberMembers();
}
