/** A join token as a command takes it: from standard input, from a file, or, with a warning, from the command line. */
import { readFileSync } from 'node:fs';
import { PairwireError } from '../runtime/errors.js';
import type { OutputTarget } from './output.js';

const MAX_TOKEN_FILE = 16_384;

/**
 * The text of the one token that a command was given.
 * @param usage an example of the command, for whoever gave none or two
 * @throws PairwireError USAGE, FILE_UNREADABLE
 */
export function readTokenInput(
  target: OutputTarget,
  argument: string | undefined,
  file: string | undefined,
  usage: string,
): string {
  if ((argument === undefined) === (file === undefined)) {
    throw new PairwireError('USAGE', 'give one join token', {
      hint: `${usage} -  (standard input), --token-file FILE, or the token itself`,
    });
  }
  if (argument === undefined || argument === '-') return readTokenFile(file ?? '-');
  target.err(
    'warning: every user of this machine can see a token on the command line; rather use --token-file or -\n',
  );
  return argument;
}

/** Reads a token from a file, or from standard input for `-`. */
function readTokenFile(path: string): string {
  try {
    const text = readFileSync(path === '-' ? 0 : path, 'utf8');
    if (text.length > MAX_TOKEN_FILE) throw new Error('the file is too long for a token');
    return text;
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', 'the token could not be read', {
      where: path === '-' ? 'standard input' : path,
      cause,
    });
  }
}
