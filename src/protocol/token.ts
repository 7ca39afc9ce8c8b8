/**
 * Join tokens: a signed grant, the secret for the first contact (IKpsk2), and whom to
 * contact. Text form: `pwt1_` and base64url of a MessagePack map.
 */
import { createHmac } from 'node:crypto';
import { encode } from '@msgpack/msgpack';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { decodeMessage } from './channel/codec.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { idSchema } from './ids.js';
import { bytesSchema, signedSchema } from './signed.js';

const PREFIX = 'pwt1_';
const MAX_TEXT = 16_384;

export const serverAddressSchema = z.strictObject({
  /** What carries the channel; TCP if it is missing. */
  scheme: z.enum(['tcp', 'udp', 'http']).optional(),
  /** A name or an IP address: it comes from somebody else's token, and goes into requests. */
  host: z.string().regex(/^[A-Za-z0-9._:%-]{1,255}$/),
  port: z.int().min(1).max(65_535),
  /** The server's static channel key (X25519). */
  key: bytesSchema(KEY_SIZE),
});
export type ServerAddress = z.infer<typeof serverAddressSchema>;

export const tokenSchema = z.strictObject({
  subnet: idSchema,
  grant: signedSchema,
  psk: bytesSchema(32),
  operator: bytesSchema(KEY_SIZE),
  servers: z.array(serverAddressSchema).min(1).max(16),
  /** The net id of the subnet that made it, for link ports and for the key server of another subnet. */
  net: idSchema.optional(),
  /** For another key server of the subnet: who made the token, and the grant of the other's administrator. */
  cascade: z.strictObject({ server: idSchema, admin: signedSchema }).optional(),
});
export type Token = z.infer<typeof tokenSchema>;

/** The pre-shared key of a token: derived, so that the server stores nothing for each token. */
export function tokenPsk(tokenKey: Uint8Array, tokenId: Uint8Array): Buffer {
  return createHmac('sha256', tokenKey).update(LABEL.psk).update(tokenId).digest();
}

export function formatToken(token: Token): string {
  return PREFIX + Buffer.from(encode(token)).toString('base64url');
}

/** @throws PairwireError TOKEN_MALFORMED; the text never carries any of the token */
export function parseToken(text: string): Token {
  const trimmed = text.trim();
  if (
    !trimmed.startsWith(PREFIX) ||
    trimmed.length > MAX_TEXT ||
    !/^[A-Za-z0-9_-]+$/.test(trimmed)
  ) {
    throw malformed();
  }
  let body: unknown;
  try {
    body = decodeMessage(Buffer.from(trimmed.slice(PREFIX.length), 'base64url'));
  } catch {
    throw malformed();
  }
  const parsed = tokenSchema.safeParse(body);
  if (!parsed.success) throw malformed();
  return parsed.data;
}

function malformed(): PairwireError {
  return new PairwireError('TOKEN_MALFORMED', 'this is not a whole join token', {
    hint: 'copy all of the line that `pairwire token` printed; it begins with pwt1_',
  });
}
