/** Keys in the database that are not what was sealed there: each stops only itself, no revocation, and can be mended. */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GroupRekey } from '../../../keyserver/keys/group-rekey.js';
import { Rekey } from '../../../keyserver/keys/rekey.js';
import { MAX_HELD } from '../../../keyserver/keys/renewal.js';
import { collect } from '../../../keyserver/sync/collect.js';
import { Hints } from '../../../keyserver/sync/hints.js';
import { GROUP_ID, type Id, orderedPair, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { answerSchemas, type Change } from '../../../src/protocol/messages.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { servicesOf } from './support/services.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

const GROUP_MAC = 'ff:ff:ff:ff:ff:ff';
/** What a sealed key looks like, and opens nowhere. */
const FORGED = Buffer.concat([Buffer.from([1]), randomBytes(68)]);

const mac = (id: string): string => defaultMac(SUBNET, parseId(id));

type Told<K extends Change['kind']> = Extract<Change, { kind: K }>;

function ofKind<K extends Change['kind']>(changes: readonly Change[], kind: K): Told<K>[] {
  return changes.filter((one): one is Told<K> => one.kind === kind);
}

const peers = (changes: readonly Change[]): string[] =>
  ofKind(changes, 'pair')
    .map(({ peer }) => peer as string)
    .sort();

describe('a key in the database that is not what was sealed there', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;
  let carol: TestMember;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.member('alice');
    bob = await subnet.member('bob');
    carol = await subnet.member('carol');
    for (const member of [alice, bob, carol]) await member.syncAll();
    for (const peer of ['bob', 'carol']) await alice.keyByMac(mac(peer));
  });
  afterEach(() => subnet.close());

  /** Writes to the database beside the server that runs; the server reads pairs again afterwards. */
  async function meddle(sql: string, ...values: (Buffer | number | string)[]): Promise<void> {
    await subnet.driver.transaction((connection) => connection.run(sql, values));
    await subnet.store.write((tx) => tx.redatePairs(0));
  }

  const breakPair = (b: string, column = 'key'): Promise<void> =>
    meddle(`UPDATE pair_keys SET ${column} = ? WHERE a = 'alice' AND b = ?`, FORGED, b);
  const breakGroup = (): Promise<void> => meddle('UPDATE group_keys SET key = ?', FORGED);

  const rekey = (fields: Record<string, unknown>) =>
    subnet
      .admin()
      .request(
        { t: 'rekey', force: false, ...fields },
        { parse: (it) => answerSchemas.rekey.parse(it) },
      );
  const stored = (b: string) => subnet.store.anyPair(parseId('alice'), parseId(b));
  const actions = async (action: string) =>
    (await subnet.audit()).filter((one) => one.action === action);

  /** Rows of pairs of members that never come; the first `broken` of them with a broken seal, all due. */
  async function insertPairs(count: number, broken: number): Promise<readonly Id[]> {
    const ids = Array.from({ length: count }, (_, at) => parseId(`z-${at}`));
    await subnet.store.write(async (tx) => {
      for (const [at, id] of ids.entries()) {
        const serial = await tx.nextChange();
        const [a, b] = orderedPair(alice.id, id);
        await tx.insertPair({
          ...{ a, b, key: randomBytes(32), pwId: 1, reason: 'first_request', createdAt: 1 },
          ...{ dueAt: 1 + at, serial, askedA: 0, askedB: 0, changed: serial },
        });
      }
    });
    for (const id of ids.slice(0, broken)) {
      await subnet.driver.transaction((sql) =>
        sql.run('UPDATE pair_keys SET key = ? WHERE b = ?', [FORGED, id]),
      );
    }
    return ids;
  }

  /** What the server does by itself, with other members online; its clock is ahead, so that the server's own rounds are no matter. */
  async function withRekey<T>(
    isLive: (id: Id) => boolean,
    work: (rekeys: Rekey) => Promise<T>,
  ): Promise<T> {
    const services = await servicesOf(subnet, new Metrics(), () => Date.now() + 7_200_000);
    const rekeys = new Rekey(services, { isLive, push: () => undefined });
    try {
      return await work(rekeys);
    } finally {
      rekeys.close();
    }
  }

  async function twoRounds(rekeys: Rekey): Promise<void> {
    await rekeys.tick();
    await rekeys.tick();
  }

  describe('of a pair', () => {
    it('keeps nothing else from a member: other keys, records and revocations', async () => {
      await breakPair('carol');
      await subnet.admin().request({ t: 'revoke', member: 'bob' });
      const dave = await subnet.member('dave');
      await alice.keyByMac(mac('dave'));
      const { changes } = await alice.syncAll();
      expect(peers(changes)).toEqual(['dave']);
      expect(ofKind(changes, 'revoked').map(({ id }) => id)).toEqual(['bob']);
      expect(ofKind(changes, 'member').map(({ member }) => member.id)).toContain(dave.id);
    });

    it('with whom only the key is shared: its record comes all the same', async () => {
      const small = await TestSubnet.start({ settings: { replicate: 1 } });
      try {
        const [one, two] = [await small.member('one'), await small.member('two')];
        await small.member('three');
        await one.keyByMac(mac('two'));
        await small.driver.transaction((sql) =>
          sql.run('UPDATE pair_keys SET key = ?, changed = 1000000', [FORGED]),
        );
        await small.driver.transaction((sql) =>
          sql.run("UPDATE counters SET value = 1000000 WHERE name = 'change'", []),
        );
        const { changes } = await one.syncAll();
        expect(peers(changes)).toEqual([]);
        expect(ofKind(changes, 'member').map(({ member }) => member.id)).toContain(two.id);
      } finally {
        await small.close();
      }
    });

    it('does not end a list early, however many stand in a row', async () => {
      await insertPairs(20, 19);
      for (const rows of [2, 3, 7]) {
        const services = await servicesOf(subnet);
        const found: Change[] = [];
        let position: { cursor: number; epoch: Uint8Array | undefined } = {
          ...{ cursor: 0, epoch: undefined },
        };
        for (let more = true; more; ) {
          const batch = await collect(services, alice.id, position, rows);
          expect(batch.cursor).toBeGreaterThan(position.cursor);
          found.push(...batch.changes);
          ({ more } = batch);
          position = { cursor: batch.cursor, epoch: batch.epoch };
        }
        expect(peers(found), `${rows} rows`).toEqual(['bob', 'carol', 'z-19']);
      }
    });

    it('is of no matter what kind: text, no bytes, a number that can not be', async () => {
      if (ON_POSTGRES) return;
      const set = "UPDATE pair_keys SET key = ?, pw_id = ? WHERE a = 'alice' AND b = 'carol'";
      const kinds: readonly (readonly [Buffer | string | number, string | number])[] = [
        ['text', 1],
        [7, 1],
        [Buffer.alloc(0), 1],
        [FORGED, -1],
        [FORGED, 'many'],
        [FORGED, Number.MAX_SAFE_INTEGER],
      ];
      for (const [key, pwId] of kinds) {
        await meddle(set, key, pwId);
        expect(peers((await alice.syncAll()).changes), `${key} ${pwId}`).toEqual(['bob']);
      }
      await meddle("UPDATE pair_keys SET next_pw_id = 'x' WHERE b = 'bob'");
      expect(peers((await alice.syncAll()).changes)).toEqual([]);
      // Counting goes on from what somebody can hold.
      expect((await rekey({ force: true })).pairs).toBe(2);
      expect(await stored('carol')).toMatchObject({ pwId: 1, reason: 'broken' });
      expect(await stored('bob')).toMatchObject({ pwId: 2, reason: 'broken' });
      await meddle(set, FORGED, MAX_HELD - 1);
      expect((await rekey({ force: true })).pairs).toBe(2);
      expect((await stored('carol'))?.pwId).toBe(MAX_HELD);
    });

    it('is mended by who asks for it, at both ends, and stands in the audit log', async () => {
      const before = await stored('carol');
      await breakPair('carol');
      const asked = await alice.keyByMac(mac('carol'));
      expect(asked.pwId).toBe(2);
      expect(before?.key?.equals(asked.key)).toBe(false);
      await until(
        () =>
          ofKind(carol.pushed(), 'pair').some(
            ({ pwId, key }) => pwId === 2 && Buffer.compare(key, asked.key) === 0,
          ),
        'the key at the other end',
      );
      expect(await actions('pair_mended')).toMatchObject([
        { actor: 'alice', detail: { pairs: 1, members: ['alice', 'carol'], pwId: 2 } },
      ]);
      // By the index of a frame as well: there is a pair, so its ends may have its key.
      await breakPair('carol');
      const index = (await subnet.store.member(carol.id))?.boot?.index ?? 0;
      expect((await alice.keyByIndex(index)).pwId).toBe(3);
    });

    it.each([true, false])('is mended by whoever renews it (force: %s)', async (force) => {
      for (const [ends, column] of [
        [{ a: 'alice', b: 'carol' }, 'key'],
        [{ a: 'alice' }, 'key'],
        [{}, 'next_key'],
      ] as const) {
        const pwId = (await stored('carol'))?.pwId ?? 0;
        if (column === 'next_key') await rekey({ a: 'alice', b: 'carol' });
        await breakPair('carol', column);
        expect((await rekey({ ...ends, force })).pairs).toBeGreaterThan(0);
        const after = await stored('carol');
        // A number that was only prepared is not used again.
        const above = pwId + (column === 'key' ? 1 : 2);
        expect(after).toMatchObject({ pwId: above, next: undefined, reason: 'broken' });
        expect((await alice.keyByMac(mac('carol'))).pwId).toBe(above);
      }
      expect((await actions('pair_mended')).map(({ actor }) => actor)).toEqual(
        Array(3).fill('server:s1'),
      );
    });

    it('is found however many broken ones come before it', async () => {
      const ids = await insertPairs(501, 501);
      await subnet.driver.transaction((sql) =>
        sql.run('UPDATE pair_keys SET serial = serial + 1000 WHERE b = ?', ['carol']),
      );
      const named = await withRekey(
        () => false,
        (rekeys) => rekeys.named(undefined, undefined),
      );
      expect(named).toHaveLength(ids.length + 2);
      expect(named.at(-1)).toMatchObject({ a: 'alice', b: 'carol' });
    });

    it('does not keep the others from being renewed by age, and is mended once both ends are there', async () => {
      await insertPairs(501, 500);
      await withRekey((id) => id !== 'z-499', twoRounds);
      expect(await subnet.store.anyPair(alice.id, parseId('z-0'))).toMatchObject({
        ...{ pwId: 2, reason: 'broken', next: undefined },
      });
      expect(await subnet.store.anyPair(alice.id, parseId('z-500'))).toMatchObject({
        ...{ pwId: 1, next: { pwId: 2 } },
      });
      // An end of this one is away: it waits.
      expect((await subnet.store.anyPair(alice.id, parseId('z-499')))?.key).toBeUndefined();
    });

    it('waits for its ends behind nobody: broken ones of members that are away go to the back', async () => {
      await insertPairs(501, 500);
      await withRekey((id) => id === alice.id || id === 'z-500', twoRounds);
      expect(await subnet.store.anyPair(alice.id, parseId('z-500'))).toMatchObject({
        next: { pwId: 2, reason: 'age' },
      });
    });

    it('spoils no other confirmation, and a prepared one is made anew', async () => {
      await rekey({ a: 'alice' });
      await breakPair('carol', 'next_key');
      const pairs = ['carol', 'bob'].map((peer) => ({ peer, pwId: 2 }));
      await alice.client.request({ t: 'key.confirm', pairs });
      await bob.client.request({ t: 'key.confirm', pairs: [{ peer: 'alice', pwId: 2 }] });
      expect(await stored('bob')).toMatchObject({ pwId: 2, next: undefined });
      await until(async () => (await stored('carol'))?.pwId === 3, 'another one for carol');
      expect(await stored('carol')).toMatchObject({ reason: 'broken', next: undefined });
    });

    it('is put above what its ends report to hold', async () => {
      await breakPair('carol');
      for (const member of [alice, carol]) {
        const peer = member === alice ? 'carol' : 'alice';
        await member.client.request({ t: 'key.held', pairs: [{ peer, pwId: 5 }] });
      }
      expect((await stored('carol'))?.pwId).toBe(6);
    });
  });

  describe('of the group', () => {
    it('stops neither a revocation nor what members are told', async () => {
      await breakGroup();
      expect(ofKind((await alice.syncAll()).changes, 'group')).toEqual([]);
      expect(peers((await alice.syncAll()).changes)).toEqual(['bob', 'carol']);
      await expect(alice.keyByMac(GROUP_MAC)).rejects.toMatchObject({ code: 'unavailable' });
      await bob.syncAll();
      await subnet.admin().request({ t: 'revoke', member: 'carol' });
      expect((await subnet.store.member(carol.id))?.state).toBe('revoked');
      await until(() => ofKind(bob.pushed(), 'revoked').length === 1, 'the word of it');
      expect(await subnet.store.groupKey(GROUP_ID)).toMatchObject({
        ...{ pwId: 2, oldest: 2, reason: 'revocation' },
      });
      const { key, pwId } = await alice.keyByMac(GROUP_MAC);
      expect([key.length, pwId]).toEqual([32, 2]);
    });

    it('stops no revocation either if it is gone as a whole', async () => {
      await meddle('DELETE FROM group_keys');
      await subnet.admin().request({ t: 'revoke', member: 'carol' });
      expect(await subnet.store.groupKey(GROUP_ID)).toMatchObject({ reason: 'revocation' });
    });

    it('keeps no other change from being pushed', async () => {
      await breakGroup();
      const pushed: unknown[] = [];
      const target = {
        synced: true,
        introduced: new Map<Id, number>(),
        push: (message: unknown) => pushed.push(message),
      };
      const hints = new Hints(await servicesOf(subnet), {
        get: () => target,
        all: () => [[alice.id, target]],
      });
      hints.groupChanged();
      hints.memberChanged(bob.id);
      await until(() => pushed.length > 0, 'what is left');
      hints.close();
      expect(pushed).toMatchObject([{ changes: [{ kind: 'member', member: { id: 'bob' } }] }]);
    });

    it('does not keep the server from starting, which says so, and is mended by an operator', async () => {
      await breakGroup();
      await subnet.stopServer();
      await subnet.startServer();
      expect(await actions('group_broken')).toMatchObject([
        { actor: 'server:s1', detail: { group: GROUP_ID, pwId: 1 } },
      ]);
      alice.client.stop();
      alice.connect();
      await alice.registerAgain();
      await expect(alice.keyByMac(GROUP_MAC)).rejects.toMatchObject({ code: 'unavailable' });
      expect(await rekey({ group: true, force: true })).toMatchObject({ group: 2 });
      // Who holds the one before is heard for the grace period.
      expect(await alice.keyByMac(GROUP_MAC)).toMatchObject({ pwId: 2, oldest: 1 });
      expect(await actions('group_mended')).toHaveLength(1);
      await breakGroup();
      // Nobody can be prepared for it.
      expect(await rekey({ group: true })).toMatchObject({ group: 3 });
      expect((await alice.keyByMac(GROUP_MAC)).pwId).toBe(3);
    });

    it('that was only prepared is replaced, and its number not used again', async () => {
      await rekey({ group: true });
      await meddle('UPDATE group_keys SET key = ? WHERE in_force = 0', FORGED);
      await until(
        async () => (await subnet.store.anyGroup(GROUP_ID))?.key !== undefined,
        'another one',
      );
      expect(await subnet.store.groupKey(GROUP_ID)).toMatchObject({
        ...{ pwId: 3, oldest: 1, reason: 'broken', next: undefined },
      });
    });

    it('is renewed by age', async () => {
      await meddle('UPDATE group_keys SET key = ?, due_at = 1', FORGED);
      const groups = new GroupRekey(await servicesOf(subnet), {
        ...{ live: () => [], liveCount: () => 0, tellAll: () => undefined },
        tell: () => undefined,
      });
      await groups.tick();
      groups.close();
      expect((await subnet.store.groupKey(GROUP_ID))?.reason).toBe('broken');
    });
  });
});
