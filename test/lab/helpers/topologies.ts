/**
 * Topologies that several test files use. Hosts of `threeHosts`:
 *
 *       wire  192.0.2.0/24, 2001:db8:2::/64
 *   ──┬─────────┬─────────┬─────────┬─────────┬──
 *   alice      bob      carol     server   mallory
 *    .11       .12       .13       .1        .66       underlay
 *    .11       .12       .13                           subnet `lan`, 198.51.100.0/24, 2001:db8:51::/64
 *
 * mallory is on the underlay and no member.
 *
 * With PAIRWIRE_LAB_TRANSPORT=ethernet the same tests run on the transport `ethernet`: `wire` is a LAN
 * without IP addresses, where each host has eth1, and the addresses above stand on eth0 in a segment
 * `management`, which leads to the key server and to nothing else that is tested.
 */
import type { TopologyInput } from '../../../scripts/laboratory/topology.js';
import { ipToBytes } from '../../../src/protocol/ip.js';

export const SUBNET = 'lan';
export const MEMBERS = ['alice', 'bob', 'carol'] as const;
export type Member = (typeof MEMBERS)[number];
/** Where sealed frames are. */
export const SEGMENT = 'wire';
/** Where the key server is, on the transport `ethernet`. */
export const MANAGEMENT = 'management';
export const ETHERNET = process.env.PAIRWIRE_LAB_TRANSPORT === 'ethernet';
/** A host's interface on `wire`. */
export const WIRE_INTERFACE = ETHERNET ? 'eth1' : 'eth0';
export const DATA_PORT = 7000;
export const SERVER_PORT = 7100;

const NUMBER = { alice: 11, bob: 12, carol: 13 } as const;

/** A member's address on the underlay. */
export function outer(member: Member): string {
  return `192.0.2.${NUMBER[member]}`;
}

/** Both of a member's addresses outside, as a capture shows them: which one is used is that which answers first. */
export function outerBoth(member: Member): readonly string[] {
  const six = ipToBytes(`2001:db8:2::${NUMBER[member]}`);
  return [outer(member), ...(six === undefined ? [] : [six.toString('hex')])];
}

/** A member's address in the encrypted subnet. */
export function inner4(member: Member): string {
  return `198.51.100.${NUMBER[member]}`;
}

export function inner6(member: Member): string {
  return `2001:db8:51::${NUMBER[member]}`;
}

export function threeHosts(
  options: {
    readonly hold?: number;
    /** Offloads of the underlay: `wire` for captures of what a wire would carry. */
    readonly offload?: 'on' | 'wire';
    /** Which of the three run a gateway. */
    readonly members?: readonly Member[];
    /** Options for `pairwire token`, by member. */
    readonly token?: Partial<Record<Member, readonly string[]>>;
    /** Without addresses in the subnet: DHCP and SLAAC give them. */
    readonly unnumbered?: readonly Member[];
    /** False: IPv4 only, and silence on every interface unless a test breaks it. */
    readonly ipv6?: boolean;
    /** What carries the channel to the key server; TCP by default. */
    readonly scheme?: 'udp' | 'http';
    /** More options for `pairwire init`. */
    readonly init?: readonly string[];
    /** The transport; that of the environment, unless a test is about one. */
    readonly ethernet?: boolean;
    /** MTU of `wire`. */
    readonly mtu?: number;
    /** MAC addresses of interfaces on a `wire` without IP. */
    readonly wireMacs?: Partial<Record<Member, string>>;
  } = {},
): TopologyInput {
  const offload = options.offload ?? 'on';
  if (process.env.PAIRWIRE_LAB_CONTROL === 'plain') return plainControl(options.unnumbered ?? []);
  const ipv6 = options.ipv6 ?? true;
  const both = (v4: string, v6: string) => (ipv6 ? [v4, v6] : [v4]);
  const ethernet = options.ethernet ?? ETHERNET;
  const place = (host: number, mac?: string) => ({
    ipv6,
    interfaces: [
      {
        segment: ethernet ? MANAGEMENT : SEGMENT,
        name: 'eth0',
        addresses: both(`192.0.2.${host}/24`, `2001:db8:2::${host}/64`),
        offload,
      },
      ...(ethernet
        ? [{ segment: SEGMENT, name: 'eth1', ...(mac === undefined ? {} : { mac }) }]
        : []),
    ],
  });
  const wire = { hub: ethernet, ...(options.mtu === undefined ? {} : { mtu: options.mtu }) };
  return {
    segments: { [SEGMENT]: wire, ...(ethernet ? { [MANAGEMENT]: {} } : {}) },
    hosts: {
      alice: place(NUMBER.alice, options.wireMacs?.alice),
      bob: place(NUMBER.bob, options.wireMacs?.bob),
      carol: place(NUMBER.carol, options.wireMacs?.carol),
      server: place(1),
      mallory: place(66),
    },
    keyServers: {
      [SUBNET]: {
        host: 'server',
        listen: `${options.scheme === undefined ? '' : `${options.scheme}://`}192.0.2.1:${SERVER_PORT}`,
        ...(options.hold === undefined ? {} : { hold: options.hold, logLevel: 'debug' as const }),
        init: [...(options.init ?? [])],
      },
    },
    gateways: (options.members ?? MEMBERS).map((member) => ({
      host: member,
      subnet: SUBNET,
      port: DATA_PORT,
      ...(ethernet ? { ethernet: 'eth1' } : {}),
      token: [...(options.token?.[member] ?? [])],
      addresses: options.unnumbered?.includes(member)
        ? []
        : both(`${inner4(member)}/24`, `${inner6(member)}/64`),
    })),
  };
}

/**
 * The control of the traffic tests, PAIRWIRE_LAB_CONTROL=plain: pw0 is an ordinary interface on an
 * ordinary segment. A test that fails here says nothing about encryption.
 */
function plainControl(unnumbered: readonly Member[]): TopologyInput {
  const hosts: TopologyInput['hosts'] = {};
  for (const member of MEMBERS) {
    const addresses = unnumbered.includes(member)
      ? []
      : [`${inner4(member)}/24`, `${inner6(member)}/64`];
    hosts[member] = { interfaces: [{ segment: SEGMENT, name: 'pw0', addresses }] };
  }
  return { segments: { [SEGMENT]: {} }, hosts };
}
