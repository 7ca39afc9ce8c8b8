/**
 * State by change numbers (M18): what a member may see that changed after its cursor. Each
 * record has the number of its last change, so a member that was away gets each record once,
 * as it is now, however often it changed.
 *
 * What member A may see:
 *   members     all, up to `group.replicate` of them; above that, those A shares a key with (with
 *               hold = 0: those whose key A asked for itself)
 *   pair keys   its own; with hold = 0 (the documents' rule) only those it asked for itself
 *   group key   with hold = 0 only once it has asked
 *   net keys    with the role link
 *   settings, revocations, IP addresses    always
 *
 * Whom the policy keeps from A is not there for A: neither member nor key.
 *
 * A member's record never comes after the pair key with it. Addresses that concern plain ports have a
 * cursor of their own: collect-plain.ts.
 */
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import { type Change, MAX_ROWS } from '../../src/protocol/messages.js';
import { netBytes, netChange } from '../nets/net-change.js';
import { peerRecordSize, toPeerRecord } from '../registry/peer-record.js';
import { mayPair } from '../registry/policy.js';
import type { Services } from '../services.js';
import type { GroupKey, Member, Revocation, SeenPair, ToldPair } from '../storage/store.js';
import { BINDING_BYTES, bindingChange } from './collect-bindings.js';

/** Bytes of changes in one message; a message may have 1 MiB. */
export const BATCH_BYTES = 256 * 1_024;

/** One answer to `sync`. */
export interface Batch {
  readonly epoch: Buffer;
  readonly changes: readonly Change[];
  readonly cursor: number;
  readonly more: boolean;
}

/** Where a member stands; the epoch is that of the store that gave the cursor. */
export interface Position {
  readonly cursor: number;
  readonly epoch: Uint8Array | undefined;
}

/**
 * Collects the next batch for a member.
 * @param maxRows most changes in it, for tests
 */
export async function collect(
  services: Services,
  id: Id,
  position: Position,
  maxRows: number = MAX_ROWS,
): Promise<Batch> {
  const { store, settings } = services;
  const { epoch } = store.meta;
  const self = await store.member(id);
  // Read first: whatever changes from here on has a higher number and comes next time.
  const { change: upTo, talkers } = await store.counters();
  const known = position.epoch !== undefined && Buffer.compare(position.epoch, epoch) === 0;
  const after = known && position.cursor <= upTo ? position.cursor : 0;
  if (self === undefined || after === upTo)
    return { epoch, changes: [], cursor: upTo, more: false };

  const { settings: rules, record, changed } = settings.inForce;
  const asksItself = rules.hold === 0;
  const holder = settings.showsAll(talkers) ? undefined : id;
  const window = { after, upTo, limit: maxRows + 1 };
  const members = await store.membersChanged(window, holder, asksItself);
  const pairs = await store.pairsChanged(window, id, asksItself);

  const revocations = await store.revocations(window);
  const bindings = await store.bindingsChanged(window);

  // A source that reached its limit says nothing of what lies beyond its last row.
  let horizon = upTo;
  if (members.length === window.limit) horizon = Math.min(horizon, last(members).member.changed);
  if (revocations.length === window.limit) horizon = Math.min(horizon, last(revocations).changed);
  if (bindings.length === window.limit) horizon = Math.min(horizon, last(bindings).changed);
  if (pairs.length === window.limit) horizon = Math.min(horizon, last(pairs).seq);

  const groups: Group[] = [];
  if (changed > after) {
    groups.push({
      seq: changed,
      bytes: record.b.length,
      changes: [{ kind: 'settings', seq: changed, settings: record }],
    });
  }
  const group = await store.anyGroup(GROUP_ID);
  const groupSeq = Math.max(group?.changed ?? 0, asksItself ? self.groupAsked : 0);
  if (group?.key !== undefined && groupSeq > after && (!asksItself || self.groupAsked > 0)) {
    groups.push({
      seq: groupSeq,
      bytes: 128,
      changes: [groupChange(group, groupSeq)],
    });
  }
  for (const net of self.role === 'link' ? await store.nets() : []) {
    if (net.changed <= after || net.changed > upTo) continue;
    const change = netChange(net, services.net);
    groups.push({ seq: net.changed, bytes: netBytes(change), changes: [change] });
  }
  for (const revocation of revocations) {
    groups.push({ seq: revocation.changed, bytes: 64, changes: [revokedChange(revocation)] });
  }
  for (const binding of bindings) {
    const changes = [bindingChange(binding)];
    groups.push({ seq: binding.changed, bytes: BINDING_BYTES, changes });
  }
  const { policy } = rules;
  for (const { member, pairChanged } of members) {
    if (!mayPair(policy, self, member)) continue;
    // One that comes with its newer pair key anyway is left to that.
    const withPair = !asksItself && pairChanged > member.changed;
    if (member.id === id || withPair) continue;
    groups.push({
      seq: member.changed,
      bytes: peerRecordSize(member),
      changes: [memberChange(member, member.changed)],
    });
  }
  const shown = new Set(members.map(({ member }) => member.id));
  for (const pair of pairs) {
    const { seq, peer } = pair;
    // A key with a broken seal is left out; the record of who has it comes here all the same, since it comes only here.
    const changes: Change[] = pair.key === undefined ? [] : [seenPairChange(pair)];
    let bytes = 128;
    const member = await store.member(peer);
    if (member !== undefined && !mayPair(policy, self, member)) continue;
    // Already at the receiver: shown to all, and not changed since the cursor.
    const told =
      holder === undefined && member !== undefined && member.changed <= after && !shown.has(peer);
    if (member !== undefined && !told) {
      changes.unshift(memberChange(member, seq));
      bytes += peerRecordSize(member);
    }
    if (changes.length > 0) groups.push({ seq, bytes, changes });
  }
  // Read last: who was revoked meanwhile gets nothing.
  if ((await store.member(id))?.state !== 'active') {
    return { epoch, changes: [], cursor: after, more: false };
  }
  groups.sort((a, b) => a.seq - b.seq);
  return cut(groups, epoch, upTo, horizon, maxRows);
}

/** Changes with one number: they are sent together or not yet. */
interface Group {
  readonly seq: number;
  readonly bytes: number;
  readonly changes: readonly Change[];
}

function cut(
  groups: readonly Group[],
  epoch: Buffer,
  upTo: number,
  horizon: number,
  maxRows: number,
): Batch {
  const changes: Change[] = [];
  let bytes = 0;
  let cursor = 0;
  for (const group of groups) {
    if (group.seq > horizon) break;
    const full =
      changes.length > 0 &&
      (changes.length + group.changes.length > maxRows || bytes + group.bytes > BATCH_BYTES);
    if (full) return { epoch, changes, cursor, more: true };
    changes.push(...group.changes);
    bytes += group.bytes;
    cursor = group.seq;
  }
  return { epoch, changes, cursor: horizon, more: horizon < upTo };
}

export function memberChange(member: Member, seq: number): Change {
  return { kind: 'member', seq, member: toPeerRecord(member) };
}

/** The group key as a holder sees it. */
export function groupChange(group: GroupKey, seq: number): Change {
  const { id, key, pwId, oldest, next } = group;
  const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
  return { kind: 'group', seq, group: id, key, pwId, oldest, ...after };
}

export function revokedChange({ changed, number, member }: Revocation): Change {
  return { kind: 'revoked', seq: changed, number, id: member };
}

/** A pair key as `id`, one of its ends, sees it. */
export function pairChange(pair: ToldPair, id: Id): Change {
  const { a, b, changed: seq, key, pwId, next } = pair;
  return seenPairChange({ seq, peer: id === a ? b : a, key, pwId, next });
}

function seenPairChange({ seq, peer, key, pwId, next }: SeenPair): Change {
  const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
  return { kind: 'pair', seq, peer, key, pwId, ...after };
}

function last<T>(items: readonly T[]): T {
  const item = items.at(-1);
  if (item === undefined) throw new RangeError('an empty list has no last item');
  return item;
}
