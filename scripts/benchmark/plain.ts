/**
 * `scripts/bench plain`: TCP between a member and a machine behind a plain port, beside TCP between two
 * members, in one laboratory and in turns.
 *
 *   scripts/bench plain [--rounds N] [--seconds N] [--json]
 *
 * The machine is a network namespace behind a bridge of the gateway, as in config/lab/plain-machine.yaml.
 */
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { Lab } from '../laboratory/lab.js';
import { waitFor } from '../laboratory/processes.js';
import { readTopology } from '../laboratory/topology.js';
import { median } from './statistics.js';

const TOPOLOGY = 'config/lab/plain-machine.yaml';
const ADDRESS = { alice: '198.51.100.11', bob: '198.51.100.12', printer: '198.51.100.31' } as const;
type Host = keyof typeof ADDRESS;
const PORT = 7_801;
/** What a member and a machine should reach at least, against two members. */
const TARGET = 0.8;

const WAYS = {
  'member to member': ['alice', 'bob'],
  'member to machine': ['alice', 'printer'],
  'machine to member': ['printer', 'alice'],
} as const satisfies Record<string, readonly [Host, Host]>;
type Way = keyof typeof WAYS;
const NAMES = Object.keys(WAYS) as Way[];

const resultSchema = z.object({
  end: z.object({ sum_received: z.object({ bits_per_second: z.number() }) }),
});

/** Bits per second of one TCP stream. */
async function tcp(lab: Lab, [from, to]: readonly [Host, Host], seconds: number): Promise<number> {
  const argv = ['iperf3', '-J', '-c', ADDRESS[to], '-p', `${PORT}`, '-t', `${seconds}`];
  const { stdout } = await lab.exec(from, argv, { timeoutMs: (seconds + 30) * 1_000 });
  return resultSchema.parse(JSON.parse(stdout)).end.sum_received.bits_per_second;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '7' },
      seconds: { type: 'string', default: '3' },
      json: { type: 'boolean', default: false },
    },
  });
  const rounds = z.coerce.number().int().min(1).parse(values.rounds);
  const seconds = z.coerce.number().int().min(1).parse(values.seconds);
  const rates: Record<Way, number[]> = {
    'member to member': [],
    'member to machine': [],
    'machine to member': [],
  };
  const lab = await Lab.create(readTopology(TOPOLOGY), { name: `bench-${process.pid}` });
  try {
    for (const host of ['alice', 'bob', 'printer'] as const) {
      lab.spawn(host, ['iperf3', '-s', '-p', `${PORT}`]);
      await waitFor(
        async () => (await lab.exec(host, ['ss', '-Hltn', `sport = :${PORT}`])).stdout !== '',
        { what: `iperf3 at ${host}` },
      );
    }
    // A plain port listens before it forwards; and the first run finds the path and fills the tables.
    for (const name of NAMES) {
      const [from, to] = WAYS[name];
      const argv = ['ping', '-n', '-c', '1', '-W', '1', ADDRESS[to]];
      await waitFor(async () => (await lab.exec(from, argv, { check: false })).code === 0, {
        what: `${from} to reach ${to}`,
        timeoutMs: 20_000,
      });
      await tcp(lab, WAYS[name], 1);
    }
    for (let round = 0; round < rounds; round += 1) {
      for (const name of NAMES) rates[name].push(await tcp(lab, WAYS[name], seconds));
    }
  } finally {
    await lab.destroy();
  }
  const members = median(rates['member to member']);
  const rows = NAMES.map((name) => ({
    way: name,
    gbit: median(rates[name]) / 1e9,
    ratio: median(rates[name]) / members,
    values: rates[name].map((one) => one / 1e9),
  }));
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ rounds, seconds, target: TARGET, rows }, null, 2)}\n`);
    return;
  }
  for (const { way, gbit, ratio, values: all } of rows) {
    const span = `${Math.min(...all).toFixed(2)} to ${Math.max(...all).toFixed(2)}`;
    process.stdout.write(
      `${way.padEnd(20)} ${gbit.toFixed(2)} Gbit/s (${span})  ${ratio.toFixed(2)} x member to member\n`,
    );
  }
  process.stdout.write(`target: at least ${TARGET} x; ${rounds} rounds of ${seconds} s, medians\n`);
}

await main();
