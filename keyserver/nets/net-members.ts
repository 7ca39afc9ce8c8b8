/**
 * Key servers of other subnets as members of this one: a grant with a net id lets one ask for the key of
 * that net and this one, and for nothing else (docs/protocol.md 9). Who is revoked takes the net's link along.
 */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { MAX_NETS } from '../../src/protocol/messages.js';
import { networkOf } from '../../src/protocol/prefixes.js';
import type { VerifiedMember } from '../../src/protocol/records.js';
import { dueAfter } from '../keys/renewal.js';
import { Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Net, StoreTransaction } from '../storage/store.js';

/**
 * Part of an enrolment: a key server that speaks for another net gets a key with it.
 * @returns the net, if the member speaks for one
 * @throws Refusal if that net is ours, makes the key itself, or has a server already
 */
export async function claimNet(
  tx: StoreTransaction,
  services: Services,
  member: VerifiedMember,
): Promise<Net | undefined> {
  const { net: own, now, settings, metrics } = services;
  const { id, grant, role } = member;
  const { net } = grant;
  if (role !== 'server' || net === undefined) return undefined;
  const taken = (why: string): Refusal => new Refusal('refused', 'net_taken', why, { id, net });
  if (net === own.id) throw taken('that net id is ours');
  if (net < own.id) throw taken('the key of the two nets is made by the other one');
  const known = await tx.net(net);
  if (known?.contact !== undefined) throw taken('we ask that net ourselves');
  if (known?.member !== undefined && known.member !== id) {
    throw taken('another key server speaks for that net');
  }
  if (known === undefined && (await tx.nets()).length >= MAX_NETS) {
    throw new Refusal('limit', 'net_taken', `there are ${MAX_NETS} nets already`, { id, net });
  }
  const changed = await tx.nextChange();
  const time = now();
  const pwId = known?.key === undefined ? (known?.pwId ?? 0) + 1 : known.pwId;
  const fresh = {
    key: randomBytes(KEY_SIZE),
    pwId,
    // Whatever was used before this link is over.
    oldest: pwId,
    reason: 'first',
    createdAt: time,
    dueAt: dueAfter(settings.settings.rekeySeconds * 1_000, time, Math.random),
    next: undefined,
    told: [],
    serial: known?.serial ?? changed,
  };
  const entry: Net = {
    ...(known?.key === undefined ? fresh : known),
    net,
    member: id,
    contact: undefined,
    local: grant.ips.map(networkOf),
    changed,
  };
  await tx.putNet(entry);
  if (known?.key === undefined) metrics.netRekeys.inc({ reason: 'first', step: 'made' });
  return entry;
}

/**
 * Part of a revocation, or of an enrolment under another grant: the nets that the member spoke for are linked no
 * more, but for one. @returns them
 */
export async function dropNetsOf(
  tx: StoreTransaction,
  id: Id,
  except?: Id,
): Promise<readonly Net[]> {
  const dropped: Net[] = [];
  for (const entry of await tx.nets()) {
    if (entry.member !== id || entry.net === except) continue;
    const changed = await tx.nextChange();
    const gone = { ...entry, member: undefined, key: undefined, next: undefined, changed };
    await tx.putNet(gone);
    dropped.push(gone);
  }
  return dropped;
}
