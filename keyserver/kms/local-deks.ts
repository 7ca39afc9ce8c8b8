/** DEKs by root keys at hand: for whoever makes a KMS, and seals the first keys of a new store. */
import type { StoredDek } from '../../src/protocol/kms-messages.js';
import { loadKmsConfig } from './config.js';
import { type MadeDek, RootKeys } from './root-keys.js';

export class LocalDeks {
  readonly #roots: RootKeys;
  readonly #subnet: string;

  constructor(roots: RootKeys, subnet: string) {
    this.#roots = roots;
    this.#subnet = subnet;
  }

  /** Those of a KMS's folder. @throws PairwireError as `loadKmsConfig` and `RootKeys.load` */
  static load(dir: string): LocalDeks {
    return new LocalDeks(RootKeys.load(dir), loadKmsConfig(dir).subnet);
  }

  /** Makes one. */
  async make(): Promise<MadeDek> {
    return this.#roots.makeDek(this.#subnet);
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED */
  async open(deks: readonly StoredDek[]): Promise<readonly Buffer[]> {
    return deks.map((dek) => this.#roots.openDek(this.#subnet, dek));
  }
}
