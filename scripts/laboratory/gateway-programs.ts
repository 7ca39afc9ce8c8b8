/** The processes of a gateway besides its control plane, found by the name of their program, and how they are killed. */
import { readFileSync } from 'node:fs';
import type { Lab } from './lab.js';
import { pidsIn } from './network.js';
import { isAlive, type ProcessId, signal, startTimeOf, waitFor } from './processes.js';

export type GatewayProgram = 'pairwire-dataplane' | 'pairwire-devices';
/** Linux keeps 15 characters of a program's name. */
const COMM_LENGTH = 15;

/** The processes of a host that run this program. */
export async function programsOf(
  lab: Lab,
  host: string,
  program: GatewayProgram,
): Promise<ProcessId[]> {
  const found: ProcessId[] = [];
  for (const pid of await pidsIn(lab.namespace(host))) {
    const start = startTimeOf(pid);
    if (start !== undefined && nameOf(pid) === program.slice(0, COMM_LENGTH)) {
      found.push({ pid, start });
    }
  }
  return found;
}

function nameOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return ''; // it has ended meanwhile
  }
}

/** kill -9, until it is gone. @throws Error if it does not run */
export async function killProgram(lab: Lab, host: string, program: GatewayProgram): Promise<void> {
  const running = await programsOf(lab, host, program);
  if (running.length === 0) throw new Error(`${program} does not run on ${host}`);
  for (const one of running) signal(one, 'SIGKILL');
  await waitFor(() => !running.some(isAlive), {
    what: `${program} on ${host} to be gone`,
    everyMs: 2,
  });
}

export function killDataPlane(lab: Lab, host: string): Promise<void> {
  return killProgram(lab, host, 'pairwire-dataplane');
}
