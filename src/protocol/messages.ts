/**
 * Messages on the secure channel between members, operators and the key server,
 * docs/protocol.md sections 6.5 and 7. Each is parsed by its schema where it enters; who may send
 * which is one table in authorisation.ts.
 */
import { z } from 'zod';
import { PEER_CODES } from '../runtime/errors.js';
import { KEY_SIZE } from './constants.js';
import { idSchema } from './ids.js';
import { macSchema } from './mac.js';
import { prefixSchema, ROLES } from './records.js';
import { bytesSchema, signedSchema } from './signed.js';

/** Most rows in one answer; the rest comes with the next cursor. */
export const MAX_ROWS = 500;
/** Most addresses that a member may report. */
export const MAX_ENDPOINTS = 8;

const requestId = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const pwId = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const cursor = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const index = z.int().min(1).max(0xffff_ffff);

/** A UDP address: 4 or 16 bytes and a port. */
export const endpointSchema = z.strictObject({
  ip: z.union([bytesSchema(4), bytesSchema(16)]),
  port: z.int().min(1).max(65_535),
});
export type Endpoint = z.infer<typeof endpointSchema>;

/** What a member may know of another. Every claim that matters is inside a signed record. */
export const peerRecordSchema = z.strictObject({
  id: idSchema,
  role: z.enum(ROLES),
  online: z.boolean(),
  membership: signedSchema,
  /** Missing until the member's data plane has started once. */
  boot: signedSchema.optional(),
  index: index.optional(),
  ips: z.array(prefixSchema).max(64),
  endpoints: z.array(endpointSchema).max(MAX_ENDPOINTS),
});
export type PeerRecord = z.infer<typeof peerRecordSchema>;

/** State that a member should have, each with the number of the change that made it so. */
export const changeSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('member'), seq: cursor, member: peerRecordSchema }),
  z.strictObject({ kind: z.literal('gone'), seq: cursor, id: idSchema }),
  z.strictObject({
    kind: z.literal('pair'),
    seq: cursor,
    peer: idSchema,
    key: bytesSchema(KEY_SIZE),
    pwId,
  }),
  z.strictObject({
    kind: z.literal('group'),
    seq: cursor,
    group: idSchema,
    key: bytesSchema(KEY_SIZE),
    pwId,
  }),
  z.strictObject({ kind: z.literal('settings'), seq: cursor, settings: signedSchema }),
]);
export type Change = z.infer<typeof changeSchema>;

export const LISTS = ['members', 'keys', 'macs', 'audit'] as const;
export type ListName = (typeof LISTS)[number];

/** Requests. `id` pairs a request with its answer. */
export const requestSchema = z.discriminatedUnion('t', [
  /** Keepalive and time sample. */
  z.strictObject({ t: z.literal('ping'), id: requestId }),
  /** First contact with a join token. */
  z.strictObject({ t: z.literal('enrol'), id: requestId, membership: signedSchema }),
  /** A start of this member's data plane. machine and nonce tell a cloned disk from a restart. */
  z.strictObject({
    t: z.literal('register'),
    id: requestId,
    boot: signedSchema,
    machine: bytesSchema(16),
    nonce: bytesSchema(16),
  }),
  /** Where this member's data plane may be reached. */
  z.strictObject({
    t: z.literal('endpoints'),
    id: requestId,
    endpoints: z.array(endpointSchema).max(MAX_ENDPOINTS),
  }),
  /** (requester, destination MAC), the sender's question. */
  z.strictObject({
    t: z.literal('key.mac'),
    id: requestId,
    requester: idSchema,
    mac: macSchema,
    pwId: pwId.optional(),
  }),
  /** (requester, sender index, kid), the receiver's question; `group` if the frame was a group frame. */
  z.strictObject({
    t: z.literal('key.index'),
    id: requestId,
    requester: idSchema,
    index,
    kid: z.int().min(0).max(0xffff),
    group: z.boolean(),
    pwId: pwId.optional(),
  }),
  /** What changed since the cursor; also renews the lease. `epoch` is that of the cursor. */
  z.strictObject({ t: z.literal('sync'), id: requestId, cursor, epoch: bytesSchema(8).optional() }),
  /** The key server's lists, for operators and viewers. */
  z.strictObject({
    t: z.literal('list'),
    id: requestId,
    what: z.enum(LISTS),
    after: cursor.optional(),
    limit: z.int().min(1).max(MAX_ROWS).optional(),
  }),
  /** Security settings, newer than those in force and signed by the operator. */
  z.strictObject({ t: z.literal('settings.set'), id: requestId, settings: signedSchema }),
]);
export type Request = z.infer<typeof requestSchema>;
export type RequestType = Request['t'];

/** Error answer. `detail` only ever names the asker's own mistake. */
export const errorAnswerSchema = z.strictObject({
  t: z.literal('error'),
  id: requestId,
  code: z.enum(PEER_CODES),
  detail: z.string().max(200).optional(),
});
export type ErrorAnswer = z.infer<typeof errorAnswerSchema>;

/** The bodies of `ok` answers, by request type. */
export const answerSchemas = {
  ping: z.object({ t: z.literal('ok'), id: requestId, time: z.int().nonnegative() }),
  enrol: z.object({ t: z.literal('ok'), id: requestId, member: idSchema }),
  register: z.object({
    t: z.literal('ok'),
    id: requestId,
    index,
    /** Subnet tag of the `ethernet` transport. */
    tag: z.int().min(0).max(63),
    settings: signedSchema,
  }),
  endpoints: z.object({ t: z.literal('ok'), id: requestId }),
  'key.mac': z.discriminatedUnion('kind', [
    z.object({
      t: z.literal('ok'),
      id: requestId,
      kind: z.literal('pair'),
      peer: peerRecordSchema,
      key: bytesSchema(KEY_SIZE),
      pwId,
    }),
    z.object({
      t: z.literal('ok'),
      id: requestId,
      kind: z.literal('group'),
      group: idSchema,
      key: bytesSchema(KEY_SIZE),
      pwId,
      /** For a receiver's question: the sender of the frame. */
      peer: peerRecordSchema.optional(),
    }),
  ]),
  sync: z.object({
    t: z.literal('ok'),
    id: requestId,
    epoch: bytesSchema(8),
    changes: z.array(changeSchema).max(MAX_ROWS),
    cursor,
    /** More changes wait: ask again at once. */
    more: z.boolean(),
  }),
  list: z.object({
    t: z.literal('ok'),
    id: requestId,
    rows: z.array(z.record(z.string(), z.unknown())).max(MAX_ROWS),
    next: cursor.optional(),
  }),
  'settings.set': z.object({
    t: z.literal('ok'),
    id: requestId,
    version: z.int().positive(),
  }),
} as const;
export type KeyAnswer = z.infer<(typeof answerSchemas)['key.mac']>;
export type SyncAnswer = z.infer<(typeof answerSchemas)['sync']>;
export type RegisterAnswer = z.infer<(typeof answerSchemas)['register']>;

/** Pushes: hints. Whoever misses one gets the same by `sync`. */
export const pushSchema = z.discriminatedUnion('t', [
  z.strictObject({ t: z.literal('expire') }),
  z.strictObject({
    t: z.literal('changes'),
    epoch: bytesSchema(8),
    changes: z.array(changeSchema).max(MAX_ROWS),
  }),
  /** Another live session of this id exists (a cloned disk): stop, do not retry. */
  z.strictObject({ t: z.literal('duplicate') }),
]);
export type Push = z.infer<typeof pushSchema>;
