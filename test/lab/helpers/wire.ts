/** What a capture of the underlay holds: sealed frames, secure-channel records, and the rest. */
import {
  type CapturedPacket,
  etherTypeOf,
  tcpStreams,
  transportOf,
} from '../../../scripts/laboratory/pcap.js';
import {
  ETHERTYPE_SEALED,
  FLAG_GROUP,
  FRAME_OVERHEAD,
  FrameKind,
  SUBNET_TAG_MASK,
} from '../../../src/protocol/constants.js';
import { decodeShim, type Shim } from '../../../src/protocol/frame.js';
import { macFromBytes } from '../../../src/protocol/mac.js';
import { DATA_PORT, SERVER_PORT } from './topologies.js';

/** A sealed frame as it was seen. */
export interface SeenFrame {
  readonly shim: Shim;
  readonly bytes: Buffer;
  /** IP addresses, or on an Ethernet MAC addresses. */
  readonly source: string;
  readonly destination: string;
  /** What stands behind the shim in the associated data. */
  readonly aadTail: Buffer;
  readonly time: number;
}

/** The sealed frames of a capture. Anything on the data port that is none is an entry of `wrong`. */
export function sealedFrames(packets: readonly CapturedPacket[]): {
  frames: SeenFrame[];
  wrong: string[];
} {
  const frames: SeenFrame[] = [];
  const wrong: string[] = [];
  for (const packet of packets) {
    const carried = carriedIn(packet.bytes);
    if (carried === undefined) continue;
    const { bytes } = carried;
    const shim = decodeShim(bytes);
    if (shim === undefined) wrong.push(bytes.toString('hex', 0, 40));
    else {
      const why = whyNotWellFormed(shim, carried);
      if (why !== undefined) wrong.push(`${why}: ${bytes.toString('hex', 0, 40)}`);
      frames.push({ ...carried, shim, time: packet.time });
    }
  }
  return { frames, wrong };
}

type Carried = Pick<SeenFrame, 'bytes' | 'source' | 'destination' | 'aadTail'>;

/** What an Ethernet frame carries where sealed frames are carried, by either transport. */
function carriedIn(frame: Buffer): Carried | undefined {
  if (etherTypeOf(frame) === ETHERTYPE_SEALED) {
    return {
      bytes: frame.subarray(14),
      source: macFromBytes(frame.subarray(6, 12)),
      destination: macFromBytes(frame.subarray(0, 6)),
      aadTail: etherAddresses(frame),
    };
  }
  const udp = transportOf(frame);
  if (udp?.protocol !== 'udp' || udp.destinationPort !== DATA_PORT) return undefined;
  const { source, destination, payload } = udp;
  return { bytes: payload, source, destination, aadTail: Buffer.alloc(0) };
}

/** Outer destination and source, as they stand in the associated data of the transport `ethernet`. */
export function etherAddresses(frame: Buffer): Buffer {
  return frame.subarray(0, 12);
}

/** Frames seen twice under one (sender index, kid, counter) with different bytes. */
export function reusedNonces(frames: readonly SeenFrame[]): string[] {
  const seen = new Map<string, Buffer>();
  const reused: string[] = [];
  for (const { shim, bytes } of frames) {
    const nonce = `index ${shim.index} kid ${shim.kid} counter ${shim.counter}`;
    const before = seen.get(nonce);
    // A group frame is sealed once and sent to each member: the same bytes again.
    if (before !== undefined && !before.equals(bytes)) reused.push(nonce);
    seen.set(nonce, bytes);
  }
  return reused;
}

/** docs/protocol.md 2.1, as it is in this version. */
function whyNotWellFormed(shim: Shim, carried: Carried): string | undefined {
  const { length } = carried.bytes;
  const onEthernet = carried.aadTail.length > 0;
  const tag = onEthernet ? SUBNET_TAG_MASK : 0;
  const { pair, group, path } = FrameKind;
  if (shim.kind !== pair && shim.kind !== group && shim.kind !== path) return 'kind';
  if ((shim.flags & ~(FLAG_GROUP | tag)) !== 0) return 'flags';
  if (shim.index === 0) return 'sender index';
  if (length < (onEthernet ? MIN_ON_ETHERNET : FRAME_OVERHEAD)) return 'length';
  return undefined;
}

/** Shorter ones are padded by network cards: 60 bytes less the outer header. */
const MIN_ON_ETHERNET = 46;

const ARP = 0x0806;
const PROTOCOL_ICMPV6 = 58;
const PROTOCOL_IGMP = 2;

/**
 * Checks that nothing else is on the underlay: sealed frames on the data port or of our EtherType, secure-channel
 * records on the server's port, and what any host on an Ethernet says (ARP, ND, MLD, IGMP).
 * @returns one line for each packet that is none of these
 */
export function strangers(packets: readonly CapturedPacket[]): string[] {
  const found: string[] = [];
  for (const packet of packets) {
    const type = etherTypeOf(packet.bytes);
    const isNeighbour =
      type === ARP ||
      (type === 0x0800 && packet.bytes[23] === PROTOCOL_IGMP) ||
      (type === 0x86dd &&
        (packet.bytes[20] === PROTOCOL_ICMPV6 || packet.bytes[54] === PROTOCOL_ICMPV6));
    if (isNeighbour || type === ETHERTYPE_SEALED) continue;
    const transport = transportOf(packet.bytes);
    const ports = [transport?.sourcePort, transport?.destinationPort];
    if (transport?.protocol === 'udp' && ports.includes(DATA_PORT)) continue;
    // The data plane tells the key server its address by a blob to the same port number.
    if (ports.includes(SERVER_PORT)) continue;
    found.push(packet.bytes.toString('hex', 0, 60));
  }
  return found;
}

/** Largest framing length, docs/protocol.md 6.1. */
const MAX_RECORD = 1_048_576 + 64;

/**
 * Checks that each TCP stream to or from the key server is a sequence of channel frames,
 * docs/protocol.md 6.1: the handshake, then records only.
 * @returns the types of frames of each stream
 */
export function channelStreams(packets: readonly CapturedPacket[]): Map<string, number[]> {
  const streams = new Map<string, number[]>();
  for (const [name, bytes] of tcpStreams(packets)) {
    if (!name.includes(`:${SERVER_PORT}`)) throw new Error(`a TCP connection ${name}`);
    const types: number[] = [];
    let at = 0;
    while (at + 5 <= bytes.length) {
      const length = bytes.readUInt32BE(at);
      const type = bytes.readUInt8(at + 4);
      if (length < 1 || length > MAX_RECORD) throw new Error(`${name}: a frame of ${length} bytes`);
      if (type < 1 || type > 4) throw new Error(`${name}: a frame of type ${type}`);
      types.push(type);
      at += 4 + length;
    }
    streams.set(name, types);
  }
  return streams;
}

/** Names of the markers that stand anywhere in the packets. */
export function markersIn(
  packets: readonly CapturedPacket[],
  markers: Readonly<Record<string, Uint8Array>>,
): string[] {
  // Also across packets: a marker in a TCP stream may be cut by a segment's end.
  const texts = [...packets.map((packet) => packet.bytes), ...[...tcpStreamsOrNone(packets)]];
  return Object.entries(markers)
    .filter(([, marker]) => texts.some((text) => text.includes(Buffer.from(marker))))
    .map(([name]) => name);
}

function tcpStreamsOrNone(packets: readonly CapturedPacket[]): Buffer[] {
  try {
    return [...tcpStreams(packets).values()];
  } catch {
    return []; // a capture that began in the middle of a stream
  }
}
