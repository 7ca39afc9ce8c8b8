/** Stored keys: a database alone shows none, rows can't be exchanged, and one from before there was a KMS is sealed without a trace. */
import { randomBytes } from 'node:crypto';
import { copyFileSync, existsSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'libsql';
import { afterEach, describe, expect, it } from 'vitest';
import { RootKeys } from '../../../keyserver/kms/root-keys.js';
import { KeyRing } from '../../../keyserver/storage/key-ring.js';
import { openDatabase } from '../../../keyserver/storage/open.js';
import { RESEAL_BEGIN, resealPage } from '../../../keyserver/storage/reseal.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { insertDek, rowMarkOf } from '../../../keyserver/storage/unlock.js';
import { GROUP_ID, type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { backUp, ON_POSTGRES, openKeys, putBack, ringOf } from './support/store.js';
import { SUBNET, type TestMember, TestSubnet } from './support/subnet.js';

const GROUP_MAC = 'ff:ff:ff:ff:ff:ff';

describe.skipIf(ON_POSTGRES)('the files of a database', () => {
  let subnet: TestSubnet;
  afterEach(() => subnet.close());

  it('show no key that members or other subnets have, nor does the folder of the KMS', async () => {
    subnet = await TestSubnet.start();
    const keys = await fill(subnet);
    expect(keys.length).toBeGreaterThan(6);
    const files = [...filesBelow(subnet.dir)];
    expect(files.some((file) => file.endsWith('keyserver.db-wal'))).toBe(true);
    expect(found(files, keys)).toEqual([]);
    // That the search finds what is there.
    expect(found(files, [readFileSync(subnet.paths.serverKey).subarray(27, 60)])).toHaveLength(1);
    const store = subnet.store;
    expect((await store.groupKey(GROUP_ID))?.key).toHaveLength(32);
  });

  it('of which one was in clear are sealed before anybody is served, and what was there is gone', async () => {
    subnet = await TestSubnet.start();
    const keys = await fill(subnet);
    const alice = await keyOf(subnet, 'alice', 'bob');
    await subnet.stopServer();
    const old = await inClear(subnet);
    const all = [...keys, ...old];
    expect(found(filesBelow(subnet.dir), all).length).toBeGreaterThan(8);

    await subnet.startServer();
    expect(found(filesBelow(subnet.dir), all)).toEqual([]);
    expect(await keyOf(subnet, 'alice', 'bob')).toEqual(alice);
    expect((await subnet.store.net('west' as Id))?.next?.key).toHaveLength(32);
  });

  it('of which the sealing was killed in the middle are sealed by the next start', async () => {
    subnet = await TestSubnet.start();
    const keys = await fill(subnet);
    await subnet.stopServer();
    const old = await inClear(subnet);
    // As `unlock` does, up to its second page.
    const driver = await openDatabase(subnet.paths);
    const store = randomBytes(16);
    const made = RootKeys.load(subnet.paths.kms).makeDek({
      subnet: SUBNET,
      server: subnet.serverId,
    });
    await driver.transaction(async (sql) => {
      await sql.run("INSERT INTO meta (name, value) VALUES ('store_id', ?)", [store]);
      await sql.run("INSERT INTO meta (name, value) VALUES ('sealing', ?)", [Buffer.from('begun')]);
      await insertDek(sql, made, 1);
    });
    const ring = new KeyRing(store);
    ring.add(made.id, made.key, true);
    const page = await driver.transaction((sql) => resealPage(sql, ring, RESEAL_BEGIN, true));
    expect(page.sealed).toBe(1);
    await driver.close();
    await subnet.startServer();
    expect(found(filesBelow(subnet.dir), [...keys, ...old])).toEqual([]);
  });
});

describe('who writes to the database', () => {
  let subnet: TestSubnet;
  afterEach(() => subnet.close());

  /** Runs statements while the server is away. */
  async function meddling(
    ...statements: readonly (readonly [string, ...Buffer[]])[]
  ): Promise<void> {
    await subnet.stopServer();
    const driver = await openDatabase(subnet.paths);
    await driver.transaction(async (sql) => {
      for (const [text, ...values] of statements) await sql.run(text, values);
    });
    await driver.close();
  }

  const read = async (sql: string): Promise<Buffer> => {
    const row = await subnet.driver.reader.get(sql, []);
    return Buffer.from(row?.v as Buffer);
  };
  const pair = (b: string, column = 'key'): string =>
    `SELECT ${column} AS v FROM pair_keys WHERE a = 'alice' AND b = '${b}'`;

  it('can exchange the keys of two pairs, and neither is handed out: who asks gets another one', async () => {
    subnet = await TestSubnet.start();
    const known = await fill(subnet);
    const bob = await read(pair('bob'));
    const carol = await read(pair('carol'));
    const set = "UPDATE pair_keys SET key = ? WHERE a = 'alice' AND b = ";
    await meddling([`${set}'bob'`, carol], [`${set}'carol'`, bob]);
    await subnet.startServer();
    const alice = await online(subnet, 'alice');
    for (const peer of ['bob', 'carol']) await expectAnother(alice, peer, known);
    const mended = (await subnet.audit()).filter(({ action }) => action === 'pair_mended');
    expect(mended.map(({ actor, detail }) => [actor, detail])).toEqual([
      // Of bob the next generation has a number, too.
      ['alice', { pairs: 1, members: ['alice', 'bob'], pwId: 3 }],
      ['alice', { pairs: 1, members: ['alice', 'carol'], pwId: 2 }],
    ]);
    // The rest of the store works as before.
    expect((await alice.keyByMac(mac('dave'))).key).toHaveLength(32);
    expect((await alice.keyByMac(GROUP_MAC)).key).toHaveLength(32);
  });

  it('can put a known key in clear, an old generation, or the next one in the place of a key, in vain', async () => {
    subnet = await TestSubnet.start();
    const known = await fill(subnet);
    const before = await read(pair('carol'));
    const admin = subnet.admin();
    await admin.request({ t: 'rekey', a: 'alice', b: 'carol', force: true });
    expect(await read(pair('carol'))).not.toEqual(before);
    await admin.request({ t: 'rekey', a: 'alice', b: 'dave', force: false });
    const next = await read(pair('dave', 'next_key'));
    const set = "UPDATE pair_keys SET key = ? WHERE a = 'alice' AND b = ";
    await meddling(
      [`${set}'carol'`, before],
      [`${set}'bob'`, randomBytes(32)],
      [`${set}'dave'`, next],
      ["UPDATE pair_keys SET pw_id = next_pw_id WHERE a = 'alice' AND b = 'dave'"],
    );
    await subnet.startServer();
    const alice = await online(subnet, 'alice');
    for (const peer of ['bob', 'carol', 'dave']) await expectAnother(alice, peer, known);
  });

  it('can put an old key back together with its number: it is handed out until a member says that it holds a newer one', async () => {
    subnet = await TestSubnet.start();
    const known = await fill(subnet);
    const old = await keyOf(subnet, 'alice', 'carol');
    const row = await read(pair('carol'));
    await subnet.admin().request({ t: 'rekey', a: 'alice', b: 'carol', force: true });
    const newer = await keyOf(subnet, 'alice', 'carol');
    await meddling([
      "UPDATE pair_keys SET key = ?, pw_id = 1 WHERE a = 'alice' AND b = 'carol'",
      row,
    ]);
    await subnet.startServer();
    const alice = await online(subnet, 'alice');
    await online(subnet, 'carol');
    // The seal binds a key to its number, and says nothing of which number is the last one.
    const answer = await alice.keyByMac(mac('carol'));
    expect([answer.pwId, Buffer.compare(answer.key, old)]).toEqual([1, 0]);
    // As a gateway does that holds the second one, and takes none below it.
    await alice.client.request({ t: 'key.held', pairs: [{ peer: 'carol', pwId: 2 }] });
    await expectAnother(alice, 'carol', [...known, old, newer]);
    expect((await alice.keyByMac(mac('carol'))).pwId).toBe(3);
    expect((await subnet.audit()).map(({ action }) => action)).toContain('generations_held');
  });

  it('can exchange what is stored of groups and nets, in vain', async () => {
    subnet = await TestSubnet.start();
    await fill(subnet);
    const net = await read("SELECT key AS v FROM nets WHERE net = 'west'");
    const nextNet = await read("SELECT next_key AS v FROM nets WHERE net = 'west'");
    await subnet.stopServer();
    await backUp(subnet.paths.database);
    const driver = await openDatabase(subnet.paths);
    const ring = await ringOf(driver, subnet.paths);
    await driver.transaction(async (sql) => {
      await sql.run('UPDATE group_keys SET key = ?', [net]);
      await sql.run("UPDATE nets SET key = ? WHERE net = 'west'", [nextNet]);
    });
    const store = await openStore(driver, { ring });
    await expect(store.groupKey(GROUP_ID)).rejects.toMatchObject({ code: 'SEAL_BROKEN' });
    await expect(store.net('west' as Id)).rejects.toMatchObject({ code: 'SEAL_BROKEN' });
    expect(ring.broken).toBe(2);
    await driver.close();
    await putBack(subnet.paths.database);
    await subnet.startServer();
  });

  it('can take away the seals, or the DEKs, or change those, and the server does not start', async () => {
    subnet = await TestSubnet.start();
    await fill(subnet);
    const sealed = await read('SELECT sealed AS v FROM deks');
    sealed[sealed.length - 1] = 1 ^ (sealed.at(-1) ?? 0);
    await subnet.stopServer();
    await backUp(subnet.paths.database);
    const changes: readonly (readonly [string, ...Buffer[]])[] = [
      ["UPDATE meta SET value = ? WHERE name = 'sealing'", Buffer.from('begun')],
      ['DELETE FROM deks'],
      ["DELETE FROM meta WHERE name = 'store_id'"],
      ['UPDATE deks SET id = ?', randomBytes(8)],
      ['UPDATE deks SET sealed = ?', sealed],
    ];
    for (const [statement, ...values] of changes) {
      const driver = await openDatabase(subnet.paths);
      await driver.transaction((sql) => sql.run(statement, values));
      await expect(ringOf(driver, subnet.paths), statement).rejects.toMatchObject({
        code: 'SEAL_BROKEN',
      });
      await driver.close();
      await putBack(subnet.paths.database);
    }
    await subnet.startServer();
  });

  it('of one subnet has no use for its rows in another one with the same KMS', async () => {
    subnet = await TestSubnet.start();
    await fill(subnet);
    const other = await TestSubnet.start();
    try {
      const sealed = await read('SELECT sealed AS v FROM deks');
      const id = await read('SELECT id AS v FROM deks');
      const roots = RootKeys.load(subnet.paths.kms);
      const owner = { subnet: SUBNET, server: subnet.serverId };
      expect(roots.openDek(owner, { id, sealed })).toHaveLength(32);
      expect(() => roots.openDek({ ...owner, subnet: 'west' }, { id, sealed })).toThrow(
        /not what was sealed/,
      );
      // Nor for another key server of the subnet, in the same KMS.
      expect(() => roots.openDek({ ...owner, server: 's2' }, { id, sealed })).toThrow(
        /not what was sealed/,
      );
      expect(() => RootKeys.load(other.paths.kms).openDek(owner, { id, sealed })).toThrow(
        /not what was sealed/,
      );
    } finally {
      await other.close();
    }
  });
});

const mac = (id: string): string => defaultMac(SUBNET, parseId(id));

/** A member that was enrolled by `fill`, at the server that runs now. */
const members = new Map<string, TestMember>();

async function online(subnet: TestSubnet, id: string): Promise<TestMember> {
  const member = members.get(id);
  if (member === undefined) throw new Error(`there is no ${id}`);
  // The server may have another port after a restart of the test's.
  member.client.stop();
  member.connect();
  member.sequence += 1;
  await member.registerAgain();
  expect(subnet.server.online).toBeGreaterThan(0);
  return member;
}

/** The key of a pair is one that nobody had before, and above what they had. */
async function expectAnother(
  asker: TestMember,
  peer: string,
  known: readonly Buffer[],
): Promise<void> {
  const { key, pwId } = await asker.keyByMac(mac(peer));
  expect(
    known.some((one) => one.equals(key)),
    peer,
  ).toBe(false);
  expect(pwId, peer).toBeGreaterThan(1);
}

async function keyOf(subnet: TestSubnet, id: string, peer: string): Promise<Buffer> {
  return Buffer.from((await (await online(subnet, id)).keyByMac(mac(peer))).key);
}

/** Members with keys of pairs, of the group and of a net, some with a next generation. @returns all keys that somebody holds */
async function fill(subnet: TestSubnet): Promise<Buffer[]> {
  const keys: Buffer[] = [];
  for (const id of ['alice', 'bob', 'carol', 'dave']) {
    members.set(id, await subnet.member(id));
  }
  const alice = members.get('alice');
  if (alice === undefined) throw new Error('there is no alice');
  for (const peer of ['bob', 'carol', 'dave']) {
    keys.push(Buffer.from((await alice.keyByMac(mac(peer))).key));
  }
  keys.push(Buffer.from((await alice.keyByMac(GROUP_MAC)).key));
  await subnet.admin().request({ t: 'rekey', a: 'alice', b: 'bob', force: false });
  const [key, next] = [randomBytes(32), randomBytes(32)];
  await subnet.store.write(async (tx) => {
    const changed = await tx.nextChange();
    await tx.putNet({
      ...{
        net: parseId('west'),
        member: parseId('west-server'),
        contact: undefined,
        far: undefined,
      },
      ...{ local: [], told: [], key, pwId: 3, oldest: 3, reason: 'test', createdAt: 1, dueAt: 0 },
      ...{ next: { key: next, pwId: 4, reason: 'test' }, serial: changed, changed },
    });
  });
  const prepared = (await subnet.store.pairKey(parseId('alice'), parseId('bob')))?.next?.key;
  if (prepared !== undefined) keys.push(prepared);
  return [...keys, key, next];
}

/**
 * Makes of a stopped server's database what a program from before there was a KMS would have left when it was killed: keys in
 * clear in rows, in pages that are free, and in the write-ahead log. @returns the keys of rows that are gone
 */
async function inClear(subnet: TestSubnet): Promise<Buffer[]> {
  const { database, kms, sealMark } = subnet.paths;
  const store = await openKeys(subnet.paths);
  const pairs = await store.pairsAfter(0, 100);
  const whole = await Promise.all(pairs.map(({ a, b }) => store.pairKey(a, b)));
  const group = await store.groupKey(GROUP_ID);
  const net = await store.net(parseId('west'));
  await store.close();
  const file = new Database(database);
  file.exec('PRAGMA secure_delete = OFF');
  file.exec('PRAGMA wal_autocheckpoint = 0');
  const gone = Array.from({ length: 200 }, () => randomBytes(32));
  const insert = file.prepare(
    `INSERT INTO pair_keys (a, b, key, pw_id, reason, created_at, serial, asked_a, asked_b, changed)
     VALUES (?, ?, ?, 1, 'test', 1, ?, 0, 0, ?)`,
  );
  for (const [at, key] of gone.entries()) insert.run([`g${at}`, 'h', key, 9_000 + at, 9_000 + at]);
  file.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  file.exec("DELETE FROM pair_keys WHERE b = 'h'");
  for (const pair of whole) {
    if (pair === undefined) continue;
    const { a, b, key, next } = pair;
    file
      .prepare('UPDATE pair_keys SET key = ?, next_key = ? WHERE a = ? AND b = ?')
      .run([key, next?.key ?? null, a, b]);
  }
  file.prepare('UPDATE group_keys SET key = ?').run([group?.key ?? null]);
  file
    .prepare('UPDATE nets SET key = ?, next_key = ?')
    .run([net?.key ?? null, net?.next?.key ?? null]);
  for (const table of ['deks', 'identities', 'row_macs', 'row_head', 'row_keys', 'audit_witnesses'])
    file.exec(`DROP TABLE ${table}`);
  for (const index of ['pair_keys_prepared', 'members_online']) file.exec(`DROP INDEX ${index}`);
  file.exec('DELETE FROM schema_version WHERE version >= 11');
  file.exec("DELETE FROM meta WHERE name IN ('store_id', 'sealing')");
  // Killed: the log is there, whole.
  for (const end of ['', '-wal']) copyFileSync(`${database}${end}`, `${database}${end}.killed`);
  file.close();
  for (const end of ['', '-wal']) renameSync(`${database}${end}.killed`, `${database}${end}`);
  rmSync(`${database}-shm`, { force: true });
  for (const mark of [sealMark, rowMarkOf(sealMark)]) rmSync(mark);
  // Its root key never sealed anything: the same may go on.
  expect(existsSync(kms)).toBe(true);
  return gone;
}

function filesBelow(dir: string): string[] {
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

/** The files in which the bytes of a key are, raw or as text. */
function found(files: readonly string[], keys: readonly Buffer[]): string[] {
  return files.flatMap((file) => {
    const bytes = readFileSync(file);
    return keys
      .filter((key) =>
        [key, key.toString('hex'), key.toString('base64url')].some((form) => bytes.includes(form)),
      )
      .map(() => file);
  });
}
