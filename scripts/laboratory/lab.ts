/**
 * A laboratory: a topology in network namespaces, with key servers and gateways started in it by
 * the ordinary commands. Used by scripts/lab, scripts/demo and the tests.
 *
 * Life: create() writes the state, makes the network, starts the programs; destroy() ends the
 * processes that were recorded, then what else runs in the namespaces, then takes the
 * namespaces away. Any step may have been left out by a crash; destroy() then does the rest.
 */
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseDocument } from 'yaml';
import { defaultRunDir } from '../../gateway/config.js';
import { gatewayPaths, runPaths } from '../../gateway/paths.js';
import { askStatus } from '../../gateway/status/read.js';
import type { PortStatus, Status } from '../../gateway/status/snapshot.js';
import { Capture } from './capture.js';
import {
  BRIDGE,
  makeNetwork,
  namespaceOf,
  namespacesOf,
  pidsIn,
  removeNamespace,
} from './network.js';
import {
  HopelessError,
  isAlive,
  type ProcessId,
  type RunOptions,
  type RunResult,
  run,
  signal,
  start,
  startTimeOf,
  waitFor,
} from './processes.js';
import { type LabState, readState, removeState, stateDir, writeState } from './state.js';
import {
  type Topology,
  type TopologyGateway,
  type TopologyInput,
  type TopologyPeering,
  topologySchema,
} from './topology.js';

/** How long a process may take to end by itself before it is killed, ms. */
const END_MS = 3_000;
/** How long a gateway may take from its start to being connected, ms. */
const UP_MS = 20_000;
const LOG_TAIL_LINES = 25;

/** The `pairwire` program of this checkout, from scripts/laboratory/ and from dist/scripts/laboratory/. */
function programFile(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'package.json'))) dir = dirname(dir);
  return join(dir, 'scripts', 'pairwire.mjs');
}

export interface LabOptions {
  /** A random name unless given. */
  readonly name?: string;
  /** Told what is being done. */
  readonly log?: (line: string) => void;
  /** Environment of every key server and gateway. */
  readonly env?: Readonly<Record<string, string>>;
  /** False leaves key servers and gateways to the caller. */
  readonly startPrograms?: boolean;
}

export class Lab {
  readonly name: string;
  readonly topology: Topology;
  private readonly log: (line: string) => void;
  private readonly env: Readonly<Record<string, string>>;
  private captures = 0;

  private constructor(
    private readonly state: LabState,
    options: LabOptions,
  ) {
    this.name = state.name;
    this.topology = state.topology;
    this.log = options.log ?? (() => undefined);
    this.env = options.env ?? {};
  }

  /** Makes a laboratory and starts what the topology names. What fails half-way is taken down again. */
  static async create(input: TopologyInput, options: LabOptions = {}): Promise<Lab> {
    const topology = topologySchema.parse(input);
    const name = options.name ?? `t${randomBytes(3).toString('hex')}`;
    if (!/^[a-z0-9][a-z0-9-]{0,15}$/.test(name)) {
      throw new RangeError(`${name} is no name: 1 to 16 of a-z, 0-9 and hyphen`);
    }
    if (existsSync(join(stateDir(name), 'state.json'))) {
      throw new Error(`the laboratory ${name} is up already; scripts/lab down ${name}`);
    }
    const state: LabState = {
      name,
      creator: process.pid,
      namespaces: namespacesOf(name, topology),
      topology,
      processes: [],
    };
    writeState(state);
    const lab = new Lab(state, options);
    try {
      lab.log(`network of ${Object.keys(topology.hosts).length} hosts`);
      await makeNetwork(name, topology);
      if (options.startPrograms !== false) await lab.startPrograms();
      return lab;
    } catch (error) {
      const tails = lab.logTails();
      await lab.destroy();
      if (tails !== '' && error instanceof Error) error.message += `\n${tails}`;
      throw error;
    }
  }

  /** A laboratory that another process has made. @throws Error if there is none of that name */
  static open(name: string, options: Omit<LabOptions, 'name'> = {}): Lab {
    return new Lab(readState(name), options);
  }

  // ------------------------------------------------------------ programs in hosts

  namespace(place: string): string {
    const namespace = namespaceOf(this.name, place);
    if (!this.state.namespaces.includes(namespace)) {
      throw new Error(`there is no host or segment ${place} in ${this.name}`);
    }
    return namespace;
  }

  /** How a program is started in a host or on a segment. */
  argvIn(place: string, argv: readonly string[]): string[] {
    return ['ip', 'netns', 'exec', this.namespace(place), ...argv];
  }

  /** Runs a program in a host to its end. @throws RunError if it fails and `check` is not false */
  exec(place: string, argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return run(this.argvIn(place, argv), options);
  }

  /** Starts a program in a host in the background; it ends with the laboratory at the latest. */
  spawn(
    place: string,
    argv: readonly string[],
    options: { readonly label?: string; readonly env?: Readonly<Record<string, string>> } = {},
  ): ProcessId & { readonly log: string } {
    const label = options.label ?? argv[0]?.split('/').at(-1) ?? 'process';
    const log = this.freshLog(`${place}-${label}`);
    const started = start(this.argvIn(place, argv), log, options.env);
    this.state.processes.push({ pid: started.pid, start: started.start, host: place, label, log });
    writeState(this.state);
    return { ...started, log };
  }

  private freshLog(stem: string): string {
    const dir = join(stateDir(this.name), 'logs');
    const taken = new Set(readdirSync(dir));
    let number = 1;
    while (taken.has(`${stem}-${number}.log`)) number += 1;
    return join(dir, `${stem}-${number}.log`);
  }

  /** Ends a process: SIGTERM, and SIGKILL if it does not go. */
  async stop(process: ProcessId, how: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    signal(process, how);
    await waitFor(() => !isAlive(process), {
      what: `process ${process.pid} to end`,
      timeoutMs: END_MS,
      everyMs: 10,
    }).catch(() => {
      signal(process, 'SIGKILL');
    });
    this.state.processes = this.state.processes.filter((one) => one.pid !== process.pid);
    writeState(this.state);
  }

  /** The running process of a host with this label: `up`, `keyserver`, ... */
  processOf(host: string, label: string): ProcessId | undefined {
    return this.state.processes.findLast(
      (one) => one.host === host && one.label === label && isAlive(one),
    );
  }

  /** Runs `pairwire` in a host. */
  pairwire(host: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return this.exec(host, [process.execPath, programFile(), ...args], {
      ...options,
      env: { ...this.env, ...options.env },
    });
  }

  /** Starts `pairwire` in a host in the background. */
  spawnPairwire(
    host: string,
    args: readonly string[],
    label: string,
    env: Readonly<Record<string, string>> = {},
  ): ProcessId & { readonly log: string } {
    return this.spawn(host, [process.execPath, programFile(), ...args], {
      label,
      env: { ...this.env, ...env },
    });
  }

  // ------------------------------------------------------------ captures

  /**
   * Captures on an interface of a host, or on a whole segment (`capture('wire')`). Returns when it
   * listens. `bulk`: packets reach the file in blocks, somewhat later, so that hardly one is lost.
   */
  async capture(
    place: string,
    options: {
      readonly interface?: string;
      readonly filter?: string;
      readonly bulk?: boolean;
    } = {},
  ): Promise<Capture> {
    this.captures += 1;
    const on = options.interface ?? (place in this.topology.segments ? BRIDGE : 'eth0');
    const file = join(stateDir(this.name), `${place}-${on}-${process.pid}-${this.captures}.pcap`);
    const argv = ['tcpdump', '-i', on, '-n', '-Z', 'root', '-w', file];
    const taking =
      options.bulk === true ? ['-B', '131072'] : ['-U', '--immediate-mode', '-B', '32768'];
    const filter = options.filter === undefined ? [] : [options.filter];
    const tcpdump = this.spawn(place, [...argv, ...taking, ...filter], { label: 'tcpdump' });
    return new Capture(file, tcpdump, tcpdump.log).ready();
  }

  // ------------------------------------------------------------ key servers and gateways

  /** The directory of a key server. */
  serverDir(subnet: string): string {
    return join(this.hostDir(this.keyServer(subnet).host), `keyserver-${subnet}`);
  }

  /** The directory of a gateway. */
  gatewayDir(name: string): string {
    const gateway = this.gateway(name);
    return join(this.hostDir(gateway.host), `gateway-${gateway.as ?? gateway.subnet}`);
  }

  private hostDir(host: string): string {
    const dir = join(stateDir(this.name), 'hosts', host);
    mkdirSync(dir, { recursive: true, mode: 0o755 });
    return dir;
  }

  keyServer(subnet: string): Topology['keyServers'][string] {
    const server = this.topology.keyServers[subnet];
    if (server === undefined) throw new Error(`there is no key server for ${subnet}`);
    return server;
  }

  /** A gateway by the name of its host or, where a host has several, by HOST/SUBNET (or HOST/AS); HOST alone is its first. */
  gateway(name: string): TopologyGateway {
    const [host, as] = name.split('/');
    const gateway = this.topology.gateways.find(
      (one) => one.host === host && (as === undefined || (one.as ?? one.subnet) === as),
    );
    if (gateway === undefined) throw new Error(`there is no gateway ${name}`);
    return gateway;
  }

  gatewayNames(): string[] {
    return this.topology.gateways.map(({ host, as, subnet }) => `${host}/${as ?? subnet}`);
  }

  /** The id under which a gateway is a member. */
  memberOf(name: string): string {
    const { host, id } = this.gateway(name);
    return id ?? host;
  }

  /** Starts every key server and gateway of the topology, each gateway joined with a token of its own. */
  async startPrograms(): Promise<void> {
    for (const subnet of Object.keys(this.topology.keyServers)) {
      this.log(`key server of ${subnet}`);
      await this.initKeyServer(subnet);
      await this.startKeyServer(subnet);
      await this.peerCascade(subnet);
    }
    for (const peering of this.topology.peerings) {
      this.log(`key servers of ${peering.maker} and ${peering.asker} get to know each other`);
      await this.peerKeyServers(peering);
    }
    for (const name of this.gatewayNames()) {
      this.log(`gateway ${name}`);
      await this.joinGateway(name);
    }
    await Promise.all(this.gatewayNames().map((name) => this.startGateway(name)));
  }

  /** `pairwire init`, of another key server of a subnet with a token of the first one. */
  async initKeyServer(subnet: string): Promise<void> {
    const server = this.keyServer(subnet);
    const { cascade } = server;
    const hold = server.hold === undefined ? [] : ['--hold', String(server.hold)];
    const dir = this.serverDir(subnet);
    const place = ['--dir', dir, '--listen', server.listen];
    if (cascade === undefined) {
      const name = ['--subnet', subnet];
      await this.pairwire(server.host, ['init', ...name, ...place, ...hold, ...server.init]);
    } else {
      const operator = ['--operator-key', join(this.serverDir(cascade.of), 'operator.key')];
      const input = await this.serverToken(cascade.of, cascade.server);
      const joining = ['--cascade', '-', ...operator];
      await this.pairwire(server.host, ['init', ...joining, ...place, ...server.init], { input });
    }
    const settings = Object.entries(server.config);
    if (server.logLevel !== undefined) settings.push(['log.level', server.logLevel]);
    if (settings.length === 0) return;
    const file = join(dir, 'keyserver.yaml');
    const config = parseDocument(readFileSync(file, 'utf8'));
    for (const [path, value] of settings) config.setIn(path.split('.'), config.createNode(value));
    writeFileSync(file, config.toString(), { mode: 0o600 });
  }

  /** `pairwire peer token --server`: a token for another key server of the same subnet, as text. */
  async serverToken(at: string, server: string): Promise<string> {
    const args = ['peer', 'token', '--dir', this.serverDir(at), '--server', server];
    return (await this.pairwire(this.keyServer(at).host, args)).stdout;
  }

  /** Peers a further key server of a subnet with those between the first one and it. */
  async peerCascade(name: string): Promise<void> {
    const { cascade, host } = this.keyServer(name);
    if (cascade === undefined) return;
    for (const [other, { cascade: before }] of Object.entries(this.topology.keyServers)) {
      if (other === name) return;
      if (before?.of !== cascade.of) continue;
      const input = await this.serverToken(other, cascade.server);
      await this.pairwire(host, ['peer', 'add', '--dir', this.serverDir(name), '-'], { input });
    }
  }

  /** `pairwire peer token` at the one, `pairwire peer add` at the other. */
  async peerKeyServers({ maker, asker, prefixes }: TopologyPeering): Promise<void> {
    const behind = (subnet: string): string[] =>
      (prefixes[subnet] ?? []).flatMap((prefix) => ['--prefix', prefix]);
    const token = ['peer', 'token', '--dir', this.serverDir(maker), '--net', asker];
    const { stdout } = await this.pairwire(this.keyServer(maker).host, [
      ...token,
      ...behind(asker),
    ]);
    const add = ['peer', 'add', '--dir', this.serverDir(asker), ...behind(maker), '-'];
    await this.pairwire(this.keyServer(asker).host, add, { input: stdout });
  }

  /** `pairwire keyserver`, until it listens. */
  async startKeyServer(subnet: string): Promise<ProcessId> {
    const server = this.keyServer(subnet);
    const args = ['keyserver', '--dir', this.serverDir(subnet)];
    const started = this.spawnPairwire(server.host, args, 'keyserver', server.env);
    const port = server.listen.split(':').at(-1) ?? '';
    await waitFor(
      async () => {
        if (!isAlive(started)) throw new GoneError('the key server', started.log);
        const listening = await this.exec(server.host, ['ss', '-Hltun', `sport = :${port}`]);
        return listening.stdout !== '';
      },
      { what: `the key server of ${subnet} to listen`, timeoutMs: UP_MS },
    );
    return started;
  }

  async stopKeyServer(subnet: string, how: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const running = this.processOf(this.keyServer(subnet).host, 'keyserver');
    if (running !== undefined) await this.stop(running, how);
  }

  /** `pairwire token`: a join token for an id, as text. */
  async token(subnet: string, id: string, options: readonly string[] = []): Promise<string> {
    const args = ['token', '--dir', this.serverDir(subnet), '--id', id, ...options];
    const { stdout } = await this.pairwire(this.keyServer(subnet).host, args);
    return stdout.trim();
  }

  /** `pairwire token` and `pairwire join`. */
  async joinGateway(name: string): Promise<void> {
    const gateway = this.gateway(name);
    const { host } = gateway;
    const { rights } = gateway;
    const granted = rights.length === 0 ? [] : ['--grant', rights.join(',')];
    const options = [...gateway.token, ...granted];
    const token = await this.token(gateway.subnet, this.memberOf(name), options);
    const tokenFile = join(this.hostDir(host), 'token');
    writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 });
    const addresses = gateway.addresses.flatMap((address) => ['--address', address]);
    await this.pairwire(host, [
      'join',
      ...['--dir', this.gatewayDir(name), '--token-file', tokenFile],
      ...['--interface', gateway.interface],
      ...underlayOptions(gateway),
      ...addresses,
      ...gateway.join,
    ]);
    const settings = Object.entries(gateway.config);
    if (settings.length === 0) return;
    const file = gatewayPaths(this.gatewayDir(name)).config;
    const config = parseDocument(readFileSync(file, 'utf8'));
    for (const [path, value] of settings) config.setIn(path.split('.'), value);
    writeFileSync(file, config.toString());
  }

  /** `pairwire up` in the foreground of a process of its own, until the gateway is ready. */
  async startGateway(
    name: string,
    options: { readonly connected?: boolean } = {},
  ): Promise<ProcessId> {
    const args = ['up', '--dir', this.gatewayDir(name)];
    const started = this.spawnPairwire(this.gateway(name).host, args, this.upLabel(name));
    await waitFor(
      async () => {
        if (!isAlive(started)) throw new GoneError(`the gateway ${name}`, started.log);
        const status = await this.status(name);
        return options.connected === false || isConnected(status);
      },
      { what: `the gateway ${name} to be ready`, timeoutMs: UP_MS, everyMs: 100 },
    );
    const { host, interface: device, routes } = this.gateway(name);
    for (const { to, via } of routes) {
      await this.exec(host, ['ip', 'route', 'replace', toText(to), 'via', via, 'dev', device]);
    }
    return started;
  }

  /** Of the control plane of a gateway among the processes of its host. */
  private upLabel(name: string): string {
    const gateway = this.gateway(name);
    return gateway === this.gateway(gateway.host) ? 'up' : `up-${gateway.as ?? gateway.subnet}`;
  }

  /** Ends the control plane of a gateway: SIGTERM in order, SIGKILL as a crash. */
  async stopGateway(name: string, how: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const running = this.processOf(this.gateway(name).host, this.upLabel(name));
    if (running !== undefined) await this.stop(running, how);
  }

  /** `pairwire down`: takes devices away, wipes keys. */
  async downGateway(name: string): Promise<void> {
    await this.pairwire(this.gateway(name).host, ['down', '--dir', this.gatewayDir(name)]);
  }

  /** The status of a gateway, asked as `pairwire status --json` asks, but without starting a program. */
  async status(name: string): Promise<Status> {
    const { control } = runPaths(defaultRunDir(this.gatewayDir(name)));
    return askStatus(control, 5_000);
  }

  /** The status of a gateway's only port. */
  async port(name: string): Promise<PortStatus> {
    const [port] = (await this.status(name)).ports;
    if (port === undefined) throw new Error(`the gateway ${name} has no port`);
    return port;
  }

  // ------------------------------------------------------------ the end

  /** The logs of all programs: those started here, and of the brokers and data planes of gateways. */
  private logFiles(): string[] {
    const dir = join(stateDir(this.name), 'logs');
    const own = existsSync(dir) ? readdirSync(dir).map((file) => join(dir, file)) : [];
    const brokers = this.runDirs().map((one) => join(one, 'devices.log'));
    return [...own.filter((file) => !file.includes('-tcpdump-')), ...brokers].filter(
      (file) => existsSync(file) && statSync(file).size > 0,
    );
  }

  /** Where each gateway has its sockets. */
  private runDirs(): string[] {
    return this.gatewayNames().map((name) => defaultRunDir(this.gatewayDir(name)));
  }

  /** The last lines of each log, for a test that failed. */
  logTails(lines = LOG_TAIL_LINES): string {
    return this.logFiles()
      .map((file) => {
        const tail = readFileSync(file, 'utf8').trimEnd().split('\n').slice(-lines);
        return `── ${basename(file)}\n${tail.join('\n')}`;
      })
      .join('\n');
  }

  /** Ends every process, takes every namespace away. May be called again, and after a crash. */
  async destroy(): Promise<void> {
    const alive = () => this.state.processes.filter(isAlive);
    for (const one of alive()) signal(one, 'SIGTERM');
    await waitFor(() => alive().length === 0, {
      what: 'processes to end',
      timeoutMs: END_MS,
      everyMs: 20,
    }).catch(() => undefined);
    for (const one of alive()) signal(one, 'SIGKILL');
    for (const namespace of this.state.namespaces) await endAllIn(namespace);
    await Promise.all(this.state.namespaces.map(removeNamespace));
    for (const dir of this.runDirs()) rmSync(dir, { recursive: true, force: true });
    removeState(this.name);
  }
}

function toText(to: string): string {
  return to === 'default6' ? 'default' : to;
}

class GoneError extends HopelessError {
  constructor(what: string, log: string) {
    const text = existsSync(log) ? readFileSync(log, 'utf8').trim() : '';
    super(`${what} has ended${text === '' ? '' : `:\n${text}`}`);
  }
}

/** Whatever a recorded process has left in a namespace of ours: data planes outlive their control plane. */
async function endAllIn(namespace: string): Promise<void> {
  await waitFor(
    async () => {
      const pids = await pidsIn(namespace);
      for (const pid of pids) {
        const startTime = startTimeOf(pid);
        if (startTime !== undefined) signal({ pid, start: startTime }, 'SIGKILL');
      }
      return pids.length === 0;
    },
    { what: `${namespace} to be empty`, timeoutMs: END_MS, everyMs: 20 },
  ).catch(() => undefined);
}

/** True once the gateway is registered with its key server and knows its state. */
export function isConnected(status: Status): boolean {
  return (
    status.state === 'up' &&
    status.server.state === 'open' &&
    status.server.lastSync !== null &&
    status.ports.every((port) => port.index !== null)
  );
}

/** Options of `pairwire join` for what carries its frames. */
function underlayOptions({ ethernet, wire, port }: TopologyGateway): string[] {
  if (wire !== undefined) return ['--transport', 'ip', '--device', wire];
  if (ethernet !== undefined) return ['--transport', 'ethernet', '--device', ethernet];
  return ['--port', String(port)];
}
