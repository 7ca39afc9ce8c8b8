/** An Ethernet interface of a host of the laboratory, worked from a test: sends and receives whole frames. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { run, waitFor } from '../../../scripts/laboratory/processes.js';

const SOURCE = fileURLToPath(new URL('./programs/ethernet-port.c', import.meta.url));
let compiled: Promise<string> | undefined;

/** Node.js has no raw sockets, so this is a small C program. */
async function compile(): Promise<string> {
  const program = join(mkdtempSync(join(tmpdir(), 'pairwire-ethernet-port-')), 'ethernet-port');
  await run(['cc', '-O1', '-Wall', '-Wextra', '-Werror', '-o', program, SOURCE]);
  return program;
}

export class EthernetPort {
  readonly received: Buffer[] = [];
  private ready = false;
  private rest = '';

  private constructor(private readonly child: ChildProcessWithoutNullStreams) {
    child.stdout.on('data', (chunk: Buffer) => this.take(chunk.toString('latin1')));
  }

  /** Takes everything that comes in at an interface. */
  static async open(lab: Lab, host: string, interfaceName: string): Promise<EthernetPort> {
    compiled ??= compile();
    const argv = lab.argvIn(host, [await compiled, interfaceName]);
    const opened = new EthernetPort(spawn(argv[0] ?? '', argv.slice(1), { stdio: 'pipe' }));
    await waitFor(() => opened.ready, { what: `${interfaceName} of ${host}` });
    return opened;
  }

  private take(text: string): void {
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === 'ready') this.ready = true;
      else this.received.push(Buffer.from(line, 'hex'));
    }
  }

  send(frame: Uint8Array): void {
    this.child.stdin.write(`${Buffer.from(frame).toString('hex')}\n`);
  }

  close(): void {
    this.child.stdin.end();
    this.child.kill('SIGTERM');
  }
}
