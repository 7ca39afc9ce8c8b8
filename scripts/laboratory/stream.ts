/**
 * A stream of numbered datagrams from one host to another, which knows of each datagram whether it
 * came, and how long nothing came.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Lab } from './lab.js';
import { type ProcessId, waitFor } from './processes.js';

const PROGRAM = fileURLToPath(new URL('./programs/numbered.py', import.meta.url));
/** An interpreter on a busy machine may take its time. */
const START_MS = 40_000;

const progressSchema = z.object({
  received: z.int(),
  /** Highest number so far, -1 before the first. */
  newest: z.int(),
  repeated: z.int(),
  /** Datagrams that came behind a later one. */
  late: z.int().default(0),
  /** Longest time without a datagram since the line before, ms. */
  silentMs: z.int().default(0),
});
const receivedSchema = progressSchema.extend({
  /** Ranges of numbers below the newest that never came. */
  missing: z.array(z.tuple([z.int(), z.int()])),
  /** Number of the datagram that ended a silence of over 100 ms, and its length in ms. */
  silences: z.array(z.tuple([z.int(), z.int()])),
});
const sentSchema = z.object({ sent: z.int() });

/** What became of a stream. */
export interface StreamResult extends z.infer<typeof receivedSchema> {
  readonly sent: number;
  /** Datagrams that never came, those at the end too. */
  readonly lost: number;
}

export interface StreamOptions {
  readonly from: string;
  readonly to: string;
  /** An address of `to`, or a broadcast address. */
  readonly address: string;
  readonly port: number;
  readonly perSecond: number;
  /** Bytes of UDP payload, at least 8. */
  readonly size: number;
}

type Running = ProcessId & { readonly log: string };

export class NumberedStream {
  private constructor(
    private readonly lab: Lab,
    readonly name: string,
    private readonly sender: Running,
    private readonly receiver: Running,
  ) {}

  /** Returns when datagrams arrive. @throws Error if none does in time */
  static async start(lab: Lab, options: StreamOptions): Promise<NumberedStream> {
    const place = [options.address, String(options.port)];
    const receive = ['python3', PROGRAM, 'receive', ...place];
    const receiver = lab.spawn(options.to, receive, { label: 'receive' });
    await waitFor(() => readFileSync(receiver.log, 'utf8').includes('"received"'), {
      what: `the receiver of a stream on ${options.to}`,
      timeoutMs: START_MS,
    });
    const shape = [String(options.perSecond), String(options.size)];
    const sender = lab.spawn(options.from, ['python3', PROGRAM, 'send', ...place, ...shape], {
      label: 'send',
    });
    const name = `${options.from} to ${options.to}`;
    const stream = new NumberedStream(lab, name, sender, receiver);
    await stream.more(1, START_MS);
    return stream;
  }

  /** The state of a moment ago. */
  progress(): z.infer<typeof progressSchema> {
    const lines = readFileSync(this.receiver.log, 'utf8').split('\n');
    const last = lines.findLast((line) => line.endsWith('}')) ?? '{}';
    return progressSchema.parse(JSON.parse(last));
  }

  /** Waits until so many more have arrived. @throws Error after `timeoutMs` */
  async more(count: number, timeoutMs = 15_000): Promise<void> {
    const { received } = this.progress();
    await waitFor(() => this.progress().received >= received + count, {
      what: `${count} more datagrams from ${this.name}`,
      timeoutMs,
      everyMs: 20,
    });
  }

  /** Ends it, when what is under way has arrived. */
  async stop(): Promise<StreamResult> {
    await this.lab.stop(this.sender);
    const { sent } = sentSchema.parse(lastLine(this.sender.log));
    await waitFor(
      () => {
        const { received, silentMs } = this.progress();
        return received >= sent || silentMs > 1_000;
      },
      { what: 'the last datagrams', timeoutMs: 5_000 },
    );
    await this.lab.stop(this.receiver);
    const result = receivedSchema.parse(lastLine(this.receiver.log));
    return { ...result, sent, lost: sent - result.received };
  }
}

function lastLine(log: string): unknown {
  const line = readFileSync(log, 'utf8').trimEnd().split('\n').at(-1) ?? '';
  return JSON.parse(line);
}
