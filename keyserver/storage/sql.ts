/**
 * The few things that the domain SQL needs of a database: parameters by `?`, rows as
 * objects, and checked access to their columns.
 */
import { PairwireError } from '../../src/runtime/errors.js';

/** What may be bound. Anything else is refused before it reaches the driver. */
export type SqlValue = string | number | bigint | Buffer | null;

export type Row = Readonly<Record<string, unknown>>;

/** One place where statements run: a reader that sees committed state, or a transaction. */
export interface SqlConnection {
  /** True where each statement costs a round trip, so many rows are changed by one; with VALUES and casts as PostgreSQL has them. */
  readonly batches?: boolean;
  get(sql: string, params: readonly SqlValue[]): Promise<Row | undefined>;
  all(sql: string, params: readonly SqlValue[]): Promise<readonly Row[]>;
  /** @returns the number of rows changed */
  run(sql: string, params: readonly SqlValue[]): Promise<number>;
}

/** Counts of what a driver has done, for metrics and tests. */
export interface DriverCounts {
  commits: number;
  writes: number;
}

/** A database behind a store. */
export interface SqlDriver {
  readonly counts: DriverCounts;
  /** Sees committed state only. */
  readonly reader: SqlConnection;
  /** Runs `fn` atomically; settles only after the commit is on the disk. */
  transaction<T>(fn: (connection: SqlConnection) => Promise<T>): Promise<T>;
  /** True as long as nobody else can have written, so that what was read before still holds. */
  mayCache(): boolean;
  /**
   * Settles when it is certain that, until after the call, nobody else has written: for an answer that rests on memory.
   * @throws PairwireError STORE_FAILED if somebody has, or may have
   */
  prove(): Promise<void>;
  /**
   * Takes what was overwritten or deleted out of the database's files.
   * @returns false if that could not be done, now or at all
   */
  erase(): Promise<boolean>;
  close(): Promise<void>;
}

/** A fresh array of the values. @throws PairwireError STORE_FAILED for one of a type that no driver may be given */
export function bindable(params: readonly SqlValue[]): SqlValue[] {
  for (const value of params) {
    const good =
      value === null ||
      typeof value === 'string' ||
      typeof value === 'bigint' ||
      (typeof value === 'number' && Number.isSafeInteger(value)) ||
      Buffer.isBuffer(value);
    if (!good) throw new PairwireError('STORE_FAILED', 'a value of a wrong type was to be bound');
  }
  return [...params];
}

/** Column access that fails loudly where a row is not what the schema says. */
export function text(row: Row, name: string): string {
  const value = row[name];
  if (typeof value !== 'string') throw wrongColumn(name);
  return value;
}

/** A BIGINT column as a number (PostgreSQL's client gives it as a string). */
export function integer(row: Row, name: string): number {
  const value = row[name];
  const number =
    typeof value === 'bigint' || typeof value === 'string' ? Number(value) : (value as number);
  if (typeof number !== 'number' || !Number.isSafeInteger(number)) throw wrongColumn(name);
  return number;
}

/** Bytes; libsql gives them as a Buffer from `get` and as an ArrayBuffer from `all`. */
export function blob(row: Row, name: string): Buffer {
  const value = row[name];
  if (Buffer.isBuffer(value)) return value;
  if (value instanceof ArrayBuffer) return Buffer.from(value);
  throw wrongColumn(name);
}

/** True for a column that is null (or missing, as in an outer join). */
export function isNull(row: Row, name: string): boolean {
  const value = row[name];
  return value === null || value === undefined;
}

/** For a column that is not what the schema says. */
export function wrongColumn(name: string): PairwireError {
  return new PairwireError('STORE_FAILED', `the column ${name} of the database holds a wrong type`);
}
