/** Runs a command of the key server as a user does: a process with arguments, standard input and output. */
import { execFile } from 'node:child_process';
import { keyServerProgram } from '../../../programs/key-server.js';

export interface CommandResult {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** @param input what it reads from standard input */
export function pairwire(args: readonly string[], input = ''): Promise<CommandResult> {
  return new Promise((resolve) => {
    const argv = keyServerProgram(...args);
    const child = execFile(process.execPath, argv, (error, out, err) => {
      const code = typeof error?.code === 'number' ? error.code : error === null ? 0 : 1;
      resolve({ code, out, err });
    });
    child.stdin?.end(input);
  });
}
