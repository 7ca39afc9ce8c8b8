/** A key server in a process of its own, for benchmarks, and what it costs. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Starts the key server of a folder, as it is built (scripts/bench sees to that); settles when it listens. */
export async function startServer(dir: string): Promise<ChildProcess> {
  const program = fileURLToPath(new URL('../pairwire.mjs', import.meta.url));
  const child = spawn(process.execPath, [program, 'keyserver', '--dir', dir], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let text = '';
  let up = false;
  await new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (chunk: Buffer) => {
      if (up) return;
      text += chunk.toString();
      up = text.includes('key server listens');
      if (up) resolve();
    });
    child.once('exit', () => reject(new Error(text)));
  });
  return child;
}

/** Memory that it has now, MiB. */
export function residentMiB(child: ChildProcess): number {
  const status = readFileSync(`/proc/${child.pid}/status`, 'latin1');
  return Math.round(Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1_024);
}

/** Processor time so far, ms; the kernel counts in hundredths of a second. */
export function cpuMs(child: ChildProcess): number {
  const fields = readFileSync(`/proc/${child.pid}/stat`, 'latin1').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
