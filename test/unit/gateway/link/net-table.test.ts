/** What a link port believes of other subnets, and what a contradiction stops. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Pins } from '../../../../gateway/key-table/pins.js';
import { Verifier } from '../../../../gateway/key-table/verifier.js';
import { NET_STARTS, type NetChange, NetTable } from '../../../../gateway/link/net-table.js';
import { isUsable } from '../../../../gateway/underlay.js';
import { type Id, parseId } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { importPublic } from '../../../../src/protocol/public-keys.js';
import { NOW, SUBNET, TestOperator, TestPeer } from '../support/records.js';
import { until } from '../support/until.js';
import { PORT, WatchedPort } from '../support/watched-port.js';

const OWN = parseId('zone');
const WEST = parseId('west');
const key = (byte: number) => Buffer.alloc(32, byte);

class Bench {
  readonly operator = new TestOperator();
  readonly gw = new TestPeer(this.operator, 'gw', [], 'link');
  readonly record = this.gw.record(7, 1);
  readonly refused: string[] = [];
  readonly failed: string[] = [];
  readonly prepared: string[] = [];
  now = 1_000;
  readonly #pins = new Map<Id, Pins>();
  readonly table: NetTable;

  constructor(
    dataPlane: WatchedPort,
    readonly dir: string,
    operator?: Uint8Array,
  ) {
    this.table = new NetTable({
      port: PORT,
      net: OWN,
      prefixes: ['10.1.0.0/16'],
      nets: new Map([[WEST, { prefixes: ['10.2.0.0/16', '10.3.0.0/16'], operator }]]),
      dataPlane,
      verifierOf: (net, subnet, theirs) => {
        const known = this.#pins.get(net);
        const pins =
          known?.isOf(subnet, theirs) === true
            ? known
            : new Pins(join(dir, `${net}.json`), theirs, subnet);
        pins.flush();
        this.#pins.set(net, pins);
        const input = { subnet, operator: importPublic('ed25519', theirs), pins, now: () => NOW };
        return new Verifier(input);
      },
      now: () => this.now,
      acceptsEndpoint: (endpoint) => isUsable(endpoint.ip, false),
      onRefused: (what, error) => this.refused.push(`${what}: ${error.code}`),
      onCommandFailed: (error) => this.failed.push(error.message),
      onPrepared: (net) => this.prepared.push(net),
    });
  }

  change(seq: number, more: Partial<NetChange> = {}): NetChange {
    return {
      ...{ kind: 'net', seq, net: WEST, subnet: SUBNET, operator: this.operator.public },
      ...{ prefixes: ['10.2.0.0/16'], key: key(1), pwId: 1, oldest: 1 },
      ports: [this.record],
      ...more,
    };
  }
}

describe('the nets of a link port', () => {
  let dir: string;
  let dataPlane: WatchedPort;
  let bench: Bench;
  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'pw-nets-'));
    dataPlane = await WatchedPort.make(join(dir, 's'), 'gw', defaultMac(SUBNET, 'gw'), 'home');
    bench = new Bench(dataPlane, dir);
    await bench.table.installAll(dataPlane.boot);
  });
  afterEach(async () => {
    expect(bench.failed).toEqual([]);
    await dataPlane.close();
    rmSync(dir, { recursive: true, force: true });
  });

  it('has prefixes, link ports and keys installed, as far as the configuration names them', async () => {
    bench.table.take(bench.change(5, { prefixes: ['10.2.8.0/24', '10.9.0.0/16'] }));
    expect(await dataPlane.holds()).toEqual(['west/gw 7 1']);
    expect(dataPlane.told()).toEqual([
      'routes.set ours: 10.1.0.0/16',
      'routes.set west: 10.2.8.0/24',
      'link.set west/gw',
      'key.pair west/gw 1',
    ]);
    // Said again it changes nothing.
    bench.table.take(
      bench.change(6, { prefixes: ['10.2.8.0/24'], ports: [...bench.change(5).ports] }),
    );
    await dataPlane.holds();
    expect(dataPlane.told().filter((one) => one.startsWith('key'))).toEqual([]);
  });

  it('goes by the time of the net with the smallest name, also of one that the configuration does not name', () => {
    expect(bench.table.ahead()).toBe(0);
    bench.table.take(bench.change(5, { ahead: -60_000 }));
    expect(bench.table.ahead()).toBe(-60_000);
    bench.table.take({ ...bench.change(6, { ahead: 7_000 }), net: parseId('east') });
    expect(bench.table.ahead()).toBe(7_000);
    bench.table.take({ ...bench.change(7, { ahead: 9_000 }), net: parseId('zz') });
    expect(bench.table.ahead()).toBe(7_000);
    bench.table.gone(parseId('east'));
    expect(bench.table.ahead()).toBe(-60_000);
    bench.table.take(bench.change(8));
    expect(bench.table.ahead()).toBe(0);
  });

  it('prepares the next generation, sends with it when told, and forgets the one before', async () => {
    bench.table.take(bench.change(1));
    bench.table.take(bench.change(2, { next: { key: key(2), pwId: 2 } }));
    await until('it is prepared', () => bench.prepared.length > 0);
    expect(bench.table.prepared()).toEqual([{ net: 'west', pwId: 2 }]);
    expect(await dataPlane.holds()).toEqual(['west/gw 7 1']);
    dataPlane.told();
    bench.table.take(bench.change(3, { key: key(2), pwId: 2 }));
    expect(await dataPlane.holds()).toEqual(['west/gw 7 2']);
    expect(bench.table.prepared()).toEqual([]);
    expect(dataPlane.told()).toContain('key.drop west/gw 1');
  });

  it('goes on with the next generation when a frame opened under it', async () => {
    bench.table.take(bench.change(2, { next: { key: key(2), pwId: 2 } }));
    bench.table.committed('west/gw', 2);
    expect(await dataPlane.holds()).toEqual(['west/gw 7 2']);
    // A change that was under way does not lead back.
    bench.table.take(bench.change(3, { next: { key: key(2), pwId: 2 } }));
    expect(await dataPlane.holds()).toEqual(['west/gw 7 2']);
  });

  it('hears nothing under generations before the oldest, at once', async () => {
    bench.table.take(bench.change(1));
    dataPlane.told();
    bench.table.take(bench.change(2, { key: key(9), pwId: 9, oldest: 9 }));
    expect(await dataPlane.holds()).toEqual(['west/gw 7 9']);
    expect(dataPlane.told()).toContain('key.drop west/gw 8 now');
  });

  it('follows a link port that started anew, and forgets one that is named no more', async () => {
    bench.table.take(bench.change(1));
    bench.table.take(bench.change(2, { ports: [bench.gw.record(8, 2)] }));
    expect(await dataPlane.holds()).toEqual(['west/gw 8 1']);
    bench.table.take(bench.change(3, { ports: [] }));
    expect(await dataPlane.holds()).toEqual([]);
  });

  it('forgets a net that is gone, and one that a full synchronisation does not name', async () => {
    bench.table.take(bench.change(1));
    bench.table.gone(WEST, 2);
    expect(await dataPlane.holds()).toEqual([]);
    bench.table.take(bench.change(3));
    bench.table.beginFull();
    bench.table.endFull();
    expect(await dataPlane.holds()).toEqual([]);
    expect([...bench.table.nets()]).toEqual([]);
    expect(dataPlane.told().filter((one) => one === 'routes.set west: ')).toHaveLength(2);
  });

  it('takes away what only a data plane that was there before knows', async () => {
    bench.table.take(bench.change(1));
    bench.table.beginFull();
    bench.table.take(bench.change(1));
    bench.table.endFull();
    bench.table.removeLeftovers(['west/gw', 'north/old'], ['', 'west', 'north']);
    await dataPlane.holds();
    const told = dataPlane.told();
    expect(told).toContain('peer.remove north/old');
    expect(told.filter((one) => one.endsWith(': '))).toEqual(['routes.set north: ']);
    expect(await dataPlane.holds()).toEqual(['west/gw 7 1']);
  });

  it.each<[string, (bench: Bench) => Partial<NetChange>, string]>([
    [
      'a link port that another operator let in',
      () => ({ ports: [new TestPeer(new TestOperator(), 'gw', [], 'link').record(7, 1)] }),
      'west/gw: RECORD_SIGNATURE',
    ],
    [
      'a member that is no link port',
      ({ operator }) => ({ ports: [new TestPeer(operator, 'host', []).record(7, 1)] }),
      'west/host: RECORD_MISMATCH',
    ],
    [
      'a link port with another identity than before',
      ({ operator }) => ({ ports: [new TestPeer(operator, 'gw', [], 'link').record(7, 2)] }),
      'west/gw: PIN_MISMATCH',
    ],
    [
      'an older boot record than before',
      ({ gw }) => ({ ports: [gw.record(7, 1)] }),
      'west/gw: RECORD_ROLLBACK',
    ],
    [
      'another operator than before',
      () => ({ operator: new TestOperator().public }),
      'west: PIN_MISMATCH',
    ],
    ['another subnet than before', () => ({ subnet: parseId('south') }), 'west: PIN_MISMATCH'],
  ])('%s is refused', async (_what, more, refusal) => {
    bench.table.take(bench.change(1, { ports: [bench.gw.record(6, 5)] }));
    const told = more(bench);
    bench.table.take(bench.change(2, told));
    expect(bench.refused).toEqual([refusal]);
    expect(await dataPlane.holds()).toEqual([]);
    // Once, however often it is said.
    bench.table.take(bench.change(3, told));
    expect(bench.refused).toHaveLength(1);
  });

  it("a net that is another link port's business is no fault, and its renewal does not wait for us", async () => {
    const next = { key: key(2), pwId: 2 };
    bench.table.take(bench.change(1, { net: parseId('north'), next }));
    expect(bench.table.prepared()).toEqual([{ net: 'north', pwId: 2 }]);
    expect([bench.refused, [...bench.table.nets()]]).toEqual([[], []]);
    expect(await dataPlane.holds()).toEqual([]);
    bench.table.take(bench.change(2, { net: parseId('north'), key: key(2), pwId: 2 }));
    expect(bench.table.prepared()).toEqual([]);
  });

  it('nor does the renewal of a net that is refused', () => {
    const next = { key: key(2), pwId: 2 };
    bench.table.take(bench.change(1));
    bench.table.take(bench.change(2, { operator: new TestOperator().public, next }));
    expect(bench.refused).toEqual(['west: PIN_MISMATCH']);
    expect(bench.table.prepared()).toEqual([{ net: 'west', pwId: 2 }]);
  });

  it('says that it is prepared only when the data plane has the key, and tries again what was refused', async () => {
    // The index of our own boot key: the data plane refuses it.
    const own = dataPlane.index;
    const next = { key: key(2), pwId: 2 };
    bench.table.take(bench.change(1, { ports: [bench.gw.record(own, 1)], next }));
    expect(await dataPlane.holds()).toEqual([]);
    expect(bench.failed.splice(0).length).toBeGreaterThan(0);
    // What follows from the answers has happened by then.
    await setImmediate();
    expect([bench.prepared, bench.table.prepared()]).toEqual([[], []]);
    await dataPlane.newBoot();
    await bench.table.installAll(dataPlane.boot);
    expect(await dataPlane.holds()).toEqual([`west/gw ${own} 1`]);
    expect(bench.table.prepared()).toEqual([{ net: 'west', pwId: 2 }]);
  });

  it('says again after a while what the data plane refused', async () => {
    const own = dataPlane.index;
    bench.table.take(bench.change(1, { ports: [bench.gw.record(own, 1)] }));
    await dataPlane.holds();
    expect(bench.failed.splice(0).length).toBeGreaterThan(0);
    await dataPlane.newBoot();
    bench.table.tick();
    expect(await dataPlane.holds()).toEqual([]);
    bench.now += 10_000;
    bench.table.tick();
    await until('it is there', async () => (await dataPlane.holds()).length > 0);
    bench.failed.splice(0);
  });

  it('forgets what an earlier control plane left of former generations', async () => {
    bench.table.take(bench.change(1, { key: key(9), pwId: 9, oldest: 7 }));
    await dataPlane.holds();
    expect(dataPlane.told().filter((one) => one.startsWith('key.drop'))).toEqual([
      'key.drop west/gw 6 now',
      'key.drop west/gw 8',
    ]);
  });

  it('takes no prefixes away from a data plane in silence', async () => {
    bench.table.take(bench.change(1));
    bench.table.detached();
    bench.table.take(bench.change(2, { prefixes: [] }));
    dataPlane.told();
    await bench.table.installAll(dataPlane.boot);
    expect(dataPlane.told()).toContain('routes.set west: ');
  });

  it('sends no sealed frame into a subnet of ours, or of others, whoever says so', async () => {
    const at = (...ip: number[]) => ({ ip: Buffer.from(ip), port: 7_000 });
    const endpoints = [at(10, 1, 0, 9), at(10, 2, 0, 9), at(10, 3, 0, 9), at(192, 0, 2, 9)];
    bench.table.take(bench.change(1, { ports: [bench.gw.record(7, 1, { endpoints })] }));
    const [port] = bench.table.ports();
    expect(port?.endpoints).toEqual([at(192, 0, 2, 9)]);
  });

  it('takes a bounded number of starts, ids and refusals of another subnet', () => {
    let seq = 0;
    const many = (records: (at: number) => Partial<NetChange>, count: number) => {
      for (let at = 0; at < count; at += 1) {
        seq += 1;
        bench.table.take(bench.change(seq, records(at)));
      }
    };
    many((at) => ({ ports: [bench.gw.record(7 + at, 2 + at)] }), NET_STARTS.burst + 5);
    expect([...bench.table.ports()][0]?.index).toBe(7 + NET_STARTS.burst - 1);
    expect([...bench.table.ports()][0]?.refusal?.message).toContain('too often');
    bench.refused.splice(0);
    many(() => ({ ports: [new TestPeer(new TestOperator(), 'gw', [], 'link').record(7, 1)] }), 2);
    many(
      (at) => ({ ports: [new TestPeer(new TestOperator(), `g${at}`, [], 'link').record(7, 1)] }),
      30,
    );
    expect(bench.refused.length).toBeLessThan(15);
  });

  it('an operator that gateway.yaml names is the only one', async () => {
    const strict = new Bench(dataPlane, join(dir), bench.operator.public);
    await strict.table.installAll(dataPlane.boot);
    strict.table.take(strict.change(1));
    expect(strict.refused).toEqual(['west: PIN_MISMATCH']);
    strict.table.take(bench.change(2));
    expect(await dataPlane.holds()).toEqual(['west/gw 7 1']);
  });

  it('installs everything again under another boot key', async () => {
    bench.table.take(bench.change(1, { next: { key: key(2), pwId: 2 } }));
    await bench.table.installAll(await dataPlane.newBoot());
    expect(await dataPlane.holds()).toEqual(['west/gw 7 1']);
    expect(bench.table.prepared()).toEqual([{ net: 'west', pwId: 2 }]);
  });
});
