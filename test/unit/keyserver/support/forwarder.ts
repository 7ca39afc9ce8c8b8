/** A line to a TCP server that can be cut without a word, as by a switch that dies, and put back. */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

export class Forwarder {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #silent = false;

  private constructor(to: number) {
    this.#server = createServer((near) => this.#bridge(near, to));
  }

  /** Listens on a free port of loopback. @param to port of the server on loopback */
  static async start(to: number): Promise<Forwarder> {
    const forwarder = new Forwarder(to);
    forwarder.#server.listen(0, '127.0.0.1');
    await once(forwarder.#server, 'listening');
    return forwarder;
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  /** Nothing passes any more, in either direction, and nobody is told. */
  cut(): void {
    this.#silent = true;
  }

  /** New connections work; those that were cut are found dead when they are used. */
  restore(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#silent = false;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }

  #bridge(near: Socket, to: number): void {
    const far = connect(to, '127.0.0.1');
    for (const [from, into] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(from);
      from.on('data', (bytes) => {
        if (!this.#silent) into.write(bytes);
      });
      from.on('error', () => undefined);
      from.on('close', () => {
        this.#sockets.delete(from);
        // The far end of a line that is cut hears nothing of this.
        if (!this.#silent) into.destroy();
      });
    }
  }
}
