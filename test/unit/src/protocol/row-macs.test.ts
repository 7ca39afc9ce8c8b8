/** MACs over rows and their sums: bytes as test/vectors/rows.json has them, which another implementation made. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  addTerm,
  bucketOf,
  ROW_BUCKETS,
  ROW_SUMS_SIZE,
  RowKeys,
  type RowValue,
} from '../../../../src/protocol/row-macs.js';

interface Vectors {
  readonly store: string;
  readonly rowKey: string;
  readonly rows: readonly {
    readonly table: string;
    readonly name: string;
    readonly bucket: number;
    readonly version: number;
    readonly columns: readonly (string | number | null | { readonly hex: string })[];
    readonly mac: string;
    readonly term: string;
  }[];
  readonly buckets: readonly { readonly subject: string; readonly bucket: number }[];
  readonly head: { readonly version: number; readonly nonce: string; readonly sealed: string };
}

const vectors = JSON.parse(readFileSync('test/vectors/rows.json', 'utf8')) as Vectors;
const bytes = (hex: string): Buffer => Buffer.from(hex, 'hex');
const keys = new RowKeys(bytes(vectors.store), bytes(vectors.rowKey));

describe('MACs over rows', () => {
  it('are those of the vectors, and so are terms, sums and the head', () => {
    const sums = Buffer.alloc(ROW_SUMS_SIZE);
    for (const { columns, mac, term, ...place } of vectors.rows) {
      const values = columns.map(
        (one): RowValue => (one !== null && typeof one === 'object' ? bytes(one.hex) : one),
      );
      const made = keys.mac(place, values);
      expect(made.toString('hex')).toBe(mac);
      expect(keys.terms(made).toString('hex')).toBe(term);
      addTerm(sums, place.bucket, keys.terms(made), 1);
    }
    const { version, nonce, sealed } = vectors.head;
    expect(keys.sealHead(version, sums, bytes(nonce)).toString('hex')).toBe(sealed);
    expect(keys.openHead(version, bytes(sealed))).toEqual(sums);
    for (const { subject, bucket } of vectors.buckets) expect(bucketOf(subject)).toBe(bucket);
  });

  it('tell apart whatever two rows hold', () => {
    const value = fc.oneof(
      fc.constant(null),
      fc.maxSafeInteger(),
      fc.string({ maxLength: 4 }),
      fc.uint8Array({ maxLength: 4 }).map((one) => Buffer.from(one)),
    );
    const place = { table: 't', name: 'n', bucket: 1, version: 1 };
    fc.assert(
      fc.property(fc.array(value, { maxLength: 3 }), fc.array(value, { maxLength: 3 }), (a, b) => {
        const tagged = (all: readonly RowValue[]): string =>
          JSON.stringify(all.map((one) => [Buffer.isBuffer(one), typeof one, one]));
        expect(keys.mac(place, a).equals(keys.mac(place, b))).toBe(tagged(a) === tagged(b));
      }),
    );
  });

  it('sums forget what is taken away again, and a head opens as its own version and unchanged only', () => {
    const sums = Buffer.alloc(ROW_SUMS_SIZE);
    fc.assert(
      fc.property(
        fc.nat({ max: ROW_BUCKETS - 1 }),
        fc.uint8Array({ minLength: 16, maxLength: 16 }),
        (bucket, term) => {
          const before = Buffer.from(sums);
          addTerm(sums, bucket, term, 1);
          const after = Buffer.from(sums);
          addTerm(sums, bucket, term, -1);
          expect(sums).toEqual(before);
          after.copy(sums);
        },
      ),
    );
    const sealed = keys.sealHead(9, sums);
    expect(keys.openHead(9, sealed)).toEqual(sums);
    expect(() => keys.openHead(8, sealed)).toThrow(/not what was sealed/);
    for (const at of [0, 12, 500, sealed.length - 1]) {
      const changed = Buffer.from(sealed);
      changed[at] = (changed[at] ?? 0) ^ 1;
      expect(() => keys.openHead(9, changed)).toThrow(/not what was sealed/);
    }
    expect(() => keys.openHead(9, sealed.subarray(1))).toThrow(/not what was sealed/);
  });
});
