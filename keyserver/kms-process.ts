/**
 * The KMS beside a key server whose configuration names none: a child in a folder of its own, under a user of its own where that
 * is possible, started again when it ends.
 *
 *   starting -> listening -> (ended) -> wait 0.5 to 30 s -> starting
 *
 * Meanwhile the key server goes on with the DEKs that it has open.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, chownSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { PairwireError } from '../src/runtime/errors.js';
import { eachLine } from '../src/runtime/lines.js';
import type { Logger } from '../src/runtime/log.js';

const FIRST_RESTART_MS = 500;
const LAST_RESTART_MS = 30_000;
/** One that has run so long is healthy: the next restart is quick again. */
const HEALTHY_MS = 60_000;
/** It says one line, its port. */
export const MAX_KMS_LINE = 256;

const saysSchema = z.strictObject({ port: z.int().min(1).max(65_535) });

/** Whom it runs as, if not as us. */
interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** The child. */
export class KmsProcess {
  readonly #dir: string;
  readonly #user: User | undefined;
  readonly #log: Logger;
  readonly #listens: (port: number) => void;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #restartMs = FIRST_RESTART_MS;
  #stopped = false;
  #everListened = false;
  #failed: (error: PairwireError) => void = () => {};
  restarts = 0;

  /**
   * @param userName whom it shall run as; that takes root and that there is such a user
   * @param listens is told the port on loopback, after each start
   */
  constructor(dir: string, userName: string, log: Logger, listens: (port: number) => void) {
    this.#dir = dir;
    this.#log = log;
    this.#listens = listens;
    this.#user = userFor(dir, userName, log);
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Starts it. @returns a promise that rejects if it ends before it has ever listened, and settles when it does */
  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#failed = reject;
      this.#run(resolve);
    });
  }

  #run(ready: () => void = () => {}): void {
    const since = Date.now();
    const program = join(dirname(OWN_FILE), `kms/main${extname(OWN_FILE)}`);
    let child: ChildProcess;
    try {
      child = spawn(process.execPath, [...process.execArgv, program, this.#dir], {
        // Its log lines stand beside ours; each says that it is the KMS.
        stdio: ['pipe', 'pipe', 'inherit'],
        env: {},
        ...(this.#user === undefined ? {} : { uid: this.#user.uid, gid: this.#user.gid }),
      });
    } catch (err) {
      // No memory, or no right to be that user: neither is a reason to end.
      this.#log.error({ err }, 'the KMS could not be started');
      this.#ended(since, null, null);
      return;
    }
    this.#child = child;
    child.stdin?.on('error', () => {}); // it ended, which `close` tells
    // Without descriptors for pipes there are none, and `close` follows.
    if (child.stdout !== null && child.stdout !== undefined) {
      eachLine(
        child.stdout,
        MAX_KMS_LINE,
        (line) => this.#said(line, ready),
        () => this.#log.warn({ from: 'kms' }, 'a line was too long'),
      );
    }
    child.on('error', (err) => {
      this.#log.error({ err }, 'the KMS could not be started');
      // One that never was has no `close`.
      if (child.pid === undefined && this.#child === child) this.#ended(since, null, null);
    });
    child.on('close', (code, signal) => {
      if (this.#child === child) this.#ended(since, code, signal);
    });
  }

  #ended(since: number, code: number | null, signal: NodeJS.Signals | null): void {
    this.#child = undefined;
    if (this.#stopped) return;
    if (!this.#everListened) {
      const error = new PairwireError('KMS_FAILED', 'the KMS ended before it listened', {
        where: this.#dir,
        hint: 'its own log line, above, says why',
      });
      this.#failed(error);
      return;
    }
    if (Date.now() - since > HEALTHY_MS) this.#restartMs = FIRST_RESTART_MS;
    const retryInMs = this.#restartMs;
    this.#restartMs = Math.min(LAST_RESTART_MS, 2 * retryInMs);
    this.restarts += 1;
    this.#log.error(
      { code, signal, retryInMs },
      'the KMS ended; starting it again, and going on with the keys that are open',
    );
    this.#timer = setTimeout(() => this.#run(), retryInMs);
  }

  /** Ends it. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (child === undefined) return;
    const closed = new Promise((resolve) => child.once('close', resolve));
    child.stdin?.end();
    await closed;
  }

  #said(line: string, ready: () => void): void {
    let port: number;
    try {
      ({ port } = saysSchema.parse(JSON.parse(line)));
    } catch {
      this.#log.warn({ from: 'kms' }, 'a line could not be read');
      return;
    }
    this.#everListened = true;
    this.#listens(port);
    ready();
  }
}

/** Compiled or not: what it starts is as it is. */
const OWN_FILE = fileURLToPath(import.meta.url);

/** Its user, to whom the folder is given; undefined: ours. */
function userFor(dir: string, name: string, log: Logger): User | undefined {
  if (process.geteuid?.() !== 0) {
    const uid = process.geteuid?.();
    log.warn(
      { uid },
      `the KMS runs as the key server's own user: only root can start it as ${name}`,
    );
    return undefined;
  }
  const user = findUser(name);
  if (user === undefined) {
    log.warn(
      { hint: `useradd --system --no-create-home --shell /usr/sbin/nologin ${name}` },
      `the KMS runs as the key server's own user: there is no user ${name}`,
    );
    return undefined;
  }
  // It has to get through to its folder, to Node.js and to this program.
  const parent = dirname(dir);
  const closed = [dirname(parent), dirname(process.execPath), dirname(OWN_FILE)]
    .map((path) => closedTo(path, user))
    .find((path) => path !== undefined);
  if (closed !== undefined) {
    log.warn(
      { folder: closed },
      `the KMS runs as the key server's own user: ${name} may not enter that folder`,
    );
    return undefined;
  }
  // The files of ours in there have mode 0600.
  const { mode } = statSync(parent);
  if (closedTo(parent, user) !== undefined) chmodSync(parent, (mode & 0o777) | 0o011);
  // Given away once, by the folder last: in one that is its user's, names could be exchanged under our hands.
  if (lstatSync(dir).uid !== 0) return user;
  try {
    for (const file of readdirSync(dir)) {
      const path = join(dir, file);
      const info = lstatSync(path);
      if (info.isFile() && info.nlink === 1) chownSync(path, user.uid, user.gid);
    }
    chownSync(dir, user.uid, user.gid);
  } catch (err) {
    log.warn(
      { err },
      `the KMS runs as the key server's own user: its folder could not be given to ${name}`,
    );
    return undefined;
  }
  return user;
}

/** The first folder on the way that a user may not enter; undefined if there is none. */
function closedTo(path: string, { uid, gid }: Pick<User, 'uid' | 'gid'>): string | undefined {
  const above = dirname(path);
  const closed = above === path ? undefined : closedTo(above, { uid, gid });
  if (closed !== undefined) return closed;
  const info = statSync(path);
  const bit = info.uid === uid ? 0o100 : info.gid === gid ? 0o010 : 0o001;
  return (info.mode & bit) === 0 ? path : undefined;
}

function findUser(name: string): User | undefined {
  for (const line of readFileSync('/etc/passwd', 'utf8').split('\n')) {
    const [user, , uid, gid] = line.split(':');
    if (user === name) return { name, uid: Number(uid), gid: Number(gid) };
  }
  return undefined;
}
