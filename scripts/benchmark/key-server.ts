/**
 * Speed and scale of the key server, beside the targets of the design ("Scale to reach"):
 *
 *   npx tsx scripts/benchmark/key-server.ts [--json] [--requests 400] [--sizes 1000:10000,10000:100000,100000:1000000]
 *     [--only stored|first|sizes|crowd]
 *
 *   stored    key requests answered from the store: the handler alone (in this process), and over the secure channel
 *             from the server as it is built, in a process of its own
 *   first     first-time keys, durable (synchronous=FULL, group commit): both ways
 *   sizes     for so many members and pair keys: start of the process, its memory, and the time of a request beside
 *             that of a store of few
 *   crowd     rekey.ts: gateways connected to one process, all their keys renewed, all of them starting anew together
 *
 * Clients run in a process of their own on the same machine, where they take as much of the processors as the server does. What a
 * request costs the server is therefore told in processor time: that is what a busy machine does not distort, and one second divided by it is the
 * rate at which one processor is busy with the server alone. The handler's rate is by the clock, as are starts.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { appendFileSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { AuditLog } from '../../keyserver/audit.js';
import { KEY_KIND, type KeyServerPaths, pathsOf } from '../../keyserver/config.js';
import { CurrentSettings } from '../../keyserver/current-settings.js';
import { initSubnet } from '../../keyserver/init.js';
import { GroupRekey } from '../../keyserver/keys/group-rekey.js';
import { KeyRequests } from '../../keyserver/keys/key-requests.js';
import { Rekey } from '../../keyserver/keys/rekey.js';
import { LocalDeks } from '../../keyserver/kms/local-deks.js';
import { keyServerMetrics } from '../../keyserver/server-metrics.js';
import type { Services } from '../../keyserver/services.js';
import { openStore } from '../../keyserver/storage/sql-store.js';
import { SqliteDriver } from '../../keyserver/storage/sqlite.js';
import type { Store } from '../../keyserver/storage/store.js';
import { unlock } from '../../keyserver/storage/unlock.js';
import type { Scheme } from '../../src/net/address.js';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { type Id, parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { importPublic } from '../../src/protocol/public-keys.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { createLogger } from '../../src/runtime/log.js';
import { Metrics } from '../../src/runtime/metrics.js';
import { fillStore, HOP, memberAt, reachOf } from './fill-store.js';
import { KeyClients, PIPELINE } from './key-clients.js';
import { cpuMs, residentMiB, startServer } from './server-process.js';

const SUBNET = parseId('bench');
const CLIENTS = 50;
const STORED_PEERS = 200;
const FIRST_PEERS = 400;
const PORT = 17_977;
const NO_LIMIT = { burst: 1_000_000, perSecond: 1_000_000 };
const NO_LIMITS = `limits:\n  keyRequestBurst: ${NO_LIMIT.burst}\n  keyRequestsPerSecond: ${NO_LIMIT.perSecond}\n`;
/** First-time keys that the handler alone is asked for: a tenth for the compiler, not counted. */
const FIRST_REQUESTS = 20_000;
/** The store that others are compared with. */
const FEW = { members: 1_000, pairs: 2_000 };
/** Requests whose keys are read: so many of a store that was just opened, and so many times. */
const READ_ASKS = 150;
const READ_ROUNDS = 10;
/** Starts of one size, of which the median counts. */
const STARTS = 3;
/** Requests that are made in a turn of the handler alone. */
const TOGETHER = 100;
/** The crowd: members of which each shares a key with this many others. */
const CROWD = '1000,10000';
const CROWD_PAIRS = '1';
const TARGETS = {
  storedPerSecond: 20_000,
  firstPerSecond: 3_000,
  startMs: 3_000,
  timeRatio: 1.5,
  connectedMiB: 500,
  renewedMs: 5_000,
  backMs: 5_000,
};
const log = createLogger('bench', { level: 'error' });
const run = promisify(execFile);

/** Requests to the handler, in this process. */
interface HandlerRate {
  readonly requests: number;
  readonly perSecond: number;
  readonly cpuUs: number;
}

/** Requests over the channel, with both ends on this machine. */
interface ChannelRate {
  readonly requests: number;
  readonly perSecond: number;
  /** Processor time of one request at either end, us. */
  readonly serverCpuUs: number;
  readonly clientCpuUs: number;
  /** What the server alone could do in a second of one processor. */
  readonly perServerSecond: number;
}

interface Size {
  readonly members: number;
  readonly pairs: number;
  readonly filledMs: number;
  /** Of this store and of one of few, by the clock and in processor time of the server. */
  readonly start: { readonly few: Start; readonly many: Start };
  readonly residentMiB: number;
  readonly requestUs: {
    readonly few: RequestTime;
    readonly many: RequestTime;
    readonly ratio: RequestTime;
  };
}

type Pairs = Pick<Size, 'members' | 'pairs'>;

interface RequestTime {
  readonly memory: number;
  readonly read: number;
}

interface Start {
  readonly ms: number;
  readonly cpuMs: number;
}

/** Of rekey.ts. */
interface Crowd {
  readonly members: number;
  readonly pairs: number;
  readonly startedAnewMs: number;
  readonly pairKeysMs: number;
  readonly pairKeysServerCpuMs: number;
  readonly withMembersMiB: number;
}

interface Result {
  readonly machine: { readonly cpus: number; readonly model: string; readonly node: string };
  readonly loadAverage: number;
  readonly targets: typeof TARGETS;
  readonly stored?: {
    readonly handler: HandlerRate;
    readonly channel: Record<string, ChannelRate>;
  };
  readonly first?: { readonly handler: HandlerRate; readonly channel: ChannelRate };
  readonly sizes?: readonly Size[];
  readonly crowd?: readonly Crowd[];
}

async function main(): Promise<void> {
  const option = (name: string, otherwise: string): string => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? otherwise : (process.argv[at + 1] ?? otherwise);
  };
  const each = Number(option('requests', '400'));
  const only = option('only', '');
  const wants = (what: string): boolean => only === '' || only === what;
  const sizes: Size[] = [];
  for (const size of wants('sizes')
    ? option('sizes', '1000:10000,10000:100000,100000:1000000').split(',')
    : []) {
    const [members = 0, pairs = 0] = size.split(':').map(Number);
    sizes.push(await benchSize(members, pairs));
  }
  const result: Result = {
    machine: { cpus: cpus().length, model: cpus()[0]?.model ?? '?', node: process.version },
    loadAverage: loadavg()[0] ?? 0,
    targets: TARGETS,
    ...(wants('stored') ? { stored: await benchStored(each) } : {}),
    ...(wants('first') ? { first: await benchFirst() } : {}),
    ...(sizes.length === 0 ? {} : { sizes }),
    ...(wants('crowd') ? { crowd: await benchCrowd() } : {}),
  };
  if (process.argv.includes('--json')) {
    process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
  } else print(result);
}

/** The store as its server opens it, with the root keys in its folder. */
async function openSealed({ database, kms, sealMark }: KeyServerPaths): Promise<Store> {
  const driver = await SqliteDriver.open(database);
  const ring = await unlock(driver, { service: LocalDeks.load(kms), markFile: sealMark });
  return openStore(driver, { onlyWriter: true, ring });
}

/** A key server's folder with members that were written straight into the store. */
class Bench {
  readonly dir = mkdtempSync(join(tmpdir(), 'pairwire-bench-'));
  readonly paths = pathsOf(this.dir, { database: 'keyserver.db', operatorKey: 'operator.key' });
  #keys: ReadonlyMap<Id, Buffer> = new Map();
  store!: Store;

  static async make(members: number, pairs = 0, clients = 0): Promise<Bench> {
    const bench = new Bench();
    await initSubnet({
      subnet: SUBNET,
      dir: bench.dir,
      listen: [`127.0.0.1:${PORT}`, `udp://127.0.0.1:${PORT}`],
      advertise: [],
      settings: {},
    });
    // What is measured is the work, not what one member may ask for.
    appendFileSync(bench.paths.config, NO_LIMITS);
    bench.#keys = await fillStore(bench.paths, { subnet: SUBNET, members, pairs, clients });
    bench.store = await openSealed(bench.paths);
    return bench;
  }

  async services(): Promise<Services> {
    const { store } = this;
    const operator = importPublic('ed25519', store.meta.operator);
    const { server, subnet } = store.meta;
    return {
      store,
      subnet,
      server,
      net: { id: subnet, prefixes: [] },
      operator,
      settings: await CurrentSettings.load(store, operator),
      audit: new AuditLog({ store, server, key: randomBytes(32), now: Date.now, log }),
      metrics: keyServerMetrics(new Metrics()),
      log,
      now: Date.now,
    };
  }

  /** @param warm, each requests of each client: for the compilers of both processes, and those that are counted */
  async overChannel(
    scheme: Scheme,
    peers: readonly Id[],
    warm: number,
    each: number,
  ): Promise<ChannelRate> {
    await this.store.close();
    const server = await startServer(this.dir);
    const clients = await KeyClients.start();
    const { publicKey } = keyPairFromPrivate(readKeyFile(this.paths.serverKey, KEY_KIND.server));
    await clients.connect({
      scheme,
      port: PORT,
      server: publicKey.toString('hex'),
      members: [...this.#keys].map(([id, key]) => ({ id, key: key.toString('hex') })),
      peers: peers.map((id) => defaultMac(SUBNET, id)),
    });
    if (warm > 0) await clients.run(warm);
    const before = cpuMs(server);
    const { requests, seconds: took, cpuUs } = await clients.run(each);
    const serverUs = ((cpuMs(server) - before) * 1_000) / requests;
    clients.close();
    server.kill('SIGTERM');
    await once(server, 'exit');
    this.store = await openSealed(this.paths);
    return {
      requests,
      perSecond: Math.round(requests / took),
      serverCpuUs: round(serverUs),
      clientCpuUs: round(cpuUs / requests),
      perServerSecond: Math.round(1e6 / serverUs),
    };
  }

  /** Nothing of it is in memory afterwards. */
  async reopen(): Promise<void> {
    await this.store.close();
    this.store = await openSealed(this.paths);
  }

  async close(): Promise<void> {
    await this.store.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Keys as a server makes them; nobody is connected here that could be told of new ones. */
function renewalsOf(services: Services): [Rekey, GroupRekey] {
  const nobody = { live: () => [], liveCount: () => 0, tellAll: () => {}, tell: () => {} };
  return [
    new Rekey(services, { isLive: () => false, push: () => {} }),
    new GroupRekey(services, nobody),
  ];
}

/** Asks the handler, many at once, until there is nothing more to ask. */
async function askHandler(
  services: Services,
  together: number,
  next: (nth: number) => readonly [Id, Id] | undefined,
): Promise<HandlerRate> {
  const handler = new KeyRequests(services, () => {}, ...renewalsOf(services), NO_LIMIT);
  const start = performance.now();
  const cpu = process.cpuUsage();
  let requests = 0;
  for (let isOver = false; !isOver; ) {
    const asks: Promise<unknown>[] = [];
    for (; asks.length < together; requests += 1) {
      const pair = next(requests);
      if (pair === undefined) {
        isOver = true;
        break;
      }
      asks.push(handler.byMac(pair[0], ask(...pair)));
    }
    await Promise.all(asks);
  }
  const took = (performance.now() - start) / 1_000;
  return {
    requests,
    perSecond: Math.round(requests / took),
    cpuUs: round(cpuSince(cpu) / requests),
  };
}

async function benchStored(each: number): Promise<NonNullable<Result['stored']>> {
  const bench = await Bench.make(1_000, 0, CLIENTS);
  const services = await bench.services();
  const peers = Array.from({ length: STORED_PEERS }, (_unused, at) => memberAt(500 + at));
  const all = CLIENTS * peers.length;
  const pairs = (rounds: number) => (nth: number) => {
    const own = memberAt(Math.floor(nth / peers.length) % CLIENTS);
    return nth < rounds * all ? ([own, peers[nth % peers.length] ?? own] as const) : undefined;
  };
  // The first time each of them is made.
  await askHandler(services, TOGETHER, pairs(2));
  const handler = await askHandler(services, PIPELINE, pairs(5));
  await services.audit.close();
  const channel: Record<string, ChannelRate> = {};
  for (const scheme of ['udp', 'tcp'] as const) {
    channel[scheme] = await bench.overChannel(scheme, peers, each, each);
  }
  await bench.close();
  return { handler, channel };
}

async function benchFirst(): Promise<NonNullable<Result['first']>> {
  const bench = await Bench.make(3_000, 0, CLIENTS);
  const services = await bench.services();
  // Among members that are none of the clients, so that those find no key.
  const pairs = (from: number, to: number) => (nth: number) => {
    const at = from + nth;
    const own = at % 1_000;
    const peer = 2_000 + ((own + Math.floor(at / 1_000)) % 1_000);
    return at < to ? ([memberAt(1_000 + own), memberAt(peer)] as const) : undefined;
  };
  await askHandler(services, TOGETHER, pairs(0, FIRST_REQUESTS / 10));
  const handler = await askHandler(services, TOGETHER, pairs(FIRST_REQUESTS / 10, FIRST_REQUESTS));
  await services.audit.close();
  const peers = Array.from({ length: FIRST_PEERS }, (_unused, at) => memberAt(100 + at));
  const channel = await bench.overChannel('tcp', peers, 0, FIRST_PEERS);
  await bench.close();
  return { handler, channel };
}

async function benchSize(members: number, pairs: number): Promise<Size> {
  const small = await Bench.make(FEW.members, FEW.pairs);
  const few = await requestTime(small, FEW);
  const fewStart = await startTime(small);
  await small.close();
  const began = performance.now();
  const bench = await Bench.make(members, pairs);
  const filledMs = Math.round(performance.now() - began);
  const many = await requestTime(bench, { members, pairs });
  const { residentMiB: resident, ...start } = await startTime(bench);
  await bench.close();
  return {
    members,
    pairs,
    filledMs,
    start: { few: fewStart, many: start },
    residentMiB: resident,
    requestUs: {
      few,
      many,
      ratio: { memory: round(many.memory / few.memory), read: round(many.read / few.read) },
    },
  };
}

/**
 * Processor time of a request for a stored key, us: of pairs at random that are in memory, and of those that have to be read, each from
 * a store that was just opened.
 */
async function requestTime(bench: Bench, { members, pairs }: Pairs): Promise<RequestTime> {
  const reach = reachOf({ members, pairs });
  const drawn = (count: number) =>
    Array.from({ length: count }, () => {
      const at = Math.floor(Math.random() * members);
      const hop = 1 + Math.floor(Math.random() * reach);
      return [memberAt(at), memberAt((at + HOP * hop) % members)] as const;
    });
  const asked = (asks: readonly (readonly [Id, Id])[], rounds: number) => (nth: number) =>
    nth < rounds * asks.length ? asks[nth % asks.length] : undefined;
  const timed = async (asks: readonly (readonly [Id, Id])[], warm: number, rounds: number) => {
    const services = await bench.services();
    if (warm > 0) await askHandler(services, 1, asked(asks, warm));
    const { cpuUs } = await askHandler(services, 1, asked(asks, rounds));
    await services.audit.close();
    return cpuUs;
  };
  const memory = await timed(drawn(2_000), 2, 5);
  let read = 0;
  for (let nth = 0; nth < READ_ROUNDS; nth += 1) {
    await bench.reopen();
    read += (await timed(drawn(READ_ASKS), 0, 1)) / READ_ROUNDS;
  }
  return { memory, read: round(read) };
}

/** From the start of the process until it listens; the median of three. */
async function startTime(bench: Bench): Promise<Start & { residentMiB: number }> {
  await bench.store.close();
  const starts: (Start & { residentMiB: number })[] = [];
  for (let nth = 0; nth < STARTS; nth += 1) {
    const began = performance.now();
    const child = await startServer(bench.dir);
    const ms = Math.round(performance.now() - began);
    starts.push({ ms, cpuMs: cpuMs(child), residentMiB: residentMiB(child) });
    child.kill('SIGTERM');
    await once(child, 'exit');
  }
  bench.store = await openSealed(bench.paths);
  starts.sort((a, b) => a.ms - b.ms);
  const [median] = starts.slice(STARTS >> 1);
  if (median === undefined) throw new Error('it was never started');
  return median;
}

/** In a process of its own: what the others leave in memory is not its business. */
async function benchCrowd(): Promise<readonly Crowd[]> {
  const script = fileURLToPath(new URL('rekey.ts', import.meta.url));
  const { stdout } = await run(
    process.execPath,
    ['--import', 'tsx', script, '--members', CROWD, '--pairs', CROWD_PAIRS],
    { maxBuffer: 1 << 20 },
  );
  return (JSON.parse(stdout) as { rows: readonly Crowd[] }).rows;
}

function print({ machine, loadAverage, stored, first, sizes, crowd }: Result): void {
  const say = (text: string): void => void process.stdout.write(`${text}\n`);
  const row = (what: string, target: string, measured: string, met: boolean): void =>
    say(`${what.padEnd(58)} ${target.padEnd(12)} ${measured.padEnd(24)} ${met ? 'yes' : 'no'}`);
  const cost = ({ serverCpuUs, clientCpuUs, perSecond }: ChannelRate): string =>
    `${serverCpuUs} us of the server and ${clientCpuUs} us of the clients each; ${perSecond}/s with both on this machine`;
  say(`${machine.model}, ${machine.cpus} cores, Node.js ${machine.node}, load ${loadAverage}`);
  say(`${'what'.padEnd(58)} ${'target'.padEnd(12)} ${'measured'.padEnd(24)} met`);
  const ten = crowd?.find(({ members }) => members === 10_000);
  if (ten !== undefined) {
    const { withMembersMiB, pairKeysMs, pairs } = ten;
    const { connectedMiB, renewedMs } = TARGETS;
    row(
      '10,000 gateways connected to one process: memory',
      `< ${connectedMiB} MB`,
      `${withMembersMiB} MiB`,
      withMembersMiB * 1.048576 < connectedMiB,
    );
    row(
      `all ${pairs} pair keys of 10,000 members renewed and pushed`,
      `< ${renewedMs / 1_000} s`,
      `${pairKeysMs / 1_000} s`,
      pairKeysMs < renewedMs,
    );
  }
  const thousand = crowd?.find(({ members }) => members === 1_000);
  if (thousand !== undefined) {
    const { startedAnewMs } = thousand;
    const target = `< ${TARGETS.backMs / 1_000} s`;
    const isMet = startedAnewMs < TARGETS.backMs;
    row('1,000 gateways restarting together', target, `${startedAnewMs / 1_000} s`, isMet);
  }
  if (stored !== undefined) {
    const { handler, channel } = stored;
    const target = `${TARGETS.storedPerSecond}/s`;
    for (const [scheme, rate] of Object.entries(channel)) {
      const isMet = rate.perServerSecond >= TARGETS.storedPerSecond;
      const what = `stored keys over the channel (${scheme}), a processor of the server`;
      row(what, target, `${rate.perServerSecond}/s`, isMet);
      say(`    ${cost(rate)}`);
    }
    say(`    the handler alone: ${handler.perSecond}/s, ${handler.cpuUs} us each`);
  }
  if (first !== undefined) {
    const { handler, channel } = first;
    const target = `${TARGETS.firstPerSecond}/s`;
    const isMet = channel.perServerSecond >= TARGETS.firstPerSecond;
    const what = 'first-time keys, durable, a processor of the server';
    row(what, target, `${channel.perServerSecond}/s`, isMet);
    say(`    ${cost(channel)}`);
    say(`    the handler alone: ${handler.perSecond}/s, ${handler.cpuUs} us each`);
  }
  for (const { members, pairs, start, residentMiB: mib, requestUs, filledMs } of sizes ?? []) {
    const name = `${members} members, ${pairs} pair keys`;
    const { ms } = start.many;
    row(
      `${name}: start`,
      `< ${TARGETS.startMs / 1_000} s`,
      `${ms / 1_000} s`,
      ms < TARGETS.startMs,
    );
    say(
      `    ${start.many.cpuMs} ms of a processor; with a store of few ${start.few.ms / 1_000} s, ${start.few.cpuMs} ms`,
    );
    const { few, many, ratio } = requestUs;
    for (const [where, how] of [
      ['memory', 'from memory'],
      ['read', 'that is read'],
    ] as const) {
      const isSteady = ratio[where] <= TARGETS.timeRatio;
      const times = `${ratio[where]} x (${few[where]}, ${many[where]} us)`;
      row(`${name}: request ${how}, beside few`, `${TARGETS.timeRatio} x`, times, isSteady);
    }
    say(`    ${mib} MiB after the start; filled in ${filledMs / 1_000} s`);
  }
}

function ask(requester: Id, peer: Id) {
  return { t: 'key.mac' as const, id: 1, requester, mac: defaultMac(SUBNET, peer) };
}

function cpuSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return user + system;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

await main();
