/**
 * Typed errors: a stable code, what happened, where, and what to do about it.
 *
 * The code and the text go to our own log and to our own user. A network peer is told
 * a code from `PeerCode` at most, never a detail (SECURITY.md, "What a peer learns").
 */

/** Every code that the programs use. A code is never reused for another meaning. */
export const ERROR_CODES = [
  // configuration and files
  'CONFIG_INVALID',
  'CONFIG_NOT_FOUND',
  'FILE_EXISTS',
  'FILE_UNREADABLE',
  'FILE_MODE',
  'USAGE',
  // records and tokens
  'RECORD_MALFORMED',
  'RECORD_SIGNATURE',
  'RECORD_EXPIRED',
  'RECORD_MISMATCH',
  'RECORD_ROLLBACK',
  'PIN_MISMATCH',
  'IDENTITY_REFUSED',
  'IDENTITY_UNCONFIRMED',
  'TOKEN_MALFORMED',
  // secure channel
  'CHANNEL_CLOSED',
  'CHANNEL_EXPIRED',
  'CHANNEL_FRAMING',
  'CHANNEL_HANDSHAKE',
  'CHANNEL_LIMIT',
  'CHANNEL_MALFORMED',
  'CHANNEL_OTP',
  'CHANNEL_RECORD',
  'CHANNEL_TIMEOUT',
  'CHANNEL_UNREACHABLE',
  // key server
  'STORE_FAILED',
  'STORE_VERSION',
  'SEAL_BROKEN',
  'ROW_BROKEN',
  'KMS_FAILED',
  'KMS_TOKEN',
  'BACKUP_DAMAGED',
  'BACKUP_REFUSED',
  'REFUSED',
  'NOT_FOUND',
  'LIMIT',
  'CONFLICT',
  // gateway and data plane
  'DATAPLANE_GONE',
  'DATAPLANE_REFUSED',
  'DATAPLANE_PROTOCOL',
  'DEVICES_GONE',
  'DEVICES_REFUSED',
  'ALREADY_RUNNING',
  'GATEWAY_NOT_RUNNING',
  'PRIVILEGE',
  'PLATFORM',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

/** Codes that cross the channel in an error answer: hints only. */
export const PEER_CODES = [
  'expired',
  'refused',
  'not_found',
  'not_yet',
  'unsupported',
  'malformed',
  'limit',
  'unavailable',
] as const;
export type PeerCode = (typeof PEER_CODES)[number];

/** An error with a stable code. `where` names file and line, address or member; `hint` says what to do. */
export class PairwireError extends Error {
  readonly code: ErrorCode;
  readonly where: string | undefined;
  readonly hint: string | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    more: { where?: string; hint?: string; cause?: unknown } = {},
  ) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = 'PairwireError';
    this.code = code;
    this.where = more.where;
    this.hint = more.hint;
  }
}

/** An error as our own log and our own user see it. */
export interface ErrorDescription {
  readonly code: ErrorCode;
  readonly message: string;
  readonly where?: string;
  readonly hint?: string;
}

/** What a log line and the command line say of an error; fields that it does not have are left out. */
export function describe(error: PairwireError): ErrorDescription {
  return {
    code: error.code,
    message: error.message,
    ...(error.where === undefined ? {} : { where: error.where }),
    ...(error.hint === undefined ? {} : { hint: error.hint }),
  };
}

/** The message of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
