/**
 * Migration 12: members' identity documents as the KMS has sealed them (docs/protocol.md 11.6), each with the DEK that it was sealed
 * by, which only a root key opens. The server can't open them: it keeps them for those who have the KMS do so.
 */
import type { Migration } from './migration.js';

export const identities: Migration = {
  version: 12,
  name: 'identities',
  statements: [
    `CREATE TABLE identities (
      member TEXT PRIMARY KEY,
      document BYTEA NOT NULL,
      dek BYTEA NOT NULL,
      stored_at BIGINT NOT NULL
    )`,
  ],
};
