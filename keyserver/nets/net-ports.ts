/**
 * Link ports as the key servers of two subnets tell each other of them (docs/protocol.md 9.4). What the other one says is
 * kept and passed on as it is: whether it is so, gateways see by the signatures.
 */
import { encode } from '@msgpack/msgpack';
import type { Id } from '../../src/protocol/ids.js';
import { MAX_NET_PORTS, type NetFar, type NetPorts } from '../../src/protocol/messages.js';
import { toPeerRecord } from '../registry/peer-record.js';
import type { Services } from '../services.js';

/** Questions of a link port about frames that it can't open: so many at once, so many a second. */
export const NET_ASK_BURST = 10;
export const NET_ASKS_PER_SECOND = 2;

/** Our own link ports as another net is told of them, those first that are online. */
export async function ownPorts(
  { store, net: own }: Pick<Services, 'store' | 'net'>,
  net: Id,
): Promise<NetPorts> {
  const named = own.nets?.get(net)?.links;
  const links = (await store.links()).filter(({ id }) => named?.includes(id) ?? true);
  const ports = links.slice(0, MAX_NET_PORTS).map(toPeerRecord);
  const { subnet, operator } = store.meta;
  return { subnet, operator, ports };
}

/** What another net is told to be behind this one: our own prefixes, and those that it reaches through us. */
export function prefixesFor({ net: own }: Pick<Services, 'net'>, net: Id): string[] {
  return [...own.prefixes, ...(own.nets?.get(net)?.through ?? [])];
}

/** Whether both say the same, byte for byte. */
export function isSameFar(one: NetFar | undefined, other: NetFar | undefined): boolean {
  if (one === undefined || other === undefined) return one === other;
  return Buffer.compare(canonical(one), canonical(other)) === 0;
}

function canonical(ports: NetFar): Uint8Array {
  return encode(ports, { sortKeys: true, ignoreUndefined: true });
}

/** Whether both speak of one subnet with one operator. */
export function isSameSubnet(
  one: Pick<NetPorts, 'subnet' | 'operator'>,
  other: Pick<NetPorts, 'subnet' | 'operator'>,
): boolean {
  return one.subnet === other.subnet && Buffer.compare(one.operator, other.operator) === 0;
}

/** The part of a message that is about link ports. */
export function portsIn({ subnet, operator, ports }: NetPorts): NetPorts {
  return { subnet, operator, ports };
}
