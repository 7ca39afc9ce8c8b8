/**
 * The store that tests of the key server run on: a file of SQLite, or with PAIRWIRE_TEST_STORE=postgres a database of
 * the PostgreSQL server whose URL is in PAIRWIRE_TEST_POSTGRES (postgres-setup.ts starts it).
 */
import { copyFileSync, existsSync, rmSync } from 'node:fs';
import Database from 'libsql';
import type { KeyServerPaths } from '../../../../keyserver/config.js';
import { LocalDeks } from '../../../../keyserver/kms/local-deks.js';
import type { KeyRing } from '../../../../keyserver/storage/key-ring.js';
import { openDatabase } from '../../../../keyserver/storage/open.js';
import { PostgresDriver } from '../../../../keyserver/storage/postgres.js';
import { isPostgres } from '../../../../keyserver/storage/postgres-target.js';
import type { SqlDriver } from '../../../../keyserver/storage/sql.js';
import { openStore } from '../../../../keyserver/storage/sql-store.js';
import type { Store } from '../../../../keyserver/storage/store.js';
import { unlock } from '../../../../keyserver/storage/unlock.js';
import { newDatabase, queryUrl, TEMPLATE } from './postgres.js';

export const ON_POSTGRES = process.env.PAIRWIRE_TEST_STORE === 'postgres';

let made = 0;

/** Options of `initSubnet` for a database of its own. */
export async function storeChoice(): Promise<{ readonly database?: string }> {
  return ON_POSTGRES ? { database: await emptyDatabase() } : {};
}

/** The URL of a database without a subnet on the server of this run. */
export async function emptyDatabase(): Promise<string> {
  made += 1;
  return newDatabase(serverUrl(), `t${process.pid}_${made}`, TEMPLATE);
}

/** Removes a database of the server, whoever is connected to it; a file goes with its folder. */
export async function removeDatabase(database: string): Promise<void> {
  if (!isPostgres(database)) return;
  await queryUrl(serverUrl(), `DROP DATABASE IF EXISTS ${nameOf(database)} WITH (FORCE)`);
}

/** Opens a database as the key server does that may write to it. */
export async function openToServe(place: { readonly database: string }): Promise<SqlDriver> {
  const driver = await openDatabase(place);
  if (driver instanceof PostgresDriver) await driver.waitForLease(AbortSignal.timeout(60_000));
  return driver;
}

/** The DEKs of a key server's database, opened with the root keys in its folder. */
export function ringOf(
  driver: SqlDriver,
  { kms, sealMark }: Pick<KeyServerPaths, 'kms' | 'sealMark'>,
): Promise<KeyRing> {
  return unlock(driver, { service: LocalDeks.load(kms), markFile: sealMark });
}

/** A key server's store with its keys, for whoever looks into it beside the server. */
export async function openKeys(paths: KeyServerPaths): Promise<Store> {
  const driver = await openDatabase(paths);
  return openStore(driver, { ring: await ringOf(driver, paths) });
}

/** Runs statements as somebody who has the database and asks no key server. */
export async function meddle(database: string, sql: string): Promise<void> {
  if (isPostgres(database)) {
    await queryUrl(database, sql);
    return;
  }
  const file = new Database(database);
  file.exec(sql);
  file.close();
}

/** Another database of the server with all that is in one that nobody has open. @returns its URL */
export function copyOf(database: string, name: string): Promise<string> {
  return newDatabase(serverUrl(), name, nameOf(database));
}

/** A copy of a database that nobody has open. */
export async function backUp(database: string): Promise<void> {
  if (isPostgres(database)) {
    const name = nameOf(database);
    await queryUrl(serverUrl(), `DROP DATABASE IF EXISTS ${name}_backup WITH (FORCE)`);
    await queryUrl(serverUrl(), `CREATE DATABASE ${name}_backup TEMPLATE ${name}`);
    return;
  }
  for (const file of files(database)) if (existsSync(file)) copyFileSync(file, `${file}.backup`);
}

/** Puts the copy in the place of the database. */
export async function putBack(database: string): Promise<void> {
  if (isPostgres(database)) {
    const name = nameOf(database);
    await queryUrl(serverUrl(), `DROP DATABASE ${name} WITH (FORCE)`);
    await queryUrl(serverUrl(), `CREATE DATABASE ${name} TEMPLATE ${name}_backup`);
    return;
  }
  for (const file of files(database)) {
    rmSync(file, { force: true });
    if (existsSync(`${file}.backup`)) copyFileSync(`${file}.backup`, file);
  }
}

/** The last two are there while it is open, and perhaps afterwards. */
function files(database: string): string[] {
  return ['', '-wal', '-shm'].map((end) => `${database}${end}`);
}

function nameOf(url: string): string {
  return new URL(url).pathname.slice(1);
}

function serverUrl(): string {
  const url = process.env.PAIRWIRE_TEST_POSTGRES;
  if (url === undefined) throw new Error('no PostgreSQL runs: vitest run --project postgres');
  return url;
}
