/** The endurance run's command line; run it by scripts/soak. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { Command } from 'commander';
import { runEndurance, verdictTable } from './endurance/run.js';

const program = new Command('soak')
  .description(
    'Mixed traffic and restarts of every process for a time; memory, descriptors and counters must stay level',
  )
  .option('--minutes <n>', 'how long', '60')
  .option('--out <file>', 'samples and verdicts as JSON', '.cache/soak/soak.json')
  .action(async (options: { minutes: string; out: string }) => {
    const minutes = Number(options.minutes);
    if (!(minutes >= 1 && minutes <= 10_080)) throw new Error('--minutes is 1 to 10080');
    const result = await runEndurance({ minutes, log: (line) => console.log(`soak: ${line}`) });
    mkdirSync(dirname(options.out), { recursive: true });
    writeFileSync(options.out, `${JSON.stringify(result, null, 1)}\n`);
    console.log(`${verdictTable(result.verdicts)}\nsoak: ${options.out}`);
    if (!result.ok) process.exitCode = 1;
  });

try {
  await program.parseAsync();
} catch (error) {
  console.error(`soak: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
