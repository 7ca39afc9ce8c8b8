/** What every driver of a database does with writes, whichever database it is. */
import { expect, it } from 'vitest';
import type { SqlDriver, SqlValue } from '../../../../keyserver/storage/sql.js';

const WRITES = 500;

/**
 * Registers the tests.
 * @param driver an open one with an empty table `t (k TEXT PRIMARY KEY, v BYTEA)`
 * @param expectCommits judges how many transactions `WRITES` writes of one turn took
 */
export function itGroupsCommits(
  driver: () => SqlDriver,
  expectCommits: (commits: number) => void,
): void {
  const insert = (k: string, v: SqlValue = Buffer.from(k)): Promise<number> =>
    driver().transaction((sql) => sql.run('INSERT INTO t (k, v) VALUES (?, ?)', [k, v]));
  const count = async (): Promise<unknown> =>
    (await driver().reader.get('SELECT count(*) AS n FROM t', []))?.n;

  it('commits the writes of one turn together', async () => {
    const before = driver().counts.commits;
    await Promise.all(Array.from({ length: WRITES }, (_unused, at) => insert(`k${at}`)));
    expectCommits(driver().counts.commits - before);
    expect(await count()).toBe(WRITES);
  });

  it('answers nobody before the commit, and readers see nothing of it', async () => {
    let seenInside: unknown;
    let answered = false;
    const first = insert('a').then(() => {
      answered = true;
    });
    const second = driver().transaction(async (sql) => {
      seenInside = (await sql.get('SELECT count(*) AS n FROM t', []))?.n;
      expect(await count()).toBe(0);
      expect(answered).toBe(false);
    });
    await Promise.all([first, second]);
    expect(seenInside).toBe(1);
    expect(await count()).toBe(1);
  });

  it('rolls back the one write that fails, and no other of its batch', async () => {
    const results = await Promise.allSettled([
      insert('a'),
      driver().transaction(async (sql) => {
        await sql.run('INSERT INTO t (k) VALUES (?)', ['half']);
        throw new Error('changed my mind');
      }),
      insert('a'),
      insert('b'),
    ]);
    expect(results.map(({ status }) => status)).toEqual([
      'fulfilled',
      'rejected',
      'rejected',
      'fulfilled',
    ]);
    const rows = await driver().reader.all('SELECT k FROM t ORDER BY k', []);
    expect(rows.map(({ k }) => k)).toEqual(['a', 'b']);
  });
}
