/** A key server that refuses everything: the gateway comes again, seldom and not in step with others. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { AuditHeads } from '../../../../gateway/control/audit-heads.js';
import { Session, type SessionDeps } from '../../../../gateway/control/session.js';
import { Pins } from '../../../../gateway/key-table/pins.js';
import { Verifier } from '../../../../gateway/key-table/verifier.js';
import { RequestError } from '../../../../src/net/channel.js';
import { parseId } from '../../../../src/protocol/ids.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
} from '../../../../src/protocol/public-keys.js';
import { NOW, SUBNET, TestOperator, TestPeer } from '../support/records.js';

/** What is not come to before the first answer. */
function beyond<T extends object>(): T {
  return new Proxy({} as T, {
    get: (_target, name) => {
      throw new Error(`${String(name)} was asked for`);
    },
  });
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
});
afterEach(() => {
  vi.useRealTimers();
});

function session(code: 'limit' | 'unavailable', random: () => number) {
  const operator = new TestOperator();
  const verifier = new Verifier({
    subnet: SUBNET,
    operator: importPublic('ed25519', operator.public),
    pins: new Pins(undefined, operator.public),
    now: () => NOW,
  });
  const { member } = verifier.peer(new TestPeer(operator, 'alice').record(1, 1));
  const waits: number[] = [];
  let asked = 0;
  const it = new Session({
    subnet: SUBNET,
    member,
    sign: importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey),
    machine: Buffer.alloc(16),
    channel: {
      state: { kind: 'open', renewed: false } as SessionDeps['channel']['state'],
      request: () => {
        asked += 1;
        return Promise.reject(new RequestError(code));
      },
    },
    now: () => NOW,
    nextBootSequence: () => 1,
    table: beyond(),
    outside: beyond(),
    bindings: beyond(),
    verifier,
    identities: beyond(),
    auditHeads: new AuditHeads({ path: undefined, subnet: SUBNET, server: parseId('s1') }),
    handlers: {
      ...beyond<SessionDeps['handlers']>(),
      failed: (_what, _thrown, retryInMs) => waits.push(retryInMs),
    } as SessionDeps['handlers'],
    random,
  });
  it.setBoot({ boot: 1, public: Buffer.alloc(32, 1) });
  it.start();
  return { session: it, waits, asked: () => asked };
}

it('waits twice as long each time, ten seconds at most', async () => {
  const { session: it, waits, asked } = session('unavailable', () => 1);
  await vi.advanceTimersByTimeAsync(12_700);
  expect(waits).toEqual([100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(asked()).toBe(8 + 6);
  expect(Math.max(...waits)).toBe(10_000);
  await it.stop();
});

it('waits half of that at least, and a second more where it asked too often', async () => {
  const { session: it, waits } = session('limit', () => 0);
  await vi.advanceTimersByTimeAsync(120_000);
  expect(waits.slice(0, 3)).toEqual([1_050, 1_100, 1_200]);
  expect(waits.at(-1)).toBe(6_000);
  await it.stop();
});
