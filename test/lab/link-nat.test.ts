/**
 * Two subnets whose link gateways are both behind NAT boxes that let nobody in. Each link port learns from its own
 * relay how it is seen, the key servers tell each other, and both knock at the same time, so each box takes the
 * other's frames for answers.
 *
 *   alice, gw-east -- home-east -- [box-east] --+-- wire --+-- [box-west] -- home-west -- gw-west, bob
 *                                    server-east           server-west       (each with a relay)
 */
import { beforeAll, describe, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';
import { useLab } from './helpers/use-lab.js';

const SIDES = ['east', 'west'] as const;
type Side = (typeof SIDES)[number];
const OTHER = { east: 'west', west: 'east' } as const;
const MEMBER = { east: 'alice', west: 'bob' } as const;
const INNER = { east: '198.51.100', west: '203.0.113' } as const;
const SERVER = { east: '192.0.2.1', west: '192.0.2.2' } as const;
const BOX = { east: '192.0.2.10', west: '192.0.2.20' } as const;
const MOVED = '192.0.2.21';
/** Of 64 addresses each. */
const HOME = { east: 64, west: 128 } as const;
const LINK_PORT = 7_010;

const prefix = (side: Side) => `${INNER[side]}.0/24`;
const link = (side: Side) => `gw-${side}/link`;
const atHome = (side: Side, number: number) => `192.0.2.${HOME[side] + number}`;

function hostsOf(side: Side): TopologyInput['hosts'] {
  const home = (number: number) => ({
    interfaces: [
      { segment: `home-${side}`, name: 'eth0', addresses: [`${atHome(side, number)}/26`] },
    ],
    routes: [{ to: 'default' as const, via: atHome(side, 1) }],
  });
  return {
    [`server-${side}`]: {
      interfaces: [{ segment: 'wire', name: 'eth0', addresses: [`${SERVER[side]}/26`] }],
    },
    [`box-${side}`]: {
      ...{ kind: 'nat', masquerade: 'outside' },
      interfaces: [
        { segment: 'wire', name: 'outside', addresses: [`${BOX[side]}/26`] },
        { segment: `home-${side}`, name: 'inside', addresses: [`${atHome(side, 1)}/26`] },
      ],
    },
    [`gw-${side}`]: { ...home(2), kind: 'router' },
    [MEMBER[side]]: home(3),
  };
}

function gatewaysOf(side: Side): NonNullable<TopologyInput['gateways']> {
  const other = OTHER[side];
  return [
    {
      ...{ host: `gw-${side}`, subnet: side, addresses: [`${INNER[side]}.1/24`] },
      join: ['--forward', 'link0'],
    },
    {
      ...{ host: `gw-${side}`, subnet: side, as: 'link', id: 'link', interface: 'link0' },
      ...{ port: LINK_PORT, token: ['--role', 'link'] },
      join: [
        ...['--prefix', prefix(side), '--net', `${other}=${prefix(other)}`, '--inside', 'pw0'],
      ],
    },
    {
      ...{ host: MEMBER[side], subnet: side, addresses: [`${INNER[side]}.2/24`] },
      routes: [{ to: prefix(other), via: `${INNER[side]}.1` }],
    },
  ];
}

const server = (side: Side) => ({
  ...{ host: `server-${side}`, listen: `${SERVER[side]}:7100` },
  init: ['--prefix', prefix(side), '--relay', `${SERVER[side]}:7901`],
});

describe('two link ports behind NAT boxes', () => {
  const handle = useLab({
    segments: { wire: {}, 'home-east': {}, 'home-west': {} },
    hosts: { ...hostsOf('east'), ...hostsOf('west') },
    keyServers: { east: server('east'), west: server('west') },
    gateways: [...gatewaysOf('east'), ...gatewaysOf('west')],
    peerings: [
      {
        ...{ maker: 'east', asker: 'west' },
        prefixes: { east: [prefix('east')], west: [prefix('west')] },
      },
    ],
  });

  const linked = () =>
    waitFor(
      async () => {
        const ports = await Promise.all(SIDES.map((side) => handle.lab.port(link(side))));
        return ports.every(({ peers }) => peers.some((one) => one.hasKey && one.path === 'direct'));
      },
      { what: 'the link', timeoutMs: 40_000, everyMs: 100 },
    );

  beforeAll(linked, 60_000);

  test('reach each other, from either side', async () => {
    const { lab } = handle;
    for (const side of SIDES) {
      const [peer] = (await lab.port(link(side))).peers;
      expect(peer?.endpoint?.startsWith(`${BOX[OTHER[side]]}:`)).toBe(true);
      const to = `${INNER[OTHER[side]]}.2`;
      expect((await ping(lab, MEMBER[side], to, { count: 5 })).received).toBeGreaterThanOrEqual(4);
      expect((await ping(lab, MEMBER[side], to, { count: 5 })).received).toBe(5);
    }
  });

  test('find each other again when a box gets another address', async () => {
    const { lab } = handle;
    const change = (what: string, address: string) =>
      lab.exec('box-west', ['ip', 'address', what, `${address}/26`, 'dev', 'outside']);
    await change('del', BOX.west);
    await change('add', MOVED);
    await waitFor(
      async () => {
        const [peer] = (await lab.port(link('east'))).peers;
        const moved = peer?.endpoint?.startsWith(`${MOVED}:`) === true;
        const options = { waitMs: 300 };
        return moved && (await ping(lab, 'alice', `${INNER.west}.2`, options)).received === 1;
      },
      { what: 'alice to reach bob', timeoutMs: 90_000 },
    );
  });
});
