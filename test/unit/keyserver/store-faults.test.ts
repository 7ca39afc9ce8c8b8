/**
 * A disk that is full or only readable, and a file that is damaged, under a key server on SQLite, at its start and while it
 * runs: what it knows it goes on telling, what it can't store it refuses and does not half do, nothing acknowledged is lost,
 * and with room it works again by itself.
 */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'libsql';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { lockFolder } from '../../../src/runtime/folder-lock.js';
import { fillDisk } from './support/fill-disk.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, type TestMember, TestSubnet } from './support/subnet.js';

const mac = (id: string) => defaultMac(SUBNET, parseId(id));
const PAGE = 4_096;

/** Mounting takes root; on PostgreSQL its disk is not ours. */
describe.skipIf(ON_POSTGRES || process.getuid?.() !== 0)('a key server on SQLite', () => {
  const before = process.env.TMPDIR;
  let disk: string;
  let subnet: TestSubnet;
  let alice: TestMember;
  let key: Uint8Array;

  beforeEach(async () => {
    disk = mkdtempSync(join(tmpdir(), 'pairwire-disk-'));
    mount('-t', 'tmpfs', '-o', 'size=6m,mode=700', 'tmpfs', disk);
    process.env.TMPDIR = disk;
    subnet = await TestSubnet.start({ settings: { replicate: 1 } });
    alice = await subnet.ready('alice');
    await subnet.ready('bob');
    await subnet.ready('carol');
    ({ key } = await alice.keyByMac(mac('bob')));
  });
  afterEach(async () => {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
    await subnet.close().catch(() => undefined);
    while (readFileSync('/proc/self/mounts', 'utf8').includes(disk)) {
      execFileSync('umount', ['--lazy', disk]);
    }
    rmSync(disk, { recursive: true });
  });

  function mount(...options: string[]): void {
    execFileSync('mount', options, { stdio: 'pipe' });
  }

  /** Everything into the file itself, none of it in the log. */
  function checkpoint(): void {
    const file = new Database(subnet.paths.database);
    file.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    file.close();
  }

  /** Garbage in the place of every page but the first. */
  function damage(): void {
    const file = openSync(subnet.paths.database, 'r+');
    const { size } = statSync(subnet.paths.database);
    writeSync(file, Buffer.alloc(size - PAGE, 0x5a), 0, size - PAGE, PAGE);
    closeSync(file);
  }

  async function restarted(): Promise<void> {
    subnet.stopClients();
    await subnet.stopServer();
    await subnet.startServer();
    alice.connect();
    await alice.registerAgain();
  }

  async function whole(): Promise<void> {
    const check = await subnet.driver.reader.get('PRAGMA integrity_check', []);
    expect(check).toMatchObject({ integrity_check: 'ok' });
    const { broken } = await verifyAudit(subnet.store, parseId('s1'), subnet.auditKey);
    expect(broken).toBeUndefined();
  }

  it('whose disk is full: tells what it knows, refuses the rest, half does nothing, and goes on when there is room', async () => {
    const admin = subnet.admin();
    await admin.request({ t: 'ping' });
    const change = (await subnet.store.counters()).change;
    const free = fillDisk(disk);
    const refused = { code: 'unavailable' };
    // What takes no room in a page that is there may be stored still: until it is full as well.
    let made = 0;
    const rekeys = async (): Promise<void> => {
      for (;;) {
        await admin.request({ t: 'rekey', force: true });
        made += 1;
      }
    };
    await expect(rekeys()).rejects.toMatchObject(refused);
    const now = await alice.keyByMac(mac('bob'));
    expect(now.pwId).toBe(1 + made);
    if (made === 0) expect(now.key).toEqual(key);
    await expect(alice.keyByMac(mac('carol'))).rejects.toMatchObject(refused);
    await expect(admin.request({ t: 'revoke', member: 'carol' })).rejects.toMatchObject(refused);
    await expect(subnet.enrolled('dave')).rejects.toMatchObject(refused);
    await alice.sync();
    expect((await subnet.store.member(parseId('carol')))?.state).toBe('active');
    expect(await subnet.store.revocationOf(parseId('carol'))).toBeUndefined();
    expect(await subnet.store.member(parseId('dave'))).toBeUndefined();
    expect((await subnet.store.counters()).change).toBeGreaterThanOrEqual(change);
    free();

    const fresh = await alice.keyByMac(mac('carol'));
    await subnet.enrolled('erin');
    await admin.request({ t: 'revoke', member: 'bob' });
    await restarted();
    expect((await alice.keyByMac(mac('carol'))).key).toEqual(fresh.key);
    expect((await subnet.store.member(parseId('erin')))?.state).toBe('active');
    expect((await subnet.store.member(parseId('bob')))?.state).toBe('revoked');
    await whole();
  });

  it('that starts on a full disk serves or says why; with room it has lost nothing', async () => {
    subnet.stopClients();
    await subnet.stopServer();
    const free = fillDisk(disk);
    const failure: unknown = await subnet.startServer().then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    if (failure !== undefined) {
      expect(failure).toMatchObject({
        code: 'STORE_FAILED',
        where: subnet.paths.database,
        hint: expect.stringContaining('disk is full') as string,
      });
    } else await subnet.stopServer();
    free();
    await subnet.startServer();
    alice.connect();
    await alice.registerAgain();
    expect((await alice.keyByMac(mac('bob'))).key).toEqual(key);
    await whole();
  });

  it('that starts on a disk that can only be read says so, and has lost nothing afterwards', async () => {
    subnet.stopClients();
    await subnet.stopServer();
    // A mount over it, for what the garbage collector has left open keeps the lower one from being changed.
    mount('--bind', disk, disk);
    mount('-o', 'remount,bind,ro', disk);
    await expect(subnet.startServer()).rejects.toMatchObject({
      code: 'STORE_FAILED',
      where: subnet.paths.database,
      hint: expect.stringContaining('only be read') as string,
    });
    // What the process does first.
    expect(() => lockFolder(subnet.dir, 'a key server', 0)).toThrow(
      expect.objectContaining({ where: expect.stringContaining(subnet.dir) as string }) as Error,
    );
    execFileSync('umount', ['--lazy', disk]);
    await subnet.startServer();
    alice.connect();
    await alice.registerAgain();
    expect((await alice.keyByMac(mac('bob'))).key).toEqual(key);
    await whole();
  });

  it('whose file is damaged while it runs tells no wrong key, goes on, and does not start again on it', async () => {
    const copy = join(disk, 'copy.db');
    checkpoint();
    copyFileSync(subnet.paths.database, copy);
    damage();
    const asks = ['bob', 'carol', 'bob'].map((id) => alice.keyByMac(mac(id)));
    for (const [at, result] of (await Promise.allSettled(asks)).entries()) {
      if (result.status === 'rejected')
        expect(result.reason).toMatchObject({ code: 'unavailable' });
      else if (at !== 1) expect(result.value.key).toEqual(key);
    }
    await expect(subnet.enrolled('dave')).rejects.toMatchObject({ code: 'unavailable' });
    await alice.client.request({ t: 'ping' });
    subnet.stopClients();
    await subnet.stopServer();
    await expect(subnet.startServer()).rejects.toMatchObject({
      code: 'STORE_FAILED',
      where: subnet.paths.database,
      hint: expect.stringContaining('restore a backup') as string,
    });
    for (const end of ['-wal', '-shm']) rmSync(`${subnet.paths.database}${end}`, { force: true });
    copyFileSync(copy, subnet.paths.database);
    await subnet.startServer();
    alice.connect();
    await alice.registerAgain();
    expect((await alice.keyByMac(mac('bob'))).key).toEqual(key);
    await whole();
  });
});
