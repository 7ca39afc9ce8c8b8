/**
 * Addresses outside: whose word counts, where frames for an address go, and who is told. What is or was
 * a member's own never leads to a plain port (threats.md C2, C3, M9).
 */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { choose } from '../../../keyserver/init.js';
import { locate, locateSettled, REPORT_WAIT_MS } from '../../../keyserver/registry/directory.js';
import { MAX_LEARNED, MAX_PINS, PlainSide } from '../../../keyserver/registry/plain-side.js';
import type { Services } from '../../../keyserver/services.js';
import { collectPlain } from '../../../keyserver/sync/collect-plain.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import {
  defaultMac,
  type MacAddress,
  macFromBytes,
  macToBytes,
} from '../../../src/protocol/mac.js';
import { answerSchemas, type Change, MAX_REPORTED } from '../../../src/protocol/messages.js';
import { signRecord } from '../../../src/protocol/signed.js';
import { servicesOf } from './support/services.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, sleep, type TestMember, TestSubnet, until } from './support/subnet.js';

/** Tens of thousands of rows, one by one: each costs PostgreSQL a round trip. */
const BULK_MS = ON_POSTGRES ? 600_000 : 60_000;

const ROUTER = '0a:00:00:00:00:01' as MacAddress;
const PRINTER = '0a:00:00:00:00:02' as MacAddress;
const STRANGER = '0a:00:00:00:00:99' as MacAddress;

/** An address for a number. */
function nth(at: number): MacAddress {
  const bytes = Buffer.from([0x0a, 1, 0, 0, 0, 0]);
  bytes.writeUInt32BE(at, 2);
  return macFromBytes(bytes);
}

describe('addresses outside', () => {
  let subnet: TestSubnet;
  let services: Services;
  let side: PlainSide;
  let time: number;
  let seq: number;
  let told: string[];

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    time = Date.now();
    seq = 0;
    told = [];
    services = await servicesOf(subnet, undefined, () => time);
    side = new PlainSide(
      services,
      (vlan, mac) => told.push(`${vlan} ${mac}`),
      (mac) => told.push(`freed ${mac}`),
    );
  });
  afterEach(async () => {
    await services.audit.close();
    await subnet.close();
  });

  async function gates(...ids: string[]): Promise<void> {
    for (const id of ids) await subnet.member(id, { role: 'plain' });
  }

  function seen(id: string, mac: MacAddress, more: { vlan?: number; ago?: number } = {}) {
    seq += 1;
    const { vlan = 0, ago = 0 } = more;
    return side.report(parseId(id), {
      t: 'learned',
      id: 1,
      entries: [{ vlan, mac: macToBytes(mac), seq, ago }],
      gone: [],
    });
  }

  function gone(id: string, mac: MacAddress, vlan = 0) {
    const entry = { vlan, mac: macToBytes(mac) };
    return side.report(parseId(id), { t: 'learned', id: 1, entries: [], gone: [entry] });
  }

  async function place(asker: string, mac: MacAddress, vlan = 0) {
    const member = await subnet.store.member(parseId(asker));
    if (member === undefined) throw new Error(`no ${asker}`);
    const { place: found } = await locate(services, member, vlan, mac);
    return found === undefined
      ? 'nowhere'
      : { id: found.member.id as string, behind: found.behind !== undefined };
  }

  async function rules(choice: Parameters<typeof choose>[2]): Promise<void> {
    const before = services.settings.settings;
    const next = choose(before, before.version + 1, choice);
    const record = signRecord(LABEL.settings, next, subnet.operator);
    await services.settings.install(subnet.store, record, time);
  }

  async function audited(action: string) {
    await services.audit.close();
    return (await subnet.audit()).filter((entry) => entry.action === action);
  }

  it('are pinned so often and no more, freed ones included; one that was pinned can be pinned again', async () => {
    await gates('g1', 'g2');
    const admin = parseId('operator');
    await subnet.store.write(async (tx) => {
      for (let at = 1; at < MAX_PINS; at += 1) {
        const changed = await tx.nextChange();
        await tx.putLearned({
          vlan: 0,
          mac: nth(at),
          member: parseId('g1'),
          since: time,
          sighted: time,
          sighting: 0,
          refreshed: time,
          moves: [],
          held: {},
          frozenUntil: 0,
          pinned: true,
          kept: true,
          serial: changed,
          changed,
        });
      }
    });
    await side.pin(admin, 0, ROUTER, parseId('g1'));
    await expect(side.pin(admin, 0, PRINTER, parseId('g1'))).rejects.toMatchObject({
      code: 'limit',
      kind: 'pin_address',
    });
    await side.free(admin, ROUTER);
    await expect(side.pin(admin, 0, PRINTER, parseId('g1'))).rejects.toMatchObject({
      code: 'limit',
    });
    await side.pin(admin, 0, ROUTER, parseId('g2'));
    expect((await subnet.store.learned(0, ROUTER))?.member).toBe('g2');
  });

  it('that many ports had: whoever had it for the shortest time is forgotten, of seventeen', async () => {
    const ids = Array.from({ length: 18 }, (_, at) => `g${at}`);
    await gates(...ids);
    // g0 has it for 31 s, g1 for 32, and so on: too seldom to be frozen.
    for (const [at, id] of ids.entries()) {
      await seen(id, ROUTER);
      if (at === 16) {
        const row = await subnet.store.learned(0, ROUTER);
        expect(Object.keys(row?.held ?? {}).sort()).toEqual(ids.slice(0, 16).sort());
      }
      time += (31 + at) * 1_000;
    }
    const row = await subnet.store.learned(0, ROUTER);
    expect(row?.member).toBe('g17');
    expect(Object.keys(row?.held ?? {}).sort()).toEqual(ids.slice(1, 17).sort());
  });

  it('lead to the port that has seen them, by VLAN', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    await seen('g1', ROUTER, { vlan: 0 });
    await seen('g2', ROUTER, { vlan: 7 });
    expect(await place('alice', ROUTER, 0)).toEqual({ id: 'g1', behind: true });
    expect(await place('alice', ROUTER, 7)).toEqual({ id: 'g2', behind: true });
    expect(await place('alice', ROUTER, 8)).toBe('nowhere');
    expect(told).toEqual([`0 ${ROUTER}`, `7 ${ROUTER}`]);
    // To the port itself they are where they are.
    expect(await place('g1', ROUTER, 0)).toBe('nowhere');
    expect(await place('g2', ROUTER, 0)).toEqual({ id: 'g1', behind: true });
  });

  it('never override a member, whether it is online, offline, revoked or has another address now', async () => {
    await gates('g1');
    await rules({ unknown: 'plain' });
    const alice = await subnet.member('alice');
    const mac = defaultMac(SUBNET, 'alice');
    await subnet.member('bob');
    expect(await seen('g1', mac)).toBe(1);
    expect(await place('bob', mac)).toEqual({ id: 'alice', behind: false });
    alice.client.stop();
    expect(await place('bob', mac)).toEqual({ id: 'alice', behind: false });

    await subnet.admin().request({ t: 'revoke', member: 'alice' });
    expect(await seen('g1', mac)).toBe(1);
    expect(await place('bob', mac)).toBe('nowhere');
    // A stranger's address goes where the settings say, so the refusal is the tombstone's doing.
    expect(await place('bob', STRANGER)).toEqual({ id: 'g1', behind: true });

    const carol = await subnet.member('carol');
    const before = defaultMac(SUBNET, 'carol');
    await carol.enrol(subnet.token({ id: 'carol', macs: [nth(1)] }));
    expect(await place('bob', before)).toBe('nowhere');
    expect(await seen('g1', before)).toBe(1);

    const entries = await audited('learned_own');
    expect(entries.map(({ actor }) => actor)).toContain('g1');
    // Two addresses, one of them twice within a minute: one entry and its repeat.
    expect(entries.filter(({ detail }) => JSON.stringify(detail).includes(mac))).toHaveLength(1);
    expect(JSON.stringify(entries)).toContain(before);
  });

  it('are nobody else’s than a tombstone’s until the operator frees it', async () => {
    await gates('g1');
    await subnet.member('alice');
    await subnet.member('bob');
    const mac = defaultMac(SUBNET, 'alice');
    await expect(side.free(parseId('admin'), mac)).rejects.toMatchObject({ kind: 'free_address' });
    await subnet.admin().request({ t: 'revoke', member: 'alice' });
    expect(await seen('g1', mac)).toBe(1);
    expect(await side.free(parseId('admin'), mac)).toEqual({ tombstones: 1, pins: 0 });
    expect(told).toContain(`freed ${mac}`);
    expect(await seen('g1', mac)).toBe(0);
    expect(await place('bob', mac)).toEqual({ id: 'g1', behind: true });
    await expect(side.free(parseId('admin'), STRANGER)).rejects.toThrow();
  });

  it('go to the default plain port if nobody knows them and the settings say so', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    expect(await place('alice', STRANGER)).toBe('nowhere');
    await rules({ unknown: 'plain' });
    expect(await place('alice', STRANGER)).toEqual({ id: 'g1', behind: true });
    await rules({ defaultPlain: parseId('g2') });
    expect(await place('alice', STRANGER)).toEqual({ id: 'g2', behind: true });
    // One bridge's strangers are not flooded into the other.
    expect(await place('g1', STRANGER)).toBe('nowhere');
    await rules({ defaultPlain: null });
    await subnet.store.write(async (tx) =>
      tx.updatePresence(parseId('g1'), { online: false }, await tx.nextChange()),
    );
    expect(await place('alice', STRANGER)).toEqual({ id: 'g2', behind: true });
  });

  it('wait for the report of the port that has just seen them, if there are several', async () => {
    await gates('g1', 'g2');
    await rules({ unknown: 'plain' });
    const alice = await subnet.store.member(await subnet.member('alice').then(({ id }) => id));
    if (alice === undefined) throw new Error('no alice');
    const ask = locateSettled(services, alice, 0, PRINTER);
    await sleep(30);
    await seen('g2', PRINTER);
    expect((await ask)?.member.id).toBe('g2');
    // Of one that nobody reports the default is told, soon enough for frames that wait.
    expect((await locateSettled(services, alice, 0, STRANGER))?.member.id).toBe('g1');
    // What is or was somebody's own needs no port.
    const waits: number[] = [];
    for (let time = 0; time < 5; time += 1) {
      const asked = performance.now();
      const found = await locateSettled(services, alice, 0, defaultMac(SUBNET, 'alice'));
      expect(found).toBeUndefined();
      waits.push(performance.now() - asked);
    }
    expect(Math.min(...waits)).toBeLessThan(REPORT_WAIT_MS);
  });

  it('move with the newer sighting, in whatever order reports come', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    time += 60_000;
    await seen('g2', PRINTER);
    // Seen at g1 before, reported later.
    await seen('g1', PRINTER, { ago: 5_000 });
    expect(await place('alice', PRINTER)).toEqual({ id: 'g2', behind: true });
    time += 1_000;
    await seen('g1', PRINTER);
    expect(await place('alice', PRINTER)).toEqual({ id: 'g1', behind: true });
    // The old port notices that it is gone: that changes nothing.
    await gone('g2', PRINTER);
    expect(await place('alice', PRINTER)).toEqual({ id: 'g1', behind: true });
    await gone('g1', PRINTER);
    expect(await place('alice', PRINTER)).toBe('nowhere');
  });

  it('freeze where they were longest when they flap, and thaw', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    await seen('g1', ROUTER);
    time += 3_600_000;
    await seen('g1', ROUTER);
    // An attacker on the other side sends with the router's source; the router goes on too.
    for (let at = 0; at < 5; at += 1) {
      time += 1_000;
      await seen(at % 2 === 0 ? 'g2' : 'g1', ROUTER);
    }
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    time += 100_000;
    expect(await seen('g2', ROUTER)).toBe(1);
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    // Nor can the port that has it lose it meanwhile.
    await gone('g1', ROUTER);
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    const frozen = await subnet.store.learned(0, ROUTER);
    expect(frozen?.frozenUntil).toBeGreaterThan(time);

    time += 250_000;
    await seen('g1', ROUTER);
    told.length = 0;
    await side.tick();
    expect(told).toEqual([`0 ${ROUTER}`]);
    time += 1;
    expect(await seen('g2', ROUTER)).toBe(0);
    expect(await place('alice', ROUTER)).toEqual({ id: 'g2', behind: true });
    expect(await audited('address_flaps')).toHaveLength(1);
  });

  it('do not freeze for moving now and then', async () => {
    await gates('g1', 'g2');
    for (let at = 0; at < 12; at += 1) {
      time += 10_000;
      expect(await seen(at % 2 === 0 ? 'g2' : 'g1', ROUTER)).toBe(0);
    }
    expect((await subnet.store.learned(0, ROUTER))?.frozenUntil).toBe(0);
  });

  it('stay where they are pinned, whatever is seen where', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    const admin = parseId('admin');
    await side.pin(admin, 0, ROUTER, parseId('g1'));
    expect(await seen('g2', ROUTER)).toBe(1);
    await gone('g1', ROUTER);
    time += 3_600_000;
    await side.tick();
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    await expect(side.pin(admin, 0, defaultMac(SUBNET, 'alice'), parseId('g1'))).rejects.toThrow();
    await expect(side.pin(admin, 0, ROUTER, parseId('alice'))).rejects.toThrow();
    expect(await side.free(admin, ROUTER)).toEqual({ tombstones: 0, pins: 1 });
    expect(await seen('g2', ROUTER)).toBe(0);
    expect(await place('alice', ROUTER)).toEqual({ id: 'g2', behind: true });
    expect((await audited('learned_pinned')).map(({ actor }) => actor)).toEqual(['g2']);
  });

  it('age when their port says nothing of them for 15 minutes, and go with it when it is revoked', async () => {
    await gates('g1', 'g2');
    await subnet.member('alice');
    await seen('g1', PRINTER);
    await seen('g1', ROUTER);
    time += 600_000;
    await seen('g1', ROUTER);
    time += 301_000;
    expect(await place('alice', PRINTER)).toBe('nowhere');
    await side.tick();
    expect((await subnet.store.learned(0, PRINTER))?.member).toBeUndefined();
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    await subnet.admin().request({ t: 'revoke', member: 'g1' });
    expect(await place('alice', ROUTER)).toBe('nowhere');
    await expect(seen('g1', ROUTER)).rejects.toMatchObject({ kind: 'unknown_member' });
    time += 3_600_000;
    await side.tick();
    expect(await subnet.store.learned(0, PRINTER)).toBeUndefined();
  });

  it('can not keep a member out whose address is made of its id', async () => {
    await gates('g1');
    const mac = defaultMac(SUBNET, parseId('dave'));
    await seen('g1', mac);
    await subnet.member('dave');
    await subnet.member('alice');
    expect(await place('alice', mac)).toEqual({ id: 'dave', behind: false });
    expect(await seen('g1', mac)).toBe(1);
  });

  it('are nobody’s when the member that they were behind gets another role', async () => {
    const gate = await subnet.member('g1', { role: 'plain' });
    await subnet.member('alice');
    await seen('g1', ROUTER);
    await side.pin(parseId('operator'), 0, PRINTER, parseId('g1'));
    expect(await place('alice', ROUTER)).toEqual({ id: 'g1', behind: true });
    await gate.enrol(subnet.token({ id: 'g1', role: 'host' }));
    expect(await place('alice', ROUTER)).toBe('nowhere');
    expect(await place('alice', PRINTER)).toBe('nowhere');
  });

  it('are at most 8,192 of one port: new ones are refused, old ones kept', async () => {
    await gates('g1', 'g2');
    const id = parseId('g1');
    let refused = 0;
    for (let from = 0; from < MAX_LEARNED + 300; from += MAX_REPORTED) {
      time += 1_000;
      const entries = Array.from({ length: MAX_REPORTED }, (_unused, at) => ({
        vlan: 0,
        mac: macToBytes(nth(from + at)),
        seq: 1,
        ago: 0,
      }));
      refused += await side.report(id, { t: 'learned', id: 1, entries, gone: [] });
    }
    expect(await subnet.store.countLearned(id)).toBe(MAX_LEARNED);
    expect(refused).toBe(2 * MAX_REPORTED);
    expect((await subnet.store.learned(0, nth(0)))?.member).toBe('g1');
    // The flood is g1's alone.
    expect(await seen('g2', ROUTER)).toBe(0);
  });

  it(
    'that come and go fill no disk',
    async () => {
      await gates('g1');
      const id = parseId('g1');
      let refused = 0;
      let rows = 0;
      for (let from = 0; from < 16_384 + 2 * MAX_REPORTED; from += MAX_REPORTED) {
        time += 100;
        const macs = Array.from({ length: MAX_REPORTED }, (_unused, at) => nth(from + at));
        const entries = macs.map((mac) => ({ vlan: 0, mac: macToBytes(mac), seq: 1, ago: 0 }));
        const goodbyes = macs.map((mac) => ({ vlan: 0, mac: macToBytes(mac) }));
        refused += await side.report(id, { t: 'learned', id: 1, entries, gone: goodbyes });
        for (const mac of macs) rows += (await subnet.store.learned(0, mac)) === undefined ? 0 : 1;
      }
      expect(await subnet.store.countLearned(id)).toBe(0);
      expect(refused).toBeGreaterThan(MAX_REPORTED);
      expect(rows).toBeLessThan(16_384 + MAX_REPORTED);
    },
    BULK_MS,
  );

  it('are reported so often and no more', async () => {
    await gates('g1');
    const reports = Array.from({ length: 80 }, () => seen('g1', PRINTER).then(() => 'ok', String));
    const outcomes = await Promise.all(reports);
    expect(outcomes.filter((one) => one === 'ok')).toHaveLength(64);
  });

  it('take no group address, nor word of a member that is no plain one', async () => {
    await gates('g1');
    await subnet.member('alice');
    expect(await seen('g1', 'ff:ff:ff:ff:ff:ff' as MacAddress)).toBe(1);
    expect(await seen('g1', '00:00:00:00:00:00' as MacAddress)).toBe(1);
    await expect(seen('alice', PRINTER)).rejects.toMatchObject({ kind: 'unknown_member' });
  });
});

describe('who is told of the plain side', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
  });
  afterEach(() => subnet.close());

  const report = (gate: TestMember, mac: MacAddress, ago = 0) =>
    gate.client.request({
      t: 'learned',
      entries: [{ vlan: 0, mac: macToBytes(mac), seq: Date.now(), ago }],
      gone: [],
    });

  const sync = (member: TestMember, plain: number, epoch?: Uint8Array) =>
    member.client.request(
      { t: 'sync', cursor: 0, plain, epoch },
      { parse: (answer) => answerSchemas.sync.parse(answer) },
    );
  const outside = (changes: readonly Change[]) =>
    changes.filter(({ kind }) => kind === 'own' || kind === 'own.freed' || kind === 'behind');

  it('plain members, and others from their first key with one', async () => {
    const gate = await subnet.member('g1', { role: 'plain' });
    const alice = await subnet.member('alice');
    const bob = await subnet.member('bob');
    for (const one of [gate, alice, bob]) await one.sync();
    await report(gate, ROUTER);
    const before = await sync(alice, 0);
    expect(before.plain).toBeUndefined();
    expect(outside(before.changes)).toEqual([]);

    const answer = await alice.keyByMac(ROUTER);
    expect(answer).toMatchObject({
      kind: 'pair',
      peer: { id: 'g1' },
      behind: { vlan: 0, mac: ROUTER, pinned: false },
    });
    const after = await sync(alice, 0);
    const macs = outside(after.changes).map((one) =>
      'mac' in one ? `${one.kind} ${one.mac}` : '',
    );
    for (const id of ['alice', 'bob', 'g1'])
      expect(macs).toContain(`own ${defaultMac(SUBNET, id)}`);
    expect(macs).toContain(`behind ${ROUTER}`);
    // Nothing twice.
    expect(outside((await sync(alice, after.plain ?? 0, after.epoch)).changes)).toEqual([]);

    await report(gate, PRINTER);
    const has = (member: TestMember) =>
      outside(member.pushed()).some((one) => 'mac' in one && one.mac === PRINTER);
    await until(() => has(alice) && has(gate), 'the push');
    expect(has(bob)).toBe(false);
    expect(outside((await sync(bob, 0)).changes)).toEqual([]);
  });

  it('a member that was away of a move, of a port that is gone and of a freed address', async () => {
    const g1 = await subnet.member('g1', { role: 'plain' });
    const g2 = await subnet.member('g2', { role: 'plain' });
    const alice = await subnet.member('alice');
    await subnet.member('bob');
    await report(g1, ROUTER, 1_000);
    await report(g1, PRINTER, 1_000);
    await alice.keyByMac(ROUTER);
    const { plain = 0, epoch } = await sync(alice, 0);
    alice.client.stop();

    await report(g2, ROUTER);
    const admin = subnet.admin();
    await admin.request({ t: 'revoke', member: 'g1' });
    await admin.request({ t: 'revoke', member: 'bob' });
    await admin.request({ t: 'mac.free', mac: defaultMac(SUBNET, 'bob') });
    alice.connect();
    await alice.keyByMac(ROUTER);
    const changes = outside((await sync(alice, plain, epoch)).changes);
    expect(changes).toContainEqual(
      expect.objectContaining({ kind: 'behind', mac: ROUTER, member: 'g2' }),
    );
    const printer = changes.find((one) => one.kind === 'behind' && one.mac === PRINTER);
    expect(printer).toBeDefined();
    expect(printer).not.toHaveProperty('member');
    expect(changes).toContainEqual(
      expect.objectContaining({ kind: 'own.freed', mac: defaultMac(SUBNET, 'bob') }),
    );
  });

  it('of everything, whatever the pages and whatever happens between them', async () => {
    const services = await servicesOf(subnet);
    const side = new PlainSide(
      services,
      () => {},
      () => {},
    );
    const ids = ['g1', 'g2'].map(parseId);
    for (const id of ids) await subnet.member(id, { role: 'plain' });
    const [reader = ids[0] as Id] = ids;
    const held = new Map<string, string>();
    let cursor = 0;
    const page = async (rows: number): Promise<boolean> => {
      const batch = await collectPlain(services, reader, cursor, rows);
      if (batch === undefined) throw new Error('not told');
      for (const change of batch.changes) {
        if (change.seq <= cursor) throw new Error('told again');
        if (change.kind === 'behind') {
          held.set(`${change.vlan} ${change.mac}`, change.member ?? 'nobody');
        }
      }
      cursor = batch.cursor;
      return batch.more;
    };
    let seq = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            gate: fc.nat({ max: 1 }),
            mac: fc.nat({ max: 5 }),
            vlan: fc.nat({ max: 1 }),
            leaves: fc.boolean(),
            rows: fc.integer({ min: 1, max: 4 }),
          }),
          { maxLength: 12 },
        ),
        async (steps) => {
          for (const { gate, mac, vlan, leaves, rows } of steps) {
            const entry = { vlan, mac: macToBytes(nth(mac)) };
            seq += 1;
            await side
              .report(ids[gate] as Id, {
                t: 'learned',
                id: 1,
                entries: leaves ? [] : [{ ...entry, seq, ago: 0 }],
                gone: leaves ? [entry] : [],
              })
              .catch(() => 0);
            await page(rows);
          }
          while (await page(3)) {
            // the next page
          }
          const all = await subnet.store.learnedChanged({ after: 0, upTo: 1e9, limit: 1e6 });
          expect(Object.fromEntries(held)).toEqual(
            Object.fromEntries(
              all.map(({ vlan, mac, member }) => [`${vlan} ${mac}`, member ?? 'nobody']),
            ),
          );
        },
      ),
      { numRuns: 15 },
    );
    await services.audit.close();
  });
});
