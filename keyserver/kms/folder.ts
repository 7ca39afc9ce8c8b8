/** Makes the folder of a KMS beside a key server that has none yet. */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { Id } from '../../src/protocol/ids.js';
import { generateRawKeyPair } from '../../src/protocol/public-keys.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { makeSecretFolder, writeFileAtomic, writeKeyFile } from '../../src/runtime/files.js';
import { KMS_KEY_KIND, kmsConfigText, kmsPaths } from './config.js';
import { RootKeys } from './root-keys.js';

/** Whom a new KMS serves. */
export interface NewKms {
  readonly subnet: Id;
  readonly server: Id;
  /** Public channel key of that key server. */
  readonly serverKey: Uint8Array;
}

/** True if there is a KMS in a folder. */
export function hasKms(dir: string): boolean {
  return existsSync(kmsPaths(dir).config);
}

/**
 * Makes root key, channel key, audit key and kms.yaml. The last one comes last: a folder with it is complete, and what an
 * attempt before it left is made anew, for nothing can be sealed by it.
 * @returns the root key, for the first DEK
 * @throws PairwireError FILE_EXISTS
 */
export function makeKms(dir: string, { subnet, server, serverKey }: NewKms): RootKeys {
  const paths = kmsPaths(dir);
  if (hasKms(dir)) {
    throw new PairwireError('FILE_EXISTS', 'there is a KMS in this folder already', { where: dir });
  }
  makeSecretFolder(paths.dir);
  for (const name of readdirSync(paths.dir)) rmSync(`${paths.dir}/${name}`);
  const channel = generateRawKeyPair('x25519');
  writeKeyFile(paths.key, KMS_KEY_KIND.channel, channel.privateKey);
  const auditKey = randomBytes(KEY_SIZE);
  writeKeyFile(paths.auditKey, KMS_KEY_KIND.audit, auditKey);
  for (const secret of [channel.privateKey, auditKey]) secret.fill(0);
  const roots = RootKeys.make(paths.dir);
  const key = Buffer.from(serverKey).toString('base64url');
  writeFileAtomic(paths.config, kmsConfigText({ subnet, keyServers: [{ server, key }] }), {
    exclusive: true,
  });
  return roots;
}
