/** What was answered survives kill -9: a real server process under load, killed again and again at random moments. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { KEY_KIND } from '../../../keyserver/config.js';
import { openDatabase } from '../../../keyserver/storage/open.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import type { Token } from '../../../src/protocol/token.js';
import { readKeyFile } from '../../../src/runtime/files.js';
import { ServerProcess } from './support/server-process.js';
import { ON_POSTGRES, ringOf } from './support/store.js';
import { SUBNET, sleep, TestMember, until } from './support/subnet.js';

const KILLS = 20;
const WORKERS = 6;
const PATIENCE_MS = 60_000;

let server: ServerProcess;
let token: Token;

/** Facts that the server has acknowledged. */
const enrolled = new Set<Id>();
const indices = new Map<Id, number>();
const keys = new Map<string, string>();

beforeAll(async () => {
  server = await ServerProcess.make({ replicate: 1 });
  token = server.token({ id: 'n-*', uses: 1_000_000 });
});

afterAll(() => server.remove());

it(`keeps every acknowledged fact over ${KILLS} kills`, async () => {
  for (let round = 0; round < KILLS; round += 1) {
    await server.start();
    let running = true;
    const work = Array.from({ length: WORKERS }, (_unused, worker) =>
      load(`n-${round}-${worker}`, () => running),
    );
    // Every other time not before it has given keys, however slow this machine and its database are.
    const before = keys.size;
    if (round % 2 === 1) await until(() => keys.size > before, 'a key of this round', PATIENCE_MS);
    await sleep(100 + Math.random() * 400);
    running = false;
    await server.kill();
    server.stopClients();
    await Promise.all(work);
    await verify();
  }
  expect(enrolled.size).toBeGreaterThan(KILLS / 2);
  expect(keys.size).toBeGreaterThanOrEqual(KILLS / 2);
}, 300_000);

/** Enrols, registers and asks for keys until the server dies. */
async function load(prefix: string, running: () => boolean): Promise<void> {
  try {
    for (let at = 0; running(); at += 1) {
      const member = new TestMember(server, `${prefix}-${at}`);
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
  const { paths } = server;
  const driver = await openDatabase(paths);
  const store = await openStore(driver, { ring: await ringOf(driver, paths) });
  try {
    if (!ON_POSTGRES) {
      expect(await driver.reader.get('PRAGMA integrity_check', [])).toMatchObject({
        integrity_check: 'ok',
      });
    }
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
    // Whenever it was killed, each row has its MAC, and the sums come out.
    if (!ON_POSTGRES) expect(await store.rows?.check()).toEqual([]);
  } finally {
    await store.close();
  }
}
