/**
 * Length-prefixed concatenation, docs/protocol.md section 1: the only way that several
 * values enter a derivation or a signature, so that no two lists encode alike.
 */

/** A value that may enter `fields`: bytes, a UTF-8 string, or an integer as 8 bytes big-endian. */
export type FieldValue = Uint8Array | string | bigint | number;

const LENGTH_SIZE = 2;
const INTEGER_SIZE = 8;
const LARGEST_FIELD = 0xffff;

/**
 * Encodes each value behind its 16-bit length.
 * @throws RangeError for a value over 65,535 bytes or a number that is no safe non-negative integer
 */
export function fields(...values: readonly FieldValue[]): Buffer {
  let size = 0;
  for (const value of values) size += LENGTH_SIZE + sizeOf(value);
  // One piece of memory: with one for each value most of the time of a derivation went there.
  const out = Buffer.allocUnsafe(size);
  let at = 0;
  for (const value of values) {
    const start = at + LENGTH_SIZE;
    let length = INTEGER_SIZE;
    if (typeof value === 'string') length = out.write(value, start, 'utf8');
    else if (typeof value === 'number' || typeof value === 'bigint') {
      out.writeBigUInt64BE(BigInt(value), start);
    } else {
      out.set(value, start);
      ({ length } = value);
    }
    out.writeUInt16BE(length, at);
    at = start + length;
  }
  return out;
}

function sizeOf(value: FieldValue): number {
  if (typeof value === 'bigint') return INTEGER_SIZE;
  if (typeof value === 'number') {
    if (!(Number.isSafeInteger(value) && value >= 0)) {
      throw new RangeError('an integer field is not a safe non-negative integer');
    }
    return INTEGER_SIZE;
  }
  const size = typeof value === 'string' ? Buffer.byteLength(value, 'utf8') : value.length;
  if (size > LARGEST_FIELD) throw new RangeError('a field is longer than 65,535 bytes');
  return size;
}
