/** How the listeners of the channel come to stand on their addresses. */
import type { Server } from 'node:net';
import { PairwireError } from '../runtime/errors.js';
import { formatChannelAddress } from './address.js';
import type { ListenAddress } from './channel.js';

/** Connections that may wait to be accepted. */
const ACCEPT_QUEUE = 1_024;

/**
 * Lets a server for TCP or HTTP listen. `onError` is told what goes wrong later, such as being
 * out of file descriptors: the listener goes on.
 *
 * @returns the port, which the system chose where the address has 0
 * @throws PairwireError CHANNEL_UNREACHABLE if the address can't be had
 */
export function listenOn(
  server: Server,
  address: ListenAddress,
  onError: (thrown: Error) => void,
): Promise<number> {
  const { host, port } = address;
  return new Promise((resolve, reject) => {
    const failed = (cause: Error): void => reject(cannotListen(address, cause));
    server.once('error', failed);
    server.listen({ host, port, backlog: ACCEPT_QUEUE }, () => {
      server.off('error', failed);
      server.on('error', onError);
      const bound = server.address();
      resolve(typeof bound === 'object' && bound !== null ? bound.port : port);
    });
  });
}

/** The error of an address that can't be had. */
export function cannotListen(address: ListenAddress, cause: Error): PairwireError {
  return new PairwireError('CHANNEL_UNREACHABLE', `cannot listen: ${cause.message}`, {
    where: formatChannelAddress(address),
    cause,
  });
}
