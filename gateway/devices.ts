/**
 * The devices of a gateway: what the broker is told once, by root, at its start, and what the
 * control plane asks of it later (gateway/native/devices/broker.hpp).
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { type MacAddress, macFromBytes } from '../src/protocol/mac.js';
import { networkOf } from '../src/protocol/prefixes.js';
import { PairwireError } from '../src/runtime/errors.js';
import { type GatewayConfig, netsOf, type TransportConfig } from './config.js';
import { DevicesClient } from './dataplane/devices-client.js';
import type { DeviceSpec } from './dataplane/launch.js';

/** What the agent needs of the device broker. */
export interface Devices {
  /** Has TAP and the underlay's socket opened and passed to the data plane, and the guard on. May be repeated. */
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
    const tap = { kind: 'tap', name: port.interface, mtu } as const;
    if ('bridge' in port) {
      return {
        ...tap,
        mac: bridgedMac(config),
        bridge: port.bridge,
        bridgePorts: port.bridgePorts,
      };
    }
    if (port.kind === 'link') {
      return {
        ...tap,
        mac,
        addresses: port.addresses,
        forward: port.inside,
        arp: false,
        routes: [...netsOf(port).values()].flatMap(({ prefixes }) => prefixes).map(networkOf),
      };
    }
    return { ...tap, mac, addresses: port.addresses, forward: port.forward };
  });
  return [...taps, underlaySpec(config, macs)];
}

/**
 * The MAC address of a TAP in a bridge: nobody's. A bridge takes frames for the addresses of its ports for
 * itself, so the member's own would draw them away; and a fixed one survives a new start.
 */
function bridgedMac({ subnet, member }: GatewayConfig): MacAddress {
  const digest = createHash('sha256').update(`pairwire bridged tap ${subnet} ${member}`).digest();
  const [first = 0, ...rest] = digest.subarray(0, 6);
  return macFromBytes(Buffer.from([(first & 0xfc) | 0x02, ...rest]));
}

function underlaySpec(config: GatewayConfig, macs: readonly MacAddress[]): DeviceSpec {
  const { transport } = config;
  if (transport.kind === 'ethernet') return { kind: 'ethernet', name: transport.device, macs };
  if (transport.kind === 'ip') return { kind: 'wire', name: transport.device };
  const { port, bind, device, mark } = transport;
  return {
    kind: 'udp',
    port,
    ...(bind === undefined ? {} : { bind }),
    ...(device === undefined ? {} : { device }),
    ...(mark === undefined ? {} : { mark }),
  };
}

async function openUnderlay(client: DevicesClient, transport: TransportConfig): Promise<void> {
  switch (transport.kind) {
    case 'udp':
      await client.openUdp(transport.port);
      break;
    case 'ethernet':
      await client.openEthernet(transport.device);
      break;
    case 'ip':
      await client.openWire(transport.device);
  }
}

/** The broker of a run directory. */
export class BrokerDevices implements Devices {
  readonly #socket: string;
  readonly #taps: readonly string[];
  readonly #transport: TransportConfig;

  constructor(runDir: string, config: GatewayConfig) {
    this.#socket = join(runDir, 'devices.sock');
    this.#taps = config.ports.map((port) => port.interface);
    this.#transport = config.transport;
  }

  async open(): Promise<void> {
    const client = await DevicesClient.connect(this.#socket);
    try {
      for (const tap of this.#taps) await client.openTap(tap);
      await openUnderlay(client, this.#transport);
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
