/** The audit log: an edited, removed or cut entry shows; repeats cost one entry; a member has a quota (M12). */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AuditLog, readAuditHead, verifyAudit } from '../../../keyserver/audit.js';
import { Refusal, type RefusalKind } from '../../../keyserver/refusal.js';
import { parseId } from '../../../src/protocol/ids.js';
import { createLogger } from '../../../src/runtime/log.js';
import { TestSubnet } from './support/subnet.js';

const S1 = parseId('s1');
const refusal = (kind: RefusalKind = 'role'): Refusal => new Refusal('refused', kind, 'no');

describe('audit log', () => {
  let subnet: TestSubnet;
  let now = 1_000_000;
  let dropped = 0;
  let log: AuditLog;

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    now = 1_000_000;
    dropped = 0;
    log = new AuditLog({
      store: subnet.store,
      server: S1,
      key: subnet.auditKey,
      now: () => now,
      log: createLogger('test', { level: 'silent' }),
      headFile: subnet.paths.auditHead,
      onDropped: () => {
        dropped += 1;
      },
    });
    for (let at = 0; at < 20; at += 1) {
      await subnet.store.write((tx) =>
        log.append(tx, { actor: 'alice', action: 'test', outcome: 'done', detail: { at } }),
      );
    }
  });
  afterEach(() => subnet.close());

  const check = (withHead = false): ReturnType<typeof verifyAudit> =>
    verifyAudit(
      subnet.store,
      S1,
      subnet.auditKey,
      withHead ? readAuditHead(subnet.paths.auditHead) : undefined,
    );
  const tamper = (sql: string): Promise<number> =>
    subnet.driver.transaction((connection) => connection.run(sql, []));

  it('is intact when nobody touched it', async () => {
    await log.close();
    expect(await check(true)).toEqual({ entries: 21, broken: undefined });
  });

  it('has nothing that would be the same under another key', async () => {
    const other = Buffer.alloc(32, 1);
    expect((await verifyAudit(subnet.store, S1, other)).broken?.seq).toBe(1);
  });

  for (const [what, sql, seq] of [
    ['an edited detail', `UPDATE audit SET detail = '{"at":99}' WHERE seq = 7`, 7],
    ['an edited actor', "UPDATE audit SET actor = 'bob' WHERE seq = 7", 7],
    ['an edited time', 'UPDATE audit SET at = at + 1 WHERE seq = 7', 7],
    ['an edited count', 'UPDATE audit SET count = 2 WHERE seq = 7', 7],
    ['an edited outcome', "UPDATE audit SET outcome = 'refused' WHERE seq = 7", 7],
    ['a removed entry', 'DELETE FROM audit WHERE seq = 7', 7],
    [
      'two entries that changed places',
      'UPDATE audit SET seq = 25 - seq WHERE seq IN (12, 13)',
      12,
    ],
  ] as const) {
    it(`shows ${what}`, async () => {
      if (what.startsWith('two')) {
        await tamper('UPDATE audit SET seq = 1000 WHERE seq = 12');
        await tamper('UPDATE audit SET seq = 12 WHERE seq = 13');
        await tamper('UPDATE audit SET seq = 13 WHERE seq = 1000');
      } else {
        await tamper(sql);
      }
      expect((await check()).broken?.seq).toBe(seq);
    });
  }

  it('shows removed entries even if those behind are renumbered', async () => {
    await tamper('DELETE FROM audit WHERE seq = 7');
    for (let seq = 8; seq <= 21; seq += 1) {
      await tamper(`UPDATE audit SET seq = ${seq - 1} WHERE seq = ${seq}`);
    }
    expect((await check()).broken?.seq).toBe(7);
  });

  it('shows a cut tail by the noted head', async () => {
    await log.close();
    await tamper('DELETE FROM audit WHERE seq > 15');
    expect((await check()).broken).toBeUndefined();
    expect((await check(true)).broken).toMatchObject({ seq: 16 });
  });

  it('writes repeats within a minute as one entry with their count', async () => {
    for (let at = 0; at < 100; at += 1) log.refused('mallory', refusal());
    log.refused('mallory', refusal('foreign_requester'));
    now += 61_000;
    log.refused('mallory', refusal());
    await log.close();
    const own = (await subnet.audit()).filter(({ actor }) => actor === 'mallory');
    expect(own.map(({ action, count }) => [action, count])).toEqual([
      ['role', 1],
      ['foreign_requester', 1],
      ['role', 99],
      ['role', 1],
    ]);
    expect((await check(true)).broken).toBeUndefined();
  });

  it('has a quota for each member', async () => {
    for (let minute = 0; minute < 200; minute += 1) {
      log.refused('mallory', refusal());
      now += 17_000;
      log.refused('mallory', refusal('lookup_rate'));
      log.refused('mallory', refusal('register_rate'));
      log.refused('mallory', refusal('enrol_id'));
    }
    log.refused('alice', refusal());
    await log.close();
    const entries = await subnet.audit();
    expect(dropped).toBeGreaterThan(0);
    expect(
      entries.filter(({ actor, count }) => actor === 'mallory' && count === 1).length,
    ).toBeLessThan(260);
    expect(entries.some(({ actor, action }) => actor === 'alice' && action === 'role')).toBe(true);
  });
});
