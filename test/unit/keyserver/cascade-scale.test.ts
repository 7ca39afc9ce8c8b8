/** What is asked of the database for each word of another key server is found by an index, however many pairs there are. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { homeState } from '../../../keyserver/cascade/home-state.js';
import type { SqlValue } from '../../../keyserver/storage/sql.js';
import { openStore } from '../../../keyserver/storage/sql-store.js';
import { parseId } from '../../../src/protocol/ids.js';
import { ON_POSTGRES, ringOf } from './support/store.js';
import { TestSubnet } from './support/subnet.js';

/** PAIRWIRE_SCALE=100: 100,000 members and 1,000,000 pairs. */
const SCALE = Number(process.env.PAIRWIRE_SCALE ?? 1);
const MEMBERS = 1_000 * SCALE;
const PAIRS = 10_000 * SCALE;

describe.skipIf(ON_POSTGRES)('many members and pairs', () => {
  let one: TestSubnet;

  beforeAll(async () => {
    one = await TestSubnet.start();
    await one.enrolled('m0');
    const ring = await ringOf(one.driver, one.paths);
    await one.driver.transaction(async (connection) => {
      const count = (n: number): string =>
        `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ${n})`;
      // One in a hundred is at home at s2.
      const copied =
        'role, state, membership, membership_signature, identity_digest, token_id, ips, online, endpoints, group_asked, enrolled_at';
      await connection.run(
        `${count(MEMBERS)} INSERT INTO members (id, serial, channel, changed, home, ${copied})
         SELECT 'm' || n, 100 + n, randomblob(32), 100 + n, CASE WHEN n % 100 = 0 THEN 's2' ELSE '' END, ${copied}
         FROM c, members WHERE id = 'm0'`,
        [],
      );
      await connection.run(
        `${count(PAIRS)} INSERT INTO pair_keys (a, b, key, pw_id, reason, created_at, serial, asked_a, asked_b, changed, due_at, far)
         SELECT 'a' || n, 'm' || (1 + n % ${MEMBERS}), randomblob(32), 1, 'first_request', 0, 200000 + n, 0, 0, 200000 + n, 0,
           CASE WHEN (1 + n % ${MEMBERS}) % 100 = 0 THEN 's2' ELSE '' END FROM c`,
        [],
      );
      // Those that are read are sealed, as every key is.
      for (const row of await connection.all("SELECT a, b FROM pair_keys WHERE far = 's2'", [])) {
        const [a, b] = [String(row.a), String(row.b)];
        const sealed = ring.seal('pair_keys', 'key', [a, b], 1, randomBytes(32));
        await connection.run('UPDATE pair_keys SET key = ? WHERE a = ? AND b = ?', [sealed, a, b]);
      }
      await connection.run(
        `UPDATE counters SET value = ${300_000 + PAIRS + MEMBERS} WHERE name = 'change'`,
        [],
      );
    });
  }, 300_000);
  afterAll(() => one.close());

  it('are told from their own change numbers on, without a look at other pairs', async () => {
    const asked: { readonly sql: string; readonly params: readonly SqlValue[] }[] = [];
    const { reader } = one.driver;
    const store = await openStore(
      {
        ...{ counts: one.driver.counts, mayCache: () => false, close: async () => {} },
        erase: () => Promise.resolve(true),
        prove: () => Promise.resolve(),
        transaction: (work) => one.driver.transaction(work),
        reader: {
          get: (sql, params) => reader.get(sql, params),
          run: (sql, params) => reader.run(sql, params),
          all: (sql, params) => {
            asked.push({ sql, params });
            return reader.all(sql, params);
          },
        },
      },
      { ring: await ringOf(one.driver, one.paths) },
    );
    const upTo = (await store.counters()).change;
    const before = performance.now();
    const pairs = await store.pairsWithChanged({ after: 0, upTo, limit: 500 }, parseId('s2'));
    const took = performance.now() - before;
    expect(pairs.length).toBe(Math.min(500, PAIRS / 100));
    const query = asked.find(({ sql }) => sql.includes('pair_keys'));
    const plan = await reader.all(`EXPLAIN QUERY PLAN ${query?.sql ?? ''}`, query?.params ?? []);
    const steps = plan.map((row) => String(row.detail));
    expect(steps).toEqual([expect.stringContaining('USING INDEX pair_keys_far')]);
    const late = performance.now();
    const none = { after: upTo - 1, upTo, limit: 500 };
    expect(await store.pairsWithChanged(none, parseId('s2'))).toEqual([]);
    const idle = performance.now() - late;
    if (SCALE > 1) console.log(`first ${took.toFixed(1)} ms, nothing new ${idle.toFixed(1)} ms`);
  });

  it('of a server cost the same for each word', async () => {
    const services = {
      ...{ store: one.store, subnet: one.subnet, server: one.serverId },
    } as unknown as Parameters<typeof homeState>[0];
    const { change } = await one.store.counters();
    const before = performance.now();
    for (let at = 0; at < 50; at += 1) {
      await homeState(services, parseId('s2'), change - 1, true);
    }
    const each = (performance.now() - before) / 50;
    expect(each).toBeLessThan(20);
  });
});
