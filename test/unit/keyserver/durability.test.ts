/**
 * What was answered survives kill -9: a real server process under load, killed again and again at random moments, and its
 * KMS now and then. scripts/kills does it a thousand times.
 *
 * PAIRWIRE_KILLS says how often (default 25), PAIRWIRE_KILLS_MINUTES for how long at most, PAIRWIRE_KILLS_SEED with which
 * seed, PAIRWIRE_KILLS_OUT where the report goes.
 */
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { KillRun } from './support/kill-run.js';

const KILLS = Number(process.env.PAIRWIRE_KILLS ?? 25);
const SEED = Number(process.env.PAIRWIRE_KILLS_SEED ?? Math.floor(Math.random() * 2 ** 32));
const MINUTES = Number(process.env.PAIRWIRE_KILLS_MINUTES ?? Number.POSITIVE_INFINITY);
const { PAIRWIRE_KILLS_OUT: OUT } = process.env;
/** A busy machine takes some seconds for each. */
const KILL_MS = 30_000;

let run: KillRun;

beforeAll(async () => {
  run = await KillRun.make(SEED);
});
afterAll(() => run.remove());

it(
  `keeps every acknowledged fact over ${KILLS} kills`,
  async () => {
    const report = await run.run(KILLS, {
      minutes: MINUTES,
      tell: (line) => console.log(line),
    });
    console.log(JSON.stringify(report));
    if (OUT !== undefined) writeFileSync(OUT, `${JSON.stringify(report, null, 1)}\n`);
    expect(report.faults).toEqual([]);
    if (MINUTES === Number.POSITIVE_INFINITY) expect(report.kills).toBe(KILLS);
    // Else all of this says nothing.
    for (const what of ['members', 'pairs', 'checked', 'auditEntries'] as const) {
      expect(report[what], what).toBeGreaterThan(report.kills);
    }
    expect(report.seals).toBeGreaterThan(report.pairs / 2);
  },
  KILLS * KILL_MS + 120_000,
);
