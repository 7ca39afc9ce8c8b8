/** `fields` is injective: two different lists never give the same bytes. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fields } from '../../../../src/protocol/fields.js';

describe('fields', () => {
  it('is what docs/protocol.md shows', () => {
    expect(fields('ab', Buffer.from([1]), 2).toString('hex')).toBe(
      '000261620001010008' + '0000000000000002',
    );
  });

  it('different lists give different bytes', () => {
    const list = fc.array(fc.string({ maxLength: 6 }), { maxLength: 5 });
    fc.assert(
      fc.property(list, list, (a, b) => {
        expect(fields(...a).equals(fields(...b))).toBe(JSON.stringify(a) === JSON.stringify(b));
      }),
    );
  });

  it('refuses what it could not give back', () => {
    expect(() => fields(Buffer.alloc(65_536))).toThrow(RangeError);
    expect(() => fields(-1)).toThrow(RangeError);
    expect(() => fields(1.5)).toThrow(RangeError);
    expect(() => fields(2 ** 53)).toThrow(RangeError);
  });
});
