/** Keys of loop probes, docs/protocol.md 8.5: whoever holds the group key knows a plain port of the same subnet. */
import { hkdfSync } from 'node:crypto';
import { KEY_SIZE, LABEL } from './constants.js';
import { fields } from './fields.js';

/** The key of the probes, made from a generation of the group key. */
export function probeKey(groupKey: Uint8Array, subnet: string, pwId: number): Buffer {
  const info = fields(LABEL.probe, subnet, pwId);
  return Buffer.from(hkdfSync('sha256', groupKey, new Uint8Array(0), info, KEY_SIZE));
}
