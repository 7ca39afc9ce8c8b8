/**
 * What is at home here, for another key server of this subnet, by change numbers as for a gateway (sync/collect.ts): our
 * members as they are now, those that are revoked, the keys that we make with members of that server, and from the
 * first server the group key. Of no other pair does it get anything.
 */
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import { type HomeChange, MAX_ROWS } from '../../src/protocol/messages.js';
import { TALKER_ROLES } from '../../src/protocol/records.js';
import { peerRecordSize, toPeerRecord } from '../registry/peer-record.js';
import type { Services } from '../services.js';
import type { GroupKey, Member, NextGeneration, PairKey } from '../storage/store.js';
import { BATCH_BYTES } from '../sync/collect.js';

/** One batch of it. */
export interface HomeState {
  readonly cursor: number;
  readonly more: boolean;
  readonly changes: readonly HomeChange[];
}

/** A change with its number and about its bytes. */
interface Numbered {
  readonly seq: number;
  readonly bytes: number;
  readonly change: HomeChange;
  /** Whose record has to come before it. */
  readonly before?: Member;
}

/**
 * The next batch for a server.
 * @param maxRows most changes in it, for tests
 */
export async function homeState(
  services: Services,
  to: Id,
  after: number,
  isFirst: boolean,
  maxRows: number = MAX_ROWS,
): Promise<HomeState> {
  const { store } = services;
  // Read first: whatever changes from here on has a higher number and comes next time.
  const { change: upTo } = await store.counters();
  if (after >= upTo) return { cursor: upTo, more: false, changes: [] };
  const window = { after, upTo, limit: maxRows };
  const members = await store.ownMembersChanged(window);
  const revocations = await store.revocations(window);
  const pairs = await store.pairsWithChanged(window, to);
  // A source that reached its limit says nothing of what lies beyond its last row.
  const ends = [members, revocations, pairs].map((rows) =>
    rows.length < window.limit ? upTo : (rows.at(-1)?.changed ?? upTo),
  );
  const horizon = Math.min(...ends);
  const rows: Numbered[] = members.map((member) => ({
    seq: member.changed,
    bytes: peerRecordSize(member),
    change: { kind: 'member', member: toPeerRecord(member) },
  }));
  for (const { member: id, changed: seq } of revocations) {
    const member = await store.member(id);
    // Other servers know of no others, and may have somebody else of that name.
    if (member?.home !== undefined || !TALKER_ROLES.includes(member?.role ?? 'server')) continue;
    rows.push({ seq, bytes: 64, change: { kind: 'revoked', id } });
  }
  for (const pair of pairs) {
    // With a broken seal; once it is mended it has another number.
    if (pair.key === undefined) continue;
    const maker = await store.member(pair.a);
    const row = { seq: pair.changed, bytes: 256, change: pairOf(pair) };
    // The other server takes a key only of a member that it knows: if that one is new to it, or changed and so told
    // under a later number, it goes before its keys, and is told once more in its turn.
    if (maker !== undefined && maker.changed > pair.changed) {
      rows.push({ ...row, bytes: row.bytes + peerRecordSize(maker), before: maker });
    } else rows.push(row);
  }
  const group = isFirst ? await store.anyGroup(GROUP_ID) : undefined;
  if (group?.key !== undefined && group.changed > after && group.changed <= upTo) {
    rows.push({ seq: group.changed, bytes: 192, change: groupOf(group) });
  }
  return cut(rows, upTo, horizon, maxRows);
}

function cut(rows: readonly Numbered[], upTo: number, horizon: number, maxRows: number): HomeState {
  const changes: HomeChange[] = [];
  const told = new Set<Id>();
  let bytes = 0;
  let cursor = 0;
  for (const row of [...rows].sort((a, b) => a.seq - b.seq)) {
    if (row.seq > horizon) break;
    const { before } = row;
    const first = before === undefined || told.has(before.id) ? undefined : before;
    const count = changes.length + (first === undefined ? 1 : 2);
    const full = changes.length > 0 && (count > maxRows || bytes + row.bytes > BATCH_BYTES);
    if (full) return { cursor, more: true, changes };
    if (first !== undefined) {
      told.add(first.id);
      changes.push({ kind: 'member', member: toPeerRecord(first) });
    }
    changes.push(row.change);
    bytes += row.bytes;
    cursor = row.seq;
  }
  return { cursor: horizon, more: horizon < upTo, changes };
}

function pairOf({ a, b, key, pwId, next }: PairKey): HomeChange {
  return { kind: 'pair', a, b, key, pwId, ...after(next) };
}

function groupOf({ key, pwId, oldest, next }: GroupKey): HomeChange {
  return { kind: 'group', key, pwId, oldest, ...after(next) };
}

function after(next: Pick<NextGeneration, 'key' | 'pwId'> | undefined) {
  return next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
}
