/**
 * Noise_IK_25519_AESGCM_SHA256 and Noise_IKpsk2_25519_AESGCM_SHA256 (The Noise Protocol
 * Framework, revision 34; docs/protocol.md 6.2), as a machine without I/O. Section numbers
 * below are those of the Noise specification.
 */
import { createCipheriv, createDecipheriv, type KeyObject } from 'node:crypto';
import { PairwireError } from '../../runtime/errors.js';
import { KEY_SIZE, TAG_SIZE } from '../constants.js';
import { hmacSha256 as hmac, sha256 } from './hash.js';
import { generateKeyPair, type KeyPair, publicKeyFromRaw, sharedSecret } from './keys.js';

/** The name of a handshake pattern. */
export type PatternName = 'IK' | 'IKpsk2';
type Token = 'e' | 's' | 'ee' | 'es' | 'se' | 'ss' | 'psk';

/** Token table, section 7.5 and 9.4. The pre-message of both is `<- s`: the initiator knows the responder's static key. */
const PATTERNS: Record<PatternName, readonly (readonly Token[])[]> = {
  IK: [
    ['e', 'es', 's', 'ss'], // -> e, es, s, ss
    ['e', 'ee', 'se'], //      <- e, ee, se
  ],
  IKpsk2: [
    ['e', 'es', 's', 'ss'], //   -> e, es, s, ss
    ['e', 'ee', 'se', 'psk'], // <- e, ee, se, psk
  ],
};

/** Noise messages are at most 65,535 bytes (section 3). */
export const MAX_NOISE_MESSAGE = 65_535;
/** What message 1 and message 2 are longer than their payloads. */
export const MESSAGE_1_OVERHEAD = KEY_SIZE + KEY_SIZE + TAG_SIZE + TAG_SIZE;
export const MESSAGE_2_OVERHEAD = KEY_SIZE + TAG_SIZE;

const EMPTY = Buffer.alloc(0);
const ONE = Buffer.from([1]);
const TWO = Buffer.from([2]);
const THREE = Buffer.from([3]);

/** A cipher with its nonce, section 5.1. Nonce: 4 zero bytes and the 64-bit big-endian number (section 12.4). */
export class CipherState {
  #key: Buffer | undefined;
  #number = 0;
  readonly #nonce = Buffer.alloc(12);

  /** InitializeKey(k). The bytes are taken over and zeroed by `wipe`. */
  initializeKey(key: Buffer): void {
    this.#key?.fill(0);
    this.#key = key;
    this.#number = 0;
  }

  get hasKey(): boolean {
    return this.#key !== undefined;
  }

  /** EncryptWithAd: ciphertext and tag; without a key the plaintext as it is. */
  encryptWithAd(ad: Uint8Array, plaintext: Uint8Array): Buffer {
    if (this.#key === undefined) return Buffer.from(plaintext);
    const cipher = createCipheriv('aes-256-gcm', this.#key, this.#nextNonce(), {
      authTagLength: TAG_SIZE,
    });
    cipher.setAAD(ad);
    const sealed = cipher.update(plaintext);
    cipher.final();
    return Buffer.concat([sealed, cipher.getAuthTag()]);
  }

  /** DecryptWithAd. @throws PairwireError CHANNEL_HANDSHAKE if the tag is wrong; the nonce then stays */
  decryptWithAd(ad: Uint8Array, sealed: Uint8Array): Buffer {
    if (this.#key === undefined) return Buffer.from(sealed);
    if (sealed.length < TAG_SIZE) throw notAuthentic();
    const number = this.#number;
    const decipher = createDecipheriv('aes-256-gcm', this.#key, this.#nextNonce(), {
      authTagLength: TAG_SIZE,
    });
    decipher.setAAD(ad);
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_SIZE));
    const plaintext = decipher.update(sealed.subarray(0, sealed.length - TAG_SIZE));
    try {
      decipher.final();
    } catch {
      this.#number = number;
      throw notAuthentic();
    }
    return plaintext;
  }

  /** Takes over a copy of another cipher's key and number. */
  copyFrom(other: CipherState): void {
    this.#key = other.#key === undefined ? undefined : Buffer.from(other.#key);
    this.#number = other.#number;
  }

  wipe(): void {
    this.#key?.fill(0);
    this.#key = undefined;
  }

  #nextNonce(): Buffer {
    if (this.#number >= Number.MAX_SAFE_INTEGER) {
      throw new PairwireError('CHANNEL_EXPIRED', 'a cipher has used up its nonces');
    }
    this.#nonce.writeUInt32BE(Math.floor(this.#number / 0x1_0000_0000), 4);
    this.#nonce.writeUInt32BE(this.#number >>> 0, 8);
    this.#number += 1;
    return this.#nonce;
  }
}

/** What a finished handshake leaves: the keys of both directions and our third output, docs/protocol.md 6.2. */
export interface HandshakeResult {
  /** Initiator to responder. */
  readonly initiatorKey: Buffer;
  /** Responder to initiator. */
  readonly responderKey: Buffer;
  /** Key of the one-time passwords in both directions. */
  readonly otpKey: Buffer;
  /** Names this handshake uniquely (section 11.2). */
  readonly handshakeHash: Buffer;
}

/** Chaining key, transcript hash and cipher of a handshake, section 5.2. */
export class SymmetricState {
  readonly #cipher = new CipherState();
  #chainingKey: Buffer;
  #hash: Buffer;

  constructor(protocolName: string) {
    // InitializeSymmetric: a name of up to 32 bytes is padded with zeros, a longer one hashed.
    const name = Buffer.from(protocolName, 'ascii');
    this.#hash = Buffer.alloc(KEY_SIZE);
    if (name.length <= KEY_SIZE) name.copy(this.#hash);
    else this.#hash = sha256(name);
    this.#chainingKey = Buffer.from(this.#hash);
  }

  /** MixKey: ck, k = HKDF(ck, ikm, 2). */
  mixKey(ikm: Uint8Array): void {
    const temp = hmac(this.#chainingKey, ikm);
    this.#chainingKey.fill(0);
    this.#chainingKey = hmac(temp, ONE);
    this.#cipher.initializeKey(hmac(temp, this.#chainingKey, TWO));
    temp.fill(0);
  }

  /** MixHash: h = SHA-256(h || data). */
  mixHash(data: Uint8Array): void {
    this.#hash = sha256(Buffer.concat([this.#hash, data]));
  }

  /** MixKeyAndHash: ck, temp, k = HKDF(ck, ikm, 3); h takes temp. */
  mixKeyAndHash(ikm: Uint8Array): void {
    const temp = hmac(this.#chainingKey, ikm);
    this.#chainingKey.fill(0);
    this.#chainingKey = hmac(temp, ONE);
    const second = hmac(temp, this.#chainingKey, TWO);
    this.mixHash(second);
    this.#cipher.initializeKey(hmac(temp, second, THREE));
    temp.fill(0);
    second.fill(0);
  }

  encryptAndHash(plaintext: Uint8Array): Buffer {
    const sealed = this.#cipher.encryptWithAd(this.#hash, plaintext);
    this.mixHash(sealed);
    return sealed;
  }

  decryptAndHash(sealed: Uint8Array): Buffer {
    const plaintext = this.#cipher.decryptWithAd(this.#hash, sealed);
    this.mixHash(sealed);
    return plaintext;
  }

  get hasKey(): boolean {
    return this.#cipher.hasKey;
  }

  /** Split, with a third output: HKDF(ck, empty, 3). Wipes this state. */
  split(): HandshakeResult {
    const temp = hmac(this.#chainingKey, EMPTY);
    const initiatorKey = hmac(temp, ONE);
    const responderKey = hmac(temp, initiatorKey, TWO);
    const otpKey = hmac(temp, responderKey, THREE);
    temp.fill(0);
    const result = { initiatorKey, responderKey, otpKey, handshakeHash: this.#hash };
    this.wipe();
    return result;
  }

  /** A second state with the same contents. */
  fork(): SymmetricState {
    const copy = new SymmetricState('');
    copy.#cipher.copyFrom(this.#cipher);
    copy.#chainingKey = Buffer.from(this.#chainingKey);
    copy.#hash = this.#hash;
    return copy;
  }

  wipe(): void {
    this.#chainingKey.fill(0);
    this.#cipher.wipe();
  }
}

/** What a handshake starts from. */
export interface HandshakeOptions {
  readonly pattern: PatternName;
  readonly initiator: boolean;
  readonly prologue: Uint8Array;
  readonly staticKeys: KeyPair;
  /** The responder's static key; the initiator needs it, the responder learns the initiator's. */
  readonly remoteStatic?: Uint8Array;
  /** 32 bytes; a responder may set it later, with `setPsk` before message 2. */
  readonly psk?: Uint8Array;
  /** Makes ephemeral keys; the default is `generateKeyPair`. */
  readonly generate?: () => KeyPair;
  /** Replaces the ephemeral key with a known one, so that published vectors can be checked. */
  readonly fixedEphemeralForTestingOnly?: KeyPair;
}

/**
 * One handshake, section 5.3: `writeMessage` and `readMessage` in turn, two messages in
 * all, then `finish`.
 *
 * Error contract: a method that throws has wiped the handshake; it can only be thrown
 * away, and every further call throws CHANNEL_HANDSHAKE too. Nothing of the peer's bytes
 * is in an error text.
 */
export class HandshakeState {
  readonly #options: HandshakeOptions;
  readonly #pattern: readonly (readonly Token[])[];
  #symmetric: SymmetricState;
  #psk: Uint8Array | undefined;
  #ephemeral: KeyPair | undefined;
  #remoteStatic: Buffer | undefined;
  #remoteEphemeral: Buffer | undefined;
  /** The same two, imported at their first use; each serves two DH operations. */
  readonly #imported = new Map<'e' | 's', KeyObject>();
  #step = 0;
  #dead = false;

  constructor(options: HandshakeOptions) {
    this.#options = options;
    this.#pattern = PATTERNS[options.pattern];
    this.#psk = options.psk;
    this.#symmetric = new SymmetricState(`Noise_${options.pattern}_25519_AESGCM_SHA256`);
    this.#symmetric.mixHash(options.prologue);
    // <- s: the responder's static key is known to both before the first message.
    if (options.initiator) {
      if (options.remoteStatic === undefined) throw misuse("the responder's static key is missing");
      this.#remoteStatic = Buffer.from(options.remoteStatic);
      this.#symmetric.mixHash(this.#remoteStatic);
    } else {
      this.#symmetric.mixHash(options.staticKeys.publicKey);
    }
  }

  /** The peer's static public key; a responder knows it from message 1 on. */
  get remoteStatic(): Buffer | undefined {
    return this.#remoteStatic;
  }

  get pattern(): PatternName {
    return this.#options.pattern;
  }

  /** Sets the pre-shared key (32 bytes) of an IKpsk2 responder that has learned whose it is from message 1. */
  setPsk(psk: Uint8Array): void {
    this.#psk = psk;
  }

  /** WriteMessage. @throws PairwireError CHANNEL_HANDSHAKE out of turn or without the PSK */
  writeMessage(payload: Uint8Array): Buffer {
    return this.#guard(() => {
      const parts: Buffer[] = [];
      for (const token of this.#tokens(true)) {
        if (token === 'e') {
          this.#ephemeral =
            this.#options.fixedEphemeralForTestingOnly ??
            (this.#options.generate ?? generateKeyPair)();
          parts.push(this.#ephemeral.publicKey);
          this.#mixEphemeral(this.#ephemeral.publicKey);
        } else if (token === 's') {
          parts.push(this.#symmetric.encryptAndHash(this.#options.staticKeys.publicKey));
        } else {
          this.#mixToken(token);
        }
      }
      parts.push(this.#symmetric.encryptAndHash(payload));
      const message = Buffer.concat(parts);
      if (message.length > MAX_NOISE_MESSAGE) throw misuse('a payload is too long');
      return message;
    });
  }

  /** ReadMessage: the payload. @throws PairwireError CHANNEL_HANDSHAKE for anything that is not the peer's next message */
  readMessage(message: Uint8Array): Buffer {
    return this.#guard(() => {
      if (message.length > MAX_NOISE_MESSAGE) throw notAuthentic();
      let rest = message;
      const take = (size: number): Buffer => {
        if (rest.length < size) throw notAuthentic();
        const part = Buffer.from(rest.subarray(0, size));
        rest = rest.subarray(size);
        return part;
      };
      for (const token of this.#tokens(false)) {
        if (token === 'e') {
          this.#remoteEphemeral = take(KEY_SIZE);
          this.#mixEphemeral(this.#remoteEphemeral);
        } else if (token === 's') {
          const size = this.#symmetric.hasKey ? KEY_SIZE + TAG_SIZE : KEY_SIZE;
          this.#remoteStatic = this.#symmetric.decryptAndHash(take(size));
        } else {
          this.#mixToken(token);
        }
      }
      return this.#symmetric.decryptAndHash(rest);
    });
  }

  /** The keys, once both messages are through; wipes the handshake. @throws PairwireError CHANNEL_HANDSHAKE before that */
  finish(): HandshakeResult {
    return this.#guard(() => {
      if (this.#step !== this.#pattern.length) throw misuse('the handshake is not complete');
      const result = this.#symmetric.split();
      this.wipe();
      return result;
    });
  }

  /**
   * A second handshake at the same step. On datagrams anybody can send a false message 2: it
   * is read by a fork, so that the handshake still stands when the true one comes.
   */
  fork(): HandshakeState {
    const copy = new HandshakeState(this.#options);
    copy.#symmetric.wipe();
    copy.#symmetric = this.#symmetric.fork();
    copy.#psk = this.#psk;
    copy.#ephemeral = this.#ephemeral;
    copy.#remoteStatic = this.#remoteStatic;
    copy.#remoteEphemeral = this.#remoteEphemeral;
    for (const [whose, key] of this.#imported) {
      // The peer's ephemeral key is what the forks differ in.
      if (whose === 's') copy.#imported.set(whose, key);
    }
    copy.#step = this.#step;
    copy.#dead = this.#dead;
    return copy;
  }

  /** Zeroes what can be zeroed and drops the rest; the handshake is dead then. */
  wipe(): void {
    this.#dead = true;
    this.#symmetric.wipe();
    this.#ephemeral = undefined;
    this.#imported.clear();
    this.#psk = undefined;
  }

  /** The tokens of the message whose turn it is. Even steps are the initiator's. */
  #tokens(writing: boolean): readonly Token[] {
    const tokens = this.#pattern[this.#step];
    const mine = (this.#step % 2 === 0) === this.#options.initiator;
    if (tokens === undefined || mine !== writing) throw misuse('a message is out of turn');
    this.#step += 1;
    return tokens;
  }

  #mixEphemeral(publicKey: Uint8Array): void {
    this.#symmetric.mixHash(publicKey);
    // Section 9.2: in a PSK handshake every "e" also enters the key.
    if (this.#options.pattern === 'IKpsk2') this.#symmetric.mixKey(publicKey);
  }

  #mixToken(token: Exclude<Token, 'e' | 's'>): void {
    if (token === 'psk') {
      if (this.#psk?.length !== KEY_SIZE) throw misuse('the pre-shared key is missing');
      this.#symmetric.mixKeyAndHash(this.#psk);
      return;
    }
    const secret = this.#dh(token);
    this.#symmetric.mixKey(secret);
    secret.fill(0);
  }

  /** First letter: the initiator's key, second letter: the responder's. */
  #dh(token: 'ee' | 'es' | 'se' | 'ss'): Buffer {
    const { initiator, staticKeys } = this.#options;
    const ours = (initiator ? token[0] : token[1]) === 'e' ? 'e' : 's';
    const theirs = (initiator ? token[1] : token[0]) === 'e' ? 'e' : 's';
    const own = ours === 'e' ? this.#ephemeral : staticKeys;
    const remote = theirs === 'e' ? this.#remoteEphemeral : this.#remoteStatic;
    if (own === undefined || remote === undefined) throw misuse('a key is missing');
    const key = this.#imported.get(theirs) ?? publicKeyFromRaw(remote);
    this.#imported.set(theirs, key);
    return sharedSecret(own.privateKey, key);
  }

  #guard<T>(step: () => T): T {
    if (this.#dead) throw misuse('the handshake is over');
    try {
      return step();
    } catch (thrown) {
      this.wipe();
      throw thrown;
    }
  }
}

function notAuthentic(): PairwireError {
  return new PairwireError('CHANNEL_HANDSHAKE', 'a handshake message is not authentic');
}

function misuse(what: string): PairwireError {
  return new PairwireError('CHANNEL_HANDSHAKE', what);
}
