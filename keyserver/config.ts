/**
 * keyserver.yaml: schema and loader. Every key is explained in
 * config/keyserver.example.yaml, which a test loads; config/schema/keyserver.json is made
 * from here. Secrets never stand in it, only the names of their files.
 */
import { dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { type ChannelAddress, parseChannelAddress } from '../src/net/address.js';
import { MAX_CONNECTIONS, MAX_HALF_OPEN, MAX_PER_KEY } from '../src/net/channel.js';
import { type Id, idSchema, parseId } from '../src/protocol/ids.js';
import {
  MAX_NET_PORTS,
  MAX_NET_PREFIXES,
  MAX_NETS,
  MAX_RELAY_ADDRESSES,
} from '../src/protocol/messages.js';
import { networkOf, overlap } from '../src/protocol/prefixes.js';
import { prefixSchema } from '../src/protocol/records.js';
import { PairwireError } from '../src/runtime/errors.js';
import { LOG_LEVELS } from '../src/runtime/log.js';
import { isLoopback } from '../src/runtime/metrics.js';
import { jsonSchemaOf, loadYaml } from '../src/settings/load-yaml.js';
import { MAX_MEMBERS_ELSEWHERE } from './cascade/intake.js';
import { LOOKUP_BURST, LOOKUPS_PER_SECOND } from './keys/key-requests.js';
import { publicKeySchema } from './kms/config.js';
import { isPostgres, postgresUrlMistake } from './storage/postgres-target.js';

/** Title of config/schema/keyserver.json. */
const SCHEMA_TITLE = 'Pairwire keyserver.yaml';

/** Name of the configuration in a key server's folder. */
export const CONFIG_FILE = 'keyserver.yaml';
export const DEFAULT_PORT = 7900;

const hostPortSchema = z
  .string()
  .max(300)
  .refine(
    (text) => splitHostPort(text) !== undefined,
    'must be HOST:PORT, as in 192.0.2.1:7900 or [2001:db8::1]:7900',
  );

const NOT_AN_ADDRESS =
  'must be HOST:PORT or SCHEME://HOST:PORT with tcp, udp or http, as in udp://192.0.2.1:7900';
/** `HOST:PORT` for TCP, or with a scheme in front. */
const channelAddressSchema = z
  .string()
  .max(300)
  .refine((text) => parseChannelAddress(text) !== undefined, NOT_AN_ADDRESS);

const fileSchema = z.string().min(1).max(4096);

export const keyServerConfigSchema = z.strictObject({
  subnet: idSchema,
  /** This server's id: where ids are at home. */
  server: idSchema.prefault('s1'),
  /** Where it accepts channels: one address or several. */
  listen: z
    .union([channelAddressSchema, z.array(channelAddressSchema).min(1).max(16)], NOT_AN_ADDRESS)
    .default(`0.0.0.0:${DEFAULT_PORT}`),
  /** The net id by which other subnets know this one; without it, the subnet's name. */
  net: idSchema.optional(),
  /** IP prefixes of this subnet, as other subnets are told of them. */
  prefixes: z.array(prefixSchema).max(MAX_NET_PREFIXES).default([]),
  /** What other subnets, by net id, have of this one beyond its own prefixes. */
  nets: z
    .record(
      idSchema,
      z.strictObject({
        /** Prefixes of third subnets that it reaches through this one. */
        through: z.array(prefixSchema).max(MAX_NET_PREFIXES).default([]),
        /** Ids of the link ports that it is told of; without it, all. */
        links: z.array(idSchema).min(1).max(MAX_NET_PORTS).optional(),
      }),
    )
    .refine((nets) => Object.keys(nets).length <= MAX_NETS, `at most ${MAX_NETS} nets`)
    .default({}),
  /** What join tokens name as its address; without it, `listen`. */
  advertise: z.array(channelAddressSchema).max(16).default([]),
  /** The relay beside it, for members behind NAT boxes; without it there is none. */
  relay: z
    .strictObject({
      /** UDP address where it listens: IP:PORT. */
      listen: hostPortSchema,
      /** IP addresses and ports under which members reach it; without any, `listen`. */
      advertise: z.array(hostPortSchema).max(MAX_RELAY_ADDRESSES).default([]),
    })
    .optional(),
  /** SQLite database, or a PostgreSQL server: postgres://USER@HOST/DATABASE. */
  database: fileSchema
    .superRefine((text, context) => {
      const mistake = isPostgres(text) ? postgresUrlMistake(text) : undefined;
      if (mistake !== undefined) context.addIssue({ code: 'custom', message: mistake });
    })
    .default('keyserver.db'),
  /** File with the password for PostgreSQL (mode 0600). */
  databasePasswordFile: fileSchema.optional(),
  /** Private operator key: signs grants and settings. May lie elsewhere, best off this machine. */
  operatorKey: fileSchema.default('operator.key'),
  /** The KMS that opens the store's keys; without `address` one runs as a child, in the folder `kms`. */
  kms: z
    .strictObject({
      /** Where it listens. */
      address: channelAddressSchema.optional(),
      /** Its public key, as its log and `pairwire kms status` show it. */
      key: publicKeySchema.optional(),
      /** Whom a child runs as, if the key server is root and there is such a user. */
      user: z
        .string()
        .regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'must be the name of a user')
        .default('pairwire-kms'),
    })
    .refine(
      ({ address, key }) => (address === undefined) === (key === undefined),
      'address and key belong together',
    )
    .prefault({}),
  metrics: z
    .strictObject({
      /** Where /metrics answers (loopback); without it, nowhere. */
      listen: hostPortSchema.optional(),
    })
    .prefault({}),
  /** What members and strangers may take; docs/limits.md says what happens at each edge. */
  limits: z
    .strictObject({
      /** Connections in all. */
      connections: z.int().min(1).max(1_000_000).default(MAX_CONNECTIONS),
      /** Of them, those whose handshake is not confirmed yet. */
      halfOpen: z.int().min(1).max(1_000_000).default(MAX_HALF_OPEN),
      /** Sessions of one static key. */
      sessionsPerMember: z.int().min(1).max(1_000).default(MAX_PER_KEY),
      /** Key requests of one member: so many at once, so many a second. */
      keyRequestBurst: z.int().min(1).max(1_000_000).default(LOOKUP_BURST),
      keyRequestsPerSecond: z.int().min(1).max(1_000_000).default(LOOKUPS_PER_SECOND),
      /** Members of one other key server of this subnet. */
      membersElsewhere: z.int().min(1).max(10_000_000).default(MAX_MEMBERS_ELSEWHERE),
    })
    .prefault({}),
  log: z
    .strictObject({
      level: z.enum(LOG_LEVELS).default('info'),
      style: z.enum(['auto', 'json', 'pretty']).default('auto'),
    })
    .prefault({}),
});
/** What stands in the file, before defaults. */
export type KeyServerConfigInput = z.input<typeof keyServerConfigSchema>;
/** keyserver.yaml with defaults. */
export type KeyServerConfig = z.output<typeof keyServerConfigSchema>;

/** A subnet's net id and its IP prefixes, each in the spelling of `networkOf`. */
export interface OwnNet {
  readonly id: Id;
  readonly prefixes: readonly string[];
  /** What single other nets are told beyond that. */
  readonly nets?: ReadonlyMap<Id, NetOffer>;
}

/** What another net has of this one beyond its own prefixes. */
export interface NetOffer {
  /** Prefixes of third nets that it reaches through this one, each in the spelling of `networkOf`. */
  readonly through: readonly string[];
  /** The link ports that it is told of; undefined: all. */
  readonly links: readonly Id[] | undefined;
}

/** The files of a key server's folder. */
export interface KeyServerPaths {
  readonly config: string;
  /** A file, or the URL of a PostgreSQL server. */
  readonly database: string;
  readonly databasePassword?: string;
  readonly operatorKey: string;
  readonly operatorPublic: string;
  readonly serverKey: string;
  readonly tokenKey: string;
  readonly auditKey: string;
  /** Signs the heads of the audit log. */
  readonly auditSignKey: string;
  readonly auditHead: string;
  /** Who has seen entries that the log does not have. */
  readonly auditWitnesses: string;
  readonly adminKey: string;
  /** Folder of the KMS, if it is a child. */
  readonly kms: string;
  /** Notes that the keys of the store are sealed. */
  readonly sealMark: string;
}

/** Reads DIR/keyserver.yaml. @throws PairwireError CONFIG_NOT_FOUND, CONFIG_INVALID with file and line */
export function loadKeyServerConfig(dir: string): KeyServerConfig {
  const path = join(resolve(dir), CONFIG_FILE);
  const config = loadYaml(path, keyServerConfigSchema);
  const { listen } = config.metrics;
  for (const [net, { through }] of Object.entries(config.nets)) {
    // What is ours is told anyway; under `through` it would be a mistake in one of the two.
    const own = through.find((one) => config.prefixes.some((ours) => overlap(ours, one)));
    const twice = config.prefixes.length + through.length > MAX_NET_PREFIXES;
    if (own === undefined && !twice) continue;
    const what = own === undefined ? `more than ${MAX_NET_PREFIXES} prefixes` : `${own} is our own`;
    throw new PairwireError('CONFIG_INVALID', `nets.${net}.through: ${what}`, {
      where: path,
      hint: 'name there only prefixes of third subnets',
    });
  }
  if (listen !== undefined && !isLoopback(splitHostPort(listen)?.host ?? '')) {
    throw new PairwireError('CONFIG_INVALID', 'metrics.listen must be a loopback address', {
      where: path,
      hint: 'write 127.0.0.1:9465 and let a proxy with access control serve it further',
    });
  }
  return config;
}

/** What this subnet is to others. */
export function ownNet(
  config: Pick<KeyServerConfig, 'subnet' | 'net' | 'prefixes' | 'nets'>,
): OwnNet {
  const nets = Object.entries(config.nets).map(
    ([net, { through, links }]) =>
      [parseId(net), { through: through.map(networkOf), links }] as const,
  );
  return {
    id: config.net ?? config.subnet,
    prefixes: config.prefixes.map(networkOf),
    nets: new Map(nets),
  };
}

/** The JSON Schema that editors use: config/schema/keyserver.json. */
export function keyServerJsonSchema(): Record<string, unknown> {
  return jsonSchemaOf(keyServerConfigSchema, SCHEMA_TITLE);
}

/** Where everything lies; relative names are relative to the folder. */
export function pathsOf(
  dir: string,
  config: Pick<KeyServerConfig, 'database' | 'databasePasswordFile' | 'operatorKey'>,
): KeyServerPaths {
  const at = (name: string): string => resolve(dir, name);
  const { database, databasePasswordFile } = config;
  const file = isPostgres(database) ? undefined : at(database);
  return {
    config: at(CONFIG_FILE),
    database: file ?? database,
    ...(databasePasswordFile === undefined ? {} : { databasePassword: at(databasePasswordFile) }),
    operatorKey: at(config.operatorKey),
    operatorPublic: at('operator.pub'),
    serverKey: at('server.key'),
    tokenKey: at('token.key'),
    auditKey: at('audit.key'),
    auditSignKey: at('audit-sign.key'),
    auditHead: join(file === undefined ? at('.') : dirname(file), 'audit.head'),
    auditWitnesses: join(file === undefined ? at('.') : dirname(file), 'audit.witnesses'),
    adminKey: at('admin.key'),
    kms: at('kms'),
    sealMark: at('store.sealed'),
  };
}

/** Kinds of key files, as their first words say. */
export const KEY_KIND = {
  operatorPrivate: 'operator-private',
  operatorPublic: 'operator-public',
  server: 'keyserver-private',
  token: 'token-key',
  audit: 'audit-key',
  auditSign: 'audit-sign-private',
  admin: 'admin-private',
} as const;

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** Host and port of `HOST:PORT`; undefined if it is none. */
export function splitHostPort(text: string): HostPort | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || !(port >= 1 && port <= 65_535)) return undefined;
  return { host, port };
}

/** @throws PairwireError USAGE */
export function requireHostPort(text: string, option: string): HostPort {
  const address = splitHostPort(text);
  if (address === undefined) {
    throw new PairwireError('USAGE', `${option}: "${text}" is not HOST:PORT`, {
      hint: 'for example 192.0.2.1:7900 or [2001:db8::1]:7900',
    });
  }
  return address;
}

/** The addresses under `listen`. */
export function listenAddresses(config: Pick<KeyServerConfig, 'listen'>): ChannelAddress[] {
  return [config.listen].flat().map((text) => requireChannelAddress(text, 'listen'));
}

/** @throws PairwireError USAGE */
export function requireChannelAddress(text: string, option: string): ChannelAddress {
  const address = parseChannelAddress(text);
  if (address === undefined) {
    throw new PairwireError(
      'USAGE',
      `${option}: "${text}" is not HOST:PORT or SCHEME://HOST:PORT`,
      {
        hint: 'for example 192.0.2.1:7900, udp://192.0.2.1:7900 or http://[2001:db8::1]:7980',
      },
    );
  }
  return address;
}

/** An address that every machine has, so nobody can be told to connect to it. */
export function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}
