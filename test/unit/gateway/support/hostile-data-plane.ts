/** A data plane that strangers took over: it says what it is told to, whatever it is asked. */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';

export class HostileDataPlane {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async listen(
    path: string,
    reply: (socket: Socket, chunk: Buffer) => void,
  ): Promise<HostileDataPlane> {
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.on('data', (chunk) => reply(socket, chunk));
    });
    server.listen(path);
    await once(server, 'listening');
    return new HostileDataPlane(server);
  }

  async close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    await closed;
  }
}
