/** The key server's metrics, in one place: names are an interface for dashboards and alerts. */
import type { Counter, Histogram } from 'prom-client';
import type { Metrics } from '../src/runtime/metrics.js';

/** What the parts of the key server count. */
export interface KeyServerMetrics {
  readonly requests: Counter<'type' | 'result'>;
  readonly latency: Histogram<'type'>;
  readonly keyRequests: Counter<'by' | 'answer'>;
  readonly pairKeysMade: Counter<never>;
  readonly refusals: Counter<'kind'>;
  readonly introductions: Counter<never>;
  readonly hints: Counter<never>;
  readonly auditDropped: Counter<never>;
}

/** Makes them in a registry. */
export function keyServerMetrics(metrics: Metrics): KeyServerMetrics {
  return {
    requests: metrics.counter('keyserver_requests_total', 'Requests by type and result', [
      'type',
      'result',
    ]),
    latency: metrics.histogram(
      'keyserver_request_seconds',
      'Time from a request to its answer',
      [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5],
      ['type'],
    ),
    keyRequests: metrics.counter(
      'keyserver_key_requests_total',
      'Key requests by what they name (mac, index) and what was answered (pair, group, none)',
      ['by', 'answer'],
    ),
    pairKeysMade: metrics.counter('keyserver_pair_keys_made_total', 'Pair keys made'),
    refusals: metrics.counter('keyserver_refusals_total', 'Refused requests by kind', ['kind']),
    introductions: metrics.counter(
      'keyserver_introductions_total',
      'Records pushed to the far end of a pair before the near end got its answer',
    ),
    hints: metrics.counter('keyserver_hints_total', 'Changes pushed to sessions'),
    auditDropped: metrics.counter(
      'keyserver_audit_dropped_total',
      'Refusals over the quota of audit entries',
    ),
  };
}
