/**
 * Migration 10: what key servers of one subnet need in order to bear each other's mistakes. `far` of a pair key that is made
 * here: the home of `b`, which is told of it (empty: both ends are at home here), with an index of just those pairs.
 * `current_at`: when all that was at home at a server was known last; `run`: the start of it that `cursor` is of, empty
 * until told. `restore_claims`: who says that the database was put back. `foreign_revocations`: ids that a server has revoked
 * before it had told of them. `former_servers`: those that an operator removed, who may come back.
 */
import type { Migration } from './migration.js';

export const cascadeCare: Migration = {
  version: 10,
  name: 'cascade-care',
  statements: [
    "ALTER TABLE pair_keys ADD COLUMN far TEXT NOT NULL DEFAULT ''",
    `UPDATE pair_keys SET far = (SELECT home FROM members WHERE members.id = pair_keys.b)
     WHERE maker = '' AND b IN (SELECT id FROM members WHERE home <> '')`,
    "CREATE INDEX pair_keys_far ON pair_keys (far, changed) WHERE far <> ''",
    'ALTER TABLE peer_servers ADD COLUMN current_at BIGINT NOT NULL DEFAULT 0',
    "ALTER TABLE peer_servers ADD COLUMN run TEXT NOT NULL DEFAULT ''",
    'CREATE TABLE restore_claims (claimant TEXT PRIMARY KEY)',
    `CREATE TABLE foreign_revocations (
      home TEXT NOT NULL,
      id TEXT NOT NULL,
      PRIMARY KEY (home, id)
    )`,
    'CREATE TABLE former_servers (server TEXT PRIMARY KEY)',
  ],
};
