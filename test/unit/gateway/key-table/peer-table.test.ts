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
import { type Policy, policySchema } from '../../../../src/protocol/policy.js';
import { generateRawKeyPair, importPublic } from '../../../../src/protocol/public-keys.js';
import type { PairwireError } from '../../../../src/runtime/errors.js';
import { NOW, SUBNET, TestOperator, TestPeer } from '../support/records.js';
import { until } from '../support/until.js';
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
  readonly denied: string[] = [];
  readonly prepared: string[] = [];
  readonly table: PeerTable;

  constructor(dataPlane: WatchedPort) {
    super();
    this.dataPlane = dataPlane;
    this.table = new PeerTable({
      self: { id: parseId('alice'), tags: [] },
      port: PORT,
      verifier: this.verifier,
      dataPlane,
      acceptsEndpoint: (endpoint) => isUsable(endpoint.ip, false),
      isNear: (endpoint) => endpoint.ip[0] === 192,
      onRefused: (id, error: PairwireError) => this.refused.push({ id, code: error.code }),
      onDenied: (id) => this.denied.push(id),
      onCommandFailed: (error) => this.failed.push(error.message),
      onPrepared: (peer) => this.prepared.push(peer),
      onGroupPrepared: () => this.prepared.push('group'),
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

  describe('under a policy that keeps bob from us', () => {
    const closed = policySchema.parse({
      groups: { bobs: { members: ['bob'] } },
      rules: [{ deny: ['bobs', '*'] }],
    });
    const go = (version: number, policy?: Policy): void =>
      bench.table.useSettings(
        bench.verifier.settings(
          bench.operator.settings(version, policy === undefined ? {} : { policy }),
        ),
      );

    it('forgets him at once, and nobody else', async () => {
      await both();
      go(2, closed);
      expect(dataPlane.told()).toEqual(['peer.remove bob']);
      expect(bench.table.get(bob.id)).toBeUndefined();
      expect(bench.table.byMac(bob.mac)).toBeUndefined();
      expect(bench.table.get(carol.id)?.key?.pwId).toBe(1);
    });

    it('takes neither record nor key of him, whatever a server says, and it is no alarm', async () => {
      go(2, closed);
      expect(bench.table.takeMember(bob.record(2, 100))).toBe(false);
      bench.table.takePair(bob.id, { pwId: 1, key: KEY });
      expect(dataPlane.told()).toEqual([]);
      expect([...bench.table.entries()]).toEqual([]);
      expect(bench.denied).toEqual(['bob']);
      expect(bench.refused).toEqual([]);
    });

    it('takes him again when it is taken back', async () => {
      go(2, closed);
      bench.table.takeMember(bob.record(2, 100));
      go(3);
      expect(bench.table.takeMember(bob.record(2, 101))).toBe(true);
      expect(bench.table.get(bob.id)?.state).toBe('ready');
      expect(dataPlane.told()).toEqual(['peer.set bob']);
    });

    it('uses no group key, and does again without it', async () => {
      bench.table.takeGroup({ pwId: 3, key: KEY, oldest: 3 });
      expect(dataPlane.told()).toContain('key.group 3');
      go(2, closed);
      expect(dataPlane.told()).toContain('key.drop group 3 now');
      bench.table.takeGroup({ pwId: 4, key: Buffer.alloc(32, 4), oldest: 3 });
      expect(dataPlane.told().filter((one) => one.startsWith('key.group'))).toEqual([]);
      go(3);
      expect(dataPlane.told()).toContain('key.group 4');
    });

    it('names those there is no key with yet', async () => {
      await both();
      const dave = bench.peer('dave');
      bench.table.takeMember(dave.record(5, 100));
      dataPlane.told();
      expect([...bench.table.withoutKey()]).toEqual([dave.mac]);
    });
  });

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

  it('a next generation is received under, confirmed once the data plane has it, and used when it is in force', async () => {
    await both();
    const next = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next }, 20);
    expect(dataPlane.told()).toEqual(['key.pair bob 2 to receive']);
    expect(bench.table.prepared()).toEqual([]);
    expect(await dataPlane.holds()).toContain('bob 2 1');
    await until('it is prepared', () => bench.prepared.length === 1);
    expect(bench.table.prepared()).toEqual([{ peer: 'bob', pwId: 2 }]);
    // Told once more, it is confirmed once more, not installed.
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next }, 20);
    expect(bench.prepared).toEqual(['bob', 'bob']);
    expect(dataPlane.told()).toEqual([]);
    // An answer to a request says nothing of what is next.
    bench.table.takePair(bob.id, { pwId: 1, key: KEY });
    expect(bench.table.prepared()).toEqual([{ peer: 'bob', pwId: 2 }]);

    bench.table.takePair(bob.id, next, 21);
    expect(dataPlane.told()).toEqual(['key.pair bob 2', 'key.drop bob 1']);
    expect(bench.table.prepared()).toEqual([]);
    expect(await dataPlane.holds()).toContain('bob 2 2');
  });

  it('a frame under the next generation commits it, whatever became of the push', async () => {
    await both();
    const next = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next }, 20);
    await until('it is prepared', () => bench.prepared.length === 1);
    dataPlane.told();
    bench.table.committed(bob.id, 3);
    bench.table.committed(carol.id, 2);
    expect(dataPlane.told()).toEqual([]);
    bench.table.committed(bob.id, 2);
    expect(dataPlane.told()).toEqual(['key.pair bob 2', 'key.drop bob 1']);
    bench.table.takePair(bob.id, next, 21);
    expect(dataPlane.told()).toEqual([]);
  });

  it('a push that comes behind an answer does not take a pair back', async () => {
    await both();
    const newer = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takePair(bob.id, newer);
    dataPlane.told();
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next: newer }, 20);
    expect(dataPlane.told()).toEqual([]);
    bench.table.takePair(bob.id, newer, 21);
    expect(await dataPlane.holds()).toContain('bob 2 2');
  });

  it('what the data plane asks for while it is on its way is not sent twice; later it is', async () => {
    await both();
    const entry = bench.table.get(bob.id);
    if (entry === undefined) throw new Error('bob is missing');
    expect(bench.table.reinstall(entry)).toBe(true);
    expect(dataPlane.told()).toEqual([]);
    await dataPlane.holds(); // It has answered all that was sent before.
    expect(bench.table.reinstall(entry)).toBe(true);
    expect(dataPlane.told()).toEqual(['peer.set bob', 'key.pair bob 1']);
    expect(bench.table.reinstall(entry)).toBe(true);
    expect(dataPlane.told()).toEqual([]);
  });

  it('a new data plane gets the next generation too, and only then is it confirmed again', async () => {
    await both();
    const next = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next }, 20);
    await until('it is prepared', () => bench.prepared.length === 1);
    bench.table.detached();
    expect(bench.table.prepared()).toEqual([]);
    dataPlane.told();
    await bench.table.installAll(await dataPlane.newBoot());
    expect(dataPlane.told()).toContain('key.pair bob 2 to receive');
    await until('it is prepared again', () => bench.prepared.length === 2);
    expect(bench.table.prepared()).toEqual([{ peer: 'bob', pwId: 2 }]);
    bench.table.gone(bob.id);
    expect(bench.table.prepared()).toEqual([]);
  });

  it('the group key: the next one is received under and confirmed, then used; the one before has a grace', async () => {
    await both();
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1 }, 10);
    expect(dataPlane.told()).toEqual(['key.group 1']);
    const next = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1, next }, 20);
    expect(bench.table.preparedGroup()).toBeUndefined();
    await until('it is prepared', () => bench.prepared.length === 1);
    expect(bench.table.preparedGroup()).toBe(2);
    expect(dataPlane.told()).toContain('key.group 2 to receive');
    // Commit by a frame that opened; the push behind it changes nothing.
    bench.table.committedGroup(2);
    expect(dataPlane.told()).toEqual(['key.group 2', 'key.drop group 1']);
    expect(bench.table.preparedGroup()).toBeUndefined();
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1, next }, 20);
    expect(bench.table.group?.pwId).toBe(2);
  });

  it('an answer leaves the next generation of the group key as it is', async () => {
    await both();
    const next = { pwId: 2, key: Buffer.alloc(32, 1) };
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1, next }, 20);
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1 });
    bench.table.committedGroup(2);
    expect(Buffer.from(bench.table.group?.key ?? []).equals(next.key)).toBe(true);
  });

  it('what the server has as the next generation and we send with already is confirmed to it', async () => {
    await both();
    const newer = { pwId: 2, key: Buffer.alloc(32, 2) };
    bench.table.takePair(bob.id, newer, 10);
    bench.table.takeGroup({ ...newer, oldest: 1 }, 11);
    // Its database was put back to when it had prepared that.
    bench.table.beginFull();
    bench.table.takeMember(bob.record(9, 101), 1);
    bench.table.takeMember(carol.record(4, 101), 1);
    bench.table.takePair(bob.id, { pwId: 1, key: KEY, next: newer }, 2);
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1, next: newer }, 3);
    bench.table.endFull();
    expect(bench.table.prepared()).toEqual([{ peer: 'bob', pwId: 2 }]);
    expect(bench.table.preparedGroup()).toBe(2);
    expect(bench.table.get(bob.id)?.key?.pwId).toBe(2);
    // In force there, too: there is nothing to confirm any more.
    bench.table.takePair(bob.id, newer, 4);
    bench.table.takeGroup({ ...newer, oldest: 1 }, 5);
    expect(bench.table.prepared()).toEqual([]);
    expect(bench.table.preparedGroup()).toBeUndefined();
  });

  it('what a data plane held before we came counts as ours, though we have no key of it', async () => {
    await both();
    bench.table.foundInDataPlane(
      [
        { peer: 'bob', pwId: 6 },
        { peer: 'bob', pwId: 7 },
        { peer: 'carol', pwId: 3 },
      ],
      [{ pwId: 4 }],
    );
    dataPlane.told();
    bench.table.beginFull();
    bench.table.takeMember(bob.record(9, 101), 1);
    bench.table.takeMember(carol.record(4, 101), 1);
    bench.table.takePair(bob.id, { pwId: 5, key: Buffer.alloc(32, 5) }, 2);
    bench.table.takeGroup({ pwId: 3, key: Buffer.alloc(32, 3), oldest: 3 }, 3);
    bench.table.endFull();
    expect(bench.table.unknownToServer()).toEqual({
      pairs: [
        { peer: 'bob', pwId: 7 },
        { peer: 'carol', pwId: 3 },
      ],
      group: 4,
    });
    // Nor by an answer or a push.
    bench.table.takePair(bob.id, { pwId: 6, key: Buffer.alloc(32, 6) });
    const told = dataPlane.told();
    for (const older of ['key.pair bob 5', 'key.pair bob 6', 'key.group 3']) {
      expect(told).not.toContain(older);
    }
    bench.table.takePair(bob.id, { pwId: 8, key: Buffer.alloc(32, 8) }, 4);
    bench.table.takePair(carol.id, { pwId: 4, key: Buffer.alloc(32, 2) }, 5);
    bench.table.takeGroup({ pwId: 5, key: Buffer.alloc(32, 6), oldest: 4 }, 6);
    expect(bench.table.unknownToServer()).toEqual({ pairs: [], group: undefined });
    expect(dataPlane.told()).toContain('key.pair bob 8');
  });

  it('a server that knows less than we do is told so, and what we hold stays', async () => {
    await both();
    const newer = { pwId: 5, key: Buffer.alloc(32, 5) };
    bench.table.takePair(bob.id, newer, 10);
    bench.table.takeGroup({ ...newer, oldest: 5 }, 11);
    dataPlane.told();
    // Late, or a key of another history with our number.
    bench.table.takePair(bob.id, { pwId: 4, key: Buffer.alloc(32, 4) }, 12);
    expect(bench.table.unknownToServer()).toEqual({ pairs: [], group: undefined });
    bench.table.takePair(bob.id, { pwId: 5, key: Buffer.alloc(32, 55) }, 13);
    expect(bench.table.unknownToServer().pairs).toEqual([{ peer: 'bob', pwId: 5 }]);
    // It begins anew: with less, and without carol's key.
    bench.table.beginFull();
    bench.table.takeMember(bob.record(9, 101), 1);
    bench.table.takeMember(carol.record(4, 101), 1);
    bench.table.takePair(bob.id, { pwId: 3, key: Buffer.alloc(32, 3) }, 2);
    bench.table.takeGroup({ pwId: 4, key: Buffer.alloc(32, 4), oldest: 4 }, 3);
    bench.table.endFull();
    expect(bench.table.unknownToServer()).toEqual({
      pairs: [
        { peer: 'bob', pwId: 5 },
        { peer: 'carol', pwId: 1 },
      ],
      group: 5,
    });
    const told = dataPlane.told();
    for (const older of ['key.pair bob 3', 'key.group 4']) expect(told).not.toContain(older);
    // It makes others, above ours.
    bench.table.takePair(bob.id, { pwId: 6, key: Buffer.alloc(32, 6) }, 4);
    bench.table.takePair(carol.id, { pwId: 2, key: Buffer.alloc(32, 2) }, 5);
    bench.table.takeGroup({ pwId: 6, key: Buffer.alloc(32, 6), oldest: 5 }, 6);
    expect(bench.table.unknownToServer()).toEqual({ pairs: [], group: undefined });
    expect(bench.table.get(bob.id)?.key?.pwId).toBe(6);
  });

  it('the group key after a revocation: nothing older is heard, also by a data plane that ran on', async () => {
    await both();
    bench.table.takeGroup({ pwId: 3, key: KEY, oldest: 3 });
    expect(dataPlane.told()).toEqual(['key.group 3', 'key.drop group 2 now']);
    bench.table.takeGroup({ pwId: 2, key: Buffer.alloc(32, 1), oldest: 1 });
    expect(bench.table.group?.pwId).toBe(3);
  });

  it('a revoked member is gone at once, and no server brings it back', async () => {
    await both();
    bench.table.revoked(bob.id, 4);
    expect(dataPlane.told()).toEqual(['peer.remove bob']);
    expect(bench.table.get(bob.id)).toBeUndefined();
    expect(bench.table.takeMember(bob.record(2, 999))).toBe(false);
    expect(bench.refused).toEqual([{ id: 'bob', code: 'RECORD_ROLLBACK' }]);
    bench.table.beginFull();
    expect(bench.table.takeMember(bob.record(2, 999), 1)).toBe(false);
    expect(bench.table.byMac(bob.mac)).toBeUndefined();
    expect(bench.verifier.revocation).toBe(4);
    // Its address may be another member's from now on.
    const heir = new TestPeer(bench.operator, 'heir', [bob.mac]);
    expect(bench.table.takeMember(heir.record(9, 1))).toBe(true);
    expect(bench.table.byMac(bob.mac)?.id).toBe('heir');
  });

  it('a new data plane gets everything again', async () => {
    await both();
    bench.table.takeGroup({ pwId: 1, key: KEY, oldest: 1 });
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

  it('a boot record that was good makes its peer absent once it has expired, though nothing of it is new', async () => {
    const record = bob.record(2, 150, { boot: bob.boot(150, { notAfter: NOW + 1_000 }) });
    bench.table.takeMember(record);
    bench.table.takeMember(record);
    expect(bench.table.get(bob.id)?.state).toBe('ready');
    bench.now = NOW + 1_001;
    expect(bench.table.takeMember(record)).toBe(true);
    expect(bench.table.get(bob.id)?.state).toBe('absent');
  });

  it('a boot record that was good is not believed with another signature', async () => {
    const { b, s } = bob.boot(150);
    bench.table.takeMember(carol.record(3, 100));
    bench.table.takeMember(bob.record(2, 150, { boot: { b, s } }));
    dataPlane.told();
    const forged = Buffer.from(s);
    forged.writeUInt8(forged.readUInt8(0) ^ 1, 0);
    expect(bench.table.takeMember(bob.record(2, 150, { boot: { b, s: forged } }))).toBe(false);
    expectOnlyBobStopped('RECORD_SIGNATURE');
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

  it("another's boot record under bob's id stops bob only", async () => {
    await both();
    expect(bench.table.takeMember(bob.record(2, 150, { boot: carol.boot(150) }))).toBe(false);
    expectOnlyBobStopped('RECORD_SIGNATURE');
  });

  it('a puppet that the operator let in has the address of its own grant, whomever the server says it is', async () => {
    await both();
    const puppet = bench.peer('puppet');
    expect(bench.table.takeMember(puppet.record(4, 100))).toBe(true);
    bench.table.takePair(puppet.id, { pwId: 1, key: KEY });
    // Told as the answer for the address of each of the others, known or not.
    for (const mac of [bob.mac, carol.mac, defaultMac(SUBNET, 'dave')]) {
      const boot = puppet.boot(200, { macs: [puppet.mac, mac] });
      expect(bench.table.takeMember(puppet.record(4, 200, { boot }))).toBe(false);
      expect(bench.refused.at(-1)).toEqual({ id: 'puppet', code: 'RECORD_MISMATCH' });
    }
    expect(bench.table.byMac(bob.mac)?.id).toBe('bob');
    expect(bench.table.byMac(carol.mac)?.id).toBe('carol');
    expect(bench.table.byMac(defaultMac(SUBNET, 'dave'))).toBeUndefined();
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

      const crowd = new Pins(undefined, bench.operator.public);
      const over: string[] = [];
      crowd.onRevokedOver = (id) => over.push(id);
      for (let n = 0; n < 100_000; n += 1) crowd.acceptRevocation(parseId(`n${n}`), 1);
      crowd.acceptRevocation(parseId('n7'), 2);
      expect(over).toEqual([]);
      crowd.acceptRevocation(bob.id, 2);
      expect(over).toEqual(['bob']);
      expect(() => make(crowd).peer(bob.record(2, 100))).not.toThrow();
      pins.acceptRevocation(bob.id, 3);
      pins.flush();
      const later = make(new Pins(path, bench.operator.public));
      expect(later.revocation).toBe(3);
      expect(() => later.peer(bob.record(2, 300))).toThrow('revoked');
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });
});
