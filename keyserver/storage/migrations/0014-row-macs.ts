/**
 * Migration 14: MACs over rows (docs/protocol.md 11.9), each with its row's version, and their sums under a seal. `tab` and `name`:
 * the table and the primary key of the row. `row_keys`: the key of them, sealed as keys are. Rows of before get theirs when the KMS is
 * there (storage/unlock.ts).
 */
import type { Migration } from './migration.js';

export const rowMacs: Migration = {
  version: 14,
  name: 'row-macs',
  statements: [
    `CREATE TABLE row_macs (
      tab TEXT NOT NULL,
      name TEXT NOT NULL,
      bucket BIGINT NOT NULL,
      version BIGINT NOT NULL,
      mac BYTEA NOT NULL,
      PRIMARY KEY (tab, name)
    )`,
    'CREATE INDEX row_macs_bucket ON row_macs (bucket)',
    `CREATE TABLE row_head (
      one BIGINT PRIMARY KEY,
      version BIGINT NOT NULL,
      sealed BYTEA NOT NULL
    )`,
    `CREATE TABLE row_keys (
      id TEXT PRIMARY KEY,
      key BYTEA NOT NULL,
      pw_id BIGINT NOT NULL
    )`,
  ],
};
