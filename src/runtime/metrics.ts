/**
 * Prometheus metrics: a registry for each process, and the small HTTP server that shows it
 * at /metrics. It answers on loopback only: rates by member tell who talks to whom, so a
 * proxy with access control serves them further.
 */
import { createServer } from 'node:http';
import { performance } from 'node:perf_hooks';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { PairwireError } from './errors.js';

const PREFIX = 'pairwire_';
/** prom-client's sampling of the event loop wakes an idle process 100 times a second: never, and what it would show is taken out. */
const NO_SAMPLING_MS = 2 ** 31 - 1;
const SAMPLED = ['min', 'max', 'mean', 'stddev', 'p50', 'p90', 'p99'] as const;

/** Makes counters, gauges and histograms of one registry; every name begins with `pairwire_`. */
export class Metrics {
  readonly registry = new Registry();

  /** @param process also memory, CPU time and how busy the event loop is, of this process */
  constructor(options: { readonly process?: boolean } = {}) {
    if (options.process === true) this.#addProcess();
  }

  #addProcess(): void {
    const { registry } = this;
    collectDefaultMetrics({
      register: registry,
      prefix: PREFIX,
      eventLoopMonitoringPrecision: NO_SAMPLING_MS,
    });
    for (const what of SAMPLED) {
      registry.removeSingleMetric(`${PREFIX}nodejs_eventloop_lag_${what}_seconds`);
    }
    new Counter({
      name: `${PREFIX}nodejs_eventloop_active_seconds_total`,
      help: 'Time that the event loop did not wait for something to do.',
      registers: [registry],
      collect() {
        this.reset();
        this.inc(performance.eventLoopUtilization().active / 1_000);
      },
    });
  }

  counter<L extends string = never>(
    name: string,
    help: string,
    labels: readonly L[] = [],
  ): Counter<L> {
    return new Counter({
      name: PREFIX + name,
      help,
      labelNames: [...labels],
      registers: [this.registry],
    });
  }

  /** @param collect sets the gauge when it is looked at */
  gauge<L extends string = never>(
    name: string,
    help: string,
    labels: readonly L[] = [],
    collect?: (gauge: Gauge<L>) => void | Promise<void>,
  ): Gauge<L> {
    const gauge: Gauge<L> = new Gauge({
      name: PREFIX + name,
      help,
      labelNames: [...labels],
      registers: [this.registry],
      ...(collect === undefined ? {} : { collect: () => collect(gauge) }),
    });
    return gauge;
  }

  /** @param buckets upper bounds in the unit that the name says */
  histogram<L extends string = never>(
    name: string,
    help: string,
    buckets: readonly number[],
    labels: readonly L[] = [],
  ): Histogram<L> {
    return new Histogram({
      name: PREFIX + name,
      help,
      buckets: [...buckets],
      labelNames: [...labels],
      registers: [this.registry],
    });
  }
}

/** A running /metrics server. */
export interface MetricsServer {
  readonly host: string;
  readonly port: number;
  close(): Promise<void>;
}

/** What /healthz says: 200 for a process that serves, 503 for one that does not. */
export interface Health {
  readonly serving: boolean;
  /** One word. */
  readonly state: string;
  /** What an operator has to look at although the process serves: a word, and how many. Those that are 0 are not shown. */
  readonly alarms?: Readonly<Record<string, number>>;
}

/**
 * Serves a registry at http://host:port/metrics, and at /healthz whether the process serves: its state in the first line, then a line for
 * each alarm, which change nothing of the code.
 * @param metrics is asked each time, where what is shown changes
 * @param port 0 takes a free one
 * @throws PairwireError CONFIG_INVALID for an address that is not loopback, CHANNEL_UNREACHABLE if the port can't be had
 */
export function serveMetrics(
  metrics: Metrics | (() => Metrics),
  host: string,
  port: number,
  health?: () => Health,
): Promise<MetricsServer> {
  if (!isLoopback(host)) {
    throw new PairwireError('CONFIG_INVALID', 'metrics may listen on a loopback address only', {
      where: host,
      hint: 'write 127.0.0.1 and let a proxy with access control serve it further',
    });
  }
  const server = createServer((request, response) => {
    const reads = request.method === 'GET' || request.method === 'HEAD';
    if (reads && request.url === '/healthz' && health !== undefined) {
      const { serving, state, alarms = {} } = health();
      const raised = Object.entries(alarms).filter(([, count]) => count > 0);
      const lines = [state, ...raised.map(([name, count]) => `${name} ${count}`)];
      response
        .writeHead(serving ? 200 : 503, { 'content-type': 'text/plain' })
        .end(`${lines.join('\n')}\n`);
      return;
    }
    if (request.url !== '/metrics' || !reads) {
      response.writeHead(404).end();
      return;
    }
    const { registry } = typeof metrics === 'function' ? metrics() : metrics;
    registry.metrics().then(
      (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
      () => response.writeHead(500).end(),
    );
  });
  server.requestTimeout = 5_000;
  return new Promise((resolve, reject) => {
    server.once('error', (cause) => {
      const text = `cannot listen for metrics: ${cause.message}`;
      reject(new PairwireError('CHANNEL_UNREACHABLE', text, { where: `${host}:${port}`, cause }));
    });
    server.listen({ host, port }, () => {
      const address = server.address();
      resolve({
        host,
        port: typeof address === 'object' && address !== null ? address.port : port,
        close: () =>
          new Promise((done) => {
            server.close(() => done());
            server.closeAllConnections();
          }),
      });
    });
  });
}

/** True for an address or name that only this machine can reach. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}
