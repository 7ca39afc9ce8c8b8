/** The migrations in their order, and the runner that any SQL store uses. */
import { PairwireError } from '../../../src/runtime/errors.js';
import { initial } from './0001-initial.js';
import { generations } from './0002-generations.js';
import { groupAndRevocations } from './0003-group-and-revocations.js';
import { plainSide } from './0004-plain-side.js';
import { bindings } from './0005-bindings.js';
import { putBack } from './0006-put-back.js';
import { nets } from './0007-nets.js';
import { netPorts } from './0008-net-ports.js';
import { cascade } from './0009-cascade.js';
import { cascadeCare } from './0010-cascade-care.js';
import { deks } from './0011-deks.js';
import { identities } from './0012-identities.js';
import { dekSeals } from './0013-dek-seals.js';
import { rowMacs } from './0014-row-macs.js';
import { startIndexes } from './0015-start-indexes.js';
import { auditWitnesses } from './0016-audit-witnesses.js';
import type { Migration } from './migration.js';

export const MIGRATIONS: readonly Migration[] = [
  initial,
  generations,
  groupAndRevocations,
  plainSide,
  bindings,
  putBack,
  nets,
  netPorts,
  cascade,
  cascadeCare,
  deks,
  identities,
  dekSeals,
  rowMacs,
  startIndexes,
  auditWitnesses,
];

/** The version of a database that this program has brought up to date. */
export const NEWEST = MIGRATIONS.at(-1)?.version ?? 0;

/** What the runner needs of a database. `atomically` is one transaction. */
export interface MigrationTarget {
  execute(sql: string): Promise<void>;
  /** The highest version applied, 0 for an empty database. */
  version(): Promise<number>;
  record(migration: Migration): Promise<void>;
  atomically(fn: () => Promise<void>): Promise<void>;
}

/**
 * Brings a database to the newest version, each step in a transaction of its own.
 * @returns how many steps were applied
 * @throws PairwireError STORE_VERSION for a database that is newer than the program
 */
export async function migrate(
  target: MigrationTarget,
  migrations: readonly Migration[] = MIGRATIONS,
): Promise<number> {
  const newest = migrations.at(-1)?.version ?? 0;
  const present = await target.version();
  if (present > newest) {
    throw new PairwireError(
      'STORE_VERSION',
      `the database has version ${present}, this program knows versions up to ${newest}`,
      { hint: 'run the newer program, or restore a backup made by this one' },
    );
  }
  let applied = 0;
  for (const migration of migrations) {
    if (migration.version <= present) continue;
    await target.atomically(async () => {
      for (const statement of migration.statements) await target.execute(statement);
      await target.record(migration);
    });
    applied += 1;
  }
  return applied;
}
