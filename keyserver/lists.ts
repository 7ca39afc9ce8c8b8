/** The key server's lists as operators and viewers see them: rows without any secret. */
import type { Id } from '../src/protocol/ids.js';
import { type Endpoint, type ListName, MAX_ROWS } from '../src/protocol/messages.js';
import type { PeerServerState } from './cascade/cascade.js';
import type { OwnNet } from './config.js';
import { prefixesOf } from './nets/net-change.js';
import type { NetLinkState } from './nets/net-links.js';
import type { Services } from './services.js';
import type { Binding, Learned, MacEntry, Net, PeerServer } from './storage/store.js';

const DEFAULT_ROWS = 100;

/** One page of a list; `next` is missing on the last one. */
export interface ListPage {
  readonly rows: readonly Readonly<Record<string, unknown>>[];
  readonly next?: number;
}

/** What is not in the store. */
export interface ListView {
  /** A member has a registered session. */
  isLive(id: string): boolean;
  /** A member has a session, registered or not. */
  isConnected(id: string): boolean;
  /** How the channel to a net's key server is, if we ask it. */
  link(net: Id): NetLinkState | undefined;
  /** How the exchange with another key server of this subnet is. */
  server(id: Id): PeerServerState | undefined;
}

/** Reads a page. */
export async function readList(
  services: Services,
  what: ListName,
  view: ListView,
  page: { readonly after?: number | undefined; readonly limit?: number | undefined },
): Promise<ListPage> {
  const { store, server } = services;
  const after = page.after ?? 0;
  const limit = Math.min(page.limit ?? DEFAULT_ROWS, MAX_ROWS);
  switch (what) {
    case 'members': {
      const members = await store.listMembers(after, limit);
      return paged(
        limit,
        members,
        ({ serial }) => serial,
        (member) => ({
          id: member.id,
          role: member.role,
          home: member.home ?? server,
          state: member.state,
          online: member.home === undefined ? view.isLive(member.id) : member.online,
          index: member.boot?.index ?? null,
          sequence: member.boot?.sequence ?? null,
          registeredAt: isoTime(member.boot?.registeredAt),
          enrolledAt: isoTime(member.enrolledAt),
          ips: member.ips,
          endpoints: member.endpoints.map(endpointText),
        }),
      );
    }
    case 'keys':
      return paged(
        limit,
        await store.listKeys(after, limit),
        ({ serial }) => serial,
        (key) => ({
          kind: key.kind,
          a: key.a,
          b: key.b ?? null,
          pwId: key.pwId,
          reason: key.reason,
          createdAt: isoTime(key.createdAt),
        }),
      );
    case 'macs':
      return paged(limit, await store.listMacs(after, limit), ({ serial }) => serial, macRow);
    case 'ips': {
      const bindings = await store.listBindings(after, limit);
      const rows = await Promise.all(bindings.map((one) => ipRow(services, one)));
      const next = bindings.length < limit ? undefined : bindings.at(-1)?.serial;
      return next === undefined ? { rows } : { rows, next };
    }
    case 'nets': {
      const peers = [...(await store.nets()), ...(await store.peerServers())]
        .filter(({ serial }) => serial > after)
        .sort((a, b) => a.serial - b.serial)
        .slice(0, limit);
      return paged(
        limit,
        peers,
        ({ serial }) => serial,
        (peer) => ('net' in peer ? netRow(peer, services.net, view) : serverRow(peer, view)),
      );
    }
    case 'audit':
      return paged(
        limit,
        await store.listAudit(server, after, limit),
        ({ seq }) => seq,
        (entry) => ({
          seq: entry.seq,
          at: isoTime(entry.at),
          actor: entry.actor,
          action: entry.action,
          outcome: entry.outcome,
          detail: detailOf(entry.detail),
          count: entry.count,
        }),
      );
  }
}

/** Another subnet: who asks whom for the key, and whether they hear each other. */
function netRow(entry: Net, own: OwnNet, view: ListView): Readonly<Record<string, unknown>> {
  const { net, member, contact, key, pwId, next, reason, createdAt } = entry;
  const link = view.link(net);
  const asked = member !== undefined && view.isConnected(member);
  const linked = member !== undefined || contact !== undefined;
  return {
    net,
    peer: member ?? contact?.subnet ?? null,
    key: member !== undefined ? 'made here' : contact !== undefined ? 'made there' : null,
    state: !linked ? 'ended' : asked || link?.connected === true ? 'connected' : 'away',
    problem: link?.problem ?? null,
    skewMs: link?.skewMs ?? null,
    prefixes: prefixesOf(entry, own),
    pwId: key === undefined ? null : pwId,
    next: next?.pwId ?? null,
    reason: key === undefined ? null : reason,
    createdAt: key === undefined ? null : isoTime(createdAt),
  };
}

/** Another key server of this subnet. */
function serverRow(
  { server, member, contact }: PeerServer,
  view: ListView,
): Readonly<Record<string, unknown>> {
  const { connected = false, problem, skewMs } = view.server(server) ?? {};
  return {
    server,
    peer: member ?? contact?.member ?? null,
    state: connected ? 'connected' : 'away',
    problem: problem ?? null,
    skewMs: skewMs ?? null,
  };
}

/** An own address, a tombstone, or an address outside with the port that it is behind. */
function macRow(entry: MacEntry | Learned): Readonly<Record<string, unknown>> {
  const { mac, member } = entry;
  if ('shared' in entry) {
    const { kind, shared, seenAt } = entry;
    return { mac, vlan: null, member, kind, shared, since: null, seenAt: isoTime(seenAt) };
  }
  const { vlan, pinned, since, refreshed, frozenUntil } = entry;
  return {
    mac,
    vlan,
    member: member ?? null,
    kind: pinned ? 'pinned' : 'learned',
    shared: false,
    since: isoTime(since),
    seenAt: isoTime(refreshed),
    ...(frozenUntil > 0 ? { frozenUntil: isoTime(frozenUntil) } : {}),
  };
}

/** An IP address with the MAC address that announces it; of a pinned one, the member that owns that, if one does. */
async function ipRow(
  { store }: Services,
  { ip, mac, kind, member, since, refreshed }: Binding,
): Promise<Readonly<Record<string, unknown>>> {
  const whose = member ?? (await store.memberByMac(mac))?.id ?? null;
  return { ip, mac, member: whose, kind, since: isoTime(since), seenAt: isoTime(refreshed) };
}

function paged<T>(
  limit: number,
  items: readonly T[],
  place: (item: T) => number,
  row: (item: T) => Readonly<Record<string, unknown>>,
): ListPage {
  const last = items.at(-1);
  const rows = items.map(row);
  return items.length < limit || last === undefined ? { rows } : { rows, next: place(last) };
}

/** What was written as JSON; a damaged entry is shown as it is, for `audit verify` to judge. */
function detailOf(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

function isoTime(ms: number | undefined): string | null {
  return ms === undefined ? null : new Date(ms).toISOString();
}

/** `192.0.2.1:51820` or `[2001:db8::1]:51820`. */
export function endpointText({ ip, port }: Endpoint): string {
  const bytes = Buffer.from(ip);
  if (bytes.length === 4) return `${bytes.join('.')}:${port}`;
  const groups = Array.from({ length: 8 }, (_unused, at) =>
    bytes.readUInt16BE(2 * at).toString(16),
  );
  const { hostname } = new URL(`http://[${groups.join(':')}]`);
  return `${hostname}:${port}`;
}
