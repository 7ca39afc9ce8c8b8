/**
 * An endurance run: mixed traffic and restarts for a time, then a quiet end, samples all along, and
 * verdicts.
 *
 *   | streams, TCP, broadcasts, new members, a restart every so often | quiet end |
 *   | first third: the key server, too                                |           |
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Lab } from '../laboratory/lab.js';
import type { StreamResult } from '../laboratory/stream.js';
import {
  enduranceTopology,
  MEMBERS,
  newMember,
  RESTARTS,
  runTcp,
  SERVER,
  shout,
  startStreams,
} from './load.js';
import { type Sample, takeSample } from './samples.js';
import { judge, type Verdict } from './verdict.js';

export interface EnduranceOptions {
  readonly minutes: number;
  readonly log: (line: string) => void;
  readonly env?: Readonly<Record<string, string>>;
}

export interface EnduranceResult {
  readonly schema: 1;
  readonly begin: string;
  readonly minutes: number;
  readonly ok: boolean;
  readonly verdicts: readonly Verdict[];
  readonly restarts: readonly { readonly at: number; readonly what: string }[];
  /** ms from a new member's start to its first answer. */
  readonly newMembers: readonly number[];
  readonly streams: Readonly<Record<string, StreamResult>>;
  readonly samples: readonly Sample[];
}

/** A part of the run in which nothing is restarted, at its end. */
const QUIET_PART = 0.2;
const QUIET_S = { least: 15, most: 300 } as const;
/** After the last restart, until drops stand still. */
const SETTLE_MS = 6_000;
const SAMPLE_EVERY_S = { least: 1.5, most: 5 } as const;
const RESTART_EVERY_S = { least: 5, most: 45 } as const;
const NEW_MEMBER_EVERY_S = { least: 8, most: 60 } as const;
const BROADCAST_EVERY_MS = 1_000;
const TCP_PAUSE_MS = 3_000;

const between = (value: number, { least, most }: { least: number; most: number }): number =>
  Math.min(most, Math.max(least, value));

export async function runEndurance(options: EnduranceOptions): Promise<EnduranceResult> {
  const lab = await Lab.create(enduranceTopology(), {
    log: options.log,
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  try {
    return await new Run(lab, options).go();
  } finally {
    await lab.destroy();
  }
}

class Run {
  private readonly seconds: number;
  private readonly began = performance.now();
  private readonly samples: Sample[] = [];
  private readonly restarts: { at: number; what: string }[] = [];
  private readonly failures: string[] = [];
  private readonly newMembers: number[] = [];
  private readonly tcp: { bytes: number; disturbed: boolean }[] = [];
  private restarting = false;
  private ended = false;

  constructor(
    private readonly lab: Lab,
    private readonly options: EnduranceOptions,
  ) {
    this.seconds = options.minutes * 60;
  }

  async go(): Promise<EnduranceResult> {
    const begin = new Date().toISOString();
    const { lab } = this;
    for (const host of ['bob', 'carol']) lab.spawn(host, ['iperf3', '-s'], { label: 'iperf3' });
    const streams = await startStreams(lab);
    const quietS = between(this.seconds * QUIET_PART, QUIET_S);
    const activeUntil = this.now() + this.seconds - quietS;

    const sampling = this.repeat(between(this.seconds / 60, SAMPLE_EVERY_S) * 1_000, async () => {
      this.samples.push(await takeSample(lab, MEMBERS, SERVER, this.now()));
    });
    const broadcasting = this.repeat(BROADCAST_EVERY_MS, () => shout(lab));
    const copying = this.repeat(TCP_PAUSE_MS, async () => {
      const before = this.restarts.length;
      const disturbed = this.restarting;
      const bytes = await runTcp(lab, this.tcp.length % 2 === 0 ? 'bob' : 'carol');
      this.tcp.push({ bytes, disturbed: disturbed || this.restarts.length !== before });
    });
    await Promise.all([this.restartAll(activeUntil), this.welcomeAll(activeUntil)]);

    await sleep(SETTLE_MS);
    const quietFrom = this.now();
    const before = new Map(streams.map((stream) => [stream.name, stream.progress()]));
    this.options.log(`quiet for ${quietS} s`);
    await sleep(quietS * 1_000);
    const lostAtEnd: Record<string, number> = {};
    for (const stream of streams) {
      const [from, to] = [before.get(stream.name), stream.progress()];
      const numbers = to.newest - (from?.newest ?? 0);
      lostAtEnd[stream.name] = numbers - (to.received - (from?.received ?? 0));
    }
    this.ended = true;
    await Promise.all([sampling, broadcasting, copying]);
    const results: Record<string, StreamResult> = {};
    for (const stream of streams) results[stream.name] = await stream.stop();
    const traffic = {
      streams: results,
      lostAtEnd,
      tcp: this.tcp,
      newMembers: this.newMembers.length,
      failures: this.failures,
      restarts: this.restarts.length,
    };
    const verdicts = judge(this.samples, traffic, quietFrom);
    return {
      schema: 1,
      begin,
      minutes: this.options.minutes,
      ok: verdicts.every(({ ok }) => ok),
      verdicts,
      restarts: this.restarts,
      newMembers: this.newMembers.map(Math.round),
      streams: results,
      samples: this.samples,
    };
  }

  /** Seconds since the begin. */
  private now(): number {
    return (performance.now() - this.began) / 1_000;
  }

  /** Until the run has ended; what fails is a failure of the run. */
  private async repeat(everyMs: number, action: () => Promise<void>): Promise<void> {
    while (!this.ended) {
      await this.attempt(action);
      await sleep(everyMs);
    }
  }

  private async attempt(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (thrown) {
      this.failures.push(thrown instanceof Error ? thrown.message : String(thrown));
    }
  }

  private async restartAll(until: number): Promise<void> {
    const pauseMs = between(this.seconds / 20, RESTART_EVERY_S) * 1_000;
    const early = until / 3;
    for (let turn = 0; ; turn += 1) {
      await sleep(pauseMs);
      if (this.now() >= until) return;
      const restart = RESTARTS[turn % RESTARTS.length];
      if (restart === undefined || (restart.early === true && this.now() > early)) continue;
      const at = Math.round(this.now());
      this.options.log(`${at} s: ${restart.what}`);
      this.restarting = true;
      await this.attempt(() => restart.run(this.lab));
      this.restarting = false;
      this.restarts.push({ at, what: restart.what });
    }
  }

  private async welcomeAll(until: number): Promise<void> {
    const pauseMs = between(this.seconds / 30, NEW_MEMBER_EVERY_S) * 1_000;
    for (let number = 1; this.now() < until; number += 1) {
      await this.attempt(async () => {
        this.newMembers.push(await newMember(this.lab, number));
      });
      await sleep(pauseMs);
    }
  }
}

/** The table of verdicts for people. */
export function verdictTable(verdicts: readonly Verdict[]): string {
  const width = Math.max(...verdicts.map(({ check }) => check.length));
  return verdicts
    .map(
      ({ check, ok, detail }) => `${ok ? 'OK    ' : 'FAILED'}  ${check.padEnd(width)}  ${detail}`,
    )
    .join('\n');
}
