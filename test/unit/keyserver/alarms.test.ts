/** What an operator sees of a key server in trouble that serves all the same: limits of its KMS that were met, a log and rows that somebody changed. */
import { appendFileSync, readFileSync, statSync } from 'node:fs';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { IdentityPairs, MAX_EXCHANGES } from '../../../keyserver/identity-pairs.js';
import { KmsAudit } from '../../../keyserver/kms/audit-file.js';
import { KMS_KEY_KIND, kmsPaths } from '../../../keyserver/kms/config.js';
import { kmsMetrics } from '../../../keyserver/kms-metrics.js';
import { parseId } from '../../../src/protocol/ids.js';
import { NOT_LIMITED } from '../../../src/protocol/kms-messages.js';
import { generateRawKeyPair, importPrivate } from '../../../src/protocol/public-keys.js';
import { readKeyFile } from '../../../src/runtime/files.js';
import { Metrics } from '../../../src/runtime/metrics.js';
import { pairwire } from './support/commands.js';
import { freePort, ServerProcess } from './support/server-process.js';
import { servicesOf } from './support/services.js';
import { meddle } from './support/store.js';
import { TestMember, TestSubnet, until } from './support/subnet.js';

let server: ServerProcess;
let metricsPort: number;
beforeEach(async () => {
  server = await ServerProcess.make();
  metricsPort = await freePort();
  appendFileSync(server.paths.config, `metrics:\n  listen: 127.0.0.1:${metricsPort}\n`);
});
afterEach(() => server.remove());

async function health(): Promise<{ readonly status: number; readonly lines: string[] }> {
  const answer = await fetch(`http://127.0.0.1:${metricsPort}/healthz`);
  return { status: answer.status, lines: (await answer.text()).trimEnd().split('\n') };
}

/** As /metrics shows it; undefined if it does not. */
async function metric(name: string): Promise<number | undefined> {
  const text = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
  const line = text.split('\n').find((one) => one.startsWith(`pairwire_keyserver_${name} `));
  return line === undefined ? undefined : Number(line.split(' ').at(-1));
}

const status = async (): Promise<Record<string, unknown>> =>
  JSON.parse((await pairwire(['kms', 'status', '--dir', server.dir, '--json'])).out);

it('limits of the KMS that were met, and what it has let go of its log', async () => {
  const kms = kmsPaths(server.paths.kms);
  appendFileSync(
    kms.config,
    [
      'limits:',
      '  dekMakesPerHour: 1',
      '  memberQuestionsPerSecond: 1',
      'audit:',
      '  maxBytes: 65536',
      '  keep: 1',
      '',
    ].join('\n'),
  );
  // Its log as after a long time.
  const { uid, gid } = statSync(kms.dir);
  const key = readKeyFile(kms.auditKey, KMS_KEY_KIND.audit);
  const { audit } = KmsAudit.open(kms.auditLog, key, Date.now, { maxBytes: 65_536, keep: 1 });
  while (audit.gone === 0) {
    audit.note({
      actor: 's1',
      action: 'dek.make',
      outcome: 'done',
      detail: { n: 'x'.repeat(3_000) },
    });
  }
  const { gone } = audit;
  audit.close();
  expect({ uid, gid }).toEqual({ uid: statSync(kms.dir).uid, gid: statSync(kms.dir).gid });
  await server.start();
  expect(await metric('kms_audit_files')).toBe(1);
  expect(await metric('kms_audit_gone')).toBe(gone);
  expect(await metric('kms_audit_bytes')).toBe(statSync(kms.auditLog).size);
  expect(await metric('kms_limited{limit="make"}')).toBe(0);

  const admin = server.admin();
  await admin.request({ t: 'kms.rotate', root: false });
  await expect(admin.request({ t: 'kms.rotate', root: false })).rejects.toMatchObject({
    code: 'unavailable',
  });
  expect(await metric('kms_failures{type="dek.make",code="limit"}')).toBe(1);
  await until(async () => (await metric('kms_limited{limit="make"}')) === 1, 'its own count');

  const alice = new TestMember(server, 'alice');
  await alice.enrol(server.token({ id: 'alice' }));
  await alice.register();
  const asks = Array.from({ length: 6 }, () =>
    alice.client.request({ t: 'kms.exchange', message: Buffer.alloc(100) }),
  );
  for (const ask of asks) ask.catch(() => undefined);
  await Promise.allSettled(asks);
  const refused = await metric('kms_failures{type="member.exchange",code="limit"}');
  expect(refused).toBeGreaterThanOrEqual(1);
  await until(
    async () => (await metric('kms_limited{limit="question"}')) === refused,
    'the count of questions',
  );
  expect(await status()).toMatchObject({
    limited: (refused ?? 0) + 1,
    limitedBy: ['make 1', `question ${refused}`].toSorted().reverse(),
    auditFiles: 1,
    auditGone: gone,
  });
  expect(await health()).toEqual({ status: 200, lines: ['serving'] });
});

it('an audit log that contradicts what was seen of it, and rows that are not what was written', async () => {
  await server.start();
  for (const id of ['alice', 'bob']) {
    const member = new TestMember(server, id);
    await member.enrol(server.token({ id }));
    await member.register();
  }
  expect(await health()).toEqual({ status: 200, lines: ['serving'] });
  expect(await status()).toMatchObject({ brokenRows: 0, auditContradictions: 0 });
  await server.kill();
  const { seq } = JSON.parse(readFileSync(server.paths.auditHead, 'utf8')) as { seq: number };
  await meddle(server.paths.database, `DELETE FROM audit WHERE seq >= ${seq}`);
  await meddle(server.paths.database, "UPDATE members SET role = 'operator' WHERE id = 'bob'");
  await server.start();
  // A load balancer goes on sending members to it; whoever looks sees what is wrong.
  await until(async () => (await health()).lines.length === 3, 'both alarms');
  expect(await health()).toEqual({
    status: 200,
    lines: ['serving', 'audit_contradicted 1', 'rows_broken 1'],
  });
  expect(await metric('broken_rows')).toBe(1);
  expect(await metric('audit_contradictions')).toBe(1);
  expect(await status()).toMatchObject({ brokenRows: 1, auditContradictions: 1 });
});

it('that too many questions are with the KMS', async () => {
  const subnet = await TestSubnet.start();
  try {
    const metrics = new Metrics();
    const key = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
    const free: (() => void)[] = [];
    const slow = {
      publicKey: Buffer.alloc(32),
      exchange: () =>
        new Promise<Uint8Array>((resolve) => free.push(() => resolve(Buffer.alloc(1)))),
    };
    const others = {
      carry: () => Promise.reject(new Error('nobody is at home elsewhere')),
      refused: () => undefined,
      unanswered: () => undefined,
    };
    const options = { kms: slow, signKey: key, others, clock: Date.now };
    const pairs = new IdentityPairs(await servicesOf(subnet, metrics), options);
    const asked = Array.from({ length: MAX_EXCHANGES }, (_unused, at) =>
      pairs.exchange(parseId(`m-${at}`), Buffer.alloc(1), undefined),
    );
    await expect(pairs.exchange(parseId('late'), Buffer.alloc(1), undefined)).rejects.toMatchObject(
      {
        code: 'unavailable',
      },
    );
    expect(await metrics.registry.metrics()).toContain('keyserver_identity_busy_total 1');
    for (const go of free) go();
    await Promise.all(asked);
    const again = pairs.exchange(parseId('late'), Buffer.alloc(1), undefined);
    free.at(-1)?.();
    await again;
  } finally {
    await subnet.close();
  }
});

it('nothing new of a KMS that does not answer, soon', async () => {
  const metrics = new Metrics();
  let asked = 0;
  kmsMetrics(metrics, {
    connected: true,
    failures: [{ type: 'dek.open', code: 'no_answer', count: 3 }],
    status: () => {
      asked += 1;
      if (asked > 1) return new Promise(() => undefined);
      return Promise.resolve({
        ...{ generation: 1, generations: [1], inToken: [] },
        ...{ limited: 2, limitedBy: { ...NOT_LIMITED, open: 2 } },
        ...{ auditBytes: 7, auditFiles: 0, auditGone: 0 },
      });
    },
  });
  const shown = 'pairwire_keyserver_kms_limited{limit="open"} 2';
  expect(await metrics.registry.metrics()).toContain(shown);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  const since = performance.now();
  const looks = await Promise.all(Array.from({ length: 5 }, () => metrics.registry.metrics()));
  for (const text of looks) {
    expect(text).toContain(shown);
    expect(text).toContain('kms_failures{type="dek.open",code="no_answer"} 3');
  }
  // Nobody's look costs a question of its own, nor waits for the time-out of one.
  expect(asked).toBe(2);
  expect(performance.now() - since).toBeLessThan(10_000);
});
