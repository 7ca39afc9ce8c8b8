/**
 * Length-prefixed concatenation, docs/protocol.md section 1: the only way that several
 * values enter a derivation or a signature, so that no two lists encode alike.
 */

/** A value that may enter `fields`: bytes, a UTF-8 string, or an integer as 8 bytes big-endian. */
export type FieldValue = Uint8Array | string | bigint | number;

/**
 * Encodes each value behind its 16-bit length.
 * @throws RangeError for a value over 65,535 bytes or a number that is no safe non-negative integer
 */
export function fields(...values: readonly FieldValue[]): Buffer {
  const parts: Buffer[] = [];
  for (const value of values) {
    const bytes = fieldBytes(value);
    if (bytes.length > 0xffff) throw new RangeError('a field is longer than 65,535 bytes');
    const length = Buffer.alloc(2);
    length.writeUInt16BE(bytes.length);
    parts.push(length, bytes);
  }
  return Buffer.concat(parts);
}

function fieldBytes(value: FieldValue): Buffer {
  if (typeof value === 'string') return Buffer.from(value, 'utf8');
  if (typeof value === 'bigint' || typeof value === 'number') {
    if (typeof value === 'number' && !(Number.isSafeInteger(value) && value >= 0)) {
      throw new RangeError('an integer field is not a safe non-negative integer');
    }
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(BigInt(value));
    return bytes;
  }
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}
