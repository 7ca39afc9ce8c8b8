/**
 * Speed of the key server, as JSON on standard output:
 *
 *   npx tsx scripts/benchmark/key-server.ts [--seconds 3] [--sizes 1000:10000,10000:100000,100000:1000000]
 *
 *   stored    key requests answered from the store: in the process, and over the secure
 *             channel with clients in a process of their own on the same machine
 *   first     first-time keys, durable (synchronous=FULL, group commit): both ways
 *   sizes     for so many members and pair keys: start of the process, its memory, and the
 *             time of a request compared with a store of few
 */
import { fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AuditLog } from '../../keyserver/audit.js';
import { KEY_KIND, type KeyServerPaths, pathsOf } from '../../keyserver/config.js';
import { CurrentSettings } from '../../keyserver/current-settings.js';
import { initSubnet } from '../../keyserver/init.js';
import { GroupRekey } from '../../keyserver/keys/group-rekey.js';
import { KeyRequests } from '../../keyserver/keys/key-requests.js';
import { Rekey } from '../../keyserver/keys/rekey.js';
import { LocalDeks } from '../../keyserver/kms/local-deks.js';
import { KeyServer } from '../../keyserver/server.js';
import { keyServerMetrics } from '../../keyserver/server-metrics.js';
import type { Services } from '../../keyserver/services.js';
import { openStore } from '../../keyserver/storage/sql-store.js';
import { SqliteDriver } from '../../keyserver/storage/sqlite.js';
import type { Store, StoreTransaction } from '../../keyserver/storage/store.js';
import { unlock } from '../../keyserver/storage/unlock.js';
import { ChannelClient } from '../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { type Id, orderedPair, parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { generateRawKeyPair, importPrivate, importPublic } from '../../src/protocol/public-keys.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { createLogger } from '../../src/runtime/log.js';
import { Metrics } from '../../src/runtime/metrics.js';
import { residentMiB, startServer } from './server-process.js';

const SUBNET = parseId('bench');
const CLIENTS = 50;
const PIPELINE = 16;
const NO_LIMIT = { burst: 1e9, perSecond: 1e9 };
const log = createLogger('bench', { level: 'error' });

interface ClientJob {
  readonly port: number;
  readonly server: string;
  readonly members: readonly { readonly id: string; readonly key: string }[];
  readonly peers: readonly string[];
  /** Each pair once, else random ones for so many seconds. */
  readonly once: boolean;
  readonly seconds: number;
}

interface Rate {
  readonly requests: number;
  readonly perSecond: number;
  /** CPU time of the server for one request: what a busy machine does not distort. */
  readonly serverCpuMicroseconds?: number;
}

async function main(): Promise<void> {
  const option = (name: string, otherwise: string): string => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? otherwise : (process.argv[at + 1] ?? otherwise);
  };
  const seconds = Number(option('seconds', '3'));
  const sizes = option('sizes', '1000:10000,10000:100000,100000:1000000').split(',');
  if (process.argv.includes('--stored')) {
    process.stdout.write(`${JSON.stringify(await benchStored(seconds), undefined, 2)}\n`);
    return;
  }
  const grown: unknown[] = [];
  for (const size of sizes) {
    const [members = 0, pairs = 0] = size.split(':').map(Number);
    grown.push(await benchSize(members, pairs));
  }
  const result = {
    machine: { cpus: cpus().length, model: cpus()[0]?.model, node: process.version },
    stored: await benchStored(seconds),
    first: await benchFirst(seconds),
    sizes: grown,
    targets: { storedPerSecond: 20_000, firstPerSecond: 3_000, startMs: 3_000, timeRatio: 1.5 },
  };
  process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
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
  readonly keys = new Map<Id, Buffer>();
  store!: Store;

  static async make(members: number, clients = 0): Promise<Bench> {
    const bench = new Bench();
    await initSubnet({
      subnet: SUBNET,
      dir: bench.dir,
      listen: '127.0.0.1:17977',
      advertise: [],
      settings: {},
    });
    bench.store = await openSealed(bench.paths);
    for (let from = 0; from < members; from += 5_000) {
      await bench.store.write(async (tx) => {
        for (let at = from; at < Math.min(members, from + 5_000); at += 1) {
          await bench.#insert(tx, at, at < clients);
        }
      });
    }
    return bench;
  }

  id(at: number): Id {
    return `m${at}` as Id;
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

  async serve(): Promise<KeyServer> {
    return KeyServer.start({
      store: this.store,
      listen: [{ scheme: 'tcp', host: '127.0.0.1', port: 0 }],
      staticKeys: keyPairFromPrivate(readKeyFile(this.paths.serverKey, KEY_KIND.server)),
      tokenKey: randomBytes(32),
      auditKey: randomBytes(32),
      auditSignKey: importPrivate('ed25519', randomBytes(32)),
      log,
      limits: { keyRequestBurst: NO_LIMIT.burst, keyRequestsPerSecond: NO_LIMIT.perSecond },
    });
  }

  async overChannel(peers: readonly Id[], once_: boolean, seconds: number): Promise<Rate> {
    const server = await this.serve();
    const job: ClientJob = {
      port: server.addresses[0]?.port ?? 0,
      server: keyPairFromPrivate(
        readKeyFile(this.paths.serverKey, KEY_KIND.server),
      ).publicKey.toString('hex'),
      members: [...this.keys].map(([id, key]) => ({ id, key: key.toString('hex') })),
      peers: peers.map((id) => defaultMac(SUBNET, id)),
      once: once_,
      seconds,
    };
    const child = fork(fileURLToPath(import.meta.url), ['--client'], {
      execArgv: ['--import', 'tsx'],
      cwd: fileURLToPath(new URL('..', import.meta.url)),
    });
    child.once('exit', (code) => {
      if (code !== 0) throw new Error(`the process of clients ended with ${code}`);
    });
    await once(child, 'message');
    const before = process.cpuUsage();
    child.send(job);
    const [rate] = (await once(child, 'message')) as [Rate];
    const { user, system } = process.cpuUsage(before);
    await server.close();
    return { ...rate, serverCpuMicroseconds: round((user + system) / rate.requests) };
  }

  async close(): Promise<void> {
    await this.store.close();
    rmSync(this.dir, { recursive: true, force: true });
  }

  /** Sizes as in life; the signatures are not looked at here. */
  async #insert(tx: StoreTransaction, at: number, client: boolean): Promise<void> {
    const id = this.id(at);
    const number = await tx.nextChange();
    let channel: Buffer = randomBytes(32);
    if (client) {
      const pair = generateRawKeyPair('x25519');
      channel = pair.publicKey;
      this.keys.set(id, pair.privateKey);
    }
    await tx.insertMember({
      id,
      serial: number,
      role: 'host',
      channel,
      membership: { b: randomBytes(560), s: randomBytes(64) },
      identityDigest: randomBytes(32),
      tokenId: randomBytes(16),
      ips: [],
      enrolledAt: 1,
      changed: number,
    });
    await tx.putMac({
      mac: defaultMac(SUBNET, id),
      shared: false,
      member: id,
      kind: 'own',
      serial: number,
      seenAt: 1,
      changed: number,
    });
    await tx.setBoot(id, {
      record: { b: randomBytes(130), s: randomBytes(64) },
      key: randomBytes(32),
      sequence: 1,
      index: at + 1,
      registeredAt: 1,
    });
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

async function benchStored(seconds: number): Promise<{ handler: Rate; channel: Rate }> {
  const bench = await Bench.make(1_000, CLIENTS);
  const services = await bench.services();
  const handler = new KeyRequests(services, () => {}, ...renewalsOf(services), NO_LIMIT);
  const peers = Array.from({ length: 200 }, (_unused, at) => bench.id(500 + at));
  for (let at = 0; at < CLIENTS; at += 1) {
    await Promise.all(peers.map((peer) => handler.byMac(bench.id(at), ask(bench.id(at), peer))));
  }
  const start = performance.now();
  let requests = 0;
  while (performance.now() - start < seconds * 1_000) {
    const own = bench.id(requests % CLIENTS);
    await Promise.all(
      Array.from({ length: PIPELINE }, (_unused, at) =>
        handler.byMac(own, ask(own, peers[(requests + at) % peers.length] as Id)),
      ),
    );
    requests += PIPELINE;
  }
  const rate = rateOf(requests, start);
  const channel = await bench.overChannel(peers, false, seconds);
  await services.audit.close();
  await bench.close();
  return { handler: rate, channel };
}

async function benchFirst(seconds: number): Promise<{ handler: Rate; channel: Rate }> {
  const bench = await Bench.make(2_000, CLIENTS);
  const services = await bench.services();
  const handler = new KeyRequests(services, () => {}, ...renewalsOf(services), NO_LIMIT);
  const start = performance.now();
  let requests = 0;
  while (performance.now() - start < seconds * 1_000) {
    // As many at once as members would ask in a busy moment.
    await Promise.all(
      Array.from({ length: 100 }, (_unused, at) => {
        const own = bench.id(1_000 + (((requests / 100) | 0) % 1_000));
        return handler.byMac(own, ask(own, bench.id(at + 100 * ((requests / 100_000) | 0))));
      }),
    );
    requests += 100;
  }
  const rate = rateOf(requests, start);
  const peers = Array.from({ length: 400 }, (_unused, at) => bench.id(100 + at));
  const channel = await bench.overChannel(peers, true, seconds);
  await services.audit.close();
  await bench.close();
  return { handler: rate, channel };
}

async function benchSize(members: number, pairs: number): Promise<Record<string, unknown>> {
  const small = await Bench.make(100);
  const smallTime = await requestTime(small, 100);
  await small.close();

  const bench = await Bench.make(members);
  const reach = Math.ceil(pairs / members);
  let made = 0;
  for (let from = 0; from < members && made < pairs; from += 500) {
    await bench.store.write(async (tx) => {
      for (let at = from; at < Math.min(members, from + 500); at += 1) {
        for (let hop = 1; hop <= reach && made < pairs; hop += 1) {
          const [a, b] = orderedPair(bench.id(at), bench.id((at + hop * 37) % members));
          const number = await tx.nextChange();
          const inserted = await tx.insertPair({
            a,
            b,
            key: randomBytes(32),
            pwId: 1,
            reason: 'first_request',
            createdAt: 1,
            serial: number,
            askedA: number,
            askedB: 0,
            changed: number,
            dueAt: 0,
          });
          if (inserted) made += 1;
        }
      }
    });
  }
  const largeTime = await requestTime(bench, members);
  await bench.store.close();
  const starts = [await startTime(bench), await startTime(bench), await startTime(bench)];
  starts.sort((a, b) => a.ms - b.ms);
  bench.store = await openSealed(bench.paths);
  await bench.close();
  return {
    members,
    pairs: made,
    startMs: starts[1]?.ms,
    residentMiB: starts[1]?.residentMiB,
    requestMicroseconds: { few: smallTime, many: largeTime, ratio: round(largeTime / smallTime) },
  };
}

/** Time of a request that is answered from the store, us. */
async function requestTime(bench: Bench, members: number): Promise<number> {
  const services = await bench.services();
  const handler = new KeyRequests(services, () => {}, ...renewalsOf(services), NO_LIMIT);
  const asks = Array.from({ length: 2_000 }, () => {
    const at = Math.floor(Math.random() * members);
    return { own: bench.id(at), peer: bench.id((at + 37) % members) };
  });
  for (const { own, peer } of asks) await handler.byMac(own, ask(own, peer));
  const start = performance.now();
  for (let round_ = 0; round_ < 5; round_ += 1) {
    for (const { own, peer } of asks) await handler.byMac(own, ask(own, peer));
  }
  const micros = ((performance.now() - start) * 1_000) / (5 * asks.length);
  await services.audit.close();
  return round(micros);
}

/** From the start of the process until it listens. */
async function startTime(bench: Bench): Promise<{ ms: number; residentMiB: number }> {
  const began = performance.now();
  const child = await startServer(bench.dir);
  const ms = Math.round(performance.now() - began);
  const resident = residentMiB(child);
  child.kill('SIGTERM');
  await once(child, 'exit');
  return { ms, residentMiB: resident };
}

/** The process of clients: each has a channel and keeps so many requests in flight. */
async function client(job: ClientJob): Promise<Rate> {
  const server = Buffer.from(job.server, 'hex');
  const channels = job.members.map(({ id, key }) => {
    const channel = new ChannelClient({
      servers: [{ host: '127.0.0.1', port: job.port, publicKey: server }],
      staticKeys: keyPairFromPrivate(Buffer.from(key, 'hex')),
    });
    channel.start();
    return { id, channel };
  });
  await Promise.all(channels.map(({ channel }) => channel.request({ t: 'sync', cursor: 1e9 })));
  const start = performance.now();
  let requests = 0;
  const end = start + job.seconds * 1_000;
  await Promise.all(
    channels.map(async ({ id, channel }) => {
      let next = 0;
      await Promise.all(
        Array.from({ length: PIPELINE }, async () => {
          while (performance.now() < end && !(job.once && next >= job.peers.length)) {
            const mac = job.peers[next % job.peers.length];
            next += 1;
            await channel.request({ t: 'key.mac', requester: id, mac });
            requests += 1;
          }
        }),
      );
    }),
  );
  const rate = rateOf(requests, start);
  for (const { channel } of channels) channel.stop();
  return rate;
}

function ask(requester: Id, peer: Id) {
  return { t: 'key.mac' as const, id: 1, requester, mac: defaultMac(SUBNET, peer) };
}

function rateOf(requests: number, start: number): Rate {
  const elapsed = (performance.now() - start) / 1_000;
  return { requests, perSecond: Math.round(requests / elapsed) };
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

if (process.argv.includes('--client')) {
  process.send?.('ready');
  process.once('message', (job) => {
    void client(job as ClientJob).then((rate) => {
      process.send?.(rate, () => process.exit(0));
    });
  });
} else {
  await main();
}
