/** Addresses of key servers as text: `HOST:PORT` (TCP) or `SCHEME://HOST:PORT`. */

/** What carries a channel. */
export const SCHEMES = ['tcp', 'udp', 'http'] as const;
export type Scheme = (typeof SCHEMES)[number];

export interface ChannelAddress {
  readonly scheme: Scheme;
  readonly host: string;
  readonly port: number;
}

/** Parts of `HOST:PORT` or `SCHEME://HOST:PORT`; undefined if it is neither. */
export function parseChannelAddress(text: string): ChannelAddress | undefined {
  const match = /^(?:(tcp|udp|http):\/\/)?(?:\[([0-9a-fA-F:.]+)\]|([^:\s[\]/]+)):(\d{1,5})$/.exec(
    text,
  );
  const host = match?.[2] ?? match?.[3];
  const port = Number(match?.[4]);
  if (host === undefined || !(port >= 1 && port <= 65_535)) return undefined;
  const scheme = SCHEMES.find((one) => one === match?.[1]) ?? 'tcp';
  return { scheme, host, port };
}

/** The shortest text of an address: without the scheme for TCP, IPv6 addresses in brackets. */
export function formatChannelAddress(address: {
  readonly scheme?: Scheme | undefined;
  readonly host: string;
  readonly port: number;
}): string {
  const { scheme = 'tcp', host, port } = address;
  const place = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
  return scheme === 'tcp' ? place : `${scheme}://${place}`;
}
