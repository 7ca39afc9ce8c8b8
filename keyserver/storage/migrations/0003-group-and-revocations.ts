/**
 * Migration 3: generations of the group key and revocations. Of a group there is the key in force
 * (`in_force` 1) and perhaps a prepared one (0); what was in force before is erased. `oldest` is the
 * oldest generation that may still be heard.
 */
import type { Migration } from './migration.js';

export const groupAndRevocations: Migration = {
  version: 3,
  name: 'group-and-revocations',
  statements: [
    'ALTER TABLE group_keys ADD COLUMN in_force SMALLINT NOT NULL DEFAULT 1',
    'ALTER TABLE group_keys ADD COLUMN oldest BIGINT NOT NULL DEFAULT 1',
    'ALTER TABLE group_keys ADD COLUMN due_at BIGINT NOT NULL DEFAULT 0',
    // A key from before gets as old as others: the settings in force say a day then, by default.
    'UPDATE group_keys SET due_at = created_at + 86400000',
    // Never deleted: an id that was revoked is never used again.
    `CREATE TABLE revocations (
      number BIGINT PRIMARY KEY,
      member TEXT NOT NULL UNIQUE REFERENCES members (id),
      revoked_at BIGINT NOT NULL,
      changed BIGINT NOT NULL UNIQUE
    )`,
    "INSERT INTO counters (name, value) VALUES ('revocation', 0)",
  ],
};
