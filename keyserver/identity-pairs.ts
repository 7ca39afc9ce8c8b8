/**
 * What the key server does for the identity directory of its KMS (docs/protocol.md 11.6, 11.7): it keeps members' sealed
 * documents, says by a ticket that an asker is a member, and carries questions to the KMS and answers back. It can neither
 * open a document nor a question, and nobody believes it in any of this. About members of another key server of the subnet it
 * passes questions on to that one, whose KMS remembers these, and answers those of that one's members as if they were its own (10.9).
 */
import type { KeyObject } from 'node:crypto';
import { type Answer, RequestError } from '../src/net/channel.js';
import type { Id } from '../src/protocol/ids.js';
import type { NamedPair, SealedPair } from '../src/protocol/kms-exchange.js';
import { signTicket } from '../src/protocol/kms-ticket.js';
import type { CarriedAnswer, CarriedAsk } from '../src/protocol/messages.js';
import { publicOf } from '../src/protocol/public-keys.js';
import { TALKER_ROLES } from '../src/protocol/records.js';
import type { Signed } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import type { Carried, CarriedMessage, CarriedPairs } from './cascade/carried-questions.js';
import { Refusal } from './refusal.js';
import { mayPairIds } from './registry/policy.js';
import { TokenBuckets } from './registry/token-bucket.js';
import type { Services } from './services.js';
import type { Member } from './storage/store.js';

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

/** The other key servers of the subnet. */
export interface OtherServers {
  /** Has a question answered by one of them. @throws RequestError unavailable if it is not there, or there is none of that id */
  carry(server: Id, carried: Carried): Promise<CarriedPairs | CarriedMessage>;
  /** One of them asks for what it may not have. */
  refused(server: Id, refusal: Refusal): void;
  /** What one of them has asked came to nothing. */
  unanswered(server: Id, err: unknown): void;
}

export interface IdentityPairsOptions {
  /** Undefined: there is none to ask. */
  readonly kms: ExchangeService | undefined;
  /** Signs tickets. */
  readonly signKey: KeyObject;
  readonly others: OtherServers;
  /** This machine's clock, ms since 1970: the KMS goes by it, not by the time of the subnet. */
  readonly clock: () => number;
}

export class IdentityPairs {
  readonly #services: Services;
  readonly #kms: ExchangeService | undefined;
  readonly #options: IdentityPairsOptions;
  readonly #signer: Buffer;
  readonly #asks = new TokenBuckets(IDENTITY_ASKS_BURST, IDENTITY_ASKS_PER_SECOND);
  #underWay = 0;

  constructor(services: Services, options: IdentityPairsOptions) {
    this.#services = services;
    this.#kms = options.kms;
    this.#options = options;
    this.#signer = publicOf(options.signKey);
  }

  /**
   * A ticket for the asker, and the pairs of those whom it may know.
   * @param home where these are at home; undefined: here
   * @throws Refusal, RequestError
   */
  async get(
    asker: Id,
    channel: Uint8Array,
    ids: readonly Id[],
    home: Id | undefined,
  ): Promise<Answer> {
    this.#admit(asker);
    if (home === undefined || home === this.#services.server) {
      return this.#pairs({ id: asker, home: undefined, channel }, ids);
    }
    const answer = await this.#options.others.carry(home, { is: 'pairs', asker, ids });
    if (answer.is !== 'pairs') throw new RequestError('unavailable');
    return { ticket: answer.ticket, pairs: answer.pairs };
  }

  async #pairs(
    asker: Pick<Member, 'id' | 'home'> & { readonly channel: Uint8Array },
    ids: readonly Id[],
  ): Promise<{ readonly ticket: Signed; readonly pairs: NamedPair[] }> {
    const { store, settings, subnet, server } = this.#services;
    const { signKey, clock } = this.#options;
    const kms = this.#kms?.publicKey;
    if (kms === undefined) throw new RequestError('unavailable');
    const pairs: NamedPair[] = [];
    for (const id of ids) {
      const may = await mayPairIds(store, settings.settings.policy, asker.id, id);
      const pair = may ? await store.identityPair(id) : undefined;
      if (pair !== undefined) pairs.push({ id, ...pair });
    }
    const { id, channel, home } = asker;
    const whose = { subnet, server, id, ...(home === undefined ? {} : { home }) };
    return { ticket: signTicket({ ...whose, channel, kms }, signKey, clock()), pairs };
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

  /**
   * Carries a question of a member to the KMS.
   * @param home the key server whose KMS it is; undefined: ours
   * @throws Refusal, RequestError
   */
  async exchange(asker: Id, message: Uint8Array, home: Id | undefined): Promise<Answer> {
    this.#admit(asker);
    if (home === undefined || home === this.#services.server) {
      const { log } = this.#services;
      const unanswered = (err: unknown): void =>
        log.warn({ err, member: asker }, 'the KMS did not answer a member');
      return { message: await this.#exchange(message, unanswered) };
    }
    const answer = await this.#options.others.carry(home, { is: 'question', asker, message });
    if (answer.is !== 'message') throw new RequestError('unavailable');
    return { message: answer.message };
  }

  /**
   * Answers a question that another key server of the subnet carries for a member of its own: of whom we know by that one's word and
   * the operator's grant. The channel key in the ticket is the one in that membership, whatever the server says. Never rejects.
   */
  async forServer(server: Id, ask: CarriedAsk): Promise<CarriedAnswer> {
    const { no, asker: id } = ask;
    const unanswered = (err: unknown): void => this.#options.others.unanswered(server, err);
    try {
      const asker = await this.#services.store.member(id);
      if (
        asker?.home !== server ||
        asker.state !== 'active' ||
        !TALKER_ROLES.includes(asker.role)
      ) {
        const why = 'no member at home there asks about identities';
        throw new Refusal('refused', 'cascade_home', why, { id, server });
      }
      if (ask.is === 'pairs') return { is: 'pairs', no, ...(await this.#pairs(asker, ask.ids)) };
      const message = await this.#exchange(ask.message, unanswered);
      return { is: 'message', no, message: Buffer.from(message) };
    } catch (thrown) {
      if (thrown instanceof Refusal) {
        this.#options.others.refused(server, thrown);
        return { is: 'no', no, why: 'refused' };
      }
      if (!(thrown instanceof RequestError)) unanswered(thrown);
      return { is: 'no', no, why: 'unavailable' };
    }
  }

  async #exchange(message: Uint8Array, unanswered: (err: unknown) => void): Promise<Uint8Array> {
    const kms = this.#kms;
    if (kms === undefined) throw new RequestError('unavailable');
    if (this.#underWay >= MAX_EXCHANGES) {
      this.#services.metrics.identityBusy.inc();
      throw new RequestError('unavailable');
    }
    this.#underWay += 1;
    try {
      return await kms.exchange(message, this.#signer);
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'KMS_FAILED') throw thrown;
      unanswered(thrown);
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
