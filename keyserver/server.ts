/**
 * The key server: accepts channels, decides who may ask what (default deny), answers, and
 * owns the order of start and stop.
 *
 *   session opened -> who is it? (channel key, or a join token)
 *   request        -> schema -> table of rights -> handler -> answer, metric, log
 *   refusal        -> code for the asker, audit entry, metric
 */
import type { KeyObject } from 'node:crypto';
import { type Answer, ChannelServer, RequestError, type Session } from '../src/net/channel-tcp.js';
import { type Asker, maySend } from '../src/protocol/authorisation.js';
import type { KeyPair } from '../src/protocol/channel/keys.js';
import type { Id } from '../src/protocol/ids.js';
import { type Request, requestSchema } from '../src/protocol/messages.js';
import { importPublic } from '../src/protocol/public-keys.js';
import { TALKER_ROLES, type VerifiedMember } from '../src/protocol/records.js';
import { tokenPsk } from '../src/protocol/token.js';
import { type Clock, ServerClock, SystemClock } from '../src/runtime/clock.js';
import { PairwireError } from '../src/runtime/errors.js';
import type { Logger } from '../src/runtime/log.js';
import { Metrics } from '../src/runtime/metrics.js';
import { AuditLog } from './audit.js';
import { CurrentSettings } from './current-settings.js';
import { KeyRequests, NotFound } from './keys/key-requests.js';
import { readList } from './lists.js';
import { Refusal } from './refusal.js';
import { enrol, verifyStored } from './registry/enrol.js';
import { LiveSessions } from './registry/live-sessions.js';
import { Presence } from './registry/presence.js';
import { BootRegistry, type Registered } from './registry/register.js';
import { keyServerMetrics } from './server-metrics.js';
import type { Services } from './services.js';
import type { Member, Store } from './storage/store.js';
import { collect } from './sync/collect.js';
import { Hints, type HintTarget } from './sync/hints.js';

/** Time for a push to leave before the channel of a duplicate is closed. */
const FAREWELL_MS = 1_000;
const SWEEP_MS = 10_000;
/** A gateway pings every 10 s; two missing and 5 s more, and its channel is dead (C9). */
const IDLE_TIMEOUT_MS = 25_000;
const REQUEST_TYPES: ReadonlySet<string> = new Set(
  requestSchema.options.map((option) => option.shape.t.value),
);

export interface KeyServerOptions {
  readonly store: Store;
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
  /** Static keys of the channel. */
  readonly staticKeys: KeyPair;
  /** Key from which the secrets of join tokens are derived. */
  readonly tokenKey: Buffer;
  readonly auditKey: Buffer;
  /** Where the newest audit entry is noted. */
  readonly auditHeadFile?: string;
  readonly log: Logger;
  readonly metrics?: Metrics;
  readonly clock?: Clock;
  /** For tests and the benchmark. */
  readonly tuning?: {
    readonly offlineAfterMs?: number;
    readonly deadForMs?: number;
    readonly lookups?: { readonly burst: number; readonly perSecond: number };
  };
}

/** What the server knows of one session. */
class Peer implements HintTarget {
  readonly session: Session;
  asker: Asker | undefined;
  member: Id | undefined;
  /** Settles when `asker` is known. */
  identified: Promise<void> | undefined;
  verified: VerifiedMember | undefined;
  synced = false;
  readonly introduced = new Map<Id, number>();

  constructor(session: Session) {
    this.session = session;
  }

  push(message: { readonly t: string; readonly [key: string]: unknown }, key?: string): void {
    this.session.push(message, key === undefined ? {} : { key });
  }
}

/** One key server of one subnet. */
export class KeyServer {
  readonly metrics: Metrics;
  readonly #services: Services;
  readonly #channels: ChannelServer<Request>;
  readonly #peers = new Map<Session, Peer>();
  readonly #live: LiveSessions<Peer>;
  readonly #boots: BootRegistry;
  readonly #keys: KeyRequests;
  readonly #hints: Hints;
  readonly #presence: Presence;
  /** Registrations under way, by member: stored as online, but not yet in `#live`. */
  readonly #registering = new Map<Id, number>();
  readonly #sweeper: NodeJS.Timeout;
  #address = { host: '', port: 0 };

  private constructor(options: KeyServerOptions, settings: CurrentSettings, operator: KeyObject) {
    const { store, log, tuning } = options;
    this.metrics = options.metrics ?? new Metrics();
    const clock = options.clock ?? new SystemClock();
    const time = new ServerClock(clock);
    const now = (): number => time.now();
    const metrics = keyServerMetrics(this.metrics);
    const audit = new AuditLog({
      store,
      server: store.meta.server,
      key: options.auditKey,
      now,
      log,
      onDropped: () => metrics.auditDropped.inc(),
      ...(options.auditHeadFile === undefined ? {} : { headFile: options.auditHeadFile }),
    });
    const { subnet, server } = store.meta;
    this.#services = { store, subnet, server, operator, settings, audit, metrics, log, now };
    this.#live = new LiveSessions(tuning?.deadForMs);
    this.#hints = new Hints(this.#services, this.#live);
    this.#boots = new BootRegistry(this.#services);
    this.#keys = new KeyRequests(
      this.#services,
      (to, about, pair) => this.#hints.introduce(to, about, pair),
      tuning?.lookups,
    );
    this.#presence = new Presence(
      this.#services,
      (id) => this.#live.get(id) !== undefined || this.#registering.has(id),
      (id) => this.#hints.memberChanged(id),
      tuning?.offlineAfterMs,
    );
    this.#channels = new ChannelServer<Request>({
      host: options.host,
      port: options.port,
      staticKeys: options.staticKeys,
      clock,
      time,
      authorise: async (key) => (await store.memberByChannel(key)) !== undefined,
      psk: (tokenId) => tokenPsk(options.tokenKey, tokenId),
      types: REQUEST_TYPES,
      parse: (message) => requestSchema.parse(message),
      onSession: (session) => this.#opened(session),
      onSessionEnd: (session, reason) => this.#ended(session, reason),
      onRequest: (session, request) => this.#request(session, request),
      onClose: ({ address, reason }) => {
        if (reason !== 'unknown_key') return;
        const host = address.slice(0, address.lastIndexOf(':'));
        this.#note('-', new Refusal('refused', 'channel_unknown', reason, { address: host }));
      },
      onError: (err) => log.error({ err }, 'a request failed'),
      limits: { idleTimeoutMs: IDLE_TIMEOUT_MS },
    });
    this.#watch();
    this.#sweeper = setInterval(() => this.#live.sweep(now()), SWEEP_MS);
    this.#sweeper.unref();
  }

  /** Starts a server on an open store. @throws PairwireError */
  static async start(options: KeyServerOptions): Promise<KeyServer> {
    const operator = importPublic('ed25519', options.store.meta.operator);
    const settings = await CurrentSettings.load(options.store, operator);
    const server = new KeyServer(options, settings, operator);
    await server.#presence.resume();
    server.#address = await server.#channels.listen();
    options.log.info(
      { subnet: server.#services.subnet, server: server.#services.server, ...server.#address },
      'key server listens',
    );
    return server;
  }

  /** Where it listens. */
  get address(): { readonly host: string; readonly port: number } {
    return this.#address;
  }

  /** Members with a registered session. */
  get online(): number {
    return [...this.#live.all()].length;
  }

  /** Ends all sessions, writes what is still to be written. The store stays open. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    this.#hints.close();
    this.#presence.close();
    await this.#channels.close();
    await this.#services.audit.close();
  }

  #opened(session: Session): void {
    this.#peers.set(session, new Peer(session));
    this.#services.log.debug({ address: session.remoteAddress }, 'a session begins');
  }

  #ended(session: Session, reason: string): void {
    const peer = this.#peers.get(session);
    this.#peers.delete(session);
    if (peer?.member === undefined) return;
    this.#services.log.info({ member: peer.member, reason }, 'a session ended');
    if (this.#live.ended(peer.member, peer, this.#services.now())) {
      this.#presence.left(peer.member);
    }
  }

  async #request(session: Session, request: Request): Promise<Answer> {
    const { metrics, log } = this.#services;
    const peer = this.#peers.get(session);
    if (peer === undefined) throw new RequestError('unavailable');
    const end = metrics.latency.startTimer({ type: request.t });
    let result = 'ok';
    try {
      await this.#identified(peer);
      const asker = peer.asker;
      if (asker === undefined || !maySend(asker, request.t)) {
        const who = asker ?? 'unknown';
        throw new Refusal('refused', 'role', `${who} may not send ${request.t}`, {
          role: who,
          type: request.t,
        });
      }
      return await this.#handle(peer, request);
    } catch (thrown) {
      if (thrown instanceof NotFound) {
        result = 'not_found';
        throw new RequestError('not_found');
      }
      if (thrown instanceof Refusal) {
        result = thrown.code;
        const actor = peer.member ?? peer.asker ?? '-';
        this.#note(actor, thrown);
        log.info({ member: actor, reason: thrown.kind, ...thrown.facts }, 'a request was refused');
        throw new RequestError(thrown.code, thrown.message.slice(0, 200));
      }
      result = 'unavailable';
      if (thrown instanceof PairwireError && thrown.code === 'STORE_FAILED') {
        log.error({ err: thrown }, 'the store failed');
        throw new RequestError('unavailable');
      }
      throw thrown;
    } finally {
      end();
      metrics.requests.inc({ type: request.t, result });
    }
  }

  async #handle(peer: Peer, request: Request): Promise<Answer> {
    const { store, settings, now } = this.#services;
    switch (request.t) {
      case 'ping':
        return { time: now() };
      case 'enrol':
        return this.#enrol(peer, request);
      case 'register':
        return this.#register(peer, request);
      case 'endpoints':
        await this.#presence.setEndpoints(memberOf(peer), request.endpoints);
        return {};
      case 'key.mac':
        return this.#keys.byMac(memberOf(peer), request);
      case 'key.index':
        return this.#keys.byIndex(memberOf(peer), request);
      case 'sync': {
        // Before the state is read: what changes from now on is pushed.
        peer.synced = true;
        const batch = await collect(this.#services, memberOf(peer), {
          cursor: request.cursor,
          epoch: request.epoch,
        });
        return { ...batch };
      }
      case 'list': {
        const isLive = (id: string): boolean => this.#live.get(id) !== undefined;
        return { ...(await readList(this.#services, request.what, isLive, request)) };
      }
      case 'settings.set': {
        const actor = memberOf(peer);
        const { version, changed } = await settings.install(
          store,
          request.settings,
          now(),
          (tx, installed) =>
            this.#services.audit.append(tx, {
              actor,
              action: 'settings',
              outcome: 'done',
              detail: { version: installed },
            }),
        );
        if (changed) this.#hints.settingsChanged();
        return { version };
      }
    }
  }

  /** A failure of the store is not remembered, or the session would be nobody for ever. */
  async #identified(peer: Peer): Promise<void> {
    peer.identified ??= this.#identify(peer);
    try {
      await peer.identified;
    } catch (thrown) {
      peer.identified = undefined;
      throw thrown;
    }
  }

  async #identify(peer: Peer): Promise<void> {
    const { session } = peer;
    if (session.tokenId !== undefined) {
      peer.asker = 'joining';
      return;
    }
    const member = await this.#services.store.memberByChannel(session.remoteKey);
    if (member !== undefined) this.#becomes(peer, member);
  }

  #becomes(peer: Peer, member: Member): void {
    peer.asker = member.role;
    peer.member = member.id;
  }

  async #enrol(peer: Peer, request: Extract<Request, { t: 'enrol' }>): Promise<Answer> {
    const { log, store } = this.#services;
    const { verified, fresh } = await enrol(this.#services, peer.session, request.membership);
    const member = await store.member(verified.id);
    if (member !== undefined) this.#becomes(peer, member);
    peer.verified = verified;
    if (fresh) {
      log.info({ member: verified.id, role: verified.role }, 'a member enrolled');
      if (TALKER_ROLES.includes(verified.role)) this.#hints.memberChanged(verified.id);
      this.#endOthers(peer, verified.id);
    }
    return { member: verified.id };
  }

  /** Channel key, role and addresses may be others now: sessions that began under the old grant end. */
  #endOthers(peer: Peer, id: Id): void {
    for (const other of this.#peers.values()) {
      if (other !== peer && other.member === id) other.session.close();
    }
  }

  async #register(peer: Peer, request: Extract<Request, { t: 'register' }>): Promise<Answer> {
    const { store, settings, log } = this.#services;
    const id = memberOf(peer);
    const instance = {
      machine: Buffer.from(request.machine),
      nonce: Buffer.from(request.nonce),
    };
    await this.#waitForTurn(peer, id, instance);
    const member = await store.member(id);
    if (member === undefined) throw new Refusal('refused', 'unknown_member', 'not a member');
    peer.verified ??= verifyStored(this.#services, member);
    this.#registering.set(id, (this.#registering.get(id) ?? 0) + 1);
    let registered: Registered;
    try {
      registered = await this.#boots.register(peer.verified, request.boot);
      if (!peer.session.closed) this.#live.take(id, peer, instance)?.session.close();
    } finally {
      const left = (this.#registering.get(id) ?? 1) - 1;
      if (left === 0) this.#registering.delete(id);
      else this.#registering.set(id, left);
      // Refused, or the session ended meanwhile and nobody else notices that.
      if (left === 0 && this.#live.get(id) === undefined) this.#presence.left(id);
    }
    const { index, changed } = registered;
    if (peer.session.closed) throw new RequestError('unavailable');
    if (changed) {
      log.info({ member: id, index, address: peer.session.remoteAddress }, 'a member registered');
      this.#hints.memberChanged(id);
    }
    return { index, tag: store.meta.tag, settings: settings.inForce.record };
  }

  /** @throws Refusal for the second of two live sessions of one id */
  async #waitForTurn(
    peer: Peer,
    id: Id,
    instance: { readonly machine: Buffer; readonly nonce: Buffer },
  ): Promise<void> {
    const { now, log, store } = this.#services;
    const since = now();
    let probed = false;
    for (;;) {
      const verdict = this.#live.judge(id, peer, instance, now(), now() - since);
      if (verdict.kind === 'take') return;
      if (verdict.kind === 'duplicate') {
        log.warn(
          { member: id, address: peer.session.remoteAddress },
          'a second live session of one id: a cloned disk?',
        );
        peer.push({ t: 'duplicate' });
        setTimeout(() => peer.session.close(), FAREWELL_MS).unref();
        throw new Refusal('refused', 'register_duplicate', 'this id has another live session', {
          address: peer.session.remoteAddress,
        });
      }
      if (!probed) {
        probed = true;
        // Says nothing, but the kernel of a machine that was restarted resets the connection.
        this.#live.get(id)?.push({ t: 'changes', epoch: store.meta.epoch, changes: [] });
      }
      await new Promise((resolve) => setTimeout(resolve, verdict.ms));
      if (peer.session.closed) throw new RequestError('unavailable');
    }
  }

  #note(actor: string, refusal: Refusal): void {
    this.#services.metrics.refusals.inc({ kind: refusal.kind });
    this.#services.audit.refused(actor, refusal);
  }

  #watch(): void {
    const { counters } = this.#channels;
    const { metrics } = this;
    const gauge = (name: string, help: string, read: () => number): void => {
      metrics.gauge(name, help, [], (it) => it.set(read()));
    };
    gauge('channel_connections', 'Connections now', () => counters.connections);
    gauge('channel_sessions', 'Sessions now', () => counters.sessions);
    gauge('channel_handshakes', 'Handshakes since the start', () => counters.established);
    gauge('channel_renewals', 'Renewed channel keys since the start', () => counters.renewals);
    gauge('keyserver_members_online', 'Members with a registered session', () => this.online);
    metrics.gauge('channel_closed', 'Ended connections by reason', ['reason'], (it) => {
      for (const [reason, count] of Object.entries(counters.closed)) it.set({ reason }, count);
    });
  }
}

function memberOf(peer: Peer): Id {
  if (peer.member === undefined) {
    throw new PairwireError('REFUSED', 'a session without a member');
  }
  return peer.member;
}
