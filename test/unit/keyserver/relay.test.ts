/** The relay as a child of the key server: what it writes is bounded, and it is started again when it ends. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MAX_LINE, RelayProcess } from '../../../keyserver/relay.js';
import { generateKeyPair } from '../../../src/protocol/channel/keys.js';
import { createLogger } from '../../../src/runtime/log.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { until } from './support/subnet.js';

describe('a relay that goes wrong', () => {
  let dir: string;
  let metrics: Metrics;
  let relay: RelayProcess;

  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-relay-'));
    metrics = new Metrics();
  });
  afterEach(async () => {
    await relay.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  function start(script: string): void {
    const program = join(dir, 'relay');
    writeFileSync(program, `#!/bin/sh\n${script}\n`);
    chmodSync(program, 0o755);
    const log = createLogger('test', { level: 'silent' });
    relay = new RelayProcess('127.0.0.1:9', generateKeyPair(), log, metrics, () => program);
    relay.start();
  }

  async function value(name: string, what?: string): Promise<number> {
    const metric = await metrics.registry.getSingleMetric(`pairwire_relay_${name}`)?.get();
    return metric?.values.find(({ labels }) => labels.what === what)?.value ?? 0;
  }

  it('writes lines that are too long: thrown away and counted, the next one is read', async () => {
    const line = (taken: number, length: number): string =>
      `printf '{"taken":${taken}%${length - '{"taken":1}'.length}s}\\n' ''`;
    const endless = "head -c 20000000 /dev/zero | tr '\\0' x";
    start(`${line(1, MAX_LINE)}; sleep 0.3; ${line(2, MAX_LINE + 1)}; ${endless}; exec cat`);
    await until(async () => (await value('bad_lines')) === 2, 'lines of the relay');
    expect(await value('counts', 'taken')).toBe(1);
  });

  it('counts what it reports, however it is cut', async () => {
    start(`printf '{"for'; sleep 0.1; printf 'warded":7}\\nnonsense\\n'; exec cat >/dev/null`);
    await until(async () => (await value('bad_lines')) === 1, 'lines of the relay');
    expect(await value('counts', 'forwarded')).toBe(7);
  });

  it('ends at once: started again after half a second, then after one', async () => {
    const since = Date.now();
    start('exit 3');
    await until(async () => (await value('restarts')) === 3, 'restarts of the relay');
    expect(Date.now() - since).toBeGreaterThan(1_450);
  });
});
