/** The files of a gateway: one place that knows their names. */
import { join } from 'node:path';
import type { Id } from '../src/protocol/ids.js';

/** Everything that `join`, `up`, `status` and `down` find below --dir. */
export interface GatewayPaths {
  readonly dir: string;
  readonly config: string;
  /** Ed25519 and X25519 private keys of the identity (0600). */
  readonly identity: string;
  /** X25519 private key of the secure channel (0600). */
  readonly channel: string;
  /** The membership: a signed record, MessagePack. */
  readonly membership: string;
  /** Boot sequence and controller epoch: numbers that only grow. */
  readonly state: string;
  /** What was seen once and must not change: docs/protocol.md section 5. */
  readonly pins: string;
  /** The highest head of the key server's audit log: gateway/control/audit-heads.ts. */
  readonly auditHeads: string;
  /** The newest settings document that held, so that a start needs no key server to know the suite. */
  readonly settings: string;
}

/** Paths below a gateway's directory. */
export function gatewayPaths(dir: string): GatewayPaths {
  return {
    dir,
    config: join(dir, 'gateway.yaml'),
    identity: join(dir, 'identity.key'),
    channel: join(dir, 'channel.key'),
    membership: join(dir, 'membership'),
    state: join(dir, 'state.json'),
    pins: join(dir, 'pins.json'),
    auditHeads: join(dir, 'audit-heads.json'),
    settings: join(dir, 'settings'),
  };
}

/** What was seen of another subnet's link ports: a file for each net. */
export function netPinsPath({ dir }: Pick<GatewayPaths, 'dir'>, net: Id): string {
  return join(dir, `pins-net-${net}.json`);
}

/** Folder of all run directories; root's, so that nobody can put other sockets in their place. */
export const RUN_ROOT = '/run/pairwire';

/** Sockets and what else lives only while a gateway runs. */
export interface RunPaths {
  /** Root's: sockets of broker and data plane. */
  readonly dir: string;
  readonly dataPlane: string;
  /** The control plane's own part (0700). */
  readonly controlDir: string;
  /** status, reload, renew, down: gateway/status/socket.ts. */
  readonly control: string;
}

/** Paths below the run directory. */
export function runPaths(runDir: string): RunPaths {
  const controlDir = join(runDir, 'control');
  return {
    dir: runDir,
    dataPlane: join(runDir, 'dataplane.sock'),
    controlDir,
    control: join(controlDir, 'control.sock'),
  };
}
