/** The exported audit log: every entry, of any size, and a check that finds every change to it. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AuditLog } from '../../../keyserver/audit.js';
import { linesOf, MAX_EXPORT_LINE, verifyExport } from '../../../keyserver/audit-export.js';
import { createLogger } from '../../../src/runtime/log.js';
import { keyServerProgram } from '../../programs/key-server.js';
import { pairwire } from './support/commands.js';
import { meddle } from './support/store.js';
import { TestSubnet } from './support/subnet.js';

const ENTRIES = 2_500;

async function* chunks(text: string, size = 7_000): AsyncIterable<string> {
  for (let at = 0; at < text.length; at += size) yield text.slice(at, at + size);
}

describe('audit export', () => {
  let subnet: TestSubnet;
  let folder: string;
  let file: string;
  let text: string;
  let lines: string[];

  const run = (...args: string[]) => pairwire(['audit', ...args, '--dir', subnet.dir]);
  const check = (content: string) => verifyExport(linesOf(chunks(content)), subnet.auditKey, []);

  beforeAll(async () => {
    subnet = await TestSubnet.start();
    folder = mkdtempSync(join(tmpdir(), 'pw-export-'));
    file = join(folder, 'audit.jsonl');
    let at = 4_000_000_000_000;
    const log = new AuditLog({
      ...{ store: subnet.store, server: subnet.serverId, key: subnet.auditKey },
      ...{ now: () => at, log: createLogger('test', { level: 'silent' }) },
    });
    await subnet.store.write(async (tx) => {
      for (let count = 0; count < ENTRIES; count += 1) {
        at += 1_000;
        const detail = { count, text: 'ä "\n\u2028', 10: true, list: ['a', 'b'] };
        await log.append(tx, { actor: 'alice', action: 'test', outcome: 'done', detail });
      }
    });
    await log.close();
    await subnet.stopServer();
    text = await exported();
    lines = text.trimEnd().split('\n');
    writeFileSync(file, text);
  });
  afterAll(async () => {
    await subnet.startServer();
    await subnet.close();
    rmSync(folder, { recursive: true, force: true });
  });

  function exported(...args: string[]): Promise<string> {
    return new Promise((resolve, reject) => {
      const argv = keyServerProgram('audit', 'export', '--dir', subnet.dir, ...args);
      execFile(process.execPath, argv, { maxBuffer: 2 ** 26 }, (error, out) =>
        error === null ? resolve(out) : reject(error),
      );
    });
  }

  it('has every entry, one object a line, and the file holds', async () => {
    expect(lines.length).toBeGreaterThan(ENTRIES);
    expect(JSON.parse(lines[5] ?? '')).toEqual({
      ...{ server: 's1', seq: 6, at: expect.any(Number), actor: 'alice', action: 'test' },
      ...{ outcome: 'done', count: 1, detail: expect.objectContaining({ 10: true }) },
      previous: JSON.parse(lines[4] ?? '').mac,
      mac: expect.stringMatching(/^[\w-]{43}$/),
    });
    const checked = await run('verify', '--file', file, '--json');
    expect(JSON.parse(checked.out)).toMatchObject({
      ...{ entries: lines.length, first: 1, last: lines.length, intact: true },
    });
  });

  it('begins where it is told to, and a part of a log can be checked', async () => {
    const after = await exported('--after', '2000');
    expect(after).toBe(`${lines.slice(2_000).join('\n')}\n`);
    expect(await check(after)).toMatchObject({ first: 2_001, broken: undefined });
    const since = await exported('--since', new Date(4_000_000_000_000 + 2_400_000).toISOString());
    const first = lines.findIndex((line) => JSON.parse(line).at >= 4_000_002_400_000);
    expect(first).toBeGreaterThan(2_000);
    expect(since).toBe(`${lines.slice(first).join('\n')}\n`);
    for (const wrong of [
      ['--after', '-1'],
      ['--since', 'yesterday'],
    ]) {
      expect(await run('export', ...wrong)).toMatchObject({ code: 2 });
    }
    expect(await run('export', '--after', '99999')).toMatchObject({ code: 1 });
  });

  it('shows every change of a line, and lines that are missing or have changed places', async () => {
    const some = lines.slice(0, 40);
    const change = (at: number, change: (entry: Record<string, unknown>) => unknown) =>
      some.map((line, index) => (index === at ? JSON.stringify(change(JSON.parse(line))) : line));
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 38 }),
        fc.constantFrom('actor', 'action', 'at', 'count', 'detail', 'mac', 'outcome', 'server'),
        async (at, field) => {
          const changed = change(at, (entry) => ({
            ...entry,
            [field]: {
              ...{ actor: 'bob', action: 'other', at: 1, count: 9, detail: { other: 1 } },
              ...{ mac: 'A'.repeat(43), server: 's2' },
              outcome: entry.outcome === 'done' ? 'refused' : 'done',
            }[field],
          }));
          expect((await check(changed.join('\n'))).broken?.seq).toBe(at + 1);
        },
      ),
      { numRuns: 60 },
    );
    expect((await check(some.toSpliced(7, 1).join('\n'))).broken?.seq).toBe(8);
    const [a = '', b = ''] = some.slice(7, 9);
    expect((await check(some.toSpliced(7, 2, b, a).join('\n'))).broken?.seq).toBe(8);
    // The first line of a part is bound to the one before, too.
    const cut = change(7, (entry) => ({ ...entry, previous: 'A'.repeat(43) })).slice(7);
    expect((await check(cut.join('\n'))).broken?.seq).toBe(8);
    expect((await check(some.join('\n'))).broken).toBeUndefined();
  });

  it('refuses what is no log, and lines without end', async () => {
    for (const bad of ['', 'x', '{}', '[1]', `${lines[0]}\n{"seq":2}`]) {
      await expect(check(bad)).rejects.toMatchObject({ code: 'FILE_UNREADABLE' });
    }
    await expect(check('x'.repeat(MAX_EXPORT_LINE + 10_000))).rejects.toThrow('longer');
    const none = await run('verify', '--file', join(folder, 'none'));
    expect(none).toMatchObject({ code: 1 });
    writeFileSync(join(folder, 'bad'), text.replace('"alice"', '"bob"'));
    const bad = await run('verify', '--file', join(folder, 'bad'));
    expect(bad.code).toBe(1);
    expect(bad.err).toContain('was changed');
  });

  it('ends when its reader has seen enough', async () => {
    const argv = keyServerProgram('audit', 'export', '--dir', subnet.dir);
    const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
    const [first] = (await once(child.stdout, 'data')) as [Buffer];
    expect(first.toString()).toContain('"seq":1,');
    child.stdout.destroy();
    expect((await once(child, 'exit'))[0]).toBe(0);
  });

  it('keeps a detail that somebody has rewritten as it is, so that the file fails as the database does', async () => {
    await meddle(subnet.paths.database, `UPDATE audit SET detail = '{"a": 1}' WHERE seq = 9`);
    const changed = await exported();
    expect(JSON.parse(changed.split('\n')[8] ?? '').detail).toBe('{"a": 1}');
    expect((await check(changed)).broken?.seq).toBe(9);
    expect((await run('verify')).err).toContain('entry 9');
    expect(readFileSync(file, 'utf8')).toBe(text);
  });
});
