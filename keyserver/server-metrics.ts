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
  readonly rekeys: Counter<'reason' | 'step'>;
  readonly groupRekeys: Counter<'reason' | 'step'>;
  readonly netRekeys: Counter<'reason' | 'step'>;
  readonly revocations: Counter<never>;
  readonly rekeyCases: Counter<'case'>;
  readonly auditDropped: Counter<never>;
  readonly learned: Counter<'result'>;
  readonly bindings: Counter<'result'>;
  readonly identityBusy: Counter<never>;
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
      'Key requests by what they name (mac, index) and what was answered (pair, behind, group, none)',
      ['by', 'answer'],
    ),
    pairKeysMade: metrics.counter('keyserver_pair_keys_made_total', 'Pair keys made'),
    refusals: metrics.counter('keyserver_refusals_total', 'Refused requests by kind', ['kind']),
    introductions: metrics.counter(
      'keyserver_introductions_total',
      'Records pushed to the far end of a pair before the near end got its answer',
    ),
    hints: metrics.counter('keyserver_hints_total', 'Changes pushed to sessions'),
    rekeys: metrics.counter(
      'keyserver_rekeys_total',
      'Generations of pair keys by reason and step (prepared, committed, forced; not_watched: not told again by itself)',
      ['reason', 'step'],
    ),
    groupRekeys: metrics.counter(
      'keyserver_group_rekeys_total',
      'Generations of the group key by reason and step (prepared, committed, forced)',
      ['reason', 'step'],
    ),
    netRekeys: metrics.counter(
      'keyserver_net_rekeys_total',
      'Generations of net keys by reason and step (made, prepared, committed, forced; learned: from the server that makes them)',
      ['reason', 'step'],
    ),
    revocations: metrics.counter('keyserver_revocations_total', 'Members revoked'),
    rekeyCases: metrics.counter(
      'keyserver_rekey_cases_total',
      'Ends that were healed: case 1 was not told and asked, case 2 lagged and was told of',
      ['case'],
    ),
    auditDropped: metrics.counter(
      'keyserver_audit_dropped_total',
      'Refusals over the quota of audit entries',
    ),
    learned: metrics.counter(
      'keyserver_learned_total',
      'Addresses that plain ports reported, by what became of them',
      ['result'],
    ),
    bindings: metrics.counter(
      'keyserver_bindings_total',
      'IP addresses that members announced, by what became of them',
      ['result'],
    ),
    identityBusy: metrics.counter(
      'keyserver_identity_busy_total',
      "Members' questions that were not carried to the KMS, because too many were with it",
    ),
  };
}
