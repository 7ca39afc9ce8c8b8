/**
 * What is left to do where the root keys are lost for good: everything that they sealed is dropped, and members, grants, revocations
 * and records go on under a new KMS. Each pair, group and net whose key is made here gets another one, above all numbers of before, so
 * members take it as any newer one; what other servers make is told by them again, from the first change on.
 *
 *   KMS of before moved aside -> new KMS with what did not hang on root keys -> its first DEK in the database instead of all others -> group and nets -> pairs
 *
 * Killed in the middle, it goes on when it is run again; from the new DEK on, also when a server starts instead.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, renameSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { parseChannelAddress } from '../src/net/address.js';
import { RequestError } from '../src/net/channel.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { KEY_SIZE } from '../src/protocol/constants.js';
import { GROUP_ID } from '../src/protocol/ids.js';
import { importPublic } from '../src/protocol/public-keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { lockFolder } from '../src/runtime/folder-lock.js';
import { createLogger, type Logger } from '../src/runtime/log.js';
import { AuditLog } from './audit.js';
import { firstOf } from './cascade/peer-members.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerPaths,
  loadKeyServerConfig,
  pathsOf,
} from './config.js';
import { CurrentSettings, groupInterval } from './current-settings.js';
import { dueAfter, numberAbove } from './keys/renewal.js';
import { KmsClient } from './kms/client.js';
import { kmsPaths } from './kms/config.js';
import { hasKms, makeKms } from './kms/folder.js';
import { LocalDeks } from './kms/local-deks.js';
import { mendNets } from './nets/net-members.js';
import { KeyRing } from './storage/key-ring.js';
import { openDatabase } from './storage/open.js';
import { PostgresDriver } from './storage/postgres.js';
import { blob, integer, type SqlDriver, text } from './storage/sql.js';
import { openStore } from './storage/sql-store.js';
import {
  acceptRows,
  type DekService,
  insertDek,
  openDeks,
  rowMarkOf,
  unlockRows,
} from './storage/unlock.js';

/** Between the name of a KMS's folder and when it was moved aside. */
const FORGOTTEN = '.forgotten-';
/** Why there is another generation. */
const REASON = 'forgotten';
/** Pairs of one transaction. */
const PAGE = 500;
/** Another key server that has the lease of a database ends at once, or serves. */
const LEASE_PATIENCE_MS = 5_000;

/** What came of it. */
export interface Forgotten {
  readonly pairs: number;
  readonly nets: number;
  /** Number of the new group key; undefined if another key server makes it. */
  readonly group: number | undefined;
  /** Where the KMS of before is; undefined if there was none, or it is elsewhere. */
  readonly before: string | undefined;
}

/**
 * Drops all keys of a key server that is stopped.
 * @throws PairwireError CONFLICT if its KMS opens them all the same; STORE_FAILED, KMS_FAILED
 */
export async function forgetKeys(dir: string): Promise<Forgotten> {
  const config = loadKeyServerConfig(dir);
  const paths = pathsOf(dir, config);
  const log = createLogger('forget-keys', config.log);
  const unlockFolder = lockFolder(dir, 'a key server');
  try {
    const driver = await openDatabase(paths);
    try {
      if (driver instanceof PostgresDriver) await waitForLease(driver);
      return await forgetIn(driver, config, paths, log);
    } finally {
      await driver.close();
    }
  } finally {
    unlockFolder();
  }
}

async function waitForLease(driver: PostgresDriver): Promise<void> {
  if (await driver.waitForLease(AbortSignal.timeout(LEASE_PATIENCE_MS))) return;
  throw new PairwireError('CONFLICT', 'another key server serves this database', {
    hint: 'stop all of them first',
  });
}

async function forgetIn(
  driver: SqlDriver,
  config: KeyServerConfig,
  paths: KeyServerPaths,
  log: Logger,
): Promise<Forgotten> {
  const meta = await driver.reader.all(
    "SELECT name, value FROM meta WHERE name IN ('store_id', 'forgetting')",
    [],
  );
  const values = new Map(meta.map((row) => [text(row, 'name'), blob(row, 'value')]));
  const id = values.get('store_id');
  if (id === undefined) {
    throw new PairwireError('NOT_FOUND', 'no key of this database was ever sealed', {
      where: paths.database,
    });
  }
  const ring = new KeyRing(id);
  const rowMark = rowMarkOf(paths.sealMark);
  const begun = values.has('forgetting');
  const { service, before, close } = await newKms(config, paths, log, begun, async (present) => {
    const rows = await driver.reader.all('SELECT id, sealed, active FROM deks', []);
    const keys = await openDeks(present, rows);
    // Interrupted: the DEK that opens is the new one, and only the rest is left to do.
    for (const [at, row] of rows.entries()) {
      const key = keys[at];
      if (begun && key !== undefined) ring.add(blob(row, 'id'), key, integer(row, 'active') === 1);
      key?.fill(0);
    }
  });
  try {
    if (ring.active === undefined) {
      const made = await service.make();
      acceptRows(rowMark);
      await driver.transaction(async (sql) => {
        await sql.run('DELETE FROM deks', []);
        // The key of the rows' MACs is lost with the others.
        await sql.run('DELETE FROM row_keys', []);
        // Members seal their documents anew when they register, and the KMS knows which those are.
        await sql.run('DELETE FROM identities', []);
        await insertDek(sql, made, Date.now());
        await sql.run('DELETE FROM meta WHERE name = ?', ['forgetting']);
        await sql.run('INSERT INTO meta (name, value) VALUES (?, ?)', [
          'forgetting',
          Buffer.from('begun'),
        ]);
      });
      ring.add(made.id, made.key, true);
    }
  } finally {
    close();
  }
  ring.rows = await unlockRows(driver, ring, id, rowMark, log);
  return { ...(await replaceAll(driver, ring, paths, log)), before };
}

/**
 * What is left to do if the command was killed: for a server that starts instead, before it serves. Only keys that don't open are
 * replaced, so whoever writes into the database that there is something to do gets no more than that.
 * @param ring the DEKs and the row key, opened
 * @throws PairwireError STORE_FAILED
 */
export async function finishForgetting(
  driver: SqlDriver,
  ring: KeyRing,
  paths: KeyServerPaths,
  log: Logger,
): Promise<void> {
  const begun = await driver.reader.get("SELECT name FROM meta WHERE name = 'forgetting'", []);
  if (begun === undefined) return;
  const { pairs, nets, group } = await replaceAll(driver, ring, paths, log);
  log.warn({ pairs, nets, group }, 'ended kms forget-keys, which was interrupted');
}

interface NewService {
  readonly service: DekService;
  readonly before: string | undefined;
  close(): void;
}

/**
 * The KMS from now on.
 * @param begun the work was interrupted, so the one that is there may be the new one
 * @param open has DEKs opened by the one that is there
 * @throws PairwireError CONFLICT if that works, and nothing was begun
 */
async function newKms(
  config: KeyServerConfig,
  paths: KeyServerPaths,
  log: Logger,
  begun: boolean,
  open: (present: DekService) => Promise<void>,
): Promise<NewService> {
  const raw = readKeyFile(paths.serverKey, KEY_KIND.server);
  const keys = keyPairFromPrivate(raw);
  const { address, key } = config.kms;
  if (address !== undefined && key !== undefined) {
    const place = parseChannelAddress(address);
    if (place === undefined) throw new PairwireError('CONFIG_INVALID', `kms.address: ${address}`);
    const client = new KmsClient(keys, log);
    client.setAddress({ ...place, publicKey: Buffer.from(key, 'base64url') });
    try {
      // One that is away is not one that lost its root keys.
      await client.status();
      requireLost(await opens(client, open), begun, address);
    } catch (thrown) {
      client.close();
      throw thrown;
    }
    return { service: client, before: undefined, close: () => client.close() };
  }
  let before: string | undefined;
  if (existsSync(paths.kms)) {
    let present: DekService | undefined;
    try {
      if (hasKms(paths.kms)) present = LocalDeks.load(paths.kms);
    } catch (thrown) {
      if (!isLoss(thrown)) throw thrown;
      log.warn({ err: thrown }, 'the KMS that is there can not be used');
    }
    if (present !== undefined && (await opens(present, open))) {
      requireLost(true, begun, paths.kms);
      return { service: present, before: undefined, close: () => {} };
    }
    before = `${paths.kms}${FORGOTTEN}${new Date().toISOString().replace(/[:.]/g, '-')}`;
    renameSync(paths.kms, before);
  }
  const inPlaceOf = lastWithChannelKey(paths.kms);
  const { subnet, server } = config;
  const operator = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true });
  const whom = { subnet, server, serverKey: keys.publicKey, operator, inPlaceOf };
  const roots = makeKms(paths.kms, whom);
  const service = new LocalDeks(roots, { subnet, server });
  return { service, before: before ?? inPlaceOf, close: () => {} };
}

/**
 * The newest of the folders that were moved aside which has the channel key that signed settings name. Not always the one that was moved
 * now: whoever was killed after that, and before there was another KMS, has left none to move.
 */
function lastWithChannelKey(kms: string): string | undefined {
  const prefix = `${basename(kms)}${FORGOTTEN}`;
  // Their names end with the time.
  const names = readdirSync(dirname(kms)).filter((name) => name.startsWith(prefix));
  return names
    .toSorted()
    .reverse()
    .map((name) => join(dirname(kms), name))
    .find((folder) => existsSync(kmsPaths(folder).key));
}

async function opens(
  present: DekService,
  open: (present: DekService) => Promise<void>,
): Promise<boolean> {
  try {
    await open(present);
    return true;
  } catch (thrown) {
    if (isLoss(thrown)) return false;
    throw thrown;
  }
}

/** Whether this says that root keys are gone. A KMS that is slow, busy or out of reach, or files that can't be read here, don't. */
function isLoss(thrown: unknown): boolean {
  if (!(thrown instanceof PairwireError)) return false;
  if (thrown.code === 'KMS_FAILED' && thrown.cause !== undefined) {
    return thrown.cause instanceof RequestError && thrown.cause.code === 'refused';
  }
  return ['KMS_FAILED', 'KMS_TOKEN', 'SEAL_BROKEN'].includes(thrown.code);
}

function requireLost(isOpen: boolean, begun: boolean, where: string): void {
  if (!isOpen || begun) return;
  throw new PairwireError('CONFLICT', 'nothing is lost: this KMS opens the keys', {
    where,
    hint: 'to have other keys: pairwire rekey --force, rekey --group --force, rekey --net --force',
  });
}

async function replaceAll(
  driver: SqlDriver,
  ring: KeyRing,
  paths: KeyServerPaths,
  log: Logger,
): Promise<Omit<Forgotten, 'before'>> {
  const store = await openStore(driver, { ring });
  const { server, subnet } = store.meta;
  const settings = await CurrentSettings.load(store, importPublic('ed25519', store.meta.operator));
  const now = Date.now;
  const key = readKeyFile(paths.auditKey, KEY_KIND.audit);
  const audit = new AuditLog({ store, server, key, now, log });
  const { rekeySeconds, group } = settings.settings;
  const due = (interval: number): number => dueAfter(interval, now(), Math.random);
  try {
    const peers = await store.peerServers();
    const isFirst =
      firstOf(
        server,
        peers.map((one) => one.server),
      ) === server;
    const { groupKey, nets } = await store.write(async (tx) => {
      const detail = { subnet };
      await audit.append(tx, { actor: '-', action: 'keys_forgotten', outcome: 'done', detail });
      const known = await tx.anyGroup(GROUP_ID);
      // What they make and we have lost, they have told already: they begin anew.
      for (const peer of peers) await tx.putPeerServer({ ...peer, cursor: 0 });
      // Of a run that was interrupted.
      let groupKey = known?.key !== undefined && known.reason === REASON ? known.pwId : undefined;
      if (known !== undefined && known.key === undefined && isFirst) {
        groupKey = numberAbove(known.pwId, known.next?.pwId ?? 0);
        const change = await tx.nextChange();
        await tx.replaceGroup({
          ...{ id: GROUP_ID, key: randomBytes(KEY_SIZE), pwId: groupKey, reason: REASON },
          // Who holds what was in force before is heard for the grace period.
          oldest: Math.max(1, Math.min(known.pwId, groupKey)),
          ...{ createdAt: now(), dueAt: due(groupInterval(group.rekey)) },
          ...{ serial: change, changed: change },
        });
      }
      return { groupKey, nets: await mendNets(tx, { now, settings, audit }, '-') };
    });
    let pairs = 0;
    for (let serial = 0; ; ) {
      const page = await store.pairsAfter(serial, PAGE);
      const last = page.at(-1);
      if (last === undefined) break;
      serial = last.serial;
      const lost = page.filter((pair) => pair.key === undefined && pair.maker === undefined);
      await store.write(async (tx) => {
        for (const { a, b, pwId } of lost) {
          const fresh = {
            key: randomBytes(KEY_SIZE),
            pwId: numberAbove(pwId),
            reason: REASON,
          };
          const times = { createdAt: now(), dueAt: due(rekeySeconds * 1_000) };
          await tx.replacePair({ a, b }, { ...fresh, ...times }, await tx.nextChange());
        }
      });
      pairs += lost.length;
    }
    await driver.transaction((sql) => sql.run('DELETE FROM meta WHERE name = ?', ['forgetting']));
    return { pairs, nets: nets.length, group: groupKey };
  } finally {
    await audit.close();
    key.fill(0);
  }
}
