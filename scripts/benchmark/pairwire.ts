/** Pairwire's own tunnels: a key server and two gateways by the ordinary commands. */
import type { ChildProcess } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { fillTables } from './fill-tables.js';
import type { Bed, Side } from './namespaces.js';
import type { Peer } from './peers.js';
import { firstBeyondSecondMs, twoPings } from './two-pings.js';

const PROGRAM = fileURLToPath(new URL('../pairwire.mjs', import.meta.url));
const NULL_DATA_PLANE = fileURLToPath(
  new URL('../../gateway/native/build/null/pairwire-dataplane-null', import.meta.url),
);
const SERVER_PORT = 7900;
/** Interface of the LAN in both namespaces, for the transport `ethernet`. */
const LAN = 'lan0';
const INSIDE = { a: '198.51.100.1', b: '198.51.100.2' } as const;
/** Before a first ping. */
const QUIET_MS = 1_000;

export interface PairwireOptions {
  readonly name: string;
  readonly suite?: string;
  /** Use the data plane that does not encrypt: a build of its own that no configuration can reach. */
  readonly encryptionOff?: boolean;
  /** Straight on an Ethernet: a second pair of interfaces without any address; the first is for the key server. */
  readonly ethernet?: boolean;
  /** How many members to put into the tables beside the two that are there. */
  readonly crowd?: number;
  /** How often to measure the first ping with no key cached, each time in a new subnet. */
  readonly firstPings?: number;
}

const statusSchema = z.object({
  state: z.string(),
  server: z.object({ connected: z.boolean() }),
  ports: z.array(
    z.object({
      group: z.object({ pwId: z.number().nullish() }),
      peers: z.array(z.object({ pwId: z.number().nullish() })),
    }),
  ),
});

export function pairwire(options: PairwireOptions): Peer {
  return {
    name: options.name,
    kind: options.encryptionOff === true ? 'ceiling' : 'own',
    layer: 2,
    packages: [],
    open: async (bed) => {
      let subnet = await Subnet.started(bed, options, 0);
      const firstPingExtraMs: number[] = [];
      for (let i = 0; i < (options.firstPings ?? 0); i++) {
        if (i > 0) subnet = await anotherSubnet(bed, options, subnet, i);
        const ms = await subnet.firstPingExtraMs();
        if (ms !== undefined) firstPingExtraMs.push(ms);
      }
      await bed.waitFor(
        'a ping',
        async () => (await bed.try(bed.a, 'ping', '-c1', '-W1', INSIDE.b)) !== undefined,
      );
      if (options.crowd !== undefined) await subnet.crowd(options.crowd);
      return {
        bed,
        target: INSIDE.b,
        packets: await subnet.packetPids(),
        control: subnet.controlPids(),
        ...(firstPingExtraMs.length === 0 ? {} : { firstPingExtraMs }),
      };
    },
  };
}

/** A new one in place of another: a gateway that starts again may be given its keys before it asks. */
async function anotherSubnet(
  bed: Bed,
  options: PairwireOptions,
  former: Subnet,
  number: number,
): Promise<Subnet> {
  await former.end();
  return Subnet.started(bed, options, number);
}

/** One key server, on side b, and a gateway on each side. */
class Subnet {
  readonly #bed: Bed;
  readonly #options: PairwireOptions;
  readonly #folder: string;
  readonly #gateways = new Map<Side, ChildProcess>();
  #server: ChildProcess | undefined;

  private constructor(bed: Bed, options: PairwireOptions, number: number) {
    this.#bed = bed;
    this.#options = options;
    this.#folder = join(bed.folder, `${number}`);
  }

  /** @param number of the subnet in this bed; only one may stand at a time */
  static async started(bed: Bed, options: PairwireOptions, number: number): Promise<Subnet> {
    const subnet = new Subnet(bed, options, number);
    await subnet.#make();
    await subnet.#up();
    return subnet;
  }

  async #make(): Promise<void> {
    const bed = this.#bed;
    const { suite, encryptionOff } = this.#options;
    if (encryptionOff === true && !existsSync(NULL_DATA_PLANE)) {
      throw new Error('the data plane without encryption is not built: scripts/build-native null');
    }
    mkdirSync(this.#folder, { mode: 0o711 });
    if (this.#options.ethernet === true) await this.#makeLan();
    const server = join(this.#folder, 'server');
    const listen = `${bed.b.address}:${SERVER_PORT}`;
    const choice = suite === undefined ? [] : ['--suite', suite];
    await this.#cli(
      bed.b,
      'init',
      '--subnet',
      'bench',
      '--dir',
      server,
      '--listen',
      listen,
      ...choice,
    );
    this.#server = bed.start(bed.b, process.execPath, PROGRAM, 'keyserver', '--dir', server);
    await bed.waitFor('the key server', async () =>
      (await bed.run(bed.b, 'ss', '-Hltn', `sport = :${SERVER_PORT}`)).includes(`:${SERVER_PORT}`),
    );
    await Promise.all(bed.sides.map((side) => this.#join(side, server)));
    bed.beforeClose(() => this.end());
  }

  async #makeLan(): Promise<void> {
    const { a, b } = this.#bed;
    const far = ['peer', 'name', LAN, 'netns', b.namespace];
    await this.#bed.run(a, 'ip', 'link', 'add', LAN, 'type', 'veth', ...far);
    for (const side of this.#bed.sides) await this.#bed.run(side, 'ip', 'link', 'set', LAN, 'up');
  }

  async #join(side: Side, server: string): Promise<void> {
    const dir = this.#dir(side);
    const grant = ['--dir', server, '--id', side.name];
    const token = (await this.#cli(this.#bed.b, 'token', ...grant)).trim();
    const port = ['--interface', 'pwbench', '--address', `${INSIDE[side.name]}/24`];
    if (this.#options.ethernet === true) port.push('--transport', 'ethernet', '--device', LAN);
    await this.#cli(side, 'join', '--dir', dir, token, ...port);
    // Below our own folder, so that nothing stays in /run whatever happens.
    appendFileSync(join(dir, 'gateway.yaml'), `run: ${this.#run(side)}\n`);
  }

  async #up(): Promise<void> {
    const bed = this.#bed;
    const preset = this.#options.encryptionOff === true ? ['PAIRWIRE_NATIVE_PRESET=null'] : [];
    for (const side of bed.sides) {
      const words = [...preset, process.execPath, PROGRAM, 'up', '--dir', this.#dir(side)];
      this.#gateways.set(side, bed.start(side, 'env', ...words));
    }
    await Promise.all(
      bed.sides.map((side) => bed.waitFor(`gateway ${side.name}`, () => this.#ready(side), 30_000)),
    );
  }

  async #ready(side: Side): Promise<boolean> {
    const gateway = this.#gateways.get(side);
    if (gateway?.exitCode !== null) {
      throw new Error(`gateway ${side.name} ended: ${this.#bed.lastWords()}`);
    }
    const status = await this.#status(side);
    const group = status?.ports[0]?.group.pwId ?? undefined;
    return status?.state === 'up' && status.server.connected && group !== undefined;
  }

  async #status(side: Side): Promise<z.infer<typeof statusSchema> | undefined> {
    const words = [PROGRAM, 'status', '--json', '--dir', this.#dir(side)];
    const text = await this.#bed.try(side, process.execPath, ...words);
    return text === undefined ? undefined : statusSchema.parse(JSON.parse(text));
  }

  /** Takes both gateways away, keys and devices too, and ends the key server. */
  async end(): Promise<void> {
    const gateways = [...this.#gateways];
    this.#gateways.clear();
    const taken = await Promise.allSettled(
      gateways.map(async ([side, gateway]) => {
        await this.#cli(side, 'down', '--dir', this.#dir(side));
        await this.#bed.stop(gateway);
      }),
    );
    if (this.#server !== undefined) await this.#bed.stop(this.#server);
    for (const one of taken) if (one.status === 'rejected') throw one.reason;
  }

  /** Two pings after a start: what the first took longer than the second; undefined if a key was there. */
  async firstPingExtraMs(): Promise<number | undefined> {
    for (const side of this.#bed.sides) {
      const peers = (await this.#status(side))?.ports[0]?.peers ?? [];
      if (peers.some(({ pwId }) => typeof pwId === 'number')) return undefined;
    }
    // Until what goes on after a start, and after a program that has asked for the status, is done.
    await sleep(QUIET_MS);
    return firstBeyondSecondMs(await this.#bed.run(this.#bed.a, ...twoPings(INSIDE.b)));
  }

  /** Both control planes end, traffic goes on; then we give the orders that they would give. */
  async crowd(members: number): Promise<void> {
    for (const [side, gateway] of this.#gateways) {
      await this.#bed.stop(gateway);
      const client = await fillTables(join(this.#run(side), 'dataplane.sock'), members);
      this.#bed.beforeClose(async () => client.close());
    }
  }

  async packetPids(): Promise<number[]> {
    const names = [
      this.#options.encryptionOff === true ? 'pairwire-dataplane-null' : 'pairwire-dataplane',
      'pairwire-devices',
    ];
    const pids: number[] = [];
    for (const side of this.#bed.sides) {
      for (const name of names) pids.push(...(await this.#bed.pidsIn(side, name)));
    }
    if (pids.length < 4) throw new Error('data plane or broker of a gateway is missing');
    return pids;
  }

  controlPids(): number[] {
    return [...this.#gateways.values()].flatMap((gateway) =>
      gateway.pid === undefined || gateway.exitCode !== null ? [] : [gateway.pid],
    );
  }

  #dir(side: Side): string {
    return join(this.#folder, side.name);
  }

  #run(side: Side): string {
    return join(this.#folder, `run-${side.name}`);
  }

  async #cli(side: Side, ...args: readonly string[]): Promise<string> {
    return await this.#bed.run(side, process.execPath, PROGRAM, ...args);
  }
}
