/**
 * Writes the newest run (docs/bench/latest.json) into the README; `--check` only tells whether it stands there.
 *
 *   npx tsx scripts/benchmark/readme.ts [--check]
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { withBlock } from './readme-block.js';
import { resultSchema } from './result.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const README = join(ROOT, 'README.md');
const LATEST = join(ROOT, 'docs/bench/latest.json');

/** The README as it is, and as the newest run wants it. */
export function readmes(): { readonly now: string; readonly wanted: string } {
  const now = readFileSync(README, 'utf8');
  const result = existsSync(LATEST)
    ? resultSchema.parse(JSON.parse(readFileSync(LATEST, 'utf8')))
    : undefined;
  return { now, wanted: withBlock(now, result) };
}

/** Rewrites the block. */
export function updateReadme(): void {
  const { now, wanted } = readmes();
  if (now !== wanted) writeFileSync(README, wanted);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (!process.argv.includes('--check')) {
    updateReadme();
  } else if (readmes().now !== readmes().wanted) {
    process.stderr.write(
      'README.md does not show docs/bench/latest.json: run scripts/benchmark/readme.ts\n',
    );
    process.exitCode = 1;
  }
}
