/**
 * Heads of the audit log (M12): real server processes whose database somebody writes to while they are stopped, killed
 * ones, and members that lie about what they have seen.
 */
import { existsSync, rmSync, statSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AuditLog, readAuditHead, verifyAudit } from '../../../keyserver/audit.js';
import { auditSignKey } from '../../../keyserver/audit-key.js';
import { AuditWitnesses, MAX_WITNESSES } from '../../../keyserver/audit-witnesses.js';
import { signAuditHead } from '../../../src/protocol/audit-head.js';
import { parseId } from '../../../src/protocol/ids.js';
import { generateRawKeyPair, importPrivate } from '../../../src/protocol/public-keys.js';
import type { Signed } from '../../../src/protocol/signed.js';
import { createLogger } from '../../../src/runtime/log.js';
import { serverToken } from './support/cascade.js';
import { pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { backUp, meddle, putBack } from './support/store.js';
import { SUBNET, sleep, TestMember, TestSubnet, until } from './support/subnet.js';
import { registerWith, Watcher } from './support/watcher.js';

const S1 = parseId('s1');

describe('a key server whose log somebody changes while it is stopped', () => {
  let server: ServerProcess;
  let alice: TestMember;
  let watcher: Watcher;

  beforeEach(async () => {
    server = await ServerProcess.make();
    await server.start();
    alice = new TestMember(server, 'alice');
    await alice.enrol(server.token({ id: 'alice' }));
    await alice.register();
    for (const id of ['bob', 'carol', 'dave']) {
      const other = new TestMember(server, id);
      await other.enrol(server.token({ id }));
    }
    watcher = new Watcher(alice, S1);
    // Killed between its entries and their head: a start signs them.
    await again();
    await watcher.come();
    await server.kill();
  });
  afterEach(() => server.remove());

  async function again(): Promise<void> {
    await server.kill();
    await server.start();
  }
  /** The server runs, and alice has connected to it. */
  async function resume(): Promise<void> {
    await server.start();
    await watcher.come();
  }
  const verify = () => pairwire(['audit', 'verify', '--dir', server.dir]);
  const list = async (): Promise<{ actor: string; action: string }[]> =>
    JSON.parse((await pairwire(['audit', '--dir', server.dir, '--json'])).out);
  const seq = () => watcher.heads.head?.seq ?? 0;

  it('has a key of its own, 0600, and tells no false alarm', async () => {
    expect(statSync(server.paths.auditSignKey).mode & 0o777).toBe(0o600);
    expect(seq()).toBeGreaterThanOrEqual(6);
    const head = JSON.parse((await pairwire(['audit', 'head', '--dir', server.dir, '--json'])).out);
    const known = watcher.heads.head;
    expect(head).toMatchObject({
      server: 's1',
      seq: seq(),
      key: Buffer.from(known?.sign ?? []).toString('base64url'),
      contradictedBy: [],
    });
    expect(await verify()).toMatchObject({ code: 0 });
    await resume();
    expect(watcher.heads.alarm).toBeUndefined();
    expect((await list()).filter(({ action }) => action === 'audit_contradicted')).toEqual([]);
  });

  it('finds a cut tail by the head that it noted, and goes on saying so', async () => {
    await meddle(server.paths.database, `DELETE FROM audit WHERE seq > ${seq() - 2}`);
    expect((await verify()).err).toContain('ends before its noted head');
    await server.start();
    await until(
      async () => (await list()).some((one) => one.action === 'audit_contradicted'),
      'the entry',
    );
    // By now another head is noted.
    await server.kill();
    expect(await verify()).toMatchObject({ code: 1 });
  });

  it('cuts its tail and the noted head with it: members show it, and verify names them', async () => {
    const had = seq();
    await meddle(server.paths.database, `DELETE FROM audit WHERE seq > ${had - 2}`);
    rmSync(server.paths.auditHead);
    expect(await verify()).toMatchObject({ code: 0 });
    await resume();
    expect(watcher.heads.alarm).toMatchObject({ kind: 'cut', ours: { head: { seq: had } } });
    await until(
      async () =>
        (await list()).some((one) => one.action === 'audit_contradicted' && one.actor === 'alice'),
      'the entry about alice',
    );
    const checked = await verify();
    expect(checked.code).toBe(1);
    expect(checked.err).toContain('alice');
    // Entries that fill the gap up don't help.
    for (let at = 0; at < 4; at += 1) {
      const filler = new TestMember(server, `filler-${at}`);
      await filler.enrol(server.token({ id: filler.id }));
    }
    await again();
    await watcher.come();
    expect(seq()).toBeGreaterThan(had);
    expect(watcher.heads.alarm?.ours.head.seq).toBe(had);
    expect((await verify()).err).toContain(`entry ${had}: alice has seen another entry there`);
  });

  it('cuts everything, the file of heads included', async () => {
    await meddle(server.paths.database, 'DELETE FROM audit');
    rmSync(server.paths.auditHead);
    await resume();
    await until(
      async () =>
        (await list()).some((one) => one.action === 'audit_contradicted' && one.actor === 'alice'),
      'the entry about alice',
    );
    expect((await verify()).err).toContain('alice');
    await again();
    await watcher.come();
    expect(watcher.heads.alarm?.kind).toBe('cut');
  });

  for (const [what, sql] of [
    ['an edited entry', "UPDATE audit SET actor = 'nobody' WHERE seq = 4"],
    ['an entry removed from the middle', 'DELETE FROM audit WHERE seq = 4'],
  ] as const) {
    it(`shows ${what}`, async () => {
      await meddle(server.paths.database, sql);
      const checked = await verify();
      expect(checked.code).toBe(1);
      expect(checked.err).toContain('entry 4');
    });
  }

  it('is put back to an old copy: members show it until the operator confirms that he knows', async () => {
    await backUp(server.paths.database);
    await server.start();
    const erin = new TestMember(server, 'erin');
    await erin.enrol(server.token({ id: 'erin' }));
    await again();
    await watcher.come();
    const had = seq();
    await server.kill();
    await putBack(server.paths.database);
    rmSync(server.paths.auditHead);
    await resume();
    expect(watcher.heads.alarm).toMatchObject({ ours: { head: { seq: had } } });
    expect((await verify()).err).toContain('alice');
    const confirmed = await pairwire(['restore', 'confirm', '--dir', server.dir]);
    expect(confirmed).toMatchObject({ code: 0 });
    await watcher.ask();
    expect(watcher.heads.alarm).toBeUndefined();
    expect(await verify()).toMatchObject({ code: 0 });
    const entry = (await list()).find(({ action }) => action === 'restore_confirm');
    expect(entry).toMatchObject({ actor: 'admin', detail: { seen: [`${had} alice`] } });
    // Somebody who was away has the head from before, and nobody is alarmed.
    await again();
    await watcher.come();
    expect(await verify()).toMatchObject({ code: 0 });
  }, 180_000);

  it('says so on another machine of its database, too, until the operator has confirmed at any', async () => {
    /** As on a machine that has stood by: nothing was told to it. */
    const elsewhere = (): void => {
      for (const file of [server.paths.auditWitnesses, server.paths.auditHead]) rmSync(file);
    };
    const contradictions = async () =>
      (await server.admin().request({ t: 'kms.status' })).auditContradictions;
    const had = seq();
    await meddle(server.paths.database, `DELETE FROM audit WHERE seq > ${had - 2}`);
    rmSync(server.paths.auditHead);
    await resume();
    await until(
      async () => (await list()).some((one) => one.action === 'audit_contradicted'),
      'the entry about alice',
    );
    await server.kill();
    elsewhere();
    expect((await verify()).err).toContain('alice');
    // Whoever writes to the database can't say that the operator has confirmed.
    const sign = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
    const time = Date.now() + 1_000;
    const forged = signAuditHead(
      { subnet: SUBNET, server: S1, seq: had, mac: Buffer.alloc(32), time, confirmed: time },
      sign,
    );
    const hex = (bytes: Uint8Array): string => `X'${Buffer.from(bytes).toString('hex')}'`;
    await meddle(
      server.paths.database,
      `INSERT INTO audit_witnesses VALUES ('s1', '+', ${hex(forged.b)}, ${hex(forged.s)}, 1)`,
    );
    await server.start();
    expect(await contradictions()).toBe(1);
    // Nor take it from a machine that knows.
    await server.kill();
    await meddle(server.paths.database, 'DELETE FROM audit_witnesses');
    await server.start();
    expect(await contradictions()).toBe(1);
    await pairwire(['restore', 'confirm', '--dir', server.dir]);
    expect(await contradictions()).toBe(0);
    await server.kill();
    elsewhere();
    await server.start();
    expect(await contradictions()).toBe(0);
    const before = (await list()).length;
    await watcher.come();
    // She has the head from before, and hears when it was settled: neither raises an alarm again.
    expect(watcher.heads.alarm).toBeUndefined();
    expect(watcher.heads.head?.confirmed).toBeGreaterThan(0);
    const fresh = (await list()).slice(before);
    expect(fresh.filter(({ action }) => action === 'audit_contradicted')).toEqual([]);
    expect(await contradictions()).toBe(0);
    expect(await verify()).toMatchObject({ code: 0 });
  }, 180_000);

  it('takes no alarm from rows that somebody has made of heads that fit', async () => {
    const genuine = watcher.heads.evidence;
    if (genuine === undefined) throw new Error('there is no head');
    const [body, signature] = [genuine.b, genuine.s].map(
      (bytes) => `X'${Buffer.from(bytes).toString('hex')}'`,
    );
    const names = ['bob', 'x'.repeat(200), '-', ''];
    for (const name of names) {
      await meddle(
        server.paths.database,
        `INSERT INTO audit_witnesses VALUES ('s1', '${name}', ${body}, ${signature}, 1)`,
      );
    }
    for (let time = 0; time < 2; time += 1) {
      await again();
      const answer = await server.admin().request({ t: 'kms.status' });
      expect(answer.auditContradictions).toBe(0);
    }
    expect(await verify()).toMatchObject({ code: 0 });
  });

  it('is back at the right copy: what members have seen fits again', async () => {
    await backUp(server.paths.database);
    await meddle(server.paths.database, `DELETE FROM audit WHERE seq > ${seq() - 2}`);
    rmSync(server.paths.auditHead);
    await resume();
    await server.kill();
    expect(await verify()).toMatchObject({ code: 1 });
    await putBack(server.paths.database);
    rmSync(server.paths.auditHead, { force: true });
    expect(await verify()).toMatchObject({ code: 0 });
  });

  it('has another signing key: members say so', async () => {
    rmSync(server.paths.auditSignKey);
    await resume();
    expect(watcher.heads.alarm?.kind).toBe('key');
    // It was made anew, of the audit key, as in a folder from before there was one.
    expect(statSync(server.paths.auditSignKey).mode & 0o777).toBe(0o600);
    expect(await verify()).toMatchObject({ code: 0 });
  });
});

it('kill -9 at any moment raises no alarm', async () => {
  const server = await ServerProcess.make();
  try {
    await server.start();
    const alice = new TestMember(server, 'alice');
    await alice.enrol(server.token({ id: 'alice' }));
    await alice.register();
    const watcher = new Watcher(alice, S1);
    const token = server.token({ id: 'n-*', uses: 1_000 });
    for (let round = 0; round < 4; round += 1) {
      let running = true;
      const load = (async () => {
        for (let at = 0; running; at += 1) {
          await new TestMember(server, `n-${round}-${at}`).enrol(token);
        }
      })().catch(() => undefined);
      await watcher.come();
      await sleep(100 + Math.random() * 300);
      running = false;
      await server.kill();
      server.stopClients();
      await load;
      await server.start();
      alice.connect();
    }
    await watcher.come();
    expect(watcher.heads.head?.seq).toBeGreaterThan(10);
    expect(watcher.heads.alarm).toBeUndefined();
    expect(existsSync(server.paths.auditWitnesses)).toBe(false);
    const checked = await pairwire(['audit', 'verify', '--dir', server.dir]);
    expect(checked).toMatchObject({ code: 0 });
  } finally {
    await server.remove();
  }
}, 180_000);

describe('a key server that runs', () => {
  let subnet: TestSubnet;
  const opened: TestSubnet[] = [];
  beforeEach(async () => {
    subnet = await TestSubnet.start({ tuning: { auditHeadMs: 50 } });
    opened.push(subnet);
  });
  afterEach(async () => {
    for (const one of opened.splice(0).reverse()) await one.close();
  });

  const check = () => {
    const { all } = new AuditWitnesses(subnet.paths.auditWitnesses);
    const head = readAuditHead(subnet.paths.auditHead);
    return verifyAudit(subnet.store, S1, subnet.auditKey, head, all);
  };
  const about = async (action: string) =>
    (await subnet.audit()).filter((one) => one.action === action);

  it('pushes each new head, and answers with it', async () => {
    const alice = await subnet.member('alice');
    const watcher = new Watcher(alice, S1);
    await watcher.come();
    const before = watcher.heads.head?.seq ?? 0;
    await subnet.enrolled('bob');
    await until(() => (watcher.heads.head?.seq ?? 0) > before, 'the push');
    expect(watcher.heads.alarm).toBeUndefined();
    expect(await subnet.server.metrics.registry.metrics()).toMatch(
      /pairwire_keyserver_audit_head \d/,
    );
  });

  it('signs a head every 1,000 entries, too', async () => {
    const log = new AuditLog({
      ...{ store: subnet.store, server: parseId('s9'), key: subnet.auditKey, now: Date.now },
      ...{ log: createLogger('test', { level: 'silent' }), headEveryMs: 3_600_000 },
      signKey: auditSignKey(subnet.paths),
    });
    const append = (count: number) =>
      subnet.store.write(async (tx) => {
        for (let at = 0; at < count; at += 1) {
          await log.append(tx, { actor: 'alice', action: 'test', outcome: 'done' });
        }
      });
    await append(1);
    await log.noteHead();
    await append(900);
    await sleep(200);
    expect(log.headSeq).toBe(1);
    await append(200);
    await append(1);
    await until(() => log.headSeq > 900, 'the head');
    await log.close();
    expect(log.headSeq).toBe(1_102);
  });

  it('notices by itself that its newest entries are gone, and tells a shorter log', async () => {
    const alice = await subnet.member('alice');
    const watcher = new Watcher(alice, S1);
    await watcher.come();
    const had = watcher.heads.head?.seq ?? 0;
    await meddle(subnet.paths.database, `DELETE FROM audit WHERE seq > ${had - 2}`);
    await until(async () => (await about('audit_contradicted')).length > 0, 'the entry');
    expect(await about('audit_contradicted')).toMatchObject([{ actor: '-', count: 1 }]);
    expect((await check()).broken).toBeDefined();
    expect(await subnet.server.metrics.registry.metrics()).toContain(
      'pairwire_keyserver_audit_contradictions 1',
    );
  });

  it('serves members that lie, believes nothing of it, and has it in the log with their names', async () => {
    const mallory = await subnet.member('mallory');
    const watcher = new Watcher(mallory, S1);
    await watcher.come();
    const other = await TestSubnet.start();
    opened.push(other);
    const real = watcher.heads.evidence as Signed;
    const own = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
    const lie = {
      subnet: SUBNET,
      server: S1,
      seq: 9_999,
      mac: Buffer.alloc(32, 7),
      time: Date.now(),
    };
    const lies: Signed[] = [
      signAuditHead(lie, own),
      { ...real, s: Buffer.alloc(64) },
      { b: Buffer.from('garbage'), s: Buffer.alloc(64) },
      // Of another server of that name, and of one with another name.
      signAuditHead(lie, auditSignKey(other.paths)),
      signAuditHead({ ...lie, server: parseId('s2') }, auditSignKey(subnet.paths)),
      signAuditHead({ ...lie, subnet: parseId('west') }, auditSignKey(subnet.paths)),
    ];
    const boot = mallory.bootRecord();
    for (let round = 0; round < 20; round += 1) {
      for (const one of lies) await registerWith(mallory, one, boot);
    }
    await until(async () => (await about('audit_head')).length > 0, 'the entry');
    const entries = await about('audit_head');
    expect(entries.length).toBeLessThan(4);
    expect(new Set(entries.map(({ actor }) => actor))).toEqual(new Set(['mallory']));
    expect(await about('audit_contradicted')).toEqual([]);
    expect(existsSync(subnet.paths.auditWitnesses)).toBe(false);
    expect((await check()).broken).toBeUndefined();
  });

  it('blames nobody but the member that shows a head signed with the stolen key, once', async () => {
    const mallory = await subnet.member('mallory');
    const alice = await subnet.member('alice');
    const watcher = new Watcher(alice, S1);
    await watcher.come();
    const key = auditSignKey(subnet.paths);
    const lie = { subnet: SUBNET, server: S1, mac: Buffer.alloc(32, 7), time: Date.now() };
    const boot = mallory.bootRecord();
    for (let at = 0; at < 30; at += 1) {
      await registerWith(mallory, signAuditHead({ ...lie, seq: 1_000 + at }, key), boot);
    }
    await until(async () => (await about('audit_contradicted')).length > 0, 'the entry');
    await watcher.come();
    expect(await about('audit_contradicted')).toMatchObject([{ actor: 'mallory', count: 1 }]);
    const { all } = new AuditWitnesses(subnet.paths.auditWitnesses);
    expect(all.map(({ witness }) => witness)).toEqual(['mallory']);
    expect((await check()).broken?.witness).toBe('mallory');
    expect(watcher.heads.alarm).toBeUndefined();
  });

  it('keeps one head of each witness, and so many witnesses', () => {
    const witnesses = new AuditWitnesses(undefined);
    const mac = Buffer.alloc(32).toString('base64url');
    for (let at = 0; at < 2 * MAX_WITNESSES; at += 1) {
      const added = at < MAX_WITNESSES ? 'new' : undefined;
      expect(witnesses.add({ witness: `m${at}`, seq: 5, mac, at })).toBe(added);
    }
    expect(witnesses.add({ witness: 'm1', seq: 4, mac, at: 1 })).toBeUndefined();
    expect(witnesses.add({ witness: 'm1', seq: 6, mac, at: 1 })).toBe('higher');
    expect(witnesses.all).toHaveLength(MAX_WITNESSES);
    expect(witnesses.all.find(({ witness }) => witness === 'm1')?.seq).toBe(6);
  });

  it('has a log and a key of its own beside another one of the subnet', async () => {
    const token = serverToken(subnet, 's2');
    const two = await TestSubnet.start({
      cascade: { token, operatorKey: subnet.paths.operatorKey },
      tuning: { auditHeadMs: 50 },
    });
    opened.push(two);
    const alice = await subnet.member('alice');
    const bob = await two.member('bob');
    const [first, second] = [new Watcher(alice, S1), new Watcher(bob, parseId('s2'))];
    await Promise.all([first.come(), second.come()]);
    const foreign = first.heads.evidence as Signed;
    expect(() => second.heads.take(foreign, 0)).toThrow('another server');
    await registerWith(bob, foreign);
    await until(
      async () => (await two.audit()).some(({ action }) => action === 'audit_head'),
      'the refusal',
    );
    await first.come();
    await second.come();
    expect([first.heads.alarm, second.heads.alarm]).toEqual([undefined, undefined]);
    expect(first.heads.head?.sign).not.toEqual(second.heads.head?.sign);
    expect((await check()).broken).toBeUndefined();
    const chain = await verifyAudit(two.store, two.serverId, two.auditKey);
    expect(chain.broken).toBeUndefined();
  });
});
