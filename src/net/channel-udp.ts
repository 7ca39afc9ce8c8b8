/**
 * The secure channel over UDP, docs/protocol.md 6.7: the adapters of server and client. One
 * datagram of the channel is the payload of one UDP datagram.
 */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { lookup } from 'node:dns';
import { isIPv6 } from 'node:net';
import { MAX_UDP_RECORD } from '../protocol/channel/datagram.js';
import type { ListenAddress } from './channel.js';
import type { ClientLink, LinkEvents, LinkOptions } from './client-link.js';
import type { DatagramHub, Path } from './datagram-hub.js';
import { type Carrier, DatagramLink } from './datagram-link.js';
import { cannotListen } from './listen.js';
import type { Listener, ServerCore } from './server-peer.js';

/** What the kernel may keep for us while we compute. It gives half of it, and less without CAP_NET_ADMIN. */
const SOCKET_BUFFER = 4 * 1_048_576;
/** Time for farewells to leave before a client's socket is closed, ms. */
const FAREWELL_MS = 50;

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

/** Accepts channels on a UDP port. */
export class UdpListener<Request> implements Listener {
  readonly #core: ServerCore<Request>;
  readonly #hub: DatagramHub<Request>;
  readonly #address: ListenAddress;
  #socket: Socket | undefined;

  constructor(core: ServerCore<Request>, hub: DatagramHub<Request>, address: ListenAddress) {
    this.#core = core;
    this.#hub = hub;
    this.#address = address;
  }

  async listen(): Promise<number> {
    const { host, port } = this.#address;
    const { address, family } = await resolve(host).catch((cause: Error) => {
      throw cannotListen(this.#address, cause);
    });
    const socket = createSocket({
      type: family === 6 ? 'udp6' : 'udp4',
      recvBufferSize: SOCKET_BUFFER,
      sendBufferSize: SOCKET_BUFFER,
      // Addresses to answer to are numbers already; the default lookup costs a turn for each datagram.
      lookup: (name, _options, done) => done(null, name, family),
    });
    this.#socket = socket;
    await new Promise<void>((bound, failed) => {
      const refuse = (cause: Error): void => failed(cannotListen(this.#address, cause));
      socket.once('error', refuse);
      socket.bind(port, address, () => {
        socket.off('error', refuse);
        bound();
      });
    });
    socket.on('error', (thrown) => this.#core.options.onError?.(thrown));
    socket.on('message', (datagram, from) => {
      // Nobody can be answered on port 0, and a record is never longer.
      if (from.port === 0 || datagram.length > MAX_UDP_RECORD) this.#hub.discard('shape');
      else this.#hub.receive(datagram, new UdpPath(socket, from));
    });
    return socket.address().port;
  }

  async close(): Promise<void> {
    const socket = this.#socket;
    if (socket === undefined) return;
    this.#socket = undefined;
    await new Promise<void>((closed) => socket.close(() => closed()));
  }
}

class UdpPath implements Path {
  readonly maxRecord = MAX_UDP_RECORD;
  readonly #socket: Socket;
  readonly #to: RemoteInfo;

  constructor(socket: Socket, to: RemoteInfo) {
    this.#socket = socket;
    this.#to = to;
  }

  get host(): string {
    return this.#to.address;
  }

  get address(): string {
    const { address, port } = this.#to;
    return isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;
  }

  get proof(): string {
    return this.address;
  }

  replaced(): void {}

  send(datagram: Buffer): void {
    const { address, port } = this.#to;
    try {
      this.#socket.send(datagram, port, address, () => {});
    } catch {
      // Closed meanwhile, or an address that can't be sent to: lost like any other datagram.
    }
  }
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** Begins a channel over UDP. */
export function openUdpLink(options: LinkOptions, events: LinkEvents): ClientLink {
  const carrier = new UdpCarrier(options.server.host, options.server.port);
  const link = new DatagramLink(options, events, carrier);
  carrier.open(link);
  return link;
}

class UdpCarrier implements Carrier {
  readonly maxRecord = MAX_UDP_RECORD;
  readonly #host: string;
  readonly #port: number;
  #socket: Socket | undefined;
  #closed = false;

  constructor(host: string, port: number) {
    this.#host = host;
    this.#port = port;
  }

  open(link: DatagramLink): void {
    resolve(this.#host).then(
      ({ address, family }) => {
        if (this.#closed) return;
        const socket = createSocket({
          type: family === 6 ? 'udp6' : 'udp4',
          recvBufferSize: SOCKET_BUFFER,
        });
        this.#socket = socket;
        // Connected: the kernel drops what is from elsewhere, and tells when nobody listens.
        socket.on('error', () => link.failed());
        socket.on('message', (datagram) => link.receive(datagram));
        socket.on('connect', () => link.start());
        socket.connect(this.#port, address);
      },
      () => link.failed(),
    );
  }

  send(datagram: Buffer): void {
    this.#socket?.send(datagram, () => {});
  }

  flushed(): void {}

  close(): void {
    this.#closed = true;
    const socket = this.#socket;
    this.#socket = undefined;
    if (socket === undefined) return;
    socket.removeAllListeners('message');
    setTimeout(() => socket.close(), FAREWELL_MS);
  }
}

function resolve(host: string): Promise<{ address: string; family: number }> {
  return new Promise((resolved, failed) => {
    lookup(host, (error, address, family) => {
      if (error === null) resolved({ address, family });
      else failed(error);
    });
  });
}
