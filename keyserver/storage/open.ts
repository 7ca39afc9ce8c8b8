/** The database that a key server's configuration names: a file of SQLite, or a PostgreSQL server. */
import { PostgresDriver } from './postgres.js';
import { isPostgres, type PostgresTarget, postgresTarget } from './postgres-target.js';
import type { SqlDriver } from './sql.js';
import { SqliteDriver } from './sqlite.js';

/** Where it is. */
export interface DatabasePlace {
  /** A path, or a URL of PostgreSQL. */
  readonly database: string;
  /** File with the password for PostgreSQL. */
  readonly databasePassword?: string | undefined;
}

/** The PostgreSQL server, undefined for a file. @throws PairwireError CONFIG_INVALID, FILE_UNREADABLE, FILE_MODE */
export function targetOf({
  database,
  databasePassword,
}: DatabasePlace): PostgresTarget | undefined {
  return isPostgres(database) ? postgresTarget(database, databasePassword) : undefined;
}

/**
 * Opens a database and brings it to the newest version.
 * @param options.create make it, if there is none
 * @throws PairwireError STORE_FAILED, STORE_VERSION, FILE_MODE, FILE_UNREADABLE, CONFIG_INVALID
 */
export function openDatabase(
  place: DatabasePlace,
  options: { readonly create?: boolean } = {},
): Promise<SqlDriver> {
  const target = targetOf(place);
  return target === undefined
    ? SqliteDriver.open(place.database, options)
    : PostgresDriver.open(target, options);
}
