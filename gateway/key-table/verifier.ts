/**
 * Judges what the key server says about members: every signature is checked here, against the
 * pinned operator key, and every claim against the pins (threats.md C4). The key server
 * introduces; it is not believed.
 *
 * Error contract: a throw leaves verifier and pins as they were, and concerns that member only.
 */
import { createHash, type KeyObject } from 'node:crypto';
import type { Id } from '../../src/protocol/ids.js';
import type { PeerRecord } from '../../src/protocol/messages.js';
import {
  type BootRecord,
  requireBootOf,
  type Settings,
  TALKER_ROLES,
  type VerifiedMember,
  verifyBoot,
  verifyMembership,
  verifySettings,
} from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { Verdict } from '../control/identities.js';
import type { Pins } from './pins.js';

/** A member's record of which every part held. */
export interface VerifiedPeer {
  readonly member: VerifiedMember;
  /** Missing until the member's data plane has started once, and after its boot record has expired. */
  readonly boot?: BootRecord;
  /** It is not known yet who the member is, whose data plane has started: no traffic with it, and nothing of it is pinned. */
  readonly waits?: true;
}

interface Remembered {
  readonly digest: string;
  readonly member: VerifiedMember;
  /** A boot record that this member has signed. */
  readonly boot: { readonly digest: string; readonly record: BootRecord } | undefined;
}

/** Verifies records of one subnet. */
export class Verifier {
  readonly #subnet: Id;
  readonly #operator: KeyObject;
  readonly #pins: Pins;
  readonly #now: () => number;
  readonly #judge: (member: VerifiedMember, isThere: boolean) => Verdict;
  /** The last good membership and boot record of each id, so that a change of endpoints, or a key, costs no signatures. */
  readonly #remembered = new Map<Id, Remembered>();

  /**
   * @param now key-server time in ms
   * @param judge says whether the KMS has confirmed who a member is; without it nobody is asked
   */
  constructor(input: {
    readonly subnet: Id;
    readonly operator: KeyObject;
    readonly pins: Pins;
    readonly now: () => number;
    readonly judge?: (member: VerifiedMember, isThere: boolean) => Verdict;
  }) {
    this.#subnet = input.subnet;
    this.#operator = input.operator;
    this.#pins = input.pins;
    this.#now = input.now;
    this.#judge = input.judge ?? (() => 'off');
  }

  /**
   * Verifies a member's membership and boot record and pins them.
   * @throws PairwireError RECORD_*, PIN_MISMATCH or IDENTITY_REFUSED
   */
  peer(record: PeerRecord): VerifiedPeer {
    const { member, digest } = this.#member(record.id, record.membership);
    if (member.id !== record.id || member.role !== record.role) {
      throw new PairwireError(
        'RECORD_MISMATCH',
        `the key server calls ${member.id} (${member.role}) ${record.id} (${record.role})`,
        { where: record.id },
      );
    }
    if (!TALKER_ROLES.includes(member.role)) {
      // The operator let it look or command, not send frames; a hostile server may say otherwise.
      throw new PairwireError('RECORD_MISMATCH', `a ${member.role} takes no part in traffic`, {
        where: record.id,
      });
    }
    this.#pins.checkMember(member);
    const known = record.boot === undefined ? undefined : this.#boot(member, record.boot);
    const boot = known?.record;
    this.#remembered.set(member.id, { digest, member, boot: known });
    const verdict = this.#judge(member, boot !== undefined);
    if (verdict === 'waits') return boot === undefined ? { member } : { member, boot, waits: true };
    this.#pins.acceptMember(member, verdict === 'confirmed');
    if (boot === undefined) return { member };
    this.#pins.acceptBoot(member, boot);
    return { member, boot };
  }

  /** Verifies the operator's settings and pins their version. */
  settings(record: Signed): Settings {
    const pins = this.#pins;
    const settings = verifySettings(this.#subnet, record, this.#operator, pins.settingsVersion);
    pins.acceptSettings(settings.version, createHash('sha256').update(record.b).digest());
    return settings;
  }

  /** Number of the last revocation that was heard of. */
  get revocation(): number {
    return this.#pins.revocation;
  }

  /** A member was revoked: its records are refused from now on. */
  revoked(id: Id, number: number): void {
    this.#pins.acceptRevocation(id, number);
    this.forget(id);
  }

  /** Forgets what is only a saving of time. Pins stay. */
  forget(id: Id): void {
    this.#remembered.delete(id);
  }

  #member(id: Id, record: Signed): Pick<Remembered, 'digest' | 'member'> {
    const digest = digestOf(record);
    const remembered = this.#remembered.get(id);
    if (remembered?.digest === digest) return { digest, member: remembered.member };
    return { digest, member: verifyMembership(this.#subnet, record, this.#operator) };
  }

  /** An expired record is no contradiction: its member has been away for long, and is absent. */
  #boot(member: VerifiedMember, record: Signed): Remembered['boot'] {
    let boot: NonNullable<Remembered['boot']>;
    try {
      boot = this.#verifiedBoot(member, record);
    } catch (thrown) {
      if (thrown instanceof PairwireError && thrown.code === 'RECORD_EXPIRED') return undefined;
      throw thrown;
    }
    this.#pins.checkBoot(member, boot.record);
    return boot;
  }

  #verifiedBoot(member: VerifiedMember, record: Signed): NonNullable<Remembered['boot']> {
    const digest = digestOf(record);
    const highest = this.#pins.bootSequence(member.id);
    const remembered = this.#remembered.get(member.id);
    // Signed by the same member: another membership may be of another key.
    if (remembered?.member !== member || remembered.boot?.digest !== digest) {
      return { digest, record: verifyBoot(member, record, this.#now(), highest) };
    }
    requireBootOf(member, remembered.boot.record, this.#now(), highest);
    return remembered.boot;
  }
}

function digestOf(record: Signed): string {
  return createHash('sha256').update(record.b).update(record.s).digest('base64');
}
