/** A key server that lies without end costs a gateway few lines of its log, and what it did is counted all the same. */
import { pino } from 'pino';
import { beforeEach, describe, expect, it } from 'vitest';
import { MAX_DENIED_LINES, MAX_REFUSED_LINES, Refusals } from '../../../gateway/refusals.js';
import { PairwireError } from '../../../src/runtime/errors.js';

interface Line {
  readonly level: number;
  readonly msg: string;
  readonly peer?: string;
  readonly repeats?: number;
}

const MINUTE = 60_000;
const INFO = 30;
const ERROR = 50;

describe('refusals of a gateway', () => {
  let lines: Line[];
  let now: number;
  let refusals: Refusals;
  beforeEach(() => {
    lines = [];
    now = 0;
    const log = pino({}, { write: (text: string) => void lines.push(JSON.parse(text) as Line) });
    refusals = new Refusals(log, () => now);
  });

  const forged = new PairwireError('RECORD_SIGNATURE', 'a signature does not hold');

  it('a member that the policy denies has one line in a minute, and one for its repeats', () => {
    for (let at = 0; at < 10_000; at += 1) refusals.denied('bob');
    expect(lines).toMatchObject([{ level: INFO, peer: 'bob' }]);
    now += MINUTE;
    refusals.denied('bob');
    expect(lines.map(({ peer, repeats }) => [peer, repeats])).toEqual([
      ['bob', undefined],
      ['bob', 9_999],
      ['bob', undefined],
    ]);
    expect(refusals.counts).toEqual({ POLICY_DENIED: 10_001 });
  });

  it('however many are denied, there are few lines a minute', () => {
    const minutes = 5;
    for (let minute = 0; minute < minutes; minute += 1) {
      for (let at = 0; at < 20_000; at += 1) refusals.denied(`m-${minute}-${at}`);
      now += MINUTE;
    }
    refusals.close();
    // Each kind its own and its repeats; those that have none of their own count as one more.
    expect(lines.length).toBeLessThanOrEqual(minutes * 2 * (MAX_DENIED_LINES + 1));
    const told = lines.reduce((sum, { repeats = 1 }) => sum + repeats, 0);
    expect(told).toBe(minutes * 20_000);
    expect(refusals.counts).toEqual({ POLICY_DENIED: minutes * 20_000 });
  });

  it('a flood of them hides no member that is not believed, nor the other way round', () => {
    for (let at = 0; at < 1_000; at += 1) {
      refusals.denied(`d-${at}`);
      refusals.member(`m-${at}`, forged);
      refusals.net(`n-${at}`, forged);
      refusals.server('settings', forged);
    }
    const errors = lines.filter(({ level }) => level === ERROR);
    expect(errors.length).toBeGreaterThan(MAX_REFUSED_LINES - 1);
    expect(errors.length).toBeLessThanOrEqual(MAX_REFUSED_LINES + 1);
    expect(lines.length - errors.length).toBe(MAX_DENIED_LINES + 1);
    expect(errors.some(({ msg }) => msg.includes('settings'))).toBe(true);
    expect(refusals.counts).toEqual({ POLICY_DENIED: 1_000, RECORD_SIGNATURE: 3_000 });
  });
});
