/** The KMS as a process: beside a key server or by itself, killed at any moment, with a wrong root key, asked by strangers. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  chownSync,
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkKmsAudit, KmsAudit } from '../../../keyserver/kms/audit-file.js';
import { KMS_KEY_KIND, kmsPaths } from '../../../keyserver/kms/config.js';
import { RootKeys } from '../../../keyserver/kms/root-keys.js';
import { ChannelClient } from '../../../src/net/channel-client.js';
import { generateKeyPair, keyPairFromPrivate } from '../../../src/protocol/channel/keys.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { readKeyFile } from '../../../src/runtime/files.js';
import { keyServerProgram } from '../../programs/key-server.js';
import { pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { ON_POSTGRES, openKeys } from './support/store.js';
import { SUBNET, sleep, TestMember, until } from './support/subnet.js';

const mac = (id: string): string => defaultMac(SUBNET, parseId(id));

describe('the KMS of a key server', () => {
  let server: ServerProcess;
  let others: ChildProcess[] = [];

  beforeEach(async () => {
    server = await ServerProcess.make({ replicate: 1 });
    others = [];
  });
  afterEach(async () => {
    for (const child of others) child.kill('SIGKILL');
    await server.remove();
  });

  async function members(...ids: string[]): Promise<TestMember[]> {
    const all: TestMember[] = [];
    for (const id of ids) {
      const member = new TestMember(server, id);
      await member.enrol(server.token({ id }));
      await member.register();
      all.push(member);
    }
    return all;
  }

  const status = async (): Promise<Record<string, unknown>> => {
    const { out, err } = await pairwire(['kms', 'status', '--dir', server.dir, '--json']);
    if (out === '') throw new Error(err);
    return JSON.parse(out) as Record<string, unknown>;
  };

  it('is a process of its own that holds the root key; killed, it is back, and keys are given meanwhile', async () => {
    await server.start();
    const kms = childOf(server.pid);
    expect(readFileSync(`/proc/${kms}/cmdline`, 'latin1')).toContain('kms/main.js');
    const [alice] = await members('alice', 'bob', 'carol');
    if (alice === undefined) throw new Error('there is no alice');
    const before = await alice.keyByMac(mac('bob'));

    // What a terminal or a service manager sends to both is for the server alone.
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.kill(kms, signal);
    await sleep(200);
    expect(childOf(server.pid)).toBe(kms);
    process.kill(kms, 'SIGKILL');
    // Stored keys and new ones: the DEK is in the server's memory.
    expect((await alice.keyByMac(mac('bob'))).key).toEqual(before.key);
    expect((await alice.keyByMac(mac('carol'))).key).toHaveLength(32);
    await until(
      () => childOf(server.pid, false) !== kms && childOf(server.pid, false) > 0,
      'another',
    );
    await until(async () => (await status()).connected === true, 'the channel', 30_000);
    expect(server.log).toContain('the KMS ended');

    // It goes with its server.
    const second = childOf(server.pid);
    await server.kill();
    await until(() => !isAlive(second), 'the KMS to end');
    await server.start();
    expect(await (await fresh(alice)).keyByMac(mac('bob'))).toMatchObject({ key: before.key });
    const { code, out } = await pairwire(['kms', 'check', '--dir', server.paths.kms, '--json']);
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ subnet: SUBNET, rootKeys: '1' });
  });

  it('seals all keys anew under load, killed again and again with its server; no key changes', async () => {
    await server.start();
    const ids = Array.from({ length: 12 }, (_unused, at) => `n${at}`);
    const all = await members(...ids);
    const keys = new Map<string, string>();
    for (const member of all) {
      for (const peer of ids.filter((id) => id > member.id)) {
        const { key } = await member.keyByMac(mac(peer));
        keys.set(`${member.id} ${peer}`, Buffer.from(key).toString('hex'));
      }
    }
    const dek = await deksOf(server);
    for (let round = 0; round < 3; round += 1) {
      let running = true;
      const load = all.map(async (member, at) => {
        while (running) {
          const peer = ids[(at + 1) % ids.length] ?? '';
          await member.keyByMac(mac(peer)).catch(() => undefined);
          await sleep(2);
        }
      });
      const asked = server.admin().request({ t: 'kms.rotate', root: true });
      asked.catch(() => undefined);
      if (round % 2 === 0) {
        await asked;
        await sleep(20 * Math.random());
      } else {
        // In the middle of the question, then of what follows.
        await sleep(20 * Math.random());
        process.kill(childOf(server.pid), 'SIGKILL');
        await sleep(20 * Math.random());
      }
      running = false;
      await server.kill();
      server.stopClients();
      await Promise.all(load);
      await server.start();
      for (const member of all) member.connect();
    }
    const admin = server.admin();
    await until(async () => {
      const answer = await admin.request({ t: 'kms.status' });
      return answer.deks === 1 && answer.resealing === false;
    }, 'all to be sealed anew');
    const after = await status();
    expect(after).toMatchObject({ deks: 1, broken: 0 });
    const generations = String(after.rootKeys).split(', ').map(Number);
    expect(generations.length).toBeGreaterThan(2);
    const [first, ...more] = await deksOf(server);
    expect(more).toEqual([]);
    expect(first?.id).not.toBe(dek[0]?.id);
    await server.kill();

    // Nothing needs the first root key any more.
    rmSync(join(server.paths.kms, 'root-1.key'));
    const store = await openKeys(server.paths);
    for (const [name, key] of keys) {
      const [a = '', b = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      expect(pair?.key.toString('hex'), name).toBe(key);
    }
    await store.close();
  });

  // On PostgreSQL it stands by until it can (test/postgres/standby.test.ts).
  it.skipIf(ON_POSTGRES)(
    'with another root key, or none, opens nothing: the server says so and does not start',
    async () => {
      const root = join(server.paths.kms, 'root-1.key');
      const good = readFileSync(root);
      rmSync(root);
      await expect(server.start()).rejects.toThrow(/there is no root key/);
      // As who puts a file there has to: where the KMS has a user of its own, the folder is that user's by now.
      const { uid, gid } = statSync(server.paths.kms);
      RootKeys.make(server.paths.kms);
      chownSync(root, uid, gid);
      await expect(server.start()).rejects.toThrow(/the KMS refuses dek.open/);
      expect(server.log).not.toContain(good.toString().split(' ')[2]?.trim());
      writeFileSync(root, good);

      chmodSync(root, 0o640);
      await expect(server.start()).rejects.toThrow(/a file with secrets has mode 0640/);
      chmodSync(root, 0o600);
      renameSync(root, `${root}.away`);
      symlinkSync(`${root}.away`, root);
      await expect(server.start()).rejects.toThrow(/symbolic link/);
      rmSync(root);
      renameSync(`${root}.away`, root);

      renameSync(server.paths.kms, `${server.paths.kms}.away`);
      await expect(server.start()).rejects.toThrow(/the folder of the KMS is not there/);
      renameSync(`${server.paths.kms}.away`, server.paths.kms);
      await server.start();
    },
  );

  it('runs by itself where the configuration says, and turns strangers away', async () => {
    const away = mkdtempSync(join(tmpdir(), 'pairwire-kms-'));
    try {
      renameSync(server.paths.kms, join(away, 'kms'));
      const dir = join(away, 'kms');
      const text = readFileSync(join(dir, 'kms.yaml'), 'utf8');
      const port = 20_000 + (process.pid % 10_000);
      writeFileSync(join(dir, 'kms.yaml'), `${text}listen: 127.0.0.1:${port}\n`);
      const { publicKey } = keyPairFromPrivate(
        readKeyFile(kmsPaths(dir).key, KMS_KEY_KIND.channel),
      );
      appendFileSync(
        server.paths.config,
        `kms:\n  address: 127.0.0.1:${port}\n  key: ${publicKey.toString('base64url')}\n`,
      );
      await startKms(dir, others);
      await server.start();
      expect(childOf(server.pid, false)).toBe(0);
      const [alice] = await members('alice', 'bob');
      expect((await alice?.keyByMac(mac('bob')))?.key).toHaveLength(32);

      // A member, and somebody without any key: not even what the KMS is.
      for (const staticKeys of [
        generateKeyPair(),
        keyPairFromPrivate(alice?.channelKeys.privateKey ?? Buffer.alloc(32)),
      ]) {
        const stranger = new ChannelClient({
          servers: [{ host: '127.0.0.1', port, publicKey }],
          staticKeys,
        });
        stranger.start();
        await expect(
          stranger.request({ t: 'kms.status' }, { timeoutMs: 1_000 }),
        ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
        stranger.stop();
      }
      const { entries, broken } = await checkKmsAudit(
        kmsPaths(dir).auditLog,
        readKeyFile(kmsPaths(dir).auditKey, KMS_KEY_KIND.audit),
      );
      expect(broken).toBeUndefined();
      expect(entries).toBeGreaterThan(2);
      const audit = readFileSync(kmsPaths(dir).auditLog, 'utf8');
      expect(audit).toContain('"actor":"s1","action":"dek.open","outcome":"done"');
      expect(audit).toContain('"actor":"-","action":"channel","outcome":"refused"');
    } finally {
      for (const child of others) child.kill('SIGKILL');
      rmSync(away, { recursive: true, force: true });
    }
  });

  it.runIf(process.getuid?.() === 0)(
    'runs as a user of its own, who has its folder and no other',
    async () => {
      appendFileSync(server.paths.config, 'kms:\n  user: nobody\n');
      await server.start();
      const kms = childOf(server.pid);
      const { uid } = statSync(`/proc/${kms}`);
      expect(uid).not.toBe(0);
      for (const name of ['.', ...readdirSync(server.paths.kms)]) {
        expect(statSync(join(server.paths.kms, name)).uid, name).toBe(uid);
      }
      expect(statSync(server.paths.kms).mode & 0o777).toBe(0o700);
      for (const path of [server.paths.tokenKey, server.paths.serverKey, server.paths.sealMark]) {
        expect(statSync(path)).toMatchObject({ uid: 0, mode: 0o100600 });
      }
      await server.kill();
      // A second start finds the folder given away already.
      await server.start();
      expect(statSync(`/proc/${childOf(server.pid)}`).uid).toBe(uid);
      await server.kill();
      // Where that user can't get to, it runs as ours.
      const closed = mkdtempSync(join(tmpdir(), 'pairwire-closed-'));
      try {
        cpSync(server.dir, join(closed, 'east'), { recursive: true });
        const { log, kmsUid } = await startIn(join(closed, 'east'), others);
        expect(log).toContain('nobody may not enter that folder');
        expect(kmsUid).toBe(0);
      } finally {
        for (const child of others) child.kill('SIGKILL');
        rmSync(closed, { recursive: true, force: true });
      }
    },
  );
});

describe('the audit log of a KMS', () => {
  const key = Buffer.alloc(32, 7);
  let dir: string;
  let file: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-kms-audit-'));
    file = join(dir, 'audit.log');
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const event = (action: string) =>
    ({ actor: 's1', action, outcome: 'done', detail: { n: 1 } }) as const;
  function write(...actions: string[]): void {
    const { audit } = KmsAudit.open(file, key);
    for (const action of actions) audit.note(event(action));
    audit.close();
  }

  it('goes on after a torn line, wherever it was torn', async () => {
    write('a', 'b');
    const whole = readFileSync(file);
    write('c');
    const all = readFileSync(file);
    for (let size = whole.length; size < all.length; size += 1) {
      writeFileSync(file, all.subarray(0, size));
      write('d');
      expect(await checkKmsAudit(file, key), `${size}`).toEqual({ entries: 3, broken: undefined });
    }
  });

  it('shows what was changed, taken out, or written by another process', async () => {
    write('a', 'b', 'c');
    const lines = readFileSync(file, 'utf8').split('\n');
    writeFileSync(file, lines.map((line) => line.replace('"b"', '"x"')).join('\n'));
    expect((await checkKmsAudit(file, key)).broken).toMatchObject({ line: 2 });
    writeFileSync(file, lines.filter((line) => !line.includes('"b"')).join('\n'));
    expect((await checkKmsAudit(file, key)).broken).toMatchObject({ line: 2 });
    writeFileSync(file, lines.join('\n'));
    expect((await checkKmsAudit(file, Buffer.alloc(32))).broken).toMatchObject({ line: 1 });
    const { audit } = KmsAudit.open(file, key);
    write('d');
    expect(() => audit.note(event('e'))).toThrow(/another process/);
    audit.close();
  });

  it('has one line for what is refused again and again', async () => {
    let now = 0;
    const { audit } = KmsAudit.open(file, key, () => now);
    for (let at = 0; at < 500; at += 1) audit.refused('-', 'channel', '192.0.2.1', () => {});
    now = 61_000;
    audit.sweep();
    for (let at = 0; at < 5_000; at += 1) audit.refused('-', 'channel', `${at}`, () => {});
    audit.close();
    const { entries } = await checkKmsAudit(file, key);
    expect(entries).toBeLessThan(1_100);
    expect(readFileSync(file, 'utf8')).toContain('"repeated":499');
  });
});

/** A fresh channel of a member that is enrolled. */
async function fresh(member: TestMember): Promise<TestMember> {
  member.client.stop();
  member.connect();
  await member.register();
  return member;
}

/** Runs the key server of a folder until it listens. */
async function startIn(
  dir: string,
  started: ChildProcess[],
): Promise<{ readonly log: string; readonly kmsUid: number }> {
  const argv = keyServerProgram('keyserver', '--dir', dir);
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
  started.push(child);
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  await until(() => log.includes('key server listens'), 'the key server', 60_000);
  return { log, kmsUid: statSync(`/proc/${childOf(child.pid)}`).uid };
}

async function startKms(dir: string, started: ChildProcess[]): Promise<void> {
  const argv = keyServerProgram('kms', '--dir', dir);
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
  started.push(child);
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  const ended = once(child, 'exit').then(() => {
    throw new Error(log);
  });
  await Promise.race([ended, until(() => log.includes('KMS listens'), 'the KMS', 60_000)]);
  ended.catch(() => undefined);
}

/** The KMS that a key server has started; 0 if there is none. */
function childOf(pid: number | undefined, required = true): number {
  const path = `/proc/${pid}/task/${pid}/children`;
  const found = readFileSync(path, 'latin1')
    .split(' ')
    .map(Number)
    .find((child) => child > 0 && cmdline(child).includes('kms/main'));
  if (found === undefined && required) throw new Error('the key server has no KMS');
  return found ?? 0;
}

function cmdline(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1');
  } catch {
    return '';
  }
}

function isAlive(pid: number): boolean {
  return cmdline(pid) !== '';
}

/** DEKs in the database, as somebody sees them who has only that. */
async function deksOf(server: ServerProcess): Promise<{ readonly id: string }[]> {
  const { openDatabase } = await import('../../../keyserver/storage/open.js');
  const driver = await openDatabase(server.paths);
  const rows = await driver.reader.all('SELECT id FROM deks', []);
  await driver.close();
  return rows.map((row) => ({ id: Buffer.from(row.id as ArrayBuffer).toString('hex') }));
}
