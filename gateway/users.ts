/**
 * Users of this machine: who runs us, and giving up root for good. The control plane needs no
 * rights beyond its user (08-attacks M4).
 */
import { chownSync, lchownSync, lstatSync, readdirSync, readFileSync } from 'node:fs';
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
 * its user could have made it the name of somebody else's file.
 */
export function chownToUser(dir: string, name: string): void {
  if (!isRoot()) return;
  const user = findUser(name);
  if (user === undefined) return;
  chownSync(dir, user.uid, user.gid);
  for (const entry of readdirSync(dir)) {
    const path = join(dir, entry);
    const info = lstatSync(path);
    if (info.isFile() && info.nlink === 1) lchownSync(path, user.uid, user.gid);
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
