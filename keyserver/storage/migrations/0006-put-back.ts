/** Migration 6: that a database was put back from a backup, as long as its operator has not confirmed it. */
import type { Migration } from './migration.js';

export const putBack: Migration = {
  version: 6,
  name: 'put-back',
  statements: ["INSERT INTO counters (name, value) VALUES ('put_back', 0)"],
};
