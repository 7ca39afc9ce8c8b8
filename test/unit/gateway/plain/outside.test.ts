/** What the key server says of the plain side, as the data plane is told it: all of it, and nothing that is not so any more. */
import { describe, expect, it } from 'vitest';
import type { CommandPort } from '../../../../gateway/dataplane/client.js';
import type {
  AnswerTo,
  CommandFields,
  CommandType,
} from '../../../../gateway/dataplane/messages.gen.js';
import { Outside } from '../../../../gateway/plain/outside.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { type MacAddress, macFromBytes, macToBytes } from '../../../../src/protocol/mac.js';

const GATE = parseId('gate');
const OTHER = parseId('other');

function nth(at: number): MacAddress {
  const bytes = Buffer.from([0x0a, 0, 0, 0, 0, 0]);
  bytes.writeUInt32BE(at, 2);
  return macFromBytes(bytes);
}

/** What a data plane would know from the commands that came, and how many those were. */
class Heard implements CommandPort {
  own: Set<string> | undefined;
  readonly behind = new Map<string, { peer: string; ms: number; pinned: boolean }>();
  commands = 0;
  #coming: Set<string> | undefined;

  request<T extends CommandType>(type: T, fields: CommandFields<T>): Promise<AnswerTo<T>> {
    this.commands += 1;
    const heard = { type, ...fields } as { type: string } & Partial<
      CommandFields<'own.set'> & CommandFields<'behind.set'>
    >;
    const macs = (heard.macs ?? []).map(macFromBytes);
    switch (heard.type) {
      case 'own.set':
        if (macs.length > 8_192) throw new Error('too long');
        if (heard.reset === true) this.#coming = new Set();
        for (const mac of macs) (this.#coming ?? this.own)?.add(mac);
        if (heard.more === false && this.#coming !== undefined) {
          this.own = this.#coming;
          this.#coming = undefined;
        }
        break;
      case 'own.remove':
        for (const mac of macs) this.own?.delete(mac);
        break;
      case 'behind.set':
        for (const { vlan, mac, ms, pinned } of heard.entries ?? []) {
          const peer = heard.peer ?? '';
          this.behind.set(`${vlan} ${macFromBytes(mac)}`, { peer, ms, pinned });
        }
        break;
      case 'behind.forget':
        for (const { vlan, mac } of heard.entries ?? []) {
          this.behind.delete(`${vlan} ${macFromBytes(mac)}`);
        }
        break;
    }
    return Promise.resolve({} as AnswerTo<T>);
  }
}

function bench() {
  const heard = new Heard();
  const appeared: string[] = [];
  const state = { now: 1_000 };
  const outside = new Outside({
    port: 1,
    dataPlane: {
      request: (type, fields) => heard.request(type, fields),
    },
    now: () => state.now,
    onAddress: (mac) => appeared.push(mac),
    onCommandFailed: (error) => {
      throw error;
    },
  });
  const behind = (seq: number, at: number, member: typeof GATE | undefined, more = {}) =>
    outside.takeBehind({
      kind: 'behind',
      seq,
      vlan: 0,
      mac: nth(at),
      ms: 900_000,
      pinned: false,
      ...(member === undefined ? {} : { member }),
      ...more,
    });
  return { heard, outside, state, appeared, behind };
}

describe('the plain side as the data plane is told of it', () => {
  it('has no list of own addresses before it was told whole', async () => {
    const { heard, outside } = bench();
    await outside.installAll();
    outside.beginFull();
    for (let at = 0; at < 20_000; at += 1) outside.takeOwn(nth(at), at + 1, true);
    outside.flush();
    // A plain port that had half a list would let out what belongs to the other half.
    expect(heard.own).toBeUndefined();
    outside.endFull(true);
    expect(heard.own?.size).toBe(20_000);
    expect(heard.commands).toBe(3);
  });

  it('has one that is empty if there is nobody, and none if that does not concern us', async () => {
    const { heard, outside } = bench();
    await outside.installAll();
    outside.beginFull();
    outside.endFull(false);
    expect(heard.own).toBeUndefined();
    outside.beginFull();
    outside.endFull(true);
    expect(heard.own?.size).toBe(0);
  });

  it('changes with each change, however late or doubled it comes', async () => {
    const { heard, outside, behind, appeared } = bench();
    await outside.installAll();
    outside.beginFull();
    outside.takeOwn(nth(1), 5, true);
    outside.endFull(true);
    outside.takeOwn(nth(1), 9, false);
    outside.takeOwn(nth(1), 5, true);
    outside.takeOwn(nth(2), 10, true);
    behind(11, 3, GATE);
    behind(14, 3, OTHER, { pinned: true, ms: 0 });
    behind(11, 3, GATE);
    outside.flush();
    expect([...(heard.own ?? [])]).toEqual([nth(2)]);
    expect(heard.behind.get(`0 ${nth(3)}`)).toEqual({ peer: 'other', ms: 0, pinned: true });
    expect(appeared).toContain(nth(3));
    behind(15, 3, undefined);
    outside.flush();
    expect(heard.behind.size).toBe(0);
  });

  it('is told to a new data plane again, but for what has run out meanwhile', async () => {
    const { heard, outside, state, behind } = bench();
    outside.beginFull();
    outside.takeOwn(nth(1), 1, true);
    outside.endFull(true);
    behind(2, 2, GATE);
    behind(3, 3, GATE, { ms: 5_000 });
    behind(4, 4, OTHER, { ms: 0, pinned: true });
    expect(heard.commands).toBe(0);
    state.now += 6_000;
    await outside.installAll();
    expect([...(heard.own ?? [])]).toEqual([nth(1)]);
    expect(Object.fromEntries(heard.behind)).toEqual({
      [`0 ${nth(2)}`]: { peer: 'gate', ms: 894_000, pinned: false },
      [`0 ${nth(4)}`]: { peer: 'other', ms: 0, pinned: true },
    });
    outside.detached();
    const before = heard.commands;
    behind(5, 5, GATE);
    outside.flush();
    expect(heard.commands).toBe(before);
  });

  it("forgets what is outside and is not named by a store that begins anew; what was a member's own stays", async () => {
    const { heard, outside, behind } = bench();
    await outside.installAll();
    outside.beginFull();
    outside.takeOwn(nth(1), 10, true);
    outside.takeOwn(nth(2), 11, true);
    behind(12, 3, GATE);
    behind(13, 4, GATE);
    outside.endFull(true);
    outside.beginFull();
    outside.takeOwn(nth(2), 1, true);
    behind(2, 4, OTHER);
    outside.endFull(true);
    expect([...(heard.own ?? [])].toSorted()).toEqual([nth(1), nth(2)]);
    behind(3, 1, OTHER);
    outside.flush();
    expect(heard.behind.has(`0 ${nth(1)}`)).toBe(false);
    expect([...heard.behind.keys()]).toEqual([`0 ${nth(4)}`]);
    expect(heard.behind.get(`0 ${nth(4)}`)?.peer).toBe('other');
  });

  it('keeps at most 16,384 addresses: the oldest goes', async () => {
    const { outside, behind, heard } = bench();
    for (let at = 0; at < 16_500; at += 1) behind(at + 1, at, GATE);
    expect(outside.size.behind).toBe(16_384);
    await outside.installAll();
    expect(heard.behind.has(`0 ${nth(0)}`)).toBe(false);
    expect(heard.behind.has(`0 ${nth(16_499)}`)).toBe(true);
    expect(macToBytes(nth(16_499)).length).toBe(6);
  });
});
