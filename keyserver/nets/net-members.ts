/**
 * Key servers of other subnets as members of this one: a grant with a net id lets one ask for the key of
 * that net and this one, and for nothing else (docs/protocol.md 9). Who is revoked takes the net's link along.
 */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { MAX_NETS } from '../../src/protocol/messages.js';
import { networkOf, overlap } from '../../src/protocol/prefixes.js';
import type { VerifiedMember } from '../../src/protocol/records.js';
import type { OwnNet } from '../config.js';
import { dueAfter, numberAbove } from '../keys/renewal.js';
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
  const { net: own, metrics } = services;
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
  const local = grant.ips.map(networkOf);
  await requireRoom(tx, own, net, local);
  const changed = await tx.nextChange();
  const pwId = known?.key === undefined ? (known?.pwId ?? 0) + 1 : known.pwId;
  const fresh = {
    ...madeNow(services),
    pwId,
    // Whatever was used before this link is over.
    oldest: pwId,
    reason: 'first',
    told: [],
    far: undefined,
    serial: known?.serial ?? changed,
  };
  const entry: Net = {
    ...(known?.key === undefined ? fresh : known),
    net,
    member: id,
    contact: undefined,
    local,
    // Whoever speaks for it from now on has not told of anything yet.
    far: known?.member === id ? known.far : undefined,
    changed,
  };
  await tx.putNet(entry);
  if (known?.key === undefined) metrics.netRekeys.inc({ reason: 'first', step: 'made' });
  return entry;
}

/** A key of ours that is in force from now on. */
export function madeNow(
  services: Pick<Services, 'now' | 'settings'>,
): Pick<Net, 'createdAt' | 'dueAt' | 'next'> & { readonly key: Buffer } {
  return { key: randomBytes(KEY_SIZE), ...inForceNow(services) };
}

/** When a key of ours that is in force from now on gets too old. */
export function inForceNow({
  now,
  settings,
}: Pick<Services, 'now' | 'settings'>): Pick<Net, 'createdAt' | 'dueAt' | 'next'> {
  const createdAt = now();
  const dueAt = dueAfter(settings.settings.rekeySeconds * 1_000, createdAt, Math.random);
  return { createdAt, dueAt, next: undefined };
}

/** @throws Refusal for a net that can't be linked beside those that are: too many, or its prefixes are elsewhere */
export async function requireRoom(
  tx: StoreTransaction,
  own: OwnNet,
  net: Id,
  prefixes: readonly string[],
): Promise<void> {
  const others = (await tx.nets()).filter((one) => one.net !== net && isLinked(one));
  if (others.length >= MAX_NETS) {
    throw new Refusal('limit', 'net_taken', `there are ${MAX_NETS} nets already`, { net });
  }
  const taken = [own.prefixes, ...others.map(({ local }) => local)].flat();
  const double = prefixes.find((prefix) => taken.some((other) => overlap(other, prefix)));
  if (double === undefined) return;
  throw new Refusal('refused', 'net_taken', `${double} is behind another net`, { net });
}

function isLinked({ member, contact }: Net): boolean {
  return member !== undefined || contact !== undefined;
}

/** Part of an enrolment: who becomes a link port is to see the nets that were there before. */
export async function renumberNets(tx: StoreTransaction): Promise<void> {
  for (const entry of await tx.nets()) {
    await tx.putNet({ ...entry, changed: await tx.nextChange() });
  }
}

/**
 * Part of the revocation of a link port, which holds net keys: those that are made here are others now, and nothing
 * older is heard. Those that others make are owed to us from now on. No key of before is needed, so one with a broken
 * seal keeps nobody's key in force. @returns the ones made here
 */
export async function replaceNets(
  tx: StoreTransaction,
  services: Pick<Services, 'now' | 'settings'>,
): Promise<readonly Net[]> {
  const replaced: Net[] = [];
  for (const entry of await tx.anyNets()) {
    if (entry.contact !== undefined) await tx.putNet({ ...entry, dueAt: services.now() });
    const hasKey = entry.key !== undefined || 'isBroken' in entry;
    if (entry.member === undefined || !hasKey) continue;
    const pwId = numberAbove(entry.pwId, entry.next?.pwId ?? 0);
    const changed = await tx.nextChange();
    const fresh = { ...madeNow(services), pwId, oldest: pwId, reason: 'revocation' };
    const another: Net = { ...entry, ...fresh, changed };
    await tx.putNet(another);
    replaced.push(another);
  }
  return replaced;
}

/**
 * Nets whose key is not what was sealed there: those made here get another key, above all numbers that the row names and in force at
 * once, since nobody can be prepared for it; those that others make lose theirs, and it is asked for anew.
 * @param which of them; all without it
 */
export async function mendNets(
  tx: StoreTransaction,
  services: Pick<Services, 'now' | 'settings' | 'audit'>,
  actor: string,
  which?: readonly Id[],
): Promise<readonly Net[]> {
  const mended: Net[] = [];
  for (const entry of await tx.anyNets()) {
    if (!('isBroken' in entry) || which?.includes(entry.net) === false) continue;
    const { isBroken: _broken, ...row } = entry;
    const changed = await tx.nextChange();
    const pwId = numberAbove(row.pwId);
    const net: Net =
      row.member === undefined
        ? { ...row, key: undefined, next: undefined, pwId: pwId - 1, changed }
        : { ...row, ...madeNow(services), pwId, oldest: pwId, reason: 'broken', changed };
    await tx.putNet(net);
    const detail = { net: net.net, pwId: net.pwId };
    await services.audit.append(tx, { actor, action: 'net_mended', outcome: 'done', detail });
    mended.push(net);
  }
  return mended;
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
  for (const entry of await tx.anyNets()) {
    if (entry.member !== id || entry.net === except) continue;
    const changed = await tx.nextChange();
    // Also a number that was only prepared has been given to a key.
    const pwId = entry.next?.pwId ?? entry.pwId;
    const ended = { member: undefined, far: undefined, key: undefined, next: undefined };
    const gone = { ...entry, ...ended, pwId, changed };
    await tx.putNet(gone);
    dropped.push(gone);
  }
  return dropped;
}
