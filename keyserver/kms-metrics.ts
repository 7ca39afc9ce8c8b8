/**
 * What the key server's metrics show of its KMS: what that refused it, how often each limit of kms.yaml was met, and how large the KMS's
 * own log is. The last two are asked of the KMS when somebody looks, which must neither wait for one that is away nor cost it much.
 */
import type { Metrics } from '../src/runtime/metrics.js';
import type { KmsClient, KmsStatus } from './kms/client.js';

/** Between two questions, however often somebody looks. */
const ASK_EVERY_MS = 1_000;
/** Who looks waits so long for the answer; then he sees the one before. */
const ASK_PATIENCE_MS = 1_000;

/** A KMS, as metrics need it. */
export type WatchedKms = Pick<KmsClient, 'connected' | 'failures' | 'status'>;

/** Adds them to a registry. */
export function kmsMetrics(metrics: Metrics, kms: WatchedKms): void {
  const status = new LastStatus(kms);
  metrics.gauge(
    'keyserver_kms_failures',
    'Requests of this server that the KMS did not fulfil, by request and answer (limit: over a limit of kms.yaml)',
    ['type', 'code'],
    (gauge) => {
      for (const { type, code, count } of kms.failures) gauge.set({ type, code }, count);
    },
  );
  metrics.gauge(
    'keyserver_kms_limited',
    'How often a limit of kms.yaml was met since the start of the KMS, by any key server (request, question, make, open, root)',
    ['limit'],
    async (gauge) => {
      const { limitedBy } = (await status.get()) ?? {};
      for (const [limit, count] of Object.entries(limitedBy ?? {})) gauge.set({ limit }, count);
    },
  );
  const audit = (name: string, help: string, read: (status: KmsStatus) => number): void => {
    metrics.gauge(`keyserver_kms_audit_${name}`, help, [], async (gauge) => {
      const last = await status.get();
      if (last === undefined) gauge.reset();
      else gauge.set(read(last));
    });
  };
  audit('bytes', "Bytes of the file of the KMS's log that it writes to", (it) => it.auditBytes);
  audit('files', "Full files of the KMS's log that it keeps", (it) => it.auditFiles);
  audit(
    'gone',
    "Entries of the KMS's log that are gone, because kms.yaml has no more files kept",
    (it) => it.auditGone,
  );
}

/** What the KMS said last. */
class LastStatus {
  readonly #kms: WatchedKms;
  #last: KmsStatus | undefined;
  #askedAt = Number.NEGATIVE_INFINITY;
  #asking: Promise<void> | undefined;

  constructor(kms: WatchedKms) {
    this.#kms = kms;
  }

  /** @returns undefined before the first answer */
  async get(): Promise<KmsStatus | undefined> {
    const now = performance.now();
    if (this.#kms.connected && this.#asking === undefined && now - this.#askedAt >= ASK_EVERY_MS) {
      this.#askedAt = now;
      this.#asking = this.#ask().finally(() => {
        this.#asking = undefined;
      });
    }
    if (this.#asking !== undefined) await atMost(this.#asking, ASK_PATIENCE_MS);
    return this.#last;
  }

  /** Never rejects: that it did not answer is counted (`failures`). */
  async #ask(): Promise<void> {
    try {
      this.#last = await this.#kms.status();
    } catch {
      // What it said before is shown.
    }
  }
}

async function atMost(work: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}
