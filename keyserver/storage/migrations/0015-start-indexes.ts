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
    // With its home in front, for which there is another index that would be taken.
    'CREATE INDEX members_online ON members (home, id) WHERE online = 1',
  ],
};
