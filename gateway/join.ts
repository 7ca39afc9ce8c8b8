/**
 * `pairwire join`: makes this machine a member. In this order, so that a crash at any point is
 * mended by the same command again:
 *
 *   keys -> membership (signed by them) -> first contact (IKpsk2), enrol -> gateway.yaml
 *
 * The keys are on the disk before the key server hears of them, so a repetition enrols the same
 * identity, which the server takes for the same member.
 */
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { stringify } from 'yaml';
import { formatChannelAddress } from '../src/net/address.js';
import { RequestError } from '../src/net/channel.js';
import { ChannelClient } from '../src/net/channel-client.js';
import { serverEndpoints } from '../src/net/client-link.js';
import { LABEL } from '../src/protocol/constants.js';
import { type Id, parseId } from '../src/protocol/ids.js';
import { answerSchemas } from '../src/protocol/messages.js';
import { importPublic } from '../src/protocol/public-keys.js';
import {
  type Grant,
  grantCovers,
  grantSchema,
  type Role,
  verifyMembership,
} from '../src/protocol/records.js';
import { openSigned, type Signed } from '../src/protocol/signed.js';
import { parseToken, type Token } from '../src/protocol/token.js';
import { PairwireError } from '../src/runtime/errors.js';
import { makeSecretFolder, writeFileAtomic } from '../src/runtime/files.js';
import {
  type GatewayConfig,
  type GatewayConfigInput,
  gatewayConfigSchema,
  loadGatewayConfig,
  PASSABLE,
  passSchema,
} from './config.js';
import { makeKeys, readMembership, signMembership, writeMembership } from './identity.js';
import { gatewayPaths } from './paths.js';
import { chownToUser } from './users.js';

const ENROL_TIMEOUT_MS = 20_000;

export type TransportKind = GatewayConfig['transport']['kind'];

export interface JoinOptions {
  readonly dir: string;
  readonly token: string;
  /** For a token that serves several ids (`web-*`). */
  readonly id?: string;
  readonly interface: string;
  readonly addresses: readonly string[];
  /** For a host: interfaces that packets of this one may be forwarded to. */
  readonly forward?: readonly string[];
  /** For the role `plain`: the bridge that the machines outside are in; for a link of level `ip`, that of our subnet. */
  readonly bridge?: string;
  /** Interfaces to put into it. */
  readonly bridgePorts?: readonly string[];
  /** For the role `link`: what is in our subnet, and what may be behind other nets. */
  readonly prefixes?: readonly string[];
  readonly nets?: Readonly<Record<string, readonly string[]>>;
  /** Interfaces that lead into our subnet. */
  readonly inside?: readonly string[];
  /** IP protocols that cross a link of level `ip` in clear. */
  readonly pass?: readonly string[];
  /** `ip` makes a link port one of that level. */
  readonly transport?: TransportKind;
  /** Of `udp`; without it, the default of gateway.yaml. */
  readonly port?: number | undefined;
  /** Underlay interface: `ethernet` needs one, `udp` is bound to it. */
  readonly device?: string;
  readonly loopback?: boolean;
  readonly timeoutMs?: number;
}

/** What `join` has done. */
export interface Joined {
  readonly subnet: string;
  readonly member: string;
  readonly role: string;
  readonly macs: readonly string[];
  readonly config: string;
  /** gateway.yaml was there already and was left as it is. */
  readonly configKept: boolean;
  readonly servers: readonly string[];
}

/** Enrols this machine. @throws PairwireError TOKEN_MALFORMED, RECORD_*, REFUSED, CHANNEL_* */
export async function join(options: JoinOptions): Promise<Joined> {
  const token = parseToken(options.token);
  const grant = openGrant(token);
  const id = chooseId(grant, options.id);
  const paths = gatewayPaths(options.dir);
  requireSameMember(paths.config, token, id);
  const config = configOf(token, id, grant.role, options);

  makeSecretFolder(paths.dir);
  const keys = makeKeys(paths);
  const membership = membershipFor(token, id, paths, () =>
    signMembership(grant.subnet, id, token.grant, keys),
  );
  const member = verifyMembership(
    grant.subnet,
    membership,
    importPublic('ed25519', token.operator),
  );
  if (!keys.channel.publicKey.equals(member.channel)) {
    throw new PairwireError('RECORD_MISMATCH', 'the stored membership was made with other keys', {
      where: paths.membership,
      hint: 'remove it and join again',
    });
  }
  await enrol(token, grant, id, membership, keys.channel, options.timeoutMs ?? ENROL_TIMEOUT_MS);
  const configKept = existsSync(paths.config);
  if (!configKept) writeFileAtomic(paths.config, config);
  chownToUser(paths.dir, loadGatewayConfig(paths.config).user);
  return {
    subnet: grant.subnet,
    member: id,
    role: grant.role,
    macs: member.macs,
    config: paths.config,
    configKept,
    servers: token.servers.map((server) => formatChannelAddress(server)),
  };
}

/** The grant, signed by the operator whose key the token names: that key is pinned from now on. */
function openGrant(token: Token): Grant {
  const operator = importPublic('ed25519', token.operator);
  const grant = openSigned(LABEL.grant, token.grant, operator, grantSchema);
  if (grant.subnet !== token.subnet) {
    throw new PairwireError('RECORD_MISMATCH', 'token and grant name different subnets', {
      hint: 'ask the operator for a new token',
    });
  }
  return grant;
}

function chooseId(grant: Grant, wanted: string | undefined): Id {
  if (wanted === undefined && grant.id.endsWith('*')) {
    throw new PairwireError(
      'USAGE',
      `the token serves every id that begins with ${grant.id.slice(0, -1)}`,
      {
        hint: 'name yours: pairwire join --id ID ...',
      },
    );
  }
  const id = parseId(wanted ?? grant.id);
  if (!grantCovers(grant, id)) {
    throw new PairwireError('USAGE', `the token is for ${grant.id}, not for ${id}`, {
      hint: 'leave --id out, or ask the operator for another token',
    });
  }
  return id;
}

/** A directory belongs to one member for ever. */
function requireSameMember(path: string, token: Token, id: Id): void {
  if (!existsSync(path)) return;
  const config = loadGatewayConfig(path);
  const operator = Buffer.from(token.operator).toString('base64url');
  if (config.subnet === token.subnet && config.member === id && config.operator === operator)
    return;
  throw new PairwireError(
    'FILE_EXISTS',
    `this directory belongs to ${config.member} of ${config.subnet}`,
    { where: dirname(path), hint: 'join in an empty directory: pairwire join --dir OTHER' },
  );
}

/** The membership of an earlier attempt with the same grant, else a new one, stored before it is used. */
function membershipFor(
  token: Token,
  id: Id,
  paths: ReturnType<typeof gatewayPaths>,
  make: () => Signed,
): Signed {
  if (existsSync(paths.membership)) {
    const stored = readMembership(paths);
    const member = verifyMembership(token.subnet, stored, importPublic('ed25519', token.operator));
    const sameGrant = Buffer.from(member.grant.tokenId).equals(
      Buffer.from(openGrant(token).tokenId),
    );
    if (member.id === id && sameGrant) return stored;
  }
  const membership = make();
  writeMembership(paths, membership);
  return membership;
}

async function enrol(
  token: Token,
  grant: Grant,
  id: Id,
  membership: Signed,
  staticKeys: ConstructorParameters<typeof ChannelClient>[0]['staticKeys'],
  timeoutMs: number,
): Promise<void> {
  let lastError: PairwireError | undefined;
  const client = new ChannelClient({
    servers: serverEndpoints(token.servers),
    staticKeys,
    token: { id: Buffer.from(grant.tokenId), psk: Buffer.from(token.psk) },
    onState: (state) => {
      if (state.kind === 'down') lastError = state.error;
    },
  });
  client.start();
  try {
    const answer = await client.request(
      { t: 'enrol', membership },
      { timeoutMs, parse: (value) => answerSchemas.enrol.parse(value) },
    );
    if (answer.member !== id) {
      throw new PairwireError(
        'REFUSED',
        `the key server enrolled ${answer.member} instead of ${id}`,
      );
    }
  } catch (thrown) {
    if (thrown instanceof RequestError) throw refusedEnrolment(thrown);
    if (thrown instanceof PairwireError && thrown.code === 'CHANNEL_TIMEOUT') {
      throw new PairwireError(
        lastError?.code ?? 'CHANNEL_UNREACHABLE',
        `no key server could be reached: ${lastError?.message ?? 'no answer'}`,
        {
          ...(lastError?.where === undefined ? {} : { where: lastError.where }),
          hint: 'is the key server running, is the address right from here, is the token still good?',
          cause: thrown,
        },
      );
    }
    throw thrown;
  } finally {
    client.stop();
  }
}

function refusedEnrolment(error: RequestError): PairwireError {
  const detail = error.detail === undefined ? '' : `: ${error.detail}`;
  return new PairwireError(
    'REFUSED',
    `the key server did not take us in (${error.code}${detail})`,
    {
      hint: 'the token may be used up or expired, or the id taken; ask the operator for a new one',
      cause: error,
    },
  );
}

function transportOf(options: JoinOptions): GatewayConfigInput['transport'] {
  const { port, device, loopback } = options;
  const { transport } = options;
  if (transport === undefined || transport === 'udp') {
    return {
      ...(port === undefined ? {} : { port }),
      ...(device === undefined ? {} : { device }),
      ...(loopback === true ? { loopback } : {}),
    };
  }
  if (device === undefined || port !== undefined) {
    throw new PairwireError(
      'USAGE',
      `the transport ${transport} has an interface and no UDP port`,
      {
        hint: `pairwire join --transport ${transport} --device INTERFACE ...`,
      },
    );
  }
  return { kind: transport, device };
}

/** The kind of the port goes by the role, which is the operator's word. */
function portOf(
  { net }: Token,
  role: Role,
  options: JoinOptions,
): GatewayConfigInput['ports'][number] {
  const { bridge, bridgePorts = [], addresses, forward = [] } = options;
  if (forward.length > 0 && (role === 'plain' || role === 'link')) {
    throw new PairwireError('USAGE', `the token has the role ${role}: --forward is for hosts`, {
      hint: 'a bridge forwards by itself; a link port has --inside',
    });
  }
  const { prefixes = [], nets = {}, inside = [], pass = [] } = options;
  const named = prefixes.length + Object.keys(nets).length + inside.length + pass.length;
  if (role !== 'link' && named > 0) {
    throw new PairwireError('USAGE', `the token has the role ${role}: only link has other nets`, {
      hint: 'leave --prefix, --net, --inside and --pass out, or ask the operator for a token with --role link',
    });
  }
  if (role === 'link') return linkPortOf(net, options);
  if (role !== 'plain') {
    if (bridge !== undefined || bridgePorts.length > 0) {
      throw new PairwireError('USAGE', `the token has the role ${role}: only plain has a bridge`, {
        hint: 'leave --bridge out, or ask the operator for a token with --role plain',
      });
    }
    return {
      ...{ name: 'host', interface: options.interface, addresses: [...addresses] },
      ...(forward.length === 0 ? {} : { forward: [...forward] }),
    };
  }
  if (bridge === undefined || addresses.length > 0) {
    throw new PairwireError('USAGE', 'a plain port has a bridge and no addresses of its own', {
      hint: 'pairwire join --bridge br0 ..., and no --address; the bridge may have addresses',
    });
  }
  return {
    name: 'plain',
    kind: 'plain',
    interface: options.interface,
    bridge,
    ...(bridgePorts.length === 0 ? {} : { bridgePorts: [...bridgePorts] }),
  };
}

/** The level of a link goes by its transport. */
function linkPortOf(net: Token['net'], options: JoinOptions): GatewayConfigInput['ports'][number] {
  const { bridge, bridgePorts = [], addresses } = options;
  const { prefixes = [], nets = {}, inside = [], pass = [] } = options;
  const usage = (what: string, hint: string): PairwireError =>
    new PairwireError('USAGE', what, { hint: `pairwire join ${hint} ...` });
  const ways = '--prefix 198.51.100.0/24 --net west=203.0.113.0/24';
  if (prefixes.length === 0 || Object.keys(nets).length === 0) {
    throw usage('a link port knows its own prefixes and those of others', ways);
  }
  const common = {
    name: 'link',
    kind: 'link' as const,
    interface: options.interface,
    ...(net === undefined ? {} : { net }),
    prefixes: [...prefixes],
    nets: Object.fromEntries(
      Object.entries(nets).map(([name, behind]) => [name, { prefixes: [...behind] }]),
    ),
  };
  if (options.transport === 'ip') {
    if (bridge === undefined || inside.length > 0 || addresses.length > 0) {
      throw usage(
        'a link of level ip is between a bridge and an interface to the router, and has no address',
        `--transport ip --bridge br0 --device eth1 ${ways}`,
      );
    }
    const passing = passSchema.safeParse(pass);
    if (!passing.success) {
      const names = Object.keys(PASSABLE).join(', ');
      throw usage(`what may pass in clear is one of ${names}`, `--pass ospf --transport ip`);
    }
    return {
      ...common,
      level: 'ip' as const,
      bridge,
      ...(bridgePorts.length === 0 ? {} : { bridgePorts: [...bridgePorts] }),
      ...(pass.length === 0 ? {} : { pass: passing.data }),
    };
  }
  if (inside.length === 0 || bridge !== undefined || pass.length > 0) {
    throw usage(
      'a link of level udp has interfaces that lead into our subnet, and no bridge',
      `${ways} --inside pw0`,
    );
  }
  return { ...common, inside: [...inside], addresses: [...addresses] };
}

function configOf(token: Token, id: Id, role: Role, options: JoinOptions): string {
  const config: GatewayConfigInput = {
    subnet: token.subnet,
    member: id,
    servers: token.servers.map((server) => ({
      address: formatChannelAddress(server),
      key: Buffer.from(server.key).toString('base64url'),
    })),
    operator: Buffer.from(token.operator).toString('base64url'),
    ports: [portOf(token, role, options)],
    transport: transportOf(options),
  };
  const checked = gatewayConfigSchema.safeParse(config);
  if (!checked.success) {
    const first = checked.error.issues[0];
    throw new PairwireError('USAGE', first?.message ?? 'an option is wrong', {
      where: first?.path.join('.') ?? 'options',
      hint: 'see pairwire join --help',
    });
  }
  const about =
    '# Written by `pairwire join`. Every setting is explained in config/gateway.example.yaml.\n';
  return about + stringify(config);
}
