/**
 * New settings for a subnet, signed with the operator key: installed at the key server, or in its database
 * if none runs.
 */
import { LABEL } from '../src/protocol/constants.js';
import { importPublic } from '../src/protocol/public-keys.js';
import type { Settings } from '../src/protocol/records.js';
import { MAX_SIGNED_BODY, type Signed, signRecord } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { createLogger } from '../src/runtime/log.js';
import { AuditLog } from './audit.js';
import { readOperator } from './command-tools.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerPaths,
  loadKeyServerConfig,
  pathsOf,
} from './config.js';
import { CurrentSettings } from './current-settings.js';
import { OperatorClient } from './operator-client.js';
import { openDatabase } from './storage/open.js';
import { openStore } from './storage/sql-store.js';
import type { Store } from './storage/store.js';

/** Where, and by whose key if it is not where the configuration says. */
export interface SettingsPlace {
  readonly dir: string;
  readonly operatorKey?: string;
}

/** Opens the database of a key server's folder with the settings that it has. */
export function withSettings<T>(
  dir: string,
  use: (settings: Settings, store: Store) => T | Promise<T>,
): Promise<T> {
  return withStore(pathsOf(dir, loadKeyServerConfig(dir)), async (store) =>
    use((await currentOf(store)).settings, store),
  );
}

/**
 * Signs and installs what `change` makes of the settings in force.
 * @returns the new settings
 * @throws PairwireError if they are not valid, the key is not the operator's, or the server refuses
 */
export async function changeSettings(
  { dir, operatorKey }: SettingsPlace,
  change: (current: Settings, version: number) => Settings,
): Promise<Settings> {
  const config = loadKeyServerConfig(dir);
  const paths = pathsOf(dir, config);
  return withStore(paths, async (store) => {
    const current = await currentOf(store);
    const next = change(current.settings, current.settings.version + 1);
    const record = signRecord(LABEL.settings, { ...next }, readOperator(paths, operatorKey));
    if (record.b.length > MAX_SIGNED_BODY) {
      throw new PairwireError('USAGE', `the settings would have ${record.b.length} bytes`, {
        hint: `at most ${MAX_SIGNED_BODY}; in a policy, name members by tags instead of ids`,
      });
    }
    if (!(await installAtServer(dir, config, record))) {
      // No server runs: the next one that starts reads them from the database.
      await installOffline(store, paths, current, record);
    }
    return next;
  });
}

function currentOf(store: Store): Promise<CurrentSettings> {
  return CurrentSettings.load(store, importPublic('ed25519', store.meta.operator));
}

/** @returns false if there is no server to install them at */
async function installAtServer(
  dir: string,
  config: KeyServerConfig,
  record: Signed,
): Promise<boolean> {
  const client = new OperatorClient(dir, config);
  try {
    await client.setSettings(record);
    return true;
  } catch (thrown) {
    if (thrown instanceof PairwireError && thrown.code === 'CHANNEL_UNREACHABLE') return false;
    throw thrown;
  } finally {
    client.close();
  }
}

async function installOffline(
  store: Store,
  paths: KeyServerPaths,
  current: CurrentSettings,
  record: Signed,
): Promise<void> {
  const audit = new AuditLog({
    store,
    server: store.meta.server,
    key: readKeyFile(paths.auditKey, KEY_KIND.audit),
    now: Date.now,
    log: createLogger('settings', { level: 'warn' }),
    headFile: paths.auditHead,
  });
  await current.install(store, record, Date.now(), (tx, version) =>
    audit.append(tx, { actor: '-', action: 'settings', outcome: 'done', detail: { version } }),
  );
  await audit.close();
}

/** Opens the database of a key server for `use`. */
export async function withStore<T>(
  paths: KeyServerPaths,
  use: (store: Store) => Promise<T>,
): Promise<T> {
  const store = await openStore(await openDatabase(paths));
  try {
    return await use(store);
  } finally {
    await store.close();
  }
}
