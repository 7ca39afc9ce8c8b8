/**
 * How to build each peer's tunnel between the two namespaces of the benchmark, by the programs as Debian
 * packages them (or one that the user names), each with an ordinary, encrypted configuration.
 */
import { type ChildProcess, execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Tunnel } from './measure.js';
import type { Bed, Side } from './namespaces.js';
import type { Row } from './result.js';
import { ROW } from './result.js';

/** A kind of tunnel. */
export interface Peer {
  readonly name: string;
  readonly kind: Row['kind'];
  readonly layer: 2 | 3;
  /** Debian packages that bring it; the first one's version is shown. */
  readonly packages: readonly string[];
  readonly open: (bed: Bed) => Promise<Tunnel>;
}

const INSIDE = { a: '198.51.100.1', b: '198.51.100.2' } as const;
/** Opening takes seconds; n2n and nebula find each other late. */
const REACH_MS = 40_000;

/** No tunnel: the bare veth pair, the ceiling of machine and generator. */
export const rawVeth: Peer = {
  name: ROW.veth,
  kind: 'ceiling',
  layer: 2,
  packages: [],
  open: async (bed) => ({ bed, target: bed.b.address, packets: [], control: [] }),
};

/** Debian's wireguard-go, or the user's own, which is named by its version. */
export function wireguardGo(program?: string): Peer {
  return {
    name: program === undefined ? ROW.wireguard : nameOf(program),
    kind: 'peer',
    layer: 3,
    packages: program === undefined ? ['wireguard-go', 'wireguard-tools'] : ['wireguard-tools'],
    open: (bed) => openWireguardGo(bed, program ?? 'wireguard-go'),
  };
}

function nameOf(program: string): string {
  const text = execFileSync(program, ['--version'], { encoding: 'utf8' });
  const version = /wireguard-go v?(\S+)/.exec(text)?.[1] ?? 'of unknown version';
  return `${ROW.wireguard} ${version}`;
}

async function openWireguardGo(bed: Bed, program: string): Promise<Tunnel> {
  // Control sockets lie in one folder for all namespaces and are named by the device.
  const device = (side: Side) => `${bed.tag}${side.name}`;
  const keyFile = (side: Side) => join(bed.folder, `${side.name}.key`);
  const open = new Map<Side, string>();
  const children: ChildProcess[] = [];
  for (const side of bed.sides) {
    writeFileSync(keyFile(side), await bed.run(side, 'wg', 'genkey'), { mode: 0o600 });
    const shell = `wg pubkey < ${keyFile(side)}`;
    open.set(side, (await bed.run(side, 'sh', '-c', shell)).trim());
    children.push(bed.start(side, program, '-f', device(side)));
  }
  for (const side of bed.sides) {
    await deviceThere(bed, side, device(side));
    const far = bed.other(side);
    const own = ['listen-port', '51820', 'private-key', keyFile(side)];
    const peer = ['peer', open.get(far) ?? '', 'allowed-ips', '0.0.0.0/0'];
    const endpoint = ['endpoint', `${far.address}:51820`];
    const set = ['set', device(side), ...own, ...peer, ...endpoint];
    await bed.waitFor(
      `wg set ${device(side)}`,
      async () => (await bed.try(side, 'wg', ...set)) !== undefined,
    );
    await bed.run(side, 'ip', 'link', 'set', device(side), 'mtu', '1420');
    await address(bed, side, device(side));
  }
  return await reached(bed, children);
}

/** OpenVPN with a TAP device: TLS with certificates that name each other, AES-256-GCM over UDP. */
export const openvpnTap: Peer = {
  name: 'openvpn (TAP)',
  kind: 'peer',
  layer: 2,
  packages: ['openvpn', 'openssl'],
  open: async (bed) => {
    const file = (side: Side, end: string) => join(bed.folder, `${side.name}.${end}`);
    const prints = new Map<Side, string>();
    for (const side of bed.sides) {
      const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
      const out = ['-keyout', file(side, 'key'), '-out', file(side, 'crt')];
      const rest = ['-days', '2', '-subj', `/CN=${side.name}`];
      await bed.run(side, 'openssl', 'req', '-x509', ...key, ...rest, ...out);
      const show = ['-in', file(side, 'crt'), '-noout', '-fingerprint', '-sha256'];
      const text = await bed.run(side, 'openssl', 'x509', ...show);
      prints.set(side, text.trim().split('=')[1] ?? '');
    }
    const children = bed.sides.map((side) => {
      const far = bed.other(side);
      const device = ['--dev', 'tapovpn', '--dev-type', 'tap', '--proto', 'udp', '--port', '1194'];
      const keys = ['--cert', file(side, 'crt'), '--key', file(side, 'key')];
      const trust = ['--peer-fingerprint', prints.get(far) ?? '', '--data-ciphers', 'AES-256-GCM'];
      const role = side === bed.b ? ['--tls-server', '--dh', 'none'] : ['--tls-client'];
      const rest = ['--remote', far.address, '--verb', '1'];
      return bed.start(side, 'openvpn', ...device, ...keys, ...trust, ...role, ...rest);
    });
    await addresses(bed, 'tapovpn');
    return await reached(bed, children);
  },
};

/** tinc 1.0 in switch mode with its own choice of cipher and digest. */
export const tincSwitch: Peer = {
  name: 'tinc (switch)',
  kind: 'peer',
  layer: 2,
  packages: ['tinc'],
  open: async (bed) => {
    const dir = (side: Side) => join(bed.folder, side.name);
    for (const side of bed.sides) {
      mkdirSync(join(dir(side), 'hosts'), { recursive: true });
      const far = bed.other(side);
      writeFileSync(
        join(dir(side), 'tinc.conf'),
        `Name = ${side.name}\nMode = switch\nDeviceType = tap\nInterface = taptinc\nConnectTo = ${far.name}\n`,
      );
      writeFileSync(
        join(dir(side), 'hosts', side.name),
        `Address = ${side.address}\nPort = 6550\n`,
      );
      await bed.run(side, 'sh', '-c', `tincd -c ${dir(side)} -K2048 < /dev/null`);
    }
    for (const side of bed.sides) {
      const host = join('hosts', side.name);
      copyFileSync(join(dir(side), host), join(dir(bed.other(side)), host));
    }
    const children = bed.sides.map((side) =>
      bed.start(side, 'tincd', '-D', '-c', dir(side), `--pidfile=${join(dir(side), 'pid')}`),
    );
    await addresses(bed, 'taptinc');
    return await reached(bed, children);
  },
};

/** fastd in TAP mode with the method that its documentation recommends for speed; the AES ones were no faster. */
export const fastdTap: Peer = {
  name: 'fastd (TAP)',
  kind: 'peer',
  layer: 2,
  packages: ['fastd'],
  open: async (bed) => {
    const keys = new Map<Side, { readonly secret: string; readonly open: string }>();
    for (const side of bed.sides) {
      const out = await bed.run(side, 'fastd', '--generate-key');
      keys.set(side, {
        secret: /Secret: ([0-9a-f]+)/.exec(out)?.[1] ?? '',
        open: /Public: ([0-9a-f]+)/.exec(out)?.[1] ?? '',
      });
    }
    const children = bed.sides.map((side) => {
      const far = bed.other(side);
      const file = join(bed.folder, `${side.name}.conf`);
      const lines = [
        `bind ${side.address}:10000;`,
        'mode tap;',
        'interface "tapfastd";',
        'mtu 1406;',
        'method "salsa2012+umac";',
        `secret "${keys.get(side)?.secret}";`,
        `peer "far" { remote ${far.address}:10000; key "${keys.get(far)?.open}"; }`,
      ];
      writeFileSync(file, `${lines.join('\n')}\n`, { mode: 0o600 });
      return bed.start(side, 'fastd', '--config', file);
    });
    await addresses(bed, 'tapfastd');
    return await reached(bed, children);
  },
};

/** nebula as its example configuration has it, the far side's address given. */
export const nebula: Peer = {
  name: 'nebula',
  kind: 'peer',
  layer: 3,
  packages: ['nebula'],
  open: async (bed) => {
    const { folder } = bed;
    const ca = ['-ca-crt', join(folder, 'ca.crt'), '-ca-key', join(folder, 'ca.key')];
    const out = (name: string) => [
      ...['-out-crt', join(folder, `${name}.crt`)],
      ...['-out-key', join(folder, `${name}.key`)],
    ];
    await bed.run(bed.a, 'nebula-cert', 'ca', '-name', 'bench', ...out('ca'));
    for (const { name } of bed.sides) {
      const sign = ['-name', name, '-ip', `${INSIDE[name]}/24`];
      await bed.run(bed.a, 'nebula-cert', 'sign', ...ca, ...sign, ...out(name));
    }
    const children = bed.sides.map((side) => {
      const far = bed.other(side);
      const own = join(folder, side.name);
      const all = '[{port: any, proto: any, host: any}]';
      const lines = [
        `pki: {ca: ${folder}/ca.crt, cert: ${own}.crt, key: ${own}.key}`,
        `static_host_map: {"${INSIDE[far.name]}": ["${far.address}:4242"]}`,
        'lighthouse: {am_lighthouse: false, interval: 60, hosts: []}',
        'listen: {host: 0.0.0.0, port: 4242, batch: 64, read_buffer: 10485760, write_buffer: 10485760}',
        'cipher: aes',
        'tun: {dev: nebbench, mtu: 1420, tx_queue: 1000}',
        `firewall: {outbound: ${all}, inbound: ${all}}`,
        'logging: {level: error, format: text}',
      ];
      writeFileSync(`${own}.yml`, `${lines.join('\n')}\n`);
      return bed.start(side, 'nebula', '-config', `${own}.yml`);
    });
    return await reached(bed, children);
  },
};

/** n2n 1.3 with its cipher (Twofish) and a supernode on side b. */
export const n2n: Peer = {
  name: 'n2n',
  kind: 'peer',
  layer: 2,
  packages: ['n2n'],
  open: async (bed) => {
    bed.start(bed.b, 'supernode', '-l', '7654');
    const children = bed.sides.map((side) => {
      const device = ['-d', 'tapn2n', '-a', INSIDE[side.name], '-s', '255.255.255.0'];
      const community = ['-c', 'bench', '-k', 'only-for-the-benchmark'];
      // No -f: in this version it means "into the background".
      const place = ['-l', `${bed.b.address}:7654`, '-p', '7655'];
      return bed.start(side, 'edge', ...device, ...community, ...place);
    });
    return await reached(bed, children);
  },
};

export const PACKAGED_PEERS: readonly Peer[] = [
  wireguardGo(),
  nebula,
  openvpnTap,
  tincSwitch,
  fastdTap,
  n2n,
];

async function deviceThere(bed: Bed, side: Side, device: string): Promise<void> {
  await bed.waitFor(
    `device ${device}`,
    async () => (await bed.try(side, 'ip', 'link', 'show', device)) !== undefined,
  );
}

async function address(bed: Bed, side: Side, device: string): Promise<void> {
  await bed.run(side, 'ip', 'addr', 'add', `${INSIDE[side.name]}/24`, 'dev', device);
  await bed.run(side, 'ip', 'link', 'set', device, 'up');
}

/** For tunnels that make a device and leave its address to us. */
async function addresses(bed: Bed, device: string): Promise<void> {
  for (const side of bed.sides) {
    await deviceThere(bed, side, device);
    await address(bed, side, device);
  }
}

/** The tunnel, once a ping has gone through. */
async function reached(bed: Bed, children: readonly ChildProcess[]): Promise<Tunnel> {
  await bed.waitFor(
    `a ping to ${INSIDE.b}`,
    async () => {
      const ended = children.some((child) => child.exitCode !== null);
      if (ended) throw new Error(`a program of the tunnel has ended: ${bed.lastWords()}`);
      return (await bed.try(bed.a, 'ping', '-c1', '-W1', INSIDE.b)) !== undefined;
    },
    REACH_MS,
  );
  const packets = children.flatMap((child) => (child.pid === undefined ? [] : [child.pid]));
  return { bed, target: INSIDE.b, packets, control: [] };
}
