/** What is warmed up is what a first contact says. */
import { expect, test } from 'vitest';
import { warmUp } from '../../../../src/protocol/warm-up.js';

test('each message of a first contact is one that its schema takes, so all of it has run', () => {
  expect(warmUp('server')).toBe(2);
  expect(warmUp('member')).toBe(2);
});
