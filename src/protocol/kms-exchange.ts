/**
 * A member's question to the KMS and its answer, docs/protocol.md 11.7: the two messages of one Noise IK handshake, each with
 * its payload. So the key server, which carries both, can neither read nor change nor answer them, the KMS knows the asker by
 * its channel key, and neither end keeps anything between two questions.
 */
import { encode } from '@msgpack/msgpack';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { decodeMessage } from './channel/codec.js';
import type { KeyPair } from './channel/keys.js';
import { HandshakeState, MAX_NOISE_MESSAGE } from './channel/noise.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { MAX_SEALED_DOCUMENT, SEALED_DEK_SIZE } from './envelope.js';
import { fields } from './fields.js';
import { idSchema } from './ids.js';
import { bytesSchema, bytesUpToSchema, signedSchema } from './signed.js';

/** Members in one question. */
export const MAX_IDENTITIES_ASKED = 32;
/** Longest message of an exchange, either way. */
export const MAX_EXCHANGE = MAX_NOISE_MESSAGE;

/** An identity document as the key server keeps it: sealed by a DEK, and that by the root key of the KMS. */
export const sealedPairSchema = z.strictObject({
  document: bytesUpToSchema(MAX_SEALED_DOCUMENT),
  dek: bytesSchema(SEALED_DEK_SIZE),
});
export type SealedPair = z.infer<typeof sealedPairSchema>;

/** Whose pair it is said to be. */
export const namedPairSchema = z.strictObject({ id: idSchema, ...sealedPairSchema.shape });
export type NamedPair = z.infer<typeof namedPairSchema>;

/** Says that an id has another identity document from now on. */
export const identityChangeSchema = z.strictObject({
  subnet: idSchema,
  id: idSchema,
  /** Digests of the documents. */
  before: bytesSchema(KEY_SIZE),
  after: bytesSchema(KEY_SIZE),
});

const ticket = signedSchema;

/** What members ask the KMS. */
export const exchangeRequestSchema = z.discriminatedUnion('t', [
  /** Remember our identity document, and seal it. */
  z.strictObject({
    t: z.literal('identity.seal'),
    ticket,
    membership: signedSchema,
    /** For another document than the one remembered: signed by the operator, or by the identity in `before`. */
    change: z.strictObject({ record: signedSchema, before: signedSchema.optional() }).optional(),
  }),
  /** Open these. */
  z.strictObject({
    t: z.literal('identity.open'),
    ticket,
    pairs: z.array(namedPairSchema).min(1).max(MAX_IDENTITIES_ASKED),
  }),
]);
export type ExchangeRequest = z.infer<typeof exchangeRequestSchema>;

/**
 * What became of a pair. broken: it is not what was sealed for that id; other: sealed once, but not the document that is
 * remembered now; unknown: nothing is remembered for the id, though this KMS has sealed it.
 */
export const openedSchema = z.discriminatedUnion('is', [
  z.strictObject({ is: z.literal('document'), document: signedSchema }),
  z.strictObject({ is: z.enum(['broken', 'other', 'unknown']) }),
]);
export type Opened = z.infer<typeof openedSchema>;

/** What the KMS answers; a refusal says no more than that. */
export const exchangeAnswerSchema = z.discriminatedUnion('t', [
  z.strictObject({ t: z.literal('sealed'), ...sealedPairSchema.shape }),
  z.strictObject({
    t: z.literal('opened'),
    opened: z.array(openedSchema).max(MAX_IDENTITIES_ASKED),
  }),
  /** taken: another document is remembered for the id; refused: ticket or membership do not hold; unavailable: try again. */
  z.strictObject({ t: z.literal('no'), why: z.enum(['taken', 'refused', 'unavailable']) }),
]);
export type ExchangeAnswer = z.infer<typeof exchangeAnswerSchema>;

function handshake(
  role: { readonly initiator: boolean; readonly remoteStatic?: Uint8Array },
  staticKeys: KeyPair,
): HandshakeState {
  const prologue = fields(LABEL.kmsExchange);
  return new HandshakeState({ pattern: 'IK', prologue, staticKeys, ...role });
}

/** A question of ours. */
export interface Exchange {
  /** For the KMS. */
  readonly message: Buffer;
  /** Reads the answer, once. @throws PairwireError CHANNEL_HANDSHAKE, CHANNEL_MALFORMED for what the KMS did not say */
  answer(message: Uint8Array): ExchangeAnswer;
}

/** Puts a question to the KMS with this public key. @throws PairwireError CHANNEL_HANDSHAKE for one that is too long */
export function ask(kms: Uint8Array, staticKeys: KeyPair, request: ExchangeRequest): Exchange {
  const state = handshake({ initiator: true, remoteStatic: kms }, staticKeys);
  const message = state.writeMessage(encode(request, { ignoreUndefined: true }));
  return {
    message,
    answer: (reply) => {
      const payload = state.readMessage(reply);
      state.wipe();
      return parse(exchangeAnswerSchema, payload);
    },
  };
}

/** A question as the KMS has it. */
export interface Asked {
  /** The asker's channel key, proven. */
  readonly channel: Buffer;
  /** Undefined: not one of ours. */
  readonly request: ExchangeRequest | undefined;
  /** Seals the answer, once. */
  answer(answer: ExchangeAnswer): Buffer;
}

/** Opens a question to us. @throws PairwireError CHANNEL_HANDSHAKE for what nobody can have put to us */
export function openQuestion(staticKeys: KeyPair, message: Uint8Array): Asked {
  const state = handshake({ initiator: false }, staticKeys);
  const payload = state.readMessage(message);
  const channel = state.remoteStatic;
  if (channel === undefined) throw new PairwireError('CHANNEL_HANDSHAKE', 'nobody asks');
  let request: ExchangeRequest | undefined;
  try {
    request = parse(exchangeRequestSchema, payload);
  } catch {
    request = undefined;
  }
  return {
    ...{ channel, request },
    answer: (answer) => {
      const reply = state.writeMessage(encode(answer));
      state.wipe();
      return reply;
    },
  };
}

function parse<T>(schema: z.ZodType<T>, payload: Uint8Array): T {
  try {
    return schema.parse(decodeMessage(payload));
  } catch {
    throw new PairwireError('CHANNEL_MALFORMED', 'an exchange with the KMS is malformed');
  }
}
