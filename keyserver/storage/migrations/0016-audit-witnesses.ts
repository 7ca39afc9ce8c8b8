/**
 * Migration 16: who has seen entries that the audit log of a key server lacks (docs/protocol.md section 5), each by a head that this server
 * has signed, and as `+` the head that was signed when the operator last confirmed a restore: for the other machines of the database.
 */
import type { Migration } from './migration.js';

export const auditWitnesses: Migration = {
  version: 16,
  name: 'audit-witnesses',
  statements: [
    `CREATE TABLE audit_witnesses (
      server TEXT NOT NULL,
      witness TEXT NOT NULL,
      body BYTEA NOT NULL,
      signature BYTEA NOT NULL,
      told_at BIGINT NOT NULL,
      PRIMARY KEY (server, witness)
    )`,
  ],
};
