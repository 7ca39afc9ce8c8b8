/**
 * Envelopes, docs/protocol.md section 11: a key as it is stored. It is sealed by a data encryption key (DEK), and that by a
 * root key of the KMS, so neither the store nor the KMS alone has it (document 001).
 *
 *   sealed key   version 1 | DEK id 8 | nonce 12 | ciphertext 32 | tag 16      = 69 bytes
 *   sealed DEK   version 1 | generation of the root key 4 | nonce 12 | ciphertext 32 | tag 16   = 65 bytes
 *   sealed identity document   version 1 | nonce 12 | ciphertext: signature 64, body | tag 16
 *
 * AES-256-GCM. What is in clear, and the place that a key is stored in, are associated data: who can write to the store can't
 * put one record in the place of another.
 */
import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from 'node:crypto';
import { PairwireError } from '../runtime/errors.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { type FieldValue, fields } from './fields.js';
import type { Signed } from './signed.js';

const VERSION = 1;
const CIPHER = 'aes-256-gcm';
const NONCE_SIZE = 12;
const TAG_SIZE = 16;
const GENERATION_SIZE = 4;
const SIGNATURE_SIZE = 64;
export const DEK_ID_SIZE = 8;
/** What tells stores apart. */
export const STORE_ID_SIZE = 16;
export const SEALED_KEY_SIZE = 1 + DEK_ID_SIZE + NONCE_SIZE + KEY_SIZE + TAG_SIZE;
export const SEALED_DEK_SIZE = 1 + GENERATION_SIZE + NONCE_SIZE + KEY_SIZE + TAG_SIZE;

/** Where a key is stored. */
export interface KeyPlace {
  /** Drawn with the store. */
  readonly store: Uint8Array;
  readonly table: string;
  readonly column: string;
  /** Whose key it is: two members, a group, a net. */
  readonly ids: readonly string[];
  readonly pwId: number;
}

/** A data encryption key that is at hand. */
export interface Dek {
  readonly id: Buffer;
  readonly key: KeyObject;
}

/** Seals a key for its place. @param nonce chosen by vectors only */
export function sealKey(
  { id, key: dek }: Dek,
  place: KeyPlace,
  key: Uint8Array,
  nonce: Uint8Array = nextNonce(),
): Buffer {
  if (key.length !== KEY_SIZE) throw new RangeError(`a key has ${key.length} bytes`);
  const header = Buffer.allocUnsafe(1 + DEK_ID_SIZE);
  header.writeUInt8(VERSION);
  header.set(id, 1);
  return seal(dek, header, placeData(header, place), key, nonce);
}

/** The DEK of a sealed key; undefined for what is none. */
export function dekOf(sealed: Uint8Array): Buffer | undefined {
  if (sealed.length !== SEALED_KEY_SIZE || sealed[0] !== VERSION) return undefined;
  return Buffer.from(sealed.subarray(1, 1 + DEK_ID_SIZE));
}

/** @throws PairwireError SEAL_BROKEN for what is not the key of this place, as it was sealed */
export function openKey({ key }: Dek, place: KeyPlace, sealed: Uint8Array): Buffer {
  const header = sealed.subarray(0, 1 + DEK_ID_SIZE);
  if (sealed.length !== SEALED_KEY_SIZE || sealed[0] !== VERSION) throw broken('a key');
  return open(key, header.length, placeData(header, place), sealed, 'a key');
}

/**
 * `fields(label, header, store, table, column, number of ids, ...ids, pwId)`, written straight into one buffer: with `fields` itself it
 * would cost as much as the cipher.
 */
function placeData(header: Uint8Array, place: KeyPlace): Buffer {
  const { store, table, column, ids, pwId } = place;
  if (!Number.isSafeInteger(pwId) || pwId < 0) throw new RangeError('a generation is no number');
  let size = LABEL.envelope.length + header.length + store.length + 2 * INTEGER_SIZE;
  size += Buffer.byteLength(table) + Buffer.byteLength(column) + 2 * (6 + 1 + ids.length);
  for (const id of ids) size += Buffer.byteLength(id);
  const data = Buffer.allocUnsafe(size);
  let at = putText(data, 0, LABEL.envelope);
  for (const bytes of [header, store]) {
    at = data.writeUInt16BE(bytes.length, at);
    data.set(bytes, at);
    at += bytes.length;
  }
  at = putText(data, at, table);
  at = putText(data, at, column);
  at = putInteger(data, at, ids.length);
  for (const id of ids) at = putText(data, at, id);
  putInteger(data, at, pwId);
  return data;
}

const INTEGER_SIZE = 8;

function putText(data: Buffer, at: number, text: string): number {
  const length = data.write(text, at + 2);
  data.writeUInt16BE(length, at);
  return at + 2 + length;
}

function putInteger(data: Buffer, at: number, value: number): number {
  const from = data.writeUInt16BE(INTEGER_SIZE, at);
  data.writeUInt32BE(Math.floor(value / 2 ** 32), from);
  return data.writeUInt32BE(value % 2 ** 32, from + 4);
}

/** Random bytes for nonces, drawn for many at a time: a call costs as much as sealing. */
const NONCES_AT_A_TIME = 256;
let drawn = Buffer.alloc(0);

function nextNonce(): Buffer {
  if (drawn.length < NONCE_SIZE) drawn = randomBytes(NONCES_AT_A_TIME * NONCE_SIZE);
  const nonce = drawn.subarray(0, NONCE_SIZE);
  drawn = drawn.subarray(NONCE_SIZE);
  return nonce;
}

/**
 * Seals a DEK by a root key.
 * @param owner whose it is: the subnet, the key server and the DEK's id, docs/protocol.md 11.2
 * @param nonce chosen by vectors only
 */
export function sealDek(
  root: { readonly generation: number; readonly key: KeyObject },
  owner: readonly FieldValue[],
  dek: Uint8Array,
  nonce: Uint8Array = nextNonce(),
): Buffer {
  const header = dekHeader(root.generation);
  return seal(root.key, header, dekData(header, owner), dek, nonce);
}

/** AES-256-GCM by a root key that is not at hand: in a PKCS#11 token. */
export interface RemoteCipher {
  /** @returns ciphertext and tag */
  seal(nonce: Buffer, data: Buffer, plain: Uint8Array): Buffer;
  /** @throws PairwireError SEAL_BROKEN for what it did not seal */
  open(nonce: Buffer, data: Buffer, box: Uint8Array): Buffer;
}

/** Seals a DEK as `sealDek` does. @throws PairwireError as the cipher, SEAL_BROKEN if that gives something else than AES-256-GCM does */
export function sealDekBy(
  root: { readonly generation: number; readonly cipher: RemoteCipher },
  owner: readonly FieldValue[],
  dek: Uint8Array,
): Buffer {
  const header = dekHeader(root.generation);
  const nonce = Buffer.from(nextNonce());
  const box = root.cipher.seal(nonce, dekData(header, owner), dek);
  if (box.length !== KEY_SIZE + TAG_SIZE) throw broken('a DEK');
  return Buffer.concat([header, nonce, box]);
}

/** Opens a DEK as `openDek` does. @throws PairwireError SEAL_BROKEN, and as the cipher */
export function openDekBy(
  cipher: RemoteCipher,
  owner: readonly FieldValue[],
  sealed: Uint8Array,
): Buffer {
  const header = sealed.subarray(0, 1 + GENERATION_SIZE);
  if (sealed.length !== SEALED_DEK_SIZE || sealed[0] !== VERSION) throw broken('a DEK');
  const from = header.length + NONCE_SIZE;
  const nonce = Buffer.from(sealed.subarray(header.length, from));
  return cipher.open(nonce, dekData(header, owner), sealed.subarray(from));
}

function dekHeader(generation: number): Buffer {
  const header = Buffer.alloc(1 + GENERATION_SIZE);
  header.writeUInt8(VERSION);
  header.writeUInt32BE(generation, 1);
  return header;
}

function dekData(header: Uint8Array, owner: readonly FieldValue[]): Buffer {
  return Buffer.from(fields(LABEL.dek, header, ...owner));
}

/** The generation of the root key that sealed a DEK; undefined for what is none. */
export function generationOf(sealed: Uint8Array): number | undefined {
  if (sealed.length !== SEALED_DEK_SIZE || sealed[0] !== VERSION) return undefined;
  return Buffer.from(sealed.buffer, sealed.byteOffset, sealed.length).readUInt32BE(1);
}

/** @throws PairwireError SEAL_BROKEN for what this root key did not seal for this owner */
export function openDek(root: KeyObject, owner: readonly FieldValue[], sealed: Uint8Array): Buffer {
  const header = sealed.subarray(0, 1 + GENERATION_SIZE);
  if (sealed.length !== SEALED_DEK_SIZE || sealed[0] !== VERSION) throw broken('a DEK');
  return open(root, header.length, dekData(header, owner), sealed, 'a DEK');
}

/** Whose identity document it is. */
export interface DocumentPlace {
  readonly subnet: string;
  readonly id: string;
}

/** What a sealed identity document is longer than its body. */
const DOCUMENT_OVERHEAD = 1 + NONCE_SIZE + SIGNATURE_SIZE + TAG_SIZE;
/** Of two keys and two names; a longer one is none of ours. */
export const MAX_DOCUMENT_BODY = 512;
export const MAX_SEALED_DOCUMENT = DOCUMENT_OVERHEAD + MAX_DOCUMENT_BODY;

/**
 * Seals an identity document by a DEK of its own, docs/protocol.md 11.6.
 * @param nonce chosen by vectors only
 * @throws PairwireError RECORD_MALFORMED for one that is too long
 */
export function sealDocument(
  dek: KeyObject,
  place: DocumentPlace,
  { b, s }: Signed,
  nonce: Uint8Array = nextNonce(),
): Buffer {
  if (b.length > MAX_DOCUMENT_BODY || s.length !== SIGNATURE_SIZE) {
    throw new PairwireError('RECORD_MALFORMED', `an identity document has ${b.length} bytes`);
  }
  const header = Buffer.of(VERSION);
  return seal(dek, header, documentData(header, place), Buffer.concat([s, b]), nonce);
}

/** @throws PairwireError SEAL_BROKEN for what is not the document of this member, as it was sealed */
export function openDocument(dek: KeyObject, place: DocumentPlace, sealed: Uint8Array): Signed {
  const header = sealed.subarray(0, 1);
  if (sealed.length < DOCUMENT_OVERHEAD || sealed[0] !== VERSION) throw broken('a document');
  const plain = open(dek, header.length, documentData(header, place), sealed, 'a document');
  return { s: plain.subarray(0, SIGNATURE_SIZE), b: plain.subarray(SIGNATURE_SIZE) };
}

function documentData(header: Uint8Array, { subnet, id }: DocumentPlace): Buffer {
  return fields(LABEL.kmsDocument, header, subnet, id);
}

function seal(
  key: KeyObject,
  header: Buffer,
  data: Buffer,
  plain: Uint8Array,
  nonce: Uint8Array,
): Buffer {
  const cipher = createCipheriv(CIPHER, key, nonce);
  cipher.setAAD(data);
  const sealed = cipher.update(plain);
  cipher.final();
  return Buffer.concat([header, nonce, sealed, cipher.getAuthTag()]);
}

function open(
  key: KeyObject,
  headerSize: number,
  data: Buffer,
  sealed: Uint8Array,
  what: string,
): Buffer {
  const from = headerSize + NONCE_SIZE;
  const decipher = createDecipheriv(CIPHER, key, sealed.subarray(headerSize, from), {
    authTagLength: TAG_SIZE,
  });
  decipher.setAAD(data);
  decipher.setAuthTag(sealed.subarray(-TAG_SIZE));
  const plain = decipher.update(sealed.subarray(from, -TAG_SIZE));
  try {
    decipher.final();
  } catch {
    plain.fill(0);
    throw broken(what);
  }
  return plain;
}

function broken(what: string): PairwireError {
  return new PairwireError('SEAL_BROKEN', `${what} in the store is not what was sealed there`, {
    hint: 'it was changed or moved, or the root key is another one: look for who writes to the database',
  });
}
