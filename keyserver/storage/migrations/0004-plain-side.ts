/**
 * Migration 4: addresses behind plain ports, by (VLAN, MAC), and change numbers for members' own
 * addresses, which those who deal with plain ports are told of.
 */
import type { Migration } from './migration.js';

export const plainSide: Migration = {
  version: 4,
  name: 'plain-side',
  statements: [
    // Change number of when the address became a member's own, or was freed (kind 'freed').
    'ALTER TABLE macs ADD COLUMN changed BIGINT NOT NULL DEFAULT 0',
    'UPDATE macs SET changed = serial',
    'CREATE INDEX macs_changed ON macs (changed)',
    // Nothing ever wrote one: addresses outside have a table of their own.
    "DELETE FROM macs WHERE kind = 'learned'",
    // member: '' while nobody has it, so that those who were told otherwise can be told. since: when
    // this member got it. sighted: time of the newest sighting; sighting: its number at the member.
    // refreshed: when it was last reported. moves: times of its last moves, held: for how long which
    // member had it (JSON). frozen_until: 0, or until when it stays where it is. kept: it was pinned
    // once, so its row stays.
    `CREATE TABLE learned (
      vlan BIGINT NOT NULL,
      mac TEXT NOT NULL,
      member TEXT NOT NULL,
      since BIGINT NOT NULL,
      sighted BIGINT NOT NULL,
      sighting BIGINT NOT NULL,
      refreshed BIGINT NOT NULL,
      moves TEXT NOT NULL,
      held TEXT NOT NULL,
      frozen_until BIGINT NOT NULL,
      pinned SMALLINT NOT NULL,
      kept SMALLINT NOT NULL,
      serial BIGINT NOT NULL UNIQUE,
      changed BIGINT NOT NULL UNIQUE,
      PRIMARY KEY (vlan, mac)
    )`,
    // Plain members are looked for at each question about an address that nobody owns.
    'CREATE INDEX members_role ON members (role, state)',
    'CREATE INDEX learned_mac ON learned (mac)',
    'CREATE INDEX learned_member ON learned (member, refreshed)',
    'CREATE INDEX learned_frozen ON learned (frozen_until)',
  ],
};
