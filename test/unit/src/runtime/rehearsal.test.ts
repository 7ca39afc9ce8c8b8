/** Rehearsals: every part is played, in turn with other work; what fails is told and keeps nobody from the rest; who stops is not waited for. */
import { expect, it } from 'vitest';
import { createLogger, type Logger } from '../../../../src/runtime/log.js';
import { rehearse } from '../../../../src/runtime/rehearsal.js';

function listening(): { readonly log: Logger; readonly lines: string[] } {
  const lines: string[] = [];
  const log = createLogger('test', { level: 'debug' }, { write: (line) => lines.push(line) });
  return { log, lines };
}

it('plays each part several times, and lets others have their turn between two rounds', async () => {
  const { log, lines } = listening();
  const played: string[] = [];
  let turns = 0;
  const other = setInterval(() => {
    turns += 1;
  }, 0);
  await rehearse(
    () => ({
      one: () => {
        played.push('one');
        const end = performance.now() + 2;
        while (performance.now() < end);
      },
      two: async () => {
        played.push('two');
      },
    }),
    log,
  );
  clearInterval(other);
  const ones = played.filter((name) => name === 'one').length;
  expect(ones).toBeGreaterThan(5);
  expect(played).toEqual([...Array(ones).fill('one'), ...Array(ones).fill('two')]);
  expect(turns).toBeGreaterThan(ones / 2);
  expect(lines.join()).toContain('rehearsed');
});

it('leaves out a part that fails, says so, and plays the others', async () => {
  const { log, lines } = listening();
  let played = 0;
  await rehearse(
    () => ({
      broken: () => Promise.reject(new Error('not like this')),
      good: () => {
        played += 1;
      },
    }),
    log,
  );
  expect(played).toBeGreaterThan(5);
  expect(lines.filter((line) => line.includes('a rehearsal failed'))).toHaveLength(1);
  expect(lines.join()).toMatch(/broken.*not like this/);
});

it('ends when it is told to, without a word about what fails then', async () => {
  const { log, lines } = listening();
  const over = new AbortController();
  let played = 0;
  await rehearse(
    () => ({
      one: () => {
        played += 1;
        if (played < 3) return;
        over.abort();
        throw new Error('the store is closed');
      },
      two: () => {
        played += 100;
      },
    }),
    log,
    over.signal,
  );
  expect(played).toBe(3);
  expect(lines).toEqual([]);
});

it('says so where the parts can not be made, and lets whoever wanted them go on', async () => {
  const { log, lines } = listening();
  await rehearse(() => {
    throw new Error('no keys');
  }, log);
  expect(lines.join()).toMatch(/no keys.*a rehearsal failed/);
});
