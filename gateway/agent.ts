/**
 * The control plane of a gateway: builds the parts and owns the order of start and stop.
 *
 *   start   control socket (one gateway for each directory) -> identity, pins -> data plane ->
 *           channel to the key server -> metrics
 *   data plane found   devices -> port -> boot key -> members and keys -> register
 *   stop    channel -> data plane connection; the data plane goes on with the keys it has
 *   down    port, keys, devices, guard away -> stop
 *
 * Nothing here waits for both: the data plane is brought to the table's state without a key
 * server, and the key server is told about the data plane as soon as there is one.
 */
import { EventEmitter } from 'node:events';
import { existsSync } from 'node:fs';
import { encode } from '@msgpack/msgpack';
import { ChannelClient, type ClientState, type ServerEndpoint } from '../src/net/channel-tcp.js';
import { decodeMessage } from '../src/protocol/channel/codec.js';
import type { Id } from '../src/protocol/ids.js';
import { macFromBytes, macToBytes } from '../src/protocol/mac.js';
import type { Endpoint } from '../src/protocol/messages.js';
import { importPublic } from '../src/protocol/public-keys.js';
import type { Settings } from '../src/protocol/records.js';
import { type Signed, signedSchema } from '../src/protocol/signed.js';
import { type Clock, ServerTime, SystemClock } from '../src/runtime/clock.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';
import type { Logger } from '../src/runtime/log.js';
import { type MetricsServer, serveMetrics } from '../src/runtime/metrics.js';
import { type GatewayConfig, loadGatewayConfig, splitHostPort } from './config.js';
import { Misses } from './control/misses.js';
import { machineDigest, type OwnBoot, Session } from './control/session.js';
import { DataPlaneLink } from './dataplane/link.js';
import type { AnswerTo, Event } from './dataplane/messages.gen.js';
import type { Devices } from './devices.js';
import { type GatewayIdentity, loadIdentity } from './identity.js';
import { PeerTable } from './key-table/peer-table.js';
import { Pins } from './key-table/pins.js';
import { Verifier } from './key-table/verifier.js';
import type { GatewayPaths } from './paths.js';
import { GatewayState } from './state.js';
import { buildStatus } from './status/build.js';
import { GatewayMetrics } from './status/metrics.js';
import { Rates } from './status/rates.js';
import type { Status } from './status/snapshot.js';
import { ControlSocket, type ControlVerb } from './status/socket.js';
import { broadcastsOf, endpointsOf, isUsable, localAddresses, type MtuPlan } from './underlay.js';

/** The only port of this version. */
const PORT = 1;
/** Only the transport `ethernet` has subnet tags. */
const NO_TAG = 0;
/** The data plane chooses the fastest AEAD backend that this machine has. */
const AUTO_BACKEND = 'auto';
/** The hold queue: 1 s, 4 MiB in all; frames for each destination come from the settings. */
const HOLD_MS = 1_000;
const HOLD_BYTES = 4 * 1_048_576;
/** Settings until the operator's are known: the strictest of each. */
const INITIAL = { suite: 'aes-256-gcm', freshnessMs: 30_000, hold: 64 } as const;

const CLOCK_TICK_MS = 1_000;
const UNDERLAY_TICK_MS = 3_000;
const STATS_TIMEOUT_MS = 2_000;
const ROLLBACK_SYNC_MS = 1_000;

export interface AgentOptions {
  readonly config: GatewayConfig;
  readonly paths: GatewayPaths;
  readonly controlSocket: string;
  readonly dataPlaneSocket: string;
  readonly devices: Devices;
  /** As the TAP was made with. */
  readonly mtu: MtuPlan;
  readonly log: Logger;
  readonly version: string;
  readonly machineId: string;
  readonly clock?: Clock;
}

interface AgentEvents {
  /** The agent can't go on, or was asked to end: undefined for an orderly `down`. */
  end: [error: PairwireError | undefined];
}

/** One running gateway. */
export class Agent extends EventEmitter<AgentEvents> {
  readonly #options: AgentOptions;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #identity: GatewayIdentity;
  readonly #state: GatewayState;
  readonly #pins: Pins;
  readonly #verifier: Verifier;
  readonly #table: PeerTable;
  readonly #misses: Misses;
  readonly #link: DataPlaneLink;
  readonly #time: ServerTime;
  readonly #channel: ChannelClient;
  readonly #session: Session;
  readonly #control: ControlSocket;
  readonly #rates = new Rates();
  readonly #refusals: Record<string, number> = {};
  readonly #since = Date.now();
  #config: GatewayConfig;
  #metrics: MetricsServer | undefined;
  #timers: NodeJS.Timeout[] = [];
  #settings: Settings | undefined;
  #boot: OwnBoot | undefined;
  #instance: Buffer | undefined;
  #backends: readonly string[] = [];
  /** Peers that a running data plane had when we came. */
  #leftovers = new Set<string>();
  #leaseUntil: number | undefined;
  #clockSent: string | undefined;
  #underlaySeen: string | undefined;
  #broadcastsSeen = '';
  #endpoints: readonly Endpoint[] = [];
  #channelState: ClientState = { kind: 'stopped' };
  #connects = 0;
  #commandsFailed = 0;
  #rollbackSyncAt = Number.NEGATIVE_INFINITY;
  /** The cipher that the data plane's port was made for. */
  #suite: string | undefined;
  #stopping = false;
  #takingDown = false;

  /** @throws PairwireError for keys, membership or pins that don't fit the configuration */
  constructor(options: AgentOptions) {
    super();
    const { config, paths } = options;
    this.#options = options;
    this.#config = config;
    this.#log = options.log;
    this.#clock = options.clock ?? new SystemClock();
    const operator = Buffer.from(config.operator, 'base64url');
    this.#identity = loadIdentity(paths, config.subnet, config.member, operator);
    this.#state = new GatewayState(paths.state);
    this.#pins = new Pins(paths.pins, operator);
    this.#pins.onWriteError = (thrown) =>
      this.#log.error({ reason: messageOf(thrown) }, 'the pins could not be written');
    this.#time = new ServerTime(this.#clock, (differenceMs) =>
      this.#log.warn({ differenceMs: Math.round(differenceMs) }, 'key-server time has jumped'),
    );
    const now = (): number => this.#time.now();
    this.#verifier = new Verifier({
      subnet: config.subnet,
      operator: importPublic('ed25519', operator),
      pins: this.#pins,
      now,
    });
    this.#link = new DataPlaneLink(
      options.dataPlaneSocket,
      () => this.#state.nextControlEpoch(Date.now()),
      {
        attached: (answer) => this.#attached(answer),
        event: (event) => this.#event(event),
        gone: (error) => this.#dataPlaneGone(error),
      },
    );
    this.#table = new PeerTable({
      self: config.member,
      port: PORT,
      verifier: this.#verifier,
      dataPlane: this.#link,
      acceptsEndpoint: (endpoint) => isUsable(endpoint.ip, this.#config.transport.loopback),
      onRefused: (id, error) => this.#refusedMember(id, error),
      onCommandFailed: (error) => this.#commandFailed(error),
      onAddress: (mac) => this.#misses.appeared(mac),
    });
    this.#misses = new Misses({
      now: () => this.#clock.bootMs(),
      table: this.#table,
      ask: (question) => this.#session.ask(question),
      refuse: (mac, ms) => {
        this.#link
          .request('mac.refuse', { port: PORT, mac: macToBytes(mac), ms })
          .catch((thrown: unknown) => this.#commandFailed(thrown));
      },
    });
    this.#channel = new ChannelClient({
      servers: serversOf(config),
      staticKeys: this.#identity.keys.channel,
      clock: this.#clock,
      time: this.#time,
      onPush: (message) => this.#session.onPush(message),
      onState: (state) => this.#onChannelState(state),
    });
    this.#session = new Session({
      subnet: config.subnet,
      member: this.#identity.member,
      sign: this.#identity.keys.sign,
      machine: machineDigest(config.subnet, options.machineId),
      channel: this.#channel,
      now,
      nextBootSequence: (serverNowMs) => this.#state.nextBootSequence(serverNowMs),
      table: this.#table,
      verifier: this.#verifier,
      handlers: {
        registered: (registration) => this.#registered(registration.boot, registration.index),
        settings: (settings, record) => this.#newSettings(settings, record),
        refused: (what, error) => this.#refused(what, error),
        synced: (full, leaseUntilMs) => this.#synced(full, leaseUntilMs),
        failed: (what, thrown, retryInMs) =>
          this.#log.warn(
            { reason: messageOf(thrown), retryInMs: Math.round(retryInMs) },
            `${what}: trying again`,
          ),
        fatal: (error) => this.#fatal(error),
      },
    });
    this.#control = new ControlSocket(options.controlSocket, (verb) => this.#answer(verb));
  }

  // ------------------------------------------------------------------ start and stop

  /** Starts everything; connections come up by themselves. */
  async start(): Promise<void> {
    await this.#control.listen();
    this.#loadSettings();
    this.#pins.flush();
    this.#refreshUnderlay();
    this.#link.start();
    this.#channel.start();
    this.#session.start();
    this.#timers = [
      setInterval(() => this.#sendClock(), CLOCK_TICK_MS),
      setInterval(() => this.#refreshUnderlay(), UNDERLAY_TICK_MS),
    ];
    await this.#startMetrics();
  }

  /** Stops this process's part: traffic of known pairs goes on. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    for (const timer of this.#timers) clearInterval(timer);
    await this.#metrics?.close();
    this.#misses.stop();
    const sessionEnded = this.#session.stop();
    this.#channel.stop();
    await sessionEnded;
    await this.#link.stop();
    this.#table.wipe();
    this.#flushPins();
    await this.#control.close();
  }

  /** Takes port, keys, devices and guard away. `stop` comes after it. */
  async takeDown(): Promise<void> {
    this.#takingDown = true;
    this.#session.setBoot(undefined);
    this.#table.detached();
    await this.#link.request('wipe', {}).catch((thrown: unknown) => {
      this.#log.warn(
        { reason: messageOf(thrown) },
        'the data plane could not be told to forget its keys',
      );
    });
    await this.#options.devices.close();
  }

  /** Reads gateway.yaml again and takes over what can be without touching traffic. */
  async reload(): Promise<{ changed: string[]; needRestart: string[] }> {
    const config = loadGatewayConfig(this.#options.paths.config);
    const before = this.#config;
    const changed: string[] = [];
    if (config.log.level !== before.log.level) {
      this.#log.level = config.log.level;
      changed.push('log.level');
    }
    const sameEndpoints = isSame(config.transport.endpoints, before.transport.endpoints);
    if (!sameEndpoints) changed.push('transport.endpoints');
    this.#config = {
      ...before,
      log: config.log,
      transport: { ...before.transport, endpoints: config.transport.endpoints },
    };
    const needRestart = Object.keys(config).filter(
      (name) => !isSame(Reflect.get(config, name), Reflect.get(this.#config, name)),
    );
    this.#refreshUnderlay();
    this.#log.info({ changed, needRestart }, 'configuration read again');
    return { changed, needRestart };
  }

  // ------------------------------------------------------------------ the data plane

  /** A data plane was found: bring it to the state that we know, and go on where it stands. */
  async #attached(answer: AnswerTo<'attach'>): Promise<void> {
    const instance = Buffer.from(answer.instance);
    const held = answer.ports.find(
      (port) =>
        port.port === PORT &&
        port.subnet === this.#config.subnet &&
        port.member === this.#config.member,
    );
    this.#instance = instance;
    this.#backends = answer.backends;
    this.#clockSent = undefined;
    await this.#openDevices(held !== undefined);
    await this.#setPort();
    this.#suite = this.#suiteWanted();
    this.#sendClock();
    this.#sendLease();
    // A data plane that outlived its control plane keeps its boot key, so traffic goes on.
    const boot = held?.boots.toSorted((a, b) => b.boot - a.boot)[0];
    this.#boot = boot ?? (await this.#link.request('boot.make', { port: PORT }));
    this.#leftovers = new Set(held?.pairKeys.map((key) => key.peer) ?? []);
    this.#log.info(
      {
        instance: instance.toString('hex'),
        backends: answer.backends,
        boot: this.#boot.boot,
        kept: boot !== undefined,
      },
      boot === undefined
        ? 'data plane ready with a new boot key'
        : 'attached to a running data plane',
    );
    await this.#table.installAll(this.#boot.boot);
    this.#session.setBoot({ boot: this.#boot.boot, public: this.#boot.public });
  }

  /** A data plane that has its devices already needs no broker to go on. */
  async #openDevices(held: boolean): Promise<void> {
    try {
      await this.#options.devices.open();
    } catch (thrown) {
      if (!held) throw thrown;
      this.#log.error(
        { err: thrown },
        'the device broker does not work; the data plane keeps what it has',
      );
    }
  }

  #dataPlaneGone(error: PairwireError): void {
    if (this.#stopping || this.#takingDown) return;
    this.#log.warn({ err: error }, 'the data plane is gone; looking for it');
    this.#boot = undefined;
    this.#instance = undefined;
    this.#table.detached();
    this.#session.setBoot(undefined);
  }

  async #setPort(): Promise<void> {
    const port = this.#portConfig();
    const settings = this.#settings ?? INITIAL;
    await this.#link.request('port.set', {
      port: PORT,
      subnet: this.#config.subnet,
      member: this.#config.member,
      tap: port.interface,
      udpPort: this.#config.transport.port,
      macs: this.#identity.member.macs.map(macToBytes),
      suite: settings.suite,
      backend: AUTO_BACKEND,
      tag: NO_TAG,
      freshnessMs: settings.freshnessMs,
      holdFrames: settings.hold,
      holdMs: HOLD_MS,
      holdBytes: HOLD_BYTES,
      stormFrames: port.storm,
      broadcasts: broadcastsOf(port.interface).slice(0, 16),
    });
  }

  /** Tells the data plane the key server's time, once for each good sample. */
  #sendClock(): void {
    if (!this.#time.known || this.#link.state !== 'attached') return;
    const bootMs = this.#clock.bootMs();
    const age = this.#time.age();
    const sampledBootMs = Math.max(0, Math.round(bootMs - (Number.isFinite(age) ? age : 0)));
    const offsetMs = Math.round(this.#time.now() - bootMs);
    // The offset is slewed: tell it while it moves, too.
    const text = `${Number.isFinite(age) ? sampledBootMs : 'none'} ${Math.round(offsetMs / 5)}`;
    if (text === this.#clockSent) return;
    this.#clockSent = text;
    this.#command(this.#link.request('clock', { offsetMs, sampledBootMs }));
  }

  #sendLease(): void {
    if (this.#leaseUntil === undefined || this.#link.state !== 'attached') return;
    this.#command(this.#link.request('lease', { port: PORT, notAfterMs: this.#leaseUntil }));
  }

  #event(event: Event): void {
    switch (event.t) {
      case 'miss.mac':
        this.#misses.mac(macFromBytes(event.mac));
        break;
      case 'miss.group':
        this.#misses.group();
        break;
      case 'miss.index':
        this.#misses.index(event.index, event.kid, event.group, event.from);
        break;
      case 'key.worn':
        this.#keyWorn(event.peer, event.pwId);
        break;
      case 'keys.wiped':
        this.#log.error({ reason: printable(event.why) }, 'the data plane wiped all keys');
        break;
      case 'endpoint.moved':
      case 'peer.silent':
        this.#log.debug({ peer: printable(event.peer) }, event.t);
        break;
      case 'log':
        this.#dataPlaneLog(event.level, printable(event.text));
        break;
    }
  }

  /** Levels as in gateway/native/control/server.hpp: 0 error, 1 warning, 2 info, 3 debug. */
  #dataPlaneLog(level: number, text: string): void {
    const from = { from: 'data plane' };
    if (level === 0) this.#log.error(from, text);
    else if (level === 1) this.#log.warn(from, text);
    else if (level === 2) this.#log.info(from, text);
    else this.#log.debug(from, text);
  }

  #keyWorn(peer: string, pwId: number): void {
    this.#log.warn({ peer: printable(peer), pwId }, 'a traffic key is nearly worn out');
    if (peer === '') {
      this.#misses.worn(undefined);
      return;
    }
    // The data plane may be hostile: what it causes is asked within the budget of misses.
    const mac = this.#table.get(peer as Id)?.macs[0];
    if (mac !== undefined) this.#misses.worn(mac);
  }

  // ------------------------------------------------------------------ the key server

  #onChannelState(state: ClientState): void {
    this.#channelState = state;
    if (state.kind === 'open' && !state.renewed) {
      this.#connects += 1;
      this.#log.info({ address: addressOf(state.server) }, 'connected to the key server');
      this.#sendClock();
      this.#misses.reset();
    }
    if (state.kind === 'down') {
      const retryInMs = Math.round(state.retryInMs);
      this.#log.warn({ err: state.error, retryInMs }, 'no channel to the key server');
    }
    this.#session.onState(state);
  }

  async #registered(boot: number, index: number): Promise<void> {
    try {
      await this.#link.request('boot.index', { port: PORT, boot, index });
    } catch (thrown) {
      // The key server lost what it knew of us (a restore) and drew another index.
      if (thrown instanceof PairwireError && thrown.code === 'DATAPLANE_REFUSED')
        this.#renewBoot(boot);
      throw thrown;
    }
    this.#log.info({ index }, 'registered with the key server');
    const settings = this.#settings;
    if (settings === undefined || settings.hold === 0 || settings.group.mode !== 'shared') return;
    void this.#session.ask({ kind: 'group' });
  }

  #renewBoot(old: number): void {
    const renew = async (): Promise<void> => {
      const made = await this.#link.request('boot.make', { port: PORT });
      this.#boot = made;
      await this.#table.installAll(made.boot);
      this.#session.setBoot({ boot: made.boot, public: made.public });
      await this.#link.request('boot.drop', { port: PORT, boot: old });
    };
    this.#command(renew());
  }

  #newSettings(settings: Settings, record: Signed): void {
    this.#settings = settings;
    this.#table.wantGroup(settings.group.mode === 'shared');
    this.#log.info({ version: settings.version }, 'settings of the subnet');
    try {
      this.#pins.flush();
      writeFileAtomic(this.#options.paths.settings, encode(record));
    } catch (thrown) {
      this.#log.error({ reason: messageOf(thrown) }, 'the settings could not be stored');
    }
    if (this.#link.state !== 'attached') return;
    this.#command(this.#suite === this.#suiteWanted() ? this.#setPort() : this.#renewPort());
  }

  /** Keys are bound to the cipher: another suite means another port with another boot key. */
  async #renewPort(): Promise<void> {
    this.#log.info(
      { suite: this.#suiteWanted() },
      'the subnet uses another cipher; making new keys',
    );
    this.#table.detached();
    this.#session.setBoot(undefined);
    await this.#link.request('port.remove', { port: PORT });
    this.#link.reattach();
  }

  #suiteWanted(): string {
    return (this.#settings ?? INITIAL).suite;
  }

  /** The settings of the last run, so that a start does not depend on a key server. */
  #loadSettings(): void {
    const path = this.#options.paths.settings;
    if (!existsSync(path)) return;
    try {
      const record = signedSchema.parse(decodeMessage(readSecretFile(path)));
      this.#settings = this.#verifier.settings(record);
      this.#table.wantGroup(this.#settings.group.mode === 'shared');
      this.#session.useSettings(this.#settings);
    } catch (thrown) {
      this.#log.warn({ reason: messageOf(thrown) }, 'the stored settings are of no use');
    }
  }

  #synced(full: boolean, leaseUntilMs: number | undefined): void {
    if (full) {
      this.#table.endFull(this.#leftovers);
      this.#leftovers.clear();
    }
    this.#leaseUntil = leaseUntilMs;
    this.#sendLease();
  }

  #refusedMember(id: string, error: PairwireError): void {
    this.#count(error.code);
    this.#log.error({ peer: id, err: error }, 'a member is not believed; it alone is stopped');
    // A late answer may have been older than what we know; the state that counts comes by sync.
    const now = this.#clock.bootMs();
    if (error.code !== 'RECORD_ROLLBACK' || now - this.#rollbackSyncAt < ROLLBACK_SYNC_MS) return;
    this.#rollbackSyncAt = now;
    this.#session.syncNow();
  }

  #refused(what: string, error: PairwireError): void {
    this.#count(error.code);
    this.#log.error({ err: error }, `not believed of the key server: ${what}`);
  }

  #count(code: string): void {
    this.#refusals[code] = (this.#refusals[code] ?? 0) + 1;
  }

  /** Nobody is helped by trying again: keys away, and the process ends with the reason. */
  #fatal(error: PairwireError): void {
    if (this.#stopping) return;
    this.#log.fatal({ err: error }, error.message);
    this.#channel.stop();
    this.#link
      .request('wipe', {})
      .catch(() => {})
      .finally(() => this.emit('end', error));
  }

  // ------------------------------------------------------------------ the underlay

  /** Looks at our own addresses and at the TAP's; tells what has changed. */
  #refreshUnderlay(): void {
    const { transport } = this.#config;
    this.#endpoints = endpointsOf(
      {
        port: transport.port,
        exclude: this.#config.ports.map((port) => port.interface),
        bind: transport.bind,
        device: transport.device,
        loopback: transport.loopback,
        extra: transport.endpoints,
      },
      localAddresses(),
    );
    const seen = JSON.stringify(this.#endpoints.map((e) => [[...e.ip], e.port]));
    if (seen !== this.#underlaySeen) {
      this.#underlaySeen = seen;
      this.#session.setEndpoints(this.#endpoints);
    }
    const broadcasts = broadcastsOf(this.#portConfig().interface)
      .map((ip) => ip.toString('hex'))
      .join(' ');
    if (broadcasts === this.#broadcastsSeen) return;
    this.#broadcastsSeen = broadcasts;
    if (this.#link.state === 'attached') this.#command(this.#setPort());
  }

  #portConfig(): GatewayConfig['ports'][number] {
    const [port] = this.#config.ports;
    if (port === undefined) throw new PairwireError('CONFIG_INVALID', 'there is no port');
    return port;
  }

  // ------------------------------------------------------------------ watching it

  /** The status of this moment. */
  async status(): Promise<Status> {
    const stats = await this.#link.request('stats', {}, STATS_TIMEOUT_MS).catch(() => undefined);
    return buildStatus({
      version: this.#options.version,
      dir: this.#options.paths.dir,
      since: this.#since,
      stopping: this.#stopping,
      config: this.#config,
      member: this.#identity.member,
      settings: this.#settings,
      mtu: this.#options.mtu,
      endpoints: this.#endpoints,
      channel: this.#channelState,
      connects: this.#connects,
      session: this.#session.status,
      time: this.#time,
      leaseUntil: this.#leaseUntil,
      link: this.#link,
      instance: this.#instance,
      backends: this.#backends,
      commandsFailed: this.#commandsFailed,
      boot: this.#boot?.boot,
      misses: this.#misses.counters,
      refusals: this.#refusals,
      table: this.#table,
      stats,
      rates: this.#rates,
    });
  }

  async #answer(verb: ControlVerb): Promise<Record<string, unknown>> {
    switch (verb) {
      case 'status':
        return { status: await this.status() };
      case 'reload':
        return await this.reload();
      case 'down':
        await this.takeDown();
        setImmediate(() => this.emit('end', undefined));
        return {};
    }
  }

  async #startMetrics(): Promise<void> {
    const { listen, perPeer } = this.#config.metrics;
    const address = listen === undefined ? undefined : splitHostPort(listen);
    if (address === undefined) return;
    const metrics = new GatewayMetrics(() => this.status(), perPeer);
    this.#metrics = await serveMetrics(metrics, address.host, address.port);
  }

  // ------------------------------------------------------------------ small things

  #command(command: Promise<unknown>): void {
    command.catch((thrown: unknown) => this.#commandFailed(thrown));
  }

  #commandFailed(thrown: unknown): void {
    if (thrown instanceof PairwireError && thrown.code === 'DATAPLANE_GONE') return;
    this.#commandsFailed += 1;
    this.#log.error({ reason: messageOf(thrown) }, 'the data plane refused a command');
  }

  #flushPins(): void {
    try {
      this.#pins.flush();
    } catch (thrown) {
      this.#log.error({ reason: messageOf(thrown) }, 'the pins could not be written');
    }
  }
}

function serversOf(config: GatewayConfig): readonly [ServerEndpoint, ...ServerEndpoint[]] {
  const [first, ...rest] = config.servers.flatMap((server) => {
    const address = splitHostPort(server.address);
    if (address === undefined) return [];
    return [{ ...address, publicKey: Buffer.from(server.key, 'base64url') }];
  });
  if (first === undefined) throw new PairwireError('CONFIG_INVALID', 'no key server is configured');
  return [first, ...rest];
}

function addressOf(server: ServerEndpoint): string {
  return `${server.host}:${server.port}`;
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Text from the data plane, which may be hostile: no control characters reach a terminal. */
function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?');
}
