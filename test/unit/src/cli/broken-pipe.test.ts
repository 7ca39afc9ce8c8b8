/** A reader that goes early (`pairwire audit | head`) is no error. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const root = fileURLToPath(new URL('../../../..', import.meta.url));

it('a command whose output nobody reads any more ends quietly, with success', () => {
  const command = `'${process.execPath}' --import tsx scripts/pairwire.ts --help`;
  const { status, stderr } = spawnSync(
    'bash',
    ['-c', `(sleep 1; ${command}) | true; exit \${PIPESTATUS[0]}`],
    { cwd: root, encoding: 'utf8' },
  );
  expect(stderr).not.toMatch(/EPIPE|Unhandled/);
  expect(status).toBe(0);
});
