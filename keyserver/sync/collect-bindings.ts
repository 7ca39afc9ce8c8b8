/** What everybody is told of IP addresses: which MAC address announces one, or that anybody may. */
import type { Change } from '../../src/protocol/messages.js';
import type { Binding } from '../storage/store.js';

/** About what such a change takes in a message. */
export const BINDING_BYTES = 96;

/** An IP address as it is now. */
export function bindingChange({ kind, changed, ip, mac }: Binding): Change {
  return kind === 'freed'
    ? { kind: 'ip.freed', seq: changed, ip }
    : { kind: 'ip', seq: changed, ip, mac };
}
