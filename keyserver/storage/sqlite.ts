/**
 * SQLite by `libsql` (better-sqlite3's interface) as an `SqlDriver`.
 *
 * Durability: WAL with synchronous=FULL, so a commit is on the disk before it returns. One
 * commit costs about 180 us here, so writes are group-committed: all that were queued in
 * one turn of the event loop run in one transaction, each within a savepoint of its own (a
 * failing one takes nobody with it), and all are answered after its COMMIT. Reads use a
 * second connection and therefore never see what is not yet committed.
 *
 * Trap: binding a bare Buffer as the only argument makes libsql 0.5.29 panic and abort the
 * process. All parameters go through `bindable`, as one array of checked values.
 */
import { chmodSync, closeSync, existsSync, openSync, statSync } from 'node:fs';
import Database from 'libsql';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { requireSecretMode } from '../../src/runtime/files.js';
import { GroupCommit, type Job } from './group-commit.js';
import { type MigrationTarget, migrate } from './migrations/index.js';
import {
  bindable,
  type DriverCounts,
  integer,
  type Row,
  type SqlConnection,
  type SqlDriver,
  type SqlValue,
} from './sql.js';

/** Most writes in one transaction: bounds the time to the first answer (about 50 us each). */
const MAX_BATCH = 2_000;
const BUSY_TIMEOUT_MS = 5_000;
/**
 * Pages (4 KiB) of the write-ahead log that make a commit bring them into the file: what many commits have changed is written once. With
 * SQLite's own 1,000, every second commit of a hundred new keys did so. A start reads what is there, some 10 ms.
 */
const MAX_LOG_PAGES = 4_000;
/** Result codes after which nothing in a batch can be trusted to have happened. */
const FATAL = /^SQLITE_(FULL|IOERR|CORRUPT|NOTADB|READONLY|CANTOPEN|BUSY|LOCKED|NOMEM|PROTOCOL)/;

/** What to do, by result code. */
const HINTS: readonly (readonly [RegExp, string])[] = [
  [
    // The second: no room for the index of the write-ahead log.
    /^SQLITE_(FULL|IOERR_SHMSIZE)/,
    'the disk is full: make room, then go on; nothing that was answered is lost',
  ],
  [/^SQLITE_(CORRUPT|NOTADB)/, 'the database is damaged: stop the server and restore a backup'],
  [
    /^SQLITE_(READONLY|CANTOPEN)/,
    'the file or its disk can only be read, or not at all: look at the mount, owner and mode of its folder',
  ],
  [/^SQLITE_IOERR/, 'the disk reports an error: look at the kernel log'],
];

interface Prepared {
  readonly statement: ReturnType<Database.Database['prepare']>;
  readonly columns: readonly string[];
}

class SqliteConnection implements SqlConnection {
  readonly database: Database.Database;
  readonly #file: string;
  readonly #statements = new Map<string, Prepared>();

  constructor(file: string) {
    this.#file = file;
    try {
      this.database = new Database(file);
      this.execute(`PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}`);
      this.execute('PRAGMA journal_mode = WAL');
      this.execute('PRAGMA synchronous = FULL');
      this.execute('PRAGMA foreign_keys = ON');
      this.execute(`PRAGMA wal_autocheckpoint = ${MAX_LOG_PAGES}`);
      // What is deleted or overwritten is zeroed in its page.
      this.execute('PRAGMA secure_delete = ON');
    } catch (error) {
      throw storeError(error, file);
    }
    if (this.#pragma('synchronous') !== 2 || this.#pragma('foreign_keys') !== 1) {
      throw new PairwireError('STORE_FAILED', 'SQLite did not take the settings for durability', {
        where: file,
      });
    }
  }

  /** Runs a statement without parameters and ignores its rows. */
  execute(sql: string): void {
    try {
      this.database.exec(sql);
    } catch (error) {
      throw storeError(error, this.#file);
    }
  }

  /** The same of one that runs again and again. */
  step(sql: string): void {
    try {
      this.#prepare(sql).statement.run([]);
    } catch (error) {
      throw storeError(error, this.#file);
    }
  }

  get(sql: string, params: readonly SqlValue[]): Promise<Row | undefined> {
    return this.#run(() => {
      const { statement, columns } = this.#prepare(sql);
      const row = statement.get(bindable(params)) as unknown[] | undefined;
      return row === undefined ? undefined : toRow(columns, row);
    });
  }

  all(sql: string, params: readonly SqlValue[]): Promise<readonly Row[]> {
    return this.#run(() => {
      const { statement, columns } = this.#prepare(sql);
      return (statement.all(bindable(params)) as unknown[][]).map((row) => toRow(columns, row));
    });
  }

  run(sql: string, params: readonly SqlValue[]): Promise<number> {
    return this.#run(() => this.#prepare(sql).statement.run(bindable(params)).changes);
  }

  close(): void {
    this.#statements.clear();
    this.database.close();
  }

  #run<T>(fn: () => T): Promise<T> {
    try {
      return Promise.resolve(fn());
    } catch (error) {
      return Promise.reject(storeError(error, this.#file));
    }
  }

  #prepare(sql: string): Prepared {
    let prepared = this.#statements.get(sql);
    if (prepared === undefined) {
      const statement = this.database.prepare(sql);
      const columns = statement.columns().map(({ name }) => name);
      // As arrays, rows cost half of what they cost as objects; only statements with rows know the mode.
      prepared = { statement: columns.length === 0 ? statement : statement.raw(true), columns };
      this.#statements.set(sql, prepared);
    }
    return prepared;
  }

  #pragma(name: string): number {
    return integer(this.database.prepare(`PRAGMA ${name}`).get([]) as Row, name);
  }
}

/** A store's database in one file. One process writes; others may read. */
export class SqliteDriver implements SqlDriver {
  readonly reader: SqlConnection;
  readonly counts: DriverCounts = { commits: 0, writes: 0 };
  readonly #reader: SqliteConnection;
  readonly #writer: SqliteConnection;
  readonly #writes: GroupCommit;
  #closed = false;

  private constructor(file: string) {
    this.#writes = new GroupCommit(MAX_BATCH, file, (batch) => this.#commit(batch));
    this.#writer = new SqliteConnection(file);
    this.#reader = new SqliteConnection(file);
    this.reader = this.#reader;
  }

  /**
   * Opens a database and brings it to the newest version.
   * @param options.create make the file (mode 0600) if it does not exist
   * @throws PairwireError STORE_FAILED, STORE_VERSION, FILE_MODE, FILE_UNREADABLE
   */
  static async open(
    file: string,
    options: { readonly create?: boolean } = {},
  ): Promise<SqliteDriver> {
    if (!existsSync(file)) {
      if (options.create !== true) {
        throw new PairwireError('FILE_UNREADABLE', 'there is no database', {
          where: file,
          hint: 'make the subnet with `pairwire init`, or restore the file from a backup',
        });
      }
      // SQLite gives its -wal and -shm files the mode of the database.
      closeSync(openSync(file, 'wx', 0o600));
      chmodSync(file, 0o600);
    }
    requireSecretMode(file);
    const { ino } = statSync(file);
    const driver = new SqliteDriver(file);
    try {
      // A restore that we waited for has put another one in its place: ours is the old one.
      if (statSync(file).ino !== ino) {
        throw new PairwireError('STORE_FAILED', 'the database was replaced while it was opened', {
          where: file,
          hint: 'start again',
        });
      }
      await migrate(driver.#migrationTarget());
    } catch (error) {
      await driver.close();
      throw error;
    }
    return driver;
  }

  transaction<T>(fn: (connection: SqlConnection) => Promise<T>): Promise<T> {
    return this.#writes.add(fn);
  }

  /** The file has one writer, so what it wrote is what there is. */
  mayCache(): boolean {
    return true;
  }

  prove(): Promise<void> {
    return Promise.resolve();
  }

  /** Rewrites the file without its free pages, and empties the write-ahead log. For when nobody writes. */
  async erase(): Promise<boolean> {
    if (!this.#writes.idle) return false;
    this.#writer.execute('VACUUM');
    const row = await this.#writer.get('PRAGMA wal_checkpoint(TRUNCATE)', []);
    return row !== undefined && integer(row, 'busy') === 0;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#writes.close();
    this.#reader.close();
    this.#writer.close();
  }

  async #commit(batch: readonly Job[]): Promise<void> {
    const writer = this.#writer;
    const failed = new Map<Job, unknown>();
    try {
      writer.step('BEGIN IMMEDIATE');
      for (const job of batch) {
        writer.step('SAVEPOINT job');
        try {
          await job.run(writer);
        } catch (error) {
          if (isFatal(error)) throw error;
          failed.set(job, error);
          writer.step('ROLLBACK TO job');
        }
        writer.step('RELEASE job');
      }
      writer.step('COMMIT');
    } catch (error) {
      // A full disk makes SQLite roll back by itself; anything else is rolled back here.
      if (writer.database.inTransaction) {
        try {
          writer.execute('ROLLBACK');
        } catch {
          // The connection reports the same failure again at the next BEGIN.
        }
      }
      for (const job of batch) job.reject(failed.get(job) ?? error);
      return;
    }
    this.counts.commits += 1;
    this.counts.writes += batch.length;
    for (const job of batch) {
      if (failed.has(job)) job.reject(failed.get(job));
      else job.resolve();
    }
  }

  #migrationTarget(): MigrationTarget {
    const writer = this.#writer;
    return {
      execute: async (sql) => writer.execute(sql),
      version: async () => {
        writer.execute(
          `CREATE TABLE IF NOT EXISTS schema_version (
            version BIGINT PRIMARY KEY, name TEXT NOT NULL, applied_at BIGINT NOT NULL)`,
        );
        const row = await writer.get(
          'SELECT coalesce(max(version), 0) AS version FROM schema_version',
          [],
        );
        return row === undefined ? 0 : integer(row, 'version');
      },
      record: async ({ version, name }) => {
        await writer.run(
          'INSERT INTO schema_version (version, name, applied_at) VALUES (?, ?, ?)',
          [version, name, Date.now()],
        );
      },
      atomically: async (fn) => {
        writer.execute('BEGIN IMMEDIATE');
        try {
          await fn();
          writer.execute('COMMIT');
        } catch (error) {
          if (writer.database.inTransaction) writer.execute('ROLLBACK');
          throw error;
        }
      },
    };
  }
}

function toRow(columns: readonly string[], values: readonly unknown[]): Row {
  const row: Record<string, unknown> = {};
  for (let at = 0; at < columns.length; at += 1) row[columns[at] ?? ''] = values[at];
  return row;
}

function isFatal(error: unknown): boolean {
  return (
    error instanceof PairwireError &&
    error.code === 'STORE_FAILED' &&
    FATAL.test(sqliteCode(error.cause) ?? '')
  );
}

function sqliteCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | undefined)?.code;
  return typeof code === 'string' ? code : undefined;
}

function storeError(error: unknown, file: string): PairwireError {
  if (error instanceof PairwireError) return error;
  const code = sqliteCode(error);
  const hint = HINTS.find(([pattern]) => code !== undefined && pattern.test(code))?.[1];
  return new PairwireError('STORE_FAILED', `the database failed: ${messageOf(error)}`, {
    where: file,
    cause: error,
    ...(hint === undefined ? {} : { hint }),
  });
}
