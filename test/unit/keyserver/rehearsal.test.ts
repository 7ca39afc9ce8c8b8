/** A key server's rehearsal: it is played by the program, and leaves nothing in the database, whoever is a member. */
import { appendFileSync } from 'node:fs';
import { afterEach, expect, it } from 'vitest';
import { keyServerRehearsal } from '../../../keyserver/keys/rehearsal.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { ServerProcess } from './support/server-process.js';
import { SUBNET, TestSubnet, until } from './support/subnet.js';

const PATIENCE_MS = 30_000;
const ended: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of ended.splice(0)) await end();
});

/** The names of members in a rehearsal. */
const [ONE, TWO] = [parseId('rehearsal-1'), parseId('rehearsal-2')];

it.each(['strangers', 'members'])(
  'changes nothing, where those who are named in it are %s',
  async (who) => {
    const subnet = await TestSubnet.start();
    ended.push(() => subnet.close());
    const [alice, bob] = [await subnet.member('alice'), await subnet.member('bob')];
    const known = await alice.keyByMac(defaultMac(SUBNET, bob.id));
    if (who === 'members') await Promise.all([subnet.member(ONE), subnet.member(TWO)]);
    const { store } = subnet;
    const before = await store.counters();
    const parts = keyServerRehearsal(store);
    expect(Object.keys(parts)).toEqual(['channel', 'look-ups', 'pair key']);
    for (let round = 0; round < 3; round += 1) {
      for (const part of Object.values(parts)) await part();
    }
    expect(await store.counters()).toEqual(before);
    expect(await store.anyPair(ONE, TWO)).toBeUndefined();
    expect((await store.pairsAfter(0, 10)).map(({ a, b }) => [a, b])).toEqual([[alice.id, bob.id]]);
    expect((await store.member(ONE))?.state).toBe(who === 'members' ? 'active' : undefined);
    expect((await alice.keyByMac(defaultMac(SUBNET, bob.id))).key).toEqual(known.key);
  },
);

it('is played by the program at its start, and goes well', async () => {
  const server = await ServerProcess.make();
  ended.push(() => server.kill());
  appendFileSync(server.paths.config, 'log:\n  level: debug\n');
  await server.start();
  await until(async () => server.log.includes('rehearsed'), 'the rehearsal to end', PATIENCE_MS);
  expect(server.log).not.toContain('a rehearsal failed');
});
