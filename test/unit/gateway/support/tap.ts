/**
 * The kernel's end of a data plane's TAP: what applications send, and what they get. Under it is
 * a UDP socket on loopback instead of a TAP, so that no test needs root.
 */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { type MacAddress, macFromBytes, macToBytes } from '../../../../src/protocol/mac.js';

/** virtio_net_hdr: all zeroes says that there is nothing left to segment or to checksum. */
const VNET_HEADER = 10;
/** IEEE 802: the second for local experiments. The first is the transport's own. */
const ETHERTYPE = 0x88b6;
const ETHERNET_HEADER = 14;
/** A frame without a key is held or dropped: an application sends again. */
const AGAIN_MS = 25;

export interface EthernetFrame {
  readonly to: MacAddress;
  readonly from: MacAddress;
  readonly text: string;
}

export class TestTap {
  readonly #socket: Socket;
  readonly #received: EthernetFrame[] = [];
  #arrived: (() => void) | undefined;
  #plane = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('message', (packet) => {
      this.#received.push(parseFrame(packet));
      this.#arrived?.();
    });
  }

  static async open(): Promise<TestTap> {
    const socket = createSocket('udp4');
    socket.bind(0, '127.0.0.1');
    await once(socket, 'listening');
    return new TestTap(socket);
  }

  get port(): number {
    return this.#socket.address().port;
  }

  /** Where the data plane's end is. */
  plug(port: number): void {
    this.#plane = port;
  }

  send(frame: EthernetFrame): void {
    const text = Buffer.from(frame.text);
    const packet = Buffer.alloc(VNET_HEADER + ETHERNET_HEADER + text.length);
    packet.set(macToBytes(frame.to), VNET_HEADER);
    packet.set(macToBytes(frame.from), VNET_HEADER + 6);
    packet.writeUInt16BE(ETHERTYPE, VNET_HEADER + 12);
    packet.set(text, VNET_HEADER + ETHERNET_HEADER);
    this.#socket.send(packet, this.#plane, '127.0.0.1');
  }

  /** Sends a frame until it comes out at another TAP, which gives it as it came. */
  async reach(other: TestTap, frame: EthernetFrame, ms = 8_000): Promise<EthernetFrame> {
    const end = Date.now() + ms;
    for (;;) {
      this.send(frame);
      const got = await other.#next(frame.text, AGAIN_MS);
      if (got !== undefined) return got;
      if (Date.now() > end) throw new Error(`nothing arrives: ${frame.text}`);
    }
  }

  has(text: string): boolean {
    return this.#received.some((frame) => frame.text === text);
  }

  close(): void {
    this.#socket.close();
  }

  async #next(text: string, ms: number): Promise<EthernetFrame | undefined> {
    const end = performance.now() + ms;
    for (;;) {
      const found = this.#received.find((frame) => frame.text === text);
      const left = end - performance.now();
      if (found !== undefined || left <= 0) return found;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#arrived = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}

function parseFrame(packet: Buffer): EthernetFrame {
  const frame = packet.subarray(VNET_HEADER);
  return {
    to: macFromBytes(frame.subarray(0, 6)),
    from: macFromBytes(frame.subarray(6, 12)),
    text: frame.subarray(ETHERNET_HEADER).toString(),
  };
}
