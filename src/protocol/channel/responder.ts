/**
 * The server's public-key work of a handshake (docs/protocol.md 6.2) as jobs, so that it can
 * run in another thread: message 1 in, who it is out; then message 2 and the keys.
 */

import type { KeyPair } from './keys.js';
import { HandshakeState, type PatternName } from './noise.js';

/** A Noise message 1 with what surrounds it. */
export interface Greeting {
  readonly pattern: PatternName;
  readonly prologue: Uint8Array;
  readonly noise: Uint8Array;
}

/** An authentic message 1. `handle` names it until `finish` or `drop`. */
export interface Greeted {
  readonly handle: number;
  /** The initiator's static public key, 32 bytes. */
  readonly remoteKey: Uint8Array;
  readonly payload: Uint8Array;
}

/** Message 2 and the keys behind it. */
export interface Answered {
  readonly noise: Uint8Array;
  readonly initiatorKey: Uint8Array;
  readonly responderKey: Uint8Array;
  readonly otpKey: Uint8Array;
}

/** Does the responder's half of handshakes. Answers may come at once or later; undefined means it failed. */
export interface Responder {
  greet(greeting: Greeting, done: (greeted: Greeted | undefined) => void): void;
  finish(
    handle: number,
    payload: Uint8Array,
    psk: Uint8Array | undefined,
    done: (answered: Answered | undefined) => void,
  ): void;
  drop(handle: number): void;
}

/** Handshakes between `greet` and `finish`; beyond that the oldest is dropped. */
const MAX_HANDLES = 4_096;

/** Does the work here and now. */
export class InlineResponder implements Responder {
  readonly #staticKeys: KeyPair;
  readonly #states = new Map<number, HandshakeState>();
  #nextHandle: number;

  constructor(staticKeys: KeyPair, firstHandle = 1) {
    this.#staticKeys = staticKeys;
    this.#nextHandle = firstHandle;
  }

  /** -> e, es, s, ss */
  greet(greeting: Greeting, done: (greeted: Greeted | undefined) => void): void {
    const state = new HandshakeState({
      pattern: greeting.pattern,
      initiator: false,
      prologue: greeting.prologue,
      staticKeys: this.#staticKeys,
    });
    let payload: Buffer;
    try {
      payload = state.readMessage(greeting.noise);
    } catch {
      done(undefined);
      return;
    }
    const remoteKey = state.remoteStatic;
    if (remoteKey === undefined) {
      done(undefined);
      return;
    }
    if (this.#states.size >= MAX_HANDLES) {
      for (const oldest of this.#states.keys()) {
        this.drop(oldest);
        break;
      }
    }
    const handle = this.#nextHandle;
    this.#nextHandle += 1;
    this.#states.set(handle, state);
    done({ handle, remoteKey, payload });
  }

  /** <- e, ee, se (psk) */
  finish(
    handle: number,
    payload: Uint8Array,
    psk: Uint8Array | undefined,
    done: (answered: Answered | undefined) => void,
  ): void {
    const state = this.#states.get(handle);
    this.#states.delete(handle);
    let answered: Answered | undefined;
    try {
      if (state !== undefined) {
        if (psk !== undefined) state.setPsk(psk);
        const noise = state.writeMessage(payload);
        const { initiatorKey, responderKey, otpKey } = state.finish();
        answered = { noise, initiatorKey, responderKey, otpKey };
      }
    } catch {
      // A token's PSK of the wrong length and the like: as if it were not known.
    }
    done(answered);
  }

  drop(handle: number): void {
    this.#states.get(handle)?.wipe();
    this.#states.delete(handle);
  }
}
