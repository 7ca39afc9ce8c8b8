/** Presence: short absences and restarts of the server change nothing for anybody; a long absence does. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { sleep, TestSubnet, until } from './support/subnet.js';

describe('presence', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start({ tuning: { offlineAfterMs: 300 } });
  });
  afterEach(() => subnet.close());

  it('ends a while after the channel did, and is told to others', async () => {
    const alice = await subnet.member('alice');
    const bob = await subnet.member('bob');
    await alice.syncAll();
    expect((await subnet.store.member(bob.id))?.online).toBe(true);
    bob.client.stop();
    await until(
      () => alice.pushed().some((change) => change.kind === 'member' && !change.member.online),
      'the push',
    );
    expect((await subnet.store.member(bob.id))?.online).toBe(false);
  });

  it('does not change for one that is back in time', async () => {
    const bob = await subnet.member('bob');
    const boot = bob.bootRecord();
    await bob.registerAgain(boot);
    const { changed } = (await subnet.store.member(bob.id)) ?? {};
    bob.client.stop();
    await sleep(100);
    bob.connect();
    await bob.registerAgain(boot);
    await sleep(400);
    expect(await subnet.store.member(bob.id)).toMatchObject({ online: true, changed });
  });

  it('does not change over a restart of the server, and endpoints are kept', async () => {
    const bob = await subnet.member('bob');
    const boot = bob.bootRecord();
    await bob.registerAgain(boot);
    const endpoints = [{ ip: Buffer.from([192, 0, 2, 1]), port: 51820 }];
    await bob.client.request({ t: 'endpoints', endpoints });
    await bob.client.request({ t: 'endpoints', endpoints });
    const before = await subnet.store.member(bob.id);
    expect(before?.endpoints).toHaveLength(1);
    await subnet.stopServer();
    await subnet.startServer();
    await bob.registerAgain(boot);
    expect(await subnet.store.member(bob.id)).toEqual(before);
  });
});
