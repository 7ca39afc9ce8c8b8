/** The store: group commit, savepoints, migrations, full and damaged databases, values that may be bound. */
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encode } from '@msgpack/msgpack';
import fc from 'fast-check';
import Database from 'libsql';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MIGRATIONS, migrate, NEWEST } from '../../../keyserver/storage/migrations/index.js';
import type { SqlValue } from '../../../keyserver/storage/sql.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { SqliteDriver } from '../../../keyserver/storage/sqlite.js';
import { parseId } from '../../../src/protocol/ids.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { itGroupsCommits } from './support/driver-contract.js';
import { TestSubnet } from './support/subnet.js';

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

  itGroupsCommits(
    () => driver,
    (commits) => expect(commits).toBe(1),
  );

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
        NEWEST + 1,
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

describe('a database from before generations', () => {
  it('has its pair keys renewed by age like any other', async () => {
    const [first] = MIGRATIONS;
    const database = new Database(':memory:');
    for (const sql of first?.statements ?? []) database.exec(sql);
    database
      .prepare(
        `INSERT INTO pair_keys (a, b, key, pw_id, reason, created_at, serial, asked_a, asked_b, changed)
         VALUES ('a', 'b', x'00', 1, 'first_request', 1000, 1, 1, 0, 1)`,
      )
      .run([]);
    for (const { statements } of MIGRATIONS.slice(1)) {
      for (const sql of statements) database.exec(sql);
    }
    const row = database.prepare('SELECT due_at, next_pw_id FROM pair_keys').get([]);
    expect(row).toMatchObject({ due_at: 3_601_000, next_pw_id: 0 });
    database.close();
  });
});

describe('rows that somebody else wrote', () => {
  it('give a member or STORE_FAILED, and an audit entry in any case', async () => {
    const subnet = await TestSubnet.start();
    try {
      await subnet.member('alice');
      const store = await openStore(subnet.driver);
      const set = (ips: string, endpoints: Buffer): Promise<number> =>
        subnet.driver.transaction((sql) =>
          sql.run("UPDATE members SET ips = ?, endpoints = ? WHERE id = 'alice'", [ips, endpoints]),
        );
      const bomb = Buffer.from('dd7fffffff', 'hex');
      const ips = fc.oneof(fc.json(), fc.string(), fc.constant('["192.0.2.1"]'));
      const endpoints = fc.oneof(fc.uint8Array({ maxLength: 60 }), fc.constant(bomb));
      await fc.assert(
        fc.asyncProperty(ips, endpoints, async (text, bytes) => {
          await set(text.replaceAll('\0', ''), Buffer.from(bytes));
          try {
            await store.member(parseId('alice'));
          } catch (thrown) {
            expect(thrown).toMatchObject({ code: 'STORE_FAILED' });
          }
        }),
        { numRuns: 100 },
      );
      await set('["192.0.2.1"]', Buffer.from(encode([{ ip: Buffer.alloc(4, 1), port: 7 }])));
      const alice = await store.member(parseId('alice'));
      expect(alice).toMatchObject({ ips: ['192.0.2.1'], endpoints: [{ port: 7 }] });

      await subnet.driver.transaction((sql) => sql.run("UPDATE audit SET detail = '{'", []));
      const admin = subnet.admin();
      const { rows } = await admin.request(
        { t: 'list', what: 'audit' },
        { parse: (answer) => answerSchemas.list.parse(answer) },
      );
      expect(rows.map((row) => row.detail)).toContain('{');
    } finally {
      await subnet.close();
    }
  });
});

describe('a database from before IP addresses were bound', () => {
  it('has those bound that grants named one by one, for the first of a member’s addresses', () => {
    const database = new Database(':memory:');
    const step = (from: number, to: number): void => {
      for (const { statements } of MIGRATIONS.slice(from, to)) {
        for (const sql of statements) database.exec(sql);
      }
    };
    step(0, 4);
    database.exec(`UPDATE counters SET value = 70 WHERE name = 'change'`);
    const insert = (table: string, row: Readonly<Record<string, string | number | Buffer>>) =>
      database
        .prepare(
          `INSERT INTO ${table} (${Object.keys(row).join(', ')}) VALUES (${Object.keys(row).map(() => '?')})`,
        )
        .run(...Object.values(row));
    const blank = { role: 'host', state: 'active', ips: '[]', online: 0, endpoints: Buffer.of() };
    const keys = { membership: Buffer.of(), membership_signature: Buffer.of() };
    for (const [at, id] of ['alice', 'bob', 'eve'].entries()) {
      const own = {
        identity_digest: Buffer.of(at),
        token_id: Buffer.of(at),
        channel: Buffer.of(at),
      };
      const counts = { serial: at, group_asked: 0, enrolled_at: 1, changed: at };
      insert('members', { id, ...blank, ...keys, ...own, ...counts });
    }
    for (const [serial, [mac, member, kind]] of [
      ['02:00:00:00:00:09', 'alice', 'tombstone'],
      ['02:00:00:00:00:02', 'alice', 'own'],
      ['02:00:00:00:00:01', 'alice', 'own'],
      ['02:00:00:00:00:03', 'bob', 'own'],
    ].entries()) {
      const row = { mac: mac ?? '', slot: '', member: member ?? '', kind: kind ?? '' };
      insert('macs', { ...row, serial, seen_at: 1, changed: serial });
    }
    for (const [prefix, slot, member] of [
      ['10.0.0.1', '', 'alice'],
      ['10.1.0.0/16', '', 'alice'],
      ['10.0.0.2', 'alice', 'alice'],
      ['10.0.0.2', 'bob', 'bob'],
      ['10.0.0.3', '', 'eve'],
    ]) {
      const row = { prefix: prefix ?? '', slot: slot ?? '', member: member ?? '' };
      insert('ip_bindings', { ...row, source: 'granted', bound_at: 5 });
    }
    step(4, 5);
    const rows = database.prepare('SELECT * FROM bindings ORDER BY ip').all();
    const alice = { mac: '02:00:00:00:00:02', member: 'alice', kind: 'granted', since: 5 };
    expect(rows).toMatchObject([
      { ip: '10.0.0.1', ...alice, serial: 71, changed: 71 },
      { ip: '10.0.0.2', ...alice, serial: 72, changed: 72 },
    ]);
    const counter = database.prepare(`SELECT value FROM counters WHERE name = 'change'`).get();
    expect(counter).toMatchObject({ value: 72 });
  });
});
