/**
 * `scripts/bench`: Pairwire and its peers side by side in one run.
 *
 *   scripts/bench [--quick] [--only NAME]... [--peer PATH] [--json FILE] [--chart FILE]
 *
 * All tunnels stand at the same time, each between two namespaces of its own, and are measured one after
 * the other, in rounds: what changes on the machine meanwhile hits all of them alike. docs/bench/README.md
 * says what each figure is.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { packageVersion } from '../../gateway/native-programs.js';
import { messageOf } from '../../src/runtime/errors.js';
import { chart } from './chart.js';
import { ratiosInTurns } from './in-turns.js';
import { describeMachine } from './machine.js';
import { type Lengths, Meter, type Tunnel } from './measure.js';
import { Bed, sweep } from './namespaces.js';
import { pairwire } from './pairwire.js';
import { PACKAGED_PEERS, type Peer, rawVeth, wireguardGo } from './peers.js';
import { updateReadme } from './readme.js';
import { terminalReport } from './report.js';
import { type Comparison, type FigureName, type Result, ROW, type Row } from './result.js';
import { figureOf } from './statistics.js';
import { comparisonsFor } from './targets.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const LATEST = join(ROOT, 'docs/bench/latest.json');
const LATEST_CHART = join(ROOT, 'docs/bench/latest.svg');

interface Plan {
  readonly rounds: number;
  /** Searching for packet rates takes longest: only in so many of the rounds. */
  readonly searches: number;
  readonly sizes: readonly (readonly [bytes: number, figure: FigureName])[];
  readonly firstPings: number;
  /** How often what is near its target is compared in turns. */
  readonly turns: number;
  readonly lengths: Lengths;
}

const QUICK: Plan = {
  rounds: 2,
  searches: 1,
  sizes: [
    [64, 'pps64'],
    [1400, 'pps1400'],
  ],
  firstPings: 2,
  turns: 3,
  lengths: {
    tcpSeconds: 1,
    shortMs: 150,
    longMs: 400,
    confirmations: 1,
    precision: 0.06,
    idleCount: 200,
    pingPongCount: 1000,
    loadedCount: 200,
  },
};
const FULL: Plan = {
  rounds: 5,
  searches: 2,
  sizes: [
    [64, 'pps64'],
    [512, 'pps512'],
    [1400, 'pps1400'],
  ],
  firstPings: 15,
  turns: 15,
  lengths: {
    tcpSeconds: 2,
    shortMs: 400,
    longMs: 1500,
    confirmations: 2,
    precision: 0.03,
    idleCount: 1000,
    pingPongCount: 5000,
    loadedCount: 1000,
  },
};

/** One row while it grows. */
class Candidate {
  readonly peer: Peer;
  tunnel: Tunnel | undefined;
  meter: Meter | undefined;
  bed: Bed | undefined;
  failed: string | undefined;
  readonly values = new Map<FigureName, number[]>();
  readonly generatorLimits = new Set<FigureName>();

  constructor(peer: Peer) {
    this.peer = peer;
  }

  add(name: FigureName, value: number): void {
    this.values.set(name, [...(this.values.get(name) ?? []), value]);
  }

  row(): Row {
    const { name, kind, layer } = this.peer;
    const version = versionOf(this.peer);
    return {
      name,
      kind,
      layer,
      ...(version === undefined ? {} : { version }),
      figures: Object.fromEntries(
        [...this.values].map(([figure, values]) => [figure, figureOf(values)]),
      ),
      generatorLimits: [...this.generatorLimits],
      ...(this.failed === undefined ? {} : { failed: this.failed }),
    };
  }
}

const USAGE =
  'usage: scripts/bench [--quick] [--only ROW]... [--peer PATH]... [--json FILE] [--chart FILE]\n';

function readOptions() {
  try {
    return parseArgs({
      options: {
        quick: { type: 'boolean', default: false },
        only: { type: 'string', multiple: true },
        peer: { type: 'string', multiple: true },
        json: { type: 'string' },
        chart: { type: 'string' },
      },
    }).values;
  } catch (error) {
    process.stderr.write(`bench: ${messageOf(error)}\n${USAGE}`);
    process.exit(2);
  }
}

const options = readOptions();
const plan = options.quick ? QUICK : FULL;
const interruption = new AbortController();
const say = (text: string) => process.stderr.write(`${text}\n`);

async function main(): Promise<void> {
  const begin = Date.now();
  const candidates = wanted().map((peer) => new Candidate(peer));
  install(candidates.flatMap(({ peer }) => peer.packages));
  await sweep();
  let comparisons: Comparison[];
  try {
    for (const [number, candidate] of candidates.entries()) await open(candidate, number);
    await sizeUp(candidates);
    comparisons = await compareInTurns(candidates);
  } finally {
    for (const { bed } of candidates) await bed?.close();
  }
  if (interruption.signal.aborted) return;
  const congestionControl = congestionControlOf(candidates);
  const result: Result = {
    schema: 2,
    when: new Date(begin).toISOString(),
    version: packageVersion(),
    mode: options.quick ? 'quick' : 'full',
    rounds: plan.rounds,
    ...(congestionControl === undefined ? {} : { congestionControl }),
    minutes: Math.round((Date.now() - begin) / 6000) / 10,
    machine: describeMachine(),
    rows: candidates.map((candidate) => candidate.row()),
    comparisons,
  };
  process.stdout.write(terminalReport(result));
  keep(result);
  if (result.rows.some((row) => row.failed !== undefined)) process.exitCode = 1;
}

/** The same in all namespaces of a machine. */
function congestionControlOf(candidates: readonly Candidate[]): string | undefined {
  return candidates.find(({ bed }) => bed !== undefined)?.bed?.congestionControl;
}

function peers(): Peer[] {
  const { firstPings } = plan;
  return [
    rawVeth,
    pairwire({ name: ROW.off, encryptionOff: true }),
    pairwire({ name: ROW.own, firstPings }),
    pairwire({ name: ROW.chacha, suite: 'chacha20-poly1305' }),
    pairwire({ name: ROW.crowd, crowd: 9_998 }),
    pairwire({ name: ROW.ethernet, ethernet: true }),
    ...PACKAGED_PEERS.slice(0, 1),
    ...(options.peer ?? []).map((path) => wireguardGo(path)),
    ...PACKAGED_PEERS.slice(1),
  ];
}

function wanted(): Peer[] {
  const all = peers();
  const names = options.only;
  if (names === undefined) return all;
  const unknown = names.filter((name) => !all.some((peer) => peer.name === name));
  if (unknown.length > 0) {
    throw new Error(
      `no row is named ${unknown.join(', ')}; there are: ${all.map(({ name }) => name).join(', ')}`,
    );
  }
  return all.filter((peer) => names.includes(peer.name));
}

async function open(candidate: Candidate, number: number): Promise<void> {
  await guarded(candidate, 'opening', async () => {
    candidate.bed = await Bed.create(number, interruption.signal);
    candidate.tunnel = await candidate.peer.open(candidate.bed);
    candidate.meter = await Meter.start(candidate.tunnel, plan.lengths);
    for (const ms of candidate.tunnel.firstPingExtraMs ?? []) candidate.add('firstPingExtraMs', ms);
  });
  // A tunnel that failed must not disturb the others while they are measured.
  if (candidate.failed !== undefined) await candidate.bed?.close();
}

async function sizeUp(candidates: readonly Candidate[]): Promise<void> {
  for (let round = 0; round < plan.rounds; round++) {
    // The bare veth pair first, because the others' processor time is told beyond its own; then each round
    // begins with another tunnel.
    const [first, ...rest] = candidates;
    const turned = rest.map((_, i) => rest[(i + round) % rest.length]);
    // Searches are spread over the run: in the first round, the last, and between.
    const searching = Math.round((round * (plan.searches - 1)) / Math.max(plan.rounds - 1, 1));
    const before = Math.round(((round - 1) * (plan.searches - 1)) / Math.max(plan.rounds - 1, 1));
    const search = round === 0 || searching > before;
    for (const candidate of [first, ...turned]) {
      const meter = candidate?.meter;
      if (candidate === undefined || meter === undefined || candidate.failed !== undefined)
        continue;
      await guarded(candidate, `round ${round + 1}`, async () => {
        await measure(candidate, meter, candidates[0], search);
      });
      if (candidate.failed !== undefined) await candidate.bed?.close();
    }
  }
}

async function measure(
  candidate: Candidate,
  meter: Meter,
  veth: Candidate | undefined,
  search: boolean,
): Promise<void> {
  const one = await meter.tcp();
  candidate.add('tcp1Gbit', one.gbit);
  candidate.add('cpuMachineSecondsPerGB', one.machineSecondsPerGB);
  candidate.add('cpuProcessesSecondsPerGB', one.processSecondsPerGB);
  const bare =
    veth?.peer === rawVeth ? veth.values.get('cpuMachineSecondsPerGB')?.at(-1) : undefined;
  if (bare !== undefined) {
    candidate.add('cpuAboveVethSecondsPerGB', Math.max(one.machineSecondsPerGB - bare, 0));
  }
  candidate.add('tcp4Gbit', (await meter.tcp({ streams: 4 })).gbit);
  candidate.add('tcpReverseGbit', (await meter.tcp({ reverse: true })).gbit);

  const trips = [
    ['idle', await meter.idle()],
    ['pingPong', await meter.pingPong()],
    ['loaded', await meter.loaded()],
  ] as const;
  for (const [name, trip] of trips) {
    candidate.add(`${name}P50Us`, trip.p50_us);
    candidate.add(`${name}P99Us`, trip.p99_us);
  }
  if (search) {
    for (const [size, name] of plan.sizes) {
      const rate = await meter.packetRate(size);
      if (rate.pps === 0) throw new Error(`no rate of ${size}-byte packets arrives without loss`);
      candidate.add(name, rate.pps);
      if (rate.generatorLimit) candidate.generatorLimits.add(name);
    }
  }
  const memory = meter.memory();
  candidate.add('packetMemoryMB', memory.packetMB);
  candidate.add('controlMemoryMB', memory.controlMB);
}

/** Compares what is near its target in turns. */
async function compareInTurns(candidates: readonly Candidate[]): Promise<Comparison[]> {
  const meterOf = (name: string) => candidates.find(({ peer }) => peer.name === name)?.meter;
  const done: Comparison[] = [];
  for (const wanted of comparisonsFor(candidates.map((candidate) => candidate.row()))) {
    const { row, base, figure } = wanted;
    const [meter, other] = [meterOf(row), meterOf(base)];
    if (meter === undefined || other === undefined) continue;
    const begin = Date.now();
    const name = `${row} beside ${base}, ${figure}`;
    try {
      const ratio = figureOf(
        await ratiosInTurns(
          plan.turns,
          () => figureNow(meter, figure),
          () => figureNow(other, figure),
        ),
      );
      done.push({ ...wanted, ratio });
      say(`${name}: ${((Date.now() - begin) / 1000).toFixed(1)} s`);
    } catch (error) {
      interruption.signal.throwIfAborted();
      say(`${name}: failed, so their medians are compared: ${messageOf(error)}`);
    }
  }
  return done;
}

async function figureNow(meter: Meter, figure: Comparison['figure']): Promise<number> {
  return figure === 'tcp1Gbit' ? (await meter.tcp()).gbit : (await meter.idle()).p50_us;
}

/** What fails costs its own row only; an interruption ends all. */
async function guarded(
  candidate: Candidate,
  step: string,
  action: () => Promise<void>,
): Promise<void> {
  const begin = Date.now();
  try {
    await action();
    say(`${candidate.peer.name}: ${step}, ${((Date.now() - begin) / 1000).toFixed(1)} s`);
  } catch (error) {
    interruption.signal.throwIfAborted();
    candidate.failed = `${step}: ${messageOf(error).split('\n').join(' ')}`;
    say(`${candidate.peer.name}: failed in ${candidate.failed}`);
  }
}

/** A whole run becomes the newest; a part of one, a quick or a failed one only goes where the user says. */
function keep(result: Result): void {
  const failed = result.rows.some((row) => row.failed !== undefined);
  const whole = !options.quick && options.only === undefined && !failed;
  const json = options.json ?? (whole ? LATEST : undefined);
  const picture = options.chart ?? (whole ? LATEST_CHART : undefined);
  write(json, `${JSON.stringify(result, null, 1)}\n`);
  write(picture, chart(result));
  if (json === LATEST) updateReadme();
  if (!whole && json === undefined) {
    say('not kept: a quick, partial or failed run is written with --json and --chart only');
  }
}

function write(file: string | undefined, text: string): void {
  if (file === undefined) return;
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
  say(`written: ${file}`);
}

function packageState(name: string): string | undefined {
  const field = (name: string) => `\${${name}}`;
  const format = ['-W', '-f', `${field('db:Status-Status')} ${field('Version')}`];
  try {
    const out = execFileSync('dpkg-query', [...format, name], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return /^installed (\S+)/.exec(out)?.[1];
  } catch {
    return undefined;
  }
}

function versionOf(peer: Peer): string | undefined {
  const main = peer.packages[0];
  return main === undefined || main === 'wireguard-tools' ? undefined : packageState(main);
}

function install(packages: readonly string[]): void {
  const needed = new Set([...packages, 'iperf3', 'iputils-ping', 'iproute2']);
  const missing = [...needed].filter((name) => packageState(name) === undefined);
  if (missing.length === 0) return;
  say(`installing ${missing.join(' ')}`);
  execFileSync('apt-get', ['update', '-qq'], { stdio: 'inherit' });
  execFileSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...missing], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  });
}

for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(name, () => {
    if (interruption.signal.aborted) return;
    say('interrupted: taking the tunnels down');
    interruption.abort(new Error('interrupted'));
  });
}

try {
  await main();
} catch (error) {
  if (!interruption.signal.aborted) say(`bench: ${messageOf(error)}`);
  process.exitCode = 1;
}
if (interruption.signal.aborted) process.exitCode = 130;
