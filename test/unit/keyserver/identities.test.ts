/**
 * Gateways that have the KMS confirm who their peers are, with a key server that lies, has a database that somebody has written
 * to, or has lost its KMS: who is not who he says is not heard, and nobody else suffers.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Pins } from '../../../gateway/key-table/pins.js';
import { auditSignKey } from '../../../keyserver/audit-key.js';
import { kmsPublicKey } from '../../../keyserver/kms/folder.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { signTicket } from '../../../src/protocol/kms-ticket.js';
import { generateRawKeyPair, importPrivate, publicOf } from '../../../src/protocol/public-keys.js';
import { membershipSchema } from '../../../src/protocol/records.js';
import { readUnverified, signRecord } from '../../../src/protocol/signed.js';
import { Confirming, puppetOf } from './support/confirming.js';
import { ServerProcess } from './support/server-process.js';
import { meddle } from './support/store.js';
import { TestSubnet } from './support/subnet.js';

let subnet: TestSubnet;
let kms: Buffer;
let alice: Confirming;
let bob: Confirming;
let carol: Confirming;

beforeAll(async () => {
  subnet = await TestSubnet.start({ kms: true });
  kms = subnet.kms.publicKey;
  [alice, bob, carol] = await Promise.all([
    Confirming.join(subnet, 'alice', kms),
    Confirming.join(subnet, 'bob', kms),
    Confirming.join(subnet, 'carol', kms),
  ]);
  await Promise.all([alice.publish(), bob.publish(), carol.publish()]);
});
afterAll(() => subnet.close());

beforeEach(() => {
  alice.lie = {};
  alice.refusals.length = 0;
  alice.problems.length = 0;
  alice.begin(subnet, kms);
  alice.identities.registered(true);
});

describe('a peer that was never seen', () => {
  it('is heard when the KMS has confirmed it, and asked about once, also after a restart', async () => {
    const record = await alice.recordOf('bob');
    const before = { ...alice.asked };
    alice.table.takeMember(record);
    expect(alice.stateOf('bob')).toBe('unconfirmed');
    expect(alice.installed.has('bob')).toBe(false);
    expect(alice.pins.isPinned(bob.id), 'nothing is pinned before').toBe(false);
    await alice.whose('bob', 'ready');
    expect(alice.installed.has('bob')).toBe(true);
    expect(alice.pins.isConfirmed(bob.id)).toBe(true);
    expect(alice.asked).toEqual({ ...before, get: before.get + 1, exchange: before.exchange + 1 });
    alice.table.takeMember(record);
    const { pins } = alice;
    alice.begin(subnet, kms, 'verify', pins);
    alice.identities.registered(true);
    alice.table.takeMember(record);
    expect(alice.stateOf('bob')).toBe('ready');
    expect(alice.asked.exchange).toBe(before.exchange + 1);
  });

  it('is asked about together with others in one question', async () => {
    const records = [await alice.recordOf('bob'), await alice.recordOf('carol')];
    const before = alice.asked.exchange;
    for (const record of records) alice.table.takeMember(record);
    await Promise.all([alice.whose('bob', 'ready'), alice.whose('carol', 'ready')]);
    expect(alice.asked.exchange).toBe(before + 1);
  });

  it('waits, with a problem that says so, until its own document is there', async () => {
    const dave = await Confirming.join(subnet, 'dave', kms);
    alice.table.takeMember(await alice.recordOf('dave'));
    await alice.until(() => alice.problems.length > 0, 'a problem');
    expect(alice.stateOf('dave')).toBe('unconfirmed');
    expect(alice.identities.status).toMatchObject({ waiting: 1, refused: 0 });
    expect(alice.problems[0]).toContain('no identity document of dave yet');
    await dave.publish();
    await alice.whose('dave', 'ready');
    expect(alice.identities.status).toMatchObject({ waiting: 0, problem: undefined });
    dave.identities.stop();
  });

  it('has no traffic while the KMS is away, and one that is confirmed has', async () => {
    alice.table.takeMember(await alice.recordOf('carol'));
    await alice.whose('carol', 'ready');
    await subnet.kms.halt();
    try {
      const asked = alice.asked.exchange;
      alice.table.takeMember(await alice.recordOf('bob'));
      alice.table.takeMember(await alice.recordOf('carol'));
      await alice.until(() => alice.asked.exchange > asked, 'a question');
      expect(alice.stateOf('carol')).toBe('ready');
      expect(alice.installed).toEqual(new Set(['carol']));
      expect(alice.stateOf('bob')).toBe('unconfirmed');
    } finally {
      await subnet.kms.run();
    }
    await alice.whose('bob', 'ready');
    expect(alice.identities.status.problem).toBeUndefined();
  });

  it('is not asked about where the settings say off', async () => {
    const record = await alice.recordOf('bob');
    const asked = alice.asked.get;
    alice.useSettings(subnet, kms, 'off');
    alice.table.takeMember(record);
    expect(alice.stateOf('bob')).toBe('ready');
    expect(alice.identities.status.mode).toBe('off');
    expect(alice.asked.get).toBe(asked);
    // Turned on: it is pinned, goes on, and is confirmed meanwhile.
    alice.useSettings(subnet, kms);
    expect(alice.stateOf('bob')).toBe('ready');
    expect(alice.pins.isConfirmed(bob.id)).toBe(false);
    await alice.until(() => alice.pins.isConfirmed(bob.id), 'the KMS');
    expect(alice.stateOf('bob')).toBe('ready');
  });
});

describe('a key server that lies', () => {
  it('is caught when it names one member with the sealed document of another, or a changed one', async () => {
    const records = [await alice.recordOf('bob'), await alice.recordOf('carol')];
    const { pairs } = await alice.server.get([bob.id, carol.id]);
    const [ofBob, ofCarol] = pairs;
    if (ofBob === undefined || ofCarol === undefined) throw new Error('no pairs');
    const changed = Buffer.from(ofBob.document);
    changed.writeUInt8(changed.readUInt8(60) ^ 1, 60);
    const lies = [
      { ...ofCarol, id: bob.id },
      { ...ofBob, document: changed },
      { ...ofBob, dek: ofCarol.dek },
      { ...ofBob, document: ofCarol.document },
    ];
    for (const lie of lies) {
      alice.begin(subnet, kms);
      alice.identities.registered(true);
      alice.refusals.length = 0;
      alice.lie = {
        get: async (ids) => {
          const answer = await alice.server.get(ids);
          return { ...answer, pairs: [ofCarol, lie].filter(({ id }) => ids.includes(id)) };
        },
      };
      for (const record of records) alice.table.takeMember(record);
      await Promise.all([alice.whose('bob', 'refused'), alice.whose('carol', 'ready')]);
      expect(alice.installed).toEqual(new Set(['carol']));
      expect(alice.refusals.map(({ code }) => code)).toEqual(['IDENTITY_REFUSED']);
      expect(alice.pins.isPinned(bob.id)).toBe(false);
      // Said again, it is refused again, and nobody is asked.
      const asked = alice.asked.get;
      const [record] = records;
      if (record !== undefined) alice.table.takeMember(record);
      expect(alice.stateOf('bob')).toBe('refused');
      expect(alice.asked.get).toBe(asked);
    }
  });

  it("is caught when it enrols a puppet under the id of a member, with that member's own grant", async () => {
    alice.table.takeMember(puppetOf(subnet, bob));
    await alice.whose('bob', 'refused');
    expect(alice.installed.size).toBe(0);
    expect(alice.table.get(bob.id)?.refusal?.message).toContain(
      'remembers another identity document',
    );
    // The true one is heard at once when it is told of.
    alice.table.takeMember(await alice.recordOf('bob'));
    await alice.whose('bob', 'ready');
    // And pinned, so the puppet comes too late.
    expect(alice.table.takeMember(puppetOf(subnet, bob))).toBe(false);
  });

  it('is caught when it had a puppet pinned before anybody asked', async () => {
    alice.useSettings(subnet, kms, 'off');
    alice.table.takeMember(puppetOf(subnet, bob));
    expect(alice.installed).toEqual(new Set(['bob']));
    alice.useSettings(subnet, kms);
    await alice.whose('bob', 'refused');
    expect(alice.installed.size).toBe(0);
  });

  it('gets no second document into the KMS: the puppet itself is told that the id is taken', async () => {
    const puppet = new Confirming(subnet, 'bob');
    const token = { ...subnet.token({ id: 'bob' }) };
    puppet.membershipRecord = puppet.membership(token);
    puppet.client = bob.client;
    // Its channel key is a member's as far as this server says: it signs a ticket for it.
    puppet.begin(subnet, kms);
    puppet.lie = {
      get: () => {
        const what = { subnet: subnet.subnet, server: subnet.serverId, id: bob.id, kms };
        const ticket = signTicket(
          { ...what, channel: puppet.channelKeys.publicKey },
          auditSignKey(subnet.paths),
          Date.now(),
        );
        return Promise.resolve({ ticket, pairs: [] });
      },
    };
    puppet.identities.registered(false);
    await puppet.until(() => puppet.identities.status.own === 'taken', 'an alarm');
    expect(puppet.problems[0]).toContain('another identity document is remembered for our id');
    puppet.identities.stop();
  });

  it('can neither answer in the place of the KMS nor pass one of its own off', async () => {
    const record = await alice.recordOf('bob');
    const own = generateRawKeyPair('x25519');
    alice.lie = { exchange: (message) => Promise.resolve(Buffer.from(message).reverse()) };
    alice.table.takeMember(record);
    await alice.until(() => alice.problems.length > 0, 'a problem');
    expect(alice.stateOf('bob')).toBe('unconfirmed');
    alice.lie = {};
    await alice.whose('bob', 'ready');
    // Settings that name another KMS need the operator's signature; with it, the old KMS is nobody.
    alice.begin(subnet, own.publicKey);
    alice.problems.length = 0;
    alice.identities.registered(true);
    alice.table.takeMember(record);
    await alice.until(() => alice.problems.length > 0, 'a problem');
    expect(alice.stateOf('bob')).toBe('unconfirmed');
    expect(alice.installed.size).toBe(0);
  });

  it('opens nothing with the ticket of another member', async () => {
    alice.lie = {
      get: async (ids) => ({ ...(await alice.server.get(ids)), ...(await bob.server.get(ids)) }),
    };
    alice.table.takeMember(await alice.recordOf('bob'));
    await alice.until(() => alice.problems.length > 0, 'a problem');
    expect(alice.problems[0]).toContain('refuses the question');
    expect(alice.stateOf('bob')).toBe('unconfirmed');
  });
});

it('a database in which rows were exchanged stops just whose rows they are', async () => {
  const { database } = subnet.paths;
  await subnet.stopServer();
  await meddle(
    database,
    "UPDATE identities SET document = (SELECT document FROM identities WHERE member = 'carol') WHERE member = 'bob'",
  );
  await subnet.startServer();
  await alice.until(() => alice.client.state.kind === 'open', 'the server');
  for (const id of ['bob', 'carol']) alice.table.takeMember(await alice.recordOf(id));
  await Promise.all([alice.whose('bob', 'refused'), alice.whose('carol', 'ready')]);
  expect(alice.installed).toEqual(new Set(['carol']));
  // Its owner mends it at its next start.
  await bob.publish();
  await bob.until(() => bob.asked.put > 1, 'its document');
});

it('who asks too much about identities is told to wait, and that is audited', async () => {
  const eve = await Confirming.join(subnet, 'eve', kms);
  const codes = await Promise.all(
    Array.from({ length: 200 }, () =>
      eve.server.get([]).then(
        () => 'ok',
        (thrown: unknown) => (thrown as { code?: string }).code ?? '?',
      ),
    ),
  );
  expect(codes.filter((code) => code === 'ok').length).toBeLessThan(160);
  expect(codes).toContain('limit');
  eve.identities.stop();
  const audit = await subnet.audit();
  expect(audit.some(({ action, actor }) => action === 'identity' && actor === 'bob')).toBe(true);
});

describe('a key server as a process, with its KMS as a child', () => {
  it('kept, through kill -9 of both, whose document belongs to an id', async () => {
    const server = await ServerProcess.make();
    try {
      await server.start();
      const key = kmsPublicKey(server.paths.kms);
      const [one, two] = await Promise.all([
        Confirming.join(server, 'one', key),
        Confirming.join(server, 'two', key),
      ]);
      await Promise.all([one.publish(), two.publish()]);
      expect([one, two].map(({ identities }) => identities.status.own)).toEqual(['kept', 'kept']);
      await server.kill();
      await server.start();
      await one.until(() => one.client.state.kind === 'open', 'the server');
      one.identities.registered(true);
      one.table.takeMember(await one.recordOf('two'));
      await one.whose('two', 'ready');
      // Another document for an id that is remembered.
      const key2 = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
      const { grant } = readUnverified(LABEL.member, two.membershipRecord, membershipSchema);
      const body = {
        ...{ subnet: server.subnet, id: two.id, sign: publicOf(key2), box: two.box.publicKey },
      };
      const identity = signRecord(LABEL.identity, body, key2);
      const channel = two.channelKeys.publicKey;
      two.membershipRecord = signRecord(LABEL.member, { grant, identity, channel }, key2);
      two.begin(server, key, 'verify', new Pins(undefined, publicOf(server.operator)));
      await two.until(() => two.client.state.kind === 'open', 'the server');
      two.identities.registered(false);
      await two.until(() => two.identities.status.own === 'taken', 'an alarm');
      for (const member of [one, two]) member.identities.stop();
    } finally {
      await server.remove();
    }
  }, 60_000);
});
