/**
 * Renewal of all keys of a large subnet, as JSON on standard output:
 *
 *   npx tsx scripts/benchmark/rekey.ts [--members 1000,3000,10000] [--pairs 5]
 *
 * A real key server in a process of its own, and for each member a real channel with its registration, its
 * state and its confirmations, all in a second process: what a gateway says, without a data plane. Each member
 * shares a key with `pairs` others. Measured is the time from the operator's order until the last member has been
 * told that the new generation is in force, for all pair keys and for the group key, and the server's memory. Before that
 * all gateways start anew at the same moment, with other boot keys: how long until the last one is registered and has its state.
 */
import { fork } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type GatewayKeys, signMembership } from '../../gateway/identity.js';
import { KEY_KIND, loadKeyServerConfig, pathsOf } from '../../keyserver/config.js';
import { initSubnet } from '../../keyserver/init.js';
import { LocalDeks } from '../../keyserver/kms/local-deks.js';
import { OperatorClient } from '../../keyserver/operator-client.js';
import { openStore } from '../../keyserver/storage/sql-store.js';
import { SqliteDriver } from '../../keyserver/storage/sqlite.js';
import { unlock } from '../../keyserver/storage/unlock.js';
import { makeToken } from '../../keyserver/tokens.js';
import { ChannelClient } from '../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { KEY_SIZE, LABEL } from '../../src/protocol/constants.js';
import { type Id, orderedPair, parseId } from '../../src/protocol/ids.js';
import { answerSchemas, type Change, MAX_ROWS, pushSchema } from '../../src/protocol/messages.js';
import { generateRawKeyPair, importPrivate, importPublic } from '../../src/protocol/public-keys.js';
import { verifyMembership } from '../../src/protocol/records.js';
import { signRecord } from '../../src/protocol/signed.js';
import { parseToken } from '../../src/protocol/token.js';
import { SystemClock } from '../../src/runtime/clock.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { cpuMs, residentMiB, startServer } from './server-process.js';

const SUBNET = parseId('bench');
const HOUR = 3_600_000;
/** Channels that are opened at a time. */
const OPENING = 100;
/** One for all members of the process, as a gateway has one: it reads a file each second. */
const CLOCK = new SystemClock();
/** A simulated gateway confirms what came within so many ms together, as a real one does. */
const GATHER_MS = 5;

interface Job {
  readonly port: number;
  readonly server: string;
  readonly members: readonly {
    readonly id: string;
    readonly channel: string;
    readonly sign: string;
  }[];
}

/** What the members' process is told: to say when all hold this, or to start all members anew at once. */
type Order =
  | { readonly until: { readonly pair: number; readonly group: number } }
  | { readonly again: true };
type Until = Extract<Order, { until: unknown }>['until'];

async function main(): Promise<void> {
  const option = (name: string, otherwise: string): string => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? otherwise : (process.argv[at + 1] ?? otherwise);
  };
  const pairs = Number(option('pairs', '5'));
  const rows: unknown[] = [];
  for (const members of option('members', '1000,3000,10000').split(',').map(Number)) {
    rows.push(await measure(members, pairs));
  }
  const result = {
    machine: { cpus: cpus().length, model: cpus()[0]?.model, node: process.version },
    rows,
    target: { members: 10_000, seconds: 5 },
  };
  process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
}

async function measure(members: number, pairsEach: number): Promise<Record<string, number>> {
  const dir = mkdtempSync(join(tmpdir(), 'pairwire-bench-'));
  const port = 17_978;
  await initSubnet({
    subnet: SUBNET,
    dir,
    listen: `127.0.0.1:${port}`,
    advertise: [],
    // Only what is ordered is renewed.
    settings: { rekeySeconds: 0, groupRekey: 'on-revoke' },
  });
  const paths = pathsOf(dir, { database: 'keyserver.db', operatorKey: 'operator.key' });
  const job = await fill(paths, members, pairsEach, port);
  const server = await startServer(dir);
  const empty = residentMiB(server);
  const crowd = fork(fileURLToPath(import.meta.url), ['--members-process'], {
    execArgv: ['--import', 'tsx'],
  });
  const say = async (message: unknown): Promise<void> => {
    const answer = once(crowd, 'message');
    crowd.send(message as Order);
    await answer;
  };
  await once(crowd, 'message');
  const began = performance.now();
  await say(job);
  const allIn = performance.now() - began;
  const joined = residentMiB(server);
  const restart = performance.now();
  await say({ again: true });
  const allBack = performance.now() - restart;
  const operator = new OperatorClient(dir, loadKeyServerConfig(dir));
  const timed = async (order: Promise<unknown>, until: Until): Promise<number> => {
    const start = performance.now();
    const done = say({ until });
    await Promise.all([order, done]);
    return performance.now() - start;
  };
  const cpuBefore = cpuMs(server);
  const pairMs = await timed(operator.rekey({ a: undefined, b: undefined, force: false }), {
    pair: 2,
    group: 1,
  });
  const cpu = cpuMs(server) - cpuBefore;
  const after = residentMiB(server);
  const groupMs = await timed(operator.rekeyGroup(false), { pair: 2, group: 2 });
  operator.close();
  crowd.kill();
  server.kill('SIGTERM');
  await once(server, 'exit');
  rmSync(dir, { recursive: true, force: true });
  return {
    members,
    pairs: (members * pairsEach) | 0,
    registeredMs: Math.round(allIn),
    startedAnewMs: Math.round(allBack),
    pairKeysMs: Math.round(pairMs),
    pairKeysServerCpuMs: Math.round(cpu),
    groupKeyMs: Math.round(groupMs),
    emptyMiB: empty,
    withMembersMiB: joined,
    afterMiB: after,
  };
}

/** Members with real identities and keys in the store, as if all had enrolled. */
async function fill(
  paths: ReturnType<typeof pathsOf>,
  members: number,
  pairsEach: number,
  port: number,
): Promise<Job> {
  const operatorKey = importPrivate(
    'ed25519',
    readKeyFile(paths.operatorKey, KEY_KIND.operatorPrivate),
  );
  const server = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
  const driver = await SqliteDriver.open(paths.database);
  const service = LocalDeks.load(paths.kms);
  const store = await openStore(driver, {
    ring: await unlock(driver, { service, markFile: paths.sealMark }),
  });
  const operatorPublic = importPublic('ed25519', store.meta.operator);
  const config = {
    subnet: SUBNET,
    server: store.meta.server,
    listen: `127.0.0.1:${port}`,
    advertise: [],
  };
  const keys = {
    operator: operatorKey,
    tokenKey: readKeyFile(paths.tokenKey, KEY_KIND.token),
    serverPublic: server.publicKey,
  };
  const list: { id: string; channel: string; sign: string }[] = [];
  const id = (at: number): Id => `m${at % members}` as Id;
  for (let from = 0; from < members; from += 1_000) {
    await store.write(async (tx) => {
      for (let at = from; at < Math.min(members, from + 1_000); at += 1) {
        const token = makeToken(config, keys, {
          id: id(at),
          role: 'host',
          macs: [],
          ips: [],
          rights: [],
          uses: 1,
          notAfter: Date.now() + HOUR,
        });
        const sign = generateRawKeyPair('ed25519');
        const channel = generateRawKeyPair('x25519');
        const own: GatewayKeys = {
          sign: importPrivate('ed25519', sign.privateKey),
          signPublic: sign.publicKey,
          boxPublic: generateRawKeyPair('x25519').publicKey,
          channel: keyPairFromPrivate(channel.privateKey),
        };
        const membership = signMembership(SUBNET, id(at), parseToken(token.text).grant, own);
        const verified = verifyMembership(SUBNET, membership, operatorPublic);
        const number = await tx.nextChange();
        await tx.insertMember({
          id: id(at),
          serial: number,
          role: 'host',
          channel: channel.publicKey,
          membership,
          identityDigest: verified.identityDigest,
          tokenId: Buffer.from(verified.grant.tokenId),
          ips: [],
          enrolledAt: 1,
          changed: number,
        });
        list.push({
          id: id(at),
          channel: channel.privateKey.toString('hex'),
          sign: sign.privateKey.toString('hex'),
        });
      }
    });
  }
  await store.write(async (tx) => {
    for (let at = 0; at < members; at += 1) {
      for (let step = 1; step <= pairsEach; step += 1) {
        const [a, b] = orderedPair(id(at), id(at + step));
        const number = await tx.nextChange();
        await tx.insertPair({
          a,
          b,
          key: randomBytes(KEY_SIZE),
          pwId: 1,
          reason: 'first_request',
          createdAt: Date.now(),
          dueAt: 0,
          serial: number,
          askedA: number,
          askedB: number,
          changed: number,
        });
      }
    }
  });
  await store.close();
  return { port, server: server.publicKey.toString('hex'), members: list };
}

// ------------------------------------------------------------------- the members' process

/** A gateway's control plane without a data plane: it has what it was told, and confirms what is next. */
class Member {
  readonly #channel: ChannelClient;
  readonly #pairs = new Map<string, number>();
  readonly #due = new Map<string, { readonly peer: Id; readonly pwId: number }>();
  #group = 0;
  #nextGroup: number | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #changed: () => void;
  readonly #sequence: number;

  /** @param sequence of its start */
  constructor(job: Job, one: Job['members'][number], sequence: number, changed: () => void) {
    this.#changed = changed;
    this.#sequence = sequence;
    this.#channel = new ChannelClient({
      servers: [{ host: '127.0.0.1', port: job.port, publicKey: Buffer.from(job.server, 'hex') }],
      staticKeys: keyPairFromPrivate(Buffer.from(one.channel, 'hex')),
      clock: CLOCK,
      onPush: (message) => {
        const push = pushSchema.parse(message);
        if (push.t === 'changes') this.#take(push.changes);
      },
    });
    this.id = parseId(one.id);
    this.#sign = Buffer.from(one.sign, 'hex');
  }

  readonly id: Id;
  readonly #sign: Buffer;

  /** As on a real machine it stays when the gateway is started anew: one of another machine would have to wait (C9). */
  get #machine(): Buffer {
    return createHash('sha256').update(this.id).digest().subarray(0, 16);
  }

  async start(): Promise<void> {
    this.#channel.start();
    const boot = signRecord(
      LABEL.boot,
      {
        subnet: SUBNET,
        id: this.id,
        boot: generateRawKeyPair('x25519').publicKey,
        sequence: this.#sequence,
        macs: [],
        notAfter: Date.now() + HOUR,
      },
      importPrivate('ed25519', this.#sign),
    );
    await this.#channel.request(
      { t: 'register', boot, machine: this.#machine, nonce: randomBytes(16) },
      { timeoutMs: 120_000 },
    );
    let cursor = 0;
    let epoch: Uint8Array | undefined;
    for (let more = true; more; ) {
      const page = await this.#channel.request(
        { t: 'sync', cursor, ...(epoch === undefined ? {} : { epoch }) },
        { timeoutMs: 120_000, parse: (answer) => answerSchemas.sync.parse(answer) },
      );
      this.#take(page.changes);
      ({ cursor, epoch, more } = page);
    }
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#channel.stop();
  }

  reached({ pair, group }: Until): boolean {
    if (this.#group < group) return false;
    for (const pwId of this.#pairs.values()) if (pwId < pair) return false;
    return true;
  }

  #take(changes: readonly Change[]): void {
    for (const change of changes) {
      if (change.kind === 'pair') {
        this.#pairs.set(change.peer, Math.max(change.pwId, this.#pairs.get(change.peer) ?? 0));
        if (change.next === undefined) this.#due.delete(change.peer);
        else this.#due.set(change.peer, { peer: change.peer, pwId: change.next.pwId });
      } else if (change.kind === 'group') {
        this.#group = Math.max(this.#group, change.pwId);
        this.#nextGroup = change.next?.pwId;
      }
    }
    if (this.#due.size > 0 || this.#nextGroup !== undefined) {
      this.#timer ??= setTimeout(() => this.#confirm(), GATHER_MS);
    }
    this.#changed();
  }

  #confirm(): void {
    this.#timer = undefined;
    const pairs = [...this.#due.values()].slice(0, MAX_ROWS);
    const group = this.#nextGroup;
    this.#due.clear();
    this.#nextGroup = undefined;
    void this.#channel.request(
      { t: 'key.confirm', pairs, ...(group === undefined ? {} : { group }) },
      { timeoutMs: 120_000 },
    );
  }
}

function membersProcess(): void {
  let job: Job | undefined;
  let members: Member[] = [];
  let until: Until | undefined;
  let waiting = new Set<Member>();
  const look = (member: Member): void => {
    if (until === undefined || !waiting.has(member) || !member.reached(until)) return;
    waiting.delete(member);
    if (waiting.size > 0) return;
    until = undefined;
    process.send?.('reached');
  };
  const membersOf = (from: Job, sequence: number): Member[] =>
    from.members.map((one) => {
      const member: Member = new Member(from, one, sequence, () => look(member));
      return member;
    });
  /** As after a power cut: everybody at the same moment, nobody knows anything. */
  const startAnew = async (): Promise<void> => {
    for (const member of members) member.stop();
    if (job === undefined) return;
    members = membersOf(job, 2);
    await Promise.all(members.map((member) => member.start()));
  };
  process.on('message', (message: Job | Order) => {
    if ('until' in message) {
      until = message.until;
      waiting = new Set(members);
      for (const member of members) look(member);
      return;
    }
    void (async () => {
      if ('again' in message) {
        await startAnew();
        process.send?.('registered');
        return;
      }
      job = message;
      members = membersOf(message, 1);
      for (let at = 0; at < members.length; at += OPENING) {
        await Promise.all(members.slice(at, at + OPENING).map((member) => member.start()));
      }
      process.send?.('registered');
    })();
  });
  process.send?.('ready');
}

if (process.argv.includes('--members-process')) membersProcess();
else await main();
