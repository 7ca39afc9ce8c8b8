/**
 * Starts the device broker, and through it the data plane, where no service manager does:
 * `pairwire up` as root in a container, a network namespace or by hand. Both outlive us.
 */
import { spawn } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import { findProgram } from '../../src/runtime/native-program.js';
import { DevicesClient } from './devices-client.js';

export interface TapSpec {
  kind: 'tap';
  name: string;
  /** Lower-case hex with colons. */
  mac: string;
  mtu: number;
  txQueueLength?: number;
  /** With prefix: 192.0.2.1/24, 2001:db8::1/64. */
  addresses?: readonly string[];
  /** The kernel may forward between this TAP and other interfaces, or these. */
  forward?: boolean | readonly string[];
  /** False: no neighbours are looked for on it. */
  arp?: boolean;
  /** Prefixes that are routed into it. */
  routes?: readonly string[];
  /** The bridge that the TAP is put into; made if it is missing. */
  bridge?: string;
  /** Interfaces that are put into it, too. */
  bridgePorts?: readonly string[];
}

export interface UdpSpec {
  kind: 'udp';
  port: number;
  bind?: string;
  device?: string;
  mark?: number;
}

export interface EthernetSpec {
  kind: 'ethernet';
  /** The interface. */
  name: string;
  /** Addresses that frames for us come for. */
  macs: readonly string[];
}

export interface WireSpec {
  kind: 'wire';
  /** The interface, all frames of which are the data plane's. */
  name: string;
}

export type DeviceSpec = TapSpec | UdpSpec | EthernetSpec | WireSpec;

export interface BrokerOptions {
  devices: readonly DeviceSpec[];
  /** Folder of the sockets; made if missing, closed to writers other than root. */
  runDirectory: string;
  /** Who may give orders to broker and data plane: name or uid. */
  controlUser: string | number;
  /** Who runs the data plane and owns the TAPs; `dataplaneUser()` by default. */
  dataplaneUser?: string | number;
  /** Messages of broker and data plane; `devices.log` in the run directory by default. */
  logFile?: string;
  dataplaneArguments?: readonly string[];
  oomScore?: number;
  /** Other programs than those that were built or installed, for tests. */
  programs?: { devices?: string; dataplane?: string };
  timeoutMs?: number;
}

/** The account that packages make for the data plane. */
const DATAPLANE_ACCOUNT = 'pairwire-dp';
/** Without that account: a uid that neither Debian nor systemd hands out (60578 to 61183). */
const DATAPLANE_UID = 60_853;

/** The list as the broker reads it (gateway/native/devices/device-list.hpp); it checks every field. */
export function formatDeviceList(devices: readonly DeviceSpec[]): string {
  const lines = devices.map((device) => {
    const words = wordsOf(device);
    // A word with a space or line break would be read as something else than was checked here.
    const odd = words.find((word) => !/^[\x21-\x7e]+$/.test(word) || word.startsWith('#'));
    if (odd !== undefined) {
      throw new PairwireError('CONFIG_INVALID', `"${odd}" can't stand in a list of devices`);
    }
    return words.join(' ');
  });
  return lines.map((line) => `${line}\n`).join('');
}

function wordsOf(device: DeviceSpec): string[] {
  switch (device.kind) {
    case 'tap':
      return [
        'tap',
        device.name,
        'mac',
        device.mac,
        'mtu',
        `${device.mtu}`,
        ...(device.txQueueLength === undefined ? [] : ['txqueuelen', `${device.txQueueLength}`]),
        ...(device.addresses ?? []).flatMap((address) => ['address', address]),
        ...forwardWords(device.forward),
        ...(device.arp === false ? ['arp', 'off'] : []),
        ...(device.routes ?? []).flatMap((prefix) => ['route', prefix]),
        ...(device.bridge === undefined ? [] : ['bridge', device.bridge]),
        ...(device.bridgePorts ?? []).flatMap((port) => ['port', port]),
      ];
    case 'udp':
      return [
        'udp',
        `${device.port}`,
        ...(device.bind === undefined ? [] : ['bind', device.bind]),
        ...(device.device === undefined ? [] : ['device', device.device]),
        ...(device.mark === undefined ? [] : ['mark', `${device.mark}`]),
      ];
    case 'ethernet':
      return ['ethernet', device.name, ...device.macs.flatMap((mac) => ['mac', mac])];
    case 'wire':
      return ['wire', device.name];
  }
}

function forwardWords(forward: TapSpec['forward']): string[] {
  if (forward === undefined || forward === false) return [];
  return forward === true ? ['forward', 'allow'] : forward.flatMap((name) => ['forward-to', name]);
}

/** The account that packages make for the data plane, or a uid that belongs to nobody. */
export function dataplaneUser(): string {
  const accounts = readFileSync('/etc/passwd', 'utf8').split('\n');
  return accounts.some((line) => line.startsWith(`${DATAPLANE_ACCOUNT}:`))
    ? DATAPLANE_ACCOUNT
    : `${DATAPLANE_UID}`;
}

/** Root is about to run it: whoever else can write it would be root. */
function refuseWritableByOthers(program: string): void {
  const { mode, uid } = statSync(program);
  if ((mode & 0o022) !== 0 || (uid !== 0 && uid !== process.geteuid?.())) {
    throw new PairwireError('PRIVILEGE', 'the program can be changed by other users', {
      where: program,
      hint: 'chown root and chmod go-w',
    });
  }
}

/**
 * Connects to the broker of a run directory, or starts one and waits until it answers.
 * @throws PairwireError PRIVILEGE if we are not root and none runs; DEVICES_GONE with what the
 *   broker printed if it did not come up
 */
export async function startBroker(options: BrokerOptions): Promise<DevicesClient> {
  const socket = join(options.runDirectory, 'devices.sock');
  try {
    return await DevicesClient.connect(socket);
  } catch (thrown) {
    if (!(thrown instanceof PairwireError && thrown.code === 'DEVICES_GONE')) throw thrown;
  }
  if (process.geteuid?.() !== 0) {
    throw new PairwireError('PRIVILEGE', 'no device broker runs, and only root can start one', {
      where: socket,
      hint: 'start pairwire-devices@ by systemd, or `pairwire up` as root',
    });
  }
  const program = options.programs?.devices ?? findProgram('pairwire-devices');
  const dataplane = options.programs?.dataplane ?? findProgram('pairwire-dataplane');
  refuseWritableByOthers(program);
  refuseWritableByOthers(dataplane);

  const child = spawn(
    program,
    [
      ...['--list', '-'],
      ...['--run', options.runDirectory],
      ...['--control-user', `${options.controlUser}`],
      ...['--dataplane-user', `${options.dataplaneUser ?? dataplaneUser()}`],
      ...['--log', options.logFile ?? join(options.runDirectory, 'devices.log')],
      ...(options.oomScore === undefined ? [] : ['--oom-score', `${options.oomScore}`]),
      ...['--dataplane', dataplane],
      ...(options.dataplaneArguments === undefined ? [] : ['--', ...options.dataplaneArguments]),
    ],
    // A session of its own; what it prints before it has its log tells why it did not start.
    { detached: true, stdio: ['pipe', 'ignore', 'pipe'], cwd: '/', env: {} },
  );
  let printed = '';
  let ended: string | undefined;
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    printed = `${printed}${text}`.slice(-4000);
  });
  child.on('error', (error) => {
    ended = error.message;
  });
  child.on('close', (code, signal) => {
    ended ??= printed.trim() || `it ended with ${signal ?? code}`;
  });
  // A broker that refuses its arguments closes the pipe before the list is written.
  child.stdin.on('error', () => {});
  child.stdin.end(formatDeviceList(options.devices));

  const deadline = Date.now() + (options.timeoutMs ?? 5_000);
  try {
    while (true) {
      if (ended !== undefined) {
        throw new PairwireError('DEVICES_GONE', `the device broker did not start: ${ended}`, {
          where: program,
        });
      }
      try {
        const client = await DevicesClient.connect(socket);
        await client.status();
        return client;
      } catch (thrown) {
        if (Date.now() > deadline) {
          child.kill('SIGTERM');
          throw new PairwireError(
            'DEVICES_GONE',
            `the device broker does not answer: ${printed.trim() || messageOf(thrown)}`,
            { where: socket, cause: thrown },
          );
        }
      }
      await sleep(25);
    }
  } finally {
    // It goes on without us, and we may end without it.
    child.stderr.destroy();
    child.unref();
  }
}
