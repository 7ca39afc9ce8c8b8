/** How tests start the key server's commands as processes. */
import { join } from 'node:path';

/** The variable that names the folder of the compiled sources (compile.ts). */
export const COMPILED = 'PAIRWIRE_TEST_COMPILED';

/** A compiled source, by its path in the checkout. @throws Error outside a run of vitest */
export function compiledFile(path: string): string {
  const folder = process.env[COMPILED];
  if (folder === undefined) throw new Error(`${COMPILED} is not set: run the tests by vitest`);
  return join(folder, path);
}

/** Arguments for Node.js: the program, then those of the command. */
export function keyServerProgram(...args: readonly string[]): string[] {
  return [compiledFile('test/programs/pairwire-keyserver.js'), ...args];
}
