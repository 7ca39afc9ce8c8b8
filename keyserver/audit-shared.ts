/**
 * What is known of an audit log that was cut or put back, among the machines that share a database: each notes in a file of its own who has
 * seen entries that the log lacks (audit-witnesses.ts), and in the database, so that whoever takes over knows it, too.
 *
 * Whoever changes the log can change this as well. So a row counts by the head in it, which only this server can have signed, and only if
 * the log contradicts that now; and taking rows away takes nothing from the files of the machines that were told.
 */
import {
  type AuditHead,
  openAuditHead,
  openStoredHead,
  signedOf,
} from '../src/protocol/audit-head.js';
import { type Id, idSchema } from '../src/protocol/ids.js';
import { PairwireError } from '../src/runtime/errors.js';
import { whyNotInLog } from './audit.js';
import {
  type AuditWitness,
  type AuditWitnesses,
  CONFIRMED,
  MAX_WITNESSES,
  OWN_WITNESS,
  type SeenHead,
} from './audit-witnesses.js';
import type { StoredWitness, StoreReads } from './storage/store.js';

/** Which heads are a server's own. */
export interface HeadOwner {
  readonly subnet: Id;
  readonly server: Id;
  /** The public key that its heads are signed with. */
  readonly sign: Uint8Array;
}

/**
 * Takes in what the database has.
 * @returns what it lacks and this machine knows
 * @throws PairwireError STORE_FAILED; FILE_UNREADABLE if the file of this machine can't be written
 */
export async function shareWitnesses(
  store: StoreReads,
  witnesses: AuditWitnesses,
  owner: HeadOwner,
): Promise<readonly StoredWitness[]> {
  const rows = await store.auditWitnesses(owner.server, MAX_WITNESSES + 1);
  const heads: SeenHead[] = [];
  for (const { witness, record, at } of rows) {
    const isConfirmation = witness === CONFIRMED;
    if (!isConfirmation && !isWitness(witness)) continue;
    const head = own(owner, () => openAuditHead(owner.subnet, record));
    if (head === undefined) continue;
    const fits =
      !isConfirmation && (await whyNotInLog(store, owner.server, head.seq, head.mac)) === undefined;
    if (!fits) heads.push({ witness, record, at, head });
  }
  witnesses.adopt(heads, (one) => timeOf(owner, one));
  const known = new Map(heads.map(({ witness, head }) => [witness, head.seq]));
  return witnesses.all.flatMap(({ witness, seq, record, at }): StoredWitness[] => {
    if (record === undefined || (known.get(witness) ?? 0) >= seq) return [];
    return [{ witness, record: signedOf(record), at }];
  });
}

function isWitness(text: string): boolean {
  return text === OWN_WITNESS || idSchema.safeParse(text).success;
}

/** When the head that a witness has seen was signed, key-server time; without a signed one, when it was told. */
function timeOf(owner: HeadOwner, { record, at }: AuditWitness): number {
  if (record === undefined) return at;
  return own(owner, () => openStoredHead(owner.subnet, record).head)?.time ?? at;
}

/** @returns undefined for what is no head of this server */
function own({ server, sign }: HeadOwner, open: () => AuditHead): AuditHead | undefined {
  try {
    const head = open();
    return head.server === server && Buffer.compare(head.sign, sign) === 0 ? head : undefined;
  } catch (thrown) {
    if (thrown instanceof PairwireError && thrown.code.startsWith('RECORD_')) return undefined;
    throw thrown;
  }
}
