/**
 * The two namespaces that a tunnel of the benchmark runs between, joined by one veth pair, and what
 * is needed to run programs in them. All addresses are documentation ranges.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { messageOf } from '../../src/runtime/errors.js';

const execute = promisify(execFile);

/** Names of our namespaces and folders: PREFIX PID - NUMBER - SIDE. */
const PREFIX = 'pwb-';
const FOLDER = 'pairwire-bench-';
const RUN_TIMEOUT_MS = 120_000;
/**
 * How the streams find their rate: as Linux does it by default, else as every namespace may have it. A machine may have another default, BBR say,
 * which holds each stream back by a timer of its own, so that timers would be measured.
 */
const CONGESTION_CONTROLS = ['cubic', 'reno'] as const;

export interface Side {
  readonly name: 'a' | 'b';
  readonly namespace: string;
  readonly address: string;
  /** Of the veth pair. */
  readonly device: string;
}

/** Two hosts on one wire, and a folder. `close` ends every process there and removes both. */
export class Bed {
  readonly a: Side;
  readonly b: Side;
  /** Short, of this bed alone, good for the name of a device. */
  readonly tag: string;
  /** For keys and configuration of the tunnel; others may pass through it. */
  readonly folder: string;
  /** Of TCP in both namespaces. */
  congestionControl = '';
  readonly #signal: AbortSignal;
  readonly #processes = new Set<ChildProcess>();
  readonly #before: (() => Promise<void>)[] = [];
  #logs = 0;
  #closed = false;

  private constructor(tag: string, signal: AbortSignal) {
    this.#signal = signal;
    this.tag = `pwb${tag}`;
    this.folder = mkdtempSync(join(tmpdir(), `${FOLDER}${process.pid}-`));
    chmodSync(this.folder, 0o711);
    const side = (name: 'a' | 'b', address: string): Side => ({
      name,
      namespace: `${PREFIX}${tag}-${name}`,
      address,
      device: 'eth0',
    });
    this.a = side('a', '192.0.2.1');
    this.b = side('b', '192.0.2.2');
  }

  /** @param signal ends what `run` runs, but nothing that `close` needs */
  static async create(number: number, signal: AbortSignal): Promise<Bed> {
    const bed = new Bed(`${process.pid}-${number}`, signal);
    try {
      await bed.#build();
    } catch (error) {
      await bed.close();
      throw error;
    }
    return bed;
  }

  get sides(): readonly Side[] {
    return [this.a, this.b];
  }

  other(side: Side): Side {
    return side === this.a ? this.b : this.a;
  }

  async #build(): Promise<void> {
    for (const side of this.sides) await host(['ip', 'netns', 'add', side.namespace]);
    const end = (side: Side) => ['name', side.device, 'mtu', '1500', 'netns', side.namespace];
    await host(['ip', 'link', 'add', ...end(this.a), 'type', 'veth', 'peer', ...end(this.b)]);
    for (const side of this.sides) {
      await this.run(side, 'ip', 'addr', 'add', `${side.address}/24`, 'dev', side.device);
      await this.run(side, 'ip', 'link', 'set', side.device, 'up');
      await this.run(side, 'ip', 'link', 'set', 'lo', 'up');
    }
    this.congestionControl = await this.#chooseCongestionControl();
  }

  /** A namespace may have what the machine allows everybody (net.ipv4.tcp_allowed_congestion_control), which is always reno. */
  async #chooseCongestionControl(): Promise<string> {
    for (const name of CONGESTION_CONTROLS) {
      const setting = `net.ipv4.tcp_congestion_control=${name}`;
      const set = this.sides.map((side) => this.try(side, 'sysctl', '-qw', setting));
      if ((await Promise.all(set)).every((done) => done !== undefined)) return name;
    }
    throw new Error(`none of ${CONGESTION_CONTROLS.join(', ')} can be set in a namespace`);
  }

  /** Runs a program to its end in a side's namespace and gives its output. @throws Error with its last words */
  async run(side: Side, program: string, ...args: readonly string[]): Promise<string> {
    const signal = this.#closed ? undefined : this.#signal;
    return await host(['ip', 'netns', 'exec', side.namespace, program, ...args], signal);
  }

  /** Like `run`, for a program that may fail. */
  async try(side: Side, program: string, ...args: readonly string[]): Promise<string | undefined> {
    try {
      return await this.run(side, program, ...args);
    } catch (error) {
      this.#signal.throwIfAborted();
      void error;
      return undefined;
    }
  }

  /**
   * Starts a program in a side's namespace; it is ended by `stop` or `close`, and by nothing else: it has a
   * process group of its own, so that Ctrl-C does not take tunnels away under a `close` that needs them.
   */
  start(side: Side, program: string, ...args: readonly string[]): ChildProcess {
    this.#logs += 1;
    const log = openSync(join(this.folder, `${this.#logs}-${side.name}.log`), 'a', 0o600);
    const child = spawn('ip', ['netns', 'exec', side.namespace, program, ...args], {
      stdio: ['ignore', log, log],
      detached: true,
    });
    closeSync(log);
    this.#processes.add(child);
    child.once('error', () => this.#processes.delete(child));
    child.once('exit', () => this.#processes.delete(child));
    return child;
  }

  /** Ends a program that `start` started. */
  async stop(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
    await gone;
    clearTimeout(timer);
  }

  /** Something that `close` has to do while the tunnel's programs still run. The last one comes first. */
  beforeClose(action: () => Promise<void>): void {
    this.#before.unshift(action);
  }

  /** The last lines that the tunnel's programs wrote. */
  lastWords(): string {
    const lines = readdirSync(this.folder)
      .filter((name) => name.endsWith('.log'))
      .flatMap((name) =>
        readFileSync(join(this.folder, name), 'utf8').trimEnd().split('\n').slice(-2),
      );
    return lines
      .filter((line) => line !== '')
      .slice(-6)
      .join(' | ');
  }

  /** Waits until `ready` is true. @throws Error after the time-out, or when interrupted */
  async waitFor(what: string, ready: () => Promise<boolean>, timeoutMs = 20_000): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (!(await ready())) {
      this.#signal.throwIfAborted();
      if (Date.now() > end) {
        throw new Error(`${what} did not happen within ${timeoutMs / 1000} s; ${this.lastWords()}`);
      }
      await sleep(50);
    }
  }

  /** Takes all away; whatever fails on the way, the rest is done. Closing twice is no mistake. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const action of this.#before) {
      await action().catch((error: unknown) => {
        process.stderr.write(`bench: ${messageOf(error).split('\n')[0]}\n`);
      });
    }
    await Promise.all([...this.#processes].map((child) => this.stop(child)));
    for (const side of this.sides) await removeNamespace(side.namespace);
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Pids of a side's processes whose command name is `name`. */
  async pidsIn(side: Side, name: string): Promise<number[]> {
    const pids = await pidsInNamespace(side.namespace);
    return pids.filter((pid) => commandOf(pid) === name.slice(0, 15));
  }
}

/** Removes what runs of the benchmark left that were killed. */
export async function sweep(): Promise<void> {
  const ofDead = (name: string, prefix: string): boolean => {
    if (!name.startsWith(prefix)) return false;
    const pid = Number(/^\d+/.exec(name.slice(prefix.length))?.[0] ?? Number.NaN);
    return !Number.isNaN(pid) && !existsSync(`/proc/${pid}`);
  };
  const list = await host(['ip', 'netns', 'list']);
  for (const line of list.split('\n')) {
    const name = line.split(' ')[0] ?? '';
    if (ofDead(name, PREFIX)) await removeNamespace(name);
  }
  for (const name of readdirSync(tmpdir())) {
    if (ofDead(name, FOLDER)) rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
}

/** Some programs leave their parent; whoever still runs in a namespace of ours is one of them. */
async function removeNamespace(name: string): Promise<void> {
  try {
    for (let i = 0; i < 40; i++) {
      const pids = await pidsInNamespace(name);
      if (pids.length === 0) break;
      for (const pid of pids) kill(pid);
      await sleep(25);
    }
    await host(['ip', 'netns', 'del', name]);
  } catch (error) {
    if (existsSync(`/run/netns/${name}`)) throw error;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

async function host(argv: readonly string[], signal?: AbortSignal): Promise<string> {
  const [program = '', ...args] = argv;
  try {
    const { stdout } = await execute(program, args, {
      timeout: RUN_TIMEOUT_MS,
      maxBuffer: 64 << 20,
      ...(signal === undefined ? {} : { signal }),
    });
    return stdout;
  } catch (error) {
    signal?.throwIfAborted();
    const words = lastLines(error);
    throw new Error(
      `${argv.slice(argv[1] === 'netns' && argv[2] === 'exec' ? 4 : 0).join(' ')}: ${words}`,
    );
  }
}

function lastLines(error: unknown): string {
  const parts = ['stderr', 'stdout'].map((name) => {
    const text: unknown = error instanceof Error ? Reflect.get(error, name) : undefined;
    return typeof text === 'string' ? text.trim() : '';
  });
  const said = parts.find((text) => text !== '') ?? messageOf(error);
  return said.split('\n').slice(-3).join(' | ').slice(0, 400);
}

async function pidsInNamespace(name: string): Promise<number[]> {
  if (!existsSync(`/run/netns/${name}`)) return [];
  const out = await host(['ip', 'netns', 'pids', name]);
  return out
    .split('\n')
    .map(Number)
    .filter((pid) => pid > 0);
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return '';
  }
}
