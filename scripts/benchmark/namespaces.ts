/**
 * The two namespaces that every tunnel of the benchmark runs between, joined by one veth
 * pair, and what is needed to run programs in them. All addresses are documentation ranges.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';

export interface Side {
  readonly namespace: string;
  readonly address: string;
  readonly device: string;
}

/** Two hosts on one wire. `close` ends every process that was started here and removes the namespaces. */
export class Bed {
  readonly a: Side;
  readonly b: Side;
  readonly #processes = new Set<ChildProcess>();

  constructor(readonly mtu: number) {
    const tag = `${process.pid}`;
    this.a = { namespace: `pwb-${tag}-a`, address: '192.0.2.1', device: `pwb${tag}a` };
    this.b = { namespace: `pwb-${tag}-b`, address: '192.0.2.2', device: `pwb${tag}b` };
    for (const side of [this.a, this.b]) this.#host('ip', 'netns', 'add', side.namespace);
    this.#host(
      'ip',
      'link',
      'add',
      this.a.device,
      'mtu',
      String(mtu),
      'type',
      'veth',
      'peer',
      'name',
      this.b.device,
      'mtu',
      String(mtu),
    );
    for (const side of [this.a, this.b]) {
      this.#host('ip', 'link', 'set', side.device, 'netns', side.namespace);
      this.run(side, 'ip', 'addr', 'add', `${side.address}/24`, 'dev', side.device);
      this.run(side, 'ip', 'link', 'set', side.device, 'up');
      this.run(side, 'ip', 'link', 'set', 'lo', 'up');
    }
  }

  /** Runs a program to its end in a side's namespace and gives its output. */
  run(side: Side, program: string, ...args: readonly string[]): string {
    return this.#host('ip', 'netns', 'exec', side.namespace, program, ...args);
  }

  /** Like `run`, for a program that may fail. */
  try(side: Side, program: string, ...args: readonly string[]): string | undefined {
    try {
      return this.run(side, program, ...args);
    } catch {
      return undefined;
    }
  }

  /** Starts a program in a side's namespace; it is ended by `stop` or `close`. */
  start(side: Side, program: string, ...args: readonly string[]): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', side.namespace, program, ...args], {
      stdio: 'ignore',
    });
    this.#processes.add(child);
    child.once('exit', () => this.#processes.delete(child));
    return child;
  }

  async stop(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 3000);
    await gone;
    clearTimeout(timer);
  }

  async close(): Promise<void> {
    for (const child of this.#processes) await this.stop(child);
    for (const side of [this.a, this.b]) {
      try {
        // Some peers leave their parent; whoever still runs in a namespace of ours is one of them.
        for (const pid of pidsInNamespace(side)) process.kill(pid, 'SIGKILL');
        this.#host('ip', 'netns', 'del', side.namespace);
      } catch {
        // gone already: closing twice is no mistake
      }
    }
  }

  #host(program: string, ...args: readonly string[]): string {
    return execFileSync(program, args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 120_000,
    });
  }
}

/** CPU seconds that a process used until now, its children that ended included; undefined if it is gone. */
export function cpuSeconds(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const values = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const ticks = [11, 12, 13, 14].reduce((sum, i) => sum + Number(values[i] ?? 0), 0);
    return ticks / 100;
  } catch {
    return undefined;
  }
}

/** Resident memory of a process in bytes; 0 if it is gone. */
export function residentBytes(pid: number): number {
  try {
    const match = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return Number(match?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Pids whose command name is `name` and whose network namespace is the side's. */
export function pidsIn(side: Side, name: string): number[] {
  return pidsInNamespace(side).filter((pid) => commandOf(pid) === name.slice(0, 15));
}

function pidsInNamespace(side: Side): number[] {
  const out = execFileSync('ip', ['netns', 'pids', side.namespace], { encoding: 'utf8' });
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

/** Waits until `ready` is true. @throws Error after the time-out */
export async function waitFor(
  what: string,
  ready: () => boolean,
  timeoutMs = 15_000,
): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!ready()) {
    if (Date.now() > end) throw new Error(`${what} did not happen within ${timeoutMs / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
