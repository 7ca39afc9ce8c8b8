/** The program as it is installed, on this version of Node.js: what it sets in V8 for what runs for long (scripts/pairwire.mjs) is known there. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const PROGRAM = fileURLToPath(new URL('../../../../scripts/pairwire.mjs', import.meta.url));

it.each([
  ['up', 'gateway.yaml'],
  ['keyserver', 'keyserver.yaml'],
])('`%s` says what is wrong, and nothing else', (command, file) => {
  const args = [PROGRAM, command, '--dir', '/nonexistent'];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  expect(stderr).toBe(
    `error: cannot read the configuration: ENOENT: no such file or directory, open '/nonexistent/${file}'\n`,
  );
  expect([status, stdout]).toEqual([1, '']);
});
