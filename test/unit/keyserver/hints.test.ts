/** Introductions: what a session was told of is remembered in a bounded memory, and told again beyond it. */
import { afterEach, beforeEach, expect, it } from 'vitest';
import type { Services } from '../../../keyserver/services.js';
import type { Member, PairKey } from '../../../keyserver/storage/store.js';
import { Hints, MAX_INTRODUCED } from '../../../keyserver/sync/hints.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { servicesOf } from './support/services.js';
import { SUBNET, TestSubnet } from './support/subnet.js';

let subnet: TestSubnet;
let services: Services;
const metrics = new Metrics();
beforeEach(async () => {
  subnet = await TestSubnet.start();
  services = await servicesOf(subnet, metrics);
});
afterEach(async () => {
  await services.audit.close();
  await subnet.close();
});

it('nobody is introduced twice, until 4,096 others were', async () => {
  const [alice, bob] = [await subnet.member('alice'), await subnet.member('bob')];
  await alice.keyByMac(defaultMac(SUBNET, 'bob'));
  const member = await subnet.store.member(bob.id);
  const pair = await subnet.store.pairKey(alice.id, bob.id);
  if (member === undefined || pair === undefined) throw new Error('no pair key');
  let pushed = 0;
  const target = {
    synced: true,
    introduced: new Map<Id, number>(),
    push: () => {
      pushed += 1;
    },
  };
  const hints = new Hints(services, {
    get: (id) => (id === alice.id ? target : undefined),
    all: () => [[alice.id, target]],
  });
  const introduce = (at: number): void => {
    const about: Member = { ...member, id: parseId(`m${at}`) };
    const key: PairKey = { ...pair, a: alice.id, b: about.id };
    hints.introduce(alice.id, about, key);
  };
  for (let at = 0; at < MAX_INTRODUCED; at += 1) introduce(at);
  introduce(0);
  introduce(MAX_INTRODUCED - 1);
  expect(pushed).toBe(MAX_INTRODUCED);
  introduce(MAX_INTRODUCED);
  expect(target.introduced.size).toBe(1);
  introduce(0);
  introduce(0);
  expect(pushed).toBe(MAX_INTRODUCED + 2);
  const counted = await metrics.registry
    .getSingleMetric('pairwire_keyserver_introductions_total')
    ?.get();
  expect(counted?.values[0]?.value).toBe(MAX_INTRODUCED + 2);
  hints.close();
});
