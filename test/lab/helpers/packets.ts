/** Inner Ethernet frames for the tests that seal their own. */
import { ipToBytes } from '../../../src/protocol/ip.js';
import { type MacAddress, macToBytes } from '../../../src/protocol/mac.js';

const ETHERTYPE_IPV4 = 0x0800;
const ICMP = 1;
const ICMPV6 = 58;

/** Sum of 16-bit words, RFC 1071. */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) {
    sum += at + 1 < bytes.length ? bytes.readUInt16BE(at) : bytes.readUInt8(at) << 8;
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** An Ethernet frame. */
export function ethernet(
  to: MacAddress,
  from: MacAddress,
  type: number,
  payload: Uint8Array,
): Buffer {
  const header = Buffer.alloc(14);
  macToBytes(to).copy(header, 0);
  macToBytes(from).copy(header, 6);
  header.writeUInt16BE(type, 12);
  return Buffer.concat([header, payload]);
}

/** An ICMP echo request in IPv4 in Ethernet, which any host would answer. */
export function echoRequest(input: {
  readonly to: MacAddress;
  readonly from: MacAddress;
  readonly toIp: string;
  readonly fromIp: string;
  readonly marker: string;
}): Buffer {
  const icmp = Buffer.concat([Buffer.from('0800000012340001', 'hex'), Buffer.from(input.marker)]);
  icmp.writeUInt16BE(checksum(icmp), 2);
  const ip = Buffer.alloc(20);
  ip.writeUInt8(0x45, 0);
  ip.writeUInt16BE(20 + icmp.length, 2);
  ip.writeUInt8(64, 8);
  ip.writeUInt8(ICMP, 9);
  bytesOf(input.fromIp).copy(ip, 12);
  bytesOf(input.toIp).copy(ip, 16);
  ip.writeUInt16BE(checksum(ip), 10);
  return ethernet(input.to, input.from, ETHERTYPE_IPV4, Buffer.concat([ip, icmp]));
}

function bytesOf(ip: string): Buffer {
  const bytes = ipToBytes(ip);
  if (bytes === undefined) throw new RangeError(`${ip} is no IP address`);
  return bytes;
}

/** An IPv4 packet in Ethernet with anything in it. */
export function ipv4(input: {
  readonly to: MacAddress;
  readonly from: MacAddress;
  readonly toIp: string;
  readonly fromIp: string;
  readonly protocol: number;
  readonly payload: Uint8Array;
  /** Flags and offset as they stand in the header. */
  readonly fragment?: number;
}): Buffer {
  const ip = Buffer.alloc(20);
  ip.writeUInt8(0x45, 0);
  ip.writeUInt16BE(20 + input.payload.length, 2);
  ip.writeUInt16BE(input.fragment ?? 0, 6);
  ip.writeUInt8(64, 8);
  ip.writeUInt8(input.protocol, 9);
  bytesOf(input.fromIp).copy(ip, 12);
  bytesOf(input.toIp).copy(ip, 16);
  ip.writeUInt16BE(checksum(ip), 10);
  return ethernet(input.to, input.from, ETHERTYPE_IPV4, Buffer.concat([ip, input.payload]));
}

/**
 * A UDP datagram without checksum whose bytes, summed up by somebody who was told to write the sum over
 * the destination port, would make that port `becomes`.
 */
export function treacherousDatagram(port: number, becomes: number): Buffer {
  const text = Buffer.from('past-the-filter!');
  const datagram = Buffer.concat([Buffer.alloc(10), text]);
  datagram.writeUInt16BE(4444, 0);
  datagram.writeUInt16BE(port, 2);
  datagram.writeUInt16BE(datagram.length, 4);
  // The two free bytes behind the header make up the difference.
  const sum = ~checksum(datagram) & 0xffff;
  datagram.writeUInt16BE(((~becomes & 0xffff) - sum + 0xffff) % 0xffff, 8);
  if (checksum(datagram) !== becomes) throw new Error('the filler is wrong');
  return datagram;
}

/** A TCP segment with ACK, its checksum left to whoever completes it. */
export function tcpSegment(port: number, sequence: number, payload: Uint8Array): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt16BE(4444, 0);
  header.writeUInt16BE(port, 2);
  header.writeUInt32BE(sequence, 4);
  header.writeUInt8(0x50, 12);
  header.writeUInt8(0x10, 13);
  header.writeUInt16BE(500, 14);
  return Buffer.concat([header, payload]);
}

/** An ICMPv6 message of neighbour discovery in IPv6; addresses as 16 bytes. */
export function icmpv6(from: Buffer, to: Buffer, message: Buffer): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt8(0x60, 0);
  header.writeUInt16BE(message.length, 4);
  header.writeUInt8(ICMPV6, 6);
  header.writeUInt8(255, 7);
  const summed = Buffer.from(message);
  const pseudo = Buffer.alloc(8);
  pseudo.writeUInt32BE(message.length, 0);
  pseudo.writeUInt8(ICMPV6, 7);
  summed.writeUInt16BE(checksum(Buffer.concat([from, to, pseudo, message])), 2);
  return Buffer.concat([header, from, to, summed]);
}
