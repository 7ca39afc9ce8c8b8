/**
 * Puts a backup back. All of it is taken apart, checked and made ready inside the folder first; then files that are missing are put in their places,
 * the database is renamed over the old one, which stays beside it under another name, and the configuration comes last. So whoever
 * is killed in the middle leaves the old server whole, or the new one, or in an empty folder none.
 *
 * The database knows from then on that it was put back (docs/protocol.md 3.8): it has a new epoch, so members ask for everything anew and
 * say what they hold, and until `pairwire restore confirm` what it may have forgotten is answered `not_yet`.
 */
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  type Stats,
  statSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { makeSecretFolder, syncPath, writeFileAtomic } from '../../src/runtime/files.js';
import { createLogger } from '../../src/runtime/log.js';
import { AuditLog } from '../audit.js';
import {
  CONFIG_FILE,
  type KeyServerConfig,
  type KeyServerPaths,
  loadKeyServerConfig,
  pathsOf,
} from '../config.js';
import { CERTAIN_CLAIMS } from '../keys/put-back.js';
import { rowMacs } from '../storage/migrations/0014-row-macs.js';
import { type DatabaseLock, lockDatabase, sideFiles } from '../storage/snapshot.js';
import type { Store } from '../storage/store.js';
import { noteRowVersion, rowMarkOf } from '../storage/unlock.js';
import { type CheckedBackup, checkBackup, markOf } from './check.js';
import type { KeyFiles } from './key-files.js';
import { requireSqlite } from './make.js';
import {
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

const WORK = /^\.restore-[0-9a-f]{8}\.partial$/;

export interface RestoreOptions {
  readonly dir: string;
  /** Folders with key files that are neither in `dir` nor in the backup. */
  readonly keyFolders: readonly string[];
  /** Put a database in the place of one that is there. */
  readonly force: boolean;
}

export interface Restored {
  readonly checked: CheckedBackup;
  readonly database: string;
  /** Where the database is that was there. */
  readonly before: string | undefined;
  /** Files that were put there, and those that were there and stayed. */
  readonly placed: readonly string[];
  readonly kept: readonly string[];
}

/**
 * Puts a backup back into a folder: an empty one, one with the key files, or that of the server that it is of.
 * @throws PairwireError FILE_EXISTS without `force`; BACKUP_REFUSED while a server runs there, for the folder of another one, and if key files are
 *   missing; as `checkBackup`
 */
export async function restoreBackup(path: string, options: RestoreOptions): Promise<Restored> {
  const folder = resolve(options.dir);
  const fresh = !existsSync(folder);
  makeSecretFolder(folder);
  const work = join(folder, `.restore-${randomBytes(4).toString('hex')}.partial`);
  let lock: DatabaseLock | undefined;
  try {
    // What was killed before has left it.
    for (const name of readdirSync(folder)) {
      if (WORK.test(name)) rmSync(join(folder, name), { recursive: true });
    }
    const present = existsSync(join(folder, CONFIG_FILE)) ? loadKeyServerConfig(folder) : undefined;
    if (present !== undefined) {
      requireSqlite(present.database);
      // To its end: no server starts meanwhile.
      lock = requireFree(pathsOf(folder, present).database, options.force);
    }
    const checked = await checkBackup(
      path,
      work,
      [folder, ...options.keyFolders.map((one) => resolve(one))],
      async (store, { keys, config, auditKey }) => {
        requireKeys(keys, present ?? config);
        if (auditKey !== undefined) await markPutBack(store, auditKey);
      },
    );
    const config = present ?? checked.config;
    requireSqlite(config.database);
    requireOwn(folder, work, checked.manifest, present);
    lock ??= requireFree(pathsOf(folder, config).database, options.force);
    return place(folder, work, checked, config);
  } catch (thrown) {
    throw wrapped(thrown, folder);
  } finally {
    lock?.release();
    rmSync(work, { recursive: true, force: true });
    if (fresh && readdirSync(folder).length === 0) rmdirSync(folder);
  }
}

/** The operator says so, so it is certain. */
async function markPutBack(store: Store, auditKey: Buffer): Promise<void> {
  const { server } = store.meta;
  const log = createLogger('restore', { level: 'warn' });
  const audit = new AuditLog({ store, server, key: auditKey, now: Date.now, log });
  const { change, revocation } = await store.counters();
  await store.write(async (tx) => {
    await tx.renewEpoch(randomBytes(8));
    await tx.setPutBack(true);
    for (let at = 1; at <= CERTAIN_CLAIMS; at += 1) await tx.addRestoreClaim(`restore ${at}`);
    const detail = { change, revocation };
    await audit.append(tx, { actor: '-', action: 'restore', outcome: 'done', detail });
  });
  await audit.close();
}

/** @returns a lock on the database that is there, if there is one */
function requireFree(database: string, force: boolean): DatabaseLock | undefined {
  const there = existsSync(database);
  if (!there && sideFiles(database).length === 0) return undefined;
  if (!force) {
    throw new PairwireError('FILE_EXISTS', 'there is a database already', {
      where: database,
      hint: 'to put the backup in its place: --force; the old one stays beside it under another name',
    });
  }
  return there ? lockDatabase(database) : undefined;
}

/** Nothing of another server, and no other key, is in the folder. */
function requireOwn(
  folder: string,
  work: string,
  { subnet, server, parts }: Manifest,
  present: KeyServerConfig | undefined,
): void {
  if (present !== undefined && (present.subnet !== subnet || present.server !== server)) {
    throw new PairwireError(
      'BACKUP_REFUSED',
      `the folder is of subnet ${present.subnet}, server ${present.server}; the backup of subnet ${subnet}, server ${server}`,
      { where: join(folder, CONFIG_FILE), hint: 'choose another folder' },
    );
  }
  const mark = markOf(join(folder, MARK_PART));
  const other =
    mark !== undefined && mark !== (markOf(join(work, MARK_PART)) ?? mark)
      ? MARK_PART
      : parts
          .map(({ name }) => name)
          .filter((name) => name === OPERATOR_PART || isKeyFile(name))
          .find((name) => differ(join(folder, name), join(work, name)));
  if (other === undefined) return;
  throw new PairwireError('BACKUP_REFUSED', `${other} in the folder is not that of the backup`, {
    where: join(folder, other),
    hint: 'choose another folder, or move that file away if it is not needed any more',
  });
}

function isKeyFile(name: string): boolean {
  return name.endsWith('.key');
}

function differ(there: string, part: string): boolean {
  return existsSync(there) && !readFileSync(there).equals(readFileSync(part));
}

/** Everything is at hand that the server does not start without. */
function requireKeys(keys: KeyFiles, { kms }: KeyServerConfig): void {
  const wanted: string[] = SERVER_KEY_PARTS.filter((name) => keys.find(name) === undefined);
  if (kms.address === undefined && keys.kms() === undefined) {
    wanted.push(KMS_CONFIG_PART, 'kms/root-*.key (or kms/token.pin)');
  }
  if (kms.address === undefined) {
    wanted.push(...KMS_KEY_PARTS.filter((name) => keys.find(name) === undefined));
  }
  if (wanted.length === 0) return;
  throw new PairwireError('BACKUP_REFUSED', `key files are missing: ${wanted.join(', ')}`, {
    hint: 'they are not in the backup: name the folders where they lie with --keys, or put them into the folder',
  });
}

/** Up to here nothing has changed. */
function place(
  folder: string,
  work: string,
  checked: CheckedBackup,
  config: KeyServerConfig,
): Restored {
  const paths = pathsOf(folder, config);
  const { database } = paths;
  const owner = statSync(folder);
  const placed: string[] = [];
  const kept: string[] = [];
  const put = (name: string): void => {
    const source = checked.keys.find(name) ?? join(work, name);
    const target = join(folder, name);
    if (!existsSync(source)) return;
    if (existsSync(target)) {
      kept.push(name);
      return;
    }
    const mode = name === OPERATOR_PART ? 0o644 : 0o600;
    writeFileAtomic(target, readFileSync(source), { mode, exclusive: true });
    give(target, owner);
    placed.push(name);
  };
  for (const name of [OPERATOR_PART, MARK_PART, ...SERVER_KEY_PARTS]) put(name);
  if (checked.manifest.parts.some(({ name }) => name === OPERATOR_KEY_PART)) {
    put(OPERATOR_KEY_PART);
  }
  if (config.kms.address === undefined) {
    if (!existsSync(join(folder, 'kms'))) {
      makeSecretFolder(join(folder, 'kms'));
      give(join(folder, 'kms'), owner);
    }
    // The last one comes last: a KMS with it is complete.
    const kept = [...KMS_IDENTITY_PARTS, KMS_LOG_PART];
    for (const name of [...checked.keys.rootKeys(), ...KMS_KEY_PARTS, ...kept]) put(name);
    put(KMS_CONFIG_PART);
  }
  const before = swap(join(work, DATABASE_PART), paths, owner, checked.manifest.schema);
  put(CONFIG_PART);
  return { checked, database, before, placed, kept };
}

/** Puts the database in its place. @returns where the one is that was there */
function swap(
  ready: string,
  { database, auditHead, sealMark }: KeyServerPaths,
  owner: Stats,
  schema: number,
): string | undefined {
  let source = ready;
  mkdirSync(dirname(database), { recursive: true, mode: 0o700 });
  if (statSync(dirname(database)).dev !== owner.dev) {
    source = `${database}.partial`;
    rmSync(source, { force: true });
    copyFileSync(ready, source);
  }
  chmodSync(source, 0o600);
  give(source, owner);
  syncPath(source);
  const stamp = new Date().toISOString().replace(/[-:]/g, '').slice(0, 15);
  const aside = `${database}.before-${stamp}-${randomBytes(2).toString('hex')}`;
  const there = existsSync(database);
  if (there) linkSync(database, aside);
  // Of a database that could not be opened: SQLite would take them for the new one's.
  const side = sideFiles(database);
  for (const file of side) renameSync(file, `${aside}${file.slice(database.length)}`);
  // It names an entry that the new one may not have. Before the swap: an old database without it is still whole, a new one with it seems cut.
  if (existsSync(auditHead)) renameSync(auditHead, `${aside}.audit.head`);
  // It has seen newer rows. One whose rows have MACs must keep them.
  const rowMark = rowMarkOf(sealMark);
  if (schema >= rowMacs.version) {
    noteRowVersion(rowMark, 0);
    give(rowMark, owner);
  } else rmSync(rowMark, { force: true });
  renameSync(source, database);
  syncPath(dirname(database));
  return there || side.length > 0 ? aside : undefined;
}

/** Files of a folder belong to whom the folder belongs to. */
function give(path: string, { uid, gid }: Stats): void {
  if (process.geteuid?.() === 0 && (uid !== 0 || gid !== 0)) chownSync(path, uid, gid);
}

/** What the file system refuses, as our own error. */
function wrapped(thrown: unknown, where: string): unknown {
  if (thrown instanceof PairwireError || !(thrown instanceof Error) || !('code' in thrown)) {
    return thrown;
  }
  const full = thrown.code === 'ENOSPC';
  return new PairwireError('BACKUP_REFUSED', full ? 'the disk is full' : messageOf(thrown), {
    where,
    hint: 'the database that was there is as it was; make room or mend the cause, and try again',
    cause: thrown,
  });
}
