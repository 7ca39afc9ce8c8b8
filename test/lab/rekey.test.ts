/**
 * Pair keys renewed under traffic (docs/protocol.md 3.5): nothing is lost, both ends change or
 * neither does, and an end that was not told is healed by one of the document's two cases.
 */
import { copyFileSync, existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import { dropsOf, growth } from './helpers/drops.js';
import { listening, ping } from './helpers/hosts.js';
import { keepFrom } from './helpers/muted.js';
import { inner4, type Member, outer, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

const METRICS_PORT = 7190;
const handle = useLab(threeHosts({ init: ['--metrics', `127.0.0.1:${METRICS_PORT}`] }));
const ROUNDS = 8;
const SECONDS = process.env.PAIRWIRE_LAB_SIZE === 'small' ? 10 : 60;
const BENCH_NET = fileURLToPath(
  new URL('../../gateway/native/build/release/pairwire-bench-net', import.meta.url),
);
const REKEY_OFTEN = fileURLToPath(new URL('./helpers/programs/rekey-often.mjs', import.meta.url));
/** Where `pairwire-bench-net serve` and `iperf3 -s` listen. */
const NUMBERED_PORT = 7801;
const IPERF_PORT = 5201;
const countsSchema = z.object({
  sent: z.int(),
  refused: z.int(),
  lost: z.int(),
  duplicate: z.int(),
  reordered: z.int(),
  foreign: z.int(),
  receiver_overflow: z.int(),
});
const iperfSchema = z.object({
  end: z.object({ sum_received: z.object({ bytes: z.number() }) }),
});
const keysSchema = z.array(
  z.object({ kind: z.string(), a: z.string(), b: z.string().nullable(), pwId: z.int() }),
);

async function onServer(...args: string[]): Promise<string> {
  const { lab } = handle;
  const [command = '', ...rest] = args;
  const argv = [command, '--dir', lab.serverDir(SUBNET), ...rest];
  return (await lab.pairwire(lab.keyServer(SUBNET).host, argv)).stdout;
}

/** The generation of alice and bob at the key server. */
async function atServer(): Promise<number> {
  const rows = keysSchema.parse(JSON.parse(await onServer('keys', '--json')));
  const pair = rows.find(({ a, b }) => a === 'alice' && b === 'bob');
  if (pair === undefined) throw new Error('alice and bob have no key');
  return pair.pwId;
}

/** The generation that a gateway sends with. */
async function sentWith(host: Member, peer: Member): Promise<number | null> {
  const port = await handle.lab.port(host);
  return port.peers.find(({ id }) => id === peer)?.sendPwId ?? null;
}

async function bothSendWith(pwId: number): Promise<void> {
  await waitFor(
    async () =>
      (await sentWith('alice', 'bob')) === pwId && (await sentWith('bob', 'alice')) === pwId,
    { what: `both ends to send with generation ${pwId}`, timeoutMs: 20_000 },
  );
}

async function metric(name: string): Promise<number> {
  const { lab } = handle;
  const url = `http://127.0.0.1:${METRICS_PORT}/metrics`;
  const { stdout } = await lab.exec(lab.keyServer(SUBNET).host, ['curl', '-sf', url]);
  const line = stdout.split('\n').find((one) => one.startsWith(`pairwire_${name} `));
  return Number(line?.split(' ').at(-1) ?? 0);
}

/** Frames that a host's kernel had no room for in the queue of the TAP. */
async function tapDropsOf(host: Member): Promise<number> {
  const { lab } = handle;
  const { interface: tap } = await lab.port(host);
  const path = `/sys/class/net/${tap}/statistics/tx_dropped`;
  return Number((await lab.exec(host, ['cat', path])).stdout);
}

/** Renewals of the group key, or of pairs, that ended with a question of an end that was not told. */
function case1(): Promise<number> {
  return metric('keyserver_rekey_cases_total{case="1"}');
}

beforeEach(async () => {
  // The first test makes the key; each finds both ends on one generation.
  await ping(handle.lab, 'alice', inner4('bob'), { count: 2 });
  await bothSendWith(await atServer());
});

describe('rekeying of the group', () => {
  /** The generation of the group key at the key server. */
  async function groupAtServer(): Promise<number> {
    const rows = keysSchema.parse(JSON.parse(await onServer('keys', '--json')));
    return rows.find(({ kind }) => kind === 'group')?.pwId ?? 0;
  }

  test(`${ROUNDS} times under numbered broadcasts loses, doubles and reorders none`, async () => {
    const { lab } = handle;
    const address = '198.51.100.255';
    const shape = { address, perSecond: 300, size: 100 };
    const streams = [
      await NumberedStream.start(lab, { from: 'alice', to: 'bob', port: 7401, ...shape }),
      await NumberedStream.start(lab, { from: 'carol', to: 'alice', port: 7402, ...shape }),
    ];
    const before = await groupAtServer();
    const drops = { alice: await dropsOf(lab, 'alice'), bob: await dropsOf(lab, 'bob') };
    for (let round = 1; round <= ROUNDS; round += 1) {
      await onServer('rekey', '--group');
      await waitFor(async () => (await groupAtServer()) === before + round, {
        what: `generation ${before + round} of the group key`,
        timeoutMs: 20_000,
        everyMs: 50,
      });
      for (const stream of streams) await stream.more(100);
    }
    const grown = {
      alice: growth(drops.alice, await dropsOf(lab, 'alice')),
      bob: growth(drops.bob, await dropsOf(lab, 'bob')),
    };
    for (const stream of streams) {
      const { lost, repeated } = await stream.stop();
      const why = `${stream.name}; drops ${JSON.stringify(grown)}`;
      expect({ lost, repeated }, why).toEqual({ lost: 0, repeated: 0 });
    }
  });

  test('who does not get the push catches up by itself, and is heard again', async () => {
    const { lab } = handle;
    const before = await groupAtServer();
    const bob = await keepFrom(handle.lab, 'bob');
    await onServer('rekey', '--group', '--force');
    expect(await groupAtServer()).toBe(before + 1);
    // The first broadcast that he hears under a kid he does not hold makes him ask.
    const asked = await case1();
    const address = '198.51.100.255';
    const shape = { address, perSecond: 50, size: 100 };
    const others = await NumberedStream.start(lab, {
      from: 'alice',
      to: 'carol',
      port: 7405,
      ...shape,
    });
    await waitFor(async () => (await case1()) > asked, {
      what: 'a question of bob',
      timeoutMs: 20_000,
    });
    await bob.pass();
    await others.stop();
    const heard = await NumberedStream.start(lab, {
      from: 'alice',
      to: 'bob',
      port: 7403,
      ...shape,
    });
    const says = await NumberedStream.start(lab, {
      from: 'bob',
      to: 'carol',
      port: 7404,
      ...shape,
    });
    await heard.more(50);
    await says.more(50);
    await heard.stop();
    expect((await says.stop()).repeated).toBe(0);
    expect(lab.logTails(Number.POSITIVE_INFINITY)).toContain(`case 1: (bob, group, ${before})`);
  });
});

describe('rekeying', () => {
  test(
    `each second for ${SECONDS} s, under full TCP load and 10,000 numbered packets a second`,
    async () => {
      const { lab } = handle;
      const before = await atServer();
      const drops = { alice: await dropsOf(lab, 'alice'), bob: await dropsOf(lab, 'bob') };
      const queued = await tapDropsOf('alice');
      const counting = lab.spawn('bob', [BENCH_NET, 'serve'], { label: 'numbered' });
      const sink = lab.spawn('alice', ['iperf3', '-s'], { label: 'iperf3' });
      await Promise.all([
        listening(lab, 'bob', 'tcp', NUMBERED_PORT),
        listening(lab, 'alice', 'tcp', IPERF_PORT),
      ]);
      // The counts come by way of the underlay, past all that is tested.
      const numbered = lab.exec(
        'alice',
        [
          ...[BENCH_NET, 'rate', '--control', outer('bob'), '--target', inner4('bob')],
          ...['--pps', '10000', '--size', '128', '--ms', String(1_000 * SECONDS)],
        ],
        { timeoutMs: 1_000 * SECONDS + 60_000 },
      );
      // Towards alice: what bob receives is not what his data plane is busy sending.
      const bulk = lab.exec('bob', ['iperf3', '-c', inner4('alice'), '-t', String(SECONDS), '-J'], {
        timeoutMs: 1_000 * SECONDS + 60_000,
      });
      const orders = lab.spawn('server', ['node', REKEY_OFTEN, lab.serverDir(SUBNET), '1000']);
      const counts = countsSchema.parse(JSON.parse((await numbered).stdout));
      const { sum_received: tcp } = iperfSchema.parse(JSON.parse((await bulk).stdout)).end;
      await Promise.all([counting, sink, orders].map((program) => lab.stop(program)));
      const rounds = (await atServer()) - before;
      await bothSendWith(before + rounds);
      const grown = {
        alice: growth(drops.alice, await dropsOf(lab, 'alice')),
        bob: growth(drops.bob, await dropsOf(lab, 'bob')),
      };
      // A machine that is too busy to empty the queue of a TAP, or a program's socket, loses packets
      // with any key. The kernel counts them; whatever else is missing is ours.
      const kernel = (await tapDropsOf('alice')) - queued + counts.receiver_overflow;
      const why = `${rounds} rounds, ${JSON.stringify({ counts, kernel, grown })}`;
      expect(rounds, why).toBeGreaterThan(SECONDS / 2);
      expect(counts.sent, why).toBeGreaterThan(5_000 * SECONDS);
      expect(counts.lost - counts.refused, why).toBeLessThanOrEqual(kernel);
      expect(kernel, why).toBeLessThan(counts.sent / 100);
      expect([counts.duplicate, counts.reordered, counts.foreign], why).toEqual([0, 0, 0]);
      expect(grown, why).toEqual({ alice: {}, bob: {} });
      expect(tcp.bytes, why).toBeGreaterThan(10_000_000 * SECONDS);
    },
    1_000 * SECONDS + 120_000,
  );

  test('waits for an end that does not get the push, with traffic unharmed, and then both change', async () => {
    const { lab } = handle;
    const before = await atServer();
    const bob = await keepFrom(handle.lab, 'bob');
    await onServer('rekey', 'alice', 'bob');
    const stay = await ping(lab, 'alice', inner4('bob'), { count: 100, intervalMs: 20 });
    expect(stay.received).toBe(100);
    expect(await sentWith('alice', 'bob')).toBe(before);
    expect(await sentWith('bob', 'alice')).toBe(before);
    expect(await atServer()).toBe(before);
    await bob.pass();
    await bothSendWith(before + 1);
  });

  test('by force heals an end that was not told: case 1 and case 2', async () => {
    const { lab } = handle;
    const before = await atServer();
    const cases = async () => ({
      one: await case1(),
      two: await metric('keyserver_rekey_cases_total{case="2"}'),
    });
    const counted = await cases();
    const bob = await keepFrom(handle.lab, 'bob');
    const argv = ['ping', '-n', '-i', '0.05', inner4('alice')];
    const { log, ...stream } = lab.spawn('bob', argv);
    await onServer('rekey', 'alice', 'bob', '--force');
    await waitFor(async () => (await sentWith('alice', 'bob')) === before + 1, {
      what: 'alice to change',
    });
    // Alice answers with the new generation, bob holds that and asks; bob sends with the old one.
    await waitFor(
      async () => {
        const now = await cases();
        return now.one > counted.one && now.two > counted.two;
      },
      { what: 'both cases', timeoutMs: 20_000 },
    );
    expect(await sentWith('bob', 'alice')).toBe(before);
    await bob.pass();
    await bothSendWith(before + 1);
    const healed = await ping(lab, 'bob', inner4('alice'), { count: 20, intervalMs: 20 });
    expect(healed.received).toBe(20);
    await lab.stop(stream, 'SIGINT');
    const server = lab.logTails(Number.POSITIVE_INFINITY);
    expect(server).toContain(`case 1: (bob, alice, ${before})`);
    expect(server).toContain(`case 2: (alice, bob, ${before + 1})`);
    expect(readFileSync(log, 'utf8')).not.toBe('');
  });

  test('by force under traffic loses nothing: what comes too early waits for its key', async () => {
    const before = await atServer();
    let done = false;
    const both = Promise.all(
      (
        [
          ['alice', 'bob'],
          ['bob', 'alice'],
        ] as const
      ).map(([from, to]) => ping(handle.lab, from, inner4(to), { count: 600, intervalMs: 10 })),
    ).finally(() => {
      done = true;
    });
    let orders = 0;
    for (; !done; orders += 1) await onServer('rekey', 'alice', 'bob', '--force');
    const answered = await both;
    expect(orders).toBeGreaterThan(1);
    expect(await atServer()).toBe(before + orders);
    const slowest = answered.map((one) => Math.max(...one.answered.values()));
    const why = `${orders} renewals, slowest answers ${slowest.join(' and ')} ms`;
    expect(
      answered.map(({ received }) => received),
      why,
    ).toEqual([600, 600]);
    if (process.env.PAIRWIRE_SHOW !== undefined) process.stderr.write(`${why}\n`);
  });
});

test('a key server that was put back makes generations above those in use, and traffic goes on', async () => {
  const { lab } = handle;
  const database = join(lab.serverDir(SUBNET), 'keyserver.db');
  const files = ['', '-wal', '-shm'].map((end) => `${database}${end}`);
  const stream = await NumberedStream.start(lab, {
    ...{ from: 'alice', to: 'bob', address: inner4('bob') },
    ...{ port: 7411, perSecond: 200, size: 100 },
  });
  await lab.stopKeyServer(SUBNET);
  for (const file of files) if (existsSync(file)) copyFileSync(file, `${file}.backup`);
  await lab.startKeyServer(SUBNET);
  for (let round = 0; round < 3; round += 1) {
    const before = await atServer();
    // Right after its start it may not have seen both ends yet.
    await onServer('rekey', 'alice', 'bob');
    await bothSendWith(before + 1);
  }
  const inUse = await atServer();
  await lab.stopKeyServer(SUBNET);
  for (const file of files) {
    rmSync(file, { force: true });
    if (existsSync(`${file}.backup`)) copyFileSync(`${file}.backup`, file);
  }
  await lab.startKeyServer(SUBNET);
  await waitFor(async () => (await atServer()) > inUse, {
    what: 'a generation above',
    timeoutMs: 45_000,
  });
  await bothSendWith(await atServer());
  await stream.more(200);
  // As by force: what an end gets before it is told waits for its question, and no longer.
  expect((await stream.stop()).repeated).toBe(0);
  const audit = await onServer('audit', '--json');
  expect(audit).toContain('put_back');
  expect(audit).toContain('generations_held');
});
