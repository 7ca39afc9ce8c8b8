/**
 * Migration 7: subnets that this one is linked with, and the net key with each. `member`: the far key
 * server's id here, if it asks us; `contact`: how we reach it, if we ask. Neither: there is no link any more,
 * and the row keeps the number of the last generation, which is never used again.
 */
import type { Migration } from './migration.js';

export const nets: Migration = {
  version: 7,
  name: 'nets',
  statements: [
    // local: prefixes that the operator here has named; told: those that the far server names. JSON.
    // pw_id 0, key and next_key empty: there is none.
    `CREATE TABLE nets (
      net TEXT PRIMARY KEY,
      member TEXT NOT NULL,
      contact BYTEA NOT NULL,
      local TEXT NOT NULL,
      told TEXT NOT NULL,
      key BYTEA NOT NULL,
      pw_id BIGINT NOT NULL,
      oldest BIGINT NOT NULL,
      reason TEXT NOT NULL,
      created_at BIGINT NOT NULL,
      due_at BIGINT NOT NULL,
      next_key BYTEA NOT NULL,
      next_pw_id BIGINT NOT NULL,
      next_reason TEXT NOT NULL,
      serial BIGINT NOT NULL UNIQUE,
      changed BIGINT NOT NULL
    )`,
  ],
};
