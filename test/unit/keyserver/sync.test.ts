/** State by change numbers: whatever happens in whatever order, a member that syncs ends up with exactly what it may see (M18). */
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { choose } from '../../../keyserver/init.js';
import { groupKeyFor } from '../../../keyserver/keys/group-key.js';
import { pairKeyFor } from '../../../keyserver/keys/pair-key.js';
import type { Services } from '../../../keyserver/services.js';
import { collect } from '../../../keyserver/sync/collect.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import type { Change } from '../../../src/protocol/messages.js';
import { signRecord } from '../../../src/protocol/signed.js';
import { insertMember, servicesOf } from './support/services.js';
import { TestSubnet, until } from './support/subnet.js';

const IDS = ['a', 'b', 'c', 'd', 'e'].map(parseId);

/** What a member holds after applying changes in their order. */
class Replica {
  readonly members = new Map<string, string>();
  readonly pairs = new Map<string, string>();
  group: string | undefined;
  settings: string | undefined;
  cursor = 0;
  epoch: Uint8Array | undefined;

  apply(change: Change): void {
    switch (change.kind) {
      case 'member':
        this.members.set(change.member.id, JSON.stringify(change.member));
        break;
      case 'pair':
        if (!this.members.has(change.peer)) throw new Error('a pair before its member');
        this.pairs.set(change.peer, Buffer.from(change.key).toString('hex'));
        break;
      case 'group':
        this.group = Buffer.from(change.key).toString('hex');
        break;
      case 'settings':
        this.settings = Buffer.from(change.settings.b).toString('hex');
        break;
      case 'gone':
        throw new Error('nothing is revoked here');
    }
  }

  /** One page, applied. @returns whether more waits */
  async page(services: Services, id: Id, rows: number): Promise<boolean> {
    const batch = await collect(services, id, this, rows);
    let seq = 0;
    for (const change of batch.changes) {
      if (change.seq < seq || change.seq <= this.cursor) throw new Error('out of order');
      seq = change.seq;
      this.apply(change);
    }
    if (batch.more && batch.cursor <= this.cursor) throw new Error('no progress');
    this.cursor = batch.cursor;
    this.epoch = batch.epoch;
    return batch.more;
  }

  async all(services: Services, id: Id, rows: number): Promise<void> {
    while (await this.page(services, id, rows)) {
      // the next page
    }
  }
}

type Step =
  | { readonly kind: 'enrol'; readonly who: number }
  | { readonly kind: 'online'; readonly who: number }
  | { readonly kind: 'group'; readonly who: number }
  | { readonly kind: 'pair'; readonly who: number; readonly whom: number }
  | { readonly kind: 'settings'; readonly hold: number; readonly replicate: number }
  | { readonly kind: 'page'; readonly who: number; readonly rows: number };

const who = fc.nat({ max: IDS.length - 1 });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('enrol' as const), who }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('online' as const), who }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('group' as const), who }) },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('pair' as const), who, whom: who }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('settings' as const),
      hold: fc.constantFrom(0, 64),
      replicate: fc.constantFrom(1, 3, 256),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('page' as const),
      who,
      rows: fc.integer({ min: 2, max: 6 }),
    }),
  },
);

async function run(services: Services, subnet: TestSubnet, one: Step): Promise<void> {
  const { store, settings } = services;
  if (one.kind === 'settings') {
    const { settings: now } = settings.inForce;
    const next = choose(now, now.version + 1, { hold: one.hold, replicate: one.replicate });
    const record = signRecord(LABEL.settings, { ...next }, subnet.operator);
    await settings.install(store, record, Date.now());
    return;
  }
  if (one.kind === 'page') return;
  const id = IDS[one.who] as Id;
  const known = await store.member(id);
  if (one.kind === 'enrol') {
    if (known !== undefined) return;
    await insertMember(store, id);
    return;
  }
  if (known === undefined) return;
  if (one.kind === 'online') {
    await store.write(async (tx) =>
      tx.updatePresence(id, { online: !known.online }, await tx.nextChange()),
    );
  } else if (one.kind === 'group') {
    await groupKeyFor(services, known);
  } else if (one.kind === 'pair') {
    const peer = IDS[one.whom] as Id;
    if (peer === id || (await store.member(peer)) === undefined) return;
    await pairKeyFor(services, id, peer, true, () => 0);
  }
}

/** What a member should hold, read straight from the tables. */
async function expected(
  services: Services,
  id: Id,
): Promise<Pick<Replica, 'pairs' | 'group'> & { shown: Id[] }> {
  const { store, settings } = services;
  const { hold, group } = settings.settings;
  const pairs = new Map<string, string>();
  const present: Id[] = [];
  const holders: Id[] = [];
  for (const other of IDS) {
    if ((await store.member(other)) === undefined) continue;
    if (other === id) continue;
    present.push(other);
    const pair = await store.pairKey(id, other);
    if (pair === undefined) continue;
    const asked = id === pair.a ? pair.askedA : pair.askedB;
    if (hold === 0 && asked === 0) continue;
    holders.push(other);
    pairs.set(other, pair.key.toString('hex'));
  }
  const self = await store.member(id);
  const shownGroup = hold > 0 || (self?.groupAsked ?? 0) > 0;
  const key = await store.groupKey(parseId('all'));
  return {
    pairs,
    group: shownGroup ? key?.key.toString('hex') : undefined,
    shown: present.length + 1 <= group.replicate ? present : holders,
  };
}

describe('sync', () => {
  let subnet: TestSubnet;
  beforeEach(async () => {
    subnet = await TestSubnet.start();
  });
  afterEach(() => subnet.close());

  it('converges for any interleaving of changes and pages', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 60 }), async (steps) => {
        const fresh = await TestSubnet.start();
        try {
          const services = await servicesOf(fresh);
          const replicas = new Map(IDS.map((id) => [id, new Replica()]));
          for (const one of steps) {
            await run(services, fresh, one);
            if (one.kind !== 'page') continue;
            const id = IDS[one.who] as Id;
            if ((await services.store.member(id)) !== undefined) {
              await replicas.get(id)?.page(services, id, one.rows);
            }
          }
          for (const [id, replica] of replicas) {
            if ((await services.store.member(id)) === undefined) continue;
            await replica.all(services, id, 3);
            const want = await expected(services, id);
            for (const [peer, key] of want.pairs) expect(replica.pairs.get(peer)).toBe(key);
            if (want.group !== undefined) expect(replica.group).toBe(want.group);
            expect(replica.settings).toBe(
              Buffer.from(services.settings.inForce.record.b).toString('hex'),
            );
            // The same as one that starts from nothing, for all that it may see now.
            const whole = new Replica();
            await whole.all(services, id, 500);
            expect([...whole.pairs]).toEqual(expect.arrayContaining([...want.pairs]));
            expect(whole.pairs.size).toBe(want.pairs.size);
            expect(whole.group).toBe(want.group);
            expect([...whole.members.keys()].sort()).toEqual(
              [...new Set([...want.shown, ...want.pairs.keys()])].sort(),
            );
            for (const peer of want.shown) {
              expect(replica.members.get(peer)).toBe(whole.members.get(peer));
            }
          }
        } finally {
          await fresh.close();
        }
      }),
      { numRuns: 60, interruptAfterTimeLimit: 20_000 },
    );
  }, 60_000);

  /** Runs steps with one replica, whose pages come where `page` steps are; then the rest. */
  async function follow(id: Id, steps: readonly Step[], rows: number): Promise<Replica> {
    const services = await servicesOf(subnet);
    const replica = new Replica();
    for (const one of steps) {
      await run(services, subnet, one);
      if (one.kind === 'page') await replica.all(services, id, one.rows);
    }
    await replica.all(services, id, rows);
    return replica;
  }

  it("gives keys that were not asked for when the documents' rule is given up", async () => {
    const replica = await follow(
      parseId('b'),
      [
        { kind: 'settings', hold: 0, replicate: 256 },
        { kind: 'enrol', who: 0 },
        { kind: 'enrol', who: 1 },
        { kind: 'pair', who: 0, whom: 1 },
        { kind: 'page', who: 1, rows: 100 },
        { kind: 'settings', hold: 64, replicate: 256 },
      ],
      100,
    );
    expect([...replica.pairs.keys()]).toEqual(['a']);
    expect(replica.group).toBeDefined();
  });

  it('loses no record behind those that come with their pair keys, on small pages', async () => {
    // Members 1, 2, 3 change before their pairs with 0 are made, member 4 in between.
    const replica = await follow(
      parseId('a'),
      [
        { kind: 'settings', hold: 64, replicate: 1 },
        { kind: 'enrol', who: 0 },
        { kind: 'enrol', who: 4 },
        { kind: 'pair', who: 0, whom: 4 },
        { kind: 'page', who: 0, rows: 100 },
        { kind: 'enrol', who: 1 },
        { kind: 'enrol', who: 2 },
        { kind: 'enrol', who: 3 },
        { kind: 'online', who: 4 },
        { kind: 'pair', who: 0, whom: 1 },
        { kind: 'pair', who: 0, whom: 2 },
        { kind: 'pair', who: 0, whom: 3 },
      ],
      2,
    );
    expect([...replica.pairs.keys()].sort()).toEqual(['b', 'c', 'd', 'e']);
    expect(JSON.parse(replica.members.get('e') ?? '{}')).toMatchObject({ online: true });
  });

  it('starts over for a cursor of another epoch, or one that is ahead', async () => {
    const alice = await subnet.member('alice');
    await subnet.member('bob');
    const whole = await alice.syncAll();
    expect(whole.changes.map(({ kind }) => kind).sort()).toEqual(['group', 'member', 'settings']);
    const { epoch } = subnet.store.meta;
    expect((await alice.syncAll(whole.cursor, epoch)).changes).toEqual([]);
    expect((await alice.syncAll(whole.cursor, randomBytes(8))).changes).toHaveLength(3);
    expect((await alice.syncAll(whole.cursor)).changes).toHaveLength(3);
    expect((await alice.syncAll(whole.cursor + 1_000_000, epoch)).changes).toHaveLength(3);
  });

  it('pushes what changed to members that have synced, once for many changes', async () => {
    const alice = await subnet.member('alice');
    await alice.syncAll();
    await Promise.all(['b1', 'b2', 'b3', 'b4'].map((id) => subnet.member(id)));
    const seen = (): Set<string> =>
      new Set(
        alice
          .pushed()
          .flatMap((change) =>
            change.kind === 'member' && change.member.boot ? [change.member.id] : [],
          ),
      );
    await until(() => seen().size === 4, 'the pushes');
    expect(alice.pushed().length).toBeLessThan(20);
    const bob = await subnet.member('bob');
    await bob.client.request({
      t: 'endpoints',
      endpoints: [{ ip: Buffer.from([192, 0, 2, 1]), port: 51820 }],
    });
    await until(
      () =>
        alice
          .pushed()
          .some((change) => change.kind === 'member' && change.member.endpoints.length === 1),
      'the endpoints',
    );
  });

  it('keeps a member above group.replicate from seeing those it has no key with', async () => {
    await subnet.close();
    subnet = await TestSubnet.start({ settings: { replicate: 2 } });
    const alice = await subnet.member('alice');
    const bob = await subnet.member('bob');
    const carol = await subnet.member('carol');
    for (const one of [alice, bob, carol]) await one.syncAll();
    const ids = async (member: typeof alice): Promise<string[]> =>
      (await member.syncAll()).changes.flatMap((change) =>
        change.kind === 'member' ? [change.member.id] : [],
      );
    expect(await ids(alice)).toEqual([]);
    await alice.keyByMac(defaultMac(parseId('east'), 'bob'));
    expect(await ids(alice)).toEqual(['bob']);
    expect(await ids(bob)).toEqual(['alice']);
    expect(await ids(carol)).toEqual([]);
    const before = carol.pushes.length;
    await alice.client.request({
      t: 'endpoints',
      endpoints: [{ ip: Buffer.from([192, 0, 2, 1]), port: 51820 }],
    });
    await until(
      () =>
        bob
          .pushed()
          .some((change) => change.kind === 'member' && change.member.endpoints.length === 1),
      'the endpoints at the holder',
    );
    expect(carol.pushes.length).toBe(before);
  });
});
