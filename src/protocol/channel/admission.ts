/**
 * What a message 1 on datagrams must show before it costs anything, docs/protocol.md 6.8:
 *
 *   mac1    always: the sender knows the server's public key
 *   mac2    under load: the sender gets what is sent to his address (cookie), or was here
 *           before with a key that is known (ticket)
 *
 * All of it is symmetric: a few microseconds for each datagram, and nothing is remembered of
 * a stranger.
 */
import { createCipheriv, createDecipheriv, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Clock } from '../../runtime/clock.js';
import { TAG_SIZE } from '../constants.js';
import {
  COOKIE_SIZE,
  cookieHeader,
  encodeReset,
  MAC_SIZE,
  type Opening,
  parseCookieReply,
  RESET_TOKEN_SIZE,
  SALT_SIZE,
  TICKET_SIZE,
  TRAILER_SIZE,
} from './datagram.js';
import { hmacSha256, sha256 } from './hash.js';
import { type KeyPair, publicKeyFromRaw, sharedSecret } from './keys.js';

/** Specification values. */
export const COOKIE_SECRET_LIFETIME_MS = 120_000;
export const TICKET_LIFETIME_MS = 7 * 86_400_000;
const LABELS = {
  mac1: Buffer.from('pairwire/1 mac1', 'ascii'),
  cookie: Buffer.from('pairwire/1 cookie', 'ascii'),
  secrets: Buffer.from('pairwire/1 server secrets', 'ascii'),
  ticket: Buffer.from('pairwire/1 ticket', 'ascii'),
  reset: Buffer.from('pairwire/1 reset', 'ascii'),
  relay: Buffer.from('pairwire/1 relay', 'ascii'),
};
/** Tickets that were used, kept until they would be too many; the oldest are forgotten first. */
const USED_TICKETS = 16_384;
const ZERO_NONCE = Buffer.alloc(12);
const NO_TICKET = Buffer.alloc(TICKET_SIZE);
const NO_MAC = Buffer.alloc(MAC_SIZE);
const GCM = { authTagLength: TAG_SIZE };

/** Keys that everybody can compute who knows the server's static public key. */
export interface PublicMacKeys {
  readonly mac1: Buffer;
  readonly cookie: Buffer;
}

/** key = SHA-256(label | server's static public key). */
export function publicMacKeys(serverKey: Uint8Array): PublicMacKeys {
  return {
    mac1: sha256(Buffer.concat([LABELS.mac1, serverKey])),
    cookie: sha256(Buffer.concat([LABELS.cookie, serverKey])),
  };
}

function mac(key: Uint8Array, data: Uint8Array): Buffer {
  return hmacSha256(key, data).subarray(0, MAC_SIZE);
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** A ticket as message 2 hands it out: its name, which goes over the wire once, and its key. */
export interface Ticket {
  readonly name: Buffer;
  readonly key: Buffer;
}

/** Fills in mac1, ticket and mac2 of a message 1 made by `encodeOpening`. Without `proof`, mac2 stays zero. */
export function stampOpening(
  datagram: Buffer,
  keys: PublicMacKeys,
  proof?: { readonly cookie: Buffer } | { readonly ticket: Ticket },
): void {
  const mac1At = datagram.length - TRAILER_SIZE;
  const ticketAt = mac1At + MAC_SIZE;
  const mac2At = ticketAt + TICKET_SIZE;
  datagram.set(mac(keys.mac1, datagram.subarray(0, mac1At)), mac1At);
  datagram.fill(0, ticketAt);
  if (proof === undefined) return;
  if ('ticket' in proof) datagram.set(proof.ticket.name, ticketAt);
  const key = 'ticket' in proof ? proof.ticket.key : proof.cookie;
  datagram.set(mac(key, datagram.subarray(0, mac2At)), mac2At);
}

/** The mac1 of a message 1: a cookie reply is bound to it. */
export function mac1Of(datagram: Buffer): Buffer {
  const at = datagram.length - TRAILER_SIZE;
  return datagram.subarray(at, at + MAC_SIZE);
}

/** The cookie in a reply to the message 1 with this mac1; undefined if it is not one. */
export function openCookieReply(
  datagram: Buffer,
  keys: PublicMacKeys,
  mac1: Uint8Array,
): Buffer | undefined {
  const reply = parseCookieReply(datagram);
  if (reply === undefined) return undefined;
  const { header, salt, sealed } = reply;
  const key = hmacSha256(keys.cookie, salt, mac1);
  const decipher = createDecipheriv('aes-256-gcm', key, ZERO_NONCE, GCM);
  decipher.setAAD(header);
  decipher.setAuthTag(sealed.subarray(COOKIE_SIZE));
  const cookie = decipher.update(sealed.subarray(0, COOKIE_SIZE));
  try {
    decipher.final();
  } catch {
    return undefined;
  }
  return cookie;
}

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

/**
 * A secret of the server that survives its restart: X25519 of its static key with a point
 * whose private half nobody has (the hash of a label), so that nothing more needs storing.
 */
function serverSecret(staticKeys: KeyPair, label: Buffer): Buffer {
  const shared = sharedSecret(staticKeys.privateKey, publicKeyFromRaw(sha256(LABELS.secrets)));
  const secret = hmacSha256(shared, label);
  shared.fill(0);
  return secret;
}

/** The key that a key server shares with its relay. */
export function relaySecret(staticKeys: KeyPair): Buffer {
  return serverSecret(staticKeys, LABELS.relay);
}

/** How a message 1 that was made for this server stands before any public-key operation. */
export type Standing =
  /** The address may be spoofed. */
  | 'unproven'
  /** Has a cookie for its address. */
  | 'address'
  /** Has an unused ticket: a known static key was there before. */
  | 'known';

/** The server's side of mac1, cookies, tickets and resets. */
export class Admission {
  readonly #keys: PublicMacKeys;
  readonly #clock: Clock;
  readonly #ticketSecret: Buffer;
  readonly #resetSecret: Buffer;
  readonly #random: (size: number) => Buffer;
  readonly #forgotten: () => void;
  readonly #used = new Set<string>();
  #cookieSecret: Buffer;
  #lastCookieSecret: Buffer | undefined;
  #cookieSecretAt: number;

  /** @param options.forgotten is told of each used ticket that is forgotten for want of room: it counts once more */
  constructor(
    staticKeys: KeyPair,
    clock: Clock,
    options: { readonly random?: (size: number) => Buffer; readonly forgotten?: () => void } = {},
  ) {
    this.#keys = publicMacKeys(staticKeys.publicKey);
    this.#clock = clock;
    const { random = randomBytes, forgotten = () => {} } = options;
    this.#random = random;
    this.#forgotten = forgotten;
    this.#ticketSecret = serverSecret(staticKeys, LABELS.ticket);
    this.#resetSecret = serverSecret(staticKeys, LABELS.reset);
    this.#cookieSecret = random(32);
    this.#cookieSecretAt = clock.bootMs();
  }

  /** True if a message 1 was made for this server: its mac1 is right. */
  isOurs(opening: Opening): boolean {
    return timingSafeEqual(mac(this.#keys.mac1, opening.beforeMac1), opening.mac1);
  }

  /**
   * Judges a message 1 for which `isOurs` is true. `address`: what a cookie is bound to. A ticket
   * counts once: it is used up by this call.
   */
  judge(opening: Opening, address: Uint8Array): Standing {
    if (!opening.ticket.equals(NO_TICKET)) {
      return this.#takeTicket(opening) ? 'known' : 'unproven';
    }
    // Most of a flood does not even try.
    if (opening.mac2.equals(NO_MAC)) return 'unproven';
    this.#rotate();
    for (const secret of [this.#cookieSecret, this.#lastCookieSecret]) {
      if (secret === undefined) continue;
      const expected = mac(mac(secret, address), opening.beforeMac2);
      if (timingSafeEqual(expected, opening.mac2)) return 'address';
    }
    return 'unproven';
  }

  /** The reply that gives the sender of `opening` a cookie for his address. */
  cookieReply(opening: Opening, address: Uint8Array): Buffer {
    this.#rotate();
    const header = cookieHeader(opening.sender);
    const salt = this.#random(SALT_SIZE);
    const key = hmacSha256(this.#keys.cookie, salt, opening.mac1);
    const cipher = createCipheriv('aes-256-gcm', key, ZERO_NONCE, GCM);
    cipher.setAAD(header);
    const sealed = cipher.update(mac(this.#cookieSecret, address));
    cipher.final();
    return Buffer.concat([header, salt, sealed, cipher.getAuthTag()]);
  }

  /** A new ticket. */
  ticket(): Ticket {
    const name = Buffer.concat([Buffer.alloc(6), this.#random(TICKET_SIZE - 6)]);
    name.writeUIntBE(Math.floor(this.#clock.wallMs()), 0, 6);
    return { name, key: hmacSha256(this.#ticketSecret, name) };
  }

  /** The token that ends the client's half of a channel that this server no longer knows. */
  resetToken(channelId: Uint8Array): Buffer {
    return hmacSha256(this.#resetSecret, channelId).subarray(0, RESET_TOKEN_SIZE);
  }

  /** The reset for a record to a channel id that is not known. */
  reset(channelId: Buffer): Buffer {
    return encodeReset(channelId, this.resetToken(channelId));
  }

  #takeTicket(opening: Opening): boolean {
    const { ticket } = opening;
    const age = this.#clock.wallMs() - ticket.readUIntBE(0, 6);
    if (!(age >= -TICKET_LIFETIME_MS && age <= TICKET_LIFETIME_MS)) return false;
    const expected = mac(hmacSha256(this.#ticketSecret, ticket), opening.beforeMac2);
    if (!timingSafeEqual(expected, opening.mac2)) return false;
    const name = ticket.toString('latin1');
    if (this.#used.has(name)) return false;
    if (this.#used.size >= USED_TICKETS) {
      for (const oldest of this.#used) {
        this.#used.delete(oldest);
        this.#forgotten();
        break;
      }
    }
    this.#used.add(name);
    return true;
  }

  /** A cookie lives for 2 to 4 minutes. */
  #rotate(): void {
    const age = this.#clock.bootMs() - this.#cookieSecretAt;
    if (age < COOKIE_SECRET_LIFETIME_MS) return;
    this.#lastCookieSecret = age < 2 * COOKIE_SECRET_LIFETIME_MS ? this.#cookieSecret : undefined;
    this.#cookieSecret = this.#random(32);
    this.#cookieSecretAt = this.#clock.bootMs();
  }
}
