/**
 * Checks a backup: that it is as it was written and by whom, that its database is whole and can be used by this program, that the audit
 * log's chain holds, and that every key opens. What needs a key that is not at hand is not checked, and said to be so.
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { loadYaml } from '../../src/settings/load-yaml.js';
import { verifyAudit } from '../audit.js';
import { KEY_KIND, type KeyServerConfig, keyServerConfigSchema } from '../config.js';
import { LocalDeks } from '../kms/local-deks.js';
import { checkSeals } from '../storage/check-seals.js';
import { type Row, text } from '../storage/sql.js';
import { openStore } from '../storage/sql-store.js';
import { SqliteDriver } from '../storage/sqlite.js';
import type { Store } from '../storage/store.js';
import { unlock } from '../storage/unlock.js';
import { type Archive, readArchive } from './archive.js';
import { KeyFiles } from './key-files.js';
import {
  CONFIG_PART,
  DATABASE_PART,
  isManifestMac,
  MARK_PART,
  type Manifest,
  OPERATOR_PART,
} from './manifest.js';

/** What is done to the copy of the database, after all checks and before it is closed. */
export type Finish = (
  store: Store,
  at: {
    readonly keys: KeyFiles;
    readonly config: KeyServerConfig;
    readonly auditKey: Buffer | undefined;
  },
) => Promise<void>;

/** A backup that was found to be whole. Its parts lie in a folder, the database brought to this program's version. */
export interface CheckedBackup {
  readonly manifest: Manifest;
  readonly config: KeyServerConfig;
  /** Whose key proves that nobody changed it: one from outside of the file, one that was in it, or none was at hand. */
  readonly authentic: 'yes' | 'by its own keys' | 'not checked';
  /** Entries of the audit log, if its key was at hand. */
  readonly auditEntries: number | undefined;
  /** Keys that were opened, if the root key was at hand. */
  readonly seals: number | undefined;
  readonly keys: KeyFiles;
}

/**
 * Takes a backup apart into a folder and checks it there.
 * @param folder an empty one, with room for all of it
 * @param keyFolders where key files lie outside of it, like a key server's folder
 * @throws PairwireError BACKUP_DAMAGED; BACKUP_REFUSED for the keys of another server; STORE_VERSION for a newer database;
 *   SEAL_BROKEN, ROW_BROKEN, KMS_FAILED if keys do not open, or rows are not what was written; FILE_UNREADABLE, FILE_MODE
 */
export async function checkBackup(
  path: string,
  folder: string,
  keyFolders: readonly string[],
  finish?: Finish,
): Promise<CheckedBackup> {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const archive = readArchive(path, folder);
  const { manifest } = archive;
  const outside = new KeyFiles(keyFolders).auditKeyOf(manifest);
  const keys = new KeyFiles([...keyFolders, folder]);
  const auditKey = outside ?? keys.auditKeyOf(manifest);
  try {
    requireMac(archive, auditKey, path);
    requireOperator(manifest, join(folder, OPERATOR_PART), path);
    const config = loadYaml(join(folder, CONFIG_PART), keyServerConfigSchema);
    if (config.subnet !== manifest.subnet || config.server !== manifest.server) {
      throw damaged(path, 'its configuration is of another key server');
    }
    const at = { keys, config, auditKey };
    const found = await checkDatabase(folder, path, manifest, at, finish);
    const authentic =
      outside !== undefined ? 'yes' : auditKey !== undefined ? 'by its own keys' : 'not checked';
    return { manifest, config, keys, authentic, ...found };
  } finally {
    auditKey?.fill(0);
  }
}

function requireMac(
  { manifestBytes, mac }: Archive,
  auditKey: Buffer | undefined,
  where: string,
): void {
  if (auditKey === undefined || isManifestMac(auditKey, manifestBytes, mac)) return;
  throw new PairwireError(
    'BACKUP_DAMAGED',
    'this backup was not made with the keys of its server',
    {
      where,
      hint: 'somebody has changed it: look for who can write there, and take another one',
    },
  );
}

function requireOperator(manifest: Manifest, file: string, where: string): void {
  const key = readKeyFile(file, KEY_KIND.operatorPublic, { public: true });
  if (key.toString('base64url') === manifest.operator) return;
  throw damaged(where, 'it names two operator keys');
}

async function checkDatabase(
  folder: string,
  where: string,
  manifest: Manifest,
  at: Parameters<Finish>[1],
  finish: Finish | undefined,
): Promise<Pick<CheckedBackup, 'auditEntries' | 'seals'>> {
  const { keys, auditKey } = at;
  const file = join(folder, DATABASE_PART);
  const driver = await SqliteDriver.open(file);
  try {
    const rows = await driver.reader.all('PRAGMA integrity_check', []);
    const fault = rows.map((row: Row) => text(row, 'integrity_check')).find((one) => one !== 'ok');
    if (fault !== undefined) throw damaged(where, `its database is damaged: ${fault}`);
    if ((await driver.reader.all('PRAGMA foreign_key_check', [])).length > 0) {
      throw damaged(where, 'its database has rows that belong to nothing');
    }
    const store = await openStore(driver);
    const { meta } = store;
    const { change, revocation } = await store.counters();
    const same =
      meta.subnet === manifest.subnet &&
      meta.server === manifest.server &&
      meta.operator.toString('base64url') === manifest.operator &&
      meta.epoch.toString('hex') === manifest.epoch &&
      change === manifest.change &&
      revocation === manifest.revocation;
    if (!same) throw damaged(where, 'its database is not the one that its manifest names');
    let auditEntries: number | undefined;
    if (auditKey !== undefined) {
      const { entries, broken } = await verifyAudit(store, meta.server, auditKey);
      if (broken !== undefined) {
        throw damaged(where, `entry ${broken.seq} of its audit log: ${broken.reason}`);
      }
      auditEntries = entries;
    }
    let seals: number | undefined;
    const kms = keys.kms();
    if (kms !== undefined) {
      const markFile = join(folder, MARK_PART);
      const ring = await unlock(driver, { service: LocalDeks.load(kms), markFile });
      seals = await checkSeals(driver.reader, ring);
      const [wrong] = (await ring.rows?.check()) ?? [];
      if (wrong !== undefined) {
        throw new PairwireError('ROW_BROKEN', 'a row of its database is not what was written', {
          where: `${wrong.table} ${wrong.name.replaceAll('\n', ' ')}: ${wrong.why}`,
          hint: 'docs/operations.md, "A row that is not what was written"',
        });
      }
    }
    if (finish !== undefined) {
      await finish(store, at);
      // The file alone is then all of it.
      if (!(await driver.erase())) throw damaged(where, 'its database could not be closed');
    }
    return { auditEntries, seals };
  } finally {
    await driver.close();
  }
}

/** The id of a store, as its mark has it; undefined without a mark. */
export function markOf(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, 'latin1').trim() : undefined;
}

function damaged(where: string, what: string): PairwireError {
  return new PairwireError('BACKUP_DAMAGED', what, {
    where,
    hint: 'take another backup: nothing of this one was used',
  });
}
