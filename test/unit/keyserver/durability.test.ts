/** What was answered survives kill -9: a real server process under load, killed again and again at random moments. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { KEY_KIND, pathsOf } from '../../../keyserver/config.js';
import { initSubnet } from '../../../keyserver/init.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { SqliteDriver } from '../../../keyserver/storage/sqlite.js';
import { makeToken } from '../../../keyserver/tokens.js';
import { ChannelClient } from '../../../src/net/channel-tcp.js';
import { keyPairFromPrivate } from '../../../src/protocol/channel/keys.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { importPrivate } from '../../../src/protocol/public-keys.js';
import { parseToken, type Token } from '../../../src/protocol/token.js';
import { readKeyFile } from '../../../src/runtime/files.js';
import { SUBNET, sleep, TestMember, type TestSubnet } from './support/subnet.js';

const KILLS = 20;
const WORKERS = 6;
const PROGRAM = new URL('support/program.ts', import.meta.url).pathname;

let dir: string;
let port: number;
let token: Token;
let child: ChildProcess | undefined;
const clients: ChannelClient[] = [];

/** Facts that the server has acknowledged. */
const enrolled = new Set<Id>();
const indices = new Map<Id, number>();
const keys = new Map<string, string>();

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'pairwire-kill-'));
  port = await freePort();
  await initSubnet({
    subnet: SUBNET,
    dir,
    listen: `127.0.0.1:${port}`,
    advertise: [],
    settings: { replicate: 1 },
  });
  const paths = pathsOf(dir, { database: 'keyserver.db', operatorKey: 'operator.key' });
  const made = makeToken(
    { subnet: SUBNET, server: parseId('s1'), listen: `127.0.0.1:${port}`, advertise: [] },
    {
      operator: importPrivate('ed25519', readKeyFile(paths.operatorKey, KEY_KIND.operatorPrivate)),
      tokenKey: readKeyFile(paths.tokenKey, KEY_KIND.token),
      serverPublic: keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server)).publicKey,
    },
    {
      id: 'n-*',
      role: 'host',
      macs: [],
      ips: [],
      rights: [],
      uses: 1_000_000,
      notAfter: Date.now() + 3_600_000,
    },
  );
  token = parseToken(made.text);
});

afterAll(() => {
  for (const client of clients) client.stop();
  child?.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

it(`keeps every acknowledged fact over ${KILLS} kills`, async () => {
  for (let round = 0; round < KILLS; round += 1) {
    await startServer();
    let running = true;
    const work = Array.from({ length: WORKERS }, (_unused, worker) =>
      load(`n-${round}-${worker}`, () => running),
    );
    await sleep(100 + Math.random() * 400);
    running = false;
    child?.kill('SIGKILL');
    await once(child as ChildProcess, 'exit');
    for (const client of clients.splice(0)) client.stop();
    await Promise.all(work);
    await verify();
  }
  expect(enrolled.size).toBeGreaterThan(KILLS);
  expect(keys.size).toBeGreaterThan(KILLS);
}, 180_000);

/** Enrols, registers and asks for keys until the server dies. */
async function load(prefix: string, running: () => boolean): Promise<void> {
  const subnet = {
    client: (privateKey: Buffer, more: object) => {
      const [server] = token.servers;
      const client = new ChannelClient({
        servers: [{ host: '127.0.0.1', port, publicKey: server?.key ?? new Uint8Array(32) }],
        staticKeys: keyPairFromPrivate(privateKey),
        ...more,
      });
      clients.push(client);
      client.start();
      return client;
    },
  } as unknown as TestSubnet;
  try {
    for (let at = 0; running(); at += 1) {
      const member = new TestMember(subnet, `${prefix}-${at}`);
      await member.enrol(token);
      enrolled.add(member.id);
      const { index } = await member.register();
      indices.set(member.id, index);
      const peers = [...enrolled].filter((id) => id !== member.id).slice(-20);
      await Promise.allSettled(
        peers.map(async (peer) => {
          const { key } = await member.keyByMac(defaultMac(SUBNET, peer));
          const name = [member.id, peer].sort().join(' ');
          const text = Buffer.from(key).toString('hex');
          const known = keys.get(name);
          if (known !== undefined && known !== text) throw new Error(`two keys of ${name}`);
          keys.set(name, text);
        }),
      );
    }
  } catch {
    // The server is dead; what was not acknowledged may or may not be there.
  }
}

async function verify(): Promise<void> {
  const paths = pathsOf(dir, { database: 'keyserver.db', operatorKey: 'operator.key' });
  const driver = await SqliteDriver.open(paths.database);
  const store = await openStore(driver);
  try {
    expect(await driver.reader.get('PRAGMA integrity_check', [])).toMatchObject({
      integrity_check: 'ok',
    });
    const lost: string[] = [];
    for (const id of enrolled) if ((await store.member(id)) === undefined) lost.push(id);
    for (const [id, index] of indices) {
      if ((await store.memberByIndex(index))?.id !== id) lost.push(`index of ${id}`);
    }
    for (const [name, key] of keys) {
      const [a = '', b = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      if (pair?.key.toString('hex') !== key) lost.push(`key of ${name}`);
    }
    expect(lost).toEqual([]);
    const auditKey = readKeyFile(paths.auditKey, KEY_KIND.audit);
    expect((await verifyAudit(store, parseId('s1'), auditKey)).broken).toBeUndefined();
  } finally {
    await store.close();
  }
}

async function startServer(): Promise<void> {
  child = spawn(process.execPath, ['--import', 'tsx', PROGRAM, 'keyserver', '--dir', dir], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const started = child;
  let log = '';
  await new Promise<void>((resolve, reject) => {
    started.stderr?.on('data', (chunk: Buffer) => {
      log += chunk.toString();
      if (log.includes('key server listens')) resolve();
    });
    started.once('exit', () => reject(new Error(`the server ended: ${log}`)));
  });
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      const found = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(found));
    });
  });
}
