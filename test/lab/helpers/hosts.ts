/** What tests ask a host of the laboratory: its interfaces, a ping, whether something listens. */

import { z } from 'zod';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { waitFor } from '../../../scripts/laboratory/processes.js';

const linkSchema = z
  .array(
    z.object({
      address: z.string(),
      mtu: z.int(),
      addr_info: z
        .array(z.object({ local: z.string(), tentative: z.boolean().default(false) }))
        .default([]),
    }),
  )
  .length(1);

async function show(lab: Lab, host: string, interfaceName: string) {
  const { stdout } = await lab.exec(host, ['ip', '-json', 'address', 'show', interfaceName]);
  const [link] = linkSchema.parse(JSON.parse(stdout));
  if (link === undefined) throw new Error(`${host} has no ${interfaceName}`);
  return link;
}

/** MAC address and MTU of an interface. */
export async function linkOf(
  lab: Lab,
  host: string,
  interfaceName: string,
): Promise<{ readonly address: string; readonly mtu: number }> {
  const { address, mtu } = await show(lab, host, interfaceName);
  return { address, mtu };
}

/** Usable IP addresses of an interface, without their prefix lengths. */
export async function addressesOf(
  lab: Lab,
  host: string,
  interfaceName: string,
): Promise<string[]> {
  return (await show(lab, host, interfaceName)).addr_info
    .filter((one) => !one.tentative)
    .map((one) => one.local);
}

export interface PingResult {
  readonly sent: number;
  readonly received: number;
  /** Sequence numbers that were answered, from 1, and the round-trip time of each, ms. */
  readonly answered: ReadonlyMap<number, number>;
}

/** The output of ping, taken apart. */
export function parsePing(text: string): PingResult {
  const counts = /(\d+) packets transmitted, (\d+) received/.exec(text);
  const answered = new Map<number, number>();
  for (const match of text.matchAll(/icmp_seq=(\d+) .*time=([\d.]+) ms/g)) {
    answered.set(Number(match[1]), Number(match[2]));
  }
  return { sent: Number(counts?.[1] ?? 0), received: Number(counts?.[2] ?? 0), answered };
}

/** Pings; an answer that does not come is not an error here. */
export async function ping(
  lab: Lab,
  host: string,
  address: string,
  options: {
    readonly count?: number;
    readonly intervalMs?: number;
    readonly waitMs?: number;
    readonly source?: string | undefined;
    readonly size?: number;
    readonly pattern?: string;
  } = {},
): Promise<PingResult> {
  const { count = 1, intervalMs = 200, waitMs = 2_000, source, size, pattern } = options;
  const argv = ['ping', '-n', '-c', String(count), '-i', String(intervalMs / 1000)];
  argv.push('-W', String(waitMs / 1000));
  if (source !== undefined) argv.push('-I', source);
  if (size !== undefined) argv.push('-s', String(size));
  if (pattern !== undefined) argv.push('-p', pattern);
  const timeoutMs = count * intervalMs + waitMs + 10_000;
  const { stdout } = await lab.exec(host, [...argv, address], { check: false, timeoutMs });
  return parsePing(stdout);
}

/** Waits until something listens on a port of a host. */
export async function listening(
  lab: Lab,
  host: string,
  protocol: 'tcp' | 'udp',
  port: number,
): Promise<void> {
  const flags = protocol === 'tcp' ? '-Hltn' : '-Hlun';
  await waitFor(
    async () => (await lab.exec(host, ['ss', flags, `sport = :${port}`])).stdout !== '',
    {
      what: `${protocol} port ${port} in ${host}`,
      everyMs: 20,
    },
  );
}
