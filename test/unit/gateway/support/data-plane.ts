/**
 * The real data plane, as a child of the test: unprivileged, sandboxed, with the underlay on
 * loopback and a TAP whose other end the test holds (tap.ts). What it does is looked at as anybody
 * may: through `stats` on an observing connection, and by frames.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { DataPlaneClient } from '../../../../gateway/dataplane/client.js';
import type { AnswerTo, PeerStats, PortStats } from '../../../../gateway/dataplane/messages.gen.js';
import { projectRoot } from '../../../../gateway/native-programs.js';
import type { MacAddress } from '../../../../src/protocol/mac.js';
import { TestTap } from './tap.js';

const BUILT = join(projectRoot(), 'gateway/native/build/release');
const PROGRAM = join(BUILT, 'pairwire-dataplane');
/** gateway/native/test-support: makes sockets and devices, then becomes the data plane. */
const STARTER = join(BUILT, 'pairwire-test-dataplane');

export const TAP_NAME = 'pw0';
export const TAP_MTU = 1_398;

export type Stats = AnswerTo<'stats'>;

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  readonly observer: DataPlaneClient;
}

/** A data plane; `kill` and `start` may be repeated. */
export class TestDataPlane {
  readonly #mac: MacAddress;
  #udpPort = 0;
  #epoch = 0;
  #running: Running | undefined;

  private constructor(
    /** Its control socket. */
    readonly path: string,
    mac: MacAddress,
    readonly tap: TestTap,
  ) {
    this.#mac = mac;
  }

  /** Starts one whose TAP has this address. */
  static async make(path: string, mac: MacAddress): Promise<TestDataPlane> {
    const plane = new TestDataPlane(path, mac, await TestTap.open());
    try {
      await plane.start();
    } catch (thrown) {
      await plane.close();
      throw thrown;
    }
    return plane;
  }

  /** The underlay's, the same in all starts. */
  get udpPort(): number {
    return this.#udpPort;
  }

  /** Resolves when it answers and has its devices. */
  async start(): Promise<void> {
    for (const program of [PROGRAM, STARTER]) {
      if (existsSync(program)) continue;
      throw new Error(`${program} is missing; build it with: scripts/build-native release`);
    }
    const devices = [this.#udpPort, this.tap.port, TAP_NAME, this.#mac, TAP_MTU].map(String);
    const child = spawn(STARTER, [this.path, ...devices, PROGRAM], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {},
    });
    const ended = new Promise<number | null>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', resolve);
    });
    let complaint = '';
    child.stderr.on('data', (text) => {
      complaint = `${complaint}${text}`.slice(-2_000);
    });
    try {
      const [udpPort, tapPort] = await Promise.race([portsOf(child.stdout), ended.then(died)]);
      this.#udpPort = udpPort;
      this.tap.plug(tapPort);
      const events = { event: () => {}, close: () => {} };
      const observer = await DataPlaneClient.connect(this.path, events);
      this.#running = { child, ended, observer };
      await observer.request('observe', {});
      await this.stats();
    } catch (cause) {
      child.kill('SIGKILL');
      await this.kill();
      throw new Error(`the data plane did not start: ${complaint}`, { cause });
    }
  }

  /** It is there and does nothing any more. */
  freeze(): void {
    this.#running?.child.kill('SIGSTOP');
  }

  /** As the kernel ends it: no time for anything. */
  kill(): Promise<number | null> {
    return this.#end('SIGKILL');
  }

  /** As the broker ends it. Gives its exit status. */
  stop(): Promise<number | null> {
    return this.#end('SIGTERM');
  }

  /** For good. */
  async close(): Promise<void> {
    await this.kill();
    this.tap.close();
  }

  get running(): boolean {
    return this.#running !== undefined;
  }

  /** Its counters and peers. */
  stats(): Promise<Stats> {
    if (this.#running === undefined) throw new Error('the data plane does not run');
    return this.#running.observer.request('stats', {});
  }

  /** The only port, if there is one. */
  async port(): Promise<PortStats | undefined> {
    return (await this.stats()).ports[0];
  }

  async peer(id: string): Promise<PeerStats | undefined> {
    return (await this.port())?.peers.find((peer) => peer.peer === id);
  }

  /** How many frames were dropped for a reason. */
  async drops(reason: string): Promise<number> {
    return (await this.port())?.drops.find((drop) => drop.name === reason)?.value ?? 0;
  }

  /** What the next controller is told that it holds. It takes control from who has it. */
  async held(): Promise<AnswerTo<'attach'>> {
    const client = await DataPlaneClient.connect(this.path, { event: () => {}, close: () => {} });
    try {
      // Above that of the agent, and of a look within the same millisecond.
      this.#epoch = Math.max(this.#epoch + 1, Date.now());
      return await client.request('attach', { epoch: this.#epoch });
    } finally {
      client.close();
    }
  }

  async #end(signal: NodeJS.Signals): Promise<number | null> {
    const running = this.#running;
    if (running === undefined) return null;
    this.#running = undefined;
    running.observer.close();
    running.child.kill(signal);
    return await running.ended;
  }
}

function died(status: number | null): never {
  throw new Error(`exit status ${status}`);
}

/** The line `UDP_PORT TAP_PORT`. */
async function portsOf(stdout: Readable): Promise<readonly [number, number]> {
  let printed = '';
  for await (const text of stdout) {
    printed += text;
    const found = /^(\d+) (\d+)\n/.exec(printed);
    if (found !== null) return [Number(found[1]), Number(found[2])];
  }
  throw new Error(`ports were not printed: ${printed}`);
}
