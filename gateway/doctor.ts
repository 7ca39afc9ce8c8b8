/**
 * `pairwire doctor`: looks at this machine the way the gateway will, and says how to mend what
 * it finds. Each check stands by itself: one that can't look says so and stops no other.
 */
import { execFile } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { arch, release } from 'node:os';
import { promisify } from 'node:util';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { type GatewayConfig, loadGatewayConfig } from './config.js';
import { findProgram } from './dataplane/launch.js';
import { gatewayPaths, runPaths } from './paths.js';
import { type Status, statusSchema } from './status/snapshot.js';
import { askGateway } from './status/socket.js';
import { localAddresses, planMtu } from './underlay.js';
import { findUser, isRoot } from './users.js';

const run = promisify(execFile);
/** Bits of /proc/self/status CapEff. */
const CAP_NET_ADMIN = 12n;
const CAP_NET_RAW = 13n;
const CLOCK_ALARM_MS = 1_000;
const CLOCK_OLD_MS = 600_000;

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
  ['port', checkUdpPort],
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
    const answer = await askGateway(runPaths(config.run).control, 'status', 5_000);
    findings.push({ check: 'gateway', ...ok('is running') });
    return { config, status: statusSchema.parse(answer.status) };
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

function checkAead(subject: Subject): Verdict {
  const backend = subject.status?.ports[0]?.backend;
  if (backend === undefined || backend === null || backend === '') {
    return warn(
      'the AEAD backend is seen only while a gateway runs',
      'pairwire up, then look again',
    );
  }
  if (backend.includes('ipsec') || arch() !== 'x64') return ok(`AEAD by ${backend}`);
  return warn(
    `AEAD by ${backend}: several times slower`,
    'apt-get install libipsec-mb-dev, then npm run build:native',
  );
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

function checkUdpOffloads(): Verdict {
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

async function checkUdpPort(subject: Subject): Promise<Verdict> {
  if (subject.config === undefined) return ok('not asked: no --dir');
  const { port } = subject.config.transport;
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

async function checkMtu(subject: Subject): Promise<Verdict> {
  const port = subject.status?.ports[0];
  if (port !== undefined) {
    return ok(
      `${port.mtu} at the TAP over ${port.underlayMtu} at ${port.underlayInterface ?? 'the underlay'}`,
    );
  }
  const plan = await planMtu({
    configured: subject.config?.ports[0]?.mtu,
    device: subject.config?.transport.device,
    servers: subject.config?.servers.map((server) => server.address) ?? [],
    exclude: subject.config?.ports.map((one) => one.interface) ?? [],
  });
  const text = `${plan.tap} at the TAP over ${plan.underlay} at ${plan.interface ?? 'the underlay'}`;
  return plan.underlay < 1_382
    ? warn(`${text}: full frames are cut in two`, 'raise the MTU of the underlay if you can')
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
  return status.settings.verify === 'verify'
    ? ok(`${text}; whether it lies on the key server can't be seen from here`)
    : warn(text, 'the key server is believed: let the operator turn verify on');
}
