#!/usr/bin/env node
// The program `pairwire`: runs the compiled TypeScript and says clearly if there is none.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  process.stderr.write(
    `error: pairwire needs Node.js 20.19 or newer; this is ${process.versions.node}\n`,
  );
  process.exit(1);
}
const built = new URL('../dist/scripts/pairwire.js', import.meta.url);
if (!existsSync(built)) {
  process.stderr.write(
    `error: pairwire is not built (${fileURLToPath(built)} is missing)\nhint: scripts/setup, or: npm ci && npm run build\n`,
  );
  process.exit(1);
}
// What runs for long compiles all of its code at the start, in a tenth of a second: else each function's first call waits for its
// compiler, and so does a host's first frame to another one (docs/performance.md).
if (['up', 'keyserver'].includes(process.argv[2] ?? '')) setFlagsFromString('--no-lazy');
await import(built.href);
