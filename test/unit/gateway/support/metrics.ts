/** The metrics page of a status. */
import { GatewayMetrics } from '../../../../gateway/status/metrics.js';
import type { Status } from '../../../../gateway/status/snapshot.js';

/** What Prometheus would read. */
export function renderedMetrics(status: Status, perPeer = false): Promise<string> {
  return new GatewayMetrics(() => Promise.resolve(status), perPeer).registry.metrics();
}
