/**
 * Pushes: what changed, told to whom it concerns, in batches. They are hints: whoever misses
 * one has the same by its next sync, so they may be late, doubled or dropped.
 */
import type { Id } from '../../src/protocol/ids.js';
import { type Change, MAX_ROWS } from '../../src/protocol/messages.js';
import { peerRecordSize } from '../registry/peer-record.js';
import type { Services } from '../services.js';
import type { Member, PairKey } from '../storage/store.js';
import { BATCH_BYTES, memberChange } from './collect.js';

/** Changes of so many milliseconds go out together. */
const FLUSH_MS = 20;
const MAX_INTRODUCED = 4_096;

/** A session as far as pushes go. */
export interface HintTarget {
  /** It has asked for its state, so it knows what came before. */
  readonly synced: boolean;
  /** Who was introduced to it, and as of which change. */
  readonly introduced: Map<Id, number>;
  push(message: { readonly t: string; readonly [key: string]: unknown }, key?: string): void;
}

/** The sessions there are, by member. */
export interface HintTargets {
  get(member: string): HintTarget | undefined;
  all(): Iterable<readonly [string, HintTarget]>;
}

/** Collects what changed and pushes it. */
export class Hints {
  readonly #services: Services;
  readonly #targets: HintTargets;
  readonly #members = new Set<Id>();
  #settings = false;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(services: Services, targets: HintTargets) {
    this.#services = services;
    this.#targets = targets;
  }

  memberChanged(id: Id): void {
    this.#members.add(id);
    this.#schedule();
  }

  settingsChanged(): void {
    this.#settings = true;
    this.#schedule();
  }

  /**
   * Tells `to` at once of a member that is about to send to it, and of their key, so that its
   * frames don't come as a surprise (C10). Nothing is sent twice.
   */
  introduce(to: Id, about: Member, pair: PairKey): void {
    const target = this.#targets.get(to);
    if (target === undefined) return;
    const seq = Math.max(about.changed, pair.changed);
    if ((target.introduced.get(about.id) ?? 0) >= seq) return;
    if (target.introduced.size >= MAX_INTRODUCED) target.introduced.clear();
    target.introduced.set(about.id, seq);
    this.#push(target, [
      memberChange(about, about.changed),
      { kind: 'pair', seq: pair.changed, peer: about.id, key: pair.key, pwId: pair.pwId },
    ]);
    this.#services.metrics.introductions.inc();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #schedule(): void {
    if (this.#closed) return;
    this.#timer ??= setTimeout(() => {
      this.#flush()
        .catch((err: unknown) => this.#services.log.warn({ err }, 'changes were not pushed'))
        .finally(() => {
          this.#timer = undefined;
          if (this.#members.size > 0 || this.#settings) this.#schedule();
        });
    }, FLUSH_MS);
  }

  async #flush(): Promise<void> {
    const { store, settings } = this.#services;
    const ids = [...this.#members];
    this.#members.clear();
    const common: Sized[] = [];
    if (this.#settings) {
      this.#settings = false;
      const { record, changed } = settings.inForce;
      common.push({ change: { kind: 'settings', seq: changed, settings: record }, bytes: 1_024 });
    }
    const { talkers } = await store.counters();
    const all = settings.showsAll(talkers);
    const own = new Map<string, Sized[]>();
    for (const id of ids) {
      const member = await store.member(id);
      if (member === undefined) continue;
      const item = {
        change: memberChange(member, member.changed),
        bytes: peerRecordSize(member),
        about: id,
      };
      if (all) {
        common.push(item);
        continue;
      }
      for (const peer of await store.peersOf(id)) {
        if (this.#targets.get(peer) === undefined) continue;
        const list = own.get(peer) ?? [];
        list.push(item);
        own.set(peer, list);
      }
    }
    if (this.#closed) return;
    for (const [id, target] of this.#targets.all()) {
      if (!target.synced) continue;
      const items = [...common, ...(own.get(id) ?? [])].filter(({ about }) => about !== id);
      for (const batch of batches(items)) this.#push(target, batch);
    }
  }

  #push(target: HintTarget, changes: readonly Change[]): void {
    if (changes.length === 0) return;
    // A single record that waits is made superfluous by the next version of it.
    const [first] = changes;
    const key =
      changes.length === 1 && first?.kind === 'member' ? `member ${first.member.id}` : undefined;
    target.push({ t: 'changes', epoch: this.#services.store.meta.epoch, changes }, key);
    this.#services.metrics.hints.inc(changes.length);
  }
}

interface Sized {
  readonly change: Change;
  readonly bytes: number;
  readonly about?: Id;
}

/** Cuts into messages. */
function* batches(items: readonly Sized[]): Iterable<readonly Change[]> {
  let batch: Change[] = [];
  let bytes = 0;
  for (const item of items) {
    if (batch.length === MAX_ROWS || (batch.length > 0 && bytes + item.bytes > BATCH_BYTES)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(item.change);
    bytes += item.bytes;
  }
  if (batch.length > 0) yield batch;
}
