/** FRR (zebra and ospfd) in a host of the laboratory, with a folder and sockets of its own, as a user runs it. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { type ProcessId, run, waitFor } from '../../../scripts/laboratory/processes.js';

const DAEMONS = '/usr/lib/frr';
/** Whom its package has made for it. */
const USER = 'frr';
/** So often a router says that it is there, and so long it may be silent, s: a busy machine is no dead router. */
const HELLO_SECONDS = 1;
const DEAD_SECONDS = 20;

const neighboursSchema = z.object({
  neighbors: z.record(
    z.string(),
    z.array(z.object({ nbrState: z.string(), ifaceName: z.string() })),
  ),
});

export interface OspfOptions {
  /** Its name among routers, an IPv4 address. */
  readonly id: string;
  /** Networks of its interfaces that take part, all in area 0. */
  readonly networks: readonly string[];
  /** Interfaces that are told of and where no other router is. */
  readonly passive?: readonly string[];
  /** Routes of the kernel that lead into this interface are told of, too. */
  readonly tells?: string;
}

export class OspfRouter {
  private constructor(
    private readonly lab: Lab,
    readonly host: string,
    private readonly dir: string,
    private readonly daemons: readonly ProcessId[],
  ) {}

  /** Returns when it answers; neighbours come later. */
  static async start(lab: Lab, host: string, options: OspfOptions): Promise<OspfRouter> {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-frr-'));
    const { id, networks, passive = [], tells } = options;
    const interfaces = [
      'interface pw0',
      ` ip ospf hello-interval ${HELLO_SECONDS}`,
      ` ip ospf dead-interval ${DEAD_SECONDS}`,
    ];
    const filter =
      tells === undefined ? [] : ['route-map TOLD permit 10', ` match interface ${tells}`];
    const router = [
      'router ospf',
      ` ospf router-id ${id}`,
      ...networks.map((network) => ` network ${network} area 0`),
      ...passive.map((name) => ` passive-interface ${name}`),
      ...(tells === undefined ? [] : [' redistribute kernel route-map TOLD']),
    ];
    writeFileSync(join(dir, 'zebra.conf'), `hostname ${host}\n`);
    const text = [`hostname ${host}`, ...interfaces, ...filter, ...router, ''].join('\n');
    writeFileSync(join(dir, 'ospfd.conf'), text);
    await run(['chown', '-R', `${USER}:${USER}`, dir]);
    const start = (daemon: string): ProcessId => {
      const files = ['-f', join(dir, `${daemon}.conf`), '-i', join(dir, `${daemon}.pid`)];
      const sockets = ['-z', join(dir, 'zserv.api'), '--vty_socket', dir, '-P', '0'];
      const argv = [join(DAEMONS, daemon), ...files, ...sockets, '-u', USER, '-g', USER];
      return lab.spawn(host, argv, { label: daemon });
    };
    const made = new OspfRouter(lab, host, dir, [start('zebra'), start('ospfd')]);
    await waitFor(async () => (await made.show('show ip ospf json')) !== undefined, {
      ...{ what: `the routing daemon of ${host}`, timeoutMs: 40_000, everyMs: 200 },
    });
    return made;
  }

  /** What a command of the daemon prints as JSON; undefined if it does not answer (yet). */
  private async show(command: string): Promise<unknown> {
    const argv = ['vtysh', '--vty_socket', this.dir, '-d', 'ospfd', '-c', command];
    const { code, stdout } = await this.lab.exec(this.host, argv, { check: false });
    return code === 0 && stdout.trimStart().startsWith('{') ? JSON.parse(stdout) : undefined;
  }

  /** Routers with which it has a whole common picture, by their ids. */
  async fullNeighbours(): Promise<string[]> {
    const shown = neighboursSchema.safeParse(await this.show('show ip ospf neighbor json'));
    if (!shown.success) return [];
    return Object.entries(shown.data.neighbors)
      .filter(([, states]) => states.some(({ nbrState }) => nbrState.startsWith('Full/')))
      .map(([id]) => id)
      .sort();
  }

  /** Where its kernel sends packets for a network because OSPF says so; undefined if nowhere. */
  async learned(network: string): Promise<string | undefined> {
    const { stdout } = await this.lab.exec(this.host, ['ip', 'route', 'show', network]);
    return / via (\S+) dev \S+ proto ospf/.exec(stdout)?.[1];
  }

  async stop(): Promise<void> {
    for (const one of this.daemons.toReversed()) await this.lab.stop(one);
    rmSync(this.dir, { recursive: true, force: true });
  }
}
