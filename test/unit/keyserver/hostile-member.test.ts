/** What a member can do to the key server with its own rights, and what a bad moment of the store may not leave behind. */
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CurrentSettings } from '../../../keyserver/current-settings.js';
import { choose, defaultSettings } from '../../../keyserver/init.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { importPublic } from '../../../src/protocol/public-keys.js';
import { type Signed, signRecord } from '../../../src/protocol/signed.js';
import { meddle, ON_POSTGRES } from './support/store.js';
import { SUBNET, sleep, TestSubnet, until } from './support/subnet.js';

/** A store over a socket takes longer to answer. */
const OFFLINE_AFTER = ON_POSTGRES ? 2_000 : 200;

describe('a member', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start({ tuning: { offlineAfterMs: OFFLINE_AFTER } });
  });
  afterEach(() => subnet.close());

  /** Holds up every write from now on until the function that it gives is called. */
  function heldUp(): () => void {
    let release = (): void => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    void subnet.store.write(() => released);
    return release;
  }
  const isOnline = async (id: string) =>
    (await subnet.store.listMembers(0, 100)).find((member) => member.id === id)?.online;

  it('announces gigabytes in an unsigned record of a few bytes, and they are not taken', async () => {
    const mallory = await subnet.enrolled('mallory');
    // Eight arrays in each other, each of 16 million elements: 128 MiB each if they were believed.
    const body = Buffer.concat([
      ...Array.from({ length: 8 }, () => Buffer.from([0xdd, 0x00, 0xff, 0xff, 0xff])),
      Buffer.from([0xc0]),
    ]);
    const before = highWater();
    await expect(mallory.registerAgain({ b: body, s: Buffer.alloc(64) })).rejects.toMatchObject({
      code: 'refused',
    });
    expect(highWater() - before).toBeLessThan(256 * 1_024);
  });

  it('hangs up while its registration is written: it does not stay online', async () => {
    const bob = await subnet.enrolled('bob');
    const release = heldUp();
    const registered = bob.register().catch(() => {});
    await sleep(50);
    bob.client.stop();
    await registered;
    await sleep(50);
    release();
    await until(async () => (await isOnline('bob')) === true, 'the registration');
    await until(async () => (await isOnline('bob')) === false, 'the end of its presence');
  });

  it('comes back while it is about to be put offline: it stays online', async () => {
    const bob = await subnet.member('bob');
    bob.client.stop();
    await sleep(20);
    const release = heldUp();
    bob.connect();
    const again = bob.register();
    await sleep(OFFLINE_AFTER + 100);
    release();
    await again;
    await sleep(50);
    expect(await isOnline('bob')).toBe(true);
  });

  it('is put offline only when the last of its absences has lasted', async () => {
    const bob = await subnet.member('bob');
    const record = bob.bootRecord();
    await bob.registerAgain(record);
    bob.client.stop();
    await sleep(0.6 * OFFLINE_AFTER);
    bob.connect();
    await bob.registerAgain(record);
    bob.client.stop();
    await sleep(0.6 * OFFLINE_AFTER);
    // The first absence began longer ago than the limit, but it was over in between.
    expect(await isOnline('bob')).toBe(true);
    await until(async () => (await isOnline('bob')) === false, 'the end of its presence');
  });

  it('is known again after a failure of the store in its first request', async () => {
    const bob = await subnet.enrolled('bob');
    bob.client.stop();
    bob.connect();
    await until(() => bob.client.state.kind === 'open', 'the channel');
    await sleep(50);
    const { database } = subnet.paths;
    await meddle(database, 'ALTER TABLE members RENAME TO elsewhere');
    await expect(bob.sync()).rejects.toMatchObject({ code: 'unavailable' });
    await meddle(database, 'ALTER TABLE elsewhere RENAME TO members');
    expect((await bob.sync()).more).toBe(false);
  });

  it('has its endpoints and renewed records limited, because each is a push to all', async () => {
    const bob = await subnet.member('bob');
    const outcome = async (one: Promise<unknown>) =>
      one.then(
        () => 'ok',
        (thrown: { code: string }) => thrown.code,
      );
    const endpoints = Array.from({ length: 30 }, (_, n) => [
      { ip: Buffer.from([192, 0, 2, n]), port: 1 },
    ]);
    const told = await Promise.all(
      endpoints.map((one) => outcome(bob.client.request({ t: 'endpoints', endpoints: one }))),
    );
    expect(told.filter((one) => one === 'limit').length).toBeGreaterThan(5);
    const renewed: string[] = [];
    for (let n = 0; n < 30; n += 1) {
      bob.sequence += 1;
      renewed.push(await outcome(bob.registerAgain()));
    }
    expect(renewed.filter((one) => one === 'limit').length).toBeGreaterThan(5);
  });

  it('that enrols again as a viewer is no longer an operator on older sessions', async () => {
    const olga = await subnet.enrolled('olga', { role: 'operator' });
    const older = subnet.client(olga.channelKeys.privateKey);
    await older.request({ t: 'list', what: 'members' });
    await olga.enrol(subnet.token({ id: 'olga', role: 'viewer' }));
    await expect(older.request({ t: 'settings.set', settings: settings(2) })).rejects.toMatchObject(
      { code: 'refused' },
    );
  });

  function settings(version: number): Signed {
    return signRecord(
      LABEL.settings,
      { ...choose(defaultSettings(SUBNET), version, {}) },
      subnet.operator,
    );
  }

  it('two settings that come at once: the newer one stays in force', async () => {
    const operator = importPublic('ed25519', subnet.store.meta.operator);
    const current = await CurrentSettings.load(subnet.store, operator);
    const outcomes = await Promise.allSettled([
      current.install(subnet.store, settings(4), Date.now()),
      current.install(subnet.store, settings(3), Date.now()),
    ]);
    expect(outcomes.map((one) => one.status)).toEqual(['fulfilled', 'rejected']);
    expect(current.settings.version).toBe(4);
    expect((await subnet.store.settings())?.version).toBe(4);
  });
});

/** The most memory that this process ever had, KiB. */
function highWater(): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))?.[1]);
}
