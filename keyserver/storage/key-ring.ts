/**
 * The DEKs of a store while it is open: seals and opens its keys in memory, so that no key costs a question to the KMS. What is in
 * the cache of members is open already; sealing or opening one takes some microseconds.
 */
import { createSecretKey } from 'node:crypto';
import { type Dek, dekOf, openKey, sealKey } from '../../src/protocol/envelope.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { RowGuard } from './row-guard.js';

/** Tables with keys. */
export type KeyTable = 'pair_keys' | 'group_keys' | 'nets' | 'row_keys';
export type KeyColumn = 'key' | 'next_key';

/** Places with a broken seal that are told of, each once. */
export const MAX_TOLD = 1_000;

/** DEKs by their ids. */
export class KeyRing {
  readonly #store: Buffer;
  readonly #deks = new Map<string, Dek>();
  #active: Dek | undefined;
  #seals = 0;
  #reserved = Number.POSITIVE_INFINITY;
  #broken = 0;
  readonly #told = new Set<string>();
  /** The MACs over rows, whose key is sealed by a DEK as well; undefined until `unlock` has it. */
  rows: RowGuard | undefined;
  /** Told of each place whose key is not what was sealed there, once. */
  onBroken: (error: PairwireError) => void = () => {};
  /** Told once when half of what was counted ahead is used up. */
  onUsed: () => void = () => {};

  /** @param store its id, part of what each key is bound to */
  constructor(store: Buffer) {
    this.#store = store;
  }

  /** Keys that the active DEK has sealed, in all runs of the server: never fewer than there are. */
  get seals(): number {
    return this.#seals;
  }

  /** Adds what runs of the server before this one may have sealed by the active DEK. */
  countBefore(seals: number): void {
    this.#seals += seals;
  }

  /** So many seals of the active DEK stand in the database from now on, a block of them ahead. */
  reserve(seals: number, block: number): void {
    this.#reserved = seals - block / 2;
  }

  /** Keys that were not what had been sealed in their place. */
  get broken(): number {
    return this.#broken;
  }

  /** The DEK that seals. */
  get active(): Buffer | undefined {
    return this.#active?.id;
  }

  /** DEKs in memory. */
  get size(): number {
    return this.#deks.size;
  }

  /** Adds a DEK; the raw key is zeroed. @param active it seals from now on */
  add(id: Buffer, key: Buffer, active: boolean): void {
    const dek = { id: Buffer.from(id), key: createSecretKey(key) };
    key.fill(0);
    this.#deks.set(dek.id.toString('hex'), dek);
    if (!active) return;
    this.#active = dek;
    this.#seals = 0;
    this.#reserved = Number.POSITIVE_INFINITY;
  }

  /** The DEKs that open, and seal no more. */
  get retired(): readonly Buffer[] {
    return [...this.#deks.values()].filter((dek) => dek !== this.#active).map(({ id }) => id);
  }

  has(id: Buffer): boolean {
    return this.#deks.has(id.toString('hex'));
  }

  /** Seals by a DEK that is there already. */
  activate(id: Buffer): void {
    const dek = this.#deks.get(id.toString('hex'));
    if (dek === undefined || dek === this.#active) return;
    this.#active = dek;
    this.#seals = 0;
    this.#reserved = Number.POSITIVE_INFINITY;
  }

  /** Forgets DEKs; never the active one. */
  forget(ids: readonly Buffer[]): void {
    for (const id of ids) {
      const name = id.toString('hex');
      if (this.#deks.get(name) !== this.#active) this.#deks.delete(name);
    }
  }

  /** @throws PairwireError STORE_FAILED if no DEK is open */
  seal(
    table: KeyTable,
    column: KeyColumn,
    ids: readonly string[],
    pwId: number,
    key: Uint8Array,
  ): Buffer {
    if (this.#active === undefined) throw locked();
    this.#seals += 1;
    if (this.#seals > this.#reserved) {
      this.#reserved = Number.POSITIVE_INFINITY;
      this.onUsed();
    }
    return sealKey(this.#active, { store: this.#store, table, column, ids, pwId }, key);
  }

  /** @throws PairwireError SEAL_BROKEN for what was not sealed for this place; STORE_FAILED if no DEK is open */
  open(
    table: KeyTable,
    column: KeyColumn,
    ids: readonly string[],
    pwId: number,
    sealed: Buffer,
  ): Buffer {
    if (this.#active === undefined) throw locked();
    const dek = this.#deks.get(dekOf(sealed)?.toString('hex') ?? '');
    try {
      if (dek === undefined) {
        throw new PairwireError(
          'SEAL_BROKEN',
          'a key is in clear, or sealed by a DEK that is gone',
        );
      }
      return openKey(dek, { store: this.#store, table, column, ids, pwId }, sealed);
    } catch (thrown) {
      if (!(thrown instanceof PairwireError)) throw thrown;
      throw this.#noteBroken(
        new PairwireError(thrown.code, thrown.message, {
          where: `${table}.${column} of ${ids.join(', ')}, generation ${pwId}`,
          hint: 'somebody has changed the database: look for who did; `pairwire rekey --force` makes another key',
        }),
      );
    }
  }

  /** Opens what can be opened of many: one that was tampered with must not stop the work on all others. */
  each<Row, T>(rows: readonly Row[], convert: (row: Row) => T): T[] {
    return rows.flatMap((row) =>
      this.try(
        () => [convert(row)],
        () => [],
      ),
    );
  }

  /** What `open` gives, or `otherwise` if a key in it was tampered with. */
  try<T, U>(open: () => T, otherwise: () => U): T | U {
    try {
      return open();
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'SEAL_BROKEN') throw thrown;
      return otherwise();
    }
  }

  #noteBroken(error: PairwireError): PairwireError {
    this.#broken += 1;
    const where = error.where ?? '';
    if (!this.#told.has(where) && this.#told.size < MAX_TOLD) {
      this.#told.add(where);
      this.onBroken(error);
    }
    return error;
  }
}

/** A store that was opened without its DEKs: it tells everything but keys. */
export const LOCKED = new KeyRing(Buffer.alloc(0));

function locked(): PairwireError {
  return new PairwireError('STORE_FAILED', 'the keys of this store are sealed', {
    hint: 'they are opened by the KMS, for the key server that runs',
  });
}
