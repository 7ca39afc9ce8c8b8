/** What one member may know of another, made from the store's row. */
import type { PeerRecord } from '../../src/protocol/messages.js';
import type { Member } from '../storage/store.js';

/**
 * The record as members get it; the membership carries the identity document in clear.
 */
export function toPeerRecord(member: Member): PeerRecord {
  return {
    id: member.id,
    role: member.role,
    online: member.online,
    membership: member.membership,
    ...(member.boot === undefined ? {} : { boot: member.boot.record, index: member.boot.index }),
    ips: [...member.ips],
    endpoints: [...member.endpoints],
  };
}

/** Bytes that a member's record takes in a message, near enough for batches. */
export function peerRecordSize(member: Member): number {
  const boot = member.boot === undefined ? 0 : member.boot.record.b.length + 96;
  return (
    member.membership.b.length + boot + member.ips.length * 48 + member.endpoints.length * 32 + 256
  );
}
