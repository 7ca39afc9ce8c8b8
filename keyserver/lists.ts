/** The key server's lists as operators and viewers see them: rows without any secret. */
import { type Endpoint, type ListName, MAX_ROWS } from '../src/protocol/messages.js';
import type { Services } from './services.js';

const DEFAULT_ROWS = 100;

/** One page of a list; `next` is missing on the last one. */
export interface ListPage {
  readonly rows: readonly Readonly<Record<string, unknown>>[];
  readonly next?: number;
}

/**
 * Reads a page.
 * @param isLive whether a member has a session now
 */
export async function readList(
  services: Services,
  what: ListName,
  isLive: (id: string) => boolean,
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
          state: member.state,
          online: isLive(member.id),
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
      return paged(
        limit,
        await store.listMacs(after, limit),
        ({ serial }) => serial,
        (entry) => ({
          mac: entry.mac,
          member: entry.member,
          kind: entry.kind,
          shared: entry.shared,
          seenAt: isoTime(entry.seenAt),
        }),
      );
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
          detail: JSON.parse(entry.detail) as unknown,
          count: entry.count,
        }),
      );
  }
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
