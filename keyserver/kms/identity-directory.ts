/**
 * Which identity document belongs to an id: JSON lines that are only ever appended, each with an HMAC over itself and the one
 * before, and on the disk before anybody is answered. A file beside it, `identities.head`, notes the last line.
 *
 *   keep   line written and synced -> head written -> answered
 *
 * A line that a power cut has torn was never answered, and is cut off at the next start. A line that was changed, one that is
 * missing, or an end that was cut shows at the start: then nothing is answered about identities any more, and DEKs are made and
 * opened as before. If both files were put back to an earlier state, the pairs that members have stored since then show it:
 * they are of this KMS, and name ids that it does not know.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  writeSync,
} from 'node:fs';
import { z } from 'zod';
import { LABEL } from '../../src/protocol/constants.js';
import { fields } from '../../src/protocol/fields.js';
import { type Id, idSchema } from '../../src/protocol/ids.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../../src/runtime/files.js';

/** Ids that a KMS remembers. */
export const MAX_IDENTITIES = 250_000;
/** Longer lines are none of ours. */
export const MAX_IDENTITY_LINE = 512;
const GENESIS = Buffer.alloc(32);

const bytes32 = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/)
  .transform((text): Buffer => Buffer.from(text, 'base64url'));

const lineSchema = z.strictObject({
  seq: z.int().positive(),
  at: z.int().nonnegative(),
  id: idSchema,
  /** Digest of the identity document. */
  digest: bytes32,
  /** Why it counts: the first one of its id, or whose signature made it follow the one before. */
  by: z.enum(['first', 'identity', 'operator']),
  mac: bytes32,
});
type Line = z.output<typeof lineSchema>;
export type KeptBy = Line['by'];

const headSchema = z.strictObject({ seq: z.int().positive(), mac: bytes32 });

export interface DirectoryPaths {
  readonly identities: string;
  readonly identitiesHead: string;
}

/** The directory of a KMS that runs. */
export class IdentityDirectory {
  readonly #paths: DirectoryPaths;
  readonly #file: number;
  readonly #key: Buffer;
  readonly #now: () => number;
  readonly #digests = new Map<Id, Buffer>();
  #size = 0;
  #seq = 0;
  #mac: Buffer = GENESIS;
  #broken: string | undefined;
  /** The last line as it was noted before this start. */
  #head: z.output<typeof headSchema> | undefined;
  /** Bytes of a torn last line that were cut off. */
  torn = 0;

  /**
   * Opens the file, or makes it (0600). Never throws for what is in it: `broken` says what is wrong.
   * @param key of the KMS's audit log; the label keeps the two chains apart
   */
  constructor(paths: DirectoryPaths, key: Buffer, now: () => number = Date.now) {
    this.#paths = paths;
    this.#key = key;
    this.#now = now;
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
    this.#file = openSync(paths.identities, flags, 0o600);
    try {
      this.#head = readHead(paths.identitiesHead);
      this.#read();
      this.#compareHead();
    } catch (thrown) {
      if (!(thrown instanceof PairwireError)) throw thrown;
      this.#broken = thrown.message;
    }
  }

  /** What is wrong with the file; undefined: nothing. */
  get broken(): string | undefined {
    return this.#broken;
  }

  get size(): number {
    return this.#digests.size;
  }

  /** The digest that belongs to an id. @throws PairwireError KMS_FAILED if the file is not what was written */
  digestOf(id: Id): Buffer | undefined {
    this.#requireWhole();
    return this.#digests.get(id);
  }

  /** Remembers a digest, and has it on the disk when it returns. @throws PairwireError KMS_FAILED, LIMIT */
  keep(id: Id, digest: Buffer, by: KeptBy): void {
    this.#requireWhole();
    if (!this.#digests.has(id) && this.#digests.size >= MAX_IDENTITIES) {
      throw new PairwireError('LIMIT', `a KMS remembers ${MAX_IDENTITIES} identities at most`);
    }
    if (fstatSync(this.#file).size !== this.#size) {
      this.#broken = 'another process writes to it';
      this.#requireWhole();
    }
    const line = { seq: this.#seq + 1, at: this.#now(), id, digest, by };
    const mac = macOf(this.#key, this.#mac, line);
    const text = JSON.stringify({
      ...line,
      digest: digest.toString('base64url'),
      mac: mac.toString('base64url'),
    });
    const written = Buffer.from(`${text}\n`);
    try {
      for (let at = 0; at < written.length; ) {
        at += writeSync(this.#file, written, at, written.length - at, this.#size + at);
      }
      fsyncSync(this.#file);
    } catch (thrown) {
      // A full disk must not leave half a line in front of the next one.
      ftruncateSync(this.#file, this.#size);
      throw thrown;
    }
    this.#size += written.length;
    this.#seq = line.seq;
    this.#mac = mac;
    this.#digests.set(id, digest);
    this.#writeHead();
  }

  close(): void {
    closeSync(this.#file);
  }

  #requireWhole(): void {
    if (this.#broken === undefined) return;
    throw new PairwireError('KMS_FAILED', `the identity directory is damaged: ${this.#broken}`, {
      where: this.#paths.identities,
      hint: 'put identities.log and identities.head back from a backup, or move both away: members have their documents remembered anew',
    });
  }

  #read(): void {
    const all = readFileSync(this.#file);
    const end = all.lastIndexOf(0x0a) + 1;
    if (all.length - end > MAX_IDENTITY_LINE) throw damaged('its last line is too long');
    for (let at = 0; at < end; ) {
      const next = all.indexOf(0x0a, at);
      this.#take(parseLine(all.subarray(at, next)));
      at = next + 1;
    }
    this.#size = end;
    this.torn = all.length - end;
    if (this.torn === 0) return;
    ftruncateSync(this.#file, end);
    fsyncSync(this.#file);
  }

  #take({ mac, ...line }: Line): void {
    if (line.seq !== this.#seq + 1) throw damaged(`line ${this.#seq + 1} is missing`);
    const expected = macOf(this.#key, this.#mac, line);
    if (!timingSafeEqual(expected, mac)) {
      throw damaged(`line ${line.seq}, or the one before, was changed`);
    }
    this.#seq = line.seq;
    this.#mac = mac;
    this.#digests.set(line.id, line.digest);
    const head = this.#head;
    if (head?.seq === line.seq && !timingSafeEqual(head.mac, mac)) {
      throw damaged(`line ${line.seq} is another than the one noted in identities.head`);
    }
  }

  /** The head may lack the last line, when the power was cut between the two. */
  #compareHead(): void {
    const head = this.#head;
    if (head === undefined && this.#seq > 1) throw damaged('identities.head is missing');
    const noted = head?.seq ?? 0;
    if (noted > this.#seq) throw damaged(`it ends with line ${this.#seq}, not ${noted}`);
    if (noted < this.#seq) this.#writeHead();
  }

  #writeHead(): void {
    const text = JSON.stringify({ seq: this.#seq, mac: this.#mac.toString('base64url') });
    writeFileAtomic(this.#paths.identitiesHead, `${text}\n`);
  }
}

function readHead(path: string): z.output<typeof headSchema> | undefined {
  if (!existsSync(path)) return undefined;
  try {
    return headSchema.parse(JSON.parse(readSecretFile(path).toString('utf8')));
  } catch {
    throw damaged('identities.head can not be read');
  }
}

function macOf(key: Buffer, previous: Buffer, line: Omit<Line, 'mac'>): Buffer {
  const { seq, at, id, digest, by } = line;
  return createHmac('sha256', key)
    .update(fields(LABEL.kmsIdentity, previous, seq, at, id, digest, by))
    .digest();
}

function parseLine(bytes: Buffer): Line {
  try {
    if (bytes.length <= MAX_IDENTITY_LINE) return lineSchema.parse(JSON.parse(bytes.toString()));
  } catch {
    // Said below.
  }
  throw damaged('a line is none of an identity directory');
}

function damaged(what: string): PairwireError {
  return new PairwireError('KMS_FAILED', what);
}
