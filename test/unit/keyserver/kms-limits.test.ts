/** What one key server may have of a KMS, and how large its audit log gets. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkKmsAudit, filesAside, KmsAudit } from '../../../keyserver/kms/audit-file.js';
import { KmsClient } from '../../../keyserver/kms/client.js';
import { kmsConfigSchema, kmsPaths } from '../../../keyserver/kms/config.js';
import { IdentityDirectory } from '../../../keyserver/kms/identity-directory.js';
import { Quotas, quotaSchema } from '../../../keyserver/kms/quota.js';
import { RootKeys } from '../../../keyserver/kms/root-keys.js';
import { Kms } from '../../../keyserver/kms/service.js';
import { generateKeyPair } from '../../../src/protocol/channel/keys.js';
import { createLogger } from '../../../src/runtime/log.js';
import { SUBNET } from './support/subnet-folder.js';

const key = Buffer.alloc(32, 7);
const log = createLogger('test', { level: 'silent' });
let dir: string;
let file: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pairwire-kms-limits-'));
  file = join(dir, 'audit.log');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe('a KMS', () => {
  it('gives a key server no more than kms.yaml allows, says so, and the others lose nothing by it', async () => {
    const [staticKeys, greedy, modest] = [generateKeyPair(), generateKeyPair(), generateKeyPair()];
    const config = kmsConfigSchema.parse({
      subnet: SUBNET,
      keyServers: [greedy, modest].map(({ publicKey }, at) => ({
        server: `s${at + 1}`,
        key: publicKey.toString('base64url'),
      })),
      limits: { dekMakesPerHour: 3, dekOpensPerHour: 5, rootKeysPerDay: 2 },
    });
    const { audit } = KmsAudit.open(file, key);
    const directory = new IdentityDirectory(kmsPaths(dir), key);
    const { kms, addresses } = await Kms.start({
      ...{ config, audit, directory, staticKeys, log },
      roots: RootKeys.make(dir),
      listen: [{ scheme: 'tcp', host: '127.0.0.1', port: 0 }],
    });
    const clients = [greedy, modest].map((keys) => new KmsClient(keys, log));
    const [first, second] = clients as [KmsClient, KmsClient];
    try {
      const port = addresses[0]?.port ?? 0;
      for (const client of clients) {
        client.setAddress({
          ...{ scheme: 'tcp', host: '127.0.0.1', port },
          publicKey: staticKeys.publicKey,
        });
      }
      const made = [];
      for (let time = 0; time < 3; time += 1) {
        const { id, sealed } = await first.make();
        made.push({ id, sealed });
      }
      await expect(first.make()).rejects.toThrow(/refuses dek.make: limit/);
      expect(await first.open(made)).toHaveLength(3);
      await expect(first.open(made)).rejects.toThrow(/refuses dek.open: limit/);
      expect(await first.rotateRoot(1)).toBe(2);
      expect(await first.rotateRoot(2)).toBe(3);
      await expect(first.rotateRoot(3)).rejects.toThrow(/refuses root.rotate: limit/);
      // Asked again what is made already costs nothing.
      expect(await first.rotateRoot(2)).toBe(3);
      expect((await second.make()).key).toHaveLength(32);
      const status = await second.status();
      expect(status).toMatchObject({ limited: 3, generations: [1, 2, 3] });
      expect(status.limitedBy).toEqual({ request: 0, question: 0, make: 1, open: 1, root: 1 });
      const types = ['dek.make', 'dek.open', 'root.rotate'];
      expect(first.failures).toEqual(types.map((type) => ({ type, code: 'limit', count: 1 })));
      expect(second.failures).toEqual([]);
      expect(status.auditBytes).toBe(statSync(file).size);
      expect(readFileSync(file, 'utf8')).toContain('"detail":{"reason":"LIMIT"}');
    } finally {
      for (const client of clients) client.close();
      await kms.close();
    }
  });

  it('gives it back evenly, and no more than that was saved up', () => {
    let now = 0;
    const quotas = new Quotas(quotaSchema.parse({ dekMakesPerHour: 60 }), () => now);
    const most = (): number => {
      for (let count = 0; ; count += 1) {
        try {
          quotas.take('s1', 'make');
        } catch {
          return count;
        }
      }
    };
    expect(most()).toBe(60);
    now += 60_000;
    // What fails costs nothing.
    for (let time = 0; time < 5; time += 1) {
      expect(() =>
        quotas.spend('s1', 'make', () => {
          throw new Error('the token was pulled');
        }),
      ).toThrow('pulled');
    }
    expect(most()).toBe(1);
    now += 100 * 3_600_000;
    expect(most()).toBe(60);
    expect(quotas.refusals.make).toBe(3);
  });
});

describe('the audit log of a KMS that is full', () => {
  const bounds = { maxBytes: 1_000, keep: 3 };
  const note = (audit: KmsAudit, n: number): void =>
    audit.note({ actor: 's1', action: 'dek.make', outcome: 'done', detail: { n } });
  function fill(from: number, count: number): void {
    const { audit } = KmsAudit.open(file, key, Date.now, bounds);
    // What is shown goes on over restarts.
    expect({ files: audit.files, gone: audit.gone }).toEqual(kept);
    for (let n = from; n < from + count; n += 1) note(audit, n);
    kept = { files: audit.files, gone: audit.gone };
    audit.close();
  }
  let kept = { files: 0, gone: 0 };
  beforeEach(() => {
    kept = { files: 0, gone: 0 };
  });
  const sizeOfAll = (): number =>
    readdirSync(dir).reduce((sum, name) => sum + statSync(join(dir, name)).size, 0);

  it('keeps a few files, whose chain goes on through all of them and over restarts', async () => {
    for (let time = 0; time < 5; time += 1) fill(20 * time, 20);
    expect(filesAside(file)).toHaveLength(3);
    expect(sizeOfAll()).toBeLessThan(4 * (bounds.maxBytes + 400));
    const { entries, broken } = await checkKmsAudit(file, key);
    expect(broken).toBeUndefined();
    const last = readFileSync(file, 'utf8').trimEnd().split('\n').at(-1) ?? '';
    expect(JSON.parse(last)).toMatchObject({ detail: { n: 99 } });
    // Nothing is lost but the oldest.
    expect(entries).toBeGreaterThan(10);
    expect(kept).toEqual({ files: 3, gone: (JSON.parse(last) as { seq: number }).seq - entries });
    fill(100, 1);
    expect((await checkKmsAudit(file, key)).entries).toBe(entries + 1);
  });

  it('shows what was changed in a file that was put aside, or that one is missing', async () => {
    fill(0, 60);
    const [oldest, middle] = filesAside(file);
    if (oldest === undefined || middle === undefined) throw new Error('none was put aside');
    const text = readFileSync(middle.path, 'utf8');
    writeFileSync(middle.path, text.replace('"actor":"s1"', '"actor":"s2"'));
    expect((await checkKmsAudit(file, key)).broken).toMatchObject({ file: middle.path });
    rmSync(middle.path);
    expect((await checkKmsAudit(file, key)).broken?.reason).toBe('a line is missing');
    writeFileSync(middle.path, text);
    expect((await checkKmsAudit(file, key)).broken).toBeUndefined();
    rmSync(oldest.path);
    expect((await checkKmsAudit(file, key)).broken?.reason).toMatch(
      /^entries \d+ to \d+ are missing$/,
    );
  });

  it('goes on where it was killed: file put aside, and nothing in the next', async () => {
    fill(0, 12);
    const before = await checkKmsAudit(file, key);
    writeFileSync(join(dir, `audit-${lastSeq() + 1}.log`), readFileSync(file));
    rmSync(file);
    kept = { ...kept, files: kept.files + 1 };
    fill(12, 1);
    const { entries, broken } = await checkKmsAudit(file, key);
    expect(broken).toBeUndefined();
    expect(entries).toBe(before.entries + 2);
    function lastSeq(): number {
      const last = readFileSync(file, 'utf8').trimEnd().split('\n').at(-1) ?? '';
      return (JSON.parse(last) as { seq: number }).seq;
    }
  });
});
