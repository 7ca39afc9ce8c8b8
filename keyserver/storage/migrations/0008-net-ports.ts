/**
 * Migration 8: what the key servers of other subnets tell of their link ports, so that ours get it while those servers are
 * away. `far`: MessagePack of subnet, operator and records as in messages; null until something was told.
 */
import type { Migration } from './migration.js';

export const netPorts: Migration = {
  version: 8,
  name: 'net-ports',
  statements: ['ALTER TABLE nets ADD COLUMN far BYTEA'],
};
