/** DEKs come and go without a key being lost: rotations close together, a database that is slow, or does not say what became of it. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KeyVault, type KmsService } from '../../../keyserver/key-vault.js';
import { KmsAudit, MAX_AUDIT_LINE } from '../../../keyserver/kms/audit-file.js';
import { hasKms, makeKms } from '../../../keyserver/kms/folder.js';
import { LocalDeks } from '../../../keyserver/kms/local-deks.js';
import type { SqlDriver } from '../../../keyserver/storage/sql.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { unlock } from '../../../keyserver/storage/unlock.js';
import { GROUP_ID } from '../../../src/protocol/ids.js';
import { NOT_LIMITED } from '../../../src/protocol/kms-messages.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { PairwireError } from '../../../src/runtime/errors.js';
import { lockFolder } from '../../../src/runtime/folder-lock.js';
import { createLogger } from '../../../src/runtime/log.js';
import { ON_POSTGRES, ringOf } from './support/store.js';
import { SUBNET, TestSubnet, until } from './support/subnet.js';

const log = createLogger('test', { level: 'silent' });

describe('DEKs', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
    const alice = await subnet.member('alice');
    for (const id of ['bob', 'carol', 'dave']) {
      await subnet.member(id);
      await alice.keyByMac(defaultMac(SUBNET, id));
    }
  });
  afterEach(() => subnet.close());

  /** The root keys at hand, with the way to them of a KMS. */
  function kms(): KmsService {
    const deks = LocalDeks.load(subnet.paths.kms);
    return {
      connected: true,
      status: async () => ({
        ...{ generation: 1, generations: [1], inToken: [] },
        ...{ limited: 0, limitedBy: NOT_LIMITED, auditBytes: 0, auditFiles: 0, auditGone: 0 },
      }),
      rotateRoot: () => Promise.reject(new Error('not here')),
      make: async () => {
        await pause(1);
        return deks.make();
      },
      open: (rows) => deks.open(rows),
    };
  }

  /** A database that takes so long for each commit. */
  function slow(driver: SqlDriver, ms: number, fails: () => boolean = () => false): SqlDriver {
    return {
      counts: driver.counts,
      reader: driver.reader,
      mayCache: () => driver.mayCache(),
      prove: () => driver.prove(),
      erase: () => driver.erase(),
      close: () => driver.close(),
      transaction: async (work) => {
        await pause(ms);
        const done = await driver.transaction(work);
        await pause(ms);
        if (fails()) throw new PairwireError('STORE_FAILED', 'the connection was lost');
        return done;
      },
    };
  }

  /** As after another start: every key opens by what the database has. */
  async function allOpens(): Promise<void> {
    const ring = await ringOf(subnet.driver, subnet.paths);
    const store = await openStore(subnet.driver, { ring });
    expect((await store.groupKey(GROUP_ID))?.pwId).toBe(1);
    for (const id of ['bob', 'carol', 'dave']) {
      const [alice, other] = [
        await store.member('alice' as never),
        await store.member(id as never),
      ];
      if (alice === undefined || other === undefined) throw new Error(`no ${id}`);
      expect((await store.pairKey(alice.id, other.id))?.key).toHaveLength(32);
    }
    expect(ring.broken).toBe(0);
  }

  it.each([0, 1, 2, 4, 8, 16])('two rotations %d ms apart lose no key', async (apart) => {
    for (let time = 0; time < 4; time += 1) {
      const ring = await ringOf(subnet.driver, subnet.paths);
      const vault = new KeyVault(slow(subnet.driver, 3), ring, kms(), { log });
      await vault.rotate(false);
      await pause(apart);
      await vault.rotate(false);
      await until(async () => !(await vault.status()).resealing, 'the end of sealing');
      expect(ring.size).toBe(1);
      await vault.close();
      await allOpens();
    }
  });

  it('a DEK that the database took, and said it had not, is gone by', async () => {
    const ring = await ringOf(subnet.driver, subnet.paths);
    let failing = true;
    const driver = slow(subnet.driver, 1, () => failing);
    const vault = new KeyVault(driver, ring, kms(), { log });
    await expect(vault.rotate(false)).rejects.toThrow('the connection was lost');
    failing = false;
    const row = await subnet.driver.reader.get('SELECT id FROM deks WHERE active = 1', []);
    expect(ring.active?.equals(row?.id as Buffer)).toBe(true);
    await vault.resume();
    await until(async () => !(await vault.status()).resealing, 'the end of sealing');
    await vault.close();
    await allOpens();
  });

  it('what they have sealed counts over restarts, also after kill -9, and renews them', async () => {
    const seal = (ring: Awaited<ReturnType<typeof ringOf>>, count: number): void => {
      for (let at = 0; at < count; at += 1) {
        ring.seal('pair_keys', 'key', ['a', 'b'], 1, Buffer.alloc(32));
      }
    };
    let sealed = 0;
    for (let run = 0; run < 3; run += 1) {
      const ring = await ringOf(subnet.driver, subnet.paths);
      const vault = new KeyVault(subnet.driver, ring, kms(), { log });
      await vault.resume();
      expect(ring.seals).toBeGreaterThanOrEqual(sealed);
      // In the second run more than a block has room for; nothing of it is told when it ends.
      const count = run === 1 ? 100_000 : 1_000;
      for (let at = 0; at < count; at += 1_000) {
        seal(ring, 1_000);
        if (at % 20_000 === 0) await pause(1);
      }
      sealed += count;
      await vault.close();
    }
    const id = async (): Promise<unknown> =>
      (await subnet.driver.reader.get('SELECT id FROM deks WHERE active = 1', []))?.id;
    const before = await id();
    await subnet.driver.transaction((sql) => sql.run('UPDATE deks SET seals = ?', [2 ** 30]));
    const ring = await ringOf(subnet.driver, subnet.paths);
    const vault = new KeyVault(subnet.driver, ring, kms(), { log });
    await vault.resume();
    await vault.look();
    await until(async () => !(await vault.status()).resealing, 'the end of sealing');
    expect(await id()).not.toEqual(before);
    expect(ring.seals).toBeLessThan(1_000);
    await vault.close();
    await allOpens();
  });

  it('of machines that each have a copy of the root keys, none makes one alone', async () => {
    const ring = await ringOf(subnet.driver, subnet.paths);
    const vault = new KeyVault(subnet.driver, ring, kms(), { log, copied: true });
    await expect(vault.rotate(true)).rejects.toThrow('its own copy');
    await vault.close();
  });

  it.skipIf(ON_POSTGRES)('are served where there is no room to rewrite the file', async () => {
    await subnet.driver.transaction((sql) =>
      sql.run("UPDATE meta SET value = ? WHERE name = 'sealing'", [Buffer.from('sealed')]),
    );
    const full: SqlDriver = {
      ...slow(subnet.driver, 0),
      erase: () => Promise.reject(new PairwireError('STORE_FAILED', 'the disk is full')),
    };
    const options = { service: LocalDeks.load(subnet.paths.kms), markFile: subnet.paths.sealMark };
    expect((await unlock(full, options)).size).toBe(1);
    const state = await subnet.driver.reader.get(
      "SELECT value FROM meta WHERE name = 'sealing'",
      [],
    );
    expect(String(state?.value)).toBe('sealed');
  });
});

describe('the folder of a KMS', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-kms-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));
  const key = Buffer.alloc(32, 1);
  const whom = { subnet: SUBNET, server: SUBNET, serverKey: key, operator: key };

  it('that has root keys and no kms.yaml is left as it is', () => {
    const kms = join(dir, 'kms');
    mkdirSync(kms);
    writeFileSync(join(kms, 'root-1.key'), 'from a backup');
    expect(() => makeKms(kms, whom)).toThrow('there are files in this folder');
    expect(readFileSync(join(kms, 'root-1.key'), 'utf8')).toBe('from a backup');
    expect(hasKms(kms)).toBe(false);
  });

  it('is whole or not there, whatever an attempt before it left', () => {
    const kms = join(dir, 'kms');
    mkdirSync(`${kms}.making`);
    writeFileSync(join(`${kms}.making`, 'root-1.key'), 'half');
    makeKms(kms, whom);
    expect(hasKms(kms)).toBe(true);
    expect(existsSync(`${kms}.making`)).toBe(false);
  });

  it('has an audit log that is not cut where it is damaged', () => {
    const path = join(dir, 'audit.log');
    const { audit } = KmsAudit.open(path, Buffer.alloc(32, 2));
    audit.note({ actor: 'east', action: 'start', outcome: 'done', detail: {} });
    audit.close();
    const whole = readFileSync(path);
    const torn = Buffer.concat([whole, Buffer.from('{"seq":2,"at"')]);
    writeFileSync(path, torn);
    expect(KmsAudit.open(path, Buffer.alloc(32, 2)).torn).toBe(13);
    expect(readFileSync(path)).toEqual(whole);
    for (const damage of [
      Buffer.concat([whole, Buffer.alloc(3 * MAX_AUDIT_LINE, 0x78)]),
      Buffer.concat([whole, Buffer.from('no line of ours\n{"seq"')]),
    ]) {
      writeFileSync(path, damage);
      expect(() => KmsAudit.open(path, Buffer.alloc(32, 2))).toThrow(PairwireError);
      expect(readFileSync(path)).toEqual(damage);
    }
  });

  it('is for one process at a time', () => {
    const unlockIt = lockFolder(dir, 'a KMS');
    expect(() => lockFolder(dir, 'a KMS')).toThrow('runs in this folder already');
    unlockIt();
    lockFolder(dir, 'a KMS')();
  });
});
