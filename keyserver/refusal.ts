/**
 * A request that is refused: what the asker is told, and what the audit log and the metrics
 * are told. server.ts turns it into the one and the other.
 */
import { PairwireError, type PeerCode } from '../src/runtime/errors.js';

/** Kinds of refusals: the `action` of audit entries and a label of a metric, so the set is fixed. */
export const REFUSAL_KINDS = [
  /** A message that this role may not send. */
  'role',
  /** A key was asked for in another's name. */
  'foreign_requester',
  'enrol_record',
  'enrol_expired',
  'enrol_token',
  'enrol_id',
  'enrol_address',
  'register_record',
  'register_duplicate',
  'register_rate',
  /** A member names a head of the audit log that this server has not signed, or too many. */
  'audit_head',
  'endpoints_rate',
  /** A relay's receipt that is not one, another member's, not the relay's, or old. */
  'receipt_malformed',
  'receipt_foreign',
  'receipt_forged',
  'receipt_late',
  'lookup_rate',
  'notice_rate',
  'held_rate',
  'identity_rate',
  'settings_record',
  /** A key server speaks for a net that is not its own, or of prefixes that can't be behind it. */
  'net_foreign',
  'net_prefix',
  /** Two key servers for one net, or one whose net makes the key itself. */
  'net_taken',
  'net_rate',
  /** The key server that makes a net key does not answer now. */
  'net_away',
  'peer_token',
  /** Another key server of this subnet speaks of members that are not at home there. */
  'cascade_home',
  /** It tells a record that does not hold: a signature, an identity, a boot record, a sender index. */
  'cascade_record',
  /** It tells of an address that another member has. */
  'cascade_address',
  /** It tells a key that is not for it to make, or one that can not be. */
  'cascade_key',
  /** A key server that does not fit into the subnet: its id, number, first server or tag. */
  'cascade_server',
  'cascade_rate',
  /** More members of another key server than are taken. */
  'cascade_members',
  /** The key server where a member is at home does not answer now. */
  'cascade_away',
  'revoke_self',
  /** A plain port reports an address that is or was a member's own: somebody outside pretends. */
  'learned_own',
  /** Another plain port has an address that is pinned to one. */
  'learned_pinned',
  /** An address moves to and fro between plain ports. */
  'address_flaps',
  'learned_rate',
  /** A member announces an IP address that is somebody else's. */
  'ip_taken',
  'bind_rate',
  /** What gateways refused: ARP, neighbour discovery, router advertisements, redirects, DHCP answers. */
  'arp_spoof',
  'nd_spoof',
  'ra_guard',
  'redirect_guard',
  'dhcp_guard',
  'guarded_rate',
  'pin_address',
  'free_address',
  /** A member knows of more revocations than this server: its database was put back. */
  'restored',
  'unknown_member',
  /** Somebody without a known key at the door. */
  'channel_unknown',
] as const;
export type RefusalKind = (typeof REFUSAL_KINDS)[number];

/** Thrown by whoever refuses a request. */
export class Refusal extends Error {
  readonly code: PeerCode;
  readonly kind: RefusalKind;
  /** For the audit log only. */
  readonly facts: Readonly<Record<string, string | number>>;

  /** @param told what the asker is told: names its own mistake only */
  constructor(
    code: PeerCode,
    kind: RefusalKind,
    told: string,
    facts: Readonly<Record<string, string | number>> = {},
  ) {
    super(told);
    this.name = 'Refusal';
    this.code = code;
    this.kind = kind;
    this.facts = facts;
  }
}

/** Nobody has this address, index or id. An ordinary answer, so nothing of it is audited. */
export class NotFound extends Error {}

/** Nobody knows yet, because the database was put back. As ordinary; the log has it from when that showed. */
export class NotYet extends Error {}

/** Runs a check of a record; what it throws about the record becomes a refusal. */
export function refusing<T>(kind: RefusalKind, check: () => T): T {
  try {
    return check();
  } catch (thrown) {
    if (thrown instanceof PairwireError && thrown.code.startsWith('RECORD_')) {
      throw new Refusal('refused', kind, thrown.message, { code: thrown.code });
    }
    throw thrown;
  }
}
