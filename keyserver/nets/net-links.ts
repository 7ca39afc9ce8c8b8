/**
 * The key servers of other subnets that this one asks: those of smaller net ids, which make the net key
 * (docs/protocol.md 9). One channel to each; a question when it opens, at each push and
 * every 30 s. What comes in is the business of net-keys.ts.
 */
import { ChannelClient } from '../../src/net/channel-client.js';
import { serverEndpoints } from '../../src/net/client-link.js';
import { type Id, parseId } from '../../src/protocol/ids.js';
import {
  answerSchemas,
  MAX_NET_AHEAD_MS,
  type NetSyncAnswer,
} from '../../src/protocol/messages.js';
import { networkOf, overlap } from '../../src/protocol/prefixes.js';
import type { Grant } from '../../src/protocol/records.js';
import type { Token } from '../../src/protocol/token.js';
import type { Clock } from '../../src/runtime/clock.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { enrolByToken, grantIn, peeringKeys, readPeerToken } from '../peering.js';
import { NotFound, Refusal } from '../refusal.js';
import type { Services } from '../services.js';
import type { Net, NetContact } from '../storage/store.js';
import { netMark } from './net-change.js';
import { requireRoom } from './net-members.js';
import { ownPorts, prefixesFor } from './net-ports.js';

const SYNC_INTERVAL = 30_000;
/** A server that pushes and pushes is asked so often and not more, ms. */
const LEAST_INTERVAL = 200;
const REQUEST_TIMEOUT = 15_000;
const END_TIMEOUT = 5_000;
/** A difference between the two servers' clocks above this is an alarm, ms. */
export const SKEW_ALARM = 2_000;

export interface NetLinksDeps {
  /** From which the keys by which other servers know us are derived. */
  readonly secret: Buffer;
  readonly clock: Clock;
  learn(
    net: Id,
    contact: NetContact,
    answer: NetSyncAnswer,
    skewMs: number | undefined,
  ): Promise<void>;
  /** There is a net, or none any more. */
  changed(entry: Net): void;
  /** A net's server has answered, or can't be reached. */
  heard(net: Id): void;
  lost(net: Id): void;
}

/** How a link is. */
export interface NetLinkState {
  readonly connected: boolean;
  /** Why there is no answer. */
  readonly problem: string | undefined;
  /** How far the other clock is ahead of ours, ms. */
  readonly skewMs: number | undefined;
}

/** One far server that we ask. */
interface Link {
  readonly net: Id;
  readonly contact: NetContact;
  readonly client: ChannelClient;
  readonly timer: NodeJS.Timeout;
  problem: string | undefined;
  asking: boolean;
  /** The question that is under way, or the last one; never fails. */
  question: Promise<void>;
  askAgain: boolean;
  alarmed: boolean;
}

/** The channels to key servers of other subnets. */
export class NetLinks {
  readonly #services: Services;
  readonly #deps: NetLinksDeps;
  readonly #links = new Map<Id, Link>();
  #closed = false;

  constructor(services: Services, deps: NetLinksDeps) {
    this.#services = services;
    this.#deps = deps;
  }

  /** Takes up the links that the store knows. */
  async resume(): Promise<void> {
    for (const { net, contact } of await this.#services.store.anyNets()) {
      if (contact !== undefined) this.#open(net, contact);
    }
  }

  close(): void {
    this.#closed = true;
    for (const net of [...this.#links.keys()]) this.#end(net);
  }

  /** How the link to a net's server is; undefined if we do not ask it. */
  state(net: Id): NetLinkState | undefined {
    const link = this.#links.get(net);
    if (link === undefined) return undefined;
    return {
      connected: link.client.state.kind === 'open',
      problem: link.problem,
      skewMs: this.#skew(link),
    };
  }

  /** Something of our link ports has changed, or they want to know what has changed there. */
  askAll(): void {
    for (const link of this.#links.values()) void this.#ask(link);
  }

  /** Tells the maker that our link ports can receive under a next generation. */
  confirm(net: Id, pwId: number): void {
    const link = this.#links.get(net);
    if (link === undefined || link.client.state.kind !== 'open') return;
    link.client
      .request(
        { t: 'net.confirm', net: this.#services.net.id, pwId },
        { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['net.confirm'].parse(value) },
      )
      // Said again after a while, as long as the generation is not in force.
      .catch((thrown: unknown) => this.#failed(link, thrown));
  }

  /** Asks the maker for another key. @throws RequestError, PairwireError */
  async rekey(net: Id, force: boolean): Promise<number> {
    const link = this.#links.get(net);
    if (link === undefined) throw new NotFound();
    if (link.client.state.kind !== 'open') {
      throw new Refusal('unavailable', 'net_away', `the key server of ${net} is away`, { net });
    }
    const { pwId } = await link.client.request(
      { t: 'net.rekey', net: this.#services.net.id, force },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['net.rekey'].parse(value) },
    );
    return pwId;
  }

  /**
   * Peers with the key server that made a token: enrols there under the token's grant, and asks it from now on.
   * @param prefixes what may be behind its net
   * @throws Refusal that says what is wrong with the token, PairwireError if its server can't be reached
   */
  async add(
    actor: Id,
    text: string,
    prefixes: readonly string[],
  ): Promise<{ readonly net: Id; readonly member: Id }> {
    const { store, audit, net: own, log } = this.#services;
    const token = readPeerToken(text);
    const { net, grant, member } = this.#judge(token);
    const local = [...new Set(prefixes.map(networkOf))];
    const ours = local.find((one) => own.prefixes.some((mine) => overlap(mine, one)));
    if (ours !== undefined) {
      throw new Refusal('malformed', 'peer_token', `${ours} is this subnet's own`, { net });
    }
    const { subnet, servers, operator } = token;
    const contact: NetContact = { subnet, member, servers, operator: Buffer.from(operator) };
    const keys = peeringKeys(this.#deps.secret, contact);
    await enrolByToken(token, grant, member, keys, this.#deps.clock);
    if (this.#closed) throw new Refusal('unavailable', 'peer_token', 'this key server ends');
    const entry = await store.write(async (tx) => {
      await requireRoom(tx, own, net, local);
      const row = await tx.net(net);
      const changed = await tx.nextChange();
      const other =
        row?.contact === undefined ||
        row.contact.subnet !== subnet ||
        Buffer.compare(row.contact.operator, operator) !== 0;
      // What another subnet's server has told is not this one's key.
      const forget = other
        ? { key: undefined, next: undefined, told: [], far: undefined, dueAt: 0 }
        : {};
      const added: Net = {
        ...blank(net, changed),
        ...row,
        ...forget,
        member: undefined,
        contact,
        local,
        changed,
      };
      await tx.putNet(added);
      await audit.append(tx, {
        actor,
        action: 'peer_add',
        outcome: 'done',
        detail: { net, member, prefixes: local },
      });
      return added;
    });
    log.info({ net, subnet: token.subnet }, 'peered with the key server of another subnet');
    this.#end(net);
    this.#open(net, contact);
    this.#deps.changed(entry);
    return { net, member };
  }

  /**
   * Asks a net's server no more, and tells it so; link ports on both sides forget the key.
   * @returns whether it has heard that
   * @throws NotFound
   */
  async remove(actor: Id, net: Id): Promise<boolean> {
    const { store, audit } = this.#services;
    const entry = await store.write(async (tx) => {
      const row = await tx.net(net);
      if (row?.contact === undefined) throw new NotFound();
      const changed = await tx.nextChange();
      const ended = { contact: undefined, far: undefined, key: undefined, next: undefined };
      const gone = { ...row, ...ended, changed };
      await tx.putNet(gone);
      await audit.append(tx, { actor, action: 'peer_remove', outcome: 'done', detail: { net } });
      return gone;
    });
    const link = this.#links.get(net);
    this.#links.delete(net);
    this.#deps.changed(entry);
    if (link === undefined) return false;
    clearInterval(link.timer);
    try {
      return await this.#tellEnd(link);
    } finally {
      link.client.stop();
    }
  }

  /** A question that is under way would begin the link anew, so that comes first. @returns false if it is away */
  async #tellEnd(link: Link): Promise<boolean> {
    await link.question;
    if (link.client.state.kind !== 'open') return false;
    try {
      await link.client.request(
        { t: 'net.end', net: this.#services.net.id },
        { timeoutMs: END_TIMEOUT, parse: (value) => answerSchemas['net.end'].parse(value) },
      );
      return true;
    } catch (err) {
      this.#services.log.warn({ net: link.net, err }, 'a key server did not hear of the end');
      return false;
    }
  }

  /** What a token must be for us to peer by it. */
  #judge(token: Token): { readonly net: Id; readonly grant: Grant; readonly member: Id } {
    const own = this.#services.net;
    const wrong = (why: string): Refusal => new Refusal('malformed', 'peer_token', why);
    const { net } = token;
    const grant = grantIn(token);
    if (grant.role !== 'server' || net === undefined || grant.net === undefined) {
      throw wrong('this token is for a member: make one with `pairwire peer token`');
    }
    if (grant.net !== own.id) {
      throw wrong(`the token is for the net ${grant.net}, and this one is ${own.id}`);
    }
    if (net >= own.id) {
      throw wrong(`${own.id} makes the key with ${net}: make the token here, and add it there`);
    }
    if (own.prefixes.length === 0) {
      throw wrong('keyserver.yaml names no `prefixes` of this subnet');
    }
    if (grant.id.endsWith('*')) throw wrong('a key server has an id of its own');
    return { net, grant, member: parseId(grant.id) };
  }

  #open(net: Id, contact: NetContact): void {
    const client = new ChannelClient({
      servers: serverEndpoints(contact.servers),
      staticKeys: peeringKeys(this.#deps.secret, contact).channel,
      clock: this.#deps.clock,
      onPush: (message) => {
        if (message.t === 'net') void this.#ask(link);
      },
      onState: (state) => {
        if (state.kind === 'open' && !state.renewed) void this.#ask(link);
        if (state.kind !== 'down') return;
        link.problem = state.error.message;
        this.#deps.lost(net);
      },
    });
    const timer = setInterval(() => void this.#ask(link), SYNC_INTERVAL);
    timer.unref();
    const none = Promise.resolve();
    const state = {
      problem: undefined,
      asking: false,
      question: none,
      askAgain: false,
      alarmed: false,
    };
    const link: Link = { net, contact, client, timer, ...state };
    this.#links.set(net, link);
    client.start();
  }

  #end(net: Id): void {
    const link = this.#links.get(net);
    if (link === undefined) return;
    this.#links.delete(net);
    clearInterval(link.timer);
    link.client.stop();
  }

  /** One question at a time and so many a second; what becomes known meanwhile is asked for after it. */
  async #ask(link: Link): Promise<void> {
    link.askAgain = true;
    if (link.asking) return;
    link.asking = true;
    while (link.askAgain && this.#links.get(link.net) === link) {
      link.askAgain = false;
      link.question = this.#askOnce(link).catch((thrown: unknown) => this.#failed(link, thrown));
      await link.question;
      await new Promise((resolve) => setTimeout(resolve, LEAST_INTERVAL).unref());
    }
    link.asking = false;
  }

  async #askOnce(link: Link): Promise<void> {
    const { net: own, store } = this.#services;
    const row = await store.net(link.net);
    if (row?.contact === undefined || link.client.state.kind !== 'open') return;
    const newest =
      row.next ?? (row.key === undefined ? undefined : { key: row.key, pwId: row.pwId });
    // Without a key the number counts all the same: it has been used.
    const held =
      newest === undefined ? { held: row.pwId } : { held: newest.pwId, mark: netMark(newest.key) };
    const answer = await link.client.request(
      {
        ...{ t: 'net.sync', net: own.id, ...held },
        prefixes: prefixesFor(this.#services, link.net),
        ...(await ownPorts(this.#services, link.net)),
      },
      { timeoutMs: REQUEST_TIMEOUT, parse: (value) => answerSchemas['net.sync'].parse(value) },
    );
    if (this.#links.get(link.net) !== link) return;
    if (answer.net !== link.net) {
      throw new PairwireError('REFUSED', `it speaks for ${answer.net} now`, { where: link.net });
    }
    await this.#deps.learn(link.net, link.contact, answer, this.#skew(link));
    this.#deps.heard(link.net);
    if (link.problem !== undefined) {
      link.problem = undefined;
      this.#services.log.info({ net: link.net }, 'a key server answers again');
    }
    this.#compareClocks(link);
    await this.#wantOwed(link);
  }

  /** Has the maker make another key, if somebody who had this one is revoked; asked again until it has. */
  async #wantOwed({ net }: Link): Promise<void> {
    const { store } = this.#services;
    const owed = await store.net(net);
    if (owed === undefined || owed.dueAt === 0) return;
    await this.rekey(net, true);
    await store.write(async (tx) => {
      const row = await tx.net(net);
      // Another one may have been revoked meanwhile.
      if (row?.dueAt === owed.dueAt) await tx.putNet({ ...row, dueAt: 0 });
    });
  }

  #compareClocks(link: Link): void {
    const skewMs = this.#skew(link) ?? 0;
    const alarm = Math.abs(skewMs) > SKEW_ALARM;
    if (alarm && !link.alarmed) {
      this.#services.log.error(
        { net: link.net, skewMs },
        Math.abs(skewMs) > MAX_NET_AHEAD_MS
          ? 'the clocks of two key servers differ by too much: frames between the subnets are refused as late'
          : 'the clocks of two key servers differ; link ports go by the other one for what crosses',
      );
    }
    link.alarmed = alarm;
  }

  #skew({ client }: Link): number | undefined {
    return client.time.known ? client.time.now() - this.#services.now() : undefined;
  }

  #failed(link: Link, thrown: unknown): void {
    const problem = thrown instanceof Error ? thrown.message : 'failed';
    // Once: it may fail again and again.
    if (problem !== link.problem) {
      this.#services.log.warn({ net: link.net, err: thrown }, 'a key server did not answer');
    }
    link.problem = problem;
  }
}

function blank(net: Id, serial: number): Net {
  return {
    ...{ net, member: undefined, contact: undefined, local: [], told: [], far: undefined },
    key: undefined,
    ...{ pwId: 0, oldest: 1, reason: '', createdAt: 0, dueAt: 0, next: undefined },
    ...{ serial, changed: serial },
  };
}
