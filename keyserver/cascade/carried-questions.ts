/**
 * Questions of members about identities that two key servers of one subnet carry for each other (docs/protocol.md 10.9): ours to the
 * other server, which are at home there, and its members' to us. They go in words, so it makes no difference who comes to whom:
 *
 *   ask -> said with the next word -> the other one works -> its answer with its next word -> settled
 *
 * What was said is said again only if no word came back. Whoever waits for an answer that does not come, because the other
 * server is away or was started again, is told `unavailable` and comes again. Questions and answers between a member and a KMS are
 * sealed for these two: nothing here can read them.
 */
import { randomBytes } from 'node:crypto';
import { RequestError } from '../../src/net/channel.js';
import type { Id } from '../../src/protocol/ids.js';
import {
  type CarriedAnswer,
  type CarriedAsk,
  carriedSize,
  MAX_CARRIED_BYTES,
  MAX_CARRIED_IN_WORD,
} from '../../src/protocol/messages.js';
import { Refusal } from '../refusal.js';
import { TokenBuckets } from '../registry/token-bucket.js';

/** Questions of ours that are with another server at a time (of its own, twice as many are here: it gives up before we do); of these, of one member. */
export const MAX_CARRIED = 128;
export const MAX_CARRIED_OF_MEMBER = 4;
/** Of another server's questions so many are worked at, so that ours and those of a third one find the KMS free. */
export const MAX_CARRIED_AT_WORK = 8;
/** And so many are begun at once, then a second; what comes faster waits. */
export const CARRIED_BURST = 400;
export const CARRIED_PER_SECOND = 200;
/** How long a question waits for its answer, ms; within the patience of the member. */
export const CARRIED_PATIENCE = 8_000;
/** How often one that waits for its turn looks, ms. */
const LOOK = 10;

/** A question as it is put: its number is drawn here. */
export type Carried =
  | { readonly is: 'pairs'; readonly asker: Id; readonly ids: readonly Id[] }
  | { readonly is: 'question'; readonly asker: Id; readonly message: Uint8Array };
export type CarriedPairs = Extract<CarriedAnswer, { is: 'pairs' }>;
export type CarriedMessage = Extract<CarriedAnswer, { is: 'message' }>;

export interface CarriedDeps {
  /** Something is to be said. */
  say(): void;
  /** Answers a question of a member of the other server. Never rejects. */
  work(ask: CarriedAsk): Promise<CarriedAnswer>;
  /** The other server asks too much. */
  refused(refusal: Refusal): void;
  /** A clock that never goes back, ms. */
  readonly elapsed?: () => number;
}

/** A question of ours that is not answered yet. */
interface Open {
  readonly ask: CarriedAsk;
  /** A word with it has arrived. */
  said: boolean;
  readonly settle: (answer: CarriedAnswer | undefined) => void;
}

/** A question of the other server, from when it came until its answer has arrived there. */
interface Work {
  readonly ask: CarriedAsk;
  readonly at: number;
  answer: CarriedAnswer | undefined;
}

/** What one other server and we carry for each other. */
export class CarriedQuestions {
  readonly #deps: CarriedDeps;
  readonly #elapsed: () => number;
  readonly #open = new Map<string, Open>();
  readonly #works = new Map<string, Work>();
  readonly #rate = new TokenBuckets(CARRIED_BURST, CARRIED_PER_SECOND);
  #waiting: Work[] = [];
  #atWork = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(deps: CarriedDeps) {
    this.#deps = deps;
    this.#elapsed = deps.elapsed ?? (() => performance.now());
  }

  // --------------------------------------------------------------------------------- ours

  /**
   * Has a member's question answered by the other server.
   * @throws RequestError unavailable, limit or refused, as that one answers, or if it does not
   */
  async ask(carried: Carried): Promise<CarriedPairs | CarriedMessage> {
    const { asker } = carried;
    const own = [...this.#open.values()].filter(({ ask }) => ask.asker === asker).length;
    if (own >= MAX_CARRIED_OF_MEMBER) throw new RequestError('limit');
    if (this.#open.size >= MAX_CARRIED || this.#closed) throw new RequestError('unavailable');
    const no = randomBytes(8);
    const ask: CarriedAsk =
      carried.is === 'pairs' ? { ...carried, no, ids: [...carried.ids] } : { ...carried, no };
    const name = no.toString('hex');
    let timer: NodeJS.Timeout | undefined;
    const answered = new Promise<CarriedAnswer | undefined>((settle) => {
      this.#open.set(name, { ask, said: false, settle });
      timer = setTimeout(() => settle(undefined), CARRIED_PATIENCE);
      timer.unref();
    });
    this.#deps.say();
    try {
      const answer = await answered;
      if (answer === undefined) throw new RequestError('unavailable');
      if (answer.is === 'no') throw new RequestError(answer.why);
      return answer;
    } finally {
      clearTimeout(timer);
      this.#open.delete(name);
    }
  }

  /** What the next word has to say. @returns also what to do when it has arrived */
  toSay(): {
    readonly asks: readonly CarriedAsk[];
    readonly answers: readonly CarriedAnswer[];
    arrived(): void;
  } {
    const open = fitting(
      [...this.#open.values()].filter(({ said }) => !said),
      ({ ask }) => ask,
    );
    const done = [...this.#works.values()].flatMap(({ answer }) =>
      answer === undefined ? [] : [answer],
    );
    const answers = fitting(done, (answer) => answer);
    return {
      asks: open.map(({ ask }) => ask),
      answers,
      arrived: () => {
        for (const one of open) one.said = true;
        for (const { no } of answers) this.#works.delete(nameOf(no));
        if (this.#isMore()) this.#deps.say();
      },
    };
  }

  /** What became of ours. One that nobody waits for is let go. */
  hearAnswers(answers: readonly CarriedAnswer[]): void {
    for (const answer of answers) {
      const open = this.#open.get(nameOf(answer.no));
      // An answer to another kind of question is none.
      const fits = answer.is === 'no' || (answer.is === 'pairs') === (open?.ask.is === 'pairs');
      if (fits) open?.settle(answer);
    }
  }

  // ------------------------------------------------------------------------------- theirs

  /** Questions of the other server's members. */
  hearAsks(asks: readonly CarriedAsk[]): void {
    for (const ask of asks) {
      const name = nameOf(ask.no);
      if (this.#works.has(name)) continue;
      if (this.#works.size >= 2 * MAX_CARRIED) {
        const why = 'too many questions about identities at a time; wait';
        this.#deps.refused(new Refusal('limit', 'cascade_rate', why));
        return;
      }
      const work: Work = { ask, at: this.#elapsed(), answer: undefined };
      this.#works.set(name, work);
      this.#waiting.push(work);
    }
    this.#begin();
  }

  /** Nothing is asked or answered any more. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#waiting = [];
    this.#works.clear();
    for (const { settle } of this.#open.values()) settle(undefined);
  }

  #begin(): void {
    clearTimeout(this.#timer);
    while (this.#atWork < MAX_CARRIED_AT_WORK) {
      const [work] = this.#waiting;
      if (work === undefined || this.#closed) return;
      const now = this.#elapsed();
      if (now - work.at > CARRIED_PATIENCE) {
        // Nobody waits for it any more.
        this.#waiting.shift();
        this.#works.delete(nameOf(work.ask.no));
        continue;
      }
      if (!this.#rate.take('', now)) {
        this.#timer = setTimeout(() => this.#begin(), LOOK);
        this.#timer.unref();
        return;
      }
      this.#waiting.shift();
      this.#atWork += 1;
      void this.#deps.work(work.ask).then((answer) => {
        this.#atWork -= 1;
        if (this.#closed) return;
        work.answer = answer;
        this.#deps.say();
        this.#begin();
      });
    }
  }

  #isMore(): boolean {
    return (
      [...this.#open.values()].some(({ said }) => !said) ||
      [...this.#works.values()].some(({ answer }) => answer !== undefined)
    );
  }
}

function nameOf(no: Uint8Array): string {
  return Buffer.from(no).toString('hex');
}

/** The first ones that go into a word together; one always does. */
function fitting<T>(all: readonly T[], what: (one: T) => CarriedAsk | CarriedAnswer): T[] {
  let bytes = 0;
  const end = all.findIndex((one, at) => {
    bytes += carriedSize(what(one));
    return at > 0 && (at >= MAX_CARRIED_IN_WORD || bytes > MAX_CARRIED_BYTES);
  });
  return end < 0 ? [...all] : all.slice(0, end);
}
