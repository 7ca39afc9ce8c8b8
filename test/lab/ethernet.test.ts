/**
 * The transport `ethernet`: members on one LAN that carries no IP at all. The tests of `udp` run on it,
 * too (PAIRWIRE_LAB_TRANSPORT=ethernet, scripts/test); here is what it has of its own.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { defaultRunDir } from '../../gateway/config.js';
import { DevicesClient } from '../../gateway/dataplane/devices-client.js';
import { runPaths } from '../../gateway/paths.js';
import type { Lab } from '../../scripts/laboratory/lab.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { ETHERTYPE_SEALED, FrameKind, SUBNET_TAG_MASK } from '../../src/protocol/constants.js';
import { parseId } from '../../src/protocol/ids.js';
import { BROADCAST_MAC, defaultMac, type MacAddress, macSchema } from '../../src/protocol/mac.js';
import { dropsOf, expectDrops, growth } from './helpers/drops.js';
import { EthernetPort } from './helpers/ethernet-port.js';
import { addressesOf, askForNobody, linkOf, listening, ping } from './helpers/hosts.js';
import { echoRequest, ethernet } from './helpers/packets.js';
import {
  inner4,
  MEMBERS,
  type Member,
  SEGMENT,
  SERVER_PORT,
  SUBNET,
  threeHosts,
} from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { type SeenFrame, sealedFrames } from './helpers/wire.js';

const LAN = 'eth1';
const MARKER = 'marker-on-the-lan';
const MARKER_HEX = Buffer.from(MARKER.slice(0, 16)).toString('hex');
const STRANGER = macSchema.parse('02:00:5e:00:53:66');

function mac(id: string): MacAddress {
  return defaultMac(SUBNET, parseId(id));
}

/** A sealed frame as it was on the LAN, outer header and all, with other bytes where a test says so. */
function onTheLan(frame: SeenFrame, change?: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(frame.bytes);
  change?.(bytes);
  const [to, from] = [macSchema.parse(frame.destination), macSchema.parse(frame.source)];
  return ethernet(to, from, ETHERTYPE_SEALED, bytes);
}

async function promiscuity(lab: Lab, host: string): Promise<number> {
  const { stdout } = await lab.exec(host, ['ip', '-d', '-j', 'link', 'show', 'dev', LAN]);
  return JSON.parse(stdout)[0].promiscuity;
}

async function expectTcp(lab: Lab, from: Member, to: Member): Promise<void> {
  const text = 'a line of text that goes through the tunnel\n'.repeat(100_000);
  const receive = lab.exec(to, ['socat', '-u', 'TCP-LISTEN:8080,reuseaddr', '-']);
  await listening(lab, to, 'tcp', 8080);
  await lab.exec(from, ['socat', '-u', '-', `TCP:${inner4(to)}:8080`], { input: text });
  expect((await receive).stdout).toBe(text);
}

describe('a LAN without IP', () => {
  const handle = useLab(threeHosts({ ethernet: true }));

  test('members reach each other though none has an address there', async () => {
    const { lab } = handle;
    for (const host of MEMBERS) {
      expect((await addressesOf(lab, host, LAN)).filter((one) => !one.startsWith('fe80:'))).toEqual(
        [],
      );
    }
    for (const [from, to] of [
      ['alice', 'bob'],
      ['bob', 'carol'],
      ['carol', 'alice'],
    ] as const) {
      expect((await ping(lab, from, inner4(to), { count: 3, intervalMs: 20 })).received).toBe(3);
    }
  });

  test('the MTU is that of the LAN less 54, and a full packet crosses without being cut', async () => {
    const { lab } = handle;
    expect((await linkOf(lab, 'alice', 'pw0')).mtu).toBe(1_446);
    const full = ['ping', '-n', '-c', '3', '-i', '0.1', '-M', 'do', '-s', String(1_446 - 28)];
    const before = await dropsOf(lab, 'alice');
    await lab.exec('alice', [...full, inner4('bob')]);
    expect(growth(before, await dropsOf(lab, 'alice'))).toEqual({});
    // A broadcast is the longest frame: its addresses are sealed, too.
    const capture = await lab.capture('bob', { interface: 'pw0' });
    const size = 1_446 - 28;
    await lab.exec('alice', ['socat', '-u', '-', 'UDP4-DATAGRAM:198.51.100.255:9,broadcast'], {
      input: MARKER.padEnd(size, '.'),
    });
    await capture.waitForPacket((one) => one.bytes.includes(MARKER), 'a broadcast of full length');
    await capture.stop();
  });

  test('status shows the transport, its tag, where a member is, and that it answers', async () => {
    const { lab } = handle;
    await ping(lab, 'alice', inner4('bob'));
    const bob = await waitFor(
      async () => (await lab.port('alice')).peers.find((one) => one.id === 'bob' && one.alive),
      { what: 'an answer of bob to a probe' },
    );
    expect(bob).toMatchObject({ endpoint: mac('bob'), endpoints: [] });
    expect(bob.rttMs).toBeGreaterThan(0);
    const port = await lab.port('alice');
    expect(port).toMatchObject({ transport: 'ethernet', udpPort: null, endpoints: [] });
    expect(port).toMatchObject({ underlayInterface: LAN, subnetTag: expect.any(Number) });
    const { stdout } = await lab.pairwire('alice', ['status', '--dir', lab.gatewayDir('alice')]);
    expect(stdout).toContain(`ethernet, subnet tag ${port.subnetTag}`);
    expect(stdout).toContain(mac('bob'));
  });

  test('doctor looks at the interface instead of a UDP port', async () => {
    const { lab } = handle;
    const argv = ['doctor', '--json', '--dir', lab.gatewayDir('alice')];
    const { findings } = JSON.parse((await lab.pairwire('alice', argv, { check: false })).stdout);
    const found = findings.find((one: { check: string }) => one.check === 'port');
    expect(found).toMatchObject({ state: 'ok', message: expect.stringContaining(LAN) });
  });

  test('group destinations are not on the LAN: outside there is broadcast only', async () => {
    const { lab } = handle;
    const wire = await lab.capture(SEGMENT);
    const tap = await lab.capture('carol', { interface: 'pw0' });
    const group = ['UDP4-DATAGRAM:239.255.51.51:9', `ip-multicast-if=${inner4('alice')}`];
    await lab.exec('alice', ['socat', '-u', '-', group.join(',')], { input: MARKER });
    await tap.waitForPacket((one) => one.bytes.includes(MARKER), 'the multicast at carol');
    const inside = (await tap.stop()).find((one) => one.bytes.includes(MARKER));
    expect(inside?.bytes.toString('hex', 0, 6)).toBe('01005e7f3333');
    const { frames, wrong } = sealedFrames(await wire.stop());
    expect(wrong).toEqual([]);
    const groups = frames.filter((frame) => frame.shim.kind === FrameKind.group);
    expect(groups.length).toBeGreaterThan(0);
    expect(new Set(groups.map((frame) => frame.destination))).toEqual(new Set([BROADCAST_MAC]));
    expect(groups.some((frame) => frame.source === mac('alice'))).toBe(true);
  });

  describe('an attacker on it', () => {
    let mallory: EthernetPort;
    let seen: SeenFrame[] = [];
    let broadcast: SeenFrame;

    beforeAll(async () => {
      const { lab } = handle;
      mallory = await EthernetPort.open(lab, 'mallory', LAN);
      const index = (await lab.port('alice')).index;
      const capture = await lab.capture(SEGMENT);
      await ping(lab, 'alice', inner4('bob'), { count: 5, intervalMs: 20, pattern: MARKER_HEX });
      await askForNobody(lab, 'alice', 'pw0', 1);
      const { frames } = sealedFrames(await capture.stop());
      const own = frames.filter((frame) => frame.shim.index === index);
      // What alice's kernel asks carol meanwhile (is my neighbour still there?) is not for bob.
      const toBob = own.filter(({ destination }) => destination === mac('bob'));
      seen = toBob.filter(({ shim }) => shim.kind === FrameKind.pair);
      const found = own.find(({ shim }) => shim.kind === FrameKind.group);
      if (found === undefined) throw new Error('no broadcast was captured');
      broadcast = found;
      expect(seen.length).toBeGreaterThanOrEqual(5);
    });
    afterAll(() => mallory?.close());

    /** The last frame from alice to bob. */
    function last(): SeenFrame {
      const frame = seen.at(-1);
      if (frame === undefined) throw new Error('no frame was captured');
      return frame;
    }

    test('sends recordings: dropped as `replayed`', async () => {
      const { lab } = handle;
      await expectDrops(lab, 'bob', { replayed: 6 }, () => {
        for (const frame of seen.slice(-5)) mallory.send(onTheLan(frame));
        mallory.send(onTheLan(broadcast));
      });
    });

    test('alters what it has: dropped as `not_authentic`, outer addresses included', async () => {
      const { lab } = handle;
      const later = (bytes: Buffer) => bytes.writeUInt32BE(bytes.readUInt32BE(12) + 1_000, 12);
      const frame = onTheLan(last(), later);
      const otherSource = Buffer.from(frame);
      otherSource.writeUInt8(frame.readUInt8(11) ^ 1, 11);
      const otherDestination = Buffer.from(frame);
      otherDestination.fill(0xff, 0, 6);
      await expectDrops(lab, 'bob', { not_authentic: 3 }, () => {
        for (const one of [frame, otherSource, otherDestination]) mallory.send(one);
      });
    });

    test('a frame of another subnet is dropped as `foreign_subnet` and asks nobody', async () => {
      const { lab } = handle;
      const before = (await lab.status('bob')).misses;
      await expectDrops(lab, 'bob', { foreign_subnet: 63 }, () => {
        for (let other = 1; other <= SUBNET_TAG_MASK; other += 1) {
          mallory.send(
            onTheLan(last(), (bytes) => {
              bytes.writeUInt8(bytes.readUInt8(1) ^ other, 1);
              bytes.writeUInt32BE(0x0a0b0c0d, 4);
            }),
          );
        }
      });
      expect((await lab.status('bob')).misses).toEqual(before);
    });

    test('what is for others or of another EtherType does not even come up', async () => {
      const { lab } = handle;
      const whole = onTheLan(last());
      const forCarol = Buffer.from(whole);
      Buffer.from(mac('carol').replaceAll(':', ''), 'hex').copy(forCarol);
      forCarol.writeUInt32BE(0x0a0b0c0d, 14 + 4);
      const other = Buffer.from(whole);
      other.writeUInt16BE(0x88b6, 12);
      await expectDrops(lab, 'bob', { replayed: 1 }, () => {
        // The last one shows that the others have been there.
        for (const frame of [forCarol, other, whole]) mallory.send(frame);
      });
    });

    test('plaintext to an inner address goes nowhere, whatever MAC address it has', async () => {
      const { lab } = handle;
      const { address } = await linkOf(lab, 'bob', LAN);
      const tap = await lab.capture('bob', { interface: 'pw0' });
      const wire = await lab.capture(SEGMENT);
      for (const to of [macSchema.parse(address), mac('bob'), BROADCAST_MAC]) {
        const [fromIp, toIp] = [inner4('alice'), inner4('bob')];
        mallory.send(echoRequest({ to, from: STRANGER, fromIp, toIp, marker: MARKER }));
      }
      await ping(lab, 'alice', inner4('bob'));
      const answers = (await wire.stop()).filter(
        ({ bytes }) => bytes.includes(MARKER) && !bytes.subarray(6, 12).equals(hex(STRANGER)),
      );
      expect(answers).toEqual([]);
      expect((await tap.stop()).filter(({ bytes }) => bytes.includes(MARKER))).toEqual([]);
    });
  });
});

function hex(address: MacAddress): Buffer {
  return Buffer.from(address.replaceAll(':', ''), 'hex');
}

describe('an interface whose MAC address the TAP has taken over', () => {
  const macs: Record<Member, MacAddress> = {
    alice: macSchema.parse('02:00:5e:00:53:11'),
    bob: macSchema.parse('02:00:5e:00:53:12'),
    carol: macSchema.parse('02:00:5e:00:53:13'),
  };
  const grant = (member: Member) => ['--mac', macs[member]];
  const handle = useLab(
    threeHosts({
      ethernet: true,
      members: ['alice', 'bob'],
      wireMacs: macs,
      token: { alice: grant('alice'), bob: grant('bob') },
    }),
  );
  let mallory: EthernetPort;

  beforeAll(async () => {
    mallory = await EthernetPort.open(handle.lab, 'mallory', LAN);
  });
  afterAll(() => mallory?.close());

  function devices(host: string): Promise<DevicesClient> {
    const { dir } = runPaths(defaultRunDir(handle.lab.gatewayDir(host)));
    return DevicesClient.connect(`${dir}/devices.sock`);
  }

  test('carries traffic and is not promiscuous', async () => {
    const { lab } = handle;
    expect((await linkOf(lab, 'bob', 'pw0')).address).toBe(macs.bob);
    expect((await ping(lab, 'alice', inner4('bob'), { count: 3, intervalMs: 20 })).received).toBe(
      3,
    );
    await expectTcp(lab, 'alice', 'bob');
    expect(await promiscuity(lab, 'alice')).toBe(0);
    expect(await promiscuity(lab, 'bob')).toBe(0);
  });

  test('takes nothing but sealed frames: no ARP, no IPv6, no plaintext', async () => {
    const { lab } = handle;
    expect(await addressesOf(lab, 'bob', LAN)).toEqual([]);
    const client = await devices('bob');
    const before = (await client.status()).guard.closed;
    expect(before).toEqual([{ interface: LAN, dropped: expect.any(Number) }]);
    const wire = await lab.capture(SEGMENT);
    const tap = await lab.capture('bob', { interface: 'pw0' });

    const fromIp = '198.51.100.66';
    const request = echoRequest({
      to: macs.bob,
      from: STRANGER,
      fromIp,
      toIp: inner4('bob'),
      marker: MARKER,
    });
    mallory.send(request);
    mallory.send(arpRequest(STRANGER, fromIp, inner4('bob')));
    await lab.exec('mallory', ['ping', '-c', '2', '-i', '0.2', '-W', '1', `ff02::1%${LAN}`], {
      check: false,
    });
    const dropped = await waitFor(
      async () => {
        const [closed] = (await client.status()).guard.closed;
        return (closed?.dropped ?? 0) >= (before[0]?.dropped ?? 0) + 4 ? closed : undefined;
      },
      { what: 'plaintext to be dropped at the interface' },
    );
    expect(dropped.interface).toBe(LAN);
    client.close();
    await ping(lab, 'alice', inner4('bob'));
    const fromBob = (await wire.stop()).filter(({ bytes }) =>
      bytes.subarray(6, 12).equals(hex(macs.bob)),
    );
    expect(fromBob.length).toBeGreaterThan(0);
    expect(fromBob.filter(({ bytes }) => bytes.readUInt16BE(12) !== ETHERTYPE_SEALED)).toEqual([]);
    expect((await tap.stop()).filter(({ bytes }) => bytes.includes(MARKER))).toEqual([]);
  });

  test('is as it was before once the gateway is down', async () => {
    const { lab } = handle;
    const flags = async () => {
      const { stdout } = await lab.exec('alice', ['ip', '-j', 'link', 'show', 'dev', LAN]);
      return JSON.parse(stdout)[0].flags as string[];
    };
    expect(await flags()).toContain('NOARP');
    await lab.downGateway('alice');
    await lab.stopGateway('alice');
    expect(await flags()).not.toContain('NOARP');
    const ipv6 = `net.ipv6.conf.${LAN}.disable_ipv6`;
    expect((await lab.exec('alice', ['sysctl', '-n', ipv6])).stdout.trim()).toBe('0');
    expect((await lab.exec('alice', ['nft', 'list', 'tables'])).stdout).toBe('');
    await lab.startGateway('alice');
    expect((await ping(lab, 'alice', inner4('bob'), { count: 3, intervalMs: 20 })).received).toBe(
      3,
    );
  });

  test('with an IP address it is refused, and keeps it', async () => {
    const { lab } = handle;
    await lab.downGateway('alice');
    await lab.stopGateway('alice');
    await lab.exec('alice', ['ip', 'address', 'add', '203.0.113.11/24', 'dev', LAN]);
    const up = lab.spawn('alice', [
      ...[process.execPath, 'scripts/pairwire.mjs', 'up'],
      ...['--dir', lab.gatewayDir('alice')],
    ]);
    await waitFor(() => lab.logTails().includes('203.0.113.11, which would be cut off'), {
      what: 'the gateway to say why it does not work',
      timeoutMs: 20_000,
    });
    await lab.exec('mallory', ['ip', 'address', 'add', '203.0.113.66/24', 'dev', LAN]);
    expect((await ping(lab, 'mallory', '203.0.113.11')).received).toBe(1);
    await lab.stop(up);
    await lab.downGateway('alice');
    await lab.exec('alice', ['ip', 'address', 'delete', '203.0.113.11/24', 'dev', LAN]);
    await lab.startGateway('alice');
  });
});

/** Who has `toIp`? */
function arpRequest(from: MacAddress, fromIp: string, toIp: string): Buffer {
  const ip = (text: string) => Buffer.from(text.split('.').map(Number));
  const head = Buffer.from('0001080006040001', 'hex');
  const body = [head, hex(from), ip(fromIp), Buffer.alloc(6), ip(toIp)];
  return ethernet(BROADCAST_MAC, from, 0x0806, Buffer.concat(body));
}

describe('jumbo frames', () => {
  const handle = useLab(threeHosts({ ethernet: true, members: ['alice', 'bob'], mtu: 9_000 }));

  test('a LAN with an MTU of 9,000 gives one of 8,946, and full packets cross uncut', async () => {
    const { lab } = handle;
    expect((await linkOf(lab, 'alice', 'pw0')).mtu).toBe(8_946);
    const wire = await lab.capture(SEGMENT);
    const argv = ['ping', '-n', '-c', '3', '-i', '0.1', '-M', 'do', '-s'];
    await lab.exec('alice', [...argv, '8800', inner4('bob')]);
    await lab.exec('alice', [...argv, String(8_946 - 28), inner4('bob')]);
    await expectTcp(lab, 'alice', 'bob');
    const { frames, wrong } = sealedFrames(await wire.stop());
    expect(wrong).toEqual([]);
    // Probes for the path's MTU are as long as that is.
    const inner = frames.filter(({ bytes }) => (bytes.readUInt8(0) & 0x0f) !== FrameKind.path);
    const longest = Math.max(...inner.map((frame) => frame.bytes.length));
    expect(longest).toBe(8_946 + 2 + 40);
  });
});

describe('two subnets on one LAN', () => {
  const OTHER = 'other';
  const topology = threeHosts({ ethernet: true, members: ['alice', 'bob'] });
  const handle = useLab({
    ...topology,
    keyServers: {
      ...topology.keyServers,
      [OTHER]: { host: 'server', listen: `192.0.2.1:${SERVER_PORT + 1}` },
    },
    gateways: [
      ...(topology.gateways ?? []),
      ...(['carol', 'mallory'] as const).map((host, at) => ({
        host,
        subnet: OTHER,
        ethernet: LAN,
        addresses: [`198.51.100.${11 + at}/24`],
      })),
    ],
  });

  test('have the same inner addresses and do not disturb each other', async () => {
    const { lab } = handle;
    const tags = await Promise.all(
      ['alice', 'carol'].map(async (host) => (await lab.port(host)).subnetTag),
    );
    const pings = [
      ping(lab, 'alice', inner4('bob'), { count: 5, intervalMs: 50, pattern: MARKER_HEX }),
      ping(lab, 'carol', '198.51.100.12', { count: 5, intervalMs: 50 }),
    ];
    for (const result of await Promise.all(pings)) expect(result.received).toBe(5);
    for (const [from, to] of [
      ['alice', 'carol'],
      ['carol', 'alice'],
    ] as const) {
      const before = await lab.status(to);
      await askForNobody(lab, from, 'pw0', 3);
      const after = await lab.status(to);
      const grown = growth(before.ports[0]?.drops ?? {}, after.ports[0]?.drops ?? {});
      // With tags drawn alike, one time in 64, the sender index tells them apart.
      const reason = tags[0] === tags[1] ? 'unknown_index' : 'foreign_subnet';
      expect(Object.keys(grown)).toEqual([reason]);
      if (reason === 'foreign_subnet') expect(after.misses).toEqual(before.misses);
    }
  });
});
