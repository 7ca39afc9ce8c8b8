/**
 * Who peers are, confirmed by the KMS of the key server where they are at home (docs/protocol.md 11.8). The operator's grant says
 * that somebody is a member; that a peer's identity document is the one which the KMS remembers for its id says who. Once for each
 * peer:
 *
 *   a record of a peer -> judge -> confirmed before           -> in force
 *                               -> pinned before we asked     -> in force, and asked about meanwhile
 *                               -> never seen                 -> waits: no traffic with it
 *   asked: the KMS has another document, or none that opens   -> refused, looked at again every minute
 *          nobody answers                                     -> as it was, asked again
 *
 * Which KMS that is, is in settings that the operator signed, and where a peer is at home in the grant: no key server can say
 * otherwise. Nothing here is asked about a peer that is confirmed, so traffic with it does not hang on a KMS. Our own document is
 * sealed and stored after each registration, so that others can do the same with us.
 */
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import type { Id } from '../../src/protocol/ids.js';
import {
  identityDigest,
  kmsOf,
  type Settings,
  type VerifiedMember,
} from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import {
  askKms,
  backoff,
  type IdentityServer,
  PeerQuestions,
  refusalOf,
  type Said,
  type Wanted,
} from './peer-questions.js';

/** A peer that was refused is looked at again after so long, ms: its key server may have been mended. */
const REFUSED_AGAIN = 60_000;
/** The seal of our own document is renewed after so long, ms, and when the gateway starts: a KMS may seal by another root key now. */
const RENEW_AFTER = 86_400_000;
/** Members of a key server that starts again don't all come to its KMS at once. */
const RENEW_WITHIN = 30_000;
/** The same when settings name a KMS. */
const NAMED_WITHIN = 1_000;

/** What is known of who a peer is. off: nobody is asked about it. */
export type Verdict = 'off' | 'confirmed' | 'pinned' | 'waits';

export interface IdentitiesDeps {
  readonly id: Id;
  /** The key server where we are at home, which we ask. */
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
  /** Other key servers whose KMS the settings do not name: peers at home there are believed by the operator's signatures alone. */
  readonly unnamed: readonly Id[];
  readonly problem: string | undefined;
}

interface Refused {
  readonly digest: string;
  readonly error: PairwireError;
  readonly again: NodeJS.Timeout;
}

export class Identities {
  readonly #deps: IdentitiesDeps;
  readonly #random: () => number;
  /** By the key server where peers are at home. */
  readonly #questions = new Map<Id, PeerQuestions>();
  readonly #confirmed = new Map<Id, string>();
  readonly #refused = new Map<Id, Refused>();
  readonly #waiters = new Map<Id, Set<() => void>>();
  readonly #unnamed = new Set<Id>();
  #settings: Pick<Settings, 'verify' | 'kms'> = { verify: 'off' };
  #isRegistered = false;
  #own: IdentitiesStatus['own'] = 'not yet';
  #ownTimer: NodeJS.Timeout | undefined;
  #ownFailures = 0;
  #publishedAt = Number.NEGATIVE_INFINITY;
  #publishing = false;
  #ownProblem: string | undefined;
  /** Of whom the problem is that was told last. */
  #told: string | undefined;
  #stopped = false;

  constructor(deps: IdentitiesDeps) {
    this.#deps = deps;
    this.#random = deps.random ?? Math.random;
  }

  get status(): IdentitiesStatus {
    const wanted = [...this.#questions.values()]
      .flatMap((questions) => [...questions.wanted])
      .filter(([id]) => !this.#refused.has(id));
    const pinned = wanted.filter(([, { isPinned }]) => isPinned).length;
    const { verify } = this.#settings;
    return {
      mode: verify === 'verify' && this.#kms === undefined ? 'unnamed' : verify,
      own: this.#own,
      waiting: wanted.length - pinned,
      pinned,
      refused: this.#refused.size,
      unnamed: [...this.#unnamed].sort(),
      problem: this.#problem?.text,
    };
  }

  /** Goes by other settings of the operator. */
  useSettings(settings: Settings): void {
    const { verify, kms } = settings;
    const before = this.#settings;
    const ownBefore = this.#kms;
    this.#settings = { verify, kms };
    if (verify === before.verify && sameKmses(kms, before.kms)) return;
    this.#forget();
    this.#tellProblem();
    this.#deps.onMode();
    if (sameKey(ownBefore, this.#kms)) return;
    this.#own = 'not yet';
    if (this.#isRegistered) this.#publishIn(this.#random() * NAMED_WITHIN);
  }

  /** We are registered. @param sealed the key server has our document sealed: only the seal is to be renewed */
  registered(sealed: boolean): void {
    this.#isRegistered = true;
    this.#ownFailures = 0;
    if (sealed && this.#own === 'not yet') this.#own = 'kept';
    if (!sealed) this.#publishIn(0);
    else if (performance.now() - this.#publishedAt > RENEW_AFTER) {
      this.#publishIn(this.#random() * RENEW_WITHIN);
    }
    for (const questions of this.#questions.values()) questions.begin();
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
    const { home: own, pins } = this.#deps;
    const { home } = grant;
    if (this.#settings.verify === 'off' || id === this.#deps.id) return 'off';
    const kms = kmsOf(this.#settings, home);
    if (kms === undefined) {
      if (home !== own) this.#unnamed.add(home);
      return 'off';
    }
    const text = digest.toString('hex');
    if (pins.isConfirmed(id) || this.#confirmed.get(id) === text) return 'confirmed';
    const refused = this.#refused.get(id);
    if (refused?.digest === text) throw refused.error;
    const isPinned = pins.isPinned(id);
    if (!isThere) return isPinned ? 'pinned' : 'waits';
    if (refused !== undefined) this.#drop(id);
    this.#questionsAbout(home, kms).want(id, { digest: text, isPinned });
    return isPinned ? 'pinned' : 'waits';
  }

  /** Settles when it is known who a peer is, or after so long. */
  async settled(id: Id, timeoutMs: number): Promise<void> {
    const isWanted = [...this.#questions.values()].some(({ wanted }) => wanted.has(id));
    if (!isWanted || this.#refused.has(id)) return;
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

  #questionsAbout(home: Id, key: Uint8Array): PeerQuestions {
    const known = this.#questions.get(home);
    if (known !== undefined) return known;
    const { channel, server } = this.#deps;
    const questions = new PeerQuestions({
      ...{ channel, server, random: this.#random },
      kms: { key, home: home === this.#deps.home ? undefined : home },
      mayAsk: () => this.#isRegistered && !this.#stopped,
      onSaid: (id, wanted, said) => this.#take(home, id, wanted, said),
      onProblem: () => this.#tellProblem(),
    });
    this.#questions.set(home, questions);
    return questions;
  }

  #take(home: Id, id: Id, wanted: Wanted, said: Said): void {
    const good =
      said.is === 'document' && identityDigest(said.document).toString('hex') === wanted.digest;
    this.#drop(id);
    if (good) {
      this.#confirmed.set(id, wanted.digest);
      this.#deps.onConfirmed(id);
    } else {
      const what =
        said.is === 'document'
          ? 'the KMS remembers another identity document'
          : said.is === 'other'
            ? 'the KMS remembers another identity document than the sealed one'
            : 'the sealed identity document is not what the KMS has sealed';
      const error = new PairwireError('IDENTITY_REFUSED', `${id}: ${what}`, {
        where: id,
        hint: `who can write to the database, or the key server ${home} itself, may pretend to be this member: ask the operator`,
      });
      const again = setTimeout(() => this.#questions.get(home)?.want(id, wanted), REFUSED_AGAIN);
      again.unref();
      this.#refused.set(id, { digest: wanted.digest, error, again });
      this.#deps.onRefused(id, error);
    }
    for (const done of this.#waiters.get(id) ?? []) done();
  }

  #drop(id: Id): void {
    clearTimeout(this.#refused.get(id)?.again);
    this.#refused.delete(id);
    for (const questions of this.#questions.values()) questions.drop(id);
  }

  #forget(): void {
    for (const { again } of this.#refused.values()) clearTimeout(again);
    this.#refused.clear();
    for (const questions of this.#questions.values()) questions.stop();
    this.#questions.clear();
    this.#confirmed.clear();
    this.#unnamed.clear();
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
      const named = { key: kms, home: undefined };
      const request = { t: 'identity.seal', ticket, membership } as const;
      const answer = await askKms(server, this.#deps.channel, named, request);
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
      this.#ownProblem = undefined;
    } catch (thrown) {
      this.#ownFailures += 1;
      this.#ownProblem = `our identity document is not with the KMS: ${messageOf(thrown)}`;
      if (this.#isRegistered) this.#publishIn(backoff(this.#ownFailures, this.#random));
    } finally {
      this.#publishing = false;
    }
    this.#tellProblem();
  }

  // ------------------------------------------------------------------ both

  /** Our own key server's KMS. */
  get #kms(): Uint8Array | undefined {
    return kmsOf(this.#settings, this.#deps.home);
  }

  #tellProblem(): void {
    const problem = this.#problem;
    if (problem?.whose === this.#told || this.#stopped) return;
    this.#told = problem?.whose;
    this.#deps.onProblem(problem?.text);
  }

  /** Where nobody is asked, it is none that our own document is not there yet. */
  get #problem(): { readonly whose: string; readonly text: string } | undefined {
    if (this.#settings.verify === 'off') return undefined;
    if (this.#ownProblem !== undefined) return { whose: 'own', text: this.#ownProblem };
    const peers = [...this.#questions].flatMap(([home, { problem }]) =>
      problem === undefined ? [] : [{ home, problem }],
    );
    if (peers.length === 0) return undefined;
    const homes = peers.map(({ home }) => home).sort();
    return {
      whose: `peers ${homes.join(' ')}`,
      text: peers.map(({ problem }) => problem).join('; '),
    };
  }
}

function sameKey(one: Uint8Array | undefined, other: Uint8Array | undefined): boolean {
  if (one === undefined || other === undefined) return one === other;
  return Buffer.compare(one, other) === 0;
}

function sameKmses(one: Settings['kms'] = [], other: Settings['kms'] = []): boolean {
  return (
    one.length === other.length &&
    one.every(({ server, key }) => sameKey(kmsOf({ kms: other }, server), key))
  );
}
