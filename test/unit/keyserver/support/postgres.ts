/**
 * A real PostgreSQL of its own for tests: a cluster in a temporary folder, on a Unix socket and a free port of loopback,
 * run by an ordinary user, for it refuses root; ended by its process id.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  chownSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statfsSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client } from 'pg';

const DEBIAN = '/usr/lib/postgresql';
const SUPERUSER = 'tester';
const PATIENCE_MS = 60_000;
const MEMORY = '/dev/shm';
const ENOUGH_BYTES = 4 * 2 ** 30;

/** How a server ends: at once as by `pg_ctl stop -m immediate`, or with its connections ended in order. */
type Ending = 'immediate' | 'fast';

export class PostgresServer {
  readonly folder: string;
  readonly port: number;
  readonly #user: { readonly uid?: number; readonly gid?: number };
  readonly #inside: readonly string[];
  #child: ChildProcess | undefined;
  #databases = 0;

  private constructor(
    folder: string,
    port: number,
    user: { uid?: number; gid?: number },
    inside: readonly string[],
  ) {
    this.folder = folder;
    this.port = port;
    this.#user = user;
    this.#inside = inside;
  }

  /**
   * Makes a cluster and starts it.
   * @param settings lines of postgresql.conf
   * @param place.inside how root starts a program in the network namespace where it shall be
   * @param place.port a port that is free there
   * @param place.trusts who may come over its network
   * @param place.disk the folder in which the cluster shall be
   * @param place.initdb more options of initdb
   */
  static async start(
    settings: readonly string[] = [],
    place: {
      readonly inside?: readonly string[];
      readonly port?: number;
      readonly trusts?: string;
      readonly disk?: string;
      readonly initdb?: readonly string[];
    } = {},
  ): Promise<PostgresServer> {
    const folder = mkdtempSync(join(place.disk ?? roomyFolder(), 'pairwire-pg-'));
    const user = ordinaryUser();
    if (user.uid !== undefined && user.gid !== undefined) chownSync(folder, user.uid, user.gid);
    const { inside = [], port = await freePort(), trusts } = place;
    const server = new PostgresServer(folder, port, user, inside);
    const flags = ['-D', server.data, '-U', SUPERUSER, '-A', 'trust', '-E', 'UTF8', '--no-sync'];
    // Not the C locale: the order of ids must not depend on it.
    execFileSync(program('initdb'), [...flags, '--locale=C.UTF-8', ...(place.initdb ?? [])], {
      ...user,
      cwd: folder,
      stdio: 'pipe',
    });
    const lines = [
      `unix_socket_directories = '${folder}'`,
      "listen_addresses = '127.0.0.1'",
      `port = ${server.port}`,
      'max_connections = 200',
      'shared_buffers = 32MB',
      ...settings,
    ];
    appendFileSync(join(server.data, 'postgresql.conf'), `${lines.join('\n')}\n`);
    if (trusts !== undefined) {
      appendFileSync(join(server.data, 'pg_hba.conf'), `host all all ${trusts} trust\n`);
    }
    await server.run();
    return server;
  }

  get data(): string {
    return join(this.folder, 'data');
  }

  /** Starts the server on its cluster; settles when it answers. */
  async run(): Promise<void> {
    const { uid, gid } = this.#user;
    const inside = this.#inside.length > 0;
    const [first = '', ...argv] = inside
      ? [...this.#inside, 'setpriv', `--reuid=${uid}`, `--regid=${gid}`, '--clear-groups']
      : [];
    const postgres = [program('postgres'), '-D', this.data] as const;
    const [command, args] = inside
      ? [first, [...argv, ...postgres]]
      : [postgres[0], postgres.slice(1)];
    const child = spawn(command, args, {
      ...(inside ? {} : this.#user),
      cwd: this.folder,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#child = child;
    let log = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      log = (log + chunk.toString()).slice(-10_000);
    });
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
      if (child.exitCode !== null) throw new Error(`PostgreSQL ended: ${log}`);
      try {
        await this.query('postgres', 'SELECT 1');
        return;
      } catch {
        if (Date.now() > end) throw new Error(`PostgreSQL does not answer: ${log}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  /** Ends the server; its cluster stays. */
  async halt(how: Ending): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#child = undefined;
    // It may have ended by itself.
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill(how === 'immediate' ? 'SIGQUIT' : 'SIGINT');
    await ended;
  }

  /** Ends it and removes its cluster. */
  async remove(): Promise<void> {
    await this.halt('immediate');
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** An empty database. @returns its URL */
  async database(): Promise<string> {
    this.#databases += 1;
    return newDatabase(this.url('postgres'), `d${process.pid}_${this.#databases}`);
  }

  url(database: string): string {
    return `postgres://${SUPERUSER}@socket:${this.port}/${database}?host=${this.folder}`;
  }

  /** A transaction that holds what a statement locks until it is ended. @returns what ends it */
  async hold(database: string, sql: string): Promise<() => Promise<void>> {
    const client = await connected(this.url(database));
    await client.query('BEGIN');
    await client.query(sql);
    return () => client.end();
  }

  /** One statement, by a connection of its own. */
  async query(database: string, sql: string): Promise<readonly Record<string, unknown>[]> {
    return queryUrl(this.url(database), sql);
  }
}

/** A database with the tables of a key server and nothing in them. */
export const TEMPLATE = 'tables';

/** Makes a database beside that of a URL. @returns its URL */
export async function newDatabase(url: string, name: string, template?: string): Promise<string> {
  await queryUrl(url, `CREATE DATABASE ${name} TEMPLATE ${template ?? 'template1'}`);
  return url.replace(/\/[^/?]+\?/, `/${name}?`);
}

/** One statement, by a connection of its own. */
export async function queryUrl(
  url: string,
  sql: string,
): Promise<readonly Record<string, unknown>[]> {
  const client = await connected(url);
  try {
    return (await client.query<Record<string, unknown>>(sql)).rows;
  } finally {
    await client.end();
  }
}

async function connected(url: string): Promise<Client> {
  const { searchParams, pathname, port, username } = new URL(url);
  const client = new Client({
    host: searchParams.get('host') ?? '',
    user: username,
    port: Number(port),
    database: pathname.slice(1),
    connectionTimeoutMillis: 5_000,
  });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

function program(name: string): string {
  const versions = existsSync(DEBIAN) ? readdirSync(DEBIAN) : [];
  const newest = versions.map(Number).sort((a, b) => b - a)[0];
  return newest === undefined ? name : join(DEBIAN, String(newest), 'bin', name);
}

/** In memory, if there is enough of it: its fsync costs nothing, and none of the tests cuts the machine's power. */
function roomyFolder(): string {
  const { bavail, bsize } = existsSync(MEMORY) ? statfsSync(MEMORY) : { bavail: 0, bsize: 0 };
  return bavail * bsize > ENOUGH_BYTES ? MEMORY : tmpdir();
}

function ordinaryUser(): { uid?: number; gid?: number } {
  if (process.getuid?.() !== 0) return {};
  const id = (what: string): number =>
    Number(execFileSync('id', [what, 'nobody'], { encoding: 'utf8' }));
  return { uid: id('-u'), gid: id('-g') };
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      const found = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(found));
    });
  });
}
