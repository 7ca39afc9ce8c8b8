/** When a fresh boot key replaces another, in which order, and how a change that broke off goes on. */
import { beforeEach, describe, expect, it } from 'vitest';
import { BootKeys, OLD_BOOT_GRACE_MS, USE_AFTER_MS } from '../../../gateway/boot-keys.js';
import type { OwnBoot } from '../../../gateway/control/session.js';
import type { CommandPort } from '../../../gateway/dataplane/client.js';
import type {
  AnswerTo,
  CommandFields,
  CommandType,
} from '../../../gateway/dataplane/messages.gen.js';
import { PairwireError } from '../../../src/runtime/errors.js';

type Held = AnswerTo<'attach'>['ports'][number];

const DROP_MS = USE_AFTER_MS + OLD_BOOT_GRACE_MS;

/** Data plane, key table and session in one: notes what they are told, in order. */
class Bench implements CommandPort {
  readonly told: string[] = [];
  now = 1_000;
  connected = true;
  unreached: string[] = [];
  /** 0: the shortest interval, 1: the longest. */
  random = 0.5;
  postponed: (readonly string[])[] = [];
  failures: unknown[] = [];
  refuse = new Set<CommandType>();
  #made = 0;
  readonly keys = new BootKeys({
    port: 1,
    dataPlane: this,
    now: () => this.now,
    install: async (boot) => {
      this.told.push(`install ${boot}`);
    },
    register: (boot) => this.told.push(`register ${boot?.boot ?? 'none'}`),
    connected: () => this.connected,
    unreached: async () => this.unreached,
    onRenewed: (boot) => this.told.push(`renewed ${boot}`),
    onPostponed: (peers) => this.postponed.push(peers),
    onFailed: (thrown) => this.failures.push(thrown),
    random: () => this.random,
  });

  async request<T extends CommandType>(type: T, fields: CommandFields<T>): Promise<AnswerTo<T>> {
    const { port: _, ...rest } = fields as Record<string, unknown>;
    this.told.push([type, ...Object.values(rest)].join(' '));
    if (this.refuse.has(type)) throw new PairwireError('DATAPLANE_REFUSED', 'no');
    if (type !== 'boot.make') return {} as AnswerTo<T>;
    this.#made += 1;
    return own(this.#made) as unknown as AnswerTo<T>;
  }

  since(): string[] {
    return this.told.splice(0);
  }

  async later(seconds: number): Promise<void> {
    this.now += seconds * 1_000;
    await this.keys.tick();
  }

  registered(boot: number): Promise<void> {
    return this.keys.registered({ boot, index: 100 + boot, tag: 0 });
  }
}

function own(boot: number): OwnBoot {
  return { boot, public: Buffer.alloc(32, boot) };
}

/** Boot keys by number and index, and which of them bob's key is there for. */
function held(boots: Record<number, number>, keyed: readonly number[], send: number): Held {
  return {
    port: 1,
    subnet: 'east',
    member: 'alice',
    boots: Object.entries(boots).map(([boot, index]) => ({
      ...own(Number(boot)),
      index,
      send: Number(boot) === send,
    })),
    pairKeys: keyed.map((boot) => ({
      peer: 'bob',
      boot,
      peerIndex: 2,
      pwId: 1,
      kidSend: boot,
      kidReceive: boot,
      send: boot === send,
    })),
    groupKeys: [],
  } as unknown as Held;
}

describe('boot keys', () => {
  let bench: Bench;
  beforeEach(() => {
    bench = new Bench();
  });

  /** One is there and registered. */
  async function first(seconds = 100): Promise<void> {
    bench.keys.setInterval(seconds);
    expect(await bench.keys.attached('a', undefined)).toBe(false);
    await bench.registered(1);
    expect(bench.since()).toEqual([
      'boot.make',
      'install 1',
      'register 1',
      `boot.index 1 101 ${USE_AFTER_MS}`,
    ]);
  }

  it('are replaced at their age: received under, then registered, then all times told at once', async () => {
    await first();
    await bench.later(99);
    expect(bench.since()).toEqual([]);
    await bench.later(1);
    expect(bench.since()).toEqual(['boot.make', 'install 2', 'register 2', 'renewed 2']);
    expect(bench.keys.renewals).toBe(1);
    // Nothing more until it is registered, however long that takes.
    await bench.later(500);
    expect(bench.since()).toEqual([]);
    await bench.registered(2);
    expect(bench.since()).toEqual([`boot.index 2 102 ${USE_AFTER_MS}`, `boot.drop 1 ${DROP_MS}`]);
    await bench.registered(2); // A reconnect.
    expect(bench.since()).toEqual([`boot.index 2 102 ${USE_AFTER_MS}`]);
    expect(bench.keys.ageMs).toBe(500_000);
    await bench.later(0);
    expect(bench.since()).toEqual(['boot.make', 'install 3', 'register 3', 'renewed 3']);
  });

  it.each([
    [0, 90],
    [1, 110],
  ])('with a tenth of jitter: random %d of 100 s is %d s', async (random, seconds) => {
    bench.random = random;
    await first();
    await bench.later(seconds - 1);
    expect(bench.since()).toEqual([]);
    await bench.later(1);
    expect(bench.since()).toContain('register 2');
  });

  it('wait for a channel, follow the setting, and stay where it is 0', async () => {
    await first();
    bench.connected = false;
    await bench.later(150);
    expect(bench.since()).toEqual([]);
    bench.connected = true;
    bench.keys.setInterval(0);
    await bench.later(10_000);
    expect(bench.since()).toEqual([]);
    bench.keys.setInterval(30);
    await bench.later(0);
    expect(bench.since()).toContain('register 2');
  });

  it('wait for peers that we hear and that could not be told, but not for ever', async () => {
    await first();
    bench.unreached = ['bob'];
    await bench.later(100);
    await bench.later(1);
    expect(bench.postponed).toEqual([['bob']]);
    await expect(bench.keys.renewNow()).rejects.toMatchObject({ code: 'CONFLICT' });
    bench.unreached = [];
    await bench.later(10);
    expect(bench.since()).toContain('register 2');
    await bench.registered(2);
    bench.unreached = ['bob'];
    bench.since();
    await bench.later(199);
    expect(bench.since()).toEqual([]);
    await bench.later(10);
    expect(bench.since()).toContain('register 3');
  });

  it('are replaced by order, not twice at a time', async () => {
    await first(0);
    expect(await bench.keys.renewNow()).toBe(2);
    await expect(bench.keys.renewNow()).rejects.toMatchObject({ code: 'CONFLICT' });
    await bench.registered(2);
    await bench.later(DROP_MS / 1_000 - 1);
    await expect(bench.keys.renewNow()).rejects.toMatchObject({ code: 'CONFLICT' });
    await bench.later(1);
    expect(await bench.keys.renewNow()).toBe(3);
    bench.keys.gone();
    await expect(bench.keys.renewNow()).rejects.toMatchObject({ code: 'CONFLICT' });
  });

  it('that could not be made are tried again later', async () => {
    await first();
    bench.refuse.add('boot.make');
    await bench.later(100);
    await bench.later(1);
    expect(bench.since()).toEqual(['boot.make']);
    expect(bench.failures.length).toBe(1);
    bench.refuse.clear();
    await bench.later(10);
    expect(bench.since()).toContain('register 2');
  });

  it('are replaced at once when the key server has forgotten them', async () => {
    await first();
    bench.refuse.add('boot.index');
    await expect(bench.registered(1)).rejects.toThrow();
    expect(bench.since()).toEqual([
      `boot.index 1 101 ${USE_AFTER_MS}`,
      'boot.make',
      'install 2',
      'register 2',
      'boot.drop 1 0',
    ]);
    expect(bench.keys.renewals).toBe(0);

    // The one before as well, if it was about to be replaced.
    bench.refuse.clear();
    await bench.registered(2);
    await bench.keys.renewNow();
    bench.refuse.add('boot.index');
    bench.since();
    await expect(bench.registered(3)).rejects.toThrow();
    expect(bench.since().slice(-2)).toEqual(['boot.drop 2 0', 'boot.drop 3 0']);
  });

  it('keep their age over a new connection to the same data plane, not over a new data plane', async () => {
    await first();
    bench.now += 50_000;
    bench.keys.gone();
    expect(bench.keys.ageMs).toBeUndefined();
    await bench.keys.attached('a', held({ 1: 101 }, [1], 1));
    expect(bench.keys.ageMs).toBe(50_000);
    bench.keys.gone();
    await bench.keys.attached('b', held({ 1: 101 }, [1], 1));
    expect(bench.keys.ageMs).toBe(0);
  });

  describe('of a data plane that outlived its control plane', () => {
    it('one: goes on, and is registered', async () => {
      expect(await bench.keys.attached('a', held({ 4: 104 }, [4], 4))).toBe(true);
      expect(bench.since()).toEqual(['install 4', 'register 4']);
    });

    it('two with an index: the newer one goes on, and the other is dropped in its time', async () => {
      await bench.keys.attached('a', held({ 4: 104, 5: 105 }, [4, 5], 4));
      expect(bench.since()).toEqual(['install 5', 'register 5']);
      await bench.registered(5);
      expect(bench.since()).toEqual([`boot.index 5 105 ${USE_AFTER_MS}`, `boot.drop 4 ${DROP_MS}`]);
    });

    it('a newer one with all keys and without index: perhaps peers know it, so it goes on', async () => {
      await bench.keys.attached('a', held({ 4: 104, 5: 0 }, [4, 5], 4));
      expect(bench.since()).toEqual(['install 5', 'register 5']);
    });

    it('a newer one that lacks keys: nobody knows it, so it goes away', async () => {
      await bench.keys.attached('a', held({ 4: 104, 5: 0 }, [4], 4));
      expect(bench.since()).toEqual(['boot.drop 5 0', 'install 4', 'register 4']);
      await bench.registered(4);
      expect(bench.since()).toEqual([`boot.index 4 104 ${USE_AFTER_MS}`]);
    });
  });
});
