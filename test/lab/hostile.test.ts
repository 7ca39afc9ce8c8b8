/**
 * Attackers on the underlay and inside the subnet. None of what they send reaches a TAP, and each try is
 * counted under its reason in the status.
 *
 * mallory is both: a host on the wire that sees and sends everything, and a member with
 * a modified client.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Capture } from '../../scripts/laboratory/capture.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { RequestError } from '../../src/net/channel.js';
import { FLAG_GROUP, FrameKind } from '../../src/protocol/constants.js';
import { type Description, openFrame } from '../../src/protocol/frame.js';
import { parseId } from '../../src/protocol/ids.js';
import { pairTrafficKey, type TrafficKey } from '../../src/protocol/kdf.js';
import { BROADCAST_MAC, defaultMac, type MacAddress, macToBytes } from '../../src/protocol/mac.js';
import { expectDrops } from './helpers/drops.js';
import { askForNobody, linkOf, ping } from './helpers/hosts.js';
import { type KnownPeer, ModifiedMember } from './helpers/modified-member.js';
import { echoRequest, ethernet, ipv4, tcpSegment, treacherousDatagram } from './helpers/packets.js';
import { type Sealed, SealedPort } from './helpers/sealed-port.js';
import {
  DATA_PORT,
  ETHERNET,
  inner4,
  MEMBERS,
  SEGMENT,
  SUBNET,
  threeHosts,
  WIRE_INTERFACE,
} from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { type SeenFrame, sealedFrames } from './helpers/wire.js';

const handle = useLab(threeHosts({ offload: 'wire' }));
const MALLORY_IP = '198.51.100.66';
const MALLORY_OUTER = '192.0.2.66';
/** How long a former generation may still be heard. */
const GRACE_MS = 10_000;

/** 16 bytes that ping repeats in its payload, as hex. */
const MARKER_HEX = '6d61726b65722d696e2d612d70696e67';
const MARKER = Buffer.from(MARKER_HEX, 'hex');

function mac(id: string): MacAddress {
  return defaultMac(SUBNET, parseId(id));
}

/** Frames of one sender under one kind of key; where it shows for whom they are, only those for bob. */
function framesFrom(capture: Capture, index: number, kind: FrameKind): SeenFrame[] {
  const { frames } = sealedFrames(capture.packets());
  const forOthers = (frame: SeenFrame) =>
    ETHERNET && kind === FrameKind.pair && frame.destination !== mac('bob');
  return frames.filter(
    (frame) => frame.shim.index === index && frame.shim.kind === kind && !forOthers(frame),
  );
}

async function indexOf(host: string): Promise<number> {
  const { index } = await handle.lab.port(host);
  if (index === null) throw new Error(`${host} has no index`);
  return index;
}

/** Pings so that every two of the three have keys, and their neighbour tables are filled. */
async function warmUp(): Promise<void> {
  for (const [from, to] of [
    ['alice', 'bob'],
    ['bob', 'carol'],
    ['carol', 'alice'],
  ] as const) {
    await ping(handle.lab, from, inner4(to), { count: 3, intervalMs: 50 });
  }
}

/** Watches a TAP while something is injected: the marker must not come out of it. */
async function expectNothingAtTap(host: string, action: () => Promise<void>): Promise<void> {
  const tap = await handle.lab.capture(host, { interface: 'pw0' });
  await action();
  const seen = (await tap.stop()).filter((packet) => packet.bytes.includes(MARKER));
  expect(seen, `packets with the marker at the TAP of ${host}`).toHaveLength(0);
}

describe('frames from the wire', () => {
  let outsider: SealedPort;
  let capture: Capture;

  beforeAll(async () => {
    const { lab } = handle;
    outsider = await SealedPort.open(lab, 'mallory');
    await warmUp();
    capture = await lab.capture(SEGMENT);
    const result = await ping(lab, 'alice', inner4('bob'), {
      count: 5,
      intervalMs: 20,
      pattern: MARKER_HEX,
    });
    expect(result.received).toBe(5);
    await askForNobody(lab, 'alice', 'pw0', 2);
  });
  afterAll(async () => {
    outsider.close();
    await capture.stop();
  });

  test('replayed frames are dropped as `replayed`', async () => {
    const { lab } = handle;
    const frames = framesFrom(capture, await indexOf('alice'), FrameKind.pair).slice(-5);
    expect(frames).toHaveLength(5);
    await expectNothingAtTap('bob', () =>
      expectDrops(lab, 'bob', { replayed: 15 }, () => {
        for (let round = 0; round < 3; round += 1) {
          for (const frame of frames) outsider.send('bob', frame);
        }
      }),
    );
  });

  test('replayed group frames are dropped as `replayed`', async () => {
    const { lab } = handle;
    const [frame] = framesFrom(capture, await indexOf('alice'), FrameKind.group);
    if (frame === undefined) throw new Error('no group frame was captured');
    await expectDrops(lab, 'carol', { replayed: 1 }, () => {
      outsider.send('carol', frame);
    });
  });

  test('reflected frames are dropped as `reflected`', async () => {
    const { lab } = handle;
    const index = await indexOf('alice');
    const pair = framesFrom(capture, index, FrameKind.pair).slice(-3);
    const group = framesFrom(capture, index, FrameKind.group).slice(0, 1);
    const frames = [...pair, ...group];
    expect(frames).toHaveLength(4);
    await expectNothingAtTap('alice', () =>
      expectDrops(lab, 'alice', { reflected: 4 }, () => {
        for (const frame of frames) {
          outsider.send('alice', { ...frame, destination: mac('alice') });
        }
      }),
    );
  });

  test('frames for another member are dropped as `unknown_kid`', async () => {
    const { lab } = handle;
    const frames = framesFrom(capture, await indexOf('alice'), FrameKind.pair).slice(-5);
    await expectNothingAtTap('carol', () =>
      expectDrops(lab, 'carol', { unknown_kid: 5 }, () => {
        for (const frame of frames) {
          outsider.send('carol', { ...frame, destination: mac('carol') });
        }
      }),
    );
  });

  test('noise is dropped by what is wrong with it first', async () => {
    const { lab } = handle;
    const { subnetTag } = await lab.port('bob');
    await expectDrops(lab, 'bob', { malformed: 3, unknown_index: 1 }, () => {
      outsider.send('bob', { bytes: Buffer.from('x') });
      outsider.send('bob', { bytes: Buffer.alloc(1200, 0xff) });
      outsider.send('bob', { bytes: Buffer.alloc(40) });
      const unknown = Buffer.alloc(100);
      unknown.writeUInt8(0x11, 0);
      unknown.writeUInt8(subnetTag ?? 0, 1);
      unknown.writeUInt32BE(0x01020304, 4);
      outsider.send('bob', { bytes: unknown });
    });
  });

  describe('that were caught before they arrived', () => {
    let fresh: SeenFrame[] = [];

    beforeAll(async () => {
      const { lab } = handle;
      // mallory cuts the line from alice to bob, keeps what alice sends, and alters it at leisure.
      const from = ETHERNET ? mac('alice') : (await linkOf(lab, 'alice', 'eth0')).address;
      const what = ETHERNET ? 'ether type 0x88b5' : `meta l4proto udp th dport ${DATA_PORT}`;
      const cut = [
        'table netdev cut {',
        '  chain cut {',
        `    type filter hook ingress device "${WIRE_INTERFACE}" priority filter; policy accept;`,
        `    ether saddr ${from} ${what} counter drop`,
        '  }',
        '}',
      ].join('\n');
      const before = framesFrom(capture, await indexOf('alice'), FrameKind.pair);
      const newest = before.reduce(
        (max, frame) => (frame.shim.counter > max ? frame.shim.counter : max),
        0n,
      );
      await lab.exec('bob', ['nft', '-f', '-'], { input: cut });
      await ping(lab, 'alice', inner4('bob'), {
        count: 12,
        intervalMs: 20,
        waitMs: 200,
        pattern: MARKER_HEX,
      });
      const index = await indexOf('alice');
      fresh = await waitFor(
        () => {
          const caught = framesFrom(capture, index, FrameKind.pair).filter(
            (frame) => frame.shim.counter > newest,
          );
          return caught.length >= 12 ? caught : undefined;
        },
        { what: "alice's frames on the wire" },
      );
      // On an Ethernet what mallory sends has alice's address, too.
      await lab.exec('bob', ['nft', 'delete', 'table', 'netdev', 'cut']);
    });

    /** A frame that bob has never seen, altered. */
    function altered(change: (bytes: Buffer) => Buffer | undefined): SeenFrame {
      const frame = fresh[0];
      if (frame === undefined) throw new Error('no frame was caught');
      const copy = Buffer.from(frame.bytes);
      return { ...frame, bytes: change(copy) ?? copy };
    }

    const cases: readonly [string, string, (bytes: Buffer) => Buffer | undefined][] = [
      ['another version', 'malformed', (b) => flip(b, 0, 0x20)],
      ['an unknown kind', 'malformed', (b) => flip(b, 0, 0x08)],
      [
        'a flag of another transport',
        ETHERNET ? 'foreign_subnet' : 'malformed',
        (b) => flip(b, 1, 1),
      ],
      ['the group flag', 'not_authentic', (b) => flip(b, 1, FLAG_GROUP)],
      ['another kid', 'unknown_kid', (b) => flip(b, 2, 0x01)],
      ['another sender index', 'unknown_index', (b) => flip(b, 4, 0x01)],
      ['a later counter', 'not_authentic', (b) => flip(b, 13, 0x01)],
      ['the first sealed byte', 'not_authentic', (b) => flip(b, 16, 0x01)],
      ['the description', 'not_authentic', (b) => flip(b, 20, 0x01)],
      ['a byte of the payload', 'not_authentic', (b) => flip(b, 60, 0x80)],
      ['the first byte of the tag', 'not_authentic', (b) => flip(b, b.length - 16, 0x01)],
      ['the last bit', 'not_authentic', (b) => flip(b, b.length - 1, 0x01)],
      ['one byte less', 'not_authentic', (b) => b.subarray(0, b.length - 1)],
      ['one byte more', 'not_authentic', (b) => Buffer.concat([b, Buffer.alloc(1)])],
      ['nothing but shim and tag', 'not_authentic', (b) => b.subarray(0, 40)],
      ['less than any frame', 'malformed', (b) => b.subarray(0, 39)],
      ['half a shim', 'malformed', (b) => b.subarray(0, 8)],
    ];

    test.each(cases)('%s: dropped as `%s`', async (_what, reason, change) => {
      const { lab } = handle;
      await expectNothingAtTap('bob', () =>
        expectDrops(lab, 'bob', { [reason]: 1 }, () => {
          outsider.send('bob', altered(change));
        }),
      );
    });

    test('unaltered, and only then, it is taken: once', async () => {
      const { lab } = handle;
      const tap = await lab.capture('bob', { interface: 'pw0' });
      const send = () =>
        outsider.send(
          'bob',
          altered(() => undefined),
        );
      send();
      await tap.waitForPacket((packet) => packet.bytes.includes(MARKER), 'the frame at the TAP');
      await expectDrops(lab, 'bob', { replayed: 1 }, send);
      await tap.stop();
    });

    test('of a generation whose grace is over: `stale_kid`, also if they never arrived before', async () => {
      const { lab } = handle;
      const sentWith = async (from: string, to: string) =>
        (await lab.port(from)).peers.find(({ id }) => id === to)?.sendPwId ?? 0;
      const before = await sentWith('alice', 'bob');
      await lab.pairwire('server', ['rekey', 'alice', 'bob', '--dir', lab.serverDir(SUBNET)]);
      await waitFor(
        async () =>
          (await sentWith('alice', 'bob')) > before && (await sentWith('bob', 'alice')) > before,
        { what: 'the next generation' },
      );
      const late = fresh.slice(1, 11);
      expect(late).toHaveLength(10);
      await sleep(GRACE_MS + 1_000);
      await expectNothingAtTap('bob', () =>
        expectDrops(lab, 'bob', { stale_kid: late.length }, () => {
          for (const frame of late) outsider.send('bob', frame);
        }),
      );
    });
  });
});

describe('a member with a modified client', () => {
  let mallory: ModifiedMember;
  let bob: KnownPeer;
  let toBob: TrafficKey;
  let fromBob: TrafficKey;

  beforeAll(async () => {
    const { lab } = handle;
    mallory = await ModifiedMember.join(
      lab,
      { host: 'mallory', address: MALLORY_OUTER, port: DATA_PORT },
      SUBNET,
      'mallory',
    );
    bob = await mallory.pairWith('bob');
    ({ to: toBob, from: fromBob } = mallory.trafficKeys(bob));
    const neighbour = ['ip', 'neighbour', 'replace', MALLORY_IP, 'lladdr', mallory.mac];
    await lab.exec('bob', [...neighbour, 'dev', 'pw0', 'nud', 'permanent']);
  });
  afterAll(() => mallory?.leave());

  function request(changes: { from?: MacAddress; to?: MacAddress; toIp?: string } = {}): Buffer {
    return echoRequest({
      from: changes.from ?? mallory.mac,
      to: changes.to ?? mac('bob'),
      fromIp: MALLORY_IP,
      toIp: changes.toIp ?? inner4('bob'),
      marker: MARKER.toString('latin1').repeat(3),
    });
  }

  function send(sealed: Sealed): void {
    mallory.port.send('bob', sealed);
  }

  /** Payloads of frames from bob that open. */
  function opened(): Buffer[] {
    return mallory.port.received.flatMap(({ bytes, aadTail }) => {
      const frame = openFrame({ suite: 'aes-256-gcm', key: fromBob.key, frame: bytes, aadTail });
      return frame === undefined ? [] : [Buffer.from(frame.payload)];
    });
  }

  test('as long as it behaves it is a member like any other: its ping is answered', async () => {
    await waitFor(
      () => {
        send(mallory.seal(toBob, request()));
        return opened().some((payload) => payload.includes(MARKER));
      },
      { what: "bob's answer to the modified client", everyMs: 200 },
    );
  });

  test("a frame from another member's MAC address is dropped as `wrong_source_mac`", async () => {
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { wrong_source_mac: 2 }, () => {
        send(mallory.seal(toBob, request({ from: mac('alice') })));
        send(mallory.seal(toBob, request({ from: mac('bob') })));
      }),
    );
  });

  test('a pair frame for another destination is dropped as `wrong_destination`', async () => {
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { wrong_destination: 1 }, () => {
        // On an Ethernet bob's kernel does not even take what is for carol's address.
        const to = ETHERNET ? BROADCAST_MAC : mac('carol');
        send(mallory.seal(toBob, request({ to }), { flags: 0 }));
      }),
    );
  });

  test('a frame from the past or the future is dropped as `not_fresh`', async () => {
    const now = mallory.client.time.now();
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { not_fresh: 2 }, () => {
        send(mallory.seal(toBob, request(), { timeMs: now - 60_000 }));
        send(mallory.seal(toBob, request(), { timeMs: now + 60_000 }));
      }),
    );
  });

  test('a sealed frame inside a sealed frame is dropped as `inner_ethertype_own`', async () => {
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { inner_ethertype_own: 1 }, () => {
        send(mallory.seal(toBob, ethernet(mac('bob'), mallory.mac, 0x88b5, MARKER)));
      }),
    );
  });

  test('a group frame with a unicast IP inside is dropped as `group_unicast_ip`', async () => {
    const key = mallory.groupTraffic(await mallory.group());
    await warmGroup(key);
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { group_unicast_ip: 1 }, () => {
        send(mallory.seal(key, request({ to: BROADCAST_MAC }), { kind: FrameKind.group }));
      }),
    );
  });

  test('a group frame for one MAC address is dropped as `group_unicast_mac`', async () => {
    const key = mallory.groupTraffic(await mallory.group());
    await warmGroup(key);
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { group_unicast_mac: 1 }, () => {
        send(mallory.seal(key, request(), { kind: FrameKind.group, flags: FLAG_GROUP }));
      }),
    );
  });

  test("ARP that claims another member's address is dropped as `arp_spoof`, to all or to one", async () => {
    const key = mallory.groupTraffic(await mallory.group());
    await warmGroup(key);
    const { lab } = handle;
    // Bound as soon as the key server has heard of it, and told bob.
    await waitFor(async () => ((await lab.port('bob')).counters.bindings ?? 0) >= 3, {
      what: "members' addresses to be bound",
    });
    const claim = (to: MacAddress) =>
      ethernet(
        to,
        mallory.mac,
        0x0806,
        Buffer.concat([
          Buffer.from('0001080006040002', 'hex'),
          macToBytes(mallory.mac),
          Buffer.from(inner4('alice').split('.').map(Number)),
          macToBytes(to),
          Buffer.from(inner4('bob').split('.').map(Number)),
        ]),
      );
    await expectDrops(lab, 'bob', { arp_spoof: 2 }, () => {
      send(mallory.seal(toBob, claim(mac('bob'))));
      send(mallory.seal(key, claim(BROADCAST_MAC), { kind: FrameKind.group }));
    });
  });

  test("a group frame from another member's MAC address is dropped as `wrong_source_mac`", async () => {
    const key = mallory.groupTraffic(await mallory.group());
    await warmGroup(key);
    const payload = request({ from: mac('alice'), to: BROADCAST_MAC, toIp: '255.255.255.255' });
    await expectNothingAtTap('bob', () =>
      expectDrops(handle.lab, 'bob', { wrong_source_mac: 1 }, () => {
        send(mallory.seal(key, payload, { kind: FrameKind.group }));
      }),
    );
  });

  describe('that lies about offload (threats.md C7)', () => {
    const OPEN = 9999;
    const ICMP = 1;
    const TCP = 6;
    const UDP = 17;
    const packet = (protocol: number, payload: Uint8Array, fragment = 0) =>
      ipv4({
        to: mac('bob'),
        from: mallory.mac,
        fromIp: MALLORY_IP,
        toIp: inner4('bob'),
        protocol,
        payload,
        fragment,
      });

    beforeAll(async () => {
      // In front of bob's stack: what comes from mallory, to the one open port and to anything else.
      const from = `iifname "pw0" ip saddr ${MALLORY_IP}`;
      await handle.lab.exec('bob', ['nft', '-f', '-'], {
        input: [
          'table inet c7 {',
          'counter udp_open {}',
          'counter tcp_open {}',
          'counter other {}',
          'chain in { type filter hook prerouting priority raw - 20;',
          `${from} udp dport ${OPEN} counter name udp_open drop`,
          `${from} tcp dport ${OPEN} counter name tcp_open drop`,
          `${from} counter name other drop`,
          '}',
          '}',
        ].join('\n'),
      });
    });
    afterAll(() => handle.lab.exec('bob', ['nft', 'delete', 'table', 'inet', 'c7']));

    async function reached(): Promise<Record<string, number>> {
      const argv = ['nft', 'list', 'counters', 'table', 'inet', 'c7'];
      const { stdout } = await handle.lab.exec('bob', argv);
      const counters = stdout.matchAll(/counter (\w+) \{\s*packets (\d+)/g);
      return Object.fromEntries([...counters].map(([, name, count]) => [name, Number(count)]));
    }

    test('a frame that may not be partial, or contradicts itself, is dropped as `malformed`', async () => {
      const before = await reached();
      const partial = { partialChecksum: true };
      const datagram = treacherousDatagram(OPEN, 53);
      const echo = Buffer.from('0800000012340001', 'hex');
      const cases: [Buffer, Partial<Description>][] = [
        [packet(ICMP, echo), partial],
        [packet(UDP, datagram, 0x2000), partial],
        [packet(UDP, datagram, 0x0001), partial],
        [packet(UDP, datagram.subarray(0, 7)), partial],
        [packet(TCP, tcpSegment(OPEN, 1, Buffer.alloc(0)).subarray(0, 19)), partial],
        [Buffer.concat([packet(UDP, datagram), Buffer.alloc(4)]), partial],
        [packet(UDP, Buffer.concat([datagram, Buffer.alloc(4)])), partial],
        [ethernet(mac('bob'), mallory.mac, 0x88b6, MARKER), partial],
        [packet(UDP, datagram), { part: 1 }],
        [packet(UDP, datagram), { lastPart: true }],
      ];
      await expectDrops(handle.lab, 'bob', { malformed: cases.length }, () => {
        for (const [frame, description] of cases) {
          send(mallory.seal(toBob, frame, { description }));
        }
      });
      expect(await reached()).toEqual(before);
    });

    test('no description moves the place where the kernel writes a checksum', async () => {
      const before = await reached();
      const frame = packet(UDP, treacherousDatagram(OPEN, 53));
      let sent = 0;
      for (let trainPlace = 0; trainPlace < 256; trainPlace += 5) {
        for (const partialChecksum of [false, true]) {
          send(mallory.seal(toBob, frame, { description: { partialChecksum, trainPlace } }));
          sent += 1;
        }
      }
      send(mallory.seal(toBob, frame, { description: { partialChecksum: true, padding: 40 } }));
      sent += 1;
      await waitFor(
        async () => ((await reached()).udp_open ?? 0) >= (before.udp_open ?? 0) + sent,
        {
          what: 'the datagrams in front of the stack',
        },
      ).catch(() => undefined); // the comparison says more
      expect(await reached()).toEqual({ ...before, udp_open: (before.udp_open ?? 0) + sent });
    });

    test('a train of tiny segments becomes no more packets than it had frames', async () => {
      const before = await reached();
      const payload = Buffer.alloc(8, 0x61);
      for (let i = 0; i < 64; i += 1) {
        const segment = packet(TCP, tcpSegment(OPEN, 1 + 8 * i, payload));
        const description = { partialChecksum: true, trainPlace: i };
        send(mallory.seal(toBob, segment, { description }));
      }
      await waitFor(async () => ((await reached()).tcp_open ?? 0) >= (before.tcp_open ?? 0) + 64, {
        what: 'the segments in front of the stack',
      }).catch(() => undefined); // the comparison says more
      expect(await reached()).toEqual({ ...before, tcp_open: (before.tcp_open ?? 0) + 64 });
    });
  });

  /** Sends broadcasts that nobody objects to until bob has the key to open them. */
  async function warmGroup(key: TrafficKey): Promise<void> {
    const tap = await handle.lab.capture('bob', { interface: 'pw0' });
    const greeting = Buffer.from('a broadcast that is allowed');
    await waitFor(
      () => {
        const payload = ethernet(BROADCAST_MAC, mallory.mac, 0x88b6, greeting);
        send(mallory.seal(key, payload, { kind: FrameKind.group }));
        return tap.packets().some((packet) => packet.bytes.includes(greeting));
      },
      { what: "the modified client's broadcast at bob's TAP", everyMs: 100 },
    );
    await tap.stop();
  }

  test("the key server refuses to tell it another pair's key, and audits the attempt", async () => {
    const refusal = await mallory.askKey(mac('bob'), 'alice').catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(RequestError);
    expect(refusal).toMatchObject({ code: 'refused' });
    const { lab } = handle;
    const audit = await lab.pairwire('server', ['audit', '--json', '--dir', lab.serverDir(SUBNET)]);
    expect(JSON.parse(audit.stdout)).toContainEqual(
      expect.objectContaining({
        actor: 'mallory',
        action: 'foreign_requester',
        outcome: 'refused',
        detail: { requester: 'member:alice', mac: mac('bob') },
      }),
    );
  });

  test('with every key that it can get it opens no frame of another pair', async () => {
    const { lab } = handle;
    const capture = await lab.capture(SEGMENT);
    await warmUp();
    await askForNobody(lab, 'alice', 'pw0', 2);
    send(mallory.seal(toBob, request()));
    const { frames } = sealedFrames(await capture.stop());
    const peers = await Promise.all(MEMBERS.map((id) => mallory.pairWith(id)));
    const group = await mallory.group();

    const ownPlace = ETHERNET ? mallory.mac : MALLORY_OUTER;
    const indices = new Set(peers.map((peer) => peer.index));
    const foreign = frames.filter(
      ({ shim, destination }) =>
        indices.has(shim.index) && shim.kind !== FrameKind.group && destination !== ownPlace,
    );
    expect(foreign.length).toBeGreaterThanOrEqual(18);
    const senders = new Set(foreign.map((frame) => frame.shim.index));
    expect(senders).toEqual(indices);

    // Its own keys as they are meant, and every mixture of keys, boot keys and names that it can make.
    const keys = peers.flatMap((peer) => Object.values(mallory.trafficKeys(peer)));
    for (const sender of peers) keys.push(mallory.groupTraffic(group, sender));
    for (const pairKey of [...peers.map((peer) => peer.key), group.key]) {
      for (const shared of peers) {
        for (const from of peers) {
          for (const to of peers) {
            if (from === to) continue;
            keys.push(
              pairTrafficKey({
                pairKey,
                ownBootPrivate: mallory.boot.privateKey,
                peerBoot: shared.boot,
                subnet: SUBNET,
                from,
                to,
                pwId: 1n,
              }),
            );
          }
        }
      }
    }
    const open = (key: TrafficKey, frame: SeenFrame) =>
      openFrame({
        suite: 'aes-256-gcm',
        key: key.key,
        frame: frame.bytes,
        aadTail: frame.aadTail,
      }) !== undefined;
    expect(foreign.filter((frame) => keys.some((key) => open(key, frame)))).toEqual([]);

    // The same search finds what it may read: answers to its own pings, and broadcasts.
    const own = frames.filter(
      ({ shim, destination }) => shim.kind === FrameKind.pair && destination === ownPlace,
    );
    expect(own.some((frame) => keys.some((key) => open(key, frame)))).toBe(true);
    const broadcasts = frames.filter(
      ({ shim }) => shim.kind === FrameKind.group && indices.has(shim.index),
    );
    expect(broadcasts.length).toBeGreaterThan(0);
    expect(broadcasts.every((frame) => keys.some((key) => open(key, frame)))).toBe(true);
  });
});

/** Flips bits of one byte. */
function flip(bytes: Buffer, at: number, mask: number): undefined {
  bytes.writeUInt8(bytes.readUInt8(at) ^ mask, at);
}
