/**
 * The audit log: who did what, and what was refused. Append-only; each entry carries an HMAC
 * over itself and the entry before, under a key of this server, so that an edited or removed
 * entry shows (M12). The newest entry is also noted in a file beside the database at least every 10 s,
 * so that a cut tail shows up to then; who has both files and the key rewrites everything.
 *
 * Refusals cost a peer nothing, so they must cost the log little: the first of a member and
 * kind is written at once, its repeats within a minute are one entry with their count, and
 * a member has a quota of entries.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { z } from 'zod';
import { LABEL } from '../src/protocol/constants.js';
import { fields } from '../src/protocol/fields.js';
import type { Id } from '../src/protocol/ids.js';
import { PairwireError } from '../src/runtime/errors.js';
import { writeFileAtomic } from '../src/runtime/files.js';
import type { Logger } from '../src/runtime/log.js';
import type { Refusal } from './refusal.js';
import type { AuditEntry, Store, StoreReads, StoreTransaction } from './storage/store.js';

/** Implementation constants. */
const REPEAT_WINDOW_MS = 60_000;
const SWEEP_MS = 5_000;
const HEAD_EVERY_MS = 10_000;
/** Entries about refusals that one member may cause in an hour. */
const QUOTA = 120;
const QUOTA_WINDOW_MS = 3_600_000;
const MAX_WINDOWS = 10_000;
const PAGE = 1_000;

/** What is before the first entry. */
const GENESIS = Buffer.alloc(32);

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
  readonly onDropped?: () => void;
}

/** Writes the chain of one server. */
export class AuditLog {
  readonly #options: AuditOptions;
  readonly #windows = new Map<string, RepeatWindow>();
  readonly #quota = new Map<string, { until: number; left: number }>();
  readonly #writing = new Set<Promise<void>>();
  readonly #sweeper: NodeJS.Timeout;
  #notedHead = -1;
  #notedAt = 0;

  constructor(options: AuditOptions) {
    this.#options = options;
    this.#sweeper = setInterval(() => void this.#sweep(false), SWEEP_MS);
    this.#sweeper.unref();
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

  /** Writes what is still to be written. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    await this.#sweep(true);
    await Promise.all(this.#writing);
    await this.#noteHead();
  }

  #write(event: AuditEvent): void {
    const { store, log } = this.#options;
    const written = store
      .write((tx) => this.append(tx, event))
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

  async #sweep(all: boolean): Promise<void> {
    const now = this.#options.now();
    for (const [name, window] of [...this.#windows]) {
      if (all || window.until <= now) this.#close(name, window);
    }
    for (const [actor, quota] of this.#quota) if (quota.until <= now) this.#quota.delete(actor);
    if (!all && now - this.#notedAt >= HEAD_EVERY_MS) {
      this.#notedAt = now;
      await this.#noteHead();
    }
  }

  async #noteHead(): Promise<void> {
    const { headFile, store, server, log } = this.#options;
    if (headFile === undefined) return;
    try {
      const last = await store.lastAudit(server);
      if (last === undefined || last.seq === this.#notedHead) return;
      const head: AuditHead = { server, seq: last.seq, mac: last.mac.toString('base64url') };
      writeFileAtomic(headFile, `${JSON.stringify(head)}\n`);
      this.#notedHead = last.seq;
    } catch (err) {
      log.error({ err }, 'the head of the audit log could not be noted');
    }
  }
}

const headSchema = z.strictObject({
  server: z.string(),
  seq: z.int().positive(),
  mac: z.string(),
});
/** The newest entry as noted outside the database. */
export type AuditHead = z.infer<typeof headSchema>;

/** Reads a noted head; undefined if none was ever noted. @throws PairwireError FILE_UNREADABLE */
export function readAuditHead(path: string): AuditHead | undefined {
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
  /** The first entry that does not fit, undefined if all do. */
  readonly broken: { readonly seq: number; readonly reason: string } | undefined;
}

/** Checks every entry of a server's chain, and that the noted head is part of it. */
export async function verifyAudit(
  store: StoreReads,
  server: Id,
  key: Buffer,
  head?: AuditHead,
): Promise<AuditCheck> {
  let previous: Buffer = GENESIS;
  let seq = 0;
  let headSeen = head === undefined;
  for (;;) {
    const page = await store.listAudit(server, seq, PAGE);
    for (const entry of page) {
      seq += 1;
      if (entry.seq !== seq) {
        return { entries: seq - 1, broken: { seq, reason: 'an entry is missing' } };
      }
      const expected = entryMac(key, previous, entry);
      if (entry.mac.length !== expected.length || !timingSafeEqual(entry.mac, expected)) {
        const reason = 'an entry or the one before it was changed';
        return { entries: seq - 1, broken: { seq, reason } };
      }
      if (head !== undefined && head.seq === seq) {
        if (head.mac !== entry.mac.toString('base64url')) {
          return { entries: seq, broken: { seq, reason: 'the noted head is another entry' } };
        }
        headSeen = true;
      }
      previous = entry.mac;
    }
    if (page.length < PAGE) break;
  }
  if (!headSeen) {
    const reason = `the log ends before its noted head, entry ${head?.seq ?? 0}`;
    return { entries: seq, broken: { seq: seq + 1, reason } };
  }
  return { entries: seq, broken: undefined };
}

function entryMac(key: Buffer, previous: Buffer, entry: Omit<AuditEntry, 'mac'>): Buffer {
  const { server, seq, at, actor, action, outcome, detail, count } = entry;
  return createHmac('sha256', key)
    .update(fields(LABEL.audit, previous, server, seq, at, actor, action, outcome, detail, count))
    .digest();
}
