/**
 * The time that frames between subnets carry (docs/protocol.md 9.3). Key servers have clocks of their own, and a frame
 * that is late by one of them would be refused; so the link ports of all subnets that are linked go by one of these
 * clocks. Each server follows the one with the smallest net id that it asks, which may follow another one itself.
 */
import { MAX_NET_AHEAD_MS } from '../../src/protocol/messages.js';
import type { Net } from '../storage/store.js';

/** Link ports are told of another difference only if it is so much another one, ms: a measurement is never quite the same. */
const STEADY = 500;

/** How far the time of frames between subnets is ahead of this server's, ms; as gateway/link/net-time.ts sees it. */
export function linkAhead(nets: readonly Net[]): number {
  const followed = nets
    .filter(({ contact, key, far }) => contact && key && far)
    .reduce<Net | undefined>((a, b) => (a !== undefined && a.net < b.net ? a : b), undefined);
  return followed?.far?.ahead ?? 0;
}

/**
 * What is kept of a measurement.
 * @param known what was kept before
 * @param measured undefined: there is none, or it is not to be believed
 */
export function keptAhead(
  known: number | undefined,
  measured: number | undefined,
): number | undefined {
  if (measured === undefined || Math.abs(measured) > MAX_NET_AHEAD_MS) return known;
  return Math.abs(measured - (known ?? 0)) < STEADY ? known : Math.round(measured);
}
