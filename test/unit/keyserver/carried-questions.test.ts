/** Questions about identities that two key servers carry for each other, over words that get lost. */
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  CARRIED_BURST,
  CARRIED_PATIENCE,
  CarriedQuestions,
  MAX_CARRIED,
  MAX_CARRIED_AT_WORK,
  MAX_CARRIED_OF_MEMBER,
} from '../../../keyserver/cascade/carried-questions.js';
import type { Refusal } from '../../../keyserver/refusal.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import {
  type CarriedAnswer,
  type CarriedAsk,
  carriedSize,
  MAX_CARRIED_BYTES,
  MAX_CARRIED_IN_WORD,
} from '../../../src/protocol/messages.js';

const member = (at: number): Id => parseId(`m${at}`);
const question = (asker: Id, message: Uint8Array = Buffer.from(asker)) =>
  ({ is: 'question', asker, message }) as const;
/** As a KMS that answers each with its own message. */
const echo = (ask: CarriedAsk): Promise<CarriedAnswer> =>
  Promise.resolve(
    ask.is === 'question'
      ? { is: 'message', no: ask.no, message: ask.message }
      : { is: 'no', no: ask.no, why: 'unavailable' },
  );

function end(
  work: (ask: CarriedAsk) => Promise<CarriedAnswer> = echo,
  elapsed: () => number = Date.now,
) {
  const refusals: Refusal[] = [];
  const questions = new CarriedQuestions({
    ...{ say: () => {}, work, elapsed },
    refused: (refusal) => refusals.push(refusal),
  });
  return { questions, refusals };
}
type End = ReturnType<typeof end>;

/** A word from one to the other, and whether the one hears that it has arrived. */
async function word(from: End, to: End, arrives = true, heard = true): Promise<void> {
  const { asks, answers, arrived } = from.questions.toSay();
  for (const list of [asks, answers]) {
    expect(list.length).toBeLessThanOrEqual(MAX_CARRIED_IN_WORD);
    const bytes = list.reduce((sum, one) => sum + carriedSize(one), 0);
    if (list.length > 1) expect(bytes).toBeLessThanOrEqual(MAX_CARRIED_BYTES);
  }
  if (arrives) {
    to.questions.hearAnswers(answers);
    to.questions.hearAsks(asks);
    if (heard) arrived();
  }
  await Promise.resolve();
  await new Promise((resolve) => setImmediate(resolve));
}

const code = (asked: Promise<unknown>): Promise<string> =>
  asked.then(
    () => 'ok',
    (thrown: unknown) => (thrown as { code: string }).code,
  );

describe('questions that two key servers carry', () => {
  afterEach(() => {
    vi.useRealTimers();
  });

  it('are each answered once with their own answer, whatever words get lost', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat({ max: 60_000 }), { minLength: 1, maxLength: 12 }),
        fc.array(fc.tuple(fc.boolean(), fc.boolean(), fc.boolean()), { maxLength: 12 }),
        async (sizes, losses) => {
          const [one, two] = [end(), end()];
          const asked = sizes.map((size, at) => {
            const message = Buffer.alloc(size + 1, at);
            const answer = one.questions.ask(question(member(at), message));
            return answer.then((said) => {
              if (said.is !== 'message') throw new Error(said.is);
              expect(Buffer.compare(said.message, message)).toBe(0);
            });
          });
          for (const [forth, arrives, heard] of losses) {
            await (forth ? word(one, two, arrives, heard) : word(two, one, arrives, heard));
          }
          for (let tries = 0; tries < 2 * sizes.length + 2; tries += 1) {
            await word(one, two);
            await word(two, one);
          }
          await Promise.all(asked);
          // Nothing is left to be said.
          await word(one, two);
          for (const { questions } of [one, two]) {
            expect(questions.toSay()).toMatchObject({ asks: [], answers: [] });
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  it('are worked at few at a time, and not twice', async () => {
    let atWork = 0;
    let begun = 0;
    let most = 0;
    const go: (() => void)[] = [];
    const [one, two] = [
      end(),
      end(async (ask) => {
        begun += 1;
        atWork += 1;
        most = Math.max(most, atWork);
        await new Promise<void>((resolve) => go.push(resolve));
        atWork -= 1;
        return echo(ask);
      }),
    ];
    const asked = Array.from({ length: 20 }, (_, at) => one.questions.ask(question(member(at))));
    // The first word arrives, and its sender does not hear of it: it says the same again.
    await word(one, two, true, false);
    await word(one, two);
    expect(one.questions.toSay().asks, 'what has arrived is not said again').toEqual([]);
    expect(begun).toBe(MAX_CARRIED_AT_WORK);
    while (begun < 20 || atWork > 0) {
      for (const done of go.splice(0)) done();
      await word(two, one);
    }
    await word(two, one);
    await Promise.all(asked);
    expect(most).toBe(MAX_CARRIED_AT_WORK);
    expect(begun).toBe(20);
  });

  it('are few of one member and of one server; who sends more is refused, and what comes fast waits', async () => {
    const never = new Promise<never>(() => {});
    const [one, two] = [end(), end(() => never)];
    const own = Array.from({ length: MAX_CARRIED_OF_MEMBER }, () =>
      code(one.questions.ask(question(member(1)))),
    );
    expect(await code(one.questions.ask(question(member(1))))).toBe('limit');
    const others = Array.from({ length: MAX_CARRIED - MAX_CARRIED_OF_MEMBER }, (_, at) =>
      code(one.questions.ask(question(member(at + 2)))),
    );
    expect(await code(one.questions.ask(question(member(999))))).toBe('unavailable');
    one.questions.close();
    expect(new Set(await Promise.all([...own, ...others]))).toEqual(new Set(['unavailable']));

    const ask = (at: number): CarriedAsk => {
      const no = Buffer.alloc(8);
      no.writeUInt32BE(at);
      return { ...question(member(at)), no, message: Buffer.alloc(1) };
    };
    two.questions.hearAsks(Array.from({ length: 2 * MAX_CARRIED }, (_, at) => ask(at)));
    expect(two.refusals).toEqual([]);
    two.questions.hearAsks([ask(5_000), ask(5_001)]);
    expect(two.refusals.map(({ kind }) => kind)).toEqual(['cascade_rate']);
    two.questions.close();

    let begun = 0;
    let now = 0;
    const three = end(
      (it) => {
        begun += 1;
        return echo(it);
      },
      () => now,
    );
    const hear = async (from: number, count: number): Promise<void> => {
      three.questions.hearAsks(Array.from({ length: count }, (_, at) => ask(from + at)));
      for (let tries = 0; tries < count; tries += 1) await Promise.resolve();
      await new Promise((resolve) => setTimeout(resolve, 20));
      for (let words = 0; words < count; words += 1) three.questions.toSay().arrived();
    };
    for (let at = 0; at < CARRIED_BURST; at += 40) await hear(at, 40);
    expect(begun).toBe(CARRIED_BURST);
    await hear(10_000, 40);
    expect(begun).toBe(CARRIED_BURST);
    now += 1_000;
    await hear(20_000, 0);
    expect(begun).toBe(CARRIED_BURST + 40);
    expect(three.refusals).toEqual([]);
    three.questions.close();
  });

  it('are given up when no answer comes in time, at both ends', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
    let begun = 0;
    const one = end();
    const two = end(() => {
      begun += 1;
      return new Promise<never>(() => {});
    });
    const asked = Array.from({ length: 20 }, (_, at) =>
      code(one.questions.ask(question(member(at)))),
    );
    await word(one, two);
    expect(begun).toBe(MAX_CARRIED_AT_WORK);
    vi.advanceTimersByTime(CARRIED_PATIENCE + 1);
    expect(new Set(await Promise.all(asked))).toEqual(new Set(['unavailable']));
    // An answer that comes now is nobody's.
    one.questions.hearAnswers([{ is: 'no', no: Buffer.alloc(8), why: 'refused' }]);
    expect(one.questions.toSay()).toMatchObject({ asks: [] });
  });

  it('are not answered by an answer of another kind', async () => {
    const one = end();
    const asked = code(one.questions.ask({ is: 'pairs', asker: member(1), ids: [] }));
    const [ask] = one.questions.toSay().asks;
    if (ask === undefined) throw new Error('nothing is asked');
    one.questions.hearAnswers([{ is: 'message', no: ask.no, message: Buffer.alloc(3) }]);
    one.questions.hearAnswers([{ is: 'no', no: ask.no, why: 'limit' }]);
    expect(await asked).toBe('limit');
  });
});
