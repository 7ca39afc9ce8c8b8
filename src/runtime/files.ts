/**
 * Files that hold secrets or state: written whole or not at all, readable by their owner
 * only. A write is: temporary file beside it, fsync, rename, fsync of the folder.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { messageOf, PairwireError } from './errors.js';

export interface WriteOptions {
  /** Permission bits; 0600 by default. */
  readonly mode?: number;
  /** Fails with FILE_EXISTS if there is a file already. */
  readonly exclusive?: boolean;
}

/**
 * Writes a file so that a crash at any moment leaves the old contents or the new.
 * @throws PairwireError FILE_EXISTS with `exclusive`, FILE_UNREADABLE if it can't be written
 */
export function writeFileAtomic(
  path: string,
  data: Uint8Array | string,
  options: WriteOptions = {},
): void {
  const temporary = `${path}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`;
  const bytes = typeof data === 'string' ? Buffer.from(data) : data;
  try {
    const file = openSync(temporary, 'wx', options.mode ?? 0o600);
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    if (options.exclusive === true) {
      // A link, unlike a rename, fails where a file is.
      linkSync(temporary, path);
      rmSync(temporary);
    } else {
      renameSync(temporary, path);
    }
    syncPath(dirname(path));
  } catch (cause) {
    rmSync(temporary, { force: true });
    if ((cause as { code?: unknown }).code === 'EEXIST') {
      throw new PairwireError('FILE_EXISTS', 'the file exists already', {
        where: path,
        hint: 'choose another place, or move the old file away if nothing needs it',
        cause,
      });
    }
    throw new PairwireError('FILE_UNREADABLE', `cannot write the file: ${messageOf(cause)}`, {
      where: path,
      cause,
    });
  }
}

/**
 * Reads a file that nobody but its owner may read.
 * @throws PairwireError FILE_UNREADABLE, FILE_MODE
 */
export function readSecretFile(path: string): Buffer {
  requireSecretMode(path);
  try {
    return readFileSync(path);
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

/**
 * Refuses a file that its group or the world may read or write.
 * @throws PairwireError FILE_UNREADABLE, FILE_MODE
 */
export function requireSecretMode(path: string): void {
  let mode: number;
  try {
    mode = statSync(path).mode;
  } catch (cause) {
    throw unreadable(path, cause);
  }
  if ((mode & 0o077) !== 0) {
    throw new PairwireError(
      'FILE_MODE',
      `a file with secrets has mode ${(mode & 0o777).toString(8).padStart(4, '0')}`,
      { where: path, hint: `chmod 600 ${path}; if others could read it, make new keys` },
    );
  }
}

/**
 * Makes a folder that only its owner may enter. Parents that are missing are made as folders usually are: others may
 * have folders in them, and a gateway's control plane, which is another user than root, has to get through.
 */
export function makeSecretFolder(path: string): void {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', `cannot make the folder: ${messageOf(cause)}`, {
      where: path,
      cause,
    });
  }
}

/** Makes the contents of a file durable, or new and renamed entries of a folder. */
export function syncPath(path: string): void {
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

/**
 * Writes a key as one line of text that says what it is: `pairwire KIND BASE64URL`.
 * @throws PairwireError FILE_EXISTS unless `replace`
 */
export function writeKeyFile(
  path: string,
  kind: string,
  key: Uint8Array,
  options: { readonly public?: boolean; readonly replace?: boolean } = {},
): void {
  const line = `pairwire ${kind} ${Buffer.from(key).toString('base64url')}\n`;
  writeFileAtomic(path, line, {
    mode: options.public === true ? 0o644 : 0o600,
    exclusive: options.replace !== true,
  });
}

/**
 * Reads what `writeKeyFile` wrote.
 * @throws PairwireError FILE_UNREADABLE, FILE_MODE for a private key that others may read
 */
export function readKeyFile(
  path: string,
  kind: string,
  options: { readonly public?: boolean; readonly size?: number } = {},
): Buffer {
  let text: string;
  try {
    text = (options.public === true ? readFileSync(path) : readSecretFile(path)).toString('latin1');
  } catch (thrown) {
    throw thrown instanceof PairwireError ? thrown : unreadable(path, thrown);
  }
  const match = /^pairwire ([a-z0-9-]+) ([A-Za-z0-9_-]+)\s*$/.exec(text);
  const key = Buffer.from(match?.[2] ?? '', 'base64url');
  if (match?.[1] !== kind || key.length !== (options.size ?? 32)) {
    throw new PairwireError('FILE_UNREADABLE', `the file does not hold a ${kind} key`, {
      where: path,
    });
  }
  return key;
}

function unreadable(path: string, cause: unknown): PairwireError {
  const { code } = cause as { code?: unknown };
  return new PairwireError(
    'FILE_UNREADABLE',
    code === 'ENOENT' ? 'there is no such file' : `cannot read the file: ${messageOf(cause)}`,
    {
      where: path,
      cause,
      ...(code === 'EACCES'
        ? { hint: `look with namei -l ${path} who may enter the folders above it` }
        : {}),
    },
  );
}
