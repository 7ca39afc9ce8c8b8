/**
 * Identities confirmed across the key servers of a cascade (config/lab/cascade.yaml has the picture): a gateway that has never seen
 * anybody hears members of another server when that one's KMS confirms them; one whose document its home server has swapped is stopped
 * alone; and while a home is away nobody new of it is heard, and who is known goes on.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import Database from 'libsql';
import { afterEach, expect, test } from 'vitest';
import { kmsPublicKey } from '../../keyserver/kms/folder.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { readTopology } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';
import { useLab } from './helpers/use-lab.js';

const ADDRESS = {
  ...{ alice: '198.51.100.11', bob: '198.51.100.12' },
  ...{ carol: '198.51.100.13', dave: '198.51.100.14' },
} as const;
type Host = keyof typeof ADDRESS;
const HOSTS = Object.keys(ADDRESS) as Host[];

const topology = readTopology(new URL('../../config/lab/cascade.yaml', import.meta.url).pathname);
const handle = useLab(topology, { upMs: 180_000, restarts: true });

const reaches = async (from: Host, to: Host): Promise<boolean> =>
  (await ping(handle.lab, from, ADDRESS[to], { waitMs: 500 })).received === 1;
const answers = (from: Host, to: Host): Promise<unknown> =>
  waitFor(() => reaches(from, to), { what: `${to} to answer ${from}`, timeoutMs: 40_000 });

/** A gateway of that host that has never seen anybody. @param connected false: it may have a problem to tell of */
async function begin(host: Host, connected = true): Promise<number> {
  const { lab } = handle;
  await lab.downGateway(host);
  rmSync(join(lab.gatewayDir(host), 'pins.json'));
  const since = performance.now();
  await lab.startGateway(host, { connected });
  return since;
}
async function stateOf(host: Host, peer: Host): Promise<string> {
  const port = await handle.lab.port(host);
  return port.peers.find(({ id }) => id === peer)?.state ?? 'unknown';
}
const kmsLog = (name: string): string =>
  readFileSync(join(handle.lab.serverDir(name), 'kms/audit.log'), 'utf8');

afterEach(async ({ task }) => {
  if (task.result?.state !== 'fail') return;
  for (const host of HOSTS) {
    const identities = await handle.lab.status(host).then(
      (status) => status.identities,
      (thrown: unknown) => thrown,
    );
    console.log(host, identities);
  }
});

test('with all KMSes named by the operator everybody confirms everybody, whoever was pinned before', async () => {
  const { lab } = handle;
  for (const [from, to] of [
    ['alice', 'bob'],
    ['carol', 'dave'],
  ] as const) {
    await answers(from, to);
  }
  // Only the first server's KMS is named when a subnet is made.
  expect((await lab.status('alice')).identities.unnamed).toEqual(['s2', 's3']);
  const named = (['s2', 's3'] as const).map((server) => {
    const key = kmsPublicKey(join(lab.serverDir(`lan-${server}`), 'kms'));
    return `${server}=${key.toString('base64url')}`;
  });
  await lab.pairwire('s1', ['settings', '--dir', lab.serverDir('lan'), '--kms', ...named]);
  for (const host of HOSTS) {
    await waitFor(
      async () => {
        const { identities } = await lab.status(host);
        const { mode, own, pinned, waiting, refused, unnamed } = identities;
        const open = pinned + waiting + refused + unnamed.length;
        return mode === 'verify' && own === 'kept' && open === 0;
      },
      { what: `${host} to have all confirmed`, timeoutMs: 60_000 },
    );
    expect((await lab.status(host)).problems).toEqual([]);
  }
}, 120_000);

test('a member of one and a member of another server meet for the first time, and talk', async () => {
  for (const [host, peer, through] of [
    ['alice', 'bob', 's2/s1/alice'],
    ['bob', 'alice', 's1/s2/bob'],
    ['carol', 'dave', 's2/s3/carol'],
  ] as const) {
    const since = await begin(host);
    await answers(host, peer);
    const ms = Math.round(performance.now() - since);
    console.log(`${host}, who has seen nobody, reaches ${peer} ${ms} ms after its start`);
    expect(await stateOf(host, peer)).toBe('ready');
    expect(kmsLog(peer === 'alice' ? 'lan' : 'lan-s2')).toContain(through);
    for (const other of HOSTS) if (other !== host) await answers(host, other);
    expect((await handle.lab.status(host)).problems).toEqual([]);
  }
}, 180_000);

test('a home server that is killed before first contact keeps its members waiting, and disturbs nobody', async () => {
  const { lab } = handle;
  await lab.stopKeyServer('lan-s2', 'SIGKILL');
  await begin('alice', false);
  await waitFor(async () => (await lab.status('alice')).identities.problem !== null, {
    what: 'alice to say that s2 is away',
    timeoutMs: 60_000,
  });
  await answers('alice', 'carol');
  const { identities, problems } = await lab.status('alice');
  expect(identities).toMatchObject({ waiting: 2, pinned: 0, refused: 0 });
  expect(problems).toEqual([
    { code: 'IDENTITY_UNCONFIRMED', message: expect.stringContaining('at home at s2') as string },
  ]);
  for (const peer of ['bob', 'dave'] as const) {
    expect(await stateOf('alice', peer)).toBe('unconfirmed');
    expect(await reaches('alice', peer)).toBe(false);
    expect(await reaches(peer, 'alice')).toBe(false);
  }
  // Who has met before goes on, also with members of the server that is away.
  for (const [from, to] of [
    ['carol', 'bob'],
    ['bob', 'carol'],
    ['bob', 'dave'],
  ] as const) {
    expect((await ping(lab, from, ADDRESS[to], { count: 20, intervalMs: 50 })).received).toBe(20);
  }
  await lab.startKeyServer('lan-s2');
  for (const peer of ['bob', 'dave'] as const) await answers('alice', peer);
  await waitFor(async () => (await lab.status('alice')).problems.length === 0, {
    what: 'alice to be content',
    timeoutMs: 60_000,
  });
}, 240_000);

test('a home server that swaps the document of its member stops it at members of the others, alone', async () => {
  const { lab } = handle;
  await lab.stopKeyServer('lan-s2');
  // Its control plane would have its document sealed anew, and so mend it.
  await lab.stopGateway('bob');
  const database = new Database(join(lab.serverDir('lan-s2'), 'keyserver.db'));
  database.exec(
    "UPDATE identities SET document = (SELECT document FROM identities WHERE member = 'dave') WHERE member = 'bob'",
  );
  database.close();
  await lab.startKeyServer('lan-s2');
  await begin('alice', false);
  await answers('alice', 'dave');
  await answers('alice', 'carol');
  await waitFor(async () => (await stateOf('alice', 'bob')) === 'refused', {
    what: 'an alarm',
    timeoutMs: 30_000,
  });
  expect(await reaches('alice', 'bob')).toBe(false);
  expect(await reaches('bob', 'alice')).toBe(false);
  expect(await reaches('bob', 'carol')).toBe(true);
  const { problems, refusals } = await lab.status('alice');
  expect(problems).toEqual([
    { code: 'IDENTITY_REFUSED', message: expect.stringContaining('bob') as string },
  ]);
  expect(refusals.IDENTITY_REFUSED).toBeGreaterThan(0);
  expect(kmsLog('lan-s2')).toContain('bob broken');
}, 240_000);
