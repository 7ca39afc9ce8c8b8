/** DEKs by root keys at hand: for whoever makes a KMS, and seals the first keys of a new store. */
import type { StoredDek } from '../../src/protocol/kms-messages.js';
import { loadKmsConfig } from './config.js';
import { type MadeDek, type Owner, RootKeys } from './root-keys.js';

export class LocalDeks {
  readonly #roots: RootKeys;
  readonly #owner: Owner;

  constructor(roots: RootKeys, owner: Owner) {
    this.#roots = roots;
    this.#owner = owner;
  }

  /** Those of the first key server that a KMS's folder names. @throws PairwireError as `loadKmsConfig` and `RootKeys.load` */
  static load(dir: string): LocalDeks {
    const { subnet, keyServers, token } = loadKmsConfig(dir);
    const server = keyServers[0]?.server ?? '';
    return new LocalDeks(RootKeys.load(dir, token), { subnet, server });
  }

  /** Makes one. */
  async make(): Promise<MadeDek> {
    return this.#roots.makeDek(this.#owner);
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED */
  async open(deks: readonly StoredDek[]): Promise<readonly Buffer[]> {
    return deks.map((dek) => this.#roots.openDek(this.#owner, dek));
  }
}
