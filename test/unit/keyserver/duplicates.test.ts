/** Two live sessions of one id: the cloned disk is refused and told to stop, a restart is not (C9). */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Instance, LiveSessions } from '../../../keyserver/registry/live-sessions.js';
import { TestMember, TestSubnet, until } from './support/subnet.js';

describe('live sessions', () => {
  const machineA = randomBytes(16);
  const machineB = randomBytes(16);
  const start = (machine: Buffer): Instance => ({ machine, nonce: randomBytes(16) });
  const first = start(machineA);

  it('take the first, and the same instance again at once', () => {
    const live = new LiveSessions<string>();
    expect(live.judge('a', 's1', first, 0, 0)).toEqual({ kind: 'take' });
    live.take('a', 's1', first);
    expect(live.judge('a', 's2', first, 0, 0)).toEqual({ kind: 'take' });
    expect(live.take('a', 's2', first)).toBe('s1');
    expect(live.ended('a', 's1', 1)).toBe(false);
    expect(live.get('a')).toBe('s2');
  });

  it('make another instance wait while the first is open, and refuse it after 5 s', () => {
    const live = new LiveSessions<string>();
    live.take('a', 's1', first);
    for (const other of [start(machineA), start(machineB)]) {
      expect(live.judge('a', 's2', other, 100, 0).kind).toBe('wait');
      expect(live.judge('a', 's2', other, 4_999, 4_899).kind).toBe('wait');
      expect(live.judge('a', 's2', other, 5_100, 5_000)).toEqual({ kind: 'duplicate' });
    }
  });

  it('let a restart in as soon as the old channel ended, another machine 5 s later', () => {
    const live = new LiveSessions<string>();
    live.take('a', 's1', first);
    expect(live.ended('a', 's1', 1_000)).toBe(true);
    expect(live.get('a')).toBeUndefined();
    expect(live.judge('a', 's2', start(machineA), 1_000, 0)).toEqual({ kind: 'take' });
    expect(live.judge('a', 's2', start(machineB), 1_000, 0).kind).toBe('wait');
    expect(live.judge('a', 's2', start(machineB), 5_999, 4_999).kind).toBe('wait');
    expect(live.judge('a', 's2', start(machineB), 6_000, 5_000)).toEqual({ kind: 'take' });
    live.sweep(6_000);
    expect(live.judge('a', 's2', start(machineB), 6_000, 0).kind).toBe('take');
  });
});

/** Who must wait until a channel is dead waits so long, ms; who need not is let in long before. */
const DEAD_FOR = 400;
const DEAD_FOR_LONG = 20_000;

describe('a cloned disk', () => {
  let subnet: TestSubnet;
  let original: TestMember;

  async function stand(deadForMs: number): Promise<void> {
    subnet = await TestSubnet.start({ tuning: { deadForMs } });
    original = await subnet.member('alice');
  }
  beforeEach(() => stand(DEAD_FOR));
  afterEach(() => subnet.close());

  async function standLong(): Promise<void> {
    await subnet.close();
    await stand(DEAD_FOR_LONG);
  }

  function clone(member: TestMember): TestMember {
    const copy = new TestMember(subnet, member.id);
    Object.assign(copy, { sign: member.sign, box: member.box, channelKeys: member.channelKeys });
    copy.machine = randomBytes(16);
    copy.sequence = member.sequence;
    copy.connect();
    return copy;
  }

  it('is refused, told to stop, and audited; the original goes on undisturbed', async () => {
    const { index } = await original.registerAgain();
    const copy = clone(original);
    await expect(copy.register()).rejects.toMatchObject({ code: 'refused' });
    await until(() => copy.pushes.some(({ t }) => t === 'duplicate'), 'the push');
    expect(original.pushes.some(({ t }) => t === 'duplicate')).toBe(false);
    expect((await original.registerAgain()).index).toBe(index);
    await until(
      async () => (await subnet.audit()).some(({ action }) => action === 'register_duplicate'),
      'the audit entry',
    );
  });

  it('is let in once the original is gone for good, and then the original is the duplicate', async () => {
    original.client.stop();
    const copy = clone(original);
    const began = Date.now();
    await copy.register();
    expect(Date.now() - began).toBeGreaterThan(DEAD_FOR * 0.75);
    original.connect();
    await expect(original.register()).rejects.toMatchObject({ code: 'refused' });
  });

  it('is no restart: the same machine with a new nonce is let in at once', async () => {
    await standLong();
    original.client.stop();
    original.connect();
    original.nonce = randomBytes(16);
    const began = Date.now();
    await original.register();
    expect(Date.now() - began).toBeLessThan(DEAD_FOR_LONG / 2);
  });

  it('is no reconnect: the same instance takes over from its own dead channel at once', async () => {
    await standLong();
    const second = clone(original);
    second.machine = original.machine;
    second.nonce = original.nonce;
    second.bootKey = original.bootKey;
    const began = Date.now();
    await second.registerAgain();
    expect(Date.now() - began).toBeLessThan(DEAD_FOR_LONG / 2);
  });
});
