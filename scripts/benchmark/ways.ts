/**
 * `scripts/bench plain`, `scripts/bench link` and `scripts/bench link-ip`: TCP between a member and a machine behind a plain port, or a member of
 * another subnet, beside TCP between two members, in one laboratory and in turns.
 *
 *   scripts/bench plain|link|link-ip [--rounds N] [--seconds N] [--cores N] [--json]
 *
 * `plain`: the machine is a network namespace behind a bridge of the gateway, as in config/lab/plain-machine.yaml.
 * `link`: config/lab/two-subnets.yaml, so the way leads through two link gateways, a router and a NAT box. **All of it,
 * six data planes for `link`, shares the processors of this machine**: what a link costs here is the work of all of them.
 * `link-ip`: config/lab/bump-in-the-wire.yaml, two routers and six data planes; it has no target.
 *
 * What each host would have to do on a machine of its own is measured beside it: processor time of all its processes for a
 * gigabyte, what the kernel does in their name included and what it does for nobody left out. The host that needs most bounds such a way.
 * `--cores 0.4` shows it: each host then has so much of a core and no more, so that those on the way don't take it from each other.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { Lab } from '../laboratory/lab.js';
import { pidsIn } from '../laboratory/network.js';
import { run, waitFor } from '../laboratory/processes.js';
import { readTopology } from '../laboratory/topology.js';
import { ProcessorShare } from './processor-share.js';
import { median } from './statistics.js';

const PORT = 7_801;
/** Linux counts in these for programs, on every machine. */
const TICKS_PER_SECOND = 100;
const MEMBERS = 'member to member';

interface Plan {
  readonly topology: string;
  /** What the others should reach at least, against two members. */
  readonly target?: number;
  /** Where hosts are, inside. */
  readonly addresses: Readonly<Record<string, string>>;
  /** By name: from whom to whom. */
  readonly ways: Readonly<Record<string, readonly [string, string]>>;
}

const PLANS: Readonly<Record<string, Plan>> = {
  plain: {
    topology: 'config/lab/plain-machine.yaml',
    target: 0.8,
    addresses: { alice: '198.51.100.11', bob: '198.51.100.12', printer: '198.51.100.31' },
    ways: {
      [MEMBERS]: ['alice', 'bob'],
      'member to machine': ['alice', 'printer'],
      'machine to member': ['printer', 'alice'],
    },
  },
  link: {
    topology: 'config/lab/two-subnets.yaml',
    target: 0.5,
    addresses: { alice: '198.51.100.11', bob: '198.51.100.12', carol: '203.0.113.13' },
    ways: {
      [MEMBERS]: ['alice', 'bob'],
      'to another subnet': ['alice', 'carol'],
      'from another subnet': ['carol', 'alice'],
    },
  },
  'link-ip': {
    topology: 'config/lab/bump-in-the-wire.yaml',
    addresses: { alice: '198.51.100.2', anna: '198.51.100.3', bob: '203.0.113.2' },
    ways: {
      [MEMBERS]: ['alice', 'anna'],
      'to another subnet': ['alice', 'bob'],
      'from another subnet': ['bob', 'alice'],
    },
  },
};

const resultSchema = z.object({
  end: z.object({
    sum_received: z.object({ bits_per_second: z.number(), bytes: z.number() }),
    cpu_utilization_percent: z.object({ host_total: z.number(), remote_total: z.number() }),
  }),
});

/** One TCP stream: bits per second, and processor seconds of each host for a gigabyte. */
interface Measured {
  readonly rate: number;
  readonly work: ReadonlyMap<string, number>;
}

async function tcp(
  lab: Lab,
  [from, to, address]: readonly [string, string, string],
  seconds: number,
  share?: ProcessorShare,
): Promise<Measured> {
  const client = ['iperf3', '-J', '-c', address, '-p', `${PORT}`, '-t', `${seconds}`];
  // Into the group first: behind `ip netns exec` there is another /sys.
  const inside = ['ip', 'netns', 'exec', lab.namespace(from), ...client];
  const argv = share === undefined ? inside : share.command(inside);
  const before = await processorSeconds(lab);
  const { stdout } = await run(argv, { timeoutMs: (seconds + 30) * 1_000 });
  const after = await processorSeconds(lab);
  const { sum_received: got, cpu_utilization_percent: own } = resultSchema.parse(
    JSON.parse(stdout),
  ).end;
  const gigabytes = got.bytes / 1e9;
  const work = new Map<string, number>();
  for (const [host, total] of after) {
    let spent = total - (before.get(host) ?? 0);
    if (host === from) spent += (own.host_total / 100) * seconds;
    if (host === to) spent += (own.remote_total / 100) * seconds;
    work.set(host, spent / gigabytes);
  }
  return { rate: got.bits_per_second, work };
}

/** Of all processes of each host but iperf3, which says it by itself and may have ended. */
async function processorSeconds(lab: Lab): Promise<Map<string, number>> {
  const all = new Map<string, number>();
  for (const host of Object.keys(lab.topology.hosts)) {
    let ticks = 0;
    for (const pid of await pidsIn(lab.namespace(host))) {
      try {
        const [, name = '', rest = ''] =
          /^\d+ \((.*)\) (.*)$/s.exec(readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
        const fields = rest.split(' ');
        if (name !== 'iperf3') ticks += Number(fields[11]) + Number(fields[12]);
      } catch {
        // It has ended meanwhile.
      }
    }
    all.set(host, ticks / TICKS_PER_SECOND);
  }
  return all;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '7' },
      seconds: { type: 'string', default: '3' },
      cores: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const rounds = z.coerce.number().int().min(1).parse(values.rounds);
  const seconds = z.coerce.number().int().min(1).parse(values.seconds);
  const cores = z.coerce.number().min(0.05).optional().parse(values.cores);
  const plan = PLANS[positionals[0] ?? ''];
  if (plan === undefined) throw new Error(`name one of ${Object.keys(PLANS).join(', ')}`);
  const hosts = new Set(Object.values(plan.ways).flat());
  const ways = Object.entries(plan.ways).map(
    ([name, [from, to]]) => [name, [from, to, plan.addresses[to] ?? to]] as const,
  );
  const runs = new Map<string, Measured[]>(ways.map(([name]) => [name, []]));
  const lab = await Lab.create(readTopology(plan.topology), { name: `bench-${process.pid}` });
  const shares = new Map<string, ProcessorShare>();
  try {
    for (const host of hosts) {
      lab.spawn(host, ['iperf3', '-s', '-p', `${PORT}`]);
      await waitFor(
        async () => (await lab.exec(host, ['ss', '-Hltn', `sport = :${PORT}`])).stdout !== '',
        { what: `iperf3 at ${host}` },
      );
    }
    // A plain port listens before it forwards; and the first run finds the path and fills the tables.
    for (const [, way] of ways) {
      const [from, , address] = way;
      const argv = ['ping', '-n', '-c', '1', '-W', '1', address];
      await waitFor(async () => (await lab.exec(from, argv, { check: false })).code === 0, {
        what: `${from} to reach ${address}`,
        timeoutMs: 30_000,
      });
      await tcp(lab, way, 1);
    }
    if (cores !== undefined) {
      for (const host of Object.keys(lab.topology.hosts)) {
        const share = new ProcessorShare(`pairwire-bench-${process.pid}-${host}`, cores);
        shares.set(host, share);
        share.take(await pidsIn(lab.namespace(host)));
      }
    }
    for (let round = 0; round < rounds; round += 1) {
      for (const [name, way] of ways) {
        runs.get(name)?.push(await tcp(lab, way, seconds, shares.get(way[0])));
      }
    }
  } finally {
    await lab.destroy();
    for (const share of shares.values()) share.end();
  }
  const ofRates = (all: readonly Measured[]): number => median(all.map(({ rate }) => rate));
  const members = ofRates(runs.get(MEMBERS) ?? []);
  const most = (all: readonly Measured[]): number => Math.max(...Object.values(workOf(all)));
  const rows = [...runs].map(([way, all]) => ({
    way,
    gbit: ofRates(all) / 1e9,
    ratio: ofRates(all) / members,
    values: all.map(({ rate }) => rate / 1e9),
    secondsPerGigabyte: workOf(all),
    bound: most(runs.get(MEMBERS) ?? []) / most(all),
  }));
  if (values.json) {
    process.stdout.write(
      `${JSON.stringify({ rounds, seconds, cores, target: plan.target, rows }, null, 2)}\n`,
    );
    return;
  }
  for (const { way, gbit, ratio, values: all, secondsPerGigabyte, bound } of rows) {
    const span = `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`;
    process.stdout.write(
      `${way.padEnd(20)} ${gbit.toFixed(2)} Gbit/s (${span})  ${ratio.toFixed(2)} x member to member\n`,
    );
    const work = Object.entries(secondsPerGigabyte).map(
      ([host, spent]) => `${host} ${spent.toFixed(2)}`,
    );
    process.stdout.write(
      `${''.padEnd(20)} s/GB: ${work.join(', ')}; on machines of their own ${bound.toFixed(2)} x\n`,
    );
  }
  const target = plan.target === undefined ? '' : `target: at least ${plan.target} x; `;
  const each = cores === undefined ? '' : `, each host ${cores} of a core`;
  process.stdout.write(`${target}${rounds} rounds of ${seconds} s, medians${each}\n`);
}

/** By host, those that did something. */
function workOf(all: readonly Measured[]): Record<string, number> {
  const hosts = [...(all[0]?.work.keys() ?? [])];
  const work = hosts.map(
    (host) => [host, median(all.map((one) => one.work.get(host) ?? 0))] as const,
  );
  return Object.fromEntries(work.filter(([, spent]) => spent >= 0.01));
}

await main();
