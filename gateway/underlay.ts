/**
 * The underlay as this machine sees it: which addresses we may tell to others, which of theirs
 * we may send to, and how large a frame may be.
 */
import { execFile } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { isIP, isIPv4 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { promisify } from 'node:util';
import { z } from 'zod';
import { parseChannelAddress } from '../src/net/address.js';
import { FRAME_OVERHEAD } from '../src/protocol/constants.js';
import { ipToBytes, unmapped } from '../src/protocol/ip.js';
import { macFromBytes } from '../src/protocol/mac.js';
import { type Endpoint, MAX_ENDPOINTS } from '../src/protocol/messages.js';
import { splitHostPort, type TransportConfig } from './config.js';

const run = promisify(execFile);

const IPV4_HEADER = 20;
const IPV6_HEADER = 40;
const UDP_HEADER = 8;
const ETHERNET_HEADER = 14;
/** What a TAP's MTU is smaller than that of an Ethernet below it: a group frame is sealed whole. */
const ETHERNET_OVERHEAD = FRAME_OVERHEAD + ETHERNET_HEADER;
const MAC_SIZE = 6;
const DEFAULT_UNDERLAY_MTU = 1_500;
/** IPv6 works from here on, and so does everything else. */
const MIN_TAP_MTU = 1_280;
const MAX_TAP_MTU = 9_216;
/** The longest packet that a full frame of the largest TAP makes. */
export const MAX_OUTER_PACKET = MAX_TAP_MTU + ETHERNET_OVERHEAD + IPV6_HEADER + UDP_HEADER;

const linksSchema = z.array(z.object({ ifname: z.string().optional(), mtu: z.int().optional() }));
const routesSchema = z.array(z.object({ dev: z.string().optional() }));

/** What the MTU of a TAP was derived from. */
export interface MtuPlan {
  readonly tap: number;
  readonly underlay: number;
  /** The interface whose MTU counted. */
  readonly interface: string | undefined;
  /** Nothing on the transport `ethernet`, which has no IP below. */
  readonly outerIp: 4 | 6 | undefined;
}

/** An address of this machine. */
export interface LocalAddress {
  readonly interface: string;
  readonly address: string;
  readonly family: 4 | 6;
  readonly internal: boolean;
}

/** Addresses of all interfaces that are up. */
export function localAddresses(): LocalAddress[] {
  return Object.entries(networkInterfaces()).flatMap(([name, addresses]) =>
    (addresses ?? []).map((address) => ({
      interface: name,
      address: address.address,
      family: address.family === 'IPv6' ? (6 as const) : (4 as const),
      internal: address.internal,
    })),
  );
}

/** What limits the choice of endpoints. */
export interface EndpointRules {
  readonly port: number;
  /** Interfaces that never count: our own TAPs. */
  readonly exclude: readonly string[];
  readonly bind?: string | undefined;
  readonly device?: string | undefined;
  readonly loopback: boolean;
  /** Configured ones, told first. */
  readonly extra: readonly string[];
}

/** The addresses where our data plane may be reached: configured ones, then IPv4 and IPv6 of the interfaces; at most 8. */
export function endpointsOf(rules: EndpointRules, addresses: readonly LocalAddress[]): Endpoint[] {
  const found: Endpoint[] = [];
  for (const text of rules.extra) {
    const split = splitHostPort(text);
    const ip = split === undefined ? undefined : ipToBytes(split.host);
    if (split !== undefined && ip !== undefined) found.push({ ip, port: split.port });
  }
  const own = addresses
    .filter((address) => !rules.exclude.includes(address.interface))
    .filter((address) => rules.device === undefined || address.interface === rules.device)
    .filter((address) => rules.bind === undefined || address.address === rules.bind)
    .sort((a, b) => a.family - b.family || (a.address < b.address ? -1 : 1));
  for (const address of own) {
    const ip = ipToBytes(address.address);
    if (ip !== undefined && isUsable(ip, rules.loopback)) found.push({ ip, port: rules.port });
  }
  const unique = new Map(found.map((endpoint) => [endpointText(endpoint), endpoint]));
  return [...unique.values()].slice(0, MAX_ENDPOINTS);
}

/**
 * False for addresses that no other machine may make us send to: unspecified, loopback (unless
 * configured), link-local, multicast, reserved (threats.md M13).
 */
export function isUsable(ip: Uint8Array, loopback: boolean): boolean {
  const bytes = unmapped(ip);
  if (bytes.length === 4) return isUsableV4(bytes, loopback);
  if (bytes.length !== 16) return false;
  if (bytes.subarray(0, 15).every((byte) => byte === 0)) {
    return bytes.readUInt8(15) === 1 && loopback;
  }
  const first = bytes.readUInt16BE(0);
  const linkLocal = (first & 0xffc0) === 0xfe80;
  return !linkLocal && first < 0xff00;
}

function isUsableV4(bytes: Buffer, loopback: boolean): boolean {
  const first = bytes.readUInt8(0);
  if (first === 127) return loopback;
  const linkLocal = first === 169 && bytes.readUInt8(1) === 254;
  return first !== 0 && first < 224 && !linkLocal;
}

/**
 * The prefixes of this machine's addresses, as they were at the last look. To ask the kernel costs as much as verifying a
 * peer's records or more, so nobody does while a first frame waits for its key.
 */
export class OwnNetworks {
  readonly #read: typeof networkInterfaces;
  #networks: readonly { readonly own: Uint8Array; readonly mask: Uint8Array }[] = [];

  constructor(read = networkInterfaces) {
    this.#read = read;
    this.look();
  }

  /** Looks at the interfaces again. */
  look(): void {
    const all = Object.values(this.#read()).flatMap((addresses) => addresses ?? []);
    this.#networks = all.flatMap(({ address, netmask }) => {
      const own = ipToBytes(address);
      const mask = ipToBytes(netmask);
      return own === undefined || mask === undefined ? [] : [{ own, mask }];
    });
  }

  /** Whether an address lies in one of them. */
  has(ip: Uint8Array): boolean {
    return this.#networks.some(
      ({ own, mask }) =>
        own.length === ip.length &&
        own.every((byte, at) => ((byte ^ (ip[at] ?? 0)) & (mask[at] ?? 0)) === 0),
    );
  }
}

/** The IPv4 broadcast addresses of an interface: what a group frame may carry besides multicast. */
export function broadcastsOf(tap: string): Buffer[] {
  return (networkInterfaces()[tap] ?? []).flatMap((address) => {
    if (address.family !== 'IPv4') return [];
    const ip = ipToBytes(address.address);
    const mask = ipToBytes(address.netmask);
    if (ip === undefined || mask === undefined) return [];
    return [Buffer.from(ip.map((byte, at) => byte | (~(mask[at] ?? 0) & 0xff)))];
  });
}

/** `192.0.2.1:51820`, `[2001:db8::1]:51820` or, on `ethernet`, a MAC address; empty for no address. */
export function endpointText(endpoint: { readonly ip: Uint8Array; readonly port: number }): string {
  const bytes = unmapped(endpoint.ip);
  if (bytes.length === 4) return `${[...bytes].join('.')}:${endpoint.port}`;
  if (bytes.length === MAC_SIZE) return macFromBytes(bytes);
  if (bytes.length !== 16) return '';
  const groups = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(at * 2).toString(16));
  return `[${shorten(groups)}]:${endpoint.port}`;
}

/** RFC 5952: the longest run of zero groups, of two at least, becomes `::`. */
function shorten(groups: readonly string[]): string {
  let best = { at: -1, length: 1 };
  for (let at = 0; at < groups.length; at += 1) {
    let length = 0;
    while (groups[at + length] === '0') length += 1;
    if (length > best.length) best = { at, length };
  }
  if (best.at < 0) return groups.join(':');
  const front = groups.slice(0, best.at).join(':');
  const back = groups.slice(best.at + best.length).join(':');
  return `${front}::${back}`;
}

/** MTU of a TAP over an underlay: what is left after outer IP, UDP, seal and inner Ethernet header. */
export function tapMtu(underlay: number, outerIp: 4 | 6): number {
  const outer = (outerIp === 6 ? IPV6_HEADER : IPV4_HEADER) + UDP_HEADER;
  return clampMtu(underlay - outer - FRAME_OVERHEAD - ETHERNET_HEADER);
}

/** MTU of a TAP over the transport `ethernet`. */
export function tapMtuOnEthernet(underlay: number): number {
  return clampMtu(underlay - ETHERNET_OVERHEAD);
}

function clampMtu(left: number): number {
  return Math.min(MAX_TAP_MTU, Math.max(MIN_TAP_MTU, left));
}

/**
 * Derives the TAP's MTU: on `ethernet` from its interface, as on `ip`, where it is always configured, because the TAP is in a bridge; on `udp` from the configured underlay interface, else from the one with the route
 * to a key server, else from the smallest interface with an address.
 */
export async function planMtu(input: {
  readonly configured: number | undefined;
  readonly transport: TransportConfig | undefined;
  readonly servers: readonly string[];
  readonly exclude: readonly string[];
}): Promise<MtuPlan> {
  const mtus = await interfaceMtus();
  if (input.transport?.kind === 'ethernet' || input.transport?.kind === 'ip') {
    const { device } = input.transport;
    const underlay = mtus.get(device) ?? DEFAULT_UNDERLAY_MTU;
    return {
      tap: input.configured ?? tapMtuOnEthernet(underlay),
      underlay,
      interface: device,
      outerIp: undefined,
    };
  }
  const addresses = localAddresses().filter(
    (address) => !address.internal && !input.exclude.includes(address.interface),
  );
  const outerIp = addresses.some((a) => a.family === 6 && !/^fe[89ab]/i.test(a.address)) ? 6 : 4;
  const device = input.transport?.device ?? (await deviceTowards(input.servers));
  const named = device === undefined || device === 'lo' ? undefined : mtus.get(device);
  const smallest = smallestOf(addresses, mtus);
  const underlay = named ?? smallest?.mtu ?? DEFAULT_UNDERLAY_MTU;
  return {
    tap: input.configured ?? tapMtu(underlay, outerIp),
    underlay,
    interface: named === undefined ? smallest?.name : device,
    outerIp,
  };
}

function smallestOf(
  addresses: readonly LocalAddress[],
  mtus: ReadonlyMap<string, number>,
): { name: string; mtu: number } | undefined {
  let best: { name: string; mtu: number } | undefined;
  for (const { interface: name } of addresses) {
    const mtu = mtus.get(name);
    if (mtu !== undefined && (best === undefined || mtu < best.mtu)) best = { name, mtu };
  }
  return best;
}

async function interfaceMtus(): Promise<Map<string, number>> {
  const links = await ipJson(['link', 'show'], linksSchema);
  return new Map(
    (links ?? []).flatMap((link) =>
      link.ifname === undefined || link.mtu === undefined ? [] : [[link.ifname, link.mtu]],
    ),
  );
}

async function deviceTowards(servers: readonly string[]): Promise<string | undefined> {
  for (const server of servers) {
    const host = parseChannelAddress(server)?.host;
    if (host === undefined) continue;
    const address = isIP(host) === 0 ? await resolveHost(host) : host;
    if (address === undefined) continue;
    const device = await routeDevice(address, {});
    if (device !== undefined) return device;
  }
  return undefined;
}

/**
 * The interface by which this machine would send to an address, as a socket with this mark and bound to
 * this device; undefined if there is no way.
 */
export async function routeDevice(
  address: string,
  socket: { readonly mark?: number | undefined; readonly device?: string | undefined },
): Promise<string | undefined> {
  const family = isIPv4(address) ? '-4' : '-6';
  const args = [family, 'route', 'get', address];
  if (socket.mark !== undefined) args.push('mark', String(socket.mark));
  if (socket.device !== undefined) args.push('oif', socket.device);
  return (await ipJson(args, routesSchema))?.[0]?.dev;
}

/** The IP address in the text of an endpoint; undefined for a MAC address or none. */
export function hostOfEndpoint(text: string | null): string | undefined {
  const split = text === null ? undefined : splitHostPort(text);
  return split === undefined || isIP(split.host) === 0 ? undefined : split.host;
}

async function resolveHost(host: string): Promise<string | undefined> {
  try {
    return (await lookup(host)).address;
  } catch {
    return undefined;
  }
}

/** `ip -json ...`; undefined where it fails or iproute2 is missing. */
export async function ipJson<T>(
  args: readonly string[],
  schema: z.ZodType<T>,
): Promise<T | undefined> {
  try {
    const { stdout } = await run('ip', ['-json', ...args], { timeout: 5_000 });
    const parsed = schema.safeParse(JSON.parse(stdout));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}
