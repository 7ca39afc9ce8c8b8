/**
 * The device broker in network namespaces of its own: what it opens and refuses, what survives
 * whose death, and that the underlay does not go round a TAP.
 *
 * ```
 *   namespace host                                       namespace lan
 *   +--------------------------------------------+       +-------------------------+
 *   | pw0  10.9.0.1/24   2001:db8:9::1/64  (TAP)  |       |                         |
 *   | eth0 192.0.2.1/24  2001:db8:a::1/64  -------+-------+ eth0 192.0.2.66         |
 *   | eth1 198.51.100.1/24  2001:db8:b::1/64      |       |      2001:db8:a::66     |
 *   +--------------------------------------------+       | lo   10.9.0.2 (claimed) |
 *                                                         +-------------------------+
 * ```
 * `lan` has no key. It routes to the TAP's and to eth1's addresses over eth0.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { z } from 'zod';
import { DevicesClient } from '../../gateway/dataplane/devices-client.js';
import { type DeviceSpec, formatDeviceList, startBroker } from '../../gateway/dataplane/launch.js';
import { findProgram } from '../../src/runtime/native-program.js';

const CONTROL_UID = 60_801;
const DATAPLANE_UID = 60_802;
const STRANGER_UID = 60_803;
const DEVICES: DeviceSpec[] = [
  {
    kind: 'tap',
    name: 'pw0',
    mac: '02:00:00:00:00:01',
    mtu: 1400,
    addresses: ['10.9.0.1/24', '2001:db8:9::1/64'],
  },
  { kind: 'udp', port: 51_820, mark: 0x5057 },
];

const native = join(import.meta.dirname, '../../gateway/native');
const tools = mkdtempSync(join(tmpdir(), 'pairwire-devices-tools-'));
const probe = join(tools, 'launch-probe');

interface Lab {
  host: string;
  lan: string;
  folder: string;
  run: string;
  log: string;
  program: string;
  started: number[];
}
let lab: Lab;

const sh = (program: string, ...arguments_: string[]): string =>
  execFileSync(program, arguments_, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
/** Words of `ip` inside a namespace. */
const ip = (namespace: string, words: string): string =>
  sh('ip', '-n', namespace, ...words.split(' '));
const inside = (namespace: string, ...command: string[]): string =>
  sh('ip', 'netns', 'exec', namespace, ...command);
const pidIn = (file: string): number =>
  Number(readFileSync(join(lab.run, file), 'utf8').split(' ')[0]);
const alive = (pid: number): boolean =>
  existsSync(`/proc/${pid}`) && !/^State:\sZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 10_000; Date.now() < end; await sleep(20)) {
    if (await condition()) return;
  }
  throw new Error(
    `not within 10 s: ${what}\n${existsSync(lab.log) ? readFileSync(lab.log, 'utf8') : ''}`,
  );
}

const linkSchema = z.array(
  z.looseObject({
    operstate: z.string(),
    mtu: z.int(),
    txqlen: z.int(),
    address: z.string(),
    linkinfo: z.looseObject({
      info_kind: z.string(),
      info_data: z.looseObject({
        type: z.string(),
        persist: z.boolean(),
        user: z.coerce.number(),
        vnet_hdr: z.boolean(),
      }),
    }),
  }),
);
const tap = () => linkSchema.parse(JSON.parse(ip(lab.host, '-j -d link show pw0')))[0];

/** Starts a broker for the lab the way `pairwire up` does. */
async function broker(devices = DEVICES): Promise<DevicesClient> {
  const client = await startBroker({
    devices,
    runDirectory: lab.run,
    controlUser: CONTROL_UID,
    dataplaneUser: DATAPLANE_UID,
    programs: { devices: lab.program, dataplane: probe },
    dataplaneArguments: ['--extra', 'argument'],
  });
  lab.started.push(pidIn('devices.pid'), pidIn('dataplane.pid'));
  return client;
}

/** Runs the broker in the foreground; for starts that must fail. */
function refusedStart(list: string | { file: string }, ...more: string[]): string {
  const file = typeof list === 'string' ? '-' : list.file;
  const result = spawnSync(
    lab.program,
    [
      ...['--list', file, '--run', lab.run, '--control-user', `${CONTROL_UID}`],
      ...(more.length > 0 ? more : ['--dataplane-user', `${DATAPLANE_UID}`]),
    ],
    { input: typeof list === 'string' ? list : '', encoding: 'utf8', timeout: 10_000 },
  );
  expect(result.status).not.toBe(0);
  return result.stderr;
}

beforeAll(() => {
  if (process.geteuid?.() !== 0) throw new Error('the lab needs root');
  sh('cc', '-O1', '-o', probe, join(import.meta.dirname, 'launch-probe.c'));
});
afterAll(() => rmSync(tools, { recursive: true, force: true }));

beforeEach(() => {
  const tag = randomBytes(4).toString('hex');
  const folder = mkdtempSync(join(tmpdir(), 'pairwire-devices-'));
  // Other users must be able to reach the sockets, and be refused there.
  chmodSync(folder, 0o755);
  lab = {
    host: `pw-host-${tag}`,
    lan: `pw-lan-${tag}`,
    folder,
    run: join(folder, 'run'),
    log: join(folder, 'run/devices.log'),
    program: join(folder, 'devices-in-namespace'),
    started: [],
  };
  const { host, lan } = lab;
  sh('ip', 'netns', 'add', host);
  sh('ip', 'netns', 'add', lan);
  const program = process.env.PAIRWIRE_DEVICES ?? findProgram('pairwire-devices');
  writeFileSync(lab.program, `#!/bin/sh\nexec /sbin/ip netns exec ${host} ${program} "$@"\n`, {
    mode: 0o755,
  });

  ip(host, `link add eth0 type veth peer name eth0 netns ${lan}`);
  ip(host, 'link add eth1 type veth peer name eth1-peer');
  for (const address of ['192.0.2.1/24 dev eth0', '198.51.100.1/24 dev eth1'])
    ip(host, `addr add ${address}`);
  for (const address of ['2001:db8:a::1/64 dev eth0', '2001:db8:b::1/64 dev eth1']) {
    ip(host, `addr add ${address} nodad`);
  }
  for (const link of ['lo', 'eth0', 'eth1', 'eth1-peer']) ip(host, `link set ${link} up`);
  for (const link of ['lo', 'eth0']) ip(lan, `link set ${link} up`);
  ip(lan, 'addr add 192.0.2.66/24 dev eth0');
  ip(lan, 'addr add 10.9.0.2/32 dev lo');
  ip(lan, 'addr add 2001:db8:a::66/64 dev eth0 nodad');
  ip(lan, 'addr add 2001:db8:9::2/128 dev lo nodad');
  // Some systems filter by reverse path, which hides part of the hole that is tested here.
  for (const link of ['all', 'eth0'])
    inside(host, 'sysctl', '-qw', `net.ipv4.conf.${link}.rp_filter=0`);
});

afterEach(() => {
  const pids = new Set(lab.started);
  for (const file of ['devices.pid', 'dataplane.pid']) {
    if (existsSync(join(lab.run, file))) pids.add(pidIn(file));
  }
  for (const pid of pids) {
    // Only what is still the program that we started.
    if (!alive(pid)) continue;
    if (!/launch-probe|pairwire-d/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))) continue;
    process.kill(pid, 'SIGKILL');
  }
  for (const namespace of [lab.host, lab.lan]) sh('ip', 'netns', 'del', namespace);
  rmSync(lab.folder, { recursive: true, force: true });
});

describe('opening devices', () => {
  it('sets up what the list says and passes it to the data plane', async () => {
    const client = await broker();
    const opened = await client.openTap('pw0');
    expect(opened).toMatchObject({
      mac: '02:00:00:00:00:01',
      mtu: 1400,
      attached: false,
      delivered: true,
      held: false,
    });
    expect(opened.offload).toEqual(expect.arrayContaining(['csum', 'tso4', 'tso6']));
    await expect(client.openUdp(51_820)).resolves.toMatchObject({ delivered: true });

    expect(tap()).toMatchObject({
      mtu: 1400,
      address: '02:00:00:00:00:01',
      linkinfo: {
        info_kind: 'tun',
        info_data: { type: 'tap', persist: true, user: DATAPLANE_UID, vnet_hdr: true },
      },
    });
    expect(ip(lab.host, '-br addr show pw0')).toMatch(/10\.9\.0\.1\/24.*2001:db8:9::1\/64/);
    expect(inside(lab.host, 'ss', '-ulnH')).toContain('*:51820');
    await until('both arrived', () =>
      /got udp 51820 with a descriptor/.test(readFileSync(lab.log, 'utf8')),
    );
    const log = readFileSync(lab.log, 'utf8');
    expect(log).toContain('got tap pw0 mac 02:00:00:00:00:01 mtu 1400 offload 1 with a descriptor');
    // The data plane: its own user and session, no inherited descriptor but 0 to 4, no environment.
    expect(log).toMatch(
      new RegExp(
        `uid ${DATAPLANE_UID} gid ${DATAPLANE_UID} sid 1 args --control-fd 3 --devices-fd 4 --control-uid ${CONTROL_UID} --extra argument; 5 descriptors, PATH unset`,
      ),
    );
    // Asked again, both are passed again: this is how a new data plane gets them.
    await expect(client.openTap('pw0')).resolves.toMatchObject({ delivered: true });
    client.close();
  });

  it('refuses what is not in its list', async () => {
    const client = await broker();
    for (const name of ['pw1', 'eth0', 'lo', '../pw0', 'pw0 mtu 9000']) {
      await expect(client.openTap(name)).rejects.toMatchObject({ code: 'DEVICES_REFUSED' });
    }
    await expect(client.openUdp(51_821)).rejects.toMatchObject({ code: 'DEVICES_REFUSED' });
    await expect(client.openTap('pw0\ndown')).rejects.toMatchObject({ code: 'USAGE' });
    expect((await client.status()).devices.map(({ open }) => open)).toEqual([false, false]);
    client.close();
  });

  it("leaves other programs' interfaces alone", async () => {
    const client = await broker();
    inside(lab.host, 'ip', 'tuntap', 'add', 'dev', 'pw0', 'mode', 'tap', 'user', `${STRANGER_UID}`);
    await expect(client.openTap('pw0')).rejects.toMatchObject({
      message: 'pw0 is a TAP of somebody else',
    });
    ip(lab.host, 'link del pw0');
    ip(lab.host, 'link add pw0 type veth peer name pw0-peer');
    await expect(client.openTap('pw0')).rejects.toMatchObject({
      message: 'pw0 is there already and is no TAP',
    });
    await client.down();
    expect(ip(lab.host, '-br link show pw0')).toContain('pw0');
  });

  it('obeys the uid of the control plane and root only', async () => {
    const client = await broker();
    const socket = join(lab.run, 'devices.sock');
    expect(statSync(socket)).toMatchObject({ uid: CONTROL_UID });
    expect(statSync(socket).mode & 0o777).toBe(0o600);
    expect(statSync(lab.run).mode & 0o777).toBe(0o711);
    const ask = (uid: number) =>
      spawnSync(
        'setpriv',
        [
          ...[`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '/usr/bin/python3', '-c'],
          `import socket;s=socket.socket(socket.AF_UNIX);s.connect('${socket}');${uid === CONTROL_UID ? "s.sendall(b'status\\n');" : ''}print(s.makefile().readline())`,
        ],
        { encoding: 'utf8' },
      );
    expect(ask(CONTROL_UID).stdout).toContain('"ok":true');
    expect(ask(STRANGER_UID).stderr).toContain('Permission denied');
    // Should the mode ever be wrong, the credentials still are.
    chmodSync(socket, 0o666);
    expect(ask(STRANGER_UID).stdout).toContain(
      `"error":"uid ${STRANGER_UID} is not the control plane"`,
    );
    expect(ask(CONTROL_UID).stdout).toContain('"ok":true');
    client.close();
  });

  it('serves eight at a time, the next one when there is room, and closes a line without end', async () => {
    (await broker()).close();
    const open: Socket[] = [];
    const connectAndAsk = (line: string) => {
      const socket = connect(join(lab.run, 'devices.sock'));
      open.push(socket);
      const it = { socket, answer: '', closed: false };
      socket.setEncoding('utf8');
      socket.on('data', (text: string) => {
        it.answer += text;
      });
      socket.on('error', () => {});
      socket.on('close', () => {
        it.closed = true;
      });
      socket.write(line);
      return it;
    };
    const soon = (holds: () => boolean) => vi.waitUntil(holds, { timeout: 5_000 });
    try {
      const eight = Array.from({ length: 8 }, () => connectAndAsk('status\n'));
      await soon(() => eight.every(({ answer }) => answer.includes('"ok":true')));
      const ninth = connectAndAsk('status\n');
      await sleep(300);
      expect(ninth.answer).toBe('');
      eight[3]?.socket.destroy();
      await soon(() => ninth.answer.includes('"ok":true'));
      // 256 bytes wait for their end; with one more there is no line.
      eight[0]?.socket.write('x'.repeat(256));
      eight[1]?.socket.write('x'.repeat(257));
      await soon(() => eight[1]?.closed === true);
      expect(eight[0]?.closed).toBe(false);
      eight[0]?.socket.write('\n');
      await soon(() => eight[0]?.answer.includes('"ok":false') === true);
    } finally {
      for (const socket of open) socket.destroy();
    }
  });

  it('refuses a list that is wrong or that others could write', () => {
    const good = formatDeviceList(DEVICES);
    for (const [line, why] of [
      ['tap pw1 mac 02:00:00:00:00:01', 'needs mac and mtu'],
      ['tap pw1 mac 03:00:00:00:00:01 mtu 1400', 'group address'],
      ['tap pw1 mac 02:00:00:00:00:0 mtu 1400', 'no MAC address'],
      ['tap pw0;reboot mac 02:00:00:00:00:01 mtu 1400', 'interface name'],
      ['tap pw0pw0pw0pw0pw01 mac 02:00:00:00:00:01 mtu 1400', 'interface name'],
      ['tap lo mac 02:00:00:00:00:01 mtu 1400', 'interface name'],
      ['tap pw1 mac 02:00:00:00:00:01 mtu 70000', 'mtu must be'],
      ['tap pw1 mac 02:00:00:00:00:01 mtu 1400 address 10.0.0.1', 'no /prefix'],
      ['tap pw1 mac 02:00:00:00:00:01 mtu 1400 address 127.0.0.1/8', "can't be used"],
      ['tap pw1 mac 02:00:00:00:00:01 mtu 1400 mtu 1500', 'twice'],
      ['tap pw1 mac 02:00:00:00:00:01 mtu 1400 owner 0', 'has no'],
      ['udp 0', 'the port must be'],
      ['udp 51821 bind 224.0.0.1', 'multicast'],
      ['udp 51820', 'there twice'],
      ['packet eth0', 'unknown kind'],
    ]) {
      expect(refusedStart(`${good}${line}\n`), line).toContain(why);
    }
    const file = join(lab.folder, 'list');
    writeFileSync(file, good);
    chmodSync(file, 0o666);
    expect(refusedStart({ file })).toContain('writable by others');
    chmodSync(file, 0o600);
    sh('chown', `${STRANGER_UID}`, file);
    expect(refusedStart({ file })).toContain('another user');
    expect(refusedStart(good, '--dataplane-user', '0')).toContain('must not be root');
    expect(existsSync(join(lab.run, 'devices.sock'))).toBe(false);
  });
});

describe('privileges', () => {
  const bits = (...numbers: number[]): string =>
    numbers
      .reduce((mask, number) => mask | (1n << BigInt(number)), 0n)
      .toString(16)
      .padStart(16, '0');
  const NET_ADMIN = 12;
  const NET_RAW = 13;
  // privileges.hpp: CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID in launcher mode besides.
  const launcher = bits(0, 5, 6, 7, NET_ADMIN, NET_RAW);
  const field = (pid: number, name: string): string | undefined =>
    new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];

  it('keeps the documented capabilities only, and gives the data plane none', async () => {
    const client = await broker();
    await client.openTap('pw0');
    const pid = pidIn('devices.pid');
    for (const set of ['CapPrm', 'CapEff', 'CapBnd']) expect(field(pid, set), set).toBe(launcher);
    for (const set of ['CapInh', 'CapAmb']) expect(field(pid, set), set).toBe(bits());
    expect(field(pid, 'NoNewPrivs')).toBe('1');
    const dataplane = pidIn('dataplane.pid');
    for (const set of ['CapPrm', 'CapEff', 'CapInh', 'CapAmb'])
      expect(field(dataplane, set), set).toBe(bits());
    expect(field(dataplane, 'NoNewPrivs')).toBe('1');
    expect(readFileSync(`/proc/${dataplane}/limits`, 'utf8')).toMatch(
      /^Max core file size\s+0\s+0/m,
    );
    client.close();
  });

  it('keeps less where a service manager starts the data plane', async () => {
    const child = spawn(
      lab.program,
      [
        '--list',
        '-',
        '--run',
        lab.run,
        '--control-user',
        `${CONTROL_UID}`,
        '--dataplane-user',
        `${DATAPLANE_UID}`,
      ],
      { stdio: ['pipe', 'ignore', 'inherit'] },
    );
    child.stdin.end(formatDeviceList(DEVICES));
    await until('it answers', () => existsSync(join(lab.run, 'devices.sock')));
    const client = await DevicesClient.connect(join(lab.run, 'devices.sock'));
    const status = await client.status();
    expect(status.dataplane).toBeNull();
    expect(field(status.pid, 'CapEff')).toBe(bits(NET_ADMIN, NET_RAW));
    // Nobody there to pass a device to.
    await expect(client.openUdp(51_820)).rejects.toMatchObject({ code: 'DEVICES_REFUSED' });
    await client.down();
  });

  it('one broker for a folder', async () => {
    const client = await broker();
    expect(refusedStart(formatDeviceList(DEVICES))).toContain('another broker runs there');
    client.close();
  });
});

describe('a TAP in a bridge', () => {
  const bridged = (...bridgePorts: string[]): DeviceSpec[] => [
    { kind: 'tap', name: 'pw0', mac: '02:00:00:00:00:01', mtu: 1500, bridge: 'br7', bridgePorts },
    { kind: 'udp', port: 51_820 },
  ];
  const masterOf = (name: string): string | undefined =>
    /master (\S+)/.exec(ip(lab.host, `link show ${name}`))?.[1];
  const there = (name: string): boolean =>
    spawnSync('ip', ['-n', lab.host, 'link', 'show', name]).status === 0;

  it('a bridge that is missing is made, says nothing, and goes with down', async () => {
    ip(lab.host, 'link add lan7 type veth peer name far7');
    const client = await broker(bridged('lan7'));
    await client.openTap('pw0');
    expect(masterOf('pw0')).toBe('br7');
    expect(masterOf('lan7')).toBe('br7');
    for (const name of ['br7', 'pw0'])
      expect(ip(lab.host, `address show ${name}`)).not.toMatch(/inet/);
    const bridge = ip(lab.host, 'link show br7');
    expect(bridge).toContain('UP');
    // An address of its own: neither the TAP's, which would change with its ports.
    expect(bridge).not.toContain('02:00:00:00:00:01');
    await client.down();
    expect(there('pw0')).toBe(false);
    expect(there('br7')).toBe(false);
    expect(masterOf('lan7')).toBeUndefined();
  });

  it('a bridge that is there is used, and stays with what it had', async () => {
    for (const words of [
      'link add br7 type bridge',
      'link add lan7 type veth peer name far7',
      'link add lan8 type veth peer name far8',
      'link set lan8 master br7',
    ]) {
      ip(lab.host, words);
    }
    const client = await broker(bridged('lan7', 'lan8'));
    await client.openTap('pw0');
    expect(masterOf('lan7')).toBe('br7');
    await client.down();
    expect(there('br7')).toBe(true);
    expect(masterOf('lan7')).toBeUndefined();
    expect(masterOf('lan8')).toBe('br7');
  });

  it('a bridge that somebody made anew under the same name is not taken away', async () => {
    const client = await broker(bridged());
    await client.openTap('pw0');
    ip(lab.host, 'link del br7');
    ip(lab.host, 'link add br7 type bridge');
    await client.down();
    expect(there('br7')).toBe(true);
  });

  it('a port that is not named any more is taken out', async () => {
    ip(lab.host, 'link add lan7 type veth peer name far7');
    ip(lab.host, 'link add lan8 type veth peer name far8');
    const before = await broker(bridged('lan7', 'lan8'));
    await before.openTap('pw0');
    expect(masterOf('lan8')).toBe('br7');
    before.close();
    const pid = pidIn('devices.pid');
    process.kill(pid, 'SIGTERM');
    await until('the first broker is gone', () => !alive(pid));
    const client = await broker(bridged('lan7'));
    await client.openTap('pw0');
    expect(masterOf('lan7')).toBe('br7');
    expect(masterOf('lan8')).toBeUndefined();
    await client.down();
    expect(there('br7')).toBe(false);
  });

  it('what would be cut off or go round is refused, and nothing is changed', async () => {
    // eth1 has an IP address.
    const client = await broker(bridged('eth1'));
    await expect(client.openTap('pw0')).rejects.toThrow(/eth1 has the IP address/);
    expect(there('br7')).toBe(false);
    expect(there('pw0')).toBe(false);
    await client.down();
    const around = formatDeviceList([
      ...bridged('eth0').slice(0, 1),
      { kind: 'udp', port: 51_820, device: 'eth0' },
    ]);
    const list = join(lab.folder, 'list');
    writeFileSync(list, around, { mode: 0o600 });
    expect(refusedStart({ file: list })).toContain('carries the sealed frames');
  });
});

describe('what survives', () => {
  it('the data plane is started again with back-off, and gets its devices again', async () => {
    const client = await broker();
    await client.openTap('pw0');
    ip(lab.host, 'addr add 10.9.0.77/24 dev pw0');
    const waits: number[] = [];
    for (let death = 1; death <= 4; death += 1) {
      const pid = pidIn('dataplane.pid');
      const killed = Date.now();
      process.kill(pid, 'SIGKILL');
      await until(
        'a new one runs',
        () => pidIn('dataplane.pid') !== pid && alive(pidIn('dataplane.pid')),
      );
      waits.push(Date.now() - killed);
      lab.started.push(pidIn('dataplane.pid'));
      expect((await client.status()).dataplane).toMatchObject({
        restarts: death,
        lastEnd: 'signal 9',
        adopted: false,
      });
      // The broker's own descriptor keeps carrier and addresses meanwhile.
      expect(ip(lab.host, '-br addr show pw0')).toMatch(/10\.9\.0\.1\/24.*10\.9\.0\.77\/24/);
      await expect(client.openTap('pw0')).resolves.toMatchObject({ delivered: true });
      await until(
        'delivered',
        () => readFileSync(lab.log, 'utf8').split('got tap pw0').length === death + 2,
      );
    }
    // 0.1, 0.2, 0.4, 0.8 s, and what starting takes.
    for (const [index, least] of [95, 195, 395, 795].entries()) {
      expect(waits[index], `wait ${index}`).toBeGreaterThanOrEqual(least);
      expect(waits[index], `wait ${index}`).toBeLessThan(least + 1_500);
    }
    client.close();
  });

  it('data plane, TAP and guard outlive the broker; the next one adopts them', async () => {
    const first = await broker();
    await first.openTap('pw0');
    await first.openUdp(51_820);
    ip(lab.host, 'addr add 10.9.0.77/24 dev pw0');
    const dataplane = pidIn('dataplane.pid');
    process.kill(pidIn('devices.pid'), 'SIGKILL');
    await expect(first.status()).rejects.toMatchObject({ code: 'DEVICES_GONE' });
    expect(alive(dataplane)).toBe(true);
    expect(inside(lab.host, 'nft', 'list', 'tables')).toContain('pairwire_pw0');

    const second = await broker();
    expect((await second.status()).dataplane).toMatchObject({ pid: dataplane, adopted: true });
    expect((await second.status()).guard.on).toBe(true);
    // It has them already, and a TAP can be attached once only.
    await expect(second.openTap('pw0')).resolves.toMatchObject({
      attached: true,
      delivered: false,
      held: true,
    });
    await expect(second.openUdp(51_820)).resolves.toMatchObject({ delivered: false, held: true });

    process.kill(dataplane, 'SIGKILL');
    await until(
      'a new data plane',
      async () => (await second.status()).dataplane?.adopted === false,
    );
    await until('it runs', async () => (await second.status()).dataplane?.pid != null);
    lab.started.push(pidIn('dataplane.pid'));
    await expect(second.openTap('pw0')).resolves.toMatchObject({ attached: true, delivered: true });
    await expect(second.openUdp(51_820)).resolves.toMatchObject({ delivered: true });
    expect(ip(lab.host, '-br addr show pw0')).toMatch(/10\.9\.0\.1\/24.*10\.9\.0\.77\/24/);
    second.close();
  });

  it('the TAP outlives both and comes back with its addresses', async () => {
    const first = await broker();
    await first.openTap('pw0');
    ip(lab.host, 'addr add 10.9.0.77/24 dev pw0');
    ip(lab.host, 'route add 203.0.113.0/24 via 10.9.0.2');
    for (const pid of [pidIn('devices.pid'), pidIn('dataplane.pid')]) process.kill(pid, 'SIGKILL');
    await until('both gone', () => !alive(pidIn('devices.pid')) && !alive(pidIn('dataplane.pid')));
    const index = ip(lab.host, '-o link show pw0').split(':')[0];
    expect(ip(lab.host, '-br addr show pw0')).toMatch(/10\.9\.0\.1\/24.*10\.9\.0\.77\/24/);

    const second = await broker();
    await expect(second.openTap('pw0')).resolves.toMatchObject({ attached: true, delivered: true });
    expect(ip(lab.host, '-o link show pw0').split(':')[0]).toBe(index);
    expect(ip(lab.host, '-br addr show pw0')).toMatch(/10\.9\.0\.1\/24.*10\.9\.0\.77\/24/);
    expect(ip(lab.host, 'route')).toContain('203.0.113.0/24');
    second.close();
  });

  it('SIGTERM ends the broker alone', async () => {
    const client = await broker();
    await client.openTap('pw0');
    const [pid, dataplane] = [pidIn('devices.pid'), pidIn('dataplane.pid')];
    process.kill(pid, 'SIGTERM');
    await until('it ended', () => !alive(pid));
    expect(alive(dataplane)).toBe(true);
    expect(tap()?.linkinfo.info_data.persist).toBe(true);
    expect(inside(lab.host, 'nft', 'list', 'tables')).toContain('pairwire_pw0');
  });

  it('`down` takes all of it away', async () => {
    const client = await broker();
    await client.openTap('pw0');
    const pids = [pidIn('devices.pid'), pidIn('dataplane.pid')];
    inside(lab.host, 'nft', 'add', 'table', 'inet', 'admin');
    await client.down();
    await until('both ended', () => pids.every((pid) => !alive(pid)));
    expect(ip(lab.host, '-br link')).not.toContain('pw0');
    expect(inside(lab.host, 'nft', 'list', 'tables').trim()).toBe('table inet admin');
    for (const file of [
      'devices.sock',
      'devices.pid',
      'dataplane.sock',
      'dataplane-devices.sock',
      'dataplane.pid',
      'devices.state',
    ]) {
      expect(existsSync(join(lab.run, file)), file).toBe(false);
    }
  });
});

describe('with the data plane itself', () => {
  it('it takes the devices inside its sandbox, and again after kill -9', async () => {
    const client = await startBroker({
      devices: DEVICES,
      runDirectory: lab.run,
      controlUser: CONTROL_UID,
      dataplaneUser: DATAPLANE_UID,
      programs: {
        devices: lab.program,
        dataplane: process.env.PAIRWIRE_DATAPLANE ?? findProgram('pairwire-dataplane'),
      },
    });
    for (let life = 1; life <= 2; life += 1) {
      const pid = pidIn('dataplane.pid');
      lab.started.push(pidIn('devices.pid'), pid);
      await expect(client.openTap('pw0')).resolves.toMatchObject({ delivered: true });
      await expect(client.openUdp(51_820)).resolves.toMatchObject({ delivered: true });
      await until('both are known', () => {
        const log = readFileSync(lab.log, 'utf8');
        return [/tap pw0/g, /udp 51820/g].every((what) => (log.match(what) ?? []).length >= life);
      });
      const status = readFileSync(`/proc/${pid}/status`, 'utf8');
      expect(status).toMatch(/^Seccomp:\s+2$/m);
      expect(status).toMatch(/^NoNewPrivs:\s+1$/m);
      expect(status).toMatch(new RegExp(`^Uid:(\\s+${DATAPLANE_UID}){4}$`, 'm'));
      for (const set of ['CapPrm', 'CapEff', 'CapInh', 'CapAmb']) {
        expect(status).toMatch(new RegExp(`^${set}:\\s+0+$`, 'm'));
      }
      if (life === 2) break;
      process.kill(pid, 'SIGKILL');
      await until('a new one runs', () => pidIn('dataplane.pid') !== pid);
    }
    const pid = pidIn('dataplane.pid');
    await client.down();
    // It was given the chance to end by itself.
    await until('it ended', () => !alive(pid));
  });
});

describe('guard', () => {
  /** Sends one datagram from the LAN to each address; tells which arrived at the host. */
  async function probe(targets: readonly string[]): Promise<string[]> {
    const listener = spawn(
      'ip',
      [
        ...['netns', 'exec', lab.host, 'python3', '-uc'],
        `import select, socket, sys, time
sockets = {}
for address in sys.argv[1:]:
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, 7777)); sockets[s] = address
print('ready')
end = None
while end is None or time.monotonic() < end:
    for s in select.select([*sockets] + ([sys.stdin] if end is None else []), [], [], 0.1)[0]:
        if s is sys.stdin: end = time.monotonic() + 0.5
        else: s.recvfrom(99); print(sockets[s])`,
        ...targets,
      ],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    );
    let output = '';
    listener.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    const ended = new Promise((resolve) => listener.once('close', resolve));
    await until('the listener is ready', () => output.includes('ready'));
    inside(
      lab.lan,
      'python3',
      '-c',
      `import socket, sys
for address in sys.argv[1:]:
    six = ':' in address
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    inner = address.startswith(('10.9.', '2001:db8:9:'))
    s.bind((('2001:db8:9::2' if six else '10.9.0.2') if inner else '', 0))
    s.sendto(b'plaintext from the underlay', (address, 7777))`,
      ...targets,
    );
    // All is sent: it listens for a moment longer.
    listener.stdin.end();
    await ended;
    return output
      .split('\n')
      .filter((line) => targets.includes(line))
      .sort();
  }

  const TAP_ADDRESSES = ['10.9.0.1', '2001:db8:9::1'];
  const OTHERS = ['192.0.2.1', '198.51.100.1', '2001:db8:a::1', '2001:db8:b::1'];

  /** The LAN's machine needs no ARP to send: it fills its own tables. */
  function teachLan(): void {
    const mac = /link\/ether (\S+)/.exec(ip(lab.host, '-o link show eth0'))?.[1];
    for (const target of ['10.9.0.1', '198.51.100.1']) {
      ip(lab.lan, `route replace ${target} dev eth0`);
      ip(lab.lan, `neigh replace ${target} lladdr ${mac} dev eth0 nud permanent`);
    }
    for (const target of ['2001:db8:9::1', '2001:db8:b::1']) {
      ip(lab.lan, `-6 route replace ${target} dev eth0`);
      ip(lab.lan, `-6 neigh replace ${target} lladdr ${mac} dev eth0 nud permanent`);
    }
  }

  /** Addresses of the TAP take part only when duplicate address detection is through. */
  const settled = (client: DevicesClient) =>
    until('no address is tentative', async () => {
      await client.status();
      return !ip(lab.host, '-6 addr show dev pw0').includes('tentative');
    });

  it('stops the underlay from speaking to a TAP, and harms nobody else', async () => {
    const client = await broker();
    await client.openTap('pw0');
    await settled(client);
    teachLan();
    const all = [...TAP_ADDRESSES, ...OTHERS];

    // The hole is real: without the guard every datagram arrives.
    await expect(client.guard(false)).resolves.toBe(false);
    expect(await probe(all)).toEqual([...all].sort());

    await expect(client.guard(true)).resolves.toBe(true);
    expect(await probe(all)).toEqual([...OTHERS].sort());
    const guard = (await client.status()).guard;
    expect(guard.taps[0]).toMatchObject({ tap: 'pw0', underlay: 2 });
    expect(guard.taps[0]?.addresses).toEqual(expect.arrayContaining(TAP_ADDRESSES));

    // The host itself still reaches its own address.
    expect(inside(lab.host, 'ping', '-c1', '-W2', '10.9.0.1')).toContain('1 received');
    client.close();
  });

  it('guards 512 addresses of a TAP; with more it says so and keeps those it had', async () => {
    const client = await broker();
    await client.openTap('pw0');
    const guarded = async () => (await client.status()).guard.taps[0]?.addresses ?? [];
    const change = (verb: 'add' | 'del', first: number, count: number): void => {
      const lines = Array.from({ length: count }, (_, at) => {
        const n = first + at;
        return `addr ${verb} 10.77.${n >> 8}.${n & 255}/32 dev pw0`;
      });
      const batch = join(lab.folder, 'batch');
      writeFileSync(batch, `${lines.join('\n')}\n`);
      ip(lab.host, `-batch ${batch}`);
    };
    // Its own counts twice, with the broadcast address of its prefix.
    change('add', 0, 510);
    await until('512 are guarded', async () => (await guarded()).includes('10.77.1.253'));
    change('add', 510, 1);
    await until('it says so', () =>
      readFileSync(lab.log, 'utf8').includes('pw0 has more addresses than can be guarded'),
    );
    expect(await guarded()).toEqual(
      expect.arrayContaining(['10.9.0.1', '10.77.0.0', '10.77.1.253']),
    );
    expect(await guarded()).not.toContain('10.77.1.254');
    change('del', 0, 1);
    await until('the new one is guarded', async () => (await guarded()).includes('10.77.1.254'));
    client.close();
  });

  it('follows addresses that are given to the TAP later', async () => {
    const client = await broker();
    await client.openTap('pw0');
    ip(lab.host, 'addr add 10.9.7.1/24 dev pw0');
    ip(lab.host, '-6 addr add 2001:db8:9:7::1/64 dev pw0 nodad');
    const addresses = async () => (await client.status()).guard.taps[0]?.addresses ?? [];
    await until('both are guarded', async () => {
      const now = await addresses();
      return (
        now.includes('10.9.7.1') && now.includes('10.9.7.255') && now.includes('2001:db8:9:7::1')
      );
    });
    await settled(client);
    const mac = /link\/ether (\S+)/.exec(ip(lab.host, '-o link show eth0'))?.[1];
    ip(lab.lan, 'route replace 10.9.7.1 dev eth0');
    ip(lab.lan, `neigh replace 10.9.7.1 lladdr ${mac} dev eth0 nud permanent`);
    ip(lab.lan, '-6 route replace 2001:db8:9:7::1 dev eth0');
    ip(lab.lan, `-6 neigh replace 2001:db8:9:7::1 lladdr ${mac} dev eth0 nud permanent`);
    expect(await probe(['10.9.7.1', '2001:db8:9:7::1'])).toEqual([]);
    ip(lab.host, 'addr del 10.9.7.1/24 dev pw0');
    await until('it is let go', async () => !(await addresses()).includes('10.9.7.1'));
    client.close();
  });

  it("does not answer ARP for the TAP's address on the underlay", async () => {
    const client = await broker();
    await client.openTap('pw0');
    await client.guard(false);
    ip(lab.lan, 'route add 10.9.0.1 dev eth0');
    ip(lab.lan, 'route add 198.51.100.1 dev eth0');
    const resolves = (address: string): boolean => {
      spawnSync('ip', ['netns', 'exec', lab.lan, 'ping', '-c1', '-W1', address]);
      const found = ip(lab.lan, `neigh show ${address}`).includes('lladdr');
      ip(lab.lan, 'neigh flush dev eth0');
      return found;
    };
    expect(resolves('10.9.0.1')).toBe(true);
    await client.guard(true);
    expect(resolves('10.9.0.1')).toBe(false);
    expect(resolves('198.51.100.1')).toBe(true);
    expect((await client.status()).guard.taps[0]?.arp).toBeGreaterThan(0);
    client.close();
  });

  it('forwards nothing between underlay and TAP unless the list allows it', async () => {
    // A router: 10.9.0.9 is behind the TAP. A counter behind the forward hook tells what went there.
    inside(
      lab.host,
      'nft',
      'add table inet count; add chain inet count out { type filter hook postrouting priority 0; }; add rule inet count out oifname pw0 ip daddr 10.9.0.9 counter',
    );
    const forwarded = async (client: DevicesClient): Promise<number> => {
      await client.openTap('pw0');
      inside(lab.host, 'sysctl', '-qw', 'net.ipv4.ip_forward=1');
      ip(lab.host, 'neigh replace 10.9.0.9 lladdr 02:00:00:00:00:09 dev pw0 nud permanent');
      ip(lab.lan, 'route replace 10.9.0.9 via 192.0.2.1');
      const sent = () =>
        Number(/packets (\d+)/.exec(inside(lab.host, 'nft', 'list table inet count'))?.[1]);
      const before = sent();
      const ping = 'ping -I 192.0.2.66 -c3 -i0.1 -W1 10.9.0.9';
      spawnSync('ip', ['netns', 'exec', lab.lan, ...ping.split(' ')]);
      return sent() - before;
    };
    const closed = await broker();
    expect(await forwarded(closed)).toBe(0);
    expect((await closed.status()).guard.taps[0]?.forward).toBe(3);
    await closed.down();

    const open = await broker(
      DEVICES.map((device) => (device.kind === 'tap' ? { ...device, forward: true } : device)),
    );
    expect(await forwarded(open)).toBe(3);
    open.close();
  });

  it('two gateways of one namespace keep out of the way of each other', async () => {
    const first = await broker();
    await first.openTap('pw0');
    const run = lab.run;
    lab.run = join(lab.folder, 'run2');
    const second = await broker([
      {
        kind: 'tap',
        name: 'pw1',
        mac: '02:00:00:00:00:02',
        mtu: 1400,
        addresses: ['10.10.0.1/24'],
      },
    ]);
    await second.openTap('pw1');
    expect(inside(lab.host, 'nft', 'list', 'tables')).toMatch(
      /inet pairwire_pw0[\s\S]*inet pairwire_pw1/,
    );
    await second.down();
    lab.run = run;
    expect(inside(lab.host, 'nft', 'list', 'tables')).toContain('pairwire_pw0');
    expect(inside(lab.host, 'nft', 'list', 'tables')).not.toContain('pairwire_pw1');
    first.close();
  });

  it('comes back when somebody flushes the ruleset', async () => {
    const client = await broker();
    await client.openTap('pw0');
    inside(lab.host, 'nft', 'flush', 'ruleset');
    expect((await client.status()).guard.on).toBe(true);
    expect(inside(lab.host, 'nft', 'list', 'tables')).toContain('pairwire_pw0');
    client.close();
  });
});

describe('sandbox of the data plane', () => {
  it('refuses everything that it should, in earnest by a kill', () => {
    const program = join(tools, 'sandbox-selftest');
    const main = join(tools, 'main.cpp');
    writeFileSync(
      main,
      '#include "sandbox.hpp"\nint main() { return pairwire::run_sandbox_selftest(); }\n',
    );
    sh(
      'g++',
      ...['-std=c++20', '-O1', `-I${join(native, 'control')}`, main],
      ...['sandbox.cpp', 'sandbox-selftest.cpp'].map((file) => join(native, 'control', file)),
      ...['-pthread', '-o', program],
    );
    const schema = z.strictObject({
      landlock: z.int(),
      refused: z.boolean(),
      needed: z.string(),
      attempts: z.array(
        z.strictObject({
          name: z.string(),
          result: z.string(),
          permissive: z.string(),
          refused: z.boolean(),
        }),
      ),
    });
    for (const prefix of [[], ['setpriv', '--reuid=60804', '--regid=60804', '--clear-groups']]) {
      chmodSync(tools, 0o755);
      const [command = program, ...rest] = [...prefix, program];
      const report = schema.parse(JSON.parse(sh(command, ...rest)));
      expect(report.attempts.filter(({ refused }) => !refused)).toEqual([]);
      expect(report.attempts.map(({ name }) => name)).toEqual(
        expect.arrayContaining([
          'open',
          'openat',
          'socket',
          'connect',
          'bind',
          'ioctl',
          'ptrace',
          'execve',
          'io_uring_setup',
          'setsockopt',
          'mmap PROT_EXEC',
          'process_vm_readv',
        ]),
      );
      expect(report).toMatchObject({ refused: true, needed: 'succeeded' });
    }
  });
});
