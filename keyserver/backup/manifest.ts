/**
 * What a backup says of itself (docs/protocol.md 11.5): whose it is, from when, and each part with its size and digest. The MAC over it
 * is made with the audit key of the server, so who has the file and not that key can't change what is put back.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { z } from 'zod';
import { LABEL } from '../../src/protocol/constants.js';
import { fields } from '../../src/protocol/fields.js';
import { idSchema } from '../../src/protocol/ids.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { publicKeySchema } from '../kms/config.js';

/** Version of the format. */
export const BACKUP_FORMAT = 1;
export const MANIFEST_NAME = 'manifest.json';
export const MAC_NAME = 'manifest.mac';

/** Bytes of a manifest: about 300 a part. */
export const MAX_BACKUP_MANIFEST = 1_048_576;
/** Parts of a backup: the root keys of 1,024 generations, and the rest. */
export const MAX_BACKUP_PARTS = 1_100;

/** The part that is the database, whatever its file is called. */
export const DATABASE_PART = 'keyserver.db';
export const CONFIG_PART = 'keyserver.yaml';
export const OPERATOR_PART = 'operator.pub';
export const MARK_PART = 'store.sealed';
/** Key files of the server that it does not run without. */
export const SERVER_KEY_PARTS = [
  'server.key',
  'token.key',
  'audit.key',
  'audit-sign.key',
  'admin.key',
] as const;
/** The operator's private key, if it lies in the folder. */
export const OPERATOR_KEY_PART = 'operator.key';
/** The folder of the KMS, without its root keys. */
export const KMS_CONFIG_PART = 'kms/kms.yaml';
export const KMS_KEY_PARTS = ['kms/kms.key', 'kms/audit.key'] as const;
export const KMS_LOG_PART = 'kms/audit.log';
/** Which identity document an id has: the head first, for it may not know more than the log. */
export const KMS_IDENTITY_PARTS = ['kms/identities.head', 'kms/identities.log'] as const;
export const ROOT_KEY_PART = /^kms\/root-[1-9]\d{0,8}\.key$/;

const NAMES: ReadonlySet<string> = new Set([
  ...[DATABASE_PART, CONFIG_PART, OPERATOR_PART, MARK_PART, OPERATOR_KEY_PART],
  ...[KMS_CONFIG_PART, KMS_LOG_PART],
  ...SERVER_KEY_PARTS,
  ...KMS_KEY_PARTS,
  ...KMS_IDENTITY_PARTS,
]);

const partSchema = z.strictObject({
  name: z
    .string()
    .max(40)
    .refine((name) => NAMES.has(name) || ROOT_KEY_PART.test(name), 'is no part of a backup'),
  size: z.int().min(0),
  /** Hexadecimal. */
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

const manifestSchema = z.strictObject({
  format: z.literal(BACKUP_FORMAT),
  madeAt: z.iso.datetime(),
  /** Version of the database. */
  schema: z.int().min(1),
  subnet: idSchema,
  server: idSchema,
  /** Public keys of operator and server. */
  operator: publicKeySchema,
  serverKey: publicKeySchema,
  /** Of the store, hexadecimal; and its last change and revocation. */
  epoch: z.string().regex(/^[0-9a-f]{16}$/),
  change: z.int().min(0),
  revocation: z.int().min(0),
  /** True if the key files are in it, too. */
  keys: z.boolean(),
  parts: z
    .array(partSchema)
    .min(3)
    .max(MAX_BACKUP_PARTS)
    .refine((parts) => new Set(parts.map(({ name }) => name)).size === parts.length, 'twice')
    .refine(
      (parts) =>
        [DATABASE_PART, CONFIG_PART, OPERATOR_PART].every((name) =>
          parts.some((part) => part.name === name),
        ),
      'a part is missing',
    ),
});
/** A manifest after its check. */
export type Manifest = z.output<typeof manifestSchema>;
export type Part = z.output<typeof partSchema>;

/** The bytes that stand in the file. */
export function encodeManifest(manifest: Manifest): Buffer {
  return Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`);
}

/** @throws PairwireError BACKUP_DAMAGED for what is no manifest of this format */
export function parseManifest(bytes: Buffer, where: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    throw new PairwireError('BACKUP_DAMAGED', 'the manifest is no JSON', { where, cause });
  }
  const parsed = manifestSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new PairwireError(
    'BACKUP_DAMAGED',
    `the manifest cannot be used: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`,
    { where, hint: 'it is damaged, or from a newer version of this program' },
  );
}

/** HMAC-SHA256 under the audit key of the server, over the digest of the manifest's bytes. */
export function manifestMac(auditKey: Buffer, manifest: Buffer): Buffer {
  const digest = createHash('sha256').update(manifest).digest();
  return createHmac('sha256', auditKey).update(fields(LABEL.backup, digest)).digest();
}

/** The MAC as it stands in the file. */
export function encodeMac(mac: Buffer): Buffer {
  return Buffer.from(`${mac.toString('hex')}\n`);
}

/** Compares in constant time. */
export function isManifestMac(auditKey: Buffer, manifest: Buffer, found: Buffer): boolean {
  const expected = encodeMac(manifestMac(auditKey, manifest));
  return found.length === expected.length && timingSafeEqual(found, expected);
}
