/** Puts the status together from the parts' own state and the data plane's figures. */
import { createHash } from 'node:crypto';
import { formatChannelAddress } from '../../src/net/address.js';
import type { ClientState } from '../../src/net/channel-client.js';
import type { Endpoint } from '../../src/protocol/messages.js';
import { groupModeOf } from '../../src/protocol/policy.js';
import { networkOf } from '../../src/protocol/prefixes.js';
import type { Settings, VerifiedMember } from '../../src/protocol/records.js';
import type { ServerTime } from '../../src/runtime/clock.js';
import type { BootKeys } from '../boot-keys.js';
import { type GatewayConfig, netsOf } from '../config.js';
import { type AuditHeads, alarmText } from '../control/audit-heads.js';
import type { IdentitiesStatus } from '../control/identities.js';
import type { MissCounters } from '../control/misses.js';
import type { SessionStatus } from '../control/session.js';
import type { DataPlaneLink } from '../dataplane/link.js';
import type { AnswerTo, PeerStats, PortStats } from '../dataplane/messages.gen.js';
import type { ClaimsStatus } from '../guard/claims.js';
import type { PeerEntry, PeerTable } from '../key-table/peer-table.js';
import type { KeyedLinkPort, NetTable } from '../link/net-table.js';
import type { Outside } from '../plain/outside.js';
import type { ReporterStatus } from '../plain/reporter.js';
import { endpointText, type MtuPlan } from '../underlay.js';
import type { Rates } from './rates.js';
import type { PeerStatus, PortStatus, Status } from './snapshot.js';

/** Everything that enters. */
export interface StatusParts {
  readonly version: string;
  readonly dir: string;
  readonly since: number;
  readonly stopping: boolean;
  readonly config: GatewayConfig;
  readonly member: VerifiedMember;
  readonly settings: Settings | undefined;
  readonly mtu: MtuPlan;
  readonly endpoints: readonly Endpoint[];
  readonly channel: ClientState;
  readonly connects: number;
  readonly session: SessionStatus;
  readonly time: ServerTime;
  readonly leaseUntil: number | undefined;
  readonly link: Pick<DataPlaneLink, 'state' | 'restarts' | 'eventsRefused'>;
  readonly instance: Buffer | undefined;
  readonly backends: readonly string[];
  readonly commandsFailed: number;
  readonly boots: Pick<BootKeys, 'current' | 'ageMs' | 'renewals'>;
  readonly misses: MissCounters;
  readonly refusals: Readonly<Record<string, number>>;
  readonly table: PeerTable;
  readonly nets: NetTable | undefined;
  readonly outside: Outside['size'];
  readonly reporter: ReporterStatus;
  readonly bindings: number;
  readonly claims: ClaimsStatus;
  readonly guardedTold: number;
  readonly auditHeads: Pick<AuditHeads, 'head' | 'alarm'>;
  readonly identities: IdentitiesStatus;
  readonly stats: AnswerTo<'stats'> | undefined;
  readonly rates: Rates;
}

/** The snapshot of this moment. */
export function buildStatus(parts: StatusParts): Status {
  const now = performance.now();
  parts.rates.forgetOld(now);
  const ports = parts.config.ports.map((port, at) =>
    portStatus(
      parts,
      port,
      parts.stats?.ports.find((one) => one.port === at + 1),
      now,
    ),
  );
  const problems = problemsOf(parts, ports);
  return {
    schema: 1,
    version: parts.version,
    time: Date.now(),
    state: stateOf(parts, problems),
    problems,
    subnet: parts.config.subnet,
    member: parts.config.member,
    role: parts.member.role,
    dir: parts.dir,
    pid: process.pid,
    since: parts.since,
    operator: { fingerprint: fingerprint(parts.config.operator), location: 'unknown' },
    server: serverStatus(parts),
    lease: leaseStatus(parts),
    clock: {
      known: parts.time.known,
      serverTime: parts.time.now(),
      wallDifferenceMs: parts.time.known ? Math.round(parts.time.now() - Date.now()) : 0,
      ageMs: Number.isFinite(parts.time.age()) ? Math.round(parts.time.age()) : null,
    },
    settings: settingsStatus(parts.settings),
    identities: {
      ...parts.identities,
      unnamed: [...parts.identities.unnamed],
      problem: parts.identities.problem ?? null,
    },
    dataPlane: {
      state: parts.link.state,
      instance: parts.instance?.toString('hex') ?? null,
      uptimeMs: parts.stats?.uptimeMs ?? null,
      backends: [...parts.backends],
      restarts: parts.link.restarts,
      eventsLost: parts.stats?.eventsLost ?? 0,
      eventsRefused: parts.link.eventsRefused,
      commandsFailed: parts.commandsFailed,
    },
    misses: { ...parts.misses },
    refusals: { ...parts.refusals },
    ports,
  };
}

function stateOf(parts: StatusParts, problems: Status['problems']): Status['state'] {
  if (parts.stopping) return 'stopping';
  if (parts.session.registered === undefined && parts.leaseUntil === undefined) return 'starting';
  return problems.length === 0 ? 'up' : 'degraded';
}

function problemsOf(parts: StatusParts, ports: readonly PortStatus[]): Status['problems'] {
  const problems: Status['problems'] = [];
  const add = (code: string, message: string): void => {
    problems.push({ code, message });
  };
  if (parts.link.state !== 'attached') {
    add('DATAPLANE_GONE', 'the data plane is not there; it is being looked for');
  }
  if (parts.channel.kind !== 'open') {
    add(
      'CHANNEL_UNREACHABLE',
      'no key server; traffic of known pairs goes on until the lease ends',
    );
  }
  const { identities } = parts;
  if (identities.own === 'taken') {
    add('IDENTITY_REFUSED', 'another identity document is remembered for our id at the KMS');
  }
  if (identities.problem !== undefined) add('IDENTITY_UNCONFIRMED', identities.problem);
  const { alarm } = parts.auditHeads;
  if (alarm !== undefined) add('AUDIT_CONTRADICTED', alarmText(alarm));
  const age = parts.time.age();
  if (parts.time.known && age > 3_600_000) {
    add('CLOCK_AGE', 'key-server time was not sampled well for over an hour');
  }
  const wanted = parts.config.performance.backend;
  const used = ports[0]?.backend ?? null;
  if (wanted !== 'auto' && used !== null && used !== wanted) {
    add('BACKEND_MISSING', `${wanted} is not available here; ${used} encrypts in its place`);
  }
  for (const { plain } of ports) {
    if (plain?.loop !== 'blocked') continue;
    add('PLAIN_LOOP', `the plain port hears itself: there is a loop behind ${plain.bridge}`);
  }
  for (const { net, refusal } of ports.flatMap(({ link }) => link?.nets ?? [])) {
    if (refusal !== null) add(refusal.code, `nothing crosses to ${net}: ${refusal.message}`);
  }
  for (const peer of ports.flatMap((port) => port.peers)) {
    if (peer.refusal !== null)
      add(peer.refusal.code, `${peer.id} is stopped: ${peer.refusal.message}`);
  }
  return problems;
}

function serverStatus(parts: StatusParts): Status['server'] {
  const { channel, session } = parts;
  const server =
    channel.kind === 'open' || channel.kind === 'connecting' ? channel.server : undefined;
  const error = channel.kind === 'down' ? channel.error.message : session.lastError;
  return {
    connected:
      parts.leaseUntil !== undefined &&
      channel.kind === 'open' &&
      session.registered?.boot === parts.boots.current?.boot &&
      parts.boots.current !== undefined,
    state: channel.kind,
    address: server === undefined ? null : formatChannelAddress(server),
    rttMs: parts.time.roundTrip() ?? null,
    connects: parts.connects,
    registrations: session.registrations,
    epoch: session.epoch ?? null,
    cursor: session.cursor,
    syncs: session.syncs,
    lastSync: session.lastSyncMs ?? null,
    pushes: session.pushes,
    lastError: error ?? null,
    retryInMs: channel.kind === 'down' ? Math.round(channel.retryInMs) : null,
    audit: auditStatus(parts),
  };
}

function auditStatus({ auditHeads }: StatusParts): Status['server']['audit'] {
  const { head, alarm } = auditHeads;
  if (head === undefined) return null;
  const base64url = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64url');
  return {
    ...{ server: head.server, seq: head.seq, time: head.time },
    ...{ mac: base64url(head.mac), key: base64url(head.sign) },
    alarm:
      alarm === undefined
        ? null
        : { kind: alarm.kind, seq: alarm.ours.head.seq, told: alarm.told.head.seq },
  };
}

function leaseStatus(parts: StatusParts): Status['lease'] {
  const until = parts.leaseUntil;
  if (until === undefined) return { notAfter: null, secondsLeft: null };
  const secondsLeft = Math.max(0, Math.floor((until - parts.time.now()) / 1_000));
  return { notAfter: until, secondsLeft };
}

function settingsStatus(settings: Settings | undefined): Status['settings'] {
  if (settings === undefined) return null;
  return {
    version: settings.version,
    suite: settings.suite,
    freshnessMs: settings.freshnessMs,
    hold: settings.hold,
    leaseSeconds: settings.leaseSeconds,
    bootSeconds: settings.bootSeconds,
    verify: settings.verify,
    groupMode: groupModeOf(settings),
    unknown: settings.unknown,
    defaultPlain: settings.plain.default ?? null,
  };
}

function portStatus(
  parts: StatusParts,
  port: GatewayConfig['ports'][number],
  stats: PortStats | undefined,
  now: number,
): PortStatus {
  const figures = new Map((stats?.peers ?? []).map((peer) => [peer.peer, peer]));
  const peers = [...(parts.nets?.ports() ?? parts.table.entries())]
    .map((entry) => peerStatus(entry, figures.get(entry.id), parts, now))
    .sort((a, b) => (a.id < b.id ? -1 : 1));
  const counters = record(stats?.counters ?? []);
  const { registered } = parts.session;
  return {
    name: port.name,
    kind: port.kind,
    interface: stats?.tap || port.interface,
    transport: parts.config.transport.kind,
    udpPort: parts.config.transport.kind === 'udp' ? parts.config.transport.port : null,
    subnetTag: parts.config.transport.kind === 'ethernet' ? (registered?.tag ?? null) : null,
    mtu: stats?.mtu || parts.mtu.tap,
    underlayMtu: parts.mtu.underlay,
    underlayInterface: parts.mtu.interface ?? null,
    macs: [...parts.member.macs],
    endpoints: parts.endpoints.map(endpointText),
    relay: stats === undefined || stats.relay.port === 0 ? null : relayStatus(stats),
    suite: stats?.suite || (parts.settings?.suite ?? 'aes-256-gcm'),
    backend: stats?.backend ?? null,
    offload: stats?.offload ?? null,
    index: registered?.index ?? null,
    boot: parts.boots.current?.boot ?? null,
    bootAgeMs: parts.boots.ageMs === undefined ? null : Math.round(parts.boots.ageMs),
    bootRenewals: parts.boots.renewals,
    group: {
      mode: parts.settings === undefined ? 'shared' : groupModeOf(parts.settings),
      pwId: parts.table.group?.pwId ?? null,
    },
    tx: parts.rates.sample(
      `port ${port.name} tx`,
      now,
      counters.outbound_frames ?? 0,
      counters.outbound_bytes ?? 0,
    ),
    rx: parts.rates.sample(
      `port ${port.name} rx`,
      now,
      counters.inbound_frames ?? 0,
      counters.inbound_bytes ?? 0,
    ),
    plain: plainStatus(parts, port, stats),
    link: linkStatus(parts, port),
    outside: { ...parts.outside },
    guard: guardStatus(parts, port, record(stats?.drops ?? []), counters),
    drops: record(stats?.drops ?? []),
    counters,
    peers,
  };
}

function pathOf(
  stats: PeerStats | undefined,
  transport: GatewayConfig['transport']['kind'],
): PeerStatus['path'] {
  if (transport === 'ip') return 'routed';
  if (stats?.confirmed !== true) return 'probing';
  return stats.relayed ? 'relay' : 'direct';
}

function peerStatus(
  entry: PeerEntry | KeyedLinkPort,
  stats: PeerStats | undefined,
  { rates, config }: Pick<StatusParts, 'rates' | 'config'>,
  now: number,
): PeerStatus {
  const transport = config.transport.kind;
  const endpoint = stats === undefined ? '' : endpointText(stats.endpoint);
  const heard = stats !== undefined && stats.rxFrames > 0;
  return {
    id: entry.id,
    role: entry.role ?? null,
    state: entry.state,
    refusal: entry.refusal ?? null,
    online: entry.online,
    index: entry.index ?? null,
    bootSequence: entry.bootSequence,
    macs: [...entry.macs],
    ips: [...entry.ips],
    pwId: entry.key?.pwId ?? null,
    hasKey: stats?.hasKey ?? false,
    sendPwId: stats?.hasKey === true ? stats.pwId : null,
    alive: stats?.alive ?? false,
    path: pathOf(stats, transport),
    endpoint: endpoint === '' ? null : endpoint,
    endpoints: entry.endpoints.map(endpointText),
    rttMs: stats === undefined || stats.rttUs === 0 ? null : stats.rttUs / 1_000,
    pathMtu: stats === undefined || stats.pathMtu === 0 ? null : stats.pathMtu,
    pathMtuProved: stats?.pathMtuProved ?? false,
    heardMsAgo: heard ? stats.heardMsAgo : null,
    tx: rates.sample(`${entry.id} tx`, now, stats?.txFrames ?? 0, stats?.txBytes ?? 0),
    rx: rates.sample(`${entry.id} rx`, now, stats?.rxFrames ?? 0, stats?.rxBytes ?? 0),
  };
}

/** What a plain port does; null for another kind. */
function plainStatus(
  parts: StatusParts,
  port: GatewayConfig['ports'][number],
  stats: PortStats | undefined,
): PortStatus['plain'] {
  if (port.kind !== 'plain') return null;
  const { seen, reports, refused, spoofed, overflow } = parts.reporter;
  return {
    bridge: port.bridge,
    broadcast: port.broadcast,
    stp: port.stp,
    loop: stats?.loop || null,
    loopOther: stats?.loopOther || null,
    learned: stats?.learned ?? seen,
    reports,
    reportsRefused: refused,
    spoofed,
    overflow,
  };
}

/** What a link port knows of other subnets; null for another kind. */
function linkStatus(
  { nets, config }: StatusParts,
  port: GatewayConfig['ports'][number],
): PortStatus['link'] {
  if (port.kind !== 'link' || nets === undefined) return null;
  const told = new Map([...nets.nets()].map((entry) => [entry.net, entry]));
  const all = new Set([...netsOf(port).keys(), ...told.keys()]);
  return {
    level: port.level,
    net: port.net ?? config.subnet,
    prefixes: port.prefixes.map(networkOf),
    nets: [...all].sort().map((net) => {
      const entry = told.get(net);
      return {
        net,
        subnet: entry?.subnet ?? null,
        prefixes: [...(entry?.prefixes ?? [])],
        pwId: entry?.key?.pwId ?? null,
        nextPwId: entry?.next?.pwId ?? null,
        refusal: entry?.refusal ?? null,
      };
    }),
  };
}

/** The address guard; frames by what refused or answered them. */
function guardStatus(
  parts: StatusParts,
  port: GatewayConfig['ports'][number],
  drops: Readonly<Record<string, number>>,
  counters: Readonly<Record<string, number>>,
): PortStatus['guard'] {
  const { claims, refused, overflow } = parts.claims;
  return {
    bindings: parts.bindings,
    answers: port.kind !== 'link' && port.answerNeighbours,
    answered: { arp: counters.answered_arp ?? 0, nd: counters.answered_nd ?? 0 },
    refused: {
      arp: drops.arp_spoof ?? 0,
      nd: drops.nd_spoof ?? 0,
      ra: drops.ra_guard ?? 0,
      redirect: drops.redirect_guard ?? 0,
      dhcp: drops.dhcp_guard ?? 0,
    },
    claims,
    claimsRefused: refused,
    claimsOver: overflow,
    reported: parts.guardedTold,
  };
}

function relayStatus(stats: PortStats): PortStatus['relay'] {
  return {
    address: endpointText(stats.relay),
    registered: stats.relayRegistered,
    rttMs: stats.relayRttUs === 0 ? null : stats.relayRttUs / 1_000,
    seen: endpointText(stats.seen) || null,
  };
}

function record(counters: readonly { readonly name: string; readonly value: number }[]) {
  return Object.fromEntries(counters.map(({ name, value }) => [name, value]));
}

/** The operator key as people compare it: the first 16 hex digits of its SHA-256, in fours. */
function fingerprint(publicKey: string): string {
  const digest = createHash('sha256').update(Buffer.from(publicKey, 'base64url')).digest('hex');
  return digest.slice(0, 16).replace(/(.{4})(?=.)/g, '$1-');
}
