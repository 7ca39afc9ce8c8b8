/** A linked subnet as link ports are told of it, and how its keys are told apart. */
import { createHmac } from 'node:crypto';
import { encode } from '@msgpack/msgpack';
import { LABEL, NET_MARK_SIZE } from '../../src/protocol/constants.js';
import { type Change, MAX_NET_PREFIXES } from '../../src/protocol/messages.js';
import { narrowed, overlap } from '../../src/protocol/prefixes.js';
import type { OwnNet } from '../config.js';
import type { Net } from '../storage/store.js';

/**
 * What may be behind a net: what the operator here has named, as far as its own server agrees, and never what is
 * ours (C12). A server that claims so many pieces that they don't fit in a message loses some.
 */
export function prefixesOf({ local, told }: Pick<Net, 'local' | 'told'>, own: OwnNet): string[] {
  const foreign = local.filter((one) => !own.prefixes.some((ours) => overlap(ours, one)));
  return narrowed(foreign, told).slice(0, MAX_NET_PREFIXES);
}

/** A value that tells two keys of one number apart and nothing of the key (docs/protocol.md 9.2). */
export function netMark(key: Uint8Array): Buffer {
  return createHmac('sha256', key).update(LABEL.netMark).digest().subarray(0, NET_MARK_SIZE);
}

/** What link ports are told. */
export type NetChange = Extract<Change, { kind: 'net' | 'net.gone' }>;

/** Bytes of it in a message: from a few hundred to 300 KiB, by how much the other side tells of its link ports. */
export function netBytes(change: NetChange): number {
  return encode(change).length;
}

export function netChange(entry: Net, own: OwnNet): NetChange {
  const { net, key, pwId, oldest, next, far, changed: seq } = entry;
  if (key === undefined || far === undefined) return { kind: 'net.gone', seq, net };
  const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
  const prefixes = prefixesOf(entry, own);
  return { kind: 'net', seq, net, prefixes, key, pwId, oldest, ...after, ...far };
}
