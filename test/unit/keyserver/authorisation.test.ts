/** Who may send what: every role with every message against a running server; what the table does not allow is refused and audited. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ChannelClient } from '../../../src/net/channel-client.js';
import { type Asker, MAY_SEND, maySend } from '../../../src/protocol/authorisation.js';
import { type RequestType, requestSchema } from '../../../src/protocol/messages.js';
import { generateRawKeyPair } from '../../../src/protocol/public-keys.js';
import { ROLES } from '../../../src/protocol/records.js';
import { TestMember, TestSubnet, until } from './support/subnet.js';

const TYPES = requestSchema.options.map((option) => option.shape.t.value);
const ASKERS: readonly Asker[] = ['joining', ...ROLES];

/** The rights as the design gives them, written out once more by hand. */
const MEMBER: readonly RequestType[] = [
  'ping',
  'register',
  'endpoints',
  'key.mac',
  'key.index',
  'key.confirm',
  'key.held',
  'key.notice',
  'sync',
  'guarded',
  'identity.get',
  'identity.put',
  'kms.exchange',
];
const EXPECTED: Readonly<Record<Asker, readonly RequestType[]>> = {
  joining: ['ping', 'enrol'],
  host: [...MEMBER, 'bind'],
  plain: [...MEMBER, 'learned'],
  link: [...MEMBER, 'bind', 'key.net'],
  server: ['ping', 'net.sync', 'net.confirm', 'net.rekey', 'net.end', 'cascade.sync'],
  operator: [
    'ping',
    'list',
    'settings.set',
    'rekey',
    'revoke',
    'restore.confirm',
    'kms.status',
    'kms.rotate',
    'peer.add',
    'peer.remove',
    'mac.pin',
    'mac.free',
    'ip.pin',
    'ip.free',
  ],
  viewer: ['ping', 'list'],
};

const signed = { b: randomBytes(8), s: randomBytes(64) };
const FIELDS: Readonly<Record<RequestType, Record<string, unknown>>> = {
  ping: {},
  enrol: { membership: signed },
  register: { boot: signed, machine: randomBytes(16), nonce: randomBytes(16) },
  endpoints: { endpoints: [] },
  'identity.get': { ids: [] },
  'identity.put': { document: randomBytes(100), dek: randomBytes(65) },
  'kms.exchange': { message: randomBytes(96) },
  'key.mac': { requester: 'x', mac: '02:00:00:00:00:01' },
  'key.index': { requester: 'x', index: 1, kid: 0, group: false },
  'key.confirm': { pairs: [] },
  'key.held': { pairs: [] },
  'key.notice': { requester: 'x', index: 1, pwId: 1 },
  'key.net': { requester: 'x', index: 1, kid: 0 },
  'net.sync': {
    ...{ net: 'x', prefixes: [], held: 0, subnet: 'x', operator: randomBytes(32), ports: [] },
  },
  'net.confirm': { net: 'x', pwId: 1 },
  'cascade.sync': {
    word: {
      ...{ server: 'x', number: 1, first: 's1', tag: 0, epoch: randomBytes(8), time: 1 },
      ...{ have: { epoch: randomBytes(8), cursor: 0 }, settings: signed },
      ...{ wants: [], confirms: [], seeks: [], places: [] },
    },
  },
  'net.rekey': { net: 'x', force: false },
  'net.end': { net: 'x' },
  'peer.add': { token: 'x', prefixes: ['10.0.0.0/8'] },
  'peer.remove': { net: 'x' },
  rekey: { force: false },
  revoke: { member: 'x' },
  'restore.confirm': {},
  'kms.status': {},
  'kms.rotate': { root: false },
  sync: { cursor: 0 },
  learned: { entries: [], gone: [] },
  'mac.pin': { vlan: 0, mac: '02:00:00:00:00:01', member: 'x' },
  'mac.free': { mac: '02:00:00:00:00:01' },
  bind: { entries: [] },
  guarded: { entries: [] },
  'ip.pin': { ip: '10.0.0.1', mac: '02:00:00:00:00:01' },
  'ip.free': { ip: '10.0.0.1' },
  list: { what: 'members' },
  'settings.set': { settings: signed },
};

describe('authorisation', () => {
  let subnet: TestSubnet;
  const clients = new Map<Asker, ChannelClient>();

  beforeAll(async () => {
    subnet = await TestSubnet.start();
    for (const role of ROLES) {
      const member = await subnet.enrolled(`the-${role}`, { role });
      // A session of its own by the static key, as after a reconnect.
      clients.set(role, subnet.client(member.channelKeys.privateKey));
    }
    const joining = new TestMember(subnet, 'somebody');
    const token = subnet.token({ id: 'somebody' });
    clients.set('joining', joining.connect({ id: joining.grantOf(token).tokenId, psk: token.psk }));
  });
  afterAll(() => subnet.close());

  it('is the table of the design', () => {
    for (const asker of ASKERS) {
      expect([...MAY_SEND[asker]].sort(), asker).toEqual([...EXPECTED[asker]].sort());
    }
    expect(Object.keys(FIELDS).sort()).toEqual([...TYPES].sort());
  });

  for (const asker of ASKERS) {
    for (const type of TYPES) {
      const allowed = EXPECTED[asker].includes(type);
      it(`${asker} ${allowed ? 'may' : 'may not'} send ${type}`, async () => {
        expect(maySend(asker, type)).toBe(allowed);
        const client = clients.get(asker);
        const outcome = await client?.request({ t: type, ...FIELDS[type] }).then(
          () => 'ok',
          (thrown: { code: string; detail?: string }) => `${thrown.code} ${thrown.detail ?? ''}`,
        );
        const byTable = `refused ${asker} may not send ${type}`;
        if (allowed) expect(outcome).not.toBe(byTable);
        else expect(outcome).toBe(byTable);
      });
    }
  }

  it('takes none of all messages from a stranger, from who was revoked, before and after a reconnect, and from a row that is not what was written', async () => {
    const gone = await subnet.enrolled('gone');
    const forged = await subnet.enrolled('forged');
    await subnet.admin().request({ t: 'revoke', member: 'gone' });
    await subnet.driver.transaction((sql) =>
      sql.run("UPDATE members SET role = 'operator' WHERE id = 'forged'", []),
    );
    await subnet.store.write((tx) => tx.redatePairs(0));
    const nobody: readonly (readonly [string, ChannelClient])[] = [
      ['a stranger', subnet.client(generateRawKeyPair('x25519').privateKey)],
      ['a revoked member in its old session', gone.client],
      ['a revoked member in a new one', subnet.client(gone.channelKeys.privateKey)],
      ['a forged row', subnet.client(forged.channelKeys.privateKey)],
    ];
    const taken = await Promise.all(
      nobody.flatMap(([who, client]) =>
        TYPES.map((type) =>
          client.request({ t: type, ...FIELDS[type] }, { timeoutMs: 1_500 }).then(
            () => [`${who}: ${type}`],
            (thrown: { code: string }) =>
              thrown.code.startsWith('CHANNEL') ? [] : [`${who}: ${type} ${thrown.code}`],
          ),
        ),
      ),
    );
    expect(taken.flat()).toEqual([]);
  });

  it('audits what was refused, repeats as a count', async () => {
    const viewer = clients.get('viewer');
    for (let at = 0; at < 50; at += 1) {
      await viewer?.request({ t: 'sync', cursor: 0 }).catch(() => {});
    }
    const own = async (): Promise<{ count: number }[]> =>
      (await subnet.audit()).filter(
        ({ action, actor }) => action === 'role' && actor === 'the-viewer',
      );
    await until(async () => (await own()).length > 0, 'the audit entry');
    expect(await own()).toHaveLength(1);
    for (const role of ROLES) {
      expect((await subnet.audit()).some(({ actor }) => actor === `the-${role}`)).toBe(true);
    }
  });

  it('answers an unknown type with unsupported and ends the channel for a malformed message', async () => {
    const member = await subnet.enrolled('odd');
    await expect(member.client.request({ t: 'give.me.all' })).rejects.toMatchObject({
      code: 'unsupported',
    });
    const ended = member.client
      .request({ t: 'sync', cursor: -1 }, { timeoutMs: 300 })
      .catch((thrown: { code: string }) => thrown.code);
    expect(await ended).toBe('CHANNEL_TIMEOUT');
  });
});
