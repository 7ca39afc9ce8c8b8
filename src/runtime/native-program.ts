/** Where the native programs of this package are. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PairwireError } from './errors.js';

/** Where packages install them. */
const INSTALLED = ['/usr/libexec/pairwire', '/usr/local/libexec/pairwire'];

export type NativeProgram = 'pairwire-devices' | 'pairwire-dataplane' | 'pairwire-relay';

/** The checkout or package that this file belongs to, compiled or not. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new PairwireError('PLATFORM', 'package.json is missing');
    folder = parent;
  }
  return folder;
}

/** The path of a native program: the one built in this checkout, else the installed one. @throws PairwireError PLATFORM */
export function findProgram(name: NativeProgram): string {
  const candidates = [
    join(packageRoot(), 'gateway/native/build/release', name),
    ...INSTALLED.map((folder) => join(folder, name)),
  ];
  const found = candidates.find((path) => existsSync(path));
  if (found === undefined) {
    throw new PairwireError('PLATFORM', `${name} is neither built nor installed`, {
      hint: 'run: npm run build:native',
    });
  }
  return found;
}
