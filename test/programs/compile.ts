/**
 * Global set-up of vitest: the sources as JavaScript in a folder of their own, for the processes and threads that
 * tests start. One that translates its own sources takes a second and a half of processor time more at each start,
 * and so does its KMS. Translated anew for each run, which takes a second, so they are never older than the sources.
 */
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { COMPILED } from './key-server.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const CACHE = join(ROOT, '.cache');
const PREFIX = 'test-programs-';
/** A run that was killed left its folder behind; none takes so long, ms. */
const ABANDONED_MS = 24 * 3_600_000;
/** Folders whose files a process may need. */
const SOURCES = ['src', 'keyserver', 'test/programs'];

export default async function setup(): Promise<() => void> {
  mkdirSync(CACHE, { recursive: true });
  // Below the checkout: that is where packages are looked for.
  removeAbandoned();
  const folder = mkdtempSync(join(CACHE, PREFIX));
  // A KMS runs as a user of its own, who has to get in.
  chmodSync(folder, 0o755);
  await build({
    absWorkingDir: ROOT,
    entryPoints: SOURCES.flatMap((source) => sourceFiles(source)),
    outdir: folder,
    outbase: '.',
    platform: 'node',
    format: 'esm',
    target: 'node20',
    sourcemap: 'inline',
  });
  process.env[COMPILED] = folder;
  return () => rmSync(folder, { recursive: true, force: true });
}

function sourceFiles(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(folder, name));
}

function removeAbandoned(): void {
  for (const name of readdirSync(CACHE).filter((one) => one.startsWith(PREFIX))) {
    const folder = join(CACHE, name);
    const { mtimeMs } = statSync(folder, { throwIfNoEntry: false }) ?? { mtimeMs: Date.now() };
    if (Date.now() - mtimeMs > ABANDONED_MS) rmSync(folder, { recursive: true, force: true });
  }
}
