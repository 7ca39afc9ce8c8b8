/** What is measured of each process of an endurance run every few seconds. */
import { readdirSync, readFileSync } from 'node:fs';
import { programsOf } from '../laboratory/gateway-programs.js';
import type { Lab } from '../laboratory/lab.js';
import type { ProcessId } from '../laboratory/processes.js';

export interface ProcessSample {
  /** Which process of which host, over all its lives: `alice control`, `server keyserver`. */
  readonly role: string;
  /** Which life: pid and start time. */
  readonly life: string;
  readonly rssBytes: number;
  readonly descriptors: number;
  readonly threads: number;
}

export interface GatewaySample {
  readonly host: string;
  readonly drops: Readonly<Record<string, number>>;
  readonly eventsLost: number;
  readonly eventsRefused: number;
  readonly commandsFailed: number;
  readonly peers: number;
}

export interface Sample {
  /** Seconds since the begin of the run. */
  readonly at: number;
  readonly processes: readonly ProcessSample[];
  readonly gateways: readonly GatewaySample[];
}

/** One sample of everything that runs now. A gateway that is just being restarted is left out. */
export async function takeSample(
  lab: Lab,
  hosts: readonly string[],
  server: string,
  at: number,
): Promise<Sample> {
  const processes: ProcessSample[] = [];
  const add = (role: string, process: ProcessId | undefined): void => {
    const sample = process === undefined ? undefined : processSample(role, process);
    if (sample !== undefined) processes.push(sample);
  };
  add(`${server} keyserver`, lab.processOf(server, 'keyserver'));
  for (const host of hosts) {
    add(`${host} control`, lab.processOf(host, 'up'));
    for (const program of ['pairwire-dataplane', 'pairwire-devices'] as const) {
      const [running] = await programsOf(lab, host, program);
      add(`${host} ${program.slice('pairwire-'.length)}`, running);
    }
  }
  const gateways = await Promise.all(
    hosts.map((host) => gatewaySample(lab, host).catch(() => undefined)),
  );
  return { at, processes, gateways: gateways.filter((one) => one !== undefined) };
}

function processSample(role: string, { pid, start }: ProcessId): ProcessSample | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const field = (name: string) =>
      Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(status)?.[1]);
    return {
      role,
      life: `${pid} ${start}`,
      rssBytes: field('VmRSS') * 1_024,
      descriptors: readdirSync(`/proc/${pid}/fd`).length,
      threads: field('Threads'),
    };
  } catch {
    return undefined; // it has just ended
  }
}

async function gatewaySample(lab: Lab, host: string): Promise<GatewaySample> {
  const { dataPlane, ports } = await lab.status(host);
  return {
    host,
    drops: ports[0]?.drops ?? {},
    eventsLost: dataPlane.eventsLost,
    eventsRefused: dataPlane.eventsRefused,
    commandsFailed: dataPlane.commandsFailed,
    peers: ports[0]?.peers.length ?? 0,
  };
}
