/**
 * Membership tickets, docs/protocol.md 11.7: the key server's word to its KMS that a channel key is a member's. The KMS has
 * no list of members; whoever shows a fresh ticket for the key that it speaks with is one. A key server of a cascade signs them for
 * members of the others, too, who ask about its own.
 */
import type { KeyObject } from 'node:crypto';
import { z } from 'zod';
import { PairwireError } from '../runtime/errors.js';
import { KEY_SIZE, LABEL } from './constants.js';
import { idSchema } from './ids.js';
import { bytesSchema, openSigned, type Signed, signRecord } from './signed.js';

/** How long a ticket is good, ms. */
export const TICKET_MS = 600_000;
/** The clocks of a key server and its KMS may differ by so much, ms. */
export const TICKET_SKEW_MS = 60_000;

export const ticketSchema = z.strictObject({
  subnet: idSchema,
  server: idSchema,
  id: idSchema,
  /** Where the member is at home, if that is another key server of the subnet: this one knows it by that one's word and the operator's grant. */
  home: idSchema.optional(),
  /** The member's channel key. */
  channel: bytesSchema(KEY_SIZE),
  /** Whom it is for: the KMS's public channel key. */
  kms: bytesSchema(KEY_SIZE),
  /** Key-server time, ms. */
  notAfter: z.int().nonnegative(),
});
/** What a ticket says. */
export type Ticket = z.infer<typeof ticketSchema>;

/** What a ticket must say for whoever shows it. */
export type ExpectedTicket = Pick<Ticket, 'subnet' | 'server' | 'channel' | 'kms'>;

/** Signs a ticket with the key server's signing key (that of the heads of its audit log, under another label). */
export function signTicket(
  { notAfter, ...ticket }: Omit<Ticket, 'notAfter'> & { readonly notAfter?: number },
  key: KeyObject,
  nowMs: number,
): Signed {
  return signRecord(
    LABEL.kmsTicket,
    { ...ticket, notAfter: notAfter ?? Math.floor(nowMs) + TICKET_MS },
    key,
  );
}

/**
 * Verifies a ticket.
 * @param signer the key server's public signing key
 * @throws PairwireError RECORD_SIGNATURE, RECORD_MALFORMED, RECORD_MISMATCH, RECORD_EXPIRED
 */
export function openTicket(
  record: Signed,
  signer: KeyObject,
  expected: ExpectedTicket,
  nowMs: number,
): Ticket {
  const ticket = openSigned(LABEL.kmsTicket, record, signer, ticketSchema);
  const same =
    ticket.subnet === expected.subnet &&
    ticket.server === expected.server &&
    Buffer.compare(ticket.channel, expected.channel) === 0 &&
    Buffer.compare(ticket.kms, expected.kms) === 0;
  if (!same) {
    throw new PairwireError('RECORD_MISMATCH', 'a ticket is of another subnet, server, key or KMS');
  }
  const left = ticket.notAfter - nowMs;
  if (left < -TICKET_SKEW_MS || left > TICKET_MS + TICKET_SKEW_MS) {
    throw new PairwireError('RECORD_EXPIRED', 'a ticket has expired, or is good for too long');
  }
  return ticket;
}
