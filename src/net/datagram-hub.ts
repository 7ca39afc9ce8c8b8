/**
 * The server's channels on datagrams, docs/protocol.md 6.7 to 6.9, whatever carries them:
 *
 *   message 1  -> shape -> mac1 -> seen before? -> under load: cookie or ticket, then limit by
 *                 prefix -> queue -> thread -> may it come in? -> thread -> message 2
 *   record     -> channel by its id -> opened there
 *
 * Nothing is kept of a stranger before his message 1 was found authentic; what is thrown away
 * is counted, and ends nothing.
 */
import { randomBytes } from 'node:crypto';
import { Admission } from '../protocol/channel/admission.js';
import {
  CHANNEL_ID_SIZE,
  DATAGRAM_OVERHEAD,
  DatagramType,
  type DiscardReason,
  encodeWelcome as encodeWelcomeDatagram,
  ephemeralOf,
  idKey,
  MAX_MESSAGE_2,
  type Opening,
  parseOpening,
  receiverOf,
} from '../protocol/channel/datagram.js';
import {
  DatagramServerConnection,
  datagramPrologue,
  makeDatagramKeys,
} from '../protocol/channel/datagram-connection.js';
import type { DatagramKeys } from '../protocol/channel/exchange.js';
import type { FailureReason } from '../protocol/channel/failures.js';
import {
  type ChannelTerms,
  completeTerms,
  encodeWelcome,
  parseGreeting,
} from '../protocol/channel/handshake-payload.js';
import type { PatternName } from '../protocol/channel/noise.js';
import type { ReassemblyBudget } from '../protocol/channel/reliable.js';
import type { Greeted } from '../protocol/channel/responder.js';
import { Alarm } from './alarm.js';
import { ScheduledBacklog } from './backlog.js';
import type { HandshakeThread } from './handshakes.js';
import { PrefixLimit } from './prefix-limit.js';
import { decide, type ServerCore, ServerPeer } from './server-peer.js';

/** Implementation constants. */
/** Strangers' handshakes that wait before cookies are asked for. */
const COOKIE_ABOVE = 32;
/** How long cookies are asked for after the last time that so many waited, ms. */
const LOAD_MEMORY_MS = 2_000;
const PER_PREFIX = { burst: 64, perSecond: 16 };
/** Resets sent in a second to one prefix. */
const RESETS = { burst: 64, perSecond: 64 };
/** A peer that is probed must answer within this time, and is asked so often, ms. */
const PROBE_MS = 2_000;
const PROBE_EVERY_MS = 250;
/** Messages 1 whose answer may be asked for again; an answer is kept this long, ms. */
const MAX_ANSWERS = 4_096;
const ANSWER_MEMORY_MS = 10_000;

/** Where a datagram came from and how to answer it. */
export interface Path {
  /** Address without port, as text. */
  readonly host: string;
  /** Address and port, as text. */
  readonly address: string;
  /** What a cookie is bound to. */
  readonly proof: string;
  /** The largest record that goes back this way. */
  readonly maxRecord: number;
  send(datagram: Buffer): void;
  /** The peer is to be answered another way from now on. */
  replaced(by: Path): void;
}

/** A message 1 that was taken, by its ephemeral key. */
interface Known {
  readonly at: number;
  /** Message 2 once there is one. */
  answer: Buffer | undefined;
}

/** All channels of a server that come in datagrams. */
export class DatagramHub<Request> {
  readonly core: ServerCore<Request>;
  readonly budget: ReassemblyBudget;
  readonly admission: Admission;
  readonly thread: HandshakeThread;
  readonly #terms: ChannelTerms;
  readonly #peers = new Map<string, DatagramPeer<Request>>();
  /** In the order of their arrival. */
  readonly #known = new Map<string, Known>();
  readonly #prefixes: PrefixLimit;
  readonly #resets: PrefixLimit;
  #loadUntil = Number.NEGATIVE_INFINITY;
  #dirty: DatagramPeer<Request>[] = [];
  #flushing = false;

  constructor(core: ServerCore<Request>, thread: HandshakeThread, budget: ReassemblyBudget) {
    this.core = core;
    this.thread = thread;
    this.budget = budget;
    const { staticKeys, limits, terms } = core.options;
    this.admission = new Admission(staticKeys, core.clock, {
      forgotten: () => {
        core.counters.forgotten.ticket += 1;
      },
    });
    this.#terms = completeTerms(terms);
    this.#prefixes = new PrefixLimit(core.clock, limits?.perPrefix ?? PER_PREFIX);
    this.#resets = new PrefixLimit(core.clock, RESETS);
  }

  /**
   * Takes a datagram. Never throws on account of it.
   * @returns the peer whose record it was, if it was authentic
   */
  receive(datagram: Buffer, path: Path): DatagramPeer<Request> | undefined {
    switch (datagram[0]) {
      case DatagramType.record:
        return this.#record(datagram, path);
      case DatagramType.message1:
      case DatagramType.message1Psk:
        this.#opening(datagram, path);
        return undefined;
      default:
        this.discard('shape');
        return undefined;
    }
  }

  discard(reason: DiscardReason): void {
    this.core.counters.discarded[reason] += 1;
  }

  /** Makes a channel id that leads to `peer`. */
  register(peer: DatagramPeer<Request>, id: Buffer): void {
    this.#peers.set(idKey(id), peer);
  }

  forget(id: Buffer): void {
    this.#peers.delete(idKey(id));
  }

  /** Puts out what a peer has to say at the end of this turn of the event loop. */
  flushLater(peer: DatagramPeer<Request>): void {
    this.#dirty.push(peer);
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => {
      this.#flushing = false;
      const dirty = this.#dirty;
      this.#dirty = [];
      for (const one of dirty) one.flush();
    });
  }

  /** Forgets answers that nobody will ask for again. */
  tick(now: number): void {
    for (const [ephemeral, known] of this.#known) {
      if (now - known.at < ANSWER_MEMORY_MS) break;
      this.#known.delete(ephemeral);
    }
  }

  close(): void {
    this.#known.clear();
  }

  // ------------------------------------------------------------------ records

  #record(datagram: Buffer, path: Path): DatagramPeer<Request> | undefined {
    const id = receiverOf(datagram);
    const peer = id === undefined ? undefined : this.#peers.get(id);
    if (peer !== undefined) return peer.receive(datagram, path) ? peer : undefined;
    this.discard('channel');
    if (id !== undefined && datagram.length >= DATAGRAM_OVERHEAD && this.#resets.take(path.host)) {
      // The answer is shorter than the question.
      this.core.counters.resets += 1;
      path.send(this.admission.reset(datagram.subarray(1, 1 + CHANNEL_ID_SIZE)));
    }
    return undefined;
  }

  // ------------------------------------------------------------------ handshakes

  #opening(datagram: Buffer, path: Path): void {
    const opening = parseOpening(datagram);
    if (opening === undefined) {
      this.discard('shape');
      return;
    }
    if (!this.admission.isOurs(opening)) {
      this.discard('mac1');
      return;
    }
    const ephemeral = ephemeralOf(opening.noise);
    const known = this.#known.get(ephemeral);
    if (known !== undefined) {
      if (known.answer !== undefined) path.send(known.answer);
      return;
    }
    const standing = this.#admit(opening, path);
    if (standing === undefined) return;
    if (!this.thread.hasRoom(standing === 'known')) {
      this.discard('queue');
      return;
    }
    this.#greet(opening, ephemeral, standing === 'known', path);
  }

  #admit(opening: Opening, path: Path): 'known' | 'stranger' | undefined {
    const proof = Buffer.from(path.proof, 'latin1');
    const standing = this.admission.judge(opening, proof);
    if (standing === 'known') return 'known';
    if (!this.#loaded()) return 'stranger';
    if (standing === 'unproven') {
      this.core.counters.cookies += 1;
      path.send(this.admission.cookieReply(opening, proof));
      return undefined;
    }
    if (this.#prefixes.take(path.host)) return 'stranger';
    this.discard('rate');
    return undefined;
  }

  /** True while more wait than are computed at once, and a little longer. */
  #loaded(): boolean {
    const now = this.core.clock.bootMs();
    const above = this.core.options.limits?.cookieAbove ?? COOKIE_ABOVE;
    if (this.thread.waiting >= above) this.#loadUntil = now + LOAD_MEMORY_MS;
    return now < this.#loadUntil;
  }

  #greet(opening: Opening, ephemeral: string, reserved: boolean, path: Path): void {
    const known: Known = { at: this.core.clock.bootMs(), answer: undefined };
    this.#remember(ephemeral, known);
    const withToken = opening.type === DatagramType.message1Psk;
    const clientId = Buffer.from(opening.sender);
    this.greet(
      withToken ? 'IKpsk2' : 'IK',
      clientId,
      Buffer.from(opening.noise),
      reserved,
      (hello) => {
        const reject = (reason: FailureReason | undefined): void => {
          this.#known.delete(ephemeral);
          if (reason === undefined) {
            this.discard('handshake');
            return;
          }
          this.discard('refused');
          this.core.refused(path.address, reason);
        };
        if (hello === undefined) reject(undefined);
        else {
          this.answer(hello, clientId, reject, (keys, noise) => {
            const datagram = encodeWelcomeDatagram(clientId, noise);
            if (datagram.length > MAX_MESSAGE_2 || !this.core.room()) {
              this.#known.delete(ephemeral);
              wipeKeys(keys);
              return;
            }
            known.answer = datagram;
            const peer = new DatagramPeer(this, path, hello, keys);
            this.register(peer, keys.localId);
            this.core.added(peer);
            path.send(datagram);
          });
        }
      },
    );
  }

  #remember(ephemeral: string, known: Known): void {
    if (this.#known.size >= MAX_ANSWERS) {
      for (const oldest of this.#known.keys()) {
        this.#known.delete(oldest);
        this.core.counters.forgotten.answer += 1;
        break;
      }
    }
    this.#known.set(ephemeral, known);
  }

  /** Has a Noise message 1 read. `done` gets undefined for one that is not authentic. */
  greet(
    pattern: PatternName,
    clientId: Buffer,
    noise: Buffer,
    reserved: boolean,
    done: (hello: Hello | undefined) => void,
  ): void {
    const greeting = { pattern, prologue: datagramPrologue(clientId), noise };
    this.thread.greet(greeting, (greeted) => done(this.#hello(greeted, pattern)), reserved);
  }

  #hello(greeted: Greeted | undefined, pattern: PatternName): Hello | undefined {
    if (greeted === undefined) return undefined;
    const payload = parseGreeting(greeted.payload, pattern === 'IKpsk2');
    if (payload === undefined) {
      this.thread.drop(greeted.handle);
      return undefined;
    }
    const { tokenId } = payload;
    return { handle: greeted.handle, remoteKey: Buffer.from(greeted.remoteKey), tokenId };
  }

  /** Asks the owner and has message 2 written. `rejected` gets the reason if it is the owner's. */
  answer(
    hello: Hello,
    clientId: Buffer,
    rejected: (reason: FailureReason | undefined) => void,
    accepted: (keys: DatagramKeys, noise: Uint8Array) => void,
  ): void {
    decide(
      this.core,
      hello,
      (psk) => {
        const localId = randomBytes(CHANNEL_ID_SIZE);
        const ticket = this.admission.ticket();
        const payload = encodeWelcome(this.core.time.now(), this.#terms, {
          channel: localId,
          reset: this.admission.resetToken(localId),
          ticket: ticket.name,
          key: ticket.key,
        });
        this.thread.finish(hello.handle, payload, psk, (answered) => {
          if (answered === undefined) {
            rejected(undefined);
            return;
          }
          const ids = { local: localId, remote: clientId };
          const keys = makeDatagramKeys(answered, false, ids, this.core.clock.bootMs());
          accepted(keys, answered.noise);
        });
      },
      (reason) => {
        this.thread.drop(hello.handle);
        rejected(reason);
      },
    );
  }
}

/** Who wants to come in. */
interface Hello {
  readonly handle: number;
  readonly remoteKey: Buffer;
  readonly tokenId: Buffer | undefined;
}

function wipeKeys({ tx, rx }: DatagramKeys): void {
  tx.wipe();
  rx.wipe();
}

/** One channel of a server on datagrams, from message 2 on. */
export class DatagramPeer<Request> extends ServerPeer<Request> {
  protected readonly backlog: ScheduledBacklog;
  readonly #hub: DatagramHub<Request>;
  readonly #connection: DatagramServerConnection;
  readonly #alarm: Alarm;
  #path: Path;
  #probes: NodeJS.Timeout | undefined;
  #dirty = false;

  constructor(hub: DatagramHub<Request>, path: Path, hello: Hello, keys: DatagramKeys) {
    super(hub.core);
    this.#hub = hub;
    this.#path = path;
    this.remoteKey = hello.remoteKey;
    this.tokenId = hello.tokenId;
    const { clock, time, options } = hub.core;
    this.#connection = new DatagramServerConnection(
      {
        clock,
        time,
        budget: hub.budget,
        maxRecord: path.maxRecord,
        ...(options.terms ? { terms: options.terms } : {}),
      },
      keys,
      {
        transmit: (datagram) => this.#path.send(datagram),
        confirmed: (renewed) => this.confirmed(renewed),
        message: (message) => this.message(message),
        renew: (renewal, noise) => this.#renew(renewal, noise),
        forgotten: (id) => hub.forget(id),
        discarded: (reason) => hub.discard(reason),
        closed: (reason) => this.channelClosed(reason),
      },
    );
    this.backlog = new ScheduledBacklog(this.#connection, clock, () => this.#flushLater());
    this.#alarm = new Alarm(clock, () => {
      this.#connection.expire();
      this.flush();
    });
  }

  override get remoteAddress(): string {
    return this.#path.address;
  }

  /** Where the newest record came from. */
  get path(): Path {
    return this.#path;
  }

  /** Takes a record for this channel. @returns false if it was thrown away */
  receive(datagram: Buffer, path: Path): boolean {
    const { authentic, newest } = this.#connection.receive(datagram);
    if (!authentic) return false;
    // A newer record came from there, so that is where the peer is now.
    if (newest && path !== this.#path) {
      this.#path.replaced(path);
      this.#path = path;
    }
    this.heard();
    this.#flushLater();
    this.throttle();
    return true;
  }

  /** Puts out what waits. */
  flush(): void {
    this.#dirty = false;
    if (this.closed) return;
    this.backlog.seal();
    this.#connection.flush();
    this.#alarm.set(this.#connection.deadline);
  }

  override probe(): void {
    if (this.#probes !== undefined || this.closed) return;
    const since = this.core.clock.bootMs();
    const ask = (): void => {
      if (this.heardAt > since) {
        clearInterval(this.#probes);
        this.#probes = undefined;
      } else if (this.core.clock.bootMs() - since >= PROBE_MS) {
        this.end('idle');
      } else {
        this.#connection.probe();
      }
    };
    this.#probes = setInterval(ask, PROBE_EVERY_MS);
    ask();
  }

  override end(reason: FailureReason): void {
    this.#connection.close(reason);
  }

  protected override hold(paused: boolean): void {
    this.#connection.pause(paused);
    this.#flushLater();
  }

  protected override release(): void {
    clearInterval(this.#probes);
    this.#alarm.clear();
  }

  protected override tickChannel(): void {
    this.#connection.tick();
  }

  #flushLater(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    this.#hub.flushLater(this);
  }

  #renew(renewal: Buffer, noise: Buffer): void {
    const clientId = renewal.subarray(0, CHANNEL_ID_SIZE);
    const refuse = (reason: FailureReason | undefined): void =>
      this.#connection.refuseRenewal(renewal, reason);
    this.#hub.greet('IK', clientId, noise, true, (hello) => {
      if (hello === undefined) {
        refuse(undefined);
      } else if (!hello.remoteKey.equals(this.remoteKey)) {
        this.#hub.thread.drop(hello.handle);
        refuse('handshake_key_changed');
      } else {
        this.#hub.answer(hello, clientId, refuse, (keys, answer) => {
          if (!this.#connection.acceptRenewal(renewal, keys, answer)) {
            wipeKeys(keys);
            return;
          }
          this.#hub.register(this, keys.localId);
          this.#flushLater();
        });
      }
    });
  }
}
