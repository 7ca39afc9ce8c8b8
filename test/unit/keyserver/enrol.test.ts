/** Enrolment and registration: what a grant allows, once, and what is refused and audited. */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { canonicalPrefix } from '../../../keyserver/registry/enrol.js';
import { TokenBuckets } from '../../../keyserver/registry/token-bucket.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac, macSchema, macToBytes } from '../../../src/protocol/mac.js';
import { generateRawKeyPair } from '../../../src/protocol/public-keys.js';
import { HOUR, SUBNET, TestMember, TestSubnet, until } from './support/subnet.js';

const refused = { code: 'refused' };

describe('enrolment', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
  });
  afterEach(() => subnet.close());

  const audited = (kind: string): Promise<void> =>
    until(async () => (await subnet.audit()).some(({ action }) => action === kind), kind);

  it('makes a member with its address and keeps all of it over a restart', async () => {
    const alice = await subnet.member('alice', { ips: ['10.1.0.1'] });
    await subnet.stopServer();
    await subnet.startServer();
    const member = await subnet.store.member(alice.id);
    expect(member).toMatchObject({ role: 'host', ips: ['10.1.0.1'], online: true });
    expect(await subnet.store.macsOf(alice.id)).toMatchObject([
      { mac: defaultMac(SUBNET, 'alice'), kind: 'own', member: 'alice' },
    ]);
    expect((await alice.registerAgain()).index).toBe(member?.boot?.index);
  });

  it('is idempotent for the same identity and grant, and counts once', async () => {
    const alice = new TestMember(subnet, 'alice');
    const token = subnet.token({ id: 'alice' });
    await alice.enrol(token);
    await alice.enrol(token);
    await alice.enrol(token);
    expect((await subnet.audit()).filter(({ action }) => action === 'enrol')).toHaveLength(1);
  });

  it('serves as many members as the token has uses, and not one more, also at once', async () => {
    const token = subnet.token({ id: 'web-*', uses: 3 });
    const results = await Promise.allSettled(
      Array.from({ length: 6 }, (_unused, at) => new TestMember(subnet, `web-${at}`).enrol(token)),
    );
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(3);
    for (const result of results) {
      if (result.status === 'rejected') expect(result.reason).toMatchObject(refused);
    }
    await audited('enrol_token');
  });

  it('refuses a grant after its time', async () => {
    const token = subnet.token({ id: 'alice', notAfter: Date.now() - 1 });
    await expect(new TestMember(subnet, 'alice').enrol(token)).rejects.toMatchObject({
      code: 'refused',
      detail: 'the join token has expired',
    });
    await audited('enrol_expired');
  });

  it('refuses an id that belongs to another identity, with any token', async () => {
    await subnet.enrolled('alice');
    const thief = new TestMember(subnet, 'alice');
    await expect(thief.enrol(subnet.token({ id: 'alice' }))).rejects.toMatchObject(refused);
    await audited('enrol_id');
  });

  it('refuses an id that the grant does not cover, and a grant of another operator or server', async () => {
    const bob = new TestMember(subnet, 'bob');
    await expect(bob.enrol(subnet.token({ id: 'alice' }))).rejects.toMatchObject(refused);
    const other = await TestSubnet.start();
    try {
      // A token of this server with a grant that another operator signed.
      const foreign = other.token({ id: 'bob' });
      const own = subnet.token({ id: 'bob' });
      await expect(
        bob.enrol(own, bob.membership({ ...own, grant: foreign.grant })),
      ).rejects.toMatchObject(refused);
    } finally {
      await other.close();
    }
  });

  it('refuses the grant of another token than that of the channel', async () => {
    const mallory = new TestMember(subnet, 'mallory');
    const cheap = subnet.token({ id: 'mallory' });
    const rich = subnet.token({ id: 'mallory', rights: ['router'] });
    await expect(mallory.enrol(cheap, mallory.membership(rich))).rejects.toMatchObject(refused);
  });

  it('refuses a membership that names another channel key than that of the session', async () => {
    const alice = new TestMember(subnet, 'alice');
    const token = subnet.token({ id: 'alice' });
    const foreign = generateRawKeyPair('x25519').publicKey;
    await expect(alice.enrol(token, alice.membership(token, foreign))).rejects.toMatchObject(
      refused,
    );
  });

  it('lets the same identity take a new grant; what it loses keeps a tombstone', async () => {
    const first = macSchema.parse('02:00:00:00:00:01');
    const second = macSchema.parse('02:00:00:00:00:02');
    const alice = await subnet.enrolled('alice', { macs: [first] });
    await alice.enrol(subnet.token({ id: 'alice', macs: [second] }));
    expect(await subnet.store.macsOf(alice.id)).toMatchObject([
      { mac: first, kind: 'tombstone' },
      { mac: second, kind: 'own' },
    ]);
    const bob = await subnet.member('bob');
    await expect(bob.keyByMac(first)).rejects.toMatchObject({ code: 'not_found' });
    expect((await bob.keyByMac(second)).peer?.id).toBe('alice');
    // Neither the address in use nor the tombstone is for another.
    for (const mac of [first, second]) {
      const carol = new TestMember(subnet, 'carol');
      await expect(carol.enrol(subnet.token({ id: 'carol', macs: [mac] }))).rejects.toMatchObject(
        refused,
      );
    }
    await audited('enrol_address');
    // The refused enrolments left nothing behind.
    expect(await subnet.store.member(parseId('carol'))).toBeUndefined();
    await subnet.enrolled('carol');
  });

  it('gives a shared address to several ids if each grant says so', async () => {
    const mac = macSchema.parse('00:00:5e:00:01:07');
    await subnet.member('r1', { macs: [mac], rights: ['shared'] });
    await subnet.member('r2', { macs: [mac], rights: ['shared'] });
    const alice = await subnet.member('alice');
    expect(['r1', 'r2']).toContain((await alice.keyByMac(mac)).peer?.id);
  });

  it('takes a learned address that the grant names or that is made of the id, and nobody is led outside by it', async () => {
    const made = defaultMac(SUBNET, 'bob');
    const named = macSchema.parse('02:00:00:00:00:09');
    const gate = await subnet.member('gate', { role: 'plain' });
    await gate.client.request({
      t: 'learned',
      entries: [made, named].map((mac) => ({ vlan: 0, mac: macToBytes(mac), seq: 1, ago: 0 })),
      gone: [],
    });
    await subnet.enrolled('alice', { macs: [named] });
    await subnet.enrolled('bob');
    for (const [mac, id] of [
      [named, 'alice'],
      [made, 'bob'],
    ] as const) {
      expect(await subnet.store.memberByMac(mac)).toMatchObject({ id });
      expect(await subnet.store.learned(0, mac)).toMatchObject({ member: undefined });
    }
  });

  it('refuses an IP address that is bound to another, however it is written', async () => {
    await subnet.enrolled('alice', { ips: ['2001:db8::1'] });
    const bob = new TestMember(subnet, 'bob');
    const token = subnet.token({ id: 'bob', ips: ['2001:0DB8:0:0::0001/128'] });
    await expect(bob.enrol(token)).rejects.toMatchObject(refused);
    expect(canonicalPrefix('2001:0DB8:0:0::0001/128')).toBe('2001:db8::1');
    expect(canonicalPrefix('10.0.0.0/8')).toBe('10.0.0.0/8');
    expect(canonicalPrefix('10.0.0.1/32')).toBe('10.0.0.1');
  });

  it('lets nobody in whose token secret is a guess or whose key is unknown', async () => {
    const alice = new TestMember(subnet, 'alice');
    const token = subnet.token({ id: 'alice' });
    const client = subnet.client(alice.channelKeys.privateKey, {
      token: { id: alice.grantOf(token).tokenId, psk: randomBytes(32) },
    });
    await expect(
      client.request({ t: 'enrol', membership: alice.membership(token) }, { timeoutMs: 500 }),
    ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
    alice.connect();
    await expect(
      alice.client.request({ t: 'sync', cursor: 0 }, { timeoutMs: 500 }),
    ).rejects.toMatchObject({ code: 'CHANNEL_TIMEOUT' });
    await audited('channel_unknown');
  });
});

describe('registration', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.enrolled('alice');
  });
  afterEach(() => subnet.close());

  it('keeps the index with the boot key and draws another for another', async () => {
    const first = await alice.register();
    expect(first.tag).toBeLessThan(64);
    expect(first.index).toBeGreaterThan(0);
    expect(first.index).toBeLessThan(2 ** 24);
    expect((await alice.registerAgain()).index).toBe(first.index);
    const second = await alice.register();
    expect(second.index).not.toBe(first.index);
    expect(await subnet.store.memberByIndex(first.index)).toBeUndefined();
    // The old index rests: nobody can take it now, everybody in 24 h.
    const taken = await subnet.store.write((tx) =>
      tx.takeIndex(first.index, alice.id, randomBytes(32), Date.now()),
    );
    expect(taken).toBe(false);
    const later = await subnet.store.write(async (tx) => {
      await tx.forgetIndices(Date.now() + 25 * HOUR);
      return [
        await tx.takeIndex(first.index, alice.id, randomBytes(32), Date.now()),
        await tx.takeIndex(second.index, alice.id, randomBytes(32), Date.now()),
      ];
    });
    expect(later).toEqual([true, false]);
  });

  it('refuses older records, others of the same sequence, expired, foreign and forged ones', async () => {
    await alice.register();
    await alice.register();
    const bad = [
      alice.bootRecord({ sequence: 1 }),
      alice.bootRecord({ boot: randomBytes(32) }),
      alice.bootRecord({ sequence: 9, notAfter: Date.now() - 1 }),
      alice.bootRecord({ sequence: 9, id: 'bob' }),
      alice.bootRecord({ sequence: 9, macs: ['02:00:00:00:00:77'] }),
      alice.bootRecord({ sequence: 9 }, generateRawKeyPair('ed25519').privateKey),
    ];
    for (const record of bad) {
      await expect(alice.registerAgain(record)).rejects.toMatchObject(refused);
    }
    // None of them used up the rate.
    expect((await alice.registerAgain()).index).toBeGreaterThan(0);
    const audit = await subnet.audit();
    expect(audit.filter(({ action }) => action === 'register_record').length).toBeGreaterThan(0);
  });

  it('lets three new boot keys pass at once, then limits', async () => {
    for (let start = 0; start < 3; start += 1) await alice.register();
    await expect(alice.register()).rejects.toMatchObject({ code: 'limit' });
  });
});

describe('token buckets', () => {
  it('give a burst, then a steady rate, and forget full ones', () => {
    const buckets = new TokenBuckets(3, 0.1);
    expect([1, 2, 3, 4].map(() => buckets.take('a', 1_000))).toEqual([true, true, true, false]);
    expect(buckets.take('a', 10_999)).toBe(false);
    expect(buckets.take('a', 11_001)).toBe(true);
    expect(buckets.take('b', 11_001)).toBe(true);
  });
});
