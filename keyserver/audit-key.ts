/**
 * The key that signs the heads of a server's audit log. Members pin its public half, so it must stay what it is: a new
 * folder draws one; a folder from before there were signed heads derives it from its audit key, so that several machines that
 * serve one PostgreSQL database come to the same.
 */
import { createHmac, type KeyObject } from 'node:crypto';
import { existsSync } from 'node:fs';
import { LABEL } from '../src/protocol/constants.js';
import { fields } from '../src/protocol/fields.js';
import { generateRawKeyPair, importPrivate } from '../src/protocol/public-keys.js';
import { readKeyFile, writeKeyFile } from '../src/runtime/files.js';
import { KEY_KIND, type KeyServerPaths } from './config.js';

type AuditKeyPaths = Pick<KeyServerPaths, 'auditKey' | 'auditSignKey'>;

/** Draws the key of a new folder. @throws PairwireError FILE_EXISTS */
export function makeAuditSignKey(paths: AuditKeyPaths): void {
  const { privateKey } = generateRawKeyPair('ed25519');
  writeKeyFile(paths.auditSignKey, KEY_KIND.auditSign, privateKey);
  privateKey.fill(0);
}

/** Reads it; makes the file in a folder that has none. @throws PairwireError FILE_UNREADABLE, FILE_MODE */
export function auditSignKey(paths: AuditKeyPaths): KeyObject {
  if (!existsSync(paths.auditSignKey)) derive(paths);
  const raw = readKeyFile(paths.auditSignKey, KEY_KIND.auditSign);
  try {
    return importPrivate('ed25519', raw);
  } finally {
    raw.fill(0);
  }
}

function derive(paths: AuditKeyPaths): void {
  const auditKey = readKeyFile(paths.auditKey, KEY_KIND.audit);
  const seed = createHmac('sha256', auditKey).update(fields(LABEL.auditSign)).digest();
  writeKeyFile(paths.auditSignKey, KEY_KIND.auditSign, seed);
  for (const secret of [auditKey, seed]) secret.fill(0);
}
