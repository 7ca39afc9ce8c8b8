/**
 * The audit log as JSON lines, one entry a line, for archives and other programs, and the check of such a file with the
 * key. Each line carries its MAC and the one before it, so that a part of a log can be checked, too.
 */
import { z } from 'zod';
import { idSchema } from '../src/protocol/ids.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { type AuditCheck, ChainCheck, GENESIS, type SeenEntry } from './audit.js';
import type { AuditEntry, Store } from './storage/store.js';

const PAGE = 1_000;
/** Longest line of a file that is checked, characters: an entry has about 400. */
export const MAX_EXPORT_LINE = 1_048_576;

const macSchema = z.base64url().length(43);
const detailSchema = z.custom<object | string>(
  (value) => typeof value === 'string' || isPlainObject(value),
  'must be an object',
);

const lineSchema = z.strictObject({
  server: idSchema,
  seq: z.int().positive(),
  /** ms since 1970. */
  at: z.int().nonnegative(),
  actor: z.string(),
  action: z.string(),
  outcome: z.enum(['done', 'refused']),
  count: z.int().nonnegative(),
  /** A text where it is not as this program writes it: somebody changed it. */
  detail: detailSchema,
  /** Base64url, as `mac`. */
  previous: macSchema,
  mac: macSchema,
});
type Line = z.infer<typeof lineSchema>;

/** From where: behind an entry, or from the first one that is not older than a time (ms). */
export interface ExportRange {
  readonly after: number;
  readonly since: number;
}

/**
 * Writes a log out, page by page, whatever its size.
 * @param write takes whole lines; the next page waits for it
 * @returns how many entries
 */
export async function exportAudit(
  store: Store,
  range: ExportRange,
  write: (lines: string) => Promise<void>,
): Promise<number> {
  const { server } = store.meta;
  let at = range.after;
  let previous = await macOf(store, at);
  let count = 0;
  let hasBegun = false;
  for (;;) {
    const page = await store.listAudit(server, at, PAGE);
    const lines: string[] = [];
    for (const entry of page) {
      hasBegun ||= entry.at >= range.since;
      if (hasBegun) lines.push(`${JSON.stringify(lineOf(entry, previous))}\n`);
      previous = entry.mac;
      at = entry.seq;
    }
    if (lines.length > 0) await write(lines.join(''));
    count += lines.length;
    if (page.length < PAGE) return count;
  }
}

async function macOf(store: Store, seq: number): Promise<Buffer> {
  if (seq === 0) return GENESIS;
  const [entry] = await store.listAudit(store.meta.server, seq - 1, 1);
  if (entry?.seq === seq) return entry.mac;
  throw new PairwireError('NOT_FOUND', `there is no entry ${seq}`);
}

function lineOf({ detail, mac, ...entry }: AuditEntry, previous: Buffer): Line {
  return {
    ...entry,
    detail: objectOf(detail) ?? detail,
    previous: previous.toString('base64url'),
    mac: mac.toString('base64url'),
  };
}

/** The object, if the text is what it would be written as. */
function objectOf(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isPlainObject(value) && JSON.stringify(value) === text ? value : undefined;
  } catch {
    return undefined;
  }
}

function isPlainObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What a check of a file found. */
export interface FileCheck extends AuditCheck {
  /** Numbers of the first and the last entry that were right. */
  readonly first: number;
  readonly last: number;
}

/**
 * Checks an exported file: every entry, and what was seen of those in it.
 * @param lines without line ends; empty ones are left out
 * @throws PairwireError FILE_UNREADABLE for a line that is none, and for a file without any
 */
export async function verifyExport(
  lines: AsyncIterable<string>,
  key: Buffer,
  seen: readonly SeenEntry[],
): Promise<FileCheck> {
  let chain: ChainCheck | undefined;
  let first = 0;
  let number = 0;
  for await (const text of lines) {
    number += 1;
    if (text === '') continue;
    const { detail, previous, mac, ...line } = parseLine(text, number);
    const before = Buffer.from(previous, 'base64url');
    if (chain === undefined) {
      first = line.seq;
      const from = { seq: first - 1, mac: first === 1 ? GENESIS : before };
      chain = new ChainCheck(key, seen, from);
    }
    const broken = chain.next({
      ...line,
      detail: typeof detail === 'string' ? detail : JSON.stringify(detail),
      mac: Buffer.from(mac, 'base64url'),
    });
    if (broken !== undefined)
      return { entries: chain.seq - first + 1, first, last: chain.seq, broken };
  }
  if (chain === undefined) throw new PairwireError('FILE_UNREADABLE', 'there is no entry in it');
  return { entries: chain.seq - first + 1, first, last: chain.seq, broken: undefined };
}

function parseLine(text: string, number: number): Line {
  try {
    return lineSchema.parse(JSON.parse(text));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? (cause.issues[0]?.message ?? '') : messageOf(cause);
    throw new PairwireError('FILE_UNREADABLE', `line ${number} is no audit entry: ${why}`, {
      cause,
    });
  }
}

/** Cuts a stream of text into lines. @throws PairwireError FILE_UNREADABLE for one that never ends */
export async function* linesOf(chunks: AsyncIterable<string>): AsyncIterable<string> {
  let rest = '';
  for await (const chunk of chunks) {
    const parts = `${rest}${chunk}`.split('\n');
    rest = parts.pop() ?? '';
    yield* parts;
    if (rest.length > MAX_EXPORT_LINE) {
      throw new PairwireError('FILE_UNREADABLE', `a line is longer than ${MAX_EXPORT_LINE}`);
    }
  }
  if (rest !== '') yield rest;
}
