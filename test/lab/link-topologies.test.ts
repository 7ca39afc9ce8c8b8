/**
 * Three subnets: in a triangle, each linked with the two others (config/lab/triangle.yaml), and in a row, where the one
 * in the middle is the way between the two others because it is configured to be (config/lab/row.yaml).
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { parseDocument } from 'yaml';
import type { Lab } from '../../scripts/laboratory/lab.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { readTopology } from '../../scripts/laboratory/topology.js';
import { growth } from './helpers/drops.js';
import { ping } from './helpers/hosts.js';
import { packetsWith, waitForLinks } from './helpers/links.js';
import { useLab } from './helpers/use-lab.js';

const MEMBERS = ['alice', 'bob', 'carol'] as const;
type Member = (typeof MEMBERS)[number];
const ADDRESS = {
  alice: ['198.51.100.11', '2001:db8:a::b'],
  bob: ['198.51.100.75', '2001:db8:b::b'],
  carol: ['198.51.100.139', '2001:db8:c::b'],
} as const;
/** First addresses of the link gateways inside. */
const GATEWAY = { a: '198.51.100.1', b: '198.51.100.65', c: '198.51.100.129' } as const;
const UNDERLAY = { 'gw-a': '192.0.2.2', 'gw-b': '192.0.2.66', 'gw-c': '192.0.2.130' } as const;
const SEGMENTS = ['a', 'b', 'c'] as const;
const PAIRS = MEMBERS.flatMap((from) =>
  MEMBERS.filter((to) => to !== from).map((to) => [from, to] as const),
);
/** 16 bytes, of which ping makes its payload. */
const MARKER = 'marker-marker-m!';
const PATIENCE_MS = 30_000;
/** Ten gateways and three key servers. */
const UP_MS = 300_000;

const topology = (name: string) =>
  readTopology(new URL(`../../config/lab/${name}.yaml`, import.meta.url).pathname);

/** All of five pings are answered, once the first frames have made their way. */
async function expectReached(lab: Lab, from: Member, to: Member): Promise<void> {
  for (const address of ADDRESS[to]) {
    await waitFor(async () => (await ping(lab, from, address)).received === 1, {
      ...{ what: `${from} to reach ${to} at ${address}`, timeoutMs: PATIENCE_MS },
    });
    const { received } = await ping(lab, from, address, { count: 5, intervalMs: 50 });
    expect(received, `${from} to ${address}`).toBe(5);
  }
}

async function answers(lab: Lab, from: Member, to: Member): Promise<number> {
  const options = { count: 4, intervalMs: 50, waitMs: 500 };
  const tries = ADDRESS[to].map(
    async (address) => (await ping(lab, from, address, options)).received,
  );
  return (await Promise.all(tries)).reduce((sum, one) => sum + one, 0);
}

/** The routers that a packet of IPv4 meets, its destination last. */
async function hops(lab: Lab, from: Member, to: Member): Promise<string[]> {
  const { stdout } = await lab.exec(from, [
    ...['traceroute', '-n', '-q', '1', '-w', '5', '-m', '6', ADDRESS[to][0]],
  ]);
  return [...stdout.matchAll(/^ *\d+ +(\S+)/gm)].map(([, hop]) => hop ?? '');
}

/** Pings with a text in it while all three segments of the underlay are recorded; none of it may be seen there. */
async function expectSealed(lab: Lab, from: Member, to: Member): Promise<void> {
  const places = await Promise.all(SEGMENTS.map((segment) => lab.capture(segment)));
  const inside = await lab.capture(to, { interface: 'pw0' });
  const pattern = Buffer.from(MARKER).toString('hex');
  const { received } = await ping(lab, from, ADDRESS[to][0], {
    ...{ count: 10, intervalMs: 20, pattern },
  });
  expect(received).toBe(10);
  expect(await packetsWith([inside], MARKER)).toBe(20);
  expect(await packetsWith(places, MARKER)).toBe(0);
}

describe('three subnets in a triangle', () => {
  const handle = useLab(topology('triangle'), { upMs: UP_MS });
  const LINKS = { 'gw-a/link': 2, 'gw-b/link': 2, 'gw-c/link': 2 };

  beforeAll(() => waitForLinks(handle.lab, LINKS), 90_000);

  test.each(PAIRS)('%s reaches %s by IPv4 and IPv6', async (from, to) => {
    await expectReached(handle.lab, from, to);
  });

  test.each(PAIRS)('nobody on the way reads what %s tells %s', async (from, to) => {
    await expectSealed(handle.lab, from, to);
  });

  test('each goes straight to the subnet that it is for, and not through the third one', async () => {
    const { lab } = handle;
    const near = await hops(lab, 'alice', 'carol');
    expect(near).toHaveLength(3);
    expect([near.at(0), near.at(-1)]).toEqual([GATEWAY.a, ADDRESS.carol[0]]);
  });

  test('no subnet speaks for another one: an address of b does not leave c, nor come in at a', async () => {
    const { lab } = handle;
    const before = (await lab.port('gw-c/link')).drops;
    const [stolen] = ADDRESS.bob;
    await lab.exec('carol', ['ip', 'addr', 'add', `${stolen}/32`, 'dev', 'lo']);
    const seen = await lab.capture('alice', { interface: 'pw0', filter: `host ${stolen}` });
    try {
      const options = { count: 3, waitMs: 500, source: stolen };
      expect((await ping(lab, 'carol', ADDRESS.alice[0], options)).received).toBe(0);
      expect(await seen.stop()).toEqual([]);
    } finally {
      await lab.exec('carol', ['ip', 'addr', 'del', `${stolen}/32`, 'dev', 'lo']);
    }
    const grown = growth(before, (await lab.port('gw-c/link')).drops);
    expect(grown.net_source).toBe(3);
  });

  test('when two of them can not reach each other, nothing of it goes through the third one, and the rest goes on', async () => {
    const { lab } = handle;
    const cut =
      'add table inet cut; add chain inet cut forward { type filter hook forward priority 0; };';
    const between = `add rule inet cut forward ip saddr { ${UNDERLAY['gw-a']}, ${UNDERLAY['gw-b']} } ip daddr { ${UNDERLAY['gw-a']}, ${UNDERLAY['gw-b']} } drop`;
    await lab.exec('router', ['nft', `${cut} ${between}`]);
    try {
      expect(await answers(lab, 'alice', 'bob')).toBe(0);
      await expectReached(lab, 'alice', 'carol');
      await expectReached(lab, 'bob', 'carol');
    } finally {
      await lab.exec('router', ['nft', 'delete table inet cut']);
    }
    await expectReached(lab, 'alice', 'bob');
  }, 180_000);

  test('one subnet that is revoked at another one is linked with the third one as before', async () => {
    const { lab } = handle;
    await lab.pairwire('server-a', ['revoke', '--dir', lab.serverDir('a'), 'b']);
    await waitForLinks(lab, { 'gw-a/link': 1, 'gw-b/link': 2, 'gw-c/link': 2 });
    expect(await answers(lab, 'alice', 'bob')).toBe(0);
    expect(await answers(lab, 'bob', 'alice')).toBe(0);
    await expectReached(lab, 'alice', 'carol');
    await expectReached(lab, 'carol', 'bob');
  }, 180_000);
});

describe('three subnets in a row', () => {
  const handle = useLab(topology('row'), { upMs: UP_MS });
  const LINKS = { 'gw-a/link': 1, 'gw-b/link-a': 1, 'gw-b/link-c': 1, 'gw-c/link': 1 };

  beforeAll(() => waitForLinks(handle.lab, LINKS), 90_000);

  test.each(PAIRS)('%s reaches %s by IPv4 and IPv6', async (from, to) => {
    await expectReached(handle.lab, from, to);
  });

  test.each(PAIRS)('nobody on the way reads what %s tells %s', async (from, to) => {
    await expectSealed(handle.lab, from, to);
  });

  test('what goes from one end to the other is opened and sealed again in the middle', async () => {
    const { lab } = handle;
    const path = await hops(lab, 'alice', 'carol');
    expect(path).toHaveLength(4);
    expect([path.at(0), path.at(-1)]).toEqual([GATEWAY.a, ADDRESS.carol[0]]);
    // In clear it is only on the two links of the gateway in the middle, and nothing goes straight between the ends.
    const straight = `host ${UNDERLAY['gw-a']} and host ${UNDERLAY['gw-c']}`;
    const wires = await Promise.all(SEGMENTS.map((one) => lab.capture(one, { filter: straight })));
    const links = await Promise.all(
      ['link0', 'link1'].map((one) => lab.capture('gw-b', { interface: one, filter: 'icmp' })),
    );
    const { received } = await ping(lab, 'alice', ADDRESS.carol[0], { count: 10, intervalMs: 20 });
    expect(received).toBe(10);
    const seen = await Promise.all(links.map((one) => one.stop()));
    expect(seen.map((packets) => packets.length)).toEqual([20, 20]);
    expect((await Promise.all(wires.map((one) => one.stop()))).flat()).toEqual([]);
  });

  test('without the word of the key server in the middle it is no way, and is itself reached as before', async () => {
    const { lab } = handle;
    const file = join(lab.serverDir('b'), 'keyserver.yaml');
    const before = readFileSync(file, 'utf8');
    const config = parseDocument(before);
    config.deleteIn(['nets', 'a', 'through']);
    config.deleteIn(['nets', 'c', 'through']);
    const behind = async (link: string) =>
      (await lab.port(link)).link?.nets.flatMap(({ prefixes }) => prefixes).length;
    const become = async (text: string, prefixes: number) => {
      await lab.stopKeyServer('b');
      writeFileSync(file, text, { mode: 0o600 });
      await lab.startKeyServer('b');
      await waitFor(
        async () =>
          (await behind('gw-a/link')) === prefixes && (await behind('gw-c/link')) === prefixes,
        { what: `${prefixes} prefixes behind b`, timeoutMs: 60_000 },
      );
    };
    await become(config.toString(), 2);
    expect(await answers(lab, 'alice', 'carol')).toBe(0);
    expect(await answers(lab, 'carol', 'alice')).toBe(0);
    await expectReached(lab, 'alice', 'bob');
    await expectReached(lab, 'carol', 'bob');
    await become(before, 4);
    await expectReached(lab, 'alice', 'carol');
  }, 180_000);
});
