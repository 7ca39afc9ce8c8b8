/** A minute of scripts/soak: mixed traffic and restarts of every process, and every verdict must be good. */
import { expect, test } from 'vitest';
import { runEndurance, verdictTable } from '../../scripts/endurance/run.js';
import { nativePreset } from './helpers/use-lab.js';

test('memory, descriptors and counters stay level over a minute of traffic and restarts', {
  timeout: 300_000,
}, async () => {
  const log: string[] = [];
  const result = await runEndurance({
    minutes: 1,
    log: (line) => log.push(line),
    env: nativePreset(),
  });
  console.log(verdictTable(result.verdicts));
  expect(
    result.verdicts.filter(({ ok }) => !ok),
    log.join('\n'),
  ).toEqual([]);
});
