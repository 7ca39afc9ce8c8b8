/**
 * How to build each peer's tunnel between the two namespaces of the benchmark, by the programs as Debian
 * packages them (or one that the user names), each with its ordinary, encrypted configuration.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Path } from './measure.js';
import { type Bed, pidsIn, type Side, waitFor } from './namespaces.js';

/** A tunnel that stands. */
export interface Tunnel {
  readonly path: Path;
  readonly close: () => Promise<void>;
}

/** A kind of tunnel. */
export interface Peer {
  readonly name: string;
  readonly layer: 2 | 3;
  /** Debian packages that bring it. */
  readonly packages: readonly string[];
  readonly open: (bed: Bed) => Promise<Tunnel>;
}

const A = '198.51.100.1';
const B = '198.51.100.2';

const workFolder = () => mkdtempSync(join(tmpdir(), 'pairwire-bench-'));

async function reachable(bed: Bed, target: string): Promise<void> {
  await waitFor(
    `a ping to ${target}`,
    () => bed.try(bed.a, 'ping', '-c', '1', '-W', '1', target) !== undefined,
    30_000,
  );
}

function address(bed: Bed, side: Side, device: string): void {
  bed.try(side, 'ip', 'addr', 'add', `${side === bed.a ? A : B}/24`, 'dev', device);
  bed.run(side, 'ip', 'link', 'set', device, 'up');
}

/** No tunnel: the bare veth pair, the ceiling. */
export const rawVeth: Peer = {
  name: 'raw veth',
  layer: 2,
  packages: [],
  open: async (bed) => ({ path: { bed, target: bed.b.address, pids: [] }, close: async () => {} }),
};

/** wireguard-go; `program` is Debian's or the user's own. */
export function wireguardGo(name: string, program: string): Peer {
  return {
    name,
    layer: 3,
    packages:
      program === 'wireguard-go' ? ['wireguard-go', 'wireguard-tools'] : ['wireguard-tools'],
    open: async (bed) => {
      const folder = workFolder();
      const keys = [bed.a, bed.b].map((side, i) => {
        const secret = bed.run(side, 'wg', 'genkey').trim();
        const file = join(folder, `key${i}`);
        writeFileSync(file, secret, { mode: 0o600 });
        const open = bed.run(side, 'sh', '-c', `wg pubkey < ${file}`).trim();
        return { file, open };
      });
      const sides = [bed.a, bed.b];
      const children = sides.map((side, i) =>
        bed.start(side, program, '-f', `wgb${process.pid % 10_000}${i}`),
      );
      for (const [i, side] of sides.entries()) {
        const device = `wgb${process.pid % 10_000}${i}`;
        const own = keys[i];
        const other = keys[1 - i];
        const far = sides[1 - i];
        if (own === undefined || other === undefined || far === undefined)
          throw new Error('two sides');
        await waitFor(
          `device ${device}`,
          () => bed.try(side, 'ip', 'link', 'show', device) !== undefined,
        );
        await waitFor(
          'wg set',
          () =>
            bed.try(
              side,
              'wg',
              'set',
              device,
              'listen-port',
              '51820',
              'private-key',
              own.file,
              'peer',
              other.open,
              'allowed-ips',
              '0.0.0.0/0',
              'endpoint',
              `${far.address}:51820`,
            ) !== undefined,
        );
        bed.run(side, 'ip', 'link', 'set', device, 'mtu', '1420');
        address(bed, side, device);
      }
      await reachable(bed, B);
      const comm = program.split('/').at(-1) ?? program;
      const pids = sides.flatMap((side) => pidsIn(side, comm));
      return {
        path: { bed, target: B, pids },
        close: async () => {
          for (const child of children) await bed.stop(child);
          rmSync(folder, { recursive: true });
        },
      };
    },
  };
}

/** OpenVPN with a TAP device, static key peer to peer as in its own examples, AES-256-GCM over UDP. */
export const openvpnTap: Peer = {
  name: 'openvpn (TAP)',
  layer: 2,
  packages: ['openvpn', 'openssl'],
  open: async (bed) => {
    const folder = workFolder();
    const certificate = (name: string) => {
      bed.run(
        bed.a,
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
        '-subj',
        `/CN=${name}`,
        '-keyout',
        join(folder, `${name}.key`),
        '-out',
        join(folder, `${name}.crt`),
      );
      return bed
        .run(
          bed.a,
          'sh',
          '-c',
          `openssl x509 -in ${join(folder, `${name}.crt`)} -noout -fingerprint -sha256 | cut -d= -f2`,
        )
        .trim();
    };
    const server = certificate('server');
    const client = certificate('client');
    const common = [
      '--dev',
      'tapovpn',
      '--dev-type',
      'tap',
      '--proto',
      'udp',
      '--port',
      '1194',
      '--data-ciphers',
      'AES-256-GCM',
      '--verb',
      '1',
      '--dh',
      'none',
      '--nobind',
    ].slice(0, -1);
    const children = [
      bed.start(
        bed.b,
        'openvpn',
        ...common,
        '--tls-server',
        '--cert',
        join(folder, 'server.crt'),
        '--key',
        join(folder, 'server.key'),
        '--peer-fingerprint',
        client,
        '--remote',
        bed.a.address,
      ),
      bed.start(
        bed.a,
        'openvpn',
        ...common,
        '--tls-client',
        '--cert',
        join(folder, 'client.crt'),
        '--key',
        join(folder, 'client.key'),
        '--peer-fingerprint',
        server,
        '--remote',
        bed.b.address,
      ),
    ];
    for (const side of [bed.a, bed.b]) {
      await waitFor('tapovpn', () => bed.try(side, 'ip', 'link', 'show', 'tapovpn') !== undefined);
      address(bed, side, 'tapovpn');
    }
    await reachable(bed, B);
    return tunnel(bed, 'openvpn', children, folder);
  },
};

/** tinc in switch mode. */
export const tincSwitch: Peer = {
  name: 'tinc (switch)',
  layer: 2,
  packages: ['tinc'],
  open: async (bed) => {
    const folder = workFolder();
    const names = ['a', 'b'] as const;
    for (const name of names) {
      const dir = join(folder, name);
      mkdirSync(join(dir, 'hosts'), { recursive: true });
      const other = name === 'a' ? 'b' : 'a';
      writeFileSync(
        join(dir, 'tinc.conf'),
        `Name = ${name}\nMode = switch\nDeviceType = tap\nInterface = taptinc\nConnectTo = ${other}\n`,
      );
      writeFileSync(join(dir, 'tinc-up'), '#!/bin/sh\nip link set $INTERFACE up\n', {
        mode: 0o755,
      });
      bed.run(bed.a, 'sh', '-c', `tincd -c ${dir} -K2048 </dev/null`);
      const own = bed.run(bed.a, 'sh', '-c', `cat ${dir}/hosts/${name}`);
      writeFileSync(
        join(dir, 'hosts', name),
        `Address = ${(name === 'a' ? bed.a : bed.b).address}\nPort = 6550\n${own}`,
      );
    }
    for (const name of names) {
      const other = name === 'a' ? 'b' : 'a';
      bed.run(bed.a, 'cp', join(folder, name, 'hosts', name), join(folder, other, 'hosts', name));
    }
    const children = names.map((name) =>
      bed.start(
        name === 'a' ? bed.a : bed.b,
        'tincd',
        '-D',
        '-c',
        join(folder, name),
        `--pidfile=${join(folder, `${name}.pid`)}`,
      ),
    );
    for (const side of [bed.a, bed.b]) {
      await waitFor('taptinc', () => bed.try(side, 'ip', 'link', 'show', 'taptinc') !== undefined);
      address(bed, side, 'taptinc');
    }
    await reachable(bed, B);
    return tunnel(bed, 'tincd', children, folder);
  },
};

/** fastd in TAP mode with its default authenticated method. */
export const fastdTap: Peer = {
  name: 'fastd (TAP)',
  layer: 2,
  packages: ['fastd'],
  open: async (bed) => {
    const folder = workFolder();
    const sides = [bed.a, bed.b];
    const keys = sides.map(() => {
      const out = bed.run(bed.a, 'fastd', '--generate-key');
      return {
        secret: /Secret: ([0-9a-f]+)/.exec(out)?.[1] ?? '',
        open: /Public: ([0-9a-f]+)/.exec(out)?.[1] ?? '',
      };
    });
    const children = sides.map((side, i) => {
      const far = sides[1 - i];
      const file = join(folder, `fastd${i}.conf`);
      writeFileSync(
        file,
        `bind ${side.address}:10000;\nmode tap;\ninterface "tapfastd";\nmtu 1406;\nmethod "salsa2012+umac";\nsecret "${keys[i]?.secret}";\npeer "far" { remote ${far?.address}:10000; key "${keys[1 - i]?.open}"; }\n`,
        { mode: 0o600 },
      );
      return bed.start(side, 'fastd', '--config', file);
    });
    for (const side of sides) {
      await waitFor(
        'tapfastd',
        () => bed.try(side, 'ip', 'link', 'show', 'tapfastd') !== undefined,
      );
      address(bed, side, 'tapfastd');
    }
    await reachable(bed, B);
    return tunnel(bed, 'fastd', children, folder);
  },
};

/** nebula with its defaults: a lighthouse on side b. */
export const nebula: Peer = {
  name: 'nebula',
  layer: 3,
  packages: ['nebula'],
  open: async (bed) => {
    const folder = workFolder();
    const inFolder = (command: string) => bed.run(bed.a, 'sh', '-c', `cd ${folder} && ${command}`);
    inFolder('nebula-cert ca -name bench');
    inFolder(`nebula-cert sign -name a -ip ${A}/24`);
    inFolder(`nebula-cert sign -name b -ip ${B}/24`);
    const sides = [bed.a, bed.b];
    const children = sides.map((side, i) => {
      const name = i === 0 ? 'a' : 'b';
      const far =
        i === 0 ? `"${B}": ["${bed.b.address}:4242"]` : `"${A}": ["${bed.a.address}:4242"]`;
      writeFileSync(
        join(folder, `${name}.yml`),
        `pki: {ca: ${folder}/ca.crt, cert: ${folder}/${name}.crt, key: ${folder}/${name}.key}\nstatic_host_map: {${far}}\nlighthouse: {am_lighthouse: false, interval: 60, hosts: []}\nlisten: {host: 0.0.0.0, port: 4242, read_buffer: 10485760, write_buffer: 10485760, batch: 64}\ntun: {dev: nebbench, mtu: 1420, tx_queue: 1000}\nfirewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}\nlogging: {level: error, format: text}\n`,
      );
      return bed.start(side, 'nebula', '-config', join(folder, `${name}.yml`));
    });
    await reachable(bed, B);
    return tunnel(bed, 'nebula', children, folder);
  },
};

/** n2n with AES and a supernode on side b. */
export const n2n: Peer = {
  name: 'n2n',
  layer: 2,
  packages: ['n2n'],
  open: async (bed) => {
    const folder = workFolder();
    const children = [bed.start(bed.b, 'supernode', '-l', '7654', '-f')];
    await new Promise((resolve) => setTimeout(resolve, 500));
    for (const side of [bed.a, bed.b]) {
      children.push(
        bed.start(
          side,
          'edge',
          '-d',
          'tapn2n',
          '-a',
          side === bed.a ? A : B,
          '-c',
          'bench',
          '-k',
          'benchmark-only',
          '-l',
          `${bed.b.address}:7654`,
          '-f',
        ),
      );
    }
    for (const side of [bed.a, bed.b]) {
      await waitFor('tapn2n', () => bed.try(side, 'ip', 'link', 'show', 'tapn2n') !== undefined);
      address(bed, side, 'tapn2n');
    }
    await reachable(bed, B);
    return tunnel(bed, 'edge', children, folder);
  },
};

function tunnel(
  bed: Bed,
  comm: string,
  children: readonly ReturnType<Bed['start']>[],
  folder: string,
): Tunnel {
  const pids = [bed.a, bed.b].flatMap((side) => pidsIn(side, comm));
  return {
    path: { bed, target: B, pids },
    close: async () => {
      for (const child of children) await bed.stop(child);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export const PACKAGED_PEERS: readonly Peer[] = [
  wireguardGo('wireguard-go', 'wireguard-go'),
  nebula,
  openvpnTap,
  tincSwitch,
  fastdTap,
  n2n,
];
