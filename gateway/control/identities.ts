/**
 * Who peers are, confirmed by the KMS of our key server (docs/protocol.md 11.8). The operator's grant says that somebody is a
 * member; that a peer's identity document is the one which the KMS remembers for its id says who. Once for each peer:
 *
 *   a record of a peer -> judge -> confirmed before           -> in force
 *                               -> pinned before we asked     -> in force, and asked about meanwhile
 *                               -> never seen                 -> waits: no traffic with it
 *   asked: the KMS has another document, or none that opens   -> refused, looked at again every minute
 *          nobody answers                                     -> as it was, asked again
 *
 * Nothing here is asked about a peer that is confirmed, so traffic with it does not hang on a KMS. Our own document is
 * sealed and stored after each registration, so that others can do the same with us.
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
import {
  identityDigest,
  kmsOf,
  type Settings,
  type VerifiedMember,
} from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';

/** Implementation constants, ms. */
const TOGETHER = 2;
const RETRY_FIRST = 200;
const RETRY_LAST = 30_000;
/** The same for one that is pinned and has no document: it may be away for good, and says so itself when it comes. */
const RETRY_PINNED = 600_000;
/** A peer that was refused is looked at again after so long: its key server may have been mended. */
const REFUSED_AGAIN = 60_000;
/** The seal of our own document is renewed after so long, and when the gateway starts: a KMS may seal by another root key now. */
const RENEW_AFTER = 86_400_000;
/** Members of a key server that starts again don't all come to its KMS at once. */
const RENEW_WITHIN = 30_000;
/** The same when settings name a KMS. */
const NAMED_WITHIN = 1_000;

/** What is known of who a peer is. off: nobody is asked about it. */
export type Verdict = 'off' | 'confirmed' | 'pinned' | 'waits';

/** What the key server does for us in this. */
export interface IdentityServer {
  get(
    ids: readonly Id[],
  ): Promise<{ readonly ticket: Signed; readonly pairs: readonly NamedPair[] }>;
  put(pair: SealedPair): Promise<unknown>;
  exchange(message: Uint8Array): Promise<Uint8Array>;
}

export interface IdentitiesDeps {
  readonly id: Id;
  /** The key server where we are at home, whose KMS we ask. */
  readonly home: Id;
  readonly membership: Signed;
  readonly channel: KeyPair;
  readonly server: IdentityServer;
  readonly pins: { isPinned(id: Id): boolean; isConfirmed(id: Id): boolean };
  /** A peer may be met now: its record is to be taken again. */
  readonly onConfirmed: (id: Id) => void;
  readonly onRefused: (id: Id, error: PairwireError) => void;
  /** Other settings: everybody's record is to be taken again. */
  readonly onMode: () => void;
  /** What is wrong, at its first time; undefined: nothing any more. */
  readonly onProblem: (problem: string | undefined) => void;
  readonly random?: () => number;
}

/** For status and metrics. */
export interface IdentitiesStatus {
  /** unnamed: verify, but the settings name no KMS of our key server. */
  readonly mode: 'verify' | 'off' | 'unnamed';
  /** Our own document: kept by KMS and key server, not yet, or another one is remembered for our id. */
  readonly own: 'kept' | 'not yet' | 'taken';
  /** Peers without traffic until they are confirmed. */
  readonly waiting: number;
  /** Peers that are pinned and not confirmed. */
  readonly pinned: number;
  readonly refused: number;
  readonly problem: string | undefined;
}

/** A peer that is asked about. */
interface Wanted {
  readonly digest: string;
  readonly isPinned: boolean;
  /** When it may be asked about. */
  at: number;
  tries: number;
}

interface Refused {
  readonly digest: string;
  readonly error: PairwireError;
  readonly again: NodeJS.Timeout;
}

export class Identities {
  readonly #deps: IdentitiesDeps;
  readonly #random: () => number;
  readonly #wanted = new Map<Id, Wanted>();
  readonly #confirmed = new Map<Id, string>();
  readonly #refused = new Map<Id, Refused>();
  readonly #waiters = new Map<Id, Set<() => void>>();
  #verify: 'verify' | 'off' = 'off';
  #kms: Uint8Array | undefined;
  #isRegistered = false;
  #asking = false;
  /** After a failure nobody is asked before. */
  #notBefore = 0;
  #timer: NodeJS.Timeout | undefined;
  #failures = 0;
  #own: IdentitiesStatus['own'] = 'not yet';
  #ownTimer: NodeJS.Timeout | undefined;
  #ownFailures = 0;
  #publishedAt = Number.NEGATIVE_INFINITY;
  #publishing = false;
  #problems: { own?: string | undefined; peers?: string | undefined } = {};
  #told: 'own' | 'peers' | undefined;
  #stopped = false;

  constructor(deps: IdentitiesDeps) {
    this.#deps = deps;
    this.#random = deps.random ?? Math.random;
  }

  get status(): IdentitiesStatus {
    const wanted = [...this.#wanted.entries()].filter(([id]) => !this.#refused.has(id));
    const pinned = wanted.filter(([, { isPinned }]) => isPinned).length;
    return {
      mode: this.#verify === 'verify' && this.#kms === undefined ? 'unnamed' : this.#verify,
      own: this.#own,
      waiting: wanted.length - pinned,
      pinned,
      refused: this.#refused.size,
      problem: this.#problem?.text,
    };
  }

  /** Goes by other settings of the operator. */
  useSettings(settings: Settings): void {
    const kms = kmsOf(settings, this.#deps.home);
    const sameKms =
      kms === undefined
        ? this.#kms === undefined
        : this.#kms !== undefined && Buffer.compare(kms, this.#kms) === 0;
    if (sameKms && settings.verify === this.#verify) return;
    this.#verify = settings.verify;
    this.#kms = kms;
    this.#forget();
    this.#problems.peers = undefined;
    this.#tellProblem();
    this.#deps.onMode();
    if (sameKms) return;
    this.#own = 'not yet';
    if (this.#isRegistered) this.#publishIn(this.#random() * NAMED_WITHIN);
  }

  /** We are registered. @param sealed the key server has our document sealed: only the seal is to be renewed */
  registered(sealed: boolean): void {
    this.#isRegistered = true;
    this.#failures = 0;
    this.#ownFailures = 0;
    this.#notBefore = 0;
    if (sealed && this.#own === 'not yet') this.#own = 'kept';
    if (!sealed) this.#publishIn(0);
    else if (performance.now() - this.#publishedAt > RENEW_AFTER) {
      this.#publishIn(this.#random() * RENEW_WITHIN);
    }
    for (const wanted of this.#wanted.values()) wanted.at = 0;
    this.#pump();
  }

  stop(): void {
    this.#stopped = true;
    this.#forget();
    clearTimeout(this.#ownTimer);
  }

  /**
   * What is known of who a member is, whose record holds and contradicts no pin.
   * @param isThere it has a boot record: before that nobody asks, for there is nothing that could be heard of it
   * @throws PairwireError IDENTITY_REFUSED for one whom the KMS has contradicted
   */
  judge({ id, grant, identityDigest: digest }: VerifiedMember, isThere: boolean): Verdict {
    const { home, pins } = this.#deps;
    const off = this.#verify === 'off' || this.#kms === undefined;
    if (off || grant.home !== home || id === this.#deps.id) return 'off';
    const text = digest.toString('hex');
    if (pins.isConfirmed(id) || this.#confirmed.get(id) === text) return 'confirmed';
    const refused = this.#refused.get(id);
    if (refused?.digest === text) throw refused.error;
    const isPinned = pins.isPinned(id);
    if (!isThere) return isPinned ? 'pinned' : 'waits';
    const known = this.#wanted.get(id);
    if (refused !== undefined) this.#drop(id);
    if (known?.digest === text && refused === undefined) {
      // Something is new about it, perhaps what we wait for.
      known.at = Math.min(known.at, performance.now() + RETRY_FIRST / 2);
    } else {
      this.#wanted.set(id, { digest: text, isPinned, at: 0, tries: 0 });
    }
    this.#pump();
    return isPinned ? 'pinned' : 'waits';
  }

  /** Settles when it is known who a peer is, or after so long. */
  async settled(id: Id, timeoutMs: number): Promise<void> {
    if (!this.#wanted.has(id) || this.#refused.has(id)) return;
    let timer: NodeJS.Timeout | undefined;
    let done: () => void = () => {};
    await new Promise<void>((resolve) => {
      done = resolve;
      timer = setTimeout(resolve, timeoutMs);
      timer.unref();
      this.#waiters.set(id, (this.#waiters.get(id) ?? new Set()).add(resolve));
    });
    clearTimeout(timer);
    const left = this.#waiters.get(id);
    left?.delete(done);
    if (left?.size === 0) this.#waiters.delete(id);
  }

  /** A peer is gone: nothing is asked about it any more. */
  forget(id: Id): void {
    this.#drop(id);
    this.#confirmed.delete(id);
  }

  // ------------------------------------------------------------------ peers

  #pump(inMs = TOGETHER): void {
    if (this.#asking || this.#stopped || !this.#isRegistered || this.#wanted.size === 0) return;
    clearTimeout(this.#timer);
    const wait = Math.max(inMs, this.#notBefore - performance.now());
    this.#timer = setTimeout(() => void this.#round(), wait);
    this.#timer.unref();
  }

  async #round(): Promise<void> {
    const kms = this.#kms;
    const now = performance.now();
    const due = [...this.#wanted].filter(([, { at }]) => at <= now);
    // Whom traffic waits for comes first.
    due.sort(([, one], [, other]) => Number(one.isPinned) - Number(other.isPinned));
    const asked = new Map(due.slice(0, MAX_IDENTITIES_ASKED));
    if (kms === undefined || this.#asking || this.#stopped) return;
    if (asked.size > 0) {
      this.#asking = true;
      try {
        const missing = await this.#askAbout(kms, asked);
        this.#failures = 0;
        this.#problems.peers = missing;
      } catch (thrown) {
        this.#failures += 1;
        this.#notBefore = performance.now() + this.#backoff(this.#failures);
        this.#problems.peers = `peers can not be confirmed: ${messageOf(thrown)}`;
      } finally {
        this.#asking = false;
      }
      this.#tellProblem();
    }
    if (this.#stopped || this.#wanted.size === 0) return;
    const next = Math.min(...[...this.#wanted.values()].map(({ at }) => at));
    this.#pump(Math.max(TOGETHER, next - performance.now()));
  }

  /** @returns what is wrong with some of them, though the KMS answers */
  async #askAbout(kms: Uint8Array, asked: ReadonlyMap<Id, Wanted>): Promise<string | undefined> {
    const { server } = this.#deps;
    const { ticket, pairs } = await server.get([...asked.keys()]);
    const named = pairs.filter(({ id }, at) => {
      return asked.has(id) && pairs.findIndex((one) => one.id === id) === at;
    });
    const missing = new Set(asked.keys());
    if (named.length > 0) {
      const answer = await this.#exchange(kms, { t: 'identity.open', ticket, pairs: named });
      if (answer.t !== 'opened' || answer.opened.length !== named.length) throw refusalOf(answer);
      for (const [at, { id }] of named.entries()) {
        const [wanted, opened] = [asked.get(id), answer.opened[at]];
        if (wanted === undefined || opened === undefined) continue;
        if (opened.is === 'unknown') continue;
        missing.delete(id);
        this.#take(id, wanted, opened);
      }
    }
    for (const id of missing) {
      const wanted = asked.get(id);
      if (wanted === undefined) continue;
      wanted.tries += 1;
      const last = wanted.isPinned ? RETRY_PINNED : RETRY_LAST;
      wanted.at = performance.now() + this.#backoff(wanted.tries, last);
    }
    // Who was pinned before is no problem of today.
    const [first, ...others] = [...missing].filter((id) => asked.get(id)?.isPinned === false);
    if (first === undefined) return undefined;
    const more = others.length === 0 ? '' : ` and ${others.length} more`;
    return `the key server or its KMS has no identity document of ${first}${more} yet`;
  }

  #take(id: Id, wanted: Wanted, opened: Exclude<Opened, { is: 'unknown' }>): void {
    // A record that came meanwhile is another question.
    if (this.#wanted.get(id) !== wanted) return;
    const good =
      opened.is === 'document' && identityDigest(opened.document).toString('hex') === wanted.digest;
    this.#drop(id);
    if (good) {
      this.#confirmed.set(id, wanted.digest);
      this.#deps.onConfirmed(id);
    } else {
      const what =
        opened.is === 'document'
          ? 'the KMS remembers another identity document'
          : opened.is === 'other'
            ? 'the KMS remembers another identity document than the sealed one'
            : 'the sealed identity document is not what the KMS has sealed';
      const error = new PairwireError('IDENTITY_REFUSED', `${id}: ${what}`, {
        where: id,
        hint: 'who can write to the database, or the key server itself, may pretend to be this member: ask the operator',
      });
      const again = setTimeout(() => {
        this.#wanted.set(id, { ...wanted, at: 0, tries: 0 });
        this.#pump();
      }, REFUSED_AGAIN);
      again.unref();
      this.#refused.set(id, { digest: wanted.digest, error, again });
      this.#deps.onRefused(id, error);
    }
    for (const done of this.#waiters.get(id) ?? []) done();
  }

  #drop(id: Id): void {
    clearTimeout(this.#refused.get(id)?.again);
    this.#refused.delete(id);
    this.#wanted.delete(id);
  }

  #forget(): void {
    clearTimeout(this.#timer);
    for (const id of [...this.#wanted.keys(), ...this.#refused.keys()]) this.#drop(id);
    this.#confirmed.clear();
    for (const waiters of this.#waiters.values()) for (const done of waiters) done();
  }

  // ------------------------------------------------------------------ our own

  #publishIn(ms: number): void {
    clearTimeout(this.#ownTimer);
    if (this.#stopped || this.#kms === undefined) return;
    this.#ownTimer = setTimeout(() => void this.#publish(), ms);
    this.#ownTimer.unref();
  }

  async #publish(): Promise<void> {
    const kms = this.#kms;
    if (kms === undefined || this.#publishing) return;
    this.#publishing = true;
    try {
      const { server, membership } = this.#deps;
      const { ticket } = await server.get([]);
      const answer = await this.#exchange(kms, { t: 'identity.seal', ticket, membership });
      if (answer.t === 'no' && answer.why === 'taken') {
        this.#own = 'taken';
        throw new PairwireError(
          'IDENTITY_REFUSED',
          'another identity document is remembered for our id: somebody may pretend to be us',
        );
      }
      if (answer.t !== 'sealed') throw refusalOf(answer);
      await server.put({ document: answer.document, dek: answer.dek });
      this.#own = 'kept';
      this.#publishedAt = performance.now();
      this.#ownFailures = 0;
      this.#problems.own = undefined;
    } catch (thrown) {
      this.#ownFailures += 1;
      this.#problems.own = `our identity document is not with the KMS: ${messageOf(thrown)}`;
      if (this.#isRegistered) this.#publishIn(this.#backoff(this.#ownFailures));
    } finally {
      this.#publishing = false;
    }
    this.#tellProblem();
  }

  // ------------------------------------------------------------------ both

  async #exchange(kms: Uint8Array, request: ExchangeRequest): Promise<ExchangeAnswer> {
    const question = ask(kms, this.#deps.channel, request);
    return question.answer(await this.#deps.server.exchange(question.message));
  }

  #backoff(failures: number, last = RETRY_LAST): number {
    const ceiling = Math.min(last, RETRY_FIRST * 2 ** Math.min(failures - 1, 12));
    return ceiling / 2 + (this.#random() * ceiling) / 2;
  }

  #tellProblem(): void {
    const problem = this.#problem;
    if (problem?.kind === this.#told || this.#stopped) return;
    this.#told = problem?.kind;
    this.#deps.onProblem(problem?.text);
  }

  /** Where nobody is asked, it is none that our own document is not there yet. */
  get #problem(): { readonly kind: 'own' | 'peers'; readonly text: string } | undefined {
    const { own, peers } = this.#problems;
    if (this.#verify === 'off') return undefined;
    if (own !== undefined) return { kind: 'own', text: own };
    return peers === undefined ? undefined : { kind: 'peers', text: peers };
  }
}

function refusalOf(answer: ExchangeAnswer): PairwireError {
  if (answer.t === 'no' && answer.why === 'unavailable') {
    return new PairwireError('KMS_FAILED', 'the KMS can not answer: see its log');
  }
  const what = answer.t === 'no' ? 'refuses the question' : 'has answered something else';
  return new PairwireError('REFUSED', `the KMS ${what}: its audit log says why`);
}
