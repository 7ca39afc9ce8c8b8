/**
 * Configuration: a YAML file, read by its schema into one typed, frozen object. Every
 * mistake is reported at once with file, line, column, the setting's path and what would be
 * allowed; a mistake changes nothing.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isMap, isNode, isPair, isScalar, LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { messageOf, PairwireError } from '../runtime/errors.js';
import { writeFileAtomic } from '../runtime/files.js';

const MAX_FILE_SIZE = 1_048_576;
/** Far more than any setting needs; the YAML library recurses, and Node.js ends for want of stack. */
const MAX_DEPTH = 64;
const MAX_INDENT = 256;

/** One mistake in a configuration. */
export interface ConfigIssue {
  readonly line: number;
  readonly column: number;
  /** The setting, as in `log.level`; empty for the file as a whole. */
  readonly path: string;
  readonly message: string;
}

/** CONFIG_INVALID with each mistake by itself. */
export class ConfigError extends PairwireError {
  readonly issues: readonly ConfigIssue[];

  constructor(file: string, issues: readonly ConfigIssue[]) {
    const lines = issues.map(
      ({ line, column, path, message }) =>
        `${file}:${line}:${column}: ${path === '' ? '' : `${path}: `}${message}`,
    );
    const first = issues[0];
    super('CONFIG_INVALID', lines.join('\n'), {
      where: first === undefined ? file : `${file}:${first.line}:${first.column}`,
      hint: 'nothing was changed; mend the file and try again',
    });
    this.issues = issues;
  }
}

/**
 * Reads a YAML file.
 * @throws PairwireError CONFIG_NOT_FOUND; ConfigError (CONFIG_INVALID) with line and column
 */
export function loadYaml<S extends z.ZodType>(path: string, schema: S): z.output<S> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new PairwireError(
      'CONFIG_NOT_FOUND',
      `cannot read the configuration: ${messageOf(cause)}`,
      {
        where: path,
        cause,
      },
    );
  }
  return parseYaml(text, schema, path);
}

/**
 * Reads YAML from a string; `file` is how messages call it.
 * @throws ConfigError (CONFIG_INVALID)
 */
export function parseYaml<S extends z.ZodType>(text: string, schema: S, file: string): z.output<S> {
  if (text.length > MAX_FILE_SIZE) {
    throw new ConfigError(file, [{ line: 1, column: 1, path: '', message: 'is over 1 MiB' }]);
  }
  const deep = lineTooDeep(text);
  if (deep !== undefined) {
    throw new ConfigError(file, [
      { line: deep, column: 1, path: '', message: 'is nested too deeply' },
    ]);
  }
  const counter = new LineCounter();
  const document = parseDocument(text, { lineCounter: counter, prettyErrors: false });
  const at = (offset: number): { line: number; column: number } => {
    const { line, col } = counter.linePos(offset);
    return { line: Math.max(1, line), column: Math.max(1, col) };
  };
  if (document.errors.length > 0) {
    throw new ConfigError(
      file,
      document.errors.map((error) => ({ ...at(error.pos[0]), path: '', message: error.message })),
    );
  }
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch (thrown) {
    throw new ConfigError(file, [{ line: 1, column: 1, path: '', message: messageOf(thrown) }]);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return deepFreeze(parsed.data);
  const issues = parsed.error.issues.flatMap((issue) =>
    describe(issue, schema).map(({ path, message, key }) => ({
      ...at(offsetOf(document, path, key)),
      path: path.concat(key ?? []).join('.'),
      message,
    })),
  );
  throw new ConfigError(
    file,
    issues.sort((a, b) => a.line - b.line || a.column - b.column),
  );
}

/**
 * The first line at which a document may be nested deeper than MAX_DEPTH. Rough: brackets and indicators count
 * in comments and strings too.
 */
function lineTooDeep(text: string): number | undefined {
  let flow = 0;
  const lines = text.split('\n');
  for (const [at, line] of lines.entries()) {
    for (const [bracket] of line.matchAll(/[[\]{}]/g)) {
      flow = Math.max(0, flow + (bracket === '[' || bracket === '{' ? 1 : -1));
      if (flow > MAX_DEPTH) return at + 1;
    }
    const indicators = line.match(/[-?:](?=\s|$)/g)?.length ?? 0;
    if (indicators > MAX_DEPTH || line.search(/[^ ]/) > MAX_INDENT) return at + 1;
  }
  return undefined;
}

/** The JSON Schema of what stands in the file (before defaults), for editors. */
export function jsonSchemaOf(schema: z.ZodType, title: string): Record<string, unknown> {
  return { title, ...z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) };
}

/** Writes FOLDER/NAME.json. @returns the file's path */
export function writeJsonSchema(
  folder: string,
  name: string,
  schema: Readonly<Record<string, unknown>>,
): string {
  const path = join(folder, `${name}.json`);
  writeFileAtomic(path, `${JSON.stringify(schema, undefined, 2)}\n`, { mode: 0o644 });
  return path;
}

type Path = readonly PropertyKey[];

interface Described {
  readonly path: Path;
  readonly message: string;
  /** The last part of the path where the key itself is wrong. */
  readonly key?: string;
}

function describe(issue: z.core.$ZodIssue, schema: z.ZodType): Described[] {
  const { path } = issue;
  switch (issue.code) {
    case 'unrecognized_keys': {
      const allowed = keysAt(schema, path);
      const known = allowed.length === 0 ? '' : `; allowed: ${allowed.join(', ')}`;
      return issue.keys.map((key) => ({ path, key, message: `is not a setting${known}` }));
    }
    case 'invalid_value':
      return [{ path, message: `must be one of: ${issue.values.map(String).join(', ')}` }];
    case 'invalid_type':
      return issue.message.includes('received undefined')
        ? [{ path, message: `is missing (${issue.expected})` }]
        : [{ path, message: issue.message.replace(/^Invalid input: /, '') }];
    case 'invalid_union': {
      const texts = issue.errors.flat().map((one) => one.message.replace(/^Invalid input: /, ''));
      const unique = [...new Set(texts)];
      return [{ path, message: unique.length === 0 ? issue.message : unique.join(', or ') }];
    }
    default:
      return [{ path, message: issue.message }];
  }
}

/** The settings that an object schema knows at a path. */
function keysAt(schema: z.ZodType, path: Path): string[] {
  let json: unknown = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });
  for (const part of path) {
    const node = json as { properties?: Record<string, unknown>; items?: unknown } | undefined;
    json = typeof part === 'number' ? node?.items : node?.properties?.[String(part)];
  }
  return Object.keys((json as { properties?: object } | undefined)?.properties ?? {});
}

type YamlDocument = ReturnType<typeof parseDocument>;

/** Where a setting stands: its value, else the nearest thing around it that exists. */
function offsetOf(document: YamlDocument, path: Path, key: string | undefined): number {
  for (let length = path.length; length >= 0; length -= 1) {
    const node: unknown =
      length === 0 ? document.contents : document.getIn(path.slice(0, length), true);
    if (!isNode(node)) continue;
    if (length === path.length && key !== undefined && isMap(node)) {
      for (const pair of node.items) {
        if (isPair(pair) && isScalar(pair.key) && pair.key.value === key) {
          return pair.key.range?.[0] ?? 0;
        }
      }
    }
    return node.range?.[0] ?? 0;
  }
  return 0;
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !ArrayBuffer.isView(value)) {
    for (const item of Object.values(value)) deepFreeze(item);
    Object.freeze(value);
  }
  return value;
}
