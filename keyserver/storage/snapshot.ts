/**
 * A SQLite database as a whole: a copy of one that is being written to, and the replacement of one that nobody has open.
 *
 * Trap: SQLite's locks belong to the process, and closing any descriptor of the file drops them. So nothing here, and
 * nothing that runs meanwhile, opens the database's file by itself.
 */
import { chmodSync, closeSync, existsSync, openSync, readSync } from 'node:fs';
import Database from 'libsql';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { requireSecretMode, syncPath } from '../../src/runtime/files.js';

/** As long as a writer may take for a checkpoint. */
const BUSY_TIMEOUT_MS = 5_000;
const MAGIC = Buffer.from('SQLite format 3\0');

/**
 * Copies a database as it is at one moment, while others read and write it. The copy has no page of what was deleted, needs no log beside
 * it, has mode 0600 and is on the disk.
 * @param target there must be no such file
 * @throws PairwireError STORE_FAILED: also for a full disk; FILE_UNREADABLE, FILE_MODE
 */
export function copyDatabase(source: string, target: string): void {
  requireSecretMode(source);
  try {
    // SQLite takes an empty file, and so its mode is ours.
    closeSync(openSync(target, 'wx', 0o600));
    chmodSync(target, 0o600);
    const database = new Database(source);
    try {
      database.exec(`PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}`);
      database.prepare('VACUUM INTO ?').run([target]);
    } finally {
      database.close();
    }
    syncPath(target);
  } catch (cause) {
    throw failed(source, `the database could not be copied: ${messageOf(cause)}`, cause);
  }
}

/** A database that nobody else can open until `release`. */
export interface DatabaseLock {
  release(): void;
}

/**
 * Keeps everybody else from a database, and brings its log into its file, so that the file alone is all of it.
 * @returns undefined if it is damaged so that it can't be opened at all
 * @throws PairwireError BACKUP_REFUSED if somebody has it open; STORE_FAILED
 */
export function lockDatabase(file: string): DatabaseLock | undefined {
  // SQLite would throw the log of such a file away.
  if (!isDatabase(file)) return undefined;
  const database = new Database(file);
  const release = (): void => {
    if (database.inTransaction) database.exec('ROLLBACK');
    database.close();
  };
  try {
    // Only the last one that has it open can leave WAL; then there is a lock for all.
    database.exec('PRAGMA journal_mode = DELETE');
    database.exec('PRAGMA locking_mode = EXCLUSIVE');
    database.exec('BEGIN EXCLUSIVE');
    return { release };
  } catch (cause) {
    release();
    const code = String((cause as { code?: unknown }).code);
    if (/^SQLITE_(NOTADB|CORRUPT)/.test(code)) return undefined;
    if (/^SQLITE_(BUSY|LOCKED)/.test(code)) {
      throw new PairwireError('BACKUP_REFUSED', 'a key server runs on this database', {
        where: file,
        hint: 'stop it, and whatever else has the database open',
        cause,
      });
    }
    throw failed(file, `the database could not be locked: ${messageOf(cause)}`, cause);
  }
}

/** Whether a file begins as databases do. To be asked before there is a lock on it. */
function isDatabase(path: string): boolean {
  const magic = Buffer.alloc(MAGIC.length);
  const file = openSync(path, 'r');
  try {
    readSync(file, magic);
  } finally {
    closeSync(file);
  }
  return magic.equals(MAGIC);
}

/** The files beside a database that SQLite may leave. */
export function sideFiles(file: string): string[] {
  return ['-wal', '-shm', '-journal']
    .map((end) => `${file}${end}`)
    .filter((one) => existsSync(one));
}

function failed(where: string, what: string, cause: unknown): PairwireError {
  const full = /full|no space/i.test(messageOf(cause));
  return new PairwireError('STORE_FAILED', what, {
    where,
    cause,
    ...(full ? { hint: 'the disk is full: make room, and try again; nothing was changed' } : {}),
  });
}
