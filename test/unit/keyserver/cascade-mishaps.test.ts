/** Several key servers of one subnet when words are late, lost or out of order: nothing that was told stays untold. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseId } from '../../../src/protocol/ids.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { macOf, pairTold, RogueServer, recordOf, serverToken } from './support/cascade.js';
import { TestSubnet, until } from './support/subnet.js';

describe('key servers of one subnet that miss a word', () => {
  let one: TestSubnet;
  let two: TestSubnet;

  beforeEach(async () => {
    one = await TestSubnet.start({ tuning: { offlineAfterMs: 200 } });
    two = await TestSubnet.start({
      cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
    });
  });
  afterEach(async () => {
    await two.close();
    await one.close();
  });

  const knows = (at: TestSubnet, id: string) =>
    until(async () => (await at.store.member(parseId(id))) !== undefined, `word of ${id}`);
  const refusals = async (at: TestSubnet, kind: string) =>
    (await at.audit()).filter(({ action }) => action === kind);

  it('take the key of a member that is new to them and has changed since the key was made', async () => {
    const bob = await two.ready('bob');
    await knows(one, 'bob');
    await two.stopServer();
    const alice = await one.ready('alice');
    const { key } = await alice.keyByMac(macOf(bob));
    await alice.client.request({
      ...{ t: 'endpoints', endpoints: [{ ip: Buffer.from([192, 0, 2, 9]), port: 4_500 }] },
    });
    const made = await one.store.pairKey(alice.id, bob.id);
    expect((await one.store.member(alice.id))?.changed).toBeGreaterThan(made?.changed ?? 0);
    await two.startServer();
    await until(async () => {
      const [from] = await two.store.peerServers();
      return (from?.cursor ?? 0) >= (await one.store.counters()).change;
    }, 's2 to have read it all');
    expect((await two.store.pairKey(alice.id, bob.id))?.key.equals(Buffer.from(key))).toBe(true);
    expect(await refusals(two, 'cascade_key')).toEqual([]);
  });

  it('are told once more of a key that they were told and have not', async () => {
    const [alice, bob] = [await one.ready('alice'), await two.ready('bob')];
    await knows(two, 'alice');
    await knows(one, 'bob');
    const { key } = await alice.keyByMac(macOf(bob));
    await until(() => pairTold(bob, alice) !== undefined, 'the key at bob');
    await two.driver.transaction(async (connection) => {
      await connection.run('DELETE FROM pair_keys', []);
    });
    await two.stopServer();
    await two.startServer();
    await until(
      () =>
        bob.keyByMac(macOf(alice)).then(
          (answer) => Buffer.compare(answer.key, key) === 0,
          () => false,
        ),
      'the key at bob again',
    );
  });

  it('say again what a word said that failed, and nobody is offline for it', async () => {
    const [alice, bob] = [await one.ready('alice'), await two.ready('bob')];
    await knows(two, 'alice');
    await knows(one, 'bob');
    await alice.keyByMac(macOf(bob));
    await until(() => pairTold(bob, alice) !== undefined, 'the key at bob');
    // Young keys are not renewed for a member's word.
    for (const at of [one, two]) {
      await at.driver.transaction(async (connection) => {
        await connection.run('UPDATE pair_keys SET created_at = created_at - 60000', []);
      });
    }
    await one.driver.transaction(async (connection) => {
      await connection.run(
        "CREATE TRIGGER broken BEFORE INSERT ON peer_servers BEGIN SELECT RAISE(ABORT, 'broken'); END",
        [],
      );
    });
    await bob.client.request({
      ...{ t: 'endpoints', endpoints: [{ ip: Buffer.from([192, 0, 2, 8]), port: 4_500 }] },
    });
    await bob.client.request(
      { t: 'key.mac', requester: 'bob', mac: macOf(alice), pwId: 1, worn: true },
      { parse: (it) => answerSchemas['key.mac'].parse(it) },
    );
    const problem = async () => {
      const { rows } = await two
        .admin()
        .request({ t: 'list', what: 'nets' }, { parse: (it) => answerSchemas.list.parse(it) });
      return rows[0]?.problem;
    };
    await until(async () => (await problem()) !== undefined, 'a word to fail');
    await one.driver.transaction(async (connection) => {
      await connection.run('DROP TRIGGER broken', []);
    });
    await until(
      async () => (await one.store.pairKey(alice.id, bob.id))?.next?.reason === 'limit',
      'the worn key to be renewed',
    );
    expect((await one.store.member(bob.id))?.online).toBe(true);
    expect((await two.store.member(alice.id))?.online).toBe(true);
  });

  it('leave nobody offline whose server comes back while they are being marked', async () => {
    const three = await RogueServer.at(one, 's3');
    const ids = Array.from({ length: 150 }, (_, at) => `m${String(at).padStart(3, '0')}`);
    const changes = ids.map((id, at) => ({
      kind: 'member' as const,
      member: { ...recordOf(one, id, 's3'), index: three.number * 2 ** 24 + at },
    }));
    await three.tell(...changes);
    const online = async () => {
      const members = await Promise.all(ids.map((id) => one.store.member(parseId(id))));
      return members.filter((it) => it?.online === true).length;
    };
    expect(await online()).toBe(ids.length);
    three.member.client.stop();
    await until(async () => (await online()) < ids.length, 'the first to be offline');
    three.member.connect();
    await three.tell(...changes.reverse());
    // Whatever went on beside it has ended when the next word is answered.
    await three.say({});
    expect(await online()).toBe(ids.length);
  });
});
