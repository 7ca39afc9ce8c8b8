/**
 * Migration 9: the other key servers of this subnet, and what is theirs. `home` of a member and `maker` of a pair key name
 * the server; empty: this one. `contact`: MessagePack of how we reach that server, empty if it reaches us. `cursor` and
 * `epoch`: up to where we have its state. `sender_number`: the high 8 bits of the sender indices that it draws, -1 until told.
 */
import type { Migration } from './migration.js';

export const cascade: Migration = {
  version: 9,
  name: 'cascade',
  statements: [
    "ALTER TABLE members ADD COLUMN home TEXT NOT NULL DEFAULT ''",
    'CREATE INDEX members_home ON members (home, changed)',
    'CREATE INDEX members_token ON members (home, token_id)',
    "ALTER TABLE pair_keys ADD COLUMN maker TEXT NOT NULL DEFAULT ''",
    `CREATE TABLE peer_servers (
      server TEXT PRIMARY KEY,
      member TEXT NOT NULL,
      contact BYTEA NOT NULL,
      sender_number BIGINT NOT NULL,
      epoch BYTEA NOT NULL,
      cursor BIGINT NOT NULL,
      complete SMALLINT NOT NULL,
      time_offset BIGINT NOT NULL,
      serial BIGINT NOT NULL
    )`,
  ],
};
