/** Measurements over one tunnel: TCP throughput, loss-free packet rate, round trip, processor time, memory. */
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { machineBusySeconds, memoryMB, processSeconds } from './machine.js';
import type { Bed } from './namespaces.js';
import { lossFreeRate, type SearchResult } from './search.js';

const NATIVE = fileURLToPath(new URL('../../gateway/native/build', import.meta.url));
const GENERATOR = join(NATIVE, 'release/pairwire-bench-net');

/** Loss that still counts as none. */
const LOSS_LIMIT = 0.001;
const PORT = { generator: 7801, tcp: 7802, load: 7803 } as const;

/** A tunnel that stands. */
export interface Tunnel {
  readonly bed: Bed;
  /** Address of side b as reached through the tunnel. */
  readonly target: string;
  /** Processes of both sides through which packets go. */
  readonly packets: readonly number[];
  /** Processes of both sides that only control. */
  readonly control: readonly number[];
  /** How much longer the first ping took than the second, with no key cached: one value for each try. */
  readonly firstPingExtraMs?: readonly number[];
}

/** Lengths of the runs. */
export interface Lengths {
  readonly tcpSeconds: number;
  readonly shortMs: number;
  readonly longMs: number;
  readonly confirmations: number;
  readonly precision: number;
  readonly idleCount: number;
  readonly pingPongCount: number;
  readonly loadedCount: number;
}

const tcpSchema = z.object({
  error: z.string().optional(),
  end: z.object({
    sum_received: z.object({ bits_per_second: z.number(), bytes: z.number() }).optional(),
  }),
});
const rateSchema = z.object({
  offered_pps: z.number(),
  received_pps: z.number(),
  loss: z.number(),
});
const echoSchema = z.object({ p50_us: z.number(), p99_us: z.number(), lost: z.number() });
type Echo = z.infer<typeof echoSchema>;

export interface TcpResult {
  readonly gbit: number;
  /** Busy time of the whole machine for each 10^9 bytes delivered. */
  readonly machineSecondsPerGB: number;
  /** Time of the tunnel's own processes for each 10^9 bytes; what the kernel does elsewhere is not in it. */
  readonly processSecondsPerGB: number;
}

/** The meter of one tunnel: far ends are started once and stay. */
export class Meter {
  readonly #tunnel: Tunnel;
  readonly #lengths: Lengths;
  /** Rates found earlier, to begin the next search at. */
  readonly #near = new Map<number, number>();

  private constructor(tunnel: Tunnel, lengths: Lengths) {
    this.#tunnel = tunnel;
    this.#lengths = lengths;
  }

  /** Starts the far ends and sends a second of TCP, for caches, congestion control and first keys. */
  static async start(tunnel: Tunnel, lengths: Lengths): Promise<Meter> {
    const meter = new Meter(tunnel, lengths);
    const { bed } = tunnel;
    bed.start(bed.b, GENERATOR, 'serve', '--port', `${PORT.generator}`);
    for (const port of [PORT.tcp, PORT.load]) bed.start(bed.b, 'iperf3', '-s', '-p', `${port}`);
    for (const port of Object.values(PORT)) {
      await bed.waitFor(`a listener on port ${port}`, async () =>
        (await bed.run(bed.b, 'ss', '-Hltn', `sport = :${port}`)).includes(`:${port}`),
      );
    }
    await meter.#iperf(1, []);
    return meter;
  }

  /** One TCP run from a to b, or back. */
  async tcp(
    options: { readonly streams?: number; readonly reverse?: boolean } = {},
  ): Promise<TcpResult> {
    const { packets, control } = this.#tunnel;
    const pids = [...packets, ...control];
    const args = [
      ...(options.streams === undefined ? [] : ['-P', `${options.streams}`]),
      ...(options.reverse === true ? ['-R'] : []),
    ];
    const machine = machineBusySeconds();
    const own = processSeconds(pids);
    const { bits_per_second, bytes } = await this.#iperf(this.#lengths.tcpSeconds, args);
    return {
      gbit: bits_per_second / 1e9,
      machineSecondsPerGB: (machineBusySeconds() - machine) / (bytes / 1e9),
      processSecondsPerGB: (processSeconds(pids) - own) / (bytes / 1e9),
    };
  }

  /** The highest rate of IPv4/UDP packets of `size` bytes in all that arrives. */
  async packetRate(size: number): Promise<SearchResult> {
    const { shortMs, longMs, confirmations, precision } = this.#lengths;
    const near = this.#near.get(size);
    const result = await lossFreeRate({
      lossLimit: LOSS_LIMIT,
      precision,
      confirmations,
      ...(near === undefined ? {} : { near }),
      probe: async (pps, length) => {
        const ms = length === 'short' ? shortMs : longMs;
        const words = ['--size', `${size}`, '--pps', `${pps}`, '--ms', `${ms}`];
        const run = rateSchema.parse(await this.#generate('rate', words));
        return { offered: run.offered_pps, received: run.received_pps, loss: run.loss };
      },
    });
    if (result.pps > 0) this.#near.set(size, result.pps);
    return result;
  }

  /** One request at a time, with a pause of 1 ms after each answer. */
  idle(): Promise<Echo> {
    return this.#echo(this.#lengths.idleCount, 1000);
  }

  /** One request at a time, the next at once. */
  pingPong(): Promise<Echo> {
    return this.#echo(this.#lengths.pingPongCount, 0);
  }

  /** Like `idle`, while one TCP stream runs the same way. */
  async loaded(): Promise<Echo> {
    const { bed, target } = this.#tunnel;
    // It is ended when the round trips are done; at 40 ms each it would be too short.
    const seconds = Math.ceil(this.#lengths.loadedCount / 25) + 5;
    const args = ['-c', target, '-p', `${PORT.load}`, '-t', `${seconds}`];
    const load: ChildProcess = bed.start(bed.a, 'iperf3', ...args);
    try {
      await sleep(300);
      const result = await this.#echo(this.#lengths.loadedCount, 1000);
      if (load.exitCode !== null) throw new Error('the load ended before the round trips did');
      return result;
    } finally {
      load.kill('SIGINT');
      await bed.stop(load);
    }
  }

  /** Of one host: half of what both use. */
  memory(): { readonly packetMB: number; readonly controlMB: number } {
    const { packets, control } = this.#tunnel;
    return { packetMB: memoryMB(packets) / 2, controlMB: memoryMB(control) / 2 };
  }

  async #iperf(seconds: number, args: readonly string[]) {
    const { bed, target } = this.#tunnel;
    const words = ['-c', target, '-p', `${PORT.tcp}`, '-t', `${seconds}`, '-J', ...args];
    const { end, error } = tcpSchema.parse(JSON.parse(await bed.run(bed.a, 'iperf3', ...words)));
    if (end.sum_received === undefined || end.sum_received.bytes === 0) {
      throw new Error(`iperf3: ${error ?? 'nothing was received'}`);
    }
    return end.sum_received;
  }

  async #echo(count: number, gapUs: number): Promise<Echo> {
    const words = ['--count', `${count}`, '--gap-us', `${gapUs}`];
    const result = echoSchema.parse(await this.#generate('echo', words));
    if (result.lost > count / 10) throw new Error(`${result.lost} of ${count} requests were lost`);
    return result;
  }

  /** Counts go past the tunnel, so that an overload of it does not hit them. */
  async #generate(command: string, words: readonly string[]): Promise<unknown> {
    const { bed, target } = this.#tunnel;
    const places = ['--control', bed.b.address, '--target', target, '--port', `${PORT.generator}`];
    return JSON.parse(await bed.run(bed.a, GENERATOR, command, ...places, ...words));
  }
}
