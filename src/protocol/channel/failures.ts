/**
 * Why a secure channel ends (docs/protocol.md section 6). The reason goes to our log and
 * to a counter of the same name; the peer is told nothing.
 */
import { type ErrorCode, PairwireError } from '../../runtime/errors.js';

/** Every reason with the error code it belongs to and what it means. */
const REASONS = {
  frame_length: ['CHANNEL_FRAMING', 'the length of a frame is out of bounds'],
  frame_type: ['CHANNEL_FRAMING', 'a frame has an unknown type'],
  frame_unexpected: ['CHANNEL_FRAMING', 'a frame came that does not belong here'],
  handshake_message: ['CHANNEL_HANDSHAKE', 'a handshake message is not authentic'],
  handshake_payload: ['CHANNEL_HANDSHAKE', 'the payload of a handshake message is not valid'],
  handshake_key_changed: ['CHANNEL_HANDSHAKE', 'a renewal came with another static key'],
  handshake_timeout: ['CHANNEL_TIMEOUT', 'the handshake took too long'],
  unknown_key: ['CHANNEL_HANDSHAKE', 'the static key is not known here'],
  unknown_token: ['CHANNEL_HANDSHAKE', 'the join token is not known here'],
  record_short: ['CHANNEL_RECORD', 'a record is shorter than a one-time password and a tag'],
  record_tag: ['CHANNEL_RECORD', 'a record is not authentic, repeated or out of order'],
  otp_hmac: ['CHANNEL_OTP', 'the one-time password of a record is wrong'],
  otp_old: ['CHANNEL_OTP', 'the one-time password of a record is too old'],
  otp_future: ['CHANNEL_OTP', 'the one-time password of a record lies in the future'],
  message_malformed: ['CHANNEL_MALFORMED', 'a message is not valid'],
  expired: ['CHANNEL_EXPIRED', 'the channel key is over its lifetime and was not renewed'],
  idle: ['CHANNEL_TIMEOUT', 'nothing was heard for too long'],
  connect_timeout: ['CHANNEL_TIMEOUT', 'the connection was not made in time'],
  too_many_connections: ['CHANNEL_LIMIT', 'there are too many connections'],
  too_many_half_open: ['CHANNEL_LIMIT', 'there are too many connections without a handshake'],
  backlog: ['CHANNEL_LIMIT', 'the peer does not read what is sent to it'],
  peer_closed: ['CHANNEL_CLOSED', 'the peer closed the connection'],
  network: ['CHANNEL_UNREACHABLE', 'the network reported an error'],
  stopped: ['CHANNEL_CLOSED', 'the channel was closed here'],
  internal: ['CHANNEL_CLOSED', 'a callback of the program failed'],
} as const satisfies Record<string, readonly [ErrorCode, string]>;

/** The name of a reason: a counter label and a word in the log. */
export type FailureReason = keyof typeof REASONS;

/** All reasons, in the order of the table. */
export const FAILURE_REASONS = Object.keys(REASONS) as FailureReason[];

/** Makes the error for a reason; `where` is the peer's address. */
export function failureError(reason: FailureReason, where?: string): PairwireError {
  const [code, text] = REASONS[reason];
  return new PairwireError(code, `${text} (${reason})`, where === undefined ? {} : { where });
}
