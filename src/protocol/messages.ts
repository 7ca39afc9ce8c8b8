/**
 * Messages on the secure channel between members, operators and the key server,
 * docs/protocol.md sections 6.5 and 7. Each is parsed by its schema where it enters; who may send
 * which is one table in authorisation.ts.
 */
import { z } from 'zod';
import { PEER_CODES } from '../runtime/errors.js';
import { KEY_SIZE, MAC_SIZE, NET_MARK_SIZE, RECEIPT_SIZE, RELAY_KEY_SIZE } from './constants.js';
import { idSchema } from './ids.js';
import { ipSchema } from './ip.js';
import {
  MAX_EXCHANGE,
  MAX_IDENTITIES_ASKED,
  namedPairSchema,
  sealedPairSchema,
} from './kms-exchange.js';
import { kmsLimitedSchema, NOT_LIMITED } from './kms-messages.js';
import { macSchema } from './mac.js';
import { prefixSchema, ROLES } from './records.js';
import { bytesSchema, bytesUpToSchema, signedSchema } from './signed.js';

/** Most rows in one answer; the rest comes with the next cursor. */
export const MAX_ROWS = 500;
/** Most addresses that a member may report. */
export const MAX_ENDPOINTS = 8;

const requestId = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const pwId = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const nextGeneration = z.strictObject({ key: bytesSchema(KEY_SIZE), pwId }).optional();
/** Number of a revocation; 0 before the first one. */
const revocation = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const cursor = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
/** Most subnets that one subnet is linked with, and most prefixes of one. */
export const MAX_NETS = 64;
export const MAX_NET_PREFIXES = 64;
/** Most link ports of one subnet that another one is told of. */
export const MAX_NET_PORTS = 8;
/** The clocks of two subnets' key servers may differ by so much, ms; with more, nothing crosses. */
export const MAX_NET_AHEAD_MS = 600_000;
const prefixes = z.array(prefixSchema).max(MAX_NET_PREFIXES);
const index = z.int().min(1).max(0xffff_ffff);
/** VLAN id of a frame's outermost tag, 0 without one. */
export const vlanSchema = z.int().min(0).max(4_094);

/** Most addresses of the plain side in one report. */
export const MAX_REPORTED = 256;

/** Most IP addresses in one report, and most refusals of a gateway. */
export const MAX_BOUND = 64;
export const MAX_GUARDED = 64;

/** An IP address and the MAC address that announces it. */
export const bindingSchema = z.strictObject({ ip: ipSchema, mac: macSchema });
export type IpBinding = z.infer<typeof bindingSchema>;

/** What the address guard refuses (docs/protocol.md 8.6). */
export const GUARDED = ['arp', 'nd', 'ra', 'redirect', 'dhcp'] as const;
export type GuardedKind = (typeof GUARDED)[number];

/** Frames that a gateway refused. */
export const guardedSchema = z.strictObject({
  kind: z.enum(GUARDED),
  /** The member that they came from; missing: from the gateway's own interface. */
  peer: idSchema.optional(),
  /** Their source. */
  mac: macSchema,
  /** The address that was claimed. */
  ip: ipSchema.optional(),
  count: z.int().min(1).max(0xffff_ffff),
});
export type Guarded = z.infer<typeof guardedSchema>;

/** Most addresses of a relay. */
export const MAX_RELAY_ADDRESSES = 4;

/** A UDP address: 4 or 16 bytes and a port. */
export const endpointSchema = z.strictObject({
  ip: z.union([bytesSchema(4), bytesSchema(16)]),
  port: z.int().min(1).max(65_535),
  /** Only in what the key server tells: the relay saw the member there, and it does not know it itself (NAT). */
  seen: z.literal(true).optional(),
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

const behindShape = {
  vlan: vlanSchema,
  mac: macSchema,
  /** How long it counts, ms; 0: until something else is told. */
  ms: z.int().min(0).max(0xffff_ffff),
  /** The address may be used as a source by this member alone. */
  pinned: z.boolean(),
};

/** An address outside, behind the plain member that an answer names. */
export const behindSchema = z.strictObject(behindShape);
export type Behind = z.infer<typeof behindSchema>;

/** An address that a plain port has seen; `ago`: how long before this was said, ms. */
export const sightingSchema = z.strictObject({
  vlan: vlanSchema,
  mac: bytesSchema(MAC_SIZE),
  /** Rises with each report of a member. */
  seq: cursor,
  ago: z.int().min(0).max(86_400_000),
});
export type Sighting = z.infer<typeof sightingSchema>;

const netKeyShape = {
  net: idSchema,
  prefixes,
  key: bytesSchema(KEY_SIZE),
  pwId,
  /** The oldest generation that may still be heard. */
  oldest: pwId,
  /** To be received under already, and to be confirmed; not to be sent with yet. */
  next: nextGeneration,
};

/** What the key server of one subnet tells another about its link ports; what counts is signed by that subnet's operator. */
const netPortsShape = {
  subnet: idSchema,
  operator: bytesSchema(KEY_SIZE),
  ports: z.array(peerRecordSchema).max(MAX_NET_PORTS),
};

export type NetPorts = z.infer<z.ZodObject<typeof netPortsShape>>;

/** How far the time of frames between subnets is ahead of the time of the key server that says so, ms; without it, 0. */
const ahead = z.int().min(-MAX_NET_AHEAD_MS).max(MAX_NET_AHEAD_MS).optional();

/** What is kept of the key server of another subnet. */
export const netFarSchema = z.strictObject({ ...netPortsShape, ahead });
export type NetFar = z.infer<typeof netFarSchema>;

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
    /** To be received under already, and to be confirmed; not to be sent with yet. */
    next: nextGeneration,
  }),
  z.strictObject({
    kind: z.literal('group'),
    seq: cursor,
    group: idSchema,
    key: bytesSchema(KEY_SIZE),
    pwId,
    /** The oldest generation that may still be heard. */
    oldest: pwId,
    /** To be received under already, and to be confirmed; not to be sent with yet. */
    next: nextGeneration,
  }),
  /** For link ports: the key with another subnet, which prefixes may be behind it, and the link ports there. */
  z.strictObject({
    kind: z.literal('net'),
    seq: cursor,
    ...netKeyShape,
    ...netPortsShape,
    ahead,
  }),
  /** There is no link with that subnet any more. */
  z.strictObject({ kind: z.literal('net.gone'), seq: cursor, net: idSchema }),
  /** A member that is out for ever; numbers rise by one. */
  z.strictObject({ kind: z.literal('revoked'), seq: cursor, number: revocation, id: idSchema }),
  z.strictObject({ kind: z.literal('settings'), seq: cursor, settings: signedSchema }),
  /** An address that is, or was, a member's own: it never leads to a plain port. */
  z.strictObject({ kind: z.literal('own'), seq: cursor, mac: macSchema }),
  /** It is nobody's any more: the operator freed it. */
  z.strictObject({ kind: z.literal('own.freed'), seq: cursor, mac: macSchema }),
  /** Which plain member an address outside is behind; without `member`, nobody's any more. */
  z.strictObject({
    kind: z.literal('behind'),
    seq: cursor,
    member: idSchema.optional(),
    ...behindShape,
  }),
  /** This MAC address alone announces the IP address. */
  z.strictObject({ kind: z.literal('ip'), seq: cursor, ...bindingSchema.shape }),
  /** Anybody may. */
  z.strictObject({ kind: z.literal('ip.freed'), seq: cursor, ip: ipSchema }),
]);
export type Change = z.infer<typeof changeSchema>;

/** Most questions about pairs, and most confirmations, of one key server to another in one message. */
export const MAX_WANTS = 256;
/** Most addresses outside that it asks for, or tells of, in one. */
export const MAX_SEEKS = 64;
/** Most questions about identities that it passes on, or answers, in one; and their bytes, as `carriedSize` counts them. */
export const MAX_CARRIED_IN_WORD = 32;
export const MAX_CARRIED_BYTES = 131_072;

/** State that is at home at one key server of a subnet, as it tells the others. */
export const homeChangeSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('member'), member: peerRecordSchema }),
  z.strictObject({ kind: z.literal('revoked'), id: idSchema }),
  /** The key of its member `a` and `b`, a member of the receiver. */
  z.strictObject({
    kind: z.literal('pair'),
    a: idSchema,
    b: idSchema,
    key: bytesSchema(KEY_SIZE),
    pwId,
    next: nextGeneration,
  }),
  /** From the subnet's first server alone. */
  z.strictObject({
    kind: z.literal('group'),
    key: bytesSchema(KEY_SIZE),
    pwId,
    oldest: pwId,
    next: nextGeneration,
  }),
]);
export type HomeChange = z.infer<typeof homeChangeSchema>;

/** Names a question until it is answered; drawn at random, so that an answer to one of before a restart fits none. */
const carriedNumber = bytesSchema(8);

/** A question of a member of the speaker about identities of members of the receiver (docs/protocol.md 10.9). */
export const carriedAskSchema = z.discriminatedUnion('is', [
  /** For a membership ticket, and the sealed documents of these. */
  z.strictObject({
    is: z.literal('pairs'),
    no: carriedNumber,
    asker: idSchema,
    ids: z.array(idSchema).max(MAX_IDENTITIES_ASKED),
  }),
  /** To the receiver's KMS, which nobody else can read. */
  z.strictObject({
    is: z.literal('question'),
    no: carriedNumber,
    asker: idSchema,
    message: bytesUpToSchema(MAX_EXCHANGE),
  }),
]);
export type CarriedAsk = z.infer<typeof carriedAskSchema>;

/** What became of one. */
export const carriedAnswerSchema = z.discriminatedUnion('is', [
  z.strictObject({
    is: z.literal('pairs'),
    no: carriedNumber,
    ticket: signedSchema,
    pairs: z.array(namedPairSchema).max(MAX_IDENTITIES_ASKED),
  }),
  z.strictObject({
    is: z.literal('message'),
    no: carriedNumber,
    message: bytesUpToSchema(MAX_EXCHANGE),
  }),
  z.strictObject({
    is: z.literal('no'),
    no: carriedNumber,
    why: z.enum(['refused', 'limit', 'unavailable']),
  }),
]);
export type CarriedAnswer = z.infer<typeof carriedAnswerSchema>;

/** About how many bytes one of them has in a word. */
export function carriedSize(one: CarriedAsk | CarriedAnswer): number {
  const small = 128;
  switch (one.is) {
    case 'question':
    case 'message':
      return small + one.message.length;
    case 'no':
      return small;
    case 'pairs': {
      if ('ids' in one) return small + one.ids.reduce((sum, id) => sum + id.length + 2, 0);
      const sealed = one.pairs.reduce((sum, pair) => {
        return sum + small + pair.document.length + pair.dek.length;
      }, 0);
      return small + sealed + one.ticket.b.length + one.ticket.s.length;
    }
  }
}

/** What two key servers of one subnet say to each other, each in the same form (docs/protocol.md 10.3). */
export const cascadeWordSchema = z.strictObject({
  server: idSchema,
  /** The high 8 bits of the sender indices that it draws. */
  number: z.int().min(0).max(255),
  /** The subnet's first server, as far as the speaker knows. */
  first: idSchema,
  /** Missing, with `settings`, from a server that is only being made. */
  tag: z.int().min(0).max(63).optional(),
  /** Of the speaker's store, and its start (3.8); that one missing from a server that is only being made. */
  epoch: bytesSchema(8),
  run: bytesSchema(8).optional(),
  /** The subnet's time, as the speaker has it. */
  time: z.int().nonnegative(),
  /** How far that time is ahead of the speaker's clock, ms. */
  skewMs: z.int().optional(),
  settings: signedSchema.optional(),
  /** Up to where the speaker has the receiver's state, of which store, and which start of it. */
  have: z.strictObject({ epoch: bytesSchema(8), cursor, run: bytesSchema(8).optional() }),
  /** What is new since; `from` is what the receiver had said of itself. */
  state: z
    .strictObject({
      from: cursor,
      cursor,
      more: z.boolean(),
      changes: z.array(homeChangeSchema).max(MAX_ROWS),
    })
    .optional(),
  /** The speaker's members want the key with a member of the receiver, who makes it. */
  wants: z
    .array(
      z.strictObject({
        asker: idSchema,
        peer: idSchema,
        /** Make it if there is none. */
        make: z.boolean(),
        /** This generation is nearly used up. */
        worn: pwId.optional(),
      }),
    )
    .max(MAX_WANTS),
  /** The speaker's members can receive under these next generations. */
  confirms: z.array(z.strictObject({ a: idSchema, b: idSchema, pwId })).max(MAX_WANTS),
  /** The speaker's members look for these addresses, which may be behind plain ports of the receiver. */
  seeks: z.array(z.strictObject({ vlan: vlanSchema, mac: macSchema })).max(MAX_SEEKS),
  /** Where addresses are that the receiver has asked for; without `member`, behind none of the speaker's. */
  places: z
    .array(
      z.strictObject({
        ...{ vlan: vlanSchema, mac: macSchema, member: idSchema.optional() },
        pinned: z.boolean(),
      }),
    )
    .max(MAX_SEEKS),
  /** All holders there can receive under this next generation of the group key. */
  group: z
    .strictObject({
      ...{ confirmed: pwId.optional(), worn: pwId.optional() },
      /** It has this generation, and was told an older one, or another key with its number. */
      held: pwId.optional(),
    })
    .optional(),
  /** The same of keys that the receiver makes: it forgot these generations. */
  held: z
    .array(z.strictObject({ a: idSchema, b: idSchema, pwId }))
    .max(MAX_WANTS)
    .optional(),
  /** The speaker's members ask about identities of the receiver's, and answers to what those of the receiver have asked. */
  asks: z.array(carriedAskSchema).max(MAX_CARRIED_IN_WORD).optional(),
  answers: z.array(carriedAnswerSchema).max(MAX_CARRIED_IN_WORD).optional(),
});
export type CascadeWord = z.infer<typeof cascadeWordSchema>;

export const LISTS = ['members', 'keys', 'macs', 'ips', 'nets', 'audit'] as const;
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
    /** The last revocation that this member knows: a server that knows less was put back. */
    revocation: revocation.optional(),
    /** The highest head of the server's audit log that this member knows. */
    audit: signedSchema.optional(),
  }),
  /** Where this member's data plane may be reached. */
  z.strictObject({
    t: z.literal('endpoints'),
    id: requestId,
    endpoints: z.array(endpointSchema).max(MAX_ENDPOINTS),
    /** What the relay said of our address (docs/protocol.md section 2.6). */
    receipt: bytesSchema(RECEIPT_SIZE).optional(),
  }),
  /** A membership ticket for the KMS, and the sealed identity documents of these members. */
  z.strictObject({
    t: z.literal('identity.get'),
    id: requestId,
    ids: z.array(idSchema).max(MAX_IDENTITIES_ASKED),
    /** The key server where these are at home, and whose KMS the ticket is for; missing: the one that is asked. */
    home: idSchema.optional(),
  }),
  /** The asker's own identity document, as the KMS has sealed it. */
  z.strictObject({ t: z.literal('identity.put'), id: requestId, ...sealedPairSchema.shape }),
  /** A question to the KMS, which nobody else can read (kms-exchange.ts). */
  z.strictObject({
    t: z.literal('kms.exchange'),
    id: requestId,
    message: bytesUpToSchema(MAX_EXCHANGE),
    /** The key server whose KMS it is; missing: the one that is asked. */
    home: idSchema.optional(),
  }),
  /** (requester, destination MAC), the sender's question. */
  z.strictObject({
    t: z.literal('key.mac'),
    id: requestId,
    requester: idSchema,
    mac: macSchema,
    /** VLAN id of the frame; matters for addresses outside. */
    vlan: vlanSchema.optional(),
    pwId: pwId.optional(),
    /** The generation that we hold is nearly used up. */
    worn: z.boolean().optional(),
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
  /** The asker can receive under these next generations. */
  z.strictObject({
    t: z.literal('key.confirm'),
    id: requestId,
    pairs: z.array(z.strictObject({ peer: idSchema, pwId })).max(MAX_ROWS),
    /** The same of the group key. */
    group: pwId.optional(),
    /** The same of net keys. */
    nets: z
      .array(z.strictObject({ net: idSchema, pwId }))
      .max(MAX_NETS)
      .optional(),
  }),
  /**
   * A key server speaks for another subnet: what is behind it, and the newest generation that it holds (0: none)
   * with a mark of its key. The answer is the net key of the two subnets as it stands.
   */
  z.strictObject({
    t: z.literal('net.sync'),
    id: requestId,
    net: idSchema,
    prefixes,
    held: z.union([z.literal(0), pwId]),
    mark: bytesSchema(NET_MARK_SIZE).optional(),
    ...netPortsShape,
  }),
  /** A link port has seen a frame between subnets with an index or kid that it does not know: the other servers are asked. */
  z.strictObject({
    t: z.literal('key.net'),
    id: requestId,
    requester: idSchema,
    index,
    kid: z.int().min(0).max(0xffff),
  }),
  /** All link ports of the asker's subnet that are there can receive under this next generation. */
  z.strictObject({ t: z.literal('net.confirm'), id: requestId, net: idSchema, pwId }),
  /** The operator of the asker's subnet wants another net key. */
  z.strictObject({ t: z.literal('net.rekey'), id: requestId, net: idSchema, force: z.boolean() }),
  /** The asker's subnet is linked with this one no more. */
  z.strictObject({ t: z.literal('net.end'), id: requestId, net: idSchema }),
  /**
   * Generations that the asker holds and that the server can't have made after those it names: its database was
   * put back. It makes others above them.
   */
  z.strictObject({
    t: z.literal('key.held'),
    id: requestId,
    pairs: z.array(z.strictObject({ peer: idSchema, pwId })).max(MAX_ROWS),
    group: pwId.optional(),
  }),
  /** (requester, sender index, newest pwId): that peer still sends with an older generation. */
  z.strictObject({
    t: z.literal('key.notice'),
    id: requestId,
    requester: idSchema,
    index,
    pwId,
  }),
  /** Another key server of this subnet tells what is new there, and asks what is new here. */
  z.strictObject({ t: z.literal('cascade.sync'), id: requestId, word: cascadeWordSchema }),
  /** Renews the key of a pair, of all pairs of a member, of all pairs, of the group, or with one other subnet or all. */
  z.strictObject({
    t: z.literal('rekey'),
    id: requestId,
    a: idSchema.optional(),
    b: idSchema.optional(),
    group: z.boolean().optional(),
    net: z.union([idSchema, z.literal(true)]).optional(),
    force: z.boolean(),
  }),
  /** Takes a member out, for ever. */
  z.strictObject({ t: z.literal('revoke'), id: requestId, member: idSchema }),
  /** Peers with the key server that made this token; `prefixes` are what may be behind its net. */
  z.strictObject({
    t: z.literal('peer.add'),
    id: requestId,
    token: z.string().max(16_384),
    /** Missing for another key server of this subnet. */
    prefixes: prefixes.optional(),
  }),
  /** Ends what `peer.add` began. */
  /** `agreed`: also if that makes another key server the subnet's first one. */
  z.strictObject({
    ...{ t: z.literal('peer.remove'), id: requestId, net: idSchema },
    agreed: z.boolean().optional(),
  }),
  /** The operator knows that the database was put back and has revoked again whom it forgot. */
  z.strictObject({ t: z.literal('restore.confirm'), id: requestId }),
  /** How the stored keys are sealed. */
  z.strictObject({ t: z.literal('kms.status'), id: requestId }),
  /** Seals all stored keys by another DEK; with `root`, that by another root key. */
  z.strictObject({ t: z.literal('kms.rotate'), id: requestId, root: z.boolean() }),
  /** What changed since the cursor; also renews the lease. `epoch` and `run` are those of the cursors. */
  z.strictObject({
    t: z.literal('sync'),
    id: requestId,
    cursor,
    /** The same of addresses outside and of members' own, for whoever deals with plain ports. */
    plain: cursor.optional(),
    epoch: bytesSchema(8).optional(),
    run: bytesSchema(8).optional(),
  }),
  /** What the asker's plain port has seen, and what it has not seen for long. */
  z.strictObject({
    t: z.literal('learned'),
    id: requestId,
    entries: z.array(sightingSchema).max(MAX_REPORTED),
    gone: z
      .array(z.strictObject({ vlan: vlanSchema, mac: bytesSchema(MAC_SIZE) }))
      .max(MAX_REPORTED),
  }),
  /** Ties an address outside to one plain member. */
  z.strictObject({
    t: z.literal('mac.pin'),
    id: requestId,
    vlan: vlanSchema,
    mac: macSchema,
    member: idSchema,
  }),
  /** Frees an address: the tombstone of one that was a member's own, or what ties it to a plain member. */
  z.strictObject({ t: z.literal('mac.free'), id: requestId, mac: macSchema }),
  /** IP addresses that the asker's own MAC addresses announce. */
  z.strictObject({
    t: z.literal('bind'),
    id: requestId,
    entries: z.array(bindingSchema).max(MAX_BOUND),
  }),
  /** What the asker's gateway refused. */
  z.strictObject({
    t: z.literal('guarded'),
    id: requestId,
    entries: z.array(guardedSchema).max(MAX_GUARDED),
  }),
  /** Ties an IP address to a MAC address, of a member or outside. */
  z.strictObject({ t: z.literal('ip.pin'), id: requestId, ...bindingSchema.shape }),
  /** Frees an IP address that was pinned, or that a member has announced. */
  z.strictObject({ t: z.literal('ip.free'), id: requestId, ip: ipSchema }),
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
    /** It has the asker's identity document as a KMS sealed it. */
    sealed: z.boolean().optional(),
    /** The log has not the head that was named: what it has in its place. */
    audit: signedSchema.optional(),
  }),
  endpoints: z.object({
    t: z.literal('ok'),
    id: requestId,
    /** Where the relay is, and a ticket to register there. */
    relay: z
      .object({
        addresses: z.array(endpointSchema).max(MAX_RELAY_ADDRESSES),
        index,
        notAfter: z.int().nonnegative(),
        ticket: bytesSchema(RELAY_KEY_SIZE),
      })
      .optional(),
  }),
  'identity.get': z.object({
    t: z.literal('ok'),
    id: requestId,
    ticket: signedSchema,
    /** Those that there are. */
    pairs: z.array(namedPairSchema).max(MAX_IDENTITIES_ASKED),
  }),
  'identity.put': z.object({ t: z.literal('ok'), id: requestId }),
  'kms.exchange': z.object({
    t: z.literal('ok'),
    id: requestId,
    message: bytesUpToSchema(MAX_EXCHANGE),
  }),
  'key.mac': z.discriminatedUnion('kind', [
    z.object({
      t: z.literal('ok'),
      id: requestId,
      kind: z.literal('pair'),
      peer: peerRecordSchema,
      key: bytesSchema(KEY_SIZE),
      pwId,
      /** The address is not the peer's own but lies behind it. */
      behind: behindSchema.optional(),
    }),
    z.object({
      t: z.literal('ok'),
      id: requestId,
      kind: z.literal('group'),
      group: idSchema,
      key: bytesSchema(KEY_SIZE),
      pwId,
      oldest: pwId,
      /** For a receiver's question: the sender of the frame. */
      peer: peerRecordSchema.optional(),
    }),
  ]),
  'key.confirm': z.object({ t: z.literal('ok'), id: requestId }),
  'key.notice': z.object({ t: z.literal('ok'), id: requestId }),
  'net.sync': z.object({
    t: z.literal('ok'),
    id: requestId,
    /** `net`: the subnet that answers. */
    ...netKeyShape,
    ...netPortsShape,
    ahead,
  }),
  'key.net': z.object({ t: z.literal('ok'), id: requestId }),
  'net.confirm': z.object({ t: z.literal('ok'), id: requestId }),
  'net.rekey': z.object({ t: z.literal('ok'), id: requestId, pwId }),
  'cascade.sync': z.object({ t: z.literal('ok'), id: requestId, word: cascadeWordSchema }),
  'peer.add': z.object({
    t: z.literal('ok'),
    id: requestId,
    net: idSchema,
    server: idSchema.optional(),
    member: idSchema,
  }),
  'net.end': z.object({ t: z.literal('ok'), id: requestId }),
  /** `told`: the key server of that net knows that the link has ended; nothing for one of this subnet. */
  'peer.remove': z.object({ t: z.literal('ok'), id: requestId, told: z.boolean().optional() }),
  'key.held': z.object({ t: z.literal('ok'), id: requestId }),
  rekey: z.object({
    t: z.literal('ok'),
    id: requestId,
    pairs: z.int().nonnegative(),
    /** Number of the group's generation. */
    group: pwId.optional(),
    /** Net keys that are renewed, or whose maker was asked. */
    nets: z.int().nonnegative().optional(),
  }),
  revoke: z.object({
    t: z.literal('ok'),
    id: requestId,
    number: revocation,
    /** False if the member was revoked already. */
    fresh: z.boolean(),
    /** It was another key server of this subnet. */
    server: idSchema.optional(),
  }),
  'restore.confirm': z.object({ t: z.literal('ok'), id: requestId, revocation }),
  'kms.status': z.object({
    t: z.literal('ok'),
    id: requestId,
    connected: z.boolean(),
    generations: z.array(z.int().positive()).max(1_024),
    /** Those of them that are in a PKCS#11 token. */
    inToken: z.array(z.int().positive()).max(1_024).default([]),
    /** Requests of all key servers that went over a limit of kms.yaml, since the KMS began. */
    limited: z.int().nonnegative().default(0),
    limitedBy: kmsLimitedSchema.default(NOT_LIMITED),
    /** Bytes of the file of its log that it writes to. */
    auditBytes: z.int().nonnegative().default(0),
    /** Full files of it that are kept. */
    auditFiles: z.int().nonnegative().default(0),
    /** Entries of it that are gone. */
    auditGone: z.int().nonnegative().default(0),
    deks: z.int().nonnegative(),
    since: z.int().nonnegative(),
    resealing: z.boolean(),
    resealed: z.int().nonnegative(),
    /** Keys that the active DEK has sealed, at most. */
    seals: z.int().nonnegative().default(0),
    broken: z.int().nonnegative(),
    /** Rows of the database that are not what was written. */
    brokenRows: z.int().nonnegative().default(0),
    /** Who has seen entries that the audit log of the key server lacks. */
    auditContradictions: z.int().nonnegative().default(0),
  }),
  'kms.rotate': z.object({ t: z.literal('ok'), id: requestId, generation: z.int().positive() }),
  sync: z.object({
    t: z.literal('ok'),
    id: requestId,
    epoch: bytesSchema(8),
    /** The start of the server that gave this cursor. */
    run: bytesSchema(8),
    changes: z.array(changeSchema).max(MAX_ROWS),
    cursor,
    /** The cursor of `plain`; missing if that does not concern the asker. */
    plain: cursor.optional(),
    /** More changes wait: ask again at once. */
    more: z.boolean(),
    /** The head of the server's audit log. */
    audit: signedSchema.optional(),
  }),
  learned: z.object({
    t: z.literal('ok'),
    id: requestId,
    /** Entries that were not taken. */
    refused: z.int().nonnegative(),
  }),
  'mac.pin': z.object({ t: z.literal('ok'), id: requestId }),
  'mac.free': z.object({
    t: z.literal('ok'),
    id: requestId,
    tombstones: z.int().nonnegative(),
    pins: z.int().nonnegative(),
  }),
  bind: z.object({
    t: z.literal('ok'),
    id: requestId,
    /** Those that were not taken. */
    refused: z.array(ipSchema).max(MAX_BOUND),
  }),
  guarded: z.object({ t: z.literal('ok'), id: requestId }),
  'ip.pin': z.object({ t: z.literal('ok'), id: requestId }),
  'ip.free': z.object({
    t: z.literal('ok'),
    id: requestId,
    /** What it was. */
    was: z.enum(['pinned', 'seen']),
    mac: macSchema,
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
export type RelayOffer = NonNullable<z.infer<(typeof answerSchemas)['endpoints']>['relay']>;
export type NetSyncAnswer = z.infer<(typeof answerSchemas)['net.sync']>;
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
    /** The head of the server's audit log. */
    audit: signedSchema.optional(),
  }),
  /** Another live session of this id exists (a cloned disk): stop, do not retry. */
  z.strictObject({ t: z.literal('duplicate') }),
  /** To a key server of another subnet: something about the net key has changed; ask. */
  z.strictObject({ t: z.literal('net') }),
  /** To another key server of this subnet: something is new here; ask. */
  z.strictObject({ t: z.literal('cascade') }),
]);
export type Push = z.infer<typeof pushSchema>;
