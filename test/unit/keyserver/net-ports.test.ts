/**
 * Link ports of two subnets whose key servers are peered, as they are told to each other (docs/protocol.md 9.4): `east`
 * makes the net key, `west` asks for it. Real servers and the real channel; one server or the other is played where it
 * is to do what it must not.
 */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KEY_KIND } from '../../../keyserver/config.js';
import { NET_ASK_BURST } from '../../../keyserver/nets/net-ports.js';
import { BATCH_BYTES } from '../../../keyserver/sync/collect.js';
import { makeToken } from '../../../keyserver/tokens.js';
import { ChannelServer } from '../../../src/net/channel-server.js';
import { encodeMessage } from '../../../src/protocol/channel/codec.js';
import { keyPairFromPrivate } from '../../../src/protocol/channel/keys.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import {
  answerSchemas,
  type Change,
  MAX_ENDPOINTS,
  MAX_NET_PORTS,
  MAX_NET_PREFIXES,
  type PeerRecord,
  type Request,
  requestSchema,
} from '../../../src/protocol/messages.js';
import { importPublic } from '../../../src/protocol/public-keys.js';
import { verifyBoot, verifyMembership } from '../../../src/protocol/records.js';
import { MAX_SIGNED_BODY } from '../../../src/protocol/signed.js';
import { tokenPsk } from '../../../src/protocol/token.js';
import { readKeyFile } from '../../../src/runtime/files.js';
import { HOUR, sleep, type TestMember, TestSubnet, until } from './support/subnet.js';

const OFFLINE_AFTER_MS = 200;
const EAST = { subnet: parseId('east'), prefixes: ['198.51.100.0/24'] };
const WEST = { subnet: parseId('west'), prefixes: ['203.0.113.0/24'] };
/** What is told is there within a second (on a busy machine later); what waits for the question of every 30 s is not. */
const SOON = 12_000;

type NetChange = Extract<Change, { kind: 'net' }>;

function lastNet(changes: readonly Change[]): NetChange | undefined {
  const last = changes.filter(({ kind }) => kind === 'net' || kind === 'net.gone').at(-1);
  return last?.kind === 'net' ? last : undefined;
}

/** What link ports were told when they synchronised first: what was there by then is not pushed. */
const begun = new WeakMap<TestMember, readonly Change[]>();

/** What a link port was last told of the other net. */
function netOf(link: TestMember): NetChange | undefined {
  const all = [...(begun.get(link) ?? []), ...link.pushed()];
  return lastNet(all.sort((a, b) => a.seq - b.seq));
}

/** The same of another's record. */
function port(link: TestMember, id: string): PeerRecord | undefined {
  return netOf(link)?.ports.find((one) => one.id === id);
}

const hex = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString('hex');

function start(one: typeof EAST): Promise<TestSubnet> {
  return TestSubnet.start({ ...one, tuning: { offlineAfterMs: OFFLINE_AFTER_MS } });
}

/** A link port that is registered and has synchronised. */
async function link(subnet: TestSubnet, id: string): Promise<TestMember> {
  const member = await subnet.member(id, { role: 'link' });
  begun.set(member, (await member.syncAll()).changes);
  return member;
}

/** A token of `maker` for the key server of the net `west`. */
function peerToken(maker: Pick<TestSubnet, 'operator' | 'tokenKey' | 'serverPublic'>, at: number) {
  return makeToken(
    {
      ...{ subnet: EAST.subnet, server: parseId('s1') },
      listen: `127.0.0.1:${at}`,
      advertise: [],
    },
    maker,
    {
      ...{ id: 'west', role: 'server', net: WEST.subnet, ips: WEST.prefixes },
      ...{ macs: [], rights: [], uses: 1, notAfter: Date.now() + HOUR },
    },
  ).text;
}

function add(subnet: TestSubnet, token: string) {
  return subnet
    .admin()
    .request(
      { t: 'peer.add', token, prefixes: EAST.prefixes },
      { parse: (it) => answerSchemas['peer.add'].parse(it) },
    );
}

/** Questions of other key servers that a server has had. */
async function questions(subnet: TestSubnet): Promise<number> {
  const metric = await subnet.server.metrics.registry
    .getSingleMetric('pairwire_keyserver_requests_total')
    ?.get();
  return (metric?.values ?? [])
    .filter(({ labels }) => labels.type === 'net.sync')
    .reduce((sum, { value }) => sum + value, 0);
}

/** Waits until none has come for a while. @returns how many there were in all */
async function quiet(subnet: TestSubnet): Promise<number> {
  for (;;) {
    const before = await questions(subnet);
    await sleep(600);
    if ((await questions(subnet)) === before) return before;
  }
}

describe('link ports of peered subnets', () => {
  let east: TestSubnet;
  let west: TestSubnet;

  beforeEach(async () => {
    east = await start(EAST);
    west = await start(WEST);
  });
  afterEach(async () => {
    await west.close();
    await east.close();
  });

  const atEast = () => east.store.net(WEST.subnet);
  const atWest = () => west.store.net(EAST.subnet);

  async function peered(): Promise<void> {
    await add(west, peerToken(east, east.port));
    await until(async () => (await atWest())?.key !== undefined, 'the key at the far server');
  }

  const askNets = (member: TestMember, requester: string = member.id) =>
    member.client.request({ t: 'key.net', requester, index: 7, kid: 7 });

  /** One side as the other one's link port sees it, for both sides. */
  const sides = () =>
    [
      { here: east, there: west, name: 'the side that makes the key' },
      { here: west, there: east, name: 'the side that asks for it' },
    ] as const;

  it('are told with all that is needed to verify and to reach them, on either side', async () => {
    await peered();
    for (const { here, there, name } of sides()) {
      const watcher = await link(there, 'watcher');
      const gate = await here.member('gate', { role: 'link' });
      const endpoints = [{ ip: Buffer.from([192, 0, 2, 1]), port: 51_820 }];
      await gate.client.request({ t: 'endpoints', endpoints });
      await until(() => port(watcher, 'gate')?.endpoints.length === 1, `gate of ${name}`, SOON);

      const net = netOf(watcher);
      expect(net).toMatchObject({ net: here.subnet, subnet: here.subnet });
      const told = port(watcher, 'gate');
      expect(told).toMatchObject({ role: 'link', online: true });
      expect(told?.endpoints).toMatchObject([{ port: 51_820 }]);
      const member = verifyMembership(
        here.subnet,
        told?.membership ?? { b: Buffer.alloc(0), s: Buffer.alloc(64) },
        importPublic('ed25519', net?.operator ?? Buffer.alloc(32)),
      );
      expect(member).toMatchObject({ id: 'gate', role: 'link' });
      if (told?.boot === undefined) throw new Error('there is no boot record');
      expect(hex(verifyBoot(member, told.boot, Date.now(), 0).boot)).toBe(hex(gate.bootKey));
      expect(told.index).toBe((await here.store.member(gate.id))?.boot?.index);
    }
  });

  it('are told again when they renew their boot key, go, come back, are revoked or no link ports any more', async () => {
    await peered();
    for (const { here, there, name } of sides()) {
      const watcher = await link(there, 'watcher');
      const gate = await here.member('gate', { role: 'link' });
      const soon = (holds: () => boolean, what: string) => until(holds, `${what}: ${name}`, SOON);
      await soon(() => port(watcher, 'gate')?.online === true, 'the first start');
      const first = port(watcher, 'gate')?.index;

      const { index } = await gate.register();
      expect(index).not.toBe(first);
      await soon(() => port(watcher, 'gate')?.index === index, 'the fresh boot key');

      gate.client.stop();
      await soon(() => port(watcher, 'gate')?.online === false, 'that it is away');
      gate.connect();
      await gate.registerAgain();
      await soon(() => port(watcher, 'gate')?.online === true, 'that it is back');

      const lost = await link(here, 'lost');
      await soon(() => port(watcher, 'lost') !== undefined, 'the second one');
      await here.admin().request({ t: 'revoke', member: 'lost' });
      await soon(() => port(watcher, 'lost') === undefined, 'the revocation');
      lost.client.stop();

      await gate.enrol(here.token({ id: 'gate', role: 'host' }));
      await soon(() => port(watcher, 'gate') === undefined, 'that it is a host now');
      expect(netOf(watcher)).toBeDefined();
    }
  });

  it('are told to link ports only, and hosts are not told of at all', async () => {
    await peered();
    const watcher = await link(west, 'watcher');
    const alice = await west.member('alice');
    await alice.syncAll();
    await east.member('bob');
    await east.member('gate', { role: 'link' });
    await until(() => port(watcher, 'gate') !== undefined, 'the link port', SOON);
    expect(netOf(watcher)?.ports).toHaveLength(1);
    expect(netOf(alice)).toBeUndefined();
  });

  it('are known over a restart of either server while the other one is away', async () => {
    await peered();
    for (const { here, there, name } of sides()) {
      const gate = await link(here, 'gate');
      const far = await link(there, 'watcher');
      // After a restart of the other side's server ours takes its time to look for it again.
      await until(() => port(far, 'gate')?.online === true, `gate of ${name}`, 30_000);
      const { index } = (await here.store.member(gate.id))?.boot ?? {};
      await here.stopServer();
      try {
        await there.stopServer();
        await there.startServer();
        const late = await there.member('late', { role: 'link' });
        const net = lastNet((await late.syncAll()).changes);
        expect(net, name).toMatchObject({ net: here.subnet, subnet: here.subnet });
        expect(net?.ports.find(({ id }) => id === 'gate')?.index, name).toBe(index);
      } finally {
        await here.startServer();
      }
    }
  });

  it('are offline while their key server is away, and are not when it is back', async () => {
    await peered();
    for (const { here, there, name } of sides()) {
      await link(here, 'gate');
      const far = await link(there, 'watcher');
      await until(() => port(far, 'gate')?.online === true, `gate of ${name}`, 30_000);
      await here.stopServer();
      await until(() => port(far, 'gate')?.online === false, `${name} to be away`, 30_000);
      const late = await there.member('late', { role: 'link' });
      const net = lastNet((await late.syncAll()).changes);
      expect(net?.ports.find(({ id }) => id === 'gate')?.online, name).toBe(false);
      await here.startServer();
      await until(() => port(far, 'gate')?.online === true, `${name} to be back`, 30_000);
    }
  }, 120_000);

  it('come with those first that are online, and not all if there are many', async () => {
    await peered();
    const ids = Array.from({ length: MAX_NET_PORTS + 2 }, (_, at) => `gate${at}`);
    for (const id of ids) await east.enrolled(id, { role: 'link' });
    const last = await east.member('zeta', { role: 'link' });
    const watcher = await link(west, 'watcher');
    const expected = ['zeta', ...ids.slice(0, MAX_NET_PORTS - 1)];
    const told = async () => (await atWest())?.far?.ports.map(({ id }) => id).join();
    await until(async () => (await told()) === expected.join(), 'the eight', SOON);
    last.client.stop();
    const without = ids.slice(0, MAX_NET_PORTS).join();
    await until(async () => (await told()) === without, 'the eight without it', SOON);
    await until(
      () => netOf(watcher)?.ports.some(({ id }) => id === 'zeta') === false,
      'the word of it',
      SOON,
    );
    expect(netOf(watcher)?.ports).toHaveLength(MAX_NET_PORTS);
  });

  it('cause a question when something changes and none when nothing does, however often it changes', async () => {
    await peered();
    const [here, there] = [await link(east, 'gate'), await link(west, 'gate')];
    await until(() => port(here, 'gate') !== undefined, 'the port there', SOON);
    await until(() => port(there, 'gate') !== undefined, 'the port here', SOON);
    const before = await quiet(east);
    const rows = [(await atEast())?.changed, (await atWest())?.changed];
    await askNets(here);
    await askNets(there);
    const after = await quiet(east);
    expect(after).toBeGreaterThan(before);
    expect(after).toBeLessThanOrEqual(before + 4);
    // Nothing was new, so nobody was told.
    expect([(await atEast())?.changed, (await atWest())?.changed]).toEqual(rows);

    // The record of one who moves and moves.
    const at = Date.now();
    for (let turn = 1; turn <= 15; turn += 1) {
      const endpoints = [{ ip: Buffer.from([192, 0, 2, turn]), port: 51_820 }];
      await here.client.request({ t: 'endpoints', endpoints });
      await there.client.request({ t: 'endpoints', endpoints });
      await sleep(20);
    }
    const end = (one: TestMember) => port(one, 'gate')?.endpoints[0]?.ip.at(-1) === 15;
    await until(() => end(here) && end(there), 'the last address on both sides', SOON);
    const asked = (await questions(east)) - after;
    expect(asked).toBeLessThanOrEqual(Math.ceil((Date.now() - at) / 200) + 2);
  });

  it('ask for news by key.net: in their own name, so often and no more, and nobody else', async () => {
    await peered();
    const gates = [await link(east, 'gate'), await link(west, 'gate')];
    for (const gate of gates) {
      const before = await quiet(east);
      expect(await askNets(gate)).toMatchObject({ t: 'ok' });
      await until(async () => (await questions(east)) > before, 'a question', SOON);
      await expect(askNets(gate, 'another')).rejects.toMatchObject({ code: 'refused' });
      const asks = Array.from({ length: 2 * NET_ASK_BURST }, () => askNets(gate));
      const refused = (await Promise.allSettled(asks)).filter(
        ({ status }) => status === 'rejected',
      );
      expect(refused.length).toBeGreaterThan(NET_ASK_BURST / 2);
      expect(refused[0]).toMatchObject({ reason: { code: 'limit' } });
    }
    const alice = await west.member('alice');
    await expect(askNets(alice)).rejects.toMatchObject({ code: 'refused' });
    await until(async () => {
      const actions = new Set((await west.audit()).map(({ action }) => action));
      return ['role', 'foreign_requester', 'net_rate'].every((action) => actions.has(action));
    }, 'the audit entries');
  });

  describe('of a server that is played', () => {
    const ZONE = parseId('zone');
    const far = (more: Record<string, unknown> = {}) => ({
      ...{ t: 'net.sync', net: ZONE, prefixes: [], held: 0 },
      ...{ subnet: 'zone', operator: Buffer.alloc(32, 7), ports: [], ...more },
    });
    const zone = (id = 'zone') =>
      east.enrolled(id, { role: 'server', net: ZONE, ips: ['192.0.2.0/24'] });

    it('are not taken when the operator or the subnet is suddenly another, until the link has ended', async () => {
      const server = await zone();
      const gate = await link(east, 'gate');
      await server.client.request(far());
      await until(() => netOf(gate) !== undefined, 'the net', SOON);
      const pushes = gate.pushed().length;
      const operator = Buffer.alloc(32, 8);
      await expect(server.client.request(far({ operator }))).rejects.toMatchObject({
        code: 'refused',
      });
      await expect(server.client.request(far({ subnet: 'other' }))).rejects.toMatchObject({
        code: 'refused',
      });
      await until(
        async () =>
          (await east.audit()).some(
            ({ action, actor }) => action === 'net_foreign' && actor === 'zone',
          ),
        'the audit entry',
      );
      // Nor by coming again with another token.
      await server.enrol(
        east.token({ id: 'zone', role: 'server', net: ZONE, ips: ['192.0.2.0/24'] }),
      );
      await expect(server.client.request(far({ operator }))).rejects.toMatchObject({
        code: 'refused',
      });
      expect((await east.store.net(ZONE))?.far).toMatchObject({ subnet: 'zone', ports: [] });
      expect(hex(netOf(gate)?.operator)).toBe(hex(Buffer.alloc(32, 7)));
      expect(
        gate
          .pushed()
          .slice(pushes)
          .some((one) => one.kind === 'net.gone'),
      ).toBe(false);

      await east.admin().request({ t: 'revoke', member: 'zone' });
      expect((await east.store.net(ZONE))?.far).toBeUndefined();
      const again = await zone('zone-2');
      await again.client.request(far({ operator }));
      await until(() => hex(netOf(gate)?.operator) === hex(operator), 'the new operator', SOON);
    });

    it('fit in a message whatever it tells', async () => {
      const record = (id: string) => ({
        ...{ id, role: 'link', online: true, index: 7 },
        membership: { b: randomBytes(MAX_SIGNED_BODY), s: randomBytes(64) },
        boot: { b: randomBytes(MAX_SIGNED_BODY), s: randomBytes(64) },
        ips: Array.from({ length: 64 }, (_, at) => `2001:db8:1234:5678:9abc:def0:1234:${at}/128`),
        endpoints: Array.from({ length: MAX_ENDPOINTS }, () => ({
          ...{ ip: randomBytes(16), port: 51_820, seen: true },
        })),
      });
      const ports = Array.from({ length: MAX_NET_PORTS }, (_, at) => record(`gate${at}`));
      const prefixes = Array.from({ length: MAX_NET_PREFIXES }, (_, at) => `10.7.${at}.0/24`);
      const gate = await link(east, 'gate');
      for (let at = 1; at <= 4; at += 1) {
        const net = parseId(`zone${at}`);
        const ips = [`10.${at}.0.0/16`];
        const server = await east.enrolled(`zone${at}`, { role: 'server', net, ips });
        await server.client.request(far({ net, prefixes, ports }));
        await until(() => netOf(gate)?.net === net, 'the push', SOON);
      }
      expect(netOf(gate)?.ports).toHaveLength(MAX_NET_PORTS);
      const nets = new Set<Id>();
      let cursor = 0;
      let epoch: Uint8Array | undefined;
      for (let more = true; more; ) {
        const page = await gate.sync(cursor, epoch);
        const inPage = page.changes.flatMap((one) => (one.kind === 'net' ? [one.net] : []));
        for (const net of inPage) nets.add(net);
        // One of these is more than a whole page should be.
        expect(inPage.length).toBeLessThanOrEqual(1);
        const [first] = page.changes;
        const least = first === undefined ? 0 : encodeMessage(first).length;
        expect(encodeMessage(page).length).toBeLessThan(BATCH_BYTES + Math.max(least, 4_096));
        ({ cursor, epoch, more } = page);
      }
      expect(nets.size).toBe(4);
    });

    it('are taken from the maker only with subnet and operator of its token', async () => {
      const [subnet, operator] = [east.subnet, east.store.meta.operator];
      const wrong = [
        { subnet, operator: randomBytes(32) },
        { subnet: parseId('other'), operator },
      ];
      let answer: { subnet: Id; operator: Uint8Array } = { subnet, operator };
      const asked: Extract<Request, { t: 'net.sync' }>[] = [];
      const key = randomBytes(32);
      const server = new ChannelServer<Request>({
        listen: [{ scheme: 'tcp', host: '127.0.0.1', port: 0 }],
        staticKeys: keyPairFromPrivate(readKeyFile(east.paths.serverKey, KEY_KIND.server)),
        authorise: () => true,
        psk: (tokenId) => tokenPsk(east.tokenKey, tokenId),
        parse: (message) => requestSchema.parse(message),
        onSession: (session) => pushers.add(() => session.push({ t: 'net' })),
        onRequest: (_, request) => {
          if (request.t === 'enrol') return { member: 'west' };
          if (request.t !== 'net.sync') return { time: Date.now() };
          asked.push(request);
          const prefixes = EAST.prefixes;
          return { net: 'east', prefixes, key, pwId: 1, oldest: 1, ports: [], ...answer };
        },
      });
      const pushers = new Set<() => void>();
      const [{ port: at = 0 } = {}] = await server.listen();
      try {
        await add(west, peerToken(east, at));
        await until(async () => (await atWest())?.far !== undefined, 'the first answer', SOON);
        expect(asked[0]).toMatchObject({ subnet: 'west', ports: [] });
        expect(hex(asked[0]?.operator)).toBe(hex(west.store.meta.operator));
        const before = await atWest();
        for (answer of wrong) {
          const count = asked.length;
          for (const push of pushers) push();
          await until(() => asked.length > count, 'another question', SOON);
          const list = async () => {
            const { rows } = await west
              .admin()
              .request(
                { t: 'list', what: 'nets' },
                { parse: (it) => answerSchemas.list.parse(it) },
              );
            return String(rows[0]?.problem);
          };
          await until(async () => (await list()).includes('another subnet'), 'the problem', SOON);
          expect(await atWest()).toEqual(before);
        }
      } finally {
        await server.close();
      }
    });
  });
});
