/** Migration 5: which MAC address announces which IP address of the subnet (docs/protocol.md 8.6). */
import type { Migration } from './migration.js';

export const bindings: Migration = {
  version: 5,
  name: 'bindings',
  statements: [
    // kind: granted, pinned, seen; freed while those who were told of it are still to be told. member: whose it is,
    // '' for one that the operator pinned. since: when the MAC address got it; refreshed: when it was last reported,
    // or freed.
    `CREATE TABLE bindings (
      ip TEXT PRIMARY KEY,
      mac TEXT NOT NULL,
      kind TEXT NOT NULL,
      member TEXT NOT NULL,
      since BIGINT NOT NULL,
      refreshed BIGINT NOT NULL,
      serial BIGINT NOT NULL UNIQUE,
      changed BIGINT NOT NULL UNIQUE
    )`,
    'CREATE INDEX bindings_member ON bindings (member)',
    'CREATE INDEX bindings_kind ON bindings (kind, refreshed)',
    // What grants named before there was this table, for the first of a member's own addresses.
    `INSERT INTO bindings (ip, mac, kind, member, since, refreshed, serial, changed)
     SELECT g.prefix, g.mac, 'granted', g.member, g.bound_at, g.bound_at,
       c.value + g.place, c.value + g.place
     FROM (SELECT i.prefix, i.member, i.bound_at, ROW_NUMBER() OVER (ORDER BY i.prefix) AS place,
             (SELECT x.mac FROM macs x WHERE x.member = i.member AND x.kind = 'own'
              ORDER BY x.serial LIMIT 1) AS mac
           FROM ip_bindings i
           WHERE i.prefix NOT LIKE '%/%'
             AND EXISTS (SELECT 1 FROM macs x WHERE x.member = i.member AND x.kind = 'own')
             AND NOT EXISTS (SELECT 1 FROM ip_bindings j WHERE j.prefix = i.prefix AND j.slot < i.slot)) g
       JOIN counters c ON c.name = 'change'`,
    "UPDATE counters SET value = value + (SELECT count(*) FROM bindings) WHERE name = 'change'",
  ],
};
