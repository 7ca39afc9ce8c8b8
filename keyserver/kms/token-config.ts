/** A PKCS#11 token in kms.yaml, and its PIN. */
import { readFileSync, rmSync, statSync } from 'node:fs';
import { isAbsolute, resolve } from 'node:path';
import { z } from 'zod';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { writeFileAtomic } from '../../src/runtime/files.js';
import { requireOwnSecret } from './secret-files.js';

/** Characters of a token's label, and of its serial number (PKCS#11, CK_TOKEN_INFO). */
const LABEL_SIZE = 32;
const SERIAL_SIZE = 16;
/** Bytes of a PIN file. */
const MAX_PIN_FILE = 256;
/** Variables for a module. */
const MAX_MODULE_VARIABLES = 16;

/** `token` of kms.yaml. */
export const tokenSchema = z
  .strictObject({
    /** The PKCS#11 module: a shared library that the token's maker gives. */
    module: z.string().max(4_096).refine(isAbsolute, 'must be an absolute path'),
    /** Which token: by its label, its serial number, or both. */
    label: z.string().min(1).max(LABEL_SIZE).optional(),
    serial: z.string().min(1).max(SERIAL_SIZE).optional(),
    /** CKA_LABEL of the root keys in it; CKA_ID is the generation. */
    key: z.string().min(1).max(64),
    /** The PIN, mode 0600; in the KMS's folder unless the path is absolute. */
    pinFile: z.string().min(1).max(4_096).default('token.pin'),
    /** What the module wants to find in its environment: a KMS that is a child has an empty one. */
    environment: z
      .record(z.string().regex(/^[A-Z][A-Z0-9_]{0,63}$/), z.string().max(4_096))
      .refine((all) => Object.keys(all).length <= MAX_MODULE_VARIABLES, 'too many variables')
      .default({}),
    /** Whether the next root key is made in it; if not, in a file, and the token opens what it has sealed. */
    makes: z.boolean().default(true),
  })
  .refine(({ label, serial }) => label !== undefined || serial !== undefined, {
    message: 'must have a label, a serial or both',
    path: ['label'],
  });
export type TokenConfig = z.output<typeof tokenSchema>;
export type TokenConfigInput = z.input<typeof tokenSchema>;

/**
 * The PIN of a token, in a file. Tokens lock after a few wrong ones, and programs are started again and again: a PIN that was refused
 * is noted beside it, and not tried once more until the file is another one.
 */
export class PinFile {
  readonly path: string;
  readonly #refusedPath: string;
  /** Where the note can't be written. */
  #refused: string | undefined;

  constructor(dir: string, { pinFile }: Pick<TokenConfig, 'pinFile'>) {
    this.path = resolve(dir, pinFile);
    this.#refusedPath = resolve(dir, 'token.pin-refused');
  }

  /** @throws PairwireError KMS_TOKEN for one that the token has refused; FILE_UNREADABLE, FILE_MODE */
  read(): string {
    requireOwnSecret(this.path);
    const stamp = this.#stamp();
    if (this.#refused === stamp || this.#noted() === stamp) {
      throw new PairwireError(
        'KMS_TOKEN',
        'the token has refused this PIN: it is not tried again',
        {
          where: this.path,
          hint: 'tokens lock after a few wrong ones: write the right PIN into this file',
        },
      );
    }
    const bytes = readFileSync(this.path);
    const pin = bytes.toString('utf8').replace(/\r?\n$/, '');
    bytes.fill(0);
    if (pin.length === 0 || bytes.length > MAX_PIN_FILE || /[\r\n\0]/.test(pin)) {
      throw new PairwireError('KMS_TOKEN', 'the file does not hold a PIN: one line of text', {
        where: this.path,
      });
    }
    return pin;
  }

  /** Notes that the token does not take it. */
  refuse(): void {
    this.#refused = this.#stamp();
    try {
      // No secret, and whoever looks at the folder as root must not shut its owner out.
      writeFileAtomic(this.#refusedPath, `${this.#refused}\n`, { mode: 0o644 });
    } catch {
      // A full disk: this process at least does not try again.
    }
  }

  /** Notes that it was taken. */
  accept(): void {
    this.#refused = undefined;
    rmSync(this.#refusedPath, { force: true });
  }

  #noted(): string | undefined {
    try {
      return readFileSync(this.#refusedPath, 'latin1').trim();
    } catch {
      return undefined;
    }
  }

  /** Tells one writing of the file from another, and nothing of what is in it. */
  #stamp(): string {
    try {
      const { ino, mtimeNs, size } = statSync(this.path, { bigint: true });
      return `${ino} ${mtimeNs} ${size}`;
    } catch (cause) {
      throw new PairwireError('FILE_UNREADABLE', messageOf(cause), { where: this.path, cause });
    }
  }
}
