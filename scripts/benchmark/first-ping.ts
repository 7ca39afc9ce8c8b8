/**
 * `scripts/bench first-ping`: how much longer the first ping between two members takes than the second, when all three
 * processes have just been started and nobody holds a key or a neighbour entry. Each time in a new subnet.
 *
 *   scripts/bench first-ping [--rounds N] [--json]
 */
import { parseArgs } from 'node:util';
import { Bed, sweep } from './namespaces.js';
import { firstPings } from './pairwire.js';
import { figureOf } from './statistics.js';

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '10' },
    json: { type: 'boolean', default: false },
  },
});
const interruption = new AbortController();
process.once('SIGINT', () => interruption.abort(new Error('interrupted')));
await sweep();
const bed = await Bed.create(0, interruption.signal);
try {
  const figure = figureOf(await firstPings(bed, Number(values.rounds)));
  const { median, min, max } = figure;
  process.stdout.write(
    values.json
      ? `${JSON.stringify(figure, undefined, 2)}\n`
      : `first ping beyond the second, ms: median ${median.toFixed(1)} (${min.toFixed(1)} to ${max.toFixed(1)}, ${figure.values.length} runs); the target is 5\n`,
  );
} finally {
  await bed.close();
}
