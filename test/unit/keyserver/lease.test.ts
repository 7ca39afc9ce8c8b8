/** A key server that can't prove that no other one has taken over gives no answer that rests on what it has in memory. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { PairwireError } from '../../../src/runtime/errors.js';
import { SUBNET, type TestMember, TestSubnet } from './support/subnet.js';

let subnet: TestSubnet;
let alice: TestMember;
beforeAll(async () => {
  subnet = await TestSubnet.start();
  alice = await subnet.ready('alice');
  await subnet.ready('bob');
});
afterAll(() => subnet.close());

const mac = (id: string) => defaultMac(SUBNET, parseId(id));

it('no key, no list, no refusal; only its time', async () => {
  const { key } = await alice.keyByMac(mac('bob'));
  const admin = subnet.admin();
  const { store } = subnet;
  const prove = store.prove.bind(store);
  let asked = 0;
  store.prove = () => {
    asked += 1;
    return Promise.reject(new PairwireError('STORE_FAILED', 'another key server has taken over'));
  };
  const asks = [
    () => alice.keyByMac(mac('bob')),
    () => alice.keyByMac(mac('nobody')),
    () => alice.keyByMac(mac('bob'), 'bob'),
    () => alice.sync(),
    () => alice.client.request({ t: 'endpoints', endpoints: [] }),
    () => admin.request({ t: 'list', what: 'members', limit: 10 }),
  ];
  for (const ask of asks) await expect(ask()).rejects.toMatchObject({ code: 'unavailable' });
  expect(asked).toBe(asks.length);
  await alice.client.request({ t: 'ping' });
  store.prove = prove;
  expect((await alice.keyByMac(mac('bob'))).key).toEqual(key);
  await expect(alice.keyByMac(mac('nobody'))).rejects.toMatchObject({ code: 'not_found' });
});
