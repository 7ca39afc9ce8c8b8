/**
 * Client of the device broker (`pairwire-devices`): asks it to open the devices that its list
 * names and to pass them to the data plane. The protocol, one line each way, is described in
 * gateway/native/devices/broker.hpp.
 */
import { createConnection, type Socket } from 'node:net';
import { z } from 'zod';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';

const counter = z.int().min(0);

const refusalSchema = z.strictObject({ ok: z.literal(false), error: z.string().max(1000) });
const doneSchema = z.strictObject({ ok: z.literal(true) });
const guardSchema = z.strictObject({ ok: z.literal(true), guard: z.boolean() });
const openedSchema = z.strictObject({
  ok: z.literal(true),
  device: z.string(),
  /** The data plane has taken it: commands may name it from now on. */
  delivered: z.boolean(),
  /** It has it already, from a former broker. Neither: it waits until a data plane is back. */
  held: z.boolean(),
});
const openedTapSchema = openedSchema.extend({
  mac: z.string(),
  mtu: z.int(),
  /** What the kernel may leave to us: csum, tso4, tso6, uso4, uso6. Unknown (empty) if held. */
  offload: z.array(z.string()),
  /** The TAP was there already, with its addresses. */
  attached: z.boolean(),
});
const openedEthernetSchema = openedSchema.extend({
  /** Of the interface. */
  mac: z.string(),
  mtu: z.int(),
  /** The TAP has its MAC address, so it takes nothing but sealed frames. */
  closed: z.boolean(),
});
const statusSchema = z.strictObject({
  ok: z.literal(true),
  pid: z.int(),
  /** Null where something else, such as systemd, runs the data plane. */
  dataplane: z.nullable(
    z.strictObject({
      pid: z.nullable(z.int()),
      adopted: z.boolean(),
      restarts: counter,
      lastEnd: z.string(),
    }),
  ),
  devices: z.array(
    z.strictObject({
      device: z.string(),
      open: z.boolean(),
      held: z.boolean(),
      offload: z.array(z.string()),
    }),
  ),
  guard: z.strictObject({
    on: z.boolean(),
    table: z.string(),
    taps: z.array(
      z.strictObject({
        tap: z.string(),
        addresses: z.array(z.string()),
        underlay: counter,
        forward: counter,
        arp: counter,
      }),
    ),
    /** Interfaces that take nothing but sealed frames, and what they have dropped. */
    closed: z.array(z.strictObject({ interface: z.string(), dropped: counter })),
  }),
});

export type OpenedDevice = z.infer<typeof openedSchema>;
export type OpenedTap = z.infer<typeof openedTapSchema>;
export type OpenedEthernet = z.infer<typeof openedEthernetSchema>;
export type DevicesStatus = z.infer<typeof statusSchema>;

/** No answer of the broker is longer. */
const MAX_ANSWER = 1 << 20;
/** `down` may wait 3 s for the data plane, and nft up to 10 s. */
const DEFAULT_TIMEOUT_MS = 20_000;

interface Waiting {
  resolve: (line: string) => void;
  reject: (error: PairwireError) => void;
}

/**
 * One connection. Commands may be called at any time; the broker answers in order.
 * Every failure is a PairwireError: DEVICES_REFUSED (the broker says no), DEVICES_GONE (it is not
 * there, went away, or talks nonsense), PRIVILEGE (this user may not connect).
 */
export class DevicesClient {
  readonly path: string;
  readonly #socket: Socket;
  readonly #timeoutMs: number;
  readonly #waiting: Waiting[] = [];
  #buffer = '';
  #failure: PairwireError | undefined;

  private constructor(path: string, socket: Socket, timeoutMs: number) {
    this.path = path;
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#onData(text));
    socket.on('error', (error) => this.#fail(`the connection failed: ${error.message}`));
    socket.on('close', () => this.#fail('the device broker closed the connection'));
  }

  /** Connects to `devices.sock`. */
  static async connect(path: string, options: { timeoutMs?: number } = {}): Promise<DevicesClient> {
    const socket = createConnection(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', (error: NodeJS.ErrnoException) => {
        const denied = error.code === 'EACCES' || error.code === 'EPERM';
        reject(
          new PairwireError(
            denied ? 'PRIVILEGE' : 'DEVICES_GONE',
            denied ? 'this user may not talk to the device broker' : 'no device broker answers',
            { where: path, cause: error },
          ),
        );
      });
    });
    return new DevicesClient(path, socket, options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  }

  /** Opens or attaches the TAP, guards it and passes it to the data plane. May be repeated. */
  async openTap(name: string): Promise<OpenedTap> {
    return this.#command(`open tap ${name}`, openedTapSchema);
  }

  /** Opens the UDP socket and passes it to the data plane. May be repeated. */
  async openUdp(port: number): Promise<OpenedDevice> {
    return this.#command(`open udp ${port}`, openedSchema);
  }

  /** Opens a socket on the interface and passes it to the data plane. May be repeated. */
  async openEthernet(name: string): Promise<OpenedEthernet> {
    return this.#command(`open ethernet ${name}`, openedEthernetSchema);
  }

  /** The same for the interface of a link port of level `ip`, which this machine has no part in. */
  async openWire(name: string): Promise<OpenedEthernet> {
    return this.#command(`open wire ${name}`, openedEthernetSchema);
  }

  /** Turns the guard of the underlay on or off; returns what it is now. */
  async guard(on: boolean): Promise<boolean> {
    return (await this.#command(`guard ${on ? 'on' : 'off'}`, guardSchema)).guard;
  }

  async status(): Promise<DevicesStatus> {
    return this.#command('status', statusSchema);
  }

  /** Stops the data plane, removes TAPs and guard, and ends the broker. */
  async down(): Promise<void> {
    await this.#command('down', doneSchema);
    this.close();
  }

  close(): void {
    this.#fail('the connection was closed');
  }

  async #command<T>(line: string, schema: z.ZodType<T>): Promise<T> {
    // A name with a line break in it would be two commands.
    if (!/^[\x20-\x7e]{1,200}$/.test(line)) {
      throw new PairwireError('USAGE', 'not a command for the device broker', { where: line });
    }
    const text = await this.#exchange(line);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw this.#fail(`the answer to "${line}" is not JSON: ${messageOf(cause)}`);
    }
    const refusal = refusalSchema.safeParse(value);
    if (refusal.success) {
      throw new PairwireError('DEVICES_REFUSED', refusal.data.error, { where: line });
    }
    const answer = schema.safeParse(value);
    if (!answer.success) {
      throw this.#fail(`the answer to "${line}" is malformed: ${z.prettifyError(answer.error)}`);
    }
    return answer.data;
  }

  #exchange(line: string): Promise<string> {
    const failure = this.#failure;
    if (failure !== undefined) return Promise.reject(failure);
    return new Promise<string>((resolve, reject) => {
      const timer = setTimeout(
        () => this.#fail(`no answer to "${line}" within ${this.#timeoutMs} ms`),
        this.#timeoutMs,
      );
      this.#waiting.push({
        resolve: (text) => {
          clearTimeout(timer);
          resolve(text);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      this.#socket.write(`${line}\n`);
    });
  }

  #onData(text: string): void {
    this.#buffer += text;
    if (this.#buffer.length > MAX_ANSWER) {
      this.#fail('an answer is too long');
      return;
    }
    for (let end = this.#buffer.indexOf('\n'); end >= 0; end = this.#buffer.indexOf('\n')) {
      const line = this.#buffer.slice(0, end);
      this.#buffer = this.#buffer.slice(end + 1);
      const first = this.#waiting.shift();
      if (first !== undefined) {
        first.resolve(line);
        continue;
      }
      // The broker speaks unasked only to say why it hangs up.
      const refusal = refusalSchema.safeParse(safeJson(line));
      this.#fail(refusal.success ? refusal.data.error : 'an answer to no question');
      return;
    }
  }

  /** Ends the connection; the first reason is the one that everybody is told. */
  #fail(reason: string): PairwireError {
    this.#failure ??= new PairwireError('DEVICES_GONE', reason, { where: this.path });
    this.#socket.destroy();
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#failure);
    return this.#failure;
  }
}

function safeJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
