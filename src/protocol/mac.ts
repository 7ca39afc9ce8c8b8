/** MAC addresses (IEEE 802): text form, kinds, and the address that a member owns by default. */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { LABEL, MAC_SIZE } from './constants.js';
import { fields } from './fields.js';

declare const macBrand: unique symbol;
/** A MAC address as lower-case hex with colons. */
export type MacAddress = string & { readonly [macBrand]: true };

export const BROADCAST_MAC = 'ff:ff:ff:ff:ff:ff' as MacAddress;

export const macSchema = z
  .string()
  .transform((text) => text.toLowerCase().replaceAll('-', ':'))
  .pipe(
    z
      .string()
      .regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/, 'a MAC address looks like 02:00:5e:10:00:01'),
  )
  .transform((text) => text as MacAddress);

/** The text form of 6 bytes. @throws RangeError for another length */
export function macFromBytes(bytes: Uint8Array): MacAddress {
  if (bytes.length !== MAC_SIZE) throw new RangeError('a MAC address has 6 bytes');
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(':') as MacAddress;
}

/** The 6 bytes of an address. */
export function macToBytes(mac: MacAddress): Buffer {
  return Buffer.from(mac.replaceAll(':', ''), 'hex');
}

/** True for multicast and broadcast: bit 40 of the address, the low bit of its first byte. */
export function isGroupMac(mac: MacAddress): boolean {
  return (Number.parseInt(mac.slice(0, 2), 16) & 1) === 1;
}

/**
 * Why an address can't be a member's own, or undefined if it can: group addresses, all zero,
 * the bridge group block (01:80:c2), the VRRP and IANA block (00:00:5e).
 */
export function whyNotOwnable(mac: MacAddress): string | undefined {
  if (isGroupMac(mac)) return 'is a group address';
  if (mac === '00:00:00:00:00:00') return 'is all zero';
  if (isVirtualRouterMac(mac)) return 'lies in the block reserved for virtual routers';
  return undefined;
}

/** True for the IANA block of VRRP and the like (RFC 9542). */
export function isVirtualRouterMac(mac: MacAddress): boolean {
  return mac.startsWith('00:00:5e:');
}

/** The address that a member owns by default, docs/protocol.md section 5: locally administered, made from its id. */
export function defaultMac(subnet: string, id: string): MacAddress {
  const digest = createHash('sha256')
    .update(fields(LABEL.mac, subnet, id))
    .digest();
  const bytes = Buffer.from(digest.subarray(0, MAC_SIZE));
  bytes.writeUInt8((bytes.readUInt8(0) & 0xfe) | 0x02, 0);
  return macFromBytes(bytes);
}
