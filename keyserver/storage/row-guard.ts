/**
 * Looks after the MACs over a store's rows (docs/protocol.md 11.9) while it is open: gives each row that is written another one in the same
 * transaction, says of what is read whether it is what was written, and goes through all rows at the start and from then on.
 *
 * What is wrong is never mended by a write that happens to come along: a row keeps its fault until it is written as a whole, and the sums
 * keep theirs until the operator accepts the rows as they are (`pairwire kms accept-rows`).
 */
import { timingSafeEqual } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import {
  addTerm,
  ROW_BUCKETS,
  ROW_MAC_SIZE,
  ROW_SUMS_SIZE,
  type RowKeys,
} from '../../src/protocol/row-macs.js';
import { PairwireError } from '../../src/runtime/errors.js';
import {
  bucketOfRow,
  columnsOf,
  keyNamed,
  keyOf,
  MEMBERS,
  nameOf,
  ROW_TABLES,
  type RowTable,
  SETTINGS,
} from './row-tables.js';
import {
  blob,
  integer,
  type Row,
  type SqlConnection,
  type SqlDriver,
  type SqlValue,
} from './sql.js';

/** Findings that are remembered and told of, each once. */
export const MAX_BROKEN_ROWS = 10_000;
/** With more rows than that they are checked after the server has begun to serve. */
export const MAX_ROWS_BEFORE = 20_000;
/** From the end of a round to the next one. */
const ROUND_EVERY_MS = 60_000;
/** The rounds take a tenth of the time at most. */
const PAUSE_FOR_EACH = 9;
const NOTE_EVERY_MS = 10_000;
const PAGE = 500;

/** Tables that say whose an address is, or who is there; of a bucket it is not known what is missing. */
const WHOSE = ['members', 'macs', 'learned', 'row_macs'];

/** What is wrong. */
export interface RowFinding {
  readonly table: string;
  /** The primary key of the row, the number of a bucket, or empty: the table as a whole. */
  readonly name: string;
  readonly why:
    | 'changed'
    | 'taken away'
    | 'put there'
    /** A row of this bucket is an older one, or gone together with its MAC. */
    | 'older'
    | 'rolled back';
}

interface Entry {
  readonly bucket: number;
  readonly version: number;
  readonly mac: Buffer;
}

/** The table and the name of a row with a MAC. */
type EntryName = readonly [tab: string, name: string];
/** Before all of them. */
const FIRST_ENTRY: EntryName = ['', ''];

interface Head {
  readonly version: number;
  readonly sums: Buffer;
}

export class RowGuard {
  readonly #driver: SqlDriver;
  readonly #keys: RowKeys;
  readonly #noteVersion: (version: number) => void;
  readonly #broken = new Map<string, RowFinding>();
  /** Buckets with a wrong sum: the version up to which their rows may be older ones. */
  readonly #older = new Map<number, number>();
  readonly #revoked = new Set<string>();
  readonly #stop = new AbortController();
  /** The head of the last write that is known to be on the disk. */
  #committed: Head;
  #sealed: { readonly sealed: Buffer; readonly head: Head } | undefined;
  #noted: number;
  #noter: NodeJS.Timeout | undefined;
  #failed: (error: unknown) => void = () => {};
  #loop: Promise<void> | undefined;
  #onBroken: (finding: RowFinding) => void = () => {};

  /**
   * @param head the one that was found, opened
   * @param noteVersion notes the version of the last write outside of the database
   */
  constructor(
    driver: SqlDriver,
    keys: RowKeys,
    head: Head,
    noteVersion: (version: number) => void,
  ) {
    this.#driver = driver;
    this.#keys = keys;
    this.#committed = head;
    this.#noted = head.version;
    this.#noteVersion = noteVersion;
  }

  /** Told of each finding once, also of those before now. */
  set onBroken(tell: (finding: RowFinding) => void) {
    this.#onBroken = tell;
    for (const finding of this.#broken.values()) tell(finding);
  }

  /** What is wrong now. */
  get findings(): readonly RowFinding[] {
    return [...this.#broken.values()];
  }

  /** Version of the last write. */
  get version(): number {
    return this.#committed.version;
  }

  /** False while somebody's address may be missing. */
  get isWhole(): boolean {
    return this.findings.every(({ table }) => !WHOSE.includes(table));
  }

  /** Whether a row that was read together with its MAC (`ROW_MAC`) is the one that was written. Notes one that is not. */
  isGood(table: RowTable, row: Row): boolean {
    const name = nameOf(keyOf(table, row));
    const entry = entryOf(row);
    if (table.applies?.(row) === false && entry === undefined) return true;
    if (entry === undefined || !fits(this.#keys, table, name, row, entry)) {
      this.note({ table: table.table, name, why: entry === undefined ? 'put there' : 'changed' });
      return false;
    }
    if (table === MEMBERS && row.state === 'active' && this.#revoked.has(name)) {
      this.note({ table: table.table, name, why: 'older' });
      return false;
    }
    // What was written since is none of the older ones.
    const upTo = this.#older.get(entry.bucket);
    return upTo === undefined || entry.version > upTo;
  }

  /** Whether a row that is missing is to be missing: it has no MAC either. */
  isAbsent(sql: SqlConnection, table: RowTable, key: readonly SqlValue[]): Promise<boolean> {
    return this.begin(sql).isAbsent(table, key);
  }

  /** Whether a row is what was written, or was never there. Notes one that is not. */
  isRight(sql: SqlConnection, table: RowTable, key: readonly SqlValue[]): Promise<boolean> {
    return this.begin(sql).isRight(table, key);
  }

  /** Remembers what is wrong. */
  note(finding: RowFinding): void {
    const at = `${finding.table} ${finding.name}`;
    if (this.#broken.has(at) || this.#broken.size >= MAX_BROKEN_ROWS) return;
    this.#broken.set(at, finding);
    this.#onBroken(finding);
  }

  /** What a transaction writes to rows with MACs. */
  begin(sql: SqlConnection): RowChange {
    return new RowChange(this, this.#keys, sql);
  }

  /** A transaction is on the disk. */
  committed(change: RowChange): void {
    const { head, revoked } = change;
    for (const id of revoked) this.#revoked.add(id);
    for (const at of change.mended) this.#broken.delete(at);
    if (head !== undefined && head.version > this.#committed.version) this.#committed = head;
  }

  /**
   * The stored head; the one that is known to be on the disk, if somebody has put another or an older one there. What was sealed here last
   * is not opened again.
   */
  async readHead(sql: SqlConnection): Promise<Head & { readonly isOld: boolean }> {
    const last = this.#sealed;
    const row = await sql.get('SELECT version, sealed FROM row_head WHERE one = 1', []);
    if (row !== undefined) {
      const version = Number(row.version);
      const isLast = last?.head.version === version && isSame(row.sealed, last.sealed);
      if (isLast && version >= this.#committed.version) {
        return { ...last.head, isOld: false };
      }
      try {
        const head = { version, sums: this.#keys.openHead(version, blob(row, 'sealed')) };
        if (version >= this.#committed.version) return { ...head, isOld: false };
      } catch (thrown) {
        const isBroken =
          thrown instanceof PairwireError && ['ROW_BROKEN', 'STORE_FAILED'].includes(thrown.code);
        if (!isBroken) throw thrown;
      }
    }
    return { ...this.#committed, isOld: true };
  }

  /** What was sealed last. */
  sealed(sealed: Buffer, head: Head): void {
    this.#sealed = { sealed, head };
  }

  /** Takes in which ids were revoked. */
  async load(sql: SqlConnection): Promise<void> {
    for (const row of await sql.all('SELECT member FROM revocations', [])) {
      if (typeof row.member === 'string') this.#revoked.add(row.member);
    }
  }

  /**
   * Checks all rows once, if there are few, and from then on again and again. Settings that were installed without the row key
   * (`pairwire settings`) get their MACs: the operator has signed them.
   * @param failed told of a round that could not be ended, or a version that could not be noted
   * @throws PairwireError STORE_FAILED
   */
  async start(failed: (error: unknown) => void): Promise<void> {
    this.#failed = failed;
    const change = await this.#driver.transaction(async (sql) => {
      const one = this.begin(sql);
      const known = new Set(
        (await sql.all('SELECT name FROM row_macs WHERE tab = ?', [SETTINGS.table])).map(
          (row) => row.name,
        ),
      );
      const keys = await one.keys(SETTINGS, 'version >= ?', [0]);
      const without = keys.filter((key) => !known.has(nameOf(key)));
      await one.around(SETTINGS, without, true, () => Promise.resolve());
      await one.finish();
      return one;
    });
    this.committed(change);
    const row = await this.#driver.reader.get('SELECT count(*) AS n FROM row_macs', []);
    const isFew = row !== undefined && integer(row, 'n') <= MAX_ROWS_BEFORE;
    if (isFew) await this.check();
    this.#noter = setInterval(() => this.#note(), NOTE_EVERY_MS);
    this.#noter.unref();
    this.#loop = this.#rounds(isFew ? ROUND_EVERY_MS : 0);
  }

  /** Only after it is on the disk: so what is noted is never newer than the database. */
  #note(): void {
    if (this.version === this.#noted) return;
    try {
      this.#noteVersion(this.version);
      this.#noted = this.version;
    } catch (thrown) {
      this.#failed(thrown);
    }
  }

  async #rounds(after: number): Promise<void> {
    for (let wait = after; ; wait = ROUND_EVERY_MS) {
      if (await this.#pause(wait)) return;
      try {
        await this.check(PAUSE_FOR_EACH);
      } catch (thrown) {
        if (!this.#stop.signal.aborted) this.#failed(thrown);
      }
    }
  }

  /** @returns true if it is to end */
  async #pause(ms: number): Promise<boolean> {
    await pause(ms, undefined, { signal: this.#stop.signal, ref: false }).catch(() => undefined);
    return this.#stop.signal.aborted;
  }

  async close(): Promise<void> {
    clearInterval(this.#noter);
    this.#stop.abort();
    await this.#loop;
    if (this.#noter !== undefined) this.#note();
  }

  /**
   * Goes through all rows and sums. Each step is a transaction, so that no write is seen half done, and short, so that it holds nobody
   * up: a row is compared with its MAC there, and the MACs of a bucket with their sum.
   * @param rest how many times as long as a step takes it waits after that; 0: all of it is one step
   * @throws PairwireError STORE_FAILED
   */
  async check(rest = 0): Promise<readonly RowFinding[]> {
    const step = async <T>(work: (sql: SqlConnection) => Promise<T>): Promise<T | undefined> => {
      const since = performance.now();
      if (this.#stop.signal.aborted) return undefined;
      const result = await this.#driver.transaction(work);
      if (rest > 0) await this.#pause(rest * (performance.now() - since));
      return result;
    };
    if (rest === 0) {
      await step((sql) => this.#checkAtOnce(sql));
      return this.findings;
    }
    for (let bucket = 0; bucket < ROW_BUCKETS; bucket += 1) {
      for (let after: EntryName | undefined = FIRST_ENTRY; after !== undefined; ) {
        const from: EntryName = after;
        after = await step((sql) => this.#checkRows(sql, bucket, from));
      }
      await step((sql) => this.#checkSum(sql, bucket));
    }
    await step((sql) => this.#checkOutside(sql));
    for (const table of ROW_TABLES) {
      for (let after: readonly SqlValue[] | undefined = []; after !== undefined; ) {
        const from: readonly SqlValue[] = after;
        after = await step((sql) => this.#checkPage(sql, table, from));
      }
    }
    return this.findings;
  }

  /** Each table is read once: of a database behind a network, a question for each row would take seconds. */
  async #checkAtOnce(sql: SqlConnection): Promise<void> {
    const head = await this.readHead(sql);
    if (head.isOld) this.note({ table: 'row_head', name: '', why: 'changed' });
    const known = new Map(
      ROW_TABLES.map(({ table }) => [table, new Map<string, Entry | undefined>()]),
    );
    const entries: Entry[] = [];
    for (const row of await sql.all('SELECT * FROM row_macs', [])) {
      const [tab, name] = [String(row.tab), String(row.name)];
      const entry = entryOf({ row_version: row.version, row_bucket: row.bucket, row_mac: row.mac });
      const names = known.get(tab);
      names?.set(name, entry);
      if (entry !== undefined && names !== undefined) entries.push(entry);
      else if (!isBucket(Number(row.bucket))) this.note({ table: tab, name, why: 'changed' });
      else this.note({ table: 'row_macs', name: `${tab} ${name}`, why: 'changed' });
    }
    for (const table of ROW_TABLES) {
      const names = known.get(table.table) ?? new Map<string, Entry | undefined>();
      for (let after: readonly SqlValue[] | undefined = []; after !== undefined; ) {
        const rows: readonly Row[] = await readPage(sql, table, after);
        for (const row of rows) this.#compare(table, row, names);
        after = nextPage(table, rows);
      }
      for (const [name, entry] of names) {
        if (entry !== undefined) this.note({ table: table.table, name, why: 'taken away' });
      }
    }
    const sums = this.#sumsOf(entries);
    for (let bucket = 0; bucket < ROW_BUCKETS; bucket += 1) {
      this.#compareSum(bucket, sums, head);
    }
  }

  /** A row is what was written. Takes its MAC out of those of its table. */
  #compare(table: RowTable, row: Row, names: Map<string, Entry | undefined>): void {
    const name = nameOf(keyOf(table, row));
    const isKnown = names.has(name);
    const entry = names.get(name);
    names.delete(name);
    if (!isKnown) this.#noteWithout(table, name);
    else if (entry !== undefined && !fits(this.#keys, table, name, row, entry)) {
      this.note({ table: table.table, name, why: 'changed' });
    }
  }

  /** A row without a MAC. Settings are the operator's, who signed them, and are installed without the row key too. */
  #noteWithout(table: RowTable, name: string): void {
    if (table !== SETTINGS) this.note({ table: table.table, name, why: 'put there' });
  }

  #sumsOf(entries: readonly Entry[]): Buffer {
    const sums = Buffer.alloc(ROW_SUMS_SIZE);
    const terms = this.#keys.terms(Buffer.concat(entries.map(({ mac }) => mac)));
    for (const [at, { bucket }] of entries.entries()) {
      addTerm(sums, bucket, terms.subarray(at * ROW_MAC_SIZE, (at + 1) * ROW_MAC_SIZE), 1);
    }
    return sums;
  }

  #compareSum(bucket: number, sums: Buffer, head: Head): void {
    const [from, to] = [bucket * ROW_MAC_SIZE, (bucket + 1) * ROW_MAC_SIZE];
    if (sums.subarray(from, to).equals(head.sums.subarray(from, to))) return;
    if (!this.#older.has(bucket)) this.#older.set(bucket, head.version);
    this.note({ table: 'row_macs', name: String(bucket), why: 'older' });
  }

  /** The rows of a page of a bucket's MACs are what was written. @returns where the next page begins */
  async #checkRows(
    sql: SqlConnection,
    bucket: number,
    [tab, after]: EntryName,
  ): Promise<EntryName | undefined> {
    const rows = await sql.all(
      `SELECT * FROM row_macs WHERE bucket = ? AND (tab, name) > (?, ?) ORDER BY tab, name LIMIT ?`,
      [bucket, tab, after, PAGE],
    );
    for (const row of rows) {
      const entry = entryOf({ row_version: row.version, row_bucket: row.bucket, row_mac: row.mac });
      const table = ROW_TABLES.find((one) => one.table === row.tab);
      const name = typeof row.name === 'string' ? row.name : '';
      if (entry === undefined || table === undefined) {
        this.note({ table: 'row_macs', name: `${String(row.tab)} ${name}`, why: 'changed' });
        continue;
      }
      const found = await readRow(sql, table, keyNamed(table, name));
      if (found === undefined) this.note({ table: table.table, name, why: 'taken away' });
      else if (!fits(this.#keys, table, name, found, entry)) {
        this.note({ table: table.table, name, why: 'changed' });
      }
    }
    const last = rows.at(-1);
    return last === undefined || rows.length < PAGE
      ? undefined
      : [String(last.tab), String(last.name)];
  }

  /** All MACs of a bucket, the newest, are there. */
  async #checkSum(sql: SqlConnection, bucket: number): Promise<void> {
    const head = await this.readHead(sql);
    if (head.isOld) this.note({ table: 'row_head', name: '', why: 'changed' });
    const rows = await sql.all('SELECT bucket, version, mac FROM row_macs WHERE bucket = ?', [
      bucket,
    ]);
    const entries = rows.flatMap(
      (row) =>
        entryOf({ row_version: row.version, row_bucket: row.bucket, row_mac: row.mac }) ?? [],
    );
    this.#compareSum(bucket, this.#sumsOf(entries), head);
  }

  /** Nothing is in a bucket that there is not. */
  async #checkOutside(sql: SqlConnection): Promise<void> {
    const rows = await sql.all(
      'SELECT tab, name FROM row_macs WHERE bucket < 0 OR bucket >= ? LIMIT ?',
      [ROW_BUCKETS, PAGE],
    );
    for (const row of rows) {
      this.note({ table: String(row.tab), name: String(row.name), why: 'changed' });
    }
  }

  /** Every row of a page has a MAC; whether it fits was seen with the buckets. @returns where the next page begins */
  async #checkPage(
    sql: SqlConnection,
    table: RowTable,
    after: readonly SqlValue[],
  ): Promise<readonly SqlValue[] | undefined> {
    const rows = await readPage(sql, table, after);
    const names = rows.map((row) => nameOf(keyOf(table, row)));
    const known = new Set<unknown>();
    if (names.length > 0) {
      const found = await sql.all(
        `SELECT name FROM row_macs WHERE tab = ? AND name IN (${names.map(() => '?').join(', ')})`,
        [table.table, ...names],
      );
      for (const row of found) known.add(row.name);
    }
    for (const name of names) if (!known.has(name)) this.#noteWithout(table, name);
    return nextPage(table, rows);
  }
}

/** What one transaction does to rows with MACs. */
export class RowChange {
  /** The sums after it; undefined: it has changed none. */
  head: Head | undefined;
  readonly revoked = new Set<string>();
  /** Rows that it has written as a whole, so that what was wrong with them is over. */
  readonly mended = new Set<string>();
  readonly #guard: RowGuard;
  readonly #keys: RowKeys;
  readonly #sql: SqlConnection;

  constructor(guard: RowGuard, keys: RowKeys, sql: SqlConnection) {
    this.#guard = guard;
    this.#keys = keys;
    this.#sql = sql;
  }

  /**
   * Runs a statement that may change these rows, and gives those that it has changed another MAC.
   * @param whole it leaves nothing of what the rows were: so they are right afterwards, whatever they were
   */
  async around<T>(
    table: RowTable,
    keys: readonly (readonly SqlValue[])[],
    whole: boolean,
    statement: () => Promise<T>,
  ): Promise<T> {
    const before: { readonly entry: Entry | undefined; readonly isGood: boolean }[] = [];
    for (const key of keys) {
      const name = nameOf(key);
      const entry = await this.#entry(table, name);
      const isGood =
        whole || this.#isRight(table, name, await readRow(this.#sql, table, key), entry);
      before.push({ entry, isGood });
    }
    const result = await statement();
    for (const [at, key] of keys.entries()) {
      const { entry, isGood } = before[at] ?? { entry: undefined, isGood: false };
      if (isGood) await this.#rewrite(table, key, entry);
    }
    return result;
  }

  /** Whether there is neither a row nor a MAC of one. Notes a MAC without a row. */
  async isAbsent(table: RowTable, key: readonly SqlValue[]): Promise<boolean> {
    if ((await readRow(this.#sql, table, key)) !== undefined) return false;
    const name = nameOf(key);
    if ((await this.#entry(table, name)) === undefined) return true;
    this.#guard.note({ table: table.table, name, why: 'taken away' });
    return false;
  }

  /** Whether a row and its MAC fit, or there is neither. Notes it if not. */
  async isRight(table: RowTable, key: readonly SqlValue[]): Promise<boolean> {
    const name = nameOf(key);
    return this.#isRight(
      table,
      name,
      await readRow(this.#sql, table, key),
      await this.#entry(table, name),
    );
  }

  #isRight(table: RowTable, name: string, row: Row | undefined, entry: Entry | undefined): boolean {
    const isRight =
      row === undefined
        ? entry === undefined
        : entry !== undefined && fits(this.#keys, table, name, row, entry);
    if (isRight) return true;
    const why = row === undefined ? 'taken away' : entry === undefined ? 'put there' : 'changed';
    this.#guard.note({ table: table.table, name, why });
    return false;
  }

  /** The keys of the rows that a condition meets. */
  async keys(
    table: RowTable,
    condition: string,
    params: readonly SqlValue[],
  ): Promise<readonly (readonly SqlValue[])[]> {
    const rows = await this.#sql.all(
      `SELECT ${table.key.join(', ')} FROM ${table.table} WHERE ${condition}`,
      params,
    );
    return rows.map((row) => keyOf(table, row));
  }

  /** Stores the sums. */
  async finish(): Promise<void> {
    if (this.head === undefined) return;
    const { version, sums } = this.head;
    const sealed = this.#keys.sealHead(version, sums);
    await this.#sql.run('UPDATE row_head SET version = ?, sealed = ? WHERE one = 1', [
      version,
      sealed,
    ]);
    this.#guard.sealed(sealed, this.head);
  }

  async #entry({ table }: RowTable, name: string): Promise<Entry | undefined> {
    const row = await this.#sql.get(
      `SELECT version AS row_version, bucket AS row_bucket, mac AS row_mac FROM row_macs
       WHERE tab = ? AND name = ?`,
      [table, name],
    );
    return row === undefined ? undefined : entryOf(row);
  }

  async #rewrite(
    table: RowTable,
    key: readonly SqlValue[],
    entry: Entry | undefined,
  ): Promise<void> {
    const name = nameOf(key);
    const row = await readRow(this.#sql, table, key);
    if (
      row === undefined
        ? entry === undefined
        : entry !== undefined && fits(this.#keys, table, name, row, entry)
    ) {
      return;
    }
    const { version: last, sums } = this.head ?? (await this.#open());
    const version = last + 1;
    if (entry !== undefined) addTerm(sums, entry.bucket, this.#keys.terms(entry.mac), -1);
    if (row === undefined) {
      await this.#sql.run('DELETE FROM row_macs WHERE tab = ? AND name = ?', [table.table, name]);
    } else {
      const bucket = bucketOfRow(table, row);
      const mac = macOf(this.#keys, table, name, row, { bucket, version });
      addTerm(sums, bucket, this.#keys.terms(mac), 1);
      await putEntry(this.#sql, table, name, { bucket, version, mac });
    }
    this.head = { version, sums };
    this.mended.add(`${table.table} ${name}`);
  }

  async #open(): Promise<Head> {
    const { version, sums, isOld } = await this.#guard.readHead(this.#sql);
    if (isOld) this.#guard.note({ table: 'row_head', name: '', why: 'changed' });
    return { version, sums: Buffer.from(sums) };
  }
}

/** A row's MAC in a query that joins `macOfRow`. */
export const ROW_MAC = 'e.version AS row_version, e.bucket AS row_bucket, e.mac AS row_mac';

/** Joins the MACs of a table's rows, to whose columns the query says `alias`. */
export function macOfRow({ table, key, columns }: RowTable, alias: string): string {
  const name = key
    .map((one) => {
      const type = columns.find(([column]) => column === one)?.[1];
      return type === 'text' ? `${alias}.${one}` : `CAST(${alias}.${one} AS TEXT)`;
    })
    .join(" || '\n' || ");
  return `LEFT JOIN row_macs e ON e.tab = '${table}' AND e.name = ${name}`;
}

/** The first MACs of all rows there are. @returns the head */
export async function macAll(sql: SqlConnection, keys: RowKeys, from: number): Promise<Head> {
  await sql.run('DELETE FROM row_macs', []);
  await sql.run('DELETE FROM row_head', []);
  const sums = Buffer.alloc(ROW_SUMS_SIZE);
  let version = from;
  for (const table of ROW_TABLES) {
    for (let after: readonly SqlValue[] | undefined = []; after !== undefined; ) {
      const rows: readonly Row[] = await readPage(sql, table, after);
      for (const row of rows) {
        version += 1;
        const name = nameOf(keyOf(table, row));
        const bucket = bucketOfRow(table, row);
        const mac = macOf(keys, table, name, row, { bucket, version });
        addTerm(sums, bucket, keys.terms(mac), 1);
        await putEntry(sql, table, name, { bucket, version, mac });
      }
      after = nextPage(table, rows);
    }
  }
  await sql.run('INSERT INTO row_head (one, version, sealed) VALUES (1, ?, ?)', [
    version,
    keys.sealHead(version, sums),
  ]);
  return { version, sums };
}

/** Opens the head that is stored. @throws PairwireError ROW_BROKEN */
export async function openHead(sql: SqlConnection, keys: RowKeys): Promise<Head> {
  const row = await sql.get('SELECT version, sealed FROM row_head WHERE one = 1', []);
  if (row === undefined) throw new PairwireError('ROW_BROKEN', 'the sums over the rows are gone');
  const version = Number(row.version);
  return { version, sums: keys.openHead(version, blob(row, 'sealed')) };
}

async function putEntry(
  sql: SqlConnection,
  { table }: RowTable,
  name: string,
  { bucket, version, mac }: Entry,
): Promise<void> {
  await sql.run(
    `INSERT INTO row_macs (tab, name, bucket, version, mac) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (tab, name) DO UPDATE SET bucket = excluded.bucket, version = excluded.version,
       mac = excluded.mac`,
    [table, name, bucket, version, mac],
  );
}

async function readRow(
  sql: SqlConnection,
  table: RowTable,
  key: readonly SqlValue[],
): Promise<Row | undefined> {
  const columns = table.columns.map(([name]) => name).join(', ');
  const condition = table.key.map((name) => `${name} = ?`).join(' AND ');
  const only = table.where === undefined ? '' : ` AND ${table.where}`;
  return sql.get(`SELECT ${columns} FROM ${table.table} WHERE ${condition}${only}`, key);
}

/** Rows in the order of their keys, after one. */
async function readPage(
  sql: SqlConnection,
  table: RowTable,
  after: readonly SqlValue[],
): Promise<readonly Row[]> {
  const columns = table.columns.map(([name]) => name).join(', ');
  const order = table.key.join(', ');
  const conditions = [
    ...(after.length === 0 ? [] : [`(${order}) > (${after.map(() => '?').join(', ')})`]),
    ...(table.where === undefined ? [] : [table.where]),
  ];
  const where = conditions.length === 0 ? '' : `WHERE ${conditions.join(' AND ')}`;
  return sql.all(`SELECT ${columns} FROM ${table.table} ${where} ORDER BY ${order} LIMIT ?`, [
    ...after,
    PAGE,
  ]);
}

/** Where the page after this one begins; undefined if it is the last. */
function nextPage(table: RowTable, rows: readonly Row[]): readonly SqlValue[] | undefined {
  const last = rows.at(-1);
  return last === undefined || rows.length < PAGE ? undefined : keyOf(table, last);
}

function isSame(value: unknown, bytes: Buffer): boolean {
  if (Buffer.isBuffer(value)) return value.equals(bytes);
  return value instanceof ArrayBuffer && Buffer.from(value).equals(bytes);
}

function entryOf(row: Row): Entry | undefined {
  const [version, bucket] = [Number(row.row_version), Number(row.row_bucket)];
  const value = row.row_mac;
  if (!Buffer.isBuffer(value) && !(value instanceof ArrayBuffer)) return undefined;
  const mac = Buffer.isBuffer(value) ? value : Buffer.from(value);
  const isPossible =
    mac.length === ROW_MAC_SIZE &&
    Number.isSafeInteger(version) &&
    version >= 0 &&
    isBucket(bucket);
  return isPossible ? { bucket, version, mac } : undefined;
}

function isBucket(bucket: number): boolean {
  return Number.isSafeInteger(bucket) && bucket >= 0 && bucket < ROW_BUCKETS;
}

function macOf(
  keys: RowKeys,
  table: RowTable,
  name: string,
  row: Row,
  at: Pick<Entry, 'bucket' | 'version'>,
): Buffer {
  return keys.mac({ table: table.table, name, ...at }, columnsOf(table, row));
}

function fits(keys: RowKeys, table: RowTable, name: string, row: Row, entry: Entry): boolean {
  if (table.applies?.(row) === false) return false;
  if (entry.bucket !== bucketOfRow(table, row)) return false;
  return timingSafeEqual(macOf(keys, table, name, row, entry), entry.mac);
}
