/**
 * Seals the keys of a store anew, page by page: those of a database from before there was a KMS, and all of them when another DEK has
 * become the active one. A page is one transaction, and each row says by itself what sealed it; so whoever stops in the middle, by
 * kill -9 too, begins again and finds done what is done.
 */
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { dekOf } from '../../src/protocol/envelope.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { KeyColumn, KeyRing, KeyTable } from './key-ring.js';
import { blob, integer, isNull, type Row, type SqlConnection, text } from './sql.js';

/** Rows of one transaction: about 5 ms on SQLite, 20 ms on PostgreSQL, in which nothing else is written. */
const PAGE = 200;
const BATCH_PAGE = 500;

/** A table with keys: its primary key, whose they are, and which column says the generation. */
export interface Layout {
  readonly table: KeyTable;
  readonly primary: readonly string[];
  readonly ids: readonly string[];
  readonly columns: readonly { readonly column: KeyColumn; readonly pwId: string }[];
}

const KEY = { column: 'key', pwId: 'pw_id' } as const;
const NEXT = { column: 'next_key', pwId: 'next_pw_id' } as const;
/** Where the keys of a store are. */
export const LAYOUTS: readonly Layout[] = [
  { table: 'group_keys', primary: ['id', 'pw_id'], ids: ['id'], columns: [KEY] },
  { table: 'row_keys', primary: ['id'], ids: ['id'], columns: [KEY] },
  { table: 'nets', primary: ['net'], ids: ['net'], columns: [KEY, NEXT] },
  { table: 'pair_keys', primary: ['a', 'b'], ids: ['a', 'b'], columns: [KEY, NEXT] },
];

/** What a page came to. */
export interface ResealPage {
  readonly rows: number;
  readonly sealed: number;
  /** Keys that could not be opened, and stay as they are. */
  readonly broken: number;
  /** Where the next page begins; undefined: it was the last one. */
  readonly next: ResealCursor | undefined;
}

/** After which row of which table. */
export interface ResealCursor {
  readonly table: number;
  readonly after: readonly (string | number)[] | undefined;
}

export const RESEAL_BEGIN: ResealCursor = { table: 0, after: undefined };

/**
 * Seals one page by the active DEK.
 * @param clear true while keys in clear are what there is; else one counts as broken
 */
export async function resealPage(
  sql: SqlConnection,
  ring: KeyRing,
  { table: at, after }: ResealCursor,
  clear: boolean,
): Promise<ResealPage> {
  const layout = LAYOUTS[at];
  if (layout === undefined) return { rows: 0, sealed: 0, broken: 0, next: undefined };
  const { table, primary } = layout;
  const page = sql.batches === true ? BATCH_PAGE : PAGE;
  const order = primary.join(', ');
  const behind =
    after === undefined ? '' : `WHERE (${order}) > (${primary.map(() => '?').join(', ')})`;
  const rows = await sql.all(`SELECT * FROM ${table} ${behind} ORDER BY ${order} LIMIT ?`, [
    ...(after ?? []),
    page,
  ]);
  let sealed = 0;
  let broken = 0;
  const changed: Changed[] = [];
  for (const row of rows) {
    const found = resealRow(ring, layout, row, clear);
    broken += found.broken;
    if (found.changes.length === 0) continue;
    sealed += found.changes.length;
    changed.push({ row, changes: found.changes });
  }
  await (sql.batches === true ? writeAtOnce : writeEach)(sql, layout, changed);
  const last = rows.at(-1);
  const next =
    last !== undefined && rows.length === page
      ? { table: at, after: nameOf(layout, last) }
      : { table: at + 1, after: undefined };
  return {
    ...{ rows: rows.length, sealed, broken },
    next: next.table < LAYOUTS.length ? next : undefined,
  };
}

/** A row, and its keys that are sealed anew. */
interface Changed {
  readonly row: Row;
  readonly changes: readonly { readonly column: KeyColumn; readonly value: Buffer }[];
}

async function writeEach(
  sql: SqlConnection,
  layout: Layout,
  changed: readonly Changed[],
): Promise<void> {
  const { table, primary } = layout;
  for (const { row, changes } of changed) {
    await sql.run(
      `UPDATE ${table} SET ${changes.map(({ column }) => `${column} = ?`).join(', ')}
       WHERE ${primary.map((name) => `${name} = ?`).join(' AND ')}`,
      [...changes.map(({ value }) => value), ...nameOf(layout, row)],
    );
  }
}

/**
 * All of a page by one statement. A column that does not change is left out as NULL: the row is read and written in one
 * transaction, and a key is never taken away here.
 */
async function writeAtOnce(
  sql: SqlConnection,
  layout: Layout,
  changed: readonly Changed[],
): Promise<void> {
  if (changed.length === 0) return;
  const { table, primary, columns } = layout;
  const casts = [
    ...primary.map((name) => (name === 'pw_id' ? 'CAST(? AS BIGINT)' : 'CAST(? AS TEXT)')),
    ...columns.map(() => 'CAST(? AS BYTEA)'),
  ].join(', ');
  const names = [...primary, ...columns.map(({ column }) => column)].join(', ');
  const values = changed.flatMap(({ row, changes }) => [
    ...nameOf(layout, row),
    ...columns.map(({ column }) => changes.find((one) => one.column === column)?.value ?? null),
  ]);
  await sql.run(
    `UPDATE ${table} SET ${columns.map(({ column }) => `${column} = COALESCE(v.${column}, ${table}.${column})`).join(', ')}
     FROM (VALUES ${changed.map(() => `(${casts})`).join(', ')}) AS v (${names})
     WHERE ${primary.map((name) => `${table}.${name} = v.${name}`).join(' AND ')}`,
    values,
  );
}

function nameOf({ primary }: Layout, row: Row): (string | number)[] {
  return primary.map((name) => (name === 'pw_id' ? integer(row, name) : text(row, name)));
}

function resealRow(
  ring: KeyRing,
  { table, ids, columns }: Layout,
  row: Row,
  clear: boolean,
): { readonly changes: { readonly column: KeyColumn; readonly value: Buffer }[]; broken: number } {
  const changes: { readonly column: KeyColumn; readonly value: Buffer }[] = [];
  let broken = 0;
  const names = ids.map((name) => text(row, name));
  for (const { column, pwId } of columns) {
    if (isNull(row, column)) continue;
    const value = blob(row, column);
    // Of a net without a key.
    if (value.length === 0) continue;
    if (ring.active !== undefined && dekOf(value)?.equals(ring.active) === true) continue;
    const generation = integer(row, pwId);
    try {
      const key =
        clear && value.length === KEY_SIZE
          ? value
          : ring.open(table, column, names, generation, value);
      changes.push({ column, value: ring.seal(table, column, names, generation, key) });
      key.fill(0);
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'SEAL_BROKEN') throw thrown;
      broken += 1;
    }
  }
  return { changes, broken };
}
