/**
 * The keys of a store at rest, while its server runs: which DEKs there are, making the next one, and sealing what is stored by it in the
 * background. All of it goes on after kill -9: as long as there are DEKs that are not active, keys are sealed anew.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { NOT_LIMITED } from '../src/protocol/kms-messages.js';
import { type ErrorCode, messageOf, PairwireError } from '../src/runtime/errors.js';
import type { Logger } from '../src/runtime/log.js';
import type { Metrics } from '../src/runtime/metrics.js';
import type { KmsStatus } from './kms/client.js';
import type { KeyRing } from './storage/key-ring.js';
import { RESEAL_BEGIN, type ResealCursor, resealPage } from './storage/reseal.js';
import { blob, integer, type SqlDriver } from './storage/sql.js';
import { type DekService, insertDek } from './storage/unlock.js';

/** A DEK that is older than this, or has sealed so many keys, gets a successor; nonces are random (docs/protocol.md 11.1). */
export const MAX_DEK_AGE_MS = 30 * 86_400_000;
export const MAX_SEALS_PER_DEK = 2 ** 30;
/** Seals that are counted ahead at a time; the rest of a block is lost with each start. */
const SEAL_BLOCK = 2 ** 16;
const LOOK_MS = 60_000;
/** After a failure of store or KMS. */
const RETRY_MS = 5_000;
const WAITS_FOR: readonly ErrorCode[] = ['STORE_FAILED', 'KMS_FAILED'];

/** The KMS, as the vault needs it. */
export interface KmsService extends DekService {
  readonly connected: boolean;
  status(): Promise<KmsStatus>;
  rotateRoot(after: number): Promise<number>;
}

/** What `pairwire kms status` shows; of the KMS nothing while it can't be asked. */
export interface VaultStatus extends Omit<KmsStatus, 'generation'> {
  readonly connected: boolean;
  /** DEKs in use; one unless keys are being sealed anew. */
  readonly deks: number;
  /** When the active one was made, ms since 1970. */
  readonly since: number;
  readonly resealing: boolean;
  /** Keys sealed anew since this run of it began, rows looked at. */
  readonly resealed: number;
  /** Keys that the active DEK has sealed, at most. */
  readonly seals: number;
  /** Keys that were not what had been sealed in their place, since the start. */
  readonly broken: number;
}

const UNASKED: Omit<KmsStatus, 'generation'> = {
  ...{ generations: [], inToken: [] },
  ...{ limited: 0, limitedBy: NOT_LIMITED },
  ...{ auditBytes: 0, auditFiles: 0, auditGone: 0 },
};

export class KeyVault {
  readonly #driver: SqlDriver;
  readonly #ring: KeyRing;
  readonly #kms: KmsService;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #copied: boolean;
  readonly #looker: NodeJS.Timeout;
  readonly #stop = new AbortController();
  #working: Promise<void> | undefined;
  #rotating: Promise<void> = Promise.resolve();
  #resealed = 0;
  #uncounted = false;

  constructor(
    driver: SqlDriver,
    ring: KeyRing,
    kms: KmsService,
    options: {
      readonly log: Logger;
      readonly metrics?: Metrics;
      readonly now?: () => number;
      /** Other machines open the same database with a copy of our KMS: a root key of ours alone would lock them out. */
      readonly copied?: boolean;
    },
  ) {
    this.#driver = driver;
    this.#ring = ring;
    this.#kms = kms;
    this.#log = options.log;
    this.#now = options.now ?? Date.now;
    this.#copied = options.copied ?? false;
    ring.onUsed = () => {
      this.#reserve().catch((err: unknown) => {
        // The next look tries again.
        this.#log.warn({ err }, 'the seals of the DEK were not counted');
        this.#uncounted = true;
      });
    };
    this.#looker = setInterval(() => {
      this.look().catch((err: unknown) => this.#log.warn({ err }, 'the DEK was not renewed'));
    }, LOOK_MS);
    this.#looker.unref();
    options.metrics?.gauge(
      'keyserver_kms_connected',
      '1: there is a channel to the KMS',
      [],
      (one) => one.set(kms.connected ? 1 : 0),
    );
    options.metrics?.gauge('keyserver_deks', 'DEKs in use', [], (one) => one.set(ring.size));
    options.metrics?.gauge(
      'keyserver_broken_seals',
      'Keys in the database that were not what had been sealed there, each time they were read',
      [],
      (one) => one.set(ring.broken),
    );
  }

  /** Goes on with what was interrupted, and with the count of seals. @throws PairwireError STORE_FAILED */
  async resume(): Promise<void> {
    const row = await this.#driver.reader.get('SELECT seals FROM deks WHERE active = 1', []);
    if (row !== undefined) this.#ring.countBefore(integer(row, 'seals'));
    await this.#reserve();
    if (this.#ring.size > 1) this.#work();
  }

  /** Renews a DEK that is too old, or has sealed too much. @throws PairwireError KMS_FAILED, STORE_FAILED */
  async look(): Promise<void> {
    if (this.#uncounted) {
      await this.#reserve();
      this.#uncounted = false;
    }
    const age = this.#now() - (await this.#since());
    if (age > MAX_DEK_AGE_MS || this.#ring.seals >= MAX_SEALS_PER_DEK) await this.rotate(false);
  }

  /**
   * Makes another DEK, and begins to seal all keys by it.
   * @param root has the KMS make another root key first
   * @returns the generation of the root key that seals
   * @throws PairwireError KMS_FAILED, STORE_FAILED
   */
  async rotate(root: boolean): Promise<number> {
    const generation = await this.#exclusively(async () => {
      if (root && this.#copied) {
        throw new PairwireError('KMS_FAILED', 'each key server has its own copy of the root keys', {
          hint: 'let all of them name one KMS under kms: in keyserver.yaml, and rotate there',
        });
      }
      // Whoever asked shall not wait for one that is away.
      if (!this.#kms.connected) {
        throw new PairwireError('KMS_FAILED', 'there is no channel to the KMS now', {
          hint: 'see the log for why; it is looked for all the time',
        });
      }
      let { generation } = await this.#kms.status();
      if (root) generation = await this.#kms.rotateRoot(generation);
      const made = await this.#kms.make();
      try {
        await this.#driver.transaction((sql) => insertDek(sql, made, this.#now()));
      } catch (thrown) {
        // The database may have taken it all the same: what it has then counts.
        await this.#reload().catch(() => undefined);
        throw thrown;
      }
      this.#ring.add(made.id, made.key, true);
      this.#uncounted = true;
      this.#log.info({ dek: made.id.toString('hex'), generation }, 'another DEK seals from now on');
      return generation;
    });
    this.#work();
    // It is done, whether or not that could be counted now.
    await this.#reserve().then(
      () => {
        this.#uncounted = false;
      },
      (err: unknown) => this.#log.warn({ err }, 'the seals of the DEK were not counted'),
    );
    return generation;
  }

  /** Counts a block of seals ahead. */
  #reserve(): Promise<void> {
    return this.#exclusively(async () => {
      const { active } = this.#ring;
      if (active === undefined) return;
      const seals = await this.#driver.transaction(async (sql) => {
        await sql.run('UPDATE deks SET seals = seals + ? WHERE id = ?', [SEAL_BLOCK, active]);
        const row = await sql.get('SELECT seals FROM deks WHERE id = ?', [active]);
        return row === undefined ? undefined : integer(row, 'seals');
      });
      if (seals === undefined || this.#ring.active?.equals(active) !== true) return;
      this.#ring.reserve(seals, SEAL_BLOCK);
    });
  }

  /** One at a time: a DEK comes, or those that seal nothing any more go. */
  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#rotating.then(work);
    this.#rotating = turn.then(
      () => undefined,
      () => undefined,
    );
    return turn;
  }

  /** Goes by the DEKs that the database has. @throws PairwireError KMS_FAILED, STORE_FAILED */
  async #reload(): Promise<void> {
    const rows = await this.#driver.reader.all('SELECT id, sealed, active FROM deks', []);
    const missing = rows.filter((row) => !this.#ring.has(blob(row, 'id')));
    const keys = await this.#kms.open(
      missing.map((row) => ({ id: blob(row, 'id'), sealed: blob(row, 'sealed') })),
    );
    for (const [place, row] of missing.entries()) {
      const key = keys[place];
      if (key !== undefined) this.#ring.add(blob(row, 'id'), key, false);
    }
    const active = rows.find((row) => integer(row, 'active') === 1);
    if (active !== undefined) this.#ring.activate(blob(active, 'id'));
    this.#uncounted = true;
  }

  /**
   * Forgets DEKs that seal nothing any more, by their ids, and only if the one that seals is still the one
   * that the round sealed by.
   * @returns false if another has come meanwhile
   */
  #retire(active: Buffer, retired: readonly Buffer[]): Promise<boolean> {
    return this.#exclusively(async () => {
      if (this.#ring.active?.equals(active) !== true) return false;
      const done = await this.#driver.transaction(async (sql) => {
        const row = await sql.get('SELECT id FROM deks WHERE active = 1', []);
        if (row === undefined || !blob(row, 'id').equals(active)) return false;
        for (const id of retired) {
          await sql.run('DELETE FROM deks WHERE id = ? AND active = 0', [id]);
        }
        return true;
      });
      if (done) this.#ring.forget(retired);
      else await this.#reload();
      return done;
    });
  }

  async status(): Promise<VaultStatus> {
    let kms = UNASKED;
    try {
      if (this.#kms.connected) {
        const { generation: _generation, ...status } = await this.#kms.status();
        kms = status;
      }
    } catch (thrown) {
      this.#log.warn({ reason: messageOf(thrown) }, 'the KMS was not asked');
    }
    return {
      connected: this.#kms.connected,
      ...kms,
      deks: this.#ring.size,
      since: await this.#since(),
      resealing: this.#working !== undefined,
      resealed: this.#resealed,
      seals: this.#ring.seals,
      broken: this.#ring.broken,
    };
  }

  /** Stops between two pages. */
  async close(): Promise<void> {
    clearInterval(this.#looker);
    this.#stop.abort();
    await this.#rotating;
    await this.#working;
  }

  async #since(): Promise<number> {
    const row = await this.#driver.reader.get('SELECT made_at FROM deks WHERE active = 1', []);
    return row === undefined ? 0 : integer(row, 'made_at');
  }

  #work(): void {
    this.#working ??= this.#sealAll()
      .catch((err: unknown) => {
        if (!this.#stop.signal.aborted) this.#log.error({ err }, 'keys were not sealed anew');
      })
      .finally(() => {
        this.#working = undefined;
      });
  }

  async #sealAll(): Promise<void> {
    this.#resealed = 0;
    while (this.#ring.size > 1 && !this.#stop.signal.aborted) {
      const { active, retired } = this.#ring;
      if (active === undefined) return;
      try {
        const broken = await this.#round();
        if (broken === undefined) continue;
        if (broken > 0) {
          this.#log.error(
            { keys: broken },
            'keys that are not what was sealed there stay as they are',
          );
        }
        if (!(await this.#retire(active, retired))) continue;
        this.#log.info({ keys: this.#resealed }, 'all keys are sealed by the new DEK');
      } catch (thrown) {
        if (!(thrown instanceof PairwireError) || !WAITS_FOR.includes(thrown.code)) throw thrown;
        this.#log.warn({ err: thrown }, 'sealing keys anew waits for the store, or for the KMS');
        await this.#pause(RETRY_MS);
      }
    }
  }

  /** Looks at every key once. @returns how many are broken; undefined if it was stopped */
  async #round(): Promise<number | undefined> {
    let broken = 0;
    for (let at: ResealCursor | undefined = RESEAL_BEGIN; at !== undefined; ) {
      if (this.#stop.signal.aborted) return undefined;
      const cursor: ResealCursor = at;
      const since = performance.now();
      const page = await this.#driver.transaction((sql) =>
        resealPage(sql, this.#ring, cursor, false),
      );
      this.#resealed += page.sealed;
      broken += page.broken;
      at = page.next;
      // Members come first: it takes half of the time at most.
      await this.#pause(performance.now() - since);
    }
    return broken;
  }

  async #pause(ms: number): Promise<void> {
    await pause(ms, undefined, { signal: this.#stop.signal }).catch(() => undefined);
  }
}
