/** Key requests: made exactly once, for their owner only, the far end told first, and the documents' own rule with hold = 0. */
import { Writable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseId } from '../../../src/protocol/ids.js';
import { BROADCAST_MAC, defaultMac } from '../../../src/protocol/mac.js';
import { createLogger } from '../../../src/runtime/log.js';
import { SUBNET, sleep, type TestMember, TestSubnet, until } from './support/subnet.js';

const macOf = (id: string): string => defaultMac(SUBNET, id);

describe('key requests', () => {
  let subnet: TestSubnet;
  let alice: TestMember;
  let bob: TestMember;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    alice = await subnet.member('alice');
    bob = await subnet.member('bob', { ips: ['10.1.0.2'] });
  });
  afterEach(() => subnet.close());

  it('give both ends the same key, with the records of the other', async () => {
    const atAlice = await alice.keyByMac(macOf('bob'));
    const atBob = await bob.keyByMac(macOf('alice'));
    expect(atAlice.kind).toBe('pair');
    expect(atAlice.pwId).toBe(1);
    expect(Buffer.from(atAlice.key).equals(atBob.key)).toBe(true);
    expect(atAlice.peer?.id).toBe('bob');
    expect(atAlice.peer?.ips).toEqual(['10.1.0.2']);
    expect(atAlice.peer?.index).toBeGreaterThan(0);
    expect(atAlice.peer?.boot).toBeDefined();
    expect(atBob.peer?.id).toBe('alice');
  });

  it('answer a receiver by the sender index, but make no key for it', async () => {
    const { index } = await alice.registerAgain();
    await expect(bob.keyByIndex(index)).rejects.toMatchObject({ code: 'not_found' });
    const made = await alice.keyByMac(macOf('bob'));
    const asked = await bob.keyByIndex(index);
    expect(Buffer.from(asked.key).equals(made.key)).toBe(true);
    expect(asked.peer?.id).toBe('alice');
    await expect(bob.keyByIndex(0x00ff_fff0)).rejects.toMatchObject({ code: 'not_found' });
  });

  it('answer a group address with the group key, the same for all, with the sender for a receiver', async () => {
    const atAlice = await alice.keyByMac(BROADCAST_MAC);
    const atBob = await bob.keyByMac('33:33:00:00:00:01');
    expect(atAlice).toMatchObject({ kind: 'group', group: 'all', pwId: 1 });
    expect(Buffer.from(atAlice.key).equals(atBob.key)).toBe(true);
    const { index } = await alice.registerAgain();
    const received = await bob.keyByIndex(index, true);
    expect(received).toMatchObject({ kind: 'group', peer: { id: 'alice' } });
  });

  it('say not_found for an address that nobody owns, and for one of the asker itself', async () => {
    await expect(alice.keyByMac('02:99:99:99:99:99')).rejects.toMatchObject({ code: 'not_found' });
    await expect(alice.keyByMac(macOf('alice'))).rejects.toMatchObject({ code: 'not_found' });
    await expect(alice.keyByMac(macOf('admin'))).rejects.toMatchObject({ code: 'not_found' });
  });

  it('make one key when both ends ask at once, over many pairs', async () => {
    const members = await Promise.all(
      Array.from({ length: 8 }, (_unused, at) => subnet.member(`m${at}`)),
    );
    const answers = await Promise.all(
      members.flatMap((one) =>
        members
          .filter((other) => other !== one)
          .map(async (other) => {
            const { key } = await one.keyByMac(macOf(other.id));
            return {
              pair: [one.id, other.id].sort().join(),
              key: Buffer.from(key).toString('hex'),
            };
          }),
      ),
    );
    const keys = new Map<string, Set<string>>();
    for (const { pair, key } of answers) keys.set(pair, (keys.get(pair) ?? new Set()).add(key));
    expect(keys.size).toBe(28);
    for (const variants of keys.values()) expect(variants.size).toBe(1);
    expect(new Set(answers.map(({ key }) => key)).size).toBe(28);
  });

  it("refuse and audit a request in another's name, with what was asked for", async () => {
    const carol = await subnet.member('carol');
    await expect(carol.keyByMac(macOf('bob'), 'alice')).rejects.toMatchObject({ code: 'refused' });
    const { index } = await alice.registerAgain();
    await expect(carol.keyByIndex(index, false, 'bob')).rejects.toMatchObject({ code: 'refused' });
    await until(
      async () => (await subnet.audit()).some(({ action }) => action === 'foreign_requester'),
      'the audit entry',
    );
    const entry = (await subnet.audit()).find(({ action }) => action === 'foreign_requester');
    expect(entry).toMatchObject({
      actor: 'carol',
      detail: { requester: 'member:alice', mac: macOf('bob') },
    });
    expect(await subnet.store.pairKey(parseId('alice'), parseId('bob'))).toBeUndefined();
  });

  it('tell the far end first: record and key are pushed before the answer', async () => {
    const order: string[] = [];
    bob.onPush = (push) => {
      const changes = push.changes as { kind: string; peer?: string; member?: { id: string } }[];
      for (const change of changes) {
        if (change.kind === 'member' && change.member?.id === 'alice') order.push('record');
        if (change.kind === 'pair' && change.peer === 'alice') order.push('key');
      }
    };
    const answered = alice.keyByMac(macOf('bob')).then((answer) => {
      order.push('answer');
      return answer;
    });
    const answer = await answered;
    await until(() => order.includes('key') && order.includes('answer'), 'the introduction');
    expect(order).toEqual(['record', 'key', 'answer']);
    const pushed = bob.pushed().find((change) => change.kind === 'pair');
    expect(pushed?.kind === 'pair' && Buffer.from(pushed.key).equals(answer.key)).toBe(true);
    // Not again for the same state.
    await alice.keyByMac(macOf('bob'));
    await sleep(50);
    expect(order.filter((what) => what === 'key')).toHaveLength(1);
  });

  it('are limited, so that the directory cannot be enumerated', async () => {
    const results = await Promise.allSettled(
      Array.from({ length: 600 }, () => alice.keyByMac('02:99:99:99:99:99')),
    );
    const codes = results.map((result) =>
      result.status === 'rejected' ? (result.reason as { code: string }).code : 'ok',
    );
    const found = codes.filter((code) => code === 'not_found').length;
    expect(found).toBeGreaterThanOrEqual(500);
    expect(found).toBeLessThan(600);
    expect(codes.filter((code) => code === 'limit')).toHaveLength(600 - found);
    // Others are not touched by it.
    expect((await bob.keyByMac(macOf('alice'))).kind).toBe('pair');
  });
});

describe("with hold = 0, the documents' own rule", () => {
  it('each end must ask for itself; nothing is pushed or synced before', async () => {
    const lines: string[] = [];
    const sink = new Writable({
      write(chunk: Buffer, _encoding, done) {
        lines.push(chunk.toString());
        done();
      },
    });
    const log = createLogger('keyserver', { level: 'debug' }, sink);
    const subnet = await TestSubnet.start({ settings: { hold: 0 }, log });
    try {
      const alice = await subnet.member('alice');
      const bob = await subnet.member('bob');
      const start = await bob.syncAll();
      expect(start.changes.map(({ kind }) => kind)).not.toContain('group');

      const made = await alice.keyByMac(macOf('bob'));
      await alice.keyByMac(BROADCAST_MAC);
      const { changes, cursor } = await bob.syncAll(start.cursor, subnet.store.meta.epoch);
      expect(changes.filter(({ kind }) => kind === 'pair' || kind === 'group')).toEqual([]);
      expect(bob.pushed().filter(({ kind }) => kind === 'pair' || kind === 'group')).toEqual([]);
      const whole = await bob.syncAll();
      expect(whole.changes.filter(({ kind }) => kind === 'pair' || kind === 'group')).toEqual([]);

      const { index } = await alice.registerAgain();
      const asked = await bob.keyByIndex(index);
      expect(Buffer.from(asked.key).equals(made.key)).toBe(true);
      await bob.keyByIndex(index, true);
      // From now on it is state of bob's like any other, found by the cursor.
      const later = await bob.syncAll(cursor, subnet.store.meta.epoch);
      expect(later.changes.map(({ kind }) => kind)).toEqual(
        expect.arrayContaining(['pair', 'group']),
      );
      const text = lines.join('');
      expect(text).toContain(`(alice, ${macOf('bob')})`);
      expect(text).toContain(`(bob, index ${index})`);
      expect(text).not.toContain(Buffer.from(made.key).toString('hex'));
    } finally {
      await subnet.close();
    }
  });
});
