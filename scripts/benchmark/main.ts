/**
 * `scripts/bench`: Pairwire and its peers side by side in one run, between the same two namespaces.
 *
 *   scripts/bench [--quick] [--only NAME]... [--peer PATH] [--json FILE] [--chart FILE]
 *
 * Prints a table; absolute figures depend on the machine, the ratios in one run are what counts.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname } from 'node:path';
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import { messageOf } from '../../src/runtime/errors.js';
import { chart } from './chart.js';
import { lossFreeRate, memoryMB, roundTrip, tcp } from './measure.js';
import { Bed } from './namespaces.js';
import { pairwire } from './pairwire.js';
import { PACKAGED_PEERS, type Peer, rawVeth, wireguardGo } from './peers.js';

/** One row of the result; undefined where a peer can't do it or the measurement failed. */
export interface Row {
  readonly name: string;
  readonly layer: 2 | 3;
  readonly tcpGbit?: number;
  readonly tcp4Gbit?: number;
  readonly tcpReverseGbit?: number;
  readonly cpuSecondsPerGB?: number;
  readonly pps64?: number;
  readonly pps512?: number;
  readonly pps1400?: number;
  readonly rttIdleP50Us?: number;
  readonly rttIdleP99Us?: number;
  readonly rttLoadedP50Us?: number;
  readonly rttLoadedP99Us?: number;
  readonly memoryMB?: number;
  readonly failed?: string;
}

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true },
    peer: { type: 'string' },
    json: { type: 'string' },
    chart: { type: 'string' },
  },
});

async function measure(peer: Peer): Promise<Row> {
  const bed = new Bed(1500);
  const base = { name: peer.name, layer: peer.layer };
  const seconds = values.quick ? 2 : 6;
  try {
    const tunnel = await peer.open(bed);
    const path = tunnel.path;
    await tcp(path, { seconds: 1 }); // warm-up: congestion control, caches, first keys
    const one = await tcp(path, { seconds });
    const four = await tcp(path, { seconds, streams: 4 });
    const reverse = await tcp(path, { seconds, reverse: true });
    const rate = (size: number) =>
      lossFreeRate(path, size, {
        seconds: values.quick ? 1 : 2,
        highest: 600_000,
        steps: values.quick ? 5 : 8,
      });
    const idle = await roundTrip(path, { count: values.quick ? 500 : 2000, loaded: false });
    const loaded = await roundTrip(path, { count: values.quick ? 500 : 2000, loaded: true });
    const row: Row = {
      ...base,
      tcpGbit: one.gbitPerSecond,
      cpuSecondsPerGB: one.cpuSecondsPerGB,
      tcp4Gbit: four.gbitPerSecond,
      tcpReverseGbit: reverse.gbitPerSecond,
      pps64: await rate(64),
      pps512: await rate(512),
      pps1400: await rate(1400),
      rttIdleP50Us: idle.p50Us,
      rttIdleP99Us: idle.p99Us,
      rttLoadedP50Us: loaded.p50Us,
      rttLoadedP99Us: loaded.p99Us,
      memoryMB: memoryMB(path),
    };
    await tunnel.close();
    return row;
  } catch (error) {
    return { ...base, failed: messageOf(error) };
  } finally {
    await bed.close();
  }
}

function print(rows: readonly Row[]): void {
  const table = new Table({
    head: [
      'tunnel',
      'L',
      'TCP 1',
      'TCP 4',
      'TCP rev',
      'CPU s/GB',
      '64 B kpps',
      '512 B',
      '1400 B',
      'rtt us p50/p99',
      'loaded',
      'MB',
    ],
    style: { head: [], border: [] },
  });
  const number = (value: number | undefined, digits: number) =>
    value === undefined ? '-' : value.toFixed(digits);
  for (const row of rows) {
    if (row.failed !== undefined) {
      table.push([
        row.name,
        row.layer,
        { colSpan: 10, content: `failed: ${row.failed.split('\n')[0]}` },
      ]);
      continue;
    }
    table.push([
      row.name,
      row.layer,
      number(row.tcpGbit, 2),
      number(row.tcp4Gbit, 2),
      number(row.tcpReverseGbit, 2),
      number(row.cpuSecondsPerGB, 2),
      number((row.pps64 ?? 0) / 1000, 0),
      number((row.pps512 ?? 0) / 1000, 0),
      number((row.pps1400 ?? 0) / 1000, 0),
      `${number(row.rttIdleP50Us, 0)}/${number(row.rttIdleP99Us, 0)}`,
      `${number(row.rttLoadedP50Us, 0)}/${number(row.rttLoadedP99Us, 0)}`,
      number(row.memoryMB, 0),
    ]);
  }
  process.stdout.write(
    `${table.toString()}\nTCP in Gbit/s; packet rates in 1,000/s with under 0.1 % loss\n`,
  );
}

async function main(): Promise<void> {
  const all: Peer[] = [
    rawVeth,
    pairwire('pairwire'),
    pairwire('pairwire (encryption off)'),
    ...PACKAGED_PEERS,
  ];
  if (values.peer !== undefined)
    all.push(wireguardGo(`wireguard-go (${values.peer})`, values.peer));
  const wanted = values.only;
  const peers =
    wanted === undefined ? all : all.filter((peer) => wanted.some((name) => peer.name === name));
  install(peers.flatMap((peer) => peer.packages));
  const rows: Row[] = [];
  for (const peer of peers) {
    process.stderr.write(`${peer.name} ...\n`);
    rows.push(await measure(peer));
  }
  print(rows);
  const result = {
    when: new Date().toISOString(),
    machine: { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length, node: process.version },
    quick: values.quick,
    rows,
  };
  write(values.json, `${JSON.stringify(result, null, 1)}\n`);
  write(values.chart, chart(rows));
  if (rows.some((row) => row.failed !== undefined)) process.exitCode = 1;
}

function install(packages: readonly string[]): void {
  const missing = [...new Set([...packages, 'iperf3', 'iputils-ping', 'iproute2'])].filter(
    (name) => {
      try {
        return !execFileSync('dpkg-query', ['-s', name], {
          encoding: 'utf8',
          stdio: ['ignore', 'pipe', 'ignore'],
        }).includes('Status: install ok installed');
      } catch {
        return true;
      }
    },
  );
  if (missing.length === 0) return;
  process.stderr.write(`installing ${missing.join(' ')}\n`);
  execFileSync('apt-get', ['update', '-qq'], { stdio: 'inherit' });
  execFileSync('apt-get', ['install', '-y', '-qq', ...missing], {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  });
}

function write(file: string | undefined, text: string): void {
  if (file === undefined) return;
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
}

await main();
