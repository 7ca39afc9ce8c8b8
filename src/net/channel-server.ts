/**
 * The server of the secure channel, docs/protocol.md section 6: accepts channels on any number
 * of addresses, over TCP, UDP or HTTP, and holds them to common limits. What goes wrong is
 * counted by reason and told to nobody but the owner.
 */
import type { FailureReason } from '../protocol/channel/failures.js';
import { ReassemblyBudget } from '../protocol/channel/reliable.js';
import { type Clock, ServerClock, SystemClock, type TimeSource } from '../runtime/clock.js';
import {
  type ChannelCounters,
  type ChannelServerOptions,
  channelCounters,
  type ListenAddress,
  MAX_CONNECTIONS,
  MAX_HALF_OPEN,
  MAX_PER_KEY,
  type Session,
} from './channel.js';
import { HttpListener } from './channel-http.js';
import { TcpListener } from './channel-tcp.js';
import { UdpListener } from './channel-udp.js';
import { DatagramHub } from './datagram-hub.js';
import { HandshakeThread } from './handshakes.js';
import type { Listener, ServerCore, ServerPeer } from './server-peer.js';

/** Implementation constants, ms unless stated. */
const HANDSHAKE_TIMEOUT = 10_000;
const SERVER_IDLE_TIMEOUT = 60_000;
const TICK_INTERVAL = 1_000;
/** Bytes kept out of order on all datagram channels together. */
const REASSEMBLY_BYTES = 64 * 1_048_576;

/** Accepts secure channels. */
export class ChannelServer<Request> {
  readonly counters: ChannelCounters = channelCounters();
  readonly #options: ChannelServerOptions<Request>;
  readonly #clock: Clock;
  readonly #time: TimeSource;
  readonly #peers = new Set<ServerPeer<Request>>();
  /** Sessions by static key, in the order of their arrival. */
  readonly #byKey = new Map<string, Set<ServerPeer<Request>>>();
  /** In the order of their arrival: the oldest makes room for the next. */
  readonly #halfOpen = new Set<ServerPeer<Request>>();
  readonly #budget: ReassemblyBudget;
  readonly #core: ServerCore<Request>;
  #thread: HandshakeThread | undefined;
  #hub: DatagramHub<Request> | undefined;
  #listeners: Listener[] = [];
  #timer: NodeJS.Timeout | undefined;
  #nextId = 1;

  constructor(options: ChannelServerOptions<Request>) {
    this.#options = options;
    this.#clock = options.clock ?? new SystemClock();
    this.#time = options.time ?? new ServerClock(this.#clock);
    this.#budget = new ReassemblyBudget(options.limits?.reassemblyBytes ?? REASSEMBLY_BYTES);
    this.#core = {
      options,
      clock: this.#clock,
      time: this.#time,
      counters: this.counters,
      room: () => this.#room(),
      nextId: () => this.#nextId++,
      added: (peer) => this.#added(peer),
      established: (peer) => this.#established(peer),
      ended: (peer, reason) => this.#ended(peer, reason),
      refused: (address, reason) => {
        this.counters.closed[reason] += 1;
        options.onClose?.({ address, reason });
      },
    };
  }

  /** The server's key-server time. */
  get time(): TimeSource {
    return this.#time;
  }

  /** The sessions there are now. */
  *sessions(): Iterable<Session> {
    for (const peer of this.#peers) if (!this.#halfOpen.has(peer)) yield peer;
  }

  /** Begins to listen everywhere. @returns the addresses in use. @throws PairwireError CHANNEL_UNREACHABLE if one can't be had */
  async listen(): Promise<ListenAddress[]> {
    const addresses: ListenAddress[] = [];
    try {
      for (const address of this.#options.listen) {
        const listener = this.#listener(address);
        addresses.push({ ...address, port: await listener.listen() });
        this.#listeners.push(listener);
      }
      await this.#thread?.ready;
    } catch (thrown) {
      await this.close();
      throw thrown;
    }
    this.#timer = setInterval(() => this.#tick(), this.#options.limits?.tickMs ?? TICK_INTERVAL);
    return addresses;
  }

  /** Stops listening and ends every channel. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    for (const peer of [...this.#peers]) peer.end('stopped');
    await Promise.all(this.#listeners.map((listener) => listener.close()));
    this.#listeners = [];
    this.#hub?.close();
    await this.#thread?.close();
  }

  #listener(address: ListenAddress): Listener {
    if (address.scheme === 'tcp') return new TcpListener(this.#core, address);
    this.#thread ??= new HandshakeThread(this.#options.staticKeys, this.#options.limits?.maxQueue);
    this.#hub ??= new DatagramHub(this.#core, this.#thread, this.#budget);
    return address.scheme === 'udp'
      ? new UdpListener(this.#core, this.#hub, address)
      : new HttpListener(this.#core, this.#hub, address);
  }

  #room(): boolean {
    this.counters.accepted += 1;
    const { limits } = this.#options;
    if (this.#peers.size >= (limits?.maxConnections ?? MAX_CONNECTIONS)) {
      this.counters.closed.too_many_connections += 1;
      return false;
    }
    if (this.#halfOpen.size >= (limits?.maxHalfOpen ?? MAX_HALF_OPEN)) {
      // An honest peer is through in milliseconds, so the one that waits longest goes.
      for (const oldest of this.#halfOpen) {
        oldest.end('too_many_half_open');
        break;
      }
    }
    return true;
  }

  #added(peer: ServerPeer<Request>): void {
    this.#peers.add(peer);
    this.#halfOpen.add(peer);
    this.#count();
  }

  #established(peer: ServerPeer<Request>): void {
    this.#halfOpen.delete(peer);
    this.counters.established += 1;
    this.#count();
    this.#limitKey(peer);
    this.#options.onSession?.(peer);
  }

  /** One member can't take the connections of all others: its oldest session makes room. */
  #limitKey(peer: ServerPeer<Request>): void {
    const key = peer.remoteKey.toString('latin1');
    const same = this.#byKey.get(key) ?? new Set();
    this.#byKey.set(key, same.add(peer));
    if (same.size <= (this.#options.limits?.maxPerKey ?? MAX_PER_KEY)) return;
    for (const oldest of same) {
      oldest.end('too_many_connections');
      break;
    }
  }

  #forgetKey(peer: ServerPeer<Request>): void {
    const key = peer.remoteKey.toString('latin1');
    const same = this.#byKey.get(key);
    if (same?.delete(peer) === true && same.size === 0) this.#byKey.delete(key);
  }

  #ended(peer: ServerPeer<Request>, reason: FailureReason): void {
    this.#forgetKey(peer);
    const wasSession = !this.#halfOpen.delete(peer) && this.#peers.has(peer);
    this.#peers.delete(peer);
    this.#count();
    this.counters.closed[reason] += 1;
    this.counters.superseded += peer.superseded;
    if (wasSession) this.#options.onSessionEnd?.(peer, reason);
    this.#options.onClose?.({
      address: peer.remoteAddress,
      reason,
      ...(wasSession ? { session: peer } : {}),
    });
  }

  #count(): void {
    this.counters.connections = this.#peers.size;
    this.counters.halfOpen = this.#halfOpen.size;
    this.counters.sessions = this.#peers.size - this.#halfOpen.size;
  }

  #tick(): void {
    const now = this.#clock.bootMs();
    const { limits } = this.#options;
    const handshakeTimeout = limits?.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT;
    for (const peer of this.#halfOpen) {
      if (now - peer.startedAt < handshakeTimeout) break;
      peer.end('handshake_timeout');
    }
    const idleTimeout = limits?.idleTimeoutMs ?? SERVER_IDLE_TIMEOUT;
    for (const peer of this.#peers) peer.tick(now, idleTimeout);
    this.#hub?.tick(now);
    this.counters.reassembly = this.#budget.used;
    this.counters.handshakeQueue = this.#thread?.queued ?? 0;
  }
}
