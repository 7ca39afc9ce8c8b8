/**
 * Migration 13: how many keys a DEK may have sealed, over all runs of the server: counted ahead in blocks, so that what was sealed before a
 * kill -9 is never forgotten.
 */
import type { Migration } from './migration.js';

export const dekSeals: Migration = {
  version: 13,
  name: 'dek-seals',
  statements: ['ALTER TABLE deks ADD COLUMN seals BIGINT NOT NULL DEFAULT 0'],
};
