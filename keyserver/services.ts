/** What the parts of the key server share. Time and randomness come in from outside. */
import type { KeyObject } from 'node:crypto';
import type { Id } from '../src/protocol/ids.js';
import type { MacAddress } from '../src/protocol/mac.js';
import type { Logger } from '../src/runtime/log.js';
import type { AuditLog } from './audit.js';
import type { OwnNet } from './config.js';
import type { CurrentSettings } from './current-settings.js';
import type { Place } from './registry/directory.js';
import type { KeyServerMetrics } from './server-metrics.js';
import type { Store } from './storage/store.js';

/** Store, time, settings and where to tell what happened. */
export interface Services {
  readonly store: Store;
  readonly subnet: Id;
  readonly server: Id;
  /** What this subnet is to others. */
  readonly net: OwnNet;
  /** The operator's public key. */
  readonly operator: KeyObject;
  readonly settings: CurrentSettings;
  readonly audit: AuditLog;
  readonly metrics: KeyServerMetrics;
  readonly log: Logger;
  /** Key-server time, ms since 1970. */
  readonly now: () => number;
  /** Counts ms and never goes back, while `now` may be corrected: intervals are told by it. Without it, by `now`. */
  readonly elapsed?: () => number;
  /** False while a member that another key server of this subnet has may not be known here. */
  readonly knowsAll?: () => boolean;
  /** Asks the other key servers of this subnet, for a member, which of their plain members an address outside is behind. */
  readonly seek?: (vlan: number, mac: MacAddress, asker: Id) => Promise<Place | undefined>;
}
