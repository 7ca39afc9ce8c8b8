/** A disk without a byte left, for tests that have mounted one of their own. */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const FIRST_BYTES = 1 << 20;

/** Fills the disk of a directory to the last byte; gives back what frees it. */
export function fillDisk(dir: string): () => void {
  const filler = join(dir, 'filler');
  for (let bytes = FIRST_BYTES; bytes >= 1; bytes >>= 1) {
    try {
      for (;;) writeFileSync(filler, Buffer.alloc(bytes, 0x66), { flag: 'a' });
    } catch (thrown) {
      if ((thrown as { code?: string }).code !== 'ENOSPC') throw thrown;
    }
  }
  return () => rmSync(filler);
}
