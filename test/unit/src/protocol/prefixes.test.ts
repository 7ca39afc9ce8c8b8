/** Sets of prefixes: what somebody else says about a net narrows and never widens. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { inPrefix, ipToBytes } from '../../../../src/protocol/ip.js';
import { covers, narrowed, networkOf, overlap } from '../../../../src/protocol/prefixes.js';

/** Short prefixes of a small space, so that many of them overlap. */
const prefix = fc
  .tuple(fc.nat({ max: 15 }), fc.nat({ max: 15 }), fc.integer({ min: 0, max: 32 }), fc.boolean())
  .map(([a, b, length, v6]) =>
    networkOf(
      v6 ? `2001:db8:${a.toString(16)}${b}::/${2 * length}` : `${a * 16}.${b}.0.0/${length}`,
    ),
  );
const address = fc
  .tuple(fc.nat({ max: 15 }), fc.nat({ max: 15 }), fc.boolean())
  .map(([a, b, v6]) => (v6 ? `2001:db8:${a.toString(16)}${b}::7` : `${a * 16}.${b}.0.7`));
const isIn = (list: readonly string[], text: string): boolean =>
  list.some((one) => inPrefix(one, ipToBytes(text) ?? Buffer.alloc(0)));

describe('networkOf', () => {
  it.each([
    ['198.51.100.7/24', '198.51.100.0/24'],
    ['198.51.100.7', '198.51.100.7/32'],
    ['10.255.255.255/9', '10.128.0.0/9'],
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['2001:DB8:0:0::5/61', '2001:db8::/61'],
    ['2001:db8::1', '2001:db8::1/128'],
  ])('%s is %s', (text, network) => {
    expect(networkOf(text)).toBe(network);
  });

  it.each([
    '',
    'east',
    '198.51.100.0/33',
    '198.51.100.0/-1',
    '2001:db8::/129',
    '1.2.3/8',
    '1.2.3.4/1.5',
  ])('refuses %j', (text) => {
    expect(() => networkOf(text)).toThrow(RangeError);
  });
});

describe('narrowed', () => {
  it('leaves what is in both', () => {
    const own = ['198.51.100.0/24', '2001:db8:1::/48'];
    expect(narrowed(own, ['0.0.0.0/0'])).toEqual(['198.51.100.0/24']);
    expect(narrowed(own, ['198.51.100.128/25', '203.0.113.0/24'])).toEqual(['198.51.100.128/25']);
    expect(narrowed(own, ['::/0', '198.51.0.0/16'])).toEqual([...own].sort());
    expect(narrowed(own, [])).toEqual([]);
    expect(narrowed([], ['0.0.0.0/0'])).toEqual([]);
    expect(narrowed(['10.0.0.0/8', '10.1.0.0/16'], ['10.0.0.0/8'])).toEqual(['10.0.0.0/8']);
  });

  it('has exactly the addresses that both have', () => {
    fc.assert(
      fc.property(
        fc.array(prefix, { maxLength: 5 }),
        fc.array(prefix, { maxLength: 5 }),
        address,
        (own, told, ip) => {
          expect(isIn(narrowed(own, told), ip)).toBe(isIn(own, ip) && isIn(told, ip));
        },
      ),
    );
  });

  it('has no more than both lists together, none inside another', () => {
    const list = fc.array(prefix, { maxLength: 8 });
    fc.assert(
      fc.property(list, list, (own, told) => {
        const both = narrowed(own, told);
        expect(both.length).toBeLessThanOrEqual(own.length + told.length);
        for (const one of both) {
          expect(both.filter((other) => overlap(one, other))).toEqual([one]);
        }
      }),
    );
  });

  it('overlap and covers agree with addresses', () => {
    fc.assert(
      fc.property(prefix, prefix, address, (one, other, ip) => {
        if (isIn([one], ip) && isIn([other], ip)) expect(overlap(one, other)).toBe(true);
        if (covers(one, other) && isIn([other], ip)) expect(isIn([one], ip)).toBe(true);
      }),
    );
  });
});
