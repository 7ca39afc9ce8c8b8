/** The operator's commands with a key server on PostgreSQL: what they make, say and refuse. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PostgresDriver } from '../../keyserver/storage/postgres.js';
import { postgresTarget } from '../../keyserver/storage/postgres-target.js';
import { pairwire } from '../unit/keyserver/support/commands.js';
import { PostgresServer } from '../unit/keyserver/support/postgres.js';

let server: PostgresServer;
let root: string;

beforeAll(async () => {
  server = await PostgresServer.start();
  root = mkdtempSync(join(tmpdir(), 'pairwire-pg-commands-'));
});
afterAll(async () => {
  await server.remove();
  rmSync(root, { recursive: true, force: true });
});

function init(dir: string, database: string) {
  // Nobody listens at this port: commands that need no server go without.
  const where = ['--dir', dir, '--listen', '127.0.0.1:9'];
  return pairwire(['init', '--subnet', 'east', ...where, '--database', database]);
}

describe('init --database postgres://', () => {
  it('refuses a URL with a password, one that can be overheard in part, and one that leads nowhere; leaves nothing', async () => {
    const dir = join(root, 'refused');
    for (const [database, why] of [
      ['postgres://u:opensesame@db/east', 'databasePasswordFile'],
      ['postgres://u@db/east?sslmode=require', 'verify-full'],
      ['postgres://u@db/east?sslmode=verify-full&target=1', 'target'],
      ['postgres://u@db', 'database'],
      [`postgres:///east?host=${join(root, 'none')}`, 'cannot be reached'],
    ] as const) {
      const { code, err } = await init(dir, database);
      expect(code).not.toBe(0);
      expect(err).toContain(why);
      expect(err).not.toContain('opensesame');
      expect(existsSync(join(dir, 'server.key'))).toBe(false);
    }
  });

  it('makes a subnet there; settings and audit work on it while nobody serves, and not beside somebody', async () => {
    const dir = join(root, 'east');
    const url = await server.database();
    expect(await init(dir, url)).toMatchObject({ code: 0, err: '' });
    expect(readFileSync(join(dir, 'keyserver.yaml'), 'utf8')).toContain(url);
    expect(existsSync(join(dir, 'keyserver.db'))).toBe(false);
    const again = await init(join(root, 'second'), url);
    expect(again.code).toBe(1);
    expect(again.err).toContain('there is a subnet in this database already');

    const at = ['--dir', dir, '--json'];
    const set = await pairwire(['settings', ...at, '--hold', '7']);
    expect(JSON.parse(set.out)).toMatchObject({ version: 2, hold: 7 });
    const audit = await pairwire(['audit', ...at, '--verify']);
    expect(JSON.parse(audit.out)).toMatchObject({ entries: 2, intact: true });

    const holder = await PostgresDriver.open(postgresTarget(url, undefined));
    try {
      expect(await holder.waitForLease(AbortSignal.timeout(60_000))).toBe(true);
      const beside = await pairwire(['settings', ...at, '--hold', '9']);
      expect(beside.code).toBe(1);
      expect(beside.err).toContain('another process writes to this database now');
    } finally {
      await holder.close();
    }
    const shown = await pairwire(['settings', ...at]);
    expect(JSON.parse(shown.out)).toMatchObject({ version: 2, hold: 7 });
  });
});
