/**
 * The disk of PostgreSQL is full, under a key server as a process: what it knows it goes on telling, also while others ask for what can't
 * be stored; the log says why; nothing acknowledged is lost; and with room it works again by itself. Where there is no room for
 * PostgreSQL's own log, or for what a checkpoint writes, that ends itself, and the key server stands by until it is back.
 */
import { execFileSync } from 'node:child_process';
import { appendFileSync, chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { verifyAudit } from '../../keyserver/audit.js';
import { type Id, parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { fillDisk } from '../unit/keyserver/support/fill-disk.js';
import { PostgresServer } from '../unit/keyserver/support/postgres.js';
import { freePort, ServerProcess } from '../unit/keyserver/support/server-process.js';
import { openKeys } from '../unit/keyserver/support/store.js';
import { SUBNET, sleep, TestMember, until } from '../unit/keyserver/support/subnet.js';

const PATIENCE_MS = 60_000;
/** Longer than a holder of the lease goes on without the database. */
const WHILE_FULL_MS = 8_000;
/** Small segments of PostgreSQL's log: so it soon needs another file. */
const SMALL_WAL = ['--wal-segsize=1'];
/** What has room of its own is written without a checkpoint: that ends PostgreSQL on a full disk, and comes when a test asks for one. */
const NO_CHECKPOINT = ['max_wal_size = 4GB', 'checkpoint_timeout = 1h', 'autovacuum = off'];
const LITTLE_WAL = ['min_wal_size = 2MB', 'max_wal_size = 8MB', 'autovacuum = off'];

const own = process.env.PAIRWIRE_TEST_POSTGRES;

let disk: string;
let elsewhere: string | undefined;
let postgres: PostgresServer;
let server: ServerProcess;
let metricsPort: number;
/** Acknowledged. */
const enrolled = new Set<Id>();
const keys = new Map<string, string>();
let last: { readonly pwId: number; readonly key: string };

afterEach(async () => {
  process.env.PAIRWIRE_TEST_POSTGRES = own;
  server.stopClients();
  await server.kill();
  await postgres.halt('immediate');
  while (readFileSync('/proc/self/mounts', 'utf8').includes(disk)) {
    execFileSync('umount', ['--lazy', disk]);
  }
  for (const folder of [disk, elsewhere, server.dir]) {
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  }
  enrolled.clear();
  keys.clear();
});

/** @param logElsewhere PostgreSQL's own log is on another disk */
async function start(logElsewhere: boolean): Promise<[TestMember, TestMember]> {
  if (process.getuid?.() !== 0) throw new Error('a small disk is mounted here: run it as root');
  disk = mkdtempSync(join(tmpdir(), 'pairwire-disk-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=96m,mode=755', 'tmpfs', disk]);
  elsewhere = logElsewhere ? mkdtempSync(join(tmpdir(), 'pairwire-wal-')) : undefined;
  if (elsewhere !== undefined) chmodSync(elsewhere, 0o777);
  const initdb = elsewhere === undefined ? SMALL_WAL : [`--waldir=${join(elsewhere, 'wal')}`];
  const settings = elsewhere === undefined ? LITTLE_WAL : NO_CHECKPOINT;
  postgres = await PostgresServer.start(settings, { disk, initdb });
  process.env.PAIRWIRE_TEST_POSTGRES = postgres.url('postgres');
  await postgres.query('postgres', 'CREATE DATABASE tables');
  server = await ServerProcess.make({ replicate: 1 });
  metricsPort = await freePort();
  appendFileSync(server.paths.config, `metrics:\n  listen: 127.0.0.1:${metricsPort}\n`);
  await server.start();
  const [alice, bob] = [await member('alice'), await member('bob')];
  await know(alice, bob.id);
  return [alice, bob];
}

async function member(id: string): Promise<TestMember> {
  const one = new TestMember(server, id);
  try {
    await one.enrol(server.token({ id }));
    enrolled.add(one.id);
    await one.register();
  } catch (thrown) {
    one.client.stop();
    throw thrown;
  }
  return one;
}

/** Asks for a key, and holds the server to its answer. */
async function know(asker: TestMember, peer: Id): Promise<void> {
  const { key, pwId } = await asker.keyByMac(defaultMac(SUBNET, peer));
  const text = Buffer.from(key).toString('hex');
  const name = `${[asker.id, peer].toSorted().join(' ')} ${pwId}`;
  expect(keys.get(name) ?? text, `one key of ${name}`).toBe(text);
  keys.set(name, text);
  last = { pwId, key: text };
}

async function state(): Promise<string | undefined> {
  try {
    return (await (await fetch(`http://127.0.0.1:${metricsPort}/healthz`)).text()).trim();
  } catch {
    return undefined;
  }
}

/** Enrols members until one is refused: by then nothing more fits into pages that there are. */
async function enrolUntilRefused(prefix: string): Promise<unknown> {
  for (let at = 0; ; at += 1) {
    try {
      (await member(`${prefix}-${at}`)).client.stop();
    } catch (thrown) {
      return thrown;
    }
  }
}

/** All that was acknowledged is in the database, as it was told. */
async function expectAll(): Promise<void> {
  await server.kill();
  server.stopClients();
  const store = await openKeys(server.paths);
  try {
    for (const id of enrolled) expect((await store.member(id))?.state, id).toBe('active');
    for (const [name, key] of keys) {
      const [a = '', b = '', pwId = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      expect(pair?.pwId, name).toBeGreaterThanOrEqual(Number(pwId));
      if (pair?.pwId === Number(pwId)) expect(pair.key.toString('hex'), name).toBe(key);
    }
    const checked = await verifyAudit(store, store.meta.server, server.auditKey);
    expect(checked.broken).toBeUndefined();
  } finally {
    await store.close();
  }
}

it('for tables: known keys are told all the while, whoever asks for more; and it goes on when there is room', async () => {
  const [alice, bob] = await start(true);
  const { pid } = server;
  const free = fillDisk(disk);
  expect(await enrolUntilRefused('n')).toMatchObject({ code: 'unavailable' });
  expect(server.log).toContain('the disk of PostgreSQL is full');
  // Many who want what can't be stored, in every transaction, and one who wants what is known.
  let running = true;
  let refused = 0;
  const greedy = Array.from({ length: 4 }, async (_unused, worker) => {
    for (let at = 0; running; at += 1) {
      await member(`g${worker}-${at}`).then(
        (one) => one.client.stop(),
        () => {
          refused += 1;
        },
      );
    }
  });
  const end = Date.now() + WHILE_FULL_MS;
  const failed: unknown[] = [];
  let told = 0;
  while (Date.now() < end) {
    for (const [asker, peer] of [
      [alice, bob.id],
      [bob, alice.id],
    ] as const) {
      await know(asker, peer).then(
        () => {
          told += 1;
        },
        (thrown: unknown) => failed.push(thrown),
      );
      await sleep(20);
    }
    expect(await state()).toBe('serving');
  }
  running = false;
  await Promise.all(greedy);
  console.log(`full: ${told} answers about known keys, ${refused} refusals`);
  expect(failed).toEqual([]);
  expect(told).toBeGreaterThan(10);
  expect(refused).toBeGreaterThan(10);
  expect(server.log).not.toContain('the lease is lost');

  free();
  const late = await member('late');
  await know(late, alice.id);
  expect(server.pid).toBe(pid);
  await expectAll();
}, 240_000);

it.each([
  // Somebody else's writes come to where the log needs another file, and need no room but there.
  [
    "PostgreSQL's own log",
    false,
    `SELECT pg_logical_emit_message(true, 'more', repeat('x', 100000))`,
  ],
  ['a checkpoint of PostgreSQL', true, 'CHECKPOINT'],
])(
  'for %s: it stands by while there is no database, and serves again with all that it acknowledged',
  async (_what, logElsewhere, end) => {
    const [alice, bob] = await start(logElsewhere);
    const free = fillDisk(disk);
    await enrolUntilRefused('n');
    await until(
      async () => {
        await postgres.query('postgres', end).catch(() => undefined);
        return !(await answers());
      },
      'PostgreSQL to end',
      PATIENCE_MS,
    );
    await until(async () => (await state()) === 'standby', 'the server to stand by', PATIENCE_MS);
    expect(server.log).toContain('the lease is lost');
    free();
    // What systemd does, where PostgreSQL did not come back by itself.
    await postgres.halt('immediate');
    await postgres.run();
    await until(
      async () => (await state()) === 'serving',
      'the server to serve again',
      PATIENCE_MS,
    );
    const before = { ...last };
    await until(
      () =>
        know(alice, bob.id).then(
          () => true,
          () => false,
        ),
      'a key that was known',
      PATIENCE_MS,
    );
    expect(last).toEqual(before);
    const late = await member('late');
    await know(late, alice.id);
    await expectAll();
  },
  240_000,
);

async function answers(): Promise<boolean> {
  return postgres.query('postgres', 'SELECT 1').then(
    () => true,
    () => false,
  );
}
