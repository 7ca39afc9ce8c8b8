/**
 * The store in SQL that SQLite and PostgreSQL both run. Which
 * database it is, is the driver's business.
 */
import { randomBytes } from 'node:crypto';
import { encode } from '@msgpack/msgpack';
import { z } from 'zod';
import { decodeMessage } from '../../src/protocol/channel/codec.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { STORE_ID_SIZE } from '../../src/protocol/envelope.js';
import { type Id, idSchema, orderedPair } from '../../src/protocol/ids.js';
import type { MacAddress } from '../../src/protocol/mac.js';
import { type Endpoint, endpointSchema, netFarSchema } from '../../src/protocol/messages.js';
import { type Role, TALKER_ROLES } from '../../src/protocol/records.js';
import { bytesSchema } from '../../src/protocol/signed.js';
import { serverAddressSchema } from '../../src/protocol/token.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { type KeyColumn, type KeyRing, LOCKED } from './key-ring.js';
import { MemberCache, pairName, Touched } from './member-cache.js';
import { macOfRow, ROW_MAC, type RowChange, type RowGuard } from './row-guard.js';
import {
  BINDINGS,
  COUNTERS,
  FOREIGN_REVOCATIONS,
  FORMER_SERVERS,
  GROUPS,
  IP_BINDINGS,
  LEARNED,
  MACS,
  MEMBERS,
  NETS,
  PEER_SERVERS,
  REVOCATIONS,
  type RowTable,
  SETTINGS,
  TOKENS,
} from './row-tables.js';
import {
  blob,
  integer,
  isNull,
  type Row,
  type SqlConnection,
  type SqlDriver,
  type SqlValue,
  text,
  wrongColumn,
} from './sql.js';
import type {
  AuditEntry,
  Binding,
  BindingKind,
  Boot,
  BrokenGroup,
  BrokenNet,
  BrokenPair,
  BrokenSeenPair,
  ChangeWindow,
  ConfirmedPair,
  Counters,
  ForeignPair,
  GroupKey,
  IdentityPair,
  KeyListEntry,
  KnownPair,
  Learned,
  MacEntry,
  MacKind,
  Member,
  Net,
  NetContact,
  NewMember,
  NextGeneration,
  NextGroup,
  PairEnds,
  PairKey,
  PeerServer,
  Revocation,
  Run,
  SeenPair,
  Store,
  StoredSettings,
  StoredWitness,
  StoreMeta,
  StoreReads,
  StoreTransaction,
  ToldPair,
} from './store.js';

/** `TALKER_ROLES` in SQL: they are in the roster of members. */
const TALKERS = "m.role IN ('host', 'plain', 'link') AND m.state = 'active'";

const MEMBER = `m.id, m.serial, m.role, m.state, m.channel, m.membership, m.membership_signature,
  m.identity_digest, m.token_id, m.ips, m.online, m.endpoints, m.group_asked, m.enrolled_at, m.changed, m.home,
  b.record, b.record_signature, b.boot_key, b.sequence, b.sender_index, b.registered_at, ${ROW_MAC}`;
const MEMBER_MAC = macOfRow(MEMBERS, 'm');
const MEMBER_FROM = `members m LEFT JOIN boots b ON b.member = m.id ${MEMBER_MAC}`;

/** Rows of a table, each with its MAC. */
function withMacs(table: RowTable): string {
  return `SELECT t.*, ${ROW_MAC} FROM ${table.table} t ${macOfRow(table, 't')}`;
}
const ALL_MACS = withMacs(MACS);
const ALL_LEARNED = withMacs(LEARNED);
const ALL_BINDINGS = withMacs(BINDINGS);
const ALL_REVOCATIONS = withMacs(REVOCATIONS);
const ALL_GROUPS = withMacs(GROUPS);
const ALL_NETS = withMacs(NETS);
const ALL_PEERS = withMacs(PEER_SERVERS);

/** In the list of runs: an id and a change number. */
const RUN_ID_SIZE = 8;
const RUN_SIZE = RUN_ID_SIZE + 8;

const EMPTY_LIST = Buffer.from([0x90]);
const NOTHING = Buffer.alloc(0);

/** Up to so many changes, going through the changed members costs less than through all pairs of one. */
const FEW_CHANGES = 1_000;

/** Makes the store's own records in an empty database. */
export async function initialiseStore(driver: SqlDriver, meta: StoreMeta): Promise<void> {
  await driver.transaction(async (connection) => {
    const rows: readonly (readonly [string, Buffer])[] = [
      ['epoch', meta.epoch],
      ['subnet', Buffer.from(meta.subnet)],
      ['server', Buffer.from(meta.server)],
      ['tag', Buffer.from([meta.tag])],
      ['operator', meta.operator],
      ['number', Buffer.from([meta.number])],
      // Nothing was ever in clear in it (unlock.ts).
      ['store_id', randomBytes(STORE_ID_SIZE)],
      ['sealing', Buffer.from('clean')],
    ];
    for (const [name, value] of rows) {
      await connection.run('INSERT INTO meta (name, value) VALUES (?, ?)', [name, value]);
    }
  });
}

/**
 * Opens the store of a database that `initialiseStore` has seen.
 * @param options.onlyWriter no other process changes members or keys, so they may be cached
 * @param options.ring its DEKs, from `unlock`; without them it tells everything but keys
 * @throws PairwireError STORE_FAILED
 */
export async function openStore(
  driver: SqlDriver,
  options: { readonly onlyWriter?: boolean; readonly ring?: KeyRing } = {},
): Promise<Store> {
  const rows = await driver.reader.all('SELECT name, value FROM meta', []);
  const values = new Map(rows.map((row) => [text(row, 'name'), blob(row, 'value')]));
  const value = (name: string): Buffer => {
    const found = values.get(name);
    if (found === undefined) {
      throw new PairwireError(
        'STORE_FAILED',
        `the database has no ${name}: it was never initialised`,
        {
          hint: 'make the subnet with `pairwire init`',
        },
      );
    }
    return found;
  };
  const meta: StoreMeta = {
    epoch: value('epoch'),
    subnet: value('subnet').toString() as Id,
    server: value('server').toString() as Id,
    tag: value('tag').readUInt8(0),
    operator: value('operator'),
    // Stores from before there were several servers are of a first one.
    number: values.get('number')?.readUInt8(0) ?? 0,
  };
  const cache = options.onlyWriter === true ? new MemberCache() : undefined;
  return new SqlStore(driver, meta, options.ring ?? LOCKED, cache);
}

class SqlReads implements StoreReads {
  protected readonly sql: SqlConnection;
  protected readonly ring: KeyRing;

  constructor(connection: SqlConnection, ring: KeyRing) {
    this.sql = connection;
    this.ring = ring;
  }

  async counters(): Promise<Counters> {
    const rows = await this.sql.all('SELECT name, value FROM counters', []);
    const of = (name: string): number => {
      const row = rows.find((candidate) => candidate.name === name);
      return row === undefined ? 0 : integer(row, 'value');
    };
    return {
      change: of('change'),
      talkers: of('talkers'),
      revocation: of('revocation'),
      putBack: of('put_back') !== 0,
    };
  }

  async member(id: Id): Promise<Member | undefined> {
    return optional(
      this.#good(
        MEMBERS,
        await this.sql.get(`SELECT ${MEMBER} FROM ${MEMBER_FROM} WHERE m.id = ?`, [id]),
      ),
      toMember,
    );
  }

  async anyMember(id: Id): Promise<Member | undefined> {
    return optional(
      await this.sql.get(`SELECT ${MEMBER} FROM ${MEMBER_FROM} WHERE m.id = ?`, [id]),
      toMember,
    );
  }

  /** A row, unless it is not the one that was written. */
  #good(table: RowTable, row: Row | undefined): Row | undefined {
    const { rows } = this.ring;
    return row === undefined || rows === undefined || rows.isGood(table, row) ? row : undefined;
  }

  #allGood(table: RowTable, rows: readonly Row[]): readonly Row[] {
    const guard = this.ring.rows;
    return guard === undefined ? rows : rows.filter((row) => guard.isGood(table, row));
  }

  /**
   * A page of good rows: as many as asked for, if there are so many, since whoever reads page by page takes a short one for the last.
   * @param by the column that says where the next page begins
   */
  async #page(
    table: RowTable,
    after: number,
    limit: number,
    by: string,
    read: (after: number) => Promise<readonly Row[]>,
  ): Promise<readonly Row[]> {
    const found: Row[] = [];
    for (let from = after; ; ) {
      const rows = await read(from);
      found.push(...this.#allGood(table, rows));
      const last = rows.at(-1);
      if (last === undefined || rows.length < limit || found.length >= limit) break;
      from = integer(last, by);
    }
    return found.slice(0, limit);
  }

  async memberByChannel(channel: Uint8Array): Promise<Member | undefined> {
    return optional(
      this.#good(
        MEMBERS,
        await this.sql.get(`SELECT ${MEMBER} FROM ${MEMBER_FROM} WHERE m.channel = ?`, [
          Buffer.from(channel),
        ]),
      ),
      toMember,
    );
  }

  async memberByMac(mac: MacAddress): Promise<Member | undefined> {
    return (await this.findMac(mac)).member;
  }

  protected async findMac(
    mac: MacAddress,
  ): Promise<{ readonly member: Member | undefined; readonly shared: boolean }> {
    const rows = await this.sql.all(
      `SELECT ${MEMBER}, x.slot FROM macs x JOIN members m ON m.id = x.member
         LEFT JOIN boots b ON b.member = m.id ${MEMBER_MAC}
       WHERE x.mac = ? AND x.kind = 'own' AND ${TALKERS}
       ORDER BY m.online DESC, b.registered_at DESC`,
      [mac],
    );
    for (const row of rows) {
      const [member, slot] = [text(row, 'id'), text(row, 'slot')];
      const isGood =
        this.#good(MEMBERS, row) !== undefined && (await this.#owns(mac, slot, member));
      if (isGood) return { member: toMember(row), shared: slot !== '' };
    }
    return { member: undefined, shared: false };
  }

  /** Whether the row that says whose an address is is what was written. */
  async #owns(mac: MacAddress, slot: string, member: string): Promise<boolean> {
    if (this.ring.rows === undefined) return true;
    const row = this.#good(
      MACS,
      await this.sql.get(`${ALL_MACS} WHERE t.mac = ? AND t.slot = ?`, [mac, slot]),
    );
    return row !== undefined && text(row, 'member') === member && text(row, 'kind') === 'own';
  }

  async memberByIndex(index: number): Promise<Member | undefined> {
    return optional(
      this.#good(
        MEMBERS,
        await this.sql.get(
          `SELECT ${MEMBER} FROM boots b JOIN members m ON m.id = b.member ${MEMBER_MAC}
           WHERE b.sender_index = ? AND ${TALKERS}`,
          [index],
        ),
      ),
      toMember,
    );
  }

  async pairKey(a: Id, b: Id): Promise<PairKey | undefined> {
    return optional(await this.#pairRow(a, b), (row) => toPair(this.ring, row));
  }

  async anyPair(a: Id, b: Id): Promise<PairKey | BrokenPair | undefined> {
    return optional(await this.#pairRow(a, b), (row) => toAnyPair(this.ring, row));
  }

  #pairRow(a: Id, b: Id): Promise<Row | undefined> {
    return this.sql.get('SELECT * FROM pair_keys WHERE a = ? AND b = ?', [...orderedPair(a, b)]);
  }

  async groupKey(id: Id): Promise<GroupKey | undefined> {
    const { row, next } = await this.#groupRows(id);
    return optional(row, (one) => this.#toGroup(one, next));
  }

  /** @throws PairwireError SEAL_BROKEN also for a row that is not what was written */
  #toGroup(row: Row, next: Row | undefined): GroupKey {
    for (const one of next === undefined ? [row] : [row, next]) {
      if (this.#good(GROUPS, one) === undefined) {
        throw new PairwireError('SEAL_BROKEN', 'the row of a group key is not what was written');
      }
    }
    return toGroup(this.ring, row, next);
  }

  async anyGroup(id: Id): Promise<GroupKey | BrokenGroup | undefined> {
    const { row, next } = await this.#groupRows(id);
    return optional(row, (one) =>
      this.ring.try(
        () => this.#toGroup(one, next),
        () => toBrokenGroup(one, next),
      ),
    );
  }

  async #groupRows(id: Id): Promise<{ row: Row | undefined; next: Row | undefined }> {
    const rows = await this.sql.all(`${ALL_GROUPS} WHERE t.id = ?`, [id]);
    return {
      row: rows.find((one) => integer(one, 'in_force') === 1),
      next: rows.find((one) => integer(one, 'in_force') === 0),
    };
  }

  async net(id: Id): Promise<Net | undefined> {
    return optional(
      this.#good(NETS, await this.sql.get(`${ALL_NETS} WHERE t.net = ?`, [id])),
      (row) => toNet(this.ring, row),
    );
  }

  async nets(): Promise<readonly Net[]> {
    return this.ring.each(await this.#netRows(), (row) => toNet(this.ring, row));
  }

  async anyNets(): Promise<readonly (Net | BrokenNet)[]> {
    const rows = await this.#netRows();
    return rows.map((row) =>
      this.ring.try(
        () => toNet(this.ring, row),
        () => toBrokenNet(row),
      ),
    );
  }

  async #netRows(): Promise<readonly Row[]> {
    return this.#allGood(NETS, await this.sql.all(`${ALL_NETS} ORDER BY t.serial`, []));
  }

  async revocations({ after, upTo, limit }: ChangeWindow): Promise<readonly Revocation[]> {
    const rows = await this.#page(REVOCATIONS, after, limit, 'changed', (from) =>
      this.sql.all(
        `${ALL_REVOCATIONS} WHERE t.changed > ? AND t.changed <= ? ORDER BY t.changed LIMIT ?`,
        [from, upTo, limit],
      ),
    );
    return rows.map(toRevocation);
  }

  async revocationOf(id: Id): Promise<Revocation | undefined> {
    return optional(
      await this.sql.get('SELECT * FROM revocations WHERE member = ?', [id]),
      toRevocation,
    );
  }

  async settings(): Promise<StoredSettings | undefined> {
    return optional(
      await this.sql.get('SELECT * FROM settings ORDER BY version DESC LIMIT 1', []),
      (row) => ({
        version: integer(row, 'version'),
        record: { b: blob(row, 'body'), s: blob(row, 'signature') },
        changed: integer(row, 'changed'),
      }),
    );
  }

  async settingsVersion(): Promise<number> {
    const row = await this.sql.get('SELECT coalesce(max(version), 0) AS version FROM settings', []);
    return row === undefined ? 0 : integer(row, 'version');
  }

  async peersOf(id: Id): Promise<readonly Id[]> {
    const rows = await this.sql.all(
      'SELECT b AS peer FROM pair_keys WHERE a = ? UNION ALL SELECT a AS peer FROM pair_keys WHERE b = ?',
      [id, id],
    );
    return rows.map((row) => text(row, 'peer') as Id);
  }

  async membersOnline(): Promise<readonly Id[]> {
    const rows = await this.sql.all("SELECT id FROM members WHERE online = 1 AND home = ''", []);
    return rows.map((row) => text(row, 'id') as Id);
  }

  async peerServers(): Promise<readonly PeerServer[]> {
    const rows = await this.sql.all(`${ALL_PEERS} ORDER BY t.server`, []);
    return this.#allGood(PEER_SERVERS, rows).map(toPeerServer);
  }

  async peerServer(id: Id): Promise<PeerServer | undefined> {
    return optional(
      this.#good(PEER_SERVERS, await this.sql.get(`${ALL_PEERS} WHERE t.server = ?`, [id])),
      toPeerServer,
    );
  }

  async membersAt(home: Id): Promise<readonly Id[]> {
    const rows = await this.sql.all(
      "SELECT id FROM members WHERE home = ? AND state = 'active' ORDER BY id",
      [home],
    );
    return rows.map((row) => text(row, 'id') as Id);
  }

  async countMembersAt(home: Id): Promise<number> {
    const row = await this.sql.get(
      `SELECT (SELECT COUNT(*) FROM members WHERE home = ?)
         + (SELECT COUNT(*) FROM foreign_revocations WHERE home = ?) AS found`,
      [home, home],
    );
    return row === undefined ? 0 : integer(row, 'found');
  }

  async isRevokedAt(home: Id, id: Id): Promise<boolean> {
    const row = await this.sql.get('SELECT id FROM foreign_revocations WHERE home = ? AND id = ?', [
      home,
      id,
    ]);
    return row !== undefined;
  }

  async wasPeerServer(server: Id): Promise<boolean> {
    const row = await this.sql.get('SELECT server FROM former_servers WHERE server = ?', [server]);
    return row !== undefined;
  }

  async identityPair(id: Id): Promise<IdentityPair | undefined> {
    const row = await this.sql.get('SELECT document, dek FROM identities WHERE member = ?', [id]);
    if (row === undefined) return undefined;
    return { document: blob(row, 'document'), dek: blob(row, 'dek') };
  }

  async restoreClaims(): Promise<readonly string[]> {
    const rows = await this.sql.all('SELECT claimant FROM restore_claims ORDER BY claimant', []);
    return rows.map((row) => text(row, 'claimant'));
  }

  async ownMembersChanged({ after, upTo, limit }: ChangeWindow): Promise<readonly Member[]> {
    const rows = await this.#page(MEMBERS, after, limit, 'changed', (from) =>
      this.sql.all(
        `SELECT ${MEMBER} FROM ${MEMBER_FROM}
         WHERE m.home = '' AND m.changed > ? AND m.changed <= ? AND ${TALKERS}
         ORDER BY m.changed LIMIT ?`,
        [from, upTo, limit],
      ),
    );
    return rows.map(toMember);
  }

  async pairsWithChanged(
    { after, upTo, limit }: ChangeWindow,
    home: Id,
  ): Promise<readonly (PairKey | BrokenPair)[]> {
    // We make the keys of pairs whose smaller id is at home here. The index has no other pairs, and is used only if that is said.
    const rows = await this.sql.all(
      `SELECT * FROM pair_keys
       WHERE far = ? AND far <> '' AND changed > ? AND changed <= ?
       ORDER BY changed LIMIT ?`,
      [home, after, upTo, limit],
    );
    return rows.map((row) => toAnyPair(this.ring, row));
  }

  async linksOnline(): Promise<readonly Id[]> {
    const rows = await this.sql.all(
      "SELECT id FROM members WHERE role = 'link' AND state = 'active' AND online = 1",
      [],
    );
    return rows.map((row) => text(row, 'id') as Id);
  }

  async links(): Promise<readonly Member[]> {
    const rows = await this.sql.all(
      `SELECT ${MEMBER} FROM ${MEMBER_FROM} WHERE m.role = 'link' AND m.state = 'active'
       ORDER BY m.online DESC, m.id`,
      [],
    );
    return this.#allGood(MEMBERS, rows).map(toMember);
  }

  async membersChanged(
    window: ChangeWindow,
    holder: Id | undefined,
    askedOnly: boolean,
  ): Promise<readonly { readonly member: Member; readonly pairChanged: number }[]> {
    const { after, upTo, limit } = window;
    const asked = (column: string): string => (askedOnly ? `AND ${column} > 0` : '');
    const inWindow = `m.changed > ? AND m.changed <= ? AND ${TALKERS} ORDER BY m.changed LIMIT ?`;
    const read = (from: number): Promise<readonly Row[]> => {
      if (holder === undefined) {
        return this.sql.all(
          `SELECT ${MEMBER}, 0 AS pair_changed FROM ${MEMBER_FROM} WHERE ${inWindow}`,
          [from, upTo, limit],
        );
      }
      if (upTo - after < FEW_CHANGES) {
        // Few members can have changed: look for a pair key with each of them.
        return this.sql.all(
          `SELECT ${MEMBER}, coalesce(p.changed, q.changed) AS pair_changed FROM ${MEMBER_FROM}
             LEFT JOIN pair_keys p ON p.a = m.id AND p.b = ? ${asked('p.asked_b')}
             LEFT JOIN pair_keys q ON q.a = ? AND q.b = m.id ${asked('q.asked_a')}
           WHERE (p.changed IS NOT NULL OR q.changed IS NOT NULL) AND ${inWindow}`,
          [holder, holder, from, upTo, limit],
        );
      }
      return this.sql.all(
        `SELECT ${MEMBER}, p.changed AS pair_changed FROM
           (SELECT b AS peer, changed FROM pair_keys WHERE a = ? ${asked('asked_a')}
            UNION ALL SELECT a AS peer, changed FROM pair_keys WHERE b = ? ${asked('asked_b')}) p
           JOIN members m ON m.id = p.peer LEFT JOIN boots b ON b.member = m.id ${MEMBER_MAC}
         WHERE ${inWindow}`,
        [holder, holder, from, upTo, limit],
      );
    };
    const rows = await this.#page(MEMBERS, after, limit, 'changed', read);
    return rows.map((row) => ({
      member: toMember(row),
      pairChanged: integer(row, 'pair_changed'),
    }));
  }

  async pairsChanged(
    window: ChangeWindow,
    id: Id,
    askedOnly: boolean,
  ): Promise<readonly (SeenPair | BrokenSeenPair)[]> {
    const { after, upTo, limit } = window;
    // An end that must ask has a key from the later of its change and its own first request.
    const seen = (asked: string): string =>
      askedOnly ? `CASE WHEN ${asked} > changed THEN ${asked} ELSE changed END` : 'changed';
    const half = (own: string, peer: string, asked: string): string =>
      askedOnly
        ? `SELECT ${peer} AS peer, key, pw_id, next_key, next_pw_id, ${seen(asked)} AS seq FROM pair_keys
           WHERE ${own} = ? AND ${asked} > 0 AND ${seen(asked)} > ? AND ${seen(asked)} <= ?`
        : `SELECT ${peer} AS peer, key, pw_id, next_key, next_pw_id, changed AS seq FROM pair_keys
           WHERE ${own} = ? AND changed > ? AND changed <= ?`;
    const rows = await this.sql.all(
      `${half('a', 'b', 'asked_a')} UNION ALL ${half('b', 'a', 'asked_b')} ORDER BY seq LIMIT ?`,
      [id, after, upTo, id, after, upTo, limit],
    );
    return rows.map((row) => {
      const peer = text(row, 'peer') as Id;
      const ends = orderedPair(id, peer);
      const seen = { seq: integer(row, 'seq'), peer };
      return this.ring.try(
        () => ({
          ...seen,
          key: openPair(this.ring, row, 'key', ends),
          pwId: integer(row, 'pw_id'),
          next: nextOf(this.ring, row, ends),
        }),
        () => ({ ...seen, key: undefined }),
      );
    });
  }

  async pairsDue(now: number, limit: number): Promise<readonly (PairKey | BrokenPair)[]> {
    const rows = await this.sql.all(
      `SELECT * FROM pair_keys WHERE due_at > 0 AND due_at <= ? AND next_pw_id = 0 AND maker = ''
       ORDER BY due_at LIMIT ?`,
      [now, limit],
    );
    return rows.map((row) => toAnyPair(this.ring, row));
  }

  async pairsPrepared(limit: number): Promise<readonly (PairKey | BrokenPair)[]> {
    const rows = await this.sql.all('SELECT * FROM pair_keys WHERE next_pw_id > 0 LIMIT ?', [
      limit,
    ]);
    return rows.map((row) => toAnyPair(this.ring, row));
  }

  async pairsAfter(
    serial: number,
    limit: number,
  ): Promise<readonly ((KnownPair & { readonly serial: number }) | BrokenPair)[]> {
    const rows = await this.sql.all(
      `SELECT a, b, key, pw_id, next_pw_id, asked_a, asked_b, serial, changed, maker FROM pair_keys
       WHERE serial > ? ORDER BY serial LIMIT ?`,
      [serial, limit],
    );
    return rows.map((row) =>
      this.ring.try(
        () => ({ ...toKnownPair(this.ring, row), serial: integer(row, 'serial') }),
        () => toBrokenPair(row),
      ),
    );
  }

  async pairsOf(id: Id): Promise<readonly (PairKey | BrokenPair)[]> {
    const rows = await this.sql.all(
      'SELECT * FROM pair_keys WHERE a = ? UNION ALL SELECT * FROM pair_keys WHERE b = ?',
      [id, id],
    );
    return rows.map((row) => toAnyPair(this.ring, row));
  }

  async macsOf(id: Id): Promise<readonly MacEntry[]> {
    const rows = await this.sql.all(`${ALL_MACS} WHERE t.member = ? ORDER BY t.serial`, [id]);
    return this.#allGood(MACS, rows).map(toMac);
  }

  async macEntries(mac: MacAddress): Promise<readonly MacEntry[]> {
    // One that is not what was written counts here: it must not seem free.
    return (await this.sql.all('SELECT * FROM macs WHERE mac = ?', [mac])).map(toMac);
  }

  async macsChanged({ after, upTo, limit }: ChangeWindow): Promise<readonly MacEntry[]> {
    // Of an address with several rows (shared by members) those that are somebody's own count.
    const rows = await this.#page(MACS, after, limit, 'changed', (from) =>
      this.sql.all(
        `${ALL_MACS} WHERE t.changed > ? AND t.changed <= ?
           AND (t.kind <> 'freed' OR NOT EXISTS
             (SELECT 1 FROM macs y WHERE y.mac = t.mac AND y.kind <> 'freed'))
         ORDER BY t.changed LIMIT ?`,
        [from, upTo, limit],
      ),
    );
    return rows.map(toMac);
  }

  async learned(vlan: number, mac: MacAddress): Promise<Learned | undefined> {
    return optional(
      this.#good(
        LEARNED,
        await this.sql.get(`${ALL_LEARNED} WHERE t.vlan = ? AND t.mac = ?`, [vlan, mac]),
      ),
      toLearned,
    );
  }

  async learnedAt(mac: MacAddress): Promise<readonly Learned[]> {
    const rows = await this.sql.all(`${ALL_LEARNED} WHERE t.mac = ? ORDER BY t.vlan`, [mac]);
    return this.#allGood(LEARNED, rows).map(toLearned);
  }

  async learnedChanged({ after, upTo, limit }: ChangeWindow): Promise<readonly Learned[]> {
    const rows = await this.#page(LEARNED, after, limit, 'changed', (from) =>
      this.sql.all(
        `${ALL_LEARNED} WHERE t.changed > ? AND t.changed <= ? ORDER BY t.changed LIMIT ?`,
        [from, upTo, limit],
      ),
    );
    return rows.map(toLearned);
  }

  async learnedBehind(
    id: Id | undefined,
    refreshedBefore: number,
    limit: number,
  ): Promise<readonly Learned[]> {
    const rows =
      id === undefined
        ? await this.sql.all(
            `SELECT * FROM learned WHERE member <> '' AND pinned = 0 AND refreshed < ?
             ORDER BY refreshed LIMIT ?`,
            [refreshedBefore, limit],
          )
        : await this.sql.all(
            'SELECT * FROM learned WHERE member = ? AND refreshed < ? ORDER BY refreshed LIMIT ?',
            [id, refreshedBefore, limit],
          );
    return rows.map(toLearned);
  }

  async learnedThawed(now: number, limit: number): Promise<readonly Learned[]> {
    const rows = await this.sql.all(
      'SELECT * FROM learned WHERE frozen_until > 0 AND frozen_until <= ? LIMIT ?',
      [now, limit],
    );
    return rows.map(toLearned);
  }

  async countLearned(id: Id): Promise<number> {
    const row = await this.sql.get('SELECT count(*) AS n FROM learned WHERE member = ?', [id]);
    return row === undefined ? 0 : integer(row, 'n');
  }

  async binding(ip: string): Promise<Binding | undefined> {
    return optional(
      this.#good(BINDINGS, await this.sql.get(`${ALL_BINDINGS} WHERE t.ip = ?`, [ip])),
      toBinding,
    );
  }

  async bindingsOf(id: Id): Promise<readonly Binding[]> {
    const rows = await this.sql.all(
      "SELECT * FROM bindings WHERE member = ? AND kind IN ('granted', 'seen') ORDER BY refreshed",
      [id],
    );
    return rows.map(toBinding);
  }

  async bindingsChanged({ after, upTo, limit }: ChangeWindow): Promise<readonly Binding[]> {
    const rows = await this.#page(BINDINGS, after, limit, 'changed', (from) =>
      this.sql.all(
        `${ALL_BINDINGS} WHERE t.changed > ? AND t.changed <= ? ORDER BY t.changed LIMIT ?`,
        [from, upTo, limit],
      ),
    );
    return rows.map(toBinding);
  }

  async bindingsBefore(
    kind: BindingKind,
    refreshedBefore: number,
    limit: number,
  ): Promise<readonly Binding[]> {
    const rows = await this.sql.all(
      'SELECT * FROM bindings WHERE kind = ? AND refreshed < ? ORDER BY refreshed LIMIT ?',
      [kind, refreshedBefore, limit],
    );
    return rows.map(toBinding);
  }

  async countBindings(): Promise<number> {
    const row = await this.sql.get('SELECT count(*) AS n FROM bindings', []);
    return row === undefined ? 0 : integer(row, 'n');
  }

  async ipHolders(prefix: string): Promise<readonly Id[]> {
    const rows = await this.sql.all(
      'SELECT member FROM ip_bindings WHERE prefix = ? ORDER BY bound_at, member',
      [prefix],
    );
    return rows.map((row) => text(row, 'member') as Id);
  }

  async plainMembers(): Promise<readonly { readonly id: Id; readonly online: boolean }[]> {
    const rows = await this.sql.all(
      "SELECT id, online FROM members WHERE role = 'plain' AND state = 'active' ORDER BY id",
      [],
    );
    return rows.map((row) => ({
      id: text(row, 'id') as Id,
      online: integer(row, 'online') === 1,
    }));
  }

  async listMembers(after: number, limit: number): Promise<readonly Member[]> {
    const rows = await this.#page(MEMBERS, after, limit, 'serial', (from) =>
      this.sql.all(
        `SELECT ${MEMBER} FROM ${MEMBER_FROM} WHERE m.serial > ? ORDER BY m.serial LIMIT ?`,
        [from, limit],
      ),
    );
    return rows.map(toMember);
  }

  async listKeys(after: number, limit: number): Promise<readonly KeyListEntry[]> {
    const rows = await this.sql.all(
      `SELECT 'pair' AS kind, a, b, pw_id, reason, created_at, serial FROM pair_keys WHERE serial > ?
       UNION ALL
       SELECT 'group' AS kind, id AS a, NULL AS b, pw_id, reason, created_at, serial
         FROM group_keys WHERE serial > ? AND in_force = 1
       UNION ALL
       SELECT 'net' AS kind, net AS a, NULL AS b, pw_id, reason, created_at, serial
         FROM nets WHERE serial > ? AND length(key) > 0
       ORDER BY serial LIMIT ?`,
      [after, after, after, limit],
    );
    return rows.map((row) => ({
      kind: text(row, 'kind') as KeyListEntry['kind'],
      a: text(row, 'a') as Id,
      b: isNull(row, 'b') ? undefined : (text(row, 'b') as Id),
      pwId: integer(row, 'pw_id'),
      reason: text(row, 'reason'),
      createdAt: integer(row, 'created_at'),
      serial: integer(row, 'serial'),
    }));
  }

  async listMacs(after: number, limit: number): Promise<readonly (MacEntry | Learned)[]> {
    const own = await this.sql.all(
      "SELECT * FROM macs WHERE serial > ? AND kind <> 'freed' ORDER BY serial LIMIT ?",
      [after, limit],
    );
    const outside = await this.sql.all(
      "SELECT * FROM learned WHERE serial > ? AND member <> '' ORDER BY serial LIMIT ?",
      [after, limit],
    );
    return [...own.map(toMac), ...outside.map(toLearned)]
      .sort((a, b) => a.serial - b.serial)
      .slice(0, limit);
  }

  async listBindings(after: number, limit: number): Promise<readonly Binding[]> {
    const rows = await this.sql.all(
      "SELECT * FROM bindings WHERE serial > ? AND kind <> 'freed' ORDER BY serial LIMIT ?",
      [after, limit],
    );
    return rows.map(toBinding);
  }

  async listAudit(server: Id, after: number, limit: number): Promise<readonly AuditEntry[]> {
    return (
      await this.sql.all('SELECT * FROM audit WHERE server = ? AND seq > ? ORDER BY seq LIMIT ?', [
        server,
        after,
        limit,
      ])
    ).map(toAudit);
  }

  async lastAudit(server: Id): Promise<AuditEntry | undefined> {
    return optional(
      await this.sql.get('SELECT * FROM audit WHERE server = ? ORDER BY seq DESC LIMIT 1', [
        server,
      ]),
      toAudit,
    );
  }

  async auditWitnesses(server: Id, limit: number): Promise<readonly StoredWitness[]> {
    const rows = await this.sql.all(
      'SELECT witness, body, signature, told_at FROM audit_witnesses WHERE server = ? ORDER BY witness LIMIT ?',
      [server, limit],
    );
    return rows.map((row) => ({
      witness: text(row, 'witness'),
      record: { b: blob(row, 'body'), s: blob(row, 'signature') },
      at: integer(row, 'told_at'),
    }));
  }
}

class SqlTransaction extends SqlReads implements StoreTransaction {
  readonly touched = new Touched();
  /** Undefined without the row key. */
  readonly rows: RowChange | undefined;
  readonly #known: (id: Id) => Member | undefined;

  /** @param known a member that is in memory and was changed by nothing that is not committed yet */
  constructor(connection: SqlConnection, ring: KeyRing, known: (id: Id) => Member | undefined) {
    super(connection, ring);
    this.rows = ring.rows?.begin(connection);
    this.#known = known;
  }

  override member(id: Id): Promise<Member | undefined> {
    const known = this.touched.hasMember(id) ? undefined : this.#known(id);
    return known === undefined ? super.member(id) : Promise.resolve(known);
  }

  /** Runs a statement that leaves nothing of what these rows were. */
  #whole<T>(
    table: RowTable,
    keys: readonly (readonly SqlValue[])[],
    statement: () => Promise<T>,
  ): Promise<T> {
    return this.rows === undefined ? statement() : this.rows.around(table, keys, true, statement);
  }

  /** Runs a statement that changes these rows in part. */
  #part<T>(
    table: RowTable,
    keys: readonly (readonly SqlValue[])[],
    statement: () => Promise<T>,
  ): Promise<T> {
    return this.rows === undefined ? statement() : this.rows.around(table, keys, false, statement);
  }

  /** The keys of rows that a statement is about to change. */
  async #keysOf(
    table: RowTable,
    condition: string,
    params: readonly SqlValue[],
  ): Promise<readonly (readonly SqlValue[])[]> {
    return (await this.rows?.keys(table, condition, params)) ?? [];
  }

  async nextChange(): Promise<number> {
    return this.#count('change', 1);
  }

  async nextChanges(count: number): Promise<number> {
    return (await this.#count('change', count)) - count + 1;
  }

  async insertMember(member: NewMember): Promise<void> {
    this.touched.members.add(member.id);
    const { rows } = this.ring;
    if (rows !== undefined && !(await rows.isAbsent(this.sql, MEMBERS, [member.id]))) {
      throw new PairwireError('ROW_BROKEN', 'the row of this member is not what was written', {
        where: `members ${member.id}`,
        hint: 'an id is never used again: revoke it, and take another one',
      });
    }
    await this.#whole(MEMBERS, [[member.id]], () =>
      this.sql.run(
        `INSERT INTO members (id, serial, role, state, channel, membership, membership_signature,
         identity_digest, token_id, ips, online, endpoints, group_asked, enrolled_at, changed, home)
       VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?, ?, 0, ?, 0, ?, ?, ?)`,
        [
          member.id,
          member.serial,
          member.role,
          member.channel,
          Buffer.from(member.membership.b),
          Buffer.from(member.membership.s),
          member.identityDigest,
          member.tokenId,
          JSON.stringify(member.ips),
          EMPTY_LIST,
          member.enrolledAt,
          member.changed,
          member.home ?? '',
        ],
      ),
    );
    if (TALKER_ROLES.includes(member.role)) await this.#count('talkers', 1);
  }

  async updateMembership(member: NewMember): Promise<void> {
    this.touched.members.add(member.id);
    const before = await this.member(member.id);
    if (before === undefined) return;
    const talked = TALKER_ROLES.includes(before.role) ? 1 : 0;
    const talks = TALKER_ROLES.includes(member.role) ? 1 : 0;
    await this.#part(MEMBERS, [[member.id]], () =>
      this.sql.run(
        `UPDATE members SET role = ?, channel = ?, membership = ?, membership_signature = ?,
         token_id = ?, ips = ?, changed = ? WHERE id = ?`,
        [
          member.role,
          member.channel,
          Buffer.from(member.membership.b),
          Buffer.from(member.membership.s),
          member.tokenId,
          JSON.stringify(member.ips),
          member.changed,
          member.id,
        ],
      ),
    );
    if (talked !== talks) await this.#count('talkers', talks - talked);
  }

  async updatePresence(
    id: Id,
    presence: { readonly online: boolean; readonly endpoints?: readonly Endpoint[] },
    changed: number,
  ): Promise<void> {
    this.touched.members.add(id);
    if (presence.endpoints === undefined) {
      await this.sql.run('UPDATE members SET online = ?, changed = ? WHERE id = ?', [
        presence.online ? 1 : 0,
        changed,
        id,
      ]);
      return;
    }
    await this.sql.run('UPDATE members SET online = ?, endpoints = ?, changed = ? WHERE id = ?', [
      presence.online ? 1 : 0,
      Buffer.from(encode(presence.endpoints)),
      changed,
      id,
    ]);
  }

  async touchMember(id: Id, changed: number): Promise<void> {
    this.touched.members.add(id);
    await this.sql.run('UPDATE members SET changed = ? WHERE id = ?', [changed, id]);
  }

  async setBoot(id: Id, boot: Boot): Promise<void> {
    this.touched.members.add(id);
    await this.sql.run(
      `INSERT INTO boots (member, record, record_signature, boot_key, sequence, sender_index, registered_at)
       VALUES (?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (member) DO UPDATE SET record = excluded.record,
         record_signature = excluded.record_signature, boot_key = excluded.boot_key,
         sequence = excluded.sequence, sender_index = excluded.sender_index,
         registered_at = excluded.registered_at`,
      [
        id,
        Buffer.from(boot.record.b),
        Buffer.from(boot.record.s),
        boot.key,
        boot.sequence,
        boot.index,
        boot.registeredAt,
      ],
    );
  }

  async takeIndex(index: number, id: Id, bootDigest: Buffer, now: number): Promise<boolean> {
    const inserted = await this.sql.run(
      `INSERT INTO sender_indices (sender_index, member, boot_digest, drawn_at, released_at)
       VALUES (?, ?, ?, ?, NULL) ON CONFLICT (sender_index) DO NOTHING`,
      [index, id, bootDigest, now],
    );
    return inserted === 1;
  }

  async releaseIndex(index: number, now: number): Promise<void> {
    await this.sql.run('UPDATE sender_indices SET released_at = ? WHERE sender_index = ?', [
      now,
      index,
    ]);
  }

  async forgetIndices(releasedBefore: number): Promise<void> {
    await this.sql.run('DELETE FROM sender_indices WHERE released_at < ?', [releasedBefore]);
  }

  async putMac(entry: MacEntry): Promise<void> {
    this.touched.macs.add(entry.mac);
    await this.#whole(MACS, [[entry.mac, entry.shared ? entry.member : '']], () =>
      this.sql.run(
        `INSERT INTO macs (mac, slot, member, kind, serial, seen_at, changed) VALUES (?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (mac, slot) DO UPDATE SET member = excluded.member, kind = excluded.kind,
         seen_at = excluded.seen_at, changed = excluded.changed`,
        [
          entry.mac,
          entry.shared ? entry.member : '',
          entry.member,
          entry.kind,
          entry.serial,
          entry.seenAt,
          entry.changed,
        ],
      ),
    );
  }

  async putLearned(entry: Learned): Promise<void> {
    // What was pinned once stays kept.
    const keys = entry.kept ? [[entry.vlan, entry.mac]] : [];
    await this.#whole(LEARNED, keys, () =>
      this.sql.run(
        `INSERT INTO learned (vlan, mac, member, since, sighted, sighting, refreshed, moves, held,
         frozen_until, pinned, kept, serial, changed)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (vlan, mac) DO UPDATE SET member = excluded.member, since = excluded.since,
         sighted = excluded.sighted, sighting = excluded.sighting, refreshed = excluded.refreshed,
         moves = excluded.moves, held = excluded.held, frozen_until = excluded.frozen_until,
         pinned = excluded.pinned, kept = excluded.kept, changed = excluded.changed`,
        [
          entry.vlan,
          entry.mac,
          entry.member ?? '',
          entry.since,
          entry.sighted,
          entry.sighting,
          entry.refreshed,
          JSON.stringify(entry.moves),
          JSON.stringify(entry.held),
          entry.frozenUntil,
          entry.pinned ? 1 : 0,
          entry.kept ? 1 : 0,
          entry.serial,
          entry.changed,
        ],
      ),
    );
  }

  async countPins(): Promise<number> {
    const row = await this.sql.get('SELECT count(*) AS n FROM learned WHERE kept = 1', []);
    return row === undefined ? 0 : integer(row, 'n');
  }

  async forgetLearned(refreshedBefore: number): Promise<void> {
    await this.sql.run("DELETE FROM learned WHERE member = '' AND kept = 0 AND refreshed < ?", [
      refreshedBefore,
    ]);
  }

  async putBinding(entry: Binding): Promise<void> {
    await this.#whole(BINDINGS, [[entry.ip]], () =>
      this.sql.run(
        `INSERT INTO bindings (ip, mac, kind, member, since, refreshed, serial, changed)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (ip) DO UPDATE SET mac = excluded.mac, kind = excluded.kind, member = excluded.member,
         since = excluded.since, refreshed = excluded.refreshed, changed = excluded.changed`,
        [
          entry.ip,
          entry.mac,
          entry.kind,
          entry.member ?? '',
          entry.since,
          entry.refreshed,
          entry.serial,
          entry.changed,
        ],
      ),
    );
  }

  async forgetBindings(freedBefore: number): Promise<void> {
    const condition = "kind = 'freed' AND refreshed < ?";
    await this.#whole(BINDINGS, await this.#keysOf(BINDINGS, condition, [freedBefore]), () =>
      this.sql.run(`DELETE FROM bindings WHERE ${condition}`, [freedBefore]),
    );
  }

  async ipOwner(prefix: string): Promise<Id | undefined> {
    return optional(
      await this.sql.get("SELECT member FROM ip_bindings WHERE prefix = ? AND slot = ''", [prefix]),
      (row) => text(row, 'member') as Id,
    );
  }

  async bindIps(id: Id, prefixes: readonly string[], shared: boolean, now: number): Promise<void> {
    const granted = "member = ? AND source = 'granted'";
    await this.#whole(IP_BINDINGS, await this.#keysOf(IP_BINDINGS, granted, [id]), () =>
      this.sql.run(`DELETE FROM ip_bindings WHERE ${granted}`, [id]),
    );
    const slot = shared ? id : '';
    for (const prefix of new Set(prefixes)) {
      await this.#whole(IP_BINDINGS, [[prefix, slot]], () =>
        this.sql.run(
          `INSERT INTO ip_bindings (prefix, slot, member, source, bound_at)
           VALUES (?, ?, ?, 'granted', ?)`,
          [prefix, slot, id, now],
        ),
      );
    }
  }

  async membersByToken(home: Id, tokenId: Uint8Array): Promise<number> {
    const row = await this.sql.get(
      'SELECT COUNT(*) AS found FROM members WHERE home = ? AND token_id = ?',
      [home, Buffer.from(tokenId)],
    );
    return row === undefined ? 0 : integer(row, 'found');
  }

  async tokenUses(tokenId: Uint8Array): Promise<number> {
    const { rows } = this.ring;
    // A count that somebody has changed or taken away is used up.
    if (rows !== undefined && !(await rows.isRight(this.sql, TOKENS, [Buffer.from(tokenId)]))) {
      return Number.MAX_SAFE_INTEGER;
    }
    const row = await this.sql.get('SELECT used FROM tokens_used WHERE token_id = ?', [
      Buffer.from(tokenId),
    ]);
    return row === undefined ? 0 : integer(row, 'used');
  }

  async countToken(tokenId: Uint8Array, now: number): Promise<void> {
    await this.#part(TOKENS, [[Buffer.from(tokenId)]], () =>
      this.sql.run(
        `INSERT INTO tokens_used (token_id, used, last_at) VALUES (?, 1, ?)
       ON CONFLICT (token_id) DO UPDATE SET used = tokens_used.used + 1, last_at = excluded.last_at`,
        [Buffer.from(tokenId), now],
      ),
    );
  }

  async insertPair(pair: Omit<PairKey, 'next' | 'maker'>): Promise<boolean> {
    const inserted = await this.sql.run(
      `INSERT INTO pair_keys
         (a, b, key, pw_id, reason, created_at, serial, asked_a, asked_b, changed, due_at, far)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
         COALESCE((SELECT home FROM members WHERE id = ?), ''))
       ON CONFLICT (a, b) DO NOTHING`,
      [
        pair.a,
        pair.b,
        this.#sealPair('key', pair, pair.pwId, pair.key),
        pair.pwId,
        pair.reason,
        pair.createdAt,
        pair.serial,
        pair.askedA,
        pair.askedB,
        pair.changed,
        pair.dueAt,
        pair.b,
      ],
    );
    return inserted === 1;
  }

  async putForeignPair(
    { a, b, maker, key, pwId, next, createdAt }: ForeignPair,
    changed: number,
  ): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    const generation = [
      this.#sealPair('key', { a, b }, pwId, key),
      pwId,
      createdAt,
      next === undefined ? null : this.#sealPair('next_key', { a, b }, next.pwId, next.key),
      next?.pwId ?? 0,
    ];
    // What an end here has confirmed holds for the next generation that it was said of.
    const updated = await this.sql.run(
      `UPDATE pair_keys SET key = ?, pw_id = ?, created_at = ?, next_key = ?,
         confirmed = CASE WHEN next_pw_id = ? THEN confirmed ELSE 0 END,
         next_pw_id = ?, next_reason = 'learned', reason = 'learned', maker = ?, due_at = 0, far = '', changed = ?
       WHERE a = ? AND b = ?`,
      [...generation, next?.pwId ?? 0, maker, changed, a, b],
    );
    if (updated === 1) return;
    await this.sql.run(
      `INSERT INTO pair_keys (a, b, key, pw_id, created_at, next_key, next_pw_id, next_reason, reason,
         serial, asked_a, asked_b, maker, due_at, changed)
       VALUES (?, ?, ?, ?, ?, ?, ?, 'learned', 'learned', ?, 0, 0, ?, 0, ?)`,
      [a, b, ...generation, changed, maker, changed],
    );
  }

  async learnGroup(group: GroupKey): Promise<void> {
    await this.replaceGroup(group);
    const { next } = group;
    if (next === undefined) return;
    const serial = await this.nextChange();
    await this.#whole(GROUPS, [[group.id, next.pwId]], () =>
      this.sql.run(
        `INSERT INTO group_keys (id, pw_id, key, reason, created_at, serial, changed, in_force)
       VALUES (?, ?, ?, ?, 0, ?, ?, 0)`,
        [group.id, next.pwId, this.#sealGroup(group.id, next), next.reason, serial, group.changed],
      ),
    );
  }

  async putPeerServer(peer: PeerServer): Promise<void> {
    await this.#whole(PEER_SERVERS, [[peer.server]], async () => {
      await this.sql.run('DELETE FROM peer_servers WHERE server = ?', [peer.server]);
      await this.sql.run(
        `INSERT INTO peer_servers (server, member, contact, sender_number, epoch, cursor, complete,
         time_offset, serial, current_at, run)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        [
          peer.server,
          peer.member ?? '',
          peer.contact === undefined ? NOTHING : Buffer.from(encode(peer.contact)),
          peer.number ?? -1,
          peer.epoch,
          peer.cursor,
          peer.complete ? 1 : 0,
          peer.timeOffset,
          peer.serial,
          peer.currentAt,
          peer.run?.toString('hex') ?? '',
        ],
      );
    });
  }

  async noteRevokedAt(home: Id, id: Id): Promise<void> {
    await this.#whole(FOREIGN_REVOCATIONS, [[home, id]], () =>
      this.sql.run(
        'INSERT INTO foreign_revocations (home, id) VALUES (?, ?) ON CONFLICT (home, id) DO NOTHING',
        [home, id],
      ),
    );
  }

  async noteFormerServer(server: Id): Promise<void> {
    await this.#whole(FORMER_SERVERS, [[server]], () =>
      this.sql.run(
        'INSERT INTO former_servers (server) VALUES (?) ON CONFLICT (server) DO NOTHING',
        [server],
      ),
    );
  }

  async putIdentityPair(id: Id, { document, dek }: IdentityPair, now: number): Promise<void> {
    await this.sql.run(
      `INSERT INTO identities (member, document, dek, stored_at) VALUES (?, ?, ?, ?)
       ON CONFLICT (member) DO UPDATE SET
         document = excluded.document, dek = excluded.dek, stored_at = excluded.stored_at`,
      [id, document, dek, now],
    );
  }

  async putAuditWitness(server: Id, { witness, record, at }: StoredWitness): Promise<void> {
    await this.sql.run(
      `INSERT INTO audit_witnesses (server, witness, body, signature, told_at) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (server, witness) DO UPDATE SET
         body = excluded.body, signature = excluded.signature, told_at = excluded.told_at`,
      [server, witness, Buffer.from(record.b), Buffer.from(record.s), at],
    );
  }

  async clearAuditWitnesses(server: Id): Promise<void> {
    await this.sql.run('DELETE FROM audit_witnesses WHERE server = ?', [server]);
  }

  async addRestoreClaim(claimant: string): Promise<void> {
    await this.sql.run(
      'INSERT INTO restore_claims (claimant) VALUES (?) ON CONFLICT (claimant) DO NOTHING',
      [claimant],
    );
  }

  async removePeerServer(id: Id): Promise<void> {
    await this.#whole(PEER_SERVERS, [[id]], () =>
      this.sql.run('DELETE FROM peer_servers WHERE server = ?', [id]),
    );
  }

  async takeIndexFromOthers(index: number, id: Id): Promise<void> {
    const row = await this.sql.get(
      'SELECT member FROM boots WHERE sender_index = ? AND member <> ?',
      [index, id],
    );
    if (row === undefined) return;
    this.touched.members.add(text(row, 'member') as Id);
    await this.sql.run('DELETE FROM boots WHERE sender_index = ? AND member <> ?', [index, id]);
  }

  async prepareNext(
    pair: KnownPair,
    next: { readonly key: Buffer; readonly reason: string },
    changed: number,
  ): Promise<(ToldPair & Pick<ConfirmedPair, 'next'>) | undefined> {
    const { a, b } = pair;
    this.touched.pairs.add(pairName(a, b));
    // A statement that returns the row costs twice as much, so the row is known and only guarded.
    const prepare = async ({ pwId }: KnownPair): Promise<boolean> =>
      (await this.sql.run(
        `UPDATE pair_keys SET next_key = ?, next_pw_id = pw_id + 1, next_reason = ?, confirmed = 0, changed = ?
         WHERE a = ? AND b = ? AND pw_id = ? AND next_pw_id = 0 AND maker = ''`,
        [this.#sealPair('next_key', pair, pwId + 1, next.key), next.reason, changed, a, b, pwId],
      )) === 1;
    let known = pair;
    if (!(await prepare(known))) {
      const now = await this.anyPair(a, b);
      if (now?.key === undefined || now.pwId === pair.pwId) return undefined;
      if (!(await prepare(now))) return undefined;
      known = now;
    }
    const { key, pwId, askedA, askedB } = known;
    const prepared = { ...next, pwId: pwId + 1, confirmedA: false, confirmedB: false };
    return { a, b, key, pwId, askedA, askedB, changed, next: prepared };
  }

  async confirmNext({ a, b }: PairEnds, id: Id, pwId: number): Promise<ConfirmedPair | undefined> {
    this.touched.pairs.add(pairName(a, b));
    const bit = id === a ? CONFIRMED_A : CONFIRMED_B;
    const row = await this.sql.get(
      `UPDATE pair_keys SET confirmed = confirmed | ? WHERE a = ? AND b = ? AND next_pw_id = ?
       RETURNING confirmed, asked_a, asked_b, next_key, next_reason, maker`,
      [bit, a, b, pwId],
    );
    return optional(row, (one) =>
      this.ring.try(
        () => ({
          a,
          b,
          askedA: integer(one, 'asked_a'),
          askedB: integer(one, 'asked_b'),
          maker: serverOf(one, 'maker'),
          next: {
            key: this.ring.open('pair_keys', 'next_key', [a, b], pwId, sealedIn(one, 'next_key')),
            pwId,
            reason: text(one, 'next_reason'),
            ...confirmedOf(one),
          },
        }),
        () => undefined,
      ),
    );
  }

  async commitNext(
    { a, b, askedA, askedB, next }: Omit<ConfirmedPair, 'maker'>,
    times: { readonly createdAt: number; readonly dueAt: number },
    changed: number,
  ): Promise<ToldPair | undefined> {
    this.touched.pairs.add(pairName(a, b));
    const committed = await this.sql.run(
      `UPDATE pair_keys SET key = ?, pw_id = next_pw_id, reason = next_reason,
         created_at = ?, due_at = ?, changed = ?,
         next_key = NULL, next_pw_id = 0, next_reason = '', confirmed = 0
       WHERE a = ? AND b = ? AND next_pw_id = ?`,
      [
        // Each column has a seal of its own, so the key is sealed anew.
        this.#sealPair('key', { a, b }, next.pwId, next.key),
        times.createdAt,
        times.dueAt,
        changed,
        a,
        b,
        next.pwId,
      ],
    );
    if (committed === 0) return undefined;
    const { key, pwId } = next;
    return { a, b, key, pwId, askedA, askedB, changed, next: undefined };
  }

  async replacePair(
    { a, b }: PairEnds,
    {
      key,
      pwId,
      reason,
      createdAt,
      dueAt,
    }: Pick<PairKey, 'key' | 'pwId' | 'reason' | 'createdAt' | 'dueAt'>,
    changed: number,
  ): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    await this.sql.run(
      `UPDATE pair_keys SET key = ?, pw_id = ?, reason = ?, created_at = ?, due_at = ?, changed = ?,
         next_key = NULL, next_pw_id = 0, next_reason = '', confirmed = 0
       WHERE a = ? AND b = ?`,
      [this.#sealPair('key', { a, b }, pwId, key), pwId, reason, createdAt, dueAt, changed, a, b],
    );
  }

  async postponePair({ a, b }: PairEnds, dueAt: number): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    await this.sql.run('UPDATE pair_keys SET due_at = ? WHERE a = ? AND b = ?', [dueAt, a, b]);
  }

  async redatePairs(intervalMs: number): Promise<void> {
    this.touched.all = true;
    if (intervalMs === 0) await this.sql.run('UPDATE pair_keys SET due_at = 0', []);
    else {
      await this.sql.run("UPDATE pair_keys SET due_at = created_at + ? WHERE maker = ''", [
        intervalMs,
      ]);
    }
  }

  async pairEnds(): Promise<readonly PairEnds[]> {
    const rows = await this.sql.all('SELECT a, b FROM pair_keys', []);
    return rows.map((row) => ({ a: text(row, 'a') as Id, b: text(row, 'b') as Id }));
  }

  async removePair(a: Id, b: Id): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    await this.sql.run('DELETE FROM pair_keys WHERE a = ? AND b = ?', [a, b]);
  }

  async renumberPair({ a, b }: PairEnds, changed: number): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    await this.sql.run('UPDATE pair_keys SET changed = ? WHERE a = ? AND b = ?', [changed, a, b]);
  }

  async markPairAsked(a: Id, b: Id, id: Id, change: number): Promise<void> {
    this.touched.pairs.add(pairName(a, b));
    const [low, high] = orderedPair(a, b);
    const column = id === low ? 'asked_a' : 'asked_b';
    await this.sql.run(
      `UPDATE pair_keys SET ${column} = ? WHERE a = ? AND b = ? AND ${column} = 0`,
      [change, low, high],
    );
  }

  async markGroupAsked(id: Id, change: number): Promise<void> {
    this.touched.members.add(id);
    await this.sql.run('UPDATE members SET group_asked = ? WHERE id = ? AND group_asked = 0', [
      change,
      id,
    ]);
  }

  async replaceGroup(key: Omit<GroupKey, 'next'>): Promise<void> {
    const keys = await this.#keysOf(GROUPS, 'id = ?', [key.id]);
    await this.#whole(
      GROUPS,
      [...keys.filter(([, pwId]) => pwId !== key.pwId), [key.id, key.pwId]],
      async () => {
        await this.sql.run('DELETE FROM group_keys WHERE id = ?', [key.id]);
        await this.sql.run(
          `INSERT INTO group_keys (id, pw_id, key, reason, created_at, serial, changed, oldest, due_at)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
          [
            key.id,
            key.pwId,
            this.#sealGroup(key.id, key),
            key.reason,
            key.createdAt,
            key.serial,
            key.changed,
            key.oldest,
            key.dueAt,
          ],
        );
      },
    );
  }

  async prepareGroup(
    id: Id,
    next: NextGroup & { readonly serial: number },
    changed: number,
  ): Promise<void> {
    await this.#whole(GROUPS, [[id, next.pwId]], () =>
      this.sql.run(
        `INSERT INTO group_keys (id, pw_id, key, reason, created_at, serial, changed, in_force)
       VALUES (?, ?, ?, ?, 0, ?, ?, 0)`,
        [id, next.pwId, this.#sealGroup(id, next), next.reason, next.serial, changed],
      ),
    );
    await this.sql.run('UPDATE group_keys SET changed = ? WHERE id = ? AND in_force = 1', [
      changed,
      id,
    ]);
  }

  async commitGroup(
    id: Id,
    times: { readonly createdAt: number; readonly dueAt: number; readonly oldest: number },
    changed: number,
  ): Promise<void> {
    await this.#part(GROUPS, await this.#keysOf(GROUPS, 'id = ?', [id]), async () => {
      await this.sql.run('DELETE FROM group_keys WHERE id = ? AND in_force = 1', [id]);
      await this.sql.run(
        `UPDATE group_keys SET in_force = 1, created_at = ?, due_at = ?, oldest = ?, changed = ?
       WHERE id = ?`,
        [times.createdAt, times.dueAt, times.oldest, changed, id],
      );
    });
  }

  async redateGroup(intervalMs: number): Promise<void> {
    if (intervalMs === 0) await this.sql.run('UPDATE group_keys SET due_at = 0', []);
    else await this.sql.run('UPDATE group_keys SET due_at = created_at + ?', [intervalMs]);
  }

  async putNet(net: Net): Promise<void> {
    const { contact, next } = net;
    await this.#whole(NETS, [[net.net]], async () => {
      await this.sql.run('DELETE FROM nets WHERE net = ?', [net.net]);
      await this.sql.run(
        `INSERT INTO nets (net, member, contact, local, told, key, pw_id, oldest, reason, created_at,
         due_at, next_key, next_pw_id, next_reason, serial, changed, far)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        [
          net.net,
          net.member ?? '',
          contact === undefined ? NOTHING : Buffer.from(encode(contact)),
          JSON.stringify(net.local),
          JSON.stringify(net.told),
          net.key === undefined
            ? NOTHING
            : this.ring.seal('nets', 'key', [net.net], net.pwId, net.key),
          net.pwId,
          net.oldest,
          net.reason,
          net.createdAt,
          net.dueAt,
          next === undefined
            ? NOTHING
            : this.ring.seal('nets', 'next_key', [net.net], next.pwId, next.key),
          next?.pwId ?? 0,
          next?.reason ?? '',
          net.serial,
          net.changed,
          net.far === undefined ? null : Buffer.from(encode(net.far)),
        ],
      );
    });
  }

  async redateNets(intervalMs: number): Promise<void> {
    const made = "WHERE member <> ''";
    if (intervalMs === 0) await this.sql.run(`UPDATE nets SET due_at = 0 ${made}`, []);
    else await this.sql.run(`UPDATE nets SET due_at = created_at + ? ${made}`, [intervalMs]);
  }

  async revoke(id: Id, at: number, changed: number): Promise<number> {
    this.touched.all = true;
    // Whatever its row says.
    const member = await this.anyMember(id);
    if (member === undefined) throw new PairwireError('STORE_FAILED', `there is no member ${id}`);
    const number = await this.#part(COUNTERS, [['revocation']], () => this.#count('revocation', 1));
    this.rows?.revoked.add(id);
    await this.#whole(REVOCATIONS, [[number]], () =>
      this.sql.run(
        'INSERT INTO revocations (number, member, revoked_at, changed) VALUES (?, ?, ?, ?)',
        [number, id, at, changed],
      ),
    );
    await this.#whole(MEMBERS, [[id]], () =>
      this.sql.run(
        "UPDATE members SET state = 'revoked', online = 0, endpoints = ?, changed = ? WHERE id = ?",
        [EMPTY_LIST, changed, id],
      ),
    );
    await this.sql.run('DELETE FROM pair_keys WHERE a = ? OR b = ?', [id, id]);
    // Tombstones: what goes to its addresses must not go to a plain port instead.
    await this.#part(MACS, await this.#keysOf(MACS, "member = ? AND kind = 'own'", [id]), () =>
      this.sql.run(
        "UPDATE macs SET kind = 'tombstone', seen_at = ? WHERE member = ? AND kind = 'own'",
        [at, id],
      ),
    );
    await this.#whole(IP_BINDINGS, await this.#keysOf(IP_BINDINGS, 'member = ?', [id]), () =>
      this.sql.run('DELETE FROM ip_bindings WHERE member = ?', [id]),
    );
    await this.sql.run(
      'UPDATE sender_indices SET released_at = ? WHERE member = ? AND released_at IS NULL',
      [at, id],
    );
    await this.sql.run('DELETE FROM boots WHERE member = ?', [id]);
    if (TALKER_ROLES.includes(member.role)) await this.#count('talkers', -1);
    return number;
  }

  async runs(): Promise<readonly Run[]> {
    const row = await this.sql.get("SELECT value FROM meta WHERE name = 'runs'", []);
    const bytes = row === undefined ? Buffer.alloc(0) : blob(row, 'value');
    return Array.from({ length: Math.floor(bytes.length / RUN_SIZE) }, (_, at) => ({
      id: Buffer.from(bytes.subarray(at * RUN_SIZE, at * RUN_SIZE + RUN_ID_SIZE)),
      after: Number(bytes.readBigUInt64BE(at * RUN_SIZE + RUN_ID_SIZE)),
    }));
  }

  async setRuns(runs: readonly Run[]): Promise<void> {
    const bytes = Buffer.alloc(runs.length * RUN_SIZE);
    for (const [at, { id, after }] of runs.entries()) {
      id.copy(bytes, at * RUN_SIZE, 0, RUN_ID_SIZE);
      bytes.writeBigUInt64BE(BigInt(after), at * RUN_SIZE + RUN_ID_SIZE);
    }
    await this.sql.run(
      "INSERT INTO meta (name, value) VALUES ('runs', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
      [bytes],
    );
  }

  async renewEpoch(epoch: Uint8Array): Promise<void> {
    const value = Buffer.from(epoch);
    this.touched.epoch = value;
    await this.sql.run("UPDATE meta SET value = ? WHERE name = 'epoch'", [value]);
  }

  async setPutBack(putBack: boolean): Promise<void> {
    await this.sql.run("UPDATE counters SET value = ? WHERE name = 'put_back'", [putBack ? 1 : 0]);
    if (!putBack) await this.sql.run('DELETE FROM restore_claims', []);
  }

  async raiseRevocation(atLeast: number): Promise<void> {
    await this.#part(COUNTERS, [['revocation']], () =>
      this.sql.run("UPDATE counters SET value = ? WHERE name = 'revocation' AND value < ?", [
        atLeast,
        atLeast,
      ]),
    );
  }

  async insertSettings(settings: StoredSettings, now: number): Promise<void> {
    await this.#whole(SETTINGS, [[settings.version]], () =>
      this.sql.run(
        'INSERT INTO settings (version, body, signature, installed_at, changed) VALUES (?, ?, ?, ?, ?)',
        [
          settings.version,
          Buffer.from(settings.record.b),
          Buffer.from(settings.record.s),
          now,
          settings.changed,
        ],
      ),
    );
  }

  async renumberMembers(): Promise<void> {
    const rows = await this.sql.all(
      `SELECT m.id FROM members m WHERE ${TALKERS} ORDER BY m.changed`,
      [],
    );
    for (const row of rows) {
      await this.touchMember(text(row, 'id') as Id, await this.nextChange());
    }
  }

  async renumberKeys(): Promise<void> {
    this.touched.all = true;
    const pairs = await this.sql.all(
      'SELECT a, b FROM pair_keys WHERE asked_a = 0 OR asked_b = 0 ORDER BY changed',
      [],
    );
    for (const row of pairs) {
      await this.sql.run('UPDATE pair_keys SET changed = ? WHERE a = ? AND b = ?', [
        await this.nextChange(),
        text(row, 'a'),
        text(row, 'b'),
      ]);
    }
    const groups = await this.sql.all(
      'SELECT id, pw_id FROM group_keys WHERE in_force = 1 ORDER BY changed',
      [],
    );
    for (const row of groups) {
      await this.sql.run('UPDATE group_keys SET changed = ? WHERE id = ? AND pw_id = ?', [
        await this.nextChange(),
        text(row, 'id'),
        integer(row, 'pw_id'),
      ]);
    }
  }

  async appendAudit(entry: AuditEntry): Promise<void> {
    await this.sql.run(
      `INSERT INTO audit (server, seq, at, actor, action, outcome, detail, count, mac)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      [
        entry.server,
        entry.seq,
        entry.at,
        entry.actor,
        entry.action,
        entry.outcome,
        entry.detail,
        entry.count,
        entry.mac,
      ],
    );
  }

  #sealPair(column: KeyColumn, { a, b }: PairEnds, pwId: number, key: Buffer): Buffer {
    return this.ring.seal('pair_keys', column, [a, b], pwId, key);
  }

  #sealGroup(id: Id, { key, pwId }: { readonly key: Buffer; readonly pwId: number }): Buffer {
    return this.ring.seal('group_keys', 'key', [id], pwId, key);
  }

  async #count(name: 'change' | 'talkers' | 'revocation', by: number): Promise<number> {
    const row = await this.sql.get(
      'UPDATE counters SET value = value + ? WHERE name = ? RETURNING value',
      [by, name],
    );
    if (row === undefined) throw new PairwireError('STORE_FAILED', `no counter ${name}`);
    return integer(row, 'value');
  }
}

class SqlStore extends SqlReads implements Store {
  #meta: StoreMeta;
  readonly #driver: SqlDriver;
  readonly #kept: MemberCache | undefined;
  /** What transactions have changed that are not committed yet: those before one in its batch. */
  readonly #uncommitted = new Set<Touched>();

  constructor(driver: SqlDriver, meta: StoreMeta, ring: KeyRing, cache: MemberCache | undefined) {
    super(driver.reader, ring);
    this.#driver = driver;
    this.#meta = meta;
    this.#kept = cache;
  }

  get meta(): StoreMeta {
    return this.#meta;
  }

  /** What was read before, while nobody else can have written. */
  get #cache(): MemberCache | undefined {
    return this.#driver.mayCache() ? this.#kept : undefined;
  }

  get rows(): RowGuard | undefined {
    return this.ring.rows;
  }

  get evicted(): number {
    return this.#kept?.evicted ?? 0;
  }

  override member(id: Id): Promise<Member | undefined> {
    return this.#cached(this.#cache?.member(id), () => super.member(id));
  }

  override memberByIndex(index: number): Promise<Member | undefined> {
    return this.#cached(talker(this.#cache?.byIndex(index)), () => super.memberByIndex(index));
  }

  override async memberByMac(mac: MacAddress): Promise<Member | undefined> {
    const known = talker(this.#cache?.byMac(mac));
    if (known !== undefined) return known;
    const generation = this.#cache?.generation ?? 0;
    const { member, shared } = await this.findMac(mac);
    // Which of several has a shared address depends on who is online.
    if (!shared) this.#cache?.keepMember(generation, member, mac);
    return member;
  }

  override async pairKey(a: Id, b: Id): Promise<PairKey | undefined> {
    const known = this.#cache?.pair(a, b);
    if (known !== undefined) return known;
    const generation = this.#cache?.generation ?? 0;
    const pair = await super.pairKey(a, b);
    this.#cache?.keepPair(generation, pair);
    return pair;
  }

  override async anyPair(a: Id, b: Id): Promise<PairKey | BrokenPair | undefined> {
    const known = this.#cache?.pair(a, b);
    if (known !== undefined) return known;
    const generation = this.#cache?.generation ?? 0;
    const pair = await super.anyPair(a, b);
    this.#cache?.keepPair(generation, pair?.key === undefined ? undefined : pair);
    return pair;
  }

  async write<T>(fn: (tx: StoreTransaction) => Promise<T>): Promise<T> {
    let touched: Touched | undefined;
    let rows: RowChange | undefined;
    let result: T;
    try {
      result = await this.#driver.transaction(async (connection) => {
        const tx = new SqlTransaction(connection, this.ring, (id) => this.#committed(id));
        ({ touched, rows } = tx);
        try {
          const done = await fn(tx);
          await rows?.finish();
          return done;
        } finally {
          if (tx.touched.changesMembers) this.#uncommitted.add(tx.touched);
        }
      });
      if (rows !== undefined) this.ring.rows?.committed(rows);
    } finally {
      // Of one that failed too: a commit whose answer was lost may have happened.
      if (touched !== undefined) {
        this.#kept?.drop(touched);
        this.#uncommitted.delete(touched);
      }
    }
    if (touched?.epoch !== undefined) this.#meta = { ...this.#meta, epoch: touched.epoch };
    return result;
  }

  prove(): Promise<void> {
    return this.#driver.prove();
  }

  close(): Promise<void> {
    return this.#driver.close();
  }

  /** A member that is in memory, unless a transaction has changed it whose commit is still to come. */
  #committed(id: Id): Member | undefined {
    for (const touched of this.#uncommitted) if (touched.hasMember(id)) return undefined;
    return this.#cache?.member(id);
  }

  async #cached(
    known: Member | undefined,
    read: () => Promise<Member | undefined>,
  ): Promise<Member | undefined> {
    if (known !== undefined) return known;
    const generation = this.#cache?.generation ?? 0;
    const member = await read();
    this.#cache?.keepMember(generation, member);
    return member;
  }
}

/** A member if it takes part in traffic. */
function talker(member: Member | undefined): Member | undefined {
  return member?.state === 'active' && TALKER_ROLES.includes(member.role) ? member : undefined;
}

function optional<T>(row: Row | undefined, convert: (row: Row) => T): T | undefined {
  return row === undefined ? undefined : convert(row);
}

const ipsSchema = z.array(z.string());
const endpointsSchema = z.array(endpointSchema);

/** A value that a column holds in another encoding. @throws PairwireError STORE_FAILED */
function column<T>(name: string, schema: z.ZodType<T>, read: () => unknown): T {
  try {
    return schema.parse(read());
  } catch {
    throw wrongColumn(name);
  }
}

function toMember(row: Row): Member {
  const ips = text(row, 'ips');
  const endpoints = blob(row, 'endpoints');
  return {
    id: text(row, 'id') as Id,
    serial: integer(row, 'serial'),
    role: text(row, 'role') as Role,
    state: text(row, 'state') as Member['state'],
    channel: blob(row, 'channel'),
    membership: { b: blob(row, 'membership'), s: blob(row, 'membership_signature') },
    identityDigest: blob(row, 'identity_digest'),
    tokenId: blob(row, 'token_id'),
    ips: ips === '[]' ? [] : column('ips', ipsSchema, () => JSON.parse(ips)),
    online: integer(row, 'online') === 1,
    endpoints:
      endpoints.length <= 1
        ? []
        : column('endpoints', endpointsSchema, () => decodeMessage(endpoints)),
    groupAsked: integer(row, 'group_asked'),
    enrolledAt: integer(row, 'enrolled_at'),
    changed: integer(row, 'changed'),
    home: serverOf(row, 'home'),
    boot: isNull(row, 'record')
      ? undefined
      : {
          record: { b: blob(row, 'record'), s: blob(row, 'record_signature') },
          key: blob(row, 'boot_key'),
          sequence: integer(row, 'sequence'),
          index: integer(row, 'sender_index'),
          registeredAt: integer(row, 'registered_at'),
        },
  };
}

/** A server's id, or undefined for this one. */
function serverOf(row: Row, name: string): Id | undefined {
  const server = text(row, name);
  return server === '' ? undefined : (server as Id);
}

const serverContactSchema = z.object({
  member: idSchema,
  servers: z.array(serverAddressSchema),
});

function toPeerServer(row: Row): PeerServer {
  const contact = blob(row, 'contact');
  const number = integer(row, 'sender_number');
  const run = text(row, 'run');
  return {
    server: text(row, 'server') as Id,
    member: serverOf(row, 'member'),
    contact:
      contact.length === 0
        ? undefined
        : column('contact', serverContactSchema, () => decodeMessage(contact)),
    number: number < 0 ? undefined : number,
    epoch: blob(row, 'epoch'),
    cursor: integer(row, 'cursor'),
    complete: integer(row, 'complete') === 1,
    timeOffset: integer(row, 'time_offset'),
    serial: integer(row, 'serial'),
    currentAt: integer(row, 'current_at'),
    run: run === '' ? undefined : Buffer.from(run, 'hex'),
  };
}

/** Bits of `confirmed`. */
const CONFIRMED_A = 1;
const CONFIRMED_B = 2;

/** What a column with a key holds: nothing if it is not even bytes, which no seal is. */
function sealedIn(row: Row, name: string): Buffer {
  const value = row[name];
  return Buffer.isBuffer(value) || value instanceof ArrayBuffer ? blob(row, name) : NOTHING;
}

/** The number of a key; 0, for which none is ever sealed, if the column holds no number that one can have. */
function generationIn(row: Row, name: string): number {
  const number = Number(row[name]);
  return Number.isSafeInteger(number) && number > 0 ? number : 0;
}

/** A key of a pair, opened. */
function openPair(ring: KeyRing, row: Row, column: KeyColumn, ends: readonly Id[]): Buffer {
  const pwId = generationIn(row, column === 'key' ? 'pw_id' : 'next_pw_id');
  return ring.open('pair_keys', column, ends, pwId, sealedIn(row, column));
}

function nextOf(
  ring: KeyRing,
  row: Row,
  ends: readonly Id[],
): { readonly key: Buffer; readonly pwId: number } | undefined {
  if (Number(row.next_pw_id) === 0) return undefined;
  return { key: openPair(ring, row, 'next_key', ends), pwId: generationIn(row, 'next_pw_id') };
}

function toAnyPair(ring: KeyRing, row: Row): PairKey | BrokenPair {
  return ring.try(
    () => toPair(ring, row),
    () => toBrokenPair(row),
  );
}

function toBrokenPair(row: Row): BrokenPair {
  return {
    a: text(row, 'a') as Id,
    b: text(row, 'b') as Id,
    key: undefined,
    pwId: Math.max(generationIn(row, 'pw_id'), generationIn(row, 'next_pw_id')),
    askedA: integer(row, 'asked_a'),
    askedB: integer(row, 'asked_b'),
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
    maker: serverOf(row, 'maker'),
  };
}

function toKnownPair(ring: KeyRing, row: Row): KnownPair {
  const a = text(row, 'a') as Id;
  const b = text(row, 'b') as Id;
  return {
    a,
    b,
    key: openPair(ring, row, 'key', [a, b]),
    pwId: integer(row, 'pw_id'),
    askedA: integer(row, 'asked_a'),
    askedB: integer(row, 'asked_b'),
  };
}

function toPair(ring: KeyRing, row: Row): PairKey {
  const known = toKnownPair(ring, row);
  const next = nextOf(ring, row, [known.a, known.b]);
  return {
    ...known,
    maker: serverOf(row, 'maker'),
    reason: text(row, 'reason'),
    createdAt: integer(row, 'created_at'),
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
    dueAt: integer(row, 'due_at'),
    next:
      next === undefined
        ? undefined
        : {
            ...next,
            reason: text(row, 'next_reason'),
            ...confirmedOf(row),
          },
  };
}

function confirmedOf(row: Row): Pick<NextGeneration, 'confirmedA' | 'confirmedB'> {
  const confirmed = integer(row, 'confirmed');
  return {
    confirmedA: (confirmed & CONFIRMED_A) !== 0,
    confirmedB: (confirmed & CONFIRMED_B) !== 0,
  };
}

function toGroup(ring: KeyRing, row: Row, next: Row | undefined): GroupKey {
  const id = text(row, 'id') as Id;
  const key = (one: Row): Buffer =>
    ring.open('group_keys', 'key', [id], generationIn(one, 'pw_id'), sealedIn(one, 'key'));
  return {
    id,
    key: key(row),
    pwId: integer(row, 'pw_id'),
    reason: text(row, 'reason'),
    createdAt: integer(row, 'created_at'),
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
    oldest: integer(row, 'oldest'),
    dueAt: integer(row, 'due_at'),
    next:
      next === undefined
        ? undefined
        : { key: key(next), pwId: integer(next, 'pw_id'), reason: text(next, 'reason') },
  };
}

function toBrokenGroup(row: Row, next: Row | undefined): BrokenGroup {
  return {
    id: text(row, 'id') as Id,
    key: undefined,
    pwId: generationIn(row, 'pw_id'),
    createdAt: integer(row, 'created_at'),
    oldest: integer(row, 'oldest'),
    dueAt: integer(row, 'due_at'),
    changed: integer(row, 'changed'),
    next: next === undefined ? undefined : { pwId: generationIn(next, 'pw_id') },
  };
}

const contactSchema: z.ZodType<NetContact> = z.object({
  subnet: idSchema,
  member: idSchema,
  servers: z.array(serverAddressSchema),
  operator: bytesSchema(KEY_SIZE),
});

function toNet(ring: KeyRing, row: Row): Net {
  const net = text(row, 'net') as Id;
  const [hasKey, hasNext] = [row.key, row.next_key].map((value) => !isEmpty(value));
  const pwId = generationIn(row, 'pw_id');
  const nextPwId = generationIn(row, 'next_pw_id');
  return {
    ...netBeside(row),
    key: hasKey ? ring.open('nets', 'key', [net], pwId, sealedIn(row, 'key')) : undefined,
    pwId,
    next: hasNext
      ? {
          key: ring.open('nets', 'next_key', [net], nextPwId, sealedIn(row, 'next_key')),
          pwId: nextPwId,
          reason: text(row, 'next_reason'),
        }
      : undefined,
  };
}

function toBrokenNet(row: Row): BrokenNet {
  const pwId = Math.max(generationIn(row, 'pw_id'), generationIn(row, 'next_pw_id'));
  return { ...netBeside(row), key: undefined, pwId, next: undefined, isBroken: true };
}

/** No bytes: there is no key. */
function isEmpty(value: unknown): boolean {
  return (Buffer.isBuffer(value) || value instanceof ArrayBuffer) && value.byteLength === 0;
}

/** What the row of a net says beside its keys. */
function netBeside(row: Row): Omit<Net, 'key' | 'pwId' | 'next'> {
  const net = text(row, 'net') as Id;
  const member = text(row, 'member');
  const contact = blob(row, 'contact');
  const list = (name: string) => column(name, ipsSchema, () => JSON.parse(text(row, name)));
  return {
    net,
    member: member === '' ? undefined : (member as Id),
    contact:
      contact.length === 0
        ? undefined
        : column('contact', contactSchema, () => decodeMessage(contact)),
    local: list('local'),
    told: list('told'),
    far: isNull(row, 'far')
      ? undefined
      : column('far', netFarSchema, () => decodeMessage(blob(row, 'far'))),
    oldest: integer(row, 'oldest'),
    reason: text(row, 'reason'),
    createdAt: integer(row, 'created_at'),
    dueAt: integer(row, 'due_at'),
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
  };
}

function toRevocation(row: Row): Revocation {
  return {
    number: integer(row, 'number'),
    member: text(row, 'member') as Id,
    revokedAt: integer(row, 'revoked_at'),
    changed: integer(row, 'changed'),
  };
}

function toMac(row: Row): MacEntry {
  return {
    mac: text(row, 'mac') as MacAddress,
    shared: text(row, 'slot') !== '',
    member: text(row, 'member') as Id,
    kind: text(row, 'kind') as MacKind,
    serial: integer(row, 'serial'),
    seenAt: integer(row, 'seen_at'),
    changed: integer(row, 'changed'),
  };
}

const movesSchema = z.array(z.number());
const heldSchema = z.record(z.string(), z.number());

function toLearned(row: Row): Learned {
  const member = text(row, 'member');
  return {
    vlan: integer(row, 'vlan'),
    mac: text(row, 'mac') as MacAddress,
    member: member === '' ? undefined : (member as Id),
    since: integer(row, 'since'),
    sighted: integer(row, 'sighted'),
    sighting: integer(row, 'sighting'),
    refreshed: integer(row, 'refreshed'),
    moves: column('moves', movesSchema, () => JSON.parse(text(row, 'moves'))),
    held: column('held', heldSchema, () => JSON.parse(text(row, 'held'))),
    frozenUntil: integer(row, 'frozen_until'),
    pinned: integer(row, 'pinned') === 1,
    kept: integer(row, 'kept') === 1,
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
  };
}

function toBinding(row: Row): Binding {
  const member = text(row, 'member');
  return {
    ip: text(row, 'ip'),
    mac: text(row, 'mac') as MacAddress,
    kind: text(row, 'kind') as BindingKind,
    member: member === '' ? undefined : (member as Id),
    since: integer(row, 'since'),
    refreshed: integer(row, 'refreshed'),
    serial: integer(row, 'serial'),
    changed: integer(row, 'changed'),
  };
}

function toAudit(row: Row): AuditEntry {
  return {
    server: text(row, 'server') as Id,
    seq: integer(row, 'seq'),
    at: integer(row, 'at'),
    actor: text(row, 'actor'),
    action: text(row, 'action'),
    outcome: text(row, 'outcome') as 'done' | 'refused',
    detail: text(row, 'detail'),
    count: integer(row, 'count'),
    mac: blob(row, 'mac'),
  };
}
