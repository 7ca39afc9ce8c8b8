/**
 * Clocks. Everything that measures an age or a deadline uses CLOCK_BOOTTIME (it goes on
 * while the machine is suspended and is never set); wall time is asked once, by the key
 * server. Members follow the key server's time (docs/protocol.md 6.2 and 6.3).
 */
import { readFileSync } from 'node:fs';

/** A source of time. Both values are milliseconds and may have a fraction. */
export interface Clock {
  /** Milliseconds since boot, time in suspend included; never goes back. */
  bootMs(): number;
  /** Milliseconds since 1970 as the machine believes it; may jump. */
  wallMs(): number;
}

/** What a channel needs to know of key-server time. */
export interface TimeSource {
  /** Key-server time in whole milliseconds since 1970. */
  now(): number;
}

/** How long a reading of /proc/uptime serves before it is read again (one read costs about 20 us). */
const ANCHOR_LIFETIME_MS = 1_000;
/** A difference between wall and monotonic clock that makes a suspend likely enough to look. */
const SUSPECT_JUMP_MS = 100;
/** /proc/uptime counts in steps of 10 ms, so a smaller difference says nothing. */
const UPTIME_NOISE_MS = 20;

/** The readings that `SystemClock` is made from; tests replace them. */
export interface ClockReadings {
  /** CLOCK_MONOTONIC, ms: high resolution, stands still in suspend. */
  readonly monotonicMs: () => number;
  /** CLOCK_BOOTTIME, ms, in steps of 10 ms; undefined where there is no /proc. */
  readonly uptimeMs: () => number | undefined;
  readonly wallMs: () => number;
}

const MONOTONIC_BASE_MS = Number(process.hrtime.bigint()) / 1e6 - performance.now();

const SYSTEM_READINGS: ClockReadings = {
  monotonicMs: () => MONOTONIC_BASE_MS + performance.now(),
  uptimeMs: () => {
    try {
      const seconds = Number.parseFloat(readFileSync('/proc/uptime', 'latin1'));
      return Number.isFinite(seconds) ? seconds * 1_000 : undefined;
    } catch {
      return undefined;
    }
  },
  wallMs: () => Date.now(),
};

/**
 * The machine's clock. Node.js has CLOCK_MONOTONIC only; the time spent in suspend is the
 * difference to /proc/uptime, looked up once a second and whenever the wall clock has
 * moved differently from the monotonic one, which is the first thing seen after a resume.
 */
export class SystemClock implements Clock {
  readonly #readings: ClockReadings;
  #suspendedMs = 0;
  #anchoredAt = Number.NEGATIVE_INFINITY;
  #wallLessMonotonic = 0;
  #last = Number.NEGATIVE_INFINITY;

  constructor(readings: ClockReadings = SYSTEM_READINGS) {
    this.#readings = readings;
  }

  bootMs(): number {
    const monotonic = this.#readings.monotonicMs();
    const jump = Math.abs(this.#readings.wallMs() - monotonic - this.#wallLessMonotonic);
    if (monotonic - this.#anchoredAt >= ANCHOR_LIFETIME_MS || jump >= SUSPECT_JUMP_MS) {
      this.#anchor(monotonic);
    }
    const boot = monotonic + this.#suspendedMs;
    if (boot > this.#last) this.#last = boot;
    return this.#last;
  }

  wallMs(): number {
    return this.#readings.wallMs();
  }

  #anchor(monotonic: number): void {
    this.#anchoredAt = monotonic;
    this.#wallLessMonotonic = this.#readings.wallMs() - monotonic;
    const uptime = this.#readings.uptimeMs();
    if (uptime === undefined) return;
    const suspended = uptime - monotonic;
    // Half a step of 10 ms is the best guess for what /proc/uptime has cut off.
    if (Math.abs(suspended - this.#suspendedMs) > UPTIME_NOISE_MS)
      this.#suspendedMs = suspended + 5;
  }
}

/** A clock that a test moves by hand. */
export class FakeClock implements Clock {
  #boot: number;
  #wall: number;

  constructor(start: { bootMs?: number; wallMs?: number } = {}) {
    this.#boot = start.bootMs ?? 1_000_000;
    this.#wall = start.wallMs ?? 1_800_000_000_000;
  }

  bootMs(): number {
    return this.#boot;
  }

  wallMs(): number {
    return this.#wall;
  }

  /** Lets `ms` milliseconds pass on both clocks. */
  advance(ms: number): void {
    this.#boot += ms;
    this.#wall += ms;
  }

  /** Sets the wall clock, as an operator or NTP would; boot time is not touched. */
  setWall(ms: number): void {
    this.#wall = ms;
  }
}

/** The key server's time: the wall clock once at the start, CLOCK_BOOTTIME from then on. */
export class ServerClock implements TimeSource {
  readonly #clock: Clock;
  readonly #offset: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#offset = clock.wallMs() - clock.bootMs();
  }

  now(): number {
    return Math.floor(this.#clock.bootMs() + this.#offset);
  }
}

/** Samples remembered; the one with the smallest round trip counts. */
const SAMPLES = 8;
/** A sample that took longer is not used. */
const MAX_ROUND_TRIP_MS = 1_000;
/** The largest difference that is slewed; above it the alarm goes off and the time is stepped. */
const MAX_SLEW_MS = 1_000;
/** Times travel in 48 bits. */
const MAX_TIME_MS = 2 ** 48;
/** How fast the offset is moved: 1 ms in 20 ms, so 1 s takes 20 s and time never goes back. */
const SLEW_RATE = 1 / 20;

interface TimeSample {
  readonly offset: number;
  readonly roundTrip: number;
}

/**
 * The key server's time as a member knows it: an offset to CLOCK_BOOTTIME from the best
 * of the last 8 samples. Corrections are slewed; one of more than 1 s is stepped, after
 * the alarm was called with the difference in ms (positive: we were behind).
 */
export class ServerTime implements TimeSource {
  readonly #clock: Clock;
  readonly #alarm: (differenceMs: number) => void;
  #samples: TimeSample[] = [];
  #sampledAt: number | undefined;
  #provisional = true;
  #offset: number | undefined;
  #target = 0;
  #slewedAt = 0;

  constructor(clock: Clock, alarm: (differenceMs: number) => void = () => {}) {
    this.#clock = clock;
    this.#alarm = alarm;
  }

  /**
   * Takes a sample: the server's time `serverMs` arrived now in answer to something sent
   * at `sentBootMs`. The very first one sets the time however long it took, because
   * nothing works without any time; it does not count as a sample if it took over 1 s.
   * @returns false for a sample that was not used
   */
  sample(serverMs: number, sentBootMs: number): boolean {
    const boot = this.#clock.bootMs();
    const roundTrip = boot - sentBootMs;
    // Beyond 48 bits no record could carry it.
    if (!(serverMs >= 0 && serverMs < MAX_TIME_MS) || !(roundTrip >= 0)) return false;
    const offset = serverMs + roundTrip / 2 - boot;
    if (roundTrip > MAX_ROUND_TRIP_MS) {
      if (this.#offset === undefined) this.#set(offset, boot);
      return false;
    }
    this.#sampledAt = boot;
    if (this.#offset === undefined || this.#provisional) {
      this.#provisional = false;
      this.#samples = [{ offset, roundTrip }];
      this.#set(offset, boot);
      return true;
    }
    this.#advance(boot);
    const estimate = this.#best()?.offset ?? offset;
    if (Math.abs(offset - estimate) > MAX_SLEW_MS) {
      // The server's own time has moved (a restart, another replica): older samples are void.
      this.#samples = [];
    }
    this.#samples.push({ offset, roundTrip });
    if (this.#samples.length > SAMPLES) this.#samples.shift();
    this.#target = this.#best()?.offset ?? offset;
    const difference = this.#target - (this.#offset ?? this.#target);
    if (Math.abs(difference) > MAX_SLEW_MS) {
      this.#set(this.#target, boot);
      this.#alarm(difference);
    }
    return true;
  }

  /** True as soon as `now()` has something to say. */
  get known(): boolean {
    return this.#offset !== undefined;
  }

  /** Key-server time in whole ms; before the first sample the wall clock, for want of better. */
  now(): number {
    const boot = this.#clock.bootMs();
    if (this.#offset === undefined) return Math.floor(this.#clock.wallMs());
    this.#advance(boot);
    return Math.floor(boot + this.#offset);
  }

  /** Milliseconds since the last usable sample; Infinity if there was none. */
  age(): number {
    return this.#sampledAt === undefined
      ? Number.POSITIVE_INFINITY
      : this.#clock.bootMs() - this.#sampledAt;
  }

  /** Round trip of the best sample in ms, undefined if there is none. */
  roundTrip(): number | undefined {
    return this.#best()?.roundTrip;
  }

  #set(offset: number, boot: number): void {
    this.#offset = offset;
    this.#target = offset;
    this.#slewedAt = boot;
  }

  #advance(boot: number): void {
    if (this.#offset === undefined) return;
    const most = (boot - this.#slewedAt) * SLEW_RATE;
    const difference = this.#target - this.#offset;
    this.#offset += Math.max(-most, Math.min(most, difference));
    this.#slewedAt = boot;
  }

  #best(): TimeSample | undefined {
    let best: TimeSample | undefined;
    for (const sample of this.#samples) {
      if (best === undefined || sample.roundTrip <= best.roundTrip) best = sample;
    }
    return best;
  }
}
