/** Where the key files of a key server are while a backup is checked or put back: in its folder, in others, in the backup. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { KEY_KIND } from '../config.js';
import { KMS_CONFIG_PART, type Manifest, ROOT_KEY_PART } from './manifest.js';

/** Folders that are looked through in their order. */
export class KeyFiles {
  readonly #folders: readonly string[];

  constructor(folders: readonly string[]) {
    this.#folders = folders;
  }

  /** The first file of that name. */
  find(name: string): string | undefined {
    return this.#folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
  }

  /** Names of root keys that are anywhere. */
  rootKeys(): string[] {
    const names = this.#folders.flatMap((folder) => rootKeysIn(folder));
    return [...new Set(names)].sort();
  }

  /** The first folder with a whole KMS in it: one to open keys with. */
  kms(): string | undefined {
    return this.#folders
      .filter(
        (folder) =>
          existsSync(join(folder, KMS_CONFIG_PART)) &&
          // With its PIN, root keys may all be in a token.
          (rootKeysIn(folder).length > 0 || existsSync(join(folder, 'kms/token.pin'))),
      )
      .map((folder) => join(folder, 'kms'))
      .at(0);
  }

  /**
   * The audit key of the server that a backup is of.
   * @returns undefined if it is in none of the folders
   * @throws PairwireError BACKUP_REFUSED for the keys of another server, FILE_UNREADABLE, FILE_MODE
   */
  auditKeyOf({ serverKey, subnet, server }: Manifest): Buffer | undefined {
    const own = this.find('server.key');
    if (own !== undefined) {
      const raw = readKeyFile(own, KEY_KIND.server);
      const { publicKey } = keyPairFromPrivate(raw);
      if (publicKey.toString('base64url') !== serverKey) {
        throw new PairwireError('BACKUP_REFUSED', 'these are the keys of another key server', {
          where: own,
          hint: `the backup is of subnet ${subnet}, server ${server}, with the public key ${serverKey}`,
        });
      }
    }
    const path = this.find('audit.key');
    return path === undefined ? undefined : readKeyFile(path, KEY_KIND.audit);
  }
}

/** Names, as parts of a backup, of the root keys in a key server's folder. */
export function rootKeysIn(folder: string): string[] {
  const kms = join(folder, 'kms');
  if (!existsSync(kms)) return [];
  return readdirSync(kms)
    .map((name) => `kms/${name}`)
    .filter((name) => ROOT_KEY_PART.test(name))
    .sort();
}
