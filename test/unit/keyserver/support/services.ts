/** What the parts of a key server share, for tests that call one of them by itself. */
import { randomBytes } from 'node:crypto';
import { AuditLog } from '../../../../keyserver/audit.js';
import { CurrentSettings } from '../../../../keyserver/current-settings.js';
import { keyServerMetrics } from '../../../../keyserver/server-metrics.js';
import type { Services } from '../../../../keyserver/services.js';
import type { Store } from '../../../../keyserver/storage/store.js';
import type { Id } from '../../../../src/protocol/ids.js';
import { importPublic } from '../../../../src/protocol/public-keys.js';
import { createLogger } from '../../../../src/runtime/log.js';
import { Metrics } from '../../../../src/runtime/metrics.js';
import type { TestSubnet } from './subnet.js';

/** A member in the store, with records that nobody looks at. */
export function insertMember(store: Store, id: Id): Promise<void> {
  return store.write(async (tx) => {
    const number = await tx.nextChange();
    await tx.insertMember({
      id,
      serial: number,
      role: 'host',
      channel: randomBytes(32),
      membership: { b: randomBytes(8), s: randomBytes(64) },
      identityDigest: randomBytes(32),
      tokenId: randomBytes(16),
      ips: [],
      enrolledAt: 1,
      changed: number,
    });
  });
}

/** On a subnet's store; the clock may be the test's. */
export async function servicesOf(
  subnet: TestSubnet,
  metrics = new Metrics(),
  now: () => number = Date.now,
): Promise<Services> {
  const { store } = subnet;
  const { server } = store.meta;
  const operator = importPublic('ed25519', store.meta.operator);
  const log = createLogger('test', { level: 'silent' });
  return {
    store,
    subnet: store.meta.subnet,
    server,
    net: { id: store.meta.subnet, prefixes: [] },
    operator,
    settings: await CurrentSettings.load(store, operator),
    audit: new AuditLog({ store, server, key: subnet.auditKey, now, log }),
    metrics: keyServerMetrics(metrics),
    log,
    now,
  };
}
