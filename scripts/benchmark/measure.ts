/** Measurements over one tunnel: TCP throughput, loss-free packet rate, round trip, CPU and memory. */
import { z } from 'zod';
import { type Bed, cpuSeconds, residentBytes, waitFor } from './namespaces.js';

const tcpSchema = z.object({
  end: z.object({ sum_received: z.object({ bits_per_second: z.number(), bytes: z.number() }) }),
});
const udpSchema = z.object({
  end: z.object({
    sum: z.object({ lost_packets: z.number(), packets: z.number(), seconds: z.number() }),
  }),
});

/** Where traffic of a tunnel goes and whose CPU it costs. */
export interface Path {
  readonly bed: Bed;
  /** Address of side b as reached through the tunnel. */
  readonly target: string;
  /** The tunnel's own processes on both sides. */
  readonly pids: readonly number[];
}

export interface TcpResult {
  readonly gbitPerSecond: number;
  /** CPU seconds of the tunnel's processes for each 10^9 bytes delivered; the kernel's own share is not in it. */
  readonly cpuSecondsPerGB: number;
}

/** One iperf3 TCP run from a to b (or back). */
export async function tcp(
  path: Path,
  options: { readonly seconds: number; readonly streams?: number; readonly reverse?: boolean },
): Promise<TcpResult> {
  const server = path.bed.start(path.bed.b, 'iperf3', '-s', '-1', '-p', '5201');
  await listening(path, 5201);
  const before = cpu(path);
  const args = [
    '-c',
    path.target,
    '-p',
    '5201',
    '-t',
    String(options.seconds),
    '-P',
    String(options.streams ?? 1),
    '-J',
  ];
  if (options.reverse === true) args.push('-R');
  const result = tcpSchema.parse(JSON.parse(path.bed.run(path.bed.a, 'iperf3', ...args)));
  const used = cpu(path) - before;
  await path.bed.stop(server);
  const received = result.end.sum_received;
  return {
    gbitPerSecond: received.bits_per_second / 1e9,
    cpuSecondsPerGB: used / (received.bytes / 1e9),
  };
}

/**
 * The highest rate of UDP datagrams of `size` payload bytes that arrives with under 0.1 % loss, by binary search
 * between 1,000 and `highest` packets a second.
 */
export async function lossFreeRate(
  path: Path,
  size: number,
  options: { readonly seconds: number; readonly highest: number; readonly steps: number },
): Promise<number> {
  let good = 0;
  let low = 1000;
  let high = options.highest;
  for (let step = 0; step < options.steps; step++) {
    const rate = Math.round(Math.sqrt(low * high));
    const { sent, lost } = await udp(path, size, rate, options.seconds);
    // What the sender could not offer is no proof: the rate that was really sent counts.
    if (sent > 0 && lost < 0.001) {
      good = Math.max(good, sent);
      if (sent < rate * 0.9) return good;
      low = rate;
    } else high = rate;
  }
  return good;
}

async function udp(path: Path, size: number, rate: number, seconds: number) {
  const server = path.bed.start(path.bed.b, 'iperf3', '-s', '-1', '-p', '5202');
  await listening(path, 5202);
  const text = path.bed.try(
    path.bed.a,
    'iperf3',
    '-c',
    path.target,
    '-p',
    '5202',
    '-u',
    '-l',
    String(size),
    '-b',
    String(rate * size * 8),
    '-t',
    String(seconds),
    '-J',
    '-w',
    '4M',
    '--get-server-output',
  );
  await path.bed.stop(server);
  if (text === undefined) return { sent: 0, lost: 1 };
  const sum = udpSchema.parse(JSON.parse(text)).end.sum;
  return {
    sent: sum.packets / sum.seconds,
    lost: sum.packets === 0 ? 1 : sum.lost_packets / sum.packets,
  };
}

export interface RoundTrip {
  readonly p50Us: number;
  readonly p99Us: number;
}

/** Round trips by ping at 2 ms intervals, idle or while one TCP stream runs. */
export async function roundTrip(
  path: Path,
  options: { readonly count: number; readonly loaded: boolean },
): Promise<RoundTrip> {
  const load = options.loaded
    ? await startLoad(path, Math.ceil(options.count / 500) + 2)
    : undefined;
  const out = path.bed.run(
    path.bed.a,
    'ping',
    '-c',
    String(options.count),
    '-i',
    '0.002',
    '-s',
    '56',
    path.target,
  );
  await load?.();
  const times = [...out.matchAll(/time=([\d.]+) ms/g)]
    .map((m) => Number(m[1]) * 1000)
    .sort((x, y) => x - y);
  const at = (share: number) =>
    times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? Number.NaN;
  return { p50Us: at(0.5), p99Us: at(0.99) };
}

async function startLoad(path: Path, seconds: number): Promise<() => Promise<void>> {
  const server = path.bed.start(path.bed.b, 'iperf3', '-s', '-1', '-p', '5203');
  await listening(path, 5203);
  const client = path.bed.start(
    path.bed.a,
    'iperf3',
    '-c',
    path.target,
    '-p',
    '5203',
    '-t',
    String(seconds),
  );
  await new Promise((resolve) => setTimeout(resolve, 500));
  return async () => {
    await path.bed.stop(client);
    await path.bed.stop(server);
  };
}

async function listening(path: Path, port: number): Promise<void> {
  await waitFor(`iperf3 on port ${port}`, () =>
    path.bed.run(path.bed.b, 'ss', '-Hltn', `sport = :${port}`).includes(`:${port}`),
  );
}

function cpu(path: Path): number {
  return path.pids.reduce((sum, pid) => sum + (cpuSeconds(pid) ?? 0), 0);
}

/** Resident memory of the tunnel's processes, both sides, in MB. */
export function memoryMB(path: Path): number {
  return path.pids.reduce((sum, pid) => sum + residentBytes(pid), 0) / 1e6;
}
