/**
 * The other key servers of this subnet, each with a store and members of its own (docs/protocol.md 10). Every two of them
 * have a channel; the one with the larger id comes to the other one. Each says what is new at home since what the
 * other one has ("state, not events"), so what is pushed, lost or said twice makes no difference:
 *
 *   s2 --cascade.sync (what is new at s2; what s2 has of s1)--> s1
 *   s2 <--------- (what is new at s1; what s1 has of s2) ------ s1
 *   s2 <-- cascade (something is new, ask) -------------------- s1
 *
 * What is foreign lies in the store like what is ours, so look-ups, synchronisation and lists know no difference.
 */
import { randomBytes } from 'node:crypto';
import { RequestError } from '../../src/net/channel.js';
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import {
  type CarriedAnswer,
  type CarriedAsk,
  type CascadeWord,
  type HomeChange,
  MAX_SEEKS,
  MAX_WANTS,
} from '../../src/protocol/messages.js';
import { TALKER_ROLES } from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import type { Clock } from '../../src/runtime/clock.js';
import { RepeatedLines } from '../../src/runtime/repeated-lines.js';
import { enrolByToken, grantIn, peeringKeys, readPeerToken } from '../peering.js';
import { NotYet, Refusal } from '../refusal.js';
import { counts, isOwned, type Place, UNKNOWN_FOR_MS } from '../registry/directory.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type {
  ConfirmedPair,
  Member,
  PairEnds,
  PairKey,
  PeerServer,
  ServerContact,
  StoreTransaction,
} from '../storage/store.js';
import {
  type Carried,
  type CarriedMessage,
  type CarriedPairs,
  CarriedQuestions,
} from './carried-questions.js';
import { ChangeBudget, COST, MAX_PAUSE } from './change-budget.js';
import { homeState } from './home-state.js';
import { type Held, Intake, type IntakeDeps, MAX_CASCADE_AHEAD } from './intake.js';
import { numberOf } from './join.js';
import { firstOf, MAX_SERVERS, newPeer } from './peer-members.js';
import { ServerLink } from './server-link.js';
import type { SubnetTime } from './subnet-time.js';

/** A difference between the two servers' clocks above this is an alarm, ms. */
export const CASCADE_SKEW_ALARM = 2_000;
/** The first server's time is followed so far from the own clock and no further, ms. */
export const MAX_SUBNET_AHEAD = 600_000;
/** Addresses outside that one member has looked for at a time. */
export const MAX_SEEKS_OF_MEMBER = 16;
/** When all of a server was known last is written again after so long, ms. */
const NOTED_CURRENT = 60_000;
/** Words of another key server: so many at once, so many a second. */
export const CASCADE_BURST = 200;
export const CASCADE_PER_SECOND = 50;
/**
 * How long a server may be away before its members count as offline, ms; after a start everybody comes back at once. One
 * that is there and takes no word has the longer time, too.
 */
const AWAY_AFTER = 10_000;
const AWAY_AFTER_START = 45_000;
/** How long a member's question waits for the other server, ms, and how often it looks. */
const WANT_PATIENCE = 4_000;
const INDEX_PATIENCE = 1_000;
const LOOK = 10;
/** A change of the time offset that is worth a write, ms. */
const NOTED_OFFSET = 50;

/** What is wanted of the rest of the server. */
export interface CascadeDeps extends IntakeDeps {
  readonly secret: Buffer;
  readonly clock: Clock;
  readonly time: SubnetTime;
  /** Tells a server that came to us that it should ask. */
  tell(member: Id): void;
  isConnected(member: Id): boolean;
  /** A server's members want keys that we make, or find them worn. */
  wanted(asker: Member, peer: Member, make: boolean, worn: number | undefined): Promise<void>;
  confirmed(end: Id, other: Id, pwId: number): Promise<void>;
  groupConfirmed(server: Id, pwId: number): Promise<void>;
  groupWorn(pwId: number): Promise<void>;
  installSettings(record: Signed, server: Id): Promise<void>;
  /** A server says up to where it has our state: more than there is, if our database was put back. */
  lookAt(
    server: Id,
    position: { readonly cursor: number; readonly epoch: Uint8Array },
    run: Uint8Array | undefined,
  ): Promise<void>;
  /** This start of ours. */
  run(): Uint8Array;
  /** More than one says that our database was put back: it may have forgotten who was revoked. */
  isDoubted(): Promise<boolean>;
  /** A server's members hold generations of keys that we make above those that we know of. */
  held(server: Id, pairs: readonly HeldPair[], group: number | undefined): Promise<void>;
  /** We make the group key from now on. */
  becameFirst(): Promise<void>;
  /** Answers a question of a server's member about identities. Never rejects. */
  answer(server: Id, ask: CarriedAsk): Promise<CarriedAnswer>;
  readonly awayAfterMs?: number | undefined;
}

/** How the exchange with a server is. */
export interface PeerServerState {
  readonly connected: boolean;
  readonly problem: string | undefined;
  readonly skewMs: number | undefined;
}

type Want = CascadeWord['wants'][number];
type HeldPair = PairEnds & { readonly pwId: number };
type Confirm = CascadeWord['confirms'][number];
type FoundPlace = CascadeWord['places'][number];

/** An address that is looked for. */
interface Seek extends Outside {
  readonly asker: Id;
  found: FoundPlace | undefined;
}

type Outside = Pick<FoundPlace, 'vlan' | 'mac'>;

/** One other server. */
interface Other {
  row: PeerServer;
  link: ServerLink | undefined;
  /** Up to where it has our state; undefined until it has said so. */
  has: number | undefined;
  readonly wants: Map<string, Want>;
  readonly confirms: Map<string, Confirm>;
  group: { confirmed?: number; worn?: number };
  /** Generations that are held here above those that it tells, until it has told newer ones. */
  readonly held: Map<string, HeldPair>;
  heldGroup: number | undefined;
  readonly budget: ChangeBudget;
  /** Addresses that our members look for, and where those are that it looks for. */
  readonly seeks: Map<string, Seek>;
  readonly places: Map<string, FoundPlace>;
  /** Questions about identities. */
  readonly carried: CarriedQuestions;
  away: NodeJS.Timeout | undefined;
  /** Words of it that came, so that nothing is done about its absence after it is back. */
  words: number;
  /** Forgets what the last word said once: to be called when that word has arrived. */
  arrived: (() => void) | undefined;
  /** The `currentAt` that is written. */
  notedCurrent: number;
  /** We have all that is new there, as far as we hear. */
  isCurrent: boolean;
  problem: string | undefined;
  skewMs: number | undefined;
  alarmed: boolean;
  /** One word at a time. */
  turn: Promise<unknown>;
}

/** Exchanges with the other key servers. */
export class Cascade {
  readonly #services: Services;
  readonly #deps: CascadeDeps;
  readonly #intake: Intake;
  readonly #lines: RepeatedLines;
  readonly #others = new Map<Id, Other>();
  readonly #rate = new TokenBuckets(CASCADE_BURST, CASCADE_PER_SECOND);
  readonly #renumbered = new TokenBuckets(2, 0.2);
  #poked = false;
  #closed = false;

  constructor(services: Services, deps: CascadeDeps) {
    this.#services = services;
    this.#deps = deps;
    this.#lines = new RepeatedLines(services.log);
    const heard: IntakeDeps = {
      ...deps,
      refused: (from, refusal) => this.#refused(from, refusal),
      pairLearned: (pair) => {
        if (pair.maker !== undefined) this.#others.get(pair.maker)?.held.delete(nameOf(pair));
        deps.pairLearned(pair);
      },
      groupLearned: (group) => {
        for (const other of this.#others.values()) other.heldGroup = undefined;
        deps.groupLearned(group);
      },
    };
    this.#intake = new Intake(services, heard, (maker, held) => this.#holds(maker, held));
  }

  // ---------------------------------------------------------------------------- start, end

  /** Takes up what the store knows, before anybody is answered: the time above all. */
  async load(): Promise<void> {
    for (const row of await this.#services.store.peerServers()) this.#know(row);
    const first = this.#others.get(this.first);
    if (first !== undefined && Math.abs(first.row.timeOffset) <= MAX_SUBNET_AHEAD) {
      this.#deps.time.follow(first.row.timeOffset);
    }
  }

  /** Begins to ask. */
  resume(): void {
    for (const other of this.#others.values()) {
      this.#open(other);
      this.#later(other, Math.max(AWAY_AFTER_START, this.#awayAfter));
    }
  }

  close(): void {
    this.#closed = true;
    this.#lines.close();
    for (const { link, away, carried } of this.#others.values()) {
      link?.close();
      carried.close();
      clearTimeout(away);
    }
  }

  // ------------------------------------------------------------------------------- questions

  /** The subnet's first server. */
  get first(): Id {
    return firstOf(this.#services.server, this.#others.keys());
  }

  get isFirst(): boolean {
    return this.first === this.#services.server;
  }

  /** All that is at home elsewhere is known, and would be known if it changed. */
  get isComplete(): boolean {
    return [...this.#others.values()].every(({ row, isCurrent }) => row.complete && isCurrent);
  }

  /** Servers that are there. */
  *connected(): Iterable<Id> {
    for (const other of this.#others.values()) if (this.#isThere(other)) yield other.row.server;
  }

  state(server: Id): PeerServerState | undefined {
    const other = this.#others.get(server);
    if (other === undefined) return undefined;
    const { problem, skewMs } = other;
    return { connected: this.#isThere(other), problem, skewMs };
  }

  /** The largest difference between our clock and another server's, ms. */
  get skewMs(): number {
    return Math.max(0, ...[...this.#others.values()].map(({ skewMs }) => Math.abs(skewMs ?? 0)));
  }

  /** A member is at home at a server that is there, and online as that one says. */
  async isAround(id: Id): Promise<boolean> {
    const member = await this.#services.store.member(id);
    if (member?.home === undefined || !member.online) return false;
    const other = this.#others.get(member.home);
    return other !== undefined && this.#isThere(other);
  }

  // --------------------------------------------------------------------- what our members want

  /**
   * Has the key of one of our members and another from the server that makes it, if that is not us.
   * @throws RequestError unavailable if that server is away
   */
  async ensurePair(asker: Id, peer: Member, make: boolean): Promise<boolean> {
    const { store } = this.#services;
    if (peer.home === undefined || asker < peer.id) return false;
    // With a broken seal it is to be told again.
    const has = async (): Promise<boolean> =>
      (await store.anyPair(asker, peer.id))?.key !== undefined;
    const other = this.#others.get(peer.home);
    if (await has()) {
      if (other !== undefined) await this.#alsoAsks(other, asker, peer.id, make);
      return true;
    }
    if (other === undefined || !this.#isThere(other)) throw new RequestError('unavailable');
    const name = `${asker} ${peer.id}`;
    const want = { asker, peer: peer.id, make };
    other.wants.set(name, want);
    this.#say(other);
    try {
      await this.#waitFor(has, make ? WANT_PATIENCE : INDEX_PATIENCE);
    } finally {
      if (other.wants.get(name) === want) other.wants.delete(name);
    }
    if (make && !(await has())) throw new RequestError('unavailable');
    return true;
  }

  /** By the documents' own rule (hold = 0) the maker waits for an end once that has asked for the key: so it is told. */
  async #alsoAsks(other: Other, asker: Id, peer: Id, make: boolean): Promise<void> {
    const { store, settings } = this.#services;
    if (settings.settings.hold > 0) return;
    const hasAsked = ((await store.anyPair(asker, peer))?.askedB ?? 0) > 0;
    if (!hasAsked) this.#add(other, other.wants, `${asker} ${peer}${ASKS}`, { asker, peer, make });
  }

  /** Waits for word of a sender index of another server that nobody has yet. */
  async settleIndex(index: number): Promise<Member | undefined> {
    const number = Math.floor(index / 2 ** 24);
    const other = [...this.#others.values()].find(({ row }) => row.number === number);
    if (other === undefined || !this.#isThere(other)) return undefined;
    this.#say(other);
    const { store } = this.#services;
    await this.#waitFor(
      async () => (await store.memberByIndex(index)) !== undefined,
      INDEX_PATIENCE,
    );
    return store.memberByIndex(index);
  }

  /**
   * Which plain member of another server an address outside is behind, as that one says now.
   * @throws NotYet if a server was not asked, or has not answered, and no other one has it: it may be there
   */
  async seek(vlan: number, mac: MacAddress, asker: Id): Promise<Place | undefined> {
    const { store } = this.#services;
    const name = `${vlan} ${mac}`;
    const asked: Seek[] = [];
    let isMissing = false;
    for (const other of this.#others.values()) {
      if (!this.#isThere(other)) continue;
      const known = other.seeks.get(name);
      const own = [...other.seeks.values()].filter((it) => it.asker === asker).length;
      const isFull = other.seeks.size >= MAX_SEEKS || own >= MAX_SEEKS_OF_MEMBER;
      if (known === undefined && isFull) {
        isMissing = true;
        continue;
      }
      const seek = known ?? { vlan, mac, asker, found: undefined };
      other.seeks.set(name, seek);
      asked.push(seek);
      this.#say(other);
    }
    await this.#waitFor(
      () => Promise.resolve(asked.every(({ found }) => found !== undefined)),
      INDEX_PATIENCE,
    );
    for (const { seeks } of this.#others.values()) {
      const own = seeks.get(name);
      if (own !== undefined && asked.includes(own)) seeks.delete(name);
    }
    const places = asked.flatMap(({ found }) => (found?.member === undefined ? [] : [found]));
    const place = places.find(({ pinned }) => pinned) ?? places[0];
    const member = place?.member === undefined ? undefined : await store.member(place.member);
    if (place === undefined || member?.state !== 'active') {
      if (isMissing || asked.some(({ found }) => found === undefined)) throw new NotYet();
      return undefined;
    }
    // Nothing is pushed of it when it moves, so it is asked for again soon.
    return { member, behind: { vlan, mac, ms: UNKNOWN_FOR_MS, pinned: place.pinned } };
  }

  /**
   * Has a question of a member of ours about identities answered by the server where those are at home.
   * @throws RequestError unavailable if there is no such server, or it is away
   */
  async carry(server: Id, carried: Carried): Promise<CarriedPairs | CarriedMessage> {
    const other = this.#others.get(server);
    if (other === undefined || !this.#isThere(other)) throw new RequestError('unavailable');
    return other.carried.ask(carried);
  }

  /** A server asks for what it may not have. */
  refuse(server: Id, refusal: Refusal): void {
    this.#others.get(server)?.budget.spend(COST.refused);
    this.#refused(server, refusal);
  }

  /** A question that a server has carried came to nothing: garbage, or the KMS is away. It may come again and again. */
  unanswered(server: Id, err: unknown): void {
    const line = 'a question of a member of a key server was not answered';
    this.#lines.warn(`${server} question`, { server, err }, line);
  }

  /** A member of ours finds a key worn that another server makes. */
  worn({ a, b, maker, pwId }: PairKey): void {
    const other = maker === undefined ? undefined : this.#others.get(maker);
    if (other === undefined) return;
    const want = { asker: b, peer: a, make: false, worn: pwId };
    this.#add(other, other.wants, `${b} ${a} worn`, want);
  }

  /** A member of ours can receive under the next generation of a pair that another server makes. */
  confirm({ a, b, maker }: Pick<ConfirmedPair, 'a' | 'b' | 'maker'>, pwId: number): void {
    const other = maker === undefined ? undefined : this.#others.get(maker);
    if (other === undefined) return;
    this.#add(other, other.confirms, `${a} ${b}`, { a, b, pwId });
  }

  /** The same of the group key. */
  confirmGroup(confirmed: number): void {
    this.#sayOfGroup({ confirmed });
  }

  wornGroup(worn: number): void {
    this.#sayOfGroup({ worn });
  }

  /** Something is new here: tells whoever may be concerned, soon. */
  poke(): void {
    if (this.#poked || this.#closed || this.#others.size === 0) return;
    this.#poked = true;
    setImmediate(() => {
      this.#poked = false;
      if (this.#closed) return;
      for (const other of this.#others.values()) this.#say(other);
    });
  }

  // -------------------------------------------------------------------------- who comes to us

  /** A server's word, and our answer. @throws Refusal, NotYet */
  sync(member: Id, word: CascadeWord): Promise<CascadeWord> {
    const other = [...this.#others.values()].find(({ row }) => row.member === member);
    if (other === undefined) {
      const why = 'no key server of this subnet';
      throw new Refusal('refused', 'cascade_server', why, { id: member });
    }
    if (!this.#rate.take(member, performance.now())) {
      throw new Refusal('limit', 'cascade_rate', 'too many words; wait', { id: member });
    }
    other.words += 1;
    return this.#inTurn(other, async () => {
      if (this.#others.get(other.row.server) !== other) throw new NotYet();
      await this.#hear(other, word);
      // Revoked meanwhile.
      if (this.#others.get(other.row.server) !== other) throw new NotYet();
      return this.#word(other);
    });
  }

  /** One thing at a time with each server, in the order in which they come. */
  #inTurn<T>(other: Other, work: () => Promise<T>): Promise<T> {
    const done = other.turn.catch(() => undefined).then(work);
    other.turn = done;
    return done;
  }

  /** A server's member has enrolled here. */
  async enrolled(server: Id): Promise<void> {
    const row = await this.#services.store.peerServer(server);
    if (row !== undefined && !this.#others.has(server)) this.#know(row);
  }

  /** The channel of a member that may be a server has ended. */
  left(member: Id): void {
    for (const other of this.#others.values()) {
      if (other.row.member !== member) continue;
      // The answer may not have reached it.
      other.arrived = undefined;
      this.#lost(other);
    }
  }

  /** The server that a member speaks for. */
  serverOf(member: Id): Id | undefined {
    return [...this.#others.values()].find(({ row }) => row.member === member)?.row.server;
  }

  /** The operator confirms that the database was put back: what was left aside meanwhile is told anew, both ways. */
  async confirming(tx: StoreTransaction): Promise<void> {
    const peers = await tx.peerServers();
    if (peers.length === 0) return;
    for (const peer of peers) await tx.putPeerServer({ ...peer, cursor: 0 });
    await tx.renewEpoch(randomBytes(8));
  }

  /** The transaction with `confirming` has committed. */
  confirmed(): void {
    for (const other of this.#others.values()) {
      other.row = { ...other.row, cursor: 0 };
      other.has = 0;
    }
    this.poke();
  }

  /** Members of other servers, by server, as far as they were counted. */
  get membersElsewhere(): ReadonlyMap<Id, number> {
    return this.#intake.counts;
  }

  /** A server is being revoked: nothing is said to it any more, and who is the first server goes without it. */
  async dropping<T>(server: Id, revoke: () => Promise<T>): Promise<T> {
    this.#forget(server);
    try {
      return await revoke();
    } catch (thrown) {
      const row = await this.#services.store.peerServer(server);
      if (row !== undefined && !this.#others.has(server)) this.#open(this.#know(row));
      throw thrown;
    }
  }

  // ------------------------------------------------------------------------------ the operator

  /** Peers with the server that made a token. @throws Refusal */
  async add(actor: Id, text: string): Promise<{ readonly server: Id; readonly member: Id }> {
    const { store, audit, server: own, log } = this.#services;
    const token = readPeerToken(text);
    const grant = grantIn(token);
    const { cascade, servers, subnet } = token;
    const wrong = (why: string): Refusal => new Refusal('malformed', 'peer_token', why);
    if (cascade === undefined || grant.server === undefined || grant.role !== 'server') {
      throw wrong('this token is not for a key server of this subnet');
    }
    if (subnet !== this.#services.subnet) throw wrong(`the token is for the subnet ${subnet}`);
    if (Buffer.compare(token.operator, store.meta.operator) !== 0) {
      throw wrong('the token is of another operator');
    }
    if (grant.server !== own) throw wrong(`the token is for the server ${grant.server}`);
    const { server } = cascade;
    if (server >= own) throw wrong(`make the token at ${own}, and add it at ${server}`);
    // One that was the first may come back: it was removed by mistake, here or at one of several servers.
    if (server < this.first && !(await store.wasPeerServer(server))) {
      throw wrong(`${server} would be the first server of the subnet`);
    }
    if (this.#others.size >= MAX_SERVERS) throw wrong(`there are ${MAX_SERVERS} servers already`);
    const member = grant.id as Id;
    const contact: ServerContact = { member, servers };
    const { operator } = store.meta;
    const keys = peeringKeys(this.#deps.secret, { subnet, operator, member });
    await enrolByToken(token, grant, member, keys, this.#deps.clock);
    const row = await store.write(async (tx) => {
      const known = await tx.peerServer(server);
      const serial = known?.serial ?? (await tx.nextChange());
      const added = { ...newPeer(server, { contact }, serial), ...known, contact };
      await tx.putPeerServer(added);
      const detail = { server, member };
      await audit.append(tx, { actor, action: 'peer_add', outcome: 'done', detail });
      return added;
    });
    log.info({ server }, 'peered with another key server of this subnet');
    this.#forget(server);
    this.#open(this.#know(row));
    return { server, member };
  }

  /**
   * Comes to a server no more; its members are offline for ours.
   * @param isAgreed also if it is the first one
   * @returns false if we come to none of that id
   * @throws Refusal for the first server without that
   */
  async remove(actor: Id, server: Id, isAgreed: boolean): Promise<boolean> {
    const { store, audit, server: own } = this.#services;
    const other = this.#others.get(server);
    if (other?.row.contact === undefined) return false;
    const wasFirst = this.isFirst;
    if (server === this.first && !isAgreed) {
      const rest = [...this.#others.keys()].filter((one) => one !== server);
      const next = firstOf(own, rest);
      const why = `${server} is the first server: without it ${next} makes the group key and the time. If it is gone for good, remove it at every server, with --yes`;
      throw new Refusal('refused', 'cascade_server', why, { server, next });
    }
    this.#forget(server);
    await this.#inTurn(other, () => this.#offline(other, () => false));
    await store.write(async (tx) => {
      await tx.removePeerServer(server);
      await tx.noteFormerServer(server);
      await audit.append(tx, { actor, action: 'peer_remove', outcome: 'done', detail: { server } });
    });
    if (!wasFirst && this.isFirst) await this.#deps.becameFirst();
    return true;
  }

  // ----------------------------------------------------------------------------------- words

  async #word(other: Other): Promise<CascadeWord> {
    const { store, server, settings } = this.#services;
    const { epoch, number, tag } = store.meta;
    const { row, has } = other;
    const isDoubted = await this.#deps.isDoubted();
    const told = has === undefined ? undefined : await this.#state(other, has, isDoubted);
    const wants = [...other.wants].slice(0, MAX_WANTS);
    const confirms = [...other.confirms].slice(0, MAX_WANTS);
    const { group, heldGroup } = other;
    const held = [...other.held.values()].slice(0, MAX_WANTS);
    const inGroup = { ...group, ...(heldGroup === undefined ? {} : { held: heldGroup }) };
    const places = [...other.places].slice(0, MAX_SEEKS);
    const carried = other.carried.toSay();
    other.arrived = () => {
      // A question for a key stays until its asker has it, or gives up.
      forget(
        other.wants,
        wants.filter(([name, { worn }]) => worn !== undefined || name.endsWith(ASKS)),
      );
      forget(other.confirms, confirms);
      forget(other.places, places);
      carried.arrived();
      // As long as nothing was added to it meanwhile.
      if (other.group === group) other.group = {};
    };
    const seeks = [...other.seeks.values()]
      .filter(({ found }) => found === undefined)
      .map(({ vlan, mac }) => ({ vlan, mac }));
    return {
      ...{ server, number, first: this.first, tag, epoch, time: this.#services.now() },
      skewMs: this.#deps.time.offset,
      settings: settings.inForce.record,
      run: this.#deps.run(),
      have: {
        ...{ epoch: row.epoch, cursor: row.cursor },
        ...(row.run === undefined ? {} : { run: row.run }),
      },
      ...(told === undefined ? {} : { state: told }),
      wants: wants.map(([, want]) => want),
      confirms: confirms.map(([, confirm]) => confirm),
      ...{ seeks, places: places.map(([, place]) => place) },
      ...(Object.keys(inGroup).length === 0 ? {} : { group: inGroup }),
      ...(held.length === 0 ? {} : { held }),
      ...(carried.asks.length === 0 ? {} : { asks: [...carried.asks] }),
      ...(carried.answers.length === 0 ? {} : { answers: [...carried.answers] }),
    };
  }

  /** @param isDoubted whether the other one may have been revoked: then it gets no keys */
  async #state(
    { row }: Other,
    from: number,
    isDoubted: boolean,
  ): Promise<NonNullable<CascadeWord['state']>> {
    const { cursor, more, changes } = await homeState(
      this.#services,
      row.server,
      from,
      this.isFirst,
    );
    const told = isDoubted ? changes.filter((change) => !isKeyChange(change)) : [...changes];
    return { from, cursor, more, changes: told };
  }

  /** @returns whether there is more to hear @throws Refusal for a server that does not fit */
  async #hear(other: Other, word: CascadeWord): Promise<boolean> {
    const { store } = this.#services;
    this.#judge(other, word);
    await this.#pause(other);
    // It is here: nobody of it becomes offline any more because it was not.
    this.#heard(other);
    other.arrived?.();
    other.arrived = undefined;
    const { server } = other.row;
    const { epoch: before } = store.meta;
    await this.#deps.lookAt(server, word.have, word.have.run);
    const isDoubted = await this.#deps.isDoubted();
    const { epoch } = store.meta;
    other.has = epoch.equals(Buffer.from(word.have.epoch)) ? word.have.cursor : 0;
    const theirs = Buffer.from(word.epoch);
    let row: PeerServer = { ...other.row, number: word.number };
    // Its store is another one, or was put back: what we have of it is to be told anew.
    if (!row.epoch.equals(theirs)) row = { ...row, epoch: theirs, cursor: 0 };
    await this.#takeSettings(server, word);
    const { state, run } = word;
    const fits = state !== undefined && (state.from === row.cursor || state.from === 0);
    if (fits) {
      const first = this.first;
      for (const change of state.changes) {
        const taken = await this.#intake.take(row, first, change, isDoubted);
        other.budget.spend(taken === 'taken' && isKeyChange(change) ? COST.key : COST[taken]);
      }
      row = {
        ...row,
        ...{ cursor: state.cursor, complete: row.complete || !state.more },
        run: run === undefined ? undefined : Buffer.from(run),
      };
      if (!state.more) {
        other.isCurrent = true;
        // In doubt new members were left aside.
        if (!isDoubted) row = { ...row, currentAt: this.#services.now() };
      }
    }
    await this.#note(other, row);
    other.carried.hearAnswers(word.answers ?? []);
    // Nobody gets a key from a server that may have forgotten who was revoked.
    if (!isDoubted) await this.#answer(other, word);
    this.#compareClocks(other, word);
    const asked = word.wants.length > 0 || word.seeks.length > 0;
    // It went on from where we are no more: from the next word it knows where we are.
    const stale = state !== undefined && !fits;
    return state?.more === true || stale || asked || !epoch.equals(before);
  }

  /** Does what a word asks for. */
  async #answer(other: Other, word: CascadeWord): Promise<void> {
    const { store } = this.#services;
    const { server } = other.row;
    const { wants, confirms, group, seeks, places, held = [], asks = [] } = word;
    other.carried.hearAsks(asks);
    for (const outside of seeks) await this.#sought(other, outside);
    for (const place of places) await this.#found(other, place);
    for (const want of wants) await this.#wanted(other, want);
    for (const { a, b, pwId } of confirms) {
      if ((await store.member(b))?.home === server) await this.#deps.confirmed(b, a, pwId);
    }
    if (this.isFirst && group?.confirmed !== undefined) {
      await this.#deps.groupConfirmed(server, group.confirmed);
    }
    if (this.isFirst && group?.worn !== undefined) await this.#deps.groupWorn(group.worn);
    await this.#forgotten(server, held, group?.held);
  }

  /** What a server has cost too much is paid in time. @throws Refusal for far too much */
  async #pause({ row, budget }: Other): Promise<void> {
    const ms = budget.debtMs;
    if (ms > MAX_PAUSE) {
      const why = 'too many changes; wait';
      throw new Refusal('limit', 'cascade_rate', why, { server: row.server });
    }
    if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms));
  }

  /** A server's members hold generations that our database has forgotten: it was put back, or we were not the maker then. */
  async #forgotten(
    server: Id,
    held: readonly HeldPair[],
    heldGroup: number | undefined,
  ): Promise<void> {
    const { store } = this.#services;
    const isAbove = (known: number, pwId: number): boolean =>
      known <= pwId && pwId - known <= MAX_CASCADE_AHEAD;
    const pairs: HeldPair[] = [];
    for (const { a, b, pwId } of held) {
      const [own, foreign] = [await store.member(a), await store.member(b)];
      if (a >= b || !isTalker(own) || own?.home !== undefined) continue;
      if (!isTalker(foreign) || foreign?.home !== server) continue;
      if (isAbove((await store.anyPair(a, b))?.pwId ?? 0, pwId)) pairs.push({ a, b, pwId });
    }
    const group = (await store.anyGroup(GROUP_ID))?.pwId ?? 0;
    const isGroup = this.isFirst && heldGroup !== undefined && isAbove(group, heldGroup);
    if (pairs.length === 0 && !isGroup) return;
    await this.#deps.held(server, pairs, isGroup ? heldGroup : undefined);
  }

  /** A server tells an older generation than we have of a key that it makes. */
  #holds(maker: Id, held: Held): void {
    const other = this.#others.get(maker);
    if (other === undefined) return;
    if (held.kind === 'group') {
      other.heldGroup = held.pwId;
      this.#say(other);
    } else {
      const { a, b, pwId } = held;
      this.#add(other, other.held, nameOf(held), { a, b, pwId });
    }
  }

  /** Whatever a server said that can not be: the audit log has it with its count, the log by kind. */
  #refused(server: Id, refusal: Refusal): void {
    this.#deps.refused(server, refusal);
    const { kind, facts, message } = refusal;
    this.#lines.warn(`${server} ${kind}`, { server, reason: kind, ...facts }, message);
  }

  #judge({ row }: Other, { server, number, first, tag }: CascadeWord): void {
    const { meta } = this.#services.store;
    const wrong = (why: string): Refusal =>
      new Refusal('refused', 'cascade_server', why, { server: row.server });
    if (server !== row.server) throw wrong(`it speaks for ${server}`);
    if (first !== this.first) {
      throw wrong(`the first server is ${this.first} here and ${first} there: peer every two`);
    }
    if (tag !== undefined && tag !== meta.tag) throw wrong('the subnet has another tag there');
    const taken = [...this.#others.values()].some(
      (one) => one.row.server !== server && one.row.number === number,
    );
    const another = row.number !== undefined && row.number !== number;
    // 0 is the number of the server that the subnet was made with.
    const original = number === 0 && server === this.first;
    if (!original && number !== numberOf(this.#services.subnet, server)) {
      throw wrong(`${number} is not the number of ${server}`);
    }
    if (number === meta.number || taken || another) {
      throw wrong(`the number ${number} of ${server} is taken: give that server another id`);
    }
  }

  async #takeSettings(server: Id, { settings }: CascadeWord): Promise<void> {
    if (settings === undefined) return;
    try {
      await this.#deps.installSettings(settings, server);
    } catch (thrown) {
      if (!(thrown instanceof Refusal)) throw thrown;
      this.#refused(server, thrown);
    }
  }

  /** One of a server's members wants the key with one of ours. */
  async #wanted(other: Other, { asker, peer, make, worn }: Want): Promise<void> {
    const { store } = this.#services;
    const { server } = other.row;
    const [foreign, own] = [await store.member(asker), await store.member(peer)];
    if (
      foreign?.home !== server ||
      own === undefined ||
      own.home !== undefined ||
      own.id >= asker ||
      !TALKER_ROLES.includes(own.role)
    ) {
      const why = 'the key of that pair is not made here';
      const facts = { server, asker, peer };
      other.budget.spend(COST.refused);
      this.#refused(server, new Refusal('refused', 'cascade_key', why, facts));
      return;
    }
    if (foreign.state !== 'active' || own.state !== 'active') return;
    const isNew = (await store.anyPair(asker, peer)) === undefined;
    // It is asked for again with the next word.
    if (isNew && other.budget.debtMs > 0) return;
    other.budget.spend(isNew && make ? COST.taken : COST.same);
    await this.#deps.wanted(foreign, own, make, worn);
    if (worn !== undefined) return;
    // It was told of this key, and has it not: for it to be told once more, it needs another number.
    const pair = await store.anyPair(asker, peer);
    const wasTold = pair !== undefined && pair.changed <= (other.has ?? 0);
    if (!wasTold || !this.#renumbered.take(`${asker} ${peer}`, performance.now())) return;
    await store.write(async (tx) => tx.renumberPair(pair, await tx.nextChange()));
  }

  /** A server looks for an address that may be behind one of our plain ports. */
  async #sought(other: Other, { vlan, mac }: Outside): Promise<void> {
    const { store, now } = this.#services;
    const entry = (await isOwned(store, mac)) ? undefined : await store.learned(vlan, mac);
    const place = entry !== undefined && counts(entry, now()) ? entry : undefined;
    const member = place === undefined ? undefined : await store.member(place.member);
    const ours = member?.state === 'active' && member.role === 'plain' && member.home === undefined;
    other.places.set(`${vlan} ${mac}`, {
      ...{ vlan, mac, pinned: ours && place?.pinned === true },
      ...(ours ? { member: member.id } : {}),
    });
  }

  /** A server says where an address is that we look for. */
  async #found({ row, seeks }: Other, place: FoundPlace): Promise<void> {
    const seek = seeks.get(`${place.vlan} ${place.mac}`);
    if (seek === undefined) return;
    const { server } = row;
    const { vlan, mac, member: id } = place;
    const member = id === undefined ? undefined : await this.#services.store.member(id);
    const wrong = member?.home !== server || member.role !== 'plain';
    seek.found = wrong ? { vlan, mac, pinned: false } : place;
    if (id === undefined || !wrong) return;
    const why = 'that member is not at home there';
    this.#refused(server, new Refusal('refused', 'cascade_home', why, { id, server }));
  }

  async #note(other: Other, row: PeerServer): Promise<void> {
    const before = other.row;
    other.row = row;
    const same =
      before.cursor === row.cursor &&
      before.epoch.equals(row.epoch) &&
      before.number === row.number &&
      before.complete === row.complete &&
      (before.run?.toString('hex') ?? '') === (row.run?.toString('hex') ?? '') &&
      row.currentAt - other.notedCurrent < NOTED_CURRENT &&
      before.timeOffset === row.timeOffset;
    if (same || this.#others.get(row.server) !== other) return;
    other.notedCurrent = row.currentAt;
    await this.#services.store.write(async (tx) => {
      // Not one that was revoked meanwhile.
      if ((await tx.peerServer(row.server)) !== undefined) await tx.putPeerServer(row);
    });
  }

  /** The first server's time is the subnet's; a difference of clocks is an alarm, and nothing else. */
  #compareClocks(other: Other, { skewMs }: CascadeWord): void {
    const { time } = this.#deps;
    const { server } = other.row;
    if (server === this.first) {
      const theirs = other.link?.time;
      if (theirs === undefined) return;
      const offset = Math.round(time.ahead(theirs));
      other.skewMs = offset;
      // Beyond that one of the two clocks is set wrong, and it is not to be the whole subnet's: what was measured before holds.
      const isCredible = Math.abs(offset) <= MAX_SUBNET_AHEAD;
      if (isCredible) time.follow(offset);
      if (isCredible && Math.abs(offset - other.row.timeOffset) > NOTED_OFFSET) {
        this.#note(other, { ...other.row, timeOffset: offset }).catch((err: unknown) =>
          this.#services.log.warn({ err }, 'the time of the subnet was not noted'),
        );
      }
    } else {
      // Both follow the first one: what they differ by is the difference of what they add.
      other.skewMs = skewMs === undefined ? undefined : time.offset - skewMs;
    }
    const differs = other.skewMs ?? 0;
    const alarm = Math.abs(differs) > CASCADE_SKEW_ALARM;
    if (alarm && !other.alarmed) {
      this.#services.log.error(
        { server, skewMs: differs },
        Math.abs(differs) > MAX_SUBNET_AHEAD
          ? 'the clocks of two key servers differ by so much that neither goes by the other: set them'
          : "the clocks of two key servers differ: members go by the first server's time",
      );
    }
    other.alarmed = alarm;
  }

  // ------------------------------------------------------------------------------------ peers

  get #awayAfter(): number {
    return this.#deps.awayAfterMs ?? AWAY_AFTER;
  }

  #know(row: PeerServer): Other {
    const known: Other = {
      ...{ row, link: undefined, has: undefined, wants: new Map(), confirms: new Map() },
      ...{ seeks: new Map(), places: new Map(), held: new Map(), heldGroup: undefined },
      ...{ budget: new ChangeBudget(), notedCurrent: row.currentAt },
      ...{
        group: {},
        away: undefined,
        words: 0,
        arrived: undefined,
        isCurrent: false,
        problem: undefined,
        skewMs: undefined,
      },
      ...{ alarmed: false, turn: Promise.resolve() },
      carried: new CarriedQuestions({
        say: () => this.#say(known),
        work: (ask) => this.#deps.answer(row.server, ask),
        refused: (refusal) => this.refuse(row.server, refusal),
      }),
    };
    this.#others.set(row.server, known);
    return known;
  }

  #open(other: Other): void {
    const { contact, server } = other.row;
    if (contact === undefined || this.#closed) return;
    const { subnet, store } = this.#services;
    const { member } = contact;
    const { secret, clock } = this.#deps;
    const { channel } = peeringKeys(secret, { subnet, operator: store.meta.operator, member });
    const link = new ServerLink({
      ...{ contact, channel, clock },
      word: () => this.#word(other),
      heard: async (answer) => {
        if (this.#others.get(server) !== other) return false;
        const told = other.has;
        other.words += 1;
        const more = await this.#inTurn(other, () => this.#hear(other, answer));
        // It wants to be told (again) from further back than we had believed.
        return more || told === undefined || (other.has ?? 0) < told;
      },
      failed: (problem) => this.#failed(other, problem),
      lost: (problem) => {
        other.problem = problem.message;
        this.#lost(other);
      },
    });
    other.link = link;
  }

  #forget(server: Id): void {
    const other = this.#others.get(server);
    if (other === undefined) return;
    this.#others.delete(server);
    this.#intake.forget(server);
    other.link?.close();
    other.carried.close();
    clearTimeout(other.away);
  }

  #isThere({ row, link }: Other): boolean {
    return row.member === undefined ? link?.isOpen === true : this.#deps.isConnected(row.member);
  }

  #say({ row, link }: Other): void {
    if (row.member === undefined) link?.ask();
    else this.#deps.tell(row.member);
  }

  #add<T>(other: Other, list: Map<string, T>, name: string, what: T): void {
    if (list.size >= MAX_WANTS && !list.has(name)) return;
    list.set(name, what);
    this.#say(other);
  }

  #sayOfGroup(what: { confirmed?: number; worn?: number }): void {
    const other = this.#others.get(this.first);
    if (other === undefined) return;
    other.group = { ...other.group, ...what };
    this.#say(other);
  }

  async #waitFor(holds: () => Promise<boolean>, patience: number): Promise<void> {
    const end = performance.now() + patience;
    while (!(await holds()) && performance.now() < end && !this.#closed) {
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  }

  #heard(other: Other): void {
    clearTimeout(other.away);
    other.away = undefined;
    if (other.problem === undefined) return;
    other.problem = undefined;
    this.#services.log.info({ server: other.row.server }, 'a key server answers again');
  }

  #failed(other: Other, thrown: Error): void {
    const { server } = other.row;
    if (thrown instanceof Refusal) this.#refused(server, thrown);
    // Once: it may fail again and again.
    else if (thrown.message !== other.problem) {
      this.#lines.warn(`${server} failed`, { server, err: thrown }, 'a key server did not answer');
    }
    other.problem = thrown.message;
    // A word that fails is said again soon; only who takes none for long is as good as away.
    this.#lost(other, this.#isThere(other) ? AWAY_AFTER_START : this.#awayAfter);
  }

  #lost(other: Other, ms: number = this.#awayAfter): void {
    if (other.away === undefined) this.#later(other, ms);
  }

  #later(other: Other, ms: number): void {
    if (this.#closed) return;
    other.away = setTimeout(() => {
      other.away = undefined;
      if (this.#closed || this.#others.get(other.row.server) !== other) return;
      other.isCurrent = false;
      this.#services.log.warn({ server: other.row.server }, 'a key server is away');
      const { words } = other;
      const isBack = (): boolean => this.#closed || other.words !== words;
      this.#inTurn(other, () => this.#offline(other, isBack)).catch((err: unknown) =>
        this.#services.log.warn({ err }, 'members of a key server were not marked as offline'),
      );
    }, ms);
    other.away.unref();
  }

  /** Its members are offline for ours; when it is back, it tells anew how they are. */
  async #offline(other: Other, isBack: () => boolean): Promise<void> {
    const { store } = this.#services;
    const { server } = other.row;
    if (isBack()) return;
    await this.#note(other, { ...other.row, cursor: 0 });
    for (const id of await store.membersAt(server)) {
      if (isBack()) return;
      const changed = await store.write(async (tx) => {
        const member = await tx.member(id);
        if (member?.online !== true) return false;
        await tx.updatePresence(id, { online: false }, await tx.nextChange());
        return true;
      });
      if (changed) this.#deps.memberChanged(id);
    }
  }
}

/** Ends the name of a question that is answered by being heard. */
const ASKS = ' asks';

function nameOf({ a, b }: PairEnds): string {
  return `${a} ${b}`;
}

function isKeyChange({ kind }: HomeChange): boolean {
  return kind === 'pair' || kind === 'group';
}

function isTalker(member: Member | undefined): boolean {
  return member?.state === 'active' && TALKER_ROLES.includes(member.role);
}

/** Takes out what was said, unless something else stands under the same name by now. */
function forget<T>(list: Map<string, T>, said: readonly (readonly [string, T])[]): void {
  for (const [name, what] of said) if (list.get(name) === what) list.delete(name);
}
