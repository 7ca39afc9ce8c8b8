/** /metrics answers on loopback only, and nothing but /metrics; what it shows of its own process costs nothing while nobody looks. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { Lifecycle } from '../../../../src/runtime/lifecycle.js';
import { createLogger } from '../../../../src/runtime/log.js';
import { isLoopback, Metrics, serveMetrics } from '../../../../src/runtime/metrics.js';

describe('metrics', () => {
  it('are served as text', async () => {
    const metrics = new Metrics();
    metrics.counter('things_total', 'Things', ['kind']).inc({ kind: 'a' }, 2);
    metrics.gauge('now', 'Now', [], (gauge) => gauge.set(7));
    const server = await serveMetrics(metrics, '127.0.0.1', 0);
    try {
      const base = `http://127.0.0.1:${server.port}`;
      const text = await (await fetch(`${base}/metrics`)).text();
      expect(text).toContain('pairwire_things_total{kind="a"} 2');
      expect(text).toContain('pairwire_now 7');
      expect((await fetch(`${base}/`)).status).toBe(404);
      expect((await fetch(`${base}/metrics`, { method: 'POST' })).status).toBe(404);
    } finally {
      await server.close();
    }
  });

  it('tell of their process without waking it', async () => {
    const metrics = new URL('../../../../src/runtime/metrics.ts', import.meta.url).href;
    const program = `
      import { readFileSync } from 'node:fs';
      import { setTimeout as sleep } from 'node:timers/promises';
      const { Metrics } = await import(${JSON.stringify(metrics)});
      const { registry } = new Metrics({ process: true });
      const switches = () =>
        Number(/^voluntary_ctxt_switches:\\s+(\\d+)$/m.exec(readFileSync('/proc/thread-self/status', 'utf8'))?.[1]);
      await sleep(500); // What belongs to the start is done.
      const before = switches();
      await sleep(2_000);
      console.log(JSON.stringify({ woken: switches() - before, text: await registry.metrics() }));
    `;
    const words = ['--import', 'tsx', '--input-type', 'module', '--eval', program];
    const { stdout } = await promisify(execFile)(process.execPath, words);
    const { woken, text } = JSON.parse(stdout) as { woken: number; text: string };
    expect(woken).toBeLessThan(100); // It was 200.
    expect(text).toMatch(/^pairwire_process_resident_memory_bytes \d+$/m);
    expect(text).toMatch(/^pairwire_nodejs_eventloop_active_seconds_total [\d.]+$/m);
    expect(text).not.toMatch(/eventloop_lag_(min|max|mean|stddev|p\d)/);
  });

  it('refuse other than loopback addresses', () => {
    for (const host of ['0.0.0.0', '::', '192.0.2.1', '127.0.0.1.example.com', '1127.0.0.1']) {
      expect(isLoopback(host)).toBe(false);
      expect(() => serveMetrics(new Metrics(), host, 0)).toThrow(/loopback/);
    }
    for (const host of ['127.0.0.1', '127.1.2.3', '::1', 'localhost'])
      expect(isLoopback(host)).toBe(true);
  });
});

describe('lifecycle', () => {
  it('stops parts in the opposite order, once, past one that fails', async () => {
    const life = new Lifecycle(createLogger('test', { level: 'silent' }));
    const order: string[] = [];
    life.started('store', () => void order.push('store'));
    life.started('bad', () => {
      order.push('bad');
      throw new Error('no');
    });
    life.started('server', async () => void order.push('server'));
    await Promise.all([life.stop(), life.stop()]);
    expect(order).toEqual(['server', 'bad', 'store']);
  });
});
