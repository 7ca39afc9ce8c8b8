/**
 * Several key servers of one subnet, each with a store and members of its own: real servers, the real channel, and members
 * that speak the protocol.
 */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { joinCascade, numberOf } from '../../../keyserver/cascade/join.js';
import { openDatabase } from '../../../keyserver/storage/open.js';
import { makeToken } from '../../../keyserver/tokens.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { GROUP_ID, parseId } from '../../../src/protocol/ids.js';
import { answerSchemas, type CascadeWord } from '../../../src/protocol/messages.js';
import { settingsSchema } from '../../../src/protocol/records.js';
import { readUnverified, signRecord } from '../../../src/protocol/signed.js';
import { SystemClock } from '../../../src/runtime/clock.js';
import { createLogger } from '../../../src/runtime/log.js';
import { macOf, pairTold, recordOf, serverGrant, serverToken, told } from './support/cascade.js';
import { HOUR, SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

const S2 = parseId('s2');
const S3_NUMBER = numberOf(SUBNET, parseId('s3'));

describe('key servers of one subnet', () => {
  let one: TestSubnet;
  let two: TestSubnet;

  async function start(settings: Parameters<typeof TestSubnet.start>[0] = {}): Promise<void> {
    one = await TestSubnet.start(settings);
    two = await TestSubnet.start({
      cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
      ...(settings.tuning === undefined ? {} : { tuning: settings.tuning }),
    });
    await complete();
  }

  /** Both have all that is at home at the other. */
  async function complete(): Promise<void> {
    await until(async () => {
      const [there] = await one.store.peerServers();
      const [here] = await two.store.peerServers();
      return there?.complete === true && here?.complete === true;
    }, 'both to know each other');
  }

  const knows = (at: TestSubnet, id: string) =>
    until(async () => (await at.store.member(parseId(id)))?.online === true, `word of ${id}`);

  /** alice is at home at s1, bob at s2; the key of the two is made at s1. */
  async function couple(): Promise<{ alice: TestMember; bob: TestMember }> {
    const [alice, bob] = [await one.ready('alice'), await two.ready('bob')];
    await knows(two, 'alice');
    await knows(one, 'bob');
    return { alice, bob };
  }

  const rekey = (at: TestSubnet, fields: Record<string, unknown>) =>
    at
      .admin()
      .request(
        { t: 'rekey', force: false, ...fields },
        { parse: (it) => answerSchemas.rekey.parse(it) },
      );

  const refusals = async (at: TestSubnet, kind: string) =>
    (await at.audit()).filter(({ action }) => action === kind);

  beforeEach(() => start());
  afterEach(async () => {
    await two.close();
    await one.close();
  });

  describe('directory', () => {
    it('has one operator, tag, settings and group key, and numbers of its own for sender indices', async () => {
      const [first, second] = [one.store.meta, two.store.meta];
      expect(second).toMatchObject({
        ...{
          subnet: first.subnet,
          tag: first.tag,
          server: 's2',
          number: numberOf(first.subnet, S2),
        },
      });
      expect(second.operator.equals(first.operator)).toBe(true);
      expect(second.epoch.equals(first.epoch)).toBe(false);
      const [made, learned] = [
        await one.store.groupKey(GROUP_ID),
        await two.store.groupKey(GROUP_ID),
      ];
      expect(learned?.key.equals(made?.key ?? Buffer.alloc(0))).toBe(true);
      const bob = await two.enrolled('bob');
      const { index, tag } = await bob.register();
      expect(Math.floor(index / 2 ** 24)).toBe(second.number);
      expect(tag).toBe(first.tag);
    });

    it('shows members of either to members of the other: record, start, addresses, presence', async () => {
      const { alice, bob } = await couple();
      await until(() => told(alice, 'member')?.member.id === 'bob', 'bob at alice');
      const { changes } = await alice.syncAll();
      const record = changes.find((it) => it.kind === 'member' && it.member.id === 'bob');
      const home = await two.store.member(parseId('bob'));
      expect(record).toMatchObject({
        member: { role: 'host', online: true, index: home?.boot?.index, boot: home?.boot?.record },
      });
      const endpoint = { ip: Buffer.from([192, 0, 2, 7]), port: 4_500 };
      await bob.client.request({ t: 'endpoints', endpoints: [endpoint] });
      await until(
        () => told(alice, 'member')?.member.endpoints[0]?.port === 4_500,
        'where bob is reached',
      );
      const before = bob.bootKey;
      await bob.register();
      await until(async () => {
        const key = (await one.store.member(bob.id))?.boot?.key;
        return key?.equals(bob.bootKey) === true && !key.equals(before);
      }, "bob's next start");
    });

    it('serves nobody who is at home at the other', async () => {
      const { bob } = await couple();
      const stranger = one.client(bob.channelKeys.privateKey);
      await expect(
        stranger.request({ t: 'sync', cursor: 0 }, { timeoutMs: 1_500 }),
      ).rejects.toThrow();
      await until(
        async () => (await refusals(one, 'channel_unknown')).length > 0,
        'the refusal at the door',
      );
      // Nor does it enrol the same id.
      await expect(one.enrolled('bob')).rejects.toMatchObject({ code: 'refused' });
      await expect(one.admin().request({ t: 'revoke', member: 'bob' })).rejects.toMatchObject({
        code: 'refused',
      });
    });

    it('catches up after the other, or itself, was away, and says meanwhile that its members are offline', async () => {
      await two.close();
      await one.close();
      await start({ tuning: { offlineAfterMs: 200 } });
      const { alice } = await couple();
      await two.stopServer();
      await until(() => told(alice, 'member')?.member.online === false, 'bob to be offline');
      await one.member('anna');
      await two.startServer();
      await knows(two, 'anna');
      // He comes back to his server, and alice hears of it.
      await until(async () => (await one.store.member(parseId('bob')))?.online === true, 'bob');
    });

    it('takes newer settings from either', async () => {
      const { record, version } = (await one.store.settings()) ?? expect.unreachable();
      const settings = readUnverified(LABEL.settings, record, settingsSchema);
      const next = signRecord(
        LABEL.settings,
        { ...settings, version: version + 1, hold: 17 },
        one.operator,
      );
      const alice = await one.ready('alice');
      await two.admin().request({ t: 'settings.set', settings: next });
      await until(() => told(alice, 'settings') !== undefined, 'the settings at alice');
      expect((await one.store.settings())?.version).toBe(version + 1);
    });

    it('leaves an address with the member that has it, and notes who claims it elsewhere', async () => {
      const mac = '02:00:5e:10:00:77';
      const { alice } = await couple();
      const owner = await one.enrolled('owner', { macs: [mac as never] });
      await owner.register();
      await knows(two, 'owner');
      await expect(two.enrolled('taker', { macs: [mac as never] })).rejects.toMatchObject({
        code: 'refused',
      });
      expect((await alice.keyByMac(mac)).peer).toMatchObject({ id: 'owner' });

      // While they don't hear each other, both give it away: neither takes it from the other.
      await one.stopServer();
      const second = '02:00:5e:10:00:78';
      await (await two.enrolled('there', { macs: [second as never] })).register();
      await two.stopServer();
      await one.startServer();
      await (await one.enrolled('here', { macs: [second as never] })).register();
      await two.startServer();
      await knows(one, 'there');
      await knows(two, 'here');
      expect((await one.store.memberByMac(second as never))?.id).toBe('here');
      expect((await two.store.memberByMac(second as never))?.id).toBe('there');
      await until(
        async () =>
          (await refusals(one, 'cascade_address')).length > 0 &&
          (await refusals(two, 'cascade_address')).length > 0,
        'the audit entries',
      );
    });
  });

  describe('revocation', () => {
    it('is in effect at the members of the other server within a second', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      const before = await one.store.groupKey(GROUP_ID);
      const since = performance.now();
      await two.admin().request({ t: 'revoke', member: 'bob' });
      await until(() => told(alice, 'revoked')?.id === 'bob', 'word of it at alice');
      await until(() => (told(alice, 'group')?.pwId ?? 0) > 1, 'another group key at alice');
      expect(performance.now() - since).toBeLessThan(1_000);
      expect(told(alice, 'group')).toMatchObject({ pwId: 2, oldest: 2 });
      expect(await one.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect((await one.store.groupKey(GROUP_ID))?.key.equals(before?.key ?? Buffer.alloc(0))).toBe(
        false,
      );
      await until(async () => (await two.store.groupKey(GROUP_ID))?.pwId === 2, 'it at s2');
      await expect(alice.keyByMac(macOf(bob))).rejects.toMatchObject({ code: 'not_found' });
    });

    it('is not taken back by a server whose database was put back', async () => {
      const { bob } = await couple();
      const row = await two.store.member(bob.id);
      await two.admin().request({ t: 'revoke', member: 'bob' });
      await until(async () => (await one.store.member(bob.id))?.state === 'revoked', 'it at s1');
      if (row === undefined) throw new Error('there is no bob');
      // As if s2 had forgotten it, and told all anew.
      await two.driver.transaction(async (connection) => {
        await connection.run('DELETE FROM revocations WHERE member = ?', ['bob']);
        await connection.run("UPDATE members SET state = 'active', changed = ? WHERE id = ?", [
          900_000,
          'bob',
        ]);
        await connection.run("UPDATE counters SET value = ? WHERE name = 'change'", [900_001]);
        await connection.run("UPDATE meta SET value = ? WHERE name = 'epoch'", [
          Buffer.alloc(8, 7),
        ]);
      });
      await two.stopServer();
      await two.startServer();
      await until(async () => {
        const [peer] = await one.store.peerServers();
        return peer?.epoch.equals(Buffer.alloc(8, 7)) === true && peer.cursor >= 900_000;
      }, 's1 to have read it all');
      expect((await one.store.member(bob.id))?.state).toBe('revoked');
    });

    it('of a server takes its members out, and it gets nothing more', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await one.admin().request({ t: 'revoke', member: 's2' });
      await until(
        () => alice.pushed().some((it) => it.kind === 'revoked' && it.id === 'bob'),
        'word of it at alice',
      );
      expect(await one.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect(await one.store.peerServers()).toEqual([]);
      await one.member('anna');
      await until(async () => (await refusals(one, 'channel_unknown')).length > 0, 'its refusal');
      expect(await two.store.member(parseId('anna'))).toBeUndefined();
    });
  });

  describe('revocation of a server', () => {
    const revoke = (at: TestSubnet, member: string) => at.admin().request({ t: 'revoke', member });

    it('where it is only come to takes its members out, too, and makes another group key', async () => {
      const { alice, bob } = await couple();
      await bob.keyByMac(macOf(alice));
      const before = (await two.store.groupKey(GROUP_ID))?.key;
      await revoke(two, 's1');
      await until(() => told(bob, 'revoked')?.id === 'alice', 'word of it at bob');
      await until(() => (told(bob, 'group')?.pwId ?? 0) > 1, 'another group key at bob');
      expect((await two.store.groupKey(GROUP_ID))?.key.equals(before ?? Buffer.alloc(0))).toBe(
        false,
      );
      expect((await two.store.member(alice.id))?.state).toBe('revoked');
      expect(await two.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect(await two.store.peerServers()).toEqual([]);
      // Nothing that it says later is taken.
      await one.member('anna');
      await expect(revoke(two, 's1')).rejects.toMatchObject({ code: 'not_found' });
      expect(await two.store.member(parseId('anna'))).toBeUndefined();
    });

    it('that was removed as a peer before takes out whom it left', async () => {
      const { alice } = await couple();
      await two.admin().request({ t: 'peer.remove', net: 's1', agreed: true });
      expect((await two.store.member(alice.id))?.state).toBe('active');
      await revoke(two, 's1');
      expect((await two.store.member(alice.id))?.state).toBe('revoked');
    });

    it('is not told to the others, which are to blame for nothing', async () => {
      const three = await TestSubnet.start({
        cascade: { token: serverToken(one, 's3'), operatorKey: one.paths.operatorKey },
      });
      try {
        await three.admin().request({ t: 'peer.add', token: serverToken(two, 's3') });
        await until(async () => (await two.store.member(parseId('s3'))) !== undefined, 's3 at s2');
        await revoke(one, 's3');
        const { change } = await one.store.counters();
        await until(async () => {
          const row = await two.store.peerServer(parseId('s1'));
          return (row?.cursor ?? 0) >= change;
        }, 's2 to have read it');
        expect(await refusals(two, 'cascade_home')).toEqual([]);
        // It is to be done at every server.
        expect((await two.store.member(parseId('s3')))?.state).toBe('active');
      } finally {
        await three.close();
      }
    });

    it('can not be kept off by a member of the same name', async () => {
      await (await one.enrolled('s1')).register();
      await knows(two, 's1');
      await revoke(two, 's1');
      expect((await two.store.member(parseId('s1')))?.state).toBe('revoked');
      expect(await two.store.peerServers()).toEqual([]);
    });

    it('is not undone by what its id may become: a member that others know stays one', async () => {
      const { alice } = await couple();
      const token = one.token({ id: 'alice', role: 'viewer' });
      await expect(alice.enrol(token)).rejects.toMatchObject({ code: 'refused' });
    });
  });

  describe('pair keys', () => {
    it('are made once, at the server of the smaller id, whoever asks first', async () => {
      const { alice, bob } = await couple();
      const asked = await bob.keyByMac(macOf(alice));
      const answer = await alice.keyByMac(macOf(bob));
      expect(asked).toMatchObject({ kind: 'pair', pwId: 1, peer: { id: 'alice' } });
      expect(Buffer.compare(asked.key, answer.key)).toBe(0);
      const [made, learned] = [
        await one.store.pairKey(alice.id, bob.id),
        await two.store.pairKey(alice.id, bob.id),
      ];
      expect(made?.maker).toBeUndefined();
      expect(learned).toMatchObject({ maker: 's1', pwId: 1 });
      // The far end learns of it without asking.
      await until(() => pairTold(alice, bob)?.pwId === 1, 'the key at alice');
    });

    it('are one key also if both ends ask at the same time, of many pairs', async () => {
      const here = await Promise.all(['a1', 'm1', 'z1'].map((id) => one.ready(id)));
      const there = await Promise.all(['b2', 'n2', 'y2'].map((id) => two.ready(id)));
      for (const { id } of here) await knows(two, id);
      for (const { id } of there) await knows(one, id);
      const pairs = here.flatMap((a) => there.map((b) => [a, b] as const));
      await Promise.all(
        pairs.map(async ([a, b]) => {
          const [mine, theirs] = await Promise.all([a.keyByMac(macOf(b)), b.keyByMac(macOf(a))]);
          expect(Buffer.compare(mine.key, theirs.key)).toBe(0);
        }),
      );
      for (const [a, b] of pairs) {
        const [x, y] = [await one.store.pairKey(a.id, b.id), await two.store.pairKey(a.id, b.id)];
        expect(x?.maker, `${a.id} ${b.id}`).toBe(a.id < b.id ? undefined : 's2');
        expect(y?.maker, `${a.id} ${b.id}`).toBe(a.id < b.id ? 's1' : undefined);
      }
    });

    it('with a broken seal come again from where they are made, and are mended there', async () => {
      const { alice, bob } = await couple();
      const first = await bob.keyByMac(macOf(alice));
      const forged = Buffer.concat([Buffer.from([1]), Buffer.alloc(68, 7)]);
      const breakAt = async (at: TestSubnet, table: string): Promise<void> => {
        await at.driver.transaction((sql) => sql.run(`UPDATE ${table} SET key = ?`, [forged]));
        // The server reads its pairs again.
        await at.store.write((tx) => tx.redatePairs(0));
      };
      await breakAt(two, 'pair_keys');
      const force = { a: 'alice', b: 'bob', force: true };
      await expect(rekey(two, force)).rejects.toMatchObject({ code: 'refused' });
      const again = await bob.keyByMac(macOf(alice));
      expect([again.pwId, Buffer.compare(again.key, first.key)]).toEqual([1, 0]);

      await breakAt(one, 'pair_keys');
      const mended = await alice.keyByMac(macOf(bob));
      expect(mended.pwId).toBe(2);
      await until(() => pairTold(bob, alice)?.pwId === 2, 'the other key at bob');
      expect(Buffer.compare((await bob.keyByMac(macOf(alice))).key, mended.key)).toBe(0);

      await breakAt(two, 'group_keys');
      const group = { group: true, force: true };
      await expect(rekey(two, group)).rejects.toMatchObject({ code: 'refused' });
      await rekey(one, group);
      await until(async () => (await two.store.anyGroup(GROUP_ID))?.pwId === 2, 'the group key');
      expect((await bob.keyByMac('ff:ff:ff:ff:ff:ff')).pwId).toBe(2);
    });

    it('are found by the sender index of a frame from the other server', async () => {
      const { alice, bob } = await couple();
      const { key } = await alice.keyByMac(macOf(bob));
      const index = (await one.store.member(alice.id))?.boot?.index ?? 0;
      const answer = await bob.keyByIndex(index);
      expect(answer).toMatchObject({ kind: 'pair', peer: { id: 'alice' } });
      expect(Buffer.compare(answer.key, key)).toBe(0);
      // Nobody has sealed for him: no key is made for an index alone.
      const zoe = await two.ready('zoe');
      await expect(zoe.keyByIndex(index)).rejects.toMatchObject({ code: 'not_found' });
    });

    it('go on to be told while the other server is away; new ones have to wait', async () => {
      const { alice, bob } = await couple();
      const zoe = await two.ready('zoe');
      await knows(one, 'zoe');
      const { key } = await bob.keyByMac(macOf(alice));
      await one.stopServer();
      const again = await bob.keyByMac(macOf(alice));
      expect(Buffer.compare(again.key, key)).toBe(0);
      await until(
        () =>
          zoe.keyByMac(macOf(alice)).then(
            () => expect.unreachable('nobody could have made it'),
            (error: { code?: string }) => error.code === 'unavailable',
          ),
        'the refusal',
      );
      await one.startServer();
      await until(
        () =>
          zoe.keyByMac(macOf(alice)).then(
            () => true,
            () => false,
          ),
        'the key',
      );
    });

    it.each([
      ['their maker', () => one],
      ['the other', () => two],
    ])('change when both ends can receive under the next one, renewed by %s', async (_who, at) => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await until(() => pairTold(bob, alice)?.pwId === 1, 'the key at bob');
      if (at() === two) {
        await expect(rekey(two, { a: 'alice', b: 'bob' })).rejects.toMatchObject({
          code: 'refused',
        });
      }
      await rekey(one, { a: 'alice', b: 'bob' });
      await until(
        () => pairTold(bob, alice)?.next?.pwId === 2 && pairTold(alice, bob)?.next?.pwId === 2,
        'the next key at both',
      );
      const confirm = (member: TestMember, peer: TestMember) =>
        member.client.request({ t: 'key.confirm', pairs: [{ peer: peer.id, pwId: 2 }] });
      const [early, late] = at() === two ? [bob, alice] : [alice, bob];
      await confirm(early, late);
      await until(async () => {
        const next = (await one.store.pairKey(alice.id, bob.id))?.next;
        return early === alice ? next?.confirmedA === true : next?.confirmedB === true;
      }, 'the confirmation at the maker');
      expect((await one.store.pairKey(alice.id, bob.id))?.pwId).toBe(1);
      await confirm(late, early);
      await until(
        () =>
          [pairTold(bob, alice), pairTold(alice, bob)].every(
            (it) => it?.pwId === 2 && it.next === undefined,
          ),
        'it in force at both',
      );
      const [x, y] = [
        await one.store.pairKey(alice.id, bob.id),
        await two.store.pairKey(alice.id, bob.id),
      ];
      expect(y?.key.equals(x?.key ?? Buffer.alloc(0))).toBe(true);
    });

    it('change by force, and by age while both ends are there', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await rekey(one, { a: 'alice', b: 'bob', force: true });
      await until(() => pairTold(bob, alice)?.pwId === 2, 'the key at bob');
      await one.store.write((tx) => tx.postponePair({ a: alice.id, b: bob.id }, 1));
      await until(() => pairTold(bob, alice)?.next?.pwId === 3, 'the next key at bob');
      expect((await one.store.pairKey(alice.id, bob.id))?.next?.reason).toBe('age');
    });

    it('wait for a server that is away, and change when it is back', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await until(async () => (await two.store.pairKey(alice.id, bob.id)) !== undefined, 'it');
      await two.stopServer();
      await rekey(one, { a: 'alice', b: 'bob' });
      await until(() => pairTold(alice, bob)?.next?.pwId === 2, 'the next key at alice');
      await alice.client.request({ t: 'key.confirm', pairs: [{ peer: 'bob', pwId: 2 }] });
      expect((await one.store.pairKey(alice.id, bob.id))?.pwId).toBe(1);
      await two.startServer();
      await until(async () => {
        const pair = await two.store.pairKey(alice.id, bob.id);
        return pair?.next?.pwId === 2;
      }, 'the next key at s2');
      await bob.client.request({ t: 'key.confirm', pairs: [{ peer: 'alice', pwId: 2 }] });
      await until(async () => (await two.store.pairKey(alice.id, bob.id))?.pwId === 2, 'it');
    });
  });

  describe('group key', () => {
    it('is made by the first server and changes when the members of both can receive under it', async () => {
      const { alice, bob } = await couple();
      await expect(rekey(two, { group: true })).rejects.toMatchObject({ code: 'refused' });
      await rekey(one, { group: true });
      const prepared = (it: TestMember) => told(it, 'group')?.next?.pwId === 2;
      await until(() => prepared(alice) && prepared(bob), 'the next key at both');
      const confirm = (it: TestMember) =>
        it.client.request({ t: 'key.confirm', pairs: [], group: 2 });
      await confirm(alice);
      // Not without bob, who is asked again.
      await until(
        () => bob.pushed().filter((it) => it.kind === 'group' && it.next?.pwId === 2).length > 1,
        'bob to be told again',
        20_000,
      );
      expect((await one.store.groupKey(GROUP_ID))?.pwId).toBe(1);
      await confirm(bob);
      const inForce = (it: TestMember) => told(it, 'group')?.pwId === 2;
      await until(() => inForce(alice) && inForce(bob), 'it in force at both');
      const [x, y] = [await one.store.groupKey(GROUP_ID), await two.store.groupKey(GROUP_ID)];
      expect(y?.key.equals(x?.key ?? Buffer.alloc(0))).toBe(true);
      expect(y).toMatchObject({ pwId: 2, dueAt: 0 });
    }, 40_000);
  });

  describe('a database that was put back', () => {
    it('goes above the generations that members hold, for those at the other server too', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await until(() => pairTold(bob, alice)?.pwId === 1, 'the key at bob');
      // Young keys are left alone, for a member's word.
      await one.driver.transaction(async (connection) => {
        await connection.run('UPDATE group_keys SET created_at = created_at - 60000', []);
      });
      await alice.client.request({
        ...{ t: 'key.held', pairs: [{ peer: 'bob', pwId: 5 }], group: 7 },
      });
      await until(() => pairTold(bob, alice)?.pwId === 6, 'the key above it');
      await until(() => told(bob, 'group')?.pwId === 8, 'the group key above it');
      // What the other server makes is for that one to mend.
      await bob.client.request({ t: 'key.held', pairs: [{ peer: 'alice', pwId: 9 }], group: 9 });
      expect((await two.store.pairKey(alice.id, bob.id))?.pwId).toBe(6);
      expect((await two.store.groupKey(GROUP_ID))?.pwId).toBe(8);
    });

    it('shows by what the other server has of it', async () => {
      await couple();
      const [before] = await one.store.peerServers();
      const epoch = Buffer.from(two.store.meta.epoch);
      if (before === undefined) throw new Error('there is no s2');
      await one.stopServer();
      await one.startServer();
      // As if s1 had heard of more than s2 knows of now.
      await one.stopServer();
      await one.driver.close();
      const driver = await openDatabase(one.paths);
      await driver.transaction(async (connection) => {
        await connection.run('UPDATE peer_servers SET cursor = ?', [900_000]);
      });
      await driver.close();
      await one.startServer();
      await until(() => Promise.resolve(!two.store.meta.epoch.equals(epoch)), 'another epoch');
      expect((await two.audit()).some(({ action }) => action === 'put_back')).toBe(true);
      await two.admin().request({ t: 'restore.confirm' });
      await until(async () => {
        const [peer] = await one.store.peerServers();
        return peer?.epoch.equals(two.store.meta.epoch) === true && peer.cursor < 900_000;
      }, 's1 to have read it anew');
    });
  });

  describe('addresses outside', () => {
    const OUTSIDE = '02:aa:00:00:00:01';
    const report = (gate: TestMember) =>
      gate.client.request({
        t: 'learned',
        entries: [{ vlan: 0, mac: Buffer.from('02aa00000001', 'hex'), seq: 1, ago: 0 }],
        gone: [],
      });

    it('are found behind plain ports of the other server, and asked for again soon', async () => {
      const { alice, bob } = await couple();
      const gate = await two.member('gate', { role: 'plain' });
      await knows(one, 'gate');
      await expect(alice.keyByMac(OUTSIDE)).rejects.toMatchObject({ code: 'not_found' });
      await report(gate);
      expect(await alice.keyByMac(OUTSIDE)).toMatchObject({
        ...{ kind: 'pair', peer: { id: 'gate' } },
        behind: { vlan: 0, mac: OUTSIDE, ms: 30_000, pinned: false },
      });
      expect(await bob.keyByMac(OUTSIDE)).toMatchObject({ behind: { ms: 900_000 } });
      const away = await one.member('away', { role: 'plain' });
      await away.client.request({
        t: 'learned',
        entries: [{ vlan: 7, mac: Buffer.from('02aa00000002', 'hex'), seq: 1, ago: 0 }],
        gone: [],
      });
      const answer = await bob.client.request(
        { t: 'key.mac', requester: 'bob', mac: '02:aa:00:00:00:02', vlan: 7 },
        { parse: (it) => answerSchemas['key.mac'].parse(it) },
      );
      expect(answer).toMatchObject({ peer: { id: 'away' }, behind: { vlan: 7 } });
    });

    it('that nobody is known to have go to no plain port while the other server is away', async () => {
      await two.close();
      await one.close();
      await start({
        settings: { unknown: 'plain' },
        tuning: { offlineAfterMs: 200 },
      });
      const { alice } = await couple();
      await one.member('gate', { role: 'plain' });
      await until(
        () =>
          alice.keyByMac(OUTSIDE).then(
            (it) => it.peer?.id === 'gate',
            () => false,
          ),
        'the default plain port',
      );
      await two.stopServer();
      await until(
        () =>
          alice.keyByMac(OUTSIDE).then(
            () => false,
            (error: { code?: string }) => error.code === 'not_yet',
          ),
        'the refusal',
      );
      // Nor after a start, before the other one is heard.
      await one.stopServer();
      await one.startServer();
      await expect(alice.keyByMac(OUTSIDE)).rejects.toMatchObject({ code: 'not_yet' });
      await two.startServer();
      await until(
        () =>
          alice.keyByMac(OUTSIDE).then(
            (it) => it.peer?.id === 'gate',
            () => false,
          ),
        'the default plain port again',
      );
    });
  });

  describe('clocks', () => {
    it('60 s apart make an alarm; members of both go by the time of the first server', async () => {
      await two.close();
      await one.close();
      const lines: string[] = [];
      const log = createLogger(
        'test',
        { level: 'error' },
        { write: (line: string) => void lines.push(line) },
      );
      const real = new SystemClock();
      const clock = { bootMs: () => real.bootMs(), wallMs: () => real.wallMs() + 60_000 };
      one = await TestSubnet.start({ tuning: { offlineAfterMs: 200 } });
      two = await TestSubnet.start({
        ...{ clock, log },
        cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
      });
      await complete();
      const isNow = async (member: TestMember): Promise<boolean> => {
        const { time } = await member.client.request(
          { t: 'ping' },
          { parse: (it) => answerSchemas.ping.parse(it) },
        );
        return Math.abs(time - Date.now()) < 5_000;
      };
      const { alice, bob } = await couple();
      await until(() => isNow(bob), 'the time at s2');
      expect(await isNow(alice)).toBe(true);
      const answer = await alice.keyByMac(macOf(bob));
      expect(Buffer.compare((await bob.keyByMac(macOf(alice))).key, answer.key)).toBe(0);
      expect(lines.some((line) => line.includes('clocks of two key servers'))).toBe(true);

      const skewAt = async (at: TestSubnet): Promise<number> => {
        const { rows } = await at
          .admin()
          .request({ t: 'list', what: 'nets' }, { parse: (it) => answerSchemas.list.parse(it) });
        return Number(rows[0]?.skewMs ?? 0);
      };
      expect(Math.abs((await skewAt(two)) + 60_000)).toBeLessThan(5_000);
      await until(async () => Math.abs((await skewAt(one)) - 60_000) < 5_000, 'the skew at s1');
      expect(await two.server.metrics.registry.metrics()).toMatch(
        /keyserver_clock_skew_ms [56]\d{4}/,
      );

      // It remembers, also while the first server is away.
      await one.stopServer();
      await two.stopServer();
      await two.startServer();
      await until(() => isNow(bob), 'the time after a start');
      await one.startServer();
    });
  });

  describe('a rogue server', () => {
    /** Speaks as s2, which is stopped, with whatever it likes. */
    async function rogue(): Promise<(change: Partial<CascadeWord>) => Promise<CascadeWord>> {
      const three = await one.enrolled('s3', { role: 'server', server: parseId('s3') });
      const { meta } = one.store;
      const word: CascadeWord = {
        ...{ server: parseId('s3'), number: S3_NUMBER, first: parseId('s1'), tag: meta.tag },
        ...{ epoch: Buffer.alloc(8, 1), time: Date.now(), wants: [], confirms: [] },
        ...{ seeks: [], places: [] },
        have: { epoch: Buffer.alloc(8), cursor: 0 },
      };
      return (change) =>
        three.client.request(
          { t: 'cascade.sync', word: { ...word, ...change } },
          { parse: (it) => answerSchemas['cascade.sync'].parse(it).word },
        );
    }

    const state = (...changes: NonNullable<CascadeWord['state']>['changes']) => ({
      state: { from: 0, cursor: 1, more: false, changes },
    });

    it('is not believed about members that are at home elsewhere (M17)', async () => {
      const { alice, bob } = await couple();
      const { changes } = await alice.syncAll();
      const foreign = changes.find((it) => it.kind === 'member' && it.member.id === 'bob');
      if (foreign?.kind !== 'member') throw new Error('there is no bob');
      const ask = await rogue();
      await ask(state({ kind: 'member', member: { ...foreign.member, online: false } }));
      await ask(state({ kind: 'revoked', id: bob.id }));
      await ask(state({ kind: 'revoked', id: alice.id }));
      expect(await one.store.member(bob.id)).toMatchObject({ online: true, home: 's2' });
      expect((await one.store.member(alice.id))?.state).toBe('active');
      const key = Buffer.alloc(32, 9);
      await ask(state({ kind: 'pair', a: alice.id, b: bob.id, key, pwId: 9, next: undefined }));
      // Nor of two members at home here.
      const zoe = await one.ready('zoe');
      await ask(state({ kind: 'pair', a: alice.id, b: zoe.id, key, pwId: 9, next: undefined }));
      expect(await one.store.pairKey(alice.id, zoe.id)).toBeUndefined();
      await ask(state({ kind: 'group', key, pwId: 9, oldest: 9, next: undefined }));
      expect(await one.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect((await one.store.groupKey(GROUP_ID))?.pwId).toBe(1);
      // Nor does it get a key of theirs.
      const { state: got } = await ask({
        wants: [{ asker: bob.id, peer: alice.id, make: true }],
      });
      expect(await one.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect(got?.changes.some(({ kind }) => kind === 'pair')).toBe(false);
      await until(
        async () =>
          (await refusals(one, 'cascade_home')).some(({ actor }) => actor === 'server:s3') &&
          (await refusals(one, 'cascade_key')).some(({ actor }) => actor === 'server:s3'),
        'the audit entries',
      );
    });

    it('is not believed about its own members without their signatures', async () => {
      const ask = await rogue();
      // An honest member of it, whose grant names s3 as home.
      const carol = recordOf(one, 'carol', 's3');
      const good = { ...carol, index: S3_NUMBER * 2 ** 24 + 5 };
      await ask(state({ kind: 'member', member: good }));
      expect(await one.store.member(parseId('carol'))).toMatchObject({ home: 's3', online: true });
      // Another server's index, a boot record of somebody else, a home that is not there.
      const dave = recordOf(one, 'dave', 's3');
      await ask(state({ kind: 'member', member: { ...dave, index: 5 } }));
      await ask(
        state({ kind: 'member', member: { ...dave, boot: carol.boot, index: good.index } }),
      );
      const erin = recordOf(one, 'erin', 's1');
      await ask(state({ kind: 'member', member: { ...erin, index: good.index } }));
      expect(await one.store.member(parseId('dave'))).toBeUndefined();
      expect(await one.store.member(parseId('erin'))).toBeUndefined();
      // Another identity under an id that is known.
      const again = recordOf(one, 'carol', 's3');
      await ask(state({ kind: 'member', member: { ...again, index: good.index } }));
      const known = await one.store.member(parseId('carol'));
      expect(Buffer.compare(known?.membership.s ?? Buffer.alloc(0), carol.membership.s)).toBe(0);
      await until(async () => (await refusals(one, 'cascade_record')).length > 0, 'the entry');
    });

    it('can not make more members of a grant than it is for', async () => {
      const ask = await rogue();
      const grant = serverGrant(one, 's3', 2);
      const told = ['m1', 'm2', 'm3'].map((id, at) => ({
        kind: 'member' as const,
        member: { ...recordOf(one, id, 's3', grant), index: S3_NUMBER * 2 ** 24 + at },
      }));
      await ask(state(...told));
      const known = await Promise.all(
        told.map(async ({ member }) => (await one.store.member(member.id)) !== undefined),
      );
      expect(known).toEqual([true, true, false]);
      await until(async () => (await refusals(one, 'cascade_record')).length > 0, 'the entry');
    });

    it('is limited, and can not go back to an older key or leap ahead', async () => {
      const ask = await rogue();
      const [zoe] = [await one.ready('zoe')];
      const carol = { ...recordOf(one, 'carol', 's3'), index: S3_NUMBER * 2 ** 24 + 5 };
      await ask(state({ kind: 'member', member: carol }));
      const pair = (pwId: number, fill: number) =>
        ask(
          state({
            ...{ kind: 'pair', a: carol.id, b: zoe.id, pwId, next: undefined },
            key: Buffer.alloc(32, fill),
          }),
        );
      await pair(5, 5);
      await until(() => told(zoe, 'pair')?.pwId === 5, 'the key at its other end');
      for (const [pwId, fill] of [
        [4, 4],
        [5, 6],
        [1_000_006, 7],
      ] as const) {
        await pair(pwId, fill);
        const now = await one.store.pairKey(carol.id, zoe.id);
        expect(now).toMatchObject({ pwId: 5, key: Buffer.alloc(32, 5) });
      }
      await pair(6, 6);
      expect((await one.store.pairKey(carol.id, zoe.id))?.pwId).toBe(6);
      const answers = await Promise.allSettled(Array.from({ length: 300 }, () => ask({})));
      const refused = answers.filter(({ status }) => status === 'rejected');
      expect(refused.length).toBeGreaterThan(10);
      expect(refused[0]).toMatchObject({ reason: { code: 'limit' } });
    });

    it('gets nothing under another name, number or tag, and nothing of pairs that are not its own', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      const ask = await rogue();
      const refused = { code: 'refused' };
      await expect(ask({ server: S2 })).rejects.toMatchObject(refused);
      await expect(ask({ number: 0 })).rejects.toMatchObject(refused);
      await expect(ask({ number: (S3_NUMBER % 255) + 1 })).rejects.toMatchObject(refused);
      await expect(ask({ number: two.store.meta.number })).rejects.toMatchObject(refused);
      await expect(ask({ tag: (one.store.meta.tag + 1) % 64 })).rejects.toMatchObject(refused);
      await expect(ask({ first: S2 })).rejects.toMatchObject(refused);
      const { state: got } = await ask({});
      expect(got?.changes.map(({ kind }) => kind).sort()).toEqual(['group', 'member']);
      await until(async () => (await refusals(one, 'cascade_server')).length > 0, 'the entry');
    });
  });

  describe('tokens', () => {
    it('make a server also if the first try failed after it had enrolled', async () => {
      const dir = mkdtempSync(join(tmpdir(), 'pairwire-again-'));
      try {
        const how = { token: serverToken(one, 's3'), dir, listen: '127.0.0.1:7900', advertise: [] };
        const database = join(dir, 'nowhere', 'keyserver.db');
        await expect(joinCascade({ ...how, database })).rejects.toThrow();
        expect(await one.store.peerServer(parseId('s3'))).toBeDefined();
        expect(readdirSync(dir)).toEqual(['joining.key']);
        expect(await joinCascade(how)).toMatchObject({ subnet: one.subnet, server: 's3' });
        expect(readdirSync(dir)).not.toContain('joining.key');
      } finally {
        rmSync(dir, { recursive: true, force: true });
      }
    });

    it('are refused if they are expired, used up, for another server, or of a server that is not the first', async () => {
      const joined = (token: string) =>
        TestSubnet.start({ cascade: { token, operatorKey: one.paths.operatorKey } }).then(
          async (server) => {
            await server.close();
            return 'taken';
          },
          (error: unknown) => (error instanceof Error ? error.message : ''),
        );
      const used = serverToken(one, 's3');
      const three = await TestSubnet.start({
        cascade: { token: used, operatorKey: one.paths.operatorKey },
      });
      try {
        expect(await joined(used)).toContain('refused');
        expect(await joined(serverToken(one, 's2', 'other'))).toContain('speaks for that server');
        expect(await joined(serverToken(two, 's4'))).toContain('first server');
        expect(await joined(serverToken(one, 'r1'))).toContain('refused');
        const member = makeToken(
          {
            ...{ subnet: one.subnet, server: one.serverId },
            ...{ listen: `127.0.0.1:${one.port}`, advertise: [] },
          },
          { operator: one.operator, tokenKey: one.tokenKey, serverPublic: one.serverPublic },
          {
            ...{ id: 'mallory', role: 'host', ips: [], notAfter: Date.now() + HOUR },
            ...{ macs: [], rights: [], uses: 1 },
          },
        ).text;
        expect(await joined(member)).toContain('not for a key server');
      } finally {
        await three.close();
      }
    });
  });

  it('of three, every two peer: members of the second and the third meet', async () => {
    const three = await TestSubnet.start({
      cascade: { token: serverToken(one, 's3'), operatorKey: one.paths.operatorKey },
    });
    try {
      const [bob, carol] = [await two.ready('bob'), await three.ready('carol')];
      await knows(one, 'carol');
      await three.admin().request({ t: 'peer.add', token: serverToken(two, 's3') });
      await until(async () => (await two.store.member(carol.id))?.online === true, 'carol at s2');
      await until(async () => (await three.store.member(bob.id))?.online === true, 'bob at s3');
      const [x, y] = [await carol.keyByMac(macOf(bob)), await bob.keyByMac(macOf(carol))];
      expect(Buffer.compare(x.key, y.key)).toBe(0);
      expect(await one.store.pairKey(bob.id, carol.id)).toBeUndefined();
    } finally {
      await three.close();
    }
  });
});
