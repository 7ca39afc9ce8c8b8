/**
 * The root keys of a KMS, and the DEKs that they seal (docs/protocol.md 11.2). A generation is a file of its own, so that making
 * the next one never touches the one before; the highest seals, and a sealed DEK says which one opens it.
 */
import { createSecretKey, type KeyObject, randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import {
  DEK_ID_SIZE,
  generationOf,
  openDek,
  SEALED_DEK_SIZE,
  sealDek,
} from '../../src/protocol/envelope.js';
import type { FieldValue } from '../../src/protocol/fields.js';
import type { StoredDek } from '../../src/protocol/kms-messages.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile, writeKeyFile } from '../../src/runtime/files.js';
import { KMS_KEY_KIND, requireOwnSecret } from './config.js';

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

/** Root keys in memory. */
export class RootKeys {
  readonly #dir: string;
  readonly #keys = new Map<number, KeyObject>();

  private constructor(dir: string) {
    this.#dir = dir;
  }

  /** Makes the first one in an empty folder. @throws PairwireError FILE_EXISTS */
  static make(dir: string): RootKeys {
    const keys = new RootKeys(dir);
    keys.#add(1);
    return keys;
  }

  /** Reads all. @throws PairwireError KMS_FAILED without any, FILE_UNREADABLE, FILE_MODE */
  static load(dir: string): RootKeys {
    const keys = new RootKeys(dir);
    for (const name of readdirSync(dir)) {
      const generation = Number(FILE.exec(name)?.[1] ?? 0);
      if (generation === 0) continue;
      const path = join(dir, name);
      requireOwnSecret(path);
      keys.#keep(generation, readKeyFile(path, KMS_KEY_KIND.root));
    }
    if (keys.#keys.size === 0) {
      throw new PairwireError('KMS_FAILED', 'there is no root key', {
        where: dir,
        hint: 'put root-*.key back from your backup: nothing that it sealed can be opened without it',
      });
    }
    return keys;
  }

  /** The one that seals. */
  get generation(): number {
    return Math.max(...this.#keys.keys());
  }

  get generations(): number[] {
    return [...this.#keys.keys()].sort((a, b) => a - b);
  }

  /** Makes the next one, unless there is one after `after` already: so asked twice, it makes one. @throws PairwireError LIMIT */
  rotate(after: number): number {
    if (this.generation !== after) return this.generation;
    if (this.#keys.size >= MAX_GENERATIONS) {
      throw new PairwireError('LIMIT', 'there are too many root keys', {
        where: this.#dir,
        hint: 'remove those that no DEK and no backup needs any more',
      });
    }
    this.#add(after + 1);
    return this.generation;
  }

  /** Makes a DEK for the store of a subnet's key server. */
  makeDek(owner: Owner): MadeDek {
    const id = randomBytes(DEK_ID_SIZE);
    const key = randomBytes(KEY_SIZE);
    const { generation } = this;
    const root = { generation, key: this.#root(generation) };
    return { id, key, sealed: sealDek(root, storeOwner(owner, id), key) };
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED if the root key that sealed it is not here */
  openDek(owner: Owner, { id, sealed }: StoredDek): Buffer {
    const generation = generationOf(sealed);
    if (generation === undefined) {
      throw new PairwireError('SEAL_BROKEN', `a sealed DEK has ${SEALED_DEK_SIZE} bytes`);
    }
    return openDek(this.#root(generation), storeOwner(owner, id), sealed);
  }

  /** Makes a DEK for an identity document. The caller wipes `key`. */
  makeDocumentDek(owner: DocumentOwner): { readonly key: Buffer; readonly sealed: Buffer } {
    const key = randomBytes(KEY_SIZE);
    const { generation } = this;
    const root = { generation, key: this.#root(generation) };
    return { key, sealed: sealDek(root, documentOwner(owner), key) };
  }

  /** @throws PairwireError SEAL_BROKEN, KMS_FAILED as `openDek` */
  openDocumentDek(owner: DocumentOwner, sealed: Uint8Array): Buffer {
    const generation = generationOf(sealed);
    if (generation === undefined) {
      throw new PairwireError('SEAL_BROKEN', `a sealed DEK has ${SEALED_DEK_SIZE} bytes`);
    }
    return openDek(this.#root(generation), documentOwner(owner), sealed);
  }

  #root(generation: number): KeyObject {
    const key = this.#keys.get(generation);
    if (key !== undefined) return key;
    throw new PairwireError('KMS_FAILED', `there is no generation ${generation} of the root key`, {
      where: this.#dir,
      hint: `put root-${generation}.key back from your backup`,
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
