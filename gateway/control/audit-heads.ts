/**
 * What this gateway knows of its key server's audit log: the highest head that the server signed (docs/protocol.md
 * section 5). A log only grows, so a server that tells a lower number later on, or another entry for a number,
 * has lost or changed entries: an alarm, which stays on disk with both heads. Traffic never hangs on it.
 *
 * Pushes may be overtaken by answers, so a push with a lower number is no more than a reason to ask; an answer is compared
 * with what was known before the question. Heads of other servers, cascaded ones too, are not ours to watch.
 */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import {
  type AuditHead,
  openAuditHead,
  openStoredHead,
  storedHead,
  storedHeadSchema,
} from '../../src/protocol/audit-head.js';
import { type Id, idSchema } from '../../src/protocol/ids.js';
import type { Signed } from '../../src/protocol/signed.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readSecretFile, writeFileAtomic } from '../../src/runtime/files.js';

/** The file is written at most so often, ms. */
const WRITE_EVERY_MS = 60_000;
/** Servers that are remembered: where this member is, and was, at home. */
const MAX_AUDIT_SERVERS = 16;

/** cut: fewer entries than before; changed: another entry for a number; key: signed by another key than before. */
const ALARMS = ['cut', 'changed', 'key'] as const;
export type AuditAlarmKind = (typeof ALARMS)[number];

const serverSchema = z.strictObject({
  /** Of the server whose heads these are. The public key is in them. */
  head: storedHeadSchema,
  alarm: z
    .strictObject({
      kind: z.enum(ALARMS),
      /** What we had, and what the server told then. */
      ours: storedHeadSchema,
      told: storedHeadSchema,
    })
    .optional(),
});

const fileSchema = z.strictObject({
  version: z.literal(1),
  servers: z.array(z.tuple([idSchema, serverSchema])).max(MAX_AUDIT_SERVERS),
});

interface Known {
  readonly record: Signed;
  readonly head: AuditHead;
}

/** Two heads that can't both be of one log that only grows. */
export interface AuditAlarm {
  readonly kind: AuditAlarmKind;
  readonly ours: Known;
  readonly told: Known;
}

interface Watched {
  known: Known;
  alarm: AuditAlarm | undefined;
}

export interface AuditHeadsOptions {
  /** undefined keeps them in memory */
  readonly path: string | undefined;
  readonly subnet: Id;
  /** The server where our id is at home. */
  readonly server: Id;
  readonly onAlarm?: (alarm: AuditAlarm) => void;
  /** The operator has confirmed that the database was put back, which explains a lower number. */
  readonly onConfirmed?: (head: AuditHead) => void;
  /** The file could not be read, or not be written. */
  readonly onFileError?: (thrown: unknown) => void;
  readonly writeEveryMs?: number;
}

/** Watches the audit log of one key server. */
export class AuditHeads {
  readonly #options: AuditHeadsOptions;
  readonly #servers = new Map<Id, Watched>();
  #timer: NodeJS.Timeout | undefined;
  #writtenAt = Number.NEGATIVE_INFINITY;
  #isDirty = false;

  constructor(options: AuditHeadsOptions) {
    this.#options = options;
    const { path } = options;
    if (path === undefined || !existsSync(path)) return;
    try {
      this.#read(path);
    } catch (thrown) {
      options.onFileError?.(thrown);
    }
  }

  /** The highest head of our server; undefined before the first one. */
  get head(): AuditHead | undefined {
    return this.#own?.known.head;
  }

  /** What is wrong with our server's log. */
  get alarm(): AuditAlarm | undefined {
    return this.#own?.alarm;
  }

  /** What the server is shown when we register: the head that it contradicts, else the highest one. */
  get evidence(): Signed | undefined {
    const own = this.#own;
    return (own?.alarm?.ours ?? own?.known)?.record;
  }

  /**
   * Takes a head that the server told.
   * @param floor number of the head that was known before the server was asked; undefined for a push
   * @returns false for a push that can't be judged: the server should be asked
   * @throws PairwireError RECORD_SIGNATURE, RECORD_MALFORMED, RECORD_MISMATCH for what is no head of our server
   */
  take(record: Signed, floor: number | undefined): boolean {
    const { subnet, server } = this.#options;
    if (isSame(record, this.#own?.known.record)) return true;
    const told = { record, head: openAuditHead(subnet, record) };
    if (told.head.server !== server) {
      throw new PairwireError('RECORD_MISMATCH', 'the head of an audit log is of another server', {
        where: told.head.server,
      });
    }
    const own = this.#own;
    if (own === undefined) {
      this.#keep({ known: told, alarm: undefined });
      return true;
    }
    const { head } = own.known;
    if (!Buffer.from(head.sign).equals(told.head.sign)) {
      this.#raise(own, 'key', told);
      return true;
    }
    this.#settle(own, told.head);
    if (told.head.seq > head.seq) {
      own.known = told;
      this.#touch();
      return true;
    }
    if (told.head.seq === head.seq) {
      if (Buffer.from(told.head.mac).equals(head.mac)) return true;
      this.#replace(own, 'changed', told);
      return true;
    }
    if (isExplained(head, told.head)) {
      own.known = told;
      this.#touch();
      return true;
    }
    if (floor === undefined) return false;
    // A late answer: what we know came after the question.
    if (told.head.seq >= floor) return true;
    this.#replace(own, 'cut', told);
    return true;
  }

  /** Writes what is not on disk yet; what fails is told to `onFileError`. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const { path, onFileError } = this.#options;
    if (!this.#isDirty || path === undefined) return;
    this.#writtenAt = performance.now();
    const servers = [...this.#servers].map(([id, { known, alarm }]) => {
      const stored = {
        head: storedHead(known.record),
        ...(alarm === undefined ? {} : { alarm: storedAlarm(alarm) }),
      };
      return [id, stored] satisfies z.input<typeof fileSchema>['servers'][number];
    });
    try {
      writeFileAtomic(path, `${JSON.stringify({ version: 1, servers }, undefined, 1)}\n`);
      this.#isDirty = false;
    } catch (thrown) {
      onFileError?.(thrown);
    }
  }

  get #own(): Watched | undefined {
    return this.#servers.get(this.#options.server);
  }

  /** A new start of the log: what contradicts it is told once and kept, and what follows is compared with it. */
  #replace(own: Watched, kind: AuditAlarmKind, told: Known): void {
    if (isExplained(own.known.head, told.head)) own.known = told;
    else {
      this.#raise(own, kind, told);
      own.known = told;
    }
    this.#touch();
  }

  /** The first alarm stays until it is settled: its head is the highest of the log that was lost. */
  #raise(own: Watched, kind: AuditAlarmKind, told: Known): void {
    if (own.alarm !== undefined) return;
    own.alarm = { kind, ours: own.known, told };
    this.#touch();
    this.#options.onAlarm?.(own.alarm);
  }

  /** Whether the operator has confirmed what an alarm is about. A new key can't speak for itself. */
  #settle(own: Watched, told: AuditHead): void {
    const { alarm } = own;
    if (alarm === undefined || alarm.kind === 'key' || !isExplained(alarm.ours.head, told)) return;
    own.alarm = undefined;
    this.#touch();
    this.#options.onConfirmed?.(told);
  }

  #keep(watched: Watched): void {
    const { server } = this.#options;
    for (const id of this.#servers.keys()) {
      if (this.#servers.size < MAX_AUDIT_SERVERS) break;
      this.#servers.delete(id);
    }
    this.#servers.set(server, watched);
    this.#touch();
  }

  #touch(): void {
    this.#isDirty = true;
    const { path, writeEveryMs = WRITE_EVERY_MS } = this.#options;
    if (path === undefined || this.#timer !== undefined) return;
    const wait = Math.max(0, this.#writtenAt + writeEveryMs - performance.now());
    this.#timer = setTimeout(() => this.flush(), wait);
    this.#timer.unref();
  }

  #read(path: string): void {
    const { subnet } = this.#options;
    try {
      const { servers } = fileSchema.parse(JSON.parse(readSecretFile(path).toString('utf8')));
      for (const [id, { head, alarm }] of servers) {
        const known = openStoredHead(subnet, head);
        this.#servers.set(id, {
          known,
          alarm:
            alarm === undefined
              ? undefined
              : {
                  kind: alarm.kind,
                  ours: openStoredHead(subnet, alarm.ours),
                  told: openStoredHead(subnet, alarm.told),
                },
        });
      }
    } catch (cause) {
      this.#servers.clear();
      if (cause instanceof PairwireError && cause.code === 'FILE_MODE') throw cause;
      throw new PairwireError('FILE_UNREADABLE', 'audit-heads.json is damaged', {
        where: path,
        hint: 'restore it from a backup; without it, the audit log of the key server is watched from now on only',
        cause,
      });
    }
  }
}

/** What an alarm says, for log and status. */
export function alarmText({ kind, ours, told }: AuditAlarm): string {
  const { server, seq } = ours.head;
  switch (kind) {
    case 'cut':
      return `the audit log of ${server} had entry ${seq} and ends at ${told.head.seq}: it was cut, or its database was put back`;
    case 'changed':
      return `entry ${seq} of the audit log of ${server} is another one than before: it was changed, or its database was put back`;
    case 'key':
      return `the audit log of ${server} is signed by another key than before`;
  }
}

/** A head that was signed after the operator had confirmed that everything up to the other one may be gone. */
function isExplained(before: AuditHead, told: AuditHead): boolean {
  return told.confirmed !== undefined && told.confirmed >= before.time;
}

function storedAlarm({ kind, ours, told }: AuditAlarm): z.input<typeof serverSchema>['alarm'] {
  return { kind, ours: storedHead(ours.record), told: storedHead(told.record) };
}

function isSame(a: Signed, b: Signed | undefined): boolean {
  return b !== undefined && Buffer.compare(a.s, b.s) === 0 && Buffer.compare(a.b, b.b) === 0;
}
