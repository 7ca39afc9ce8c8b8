/** Traffic keys (docs/protocol.md section 3) against node:crypto, an implementation independent of @noble. */
import {
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  hkdfSync,
} from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { fields } from '../../../../src/protocol/fields.js';
import { groupTrafficKey, pairTrafficKey } from '../../../../src/protocol/kdf.js';
import { probeKey } from '../../../../src/protocol/probe.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
  publicOf,
} from '../../../../src/protocol/public-keys.js';

const schema = z.object({
  pair: z.array(
    z.object({
      subnet: z.string(),
      a: z.string(),
      b: z.string(),
      key: z.string(),
      bootPrivA: z.string(),
      bootPubA: z.string(),
      bootPrivB: z.string(),
      bootPubB: z.string(),
      pwId: z.number(),
      trafficKeyAB: z.string(),
      kidAB: z.number(),
    }),
  ),
});
const vectors = schema.parse(
  JSON.parse(readFileSync(new URL('../../../vectors/kdf.json', import.meta.url), 'utf8')),
);
const hex = (text: string) => Buffer.from(text, 'hex');

/** HKDF-Expand of RFC 5869 by hand on node:crypto, for one block. */
function expandOnce(secret: Buffer, info: Buffer, length: number): Buffer {
  return createHmac('sha256', secret)
    .update(info)
    .update(Buffer.from([1]))
    .digest()
    .subarray(0, length);
}

describe('pair traffic keys', () => {
  it.each(vectors.pair.map((v) => [`${v.a} to ${v.b}, pwId ${v.pwId}`, v] as const))(
    '%s',
    (_, v) => {
      const shared = diffieHellman({
        privateKey: importPrivate('x25519', hex(v.bootPrivA)),
        publicKey: importPublic('x25519', hex(v.bootPubB)),
      });
      const secret = createHmac('sha256', hex(v.key)).update(shared).digest();
      const info = fields(
        'pairwire/1 pair',
        v.subnet,
        `member:${v.a}`,
        `member:${v.b}`,
        hex(v.bootPubA),
        hex(v.bootPubB),
        v.pwId,
      );
      expect(expandOnce(secret, info, 32).toString('hex')).toBe(v.trafficKeyAB);
      const kid = expandOnce(secret, Buffer.concat([fields('pairwire/1 kid'), info]), 2);
      expect(kid.readUInt16BE(0)).toBe(v.kidAB);
      expect(Buffer.from(hkdfSync('sha256', shared, hex(v.key), info, 32)).toString('hex')).toBe(
        v.trafficKeyAB,
      );
    },
  );

  it('both ends compute the same key', () => {
    for (const v of vectors.pair) {
      const atB = pairTrafficKey({
        pairKey: hex(v.key),
        ownBootPrivate: hex(v.bootPrivB),
        peerBoot: hex(v.bootPubA),
        subnet: v.subnet,
        from: { id: v.a, boot: hex(v.bootPubA) },
        to: { id: v.b, boot: hex(v.bootPubB) },
        pwId: BigInt(v.pwId),
      });
      expect(Buffer.from(atB.key).toString('hex')).toBe(v.trafficKeyAB);
    }
  });

  it('direction, sender, start, generation, subnet and server key each change the key', () => {
    const a = generateRawKeyPair('x25519');
    const a2 = generateRawKeyPair('x25519');
    const b = generateRawKeyPair('x25519');
    const base = {
      pairKey: Buffer.alloc(32, 1),
      ownBootPrivate: a.privateKey,
      peerBoot: b.publicKey,
      subnet: 'lab',
      from: { id: 'alice', boot: a.publicKey },
      to: { id: 'bob', boot: b.publicKey },
      pwId: 1n,
    };
    const keys = [
      pairTrafficKey(base),
      pairTrafficKey({ ...base, from: base.to, to: base.from }),
      pairTrafficKey({ ...base, pwId: 2n }),
      pairTrafficKey({ ...base, pwId: 1n + 65_536n }),
      pairTrafficKey({ ...base, subnet: 'lab2' }),
      pairTrafficKey({ ...base, pairKey: Buffer.alloc(32, 2) }),
      pairTrafficKey({ ...base, from: { id: 'carol', boot: a.publicKey } }),
      pairTrafficKey({
        ...base,
        ownBootPrivate: a2.privateKey,
        from: { id: 'alice', boot: a2.publicKey },
      }),
    ].map((k) => Buffer.from(k.key).toString('hex'));
    expect(new Set(keys).size).toBe(keys.length);
  });

  it('a peer boot key of low order is refused', () => {
    const own = generateRawKeyPair('x25519');
    expect(() =>
      pairTrafficKey({
        pairKey: Buffer.alloc(32, 1),
        ownBootPrivate: own.privateKey,
        peerBoot: Buffer.alloc(32),
        subnet: 'lab',
        from: { id: 'a', boot: own.publicKey },
        to: { id: 'b', boot: Buffer.alloc(32) },
        pwId: 1n,
      }),
    ).toThrow();
  });
});

describe('group traffic keys', () => {
  it('each sender and each start has its own', () => {
    const make = (id: string, boot: number) =>
      Buffer.from(
        groupTrafficKey({
          groupKey: Buffer.alloc(32, 3),
          subnet: 'lab',
          from: { id, boot: Buffer.alloc(32, boot) },
          pwId: 1n,
        }).key,
      ).toString('hex');
    expect(new Set([make('alice', 1), make('alice', 2), make('bob', 1)]).size).toBe(3);
  });
});

describe('raw keys', () => {
  it.each(['ed25519', 'x25519'] as const)(
    '%s: raw bytes survive import, public follows from private',
    (curve) => {
      const pair = generateRawKeyPair(curve);
      expect(publicOf(importPrivate(curve, pair.privateKey)).equals(pair.publicKey)).toBe(true);
      const spki = importPublic(curve, pair.publicKey).export({ type: 'spki', format: 'der' });
      expect(spki.subarray(12).equals(pair.publicKey)).toBe(true);
      expect(
        createPublicKey(
          createPrivateKey({
            key: importPrivate(curve, pair.privateKey).export({ type: 'pkcs8', format: 'pem' }),
          }),
        ).asymmetricKeyType,
      ).toBe(curve);
    },
  );
});

describe('keys of loop probes', () => {
  it('are those of docs/protocol.md 8.5, others for each generation and subnet', () => {
    const group = Buffer.alloc(32, 7);
    const secret = createHmac('sha256', Buffer.alloc(32)).update(group).digest();
    const info = fields('pairwire/1 loop probe', 'east', 3);
    expect(probeKey(group, 'east', 3)).toEqual(expandOnce(secret, info, 32));
    expect(probeKey(group, 'east', 4)).not.toEqual(probeKey(group, 'east', 3));
    expect(probeKey(group, 'west', 3)).not.toEqual(probeKey(group, 'east', 3));
  });
});
