/**
 * Who has seen entries that the audit log does not have: members by heads that this server signed, and the server itself
 * by the head that it noted before (`-`). A file beside the database, because whoever changes the log can write to that.
 *
 * One of a witness is kept, the highest. `restore confirm` settles them: heads that were signed before it are of
 * a database that the operator knows to be gone.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { storedHeadSchema } from '../src/protocol/audit-head.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';

/** More say no more, and the file is written whole. */
export const MAX_WITNESSES = 64;

/** The server itself, by the head in its file. No member's id begins like this. */
export const OWN_WITNESS = '-';

const witnessSchema = z.strictObject({
  /** A member's id, or `-`. */
  witness: z.string().min(1).max(63),
  seq: z.int().positive(),
  /** As in the signed record; base64url. */
  mac: z.string().max(64),
  /** When it was told, ms. */
  at: z.int().nonnegative(),
  /** The signed head; only `-` may be without. */
  record: storedHeadSchema.optional(),
});
/** A head that the log contradicts. */
export type AuditWitness = z.infer<typeof witnessSchema>;

const fileSchema = z.strictObject({
  version: z.literal(1),
  /** When the operator last confirmed that the database was put back. */
  settledAt: z.int().nonnegative().optional(),
  witnesses: z.array(witnessSchema).max(MAX_WITNESSES),
});

/** The witnesses of one server. */
export class AuditWitnesses {
  readonly #path: string | undefined;
  readonly #byName = new Map<string, AuditWitness>();
  #settledAt: number | undefined;

  /**
   * @param path undefined keeps them in memory
   * @throws PairwireError FILE_UNREADABLE, FILE_MODE
   */
  constructor(path: string | undefined) {
    this.#path = path;
    if (path === undefined || !existsSync(path)) return;
    const { settledAt, witnesses } = readWitnesses(path);
    this.#settledAt = settledAt;
    for (const one of witnesses) this.#byName.set(one.witness, one);
  }

  get all(): readonly AuditWitness[] {
    return [...this.#byName.values()];
  }

  /** When the operator last confirmed that the database was put back, ms; undefined: never. */
  get settledAt(): number | undefined {
    return this.#settledAt;
  }

  /** @returns whether this witness is a new one; false, too, if there are too many */
  add(one: AuditWitness): boolean {
    const before = this.#byName.get(one.witness);
    if (before !== undefined && before.seq >= one.seq) return false;
    if (before === undefined && this.#byName.size >= MAX_WITNESSES) return false;
    this.#byName.set(one.witness, one);
    this.#write();
    return before === undefined;
  }

  /** The operator knows that the database was put back. @returns who had said so */
  settle(now: number): readonly AuditWitness[] {
    const before = this.all;
    this.#byName.clear();
    this.#settledAt = now;
    this.#write();
    return before;
  }

  #write(): void {
    if (this.#path === undefined) return;
    const body: z.input<typeof fileSchema> = {
      version: 1,
      ...(this.#settledAt === undefined ? {} : { settledAt: this.#settledAt }),
      witnesses: [...this.all],
    };
    writeFileAtomic(this.#path, `${JSON.stringify(body, undefined, 1)}\n`);
  }
}

function readWitnesses(path: string): z.infer<typeof fileSchema> {
  try {
    return fileSchema.parse(JSON.parse(readSecretFile(path).toString('utf8')));
  } catch (cause) {
    if (cause instanceof PairwireError) throw cause;
    throw new PairwireError(
      'FILE_UNREADABLE',
      'the list of who has seen other entries is damaged',
      {
        where: path,
        hint: 'keep a copy and remove it: members that have seen other entries say so again when they connect',
        cause,
      },
    );
  }
}
