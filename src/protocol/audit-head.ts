/**
 * The head of a key server's audit log, signed (docs/protocol.md section 5): how long the log is and how its
 * newest entry's chain ends. Members keep the highest one, so that a log that was cut or put back shows.
 *
 * Like an identity document it is signed by the key in it: members pin that key, by the id of the server, at first sight.
 */
import type { KeyObject } from 'node:crypto';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { type Id, idSchema } from './ids.js';
import { importPublic, publicOf } from './public-keys.js';
import { bytesSchema, openSigned, readUnverified, type Signed, signRecord } from './signed.js';

export const auditHeadSchema = z.strictObject({
  subnet: idSchema,
  server: idSchema,
  /** Number of the newest entry; entries count from 1 without a gap. */
  seq: z.int().positive(),
  /** Its place in the chain: HMAC over it and the entry before. */
  mac: bytesSchema(KEY_SIZE),
  /** Key-server time when this was signed, ms. */
  time: z.int().nonnegative(),
  /** When the operator last confirmed that the database was put back, ms: heads from before may contradict this one. */
  confirmed: z.int().nonnegative().optional(),
  /** The server's Ed25519 public key for this. */
  sign: bytesSchema(KEY_SIZE),
});
/** What a key server signs about its audit log. */
export type AuditHead = z.infer<typeof auditHeadSchema>;

/** Signs a head; `sign` is added. */
export function signAuditHead(head: Omit<AuditHead, 'sign'>, key: KeyObject): Signed {
  return signRecord(LABEL.auditHead, { ...head, sign: publicOf(key) }, key);
}

/**
 * Verifies a head by the key in it; whether that key is the right one is the caller's to say.
 * @throws PairwireError RECORD_SIGNATURE, RECORD_MALFORMED, RECORD_MISMATCH for another subnet
 */
export function openAuditHead(subnet: Id, record: Signed): AuditHead {
  const { sign } = readUnverified(LABEL.auditHead, record, auditHeadSchema);
  const head = openSigned(LABEL.auditHead, record, importPublic('ed25519', sign), auditHeadSchema);
  if (head.subnet !== subnet) {
    throw new PairwireError('RECORD_MISMATCH', 'the head of an audit log is of another subnet', {
      where: head.server,
    });
  }
  return head;
}

/** A record in a JSON file. */
export const storedHeadSchema = z.strictObject({
  b: z.base64url().max(4_096),
  s: z.base64url().max(128),
});
export type StoredHead = z.infer<typeof storedHeadSchema>;

export function storedHead({ b, s }: Signed): StoredHead {
  return { b: Buffer.from(b).toString('base64url'), s: Buffer.from(s).toString('base64url') };
}

/** As it was stored; whether it holds is not looked at. */
export function signedOf({ b, s }: StoredHead): Signed {
  return { b: Buffer.from(b, 'base64url'), s: Buffer.from(s, 'base64url') };
}

/** @throws PairwireError as `openAuditHead` */
export function openStoredHead(
  subnet: Id,
  stored: StoredHead,
): { readonly record: Signed; readonly head: AuditHead } {
  const record = signedOf(stored);
  return { record, head: openAuditHead(subnet, record) };
}
