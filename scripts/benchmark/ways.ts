/**
 * `scripts/bench plain`, `scripts/bench link` and `scripts/bench link-ip`: TCP between a member and a machine behind a plain port, or a member of
 * another subnet, beside TCP between two members, in one laboratory and in turns.
 *
 *   scripts/bench plain|link|link-ip [--rounds N] [--seconds N] [--json]
 *
 * `plain`: the machine is a network namespace behind a bridge of the gateway, as in config/lab/plain-machine.yaml.
 * `link`: config/lab/two-subnets.yaml, so the way leads through two link gateways, a router and a NAT box. **All of it,
 * six data planes for `link`, shares the processors of this machine**: what a link costs here is the work of all of them.
 * `link-ip`: config/lab/bump-in-the-wire.yaml, two routers and six data planes; it has no target.
 */
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { Lab } from '../laboratory/lab.js';
import { waitFor } from '../laboratory/processes.js';
import { readTopology } from '../laboratory/topology.js';
import { median } from './statistics.js';

const PORT = 7_801;
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
  end: z.object({ sum_received: z.object({ bits_per_second: z.number() }) }),
});

/** Bits per second of one TCP stream. */
async function tcp(
  lab: Lab,
  [from, address]: readonly [string, string],
  seconds: number,
): Promise<number> {
  const argv = ['iperf3', '-J', '-c', address, '-p', `${PORT}`, '-t', `${seconds}`];
  const { stdout } = await lab.exec(from, argv, { timeoutMs: (seconds + 30) * 1_000 });
  return resultSchema.parse(JSON.parse(stdout)).end.sum_received.bits_per_second;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '7' },
      seconds: { type: 'string', default: '3' },
      json: { type: 'boolean', default: false },
    },
  });
  const rounds = z.coerce.number().int().min(1).parse(values.rounds);
  const seconds = z.coerce.number().int().min(1).parse(values.seconds);
  const plan = PLANS[positionals[0] ?? ''];
  if (plan === undefined) throw new Error(`name one of ${Object.keys(PLANS).join(', ')}`);
  const hosts = new Set(Object.values(plan.ways).flat());
  const ways = Object.entries(plan.ways).map(
    ([name, [from, to]]) => [name, [from, plan.addresses[to] ?? to]] as const,
  );
  const rates = new Map<string, number[]>(ways.map(([name]) => [name, []]));
  const lab = await Lab.create(readTopology(plan.topology), { name: `bench-${process.pid}` });
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
      const [from, address] = way;
      const argv = ['ping', '-n', '-c', '1', '-W', '1', address];
      await waitFor(async () => (await lab.exec(from, argv, { check: false })).code === 0, {
        what: `${from} to reach ${address}`,
        timeoutMs: 30_000,
      });
      await tcp(lab, way, 1);
    }
    for (let round = 0; round < rounds; round += 1) {
      for (const [name, way] of ways) rates.get(name)?.push(await tcp(lab, way, seconds));
    }
  } finally {
    await lab.destroy();
  }
  const members = median(rates.get(MEMBERS) ?? []);
  const rows = [...rates].map(([way, all]) => ({
    way,
    gbit: median(all) / 1e9,
    ratio: median(all) / members,
    values: all.map((one) => one / 1e9),
  }));
  if (values.json) {
    process.stdout.write(
      `${JSON.stringify({ rounds, seconds, target: plan.target, rows }, null, 2)}\n`,
    );
    return;
  }
  for (const { way, gbit, ratio, values: all } of rows) {
    const span = `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`;
    process.stdout.write(
      `${way.padEnd(20)} ${gbit.toFixed(2)} Gbit/s (${span})  ${ratio.toFixed(2)} x member to member\n`,
    );
  }
  const target = plan.target === undefined ? '' : `target: at least ${plan.target} x; `;
  process.stdout.write(`${target}${rounds} rounds of ${seconds} s, medians\n`);
}

await main();
