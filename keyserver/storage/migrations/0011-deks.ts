/**
 * Migration 11: DEKs, each sealed by a root key of the KMS (docs/protocol.md section 11). One is active and seals; others still open what
 * they sealed until it is sealed anew. Keys of before are sealed when the KMS is there (storage/unlock.ts): no statement can do that.
 */
import type { Migration } from './migration.js';

export const deks: Migration = {
  version: 11,
  name: 'deks',
  statements: [
    `CREATE TABLE deks (
      id BYTEA PRIMARY KEY,
      sealed BYTEA NOT NULL,
      made_at BIGINT NOT NULL,
      active SMALLINT NOT NULL
    )`,
  ],
};
