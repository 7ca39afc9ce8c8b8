/**
 * gateway.yaml: schema, defaults and the loader. Every key is explained in
 * config/gateway.example.yaml, which a test loads; config/schema/gateway.json is made from
 * here. Secrets never stand in it.
 */
import { createHash } from 'node:crypto';
import { realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { parseChannelAddress } from '../src/net/address.js';
import { KEY_SIZE } from '../src/protocol/constants.js';
import { type Id, idSchema } from '../src/protocol/ids.js';
import { MAX_NET_PREFIXES, MAX_NETS } from '../src/protocol/messages.js';
import { overlap } from '../src/protocol/prefixes.js';
import { prefixSchema } from '../src/protocol/records.js';
import { PairwireError } from '../src/runtime/errors.js';
import { isLoopback } from '../src/runtime/metrics.js';
import { loadYaml } from '../src/settings/load-yaml.js';
import { RUN_ROOT } from './paths.js';

/** Longest name of a network interface in Linux (IFNAMSIZ less the end). */
const MAX_INTERFACE_NAME = 15;
/** A TAP below the smallest MTU that IPv6 allows is of no use. */
const MIN_MTU = 1280;
const MAX_MTU = 9216;
const MAX_EXTRA_ENDPOINTS = 8;

/** 32 bytes as base64url, the form in which public keys stand in the configuration. */
const publicKeySchema = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/, 'a public key is 43 characters of base64url')
  .refine(
    (text) => Buffer.from(text, 'base64url').length === KEY_SIZE,
    'a public key has 32 bytes',
  );

/** `HOST:PORT`, IPv6 addresses in brackets. */
const hostPortSchema = z
  .string()
  .max(300)
  .refine(
    (text) => splitHostPort(text) !== undefined,
    'must be HOST:PORT, as in 192.0.2.1:7900 or [2001:db8::1]:7900',
  );

/** `HOST:PORT` for TCP, or with a scheme in front. */
const serverAddressSchema = z
  .string()
  .max(300)
  .refine(
    (text) => parseChannelAddress(text) !== undefined,
    'must be HOST:PORT or SCHEME://HOST:PORT with tcp, udp or http, as in udp://192.0.2.1:7900',
  );

const interfaceSchema = z
  .string()
  .max(MAX_INTERFACE_NAME)
  .regex(
    /^[A-Za-z][A-Za-z0-9_.-]*$/,
    'an interface name starts with a letter and has letters, digits, _ . and -',
  );

/** Names that the device broker takes for an interface of others. */
const deviceSchema = interfaceSchema.refine((name) => name !== 'lo', 'lo is no Ethernet');

/** Names that the device broker takes for a TAP (gateway/native/devices/device-list.hpp). */
const tapSchema = z
  .string()
  .max(MAX_INTERFACE_NAME)
  .regex(/^[a-z][a-z0-9_-]*$/, 'the name of a TAP starts with a letter and has a-z, 0-9, _ and -')
  .refine((name) => name !== 'lo', 'lo is taken');

const userSchema = z.string().regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'a user name as in /etc/passwd');

const portNumber = z.int().min(1).max(65_535);

/** What ports of all kinds have. */
const commonShape = {
  /** How status and logs call this port. */
  name: idSchema,
  /** Name of the TAP interface. */
  interface: tapSchema,
  /** MTU of the interface; without it, it is derived from the underlay. */
  mtu: z.int().min(MIN_MTU).max(MAX_MTU).optional(),
  /** Storm control: broadcast and multicast frames taken from the interface in a second. */
  storm: z.int().min(1).max(10_000_000).default(20_000),
  /** Whether ARP requests and neighbour solicitations for addresses that are bound are answered here, and go no further. */
  answerNeighbours: z.boolean().default(true),
};

/** Most interfaces that packets of a port may be forwarded to. */
const MAX_FORWARD = 8;
const forwardSchema = z.array(interfaceSchema).min(1).max(MAX_FORWARD);

/** Addresses to give to the interface; none leaves that to the system or to DHCP. */
const addressesSchema = z
  .array(z.union([z.cidrv4(), z.cidrv6()]))
  .max(16)
  .default([]);

/** A TAP that applications of this machine see. */
const hostPortKindSchema = z.strictObject({
  kind: z.literal('host').default('host'),
  ...commonShape,
  addresses: addressesSchema,
  /** Whether this machine may forward between the interface and others, as a router does; or the interfaces that it may. */
  forward: z.union([z.boolean(), forwardSchema]).default(false),
});

/** Most interfaces that the gateway puts into a bridge. */
const MAX_BRIDGE_PORTS = 8;

/** What a TAP in a bridge has. */
const bridgeShape = {
  /** The bridge; made, and taken away by `down`, if it is not there. */
  bridge: deviceSchema,
  /** Interfaces to put into it. */
  bridgePorts: z.array(deviceSchema).max(MAX_BRIDGE_PORTS).default([]),
};

/** A TAP in a bridge: machines there take part without keys. */
const plainPortKindSchema = z.strictObject({
  kind: z.literal('plain'),
  ...commonShape,
  ...bridgeShape,
  /** Which broadcast and multicast of members leaves it: all, `essential` (ARP, ND, DHCP), none. */
  broadcast: z.enum(['all', 'essential', 'none']).default('all'),
  /** Whether spanning-tree frames cross, in both directions. */
  stp: z.enum(['drop', 'pass']).default('drop'),
  /** An address that was not seen for so long is forgotten. */
  learnSeconds: z.int().min(10).max(3_600).default(300),
});

const netPrefixesSchema = z.array(prefixSchema).min(1).max(MAX_NET_PREFIXES);

/** What link ports of both levels have. */
const linkShape = {
  kind: z.literal('link'),
  name: commonShape.name,
  interface: commonShape.interface,
  mtu: commonShape.mtu,
  /** The net id of our subnet, as its key server has it; without it, the subnet's name. */
  net: idSchema.optional(),
  /** What is in our subnet. */
  prefixes: netPrefixesSchema,
  /** Other subnets, by net id, with what may be behind each. */
  nets: z
    .record(
      idSchema,
      z.strictObject({ prefixes: netPrefixesSchema, operator: publicKeySchema.optional() }),
    )
    .refine(
      (nets) => Object.keys(nets).length >= 1 && Object.keys(nets).length <= MAX_NETS,
      `between 1 and ${MAX_NETS} nets`,
    ),
};

/** A TAP that this machine routes packets into that are for other subnets. */
const udpLinkPortSchema = z.strictObject({
  ...linkShape,
  /** Sealed IP packets in UDP, between gateways that are next hops. */
  level: z.literal('udp').default('udp'),
  /** Interfaces of this machine that lead into our subnet: packets are forwarded between these and the link, and to no others. */
  inside: forwardSchema,
  addresses: addressesSchema,
});

/** IP protocols by name that may cross a link port of level `ip` in clear (IANA "Protocol Numbers"). */
export const PASSABLE = {
  icmp: 1,
  igmp: 2,
  icmpv6: 58,
  eigrp: 88,
  ospf: 89,
  pim: 103,
  vrrp: 112,
} as const;
const MAX_PASS = 16;
export const passSchema = z
  .array(z.enum(Object.keys(PASSABLE) as (keyof typeof PASSABLE)[]))
  .max(MAX_PASS);

/** A TAP in a bridge, between which and an interface to a router this machine is a bump in the wire. */
const ipLinkPortSchema = z.strictObject({
  ...linkShape,
  /** Packets keep their IP header, and any routers that know nothing of us pass them on. */
  level: z.literal('ip'),
  ...bridgeShape,
  /** What may cross in clear besides ARP and neighbour discovery: from and to any address that is in no linked subnet. */
  pass: passSchema.default([]),
});

const portSchema = z.discriminatedUnion('kind', [
  hostPortKindSchema,
  plainPortKindSchema,
  z.discriminatedUnion('level', [udpLinkPortSchema, ipLinkPortSchema]),
]);

const udpSchema = z.strictObject({
  kind: z.literal('udp').default('udp'),
  /** UDP port of the sealed frames, one for each subnet. */
  port: portNumber.default(51_820),
  /** Local address to bind to; without it, all. */
  bind: z.union([z.ipv4(), z.ipv6()]).optional(),
  /** Underlay interface to bind to; without it, the routing table decides. */
  device: interfaceSchema.optional(),
  /** Firewall mark of the sealed frames (SO_MARK), by which a routing rule keeps them out of the TAP. */
  mark: z.int().min(1).max(0xffff_ffff).optional(),
  /** Further addresses to tell to other members, as behind a port forwarding. */
  endpoints: z.array(hostPortSchema).max(MAX_EXTRA_ENDPOINTS).default([]),
  /** Also tell and use loopback addresses: for tests on one machine. */
  loopback: z.boolean().default(false),
});

const ethernetSchema = z.strictObject({
  kind: z.literal('ethernet'),
  /** Interface to the LAN that all members share; it needs no IP address. */
  device: deviceSchema,
});

/** For a link port of level `ip`. */
const wireSchema = z.strictObject({
  kind: z.literal('ip'),
  /** Interface to the router, which this machine itself then has no part in: it may have no IP address. */
  device: deviceSchema,
});

const transportSchema = z.discriminatedUnion('kind', [udpSchema, ethernetSchema, wireSchema]);

/** What may stand at performance.backend: names of gateway/native/crypto/aead.hpp, or auto. */
export const BACKENDS = ['auto', 'ipsec-mb', 'libcrypto'] as const;

/** Longer than any round trip that is worth waiting for awake. */
const MAX_SPIN_US = 1_000;
/** `auto`, where there are cores to spare. */
const AUTO_SPIN_US = 200;
/** With fewer, who waits awake takes the core that the program it waits for wants (docs/performance.md). */
const CORES_TO_SPIN = 4;
/** Crew::kMaxHelpers of gateway/native/core/crew.hpp. */
const MAX_HELPERS = 7;

/** Title of config/schema/gateway.json. */
export const CONFIG_TITLE = 'Pairwire gateway.yaml';

export const gatewayConfigSchema = z.strictObject({
  subnet: idSchema,
  member: idSchema,
  /** Key servers in order of preference; the next one is tried when one does not answer. */
  servers: z
    .array(z.strictObject({ address: serverAddressSchema, key: publicKeySchema }))
    .min(1)
    .max(16),
  /** The operator's public key, as the join token carried it. */
  operator: publicKeySchema,
  ports: z.array(portSchema).min(1).max(1, 'this version serves one port in each gateway'),
  transport: transportSchema.prefault({}),
  /** Folder of the sockets; without it, one below /run/pairwire. Relative to the folder of this file. */
  run: z.string().min(1).max(60, 'names of sockets below it would be too long').optional(),
  /** User of the control plane, when it was started by root. */
  user: userSchema.default('pairwire'),
  /** User of the data plane, which parses what strangers send. */
  dataplaneUser: userSchema.default('pairwire-dp'),
  metrics: z
    .strictObject({
      /** Where /metrics answers; without it, nowhere. */
      listen: hostPortSchema.optional(),
      /** One series for each peer: tells local readers who talks to whom. */
      perPeer: z.boolean().default(false),
    })
    .prefault({}),
  log: z
    .strictObject({
      level: z.enum(['trace', 'debug', 'info', 'warn', 'error']).default('info'),
    })
    .prefault({}),
  performance: z
    .strictObject({
      /** Library that encrypts. `auto`: the fastest that this machine has. */
      backend: z.enum(BACKENDS).default('auto'),
      /**
       * Microseconds that a thread looks for the next frame before it sleeps, where that has paid lately; 0: never.
       * `auto`: see `spinMicroseconds`.
       */
      spin: z.union([z.literal('auto'), z.int().min(0).max(MAX_SPIN_US)]).default('auto'),
      /** Threads that help with sealing and opening. `auto`: as many as the machine has cores to spare. */
      helpers: z.union([z.literal('auto'), z.int().min(0).max(MAX_HELPERS)]).default('auto'),
    })
    .prefault({}),
  /** A data plane without control plane wipes its keys after so many seconds. */
  orphan: z.int().min(10).max(604_800).default(900),
});
/** What stands in the file, before defaults. */
export type GatewayConfigInput = z.input<typeof gatewayConfigSchema>;
/** gateway.yaml with defaults. */
export type GatewayConfig = Omit<z.infer<typeof gatewayConfigSchema>, 'run'> & {
  /** Absolute. */
  readonly run: string;
};
export type PortConfig = GatewayConfig['ports'][number];
export type PlainPortConfig = Extract<PortConfig, { kind: 'plain' }>;
export type LinkPortConfig = Extract<PortConfig, { kind: 'link' }>;
export type TransportConfig = GatewayConfig['transport'];

/** What SIGHUP takes over without touching traffic; anything else needs a new start. */
export const RELOADABLE = ['log', 'transport.endpoints'] as const;

/** `performance.spin` in microseconds, on a machine with so many cores. */
export function spinMicroseconds(
  spin: GatewayConfig['performance']['spin'],
  cores: number,
): number {
  if (spin !== 'auto') return spin;
  return cores < CORES_TO_SPIN ? 0 : AUTO_SPIN_US;
}

/** Reads gateway.yaml. @throws PairwireError CONFIG_NOT_FOUND or CONFIG_INVALID with file and line */
export function loadGatewayConfig(path: string): GatewayConfig {
  const config = loadYaml(path, gatewayConfigSchema);
  requireConsistent(config, path);
  const listen = config.metrics.listen;
  if (listen !== undefined && !isLoopback(splitHostPort(listen)?.host ?? '')) {
    throw new PairwireError('CONFIG_INVALID', 'metrics.listen must be a loopback address', {
      where: path,
      hint: 'write 127.0.0.1:9464 and let a proxy with access control serve it further',
    });
  }
  const dir = dirname(resolve(path));
  const run = config.run === undefined ? defaultRunDir(dir) : resolve(dir, config.run);
  return { ...config, run };
}

/** MTU of a LAN whose machines nobody asked. */
const LAN_MTU = 1_500;

/**
 * The MTU that the TAP is to have; undefined: derived from the underlay. Machines in a bridge don't know of the
 * underlay: what they send in full length crosses in parts.
 */
export function wantedMtu(port: PortConfig | undefined): number | undefined {
  return port?.mtu ?? (port !== undefined && 'bridge' in port ? LAN_MTU : undefined);
}

/** Interfaces that are inside the encrypted subnet: no sealed frame goes to or comes from an address of theirs. */
export function insideInterfaces(config: Pick<GatewayConfig, 'ports'>): string[] {
  return config.ports.flatMap((port) => {
    if ('bridge' in port) return [port.interface, port.bridge, ...port.bridgePorts];
    return port.kind === 'link' ? [port.interface, ...port.inside] : [port.interface];
  });
}

/** What no schema says of ports and transport together. @throws PairwireError CONFIG_INVALID */
export function requireConsistent(
  config: Pick<GatewayConfig, 'ports' | 'transport'>,
  path: string,
): void {
  requireApart(config, path);
  requireLink(config, path);
}

/** Sealed frames in the bridge that their plaintext comes from would go round (threats.md C11). */
function requireApart(
  { ports, transport }: Pick<GatewayConfig, 'ports' | 'transport'>,
  path: string,
): void {
  for (const port of ports) {
    if (!('bridge' in port)) continue;
    const { device } = transport;
    const inside = [port.bridge, port.interface, ...port.bridgePorts];
    if (port.bridgePorts.includes(port.interface) || port.bridge === port.interface) {
      throw new PairwireError('CONFIG_INVALID', 'bridge, bridgePorts and interface must differ', {
        where: path,
      });
    }
    if (device === undefined || !inside.includes(device)) continue;
    throw new PairwireError(
      'CONFIG_INVALID',
      `${device} carries the sealed frames, so it can't be part of the bridge that their plaintext is in`,
      { where: path, hint: 'what is in the bridge needs an interface of its own' },
    );
  }
}

/** A link port is on the transport of its level, and its prefixes say of each address which one subnet it is in. */
function requireLink(
  { ports, transport }: Pick<GatewayConfig, 'ports' | 'transport'>,
  path: string,
): void {
  for (const port of ports) {
    if (port.kind !== 'link' && transport.kind === 'ip') {
      throw new PairwireError('CONFIG_INVALID', 'the transport ip is for link ports of level ip', {
        where: path,
        hint: 'transport: { kind: udp }, or kind: link and level: ip at the port',
      });
    }
    if (port.kind !== 'link') continue;
    const wrong = (what: string): PairwireError =>
      new PairwireError('CONFIG_INVALID', what, { where: path });
    if (transport.kind !== port.level) {
      throw wrong(`a link port of level ${port.level} is on the transport ${port.level}`);
    }
    const { device } = transport;
    if (port.level === 'udp') {
      if (port.inside.includes(port.interface)) throw wrong('inside names the link itself');
      if (device !== undefined && port.inside.includes(device)) {
        throw wrong(`${device} carries the sealed frames, so it can't lead into our subnet`);
      }
    }
    const lists = [port.prefixes, ...Object.values(port.nets).map(({ prefixes }) => prefixes)];
    lists.forEach((list, at) => {
      const others = lists.slice(at + 1).flat();
      const double = list.find((one) => others.some((other) => overlap(one, other)));
      if (double !== undefined) throw wrong(`${double} is in two subnets`);
    });
  }
}

/** What a link port knows of another subnet. */
export function netsOf(port: LinkPortConfig): ReadonlyMap<Id, LinkPortConfig['nets'][Id]> {
  return new Map(Object.entries(port.nets).map(([net, known]) => [net as Id, known]));
}

/**
 * The run directory of a gateway that configures none: one for each directory, short enough for the
 * names of sockets, and below a folder of root's.
 */
export function defaultRunDir(dir: string): string {
  let real = resolve(dir);
  try {
    real = realpathSync(real);
  } catch {
    // A directory that is not there has no links to follow.
  }
  const digest = createHash('sha256').update(real).digest('hex').slice(0, 8);
  return join(RUN_ROOT, `${basename(real).slice(0, 24)}-${digest}`);
}

/** Host and port of `HOST:PORT`; undefined if it is none. */
export function splitHostPort(text: string): { host: string; port: number } | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || host === '' || !(port >= 1 && port <= 65_535)) return undefined;
  return { host, port };
}
