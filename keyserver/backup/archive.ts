/**
 * The file of a backup: a tar (ustar) that holds the manifest, its MAC, and the parts in the manifest's order, so that any tar takes it apart.
 * Ours reads only what it would have written: all headers follow from the manifest and are compared as a whole, nothing
 * in them is interpreted.
 */
import { createHash } from 'node:crypto';
import { closeSync, fstatSync, fsyncSync, mkdirSync, openSync, readSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import {
  encodeMac,
  encodeManifest,
  MAC_NAME,
  MANIFEST_NAME,
  MAX_BACKUP_MANIFEST,
  type Manifest,
  manifestMac,
  type Part,
  parseManifest,
} from './manifest.js';

const BLOCK = 512;
const END = Buffer.alloc(2 * BLOCK);
const MAC_SIZE = 65;
const CHUNK = 1_048_576;
/** The largest size that eleven octal digits say; above, tar has the size in base 256. */
const OCTAL_SIZES = 8 ** 11;

/** Bytes and digest of a file, and where it lies. */
export interface PartFile extends Part {
  readonly path: string;
}

/** Reads a file once. @throws PairwireError BACKUP_REFUSED if it can't be read */
export function measure(name: string, path: string): PartFile {
  const hash = createHash('sha256');
  let size = 0;
  const file = openToRead(path);
  try {
    for (const chunk of chunksOf(file, path)) {
      hash.update(chunk);
      size += chunk.length;
    }
  } finally {
    closeSync(file);
  }
  return { name, path, size, sha256: hash.digest('hex') };
}

/**
 * Writes the file of a backup with mode 0600, and to the disk. There must be none.
 * @param files those of the manifest's parts, in their order
 * @throws PairwireError BACKUP_REFUSED: the disk is full, or a file changed in the meantime
 */
export function writeArchive(
  path: string,
  manifest: Manifest,
  auditKey: Buffer,
  files: readonly PartFile[],
): void {
  const text = encodeManifest(manifest);
  const out = attempt(path, () => openSync(path, 'wx', 0o600));
  const put = (bytes: Uint8Array): void =>
    attempt(path, () => {
      for (let at = 0; at < bytes.length; ) at += writeSync(out, bytes, at);
    });
  const pad = (size: number): void => put(Buffer.alloc(paddingOf(size)));
  try {
    for (const [name, bytes] of [
      [MANIFEST_NAME, text],
      [MAC_NAME, encodeMac(manifestMac(auditKey, text))],
    ] as const) {
      put(header(name, bytes.length));
      put(bytes);
      pad(bytes.length);
    }
    for (const part of files) {
      put(header(part.name, part.size));
      const file = openToRead(part.path);
      let left = part.size;
      try {
        for (const chunk of chunksOf(file, part.path)) {
          const wanted = chunk.subarray(0, left);
          put(wanted);
          left -= wanted.length;
          if (left === 0) break;
        }
      } finally {
        closeSync(file);
      }
      if (left > 0) throw refused(part.path, 'the file got shorter while it was read');
      pad(part.size);
    }
    put(END);
    attempt(path, () => fsyncSync(out));
  } finally {
    closeSync(out);
  }
}

/** What `readArchive` found. */
export interface Archive {
  readonly manifest: Manifest;
  /** As they stand in the file, for the MAC. */
  readonly manifestBytes: Buffer;
  readonly mac: Buffer;
}

/**
 * Takes a backup apart: each part becomes a file with mode 0600 in a folder, and its size and digest are checked. Who wrote it is not.
 * @throws PairwireError BACKUP_DAMAGED for anything that is not as it was written; BACKUP_REFUSED if the parts can't be stored;
 *   FILE_UNREADABLE
 */
export function readArchive(path: string, folder: string): Archive {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', `cannot read the backup: ${messageOf(cause)}`, {
      where: path,
      cause,
    });
  }
  try {
    const first = take(file, BLOCK, path);
    const size = Number.parseInt(first.subarray(124, 135).toString('latin1'), 8);
    if (!(size > 0 && size <= MAX_BACKUP_MANIFEST) || !first.equals(header(MANIFEST_NAME, size))) {
      throw new PairwireError('BACKUP_DAMAGED', 'the file is no backup of a key server', {
        where: path,
        hint: '`pairwire backup` makes one',
      });
    }
    const manifestBytes = takePadded(file, size, path);
    const manifest = parseManifest(manifestBytes, path);
    // Before anything is stored: how long it must be is known.
    const { size: whole } = fstatSync(file);
    if (whole !== sizeOf(size, manifest.parts)) {
      const what = whole < sizeOf(size, manifest.parts) ? 'ends too early' : 'is too long';
      throw damaged(path, `the file ${what}`);
    }
    expectHeader(file, MAC_NAME, MAC_SIZE, path);
    const mac = takePadded(file, MAC_SIZE, path);
    for (const part of manifest.parts) {
      expectHeader(file, part.name, part.size, path);
      extract(file, part, join(folder, part.name), path);
    }
    if (!take(file, END.length, path).equals(END)) throw damaged(path, 'its end is damaged');
    return { manifest, manifestBytes, mac };
  } finally {
    closeSync(file);
  }
}

/** Bytes of the whole file. */
function sizeOf(manifest: number, parts: readonly Part[]): number {
  return [manifest, MAC_SIZE, ...parts.map(({ size }) => size)].reduce(
    (sum, size) => sum + BLOCK + size + paddingOf(size),
    END.length,
  );
}

function extract(file: number, part: Part, target: string, where: string): void {
  const hash = createHash('sha256');
  const out = attempt(target, () => {
    mkdirSync(dirname(target), { recursive: true, mode: 0o700 });
    return openSync(target, 'wx', 0o600);
  });
  try {
    for (let left = part.size; left > 0; ) {
      const chunk = take(file, Math.min(left, CHUNK), where);
      hash.update(chunk);
      attempt(target, () => {
        for (let at = 0; at < chunk.length; ) at += writeSync(out, chunk, at);
      });
      left -= chunk.length;
    }
    attempt(target, () => fsyncSync(out));
  } finally {
    closeSync(out);
  }
  const padding = take(file, paddingOf(part.size), where);
  if (hash.digest('hex') !== part.sha256 || padding.some((byte) => byte !== 0)) {
    throw damaged(where, `${part.name} is damaged`);
  }
}

function expectHeader(file: number, name: string, size: number, where: string): void {
  if (!take(file, BLOCK, where).equals(header(name, size))) {
    throw damaged(where, `what stands before ${name} is damaged`);
  }
}

function takePadded(file: number, size: number, where: string): Buffer {
  const bytes = take(file, size, where);
  if (take(file, paddingOf(size), where).some((byte) => byte !== 0)) {
    throw damaged(where, 'the manifest is damaged');
  }
  return bytes;
}

function take(file: number, size: number, where: string): Buffer {
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    let got: number;
    try {
      got = readSync(file, bytes, at, size - at, null);
    } catch (cause) {
      throw new PairwireError('FILE_UNREADABLE', `cannot read the backup: ${messageOf(cause)}`, {
        where,
        cause,
      });
    }
    if (got === 0) throw damaged(where, 'the file ends too early');
    at += got;
  }
  return bytes;
}

function* chunksOf(file: number, path: string): Generator<Buffer> {
  for (;;) {
    const chunk = Buffer.alloc(CHUNK);
    const size = attempt(path, () => readSync(file, chunk));
    if (size === 0) return;
    yield chunk.subarray(0, size);
  }
}

function openToRead(path: string): number {
  return attempt(path, () => openSync(path, 'r'));
}

/** The header of a plain file with mode 0600, of nobody and no time. */
function header(name: string, size: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  block.write(name, 0, 'latin1');
  block.write('0000600\0', 100, 'latin1');
  block.write('0000000\0', 108, 'latin1');
  block.write('0000000\0', 116, 'latin1');
  if (size < OCTAL_SIZES) block.write(`${size.toString(8).padStart(11, '0')}\0`, 124, 'latin1');
  else {
    block[124] = 0x80;
    block.writeBigUInt64BE(BigInt(size), 128);
  }
  block.write('00000000000\0', 136, 'latin1');
  block.write('        ', 148, 'latin1');
  block.write('0', 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

function paddingOf(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

/** For what the disk refuses. */
function attempt<T>(path: string, act: () => T): T {
  try {
    return act();
  } catch (cause) {
    const full = (cause as { code?: unknown }).code === 'ENOSPC';
    throw refused(path, full ? 'the disk is full' : messageOf(cause), cause);
  }
}

function refused(where: string, what: string, cause?: unknown): PairwireError {
  return new PairwireError('BACKUP_REFUSED', what, {
    where,
    hint: 'nothing was changed; make room or choose another place, and try again',
    cause,
  });
}

function damaged(where: string, what: string): PairwireError {
  return new PairwireError('BACKUP_DAMAGED', what, {
    where,
    hint: 'take another backup: nothing of this one was used',
  });
}
