/** IP addresses as bytes and in their one spelling. An IPv4 address may stand mapped into IPv6 (RFC 4291, 2.5.5.2). */
import { isIP } from 'node:net';
import { z } from 'zod';

/** Longest text of an address that is looked at. */
const MAX_IP_TEXT = 45;

const MAPPED = Buffer.from('00000000000000000000ffff', 'hex');

/** The 4 bytes of an IPv4 address that is mapped into IPv6; anything else as it is. */
export function unmapped(ip: Uint8Array): Buffer {
  const bytes = Buffer.from(ip);
  const mapped = bytes.length === 16 && bytes.subarray(0, MAPPED.length).equals(MAPPED);
  return mapped ? bytes.subarray(MAPPED.length) : bytes;
}

/** The 4 or 16 bytes of an address; undefined if it is none. */
export function ipToBytes(text: string): Buffer | undefined {
  const bare = text.split('%')[0] ?? '';
  const kind = isIP(bare);
  if (kind === 0) return undefined;
  if (kind === 4) return Buffer.from(bare.split('.').map(Number));
  const groups = expandV6(bare);
  const bytes = Buffer.alloc(16);
  for (const [at, group] of groups.entries()) bytes.writeUInt16BE(group, at * 2);
  return bytes;
}

/** The one spelling of 4 or 16 bytes: IPv6 in lower case and shortened (RFC 5952, no dots). @throws RangeError for another length */
export function ipToText(ip: Uint8Array): string {
  const bytes = Buffer.from(ip);
  if (bytes.length === 4) return bytes.join('.');
  if (bytes.length !== 16) throw new RangeError('an IP address has 4 or 16 bytes');
  const groups = Array.from({ length: 8 }, (_unused, at) =>
    bytes.readUInt16BE(2 * at).toString(16),
  );
  return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
}

/** An address in any spelling, without zone; becomes the one spelling. */
export const ipSchema = z
  .string()
  .max(MAX_IP_TEXT)
  .transform((text, context) => {
    const bytes = text.includes('%') ? undefined : ipToBytes(text);
    if (bytes !== undefined) return ipToText(bytes);
    context.addIssue({
      code: 'custom',
      message: 'an IP address looks like 10.1.0.2 or 2001:db8::2',
    });
    return z.NEVER;
  });

/** Why nobody can announce this address as its own; undefined if one can. */
export function whyNotBindable(ip: Uint8Array): string | undefined {
  if (ip.every((byte) => byte === 0)) return 'is no address';
  if (ip.length === 4) {
    if (ip[0] === 127) return 'is a loopback address';
    if (((ip[0] ?? 0) & 0xf0) === 0xe0) return 'is a group address';
    return ip.every((byte) => byte === 0xff) ? 'is the broadcast address' : undefined;
  }
  if (ip[0] === 0xff) return 'is a group address';
  if (unmapped(ip).length === 4) return 'is an IPv4 address written as IPv6';
  return ip[15] === 1 && ip.subarray(0, 15).every((byte) => byte === 0)
    ? 'is a loopback address'
    : undefined;
}

/** True for fe80::/10: every interface gives itself one (RFC 4291). */
export function isLinkLocal(ip: Uint8Array): boolean {
  return ip.length === 16 && ip[0] === 0xfe && ((ip[1] ?? 0) & 0xc0) === 0x80;
}

/** Whether an address lies in a prefix, or is the address that stands in its place. */
export function inPrefix(prefix: string, ip: Uint8Array): boolean {
  const [address = '', length] = prefix.split('/');
  const base = ipToBytes(address);
  if (base === undefined || base.length !== ip.length) return false;
  const bits = length === undefined ? 8 * ip.length : Number(length);
  for (let at = 0; at < ip.length; at += 1) {
    const left = bits - 8 * at;
    const mask = left >= 8 ? 0xff : left <= 0 ? 0 : (0xff << (8 - left)) & 0xff;
    if ((((base[at] ?? 0) ^ (ip[at] ?? 0)) & mask) !== 0) return false;
  }
  return true;
}

/** The eight groups of an IPv6 address that `isIP` has accepted. */
function expandV6(text: string): number[] {
  const plain = text.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_all, a, b, c, d) => {
    const high = (Number(a) << 8) | Number(b);
    const low = (Number(c) << 8) | Number(d);
    return `${high.toString(16)}:${low.toString(16)}`;
  });
  const [head = '', tail] = plain.split('::');
  const parse = (part: string) =>
    part === '' ? [] : part.split(':').map((x) => Number.parseInt(x, 16));
  const front = parse(head);
  if (tail === undefined) return front;
  const back = parse(tail);
  return [...front, ...new Array<number>(8 - front.length - back.length).fill(0), ...back];
}
