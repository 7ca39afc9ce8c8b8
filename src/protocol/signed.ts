/**
 * Signed records, docs/protocol.md section 5: a body as bytes and an Ed25519 signature
 * over `fields(label, body)`. The bytes are kept as they came, so that a record can be
 * stored and passed on without ever being encoded again.
 */
import { type KeyObject, sign, verify } from 'node:crypto';
import { encode } from '@msgpack/msgpack';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { decodeMessage } from './channel/codec.js';
import { fields } from './fields.js';

/** Bytes of a given length (or any length up to `max`) from a decoded message. */
export function bytesSchema(length: number): z.ZodType<Uint8Array> {
  return z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length === length,
    `must be ${length} bytes`,
  );
}

export function bytesUpToSchema(max: number): z.ZodType<Uint8Array> {
  return z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length <= max,
    `must be at most ${max} bytes`,
  );
}

/** Longest body of a signed record: a membership carries a grant with its address lists. */
export const MAX_SIGNED_BODY = 16_384;

export const signedSchema = z.strictObject({
  b: bytesUpToSchema(MAX_SIGNED_BODY),
  s: bytesSchema(64),
});
/** A signed record as it travels and is stored. */
export type Signed = z.infer<typeof signedSchema>;

/** Signs a body with a label of its own (domain separation). */
export function signRecord(
  label: string,
  body: Readonly<Record<string, unknown>>,
  key: KeyObject,
): Signed {
  const b = encode(body, { ignoreUndefined: true, sortKeys: true });
  return { b, s: sign(null, fields(label, b), key) };
}

/**
 * Verifies signature first, then the body's shape.
 * @throws PairwireError RECORD_SIGNATURE or RECORD_MALFORMED
 */
export function openSigned<T>(
  label: string,
  record: Signed,
  key: KeyObject,
  schema: z.ZodType<T>,
): T {
  if (!verify(null, fields(label, record.b), key, record.s)) {
    throw new PairwireError('RECORD_SIGNATURE', `the signature of a ${label} record is wrong`);
  }
  return readUnverified(label, record, schema);
}

/** Parses a body whose signature is still to be checked (an identity document carries its own key). */
export function readUnverified<T>(label: string, record: Signed, schema: z.ZodType<T>): T {
  let body: unknown;
  try {
    // Measured first: nobody has signed it yet, and a plain decoder takes gigabytes for a few bytes.
    body = decodeMessage(record.b);
  } catch {
    throw new PairwireError('RECORD_MALFORMED', `a ${label} record is not MessagePack`);
  }
  const parsed = schema.safeParse(body);
  if (!parsed.success) {
    const paths = parsed.error.issues.map((issue) => issue.path.join('.')).join(', ');
    throw new PairwireError('RECORD_MALFORMED', `a ${label} record has wrong fields: ${paths}`);
  }
  return parsed.data;
}
