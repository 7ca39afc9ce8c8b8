/** Bulk between hosts of a laboratory: a file over TCP, and datagrams that the kernel sends in one piece. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { run, waitFor } from '../../../scripts/laboratory/processes.js';
import { listening } from './hosts.js';

const UDP_GSO = fileURLToPath(new URL('./programs/udp-gso.py', import.meta.url));
const PATIENCE_MS = 90_000;

/** A file of random bytes. */
export interface TestFile {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
  remove(): void;
}

export async function randomFile(bytes: number): Promise<TestFile> {
  const dir = mkdtempSync(join(tmpdir(), 'pairwire-bulk-'));
  const path = join(dir, 'random');
  await run(['openssl', 'rand', '-out', path, String(bytes)]);
  const { stdout } = await run(['sha256sum', path]);
  return {
    path,
    bytes,
    sha256: stdout.split(' ')[0] ?? '',
    remove: () => rmSync(dir, { recursive: true, force: true }),
  };
}

/** Sends a file over TCP; the digest of what arrived. `address` is one of `to`'s. */
export async function sendFile(
  lab: Lab,
  way: { readonly from: string; readonly to: string; readonly address: string },
  file: TestFile,
  port: number,
): Promise<string> {
  const v6 = way.address.includes(':');
  const listen = `TCP${v6 ? 6 : 4}-LISTEN:${port},reuseaddr`;
  const target = v6 ? `TCP6:[${way.address}]:${port}` : `TCP4:${way.address}:${port}`;
  const receive = `socat -u -b 262144 ${listen} STDOUT | sha256sum`;
  const send = async () => {
    await listening(lab, way.to, 'tcp', port);
    const argv = ['socat', '-u', '-b', '262144', `FILE:${file.path}`, target];
    await lab.exec(way.from, argv, { timeoutMs: PATIENCE_MS });
  };
  const [received] = await Promise.all([
    lab.exec(way.to, ['sh', '-c', receive], { timeoutMs: PATIENCE_MS }),
    send(),
  ]);
  return received.stdout.split(' ')[0] ?? '';
}

const receivedSchema = z.object({
  datagrams: z.int(),
  altered: z.int(),
  /** Reads that gave several datagrams at once. */
  joined: z.int(),
});

/** Sends super-frames of UDP datagrams, each of which must arrive as it was. */
export async function sendDatagrams(
  lab: Lab,
  way: { readonly from: string; readonly to: string; readonly address: string },
  shape: { readonly size: number; readonly count: number; readonly port: number },
): Promise<z.infer<typeof receivedSchema> & { readonly sent: number }> {
  const receiver = lab.exec(way.to, ['python3', UDP_GSO, 'serve', String(shape.port)], {
    timeoutMs: PATIENCE_MS,
  });
  const send = async () => {
    await listening(lab, way.to, 'udp', shape.port);
    const numbers = [shape.port, shape.size, shape.count].map(String);
    const argv = ['python3', UDP_GSO, 'send', way.address, ...numbers];
    const { stdout } = await lab.exec(way.from, argv, { timeoutMs: PATIENCE_MS });
    return z.object({ datagrams: z.int() }).parse(JSON.parse(stdout)).datagrams;
  };
  const [received, sent] = await Promise.all([receiver, send()]);
  return { ...receivedSchema.parse(JSON.parse(received.stdout)), sent };
}

/** Packets at the TAP and frames on the wire that a gateway has counted so far. */
export async function tapCounters(lab: Lab, host: string) {
  const { counters } = await lab.port(host);
  const of = (name: string) => counters[name] ?? 0;
  return {
    out: { packets: of('outbound_packets'), frames: of('outbound_frames') },
    in: { packets: of('inbound_packets'), frames: of('inbound_frames') },
  };
}

/** Waits for a line in the log of a program in the background. */
export async function waitForLine(log: string, text: string): Promise<void> {
  await waitFor(() => readFileSync(log, 'utf8').includes(text), { what: `"${text}" in ${log}` });
}
