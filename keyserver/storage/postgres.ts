/**
 * PostgreSQL as an `SqlDriver`, for a key server that outlives its machine.
 *
 * Any number of processes share one database, and one of them writes: the one that holds the lease, a row of the
 * table `writer`. Each transaction of its holder, one of nothing three times a second at least, leaves the next number in
 * it. Who stands by and has seen no other number for the time of a lease takes it with the next term. A write
 * transaction begins with the update of that very row, for its own term only:
 *
 *   - who was passed over changes no row and is refused, however late it wakes up;
 *   - the row is locked until the commit, so a lease is never taken in the middle of a transaction;
 *   - a commit whose answer was lost with the connection is looked up by its number instead of guessed.
 *
 * What a holder has in memory counts for the time of a lease from before its last transaction began, which is over before
 * anybody can have taken it; after that `prove` asks the database. Each process counts by its own CLOCK_BOOTTIME: no
 * clock that is set or differs, the database's neither, makes two of them holders. What distributed engines with PostgreSQL's protocol lack is not used: no
 * advisory locks, no sequences, no LISTEN; one connection writes, with savepoints, and others read single statements.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { type Clock, SystemClock } from '../../src/runtime/clock.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { GroupCommit, type Job } from './group-commit.js';
import { type MigrationTarget, migrate, NEWEST } from './migrations/index.js';
import {
  isLost,
  PATIENCE,
  PostgresConnection,
  PostgresReaders,
  type PostgresSession,
  sqlState,
} from './postgres-connection.js';
import type { PostgresTarget } from './postgres-target.js';
import { type DriverCounts, integer, type SqlConnection, type SqlDriver, text } from './sql.js';

/** Most writes in one transaction: each costs some round trips, and the lease is renewed between transactions. */
const MAX_BATCH = 200;
/** Connections that read. */
const READERS = 4;
/**
 * A lease runs out so long after its last renewal was seen: with the start of another key server that has to serve within
 * 2 s. What is left of it when it is renewed (650 ms) is what a busy machine may be late by.
 */
const LEASE_MS = 1_000;
const RENEW_EVERY_MS = 300;
const RENEW_LOOK_MS = 50;
/** How often one that stands by looks whether the lease has run out. */
const POLL_MS = 50;
/** So long without the database, and a holder gives up: gateways shall try the others. */
const GIVE_UP_MS = 5_000;
/** The server ends a transaction whose client is silent for so long: a machine that is gone holds up nobody. */
const SILENT_MS = 2_000;
/** The server ends a statement after so long. It does so before the client gives up its connection. */
const STATEMENT_MS = 8_000;
/** A migration may rewrite the largest table. */
const MIGRATION_MS = 600_000;
/** How long a lost answer to a commit is looked for. */
const SETTLE_MS = 5_000;
const SETTLE_EVERY_MS = 100;

const UNTIL = `clock_timestamp() + ${LEASE_MS} * INTERVAL '1 millisecond'`;
/** Instead of a holder. */
const GIVEN_BACK = '';
const BOOTSTRAP = [
  `CREATE TABLE IF NOT EXISTS schema_version (
    version BIGINT PRIMARY KEY, name TEXT NOT NULL, applied_at BIGINT NOT NULL)`,
  `CREATE TABLE IF NOT EXISTS writer (
    one SMALLINT PRIMARY KEY, term BIGINT NOT NULL, holder TEXT NOT NULL,
    until TIMESTAMPTZ NOT NULL, batch BIGINT NOT NULL)`,
  `INSERT INTO writer (one, term, holder, until, batch)
   VALUES (1, 0, '', clock_timestamp(), 0) ON CONFLICT (one) DO NOTHING`,
];

interface Lease {
  readonly term: number;
  /** Of the last transaction that was begun. */
  batch: number;
  /** When the last one that was answered was begun, by CLOCK_BOOTTIME. */
  provenAt: number;
  /** When the last one was begun. */
  beganAt: number;
  /** Since when the database has not answered, while one is under way. */
  triedAt: number | undefined;
}

/** The lease of another as it was last seen, and since when it has been that. */
interface Seen {
  readonly term: number;
  readonly batch: number;
  readonly since: number;
}

/** Chosen by tests only. */
interface ConnectOptions {
  readonly clock?: Clock;
  /** How long an answer to a statement is waited for. */
  readonly statementMs?: number;
  /** How long a holder goes on without the database. */
  readonly giveUpMs?: number;
}

/** A database on a PostgreSQL server. */
export class PostgresDriver implements SqlDriver {
  readonly reader: SqlConnection;
  readonly counts: DriverCounts = { commits: 0, writes: 0 };
  /** Settles, with the reason, when a lease that was held is not held any more. */
  readonly lost: Promise<string>;
  readonly #target: PostgresTarget;
  readonly #clock: Clock;
  readonly #giveUpMs: number;
  readonly #readers: PostgresReaders;
  readonly #writer: PostgresConnection;
  readonly #writes: GroupCommit;
  readonly #holder = `${hostname()}:${process.pid}:${randomBytes(4).toString('hex')}`;
  #tellLost: (reason: string) => void = () => {};
  #lease: Lease | undefined;
  #seen: Seen | undefined;
  #passedOver = false;
  /** A commit may still be under way on a connection that was lost. */
  #uncertain = false;
  #renewer: NodeJS.Timeout | undefined;
  #renewing = false;
  #migrating = false;
  #answered = 0;
  #closed = false;

  private constructor(target: PostgresTarget, options: ConnectOptions) {
    const patience = { ...PATIENCE, statementMs: options.statementMs ?? PATIENCE.statementMs };
    this.#target = target;
    this.#clock = options.clock ?? new SystemClock();
    this.#giveUpMs = options.giveUpMs ?? GIVE_UP_MS;
    this.lost = new Promise((resolve) => {
      this.#tellLost = resolve;
    });
    this.#readers = new PostgresReaders(
      Array.from(
        { length: READERS },
        () => new PostgresConnection(target, limitStatements, patience),
      ),
    );
    this.reader = this.#readers;
    this.#writer = new PostgresConnection(target, (run) => requireDurable(target, run), patience);
    this.#writes = new GroupCommit(MAX_BATCH, target.shown, (batch) => this.#commit(batch));
  }

  /**
   * Connects to a database. Unless it is of this program's version, it is brought to it, which needs the lease.
   * @param options.create make the tables in an empty database
   * @throws PairwireError STORE_FAILED, STORE_VERSION, FILE_EXISTS for one that is not empty
   */
  static async open(
    target: PostgresTarget,
    options: { readonly create?: boolean } & ConnectOptions = {},
  ): Promise<PostgresDriver> {
    const driver = await PostgresDriver.connect(target, options);
    try {
      if ((await driver.#version()) !== NEWEST) await driver.migrate();
    } catch (thrown) {
      await driver.close();
      throw thrown;
    }
    return driver;
  }

  /** As `open`, but leaves a database of another version as it is, until `migrate`. */
  static async connect(
    target: PostgresTarget,
    options: { readonly create?: boolean } & ConnectOptions = {},
  ): Promise<PostgresDriver> {
    const driver = new PostgresDriver(target, options);
    try {
      if (options.create === true) await driver.#create();
      else await driver.#version();
    } catch (thrown) {
      await driver.close();
      throw thrown;
    }
    return driver;
  }

  /** Brings the database to the newest version. @throws PairwireError STORE_FAILED if another one writes */
  async migrate(): Promise<void> {
    await this.#mustHold();
    await migrate(this.#migrationTarget());
  }

  /**
   * Takes the lease if it was given back, or if its holder has not renewed it for as long as it lasts, since this was first asked.
   * @returns who holds it, undefined if that is now this process
   * @throws PairwireError STORE_FAILED
   */
  async takeLease(): Promise<string | undefined> {
    if (this.#lease !== undefined) return undefined;
    const row = await this.#writer.get('SELECT term, batch, holder FROM writer WHERE one = 1', []);
    if (row === undefined) return '-';
    const holder = text(row, 'holder');
    const [term, batch] = [integer(row, 'term'), integer(row, 'batch')];
    if (this.#seen?.term !== term || this.#seen.batch !== batch) {
      this.#seen = { term, batch, since: this.#clock.bootMs() };
    }
    const now = this.#clock.bootMs();
    if (holder !== GIVEN_BACK && now - this.#seen.since < LEASE_MS) return holder;
    // One that renews it after all is waited for, and keeps it.
    const taken = await this.#writer.get(
      `UPDATE writer SET term = term + 1, holder = ?, until = ${UNTIL}
       WHERE one = 1 AND term = ? AND batch = ? AND holder = ? RETURNING term, batch`,
      [this.#holder, term, batch, holder],
    );
    if (taken === undefined) return holder === GIVEN_BACK ? '-' : holder;
    this.#passedOver = false;
    this.#seen = undefined;
    this.#lease = {
      term: integer(taken, 'term'),
      batch: integer(taken, 'batch'),
      provenAt: now,
      beganAt: now,
      triedAt: undefined,
    };
    return undefined;
  }

  /**
   * Waits until the lease is this process's, and keeps it from then on.
   * @param options.waiting is called with who holds it, or why nobody knows, whenever that changes
   * @returns false if `signal` came first
   */
  async waitForLease(
    signal: AbortSignal,
    options: {
      readonly waiting?: (holder: string | undefined, failure: unknown) => void;
      /** False while this process could do nothing with it. */
      readonly mayTake?: () => boolean;
    } = {},
  ): Promise<boolean> {
    let told: string | undefined;
    while (!signal.aborted) {
      if (options.mayTake?.() === false) {
        await pause(POLL_MS, signal);
        continue;
      }
      let state: string;
      let failure: unknown;
      let holder: string | undefined;
      try {
        holder = await this.takeLease();
        if (holder === undefined) {
          this.#keepLease();
          return true;
        }
        state = `held by ${holder}`;
      } catch (thrown) {
        failure = thrown;
        state = String(thrown);
      }
      if (state !== told) options.waiting?.(holder, failure);
      told = state;
      await pause(this.#nextLookMs(), signal);
    }
    return false;
  }

  /** Until the next look, or until the lease that is waited for has run out. */
  #nextLookMs(): number {
    if (this.#seen === undefined) return POLL_MS;
    const leftMs = this.#seen.since + LEASE_MS - this.#clock.bootMs();
    return leftMs > 0 ? Math.min(POLL_MS, leftMs) : POLL_MS;
  }

  /** The term that this process holds, undefined if none. */
  get term(): number | undefined {
    return this.#lease?.term;
  }

  transaction<T>(fn: (connection: SqlConnection) => Promise<T>): Promise<T> {
    return this.#writes.add(fn);
  }

  mayCache(): boolean {
    const lease = this.#lease;
    if (lease === undefined || this.#uncertain) return false;
    return this.#clock.bootMs() - lease.provenAt < LEASE_MS;
  }

  async prove(): Promise<void> {
    if (this.mayCache()) return;
    // A transaction of nothing: it begins after what is to be proved, and is refused to whoever was passed over.
    await this.#writes.add(async () => {});
  }

  /** What a PostgreSQL server keeps of old rows, and in its log, is its own business (docs/operations.md). */
  erase(): Promise<boolean> {
    return Promise.resolve(false);
  }

  /** Finishes what was queued, and gives the lease back, so that another need not wait for it to run out. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#renewer);
    await this.#writes.close();
    if (this.#lease !== undefined) {
      try {
        await this.#writer.run(
          'UPDATE writer SET holder = ?, until = clock_timestamp() WHERE term = ?',
          [GIVEN_BACK, this.#lease.term],
        );
      } catch {
        // It runs out by itself.
      }
      this.#lease = undefined;
    }
    await Promise.all([this.#readers.close(), this.#writer.close()]);
  }

  // ------------------------------------------------------------------------------ writing

  async #commit(batch: readonly Job[]): Promise<void> {
    const failed = new Map<Job, unknown>();
    let open: Transaction | undefined;
    let asked = false;
    try {
      open = await this.#begin();
      const { session } = open;
      for (const [at, job] of batch.entries()) {
        if (at > 0) await session.execute('RELEASE SAVEPOINT job; SAVEPOINT job');
        try {
          await job.run(session);
        } catch (error) {
          if (isLost(error)) throw error;
          failed.set(job, error);
          await session.execute('ROLLBACK TO SAVEPOINT job');
        }
      }
      asked = true;
      await session.execute(this.#commitOf(open.lease));
    } catch (error) {
      const lost = isLost(error);
      if (!lost && open !== undefined) await rollBack(open.session);
      if (!(lost && asked && open !== undefined && (await this.#settle(open.lease)))) {
        for (const job of batch) job.reject(failed.get(job) ?? error);
        return;
      }
    }
    this.#proven(open?.lease);
    this.counts.commits += 1;
    this.counts.writes += batch.length;
    for (const job of batch) {
      if (failed.has(job)) job.reject(failed.get(job));
      else job.resolve();
    }
  }

  /** Begins a transaction that nobody else can write beside. @throws PairwireError STORE_FAILED */
  async #begin(): Promise<Transaction> {
    const lease = await this.#mustHold();
    lease.beganAt = this.#clock.bootMs();
    lease.triedAt ??= lease.beganAt;
    lease.batch += 1;
    const session = await this.#writer.session();
    // In one message, for each round trip counts: so the two numbers stand in the text.
    const changed = await session.execute(
      `BEGIN; UPDATE writer SET batch = ${lease.batch}, until = ${UNTIL} WHERE term = ${lease.term}; SAVEPOINT job`,
    );
    if (changed[1] === 1) return { lease, session };
    await rollBack(session);
    throw this.#passOver('another key server has taken the lease');
  }

  /**
   * A long transaction renews the lease at its end too: it shall not be the last one of its server. No time limit of the
   * server's ends a commit: one that waits for a standby would then be answered as if that had it.
   */
  #commitOf({ term, beganAt }: Lease): string {
    const end = 'SET LOCAL statement_timeout = 0; COMMIT';
    if (this.#clock.bootMs() - beganAt < RENEW_EVERY_MS) return end;
    return `UPDATE writer SET until = ${UNTIL} WHERE term = ${term}; ${end}`;
  }

  async #mustHold(): Promise<Lease> {
    if (this.#passedOver) throw this.#notWriter();
    if (this.#lease === undefined) {
      const holder = await this.#takeUnlessRenewed();
      if (holder !== undefined) {
        throw new PairwireError('STORE_FAILED', 'another process writes to this database now', {
          where: this.#target.shown,
          hint: `it is ${holder}: ask that key server, or stop it first`,
        });
      }
    }
    if (this.#lease === undefined) throw this.#notWriter();
    return this.#lease;
  }

  /** Takes the lease of one that does not renew it. @returns who does */
  async #takeUnlessRenewed(): Promise<string | undefined> {
    let first: Seen | undefined;
    for (;;) {
      const holder = await this.takeLease();
      if (holder === undefined || this.#seen === undefined) return holder;
      if (first !== undefined && first !== this.#seen) return holder;
      first = this.#seen;
      await pause(this.#nextLookMs());
    }
  }

  #notWriter(): PairwireError {
    return new PairwireError('STORE_FAILED', 'this process may not write any more', {
      where: this.#target.shown,
      hint: 'another key server has taken over',
    });
  }

  #passOver(reason: string): PairwireError {
    clearInterval(this.#renewer);
    this.#lease = undefined;
    this.#passedOver = true;
    this.#tellLost(reason);
    return this.#notWriter();
  }

  #proven(lease: Lease | undefined): void {
    if (lease === undefined) return;
    lease.provenAt = lease.beganAt;
    lease.triedAt = undefined;
    // The update of the row has waited for whatever was still under way.
    this.#uncertain = false;
  }

  /**
   * Finds out whether a commit happened whose answer was lost. The update waits for the end of that transaction, should
   * the server still be at it.
   */
  async #settle(lease: Lease): Promise<boolean> {
    this.#uncertain = true;
    const end = this.#clock.bootMs() + SETTLE_MS;
    while (this.#clock.bootMs() < end) {
      try {
        const row = await this.#writer.get(
          'UPDATE writer SET batch = batch WHERE term = ? RETURNING batch',
          [lease.term],
        );
        if (row === undefined) this.#passOver('another key server has taken the lease');
        return row !== undefined && integer(row, 'batch') === lease.batch;
      } catch {
        await pause(SETTLE_EVERY_MS);
      }
    }
    return false;
  }

  // -------------------------------------------------------------------------- keeping the lease

  #keepLease(): void {
    this.#renewer = setInterval(() => this.#look(), RENEW_LOOK_MS);
    this.#renewer.unref();
  }

  #look(): void {
    const lease = this.#lease;
    // A migration may take long over one statement; nobody can take the lease meanwhile.
    if (lease === undefined || this.#migrating) return;
    const now = this.#clock.bootMs();
    const { answered } = this.#writer;
    // A long transaction is answered all the while.
    if (lease.triedAt !== undefined && answered !== this.#answered) lease.triedAt = now;
    this.#answered = answered;
    if (lease.triedAt !== undefined && now - lease.triedAt >= this.#giveUpMs) {
      this.#passOver(`the database has not answered for ${this.#giveUpMs} ms`);
      // What waits for an answer shall not wait longer.
      this.#writer.drop();
      return;
    }
    if (now - lease.beganAt < RENEW_EVERY_MS || this.#renewing || !this.#writes.idle) return;
    this.#renewing = true;
    // A transaction of nothing: what counts is how each begins.
    this.#writes
      .add(async () => {})
      .catch(() => undefined)
      .finally(() => {
        this.#renewing = false;
      });
  }

  // -------------------------------------------------------------------------------- schema

  async #create(): Promise<void> {
    for (const statement of BOOTSTRAP) await this.#writer.run(statement, []);
    if ((await this.#version()) === 0) return;
    const meta = await this.#writer.get('SELECT count(*) AS n FROM meta', []);
    if (meta !== undefined && integer(meta, 'n') === 0) return;
    throw new PairwireError('FILE_EXISTS', 'there is a subnet in this database already', {
      where: this.#target.shown,
      hint: 'make an empty one with createdb, or run the key server of that subnet',
    });
  }

  async #version(): Promise<number> {
    try {
      const row = await this.#writer.get(
        'SELECT coalesce(max(version), 0) AS version FROM schema_version',
        [],
      );
      return row === undefined ? 0 : integer(row, 'version');
    } catch (thrown) {
      if (sqlState((thrown as PairwireError).cause) !== '42P01') throw thrown;
      throw new PairwireError('STORE_FAILED', 'there is no subnet in this database', {
        where: this.#target.shown,
        hint: 'make it with `pairwire init --database`, or restore it with pg_restore',
      });
    }
  }

  #migrationTarget(): MigrationTarget {
    let open: Transaction | undefined;
    return {
      execute: async (sql) => {
        if (open === undefined) throw new Error('a migration runs in a transaction');
        await open.session.execute(byBytes(sql), MIGRATION_MS);
      },
      version: () => this.#version(),
      record: async ({ version, name }) => {
        await open?.session.run(
          'INSERT INTO schema_version (version, name, applied_at) VALUES (?, ?, ?)',
          [version, name, Date.now()],
        );
      },
      atomically: async (fn) => {
        open = await this.#begin();
        this.#migrating = true;
        const { lease, session } = open;
        try {
          await session.execute(`SET LOCAL statement_timeout = ${MIGRATION_MS}`);
          await fn();
          await session.execute(
            `UPDATE writer SET until = ${UNTIL} WHERE term = ${lease.term}; SET LOCAL statement_timeout = 0; COMMIT`,
          );
        } catch (error) {
          await rollBack(session);
          throw error;
        } finally {
          open = undefined;
          this.#migrating = false;
          lease.triedAt = undefined;
        }
        this.#proven(lease);
      },
    };
  }
}

/** A transaction under way: of this term, on this connection and no other. */
interface Transaction {
  readonly lease: Lease;
  readonly session: PostgresSession;
}

async function rollBack(session: PostgresSession): Promise<void> {
  if (session.ended) return;
  try {
    await session.execute('ROLLBACK');
  } catch {
    session.destroy();
  }
}

/** Ids and addresses are in the order of their bytes, as in SQLite, whatever language the database was made for. */
export function byBytes(sql: string): string {
  return sql.startsWith('CREATE TABLE') ? sql.replace(/\bTEXT\b/g, 'TEXT COLLATE "C"') : sql;
}

/** An answer may go out only when what it tells of is on the disk. */
async function requireDurable(
  target: PostgresTarget,
  run: (sql: string) => Promise<readonly Readonly<Record<string, unknown>>[]>,
): Promise<void> {
  const [row] = await run(
    "SELECT current_setting('fsync', true) AS fsync, current_setting('synchronous_commit', true) AS commits",
  );
  if (row?.fsync === 'off') {
    throw new PairwireError('STORE_FAILED', 'this PostgreSQL runs with fsync = off', {
      where: target.shown,
      hint: 'turn it on: a power cut would lose keys and revocations that were acknowledged',
    });
  }
  if (row?.commits === 'off') await run('SET synchronous_commit = on');
  await run(`SET idle_in_transaction_session_timeout = ${SILENT_MS}`);
  await limitStatements(run);
}

/** What the client has given up shall not go on at the server, and perhaps take a lease for nobody. */
async function limitStatements(run: (sql: string) => Promise<unknown>): Promise<void> {
  await run(`SET statement_timeout = ${STATEMENT_MS}`);
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done);
  });
}
