/** What a comparison in turns says, and in which order it measures. */
import { expect, it } from 'vitest';
import { ratiosInTurns } from '../../../scripts/benchmark/in-turns.js';

it('gives the first figure as a multiple of the second, and begins with each of them as often', async () => {
  const order: string[] = [];
  const measures = (name: string, values: readonly number[]) => {
    const left = [...values];
    return async () => {
      order.push(name);
      return left.shift() ?? Number.NaN;
    };
  };
  const ours = measures('ours', [8, 6, 9, 5]);
  const theirs = measures('theirs', [2, 3, 3, 10]);
  expect(await ratiosInTurns(4, ours, theirs)).toEqual([4, 2, 3, 0.5]);
  expect(order).toEqual([
    ...['ours', 'theirs', 'theirs', 'ours'],
    ...['ours', 'theirs', 'theirs', 'ours'],
  ]);
});
