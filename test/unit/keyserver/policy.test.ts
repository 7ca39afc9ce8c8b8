/** Policy at the key server: who is kept apart gets no key, sees nobody, and has no key left; from the next second on. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LABEL } from '../../../src/protocol/constants.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { answerSchemas, type Change } from '../../../src/protocol/messages.js';
import { type Policy, policySchema } from '../../../src/protocol/policy.js';
import { importPublic } from '../../../src/protocol/public-keys.js';
import { verifySettings } from '../../../src/protocol/records.js';
import { signRecord } from '../../../src/protocol/signed.js';
import { SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

const mac = (id: string) => defaultMac(SUBNET, id);

describe('a policy at the key server', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;
  let guest: TestMember;
  let guestIndex: number;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.member('alice');
    bob = await subnet.member('bob');
    guest = await subnet.enrolled('guest-1', { tags: ['guest'] });
    guestIndex = (await guest.register()).index;
    for (const member of [alice, bob, guest]) await member.syncAll();
  });
  afterEach(() => subnet.close());

  /** Installs a policy, as the operator does. */
  async function install(policy: Policy | undefined): Promise<void> {
    const stored = await subnet.store.settings();
    if (stored === undefined) throw new Error('there are no settings');
    const operator = importPublic('ed25519', subnet.store.meta.operator);
    const { policy: _before, ...rest } = verifySettings(SUBNET, stored.record, operator, 0);
    const next = {
      ...rest,
      version: rest.version + 1,
      ...(policy === undefined ? {} : { policy }),
    };
    const settings = signRecord(LABEL.settings, next, subnet.operator);
    await subnet
      .admin()
      .request(
        { t: 'settings.set', settings },
        { parse: (value) => answerSchemas['settings.set'].parse(value) },
      );
  }
  const noGuests = policySchema.parse({
    groups: { guests: { tags: ['guest'] }, office: { members: ['alice'] } },
    rules: [{ deny: ['guests', 'office'] }],
  });
  const members = async (of: TestMember): Promise<string[]> =>
    (await of.syncAll()).changes
      .flatMap((change) => (change.kind === 'member' ? [change.member.id] : []))
      .sort();
  const pairs = async (of: TestMember): Promise<string[]> =>
    (await of.syncAll()).changes
      .flatMap((change) => (change.kind === 'pair' ? [change.peer] : []))
      .sort();
  const kinds = (of: TestMember, kind: Change['kind']) =>
    of.pushed().filter((one) => one.kind === kind);

  it('gives no key to a pair that it denies, whichever end asks and how, and the others theirs', async () => {
    await install(noGuests);
    await expect(alice.keyByMac(mac('guest-1'))).rejects.toThrow('not_found');
    await expect(guest.keyByMac(mac('alice'))).rejects.toThrow('not_found');
    await expect(alice.keyByIndex(guestIndex)).rejects.toThrow('not_found');
    await expect(alice.keyByIndex(guestIndex, true)).rejects.toThrow('not_found');
    expect(await subnet.store.pairKey(alice.id, guest.id)).toBeUndefined();
    expect(await bob.keyByMac(mac('guest-1'))).toMatchObject({ kind: 'pair' });
    expect(await alice.keyByMac(mac('bob'))).toMatchObject({ kind: 'pair' });
  });

  it('is not more open for a member that is asked about in another way: neither sees the other', async () => {
    expect(await members(alice)).toEqual(['bob', 'guest-1']);
    await install(noGuests);
    expect(await members(alice)).toEqual(['bob']);
    expect(await members(guest)).toEqual(['bob']);
    expect(await members(bob)).toEqual(['alice', 'guest-1']);
  });

  it('takes the key that a pair has, so that nothing renews it, and tells everybody of the settings at once', async () => {
    await alice.keyByMac(mac('guest-1'));
    await alice.keyByMac(mac('bob'));
    expect(await pairs(alice)).toEqual(['bob', 'guest-1']);
    await install(noGuests);
    expect(await subnet.store.pairKey(alice.id, guest.id)).toBeUndefined();
    expect(await subnet.store.pairKey(alice.id, bob.id)).toBeDefined();
    expect(await pairs(alice)).toEqual(['bob']);
    await until(
      () => [alice, bob, guest].every((one) => kinds(one, 'settings').length > 0),
      'the settings',
    );
    await subnet
      .admin()
      .request({ t: 'rekey', all: true, force: true })
      .catch(() => undefined);
    expect(await pairs(guest)).toEqual([]);
  });

  it('pushes nobody to those whom it keeps from him', async () => {
    await install(noGuests);
    await until(() => kinds(alice, 'settings').length > 0, 'the settings');
    const known = new Map([alice, guest].map((one) => [one, one.pushed().length]));
    const about = (one: TestMember) =>
      one
        .pushed()
        .slice(known.get(one))
        .flatMap((change) => (change.kind === 'member' ? [change.member.id] : []));
    for (const one of [alice, guest, alice, bob]) {
      one.client.stop();
      one.connect();
      await one.registerAgain();
      await one.syncAll();
    }
    await until(() => about(alice).includes(bob.id) && about(guest).includes(bob.id), 'bob');
    expect(about(alice)).not.toContain('guest-1');
    expect(about(guest)).not.toContain('alice');
  });

  it('that is taken back lets them see each other again, with a key of its own', async () => {
    const { key: first } = await alice.keyByMac(mac('guest-1'));
    const { cursor } = await alice.syncAll();
    await install(noGuests);
    await install(undefined);
    // From where it stood: it need not start from nothing.
    const { changes } = await alice.syncAll(cursor, subnet.store.meta.epoch);
    const seen = changes.flatMap((one) => (one.kind === 'member' ? [one.member.id] : []));
    expect(seen).toContain('guest-1');
    const { key: second } = await alice.keyByMac(mac('guest-1'));
    expect(Buffer.compare(Buffer.from(first), Buffer.from(second))).not.toBe(0);
  });

  it('is not got round by a word about a generation that one says to hold', async () => {
    await alice.keyByMac(mac('guest-1'));
    await install(noGuests);
    // Such a word is believed of a database that was put back, once in a run.
    await guest.sync(1_000_000_000, subnet.store.meta.epoch, Buffer.alloc(8, 7));
    const held = { t: 'key.held' as const, pairs: [{ peer: alice.id, pwId: 5 }] };
    await guest.client.request(held).catch(() => undefined);
    expect(await subnet.store.pairKey(alice.id, guest.id)).toBeUndefined();
    expect(await pairs(guest)).toEqual([]);
  });

  it('holds after a start of the server', async () => {
    await install(noGuests);
    await subnet.stopServer();
    await subnet.startServer();
    alice.connect();
    await alice.registerAgain();
    await expect(alice.keyByMac(mac('guest-1'))).rejects.toThrow('not_found');
    expect((await subnet.store.member(parseId('guest-1')))?.state).toBe('active');
  });
});
