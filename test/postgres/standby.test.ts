/** Two key servers on one PostgreSQL, one of which can't open the DEKs: it says so while it stands by, and takes no lease. */
import { type ChildProcess, spawn } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { initSubnet } from '../../keyserver/init.js';
import { keyServerProgram } from '../programs/key-server.js';
import { freePort } from '../unit/keyserver/support/server-process.js';
import { emptyDatabase, removeDatabase } from '../unit/keyserver/support/store.js';
import { sleep, until } from '../unit/keyserver/support/subnet.js';
import { SUBNET } from '../unit/keyserver/support/subnet-folder.js';

const PATIENCE_MS = 60_000;

let root: string;
let database: string;
let ports: readonly number[];
const running: ChildProcess[] = [];

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'pairwire-standby-'));
  database = await emptyDatabase();
  ports = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  await initSubnet({
    ...{ subnet: SUBNET, dir: join(root, 'a'), database, advertise: [], settings: {} },
    ...{ listen: `127.0.0.1:${ports[0]}`, metrics: `127.0.0.1:${ports[1]}` },
  });
  cpSync(join(root, 'a'), join(root, 'b'), { recursive: true });
  const file = join(root, 'b', 'keyserver.yaml');
  const text = readFileSync(file, 'utf8');
  writeFileSync(
    file,
    text.replaceAll(`:${ports[0]}`, `:${ports[2]}`).replaceAll(`:${ports[1]}`, `:${ports[3]}`),
  );
});
afterAll(async () => {
  for (const child of running) child.kill('SIGKILL');
  await removeDatabase(database);
  rmSync(root, { recursive: true, force: true });
});

it('that can not open them is locked, leaves the lease to others, and takes it once it can', async () => {
  const key = join(root, 'b', 'kms', 'root-1.key');
  renameSync(key, `${key}.away`);
  const first = start('a');
  await until(async () => (await health(1)) === 'serving', 'the first to serve', PATIENCE_MS);
  const second = start('b');
  await until(async () => (await health(3)) === 'locked', 'the second to say so', PATIENCE_MS);
  expect(await metric(3, 'pairwire_keyserver_deks_open')).toBe('0');
  expect(await metric(1, 'pairwire_keyserver_deks_open')).toBe('1');
  expect(second.log()).toContain('the KMS does not open the DEKs');

  first.child.kill('SIGKILL');
  // The lease runs out in a second.
  await sleep(2_500);
  expect(await health(3)).toBe('locked');
  renameSync(`${key}.away`, key);
  await until(async () => (await health(3)) === 'serving', 'the second to serve', PATIENCE_MS);
  expect(await metric(3, 'pairwire_keyserver_deks_open')).toBe('1');
});

function start(name: string): { readonly child: ChildProcess; log(): string } {
  const argv = keyServerProgram('keyserver', '--dir', join(root, name));
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
  running.push(child);
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  return { child, log: () => log };
}

async function health(at: number): Promise<string | undefined> {
  try {
    const answer = await fetch(`http://127.0.0.1:${ports[at]}/healthz`);
    return (await answer.text()).trim();
  } catch {
    return undefined;
  }
}

async function metric(at: number, name: string): Promise<string | undefined> {
  const text = await (await fetch(`http://127.0.0.1:${ports[at]}/metrics`)).text();
  return new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1];
}
