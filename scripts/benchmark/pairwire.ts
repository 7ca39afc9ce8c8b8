/** Pairwire's own tunnel for the benchmark: a key server and two gateways by the ordinary commands. */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Bed, pidsIn, waitFor } from './namespaces.js';
import type { Peer } from './peers.js';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const PROGRAM = join(root, 'scripts/pairwire.mjs');

/**
 * @param name `pairwire`, or with `encryption off` in it: then the data plane is the build with a null
 * AEAD, which no configuration can reach and no installation contains
 */
export function pairwire(name: string): Peer {
  const off = name.includes('encryption off');
  return {
    name,
    layer: 2,
    packages: [],
    open: async (bed: Bed) => {
      const folder = mkdtempSync(join(tmpdir(), 'pairwire-bench-'));
      chmodSync(folder, 0o711); // the control plane gives up root and still has to get through
      const server = join(folder, 'server');
      const environment = off ? ['env', 'PAIRWIRE_NATIVE_PRESET=null'] : ['env'];
      const cli = (side: Bed['a'], ...args: readonly string[]) =>
        bed.run(side, 'env', process.execPath, PROGRAM, ...args);
      cli(bed.b, 'init', '--subnet', 'bench', '--dir', server, '--listen', `${bed.b.address}:7900`);
      const children = [bed.start(bed.b, process.execPath, PROGRAM, 'keyserver', '--dir', server)];
      const addresses = new Map([
        [bed.a, '198.51.100.1'],
        [bed.b, '198.51.100.2'],
      ]);
      for (const [side, address] of addresses) {
        const id = side === bed.a ? 'a' : 'b';
        const dir = join(folder, id);
        const token = cli(bed.b, 'token', '--dir', server, '--id', id).trim();
        await waitFor(
          'the key server',
          () =>
            bed.try(side, 'sh', '-c', `exec 3<>/dev/tcp/${bed.b.address}/7900`) !== undefined ||
            bed.try(bed.b, 'ss', '-Hltn', 'sport = :7900')?.includes(':7900') === true,
        );
        cli(
          side,
          'join',
          '--dir',
          dir,
          token,
          '--interface',
          'pwbench',
          '--address',
          `${address}/24`,
        );
        children.push(
          bed.start(
            side,
            ...(environment as [string, ...string[]]),
            process.execPath,
            PROGRAM,
            'up',
            '--dir',
            dir,
          ),
        );
      }
      await waitFor(
        'a ping',
        () => bed.try(bed.a, 'ping', '-c', '1', '-W', '1', '198.51.100.2') !== undefined,
        30_000,
      );
      const pids = [bed.a, bed.b].flatMap((side) =>
        pidsIn(side, off ? 'pairwire-dataplane-null' : 'pairwire-dataplane'),
      );
      return {
        path: { bed, target: '198.51.100.2', pids },
        close: async () => {
          for (const side of [bed.a, bed.b])
            cli(side, 'down', '--dir', join(folder, side === bed.a ? 'a' : 'b'));
          for (const child of children) await bed.stop(child);
          rmSync(folder, { recursive: true, force: true });
        },
      };
    },
  };
}
