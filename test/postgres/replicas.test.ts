/**
 * Three key servers on one PostgreSQL under load, one of them killed with -9 again and again, PostgreSQL itself once:
 * every request is answered in the end, every acknowledged fact is there, and no generation of a pair has two keys.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { verifyAudit } from '../../keyserver/audit.js';
import { initSubnet } from '../../keyserver/init.js';
import { openDatabase } from '../../keyserver/storage/open.js';
import { openStore } from '../../keyserver/storage/sql-store.js';
import type { ChannelClient, ChannelClientOptions } from '../../src/net/channel-client.js';
import { type Id, parseId } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import type { Token } from '../../src/protocol/token.js';
import { keyServerProgram } from '../programs/key-server.js';
import { PostgresServer } from '../unit/keyserver/support/postgres.js';
import { ringOf } from '../unit/keyserver/support/store.js';
import { sleep, TestMember, until } from '../unit/keyserver/support/subnet.js';
import { SUBNET, SubnetFolder } from '../unit/keyserver/support/subnet-folder.js';

const REPLICAS = 3;
const KILLS = 8;
const WORKERS = 4;
/** At least so many new ones between two kills, however slow the machine is. */
const KEYS_A_ROUND = 20;
const PATIENCE_MS = 60_000;

/** One process, on a folder of its own with the same keys. */
class Replica {
  #child: ChildProcess | undefined;
  log = '';

  constructor(
    readonly dir: string,
    readonly port: number,
    readonly metricsPort: number,
  ) {}

  start(): void {
    const argv = keyServerProgram('keyserver', '--dir', this.dir);
    const child = spawn(process.execPath, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
    child.stderr.on('data', (chunk: Buffer) => {
      this.log += chunk.toString();
    });
    this.#child = child;
  }

  get running(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null;
  }

  /** serving, standby, starting; undefined if it does not answer. */
  async state(): Promise<string | undefined> {
    try {
      const answer = await fetch(`http://127.0.0.1:${this.metricsPort}/healthz`);
      const text = (await answer.text()).trim();
      expect(answer.status).toBe(text === 'serving' ? 200 : 503);
      return text;
    } catch {
      return undefined;
    }
  }

  async end(signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null) return null;
    const ended = once(child, 'exit');
    child.kill(signal);
    await ended;
    return child.exitCode;
  }
}

/** Members that know all replicas. */
class Replicated extends SubnetFolder {
  constructor(readonly replicas: readonly Replica[]) {
    super(replicas[0]?.dir ?? '');
  }

  get port(): number {
    return this.replicas[0]?.port ?? 0;
  }

  override client(key: Buffer, more: Partial<ChannelClientOptions> = {}): ChannelClient {
    const [first, ...others] = this.replicas.map(({ port }) => ({
      host: '127.0.0.1',
      port,
      publicKey: this.serverPublic,
    }));
    if (first === undefined) throw new Error('there are no replicas');
    return super.client(key, { servers: [first, ...others], ...more });
  }

  async serving(): Promise<Replica | undefined> {
    for (const replica of this.replicas) {
      if ((await replica.state()) === 'serving') return replica;
    }
    return undefined;
  }
}

let postgres: PostgresServer;
let url: string;
let root: string;
let subnet: Replicated;
let token: Token;

beforeAll(async () => {
  postgres = await PostgresServer.start();
  url = await postgres.database();
  root = mkdtempSync(join(tmpdir(), 'pairwire-replicas-'));
  const dirs = Array.from({ length: REPLICAS }, (_unused, at) => join(root, `r${at}`));
  const ports = await freePorts(2 * REPLICAS);
  const replicas = dirs.map((dir, at) => {
    return new Replica(dir, ports[2 * at] ?? 0, ports[2 * at + 1] ?? 0);
  });
  const [first, ...others] = replicas;
  if (first === undefined) throw new Error('there are no replicas');
  await initSubnet({
    subnet: SUBNET,
    dir: first.dir,
    database: url,
    listen: `127.0.0.1:${first.port}`,
    metrics: `127.0.0.1:${first.metricsPort}`,
    advertise: replicas.map(({ port }) => `127.0.0.1:${port}`),
    settings: { replicate: 1 },
  });
  // What an operator does to add one: copy the folder, and say where this one listens.
  for (const other of others) {
    cpSync(first.dir, other.dir, { recursive: true });
    const file = join(other.dir, 'keyserver.yaml');
    const text = readFileSync(file, 'utf8');
    writeFileSync(
      file,
      text
        .replace(`listen: 127.0.0.1:${first.port}`, `listen: 127.0.0.1:${other.port}`)
        .replace(`127.0.0.1:${first.metricsPort}`, `127.0.0.1:${other.metricsPort}`),
    );
  }
  subnet = new Replicated(replicas);
  token = subnet.token({ id: 'n-*', uses: 1_000_000 });
  for (const replica of replicas) replica.start();
  await until(async () => (await subnet.serving()) !== undefined, 'one to serve', PATIENCE_MS);
  await until(
    async () =>
      (await Promise.all(replicas.map((one) => one.state()))).filter((one) => one === 'standby')
        .length ===
      REPLICAS - 1,
    'the others to stand by',
    PATIENCE_MS,
  );
});

afterAll(async () => {
  subnet.stopClients();
  for (const replica of subnet.replicas) await replica.end('SIGKILL');
  await postgres.remove();
  rmSync(root, { recursive: true, force: true });
});

/** Facts that a server has acknowledged. */
const enrolled = new Set<Id>();
const keys = new Map<string, string>();
const wrong: string[] = [];

/** As a gateway does: until it is answered. */
async function insist<T>(what: string, ask: () => Promise<T>): Promise<T> {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    try {
      return await ask();
    } catch (thrown) {
      const refused = (thrown as { code?: unknown }).code === 'refused';
      if (refused || Date.now() > end)
        throw new Error(`${what} was never answered: ${String(thrown)}`);
      await sleep(50);
    }
  }
}

async function load(prefix: string, running: () => boolean): Promise<number> {
  let answered = 0;
  for (let at = 0; running(); at += 1) {
    const member = new TestMember(subnet, `${prefix}-${at}`);
    member.sequence = 1;
    await insist(`the enrolment of ${member.id}`, () => member.enrol(token));
    enrolled.add(member.id);
    await insist(`the registration of ${member.id}`, () => member.registerAgain());
    const peers = [...enrolled].filter((id) => id !== member.id).slice(-10);
    for (const peer of peers) {
      const { key, pwId } = await insist(`${member.id} about ${peer}`, () =>
        member.keyByMac(defaultMac(SUBNET, peer)),
      );
      answered += 1;
      const name = `${[member.id, peer].sort().join(' ')} ${pwId}`;
      const text = Buffer.from(key).toString('hex');
      if ((keys.get(name) ?? text) !== text) wrong.push(`two keys: ${name}`);
      keys.set(name, text);
    }
    member.client.stop();
  }
  return answered;
}

it(`answers everything over ${KILLS} kills and a restart of PostgreSQL, and forgets nothing`, async () => {
  let running = true;
  const work = Array.from({ length: WORKERS }, (_unused, worker) =>
    load(`n-${worker}`, () => running),
  );
  // Whoever fails is found when all are awaited.
  for (const one of work) one.catch(() => undefined);
  const takenOverIn: number[] = [];
  for (let round = 0; round < KILLS; round += 1) {
    const before = keys.size;
    await until(() => keys.size >= before + KEYS_A_ROUND, 'new keys', PATIENCE_MS);
    const holder = await subnet.serving();
    const victim = holder ?? subnet.replicas[round % REPLICAS];
    await victim?.end('SIGKILL');
    const killed = Date.now();
    await until(
      async () => {
        const now = await subnet.serving();
        return now !== undefined && now !== victim;
      },
      'another one to serve',
      PATIENCE_MS,
    );
    takenOverIn.push(Date.now() - killed);
    victim?.start();
    if (round === Math.floor(KILLS / 2)) {
      await postgres.halt('immediate');
      await sleep(500);
      await postgres.run();
    }
    await sleep(Math.max(0, 1_000 - (Date.now() - killed)));
  }
  running = false;
  const answered = (await Promise.all(work)).reduce((sum, one) => sum + one, 0);
  console.log(
    `${answered} key requests answered, ${enrolled.size} members; taken over after ${takenOverIn.join(', ')} ms`,
  );
  expect(wrong).toEqual([]);
  expect(answered).toBeGreaterThan(KILLS);

  const driver = await openDatabase({ database: url });
  const store = await openStore(driver, {
    ring: await ringOf(driver, {
      kms: join(root, 'r0', 'kms'),
      sealMark: join(root, 'r0', 'store.sealed'),
    }),
  });
  try {
    for (const id of enrolled) if ((await store.member(id)) === undefined) wrong.push(`lost ${id}`);
    for (const [name, key] of keys) {
      const [a = '', b = '', pwId = ''] = name.split(' ');
      const pair = await store.pairKey(parseId(a), parseId(b));
      if (pair?.pwId === Number(pwId) && pair.key.toString('hex') === key) continue;
      wrong.push(`another key of ${name}: ${pair?.pwId}`);
    }
    expect(wrong).toEqual([]);
    expect((await verifyAudit(store, parseId('s1'), subnet.auditKey)).broken).toBeUndefined();
  } finally {
    await store.close();
  }
}, 300_000);

it('hands over at once when one is stopped, and the operator is answered from any machine', async () => {
  for (const replica of subnet.replicas) if (!replica.running) replica.start();
  await until(async () => (await subnet.serving()) !== undefined, 'one to serve', PATIENCE_MS);
  const first = await subnet.serving();
  expect(await first?.end('SIGTERM')).toBe(0);
  await until(
    async () => {
      const now = await subnet.serving();
      return now !== undefined && now !== first;
    },
    'another one to serve',
    PATIENCE_MS,
  );
  for (const { dir } of subnet.replicas) {
    const argv = keyServerProgram('members', '--dir', dir, '--json');
    const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    await once(child, 'close');
    expect(child.exitCode).toBe(0);
    expect(out).toContain('n-0-0');
  }
}, 180_000);

async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    }),
  );
  return servers.map((server) => {
    const address = server.address();
    server.close();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
}
