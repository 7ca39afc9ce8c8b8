/**
 * Key requests (docs/protocol.md 6.5): (requester, destination MAC) from a sender, (requester, sender
 * index, kid) from a receiver that lacks the key. Only the member itself may ask; its far end
 * learns of it before it gets its answer.
 */
import { type Id, typedId } from '../../src/protocol/ids.js';
import { isGroupMac } from '../../src/protocol/mac.js';
import type { Request } from '../../src/protocol/messages.js';
import { Refusal } from '../refusal.js';
import { toPeerRecord } from '../registry/peer-record.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type { Member, PairKey } from '../storage/store.js';
import { groupKeyFor } from './group-key.js';
import { pairKeyFor } from './pair-key.js';

/** Look-ups of a member: so many at once, then so many a second (M8: the directory can't be enumerated). */
const LOOKUP_BURST = 500;
const LOOKUPS_PER_SECOND = 50;

export type MacRequest = Extract<Request, { t: 'key.mac' }>;
export type IndexRequest = Extract<Request, { t: 'key.index' }>;

/** Tells the far end of a pair of the near end and of their key. */
export type Introduce = (to: Id, about: Member, pair: PairKey) => void;

/** Answers key requests. */
export class KeyRequests {
  readonly #services: Services;
  readonly #introduce: Introduce;
  readonly #lookups: TokenBuckets;

  /** @param lookups for the benchmark, which asks more often than a member may */
  constructor(
    services: Services,
    introduce: Introduce,
    lookups: { readonly burst: number; readonly perSecond: number } = {
      burst: LOOKUP_BURST,
      perSecond: LOOKUPS_PER_SECOND,
    },
  ) {
    this.#services = services;
    this.#introduce = introduce;
    this.#lookups = new TokenBuckets(lookups.burst, lookups.perSecond);
  }

  /** (requester, MAC): a group address means the group, another one the member that owns it. */
  async byMac(asker: Id, request: MacRequest): Promise<Record<string, unknown>> {
    const { requester, mac, pwId } = request;
    this.#admit(asker, requester, { mac, ...(pwId === undefined ? {} : { pwId }) });
    const { store, metrics } = this.#services;
    if (isGroupMac(mac)) {
      metrics.keyRequests.inc({ by: 'mac', answer: 'group' });
      return groupAnswer(await groupKeyFor(this.#services, await this.#self(asker)));
    }
    const peer = await store.memberByMac(mac);
    if (peer === undefined || peer.id === asker) throw this.#notFound('mac');
    return this.#pairAnswer('mac', asker, peer, true);
  }

  /**
   * (requester, index, kid): the member whose boot record has the index. No key is made here:
   * whoever seals a frame has asked before, so an index without a key is a forged frame.
   */
  async byIndex(asker: Id, request: IndexRequest): Promise<Record<string, unknown>> {
    const { requester, index, kid, group, pwId } = request;
    this.#admit(asker, requester, { index, kid, ...(pwId === undefined ? {} : { pwId }) });
    const { store, metrics } = this.#services;
    const peer = await store.memberByIndex(index);
    if (peer === undefined || peer.id === asker) throw this.#notFound('index');
    if (!group) return this.#pairAnswer('index', asker, peer, false);
    metrics.keyRequests.inc({ by: 'index', answer: 'group' });
    const key = await groupKeyFor(this.#services, await this.#self(asker));
    return { ...groupAnswer(key), peer: toPeerRecord(peer) };
  }

  async #pairAnswer(
    by: 'mac' | 'index',
    asker: Id,
    peer: Member,
    make: boolean,
  ): Promise<Record<string, unknown>> {
    const pair = await pairKeyFor(this.#services, asker, peer.id, make);
    if (pair === undefined) throw this.#notFound(by);
    // Who answers a frame need not be introduced to its sender.
    if (by === 'mac' && this.#services.settings.settings.hold > 0) {
      this.#introduce(peer.id, await this.#self(asker), pair);
    }
    this.#services.metrics.keyRequests.inc({ by, answer: 'pair' });
    return { kind: 'pair', peer: toPeerRecord(peer), key: pair.key, pwId: pair.pwId };
  }

  /** Logs the request, and lets it pass only if it is the asker's own and not one too many. */
  #admit(
    asker: Id,
    requester: Id,
    what: { mac?: string; index?: number; kid?: number; pwId?: number },
  ): void {
    const { log, now } = this.#services;
    if (log.isLevelEnabled('debug')) {
      const place = what.mac ?? `index ${what.index ?? 0}`;
      const generation = what.pwId === undefined ? '' : `, pwId ${what.pwId}`;
      log.debug(
        { member: asker, requester, ...what },
        `key request (${requester}, ${place}${generation})`,
      );
    }
    if (requester !== asker) {
      throw new Refusal('refused', 'foreign_requester', 'ask in your own name', {
        requester: typedId('member', requester),
        ...what,
      });
    }
    if (!this.#lookups.take(asker, now())) {
      throw new Refusal('limit', 'lookup_rate', 'too many requests; wait');
    }
  }

  async #self(asker: Id): Promise<Member> {
    const member = await this.#services.store.member(asker);
    if (member === undefined) throw new Refusal('refused', 'unknown_member', 'not a member');
    return member;
  }

  #notFound(by: 'mac' | 'index'): NotFound {
    this.#services.metrics.keyRequests.inc({ by, answer: 'none' });
    return new NotFound();
  }
}

/** Nobody has this address or index. An ordinary answer, so nothing of it is audited. */
export class NotFound extends Error {}

function groupAnswer(key: { id: Id; key: Buffer; pwId: number }): Record<string, unknown> {
  return { kind: 'group', group: key.id, key: key.key, pwId: key.pwId };
}
