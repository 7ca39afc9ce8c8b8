/** Makes the folder of a KMS beside a key server that has none yet. */
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  lstatSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { generateRawKeyPair } from '../../src/protocol/public-keys.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import {
  makeSecretFolder,
  readKeyFile,
  syncPath,
  writeFileAtomic,
  writeKeyFile,
} from '../../src/runtime/files.js';
import { KMS_KEY_KIND, kmsConfigText, kmsPaths } from './config.js';
import { RootKeys } from './root-keys.js';

/** Whom a new KMS serves. */
export interface NewKms {
  readonly subnet: Id;
  readonly server: Id;
  /** Public channel key of that key server. */
  readonly serverKey: Uint8Array;
  /** The operator's public key. */
  readonly operator: Uint8Array;
  /** Folder of a KMS that has lost its root keys: its channel key, which settings name, its log and its directory of identities go on. */
  readonly inPlaceOf?: string | undefined;
}

/** What does not hang on root keys. */
const KEPT = /^(kms\.key|audit\.key|audit(-\d+)?\.log|identities\.(log|head))$/;

/**
 * True if there is a KMS in a folder.
 * @throws PairwireError FILE_UNREADABLE where that can't be seen: it must not be taken for none
 */
export function hasKms(dir: string): boolean {
  const { config } = kmsPaths(dir);
  try {
    statSync(config);
    return true;
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
    if (code === 'ENOENT') return false;
    throw new PairwireError(
      'FILE_UNREADABLE',
      `the KMS can not be looked for: ${messageOf(cause)}`,
      {
        where: config,
        hint: 'its folder may belong to another user: run as before, or give it to the user that the KMS runs as',
        cause,
      },
    );
  }
}

/** The public channel key of the KMS in a folder. @throws PairwireError FILE_UNREADABLE, FILE_MODE */
export function kmsPublicKey(dir: string): Buffer {
  return keyPairFromPrivate(readKeyFile(kmsPaths(dir).key, KMS_KEY_KIND.channel)).publicKey;
}

/**
 * Makes root key, channel key, audit key and kms.yaml, in a folder that gets its name when it is whole. What is in a folder
 * of that name already is never touched.
 * @returns the root key, for the first DEK
 * @throws PairwireError FILE_EXISTS
 */
export function makeKms(dir: string, whom: NewKms): RootKeys {
  const { subnet, server, serverKey, operator, inPlaceOf } = whom;
  if (hasKms(dir)) {
    throw new PairwireError('FILE_EXISTS', 'there is a KMS in this folder already', { where: dir });
  }
  if (existsSync(dir) && readdirSync(dir).length > 0) {
    throw new PairwireError('FILE_EXISTS', 'there are files in this folder, and no kms.yaml', {
      where: dir,
      hint: 'a KMS is put back as a whole folder: kms.yaml, kms.key, audit.key and every root-*.key',
    });
  }
  const making = `${dir}.making`;
  rmSync(making, { recursive: true, force: true });
  const paths = kmsPaths(making);
  makeSecretFolder(paths.dir);
  const channel = generateRawKeyPair('x25519');
  writeKeyFile(paths.key, KMS_KEY_KIND.channel, channel.privateKey);
  const auditKey = randomBytes(KEY_SIZE);
  writeKeyFile(paths.auditKey, KMS_KEY_KIND.audit, auditKey);
  for (const secret of [channel.privateKey, auditKey]) secret.fill(0);
  if (inPlaceOf !== undefined) keepFrom(inPlaceOf, paths.dir);
  RootKeys.make(paths.dir);
  const key = Buffer.from(serverKey).toString('base64url');
  const config = {
    ...{ subnet, operator: Buffer.from(operator).toString('base64url') },
    keyServers: [{ server, key }],
  };
  writeFileAtomic(paths.config, kmsConfigText(config), { exclusive: true });
  if (existsSync(dir)) rmdirSync(dir);
  renameSync(making, dir);
  // Before anything is sealed by it.
  syncPath(dirname(dir));
  return RootKeys.load(dir);
}

function keepFrom(before: string, dir: string): void {
  for (const name of readdirSync(before).filter((one) => KEPT.test(one))) {
    const [from, to] = [join(before, name), join(dir, name)];
    if (!lstatSync(from).isFile()) continue;
    rmSync(to, { force: true });
    copyFileSync(from, to);
    chmodSync(to, 0o600);
    syncPath(to);
  }
}
