/**
 * What a laboratory keeps on disk, /run/pairwire-lab/NAME/: `state.json` names its namespaces and
 * processes, so that `down` works from another process and after a crash; `logs/` and `hosts/`
 * belong to the programs in it.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { topologySchema } from './topology.js';

export const STATE_ROOT = '/run/pairwire-lab';

const processSchema = z.strictObject({
  pid: z.int().positive(),
  start: z.string(),
  host: z.string(),
  label: z.string(),
  log: z.string(),
});
export type ProcessEntry = z.infer<typeof processSchema>;

const stateSchema = z.strictObject({
  name: z.string(),
  /** The process that made it; tests leave none behind. */
  creator: z.int(),
  namespaces: z.array(z.string()),
  topology: topologySchema,
  processes: z.array(processSchema),
});
export type LabState = z.infer<typeof stateSchema>;

export function stateDir(name: string): string {
  return join(STATE_ROOT, name);
}

/** @throws Error if there is no laboratory of that name */
export function readState(name: string): LabState {
  const file = join(stateDir(name), 'state.json');
  if (!existsSync(file)) {
    const names = listLabs();
    throw new Error(
      `there is no laboratory ${name}; ${names.length === 0 ? 'none is up' : `up are ${names.join(', ')}`}`,
    );
  }
  return stateSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
}

export function writeState(state: LabState): void {
  const dir = stateDir(state.name);
  mkdirSync(join(dir, 'logs'), { recursive: true, mode: 0o755 });
  const file = join(dir, 'state.json');
  writeFileSync(`${file}.new`, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

export function removeState(name: string): void {
  rmSync(stateDir(name), { recursive: true, force: true });
}

export function listLabs(): string[] {
  if (!existsSync(STATE_ROOT)) return [];
  return readdirSync(STATE_ROOT).filter((name) => existsSync(join(stateDir(name), 'state.json')));
}
