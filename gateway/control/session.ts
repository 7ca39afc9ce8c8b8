/**
 * What this gateway says to its key server, over a channel that reconnects by itself.
 *
 *   channel open and boot key made -> register -> endpoints -> sync ... sync every 30 s
 *
 * The loop is level-triggered: it compares what was told with what is true, so a lost push, a
 * reconnect, a new boot key and a new address all lead to the same few requests. Pushes are
 * hints; `sync` with a cursor is what counts (threats.md M18), and only it renews the lease.
 */
import { createHash, type KeyObject, randomBytes } from 'node:crypto';
import { setImmediate as yieldToOthers } from 'node:timers/promises';
import { type Message, RequestError } from '../../src/net/channel.js';
import type { ClientState } from '../../src/net/channel-client.js';
import { LABEL } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { BROADCAST_MAC, type MacAddress } from '../../src/protocol/mac.js';
import {
  answerSchemas,
  type Behind,
  type Change,
  type Endpoint,
  type Guarded,
  type IpBinding,
  type KeyAnswer,
  MAX_ROWS,
  pushSchema,
  type RelayOffer,
} from '../../src/protocol/messages.js';
import type { Settings, VerifiedMember } from '../../src/protocol/records.js';
import { type Signed, signRecord } from '../../src/protocol/signed.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { Bindings } from '../guard/bindings.js';
import type { PeerEntry, PeerTable } from '../key-table/peer-table.js';
import type { Verifier } from '../key-table/verifier.js';
import type { NetTable } from '../link/net-table.js';
import type { Outside } from '../plain/outside.js';
import type { Report } from '../plain/reporter.js';
import type { AuditHeads } from './audit-heads.js';
import type { Identities } from './identities.js';
import type { Outcome, Question } from './misses.js';
import type { IdentityServer } from './peer-questions.js';
import { Wake } from './wake.js';

/** Implementation constants, ms unless stated. */
const SYNC_INTERVAL = 30_000;
/** So many syncs at least fall into one lease. */
const SYNCS_A_LEASE = 4;
const REQUEST_TIMEOUT = 10_000;
/** A key that comes later than the hold queue waits is still useful for the next frame. */
const KEY_TIMEOUT = 3_000;
/** The key server waits for its KMS for 15 s. */
const EXCHANGE_TIMEOUT = 20_000;
const RETRY_FIRST = 100;
const RETRY_MAX = 10_000;
/** A boot record outlives two leases, so an expiry is never what ends a peer's trust first. */
const BOOT_LIFETIMES = 2;
const BOOT_LIFETIME_MIN = 3_600_000;
/**
 * Who was away for so long begins from nothing, ms: the key server remembers freed IP addresses for twice as long.
 */
const AWAY = 86_400_000;
/** Members verified before others get their turn: 500 us each. */
const CHANGES_AT_ONCE = 20;

/** What the session needs of a channel; ChannelClient has it. */
export interface KeyServerChannel {
  readonly state: ClientState;
  request<T>(
    message: Message,
    options: { readonly timeoutMs?: number; readonly parse: (answer: unknown) => T },
  ): Promise<T>;
}

/** Our own boot key as the data plane made it. */
export interface OwnBoot {
  readonly boot: number;
  readonly public: Uint8Array;
}

/** What was registered last. */
export interface Registration {
  readonly boot: number;
  readonly index: number;
  readonly tag: number;
}

export interface SessionDeps {
  readonly subnet: Id;
  readonly member: VerifiedMember;
  readonly sign: KeyObject;
  /** Tells hosts apart (16 bytes). */
  readonly machine: Uint8Array;
  readonly channel: KeyServerChannel;
  /** Key-server time in ms. */
  readonly now: () => number;
  readonly nextBootSequence: (serverNowMs: number) => number;
  readonly table: PeerTable;
  /** A link port's; it has no part in the traffic of its own subnet. */
  readonly nets?: NetTable | undefined;
  readonly outside: Outside;
  readonly bindings: Bindings;
  readonly verifier: Pick<Verifier, 'settings' | 'revocation'>;
  readonly identities: Pick<Identities, 'settled'>;
  readonly auditHeads: Pick<AuditHeads, 'head' | 'alarm' | 'evidence' | 'take'>;
  readonly handlers: SessionHandlers;
  readonly random?: () => number;
}

/** What the agent hears. */
export interface SessionHandlers {
  /** The key server drew a sender index for our boot key. @param sealed it has our identity document as the KMS sealed it */
  registered(registration: Registration, sealed: boolean): Promise<void> | void;
  /** Where the relay is, with a ticket; undefined if there is none. */
  relay(offer: RelayOffer | undefined): Promise<void> | void;
  /** Settings that are verified and newer than those before. */
  settings(settings: Settings, record: Signed): void;
  /** Settings, or an answer, that contradict what may be believed. */
  refused(what: string, error: PairwireError): void;
  /** A sync is complete: peers that only the data plane knows may go. */
  synced(full: boolean, leaseUntilMs: number | undefined): void;
  /** Something failed and is tried again. */
  failed(what: string, error: unknown, retryInMs: number): void;
  /** There is no sense in going on. */
  fatal(error: PairwireError): void;
}

/** Counters and times for status. */
export interface SessionStatus {
  registered: Registration | undefined;
  epoch: string | undefined;
  cursor: number;
  /** The same of the plain side; undefined while that does not concern us. */
  plainCursor: number | undefined;
  syncs: number;
  fullSyncs: number;
  registrations: number;
  pushes: number;
  /** Key-server time of the last complete sync. */
  lastSyncMs: number | undefined;
  lastError: string | undefined;
}

/** One member's session with the key server. */
export class Session {
  readonly status: SessionStatus = {
    registered: undefined,
    epoch: undefined,
    cursor: 0,
    plainCursor: undefined,
    syncs: 0,
    fullSyncs: 0,
    registrations: 0,
    pushes: 0,
    lastSyncMs: undefined,
    lastError: undefined,
  };
  readonly #deps: SessionDeps;
  readonly #nonce = randomBytes(16);
  readonly #wake = new Wake();
  #running: Promise<void> | undefined;
  #stopped = false;
  #boot: OwnBoot | undefined;
  #record: { boot: OwnBoot; signed: Signed; notAfter: number } | undefined;
  /** Counts openings of the channel; what was told on an earlier one is told again. */
  #opening = 0;
  #registeredOn = -1;
  #endpoints: readonly Endpoint[] = [];
  #endpointsTold: string | undefined;
  #receipt: Uint8Array | undefined;
  #seen = '';
  /** Key-server time when the relay's ticket must be fetched again. */
  #ticketDue = Number.POSITIVE_INFINITY;
  #syncDue = true;
  #lastSyncAt = Number.NEGATIVE_INFINITY;
  #epoch: Uint8Array | undefined;
  /** The server's run that gave the cursor. */
  #serverRun: Uint8Array | undefined;
  #full = false;
  #fullOutside = false;
  #settings: Settings | undefined;
  /** Next generations that were confirmed on this opening of the channel. */
  readonly #confirmed = new Map<Id, number>();
  #confirmedGroup: number | undefined;
  readonly #confirmedNets = new Map<Id, number>();
  #failures = 0;
  /** Changes are applied one message after the other, whatever order they became known in. */
  #applying: Promise<void> = Promise.resolve();

  constructor(deps: SessionDeps) {
    this.#deps = deps;
  }

  /** Begins. */
  start(): void {
    this.#running ??= this.#run();
  }

  /** Ends. To be called before the channel is stopped, whose end fails the requests that wait. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wake.now();
    await this.#running;
  }

  /** Settings that hold already, from the disk. */
  useSettings(settings: Settings): void {
    this.#settings = settings;
  }

  /** The data plane has this boot key now; undefined while there is no data plane. */
  setBoot(boot: OwnBoot | undefined): void {
    this.#boot = boot;
    this.#registeredOn = -1;
    this.status.registered = undefined;
    this.#wake.now();
  }

  /** What the relay said of the address that we are seen at; undefined: nothing yet. */
  setReceipt(receipt: Uint8Array | undefined): void {
    this.#receipt = receipt;
    const seen = seenIn(receipt);
    if (seen === this.#seen) return;
    this.#seen = seen;
    this.#wake.now();
  }

  /** Where our data plane may be reached now. */
  setEndpoints(endpoints: readonly Endpoint[]): void {
    this.#endpoints = endpoints;
    this.#wake.now();
  }

  /** To be called with every state of the channel. */
  onState(state: ClientState): void {
    if (state.kind !== 'open' || state.renewed) return;
    this.#opening += 1;
    this.#confirmed.clear();
    this.#confirmedGroup = undefined;
    this.#confirmedNets.clear();
    this.#failures = 0;
    this.#wake.now();
  }

  /** To be called with every push. */
  onPush(message: unknown): void {
    const parsed = pushSchema.safeParse(message);
    if (!parsed.success) {
      const error = new PairwireError(
        'CHANNEL_MALFORMED',
        'the key server pushed a malformed message',
      );
      this.#deps.handlers.refused('push', error);
      return;
    }
    const push = parsed.data;
    this.status.pushes += 1;
    if (push.t === 'duplicate') this.#deps.handlers.fatal(duplicate(this.#deps.member.id));
    if (push.t !== 'changes') return;
    if (push.audit !== undefined) this.#takeHead(push.audit, undefined);
    if (this.#epoch === undefined || !Buffer.from(push.epoch).equals(this.#epoch)) {
      this.#syncDue = true;
      this.#wake.now();
      return;
    }
    void this.#apply(push.changes);
  }

  /** The data plane can receive under the next generation with this peer. */
  prepared(peer: Id): void {
    this.#confirmed.delete(peer);
    this.#wake.now();
  }

  /** The same of the group key. */
  groupPrepared(): void {
    this.#confirmedGroup = undefined;
    this.#wake.now();
  }

  /** The same of the key with another subnet. */
  netPrepared(net: Id): void {
    this.#confirmedNets.delete(net);
    this.#wake.now();
  }

  /** A frame between subnets came with an index or kid that is not held: what became known there is asked for. */
  async askNets(index: number, kid: number): Promise<void> {
    try {
      await this.#request(
        { t: 'key.net', requester: this.#deps.member.id, index, kid },
        { timeoutMs: KEY_TIMEOUT, parse: (value) => answerSchemas['key.net'].parse(value) },
      );
    } catch {
      // It goes on sending, so it is asked again.
    }
  }

  /** The peer with this index still sends with an older generation than `pwId`, which we hold. */
  async notice(index: number, pwId: number): Promise<void> {
    try {
      await this.#request(
        { t: 'key.notice', requester: this.#deps.member.id, index, pwId },
        { timeoutMs: KEY_TIMEOUT, parse: (value) => answerSchemas['key.notice'].parse(value) },
      );
    } catch {
      // It goes on lagging, so it is told of again.
    }
  }

  /** Tells what our plain port has seen. */
  report(report: Report): Promise<{ readonly refused: number }> {
    return this.#request(
      { t: 'learned', ...report },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.learned.parse(value) },
    );
  }

  /** Tells which IP addresses our own MAC addresses announce. @returns those that were not taken */
  bind(entries: readonly IpBinding[]): Promise<{ readonly refused: readonly string[] }> {
    return this.#request(
      { t: 'bind', entries },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.bind.parse(value) },
    );
  }

  /** Tells what our address guard refused. */
  guarded(entries: readonly Guarded[]): Promise<unknown> {
    return this.#request(
      { t: 'guarded', entries },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.guarded.parse(value) },
    );
  }

  /** What the key server does for whoever confirms identities. */
  get identityServer(): IdentityServer {
    return {
      get: (ids, home) =>
        this.#request(
          { t: 'identity.get', ids, ...(home === undefined ? {} : { home }) },
          {
            timeoutMs: REQUEST_TIMEOUT,
            parse: (value) => answerSchemas['identity.get'].parse(value),
          },
        ),
      put: (pair) =>
        this.#request(
          { t: 'identity.put', ...pair },
          {
            timeoutMs: REQUEST_TIMEOUT,
            parse: (value) => answerSchemas['identity.put'].parse(value),
          },
        ),
      exchange: async (message, home) => {
        const answer = await this.#request(
          { t: 'kms.exchange', message, ...(home === undefined ? {} : { home }) },
          {
            timeoutMs: EXCHANGE_TIMEOUT,
            parse: (value) => answerSchemas['kms.exchange'].parse(value),
          },
        );
        return answer.message;
      },
    };
  }

  /** Synchronises at once. */
  syncNow(): void {
    this.#syncDue = true;
    this.#wake.now();
  }

  /** Asks for a key and takes the answer into the table. */
  async ask(question: Question): Promise<Outcome> {
    let answer: KeyAnswer;
    try {
      answer = await this.#request(keyRequest(this.#deps.member.id, question), {
        timeoutMs: KEY_TIMEOUT,
        parse: (value) => answerSchemas['key.mac'].parse(value),
      });
    } catch (thrown) {
      return outcomeOf(thrown);
    }
    // After changes that came before the answer.
    await this.#applying;
    const outcome = this.#take(question, answer);
    if (outcome !== 'waits' || answer.kind !== 'pair')
      return outcome === 'waits' ? 'later' : outcome;
    const { id } = answer.peer;
    await this.#deps.identities.settled(id, KEY_TIMEOUT);
    const state = this.#deps.table.get(id)?.state;
    if (state === 'unconfirmed') return 'later';
    return state === 'refused' ? 'none' : this.#settle(question, answer);
  }

  // ------------------------------------------------------------------ the loop

  async #run(): Promise<void> {
    while (!this.#stopped) {
      const channel = this.#deps.channel.state;
      if (channel.kind !== 'open' || this.#boot === undefined) {
        await this.#wake.wait(SYNC_INTERVAL);
        continue;
      }
      let wait: number;
      try {
        await this.#step(this.#boot);
        this.#failures = 0;
        this.status.lastError = undefined;
        const next = this.#lastSyncAt + this.#syncInterval() - performance.now();
        wait = this.#syncDue ? 0 : Math.max(0, next);
      } catch (thrown) {
        if (this.#stopped) return;
        wait = this.#failed(thrown);
      }
      if (wait > 0) await this.#wake.wait(wait);
    }
  }

  /** Tells what has changed, in order; each part is skipped if it was told already. */
  async #step(boot: OwnBoot): Promise<void> {
    const opening = this.#opening;
    const expires = this.#record?.notAfter ?? 0;
    const renew = expires - this.#deps.now() < this.#bootLifetime() / 2;
    if (this.#registeredOn !== opening || renew) {
      await this.#register(boot, opening, renew);
      this.#endpointsTold = undefined;
      this.#syncDue = true;
    }
    const own = JSON.stringify(this.#endpoints.map((e) => [[...e.ip], e.port]));
    const endpoints = `${own} ${this.#seen}`;
    if (this.#endpointsTold !== endpoints || this.#deps.now() > this.#ticketDue) {
      await this.#tellEndpoints();
      this.#endpointsTold = endpoints;
    }
    await this.#confirm();
    if (this.#syncDue || performance.now() - this.#lastSyncAt >= this.#syncInterval()) {
      this.#syncDue = false;
      try {
        await this.#sync();
      } catch (thrown) {
        this.#syncDue = true;
        throw thrown;
      }
      await this.#tellHeld();
    }
  }

  /** Says which next generations we can receive under; the server commits when both ends can. */
  async #confirm(): Promise<void> {
    const due = this.#deps.table
      .prepared()
      .filter(({ peer, pwId }) => this.#confirmed.get(peer) !== pwId);
    const group = this.#deps.table.preparedGroup();
    let dueGroup = group === this.#confirmedGroup ? undefined : group;
    let dueNets = (this.#deps.nets?.prepared() ?? []).filter(
      ({ net, pwId }) => this.#confirmedNets.get(net) !== pwId,
    );
    while (due.length > 0 || dueGroup !== undefined || dueNets.length > 0) {
      const pairs = due.splice(0, MAX_ROWS);
      for (const { peer, pwId } of pairs) this.#confirmed.set(peer, pwId);
      if (dueGroup !== undefined) this.#confirmedGroup = dueGroup;
      for (const { net, pwId } of dueNets) this.#confirmedNets.set(net, pwId);
      const group = dueGroup === undefined ? {} : { group: dueGroup };
      const nets = dueNets.length === 0 ? {} : { nets: dueNets };
      await this.#request(
        { t: 'key.confirm', pairs, ...group, ...nets },
        { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['key.confirm'].parse(value) },
      );
      dueGroup = undefined;
      dueNets = [];
    }
  }

  /**
   * Says which generations the server must have forgotten; it makes others, which come as changes. What it refuses for
   * now is said again after the next synchronisation.
   */
  async #tellHeld(): Promise<void> {
    const { pairs, group } = this.#deps.table.unknownToServer();
    try {
      for (let at = 0; at < pairs.length || (at === 0 && group !== undefined); at += MAX_ROWS) {
        const some = pairs.slice(at, at + MAX_ROWS);
        await this.#request(
          { t: 'key.held', pairs: some, ...(at === 0 && group !== undefined ? { group } : {}) },
          { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['key.held'].parse(value) },
        );
      }
    } catch (thrown) {
      if (!(thrown instanceof RequestError)) throw thrown;
      this.#deps.handlers.refused('key.held', asError(thrown));
    }
  }

  /** A receipt that is not taken is left out, and the next one is tried. */
  async #tellEndpoints(): Promise<void> {
    const receipt = this.#receipt;
    const tell = (proof: Record<string, unknown>) =>
      this.#request(
        { t: 'endpoints', endpoints: this.#endpoints, ...proof },
        { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.endpoints.parse(value) },
      );
    let answer: Awaited<ReturnType<typeof tell>>;
    try {
      answer = await tell(receipt === undefined ? {} : { receipt });
    } catch (thrown) {
      if (receipt === undefined || outcomeOf(thrown) !== 'none') throw thrown;
      this.setReceipt(undefined);
      answer = await tell({});
    }
    const { relay } = answer;
    const now = this.#deps.now();
    this.#ticketDue =
      relay === undefined ? Number.POSITIVE_INFINITY : now + Math.max(0, relay.notAfter - now) / 2;
    await this.#deps.handlers.relay(relay);
  }

  #failed(thrown: unknown): number {
    const random = this.#deps.random ?? Math.random;
    const ceiling = Math.min(RETRY_MAX, RETRY_FIRST * 2 ** Math.min(this.#failures, 10));
    this.#failures += 1;
    const limited = thrown instanceof RequestError && thrown.code === 'limit';
    const wait = (limited ? 1_000 : 0) + ceiling / 2 + (random() * ceiling) / 2;
    this.status.lastError = messageOf(thrown);
    this.#deps.handlers.failed('key server', thrown, wait);
    return wait;
  }

  // ------------------------------------------------------------------ requests

  /** Once we stop, the channel answers nobody: a request would wait for its time to run out. */
  #request<T>(
    message: Message,
    options: { readonly timeoutMs: number; readonly parse: (answer: unknown) => T },
  ): Promise<T> {
    if (this.#stopped) {
      return Promise.reject(new PairwireError('CHANNEL_CLOSED', 'the gateway stops'));
    }
    return this.#deps.channel.request(message, options);
  }

  async #register(boot: OwnBoot, opening: number, renew: boolean): Promise<void> {
    const signed = this.#bootRecord(boot, renew);
    const { evidence } = this.#deps.auditHeads;
    const answer = await this.#request(
      {
        t: 'register',
        boot: signed,
        machine: this.#deps.machine,
        nonce: this.#nonce,
        revocation: this.#deps.verifier.revocation,
        ...(evidence === undefined ? {} : { audit: evidence }),
      },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.register.parse(value) },
    );
    // Nothing is pushed before the first sync, so what is known is what was named; an alarm was told before.
    const { head, alarm } = this.#deps.auditHeads;
    if (answer.audit !== undefined && head !== undefined && alarm === undefined) {
      this.#takeHead(answer.audit, head.seq);
    }
    // A new boot key came meanwhile: the loop registers that one.
    if (this.#boot !== boot) return;
    this.status.registrations += 1;
    this.#takeSettings(answer.settings);
    if (this.#settings === undefined) {
      throw new PairwireError('RECORD_SIGNATURE', 'there are no settings signed by our operator', {
        hint: 'is this the key server that the join token named? see the log',
      });
    }
    const registration = { boot: boot.boot, index: answer.index, tag: answer.tag };
    await this.#deps.handlers.registered(registration, answer.sealed === true);
    this.status.registered = registration;
    this.#registeredOn = opening;
  }

  #bootRecord(boot: OwnBoot, renew: boolean): Signed {
    const known = this.#record;
    if (known !== undefined && known.boot === boot && !renew) return known.signed;
    const now = this.#deps.now();
    const notAfter = Math.floor(now + this.#bootLifetime());
    const signed = signRecord(
      LABEL.boot,
      {
        subnet: this.#deps.subnet,
        id: this.#deps.member.id,
        boot: Buffer.from(boot.public),
        sequence: this.#deps.nextBootSequence(now),
        macs: this.#deps.member.macs,
        notAfter,
      },
      this.#deps.sign,
    );
    this.#record = { boot, signed, notAfter };
    return signed;
  }

  /** Often enough that one that fails does not let the lease run out. */
  #syncInterval(): number {
    const lease = (this.#settings?.leaseSeconds ?? Number.POSITIVE_INFINITY) * 1_000;
    return Math.min(SYNC_INTERVAL, lease / SYNCS_A_LEASE);
  }

  #bootLifetime(): number {
    const lease = (this.#settings?.leaseSeconds ?? 0) * 1_000;
    return Math.max(BOOT_LIFETIME_MIN, BOOT_LIFETIMES * lease);
  }

  async #sync(): Promise<void> {
    const { lastSyncMs } = this.status;
    if (!this.#full && lastSyncMs !== undefined && this.#deps.now() - lastSyncMs > AWAY) {
      this.#epoch = undefined;
      this.status.cursor = 0;
      this.status.plainCursor = undefined;
    }
    for (;;) {
      const epoch = this.#epoch;
      const run = this.#serverRun;
      const { cursor, plainCursor } = this.status;
      const headBefore = this.#deps.auditHeads.head?.seq ?? 0;
      const answer = await this.#request(
        {
          t: 'sync',
          cursor,
          plain: plainCursor ?? 0,
          ...(epoch === undefined || run === undefined ? {} : { epoch, run }),
        },
        { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas.sync.parse(value) },
      );
      if (epoch === undefined || !Buffer.from(answer.epoch).equals(epoch))
        this.#begin(answer.epoch);
      // From the beginning, because it did not concern us before.
      else if (answer.plain !== undefined && plainCursor === undefined) this.#beginOutside();
      if (answer.audit !== undefined) this.#takeHead(answer.audit, headBefore);
      await this.#apply(answer.changes);
      this.status.cursor = answer.cursor;
      this.status.plainCursor = answer.plain;
      this.#serverRun = Uint8Array.from(answer.run);
      if (!answer.more) break;
    }
    this.#lastSyncAt = performance.now();
    this.status.syncs += 1;
    this.status.lastSyncMs = this.#deps.now();
    const full = this.#full;
    this.#full = false;
    if (this.#fullOutside) this.#deps.outside.endFull(this.status.plainCursor !== undefined);
    this.#fullOutside = false;
    if (full) this.status.fullSyncs += 1;
    const lease = this.#settings?.leaseSeconds;
    const until = lease === undefined ? undefined : Math.floor(this.#deps.now() + lease * 1_000);
    this.#deps.handlers.synced(full, until);
  }

  /** The server's numbers begin anew (or we do): whoever is not named from now on is gone. */
  #begin(epoch: Uint8Array): void {
    this.#epoch = Uint8Array.from(epoch);
    this.status.epoch = Buffer.from(epoch).toString('hex');
    this.#full = true;
    this.#deps.table.beginFull();
    this.#deps.nets?.beginFull();
    this.#deps.bindings.beginFull();
    this.#beginOutside();
  }

  #beginOutside(): void {
    this.#fullOutside = true;
    this.#deps.outside.beginFull();
  }

  // ------------------------------------------------------------------ what the server says

  #apply(changes: readonly Change[]): Promise<void> {
    this.#applying = this.#applying.then(async () => {
      for (const [at, change] of changes.entries()) {
        if (at % CHANGES_AT_ONCE === CHANGES_AT_ONCE - 1) await yieldToOthers();
        try {
          this.#change(change);
        } catch (thrown) {
          // One bad change must not stop all later ones, nor this process.
          this.#deps.handlers.refused('change', asError(thrown));
        }
      }
      this.#deps.outside.flush();
      this.#deps.bindings.flush();
    });
    return this.#applying;
  }

  #change(change: Change): void {
    const { table, outside, bindings, nets } = this.#deps;
    if (nets !== undefined) {
      this.#linkChange(change, nets);
      return;
    }
    switch (change.kind) {
      case 'member':
        table.takeMember(change.member, change.seq);
        break;
      case 'gone':
        table.gone(change.id, change.seq);
        break;
      case 'revoked':
        table.revoked(change.id, change.number);
        break;
      case 'pair':
        table.takePair(change.peer, change, change.seq);
        this.#met(change.peer);
        break;
      case 'group':
        table.takeGroup(change, change.seq);
        break;
      case 'settings':
        this.#takeSettings(change.settings);
        break;
      case 'own':
      case 'own.freed':
        outside.takeOwn(change.mac, change.seq, change.kind === 'own');
        break;
      case 'behind':
        outside.takeBehind(change);
        break;
      case 'ip':
        bindings.take(change.ip, change.mac, change.seq);
        break;
      case 'ip.freed':
        bindings.take(change.ip, undefined, change.seq);
        break;
      case 'net':
      case 'net.gone':
        // For link ports.
        break;
    }
  }

  /** Of its own subnet a link port hears what concerns itself only. */
  #linkChange(change: Change, nets: NetTable): void {
    switch (change.kind) {
      case 'net':
        nets.take(change);
        break;
      case 'net.gone':
        nets.gone(change.net, change.seq);
        break;
      case 'settings':
        this.#takeSettings(change.settings);
        break;
      case 'revoked':
        this.#deps.table.revoked(change.id, change.number);
        break;
      default:
        break;
    }
  }

  /** A key with the first plain member: what concerns the plain side is ours to know from now on. */
  #met(peer: Id): void {
    if (this.status.plainCursor !== undefined || this.#deps.table.get(peer)?.role !== 'plain')
      return;
    this.syncNow();
  }

  /** @param floor number of the head that was known before the server was asked; undefined for a push */
  #takeHead(record: Signed, floor: number | undefined): void {
    try {
      if (!this.#deps.auditHeads.take(record, floor)) this.syncNow();
    } catch (thrown) {
      this.#deps.handlers.refused('audit head', asError(thrown));
    }
  }

  #takeSettings(record: Signed): void {
    try {
      const settings = this.#deps.verifier.settings(record);
      if (settings.version === this.#settings?.version) return;
      this.#settings = settings;
      this.#deps.handlers.settings(settings, record);
    } catch (thrown) {
      this.#deps.handlers.refused('settings', asError(thrown));
    }
  }

  /** @returns waits: who the peer is must be known first */
  #take(question: Question, answer: KeyAnswer): Outcome | 'waits' {
    const { table } = this.#deps;
    const wantsGroup = question.kind === 'group' || (question.kind === 'index' && question.group);
    if ((answer.kind === 'group') !== wantsGroup) {
      return this.#contradiction('answered with the wrong kind of key');
    }
    if (answer.kind === 'group') {
      if (answer.peer !== undefined && !table.takeMember(answer.peer)) return 'none';
      table.takeGroup(answer);
      return 'installed';
    }
    if (answer.peer.id === this.#deps.member.id) {
      return this.#contradiction('named ourselves as the other end');
    }
    if (!table.takeMember(answer.peer)) return 'none';
    if (table.get(answer.peer.id)?.state === 'unconfirmed') {
      table.takePair(answer.peer.id, answer);
      return 'waits';
    }
    return this.#settle(question, answer);
  }

  /** Takes the key with a peer whose record was taken. */
  #settle(question: Question, answer: Extract<KeyAnswer, { kind: 'pair' }>): Outcome {
    const { table } = this.#deps;
    const entry = table.get(answer.peer.id);
    const { behind } = answer;
    if (question.kind === 'mac' && behind !== undefined) {
      const problem = this.#behindProblem(question, behind, entry);
      if (problem !== undefined) return this.#contradiction(problem);
    } else if (question.kind === 'mac' && !owns(entry?.macs, question.mac)) {
      if (entry?.state === 'absent') return 'none';
      return this.#contradiction(
        `named ${answer.peer.id} as the owner of ${question.mac}, which it is not`,
      );
    }
    table.takePair(answer.peer.id, answer);
    this.#met(answer.peer.id);
    if (entry?.state !== 'ready') return 'none';
    // Behind the key, so that what waits for the address finds one.
    if (question.kind === 'mac' && behind !== undefined) {
      this.#deps.outside.answered(answer.peer.id, behind);
    }
    return question.kind !== 'index' || entry.index === question.index ? 'installed' : 'none';
  }

  /** Why an address can't be behind this member as far as we can see for ourselves. */
  #behindProblem(
    question: Extract<Question, { kind: 'mac' }>,
    behind: Behind,
    entry: PeerEntry | undefined,
  ): string | undefined {
    const { mac, vlan } = question;
    if (behind.mac !== mac || behind.vlan !== vlan) return 'answered about another address';
    if (entry?.role !== 'plain') {
      return `said that ${mac} is behind ${entry?.id ?? 'nobody'}, which is no plain member`;
    }
    const owner = this.#deps.table.byMac(mac);
    if (owner !== undefined) return `said that ${mac}, which is ${owner.id}'s own, is outside`;
    if (this.#deps.outside.isOwn(mac)) return `said that ${mac}, a member's own, is outside`;
    return undefined;
  }

  #contradiction(what: string): Outcome {
    const error = new PairwireError('RECORD_MISMATCH', `the key server ${what}`);
    this.#deps.handlers.refused('answer', error);
    return 'none';
  }
}

/** The part of a receipt that says what address it is about. */
function seenIn(receipt: Uint8Array | undefined): string {
  return receipt === undefined ? '' : Buffer.from(receipt.subarray(32, 50)).toString('hex');
}

function owns(macs: readonly MacAddress[] | undefined, mac: MacAddress): boolean {
  return macs?.includes(mac) ?? false;
}

function keyRequest(requester: Id, question: Question): Message {
  const pwId = question.pwId === undefined ? {} : { pwId: question.pwId };
  switch (question.kind) {
    case 'mac':
    case 'group': {
      const mac = question.kind === 'mac' ? question.mac : BROADCAST_MAC;
      const vlan = question.kind === 'mac' && question.vlan > 0 ? { vlan: question.vlan } : {};
      const worn = question.worn === true ? { worn: true } : {};
      return { t: 'key.mac', requester, mac, ...vlan, ...pwId, ...worn };
    }
    case 'index': {
      const { index, kid, group } = question;
      return { t: 'key.index', requester, index, kid, group, ...pwId };
    }
  }
}

function outcomeOf(thrown: unknown): Outcome {
  if (!(thrown instanceof RequestError)) return 'later';
  switch (thrown.code) {
    case 'not_found':
    case 'refused':
    case 'malformed':
    case 'unsupported':
      return 'none';
    case 'limit':
      return 'limited';
    default:
      return 'later';
  }
}

function asError(thrown: unknown): PairwireError {
  return thrown instanceof PairwireError
    ? thrown
    : new PairwireError('RECORD_MALFORMED', messageOf(thrown), { cause: thrown });
}

function duplicate(id: Id): PairwireError {
  return new PairwireError('CONFLICT', `another machine is connected as ${id}`, {
    where: id,
    hint: 'was this directory or disk copied? stop one of the two, and join it anew with a token of its own',
  });
}

/** 16 bytes that tell this machine from its copy as far as the machine itself knows. */
export function machineDigest(subnet: Id, machineId: string): Buffer {
  return createHash('sha256')
    .update(`pairwire machine\n${subnet}\n${machineId}`)
    .digest()
    .subarray(0, 16);
}
