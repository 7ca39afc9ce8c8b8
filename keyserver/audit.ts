/**
 * The audit log: who did what, and what was refused. Append-only; each entry carries an HMAC
 * over itself and the entry before, under a key of this server, so that an edited or removed
 * entry shows (M12). The newest entry, the head, is also noted in a file beside the database, signed,
 * and told to the members, every 10 s and every 1,000 entries: so a cut tail shows, and whoever has the files and both keys
 * can rewrite nothing that members have seen the head of (audit-intake.ts).
 *
 * Before a head is noted the one before it is looked for: a log that has lost it says so itself.
 *
 * Refusals cost a peer nothing, so they must cost the log little: the first of a member and
 * kind is written at once, its repeats within a minute are one entry with their count, and
 * a member has a quota of entries.
 */
import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { z } from 'zod';
import {
  openStoredHead,
  type StoredHead,
  signAuditHead,
  signedOf,
  storedHead,
  storedHeadSchema,
} from '../src/protocol/audit-head.js';
import { LABEL } from '../src/protocol/constants.js';
import { fields } from '../src/protocol/fields.js';
import type { Id } from '../src/protocol/ids.js';
import type { Signed } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import { writeFileAtomic } from '../src/runtime/files.js';
import type { Logger } from '../src/runtime/log.js';
import { type AuditWitness, type AuditWitnesses, OWN_WITNESS } from './audit-witnesses.js';
import type { Refusal } from './refusal.js';
import type { AuditEntry, Store, StoreReads, StoreTransaction } from './storage/store.js';

/** Implementation constants. */
const REPEAT_WINDOW_MS = 60_000;
const SWEEP_MS = 5_000;
const HEAD_EVERY_MS = 10_000;
const HEAD_EVERY_ENTRIES = 1_000;
/** Entries about refusals that one member may cause in an hour. */
const QUOTA = 120;
const QUOTA_WINDOW_MS = 3_600_000;
const MAX_WINDOWS = 10_000;
const PAGE = 1_000;

/** What is before the first entry. */
export const GENESIS = Buffer.alloc(32);

/** An entry before it has its place in the chain. */
export interface AuditEvent {
  readonly actor: string;
  readonly action: string;
  readonly outcome: 'done' | 'refused';
  readonly detail?: Readonly<Record<string, string | number | boolean | readonly string[]>>;
  readonly count?: number;
}

interface RepeatWindow {
  readonly actor: string;
  readonly action: string;
  readonly until: number;
  repeats: number;
}

export interface AuditOptions {
  readonly store: Store;
  readonly server: Id;
  readonly key: Buffer;
  readonly now: () => number;
  readonly log: Logger;
  /** Where the newest entry is noted. */
  readonly headFile?: string;
  /** Signs heads; without it they are only noted. */
  readonly signKey?: KeyObject;
  /** Where it is remembered that the log has lost entries. */
  readonly witnesses?: AuditWitnesses;
  readonly headEveryMs?: number | undefined;
  readonly onDropped?: () => void;
  /** A head was signed. */
  readonly onHead?: () => void;
}

/** Writes the chain of one server. */
export class AuditLog {
  readonly #options: AuditOptions;
  readonly #windows = new Map<string, RepeatWindow>();
  readonly #quota = new Map<string, { until: number; left: number }>();
  readonly #writing = new Set<Promise<void>>();
  readonly #sweeper: NodeJS.Timeout;
  readonly #header: NodeJS.Timeout;
  /** The head before: read from its file the first time. */
  #noted: NotedHead | undefined;
  #isRead = false;
  #noting: Promise<void> = Promise.resolve();
  #isDue = false;
  #head: Signed | undefined;

  constructor(options: AuditOptions) {
    this.#options = options;
    this.#sweeper = setInterval(() => this.#sweep(false), SWEEP_MS);
    this.#sweeper.unref();
    // Counted by itself: the clock that entries are stamped with may be set back.
    this.#header = setInterval(() => void this.noteHead(), options.headEveryMs ?? HEAD_EVERY_MS);
    this.#header.unref();
  }

  /** The newest signed head; undefined before the first one. */
  get head(): Signed | undefined {
    return this.#head;
  }

  /** Number of the newest entry that was noted. */
  get headSeq(): number {
    return this.#noted?.seq ?? 0;
  }

  /** Appends an entry as part of a transaction: it is there exactly if what it tells of is. */
  async append(tx: StoreTransaction, event: AuditEvent): Promise<void> {
    const { server, key, now } = this.#options;
    const last = await tx.lastAudit(server);
    const entry = {
      server,
      seq: (last?.seq ?? 0) + 1,
      at: now(),
      actor: event.actor,
      action: event.action,
      outcome: event.outcome,
      detail: JSON.stringify(event.detail ?? {}),
      count: event.count ?? 1,
    };
    await tx.appendAudit({ ...entry, mac: entryMac(key, last?.mac ?? GENESIS, entry) });
    if (entry.seq - this.headSeq >= HEAD_EVERY_ENTRIES && this.#isRead && !this.#isDue) {
      this.#isDue = true;
      setImmediate(() => void this.noteHead());
    }
  }

  /** Notes and signs the newest entry, if there is a new one. Never throws. */
  noteHead(): Promise<void> {
    this.#noting = this.#noting.then(async () => {
      this.#isDue = false;
      try {
        await this.#note();
      } catch (err) {
        this.#options.log.error({ err }, 'the head of the audit log could not be noted');
      }
    });
    return this.#noting;
  }

  /**
   * Somebody has seen an entry that the log does not have. Said once of each witness; service goes on, because the
   * word of one member, and a backup that was put back, must not stop a subnet.
   */
  contradicted(witness: AuditWitness, why: string): void {
    const { witnesses, log, server } = this.#options;
    let added: 'new' | 'higher' | undefined = 'new';
    try {
      added = witnesses === undefined ? 'new' : witnesses.add(witness);
    } catch (err) {
      log.error(
        { err },
        'it could not be noted who has seen entries that the audit log does not have',
      );
    }
    const { witness: actor, seq, record, at } = witness;
    // For the other machines of the database.
    const share = async (tx: StoreTransaction): Promise<void> => {
      if (record === undefined || witnesses === undefined) return;
      await tx.putAuditWitness(server, { witness: actor, record: signedOf(record), at });
    };
    if (added === 'higher') this.#later(share);
    if (added !== 'new') return;
    log.error(
      { witness: actor === OWN_WITNESS ? 'the noted head' : actor, seq, why },
      'the audit log was cut or changed, or the database was put back: see pairwire audit verify',
    );
    const detail = { seq, why };
    this.#write({ actor, action: 'audit_contradicted', outcome: 'done', detail }, share);
  }

  /**
   * Notes a refusal. Never throws and never makes the asker wait.
   * @param source whom it is about, where one actor speaks of many: each has a minute of its own
   */
  refused(actor: string, refusal: Refusal, source = ''): void {
    const now = this.#options.now();
    const name = `${actor} ${refusal.kind} ${source}`;
    const open = this.#windows.get(name);
    if (open !== undefined && now < open.until) {
      open.repeats += 1;
      return;
    }
    if (open !== undefined) this.#close(name, open);
    if (this.#windows.size >= MAX_WINDOWS || !this.#takeQuota(actor, now)) {
      this.#options.onDropped?.();
      return;
    }
    this.#windows.set(name, {
      actor,
      action: refusal.kind,
      until: now + REPEAT_WINDOW_MS,
      repeats: 0,
    });
    this.#write({ actor, action: refusal.kind, outcome: 'refused', detail: refusal.facts });
  }

  /** Appends an entry on its own. Never throws and makes nobody wait. */
  note(event: AuditEvent): void {
    this.#write(event);
  }

  /** Writes what is still to be written. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    clearInterval(this.#header);
    this.#sweep(true);
    await Promise.all(this.#writing);
    await this.noteHead();
    // What that found missing.
    await Promise.all(this.#writing);
  }

  #write(event: AuditEvent, beside?: (tx: StoreTransaction) => Promise<void>): void {
    this.#later(async (tx) => {
      await this.append(tx, event);
      await beside?.(tx);
    });
  }

  #later(work: (tx: StoreTransaction) => Promise<void>): void {
    const { store, log } = this.#options;
    const written = store
      .write(work)
      .catch((err: unknown) => log.error({ err }, 'an audit entry could not be written'))
      .finally(() => this.#writing.delete(written));
    this.#writing.add(written);
  }

  #close(name: string, window: RepeatWindow): void {
    this.#windows.delete(name);
    if (window.repeats === 0) return;
    this.#write({
      actor: window.actor,
      action: window.action,
      outcome: 'refused',
      detail: { repeated: true },
      count: window.repeats,
    });
  }

  #takeQuota(actor: string, now: number): boolean {
    let quota = this.#quota.get(actor);
    if (quota === undefined || quota.until <= now) {
      quota = { until: now + QUOTA_WINDOW_MS, left: QUOTA };
      this.#quota.set(actor, quota);
    }
    if (quota.left === 0) return false;
    quota.left -= 1;
    return true;
  }

  #sweep(all: boolean): void {
    const now = this.#options.now();
    for (const [name, window] of [...this.#windows]) {
      if (all || window.until <= now) this.#close(name, window);
    }
    for (const [actor, quota] of this.#quota) if (quota.until <= now) this.#quota.delete(actor);
  }

  async #note(): Promise<void> {
    const { headFile, store, server, signKey, onHead } = this.#options;
    if (headFile === undefined && signKey === undefined) return;
    const before = this.#before();
    if (before !== undefined) await this.#lookFor(before);
    const last = await store.lastAudit(server);
    if (last === undefined) return;
    const mac = last.mac.toString('base64url');
    const isKnown = before?.seq === last.seq && before.mac === mac;
    if (isKnown && (signKey === undefined || this.#head !== undefined)) return;
    const signed = signKey === undefined ? undefined : this.#sign(last, signKey);
    const head: NotedHead = {
      ...{ server, seq: last.seq, mac },
      ...(signed === undefined ? {} : { signed: storedHead(signed) }),
    };
    if (headFile !== undefined) writeFileAtomic(headFile, `${JSON.stringify(head)}\n`);
    this.#noted = head;
    this.#head = signed;
    if (signed !== undefined) onHead?.();
  }

  /**
   * A head that ends with an entry of the log; undefined without a key to sign it.
   * @param confirmed when the operator confirmed that the database was put back, if that is now
   */
  headAt(entry: AuditEntry, confirmed?: number): Signed | undefined {
    const { signKey } = this.#options;
    return signKey === undefined ? undefined : this.#sign(entry, signKey, confirmed);
  }

  #sign(
    { server, seq, mac }: AuditEntry,
    key: KeyObject,
    confirmed: number | undefined = this.#options.witnesses?.settledAt,
  ): Signed {
    const { store, now } = this.#options;
    const { subnet } = store.meta;
    return signAuditHead(
      {
        ...{ subnet, server, seq, mac, time: now() },
        ...(confirmed === undefined ? {} : { confirmed }),
      },
      key,
    );
  }

  #before(): NotedHead | undefined {
    const { headFile, server, log } = this.#options;
    if (this.#isRead || headFile === undefined) {
      this.#isRead = true;
      return this.#noted;
    }
    this.#isRead = true;
    try {
      const noted = readAuditHead(headFile);
      if (noted === undefined || noted.server === server) this.#noted = noted;
      else
        log.error({ file: headFile, server: noted.server }, 'the noted head is of another server');
    } catch (err) {
      log.error({ err }, 'what was noted of the audit log before this start is lost');
    }
    return this.#noted;
  }

  /** @returns undefined for what is no head */
  #signedAt(stored: StoredHead): number | undefined {
    try {
      return openStoredHead(this.#options.store.meta.subnet, stored).head.time;
    } catch (thrown) {
      if (thrown instanceof PairwireError && thrown.code.startsWith('RECORD_')) return undefined;
      throw thrown;
    }
  }

  /** The head before must still be in the log. */
  async #lookFor({ seq, mac, signed }: NotedHead): Promise<void> {
    const { store, server, now, witnesses } = this.#options;
    const why = await whyNotInLog(store, server, seq, Buffer.from(mac, 'base64url'));
    if (why === undefined) return;
    // Noted by this machine before the operator confirmed a restore at another one.
    const signedAt = signed === undefined ? undefined : this.#signedAt(signed);
    if (signedAt !== undefined && signedAt <= (witnesses?.settledAt ?? -1)) {
      this.#noted = undefined;
      return;
    }
    const record = signed === undefined ? {} : { record: signed };
    this.contradicted({ witness: OWN_WITNESS, seq, mac, at: now(), ...record }, why);
    // From here on what there is is looked after.
    this.#noted = undefined;
  }
}

/** Why an entry that was seen is not in the log; undefined if it is. */
export async function whyNotInLog(
  store: StoreReads,
  server: Id,
  seq: number,
  mac: Uint8Array,
): Promise<string | undefined> {
  const [entry] = await store.listAudit(server, seq - 1, 1);
  if (entry?.seq !== seq) return `there is no entry ${seq}`;
  return Buffer.compare(entry.mac, mac) === 0 ? undefined : `entry ${seq} is another one`;
}

const headSchema = z.strictObject({
  server: z.string(),
  seq: z.int().positive(),
  mac: z.string(),
  signed: storedHeadSchema.optional(),
});
/** The newest entry as noted outside the database. */
export type NotedHead = z.infer<typeof headSchema>;

/** Reads a noted head; undefined if none was ever noted. @throws PairwireError FILE_UNREADABLE */
export function readAuditHead(path: string): NotedHead | undefined {
  if (!existsSync(path)) return undefined;
  try {
    return headSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', 'the noted head of the audit log is damaged', {
      where: path,
      cause,
    });
  }
}

/** What a check of the chain found. */
export interface AuditCheck {
  readonly entries: number;
  /** The first entry that does not fit, undefined if all do. `witness`: who has seen another one there, if somebody says so. */
  readonly broken:
    | { readonly seq: number; readonly reason: string; readonly witness?: string }
    | undefined;
}

/** An entry that was seen. */
export type SeenEntry = Pick<AuditWitness, 'witness' | 'seq' | 'mac'>;

/**
 * Checks every entry of a server's chain, that the noted head is part of it, and what others have seen.
 * @param seen by whom, and their entries
 */
export async function verifyAudit(
  store: StoreReads,
  server: Id,
  key: Buffer,
  head?: Pick<NotedHead, 'seq' | 'mac'>,
  seen: readonly SeenEntry[] = [],
): Promise<AuditCheck> {
  const noted = head === undefined ? [] : [{ ...head, witness: OWN_WITNESS }];
  const chain = new ChainCheck(key, [...noted, ...seen]);
  for (;;) {
    const page = await store.listAudit(server, chain.seq, PAGE);
    for (const entry of page) {
      const broken = chain.next(entry);
      if (broken !== undefined) return { entries: chain.seq, broken };
    }
    if (page.length < PAGE) break;
  }
  return { entries: chain.seq, broken: chain.end() };
}

/** Follows a chain, entry by entry. */
export class ChainCheck {
  readonly #key: Buffer;
  readonly #seen: SeenEntry[];
  #previous: Buffer;
  #seq: number;

  /** @param from the entry before the first one that is checked */
  constructor(
    key: Buffer,
    seen: readonly SeenEntry[],
    from: { readonly seq: number; readonly mac: Buffer } = { seq: 0, mac: GENESIS },
  ) {
    this.#key = key;
    this.#seen = seen.filter(({ seq }) => seq > from.seq).toSorted((a, b) => a.seq - b.seq);
    this.#previous = from.mac;
    this.#seq = from.seq;
  }

  /** Number of the last entry that was right. */
  get seq(): number {
    return this.#seq;
  }

  /** Its MAC. */
  get mac(): Buffer {
    return this.#previous;
  }

  /** @returns what is wrong with the next entry */
  next(entry: AuditEntry): AuditCheck['broken'] {
    const seq = this.#seq + 1;
    if (entry.seq !== seq) return { seq, reason: 'an entry is missing' };
    const expected = entryMac(this.#key, this.#previous, entry);
    if (entry.mac.length !== expected.length || !timingSafeEqual(entry.mac, expected)) {
      return { seq, reason: 'an entry or the one before it was changed' };
    }
    for (let first = this.#seen[0]; first?.seq === seq; first = this.#seen[0]) {
      this.#seen.shift();
      if (first.mac === entry.mac.toString('base64url')) continue;
      const { witness } = first;
      return witness === OWN_WITNESS
        ? { seq, reason: 'the noted head is another entry' }
        : { seq, reason: `${witness} has seen another entry there`, witness };
    }
    this.#seq = seq;
    this.#previous = entry.mac;
    return undefined;
  }

  /** @returns what is missing behind the last entry */
  end(): AuditCheck['broken'] {
    const [first] = this.#seen;
    if (first === undefined) return undefined;
    const { witness } = first;
    const seq = this.#seq + 1;
    return witness === OWN_WITNESS
      ? { seq, reason: `the log ends before its noted head, entry ${first.seq}` }
      : {
          seq,
          reason: `the log ends before entry ${first.seq}, which ${witness} has seen`,
          witness,
        };
  }
}

function entryMac(key: Buffer, previous: Buffer, entry: Omit<AuditEntry, 'mac'>): Buffer {
  const { server, seq, at, actor, action, outcome, detail, count } = entry;
  return createHmac('sha256', key)
    .update(fields(LABEL.audit, previous, server, seq, at, actor, action, outcome, detail, count))
    .digest();
}
