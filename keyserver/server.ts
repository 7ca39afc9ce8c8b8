/**
 * The key server: accepts channels, decides who may ask what (default deny), answers, and
 * owns the order of start and stop.
 *
 *   session opened -> who is it? (channel key, or a join token)
 *   request        -> schema -> table of rights -> handler -> answer, metric, log
 *   refusal        -> code for the asker, audit entry, metric
 */
import type { KeyObject } from 'node:crypto';
import { formatChannelAddress } from '../src/net/address.js';
import { type Answer, type ListenAddress, RequestError, type Session } from '../src/net/channel.js';
import { ChannelServer } from '../src/net/channel-server.js';
import { type Asker, maySend } from '../src/protocol/authorisation.js';
import type { KeyPair } from '../src/protocol/channel/keys.js';
import { GROUP_ID, type Id, typedId } from '../src/protocol/ids.js';
import type { MacAddress } from '../src/protocol/mac.js';
import { MAX_ROWS, type Request, requestSchema } from '../src/protocol/messages.js';
import { importPublic, publicOf } from '../src/protocol/public-keys.js';
import { TALKER_ROLES, type VerifiedMember, verifySettings } from '../src/protocol/records.js';
import type { Signed } from '../src/protocol/signed.js';
import { parseToken, tokenPsk } from '../src/protocol/token.js';
import { type Clock, ServerClock, SystemClock } from '../src/runtime/clock.js';
import { PairwireError } from '../src/runtime/errors.js';
import type { Logger } from '../src/runtime/log.js';
import { Metrics } from '../src/runtime/metrics.js';
import { RepeatedLines } from '../src/runtime/repeated-lines.js';
import { AuditLog } from './audit.js';
import { AuditIntake } from './audit-intake.js';
import { shareWitnesses } from './audit-shared.js';
import { AuditWitnesses, CONFIRMED } from './audit-witnesses.js';
import { Cascade } from './cascade/cascade.js';
import { SubnetTime } from './cascade/subnet-time.js';
import type { KeyServerConfig, OwnNet } from './config.js';
import { CurrentSettings } from './current-settings.js';
import { type ExchangeService, IdentityPairs } from './identity-pairs.js';
import type { KeyVault } from './key-vault.js';
import { GroupRekey } from './keys/group-rekey.js';
import { KeyRequests, requireOwn } from './keys/key-requests.js';
import { PutBack } from './keys/put-back.js';
import { Rekey } from './keys/rekey.js';
import { type ListView, readList } from './lists.js';
import type { NetChange } from './nets/net-change.js';
import { NetKeys } from './nets/net-keys.js';
import { NetLinks } from './nets/net-links.js';
import { NET_ASK_BURST, NET_ASKS_PER_SECOND } from './nets/net-ports.js';
import { NetReach } from './nets/net-reach.js';
import { NotFound, NotYet, Refusal, refusing } from './refusal.js';
import { Bindings } from './registry/bindings.js';
import { enrol, verifyStored } from './registry/enrol.js';
import { GuardReports } from './registry/guard-reports.js';
import { LiveSessions } from './registry/live-sessions.js';
import { PlainSide } from './registry/plain-side.js';
import { Presence, withSeen } from './registry/presence.js';
import { BootRegistry, type Registered } from './registry/register.js';
import { type Revoked, revoke, revokeServer } from './registry/revoke.js';
import { TokenBuckets } from './registry/token-bucket.js';
import { type RelayTickets, relayTickets } from './relay.js';
import { keyServerMetrics } from './server-metrics.js';
import type { Services } from './services.js';
import type { Member, Store } from './storage/store.js';
import { collect } from './sync/collect.js';
import { collectPlain } from './sync/collect-plain.js';
import { Hints, type HintTarget } from './sync/hints.js';

/** Time for a push to leave before the channel of a duplicate is closed. */
const FAREWELL_MS = 1_000;
const SWEEP_MS = 10_000;
/** Members that register at one time, from which on nothing is read ahead. */
const CROWD = 4;
/** Nobody is that many revocations ahead: a member that says so lies. */
const MAX_AHEAD = 1_000_000;
/** A gateway pings every 10 s; two missing and 5 s more, and its channel is dead (C9). */
const IDLE_TIMEOUT_MS = 25_000;
const REQUEST_TYPES: ReadonlySet<string> = new Set(
  requestSchema.options.map((option) => option.shape.t.value),
);

export interface KeyServerOptions {
  readonly store: Store;
  /** Its keys at rest; without it they can't be sealed anew. */
  readonly vault?: KeyVault;
  /** The KMS, for members' questions; without it nobody's identity is confirmed. */
  readonly kms?: ExchangeService;
  /** Where it accepts channels; port 0 takes a free one. */
  readonly listen: readonly ListenAddress[];
  /** Static keys of the channel. */
  readonly staticKeys: KeyPair;
  /** Key from which the secrets of join tokens are derived. */
  readonly tokenKey: Buffer;
  readonly auditKey: Buffer;
  /** What this subnet is to others; without it, its name and no prefixes. */
  readonly net?: OwnNet;
  /** The relay that members are told of. */
  readonly relay?: { readonly listen: string; readonly advertise: readonly string[] };
  /** Where the newest audit entry is noted. */
  readonly auditHeadFile?: string;
  /** Signs the heads of the audit log (Ed25519). */
  readonly auditSignKey: KeyObject;
  /** Where it is noted who has seen entries that the log does not have. */
  readonly auditWitnessFile?: string;
  readonly log: Logger;
  readonly metrics?: Metrics;
  readonly clock?: Clock;
  /** Each has a default. */
  readonly limits?: Partial<KeyServerConfig['limits']>;
  /** For tests. */
  readonly tuning?: {
    readonly offlineAfterMs?: number;
    readonly deadForMs?: number;
    readonly auditHeadMs?: number;
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
  readonly #byMember = new Map<string, Set<Peer>>();
  readonly #lines: RepeatedLines;
  readonly #live: LiveSessions<Peer>;
  readonly #boots: BootRegistry;
  readonly #keys: KeyRequests;
  readonly #hints: Hints;
  readonly #rekey: Rekey;
  readonly #presence: Presence;
  readonly #plain: PlainSide;
  readonly #bindings: Bindings;
  readonly #guard: GuardReports;
  readonly #relay: RelayTickets | undefined;
  /** Registrations under way, by member: stored as online, but not yet in `#live`. */
  readonly #registering = new Map<Id, number>();
  /** Members that are being revoked: nothing is said to them any more. */
  readonly #revoking = new Set<Id>();
  /** The highest revocation that a member knew and this server does not. */
  #ahead = 0;
  readonly #groups: GroupRekey;
  readonly #netKeys: NetKeys;
  readonly #netLinks: NetLinks;
  readonly #netReach: NetReach;
  readonly #cascade: Cascade;
  readonly #vault: KeyVault | undefined;
  readonly #identities: IdentityPairs;
  readonly #netAsks = new TokenBuckets(NET_ASK_BURST, NET_ASKS_PER_SECOND);
  readonly #putBack: PutBack;
  readonly #auditIntake: AuditIntake;
  readonly #witnesses: AuditWitnesses;
  readonly #sweeper: NodeJS.Timeout;
  #addresses: readonly ListenAddress[] = [];

  private constructor(options: KeyServerOptions, settings: CurrentSettings, operator: KeyObject) {
    const { store, log, tuning, limits = {} } = options;
    this.metrics = options.metrics ?? new Metrics();
    this.#vault = options.vault;
    const clock = options.clock ?? new SystemClock();
    const time = new SubnetTime(new ServerClock(clock));
    const now = (): number => time.now();
    const elapsed = (): number => clock.bootMs();
    const metrics = keyServerMetrics(this.metrics);
    this.#witnesses = new AuditWitnesses(options.auditWitnessFile);
    const audit = new AuditLog({
      store,
      server: store.meta.server,
      key: options.auditKey,
      now,
      log,
      signKey: options.auditSignKey,
      witnesses: this.#witnesses,
      headEveryMs: tuning?.auditHeadMs,
      onDropped: () => metrics.auditDropped.inc(),
      onHead: () => this.#hints.headSigned(),
      ...(options.auditHeadFile === undefined ? {} : { headFile: options.auditHeadFile }),
    });
    const { subnet, server } = store.meta;
    const net = options.net ?? { id: subnet, prefixes: [] };
    // What somebody took out of the database may be an address of a member: it must not go to a plain port.
    const knowsAll = (): boolean => this.#cascade.isComplete && (store.rows?.isWhole ?? true);
    const seek: Services['seek'] = (vlan, mac, asker) => this.#cascade.seek(vlan, mac, asker);
    this.#services = {
      ...{
        store,
        subnet,
        server,
        net,
        operator,
        settings,
        audit,
        metrics,
        log,
        now,
        elapsed,
        knowsAll,
        seek,
      },
    };
    const signPublic = publicOf(options.auditSignKey);
    this.#identities = new IdentityPairs(this.#services, {
      ...{ kms: options.kms, signKey: options.auditSignKey, clock: () => time.now() - time.offset },
      others: {
        carry: (home, carried) => this.#cascade.carry(home, carried),
        refused: (from, refusal) => this.#cascade.refuse(from, refusal),
        unanswered: (from, err) => this.#cascade.unanswered(from, err),
      },
    });
    this.#auditIntake = new AuditIntake(this.#services, this.#witnesses, signPublic);
    this.#lines = new RepeatedLines(log);
    this.#relay =
      options.relay === undefined
        ? undefined
        : relayTickets(options.relay, options.staticKeys, now);
    this.#live = new LiveSessions(tuning?.deadForMs);
    this.#hints = new Hints(this.#services, this.#live, () => this.#cascade.poke());
    this.#boots = new BootRegistry(this.#services);
    this.#rekey = new Rekey(this.#services, {
      isLive: (id) => this.#live.get(id) !== undefined,
      push: (to, pair) => this.#hints.pairChanged(to, pair),
      elsewhere: {
        isAround: (id) => this.#cascade.isAround(id),
        confirm: (pair, pwId) => this.#cascade.confirm(pair, pwId),
        worn: (pair) => this.#cascade.worn(pair),
      },
    });
    this.#groups = new GroupRekey(this.#services, {
      live: () => this.#liveMembers(),
      liveCount: () => this.#live.size,
      tellAll: () => this.#hints.groupChanged(),
      tell: (to) => this.#hints.groupChanged(to),
      elsewhere: {
        maker: () => (this.#cascade.isFirst ? undefined : this.#cascade.first),
        servers: () => this.#cascade.connected(),
        confirm: (pwId) => this.#cascade.confirmGroup(pwId),
        worn: (pwId) => this.#cascade.wornGroup(pwId),
      },
    });
    this.#cascade = new Cascade(this.#services, {
      ...{ secret: options.tokenKey, clock, time, awayAfterMs: tuning?.offlineAfterMs },
      tell: (id) => this.#tellServer(id, 'cascade'),
      isConnected: (id) => this.#isConnected(id),
      memberChanged: (id) => this.#hints.memberChanged(id),
      ownChanged: (mac) => this.#hints.ownChanged(mac),
      behindChanged: (vlan, mac) => this.#hints.behindChanged(vlan, mac),
      bindingChanged: (ip) => this.#hints.bindingChanged(ip),
      pairLearned: (pair) => this.#rekey.learned(pair),
      groupLearned: (group) => {
        this.#groups
          .learned(group)
          .catch((err: unknown) => log.warn({ err }, 'the group key was not looked after'));
      },
      revoke: async (id, from) => {
        await this.#takeOut(typedId('server', from), id);
      },
      refused: (from, refusal) => this.#note(typedId('server', from), refusal),
      maxMembers: limits.membersElsewhere,
      wanted: (asker, peer, make, worn) => this.#keys.forServer(asker, peer, make, worn),
      confirmed: (end, peer, pwId) => this.#rekey.confirm(end, [{ peer, pwId }]),
      groupConfirmed: (id, pwId) => this.#groups.confirmServer(id, pwId),
      groupWorn: (pwId) => this.#groups.wornOut(pwId),
      installSettings: (record, from) => this.#takeSettings(record, from),
      lookAt: (id, position, run) => this.#putBack.lookAt(typedId('server', id), position, run),
      run: () => this.#putBack.run,
      isDoubted: () => this.#putBack.isCertain(),
      held: (from, pairs, group) =>
        this.#putBack.heldElsewhere(typedId('server', from), pairs, group),
      becameFirst: async () => {
        await this.#groups.renew('operator', false);
      },
      answer: (from, ask) => this.#identities.forServer(from, ask),
    });
    this.#netLinks = new NetLinks(this.#services, {
      secret: options.tokenKey,
      clock,
      learn: (from, contact, answer, skewMs) => this.#netKeys.learn(from, contact, answer, skewMs),
      changed: (entry) => this.#netKeys.changed(entry),
      heard: (from) => this.#netReach.heard(from),
      lost: (from) => this.#netReach.lost(from),
    });
    this.#netReach = new NetReach(
      this.#services,
      (entry) => this.#netKeys.tellLinks(entry),
      tuning?.offlineAfterMs,
    );
    this.#netKeys = new NetKeys(this.#services, {
      tellLinks: (change) => this.#tellLinks(change),
      tellServer: (id) => this.#tellServer(id),
      confirmToMaker: (to, pwId) => this.#netLinks.confirm(to, pwId),
      askMakers: () => this.#netLinks.askAll(),
    });
    this.#putBack = new PutBack(this.#services, this.#rekey, this.#groups);
    this.#keys = new KeyRequests(
      this.#services,
      (to, about, pair) => this.#hints.introduce(to, about, pair),
      this.#rekey,
      this.#groups,
      { burst: limits.keyRequestBurst, perSecond: limits.keyRequestsPerSecond },
      this.#cascade,
    );
    this.#presence = new Presence(
      this.#services,
      (id) => this.#live.get(id) !== undefined || this.#registering.has(id),
      (id) => this.#memberChanged(id),
      tuning?.offlineAfterMs,
    );
    this.#plain = new PlainSide(
      this.#services,
      (vlan, mac) => this.#hints.behindChanged(vlan, mac),
      (mac) => this.#hints.ownChanged(mac),
    );
    this.#bindings = new Bindings(this.#services, (ip) => this.#hints.bindingChanged(ip));
    this.#guard = new GuardReports(this.#services);
    this.#channels = new ChannelServer<Request>({
      listen: options.listen,
      staticKeys: options.staticKeys,
      clock,
      time,
      authorise: async (key) => {
        const member = await store.memberByChannel(key);
        return member !== undefined && isOurs(member) && !this.#revoking.has(member.id);
      },
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
      limits: {
        idleTimeoutMs: IDLE_TIMEOUT_MS,
        ...(limits.connections === undefined ? {} : { maxConnections: limits.connections }),
        ...(limits.halfOpen === undefined ? {} : { maxHalfOpen: limits.halfOpen }),
        ...(limits.sessionsPerMember === undefined ? {} : { maxPerKey: limits.sessionsPerMember }),
      },
    });
    this.#watch();
    this.#sweeper = setInterval(() => {
      this.#live.sweep(elapsed());
      this.#plain
        .tick()
        .catch((err: unknown) => log.warn({ err }, 'addresses outside were not aged'));
      this.#bindings
        .tick()
        .catch((err: unknown) => log.warn({ err }, 'IP addresses were not aged'));
    }, SWEEP_MS);
    this.#sweeper.unref();
  }

  /** Starts a server on an open store. @throws PairwireError */
  static async start(options: KeyServerOptions): Promise<KeyServer> {
    const operator = importPublic('ed25519', options.store.meta.operator);
    const settings = await CurrentSettings.load(options.store, operator);
    const server = new KeyServer(options, settings, operator);
    await server.#cascade.load();
    await server.#shareWitnesses(options.auditSignKey);
    // Before anything is written behind a log that was cut while nobody looked.
    await server.#services.audit.noteHead();
    await server.#watchRows();
    await server.#putBack.begin();
    await server.#presence.resume();
    await server.#rekey.resume();
    await server.#groups.resume();
    server.#addresses = await server.#channels.listen();
    await server.#netReach.resume();
    await server.#netLinks.resume();
    server.#cascade.resume();
    const { subnet, server: id } = server.#services;
    const addresses = server.#addresses.map(formatChannelAddress);
    options.log.info({ subnet, server: id, addresses }, 'key server listens');
    return server;
  }

  /** What other machines of this database know of its audit log. */
  async #shareWitnesses(signKey: KeyObject): Promise<void> {
    const { store, subnet, server } = this.#services;
    const owner = { subnet, server, sign: publicOf(signKey) };
    const missing = await shareWitnesses(store, this.#witnesses, owner);
    if (missing.length === 0) return;
    await store.write(async (tx) => {
      for (const one of missing) await tx.putAuditWitness(server, one);
    });
  }

  /** Before anybody is served, each row of the database is what was written; what is not is told of. */
  async #watchRows(): Promise<void> {
    const { store, audit, log } = this.#services;
    const { rows } = store;
    if (rows === undefined) return;
    this.metrics.gauge(
      'keyserver_broken_rows',
      'Rows of the database, and sums over them, that are not what was written',
      [],
      (one) => one.set(rows.findings.length),
    );
    rows.onBroken = ({ table, name, why }) => {
      const row = name.replaceAll('\n', ' ');
      log.error(
        { table, row, why, hint: 'docs/operations.md, "A row that is not what was written"' },
        'a row in the database is not what was written there',
      );
      audit.note({
        actor: '-',
        action: 'row_broken',
        outcome: 'done',
        detail: { table, row, why },
      });
    };
    await rows.start((err) => log.warn({ err }, 'the rows of the database were not checked'));
  }

  /** Where it listens, in the order of the options. */
  get addresses(): readonly ListenAddress[] {
    return this.#addresses;
  }

  /** Members with a registered session. */
  get online(): number {
    return this.#live.size;
  }

  /** What is wrong although it serves: rows that are not what was written, and who has seen entries that the audit log lacks. */
  get alarms(): { readonly brokenRows: number; readonly auditContradictions: number } {
    return {
      brokenRows: this.#services.store.rows?.findings.length ?? 0,
      auditContradictions: this.#witnesses.all.length,
    };
  }

  /** Ends all sessions, writes what is still to be written. The store stays open. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    this.#rekey.close();
    this.#groups.close();
    this.#netKeys.close();
    this.#netLinks.close();
    this.#netReach.close();
    this.#cascade.close();
    this.#lines.close();
    this.#hints.close();
    this.#presence.close();
    await this.#channels.close();
    await this.#services.audit.close();
    await this.#services.store.rows?.close();
  }

  #elapsed(): number {
    const { now, elapsed = now } = this.#services;
    return elapsed();
  }

  #isConnected(id: string): boolean {
    return this.#byMember.has(id);
  }

  #opened(session: Session): void {
    this.#peers.set(session, new Peer(session));
    this.#services.log.debug({ address: session.remoteAddress }, 'a session begins');
  }

  #ended(session: Session, reason: string): void {
    const peer = this.#peers.get(session);
    this.#peers.delete(session);
    if (peer?.member === undefined) return;
    const others = this.#byMember.get(peer.member);
    others?.delete(peer);
    if (others?.size === 0) this.#byMember.delete(peer.member);
    this.#services.log.info({ member: peer.member, reason }, 'a session ended');
    if (peer.asker === 'server') this.#serverLeft(peer.member);
    if (this.#live.ended(peer.member, peer, this.#elapsed())) {
      this.#presence.left(peer.member);
    }
  }

  async #request(session: Session, request: Request): Promise<Answer> {
    const { metrics, log } = this.#services;
    const peer = this.#peers.get(session);
    if (peer === undefined) throw new RequestError('unavailable');
    const start = performance.now();
    let result = 'ok';
    try {
      if (peer.asker === undefined) await this.#identified(peer);
      const asker = peer.asker;
      if (asker === undefined || !maySend(asker, request.t)) {
        const who = asker ?? 'unknown';
        throw new Refusal('refused', 'role', `${who} may not send ${request.t}`, {
          role: who,
          type: request.t,
        });
      }
      const answer = await this.#handle(peer, request);
      // What sessions, settings and policy in memory have said counts only if no other key server has taken over meanwhile.
      if (request.t !== 'ping') await this.#services.store.prove();
      return answer;
    } catch (refused) {
      const thrown = isVerdict(refused) ? await this.#orUnproven(refused) : refused;
      if (thrown instanceof NotFound) {
        result = 'not_found';
        throw new RequestError('not_found');
      }
      if (thrown instanceof NotYet) {
        result = 'not_yet';
        throw new RequestError('not_yet');
      }
      if (thrown instanceof Refusal) {
        result = thrown.code;
        const server = peer.member === undefined ? undefined : this.#cascade.serverOf(peer.member);
        const actor =
          server === undefined ? (peer.member ?? peer.asker ?? '-') : typedId('server', server);
        this.#note(actor, thrown);
        const facts = { member: actor, reason: thrown.kind, ...thrown.facts };
        const line = 'a request was refused';
        if (server === undefined) log.info(facts, line);
        else this.#lines.warn(`${actor} ${thrown.kind}`, facts, line);
        throw new RequestError(thrown.code, thrown.message.slice(0, 200));
      }
      result = 'unavailable';
      // A broken seal or row was logged where it was found, once.
      if (thrown instanceof PairwireError && ['SEAL_BROKEN', 'ROW_BROKEN'].includes(thrown.code)) {
        throw new RequestError('unavailable');
      }
      if (thrown instanceof PairwireError && thrown.code === 'STORE_FAILED') {
        log.error({ err: thrown }, 'the store failed');
        throw new RequestError('unavailable');
      }
      throw thrown;
    } finally {
      metrics.latency.observe({ type: request.t }, (performance.now() - start) / 1_000);
      metrics.requests.inc({ type: request.t, result });
    }
  }

  /** A refusal, or why this server may not give it. */
  async #orUnproven(refusal: unknown): Promise<unknown> {
    try {
      await this.#services.store.prove();
      return refusal;
    } catch (thrown) {
      return thrown;
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
        return this.#endpoints(memberOf(peer), request);
      case 'key.mac':
        return this.#keys.byMac(memberOf(peer), request);
      case 'key.index':
        return this.#keys.byIndex(memberOf(peer), request);
      case 'key.confirm':
        await this.#rekey.confirm(memberOf(peer), request.pairs);
        if (request.group !== undefined) await this.#groups.confirm(memberOf(peer), request.group);
        if (request.nets !== undefined) await this.#confirmNets(peer, request.nets);
        return {};
      case 'key.notice':
        return this.#notice(memberOf(peer), request);
      case 'key.held':
        await this.#putBack.held(memberOf(peer), request);
        return {};
      case 'key.net': {
        const { requester, index, kid } = request;
        requireOwn(memberOf(peer), requester, { index, kid });
        if (!this.#netAsks.take(requester, now())) {
          throw new Refusal('limit', 'net_rate', 'too much about nets; wait', { id: requester });
        }
        await this.#compareNets();
        return {};
      }
      case 'net.sync':
        return this.#netSync(memberOf(peer), request);
      case 'net.confirm':
        await this.#netKeys.confirmedByServer(memberOf(peer), request.net, request.pwId);
        return {};
      case 'net.rekey':
        return {
          pwId: await this.#netKeys.renewForServer(memberOf(peer), request.net, request.force),
        };
      case 'net.end':
        await this.#netKeys.endedByServer(memberOf(peer), request.net);
        return {};
      case 'cascade.sync':
        return { word: await this.#cascade.sync(memberOf(peer), request.word) };
      case 'peer.add':
        return this.#addPeer(memberOf(peer), request);
      case 'peer.remove': {
        const { net } = request;
        const isAgreed = request.agreed === true;
        if (await this.#cascade.remove(memberOf(peer), net, isAgreed)) return {};
        return { told: await this.#netLinks.remove(memberOf(peer), net) };
      }
      case 'rekey':
        return this.#renew(memberOf(peer), request);
      case 'revoke':
        return this.#revoke(memberOf(peer), request.member);
      case 'restore.confirm':
        return this.#confirmRestore(memberOf(peer));
      case 'kms.status':
        return { ...(await this.#vaultOf().status()), ...this.alarms };
      case 'kms.rotate':
        return this.#rotateDek(memberOf(peer), request.root);
      case 'sync': {
        // Before the state is read: what changes from now on is pushed.
        peer.synced = true;
        return this.#sync(memberOf(peer), request);
      }
      case 'identity.get':
        return this.#identities.get(
          memberOf(peer),
          peer.session.remoteKey,
          request.ids,
          request.home,
        );
      case 'identity.put':
        // Whoever waits for it hears of the member once more.
        if (await this.#identities.put(memberOf(peer), request)) {
          this.#hints.memberChanged(memberOf(peer));
        }
        return {};
      case 'kms.exchange':
        return this.#identities.exchange(memberOf(peer), request.message, request.home);
      case 'learned':
        return { refused: await this.#plain.report(memberOf(peer), request) };
      case 'mac.pin': {
        const { vlan, mac, member } = request;
        await this.#plain.pin(memberOf(peer), vlan, mac, member);
        return {};
      }
      case 'mac.free':
        return this.#plain.free(memberOf(peer), request.mac);
      case 'bind':
        return { refused: await this.#bindings.report(memberOf(peer), request.entries) };
      case 'guarded':
        this.#guard.report(memberOf(peer), request.entries);
        return {};
      case 'ip.pin':
        await this.#bindings.pin(memberOf(peer), request);
        return {};
      case 'ip.free':
        return this.#bindings.free(memberOf(peer), request.ip);
      case 'list': {
        return { ...(await readList(this.#services, request.what, this.#view(), request)) };
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

  #vaultOf(): KeyVault {
    if (this.#vault === undefined) throw new RequestError('unsupported');
    return this.#vault;
  }

  async #rotateDek(actor: Id, root: boolean): Promise<Answer> {
    const { store, audit, log } = this.#services;
    let generation: number;
    try {
      generation = await this.#vaultOf().rotate(root);
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'KMS_FAILED') throw thrown;
      log.error({ err: thrown }, 'the KMS made no DEK');
      throw new RequestError('unavailable', 'the KMS does not make a DEK: see the log');
    }
    const detail = { root, generation };
    await store.write((tx) =>
      audit.append(tx, { actor, action: 'kms_rotate', outcome: 'done', detail }),
    );
    return { generation };
  }

  /** Both cursors are of one store. */
  async #sync(id: Id, request: Extract<Request, { t: 'sync' }>): Promise<Answer> {
    const { cursor, epoch, plain } = request;
    await this.#putBack.lookAt(id, { cursor, epoch }, request.run);
    const answer = await collect(this.#services, id, { cursor, epoch });
    const { head } = this.#services.audit;
    const audit = head === undefined ? {} : { audit: head };
    const batch = { ...answer, run: this.#putBack.run, ...audit };
    if (plain === undefined) return { ...batch };
    const known = epoch !== undefined && batch.epoch.equals(epoch);
    const room = MAX_ROWS - batch.changes.length;
    if (room === 0) return { ...batch, plain: known ? plain : 0, more: true };
    const outside = await collectPlain(this.#services, id, known ? plain : 0, room);
    if (outside === undefined) return { ...batch };
    return {
      ...batch,
      changes: [...batch.changes, ...outside.changes],
      plain: outside.cursor,
      more: batch.more || outside.more,
    };
  }

  async #notice(id: Id, request: Extract<Request, { t: 'key.notice' }>): Promise<Answer> {
    const { requester, index, pwId } = request;
    requireOwn(id, requester, { index });
    const peer = await this.#services.store.memberByIndex(index);
    if (peer === undefined || peer.id === id) throw new NotFound();
    if ((await this.#rekey.notice(id, peer.id, pwId)) === 'limited') {
      throw new Refusal('limit', 'notice_rate', 'too many notices; wait');
    }
    return {};
  }

  async #renew(actor: Id, request: Extract<Request, { t: 'rekey' }>): Promise<Answer> {
    const { store, audit } = this.#services;
    const { a, b, force, group, net } = request;
    if (net !== undefined) {
      if (a !== undefined || b !== undefined || group === true) throw new RequestError('malformed');
      return { pairs: 0, nets: await this.#renewNets(actor, net, force) };
    }
    if (group === true) {
      if (a !== undefined || b !== undefined) throw new RequestError('malformed');
      await store.write((tx) =>
        audit.append(tx, {
          actor,
          action: 'rekey',
          outcome: 'done',
          detail: { group: GROUP_ID, force },
        }),
      );
      return { pairs: 0, group: await this.#groups.renew('operator', force) };
    }
    const pairs = await this.#rekey.named(a, b);
    if (pairs.length === 0) throw new NotFound();
    if (a !== undefined && b !== undefined) {
      const maker = (await store.anyPair(a, b))?.maker;
      if (maker !== undefined) {
        const why = `the key of that pair is made by ${maker}: renew it there`;
        throw new Refusal('refused', 'cascade_home', why, { server: maker });
      }
    }
    const detail = { members: [a, b].filter((id) => id !== undefined), force, pairs: pairs.length };
    await store.write((tx) =>
      audit.append(tx, { actor, action: 'rekey', outcome: 'done', detail }),
    );
    return { pairs: await this.#rekey.renew(pairs, 'operator', force) };
  }

  /** Net keys made here are renewed, the makers of others are asked. @returns how many */
  async #renewNets(actor: Id, which: Id | true, force: boolean): Promise<number> {
    const { store, audit } = this.#services;
    const meant = (net: Id): boolean => which === true || which === net;
    const broken = (await store.anyNets()).flatMap((entry) =>
      'isBroken' in entry && meant(entry.net) ? [entry.net] : [],
    );
    const mended = broken.length === 0 ? [] : await this.#netKeys.mend(actor, broken);
    const nets = (await store.nets()).filter(
      ({ net, key }) => key !== undefined && meant(net) && !mended.includes(net),
    );
    if (nets.length === 0 && mended.length > 0) return mended.length;
    if (nets.length === 0) throw new NotFound();
    const detail = { nets: nets.map(({ net }) => net), force };
    await store.write((tx) =>
      audit.append(tx, { actor, action: 'rekey', outcome: 'done', detail }),
    );
    let done = 0;
    let failure: unknown;
    for (const { net, member } of nets) {
      try {
        if (member === undefined) await this.#netLinks.rekey(net, force);
        else await this.#netKeys.renew(net, 'operator', force);
        done += 1;
      } catch (thrown) {
        // The others are renewed all the same.
        failure = thrown;
      }
    }
    if (done === 0) throw failure;
    return done + mended.length;
  }

  async #netSync(id: Id, request: Extract<Request, { t: 'net.sync' }>): Promise<Answer> {
    const answer = await this.#netKeys.sync(id, request);
    this.#netReach.heard(request.net);
    return { ...answer };
  }

  /** Only who is told of net keys can have one. */
  async #confirmNets(
    peer: Peer,
    nets: readonly { readonly net: Id; readonly pwId: number }[],
  ): Promise<void> {
    if (peer.asker !== 'link')
      throw new Refusal('refused', 'role', 'only link ports have net keys');
    await this.#netKeys.confirmedByLink(memberOf(peer), nets);
  }

  /** The member's sessions end first, so that no answer or push that was made after it gets out. */
  async #revoke(actor: Id, id: Id): Promise<Answer> {
    const known = await this.#services.store.member(id);
    const named = this.#cascade.serverOf(id) ?? (isHere(known) ? undefined : id);
    if (named !== undefined && (await this.#isServer(named))) {
      return this.#revokeServer(actor, named);
    }
    const home = known?.home;
    if (home !== undefined) {
      const why = `${id} is at home at ${home}: revoke it there, or ${home} itself here`;
      throw new Refusal('refused', 'cascade_home', why, { id, server: home });
    }
    return this.#takeOut(actor, id);
  }

  /** Another key server of this subnet, or one of which members are still known. */
  async #isServer(id: Id): Promise<boolean> {
    const { store } = this.#services;
    return (await store.peerServer(id)) !== undefined || (await store.membersAt(id)).length > 0;
  }

  /** It had the keys of its members with ours, and nobody else can serve them: they are out with it. */
  async #revokeServer(actor: Id, server: Id): Promise<Answer> {
    const { store } = this.#services;
    const member = (await store.peerServer(server))?.member;
    if (member !== undefined) this.#revoking.add(member);
    try {
      if (member !== undefined) this.#endSessions(member);
      const out = await this.#cascade.dropping(server, () =>
        revokeServer(this.#services, this.#groups, actor, server),
      );
      for (const [id, revoked] of out) this.#tellRevoked(id, revoked);
      const { revocation } = await store.counters();
      return { number: revocation, fresh: true, server };
    } finally {
      if (member !== undefined) this.#revoking.delete(member);
    }
  }

  async #takeOut(actor: string, id: Id): Promise<Answer> {
    this.#revoking.add(id);
    try {
      if (actor !== id) this.#endSessions(id);
      const revoked = await revoke(this.#services, this.#groups, actor, id);
      this.#tellRevoked(id, revoked);
      return { number: revoked.number, fresh: revoked.fresh };
    } finally {
      this.#revoking.delete(id);
    }
  }

  #tellRevoked(id: Id, { fresh, behind, bindings, nets, wasLink }: Revoked): void {
    if (fresh) this.#hints.revoked(id);
    for (const { vlan, mac } of behind) this.#hints.behindChanged(vlan, mac);
    for (const ip of bindings) this.#hints.bindingChanged(ip);
    for (const net of nets) this.#netKeys.changed(net);
    // Which keys are owed to us now, the store knows.
    if (wasLink) this.#netLinks.askAll();
  }

  /** A server that was put back knows fewer revocations than its members, and must not undo them. */
  async #notRestored(id: Id, known: number): Promise<void> {
    const { store, log } = this.#services;
    const { revocation, putBack } = await store.counters();
    if (known <= revocation) return;
    if (known - revocation > MAX_AHEAD) {
      throw new Refusal('refused', 'register_record', 'no such revocation', { id });
    }
    this.#ahead = Math.max(this.#ahead, known);
    // Once: who is refused comes again.
    if (!putBack) await store.write((tx) => tx.setPutBack(true));
    await this.#putBack.claim(id);
    log.error(
      { member: id, known, revocation },
      'a member knows of more revocations than this database: it was put back',
    );
    throw new Refusal(
      'not_yet',
      'restored',
      'this key server was put back; its operator must confirm',
      {
        known,
        revocation,
      },
    );
  }

  async #confirmRestore(actor: Id): Promise<Answer> {
    const { store, audit, server, now } = this.#services;
    const ahead = this.#ahead;
    const at = now();
    const wasCertain = await this.#putBack.isCertain();
    const seen = this.#witnesses.all.map(({ witness, seq }) => `${seq} ${witness}`);
    await store.write(async (tx) => {
      if (wasCertain) await this.#cascade.confirming(tx);
      await tx.raiseRevocation(ahead);
      await tx.setPutBack(false);
      await audit.append(tx, {
        actor,
        action: 'restore_confirm',
        outcome: 'done',
        detail: { revocation: ahead, ...(seen.length === 0 ? {} : { seen }) },
      });
      // Whoever takes over knows of it by a head that says so.
      await tx.clearAuditWitnesses(server);
      const last = await tx.lastAudit(server);
      const record = last === undefined ? undefined : audit.headAt(last, at);
      if (record !== undefined)
        await tx.putAuditWitness(server, { witness: CONFIRMED, record, at });
    });
    this.#witnesses.settle(at);
    await audit.noteHead();
    if (wasCertain) this.#cascade.confirmed();
    return { revocation: (await store.counters()).revocation };
  }

  *#liveMembers(): Iterable<Id> {
    for (const [name] of this.#live.all()) yield name as Id;
  }

  /** What lists show of the moment. */
  #view(): ListView {
    return {
      isLive: (id) => this.#live.get(id) !== undefined,
      isConnected: (id) => this.#isConnected(id),
      link: (net) => this.#netLinks.state(net),
      server: (id) => this.#cascade.state(id),
    };
  }

  /** A hint: who misses it has the same by its next sync. */
  #tellLinks(change: NetChange): void {
    const { epoch } = this.#services.store.meta;
    for (const [, peer] of this.#live.all()) {
      if (peer.asker !== 'link' || !peer.synced) continue;
      peer.push({ t: 'changes', epoch, changes: [change] }, `net ${change.net}`);
    }
  }

  /** Tells whom it concerns; of a link port also the key servers of other subnets. */
  #memberChanged(id: Id): void {
    this.#hints.memberChanged(id);
    const { store, log } = this.#services;
    store
      .member(id)
      .then((member) => (member?.role === 'link' ? this.#compareNets() : undefined))
      .catch((err: unknown) => log.warn({ err }, 'other key servers were not told of a link port'));
  }

  /** The key server of another subnet has no session here any more, or another one. */
  #serverLeft(id: Id): void {
    if (this.#isConnected(id)) return;
    this.#cascade.left(id);
    this.#netReach
      .lostServer(id)
      .catch((err: unknown) => this.#services.log.warn({ err }, 'the nets could not be read'));
  }

  /** Asks those whom we ask, and has the others ask us: what either does not know of the other is told with it. */
  async #compareNets(): Promise<void> {
    this.#netLinks.askAll();
    for (const { member } of await this.#services.store.nets()) {
      if (member !== undefined) this.#tellServer(member);
    }
  }

  #tellServer(id: Id, what: 'net' | 'cascade' = 'net'): void {
    for (const peer of this.#byMember.get(id) ?? []) peer.push({ t: what }, what);
  }

  /** A token says itself for what it is. */
  async #addPeer(actor: Id, request: Extract<Request, { t: 'peer.add' }>): Promise<Answer> {
    const { token, prefixes = [] } = request;
    if (isCascadeToken(token)) {
      return { net: this.#services.net.id, ...(await this.#cascade.add(actor, token)) };
    }
    if (prefixes.length === 0) {
      throw new Refusal('malformed', 'peer_token', 'say which prefixes are behind the other net');
    }
    return { ...(await this.#netLinks.add(actor, token, prefixes)) };
  }

  /** Settings that another key server has: newer ones hold here, too. */
  async #takeSettings(record: Signed, from: Id): Promise<void> {
    const { store, settings, now, operator, subnet, audit } = this.#services;
    const { version } = refusing('settings_record', () =>
      verifySettings(subnet, record, operator, 0),
    );
    if (version <= settings.settings.version) return;
    const { changed } = await settings.install(store, record, now(), (tx, installed) =>
      audit.append(tx, {
        ...{ actor: typedId('server', from), action: 'settings', outcome: 'done' },
        detail: { version: installed },
      }),
    );
    if (changed) this.#hints.settingsChanged();
  }

  #endSessions(id: Id, except?: Peer): void {
    for (const peer of [...(this.#byMember.get(id) ?? [])]) {
      if (peer !== except) peer.session.close();
    }
  }

  /** With a receipt of the relay, the address that it saw comes first. */
  async #endpoints(id: Id, request: Extract<Request, { t: 'endpoints' }>): Promise<Answer> {
    const { endpoints, receipt } = request;
    const index = (await this.#services.store.member(id))?.boot?.index;
    const registered = this.#relay !== undefined && index !== undefined;
    const seen = registered && receipt !== undefined ? this.#relay.seen(index, receipt) : undefined;
    await this.#presence.setEndpoints(id, withSeen(seen, endpoints));
    return registered ? { relay: this.#relay.offer(index) } : {};
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
    if (member === undefined || !isOurs(member) || this.#revoking.has(member.id)) return;
    this.#becomes(peer, member);
  }

  #becomes(peer: Peer, member: Member): void {
    peer.asker = member.role;
    peer.member = member.id;
    // One whose session ended meanwhile is not there.
    if (!this.#peers.has(peer.session)) return;
    const peers = this.#byMember.get(member.id) ?? new Set();
    this.#byMember.set(member.id, peers.add(peer));
  }

  async #enrol(peer: Peer, request: Extract<Request, { t: 'enrol' }>): Promise<Answer> {
    const { log, store } = this.#services;
    const { verified, fresh, bindings, behind, nets, wasLink } = await enrol(
      this.#services,
      peer.session,
      request.membership,
    );
    const member = await store.member(verified.id);
    if (member !== undefined) this.#becomes(peer, member);
    peer.verified = verified;
    if (verified.grant.server !== undefined) await this.#cascade.enrolled(verified.grant.server);
    for (const { vlan, mac } of behind) this.#hints.behindChanged(vlan, mac);
    if (fresh) {
      log.info({ member: verified.id, role: verified.role }, 'a member enrolled');
      if (TALKER_ROLES.includes(verified.role)) {
        this.#memberChanged(verified.id);
        for (const mac of verified.macs) {
          this.#hints.ownChanged(mac);
          for (const { vlan } of await store.learnedAt(mac)) this.#hints.behindChanged(vlan, mac);
        }
      }
      for (const ip of bindings) this.#hints.bindingChanged(ip);
      for (const net of nets) this.#netKeys.changed(net);
      if (wasLink && verified.role !== 'link') await this.#compareNets();
      // Channel key, role and addresses may be others now: sessions that began under the old grant end.
      this.#endSessions(verified.id, peer);
    }
    return { member: verified.id };
  }

  async #register(peer: Peer, request: Extract<Request, { t: 'register' }>): Promise<Answer> {
    const { store, settings, log } = this.#services;
    const id = memberOf(peer);
    const instance = {
      machine: Buffer.from(request.machine),
      nonce: Buffer.from(request.nonce),
    };
    await this.#waitForTurn(peer, id, instance);
    const shown = request.audit === undefined ? {} : await this.#lookAtHead(id, request.audit);
    await this.#notRestored(id, request.revocation ?? 0);
    const member = await store.member(id);
    if (member?.state !== 'active') throw new Refusal('refused', 'unknown_member', 'not a member');
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
      this.#memberChanged(id);
    }
    void this.#readAhead(peer.verified.macs);
    const sealed = (await store.identityPair(id)) !== undefined;
    const { record } = settings.inForce;
    return { index, tag: store.meta.tag, settings: record, sealed, ...shown };
  }

  /**
   * Reads who has these addresses, so that whoever is the first to ask does not wait for it (0.6 ms of a first ping). Not while many register
   * together: their questions come first.
   */
  async #readAhead(macs: readonly MacAddress[]): Promise<void> {
    if (this.#registering.size >= CROWD) return;
    try {
      for (const mac of macs) await this.#services.store.memberByMac(mac);
    } catch {
      // Whoever asks for it reads it.
    }
  }

  /** Whatever is wrong with it, the member is served: its traffic must not hang on the log. */
  async #lookAtHead(id: Id, record: Signed): Promise<{ readonly audit?: Signed }> {
    try {
      const audit = await this.#auditIntake.look(id, record);
      return audit === undefined ? {} : { audit };
    } catch (thrown) {
      if (thrown instanceof Refusal) this.#note(id, thrown);
      else this.#services.log.warn({ err: thrown }, 'a head of the audit log was not looked at');
      return {};
    }
  }

  /** @throws Refusal for the second of two live sessions of one id */
  async #waitForTurn(
    peer: Peer,
    id: Id,
    instance: { readonly machine: Buffer; readonly nonce: Buffer },
  ): Promise<void> {
    const { log, store } = this.#services;
    const since = this.#elapsed();
    let probed = false;
    for (;;) {
      const verdict = this.#live.judge(
        id,
        peer,
        instance,
        this.#elapsed(),
        this.#elapsed() - since,
      );
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
        // Says nothing, but the kernel of a machine that was restarted resets the connection; on
        // datagrams the channel itself asks.
        const before = this.#live.get(id);
        before?.push({ t: 'changes', epoch: store.meta.epoch, changes: [] });
        before?.session.probe();
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
    gauge(
      'keyserver_clock_skew_ms',
      'Largest difference to the clock of another key server',
      () => {
        return this.#cascade.skewMs;
      },
    );
    metrics.gauge(
      'keyserver_members_elsewhere',
      'Members of another key server, revoked ones included, as far as they were counted',
      ['server'],
      (it) => {
        for (const [server, count] of this.#cascade.membersElsewhere) it.set({ server }, count);
      },
    );
    gauge('keyserver_audit_head', 'Newest entry of the audit log that members are told of', () => {
      return this.#services.audit.headSeq;
    });
    gauge('keyserver_audit_contradictions', 'Who has seen entries that the audit log lacks', () => {
      return this.#witnesses.all.length;
    });
    gauge('channel_half_open', 'Handshakes not confirmed yet', () => counters.halfOpen);
    gauge('channel_handshake_queue', 'Handshakes that wait for their thread', () => {
      return counters.handshakeQueue;
    });
    gauge('channel_reassembly_bytes', 'Bytes kept out of order', () => counters.reassembly);
    gauge('channel_cookies', 'Cookies sent since the start', () => counters.cookies);
    gauge('channel_resets', 'Resets sent since the start', () => counters.resets);
    gauge('channel_paused', 'Times that nothing was read of a peer with too much open', () => {
      return counters.paused;
    });
    metrics.gauge('channel_forgotten', 'Forgotten for want of room, by what', ['what'], (it) => {
      for (const [what, count] of Object.entries(counters.forgotten)) it.set({ what }, count);
    });
    metrics.gauge('channel_discarded', 'Datagrams thrown away by reason', ['reason'], (it) => {
      for (const [reason, count] of Object.entries(counters.discarded)) it.set({ reason }, count);
    });
    metrics.gauge('channel_closed', 'Ended connections by reason', ['reason'], (it) => {
      for (const [reason, count] of Object.entries(counters.closed)) it.set({ reason }, count);
    });
  }
}

/** Whom we serve: an active member that is at home here. */
function isOurs(member: Member): boolean {
  return member.state === 'active' && member.home === undefined;
}

/** Whether it is a member of ours, so that a server elsewhere can't hide behind its id. */
function isHere(member: Member | undefined): boolean {
  return member !== undefined && member.home === undefined;
}

/** What a member is told of the state of things, as opposed to a failure. */
function isVerdict(thrown: unknown): boolean {
  return thrown instanceof NotFound || thrown instanceof NotYet || thrown instanceof Refusal;
}

function isCascadeToken(text: string): boolean {
  try {
    return parseToken(text).cascade !== undefined;
  } catch {
    return false;
  }
}

function memberOf(peer: Peer): Id {
  if (peer.member === undefined) {
    throw new PairwireError('REFUSED', 'a session without a member');
  }
  return peer.member;
}
