/** Dependencies point one way (CONTRIBUTING.md, "Layout"): the rule and its reason, held by reading every import. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;
const FORBIDDEN: readonly { from: string; to: string; why: string }[] = [
  { from: 'src/', to: 'gateway/', why: 'src is shared by all and knows none of them' },
  { from: 'src/', to: 'keyserver/', why: 'src is shared by all and knows none of them' },
  { from: 'gateway/', to: 'keyserver/', why: 'they meet only in src/protocol' },
  { from: 'keyserver/', to: 'gateway/', why: 'they meet only in src/protocol' },
  { from: 'src/protocol/', to: 'src/net/', why: 'the protocol has no sockets' },
  { from: 'src/protocol/', to: 'src/cli/', why: 'the protocol has no user interface' },
  { from: 'src/runtime/', to: 'src/protocol/', why: 'runtime serves every process alike' },
  { from: 'src/', to: 'test/', why: 'nothing imports tests' },
  { from: 'src/', to: 'scripts/', why: 'nothing imports scripts' },
  { from: 'gateway/', to: 'scripts/', why: 'nothing imports scripts' },
  { from: 'keyserver/', to: 'scripts/', why: 'nothing imports scripts' },
];

/** What the KMS may import of the key server's folder: itself. */
const KMS = 'keyserver/kms/';

function filesBelow(folder: string, ending: RegExp): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && ending.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => !path.includes('node_modules') && !path.includes('/build/'));
}

describe('imports', () => {
  const sources = ['src', 'gateway', 'keyserver'].flatMap((folder) => filesBelow(folder, /\.ts$/));

  it('finds the sources at all', () => {
    expect(sources.length).toBeGreaterThan(20);
  });

  it('never point the wrong way', () => {
    const wrong: string[] = [];
    for (const file of sources) {
      const text = readFileSync(join(root, file), 'utf8');
      for (const match of text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)) {
        const target = normalize(join(dirname(file), match[1] ?? ''));
        if (file.startsWith(KMS) && target.startsWith('keyserver/') && !target.startsWith(KMS)) {
          wrong.push(`${file} imports ${target}: the KMS knows nothing of the key server`);
        }
        for (const rule of FORBIDDEN) {
          if (file.startsWith(rule.from) && target.startsWith(rule.to)) {
            wrong.push(`${file} imports ${target}: ${rule.why}`);
          }
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  it('core, crypto, l2 and io of the data plane know nothing of control messages', () => {
    const wrong: string[] = [];
    for (const folder of ['core', 'crypto', 'l2', 'io']) {
      for (const file of filesBelow(`gateway/native/${folder}`, /\.[ch]pp$/)) {
        const text = readFileSync(join(root, file), 'utf8');
        if (/#include\s+"control\//.test(text)) wrong.push(file);
      }
    }
    expect(wrong).toEqual([]);
  });
});

describe('files', () => {
  it('every TypeScript file begins with a comment that says what it is', () => {
    const bare = ['src', 'gateway', 'keyserver', 'scripts', 'test']
      .flatMap((folder) => filesBelow(folder, /\.ts$/))
      .filter((file) => {
        const text = readFileSync(join(root, file), 'utf8').replace(/^#!.*\n/, '');
        return !text.startsWith('/**') && !text.startsWith('//');
      });
    expect(bare).toEqual([]);
  });

  it('are named in kebab-case', () => {
    const odd = ['src', 'gateway', 'keyserver', 'scripts', 'test']
      .flatMap((folder) => filesBelow(folder, /\.(ts|hpp|cpp)$/))
      .filter((file) => !/^[a-z0-9.-]+$/.test(file.split('/').at(-1) ?? ''));
    expect(odd).toEqual([]);
  });
});
