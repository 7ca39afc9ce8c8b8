/** Several key servers of one subnet when a member, another server or its operator says what is not so: how far it gets. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CHANGE_BURST,
  CHANGES_PER_SECOND,
  ChangeBudget,
  COST,
} from '../../../keyserver/cascade/change-budget.js';
import { pairKeyFor } from '../../../keyserver/keys/pair-key.js';
import { Rekey } from '../../../keyserver/keys/rekey.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { GROUP_ID, parseId } from '../../../src/protocol/ids.js';
import type { MacAddress } from '../../../src/protocol/mac.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { importPublic } from '../../../src/protocol/public-keys.js';
import { settingsSchema, verifyBoot, verifyMembership } from '../../../src/protocol/records.js';
import { readUnverified, signRecord } from '../../../src/protocol/signed.js';
import { SystemClock } from '../../../src/runtime/clock.js';
import { createLogger } from '../../../src/runtime/log.js';
import {
  macOf,
  memberToken,
  pairTold,
  RogueServer,
  recordOf,
  serverToken,
} from './support/cascade.js';
import { servicesOf } from './support/services.js';
import { ringOf } from './support/store.js';
import { type TestMember, TestSubnet, until } from './support/subnet.js';

const FAR = 900_000;
const UNHEARD = '02:aa:00:00:00:09' as MacAddress;

describe('key servers of one subnet, of which somebody says what is not so', () => {
  let one: TestSubnet;
  let two: TestSubnet;

  async function start(
    first: Parameters<typeof TestSubnet.start>[0] = {},
    second: Parameters<typeof TestSubnet.start>[0] = {},
  ): Promise<void> {
    one = await TestSubnet.start({ tuning: { offlineAfterMs: 200 }, ...first });
    two = await TestSubnet.start({
      ...{ tuning: { offlineAfterMs: 200 }, ...second },
      cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
    });
    await until(async () => {
      const [there] = await one.store.peerServers();
      const [here] = await two.store.peerServers();
      return there?.complete === true && here?.complete === true;
    }, 'both to know each other');
  }

  async function restart(...how: Parameters<typeof start>): Promise<void> {
    await two.close();
    await one.close();
    await start(...how);
  }

  beforeEach(() => start());
  afterEach(async () => {
    await two.close();
    await one.close();
  });

  const member = (at: TestSubnet, id: string) => at.store.member(parseId(id));
  const knows = (at: TestSubnet, id: string) =>
    until(async () => (await member(at, id))?.online === true, `word of ${id}`);
  const entries = async (at: TestSubnet, action: string) =>
    (await at.audit()).filter((it) => it.action === action);
  const codeOf = (asked: Promise<unknown>): Promise<string> =>
    asked.then(
      () => 'ok',
      (error: { code?: string }) => error.code ?? 'failed',
    );

  /** alice is at home at s1, bob at s2; the key of the two is made at s1. */
  async function couple(): Promise<{ alice: TestMember; bob: TestMember }> {
    const [alice, bob] = [await one.ready('alice'), await two.ready('bob')];
    await knows(two, 'alice');
    await knows(one, 'bob');
    return { alice, bob };
  }

  /** A member that claims to have seen what this database has not. */
  async function claims(at: TestSubnet, id: string, epoch: Buffer): Promise<void> {
    const liar = await at.member(id);
    await liar.sync(FAR, epoch, Buffer.alloc(8, 7));
  }

  async function nextSettings(at: TestSubnet): Promise<number> {
    const stored = await at.store.settings();
    if (stored === undefined) throw new Error('there are no settings');
    const before = readUnverified(LABEL.settings, stored.record, settingsSchema);
    const version = before.version + 1;
    const settings = signRecord(LABEL.settings, { ...before, version }, at.operator);
    await at.admin().request({ t: 'settings.set', settings });
    return version;
  }

  describe('a database that was put back, as members say', () => {
    it('by one of them alone keeps nobody from a key', async () => {
      const { alice, bob } = await couple();
      await claims(one, 'mallory', Buffer.from(one.store.meta.epoch));
      expect((await one.store.counters()).putBack).toBe(true);
      const { key } = await alice.keyByMac(macOf(bob));
      await until(() => pairTold(bob, alice) !== undefined, 'the key at bob');
      expect(Buffer.compare((await bob.keyByMac(macOf(alice))).key, key)).toBe(0);
    });

    it('by two lets revocations, settings and presence cross, and keys once the operator confirms', async () => {
      const { alice, bob } = await couple();
      const carol = await two.ready('carol');
      await knows(one, 'carol');
      const epoch = Buffer.from(one.store.meta.epoch);
      await claims(one, 'mallory', epoch);
      await claims(one, 'oscar', epoch);
      await two.admin().request({ t: 'revoke', member: 'carol' });
      await until(async () => (await member(one, 'carol'))?.state === 'revoked', 'carol out at s1');
      const version = await nextSettings(two);
      await until(
        async () => (await one.store.settings())?.version === version,
        'the settings at s1',
      );
      bob.client.stop();
      await until(async () => (await member(one, 'bob'))?.online === false, 'bob offline at s1');
      bob.connect();
      await bob.register();
      await bob.syncAll();
      await knows(one, 'bob');
      const dave = await two.ready('dave');
      expect(await codeOf(bob.keyByMac(macOf(alice)))).toBe('unavailable');
      expect(await one.store.pairKey(alice.id, bob.id)).toBeUndefined();
      expect(await member(one, 'dave')).toBeUndefined();
      await one.admin().request({ t: 'restore.confirm' });
      await knows(one, 'dave');
      await until(
        async () => (await codeOf(bob.keyByMac(macOf(alice)))) === 'ok',
        'the key once more',
      );
      expect(await codeOf(alice.keyByMac(macOf(dave)))).toBe('ok');
      expect((await member(one, 'carol'))?.state).toBe('revoked');
      expect(carol.id).toBe('carol');
    }, 40_000);

    it('shows by the start that another server has a cursor of, and not if that start was', async () => {
      await couple();
      await one.stopServer();
      await one.startServer();
      await until(async () => (await two.store.peerServers())[0]?.run !== undefined, 'the start');
      await knows(one, 'bob');
      expect(await entries(one, 'put_back')).toEqual([]);
      const three = await RogueServer.at(one, 's3');
      const have = { epoch: Buffer.from(one.store.meta.epoch), cursor: 1 };
      await three.say({ have: { ...have, run: Buffer.alloc(8, 9) } });
      expect(await entries(one, 'put_back')).toMatchObject([{ actor: 'server:s3' }]);
    });

    it('gets above the generations that only the other server holds', async () => {
      const { alice, bob } = await couple();
      await alice.keyByMac(macOf(bob));
      await until(() => pairTold(bob, alice)?.pwId === 1, 'the key at bob');
      const renew = (what: Record<string, unknown>) =>
        one.admin().request({ t: 'rekey', force: true, ...what });
      for (const at of [2, 3]) {
        await renew({ a: 'alice', b: 'bob' });
        await renew({ group: true });
        await until(() => pairTold(bob, alice)?.pwId === at, `generation ${at} at bob`);
      }
      await until(async () => (await two.store.groupKey(GROUP_ID))?.pwId === 3, 'the group key');
      await one.stopServer();
      await one.startServer();
      const ring = await ringOf(one.driver, one.paths);
      await one.driver.transaction(async (connection) => {
        const forget = 'pw_id = 1, key = ?, created_at = created_at - 60000';
        await connection.run(`UPDATE pair_keys SET ${forget}, changed = changed + 100`, [
          ring.seal('pair_keys', 'key', ['alice', 'bob'], 1, Buffer.alloc(32, 3)),
        ]);
        await connection.run("UPDATE counters SET value = value + 100 WHERE name = 'change'", []);
      });
      const group = await one.store.groupKey(GROUP_ID);
      if (group === undefined) throw new Error('there is no group key');
      await one.store.write(async (tx) => {
        const old = { key: Buffer.alloc(32, 3), pwId: 1, createdAt: group.createdAt - 60_000 };
        await tx.replaceGroup({ ...group, ...old, changed: await tx.nextChange() });
      });
      await one.stopServer();
      await one.startServer();
      await alice.registerAgain();
      await until(
        () => one.store.pairKey(alice.id, bob.id).then((it) => it?.pwId === 4),
        'above it',
      );
      await until(() => pairTold(bob, alice)?.pwId === 4, 'it at bob');
      await until(async () => (await two.store.groupKey(GROUP_ID))?.pwId === 4, 'the group key');
      const said = (await entries(one, 'generations_held')).map(({ actor }) => actor);
      expect(new Set(said)).toEqual(new Set(['server:s2']));
    }, 30_000);
  });

  describe('what a server tells', () => {
    const revoked = (id: string) => ({ kind: 'revoked' as const, id: parseId(id) });

    it('is compared before it is verified', async () => {
      const three = await RogueServer.at(one, 's3');
      const changes = Array.from({ length: 100 }, (_, at) => ({
        kind: 'member' as const,
        member: {
          ...recordOf(one, `m${at}`, 's3'),
          index: three.number * 2 ** 24 + at,
        },
      }));
      const took = async (): Promise<number> => {
        const before = performance.now();
        await three.tell(...changes);
        return performance.now() - before;
      };
      await took();
      expect((await member(one, 'm99'))?.online).toBe(true);
      const again = await took();
      // What verifying them takes, by this machine's own measure.
      const operator = importPublic('ed25519', one.store.meta.operator);
      const before = performance.now();
      for (const { member: it } of changes) {
        verifyBoot(verifyMembership(one.subnet, it.membership, operator), it.boot, Date.now(), 0);
      }
      expect(again).toBeLessThan(performance.now() - before);
      // Presence alone is a server's own word.
      const away = changes.map(({ kind, member: it }) => ({
        kind,
        member: { ...it, online: false },
      }));
      await three.tell(...away);
      expect((await member(one, 'm99'))?.online).toBe(false);
    });

    it('is limited if it does not hold, and is few lines of the log', async () => {
      const lines: string[] = [];
      const write = (line: string): void => void lines.push(line);
      await restart({ log: createLogger('test', { level: 'info' }, { write }) });
      await one.ready('alice');
      const three = await RogueServer.at(one, 's3');
      const lies = Array.from({ length: 500 }, () => revoked('alice'));
      const codes: string[] = [];
      for (let at = 0; at < 5; at += 1) codes.push(await codeOf(three.tell(...lies)));
      expect(codes[0]).toBe('ok');
      expect(codes.at(-1)).toBe('limit');
      await until(
        async () => (await entries(one, 'cascade_home')).length > 0,
        'the entry in the audit log',
      );
      expect((await entries(one, 'cascade_home')).map(({ actor }) => actor)).toEqual(['server:s3']);
      expect(lines.filter((line) => line.includes('cascade_home')).length).toBe(1);
      expect(lines.filter((line) => line.includes('cascade_rate')).length).toBeLessThan(2);
      // An honest one is heard all the while.
      const carol = await two.ready('carol');
      await knows(one, carol.id);
    }, 30_000);

    it('makes no keys with members that take no part in traffic', async () => {
      const three = await RogueServer.at(one, 's3');
      await one.enrolled('a-viewer', { role: 'viewer' });
      const carol = { ...recordOf(one, 'carol', 's3'), index: three.number * 2 ** 24 };
      await three.tell({ kind: 'member', member: carol });
      for (const peer of ['a-viewer', 'admin']) {
        await three.say({ wants: [{ asker: carol.id, peer: parseId(peer), make: true }] });
        expect(await one.store.pairKey(carol.id, parseId(peer))).toBeUndefined();
      }
      await until(async () => (await entries(one, 'cascade_key')).length > 0, 'the entry');
    });

    it('has no new members of a grant that had expired when all was known', async () => {
      const expired = memberToken(one, 's3', {
        ...{ id: 'm*', uses: 9, notAfter: Date.now() - 120_000 },
      });
      const three = await RogueServer.at(one, 's3');
      const record = (id: string, at: number) => ({
        kind: 'member' as const,
        member: { ...recordOf(one, id, 's3', expired), index: three.number * 2 ** 24 + at },
      });
      // Whoever enrolled long ago is told of with all that is there at first.
      await three.tell(record('m1', 1));
      expect(await member(one, 'm1')).toMatchObject({ home: 's3' });
      await three.tell(record('m2', 2));
      expect(await member(one, 'm2')).toBeUndefined();
      await until(async () => (await entries(one, 'cascade_record')).length > 0, 'the entry');
    });

    it('has no more members than are taken', async () => {
      await restart({ limits: { membersElsewhere: 2 } });
      const three = await RogueServer.at(one, 's3');
      const records = ['carol', 'dave', 'erin'].map((id, at) => ({
        kind: 'member' as const,
        member: { ...recordOf(one, id, 's3'), index: three.number * 2 ** 24 + at },
      }));
      await three.tell(...records);
      expect(await member(one, 'dave')).toMatchObject({ home: 's3' });
      expect(await member(one, 'erin')).toBeUndefined();
      await until(async () => (await entries(one, 'cascade_members')).length > 0, 'the entry');
      expect(await one.server.metrics.registry.metrics()).toMatch(
        /keyserver_members_elsewhere\{server="s3"\} 2/,
      );
      // Nor revocations of ids that nobody has heard of.
      await three.tell(revoked('frank'));
      expect(await one.store.isRevokedAt(parseId('s3'), parseId('frank'))).toBe(false);
    });

    it('of a revocation holds for a member of which it tells later', async () => {
      const three = await RogueServer.at(one, 's3');
      await three.tell(revoked('carol'));
      const index = three.number * 2 ** 24;
      await three.tell({ kind: 'member', member: { ...recordOf(one, 'carol', 's3'), index } });
      expect(await member(one, 'carol')).toBeUndefined();
      await one.stopServer();
      await one.startServer();
      await three.tell({ kind: 'member', member: { ...recordOf(one, 'carol', 's3'), index } });
      expect(await member(one, 'carol')).toBeUndefined();
      // It says so of its own members alone.
      await three.tell(revoked('bob'));
      await two.ready('bob');
      await knows(one, 'bob');
    });
  });

  describe('addresses outside', () => {
    it('go to no plain port while a server that was asked has not answered', async () => {
      await restart({ settings: { unknown: 'plain' } });
      const { alice } = await couple();
      await one.member('gate', { role: 'plain' });
      await until(async () => (await codeOf(alice.keyByMac(UNHEARD))) === 'ok', 'the plain port');
      const three = await RogueServer.at(one, 's3');
      await three.tell();
      expect(await codeOf(alice.keyByMac(UNHEARD))).toBe('not_yet');
      const asked = codeOf(alice.keyByMac(UNHEARD));
      await until(async () => (await three.say({})).seeks.length > 0, 'the question');
      await three.say({ places: [{ vlan: 0, mac: UNHEARD, pinned: false }] });
      expect(await asked).toBe('ok');
    });
  });

  describe('the rule that only who asked for a key holds it', () => {
    it('is known to the server that makes the key of members of two', async () => {
      await restart({ settings: { hold: 0 } });
      const { alice, bob } = await couple();
      const { key } = await alice.keyByMac(macOf(bob));
      await until(
        async () => (await two.store.pairKey(alice.id, bob.id)) !== undefined,
        'the key at s2',
      );
      expect((await one.store.pairKey(alice.id, bob.id))?.askedB).toBe(0);
      expect(Buffer.compare((await bob.keyByMac(macOf(alice))).key, key)).toBe(0);
      await until(
        async () => ((await one.store.pairKey(alice.id, bob.id))?.askedB ?? 0) > 0,
        'word that bob has it',
      );
    });
  });

  describe('clocks', () => {
    it('that are put back do not make an end wait that has not confirmed', async () => {
      let wall = Date.now();
      let ticks = 0;
      const services = { ...(await servicesOf(one, undefined, () => wall)), elapsed: () => ticks };
      const pushed: string[] = [];
      const rekey = new Rekey(services, { isLive: () => true, push: (to) => pushed.push(to) });
      try {
        for (const id of ['anna', 'bert']) await one.enrolled(id);
        await pairKeyFor(services, parseId('anna'), parseId('bert'), true, () => 0);
        await rekey.renew(await rekey.named(undefined, undefined), 'operator', false);
        pushed.length = 0;
        wall -= 500_000;
        ticks += 6_000;
        await rekey.tick();
        expect(pushed).toEqual(['anna', 'bert']);
      } finally {
        rekey.close();
      }
    });

    it('half an hour apart move nobody: each server goes by its own', async () => {
      const lines: string[] = [];
      const write = (line: string): void => void lines.push(line);
      const real = new SystemClock();
      const clock = { bootMs: () => real.bootMs(), wallMs: () => real.wallMs() + 1_800_000 };
      await restart({ clock }, { log: createLogger('test', { level: 'error' }, { write }) });
      await until(
        () => lines.some((line) => line.includes('neither goes by the other')),
        'the alarm',
      );
      const bob = await two.enrolled('bob');
      const { time } = await bob.client.request(
        { t: 'ping' },
        { parse: (it) => answerSchemas.ping.parse(it) },
      );
      expect(Math.abs(time - Date.now())).toBeLessThan(5_000);
    });
  });

  describe('the first server, removed by mistake', () => {
    it('can come back, and makes the group key again', async () => {
      await couple();
      const remove = (agreed: boolean) =>
        two.admin().request({ t: 'peer.remove', net: 's1', agreed });
      await expect(remove(false)).rejects.toMatchObject({ code: 'refused' });
      await remove(true);
      await two.admin().request({ t: 'rekey', force: true, group: true });
      await two.admin().request({ t: 'rekey', force: true, group: true });
      const theirs = (await two.store.groupKey(GROUP_ID))?.pwId ?? 0;
      expect(theirs).toBeGreaterThan((await one.store.groupKey(GROUP_ID))?.pwId ?? 0);
      await one.driver.transaction(async (connection) => {
        await connection.run('UPDATE group_keys SET created_at = created_at - 60000', []);
      });
      await two.admin().request({ t: 'peer.add', token: serverToken(one, 's2') });
      await until(async () => {
        const [x, y] = [await one.store.groupKey(GROUP_ID), await two.store.groupKey(GROUP_ID)];
        return x !== undefined && y !== undefined && x.pwId > theirs && x.key.equals(y.key);
      }, 'one group key');
      // Only one that was here before.
      const none = two.admin().request({ t: 'peer.add', token: serverToken(one, 's9') });
      await expect(none).rejects.toMatchObject({ code: 'malformed' });
    }, 30_000);
  });
});

describe('what a key server may cost another', () => {
  it('comes back with time, and is owed beyond what there is', () => {
    let now = 0;
    const budget = new ChangeBudget(() => now);
    budget.spend(CHANGE_BURST);
    expect(budget.debtMs).toBe(0);
    budget.spend(COST.refused);
    expect(budget.debtMs).toBeCloseTo((COST.refused / CHANGES_PER_SECOND) * 1_000);
    now += budget.debtMs;
    expect(budget.debtMs).toBe(0);
    now += 3_600_000;
    budget.spend(CHANGE_BURST + 1);
    expect(budget.debtMs).toBeCloseTo(1_000 / CHANGES_PER_SECOND);
  });
});
