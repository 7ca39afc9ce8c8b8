/**
 * Two subnets whose key servers are peered: `east` makes the net key, `west` asks for it. Real servers and the
 * real channel; link ports are members that speak the protocol.
 */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { makeToken } from '../../../keyserver/tokens.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { answerSchemas, type Change, MAX_NETS } from '../../../src/protocol/messages.js';
import { formatToken, parseToken } from '../../../src/protocol/token.js';
import { SystemClock } from '../../../src/runtime/clock.js';
import { createLogger } from '../../../src/runtime/log.js';
import { HOUR, sleep, type TestMember, TestSubnet, until } from './support/subnet.js';

const EAST = { subnet: parseId('east'), prefixes: ['198.51.100.0/24', '2001:db8:e::/48'] };
const WEST = { subnet: parseId('west'), prefixes: ['203.0.113.0/24'] };

/** What a far key server that the tests play tells of its link ports. */
const FAR = { subnet: 'zone', operator: randomBytes(32), ports: [] };

type NetChange = Extract<Change, { kind: 'net' | 'net.gone' }>;

function netsOf(changes: readonly Change[]): NetChange[] {
  return changes.filter((one): one is NetChange => one.kind === 'net' || one.kind === 'net.gone');
}

/** What a link port was last told of the net. */
const told = (link: TestMember): NetChange | undefined => netsOf(link.pushed()).at(-1);

describe('peered key servers', () => {
  let east: TestSubnet;
  let west: TestSubnet;

  beforeEach(async () => {
    east = await TestSubnet.start(EAST);
    west = await TestSubnet.start(WEST);
  });
  afterEach(async () => {
    await west.close();
    await east.close();
  });

  function peerToken(
    wish: { id?: string; net?: string; ips?: string[]; notAfter?: number } = {},
  ): string {
    const { id = 'west', net = 'west', ips = WEST.prefixes, notAfter = Date.now() + HOUR } = wish;
    return makeToken(
      {
        ...{ subnet: east.subnet, server: parseId('s1') },
        listen: `127.0.0.1:${east.port}`,
        advertise: [],
      },
      { operator: east.operator, tokenKey: east.tokenKey, serverPublic: east.serverPublic },
      { ...{ id, role: 'server', net: net as Id, ips, notAfter }, macs: [], rights: [], uses: 1 },
    ).text;
  }

  function add(token: string, prefixes: readonly string[] = EAST.prefixes, at = west) {
    return at
      .admin()
      .request(
        { t: 'peer.add', token, prefixes },
        { parse: (it) => answerSchemas['peer.add'].parse(it) },
      );
  }

  const atEast = () => east.store.net(parseId('west'));
  const atWest = () => west.store.net(parseId('east'));

  async function peered(): Promise<void> {
    await add(peerToken());
    await until(async () => (await atWest())?.key !== undefined, 'the key at the far server');
  }

  /** A link port that is registered and has synchronised. */
  async function link(subnet: TestSubnet, id: string): Promise<TestMember> {
    const member = await subnet.member(id, { role: 'link' });
    await member.syncAll();
    return member;
  }

  const confirm = (member: TestMember, net: string, pwId: number) =>
    member.client.request({ t: 'key.confirm', pairs: [], nets: [{ net, pwId }] });

  function rekey(subnet: TestSubnet, net: string | true, force = false) {
    return subnet
      .admin()
      .request({ t: 'rekey', net, force }, { parse: (it) => answerSchemas.rekey.parse(it) });
  }

  it('replace a key that somebody broke in the database: where it is made, and where it was learned', async () => {
    await peered();
    const [gate, port] = [await link(west, 'gate'), await link(east, 'port')];
    const before = await atEast();
    const breakIt = (subnet: TestSubnet) =>
      subnet.driver.transaction((sql) =>
        sql.run('UPDATE nets SET key = ?', [Buffer.concat([Buffer.from([1]), randomBytes(68)])]),
      );
    await breakIt(east);
    await until(() => told(port)?.kind === 'net', 'the link port at home to be told');
    await until(async () => (await atWest())?.pwId === 2, 'the far server to learn it');
    const made = await atEast();
    expect(made).toMatchObject({ pwId: 2, oldest: 2, reason: 'broken' });
    expect(made?.key?.equals(before?.key ?? Buffer.alloc(0))).toBe(false);
    await until(
      () => (told(gate) as { pwId?: number } | undefined)?.pwId === 2,
      'the far link port',
    );

    // Only the maker makes one: here it is asked for again.
    await breakIt(west);
    await until(async () => {
      const learned = await atWest().catch(() => undefined);
      return learned?.key?.equals(made?.key ?? Buffer.alloc(0)) === true;
    }, 'it to be learned anew');
    expect((await atEast())?.pwId).toBe(2);
    for (const subnet of [east, west]) {
      expect((await subnet.audit()).filter(({ action }) => action === 'net_mended')).toHaveLength(
        1,
      );
    }
    // By command, whichever comes first: that, or the next round.
    await breakIt(east);
    expect(await rekey(east, 'west', true)).toMatchObject({ nets: 1 });
    expect((await atEast())?.pwId).toBeGreaterThan(2);
  });

  it('have one key, which link ports get with what may be behind it, and nobody else', async () => {
    await peered();
    const [made, learned] = [await atEast(), await atWest()];
    expect(made).toMatchObject({ pwId: 1, member: 'west', contact: undefined });
    expect(learned).toMatchObject({ pwId: 1, member: undefined });
    expect(learned?.key?.equals(made?.key ?? Buffer.alloc(0))).toBe(true);

    const gate = await west.member('gate', { role: 'link' });
    const { changes } = await gate.syncAll();
    const [net] = netsOf(changes);
    expect(net).toMatchObject({
      kind: 'net',
      net: 'east',
      pwId: 1,
      prefixes: [...EAST.prefixes].sort(),
    });
    expect(made?.key?.equals((net?.kind === 'net' ? net.key : undefined) ?? Buffer.alloc(0))).toBe(
      true,
    );
    const far = await east.member('gate', { role: 'link' });
    const [other] = netsOf((await far.syncAll()).changes);
    expect(other).toMatchObject({ net: 'west', pwId: 1, prefixes: WEST.prefixes });

    const alice = await west.member('alice');
    expect(netsOf((await alice.syncAll()).changes)).toEqual([]);
    await rekey(east, 'west', true);
    await until(
      () => told(gate)?.kind === 'net' && (told(gate) as { pwId: number }).pwId === 2,
      'the next key',
    );
    expect(netsOf(alice.pushed())).toEqual([]);
  });

  it('change the key only when link ports on both sides can receive under it', async () => {
    await peered();
    const [here, there] = [await link(east, 'gate'), await link(west, 'gate')];
    expect(await rekey(east, 'west')).toMatchObject({ nets: 1 });
    const prepared = (one: TestMember): boolean => {
      const net = told(one);
      return net?.kind === 'net' && net.pwId === 1 && net.next?.pwId === 2;
    };
    await until(() => prepared(here) && prepared(there), 'the next key on both sides');
    await confirm(here, 'west', 2);
    await sleep(150);
    expect((await atEast())?.pwId).toBe(1);
    await confirm(there, 'east', 3); // Of something else.
    await sleep(150);
    expect((await atEast())?.pwId).toBe(1);
    await confirm(there, 'east', 2);
    const inForce = (one: TestMember): boolean => {
      const net = told(one);
      return net?.kind === 'net' && net.pwId === 2 && net.next === undefined && net.oldest === 1;
    };
    await until(() => inForce(here) && inForce(there), 'the key in force on both sides');
    const [made, learned] = [await atEast(), await atWest()];
    expect(made).toMatchObject({ pwId: 2, reason: 'operator', next: undefined });
    expect(learned?.key?.equals(made?.key ?? Buffer.alloc(0))).toBe(true);
  });

  it('stay at the key while the other server is away, and change when it is back', async () => {
    await peered();
    await west.stopServer();
    await rekey(east, 'west');
    await sleep(1_500);
    expect(await atEast()).toMatchObject({ pwId: 1, next: { pwId: 2 } });
    await west.startServer();
    await until(async () => (await atWest())?.pwId === 2, 'the next key at the far server');
    const [made, learned] = [await atEast(), await atWest()];
    expect(made).toMatchObject({ pwId: 2, next: undefined });
    expect(learned?.key?.equals(made?.key ?? Buffer.alloc(0))).toBe(true);
  });

  it('serve link ports from their own store while the maker is away', async () => {
    await peered();
    const { key } = (await atEast()) ?? {};
    await east.stopServer();
    try {
      const gate = await west.member('gate', { role: 'link' });
      const [net] = netsOf((await gate.syncAll()).changes);
      expect(key?.equals((net?.kind === 'net' ? net.key : undefined) ?? Buffer.alloc(0))).toBe(
        true,
      );
    } finally {
      await east.startServer();
    }
  });

  it('renew it when the far operator says so, and by age', async () => {
    await peered();
    // Young keys are not renewed for another's asking.
    await expect(rekey(west, 'east')).rejects.toThrow();
    await age();
    expect(await rekey(west, true)).toMatchObject({ nets: 1 });
    await until(async () => (await atWest())?.pwId === 2, 'the key that the far side asked for');

    const second = await atEast();
    if (second === undefined) throw new Error('there is no net');
    await east.store.write((tx) => tx.putNet({ ...second, dueAt: 1 }));
    await until(async () => (await atWest())?.pwId === 3, 'the key that was due');
    expect(await atEast()).toMatchObject({ pwId: 3, reason: 'age' });
    expect((await atEast())?.dueAt).toBeGreaterThan(Date.now());
  });

  it('refuse who speaks for a net that is not its own, and note it', async () => {
    await peered();
    const north = await east.enrolled('north', {
      role: 'server',
      net: parseId('north'),
      ips: ['192.0.2.0/24'],
    });
    const ask = (net: string) =>
      north.client.request({ t: 'net.sync', net, prefixes: [], held: 0, ...FAR });
    await expect(ask('west')).rejects.toMatchObject({ code: 'refused' });
    await expect(
      north.client.request({ t: 'net.confirm', net: 'west', pwId: 2 }),
    ).rejects.toMatchObject({ code: 'refused' });
    await expect(
      north.client.request({ t: 'net.rekey', net: 'west', force: true }),
    ).rejects.toMatchObject({ code: 'refused' });
    expect(await ask('north')).toMatchObject({ pwId: 1 });
    // A server that speaks for no net at all.
    const plain = await east.enrolled('cascade', { role: 'server' });
    await expect(
      plain.client.request({ t: 'net.sync', net: 'west', prefixes: [], held: 0, ...FAR }),
    ).rejects.toMatchObject({ code: 'refused' });
    await until(
      async () =>
        (await east.audit()).some(
          ({ action, actor }) => action === 'net_foreign' && actor === 'north',
        ),
      'the audit entry',
    );
    expect((await atEast())?.pwId).toBe(1);
  });

  it('let only one server speak for a net, and none for our own or a smaller one', async () => {
    await peered();
    const enrol = (id: string, net: string, ips: readonly string[] = ['192.0.2.0/24']) =>
      east.enrolled(id, { role: 'server', net: parseId(net), ips: [...ips] });
    await expect(enrol('west2', 'west')).rejects.toMatchObject({ code: 'refused' });
    await expect(enrol('own', 'east')).rejects.toMatchObject({ code: 'refused' });
    await expect(enrol('small', 'aaa')).rejects.toMatchObject({ code: 'refused' });
    await expect(enrol('zed', 'zed', ['203.0.113.7'])).rejects.toMatchObject({ code: 'refused' });
    await expect(enrol('zed', 'zed', EAST.prefixes)).rejects.toMatchObject({ code: 'refused' });
    expect(await east.store.nets()).toHaveLength(1);
  });

  it('give nothing to a server that was revoked; link ports forget the key, and its number is not used again', async () => {
    await peered();
    const [here, there] = [await link(east, 'gate'), await link(west, 'gate')];
    await east.admin().request({ t: 'revoke', member: 'west' });
    await until(() => told(here)?.kind === 'net.gone', 'the end of the link');
    expect(await atEast()).toMatchObject({ key: undefined, member: undefined });
    // It keeps its key: nobody there has been told of the end.
    expect(told(there)?.kind).not.toBe('net.gone');
    await until(
      async () => (await east.audit()).some(({ action }) => action === 'channel_unknown'),
      'the refusal at the door',
    );
    await add(peerToken({ id: 'west-again' }));
    await until(async () => (await atWest())?.pwId === 2, 'the key of the new link');
    expect(await atEast()).toMatchObject({ pwId: 2, member: 'west-again', oldest: 2 });
  });

  it('take of the prefixes that a server claims what the operator has named, and note the rest (C12)', async () => {
    const claims = ['0.0.0.0/0', '198.51.100.0/25', '203.0.113.64/26'];
    await west.close();
    west = await TestSubnet.start({ ...WEST, prefixes: claims });
    await add(peerToken({ ips: ['203.0.113.0/25'] }), ['198.51.100.0/24']).then(
      () => expect.unreachable('its own prefixes are those of the other'),
      (error: unknown) => expect(error).toMatchObject({ code: 'malformed' }),
    );
    await west.close();
    west = await TestSubnet.start({ ...WEST, prefixes: ['203.0.113.64/26'] });
    await add(peerToken({ id: 'west-2', ips: ['203.0.113.0/25'] }));
    await until(async () => ((await atEast())?.told.length ?? 0) > 0, 'what the server claims');
    const gate = await link(east, 'gate');
    expect(netsOf((await gate.syncAll()).changes)[0]).toMatchObject({
      prefixes: ['203.0.113.64/26'],
    });
    expect((await east.audit()).some(({ action }) => action === 'net_prefix')).toBe(false);

    const rogue = await east.enrolled('zone', {
      role: 'server',
      net: parseId('zone'),
      ips: ['192.0.2.0/24'],
    });
    await rogue.client.request({ t: 'net.sync', net: 'zone', prefixes: claims, held: 0, ...FAR });
    const zone = () =>
      netsOf(gate.pushed())
        .filter(({ net }) => net === 'zone')
        .at(-1);
    await until(() => zone()?.kind === 'net', 'the other net');
    await until(
      async () =>
        (await east.audit()).some(
          ({ action, actor }) => action === 'net_prefix' && actor === 'zone',
        ),
      'the audit entry',
    );
    // All of 192.0.2.0/24 by its first claim, nothing of ours.
    await until(() => (zone() as { prefixes?: string[] }).prefixes?.length === 1, 'its prefixes');
    expect(zone()).toMatchObject({ prefixes: ['192.0.2.0/24'] });
  });

  it('tell each net the prefixes that it reaches through them, and only the link ports for it', async () => {
    const through = ['192.0.2.0/25'];
    await east.close();
    await west.close();
    // Each of the two is a way to a third subnet for the other one, and has link ports that are not for it.
    const offer = (net: string, prefix: string) =>
      new Map([[parseId(net), { through: [prefix], links: [parseId('gate')] }]]);
    east = await TestSubnet.start({ ...EAST, nets: offer('west', through[0] ?? '') });
    west = await TestSubnet.start({ ...WEST, nets: offer('east', '192.0.2.128/25') });
    for (const side of [east, west]) {
      await link(side, 'gate');
      await link(side, 'other');
    }
    await add(peerToken({ ips: [...WEST.prefixes, '192.0.2.128/25'] }), [
      ...EAST.prefixes,
      ...through,
    ]);
    await until(async () => (await atEast())?.far !== undefined, 'what the west tells');
    await until(async () => (await atWest())?.far !== undefined, 'what the east tells');
    const ids = (ports: readonly { readonly id: string }[] | undefined) =>
      ports?.map(({ id }) => id);
    const [fromWest, fromEast] = [await atEast(), await atWest()];
    expect(fromWest?.told).toEqual([...WEST.prefixes, '192.0.2.128/25']);
    expect(fromEast?.told).toEqual([...EAST.prefixes, ...through]);
    expect([ids(fromWest?.far?.ports), ids(fromEast?.far?.ports)]).toEqual([['gate'], ['gate']]);
    // To a net that is not named there they tell what they did before.
    const zone = await west.enrolled('zone', {
      role: 'server',
      net: parseId('zone'),
      ips: ['10.0.0.0/24'],
    });
    const answer = await zone.client.request(
      { t: 'net.sync', net: 'zone', prefixes: [], held: 0, ...FAR },
      { parse: (it) => answerSchemas['net.sync'].parse(it) },
    );
    expect(answer.prefixes).toEqual(WEST.prefixes);
    expect(ids(answer.ports)?.toSorted()).toEqual(['gate', 'other']);
  });

  it('go on above what the far side holds after a restore', async () => {
    await peered();
    const old = await atEast();
    if (old === undefined) throw new Error('there is no net');
    await rekey(east, 'west', true);
    await until(async () => (await atWest())?.pwId === 2, 'the second key');
    const second = await atWest();
    // The database is put back to the first key.
    await east.stopServer();
    await east.startServer();
    await east.store.write((tx) => tx.putNet(old));
    await rekey(east, 'west', true);
    // West may have said what it holds before it was asked to renew: then one more was made.
    const above = async (): Promise<boolean> => {
      const [made, learned] = [await atEast(), await atWest()];
      return (learned?.pwId ?? 0) > 2 && learned?.pwId === made?.pwId;
    };
    await until(above, 'a key above both');
    const [made, learned] = [await atEast(), await atWest()];
    expect(learned?.key?.equals(made?.key ?? Buffer.alloc(0))).toBe(true);
    expect(learned?.key?.equals(second?.key ?? Buffer.alloc(0))).toBe(false);
    if (made?.pwId === 3) expect(made.reason).toBe('restored');
  });

  it('refuse a token that is not for them, and say why', async () => {
    const because = (token: string, at = west, prefixes = EAST.prefixes) =>
      add(token, prefixes, at).then(
        () => 'taken',
        (error: unknown) => (error instanceof Error ? error.message : ''),
      );
    expect(await because('pwt1_AAAA')).toContain('not a whole token');
    // What would go into the request line of HTTP.
    const good = parseToken(peerToken());
    const [server] = good.servers;
    if (server === undefined) throw new Error('the token names no server');
    const odd = formatToken({ ...good, servers: [{ ...server, scheme: 'http', host: 'x\r\ny' }] });
    expect(await because(odd)).toContain('not a whole token');
    expect(await because(peerToken({ net: 'zone' }))).toContain('for the net zone');
    expect(await because(peerToken({ net: 'east' }), east)).toContain('makes the key');
    const member = makeToken(
      {
        ...{ subnet: east.subnet, server: parseId('s1') },
        listen: `127.0.0.1:${east.port}`,
        advertise: [],
      },
      { operator: east.operator, tokenKey: east.tokenKey, serverPublic: east.serverPublic },
      {
        ...{ id: 'mallory', role: 'host', ips: [], notAfter: Date.now() + HOUR },
        macs: [],
        rights: [],
        uses: 1,
      },
    ).text;
    expect(await because(member)).toContain('peer token');
    expect(await because(peerToken({ notAfter: Date.now() - 1 }))).toContain('expired');
    expect(await because(peerToken(), west, ['203.0.113.0/28'])).toContain("this subnet's own");
    expect(await west.store.nets()).toEqual([]);
    // A token serves once; the same server may come again with it.
    const token = peerToken();
    expect(await because(token)).toBe('taken');
    expect(await because(token)).toBe('taken');
    const thief = await TestSubnet.start(WEST);
    try {
      expect(await because(token, thief)).toContain('refused');
    } finally {
      await thief.close();
    }
  });

  it('are parted by `peer.remove`: link ports forget the key', async () => {
    await peered();
    const gate = await link(west, 'gate');
    await west.admin().request({ t: 'peer.remove', net: 'east' });
    await until(() => told(gate)?.kind === 'net.gone', 'the end of the link');
    expect(await atWest()).toMatchObject({ key: undefined, contact: undefined, pwId: 1 });
    await expect(west.admin().request({ t: 'peer.remove', net: 'east' })).rejects.toMatchObject({
      code: 'not_found',
    });
    // A second token for the same id is taken: the identity is the same.
    await add(peerToken());
    await until(async () => (await atWest())?.key !== undefined, 'the key again');
  });

  it('are parted on both sides by `peer.remove`, if the other one is there, and begin anew by the same token', async () => {
    await peered();
    const token = peerToken();
    await add(token);
    const far = await link(east, 'gate');
    await until(async () => (await atEast())?.far !== undefined, 'what the west tells');
    const before = await atEast();
    const removed = await west
      .admin()
      .request(
        { t: 'peer.remove', net: 'east' },
        { parse: (it) => answerSchemas['peer.remove'].parse(it) },
      );
    expect(removed.told).toBe(true);
    await until(() => told(far)?.kind === 'net.gone', 'the end of the link over there');
    expect(await atEast()).toMatchObject({ key: undefined, next: undefined, member: 'west' });
    expect((await east.audit()).some(({ action }) => action === 'net_end')).toBe(true);
    await expect(rekey(east, 'west')).rejects.toMatchObject({ code: 'not_found' });

    await add(token);
    await until(() => told(far)?.kind === 'net', 'the link anew');
    await until(async () => (await atWest())?.key !== undefined, 'its key at the far server');
    const [here, there] = [await atEast(), await atWest()];
    // The numbers and the key of before are not used again.
    expect(here?.pwId).toBe((before?.pwId ?? 0) + 1);
    expect(here?.key?.equals(before?.key ?? Buffer.alloc(0))).toBe(false);
    expect(there?.key?.equals(here?.key ?? Buffer.alloc(0))).toBe(true);

    await east.stopServer();
    const alone = await west
      .admin()
      .request(
        { t: 'peer.remove', net: 'east' },
        { parse: (it) => answerSchemas['peer.remove'].parse(it) },
      );
    expect(alone.told).toBe(false);
    await east.startServer();
    expect((await atEast())?.key).toBeDefined();
  });

  it('let nobody end a link but the server that speaks for the net', async () => {
    await peered();
    const zone = await east.enrolled('zone', {
      role: 'server',
      net: parseId('zone'),
      ips: ['192.0.2.0/24'],
    });
    await expect(zone.client.request({ t: 'net.end', net: 'west' })).rejects.toMatchObject({
      code: 'refused',
    });
    expect((await atEast())?.key).toBeDefined();
  });

  it('replace the key that a revoked link port had, though neither server lives until then', async () => {
    await peered();
    await age();
    await link(west, 'lost');
    await east.stopServer();
    await west.admin().request({ t: 'revoke', member: 'lost' });
    await west.stopServer();
    await west.startServer();
    expect((await atWest())?.dueAt).toBeGreaterThan(0);
    await east.startServer();
    await until(async () => (await atWest())?.pwId === 2, 'another key', 60_000);
    await until(async () => (await atWest())?.dueAt === 0, 'the end of what is owed');
    expect(await atEast()).toMatchObject({ pwId: 2 });
  }, 90_000);

  it('limit what a key server may ask and claim to hold', async () => {
    const zone = await east.enrolled('zone', {
      ...{ role: 'server', net: parseId('zone'), ips: ['192.0.2.0/24'] },
    });
    const ask = (held: number, mark?: Buffer) =>
      zone.client.request({ t: 'net.sync', net: 'zone', prefixes: [], held, mark, ...FAR });
    await expect(ask(1_000_002)).rejects.toMatchObject({ code: 'refused' });
    // Another key under a number that is in force, as after a restore.
    expect(await ask(1, randomBytes(16))).toMatchObject({ pwId: 2 });
    expect(await ask(7)).toMatchObject({ pwId: 8 });
    const answers = await Promise.allSettled(Array.from({ length: 60 }, () => ask(0)));
    const refused = answers.filter(({ status }) => status === 'rejected');
    expect(refused.length).toBeGreaterThan(5);
    expect(refused[0]).toMatchObject({ reason: { code: 'limit' } });
    await until(
      async () => (await east.audit()).some(({ action }) => action === 'net_rate'),
      'the audit entry',
    );
  });

  /** As if the key had been made long ago: a young one is not renewed for another's asking. */
  async function age(): Promise<void> {
    await east.store.write(async (tx) => {
      const row = await tx.net(parseId('west'));
      if (row === undefined) throw new Error('there is no net');
      await tx.putNet({ ...row, createdAt: row.createdAt - 60_000 });
    });
  }

  it('wait for a link port that is away for a moment, on either side', async () => {
    await peered();
    const [here, there] = [await link(east, 'gate'), await link(west, 'gate')];
    for (const [at, one, net] of [
      [2, here, 'west'],
      [3, there, 'east'],
    ] as const) {
      one.client.stop();
      await rekey(east, 'west');
      const other = one === here ? there : here;
      await until(() => {
        const now = told(other);
        return now?.kind === 'net' && now.next?.pwId === at;
      }, 'the next key');
      await confirm(other, other === here ? 'west' : 'east', at);
      await sleep(1_500);
      expect((await atEast())?.pwId).toBe(at - 1);
      one.connect();
      await one.registerAgain();
      await one.syncAll();
      await confirm(one, net, at);
      await until(async () => (await atWest())?.pwId === at, 'the key in force');
    }
  });

  it('replace keys that a revoked link port had, made here or there', async () => {
    await peered();
    const mine = await link(east, 'gate');
    await link(east, 'lost');
    await east.admin().request({ t: 'revoke', member: 'lost' });
    await until(() => told(mine)?.kind === 'net', 'the other key');
    expect(told(mine)).toMatchObject({ pwId: 2, oldest: 2 });
    await until(async () => (await atWest())?.pwId === 2, 'the other key at the far side');

    await age();
    await link(west, 'lost');
    await west.admin().request({ t: 'revoke', member: 'lost' });
    await until(async () => (await atWest())?.pwId === 3, 'the key that the far side wanted');
  });

  it('replace those also where somebody broke the keys in the database', async () => {
    const forged = Buffer.concat([Buffer.from([1]), randomBytes(68)]);
    const breakAt = (subnet: TestSubnet, column: string) =>
      subnet.driver.transaction((sql) => sql.run(`UPDATE nets SET ${column} = ?`, [forged]));
    await peered();
    const mine = await link(east, 'gate');
    await link(east, 'lost');
    await breakAt(east, 'next_key');
    await east.admin().request({ t: 'revoke', member: 'lost' });
    await until(() => told(mine)?.kind === 'net', 'the other key');
    const { pwId = 0, oldest } = (await atEast()) ?? {};
    expect(pwId).toBeGreaterThan(1);
    expect(told(mine)).toMatchObject({ pwId, oldest: pwId });
    expect(oldest).toBe(pwId);
    await until(async () => (await atWest())?.pwId === pwId, 'the other key at the far side');

    await age();
    await link(west, 'lost');
    await breakAt(west, 'key');
    await west.admin().request({ t: 'revoke', member: 'lost' });
    await until(
      async () => (await atWest())?.pwId === pwId + 1,
      'the key that the far side wanted',
    );
  });

  it('have one key again when the far side had ended the link and the maker knows less', async () => {
    await peered();
    const old = await atEast();
    if (old === undefined) throw new Error('there is no net');
    await rekey(east, 'west', true);
    await until(async () => (await atWest())?.pwId === 2, 'the second key');
    await west.admin().request({ t: 'peer.remove', net: 'east' });
    await east.store.write((tx) => tx.putNet(old));
    await add(peerToken());
    await until(async () => (await atWest())?.key !== undefined, 'the key again');
    expect((await atWest())?.pwId).toBe(3);
  });

  it('make one generation for many who ask at once, and none while the database is put back', async () => {
    const zone = await east.enrolled('zone', {
      ...{ role: 'server', net: parseId('zone'), ips: ['192.0.2.0/24'] },
    });
    const row = await east.store.net(parseId('zone'));
    if (row === undefined) throw new Error('there is no net');
    await east.store.write((tx) => tx.putNet({ ...row, createdAt: row.createdAt - 60_000 }));
    const answers = await Promise.allSettled(
      Array.from({ length: 20 }, () =>
        zone.client.request({ t: 'net.rekey', net: 'zone', force: true }),
      ),
    );
    expect(answers.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect((await east.store.net(parseId('zone')))?.pwId).toBe(2);
    await east.store.write((tx) => tx.setPutBack(true));
    await expect(
      zone.client.request({ t: 'net.sync', net: 'zone', prefixes: [], held: 0, ...FAR }),
    ).rejects.toMatchObject({ code: 'not_yet' });
  });

  it('take confirmations of link ports only, and tell a new link port what was there before', async () => {
    await peered();
    const alice = await east.member('alice');
    const { cursor } = await alice.syncAll();
    const epoch = east.store.meta.epoch;
    await expect(confirm(alice, 'west', 2)).rejects.toMatchObject({ code: 'refused' });
    await alice.enrol(east.token({ id: 'alice', role: 'link' }));
    await alice.registerAgain();
    expect(netsOf((await alice.syncAll(cursor, epoch)).changes)).toMatchObject([{ net: 'west' }]);
  });

  it('fit in a message whatever a server claims', async () => {
    const local = ['10.2.0.0/24', '10.3.0.0/24', '10.128.0.0/16'];
    const zone = await east.enrolled('zone', {
      ...{ role: 'server', net: parseId('zone'), ips: local },
    });
    const pieces = Array.from({ length: 63 }, (_, at) => `10.128.${at}.16/28`);
    const prefixes = ['10.2.0.0/15', ...pieces];
    await zone.client.request({ t: 'net.sync', net: 'zone', prefixes, held: 0, ...FAR });
    const gate = await link(east, 'gate');
    const [net] = netsOf((await gate.syncAll()).changes);
    expect(net?.kind === 'net' && net.prefixes).toHaveLength(64);
  });

  it('have so many links and no more', async () => {
    const row = await (async () => {
      await peered();
      return atEast();
    })();
    if (row === undefined) throw new Error('there is no net');
    await east.store.write(async (tx) => {
      for (let at = 0; at < MAX_NETS - 1; at += 1) {
        const serial = await tx.nextChange();
        await tx.putNet({
          ...row,
          net: parseId(`zone${at}`),
          local: [],
          serial,
          changed: serial,
        });
      }
    });
    await expect(
      east.enrolled('zulu', { role: 'server', net: parseId('zulu'), ips: ['192.0.2.0/24'] }),
    ).rejects.toMatchObject({ code: 'limit' });
  });

  it('go on with clocks that differ, and say so', async () => {
    await west.close();
    const lines: string[] = [];
    const real = new SystemClock();
    const clock = { bootMs: () => real.bootMs(), wallMs: () => real.wallMs() + 60_000 };
    const log = createLogger(
      'test',
      { level: 'error' },
      {
        write: (line: string) => void lines.push(line),
      },
    );
    west = await TestSubnet.start({ ...WEST, clock, log });
    await peered();
    await until(
      () => lines.some((line) => line.includes('clocks of two key servers')),
      'the alarm',
    );
    const { rows } = await west
      .admin()
      .request({ t: 'list', what: 'nets' }, { parse: (it) => answerSchemas.list.parse(it) });
    expect(Number(rows[0]?.skewMs)).toBeLessThan(-59_000);
    expect(rows[0]).toMatchObject({ pwId: 1, state: 'connected' });
    // Link ports of the one that asks go by the clock of the maker, the maker's by its own.
    const [there, here] = [await link(west, 'gate'), await link(east, 'gate')];
    const aheadOf = async (member: TestMember) =>
      netsOf((await member.syncAll()).changes).map((one) =>
        one.kind === 'net' ? (one.ahead ?? 0) : one.kind,
      );
    const [ahead] = await aheadOf(there);
    expect(Math.abs(Number(ahead) + 60_000)).toBeLessThan(1_000);
    await until(async () => (await atEast())?.far !== undefined, 'what the west tells');
    expect(await aheadOf(here)).toEqual([0]);
  });

  it('show each other in the list', async () => {
    await peered();
    const list = async (subnet: TestSubnet) => {
      const { rows } = await subnet
        .admin()
        .request({ t: 'list', what: 'nets' }, { parse: (it) => answerSchemas.list.parse(it) });
      return rows;
    };
    expect(await list(east)).toMatchObject([
      {
        net: 'west',
        peer: 'west',
        key: 'made here',
        state: 'connected',
        pwId: 1,
        prefixes: WEST.prefixes,
      },
    ]);
    const [row] = await list(west);
    expect(row).toMatchObject({
      net: 'east',
      peer: 'east',
      key: 'made there',
      state: 'connected',
      problem: null,
    });
    expect(Math.abs(Number(row?.skewMs))).toBeLessThan(1_000);
    const keys = await west
      .admin()
      .request({ t: 'list', what: 'keys' }, { parse: (it) => answerSchemas.list.parse(it) });
    expect(keys.rows).toContainEqual(
      expect.objectContaining({ kind: 'net', a: 'east', b: null, pwId: 1 }),
    );
    expect(JSON.stringify(keys)).not.toContain(
      ((await atWest())?.key ?? randomBytes(32)).toString('hex'),
    );
    await east.stopServer();
    try {
      await until(async () => (await list(west))[0]?.state === 'away', 'that the other is away');
    } finally {
      await east.startServer();
    }
  });
});
