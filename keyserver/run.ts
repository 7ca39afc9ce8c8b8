/** The key server as a process: configuration, key files, store, server, metrics, signals. */
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { Lifecycle } from '../src/runtime/lifecycle.js';
import { createLogger, type Logger } from '../src/runtime/log.js';
import { Metrics, serveMetrics } from '../src/runtime/metrics.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  listenAddresses,
  loadKeyServerConfig,
  ownNet,
  pathsOf,
  requireHostPort,
} from './config.js';
import { RelayProcess } from './relay.js';
import { KeyServer } from './server.js';
import { openStore } from './storage/sql-store.js';
import { SqliteDriver } from './storage/sqlite.js';

/** Runs the key server of a folder until a signal. @throws PairwireError if it can't start */
export async function runKeyServer(dir: string): Promise<void> {
  const config = loadKeyServerConfig(dir);
  const log = createLogger('keyserver', config.log);
  const life = new Lifecycle(log);
  try {
    await startParts(dir, config, log, life);
  } catch (thrown) {
    await life.stop();
    throw thrown;
  }
  await life.untilSignal();
}

async function startParts(
  dir: string,
  config: KeyServerConfig,
  log: Logger,
  life: Lifecycle,
): Promise<void> {
  const paths = pathsOf(dir, config);
  const staticKeys = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
  const tokenKey = readKeyFile(paths.tokenKey, KEY_KIND.token);
  const auditKey = readKeyFile(paths.auditKey, KEY_KIND.audit);
  const operator = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true });
  const driver = await SqliteDriver.open(paths.database);
  life.started('store', () => driver.close());
  const store = await openStore(driver, { onlyWriter: true });
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
  const metrics = new Metrics({ process: true });
  metrics.gauge('store_commits', 'Transactions committed since the start', [], (gauge) =>
    gauge.set(driver.counts.commits),
  );
  metrics.gauge('store_writes', 'Writes committed since the start', [], (gauge) =>
    gauge.set(driver.counts.writes),
  );
  metrics.gauge('store_evicted', 'Entries in memory that made room for others', [], (gauge) =>
    gauge.set(store.evicted),
  );
  const server = await KeyServer.start({
    store,
    listen: listenAddresses(config),
    staticKeys,
    tokenKey,
    auditKey,
    net: ownNet(config),
    ...(config.relay === undefined ? {} : { relay: config.relay }),
    auditHeadFile: paths.auditHead,
    log,
    metrics,
    limits: config.limits,
  });
  life.started('server', () => server.close());
  if (config.relay !== undefined) {
    const relay = new RelayProcess(config.relay.listen, staticKeys, log, metrics);
    life.started('relay', () => relay.stop());
    relay.start();
  }
  if (config.metrics.listen !== undefined) {
    const address = requireHostPort(config.metrics.listen, 'metrics.listen');
    const shown = await serveMetrics(metrics, address.host, address.port);
    life.started('metrics', () => shown.close());
  }
}
