/**
 * What gateways refused by the address guard (docs/protocol.md 8.6), written down: once for each source, kind and
 * minute. A report is its gateway's word; the actor of the entry is who says it, the facts name whom it accuses.
 */
import type { Id } from '../../src/protocol/ids.js';
import type { Guarded, GuardedKind } from '../../src/protocol/messages.js';
import { Refusal, type RefusalKind } from '../refusal.js';
import type { Services } from '../services.js';
import { TokenBuckets } from './token-bucket.js';

/** Reports of a member; a gateway makes one a second. */
const GUARDED_BURST = 20;
const GUARDED_PER_SECOND = 2;

const AUDITED: Readonly<Record<GuardedKind, RefusalKind>> = {
  arp: 'arp_spoof',
  nd: 'nd_spoof',
  ra: 'ra_guard',
  redirect: 'redirect_guard',
  dhcp: 'dhcp_guard',
};

/** Reports of all members. */
export class GuardReports {
  readonly #services: Services;
  readonly #reports = new TokenBuckets(GUARDED_BURST, GUARDED_PER_SECOND);

  constructor(services: Services) {
    this.#services = services;
  }

  /** @throws Refusal for too many reports */
  report(id: Id, entries: readonly Guarded[]): void {
    const { now, metrics, audit } = this.#services;
    if (!this.#reports.take(id, now())) {
      throw new Refusal('limit', 'guarded_rate', 'too many reports; wait');
    }
    for (const { kind, peer, mac, ip, count } of entries) {
      const action = AUDITED[kind];
      metrics.refusals.inc({ kind: action });
      const from = peer === undefined ? {} : { peer };
      const claimed = ip === undefined ? {} : { ip };
      const facts = { ...from, mac, ...claimed, frames: count };
      audit.refused(id, new Refusal('refused', action, action, facts), peer ?? mac);
    }
  }
}
