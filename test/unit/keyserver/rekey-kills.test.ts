/**
 * kill -9 of the key server at a random moment of a renewal, of the pair's key and of the group's: afterwards both
 * ends agree on a generation, nothing stays broken, and no number was ever used for two keys.
 *
 * PAIRWIRE_REKEY_KILLS says how often (default 15).
 */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { GROUP_ID, type Id } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import type { Change } from '../../../src/protocol/messages.js';
import { ServerProcess } from './support/server-process.js';
import { openKeys } from './support/store.js';
import { SUBNET, sleep, TestMember, until } from './support/subnet.js';

const KILLS = Number(process.env.PAIRWIRE_REKEY_KILLS ?? 15);
/** After a restart the server gives members 5 s to come back before it puts a group key in force. */
const GROUP_EVERY = Math.max(1, Math.floor(KILLS / 15));
/** A renewal takes some milliseconds; the kill falls into it or shortly after. */
const WITHIN_MS = 60;
/** A round is two starts of programs; on a busy machine that takes some seconds. */
const ROUND_MS = 60_000;

type KeyChange = Extract<Change, { kind: 'pair' | 'group' }>;

/** Which key each generation has, of all that any of us ever saw. */
const seen = new Map<string, string>();

function note(what: string, pwId: number, key: Uint8Array): void {
  const name = `${what} ${pwId}`;
  const text = Buffer.from(key).toString('hex');
  expect(seen.get(name) ?? text, `the key of ${name}`).toBe(text);
  seen.set(name, text);
}

/** A member as its gateway's control plane would behave: it has what it was told last, and confirms what is next. */
class End {
  readonly #member: TestMember;
  #cursor = 0;
  #epoch: Uint8Array | undefined;
  readonly has = new Map<'pair' | 'group', KeyChange>();

  constructor(member: TestMember) {
    this.#member = member;
    member.onPush = (push) => {
      if (push.t === 'changes') void this.#take(push.changes as Change[]).catch(() => undefined);
    };
  }

  async comeBack(): Promise<void> {
    await this.#member.registerAgain();
    for (let more = true; more; ) {
      const page = await this.#member.sync(this.#cursor, this.#epoch);
      this.#cursor = page.cursor;
      this.#epoch = page.epoch;
      more = page.more;
      await this.#take(page.changes);
    }
    // What it had confirmed to a server that is gone it says again.
    await this.#confirm();
  }

  async #take(changes: readonly Change[]): Promise<void> {
    for (const change of changes) {
      if (change.kind !== 'pair' && change.kind !== 'group') continue;
      note(change.kind, change.pwId, change.key);
      if (change.next !== undefined) note(change.kind, change.next.pwId, change.next.key);
      const former = this.has.get(change.kind);
      if (former !== undefined && former.pwId > change.pwId) continue;
      this.has.set(change.kind, change);
    }
    await this.#confirm();
  }

  async #confirm(): Promise<void> {
    const pair = this.has.get('pair');
    const group = this.has.get('group')?.next?.pwId;
    const peer = pair?.kind === 'pair' ? pair.peer : undefined;
    const next = pair?.next?.pwId;
    const pairs = peer === undefined || next === undefined ? [] : [{ peer, pwId: next }];
    if (pairs.length === 0 && group === undefined) return;
    await this.#member.client.request({
      t: 'key.confirm',
      pairs,
      ...(group === undefined ? {} : { group }),
    });
  }
}

let server: ServerProcess;
let ends: readonly End[];
let ids: readonly Id[];

beforeAll(async () => {
  server = await ServerProcess.make();
  await server.start();
  const members = ['alice', 'bob'].map((id) => new TestMember(server, id));
  for (const member of members) {
    await member.enrol(server.token({ id: member.id }));
    await member.register();
  }
  ids = members.map(({ id }) => id);
  ends = members.map((member) => new End(member));
  for (const end of ends) await end.comeBack();
  await members[0]?.keyByMac(defaultMac(SUBNET, 'bob'));
  for (const end of ends) await end.comeBack();
});
afterAll(() => server.remove());

it(
  `${KILLS} times: both ends agree, and a number has one key`,
  async () => {
    const reached: number[] = [];
    for (let round = 0; round < KILLS; round += 1) {
      const admin = server.admin();
      await until(() => admin.state.kind === 'open', "the operator's channel");
      const force = round % 3 === 0;
      const orders = [
        admin.request({ t: 'rekey', force }, { timeoutMs: 2_000 }),
        ...(round % GROUP_EVERY === 0
          ? [admin.request({ t: 'rekey', group: true, force }, { timeoutMs: 2_000 })]
          : []),
      ];
      const settled = Promise.allSettled(orders);
      // Before the order is stored or after, however quick the machine is.
      if (round % 2 === 1) await settled;
      await sleep(Math.random() * WITHIN_MS);
      await server.kill();
      admin.stop();
      await server.start();
      await Promise.all(ends.map((end) => end.comeBack()));
      for (const kind of ['pair', 'group'] as const) {
        const agreed = () => {
          const [a, b] = ends.map((end) => end.has.get(kind));
          return a?.next === undefined && b?.next === undefined && a?.pwId === b?.pwId;
        };
        const what = `both ends to agree on the ${kind} key in round ${round}`;
        await until(agreed, what, ROUND_MS);
      }
      reached.push(ends[0]?.has.get('pair')?.pwId ?? 0);
    }
    // Some kills came before the order was stored, half did not.
    expect(reached.at(-1)).toBeGreaterThan(KILLS / 4);

    await server.kill();
    const store = await openKeys(server.paths);
    const [a = ids[0], b] = ids;
    const pair = a === undefined || b === undefined ? undefined : await store.pairKey(a, b);
    const group = await store.groupKey(GROUP_ID);
    await store.close();
    expect(pair?.pwId).toBe(ends[0]?.has.get('pair')?.pwId);
    expect(group?.pwId).toBe(ends[0]?.has.get('group')?.pwId);
    if (pair !== undefined) note('pair', pair.pwId, pair.key);
    if (group !== undefined) note('group', group.pwId, group.key);
  },
  KILLS * ROUND_MS + 120_000,
);
