/**
 * Makes a backup of a key server's folder, also while the server runs: a copy of the database as it is at one moment, and what belongs to
 * it, in one file. The file appears under its name when it is whole, on the disk, and was checked.
 */
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import Database from 'libsql';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile, syncPath } from '../../src/runtime/files.js';
import { auditSignKey } from '../audit-key.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerPaths,
  loadKeyServerConfig,
  pathsOf,
} from '../config.js';
import { isPostgres } from '../storage/postgres-target.js';
import { copyDatabase } from '../storage/snapshot.js';
import { blob, integer, type Row, text } from '../storage/sql.js';
import { measure, type PartFile, writeArchive } from './archive.js';
import { type CheckedBackup, checkBackup } from './check.js';
import { rootKeysIn } from './key-files.js';
import {
  BACKUP_FORMAT,
  CONFIG_PART,
  DATABASE_PART,
  KMS_CONFIG_PART,
  KMS_IDENTITY_PARTS,
  KMS_KEY_PARTS,
  KMS_LOG_PART,
  MARK_PART,
  type Manifest,
  OPERATOR_KEY_PART,
  OPERATOR_PART,
  SERVER_KEY_PARTS,
} from './manifest.js';

export interface MadeBackup {
  readonly checked: CheckedBackup;
  readonly path: string;
  readonly size: number;
  /** Key files that are not in it and without which it is worth nothing. */
  readonly keptApart: readonly string[];
  /** Where the root key is, if not in it. */
  readonly rootKey: string | undefined;
  readonly operatorKeyIn: boolean;
}

/** @throws PairwireError BACKUP_REFUSED: PostgreSQL has backups of its own */
export function requireSqlite(database: string): void {
  if (!isPostgres(database)) return;
  throw new PairwireError('BACKUP_REFUSED', 'this key server has its database on PostgreSQL', {
    hint: 'use pg_dump and pg_restore: docs/operations.md, "PostgreSQL itself", says how',
  });
}

/**
 * Makes a backup, and checks it.
 * @param path there must be no such file
 * @param withKeys put the key files in, too, those of a KMS in the folder among them
 * @throws PairwireError FILE_EXISTS, BACKUP_REFUSED, STORE_FAILED; as `checkBackup`
 */
export async function makeBackup(
  dir: string,
  path: string,
  withKeys: boolean,
): Promise<MadeBackup> {
  const config = loadKeyServerConfig(dir);
  requireSqlite(config.database);
  const paths = pathsOf(dir, config);
  const target = resolve(path);
  if (existsSync(target)) throw exists(target);
  const work = `${target}.${randomBytes(4).toString('hex')}.partial`;
  const auditKey = readKeyFile(paths.auditKey, KEY_KIND.audit);
  try {
    makeFolder(work);
    const copy = join(work, DATABASE_PART);
    copyDatabase(paths.database, copy);
    // After the database: whatever sealed its keys is there by then.
    const files = partsOf(resolve(dir), paths, work, withKeys);
    const manifest = manifestOf(paths, copy, withKeys, files);
    const file = join(work, 'backup');
    writeArchive(file, manifest, auditKey, files);
    rmSync(copy);
    const checked = await checkBackup(file, join(work, 'check'), [resolve(dir)]);
    try {
      // A link, unlike a rename, fails where a file is.
      linkSync(file, target);
      syncPath(dirname(target));
    } catch (cause) {
      if ((cause as { code?: unknown }).code === 'EEXIST') throw exists(target);
      throw refused(target, cause);
    }
    return { checked, path: target, size: statSync(target).size, ...apart(dir, config, files) };
  } finally {
    auditKey.fill(0);
    rmSync(work, { recursive: true, force: true });
  }
}

/** The parts of a backup, the database first. */
function partsOf(
  dir: string,
  paths: KeyServerPaths,
  work: string,
  withKeys: boolean,
): readonly PartFile[] {
  const wanted: [string, string][] = [
    [DATABASE_PART, join(work, DATABASE_PART)],
    [CONFIG_PART, paths.config],
    [OPERATOR_PART, paths.operatorPublic],
  ];
  if (existsSync(paths.sealMark)) wanted.push([MARK_PART, paths.sealMark]);
  if (withKeys) {
    // A folder from before heads were signed gets it now, as its server would make it.
    auditSignKey(paths);
    for (const name of SERVER_KEY_PARTS) wanted.push([name, join(dir, name)]);
    // Wherever else it lies, it is kept away from here for a reason.
    const operatorKey = join(dir, OPERATOR_KEY_PART);
    if (paths.operatorKey === operatorKey && existsSync(operatorKey)) {
      wanted.push([OPERATOR_KEY_PART, operatorKey]);
    }
    if (existsSync(join(dir, KMS_CONFIG_PART))) {
      for (const name of [...rootKeysIn(dir), ...KMS_KEY_PARTS, KMS_CONFIG_PART]) {
        wanted.push([name, join(dir, name)]);
      }
      for (const name of [...KMS_IDENTITY_PARTS, KMS_LOG_PART]) {
        if (existsSync(join(dir, name))) wanted.push([name, wholeLines(dir, name, work)]);
      }
    }
  }
  return wanted.map(([name, path]) => measure(name, path));
}

/** A copy of a file of lines of the KMS, which may be writing to it. @returns its path */
function wholeLines(dir: string, name: string, work: string): string {
  const log = readFileSync(join(dir, name));
  const path = join(work, basename(name));
  writeFileSync(path, log.subarray(0, log.lastIndexOf('\n') + 1), { mode: 0o600 });
  return path;
}

function manifestOf(
  paths: KeyServerPaths,
  copy: string,
  keys: boolean,
  files: readonly PartFile[],
): Manifest {
  const database = new Database(copy);
  const rows = (sql: string): Row[] => database.prepare(sql).all([]) as Row[];
  try {
    const meta = new Map(
      rows('SELECT name, value FROM meta').map((row) => [text(row, 'name'), blob(row, 'value')]),
    );
    const counters = new Map(
      rows('SELECT name, value FROM counters').map((row) => [
        text(row, 'name'),
        integer(row, 'value'),
      ]),
    );
    const [version] = rows('SELECT max(version) AS version FROM schema_version');
    const value = (name: string): Buffer => meta.get(name) ?? Buffer.alloc(0);
    const own = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
    return {
      format: BACKUP_FORMAT,
      madeAt: new Date().toISOString(),
      schema: version === undefined ? 0 : integer(version, 'version'),
      subnet: value('subnet').toString() as Manifest['subnet'],
      server: value('server').toString() as Manifest['server'],
      operator: value('operator').toString('base64url'),
      serverKey: own.publicKey.toString('base64url'),
      epoch: value('epoch').toString('hex'),
      change: counters.get('change') ?? 0,
      revocation: counters.get('revocation') ?? 0,
      keys,
      parts: files.map(({ name, size, sha256 }) => ({ name, size, sha256 })),
    };
  } finally {
    database.close();
  }
}

/** What has to be kept besides the backup. */
function apart(
  dir: string,
  config: KeyServerConfig,
  files: readonly PartFile[],
): Pick<MadeBackup, 'keptApart' | 'rootKey' | 'operatorKeyIn'> {
  const has = (name: string): boolean => files.some((file) => file.name === name);
  const keptApart = SERVER_KEY_PARTS.filter((name) => !has(name)).map((name) =>
    join(resolve(dir), name),
  );
  const { address } = config.kms;
  const rootKey =
    address !== undefined
      ? `the folder of the KMS at ${address}`
      : has(KMS_CONFIG_PART)
        ? undefined
        : join(resolve(dir), 'kms');
  return { keptApart, rootKey, operatorKeyIn: has(OPERATOR_KEY_PART) };
}

function makeFolder(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (cause) {
    throw refused(path, cause);
  }
}

function refused(where: string, cause: unknown): PairwireError {
  return new PairwireError('BACKUP_REFUSED', `cannot write there: ${messageOf(cause)}`, {
    where,
    cause,
  });
}

function exists(where: string): PairwireError {
  return new PairwireError('FILE_EXISTS', 'there is such a file already', {
    where,
    hint: 'name a new one, as with $(date +%F) in its name: a backup never takes the place of another',
  });
}
