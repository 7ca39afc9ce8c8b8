/** A real data plane with one port, and what it is told on the way there. */
import { type CommandPort, DataPlaneClient } from '../../../../gateway/dataplane/client.js';
import type {
  AnswerTo,
  CommandFields,
  CommandType,
} from '../../../../gateway/dataplane/messages.gen.js';
import { type MacAddress, macToBytes } from '../../../../src/protocol/mac.js';
import { TAP_NAME, TestDataPlane } from './data-plane.js';
import { SUBNET } from './records.js';

export const PORT = 1;
const OWN_INDEX = 1_000;

function routesText({ net, prefixes }: CommandFields<'routes.set'>): string {
  const texts = prefixes.map(({ ip, bits }) => `${[...ip].join('.')}/${bits}`);
  return ` ${net || 'ours'}: ${texts.join(' ')}`;
}

/** Passes commands on to the data plane and notes their names. */
export class WatchedPort implements CommandPort {
  /** Our boot key in it. */
  boot = 0;
  /** Its sender index. */
  index = 0;
  #told: string[] = [];
  readonly #plane: TestDataPlane;
  readonly #client: DataPlaneClient;

  private constructor(plane: TestDataPlane, client: DataPlaneClient) {
    this.#plane = plane;
    this.#client = client;
  }

  /** @param net of a link port: the net id of its subnet */
  static async make(path: string, member: string, mac: MacAddress, net = ''): Promise<WatchedPort> {
    const plane = await TestDataPlane.make(path, mac);
    const client = await DataPlaneClient.connect(path, { event: () => {}, close: () => {} });
    await client.request('attach', { epoch: 1 });
    await client.request('port.set', {
      port: PORT,
      subnet: SUBNET,
      member,
      tap: TAP_NAME,
      transport: 'udp',
      udpPort: plane.udpPort,
      underlayMtu: 1_500,
      device: '',
      macs: [macToBytes(mac)],
      suite: 'aes-256-gcm',
      backend: 'auto',
      spinUs: 0,
      helpers: 0,
      tag: 0,
      freshnessMs: 30_000,
      holdFrames: 64,
      holdMs: 1_000,
      holdBytes: 1_048_576,
      stormFrames: 1_000,
      kind: net === '' ? 'host' : 'link',
      net,
      pass: Buffer.alloc(0),
      elsewhere: [],
      broadcast: 'all',
      stp: 'drop',
      learnSeconds: 300,
      rights: 0,
      pairwise: false,
      answer: true,
      broadcasts: [],
    });
    const port = new WatchedPort(plane, client);
    await port.newBoot();
    return port;
  }

  /** As after a start of the data plane: another boot key, and nothing under it. */
  async newBoot(): Promise<number> {
    const former = this.boot;
    this.boot = (await this.#client.request('boot.make', { port: PORT })).boot;
    const index = OWN_INDEX + this.boot;
    this.index = index;
    await this.#client.request('boot.index', {
      port: PORT,
      boot: this.boot,
      index,
      afterMs: 0,
    });
    if (former !== 0) {
      await this.#client.request('boot.drop', { port: PORT, boot: former, graceMs: 0 });
    }
    return this.boot;
  }

  request<T extends CommandType>(
    type: T,
    fields: CommandFields<T>,
    timeoutMs?: number,
  ): Promise<AnswerTo<T>> {
    const generation = 'pwId' in fields ? ` ${String(fields.pwId)}` : '';
    const peer = 'peer' in fields ? ` ${String(fields.peer) || 'group'}` : '';
    const waits = 'send' in fields && !fields.send ? ' to receive' : '';
    const now = 'graceMs' in fields && fields.graceMs === 0 ? ' now' : '';
    const prefixes = type === 'routes.set' ? routesText(fields as CommandFields<'routes.set'>) : '';
    this.#told.push(`${type}${peer}${prefixes}${generation}${waits}${now}`);
    return this.#client.request(type, fields, timeoutMs);
  }

  /** `peer.set alice`, `key.pair alice 3`, `key.pair alice 4 to receive`, ... since the last call. */
  told(): string[] {
    return this.#told.splice(0);
  }

  /** What the data plane has made of it: `bob 2 1` is peer, its index and the generation to send with. */
  async holds(): Promise<string[]> {
    // Answers come in order, so all commands before have been carried out.
    const { ports } = await this.#client.request('stats', {});
    return (ports[0]?.peers ?? [])
      .map(({ peer, index, hasKey, pwId }) => `${peer} ${index} ${hasKey ? pwId : 'no key'}`)
      .sort();
  }

  async close(): Promise<void> {
    this.#client.close();
    await this.#plane.close();
  }
}
