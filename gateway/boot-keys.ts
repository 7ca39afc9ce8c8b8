/**
 * Our boot keys in the data plane: which one is registered, and a fresh one on an interval, without
 * loss (docs/protocol.md 3.1).
 *
 *   make -> keys under it, for receiving -> register -> index, told once with all times:
 *           0 s    the data plane receives under both and sends with the old one
 *           3 s    it sends with the new one (to a peer that uses it already: at once)
 *           13 s   it forgets the old one, and with it everything sealed until then
 *
 * The times after the registration are the data plane's, so a control plane that dies leaves no half
 * a change: the next one finds the boot keys that there are and says the same again.
 */
import { PairwireError } from '../src/runtime/errors.js';
import type { OwnBoot, Registration } from './control/session.js';
import type { CommandPort } from './dataplane/client.js';
import type { AnswerTo } from './dataplane/messages.gen.js';

/** After a boot key is registered: until others are sent to with it. Peers are told in well under a second. */
export const USE_AFTER_MS = 3_000;
/** From then on: how long frames to, and from, the old one are opened. Peers forget its index after as long. */
export const OLD_BOOT_GRACE_MS = 10_000;
/** Give or take this part of the interval, so that members don't all renew at one moment. */
const JITTER = 0.1;
/** After a renewal that failed or has to wait. */
const RETRY_MS = 10_000;
/** Members that one message names. */
export const PEERS_NAMED = 10;

/** What the data plane held of our port when we came. */
type Held = AnswerTo<'attach'>['ports'][number];

/** What is wanted of the surroundings. */
export interface BootKeysDeps {
  /** Number of the port in the data plane. */
  readonly port: number;
  readonly dataPlane: CommandPort;
  /** Time in ms that only goes up. */
  readonly now: () => number;
  /** Installs all keys under this boot key and the older ones that are still there. */
  readonly install: (boot: number) => Promise<void>;
  /** Has the key server draw an index for it, now and after each reconnect; undefined: there is none. */
  readonly register: (boot: OwnBoot | undefined) => void;
  /** Whether the key server can be told of it now. */
  readonly connected: () => boolean;
  /** Peers that we hear and the key server does not reach: they could not be told of it. */
  readonly unreached: () => Promise<readonly string[]>;
  readonly onRenewed: (boot: number) => void;
  readonly onPostponed: (peers: readonly string[]) => void;
  readonly onFailed: (thrown: unknown) => void;
  readonly random?: () => number;
}

/** Our boot keys. */
export class BootKeys {
  readonly #deps: BootKeysDeps;
  #intervalMs = 0;
  #current: OwnBoot | undefined;
  #registered = false;
  /** Boot keys before it that the data plane still has, as far as it was not told to drop them. */
  #older: number[] = [];
  /** Since when the current one is there, or seen by us, and which one that is. */
  #since = { instance: '', boot: 0, at: 0, jitter: 0 };
  #notBefore = Number.NEGATIVE_INFINITY;
  #renewing = false;
  #renewals = 0;

  constructor(deps: BootKeysDeps) {
    this.#deps = deps;
  }

  get current(): OwnBoot | undefined {
    return this.#current;
  }

  /** Its age as far as this process knows: one that was there before us counts from when we came. */
  get ageMs(): number | undefined {
    return this.#current === undefined ? undefined : this.#deps.now() - this.#since.at;
  }

  /** How often a fresh one replaced another without loss. */
  get renewals(): number {
    return this.#renewals;
  }

  /** The age at which it is replaced; 0: never. */
  setInterval(seconds: number): void {
    this.#intervalMs = seconds * 1_000;
  }

  /** A data plane was found: go on with its boot key, or make the first. True if one was there. */
  async attached(instance: string, held: Held | undefined): Promise<boolean> {
    const { dataPlane, port } = this.#deps;
    const kept = held === undefined ? undefined : bootToKeep(held);
    const others = (held?.boots ?? []).map(({ boot }) => boot).filter((one) => one !== kept?.boot);
    const current = kept ?? (await dataPlane.request('boot.make', { port }));
    for (const boot of others.filter((one) => one > current.boot)) {
      await dataPlane.request('boot.drop', { port, boot, graceMs: 0 });
    }
    this.#older = others.filter((one) => one < current.boot);
    this.#become(current, instance);
    await this.#deps.install(current.boot);
    this.#deps.register(current);
    return kept !== undefined;
  }

  /** There is no data plane, or its keys are gone. */
  gone(): void {
    this.#current = undefined;
    this.#registered = false;
    this.#older = [];
    this.#deps.register(undefined);
  }

  /** The key server drew an index; said again after each reconnect. */
  async registered({ boot, index }: Registration): Promise<void> {
    const { dataPlane, port } = this.#deps;
    try {
      const afterMs = USE_AFTER_MS;
      await dataPlane.request('boot.index', { port, boot, index, afterMs });
    } catch (thrown) {
      // The key server lost what it knew of us (a restore) and drew another index.
      if (thrown instanceof PairwireError && thrown.code === 'DATAPLANE_REFUSED') {
        await this.#replaceAtOnce(boot);
      }
      throw thrown;
    }
    this.#registered = this.#current?.boot === boot;
    const graceMs = USE_AFTER_MS + OLD_BOOT_GRACE_MS;
    for (const old of this.#older.filter((one) => one < boot)) {
      await dataPlane.request('boot.drop', { port, boot: old, graceMs });
      this.#older = this.#older.filter((one) => one !== old);
    }
  }

  /** To be called every second or so: replaces the boot key if it is time, and possible. */
  async tick(): Promise<void> {
    const { now, unreached, onPostponed } = this.#deps;
    const age = this.ageMs;
    if (age === undefined || this.#intervalMs === 0 || now() < this.#notBefore) return;
    const due = Math.round(this.#intervalMs * this.#since.jitter);
    if (age < due || !this.#canRenew()) return;
    this.#notBefore = now() + RETRY_MS;
    // Who stays away on purpose must not keep us from forgetting.
    const patient = age < 2 * this.#intervalMs;
    const peers = patient ? await unreached() : [];
    if (peers.length > 0) onPostponed(peers);
    else await this.#renew();
  }

  /** Replaces it now. @throws PairwireError CONFLICT if that can't be */
  async renewNow(): Promise<number> {
    const age = this.ageMs;
    if (age === undefined || !this.#registered || !this.#deps.connected()) {
      throw new PairwireError(
        'CONFLICT',
        'there is no registered boot key to replace: data plane and key server have to be there',
      );
    }
    const over = USE_AFTER_MS + OLD_BOOT_GRACE_MS;
    if (this.#renewing || (this.#renewals > 0 && age < over)) {
      throw new PairwireError('CONFLICT', `the boot key is being replaced; wait ${over / 1_000} s`);
    }
    const peers = await this.#deps.unreached();
    if (peers.length > 0) {
      const some = peers.slice(0, PEERS_NAMED).join(', ');
      throw new PairwireError(
        'CONFLICT',
        `peers that are not connected to the key server could not be told of it: ${some}`,
      );
    }
    const made = await this.#renew();
    if (made === undefined) throw new PairwireError('CONFLICT', 'the boot key was not replaced');
    return made;
  }

  #canRenew(): boolean {
    return this.#registered && !this.#renewing && this.#deps.connected();
  }

  async #renew(): Promise<number | undefined> {
    const { dataPlane, port, install, register, onRenewed, onFailed } = this.#deps;
    const old = this.#current;
    if (old === undefined || this.#renewing) return undefined;
    this.#renewing = true;
    try {
      const made = await dataPlane.request('boot.make', { port });
      if (this.#current !== old) return undefined;
      this.#older.push(old.boot);
      this.#become(made, this.#since.instance);
      // Before anybody can know of it: from then on they send to it.
      await install(made.boot);
      if (this.#current?.boot !== made.boot) return undefined;
      register(made);
      this.#renewals += 1;
      onRenewed(made.boot);
      return made.boot;
    } catch (thrown) {
      onFailed(thrown);
      return undefined;
    } finally {
      this.#renewing = false;
    }
  }

  async #replaceAtOnce(old: number): Promise<void> {
    const { dataPlane, port, install, register } = this.#deps;
    const made = await dataPlane.request('boot.make', { port });
    const useless = [...this.#older, old];
    this.#older = [];
    this.#become(made, this.#since.instance);
    await install(made.boot);
    register(made);
    for (const boot of useless) await dataPlane.request('boot.drop', { port, boot, graceMs: 0 });
  }

  #become(boot: OwnBoot, instance: string): void {
    this.#current = boot;
    this.#registered = false;
    if (this.#since.instance === instance && this.#since.boot === boot.boot) return;
    const random = this.#deps.random ?? Math.random;
    const jitter = 1 - JITTER + 2 * JITTER * random();
    this.#since = { instance, boot: boot.boot, at: this.#deps.now(), jitter };
  }
}

/**
 * Of the boot keys in a data plane the newest. One without index may be known to the key server, and so
 * to peers, already; but only if everything was installed under it before, so one that lacks keys
 * which the one before it has was never registered.
 */
function bootToKeep({ boots, pairKeys }: Held): OwnBoot | undefined {
  const newest = boots.toSorted((a, b) => b.boot - a.boot);
  const has = new Set(pairKeys.map(({ boot, peer, pwId }) => `${boot} ${pwId} ${peer}`));
  return newest.find(({ boot, index }, at) => {
    const before = newest[at + 1];
    if (index !== 0 || before === undefined) return true;
    return pairKeys.every(
      (key) => key.boot !== before.boot || !key.send || has.has(`${boot} ${key.pwId} ${key.peer}`),
    );
  });
}
