/**
 * Who has seen entries that the audit log does not have: members by heads that this server signed, and the server itself
 * by the head that it noted before (`-`). A file beside the database, because whoever changes the log can write to that; other machines of
 * the database learn of it all the same (audit-shared.ts).
 *
 * One of a witness is kept, the highest. `restore confirm` settles them: heads that were signed before it are of
 * a database that the operator knows to be gone.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { type AuditHead, storedHead, storedHeadSchema } from '../src/protocol/audit-head.js';
import type { Signed } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';

/** More say no more, and the file is written whole. */
export const MAX_WITNESSES = 64;

/** The server itself, by the head in its file. No member's id begins like this. */
export const OWN_WITNESS = '-';

/** Instead of a witness: the operator's last confirmation that the database was put back. */
export const CONFIRMED = '+';

/** What another machine of the database has noted: a head that this server has signed. */
export interface SeenHead {
  /** A member's id, `-` or `+`. */
  readonly witness: string;
  readonly record: Signed;
  readonly at: number;
  readonly head: AuditHead;
}

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
  readonly #isKept: boolean;
  readonly #byName = new Map<string, AuditWitness>();
  #settledAt: number | undefined;

  /**
   * @param path undefined keeps them in memory
   * @param isKept false: the file is read and stays as it is
   * @throws PairwireError FILE_UNREADABLE, FILE_MODE
   */
  constructor(path: string | undefined, isKept = true) {
    this.#path = path;
    this.#isKept = isKept;
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

  /** @returns whether this witness is a new one, or has seen more than before; undefined if neither, or if there are too many */
  add(one: AuditWitness): 'new' | 'higher' | undefined {
    const isNew = this.#put(one);
    if (isNew !== undefined) this.#write();
    return isNew;
  }

  #put(one: AuditWitness): 'new' | 'higher' | undefined {
    const before = this.#byName.get(one.witness);
    if (before !== undefined && before.seq >= one.seq) return undefined;
    if (before === undefined && this.#byName.size >= MAX_WITNESSES) return undefined;
    this.#byName.set(one.witness, one);
    return before === undefined ? 'new' : 'higher';
  }

  /**
   * Takes in what another machine has noted; what was signed before the last confirmation of any is settled.
   * @param timeOf when what a witness of ours has seen was signed, ms
   */
  adopt(heads: readonly SeenHead[], timeOf: (one: AuditWitness) => number): void {
    const confirmed = heads.find(({ witness }) => witness === CONFIRMED)?.head.confirmed ?? -1;
    const settledAt = Math.max(confirmed, this.#settledAt ?? -1);
    let changed = false;
    if (settledAt >= 0 && settledAt !== this.#settledAt) {
      this.#settledAt = settledAt;
      changed = true;
    }
    for (const one of this.all) {
      if (timeOf(one) <= settledAt) changed = this.#byName.delete(one.witness) || changed;
    }
    for (const { witness, record, at, head } of heads) {
      if (witness === CONFIRMED || head.time <= settledAt) continue;
      const mac = Buffer.from(head.mac).toString('base64url');
      const one = { witness, seq: head.seq, mac, at, record: storedHead(record) };
      changed = this.#put(one) !== undefined || changed;
    }
    if (changed) this.#write();
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
    if (this.#path === undefined || !this.#isKept) return;
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
