/**
 * What commands print, the same way in every command: a table on a terminal, plain columns
 * in a pipe, JSON with `--json`; errors with what, where and what to do; exit codes 0 done,
 * 1 failed, 2 wrong use.
 */
import Table from 'cli-table3';
import { Command, CommanderError } from 'commander';
import pc from 'picocolors';
import { z } from 'zod';
import { describe, messageOf, PairwireError } from '../runtime/errors.js';

export const EXIT = { done: 0, failed: 1, usage: 2 } as const;

/** Where output goes; tests replace it. */
export interface OutputTarget {
  readonly json: boolean;
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  /** A terminal that shows colours. */
  readonly tty: boolean;
}

/** Standard output and standard error of this process. */
export function processOutput(json: boolean): OutputTarget {
  return {
    json,
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
    tty: process.stdout.isTTY === true && pc.isColorSupported,
  };
}

/** A column: the field of the row (and its name in JSON), and its heading. */
export interface Column<R> {
  readonly field: keyof R & string;
  readonly title: string;
}

/** Prints rows: with --json an array of objects with stable names, else a table. */
export function printRows<R extends object>(
  target: OutputTarget,
  columns: readonly Column<R>[],
  rows: readonly R[],
): void {
  if (target.json) {
    printJson(target, rows);
    return;
  }
  if (rows.length === 0) {
    target.err('none\n');
    return;
  }
  const cells = rows.map((row) => columns.map(({ field }) => cellText(row[field])));
  target.out(`${target.tty ? boxed(columns, cells) : plain(columns, cells)}\n`);
}

/** Prints the fields of one object, one to a line. */
export function printFields(target: OutputTarget, fields: Readonly<Record<string, unknown>>): void {
  if (target.json) {
    printJson(target, fields);
    return;
  }
  const width = Math.max(...Object.keys(fields).map((name) => name.length));
  for (const [name, value] of Object.entries(fields)) {
    const title = target.tty ? pc.bold(name.padEnd(width)) : name.padEnd(width);
    target.out(`${title}  ${cellText(value)}\n`);
  }
}

export function printJson(target: OutputTarget, value: unknown): void {
  target.out(`${JSON.stringify(value, jsonValue, 2)}\n`);
}

/** Prints an error. @returns the exit code that belongs to it */
export function printError(target: OutputTarget, thrown: unknown): number {
  const error = describeError(thrown);
  if (target.json) {
    target.err(`${JSON.stringify({ error }, undefined, 2)}\n`);
  } else {
    const { where, hint } = error;
    const colour = target.tty ? pc.red : (text: string) => text;
    const place = where === undefined || error.message.includes(where) ? '' : ` (${where})`;
    target.err(`${colour('error:')} ${error.message}${place}\n`);
    if (hint !== undefined) target.err(`hint: ${hint}\n`);
  }
  return error.code === 'USAGE' ? EXIT.usage : EXIT.failed;
}

/**
 * Wraps the action of a command: errors are printed and become the exit code. `--json` is
 * read from the command's own options.
 */
export function action<A extends unknown[]>(
  fn: (target: OutputTarget, ...args: A) => Promise<void> | void,
): (...args: [...A, Command]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const target = processOutput(command.optsWithGlobals().json === true);
    try {
      await fn(target, ...(all.slice(0, -1) as A));
    } catch (thrown) {
      process.exitCode = printError(target, thrown);
    }
  };
}

/**
 * The root of a program's commands. Make it before its commands, which inherit from it that
 * wrong use does not end the process by itself.
 */
export function createProgram(name: string, about: string): Command {
  return (
    new Command(name)
      .description(about)
      // An option behind a command's name is that command's, also if one above has the same (`kms`, `kms status`).
      .enablePositionalOptions()
      .exitOverride()
      .showHelpAfterError('(add --help for what this command takes)')
  );
}

/** Runs a program. @returns the exit code: 2 for wrong use, else what the command set */
export async function runProgram(program: Command, argv: readonly string[]): Promise<number> {
  process.stdout.on('error', endOnBrokenPipe);
  try {
    await program.parseAsync([...argv], { from: 'user' });
  } catch (thrown) {
    if (!(thrown instanceof CommanderError)) return printError(processOutput(false), thrown);
    return thrown.exitCode === 0 ? EXIT.done : EXIT.usage;
  }
  return typeof process.exitCode === 'number' ? process.exitCode : EXIT.done;
}

/** Whoever read our output has seen enough (`pairwire audit | head`): end as other programs do. */
function endOnBrokenPipe(error: Error): void {
  if ('code' in error && error.code === 'EPIPE') process.exit(EXIT.done);
  throw error;
}

const UNITS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** Milliseconds of `90s`, `15m`, `1h`, `7d`, `500ms`. @throws PairwireError USAGE */
export function parseDuration(text: string, option: string): number {
  const match = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text);
  const unit = UNITS[match?.[2] ?? ''];
  if (match === null || unit === undefined) {
    throw new PairwireError('USAGE', `${option}: "${text}" is not a time`, {
      hint: 'write a number and ms, s, m, h or d, as in 30s or 1h',
    });
  }
  return Number(match[1]) * unit;
}

/** A whole number within bounds. @throws PairwireError USAGE */
export function parseInteger(text: string, option: string, min: number, max: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min || value > max) {
    throw new PairwireError('USAGE', `${option}: "${text}" is not a number from ${min} to ${max}`);
  }
  return value;
}

/** For options that may be given several times. */
export function collectOption(value: string, before: readonly string[]): string[] {
  return [...before, value];
}

interface DescribedError {
  readonly code: string;
  readonly message: string;
  readonly where?: string;
  readonly hint?: string;
}

function describeError(thrown: unknown): DescribedError {
  if (thrown instanceof PairwireError) return describe(thrown);
  if (thrown instanceof z.ZodError) {
    const text = thrown.issues
      .map(({ path, message }) => (path.length === 0 ? message : `${path.join('.')}: ${message}`))
      .join('; ');
    return { code: 'USAGE', message: text };
  }
  return { code: 'FAILED', message: messageOf(thrown) };
}

function cellText(value: unknown): string {
  if (value === undefined || value === null) return '-';
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (value instanceof Date) return value.toISOString();
  if (value instanceof Uint8Array) return `<${value.length} bytes>`;
  if (Array.isArray(value)) return value.length === 0 ? '-' : value.map(cellText).join(' ');
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** Bytes never reach the output. `this` is asked, because a Buffer has become an object already. */
function jsonValue(this: unknown, name: string, value: unknown): unknown {
  const original = (this as Readonly<Record<string, unknown>>)[name];
  if (original instanceof Uint8Array) return `<${original.length} bytes>`;
  return typeof value === 'bigint' ? value.toString() : value;
}

function boxed<R>(columns: readonly Column<R>[], cells: readonly string[][]): string {
  // cli-table3 colours by itself, piped or not, unless it is told otherwise.
  const table = new Table({
    head: columns.map(({ title }) => pc.bold(title)),
    style: { head: [], border: [] },
  });
  table.push(...cells.map((row) => [...row]));
  return table.toString();
}

function plain<R>(columns: readonly Column<R>[], cells: readonly string[][]): string {
  const lines = [columns.map(({ title }) => title), ...cells];
  const widths = columns.map((_column, at) =>
    Math.max(...lines.map((line) => line[at]?.length ?? 0)),
  );
  return lines
    .map((line) =>
      line
        .map((cell, at) => cell.padEnd(widths[at] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
