/** PostgreSQL as a driver: group commit, the lease and its fence, lost connections and answers, TLS and passwords. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { MIGRATIONS } from '../../keyserver/storage/migrations/index.js';
import { PostgresDriver } from '../../keyserver/storage/postgres.js';
import { postgresTarget } from '../../keyserver/storage/postgres-target.js';
import type { SqlValue } from '../../keyserver/storage/sql.js';
import { itGroupsCommits } from '../unit/keyserver/support/driver-contract.js';
import { PostgresServer } from '../unit/keyserver/support/postgres.js';
import { sleep, until } from '../unit/keyserver/support/subnet.js';

const PATIENCE_MS = 60_000;

let server: PostgresServer;
beforeAll(async () => {
  server = await PostgresServer.start();
});
afterAll(() => server.remove());

const opened: PostgresDriver[] = [];
afterEach(async () => {
  for (const driver of opened.splice(0)) await driver.close();
});

type Options = Parameters<typeof PostgresDriver.open>[1];

async function open(url: string, options: Options = {}): Promise<PostgresDriver> {
  const driver = await PostgresDriver.open(postgresTarget(url, undefined), options);
  opened.push(driver);
  return driver;
}

function hold(driver: PostgresDriver): Promise<boolean> {
  return driver.waitForLease(AbortSignal.timeout(PATIENCE_MS));
}

describe('PostgreSQL driver', () => {
  let url: string;
  let driver: PostgresDriver;

  beforeEach(async () => {
    url = await server.database();
    driver = await open(url, { create: true });
    await driver.transaction((sql) => sql.run('CREATE TABLE t (k TEXT PRIMARY KEY, v BYTEA)', []));
  });

  const insertBy = (by: PostgresDriver, k: string, v: SqlValue = Buffer.from(k)): Promise<number> =>
    by.transaction((sql) => sql.run('INSERT INTO t (k, v) VALUES (?, ?)', [k, v]));
  const insert = (k: string, v?: SqlValue): Promise<number> => insertBy(driver, k, v);
  const count = async (): Promise<unknown> =>
    (await driver.reader.get('SELECT count(*) AS n FROM t', []))?.n;

  itGroupsCommits(
    () => driver,
    (commits) => expect(commits).toBeLessThanOrEqual(4),
  );

  it('binds only values of known types, and gives back bytes and large numbers as they were', async () => {
    for (const value of [{}, [], 1.5, Number.NaN, true, new Uint8Array(4), new Date()]) {
      await expect(insert('odd', value as unknown as SqlValue)).rejects.toMatchObject({
        code: 'STORE_FAILED',
      });
    }
    await insert('bytes', Buffer.from([0, 255, 1]));
    const row = await driver.reader.get('SELECT v, 9007199254740991 AS n FROM t', []);
    expect(row).toEqual({ v: Buffer.from([0, 255, 1]), n: Number.MAX_SAFE_INTEGER });
  });

  it('has ids in the order of their bytes, whatever the language of the database', async () => {
    const rows = await driver.reader.all(
      "SELECT collation_name AS c FROM information_schema.columns WHERE table_name = 'members' AND column_name = 'id'",
      [],
    );
    expect(rows).toEqual([{ c: 'C' }]);
  });

  it('refuses a database without a subnet, one that has one at init, and one of a newer program', async () => {
    await expect(open(await server.database())).rejects.toMatchObject({
      code: 'STORE_FAILED',
      hint: expect.stringContaining('pairwire init') as string,
    });
    await driver.transaction((sql) =>
      sql.run('INSERT INTO meta (name, value) VALUES (?, ?)', ['epoch', Buffer.of(1)]),
    );
    await expect(open(url, { create: true })).rejects.toMatchObject({ code: 'FILE_EXISTS' });
    await driver.transaction((sql) =>
      sql.run('INSERT INTO schema_version (version, name, applied_at) VALUES (?, ?, ?)', [
        MIGRATIONS.length + 1,
        'future',
        0,
      ]),
    );
    await driver.close();
    await expect(open(url)).rejects.toMatchObject({ code: 'STORE_VERSION' });
  });

  it('refuses work after close, finishes what was queued', async () => {
    const queued = insert('queued');
    const closing = driver.close();
    await queued;
    await closing;
    await expect(insert('late')).rejects.toMatchObject({ code: 'STORE_FAILED' });
  });

  describe('the lease', () => {
    it('lets one write; another is told who, and has it as soon as the first is closed', async () => {
      await hold(driver);
      const other = await open(url);
      await expect(insertBy(other, 'x')).rejects.toMatchObject({
        code: 'STORE_FAILED',
        hint: expect.stringContaining(`:${process.pid}:`) as string,
      });
      expect(other.mayCache()).toBe(false);
      const waiting = hold(other);
      await driver.close();
      expect(await waiting).toBe(true);
      await insertBy(other, 'x');
      expect(other.mayCache()).toBe(true);
    });

    it('is renewed, so that nobody takes it from one that lives', async () => {
      await hold(driver);
      const other = await open(url);
      expect(await other.waitForLease(AbortSignal.timeout(4_000))).toBe(false);
      expect(driver.mayCache()).toBe(true);
    });

    it('passes over one that sleeps, whose writes are refused from then on, all of them', async () => {
      await driver.takeLease();
      const other = await open(url);
      // It is not renewed, as by a machine that stands still.
      expect(await hold(other)).toBe(true);
      await insertBy(other, 'by the second');
      const late = await Promise.allSettled([insert('late'), insert('later')]);
      for (const result of late) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'STORE_FAILED' } });
      }
      expect(await driver.lost).toContain('another key server');
      expect(driver.mayCache()).toBe(false);
      await expect(insert('never')).rejects.toMatchObject({ code: 'STORE_FAILED' });
      expect(await count()).toBe(1);
    });

    it('is not taken in the middle of a transaction, however long', async () => {
      await hold(driver);
      const other = await open(url);
      const stop = new AbortController();
      const waiting = other.waitForLease(stop.signal);
      await driver.transaction(async (sql) => {
        await sql.run('INSERT INTO t (k) VALUES (?)', ['slow']);
        // What others see of the lease has run out long before the end. The server ends a transaction that is silent.
        for (let at = 0; at < 25; at += 1) {
          await sleep(100);
          await sql.get('SELECT 1', []);
        }
        expect(other.term).toBeUndefined();
      });
      // The commit has renewed it, and what was under way is there.
      await driver.prove();
      await sleep(300);
      expect(other.term).toBeUndefined();
      expect(await count()).toBe(1);
      stop.abort();
      expect(await waiting).toBe(false);
    });

    it('does not hang on the clock of the database, which may be set', async () => {
      const other = await open(url);
      await hold(driver);
      const set = (until: string) =>
        server.query(new URL(url).pathname.slice(1), `UPDATE writer SET until = '${until}'`);
      // Set forward: it has run out at every look of the other.
      const stop = new AbortController();
      const waiting = other.waitForLease(stop.signal);
      for (let at = 0; at < 20; at += 1) {
        await set('-infinity');
        await sleep(100);
      }
      expect(other.term).toBeUndefined();
      stop.abort();
      await waiting;
      await driver.close();
      // Set back, when the holder is gone without a word: it seems to last for years.
      const third = await open(url);
      await third.takeLease();
      await set('infinity');
      const begin = performance.now();
      expect(await hold(other)).toBe(true);
      expect(performance.now() - begin).toBeLessThan(PATIENCE_MS / 2);
    });

    it('is proved by one that has it, also after a pause; not by one that was passed over', async () => {
      await driver.takeLease();
      await sleep(1_200);
      expect(driver.mayCache()).toBe(false);
      await driver.prove();
      expect(driver.mayCache()).toBe(true);
      const other = await open(url);
      expect(await hold(other)).toBe(true);
      await expect(driver.prove()).rejects.toMatchObject({ code: 'STORE_FAILED' });
      await other.prove();
    });
  });
});

describe('a PostgreSQL server that ends', () => {
  it('and starts again: writes are refused meanwhile, go on by themselves, and none is lost', async () => {
    const own = await PostgresServer.start();
    try {
      // However long this machine takes to start it: what happens after five seconds is the next test.
      const giveUpMs = 10 * PATIENCE_MS;
      const driver = await open(await own.database(), { create: true, giveUpMs });
      await driver.transaction((sql) => sql.run('CREATE TABLE t (k BIGINT PRIMARY KEY)', []));
      await hold(driver);
      const kept: number[] = [];
      const refused: unknown[] = [];
      let running = true;
      const load = (async () => {
        for (let k = 0; running; k += 1) {
          try {
            await driver.transaction((sql) => sql.run('INSERT INTO t (k) VALUES (?)', [k]));
            kept.push(k);
          } catch (thrown) {
            refused.push(thrown);
            await sleep(20);
          }
        }
      })();
      await until(() => kept.length > 10, 'the first writes', PATIENCE_MS);
      await own.halt('immediate');
      await until(() => refused.length > 0, 'a write that is refused', PATIENCE_MS);
      const before = kept.length;
      await own.run();
      await until(() => kept.length > before + 10, 'writes after it', PATIENCE_MS);
      running = false;
      await load;
      for (const thrown of refused) {
        expect(thrown).toMatchObject({
          code: 'STORE_FAILED',
          hint: expect.stringContaining('by itself') as string,
        });
      }
      const rows = await driver.reader.all('SELECT k FROM t', []);
      const there = new Set(rows.map(({ k }) => k));
      expect(kept.filter((k) => !there.has(k))).toEqual([]);
    } finally {
      for (const driver of opened.splice(0)) await driver.close();
      await own.remove();
    }
  });

  it('for good: who had the lease says so within seconds', async () => {
    const own = await PostgresServer.start();
    const driver = await open(await own.database(), { create: true });
    await hold(driver);
    await own.remove();
    expect(await driver.lost).toContain('has not answered');
    await expect(driver.reader.get('SELECT 1', [])).rejects.toMatchObject({ code: 'STORE_FAILED' });
  });
});

describe('a PostgreSQL server that takes too long', () => {
  it('ends a statement that goes on for ever, and the connection goes on', async () => {
    const driver = await open(await server.database(), { create: true });
    await expect(driver.reader.get('SELECT pg_sleep(600)', [])).rejects.toMatchObject({
      code: 'STORE_FAILED',
      hint: expect.stringContaining('took too long') as string,
    });
    await expect(
      driver.transaction((sql) => sql.get('SELECT pg_sleep(600)', [])),
    ).rejects.toMatchObject({ code: 'STORE_FAILED' });
    expect(await driver.transaction((sql) => sql.get('SELECT 1 AS one', []))).toEqual({ one: 1 });
  });

  it('acknowledges no commit that its synchronous standby does not have', async () => {
    const own = await PostgresServer.start();
    try {
      const driver = await open(await own.database(), { create: true });
      await driver.transaction((sql) => sql.run('CREATE TABLE t (k TEXT PRIMARY KEY)', []));
      const insert = (k: string): Promise<number> =>
        driver.transaction((sql) => sql.run('INSERT INTO t (k) VALUES (?)', [k]));
      const standby = async (name: string): Promise<void> => {
        await own.query('postgres', `ALTER SYSTEM SET synchronous_standby_names = '${name}'`);
        await own.query('postgres', 'SELECT pg_reload_conf()');
        await until(
          async () =>
            (await own.query('postgres', 'SHOW synchronous_standby_names'))[0]
              ?.synchronous_standby_names === name,
          'the setting to hold',
          PATIENCE_MS,
        );
      };
      await standby('nobody');
      // The server would end the wait by a time limit of its own, and say that it has committed.
      await expect(insert('alone')).rejects.toMatchObject({ code: 'STORE_FAILED' });
      await standby('');
      await until(
        () =>
          insert('with it').then(
            () => true,
            () => false,
          ),
        'a write after it',
        PATIENCE_MS,
      );
    } finally {
      for (const driver of opened.splice(0)) await driver.close();
      await own.remove();
    }
  });
});

describe('a line to PostgreSQL that is cut or silent', () => {
  let proxy: Server;
  const lines = new Set<Socket>();
  let silent = false;
  let cut: 'nothing' | 'before' | 'after' = 'nothing';
  let driver: PostgresDriver;

  beforeEach(async () => {
    cut = 'nothing';
    silent = false;
    proxy = createServer((near) => bridge(near, connect(server.port, '127.0.0.1')));
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const address = proxy.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const name = new URL(await server.database()).pathname;
    driver = await open(`postgres://tester@127.0.0.1:${port}${name}?sslmode=disable`, {
      create: true,
      statementMs: 2_000,
    });
    await driver.transaction((sql) => sql.run('CREATE TABLE t (k TEXT PRIMARY KEY)', []));
  });
  afterEach(async () => {
    silent = false;
    await driver.close();
    await new Promise((resolve) => proxy.close(resolve));
  });

  /** Passes bytes on, unless it is silent; the next COMMIT cuts the line as `cut` says. */
  function bridge(near: Socket, far: Socket): void {
    lines.add(near);
    near.on('close', () => lines.delete(near));
    near.on('error', () => far.destroy());
    far.on('error', () => near.destroy());
    near.on('close', () => far.end());
    far.on('close', () => near.destroy());
    far.on('data', (bytes) => {
      if (!silent) near.write(bytes);
    });
    near.on('data', (bytes) => {
      if (silent) return;
      if (!bytes.includes('COMMIT') || cut === 'nothing') {
        far.write(bytes);
        return;
      }
      const how = cut;
      cut = 'nothing';
      if (how === 'after') far.write(bytes);
      near.destroy();
    });
  }

  const insert = (k: string): Promise<number> =>
    driver.transaction((sql) => sql.run('INSERT INTO t (k) VALUES (?)', [k]));
  const there = async (): Promise<unknown[]> =>
    (await driver.reader.all('SELECT k FROM t ORDER BY k', [])).map(({ k }) => k);

  it('whatever waits for an answer is refused in time, and what comes after it goes on', async () => {
    silent = true;
    const refused = await Promise.allSettled([
      ...['a', 'b'].map(insert),
      ...Array.from({ length: 10 }, there),
    ]);
    // By now some connections are gone; those that are made now are not answered either.
    refused.push(...(await Promise.allSettled([insert('c'), there()])));
    for (const result of refused) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'STORE_FAILED' } });
    }
    silent = false;
    await until(
      () =>
        insert('after').then(
          () => true,
          () => false,
        ),
      'a write after it',
      PATIENCE_MS,
    );
    expect(await there()).toEqual(['after']);
  });

  it('in the middle of a transaction: nothing of it is kept, whatever it does afterwards', async () => {
    const writing = driver.transaction(async (sql) => {
      await sql.run('INSERT INTO t (k) VALUES (?)', ['before']);
      for (const line of lines) line.destroy();
      for (const k of ['cut', 'after', 'long after']) {
        await sql.run('INSERT INTO t (k) VALUES (?)', [k]).catch(() => undefined);
      }
    });
    await expect(writing).rejects.toMatchObject({ code: 'STORE_FAILED' });
    expect(await insert('next')).toBe(1);
    expect(await there()).toEqual(['next']);
  });

  it('at a commit: what happened is acknowledged, what did not is refused', async () => {
    cut = 'after';
    expect(await insert('happened')).toBe(1);
    cut = 'before';
    await expect(insert('lost')).rejects.toMatchObject({ code: 'STORE_FAILED' });
    expect(await insert('next')).toBe(1);
    expect(await there()).toEqual(['happened', 'next']);
  });
});

describe('over a network', () => {
  let own: PostgresServer;
  let keys: string;
  let password: string;

  beforeAll(async () => {
    own = await PostgresServer.start();
    keys = mkdtempSync(join(tmpdir(), 'pairwire-tls-'));
    password = join(keys, 'password');
    writeFileSync(password, 'opensesame\n', { mode: 0o600 });
    const name = 'subjectAltName=IP:127.0.0.1,DNS:localhost';
    for (const [file, out] of [
      ['server', own.data],
      ['other', keys],
    ] as const) {
      const made = ['-keyout', join(out, `${file}.key`), '-out', join(out, `${file}.crt`)];
      const flags = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2'];
      const subject = ['-subj', '/CN=localhost', '-addext', name];
      execFileSync('openssl', [...flags, ...made, ...subject], { stdio: 'pipe' });
    }
    execFileSync('chown', ['--reference', own.data, join(own.data, 'server.key')]);
    chmodSync(join(own.data, 'server.key'), 0o600);
    writeFileSync(join(keys, 'server.crt'), readFileSync(join(own.data, 'server.crt')));
    await own.query('postgres', "CREATE ROLE pairwire LOGIN PASSWORD 'opensesame'");
    await own.query('postgres', 'CREATE DATABASE far OWNER pairwire');
    await own.halt('fast');
    writeFileSync(
      join(own.data, 'pg_hba.conf'),
      'local all all trust\nhostssl all pairwire 127.0.0.1/32 scram-sha-256\n',
    );
    writeFileSync(join(own.data, 'postgresql.auto.conf'), 'ssl = on\n');
    await own.run();
  });
  afterAll(async () => {
    await own.remove();
    rmSync(keys, { recursive: true, force: true });
  });

  const far = async (more: string, file: string = password): Promise<PostgresDriver> =>
    PostgresDriver.open(
      postgresTarget(`postgres://pairwire@127.0.0.1:${own.port}/far${more}`, file),
      { create: true },
    );

  it('it is TLS with the certificate of the host, and a password from a file', async () => {
    opened.push(await far(`?sslrootcert=${join(keys, 'server.crt')}`));
    const rows = await own.query(
      'far',
      'SELECT bool_and(ssl) AS all FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = $$pairwire$$',
    );
    expect(rows).toEqual([{ all: true }]);
  });

  it('a certificate of somebody else is refused, and no password is sent in clear or wrong', async () => {
    for (const more of ['', `?sslrootcert=${join(keys, 'other.crt')}`]) {
      await expect(far(more)).rejects.toMatchObject({
        code: 'STORE_FAILED',
        hint: expect.stringContaining('certificate') as string,
      });
    }
    await expect(far('?sslmode=disable')).rejects.toMatchObject({
      code: 'STORE_FAILED',
      hint: expect.stringContaining('pg_hba.conf') as string,
    });
    const wrong = join(keys, 'wrong');
    writeFileSync(wrong, 'guess\n', { mode: 0o600 });
    const refusal: unknown = await far(`?sslrootcert=${join(keys, 'server.crt')}`, wrong).catch(
      (thrown: unknown) => thrown,
    );
    expect(refusal).toMatchObject({ code: 'STORE_FAILED' });
    expect(String(refusal)).not.toContain('guess');
    chmodSync(wrong, 0o644);
    await expect(far('', wrong)).rejects.toMatchObject({ code: 'FILE_MODE' });
  });
});
