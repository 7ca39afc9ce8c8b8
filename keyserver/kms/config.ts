/**
 * The folder of a KMS and its kms.yaml. Everything else in it has mode 0600:
 *
 *   kms.yaml     whom it serves, and where it listens when it runs by itself
 *   kms.key      static key of its channel
 *   root-N.key   root key, generation N; the highest one seals, all of them open
 *   audit.key, audit.log      its own log of what it did, and the key of that log's chain
 *   identities.log, .head     digests of members' identity documents, in a chain of the same key
 */
import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { z } from 'zod';
import { parseChannelAddress } from '../../src/net/address.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { idSchema } from '../../src/protocol/ids.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { LOG_LEVELS } from '../../src/runtime/log.js';
import { jsonSchemaOf, loadYaml } from '../../src/settings/load-yaml.js';

export const KMS_CONFIG_FILE = 'kms.yaml';
/** Where a KMS listens that runs by itself. */
export const DEFAULT_KMS_LISTEN = '127.0.0.1:7910';
/** Key servers of one KMS. */
export const MAX_KEY_SERVERS = 64;

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

/** Reads DIR/kms.yaml. @throws PairwireError CONFIG_NOT_FOUND, CONFIG_INVALID with file and line */
export function loadKmsConfig(dir: string): KmsConfig {
  return loadYaml(kmsPaths(dir).config, kmsConfigSchema);
}

/** The text of kms.yaml. */
export function kmsConfigText(config: KmsConfigInput): string {
  return [
    '# Pairwire KMS. keyServers: whom it opens keys for. listen: where, if it runs by itself (docs/operations.md).',
    stringify(config),
  ].join('\n');
}

/**
 * Refuses a secret file that is a link, has another owner, or may be read by others.
 * @throws PairwireError FILE_UNREADABLE, FILE_MODE
 */
export function requireOwnSecret(path: string): void {
  let file: number;
  try {
    // O_NONBLOCK: a FIFO in its place must not keep us waiting.
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (cause) {
    const link = (cause as { code?: unknown }).code === 'ELOOP';
    throw new PairwireError(
      link ? 'FILE_MODE' : 'FILE_UNREADABLE',
      link ? 'a file with secrets is a symbolic link' : 'the file cannot be opened',
      { where: path, cause },
    );
  }
  try {
    const info = fstatSync(file);
    const uid = process.geteuid?.() ?? info.uid;
    // Root looks at the folder of a KMS that has a user of its own.
    const own = uid === 0 ? statSync(dirname(path)).uid : uid;
    const wrong = !info.isFile()
      ? 'is no file'
      : info.uid !== own
        ? `belongs to user ${info.uid}, not to ${own}`
        : (info.mode & 0o077) !== 0
          ? `has mode ${(info.mode & 0o777).toString(8).padStart(4, '0')}`
          : undefined;
    if (wrong === undefined) return;
    throw new PairwireError('FILE_MODE', `a file with secrets ${wrong}`, {
      where: path,
      hint: `it must belong to the user of the KMS alone: chown and chmod 600 ${path}`,
    });
  } finally {
    closeSync(file);
  }
}
