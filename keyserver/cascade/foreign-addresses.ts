/** The addresses of a member at home at another key server: what its grant names, unless a member here has it. */
import type { MacAddress } from '../../src/protocol/mac.js';
import type { VerifiedMember } from '../../src/protocol/records.js';
import { Refusal } from '../refusal.js';
import { grantBindings } from '../registry/bindings.js';
import { canonicalPrefix, claimMacs } from '../registry/enrol.js';
import type { StoreTransaction } from '../storage/store.js';

/** What became of them. */
export interface ForeignAddresses {
  /** Its own from now on. */
  readonly macs: readonly MacAddress[];
  /** IP addresses of which others are to be told. */
  readonly bindings: readonly string[];
  /** What it does not get, because another member has it. */
  readonly refused: readonly string[];
}

/** Gives a member its addresses; one that another has stays with that one. */
export async function claimForeign(
  tx: StoreTransaction,
  member: VerifiedMember,
  now: number,
): Promise<ForeignAddresses> {
  const { id, grant } = member;
  const shared = grant.rights.includes('shared');
  const refused: string[] = [];
  const macs: MacAddress[] = [];
  for (const mac of member.macs) {
    // Nothing is written before it is known that the address is free.
    if (await isTaken(() => claimMacs(tx, member, [mac], now))) refused.push(mac);
    else macs.push(mac);
  }
  for (const entry of await tx.macsOf(id)) {
    if (entry.kind === 'own' && !(macs.includes(entry.mac) && entry.shared === shared)) {
      await tx.putMac({ ...entry, kind: 'tombstone', seenAt: now });
    }
  }
  const prefixes: string[] = [];
  for (const prefix of grant.ips.map(canonicalPrefix)) {
    const owner = await tx.ipOwner(prefix);
    const pinned = await tx.binding(prefix);
    const taken =
      (owner !== undefined && owner !== id && !shared) ||
      (pinned?.kind === 'pinned' && !macs.includes(pinned.mac));
    if (taken) refused.push(prefix);
    else prefixes.push(prefix);
  }
  await tx.bindIps(id, prefixes, shared, now);
  const bindings: string[] = [];
  const full = await isTaken(async () => {
    bindings.push(...(await grantBindings(tx, { id, macs, grant }, prefixes, now)));
  });
  if (full) refused.push('bindings');
  return { macs, bindings, refused };
}

async function isTaken(claim: () => Promise<void>): Promise<boolean> {
  try {
    await claim();
    return false;
  } catch (thrown) {
    if (thrown instanceof Refusal) return true;
    throw thrown;
  }
}
