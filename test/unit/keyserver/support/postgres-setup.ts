/** Global set-up of the vitest project `postgres`: one PostgreSQL server for all its files. */
import { PostgresDriver } from '../../../../keyserver/storage/postgres.js';
import { postgresTarget } from '../../../../keyserver/storage/postgres-target.js';
import { newDatabase, PostgresServer, TEMPLATE } from './postgres.js';

export default async function setup(): Promise<() => Promise<void>> {
  const server = await PostgresServer.start();
  process.env.PAIRWIRE_TEST_POSTGRES = server.url('postgres');
  // Most tests want a database with its tables: a copy of this one costs less than to make them.
  const template = await newDatabase(server.url('postgres'), TEMPLATE);
  await (await PostgresDriver.open(postgresTarget(template, undefined), { create: true })).close();
  return () => server.remove();
}
