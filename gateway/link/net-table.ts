/**
 * The other subnets that a link port reaches: their net keys, their link ports and what is behind them, as the key
 * server told, after verification, as commands to the data plane (docs/protocol.md section 9).
 *
 *   change `net` -> prefixes that the configuration names, too -> records of the link ports there, verified against
 *   that subnet's operator -> routes.set, link.set, key.pair        (a contradiction: peer.remove)
 *
 * As the table of members this holds state, not events, and every command may be repeated.
 */
import type { Id } from '../../src/protocol/ids.js';
import { ipToBytes, ipToText } from '../../src/protocol/ip.js';
import {
  type Change,
  type Endpoint,
  MAX_NET_PREFIXES,
  MAX_NETS,
  type PeerRecord,
} from '../../src/protocol/messages.js';
import { covers, narrowed, networkOf } from '../../src/protocol/prefixes.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { CommandPort } from '../dataplane/client.js';
import type { CommandFields, CommandType } from '../dataplane/messages.gen.js';
import { type Told, tellDataPlane } from '../dataplane/tell.js';
import { asPairwireError, fingerprint, keyFingerprint } from '../key-table/installed.js';
import { copyOf, type Generation } from '../key-table/peer-table.js';
import type { Verifier } from '../key-table/verifier.js';
import { TokenBucket } from '../rate-limit.js';
import { linkAhead } from './net-time.js';

/** How long a former generation may still be heard, ms. */
const GRACE_MS = 10_000;
/** A command that the data plane refused is tried again after so long, ms. */
const RETRY_MS = 5_000;
/** Starts of link ports of one net that are taken: so many at once, then one in 5 s. Each costs memory until our own boot key goes. */
export const NET_STARTS = { burst: 32, perSecond: 0.2 } as const;
/** Refusals that are told of: so many at once, so many a second. */
const REFUSALS = { burst: 10, perSecond: 0.2 } as const;

/** What gateway.yaml says of another subnet. */
export interface LocalNet {
  /** What may be behind it, whatever anybody else says. */
  readonly prefixes: readonly string[];
  /** Its operator's public key, if it is not to be taken from the first word of the key servers. */
  readonly operator?: Uint8Array | undefined;
}

export type NetChange = Extract<Change, { kind: 'net' }>;

/** What is wanted of the surroundings. */
export interface NetTableDeps {
  /** Number of the port in the data plane. */
  readonly port: number;
  /** Our own net id. */
  readonly net: Id;
  /** What is in our own subnet. */
  readonly prefixes: readonly string[];
  readonly nets: ReadonlyMap<Id, LocalNet>;
  readonly dataPlane: CommandPort;
  /** Judges records of another subnet. @throws PairwireError PIN_MISMATCH if its operator is another than before */
  readonly verifierOf: (
    net: Id,
    subnet: Id,
    operator: Uint8Array,
  ) => Pick<Verifier, 'peer' | 'forget'>;
  /** Time in ms that only goes up. */
  readonly now: () => number;
  readonly acceptsEndpoint: (endpoint: Endpoint) => boolean;
  /** A net, or a link port (NET/ID), is not believed: log it, count it. */
  readonly onRefused: (what: string, error: PairwireError) => void;
  /** A command failed for another reason than a missing data plane. */
  readonly onCommandFailed: (error: PairwireError) => void;
  /** The data plane can receive under the next generation of this net; said again when the server asks again. */
  readonly onPrepared: (net: Id) => void;
}

/** A link port of another subnet; states as those of a member. */
export interface LinkPort {
  /** NET/ID. */
  readonly id: string;
  readonly role: 'link';
  state: 'absent' | 'ready' | 'refused';
  refusal: { code: string; message: string } | undefined;
  online: boolean;
  index: number | undefined;
  boot: Uint8Array | undefined;
  bootSequence: number;
  readonly macs: readonly [];
  readonly ips: readonly [];
  endpoints: readonly Endpoint[];
}

/** A link port with the key of its net. */
export type KeyedLinkPort = LinkPort & { readonly key: Generation | undefined };

/** Another subnet. */
export interface NetEntry {
  readonly net: Id;
  /** The name of that subnet; what its members' records are bound to. */
  subnet: Id | undefined;
  /** How far the time of frames between subnets is ahead of our key server's, if it makes not the key itself, ms. */
  ahead: number | undefined;
  /** Why nothing crosses, if so. */
  refusal: { code: string; message: string } | undefined;
  /** What may cross: all of configuration, own key server and the other one agree. */
  prefixes: readonly string[];
  key: Generation | undefined;
  next: Generation | undefined;
  readonly ports: Map<Id, LinkPort>;
  seq: number;
  /** The oldest generation that may be heard. */
  oldest: number;
  /** The next generation that the data plane has; of a net that is none of our business, or refused, the one that nobody need wait for us with. */
  prepared: number | undefined;
  readonly starts: TokenBucket;
  verifier: Pick<Verifier, 'peer' | 'forget'> | undefined;
}

/** What the data plane was told of a link port. */
interface Sent {
  link: string;
  key: string;
  next: string;
  /** Whether it has taken the next generation. */
  taken: Promise<Told>;
}

/** Other subnets of one link port. */
export class NetTable {
  readonly #deps: NetTableDeps;
  readonly #nets = new Map<Id, NetEntry>();
  /** By NET/ID. */
  readonly #sent = new Map<string, Sent>();
  /** Prefixes as the data plane has them, by net; empty: ours. */
  readonly #routes = new Map<Id | '', string>();
  #ownBoot: number | undefined;
  #seen: Set<Id> | undefined;
  /** When commands that failed are due again. */
  #retryAt = Number.POSITIVE_INFINITY;
  readonly #refusals: TokenBucket;

  constructor(deps: NetTableDeps) {
    this.#deps = deps;
    this.#refusals = new TokenBucket(REFUSALS.perSecond, REFUSALS.burst, deps.now());
  }

  /** Those that the configuration names, as far as the key server has told of them. */
  *nets(): Generator<NetEntry> {
    for (const entry of this.#nets.values()) if (this.#deps.nets.has(entry.net)) yield entry;
  }

  /** How far the time of frames between subnets is ahead of our key server's, ms. */
  ahead(): number {
    return linkAhead(this.#deps.net, this.#nets.values());
  }

  /** Link ports of all nets, with the key in force. */
  *ports(): Generator<KeyedLinkPort> {
    for (const { ports, key } of this.#nets.values()) {
      for (const port of ports.values()) yield { ...port, key };
    }
  }

  /** Takes what the key server says of a net. */
  take(change: NetChange): void {
    const entry = this.#entry(change.net);
    if (entry === undefined) return;
    this.#seen?.add(change.net);
    if (change.seq < entry.seq) return;
    entry.seq = change.seq;
    entry.ahead = change.ahead;
    const local = this.#deps.nets.get(change.net);
    if (local === undefined) {
      this.#waitForNobody(entry, change);
      return;
    }
    try {
      if (local.operator !== undefined && !isEqual(local.operator, change.operator)) {
        throw new PairwireError('PIN_MISMATCH', 'it has another operator than gateway.yaml says', {
          where: change.net,
        });
      }
      const verifier = this.#deps.verifierOf(change.net, change.subnet, change.operator);
      entry.subnet = change.subnet;
      entry.verifier = verifier;
      entry.refusal = undefined;
      entry.prefixes = narrowed(local.prefixes, change.prefixes).slice(0, MAX_NET_PREFIXES);
      this.#takeKeys(entry, change);
      this.#takePorts(entry, change.ports, verifier);
    } catch (thrown) {
      this.#refuse(entry, asPairwireError(thrown));
      this.#waitForNobody(entry, change);
      return;
    }
    void Promise.all(this.#install(entry));
  }

  /** There is no link with that subnet any more: keys and link ports are forgotten at once. */
  gone(net: Id, seq?: number): void {
    const entry = this.#nets.get(net);
    if (entry === undefined || (seq !== undefined && seq < entry.seq)) return;
    this.#forgetKeys(entry);
    this.#nets.delete(net);
    this.#tellRoutes(net, []);
  }

  /** A frame opened under the next generation of a link port's net: the commit is on its way, or was lost. */
  committed(port: string, pwId: number): void {
    const entry = this.#byPort(port);
    if (entry?.next?.pwId !== pwId) return;
    const former = entry.key;
    entry.key = entry.next;
    entry.next = undefined;
    this.#dropBelow(entry, pwId);
    former?.key.fill(0);
    void Promise.all(this.#install(entry));
  }

  /** The next generations that the data plane can receive under. */
  prepared(): { readonly net: Id; readonly pwId: number }[] {
    return [...this.#nets.values()].flatMap(({ net, prepared }) =>
      prepared === undefined ? [] : [{ net, pwId: prepared }],
    );
  }

  /** Whether the key servers see this link port; undefined if there is none. */
  isOnline(port: string): boolean | undefined {
    return this.#portNamed(port)?.online;
  }

  /** Brings a data plane to this table's state under our boot key. */
  async installAll(ownBoot: number): Promise<void> {
    this.detached();
    this.#ownBoot = ownBoot;
    const commands = this.#tellRoutes('', this.#deps.prefixes.map(networkOf));
    for (const entry of this.#nets.values()) {
      if (entry.refusal !== undefined) commands.push(...this.#tellRoutes(entry.net, []));
      commands.push(...this.#install(entry));
    }
    await Promise.all(commands);
  }

  /** To be called now and then: says again what the data plane has refused. */
  tick(): void {
    if (this.#deps.now() < this.#retryAt) return;
    this.#retryAt = Number.POSITIVE_INFINITY;
    for (const entry of this.#nets.values()) void Promise.all(this.#install(entry));
  }

  /** The data plane is gone: nothing is installed until `installAll`. */
  detached(): void {
    this.#ownBoot = undefined;
    this.#sent.clear();
    this.#routes.clear();
    for (const entry of this.#nets.values()) if (entry.next) entry.prepared = undefined;
  }

  /** Begins a synchronisation from nothing: what is not named until `endFull` is gone. */
  beginFull(): void {
    this.#seen = new Set();
    for (const entry of this.#nets.values()) entry.seq = 0;
  }

  /** Ends it. */
  endFull(): void {
    const seen = this.#seen;
    if (seen === undefined) return;
    this.#seen = undefined;
    for (const net of [...this.#nets.keys()]) if (!seen.has(net)) this.gone(net);
  }

  /** Takes away what only the data plane still knows; to be called when this table knows all that there is. */
  removeLeftovers(ports: Iterable<string>, nets: Iterable<string>): void {
    for (const port of ports) if (this.#portNamed(port)?.state !== 'ready') this.#remove(port);
    for (const net of nets) {
      if (net !== '' && !this.#routes.has(net as Id)) this.#tellRoutes(net as Id, []);
    }
  }

  /** Wipes the keys held here. */
  wipe(): void {
    for (const { key, next } of this.#nets.values()) {
      key?.key.fill(0);
      next?.key.fill(0);
    }
    this.#nets.clear();
    this.detached();
  }

  /** Undefined if there are as many already as one subnet can have. */
  #entry(net: Id): NetEntry | undefined {
    const known = this.#nets.get(net);
    if (known !== undefined) return known;
    if (this.#nets.size >= MAX_NETS) return undefined;
    const entry: NetEntry = {
      ...{ net, subnet: undefined, ahead: undefined, refusal: undefined, prefixes: [] },
      key: undefined,
      ...{ next: undefined, ports: new Map(), seq: 0, oldest: 0, prepared: undefined },
      starts: new TokenBucket(NET_STARTS.perSecond, NET_STARTS.burst, this.#deps.now()),
      verifier: undefined,
    };
    this.#nets.set(net, entry);
    return entry;
  }

  #byPort(port: string): NetEntry | undefined {
    return this.#nets.get(port.slice(0, port.indexOf('/')) as Id);
  }

  #portNamed(port: string): LinkPort | undefined {
    return this.#byPort(port)?.ports.get(port.slice(port.indexOf('/') + 1) as Id);
  }

  /** A push may come behind a frame that told us more: an older generation changes nothing. */
  #takeKeys(entry: NetEntry, told: NetChange): void {
    const { key: former, next: formerNext } = entry;
    if (told.pwId < (former?.pwId ?? 0)) return;
    entry.key = copyOf(told);
    entry.next = told.next === undefined ? undefined : copyOf(told.next);
    if (!isSameGeneration(entry.next, formerNext)) entry.prepared = undefined;
    entry.oldest = told.oldest;
    if (former !== undefined && former.pwId < told.pwId) this.#dropBelow(entry, told.pwId);
    former?.key.fill(0);
    formerNext?.key.fill(0);
  }

  /** Who waits for all link ports need not wait for this one: it sends and hears nothing under the net's keys. */
  #waitForNobody(entry: NetEntry, told: NetChange): void {
    entry.prepared = told.next?.pwId;
    if (entry.prepared !== undefined) this.#deps.onPrepared(entry.net);
  }

  #takePorts(
    entry: NetEntry,
    records: readonly PeerRecord[],
    verifier: Pick<Verifier, 'peer' | 'forget'>,
  ): void {
    for (const [id, port] of [...entry.ports]) {
      if (records.some((record) => record.id === id)) continue;
      entry.ports.delete(id);
      verifier.forget(id);
      this.#remove(port.id);
    }
    for (const record of records) {
      const port = entry.ports.get(record.id) ?? blankPort(entry.net, record.id);
      entry.ports.set(record.id, port);
      try {
        this.#takePort(entry, port, record, verifier);
      } catch (thrown) {
        const error = asPairwireError(thrown);
        const known = port.refusal?.message === error.message;
        port.state = 'refused';
        port.refusal = { code: error.code, message: error.message };
        this.#remove(port.id);
        if (!known) this.#report(port.id, error);
      }
    }
  }

  #takePort(
    entry: NetEntry,
    port: LinkPort,
    record: PeerRecord,
    verifier: Pick<Verifier, 'peer'>,
  ): void {
    const { member, boot } = verifier.peer(record);
    if (member.role !== 'link') {
      throw new PairwireError('RECORD_MISMATCH', `a ${member.role} is no link port`, {
        where: port.id,
      });
    }
    const isNew = boot !== undefined && !isEqual(boot.boot, port.boot ?? new Uint8Array());
    if (isNew && !entry.starts.take(this.#deps.now())) {
      throw new PairwireError('REFUSED', 'it starts anew too often', { where: port.id });
    }
    port.refusal = undefined;
    port.online = record.online;
    port.endpoints = record.endpoints.filter((one) => this.#acceptsEndpoint(one));
    port.index = record.index;
    port.boot = boot?.boot;
    port.bootSequence = boot?.sequence ?? 0;
    port.state = port.boot === undefined || port.index === undefined ? 'absent' : 'ready';
    if (port.state === 'absent') this.#remove(port.id);
  }

  /** The word of another subnet must not make us send sealed frames into a subnet of ours, or through the link itself. */
  #acceptsEndpoint(endpoint: Endpoint): boolean {
    const inside = [
      this.#deps.prefixes,
      ...[...this.#deps.nets.values()].map(({ prefixes }) => prefixes),
    ].flat();
    const text = ipToText(Buffer.from(endpoint.ip));
    return this.#deps.acceptsEndpoint(endpoint) && !inside.some((one) => covers(one, text));
  }

  /** Tells of what was refused, but not without end. */
  #report(what: string, error: PairwireError): void {
    if (this.#refusals.take(this.#deps.now())) this.#deps.onRefused(what, error);
  }

  /** Nothing of this net is believed until another word of it. */
  #refuse(entry: NetEntry, error: PairwireError): void {
    const known = entry.refusal?.message === error.message;
    this.#forgetKeys(entry);
    entry.refusal = { code: error.code, message: error.message };
    entry.prefixes = [];
    this.#tellRoutes(entry.net, []);
    if (!known) this.#report(entry.net, error);
  }

  #forgetKeys(entry: NetEntry): void {
    for (const [id, port] of entry.ports) {
      entry.verifier?.forget(id);
      this.#remove(port.id);
    }
    entry.ports.clear();
    entry.key?.key.fill(0);
    entry.next?.key.fill(0);
    entry.key = undefined;
    entry.next = undefined;
    entry.prepared = undefined;
  }

  #install(entry: NetEntry): Promise<unknown>[] {
    if (this.#ownBoot === undefined || entry.refusal !== undefined) return [];
    if (!this.#deps.nets.has(entry.net)) return [];
    const commands = this.#tellRoutes(entry.net, entry.prefixes);
    for (const port of entry.ports.values()) commands.push(...this.#installPort(entry, port));
    const { next } = entry;
    if (next === undefined) return commands;
    const ready = [...entry.ports.values()].filter(({ state }) => state === 'ready');
    const taken = ready.map(({ id }) => this.#sent.get(id)?.taken ?? Promise.resolve<Told>('gone'));
    const boot = this.#ownBoot;
    const told = Promise.all(taken).then((all) => {
      // What was said meanwhile is judged by itself.
      if (all.some((one) => one !== 'done') || entry.next !== next || this.#ownBoot !== boot)
        return;
      entry.prepared = next.pwId;
      this.#deps.onPrepared(entry.net);
    });
    return [...commands, told];
  }

  #installPort(entry: NetEntry, port: LinkPort): Promise<unknown>[] {
    const { index, boot } = port;
    const ownBoot = this.#ownBoot;
    if (ownBoot === undefined || index === undefined || boot === undefined) return [];
    if (port.state !== 'ready') return [];
    const fresh = { link: '', key: '', next: '', taken: Promise.resolve<Told>('done') };
    const sent: Sent = this.#sent.get(port.id) ?? fresh;
    this.#sent.set(port.id, sent);
    const commands: Promise<unknown>[] = [];
    const failed = (): void => {
      // All of it once more, because one command may have needed the other.
      if (this.#sent.get(port.id) === sent) this.#sent.delete(port.id);
    };
    const link: CommandFields<'link.set'> = {
      port: this.#deps.port,
      net: entry.net,
      peer: port.id,
      index,
      boot,
      endpoints: port.endpoints.map(({ ip, port: number }) => ({ ip, port: number })),
      online: port.online,
    };
    const text = fingerprint(link);
    if (sent.link !== text) {
      sent.link = text;
      commands.push(this.#tell('link.set', link, failed));
    }
    const first = sent.key === '';
    for (const [generation, which] of [
      [entry.key, 'key'],
      [entry.next, 'next'],
    ] as const) {
      if (generation === undefined) continue;
      const { key, pwId } = generation;
      const send = which === 'key';
      const command = { port: this.#deps.port, peer: port.id, boot: ownBoot, key, pwId, send };
      const print = keyFingerprint(command, index, boot);
      if (sent[which] === print) continue;
      sent[which] = print;
      const told = this.#tell('key.pair', command, failed);
      if (which === 'next') sent.taken = told;
      commands.push(told);
    }
    // Whatever an earlier control plane left in the data plane is covered, too.
    if (first && entry.key !== undefined) {
      if (entry.oldest > 1) this.#dropAt(port.id, entry.oldest - 1, 0);
      if (entry.key.pwId > entry.oldest) this.#dropAt(port.id, entry.key.pwId - 1, GRACE_MS);
    }
    return commands;
  }

  #tellRoutes(net: Id | '', prefixes: readonly string[]): Promise<unknown>[] {
    const text = prefixes.join();
    if (this.#ownBoot === undefined || this.#routes.get(net) === text) return [];
    this.#routes.set(net, text);
    const command = { port: this.#deps.port, net, prefixes: prefixes.map(prefixOf) };
    return [this.#tell('routes.set', command, () => this.#routes.delete(net))];
  }

  /** Former generations: those before the oldest that may be heard at once, others after a while. */
  #dropBelow(entry: NetEntry, pwId: number): void {
    for (const { id } of entry.ports.values()) {
      if (!this.#sent.has(id)) continue;
      this.#dropAt(id, pwId - 1, GRACE_MS);
      if (entry.oldest > 1) this.#dropAt(id, entry.oldest - 1, 0);
    }
  }

  #dropAt(port: string, pwId: number, graceMs: number): void {
    if (this.#ownBoot === undefined) return;
    const drop = { port: this.#deps.port, peer: port, pwId, graceMs };
    void tellDataPlane(this.#deps, 'key.drop', drop);
  }

  #remove(port: string): void {
    this.#sent.delete(port);
    if (this.#ownBoot === undefined) return;
    void tellDataPlane(this.#deps, 'peer.remove', { port: this.#deps.port, peer: port });
  }

  /** Says it, and again after a while if the data plane refuses. @param refused undoes what notes that it was said */
  async #tell<T extends CommandType>(
    type: T,
    command: CommandFields<T>,
    refused: () => void,
  ): Promise<Told> {
    const told = await tellDataPlane(this.#deps, type, command);
    if (told === 'refused') {
      refused();
      this.#retryAt = Math.min(this.#retryAt, this.#deps.now() + RETRY_MS);
    }
    return told;
  }
}

function blankPort(net: Id, id: Id): LinkPort {
  return {
    ...{ id: `${net}/${id}`, role: 'link', state: 'absent', refusal: undefined, online: false },
    ...{ index: undefined, boot: undefined, bootSequence: 0, macs: [], ips: [], endpoints: [] },
  };
}

/** A prefix as the data plane takes it. */
function prefixOf(text: string): { readonly ip: Uint8Array; readonly bits: number } {
  const [address = '', bits = ''] = text.split('/');
  return { ip: ipToBytes(address) ?? Buffer.alloc(0), bits: Number(bits) };
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function isSameGeneration(one: Generation | undefined, other: Generation | undefined): boolean {
  if (one === undefined || other === undefined) return one === other;
  return one.pwId === other.pwId && isEqual(one.key, other.key);
}
