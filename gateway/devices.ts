/**
 * The devices of a gateway: what the broker is told once, by root, at its start, and what the
 * control plane asks of it later (gateway/native/devices/broker.hpp).
 */
import { join } from 'node:path';
import type { MacAddress } from '../src/protocol/mac.js';
import { PairwireError } from '../src/runtime/errors.js';
import type { GatewayConfig } from './config.js';
import { DevicesClient } from './dataplane/devices-client.js';
import type { DeviceSpec } from './dataplane/launch.js';

/** What the agent needs of the device broker. */
export interface Devices {
  /** Has TAP and UDP socket opened and passed to the data plane, and the guard on. May be repeated. */
  open(): Promise<void>;
  /** Takes TAP and guard away, and ends data plane and broker. */
  close(): Promise<void>;
}

/** The broker's list: nothing that does not stand in it can be opened later. */
export function deviceSpecs(
  config: GatewayConfig,
  macs: readonly MacAddress[],
  mtu: number,
): DeviceSpec[] {
  const taps = config.ports.map((port): DeviceSpec => {
    const [mac] = macs;
    if (mac === undefined) {
      throw new PairwireError('RECORD_MISMATCH', 'the membership names no MAC address', {
        where: config.member,
      });
    }
    return { kind: 'tap', name: port.interface, mac, mtu, addresses: port.addresses };
  });
  const { port, bind, device } = config.transport;
  const udp: DeviceSpec = {
    kind: 'udp',
    port,
    ...(bind === undefined ? {} : { bind }),
    ...(device === undefined ? {} : { device }),
  };
  return [...taps, udp];
}

/** The broker of a run directory. */
export class BrokerDevices implements Devices {
  readonly #socket: string;
  readonly #taps: readonly string[];
  readonly #udpPort: number;

  constructor(runDir: string, config: GatewayConfig) {
    this.#socket = join(runDir, 'devices.sock');
    this.#taps = config.ports.map((port) => port.interface);
    this.#udpPort = config.transport.port;
  }

  async open(): Promise<void> {
    const client = await DevicesClient.connect(this.#socket);
    try {
      for (const tap of this.#taps) await client.openTap(tap);
      await client.openUdp(this.#udpPort);
      await client.guard(true);
    } finally {
      client.close();
    }
  }

  async close(): Promise<void> {
    const client = await DevicesClient.connect(this.#socket);
    await client.down();
  }
}
