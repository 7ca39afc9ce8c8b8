/**
 * One connection to PostgreSQL by `pg` as an `SqlConnection`: opened when it is needed, given up when it is lost, and
 * opened again at the next use. Statements are prepared once for each connection; errors become STORE_FAILED.
 */
import { Socket } from 'node:net';
import { Client, type ClientConfig, type QueryResult, types } from 'pg';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { PostgresTarget } from './postgres-target.js';
import { bindable, type Row, type SqlConnection, type SqlValue } from './sql.js';

const CONNECT_TIMEOUT_MS = 3_000;
/** A statement that is not answered by then: the connection counts as lost. */
const QUERY_TIMEOUT_MS = 10_000;
const KEEPALIVE_AFTER_MS = 5_000;

/** SQLSTATEs after which a connection is of no use: it ends, the server ends or starts, or can't write any more. */
const LOST = /^(?:08...|57P0[1-5]|25006|25P03|53[123]00|58...|XX...)$/;
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

/** A connection that comes back by itself. */
export class PostgresConnection implements SqlConnection {
  readonly #target: PostgresTarget;
  readonly #prepare: Prepare;
  readonly #names = new Map<string, { readonly name: string; readonly text: string }>();
  #client: { readonly client: Client; readonly socket: Socket } | undefined;
  #opening: Promise<Client> | undefined;
  #turn: Promise<void> = Promise.resolve();
  #closed = false;
  /** Statements under way or waiting. */
  load = 0;
  /** Counts statements that were answered. */
  answered = 0;

  constructor(target: PostgresTarget, prepare: Prepare) {
    this.#target = target;
    this.#prepare = prepare;
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

  /** Runs statements without parameters, in one message. @returns how many rows each has changed */
  async execute(sql: string): Promise<readonly number[]> {
    // Of several statements there are several results, which the types of `pg` don't say.
    const results = await this.#guarded<QueryResult | QueryResult[]>((client) => client.query(sql));
    return [results].flat().map(({ rowCount }) => rowCount ?? 0);
  }

  /** True while there is one. */
  get connected(): boolean {
    return this.#client !== undefined;
  }

  /** Connects if there is no connection. @throws PairwireError STORE_FAILED */
  open(): Promise<Client> {
    if (this.#client !== undefined) return Promise.resolve(this.#client.client);
    this.#opening ??= this.#connect().finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  /** Gives up the connection, if there is one. */
  drop(): void {
    const held = this.#client;
    this.#client = undefined;
    held?.socket.destroy();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#opening?.catch(() => undefined);
    const held = this.#client;
    this.#client = undefined;
    if (held === undefined) return;
    const late = setTimeout(() => held.socket.destroy(), CONNECT_TIMEOUT_MS);
    await held.client.end().catch(() => undefined);
    clearTimeout(late);
  }

  async #query(sql: string, params: readonly SqlValue[]): Promise<QueryResult<Row>> {
    const values = bindable(params);
    let statement = this.#names.get(sql);
    if (statement === undefined) {
      statement = { name: `s${this.#names.size}`, text: numbered(sql) };
      this.#names.set(sql, statement);
    }
    const { name, text } = statement;
    return this.#guarded((client) => client.query<Record<string, unknown>>({ name, text, values }));
  }

  /** One statement at a time, in the order in which they came. */
  async #guarded<T>(fn: (client: Client) => Promise<T>): Promise<T> {
    const former = this.#turn;
    let next: () => void = () => {};
    this.#turn = new Promise((resolve) => {
      next = resolve;
    });
    this.load += 1;
    await former;
    let client: Client | undefined;
    try {
      client = await this.open();
      const result = await fn(client);
      this.answered += 1;
      return result;
    } catch (thrown) {
      if (client !== undefined && ends(thrown) && this.#client?.client === client) this.drop();
      throw storeError(thrown, this.#target);
    } finally {
      this.load -= 1;
      next();
    }
  }

  async #connect(): Promise<Client> {
    const { host, port, user, database, tls, password } = this.#target;
    if (this.#closed) {
      throw new PairwireError('STORE_FAILED', 'the store is closed', { where: this.#target.shown });
    }
    const socket = new Socket();
    const config: ClientConfig = {
      host,
      port,
      database,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: QUERY_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEPALIVE_AFTER_MS,
      application_name: 'pairwire-keyserver',
      types: { getTypeParser: parserOf },
      stream: () => socket,
      // Without a name of its own, `tls` would compare the certificate of an IP address with "localhost".
      ssl: tls === undefined ? false : { host, rejectUnauthorized: true, ca: tls.ca },
      ...(user === undefined ? {} : { user }),
      ...(password === undefined ? {} : { password }),
    };
    const client = new Client(config);
    const forget = (): void => {
      if (this.#client?.client === client) this.drop();
    };
    client.on('error', forget);
    client.on('end', forget);
    try {
      await client.connect();
      await this.#prepare(async (sql) => (await client.query<Record<string, unknown>>(sql)).rows);
    } catch (thrown) {
      socket.destroy();
      throw storeError(thrown, this.#target);
    }
    if (this.#closed) {
      socket.destroy();
      throw new PairwireError('STORE_FAILED', 'the store is closed', { where: this.#target.shown });
    }
    this.#client = { client, socket };
    return client;
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
  if (code.startsWith('42501')) return 'the user must own the tables of the key server';
  return undefined;
}
