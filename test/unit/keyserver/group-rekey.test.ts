/** Renewal of the group key: everybody who is online confirms first, and who is late catches up. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GroupRekey } from '../../../keyserver/keys/group-rekey.js';
import { GROUP_ID, type Id } from '../../../src/protocol/ids.js';
import { BROADCAST_MAC } from '../../../src/protocol/mac.js';
import { answerSchemas, type Change } from '../../../src/protocol/messages.js';
import { FakeClock } from '../../../src/runtime/clock.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { servicesOf } from './support/services.js';
import { sleep, type TestMember, TestSubnet, until } from './support/subnet.js';

type GroupChange = Extract<Change, { kind: 'group' }>;

/** What was pushed to a member of the group key, the newest last. */
function toldOf(member: TestMember): GroupChange[] {
  return member.pushed().filter((one): one is GroupChange => one.kind === 'group');
}

function confirm(member: TestMember, group: number): Promise<unknown> {
  return member.client.request({ t: 'key.confirm', pairs: [], group });
}

describe('rekeying of the group', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;

  async function stand(options: Parameters<typeof TestSubnet.start>[0] = {}): Promise<void> {
    subnet = await TestSubnet.start(options);
    alice = await subnet.member('alice');
    bob = await subnet.member('bob');
    await alice.syncAll();
    await bob.syncAll();
  }

  beforeEach(() => stand());
  afterEach(() => subnet.close());

  async function rekey(force = false): Promise<number | undefined> {
    const answer = await subnet
      .admin()
      .request(
        { t: 'rekey', group: true, force },
        { parse: (value) => answerSchemas.rekey.parse(value) },
      );
    return answer.group;
  }

  const stored = () => subnet.store.groupKey(GROUP_ID);
  const both = (holds: (told: GroupChange | undefined) => boolean): boolean =>
    holds(toldOf(alice).at(-1)) && holds(toldOf(bob).at(-1));

  it('prepares with all, and puts nothing in force before all have confirmed', async () => {
    const first = await stored();
    expect(await rekey()).toBe(2);
    await until(() => both((told) => told?.next?.pwId === 2), 'the next generation with both');
    expect(both((told) => told?.pwId === 1 && told.oldest === 1)).toBe(true);
    const next = Buffer.from(toldOf(bob).at(-1)?.next?.key ?? []);
    expect(first?.key.equals(next)).toBe(false);
    await confirm(alice, 2);
    await confirm(alice, 2);
    await confirm(bob, 3); // Of something else.
    await sleep(100);
    expect((await stored())?.pwId).toBe(1);
    await confirm(bob, 2);
    await until(() => both((now) => now?.pwId === 2 && now.next === undefined), 'the commit');
    // The one before may still be heard: frames are under way.
    expect(both((now) => now?.oldest === 1)).toBe(true);
    const after = await stored();
    expect(after).toMatchObject({ pwId: 2, reason: 'operator', next: undefined });
    expect(after?.key.equals(next)).toBe(true);
    // What was in force before is nowhere any more.
    const rows = await subnet.driver.reader.all('SELECT pw_id FROM group_keys', []);
    expect(rows).toHaveLength(1);
  });

  it('goes on after the server was killed between the steps, with the same key', async () => {
    await rekey();
    const next = (await stored())?.next;
    await subnet.stopServer();
    await subnet.startServer();
    await alice.registerAgain();
    await bob.registerAgain();
    const { changes } = await bob.syncAll();
    const group = changes.find((one): one is GroupChange => one.kind === 'group');
    expect(group).toMatchObject({ pwId: 1, next: { pwId: 2 } });
    expect(next?.key.equals(group?.next?.key ?? Buffer.alloc(0))).toBe(true);
    await confirm(alice, 2);
    expect((await stored())?.pwId).toBe(1);
    await confirm(bob, 2);
    // Others may still be on their way back.
    await sleep(100);
    expect((await stored())?.pwId).toBe(1);
    await until(async () => (await stored())?.pwId === 2, 'the commit');
    expect((await stored())?.key.equals(next?.key ?? Buffer.alloc(0))).toBe(true);
  });

  it('does not wait for one who has left, nor by the clock for nobody', async () => {
    await rekey();
    await confirm(alice, 2);
    bob.client.stop();
    await until(async () => (await stored())?.pwId === 2, 'the commit without bob');
    // He comes back with the old one, and has the new one by his first sync.
    const { changes } = await (async () => {
      bob.connect();
      await bob.registerAgain();
      return bob.syncAll();
    })();
    expect(changes.find((one) => one.kind === 'group')).toMatchObject({ pwId: 2 });
  });

  it('by force is in force at once; who was not told asks: case 1', async () => {
    expect(await rekey(true)).toBe(2);
    expect((await stored())?.pwId).toBe(2);
    const answer = await alice.client.request({
      t: 'key.mac',
      requester: 'alice',
      mac: BROADCAST_MAC,
      pwId: 1,
    });
    expect(answer).toMatchObject({ kind: 'group', pwId: 2, oldest: 1 });
    const text = await subnet.server.metrics.registry.metrics();
    expect(text).toMatch(/keyserver_rekey_cases_total\{case="1"\} 1/);
    expect(text).toMatch(/group_rekeys_total\{reason="operator",step="forced"\} 1/);
  });

  it('is renewed by a sender whose key is nearly used up, but not again and again', async () => {
    const ask = (pwId: number) =>
      alice.client.request({
        t: 'key.mac',
        requester: 'alice',
        mac: BROADCAST_MAC,
        pwId,
        worn: true,
      });
    await ask(1);
    expect((await stored())?.next).toBeUndefined(); // Made seconds ago.
    await subnet.driver.transaction((connection) =>
      connection.run('UPDATE group_keys SET created_at = created_at - 60000', []),
    );
    await ask(1);
    await ask(1);
    expect((await stored())?.next).toMatchObject({ pwId: 2, reason: 'limit' });
  });
});

describe('the age of the group key', () => {
  it('renews it by the settings, and a change of them changes that', async () => {
    const subnet = await TestSubnet.start({ settings: { groupRekey: 'on-revoke' } });
    expect((await subnet.store.groupKey(GROUP_ID))?.dueAt).toBe(0);
    await subnet.close();
    const daily = await TestSubnet.start();
    const key = await daily.store.groupKey(GROUP_ID);
    expect(key?.dueAt).toBe((key?.createdAt ?? 0) + 86_400_000);
    await daily.close();
  });

  it('one that never confirms holds up nobody for ever', async () => {
    const subnet = await TestSubnet.start();
    const clock = new FakeClock({ wallMs: Date.now() });
    const told: Id[] = [];
    const metrics = new Metrics();
    const services = await servicesOf(subnet, metrics, () => clock.wallMs());
    const groups = new GroupRekey(services, {
      live: () => ['alice', 'bob'] as Id[],
      liveCount: () => 2,
      tellAll: () => {},
      tell: (to) => told.push(to),
    });
    await groups.renew('age', false);
    await groups.confirm('alice' as Id, 2);
    clock.advance(6_000);
    await groups.tick();
    expect(told).toEqual(['bob']);
    expect((await subnet.store.groupKey(GROUP_ID))?.pwId).toBe(1);
    clock.advance(55_000);
    await groups.tick();
    expect((await subnet.store.groupKey(GROUP_ID))?.pwId).toBe(2);
    const text = await metrics.registry.metrics();
    expect(text).toMatch(/group_rekeys_total\{reason="age",step="committed"\} 1/);
    // And again when it is old: a day, give or take a tenth.
    clock.advance(86_400_000 * 1.1);
    await groups.tick();
    expect((await subnet.store.groupKey(GROUP_ID))?.next).toMatchObject({ pwId: 3, reason: 'age' });
    groups.close();
    await services.audit.close();
    await subnet.close();
  });
});
