/**
 * What a process will have to do quickly once, done in memory and without effects when it starts. Parsers (zod) are compiled at their first
 * message, and V8 interprets what has not run a few times: the first frame between two members would wait for that in several processes,
 * one after the other (docs/performance.md).
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { messageOf } from './errors.js';
import type { Logger } from './log.js';

/** So often each part runs; 200 times made nothing quicker than 30 times did. */
const ROUNDS = 30;

/** A part of a rehearsal: one round of it, of about a millisecond, with no effect outside of it. */
export type Part = () => void | Promise<void>;

/**
 * Makes the parts and plays them, one round in a turn of the event loop, so that what is to be done in earnest meanwhile need not wait.
 * What fails is a mistake of ours, which must not keep anybody from serving: it is logged, and that part left out. Never rejects.
 * @param signal ends it before its end
 */
export async function rehearse(
  make: () => Readonly<Record<string, Part>>,
  log: Logger,
  signal?: AbortSignal,
): Promise<void> {
  const start = performance.now();
  const failed = (part: string, thrown: unknown): void => {
    if (signal?.aborted === true) return;
    log.warn({ part, reason: messageOf(thrown) }, 'a rehearsal failed');
  };
  let parts: Readonly<Record<string, Part>>;
  try {
    parts = make();
  } catch (thrown) {
    failed('all', thrown);
    return;
  }
  for (const [name, part] of Object.entries(parts)) {
    try {
      for (let round = 0; round < ROUNDS; round += 1) {
        if (signal?.aborted === true) return;
        await part();
        await nextTurn();
      }
    } catch (thrown) {
      failed(name, thrown);
    }
  }
  log.debug({ ms: Math.round(performance.now() - start) }, 'rehearsed');
}
