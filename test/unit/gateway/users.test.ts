/** Giving a folder to the gateway's user: only what is its own. Needs root, as `join` and `up` do then. */
import { execFileSync } from 'node:child_process';
import {
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { chownToUser, findUser, isRoot } from '../../../gateway/users.js';

describe.runIf(isRoot())('chownToUser', () => {
  let root: string;
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'pw-users-'));
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  it('gives the folder and its plain files, and nothing that another name leads to', () => {
    const nobody = findUser('nobody');
    const dir = join(root, 'dir');
    const outside = join(root, 'shadow');
    mkdirSync(join(dir, 'inner'), { recursive: true });
    writeFileSync(outside, '');
    writeFileSync(join(root, 'linked'), '');
    for (const name of ['gateway.yaml', 'inner/file']) writeFileSync(join(dir, name), '');
    symlinkSync(outside, join(dir, 'symbolic'));
    linkSync(join(root, 'linked'), join(dir, 'hard'));
    execFileSync('mkfifo', [join(dir, 'fifo')]);
    chownToUser(dir, 'nobody');
    const owner = (path: string) => lstatSync(join(root, path)).uid;
    expect(['dir', 'dir/gateway.yaml'].map(owner)).toEqual([nobody?.uid, nobody?.uid]);
    const others = ['shadow', 'linked', 'dir/symbolic', 'dir/hard', 'dir/fifo', 'dir/inner'];
    expect(others.map(owner)).toEqual(others.map(() => 0));
  });
});
