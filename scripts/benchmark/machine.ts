/** What the kernel says about processor time and memory, and what machine this is. */
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import type { Result } from './result.js';

/** Clock ticks a second of /proc; the same on every Linux we know. */
const TICKS = 100;

/** Seconds that all processors were busy since the start: user, system, interrupts; not idle, not stolen. */
export function machineBusySeconds(): number {
  const line = readFileSync('/proc/stat', 'utf8').split('\n')[0] ?? '';
  const [user, nice, system, , , irq, softirq] = line.trim().split(/\s+/).slice(1).map(Number);
  return sum([user, nice, system, irq, softirq]) / TICKS;
}

/** Seconds that processes used until now; those that are gone count nothing. */
export function processSeconds(pids: readonly number[]): number {
  return sum(
    pids.map((pid) => {
      const text = read(`/proc/${pid}/stat`);
      // The name in brackets may contain anything; fields are counted behind it.
      const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
      return sum([Number(fields[11]), Number(fields[12])]) / TICKS;
    }),
  );
}

/** Resident memory of processes, MB. */
export function memoryMB(pids: readonly number[]): number {
  return sum(
    pids.map((pid) => {
      const kB = Number(/VmRSS:\s+(\d+) kB/.exec(read(`/proc/${pid}/status`))?.[1] ?? 0);
      return (kB * 1024) / 1e6;
    }),
  );
}

/** What the result says about where it was measured. */
export function describeMachine(): Result['machine'] {
  const system = /^PRETTY_NAME="?([^"\n]*)/m.exec(read('/etc/os-release'))?.[1];
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memoryGB: Math.round(totalmem() / 1e9),
    kernel: release(),
    system: system ?? 'unknown',
    node: process.version,
  };
}

function sum(values: readonly (number | undefined)[]): number {
  return values.reduce<number>(
    (total, value) => total + (Number.isNaN(value) ? 0 : (value ?? 0)),
    0,
  );
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
