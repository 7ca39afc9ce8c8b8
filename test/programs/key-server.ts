/** How tests start the key server's commands as processes. */
import { join } from 'node:path';

/** The variable that names the folder of the compiled sources (compile.ts). */
export const COMPILED = 'PAIRWIRE_TEST_COMPILED';

/** Arguments for Node.js: the program, then those of the command. @throws Error outside a run of vitest */
export function keyServerProgram(...args: readonly string[]): string[] {
  const folder = process.env[COMPILED];
  if (folder === undefined) throw new Error(`${COMPILED} is not set: run the tests by vitest`);
  return [join(folder, 'test/programs/pairwire-keyserver.js'), ...args];
}
