import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

/**
 * Three rings of tests: `unit` needs nothing but Node.js and the native build; `postgres` the programs of
 * PostgreSQL; `lab` needs root, because it makes network namespaces.
 */

/** Tests of the key server that put questions of their own to a store. All of them: PAIRWIRE_POSTGRES_ALL=1. */
const STORE_TESTS =
  process.env.PAIRWIRE_POSTGRES_ALL === '1'
    ? '*'
    : '{audit,durability,enrol,forget-keys,forget-keys-kills,group-rekey,keys,put-back,rehearsal,rekey,revoke,sealed-store,sync}';

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          globalSetup: ['test/programs/compile.ts'],
          include: ['test/unit/**/*.test.ts', 'test/style/**/*.test.ts'],
          // For what never ends: a busy machine may take long for what does.
          testTimeout: 90_000,
          hookTimeout: 90_000,
          // Most of them wait for a time-out or for another process: more at a time than there are processors.
          maxWorkers: 2 * availableParallelism(),
        },
      },
      {
        test: {
          // The key server's tests once more, on a PostgreSQL server that the set-up starts.
          name: 'postgres',
          include: ['test/postgres/**/*.test.ts', `test/unit/keyserver/${STORE_TESTS}.test.ts`],
          globalSetup: [
            'test/programs/compile.ts',
            'test/unit/keyserver/support/postgres-setup.ts',
          ],
          env: { PAIRWIRE_TEST_STORE: 'postgres' },
          // Many of them start several programs.
          testTimeout: 300_000,
          hookTimeout: 300_000,
          maxWorkers: 2 * availableParallelism(),
        },
      },
      {
        test: {
          name: 'lab',
          include: ['test/lab/**/*.test.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          // They wait more than they work, and each has namespaces of its own.
          maxWorkers: 2,
        },
      },
    ],
  },
});
