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
  'endpoints_rate',
  'lookup_rate',
  'settings_record',
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
