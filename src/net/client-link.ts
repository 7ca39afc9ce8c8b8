/** One attempt to have a channel to one server, whatever carries it: what `ChannelClient` sees of an adapter. */
import type { Ticket } from '../protocol/channel/admission.js';
import type { Envelope } from '../protocol/channel/codec.js';
import type { FailureReason } from '../protocol/channel/failures.js';
import type { ChannelToken } from '../protocol/channel/handshake-payload.js';
import type { KeyPair } from '../protocol/channel/keys.js';
import type { ServerAddress } from '../protocol/token.js';
import type { Clock, ServerTime } from '../runtime/clock.js';
import { PairwireError } from '../runtime/errors.js';
import type { Scheme } from './address.js';
import type { Backlog } from './backlog.js';

/** A server that the client may use. */
export interface ServerEndpoint {
  /** TCP if it is missing. */
  readonly scheme?: Scheme;
  readonly host: string;
  readonly port: number;
  /** Its static public key, 32 bytes. */
  readonly publicKey: Uint8Array;
}

/** The servers that a token names, as the channel wants them. @throws PairwireError TOKEN_MALFORMED if it names none */
export function serverEndpoints(
  servers: readonly ServerAddress[],
): readonly [ServerEndpoint, ...ServerEndpoint[]] {
  const [first, ...rest] = servers.map(({ scheme, host, port, key }) => ({
    scheme: scheme ?? 'tcp',
    host,
    port,
    publicKey: Buffer.from(key),
  }));
  if (first === undefined) throw new PairwireError('TOKEN_MALFORMED', 'the token names no server');
  return [first, ...rest];
}

/** What an adapter needs. */
export interface LinkOptions {
  readonly server: ServerEndpoint;
  readonly staticKeys: KeyPair;
  readonly token: ChannelToken | undefined;
  readonly clock: Clock;
  readonly time: ServerTime;
  /** A ticket of this server from an earlier channel; it is used up by that. */
  readonly ticket: Ticket | undefined;
}

/** What an adapter reports. */
export interface LinkEvents {
  opened(renewed: boolean): void;
  message(message: Envelope): void;
  /** Something of the peer came. */
  heard(): void;
  ticket(ticket: Ticket): void;
  closed(reason: FailureReason): void;
}

/** A channel or the attempt to have one. */
export interface ClientLink {
  /** True from the first message 2 on, in a renewal too: what is offered then goes out afterwards. */
  readonly open: boolean;
  /** True until there is a connection to shake hands on. */
  readonly connecting: boolean;
  /** It ended because nobody listens there, as the kernel of that machine says; nothing of a server's own. */
  readonly refused: boolean;
  readonly backlog: Backlog;
  /** To be called about once a second. */
  tick(): void;
  /** Ends it; `closed` is called once. */
  close(reason: FailureReason): void;
}
