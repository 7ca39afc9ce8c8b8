/** Tests of src/protocol/channel/hash.ts against node:crypto, @noble/hashes and RFC 4231. */
import { createHash, createHmac } from 'node:crypto';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 as nobleSha256 } from '@noble/hashes/sha2.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HmacSha256, hmacSha256, sha256 } from '../../../../../src/protocol/channel/hash.js';

describe('hmacSha256', () => {
  it('agrees with createHmac and @noble/hashes', () => {
    const parts = fc.array(fc.uint8Array({ maxLength: 100 }), { maxLength: 4 });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), parts, (key, data) => {
        const all = Buffer.concat(data);
        const got = hmacSha256(key, ...data);
        expect(got).toEqual(createHmac('sha256', key).update(all).digest());
        expect(got).toEqual(Buffer.from(hmac(nobleSha256, key, all)));
        expect(sha256(all)).toEqual(createHash('sha256').update(all).digest());
      }),
    );
  });

  it('gives the digest of RFC 4231 test case 1', () => {
    expect(hmacSha256(Buffer.alloc(20, 0x0b), Buffer.from('Hi There')).toString('hex')).toBe(
      'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7',
    );
  });

  it('refuses a key longer than a block', () => {
    expect(() => hmacSha256(Buffer.alloc(65))).toThrow(RangeError);
  });
});

describe('HmacSha256', () => {
  it('is the same at each use, and gone after wipe', () => {
    const mac = new HmacSha256(Buffer.alloc(32, 1), 3);
    mac.input.set([1, 2, 3]);
    const first = Buffer.from(mac.digest());
    expect(mac.digest()).toEqual(first);
    mac.wipe();
    mac.input.set([1, 2, 3]);
    expect(mac.digest()).not.toEqual(first);
  });
});
