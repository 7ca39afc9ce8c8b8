/**
 * MACs over the rows of a store, docs/protocol.md 11.9: who can write to the database but has not the row key can neither make a
 * row, nor put an older one back or take one away, so that the sums still come out.
 *
 *   MAC    HMAC-SHA256(mac key, place | columns), the first 16 bytes; its version is never another row's, nor used twice
 *   term   AES-256(term key, MAC): what the MAC adds to the sum of its bucket, mod 2^128; never stored
 *   head   version 8 | nonce 12 | ciphertext of 128 sums of 16 bytes | tag 16, AES-256-GCM
 *
 * It is an offline memory check (Blum et al. 1994) with a keyed multiset hash (MSet-Add-Hash, Clarke et al. 2003). Sums are sealed, so
 * nobody sees a term, and none can be cancelled by others.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  hash,
  type KeyObject,
  randomBytes,
} from 'node:crypto';
import { PairwireError } from '../runtime/errors.js';
import { LABEL } from './constants.js';
import { fields } from './fields.js';

export const ROW_KEY_SIZE = 32;
export const ROW_MAC_SIZE = 16;
/** Sums of one head. A bucket has the rows of some subjects, so a sum that is wrong names these. */
export const ROW_BUCKETS = 128;
export const ROW_SUMS_SIZE = ROW_BUCKETS * ROW_MAC_SIZE;

const NONCE_SIZE = 12;
const TAG_SIZE = 16;
const HALF_SIZE = 8;
const MASK = (1n << 64n) - 1n;
export const ROW_HEAD_SIZE = NONCE_SIZE + ROW_SUMS_SIZE + TAG_SIZE;
/** Heads have a key for so many versions, far below what AES-GCM bears with random nonces. */
const VERSIONS_PER_HEAD_KEY = 2 ** 24;

/** What a column holds. `wrong`: nothing that this column ever held, so that no MAC fits. */
export type RowValue = string | number | Uint8Array | null | { readonly wrong: true };

/** Which row it is, and how often rows have changed up to then. */
export interface RowPlace {
  readonly table: string;
  /** The primary key. */
  readonly name: string;
  readonly bucket: number;
  readonly version: number;
}

/** The bucket of whom or what a row is about. */
export function bucketOf(subject: string): number {
  return (hash('sha256', subject, 'buffer')[0] ?? 0) % ROW_BUCKETS;
}

/** The keys that follow from the row key of a store. */
export class RowKeys {
  readonly #store: Buffer;
  readonly #key: KeyObject;
  readonly #macKey: KeyObject;
  readonly #termKey: KeyObject;
  #headKey: { readonly number: number; readonly key: KeyObject } | undefined;

  /** @param store id of the store @param key the row key; zeroed */
  constructor(store: Uint8Array, key: Buffer) {
    this.#store = Buffer.from(store);
    this.#key = createSecretKey(key);
    key.fill(0);
    this.#macKey = this.#derive(LABEL.rowMac);
    this.#termKey = this.#derive(LABEL.rowTerm);
  }

  #derive(label: string, ...more: readonly number[]): KeyObject {
    const raw = createHmac('sha256', this.#key)
      .update(fields(label, ...more))
      .digest();
    try {
      return createSecretKey(raw);
    } finally {
      raw.fill(0);
    }
  }

  /** The MAC of a row. @param columns in their order */
  mac({ table, name, bucket, version }: RowPlace, columns: readonly RowValue[]): Buffer {
    const place = fields(this.#store, table, name, bucket, version, columns.length);
    // At once: each part that is handed over costs about as much as hashing the row.
    let size = place.length;
    for (const value of columns) size += columnSize(value);
    const input = Buffer.allocUnsafe(size);
    place.copy(input);
    let at = place.length;
    for (const value of columns) at = writeColumn(input, at, value);
    return createHmac('sha256', this.#macKey).update(input).digest().subarray(0, ROW_MAC_SIZE);
  }

  /** The terms of MACs that follow each other, in their order. */
  terms(macs: Uint8Array): Buffer {
    const cipher = createCipheriv('aes-256-ecb', this.#termKey, null);
    cipher.setAutoPadding(false);
    return cipher.update(macs);
  }

  /** Seals the sums. @param nonce chosen by vectors only */
  sealHead(version: number, sums: Uint8Array, nonce: Uint8Array = randomBytes(NONCE_SIZE)): Buffer {
    const cipher = createCipheriv('aes-256-gcm', this.#head(version), nonce);
    cipher.setAAD(fields(LABEL.rowHead, this.#store, version));
    const sealed = cipher.update(sums);
    cipher.final();
    return Buffer.concat([nonce, sealed, cipher.getAuthTag()]);
  }

  /** @throws PairwireError ROW_BROKEN for what was not sealed as this version */
  openHead(version: number, sealed: Uint8Array): Buffer {
    if (sealed.length !== ROW_HEAD_SIZE || !Number.isSafeInteger(version) || version < 0) {
      throw brokenHead();
    }
    const decipher = createDecipheriv(
      'aes-256-gcm',
      this.#head(version),
      sealed.subarray(0, NONCE_SIZE),
      { authTagLength: TAG_SIZE },
    );
    decipher.setAAD(fields(LABEL.rowHead, this.#store, version));
    decipher.setAuthTag(sealed.subarray(-TAG_SIZE));
    const sums = decipher.update(sealed.subarray(NONCE_SIZE, -TAG_SIZE));
    try {
      decipher.final();
    } catch {
      throw brokenHead();
    }
    return sums;
  }

  #head(version: number): KeyObject {
    const number = Math.floor(version / VERSIONS_PER_HEAD_KEY);
    if (this.#headKey?.number !== number) {
      this.#headKey = { number, key: this.#derive(LABEL.rowHead, number) };
    }
    return this.#headKey.key;
  }
}

/** Adds a term to the sum of a bucket, or takes it away. */
export function addTerm(sums: Buffer, bucket: number, term: Uint8Array, sign: 1 | -1): void {
  const at = bucket * ROW_MAC_SIZE;
  const sum = read(sums, at);
  const value = read(Buffer.from(term.buffer, term.byteOffset, term.length), 0);
  const next = sign === 1 ? sum + value : sum - value;
  sums.writeBigUInt64BE((next >> 64n) & MASK, at);
  sums.writeBigUInt64BE(next & MASK, at + HALF_SIZE);
}

function read(bytes: Buffer, at: number): bigint {
  return (bytes.readBigUInt64BE(at) << 64n) | bytes.readBigUInt64BE(at + HALF_SIZE);
}

const INTEGER_COLUMN_SIZE = 9;
const COLUMN_HEAD_SIZE = 5;

function columnSize(value: RowValue): number {
  if (typeof value === 'number') return INTEGER_COLUMN_SIZE;
  if (typeof value === 'string') return COLUMN_HEAD_SIZE + Buffer.byteLength(value);
  return value instanceof Uint8Array ? COLUMN_HEAD_SIZE + value.length : 1;
}

/** A byte for the type, then 8 bytes for an integer, or 4 bytes of length and the bytes. @returns where it ends */
function writeColumn(out: Buffer, at: number, value: RowValue): number {
  if (value === null) return out.writeUInt8(0, at);
  if (typeof value === 'number') {
    out.writeUInt8(1, at);
    return out.writeBigInt64BE(BigInt(value), at + 1);
  }
  const isText = typeof value === 'string';
  if (!isText && !(value instanceof Uint8Array)) return out.writeUInt8(0xff, at);
  const start = at + COLUMN_HEAD_SIZE;
  let length: number;
  if (isText) length = out.write(value, start);
  else {
    out.set(value, start);
    ({ length } = value);
  }
  out.writeUInt8(isText ? 2 : 3, at);
  out.writeUInt32BE(length, at + 1);
  return start + length;
}

function brokenHead(): PairwireError {
  return new PairwireError('ROW_BROKEN', 'the sums over the rows are not what was sealed', {
    hint: 'somebody has changed the database: docs/operations.md, "A row that is not what was written"',
  });
}
