/** Backups of a key server that runs: what is in them, what happens to damaged and foreign ones, and what a server does that was put back. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { measure, readArchive, writeArchive } from '../../../keyserver/backup/archive.js';
import { checkBackup } from '../../../keyserver/backup/check.js';
import { makeBackup } from '../../../keyserver/backup/make.js';
import { manifestMac } from '../../../keyserver/backup/manifest.js';
import { restoreBackup } from '../../../keyserver/backup/restore.js';
import { initSubnet } from '../../../keyserver/init.js';
import { kmsPaths } from '../../../keyserver/kms/config.js';
import { IdentityDirectory } from '../../../keyserver/kms/identity-directory.js';
import { GROUP_ID, type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac, type MacAddress } from '../../../src/protocol/mac.js';
import { keyServerProgram } from '../../programs/key-server.js';
import { pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { meddle, ON_POSTGRES, openKeys } from './support/store.js';
import { SUBNET, sleep, TestMember, until } from './support/subnet.js';

const mac = (id: string): MacAddress => defaultMac(SUBNET, parseId(id));

describe.skipIf(ON_POSTGRES)('a backup under load', () => {
  let server: ServerProcess;
  let root: string;
  beforeAll(async () => {
    root = mkdtempSync(join(tmpdir(), 'pairwire-backup-'));
    server = await ServerProcess.make({ replicate: 1 });
    await server.start();
  });
  afterAll(async () => {
    await server.remove();
    rmSync(root, { recursive: true, force: true });
  });

  it('has all that was acknowledged before it, whole, and serves on another machine', async () => {
    const token = server.token({ id: 'n-*', uses: 1_000_000 });
    const members = new Map<Id, TestMember>();
    const keys = new Map<string, string>();
    const revoked = new Set<Id>();
    let running = true;
    const load = async (worker: number): Promise<void> => {
      for (let at = 0; running; at += 1) {
        const member = new TestMember(server, `n-${worker}-${at}`);
        await member.enrol(token);
        await member.register();
        members.set(member.id, member);
        for (const peer of [...members.keys()].slice(-6)) {
          if (peer === member.id || revoked.has(peer)) continue;
          const answer = await member.keyByMac(mac(peer)).catch(() => undefined);
          if (answer === undefined) continue;
          const name = [member.id, peer].sort().join(' ');
          keys.set(name, Buffer.from(answer.key).toString('hex'));
        }
        if (at % 5 === 4) {
          const victim = parseId(`n-${worker}-${at - 2}`);
          revoked.add(victim);
          await server.admin().request({ t: 'revoke', member: victim });
          members.delete(victim);
        }
      }
    };
    const work = [0, 1, 2].map(load);
    await until(() => keys.size > 20 && revoked.size > 1, 'some load', 60_000);
    const before = { keys: new Map(keys), members: [...members.keys()], gone: [...revoked] };
    const file = join(root, 'loaded.pwb');
    const made = await pairwire(['backup', '--dir', server.dir, '--with-keys', '--json', file]);
    expect(made.code, made.err).toBe(0);
    expect(made.err).toContain('WARNING');
    expect(made.err).toContain("the operator's private key");
    // It ran on.
    const during = keys.size;
    expect(during).toBeGreaterThan(before.keys.size);
    running = false;
    await Promise.all(work);
    const after = new Map(keys);
    await server.kill();
    server.stopClients();
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readdirSync(root)).toEqual(['loaded.pwb']);
    // Any tar takes it apart.
    expect(execFileSync('tar', ['tf', file], { encoding: 'utf8' })).toContain('keyserver.db');

    const there = join(root, 'there');
    const back = await pairwire(['restore', '--dir', there, '--json', file]);
    expect(back.code, back.err).toBe(0);
    const other = ServerProcess.at(there, server.port);
    const store = await openKeys(other.paths);
    const lost: string[] = [];
    for (const id of before.members) {
      // It may have been revoked between the note above and the backup.
      if ((await store.member(id)) === undefined) lost.push(id);
    }
    for (const id of before.gone.slice(0, -3)) {
      if ((await store.member(id))?.state !== 'revoked') lost.push(`revocation of ${id}`);
    }
    for (const [name, key] of before.keys) {
      const [a = '', b = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      const wasRevoked = [a, b].some((id) => revoked.has(parseId(id)));
      if (!wasRevoked && pair?.key.toString('hex') !== key) lost.push(`key of ${name}`);
    }
    // Every pair once, and none with another key than its ends have.
    const pairs = await store.pairsAfter(0, 100_000);
    const names = pairs.map(({ a, b }) => `${a} ${b}`);
    expect(new Set(names).size).toBe(names.length);
    for (const [name, key] of after) {
      const [a = '', b = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      if (pair !== undefined && pair.key.toString('hex') !== key) lost.push(`other key of ${name}`);
    }
    expect(lost).toEqual([]);
    const { broken } = await verifyAudit(store, parseId('s1'), server.auditKey);
    expect(broken).toBeUndefined();
    await store.close();

    await other.start();
    const [id, peer] = before.members.filter((one) => !revoked.has(one));
    const member = id === undefined ? undefined : members.get(id);
    if (member === undefined || peer === undefined) throw new Error('all are revoked');
    member.client.stop();
    member.connect();
    await member.register();
    expect((await member.keyByMac(mac(peer))).key).toHaveLength(32);
    await other.kill();
  }, 240_000);
});

describe.skipIf(ON_POSTGRES)('an old backup that is put back', () => {
  let server: ServerProcess;
  beforeEach(async () => {
    server = await ServerProcess.make({ unknown: 'plain' });
    await server.start();
  });
  afterEach(() => server.remove());

  it('gives no number to two keys, and shows whom it has forgotten to have revoked', async () => {
    const join_ = async (id: string, role: 'host' | 'plain' = 'host'): Promise<TestMember> => {
      const member = new TestMember(server, id);
      await member.enrol(server.token({ id, role }));
      await member.register();
      return member;
    };
    const alice = await join_('alice');
    const bob = await join_('bob');
    await join_('mallory');
    await join_('gate', 'plain');
    const seen = new Map<number, string>();
    const note = ({ pwId, key }: { pwId: number; key: Uint8Array }): void => {
      const text = Buffer.from(key).toString('hex');
      expect(seen.get(pwId) ?? text, `generation ${pwId}`).toBe(text);
      seen.set(pwId, text);
    };
    note(await alice.keyByMac(mac('bob')));
    const file = join(server.dir, '..', `pairwire-old-${process.pid}.pwb`);
    try {
      const made = await pairwire(['backup', '--dir', server.dir, file]);
      expect(made.code, made.err).toBe(0);
      expect(made.err).toContain(join(server.dir, 'kms'));
      for (let round = 0; round < 3; round += 1) {
        await server.admin().request({ t: 'rekey', a: 'alice', b: 'bob', force: true });
        note(await alice.keyByMac(mac('bob')));
      }
      await server.admin().request({ t: 'revoke', member: 'mallory' });
      const cursor = await alice.sync();
      expect([...seen.keys()]).toEqual([1, 2, 3, 4]);

      const running = await pairwire(['restore', '--dir', server.dir, '--force', '--json', file]);
      expect(running.code).toBe(1);
      expect(JSON.parse(running.err)).toMatchObject({ error: { code: 'BACKUP_REFUSED' } });
      expect(running.err).toContain('a key server runs on this database');
      await server.kill();
      server.stopClients();
      await letGo();
      const refused = await pairwire(['restore', '--dir', server.dir, '--json', file]);
      expect(JSON.parse(refused.err)).toMatchObject({ error: { code: 'FILE_EXISTS' } });
      const done = await pairwire(['restore', '--dir', server.dir, '--force', '--json', file]);
      expect(done.code, done.err).toBe(0);
      const { before } = JSON.parse(done.out) as { before: string };
      expect(existsSync(before)).toBe(true);

      await server.start();
      for (const member of [alice, bob]) member.connect();
      const register = (member: TestMember, revocation: number) => {
        member.sequence += 1;
        return member.client.request({
          ...{ t: 'register', boot: member.bootRecord(), machine: member.machine },
          ...{ nonce: member.nonce, revocation },
        });
      };
      // What is for a member that it may have forgotten goes to no plain port, although nobody has said a word yet.
      await register(bob, 0);
      await expect(bob.keyByMac('0a:00:00:00:00:07')).rejects.toThrow('not_yet');
      // Who knows of the revocation is not served by a server that has forgotten it.
      await expect(register(alice, 1)).rejects.toThrow('not_yet');
      const confirmed = await pairwire(['restore', 'confirm', '--dir', server.dir, '--json']);
      expect(JSON.parse(confirmed.out)).toEqual({ revocation: 1 });
      await register(alice, 1);
      expect((await bob.keyByMac('0a:00:00:00:00:07')).key).toHaveLength(32);

      // It tells everything anew, whatever a member has seen, so that it says what it holds.
      const anew = await alice.sync(cursor.cursor, cursor.epoch, cursor.run);
      expect(anew.epoch).not.toEqual(cursor.epoch);
      for (const [member, peer] of [
        [alice, 'bob'],
        [bob, 'alice'],
      ] as const) {
        await member.client.request({ t: 'key.held', pairs: [{ peer, pwId: 4 }] });
      }
      const next = await alice.keyByMac(mac('bob'));
      expect(next.pwId).toBe(5);
      note(next);
      for (let round = 0; round < 2; round += 1) {
        await server.admin().request({ t: 'rekey', a: 'alice', b: 'bob', force: true });
        note(await alice.keyByMac(mac('bob')));
      }
      expect([...seen.keys()]).toEqual([1, 2, 3, 4, 5, 6, 7]);
      const audit = await pairwire(['audit', '--dir', server.dir, '--json']);
      const actions = (JSON.parse(audit.out) as { action: string }[]).map(({ action }) => action);
      expect(actions).toEqual(expect.arrayContaining(['restore', 'restored', 'restore_confirm']));
      await server.kill();
      const verify = await pairwire(['audit', '--verify', '--dir', server.dir]);
      expect(verify.code, verify.err).toBe(0);
    } finally {
      rmSync(file, { force: true });
    }
  }, 240_000);
});

describe.skipIf(ON_POSTGRES)('a backup that is not what it was', () => {
  let root: string;
  let dir: string;
  let file: string;
  beforeAll(async () => {
    root = mkdtempSync(join(tmpdir(), 'pairwire-backup-'));
    dir = join(root, 'east');
    await folder(dir, 'east');
    file = join(root, 'good.pwb');
    await makeBackup(dir, file, false);
  });
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  let made = 0;
  const check = async (path: string, keys: readonly string[] = [dir]) => {
    made += 1;
    const work = join(root, `check-${made}`);
    try {
      return await checkBackup(path, work, keys);
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  };
  const changed = (change: (bytes: Buffer) => Buffer): string => {
    const path = join(root, 'bad.pwb');
    writeFileSync(path, change(readFileSync(file)), { mode: 0o600 });
    return path;
  };

  it('is refused whichever byte was changed, wherever it was cut, and whatever was added', async () => {
    const { manifest } = await check(file);
    const { size } = statSync(file);
    const { serverKey } = manifest;
    const keyAt = readFileSync(file).indexOf(serverKey);
    // With another public key in it, it reads as that of another server.
    const inKey = (at: number): boolean => at >= keyAt && at < keyAt + serverKey.length;
    // The first 8 KiB have all headers but those of the small parts, the last ones those.
    const place = fc.oneof(
      fc.integer({ min: 0, max: 8_191 }),
      fc.integer({ min: size - 6_144, max: size - 1 }),
      fc.integer({ min: 0, max: size - 1 }),
    );
    await fc.assert(
      fc.asyncProperty(place, fc.integer({ min: 1, max: 255 }), async (at, flip) => {
        const bad = changed((bytes) => {
          bytes[at] = (bytes[at] ?? 0) ^ flip;
          return bytes;
        });
        const code = inKey(at)
          ? expect.stringMatching(/^BACKUP_(DAMAGED|REFUSED)$/)
          : 'BACKUP_DAMAGED';
        await expect(check(bad), `${at}`).rejects.toMatchObject({ code });
      }),
      { numRuns: 150 },
    );
    for (const length of [0, 1, 511, 512, 4_096, size - 512, size - 1]) {
      const bad = changed((bytes) => bytes.subarray(0, length));
      await expect(check(bad), `${length}`).rejects.toMatchObject({ code: 'BACKUP_DAMAGED' });
    }
    const longer = changed((bytes) => Buffer.concat([bytes, Buffer.alloc(512)]));
    await expect(check(longer)).rejects.toMatchObject({ code: 'BACKUP_DAMAGED' });
    const other = changed(() => randomBytes(20_000));
    await expect(check(other)).rejects.toThrow('no backup of a key server');
    await expect(check(join(root, 'nowhere'))).rejects.toMatchObject({ code: 'FILE_UNREADABLE' });
  });

  it('is refused when somebody without the keys wrote it anew, with right digests', async () => {
    const work = join(root, 'forged');
    mkdirSync(work);
    const { manifest } = readArchive(file, work);
    const database = join(work, 'keyserver.db');
    await meddle(database, "UPDATE members SET role = 'operator'");
    const files = manifest.parts.map(({ name }) => measure(name, join(work, name)));
    const parts = files.map(({ name, size, sha256 }) => ({ name, size, sha256 }));
    const forged = join(root, 'forged.pwb');
    writeArchive(forged, { ...manifest, parts }, randomBytes(32), files);
    await expect(check(forged)).rejects.toThrow('not made with the keys of its server');
    // Without a key nobody can know, and it says so.
    expect(await check(forged, [])).toMatchObject({ authentic: 'not checked', seals: undefined });
    expect(await check(file)).toMatchObject({ authentic: 'yes', seals: 1 });
  });

  it('with another subnet, or its keys, is refused, and the folder stays as it was', async () => {
    const west = join(root, 'west');
    await folder(west, 'west');
    const before = digests(west);
    for (const force of [false, true]) {
      await expect(restoreBackup(file, { dir: west, keyFolders: [], force })).rejects.toMatchObject(
        {
          code: force ? 'BACKUP_REFUSED' : 'FILE_EXISTS',
        },
      );
    }
    expect(digests(west)).toEqual(before);
    const empty = join(root, 'empty');
    await expect(
      restoreBackup(file, { dir: empty, keyFolders: [west], force: true }),
    ).rejects.toThrow('the keys of another key server');
    await expect(restoreBackup(file, { dir: empty, keyFolders: [], force: true })).rejects.toThrow(
      /key files are missing: server.key.*root/,
    );
    expect(existsSync(empty)).toBe(false);
    // One key of it that is another.
    const mixed = join(root, 'mixed');
    cpSync(dir, mixed, { recursive: true });
    rmSync(join(mixed, 'kms/root-1.key'));
    cpSync(join(west, 'kms/root-1.key'), join(mixed, 'kms/root-1.key'));
    await expect(
      restoreBackup(file, { dir: mixed, keyFolders: [], force: true }),
    ).rejects.toMatchObject({ code: 'SEAL_BROKEN' });
    // With its own, from elsewhere, it is put there.
    const put = await restoreBackup(file, { dir: empty, keyFolders: [dir], force: false });
    expect(put.checked).toMatchObject({ authentic: 'yes', seals: 1 });
    expect(existsSync(join(empty, 'operator.key'))).toBe(false);
  });

  it('with a database that cannot be opened any more is put in its place', async () => {
    const broken = join(root, 'broken');
    cpSync(dir, broken, { recursive: true });
    const database = join(broken, 'keyserver.db');
    truncateSync(database, 100);
    writeFileSync(database, randomBytes(30_000), { mode: 0o600 });
    writeFileSync(`${database}-wal`, randomBytes(30_000), { mode: 0o600 });
    const { before } = await restoreBackup(file, { dir: broken, keyFolders: [], force: true });
    expect(readdirSync(broken).filter((name) => name.includes('-wal'))).toEqual([
      `${before?.split('/').at(-1)}-wal`,
    ]);
    expect((await check(file, [broken])).seals).toBe(1);
  });

  it('of a key server on PostgreSQL is made by pg_dump, and the command says so', async () => {
    const other = join(root, 'postgres');
    cpSync(dir, other, { recursive: true });
    appendFileSync(
      join(other, 'keyserver.yaml'),
      'database: postgres://pairwire@db.example.org/east\n',
    );
    const result = await pairwire(['backup', '--dir', other, '--json', join(root, 'x.pwb')]);
    expect(result.code).toBe(1);
    expect(JSON.parse(result.err)).toMatchObject({
      error: { code: 'BACKUP_REFUSED', hint: expect.stringContaining('pg_dump') },
    });
    expect(existsSync(join(root, 'x.pwb'))).toBe(false);
  });

  it('with the keys has the identity directory of the KMS, which is whole where it is put', async () => {
    const source = join(root, 'identities');
    await folder(source, 'north');
    const [paths, key] = [kmsPaths(join(source, 'kms')), Buffer.alloc(32, 1)];
    const [alice, bob] = [parseId('alice'), parseId('bob')];
    const directory = new IdentityDirectory(paths, key);
    for (const id of [alice, bob]) directory.keep(id, randomBytes(32), 'first');
    const digests = [alice, bob].map((id) => directory.digestOf(id));
    // Half a line of one that is being written.
    appendFileSync(paths.identities, '{"seq":3');
    const copy = join(root, 'identities.pwb');
    await makeBackup(source, copy, true);
    directory.close();
    const elsewhere = join(root, 'north-again');
    await restoreBackup(copy, { dir: elsewhere, keyFolders: [], force: false });
    const put = new IdentityDirectory(kmsPaths(join(elsewhere, 'kms')), key);
    expect(put.broken).toBeUndefined();
    expect(put.torn).toBe(0);
    expect([alice, bob].map((id) => put.digestOf(id))).toEqual(digests);
    put.close();
  });

  it('never takes the place of another', async () => {
    const before = readFileSync(file);
    await expect(makeBackup(dir, file, false)).rejects.toMatchObject({ code: 'FILE_EXISTS' });
    expect(readFileSync(file).equals(before)).toBe(true);
  });

  it('has the MAC that docs/protocol.md 11.5 says', () => {
    const mac = manifestMac(Buffer.alloc(32, 7), Buffer.from('{}\n'));
    expect(mac.toString('hex')).toBe(VECTOR);
  });
});

/** Computed apart from this code. */
const VECTOR = 'c1c72ebc27e39e854a1fa6640956dc993e23bfbe6a1f78036d33c5cee5224939';

describe.skipIf(ON_POSTGRES)('backup and restore that are interrupted', () => {
  let root: string;
  let dir: string;
  beforeEach(async () => {
    root = mkdtempSync(join(tmpdir(), 'pairwire-backup-'));
    dir = join(root, 'east');
    await folder(dir, 'east');
    // Large enough to be interrupted in the middle.
    await meddle(
      join(dir, 'keyserver.db'),
      `CREATE TABLE ballast (x BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
       INSERT INTO ballast SELECT randomblob(100000) FROM n; PRAGMA wal_checkpoint(TRUNCATE)`,
    );
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  it('a backup that is killed leaves none under its name, and the next one is whole', async () => {
    let killed = 0;
    // Halved each time that a fast machine was done before it was to be killed.
    let longest = 400;
    for (let round = 0; killed < 4 && round < 40; round += 1) {
      const file = join(root, `b-${round}.pwb`);
      const child = start(['backup', '--dir', dir, file]);
      const ended = once(child, 'exit');
      await until(
        () =>
          child.exitCode !== null ||
          readdirSync(root).some((name) => name.startsWith(`b-${round}.pwb.`)),
        'the backup to begin',
        60_000,
      );
      await sleep(Math.random() * longest);
      child.kill('SIGKILL');
      await ended;
      if (child.signalCode === 'SIGKILL') killed += 1;
      else longest /= 2;
      if (existsSync(file)) await checkBackup(file, join(root, `c-${round}`), [dir]);
    }
    expect(killed).toBe(4);
    const file = join(root, 'last.pwb');
    await makeBackup(dir, file, false);
    expect((await checkBackup(file, join(root, 'check'), [dir])).seals).toBe(1);
  }, 240_000);

  it('a restore that is killed leaves the old server whole, or the new one', async () => {
    const file = join(root, 'old.pwb');
    await makeBackup(dir, file, false);
    await meddle(join(dir, 'keyserver.db'), 'CREATE TABLE newer (x BLOB)');
    const outcomes = new Set<string>();
    const target = join(root, 'target');
    cpSync(dir, target, { recursive: true });
    let longest = 500;
    for (let round = 0; round < 10; round += 1) {
      const child = start(['restore', '--dir', target, '--force', file]);
      const ended = once(child, 'exit');
      const isReady = (): boolean => {
        const work = readdirSync(target).find((name) => name.startsWith('.restore-'));
        return work !== undefined && existsSync(join(target, work, 'keyserver.db'));
      };
      await until(() => child.exitCode !== null || isReady(), 'the restore to begin', 60_000);
      await sleep(Math.random() * longest);
      child.kill('SIGKILL');
      await ended;
      if (child.signalCode !== 'SIGKILL') longest /= 2;
      const isNew = await wholeStore(target);
      outcomes.add(`${isNew ? 'new' : 'old'} ${child.signalCode ?? 'done'}`);
      if (isNew) {
        rmSync(target, { recursive: true });
        cpSync(dir, target, { recursive: true });
      }
    }
    expect([...outcomes].some((one) => one === 'old SIGKILL')).toBe(true);
    const last = await pairwire(['restore', '--dir', target, '--force', file]);
    expect(last.code, last.err).toBe(0);
    expect(readdirSync(target).filter((name) => name.endsWith('.partial'))).toEqual([]);
    expect(await wholeStore(target)).toBe(true);
  }, 240_000);

  it.runIf(process.getuid?.() === 0)(
    'a full disk refuses both, and changes nothing',
    async () => {
      const file = join(root, 'good.pwb');
      await makeBackup(dir, file, false);
      // A file system of its own, in a mount namespace that ends with its shell.
      const small = join(root, 'small');
      mkdirSync(small);
      const command = [process.execPath, ...keyServerProgram()].join(' ');
      const script = `
        mount -t tmpfs -o size=$(( $(du -sk ${dir} | cut -f1) + 6000 ))k tmpfs ${small}
        cp -r ${dir} ${small}/east
        cd ${process.cwd()}
        set +e
        ${command} backup --dir ${dir} ${small}/b.pwb --json 2>${root}/backup.err; echo $? >${root}/backup.rc
        ${command} restore --dir ${small}/east --force ${file} --json 2>${root}/restore.err; echo $? >${root}/restore.rc
        ls -A ${small} ${small}/east >${root}/left
        ${command} audit --verify --dir ${small}/east`;
      const said = execFileSync('unshare', ['-m', 'sh', '-ec', script], { encoding: 'utf8' });
      expect(said).toMatch(/entries +1\n(.*\n)*intact +yes/);
      for (const name of ['backup', 'restore']) {
        expect(readFileSync(join(root, `${name}.rc`), 'utf8')).toBe('1\n');
        const { error } = JSON.parse(readFileSync(join(root, `${name}.err`), 'utf8')) as {
          error: { code: string; message: string; hint: string };
        };
        expect(['STORE_FAILED', 'BACKUP_REFUSED']).toContain(error.code);
        expect(`${error.message} ${error.hint}`).toContain('disk is full');
      }
      expect(readFileSync(join(root, 'left'), 'utf8')).not.toMatch(/partial|pwb|before/);
    },
    240_000,
  );
});

async function folder(dir: string, subnet: string): Promise<void> {
  await initSubnet({
    subnet: parseId(subnet),
    dir,
    listen: '127.0.0.1:7900',
    advertise: [],
    settings: {},
  });
}

function start(args: readonly string[]): ChildProcess {
  return spawn(process.execPath, keyServerProgram(...args), { stdio: 'ignore' });
}

/** Opens a server's store with its keys and looks at all of it. @returns whether it was put back */
/**
 * libsql lets go of a closed database only when the statements of it were collected, and until then somebody has it open, as for a
 * restore; a process of its own, as every command is, has nothing left when it ends.
 */
async function letGo(): Promise<void> {
  setFlagsFromString('--expose-gc');
  for (let time = 0; time < 3; time += 1) {
    runInNewContext('gc')();
    await sleep(10);
  }
}

async function wholeStore(dir: string): Promise<boolean> {
  const { paths } = ServerProcess.at(dir, 7900);
  const store = await openKeys(paths);
  try {
    expect((await store.groupKey(GROUP_ID))?.key).toHaveLength(32);
    const audit = readFileSync(paths.auditKey, 'latin1').trim().split(' ')[2] ?? '';
    const { broken } = await verifyAudit(store, parseId('s1'), Buffer.from(audit, 'base64url'));
    expect(broken).toBeUndefined();
    return (await store.counters()).putBack;
  } finally {
    await store.close();
    await letGo();
  }
}

/** What each file of a folder holds; SQLite may have opened and closed its database. */
function digests(dir: string): Record<string, string> {
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((one) =>
    one.isFile(),
  );
  return Object.fromEntries(
    files.map((one) => {
      const path = join(one.parentPath, one.name);
      const bytes = readFileSync(path);
      // Bytes 18 and 19 say whether it has a write-ahead log, which a lock on it takes away.
      const said = path.endsWith('keyserver.db') ? bytes.subarray(100) : bytes;
      return [path, createHash('sha256').update(said).digest('hex')];
    }),
  );
}
