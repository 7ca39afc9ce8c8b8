/**
 * Fills the SQLite database of a key server that does not run with any number of members and pair keys, in seconds: rows in bulk, in one
 * transaction, in a file of which nothing is to survive a power cut. Pair keys are sealed as the server seals them, and members'
 * rows get their MACs by the key server's own code, as those of a database that its operator accepts as it is (docs/protocol.md 11.9).
 */
import { randomBytes } from 'node:crypto';
import Database from 'libsql';
import type { KeyServerPaths } from '../../keyserver/config.js';
import { LocalDeks } from '../../keyserver/kms/local-deks.js';
import type { KeyRing } from '../../keyserver/storage/key-ring.js';
import { SqliteDriver } from '../../keyserver/storage/sqlite.js';
import { acceptRows, rowMarkOf, unlock } from '../../keyserver/storage/unlock.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { type Id, orderedPair } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { generateRawKeyPair } from '../../src/protocol/public-keys.js';

/** How a member's partners lie apart, so that neighbours in one list are none in the other. */
export const HOP = 37;
const CACHE_KIB = 262_144;
/** Sizes as in life, in bytes; nobody looks at these signatures. */
const SIZES = { membership: 560, boot: 130, signature: 64 };
const NO_ENDPOINTS = Buffer.from([0x90]);

export interface Filling {
  readonly subnet: Id;
  readonly members: number;
  /** Pair keys: each member has one with the next ones, HOP apart. */
  readonly pairs: number;
  /** The first members have channels that can be opened. */
  readonly clients: number;
}

/** The nth member. */
export function memberAt(at: number): Id {
  return `m${at}` as Id;
}

/** Partners of each member, in one direction. */
export function reachOf({ members, pairs }: Pick<Filling, 'members' | 'pairs'>): number {
  return Math.ceil(pairs / members);
}

/**
 * Fills a database that `pairwire init` has made.
 * @returns the private channel keys of the clients, by member
 */
export async function fillStore(
  paths: KeyServerPaths,
  filling: Filling,
): Promise<ReadonlyMap<Id, Buffer>> {
  const ring = await keysOf(paths);
  const database = new Database(paths.database);
  let keys: ReadonlyMap<Id, Buffer>;
  try {
    for (const pragma of ['synchronous = OFF', `cache_size = -${CACHE_KIB}`]) {
      database.exec(`PRAGMA ${pragma}`);
    }
    database.exec('BEGIN');
    keys = insertMembers(database, filling);
    insertPairs(database, ring, filling);
    database.exec('COMMIT');
  } finally {
    database.close();
  }
  acceptRows(rowMarkOf(paths.sealMark));
  await keysOf(paths);
  return keys;
}

/** The open DEKs of a database; gives its rows their MACs if it was told to. */
async function keysOf({ database, kms, sealMark }: KeyServerPaths): Promise<KeyRing> {
  const driver = await SqliteDriver.open(database);
  try {
    return await unlock(driver, { service: LocalDeks.load(kms), markFile: sealMark });
  } finally {
    await driver.close();
  }
}

function insertMembers(
  database: Database.Database,
  { subnet, members, clients }: Filling,
): ReadonlyMap<Id, Buffer> {
  const keys = new Map<Id, Buffer>();
  const insertMember = database.prepare(
    `INSERT INTO members (id, serial, role, state, channel, membership, membership_signature,
       identity_digest, token_id, ips, online, endpoints, group_asked, enrolled_at, changed, home)
     VALUES (?, ?, 'host', 'active', ?, ?, ?, ?, ?, '[]', 0, ?, 0, 1, ?, '')`,
  );
  const insertMac = database.prepare(
    `INSERT INTO macs (mac, slot, member, kind, serial, seen_at, changed) VALUES (?, '', ?, 'own', ?, 1, ?)`,
  );
  const insertBoot = database.prepare(
    `INSERT INTO boots (member, record, record_signature, boot_key, sequence, sender_index, registered_at)
     VALUES (?, ?, ?, ?, 1, ?, 1)`,
  );
  const first = take(database, 'change', members);
  take(database, 'talkers', members);
  for (let at = 0; at < members; at += 1) {
    const id = memberAt(at);
    let channel: Buffer = randomBytes(KEY_SIZE);
    if (at < clients) {
      const pair = generateRawKeyPair('x25519');
      channel = pair.publicKey;
      keys.set(id, pair.privateKey);
    }
    const [membership, boot] = [randomBytes(SIZES.membership), randomBytes(SIZES.boot)];
    const signature = randomBytes(SIZES.signature);
    const number = first + at;
    insertMember.run([
      ...[id, number, channel, membership, signature],
      ...[randomBytes(32), randomBytes(16), NO_ENDPOINTS, number],
    ]);
    insertMac.run([defaultMac(subnet, id), id, number, number]);
    insertBoot.run([id, boot, signature, randomBytes(KEY_SIZE), at + 1]);
  }
  return keys;
}

/** In the order of the table, behind which its indexes are made anew: a tree that is filled at random is read and written all over. */
function insertPairs(database: Database.Database, ring: KeyRing, filling: Filling): void {
  const { members, pairs } = filling;
  const reach = reachOf(filling);
  const all: (readonly [Id, Id])[] = [];
  for (let at = 0; at < members && all.length < pairs; at += 1) {
    for (let hop = 1; hop <= reach && all.length < pairs; hop += 1) {
      all.push(orderedPair(memberAt(at), memberAt((at + hop * HOP) % members)));
    }
  }
  all.sort(([a, b], [c, d]) => (a === c ? (b < d ? -1 : 1) : a < c ? -1 : 1));
  const indexes = database
    .prepare(
      "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'pair_keys' AND sql IS NOT NULL",
    )
    .all([]) as { readonly name: string; readonly sql: string }[];
  for (const { name } of indexes) database.exec(`DROP INDEX ${name}`);
  const insert = database.prepare(
    `INSERT INTO pair_keys (a, b, key, pw_id, reason, created_at, serial, asked_a, asked_b, changed, due_at)
     VALUES (?, ?, ?, 1, 'first_request', 1, ?, ?, ?, ?, 0)`,
  );
  const first = take(database, 'change', all.length);
  for (const [at, [a, b]] of all.entries()) {
    const number = first + at;
    const sealed = ring.seal('pair_keys', 'key', [a, b], 1, randomBytes(KEY_SIZE));
    insert.run([a, b, sealed, number, number, number, number]);
  }
  for (const { sql } of indexes) database.exec(sql);
}

/** Takes so many numbers of a counter. @returns the first one */
function take(database: Database.Database, counter: string, count: number): number {
  const row = database
    .prepare('UPDATE counters SET value = value + ? WHERE name = ? RETURNING value')
    .get([count, counter]) as { readonly value: number };
  return row.value - count + 1;
}
