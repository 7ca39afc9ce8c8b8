/** Revocation at the key server: at once, for everybody, for ever, and not undone by a database that is put back. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { groupKeyFor } from '../../../keyserver/keys/group-key.js';
import { pairKeyFor } from '../../../keyserver/keys/pair-key.js';
import { collect } from '../../../keyserver/sync/collect.js';
import { RequestError } from '../../../src/net/channel.js';
import { GROUP_ID } from '../../../src/protocol/ids.js';
import { BROADCAST_MAC, defaultMac } from '../../../src/protocol/mac.js';
import { answerSchemas, type Change } from '../../../src/protocol/messages.js';
import { servicesOf } from './support/services.js';
import { SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

describe('revocation', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;
  let mallory: TestMember;
  let malloryIndex: number;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.member('alice');
    bob = await subnet.member('bob');
    mallory = await subnet.enrolled('mallory');
    malloryIndex = (await mallory.register()).index;
    for (const member of [alice, bob, mallory]) await member.syncAll();
    await alice.keyByMac(defaultMac(SUBNET, 'mallory'));
    await mallory.keyByMac(defaultMac(SUBNET, 'bob'));
    await alice.keyByMac(defaultMac(SUBNET, 'bob'));
  });
  afterEach(() => subnet.close());

  const revoke = (member: string) =>
    subnet
      .admin()
      .request({ t: 'revoke', member }, { parse: (value) => answerSchemas.revoke.parse(value) });
  const told = (member: TestMember, kind: Change['kind']): Change | undefined =>
    member.pushed().findLast((one) => one.kind === kind);

  it('is told to every holder, with a group key that nothing older is heard beside', async () => {
    expect(await revoke('mallory')).toMatchObject({ number: 1, fresh: true });
    await until(
      () => [alice, bob].every((one) => told(one, 'revoked') && told(one, 'group')),
      'the pushes',
    );
    for (const one of [alice, bob]) {
      expect(told(one, 'revoked')).toMatchObject({ id: 'mallory', number: 1 });
      expect(told(one, 'group')).toMatchObject({ pwId: 2, oldest: 2 });
    }
    // Nothing of it reached the one that it is about.
    expect(mallory.pushed().some(({ kind }) => kind === 'revoked')).toBe(false);
    const groups = mallory.pushed().filter((one) => one.kind === 'group');
    expect(groups.every((one) => one.kind === 'group' && one.pwId === 1)).toBe(true);
    expect(await subnet.store.pairsOf(mallory.id)).toEqual([]);
    expect(await subnet.store.groupKey(GROUP_ID)).toMatchObject({ reason: 'revocation' });
    // Twice is once.
    expect(await revoke('mallory')).toMatchObject({ number: 1, fresh: false });
    expect((await subnet.store.groupKey(GROUP_ID))?.pwId).toBe(2);
  });

  it('a key that was prepared before is not used: the revoked member may have it', async () => {
    await subnet.admin().request({ t: 'rekey', group: true, force: false });
    await until(() => told(mallory, 'group') !== undefined, 'the prepared key with mallory');
    const prepared = (await subnet.store.groupKey(GROUP_ID))?.next;
    await revoke('mallory');
    const now = await subnet.store.groupKey(GROUP_ID);
    expect(now).toMatchObject({ pwId: 3, oldest: 3, next: undefined });
    expect(prepared?.key.equals(now?.key ?? Buffer.alloc(0))).toBe(false);
  });

  it('ends its sessions, lets none begin, and answers nobody about it', async () => {
    const ended = mallory.client;
    await revoke('mallory');
    await until(() => ended.state.kind !== 'open', 'the end of the session');
    const refused = () => subnet.audit().then((rows) => rows.map(({ action }) => action));
    await until(
      async () => (await refused()).includes('channel_unknown'),
      'the refusal at the door',
    );
    expect(ended.state.kind).not.toBe('open');
    await expect(alice.keyByMac(defaultMac(SUBNET, 'mallory'))).rejects.toThrow('not_found');
    await expect(alice.keyByIndex(malloryIndex)).rejects.toThrow('not_found');
    expect(await subnet.store.pairsOf(mallory.id)).toEqual([]);
    expect((await refused()).includes('revoke')).toBe(true);
  });

  it('holds for ever: same id, same channel key and same address do not come back unasked', async () => {
    await revoke('mallory');
    const again = subnet.token({ id: 'mallory' });
    const same = subnet.enrolled('mallory');
    await expect(same).rejects.toThrow('refused');
    await expect(mallory.enrol(again)).rejects.toThrow();
    const mac = defaultMac(SUBNET, 'mallory');
    // The machine gets a new identity if the operator names its address; nobody gets it by chance.
    const heir = await subnet.enrolled('heir', { macs: [mac] });
    await heir.register();
    expect(await alice.keyByMac(mac)).toMatchObject({ kind: 'pair', peer: { id: 'heir' } });
  });

  it('reaches who was away by its next sync, and whoever comes later', async () => {
    const { cursor } = await bob.syncAll();
    bob.client.stop();
    await revoke('mallory');
    bob.connect();
    await bob.registerAgain();
    const { changes } = await bob.syncAll(cursor, subnet.store.meta.epoch);
    expect(changes).toContainEqual(expect.objectContaining({ kind: 'revoked', id: 'mallory' }));
    expect(changes).toContainEqual(expect.objectContaining({ kind: 'group', oldest: 2 }));
    const carol = await subnet.member('carol');
    const all = (await carol.syncAll()).changes;
    expect(all).toContainEqual(expect.objectContaining({ kind: 'revoked', id: 'mallory' }));
    expect(all.some((one) => one.kind === 'member' && one.member.id === 'mallory')).toBe(false);
  });

  it('keeps the group key where the operator wants it never changed, as in the documents', async () => {
    await subnet.close();
    subnet = await TestSubnet.start({ settings: { groupRekey: 'never' } });
    await subnet.member('mallory');
    await revoke('mallory');
    expect((await subnet.store.groupKey(GROUP_ID))?.pwId).toBe(1);
  });

  it('no request that was under way brings a key back', async () => {
    // Asked for and revoked in the same breath, from both sides, many times.
    for (let round = 0; round < 10; round += 1) {
      const id = `victim-${round}`;
      const victim = await subnet.enrolled(id);
      await victim.register();
      await victim.syncAll();
      const asked = [
        alice.keyByMac(defaultMac(SUBNET, id)),
        bob.keyByMac(defaultMac(SUBNET, id)),
        victim.keyByMac(defaultMac(SUBNET, 'bob')),
        victim.keyByMac(BROADCAST_MAC),
      ];
      await revoke(id);
      // Whatever it asked too late is never answered, for it is let in no more: its client would wait half a minute.
      victim.client.stop();
      const answers = await Promise.allSettled(asked);
      for (const answer of answers.slice(0, 2)) {
        // Those who are still members are answered, be it by a refusal.
        if (answer.status === 'rejected') expect(answer.reason).toBeInstanceOf(RequestError);
      }
      expect(await subnet.store.pairsOf(victim.id)).toEqual([]);
      const { pwId } = (await subnet.store.groupKey(GROUP_ID)) ?? { pwId: 0 };
      const group = answers[3];
      if (group?.status === 'fulfilled') expect(group.value.pwId).toBeLessThan(pwId);
    }
  }, 30_000);

  it('who was looked up before it gets nothing after it', async () => {
    const before = await subnet.store.member(mallory.id);
    const services = await servicesOf(subnet);
    await revoke('mallory');
    if (before === undefined) throw new Error('mallory was a member');
    await expect(groupKeyFor(services, before)).rejects.toThrow('not a member');
    for (const [asker, peer] of [
      [alice.id, mallory.id],
      [mallory.id, bob.id],
    ] as const) {
      expect(await pairKeyFor(services, asker, peer, true, () => 0)).toBeUndefined();
    }
    expect((await collect(services, mallory.id, { cursor: 0, epoch: undefined })).changes).toEqual(
      [],
    );
    expect(await subnet.store.pairsOf(mallory.id)).toEqual([]);
    await services.audit.close();
  });

  it('nobody but an operator does it, to nobody that is not there, and not to himself', async () => {
    await expect(alice.client.request({ t: 'revoke', member: 'bob' })).rejects.toThrow('refused');
    await expect(revoke('nobody')).rejects.toThrow('not_found');
    await expect(revoke('admin')).rejects.toThrow('refused');
    expect((await subnet.store.counters()).revocation).toBe(0);
  });

  it('a server that knows less than its members serves them once its operator has confirmed', async () => {
    const register = (revocation: number) =>
      bob.client.request({
        t: 'register',
        boot: bob.bootRecord(),
        machine: Buffer.alloc(16, 1),
        nonce: Buffer.alloc(16, 2),
        revocation,
      });
    await expect(register(7)).rejects.toThrow('not_yet');
    await expect(register(7)).rejects.toThrow('not_yet');
    expect((await subnet.store.counters()).putBack).toBe(true);
    // A number that can't be is the member's own fault and raises nothing.
    await expect(register(2_000_000)).rejects.toThrow('refused');
    const answer = await subnet
      .admin()
      .request(
        { t: 'restore.confirm' },
        { parse: (value) => answerSchemas['restore.confirm'].parse(value) },
      );
    expect(answer.revocation).toBe(7);
    expect((await subnet.store.counters()).putBack).toBe(false);
    await register(7);
    expect(await revoke('mallory')).toMatchObject({ number: 8 });
  });
});
