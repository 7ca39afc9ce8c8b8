/**
 * Pair keys: made on the first request, exactly once, even if both ends ask in the same
 * millisecond (the store's primary key decides).
 */
import { randomBytes } from 'node:crypto';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { type Id, orderedPair } from '../../src/protocol/ids.js';
import type { Services } from '../services.js';
import type { BrokenPair, PairKey } from '../storage/store.js';

/**
 * The pair key of `requester` and `peer`; made if there is none and `make` is set.
 * @param dueAt when a key made now gets too old
 * @returns undefined if there is none and none was to be made; one with a broken seal is to be mended (rekey.ts)
 */
export async function pairKeyFor(
  services: Services,
  requester: Id,
  peer: Id,
  make: boolean,
  dueAt: (now: number) => number,
): Promise<PairKey | BrokenPair | undefined> {
  const { store, settings, metrics, now } = services;
  const present = await store.anyPair(requester, peer);
  if (present === undefined && !make) return undefined;
  if (present !== undefined && present.key === undefined) return present;
  if (present !== undefined && (settings.settings.hold > 0 || hasAsked(present, requester))) {
    return present;
  }
  const [a, b] = orderedPair(requester, peer);
  const key = randomBytes(KEY_SIZE);
  const { pair, made } = await store.write(async (tx) => {
    const number = await tx.nextChange();
    // Either may have been revoked since they were looked up.
    for (const end of [a, b]) {
      if ((await tx.member(end))?.state !== 'active') return { pair: undefined, made: false };
    }
    // Under a policy that has come meanwhile they may have none: it is asked again under that one.
    if (make && (await tx.settingsVersion()) !== settings.settings.version) {
      return { pair: undefined, made: false };
    }
    if (make) {
      const pair = {
        a,
        b,
        key,
        pwId: 1,
        reason: 'first_request',
        createdAt: now(),
        dueAt: dueAt(now()),
        serial: number,
        askedA: requester === a ? number : 0,
        askedB: requester === b ? number : 0,
        changed: number,
      };
      if (await tx.insertPair(pair)) {
        return { pair: { ...pair, maker: undefined, next: undefined }, made: true };
      }
    }
    await tx.markPairAsked(a, b, requester, number);
    return { pair: await tx.anyPair(a, b), made: false };
  });
  if (made) metrics.pairKeysMade.inc();
  return pair;
}

function hasAsked(pair: PairKey, id: Id): boolean {
  return (id === pair.a ? pair.askedA : pair.askedB) > 0;
}
