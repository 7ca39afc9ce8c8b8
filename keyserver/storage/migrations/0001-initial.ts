/**
 * Migration 1: what the key server knows. The SQL is what SQLite and
 * PostgreSQL both run: TEXT, BIGINT, SMALLINT and BYTEA only (SQLite stores a BYTEA column
 * as the blob that was bound), no sequences, no collation-dependent checks.
 *
 * Until there is a KMS, `key` columns hold keys in clear, protected by the file's mode 0600
 * alone, and memberships carry their identity documents in clear.
 */
import type { Migration } from './migration.js';

export const initial: Migration = {
  version: 1,
  name: 'initial',
  statements: [
    // What the store is: epoch, subnet, server id, subnet tag, operator key.
    `CREATE TABLE meta (
      name TEXT PRIMARY KEY,
      value BYTEA NOT NULL
    )`,
    // 'change': the last change number. 'talkers': members whose role takes part in traffic.
    // A counter is a row, not a sequence: numbers are handed out in the order of commits, so
    // a cursor never passes a change that commits later.
    `CREATE TABLE counters (
      name TEXT PRIMARY KEY,
      value BIGINT NOT NULL
    )`,
    // serial: change number of the enrolment, the order of lists. group_asked: change number of
    // the first request for the group key (matters with hold = 0 only), 0 if never.
    `CREATE TABLE members (
      id TEXT PRIMARY KEY,
      serial BIGINT NOT NULL UNIQUE,
      role TEXT NOT NULL,
      state TEXT NOT NULL,
      channel BYTEA NOT NULL UNIQUE,
      membership BYTEA NOT NULL,
      membership_signature BYTEA NOT NULL,
      identity_digest BYTEA NOT NULL,
      token_id BYTEA NOT NULL,
      ips TEXT NOT NULL,
      online SMALLINT NOT NULL,
      endpoints BYTEA NOT NULL,
      group_asked BIGINT NOT NULL,
      enrolled_at BIGINT NOT NULL,
      changed BIGINT NOT NULL UNIQUE
    )`,
    // A member's newest boot record. An index belongs to the boot record, not to a session.
    `CREATE TABLE boots (
      member TEXT PRIMARY KEY REFERENCES members (id),
      record BYTEA NOT NULL,
      record_signature BYTEA NOT NULL,
      boot_key BYTEA NOT NULL,
      sequence BIGINT NOT NULL,
      sender_index BIGINT NOT NULL UNIQUE,
      registered_at BIGINT NOT NULL
    )`,
    // released_at: null while in use; an index rests 24 h after that.
    `CREATE TABLE sender_indices (
      sender_index BIGINT PRIMARY KEY,
      member TEXT NOT NULL REFERENCES members (id),
      boot_digest BYTEA NOT NULL,
      drawn_at BIGINT NOT NULL,
      released_at BIGINT
    )`,
    'CREATE INDEX sender_indices_released ON sender_indices (released_at)',
    // kind: own, learned, tombstone. slot: '' for an address of one member, the member's id for one
    // granted to several as `shared`; so the primary key itself forbids two exclusive owners.
    `CREATE TABLE macs (
      mac TEXT NOT NULL,
      slot TEXT NOT NULL,
      member TEXT NOT NULL REFERENCES members (id),
      kind TEXT NOT NULL,
      serial BIGINT NOT NULL UNIQUE,
      seen_at BIGINT NOT NULL,
      PRIMARY KEY (mac, slot)
    )`,
    'CREATE INDEX macs_member ON macs (member)',
    // Which member an inner IP address or prefix is bound to; slot as in macs.
    `CREATE TABLE ip_bindings (
      prefix TEXT NOT NULL,
      slot TEXT NOT NULL,
      member TEXT NOT NULL REFERENCES members (id),
      source TEXT NOT NULL,
      bound_at BIGINT NOT NULL,
      PRIMARY KEY (prefix, slot)
    )`,
    'CREATE INDEX ip_bindings_member ON ip_bindings (member)',
    // a < b by bytes. asked_a, asked_b: change number of that end's first request, 0 if it never
    // asked (matters with hold = 0 only).
    `CREATE TABLE pair_keys (
      a TEXT NOT NULL,
      b TEXT NOT NULL,
      key BYTEA NOT NULL,
      pw_id BIGINT NOT NULL,
      reason TEXT NOT NULL,
      created_at BIGINT NOT NULL,
      serial BIGINT NOT NULL,
      asked_a BIGINT NOT NULL,
      asked_b BIGINT NOT NULL,
      changed BIGINT NOT NULL,
      PRIMARY KEY (a, b),
      CHECK (a <> b)
    )`,
    'CREATE INDEX pair_keys_a ON pair_keys (a, changed)',
    'CREATE INDEX pair_keys_b ON pair_keys (b, changed)',
    'CREATE INDEX pair_keys_serial ON pair_keys (serial)',
    `CREATE TABLE group_keys (
      id TEXT NOT NULL,
      pw_id BIGINT NOT NULL,
      key BYTEA NOT NULL,
      reason TEXT NOT NULL,
      created_at BIGINT NOT NULL,
      serial BIGINT NOT NULL,
      changed BIGINT NOT NULL,
      PRIMARY KEY (id, pw_id)
    )`,
    // Nothing of a token but how often it was used: its secret is derived (M11).
    `CREATE TABLE tokens_used (
      token_id BYTEA PRIMARY KEY,
      used BIGINT NOT NULL,
      last_at BIGINT NOT NULL
    )`,
    `CREATE TABLE settings (
      version BIGINT PRIMARY KEY,
      body BYTEA NOT NULL,
      signature BYTEA NOT NULL,
      installed_at BIGINT NOT NULL,
      changed BIGINT NOT NULL
    )`,
    // One chain for each server, so that no row is shared between replicas.
    `CREATE TABLE audit (
      server TEXT NOT NULL,
      seq BIGINT NOT NULL,
      at BIGINT NOT NULL,
      actor TEXT NOT NULL,
      action TEXT NOT NULL,
      outcome TEXT NOT NULL,
      detail TEXT NOT NULL,
      count BIGINT NOT NULL,
      mac BYTEA NOT NULL,
      PRIMARY KEY (server, seq)
    )`,
    "INSERT INTO counters (name, value) VALUES ('change', 0), ('talkers', 0)",
  ],
};
