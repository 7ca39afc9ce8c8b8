/** Two key servers on one PostgreSQL whose audit log somebody cuts: who takes over knows what the other one was told, and that it was settled. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { initSubnet } from '../../keyserver/init.js';
import { parseId } from '../../src/protocol/ids.js';
import { pairwire } from '../unit/keyserver/support/commands.js';
import { freePort, ServerProcess } from '../unit/keyserver/support/server-process.js';
import { emptyDatabase, meddle, removeDatabase } from '../unit/keyserver/support/store.js';
import { TestMember, until } from '../unit/keyserver/support/subnet.js';
import { SUBNET } from '../unit/keyserver/support/subnet-folder.js';
import { Watcher } from '../unit/keyserver/support/watcher.js';

const PATIENCE_MS = 60_000;

let root: string;
let database: string;
let metricsPort: number;
let a: ServerProcess;
let b: ServerProcess;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'pairwire-takeover-'));
  database = await emptyDatabase();
  const [port, other] = [await freePort(), await freePort()];
  metricsPort = await freePort();
  const [here, there] = [join(root, 'a'), join(root, 'b')];
  await initSubnet({
    ...{ subnet: SUBNET, dir: here, database, advertise: [], settings: {} },
    ...{ listen: `127.0.0.1:${port}`, metrics: `127.0.0.1:${metricsPort}` },
  });
  cpSync(here, there, { recursive: true });
  const file = join(there, 'keyserver.yaml');
  writeFileSync(file, readFileSync(file, 'utf8').replaceAll(`:${port}`, `:${other}`));
  // One after the other: they may have one port for metrics.
  [a, b] = [ServerProcess.at(here, port), ServerProcess.at(there, other)];
});
afterAll(async () => {
  for (const one of [a, b]) {
    one.stopClients();
    await one.kill();
  }
  await removeDatabase(database);
  rmSync(root, { recursive: true, force: true });
});

async function health(): Promise<string[]> {
  const answer = await fetch(`http://127.0.0.1:${metricsPort}/healthz`);
  return (await answer.text()).trimEnd().split('\n');
}

it('is told by one, and known to the other', async () => {
  await a.start();
  const alice = new TestMember(a, 'alice');
  await alice.enrol(a.token({ id: 'alice' }));
  await alice.register();
  for (const id of ['bob', 'carol']) await new TestMember(a, id).enrol(a.token({ id }));
  const watcher = new Watcher(alice, parseId('s1'));
  await a.kill();
  await a.start();
  await watcher.come();
  const had = watcher.heads.head?.seq ?? 0;
  expect(had).toBeGreaterThan(3);
  await a.kill();
  await meddle(database, `DELETE FROM audit WHERE seq > ${had - 2}`);
  rmSync(a.paths.auditHead);
  await a.start();
  await watcher.come();
  await until(async () => (await health()).length > 1, 'the alarm', PATIENCE_MS);
  expect(await health()).toEqual(['serving', 'audit_contradicted 1']);
  // Told and written down; killed before anything else.
  await until(
    async () =>
      (await pairwire(['audit', '--dir', a.dir, '--json'])).out.includes('audit_contradicted'),
    'the entry',
    PATIENCE_MS,
  );
  await a.kill();

  // Nobody has come to this one yet.
  await b.start();
  await until(async () => (await health())[0] === 'serving', 'the other one', PATIENCE_MS);
  expect(await health()).toEqual(['serving', 'audit_contradicted 1']);
  expect((await pairwire(['audit', 'verify', '--dir', b.dir])).err).toContain('alice');
  const confirmed = await pairwire(['restore', 'confirm', '--dir', b.dir]);
  expect(confirmed).toMatchObject({ code: 0 });
  expect(await health()).toEqual(['serving']);
  await b.kill();

  // The first one, whose file still has it, has it settled by now; and what alice knows is from before.
  await a.start();
  await until(async () => (await health())[0] === 'serving', 'the first one', PATIENCE_MS);
  expect(await health()).toEqual(['serving']);
  await watcher.come();
  expect(watcher.heads.alarm).toBeUndefined();
  expect(await health()).toEqual(['serving']);
  expect(await pairwire(['audit', 'verify', '--dir', a.dir])).toMatchObject({ code: 0 });
}, 280_000);
