/** What a gateway makes of the heads of its key server's audit log: which are an alarm, and which only came late (M12). */
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AuditHeads, type AuditHeadsOptions } from '../../../../gateway/control/audit-heads.js';
import {
  type AuditHead,
  openAuditHead,
  signAuditHead,
} from '../../../../src/protocol/audit-head.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { generateRawKeyPair, importPrivate } from '../../../../src/protocol/public-keys.js';
import type { Signed } from '../../../../src/protocol/signed.js';

const SUBNET = parseId('east');
const S1 = parseId('s1');
const newKey = () => importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
const key = newKey();

/** A head at second `seq`, whose MAC is `fill`. */
function head(seq: number, more: Partial<AuditHead> = {}, by = key, fill = seq): Signed {
  const mac = Buffer.alloc(32, fill);
  return signAuditHead({ subnet: SUBNET, server: S1, seq, mac, time: seq * 1_000, ...more }, by);
}

describe('heads of an audit log', () => {
  let folder: string;
  let path: string;
  let alarms: string[];
  let errors: unknown[];
  let confirmed: number;
  let heads: AuditHeads;

  const open = (more: Partial<AuditHeadsOptions> = {}): AuditHeads =>
    new AuditHeads({
      ...{ path, subnet: SUBNET, server: S1, writeEveryMs: 60_000 },
      onAlarm: ({ kind }) => alarms.push(kind),
      onConfirmed: () => {
        confirmed += 1;
      },
      onFileError: (thrown) => errors.push(thrown),
      ...more,
    });

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'pw-heads-'));
    path = join(folder, 'audit-heads.json');
    alarms = [];
    errors = [];
    confirmed = 0;
    heads = open();
    heads.take(head(10), 0);
  });
  afterEach(() => {
    heads.flush();
    rmSync(folder, { recursive: true, force: true });
  });

  it('rise', () => {
    for (const seq of [10, 11, 500]) heads.take(head(seq), 10);
    expect(heads.head?.seq).toBe(500);
    expect(alarms).toEqual([]);
  });

  it('an answer with a lower number than was known before the question is an alarm', () => {
    heads.take(head(9), 10);
    expect(alarms).toEqual(['cut']);
    expect(heads.alarm).toMatchObject({ ours: { head: { seq: 10 } }, told: { head: { seq: 9 } } });
    expect(heads.head?.seq).toBe(9);
  });

  it('a late answer is none, and a push that was overtaken is only a reason to ask', () => {
    expect(heads.take(head(20), undefined)).toBe(true);
    expect(heads.take(head(15), 10)).toBe(true);
    expect(heads.take(head(15), undefined)).toBe(false);
    expect(heads.head?.seq).toBe(20);
    expect(alarms).toEqual([]);
  });

  it('another entry for a number is an alarm, whichever way it comes; the same one signed later is none', () => {
    heads.take(head(10, { time: 99_000 }), undefined);
    expect(alarms).toEqual([]);
    heads.take(head(10, {}, key, 77), undefined);
    expect(alarms).toEqual(['changed']);
  });

  it('another key is an alarm, and what it signs is not taken', () => {
    heads.take(head(11, {}, newKey()), 10);
    heads.take(head(12, { confirmed: 1e9 }, newKey()), 10);
    expect(alarms).toEqual(['key']);
    expect(heads.head?.seq).toBe(10);
  });

  it('an alarm is told once, stays when the log grows, and its head is what is shown to the server', () => {
    heads.take(head(5), 10);
    heads.take(head(4), 5);
    for (const seq of [6, 11, 100]) heads.take(head(seq), 4);
    expect(alarms).toEqual(['cut']);
    expect(heads.head?.seq).toBe(100);
    const { evidence } = heads;
    expect(evidence && openAuditHead(SUBNET, evidence).seq).toBe(10);
  });

  it('the operator explains a log that was put back, before it shows or after; not what came later', () => {
    heads.take(head(5), 10);
    heads.take(head(6, { confirmed: 10_000 }), 5);
    expect([heads.alarm, confirmed]).toEqual([undefined, 1]);
    heads.take(head(20, { confirmed: 10_000 }), 6);
    heads.take(head(7, { confirmed: 20_000 }), 20);
    expect(alarms).toEqual(['cut']);
    heads.take(head(30, { confirmed: 20_000 }), 7);
    heads.take(head(25, { confirmed: 20_000 }), 30);
    expect(alarms).toEqual(['cut', 'cut']);
  });

  it('heads of others, and what nobody signed, are refused', () => {
    const good = head(11);
    for (const bad of [
      head(11, { server: parseId('s2') }),
      head(11, { subnet: parseId('west') }),
      { ...good, s: Buffer.alloc(64) },
      { ...good, b: head(12).b },
      { b: Buffer.from('x'), s: Buffer.alloc(64) },
    ]) {
      expect(() => heads.take(bad, 10)).toThrow();
    }
    expect([heads.head?.seq, alarms]).toEqual([10, []]);
  });

  it('are on disk, 0600, with the alarm, for the next start', () => {
    heads.take(head(5), 10);
    heads.flush();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const next = open();
    expect(next.head?.seq).toBe(5);
    expect(next.alarm).toMatchObject({ kind: 'cut', ours: { head: { seq: 10 } } });
    next.take(head(3), 5);
    expect(alarms).toEqual(['cut']);
  });

  it('are written at most so often', async () => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    const first = readFileSync(path, 'utf8');
    for (let seq = 11; seq < 40; seq += 1) heads.take(head(seq), 10);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(readFileSync(path, 'utf8')).toBe(first);
    heads.flush();
    expect(open().head?.seq).toBe(39);
  });

  it('a damaged or unwritable file stops nothing', () => {
    writeFileSync(path, '{"version":1,"servers":[["s1",{"head":{"b":"AA","s":"AA"}}]]}', {
      mode: 0o600,
    });
    const next = open();
    expect(errors).toMatchObject([{ code: 'FILE_UNREADABLE' }]);
    next.take(head(3), 0);
    expect(next.head?.seq).toBe(3);
    const nowhere = open({ path: join(folder, 'none', 'file') });
    nowhere.take(head(3), 0);
    nowhere.flush();
    expect(errors).toHaveLength(2);
    expect(existsSync(join(folder, 'none'))).toBe(false);
  });
});
