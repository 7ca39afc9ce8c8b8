/**
 * The topology file of the laboratory: what stands where, as YAML, checked before anything is
 * made. Addresses must be documentation addresses (RFC 5737, RFC 3849) or private ones
 * (RFC 1918) inside the encrypted subnet, so that no laboratory is mistaken for a real network.
 */
import { readFileSync } from 'node:fs';
import { LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { RIGHTS } from '../../src/protocol/records.js';

/** Names enter namespace names and file names. */
const nameSchema = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,15}$/, 'a name has 1 to 16 of a-z, 0-9 and hyphen');
const interfaceNameSchema = z
  .string()
  .regex(/^[a-z][a-z0-9-]{0,11}$/, 'an interface name has 1 to 12 of a-z, 0-9 and hyphen');

/** RFC 5737, RFC 3849, RFC 1918, RFC 4193, and link-local addresses. */
const LABORATORY_ADDRESS =
  /^(192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|10\.|172\.(1[6-9]|2\d|3[01])\.|192\.168\.|2001:db8:|fd[0-9a-f]{2}:|fe80:)/i;

const cidrSchema = z
  .union([z.cidrv4(), z.cidrv6()])
  .refine(
    (text) => LABORATORY_ADDRESS.test(text),
    'use documentation addresses: 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32',
  );
const MAX_MTU = 9216;
const addressSchema = z.union([z.ipv4(), z.ipv6()]);
const perMilleSchema = z.int().min(1).max(1000);

const segmentSchema = z.strictObject({
  mtu: z.int().min(576).max(MAX_MTU).default(1500),
  /** Every host sees every frame, as where a switch does not know an address. */
  hub: z.boolean().default(false),
});

const interfaceSchema = z.strictObject({
  segment: nameSchema,
  name: interfaceNameSchema,
  addresses: z.array(cidrSchema).max(16).default([]),
  mtu: z.int().min(576).max(MAX_MTU).optional(),
  mac: z
    .string()
    .regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/)
    .optional(),
  /** `wire`: each frame is cut and summed before it leaves, as on a network card without offloads, so that a capture shows what a wire would. */
  offload: z.enum(['on', 'wire']).default('on'),
});

const routeSchema = z.strictObject({
  to: z.union([z.literal('default'), z.literal('default6'), cidrSchema]),
  via: addressSchema,
});

/** `plain` marks a host that knows nothing of encryption; `router` and `nat` forward. */
const hostSchema = z.strictObject({
  kind: z.enum(['host', 'plain', 'router', 'nat']).default('host'),
  interfaces: z.array(interfaceSchema).max(8).default([]),
  routes: z.array(routeSchema).max(32).default([]),
  /** False: no IPv6 at all, so that the kernel says nothing on an interface by itself. */
  ipv6: z.boolean().default(true),
  /** The interface behind whose address a NAT box hides all others. */
  masquerade: interfaceNameSchema.optional(),
  /** The NAT box gives every flow a port drawn at random, so nobody can foresee where answers go. */
  symmetric: z.boolean().default(false),
});

const impairmentSchema = z.strictObject({
  host: nameSchema,
  interface: interfaceNameSchema,
  /** Frames lost of 1,000, each way on its own. */
  dropIn: perMilleSchema.optional(),
  dropOut: perMilleSchema.optional(),
});

const keyServerSchema = z.strictObject({
  host: nameSchema,
  listen: z.string().regex(/^\S+:\d{1,5}$/, 'listen is HOST:PORT or SCHEME://HOST:PORT'),
  /** Another key server of the subnet that the key server of this name has, which stands before it; its id. */
  cascade: z.strictObject({ of: nameSchema, server: nameSchema }).optional(),
  /** Frames held while a key is fetched; 0 is the documents' own rule. */
  hold: z.int().min(0).max(1024).optional(),
  /** `debug` logs each key request. */
  logLevel: z.enum(['debug', 'info', 'warn']).optional(),
  /** More options for `pairwire init`. */
  init: z.array(z.string()).default([]),
  /** Environment of its process, beside that of all. */
  env: z.record(z.string(), z.string()).default({}),
  /** Settings for its keyserver.yaml, by their path: `nets.west.through: [...]`. */
  config: z.record(z.string(), z.union([z.string(), z.array(z.string())])).default({}),
});

const gatewaySchema = z.strictObject({
  host: nameSchema,
  subnet: nameSchema,
  id: z.string().min(1).max(63).optional(),
  /** What it is called on its host; without it, as its subnet. */
  as: nameSchema.optional(),
  interface: interfaceNameSchema.default('pw0'),
  addresses: z.array(cidrSchema).max(8).default([]),
  port: z.int().min(1).max(65_535).default(7000),
  /** Transport `ethernet` on this interface, without IP; without it `udp`. */
  ethernet: interfaceNameSchema.optional(),
  /** A link port of level `ip` towards a router on this interface. */
  wire: interfaceNameSchema.optional(),
  /** Rights of its grant: it, or what is behind its plain port, advertises itself as router or serves DHCP. */
  rights: z.array(z.enum(RIGHTS)).default([]),
  /** Ways through its interface, once that is there. */
  routes: z.array(routeSchema).max(32).default([]),
  /** More options for `pairwire token` (role, addresses) and `pairwire join`. */
  token: z.array(z.string()).default([]),
  join: z.array(z.string()).default([]),
  /** Settings for its gateway.yaml, by their path: `ports.0.forward: true`. */
  config: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])).default({}),
});

/** Two subnets whose key servers know each other; the maker has the smaller net id. */
const peeringSchema = z.strictObject({
  maker: nameSchema,
  asker: nameSchema,
  /** What is in each of the two. */
  prefixes: z.record(nameSchema, z.array(cidrSchema).min(1)),
});

export const topologySchema = z
  .strictObject({
    segments: z.record(nameSchema, segmentSchema),
    hosts: z.record(nameSchema, hostSchema),
    impairments: z.array(impairmentSchema).default([]),
    /** By the name of the subnet that the server keeps; further ones of a subnet by any name, which gateways say for the subnet's. */
    keyServers: z.record(nameSchema, keyServerSchema).default({}),
    gateways: z.array(gatewaySchema).default([]),
    peerings: z.array(peeringSchema).default([]),
  })
  .superRefine((topology, context) => {
    const problem = (path: (string | number)[], message: string): void => {
      context.addIssue({ code: 'custom', path, message });
    };
    for (const [name, host] of Object.entries(topology.hosts)) {
      if (name in topology.segments) {
        problem(['hosts', name], `${name} is the name of a segment, too`);
      }
      host.interfaces.forEach((one, at) => {
        if (!(one.segment in topology.segments)) {
          problem(
            ['hosts', name, 'interfaces', at, 'segment'],
            `there is no segment ${one.segment}; there are ${Object.keys(topology.segments).join(', ')}`,
          );
        }
      });
      if (host.kind === 'nat') {
        if (!host.interfaces.some((one) => one.name === host.masquerade)) {
          problem(['hosts', name, 'masquerade'], 'a NAT box names one of its interfaces here');
        }
      } else if (host.masquerade !== undefined) {
        problem(['hosts', name, 'masquerade'], 'only a host of kind nat masquerades');
      }
    }
    const hostNamed = (path: (string | number)[], host: string): void => {
      if (!(host in topology.hosts)) {
        problem(
          path,
          `there is no host ${host}; there are ${Object.keys(topology.hosts).join(', ')}`,
        );
      }
    };
    topology.impairments.forEach((one, at) => {
      hostNamed(['impairments', at, 'host'], one.host);
    });
    for (const [subnet, server] of Object.entries(topology.keyServers)) {
      hostNamed(['keyServers', subnet, 'host'], server.host);
      const names = Object.keys(topology.keyServers);
      const { cascade } = server;
      if (cascade === undefined) continue;
      const before = names.indexOf(cascade.of);
      if (before >= 0 && before < names.indexOf(subnet)) continue;
      problem(
        ['keyServers', subnet, 'cascade', 'of'],
        `no key server ${cascade.of} stands before it`,
      );
    }
    topology.peerings.forEach(({ maker, asker, prefixes }, at) => {
      for (const subnet of [maker, asker]) {
        if (subnet in topology.keyServers && subnet in prefixes) continue;
        problem(['peerings', at], `the subnet ${subnet} needs a key server, and prefixes here`);
      }
    });
    topology.gateways.forEach((one, at) => {
      hostNamed(['gateways', at, 'host'], one.host);
      const interfaces = topology.hosts[one.host]?.interfaces ?? [];
      if (one.ethernet !== undefined && !interfaces.some(({ name }) => name === one.ethernet)) {
        problem(['gateways', at, 'ethernet'], `${one.host} has no interface ${one.ethernet}`);
      }
      if (!(one.subnet in topology.keyServers)) {
        problem(['gateways', at, 'subnet'], `there is no key server for the subnet ${one.subnet}`);
      }
    });
  });

export type Topology = z.infer<typeof topologySchema>;
/** A topology as one writes it, defaults left out. */
export type TopologyInput = z.input<typeof topologySchema>;
export type TopologyHost = Topology['hosts'][string];
export type TopologyGateway = Topology['gateways'][number];
export type TopologyPeering = Topology['peerings'][number];

/** A mistake in a topology file: each line says where and what. */
export class TopologyError extends Error {
  override readonly name = 'TopologyError';
}

/** Parses YAML text. @throws TopologyError with file and line of each mistake */
export function parseTopology(text: string, file: string): Topology {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const syntax = document.errors[0];
  if (syntax !== undefined) throw new TopologyError(`${file}: ${syntax.message}`);
  const parsed = topologySchema.safeParse(document.toJS({ maxAliasCount: 20 }));
  if (parsed.success) return parsed.data;
  const places = parsed.error.issues.map((issue) => {
    const line = lineOf(document, issue.path.map(String), lines);
    return `${file}:${line}: ${issue.path.join('.')}: ${issue.message}`;
  });
  throw new TopologyError(places.join('\n'));
}

/** Reads and parses a topology file. */
export function readTopology(file: string): Topology {
  return parseTopology(readFileSync(file, 'utf8'), file);
}

/** The line of the value at a path, or of the nearest one above it. */
function lineOf(
  document: ReturnType<typeof parseDocument>,
  path: readonly string[],
  lines: LineCounter,
): number {
  for (let length = path.length; length >= 0; length -= 1) {
    const keys = path.slice(0, length).map((key) => (/^\d+$/.test(key) ? Number(key) : key));
    const node = length === 0 ? document.contents : document.getIn(keys, true);
    if (typeof node === 'object' && node !== null && 'range' in node) {
      const range: unknown = node.range;
      if (Array.isArray(range) && typeof range[0] === 'number') return lines.linePos(range[0]).line;
    }
  }
  return 1;
}
