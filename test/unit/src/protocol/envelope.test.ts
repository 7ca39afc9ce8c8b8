/** Envelopes: what was sealed opens in its place, and nothing else does. Bytes are held by test/vectors/envelope.json. */
import { createSecretKey, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { gcm } from '@noble/ciphers/aes.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LABEL } from '../../../../src/protocol/constants.js';
import {
  type Dek,
  dekOf,
  generationOf,
  type KeyPlace,
  openDek,
  openKey,
  SEALED_KEY_SIZE,
  sealDek,
  sealKey,
} from '../../../../src/protocol/envelope.js';
import { fields } from '../../../../src/protocol/fields.js';

const raw = randomBytes(32);
const dek: Dek = { id: randomBytes(8), key: createSecretKey(raw) };
const place: KeyPlace = {
  ...{ store: randomBytes(16), table: 'pair_keys', column: 'key', ids: ['alice', 'bob'], pwId: 7 },
};

describe('a sealed key', () => {
  it('opens in its place, also by another implementation', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        fc.array(fc.string({ unit: 'binary', maxLength: 80 }), { maxLength: 3 }),
        fc.nat({ max: Number.MAX_SAFE_INTEGER }),
        (key, ids, pwId) => {
          const here = { ...place, ids, pwId };
          const sealed = sealKey(dek, here, key);
          expect(openKey(dek, here, sealed)).toEqual(Buffer.from(key));
          expect(dekOf(sealed)).toEqual(dek.id);
          const header = sealed.subarray(0, 9);
          const data = fields(
            ...[LABEL.envelope, header, here.store, here.table, here.column, ids.length],
            ...[...ids, pwId],
          );
          const open = gcm(raw, sealed.subarray(9, 21), data).decrypt(sealed.subarray(21));
          expect(Buffer.from(open)).toEqual(Buffer.from(key));
        },
      ),
    );
  });

  it('opens in no other place, by no other DEK, and not if a bit of it is another', () => {
    const sealed = sealKey(dek, place, randomBytes(32));
    const broken = { code: 'SEAL_BROKEN' };
    const others: KeyPlace[] = [
      { ...place, store: randomBytes(16) },
      { ...place, table: 'nets' },
      { ...place, column: 'next_key' },
      { ...place, ids: ['bob', 'alice'] },
      { ...place, ids: ['alice', 'bobb'] },
      { ...place, ids: ['alicebob'] },
      { ...place, pwId: 8 },
    ];
    const failing = (open: () => unknown): unknown => {
      try {
        return open();
      } catch (thrown) {
        return thrown;
      }
    };
    for (const other of others) {
      expect(failing(() => openKey(dek, other, sealed))).toMatchObject(broken);
    }
    const another = { id: dek.id, key: createSecretKey(randomBytes(32)) };
    expect(failing(() => openKey(another, place, sealed))).toMatchObject(broken);
    for (let bit = 0; bit < 8 * SEALED_KEY_SIZE; bit += 1) {
      const changed = Buffer.from(sealed);
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(
        failing(() => openKey(dek, place, changed)),
        `${bit}`,
      ).toMatchObject(broken);
    }
    for (let size = 0; size < SEALED_KEY_SIZE; size += 1) {
      expect(failing(() => openKey(dek, place, sealed.subarray(0, size)))).toMatchObject(broken);
    }
  });

  it('never has a nonce twice', () => {
    const nonces = Array.from({ length: 2_000 }, () =>
      sealKey(dek, place, raw).subarray(9, 21).toString('hex'),
    );
    expect(new Set(nonces).size).toBe(nonces.length);
  });
});

it('the vectors hold', () => {
  const file = new URL('../../../vectors/envelope.json', import.meta.url);
  const { keys, deks } = JSON.parse(readFileSync(file, 'utf8')) as {
    keys: Record<string, string & string[] & number>[];
    deks: Record<string, string & string[] & number>[];
  };
  const hex = (text: string | undefined): Buffer => Buffer.from(text ?? '', 'hex');
  expect(keys.length).toBeGreaterThan(2);
  for (const one of keys) {
    const by = { id: hex(one.dekId), key: createSecretKey(hex(one.dek)) };
    const here = {
      ...{ store: hex(one.store), table: one.table ?? '', column: one.column ?? '' },
      ...{ ids: one.ids ?? [], pwId: one.pwId ?? 0 },
    };
    expect(sealKey(by, here, hex(one.key), hex(one.nonce))).toEqual(hex(one.sealed));
    expect(openKey(by, here, hex(one.sealed))).toEqual(hex(one.key));
  }
  for (const one of deks) {
    const root = createSecretKey(hex(one.root));
    const owner = ['store', one.subnet ?? '', one.server ?? '', hex(one.dekId)];
    const generation = one.generation ?? 0;
    expect(sealDek({ generation, key: root }, owner, hex(one.dek), hex(one.nonce))).toEqual(
      hex(one.sealed),
    );
    expect(generationOf(hex(one.sealed))).toBe(generation);
    expect(openDek(root, owner, hex(one.sealed))).toEqual(hex(one.dek));
  }
});
