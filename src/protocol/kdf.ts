/**
 * Traffic keys, docs/protocol.md section 3, on @noble. The data plane has its own
 * implementation; this one serves the tests and tools that check it byte for byte
 * (test/vectors/kdf.json is made from here).
 */
import { x25519 } from '@noble/curves/ed25519.js';
import { expand, extract } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { fields } from './fields.js';
import { typedId } from './ids.js';

/** A traffic key and the 16 bits that name it on the wire. */
export interface TrafficKey {
  readonly key: Uint8Array;
  readonly kid: number;
}

/** One end of a pair: id and boot public key. */
export interface End {
  readonly id: string;
  readonly boot: Uint8Array;
}

/** The key for frames from `from` to `to`. Either end computes it: `ownBootPrivate` belongs to one, `peerBoot` to the other. */
export function pairTrafficKey(input: {
  readonly pairKey: Uint8Array;
  readonly ownBootPrivate: Uint8Array;
  readonly peerBoot: Uint8Array;
  readonly subnet: string;
  readonly from: End;
  readonly to: End;
  readonly pwId: bigint;
}): TrafficKey {
  const secret = extract(sha256, sharedSecret(input.ownBootPrivate, input.peerBoot), input.pairKey);
  const info = fields(
    LABEL.pair,
    input.subnet,
    typedId('member', input.from.id),
    typedId('member', input.to.id),
    input.from.boot,
    input.to.boot,
    input.pwId,
  );
  return derive(secret, info);
}

/** The key for frames between two link ports; ids are `NETID/PORT`. */
export function netTrafficKey(input: {
  readonly netKey: Uint8Array;
  readonly ownBootPrivate: Uint8Array;
  readonly peerBoot: Uint8Array;
  readonly from: End;
  readonly to: End;
  readonly pwId: bigint;
}): TrafficKey {
  const secret = extract(sha256, sharedSecret(input.ownBootPrivate, input.peerBoot), input.netKey);
  const info = fields(
    LABEL.net,
    typedId('net', input.from.id),
    typedId('net', input.to.id),
    input.from.boot,
    input.to.boot,
    input.pwId,
  );
  return derive(secret, info);
}

/** The key for group frames of one sender. */
export function groupTrafficKey(input: {
  readonly groupKey: Uint8Array;
  readonly subnet: string;
  readonly from: End;
  readonly pwId: bigint;
}): TrafficKey {
  const secret = extract(sha256, input.groupKey, new Uint8Array(0));
  const info = fields(
    LABEL.group,
    input.subnet,
    typedId('member', input.from.id),
    input.from.boot,
    input.pwId,
  );
  return derive(secret, info);
}

/** X25519 (RFC 7748). @throws Error for a low-order point, whose result is all zero */
function sharedSecret(own: Uint8Array, peer: Uint8Array): Uint8Array {
  return x25519.getSharedSecret(own, peer);
}

function derive(secret: Uint8Array, info: Uint8Array): TrafficKey {
  const kid = expand(sha256, secret, Buffer.concat([fields(LABEL.kid), info]), 2);
  return {
    key: expand(sha256, secret, info, KEY_SIZE),
    kid: Buffer.from(kid).readUInt16BE(0),
  };
}
