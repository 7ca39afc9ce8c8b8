/**
 * The control plane's end of the data-plane socket. Commands are answered in time or fail;
 * events are treated as hostile, because the data plane parses what strangers send: every
 * message passes its schema, events are rate-limited, and anything malformed ends the connection.
 */
import { connect, type Socket } from 'node:net';
import { PairwireError } from '../../src/runtime/errors.js';
import { TokenBucket } from '../rate-limit.js';
import { encodeMessage, MessageReader } from './framing.js';
import {
  ANSWER_TO,
  type AnswerTo,
  answerSchemas,
  type CommandFields,
  type CommandType,
  type Event,
  upwardSchema,
} from './messages.gen.js';

const DEFAULT_TIMEOUT_MS = 5_000;
/** Events taken in a second; the data plane's own limit lies below it. */
const EVENTS_PER_SECOND = 2_000;
const EVENT_BURST = 4_000;

interface Pending {
  readonly type: CommandType;
  readonly resolve: (answer: unknown) => void;
  readonly reject: (error: PairwireError) => void;
  readonly timer: NodeJS.Timeout;
}

/** What happens on the connection. */
export interface DataPlaneEvents {
  event(event: Event): void;
  /** Once, when the connection has ended for whatever reason. */
  close(error: PairwireError): void;
}

/** Anything that takes commands: the connection, or a fake in tests. */
export interface CommandPort {
  request<T extends CommandType>(
    type: T,
    fields: CommandFields<T>,
    timeoutMs?: number,
  ): Promise<AnswerTo<T>>;
}

/** One connection to a data plane. It does not reconnect: see link.ts. */
export class DataPlaneClient implements CommandPort {
  readonly #socket: Socket;
  readonly #events: DataPlaneEvents;
  readonly #pending = new Map<number, Pending>();
  readonly #reader = new MessageReader();
  readonly #bucket = new TokenBucket(EVENTS_PER_SECOND, EVENT_BURST, performance.now());
  #nextId = 1;
  #closed: PairwireError | undefined;
  /** Events not taken because there were too many. */
  eventsRefused = 0;

  private constructor(socket: Socket, events: DataPlaneEvents) {
    this.#socket = socket;
    this.#events = events;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', (cause) => this.#end('the data plane connection failed', cause));
    socket.on('close', () => this.#end('the data plane closed the connection'));
  }

  /** Connects to the socket. @throws PairwireError DATAPLANE_GONE if nobody listens */
  static connect(path: string, events: DataPlaneEvents): Promise<DataPlaneClient> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once('error', (cause) =>
        reject(
          new PairwireError('DATAPLANE_GONE', 'the data plane does not answer', {
            where: path,
            hint: 'is the gateway up? start it with: pairwire up --dir DIR',
            cause,
          }),
        ),
      );
      socket.once('connect', () => {
        socket.removeAllListeners('error');
        resolve(new DataPlaneClient(socket, events));
      });
    });
  }

  /** Sends a command. @throws PairwireError DATAPLANE_GONE, DATAPLANE_REFUSED or DATAPLANE_PROTOCOL */
  request<T extends CommandType>(
    type: T,
    fields: CommandFields<T>,
    timeoutMs = DEFAULT_TIMEOUT_MS,
  ): Promise<AnswerTo<T>> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed);
    const id = this.#takeId();
    return new Promise<AnswerTo<T>>((resolve, reject) => {
      const timer = setTimeout(() => {
        // A data plane that does not answer is as good as gone: the connection is made anew.
        this.#end(`the data plane did not answer ${type} in ${timeoutMs} ms`);
      }, timeoutMs);
      this.#pending.set(id, {
        type,
        resolve: (answer) => resolve(answer as AnswerTo<T>),
        reject,
        timer,
      });
      this.#socket.write(encodeMessage({ ...fields, t: type, id }));
    });
  }

  /** Ends the connection; traffic goes on without a controller. */
  close(): void {
    this.#end('the connection was closed');
  }

  #takeId(): number {
    const id = this.#nextId;
    this.#nextId = id >= 0xffff_ffff ? 1 : id + 1;
    return id;
  }

  #onData(chunk: Buffer): void {
    try {
      for (const message of this.#reader.push(chunk)) {
        if (this.#closed !== undefined) return;
        this.#onMessage(message);
      }
    } catch (thrown) {
      const error =
        thrown instanceof PairwireError
          ? thrown
          : new PairwireError('DATAPLANE_PROTOCOL', 'a message could not be handled', {
              cause: thrown,
            });
      this.#endWith(error);
    }
  }

  #onMessage(message: unknown): void {
    const parsed = upwardSchema.safeParse(message);
    if (!parsed.success) {
      throw new PairwireError('DATAPLANE_PROTOCOL', 'the data plane sent a malformed message');
    }
    if ('id' in parsed.data) {
      this.#onAnswer(parsed.data.t, parsed.data.id, parsed.data);
      return;
    }
    if (!this.#bucket.take(performance.now())) {
      this.eventsRefused += 1;
      return;
    }
    this.#events.event(parsed.data);
  }

  #onAnswer(type: string, id: number, answer: unknown): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      throw new PairwireError('DATAPLANE_PROTOCOL', 'the data plane answered what nobody asked');
    }
    this.#pending.delete(id);
    clearTimeout(pending.timer);
    if (type === 'failed') {
      const why = answerSchemas.failed.parse(answer).why;
      pending.reject(
        new PairwireError('DATAPLANE_REFUSED', `the data plane refused ${pending.type}: ${why}`),
      );
      return;
    }
    if (type !== ANSWER_TO[pending.type]) {
      pending.reject(
        new PairwireError('DATAPLANE_PROTOCOL', `${pending.type} was answered by ${type}`),
      );
      throw new PairwireError('DATAPLANE_PROTOCOL', 'an answer has the wrong type');
    }
    pending.resolve(answer);
  }

  #end(message: string, cause?: unknown): void {
    this.#endWith(
      new PairwireError('DATAPLANE_GONE', message, cause === undefined ? {} : { cause }),
    );
  }

  #endWith(error: PairwireError): void {
    if (this.#closed !== undefined) return;
    this.#closed = error;
    this.#socket.destroy();
    for (const pending of this.#pending.values()) {
      clearTimeout(pending.timer);
      pending.reject(error);
    }
    this.#pending.clear();
    this.#events.close(error);
  }
}
