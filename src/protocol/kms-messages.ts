/**
 * What is said to the KMS, docs/protocol.md 11.3: requests, answers and who may send which. The channel is that of section 6.
 */
import { z } from 'zod';
import { KEY_SIZE } from './constants.js';
import { DEK_ID_SIZE, SEALED_DEK_SIZE } from './envelope.js';
import { MAX_EXCHANGE } from './kms-exchange.js';
import { bytesSchema, bytesUpToSchema } from './signed.js';

/** DEKs in one message. */
export const MAX_DEKS = 256;

const requestId = z.int().nonnegative();
const dekId = bytesSchema(DEK_ID_SIZE);
const sealedDek = bytesSchema(SEALED_DEK_SIZE);
const generation = z.int().min(1).max(0xffff_ffff);
const count = z.int().nonnegative().default(0);

/** How often each limit of kms.yaml was met: requests, members' questions, DEKs made and opened, root keys made. */
export const kmsLimitedSchema = z.object({
  request: count,
  question: count,
  make: count,
  open: count,
  root: count,
});
export type KmsLimited = z.infer<typeof kmsLimitedSchema>;
export const NOT_LIMITED: KmsLimited = { request: 0, question: 0, make: 0, open: 0, root: 0 };

/** A DEK as the store has it. */
export const storedDekSchema = z.strictObject({ id: dekId, sealed: sealedDek });
export type StoredDek = z.infer<typeof storedDekSchema>;

/** Requests to a KMS. */
export const kmsRequestSchema = z.discriminatedUnion('t', [
  z.strictObject({ t: z.literal('ping'), id: requestId }),
  z.strictObject({ t: z.literal('kms.status'), id: requestId }),
  z.strictObject({ t: z.literal('dek.make'), id: requestId }),
  z.strictObject({
    t: z.literal('dek.open'),
    id: requestId,
    deks: z.array(storedDekSchema).min(1).max(MAX_DEKS),
  }),
  /** Makes the next root key, unless one after `after` is there. */
  z.strictObject({ t: z.literal('root.rotate'), id: requestId, after: generation }),
  /** A member's question, and the public key by which the key server signs tickets. */
  z.strictObject({
    t: z.literal('member.exchange'),
    id: requestId,
    message: bytesUpToSchema(MAX_EXCHANGE),
    signer: bytesSchema(KEY_SIZE),
  }),
]);
export type KmsRequest = z.infer<typeof kmsRequestSchema>;
export type KmsRequestType = KmsRequest['t'];

/** Answers of a KMS. */
export const kmsAnswerSchemas = {
  'kms.status': z.object({
    generation,
    /** Generations of the root key that it has. */
    generations: z.array(generation).max(1_024),
    /** Those of them that are in a PKCS#11 token. */
    inToken: z.array(generation).max(1_024).default([]),
    /** Requests of all key servers that went over a limit of kms.yaml, since the KMS began. */
    limited: count,
    limitedBy: kmsLimitedSchema.default(NOT_LIMITED),
    /** Bytes of the file of its log that it writes to. */
    auditBytes: count,
    /** Full files of it that are kept. */
    auditFiles: count,
    /** Entries of it that are gone, because so many files are kept and no more. */
    auditGone: count,
  }),
  'dek.make': z.object({ dek: dekId, key: bytesSchema(KEY_SIZE), sealed: sealedDek }),
  'dek.open': z.object({ keys: z.array(bytesSchema(KEY_SIZE)).max(MAX_DEKS) }),
  'root.rotate': z.object({ generation }),
  'member.exchange': z.object({ message: bytesUpToSchema(MAX_EXCHANGE) }),
} as const;
