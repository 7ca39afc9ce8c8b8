/**
 * Where an address is (docs/protocol.md section 8): a member's own, behind a plain port, or nowhere.
 *
 *   own > pinned, learned > default plain port (settings `unknown: plain`) > nowhere
 *                           (nowhere yet, after the database was put back: docs/protocol.md 3.8)
 *
 * What is, or ever was, a member's own never leads to a plain port, whether that member is online,
 * revoked or not known any more: nothing that was meant for it shall leave in clear.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Id } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import type { Behind } from '../../src/protocol/messages.js';
import { NotYet } from '../refusal.js';
import type { Services } from '../services.js';
import type { Learned, Member, StoreReads } from '../storage/store.js';

/** How long an address outside counts that its port does not report again. */
export const LEARNED_FOR_MS = 900_000;
/** How long an address that nobody knows is sent to the default plain port before it is asked about again. */
export const UNKNOWN_FOR_MS = 30_000;

/**
 * How long an answer about an address that nobody knows waits for a report of it, and how often it looks. A
 * machine's first frame may reach the asker before its port's report reaches us, and what the asker then sends would
 * go to the wrong port; its frames wait meanwhile.
 */
export const REPORT_WAIT_MS = 100;
const REPORT_LOOK_MS = 10;

/** Where frames for an address go. */
export interface Place {
  readonly member: Member;
  /** Missing if the address is the member's own. */
  readonly behind?: Behind;
}

/** Where an address is once a report that is on its way has come. @returns undefined if nobody has it, or the asker itself. @throws NotYet */
export async function locateSettled(
  services: Services,
  asker: Member,
  vlan: number,
  mac: MacAddress,
): Promise<Place | undefined> {
  for (let waited = 0; ; waited += REPORT_LOOK_MS) {
    const { place, guessed, stranger } = await locate(services, asker, vlan, mac);
    if (stranger && waited === 0) {
      const elsewhere = await services.seek?.(vlan, mac, asker.id);
      if (elsewhere !== undefined && elsewhere.member.id !== asker.id) return elsewhere;
    }
    if (!guessed || waited >= REPORT_WAIT_MS) return place;
    await sleep(REPORT_LOOK_MS);
  }
}

/** Where an address is as far as is known here; `stranger`: nobody has it, `guessed`: and several could report it. */
export async function locate(
  services: Services,
  asker: Member,
  vlan: number,
  mac: MacAddress,
): Promise<{
  readonly place: Place | undefined;
  readonly guessed: boolean;
  readonly stranger: boolean;
}> {
  const { store, now } = services;
  const owner = await store.memberByMac(mac);
  if (owner !== undefined) {
    return known(owner.id === asker.id ? undefined : { member: owner });
  }
  if (await isOwned(store, mac)) return known(undefined);
  const learned = await store.learned(vlan, mac);
  if (learned !== undefined && counts(learned, now())) {
    if (learned.member === asker.id) return known(undefined);
    const member = await plainMember(services, learned.member);
    if (member !== undefined) return known({ member, behind: behindOf(learned, now()) });
  }
  const port = await defaultPort(services, asker);
  // Nor can it be known while a key server is away where it may be a member's own.
  if (port !== undefined && services.knowsAll?.() === false) throw new NotYet();
  // It may be the address of a member that was forgotten.
  if (port !== undefined && (await store.counters()).putBack) throw new NotYet();
  const others = (await store.plainMembers()).filter(
    ({ id, online }) => online && id !== asker.id && id !== port?.id,
  );
  const behind = { vlan, mac, ms: UNKNOWN_FOR_MS, pinned: false };
  return {
    place: port === undefined ? undefined : { member: port, behind },
    guessed: others.length > 0,
    stranger: true,
  };
}

function known(place: Place | undefined) {
  return { place, guessed: false, stranger: false };
}

/** Whether an address is or was a member's own. */
export async function isOwned(store: StoreReads, mac: MacAddress): Promise<boolean> {
  return (await store.macEntries(mac)).some(({ kind }) => kind !== 'freed');
}

/** Whether what was learned still holds. */
export function counts(
  learned: Learned,
  now: number,
): learned is Learned & { readonly member: Id } {
  if (learned.member === undefined) return false;
  return learned.pinned || isFrozen(learned, now) || now - learned.refreshed < LEARNED_FOR_MS;
}

/** Whether an address stays where it is because it moved too often. */
export function isFrozen({ frozenUntil }: Learned, now: number): boolean {
  return frozenUntil > now;
}

/** The entry as gateways get it. */
export function behindOf(learned: Learned, now: number): Behind {
  const { vlan, mac, pinned, frozenUntil } = learned;
  const frozen = isFrozen(learned, now);
  const ms = pinned ? 0 : frozen ? frozenUntil - now : LEARNED_FOR_MS;
  return { vlan, mac, ms, pinned: pinned || frozen };
}

/**
 * Who gets what is for nobody known. A plain member asks about what its own bridge did not know
 * either, so it is given none: the bridges would flood each other's strangers.
 */
async function defaultPort(services: Services, asker: Member): Promise<Member | undefined> {
  const { store, settings } = services;
  const { unknown, plain } = settings.settings;
  if (unknown !== 'plain' || asker.role === 'plain') return undefined;
  if (plain.default !== undefined) return plainMember(services, plain.default);
  const first = (await store.plainMembers()).find(({ online }) => online);
  return first === undefined ? undefined : plainMember(services, first.id);
}

async function plainMember({ store }: Services, id: Id): Promise<Member | undefined> {
  const member = await store.member(id);
  return member?.state === 'active' && member.role === 'plain' ? member : undefined;
}
