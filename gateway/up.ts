/**
 * `pairwire up`: as root, starts what needs rights and gives them up; then runs the agent.
 *
 *   root        users, run directory, device broker (which starts the data plane)
 *   pairwire    everything else: identity, channel, keys, status
 *
 * SIGTERM ends this process only; traffic goes on. `pairwire down` takes all away.
 */
import { chmodSync, chownSync, existsSync, lstatSync, mkdirSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import type { OutputTarget } from '../src/cli/output.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { Lifecycle } from '../src/runtime/lifecycle.js';
import { createLogger, type Logger } from '../src/runtime/log.js';
import { rehearse } from '../src/runtime/rehearsal.js';
import { Agent } from './agent.js';
import { type GatewayConfig, insideInterfaces, loadGatewayConfig, wantedMtu } from './config.js';
import { startBroker } from './dataplane/launch.js';
import { BrokerDevices, deviceSpecs } from './devices.js';
import { type GatewayIdentity, loadIdentity } from './identity.js';
import { otherPrograms, packageVersion } from './native-programs.js';
import { type GatewayPaths, gatewayPaths, RUN_ROOT, type RunPaths, runPaths } from './paths.js';
import { gatewayRehearsal } from './rehearsal.js';
import { answers } from './status/socket.js';
import { type MtuPlan, planMtu } from './underlay.js';
import { becomeUser, chownToUser, isRoot, requireUser, type User } from './users.js';

/** Runs the gateway of a directory until a signal, `down`, or an error that trying again can't mend. */
export async function runGateway(dir: string, target: OutputTarget): Promise<void> {
  const paths = gatewayPaths(dir);
  const config = loadGatewayConfig(paths.config);
  const log = createLogger('gateway', {
    level: config.log.level,
    style: target.json ? 'json' : 'auto',
  });
  const run = runPaths(config.run);
  if (await answers(run.control)) throw alreadyRuns(run.control, dir);
  const mtu = await planMtu({
    configured: wantedMtu(config.ports[0]),
    transport: config.transport,
    servers: config.servers.map((server) => server.address),
    exclude: insideInterfaces(config),
  });
  if (isRoot()) await startWithRights(config, paths, run, mtu, log);

  const agent = new Agent({
    config,
    paths,
    controlSocket: run.control,
    dataPlaneSocket: run.dataPlane,
    devices: new BrokerDevices(run.dir, config),
    mtu,
    log,
    version: packageVersion(),
    machineId: machineId(),
  });
  const lifecycle = new Lifecycle(log);
  const ended = new Promise<PairwireError | undefined>((resolve) => agent.once('end', resolve));
  lifecycle.started('agent', () => agent.stop());
  try {
    await agent.start();
  } catch (thrown) {
    await lifecycle.stop();
    throw thrown;
  }
  greet(target, config, dir);
  const over = new AbortController();
  lifecycle.started('rehearsal', async () => over.abort());
  void rehearse(gatewayRehearsal, log, over.signal);
  const reload = (): void => {
    agent
      .reload()
      .catch((thrown: unknown) => log.error({ reason: messageOf(thrown) }, 'nothing was reloaded'));
  };
  const why = await Promise.race([
    lifecycle.untilSignal(reload).then(() => 'signal' as const),
    ended.then((error) => ({ error })),
  ]);
  await lifecycle.stop();
  if (why === 'signal') {
    target.err(
      `stopped; traffic goes on without control. To take it away: pairwire down --dir ${dir}\n`,
    );
  } else if (why.error !== undefined) {
    throw why.error;
  }
}

/** What `up --check` looks at. @throws PairwireError for what would stop `up` */
export function checkGateway(dir: string): Readonly<Record<string, unknown>> {
  const paths = gatewayPaths(dir);
  const config = loadGatewayConfig(paths.config);
  const identity = loadOwnIdentity(paths, config);
  return {
    ok: true,
    subnet: config.subnet,
    member: config.member,
    role: identity.member.role,
    macs: identity.member.macs,
    run: config.run,
  };
}

async function startWithRights(
  config: GatewayConfig,
  paths: GatewayPaths,
  run: RunPaths,
  mtu: MtuPlan,
  log: Logger,
): Promise<void> {
  const user = requireUser(config.user);
  const dataPlane = requireUser(config.dataplaneUser);
  if (user.uid === dataPlane.uid || user.uid === 0 || dataPlane.uid === 0) {
    throw new PairwireError(
      'CONFIG_INVALID',
      'user and dataplaneUser must be two users, neither of them root',
      {
        where: paths.config,
        hint: 'the data plane parses what strangers send and must not read the keys of the other',
      },
    );
  }
  const identity = loadOwnIdentity(paths, config);
  makeRunDirectory(run, user);
  const other = otherPrograms();
  if (other !== undefined) log.warn(other.programs, other.warning);
  const broker = await startBroker({
    devices: deviceSpecs(config, identity.member.macs, mtu.tap),
    runDirectory: run.dir,
    controlUser: user.uid,
    dataplaneUser: dataPlane.uid,
    dataplaneArguments: [
      ...['--orphan-seconds', `${config.orphan}`],
      ...['--log-level', config.log.level],
    ],
    ...(other === undefined ? {} : { programs: other.programs }),
  });
  broker.close();
  chownToUser(paths.dir, user.name);
  becomeUser(user);
}

function loadOwnIdentity(paths: GatewayPaths, config: GatewayConfig): GatewayIdentity {
  const operator = Buffer.from(config.operator, 'base64url');
  return loadIdentity(paths, config.subnet, config.member, operator);
}

/** The run directory is root's, so that the control plane can't put other sockets in its place. */
function makeRunDirectory(run: RunPaths, user: User): void {
  if (run.dir.startsWith(`${RUN_ROOT}/`)) mkdirSync(RUN_ROOT, { recursive: true, mode: 0o755 });
  const made = mkdirSync(run.dir, { recursive: true, mode: 0o711 }) !== undefined;
  const info = lstatSync(run.dir);
  if (info.uid !== 0 || (info.mode & 0o022) !== 0 || !info.isDirectory()) {
    throw new PairwireError(
      'FILE_MODE',
      'the run directory must belong to root and be writable by nobody else',
      {
        where: run.dir,
        hint: 'remove it, or choose another `run` in gateway.yaml',
      },
    );
  }
  // A folder that was there keeps its mode: gateway.yaml, which the user may write, must not open /root.
  if (made || run.dir.startsWith(`${RUN_ROOT}/`)) chmodSync(run.dir, 0o711);
  if (!existsSync(run.controlDir)) mkdirSync(run.controlDir, { mode: 0o700 });
  if (!lstatSync(run.controlDir).isDirectory()) {
    throw new PairwireError('FILE_MODE', 'this is not a folder', { where: run.controlDir });
  }
  chownSync(run.controlDir, user.uid, user.gid);
}

function machineId(): string {
  for (const path of ['/etc/machine-id', '/var/lib/dbus/machine-id']) {
    try {
      const id = readFileSync(path, 'latin1').trim();
      if (id !== '') return id;
    } catch {
      // The next one, or the name.
    }
  }
  return hostname();
}

function alreadyRuns(socket: string, dir: string): PairwireError {
  return new PairwireError('CONFLICT', 'a gateway already runs on this directory', {
    where: socket,
    hint: `see it with: pairwire status --dir ${dir}`,
  });
}

function greet(target: OutputTarget, config: GatewayConfig, dir: string): void {
  if (target.json) return;
  const names = config.ports.map((port) => port.interface).join(', ');
  target.err(
    `gateway ${config.member} of ${config.subnet} on ${names}; status: pairwire status --dir ${dir}\n` +
      'SIGTERM ends this process and leaves traffic running; `pairwire down` takes all away.\n',
  );
}
