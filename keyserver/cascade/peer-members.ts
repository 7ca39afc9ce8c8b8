/**
 * Other key servers of this subnet as members of this one: a grant with a server id lets one exchange what is at home at
 * either, and nothing else (docs/protocol.md 10). The server with the smaller id makes the token, so nobody becomes the
 * first server by coming later.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { VerifiedMember } from '../../src/protocol/records.js';
import { Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { PeerServer, StoreTransaction } from '../storage/store.js';

/** Most other key servers of one subnet: every two of them have a channel. */
export const MAX_SERVERS = 16;
const NO_EPOCH = Buffer.alloc(8);

/** A server of which nothing is known yet. */
export function newPeer(
  server: Id,
  how: Partial<Pick<PeerServer, 'member' | 'contact'>>,
  serial: number,
): PeerServer {
  return {
    ...{ server, member: how.member, contact: how.contact, number: undefined },
    ...{ epoch: NO_EPOCH, cursor: 0, complete: false, timeOffset: 0, serial },
    ...{ currentAt: 0, run: undefined },
  };
}

/** Part of an enrolment: whoever speaks for another server of this subnet. @throws Refusal if that server can't be one */
export async function claimServer(
  tx: StoreTransaction,
  { server: own }: Pick<Services, 'server'>,
  { id, grant, role }: VerifiedMember,
): Promise<void> {
  for (const peer of await tx.peerServers()) {
    if (peer.member !== id || peer.server === grant.server) continue;
    const why = 'the id speaks for another key server; ids are not used again';
    throw new Refusal('refused', 'enrol_id', why, { id, server: peer.server });
  }
  const { server } = grant;
  if (role !== 'server' || server === undefined) return;
  const wrong = (why: string): Refusal =>
    new Refusal('refused', 'cascade_server', why, { id, server });
  if (grant.net !== undefined) throw wrong('a key server is of this subnet or of another one');
  if (server === own) throw wrong('that server id is ours');
  if (server < own) throw wrong(`tokens for ${own} are made at ${server}`);
  const known = await tx.peerServer(server);
  if (known?.contact !== undefined) throw wrong('we come to that server ourselves');
  if (known?.member !== undefined && known.member !== id) {
    throw wrong('another member speaks for that server');
  }
  if (known !== undefined) return;
  if ((await tx.membersAt(server)).length > 0) throw wrong('that server has been here before');
  if ((await tx.peerServers()).length >= MAX_SERVERS) {
    throw new Refusal('limit', 'cascade_server', `there are ${MAX_SERVERS} servers already`, {
      id,
    });
  }
  await tx.putPeerServer(newPeer(server, { member: id }, await tx.nextChange()));
}

/** The first server of the subnet, the one with the smallest id: it makes the group key, and its time is the subnet's. */
export function firstOf(own: Id, others: Iterable<Id>): Id {
  let first = own;
  for (const server of others) if (server < first) first = server;
  return first;
}
