/**
 * IP addresses and the MAC addresses that announce them: whose word counts, for how long, and who is told (threats.md
 * C2). A member never gets an address that is somebody else's.
 */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Bindings,
  FOR_OPERATOR,
  MAX_BINDINGS,
  MAX_IP_PINS,
  MAX_SEEN,
} from '../../../keyserver/registry/bindings.js';
import { GuardReports } from '../../../keyserver/registry/guard-reports.js';
import type { Services } from '../../../keyserver/services.js';
import { collect } from '../../../keyserver/sync/collect.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac, type MacAddress } from '../../../src/protocol/mac.js';
import type { Change } from '../../../src/protocol/messages.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { servicesOf } from './support/services.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, TestSubnet, until } from './support/subnet.js';

/** Tens of thousands of rows, one by one: each costs PostgreSQL a round trip. */
const BULK_MS = ON_POSTGRES ? 600_000 : 180_000;

const ADMIN = parseId('admin');
const ALICE = parseId('alice');
const BOB = parseId('bob');
const ROUTER = '0a:00:00:00:00:01' as MacAddress;
const SECOND = '02:00:00:00:01:02' as MacAddress;
const THIRD = '02:00:00:00:01:03' as MacAddress;
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

const macOf = (id: string) => defaultMac(SUBNET, id);
const isIp = (change: Change) => change.kind === 'ip' || change.kind === 'ip.freed';

describe('IP addresses of members', () => {
  let subnet: TestSubnet;
  let services: Services;
  let bindings: Bindings;
  let metrics: Metrics;
  let time: number;
  let told: string[];

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    time = Date.now();
    told = [];
    metrics = new Metrics();
    services = await servicesOf(subnet, metrics, () => time);
    bindings = new Bindings(services, (ip) => told.push(ip));
  });
  afterEach(async () => {
    await services.audit.close();
    await subnet.close();
  });

  const announce = (id: Id, ip: string, mac: MacAddress = macOf(id)) =>
    bindings.report(id, [{ ip, mac }]);
  const row = async (ip: string) => {
    const entry = await subnet.store.binding(ip);
    if (entry === undefined || entry.kind === 'freed') return undefined;
    return `${entry.kind} ${entry.member ?? '-'} ${entry.mac}`;
  };
  const counted = async (result: string) => {
    const metric = metrics.registry.getSingleMetric('pairwire_keyserver_bindings_total');
    const { values } = (await metric?.get()) ?? { values: [] };
    return values.find(({ labels }) => labels.result === result)?.value ?? 0;
  };
  /** So many rows of addresses of nobody that takes part. */
  const fill = (kind: 'seen' | 'pinned', rows: number, of = 0) =>
    subnet.store.write(async (tx) => {
      const member = kind === 'seen' ? parseId('many') : undefined;
      for (let at = 0; at < rows; at += 1) {
        const changed = await tx.nextChange();
        const still = { since: time, refreshed: time, serial: changed, changed };
        const ip = `10.${100 + of}.${at >> 8}.${at & 255}`;
        await tx.putBinding({ ip, mac: THIRD, kind, member, ...still });
      }
    });
  const audited = async (action: string) => {
    await services.audit.close();
    return (await subnet.audit()).filter((entry) => entry.action === action);
  };

  it('are bound to whoever announces them first, and to nobody else for an hour', async () => {
    await subnet.member('alice');
    await subnet.member('bob');
    expect(await announce(ALICE, '10.0.0.2')).toEqual([]);
    expect(await row('10.0.0.2')).toBe(`seen alice ${macOf('alice')}`);
    expect(await announce(BOB, '10.0.0.2')).toEqual(['10.0.0.2']);
    time += 59 * MINUTE;
    expect(await announce(BOB, '10.0.0.2')).toEqual(['10.0.0.2']);
    // Whoever goes on using it keeps it.
    await announce(ALICE, '10.0.0.2');
    time += 59 * MINUTE;
    expect(await announce(BOB, '10.0.0.2')).toEqual(['10.0.0.2']);
    expect(told).toEqual(['10.0.0.2']);
    time += MINUTE;
    expect(await announce(BOB, '10.0.0.2')).toEqual([]);
    expect(await row('10.0.0.2')).toBe(`seen bob ${macOf('bob')}`);
    expect(told).toEqual(['10.0.0.2', '10.0.0.2']);
    const entries = await audited('ip_taken');
    expect(entries.map(({ actor }) => actor)).toEqual(['bob', 'bob', 'bob']);
    expect(entries[0]?.detail).toEqual({ ip: '10.0.0.2', mac: macOf('bob') });
  });

  it('are not taken for a MAC address of somebody else, nor if nobody can have them', async () => {
    await subnet.member('alice');
    await subnet.member('bob');
    expect(await announce(BOB, '10.0.0.2', macOf('alice'))).toEqual(['10.0.0.2']);
    expect(await announce(BOB, '10.0.0.2', ROUTER)).toEqual(['10.0.0.2']);
    for (const ip of [
      '0.0.0.0',
      '127.0.0.1',
      '224.0.0.1',
      '255.255.255.255',
      '::',
      '::1',
      'ff02::1',
      '::ffff:a00:2',
    ]) {
      expect(await announce(BOB, ip), ip).toEqual([ip]);
    }
    expect(told).toEqual([]);
    await expect(announce(parseId('nobody'), '10.0.0.2')).rejects.toMatchObject({
      kind: 'unknown_member',
    });
  });

  it('are those of the grant, if it names any, and the link-local one of each interface', async () => {
    await subnet.member('alice', { ips: ['10.1.0.0/24', '2001:db8:1::/48'] });
    expect(await announce(ALICE, '10.1.0.77')).toEqual([]);
    expect(await announce(ALICE, '2001:db8:1:2::3')).toEqual([]);
    expect(await announce(ALICE, 'fe80::1234')).toEqual([]);
    expect(await announce(ALICE, '10.1.1.1')).toEqual(['10.1.1.1']);
    expect(await announce(ALICE, '2001:db8:2::1')).toEqual(['2001:db8:2::1']);
    // A prefix permits and does not reserve.
    await subnet.member('bob');
    expect(await announce(BOB, '10.1.0.78')).toEqual([]);
  });

  it('are reserved by a grant that names them, from the enrolment on, whoever had them before', async () => {
    await subnet.member('bob');
    await announce(BOB, '10.1.0.2');
    await subnet.member('alice', { ips: ['10.1.0.2', '2001:DB8::2/128', '10.9.0.0/16'] });
    expect(await row('10.1.0.2')).toBe(`granted alice ${macOf('alice')}`);
    expect(await row('2001:db8::2')).toBe(`granted alice ${macOf('alice')}`);
    time += 100 * HOUR;
    await bindings.tick();
    expect(await announce(BOB, '10.1.0.2')).toEqual(['10.1.0.2']);
    expect(await row('10.1.0.2')).toBe(`granted alice ${macOf('alice')}`);
    expect(await audited('ip_taken')).toHaveLength(1);
  });

  it('follow the MAC addresses and the grant of a member that enrols again', async () => {
    const alice = await subnet.enrolled('alice', { ips: ['10.1.0.2'], macs: [SECOND, THIRD] });
    expect(await row('10.1.0.2')).toBe(`granted alice ${SECOND}`);
    // It moves its own address between its own interfaces.
    expect(await announce(ALICE, '10.1.0.2', THIRD)).toEqual([]);
    expect(await row('10.1.0.2')).toBe(`granted alice ${THIRD}`);
    await announce(ALICE, 'fe80::2', SECOND);
    await announce(ALICE, 'fe80::3', THIRD);

    await alice.enrol(subnet.token({ id: 'alice', ips: ['10.1.0.2', '10.1.0.3'], macs: [THIRD] }));
    expect(await row('10.1.0.2')).toBe(`granted alice ${THIRD}`);
    expect(await row('10.1.0.3')).toBe(`granted alice ${THIRD}`);
    expect(await row('fe80::2')).toBeUndefined();
    expect(await row('fe80::3')).toBe(`seen alice ${THIRD}`);

    await alice.enrol(subnet.token({ id: 'alice', ips: ['10.1.0.3'], macs: [SECOND] }));
    expect(await row('10.1.0.2')).toBeUndefined();
    expect(await row('10.1.0.3')).toBe(`granted alice ${SECOND}`);
    expect(await row('fe80::3')).toBeUndefined();
  });

  it('are free again when their member is revoked, and 24 hours after they were last announced', async () => {
    await subnet.member('alice', { ips: ['10.1.0.2', '10.1.0.0/24'] });
    await subnet.member('bob');
    await announce(ALICE, '10.1.0.3');
    await announce(BOB, '10.1.0.4');
    await subnet.admin().request({ t: 'revoke', member: 'alice' });
    expect(await row('10.1.0.2')).toBeUndefined();
    expect(await row('10.1.0.3')).toBeUndefined();
    expect(await announce(BOB, '10.1.0.2')).toEqual([]);

    told.length = 0;
    time += 24 * HOUR - MINUTE;
    await announce(BOB, '10.1.0.2');
    time += 2 * MINUTE;
    await bindings.tick();
    expect(await row('10.1.0.4')).toBeUndefined();
    expect(await row('10.1.0.2')).toBe(`seen bob ${macOf('bob')}`);
    expect(told).toEqual(['10.1.0.4']);
    // What was freed is remembered for as long as anybody may have missed it.
    time += 47 * HOUR;
    await announce(BOB, '10.1.0.2');
    await bindings.tick();
    expect(await subnet.store.binding('10.1.0.4')).toBeDefined();
    time += 2 * HOUR;
    await bindings.tick();
    expect(await subnet.store.binding('10.1.0.4')).toBeUndefined();
  });

  it('stay where the operator has pinned them until they are freed', async () => {
    await subnet.member('alice');
    await subnet.member('bob', { ips: ['10.1.0.9'] });
    await announce(ALICE, '10.1.0.1');
    await bindings.pin(ADMIN, { ip: '10.1.0.1', mac: ROUTER });
    expect(await row('10.1.0.1')).toBe(`pinned - ${ROUTER}`);
    time += 100 * HOUR;
    await bindings.tick();
    expect(await announce(ALICE, '10.1.0.1')).toEqual(['10.1.0.1']);
    await expect(
      subnet.member('carol', { ips: ['10.1.0.1'] }).then(() => 'enrolled'),
    ).rejects.toMatchObject({ code: 'refused' });

    for (const [ip, mac] of [
      ['10.1.0.9', ROUTER],
      ['224.0.0.1', ROUTER],
      ['10.1.0.8', 'ff:ff:ff:ff:ff:ff'],
    ] as const) {
      await expect(
        bindings.pin(ADMIN, { ip, mac: mac as MacAddress }),
        `${ip} ${mac}`,
      ).rejects.toMatchObject({ kind: 'pin_address' });
    }
    await expect(bindings.free(ADMIN, '10.1.0.9')).rejects.toMatchObject({ kind: 'free_address' });
    await expect(bindings.free(ADMIN, '10.7.7.7')).rejects.toThrow();

    expect(await bindings.free(ADMIN, '10.1.0.1')).toEqual({ was: 'pinned', mac: ROUTER });
    expect(await announce(ALICE, '10.1.0.1')).toEqual([]);
    expect(await bindings.free(ADMIN, '10.1.0.1')).toEqual({ was: 'seen', mac: macOf('alice') });
    expect(await announce(BOB, 'fe80::9')).toEqual([]);
    expect((await audited('ip_pin')).length + (await audited('ip_free')).length).toBe(3);
  });

  it('of a virtual router go from one of its members to the other, and stay when one is revoked', async () => {
    const shared = '00:00:5e:00:01:07' as MacAddress;
    const wish = { macs: [shared], ips: ['10.1.0.1'], rights: ['shared'] as const };
    await subnet.member('alice', { ...wish, rights: [...wish.rights] });
    await subnet.member('bob', { ...wish, rights: [...wish.rights] });
    expect(await announce(BOB, '10.1.0.1', shared)).toEqual([]);
    expect(await announce(ALICE, '10.1.0.1', shared)).toEqual([]);
    await subnet.admin().request({ t: 'revoke', member: 'alice' });
    expect(await row('10.1.0.1')).toBe(`granted bob ${shared}`);
  });

  it('are at most 64 of one member: the one that was not announced for longest goes', async () => {
    await subnet.member('alice');
    await subnet.member('bob', { ips: ['10.1.0.1', '10.0.0.0/8'] });
    for (let at = 0; at < MAX_SEEN; at += 1) {
      time += 1_000;
      await announce(ALICE, `10.0.1.${at}`);
      await announce(BOB, `10.0.2.${at}`);
    }
    await announce(ALICE, '10.0.1.0');
    time += 1_000;
    told.length = 0;
    expect(await announce(ALICE, '10.0.1.200')).toEqual([]);
    expect(told).toEqual(['10.0.1.1', '10.0.1.200']);
    expect(await row('10.0.1.1')).toBeUndefined();
    expect(await row('10.0.1.0')).toBeDefined();
    expect(await counted('displaced')).toBe(1);
    // What a grant reserves is not counted, and never gives way.
    await announce(BOB, '10.0.2.200');
    expect(await row('10.1.0.1')).toBeDefined();
    expect(await subnet.store.bindingsOf(BOB)).toHaveLength(MAX_SEEN + 1);
  });

  it(
    'are so many in all and no more; the last places are for what the operator says',
    async () => {
      await subnet.member('alice');
      await subnet.member('bob');
      await fill('seen', MAX_BINDINGS - FOR_OPERATOR - 1);
      expect(await announce(ALICE, '10.0.0.2')).toEqual([]);
      expect(await announce(BOB, '10.0.0.3')).toEqual(['10.0.0.3']);
      expect(await counted('full')).toBe(1);
      // Whoever has one keeps it.
      expect(await announce(ALICE, '10.0.0.2')).toEqual([]);
      await bindings.pin(ADMIN, { ip: '10.0.0.4', mac: ROUTER });
      await fill('seen', FOR_OPERATOR - 2, 1);
      await bindings.pin(ADMIN, { ip: '10.0.0.5', mac: ROUTER });
      await expect(bindings.pin(ADMIN, { ip: '10.0.0.6', mac: ROUTER })).rejects.toMatchObject({
        code: 'limit',
        kind: 'pin_address',
      });
      // One that has its row can still be pinned.
      await bindings.pin(ADMIN, { ip: '10.0.0.2', mac: ROUTER });
      expect(await row('10.0.0.2')).toBe(`pinned - ${ROUTER}`);
      await expect(subnet.member('carol', { ips: ['10.0.0.7'] })).rejects.toThrow(
        /65536 IP addresses/,
      );
    },
    BULK_MS,
  );

  it('are pinned so often and no more; one that is pinned can be pinned elsewhere', async () => {
    await fill('pinned', MAX_IP_PINS - 1);
    await bindings.pin(ADMIN, { ip: '10.0.0.4', mac: ROUTER });
    const another = bindings.pin(ADMIN, { ip: '10.0.0.5', mac: ROUTER });
    await expect(another).rejects.toMatchObject({ code: 'limit', kind: 'pin_address' });
    await bindings.pin(ADMIN, { ip: '10.0.0.4', mac: SECOND });
    expect(await row('10.0.0.4')).toBe(`pinned - ${SECOND}`);
    await bindings.free(ADMIN, '10.0.0.4');
    await bindings.pin(ADMIN, { ip: '10.0.0.5', mac: ROUTER });
    expect(await row('10.0.0.5')).toBe(`pinned - ${ROUTER}`);
  });

  it('change so often at the word of one member and no more, since everybody is told', async () => {
    await subnet.member('alice', { macs: [SECOND, THIRD] });
    let moves = 0;
    for (let at = 0; at < 600; at += 1) {
      time += 100;
      const refused = await announce(ALICE, '10.0.0.2', at % 2 === 0 ? SECOND : THIRD);
      if (refused.length === 0) moves += 1;
    }
    expect(told.length).toBeLessThan(260);
    expect(moves).toBeGreaterThan(200);
    time += 10_000;
    const burst = Array.from({ length: 100 }, () => announce(ALICE, '10.0.0.2').catch(String));
    expect((await Promise.all(burst)).filter((one) => `${one}`.includes('too many')).length).toBe(
      36,
    );
  });

  it('never get into the hands of somebody else, whatever is announced in whatever order', async () => {
    const ids = ['alice', 'bob', 'carol'].map(parseId);
    await subnet.member('alice', { ips: ['10.0.0.0', '10.0.0.0/30', 'fd00::/8'] });
    await subnet.member('bob');
    await subnet.member('carol', { macs: [SECOND, THIRD] });
    const macs = [macOf('alice'), macOf('bob'), SECOND, THIRD, ROUTER];
    const ownerOf = (mac: MacAddress) => ids[[0, 1, 2, 2][macs.indexOf(mac)] ?? -1];
    await bindings.pin(ADMIN, { ip: '10.0.0.3', mac: ROUTER });
    // What everybody was told, kept as a gateway keeps it.
    const held = new Map<string, string>();
    let cursor = 0;
    const hear = async (rows: number): Promise<boolean> => {
      const epoch = subnet.store.meta.epoch;
      const batch = await collect(services, BOB, { cursor, epoch }, rows);
      for (const change of batch.changes) {
        if (change.kind === 'ip') held.set(change.ip, change.mac);
        if (change.kind === 'ip.freed') held.delete(change.ip);
      }
      cursor = batch.cursor;
      return batch.more;
    };
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            by: fc.nat({ max: 2 }),
            ip: fc.constantFrom('10.0.0.0', '10.0.0.1', '10.0.0.2', '10.0.0.3', 'fe80::1'),
            // Null: one of its own.
            mac: fc.option(fc.constantFrom(...macs), { freq: 3 }),
            later: fc.constantFrom(1_000, 1_000, 61_000, 61_000, 3_600_000, 90_000_000),
            rows: fc.integer({ min: 1, max: 4 }),
          }),
          { maxLength: 15 },
        ),
        async (steps) => {
          for (const { by, ip, mac: chosen, later, rows } of steps) {
            const id = ids[by] as Id;
            const mac = chosen ?? macs.find((one) => ownerOf(one) === id) ?? ROUTER;
            const before = await subnet.store.binding(ip);
            time += later;
            const refused = await announce(id, ip, mac);
            const after = await subnet.store.binding(ip);
            if (refused.length === 0) {
              expect(ownerOf(mac)).toBe(id);
              expect(after?.mac).toBe(mac);
            } else {
              expect(after).toEqual(before);
            }
            if (before?.kind === 'seen' && after?.member !== before.member) {
              expect(time - before.refreshed).toBeGreaterThanOrEqual(HOUR);
            }
            await hear(rows);
          }
          expect(await row('10.0.0.3')).toBe(`pinned - ${ROUTER}`);
          expect(await row('10.0.0.0')).toMatch(/^granted alice/);
          await bindings.tick();
          while (await hear(3)) {
            // the next page
          }
          const all = await subnet.store.listBindings(0, 1_000);
          expect(Object.fromEntries(held)).toEqual(
            Object.fromEntries(all.map(({ ip, mac }) => [ip, mac])),
          );
        },
      ),
      { numRuns: 25 },
    );
  });
});

describe('who is told of IP addresses', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
  });
  afterEach(() => subnet.close());

  it('is everybody: what is so by sync, what changes by a push', async () => {
    const alice = await subnet.member('alice', { ips: ['10.1.0.2'] });
    const gate = await subnet.member('gate', { role: 'plain' });
    const bob = await subnet.member('bob');
    const first = await gate.sync();
    expect(first.changes.filter(isIp)).toMatchObject([
      { kind: 'ip', ip: '10.1.0.2', mac: macOf('alice') },
    ]);
    await bob.sync();
    const answer = await bob.client.request({
      t: 'bind',
      entries: [
        { ip: '2001:DB8:0:0::7', mac: macOf('bob') },
        { ip: '10.1.0.2', mac: macOf('bob') },
      ],
    });
    expect(answer).toMatchObject({ refused: ['10.1.0.2'] });
    const heard = (ip: string, kind: string) =>
      gate.pushed().some((change) => change.kind === kind && 'ip' in change && change.ip === ip);
    await until(() => heard('2001:db8::7', 'ip'), 'the push');
    await alice.client.request({
      t: 'guarded',
      entries: [{ kind: 'arp', peer: 'bob', mac: macOf('bob'), ip: '10.1.0.2', count: 4 }],
    });

    const admin = subnet.admin();
    await admin.request({ t: 'ip.pin', ip: '10.1.0.1', mac: ROUTER });
    await until(() => heard('10.1.0.1', 'ip'), 'the pin');
    gate.client.stop();
    await admin.request({ t: 'revoke', member: 'bob' });
    await admin.request({ t: 'ip.free', ip: '10.1.0.1' });
    gate.connect();
    const later = await gate.sync(first.cursor, first.epoch);
    expect(later.changes.filter(isIp)).toMatchObject([
      { kind: 'ip.freed', ip: '2001:db8::7' },
      { kind: 'ip.freed', ip: '10.1.0.1' },
    ]);
    const { rows } = (await admin.request({ t: 'list', what: 'ips' })) as unknown as {
      rows: unknown[];
    };
    expect(rows).toMatchObject([
      { ip: '10.1.0.2', mac: macOf('alice'), member: 'alice', kind: 'granted' },
    ]);
    expect((await subnet.audit()).filter(({ action }) => action === 'arp_spoof')).toMatchObject([
      { actor: 'alice', detail: { peer: 'bob', ip: '10.1.0.2', frames: 4 } },
    ]);
  });
});

describe('what gateways refused', () => {
  it('is written down once for each source, kind and minute, and a flood uses up its own quota only', async () => {
    const subnet = await TestSubnet.start();
    let time = Date.now();
    const services = await servicesOf(subnet, undefined, () => time);
    const reports = new GuardReports(services);
    const mac = macOf('mallory');
    for (let at = 0; at < 3; at += 1) {
      time += 10_000;
      reports.report(ALICE, [
        { kind: 'arp', peer: parseId('mallory'), mac, ip: `10.0.0.${at}`, count: 5 },
        { kind: 'ra', peer: parseId('mallory'), mac, count: 1 },
        { kind: 'dhcp', mac: ROUTER, count: 1 },
      ]);
    }
    expect(() => {
      for (let at = 0; at < 30; at += 1) reports.report(ALICE, []);
    }).toThrow('too many');
    for (let at = 0; at < 300; at += 1) {
      time += 1_000;
      const from = parseId(`m${at}`);
      reports.report(BOB, [{ kind: 'nd', peer: from, mac, count: 1 }]);
    }
    await services.audit.close();
    const entries = await subnet.audit();
    const firsts = (action: string, actor: string) =>
      entries.filter(
        (one) =>
          one.action === action &&
          one.actor === actor &&
          !JSON.stringify(one.detail).includes('repeated'),
      );
    for (const action of ['arp_spoof', 'ra_guard', 'dhcp_guard']) {
      expect(firsts(action, 'alice'), action).toHaveLength(1);
    }
    expect(firsts('arp_spoof', 'alice')[0]?.detail).toMatchObject({ peer: 'mallory', frames: 5 });
    expect(firsts('nd_spoof', 'bob')).toHaveLength(120);
    await subnet.close();
  });
});
