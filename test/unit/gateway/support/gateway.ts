/** A gateway's agent in this process, between a real key server and a real data plane. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join as joinPath } from 'node:path';
import { Agent } from '../../../../gateway/agent.js';
import { loadGatewayConfig } from '../../../../gateway/config.js';
import type { Devices } from '../../../../gateway/devices.js';
import { join } from '../../../../gateway/join.js';
import { gatewayPaths } from '../../../../gateway/paths.js';
import type { Status } from '../../../../gateway/status/snapshot.js';
import { defaultMac, type MacAddress } from '../../../../src/protocol/mac.js';
import type { Right } from '../../../../src/protocol/records.js';
import { formatToken } from '../../../../src/protocol/token.js';
import type { PairwireError } from '../../../../src/runtime/errors.js';
import { createLogger } from '../../../../src/runtime/log.js';
import { SUBNET, type TestSubnet } from '../../keyserver/support/subnet.js';
import { type Stats, TAP_MTU, TAP_NAME, TestDataPlane } from './data-plane.js';
import type { EthernetFrame } from './tap.js';

/** Devices came with the start of the data plane; taken away, they take it with them. */
class StartedDevices implements Devices {
  /** What the data plane still held when its devices were taken away. */
  leftAtClose: Stats | undefined;
  readonly #plane: TestDataPlane;

  constructor(plane: TestDataPlane) {
    this.#plane = plane;
  }

  async open(): Promise<void> {}

  async close(): Promise<void> {
    this.leftAtClose = await this.#plane.stats();
    await this.#plane.stop();
  }
}

/** A joined gateway; `start` and `stop` may be repeated. */
export class TestGateway {
  readonly mac: MacAddress;
  readonly devices: StartedDevices;
  readonly control: string;
  readonly paths: ReturnType<typeof gatewayPaths>;
  ended: PairwireError | undefined | 'not yet' = 'not yet';
  #agent: Agent | undefined;

  private constructor(
    readonly folder: string,
    id: string,
    readonly plane: TestDataPlane,
  ) {
    this.mac = defaultMac(SUBNET, id);
    this.devices = new StartedDevices(plane);
    this.control = joinPath(folder, 'control.sock');
    this.paths = gatewayPaths(joinPath(folder, 'dir'));
  }

  /** @param role plain: its TAP is in a bridge that the test is */
  static async make(
    subnet: TestSubnet,
    id: string,
    role: 'host' | 'plain' = 'host',
    rights: readonly Right[] = [],
  ): Promise<TestGateway> {
    const folder = mkdtempSync(joinPath(tmpdir(), 'pw-gw-'));
    const plane = await TestDataPlane.make(joinPath(folder, 'dp.sock'), defaultMac(SUBNET, id));
    const gateway = new TestGateway(folder, id, plane);
    await join({
      dir: gateway.paths.dir,
      token: formatToken(subnet.token({ id, role, rights: [...rights] })),
      ...(role === 'plain' ? { bridge: 'br0' } : {}),
      interface: TAP_NAME,
      addresses: [],
      port: plane.udpPort,
      loopback: true,
    });
    return gateway;
  }

  async start(machineId = 'this machine'): Promise<void> {
    const agent = new Agent({
      config: loadGatewayConfig(this.paths.config),
      paths: this.paths,
      controlSocket: this.control,
      dataPlaneSocket: this.plane.path,
      devices: this.devices,
      mtu: { tap: TAP_MTU, underlay: 1_500, interface: 'eth0', outerIp: 6 },
      log: createLogger('test', { level: 'silent' }),
      version: '0.0.0',
      machineId,
    });
    agent.once('end', (error) => {
      this.ended = error;
    });
    await agent.start();
    this.#agent = agent;
  }

  /** The control plane ends, the data plane goes on. */
  async stop(): Promise<void> {
    await this.#agent?.stop();
  }

  /** What the user is told. */
  status(): Promise<Status> {
    if (this.#agent === undefined) throw new Error('the agent was not started');
    return this.#agent.status();
  }

  /** An application here sends a frame to one there until it arrives. */
  reach(other: TestGateway, text: string): Promise<EthernetFrame> {
    return this.plane.tap.reach(other.plane.tap, { to: other.mac, from: this.mac, text });
  }

  async close(): Promise<void> {
    await this.stop();
    await this.plane.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
