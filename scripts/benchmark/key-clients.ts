/**
 * A process of clients of a key server, for key-server.ts: each has a channel and keeps so many requests in flight. They are real clients,
 * and cost about as much as the server does; so each side tells what processor time one request took it.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Scheme } from '../../src/net/address.js';
import { ChannelClient } from '../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';

/** Requests of one member that are on their way at a time. */
export const PIPELINE = 16;

/** What the process is to do. */
export interface ClientJob {
  readonly scheme: Scheme;
  readonly port: number;
  /** The server's static key, as members' keys in hexadecimal digits. */
  readonly server: string;
  readonly members: readonly { readonly id: string; readonly key: string }[];
  /** MAC addresses that are asked for. */
  readonly peers: readonly string[];
}

/** So many requests of each client, in the order of the addresses and from the first one again. */
interface RunOrder {
  readonly each: number;
}

/** What came of it. */
export interface ClientRate {
  readonly requests: number;
  readonly seconds: number;
  /** Processor time of the process, us. */
  readonly cpuUs: number;
}

/** Clients of a server, in a process of their own. */
export class KeyClients {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start(): Promise<KeyClients> {
    const child = fork(fileURLToPath(import.meta.url), ['--clients'], {
      execArgv: ['--import', 'tsx'],
      cwd: fileURLToPath(new URL('..', import.meta.url)),
    });
    child.once('exit', (code) => {
      if (code !== 0 && code !== null) {
        throw new Error(`the process of clients ended with ${code}`);
      }
    });
    await once(child, 'message');
    return new KeyClients(child);
  }

  /** Opens the channels. */
  async connect(job: ClientJob): Promise<void> {
    const ready = once(this.#child, 'message');
    this.#child.send(job);
    await ready;
  }

  /** Has each client send so many requests: the addresses in their order, again and again. */
  async run(each: number): Promise<ClientRate> {
    const done = once(this.#child, 'message');
    const order: RunOrder = { each };
    this.#child.send(order);
    const [rate] = (await done) as [ClientRate];
    return rate;
  }

  close(): void {
    this.#child.kill();
  }
}

async function clientsProcess(): Promise<void> {
  process.send?.('ready');
  const [job] = (await once(process, 'message')) as [ClientJob];
  const server = Buffer.from(job.server, 'hex');
  const channels = job.members.map(({ id, key }) => {
    const channel = new ChannelClient({
      servers: [{ scheme: job.scheme, host: '127.0.0.1', port: job.port, publicKey: server }],
      staticKeys: keyPairFromPrivate(Buffer.from(key, 'hex')),
    });
    channel.start();
    return { id, channel };
  });
  await Promise.all(channels.map(({ channel }) => channel.request({ t: 'sync', cursor: 1e9 })));
  process.on('message', (order: RunOrder) => {
    void (async () => {
      const cpu = process.cpuUsage();
      const start = performance.now();
      await Promise.all(
        channels.map(async ({ id, channel }) => {
          let next = 0;
          const ask = async (): Promise<void> => {
            while (next < order.each) {
              const mac = job.peers[next % job.peers.length];
              next += 1;
              await channel.request({ t: 'key.mac', requester: id, mac });
            }
          };
          await Promise.all(Array.from({ length: PIPELINE }, ask));
        }),
      );
      const { user, system } = process.cpuUsage(cpu);
      const rate: ClientRate = {
        requests: channels.length * order.each,
        seconds: (performance.now() - start) / 1_000,
        cpuUs: user + system,
      };
      process.send?.(rate);
    })();
  });
  process.send?.('connected');
}

if (process.argv.includes('--clients')) await clientsProcess();
