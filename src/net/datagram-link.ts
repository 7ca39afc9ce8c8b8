/** The client's end of a channel on datagrams, whatever carries them. */
import type { DatagramClientOptions } from '../protocol/channel/datagram-connection.js';
import { DatagramClientConnection } from '../protocol/channel/datagram-connection.js';
import type { FailureReason } from '../protocol/channel/failures.js';
import { RECEIVE_WINDOW, ReassemblyBudget } from '../protocol/channel/reliable.js';
import { Alarm } from './alarm.js';
import { type Backlog, ScheduledBacklog } from './backlog.js';
import type { ClientLink, LinkEvents, LinkOptions } from './client-link.js';

/** After the network said that nobody is there, the server is asked again or given up, ms. */
const ASK_AGAIN_MS = 500;

/** What carries datagrams to the server and back. */
export interface Carrier {
  readonly maxRecord: number;
  send(datagram: Buffer): void;
  /** All that was sent in this turn is complete. */
  flushed(): void;
  close(): void;
}

/** A channel over a carrier. The owner calls `start` as soon as datagrams can go. */
export class DatagramLink implements ClientLink {
  readonly backlog: Backlog;
  readonly #connection: DatagramClientConnection;
  readonly #carrier: Carrier;
  readonly #alarm: Alarm;
  #asking: NodeJS.Timeout | undefined;
  #started = false;
  #dirty = false;

  constructor(options: LinkOptions, events: LinkEvents, carrier: Carrier) {
    const { server, staticKeys, token, ticket, clock, time } = options;
    this.#carrier = carrier;
    const client: DatagramClientOptions = {
      staticKeys,
      serverKey: server.publicKey,
      clock,
      time,
      budget: new ReassemblyBudget(RECEIVE_WINDOW),
      maxRecord: carrier.maxRecord,
      ...(token === undefined ? {} : { token }),
      ...(ticket === undefined ? {} : { ticket }),
    };
    this.#connection = new DatagramClientConnection(client, {
      transmit: (datagram) => carrier.send(datagram),
      opened: (_terms, renewed) => events.opened(renewed),
      message: (message) => events.message(message),
      ticket: (next) => events.ticket(next),
      heard: () => events.heard(),
      // A client has nobody to tell; what was lost is sent again.
      discarded: () => {},
      closed: (reason) => {
        this.#alarm.clear();
        clearTimeout(this.#asking);
        carrier.close();
        events.closed(reason);
      },
    });
    this.#alarm = new Alarm(clock, () => {
      this.#connection.expire();
      this.flush();
    });
    this.backlog = new ScheduledBacklog(this.#connection, options.clock, () => this.#flushLater());
  }

  get open(): boolean {
    return this.#connection.state === 'open';
  }

  get connecting(): boolean {
    return !this.#started;
  }

  /** Whoever sends an ICMP message can say so: it is not believed at once (`failed`). */
  get refused(): boolean {
    return false;
  }

  /** Datagrams can go now. */
  start(): void {
    this.#started = true;
    this.#connection.start();
    this.flush();
  }

  /** Takes a datagram. @returns false if it was thrown away */
  receive(datagram: Buffer): boolean {
    const taken = this.#connection.receive(datagram);
    this.#flushLater();
    return taken;
  }

  /**
   * What carries datagrams has failed, or somebody says so, which anybody can: an answer that is
   * on its way gets the time to come. An open channel does not end by it: that is decided by
   * silence, or by a server that was started again and is asked soon.
   */
  failed(): void {
    this.#asking ??= setTimeout(() => {
      this.#asking = undefined;
      if (this.open) this.poll();
      else this.#connection.close('network');
    }, ASK_AGAIN_MS);
  }

  tick(): void {
    this.#connection.tick();
    this.#flushLater();
  }

  close(reason: FailureReason): void {
    this.#connection.close(reason);
  }

  /** Sends a record even if there is nothing to say: the server answers on what carries it. */
  poll(): void {
    if (!this.open) return;
    this.#connection.poll();
    this.flush();
  }

  flush(): void {
    if (this.#connection.state === 'closed') return;
    this.backlog.seal();
    this.#connection.flush();
    this.#carrier.flushed();
    this.#alarm.set(this.#connection.deadline);
  }

  #flushLater(): void {
    if (this.#dirty) return;
    this.#dirty = true;
    setImmediate(() => {
      this.#dirty = false;
      this.flush();
    });
  }
}
