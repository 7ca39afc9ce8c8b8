/**
 * What the key server does for the identity directory of its KMS (docs/protocol.md 11.6, 11.7): it keeps members' sealed
 * documents, says by a ticket that an asker is a member, and carries questions to the KMS and answers back. It can neither
 * open a document nor a question, and nobody believes it in any of this.
 */
import type { KeyObject } from 'node:crypto';
import { type Answer, RequestError } from '../src/net/channel.js';
import type { Id } from '../src/protocol/ids.js';
import type { NamedPair, SealedPair } from '../src/protocol/kms-exchange.js';
import { signTicket } from '../src/protocol/kms-ticket.js';
import { publicOf } from '../src/protocol/public-keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { Refusal } from './refusal.js';
import { mayPairIds } from './registry/policy.js';
import { TokenBuckets } from './registry/token-bucket.js';
import type { Services } from './services.js';

/** Requests of one member about identities: so many at once, then so many a second; each is about 32 members at most. */
export const IDENTITY_ASKS_BURST = 128;
export const IDENTITY_ASKS_PER_SECOND = 16;
/** Questions that are with the KMS at a time; who comes then is to come again. */
export const MAX_EXCHANGES = 256;

/** The KMS, as members' questions need it. */
export interface ExchangeService {
  /** Its public channel key; undefined until it is known. */
  readonly publicKey: Uint8Array | undefined;
  /** @throws PairwireError KMS_FAILED */
  exchange(message: Uint8Array, signer: Uint8Array): Promise<Uint8Array>;
}

export class IdentityPairs {
  readonly #services: Services;
  readonly #kms: ExchangeService | undefined;
  readonly #signKey: KeyObject;
  readonly #signer: Buffer;
  readonly #asks = new TokenBuckets(IDENTITY_ASKS_BURST, IDENTITY_ASKS_PER_SECOND);
  #underWay = 0;

  /** @param kms undefined: there is none to ask */
  constructor(services: Services, kms: ExchangeService | undefined, signKey: KeyObject) {
    this.#services = services;
    this.#kms = kms;
    this.#signKey = signKey;
    this.#signer = publicOf(signKey);
  }

  /** A ticket for the asker, and the pairs of those whom it may know. @throws Refusal, RequestError */
  async get(asker: Id, channel: Uint8Array, ids: readonly Id[]): Promise<Answer> {
    this.#admit(asker);
    const { store, settings, subnet, server, now } = this.#services;
    const kms = this.#kms?.publicKey;
    if (kms === undefined) throw new RequestError('unavailable');
    const pairs: NamedPair[] = [];
    for (const id of ids) {
      const may = await mayPairIds(store, settings.settings.policy, asker, id);
      const pair = may ? await store.identityPair(id) : undefined;
      if (pair !== undefined) pairs.push({ id, ...pair });
    }
    const ticket = signTicket({ subnet, server, id: asker, channel, kms }, this.#signKey, now());
    return { ticket, pairs };
  }

  /** @returns true if there was none before. @throws Refusal */
  async put(asker: Id, { document, dek }: SealedPair): Promise<boolean> {
    this.#admit(asker);
    const { store, audit, now } = this.#services;
    return store.write(async (tx) => {
      const isFirst = (await tx.identityPair(asker)) === undefined;
      const pair = { document: Buffer.from(document), dek: Buffer.from(dek) };
      await tx.putIdentityPair(asker, pair, now());
      if (isFirst) {
        const event = { actor: asker, action: 'identity', outcome: 'done', detail: {} } as const;
        await audit.append(tx, event);
      }
      return isFirst;
    });
  }

  /** Carries a question of a member to the KMS. @throws Refusal, RequestError */
  async exchange(asker: Id, message: Uint8Array): Promise<Answer> {
    this.#admit(asker);
    const { log, metrics } = this.#services;
    const kms = this.#kms;
    if (kms === undefined) throw new RequestError('unavailable');
    if (this.#underWay >= MAX_EXCHANGES) {
      metrics.identityBusy.inc();
      throw new RequestError('unavailable');
    }
    this.#underWay += 1;
    try {
      return { message: await kms.exchange(message, this.#signer) };
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'KMS_FAILED') throw thrown;
      log.warn({ err: thrown, member: asker }, 'the KMS did not answer a member');
      throw new RequestError('unavailable', 'the KMS does not answer');
    } finally {
      this.#underWay -= 1;
    }
  }

  #admit(asker: Id): void {
    const { now, elapsed = now } = this.#services;
    if (this.#asks.take(asker, elapsed())) return;
    throw new Refusal('limit', 'identity_rate', 'too much about identities; wait');
  }
}
