/**
 * Two members, two plain gateways, four machines that know nothing of encryption on two bridges:
 *
 *       wire  192.0.2.0/24
 *   ──┬───────┬───────┬───────┬───────┬──
 *   alice    bob    server   gate1   gate2
 *    .11     .12     .1       .21     .22        underlay
 *    .11     .12               |       |         subnet `lan`, 198.51.100.0/24, 2001:db8:51::/64
 *                            lan1    lan2        plain Ethernet, br0 of the gateways
 *                            ├ p1 .31  ├ p3 .33
 *                            └ p2 .32  └ p4 .34
 *
 * The machines have no idea of the wire, and the gateways no address in the subnet.
 */
import { fileURLToPath } from 'node:url';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import type { TopologyInput } from '../../../scripts/laboratory/topology.js';
import { type MacAddress, macSchema, macToBytes } from '../../../src/protocol/mac.js';
import { DATA_PORT, ETHERNET, MANAGEMENT, SEGMENT, SERVER_PORT, SUBNET } from './topologies.js';

export const PLAIN_MEMBERS = ['alice', 'bob'] as const;
export const GATES = ['gate1', 'gate2'] as const;
export const MACHINES = ['p1', 'p2', 'p3', 'p4'] as const;
/** Everybody with an address in the subnet. */
export const EVERYBODY = [...PLAIN_MEMBERS, ...MACHINES] as const;
export type Gate = (typeof GATES)[number];
export type Station = (typeof EVERYBODY)[number];

const NUMBER = { alice: 11, bob: 12, p1: 31, p2: 32, p3: 33, p4: 34 } as const;
const OUTER = { server: 1, alice: 11, bob: 12, gate1: 21, gate2: 22 } as const;
/** Which segment a machine is on, and which a gateway serves. */
export const LAN = {
  p1: 'lan1',
  p2: 'lan1',
  p3: 'lan2',
  p4: 'lan2',
  gate1: 'lan1',
  gate2: 'lan2',
} as const;

/** The interface by which a station is in the subnet. */
export function insideOf(station: Station): string {
  return station === 'alice' || station === 'bob' ? 'pw0' : 'eth0';
}

export function plain4(station: Station): string {
  return `198.51.100.${NUMBER[station]}`;
}

export function plain6(station: Station): string {
  return `2001:db8:51::${NUMBER[station]}`;
}

/** A fixed MAC address of a machine, so that tests can name it. */
export function macOf(machine: (typeof MACHINES)[number]): MacAddress {
  return macSchema.parse(`0a:00:00:00:00:${NUMBER[machine]}`);
}

const RAW_SEND = fileURLToPath(new URL('./programs/raw-send.py', import.meta.url));
/** IEEE 802 for the test of what is not there yet: no stack takes it. */
const ETHERTYPE_TEST = '9000';

/** A frame with a text in it, in a VLAN unless that is 0. */
export function textFrame(to: MacAddress, from: MacAddress, vlan: number, text: string): Buffer {
  const tag = vlan === 0 ? '' : `8100${vlan.toString(16).padStart(4, '0')}`;
  const type = Buffer.from(`${tag}${ETHERTYPE_TEST}`, 'hex');
  // Long enough for any wire.
  return Buffer.concat([macToBytes(to), macToBytes(from), type, Buffer.from(text.padEnd(60))]);
}

/** Sends frames as they are by a station's interface in the subnet. */
export async function sendRaw(
  lab: Lab,
  station: Station,
  ...frames: readonly Buffer[]
): Promise<void> {
  const texts = frames.map((frame) => frame.toString('hex'));
  await lab.exec(station, ['python3', RAW_SEND, insideOf(station), ...texts]);
}

export function plainTopology(
  options: {
    /** More options for `pairwire init`. */
    readonly init?: readonly string[];
    /** Options for `pairwire token` of the gateways. */
    readonly gateToken?: readonly string[];
    /** And of one member or gateway. */
    readonly token?: Partial<Record<(typeof PLAIN_MEMBERS)[number] | Gate, readonly string[]>>;
    /** Settings of the gateways' gateway.yaml. */
    readonly gateConfig?: Readonly<Record<string, string | number | boolean>>;
    readonly ethernet?: boolean;
  } = {},
): TopologyInput {
  const ethernet = options.ethernet ?? ETHERNET;
  const hosts: TopologyInput['hosts'] = {};
  for (const [name, number] of Object.entries(OUTER)) {
    const gate = name === 'gate1' || name === 'gate2';
    hosts[name] = {
      interfaces: [
        {
          segment: ethernet ? MANAGEMENT : SEGMENT,
          name: 'eth0',
          addresses: [`192.0.2.${number}/24`],
        },
        ...(ethernet ? [{ segment: SEGMENT, name: 'eth1' }] : []),
        ...(gate ? [{ segment: LAN[name], name: 'lan0' }] : []),
      ],
    };
  }
  for (const machine of MACHINES) {
    hosts[machine] = {
      kind: 'plain',
      interfaces: [
        {
          segment: LAN[machine],
          name: 'eth0',
          mac: macOf(machine),
          addresses: [`${plain4(machine)}/24`, `${plain6(machine)}/64`],
        },
      ],
    };
  }
  const common = {
    subnet: SUBNET,
    ...(ethernet ? { ethernet: 'eth1' } : { port: DATA_PORT }),
  };
  return {
    segments: {
      [SEGMENT]: { hub: ethernet },
      ...(ethernet ? { [MANAGEMENT]: {} } : {}),
      lan1: {},
      lan2: {},
    },
    hosts,
    keyServers: {
      [SUBNET]: {
        host: 'server',
        listen: `192.0.2.1:${SERVER_PORT}`,
        init: ['--unknown', 'plain', ...(options.init ?? [])],
      },
    },
    gateways: [
      ...PLAIN_MEMBERS.map((host) => ({
        ...common,
        host,
        token: [...(options.token?.[host] ?? [])],
        addresses: [`${plain4(host)}/24`, `${plain6(host)}/64`],
      })),
      ...GATES.map((host) => ({
        ...common,
        host,
        token: ['--role', 'plain', ...(options.gateToken ?? []), ...(options.token?.[host] ?? [])],
        join: ['--bridge', 'br0', '--bridge-port', 'lan0'],
        config: { ...options.gateConfig },
      })),
    ],
  };
}
