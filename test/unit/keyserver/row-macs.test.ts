/**
 * Rows under MACs (docs/protocol.md 11.9): whatever somebody does to the rows of a real database, who has all that was ever in it and not
 * the row key, is found out, and nothing that he made of them is served as true. What the server itself does never is.
 */
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import Database from 'libsql';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { KeyVault } from '../../../keyserver/key-vault.js';
import { LocalDeks } from '../../../keyserver/kms/local-deks.js';
import type { RowFinding } from '../../../keyserver/storage/row-guard.js';
import { ROW_TABLES } from '../../../keyserver/storage/row-tables.js';
import { copyDatabase } from '../../../keyserver/storage/snapshot.js';
import { SqliteDriver } from '../../../keyserver/storage/sqlite.js';
import { acceptRows, rowMarkOf, unlock } from '../../../keyserver/storage/unlock.js';
import { parseId } from '../../../src/protocol/ids.js';
import { NOT_LIMITED } from '../../../src/protocol/kms-messages.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { PairwireError } from '../../../src/runtime/errors.js';
import { createLogger } from '../../../src/runtime/log.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, TestSubnet } from './support/subnet.js';

type Values = Record<string, unknown>;

/** Of the tries with changed rows, so many are looked at in steps too, which takes longer. */
const STEPS_EVERY = 4;
/** So long a check rests after each of its steps, as a share of that. */
const A_LITTLE = 0.001;

function spelt({ table, name, why }: RowFinding): string {
  return `${table} ${name} ${why}`;
}

/** A file of SQLite, as somebody has it who asks no key server. */
class Thief {
  readonly database: Database.Database;

  constructor(file: string) {
    this.database = new Database(file);
    this.database.exec('PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF');
  }

  rows(sql: string): Values[] {
    return this.database.prepare(sql).all([]) as Values[];
  }

  /** Puts a row into a table, in place of the one with its key. */
  put(table: string, row: Values): void {
    const names = Object.keys(row);
    const values = names.map((name) => plain(row[name]));
    this.database
      .prepare(
        `INSERT OR REPLACE INTO ${table} (${names.join(', ')}) VALUES (${names.map(() => '?').join(', ')})`,
      )
      .run(values);
  }

  remove(table: string, row: Values, key: readonly string[]): void {
    this.database
      .prepare(`DELETE FROM ${table} WHERE ${key.map((name) => `${name} = ?`).join(' AND ')}`)
      .run(key.map((name) => plain(row[name])));
  }

  /** Everything that has a MAC, and the MACs. */
  all(): string {
    const tables = ROW_TABLES.map(
      ({ table, key, columns, where }) =>
        `SELECT ${columns.map(([name]) => name).join(', ')} FROM ${table} ${where === undefined ? '' : `WHERE ${where}`} ORDER BY ${key.join(', ')}`,
    );
    const sums = 'SELECT version, sealed FROM row_head';
    return JSON.stringify(
      [...tables, 'SELECT * FROM row_macs ORDER BY tab, name', sums].map((sql) => this.rows(sql)),
      (_name, value: unknown) =>
        value instanceof ArrayBuffer ? Buffer.from(value).toString('hex') : value,
    );
  }

  close(): void {
    this.database.close();
  }
}

function plain(value: unknown): unknown {
  return value instanceof ArrayBuffer ? Buffer.from(value) : value;
}

const nameOf = (row: Values, key: readonly string[]): string =>
  key
    .map((one) =>
      plain(row[one]) instanceof Buffer
        ? (plain(row[one]) as Buffer).toString('hex')
        : String(row[one]),
    )
    .join('\n');

describe.skipIf(ON_POSTGRES)(
  'rows that somebody changes who has the database and not the row key',
  () => {
    let subnet: TestSubnet;
    let folder: string;
    /** What was in the database at several moments, the newest last. */
    const copies: string[] = [];
    let tries = 0;

    /** A copy of the database as a key server left it when it ended. */
    async function keep(): Promise<void> {
      await subnet.stopServer();
      const copy = join(folder, `${copies.length}.db`);
      copyDatabase(subnet.paths.database, copy);
      copies.push(copy);
      await subnet.startServer();
    }

    beforeAll(async () => {
      folder = mkdtempSync(join(tmpdir(), 'pairwire-rows-'));
      subnet = await TestSubnet.start();
      for (const id of ['alice', 'bob']) await subnet.member(id, { ips: [`10.0.0.${id.length}`] });
      await keep();
      await subnet.member('carol', { ips: ['10.0.0.9'] });
      await subnet.member('dave', { role: 'plain' });
      await keep();
      await subnet
        .admin()
        .request({ t: 'revoke', member: 'bob' }, { parse: (it) => answerSchemas.revoke.parse(it) });
      await keep();
    });
    afterAll(async () => {
      await subnet.close();
      rmSync(folder, { recursive: true, force: true });
    });

    /** What a server finds that starts on a copy of the newest database in which `change` was done. */
    async function found(
      change: (thief: Thief) => void,
    ): Promise<{ changed: boolean; findings: readonly RowFinding[] }> {
      tries += 1;
      const file = join(folder, `tried-${tries}.db`);
      copyFileSync(copies.at(-1) ?? '', file);
      const thief = new Thief(file);
      const before = thief.all();
      change(thief);
      const changed = thief.all() !== before;
      thief.close();
      const driver = await SqliteDriver.open(file);
      try {
        const service = LocalDeks.load(subnet.paths.kms);
        const markFile = join(folder, 'store.sealed');
        const { rows } = await unlock(driver, { service, markFile });
        const findings = (await rows?.check()) ?? [];
        if (tries % STEPS_EVERY === 0) {
          // The rounds of a server that runs find the same, but for what is seen once, by the version that was noted before.
          const another = await unlock(driver, { service, markFile });
          const inSteps = (await another.rows?.check(A_LITTLE)) ?? [];
          const lasting = findings.filter(({ why }) => why !== 'rolled back');
          expect(new Set(inSteps.map(spelt))).toEqual(new Set(lasting.map(spelt)));
        }
        return { changed, findings };
      } catch (thrown) {
        if (!(thrown instanceof PairwireError) || thrown.code !== 'ROW_BROKEN') throw thrown;
        return { changed, findings: [{ table: '', name: '', why: 'changed' }] };
      } finally {
        await driver.close();
      }
    }

    it('nothing is found in what the server has left', async () => {
      expect(await found(() => undefined)).toEqual({ changed: false, findings: [] });
    });

    it('a random edit, swap, removal, copy or older row, with or without its MAC and the sums, is found', async () => {
      const step = fc.record({
        table: fc.constantFrom(...ROW_TABLES),
        row: fc.nat({ max: 30 }),
        other: fc.nat({ max: 30 }),
        column: fc.nat({ max: 12 }),
        from: fc.nat({ max: 1 }),
        withMac: fc.boolean(),
        how: fc.constantFrom(
          'edit',
          'swap',
          'remove',
          'remove',
          'older',
          'older',
          'table',
          'sums',
          'mac',
        ),
      });
      let changes = 0;
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 3 }), async (steps) => {
          const { changed, findings } = await found((thief) => {
            for (const { table, row: at, other, column, from, withMac, how } of steps) {
              const old = new Thief(copies[from] ?? '');
              const { table: tab, key, columns, where } = table;
              const only = where === undefined ? '' : `WHERE ${where}`;
              const rows = thief.rows(`SELECT * FROM ${tab} ${only}`);
              const before = old.rows(`SELECT * FROM ${tab} ${only}`);
              const [row, second, older] = [
                rows[at % rows.length],
                rows[other % rows.length],
                before[at % before.length],
              ];
              const [name = ''] = columns[column % columns.length] ?? [];
              const macOf = (one: Thief, of: Values): Values | undefined =>
                one
                  .rows('SELECT * FROM row_macs')
                  .find((mac) => mac.tab === tab && mac.name === nameOf(of, key));
              const dropMac = (of: Values): void => {
                const mac = macOf(thief, of);
                if (mac !== undefined) thief.remove('row_macs', mac, ['tab', 'name']);
              };
              if (how === 'edit' && row !== undefined) {
                const value = row[name];
                thief.remove(tab, row, key);
                thief.put(tab, { ...row, [name]: typeof value === 'number' ? value + 1 : 'zzz' });
              } else if (how === 'swap' && row !== undefined && second !== undefined) {
                for (const one of [row, second]) thief.remove(tab, one, key);
                thief.put(tab, { ...row, [name]: second[name] });
                thief.put(tab, { ...second, [name]: row[name] });
              } else if (how === 'remove' && row !== undefined) {
                thief.remove(tab, row, key);
                if (withMac) dropMac(row);
              } else if (how === 'older' && older !== undefined) {
                const mac = macOf(old, older);
                thief.put(tab, older);
                if (withMac && mac !== undefined) thief.put('row_macs', mac);
              } else if (how === 'table') {
                for (const one of rows) {
                  thief.remove(tab, one, key);
                  dropMac(one);
                }
                for (const one of before) {
                  const mac = macOf(old, one);
                  thief.put(tab, one);
                  if (mac !== undefined) thief.put('row_macs', mac);
                }
              } else if (how === 'sums') {
                for (const one of old.rows('SELECT * FROM row_head')) thief.put('row_head', one);
              } else if (how === 'mac' && row !== undefined) {
                const mac = macOf(thief, row);
                if (mac !== undefined)
                  thief.put('row_macs', { ...mac, version: Number(mac.version) + 1 });
              }
              old.close();
            }
          });
          if (!changed) return;
          changes += 1;
          expect(findings).not.toEqual([]);
        }),
        { numRuns: 60 },
      );
      expect(changes).toBeGreaterThan(30);
    }, 120_000);

    it('all tables and MACs of before, under the sums of now or of then: found by the sums, or by the noted version', async () => {
      const everything = (withSums: boolean) => (thief: Thief) => {
        const old = new Thief(copies[1] ?? '');
        const tables = [
          ...ROW_TABLES.map(({ table, where }) => [table, where] as const),
          ['row_macs', undefined] as const,
        ];
        for (const [table, where] of tables) {
          const only = where === undefined ? '' : `WHERE ${where}`;
          thief.database.exec(`DELETE FROM ${table} ${only}`);
          for (const row of old.rows(`SELECT * FROM ${table} ${only}`)) thief.put(table, row);
        }
        if (withSums)
          for (const row of old.rows('SELECT * FROM row_head')) thief.put('row_head', row);
        old.close();
      };
      const one = await found(everything(false));
      expect(one.findings).toContainEqual({
        table: 'row_macs',
        name: expect.any(String),
        why: 'older',
      });
      const all = await found(everything(true));
      expect(all.findings).toEqual([{ table: 'row_head', name: '', why: 'rolled back' }]);
    });

    it('no MACs any more: the server does not start', async () => {
      await expect(
        found((thief) => {
          for (const table of ['row_macs', 'row_head', 'row_keys'])
            thief.database.exec(`DELETE FROM ${table}`);
        }),
      ).resolves.toEqual({ changed: true, findings: [{ table: '', name: '', why: 'changed' }] });
    });
  },
);

describe('a key server on rows that somebody has changed', () => {
  let subnet: TestSubnet;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    for (const id of ['alice', 'bob', 'carol']) await subnet.member(id);
  });
  afterEach(() => subnet.close());

  const revoke = (member: string) =>
    subnet
      .admin()
      .request({ t: 'revoke', member }, { parse: (it) => answerSchemas.revoke.parse(it) });
  const broken = async () =>
    (await subnet.audit())
      .filter(({ action }) => action === 'row_broken')
      .map(({ detail }) => detail);
  /** Writes to the database beside the server. */
  const meddle = (...statements: readonly string[]): Promise<unknown> =>
    subnet.driver.transaction(async (sql) => {
      for (const one of statements) await sql.run(one, []);
    });
  async function restarted(...statements: readonly string[]): Promise<void> {
    subnet.stopClients();
    await meddle(...statements);
    await subnet.stopServer();
    await subnet.startServer();
  }

  it('has a revoked member revoked, though its row says otherwise and its revocation is gone, and serves all others', async () => {
    await revoke('carol');
    await restarted(
      "DELETE FROM revocations WHERE member = 'carol'",
      "UPDATE members SET state = 'active' WHERE id = 'carol'",
    );
    expect(await subnet.store.member(parseId('carol'))).toBeUndefined();
    expect((await subnet.store.member(parseId('alice')))?.state).toBe('active');
    expect(await broken()).toEqual(
      expect.arrayContaining([
        { table: 'members', row: 'carol', why: 'changed' },
        { table: 'revocations', row: '1', why: 'taken away' },
      ]),
    );
    expect(await subnet.server.metrics.registry.metrics()).toContain(
      'pairwire_keyserver_broken_rows 2',
    );
    // Revoked anew, it is as it should be; what was taken away is told of until the operator has looked.
    await revoke('carol');
    expect((await subnet.store.member(parseId('carol')))?.state).toBe('revoked');
    acceptRows(rowMarkOf(subnet.paths.sealMark));
    await subnet.stopServer();
    await subnet.startServer();
    expect(subnet.store.rows?.findings).toEqual([]);
    expect((await subnet.store.member(parseId('carol')))?.state).toBe('revoked');
  });

  it('counts on where rows are accepted, also above what another machine of the database has noted', async () => {
    await revoke('carol');
    await restarted();
    const before = subnet.store.rows?.version ?? 0;
    const mark = rowMarkOf(subnet.paths.sealMark);
    await subnet.stopServer();
    const noted = readFileSync(mark);
    // This machine has stood by for long when its operator accepts the rows.
    writeFileSync(mark, 'accept 1\n');
    await subnet.startServer();
    expect(subnet.store.rows?.version).toBeGreaterThan(before);
    await subnet.stopServer();
    writeFileSync(mark, noted);
    await subnet.startServer();
    expect(subnet.store.rows?.findings).toEqual([]);
  });

  it('has it revoked also if its old rows are put back with their MACs, before and after a restart', async () => {
    const kept = ['members', 'row_macs', 'boots', 'macs'] as const;
    await meddle(...kept.map((table) => `CREATE TABLE kept_${table} AS SELECT * FROM ${table}`));
    await revoke('carol');
    const back = [
      "DELETE FROM revocations WHERE member = 'carol'",
      "DELETE FROM row_macs WHERE tab = 'revocations'",
      "DELETE FROM macs WHERE member = 'carol'",
      "INSERT INTO macs SELECT * FROM kept_macs WHERE member = 'carol'",
      `UPDATE members SET state = 'active' WHERE id = 'carol'`,
      "DELETE FROM row_macs WHERE name IN (SELECT name FROM kept_row_macs WHERE tab = 'members' OR tab = 'macs') AND tab IN ('members', 'macs')",
      "INSERT INTO row_macs SELECT * FROM kept_row_macs WHERE tab IN ('members', 'macs')",
    ];
    await meddle(...back);
    expect(await subnet.store.member(parseId('carol'))).toBeUndefined();
    await restarted();
    expect(await subnet.store.member(parseId('carol'))).toBeUndefined();
    expect((await broken()).length).toBeGreaterThan(0);
    expect((await subnet.store.member(parseId('alice')))?.state).toBe('active');
  });

  it('gives nobody rights or addresses that were written into its row', async () => {
    await meddle(
      "UPDATE members SET role = 'operator' WHERE id = 'bob'",
      "UPDATE macs SET member = 'bob' WHERE member = 'carol'",
    );
    await subnet.store.write((tx) => tx.redatePairs(0));
    expect(await subnet.store.member(parseId('bob'))).toBeUndefined();
    const mac = defaultMac(SUBNET, parseId('carol'));
    expect(await subnet.store.memberByMac(mac)).toBeUndefined();
    // Nor is that mended by a write that comes along.
    await subnet.store.write(async (tx) => {
      await tx.touchMember(parseId('bob'), await tx.nextChange());
    });
    expect(await subnet.store.member(parseId('bob'))).toBeUndefined();
    expect(await subnet.store.rows?.check()).toEqual(
      expect.arrayContaining([
        { table: 'members', name: 'bob', why: 'changed' },
        { table: 'macs', name: `${mac}\n`, why: 'changed' },
      ]),
    );
  });

  it('takes a token once, though its count is gone', async () => {
    await meddle('DELETE FROM tokens_used');
    const [used] = await subnet.driver.reader.all('SELECT token_id FROM members WHERE id = ?', [
      'alice',
    ]);
    const tokenId = Buffer.from(used?.token_id as ArrayBuffer);
    const uses = await subnet.store.write((tx) => tx.tokenUses(tokenId));
    expect(uses).toBe(Number.MAX_SAFE_INTEGER);
  });

  it('gives the rows of a database from before their MACs, and has them under another DEK as well', async () => {
    await restarted('DELETE FROM row_macs', 'DELETE FROM row_head', 'DELETE FROM row_keys').then(
      () => expect.unreachable('it started without its MACs'),
      (thrown: unknown) => expect(thrown).toMatchObject({ code: 'ROW_BROKEN' }),
    );
    rmSync(rowMarkOf(subnet.paths.sealMark));
    await subnet.startServer();
    expect(subnet.store.rows?.findings).toEqual([]);
    const service = LocalDeks.load(subnet.paths.kms);
    const ring = await unlock(subnet.driver, { service, markFile: subnet.paths.sealMark });
    const kms = {
      connected: true,
      make: () => service.make(),
      open: service.open.bind(service),
      status: () =>
        Promise.resolve({
          generation: 1,
          generations: [1],
          inToken: [],
          ...{ limited: 0, limitedBy: NOT_LIMITED, auditBytes: 0, auditFiles: 0, auditGone: 0 },
        }),
      rotateRoot: () => Promise.resolve(1),
    };
    const vault = new KeyVault(subnet.driver, ring, kms, {
      log: createLogger('test', { level: 'silent' }),
    });
    await vault.rotate(false);
    await expect.poll(async () => (await vault.status()).deks, { timeout: 10_000 }).toBe(1);
    await vault.close();
    await restarted();
    expect(subnet.store.rows?.findings).toEqual([]);
  });
});
