/**
 * Revocation: a member is out, for ever. One transaction takes its keys, addresses and index and renews
 * the group key; its sessions are ended before that, so that nothing made in it can reach the member.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { GroupRekey } from '../keys/group-rekey.js';
import { dropNetsOf, replaceNets } from '../nets/net-members.js';
import { NotFound, Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Learned, Net } from '../storage/store.js';
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
  actor: Id,
  id: Id,
): Promise<Revoked> {
  const { store, audit, now, log } = services;
  if (actor === id) throw new Refusal('refused', 'revoke_self', 'you can not revoke yourself');
  const revoked = await store.write(async (tx) => {
    const member = await tx.member(id);
    if (member === undefined) throw new NotFound();
    const before = await tx.revocationOf(id);
    if (before !== undefined) {
      return {
        number: before.number,
        fresh: false,
        behind: [],
        bindings: [],
        nets: [],
        wasLink: false,
      };
    }
    const number = await tx.revoke(id, now(), await tx.nextChange());
    await groups.revokeIn(tx);
    const behind = await dropAllBehind(tx, id, now());
    const bindings = await releaseAll(tx, id, now());
    const dropped = await dropNetsOf(tx, id);
    const replaced = member.role === 'link' ? await replaceNets(tx, services) : [];
    const nets = [...dropped, ...replaced];
    await audit.append(tx, {
      actor,
      action: 'revoke',
      outcome: 'done',
      detail: { member: id, number },
    });
    const wasLink = member.role === 'link';
    return { number, fresh: true, behind, bindings, nets, wasLink };
  });
  if (revoked.fresh) {
    log.warn({ member: id, number: revoked.number }, 'a member was revoked');
    services.metrics.revocations.inc();
    groups.revoked();
  }
  return revoked;
}
