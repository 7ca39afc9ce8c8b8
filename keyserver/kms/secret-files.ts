/** Files of the KMS that nobody else may read, and those that nobody else may write. */
import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';

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

/**
 * Refuses a file that somebody else could have written: what it says, or is, runs as the KMS.
 * @throws PairwireError FILE_UNREADABLE, FILE_MODE
 */
export function requireTrusted(path: string): void {
  let info: ReturnType<typeof statSync>;
  try {
    info = statSync(path);
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', messageOf(cause), { where: path, cause });
  }
  const uid = process.geteuid?.() ?? info.uid;
  const folder = statSync(dirname(path)).uid;
  const own = info.uid === 0 || info.uid === uid || (uid === 0 && info.uid === folder);
  if (info.isFile() && own && (info.mode & 0o022) === 0) return;
  throw new PairwireError('FILE_MODE', 'a file that others may write, or that is none', {
    where: path,
    hint: 'it must belong to root or to the user of the KMS, and nobody else may write it',
  });
}
