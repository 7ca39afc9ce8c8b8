/**
 * Revocation: a member is out, for ever. One transaction takes its keys, addresses and index and renews
 * the group key; its sessions are ended before that, so that nothing made in it can reach the member.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { GroupRekey } from '../keys/group-rekey.js';
import { dropNetsOf, replaceNets } from '../nets/net-members.js';
import { NotFound, Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Learned, Net, StoreTransaction } from '../storage/store.js';
import { releaseAll } from './bindings.js';
import { dropAllBehind } from './plain-side.js';

/** What became of it; `fresh` is false if the member was revoked already. */
export interface Revoked {
  readonly number: number;
  readonly fresh: boolean;
  /** Addresses that were behind it. */
  readonly behind: readonly Learned[];
  /** IP addresses that anybody may announce from now on, or another. */
  readonly bindings: readonly string[];
  /** Nets that it spoke for, or whose key it had and that have another one now. */
  readonly nets: readonly Net[];
  /** It had the keys of all nets. */
  readonly wasLink: boolean;
}

/**
 * Revokes a member.
 * @throws NotFound, or Refusal for one who would revoke himself
 */
export async function revoke(
  services: Services,
  groups: GroupRekey,
  actor: string,
  id: Id,
): Promise<Revoked> {
  const { store } = services;
  if (actor === id) throw new Refusal('refused', 'revoke_self', 'you can not revoke yourself');
  const revoked = await store.write(async (tx) => {
    const done = await takeOutIn(tx, services, actor, id);
    if (done.fresh) await groups.revokeIn(tx);
    return done;
  });
  if (!revoked.fresh) return revoked;
  noteOut(services, id, revoked);
  groups.revoked();
  return revoked;
}

/**
 * Revokes another key server of this subnet: whoever speaks for it, all who are at home there, and what is known of it,
 * in one transaction, so that nothing that it has just told is taken after that. Where this server makes the group key,
 * or does from now on, there is another one.
 * @throws NotFound
 */
export async function revokeServer(
  services: Services,
  groups: GroupRekey,
  actor: Id,
  server: Id,
): Promise<ReadonlyMap<Id, Revoked>> {
  const { store, audit } = services;
  const out = await store.write(async (tx) => {
    const row = await tx.peerServer(server);
    const ids = [
      ...(row?.member === undefined ? [] : [row.member]),
      ...(await tx.membersAt(server)),
    ];
    if (row === undefined && ids.length === 0) throw new NotFound();
    const done = new Map<Id, Revoked>();
    for (const id of ids) done.set(id, await takeOutIn(tx, services, actor, id));
    await groups.revokeIn(tx);
    await tx.removePeerServer(server);
    const detail = { server, members: ids.length };
    await audit.append(tx, { actor, action: 'revoke', outcome: 'done', detail });
    return done;
  });
  for (const [id, revoked] of out) if (revoked.fresh) noteOut(services, id, revoked);
  groups.revoked();
  return out;
}

function noteOut({ log, metrics }: Services, id: Id, { number }: Revoked): void {
  log.warn({ member: id, number }, 'a member was revoked');
  metrics.revocations.inc();
}

/** All but the group key. */
async function takeOutIn(
  tx: StoreTransaction,
  services: Services,
  actor: string,
  id: Id,
): Promise<Revoked> {
  const { audit, now } = services;
  // Whatever somebody has made of its row: revoking it mends that.
  const member = await tx.anyMember(id);
  if (member === undefined) throw new NotFound();
  const wasLink = member.role === 'link';
  const before = await tx.revocationOf(id);
  if (before !== undefined) {
    const none = { behind: [], bindings: [], nets: [], wasLink: false };
    return { number: before.number, fresh: false, ...none };
  }
  const number = await tx.revoke(id, now(), await tx.nextChange());
  const behind = await dropAllBehind(tx, id, now());
  const bindings = await releaseAll(tx, id, now());
  const dropped = await dropNetsOf(tx, id);
  const replaced = wasLink ? await replaceNets(tx, services) : [];
  const detail = { member: id, number };
  await audit.append(tx, { actor, action: 'revoke', outcome: 'done', detail });
  return { number, fresh: true, behind, bindings, nets: [...dropped, ...replaced], wasLink };
}
