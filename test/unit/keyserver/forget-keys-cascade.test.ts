/** One of several key servers of a subnet has lost its root keys: what it makes is renewed at all of them, what the others make is told to it again. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { forgetKeys } from '../../../keyserver/forget-keys.js';
import { GROUP_ID } from '../../../src/protocol/ids.js';
import { macOf, serverToken } from './support/cascade.js';
import { type TestMember, TestSubnet, until } from './support/subnet.js';

const PATIENCE_MS = 30_000;

let one: TestSubnet;
let two: TestSubnet;
let alice: TestMember;
let zoe: TestMember;
let bob: TestMember;
let carol: TestMember;

beforeEach(async () => {
  one = await TestSubnet.start();
  two = await TestSubnet.start({
    cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
  });
  [alice, zoe] = [await one.ready('alice'), await one.ready('zoe')];
  [bob, carol] = [await two.ready('bob'), await two.ready('carol')];
  for (const [at, member] of [
    [one, bob],
    [one, carol],
    [two, alice],
    [two, zoe],
  ] as const) {
    await until(
      async () => (await at.store.member(member.id)) !== undefined,
      `word of ${member.id}`,
      PATIENCE_MS,
    );
  }
  for (const [member, peer] of [
    [alice, bob],
    [carol, zoe],
    [alice, zoe],
    [bob, carol],
  ] as const) {
    await member.keyByMac(macOf(peer));
  }
  await until(async () => (await facts(one)).size + (await facts(two)).size === 8, 'all keys');
});
afterEach(async () => {
  await two.close();
  await one.close();
});

interface Fact {
  readonly pwId: number;
  readonly key: string;
}

/** The keys that a server has. */
async function facts(at: TestSubnet): Promise<Map<string, Fact>> {
  const found = new Map<string, Fact>();
  for (const [a, b] of [
    [alice, bob],
    [carol, zoe],
    [alice, zoe],
    [bob, carol],
  ] as const) {
    const pair = await at.store.anyPair(a.id, b.id);
    if (pair?.key === undefined) continue;
    found.set(`${a.id} ${b.id}`, { pwId: pair.pwId, key: pair.key.toString('hex') });
  }
  const group = await at.store.anyGroup(GROUP_ID);
  if (group?.key !== undefined) {
    found.set('group', { pwId: group.pwId, key: group.key.toString('hex') });
  }
  return found;
}

async function loseRootKeys(at: TestSubnet): Promise<void> {
  await at.stopServer();
  rmSync(join(at.paths.kms, 'root-1.key'));
  await forgetKeys(at.dir);
  await at.startServer();
}

for (const [what, which, renewed] of [
  ['the first one', () => one, ['alice bob', 'alice zoe', 'group']],
  ['another one', () => two, ['carol zoe', 'bob carol']],
] as const) {
  it(`${what}: nobody asks, and both have the same keys again`, async () => {
    const before = new Map([...(await facts(one)), ...(await facts(two))]);
    const pwIds = new Map([...before].map(([name, { pwId }]) => [name, pwId]));
    await loseRootKeys(which());
    const expected = new Map(
      [...pwIds].map(([name, pwId]) => [name, renewed.includes(name as never) ? pwId + 1 : pwId]),
    );
    const numbers = (found: Map<string, Fact>) =>
      [...found].map(([name, { pwId }]) => `${name} ${pwId}`).toSorted();
    const shared = (name: string): boolean => !['alice zoe', 'bob carol'].includes(name);
    const wanted = numbers(new Map([...expected].map(([name, pwId]) => [name, { pwId, key: '' }])));
    await until(
      async () => {
        const all = new Map([...(await facts(one)), ...(await facts(two))]);
        const [here, there] = [await facts(one), await facts(two)];
        return (
          numbers(all).join() === wanted.join() &&
          [...here].every(([name, { key }]) => !shared(name) || there.get(name)?.key === key)
        );
      },
      `the same keys at both: ${wanted.join()}`,
      PATIENCE_MS,
    );
    const all = new Map([...(await facts(one)), ...(await facts(two))]);
    for (const [name, { key }] of all) {
      expect(key === before.get(name)?.key, name).toBe(!renewed.includes(name as never));
    }
    // Members of either get them, and neither server has refused a word of the other.
    for (const [member, peer] of [
      [alice, bob],
      [bob, alice],
      [zoe, carol],
      [carol, zoe],
    ] as const) {
      await until(
        () =>
          member.keyByMac(macOf(peer)).then(
            () => true,
            () => false,
          ),
        `a key of ${member.id}`,
        PATIENCE_MS,
      );
    }
    for (const at of [one, two]) {
      const refused = (await at.audit()).filter(({ action }) => action.startsWith('cascade_'));
      expect(refused).toEqual([]);
    }
  }, 120_000);
}
