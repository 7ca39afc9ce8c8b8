/**
 * Reads capture files (classic pcap, microseconds or nanoseconds, as tcpdump writes them), and
 * takes Ethernet, IP and UDP or TCP apart, just as far as tests look.
 *
 *   file header (24) | { seconds (4) | fraction (4) | captured (4) | length (4) | bytes }...
 */

export interface CapturedPacket {
  /** Seconds since 1970. */
  readonly time: number;
  /** As on the wire, from the destination MAC on. */
  readonly bytes: Buffer;
  /** Length on the wire; more than bytes.length if the capture cut it. */
  readonly length: number;
}

const MAGIC = { micro: 0xa1b2c3d4, nano: 0xa1b23c4d } as const;
const LINK_ETHERNET = 1;
const FILE_HEADER = 24;
const PACKET_HEADER = 16;

/** @throws RangeError for a file that is no capture of an Ethernet interface */
export function parsePcap(file: Buffer): CapturedPacket[] {
  if (file.length < FILE_HEADER) return []; // tcpdump has not written anything yet
  const magic = file.readUInt32LE(0);
  const scale = magic === MAGIC.micro ? 1e6 : magic === MAGIC.nano ? 1e9 : 0;
  if (scale === 0) throw new RangeError('this is not a little-endian pcap file');
  if ((file.readUInt32LE(20) & 0xffff) !== LINK_ETHERNET) {
    throw new RangeError('this capture is not of an Ethernet interface');
  }
  const packets: CapturedPacket[] = [];
  let at = FILE_HEADER;
  while (at + PACKET_HEADER <= file.length) {
    const captured = file.readUInt32LE(at + 8);
    const begin = at + PACKET_HEADER;
    if (begin + captured > file.length) break; // still being written
    packets.push({
      time: file.readUInt32LE(at) + file.readUInt32LE(at + 4) / scale,
      bytes: file.subarray(begin, begin + captured),
      length: file.readUInt32LE(at + 12),
    });
    at = begin + captured;
  }
  return packets;
}

/** An IP packet of a capture that carries UDP or TCP. */
export interface Transport {
  readonly protocol: 'udp' | 'tcp';
  readonly source: string;
  readonly sourcePort: number;
  readonly destination: string;
  readonly destinationPort: number;
  readonly payload: Buffer;
  /** TCP's sequence number; 0 for UDP. */
  readonly sequence: number;
}

const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;

export function etherTypeOf(frame: Buffer): number {
  return frame.length < 14 ? 0 : frame.readUInt16BE(12);
}

/** What UDP or TCP a frame carries; undefined for anything else, fragments too. */
export function transportOf(frame: Buffer): Transport | undefined {
  const type = etherTypeOf(frame);
  const packet = frame.subarray(14);
  if (type === ETHERTYPE_IPV4) return transportOfIpv4(packet);
  if (type === ETHERTYPE_IPV6) return transportOfIpv6(packet);
  return undefined;
}

function transportOfIpv4(packet: Buffer): Transport | undefined {
  if (packet.length < 20) return undefined;
  const headerLength = (packet.readUInt8(0) & 0x0f) * 4;
  const total = packet.readUInt16BE(2);
  const isFragment = (packet.readUInt16BE(6) & 0x3fff) !== 0;
  if (isFragment || total > packet.length || headerLength > total) return undefined;
  return transportOfSegment(
    packet.readUInt8(9),
    packet.subarray(12, 16).join('.'),
    packet.subarray(16, 20).join('.'),
    packet.subarray(headerLength, total),
  );
}

function transportOfIpv6(packet: Buffer): Transport | undefined {
  if (packet.length < 40) return undefined;
  const total = 40 + packet.readUInt16BE(4);
  if (total > packet.length) return undefined;
  return transportOfSegment(
    packet.readUInt8(6),
    packet.toString('hex', 8, 24),
    packet.toString('hex', 24, 40),
    packet.subarray(40, total),
  );
}

function transportOfSegment(
  protocol: number,
  source: string,
  destination: string,
  segment: Buffer,
): Transport | undefined {
  if (segment.length < 8) return undefined;
  const common = {
    source,
    destination,
    sourcePort: segment.readUInt16BE(0),
    destinationPort: segment.readUInt16BE(2),
  };
  if (protocol === PROTOCOL_UDP) {
    return { ...common, protocol: 'udp', payload: segment.subarray(8), sequence: 0 };
  }
  if (protocol !== PROTOCOL_TCP || segment.length < 20) return undefined;
  return {
    ...common,
    protocol: 'tcp',
    payload: segment.subarray((segment.readUInt8(12) >> 4) * 4),
    sequence: segment.readUInt32BE(4),
  };
}

/** One direction of a TCP connection, in order and without repetitions. */
export function tcpStreams(packets: readonly CapturedPacket[]): Map<string, Buffer> {
  const parts = new Map<string, Map<number, Buffer>>();
  for (const packet of packets) {
    const segment = transportOf(packet.bytes);
    if (segment?.protocol !== 'tcp' || segment.payload.length === 0) continue;
    const name = `${segment.source}:${segment.sourcePort} > ${segment.destination}:${segment.destinationPort}`;
    const stream = parts.get(name) ?? new Map<number, Buffer>();
    parts.set(name, stream);
    const known = stream.get(segment.sequence);
    if (known === undefined || known.length < segment.payload.length) {
      stream.set(segment.sequence, segment.payload);
    }
  }
  const streams = new Map<string, Buffer>();
  for (const [name, stream] of parts) streams.set(name, joinSegments(stream));
  return streams;
}

function joinSegments(stream: ReadonlyMap<number, Buffer>): Buffer {
  const ordered = [...stream.entries()].sort(([a], [b]) => (a - b) | 0);
  const pieces: Buffer[] = [];
  let next: number | undefined;
  for (const [sequence, payload] of ordered) {
    const overlap = next === undefined ? 0 : (next - sequence) | 0;
    if (overlap < 0) throw new RangeError('a part of the TCP stream is missing in the capture');
    if (overlap >= payload.length) continue;
    pieces.push(payload.subarray(overlap));
    next = (sequence + payload.length) >>> 0;
  }
  return Buffer.concat(pieces);
}
