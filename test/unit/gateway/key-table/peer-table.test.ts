/** The peer table: what may be believed of a key server, and what a contradiction stops. */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PeerTable } from '../../../../gateway/key-table/peer-table.js';
import { Pins } from '../../../../gateway/key-table/pins.js';
import { Verifier } from '../../../../gateway/key-table/verifier.js';
import { isUsable } from '../../../../gateway/underlay.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { generateRawKeyPair, importPublic } from '../../../../src/protocol/public-keys.js';
import type { PairwireError } from '../../../../src/runtime/errors.js';
import { NOW, SUBNET, TestOperator, TestPeer } from '../support/records.js';
import { PORT, WatchedPort } from '../support/watched-port.js';

const KEY = Buffer.alloc(32, 9);

/** What it takes to judge records. */
class Judge {
  readonly operator = new TestOperator();
  readonly pins = new Pins(undefined, this.operator.public);
  now = NOW;
  readonly verifier = new Verifier({
    subnet: SUBNET,
    operator: importPublic('ed25519', this.operator.public),
    pins: this.pins,
    now: () => this.now,
  });

  peer(id: string): TestPeer {
    return new TestPeer(this.operator, id);
  }
}

class Bench extends Judge {
  readonly dataPlane: WatchedPort;
  readonly failed: string[] = [];
  readonly refused: { id: string; code: string }[] = [];
  readonly appeared: string[] = [];
  readonly table: PeerTable;

  constructor(dataPlane: WatchedPort) {
    super();
    this.dataPlane = dataPlane;
    this.table = new PeerTable({
      self: parseId('alice'),
      port: PORT,
      verifier: this.verifier,
      dataPlane,
      acceptsEndpoint: (endpoint) => isUsable(endpoint.ip, false),
      onRefused: (id, error: PairwireError) => this.refused.push({ id, code: error.code }),
      onCommandFailed: (error) => this.failed.push(error.message),
      onAddress: (mac) => this.appeared.push(mac),
    });
  }
}

describe('the peer table', () => {
  let bench: Bench;
  let bob: TestPeer;
  let carol: TestPeer;
  let dir: string;
  let dataPlane: WatchedPort;
  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'pw-table-'));
    dataPlane = await WatchedPort.make(join(dir, 's'), 'alice', defaultMac(SUBNET, 'alice'));
    bench = new Bench(dataPlane);
    bob = bench.peer('bob');
    carol = bench.peer('carol');
    await bench.table.installAll(dataPlane.boot);
  });
  afterEach(async () => {
    // The data plane holds who is ready, with the generation that the table has, and refused nothing.
    const ready = [...bench.table.entries()]
      .filter((entry) => entry.state === 'ready')
      .map((entry) => `${entry.id} ${entry.index} ${entry.key?.pwId ?? 'no key'}`);
    expect(await dataPlane.holds()).toEqual(ready.sort());
    expect(bench.failed).toEqual([]);
    await dataPlane.close();
    rmSync(dir, { recursive: true, force: true });
  });

  /** Bob and carol are ready; then bob's record changes: only bob may be touched. */
  async function both(): Promise<void> {
    const { table } = bench;
    expect(table.takeMember(bob.record(2, 100))).toBe(true);
    expect(table.takeMember(carol.record(3, 100))).toBe(true);
    table.takePair(bob.id, { pwId: 1, key: KEY });
    table.takePair(carol.id, { pwId: 1, key: KEY });
    dataPlane.told();
  }
  function expectOnlyBobStopped(code: string): void {
    expect(bench.refused).toEqual([{ id: 'bob', code }]);
    expect(dataPlane.told()).toEqual(['peer.remove bob']);
    expect(bench.table.get(bob.id)).toMatchObject({ state: 'refused', refusal: { code } });
    expect(bench.table.get(carol.id)?.state).toBe('ready');
    expect(bench.table.byMac(carol.mac)?.id).toBe('carol');
    expect(bench.table.byMac(bob.mac)).toBeUndefined();
    expect(bench.table.byIndex(2)).toBeUndefined();
  }

  it('installs a member and its key, and only once', async () => {
    await both();
    bench.table.takePair(bob.id, { pwId: 1, key: KEY });
    expect(dataPlane.told()).toEqual([]);
    expect(bench.table.byMac(bob.mac)?.id).toBe('bob');
    expect(bench.appeared).toContain(bob.mac);
  });

  it('a key that comes before its member waits for it', () => {
    bench.table.takePair(bob.id, { pwId: 4, key: KEY });
    expect(dataPlane.told()).toEqual([]);
    bench.table.takeMember(bob.record(2, 100));
    expect(dataPlane.told()).toEqual(['peer.set bob', 'key.pair bob 4']);
  });

  it('a new boot key of a peer derives new traffic keys from the same pair key', async () => {
    await both();
    bench.table.takeMember(bob.record(7, 101));
    expect(dataPlane.told()).toEqual(['peer.set bob', 'key.pair bob 1']);
    expect(bench.table.byIndex(2)).toBeUndefined();
    expect(bench.table.byIndex(7)?.id).toBe('bob');
  });

  it('a newer generation replaces the old one after a grace period; an older one is left', async () => {
    await both();
    bench.table.takePair(bob.id, { pwId: 2, key: Buffer.alloc(32, 1) });
    expect(dataPlane.told()).toEqual(['key.pair bob 2', 'key.drop bob 1']);
    bench.table.takePair(bob.id, { pwId: 1, key: KEY });
    expect(dataPlane.told()).toEqual([]);
  });

  it('a new data plane gets everything again', async () => {
    await both();
    bench.table.takeGroup({ pwId: 1, key: KEY });
    dataPlane.told();
    bench.table.detached();
    bench.table.takeMember(carol.record(4, 105));
    expect(dataPlane.told()).toEqual([]);
    await bench.table.installAll(await dataPlane.newBoot());
    expect(dataPlane.told()).toEqual([
      'peer.set bob',
      'key.pair bob 1',
      'peer.set carol',
      'key.pair carol 1',
      'key.group 1',
    ]);
  });

  it('identity swap stops that peer only', async () => {
    await both();
    const impostor = bench.peer('bob');
    expect(bench.table.takeMember(impostor.record(9, 200))).toBe(false);
    expectOnlyBobStopped('PIN_MISMATCH');
  });

  it('an address that moves to another id stops the one that claims it', async () => {
    bench.table.takeMember(carol.record(3, 100));
    bench.table.takePair(carol.id, { pwId: 1, key: KEY });
    bob = new TestPeer(bench.operator, 'bob', [carol.mac]);
    dataPlane.told();
    expect(bench.table.takeMember(bob.record(2, 100))).toBe(false);
    expect(bench.refused).toEqual([{ id: 'bob', code: 'PIN_MISMATCH' }]);
    expect(bench.table.byMac(carol.mac)?.id).toBe('carol');
    expect(bench.table.get(carol.id)?.state).toBe('ready');
  });

  it('an older boot sequence stops that peer only', async () => {
    await both();
    expect(bench.table.takeMember(bob.record(9, 99))).toBe(false);
    expectOnlyBobStopped('RECORD_ROLLBACK');
  });

  it('two boot keys under one sequence stop that peer only', async () => {
    await both();
    expect(bench.table.takeMember(bob.record(9, 100))).toBe(false);
    expectOnlyBobStopped('PIN_MISMATCH');
  });

  it('a grant of a foreign operator stops that peer only', async () => {
    bench.table.takeMember(carol.record(3, 100));
    dataPlane.told();
    bob = new TestPeer(bench.operator, 'bob', [], 'host', new TestOperator());
    expect(bench.table.takeMember(bob.record(2, 100))).toBe(false);
    expectOnlyBobStopped('RECORD_SIGNATURE');
  });

  it('an expired boot record makes that peer absent', async () => {
    await both();
    const boot = bob.boot(150, { notAfter: NOW - 1 });
    expect(bench.table.takeMember(bob.record(2, 150, { boot }))).toBe(true);
    expect(bench.refused).toEqual([]);
    expect(dataPlane.told()).toEqual(['peer.remove bob']);
    expect(bench.table.get(bob.id)?.state).toBe('absent');
    expect(bench.table.get(carol.id)?.state).toBe('ready');
  });

  it('a boot record with an address that was not granted stops that peer only', async () => {
    await both();
    const boot = bob.boot(150, { macs: [bob.mac, carol.mac] });
    expect(bench.table.takeMember(bob.record(2, 150, { boot }))).toBe(false);
    expectOnlyBobStopped('RECORD_MISMATCH');
  });

  it("another's membership under bob's id stops bob only", async () => {
    await both();
    const { membership } = carol.record(2, 100);
    expect(bench.table.takeMember(bob.record(2, 150, { membership }))).toBe(false);
    expectOnlyBobStopped('RECORD_MISMATCH');
  });

  it('a role that the grant does not give stops that peer only', async () => {
    await both();
    expect(bench.table.takeMember(bob.record(2, 150, { role: 'plain' }))).toBe(false);
    expectOnlyBobStopped('RECORD_MISMATCH');
  });

  it("an address that was one member's own is not shared by another, whatever its rights", async () => {
    await both();
    const mallory = new TestPeer(bench.operator, 'mallory', [carol.mac], 'host', bench.operator, [
      'shared',
    ]);
    expect(bench.table.takeMember(mallory.record(4, 100))).toBe(false);
    expect(bench.refused).toEqual([{ id: 'mallory', code: 'PIN_MISMATCH' }]);
    expect(bench.table.byMac(carol.mac)?.id).toBe('carol');
  });

  it.each(['viewer', 'operator', 'server'] as const)(
    'a %s is nobody to exchange frames with',
    (role) => {
      const member = new TestPeer(bench.operator, 'vera', [], role);
      expect(bench.table.takeMember(member.record(4, 100))).toBe(false);
      expect(bench.refused).toEqual([{ id: 'vera', code: 'RECORD_MISMATCH' }]);
      expect(bench.table.byMac(member.mac)).toBeUndefined();
    },
  );

  it('a good record brings a stopped peer back', async () => {
    await both();
    bench.table.takeMember(bob.record(9, 99));
    dataPlane.told();
    expect(bench.table.takeMember(bob.record(8, 101))).toBe(true);
    expect(dataPlane.told()).toEqual(['peer.set bob', 'key.pair bob 1']);
    expect(bench.table.get(bob.id)?.refusal).toBeUndefined();
  });

  it('pins outlast a member that was gone', async () => {
    await both();
    bench.table.gone(bob.id);
    expect(dataPlane.told()).toEqual(['peer.remove bob']);
    expect(bench.table.takeMember(bench.peer('bob').record(9, 500))).toBe(false);
  });

  it('who a full synchronisation does not name is gone, in the data plane too', async () => {
    await both();
    bench.table.beginFull();
    bench.table.takeMember(carol.record(4, 101), 1);
    dataPlane.told();
    bench.table.endFull(['dave', 'carol']);
    expect(dataPlane.told()).toEqual(['peer.remove bob', 'peer.remove dave']);
    expect(bench.table.get(bob.id)).toBeUndefined();
  });

  it('a change that is older than one applied changes nothing', async () => {
    bench.table.takeMember(bob.record(2, 100), 10);
    dataPlane.told();
    bench.table.takeMember(bob.record(2, 90), 9);
    bench.table.gone(bob.id, 8);
    expect(bench.refused).toEqual([]);
    expect(bench.table.get(bob.id)?.state).toBe('ready');
  });

  it('addresses that nobody may make us send to are left out', () => {
    const endpoints = [
      [127, 0, 0, 1],
      [224, 0, 0, 1],
      [169, 254, 169, 254],
      [0, 0, 0, 0],
      [10, 0, 0, 1],
    ].map((ip) => ({ ip: Buffer.from(ip), port: 1 }));
    bench.table.takeMember(bob.record(2, 100, { endpoints }));
    expect(bench.table.get(bob.id)?.endpoints.map((one) => one.ip[0])).toEqual([10]);
  });
});

describe('settings', () => {
  it('only newer ones of our operator are taken', () => {
    const bench = new Judge();
    const { verifier, operator } = bench;
    expect(verifier.settings(operator.settings(3)).version).toBe(3);
    expect(verifier.settings(operator.settings(4, { hold: 0 })).hold).toBe(0);
    expect(() => verifier.settings(operator.settings(3))).toThrow('older than those seen before');
    expect(() => verifier.settings(new TestOperator().settings(9))).toThrow('signature');
    expect(() => verifier.settings(operator.settings(4, { verify: 'off' }))).toThrow(
      'two settings documents',
    );
    expect(bench.pins.settingsVersion).toBe(4);
  });
});

describe('pins on the disk', () => {
  it('outlast a restart, with mode 0600, and hold the operator key fast', () => {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-pins-'));
    const path = join(dir, 'pins.json');
    try {
      const bench = new Judge();
      const bob = bench.peer('bob');
      const pins = new Pins(path, bench.operator.public);
      const make = (from: Pins) =>
        new Verifier({
          subnet: SUBNET,
          operator: importPublic('ed25519', bench.operator.public),
          pins: from,
          now: () => NOW,
        });
      make(pins).peer(bob.record(2, 100));
      make(pins).settings(bench.operator.settings(5));
      pins.flush();
      expect(statSync(path).mode & 0o777).toBe(0o600);

      const again = make(new Pins(path, bench.operator.public));
      expect(() => again.peer(bob.record(2, 99))).toThrow('older');
      expect(() => again.peer(bench.peer('bob').record(2, 200))).toThrow('another identity');
      expect(() => again.settings(bench.operator.settings(4))).toThrow('older');
      expect(() => new Pins(path, generateRawKeyPair('ed25519').publicKey)).toThrow('operator key');
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });
});
