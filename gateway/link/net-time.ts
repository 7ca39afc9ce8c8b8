/** The time that frames between subnets carry, as a link port has it (docs/protocol.md 9.3). */
import type { Id } from '../../src/protocol/ids.js';

/**
 * How far that time is ahead of our own key server's, ms: as that has measured it of the smallest net whose key it does not
 * make itself, also if this link port has nothing to do with that net; all link ports of a subnet must agree.
 * @param own our net id
 * @param nets what is told of others
 */
export function linkAhead(
  own: Id,
  nets: Iterable<{ readonly net: Id; readonly ahead: number | undefined }>,
): number {
  let followed: { readonly net: Id; readonly ahead: number | undefined } | undefined;
  for (const one of nets) {
    if (one.net < own && (followed === undefined || one.net < followed.net)) followed = one;
  }
  return followed?.ahead ?? 0;
}
