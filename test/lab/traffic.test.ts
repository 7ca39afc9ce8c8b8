/**
 * What ordinary programs see of an encrypted subnet of three hosts: everything that works on an
 * Ethernet segment works, from ARP to a DHCP server.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { run, waitFor } from '../../scripts/laboratory/processes.js';
import { addressesOf, linkOf, listening, ping } from './helpers/hosts.js';
import { inner4, inner6, type Member, threeHosts } from './helpers/topologies.js';
import { SMALL, useLab } from './helpers/use-lab.js';

const UDP_ECHO = fileURLToPath(new URL('./helpers/programs/udp-echo.mjs', import.meta.url));
const UDHCPC = fileURLToPath(new URL('./helpers/programs/udhcpc.sh', import.meta.url));
const MiB = 1 << 20;

// Who speaks for a network needs the right to.
const handle = useLab(
  threeHosts({ token: { carol: ['--grant', 'router'], bob: ['--grant', 'dhcp'] } }),
);
const scratch = mkdtempSync(join(tmpdir(), 'pairwire-traffic-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

describe('neighbours', () => {
  test('the first IPv4 ping with no key cached is answered', async () => {
    const { lab } = handle;
    expect(await ping(lab, 'alice', inner4('bob'))).toMatchObject({ sent: 1, received: 1 });
  });

  test('every member reaches every other, IPv4 and IPv6', async () => {
    const { lab } = handle;
    const pairs: [Member, Member][] = [
      ['alice', 'bob'],
      ['bob', 'carol'],
      ['carol', 'alice'],
    ];
    for (const [from, to] of pairs) {
      for (const address of [inner4(to), inner6(to)]) {
        const result = await ping(lab, from, address, { count: 3, intervalMs: 20 });
        expect(result, `${from} to ${address}`).toMatchObject({ sent: 3, received: 3 });
      }
    }
  });

  test('arping is answered with the MAC address of the member that was asked for', async () => {
    const { lab } = handle;
    const bob = await linkOf(lab, 'bob', 'pw0');
    const { stdout } = await lab.exec('alice', ['arping', '-I', 'pw0', '-c', '2', inner4('bob')]);
    const answers = [...stdout.matchAll(/\[([0-9A-Fa-f:]+)\]/g)].map((match) => match[1]);
    expect(answers.length).toBeGreaterThan(0);
    for (const mac of answers) expect(mac?.toLowerCase()).toBe(bob.address);
  });

  test('IPv6 neighbour discovery finds the MAC address of a member', async () => {
    const { lab } = handle;
    const carol = await linkOf(lab, 'carol', 'pw0');
    const { stdout } = await lab.exec('alice', ['ndisc6', '-1', inner6('carol'), 'pw0']);
    expect(stdout.toLowerCase()).toContain(carol.address);
  });

  test('members have IPv6 addresses by SLAAC from a router advertisement of one of them', async () => {
    const { lab } = handle;
    const config = join(scratch, 'radvd.conf');
    writeFileSync(
      config,
      `interface pw0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;
         prefix 2001:db8:77::/64 { AdvOnLink on; AdvAutonomous on; }; };\n`,
      { mode: 0o644 },
    );
    await lab.exec('carol', ['sysctl', '-q', '-w', 'net.ipv6.conf.all.forwarding=1']);
    const argv = ['radvd', '-n', '-C', config, '-p', join(scratch, 'radvd.pid'), '-m', 'stderr'];
    const radvd = lab.spawn('carol', argv);
    try {
      const addresses = await Promise.all(
        (['alice', 'bob'] as const).map((host) =>
          waitFor(
            async () =>
              (await addressesOf(lab, host, 'pw0')).find((one) => one.startsWith('2001:db8:77:')),
            { what: `an address by SLAAC on ${host}`, timeoutMs: 20_000, everyMs: 200 },
          ),
        ),
      );
      const result = await ping(lab, 'alice', addresses[1] ?? '', { source: addresses[0] });
      expect(result.received).toBe(1);
    } finally {
      await lab.stop(radvd);
    }
  });

  test('a DHCP client on one member gets an address from dnsmasq on another', async () => {
    const { lab } = handle;
    const options = [
      ...['--keep-in-foreground', '--conf-file=/dev/null', '--port=0', '--user=root', '--log-dhcp'],
      ...['--interface=pw0', '--bind-interfaces', '--log-facility=-', '--no-ping', '--pid-file='],
      ...['--dhcp-range=198.51.100.100,198.51.100.120,255.255.255.0,1h'],
      `--dhcp-leasefile=${join(scratch, 'leases')}`,
    ];
    const dnsmasq = lab.spawn('bob', ['dnsmasq', ...options]);
    try {
      await listening(lab, 'bob', 'udp', 67);
      const client = ['busybox', 'udhcpc', '-i', 'pw0', '-f', '-q', '-n', '-t', '5', '-T', '1'];
      const { stdout } = await lab.exec('alice', [...client, '-s', UDHCPC]);
      const bound = /bound (198\.51\.100\.1\d\d)\/\S+ from (\S+)/.exec(stdout);
      expect(bound?.[2]).toBe(inner4('bob'));
      const result = await ping(lab, 'alice', inner4('bob'), { source: bound?.[1] });
      expect(result.received).toBe(1);
    } finally {
      await lab.stop(dnsmasq);
    }
  });

  test('an IPv6 multicast ping is answered by every other member', async () => {
    const { lab } = handle;
    const { stdout } = await lab.exec('alice', ['ping', '-c', '2', '-i', '0.5', 'ff02::1%pw0']);
    const answers = new Set([...stdout.matchAll(/from (fe80::[0-9a-f:]+)/g)].map((m) => m[1]));
    for (const host of ['bob', 'carol'] as const) {
      const own = (await addressesOf(lab, host, 'pw0')).find((one) => one.startsWith('fe80:'));
      expect(answers, `answers to alice's ping of all nodes`).toContain(own);
    }
  });

  test('a UDP multicast query in the manner of mDNS is answered by several members', async () => {
    const { lab } = handle;
    const group = '239.255.51.51';
    const responders = (['bob', 'carol'] as const).map((host) =>
      lab.spawn('bob' === host ? 'bob' : 'carol', [
        'socat',
        `UDP4-RECVFROM:5454,reuseaddr,ip-add-membership=${group}:pw0,fork`,
        `SYSTEM:read question; echo $question is ${host}`,
      ]),
    );
    try {
      await Promise.all(
        (['bob', 'carol'] as const).map((host) => listening(lab, host, 'udp', 5454)),
      );
      const ask = [
        `socat`,
        '-t',
        '1.5',
        '-',
        `UDP4-DATAGRAM:${group}:5454,ip-multicast-if=${inner4('alice')},bind=${inner4('alice')}`,
      ];
      const { stdout } = await lab.exec('alice', ask, { input: '_pairwire._udp.local\n' });
      expect(stdout.trim().split('\n').sort()).toEqual([
        '_pairwire._udp.local is bob',
        '_pairwire._udp.local is carol',
      ]);
    } finally {
      await Promise.all(responders.map((one) => lab.stop(one)));
    }
  });
});

describe('bulk', () => {
  test('UDP datagrams of all sizes from 1 to the MTU come back as they were', async () => {
    const { lab } = handle;
    const { mtu } = await linkOf(lab, 'alice', 'pw0');
    const server = lab.spawn('bob', [process.execPath, UDP_ECHO, 'serve', '5353']);
    try {
      await listening(lab, 'bob', 'udp', 5353);
      for (const address of [inner4('bob'), inner6('bob')]) {
        const argv = [process.execPath, UDP_ECHO, 'probe', address, '5353', String(mtu)];
        const { stdout } = await lab.exec('alice', argv, { timeoutMs: 60_000 });
        expect(JSON.parse(stdout)).toEqual({ sent: mtu, back: mtu, altered: [], missing: [] });
      }
    } finally {
      await lab.stop(server);
    }
  });

  test('1 GiB over TCP in both directions at once arrives with the same SHA-256', {
    timeout: 300_000,
  }, async () => {
    const bytes = SMALL ? 64 * MiB : 1024 * MiB;
    const files = await Promise.all([randomFile('alice', bytes), randomFile('bob', bytes)]);
    const begin = performance.now();
    const received = await Promise.all([
      transfer('alice', 'bob', 6001, files[0].file),
      transfer('bob', 'alice', 6002, files[1].file),
    ]);
    const seconds = (performance.now() - begin) / 1000;
    expect(received).toEqual(files.map((one) => one.sha256));
    const mbits = (2 * bytes * 8) / seconds / 1e6;
    console.log(
      `2 x ${bytes / MiB} MiB in ${seconds.toFixed(1)} s, ${mbits.toFixed(0)} Mbit/s with hashing`,
    );
  });

  async function randomFile(name: string, bytes: number) {
    const file = join(scratch, `${name}.bin`);
    await run(['openssl', 'rand', '-out', file, String(bytes)]);
    const { stdout } = await run(['sha256sum', file]);
    return { file, sha256: stdout.split(' ')[0] };
  }

  /** Sends a file; the digest of what arrived. */
  async function transfer(from: Member, to: Member, port: number, file: string) {
    const { lab } = handle;
    const listen = `socat -u -b 262144 TCP-LISTEN:${port},reuseaddr STDOUT | sha256sum`;
    const send = async () => {
      await listening(lab, to, 'tcp', port);
      const target = `TCP:${inner4(to)}:${port}`;
      const argv = ['socat', '-u', '-b', '262144', `FILE:${file}`, target];
      return lab.exec(from, argv, { timeoutMs: 280_000 });
    };
    const [received] = await Promise.all([
      lab.exec(to, ['sh', '-c', listen], { timeoutMs: 280_000 }),
      send(),
    ]);
    return received.stdout.split(' ')[0];
  }
});
