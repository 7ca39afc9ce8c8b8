/**
 * Where somebody on the underlay sends and receives sealed frames, whatever carries them: a UDP port,
 * or an interface on the LAN.
 */
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { ETHERTYPE_SEALED } from '../../../src/protocol/constants.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac, macSchema } from '../../../src/protocol/mac.js';
import { EthernetPort } from './ethernet-port.js';
import { ethernet } from './packets.js';
import { DATA_PORT, ETHERNET, type Member, outer, SUBNET, WIRE_INTERFACE } from './topologies.js';
import { UdpPort } from './udp-port.js';
import { etherAddresses } from './wire.js';

/** A sealed frame to be sent. On an Ethernet it only opens with the outer addresses that it was sealed with. */
export interface Sealed {
  readonly bytes: Uint8Array;
  /** MAC addresses; on `udp` whatever stands here is not looked at. */
  readonly destination?: string;
  readonly source?: string;
}

/** A sealed frame that came in. */
export interface Arrived {
  readonly bytes: Buffer;
  /** What stands behind the shim in the associated data. */
  readonly aadTail: Buffer;
}

/** Source of frames from nobody. */
const STRANGER = macSchema.parse('02:00:5e:00:53:66');

export class SealedPort {
  private constructor(private readonly port: UdpPort | EthernetPort) {}

  /** `port`: of UDP; 0 takes a free one. */
  static async open(lab: Lab, host: string, port = 0): Promise<SealedPort> {
    return new SealedPort(
      ETHERNET
        ? await EthernetPort.open(lab, host, WIRE_INTERFACE)
        : await UdpPort.open(lab, host, port),
    );
  }

  /** Sends a frame to where a member is; on an Ethernet, to its destination if it has one. */
  send(to: Member, sealed: Sealed): void {
    if (this.port instanceof UdpPort) {
      this.port.send(outer(to), DATA_PORT, sealed.bytes);
      return;
    }
    const destination =
      sealed.destination === undefined
        ? defaultMac(SUBNET, parseId(to))
        : macSchema.parse(sealed.destination);
    const source = sealed.source === undefined ? STRANGER : macSchema.parse(sealed.source);
    this.port.send(ethernet(destination, source, ETHERTYPE_SEALED, sealed.bytes));
  }

  get received(): Arrived[] {
    if (this.port instanceof UdpPort) {
      return this.port.received.map(({ bytes }) => ({ bytes, aadTail: Buffer.alloc(0) }));
    }
    return this.port.received
      .filter((frame) => frame.readUInt16BE(12) === ETHERTYPE_SEALED)
      .map((frame) => ({ bytes: frame.subarray(14), aadTail: etherAddresses(frame) }));
  }

  close(): void {
    this.port.close();
  }
}
