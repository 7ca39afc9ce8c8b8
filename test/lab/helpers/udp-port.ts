/** A UDP port in a host of the laboratory, worked from a test: sends and receives raw bytes. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { waitFor } from '../../../scripts/laboratory/processes.js';

const PROGRAM = fileURLToPath(new URL('./programs/udp-port.mjs', import.meta.url));

export interface Datagram {
  readonly host: string;
  readonly port: number;
  readonly bytes: Buffer;
}

export class UdpPort {
  readonly received: Datagram[] = [];
  private ready = false;
  private rest = '';

  private constructor(private readonly child: ChildProcessWithoutNullStreams) {
    child.stdout.on('data', (chunk: Buffer) => this.take(chunk.toString('latin1')));
  }

  /** Opens a port; 0 takes a free one. */
  static async open(lab: Lab, host: string, port = 0): Promise<UdpPort> {
    const argv = lab.argvIn(host, [process.execPath, PROGRAM, String(port)]);
    const opened = new UdpPort(spawn(argv[0] ?? '', argv.slice(1), { stdio: 'pipe' }));
    await waitFor(() => opened.ready, { what: `a UDP port in ${host}` });
    return opened;
  }

  private take(text: string): void {
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === 'ready') {
        this.ready = true;
        continue;
      }
      const [host, port, hex] = line.split(' ');
      this.received.push({
        host: host ?? '',
        port: Number(port),
        bytes: Buffer.from(hex ?? '', 'hex'),
      });
    }
  }

  send(host: string, port: number, bytes: Uint8Array): void {
    this.child.stdin.write(`${host} ${port} ${Buffer.from(bytes).toString('hex')}\n`);
  }

  close(): void {
    this.child.stdin.end();
    this.child.kill('SIGTERM');
  }
}
