/**
 * What somebody sees who listens on the underlay from the first packet on: sealed frames and
 * secure-channel records, and nothing of what is inside.
 */
import { expect, test } from 'vitest';
import { run } from '../../scripts/laboratory/processes.js';
import { parseId } from '../../src/protocol/ids.js';
import { defaultMac, macToBytes } from '../../src/protocol/mac.js';
import { linkOf, listening, ping } from './helpers/hosts.js';
import {
  DATA_PORT,
  ETHERNET,
  inner4,
  inner6,
  MANAGEMENT,
  MEMBERS,
  SEGMENT,
  SERVER_PORT,
  SUBNET,
  threeHosts,
} from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { channelStreams, markersIn, sealedFrames, strangers } from './helpers/wire.js';

/** Long enough that none stands in random bytes by chance. */
const NAMES = {
  alice: 'alice-of-accounting',
  bob: 'bob-of-the-boardroom',
  carol: 'carol-of-catering',
};
const topology = threeHosts({ offload: 'wire' });
const handle = useLab(
  {
    ...topology,
    gateways: (topology.gateways ?? []).map((gateway) => ({
      ...gateway,
      id: NAMES[gateway.host === 'alice' ? 'alice' : gateway.host === 'bob' ? 'bob' : 'carol'],
    })),
  },
  { startPrograms: false },
);

const PING_MARKER_HEX = '70696e672d6d61726b65722d31323334';
const TCP_MARKER = 'a-marker-in-a-tcp-stream';
const UDP_MARKER = 'a-marker-in-a-broadcast';

test('a listener on the underlay learns nothing of what is inside', async () => {
  const { lab } = handle;
  const wires = ETHERNET ? [SEGMENT, MANAGEMENT] : [SEGMENT];
  const captures = await Promise.all(wires.map((wire) => lab.capture(wire)));
  await lab.startPrograms();
  const tap = await lab.capture('bob', { interface: 'pw0' });

  await ping(lab, 'alice', inner4('bob'), { count: 3, intervalMs: 50, pattern: PING_MARKER_HEX });
  await ping(lab, 'alice', inner6('bob'), { count: 3, intervalMs: 50, pattern: PING_MARKER_HEX });
  await ping(lab, 'carol', inner4('bob'), { count: 3, intervalMs: 50, pattern: PING_MARKER_HEX });
  await sendText(`${TCP_MARKER} ${Object.values(NAMES).join(' ')}\n`.repeat(2_000));
  await lab.exec('alice', ['socat', '-u', '-', `UDP4-DATAGRAM:198.51.100.255:9,broadcast`], {
    input: UDP_MARKER,
  });
  await tap.waitForPacket((packet) => packet.bytes.includes(UDP_MARKER), 'the broadcast at bob');

  const inside = await tap.stop();
  const outside = (await Promise.all(captures.map((capture) => capture.stop()))).flat();

  // Well-formed sealed frames, secure-channel records, and what every host on an Ethernet says.
  const { frames, wrong } = sealedFrames(outside);
  expect(wrong).toEqual([]);
  expect(frames.length).toBeGreaterThan(50);
  expect(strangers(outside)).toEqual([]);
  const streams = channelStreams(outside);
  // Each member once to enrol and once to run, two directions each.
  expect(streams.size).toBeGreaterThanOrEqual(4 * MEMBERS.length);
  for (const [name, types] of streams) {
    expect(types[0], `first frame of ${name}`).toBeLessThanOrEqual(3);
    expect(
      types.slice(1).every((type) => type === 4),
      `records of ${name}`,
    ).toBe(true);
  }

  // Nothing of the inside on the outside; and the same search does find all of it inside.
  const macs = await Promise.all(MEMBERS.map((host) => linkOf(lab, host, 'pw0')));
  expect(macs.map((link) => link.address)).toEqual(
    MEMBERS.map((host) => defaultMac(SUBNET, parseId(NAMES[host]))),
  );
  const markers = {
    ping: Buffer.from(PING_MARKER_HEX, 'hex'),
    tcp: Buffer.from(TCP_MARKER),
    broadcast: Buffer.from(UDP_MARKER),
    ...Object.fromEntries(
      MEMBERS.flatMap((host) => [
        [`name of ${host}`, Buffer.from(NAMES[host])],
        [`MAC address of ${host}`, macToBytes(defaultMac(SUBNET, parseId(NAMES[host])))],
      ]),
    ),
  };
  expect(markersIn(inside, markers)).toEqual(Object.keys(markers));
  // On an Ethernet the MAC addresses of unicast are the outer ones, by design (threats.md M15).
  const visible = Object.keys(markers).filter((name) => ETHERNET && name.startsWith('MAC address'));
  expect(markersIn(outside, markers)).toEqual(visible);

  // An independent reader of the same capture agrees.
  const sealed = ETHERNET ? 'eth.type == 0x88b5' : `udp.port == ${DATA_PORT}`;
  const expected = `${sealed} or tcp.port == ${SERVER_PORT} or udp.port == ${SERVER_PORT} or arp or icmpv6 or igmp`;
  for (const { file } of captures) {
    const { stdout } = await run(['tshark', '-r', file, '-Y', `not (${expected})`]);
    expect(stdout).toBe('');
  }
});

/** Text over TCP from alice to bob. */
async function sendText(text: string): Promise<void> {
  const { lab } = handle;
  const send = async () => {
    await listening(lab, 'bob', 'tcp', 8080);
    await lab.exec('alice', ['socat', '-u', '-', `TCP:${inner4('bob')}:8080`], { input: text });
  };
  const receive = lab.exec('bob', ['socat', '-u', 'TCP-LISTEN:8080,reuseaddr', '-']);
  const [received] = await Promise.all([receive, send()]);
  expect(received.stdout).toBe(text);
}
