/**
 * The root keys of a KMS, and the DEKs that they seal (docs/protocol.md 11.2). A generation is a file of its own, or a key in a
 * PKCS#11 token, so that making the next one never touches the one before; the highest seals, wherever it is, and a sealed DEK
 * says which one opens it.
 */
import { createSecretKey, type KeyObject, randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import {
  DEK_ID_SIZE,
  generationOf,
  openDek,
  openDekBy,
  type RemoteCipher,
  SEALED_DEK_SIZE,
  sealDek,
  sealDekBy,
} from '../../src/protocol/envelope.js';
import type { FieldValue } from '../../src/protocol/fields.js';
import type { StoredDek } from '../../src/protocol/kms-messages.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile, writeKeyFile } from '../../src/runtime/files.js';
import { KMS_KEY_KIND } from './config.js';
import { requireOwnSecret } from './secret-files.js';
import { Token } from './token.js';
import type { TokenConfig } from './token-config.js';

const FILE = /^root-([1-9]\d{0,8})\.key$/;
/** Generations of the root key that lie in a folder. */
export const MAX_GENERATIONS = 1_024;

/** A DEK that was made. */
export interface MadeDek {
  readonly id: Buffer;
  readonly key: Buffer;
  readonly sealed: Buffer;
}

/** What DEKs of a key server's store belong to: another key server of the subnet that has a copy can't have them opened. */
function storeOwner({ subnet, server }: Owner, id: Uint8Array): readonly FieldValue[] {
  return ['store', subnet, server, id];
}

/** What the DEK of an identity document belongs to. */
export interface DocumentOwner {
  readonly subnet: string;
  readonly id: string;
}

function documentOwner({ subnet, id }: DocumentOwner): readonly FieldValue[] {
  return ['identity', subnet, id];
}

/** A key server. */
export interface Owner {
  readonly subnet: string;
  readonly server: string;
}

/** Root keys in memory, and those in a token. */
export class RootKeys {
  readonly #dir: string;
  readonly #keys = new Map<number, KeyObject>();
  readonly #token: Token | undefined;
  readonly #inToken: boolean;

  private constructor(dir: string, config?: TokenConfig) {
    this.#dir = dir;
    this.#token = config === undefined ? undefined : Token.open(dir, config);
    this.#inToken = config?.makes ?? false;
  }

  /** Makes the first one in an empty folder. @throws PairwireError FILE_EXISTS */
  static make(dir: string): RootKeys {
    const keys = new RootKeys(dir);
    keys.#add(1);
    return keys;
  }

  /**
   * Reads all.
   * @param token what kms.yaml says of one
   * @throws PairwireError KMS_FAILED without any, FILE_UNREADABLE, FILE_MODE, KMS_TOKEN
   */
  static load(dir: string, token?: TokenConfig): RootKeys {
    const keys = new RootKeys(dir, token);
    for (const name of readdirSync(dir)) {
      const generation = Number(FILE.exec(name)?.[1] ?? 0);
      if (generation === 0) continue;
      const path = join(dir, name);
      requireOwnSecret(path);
      keys.#keep(generation, readKeyFile(path, KMS_KEY_KIND.root));
    }
    const twice = keys.inToken.find((generation) => keys.#keys.has(generation));
    if (twice !== undefined) {
      throw new PairwireError('KMS_FAILED', `there are two root keys of generation ${twice}`, {
        where: dir,
        hint: 'one is a file, one is in the token: move the one away that sealed nothing',
      });
    }
    if (keys.generations.length === 0) {
      throw new PairwireError('KMS_FAILED', 'there is no root key', {
        where: dir,
        hint: 'put root-*.key back from your backup: nothing that it sealed can be opened without it',
      });
    }
    return keys;
  }

  /** The one that seals. */
  get generation(): number {
    return Math.max(...this.generations);
  }

  get generations(): number[] {
    return [...this.#keys.keys(), ...this.inToken].sort((a, b) => a - b);
  }

  /** Those of them that are in the token. */
  get inToken(): number[] {
    return this.#token?.generations ?? [];
  }

  /** Makes the next one, unless there is one after `after` already: so asked twice, it makes one. @throws PairwireError LIMIT, KMS_TOKEN */
  rotate(after: number): number {
    const { generation } = this;
    if (generation !== after) return generation;
    if (this.generations.length >= MAX_GENERATIONS) {
      throw new PairwireError('LIMIT', 'there are too many root keys', {
        where: this.#dir,
        hint: 'remove those that no DEK and no backup needs any more',
      });
    }
    if (this.#token !== undefined && this.#inToken) this.#token.make(after + 1);
    else this.#add(after + 1);
    return this.generation;
  }

  /** Makes a DEK for the store of a subnet's key server. @throws PairwireError KMS_TOKEN */
  makeDek(owner: Owner): MadeDek {
    const id = randomBytes(DEK_ID_SIZE);
    const key = randomBytes(KEY_SIZE);
    const sealed = this.#seal(storeOwner(owner, id), key);
    return { id, key, sealed };
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED if the root key that sealed it is not here, KMS_TOKEN */
  openDek(owner: Owner, { id, sealed }: StoredDek): Buffer {
    return this.#open(storeOwner(owner, id), sealed);
  }

  /** Makes a DEK for an identity document. The caller wipes `key`. @throws PairwireError KMS_TOKEN */
  makeDocumentDek(owner: DocumentOwner): { readonly key: Buffer; readonly sealed: Buffer } {
    const key = randomBytes(KEY_SIZE);
    return { key, sealed: this.#seal(documentOwner(owner), key) };
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED, KMS_TOKEN as `openDek` */
  openDocumentDek(owner: DocumentOwner, sealed: Uint8Array): Buffer {
    return this.#open(documentOwner(owner), sealed);
  }

  #seal(names: readonly FieldValue[], key: Buffer): Buffer {
    const { generation } = this;
    const file = this.#keys.get(generation);
    return file === undefined
      ? sealDekBy({ generation, cipher: this.#cipher(generation) }, names, key)
      : sealDek({ generation, key: file }, names, key);
  }

  #open(names: readonly FieldValue[], sealed: Uint8Array): Buffer {
    const generation = generationOf(sealed);
    if (generation === undefined) {
      throw new PairwireError('SEAL_BROKEN', `a sealed DEK has ${SEALED_DEK_SIZE} bytes`);
    }
    const file = this.#keys.get(generation);
    if (file !== undefined) return openDek(file, names, sealed);
    return openDekBy(this.#cipher(generation), names, sealed);
  }

  /** Logs out of the token. */
  close(): void {
    this.#token?.close();
  }

  #cipher(generation: number): RemoteCipher {
    if (this.#token?.generations.includes(generation) === true) {
      return this.#token.cipher(generation);
    }
    throw new PairwireError('KMS_FAILED', `there is no generation ${generation} of the root key`, {
      where: this.#dir,
      hint: `put root-${generation}.key back from your backup, or the token that has it`,
    });
  }

  #add(generation: number): void {
    const raw = randomBytes(KEY_SIZE);
    writeKeyFile(join(this.#dir, `root-${generation}.key`), KMS_KEY_KIND.root, raw);
    this.#keep(generation, raw);
  }

  #keep(generation: number, raw: Buffer): void {
    this.#keys.set(generation, createSecretKey(raw));
    raw.fill(0);
  }
}
