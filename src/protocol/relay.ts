/**
 * The key server's half of the relay's protocol, docs/protocol.md section 2.6: tickets that members
 * register with, and receipts by which the relay proves what address a member has. The other half
 * is gateway/native/core/relay-frame.cpp; test/vectors/relay.json holds both to the same bytes.
 */
import { timingSafeEqual } from 'node:crypto';
import { hmacSha256 } from './channel/hash.js';
import { RECEIPT_SIZE } from './constants.js';
import { fields } from './fields.js';
import { unmapped } from './ip.js';
import type { Endpoint } from './messages.js';

/** Specification values. */
const MAC_SIZE = 16;
const FIRST_BYTE = 0x15;
const TYPE_RECEIPT = 2;
/** How old, or how far ahead of the key server's clock, a receipt may be. */
export const RECEIPT_VALIDITY_MS = 120_000;

const AT = { index: 4, time: 24, ip: 32, port: 48, registered: 50, zeros: 51, mac: 56 } as const;

/** The key of a ticket for a sender index, good until a time (ms). */
export function relayTicketKey(relayKey: Uint8Array, index: number, notAfterMs: number): Buffer {
  return hmacSha256(relayKey, fields('pairwire/1 relay ticket', index, notAfterMs));
}

/** Why a receipt does not count. */
export type ReceiptFault = 'malformed' | 'foreign' | 'forged' | 'late';

/** The address in a receipt that is the relay's, for this index and of this time; or what is wrong. */
export function openReceipt(
  relayKey: Uint8Array,
  receipt: Uint8Array,
  expected: { readonly index: number; readonly nowMs: number },
): Endpoint | ReceiptFault {
  const bytes = Buffer.from(receipt.buffer, receipt.byteOffset, receipt.byteLength);
  if (
    bytes.length !== RECEIPT_SIZE ||
    bytes.readUInt8(0) !== FIRST_BYTE ||
    bytes.readUInt8(1) !== 0 ||
    bytes.readUInt16BE(2) !== TYPE_RECEIPT ||
    bytes.readUInt8(AT.registered) > 1 ||
    bytes.subarray(AT.zeros, AT.mac).some((byte) => byte !== 0)
  ) {
    return 'malformed';
  }
  const index = bytes.readUInt32BE(AT.index);
  if (index !== expected.index) return 'foreign';
  const time = bytes.readBigUInt64BE(AT.time);
  const ip = bytes.subarray(AT.ip, AT.port);
  const port = bytes.readUInt16BE(AT.port);
  const mac = hmacSha256(relayKey, fields('pairwire/1 relay receipt', index, time, ip, port));
  if (!timingSafeEqual(mac.subarray(0, MAC_SIZE), bytes.subarray(AT.mac))) return 'forged';
  const off = Number(time) - expected.nowMs;
  if (Math.abs(off) > RECEIPT_VALIDITY_MS || port === 0) return 'late';
  return { ip: unmapped(ip), port };
}
