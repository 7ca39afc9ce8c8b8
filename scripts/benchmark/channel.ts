/**
 * Measures the secure channel (docs/protocol.md section 6; targets in the table below):
 *
 *   npx tsx scripts/benchmark/channel.ts [--json] [--seconds 5] [--only requests|handshakes|record]
 *     [--adapter tcp|udp|http] [--flood 5000]
 *
 * Requests and handshakes go over loopback between this process, the server, and a second
 * one, the client. With --flood everything is measured a second time while a third process
 * sends so many messages 1 in a second whose mac1 is right and whose Noise part is random. The cost of a record is that of sealing and opening a 256-byte message,
 * against AES-256-GCM of node:crypto over the same 256 bytes in the same run.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { Agent, request } from 'node:http';
import { connect } from 'node:net';
import { cpus, loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';
import { SCHEMES, type Scheme } from '../../src/net/address.js';
import { ChannelClient } from '../../src/net/channel-client.js';
import { encodeBody, HTTP_PATH } from '../../src/net/channel-http.js';
import { ChannelServer } from '../../src/net/channel-server.js';
import { publicMacKeys, stampOpening } from '../../src/protocol/channel/admission.js';
import { encodeMessage } from '../../src/protocol/channel/codec.js';
import { ClientConnection } from '../../src/protocol/channel/connection.js';
import { DatagramType, encodeOpening } from '../../src/protocol/channel/datagram.js';
import { encodeFrame, FrameType } from '../../src/protocol/channel/framing.js';
import { generateKeyPair } from '../../src/protocol/channel/keys.js';
import { Direction } from '../../src/protocol/channel/otp.js';
import { OutputBuffer } from '../../src/protocol/channel/output.js';
import { RecordOpener, RecordSealer } from '../../src/protocol/channel/record.js';
import { ServerTime, SystemClock } from '../../src/runtime/clock.js';

const TARGETS = { requestsPerSecond: 25_000, handshakesPerSecond: 2_000, recordRatio: 2 };
const CONNECTIONS = 100;

interface Job {
  readonly kind: 'requests' | 'handshakes';
  readonly adapter: Scheme;
  readonly port: number;
  readonly serverKey: string;
  readonly seconds: number;
  readonly depth: number;
}
interface FloodJob {
  readonly adapter: Scheme;
  readonly port: number;
  readonly serverKey: string;
  readonly perSecond: number;
}
interface Outcome {
  readonly done: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Processor time that each process spent for one request or handshake, us. */
  readonly clientCpuUs: number;
  serverCpuUs: number;
}

const NOTHING: Outcome = {
  done: 0,
  seconds: 1,
  p50Ms: 0,
  p99Ms: 0,
  clientCpuUs: 0,
  serverCpuUs: 0,
};
type Measured = Omit<Outcome, 'clientCpuUs' | 'serverCpuUs'>;

if (process.argv.includes('--client')) {
  process.on('message', (job: Job) => {
    const run = job.kind === 'requests' ? requests(job) : handshakes(job);
    const cpu = process.cpuUsage();
    run.then((outcome) => {
      process.send?.({ ...outcome, clientCpuUs: cpuSince(cpu) / outcome.done });
    });
  });
} else if (process.argv.includes('--flooder')) {
  process.on('message', (job: FloodJob) => flood(job));
} else {
  await main();
}

async function main(): Promise<void> {
  const json = process.argv.includes('--json');
  const at = process.argv.indexOf('--seconds');
  const seconds = at < 0 ? 5 : Number(process.argv[at + 1]);

  const onlyAt = process.argv.indexOf('--only');
  const wanted = (what: string): boolean => onlyAt < 0 || process.argv[onlyAt + 1] === what;

  const adapter = SCHEMES.find((one) => one === argumentOf('--adapter')) ?? 'tcp';
  const floodRate = Number(argumentOf('--flood') ?? 0);
  const keys = generateKeyPair();
  const server = new ChannelServer<{ t: string; subnet: string }>({
    listen: [{ scheme: adapter, host: '127.0.0.1', port: 0 }],
    staticKeys: keys,
    authorise: () => true,
    psk: () => undefined,
    parse: (message) => message as { t: string; subnet: string },
    onRequest: async (_session, request) => ({ subnet: request.subnet, version: 7 }),
    // All clients have one address here; what is measured is the work, not that limit.
    limits: { perPrefix: { burst: 1e6, perSecond: 1e6 } },
  });
  const [{ port } = { port: 0 }] = await server.listen();
  const client = fork(fileURLToPath(import.meta.url), ['--client']);
  const job = { adapter, port, serverKey: keys.publicKey.toString('hex'), seconds };

  const run = async (kind: Job['kind'], depth: number): Promise<Outcome> => {
    if (!wanted(kind)) return NOTHING;
    // A first round for the compilers of both processes, not counted.
    await ask(client, { ...job, kind, depth, seconds: seconds / 2 });
    return ask(client, { ...job, kind, depth });
  };
  /** The same again while somebody floods the server. */
  const flooded = async () => {
    if (floodRate === 0) return undefined;
    const flooder = fork(fileURLToPath(import.meta.url), ['--flooder']);
    flooder.send({ adapter, port, serverKey: job.serverKey, perSecond: floodRate });
    const sent = (): number => {
      const { cookies, discarded, closed } = server.counters;
      return cookies + discarded.handshake + discarded.queue + closed.handshake_message;
    };
    try {
      await new Promise((resolve) => setTimeout(resolve, 1_000));
      const before = sent();
      const start = performance.now();
      const answered = await run('requests', 8);
      const shaken = await run('handshakes', 32);
      const arrived = Math.round((sent() - before) / ((performance.now() - start) / 1_000));
      return {
        bogusPerSecond: { wanted: floodRate, arrived },
        requestsPerSecond: rate(answered),
        requestLatencyMs: latency(answered),
        handshakesPerSecond: rate(shaken),
        handshakeLatencyMs: latency(shaken),
        cookies: server.counters.cookies,
        discarded: Object.fromEntries(
          Object.entries(server.counters.discarded).filter(([, n]) => n > 0),
        ),
      };
    } finally {
      flooder.kill();
    }
  };
  const record = recordCost(wanted('record') ? seconds : 0);
  const requests1 = await run('requests', 1);
  const requests8 = await run('requests', 8);
  const shakes = await run('handshakes', 32);
  const underFlood = await flooded();
  client.disconnect();
  await server.close();

  const result = {
    machine: { cpu: cpus()[0]?.model ?? '?', cores: cpus().length, node: process.version },
    targets: TARGETS,
    requestsPerSecond: rate(requests8),
    requestsPerSecondDepth1: rate(requests1),
    requestLatencyMs: { depth1: latency(requests1), depth8: latency(requests8) },
    cpuMicroseconds: {
      request: cost(requests8),
      requestDepth1: cost(requests1),
      handshake: cost(shakes),
    },
    connections: CONNECTIONS,
    handshakesPerSecond: rate(shakes),
    handshakeLatencyMs: latency(shakes),
    adapter,
    underFlood,
    ...record,
    loadAverage: loadavg()[0],
    failures: Object.fromEntries(Object.entries(server.counters.closed).filter(([, n]) => n > 0)),
  };
  if (json) {
    console.log(JSON.stringify(result, undefined, 2));
    return;
  }
  console.log(`${result.machine.cpu}, ${result.machine.cores} cores, Node.js ${process.version}`);
  console.log(`requests answered   ${result.requestsPerSecond} /s (100 connections, 8 at a time)`);
  console.log(`                    ${result.requestsPerSecondDepth1} /s (1 at a time)`);
  console.log(`handshakes          ${result.handshakesPerSecond} /s`);
  if (underFlood !== undefined) {
    const { bogusPerSecond, requestsPerSecond, handshakesPerSecond } = underFlood;
    console.log(`under ${bogusPerSecond.arrived} bogus messages 1 a second:`);
    console.log(`requests answered   ${requestsPerSecond} /s (100 connections, 8 at a time)`);
    console.log(`handshakes          ${handshakesPerSecond} /s`);
  }
  console.log(`seal + open, 256 B  ${record.recordMicroseconds} us`);
  console.log(`bare AES-256-GCM    ${record.bareMicroseconds} us, ratio ${record.recordRatio}`);
}

function argumentOf(option: string): string | undefined {
  const at = process.argv.indexOf(option);
  return at < 0 ? undefined : process.argv[at + 1];
}

function rate(outcome: Outcome): number {
  return Math.round(outcome.done / outcome.seconds);
}

function latency(outcome: Outcome): { p50: number; p99: number } {
  return { p50: outcome.p50Ms, p99: outcome.p99Ms };
}

function ask(child: ChildProcess, job: Job): Promise<Outcome> {
  return new Promise((resolve) => {
    const cpu = process.cpuUsage();
    child.once('message', (message) => {
      const outcome = message as Outcome;
      outcome.serverCpuUs = cpuSince(cpu) / outcome.done;
      resolve(outcome);
    });
    child.send(job);
  });
}

function cpuSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return user + system;
}

/** Processor time of one operation at the server and at the client. */
function cost(outcome: Outcome): { server: number; client: number } {
  return { server: Math.round(outcome.serverCpuUs), client: Math.round(outcome.clientCpuUs) };
}

/** Keeps `depth` requests open on each of 100 connections. */
async function requests(job: Job): Promise<Measured> {
  const clients: ChannelClient[] = [];
  for (let i = 0; i < CONNECTIONS; i += 1) {
    const client = new ChannelClient({
      servers: [
        {
          scheme: job.adapter,
          host: '127.0.0.1',
          port: job.port,
          publicKey: Buffer.from(job.serverKey, 'hex'),
        },
      ],
      staticKeys: generateKeyPair(),
    });
    client.start();
    clients.push(client);
  }
  await Promise.all(clients.map((client) => client.request({ t: 'state', subnet: 'warm' })));
  const times: number[] = [];
  let done = 0;
  const start = performance.now();
  const end = start + job.seconds * 1_000;
  const worker = async (client: ChannelClient): Promise<void> => {
    let sent = performance.now();
    while (sent < end) {
      await client.request({ t: 'state', subnet: 'office', since: done });
      const now = performance.now();
      done += 1;
      if (done % 16 === 0) times.push(now - sent);
      sent = now;
    }
  };
  await Promise.all(clients.flatMap((c) => Array.from({ length: job.depth }, () => worker(c))));
  const seconds = (performance.now() - start) / 1_000;
  for (const client of clients) client.stop();
  return { done, seconds, ...percentiles(times) };
}

/** Connects, shakes hands, sends a ping, waits for its answer and hangs up; `depth` at a time. */
async function handshakes(job: Job): Promise<Measured> {
  const staticKeys = generateKeyPair();
  const serverKey = Buffer.from(job.serverKey, 'hex');
  const clock = new SystemClock();
  const ping = encodeMessage({ t: 'ping', id: 1 });
  const overDatagrams = async (): Promise<void> => {
    const client = new ChannelClient({
      servers: [{ scheme: job.adapter, host: '127.0.0.1', port: job.port, publicKey: serverKey }],
      staticKeys,
    });
    client.start();
    await client.request({ t: 'ping' });
    client.stop();
  };
  const overTcp = (): Promise<void> =>
    new Promise((resolve) => {
      const out = new OutputBuffer();
      const socket = connect({ host: '127.0.0.1', port: job.port, noDelay: true });
      const flush = (): void => {
        for (const piece of out.take()) socket.write(piece);
      };
      const time = new ServerTime(clock);
      const connection = new ClientConnection({ staticKeys, serverKey, clock, time }, out, {
        opened: () => connection.send(ping),
        message: () => connection.close('stopped'),
        closed: () => {
          socket.resetAndDestroy();
          resolve();
        },
      });
      socket.on('connect', () => {
        connection.start();
        flush();
      });
      socket.on('data', (chunk) => {
        connection.receive(chunk);
        flush();
      });
      socket.on('error', () => connection.close('network'));
    });
  const once = job.adapter === 'tcp' ? overTcp : overDatagrams;
  const times: number[] = [];
  let done = 0;
  const start = performance.now();
  const end = start + job.seconds * 1_000;
  const worker = async (): Promise<void> => {
    let begun = performance.now();
    while (begun < end) {
      await once();
      const now = performance.now();
      times.push(now - begun);
      begun = now;
      done += 1;
    }
  };
  await Promise.all(Array.from({ length: job.depth }, worker));
  return { done, seconds: (performance.now() - start) / 1_000, ...percentiles(times) };
}

/** Sends bogus messages 1 at a rate until the process is ended. */
function flood(job: FloodJob): void {
  const keys = publicMacKeys(Buffer.from(job.serverKey, 'hex'));
  const datagrams = Array.from({ length: 2_000 }, () => {
    const datagram = encodeOpening(DatagramType.message1, randomBytes(8), randomBytes(100));
    stampOpening(datagram, keys);
    return datagram;
  });
  const socket = createSocket({
    type: 'udp4',
    lookup: (name, _options, done) => done(null, name, 4),
  });
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const send: Record<Scheme, (datagram: Buffer) => void> = {
    udp: (datagram) => socket.send(datagram, job.port, '127.0.0.1', () => {}),
    tcp: () => {
      const peer = connect({ host: '127.0.0.1', port: job.port });
      peer.on('error', () => {});
      peer.write(encodeFrame(FrameType.message1, randomBytes(100)));
    },
    http: (datagram) => {
      const body = encodeBody([datagram]);
      const post = request({
        ...{ host: '127.0.0.1', port: job.port, path: HTTP_PATH, method: 'POST', agent },
        headers: { 'content-length': body.length },
      });
      post.on('response', (response) => response.resume());
      post.on('error', () => {});
      post.end(body);
    },
  };
  const start = performance.now();
  let sent = 0;
  setInterval(() => {
    const due = ((performance.now() - start) / 1_000) * job.perSecond;
    // After a pause of the machine it does not make up for what it missed.
    if (due - sent > job.perSecond / 4) sent = due - job.perSecond / 4;
    for (; sent < due; sent += 1) {
      const datagram = datagrams[Math.floor(sent) % datagrams.length];
      if (datagram !== undefined) send[job.adapter](datagram);
    }
  }, 5);
}

function percentiles(times: number[]): { p50Ms: number; p99Ms: number } {
  times.sort((a, b) => a - b);
  const at = (share: number): number =>
    Math.round((times[Math.floor(times.length * share)] ?? 0) * 100) / 100;
  return { p50Ms: at(0.5), p99Ms: at(0.99) };
}

/** Alternates rounds of both, so that a change of the machine's speed meets both alike. */
function recordCost(seconds: number): {
  recordMicroseconds: number;
  bareMicroseconds: number;
  recordRatio: number;
} {
  const key = randomBytes(32);
  const otpKey = randomBytes(32);
  const message = randomBytes(256);
  const sealer = new RecordSealer(key, otpKey, Direction.toResponder);
  const opener = new RecordOpener(key, otpKey, Direction.toResponder);
  const out = Buffer.alloc(512);
  const record = (): void => {
    const size = sealer.sealInto(out, 0, message, 1_800_000_000_000);
    const opened = opener.open(out.subarray(5, size), 1_800_000_000_000, 30_000);
    if (!opened.ok) throw new Error(opened.reason);
  };
  const nonce = Buffer.alloc(12);
  const bare = (): void => {
    const cipher = createCipheriv('aes-256-gcm', key, nonce);
    const sealed = cipher.update(message);
    cipher.final();
    const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 });
    decipher.setAuthTag(cipher.getAuthTag());
    decipher.update(sealed);
    decipher.final();
  };
  const spent = { record: [] as number[], bare: [] as number[] };
  const rounds = seconds * 6;
  for (let round = 0; round < rounds; round += 1) {
    for (const [name, step] of [
      ['record', record],
      ['bare', bare],
    ] as const) {
      // Processor time: what else runs on the machine does not enter it.
      const before = process.cpuUsage();
      for (let i = 0; i < 5_000; i += 1) step();
      spent[name].push(cpuSince(before) / 5_000);
    }
  }
  const median = (values: number[]): number =>
    values.sort((a, b) => a - b)[values.length >> 1] ?? 0;
  const recordUs = median(spent.record);
  const bareUs = median(spent.bare);
  return {
    recordMicroseconds: Math.round(recordUs * 100) / 100,
    bareMicroseconds: Math.round(bareUs * 100) / 100,
    recordRatio: Math.round((recordUs / (bareUs || 1)) * 100) / 100,
  };
}
