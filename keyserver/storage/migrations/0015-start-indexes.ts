/**
 * Migration 15: what a start looks for, without reading the whole of the two large tables: pairs whose next generation is prepared, and
 * members that were online.
 */
import type { Migration } from './migration.js';

export const startIndexes: Migration = {
  version: 15,
  name: 'start-indexes',
  statements: [
    'CREATE INDEX pair_keys_prepared ON pair_keys (next_pw_id) WHERE next_pw_id > 0',
    'CREATE INDEX members_online ON members (id) WHERE online = 1',
  ],
};
