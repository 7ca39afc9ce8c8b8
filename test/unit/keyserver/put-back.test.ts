/** A database that was put back from a backup: it shows by what members say, and no number gets a second key in force. */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MAX_RUNS } from '../../../keyserver/keys/put-back.js';
import { MAX_HELD } from '../../../keyserver/keys/renewal.js';
import { GROUP_ID } from '../../../src/protocol/ids.js';
import { defaultMac, type MacAddress } from '../../../src/protocol/mac.js';
import * as store from './support/store.js';
import { SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

describe('a database that was put back', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;
  let carol: TestMember;

  /** Everything after this is forgotten by `putBack`. */
  async function backUp(): Promise<void> {
    await subnet.stopServer();
    await store.backUp(subnet.paths.database);
    await subnet.startServer();
  }

  async function putBack(): Promise<void> {
    await subnet.stopServer();
    await store.putBack(subnet.paths.database);
    await subnet.startServer();
  }

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.member('alice');
    bob = await subnet.member('bob');
    carol = await subnet.member('carol');
    await alice.keyByMac(defaultMac(SUBNET, 'bob'));
  });
  afterEach(() => subnet.close());

  function held(member: TestMember, pairs: { peer: string; pwId: number }[], group?: number) {
    return member.client.request({
      t: 'key.held',
      pairs,
      ...(group === undefined ? {} : { group }),
    });
  }

  const pairOf = (a: TestMember, b: TestMember) => subnet.store.pairKey(a.id, b.id);

  it('begins anew for everybody when a member has seen more than it knows; once', async () => {
    const old = await bob.sync();
    await backUp();
    await alice.registerAgain();
    await subnet.admin().request({ t: 'rekey', force: true });
    const seen = await alice.sync();
    await putBack();

    // By now it has made as many changes as it had before.
    await alice.registerAgain();
    for (let n = 0; n < 3; n += 1) await subnet.admin().request({ t: 'rekey', force: true });
    expect((await subnet.store.counters()).change).toBeGreaterThan(seen.cursor);
    const first = await alice.sync(seen.cursor, seen.epoch, seen.run);
    expect(Buffer.compare(first.epoch, seen.epoch)).not.toBe(0);
    expect(first.changes.map(({ kind }) => kind)).toContain('settings');
    // Bob is told everything, although he has seen nothing that is forgotten.
    await bob.registerAgain();
    const anew = await bob.sync(old.cursor, old.epoch, old.run);
    expect(anew.epoch).toEqual(first.epoch);
    expect(anew.changes.some(({ kind }) => kind === 'settings')).toBe(true);

    // Nobody makes all begin anew again and again.
    const liar = await carol.sync(Number.MAX_SAFE_INTEGER, first.epoch, Buffer.alloc(8, 7));
    expect(liar.epoch).toEqual(first.epoch);
    const entries = (await subnet.audit()).filter(({ action }) => action === 'put_back');
    expect(entries).toMatchObject([{ actor: 'alice', detail: { cursor: seen.cursor } }]);
    // It is the store's from now on.
    await subnet.stopServer();
    await subnet.startServer();
    expect(subnet.store.meta.epoch).toEqual(Buffer.from(first.epoch));
  });

  it('is not mistaken for one that was only started again', async () => {
    const seen = await alice.sync();
    for (let start = 0; start < 3; start += 1) {
      await subnet.stopServer();
      await subnet.startServer();
      await alice.registerAgain();
      await subnet.admin().request({ t: 'rekey', force: true });
    }
    const { epoch, changes } = await alice.sync(seen.cursor, seen.epoch, seen.run);
    expect(epoch).toEqual(seen.epoch);
    expect(changes.some(({ kind }) => kind === 'settings')).toBe(false);
    expect(changes.some((one) => one.kind === 'pair' && one.pwId === 4)).toBe(true);
  });

  it('is taken for one that was put back by who was away for more than 1,024 starts, and by nobody else', async () => {
    const runs = () => subnet.store.write((tx) => tx.runs());
    const seen = await alice.sync();
    const [mine] = (await runs()).slice(-1);
    if (mine === undefined) throw new Error('this start is not noted');
    await subnet.store.write(async (tx) => {
      const { change } = await tx.counters();
      const later = Array.from({ length: MAX_RUNS - 1 }, () => ({
        id: randomBytes(8),
        after: change,
      }));
      await tx.setRuns([mine, ...later]);
    });
    const start = async (): Promise<void> => {
      await subnet.stopServer();
      await subnet.startServer();
      await alice.registerAgain();
    };
    const putBacks = async () =>
      (await subnet.audit()).filter(({ action }) => action === 'put_back').length;
    await start();
    expect(await runs()).toHaveLength(MAX_RUNS);
    expect((await alice.sync(seen.cursor, seen.epoch, seen.run)).epoch).toEqual(seen.epoch);
    expect(await putBacks()).toBe(0);
    await start();
    expect(await runs()).toHaveLength(MAX_RUNS);
    const anew = await alice.sync(seen.cursor, seen.epoch, seen.run);
    expect(anew.epoch).not.toEqual(seen.epoch);
    expect(anew.changes.map(({ kind }) => kind)).toContain('settings');
    expect(await putBacks()).toBe(1);
  });

  it('does not take the address of a member that it has forgotten for one outside, until its operator confirms', async () => {
    await subnet.close();
    subnet = await TestSubnet.start({ settings: { unknown: 'plain' } });
    alice = await subnet.member('alice');
    await subnet.member('gate', { role: 'plain' });
    const outside = '0a:00:00:00:00:07' as MacAddress;
    expect((await alice.keyByMac(outside)).peer?.id).toBe('gate');
    await backUp();
    await alice.registerAgain();
    await subnet.member('dave');
    expect((await alice.keyByMac(defaultMac(SUBNET, 'dave'))).peer?.id).toBe('dave');
    const seen = await alice.sync();
    await putBack();

    await alice.registerAgain();
    await alice.sync(seen.cursor, seen.epoch, seen.run);
    for (const mac of [defaultMac(SUBNET, 'dave'), outside]) {
      await expect(alice.keyByMac(mac)).rejects.toThrow('not_yet');
    }
    // Also after the next start.
    await subnet.stopServer();
    await subnet.startServer();
    await alice.registerAgain();
    await expect(alice.keyByMac(outside)).rejects.toThrow('not_yet');
    await subnet.admin().request({ t: 'restore.confirm' });
    expect((await alice.keyByMac(outside)).peer?.id).toBe('gate');
  });

  it('makes generations above those that its members hold, in force at once', async () => {
    await bob.syncAll();
    await held(alice, [
      { peer: 'bob', pwId: 7 },
      // Forgotten altogether.
      { peer: 'carol', pwId: 3 },
      { peer: 'nobody', pwId: 3 },
    ]);
    expect(await pairOf(alice, bob)).toMatchObject({ pwId: 8, reason: 'restored' });
    expect(await pairOf(alice, carol)).toMatchObject({ pwId: 4, reason: 'restored' });
    await until(
      () => bob.pushed().some((one) => one.kind === 'pair' && one.pwId === 8),
      'bob being told',
    );
    // The other end reports the same, or less: that is settled.
    await held(bob, [{ peer: 'alice', pwId: 7 }]);
    expect((await pairOf(alice, bob))?.pwId).toBe(8);
    // The same number for another key.
    await held(bob, [{ peer: 'alice', pwId: 8 }]);
    expect((await pairOf(alice, bob))?.pwId).toBe(9);
    expect(await pairOf(bob, carol)).toBeUndefined();
    // A pair waits for the end that is not back yet.
    bob.client.stop();
    await until(() => subnet.server.online === 2, 'bob being away');
    await held(alice, [{ peer: 'bob', pwId: 20 }]);
    expect((await pairOf(alice, bob))?.pwId).toBe(9);
    const entries = (await subnet.audit()).filter(({ action }) => action === 'generations_held');
    expect(entries).toMatchObject([
      { actor: 'alice', detail: { pairs: 2 } },
      { actor: 'bob', detail: { pairs: 1 } },
    ]);
  });

  it('a prepared generation with a number that a member holds is never put in force', async () => {
    await subnet.admin().request({ t: 'rekey', force: false });
    expect((await pairOf(alice, bob))?.next?.pwId).toBe(2);
    await held(alice, [{ peer: 'bob', pwId: 2 }]);
    expect(await pairOf(alice, bob)).toMatchObject({ pwId: 3, next: undefined });
    // Nor if somebody reports the one that is in force: the number of what was prepared is taken.
    await subnet.admin().request({ t: 'rekey', force: false });
    await held(alice, [{ peer: 'bob', pwId: 3 }]);
    expect(await pairOf(alice, bob)).toMatchObject({ pwId: 5, next: undefined });
  });

  it('does the same for the group key, but not every moment', async () => {
    const group = () => subnet.store.groupKey(GROUP_ID);
    const oldKey = async () => {
      const key = await group();
      if (key === undefined) throw new Error('no group key');
      await subnet.store.write((tx) => tx.replaceGroup({ ...key, createdAt: 1 }));
    };
    await oldKey();
    const before = (await group())?.pwId ?? 0;
    await held(alice, [], before + 4);
    expect(await group()).toMatchObject({ pwId: before + 5, oldest: before + 4 });
    await held(bob, [], before + 9);
    expect((await group())?.pwId).toBe(before + 5);
    await oldKey();
    await held(bob, [], before + 9);
    expect((await group())?.pwId).toBe(before + 10);
  });

  it('believes no number that nobody can hold, and not any number of reports', async () => {
    await alice.keyByMac(defaultMac(SUBNET, 'carol'));
    await held(alice, [
      { peer: 'bob', pwId: MAX_HELD + 1 },
      { peer: 'carol', pwId: 3 },
    ]);
    expect((await pairOf(alice, bob))?.pwId).toBe(1);
    expect((await pairOf(alice, carol))?.pwId).toBe(4);
    const storm = await Promise.allSettled(
      Array.from({ length: 60 }, () => held(alice, [{ peer: 'bob', pwId: 1 }])),
    );
    expect(storm.filter(({ status }) => status === 'rejected').length).toBeGreaterThan(10);
    expect((await pairOf(alice, bob))?.pwId).toBe(2);
  });
});
