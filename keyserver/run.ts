/**
 * The key server as a process: configuration, key files, store, server, metrics, signals.
 *
 * On SQLite it serves from its start to its end. On PostgreSQL any number of processes may run on one database: each
 * stands by until the lease is its own (storage/postgres.ts), serves, and stands by again when it has lost it.
 */
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { lockFolder } from '../src/runtime/folder-lock.js';
import { Lifecycle } from '../src/runtime/lifecycle.js';
import { createLogger, type Logger } from '../src/runtime/log.js';
import { type Health, Metrics, serveMetrics } from '../src/runtime/metrics.js';
import { rehearse } from '../src/runtime/rehearsal.js';
import { auditSignKey } from './audit-key.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerPaths,
  listenAddresses,
  loadKeyServerConfig,
  ownNet,
  pathsOf,
  requireHostPort,
} from './config.js';
import { finishForgetting } from './forget-keys.js';
import { KeyVault } from './key-vault.js';
import { keyServerRehearsal } from './keys/rehearsal.js';
import { hasKms } from './kms/folder.js';
import { type KmsLink, linkKms } from './kms-link.js';
import { kmsMetrics } from './kms-metrics.js';
import { RelayProcess } from './relay.js';
import { KeyServer } from './server.js';
import { openDatabase, targetOf } from './storage/open.js';
import { PostgresDriver } from './storage/postgres.js';
import type { PostgresTarget } from './storage/postgres-target.js';
import type { Row, SqlDriver } from './storage/sql.js';
import { openStore } from './storage/sql-store.js';
import { countDeks, type DekService, openDeks, unlock } from './storage/unlock.js';

/** One that ends takes so long at most to let go of its folder. */
const LOCK_WAIT_MS = 2_000;
/** Before one that could not serve, or could not reach the database, tries again. */
const RETRY_MS = 500;
/** While it stands by: between trials whether the KMS opens the DEKs, and after one that failed. */
const TRIAL_MS = 30_000;
const TRIAL_RETRY_MS = 5_000;
/** Where others could serve: so long the KMS may take. */
const KMS_PATIENCE_MS = 5_000;

/** Runs the key server of a folder until a signal. @throws PairwireError if it can't start */
export async function runKeyServer(dir: string): Promise<void> {
  const config = loadKeyServerConfig(dir);
  const log = createLogger('keyserver', config.log);
  const life = new Lifecycle(log);
  const paths = pathsOf(dir, config);
  const folder: Folder = {
    config,
    paths,
    log,
    keys: readKeys(paths),
    life,
    kms: undefined,
    hadKms: false,
  };
  const shown = new Shown();
  let ended: Promise<void> = new Promise(() => {
    // It ends by a signal only.
  });
  try {
    // Two on one database would each seal and renew behind the other's back.
    const unlockFolder = lockFolder(dir, 'a key server', LOCK_WAIT_MS);
    life.started('folder', async () => unlockFolder());
    // Before the database, for its start takes as long as ours.
    if (config.kms.address !== undefined || hasKms(paths.kms)) await kmsOf(folder);
    await startMetrics(config, shown, life);
    const target = targetOf(paths);
    if (target === undefined) {
      const driver = await openDatabase(paths);
      life.started('store', () => driver.close());
      await serve(folder, driver, shown, life);
      shown.state = 'serving';
    } else {
      ({ ended } = await serveInTurn(folder, target, shown, life));
    }
  } catch (thrown) {
    await life.stop();
    throw thrown;
  }
  try {
    await Promise.race([life.untilSignal(), ended]);
  } finally {
    await life.stop();
  }
}

/** What a key server is made of, besides its database. */
interface Folder {
  readonly config: KeyServerConfig;
  readonly paths: KeyServerPaths;
  readonly log: Logger;
  readonly keys: ReturnType<typeof readKeys>;
  /** Of the process, not of one turn of serving. */
  readonly life: Lifecycle;
  /** From the first turn on. */
  kms: KmsLink | undefined;
  hadKms: boolean;
}

function readKeys(paths: KeyServerPaths) {
  return {
    staticKeys: keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server)),
    tokenKey: readKeyFile(paths.tokenKey, KEY_KIND.token),
    auditKey: readKeyFile(paths.auditKey, KEY_KIND.audit),
    auditSignKey: auditSignKey(paths),
    operator: readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true }),
  };
}

/** What /metrics and /healthz show: a server that serves again counts from nothing. */
class Shown {
  state: 'starting' | 'standby' | 'serving' = 'starting';
  /** The KMS does not open the DEKs: it stands by, and could not serve. */
  locked = false;
  /** Of the server that serves. */
  alarms: (() => Readonly<Record<string, number>>) | undefined;
  metrics!: Metrics;

  constructor() {
    this.renew();
  }

  renew(): Metrics {
    this.metrics = new Metrics({ process: true });
    this.metrics.gauge('keyserver_serving', '1: this process serves; 0: it stands by', [], (one) =>
      one.set(this.state === 'serving' ? 1 : 0),
    );
    this.metrics.gauge(
      'keyserver_deks_open',
      '1: its KMS opens the DEKs of the database; 0: it could not serve',
      [],
      (one) => one.set(this.locked ? 0 : 1),
    );
    return this.metrics;
  }

  get health(): Health {
    const serving = this.state === 'serving';
    const state = this.locked && !serving ? 'locked' : this.state;
    return { serving, state, alarms: this.alarms?.() ?? {} };
  }
}

async function startMetrics(config: KeyServerConfig, shown: Shown, life: Lifecycle): Promise<void> {
  if (config.metrics.listen === undefined) return;
  const address = requireHostPort(config.metrics.listen, 'metrics.listen');
  const server = await serveMetrics(
    () => shown.metrics,
    address.host,
    address.port,
    () => shown.health,
  );
  life.started('metrics', () => server.close());
}

/** The KMS of this process. @param driver where it may be missing yet: says whether one was there before */
async function kmsOf(folder: Folder, driver?: SqlDriver): Promise<KmsLink> {
  const { config, paths, keys, log, life } = folder;
  if (folder.kms !== undefined) return folder.kms;
  const sealed = async (): Promise<boolean> =>
    driver === undefined || (await countDeks(driver)) > 0;
  const kms = await linkKms(config, paths, keys.staticKeys, log, sealed);
  // One that could not start is followed by another one.
  if (!folder.hadKms) life.started('kms', async () => folder.kms?.close());
  folder.hadKms = true;
  folder.kms = kms;
  return kms;
}

/**
 * While a server stands by: tries again and again whether its KMS opens the DEKs. One that can't leaves the lease to others, and says
 * so before it is needed.
 */
class DekTrials {
  readonly #folder: Folder;
  readonly #driver: PostgresDriver;
  readonly #shown: Shown;
  readonly #stop = new AbortController();
  readonly #ended: Promise<void>;
  #opens: boolean | undefined;

  constructor(folder: Folder, driver: PostgresDriver, shown: Shown) {
    this.#folder = folder;
    this.#driver = driver;
    this.#shown = shown;
    this.#ended = this.#run();
  }

  /** The last trial went well. */
  get passed(): boolean {
    return this.#opens === true;
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }

  async #run(): Promise<void> {
    const { log } = this.#folder;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await this.#try();
        if (this.#opens === false) log.info('the KMS opens the DEKs again');
        this.#opens = true;
      } catch (err) {
        if (signal.aborted) return;
        const text = 'the KMS does not open the DEKs: this server could not serve, and stands by';
        if (this.#opens !== false) log.error({ err }, text);
        this.#opens = false;
      }
      this.#shown.locked = !this.#opens;
      await pause(this.#opens ? TRIAL_MS : TRIAL_RETRY_MS, signal);
    }
  }

  async #try(): Promise<void> {
    const folder = this.#folder;
    const { config, paths } = folder;
    // One that was never there is made by the first who serves.
    if (config.kms.address === undefined && !hasKms(paths.kms) && folder.kms === undefined) return;
    const kms = await kmsOf(folder);
    try {
      await kms.ready();
    } catch (thrown) {
      await kms.close();
      folder.kms = undefined;
      throw thrown;
    }
    let rows: readonly Row[];
    try {
      rows = await this.#driver.reader.all('SELECT id, sealed FROM deks', []);
    } catch {
      // A database that is away, or from before there were any: whoever gets the lease sees to that.
      return;
    }
    for (const key of await openDeks(impatient(kms.client), rows)) key.fill(0);
  }
}

/** A KMS that has to answer soon: who waits for it holds a lease that others could use. */
function impatient(service: DekService): DekService {
  const within = async <T>(work: Promise<T>): Promise<T> => {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(
        () => reject(new PairwireError('KMS_FAILED', 'the KMS does not answer in time')),
        KMS_PATIENCE_MS,
      );
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
    }
  };
  return {
    make: () => within(service.make()),
    open: (deks) => within(service.open(deks)),
  };
}

/** Starts a server on an open database. @throws PairwireError */
async function serve(
  folder: Folder,
  driver: SqlDriver,
  shown: Shown,
  life: Lifecycle,
): Promise<void> {
  const { config, paths, log, keys } = folder;
  const { operator, ...own } = keys;
  const kms = await kmsOf(folder, driver);
  await kms.ready();
  const markFile = paths.sealMark;
  const service = driver instanceof PostgresDriver ? impatient(kms.client) : kms.client;
  const ring = await unlock(driver, { service, markFile, log });
  await finishForgetting(driver, ring, paths, log);
  const store = await openStore(driver, { onlyWriter: true, ring });
  if (!store.meta.operator.equals(operator)) {
    throw new PairwireError('CONFIG_INVALID', 'the database belongs to another operator key', {
      where: paths.operatorPublic,
    });
  }
  if (store.meta.subnet !== config.subnet || store.meta.server !== config.server) {
    throw new PairwireError('CONFIG_INVALID', 'the database is of another subnet or server', {
      where: paths.config,
      hint: `it was made for subnet ${store.meta.subnet}, server ${store.meta.server}`,
    });
  }
  const metrics = shown.renew();
  metrics.gauge('store_commits', 'Transactions committed since the start', [], (gauge) =>
    gauge.set(driver.counts.commits),
  );
  metrics.gauge('store_writes', 'Writes committed since the start', [], (gauge) =>
    gauge.set(driver.counts.writes),
  );
  metrics.gauge('store_evicted', 'Entries in memory that made room for others', [], (gauge) =>
    gauge.set(store.evicted),
  );
  metrics.gauge('keyserver_kms_restarts', 'Restarts of the KMS beside this server', [], (gauge) =>
    gauge.set(kms.restarts),
  );
  kmsMetrics(metrics, kms.client);
  const copied = targetOf(paths) !== undefined && config.kms.address === undefined;
  const vault = new KeyVault(driver, ring, kms.client, { log, metrics, copied });
  life.started('vault', () => vault.close());
  await vault.resume();
  const server = await KeyServer.start({
    store,
    vault,
    kms: kms.client,
    listen: listenAddresses(config),
    ...own,
    net: ownNet(config),
    ...(config.relay === undefined ? {} : { relay: config.relay }),
    auditHeadFile: paths.auditHead,
    auditWitnessFile: paths.auditWitnesses,
    log,
    metrics,
    limits: config.limits,
  });
  shown.alarms = () => ({
    audit_contradicted: server.alarms.auditContradictions,
    rows_broken: server.alarms.brokenRows,
    seals_broken: ring.broken,
  });
  const over = new AbortController();
  void rehearse(() => keyServerRehearsal(store), log, over.signal);
  life.started('server', async () => {
    over.abort();
    shown.alarms = undefined;
    await server.close();
  });
  if (config.relay !== undefined) {
    const relay = new RelayProcess(config.relay.listen, own.staticKeys, log, metrics);
    life.started('relay', () => relay.stop());
    relay.start();
  }
}

/**
 * Serves whenever the lease is this process's.
 * @returns `ended` settles, or rejects, when it does not go on
 * @throws PairwireError if the database can't be reached at the start: that is a mistake of the configuration. A KMS that can't be run is looked for
 *   again and again (DekTrials), for its token may be put back
 */
async function serveInTurn(
  folder: Folder,
  target: PostgresTarget,
  shown: Shown,
  life: Lifecycle,
): Promise<{ readonly ended: Promise<void> }> {
  const stop = new AbortController();
  let next: PostgresDriver | undefined = await PostgresDriver.connect(target);
  const loop = async (): Promise<void> => {
    while (!stop.signal.aborted) {
      try {
        const driver = next ?? (await PostgresDriver.connect(target));
        next = undefined;
        await oneTurn(folder, driver, shown, stop.signal);
      } catch (thrown) {
        if (!passes(thrown)) throw thrown;
        folder.log.warn({ err: thrown }, 'not serving; trying again');
        await pause(RETRY_MS, stop.signal);
      }
    }
  };
  const ended = loop();
  // Whoever waits for it is told; until somebody does, it must not count as nobody's.
  ended.catch(() => undefined);
  life.started('turns', async () => {
    stop.abort();
    await ended.catch(() => undefined);
  });
  return { ended };
}

/** Stands by, serves, and stops serving; always closes the database. */
async function oneTurn(
  folder: Folder,
  driver: PostgresDriver,
  shown: Shown,
  stop: AbortSignal,
): Promise<void> {
  const { log } = folder;
  const parts = new Lifecycle(log);
  parts.started('store', () => driver.close());
  try {
    shown.state = 'standby';
    const waiting = (holder: string | undefined, failure: unknown): void => {
      if (failure === undefined) log.info({ holder }, 'standing by: another key server serves');
      else log.warn({ reason: messageOf(failure) }, 'standing by: the database cannot be asked');
    };
    const trials = new DekTrials(folder, driver, shown);
    parts.started('trials', () => trials.close());
    const mayTake = (): boolean => trials.passed;
    if (!(await driver.waitForLease(stop, { waiting, mayTake }))) return;
    await trials.close();
    await driver.migrate();
    await serve(folder, driver, shown, parts);
    shown.state = 'serving';
    log.info({ term: driver.term }, 'this key server has the lease');
    const stopped = new Promise<undefined>((resolve) => {
      stop.addEventListener('abort', () => resolve(undefined), { once: true });
      if (stop.aborted) resolve(undefined);
    });
    const reason = await Promise.race([driver.lost, stopped]);
    if (reason !== undefined) log.error({ reason }, 'the lease is lost: not serving any more');
  } finally {
    shown.state = 'standby';
    await parts.stop();
  }
}

/** True for what another try may find mended. */
function passes(thrown: unknown): boolean {
  return thrown instanceof PairwireError && ['STORE_FAILED', 'KMS_FAILED'].includes(thrown.code);
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
