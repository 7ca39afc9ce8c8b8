/**
 * What the first ping between two members would otherwise wait for: zod turns a schema into JavaScript, and V8 that into
 * machine code, when the first message is parsed. The messages of a first contact are parsed once at the start instead.
 */
import type { ZodType } from 'zod';
import { parseId } from './ids.js';
import { answerSchemas, pushSchema, requestSchema } from './messages.js';

const ID = parseId('a');
const bytes = (size: number): Uint8Array => new Uint8Array(size);
const SIGNED = { b: bytes(64), s: bytes(64) };
const PEER = {
  ...{ id: ID, role: 'host', online: true, membership: SIGNED, boot: SIGNED, index: 1 },
  ips: ['192.0.2.1/32'],
  endpoints: [
    { ip: bytes(4), port: 1 },
    { ip: bytes(16), port: 1, seen: true },
  ],
};
const KEY = { key: bytes(32), pwId: 1 };
const PAIR = { t: 'ok', id: 1, kind: 'pair', peer: PEER, ...KEY };

/** Schemas of a first contact, each with messages that it takes. */
const FIRST_CONTACT: Readonly<Record<Role, readonly (readonly [ZodType, unknown])[]>> = {
  server: [
    [requestSchema, { t: 'key.mac', id: 1, requester: ID, mac: '02:00:00:00:00:01' }],
    [requestSchema, { t: 'key.index', id: 1, requester: ID, index: 1, kid: 1, group: false }],
  ],
  member: [
    [answerSchemas['key.mac'], PAIR],
    [
      pushSchema,
      {
        t: 'changes',
        epoch: bytes(8),
        changes: [
          { kind: 'member', seq: 1, member: PEER },
          { kind: 'pair', seq: 1, peer: ID, ...KEY },
        ],
      },
    ],
  ],
};

type Role = 'server' | 'member';

/** Parses each message of a first contact once, as a server or a member does. @returns how many were taken: all */
export function warmUp(role: Role): number {
  return FIRST_CONTACT[role].filter(([schema, example]) => schema.safeParse(example).success)
    .length;
}
