/**
 * The secure channel over TCP, docs/protocol.md 6.1: the adapters of server and client. What
 * goes wrong on a stream ends the connection.
 */
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net';
import { ClientConnection, type Hello, ServerConnection } from '../protocol/channel/connection.js';
import type { FailureReason } from '../protocol/channel/failures.js';
import { OutputBuffer } from '../protocol/channel/output.js';
import type { ListenAddress } from './channel.js';
import type { ClientLink, LinkEvents, LinkOptions } from './client-link.js';
import { listenOn } from './listen.js';
import { decide, type Listener, type ServerCore, ServerPeer } from './server-peer.js';
import { Transmitter } from './transmitter.js';

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

/** Accepts channels on a TCP port. */
export class TcpListener<Request> implements Listener {
  readonly #core: ServerCore<Request>;
  readonly #address: ListenAddress;
  readonly #server: Server;

  constructor(core: ServerCore<Request>, address: ListenAddress) {
    this.#core = core;
    this.#address = address;
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
  }

  listen(): Promise<number> {
    return listenOn(this.#server, this.#address, (thrown) => this.#core.options.onError?.(thrown));
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  #accept(socket: Socket): void {
    if (this.#core.room()) this.#core.added(new TcpPeer(this.#core, socket));
    else socket.destroy();
  }
}

/** One connection of a server. */
class TcpPeer<Request> extends ServerPeer<Request> {
  readonly remoteAddress: string;
  protected readonly backlog: Transmitter;
  readonly #socket: Socket;
  readonly #connection: ServerConnection;

  constructor(core: ServerCore<Request>, socket: Socket) {
    super(core);
    this.#socket = socket;
    this.remoteAddress = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`;
    const { staticKeys, terms } = core.options;
    const out = new OutputBuffer();
    this.#connection = new ServerConnection(
      { staticKeys, clock: core.clock, time: core.time, ...(terms ? { terms } : {}) },
      out,
      {
        hello: (hello) => this.#hello(hello),
        confirmed: (renewed) => this.confirmed(renewed),
        message: (message) => this.message(message),
        closed: (reason) => this.channelClosed(reason),
      },
    );
    this.backlog = new Transmitter(socket, out, this.#connection, core.clock);
    socket.on('data', (chunk) => this.#data(chunk));
    socket.on('drain', () => this.throttle());
    socket.on('error', () => this.end('network'));
    socket.on('close', () => this.end('peer_closed'));
  }

  override end(reason: FailureReason): void {
    this.#connection.close(reason);
  }

  protected override hold(paused: boolean): void {
    if (paused) this.#socket.pause();
    else this.#socket.resume();
  }

  protected override release(): void {
    this.#socket.destroy();
  }

  protected override tickChannel(): void {
    this.#connection.tick();
  }

  #data(chunk: Buffer): void {
    this.heard();
    this.#connection.receive(chunk);
    this.backlog.schedule();
    this.throttle();
  }

  #hello(hello: Hello): void {
    decide(
      this.core,
      hello,
      (psk) => {
        if (!hello.renewal) {
          this.remoteKey = hello.remoteKey;
          this.tokenId = hello.tokenId;
        }
        this.#connection.accept(psk);
        this.backlog.schedule();
      },
      (reason) => this.#connection.refuse(reason),
    );
  }
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** Begins to connect. */
export function openTcpLink(options: LinkOptions, events: LinkEvents): ClientLink {
  return new TcpLink(options, events);
}

class TcpLink implements ClientLink {
  readonly backlog: Transmitter;
  readonly #socket: Socket;
  readonly #connection: ClientConnection;
  #refused = false;

  constructor(options: LinkOptions, events: LinkEvents) {
    const { server, staticKeys, token, clock, time } = options;
    const socket = netConnect({ host: server.host, port: server.port, noDelay: true });
    const out = new OutputBuffer();
    this.#socket = socket;
    this.#connection = new ClientConnection(
      {
        staticKeys,
        serverKey: server.publicKey,
        clock,
        time,
        ...(token === undefined ? {} : { token }),
      },
      out,
      {
        opened: (_terms, renewed) => events.opened(renewed),
        message: (message) => events.message(message),
        closed: (reason) => {
          socket.destroy();
          events.closed(reason);
        },
      },
    );
    this.backlog = new Transmitter(socket, out, this.#connection, clock);
    socket.on('connect', () => {
      this.#connection.start();
      this.backlog.flush();
    });
    socket.on('data', (chunk) => {
      events.heard();
      this.#connection.receive(chunk);
      this.backlog.schedule();
    });
    socket.on('error', (thrown: NodeJS.ErrnoException) => {
      this.#refused = thrown.code === 'ECONNREFUSED';
      this.#connection.close('network');
    });
    socket.on('close', () => this.#connection.close('peer_closed'));
  }

  get open(): boolean {
    return this.#connection.state === 'open' || this.#connection.state === 'renewing';
  }

  get connecting(): boolean {
    return this.#socket.connecting;
  }

  get refused(): boolean {
    return this.#refused;
  }

  tick(): void {
    this.#connection.tick();
  }

  close(reason: FailureReason): void {
    this.#connection.close(reason);
  }
}
