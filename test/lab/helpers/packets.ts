/** Inner Ethernet frames for the tests that seal their own. */
import { ipToBytes } from '../../../gateway/underlay.js';
import { type MacAddress, macToBytes } from '../../../src/protocol/mac.js';

const ETHERTYPE_IPV4 = 0x0800;
const ICMP = 1;

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
