/**
 * Structured logs (pino): JSON lines, pretty on a terminal. Never a secret: known names are
 * removed wherever they stand, and no bytes are ever printed, only their length.
 *
 * Field names are the same in every process: `member`, `peer`, `mac`, `index`, `pwId`,
 * `address`, `reason`, `err`.
 */
import { type DestinationStream, type Logger, type LoggerOptions, pino } from 'pino';
import pretty from 'pino-pretty';
import { describe, PairwireError } from './errors.js';

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type { Logger };

/** Field names whose values never reach a log. */
export const SECRET_NAMES: readonly string[] = [
  'key',
  'psk',
  'secret',
  'token',
  'grant',
  'privateKey',
  'password',
  'authorization',
];

export interface LogSettings {
  readonly level: LogLevel;
  /** auto: pretty if the destination is a terminal. */
  readonly style?: 'auto' | 'json' | 'pretty';
}

/**
 * Makes the logger of a process. It writes to standard error, so that standard output stays
 * free for what a command prints.
 * @param destination for tests: gets the JSON lines
 */
export function createLogger(
  name: string,
  settings: LogSettings,
  destination?: DestinationStream,
): Logger {
  const options: LoggerOptions = {
    name,
    level: settings.level,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: {
      level: (label) => ({ level: label }),
      log: (fields) => scrub(fields, 0) as Record<string, unknown>,
    },
    serializers: { err: describeError },
  };
  if (destination !== undefined) return pino(options, destination);
  const style = settings.style ?? 'auto';
  if (style === 'pretty' || (style === 'auto' && process.stderr.isTTY === true)) {
    return pino(options, pretty({ destination: 2, sync: true, ignore: 'pid,hostname' }));
  }
  return pino(options, pino.destination({ fd: 2, sync: true }));
}

/** An error as it stands in the log: code, text, where, hint; the stack only of what nobody expected. */
function describeError(thrown: unknown): unknown {
  if (thrown instanceof PairwireError) return describe(thrown);
  if (thrown instanceof Error) {
    return { type: thrown.name, message: thrown.message, stack: thrown.stack };
  }
  return thrown;
}

const MAX_DEPTH = 4;

function scrub(value: unknown, depth: number): unknown {
  if (value instanceof Uint8Array) return `<${value.length} bytes>`;
  if (typeof value !== 'object' || value === null || value instanceof Error) return value;
  if (depth >= MAX_DEPTH) return '<deep>';
  if (Array.isArray(value)) return value.map((item) => scrub(item, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [
      name,
      SECRET_NAMES.includes(name) ? '<removed>' : scrub(item, depth + 1),
    ]),
  );
}
