/**
 * Who may send which message, docs/protocol.md section 7: one table, default deny. Tested for
 * every role and every message.
 */
import type { RequestType } from './messages.js';
import type { Role } from './records.js';

/** A session before enrolment has no role. */
export type Asker = Role | 'joining';

const MEMBER: readonly RequestType[] = [
  'ping',
  'register',
  'endpoints',
  'key.mac',
  'key.index',
  'key.confirm',
  'key.notice',
  'key.held',
  'sync',
  'guarded',
  'identity.get',
  'identity.put',
  'kms.exchange',
];

export const MAY_SEND: Readonly<Record<Asker, readonly RequestType[]>> = {
  joining: ['ping', 'enrol'],
  host: [...MEMBER, 'bind'],
  plain: [...MEMBER, 'learned'],
  link: [...MEMBER, 'bind', 'key.net'],
  server: ['ping', 'net.sync', 'net.confirm', 'net.rekey', 'net.end', 'cascade.sync'],
  operator: [
    'ping',
    'list',
    'settings.set',
    'rekey',
    'revoke',
    'restore.confirm',
    'kms.status',
    'kms.rotate',
    'peer.add',
    'peer.remove',
    'mac.pin',
    'mac.free',
    'ip.pin',
    'ip.free',
  ],
  viewer: ['ping', 'list'],
};

/** True if an asker of this role may send this message. */
export function maySend(asker: Asker, type: RequestType): boolean {
  return MAY_SEND[asker].includes(type);
}
