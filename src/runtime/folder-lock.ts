/**
 * One process at a time in a folder. SQLite holds the lock as it does its own (fcntl), so that the kernel lets go of it
 * however the process ends, and nothing stale is left.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'libsql';
import { messageOf, PairwireError } from './errors.js';

const LOCK_FILE = 'lock';

/**
 * Takes the lock of a folder, until the returned function is called or the process ends.
 * @param what has it, for the message: `a key server`
 * @param waitMs how long one that is about to end is waited for; this thread does nothing else meanwhile
 * @throws PairwireError ALREADY_RUNNING if another process has it
 */
export function lockFolder(dir: string, what: string, waitMs = 0): () => void {
  const path = join(dir, LOCK_FILE);
  let file: Database.Database | undefined;
  try {
    // Nobody else reads it, and nobody may put a link there for us to follow.
    closeSync(openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600));
    file = new Database(path, { timeout: waitMs });
    file.exec('PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE');
  } catch (cause) {
    file?.close();
    if ((cause as { code?: unknown }).code === 'SQLITE_BUSY') {
      throw new PairwireError('ALREADY_RUNNING', `${what} runs in this folder already`, {
        where: dir,
        hint: 'end that one first',
        cause,
      });
    }
    throw new PairwireError(
      'FILE_UNREADABLE',
      `the folder can not be locked: ${messageOf(cause)}`,
      {
        where: path,
        cause,
      },
    );
  }
  const held = file;
  return () => held.close();
}
