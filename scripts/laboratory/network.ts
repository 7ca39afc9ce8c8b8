/**
 * The network of a laboratory as commands for `ip`, `nft` and `ethtool`: one namespace for each segment (a
 * bridge) and each host, pairs of virtual Ethernet interfaces between them.
 *
 *   pwl-NAME-HOST  eth0 ══════ p0  br0  pwl-NAME-SEGMENT
 */
import { run } from './processes.js';
import type { Topology, TopologyHost } from './topology.js';

/** Bridge of a segment, in the segment's namespace; captures on it see the whole segment. */
export const BRIDGE = 'br0';

export function namespaceOf(lab: string, place: string): string {
  return `pwl-${lab}-${place}`;
}

/** Namespaces of segments and hosts, in the order in which they are made. */
export function namespacesOf(lab: string, topology: Topology): string[] {
  return [...Object.keys(topology.segments), ...Object.keys(topology.hosts)].map((place) =>
    namespaceOf(lab, place),
  );
}

/** Settings of every namespace: IPv6 addresses are usable at once, nobody solicits routers by himself. */
const NAMESPACE_SYSCTLS = [
  'net.ipv6.conf.all.accept_dad=0',
  'net.ipv6.conf.default.accept_dad=0',
  'net.ipv6.conf.all.dad_transmits=0',
  'net.ipv6.conf.default.dad_transmits=0',
  'net.ipv6.conf.default.router_solicitation_delay=0',
] as const;

const NO_IPV6_SYSCTLS = [
  'net.ipv6.conf.all.disable_ipv6=1',
  'net.ipv6.conf.default.disable_ipv6=1',
] as const;

/** In a router; where an interface takes part in SLAAC nothing is forwarded. */
const ROUTER_SYSCTLS = ['net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1'] as const;

/** In a segment: a switch filters nothing, whatever the rules of the machine below are about. Kernels without br_netfilter don't have them. */
const SWITCH_SYSCTLS = [
  'net.bridge.bridge-nf-call-iptables=0',
  'net.bridge.bridge-nf-call-ip6tables=0',
  'net.bridge.bridge-nf-call-arptables=0',
] as const;

/** Offloads that let a sender hand down what no wire would carry in one piece. */
const WIRE_OFFLOADS = [
  'tso',
  'off',
  'gso',
  'off',
  'gro',
  'off',
  'tx',
  'off',
  'tx-udp-segmentation',
  'off',
];

/** Makes the whole network. The namespaces are known to the state before this is called. */
export async function makeNetwork(lab: string, topology: Topology): Promise<void> {
  for (const namespace of namespacesOf(lab, topology)) await run(['ip', 'netns', 'add', namespace]);
  await Promise.all(
    Object.entries(topology.hosts).map(([host, { ipv6 }]) =>
      sysctl(namespaceOf(lab, host), ipv6 ? NAMESPACE_SYSCTLS : NO_IPV6_SYSCTLS),
    ),
  );
  await Promise.all(
    Object.keys(topology.segments).map((segment) =>
      sysctl(namespaceOf(lab, segment), SWITCH_SYSCTLS),
    ),
  );
  // After the settings, which an interface takes over when it is made.
  await ipBatch(linkCommands(lab, topology));
  for (const segment of Object.keys(topology.segments)) {
    await ipBatch(segmentCommands(topology, segment), namespaceOf(lab, segment));
  }
  for (const [name, host] of Object.entries(topology.hosts)) {
    await configureHost(namespaceOf(lab, name), name, host, topology);
  }
}

/** Each interface and its other end on the segment's bridge. Ports are numbered over the whole laboratory. */
function linkCommands(lab: string, topology: Topology): string[] {
  const commands: string[] = [];
  let port = 0;
  for (const [name, host] of Object.entries(topology.hosts)) {
    for (const one of host.interfaces) {
      commands.push(
        `link add ${one.name} netns ${namespaceOf(lab, name)} type veth peer name p${port} netns ${namespaceOf(lab, one.segment)}`,
      );
      port += 1;
    }
  }
  return commands;
}

function segmentCommands(topology: Topology, segment: string): string[] {
  // Without snooping and learning delay the bridge floods group frames as a plain switch does.
  // What it has learned it forgets at once, if it is to be a hub.
  const ageing = topology.segments[segment]?.hub === true ? ' ageing_time 0' : '';
  const commands = [
    `link add ${BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0${ageing}`,
    `link set ${BRIDGE} up`,
    'link set lo up',
  ];
  const mtu = topology.segments[segment]?.mtu ?? 1500;
  let port = 0;
  for (const host of Object.values(topology.hosts)) {
    for (const one of host.interfaces) {
      if (one.segment === segment) {
        commands.push(`link set p${port} mtu ${mtu} master ${BRIDGE} up`);
      }
      port += 1;
    }
  }
  return commands;
}

async function configureHost(
  namespace: string,
  name: string,
  host: TopologyHost,
  topology: Topology,
): Promise<void> {
  const commands = ['link set lo up'];
  for (const one of host.interfaces) {
    const mtu = one.mtu ?? topology.segments[one.segment]?.mtu ?? 1500;
    const mac = one.mac === undefined ? '' : ` address ${one.mac}`;
    commands.push(`link set ${one.name}${mac} mtu ${mtu} up`);
    for (const address of one.addresses) {
      commands.push(
        `address add ${address} dev ${one.name}${address.includes(':') ? ' nodad' : ''}`,
      );
    }
  }
  for (const route of host.routes) {
    const to = route.to === 'default6' ? 'default' : route.to;
    commands.push(`route add ${to} via ${route.via}`);
  }
  await ipBatch(commands, namespace);
  if (host.kind === 'router' || host.kind === 'nat') await sysctl(namespace, ROUTER_SYSCTLS);
  for (const one of host.interfaces) {
    if (one.offload === 'wire') await cutOffloads(namespace, one.name);
  }
  const rules = [...natRules(host), ...impairmentRules(name, topology)];
  if (rules.length > 0) {
    await run(['ip', 'netns', 'exec', namespace, 'nft', '-f', '-'], { input: rules.join('\n') });
  }
}

/** From here on an interface carries frames as a wire would: of one MTU at most, with checksums. */
export async function cutOffloads(namespace: string, interfaceName: string): Promise<void> {
  await run(['ip', 'netns', 'exec', namespace, 'ethtool', '-K', interfaceName, ...WIRE_OFFLOADS]);
}

function natRules(host: TopologyHost): string[] {
  if (host.masquerade === undefined) return [];
  const outside = host.masquerade;
  return [
    'table ip lab-nat {',
    '  chain hide { type nat hook postrouting priority srcnat;',
    `    oifname "${outside}" masquerade${host.symmetric ? ' random,fully-random' : ''}`,
    '  }',
    // Dropped before it leaves a trace in conntrack, or the way out would get another port.
    '  chain self { type filter hook input priority filter; policy accept;',
    `    iifname "${outside}" meta l4proto udp ct state new drop`,
    '  }',
    '  chain guard { type filter hook forward priority filter; policy accept;',
    `    iifname "${outside}" ct state new drop`,
    '  }',
    '}',
  ];
}

function impairmentRules(host: string, topology: Topology): string[] {
  const rules: string[] = [];
  topology.impairments.forEach((one, at) => {
    if (one.host !== host) return;
    const ways = [
      { hook: 'ingress', drop: one.dropIn },
      { hook: 'egress', drop: one.dropOut },
    ] as const;
    for (const { hook, drop } of ways) {
      if (drop === undefined) continue;
      rules.push(
        `table netdev lab-loss-${at}-${hook} {`,
        '  chain loss {',
        `    type filter hook ${hook} device "${one.interface}" priority filter; policy accept;`,
        `    numgen random mod 1000 < ${drop} counter drop`,
        '  }',
        '}',
      );
    }
  });
  return rules;
}

async function ipBatch(commands: readonly string[], namespace?: string): Promise<void> {
  if (commands.length === 0) return;
  const inside = namespace === undefined ? [] : ['-n', namespace];
  await run(['ip', ...inside, '-batch', '-'], { input: `${commands.join('\n')}\n` });
}

/** What this kernel does not know is left out. */
async function sysctl(namespace: string, settings: readonly string[]): Promise<void> {
  await run(['ip', 'netns', 'exec', namespace, 'sysctl', '-e', '-q', '-w', ...settings]);
}

/** All processes inside a namespace: whatever the recorded ones have started in turn. */
export async function pidsIn(namespace: string): Promise<number[]> {
  const { stdout } = await run(['ip', 'netns', 'pids', namespace], { check: false });
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map(Number);
}

/** Takes a namespace away, with every interface in it. No error if there is none. */
export async function removeNamespace(namespace: string): Promise<void> {
  await run(['ip', 'netns', 'delete', namespace], { check: false });
}
