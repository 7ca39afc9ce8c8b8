/**
 * Users of this machine: who runs us, and giving up root for good. The control plane needs no
 * rights beyond its user (threats.md M4).
 */
import {
  closeSync,
  constants,
  fchownSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { PairwireError } from '../src/runtime/errors.js';

/** A row of /etc/passwd. */
export interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Looks a user up; undefined if there is none. */
export function findUser(name: string, passwd = '/etc/passwd'): User | undefined {
  for (const line of readFileSync(passwd, 'utf8').split('\n')) {
    const [user, , uid, gid] = line.split(':');
    if (user === name) return { name, uid: Number(uid), gid: Number(gid) };
  }
  return undefined;
}

/** @throws PairwireError PRIVILEGE that says how to make the user */
export function requireUser(name: string): User {
  const user = findUser(name);
  if (user !== undefined) return user;
  throw new PairwireError('PRIVILEGE', `there is no user ${name}`, {
    where: '/etc/passwd',
    hint: `useradd --system --no-create-home --shell /usr/sbin/nologin ${name}`,
  });
}

/** True if this process runs as root. */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/**
 * Gives a gateway's directory and the files in it to its user, if we are root and the user
 * exists. Links are not followed, folders not entered, and a file with a second name is left alone:
 * its user could have made it the name of somebody else's file. What is looked at is what is given
 * away: both go by descriptor, so that nothing can be put in its place in between.
 */
export function chownToUser(dir: string, name: string): void {
  if (!isRoot()) return;
  const user = findUser(name);
  if (user === undefined) return;
  for (const entry of readdirSync(dir)) giveFile(join(dir, entry), user);
  const folder = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fchownSync(folder, user.uid, user.gid);
  } finally {
    closeSync(folder);
  }
}

function giveFile(path: string, user: User): void {
  let file: number;
  try {
    // O_NONBLOCK: a FIFO must not keep root waiting.
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return; // a link, a socket, or gone
  }
  try {
    const info = fstatSync(file);
    if (info.isFile() && info.nlink === 1) fchownSync(file, user.uid, user.gid);
  } finally {
    closeSync(file);
  }
}

/** Becomes another user and can't go back. Does nothing if that is who we are. */
export function becomeUser(user: User): void {
  if (process.getuid?.() === user.uid && process.geteuid?.() === user.uid) return;
  if (!isRoot()) {
    throw new PairwireError('PRIVILEGE', `only root can become ${user.name}`, {
      hint: `run it as root or as ${user.name}`,
    });
  }
  process.setgroups?.([user.gid]);
  process.setgid?.(user.gid);
  process.setuid?.(user.uid);
  if (user.uid !== 0 && regainsRoot()) {
    throw new PairwireError('PRIVILEGE', 'root could not be given up');
  }
}

function regainsRoot(): boolean {
  try {
    process.setuid?.(0);
    return true;
  } catch {
    return false;
  }
}
