/** A linked subnet as link ports are told of it, and how its keys are told apart. */
import { createHmac } from 'node:crypto';
import { LABEL, NET_MARK_SIZE } from '../../src/protocol/constants.js';
import type { Change } from '../../src/protocol/messages.js';
import { narrowed } from '../../src/protocol/prefixes.js';
import type { Net } from '../storage/store.js';

/** Bytes of it in a message, about. */
export const NET_BYTES = 512;

/** What may be behind a net: what the operator here has named, as far as its own server agrees (C12). */
export function prefixesOf({ local, told }: Pick<Net, 'local' | 'told'>): string[] {
  return narrowed(local, told);
}

/** A value that tells two keys of one number apart and nothing of the key (docs/protocol.md 9.2). */
export function netMark(key: Uint8Array): Buffer {
  return createHmac('sha256', key).update(LABEL.netMark).digest().subarray(0, NET_MARK_SIZE);
}

export function netChange(entry: Net): Change {
  const { net, key, pwId, oldest, next, changed: seq } = entry;
  if (key === undefined) return { kind: 'net.gone', seq, net };
  const after = next === undefined ? {} : { next: { key: next.key, pwId: next.pwId } };
  return { kind: 'net', seq, net, prefixes: prefixesOf(entry), key, pwId, oldest, ...after };
}
