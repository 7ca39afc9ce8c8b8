/**
 * Root keys in a PKCS#11 token: AES-256, made there, sensitive, never extractable. A root key is an object with CKA_LABEL from
 * kms.yaml and its generation, 4 bytes big-endian, as CKA_ID.
 *
 *   closed --first use--> open --the token is pulled, or its session lost--> closed --next use, at most one in a second--> open
 *
 * Calls into the module are synchronous: a KMS has nothing else to do while its token works.
 */
import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import type { PKCS11, Template } from 'pkcs11js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import type { RemoteCipher } from '../../src/protocol/envelope.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { requireTrusted } from './secret-files.js';
import { PinFile, type TokenConfig } from './token-config.js';

type Binding = typeof import('pkcs11js');

const NONCE_BITS = 96;
const TAG_BITS = 128;
const ID_SIZE = 4;
/** A token that was not there is not looked for again sooner, ms: some modules take their time. */
const REOPEN_MS = 1_000;
/** Root keys under one label; more are not looked at. */
const MAX_TOKEN_KEYS = 1_024;

// PKCS#11 2.40, names without the CKR_ and CKF_ before them.
const PIN_REFUSED = new Set(['CKR_PIN_INCORRECT', 'CKR_PIN_INVALID', 'CKR_PIN_LEN_RANGE']);
const PIN_FINAL_TRY = 0x0002_0000;
const PIN_LOCKED = 0x0004_0000;
/** What a module answers if the ciphertext is at fault, and not the token. */
const DATA_REFUSED = new Set([
  'CKR_ENCRYPTED_DATA_INVALID',
  'CKR_ENCRYPTED_DATA_LEN_RANGE',
  'CKR_AEAD_DECRYPT_FAILED',
]);
const NO_CIPHER = new Set(['CKR_MECHANISM_INVALID', 'CKR_FUNCTION_NOT_SUPPORTED']);

/** What is there while the token is. */
interface Opened {
  readonly session: Buffer;
  /** Handles by generations. */
  readonly keys: Map<number, Buffer>;
}

/** One token, and the root keys in it. */
export class Token {
  readonly #config: TokenConfig;
  readonly #pin: PinFile;
  readonly #binding: Binding;
  readonly #module: PKCS11;
  readonly #elapsed: () => number;
  #opened: Opened | undefined;
  /** Those that were ever there while this process runs: one that goes must not be made again under its number. */
  readonly #known = new Set<number>();
  #failure: { readonly error: PairwireError; readonly at: number } | undefined;

  private constructor(
    config: TokenConfig,
    pin: PinFile,
    binding: Binding,
    module: PKCS11,
    elapsed: () => number,
  ) {
    this.#config = config;
    this.#pin = pin;
    this.#binding = binding;
    this.#module = module;
    this.#elapsed = elapsed;
  }

  /**
   * Loads the module, logs in, and finds the root keys.
   * @param dir folder of the KMS
   * @throws PairwireError KMS_TOKEN: no module, no such token, PIN refused, keys that could leave it; FILE_UNREADABLE, FILE_MODE
   */
  static open(
    dir: string,
    config: TokenConfig,
    elapsed: () => number = () => performance.now(),
  ): Token {
    requireTrusted(config.module);
    const binding = loadBinding();
    for (const [name, value] of Object.entries(config.environment)) process.env[name] = value;
    const module = new binding.PKCS11();
    try {
      module.load(config.module);
    } catch (cause) {
      throw new PairwireError(
        'KMS_TOKEN',
        `the PKCS#11 module cannot be loaded: ${messageOf(cause)}`,
        {
          where: config.module,
          hint: 'see that it is the library that the maker of the token gives, for this machine',
          cause,
        },
      );
    }
    const token = new Token(config, new PinFile(dir, config), binding, module, elapsed);
    token.#open();
    return token;
  }

  /** Generations of the root keys that are in it, as far as it was seen last. */
  get generations(): number[] {
    return [...(this.#opened?.keys.keys() ?? this.#known)].sort((a, b) => a - b);
  }

  /** Makes a root key. @throws PairwireError KMS_TOKEN */
  make(generation: number): void {
    this.#use('make a root key', (opened) => {
      const id = idOf(generation);
      opened.keys.set(generation, this.#generate(opened.session, { label: this.#config.key, id }));
      this.#known.add(generation);
      this.#try(opened, opened.keys.get(generation));
    });
  }

  /** The root key of a generation. What it seals is opened again before it is given out: some modules choose nonces of their own. */
  cipher(generation: number): RemoteCipher {
    return {
      seal: (nonce, data, plain) =>
        this.#use('seal', (opened) => {
          const key = this.#keyOf(opened, generation);
          const box = this.#encrypt(opened.session, key, nonce, data, plain);
          const again = this.#decrypt(opened.session, key, nonce, data, box);
          const same = again.equals(plain);
          again.fill(0);
          if (!same)
            throw this.#error('the token does not seal as AES-256-GCM with our nonce does');
          return box;
        }),
      open: (nonce, data, box) =>
        this.#use('open', (opened) => {
          const key = this.#keyOf(opened, generation);
          try {
            return this.#decrypt(opened.session, key, nonce, data, box);
          } catch (thrown) {
            if (thrown instanceof PairwireError) throw thrown;
            // Modules give many names to a tag that does not fit; if the key works, the ciphertext is at fault.
            if (!DATA_REFUSED.has(nameOf(thrown))) this.#try(opened, key);
            throw new PairwireError('SEAL_BROKEN', 'a DEK is not what this root key sealed', {
              where: this.#where,
              cause: thrown,
            });
          }
        }),
    };
  }

  /** Whether it can do what a root key does, by a key that is gone afterwards. @throws PairwireError KMS_TOKEN */
  probe(): void {
    this.#use('make a key', (opened) => {
      const key = this.#generate(opened.session, undefined);
      try {
        this.#try(opened, key);
      } finally {
        this.#module.C_DestroyObject(opened.session, key);
      }
    });
  }

  /** Logs out. */
  close(): void {
    this.#forget();
    try {
      this.#module.C_Finalize();
    } catch {
      // It was not there any more.
    }
  }

  get #where(): string {
    const { label, serial } = this.#config;
    return [label, serial].filter((part) => part !== undefined).join(', serial ');
  }

  /** Does something with the token; if that fails for the token's sake, once more after opening it anew. */
  #use<T>(what: string, work: (opened: Opened) => T): T {
    const fresh = this.#opened === undefined;
    const opened = this.#opened ?? this.#open();
    try {
      return work(opened);
    } catch (thrown) {
      if (thrown instanceof PairwireError) throw thrown;
      this.#forget();
      if (fresh) throw this.#failed(what, thrown);
    }
    // Pulled and put back, or the session was ended: handles of before mean nothing now.
    try {
      return work(this.#open());
    } catch (thrown) {
      if (thrown instanceof PairwireError) throw thrown;
      this.#forget();
      throw this.#failed(what, thrown);
    }
  }

  /** @throws PairwireError KMS_TOKEN, FILE_UNREADABLE, FILE_MODE */
  #open(): Opened {
    const now = this.#elapsed();
    const before = this.#failure;
    if (before !== undefined && now - before.at < REOPEN_MS) throw before.error;
    let session: Buffer | undefined;
    try {
      // Only from the beginning does every module see what was plugged in since.
      this.#restart();
      session = this.#session();
      const keys = this.#findKeys(session);
      for (const generation of this.#known) {
        if (!keys.has(generation)) throw this.#gone(generation);
      }
      for (const generation of keys.keys()) this.#known.add(generation);
      this.#failure = undefined;
      this.#opened = { session, keys };
      return this.#opened;
    } catch (thrown) {
      if (session !== undefined) quietly(() => this.#module.C_CloseSession(session as Buffer));
      const error = thrown instanceof PairwireError ? thrown : this.#failed('open it', thrown);
      this.#failure = { error, at: now };
      throw error;
    }
  }

  #restart(): void {
    quietly(() => this.#module.C_Finalize());
    try {
      this.#module.C_Initialize();
    } catch (thrown) {
      if (nameOf(thrown) !== 'CKR_CRYPTOKI_ALREADY_INITIALIZED') throw thrown;
    }
  }

  /** A session that is logged in. */
  #session(): Buffer {
    const binding = this.#binding;
    const module = this.#module;
    const { label, serial } = this.#config;
    const found = module.C_GetSlotList(true).flatMap((slot) => {
      try {
        const info = module.C_GetTokenInfo(slot);
        const isIt =
          (label === undefined || trimmed(info.label) === label) &&
          (serial === undefined || trimmed(info.serialNumber) === serial);
        return isIt ? [{ slot, flags: info.flags }] : [];
      } catch {
        // Pulled in this moment, or not to be read: then it is not ours.
        return [];
      }
    });
    const [token, ...more] = found;
    if (token === undefined) {
      throw this.#error(
        'the token is not there',
        'plug it in, and see with pkcs11-tool --list-slots what the module finds',
      );
    }
    if (more.length > 0) {
      throw this.#error(
        `${found.length} tokens have that label`,
        'name the serial number of the one in kms.yaml',
      );
    }
    const session = module.C_OpenSession(
      token.slot,
      binding.CKF_SERIAL_SESSION | binding.CKF_RW_SESSION,
    );
    try {
      this.#login(session, token.flags);
      return session;
    } catch (thrown) {
      quietly(() => module.C_CloseSession(session));
      throw thrown;
    }
  }

  #login(session: Buffer, flags: number): void {
    if ((flags & PIN_LOCKED) !== 0) {
      throw this.#error(
        'the PIN of the token is locked',
        "unlock it by the token's own tool, with the PIN of its security officer",
      );
    }
    const pin = this.#pin.read();
    if ((flags & PIN_FINAL_TRY) !== 0) {
      throw this.#error(
        'the token has one try left for its PIN, and this program does not take it',
        "log in once by the token's own tool",
      );
    }
    try {
      this.#module.C_Login(session, this.#binding.CKU_USER, pin);
    } catch (thrown) {
      const name = nameOf(thrown);
      if (name === 'CKR_USER_ALREADY_LOGGED_IN') return;
      if (PIN_REFUSED.has(name)) {
        this.#pin.refuse();
        throw this.#error(
          'the token has refused the PIN',
          `write the right one into ${this.#pin.path}: this one is not tried again`,
        );
      }
      if (name === 'CKR_PIN_LOCKED') this.#pin.refuse();
      throw thrown;
    }
    this.#pin.accept();
  }

  #findKeys(session: Buffer): Map<number, Buffer> {
    const binding = this.#binding;
    const module = this.#module;
    module.C_FindObjectsInit(session, [
      { type: binding.CKA_CLASS, value: binding.CKO_SECRET_KEY },
      { type: binding.CKA_LABEL, value: this.#config.key },
    ]);
    let handles: Buffer[];
    try {
      handles = module.C_FindObjects(session, MAX_TOKEN_KEYS);
    } finally {
      module.C_FindObjectsFinal(session);
    }
    const keys = new Map<number, Buffer>();
    for (const handle of handles) {
      const generation = this.#generationOf(session, handle);
      if (keys.has(generation)) {
        throw this.#error(
          `the token has generation ${generation} of the root key twice`,
          'remove the one that sealed nothing',
        );
      }
      keys.set(generation, handle);
    }
    return keys;
  }

  /** @throws PairwireError KMS_TOKEN for a key that is none of ours, or could be taken out of the token */
  #generationOf(session: Buffer, handle: Buffer): number {
    const binding = this.#binding;
    const read = (type: number): Buffer =>
      Buffer.from(
        this.#module.C_GetAttributeValue(session, handle, [{ type }])[0]?.value as Buffer,
      );
    const id = read(binding.CKA_ID);
    const generation = id.length === ID_SIZE ? id.readUInt32BE(0) : 0;
    const isAes = read(binding.CKA_KEY_TYPE).readUInt32LE(0) === binding.CKK_AES;
    if (generation === 0 || !isAes || read(binding.CKA_VALUE_LEN).readUInt32LE(0) !== KEY_SIZE) {
      throw this.#error(
        `the token has something else than root keys under the label ${this.#config.key}`,
        'choose another label for the root keys: token.key in kms.yaml',
      );
    }
    if (read(binding.CKA_SENSITIVE)[0] !== 1 || read(binding.CKA_EXTRACTABLE)[0] !== 0) {
      throw this.#error(
        `generation ${generation} of the root key can be taken out of the token`,
        'it was not made by this program: find out who put it there',
      );
    }
    return generation;
  }

  /** @param name of one that stays; without it, it goes with the session */
  #generate(
    session: Buffer,
    name: { readonly label: string; readonly id: Buffer } | undefined,
  ): Buffer {
    const it = this.#binding;
    const template: Template = [
      { type: it.CKA_CLASS, value: it.CKO_SECRET_KEY },
      { type: it.CKA_KEY_TYPE, value: it.CKK_AES },
      { type: it.CKA_VALUE_LEN, value: KEY_SIZE },
      { type: it.CKA_TOKEN, value: name !== undefined },
      { type: it.CKA_PRIVATE, value: true },
      { type: it.CKA_SENSITIVE, value: true },
      { type: it.CKA_EXTRACTABLE, value: false },
      { type: it.CKA_ENCRYPT, value: true },
      { type: it.CKA_DECRYPT, value: true },
      { type: it.CKA_WRAP, value: false },
      { type: it.CKA_UNWRAP, value: false },
    ];
    if (name !== undefined) {
      template.push({ type: it.CKA_LABEL, value: name.label }, { type: it.CKA_ID, value: name.id });
    }
    return this.#module.C_GenerateKey(session, { mechanism: it.CKM_AES_KEY_GEN }, template);
  }

  /** Seals and opens something of no meaning. */
  #try({ session }: Opened, key: Buffer | undefined): void {
    if (key === undefined) return;
    const [nonce, data, plain] = [
      randomBytes(NONCE_BITS / 8),
      randomBytes(8),
      randomBytes(KEY_SIZE),
    ];
    const box = this.#encrypt(session, key, nonce, data, plain);
    if (!this.#decrypt(session, key, nonce, data, box).equals(plain)) {
      throw this.#error('the token does not seal as AES-256-GCM with our nonce does');
    }
  }

  #encrypt(session: Buffer, key: Buffer, nonce: Buffer, data: Buffer, plain: Uint8Array): Buffer {
    this.#module.C_EncryptInit(session, this.#mechanism(nonce, data), key);
    const out = Buffer.alloc(plain.length + 2 * (TAG_BITS / 8));
    return Buffer.from(this.#module.C_Encrypt(session, Buffer.from(plain), out));
  }

  #decrypt(session: Buffer, key: Buffer, nonce: Buffer, data: Buffer, box: Uint8Array): Buffer {
    this.#module.C_DecryptInit(session, this.#mechanism(nonce, data), key);
    const out = Buffer.alloc(box.length);
    try {
      return Buffer.from(this.#module.C_Decrypt(session, Buffer.from(box), out));
    } finally {
      out.fill(0);
    }
  }

  #mechanism(iv: Buffer, aad: Buffer) {
    const it = this.#binding;
    const parameter = {
      type: it.CK_PARAMS_AES_GCM_v240,
      ...{ iv, ivBits: NONCE_BITS, aad, tagBits: TAG_BITS },
    };
    return { mechanism: it.CKM_AES_GCM, parameter };
  }

  #keyOf({ keys }: Opened, generation: number): Buffer {
    const key = keys.get(generation);
    if (key === undefined) throw this.#gone(generation);
    return key;
  }

  /** The next use opens it anew. */
  #forget(): void {
    const session = this.#opened?.session;
    this.#opened = undefined;
    if (session !== undefined) quietly(() => this.#module.C_CloseSession(session));
  }

  #gone(generation: number): PairwireError {
    return this.#error(
      `generation ${generation} of the root key is not in the token any more`,
      'somebody has removed it: what it sealed opens only if the token comes back from a backup of its own',
    );
  }

  #failed(what: string, thrown: unknown): PairwireError {
    const name = nameOf(thrown);
    if (NO_CIPHER.has(name))
      return this.#error(
        'the token has no AES-GCM',
        'choose a token that has, or keep root keys in files',
        thrown,
      );
    return this.#error(
      `the token can not ${what} now: ${name === '' ? messageOf(thrown) : name}`,
      'if it was pulled, put it back: it is looked for with the next request',
      thrown,
    );
  }

  #error(message: string, hint?: string, cause?: unknown): PairwireError {
    return new PairwireError('KMS_TOKEN', message, {
      where: this.#where,
      ...(hint === undefined ? {} : { hint }),
      ...(cause === undefined ? {} : { cause }),
    });
  }
}

/** It is an optional dependency: it is compiled at installation, and only who has a token needs it. */
function loadBinding(): Binding {
  try {
    return createRequire(import.meta.url)('pkcs11js') as Binding;
  } catch (cause) {
    throw new PairwireError('KMS_TOKEN', 'the package pkcs11js is not installed', {
      hint: 'it is compiled at installation: install a C++ compiler, and then npm ci',
      cause,
    });
  }
}

function idOf(generation: number): Buffer {
  const id = Buffer.alloc(ID_SIZE);
  id.writeUInt32BE(generation);
  return id;
}

/** The name that PKCS#11 gives to an error; empty for another one. */
function nameOf(thrown: unknown): string {
  return /\bCKR_[A-Z0-9_]+/.exec(messageOf(thrown))?.[0] ?? '';
}

/** Texts of PKCS#11 are filled up. */
function trimmed(text: string): string {
  return text.replace(/[\s\0]+$/, '');
}

function quietly(work: () => void): void {
  try {
    work();
  } catch {
    // What is to be left behind may be gone already.
  }
}
