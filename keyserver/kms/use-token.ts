/** Puts a PKCS#11 token into kms.yaml, once it has shown that it does what a root key has to. */
import { chownSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseDocument } from 'yaml';
import { PairwireError } from '../../src/runtime/errors.js';
import { writeFileAtomic } from '../../src/runtime/files.js';
import { parseYaml } from '../../src/settings/load-yaml.js';
import { kmsConfigSchema, kmsPaths, loadKmsConfig } from './config.js';
import { Token } from './token.js';
import { type TokenConfigInput, tokenSchema } from './token-config.js';

const PIN_FILE = 'token.pin';

/**
 * Has the next root keys made in a token: tries PIN and ciphers there, then keeps the PIN and names the token in kms.yaml.
 * A KMS that runs goes by it from its next start on.
 * @returns generations that are in the token already
 * @throws PairwireError CONFIG_INVALID, KMS_TOKEN, CONFLICT if kms.yaml names another token
 */
export function useToken(
  dir: string,
  input: Omit<TokenConfigInput, 'pinFile' | 'makes'>,
  pin: string,
): readonly number[] {
  const paths = kmsPaths(dir);
  const before = loadKmsConfig(dir).token;
  const parsed = tokenSchema.safeParse({ ...input, pinFile: `${PIN_FILE}.new` });
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new PairwireError(
      'CONFIG_INVALID',
      `${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`,
    );
  }
  const { label, serial, key } = parsed.data;
  if (
    before !== undefined &&
    (before.key !== key || before.label !== label || before.serial !== serial)
  ) {
    throw new PairwireError('CONFLICT', 'kms.yaml names another token, or other keys in it', {
      where: paths.config,
      hint: 'what that one sealed could not be opened any more: pairwire kms token --off, kms rotate --root, and when all is sealed anew, take it out of kms.yaml',
    });
  }
  const trying = join(paths.dir, `${PIN_FILE}.new`);
  const kept = join(paths.dir, PIN_FILE);
  let generations: readonly number[];
  try {
    rmSync(trying, { force: true });
    writeFileAtomic(trying, `${pin}\n`);
    give(trying, dir);
    const token = Token.open(paths.dir, parsed.data);
    try {
      token.probe();
      ({ generations } = token);
    } finally {
      token.close();
    }
    renameSync(trying, kept);
  } finally {
    rmSync(trying, { force: true });
  }
  setToken(dir, (document) => document.set('token', { ...input, pinFile: PIN_FILE }));
  return generations;
}

/** Has the next root keys made in files again; the token opens what it sealed. @throws PairwireError NOT_FOUND without a token */
export function leaveToken(dir: string): void {
  if (loadKmsConfig(dir).token === undefined) {
    throw new PairwireError('NOT_FOUND', 'kms.yaml names no token', {
      where: kmsPaths(dir).config,
    });
  }
  setToken(dir, (document) => document.setIn(['token', 'makes'], false));
}

/** Whatever else stands in kms.yaml stays, comments too. */
function setToken(dir: string, change: (document: ReturnType<typeof parseDocument>) => void): void {
  const { config: path } = kmsPaths(dir);
  const document = parseDocument(readFileSync(path, 'utf8'));
  change(document);
  const text = document.toString();
  parseYaml(text, kmsConfigSchema, path);
  writeFileAtomic(path, text);
  give(path, dir);
}

/** What root writes into the folder of a KMS belongs to that one's user. */
function give(path: string, dir: string): void {
  const { uid, gid } = statSync(dir);
  if (process.geteuid?.() === 0) chownSync(path, uid, gid);
}
