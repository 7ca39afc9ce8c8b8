/** What the tests of the channel's adapters share: a server, clients, a hostile network. */
import { randomBytes } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { afterEach } from 'vitest';
import { z } from 'zod';
import type { Scheme } from '../../../../src/net/address.js';
import type { ChannelServerOptions, Session } from '../../../../src/net/channel.js';
import {
  ChannelClient,
  type ChannelClientOptions,
  type ClientState,
} from '../../../../src/net/channel-client.js';
import { ChannelServer } from '../../../../src/net/channel-server.js';
import type { Envelope } from '../../../../src/protocol/channel/codec.js';
import type { FailureReason } from '../../../../src/protocol/channel/failures.js';
import { generateKeyPair } from '../../../../src/protocol/channel/keys.js';

export const SERVER = generateKeyPair();
export const CLIENT = generateKeyPair();
const requestSchema = z.object({ t: z.literal('echo'), id: z.number().optional(), n: z.number() });
export type EchoRequest = z.infer<typeof requestSchema>;

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** Runs after the test, the last one first. */
export function cleanup(step: () => Promise<void> | void): void {
  cleanups.push(step);
}

export async function until(condition: () => boolean, ms = 10_000): Promise<void> {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error('the condition did not come true in time');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** A server that answers `echo`. */
export async function serve(
  scheme: Scheme,
  {
    port: wanted = 0,
    ...options
  }: Partial<ChannelServerOptions<EchoRequest>> & { port?: number } = {},
) {
  const ends: FailureReason[] = [];
  const sessions: Session[] = [];
  const server = new ChannelServer<EchoRequest>({
    listen: [{ scheme, host: '127.0.0.1', port: wanted }],
    staticKeys: SERVER,
    authorise: () => true,
    psk: () => undefined,
    types: new Set(['echo']),
    parse: (message) => requestSchema.parse(message),
    onRequest: async (_session, request) => ({ n: request.n }),
    onSession: (session) => sessions.push(session),
    onClose: (end) => ends.push(end.reason),
    ...options,
  });
  const [{ port } = { port: 0 }] = await server.listen();
  cleanup(() => server.close());
  return { server, port, ends, sessions };
}

/** A client of a server on loopback. */
export function client(scheme: Scheme, port: number, options: Partial<ChannelClientOptions> = {}) {
  const states: ClientState[] = [];
  const pushes: Envelope[] = [];
  const it = new ChannelClient({
    servers: [{ scheme, host: '127.0.0.1', port, publicKey: SERVER.publicKey }],
    staticKeys: CLIENT,
    onState: (state) => states.push(state),
    onPush: (message) => pushes.push(message),
    ...options,
  });
  it.start();
  cleanup(() => it.stop());
  return { client: it, states, pushes };
}

/** A socket that sends what it likes to a UDP port of loopback. */
export async function rawUdp(): Promise<Socket> {
  const socket = createSocket('udp4');
  await new Promise<void>((bound) => socket.bind(0, '127.0.0.1', () => bound()));
  cleanup(() => {
    socket.close();
  });
  return socket;
}

/** What a forwarder does to each datagram. */
export interface Malice {
  drop: number;
  /** Nothing passes to the server, or from it. */
  cut?: 'there' | 'back';
  readonly double: number;
  /** Longest delay, ms. */
  readonly delay: number;
  /** Held back for a second. */
  readonly late: number;
  /** Share of datagrams that are followed by a spoofed one, of every kind there is. */
  readonly spoof: number;
}

/** Forwards datagrams between clients and a UDP port, and does its worst on the way, in both directions. */
export async function hostileForwarder(target: number, malice: Malice) {
  const front = createSocket({ type: 'udp4', recvBufferSize: 1 << 22, sendBufferSize: 1 << 22 });
  const behind = new Map<number, Socket>();
  const old: Buffer[] = [];
  const counts = { passed: 0, dropped: 0, doubled: 0, late: 0, spoofed: 0 };
  let open = true;
  const spoofed = (like: Buffer): Buffer => {
    switch (Math.floor(Math.random() * 6)) {
      case 0:
        return randomBytes(1 + Math.floor(Math.random() * 1_300));
      case 1: // a known type and channel, and nonsense
        return Buffer.concat([like.subarray(0, 9), randomBytes(60)]);
      case 2: // cut short
        return like.subarray(0, Math.floor(Math.random() * like.length));
      case 3: // one bit changed
        return like.map((byte, at) => (at === like.length >> 1 ? byte ^ 4 : byte)) as Buffer;
      case 4: // another type for the same bytes
        return Buffer.concat([Buffer.from([1 + Math.floor(Math.random() * 7)]), like.subarray(1)]);
      default: // something from long ago, perhaps of the other direction
        return old[Math.floor(Math.random() * old.length)] ?? like;
    }
  };
  const pass = (
    direction: 'there' | 'back',
    datagram: Buffer,
    send: (datagram: Buffer) => void,
  ): void => {
    if (malice.cut === direction) return;
    if (old.length < 500) old.push(datagram);
    else old[Math.floor(Math.random() * 500)] = datagram;
    const after = (bytes: Buffer, extra = 0): void => {
      setTimeout(() => open && send(bytes), extra + Math.random() * malice.delay);
    };
    if (Math.random() < malice.spoof) {
      counts.spoofed += 1;
      after(spoofed(datagram));
    }
    if (Math.random() < malice.drop) {
      counts.dropped += 1;
      return;
    }
    counts.passed += 1;
    if (Math.random() < malice.double) {
      counts.doubled += 1;
      after(datagram);
    }
    if (Math.random() < malice.late) {
      counts.late += 1;
      after(datagram, 1_000);
    } else {
      after(datagram);
    }
  };
  front.on('message', (datagram, from) => {
    let back = behind.get(from.port);
    if (back === undefined) {
      back = createSocket({ type: 'udp4', recvBufferSize: 1 << 22 });
      const made = back;
      back.on('message', (answer) =>
        pass('back', answer, (bytes) => front.send(bytes, from.port, '127.0.0.1')),
      );
      back.bind(0, '127.0.0.1');
      behind.set(from.port, made);
    }
    const way = back;
    pass('there', datagram, (bytes) => way.send(bytes, target, '127.0.0.1'));
  });
  await new Promise<void>((bound) => front.bind(0, '127.0.0.1', () => bound()));
  cleanup(() => {
    open = false;
    front.close();
    for (const socket of behind.values()) socket.close();
  });
  return { port: front.address().port, counts };
}
