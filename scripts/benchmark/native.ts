/**
 * `scripts/bench native`: the data plane's parts by themselves, in ns and cycles of the time stamp counter.
 *
 *   scripts/bench native [--filter TEXT] [--ms N] [--json FILE] [--compare FILE]
 *
 * --filter: only names with TEXT in them; --ms: length of each of the 5 repetitions. --compare puts an
 * earlier --json beside the figures (docs/bench/native.json is one), so that a regression is seen
 * where it is made. Compare runs on one machine only.
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import { z } from 'zod';
import { projectRoot } from '../../gateway/native-programs.js';

/** Differences below it are noise on a machine that does other things as well. */
const NOISE = 0.1;

const measuredSchema = z
  .object({
    bench: z.string(),
    ns: z.number(),
    ns_min: z.number(),
    tsc_cycles: z.number().optional(),
    iterations: z.number(),
  })
  .catchall(z.union([z.string(), z.number()]));
type Measured = z.infer<typeof measuredSchema>;

const resultSchema = z.object({
  when: z.string(),
  machine: z.object({ cpu: z.string(), cores: z.number() }),
  results: z.array(measuredSchema),
});

const { values } = parseArgs({
  options: {
    filter: { type: 'string' },
    ms: { type: 'string' },
    json: { type: 'string' },
    compare: { type: 'string' },
  },
});

/** A benchmark with its labels, as one text: what makes two measurements the same. */
function nameOf(measured: Measured): string {
  const { bench, ns: _ns, ns_min: _min, tsc_cycles: _cycles, iterations: _n, ...labels } = measured;
  const text = Object.values(labels).join(' ');
  return text === '' ? bench : `${bench} ${text}`;
}

/** Runs the program and takes its lines as they come. */
async function measure(): Promise<Measured[]> {
  const program = join(projectRoot(), 'gateway/native/build/release/pairwire-native-bench');
  const args = [
    ...(values.filter === undefined ? [] : ['--filter', values.filter]),
    ...(values.ms === undefined ? [] : ['--ms', values.ms]),
  ];
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const results: Measured[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const measured = measuredSchema.parse(JSON.parse(line));
    process.stderr.write(`${nameOf(measured)}\n`);
    results.push(measured);
  }
  const code = await ended;
  if (code !== 0) throw new Error(`${program} ended with ${code}`);
  return results;
}

function print(results: readonly Measured[], before: readonly Measured[] | undefined): void {
  const earlier = new Map((before ?? []).map((one) => [nameOf(one), one]));
  const columns = before === undefined ? [] : ['before', 'change'];
  const table = new Table({
    head: ['what', 'ns', 'cycles', ...columns],
    colAligns: ['left', 'right', 'right', ...columns.map(() => 'right' as const)],
    style: { head: [], border: [] },
  });
  for (const one of results) {
    const old = earlier.get(nameOf(one));
    const compared =
      before === undefined ? [] : [old === undefined ? '-' : old.ns.toFixed(1), change(one, old)];
    table.push([
      nameOf(one),
      one.ns.toFixed(1),
      one.tsc_cycles === undefined ? '-' : one.tsc_cycles.toFixed(0),
      ...compared,
    ]);
  }
  process.stdout.write(`${table.toString()}\n`);
}

function change(now: Measured, before: Measured | undefined): string {
  if (before === undefined) return 'new';
  const part = now.ns / before.ns - 1;
  const text = `${part > 0 ? '+' : ''}${(part * 100).toFixed(0)} %`;
  return part > NOISE ? `${text} slower` : part < -NOISE ? `${text} faster` : text;
}

const before =
  values.compare === undefined
    ? undefined
    : resultSchema.parse(JSON.parse(readFileSync(values.compare, 'utf8')));
const machine = { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length };
if (before !== undefined && before.machine.cpu !== machine.cpu) {
  process.stderr.write(`warning: measured before on another machine (${before.machine.cpu})\n`);
}
const results = await measure();
print(results, before?.results);
if (values.json !== undefined) {
  mkdirSync(dirname(values.json), { recursive: true });
  const result = { when: new Date().toISOString(), machine, results };
  writeFileSync(values.json, `${JSON.stringify(result, null, 1)}\n`);
}
