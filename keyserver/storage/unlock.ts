/**
 * Opens the DEKs of a store by the KMS. A store from before there was one gets its first DEK here, and its keys are sealed before
 * anybody is served:
 *
 *   keys in clear --begun--> sealing, page by page --sealed--> their old bytes leave the files --clean-->
 *
 * The state stands in `meta`, so a start that was interrupted is taken up by the next one. That a store was sealed once is noted
 * outside of it too: from then on a key in clear, which somebody put there who can write to the database, is refused.
 */
import { randomBytes } from 'node:crypto';
import { chownSync, existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { STORE_ID_SIZE } from '../../src/protocol/envelope.js';
import { MAX_DEKS, type StoredDek } from '../../src/protocol/kms-messages.js';
import { ROW_KEY_SIZE, RowKeys } from '../../src/protocol/row-macs.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { writeFileAtomic } from '../../src/runtime/files.js';
import type { Logger } from '../../src/runtime/log.js';
import { KeyRing } from './key-ring.js';
import { RESEAL_BEGIN, type ResealCursor, resealPage } from './reseal.js';
import { macAll, openHead, RowGuard } from './row-guard.js';
import { blob, integer, type Row, type SqlConnection, type SqlDriver, text } from './sql.js';

/** Whoever makes and opens DEKs: the KMS, or root keys at hand. */
export interface DekService {
  make(): Promise<{ readonly id: Buffer; readonly key: Buffer; readonly sealed: Buffer }>;
  open(deks: readonly StoredDek[]): Promise<readonly Buffer[]>;
}

export interface UnlockOptions {
  readonly service: DekService;
  /** Where it is noted that this store was sealed. */
  readonly markFile: string;
  readonly log?: Logger;
  readonly now?: () => number;
}

type Sealing = 'begun' | 'sealed' | 'clean';

/** How many DEKs a store has: none if it was never sealed. */
export async function countDeks(driver: SqlDriver): Promise<number> {
  const row = await driver.reader.get('SELECT count(*) AS n FROM deks', []);
  return row === undefined ? 0 : integer(row, 'n');
}

/**
 * Has the DEKs of these rows of `deks` opened, as many at a time as one message takes.
 * @returns their keys, in that order; the caller wipes them
 * @throws PairwireError as the service
 */
export async function openDeks(service: DekService, rows: readonly Row[]): Promise<Buffer[]> {
  const keys: Buffer[] = [];
  for (let at = 0; at < rows.length; at += MAX_DEKS) {
    const page = rows.slice(at, at + MAX_DEKS);
    const deks = page.map((row) => ({ id: blob(row, 'id'), sealed: blob(row, 'sealed') }));
    keys.push(...(await service.open(deks)));
  }
  return keys;
}

/**
 * Opens the DEKs of a store; makes the first one, and seals what is in clear, if there is none.
 * @throws PairwireError KMS_FAILED; SEAL_BROKEN if the store is not the one that was sealed here, or is no more as it was
 */
export async function unlock(driver: SqlDriver, options: UnlockOptions): Promise<KeyRing> {
  const { service, markFile, log, now = Date.now } = options;
  const mark = existsSync(markFile) ? readFileSync(markFile, 'latin1').trim() : undefined;
  let { id, sealing } = await stateOf(driver);
  const rows = await driver.reader.all(
    'SELECT id, sealed, active FROM deks ORDER BY made_at, id',
    [],
  );
  if (
    mark !== undefined &&
    (id?.toString('hex') !== mark || rows.length === 0 || sealing === 'begun')
  ) {
    throw new PairwireError('SEAL_BROKEN', 'this database is not the one whose keys were sealed', {
      where: markFile,
      hint: 'somebody took the seals away, or put back a database from before there were any: if that was you, remove this file, and renew all keys',
    });
  }
  if (id === undefined) {
    id = randomBytes(STORE_ID_SIZE);
    sealing = 'begun';
  }
  const ring = new KeyRing(id);
  ring.onBroken = (err) =>
    log?.error({ err }, 'a key in the database is not what was sealed there');
  for (const [at, key] of (await openDeks(service, rows)).entries()) {
    const row = rows[at];
    if (row !== undefined) ring.add(blob(row, 'id'), key, integer(row, 'active') === 1);
  }
  if (ring.active === undefined) {
    const made = await service.make();
    const store = id;
    await driver.transaction(async (sql) => {
      await putMeta(sql, 'store_id', store);
      await putMeta(sql, 'sealing', Buffer.from(sealing));
      await insertDek(sql, made, now());
    });
    ring.add(made.id, made.key, true);
  }
  if (sealing === 'begun') {
    log?.warn('the keys of this database are in clear: sealing them');
    const sealed = await sealAll(driver, ring);
    await setSealing(driver, 'sealed');
    log?.info({ sealed }, 'the keys of this database are sealed');
    sealing = 'sealed';
  }
  if (sealing === 'sealed') {
    // What is sealed is served, also where there is no room to rewrite the file now: the next start tries again.
    const erased = await driver.erase().catch((err: unknown) => {
      log?.warn({ err }, 'the database could not be rewritten');
      return false;
    });
    if (erased) await setSealing(driver, 'clean');
    else {
      log?.warn(
        { hint: 'docs/operations.md says how to be rid of them, and of backups' },
        'what was in clear may still be found in old pages of the database',
      );
    }
  }
  ring.rows = await unlockRows(driver, ring, id, rowMarkOf(markFile), log);
  if (mark === undefined) writeFileAtomic(markFile, `${id.toString('hex')}\n`);
  return ring;
}

/** Where the version of the rows' MACs is noted outside of the database. */
export function rowMarkOf(sealMark: string): string {
  return join(dirname(sealMark), ROW_MARK_NAME);
}

interface RowMark {
  readonly version: number;
  /** The operator has looked at the rows, and they shall count as they are. */
  readonly accept: boolean;
}

/** What is noted; undefined if nothing ever was. */
function readRowMark(path: string): RowMark | undefined {
  if (!existsSync(path)) return undefined;
  const [, accept, version] = /^(accept )?(\d{1,15})\n$/.exec(readFileSync(path, 'latin1')) ?? [];
  if (version !== undefined) return { version: Number(version), accept: accept !== undefined };
  throw new PairwireError('FILE_UNREADABLE', 'the noted version of the rows is damaged', {
    where: path,
    hint: 'docs/operations.md, "A row that is not what was written"',
  });
}

/** Has the next start take the rows as they are. @throws PairwireError FILE_UNREADABLE */
export function acceptRows(path: string): void {
  writeRowMark(path, { version: readRowMark(path)?.version ?? 0, accept: true });
  // The key server that reads it may run as another user, whose the folder is.
  const { uid, gid } = statSync(dirname(path));
  if (process.geteuid?.() === 0 && (uid !== 0 || gid !== 0)) chownSync(path, uid, gid);
}

/** Notes the version of the last write; a database that is older than that was put back. */
export function noteRowVersion(path: string, version: number): void {
  writeRowMark(path, { version, accept: false });
}

function writeRowMark(path: string, { version, accept }: RowMark): void {
  writeFileAtomic(path, `${accept ? 'accept ' : ''}${version}\n`);
}

const ROW_MARK_NAME = 'store.rows';
const ROW_KEY_ID = 'rows';
/** Of row versions that are believed without a seal. */
const MAX_ROW_VERSION = 2 ** 48;

/**
 * Opens the row key and the sums. Rows of a database from before they had MACs, and those that the operator accepts as they are, get MACs
 * here, all in one transaction.
 */
export async function unlockRows(
  driver: SqlDriver,
  ring: KeyRing,
  store: Buffer,
  markFile: string,
  log: Logger | undefined,
): Promise<RowGuard> {
  const mark = readRowMark(markFile);
  const row = await driver.reader.get('SELECT * FROM row_keys WHERE id = ?', [ROW_KEY_ID]);
  if (mark !== undefined && !mark.accept && row === undefined) {
    throw new PairwireError('ROW_BROKEN', 'the MACs over the rows of this database are gone', {
      where: markFile,
      hint: 'somebody took them away, or put back a database from before there were any: if that was you, pairwire kms accept-rows',
    });
  }
  const note = (version: number): void => {
    // Somebody may have accepted the rows while this server runs.
    writeRowMark(markFile, { version, accept: readRowMark(markFile)?.accept ?? false });
  };
  let guard: RowGuard;
  if (row === undefined || mark?.accept === true) {
    const generation = row === undefined ? 1 : integer(row, 'pw_id') + 1;
    const key = randomBytes(ROW_KEY_SIZE);
    const sealed = ring.seal('row_keys', 'key', [ROW_KEY_ID], generation, key);
    const keys = new RowKeys(store, key);
    const head = await driver.transaction(async (sql) => {
      await sql.run('DELETE FROM row_keys', []);
      await sql.run('INSERT INTO row_keys (id, key, pw_id) VALUES (?, ?, ?)', [
        ...[ROW_KEY_ID, sealed, generation],
      ]);
      // Above all that was noted, also on other machines: a database from before that is then an older one.
      return macAll(sql, keys, Math.max(mark?.version ?? 0, await headVersion(sql)));
    });
    if (mark?.accept === true) log?.warn('the rows of the database count as they are from now on');
    guard = new RowGuard(driver, keys, head, note);
    noteRowVersion(markFile, head.version);
  } else {
    const generation = integer(row, 'pw_id');
    const key = ring.open('row_keys', 'key', [ROW_KEY_ID], generation, blob(row, 'key'));
    const keys = new RowKeys(store, key);
    guard = new RowGuard(driver, keys, await openHead(driver.reader, keys), note);
    if (mark !== undefined && guard.version < mark.version) {
      guard.note({ table: 'row_head', name: '', why: 'rolled back' });
    }
    if (guard.version !== mark?.version) note(guard.version);
  }
  await guard.load(driver.reader);
  return guard;
}

/** What the database says its version is, where nothing shows whether that is right. */
async function headVersion(sql: SqlConnection): Promise<number> {
  const row = await sql.get('SELECT version FROM row_head WHERE one = 1', []);
  const version = Number(row?.version ?? 0);
  // Nobody has written so often: whoever wrote that shall not have the counting end.
  return version >= 0 && version < MAX_ROW_VERSION ? version : 0;
}

/** Adds a DEK that seals from now on; those before it open what they sealed. */
export async function insertDek(
  sql: SqlConnection,
  { id, sealed }: { readonly id: Buffer; readonly sealed: Buffer },
  now: number,
): Promise<void> {
  await sql.run('UPDATE deks SET active = 0', []);
  await sql.run('INSERT INTO deks (id, sealed, made_at, active) VALUES (?, ?, ?, 1)', [
    id,
    sealed,
    now,
  ]);
}

async function sealAll(driver: SqlDriver, ring: KeyRing): Promise<number> {
  let sealed = 0;
  for (let at: ResealCursor | undefined = RESEAL_BEGIN; at !== undefined; ) {
    const cursor: ResealCursor = at;
    const page = await driver.transaction((sql) => resealPage(sql, ring, cursor, true));
    sealed += page.sealed;
    at = page.next;
  }
  return sealed;
}

async function stateOf(driver: SqlDriver): Promise<{ id: Buffer | undefined; sealing: Sealing }> {
  const rows = await driver.reader.all(
    "SELECT name, value FROM meta WHERE name IN ('store_id', 'sealing')",
    [],
  );
  const values = new Map(rows.map((row) => [text(row, 'name'), blob(row, 'value')]));
  const found = values.get('sealing')?.toString();
  const sealing = (['begun', 'sealed', 'clean'] as const).find((one) => one === found);
  return { id: values.get('store_id'), sealing: sealing ?? 'begun' };
}

async function setSealing(driver: SqlDriver, state: Sealing): Promise<void> {
  await driver.transaction((sql) => putMeta(sql, 'sealing', Buffer.from(state)));
}

async function putMeta(sql: SqlConnection, name: string, value: Buffer): Promise<void> {
  await sql.run(
    'INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value',
    [name, value],
  );
}
