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
import { ipToBytes } from '../../src/protocol/ip.js';
import type { Change, Endpoint, PeerRecord } from '../../src/protocol/messages.js';
import { narrowed, networkOf } from '../../src/protocol/prefixes.js';
import { PairwireError } from '../../src/runtime/errors.js';
import type { CommandPort } from '../dataplane/client.js';
import type { CommandFields } from '../dataplane/messages.gen.js';
import { asPairwireError, fingerprint, keyFingerprint } from '../key-table/installed.js';
import { copyOf, type Generation } from '../key-table/peer-table.js';
import type { Verifier } from '../key-table/verifier.js';

/** How long a former generation may still be heard, ms. */
const GRACE_MS = 10_000;

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
  /** What is in our own subnet. */
  readonly prefixes: readonly string[];
  readonly nets: ReadonlyMap<Id, LocalNet>;
  readonly dataPlane: CommandPort;
  /** Judges records of another subnet. @throws PairwireError PIN_MISMATCH if its operator is another than before */
  readonly verifierOf: (net: Id, subnet: Id, operator: Uint8Array) => Pick<Verifier, 'peer'>;
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
  key: Generation | undefined;
}

/** Another subnet. */
export interface NetEntry {
  readonly net: Id;
  /** The name of that subnet; what its members' records are bound to. */
  subnet: Id | undefined;
  /** Why nothing crosses, if so. */
  refusal: { code: string; message: string } | undefined;
  /** What may cross: all of configuration, own key server and the other one agree. */
  prefixes: readonly string[];
  key: Generation | undefined;
  next: Generation | undefined;
  readonly ports: Map<Id, LinkPort>;
  seq: number;
  /** The next generation that the data plane has. */
  prepared: number | undefined;
}

interface Sent {
  link: string;
  key: string;
  next: string;
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

  constructor(deps: NetTableDeps) {
    this.#deps = deps;
  }

  nets(): IterableIterator<NetEntry> {
    return this.#nets.values();
  }

  /** Link ports of all nets. */
  *ports(): Generator<LinkPort> {
    for (const { ports } of this.#nets.values()) yield* ports.values();
  }

  /** Takes what the key server says of a net. */
  take(change: NetChange): void {
    const entry = this.#entry(change.net);
    this.#seen?.add(change.net);
    if (change.seq < entry.seq) return;
    entry.seq = change.seq;
    const local = this.#deps.nets.get(change.net);
    try {
      if (local === undefined) throw unconfigured(change.net);
      if (local.operator !== undefined && !isEqual(local.operator, change.operator)) {
        throw new PairwireError('PIN_MISMATCH', 'it has another operator than gateway.yaml says', {
          where: change.net,
        });
      }
      const verifier = this.#deps.verifierOf(change.net, change.subnet, change.operator);
      entry.subnet = change.subnet;
      entry.refusal = undefined;
      entry.prefixes = narrowed(local.prefixes, change.prefixes);
      this.#takeKeys(entry, change);
      this.#takePorts(entry, change.ports, verifier);
    } catch (thrown) {
      this.#refuse(entry, asPairwireError(thrown));
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
    return [...this.#nets.values()].flatMap(({ net, next, prepared }) =>
      next !== undefined && next.pwId === prepared ? [{ net, pwId: next.pwId }] : [],
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
    for (const entry of this.#nets.values()) commands.push(...this.#install(entry));
    await Promise.all(commands);
  }

  /** The data plane is gone: nothing is installed until `installAll`. */
  detached(): void {
    this.#ownBoot = undefined;
    this.#sent.clear();
    this.#routes.clear();
    for (const entry of this.#nets.values()) entry.prepared = undefined;
  }

  /** Begins a synchronisation from nothing: what is not named until `endFull` is gone. */
  beginFull(): void {
    this.#seen = new Set();
    for (const entry of this.#nets.values()) entry.seq = 0;
  }

  /** Ends it. `leftovers` are link ports that only the data plane still knows. */
  endFull(leftovers: Iterable<string> = []): void {
    const seen = this.#seen;
    if (seen === undefined) return;
    this.#seen = undefined;
    for (const net of [...this.#nets.keys()]) if (!seen.has(net)) this.gone(net);
    for (const port of leftovers) if (this.#portNamed(port) === undefined) this.#remove(port);
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

  #entry(net: Id): NetEntry {
    const known = this.#nets.get(net);
    if (known !== undefined) return known;
    const entry: NetEntry = {
      ...{ net, subnet: undefined, refusal: undefined, prefixes: [], key: undefined },
      ...{ next: undefined, ports: new Map(), seq: 0, prepared: undefined },
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
    if (entry.next?.pwId !== formerNext?.pwId) entry.prepared = undefined;
    if (former !== undefined && former.pwId < told.pwId) this.#dropBelow(entry, told.pwId);
    if (told.oldest > 1) this.#drop(entry, told.oldest - 1, 0);
    former?.key.fill(0);
    formerNext?.key.fill(0);
  }

  #takePorts(
    entry: NetEntry,
    records: readonly PeerRecord[],
    verifier: Pick<Verifier, 'peer'>,
  ): void {
    for (const [id, port] of [...entry.ports]) {
      if (records.some((record) => record.id === id)) continue;
      entry.ports.delete(id);
      this.#remove(port.id);
    }
    for (const record of records) {
      const port = entry.ports.get(record.id) ?? blankPort(entry.net, record.id);
      entry.ports.set(record.id, port);
      try {
        this.#takePort(port, record, verifier);
      } catch (thrown) {
        const error = asPairwireError(thrown);
        const known = port.refusal?.message === error.message;
        port.state = 'refused';
        port.refusal = { code: error.code, message: error.message };
        this.#remove(port.id);
        if (!known) this.#deps.onRefused(port.id, error);
      }
    }
  }

  #takePort(port: LinkPort, record: PeerRecord, verifier: Pick<Verifier, 'peer'>): void {
    const { member, boot } = verifier.peer(record);
    if (member.role !== 'link') {
      throw new PairwireError('RECORD_MISMATCH', `a ${member.role} is no link port`, {
        where: port.id,
      });
    }
    port.refusal = undefined;
    port.online = record.online;
    port.endpoints = record.endpoints.filter(this.#deps.acceptsEndpoint);
    port.index = record.index;
    port.boot = boot?.boot;
    port.bootSequence = boot?.sequence ?? 0;
    port.state = port.boot === undefined || port.index === undefined ? 'absent' : 'ready';
    if (port.state === 'absent') this.#remove(port.id);
  }

  /** Nothing of this net is believed until another word of it. */
  #refuse(entry: NetEntry, error: PairwireError): void {
    const known = entry.refusal?.message === error.message;
    this.#forgetKeys(entry);
    entry.refusal = { code: error.code, message: error.message };
    entry.prefixes = [];
    this.#tellRoutes(entry.net, []);
    if (!known) this.#deps.onRefused(entry.net, error);
  }

  #forgetKeys(entry: NetEntry): void {
    for (const { id } of entry.ports.values()) this.#remove(id);
    entry.ports.clear();
    entry.key?.key.fill(0);
    entry.next?.key.fill(0);
    entry.key = undefined;
    entry.next = undefined;
    entry.prepared = undefined;
  }

  #install(entry: NetEntry): Promise<void>[] {
    if (this.#ownBoot === undefined || entry.refusal !== undefined) return [];
    const commands = this.#tellRoutes(entry.net, entry.prefixes);
    for (const port of entry.ports.values()) commands.push(...this.#installPort(entry, port));
    const next = entry.next?.pwId;
    if (next === undefined) return commands;
    const ready = Promise.all(commands).then(() => {
      if (entry.next?.pwId !== next || this.#ownBoot === undefined) return;
      entry.prepared = next;
      this.#deps.onPrepared(entry.net);
    });
    return [...commands, ready];
  }

  #installPort(entry: NetEntry, port: LinkPort): Promise<void>[] {
    const { index, boot } = port;
    const ownBoot = this.#ownBoot;
    port.key = entry.key;
    if (ownBoot === undefined || index === undefined || boot === undefined) return [];
    if (port.state !== 'ready') return [];
    const sent = this.#sent.get(port.id) ?? { link: '', key: '', next: '' };
    this.#sent.set(port.id, sent);
    const commands: Promise<void>[] = [];
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
      commands.push(this.#settle(this.#deps.dataPlane.request('link.set', link)));
    }
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
      commands.push(this.#settle(this.#deps.dataPlane.request('key.pair', command)));
    }
    return commands;
  }

  #tellRoutes(net: Id | '', prefixes: readonly string[]): Promise<void>[] {
    const text = prefixes.join();
    if (this.#ownBoot === undefined || (this.#routes.get(net) ?? '') === text) return [];
    this.#routes.set(net, text);
    const command = { port: this.#deps.port, net, prefixes: prefixes.map(prefixOf) };
    return [this.#settle(this.#deps.dataPlane.request('routes.set', command))];
  }

  #dropBelow(entry: NetEntry, pwId: number): void {
    this.#drop(entry, pwId - 1, GRACE_MS);
  }

  #drop(entry: NetEntry, pwId: number, graceMs: number): void {
    if (this.#ownBoot === undefined) return;
    for (const { id } of entry.ports.values()) {
      if (!this.#sent.has(id)) continue;
      const drop = { port: this.#deps.port, peer: id, pwId, graceMs };
      void this.#settle(this.#deps.dataPlane.request('key.drop', drop));
    }
  }

  #remove(port: string): void {
    this.#sent.delete(port);
    if (this.#ownBoot === undefined) return;
    const remove = { port: this.#deps.port, peer: port };
    void this.#settle(this.#deps.dataPlane.request('peer.remove', remove));
  }

  /** A missing data plane is no failure: `installAll` will say it all again. */
  async #settle(command: Promise<unknown>): Promise<void> {
    try {
      await command;
    } catch (thrown) {
      const error = asPairwireError(thrown);
      if (error.code !== 'DATAPLANE_GONE') this.#deps.onCommandFailed(error);
    }
  }
}

function blankPort(net: Id, id: Id): LinkPort {
  return {
    ...{ id: `${net}/${id}`, role: 'link', state: 'absent', refusal: undefined, online: false },
    ...{ index: undefined, boot: undefined, bootSequence: 0, macs: [], ips: [], endpoints: [] },
    key: undefined,
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

function unconfigured(net: Id): PairwireError {
  return new PairwireError('CONFIG_INVALID', 'gateway.yaml does not name this net', {
    where: net,
    hint: `add it at ports[0].nets, with the prefixes that may be behind ${net}`,
  });
}
