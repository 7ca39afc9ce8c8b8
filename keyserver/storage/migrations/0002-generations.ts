/**
 * Migration 2: generations of pair keys. `next_*` is the generation that was prepared and is not in
 * force yet; `confirmed` says which ends have it (1: a, 2: b). `due_at` is when the key in force
 * gets too old.
 */
import type { Migration } from './migration.js';

export const generations: Migration = {
  version: 2,
  name: 'generations',
  statements: [
    'ALTER TABLE pair_keys ADD COLUMN next_key BYTEA',
    'ALTER TABLE pair_keys ADD COLUMN next_pw_id BIGINT NOT NULL DEFAULT 0',
    "ALTER TABLE pair_keys ADD COLUMN next_reason TEXT NOT NULL DEFAULT ''",
    'ALTER TABLE pair_keys ADD COLUMN confirmed SMALLINT NOT NULL DEFAULT 0',
    'ALTER TABLE pair_keys ADD COLUMN due_at BIGINT NOT NULL DEFAULT 0',
    // Keys from before get as old as others: the settings in force say an hour then, by default.
    'UPDATE pair_keys SET due_at = created_at + 3600000',
    'CREATE INDEX pair_keys_due ON pair_keys (due_at)',
  ],
};
