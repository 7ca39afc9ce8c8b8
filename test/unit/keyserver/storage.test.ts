/** The store: group commit, savepoints, migrations, full and damaged databases, values that may be bound. */
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'libsql';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MIGRATIONS, migrate } from '../../../keyserver/storage/migrations/index.js';
import type { SqlValue } from '../../../keyserver/storage/sql.js';
import { SqliteDriver } from '../../../keyserver/storage/sqlite.js';

describe('SQLite driver', () => {
  let dir: string;
  let file: string;
  let driver: SqliteDriver;

  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-store-'));
    file = join(dir, 'test.db');
    driver = await SqliteDriver.open(file, { create: true });
    await driver.transaction((sql) => sql.run('CREATE TABLE t (k TEXT PRIMARY KEY, v BYTEA)', []));
  });
  afterEach(async () => {
    await driver.close();
    rmSync(dir, { recursive: true, force: true });
  });

  const insert = (k: string, v: SqlValue = Buffer.from(k)): Promise<number> =>
    driver.transaction((sql) => sql.run('INSERT INTO t (k, v) VALUES (?, ?)', [k, v]));
  const count = async (): Promise<unknown> =>
    (await driver.reader.get('SELECT count(*) AS n FROM t', []))?.n;

  it('commits all writes of one turn together', async () => {
    const before = driver.counts.commits;
    await Promise.all(Array.from({ length: 500 }, (_unused, at) => insert(`k${at}`)));
    expect(driver.counts.commits - before).toBe(1);
    expect(await count()).toBe(500);
  });

  it('answers nobody before the commit, and readers see nothing of it', async () => {
    let seenInside: unknown;
    let answered = false;
    const first = insert('a').then(() => {
      answered = true;
    });
    const second = driver.transaction(async (sql) => {
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
      driver.transaction(async (sql) => {
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
    expect(await driver.reader.all('SELECT k FROM t ORDER BY k', [])).toMatchObject([
      { k: 'a' },
      { k: 'b' },
    ]);
  });

  it('tells of a full disk in its own words, loses nothing, and goes on when there is room', async () => {
    await insert('kept');
    const pages = (await driver.reader.get('PRAGMA page_count', []))?.page_count as number;
    await driver.transaction((sql) => sql.get(`PRAGMA max_page_count = ${pages + 2}`, []));
    const big = Buffer.alloc(100_000, 1);
    const results = await Promise.allSettled([insert('x', big), insert('small')]);
    for (const result of results) {
      expect(result).toMatchObject({
        status: 'rejected',
        reason: { code: 'STORE_FAILED', hint: expect.stringContaining('disk is full') as string },
      });
    }
    expect(await count()).toBe(1);
    await driver.transaction((sql) => sql.get('PRAGMA max_page_count = 1000000', []));
    await insert('x', big);
    expect(await count()).toBe(2);
  });

  it('refuses a damaged file, a missing one, and one that others may read', async () => {
    const bad = join(dir, 'bad.db');
    writeFileSync(bad, Buffer.alloc(8192, 0x41), { mode: 0o600 });
    await expect(SqliteDriver.open(bad)).rejects.toMatchObject({
      code: 'STORE_FAILED',
      where: bad,
      hint: expect.stringContaining('damaged') as string,
    });
    await expect(SqliteDriver.open(join(dir, 'none.db'))).rejects.toMatchObject({
      code: 'FILE_UNREADABLE',
    });
    writeFileSync(bad, '', { mode: 0o644 });
    rmSync(bad);
    writeFileSync(bad, '', { mode: 0o644 });
    await expect(SqliteDriver.open(bad)).rejects.toMatchObject({ code: 'FILE_MODE' });
  });

  it('keeps all its files to itself', async () => {
    await insert('a');
    for (const name of [file, `${file}-wal`, `${file}-shm`]) {
      expect(existsSync(name)).toBe(true);
      expect(statSync(name).mode & 0o777).toBe(0o600);
    }
  });

  it('binds only values of known types', async () => {
    const odd = [{}, [], 1.5, Number.NaN, true, new Uint8Array(4), new Date()];
    for (const value of odd) {
      await expect(insert('odd', value as unknown as SqlValue)).rejects.toMatchObject({
        code: 'STORE_FAILED',
      });
    }
    // Alone, a Buffer used to abort the process.
    expect(
      await driver.transaction((sql) => sql.run('DELETE FROM t WHERE v = ?', [Buffer.from('a')])),
    ).toBe(0);
  });

  it('gives back bytes and large numbers as they were, by get and by all', async () => {
    await insert('bytes', Buffer.from([0, 255, 1]));
    const sql = 'SELECT v, 9007199254740991 AS n FROM t';
    expect(Buffer.from((await driver.reader.get(sql, []))?.v as Buffer)).toEqual(
      Buffer.from([0, 255, 1]),
    );
    const [row] = await driver.reader.all(sql, []);
    expect(row?.n).toBe(Number.MAX_SAFE_INTEGER);
    expect(Buffer.from(row?.v as ArrayBuffer)).toEqual(Buffer.from([0, 255, 1]));
  });

  it('refuses to open a database of a newer program, and leaves it as it is', async () => {
    await driver.transaction((sql) =>
      sql.run('INSERT INTO schema_version (version, name, applied_at) VALUES (?, ?, ?)', [
        MIGRATIONS.length + 1,
        'future',
        0,
      ]),
    );
    await expect(SqliteDriver.open(file)).rejects.toMatchObject({ code: 'STORE_VERSION' });
  });

  it('refuses work after close, finishes what was queued', async () => {
    const queued = insert('queued');
    const closing = driver.close();
    await queued;
    await closing;
    await expect(insert('late')).rejects.toMatchObject({ code: 'STORE_FAILED' });
    const again = new Database(file);
    expect(again.prepare('SELECT count(*) AS n FROM t').get([])).toMatchObject({ n: 1 });
    again.close();
  });
});

describe('migrations', () => {
  it('are numbered without gaps', () => {
    expect(MIGRATIONS.map(({ version }) => version)).toEqual(MIGRATIONS.map((_one, at) => at + 1));
  });

  it('are each applied once, in a transaction of their own', async () => {
    const done: string[] = [];
    let version = 1;
    const target = {
      execute: async (sql: string) => {
        if (sql === 'bad') throw new Error('bad');
        done.push(sql);
      },
      version: async () => version,
      record: async (migration: { version: number }) => {
        version = migration.version;
      },
      atomically: async (fn: () => Promise<void>) => {
        done.push('begin');
        await fn();
        done.push('commit');
      },
    };
    const steps = [1, 2, 3].map((n) => ({ version: n, name: `${n}`, statements: [`s${n}`] }));
    expect(await migrate(target, steps)).toBe(2);
    expect(done).toEqual(['begin', 's2', 'commit', 'begin', 's3', 'commit']);
    expect(await migrate(target, steps)).toBe(0);
    const broken = [...steps, { version: 4, name: '4', statements: ['s4', 'bad'] }];
    await expect(migrate(target, broken)).rejects.toThrow('bad');
    expect(version).toBe(3);
  });
});
