/** Whether every key of a store is what was sealed in its place. */
import type { KeyRing } from './key-ring.js';
import { LAYOUTS } from './reseal.js';
import { blob, integer, isNull, type SqlConnection, type SqlValue, text } from './sql.js';

const PAGE = 1_000;

/**
 * Opens all sealed keys, one after the other.
 * @returns how many there are
 * @throws PairwireError SEAL_BROKEN for the first that does not open
 */
export async function checkSeals(sql: SqlConnection, ring: KeyRing): Promise<number> {
  let opened = 0;
  for (const { table, primary, ids, columns } of LAYOUTS) {
    // No key of members; and it was opened to get here.
    if (table === 'row_keys') continue;
    const order = primary.join(', ');
    const behind = `WHERE (${order}) > (${primary.map(() => '?').join(', ')})`;
    for (let after: readonly SqlValue[] | undefined; ; ) {
      const rows = await sql.all(
        `SELECT * FROM ${table} ${after === undefined ? '' : behind} ORDER BY ${order} LIMIT ?`,
        [...(after ?? []), PAGE],
      );
      for (const row of rows) {
        const names = ids.map((name) => text(row, name));
        for (const { column, pwId } of columns) {
          if (isNull(row, column)) continue;
          const sealed = blob(row, column);
          // Of a net without a key.
          if (sealed.length === 0) continue;
          ring.open(table, column, names, integer(row, pwId), sealed).fill(0);
          opened += 1;
        }
        after = primary.map((name) => (name === 'pw_id' ? integer(row, name) : text(row, name)));
      }
      if (rows.length < PAGE) break;
    }
  }
  return opened;
}
