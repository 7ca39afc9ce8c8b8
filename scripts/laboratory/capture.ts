/** A running capture on an interface of the laboratory: tcpdump into a file, read back as packets. */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { type CapturedPacket, parsePcap } from './pcap.js';
import { isAlive, type ProcessId, signal, waitFor } from './processes.js';

/** How long a capture must have been quiet before it counts as complete, ms. */
const QUIET_MS = 150;

export class Capture {
  private stopped = false;

  constructor(
    readonly file: string,
    private readonly process: ProcessId,
    private readonly log: string,
  ) {}

  /** Waits until tcpdump really listens; what is sent before is not seen. */
  async ready(): Promise<this> {
    await waitFor(
      () => existsSync(this.log) && readFileSync(this.log, 'utf8').includes('listening on'),
      { what: `tcpdump to listen (${this.log})`, everyMs: 10 },
    );
    return this;
  }

  /** What has been captured so far. */
  packets(): CapturedPacket[] {
    return existsSync(this.file) ? parsePcap(readFileSync(this.file)) : [];
  }

  /** Waits for a packet that fits. @throws Error if none comes in time */
  async waitForPacket(
    fits: (packet: CapturedPacket) => boolean,
    what: string,
    timeoutMs = 10_000,
  ): Promise<CapturedPacket> {
    return waitFor(() => this.packets().find(fits), { what, timeoutMs });
  }

  /** Packets that came faster than tcpdump could take them, and are in no file. Known after `stop`. */
  lost(): number {
    const said = /^(\d+) packets? dropped by kernel/m.exec(readFileSync(this.log, 'utf8'));
    if (said === null) throw new Error(`tcpdump has not said what it lost (${this.log})`);
    return Number(said[1]);
  }

  /** Ends the capture once nothing more comes in, and returns all of it. */
  async stop(): Promise<CapturedPacket[]> {
    if (!this.stopped) {
      let size = -1;
      await waitFor(
        () => {
          const before = size;
          size = existsSync(this.file) ? statSync(this.file).size : 0;
          return before === size;
        },
        { what: 'the capture to fall quiet', everyMs: QUIET_MS, timeoutMs: 3_000 },
      ).catch(() => undefined); // traffic that never ends is cut off here
      signal(this.process, 'SIGINT');
      await waitFor(() => !isAlive(this.process), { what: 'tcpdump to end', everyMs: 10 });
      this.stopped = true;
    }
    return this.packets();
  }
}
