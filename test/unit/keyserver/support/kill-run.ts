/**
 * kill -9 of a key server, and now and then of its KMS, at random moments under load: enrolments, registrations, key requests,
 * renewals, revocations and rotations of the DEK. Afterwards everything that was acknowledged is there, no generation
 * of a key was ever two keys, the audit log's chain is whole, every seal opens, and the database finds no fault with itself.
 *
 * The KMS is a process of its own that stays, and the next key server is loaded while one is under load, so that a
 * kill costs little more than the start proper. What is done and when is drawn from a seed; how far the server is by then is not.
 */
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readAuditHead, verifyAudit } from '../../../../keyserver/audit.js';
import { initSubnet } from '../../../../keyserver/init.js';
import { KMS_KEY_KIND, kmsPaths } from '../../../../keyserver/kms/config.js';
import { checkSeals } from '../../../../keyserver/storage/check-seals.js';
import { openDatabase } from '../../../../keyserver/storage/open.js';
import type { SqlDriver } from '../../../../keyserver/storage/sql.js';
import { openStore } from '../../../../keyserver/storage/sql-store.js';
import type { Store } from '../../../../keyserver/storage/store.js';
import { RequestError } from '../../../../src/net/channel.js';
import type { ChannelClient } from '../../../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../../../src/protocol/channel/keys.js';
import { GROUP_ID, type Id, orderedPair } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { answerSchemas, type Change } from '../../../../src/protocol/messages.js';
import type { Token } from '../../../../src/protocol/token.js';
import { readKeyFile } from '../../../../src/runtime/files.js';
import { PreparedProcess } from './prepared-process.js';
import { freePort } from './server-process.js';
import { ON_POSTGRES, removeDatabase, ringOf, storeChoice } from './store.js';
import { sleep, TestMember } from './subnet.js';
import { SUBNET, SubnetFolder } from './subnet-folder.js';

const WORKERS = 4;
/** A kill comes so long after the load has begun, or after so many acknowledgements, or so long after the start has. */
const LOAD_MS = 250;
const MOST_ACKNOWLEDGED = 40;
const START_MS = 400;
/** Every so many kills the KMS is killed as well. */
const KMS_EVERY = 6;
/** Every so many kills everything is compared; in between, what is new. */
const ALL_EVERY = 100;
const MOST_PEERS = 6;
const PATIENCE_MS = 120_000;
const LISTENS = 'key server listens';

export interface KillReport {
  readonly store: 'sqlite' | 'postgres';
  readonly seed: number;
  readonly kills: number;
  /** Of these, while the server started. */
  readonly killsInStart: number;
  readonly kmsKills: number;
  /** What was acknowledged. */
  readonly members: number;
  readonly revoked: number;
  readonly pairs: number;
  /** Generations of pair and group keys that somebody was given. */
  readonly generations: number;
  readonly renewals: number;
  readonly rotations: number;
  /** Comparisons of an acknowledged fact with the database. */
  readonly checked: number;
  readonly auditEntries: number;
  readonly seals: number;
  readonly seconds: number;
  /** What was lost or wrong; must be empty. */
  readonly faults: readonly string[];
}

/** Numbers in [0, 1) from a seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A subnet whose key server and KMS are killed. */
export class KillRun extends SubnetFolder {
  readonly #random: () => number;
  readonly #seed: number;
  readonly #token: Token;
  #server: PreparedProcess | undefined;
  #next = new PreparedProcess('keyserver');
  #kms: PreparedProcess | undefined;

  /** Acknowledged: members with their sender index, once they have one; pairs with the highest generation. */
  readonly #members = new Map<Id, number | undefined>();
  readonly #revoked = new Set<Id>();
  /** Asked to be revoked: they may be by now, answered or not. */
  readonly #leaving = new Set<Id>();
  readonly #pairs = new Map<string, number>();
  #group = 0;
  /** The key of each generation, of all that anybody ever saw. */
  readonly #keys = new Map<string, string>();
  readonly #fresh = { members: new Set<Id>(), pairs: new Set<string>() };
  readonly #faults = new Set<string>();
  #acknowledged = 0;
  #named = 0;
  #onAcknowledged: () => void = () => {};
  readonly #did = { kills: 0, killsInStart: 0, kmsKills: 0, renewals: 0, rotations: 0 };
  #checked = 0;

  private constructor(
    dir: string,
    readonly port: number,
    seed: number,
  ) {
    super(dir);
    this.#seed = seed;
    this.#random = randomFrom(seed);
    this.#token = this.token({ id: 'n-*', uses: 1_000_000 });
  }

  static async make(seed: number): Promise<KillRun> {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-kills-'));
    const [port, kmsPort] = [await freePort(), await freePort()];
    await initSubnet({
      subnet: SUBNET,
      dir,
      listen: `127.0.0.1:${port}`,
      advertise: [],
      settings: { replicate: 1 },
      ...(await storeChoice()),
    });
    const run = new KillRun(dir, port, seed);
    const { kms, config } = run.paths;
    const { publicKey } = keyPairFromPrivate(readKeyFile(kmsPaths(kms).key, KMS_KEY_KIND.channel));
    const file = join(kms, 'kms.yaml');
    writeFileSync(file, `${readFileSync(file, 'utf8')}listen: 127.0.0.1:${kmsPort}\n`);
    const key = publicKey.toString('base64url');
    appendFileSync(config, `kms:\n  address: 127.0.0.1:${kmsPort}\n  key: ${key}\n`);
    await run.#startKms();
    return run;
  }

  /**
   * Kills it so often.
   * @param options.minutes ends it after that time, with as many as there were
   * @param options.tell is told how far it is
   */
  async run(
    kills: number,
    options: { readonly minutes?: number; readonly tell?: (line: string) => void } = {},
  ): Promise<KillReport> {
    const { minutes = Number.POSITIVE_INFINITY, tell = () => {} } = options;
    const begin = Date.now();
    for (let round = 1; round <= kills && Date.now() - begin < minutes * 60_000; round += 1) {
      await this.#round(round);
      if (round % ALL_EVERY !== 0 && round !== kills) continue;
      const seconds = Math.round((Date.now() - begin) / 1_000);
      tell(`${round} kills in ${seconds} s, ${this.#checked} facts compared`);
    }
    await this.#begin();
    const { auditEntries, seals } = await this.#compareAll();
    return {
      store: ON_POSTGRES ? 'postgres' : 'sqlite',
      seed: this.#seed,
      ...this.#did,
      members: this.#members.size,
      revoked: this.#revoked.size,
      pairs: this.#pairs.size,
      generations: this.#keys.size,
      checked: this.#checked,
      auditEntries,
      seals,
      seconds: Math.round((Date.now() - begin) / 1_000),
      faults: [...this.#faults],
    };
  }

  /** Ends all clients, the processes, and what they have stored. */
  async remove(): Promise<void> {
    this.stopClients();
    for (const one of [this.#server, this.#next, this.#kms]) await one?.end();
    await removeDatabase(this.paths.database);
    rmSync(this.dir, { recursive: true, force: true });
  }

  // ------------------------------------------------------------------------------ killing

  async #round(round: number): Promise<void> {
    const how = this.#random();
    if (how < 0.2) {
      // While it starts: recovery of the database, DEKs from the KMS, what it resumes.
      await this.#launch();
      await sleep(this.#random() * START_MS);
      this.#did.killsInStart += 1;
      await this.#kill();
      return;
    }
    await this.#begin();
    if (round % ALL_EVERY === 0) await this.#compareAll();
    else await this.#compareFresh();
    const before = this.#acknowledged;
    const wanted = 1 + Math.floor(this.#random() * MOST_ACKNOWLEDGED);
    const counted = new Promise<void>((resolve) => {
      this.#onAcknowledged = () => {
        if (this.#acknowledged - before >= wanted) resolve();
      };
    });
    let running = true;
    const work = this.#work(round, () => running);
    // Some time, however far it is; or at the very moment of an answer.
    if (how < 0.55) await sleep(this.#random() * LOAD_MS);
    else await Promise.race([counted, sleep(PATIENCE_MS)]);
    const withKms = round % KMS_EVERY === 0;
    if (withKms && this.#random() < 0.5) {
      await this.#restartKms();
      await sleep(this.#random() * LOAD_MS);
    }
    running = false;
    await this.#kill();
    this.stopClients();
    await work;
    if (withKms) await this.#restartKms();
  }

  async #launch(): Promise<PreparedProcess> {
    const server = this.#next;
    this.#server = server;
    await server.run(this.dir);
    this.#next = new PreparedProcess('keyserver');
    return server;
  }

  async #begin(): Promise<void> {
    if (this.#server?.running === true) return;
    const server = await this.#launch();
    await server.said(LISTENS);
  }

  async #kill(): Promise<void> {
    await this.#server?.end();
    this.#server = undefined;
    this.#did.kills += 1;
  }

  async #startKms(): Promise<void> {
    const kms = new PreparedProcess('kms');
    this.#kms = kms;
    await kms.run(this.paths.kms);
    await kms.said('KMS listens');
  }

  async #restartKms(): Promise<void> {
    await this.#kms?.end();
    this.#did.kmsKills += 1;
    await this.#startKms();
  }

  // -------------------------------------------------------------------------------- load

  async #work(round: number, running: () => boolean): Promise<void> {
    const admin = this.admin();
    const workers = Array.from({ length: WORKERS }, () => this.#worker(running));
    const operator = round % 2 === 0 ? this.#operate(admin, running) : Promise.resolve();
    await Promise.allSettled([...workers, operator]);
  }

  #ack(): void {
    this.#acknowledged += 1;
    this.#onAcknowledged();
  }

  /** New members that ask for keys with others, until the server is dead. */
  async #worker(running: () => boolean): Promise<void> {
    while (running()) {
      this.#named += 1;
      const member = new TestMember(this, `n-${this.#named}`);
      member.onPush = (push) => {
        if (push.t === 'changes') this.#told(member.id, push.changes as Change[]);
      };
      await member.enrol(this.#token);
      this.#members.set(member.id, undefined);
      this.#fresh.members.add(member.id);
      this.#ack();
      const { index } = await member.register();
      this.#members.set(member.id, index);
      this.#ack();
      this.#told(member.id, (await member.sync()).changes);
      const others = [...this.#members.keys()].filter((id) => id !== member.id).slice(-40);
      for (let asked = 0; asked < MOST_PEERS && running() && others.length > 0; asked += 1) {
        const peer = this.#pick(others);
        if (peer !== undefined) await this.#ask(member, peer);
      }
    }
  }

  async #ask(member: TestMember, peer: Id): Promise<void> {
    try {
      const { key, pwId } = await member.keyByMac(defaultMac(SUBNET, peer));
      this.#note(pairOf(member.id, peer), pwId, key);
      this.#hold(pairOf(member.id, peer), pwId);
      this.#ack();
    } catch (thrown) {
      // Both may have been taken out; who is, must have been asked to be.
      const gone = this.#leaving.has(member.id) || this.#leaving.has(peer);
      if (!(thrown instanceof RequestError) || !gone) throw thrown;
    }
  }

  /** Renews keys, takes members out, changes the DEK. */
  async #operate(admin: ChannelClient, running: () => boolean): Promise<void> {
    while (running()) {
      const what = this.#random();
      const pair = this.#pick([...this.#pairs.keys()].slice(-60));
      if (what < 0.6 && pair !== undefined) {
        const [a = '', b = ''] = pair.split(' ');
        if (this.#leaving.has(a as Id) || this.#leaving.has(b as Id)) continue;
        const before = this.#pairs.get(pair) ?? 0;
        const force = this.#random() < 0.7;
        const { pairs } = await admin.request(
          { t: 'rekey', a, b, force },
          { parse: (answer) => answerSchemas.rekey.parse(answer) },
        );
        // None, if a generation was prepared before and is still to be confirmed.
        if (force && pairs > 0) this.#hold(pair, before + 1);
        this.#did.renewals += 1;
      } else if (what < 0.7) {
        await admin.request({ t: 'rekey', group: true, force: this.#random() < 0.5 });
        this.#did.renewals += 1;
      } else if (what < 0.93) {
        const id = this.#pick([...this.#members.keys()].slice(0, -20));
        if (id === undefined || this.#leaving.has(id)) {
          await sleep(20);
          continue;
        }
        this.#leaving.add(id);
        await admin.request({ t: 'revoke', member: id });
        this.#revoked.add(id);
        this.#fresh.members.add(id);
      } else {
        await admin.request({ t: 'kms.rotate', root: false });
        this.#did.rotations += 1;
      }
      this.#ack();
    }
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#random() * list.length)];
  }

  // ------------------------------------------------------------------------------- facts

  #told(id: Id, changes: readonly Change[]): void {
    for (const change of changes) {
      if (change.kind !== 'pair' && change.kind !== 'group') continue;
      const name = change.kind === 'group' ? GROUP_ID : pairOf(id, change.peer);
      this.#note(name, change.pwId, change.key);
      if (change.next !== undefined) this.#note(name, change.next.pwId, change.next.key);
      // What somebody was given counts as told, whether by an answer or a push.
      if (change.kind === 'group') this.#group = Math.max(this.#group, change.pwId);
      else this.#hold(name, change.pwId);
    }
  }

  /** A generation has one key, for everybody and for ever. */
  #note(name: string, pwId: number, key: Uint8Array): void {
    const generation = `${name} ${pwId}`;
    const text = Buffer.from(key).toString('hex');
    if ((this.#keys.get(generation) ?? text) !== text) this.#faults.add(`two keys: ${generation}`);
    this.#keys.set(generation, text);
  }

  #hold(pair: string, pwId: number): void {
    this.#pairs.set(pair, Math.max(pwId, this.#pairs.get(pair) ?? 0));
    this.#fresh.pairs.add(pair);
  }

  async #withStore<T>(look: (store: Store, driver: SqlDriver) => Promise<T>): Promise<T> {
    const driver = await openDatabase(this.paths);
    try {
      const ring = await ringOf(driver, this.paths);
      return await look(await openStore(driver, { ring }), driver);
    } finally {
      await driver.close();
    }
  }

  /** What is new since the last comparison. */
  async #compareFresh(): Promise<void> {
    const { members, pairs } = this.#fresh;
    if (members.size + pairs.size === 0) return;
    await this.#withStore((store) => this.#compare(store, [...members], [...pairs]));
    members.clear();
    pairs.clear();
  }

  async #compareAll(): Promise<{ auditEntries: number; seals: number }> {
    const { paths } = this;
    this.#fresh.members.clear();
    this.#fresh.pairs.clear();
    return this.#withStore(async (store, driver) => {
      const head = readAuditHead(paths.auditHead);
      await this.#compare(store, [...this.#members.keys()], [...this.#pairs.keys()]);
      const group = await store.groupKey(GROUP_ID);
      if ((group?.pwId ?? 0) < this.#group) this.#faults.add('the group key is an older one');
      if (group !== undefined) this.#note(GROUP_ID, group.pwId, group.key);
      const { entries, broken } = await verifyAudit(store, store.meta.server, this.auditKey, head);
      if (broken !== undefined) this.#faults.add(`audit: ${JSON.stringify(broken)}`);
      await this.#compareAudit(store);
      for (const fault of await integrity(driver)) this.#faults.add(fault);
      // A round of all rows wants the lease there.
      const wrong = ON_POSTGRES ? [] : ((await store.rows?.check()) ?? []);
      for (const { table, name, why } of wrong) {
        this.#faults.add(`row of ${table} ${name}: ${why}`);
      }
      const seals = await checkSeals(driver.reader, await ringOf(driver, paths));
      return { auditEntries: entries, seals };
    });
  }

  async #compare(store: Store, members: readonly Id[], pairs: readonly string[]): Promise<void> {
    for (const id of members) {
      this.#checked += 1;
      const member = await store.member(id);
      const index = this.#members.get(id);
      if (member === undefined) this.#faults.add(`the member ${id} is lost`);
      else if (this.#revoked.has(id)) {
        const listed = await store.revocationOf(id);
        if (member.state === 'active' || listed === undefined)
          this.#faults.add(`the revocation of ${id} is lost`);
      } else if (!this.#leaving.has(id)) {
        if (member.state !== 'active') this.#faults.add(`${id} is ${member.state}`);
        if (index !== undefined && (await store.memberByIndex(index))?.id !== id)
          this.#faults.add(`the sender index of ${id} is lost`);
      }
    }
    for (const name of pairs) {
      const [a = '', b = ''] = name.split(' ');
      if (this.#leaving.has(a as Id) || this.#leaving.has(b as Id)) continue;
      this.#checked += 1;
      const least = this.#pairs.get(name) ?? 0;
      const pair = await store.pairKey(a as Id, b as Id);
      if (pair === undefined || pair.pwId < least) {
        this.#faults.add(`the key of ${name} is ${pair?.pwId}, not ${least}`);
        continue;
      }
      this.#note(name, pair.pwId, pair.key);
      if (pair.next !== undefined) this.#note(name, pair.next.pwId, pair.next.key);
    }
  }

  /** What was acknowledged is in the log too. */
  async #compareAudit(store: Store): Promise<void> {
    const enrolled = new Set<string>();
    const revoked = new Set<string>();
    for (let after = 0; ; ) {
      const page = await store.listAudit(store.meta.server, after, 1_000);
      for (const { seq, action, actor, detail } of page) {
        after = seq;
        if (action === 'enrol') enrolled.add(actor);
        if (action === 'revoke')
          revoked.add((JSON.parse(detail) as { member?: string }).member ?? '');
      }
      if (page.length < 1_000) break;
    }
    for (const id of this.#members.keys()) {
      if (!enrolled.has(id)) this.#faults.add(`the audit log has no enrolment of ${id}`);
    }
    for (const id of this.#revoked) {
      if (!revoked.has(id)) this.#faults.add(`the audit log has no revocation of ${id}`);
    }
    this.#checked += this.#members.size + this.#revoked.size;
  }
}

function pairOf(a: Id, b: Id): string {
  return orderedPair(a, b).join(' ');
}

/** What the database finds wrong with itself. */
async function integrity(driver: SqlDriver): Promise<readonly string[]> {
  if (!ON_POSTGRES) {
    const rows = await driver.reader.all('PRAGMA integrity_check', []);
    const orphans = await driver.reader.all('PRAGMA foreign_key_check', []);
    return [
      ...rows.map(({ integrity_check: said }) => String(said)).filter((said) => said !== 'ok'),
      ...orphans.map((row) => `foreign key: ${JSON.stringify(row)}`),
    ];
  }
  // Each index has every row of its table, in order.
  await driver.reader.run('CREATE EXTENSION IF NOT EXISTS amcheck', []);
  try {
    await driver.reader.all(
      `SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
         JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam
       WHERE n.nspname = 'public' AND a.amname = 'btree'`,
      [],
    );
    return [];
  } catch (thrown) {
    return [String(thrown)];
  }
}
