/**
 * Asking one KMS about peers (docs/protocol.md 11.8): those that are at home at its key server. Up to 32 go into one question, those
 * whom traffic waits for first; one question is under way at a time; what fails is asked again, ever later. Each key server of a
 * cascade has its own, so that one that is away or lies holds nobody else up.
 */
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import type { Id } from '../../src/protocol/ids.js';
import {
  ask,
  type ExchangeAnswer,
  type ExchangeRequest,
  MAX_IDENTITIES_ASKED,
  type NamedPair,
  type Opened,
  type SealedPair,
} from '../../src/protocol/kms-exchange.js';
import type { Signed } from '../../src/protocol/signed.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';

/** Implementation constants, ms. */
const TOGETHER = 2;
const RETRY_FIRST = 200;
const RETRY_LAST = 30_000;
/** The same for one that is pinned and has no document: it may be away for good, and says so itself when it comes. */
const RETRY_PINNED = 600_000;
/** After failures, news of a peer whom traffic waits for has the KMS asked again within so long: its key server may be back. */
const RETRY_NEWS = 1_000;

/** What the key server does for us in this. `home`: of another key server, to which it passes the question on. */
export interface IdentityServer {
  get(
    ids: readonly Id[],
    home?: Id,
  ): Promise<{ readonly ticket: Signed; readonly pairs: readonly NamedPair[] }>;
  put(pair: SealedPair): Promise<unknown>;
  exchange(message: Uint8Array, home?: Id): Promise<Uint8Array>;
}

/** A KMS, by what settings of the operator say. */
export interface NamedKms {
  /** Its public channel key. */
  readonly key: Uint8Array;
  /** Its key server; undefined: ours. */
  readonly home: Id | undefined;
}

/** A peer that is asked about. */
export interface Wanted {
  /** Of the document that it shows. */
  readonly digest: string;
  readonly isPinned: boolean;
}

interface Waiting extends Wanted {
  /** When it may be asked about. */
  at: number;
  tries: number;
}

/** What a KMS says of a peer. */
export type Said = Exclude<Opened, { is: 'unknown' }>;

export interface PeerQuestionsDeps {
  readonly kms: NamedKms;
  readonly channel: KeyPair;
  readonly server: IdentityServer;
  /** False while there is nobody to ask. */
  readonly mayAsk: () => boolean;
  /** The KMS has spoken of a peer, which is not asked about any more. */
  readonly onSaid: (id: Id, wanted: Wanted, said: Said) => void;
  /** `problem` is another one. */
  readonly onProblem: () => void;
  readonly random: () => number;
}

export class PeerQuestions {
  readonly #deps: PeerQuestionsDeps;
  readonly #wanted = new Map<Id, Waiting>();
  #asking = false;
  /** After a failure nobody is asked before. */
  #notBefore = 0;
  #timer: NodeJS.Timeout | undefined;
  #failures = 0;
  #problem: string | undefined;
  #stopped = false;

  constructor(deps: PeerQuestionsDeps) {
    this.#deps = deps;
  }

  /** Peers that are asked about. */
  get wanted(): ReadonlyMap<Id, Wanted> {
    return this.#wanted;
  }

  /** Why somebody is not confirmed; undefined: no reason. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Asks about a peer, soon if something is new about it. */
  want(id: Id, { digest, isPinned }: Wanted): void {
    const now = performance.now();
    const known = this.#wanted.get(id);
    if (known?.digest === digest) {
      // Perhaps what is new is what we wait for.
      known.at = Math.min(known.at, now + RETRY_FIRST / 2);
      if (!isPinned) this.#notBefore = Math.min(this.#notBefore, now + RETRY_NEWS);
    } else {
      this.#wanted.set(id, { digest, isPinned, at: 0, tries: 0 });
    }
    this.#pump();
  }

  /** A peer is not asked about any more. */
  drop(id: Id): void {
    this.#wanted.delete(id);
  }

  /** The key server is there: everybody is asked about at once. */
  begin(): void {
    this.#failures = 0;
    this.#notBefore = 0;
    for (const waiting of this.#wanted.values()) waiting.at = 0;
    this.#pump();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#wanted.clear();
  }

  #pump(inMs = TOGETHER): void {
    if (this.#asking || this.#stopped || !this.#deps.mayAsk() || this.#wanted.size === 0) return;
    clearTimeout(this.#timer);
    const wait = Math.max(inMs, this.#notBefore - performance.now());
    this.#timer = setTimeout(() => void this.#round(), wait);
    this.#timer.unref();
  }

  async #round(): Promise<void> {
    const now = performance.now();
    const due = [...this.#wanted].filter(([, { at }]) => at <= now);
    // Whom traffic waits for comes first.
    due.sort(([, one], [, other]) => Number(one.isPinned) - Number(other.isPinned));
    const asked = new Map(due.slice(0, MAX_IDENTITIES_ASKED));
    if (this.#asking || this.#stopped) return;
    if (asked.size > 0) {
      this.#asking = true;
      try {
        this.#problem = await this.#askAbout(asked);
        this.#failures = 0;
      } catch (thrown) {
        this.#failures += 1;
        this.#notBefore = performance.now() + backoff(this.#failures, this.#deps.random);
        const { home } = this.#deps.kms;
        const whose = home === undefined ? 'peers' : `peers at home at ${home}`;
        this.#problem = `${whose} can not be confirmed: ${messageOf(thrown)}`;
      } finally {
        this.#asking = false;
      }
      if (!this.#stopped) this.#deps.onProblem();
    }
    if (this.#stopped || this.#wanted.size === 0) return;
    const next = Math.min(...[...this.#wanted.values()].map(({ at }) => at));
    this.#pump(Math.max(TOGETHER, next - performance.now()));
  }

  /** @returns what is wrong with some of them, though the KMS answers */
  async #askAbout(asked: ReadonlyMap<Id, Waiting>): Promise<string | undefined> {
    const { server, kms, channel, random } = this.#deps;
    const { home } = kms;
    const { ticket, pairs } = await server.get([...asked.keys()], home);
    const named = pairs.filter(({ id }, at) => {
      return asked.has(id) && pairs.findIndex((one) => one.id === id) === at;
    });
    const missing = new Set(asked.keys());
    if (named.length > 0) {
      const request = { t: 'identity.open', ticket, pairs: named } as const;
      const answer = await askKms(server, channel, kms, request);
      if (answer.t !== 'opened' || answer.opened.length !== named.length) throw refusalOf(answer);
      for (const [at, { id }] of named.entries()) {
        const [waiting, opened] = [asked.get(id), answer.opened[at]];
        if (waiting === undefined || opened === undefined || opened.is === 'unknown') continue;
        missing.delete(id);
        // A record that came meanwhile is another question.
        if (this.#stopped || this.#wanted.get(id) !== waiting) continue;
        this.#wanted.delete(id);
        this.#deps.onSaid(id, waiting, opened);
      }
    }
    for (const id of missing) {
      const waiting = asked.get(id);
      if (waiting === undefined) continue;
      waiting.tries += 1;
      const last = waiting.isPinned ? RETRY_PINNED : RETRY_LAST;
      waiting.at = performance.now() + backoff(waiting.tries, random, last);
    }
    // Who was pinned before is no problem of today.
    const [first, ...others] = [...missing].filter((id) => asked.get(id)?.isPinned === false);
    if (first === undefined) return undefined;
    const more = others.length === 0 ? '' : ` and ${others.length} more`;
    const whose = home === undefined ? 'the key server' : `the key server ${home}`;
    return `${whose} or its KMS has no identity document of ${first}${more} yet`;
  }
}

/** Puts a question to a KMS, by way of our key server. @throws PairwireError CHANNEL_HANDSHAKE, CHANNEL_MALFORMED for what it has not answered */
export async function askKms(
  server: IdentityServer,
  channel: KeyPair,
  { key, home }: NamedKms,
  request: ExchangeRequest,
): Promise<ExchangeAnswer> {
  const question = ask(key, channel, request);
  return question.answer(await server.exchange(question.message, home));
}

/** Why a KMS has not done what was asked. */
export function refusalOf(answer: ExchangeAnswer): PairwireError {
  if (answer.t === 'no' && answer.why === 'unavailable') {
    return new PairwireError('KMS_FAILED', 'the KMS can not answer: see its log');
  }
  const what = answer.t === 'no' ? 'refuses the question' : 'has answered something else';
  return new PairwireError('REFUSED', `the KMS ${what}: its audit log says why`);
}

/** After so many failures: 0.1 to 0.2 s at first, twice that each time. */
export function backoff(failures: number, random: () => number, last = RETRY_LAST): number {
  const ceiling = Math.min(last, RETRY_FIRST * 2 ** Math.min(failures - 1, 12));
  return ceiling / 2 + (random() * ceiling) / 2;
}
