/**
 * Which PostgreSQL, as `database: postgres://...` says it, and how it is reached:
 *
 *   postgres://USER@HOST[:PORT]/DATABASE[?sslrootcert=FILE][&sslmode=disable]
 *   postgres:///DATABASE?host=/FOLDER/OF/SOCKET[&user=USER]
 *
 * Over a network it is TLS, and the certificate must be that of HOST, unless `sslmode=disable` says otherwise. The
 * password stands in a file of its own (mode 0600), never in the URL, which lands in logs and in lists of processes.
 */
import { readFileSync } from 'node:fs';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { readSecretFile } from '../../src/runtime/files.js';

const DEFAULT_PORT = 5432;
const PARAMETERS: ReadonlySet<string> = new Set(['host', 'user', 'sslmode', 'sslrootcert']);

/** How a database server is reached. */
export interface PostgresTarget {
  /** The URL, which holds no secret: for errors and logs. */
  readonly shown: string;
  /** Name or address, or the folder of a Unix socket. */
  readonly host: string;
  readonly port: number;
  readonly user: string | undefined;
  readonly database: string;
  /** Undefined: no TLS. `ca` replaces the authorities that the system trusts. */
  readonly tls: { readonly ca: string | undefined } | undefined;
  readonly password: string | undefined;
}

/** True for a `database` that is no file. */
export function isPostgres(database: string): boolean {
  return /^postgres(?:ql)?:/i.test(database);
}

/** Why a URL can't be used, undefined if it can. */
export function postgresUrlMistake(url: string): string | undefined {
  try {
    parsePostgresUrl(url);
    return undefined;
  } catch (thrown) {
    return messageOf(thrown);
  }
}

/**
 * Reads the URL, and the files that it and the configuration name.
 * @throws PairwireError CONFIG_INVALID, FILE_UNREADABLE, FILE_MODE
 */
export function postgresTarget(url: string, passwordFile: string | undefined): PostgresTarget {
  const { certificate, ...parsed } = parsePostgresUrl(url);
  let ca: string | undefined;
  if (certificate !== undefined) {
    try {
      ca = readFileSync(certificate, 'utf8');
    } catch (cause) {
      throw new PairwireError('FILE_UNREADABLE', `cannot read sslrootcert: ${messageOf(cause)}`, {
        where: certificate,
        cause,
      });
    }
  }
  const password =
    passwordFile === undefined
      ? undefined
      : readSecretFile(passwordFile)
          .toString('utf8')
          .replace(/\r?\n$/, '');
  return { ...parsed, tls: parsed.encrypted ? { ca } : undefined, password };
}

function parsePostgresUrl(text: string): Omit<PostgresTarget, 'tls' | 'password'> & {
  readonly encrypted: boolean;
  readonly certificate: string | undefined;
} {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw invalid('it is no URL');
  }
  if (url.password !== '') {
    throw invalid('a password may not stand in it; name its file with databasePasswordFile');
  }
  const { searchParams: parameters } = url;
  for (const name of parameters.keys()) {
    if (!PARAMETERS.has(name)) throw invalid(`the parameter ${name} is not known`);
  }
  const host = parameters.get('host') ?? url.hostname.replace(/^\[(.*)\]$/, '$1');
  const database = decode(url.pathname.slice(1));
  if (host === '') throw invalid('it names no host');
  if (database === '' || database.includes('/')) throw invalid('it names no database');
  const socket = host.startsWith('/');
  const mode = parameters.get('sslmode') ?? (socket ? 'disable' : 'verify-full');
  if (mode !== 'verify-full' && mode !== 'disable') {
    throw invalid(
      'sslmode must be verify-full or disable; what is between them can be read by others',
    );
  }
  if (socket && mode !== 'disable') throw invalid('there is no TLS over a Unix socket');
  const user = url.username === '' ? parameters.get('user') : decode(url.username);
  return {
    shown: text,
    host,
    port: url.port === '' ? DEFAULT_PORT : Number(url.port),
    user: user ?? undefined,
    database,
    encrypted: mode === 'verify-full',
    certificate: parameters.get('sslrootcert') ?? undefined,
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('a percent sign in it stands for nothing');
  }
}

function invalid(why: string): PairwireError {
  return new PairwireError('CONFIG_INVALID', `the PostgreSQL URL cannot be used: ${why}`, {
    hint: 'for example postgres://pairwire@db.example.org/pairwire, or postgres:///pairwire?host=/var/run/postgresql',
  });
}
