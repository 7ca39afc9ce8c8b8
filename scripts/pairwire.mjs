#!/usr/bin/env node
// The program `pairwire`: runs the compiled TypeScript and says clearly if there is none.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

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
await import(built.href);
