/** The root keys are lost for good: by the command everybody gets new keys, and nothing else is forgotten. */
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { verifyAudit } from '../../../keyserver/audit.js';
import { openDatabase } from '../../../keyserver/storage/open.js';
import { GROUP_ID, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { openKeys } from './support/store.js';
import { SUBNET, TestMember } from './support/subnet.js';

const GROUP_MAC = 'ff:ff:ff:ff:ff:ff';
const mac = (id: string): string => defaultMac(SUBNET, parseId(id));

let server: ServerProcess;
beforeAll(async () => {
  server = await ServerProcess.make();
});
afterAll(() => server.remove());

const forget = (...more: string[]) =>
  pairwire(['kms', 'forget-keys', '--dir', server.dir, '--json', ...more]);

it('members work on, with generations above those that they hold', async () => {
  await server.start();
  const members = [];
  for (const id of ['alice', 'bob', 'carol', 'mallory']) {
    const member = new TestMember(server, id);
    await member.enrol(server.token({ id }));
    await member.register();
    members.push(member);
  }
  const [alice, bob] = members as [TestMember, TestMember];
  await server
    .admin()
    .request({ t: 'rekey', a: 'alice', b: 'bob', force: true })
    .catch(() => {});
  const before = await alice.keyByMac(mac('bob'));
  await alice.keyByMac(mac('carol'));
  const group = await alice.keyByMac(GROUP_MAC);
  await server.admin().request({ t: 'revoke', member: 'mallory' });
  const renewed = await alice.keyByMac(GROUP_MAC);
  expect(renewed.pwId).toBeGreaterThan(group.pwId);
  await alice.syncAll();
  await server.kill();

  // While nothing is lost, nothing is dropped; nor without a word that it is meant.
  const refused = await forget('--yes');
  expect(refused).toMatchObject({ code: 1, out: '' });
  expect(refused.err).toContain('nothing is lost');
  // Nor because a file of the KMS can't be read as it is.
  chmodSync(join(server.paths.kms, 'root-1.key'), 0o640);
  expect((await forget('--yes')).err).toContain('mode 0640');
  expect(readdirSync(server.dir).some((name) => name.startsWith('kms.forgotten-'))).toBe(false);
  rmSync(join(server.paths.kms, 'root-1.key'));
  const kept = new Map(
    ['kms.key', 'identities.log'].map((name) => [name, readFileSync(join(server.paths.kms, name))]),
  );
  expect((await forget()).err).toContain('--yes');
  const { code, out, err } = await forget('--yes');
  expect({ code, err }).toMatchObject({ code: 0 });
  expect(JSON.parse(out)).toMatchObject({ pairs: 2, nets: 0, group: renewed.pwId + 1 });
  // Settings name the KMS by its channel key, so that is the same one, and it knows who members are.
  for (const name of ['kms.key', 'identities.log']) {
    expect(readFileSync(join(server.paths.kms, name)), name).toEqual(kept.get(name));
  }
  // What is left of the old KMS is kept.
  expect(readdirSync(server.dir).filter((name) => name.startsWith('kms.forgotten-'))).toHaveLength(
    1,
  );
  expect(existsSync(join(server.paths.kms, 'root-1.key'))).toBe(true);

  await server.start();
  for (const member of [alice, bob]) {
    member.client.stop();
    member.connect();
    await member.register();
  }
  const { changes } = await alice.syncAll();
  const told = changes.flatMap((one) => (one.kind === 'pair' ? [one] : []));
  expect(told.find(({ peer }) => peer === 'bob')).toMatchObject({ pwId: before.pwId + 1 });
  const [mine, theirs] = [await alice.keyByMac(mac('bob')), await bob.keyByMac(mac('alice'))];
  expect(mine.pwId).toBe(before.pwId + 1);
  expect(theirs).toMatchObject({ pwId: mine.pwId, key: mine.key });
  expect(mine.key).not.toEqual(before.key);
  const newGroup = await bob.keyByMac(GROUP_MAC);
  expect(newGroup.pwId).toBe(renewed.pwId + 1);
  expect(newGroup.key).not.toEqual(renewed.key);
  expect(await server.admin().request({ t: 'kms.status' })).toMatchObject({ broken: 0, deks: 1 });
  await server.kill();
  server.stopClients();

  const store = await openKeys(server.paths);
  try {
    expect((await store.member(parseId('mallory')))?.state).toBe('revoked');
    expect((await store.groupKey(GROUP_ID))?.reason).toBe('forgotten');
    expect((await verifyAudit(store, store.meta.server, server.auditKey)).broken).toBeUndefined();
  } finally {
    await store.close();
  }
  const driver = await openDatabase(server.paths);
  const [entry] = await driver.reader.all(
    "SELECT action FROM audit WHERE action LIKE 'keys_%'",
    [],
  );
  await driver.close();
  expect(entry?.action).toBe('keys_forgotten');
  // For a machine that is busy: two starts of a server and three commands.
}, 240_000);
