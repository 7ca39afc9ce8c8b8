/** The key server's commands as a program of their own, for tests that start processes. */

import { keyserverCommands } from '../../keyserver/cli.js';
import { createProgram, runProgram } from '../../src/cli/output.js';

const program = createProgram('pairwire', 'key server commands');
keyserverCommands(program);
process.exitCode = await runProgram(program, process.argv.slice(2));
