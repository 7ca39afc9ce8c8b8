/**
 * A reliable stream of bytes over records that get lost, doubled and reordered,
 * docs/protocol.md 6.9. Each direction is a sender here and a receiver there. Neither has a
 * clock: the time comes with each call.
 *
 *   sender    bytes -> segments, each with its offset; kept until acknowledged
 *   receiver  segments -> bytes in order, within a window that it grants
 *
 * What was lost is known from what arrived (RACK, RFC 8985): a segment that was sent clearly
 * before another that arrived. If nothing arrives at all, a timer from the measured round
 * trip (RFC 6298) sends again. How much is under way follows RFC 5681.
 */

/** Implementation constants. */
/** Bytes beyond the next one in order that a receiver takes. */
export const RECEIVE_WINDOW = 262_144;
/** Pieces that a receiver keeps out of order. */
const MAX_PIECES = 1_024;
/** Ranges in one acknowledgement. */
export const MAX_RANGES = 16;
/** Bytes under way. */
const INITIAL_WINDOW = 14_000;
const MIN_WINDOW = 2_800;
const MAX_WINDOW = 1_048_576;
/** Timers, ms. */
const INITIAL_RTT = 200;
const MIN_TIMEOUT = 30;
const MAX_TIMEOUT = 2_000;
/** What the peer may wait before it acknowledges. */
export const ACK_DELAY_MS = 10;

/** Half-open range of offsets. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** A piece of the stream on its way. */
export interface Segment {
  readonly offset: number;
  readonly bytes: Buffer;
  sentAt: number;
  sends: number;
  state: 'flying' | 'lost' | 'arrived';
}

/** Smoothed round trip and the time-out from it, RFC 6298. */
class RoundTrip {
  smoothed = INITIAL_RTT;
  variation = INITIAL_RTT / 2;
  least = Number.POSITIVE_INFINITY;
  #known = false;

  sample(ms: number): void {
    this.least = Math.min(this.least, ms);
    if (!this.#known) {
      this.#known = true;
      this.smoothed = ms;
      this.variation = ms / 2;
      return;
    }
    this.variation += (Math.abs(this.smoothed - ms) - this.variation) / 4;
    this.smoothed += (ms - this.smoothed) / 8;
  }

  /** How long to wait for an acknowledgement after `tries` time-outs in a row. */
  timeout(tries: number): number {
    const base = this.smoothed + Math.max(4 * this.variation, ACK_DELAY_MS) + ACK_DELAY_MS;
    return Math.min(MAX_TIMEOUT, Math.max(MIN_TIMEOUT, base) * 2 ** Math.min(tries, 10));
  }

  /** How much later than a later segment one may arrive before it counts as lost. */
  get reordering(): number {
    return Math.max(1, Math.min(this.smoothed, this.least * 4) / 4);
  }
}

/** The sending half. */
export class ReliableSender {
  /** Unacknowledged segments by offset; those that arrived out of order stay until the gap before them is gone. */
  #segments: Segment[] = [];
  #waiting: Buffer[] = [];
  #waitingSize = 0;
  /** Offset of the next byte that was never sent. */
  #next = 0;
  #acknowledged = 0;
  #limit = RECEIVE_WINDOW;
  #flying = 0;
  #lost = 0;
  #window = INITIAL_WINDOW;
  #threshold = Number.POSITIVE_INFINITY;
  /** Until this is acknowledged the window is not halved again. */
  #recoverUntil = -1;
  /** Nor does it grow before this is, unless a time-out has made it small anyway. */
  #growFrom = -1;
  readonly #trip = new RoundTrip();
  #tries = 0;
  #lastSentAt = 0;
  /** The newest sending time of a segment that is known to have arrived. */
  #arrivedSentAt = Number.NEGATIVE_INFINITY;
  #reorderDeadline: number | undefined;

  /** Bytes that were never sent. */
  get waiting(): number {
    return this.#waitingSize;
  }

  /** Appends bytes, which are copied. */
  append(bytes: Uint8Array): void {
    this.#waiting.push(Buffer.from(bytes));
    this.#waitingSize += bytes.length;
  }

  /** The next segment of at most `room` bytes that may go now: what was lost first. `room` must not be less than at earlier calls for a whole record. */
  take(room: number, now: number): Segment | undefined {
    const segment = this.#lost > 0 ? this.#takeLost(room) : this.#takeNew(room);
    if (segment === undefined) return undefined;
    segment.state = 'flying';
    segment.sentAt = now;
    segment.sends += 1;
    this.#flying += segment.bytes.length;
    this.#lastSentAt = now;
    return segment;
  }

  #takeLost(room: number): Segment | undefined {
    const segment = this.#segments.find((one) => one.state === 'lost');
    if (segment === undefined || segment.bytes.length > room) return undefined;
    if (this.#flying > 0 && this.#flying + segment.bytes.length > this.#window) return undefined;
    this.#lost -= 1;
    return segment;
  }

  #takeNew(room: number): Segment | undefined {
    const allowed = Math.min(room, this.#limit - this.#next, this.#window - this.#flying);
    const size = Math.min(allowed, this.#waitingSize);
    if (size <= 0) return undefined;
    // No crumbs at the edge of a window while more is on its way to be acknowledged.
    if (size < this.#waitingSize && size < room / 2 && this.#flying > 0) return undefined;
    const bytes = this.#cut(size);
    const segment: Segment = { offset: this.#next, bytes, sentAt: 0, sends: 0, state: 'flying' };
    this.#next += size;
    this.#segments.push(segment);
    return segment;
  }

  #cut(size: number): Buffer {
    const parts: Buffer[] = [];
    let left = size;
    let used = 0;
    while (left > 0) {
      const first = this.#waiting[used];
      if (first === undefined) break;
      if (first.length <= left) {
        parts.push(first);
        left -= first.length;
        used += 1;
      } else {
        parts.push(first.subarray(0, left));
        this.#waiting[used] = first.subarray(left);
        left = 0;
      }
    }
    this.#waiting.splice(0, used);
    this.#waitingSize -= size;
    const [only] = parts;
    return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts);
  }

  /**
   * Takes an acknowledgement: everything before `upTo`, the ranges, and how far may be sent.
   * @returns false if it speaks of bytes that were never sent, or of a window that no receiver grants
   */
  acknowledge(upTo: number, ranges: readonly Range[], limit: number, now: number): boolean {
    if (upTo > this.#next) return false;
    // Else a peer that leaves a gap for ever could make us keep all that was sent behind it.
    if (limit > upTo + RECEIVE_WINDOW) return false;
    for (const range of ranges) if (range.end > this.#next) return false;
    if (limit > this.#limit) this.#limit = limit;
    let arrived = 0;
    let popped = 0;
    for (const segment of this.#segments) {
      if (segment.offset + segment.bytes.length > upTo) break;
      arrived += this.#arrive(segment, now);
      popped += 1;
    }
    if (popped > 0) this.#segments.splice(0, popped);
    this.#acknowledged = Math.max(this.#acknowledged, upTo);
    if (ranges.length > 0) arrived += this.#acknowledgeRanges(ranges, now);
    if (arrived > 0) {
      this.#tries = 0;
      if (this.#acknowledged >= this.#growFrom) this.#grow(arrived);
    }
    this.#detectLoss(now);
    return true;
  }

  #acknowledgeRanges(ranges: readonly Range[], now: number): number {
    let arrived = 0;
    let at = 0;
    for (const segment of this.#segments) {
      const end = segment.offset + segment.bytes.length;
      let range = ranges[at];
      while (range !== undefined && range.end < end) {
        at += 1;
        range = ranges[at];
      }
      if (range === undefined) break;
      if (segment.offset >= range.start) arrived += this.#arrive(segment, now);
    }
    return arrived;
  }

  /** @returns the bytes that arrived for the first time */
  #arrive(segment: Segment, now: number): number {
    if (segment.state === 'arrived') return 0;
    if (segment.state === 'flying') this.#flying -= segment.bytes.length;
    else this.#lost -= 1;
    segment.state = 'arrived';
    const age = now - segment.sentAt;
    // Of a segment that was sent twice nobody knows which one arrived (Karn), unless the
    // answer came too soon for the second.
    if (segment.sends === 1) this.#trip.sample(age);
    if (segment.sends === 1 || age >= this.#trip.least) {
      this.#arrivedSentAt = Math.max(this.#arrivedSentAt, segment.sentAt);
    }
    return segment.bytes.length;
  }

  #grow(arrived: number): void {
    if (this.#window < this.#threshold) this.#window += arrived;
    else this.#window += Math.ceil((arrived * MIN_WINDOW) / 2 / this.#window);
    this.#window = Math.min(MAX_WINDOW, this.#window);
  }

  /** Everything that flies and was sent clearly before something that arrived is lost. */
  #detectLoss(now: number): void {
    this.#reorderDeadline = undefined;
    if (this.#flying === 0) return;
    const patience = this.#trip.reordering;
    let anyLost = false;
    for (const segment of this.#segments) {
      if (segment.state !== 'flying' || segment.sentAt > this.#arrivedSentAt) continue;
      const due = segment.sentAt + this.#trip.smoothed + patience;
      if (due <= now || this.#arrivedSentAt - segment.sentAt > patience) {
        this.#lose(segment);
        anyLost = true;
      } else if (this.#reorderDeadline === undefined || due < this.#reorderDeadline) {
        this.#reorderDeadline = due;
      }
    }
    if (anyLost) this.#shrink();
  }

  #lose(segment: Segment): void {
    segment.state = 'lost';
    this.#flying -= segment.bytes.length;
    this.#lost += 1;
  }

  /** Half as much, once for each window. */
  #shrink(): void {
    if (this.#acknowledged < this.#recoverUntil) return;
    this.#recoverUntil = this.#next;
    this.#growFrom = this.#next;
    this.#threshold = Math.max(MIN_WINDOW, Math.floor(this.#window / 2));
    this.#window = this.#threshold;
  }

  /** When `expire` is to be called, undefined if nothing flies. */
  get deadline(): number | undefined {
    if (this.#flying === 0) return undefined;
    const timeout = this.#lastSentAt + this.#trip.timeout(this.#tries);
    return this.#reorderDeadline === undefined ? timeout : Math.min(timeout, this.#reorderDeadline);
  }

  /** Looks at the timers. True if there may be something to send now. */
  expire(now: number): boolean {
    const { deadline } = this;
    if (deadline === undefined || now < deadline) return false;
    if (this.#reorderDeadline !== undefined && now >= this.#reorderDeadline) {
      this.#detectLoss(now);
      return this.#lost > 0;
    }
    this.#tries += 1;
    for (const segment of this.#segments) if (segment.state === 'flying') this.#lose(segment);
    this.#recoverUntil = this.#next;
    this.#growFrom = -1;
    this.#threshold = Math.max(MIN_WINDOW, Math.floor(this.#window / 2));
    // Two probes; the rest follows when one of them is answered.
    this.#window = MIN_WINDOW;
    return true;
  }

  /** True if the peer's window is all that keeps bytes back: somebody must ask now and then. */
  get stalled(): boolean {
    return this.#waitingSize > 0 && this.#segments.length === 0 && this.#next >= this.#limit;
  }
}

/** What became of a segment that arrived. */
export type Taken = 'new' | 'known' | 'window' | 'memory';

/** Memory for what came out of order, shared by all channels of a server. */
export class ReassemblyBudget {
  readonly limit: number;
  used = 0;

  constructor(limit: number) {
    this.limit = limit;
  }
}

interface Piece {
  readonly start: number;
  readonly bytes: Buffer;
}

/** The receiving half. */
export class ReliableReceiver {
  readonly #budget: ReassemblyBudget;
  readonly #deliver: (bytes: Buffer) => void;
  /** Out of order, sorted, without overlap. */
  #pieces: Piece[] = [];
  #held = 0;
  #next = 0;
  #limit = RECEIVE_WINDOW;
  #paused = false;

  constructor(budget: ReassemblyBudget, deliver: (bytes: Buffer) => void) {
    this.#budget = budget;
    this.#deliver = deliver;
  }

  /** Offset of the next byte in order. */
  get next(): number {
    return this.#next;
  }

  /** The peer may send up to here; never goes back. */
  get limit(): number {
    if (!this.#paused) this.#limit = Math.max(this.#limit, this.#next + RECEIVE_WINDOW);
    return this.#limit;
  }

  /** True if something is missing in between. */
  get gaps(): boolean {
    return this.#pieces.length > 0;
  }

  /** Grants no more than was granted while true. */
  set paused(paused: boolean) {
    this.#paused = paused;
  }

  /** Takes a segment; bytes that are in order then are delivered. `bytes` is copied if it is kept. */
  take(offset: number, bytes: Buffer): Taken {
    const end = offset + bytes.length;
    if (end > this.#limit) return 'window';
    if (end <= this.#next) return 'known';
    if (offset > this.#next) return this.#keep(offset, bytes);
    this.#forward(bytes.subarray(this.#next - offset));
    this.#drain();
    return 'new';
  }

  /** Ranges that arrived beyond `next`. */
  ranges(): Range[] {
    const ranges: { start: number; end: number }[] = [];
    for (const piece of this.#pieces) {
      const last = ranges.at(-1);
      const end = piece.start + piece.bytes.length;
      if (last?.end === piece.start) last.end = end;
      else if (ranges.length === MAX_RANGES) break;
      else ranges.push({ start: piece.start, end });
    }
    return ranges;
  }

  /** Gives all memory back. */
  close(): void {
    this.#pieces = [];
    this.#account(-this.#held);
  }

  #keep(offset: number, bytes: Buffer): Taken {
    let at = this.#pieces.length;
    while (at > 0 && (this.#pieces[at - 1]?.start ?? 0) > offset) at -= 1;
    const before = this.#pieces[at - 1];
    const after = this.#pieces[at];
    const start = Math.max(offset, before === undefined ? 0 : before.start + before.bytes.length);
    // A sender cuts its stream once, so a piece that overlaps the next one is none of ours.
    const end = Math.min(offset + bytes.length, after?.start ?? Number.POSITIVE_INFINITY);
    if (start >= end) return 'known';
    const size = end - start;
    if (this.#pieces.length >= MAX_PIECES || this.#budget.used + size > this.#budget.limit) {
      return 'memory';
    }
    // Not from the pool of small buffers, where a byte would keep 8 KiB.
    const kept = Buffer.allocUnsafeSlow(size);
    bytes.copy(kept, 0, start - offset, end - offset);
    this.#pieces.splice(at, 0, { start, bytes: kept });
    this.#account(size);
    return 'new';
  }

  #drain(): void {
    // Taken out before it is delivered: what it says may close us, which gives back what is left.
    for (let piece = this.#pieces[0]; piece !== undefined; piece = this.#pieces[0]) {
      if (piece.start > this.#next) break;
      this.#pieces.shift();
      this.#account(-piece.bytes.length);
      const end = piece.start + piece.bytes.length;
      if (end > this.#next) this.#forward(piece.bytes.subarray(this.#next - piece.start));
    }
  }

  #forward(bytes: Buffer): void {
    this.#next += bytes.length;
    this.#deliver(bytes);
  }

  #account(size: number): void {
    this.#held += size;
    this.#budget.used += size;
  }
}
