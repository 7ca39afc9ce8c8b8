/**
 * Identities confirmed by the KMS, on a real subnet: a gateway that has never seen its peers hears those whom the KMS confirms, and
 * no other; a row in the key server's database that somebody has written to stops its own member alone, with an alarm; and without
 * a KMS those who know each other go on.
 */
import { readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'libsql';
import { expect, test } from 'vitest';
import { pidsIn } from '../../scripts/laboratory/network.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { ping } from './helpers/hosts.js';
import { inner4, MEMBERS, type Member, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

const handle = useLab(threeHosts(), { restarts: true });

const reaches = async (from: Member, to: Member): Promise<boolean> =>
  (await ping(handle.lab, from, inner4(to), { waitMs: 500 })).received === 1;
const answers = (from: Member, to: Member): Promise<unknown> =>
  waitFor(() => reaches(from, to), { what: `${to} to answer ${from}`, timeoutMs: 40_000 });

/** A gateway of that host that has never seen anybody. */
async function begin(host: Member): Promise<number> {
  const { lab } = handle;
  await lab.downGateway(host);
  rmSync(join(lab.gatewayDir(host), 'pins.json'));
  const since = performance.now();
  // Whoever is refused may be so before the state is looked at for the first time, and that is then no longer `up`.
  await lab.startGateway(host, { connected: false });
  return since;
}
async function stateOf(host: Member, peer: Member): Promise<string> {
  const port = await handle.lab.port(host);
  return port.peers.find(({ id }) => id === peer)?.state ?? 'unknown';
}
async function kmsPids(): Promise<number[]> {
  const pids = await pidsIn(handle.lab.namespace('server'));
  return pids.filter((pid) => /kms\/main\.js/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8')));
}

test('everybody confirms everybody, and has its own document with the KMS', async () => {
  for (const from of MEMBERS) {
    for (const to of MEMBERS) if (from !== to) await answers(from, to);
  }
  for (const host of MEMBERS) {
    await waitFor(async () => (await handle.lab.status(host)).identities.own === 'kept', {
      what: `the document of ${host}`,
    });
    const { identities, problems } = await handle.lab.status(host);
    expect(identities).toEqual({
      ...{ mode: 'verify', own: 'kept', waiting: 0, pinned: 0, refused: 0, unnamed: [] },
      problem: null,
    });
    expect(problems).toEqual([]);
  }
});

test('without the KMS those who know each other go on, and nobody new is heard', async () => {
  const { lab } = handle;
  const folder = join(lab.serverDir(SUBNET), 'kms');
  const hide = (from: string, to: string) => renameSync(join(folder, from), join(folder, to));
  // So that it can't come back.
  hide('root-1.key', 'away');
  for (const pid of await kmsPids()) process.kill(pid, 'SIGKILL');
  await lab.stopGateway('bob');
  await lab.startGateway('bob');
  await answers('bob', 'alice');
  expect((await ping(lab, 'alice', inner4('bob'), { count: 20, intervalMs: 50 })).received).toBe(
    20,
  );
  await begin('carol');
  await waitFor(async () => (await lab.status('carol')).identities.problem !== null, {
    what: 'carol to say that the KMS is away',
    timeoutMs: 60_000,
  });
  const { identities, problems } = await lab.status('carol');
  expect(identities.waiting).toBe(2);
  expect(problems.map(({ code }) => code)).toContain('IDENTITY_UNCONFIRMED');
  expect(await stateOf('carol', 'alice')).toBe('unconfirmed');
  expect(await reaches('carol', 'alice')).toBe(false);
  expect(await reaches('alice', 'carol')).toBe(false);
  expect(await reaches('alice', 'bob')).toBe(true);
  hide('away', 'root-1.key');
  await waitFor(async () => (await stateOf('carol', 'alice')) === 'ready', {
    what: 'the KMS to be back',
    timeoutMs: 90_000,
  });
  await answers('carol', 'alice');
  // Bob is asked about by himself, and may be confirmed after alice.
  await answers('carol', 'bob');
  await waitFor(async () => (await lab.status('carol')).problems.length === 0, {
    what: 'carol to have nothing to complain about',
  });
});

test('a row that somebody has written stops its member alone, and the gateway says so', async () => {
  const { lab } = handle;
  await lab.stopKeyServer(SUBNET);
  // Its control plane would have its document sealed anew some time after the server is back, and so mend the row.
  await lab.stopGateway('bob');
  const database = new Database(join(lab.serverDir(SUBNET), 'keyserver.db'));
  database.exec(
    "UPDATE identities SET document = (SELECT document FROM identities WHERE member = 'carol') WHERE member = 'bob'",
  );
  database.close();
  await lab.startKeyServer(SUBNET);
  const since = await begin('alice');
  await answers('alice', 'carol');
  const ms = Math.round(performance.now() - since);
  console.log(`a gateway that has seen nobody reaches a peer ${ms} ms after its start`);
  await waitFor(async () => (await stateOf('alice', 'bob')) === 'refused', { what: 'an alarm' });
  expect(await reaches('alice', 'bob')).toBe(false);
  expect(await reaches('bob', 'alice')).toBe(false);
  expect(await reaches('bob', 'carol')).toBe(true);
  const { problems, refusals } = await lab.status('alice');
  expect(problems).toEqual([
    { code: 'IDENTITY_REFUSED', message: expect.stringContaining('bob') as string },
  ]);
  expect(refusals.IDENTITY_REFUSED).toBeGreaterThan(0);
  const audit = readFileSync(join(lab.serverDir(SUBNET), 'kms/audit.log'), 'utf8');
  expect(audit).toContain('bob broken');
});
