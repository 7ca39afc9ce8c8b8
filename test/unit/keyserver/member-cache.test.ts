/** The store's memory at its edges: the oldest entry makes room, and is read from the database again. */
import { afterEach, expect, it, vi } from 'vitest';
import {
  MAX_MEMBERS,
  MAX_NAMES,
  MAX_PAIRS,
  MemberCache,
} from '../../../keyserver/storage/member-cache.js';
import type { Member } from '../../../keyserver/storage/store.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac, type MacAddress, macFromBytes } from '../../../src/protocol/mac.js';
import { SUBNET, type TestMember, TestSubnet, until } from './support/subnet.js';

let subnet: TestSubnet;
afterEach(() => subnet.close());

const nth = (at: number): Id => parseId(`m${at}`);
function nthMac(at: number): MacAddress {
  const bytes = Buffer.from([0x0a, 1, 0, 0, 0, 0]);
  bytes.writeUInt32BE(at, 2);
  return macFromBytes(bytes);
}

async function stored(of: TestMember): Promise<Member> {
  const member = await subnet.store.member(of.id);
  if (member === undefined) throw new Error('not a member');
  return member;
}

it('members, names and pairs: so many, then the oldest goes and is counted', async () => {
  subnet = await TestSubnet.start();
  const [alice, bob] = [await subnet.member('alice'), await subnet.member('bob')];
  await alice.keyByMac(defaultMac(SUBNET, 'bob'));
  const { boot, ...member } = await stored(alice);
  const pair = await subnet.store.pairKey(alice.id, bob.id);
  if (pair === undefined || boot === undefined) throw new Error('no pair key');
  const cache = new MemberCache();
  const keep = (at: number) => cache.keepMember(0, { ...member, boot: undefined, id: nth(at) });
  for (let at = 0; at < MAX_MEMBERS; at += 1) keep(at);
  expect([cache.evicted, cache.member(nth(0))?.id]).toEqual([0, nth(0)]);
  keep(MAX_MEMBERS);
  expect([cache.evicted, cache.member(nth(0)), cache.member(nth(1))?.id]).toEqual([
    1,
    undefined,
    nth(1),
  ]);

  // One member may have any number of addresses and indices: the names are bounded by themselves.
  const named = new MemberCache();
  const name = (at: number) =>
    named.keepMember(0, { ...member, boot: { ...boot, index: at + 1 } }, nthMac(at));
  for (let at = 0; at < MAX_NAMES; at += 1) name(at);
  expect([named.evicted, named.byMac(nthMac(0))?.id]).toEqual([0, alice.id]);
  name(MAX_NAMES);
  expect([named.evicted, named.byMac(nthMac(0))]).toEqual([2, undefined]);
  expect(named.byMac(nthMac(1))?.id).toBe(alice.id);

  const keyed = new MemberCache();
  const keepPair = (at: number) => keyed.keepPair(0, { ...pair, a: parseId('a'), b: nth(at) });
  for (let at = 0; at < MAX_PAIRS; at += 1) keepPair(at);
  expect([keyed.evicted, keyed.pair(nth(0), parseId('a'))?.b]).toEqual([0, nth(0)]);
  keepPair(MAX_PAIRS);
  expect([keyed.evicted, keyed.pair(nth(0), parseId('a'))]).toEqual([1, undefined]);
}, 60_000);

it('transactions of one commit: what the one before has changed is read, and not what is in memory', async () => {
  subnet = await TestSubnet.start();
  const bob = await subnet.member('bob');
  const { store } = subnet;
  expect((await store.member(bob.id))?.state).toBe('active');
  const { commits } = subnet.driver.counts;
  const [, states, after] = await Promise.all([
    store.write(async (tx) => tx.touchMember(bob.id, await tx.nextChange())),
    store.write(async (tx) => {
      const before = (await tx.member(bob.id))?.state;
      await tx.revoke(bob.id, 1, await tx.nextChange());
      return [before, (await tx.member(bob.id))?.state];
    }),
    store.write(async (tx) => (await tx.member(bob.id))?.state),
  ]);
  expect(subnet.driver.counts.commits).toBe(commits + 1);
  expect([states, after]).toEqual([['active', 'revoked'], 'revoked']);
  expect((await store.member(bob.id))?.state).toBe('revoked');
});

it('a transaction that failed leaves what was in memory as it is in the database', async () => {
  subnet = await TestSubnet.start();
  const bob = await subnet.member('bob');
  const { store } = subnet;
  await store.member(bob.id);
  const failing = store.write(async (tx) => {
    await tx.revoke(bob.id, 1, await tx.nextChange());
    throw new Error('on purpose');
  });
  const behind = store.write(async (tx) => (await tx.member(bob.id))?.state);
  await expect(failing).rejects.toThrow('on purpose');
  expect([await behind, (await store.member(bob.id))?.state]).toEqual(['active', 'active']);
});

it('whose an address is: read when its owner registers, so that the first who asks does not wait for it', async () => {
  subnet = await TestSubnet.start();
  const alice = await subnet.member('alice');
  const mac = defaultMac(SUBNET, 'bob');
  const all = vi.spyOn(subnet.driver.reader, 'all');
  // Who owns an address; what is pushed after a registration reads that row for itself.
  const reads = (): number =>
    all.mock.calls.filter(([sql, [first]]) => sql.includes('macs x JOIN members') && first === mac)
      .length;
  await subnet.member('bob');
  await until(async () => reads() > 0, 'the address to be read');
  const before = reads();
  expect((await alice.keyByMac(mac)).kind).toBe('pair');
  expect(reads()).toBe(before);
});
