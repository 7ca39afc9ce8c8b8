/**
 * The kernel's end of a data plane's TAP: what applications send, and what they get. Under it is
 * a UDP socket on loopback instead of a TAP, so that no test needs root.
 */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { ipToBytes } from '../../../../src/protocol/ip.js';
import {
  BROADCAST_MAC,
  type MacAddress,
  macFromBytes,
  macToBytes,
} from '../../../../src/protocol/mac.js';

/** virtio_net_hdr: all zeroes says that there is nothing left to segment or to checksum. */
const VNET_HEADER = 10;
/** IEEE 802: the second for local experiments. The first is the transport's own. */
const ETHERTYPE = 0x88b6;
const ETHERTYPE_ARP = 0x0806;
const ETHERNET_HEADER = 14;
/** A frame without a key is held or dropped: an application sends again. */
const AGAIN_MS = 25;

export interface EthernetFrame {
  readonly to: MacAddress;
  readonly from: MacAddress;
  readonly text: string;
}

/** An ARP packet: `ip` is the sender's address, `target` the one asked for. */
export interface Arp {
  readonly to?: MacAddress;
  readonly from: MacAddress;
  readonly ip: string;
  readonly target: string;
  /** 1: request, 2: reply. */
  readonly operation?: 1 | 2;
  /** The MAC address that the packet names, if it is another than the frame's. */
  readonly sender?: MacAddress;
}

interface Received extends EthernetFrame {
  readonly type: number;
  readonly body: Buffer;
}

export class TestTap {
  readonly #socket: Socket;
  readonly #received: Received[] = [];
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

  /** An ARP packet as a machine sends it whose address this is. */
  sendArp(arp: Arp): void {
    const { to = BROADCAST_MAC, from, ip, target, operation = 1 } = arp;
    const packet = Buffer.alloc(VNET_HEADER + 60);
    const frame = packet.subarray(VNET_HEADER);
    frame.set(macToBytes(to), 0);
    frame.set(macToBytes(from), 6);
    frame.writeUInt16BE(ETHERTYPE_ARP, 12);
    frame.set(Buffer.from('000108000604', 'hex'), 14);
    frame.writeUInt16BE(operation, 20);
    frame.set(macToBytes(arp.sender ?? from), 22);
    frame.set(ipBytes(ip), 28);
    frame.set(ipBytes(target), 38);
    this.#socket.send(packet, this.#plane, '127.0.0.1');
  }

  /** ARP packets that came out here, as `operation sender's address, its MAC address`. */
  arps(): string[] {
    return this.#received
      .filter(({ type }) => type === ETHERTYPE_ARP)
      .map(({ body }) => {
        const mac = macFromBytes(body.subarray(8, 14));
        return `${body.readUInt16BE(6)} ${body.subarray(14, 18).join('.')} ${mac}`;
      });
  }

  /** Sends a frame until it comes out at another TAP, which gives it as it came. */
  async reach(other: TestTap, frame: EthernetFrame, ms = 8_000): Promise<EthernetFrame> {
    const end = Date.now() + ms;
    for (;;) {
      this.send(frame);
      const got = await other.#next(frame.text, AGAIN_MS);
      if (got !== undefined) return { to: got.to, from: got.from, text: got.text };
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

function ipBytes(ip: string): Buffer {
  return ipToBytes(ip) ?? Buffer.alloc(4);
}

function parseFrame(packet: Buffer): Received {
  const frame = packet.subarray(VNET_HEADER);
  return {
    to: macFromBytes(frame.subarray(0, 6)),
    from: macFromBytes(frame.subarray(6, 12)),
    text: frame.subarray(ETHERNET_HEADER).toString(),
    type: frame.readUInt16BE(12),
    body: frame.subarray(ETHERNET_HEADER),
  };
}
