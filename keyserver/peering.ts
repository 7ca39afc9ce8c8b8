/**
 * How this key server becomes a member elsewhere: at the server of another subnet (nets/), or at another server of
 * this one (cascade/). It enrols there with a token, under keys that are derived.
 */
import { createHmac, type KeyObject } from 'node:crypto';
import { RequestError } from '../src/net/channel.js';
import { ChannelClient } from '../src/net/channel-client.js';
import { serverEndpoints } from '../src/net/client-link.js';
import { type KeyPair, keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { LABEL } from '../src/protocol/constants.js';
import { fields } from '../src/protocol/fields.js';
import type { Id } from '../src/protocol/ids.js';
import { answerSchemas } from '../src/protocol/messages.js';
import { importPrivate, importPublic, publicOf } from '../src/protocol/public-keys.js';
import { type Grant, grantSchema, signMembership } from '../src/protocol/records.js';
import { openSigned } from '../src/protocol/signed.js';
import { parseToken, type Token } from '../src/protocol/token.js';
import type { Clock } from '../src/runtime/clock.js';
import { Refusal } from './refusal.js';

const ENROL_TIMEOUT = 10_000;

/** What makes a peering one of its own. */
export interface Peering {
  readonly subnet: Id;
  readonly operator: Uint8Array;
  /** Our id there. */
  readonly member: Id;
}

/** By which another server knows us. */
export interface PeeringKeys {
  readonly sign: KeyObject;
  readonly boxPublic: Buffer;
  readonly channel: KeyPair;
}

/**
 * The keys of a peering are derived, so that nothing is stored and a second token for one id is taken; each id has
 * others, for a key server that was revoked under one id may be let in under another.
 */
export function peeringKeys(secret: Buffer, peering: Peering): PeeringKeys {
  const derive = (what: string): Buffer =>
    createHmac('sha256', secret)
      .update(fields(LABEL.peering, what, peering.subnet, peering.operator, peering.member))
      .digest();
  const [signSeed, boxSeed, channelSeed] = [derive('sign'), derive('box'), derive('channel')];
  const sign = importPrivate('ed25519', signSeed);
  const boxPublic = publicOf(importPrivate('x25519', boxSeed));
  const channel = keyPairFromPrivate(channelSeed);
  for (const seed of [signSeed, boxSeed, channelSeed]) seed.fill(0);
  return { sign, boxPublic, channel };
}

/** @throws Refusal */
export function readPeerToken(text: string): Token {
  try {
    return parseToken(text);
  } catch {
    throw new Refusal('malformed', 'peer_token', 'this is not a whole token');
  }
}

/** The grant in a token, as its operator signed it. @throws Refusal */
export function grantIn(token: Token): Grant {
  try {
    const operator = importPublic('ed25519', token.operator);
    return openSigned(LABEL.grant, token.grant, operator, grantSchema);
  } catch {
    const why = 'the grant in the token is not signed by its operator';
    throw new Refusal('malformed', 'peer_token', why);
  }
}

/** Enrols at the server that made a token. @throws Refusal that says why it does not take us */
export async function enrolByToken(
  token: Token,
  grant: Grant,
  member: Id,
  keys: PeeringKeys,
  clock: Clock,
): Promise<void> {
  const membership = signMembership(token.subnet, member, token.grant, {
    sign: keys.sign,
    signPublic: publicOf(keys.sign),
    boxPublic: keys.boxPublic,
    channelPublic: keys.channel.publicKey,
  });
  let problem: Error | undefined;
  const client = new ChannelClient({
    servers: serverEndpoints(token.servers),
    staticKeys: keys.channel,
    clock,
    token: { id: Buffer.from(grant.tokenId), psk: Buffer.from(token.psk) },
    onState: (state) => {
      if (state.kind === 'down') problem = state.error;
    },
  });
  client.start();
  try {
    await client.request(
      { t: 'enrol', membership },
      { timeoutMs: ENROL_TIMEOUT, parse: (value) => answerSchemas.enrol.parse(value) },
    );
  } catch (thrown) {
    if (thrown instanceof RequestError) {
      const why = `the other key server refused: ${thrown.detail ?? thrown.code}`;
      throw new Refusal('refused', 'peer_token', why.slice(0, 200));
    }
    const why = problem?.message ?? 'no answer';
    throw new Refusal('unavailable', 'peer_token', `the other key server: ${why}`.slice(0, 200));
  } finally {
    client.stop();
  }
}
