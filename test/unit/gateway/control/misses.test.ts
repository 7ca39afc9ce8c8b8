/** Misses: coalesced, remembered, budgeted; strangers never use up what we need ourselves. */
import { beforeEach, describe, expect, it } from 'vitest';
import { Misses, type Outcome, type Question } from '../../../../gateway/control/misses.js';
import type { PeerEntry } from '../../../../gateway/key-table/peer-table.js';
import type { MacAddress } from '../../../../src/protocol/mac.js';

const mac = (n: number) =>
  `02:00:00:00:${(n >> 8).toString(16).padStart(2, '0')}:${(n & 255).toString(16).padStart(2, '0')}` as MacAddress;
const from = (a: number, b = 0, c = 0) => ({ ip: Buffer.from([10, a, b, c]), port: 1 });

class Bench {
  now = 1_000;
  readonly asked: Question[] = [];
  readonly refused: [string, number][] = [];
  readonly answers: ((outcome: Outcome) => void)[] = [];
  outcome: Outcome | undefined = 'installed';
  entry: Partial<PeerEntry> | undefined;
  reinstalls = 0;
  canReinstall = false;
  readonly misses = new Misses({
    now: () => this.now,
    table: {
      byMac: () => this.entry as PeerEntry | undefined,
      byIndex: () => this.entry as PeerEntry | undefined,
      reinstall: () => {
        this.reinstalls += 1;
        return this.canReinstall;
      },
      reinstallGroup: () => false,
      group: undefined,
    },
    ask: (question) => {
      this.asked.push(question);
      if (this.outcome !== undefined) return Promise.resolve(this.outcome);
      return new Promise((resolve) => this.answers.push(resolve));
    },
    refuse: (address, ms) => this.refused.push([address, ms]),
    random: () => 0,
  });
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

describe('misses', () => {
  let bench: Bench;
  beforeEach(() => {
    bench = new Bench();
  });

  it('a frame for an unknown address asks once, however often it comes', async () => {
    bench.outcome = undefined;
    for (let i = 0; i < 100; i += 1) bench.misses.mac(mac(1));
    expect(bench.asked).toEqual([{ kind: 'mac', mac: mac(1), vlan: 0 }]);
    expect(bench.misses.counters.coalesced).toBe(99);
    bench.answers[0]?.('installed');
    await settled();
    bench.misses.mac(mac(1));
    expect(bench.asked.length).toBe(2);
  });

  it('no such member holds for 2 s, or until a change brings the address', async () => {
    bench.outcome = 'none';
    bench.misses.mac(mac(1));
    await settled();
    expect(bench.refused).toEqual([[mac(1), 2_000]]);
    bench.now += 1_500;
    bench.misses.mac(mac(1));
    expect(bench.asked.length).toBe(1);
    expect(bench.refused.at(-1)).toEqual([mac(1), 500]);
    bench.misses.appeared(mac(1));
    expect(bench.refused.at(-1)).toEqual([mac(1), 0]);
    bench.misses.mac(mac(1));
    expect(bench.asked.length).toBe(2);
    await settled();
    bench.now += 2_001;
    bench.misses.mac(mac(1));
    expect(bench.asked.length).toBe(3);
  });

  it('the same address in two VLANs is two questions, and a change of it voids both', async () => {
    bench.outcome = 'none';
    bench.misses.mac(mac(1), 7);
    bench.misses.mac(mac(1), 8);
    bench.misses.mac(mac(1));
    expect(bench.asked).toEqual([7, 8, 0].map((vlan) => ({ kind: 'mac', mac: mac(1), vlan })));
    await settled();
    bench.misses.mac(mac(1), 7);
    expect(bench.asked.length).toBe(3);
    bench.misses.appeared(mac(1));
    expect(bench.refused.at(-1)).toEqual([mac(1), 0]);
    bench.misses.mac(mac(1), 7);
    bench.misses.mac(mac(1), 8);
    expect(bench.asked.length).toBe(5);
  });

  it("an address is remembered to be nobody's in 64 VLANs; in one more it is asked about again", async () => {
    bench.outcome = 'none';
    const ask = async (vlan: number): Promise<boolean> => {
      const before = bench.asked.length;
      bench.misses.mac(mac(1), vlan);
      await settled();
      return bench.asked.length > before;
    };
    for (let vlan = 1; vlan <= 64; vlan += 1) expect(await ask(vlan)).toBe(true);
    expect(await ask(64)).toBe(false);
    expect(bench.misses.counters.forgotten).toBe(0);
    expect(await ask(65)).toBe(true);
    expect(bench.misses.counters.forgotten).toBe(1);
    expect(await ask(65)).toBe(true);
    // It appears: in none of them is it nobody's any more.
    bench.misses.appeared(mac(1));
    for (const vlan of [1, 64, 65]) expect(await ask(vlan)).toBe(true);
  });

  it("of more addresses in VLANs than are remembered none stays nobody's when it appears", async () => {
    bench.outcome = 'none';
    for (let n = 0; n <= 1_024; n += 1) {
      bench.now += 30;
      bench.misses.mac(mac(n), 7);
      await settled();
    }
    expect(bench.misses.counters.forgotten).toBeGreaterThan(0);
    bench.now += 1_000;
    const before = bench.asked.length;
    const lately = Array.from({ length: 24 }, (_, at) => mac(1_000 + at));
    for (const address of lately) bench.misses.mac(address, 7);
    expect(bench.asked.length).toBe(before);
    for (const address of lately) bench.misses.appeared(address);
    for (const address of lately) bench.misses.mac(address, 7);
    expect(bench.asked.length).toBe(before + 24);
  });

  it('the generation that we hold goes with the question', () => {
    bench.entry = { key: { pwId: 7, key: Buffer.alloc(32) } };
    bench.misses.mac(mac(1));
    bench.misses.index(5, 6, false, from(1));
    expect(bench.asked).toEqual([
      { kind: 'mac', mac: mac(1), vlan: 0, pwId: 7 },
      { kind: 'index', index: 5, kid: 6, group: false, pwId: 7 },
    ]);
  });

  it('what the table holds is installed again first, then asked for', () => {
    bench.entry = { key: { pwId: 7, key: Buffer.alloc(32) } };
    bench.canReinstall = true;
    bench.misses.mac(mac(1));
    expect([bench.asked.length, bench.reinstalls]).toEqual([0, 1]);
    bench.misses.mac(mac(1));
    expect([bench.asked.length, bench.reinstalls]).toEqual([1, 1]);
  });

  it('a peer that sends slowly under a generation that we were not told of makes us ask', async () => {
    bench.entry = { key: { pwId: 7, key: Buffer.alloc(32) } };
    bench.canReinstall = true;
    bench.misses.index(5, 60, false, from(1));
    expect([bench.asked.length, bench.reinstalls]).toEqual([0, 1]);
    bench.now += 3_000;
    bench.misses.index(5, 60, false, from(1));
    expect(bench.asked).toEqual([{ kind: 'index', index: 5, kid: 60, group: false, pwId: 7 }]);
    // Another kid may be one of those that we should have.
    await settled();
    bench.now += 3_000;
    bench.misses.index(5, 61, false, from(1));
    expect(bench.reinstalls).toBe(2);
  });

  it('a group miss asks for the group key', () => {
    bench.misses.group();
    bench.misses.group();
    expect(bench.asked).toEqual([{ kind: 'group' }]);
  });

  it('an index that is not known is not asked for again for 10 s', async () => {
    bench.outcome = 'none';
    bench.misses.index(5, 6, false, from(1));
    await settled();
    bench.now += 9_000;
    bench.misses.index(5, 6, false, from(1));
    expect(bench.asked.length).toBe(1);
    bench.now += 1_001;
    bench.misses.index(5, 6, false, from(1));
    expect(bench.asked.length).toBe(2);
    expect(bench.refused).toEqual([]);
  });

  it('one source may cause 16 requests at once, whatever indices it invents', async () => {
    bench.outcome = 'none';
    for (let i = 0; i < 1_000; i += 1) {
      bench.misses.index(i + 1, 1, false, from(1));
      await settled();
    }
    expect(bench.asked.length).toBe(16);
    expect(bench.misses.counters.overBudgetInbound).toBe(984);
  });

  it('a flood from everywhere leaves the outbound share untouched', async () => {
    bench.outcome = 'none';
    for (let i = 0; i < 20_000; i += 1) {
      bench.misses.index(i + 1, 1, false, from(i & 255, (i >> 8) & 255, 1));
      if (i % 8 === 0) await settled();
    }
    await settled();
    expect(bench.asked.length).toBeLessThanOrEqual(64);
    bench.asked.length = 0;
    for (let i = 0; i < 64; i += 1) bench.misses.mac(mac(i));
    expect(bench.asked.length).toBe(64);
  });

  it('inbound requests that hang do not hold outbound ones up', () => {
    bench.outcome = undefined;
    for (let i = 0; i < 100; i += 1) bench.misses.index(i + 1, 1, false, from(i));
    expect(bench.asked.length).toBe(16);
    bench.misses.mac(mac(1));
    expect(bench.asked.at(-1)).toEqual({ kind: 'mac', mac: mac(1), vlan: 0 });
  });

  it('both shares together stay below what the key server allows', async () => {
    bench.outcome = 'none';
    for (let second = 0; second < 60; second += 1) {
      for (let i = 0; i < 100; i += 1) {
        bench.misses.mac(mac(second * 100 + i));
        bench.misses.index(second * 100 + i + 1, 1, false, from(i, second));
        if (i % 4 === 0) await settled();
      }
      bench.now += 1_000;
    }
    expect(bench.asked.length).toBeLessThanOrEqual(500 + 60 * 50);
  });

  it('a server that is limiting us is left alone', async () => {
    bench.outcome = 'limited';
    bench.misses.mac(mac(1));
    await settled();
    bench.outcome = 'installed';
    bench.misses.mac(mac(2));
    expect(bench.asked.length).toBe(1);
    bench.misses.stop();
  });

  it('a worn key is asked for within the budget, whatever a hostile data plane says', async () => {
    for (let i = 0; i < 1_000; i += 1) {
      bench.misses.worn(mac(1));
      bench.misses.worn(undefined);
      await settled();
    }
    expect(bench.asked).toEqual([
      { kind: 'mac', mac: mac(1), vlan: 0, worn: true },
      { kind: 'group', worn: true },
    ]);
    bench.now += 30_001;
    bench.misses.worn(mac(1));
    expect(bench.asked.length).toBe(3);
  });

  it('index 0, which no sender has, is never asked for', () => {
    bench.misses.index(0, 1, false, from(1));
    expect(bench.asked).toEqual([]);
  });
});
