/** Rights of a grant as the data plane takes them (port.set and peer.set of dataplane/schema.json). */
import type { Right } from '../../src/protocol/records.js';

const BITS: Readonly<Record<Right, number>> = {
  /** Router advertisements and redirects. */
  router: 1,
  /** What a DHCP server says. */
  dhcp: 2,
  /** Nothing for the data plane. */
  shared: 0,
};

/** Not a right: the policy keeps the member out of group traffic. */
const NO_GROUP = 4;

/** The bits of these rights. @param inGroup whether the member takes part in group traffic */
export function rightsBits(rights: readonly Right[], inGroup: boolean): number {
  return rights.reduce((bits, right) => bits | BITS[right], inGroup ? 0 : NO_GROUP);
}
