/**
 * `scripts/bench first-ping`: how much longer the first ping between two members takes than the second, when nobody holds their key or a
 * neighbour entry and the key server has to make the key. Each time in a new subnet of three members, and twice in it:
 *
 *   just started        all processes have only just begun, and do for the first time what the ping needs
 *   running             two members each of which has met the third, but not the other
 *
 *   scripts/bench first-ping [--rounds N] [--json]
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { Lab } from '../laboratory/lab.js';
import { readTopology } from '../laboratory/topology.js';
import { figureOf } from './statistics.js';
import { firstBeyondSecondMs, twoPings } from './two-pings.js';

const TOPOLOGY = 'config/lab/three-hosts.yaml';
const INSIDE = {
  alice: '198.51.100.11',
  bob: '198.51.100.12',
  carol: '198.51.100.13',
} as const;
type Host = keyof typeof INSIDE;
const TARGET_MS = 5;
/** Until what goes on after a start, after somebody new was met, and after a question for the status, is done. */
const QUIET_MS = 1_000;

/** @throws Error where one was lost, or the key was there already */
async function measure(lab: Lab, from: Host, to: Host): Promise<number> {
  const known = (await lab.port(from)).peers.find(({ id }) => id === to);
  if (typeof known?.pwId === 'number') throw new Error(`${from} has the key of ${to} already`);
  await sleep(QUIET_MS);
  return firstBeyondSecondMs((await lab.exec(from, twoPings(INSIDE[to]))).stdout);
}

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '10' },
    json: { type: 'boolean', default: false },
  },
});
const rounds = z.coerce.number().int().min(1).parse(values.rounds);
const started: number[] = [];
const running: number[] = [];
for (let round = 0; round < rounds; round += 1) {
  const lab = await Lab.create(readTopology(TOPOLOGY), { name: `bench-${process.pid}` });
  try {
    started.push(await measure(lab, 'alice', 'bob'));
    await measure(lab, 'alice', 'carol');
    running.push(await measure(lab, 'bob', 'carol'));
  } finally {
    await lab.destroy();
  }
}
const figures = { started: figureOf(started), running: figureOf(running) };
if (values.json) {
  process.stdout.write(`${JSON.stringify({ target: TARGET_MS, ...figures }, undefined, 2)}\n`);
} else {
  const text = ({ median, min, max }: typeof figures.started): string =>
    `median ${median.toFixed(1)} (${min.toFixed(1)} to ${max.toFixed(1)})`;
  process.stdout.write(
    `first ping beyond the second, ms: ${text(figures.started)} where all have just started, ${text(figures.running)} where they run; ${rounds} rounds, the target is ${TARGET_MS}\n`,
  );
}
