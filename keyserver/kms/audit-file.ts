/**
 * What a KMS did, for whom, and what it refused: JSON lines, each with an HMAC over itself and the one before, under a key of the
 * KMS. Written before what it tells of is answered. A line that a power cut has torn is cut off at the next start; a line that
 * was changed, or one that is missing in the middle, shows.
 *
 * A file that is full is put aside as audit-N.log, where N is the number of the entry that follows, and the oldest of those go. The
 * file after it begins with a line that names the MAC before it and the oldest entry that is still kept, so the chain goes through
 * all of them, and shows if more is missing than was let go.
 *
 * Refusals cost a peer nothing, so they must cost the file little: the first of a peer and kind is written at once, its repeats
 * within a minute are one line with their count.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import {
  closeSync,
  constants,
  createReadStream,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { LABEL } from '../../src/protocol/constants.js';
import { fields } from '../../src/protocol/fields.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { syncPath } from '../../src/runtime/files.js';

const REPEAT_WINDOW_MS = 60_000;
/** Peers and kinds whose repeats are counted at a time; the refusals of more are counted together. */
export const MAX_REPEATS = 1_000;
/** Longer lines are none of ours. */
export const MAX_AUDIT_LINE = 4_096;
const GENESIS = Buffer.alloc(32);
/** First entry of a file that follows another one. */
const CONTINUES = 'continue';
const ASIDE = /^audit-([1-9]\d{0,15})\.log$/;

/** How much of it is kept. */
export interface AuditBounds {
  /** Bytes of a file. */
  readonly maxBytes: number;
  /** Full files. */
  readonly keep: number;
}
const UNBOUNDED: AuditBounds = { maxBytes: Number.POSITIVE_INFINITY, keep: 1 };

const lineSchema = z.strictObject({
  seq: z.int().positive(),
  at: z.int().nonnegative(),
  /** A key server's id, `-` for somebody unknown. */
  actor: z.string(),
  action: z.string(),
  outcome: z.enum(['done', 'refused']),
  detail: z.record(z.string(), z.union([z.string(), z.number()])),
  mac: z.string(),
});
type Line = z.infer<typeof lineSchema>;
export type KmsAuditEvent = Pick<Line, 'actor' | 'action' | 'outcome' | 'detail'>;

/** Appends to the file of a KMS that runs. */
export class KmsAudit {
  readonly #path: string;
  readonly #bounds: AuditBounds;
  #file: number;
  readonly #key: Buffer;
  readonly #now: () => number;
  readonly #repeats = new Map<
    string,
    { readonly event: KmsAuditEvent; until: number; n: number }
  >();
  #size: number;
  #seq: number;
  #mac: Buffer;
  /** Full files, and entries from before the oldest of them. */
  #files: number;
  #gone: number;

  private constructor(
    path: string,
    bounds: AuditBounds,
    file: number,
    key: Buffer,
    now: () => number,
    seq: number,
    mac: Buffer,
  ) {
    this.#path = path;
    this.#bounds = bounds;
    this.#file = file;
    this.#key = key;
    this.#now = now;
    this.#size = fstatSync(file).size;
    this.#seq = seq;
    this.#mac = mac;
    const aside = filesAside(path);
    this.#files = aside.length;
    this.#gone = firstOf(aside[0]?.path ?? path) - 1;
  }

  /**
   * Opens the file, or makes it (0600), and goes on after its last whole line.
   * @returns also how many bytes were torn and cut off
   * @throws PairwireError KMS_FAILED for a last line that is not ours
   */
  static open(
    path: string,
    key: Buffer,
    now: () => number = Date.now,
    bounds: AuditBounds = UNBOUNDED,
  ): { readonly audit: KmsAudit; readonly torn: number } {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
    const file = openSync(path, flags, 0o600);
    const { size } = fstatSync(file);
    const tail = Buffer.alloc(Math.min(size, 2 * MAX_AUDIT_LINE));
    readSync(file, tail, 0, tail.length, size - tail.length);
    const end = tail.lastIndexOf(0x0a) + 1;
    const torn = tail.length - end;
    // Only what follows a whole line is cut, and no more of it than a line can have.
    if (torn > MAX_AUDIT_LINE) throw damaged(path, 'its last line is too long');
    const line = tail.subarray(
      end < 2 ? 0 : tail.lastIndexOf(0x0a, end - 2) + 1,
      Math.max(0, end - 1),
    );
    const last = end === 0 ? undefined : parseLine(line.toString());
    if (end > 0 && last === undefined) {
      throw damaged(path, 'its last line is not one of an audit log');
    }
    if (torn > 0) {
      ftruncateSync(file, size - torn);
      fsyncSync(file);
    }
    // Killed after the full one was put aside, and before anything was written to the next.
    const before = last ?? lastAside(path);
    const seq = before?.seq ?? 0;
    const mac = before === undefined ? GENESIS : Buffer.from(before.mac, 'base64url');
    return { audit: new KmsAudit(path, bounds, file, key, now, seq, mac), torn };
  }

  /** Bytes of the file that is written to. */
  get size(): number {
    return this.#size;
  }

  /** Full files that are kept. */
  get files(): number {
    return this.#files;
  }

  /** Entries that were let go, of all runs. */
  get gone(): number {
    return this.#gone;
  }

  /** Writes a line, and has it on the disk when it returns. @throws PairwireError KMS_FAILED if another process writes, too */
  note(event: KmsAuditEvent): void {
    if (this.#size >= this.#bounds.maxBytes) this.#putAside();
    // Also if the first line could not be written when the file was made.
    if (this.#size === 0 && this.#seq > 0) this.#continue();
    this.#write(event);
  }

  #putAside(): void {
    renameSync(this.#path, join(dirname(this.#path), `audit-${this.#seq + 1}.log`));
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    const file = openSync(this.#path, flags, 0o600);
    closeSync(this.#file);
    this.#file = file;
    this.#size = 0;
  }

  /** Begins a file, and lets the oldest go. */
  #continue(): void {
    const aside = filesAside(this.#path);
    const gone = aside.slice(0, Math.max(0, aside.length - this.#bounds.keep));
    // The oldest that stays begins where the newest that goes ended.
    const oldest = gone.at(-1)?.before ?? firstOf(aside[0]?.path);
    this.#write({
      ...{ actor: '-', action: CONTINUES, outcome: 'done' },
      detail: { previous: this.#mac.toString('base64url'), oldest },
    });
    for (const { path } of gone) rmSync(path, { force: true });
    this.#files = aside.length - gone.length;
    this.#gone = oldest - 1;
    syncPath(dirname(this.#path));
  }

  #write(event: KmsAuditEvent): void {
    const size = this.#size;
    if (fstatSync(this.#file).size !== size) {
      throw new PairwireError('KMS_FAILED', 'another process writes to the audit log of this KMS', {
        hint: 'one KMS runs in a folder at a time: a key server starts its own unless keyserver.yaml names one',
      });
    }
    const line = { seq: this.#seq + 1, at: this.#now(), ...event };
    const mac = macOf(this.#key, this.#mac, line);
    const text = `${JSON.stringify({ ...line, mac: mac.toString('base64url') })}\n`;
    const bytes = Buffer.from(text);
    try {
      for (let at = 0; at < bytes.length; ) {
        at += writeSync(this.#file, bytes, at, bytes.length - at, size + at);
      }
      fsyncSync(this.#file);
    } catch (thrown) {
      // A full disk must not leave half a line in front of the next one.
      ftruncateSync(this.#file, size);
      throw thrown;
    }
    this.#size = size + bytes.length;
    this.#seq = line.seq;
    this.#mac = mac;
  }

  /**
   * Notes a refusal: at once, or with others of its kind. Never throws.
   * @param failed is told why it could not be written
   * @returns true for the first of its kind
   */
  refused(
    actor: string,
    action: string,
    reason: string,
    failed: (thrown: unknown) => void,
  ): boolean {
    const now = this.#now();
    const full = this.#repeats.size >= MAX_REPEATS;
    const name = full ? 'others' : `${actor} ${action} ${reason}`;
    const open = this.#repeats.get(name);
    if (open !== undefined) {
      open.n += 1;
      return false;
    }
    const event: KmsAuditEvent = { actor, action, outcome: 'refused', detail: { reason } };
    this.#repeats.set(name, { event, until: now + REPEAT_WINDOW_MS, n: 0 });
    try {
      this.note(event);
    } catch (thrown) {
      failed(thrown);
    }
    return true;
  }

  /** Writes the counts of repeats whose minute is over, or of all. */
  sweep(all = false): void {
    for (const [name, { event, until, n }] of this.#repeats) {
      if (!all && this.#now() < until) continue;
      this.#repeats.delete(name);
      if (n > 0) this.note({ ...event, detail: { ...event.detail, repeated: n } });
    }
  }

  close(): void {
    try {
      this.sweep(true);
    } finally {
      closeSync(this.#file);
    }
  }
}

/** What a check of the chain found. */
export interface KmsAuditCheck {
  readonly entries: number;
  readonly broken:
    | { readonly file: string; readonly line: number; readonly reason: string }
    | undefined;
}

/** Checks every line of an audit file, and of those put aside before it; a torn last line counts as none. @throws PairwireError FILE_UNREADABLE */
export async function checkKmsAudit(path: string, key: Buffer): Promise<KmsAuditCheck> {
  const walk: Walk = { previous: undefined, seq: 0, entries: 0, first: 0, oldest: 1 };
  for (const file of [...filesAside(path).map((one) => one.path), path]) {
    const broken = await checkFile(file, key, walk, file === path);
    if (broken !== undefined) return { entries: walk.entries, broken };
  }
  if (walk.entries > 0 && walk.first > walk.oldest) {
    const reason = `entries ${walk.oldest} to ${walk.first - 1} are missing`;
    return { entries: walk.entries, broken: { file: path, line: 1, reason } };
  }
  return { entries: walk.entries, broken: undefined };
}

/** Where a check is. */
interface Walk {
  /** MAC of the entry before; none yet. */
  previous: Buffer | undefined;
  seq: number;
  entries: number;
  /** The first entry that there is, and the one that should be. */
  first: number;
  oldest: number;
}

async function checkFile(
  path: string,
  key: Buffer,
  walk: Walk,
  last: boolean,
): Promise<KmsAuditCheck['broken']> {
  const lines = createInterface({
    input: createReadStream(path),
    crlfDelay: Number.POSITIVE_INFINITY,
  });
  let number = 0;
  let bad: string | undefined;
  for await (const text of lines) {
    // Anything behind a line that does not fit makes it one in the middle.
    if (bad !== undefined) return { file: path, line: number, reason: bad };
    number += 1;
    const line = parseLine(text);
    if (line === undefined) {
      bad = 'it is not a line of an audit log';
      continue;
    }
    const reason = checkLine(line, key, walk, number === 1);
    if (reason !== undefined) return { file: path, line: number, reason };
  }
  // Only the file that is written to can be torn.
  return bad !== undefined && !last ? { file: path, line: number, reason: bad } : undefined;
}

/** @returns what is wrong with it */
function checkLine(line: Line, key: Buffer, walk: Walk, begins: boolean): string | undefined {
  const { mac, ...rest } = line;
  const { previous, oldest } = line.detail;
  const continues = begins && line.action === CONTINUES && typeof previous === 'string';
  if (walk.previous === undefined) {
    // The first one that is kept: its own MAC holds together which one was before it.
    if (line.seq !== 1 && !continues) return 'a line is missing';
    walk.previous = line.seq === 1 ? GENESIS : Buffer.from(String(previous), 'base64url');
    walk.first = line.seq;
  } else if (line.seq !== walk.seq + 1) return 'a line is missing';
  const expected = macOf(key, walk.previous, rest);
  const found = Buffer.from(mac, 'base64url');
  if (found.length !== expected.length || !timingSafeEqual(found, expected)) {
    return 'it or the one before was changed';
  }
  if (continues && typeof oldest === 'number') walk.oldest = oldest;
  walk.previous = expected;
  walk.seq = line.seq;
  walk.entries += 1;
  return undefined;
}

/** Full files beside an audit log, the oldest first. */
export function filesAside(path: string): { readonly path: string; readonly before: number }[] {
  const dir = dirname(path);
  return readdirSync(dir)
    .flatMap((name) => {
      const before = Number(ASIDE.exec(name)?.[1] ?? 0);
      return before === 0 ? [] : [{ path: join(dir, name), before }];
    })
    .sort((a, b) => a.before - b.before);
}

function lastAside(path: string): Line | undefined {
  const newest = filesAside(path).at(-1);
  if (newest === undefined) return undefined;
  const text = readFileSync(newest.path, 'utf8').trimEnd();
  const last = parseLine(text.slice(text.lastIndexOf('\n') + 1));
  if (last === undefined) throw damaged(newest.path, 'its last line is not one of an audit log');
  return last;
}

/** The number of the first entry of a file; 1 without one. */
function firstOf(path: string | undefined): number {
  if (path === undefined) return 1;
  const file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    const head = Buffer.alloc(MAX_AUDIT_LINE);
    const text = head.subarray(0, readSync(file, head, 0, head.length, 0)).toString();
    return parseLine(text.slice(0, text.indexOf('\n')))?.seq ?? 1;
  } finally {
    closeSync(file);
  }
}

function macOf(key: Buffer, previous: Buffer, line: Omit<Line, 'mac'>): Buffer {
  const { seq, at, actor, action, outcome, detail } = line;
  return createHmac('sha256', key)
    .update(
      fields(LABEL.kmsAudit, previous, seq, at, actor, action, outcome, JSON.stringify(detail)),
    )
    .digest();
}

function parseLine(text: string): Line | undefined {
  if (text.length > MAX_AUDIT_LINE) return undefined;
  try {
    return lineSchema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

function damaged(path: string, what: string): PairwireError {
  return new PairwireError('KMS_FAILED', `the audit log of the KMS is damaged: ${what}`, {
    where: path,
    hint: 'move it away for inspection: a new one is begun',
  });
}
