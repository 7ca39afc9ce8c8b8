/**
 * What the operator and members sign, docs/protocol.md section 5: grants, identity documents,
 * memberships, boot records, settings. Gateways and key server verify with the same code.
 */
import { createHash, type KeyObject } from 'node:crypto';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { KEY_SIZE, LABEL, SUITES } from './constants.js';
import { type Id, idSchema } from './ids.js';
import {
  defaultMac,
  isVirtualRouterMac,
  type MacAddress,
  macSchema,
  whyNotOwnable,
} from './mac.js';
import { MAX_TAGS, policySchema, tagSchema } from './policy.js';
import { isPrefix } from './prefixes.js';
import { importPublic } from './public-keys.js';
import {
  bytesSchema,
  openSigned,
  readUnverified,
  type Signed,
  signedSchema,
  signRecord,
} from './signed.js';

export const ROLES = ['host', 'plain', 'link', 'server', 'operator', 'viewer'] as const;
export type Role = (typeof ROLES)[number];
/** Roles that take part in traffic: only these have peers and are somebody's peer. */
export const TALKER_ROLES: readonly Role[] = ['host', 'plain', 'link'];

export const RIGHTS = ['router', 'dhcp', 'shared'] as const;
export type Right = (typeof RIGHTS)[number];

/** KMSes that settings name: one for each key server of a subnet. */
const MAX_NAMED_KMS = 64;
const MAX_MACS = 64;
const MAX_IPS = 64;

const timeSchema = z.int().nonnegative();

/** An IPv4 or IPv6 address or prefix, as text. */
export const prefixSchema = z
  .union([z.cidrv4(), z.cidrv6(), z.ipv4(), z.ipv6()])
  .refine(isPrefix, 'is no IP prefix');

export const grantSchema = z.strictObject({
  subnet: idSchema,
  tokenId: bytesSchema(16),
  /** The member's id; ends with `*` where one token serves several ids with this beginning. */
  id: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,61}\*?$/),
  role: z.enum(ROLES),
  /** The server where the id is at home (for cascaded servers). */
  home: idSchema,
  macs: z.array(macSchema).max(MAX_MACS),
  ips: z.array(prefixSchema).max(MAX_IPS),
  rights: z.array(z.enum(RIGHTS)),
  /** What a policy may call its member. */
  tags: z.array(tagSchema).max(MAX_TAGS).optional(),
  /** Of a key server of another subnet (role server): the net id that it speaks for; `ips` are that net's prefixes. */
  net: idSchema.optional(),
  /** Of another key server of this subnet (role server): the server id that it speaks for. */
  server: idSchema.optional(),
  uses: z.int().min(1).max(1_000_000),
  notAfter: timeSchema,
});
/** What the operator key signed: who may be a member with which rights. */
export type Grant = z.infer<typeof grantSchema>;

export const identitySchema = z.strictObject({
  subnet: idSchema,
  id: idSchema,
  sign: bytesSchema(KEY_SIZE),
  box: bytesSchema(KEY_SIZE),
});
/** A member's two public keys: Ed25519 for boot records, X25519 for messages. */
export type Identity = z.infer<typeof identitySchema>;

export const membershipSchema = z.strictObject({
  grant: signedSchema,
  identity: signedSchema,
  channel: bytesSchema(KEY_SIZE),
});
export type Membership = z.infer<typeof membershipSchema>;

export const bootRecordSchema = z.strictObject({
  subnet: idSchema,
  id: idSchema,
  boot: bytesSchema(KEY_SIZE),
  sequence: z.int().positive(),
  macs: z.array(macSchema).max(MAX_MACS),
  notAfter: timeSchema,
});
/** One start of a data plane, signed by the member's identity. */
export type BootRecord = z.infer<typeof bootRecordSchema>;

export const settingsSchema = z.strictObject({
  subnet: idSchema,
  version: z.int().positive(),
  suite: z.enum(SUITES),
  /** Largest difference between the time in a frame and ours, ms; 0 turns the check off. */
  freshnessMs: z.int().min(0).max(3_600_000),
  /** Frames held for each destination while its key is fetched; 0 is the documents' own rule: drop and ask. */
  hold: z.int().min(0).max(1024),
  /** How long a gateway that hears nothing from its key server goes on using keys, s. */
  leaseSeconds: z.int().min(10).max(31_536_000),
  /** After how long a pair key is renewed, s, give or take a tenth; 0: never by age. */
  rekeySeconds: z
    .int()
    .refine((seconds) => seconds === 0 || (seconds >= 10 && seconds <= 31_536_000))
    .default(3_600),
  /** After how long a gateway makes a fresh boot key, s, give or take a tenth; 0: only when its data plane starts. */
  bootSeconds: z
    .int()
    .refine((seconds) => seconds === 0 || (seconds >= 30 && seconds <= 31_536_000))
    .default(3_600),
  /** Whether identity documents of peers unknown so far are compared with the KMS's (docs/protocol.md 11.6), where `kms` names one. */
  verify: z.enum(['verify', 'off']),
  /** The KMS of each key server, by its public channel key; without it nothing is compared. */
  kms: z
    .array(z.strictObject({ server: idSchema, key: bytesSchema(KEY_SIZE) }))
    .max(MAX_NAMED_KMS)
    .optional(),
  group: z.strictObject({
    mode: z.enum(['shared', 'pairwise']),
    /** Receivers up to which the sender itself replicates group frames over `udp`. */
    replicate: z.int().min(1).max(4096),
    /** When the group key is renewed but for an operator's order: never, as in the documents; when a member is revoked; then and after so many seconds. */
    rekey: z
      .union([z.enum(['never', 'on-revoke']), z.int().min(10).max(31_536_000)])
      .default(86_400),
  }),
  /** Where frames go that are for an address nobody knows: to the default plain port, or nowhere. */
  unknown: z.enum(['plain', 'refuse']),
  plain: z
    .strictObject({
      /** The default plain port; without it, the one with the lowest id that is online. */
      default: idSchema.optional(),
    })
    .default({}),
  /** Who may have keys with whom; without it everybody with everybody. */
  policy: policySchema.optional(),
});
/** A subnet's security settings: versioned, signed by the operator; gateways take only newer ones. */
export type Settings = z.infer<typeof settingsSchema>;

/** The KMS that has the identity documents of members at home at a key server; undefined if the settings name none. */
export function kmsOf({ kms }: Pick<Settings, 'kms'>, home: Id): Uint8Array | undefined {
  return kms?.find(({ server }) => server === home)?.key;
}

/** A membership whose every signature held. */
export interface VerifiedMember {
  readonly id: Id;
  readonly role: Role;
  readonly grant: Grant;
  readonly identity: Identity;
  readonly channel: Uint8Array;
  readonly macs: readonly MacAddress[];
  /** Verifies this member's boot records. */
  readonly signKey: KeyObject;
  /** The identity document as it was signed. */
  readonly document: Signed;
  /** SHA-256 of it: what gateways pin, and the KMS remembers. */
  readonly identityDigest: Buffer;
}

/** SHA-256 of an identity document: its body, then its signature. */
export function identityDigest({ b, s }: Signed): Buffer {
  return createHash('sha256').update(b).update(s).digest();
}

/**
 * Verifies grant (operator), identity document (itself) and membership (identity), and that the
 * three name the same subnet and id. The grant's expiry limits enrolment, not membership, so only the key
 * server checks it (`requireGrantValid`).
 * @throws PairwireError RECORD_SIGNATURE, RECORD_MALFORMED or RECORD_MISMATCH
 */
export function verifyMembership(subnet: Id, record: Signed, operator: KeyObject): VerifiedMember {
  const membership = readUnverified(LABEL.member, record, membershipSchema);
  const identityBody = readUnverified(LABEL.identity, membership.identity, identitySchema);
  const signKey = importPublic('ed25519', identityBody.sign);
  const identity = openSigned(LABEL.identity, membership.identity, signKey, identitySchema);
  openSigned(LABEL.member, record, signKey, membershipSchema);
  const grant = openSigned(LABEL.grant, membership.grant, operator, grantSchema);
  if (grant.subnet !== subnet || identity.subnet !== subnet) {
    throw new PairwireError('RECORD_MISMATCH', 'a membership is of another subnet', {
      where: identity.id,
    });
  }
  if (!grantCovers(grant, identity.id)) {
    throw new PairwireError(
      'RECORD_MISMATCH',
      'a grant does not cover the id of the identity document',
      {
        where: identity.id,
      },
    );
  }
  return {
    id: identity.id,
    role: grant.role,
    grant,
    identity,
    channel: membership.channel,
    macs: ownMacs(grant, identity.id),
    signKey,
    document: membership.identity,
    identityDigest: identityDigest(membership.identity),
  };
}

/** Who signs a membership: the identity's keys and the channel's. */
export interface MembershipKeys {
  readonly sign: KeyObject;
  readonly signPublic: Uint8Array;
  readonly boxPublic: Uint8Array;
  readonly channelPublic: Uint8Array;
}

/** Signs identity document and membership for a grant. */
export function signMembership(subnet: Id, id: Id, grant: Signed, keys: MembershipKeys): Signed {
  const identity: Identity = { subnet, id, sign: keys.signPublic, box: keys.boxPublic };
  const membership: Membership = {
    grant,
    identity: signRecord(LABEL.identity, identity, keys.sign),
    channel: keys.channelPublic,
  };
  return signRecord(LABEL.member, membership, keys.sign);
}

/** True if the grant is for this id. */
export function grantCovers(grant: Grant, id: Id): boolean {
  if (!grant.id.endsWith('*')) return grant.id === id;
  const stem = grant.id.slice(0, -1);
  return id.startsWith(stem) && id.length > stem.length;
}

/** The addresses that a grant gives to an id: those it names, else the default one. */
export function ownMacs(grant: Grant, id: Id): readonly MacAddress[] {
  const macs = grant.macs.length > 0 ? grant.macs : [defaultMac(grant.subnet, id)];
  for (const mac of macs) {
    const why = whyNotOwnable(mac);
    // `shared` is for virtual routers; a group address can't be anybody's, whatever a grant says.
    if (why !== undefined && !(grant.rights.includes('shared') && isVirtualRouterMac(mac))) {
      throw new PairwireError('RECORD_MISMATCH', `${mac} ${why}, so no grant may name it`, {
        where: id,
      });
    }
  }
  return macs;
}

/** Refuses a grant after its expiry. @throws PairwireError RECORD_EXPIRED */
export function requireGrantValid(grant: Grant, nowMs: number): void {
  if (grant.notAfter < nowMs) {
    throw new PairwireError('RECORD_EXPIRED', 'the join token has expired', {
      hint: 'ask the operator for a new one: pairwire token',
    });
  }
}

/**
 * Verifies a boot record against the member it must belong to.
 * @param highest the highest sequence seen of this member, 0 if none: an older record is a rollback
 * @throws PairwireError RECORD_SIGNATURE, RECORD_MALFORMED, RECORD_MISMATCH, RECORD_EXPIRED or RECORD_ROLLBACK
 */
export function verifyBoot(
  member: VerifiedMember,
  record: Signed,
  nowMs: number,
  highest: number,
): BootRecord {
  const boot = openSigned(LABEL.boot, record, member.signKey, bootRecordSchema);
  requireBootOf(member, boot, nowMs, highest);
  return boot;
}

/**
 * What `verifyBoot` asks of a boot record beyond its signature: of one whose signature was verified before, all that can have changed.
 * @throws PairwireError RECORD_MISMATCH, RECORD_EXPIRED or RECORD_ROLLBACK
 */
export function requireBootOf(
  member: VerifiedMember,
  boot: BootRecord,
  nowMs: number,
  highest: number,
): void {
  if (boot.subnet !== member.grant.subnet || boot.id !== member.id) {
    throw new PairwireError('RECORD_MISMATCH', 'a boot record is of another member', {
      where: member.id,
    });
  }
  if (boot.macs.some((mac) => !member.macs.includes(mac))) {
    throw new PairwireError(
      'RECORD_MISMATCH',
      'a boot record names an address that was not granted',
      {
        where: member.id,
      },
    );
  }
  if (boot.notAfter < nowMs) {
    throw new PairwireError('RECORD_EXPIRED', 'a boot record has expired', { where: member.id });
  }
  if (boot.sequence < highest) {
    throw new PairwireError('RECORD_ROLLBACK', 'a boot record is older than one seen before', {
      where: member.id,
    });
  }
}

/** Verifies the operator's settings and that they are not older than `atLeast`. */
export function verifySettings(
  subnet: Id,
  record: Signed,
  operator: KeyObject,
  atLeast: number,
): Settings {
  const settings = openSigned(LABEL.settings, record, operator, settingsSchema);
  if (settings.subnet !== subnet) {
    throw new PairwireError('RECORD_MISMATCH', 'the settings are of another subnet');
  }
  if (settings.version < atLeast) {
    throw new PairwireError('RECORD_ROLLBACK', 'the settings are older than those seen before');
  }
  return settings;
}
