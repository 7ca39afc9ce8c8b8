/**
 * The secure channel over HTTP POST, docs/protocol.md 6.10: the adapters of server and client,
 * for networks that let nothing else through. A body is a row of datagrams of the channel:
 *
 *   length (2) | datagram (length) | ...
 *
 * The server keeps the newest POST of a channel open until it has something to say, and
 * answers the one before; so there is always one on which a push can come. What HTTP loses,
 * doubles or reorders is mended by the channel, as on UDP.
 */
import {
  Agent,
  type ClientRequest,
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { Socket } from 'node:net';
import { DatagramType, MAX_HTTP_RECORD } from '../protocol/channel/datagram.js';
import { type ListenAddress, MAX_CONNECTIONS, MAX_HALF_OPEN } from './channel.js';
import type { ClientLink, LinkEvents, LinkOptions } from './client-link.js';
import type { DatagramHub, Path } from './datagram-hub.js';
import { type Carrier, DatagramLink } from './datagram-link.js';
import { listenOn } from './listen.js';
import type { Listener, ServerCore } from './server-peer.js';

/** Where the POSTs go. */
export const HTTP_PATH = '/pairwire/1';
/** Implementation constants. */
/** The largest body in either direction. */
export const MAX_BODY = 262_144;
const LENGTH_SIZE = 2;
/** Memory that a body has at first, and all that are not complete have together. */
const FIRST_BODY = 4_096;
const MAX_BODIES = 64 * 1_048_576;
/** How long a POST without an answer is kept open, ms. Proxies seldom wait longer than 30 s. */
const HOLD_MS = 15_000;
/** The same for one that brought a message 1 only. */
const HANDSHAKE_HOLD_MS = 5_000;
/** Datagrams that wait for the next POST; the channel sends again what is dropped. */
const MAX_WAITING = 64;
/** Time for headers, and for a whole request, ms. */
const HEADERS_MS = 5_000;
const REQUEST_MS = 10_000;
const KEEP_ALIVE_MS = 30_000;
const MAX_HEADER_SIZE = 4_096;
/** POSTs that a client has open at a time. */
const MAX_POSTS = 4;
/** After a POST failed, the next one without need waits so long, ms. */
const POLL_AGAIN_MS = 500;
/** So many in a row end the channel. */
const MAX_FAILURES = 4;

/** One body from datagrams. */
export function encodeBody(datagrams: readonly Buffer[]): Buffer {
  const parts: Buffer[] = [];
  for (const datagram of datagrams) {
    const length = Buffer.allocUnsafe(LENGTH_SIZE);
    length.writeUInt16BE(datagram.length);
    parts.push(length, datagram);
  }
  return Buffer.concat(parts);
}

/** The datagrams of a body, which share its memory; undefined if it is not a row of them. */
export function decodeBody(body: Buffer): Buffer[] | undefined {
  const datagrams: Buffer[] = [];
  let at = 0;
  while (at < body.length) {
    if (body.length - at < LENGTH_SIZE) return undefined;
    const size = body.readUInt16BE(at);
    at += LENGTH_SIZE;
    if (size === 0 || size > MAX_HTTP_RECORD || body.length - at < size) return undefined;
    datagrams.push(body.subarray(at, at + size));
    at += size;
  }
  return datagrams;
}

/** Memory for bodies that are not complete, shared by all connections of a listener. */
class BodyBudget {
  #used = 0;

  take(size: number): boolean {
    if (this.#used + size > MAX_BODIES) return false;
    this.#used += size;
    return true;
  }

  give(size: number): void {
    this.#used -= size;
  }
}

/** Collects a body of at most `MAX_BODY` bytes; undefined is given for a longer or broken one, or if the budget is used up. */
function readBody(
  message: IncomingMessage,
  budget: BodyBudget,
  done: (body: Buffer | undefined) => void,
): void {
  // One piece that grows: a body that comes byte by byte must not cost a buffer for each.
  let body = Buffer.alloc(0);
  let size = 0;
  let over = false;
  const finish = (whole: Buffer | undefined): void => {
    if (over) return;
    over = true;
    budget.give(body.length);
    body = Buffer.alloc(0);
    done(whole);
  };
  const room = (wanted: number): boolean => {
    if (wanted <= body.length) return true;
    const grown = Math.min(MAX_BODY, Math.max(wanted, 2 * body.length, FIRST_BODY));
    if (wanted > MAX_BODY || !budget.take(grown - body.length)) return false;
    const larger = Buffer.allocUnsafeSlow(grown);
    body.copy(larger, 0, 0, size);
    body = larger;
    return true;
  };
  // The announcement is checked before memory is taken, and what comes while it comes.
  if (Number(message.headers['content-length'] ?? 0) > MAX_BODY) {
    finish(undefined);
    return;
  }
  message.on('data', (chunk: Buffer) => {
    if (over) return;
    if (!room(size + chunk.length)) {
      finish(undefined);
      return;
    }
    chunk.copy(body, size);
    size += chunk.length;
  });
  message.on('end', () => finish(body.subarray(0, size)));
  message.on('error', () => finish(undefined));
  message.on('close', () => finish(undefined));
}

// ---------------------------------------------------------------------------------------
// Server
// ---------------------------------------------------------------------------------------

/** Accepts channels in POSTs on a TCP port. */
export class HttpListener<Request> implements Listener {
  readonly #core: ServerCore<Request>;
  readonly #hub: DatagramHub<Request>;
  readonly #address: ListenAddress;
  readonly #server: Server;
  readonly #bodies = new BodyBudget();
  /** Connections with a POST that is not answered yet. */
  readonly #busy = new WeakSet<Socket>();
  /** Connections that no authentic record came by, in the order of their arrival. */
  readonly #strangers = new Set<Socket>();

  constructor(core: ServerCore<Request>, hub: DatagramHub<Request>, address: ListenAddress) {
    this.#core = core;
    this.#hub = hub;
    this.#address = address;
    const timeout = core.options.limits?.handshakeTimeoutMs;
    this.#server = createServer(
      {
        maxHeaderSize: MAX_HEADER_SIZE,
        headersTimeout: Math.min(HEADERS_MS, timeout ?? HEADERS_MS),
        requestTimeout: Math.min(REQUEST_MS, timeout ?? REQUEST_MS),
        keepAliveTimeout: KEEP_ALIVE_MS,
        connectionsCheckingInterval: core.options.limits?.tickMs ?? 1_000,
        noDelay: true,
      },
      (request, response) => this.#post(request, response),
    );
    this.#server.maxConnections = core.options.limits?.maxConnections ?? MAX_CONNECTIONS;
    this.#server.on('connection', (socket) => this.#accept(socket));
  }

  listen(): Promise<number> {
    return listenOn(this.#server, this.#address, (thrown) => this.#core.options.onError?.(thrown));
  }

  async close(): Promise<void> {
    // Farewells are in answers that leave in this turn.
    await new Promise((resolve) => setImmediate(resolve));
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    setImmediate(() => this.#server.closeAllConnections());
    await closed;
  }

  /** As for half-open channels on a stream: the stranger that waits longest makes room. */
  #accept(socket: Socket): void {
    if (this.#strangers.size >= (this.#core.options.limits?.maxHalfOpen ?? MAX_HALF_OPEN)) {
      for (const oldest of this.#strangers) {
        this.#strangers.delete(oldest);
        this.#core.counters.closed.too_many_half_open += 1;
        oldest.destroy();
        break;
      }
    }
    this.#strangers.add(socket);
    socket.on('close', () => this.#strangers.delete(socket));
  }

  #post(request: IncomingMessage, response: ServerResponse): void {
    response.on('error', () => {});
    const { socket } = request;
    if (this.#busy.has(socket)) {
      // Our clients wait for an answer before they ask again: POSTs without end on one
      // connection would all be kept open.
      this.#hub.discard('shape');
      socket.destroy();
      return;
    }
    this.#busy.add(socket);
    response.on('close', () => this.#busy.delete(socket));
    if (request.method !== 'POST' || request.url !== HTTP_PATH) {
      this.#refuse(request, response, 404);
      return;
    }
    readBody(request, this.#bodies, (body) => {
      const datagrams = body === undefined ? undefined : decodeBody(body);
      if (datagrams === undefined) {
        this.#hub.discard(body === undefined ? 'body' : 'shape');
        this.#refuse(request, response, body === undefined ? 413 : 400);
        return;
      }
      const path = new HttpPath(request, response, () => this.#hub.discard('waiting'));
      let adopted = false;
      let greeting = false;
      for (const datagram of datagrams) {
        const peer = this.#hub.receive(datagram, path);
        if (peer !== undefined) this.#strangers.delete(socket);
        if (peer?.path === path) adopted = true;
        else if (isOpening(datagram)) greeting = true;
      }
      if (adopted) path.hold(HOLD_MS);
      else path.hold(greeting ? HANDSHAKE_HOLD_MS : 0);
    });
  }

  #refuse(request: IncomingMessage, response: ServerResponse, status: number): void {
    response.writeHead(status, { connection: 'close', 'content-length': 0 });
    response.end(() => request.destroy());
  }
}

function isOpening(datagram: Buffer): boolean {
  return datagram[0] === DatagramType.message1 || datagram[0] === DatagramType.message1Psk;
}

/** A POST that waits for its answer; afterwards, a place where datagrams wait for the next one. */
class HttpPath implements Path {
  readonly maxRecord = MAX_HTTP_RECORD;
  readonly host: string;
  readonly address: string;
  readonly #lost: () => void;
  #response: ServerResponse | undefined;
  #waiting: Buffer[] = [];
  #timer: NodeJS.Timeout | undefined;
  #next: HttpPath | undefined;

  /** @param lost is told of each datagram that makes room for a newer one */
  constructor(request: IncomingMessage, response: ServerResponse, lost: () => void) {
    this.#lost = lost;
    const { remoteAddress = '?', remotePort = 0 } = request.socket;
    this.host = remoteAddress;
    this.address = `${remoteAddress}:${remotePort}`;
    this.#response = response;
    response.on('close', () => {
      clearTimeout(this.#timer);
      this.#response = undefined;
    });
  }

  /** A client's POSTs come from many ports. */
  get proof(): string {
    return this.host;
  }

  send(datagram: Buffer): void {
    if (this.#next !== undefined) {
      this.#next.send(datagram);
      return;
    }
    this.#waiting.push(datagram);
    if (this.#response === undefined) {
      if (this.#waiting.length > MAX_WAITING) {
        this.#waiting.shift();
        this.#lost();
      }
    } else if (this.#waiting.length === 1) {
      process.nextTick(() => this.#answer());
    }
  }

  /** The peer has a newer POST: this one ends, what waits moves on. */
  replaced(by: Path): void {
    if (!(by instanceof HttpPath) || by === this) return;
    this.#next = by;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const datagram of waiting) by.send(datagram);
    this.#answer();
  }

  /** Keeps the POST open for at most so long. */
  hold(ms: number): void {
    if (this.#response === undefined) return;
    clearTimeout(this.#timer);
    if (ms === 0) process.nextTick(() => this.#answer());
    else this.#timer = setTimeout(() => this.#answer(), ms);
  }

  #answer(): void {
    const response = this.#response;
    if (response === undefined) return;
    this.#response = undefined;
    clearTimeout(this.#timer);
    let size = 0;
    const now: Buffer[] = [];
    while (this.#waiting.length > 0) {
      size += LENGTH_SIZE + (this.#waiting[0]?.length ?? 0);
      if (size > MAX_BODY) break;
      const datagram = this.#waiting.shift();
      if (datagram !== undefined) now.push(datagram);
    }
    const body = encodeBody(now);
    response.writeHead(200, {
      'content-type': 'application/octet-stream',
      'content-length': body.length,
      'cache-control': 'no-store',
    });
    response.end(body);
  }
}

// ---------------------------------------------------------------------------------------
// Client
// ---------------------------------------------------------------------------------------

/** Begins a channel over HTTP. */
export function openHttpLink(options: LinkOptions, events: LinkEvents): ClientLink {
  const carrier = new HttpCarrier(options.server.host, options.server.port);
  const link = new DatagramLink(options, events, carrier);
  carrier.open(link);
  return link;
}

class HttpCarrier implements Carrier {
  readonly maxRecord = MAX_HTTP_RECORD;
  readonly #host: string;
  readonly #port: number;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: MAX_POSTS, noDelay: true });
  readonly #posts = new Set<ClientRequest>();
  readonly #bodies = new BodyBudget();
  #link: DatagramLink | undefined;
  #waiting: Buffer[] = [];
  #pollTimer: NodeJS.Timeout | undefined;
  #failures = 0;
  #failedAt = Number.NEGATIVE_INFINITY;
  #closed = false;

  constructor(host: string, port: number) {
    this.#host = host;
    this.#port = port;
  }

  open(link: DatagramLink): void {
    this.#link = link;
    // In a turn of its own, as with the other carriers.
    setImmediate(() => {
      if (!this.#closed) link.start();
    });
  }

  send(datagram: Buffer): void {
    this.#waiting.push(datagram);
    if (this.#waiting.length > MAX_WAITING * 4) this.#waiting.shift();
  }

  flushed(): void {
    while (this.#waiting.length > 0 && this.#posts.size < MAX_POSTS) {
      let size = 0;
      let count = 0;
      for (const datagram of this.#waiting) {
        size += LENGTH_SIZE + datagram.length;
        if (size > MAX_BODY) break;
        count += 1;
      }
      this.#post(encodeBody(this.#waiting.splice(0, count)));
    }
  }

  close(): void {
    if (this.#closed) return;
    this.flushed();
    this.#closed = true;
    clearTimeout(this.#pollTimer);
    // The farewell leaves; what is held open by the server ends.
    setTimeout(() => {
      for (const post of this.#posts) post.destroy();
      this.#agent.destroy();
    }, 50);
  }

  #post(body: Buffer): void {
    const post = httpRequest({
      host: this.#host,
      port: this.#port,
      path: HTTP_PATH,
      method: 'POST',
      agent: this.#agent,
      timeout: HOLD_MS * 2,
      headers: { 'content-type': 'application/octet-stream', 'content-length': body.length },
    });
    this.#posts.add(post);
    const sentAt = performance.now();
    let settled = false;
    const done = (answer: Buffer | undefined): void => {
      if (settled) return;
      settled = true;
      this.#posts.delete(post);
      this.#answered(answer, sentAt);
    };
    post.on('response', (response) => {
      readBody(response, this.#bodies, (answer) =>
        done(response.statusCode === 200 ? answer : undefined),
      );
    });
    post.on('timeout', () => post.destroy());
    post.on('error', () => done(undefined));
    post.on('close', () => done(undefined));
    post.end(body);
  }

  #answered(body: Buffer | undefined, sentAt: number): void {
    const link = this.#link;
    if (this.#closed || link === undefined) return;
    const datagrams = body === undefined ? undefined : decodeBody(body);
    if (datagrams === undefined) {
      this.#failed(link);
      return;
    }
    this.#failures = 0;
    let taken = false;
    for (const datagram of datagrams) if (link.receive(datagram)) taken = true;
    // A server that holds no POST of ours, or somebody in between who answers for it, is not
    // asked again and again without a rest.
    const rest = taken ? 0 : sentAt + POLL_AGAIN_MS - performance.now();
    this.#pollLater(Math.max(0, rest));
  }

  /** A POST that can't be delivered is no datagram that anybody could forge: several in a row end the channel. */
  #failed(link: DatagramLink): void {
    const now = performance.now();
    // Those that were open together fail together and count as one.
    if (now - this.#failedAt >= POLL_AGAIN_MS / 2) this.#failures += 1;
    this.#failedAt = now;
    if (this.#failures >= MAX_FAILURES) {
      link.close('network');
      return;
    }
    link.failed();
    this.#pollLater(POLL_AGAIN_MS);
  }

  /** There is always one POST that the server can answer. */
  #pollLater(ms: number): void {
    if (this.#closed) return;
    clearTimeout(this.#pollTimer);
    this.#pollTimer = setTimeout(() => {
      if (this.#closed) return;
      if (this.#waiting.length > 0) this.flushed();
      if (this.#posts.size === 0) this.#link?.poll();
    }, ms);
  }
}
