/**
 * The generations of the group key as a whole: the real server side and the real tables of two members, with messages
 * that get lost, doubled and reordered, servers and data planes that die, revocations, a database that is put back,
 * and broadcasts in between.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { makeGroupKey } from '../../../keyserver/keys/group-key.js';
import { GroupRekey } from '../../../keyserver/keys/group-rekey.js';
import type { Services } from '../../../keyserver/services.js';
import type { GroupKey } from '../../../keyserver/storage/store.js';
import { groupChange } from '../../../keyserver/sync/collect.js';
import { GROUP_ID } from '../../../src/protocol/ids.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { TestOperator, TestPeer } from '../gateway/support/records.js';
import { ModelGateway as Gateway, MadeKeys } from './support/model.js';
import { insertMember, servicesOf } from './support/services.js';
import { TestSubnet } from './support/subnet.js';

const RUNS = Number(process.env.PAIRWIRE_MODEL_RUNS ?? 150);
const END = fc.constantFrom(0, 1);
/** Longer than a server waits before it believes that all who come are there, and less than it waits for one who is not. */
const A_WHILE_MS = 6_000;
/** Longer than it waits for anybody. */
const PATIENCE_MS = 61_000;

type Step =
  | { readonly kind: 'rekey'; readonly force: boolean }
  | { readonly kind: 'deliver' | 'lose' | 'double'; readonly at: number }
  | {
      readonly kind: 'confirm' | 'sync' | 'ask' | 'boot' | 'broadcast' | 'grace' | 'leave';
      readonly end: number;
    }
  | { readonly kind: 'revoke' | 'server dies' | 'back up' | 'put back' | 'a while' | 'patience' };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('rekey' as const), force: fc.boolean() }) },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constantFrom('deliver' as const, 'lose' as const, 'double' as const),
      at: fc.nat(20),
    }),
  },
  {
    weight: 14,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'confirm' as const,
        'confirm' as const,
        'sync' as const,
        'ask' as const,
        'boot' as const,
        'broadcast' as const,
        'broadcast' as const,
        'grace' as const,
        'leave' as const,
      ),
      end: END,
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'revoke' as const,
        'server dies' as const,
        'back up' as const,
        'put back' as const,
        'a while' as const,
        'a while' as const,
        'patience' as const,
      ),
    }),
  },
);

class World {
  readonly ends: readonly [Gateway, Gateway];
  readonly #made = new MadeKeys();
  readonly #services: Services;
  /** Who is connected; one who leaves comes back with a synchronisation. */
  readonly #live = new Set<Gateway>();
  #rekey: GroupRekey;
  #backup: GroupKey | undefined;
  #dead = false;
  /** Key-server time. */
  #now = 1;

  constructor(services: Services, operator: TestOperator, names: readonly [string, string]) {
    this.#services = { ...services, now: () => this.#now };
    const one = new TestPeer(operator, names[0]);
    const two = new TestPeer(operator, names[1]);
    this.ends = [new Gateway(one, two, operator), new Gateway(two, one, operator)];
    this.#rekey = this.#server();
  }

  async start(): Promise<void> {
    for (const { self } of this.ends) await insertMember(this.#services.store, self.id);
    await this.#services.store.write((tx) => makeGroupKey(tx, this.#now, 0));
    for (const end of this.ends) {
      await end.start();
      await this.#sync(end);
    }
    await this.#check();
  }

  async run(one: Step): Promise<void> {
    switch (one.kind) {
      case 'rekey':
        await this.#rekey.renew('operator', one.force);
        break;
      case 'deliver':
      case 'lose':
      case 'double':
        this.#end(one.at & 1).pass(one.kind, one.at >> 1);
        break;
      case 'confirm':
        await this.#confirm(this.#end(one.end));
        break;
      case 'sync':
        await this.#sync(this.#end(one.end));
        break;
      case 'ask':
        await this.#ask(this.#end(one.end));
        break;
      case 'boot':
        await this.#end(one.end).restart();
        break;
      case 'broadcast':
        await this.#broadcast(one.end);
        break;
      case 'grace':
        this.#end(one.end).plane.grace();
        break;
      case 'leave':
        this.#live.delete(this.#end(one.end));
        this.#end(one.end).inbox.length = 0;
        break;
      case 'revoke':
        await this.#services.store.write((tx) => this.#rekey.revokeIn(tx));
        this.#rekey.revoked();
        break;
      case 'server dies':
        await this.#serverDies();
        break;
      case 'back up':
        this.#backup = await this.#key();
        break;
      case 'put back':
        await this.#putBack();
        break;
      case 'a while':
      case 'patience':
        this.#now += one.kind === 'a while' ? A_WHILE_MS : PATIENCE_MS;
        await this.#rekey.tick();
        break;
    }
    // Pushes are made of what is read, after a turn.
    await this.#turns();
    await this.#check();
  }

  /** Nothing is lost any more: both members must come to agree, and with the server. */
  async settle(): Promise<void> {
    for (let round = 0; round < 6; round += 1) {
      this.#now += A_WHILE_MS * 2;
      for (const end of this.ends) {
        while (end.inbox.length > 0) end.pass('deliver', 0);
        await this.#sync(end);
        await this.#turns();
        await this.#confirm(end);
      }
      await this.#rekey.tick();
      await this.#turns();
    }
    const key = await this.#key();
    expect(key.next, 'nothing is left half-way').toBeUndefined();
    for (const { plane } of this.ends) {
      plane.grace();
      expect(plane.group.send).toBe(key.pwId);
      // Nothing of before is left, so nothing of before can be forged in.
      expect([...plane.group.held]).toEqual([[key.pwId, key.key.toString('hex')]]);
    }
  }

  close(): void {
    this.#dead = true;
    this.#rekey.close();
  }

  #end(at: number): Gateway {
    return at === 0 ? this.ends[0] : this.ends[1];
  }

  async #key(): Promise<GroupKey> {
    const key = await this.#services.store.groupKey(GROUP_ID);
    if (key === undefined) throw new Error('no group key');
    return key;
  }

  async #turns(): Promise<void> {
    for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  }

  #server(): GroupRekey {
    const tell = async (end: Gateway): Promise<void> => {
      const key = await this.#key();
      if (!this.#dead && this.#live.has(end)) end.inbox.push(groupChange(key, key.changed));
    };
    return new GroupRekey(this.#services, {
      live: () => [...this.#live].map(({ self }) => self.id),
      liveCount: () => this.#live.size,
      tellAll: () => {
        for (const end of this.ends) void tell(end);
      },
      tell: (to) => {
        const end = this.ends.find(({ self }) => self.id === to);
        if (end !== undefined) void tell(end);
      },
    });
  }

  async #serverDies(): Promise<void> {
    this.#rekey.close();
    this.#live.clear();
    for (const end of this.ends) end.inbox.length = 0;
    this.#rekey = this.#server();
    await this.#rekey.resume();
  }

  async #putBack(): Promise<void> {
    const backup = this.#backup;
    if (backup === undefined) return;
    await this.#services.store.write(async (tx) => {
      const changed = await tx.nextChange();
      await tx.replaceGroup({ ...backup, serial: changed, changed });
      if (backup.next !== undefined) {
        const serial = await tx.nextChange();
        await tx.prepareGroup(GROUP_ID, { ...backup.next, serial }, serial);
      }
    });
    this.#made.again = true;
    for (const end of this.ends) end.anew = true;
    await this.#serverDies();
  }

  async #sync(end: Gateway): Promise<void> {
    this.#live.add(end);
    const key = await this.#key();
    end.sync([groupChange(key, key.changed)]);
    const { group } = end.table.unknownToServer();
    if (group !== undefined) await this.#rekey.putAbove(group);
  }

  /** A key request: an answer says nothing of what is next. */
  async #ask(end: Gateway): Promise<void> {
    const key = await this.#key();
    this.#rekey.askedWith(end.self.id, key, end.table.group?.pwId);
    end.table.takeGroup({ pwId: key.pwId, key: key.key, oldest: key.oldest });
  }

  async #confirm(end: Gateway): Promise<void> {
    const prepared = end.table.preparedGroup();
    if (prepared !== undefined && this.#live.has(end)) {
      await this.#rekey.confirm(end.self.id, prepared);
    }
  }

  /** To `to`: it opens, or its key is asked for; and who hears a newer one sends with it. */
  async #broadcast(to: number): Promise<void> {
    const receiver = this.#end(to);
    const sender = this.#end(1 - to);
    const { send } = sender.plane.group;
    if (send === undefined) return;
    const held = receiver.plane.group.held.get(send);
    if (held === undefined || held !== sender.plane.group.held.get(send)) {
      await this.#ask(receiver);
      return;
    }
    if (send > (receiver.plane.group.send ?? 0)) {
      receiver.plane.group.choose(send);
      receiver.table.committedGroup(send);
    }
  }

  async #check(): Promise<void> {
    const key = await this.#key();
    this.#made.note(key);
    this.#made.note(key.next);
    for (const { plane } of this.ends) this.#made.check(plane.group);
  }
}

describe('the generations of the group key', () => {
  let subnet: TestSubnet;
  let services: Services;
  let number = 0;
  beforeAll(async () => {
    subnet = await TestSubnet.start();
    // Only the store is wanted: by the real clock every key of the model is too old.
    await subnet.server.close();
    services = await servicesOf(subnet, new Metrics());
  });
  afterAll(async () => {
    await services.audit.close();
    await subnet.close();
  });

  it('whatever is lost, doubled or dies, all come to agree, hold nothing older, and no number has two keys', async () => {
    const operator = new TestOperator();
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 60 }), async (steps) => {
        number += 1;
        const world = new World(services, operator, [`v${number}`, `w${number}`]);
        try {
          await world.start();
          for (const one of steps) await world.run(one);
          await world.settle();
        } finally {
          world.close();
        }
      }),
      { numRuns: RUNS },
    );
  }, 120_000);
});
