/**
 * Connections to PostgreSQL by `pg` as `SqlConnection`s: one that ends when it is lost, one that is opened when it is
 * needed and again after that, and several that read. Statements are prepared once for each connection; errors become
 * STORE_FAILED, and none is waited for without end.
 */
import { Socket } from 'node:net';
import { Client, type ClientConfig, type QueryResult, types } from 'pg';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { PostgresTarget } from './postgres-target.js';
import { bindable, type Row, type SqlConnection, type SqlValue } from './sql.js';

const KEEPALIVE_AFTER_MS = 5_000;

/**
 * SQLSTATEs after which a connection is of no use: it ends, the server ends or starts, or can't write any more. A full disk (53100) is none:
 * that refuses one write, and must not take those with it that need no room, the renewal of the lease above all. Where there is no room for a
 * commit, the server ends.
 */
const LOST = /^(?:08...|57P0[1-5]|25006|25P03|53[23]00|58...|XX...)$/;
/** What the server itself reports has one; what happens to the connection has none, but perhaps a code like EPIPE. */
const SQLSTATE = /^(?!E)[0-9A-Z]{5}$/;
const BIGINT = 20;

/** Says of an error of a statement whether its connection is of no use any more. */
export function isLost(error: unknown): boolean {
  if (!(error instanceof PairwireError) || error.code !== 'STORE_FAILED') return false;
  return error.cause !== undefined && ends(error.cause);
}

function ends(cause: unknown): boolean {
  const code = sqlState(cause);
  return code === undefined || LOST.test(code);
}

/** The SQLSTATE of an error that the server reported. */
export function sqlState(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | undefined)?.code;
  return typeof code === 'string' && SQLSTATE.test(code) ? code : undefined;
}

/** `?` to `$1`, `$2`, ...; the statements have no question mark in a string. */
export function numbered(sql: string): string {
  let at = 0;
  return sql.replace(/\?/g, () => {
    at += 1;
    return `$${at}`;
  });
}

/** What is set on each connection before anything else runs on it. */
export type Prepare = (run: (sql: string) => Promise<readonly Row[]>) => Promise<void>;

/** How long is waited, at most. */
export interface Patience {
  /** For a connection, with all that is set on it. */
  readonly connectMs: number;
  /** For the answer to a statement: then its connection counts as lost. */
  readonly statementMs: number;
}

/** The server itself ends a statement before the client gives up, so that a refusal says what was wrong. */
export const PATIENCE: Patience = { connectMs: 3_000, statementMs: 10_000 };

/** What a connection and those before it have done. */
interface Tally {
  /** Statements under way or waiting. */
  load: number;
  /** Statements that were answered. */
  answered: number;
}

/**
 * One connection from its beginning to its end: what is lost does not come back. A transaction runs on one of these, for
 * half of it on another connection would be committed by itself. Each statement settles, whatever the server does.
 */
export class PostgresSession implements SqlConnection {
  readonly batches = true;
  readonly #client: Client;
  readonly #socket: Socket;
  readonly #target: PostgresTarget;
  readonly #patience: Patience;
  readonly #tally: Tally;
  readonly #names = new Map<string, { readonly name: string; readonly text: string }>();
  #turn: Promise<unknown> = Promise.resolve();
  #ended = false;

  private constructor(target: PostgresTarget, patience: Patience, tally: Tally) {
    this.#target = target;
    this.#patience = patience;
    this.#tally = tally;
    const { host, port, user, database, tls, password } = target;
    this.#socket = new Socket();
    const config: ClientConfig = {
      host,
      port,
      database,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEPALIVE_AFTER_MS,
      application_name: 'pairwire-keyserver',
      types: { getTypeParser: parserOf },
      stream: () => this.#socket,
      // Without a name of its own, `tls` would compare the certificate of an IP address with "localhost".
      ssl: tls === undefined ? false : { host, rejectUnauthorized: true, ca: tls.ca },
      ...(user === undefined ? {} : { user }),
      ...(password === undefined ? {} : { password }),
    };
    this.#client = new Client(config);
    this.#client.on('error', () => this.destroy());
    this.#client.on('end', () => this.destroy());
  }

  /** Connects. @throws PairwireError STORE_FAILED, after `connectMs` at the latest */
  static async open(
    target: PostgresTarget,
    prepare: Prepare,
    patience: Patience,
    tally: Tally,
  ): Promise<PostgresSession> {
    const session = new PostgresSession(target, patience, tally);
    const client = session.#client;
    const opening = async (): Promise<void> => {
      await client.connect();
      await prepare(async (sql) => (await client.query<Record<string, unknown>>(sql)).rows);
    };
    try {
      await session.#within(patience.connectMs, opening());
    } catch (thrown) {
      session.destroy();
      throw storeError(thrown, target);
    }
    return session;
  }

  /** True when nothing runs on it any more. */
  get ended(): boolean {
    return this.#ended;
  }

  async get(sql: string, params: readonly SqlValue[]): Promise<Row | undefined> {
    return (await this.#query(sql, params)).rows[0];
  }

  async all(sql: string, params: readonly SqlValue[]): Promise<readonly Row[]> {
    return (await this.#query(sql, params)).rows;
  }

  async run(sql: string, params: readonly SqlValue[]): Promise<number> {
    return (await this.#query(sql, params)).rowCount ?? 0;
  }

  /**
   * Runs statements without parameters, in one message.
   * @param ms how long they may take, if longer than others
   * @returns how many rows each has changed
   */
  async execute(sql: string, ms: number = this.#patience.statementMs): Promise<readonly number[]> {
    // Of several statements there are several results, which the types of `pg` don't say.
    const results = await this.#next<QueryResult | QueryResult[]>(ms, () =>
      this.#client.query(sql),
    );
    return [results].flat().map(({ rowCount }) => rowCount ?? 0);
  }

  /** Ends it at once: whatever is under way is refused. */
  destroy(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  /** Ends it in order, after what was asked before, if the server is there to hear it. */
  async close(): Promise<void> {
    await this.#turn;
    if (!this.#ended) {
      this.#ended = true;
      await this.#within(this.#patience.connectMs, this.#client.end()).catch(() => undefined);
    }
    this.destroy();
  }

  #query(sql: string, params: readonly SqlValue[]): Promise<QueryResult<Row>> {
    return this.#next(this.#patience.statementMs, () => {
      const values = bindable(params);
      let statement = this.#names.get(sql);
      if (statement === undefined) {
        statement = { name: `s${this.#names.size}`, text: numbered(sql) };
        this.#names.set(sql, statement);
      }
      const { name, text } = statement;
      return this.#client.query<Record<string, unknown>>({ name, text, values });
    });
  }

  /** One statement at a time, in the order in which they came. */
  #next<T>(ms: number, fn: () => Promise<T>): Promise<T> {
    this.#tally.load += 1;
    const mine = this.#turn.then(() => this.#one(ms, fn));
    this.#turn = mine.catch(() => undefined);
    return mine;
  }

  async #one<T>(ms: number, fn: () => Promise<T>): Promise<T> {
    try {
      if (this.#ended) throw new Error('the connection was lost');
      const result = await this.#within(ms, fn());
      this.#tally.answered += 1;
      return result;
    } catch (thrown) {
      const error = storeError(thrown, this.#target);
      if (isLost(error)) this.destroy();
      throw error;
    } finally {
      this.#tally.load -= 1;
    }
  }

  /** Waits for what the server answers, no longer than the connection lives, and ends that when time is up. */
  #within<T>(ms: number, answer: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      // The client's own error comes with the end of the socket, and says more.
      const closed = (): void => {
        setImmediate(() => reject(new Error('the connection was lost')));
      };
      const late = setTimeout(() => {
        reject(new Error(`no answer within ${ms} ms`));
        this.destroy();
      }, ms);
      this.#socket.once('close', closed);
      answer.then(resolve, reject).finally(() => {
        clearTimeout(late);
        this.#socket.off('close', closed);
      });
    });
  }
}

/** A connection that comes back by itself: for statements of which each is complete. */
export class PostgresConnection implements SqlConnection {
  readonly #target: PostgresTarget;
  readonly #prepare: Prepare;
  readonly #patience: Patience;
  readonly #tally: Tally = { load: 0, answered: 0 };
  #session: PostgresSession | undefined;
  #opening: Promise<PostgresSession> | undefined;
  #closed = false;

  constructor(target: PostgresTarget, prepare: Prepare, patience: Patience) {
    this.#target = target;
    this.#prepare = prepare;
    this.#patience = patience;
  }

  async get(sql: string, params: readonly SqlValue[]): Promise<Row | undefined> {
    return (await this.session()).get(sql, params);
  }

  async all(sql: string, params: readonly SqlValue[]): Promise<readonly Row[]> {
    return (await this.session()).all(sql, params);
  }

  async run(sql: string, params: readonly SqlValue[]): Promise<number> {
    return (await this.session()).run(sql, params);
  }

  /** True while there is one. */
  get connected(): boolean {
    return this.#session?.ended === false;
  }

  /** Statements under way or waiting. */
  get load(): number {
    return this.#tally.load;
  }

  /** Counts statements that were answered. */
  get answered(): number {
    return this.#tally.answered;
  }

  /** The connection that there is, or a new one. @throws PairwireError STORE_FAILED */
  session(): Promise<PostgresSession> {
    if (this.#session?.ended === false) return Promise.resolve(this.#session);
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  /** Gives up the connection, if there is one. */
  drop(): void {
    this.#session?.destroy();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#opening?.catch(() => undefined);
    await this.#session?.close();
  }

  async #open(): Promise<PostgresSession> {
    this.#refuseClosed();
    const session = await PostgresSession.open(
      this.#target,
      this.#prepare,
      this.#patience,
      this.#tally,
    );
    if (this.#closed) session.destroy();
    this.#refuseClosed();
    this.#session = session;
    return session;
  }

  #refuseClosed(): void {
    if (!this.#closed) return;
    throw new PairwireError('STORE_FAILED', 'the store is closed', { where: this.#target.shown });
  }
}

/** Several connections for statements of which each is complete by itself; what is lost is tried once more. */
export class PostgresReaders implements SqlConnection {
  readonly #connections: readonly PostgresConnection[];

  constructor(connections: readonly PostgresConnection[]) {
    this.#connections = connections;
  }

  get(sql: string, params: readonly SqlValue[]): Promise<Row | undefined> {
    return this.#twice((connection) => connection.get(sql, params));
  }

  all(sql: string, params: readonly SqlValue[]): Promise<readonly Row[]> {
    return this.#twice((connection) => connection.all(sql, params));
  }

  run(sql: string, params: readonly SqlValue[]): Promise<number> {
    return this.#twice((connection) => connection.run(sql, params));
  }

  async close(): Promise<void> {
    await Promise.all(this.#connections.map((connection) => connection.close()));
  }

  async #twice<T>(fn: (connection: PostgresConnection) => Promise<T>): Promise<T> {
    const connection = this.#quietest();
    const had = connection.connected;
    try {
      return await fn(connection);
    } catch (thrown) {
      // A connection that was idle when the server ended is found dead only when it is used.
      if (!had || !isLost(thrown)) throw thrown;
      return await fn(this.#quietest());
    }
  }

  #quietest(): PostgresConnection {
    const [first, ...others] = this.#connections;
    if (first === undefined) throw new PairwireError('STORE_FAILED', 'there are no connections');
    return others.reduce((best, one) => (one.load < best.load ? one : best), first);
  }
}

function parserOf(oid: number, format?: 'text' | 'binary'): (value: string) => unknown {
  if (oid === BIGINT && format !== 'binary') return toNumber;
  return types.getTypeParser(oid, 'text') as (value: string) => unknown;
}

/** Numbers that a double does not hold stay text; `integer` refuses them. */
function toNumber(text: string): number | string {
  const number = Number(text);
  return Number.isSafeInteger(number) ? number : text;
}

function storeError(error: unknown, target: PostgresTarget): PairwireError {
  if (error instanceof PairwireError) return error;
  const hint = hintOf(error);
  return new PairwireError('STORE_FAILED', `the database failed: ${messageOf(error)}`, {
    where: target.shown,
    cause: error,
    ...(hint === undefined ? {} : { hint }),
  });
}

function hintOf(error: unknown): string | undefined {
  const code = sqlState(error);
  if (code === undefined) {
    const cause = (error as { code?: unknown } | undefined)?.code;
    if (typeof cause === 'string' && /CERT|TLS|SSL|SIGNED/.test(cause)) {
      return 'its certificate must be that of the host in the URL, from an authority of the system or of sslrootcert';
    }
    return 'PostgreSQL cannot be reached, or ends: the key server connects again by itself';
  }
  if (code.startsWith('28')) return 'look at the user, databasePasswordFile and pg_hba.conf';
  if (code === '3D000') return 'make the database first: createdb';
  if (code === '53100') {
    return 'the disk of PostgreSQL is full: make room, then go on; nothing that was answered is lost';
  }
  if (code.startsWith('53'))
    return 'PostgreSQL has no room for more: look at its max_connections and memory';
  if (code === '25006')
    return 'this PostgreSQL only reads (a replica): the URL must lead to the one that writes';
  if (code.startsWith('40')) return 'two writes met: the asker tries again';
  if (/^57P0|^08/.test(code))
    return 'PostgreSQL ends or starts: the key server connects again by itself';
  if (code === '57014')
    return 'PostgreSQL took too long: look at its load and at what locks its tables';
  if (code.startsWith('42501')) return 'the user must own the tables of the key server';
  return undefined;
}
