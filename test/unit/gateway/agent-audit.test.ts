/** A gateway whose key server has lost entries of its audit log says so, and works on (M12). */
import { readFileSync, rmSync, statSync } from 'node:fs';
import { expect, it } from 'vitest';
import { backUp, putBack } from '../keyserver/support/store.js';
import { TestSubnet } from '../keyserver/support/subnet.js';
import { TestGateway } from './support/gateway.js';
import { renderedMetrics } from './support/metrics.js';
import { until } from './support/until.js';

it('shows the alarm in status and metrics, keeps it over a restart, and forgets it when the operator confirms', async () => {
  const subnet = await TestSubnet.start({ tuning: { auditHeadMs: 100 } });
  const alice = await TestGateway.make(subnet, 'alice');
  const bob = await TestGateway.make(subnet, 'bob');
  const audit = async () => (await alice.status()).server.audit;
  try {
    await subnet.stopServer();
    await backUp(subnet.paths.database);
    await subnet.startServer();
    await Promise.all([alice.start(), bob.start()]);
    await alice.reach(bob, 'hello');
    for (const id of ['carol', 'dave', 'erin']) await subnet.enrolled(id);
    const { seq } = (await subnet.store.lastAudit(subnet.serverId)) ?? { seq: 0 };
    await until('all entries are known', async () => ((await audit())?.seq ?? 0) >= seq);
    expect(await alice.status()).toMatchObject({ state: 'up', problems: [] });
    expect(statSync(alice.paths.auditHeads).mode & 0o777).toBe(0o600);

    await subnet.stopServer();
    await putBack(subnet.paths.database);
    rmSync(subnet.paths.auditHead);
    await subnet.startServer();
    await until('the alarm', async () => ((await audit())?.alarm ?? null) !== null);
    const status = await alice.status();
    expect(status.problems.map(({ code }) => code)).toContain('AUDIT_CONTRADICTED');
    expect(await renderedMetrics(status)).toContain('pairwire_gateway_audit_alarm 1');
    await until('the evidence', async () =>
      (await subnet.audit()).some(
        ({ action, actor }) => action === 'audit_contradicted' && actor === 'alice',
      ),
    );
    await alice.reach(bob, 'traffic goes on');

    await alice.stop();
    expect(readFileSync(alice.paths.auditHeads, 'utf8')).toContain('"alarm"');
    await alice.start();
    await until('the alarm again', async () => ((await audit())?.alarm ?? null) !== null);
    const admin = subnet.admin();
    await admin.request({ t: 'restore.confirm' });
    await until('the end of the alarm', async () => (await audit())?.alarm === null);
    await until('no problem', async () => (await alice.status()).problems.length === 0);
  } finally {
    await alice.close();
    await bob.close();
    await subnet.close();
  }
});
