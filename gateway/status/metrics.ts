/**
 * /metrics for Prometheus, filled from the status snapshot each time it is asked for, so that
 * nothing is counted twice. Series for each peer are opt-in, because they tell local readers who
 * talks to whom (threats.md M19).
 */
import { type Counter, type Gauge, Registry } from 'prom-client';
import { Metrics } from '../../src/runtime/metrics.js';
import type { Status } from './snapshot.js';

const KEY_SERVER_STATES = ['connecting', 'open', 'down', 'stopped'] as const;
const LOOP_STATES = ['forward', 'standby', 'blocked'] as const;
const DIRECTIONS = ['tx', 'rx'] as const;

/** A registry that fetches its values before it shows them. */
class SnapshotRegistry extends Registry {
  refresh: () => Promise<void> = async () => {};

  override async metrics(): Promise<string> {
    await this.refresh();
    return super.metrics();
  }
}

/** The gateway's metrics: `serveMetrics` shows them. */
export class GatewayMetrics extends Metrics {
  override readonly registry = new SnapshotRegistry();
  readonly #perPeer: boolean;

  readonly #info = this.gauge('gateway_info', 'Always 1; what runs here.', [
    'version',
    'subnet',
    'member',
    'state',
  ]);
  readonly #up = this.gauge('gateway_up', '1 if everything works.');
  readonly #channel = this.gauge(
    'gateway_key_server_state',
    '1 for the present state of the channel to the key server.',
    ['state'],
  );
  readonly #session = this.counter(
    'gateway_key_server_total',
    'What was done with the key server.',
    ['what'],
  );
  readonly #lease = this.gauge('gateway_lease_seconds_left', 'Until all keys run out.');
  readonly #clockAge = this.gauge('gateway_clock_age_seconds', 'Age of the last time sample.');
  readonly #attached = this.gauge(
    'gateway_data_plane_attached',
    '1 if a data plane is controlled.',
  );
  readonly #dataPlane = this.counter(
    'gateway_data_plane_total',
    'What happened to the data plane.',
    ['what'],
  );
  readonly #misses = this.counter(
    'gateway_key_misses_total',
    'Missing keys by kind, and what became of them.',
    ['what'],
  );
  readonly #refusals = this.counter(
    'gateway_refused_total',
    'What was not believed of the key server.',
    ['reason'],
  );
  readonly #auditHead = this.gauge(
    'gateway_audit_head',
    "Highest entry of the key server's audit log that it told of.",
  );
  readonly #auditAlarm = this.gauge(
    'gateway_audit_alarm',
    "1 if the key server's audit log was cut or changed.",
  );
  readonly #identities = this.gauge(
    'gateway_identities',
    'Peers whose identity the KMS has not confirmed, by what became of it.',
    ['state'],
  );
  readonly #identityAlarm = this.gauge(
    'gateway_identity_alarm',
    '1 while the KMS contradicts a peer, remembers another document for our id, or can not be asked.',
  );
  readonly #drops = this.counter('gateway_dropped_frames_total', 'Frames not passed on.', [
    'port',
    'reason',
  ]);
  readonly #details = this.counter('gateway_port_total', 'Further counters of the data plane.', [
    'port',
    'name',
  ]);
  readonly #frames = this.counter('gateway_frames_total', 'Frames sealed and opened.', [
    'port',
    'direction',
  ]);
  readonly #bytes = this.counter('gateway_bytes_total', 'Bytes sealed and opened.', [
    'port',
    'direction',
  ]);
  readonly #bootAge = this.gauge('gateway_boot_key_age_seconds', 'Age of the boot key.', ['port']);
  readonly #bootRenewals = this.counter(
    'gateway_boot_key_renewals_total',
    'Fresh boot keys that replaced another without loss.',
    ['port'],
  );
  readonly #plain = this.gauge('gateway_plain', 'What a plain port knows and was refused.', [
    'port',
    'what',
  ]);
  readonly #loop = this.gauge(
    'gateway_plain_loop_state',
    '1 for the present state of a plain port.',
    ['port', 'state'],
  );
  readonly #outside = this.gauge(
    'gateway_outside_addresses',
    "Members' own addresses, and addresses behind plain ports, that the key server told of.",
    ['port', 'what'],
  );
  readonly #guard = this.gauge(
    'gateway_guard',
    'The address guard: bound IP addresses, own ones that were told, what the key server was told of.',
    ['port', 'what'],
  );
  readonly #nets = this.gauge(
    'gateway_net_key_generation',
    'Generation of the key with another subnet, 0 without one.',
    ['port', 'net'],
  );
  readonly #netPorts = this.gauge(
    'gateway_net_link_ports_alive',
    'Link ports of another subnet that answer.',
    ['port', 'net'],
  );
  readonly #peers = this.gauge('gateway_peers', 'Members known.', ['port', 'state']);
  readonly #peerFrames = this.counter('gateway_peer_frames_total', 'Frames by peer.', [
    'port',
    'peer',
    'direction',
  ]);
  readonly #peerBytes = this.counter('gateway_peer_bytes_total', 'Bytes by peer.', [
    'port',
    'peer',
    'direction',
  ]);
  readonly #peerRtt = this.gauge('gateway_peer_rtt_seconds', 'Round trip of probes.', [
    'port',
    'peer',
  ]);

  readonly #peerMtu = this.gauge(
    'gateway_peer_path_mtu_bytes',
    'Longest outer packet on the way to a peer.',
    ['port', 'peer'],
  );

  /** @param snapshot gives the status of this moment */
  constructor(snapshot: () => Promise<Status>, perPeer: boolean) {
    super();
    this.#perPeer = perPeer;
    this.registry.refresh = async () => this.fill(await snapshot());
  }

  /** Replaces all values by those of a snapshot. */
  fill(status: Status): void {
    this.registry.resetMetrics();
    this.#info.labels(status.version, status.subnet, status.member, status.state).set(1);
    this.#up.set(status.state === 'up' ? 1 : 0);
    this.#fillKeyServer(status);
    this.#attached.set(status.dataPlane.state === 'attached' ? 1 : 0);
    const { restarts, eventsLost, eventsRefused, commandsFailed } = status.dataPlane;
    each(this.#dataPlane, { restarts, eventsLost, eventsRefused, commandsFailed });
    each(this.#misses, status.misses);
    each(this.#refusals, status.refusals);
    for (const port of status.ports) this.#fillPort(port);
  }

  #fillKeyServer(status: Status): void {
    for (const state of KEY_SERVER_STATES) {
      this.#channel.labels(state).set(status.server.state === state ? 1 : 0);
    }
    const { connects, registrations, syncs, pushes } = status.server;
    each(this.#session, { connects, registrations, syncs, pushes });
    const { audit } = status.server;
    this.#auditHead.set(audit?.seq ?? 0);
    const { waiting, pinned, refused, own, problem } = status.identities;
    for (const [state, count] of Object.entries({ waiting, pinned, refused })) {
      this.#identities.set({ state }, count);
    }
    this.#identityAlarm.set(refused > 0 || own === 'taken' || problem !== null ? 1 : 0);
    this.#auditAlarm.set((audit?.alarm ?? null) === null ? 0 : 1);
    setOrNothing(this.#lease, status.lease.secondsLeft);
    setOrNothing(this.#clockAge, status.clock.ageMs, 1_000);
  }

  #fillPlain({ name, plain, outside }: Status['ports'][number]): void {
    for (const [what, value] of Object.entries(outside)) {
      this.#outside.labels(name, what).set(value);
    }
    if (plain === null) return;
    const { learned, reports, reportsRefused, spoofed, overflow } = plain;
    const values = { learned, reports, reportsRefused, spoofed, overflow };
    for (const [what, value] of Object.entries(values)) this.#plain.labels(name, what).set(value);
    for (const state of LOOP_STATES) {
      this.#loop.labels(name, state).set(plain.loop === state ? 1 : 0);
    }
  }

  #fillPort(port: Status['ports'][number]): void {
    for (const [reason, value] of Object.entries(port.drops)) {
      this.#drops.labels(port.name, reason).inc(value);
    }
    for (const [name, value] of Object.entries(port.counters)) {
      this.#details.labels(port.name, name).inc(value);
    }
    for (const direction of DIRECTIONS) {
      this.#frames.labels(port.name, direction).inc(port[direction].frames);
      this.#bytes.labels(port.name, direction).inc(port[direction].bytes);
    }
    if (port.bootAgeMs !== null) this.#bootAge.labels(port.name).set(port.bootAgeMs / 1_000);
    this.#bootRenewals.labels(port.name).inc(port.bootRenewals);
    this.#fillPlain(port);
    for (const { net, pwId } of port.link?.nets ?? []) {
      const alive = port.peers.filter((peer) => peer.alive && peer.id.startsWith(`${net}/`));
      this.#nets.labels(port.name, net).set(pwId ?? 0);
      this.#netPorts.labels(port.name, net).set(alive.length);
    }
    const { bindings, claims, claimsRefused, claimsOver, reported } = port.guard;
    const guard = { bindings, claims, claimsRefused, claimsOver, reported };
    for (const [what, value] of Object.entries(guard))
      this.#guard.labels(port.name, what).set(value);
    for (const peer of port.peers) {
      this.#peers.labels(port.name, peer.state).inc();
      if (!this.#perPeer) continue;
      for (const direction of DIRECTIONS) {
        this.#peerFrames.labels(port.name, peer.id, direction).inc(peer[direction].frames);
        this.#peerBytes.labels(port.name, peer.id, direction).inc(peer[direction].bytes);
      }
      if (peer.pathMtu !== null) this.#peerMtu.labels(port.name, peer.id).set(peer.pathMtu);
      if (peer.rttMs !== null) this.#peerRtt.labels(port.name, peer.id).set(peer.rttMs / 1_000);
    }
  }
}

function each(counter: Counter, values: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(values)) counter.labels(name).inc(value);
}

/** A gauge without a value shows nothing rather than 0, which would be a claim. */
function setOrNothing(gauge: Gauge, value: number | null, divisor = 1): void {
  if (value === null) gauge.remove();
  else gauge.set(value / divisor);
}
