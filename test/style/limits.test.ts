/** docs/limits.md names every constant whose name says that it is a limit, and no constant that is gone. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;
const page = readFileSync(join(root, 'docs/limits.md'), 'utf8');

/** Constants in TypeScript with MAX, LIMIT, QUOTA, BURST or PER_SECOND as a word of their name; in C++ kMax..., kHold..., kHeld.... */
const TYPESCRIPT =
  /^(?:export )?const ((?:[A-Z0-9]+_)*(?:MAX|LIMIT|QUOTA|BURST|PER_SECOND)(?:_[A-Z0-9]+)*)\b/gm;
const NATIVE = /\bconstexpr [^=;{]*?\b(k(?:Max|Hold|Held)[A-Z]\w*)\s*[={]/g;

function sources(): { path: string; text: string }[] {
  return ['src', 'gateway', 'keyserver'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && /\.(ts|cpp|hpp)$/.test(entry.name))
      .map((entry) => relative(root, join(entry.parentPath, entry.name)))
      .filter((path) => !/\/(build|test|fuzz|bench|bench-tools|test-support)\//.test(path))
      .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') })),
  );
}

describe('docs/limits.md', () => {
  const files = sources();

  it('has every limit', () => {
    expect(files.length).toBeGreaterThan(100);
    const missing = files.flatMap(({ path, text }) =>
      [...text.matchAll(path.endsWith('.ts') ? TYPESCRIPT : NATIVE)]
        .map(([, name = '']) => name)
        .filter((name) => !page.includes(`\`${name}\``))
        .map((name) => `${path}: ${name}`),
    );
    expect(missing).toEqual([]);
  });

  it('has none that is gone', () => {
    const names = [...page.matchAll(/`([A-Z][A-Z0-9_]{3,}|k[A-Z]\w+)`/g)].map(
      ([, name = '']) => name,
    );
    expect(names.length).toBeGreaterThan(100);
    const all = files.map(({ text }) => text).join('\n');
    expect(names.filter((name) => !new RegExp(`\\b${name}\\b`).test(all))).toEqual([]);
  });
});
