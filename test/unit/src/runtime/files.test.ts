/** Secret files: written whole, for their owner only, refused when others may read them. */
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  makeSecretFolder,
  readKeyFile,
  readSecretFile,
  writeFileAtomic,
  writeKeyFile,
} from '../../../../src/runtime/files.js';

const failsWith = (code: string): Error => expect.objectContaining({ code }) as Error;

describe('files', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-files-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  it('are replaced whole, with mode 0600, and leave nothing beside them', () => {
    const path = join(dir, 'f');
    writeFileAtomic(path, 'one');
    writeFileAtomic(path, Buffer.from('two'));
    expect(readFileSync(path, 'utf8')).toBe('two');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(() => writeFileAtomic(path, 'three', { exclusive: true })).toThrow(
      failsWith('FILE_EXISTS'),
    );
    expect(readFileSync(path, 'utf8')).toBe('two');
    expect(() => writeFileAtomic(join(dir, 'no', 'f'), 'x')).toThrow(failsWith('FILE_UNREADABLE'));
    expect(readdirSync(dir)).toEqual(['f']);
  });

  it('with secrets are refused if group or world may read or write them', () => {
    const path = join(dir, 'f');
    writeFileSync(path, 'secret');
    for (const mode of [0o640, 0o604, 0o620, 0o644, 0o666]) {
      chmodSync(path, mode);
      expect(() => readSecretFile(path)).toThrow(failsWith('FILE_MODE'));
    }
    chmodSync(path, 0o400);
    expect(readSecretFile(path).toString()).toBe('secret');
    expect(() => readSecretFile(join(dir, 'none'))).toThrow(failsWith('FILE_UNREADABLE'));
  });

  it('are in a folder that only its owner may enter, below folders that others may', () => {
    const mask = process.umask(0o022);
    try {
      const folder = join(dir, 'etc', 'pairwire', 'office');
      makeSecretFolder(folder);
      makeSecretFolder(join(dir, 'etc', 'pairwire', 'server'));
      const mode = (path: string) => statSync(path).mode & 0o777;
      expect(mode(folder)).toBe(0o700);
      expect(mode(join(dir, 'etc', 'pairwire', 'server'))).toBe(0o700);
      expect(mode(join(dir, 'etc', 'pairwire'))).toBe(0o755);
      expect(mode(join(dir, 'etc'))).toBe(0o755);
    } finally {
      process.umask(mask);
    }
  });

  it('of keys say what they hold', () => {
    const path = join(dir, 'k');
    const key = Buffer.alloc(32, 7);
    writeKeyFile(path, 'token-key', key);
    expect(readKeyFile(path, 'token-key').equals(key)).toBe(true);
    expect(() => readKeyFile(path, 'audit-key')).toThrow(failsWith('FILE_UNREADABLE'));
    expect(() => writeKeyFile(path, 'token-key', key)).toThrow(failsWith('FILE_EXISTS'));
    writeFileSync(path, 'pairwire token-key AAAA\n');
    expect(() => readKeyFile(path, 'token-key')).toThrow(failsWith('FILE_UNREADABLE'));
    chmodSync(path, 0o644);
    expect(() => readKeyFile(path, 'token-key')).toThrow(failsWith('FILE_MODE'));
  });
});
