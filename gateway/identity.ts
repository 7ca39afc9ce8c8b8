/**
 * Who this gateway is: the identity (Ed25519 signs boot records, X25519 is for messages), the
 * key of its secure channel, and the membership that binds both to the operator's grant.
 * Private keys stay in files of mode 0600; a file that others may read is refused.
 */
import type { KeyObject } from 'node:crypto';
import { existsSync } from 'node:fs';
import { encode } from '@msgpack/msgpack';
import { decodeMessage } from '../src/protocol/channel/codec.js';
import type { KeyPair } from '../src/protocol/channel/keys.js';
import { KEY_SIZE } from '../src/protocol/constants.js';
import type { Id } from '../src/protocol/ids.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
  publicOf,
} from '../src/protocol/public-keys.js';
import {
  signMembership as signWith,
  type VerifiedMember,
  verifyMembership,
} from '../src/protocol/records.js';
import { type Signed, signedSchema } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import {
  readKeyFile,
  readSecretFile,
  writeFileAtomic,
  writeKeyFile,
} from '../src/runtime/files.js';
import type { GatewayPaths } from './paths.js';

/** The private keys of a gateway. */
export interface GatewayKeys {
  readonly sign: KeyObject;
  readonly signPublic: Buffer;
  readonly boxPublic: Buffer;
  /** Static X25519 key of the secure channel. */
  readonly channel: KeyPair;
}

/** Keys and the membership, verified against the operator's key. */
export interface GatewayIdentity {
  readonly keys: GatewayKeys;
  readonly membership: Signed;
  readonly member: VerifiedMember;
}

/** Makes the keys where they are missing, and reads them. A second call finds the same keys. */
export function makeKeys(paths: GatewayPaths): GatewayKeys {
  if (!existsSync(paths.identity)) {
    const sign = generateRawKeyPair('ed25519');
    const box = generateRawKeyPair('x25519');
    const both = Buffer.concat([sign.privateKey, box.privateKey]);
    writeKeyFile(paths.identity, 'identity', both);
    for (const secret of [sign.privateKey, box.privateKey, both]) secret.fill(0);
  }
  if (!existsSync(paths.channel)) {
    const channel = generateRawKeyPair('x25519');
    writeKeyFile(paths.channel, 'channel', channel.privateKey);
    channel.privateKey.fill(0);
  }
  return readKeys(paths);
}

/** Reads the keys. @throws PairwireError FILE_UNREADABLE or FILE_MODE */
export function readKeys(paths: GatewayPaths): GatewayKeys {
  const both = readKeyFile(paths.identity, 'identity', { size: 2 * KEY_SIZE });
  const rawChannel = readKeyFile(paths.channel, 'channel');
  const channel = importPrivate('x25519', rawChannel);
  const sign = importPrivate('ed25519', both.subarray(0, KEY_SIZE));
  const box = importPrivate('x25519', both.subarray(KEY_SIZE));
  both.fill(0);
  rawChannel.fill(0);
  return {
    sign,
    signPublic: publicOf(sign),
    boxPublic: publicOf(box),
    channel: { privateKey: channel, publicKey: publicOf(channel) },
  };
}

/** Signs identity document and membership for a grant. */
export function signMembership(subnet: Id, id: Id, grant: Signed, keys: GatewayKeys): Signed {
  const { sign, signPublic, boxPublic, channel } = keys;
  return signWith(subnet, id, grant, {
    sign,
    signPublic,
    boxPublic,
    channelPublic: channel.publicKey,
  });
}

/** Stores a membership. */
export function writeMembership(paths: GatewayPaths, membership: Signed): void {
  writeFileAtomic(paths.membership, encode(membership));
}

/** Reads a stored membership without judging it. @throws PairwireError FILE_UNREADABLE */
export function readMembership(paths: GatewayPaths): Signed {
  const parsed = signedSchema.safeParse(decodeOrUndefined(readSecretFile(paths.membership)));
  if (!parsed.success) {
    throw new PairwireError('FILE_UNREADABLE', 'this is not a membership', {
      where: paths.membership,
      hint: 'join again: pairwire join --dir DIR TOKEN',
    });
  }
  return parsed.data;
}

/** Reads keys and membership and checks that they fit the configuration. */
export function loadIdentity(
  paths: GatewayPaths,
  subnet: Id,
  id: Id,
  operator: Uint8Array,
): GatewayIdentity {
  const keys = readKeys(paths);
  const membership = readMembership(paths);
  const member = verifyMembership(subnet, membership, importPublic('ed25519', operator));
  if (member.id !== id) {
    throw new PairwireError('RECORD_MISMATCH', `the membership is of ${member.id}, not ${id}`, {
      where: paths.membership,
      hint: `write member: ${member.id} in gateway.yaml, or join again`,
    });
  }
  const own =
    keys.signPublic.equals(member.identity.sign) && keys.channel.publicKey.equals(member.channel);
  if (!own) {
    throw new PairwireError('RECORD_MISMATCH', 'the membership was made with other keys', {
      where: paths.membership,
      hint: 'restore identity.key and channel.key, or join again in an empty directory',
    });
  }
  return { keys, membership, member };
}

function decodeOrUndefined(bytes: Uint8Array): unknown {
  try {
    return decodeMessage(bytes);
  } catch {
    return undefined;
  }
}
