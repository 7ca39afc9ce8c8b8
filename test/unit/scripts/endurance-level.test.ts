/** The slope test of the endurance run: what it must call level, and what it must not. */
import { describe, expect, it } from 'vitest';
import { levelOf, type Point } from '../../../scripts/endurance/level.js';

const MiB = 1 << 20;
/** 10 minutes, a sample every 5 s. */
const run = (value: (seconds: number) => number): Point[] =>
  Array.from({ length: 120 }, (_, at) => ({ at: at * 5, value: value(at * 5) }));
/** Noise without chance: between 0 and 1. */
const noise = (seconds: number) => Math.abs(Math.sin(seconds * 12.9898) * 43_758.5453) % 1;

describe('level', () => {
  it.each<[string, (seconds: number) => number]>([
    ['a steady value', () => 50 * MiB],
    ['noise', (s) => 50 * MiB + noise(s) * 20 * MiB],
    ['a warm-up that then stays', (s) => 50 * MiB + Math.min(s, 180) * 0.5 * MiB],
    ['a warm-up that settles', (s) => 150 * MiB - 100 * MiB * Math.exp(-s / 60)],
    ['a garbage collector', (s) => 50 * MiB + (s % 90) * 0.4 * MiB],
    ['one peak near the end', (s) => (s === 550 ? 400 : 50) * MiB],
    ['memory that is given back', (s) => (100 - s / 20) * MiB],
  ])('%s is level', (_what, value) => {
    expect(levelOf(run(value), 4 * MiB)).toMatchObject({ level: true, enough: true });
  });

  it.each<[string, (seconds: number) => number]>([
    ['a leak', (s) => 50 * MiB + s * 0.03 * MiB],
    ['a leak under noise', (s) => 50 * MiB + s * 0.03 * MiB + noise(s) * 10 * MiB],
    ['a leak under a garbage collector', (s) => 50 * MiB + s * 0.03 * MiB + (s % 60) * 0.3 * MiB],
    ['a leak after a warm-up', (s) => 150 * MiB - 100 * MiB * Math.exp(-s / 30) + s * 0.03 * MiB],
  ])('%s is not', (_what, value) => {
    const level = levelOf(run(value), 4 * MiB);
    expect(level.level).toBe(false);
    // 0.03 MiB a second is 108 MiB an hour.
    expect(level.perHour / MiB).toBeGreaterThan(60);
    expect(level.perHour / MiB).toBeLessThan(160);
  });

  it('says so when there is too little to tell', () => {
    expect(levelOf(run((s) => s * MiB).slice(0, 5), MiB)).toMatchObject({ enough: false });
    expect(levelOf([], MiB)).toMatchObject({ enough: false });
  });
});
