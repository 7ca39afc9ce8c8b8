/**
 * What those are told who deal with plain ports, that is plain members and who shares a key with one:
 * which addresses are members' own (they never lead to a plain port), and which plain member an address
 * outside is behind.
 *
 * It has a cursor of its own, because one who meets his first plain port needs all of it from the beginning.
 */
import type { Id } from '../../src/protocol/ids.js';
import { type Change, MAX_ROWS } from '../../src/protocol/messages.js';
import { behindOf, counts } from '../registry/directory.js';
import type { Services } from '../services.js';
import type { Learned, MacEntry, StoreReads } from '../storage/store.js';

/** About what the changes take in a message. */
export const OWN_BYTES = 48;
export const BEHIND_BYTES = 128;

/** One answer's part about the plain side. */
export interface PlainBatch {
  readonly changes: readonly Change[];
  readonly cursor: number;
  readonly more: boolean;
}

/**
 * Collects what changed after a cursor.
 * @param maxRows most changes in it, for tests
 * @returns undefined if none of it concerns the member
 */
export async function collectPlain(
  services: Services,
  id: Id,
  after: number,
  maxRows: number = MAX_ROWS,
): Promise<PlainBatch | undefined> {
  const { store, now } = services;
  if (!(await dealsWithPlain(store, id))) return undefined;
  // Read first: whatever changes from here on has a higher number and comes next time.
  const { change: upTo } = await store.counters();
  const from = after <= upTo ? after : 0;
  const window = { after: from, upTo, limit: maxRows + 1 };
  const own = await store.macsChanged(window);
  const behind = await store.learnedChanged(window);
  const time = now();
  const all = [
    ...own.map((entry): Change => ownOf(entry)),
    ...behind.map((entry) => behindChange(entry, time)),
  ].sort((a, b) => a.seq - b.seq);
  if (all.length <= maxRows) return { changes: all, cursor: upTo, more: false };
  const changes = all.slice(0, maxRows);
  return { changes, cursor: changes.at(-1)?.seq ?? from, more: true };
}

/** Plain members, and members that share a key with one. */
export async function dealingWithPlain(store: StoreReads): Promise<ReadonlySet<Id>> {
  const all = new Set<Id>();
  for (const { id } of await store.plainMembers()) {
    all.add(id);
    for (const peer of await store.peersOf(id)) all.add(peer);
  }
  return all;
}

async function dealsWithPlain(store: StoreReads, id: Id): Promise<boolean> {
  const self = await store.member(id);
  if (self?.state !== 'active') return false;
  for (const { id: plain } of await store.plainMembers()) {
    if (plain === id || (await store.anyPair(id, plain)) !== undefined) return true;
  }
  return false;
}

/** What the rows of one address say; undefined without any. */
export function ownChange(entries: readonly MacEntry[]): Change | undefined {
  const owned = entries.filter(({ kind }) => kind !== 'freed');
  const [newest] = (owned.length > 0 ? owned : entries).toSorted((a, b) => b.changed - a.changed);
  return newest === undefined ? undefined : ownOf(newest);
}

function ownOf({ kind, changed, mac }: MacEntry): Change {
  return { kind: kind === 'freed' ? 'own.freed' : 'own', seq: changed, mac };
}

/** An address outside as it is now. */
export function behindChange(entry: Learned, now: number): Change {
  const place = counts(entry, now) ? { member: entry.member } : {};
  return { kind: 'behind', seq: entry.changed, ...place, ...behindOf(entry, now) };
}
