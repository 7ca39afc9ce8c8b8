/**
 * Key requests (docs/protocol.md 6.5): (requester, destination MAC) from a sender, (requester, sender
 * index, kid) from a receiver that lacks the key. Only the member itself may ask; its far end
 * learns of it before it gets its answer.
 */
import { type Id, typedId } from '../../src/protocol/ids.js';
import { isGroupMac } from '../../src/protocol/mac.js';
import type { Behind, Request } from '../../src/protocol/messages.js';
import { NotFound, Refusal } from '../refusal.js';
import { locateSettled } from '../registry/directory.js';
import { toPeerRecord } from '../registry/peer-record.js';
import { mayPair, mayPairIds } from '../registry/policy.js';
import { TokenBuckets } from '../registry/token-bucket.js';
import type { Services } from '../services.js';
import type { GroupKey, Member, PairKey } from '../storage/store.js';
import { groupKeyFor } from './group-key.js';
import type { GroupRekey } from './group-rekey.js';
import { pairKeyFor } from './pair-key.js';
import type { Rekey } from './rekey.js';

/** Look-ups of a member: so many at once, then so many a second (M8: the directory can't be enumerated). */
export const LOOKUP_BURST = 500;
export const LOOKUPS_PER_SECOND = 50;

export type MacRequest = Extract<Request, { t: 'key.mac' }>;
export type IndexRequest = Extract<Request, { t: 'key.index' }>;

/** Tells the far end of a pair of the near end and of their key. */
export type Introduce = (to: Id, about: Member, pair: PairKey) => void;

/** What other key servers of this subnet know. */
export interface Elsewhere {
  /** Has the key of the asker and a member at home elsewhere from there, if it is made there. @returns false if it is made here */
  ensurePair(asker: Id, peer: Member, make: boolean): Promise<boolean>;
  /** The member with a sender index of which nothing is known yet. */
  settleIndex(index: number): Promise<Member | undefined>;
}

/** Answers key requests. */
export class KeyRequests {
  readonly #services: Services;
  readonly #introduce: Introduce;
  readonly #rekey: Rekey;
  readonly #groups: GroupRekey;
  readonly #elsewhere: Elsewhere | undefined;
  readonly #lookups: TokenBuckets;

  /** @param lookups how often one member may ask */
  constructor(
    services: Services,
    introduce: Introduce,
    rekey: Rekey,
    groups: GroupRekey,
    lookups: {
      readonly burst?: number | undefined;
      readonly perSecond?: number | undefined;
    } = {},
    elsewhere?: Elsewhere,
  ) {
    this.#services = services;
    this.#introduce = introduce;
    this.#rekey = rekey;
    this.#groups = groups;
    this.#elsewhere = elsewhere;
    const { burst = LOOKUP_BURST, perSecond = LOOKUPS_PER_SECOND } = lookups;
    this.#lookups = new TokenBuckets(burst, perSecond);
  }

  /** (requester, MAC): a group address means the group, another one who owns it, or the plain port that it is behind. */
  async byMac(asker: Id, request: MacRequest): Promise<Record<string, unknown>> {
    const { requester, mac, vlan = 0, pwId, worn } = request;
    this.#admit(asker, requester, { mac, ...(pwId === undefined ? {} : { pwId }) });
    const { metrics } = this.#services;
    if (isGroupMac(mac)) {
      metrics.keyRequests.inc({ by: 'mac', answer: 'group' });
      return groupAnswer(await this.#group(asker, pwId, worn === true));
    }
    const place = await locateSettled(this.#services, await this.#self(asker), vlan, mac);
    if (place === undefined) throw this.#notFound('mac');
    const { member, behind } = place;
    const answer = await this.#pairAnswer('mac', asker, member, pwId, worn === true, behind);
    return { ...answer, ...(behind === undefined ? {} : { behind }) };
  }

  /**
   * (requester, index, kid): the member whose boot record has the index. No key is made here:
   * whoever seals a frame has asked before, so an index without a key is a forged frame.
   */
  async byIndex(asker: Id, request: IndexRequest): Promise<Record<string, unknown>> {
    const { requester, index, kid, group, pwId } = request;
    this.#admit(asker, requester, { index, kid, ...(pwId === undefined ? {} : { pwId }) });
    const { store, metrics } = this.#services;
    const peer = (await store.memberByIndex(index)) ?? (await this.#elsewhere?.settleIndex(index));
    if (peer === undefined || peer.id === asker) throw this.#notFound('index');
    if (group && !(await this.#allowed(asker, peer))) throw this.#notFound('index', 'denied');
    if (!group) return this.#pairAnswer('index', asker, peer, pwId, false);
    metrics.keyRequests.inc({ by: 'index', answer: 'group' });
    const key = await this.#group(asker, pwId, false);
    return { ...groupAnswer(key), peer: toPeerRecord(peer) };
  }

  /** Another server's member wants the key with one of ours, which we make: it is told of it as of all that is new. */
  async forServer(
    asker: Member,
    peer: Member,
    make: boolean,
    worn: number | undefined,
  ): Promise<void> {
    if (!mayPair(this.#services.settings.settings.policy, asker, peer)) return;
    const pair = await this.#pair(asker.id, peer.id, make);
    if (pair === undefined) return;
    if (worn === pair.pwId) await this.#rekey.wornOut(pair);
    if (make && this.#services.settings.settings.hold > 0) {
      this.#introduce(peer.id, asker, pair);
    }
  }

  async #pairAnswer(
    by: 'mac' | 'index',
    asker: Id,
    peer: Member,
    held: number | undefined,
    worn: boolean,
    behind?: Behind,
  ): Promise<Record<string, unknown>> {
    if (!(await this.#allowed(asker, peer))) throw this.#notFound(by, 'denied');
    const foreign = await this.#elsewhere?.ensurePair(asker, peer, by === 'mac');
    const make = by === 'mac' && foreign !== true;
    const pair = await this.#pair(asker, peer.id, make);
    if (pair === undefined) throw this.#notFound(by);
    this.#rekey.askedWith(asker, pair, held);
    if (worn && held === pair.pwId) await this.#rekey.wornOut(pair);
    // Who answers a frame need not be introduced to its sender.
    if (by === 'mac' && this.#services.settings.settings.hold > 0) {
      this.#introduce(peer.id, await this.#self(asker), pair);
    }
    const answer = behind === undefined ? 'pair' : 'behind';
    this.#services.metrics.keyRequests.inc({ by, answer });
    return { kind: 'pair', peer: toPeerRecord(peer), key: pair.key, pwId: pair.pwId };
  }

  async #pair(asker: Id, peer: Id, make: boolean): Promise<PairKey | undefined> {
    const dueAt = (now: number): number => this.#rekey.dueAt(now);
    const pair = await pairKeyFor(this.#services, asker, peer, make, dueAt);
    return pair === undefined || pair.key !== undefined ? pair : this.#rekey.mend(asker, peer);
  }

  async #group(asker: Id, held: number | undefined, worn: boolean): Promise<GroupKey> {
    const key = await groupKeyFor(this.#services, await this.#self(asker));
    this.#groups.askedWith(asker, key, held);
    if (worn) await this.#groups.wornOut(held);
    return key;
  }

  /** Logs the request, and lets it pass only if it is the asker's own and not one too many. */
  #admit(
    asker: Id,
    requester: Id,
    what: { mac?: string; index?: number; kid?: number; pwId?: number },
  ): void {
    const { log, now, elapsed = now } = this.#services;
    if (log.isLevelEnabled('debug')) {
      const place = what.mac ?? `index ${what.index ?? 0}`;
      const generation = what.pwId === undefined ? '' : `, pwId ${what.pwId}`;
      log.debug(
        { member: asker, requester, ...what },
        `key request (${requester}, ${place}${generation})`,
      );
    }
    requireOwn(asker, requester, what);
    if (!this.#lookups.take(asker, elapsed())) {
      throw new Refusal('limit', 'lookup_rate', 'too many requests; wait');
    }
  }

  async #self(asker: Id): Promise<Member> {
    const member = await this.#services.store.member(asker);
    if (member?.state !== 'active') {
      throw new Refusal('refused', 'unknown_member', 'not a member');
    }
    return member;
  }

  /** Whether the policy lets two members have a key. Whom it keeps apart learns no more than of a stranger. */
  #allowed(asker: Id, peer: Member): Promise<boolean> {
    const { store, settings } = this.#services;
    return mayPairIds(store, settings.settings.policy, asker, peer.id);
  }

  #notFound(by: 'mac' | 'index', answer: 'none' | 'denied' = 'none'): NotFound {
    this.#services.metrics.keyRequests.inc({ by, answer });
    return new NotFound();
  }
}

/** @throws Refusal unless a member speaks in its own name */
export function requireOwn(
  asker: Id,
  requester: Id,
  what: Readonly<Record<string, string | number>>,
): void {
  if (requester === asker) return;
  throw new Refusal('refused', 'foreign_requester', 'ask in your own name', {
    requester: typedId('member', requester),
    ...what,
  });
}

function groupAnswer({ id, key, pwId, oldest }: GroupKey): Record<string, unknown> {
  return { kind: 'group', group: id, key, pwId, oldest };
}
