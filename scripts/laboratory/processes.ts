/**
 * Programs that the laboratory runs: to their end (`run`), or in the background with their output
 * in a file (`start`). A process in the background is known by its pid and the time that it
 * started, so that nothing else is ever killed in its place.
 */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';

export interface RunResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly timeoutMs?: number;
  readonly input?: string | Uint8Array;
  readonly env?: Readonly<Record<string, string>>;
  /** An exit code other than 0 is an error; true unless said otherwise. */
  readonly check?: boolean;
}

/** A program that ended with an exit code other than 0, or did not end in time. */
export class RunError extends Error {
  override readonly name = 'RunError';
  constructor(
    readonly argv: readonly string[],
    readonly result: RunResult,
  ) {
    const output = `${result.stderr}${result.stdout}`.trim();
    super(`${argv.join(' ')}: exit code ${result.code}${output === '' ? '' : `\n${output}`}`);
  }
}

/** Runs a program to its end. @throws RunError if it fails and `check` is not false */
export function run(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const [program, ...args] = argv;
  if (program === undefined) throw new RangeError('no program to run');
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C.UTF-8', ...options.env },
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const timeoutMs = options.timeoutMs ?? 60_000;
    const timer = setTimeout(() => {
      err.push(Buffer.from(`\nnot done after ${timeoutMs} ms, so it was killed\n`));
      child.kill('SIGKILL');
    }, timeoutMs);
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
    child.stdin.on('error', () => undefined); // it may end before it has read its input
    child.stdin.end(options.input ?? '');
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const result: RunResult = {
        code: code ?? 128 + (signal === 'SIGKILL' ? 9 : 15),
        stdout: Buffer.concat(out).toString('utf8'),
        stderr: Buffer.concat(err).toString('utf8'),
      };
      if (result.code !== 0 && options.check !== false) reject(new RunError(argv, result));
      else resolve(result);
    });
  });
}

/** What identifies a process for good: its pid and its start time in clock ticks since boot. */
export interface ProcessId {
  readonly pid: number;
  readonly start: string;
}

/** The start time of a pid, or undefined if it is gone (a zombie counts as gone). */
export function startTimeOf(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The second field is the program's name in brackets and may contain anything.
  const rest = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return rest[0] === 'Z' ? undefined : rest[19];
}

export function isAlive(id: ProcessId): boolean {
  return startTimeOf(id.pid) === id.start;
}

/** Sends a signal, but only to that very process. False if it is gone. */
export function signal(id: ProcessId, name: NodeJS.Signals): boolean {
  if (!isAlive(id)) return false;
  try {
    process.kill(id.pid, name);
    return true;
  } catch {
    return false;
  }
}

/**
 * Starts a program in the background, in a session of its own, with its output in a file.
 * @throws Error if it can't be started at all
 */
export function start(
  argv: readonly string[],
  log: string,
  env: Readonly<Record<string, string>> = {},
): ProcessId {
  const [program, ...args] = argv;
  if (program === undefined) throw new RangeError('no program to start');
  const out = openSync(log, 'a', 0o600);
  try {
    const child = spawn(program, args, {
      detached: true,
      stdio: ['ignore', out, out],
      env: { ...process.env, LC_ALL: 'C.UTF-8', ...env },
    });
    child.on('error', () => undefined); // told by the missing pid below
    child.unref();
    const { pid } = child;
    const startTime = pid === undefined ? undefined : startTimeOf(pid);
    if (pid === undefined || startTime === undefined) {
      throw new Error(`${argv.join(' ')}: did not start`);
    }
    return { pid, start: startTime };
  } finally {
    closeSync(out);
  }
}

/** Thrown by a condition that can no longer come true: `waitFor` waits no longer. */
export class HopelessError extends Error {
  override readonly name = 'HopelessError';
}

export interface WaitOptions {
  readonly timeoutMs?: number;
  readonly everyMs?: number;
  /** What is waited for, for the error text. */
  readonly what: string;
}

/**
 * Waits until the condition gives something other than undefined or false, and returns that.
 * @throws Error that says what was waited for and the last error that the condition threw
 */
export async function waitFor<T>(
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  options: WaitOptions,
): Promise<T> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const everyMs = options.everyMs ?? 50;
  const end = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const value = await condition();
      if (value !== undefined && value !== false) return value;
      last = undefined;
    } catch (error) {
      if (error instanceof HopelessError) throw error;
      last = error;
    }
    if (performance.now() > end) {
      const because =
        last === undefined ? '' : `: ${last instanceof Error ? last.message : String(last)}`;
      throw new Error(`waited ${timeoutMs} ms for ${options.what}${because}`);
    }
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
