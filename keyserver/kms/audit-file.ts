/**
 * What a KMS did, for whom, and what it refused: JSON lines, each with an HMAC over itself and the one before, under a key of the
 * KMS. Written before what it tells of is answered. A line that a power cut has torn is cut off at the next start; a line that
 * was changed, or one that is missing in the middle, shows.
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
  readSync,
  writeSync,
} from 'node:fs';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import { LABEL } from '../../src/protocol/constants.js';
import { fields } from '../../src/protocol/fields.js';
import { PairwireError } from '../../src/runtime/errors.js';

const REPEAT_WINDOW_MS = 60_000;
/** Peers and kinds whose repeats are counted at a time; the refusals of more are counted together. */
export const MAX_REPEATS = 1_000;
/** Longer lines are none of ours. */
export const MAX_AUDIT_LINE = 4_096;
const GENESIS = Buffer.alloc(32);

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
  readonly #file: number;
  readonly #key: Buffer;
  readonly #now: () => number;
  readonly #repeats = new Map<
    string,
    { readonly event: KmsAuditEvent; until: number; n: number }
  >();
  #size: number;
  #seq: number;
  #mac: Buffer;

  private constructor(file: number, key: Buffer, now: () => number, seq: number, mac: Buffer) {
    this.#file = file;
    this.#key = key;
    this.#now = now;
    this.#size = fstatSync(file).size;
    this.#seq = seq;
    this.#mac = mac;
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
    if (last === undefined) return { audit: new KmsAudit(file, key, now, 0, GENESIS), torn };
    const mac = Buffer.from(last.mac, 'base64url');
    return { audit: new KmsAudit(file, key, now, last.seq, mac), torn };
  }

  /** Writes a line, and has it on the disk when it returns. @throws PairwireError KMS_FAILED if another process writes, too */
  note(event: KmsAuditEvent): void {
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

  /** Notes a refusal: at once, or with others of its kind. Never throws. @param failed is told why it could not be written */
  refused(actor: string, action: string, reason: string, failed: (thrown: unknown) => void): void {
    const now = this.#now();
    const full = this.#repeats.size >= MAX_REPEATS;
    const name = full ? 'others' : `${actor} ${action} ${reason}`;
    const open = this.#repeats.get(name);
    if (open !== undefined) {
      open.n += 1;
      return;
    }
    const event: KmsAuditEvent = { actor, action, outcome: 'refused', detail: { reason } };
    this.#repeats.set(name, { event, until: now + REPEAT_WINDOW_MS, n: 0 });
    try {
      this.note(event);
    } catch (thrown) {
      failed(thrown);
    }
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
  readonly broken: { readonly line: number; readonly reason: string } | undefined;
}

/** Checks every line of an audit file; a torn last line counts as none. @throws PairwireError FILE_UNREADABLE */
export async function checkKmsAudit(path: string, key: Buffer): Promise<KmsAuditCheck> {
  let previous: Buffer = GENESIS;
  let entries = 0;
  const lines = createInterface({
    input: createReadStream(path),
    crlfDelay: Number.POSITIVE_INFINITY,
  });
  let bad: string | undefined;
  for await (const text of lines) {
    // Anything behind a line that does not fit makes it one in the middle.
    if (bad !== undefined) return { entries, broken: { line: entries + 1, reason: bad } };
    const line = parseLine(text);
    if (line === undefined) {
      bad = 'it is not a line of an audit log';
      continue;
    }
    const { mac, ...rest } = line;
    const expected = macOf(key, previous, rest);
    const found = Buffer.from(mac, 'base64url');
    if (line.seq !== entries + 1) bad = 'a line is missing';
    else if (found.length !== expected.length || !timingSafeEqual(found, expected)) {
      return { entries, broken: { line: entries + 1, reason: 'it or the one before was changed' } };
    } else {
      previous = expected;
      entries += 1;
    }
    if (bad !== undefined) return { entries, broken: { line: entries + 1, reason: bad } };
  }
  return { entries, broken: undefined };
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
