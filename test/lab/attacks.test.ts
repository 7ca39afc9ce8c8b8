/**
 * The attacks of docs/threats.md that need whole gateways: real processes, a real key server, a real
 * member with a modified client. `hostile.test.ts` has what a single frame can do.
 *
 * carol starts late: for everybody she is a new peer.
 */
import { cpSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { defaultRunDir } from '../../gateway/config.js';
import type { Capture } from '../../scripts/laboratory/capture.js';
import { killDataPlane } from '../../scripts/laboratory/gateway-programs.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { FRAME_OVERHEAD, FrameKind } from '../../src/protocol/constants.js';
import { decodeShim } from '../../src/protocol/frame.js';
import { parseId } from '../../src/protocol/ids.js';
import type { TrafficKey } from '../../src/protocol/kdf.js';
import { BROADCAST_MAC, defaultMac, type MacAddress, macSchema } from '../../src/protocol/mac.js';
import { dropsOf, expectDrops, growth } from './helpers/drops.js';
import { EthernetPort } from './helpers/ethernet-port.js';
import { askForNobody, linkOf, ping } from './helpers/hosts.js';
import { type KnownPeer, ModifiedMember } from './helpers/modified-member.js';
import { echoRequest, ethernet, ipv4, tcpSegment, treacherousDatagram } from './helpers/packets.js';
import {
  DATA_PORT,
  inner4,
  inner6,
  outer,
  outerBoth,
  SEGMENT,
  SUBNET,
  threeHosts,
} from './helpers/topologies.js';
import { waitForLine } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';
import { type SeenFrame, sealedFrames } from './helpers/wire.js';

const VNET_WATCH = fileURLToPath(new URL('./helpers/programs/vnet-watch.py', import.meta.url));
const FLOOD = fileURLToPath(new URL('./helpers/programs/flood.py', import.meta.url));
const MALLORY_OUTER = '192.0.2.66';
const MALLORY_IP = '198.51.100.66';
const MARKER = 'a-marker-that-must-not-come-out';
const STRANGER = macSchema.parse('02:00:5e:00:53:66');

const handle = useLab(threeHosts({ offload: 'wire', ethernet: false }), {
  restarts: true,
  startPrograms: false,
});

beforeAll(async () => {
  const { lab } = handle;
  await lab.initKeyServer(SUBNET);
  await lab.startKeyServer(SUBNET);
  for (const host of ['alice', 'bob', 'carol'] as const) await lab.joinGateway(host);
  for (const host of ['alice', 'bob'] as const) await lab.startGateway(host);
});

function mac(id: string): MacAddress {
  return defaultMac(SUBNET, parseId(id));
}

async function indexOf(host: string): Promise<number> {
  const { index } = await handle.lab.port(host);
  if (index === null) throw new Error(`${host} has no index`);
  return index;
}

test('C10: while 10,000 frames a second name strangers, the first ping of a new peer is answered', async () => {
  const { lab } = handle;
  const { address } = await linkOf(lab, 'bob', 'eth0');
  const before = await lab.status('bob');
  const argv = ['python3', FLOOD, 'eth0', address, outer('bob'), String(DATA_PORT), '10000'];
  const flood = lab.spawn('mallory', argv);
  await waitForLine(flood.log, 'ready');
  const unknown = async () => (await dropsOf(lab, 'bob')).unknown_index ?? 0;
  await waitFor(async () => (await unknown()) > 5_000, { what: 'the flood to be felt' });
  const begin = performance.now();

  await lab.startGateway('carol');
  const first = await ping(lab, 'carol', inner4('bob'), { waitMs: 5_000 });
  const back = await ping(lab, 'bob', inner6('carol'), { waitMs: 5_000 });
  const seconds = (performance.now() - begin) / 1_000;

  await lab.stop(flood);
  const sent = z
    .object({ sent: z.number(), seconds: z.number() })
    .parse(JSON.parse(readFileSync(flood.log, 'utf8').split('\n').slice(1).join('')));
  const after = await lab.status('bob');
  const asked = (after.misses.asked ?? 0) - (before.misses.asked ?? 0);
  console.log(
    `C10: ${sent.sent} frames of strangers in ${sent.seconds.toFixed(1)} s (${Math.round(sent.sent / sent.seconds)}/s): ` +
      `first ping ${first.answered.get(1)} ms, ${asked} questions to the key server`,
  );
  expect(first.received, "carol's first ping").toBe(1);
  expect(back.received, "bob's first ping").toBe(1);
  // What strangers may make bob ask: 64 at once and 8 a second; and a handful for carol.
  expect(asked).toBeLessThan(64 + 8 * (seconds + sent.seconds) + 20);
  expect(
    (after.misses.overBudgetInbound ?? 0) - (before.misses.overBudgetInbound ?? 0),
  ).toBeGreaterThan(0);
});

test('C9: a copied directory is a second gateway of one id: it is refused, ends with a reason and does not come back', async () => {
  const { lab } = handle;
  const copy = join(lab.gatewayDir('bob'), '..', '..', 'copy-of-bob');
  cpSync(lab.gatewayDir('bob'), copy, { recursive: true });
  try {
    const { index } = await lab.port('bob');
    const up = await lab.pairwire('mallory', ['up', '--dir', copy], {
      check: false,
      timeoutMs: 60_000,
    });
    expect(up.code).not.toBe(0);
    expect(up.stdout + up.stderr).toContain('another machine is connected as bob');
    // The first one has not even noticed.
    expect((await lab.port('bob')).index).toBe(index);
    const result = await ping(lab, 'alice', inner4('bob'), { count: 10, intervalMs: 20 });
    expect(result.received).toBe(10);
    const argv = ['audit', '--json', '--dir', lab.serverDir(SUBNET)];
    const audit = z
      .array(z.object({ actor: z.string(), action: z.string() }))
      .parse(JSON.parse((await lab.pairwire('server', argv)).stdout));
    expect(audit.filter(({ action }) => action === 'register_duplicate')).toEqual([
      { actor: 'bob', action: 'register_duplicate' },
    ]);
  } finally {
    await lab.pairwire('mallory', ['down', '--dir', copy], { check: false });
    rmSync(defaultRunDir(copy), { recursive: true, force: true });
    rmSync(copy, { recursive: true, force: true });
  }
});

describe('C8: plaintext for an inner address that comes in by the underlay', () => {
  let mallory: EthernetPort;
  beforeAll(async () => {
    mallory = await EthernetPort.open(handle.lab, 'mallory', 'eth0');
  });
  afterAll(() => mallory?.close());

  test('is dropped and counted, whoever it claims to be from; for the outer address it is answered', async () => {
    const { lab } = handle;
    const to = macSchema.parse((await linkOf(lab, 'bob', 'eth0')).address);
    const dropped = () => droppedByGuard('bob');
    const before = await dropped();
    const answers = await lab.capture('bob', { filter: 'icmp' });
    const echo = (fromIp: string, toIp: string) =>
      echoRequest({ to, from: STRANGER, fromIp, toIp, marker: MARKER });
    // The last three are the control: the same machine does answer what is meant for its own interface.
    for (let round = 0; round < 3; round += 1) {
      mallory.send(echo(inner4('alice'), inner4('bob')));
      mallory.send(echo(MALLORY_OUTER, inner4('bob')));
      mallory.send(echo(MALLORY_OUTER, '198.51.100.255'));
      mallory.send(echo(MALLORY_OUTER, outer('bob')));
    }
    const isAnswer = (bytes: Buffer) => bytes.readUInt8(34) === 0 && bytes.includes(MARKER);
    await waitFor(() => answers.packets().filter(({ bytes }) => isAnswer(bytes)).length >= 3, {
      what: "answers for bob's outer address",
    });
    await waitFor(async () => (await dropped()) >= before + 9, { what: 'the guard to count' });
    const from = (await answers.stop())
      .filter(({ bytes }) => isAnswer(bytes))
      .map(({ bytes }) => [...bytes.subarray(26, 30)].join('.'));
    expect(from).toEqual([outer('bob'), outer('bob'), outer('bob')]);
  });

  test('nobody on the underlay is told who has an inner address', async () => {
    const { lab } = handle;
    const ask = (ip: string) =>
      lab.exec('mallory', ['arping', '-c', '2', '-w', '2', '-I', 'eth0', ip], { check: false });
    expect((await ask(outer('bob'))).stdout).toMatch(/Received [1-9]|[1-9] packets received/);
    expect((await ask(inner4('bob'))).stdout).toMatch(/Received 0|(^|\D)0 packets received/);
  });

  /** Packets that the broker's nftables guard has dropped as coming from elsewhere than the TAP. */
  async function droppedByGuard(host: string): Promise<number> {
    const argv = ['nft', 'list', 'counter', 'inet', 'pairwire_pw0', 'underlay_0'];
    const { stdout } = await handle.lab.exec(host, argv);
    return Number(/packets (\d+)/.exec(stdout)?.[1]);
  }
});

describe('a member with a modified client', () => {
  let mallory: ModifiedMember;
  let alice: KnownPeer;
  let bob: KnownPeer;
  let toBob: TrafficKey;
  let fromBob: TrafficKey;

  beforeAll(async () => {
    const { lab } = handle;
    const place = { host: 'mallory', address: MALLORY_OUTER, port: DATA_PORT };
    mallory = await ModifiedMember.join(lab, place, SUBNET, 'mallory');
    alice = await mallory.pairWith('alice');
    bob = await mallory.pairWith('bob');
    ({ to: toBob, from: fromBob } = mallory.trafficKeys(bob));
    const neighbour = ['ip', 'neighbour', 'replace', MALLORY_IP, 'lladdr', mallory.mac];
    await lab.exec('bob', [...neighbour, 'dev', 'pw0', 'nud', 'permanent']);
  });
  afterAll(() => mallory?.leave());

  /** Counters of all frames that bob has sent to mallory under their key. */
  function countersFromBob(): bigint[] {
    return mallory.port.received.flatMap(({ bytes }) => {
      const shim = decodeShim(bytes);
      const ours = shim?.index === bob.index && shim.kid === fromBob.kid;
      return shim !== undefined && ours ? [shim.counter] : [];
    });
  }

  /** Makes bob send until there are some frames more. */
  async function moreFromBob(): Promise<void> {
    const before = countersFromBob().length;
    await ping(handle.lab, 'bob', MALLORY_IP, { count: 5, intervalMs: 20, waitMs: 100 });
    await waitFor(() => countersFromBob().length >= before + 5, { what: "bob's frames" });
  }

  describe('C1: the same key is pushed again', () => {
    /** Each question makes the key server push record and key to bob before it answers. */
    const pushes: readonly [string, () => Promise<void>][] = [
      [
        'because its peer asks for it ten times',
        async () => {
          for (let time = 0; time < 10; time += 1) {
            const again = await mallory.pairWith('bob');
            expect(Buffer.from(again.key).equals(Buffer.from(bob.key))).toBe(true);
          }
        },
      ],
      [
        'because a new control plane brings the running data plane to its state',
        async () => {
          await handle.lab.stopGateway('bob', 'SIGKILL');
          await handle.lab.startGateway('bob');
        },
      ],
      [
        'because the key server was killed and gateways ask for everything again',
        async () => {
          await handle.lab.stopKeyServer(SUBNET, 'SIGKILL');
          await handle.lab.startKeyServer(SUBNET);
          const connected = async () => (await handle.lab.status('bob')).server.connected;
          await waitFor(async () => !(await connected()), { what: 'bob to notice' }).catch(
            () => undefined, // it may be connected again already
          );
          await waitFor(connected, { what: 'bob to be connected again', timeoutMs: 20_000 });
          await waitFor(() => mallory.client.time.known && mallory.pairWith('bob'), {
            what: 'mallory to be connected again',
            timeoutMs: 20_000,
          });
        },
      ],
    ];

    test.each(pushes)(
      '%s: the counter goes on, and what was accepted stays replayed',
      async (_why, push) => {
        const { lab } = handle;
        const payload = echoRequest({
          to: mac('bob'),
          from: mallory.mac,
          fromIp: MALLORY_IP,
          toIp: inner4('bob'),
          marker: MARKER,
        });
        const answers = countersFromBob().length;
        const sealed = mallory.seal(toBob, payload);
        mallory.port.send('bob', sealed);
        await waitFor(() => countersFromBob().length > answers, { what: "bob's answer" });
        await moreFromBob();
        const newest = countersFromBob().at(-1) ?? 0n;

        await push();

        await expectDrops(lab, 'bob', { replayed: 1 }, () => mallory.port.send('bob', sealed));
        await moreFromBob();
        const all = countersFromBob();
        expect(new Set(all).size, 'every counter once').toBe(all.length);
        expect(all.at(-1)).toBeGreaterThan(newest);
      },
    );
  });

  test("C6: who forges another's group frames can't put unicast IP into them", async () => {
    const { lab } = handle;
    const key = mallory.groupTraffic(await mallory.group(), alice);
    await askForNobody(lab, 'alice', 'pw0', 2);
    const send = (payload: Buffer, counter: bigint) =>
      mallory.port.send(
        'bob',
        mallory.seal(key, payload, { kind: FrameKind.group, index: alice.index, counter }),
      );
    const tap = await lab.capture('bob', { interface: 'pw0' });
    // That the forgery opens at all is what SECURITY.md says of the shared group key.
    let counter = 1_000_000n;
    await waitFor(
      () => {
        counter += 1n;
        send(ethernet(BROADCAST_MAC, mac('alice'), 0x88b6, Buffer.from('allowed')), counter);
        return tap.packets().some(({ bytes }) => bytes.includes('allowed'));
      },
      { what: 'a forged broadcast that nobody objects to', everyMs: 100 },
    );
    const packet = (to: MacAddress, toIp: string) =>
      echoRequest({ to, from: mac('alice'), fromIp: inner4('alice'), toIp, marker: MARKER });
    const multicast = macSchema.parse('01:00:5e:00:00:01');
    await expectDrops(lab, 'bob', { group_unicast_ip: 2, group_unicast_mac: 1 }, () => {
      send(packet(BROADCAST_MAC, inner4('bob')), counter + 1n);
      send(packet(multicast, inner4('bob')), counter + 2n);
      send(packet(mac('bob'), inner4('bob')), counter + 3n);
    });
    expect((await tap.stop()).filter(({ bytes }) => bytes.includes(MARKER))).toEqual([]);
  });

  describe('C7: hostile description bytes', () => {
    const watched = z.object({
      flags: z.int(),
      gsoType: z.int(),
      headerLength: z.int(),
      gsoSize: z.int(),
      checksumStart: z.int(),
      checksumOffset: z.int(),
      length: z.int(),
      begin: z.string(),
    });
    const NEEDS_CHECKSUM = 1;
    const L4 = 34;
    const CHECKSUM_AT = { udp: 6, tcp: 16 } as const;
    const TCP_PAYLOAD = 600;

    const packet = (protocol: number, payload: Uint8Array) =>
      ipv4({
        to: mac('bob'),
        from: mallory.mac,
        fromIp: MALLORY_IP,
        toIp: inner4('bob'),
        protocol,
        payload,
      });

    test('never reach the vnet header: every field fits what was really sent', async () => {
      const { lab } = handle;
      const watch = lab.spawn('bob', ['python3', VNET_WATCH, 'pw0']);
      await waitForLine(watch.log, 'ready');
      // What bob's kernel would say of closed ports is of no interest here.
      const quiet = [
        'add table inet quiet',
        'add chain inet quiet in { type filter hook prerouting priority raw; }',
      ];
      const rule = `add rule inet quiet in iifname pw0 ip saddr ${MALLORY_IP} drop`;
      await lab.exec('bob', ['nft', '-f', '-'], { input: [...quiet, rule].join('\n') });
      const datagram = treacherousDatagram(9_999, 53);
      const sent = { udp: 0, tcp: 0 };
      let sequence = 1;
      // All values of the first byte, reserved bits included; odd places and paddings.
      for (let first = 0; first < 256; first += 1) {
        for (const padding of [0, 1, 8, 60_000]) {
          const description = {
            partialChecksum: (first & 1) !== 0,
            part: first >> 1,
            lastPart: false,
            trainPlace: (first * 7 + padding) % 256,
            padding,
          };
          const segment = tcpSegment(9_999, sequence, Buffer.alloc(TCP_PAYLOAD, 0x62));
          mallory.port.send('bob', mallory.seal(toBob, packet(17, datagram), { description }));
          mallory.port.send('bob', mallory.seal(toBob, packet(6, segment), { description }));
          sent.udp += 1;
          sent.tcp += 1;
          sequence += TCP_PAYLOAD;
        }
        // In step with the reader of the port, so that none is lost for want of room.
        if (first % 16 === 15) await new Promise((resolve) => setTimeout(resolve, 50));
      }
      const last = packet(17, Buffer.concat([datagram, Buffer.from('the last one')]));
      last.writeUInt16BE(datagram.length + 12, L4 + 4);
      await waitFor(
        () => {
          mallory.port.send('bob', mallory.seal(toBob, last));
          return readFileSync(watch.log, 'utf8').includes(
            Buffer.from('the last one').toString('hex'),
          );
        },
        { what: 'the last frame', everyMs: 100 },
      );
      await lab.stop(watch);
      await lab.exec('bob', ['nft', 'delete', 'table', 'inet', 'quiet']);

      const seen = readFileSync(watch.log, 'utf8')
        .split('\n')
        .filter((line) => line.startsWith('{'))
        .map((line) => watched.parse(JSON.parse(line)))
        .filter(({ begin }) => begin.slice(12, 24) === mallory.mac.replaceAll(':', ''));
      const came = { udp: 0, tcp: 0 };
      for (const one of seen) {
        const protocol = Number.parseInt(one.begin.slice(46, 48), 16) === 6 ? 'tcp' : 'udp';
        if ((one.flags & NEEDS_CHECKSUM) !== 0) {
          expect(one).toMatchObject({ checksumStart: L4, checksumOffset: CHECKSUM_AT[protocol] });
        }
        const size = protocol === 'tcp' ? TCP_PAYLOAD : datagram.length - 8;
        const payload = one.length - L4 - (protocol === 'tcp' ? 20 : 8);
        expect([0, size], 'gso_size is that of the segments that came').toContain(one.gsoSize);
        came[protocol] += one.gsoSize === 0 ? 1 : Math.ceil(payload / size);
      }
      // The control: the harmless ones of the 256 did arrive, and no frame became several.
      expect(came.udp).toBeGreaterThan(2);
      expect(came.tcp).toBeGreaterThan(2);
      expect(came.tcp).toBeLessThanOrEqual(sent.tcp);
      console.log(
        `C7: ${sent.udp + sent.tcp} frames sent, ${seen.length} packets came out of the TAP`,
      );
    });
  });

  describe('M6: what was recorded before a restart', () => {
    let wire: Capture;
    let group: SeenFrame[] = [];
    let pair: SeenFrame[] = [];

    beforeAll(async () => {
      const { lab } = handle;
      wire = await lab.capture(SEGMENT);
      const hex = Buffer.from(MARKER.slice(0, 16)).toString('hex');
      await ping(lab, 'alice', inner4('carol'), { count: 5, intervalMs: 20, pattern: hex });
      const shout = ['socat', '-u', '-', 'UDP4-DATAGRAM:198.51.100.255:9,broadcast'];
      for (let time = 0; time < 5; time += 1) await lab.exec('alice', shout, { input: MARKER });
      const index = await indexOf('alice');
      const { frames } = sealedFrames(await wire.stop());
      const toCarol = frames.filter(
        ({ shim, destination }) => shim.index === index && outerBoth('carol').includes(destination),
      );
      group = toCarol.filter(({ shim }) => shim.kind === FrameKind.group);
      pair = toCarol.filter(({ shim }) => shim.kind === FrameKind.pair);
      expect(group.length).toBeGreaterThanOrEqual(5);
      expect(pair.length).toBeGreaterThanOrEqual(5);
      expect(Math.min(...pair.map(({ bytes }) => bytes.length))).toBeGreaterThan(FRAME_OVERHEAD);
      await killDataPlane(lab, 'carol');
      // Traffic both ways: carol has alice's keys again, that of the group, too.
      await waitFor(async () => (await ping(lab, 'alice', inner4('carol'))).received === 1, {
        what: 'carol to be back',
        timeoutMs: 20_000,
      });
      const tap = await lab.capture('carol', { interface: 'pw0' });
      await waitFor(
        async () => {
          await lab.exec('alice', shout, { input: 'after the restart' });
          return tap.packets().some(({ bytes }) => bytes.includes('after the restart'));
        },
        { what: 'a broadcast of alice at carol', timeoutMs: 20_000, everyMs: 200 },
      );
      await tap.stop();
    });

    test('does not open afterwards: pair frames have no key, group frames are older than the key', async () => {
      const { lab } = handle;
      const tap = await lab.capture('carol', { interface: 'pw0' });
      const before = await dropsOf(lab, 'carol');
      for (const frame of [...pair, ...group]) mallory.port.send('carol', frame);
      let grown: Readonly<Record<string, number>> = {};
      await waitFor(
        async () => {
          grown = growth(before, await dropsOf(lab, 'carol'));
          return (
            (grown.unknown_kid ?? 0) + (grown.before_group_key ?? 0) >= pair.length + group.length
          );
        },
        { what: 'the recordings to be dropped' },
      ).catch(() => undefined); // the comparison says more
      expect(grown).toEqual({ unknown_kid: pair.length, before_group_key: group.length });
      const marked = (await tap.stop()).filter(({ bytes }) => bytes.includes(MARKER.slice(0, 16)));
      expect(marked).toEqual([]);
    });
  });
});
