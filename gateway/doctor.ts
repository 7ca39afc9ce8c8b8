/**
 * `pairwire doctor`: looks at this machine the way the gateway will, and says how to mend what
 * it finds. Each check stands by itself: one that can't look says so and stops no other.
 */
import { execFile } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { arch, release } from 'node:os';
import { promisify } from 'node:util';
import { z } from 'zod';
import { parseChannelAddress } from '../src/net/address.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { findProgram } from '../src/runtime/native-program.js';
import {
  type GatewayConfig,
  insideInterfaces,
  type LinkPortConfig,
  loadGatewayConfig,
  wantedMtu,
} from './config.js';
import { gatewayPaths, runPaths } from './paths.js';
import { measureSpeed } from './speed.js';
import { askStatus } from './status/read.js';
import type { Status } from './status/snapshot.js';
import { hostOfEndpoint, ipJson, localAddresses, planMtu, routeDevice } from './underlay.js';
import { findUser, isRoot } from './users.js';

const run = promisify(execFile);
const ethernetLinkSchema = z.array(
  z.object({
    link_type: z.string(),
    master: z.string().optional(),
    flags: z.array(z.string()),
  }),
);
const bridgeLinksSchema = z.array(
  z.object({
    ifname: z.string(),
    master: z.string().optional(),
    linkinfo: z.object({ info_kind: z.string().optional() }).optional(),
  }),
);
const linkRoutesSchema = z.array(z.object({ dev: z.string().optional() }));
/** Bits of /proc/self/status CapEff. */
const CAP_NET_ADMIN = 12n;
const CAP_NET_RAW = 13n;
/** Bytes of the frame whose speed is told: a full one. */
const SPEED_SIZE = 1420;
const CLOCK_ALARM_MS = 1_000;
const CLOCK_OLD_MS = 600_000;
/** Members whose route is looked at; a wrong route takes all of a prefix. */
export const MAX_ROUTES = 64;

/** One finding. */
export interface Finding {
  readonly check: string;
  readonly state: 'ok' | 'warn' | 'fail';
  readonly message: string;
  /** How to mend it. */
  readonly fix: string | null;
}

interface Subject {
  readonly config: GatewayConfig | undefined;
  readonly status: Status | undefined;
}

/** What the check of routes looks at. */
export interface RouteSubject {
  readonly config: GatewayConfig | undefined;
  readonly status:
    | {
        readonly ports: readonly {
          readonly peers: readonly Pick<
            Status['ports'][number]['peers'][number],
            'endpoint' | 'endpoints'
          >[];
        }[];
      }
    | undefined;
}

type Check = readonly [name: string, look: (subject: Subject) => Promise<Verdict> | Verdict];
type Verdict = Omit<Finding, 'check'> | readonly Omit<Finding, 'check'>[];

const ok = (message: string) => ({ state: 'ok', message, fix: null }) as const;
const warn = (message: string, fix: string) => ({ state: 'warn', message, fix }) as const;
const fail = (message: string, fix: string) => ({ state: 'fail', message, fix }) as const;

const CHECKS: readonly Check[] = [
  ['kernel', checkKernel],
  ['tun', checkTun],
  ['rights', checkRights],
  ['nft', () => checkProgram('nft', ['--version'], 'nftables')],
  ['iproute2', () => checkProgram('ip', ['-V'], 'iproute2')],
  ['users', checkUsers],
  ['programs', checkNativePrograms],
  ['cpu', checkCpu],
  ['aead', checkAead],
  ['tap-offloads', checkTapOffloads],
  ['udp-offloads', checkUdpOffloads],
  ['ipv6', checkIpv6],
  ['port', checkUnderlay],
  ['bridge', checkBridge],
  ['link', checkLink],
  ['routes', checkRoutes],
  ['mtu', checkMtu],
  ['clock', checkClock],
  ['key-server', checkKeyServer],
  ['operator-key', checkOperatorKey],
];

/** Runs all checks. @param dir a gateway's directory, if there is one */
export async function examine(dir: string | undefined): Promise<Finding[]> {
  const findings: Finding[] = [];
  const subject = await subjectOf(dir, findings);
  for (const [check, look] of CHECKS) {
    try {
      const verdict = await look(subject);
      const all: readonly Omit<Finding, 'check'>[] = 'state' in verdict ? [verdict] : verdict;
      findings.push(...all.map((one) => ({ check, ...one })));
    } catch (thrown) {
      findings.push({
        check,
        ...warn(`could not look: ${messageOf(thrown)}`, 'look again as root'),
      });
    }
  }
  return findings;
}

async function subjectOf(dir: string | undefined, findings: Finding[]): Promise<Subject> {
  if (dir === undefined) return { config: undefined, status: undefined };
  let config: GatewayConfig;
  try {
    config = loadGatewayConfig(gatewayPaths(dir).config);
  } catch (thrown) {
    const hint = thrown instanceof PairwireError ? thrown.hint : undefined;
    findings.push({
      check: 'configuration',
      ...fail(messageOf(thrown), hint ?? 'pairwire join --dir DIR TOKEN'),
    });
    return { config: undefined, status: undefined };
  }
  findings.push({ check: 'configuration', ...ok(`${config.member} in ${config.subnet}`) });
  try {
    const status = await askStatus(runPaths(config.run).control, 5_000);
    findings.push({ check: 'gateway', ...ok('is running') });
    return { config, status };
  } catch {
    findings.push({
      check: 'gateway',
      ...warn("is not running, so some things can't be seen", `pairwire up --dir ${dir}`),
    });
    return { config, status: undefined };
  }
}

function kernelAtLeast(major: number, minor: number): boolean {
  const [a = 0, b = 0] = release().split(/[.-]/).map(Number);
  return a > major || (a === major && b >= minor);
}

function checkKernel(): Verdict {
  if (process.platform !== 'linux') {
    return fail(`this is ${process.platform}`, 'gateways run on Linux only');
  }
  if (!kernelAtLeast(5, 4)) {
    return fail(`Linux ${release()} is too old`, 'install Linux 5.4 or newer');
  }
  return ok(`Linux ${release()} on ${arch()}`);
}

function checkTun(): Verdict {
  if (!existsSync('/dev/net/tun')) {
    return fail(
      '/dev/net/tun is missing',
      'modprobe tun; in a container: pass the device in (--device /dev/net/tun)',
    );
  }
  try {
    accessSync('/dev/net/tun', constants.R_OK | constants.W_OK);
    return ok('/dev/net/tun is there');
  } catch {
    return warn(
      '/dev/net/tun may not be opened by this user',
      'start the gateway as root; it gives root up',
    );
  }
}

function checkRights(subject: Subject): Verdict {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(
    readFileSync('/proc/self/status', 'latin1'),
  )?.[1];
  const mask = BigInt(`0x${effective ?? '0'}`);
  const has = (bit: bigint): boolean => (mask & (1n << bit)) !== 0n;
  if (has(CAP_NET_ADMIN) && has(CAP_NET_RAW)) {
    return ok(`${isRoot() ? 'root' : 'this user'} has CAP_NET_ADMIN and CAP_NET_RAW`);
  }
  if (subject.status !== undefined) return ok('not needed: the device broker runs already');
  return isRoot()
    ? fail(
        'root without CAP_NET_ADMIN or CAP_NET_RAW',
        'in a container: --cap-add NET_ADMIN --cap-add NET_RAW',
      )
    : warn('not root', 'start the gateway with: sudo pairwire up --dir DIR');
}

async function checkProgram(
  name: string,
  args: readonly string[],
  debian: string,
): Promise<Verdict> {
  const path = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`;
  try {
    const { stdout, stderr } = await run(name, [...args], {
      timeout: 5_000,
      env: { ...process.env, PATH: path },
    });
    return ok((stdout || stderr).split('\n')[0]?.trim() ?? name);
  } catch {
    return fail(`${name} is missing`, `apt-get install ${debian}`);
  }
}

function checkUsers(subject: Subject): Verdict {
  const names = [
    subject.config?.user ?? 'pairwire',
    subject.config?.dataplaneUser ?? 'pairwire-dp',
  ];
  return names.map((name) =>
    findUser(name) === undefined
      ? fail(
          `there is no user ${name}`,
          `useradd --system --no-create-home --shell /usr/sbin/nologin ${name}`,
        )
      : ok(`user ${name} exists`),
  );
}

function checkNativePrograms(): Verdict {
  return (['pairwire-dataplane', 'pairwire-devices'] as const).map((name) => {
    try {
      return ok(`${name} is there: ${findProgram(name)}`);
    } catch (thrown) {
      return fail(messageOf(thrown), 'npm run build:native');
    }
  });
}

function checkCpu(): Verdict {
  const info = readFileSync('/proc/cpuinfo', 'latin1');
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(info)?.[1] ?? '';
  const flags = new Set(line.split(/\s+/));
  const found = ['aes', 'vaes', 'vpclmulqdq', 'avx2', 'avx512f', 'pmull'].filter((flag) =>
    flags.has(flag),
  );
  if (!flags.has('aes')) {
    return warn(
      'the CPU has no AES instructions',
      'let the operator choose the suite chacha20-poly1305',
    );
  }
  return ok(`CPU has ${found.join(', ')}`);
}

/** What encrypts now and what could, each with its speed for a full frame. */
async function checkAead(subject: Subject): Promise<Verdict> {
  const speeds = (await measureSpeed()).filter((one) => one.size === SPEED_SIZE);
  const port = subject.status?.ports[0];
  const suite = port?.suite ?? 'aes-256-gcm';
  const figures = speeds
    .filter((one) => one.suite === suite)
    .toSorted((a, b) => a.sealNs - b.sealNs)
    .map((one) => `${one.backend} ${one.gbitPerSecond.toFixed(1)} Gbit/s`)
    .join(', ');
  const measured = `${suite} on one core: ${figures}`;
  const fastest = speeds.some((one) => one.backend === 'ipsec-mb') || arch() !== 'x64';
  const install = 'apt-get install libipsec-mb-dev, then npm run build:native';
  if (port === undefined || port.backend === null || port.backend === '') {
    return fastest ? ok(`no gateway runs; ${measured}`) : warn(measured, install);
  }
  const used = `${suite} by ${port.backend}`;
  const wanted = subject.config?.performance.backend ?? 'auto';
  if (wanted !== 'auto' && wanted !== port.backend) {
    return warn(`${used}, not by ${wanted}, which is missing here; ${measured}`, install);
  }
  if (port.backend === 'ipsec-mb' || arch() !== 'x64') return ok(`${used}; ${measured}`);
  return fastest
    ? warn(`${used}, as configured; ${measured}`, 'performance.backend: auto in gateway.yaml')
    : warn(`${used}: several times slower than ipsec-mb; ${measured}`, install);
}

function checkTapOffloads(subject: Subject): Verdict {
  const offload = subject.status?.ports[0]?.offload;
  if (offload === false) {
    return warn(
      'the TAP works without offloads',
      'a kernel with TUNSETOFFLOAD (any of the last ten years) makes TCP faster',
    );
  }
  const uso = kernelAtLeast(6, 2) ? 'TSO4, TSO6, USO, checksum' : 'TSO4, TSO6, checksum';
  const seen = offload === true ? 'in use' : 'offered by this kernel';
  return kernelAtLeast(6, 2)
    ? ok(`${uso}: ${seen}`)
    : warn(`${uso}: ${seen}; no USO`, 'Linux 6.2 or newer makes large UDP faster');
}

function checkUdpOffloads(subject: Subject): Verdict {
  const kind = subject.config?.transport.kind ?? 'udp';
  if (kind !== 'udp') return ok(`not used on the transport ${kind}`);
  return kernelAtLeast(5, 0)
    ? ok('UDP GSO and GRO are offered by this kernel')
    : fail('no UDP GRO', 'install Linux 5.0 or newer');
}

function checkIpv6(): Verdict {
  const path = '/proc/sys/net/ipv6/conf/all/disable_ipv6';
  if (!existsSync(path))
    return warn('this kernel has no IPv6', 'nothing, if the underlay is IPv4 only');
  if (readFileSync(path, 'latin1').trim() === '1') {
    return warn(
      'IPv6 is turned off',
      'sysctl net.ipv6.conf.all.disable_ipv6=0, if the underlay has it',
    );
  }
  const global = localAddresses().some(
    (a) => a.family === 6 && !a.internal && !/^fe[89ab]/i.test(a.address),
  );
  return ok(global ? 'IPv6 with a global address' : 'IPv6 without a global address; IPv4 is used');
}

function checkUnderlay(subject: Subject): Promise<Verdict> | Verdict {
  const transport = subject.config?.transport;
  if (transport === undefined) return ok('not asked: no --dir');
  return transport.kind === 'udp'
    ? checkUdpPort(subject, transport.port)
    : checkEthernet(transport.device);
}

/** What would stop the device broker, and what makes an interface of no use. */
async function checkEthernet(device: string): Promise<Verdict> {
  const links = await ipJson(['link', 'show', 'dev', device], ethernetLinkSchema);
  const link = links?.[0];
  if (link === undefined) {
    return fail(`there is no interface ${device}`, 'another transport.device in gateway.yaml');
  }
  if (link.link_type !== 'ether') {
    return fail(`${device} is no Ethernet interface`, 'another transport.device in gateway.yaml');
  }
  if (link.master !== undefined) {
    return fail(
      `${device} is part of ${link.master}, which takes its frames`,
      `transport.device: ${link.master} in gateway.yaml`,
    );
  }
  return link.flags.includes('LOWER_UP')
    ? ok(`${device} is an Ethernet interface with a carrier`)
    : warn(`${device} is down or has no carrier`, `ip link set ${device} up; is the cable in?`);
}

async function checkUdpPort(subject: Subject, port: number): Promise<Verdict> {
  if (subject.status !== undefined) return ok(`UDP port ${port} is ours`);
  const free = await new Promise<boolean>((resolve) => {
    const socket = createSocket({ type: 'udp4', reuseAddr: false });
    socket.once('error', () => resolve(false));
    socket.bind(port, () => socket.close(() => resolve(true)));
  });
  return free
    ? ok(`UDP port ${port} is free`)
    : fail(
        `UDP port ${port} is taken`,
        'another transport.port in gateway.yaml, or end what holds it: ss -ulpn',
      );
}

/** A link port: does this machine route between it and our subnet, and do all agree on what is behind the other nets? */
async function checkLink({ config, status }: Subject): Promise<Verdict> {
  const port = config?.ports.find((one) => one.kind === 'link');
  if (port?.kind !== 'link') return ok('no link port');
  const found: Omit<Finding, 'check'>[] = [];
  const isV6 = (prefix: string): boolean => prefix.includes(':');
  if (port.level === 'ip') return netFindings(port, status);
  const kinds = [
    ['net.ipv4.ip_forward', port.prefixes.some((one) => !isV6(one))],
    ['net.ipv6.conf.all.forwarding', port.prefixes.some(isV6)],
  ] as const;
  for (const [name, wanted] of kinds) {
    if (!wanted || readFileSync(`/proc/sys/${name.replaceAll('.', '/')}`, 'latin1')[0] === '1') {
      continue;
    }
    found.push(fail(`${name} is off: nothing is routed into the link`, `sysctl -w ${name}=1`));
  }
  for (const name of port.inside) {
    if (existsSync(`/proc/sys/net/ipv4/conf/${name}`)) continue;
    found.push(fail(`there is no interface ${name}, which leads into our subnet`, 'pairwire up'));
  }
  if (status !== undefined) {
    for (const prefix of Object.values(port.nets).flatMap(({ prefixes }) => prefixes)) {
      const family = isV6(prefix) ? '-6' : '-4';
      const [route] = (await ipJson([family, 'route', 'show', prefix], linkRoutesSchema)) ?? [];
      if (route?.dev === port.interface) continue;
      found.push(
        fail(
          `${prefix} is routed ${route === undefined ? 'nowhere' : `to ${route.dev ?? '?'}`}, not into the link`,
          `ip route replace ${prefix} dev ${port.interface}`,
        ),
      );
    }
  }
  return netFindings(port, status, found);
}

/** What is amiss with the nets of a link port, besides what was found before. */
function netFindings(
  port: LinkPortConfig,
  status: Status | undefined,
  before: readonly Omit<Finding, 'check'>[] = [],
): Verdict {
  const found = [...before];
  for (const net of status?.ports.flatMap(({ link }) => link?.nets ?? []) ?? []) {
    const hint = 'see `pairwire peer list` at both key servers';
    if (net.refusal !== null) found.push(fail(`${net.net}: ${net.refusal.message}`, hint));
    else if (net.pwId === null) found.push(warn(`there is no key with ${net.net} yet`, hint));
    else if (net.prefixes.length === 0) {
      found.push(warn(`nothing may cross to ${net.net}: no prefix that all agree on`, hint));
    }
  }
  const silent = (status?.ports ?? [])
    .flatMap(({ peers }) => peers)
    .filter(({ path, tx, rx }) => path === 'routed' && tx.frames > 0 && rx.frames === 0);
  for (const { id } of silent) {
    found.push(
      warn(
        `packets were sealed for ${id}, and none came from it`,
        'is its link of level ip as well, does it stand before its router, do routers on the way pass IP protocol 253?',
      ),
    );
  }
  if (found.length > 0) return found;
  return ok(`${port.interface} to ${Object.keys(port.nets).join(', ')}`);
}

/** A port in a bridge: is that there with our TAP in it, and is what carries sealed frames outside of it (threats.md C11)? */
async function checkBridge(subject: Subject): Promise<Verdict> {
  const { config, status } = subject;
  const port = config?.ports.find((one) => 'bridge' in one);
  if (config === undefined || port === undefined || !('bridge' in port)) {
    return ok('no port in a bridge');
  }
  const { bridge } = port;
  const links = await ipJson(['-details', 'link', 'show'], bridgeLinksSchema);
  if (links === undefined) return warn('the interfaces could not be listed', 'look again as root');
  const found: Omit<Finding, 'check'>[] = [];
  const link = links.find(({ ifname }) => ifname === bridge);
  if (link === undefined) {
    if (status !== undefined) {
      return fail(
        `there is no bridge ${bridge}`,
        `ip link add ${bridge} type bridge; or start the gateway anew`,
      );
    }
    return ok(`there is no bridge ${bridge} yet: \`pairwire up\` makes it`);
  }
  if (link.linkinfo?.info_kind !== 'bridge') {
    return fail(`${bridge} is no bridge`, 'another bridge in gateway.yaml');
  }
  const inside = links.filter(({ master }) => master === bridge).map(({ ifname }) => ifname);
  const here = [port.interface, ...port.bridgePorts];
  for (const name of here.filter((one) => !inside.includes(one))) {
    // Without a gateway there is no TAP, and nobody has put anything into the bridge yet.
    if (status === undefined) continue;
    found.push(fail(`${name} is not in ${bridge}`, `ip link set ${name} master ${bridge}`));
  }
  const underlay = config.transport.device ?? status?.ports[0]?.underlayInterface ?? undefined;
  if (underlay !== undefined && (underlay === bridge || inside.includes(underlay))) {
    found.push(
      fail(
        `${underlay}, which carries the sealed frames, is ${underlay === bridge ? 'the bridge' : `in ${bridge}`}: they would come back as plaintext`,
        `take it out (ip link set ${underlay} nomaster), or give the machines outside an interface of their own`,
      ),
    );
  }
  const plain = status?.ports[0]?.plain;
  if (plain?.loop === 'blocked') {
    found.push(
      fail(
        'the plain port hears itself and is blocked',
        `there is a loop behind ${bridge}: look for two cables, or two bridges between the same networks`,
      ),
    );
  }
  if (found.length > 0) return found;
  const others = inside.filter((name) => name !== port.interface);
  if (others.length === 0) {
    return warn(
      `${bridge} has nothing but our own port`,
      `bridgePorts in gateway.yaml, or ip link set eth1 master ${bridge}`,
    );
  }
  return ok(`${bridge} with ${others.join(', ')}`);
}

/**
 * The way to every member and to the key server must not lead into the TAP: sealed frames would come
 * back as plaintext, and are dropped as `loop` (threats.md C11).
 */
export async function checkRoutes({ config, status }: RouteSubject): Promise<Verdict> {
  if (config === undefined || config.transport.kind !== 'udp') return ok('not looked at: no UDP');
  const { mark, device } = config.transport;
  const hosts = (status?.ports ?? [])
    .flatMap((port) => port.peers)
    .flatMap((peer) => [peer.endpoint, ...peer.endpoints])
    .flatMap((endpoint) => hostOfEndpoint(endpoint) ?? []);
  const members = [...new Set(hosts)];
  const servers = config.servers.flatMap(({ address }) => {
    const host = parseChannelAddress(address)?.host;
    return host === undefined || isIP(host) === 0 ? [] : [host];
  });
  const ways = [
    ...members.slice(0, MAX_ROUTES).map((to) => ({ to, mark, device })),
    ...servers.map((to) => ({ to, mark: undefined, device: undefined })),
  ];
  const taps = new Set(insideInterfaces(config));
  const found: Omit<Finding, 'check'>[] = [];
  for (const way of ways) {
    const through = await routeDevice(way.to, way);
    if (through === undefined || !taps.has(through)) continue;
    found.push(
      fail(
        `the way to ${way.to} leads into ${through}: what is sent there comes back and is dropped as loop`,
        servers.includes(way.to)
          ? `ip route add ${way.to} via ... (a route of its own, outside of ${through})`
          : `ip route add ${way.to} via ..., or transport.device or transport.mark in gateway.yaml`,
      ),
    );
  }
  if (found.length > 0) return found;
  if (ways.length === 0) return ok('no member is known yet');
  const rest = Math.max(0, members.length - MAX_ROUTES);
  const unseen = rest === 0 ? '' : `; ${rest} more were not looked at`;
  return ok(
    `the ways to ${ways.length} addresses lead outside of ${[...taps].join(', ')}${unseen}`,
  );
}

async function checkMtu(subject: Subject): Promise<Verdict> {
  const port = subject.status?.ports[0];
  if (port !== undefined) {
    return ok(
      `${port.mtu} at the TAP over ${port.underlayMtu} at ${port.underlayInterface ?? 'the underlay'}`,
    );
  }
  const plan = await planMtu({
    configured: wantedMtu(subject.config?.ports[0]),
    transport: subject.config?.transport,
    servers: subject.config?.servers.map((server) => server.address) ?? [],
    exclude: subject.config === undefined ? [] : insideInterfaces(subject.config),
  });
  const text = `${plan.tap} at the TAP over ${plan.underlay} at ${plan.interface ?? 'the underlay'}`;
  const least =
    subject.config?.transport.kind === 'ip' ? 1_360 : plan.outerIp === undefined ? 1_334 : 1_382;
  return plan.underlay < least
    ? warn(`${text}: full frames are cut in two parts`, 'raise the MTU of the underlay if you can')
    : ok(text);
}

function checkClock(subject: Subject): Verdict {
  const clock = subject.status?.clock;
  if (clock === undefined)
    return ok('key-server time is learned at connect; the wall clock is not used');
  if (!clock.known)
    return fail(
      'key-server time is not known',
      'reach the key server; without time nothing is sealed',
    );
  const offset = `${clock.wallDifferenceMs} ms from the wall clock`;
  if (clock.ageMs === null || clock.ageMs > CLOCK_OLD_MS) {
    return warn(
      `${offset}, no good sample for over 10 min`,
      'is the path to the key server slow (over 1 s)?',
    );
  }
  return Math.abs(clock.wallDifferenceMs) > CLOCK_ALARM_MS
    ? warn(offset, 'harmless here, but logs will not fit together: run NTP on both machines')
    : ok(`${offset}, sampled ${Math.round(clock.ageMs / 1_000)} s ago`);
}

function checkKeyServer(subject: Subject): Verdict {
  const server = subject.status?.server;
  if (server === undefined) return ok('not asked: no running gateway');
  if (server.connected) return ok(`connected to ${server.address ?? '?'}`);
  return fail(
    `${server.state}: ${server.lastError ?? 'no error yet'}`,
    'is it running, is the address in gateway.yaml right, does a firewall block TCP to it?',
  );
}

function checkOperatorKey(subject: Subject): Verdict {
  const status = subject.status;
  if (status === undefined || status.settings === null) return ok('pinned at join');
  const text = `pinned: ${status.operator.fingerprint}; verify: ${status.settings.verify}`;
  const turnOn = 'pairwire settings --identity verify, at the key server';
  if (status.settings.verify !== 'verify') {
    return warn(text, `the KMS is not asked who peers are: ${turnOn}`);
  }
  const { mode, own, refused, unnamed } = status.identities;
  if (mode === 'unnamed') {
    return warn(`${text}, but the settings name no KMS of our key server`, turnOn);
  }
  if (refused > 0 || own === 'taken') {
    return fail(
      `${text}; the KMS contradicts the key server (see \`pairwire status\`)`,
      'somebody may pretend to be a member: ask the operator; the audit log of the KMS says who registered what',
    );
  }
  if (unnamed.length > 0) {
    return warn(
      `${text}, but the settings name no KMS of the key servers ${unnamed.join(', ')}: their members are believed by the operator's signatures alone`,
      'pairwire settings --kms SERVER=KEY, where the operator key is; KEY is `key` of `pairwire kms check --dir DIR/kms` at that server',
    );
  }
  return ok(`${text}; whether it lies on the key server can't be seen from here`);
}
