/**
 * Gateways of several key servers that have each other's KMS confirm who their peers are: real servers and KMSes, the real channel
 * between them, and gateways as far as they confirm. Either server may lie, be away, or ask for what it may not have.
 */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { kmsPublicKey } from '../../../keyserver/kms/folder.js';
import { keyPairFromPrivate } from '../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { ask } from '../../../src/protocol/kms-exchange.js';
import { ticketSchema } from '../../../src/protocol/kms-ticket.js';
import {
  answerSchemas,
  type CarriedAnswer,
  type CarriedAsk,
  type PeerRecord,
} from '../../../src/protocol/messages.js';
import { generateRawKeyPair } from '../../../src/protocol/public-keys.js';
import { settingsSchema } from '../../../src/protocol/records.js';
import { readUnverified } from '../../../src/protocol/signed.js';
import { SystemClock } from '../../../src/runtime/clock.js';
import { memberToken, RogueServer, recordOf, serverToken } from './support/cascade.js';
import { pairwire } from './support/commands.js';
import { Confirming, puppetOf } from './support/confirming.js';
import { ServerProcess } from './support/server-process.js';
import { meddle } from './support/store.js';
import { TestMember, TestSubnet, until } from './support/subnet.js';

const [S1, S2] = [parseId('s1'), parseId('s2')];

let one: TestSubnet;
let two: TestSubnet;
let alice: Confirming;
let bob: Confirming;
let carol: Confirming;
let dave: Confirming;

/** Each server has all of the other one. */
const known = (at: TestSubnet, id: string) =>
  until(async () => (await at.store.member(parseId(id)))?.online === true, `word of ${id}`);

/** alice and carol are at home at s1, which s2 comes to; bob and dave at s2. */
beforeAll(async () => {
  one = await TestSubnet.start({ kms: true });
  two = await TestSubnet.start({
    ...{
      kms: true,
      cascade: { token: serverToken(one, 's2'), operatorKey: one.paths.operatorKey },
    },
  });
  const ofOne = [{ server: S1, key: one.kms.publicKey }];
  const ofTwo = [{ server: S2, key: two.kms.publicKey }];
  [alice, carol] = await Promise.all([
    Confirming.join(one, 'alice', one.kms.publicKey, ofTwo),
    Confirming.join(one, 'carol', one.kms.publicKey, ofTwo),
  ]);
  [bob, dave] = await Promise.all([
    Confirming.join(two, 'bob', two.kms.publicKey, ofOne),
    Confirming.join(two, 'dave', two.kms.publicKey, ofOne),
  ]);
  await Promise.all([alice, bob, carol, dave].map((one) => one.publish()));
  for (const id of ['bob', 'dave']) await known(one, id);
  for (const id of ['alice', 'carol']) await known(two, id);
}, 60_000);
afterAll(async () => {
  for (const member of [alice, bob, carol, dave]) member?.identities.stop();
  await two.close();
  await one.close();
});

beforeEach(() => {
  for (const [member, home] of [
    [alice, one],
    [bob, two],
  ] as const) {
    member.lie = {};
    member.refusals.length = 0;
    member.problems.length = 0;
    member.begin(home, home.kms.publicKey);
    member.identities.registered(true);
  }
});

const audited = async (at: TestSubnet, actor: string, action: string): Promise<boolean> =>
  (await at.audit()).some((entry) => entry.actor === actor && entry.action === action);

describe('members of two key servers', () => {
  it('that have never seen each other confirm each other, each by the KMS of the other one, once', async () => {
    for (const [member, peer, home] of [
      [alice, 'bob', 's2/s1/alice'],
      [bob, 'alice', 's1/s2/bob'],
    ] as const) {
      const before = { ...member.asked };
      const record = await member.recordOf(peer);
      member.table.takeMember(record);
      expect(member.stateOf(peer)).toBe('unconfirmed');
      expect(member.pins.isPinned(parseId(peer))).toBe(false);
      await member.whose(peer, 'ready');
      expect(member.pins.isConfirmed(parseId(peer))).toBe(true);
      const { get, exchange } = member.asked;
      expect([get, exchange]).toEqual([before.get + 1, before.exchange + 1]);
      member.table.takeMember(record);
      expect(member.asked.get).toBe(get);
      // The KMS knows through whom the question came.
      const dir = peer === 'bob' ? two.kms.dir : one.kms.dir;
      const lines = readFileSync(`${dir}/audit.log`, 'utf8').split('\n');
      expect(lines.some((line) => line.includes(home) && line.includes('identity.open'))).toBe(
        true,
      );
    }
  });

  it('are asked about apart: the KMS of one being away holds nobody of the other up', async () => {
    const records = [await alice.recordOf('bob'), await alice.recordOf('carol')];
    await two.kms.halt();
    try {
      for (const record of records) alice.table.takeMember(record);
      await alice.whose('carol', 'ready');
      await alice.until(() => alice.problems.length > 0, 'a problem');
      expect(alice.stateOf('bob')).toBe('unconfirmed');
      expect(alice.installed).toEqual(new Set(['carol']));
      expect(alice.identities.status).toMatchObject({ waiting: 1, refused: 0 });
      expect(alice.problems[0]).toContain('peers at home at s2 can not be confirmed');
    } finally {
      await two.kms.run();
    }
    await alice.whose('bob', 'ready');
    expect(alice.identities.status.problem).toBeUndefined();
  }, 60_000);

  it('are believed by the signatures alone where the settings do not name that KMS, and status says so', async () => {
    const { others } = alice;
    const asked = alice.asked.get;
    alice.others = [];
    try {
      alice.begin(one, one.kms.publicKey);
      alice.identities.registered(true);
      alice.table.takeMember(await alice.recordOf('bob'));
      expect(alice.stateOf('bob')).toBe('ready');
      expect(alice.identities.status).toMatchObject({ mode: 'verify', unnamed: ['s2'] });
      expect(alice.asked.get).toBe(asked);
      // Named, it is pinned, goes on, and is confirmed meanwhile.
      alice.others = others;
      alice.useSettings(one, one.kms.publicKey);
      expect(alice.stateOf('bob')).toBe('ready');
      expect(alice.pins.isConfirmed(bob.id)).toBe(false);
      await alice.until(() => alice.pins.isConfirmed(bob.id), 'the KMS of s2');
      expect(alice.identities.status.unnamed).toEqual([]);
    } finally {
      alice.others = others;
    }
  });
});

describe('a home server that lies', () => {
  it('is caught when it tells a puppet under the id of its member, and when it had one pinned before', async () => {
    alice.table.takeMember(puppetOf(one, bob));
    await alice.whose('bob', 'refused');
    expect(alice.installed.size).toBe(0);
    expect(alice.pins.isPinned(bob.id)).toBe(false);
    expect(alice.refusals.map(({ code }) => code)).toEqual(['IDENTITY_REFUSED']);
    alice.table.takeMember(await alice.recordOf('bob'));
    await alice.whose('bob', 'ready');

    alice.begin(one, one.kms.publicKey, 'off');
    alice.identities.registered(true);
    alice.table.takeMember(puppetOf(one, bob));
    expect(alice.installed).toEqual(new Set(['bob']));
    alice.useSettings(one, one.kms.publicKey);
    await alice.whose('bob', 'refused');
    expect(alice.installed.size).toBe(0);
  });

  it('is caught when it puts the sealed document of one member in the place of another', async () => {
    const records = [await alice.recordOf('bob'), await alice.recordOf('dave')];
    await two.stopServer();
    await meddle(
      two.paths.database,
      "UPDATE identities SET document = (SELECT document FROM identities WHERE member = 'dave') WHERE member = 'bob'",
    );
    await two.startServer();
    const swapped = (await two.store.identityPair(dave.id))?.document ?? Buffer.alloc(0);
    for (const record of records) alice.table.takeMember(record);
    await Promise.all([alice.whose('bob', 'refused'), alice.whose('dave', 'ready')]);
    expect(alice.installed).toEqual(new Set(['dave']));
    await bob.until(() => bob.client.state.kind === 'open', 'its server');
    // Its owner mends it.
    const { put } = bob.asked;
    bob.identities.registered(false);
    await bob.until(() => bob.asked.put > put, 'its document');
    await until(
      async () => (await two.store.identityPair(bob.id))?.document.equals(swapped) === false,
      'its document at the server',
    );
  }, 60_000);
});

describe("an asker's own server that lies", () => {
  it('can neither answer in the place of the KMS nor have its own KMS answer', async () => {
    const record = await alice.recordOf('bob');
    const lies: Confirming['lie'][] = [
      // It has its own KMS asked.
      { exchange: (message) => alice.server.exchange(message) },
      // It answers itself.
      { exchange: (message) => Promise.resolve(Buffer.from(message).reverse()) },
      // It gives a ticket of its own.
      {
        get: async (ids, home) => ({
          ...(await alice.server.get(ids, home)),
          ticket: (await alice.server.get([])).ticket,
        }),
      },
      // And what its own KMS has sealed for another.
      {
        get: async (ids, home) => {
          const { ticket } = await alice.server.get(ids, home);
          const { pairs } = await alice.server.get([carol.id]);
          return { ticket, pairs: pairs.map((pair) => ({ ...pair, id: bob.id })) };
        },
      },
    ];
    for (const lie of lies) {
      alice.begin(one, one.kms.publicKey);
      alice.identities.registered(true);
      [alice.problems.length, alice.refusals.length] = [0, 0];
      alice.lie = lie;
      alice.table.takeMember(record);
      await alice.until(() => alice.problems.length + alice.refusals.length > 0, 'an alarm');
      expect(alice.stateOf('bob')).not.toBe('ready');
      expect(alice.installed.size).toBe(0);
      expect(alice.pins.isPinned(bob.id)).toBe(false);
    }
  });
});

describe('a home server that is away at first contact', () => {
  it('keeps its members waiting, disturbs nobody who is known, and is asked again when it is back', async () => {
    alice.table.takeMember(await alice.recordOf('dave'));
    await alice.whose('dave', 'ready');
    // Pinned, not confirmed.
    const record = await alice.recordOf('bob');
    await two.stopServer();
    try {
      await until(() => one.server.online > 0, 's1');
      alice.table.takeMember(record);
      await alice.until(() => alice.problems.length > 0, 'a problem');
      expect(alice.stateOf('bob')).toBe('unconfirmed');
      expect(alice.stateOf('dave')).toBe('ready');
      expect(alice.identities.status.problem).toContain('s2 can not be confirmed: unavailable');
      // After a restart, too: what is pinned is in force, what was never seen is not.
      const { pins } = alice;
      alice.begin(one, one.kms.publicKey, 'verify', pins);
      alice.identities.registered(true);
      alice.table.takeMember(record);
      alice.table.takeMember(await alice.recordOf('dave'));
      expect([alice.stateOf('bob'), alice.stateOf('dave')]).toEqual(['unconfirmed', 'ready']);
      // So is one that was pinned before anybody was asked.
      carol.begin(one, one.kms.publicKey, 'off');
      carol.identities.registered(true);
      carol.table.takeMember(record);
      carol.useSettings(one, one.kms.publicKey);
      await carol.until(() => carol.problems.length > 0, 'a problem');
      expect(carol.stateOf('bob')).toBe('ready');
      expect(carol.identities.status).toMatchObject({ waiting: 0, pinned: 1 });
    } finally {
      await two.startServer();
    }
    await alice.whose('bob', 'ready');
    expect(alice.identities.status).toMatchObject({ waiting: 0, problem: undefined });
    await carol.until(() => carol.pins.isConfirmed(bob.id), 'the KMS of s2');
  }, 60_000);
});

describe('a key server that asks for what it may not have', () => {
  const no = Buffer.alloc(8, 7);
  let rogue: RogueServer;
  const own = new TestMember({ subnet: parseId('east') } as TestSubnet, 'm1');
  let count = 0;

  beforeAll(async () => {
    rogue = await RogueServer.at(one, 's9');
    const token = memberToken(one, 's9', { id: 'm1', uses: 1 });
    own.sequence = 1;
    await rogue.tell({
      kind: 'member',
      member: {
        ...{ ...recordOf(one, 'm1', 's9'), index: rogue.number * 2 ** 24 },
        membership: own.membership(token),
        boot: own.bootRecord(),
      },
    });
    await known(one, 'm1');
  });

  /** What becomes of a question that it carries. */
  async function asks(
    what: { readonly ids?: readonly Id[]; readonly message?: Uint8Array; readonly asker?: Id } = {},
  ): Promise<CarriedAnswer> {
    count += 1;
    const number = Buffer.alloc(8, count);
    const { ids = [alice.id], message, asker = own.id } = what;
    const question: CarriedAsk =
      message === undefined
        ? { is: 'pairs', no: number, asker, ids: [...ids] }
        : { is: 'question', no: number, asker, message: Buffer.from(message) };
    let { answers } = await rogue.say({ asks: [question] });
    for (let tries = 0; answers === undefined && tries < 500; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      ({ answers } = await rogue.say({}));
    }
    const [answer, ...more] = answers ?? [];
    if (answer === undefined) throw new Error('no answer');
    expect(more).toEqual([]);
    expect(Buffer.from(answer.no).equals(number)).toBe(true);
    return answer;
  }

  it('gets a ticket for the channel key in the membership of its member, and sealed documents of those at home here', async () => {
    const answer = await asks({ ids: [alice.id, bob.id, parseId('nobody')] });
    if (answer.is !== 'pairs') throw new Error(answer.is);
    expect(answer.pairs.map(({ id }) => id)).toEqual(['alice']);
    const ticket = readUnverified(LABEL.kmsTicket, answer.ticket, ticketSchema);
    expect(ticket).toMatchObject({ server: 's1', home: 's9', id: 'm1' });
    expect(Buffer.from(ticket.channel).equals(own.channelKeys.publicKey)).toBe(true);
    // With another channel key the KMS refuses it; without one it is no use to the server.
    const keys = keyPairFromPrivate(generateRawKeyPair('x25519').privateKey);
    const pairs = answer.pairs.map((pair) => ({ ...pair }));
    const question = ask(one.kms.publicKey, keys, {
      ...{ t: 'identity.open', ticket: answer.ticket, pairs },
    });
    const reply = await asks({ message: question.message });
    if (reply.is !== 'message') throw new Error(reply.is);
    expect(question.answer(reply.message)).toEqual({ t: 'no', why: 'refused' });
  });

  it.each([
    ['a member of another server', 'bob'],
    ['a member of the one it asks', 'alice'],
    ['nobody', 'nobody'],
    ['an administrator', 'admin'],
  ])('gets nothing in the name of %s, and that is audited', async (_what, id) => {
    const message = Buffer.alloc(200, 1);
    for (const what of [{}, { message }]) {
      expect(await asks({ ...what, asker: parseId(id) })).toMatchObject({
        is: 'no',
        why: 'refused',
      });
    }
    // Its repeats are counted there.
    await until(() => audited(one, 'server:s9', 'cascade_home'), 'the audit entry');
  });

  it('answers nobody who has not asked it, and has no answer taken for that of another server', async () => {
    const message = Buffer.alloc(64);
    const lie = { is: 'message', no, message } as const;
    await rogue.say({ answers: [lie, { is: 'no', no, why: 'refused' }] });
    alice.table.takeMember(await alice.recordOf('bob'));
    await alice.whose('bob', 'ready');
  });

  it('gets nothing for a member that is revoked, and nothing at all once it is revoked itself', async () => {
    await rogue.say({
      state: { from: 1, cursor: 2, more: false, changes: [{ kind: 'revoked', id: own.id }] },
    });
    await until(async () => (await one.store.member(own.id))?.state !== 'active', 'the revocation');
    expect(await asks()).toMatchObject({ is: 'no', why: 'refused' });
    await one.admin().request({ t: 'revoke', member: 's9' });
    await expect(
      rogue.member.client.request({ t: 'ping' }, { timeoutMs: 1_500 }),
    ).rejects.toThrow();
    await until(() => audited(one, '-', 'channel_unknown'), 'the audit entry');
  });

  it('is not there if there is none of that id, for a member that asks', async () => {
    await expect(alice.server.get([bob.id], parseId('s8'))).rejects.toMatchObject({
      code: 'unavailable',
    });
  });
});

it('the time of the subnet may be five minutes off the clock of a server and its KMS: tickets go by that clock', async () => {
  const real = new SystemClock();
  const clock = { bootMs: () => real.bootMs(), wallMs: () => real.wallMs() + 300_000 };
  const first = await TestSubnet.start({ kms: true, clock });
  let second: TestSubnet | undefined;
  try {
    const { operatorKey } = first.paths;
    const cascade = { token: serverToken(first, 's2'), operatorKey };
    second = await TestSubnet.start({ kms: true, cascade });
    const { publicKey } = second.kms;
    const frank = await Confirming.join(second, 'frank', publicKey);
    await frank.publish();
    await until(async () => (await first.store.member(frank.id))?.online === true, 'word of frank');
    const erin = await Confirming.join(first, 'erin', first.kms.publicKey, [
      { server: S2, key: publicKey },
    ]);
    erin.identities.registered(true);
    erin.table.takeMember(await erin.recordOf('frank'));
    await erin.whose('frank', 'ready');
    for (const member of [erin, frank]) member.identities.stop();
  } finally {
    await second?.close();
    await first.close();
  }
}, 60_000);

describe('two key servers as processes, each with its KMS as a child', () => {
  it('confirm their members to each other, also after kill -9 of the home before first contact', async () => {
    const first = await ServerProcess.make();
    let second: ServerProcess | undefined;
    try {
      await first.start();
      const there = await ServerProcess.join(first, S2, serverToken(first, 's2'));
      second = there;
      await there.start();
      const [key1, key2] = [kmsPublicKey(first.paths.kms), kmsPublicKey(there.paths.kms)];
      // The operator names the KMS of the second at the first, where his key is.
      const text = key2.toString('base64url');
      const wrong = await pairwire(['settings', '--dir', first.dir, '--kms', 's2=key']);
      expect(wrong.err).toContain('names no public key');
      const { code, err } = await pairwire(['settings', '--dir', first.dir, '--kms', `s2=${text}`]);
      expect({ code, err }).toEqual({ code: 0, err: '' });
      const [erin, frank] = await Promise.all([
        Confirming.join(first, 'erin', key1, [{ server: S2, key: key2 }]),
        Confirming.join(there, 'frank', key2, [{ server: S1, key: key1 }]),
      ]);
      await Promise.all([erin.publish(), frank.publish()]);
      await until(async () => {
        const { settings } = await frank.client.request(
          {
            ...{ t: 'register', boot: frank.bootRecord() },
            ...{ machine: frank.machine, nonce: frank.nonce },
          },
          { parse: (it) => answerSchemas.register.parse(it) },
        );
        const { kms = [] } = readUnverified(LABEL.settings, settings, settingsSchema);
        return kms.map(({ server }) => server).join() === 's1,s2';
      }, 'the settings at s2');
      let record: PeerRecord | undefined;
      await until(async () => {
        record = await erin.recordOf('frank').catch(() => undefined);
        // Nobody is asked about who has not registered yet, and the first server may hear of that a little later.
        return record?.boot !== undefined;
      }, 'word of frank');
      if (record === undefined) throw new Error('unreachable');
      await there.kill();
      erin.table.takeMember(record);
      await erin.until(() => erin.problems.length > 0, 'a problem');
      expect(erin.stateOf('frank')).toBe('unconfirmed');
      expect(erin.installed.size).toBe(0);
      await there.start();
      await erin.whose('frank', 'ready');
      for (const member of [erin, frank]) member.identities.stop();
    } finally {
      await second?.remove();
      await first.remove();
    }
  }, 120_000);
});
