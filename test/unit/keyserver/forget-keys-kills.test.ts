/** `kms forget-keys` killed with -9 before each of its steps: run again, it ends as if nothing had happened; and a server that starts instead serves. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { type KeyServerPaths, loadKeyServerConfig, pathsOf } from '../../../keyserver/config.js';
import { forgetKeys } from '../../../keyserver/forget-keys.js';
import { kmsPaths } from '../../../keyserver/kms/config.js';
import { openDatabase } from '../../../keyserver/storage/open.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { GROUP_ID, type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { keyServerProgram } from '../../programs/key-server.js';
import { ServerProcess } from './support/server-process.js';
import { copyOf, ON_POSTGRES, openKeys, openToServe, ringOf } from './support/store.js';
import { SUBNET, TestMember } from './support/subnet.js';

const IDS = ['alice', 'bob', 'carol'].map(parseId);
const PAIRS = IDS.flatMap((a, at) => IDS.slice(at + 1).map((b) => [a, b] as const));
/** More steps than it has. */
const MOST = 200;
/** At a time: on PostgreSQL most of it is waiting for the lease of the one that was killed. */
const WORKERS = 3;
const KILL_AT = fileURLToPath(new URL('support/kill-at.mjs', import.meta.url));

interface Generation {
  readonly pwId: number;
  readonly key: Buffer;
}

let server: ServerProcess;
let root: string;
/** Before the root keys were lost. */
const before = new Map<string, Generation>();
const members = new Map<Id, TestMember>();
let copies = 0;
/** The first step before which its new DEK was in the database. */
let begunAt: number | undefined;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'pairwire-forget-'));
  server = await ServerProcess.make();
  await server.start();
  for (const id of IDS) {
    const member = new TestMember(server, id);
    await member.enrol(server.token({ id }));
    await member.register();
    members.set(id, member);
  }
  for (const [a, b] of PAIRS) await members.get(a)?.keyByMac(defaultMac(SUBNET, b));
  await members.get(IDS[0] as Id)?.keyByMac('ff:ff:ff:ff:ff:ff');
  await server.kill();
  server.stopClients();
  const store = await openKeys(server.paths);
  for (const [a, b] of PAIRS) before.set(`${a} ${b}`, (await store.pairKey(a, b)) as Generation);
  before.set('group', (await store.groupKey(GROUP_ID)) as Generation);
  await store.close();
  rmSync(join(server.paths.kms, 'root-1.key'));
}, 120_000);
afterAll(async () => {
  await server.remove();
  rmSync(root, { recursive: true, force: true });
});

/** Another folder and database like that. */
async function another(): Promise<{ readonly dir: string; readonly paths: KeyServerPaths }> {
  copies += 1;
  const number = copies;
  const dir = join(root, String(number));
  cpSync(server.dir, dir, { recursive: true });
  if (ON_POSTGRES) {
    const file = join(dir, 'keyserver.yaml');
    const { database } = server.paths;
    const copy = await copyOf(database, `f${process.pid}_${number}`);
    writeFileSync(file, readFileSync(file, 'utf8').replace(database, copy));
  }
  return { dir, paths: pathsOf(dir, loadKeyServerConfig(dir)) };
}

/** @returns its exit code; undefined if it was killed before that step */
async function forgetUntil(dir: string, step: number): Promise<number | undefined> {
  const argv = keyServerProgram('kms', 'forget-keys', '--yes', '--dir', dir);
  const child = spawn(process.execPath, ['--import', KILL_AT, ...argv], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, PAIRWIRE_TEST_KILL_AT: String(step) },
  });
  await once(child, 'exit');
  return child.signalCode === 'SIGKILL' ? undefined : (child.exitCode ?? -1);
}

async function isBegun({ database }: KeyServerPaths): Promise<boolean> {
  const driver = await openDatabase({ database });
  const rows = await driver.reader.all("SELECT name FROM meta WHERE name = 'forgetting'", []);
  await driver.close();
  return rows.length > 0;
}

/** Every key is another one, one generation further, and all else is as it was. */
async function expectRenewed(paths: KeyServerPaths): Promise<void> {
  const driver = await openToServe(paths);
  const store = await openStore(driver, { onlyWriter: true, ring: await ringOf(driver, paths) });
  try {
    for (const [name, was] of before) {
      const [a = '', b = ''] = name.split(' ');
      const now =
        name === 'group'
          ? await store.groupKey(GROUP_ID)
          : await store.pairKey(parseId(a), parseId(b));
      expect(now?.pwId, name).toBe(was.pwId + 1);
      expect(now?.key.equals(was.key), name).toBe(false);
    }
    expect(await store.rows?.check()).toEqual([]);
    for (const id of IDS) expect((await store.member(id))?.state).toBe('active');
    const checked = await verifyAudit(store, store.meta.server, server.auditKey);
    expect(checked.broken).toBeUndefined();
  } finally {
    await store.close();
  }
  // Settings name the KMS by its channel key, and it knows who members are.
  const [kms, lost] = [kmsPaths(paths.kms), kmsPaths(server.paths.kms)];
  for (const file of ['key', 'auditKey', 'identities'] as const) {
    expect(readFileSync(kms[file]), file).toEqual(readFileSync(lost[file]));
  }
}

it('killed before any of its steps, and run again', async () => {
  let next = 1;
  let last = MOST;
  const work = async (): Promise<void> => {
    while (next < last) {
      const step = next;
      next += 1;
      const { dir, paths } = await another();
      const code = await forgetUntil(dir, step);
      if (code === undefined) {
        if (step < (begunAt ?? MOST) && (await isBegun(paths))) begunAt = step;
        await forgetKeys(dir);
      } else {
        // It has come to its end before that step.
        expect(code).toBe(0);
        last = Math.min(last, step);
      }
      await expectRenewed(paths).catch((thrown: unknown) => {
        throw new Error(`killed before step ${step}`, { cause: thrown });
      });
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, work));
  console.log(`killed before each of ${last - 1} steps`);
  // Folders, files, and several transactions.
  expect(last).toBeGreaterThan(15);
}, 600_000);

it('killed once its new DEK is in the database: a server that starts instead gives everybody keys', async () => {
  let { dir, paths } = await another();
  // On PostgreSQL renewals of the lease are among the steps, so it may be one or two more.
  let step = begunAt ?? 1;
  for (; step < MOST; step += 1) {
    expect(await forgetUntil(dir, step)).toBeUndefined();
    if (await isBegun(paths)) break;
    ({ dir, paths } = await another());
  }
  const instead = ServerProcess.at(dir, server.port);
  try {
    await instead.start();
    for (const id of IDS) {
      const member = members.get(id);
      if (member === undefined) throw new Error(`no ${id}`);
      member.connect();
      await member.register();
    }
    for (const [a, b] of PAIRS) {
      const one = await members.get(a)?.keyByMac(defaultMac(SUBNET, b));
      const other = await members.get(b)?.keyByMac(defaultMac(SUBNET, a));
      expect(one?.pwId).toBe((before.get(`${a} ${b}`)?.pwId ?? 0) + 1);
      expect(other?.key).toEqual(one?.key);
    }
    const group = await members.get(IDS[0] as Id)?.keyByMac('ff:ff:ff:ff:ff:ff');
    expect(group?.pwId).toBe((before.get('group')?.pwId ?? 0) + 1);
  } finally {
    server.stopClients();
    await instead.kill();
  }
  // Nothing is left for the command.
  await expect(forgetKeys(dir)).rejects.toMatchObject({ code: 'CONFLICT' });
  await expectRenewed(paths);
}, 600_000);
