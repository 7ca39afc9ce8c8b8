/**
 * The folder of a KMS and its kms.yaml. Everything else in it has mode 0600:
 *
 *   kms.yaml     whom it serves, and where it listens when it runs by itself
 *   kms.key      static key of its channel
 *   root-N.key   root key, generation N, unless it is in a PKCS#11 token; the highest one seals, all of them open
 *   token.pin    PIN of that token
 *   audit.key, audit.log      its own log of what it did, and the key of that log's chain
 *   audit-N.log               the part of that log before entry N, when it was full
 *   identities.log, .head     digests of members' identity documents, in a chain of the same key
 */
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { z } from 'zod';
import { parseChannelAddress } from '../../src/net/address.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { idSchema } from '../../src/protocol/ids.js';
import { LOG_LEVELS } from '../../src/runtime/log.js';
import { jsonSchemaOf, loadYaml } from '../../src/settings/load-yaml.js';
import { quotaSchema } from './quota.js';
import { requireTrusted } from './secret-files.js';
import { tokenSchema } from './token-config.js';

export const KMS_CONFIG_FILE = 'kms.yaml';
/** Where a KMS listens that runs by itself. */
export const DEFAULT_KMS_LISTEN = '127.0.0.1:7910';
/** Key servers of one KMS. */
export const MAX_KEY_SERVERS = 64;

/** A file of the audit log has at least so many bytes, and so many of them are kept at most. */
const MIN_AUDIT_BYTES = 65_536;
const MAX_AUDIT_FILES = 1_000;

/** A public key as text. */
export const publicKeySchema = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/, 'must be a public key: 43 characters of base64url')
  .refine(
    (text) => Buffer.from(text, 'base64url').length === KEY_SIZE,
    'must be a public key of 32 bytes',
  );

/** kms.yaml; every key is explained in config/kms.example.yaml. */
export const kmsConfigSchema = z.strictObject({
  subnet: idSchema,
  listen: z
    .string()
    .max(300)
    .refine(
      (text) => parseChannelAddress(text) !== undefined,
      'must be HOST:PORT or SCHEME://HOST:PORT with tcp, udp or http, as in 192.0.2.20:7910',
    )
    .default(DEFAULT_KMS_LISTEN),
  /** The operator's public key (Ed25519), who says who may be a member: without it, no identity documents are kept. */
  operator: publicKeySchema.optional(),
  /** Key servers of the subnet, each by its public channel key. */
  keyServers: z
    .array(z.strictObject({ server: idSchema, key: publicKeySchema }))
    .min(1)
    .max(MAX_KEY_SERVERS),
  /** Root keys in a PKCS#11 token. */
  token: tokenSchema.optional(),
  /** For each key server. */
  limits: quotaSchema.prefault({}),
  /** Its own log: bytes of a file of it, and how many full files are kept. */
  audit: z
    .strictObject({
      maxBytes: z.int().min(MIN_AUDIT_BYTES).max(1_073_741_824).default(16_777_216),
      keep: z.int().min(1).max(MAX_AUDIT_FILES).default(8),
    })
    .prefault({}),
  log: z
    .strictObject({
      level: z.enum(LOG_LEVELS).default('info'),
      style: z.enum(['auto', 'json', 'pretty']).default('auto'),
    })
    .prefault({}),
});
export type KmsConfigInput = z.input<typeof kmsConfigSchema>;
export type KmsConfig = z.output<typeof kmsConfigSchema>;

/** The JSON Schema that editors use: config/schema/kms.json. */
export function kmsJsonSchema(): Record<string, unknown> {
  return jsonSchemaOf(kmsConfigSchema, 'Pairwire kms.yaml');
}

/** The files of a KMS's folder; root keys beside them. */
export interface KmsPaths {
  readonly dir: string;
  readonly config: string;
  readonly key: string;
  readonly auditKey: string;
  readonly auditLog: string;
  readonly identities: string;
  readonly identitiesHead: string;
}

/** Kinds of key files, as their first words say. */
export const KMS_KEY_KIND = {
  channel: 'kms-private',
  root: 'kms-root',
  audit: 'kms-audit-key',
} as const;

export function kmsPaths(dir: string): KmsPaths {
  const folder = resolve(dir);
  return {
    dir: folder,
    config: join(folder, KMS_CONFIG_FILE),
    key: join(folder, 'kms.key'),
    auditKey: join(folder, 'audit.key'),
    auditLog: join(folder, 'audit.log'),
    identities: join(folder, 'identities.log'),
    identitiesHead: join(folder, 'identities.head'),
  };
}

/** Reads DIR/kms.yaml. @throws PairwireError CONFIG_NOT_FOUND, CONFIG_INVALID with file and line, FILE_MODE */
export function loadKmsConfig(dir: string): KmsConfig {
  const { config: path } = kmsPaths(dir);
  const config = loadYaml(path, kmsConfigSchema);
  // It names a library that the KMS runs.
  if (config.token !== undefined) requireTrusted(path);
  return config;
}

/** The text of kms.yaml. */
export function kmsConfigText(config: KmsConfigInput): string {
  return [
    '# Pairwire KMS. keyServers: whom it opens keys for. listen: where, if it runs by itself (docs/operations.md).',
    stringify(config),
  ].join('\n');
}
