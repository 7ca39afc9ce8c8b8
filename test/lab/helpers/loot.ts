/** What an attacker has who takes a part of an installation as it is: memory of a process, files, and what can be found in them. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';

/** Larger mappings are read in pieces of this size. */
const PIECE = 64 * 1024 * 1024;
/** What must not be cut in two by a piece's end. */
const OVERLAP = 4_096;

/** Nobody has as much of his own: it is the shadow of a sanitizer, which takes days to read. */
const SHADOW = 2 ** 40;

/** Bytes under the name of where they are from. */
export interface Loot {
  readonly from: string;
  readonly bytes: Buffer;
}

/** All memory of a process that it can write to: heap, stacks, buffers of libraries. @throws Error for one with a sanitizer */
export function* memoryOf(pid: number): Generator<Loot> {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
      if (match === null) continue;
      const [begin, end] = [Number(`0x${match[1]}`), Number(`0x${match[2]}`)];
      if (end - begin > SHADOW) {
        throw new Error(
          `${pid} was built with a sanitizer: run this without PAIRWIRE_NATIVE_PRESET`,
        );
      }
      for (let at = begin; at < end; at += PIECE - OVERLAP) {
        const bytes = Buffer.allocUnsafe(Math.min(PIECE, end - at));
        try {
          const read = readSync(memory, bytes, 0, bytes.length, at);
          yield { from: `${line.slice(0, 60)} of ${pid}`, bytes: bytes.subarray(0, read) };
        } catch {
          // Memory of a device, or one that is reserved and was never touched.
        } finally {
          // What the search has read must not be found by the next one.
          bytes.fill(0);
        }
      }
    }
  } finally {
    closeSync(memory);
  }
}

/** All files under a folder. */
export function* filesIn(folder: string): Generator<Loot> {
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    yield { from: path, bytes: readFileSync(path) };
  }
}

/** Which of these secrets are there, raw or as text. */
export function learned(
  loot: Iterable<Loot>,
  secrets: Readonly<Record<string, Uint8Array>>,
): string[] {
  const shapes = Object.entries(secrets).map(([name, secret]) => {
    const raw = Buffer.from(secret);
    if (raw.length < 16 || raw.every((byte) => byte === raw[0]))
      throw new Error(`${name}: no secret`);
    const [hex, base64, url] = (['hex', 'base64', 'base64url'] as const).map((encoding) =>
      // The last characters of base64 depend on what follows.
      Buffer.from(raw.toString(encoding).slice(0, Math.floor((raw.length * 4) / 3))),
    );
    return { name, shapes: [raw, hex, base64, url].filter((one) => one !== undefined) };
  });
  const found = new Set<string>();
  for (const { bytes } of loot) {
    for (const { name, shapes: all } of shapes) {
      if (!found.has(name) && all.some((shape) => bytes.includes(shape))) found.add(name);
    }
  }
  return [...found].sort();
}

/** A process's child whose command line has a word. */
export function childWith(pid: number, word: string): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ');
  const found = children.find((one) =>
    readFileSync(`/proc/${one}/cmdline`, 'latin1').includes(word),
  );
  if (found === undefined) throw new Error(`${pid} has no child ${word}`);
  return Number(found);
}
