/**
 * Messages over records on datagrams, docs/protocol.md 6.9: both ends of a channel after the
 * handshake, as a machine without I/O. Keys come and go (renewal), the streams of both
 * directions go on. The plaintext of a record is, after the one-time password, a row of
 *
 *   data     1 | offset (6) | length (2) | bytes
 *   ack      2 | next offset (6) | limit (6) | count (1) | count x ( start (6) | end (6) )
 *   renew    3 | length (2) | channel id (8) | Noise message 1
 *   renewed  4 | length (2) | Noise message 2
 *   probe    5
 *   close    6
 *
 * The stream of a direction is a row of frames of type 4 as on TCP (6.1) with the message in
 * clear: the record around it is the sealed part.
 *
 * Error contract: what does not open is thrown away and counted. Only what an authentic peer
 * did wrong ends the channel.
 */
import type { Clock, TimeSource } from '../../runtime/clock.js';
import { decodeEnvelope, type Envelope } from './codec.js';
import {
  DATAGRAM_OVERHEAD,
  type DiscardReason,
  idKey,
  MAX_HTTP_RECORD,
  receiverOf,
} from './datagram.js';
import { type DatagramOpener, type DatagramSealer, FRAMES_AT } from './datagram-record.js';
import type { FailureReason } from './failures.js';
import { FRAME_HEADER_SIZE, FrameType, StreamFramer, writeFrameHeader } from './framing.js';
import { MAX_MESSAGE_SIZE } from './record.js';
import {
  ACK_DELAY_MS,
  MAX_RANGES,
  type Range,
  type ReassemblyBudget,
  ReliableReceiver,
  ReliableSender,
} from './reliable.js';

/** How long records under the keys before are still taken after a renewal; then these are wiped. */
export const KEY_OVERLAP_MS = 10_000;
/** Bytes that may wait to be sent before `sendable` says no. */
const SEND_ROOM = 65_536;
/** How often a sender asks whose peer grants no window, ms. */
const PROBE_INTERVAL_MS = 500;

const FrameKind = { data: 1, ack: 2, renew: 3, renewed: 4, probe: 5, close: 6 } as const;
const DATA_HEADER = 1 + 6 + 2;
const ACK_HEADER = 1 + 6 + 6 + 1;
const RANGE_SIZE = 12;
const CONTROL_HEADER = 1 + 2;
/** A record is closed rather than filled up with a piece smaller than this. */
const LEAST_PIECE = 256;

/** Where plaintexts are put together; nothing in here is re-entrant while it is in use. */
const SCRATCH = Buffer.alloc(MAX_HTTP_RECORD);

/** The keys of one handshake. */
export interface DatagramKeys {
  readonly tx: DatagramSealer;
  readonly rx: DatagramOpener;
  /** Our channel id under these keys. */
  readonly localId: Buffer;
  readonly startedAt: number;
}

export interface ExchangeOptions {
  readonly clock: Clock;
  readonly time: TimeSource;
  readonly budget: ReassemblyBudget;
  /** The largest datagram to send. */
  readonly maxRecord: number;
}

export interface ExchangeEvents {
  /** A datagram is to go out. */
  transmit(datagram: Buffer): void;
  message(message: Envelope): void;
  /** The renewal's Noise messages: what follows the length in `renew` and `renewed`. */
  renew(body: Buffer): void;
  renewed(body: Buffer): void;
  /** The first record under keys that were `offer`ed: they are in use from here on. */
  confirmed(): void;
  /** Keys were wiped: their channel id leads nowhere any more. */
  forgotten(localId: Buffer): void;
  /** An authentic peer broke the rules, or said good-bye. */
  ended(reason: FailureReason): void;
}

/** What `receive` made of a datagram. */
export interface Received {
  readonly discarded: DiscardReason | undefined;
  /** Authentic and newer than any before: its sender's address is the peer's. */
  readonly newest: boolean;
}

const NEWEST: Received = { discarded: undefined, newest: true };
const LATE: Received = { discarded: undefined, newest: false };

/** One end of a channel on datagrams. */
export class Exchange {
  readonly #options: ExchangeOptions;
  readonly #events: ExchangeEvents;
  readonly #sender = new ReliableSender();
  readonly #receiver: ReliableReceiver;
  readonly #framer: StreamFramer;
  #validityMs: number;
  #current: DatagramKeys | undefined;
  #previous: { readonly keys: DatagramKeys; readonly until: number } | undefined;
  /** Offered to the peer, who has not used them yet. */
  #offered: DatagramKeys | undefined;
  #controls: Buffer[] = [];
  #ackAt: number | undefined;
  #probeAt: number | undefined;
  #closed = false;
  /** Data that was acknowledged already, data beyond the window and the like, by what it was thrown away for. */
  readonly #discard: (reason: DiscardReason) => void;

  constructor(
    options: ExchangeOptions,
    validityMs: number,
    events: ExchangeEvents,
    discard: (reason: DiscardReason) => void,
  ) {
    this.#options = options;
    this.#validityMs = validityMs;
    this.#events = events;
    this.#discard = discard;
    this.#receiver = new ReliableReceiver(options.budget, (bytes) => this.#stream(bytes));
    this.#framer = new StreamFramer({
      accepts: (type) => type === FrameType.record,
      frame: (_type, body) => this.#message(body),
    });
  }

  /** The keys in use. */
  get keys(): DatagramKeys | undefined {
    return this.#current;
  }

  /** Records of the busier direction under the keys in use. */
  get records(): number {
    return Math.max(this.#current?.tx.count ?? 0, this.#current?.rx.count ?? 0);
  }

  /** True if `send` would take a message now. */
  get sendable(): boolean {
    return !this.#closed && this.#current !== undefined && this.#sender.waiting < SEND_ROOM;
  }

  /** Uses keys from now on. Those before are good for a while for what is still on its way. */
  install(keys: DatagramKeys, validityMs: number): void {
    this.#forgetPrevious();
    if (this.#current !== undefined) {
      this.#current.tx.wipe();
      const until = this.#options.clock.bootMs() + KEY_OVERLAP_MS;
      this.#previous = { keys: this.#current, until };
    }
    this.#current = keys;
    this.#validityMs = validityMs;
  }

  /** Keys that the peer learns from message 2: in use as soon as a record under them comes. */
  offer(keys: DatagramKeys): void {
    if (this.#offered !== undefined) this.#forget(this.#offered);
    this.#offered = keys;
  }

  /** Takes back what was offered and not used. */
  withdraw(): void {
    if (this.#offered !== undefined) this.#forget(this.#offered);
    this.#offered = undefined;
  }

  /** Takes a datagram of type 4. Never throws on account of it. */
  receive(datagram: Buffer): Received {
    const keys = this.#keysFor(datagram);
    if (keys === undefined) return { discarded: 'channel', newest: false };
    const opened = keys.rx.open(datagram, this.#options.time.now(), this.#validityMs);
    if (!opened.ok) return { discarded: opened.reason, newest: false };
    if (keys === this.#offered) {
      this.#offered = undefined;
      this.install(keys, this.#validityMs);
      this.#events.confirmed();
    }
    if (!this.#closed) this.#frames(opened.frames);
    return opened.newest && keys === this.#current ? NEWEST : LATE;
  }

  /** Sends an encoded message of at most 1 MiB. @returns false if there is no room now */
  send(message: Uint8Array): boolean {
    if (!this.sendable || message.length > MAX_MESSAGE_SIZE) return false;
    this.sendAnyway(message);
    return true;
  }

  /** As `send`, for what must not wait behind a full queue. */
  sendAnyway(message: Uint8Array): void {
    const header = Buffer.allocUnsafe(FRAME_HEADER_SIZE);
    writeFrameHeader(header, 0, FrameType.record, message.length);
    this.#sender.append(header);
    this.#sender.append(message);
  }

  /** Sends a part of a renewal with the next record. */
  sendRenewal(kind: 'renew' | 'renewed', body: Uint8Array): void {
    const out = Buffer.allocUnsafe(CONTROL_HEADER + body.length);
    out[0] = FrameKind[kind];
    out.writeUInt16BE(body.length, 1);
    out.set(body, CONTROL_HEADER);
    this.#controls.push(out);
  }

  /** Stops granting window while the owner has too much to do. */
  pause(paused: boolean): void {
    this.#receiver.paused = paused;
    if (!paused) this.#ackAt = this.#options.clock.bootMs();
  }

  /** Puts out all that may go now. */
  flush(): void {
    const now = this.#options.clock.bootMs();
    while (!this.#closed && this.#current !== undefined) {
      const size = this.#fill(now);
      if (size === 0) return;
      const plain = SCRATCH.subarray(0, size);
      this.#events.transmit(this.#current.tx.seal(plain, this.#options.time.now()));
    }
  }

  /** Asks the peer for an acknowledgement with the next record. */
  probe(): void {
    this.#controls.push(Buffer.from([FrameKind.probe]));
  }

  /** Puts out a record with an acknowledgement and nothing else. */
  poll(): void {
    if (this.#closed || this.#current === undefined) return;
    const plain = SCRATCH.subarray(0, this.#writeAck(FRAMES_AT));
    this.#ackAt = undefined;
    this.#events.transmit(this.#current.tx.seal(plain, this.#options.time.now()));
  }

  /** When `expire` is to be called. */
  get deadline(): number | undefined {
    if (this.#closed) return undefined;
    let deadline = this.#sender.deadline;
    for (const at of [this.#ackAt, this.#probeDeadline()]) {
      if (at !== undefined && (deadline === undefined || at < deadline)) deadline = at;
    }
    return deadline;
  }

  /** Looks at the timers; `flush` is to follow. */
  expire(): void {
    const now = this.#options.clock.bootMs();
    this.#sender.expire(now);
    const probeAt = this.#probeDeadline();
    if (probeAt !== undefined && now >= probeAt) {
      this.#probeAt = now + PROBE_INTERVAL_MS;
      this.probe();
    }
  }

  /** To be called about once a second: old keys go. */
  tick(): void {
    const now = this.#options.clock.bootMs();
    if (this.#previous !== undefined && now >= this.#previous.until) this.#forgetPrevious();
  }

  /** Says good-bye, if there is anybody to say it to, and wipes everything. */
  close(farewell: boolean): void {
    if (this.#closed) return;
    if (farewell && this.#current !== undefined) {
      SCRATCH[FRAMES_AT] = FrameKind.close;
      const plain = SCRATCH.subarray(0, FRAMES_AT + 1);
      try {
        this.#events.transmit(this.#current.tx.seal(plain, this.#options.time.now()));
      } catch {
        // As if it were lost: whatever can't be sent to must be able to end.
      }
    }
    this.#closed = true;
    this.#receiver.close();
    this.#forgetPrevious();
    this.withdraw();
    if (this.#current !== undefined) this.#forget(this.#current);
    this.#current = undefined;
  }

  #keysFor(datagram: Buffer): DatagramKeys | undefined {
    const id = receiverOf(datagram);
    for (const keys of [this.#current, this.#offered, this.#previous?.keys]) {
      if (keys !== undefined && idKey(keys.localId) === id) return keys;
    }
    return undefined;
  }

  // ------------------------------------------------------------------ out

  /** Puts the next plaintext together. @returns its size, 0 if there is nothing to say */
  #fill(now: number): number {
    const end =
      Math.min(this.#options.maxRecord, MAX_HTTP_RECORD) - (DATAGRAM_OVERHEAD - FRAMES_AT);
    const due = this.#ackAt !== undefined && this.#ackAt <= now;
    let at = FRAMES_AT;
    if (this.#ackAt !== undefined) at = this.#writeAck(at);
    const afterAck = at;
    for (;;) {
      const control = this.#controls[0];
      if (control === undefined || at + control.length > end) break;
      this.#controls.shift();
      SCRATCH.set(control, at);
      at += control.length;
    }
    at = this.#writeData(at, end, now);
    if (at === afterAck && !due) {
      // A lost segment may fill a record to the last byte. The acknowledgement alone waits
      // for company until it is due.
      at = this.#writeData(FRAMES_AT, end, now);
      return at === FRAMES_AT ? 0 : at;
    }
    this.#ackAt = undefined;
    return at;
  }

  #writeData(start: number, end: number, now: number): number {
    let at = start;
    while (end - at > Math.min(LEAST_PIECE, DATA_HEADER + this.#sender.waiting)) {
      const segment = this.#sender.take(end - at - DATA_HEADER, now);
      if (segment === undefined) break;
      SCRATCH[at] = FrameKind.data;
      SCRATCH.writeUIntBE(segment.offset, at + 1, 6);
      SCRATCH.writeUInt16BE(segment.bytes.length, at + 7);
      SCRATCH.set(segment.bytes, at + DATA_HEADER);
      at += DATA_HEADER + segment.bytes.length;
    }
    return at;
  }

  #writeAck(start: number): number {
    const ranges = this.#receiver.gaps ? this.#receiver.ranges() : [];
    SCRATCH[start] = FrameKind.ack;
    SCRATCH.writeUIntBE(this.#receiver.next, start + 1, 6);
    SCRATCH.writeUIntBE(this.#receiver.limit, start + 7, 6);
    SCRATCH[start + 13] = ranges.length;
    let at = start + ACK_HEADER;
    for (const range of ranges) {
      SCRATCH.writeUIntBE(range.start, at, 6);
      SCRATCH.writeUIntBE(range.end, at + 6, 6);
      at += RANGE_SIZE;
    }
    return at;
  }

  #probeDeadline(): number | undefined {
    if (!this.#sender.stalled) {
      this.#probeAt = undefined;
      return undefined;
    }
    this.#probeAt ??= this.#options.clock.bootMs() + PROBE_INTERVAL_MS;
    return this.#probeAt;
  }

  // ------------------------------------------------------------------ in

  /** Takes the frames of an authentic record one by one, every length checked before it is used. */
  #frames(frames: Buffer): void {
    let at = 0;
    while (at < frames.length && !this.#closed) {
      const size = this.#frame(frames, at);
      if (size === 0) {
        this.#discard('frame');
        this.#end('frame_type');
        return;
      }
      at += size;
    }
  }

  /** @returns the size of the frame at `at`, 0 if it is none */
  #frame(frames: Buffer, at: number): number {
    const left = frames.length - at;
    switch (frames[at]) {
      case FrameKind.data: {
        if (left < DATA_HEADER) return 0;
        const size = frames.readUInt16BE(at + 7);
        if (left - DATA_HEADER < size) return 0;
        const start = at + DATA_HEADER;
        this.#data(frames.readUIntBE(at + 1, 6), frames.subarray(start, start + size));
        return DATA_HEADER + size;
      }
      case FrameKind.ack:
        return left < ACK_HEADER ? 0 : this.#ack(frames, at, left);
      case FrameKind.renew:
      case FrameKind.renewed: {
        if (left < CONTROL_HEADER) return 0;
        const size = frames.readUInt16BE(at + 1);
        if (left - CONTROL_HEADER < size) return 0;
        const body = frames.subarray(at + CONTROL_HEADER, at + CONTROL_HEADER + size);
        if (frames[at] === FrameKind.renew) this.#events.renew(body);
        else this.#events.renewed(body);
        return CONTROL_HEADER + size;
      }
      case FrameKind.probe:
        this.#ackAt = this.#options.clock.bootMs();
        return 1;
      case FrameKind.close:
        this.#end('peer_closed');
        return 1;
      default:
        return 0;
    }
  }

  #data(offset: number, bytes: Buffer): void {
    const now = this.#options.clock.bootMs();
    // The second record of a row is acknowledged at once, as is everything that is not in order.
    const second = this.#ackAt !== undefined;
    const inOrder = offset === this.#receiver.next && !this.#receiver.gaps;
    const taken = this.#receiver.take(offset, bytes);
    if (taken === 'window' || taken === 'memory') this.#discard(taken);
    this.#ackAt = second || !inOrder || taken !== 'new' ? now : now + ACK_DELAY_MS;
  }

  #ack(frames: Buffer, at: number, left: number): number {
    const count = frames[at + 13] ?? 0;
    const size = ACK_HEADER + count * RANGE_SIZE;
    if (count > MAX_RANGES || left < size) return 0;
    const ranges: Range[] = [];
    let before = 0;
    for (let i = 0; i < count; i += 1) {
      const start = frames.readUIntBE(at + ACK_HEADER + i * RANGE_SIZE, 6);
      const end = frames.readUIntBE(at + ACK_HEADER + i * RANGE_SIZE + 6, 6);
      if (start < before || end <= start) return 0;
      ranges.push({ start, end });
      before = end;
    }
    const next = frames.readUIntBE(at + 1, 6);
    const limit = frames.readUIntBE(at + 7, 6);
    const now = this.#options.clock.bootMs();
    return this.#sender.acknowledge(next, ranges, limit, now) ? size : 0;
  }

  #stream(bytes: Buffer): void {
    if (this.#closed) return;
    const failure = this.#framer.push(bytes);
    if (failure !== undefined) this.#end(failure);
  }

  #message(body: Buffer): boolean {
    let message: Envelope;
    try {
      // Byte strings in a message share its memory, which is the record's.
      message = decodeEnvelope(body);
    } catch {
      this.#end('message_malformed');
      return false;
    }
    this.#events.message(message);
    return !this.#closed;
  }

  #end(reason: FailureReason): void {
    if (!this.#closed) this.#events.ended(reason);
  }

  #forgetPrevious(): void {
    if (this.#previous !== undefined) this.#forget(this.#previous.keys);
    this.#previous = undefined;
  }

  #forget(keys: DatagramKeys): void {
    keys.tx.wipe();
    keys.rx.wipe();
    this.#events.forgotten(keys.localId);
  }
}
