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
import { availableParallelism } from 'node:os';
import { encode } from '@msgpack/msgpack';
import { formatChannelAddress, parseChannelAddress } from '../src/net/address.js';
import { ChannelClient, type ClientState } from '../src/net/channel-client.js';
import type { ServerEndpoint } from '../src/net/client-link.js';
import { decodeMessage } from '../src/protocol/channel/codec.js';
import { RELAY_KEY_SIZE } from '../src/protocol/constants.js';
import type { Id } from '../src/protocol/ids.js';
import { type MacAddress, macFromBytes, macToBytes } from '../src/protocol/mac.js';
import type { Endpoint, RelayOffer } from '../src/protocol/messages.js';
import {
  groupModeOf,
  inGroupTraffic,
  type Subject,
  samePolicy,
  subjectOf,
} from '../src/protocol/policy.js';
import { probeKey } from '../src/protocol/probe.js';
import { importPublic } from '../src/protocol/public-keys.js';
import type { Role, Settings } from '../src/protocol/records.js';
import { type Signed, signedSchema } from '../src/protocol/signed.js';
import { type Clock, ServerTime, SystemClock } from '../src/runtime/clock.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../src/runtime/files.js';
import type { Logger } from '../src/runtime/log.js';
import { type MetricsServer, serveMetrics } from '../src/runtime/metrics.js';
import { BootKeys, PEERS_NAMED } from './boot-keys.js';
import {
  type GatewayConfig,
  insideInterfaces,
  loadGatewayConfig,
  netsOf,
  PASSABLE,
  type PortConfig,
  spinMicroseconds,
  splitHostPort,
} from './config.js';
import { AuditHeads, alarmText } from './control/audit-heads.js';
import { Identities } from './control/identities.js';
import { Misses } from './control/misses.js';
import { machineDigest, type Registration, Session } from './control/session.js';
import { DataPlaneLink } from './dataplane/link.js';
import type { AnswerTo, Event } from './dataplane/messages.gen.js';
import type { Devices } from './devices.js';
import { Bindings } from './guard/bindings.js';
import { Claims } from './guard/claims.js';
import { GuardedReports } from './guard/guarded.js';
import { rightsBits } from './guard/rights.js';
import { type GatewayIdentity, loadIdentity } from './identity.js';
import { PeerTable } from './key-table/peer-table.js';
import { Pins } from './key-table/pins.js';
import { Verifier } from './key-table/verifier.js';
import { NetTable, prefixOf } from './link/net-table.js';
import { type GatewayPaths, netPinsPath } from './paths.js';
import { Outside } from './plain/outside.js';
import { Reporter } from './plain/reporter.js';
import { TokenBucket } from './rate-limit.js';
import { Refusals } from './refusals.js';
import { GatewayState } from './state.js';
import { buildStatus } from './status/build.js';
import { GatewayMetrics } from './status/metrics.js';
import { Rates } from './status/rates.js';
import type { Status } from './status/snapshot.js';
import { ControlSocket, type ControlVerb } from './status/socket.js';
import {
  broadcastsOf,
  endpointsOf,
  isUsable,
  localAddresses,
  MAX_OUTER_PACKET,
  type MtuPlan,
  OwnNetworks,
} from './underlay.js';

/** The only port of this version. */
const PORT = 1;
/** The data plane chooses the fastest AEAD backend that this machine has. */
const AUTO_BACKEND = 'auto';
/** The data plane takes as many helpers as suit the machine. */
const AUTO_HELPERS = 255;
/** The hold queue: 1 s, 4 MiB in all; frames for each destination come from the settings. */
const HOLD_MS = 1_000;
const HOLD_BYTES = 4 * 1_048_576;
/** Settings until the operator's are known: the strictest of each. */
const INITIAL = { suite: 'aes-256-gcm', freshnessMs: 30_000, hold: 64 } as const;

/** How often the key server is told of peers that send with an older key, whatever the data plane says. */
const NOTICES = { perSecond: 1, burst: 10 } as const;
/** The same of frames between subnets that nobody here can open. */
const NET_ASKS = { perSecond: 0.5, burst: 5 } as const;

/** 4095 is no VLAN, and a request about one would end our channel. */
const LAST_VLAN = 4_094;
const CLOCK_TICK_MS = 1_000;
const BOOT_TICK_MS = 1_000;
const UNDERLAY_TICK_MS = 3_000;
/** After a change of policy gateways ask what they may see now within so long, not all at once. */
const POLICY_SYNC_MS = 400;
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
  /** We, as policies see us. */
  readonly #self: Subject;
  readonly #identity: GatewayIdentity;
  readonly #state: GatewayState;
  readonly #pins: Pins;
  readonly #networks = new OwnNetworks();
  readonly #verifier: Verifier;
  readonly #table: PeerTable;
  /** A link port's. */
  readonly #nets: NetTable | undefined;
  readonly #netPins = new Map<Id, { readonly pins: Pins; readonly verifier: Verifier }>();
  readonly #netAsks: TokenBucket;
  readonly #boots: BootKeys;
  readonly #misses: Misses;
  readonly #outside: Outside;
  readonly #reporter: Reporter;
  readonly #bindings: Bindings;
  readonly #claims: Claims;
  readonly #guarded: GuardedReports;
  readonly #notices: TokenBucket;
  readonly #link: DataPlaneLink;
  readonly #time: ServerTime;
  readonly #channel: ChannelClient;
  readonly #session: Session;
  readonly #identities: Identities;
  readonly #auditHeads: AuditHeads;
  readonly #control: ControlSocket;
  readonly #rates = new Rates();
  readonly #refusals: Refusals;
  readonly #since = Date.now();
  #config: GatewayConfig;
  #metrics: MetricsServer | undefined;
  #timers: NodeJS.Timeout[] = [];
  #settings: Settings | undefined;
  #instance: Buffer | undefined;
  #backends: readonly string[] = [];
  /** Peers that a running data plane had when we came. */
  #leftovers = new Set<string>();
  /** Nets that it had prefixes of. */
  #leftNets: readonly string[] = [];
  #leaseUntil: number | undefined;
  #clockSent: string | undefined;
  /** The key server has told of all other subnets. */
  #netsKnown = false;
  #underlaySeen: string | undefined;
  #broadcastsSeen = '';
  #endpoints: readonly Endpoint[] = [];
  #channelState: ClientState = { kind: 'stopped' };
  #connects = 0;
  #commandsFailed = 0;
  /** The data plane was told of a relay. */
  #relayed = false;
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
    this.#refusals = new Refusals(options.log, () => this.#clock.bootMs());
    const operator = Buffer.from(config.operator, 'base64url');
    this.#identity = loadIdentity(paths, config.subnet, config.member, operator);
    requireKind(this.#portConfig(), this.#identity.member.role, paths.config);
    this.#state = new GatewayState(paths.state);
    this.#pins = new Pins(paths.pins, operator);
    this.#pins.onWriteError = (thrown) =>
      this.#log.error({ reason: messageOf(thrown) }, 'the pins could not be written');
    this.#pins.onRevokedOver = () => this.#refusals.count('REVOKED_OVER');
    this.#time = new ServerTime(this.#clock, (differenceMs) =>
      this.#log.warn({ differenceMs: Math.round(differenceMs) }, 'key-server time has jumped'),
    );
    const now = (): number => this.#time.now();
    const { keys, membership, member } = this.#identity;
    this.#identities = new Identities({
      ...{ id: config.member, home: member.grant.home, membership, channel: keys.channel },
      server: {
        get: (ids, home) => this.#session.identityServer.get(ids, home),
        put: (pair) => this.#session.identityServer.put(pair),
        exchange: (message, home) => this.#session.identityServer.exchange(message, home),
      },
      pins: this.#pins,
      onConfirmed: (id) => {
        this.#table.takeAgain(id);
        this.#fetchKeys();
      },
      onRefused: (id, error) => this.#table.refuse(id as Id, error),
      onMode: () => this.#table.takeAgain(),
      onProblem: (problem) => {
        if (problem === undefined) this.#log.info('the KMS confirms who peers are again');
        else this.#log.warn({ problem }, 'not everybody is confirmed by the KMS: trying again');
      },
    });
    this.#verifier = new Verifier({
      subnet: config.subnet,
      operator: importPublic('ed25519', operator),
      pins: this.#pins,
      now,
      judge: (peer, isThere) => this.#identities.judge(peer, isThere),
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
    this.#self = subjectOf(config.member, this.#identity.member.grant);
    this.#table = new PeerTable({
      self: this.#self,
      port: PORT,
      verifier: {
        peer: (record) => this.#verifier.peer(record),
        revoked: (id, number) => this.#verifier.revoked(id, number),
        forget: (id) => {
          this.#verifier.forget(id);
          this.#identities.forget(id);
        },
      },
      dataPlane: this.#link,
      acceptsEndpoint: (endpoint) => this.#acceptsEndpoint(endpoint),
      isNear: (endpoint) => this.#networks.has(endpoint.ip),
      onRefused: (id, error) => this.#refusedMember(id, error),
      onDenied: (id) => this.#refusals.denied(id),
      onCommandFailed: (error) => this.#commandFailed(error),
      onPrepared: (peer) => this.#session.prepared(peer),
      onGroupPrepared: () => this.#session.groupPrepared(),
      onAddress: (mac) => this.#misses.appeared(mac),
      ...(this.#portConfig().kind === 'plain'
        ? { probeKey: ({ key, pwId }) => probeKey(key, config.subnet, pwId) }
        : {}),
    });
    this.#nets = this.#makeNets();
    this.#netAsks = new TokenBucket(NET_ASKS.perSecond, NET_ASKS.burst, this.#clock.bootMs());
    this.#outside = new Outside({
      port: PORT,
      dataPlane: this.#link,
      now: () => this.#clock.bootMs(),
      onAddress: (mac) => this.#misses.appeared(mac),
      onCommandFailed: (error) => this.#commandFailed(error),
    });
    this.#reporter = new Reporter({
      now: () => this.#clock.bootMs(),
      serverNow: now,
      send: (report) => this.#session.report(report),
      onFailed: (thrown, retryInMs) =>
        this.#log.warn(
          { reason: messageOf(thrown), retryInMs: Math.round(retryInMs) },
          'the key server could not be told what the plain port has seen: trying again',
        ),
    });
    this.#bindings = new Bindings({
      port: PORT,
      dataPlane: this.#link,
      onCommandFailed: (error) => this.#commandFailed(error),
    });
    this.#claims = new Claims({
      now: () => this.#clock.bootMs(),
      macs: this.#identity.member.macs,
      send: (entries) => this.#session.bind(entries),
      onRefused: (ips) =>
        this.#log.warn(
          { ips },
          'the key server did not take IP addresses of this machine: others may refuse its ARP. Somebody else has them, or the grant does not name them: see `pairwire ip` and `pairwire audit` at the key server',
        ),
    });
    this.#guarded = new GuardedReports({
      now: () => this.#clock.bootMs(),
      send: (entries) => this.#session.guarded(entries),
      onGuarded: ({ kind, peer, mac, ip }) =>
        this.#log.warn(
          { kind, from: peer ?? 'this side', mac, ...(ip === undefined ? {} : { ip }) },
          'the address guard refused frames; the key server writes them down',
        ),
    });
    this.#boots = new BootKeys({
      port: PORT,
      dataPlane: this.#link,
      now: () => this.#clock.bootMs(),
      install: (boot) => this.#nets?.installAll(boot) ?? this.#table.installAll(boot),
      register: (boot) => this.#session.setBoot(boot),
      connected: () => this.#channelState.kind === 'open',
      unreached: () => this.#unreached(),
      onRenewed: (boot) => this.#log.info({ boot }, 'a fresh boot key replaces the one before'),
      onPostponed: (peers) =>
        this.#log.info(
          { peers: peers.slice(0, PEERS_NAMED), count: peers.length },
          'peers that are not connected to the key server could not be told of a fresh boot key: waiting for them',
        ),
      onFailed: (thrown) => this.#commandFailed(thrown),
    });
    this.#notices = new TokenBucket(NOTICES.perSecond, NOTICES.burst, this.#clock.bootMs());
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
    this.#auditHeads = new AuditHeads({
      path: paths.auditHeads,
      subnet: config.subnet,
      server: this.#identity.member.grant.home,
      onAlarm: (alarm) => {
        this.#refusals.count('AUDIT_CONTRADICTED');
        this.#log.error({ kind: alarm.kind }, alarmText(alarm));
      },
      onConfirmed: ({ server }) =>
        this.#log.warn({ server }, 'the operator has confirmed that the database was put back'),
      onFileError: (thrown) =>
        this.#log.error({ reason: messageOf(thrown) }, 'heads of the audit log can not be kept'),
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
      nets: this.#nets,
      outside: this.#outside,
      bindings: this.#bindings,
      verifier: this.#verifier,
      identities: this.#identities,
      auditHeads: this.#auditHeads,
      handlers: {
        registered: (registration, sealed) => this.#registered(registration, sealed),
        relay: (offer) => this.#setRelay(offer),
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
      setInterval(() => this.#command(this.#boots.tick()), BOOT_TICK_MS),
      setInterval(() => this.#nets?.tick(), BOOT_TICK_MS),
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
    this.#reporter.stop();
    this.#claims.stop();
    this.#guarded.stop();
    this.#identities.stop();
    const sessionEnded = this.#session.stop();
    this.#channel.stop();
    await sessionEnded;
    await this.#link.stop();
    this.#table.wipe();
    this.#nets?.wipe();
    this.#flushPins();
    this.#auditHeads.flush();
    await this.#control.close();
    this.#refusals.close();
  }

  /** Takes port, keys, devices and guard away. `stop` comes after it. */
  async takeDown(): Promise<void> {
    this.#takingDown = true;
    this.#boots.gone();
    this.#detached();
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
    let transport = before.transport;
    if (config.transport.kind === 'udp' && transport.kind === 'udp') {
      const { endpoints } = config.transport;
      if (!isSame(endpoints, transport.endpoints)) changed.push('transport.endpoints');
      transport = { ...transport, endpoints };
    }
    this.#config = { ...before, log: config.log, transport };
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
    this.#leftovers = new Set(held?.pairKeys.map((key) => key.peer) ?? []);
    this.#leftNets = held?.nets ?? [];
    if (this.#nets === undefined) {
      // Before any peer: what is members' own never leaves, whoever says so.
      await this.#outside.installAll();
      await this.#bindings.installAll();
      this.#table.foundInDataPlane(held?.pairKeys ?? [], held?.groupKeys ?? []);
    }
    // A data plane that outlived its control plane keeps its boot key, so traffic goes on.
    const kept = await this.#boots.attached(instance.toString('hex'), held);
    // What was forgotten while nobody could tell it.
    if (this.#session.status.fullSyncs > 0) this.#removeLeftovers();
    this.#log.info(
      {
        instance: instance.toString('hex'),
        backends: answer.backends,
        boot: this.#boots.current?.boot,
        kept,
      },
      kept ? 'attached to a running data plane' : 'data plane ready with a new boot key',
    );
  }

  #removeLeftovers(): void {
    if (this.#nets === undefined) return;
    this.#nets.removeLeftovers(this.#leftovers, this.#leftNets);
    this.#leftovers.clear();
    this.#leftNets = [];
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
    this.#instance = undefined;
    this.#detached();
    this.#boots.gone();
  }

  /** What tables had a data plane told, another one will not know. */
  #detached(): void {
    this.#table.detached();
    this.#nets?.detached();
    this.#outside.detached();
    this.#bindings.detached();
    this.#reporter.detached();
  }

  async #setPort(): Promise<void> {
    const port = this.#portConfig();
    const { transport, performance } = this.#config;
    const { helpers } = performance;
    const settings = this.#settings ?? INITIAL;
    const { grant } = this.#identity.member;
    await this.#link.request('port.set', {
      port: PORT,
      subnet: this.#config.subnet,
      member: this.#config.member,
      tap: port.interface,
      transport: transport.kind,
      udpPort: transport.kind === 'udp' ? transport.port : 0,
      underlayMtu: Math.min(this.#options.mtu.underlay, MAX_OUTER_PACKET),
      device: transport.kind === 'udp' ? '' : transport.device,
      macs: this.#identity.member.macs.map(macToBytes),
      suite: settings.suite,
      backend: this.#backendWanted(),
      spinUs: spinMicroseconds(performance.spin, availableParallelism()),
      helpers: helpers === 'auto' ? AUTO_HELPERS : helpers,
      // Only this transport has subnet tags.
      tag: transport.kind === 'ethernet' ? this.#state.tag : 0,
      freshnessMs: settings.freshnessMs,
      holdFrames: settings.hold,
      holdMs: HOLD_MS,
      holdBytes: HOLD_BYTES,
      ...kindFields(port, this.#config.subnet),
      rights: rightsBits(grant.rights, inGroupTraffic(this.#settings?.policy, this.#self)),
      pairwise: this.#settings !== undefined && groupModeOf(this.#settings) === 'pairwise',
      // On a plain side the bridge has the addresses, if anybody.
      broadcasts: broadcastsOf('bridge' in port ? port.bridge : port.interface).slice(0, 16),
    });
  }

  /** The configured backend. Traffic with another one is better than none, so a missing one is told of and left out. */
  #backendWanted(): string {
    const { backend } = this.#config.performance;
    if (backend === AUTO_BACKEND || this.#backends.includes(backend)) return backend;
    this.#log.error(
      { backend, available: this.#backends },
      'performance.backend is not available on this machine; the fastest of the others is used',
    );
    return AUTO_BACKEND;
  }

  /** Tells the data plane the key server's time, once for each good sample. */
  #sendClock(): void {
    if (!this.#time.known || this.#link.state !== 'attached') return;
    // A link port goes by the time of all linked subnets, which it knows when it knows of them. A jump later on would be
    // taken for a machine that was resumed from a snapshot.
    if (this.#nets !== undefined && !this.#netsKnown) return;
    const bootMs = this.#clock.bootMs();
    const age = this.#time.age();
    const sampledBootMs = Math.max(0, Math.round(bootMs - (Number.isFinite(age) ? age : 0)));
    const offsetMs = Math.round(this.#time.now() - bootMs) + (this.#nets?.ahead() ?? 0);
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
        if (isVlan(event)) this.#misses.mac(macFromBytes(event.mac), event.vlan);
        break;
      case 'miss.group':
        this.#misses.group();
        break;
      case 'miss.index':
        if (this.#nets !== undefined) this.#netMiss(event.index, event.kid);
        else this.#misses.index(event.index, event.kid, event.group, event.from);
        break;
      case 'key.worn':
        this.#keyWorn(event.peer, event.pwId);
        break;
      case 'key.committed':
        if (this.#nets !== undefined) this.#nets.committed(event.peer, event.pwId);
        else if (event.peer === '') this.#table.committedGroup(event.pwId);
        else this.#table.committed(event.peer as Id, event.pwId);
        break;
      case 'key.lagging':
        this.#peerLags(event.peer as Id);
        break;
      case 'keys.wiped':
        this.#log.error({ reason: printable(event.why) }, 'the data plane wiped all keys');
        break;
      case 'relay.seen':
        // It stays the relay's word: only the key server can check it.
        this.#session.setReceipt(Uint8Array.from(event.receipt));
        break;
      case 'learned':
        if (this.#portConfig().kind === 'plain') {
          this.#reporter.learned(event.entries.filter(isVlan).map(withText));
        }
        break;
      case 'unlearned':
        this.#reporter.unlearned(event.entries.filter(isVlan).map(withText));
        break;
      case 'loop.state':
        this.#loopState(printable(event.state), printable(event.other));
        break;
      case 'spoof':
        this.#spoofed(event);
        break;
      case 'claim':
        // Behind a plain port addresses are nobody's own.
        if (this.#portConfig().kind === 'host')
          this.#claims.claim(event.ip, macFromBytes(event.mac));
        break;
      case 'guarded':
        this.#guarded.take(event);
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

  /** A link port of another subnet has started anew, or sends with a key that we were not told of. */
  #netMiss(index: number, kid: number): void {
    // The data plane may be hostile: what the key server would take for malformed ends the channel.
    if (index === 0 || !this.#netAsks.take(this.#clock.bootMs())) return;
    void this.#session.askNets(index, kid);
  }

  #loopState(state: string, other: string): void {
    const facts = { state, ...(other === '' ? {} : { other }) };
    if (state === 'blocked') {
      this.#log.error(facts, 'the plain port hears itself: there is a loop on the plain side');
    } else {
      this.#log.info(facts, 'the plain port has another part among the plain ports of its bridge');
    }
  }

  /** Somebody outside sends with a member's own address; the key server writes it down. */
  #spoofed(event: Extract<Event, { t: 'spoof' }>): void {
    if (this.#portConfig().kind !== 'plain' || !isVlan(event)) return;
    const { vlan, mac } = withText(event);
    this.#log.warn(
      { mac, vlan, kind: printable(event.kind) },
      "a frame from outside has a member's own address as its source",
    );
    this.#reporter.spoofed(vlan, mac);
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

  /** Case 2 of docs/protocol.md 5.3. */
  #peerLags(peer: Id): void {
    const entry = this.#table.get(peer);
    if (entry?.index === undefined || entry.key === undefined) return;
    if (!this.#notices.take(this.#clock.bootMs())) return;
    this.#log.info({ peer: entry.id, pwId: entry.key.pwId }, 'a peer sends with an older key');
    void this.#session.notice(entry.index, entry.key.pwId);
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
      this.#reporter.disconnected();
      this.#claims.disconnected();
      this.#guarded.disconnected();
      const retryInMs = Math.round(state.retryInMs);
      this.#log.warn({ err: state.error, retryInMs }, 'no channel to the key server');
    }
    this.#session.onState(state);
  }

  async #registered(registration: Registration, sealed: boolean): Promise<void> {
    const { index, tag } = registration;
    // Before there is an index nothing is sent, so no frame goes out with a wrong tag.
    if (this.#state.setTag(tag) && this.#config.transport.kind === 'ethernet') {
      await this.#setPort();
    }
    await this.#boots.registered(registration);
    this.#log.info({ index }, 'registered with the key server');
    this.#identities.registered(sealed);
    this.#reporter.registered();
    this.#claims.registered();
    this.#guarded.registered();
    const settings = this.#settings;
    if (this.#nets !== undefined) return;
    if (settings === undefined || settings.hold === 0 || groupModeOf(settings) !== 'shared') return;
    void this.#session.ask({ kind: 'group' });
  }

  /** The data plane registers there, and says hello anew with every change of our addresses. */
  async #setRelay(offer: RelayOffer | undefined): Promise<void> {
    const addresses = (offer?.addresses ?? []).filter((one) => this.#acceptsEndpoint(one));
    if (addresses.length === 0 && !this.#relayed) return;
    this.#relayed = addresses.length > 0;
    await this.#link.request('relay.set', {
      port: PORT,
      addresses,
      index: offer?.index ?? 0,
      notAfterMs: offer?.notAfter ?? 0,
      ticket: offer?.ticket ?? Buffer.alloc(RELAY_KEY_SIZE),
    });
  }

  /** Peers that we hear and that are not connected to the key server. */
  async #unreached(): Promise<string[]> {
    const { ports } = await this.#link.request('stats', {}, STATS_TIMEOUT_MS);
    const heard = (ports[0]?.peers ?? []).filter(({ alive, hasKey }) => alive && hasKey);
    return heard
      .map(({ peer }) => peer)
      .filter((peer) => {
        const online =
          this.#nets === undefined
            ? this.#table.get(peer as Id)?.online
            : this.#nets.isOnline(peer);
        return online === false;
      });
  }

  #useSettings(settings: Settings): void {
    this.#settings = settings;
    this.#table.useSettings(settings);
    this.#identities.useSettings(settings);
    this.#boots.setInterval(settings.bootSeconds);
  }

  #newSettings(settings: Settings, record: Signed): void {
    const before = this.#settings;
    this.#useSettings(settings);
    this.#log.info({ version: settings.version }, 'settings of the subnet');
    if (!samePolicy(before?.policy, settings.policy)) {
      // Whom the new one lets us see comes by sync. Not everybody at once.
      setTimeout(() => this.#session.syncNow(), Math.random() * POLICY_SYNC_MS).unref();
    }
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
    this.#detached();
    this.#boots.gone();
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
      const settings = this.#verifier.settings(record);
      this.#useSettings(settings);
      this.#session.useSettings(settings);
    } catch (thrown) {
      this.#log.warn({ reason: messageOf(thrown) }, 'the stored settings are of no use');
    }
  }

  #synced(full: boolean, leaseUntilMs: number | undefined): void {
    if (full && this.#nets !== undefined) {
      this.#nets.endFull();
      this.#removeLeftovers();
    } else if (full) {
      this.#table.endFull(this.#leftovers);
      this.#leftovers.clear();
      this.#claims.again(this.#bindings.endFull());
    }
    this.#fetchKeys();
    this.#leaseUntil = leaseUntilMs;
    this.#netsKnown = true;
    this.#sendClock();
    this.#sendLease();
  }

  /**
   * With `group.mode: pairwise` a broadcast needs a key with everybody, and what is sent before there is one is lost: so
   * they are asked for as soon as somebody is there. Not with `hold` 0, the documents' rule: nothing before it is needed.
   */
  #fetchKeys(): void {
    const settings = this.#settings;
    if (this.#nets !== undefined || settings === undefined || settings.hold === 0) return;
    if (groupModeOf(settings) !== 'pairwise') return;
    for (const mac of this.#table.withoutKey()) this.#misses.mac(mac);
  }

  #refusedMember(id: string, error: PairwireError): void {
    this.#refusals.member(id, error);
    // A late answer may have been older than what we know; the state that counts comes by sync.
    const now = this.#clock.bootMs();
    if (error.code !== 'RECORD_ROLLBACK' || now - this.#rollbackSyncAt < ROLLBACK_SYNC_MS) return;
    this.#rollbackSyncAt = now;
    this.#session.syncNow();
  }

  /** What a link port knows of other subnets; undefined for ports of other kinds. */
  #makeNets(): NetTable | undefined {
    const port = this.#portConfig();
    if (port.kind !== 'link') return undefined;
    const nets = [...netsOf(port)].map(([net, { prefixes, operator }]) => {
      const key = operator === undefined ? undefined : Buffer.from(operator, 'base64url');
      return [net, { prefixes, operator: key }] as const;
    });
    return new NetTable({
      port: PORT,
      net: port.net ?? this.#config.subnet,
      prefixes: port.prefixes,
      nets: new Map(nets),
      dataPlane: this.#link,
      verifierOf: (net, subnet, operator) => this.#verifierOf(net, subnet, operator),
      now: () => this.#clock.bootMs(),
      acceptsEndpoint: (endpoint) => this.#acceptsEndpoint(endpoint),
      onRefused: (what, error) => this.#refusals.net(what, error),
      onCommandFailed: (error) => this.#commandFailed(error),
      onPrepared: (net) => this.#session.netPrepared(net),
    });
  }

  /** Judges another subnet's link ports: its operator, and what was seen of them, stand in a file for each net. */
  #verifierOf(net: Id, subnet: Id, operator: Uint8Array): Verifier {
    const known = this.#netPins.get(net);
    if (known?.pins.isOf(subnet, operator) === true) return known.verifier;
    const pins = new Pins(netPinsPath(this.#options.paths, net), operator, subnet);
    pins.onWriteError = (thrown) =>
      this.#log.error({ net, reason: messageOf(thrown) }, 'the pins could not be written');
    const verifier = new Verifier({
      subnet,
      operator: importPublic('ed25519', operator),
      pins,
      now: () => this.#time.now(),
    });
    pins.flush();
    this.#netPins.set(net, { pins, verifier });
    return verifier;
  }

  #refused(what: string, error: PairwireError): void {
    this.#refusals.server(what, error);
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
    this.#networks.look();
    const { transport } = this.#config;
    if (transport.kind === 'udp') {
      this.#endpoints = endpointsOf(
        {
          port: transport.port,
          exclude: insideInterfaces(this.#config),
          bind: transport.bind,
          device: transport.device,
          loopback: transport.loopback,
          extra: transport.endpoints,
        },
        localAddresses(),
      );
    }
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

  /** On an Ethernet members are where their MAC addresses are. */
  #acceptsEndpoint(endpoint: Endpoint): boolean {
    const { transport } = this.#config;
    return transport.kind === 'udp' && isUsable(endpoint.ip, transport.loopback);
  }

  #portConfig(): PortConfig {
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
      boots: this.#boots,
      misses: this.#misses.counters,
      refusals: this.#refusals.counts,
      table: this.#table,
      nets: this.#nets,
      outside: this.#outside.size,
      reporter: this.#reporter.status,
      bindings: this.#bindings.size,
      claims: this.#claims.status,
      guardedTold: this.#guarded.told,
      auditHeads: this.#auditHeads,
      identities: this.#identities.status,
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
      case 'renew':
        return { boot: await this.#boots.renewNow() };
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
      for (const { pins } of this.#netPins.values()) pins.flush();
    } catch (thrown) {
      this.#log.error({ reason: messageOf(thrown) }, 'the pins could not be written');
    }
  }
}

/** What `port.set` says of the kind of a port, with values for what means nothing to it. */
function kindFields(port: PortConfig, subnet: Id) {
  const { kind } = port;
  const plain = { broadcast: 'all', stp: 'drop', learnSeconds: 300 };
  if (kind === 'link') {
    const pass = Buffer.from(port.level === 'ip' ? port.pass.map((name) => PASSABLE[name]) : []);
    const elsewhere = Object.values(port.nets).flatMap(({ prefixes }) => prefixes.map(prefixOf));
    const own = { kind, net: port.net ?? subnet, pass, elsewhere };
    return { ...own, ...plain, stormFrames: 0, answer: false };
  }
  const common = {
    ...{ kind, net: '', pass: Buffer.alloc(0), elsewhere: [] },
    ...{ stormFrames: port.storm, answer: port.answerNeighbours },
  };
  if (kind === 'host') return { ...common, ...plain };
  const { broadcast, stp, learnSeconds } = port;
  return { ...common, broadcast, stp, learnSeconds };
}

/** What a member may do stands in its grant: a host's frames come from its own addresses alone. */
function requireKind(port: PortConfig, role: Role, path: string): void {
  const wanted = role === 'plain' || role === 'link' ? role : 'host';
  if (port.kind === wanted) return;
  throw new PairwireError(
    'CONFIG_INVALID',
    `a member with the role ${role} has a port of kind ${wanted}, not ${port.kind}`,
    { where: path, hint: `kind: ${wanted} in gateway.yaml, or a token with --role ${port.kind}` },
  );
}

function isVlan({ vlan }: { readonly vlan: number }): boolean {
  return vlan <= LAST_VLAN;
}

/** An entry with its address as text. */
function withText<T extends { readonly mac: Uint8Array }>(
  entry: T,
): Omit<T, 'mac'> & { readonly mac: MacAddress } {
  return { ...entry, mac: macFromBytes(entry.mac) };
}

function serversOf(config: GatewayConfig): readonly [ServerEndpoint, ...ServerEndpoint[]] {
  const [first, ...rest] = config.servers.flatMap((server) => {
    const address = parseChannelAddress(server.address);
    if (address === undefined) return [];
    return [{ ...address, publicKey: Buffer.from(server.key, 'base64url') }];
  });
  if (first === undefined) throw new PairwireError('CONFIG_INVALID', 'no key server is configured');
  return [first, ...rest];
}

function addressOf(server: ServerEndpoint): string {
  return formatChannelAddress(server);
}

function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Text from the data plane, which may be hostile: no control characters reach a terminal. */
function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?');
}
