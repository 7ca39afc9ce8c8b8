/** Tickets and receipts of the relay, by the vectors that the C++ tests read too. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  openReceipt,
  RECEIPT_VALIDITY_MS,
  relayTicketKey,
} from '../../../../src/protocol/relay.js';

const { relayKey, ticket, receipt } = z
  .object({
    relayKey: z.string(),
    ticket: z.object({ index: z.int(), notAfter: z.int(), key: z.string() }),
    receipt: z.object({ port: z.int(), time: z.int(), bytes: z.string() }),
  })
  .parse(JSON.parse(readFileSync('test/vectors/relay.json', 'utf8')));
const key = Buffer.from(relayKey, 'hex');
const good = Buffer.from(receipt.bytes, 'hex');
const expected = { index: ticket.index, nowMs: receipt.time };

describe('the relay, as the key server sees it', () => {
  it('gives a ticket its key', () => {
    expect(relayTicketKey(key, ticket.index, ticket.notAfter).toString('hex')).toBe(ticket.key);
  });

  it('takes the address out of a receipt', () => {
    expect(openReceipt(key, good, expected)).toEqual({
      ip: Buffer.from([203, 0, 113, 3]),
      port: receipt.port,
    });
  });

  it('refuses one that is late, early, of another member or of another relay', () => {
    for (const off of [RECEIPT_VALIDITY_MS + 1, -RECEIPT_VALIDITY_MS - 1]) {
      expect(openReceipt(key, good, { ...expected, nowMs: receipt.time + off })).toBe('late');
    }
    expect(openReceipt(key, good, { ...expected, index: ticket.index + 1 })).toBe('foreign');
    expect(openReceipt(Buffer.alloc(32), good, expected)).toBe('forged');
  });

  it('refuses every change of what it vouches for', () => {
    // Token and nonce are between relay and member; all else is proven or fixed.
    for (let at = 0; at < good.length; at += 1) {
      if ((at >= 8 && at < 24) || at === 50) continue;
      const bent = Buffer.from(good);
      bent.writeUInt8(bent.readUInt8(at) ^ 1, at);
      expect(typeof openReceipt(key, bent, expected), `byte ${at}`).toBe('string');
    }
    expect(openReceipt(key, good.subarray(1), expected)).toBe('malformed');
  });
});
