/**
 * Which rows have a MAC, and over which columns (docs/protocol.md 11.9): who is a member and what for, whose an address is, what holds, and
 * what is over. Left out is what changes all the time and says nothing of that: presence, change numbers, when something was seen. Not here
 * either: keys of pairs, whose seals bind them to their place, boot records, which their members sign, and the audit log, which is a chain.
 */
import { bucketOf, type RowValue } from '../../src/protocol/row-macs.js';
import type { Row, SqlValue } from './sql.js';

type ColumnType = 'text' | 'integer' | 'bytes';
type Column = readonly [name: string, type: ColumnType];

/** A table whose rows have MACs. */
export interface RowTable {
  readonly table: string;
  readonly key: readonly string[];
  readonly columns: readonly Column[];
  /** Whom or what a row is about, beside the table's name: rows about one member share a bucket. */
  readonly about: string | undefined;
  /** Only rows that meet this condition, and how it is told of a row. */
  readonly where?: string;
  readonly applies?: (row: Row) => boolean;
}

const text = (...names: readonly string[]): Column[] => names.map((name) => [name, 'text']);
const integer = (...names: readonly string[]): Column[] => names.map((name) => [name, 'integer']);
const bytes = (...names: readonly string[]): Column[] => names.map((name) => [name, 'bytes']);

function table(
  name: string,
  key: readonly string[],
  about: string | undefined,
  columns: readonly Column[],
  where?: string,
): RowTable {
  return { table: name, key, about, columns, ...(where === undefined ? {} : { where }) };
}

export const MEMBERS = table('members', ['id'], 'id', [
  ...text('id', 'role', 'state', 'ips', 'home'),
  ...integer('serial', 'enrolled_at'),
  ...bytes('channel', 'membership', 'membership_signature', 'identity_digest', 'token_id'),
]);
export const MACS = table('macs', ['mac', 'slot'], 'member', [
  ...text('mac', 'slot', 'member', 'kind'),
  ...integer('serial', 'seen_at', 'changed'),
]);
export const IP_BINDINGS = table('ip_bindings', ['prefix', 'slot'], 'member', [
  ...text('prefix', 'slot', 'member', 'source'),
  ...integer('bound_at'),
]);
export const BINDINGS = table('bindings', ['ip'], 'member', [
  ...text('ip', 'mac', 'kind', 'member'),
  ...integer('since', 'serial'),
]);
/** Those that the operator has pinned: others are what plain ports say, thousands of them, and come and go. */
export const LEARNED: RowTable = {
  ...table(
    'learned',
    ['vlan', 'mac'],
    'member',
    [...text('mac', 'member'), ...integer('vlan', 'pinned', 'kept', 'serial')],
    'kept = 1',
  ),
  applies: (row) => Number(row.kept) === 1,
};
export const REVOCATIONS = table('revocations', ['number'], 'member', [
  ...text('member'),
  ...integer('number', 'revoked_at', 'changed'),
]);
export const SETTINGS = table('settings', ['version'], undefined, [
  ...integer('version', 'installed_at', 'changed'),
  ...bytes('body', 'signature'),
]);
export const TOKENS = table('tokens_used', ['token_id'], undefined, [
  ...bytes('token_id'),
  ...integer('used', 'last_at'),
]);
export const FOREIGN_REVOCATIONS = table(
  'foreign_revocations',
  ['home', 'id'],
  'id',
  text('home', 'id'),
);
export const FORMER_SERVERS = table('former_servers', ['server'], undefined, text('server'));
export const PEER_SERVERS = table('peer_servers', ['server'], undefined, [
  ...text('server', 'member'),
  ...bytes('contact'),
  ...integer('sender_number', 'serial'),
]);
export const NETS = table('nets', ['net'], undefined, [
  ...text('net', 'member', 'local'),
  ...bytes('contact'),
  ...integer('pw_id', 'next_pw_id', 'oldest', 'serial'),
]);
export const GROUPS = table('group_keys', ['id', 'pw_id'], undefined, [
  ...text('id'),
  ...integer('pw_id', 'in_force', 'oldest', 'serial'),
]);
export const COUNTERS = table(
  'counters',
  ['name'],
  undefined,
  [...text('name'), ...integer('value')],
  "name = 'revocation'",
);
/** What the store is; its epoch changes when it is put back, before any key is at hand. */
export const META = table(
  'meta',
  ['name'],
  undefined,
  [...text('name'), ...bytes('value')],
  "name IN ('subnet', 'server', 'operator', 'tag', 'number')",
);

export const ROW_TABLES: readonly RowTable[] = [
  ...[META, COUNTERS, SETTINGS, MEMBERS, MACS, IP_BINDINGS, BINDINGS, LEARNED, REVOCATIONS],
  ...[TOKENS, FOREIGN_REVOCATIONS, FORMER_SERVERS, PEER_SERVERS, NETS, GROUPS],
];

/** The columns of a row, for its MAC. */
export function columnsOf({ columns }: RowTable, row: Row): RowValue[] {
  return columns.map(([name, type]) => columnValue(row[name], type));
}

/** The values of a row's primary key. */
export function keyOf({ key, columns }: RowTable, row: Row): SqlValue[] {
  return key.map((name) => {
    const type = columns.find(([column]) => column === name)?.[1] ?? 'text';
    const value = columnValue(row[name], type);
    if (value instanceof Uint8Array) return Buffer.from(value);
    return typeof value === 'string' || typeof value === 'number' ? value : null;
  });
}

/** The name of a row: its primary key, each value in a line. */
export function nameOf(key: readonly SqlValue[]): string {
  return key
    .map((value) => (Buffer.isBuffer(value) ? value.toString('hex') : String(value)))
    .join('\n');
}

/** The primary key that a name says. */
export function keyNamed({ key, columns }: RowTable, name: string): SqlValue[] {
  const parts = name.split('\n');
  return key.map((column, at) => {
    const part = parts[at] ?? '';
    const type = columns.find(([one]) => one === column)?.[1];
    if (type === 'bytes') return Buffer.from(part, 'hex');
    if (type === 'text') return part;
    return Number.isSafeInteger(Number(part)) ? Number(part) : null;
  });
}

/** The bucket of a row. */
export function bucketOfRow({ table: name, about }: RowTable, row: Row): number {
  const subject = about === undefined ? '' : row[about];
  return bucketOf(typeof subject === 'string' && subject !== '' ? `member ${subject}` : name);
}

/** Text and bytes of another type, and what is no integer, never were in this column. */
function columnValue(value: unknown, type: ColumnType): RowValue {
  if (value === null || value === undefined) return null;
  if (type === 'text') return typeof value === 'string' ? value : { wrong: true };
  if (type === 'bytes') {
    if (Buffer.isBuffer(value)) return value;
    return value instanceof ArrayBuffer ? Buffer.from(value) : { wrong: true };
  }
  // PostgreSQL's client gives integers as text.
  if (typeof value !== 'number' && typeof value !== 'bigint' && typeof value !== 'string') {
    return { wrong: true };
  }
  const number = typeof value === 'string' && !/^-?\d+$/.test(value) ? Number.NaN : Number(value);
  return Number.isSafeInteger(number) ? number : { wrong: true };
}
