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

/** What fping tells: a round-trip time or a `-` for each. */
function parseFping(text: string): PingResult {
  const times = / : (.*)$/m.exec(text)?.[1]?.trim().split(/\s+/) ?? [];
  const answered = new Map<number, number>();
  for (const [at, time] of times.entries()) if (time !== '-') answered.set(at + 1, Number(time));
  return { sent: times.length, received: answered.size, answered };
}

/**
 * Pings; an answer that does not come within `waitMs` is not an error here.
 *
 * By fping, where ping is not wanted for its patterns: ping waits no longer for its last answers than two of the
 * round trips that it saw, so on a busy machine it counts some as lost that are not.
 */
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
  const timeoutMs = count * intervalMs + waitMs + 10_000;
  if (pattern !== undefined) {
    const argv = ['ping', '-n', '-c', String(count), '-i', String(intervalMs / 1000)];
    argv.push('-W', String(waitMs / 1000), '-p', pattern);
    if (source !== undefined) argv.push('-I', source);
    if (size !== undefined) argv.push('-s', String(size));
    const { stdout } = await lab.exec(host, [...argv, address], { check: false, timeoutMs });
    return parsePing(stdout);
  }
  const argv = ['fping', '-q', '-C', String(count), '-p', String(intervalMs), '-t', String(waitMs)];
  if (source !== undefined) argv.push('-S', source);
  if (size !== undefined) argv.push('-b', String(size));
  const { stderr } = await lab.exec(host, [...argv, address], { check: false, timeoutMs });
  return parseFping(stderr);
}

/** Waits until something listens on a port of a host. */
export async function listening(
  lab: Lab,
  host: string,
  protocol: 'tcp' | 'udp',
  port: number,
  timeoutMs = 40_000,
): Promise<void> {
  const flags = protocol === 'tcp' ? '-Hltn' : '-Hlun';
  await waitFor(
    async () => (await lab.exec(host, ['ss', flags, `sport = :${port}`])).stdout !== '',
    {
      what: `${protocol} port ${port} in ${host}`,
      everyMs: 20,
      timeoutMs,
    },
  );
}

/** An address of the encrypted subnet that nobody has. */
export const NOBODY = '198.51.100.250';

/**
 * ARP requests that cross the subnet as group frames, one a second: for an address that nobody has, because
 * gateways answer themselves for one that they know.
 */
export async function askForNobody(
  lab: Lab,
  host: string,
  interfaceName: string,
  count: number,
): Promise<void> {
  const argv = ['arping', '-b', '-c', String(count), '-w', String(count + 1)];
  await lab.exec(host, [...argv, '-I', interfaceName, NOBODY], { check: false });
}
