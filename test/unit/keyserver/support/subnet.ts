/** A subnet in a temporary folder with a real key server on loopback, and members that talk to it by the real channel. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { auditSignKey } from '../../../../keyserver/audit-key.js';
import { joinCascade } from '../../../../keyserver/cascade/join.js';
import { KEY_KIND, type OwnNet } from '../../../../keyserver/config.js';
import { initSubnet, type SettingsChoice } from '../../../../keyserver/init.js';
import { KeyServer, type KeyServerOptions } from '../../../../keyserver/server.js';
import type { SqlDriver } from '../../../../keyserver/storage/sql.js';
import { openStore } from '../../../../keyserver/storage/sql-store.js';
import type { Store } from '../../../../keyserver/storage/store.js';
import type { GrantWish } from '../../../../keyserver/tokens.js';
import type { ChannelClient } from '../../../../src/net/channel-client.js';
import type { Envelope } from '../../../../src/protocol/channel/codec.js';
import { keyPairFromPrivate } from '../../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../../src/protocol/constants.js';
import { type Id, parseId } from '../../../../src/protocol/ids.js';
import { answerSchemas, type Change, pushSchema } from '../../../../src/protocol/messages.js';
import { generateRawKeyPair, importPrivate } from '../../../../src/protocol/public-keys.js';
import { type Grant, grantSchema } from '../../../../src/protocol/records.js';
import { readUnverified, type Signed, signRecord } from '../../../../src/protocol/signed.js';
import type { Token } from '../../../../src/protocol/token.js';
import type { Clock } from '../../../../src/runtime/clock.js';
import { readKeyFile } from '../../../../src/runtime/files.js';
import { createLogger, type Logger } from '../../../../src/runtime/log.js';
import { TestKms } from './kms.js';
import { openToServe, removeDatabase, ringOf, storeChoice } from './store.js';
import { HOUR, SUBNET, SubnetFolder } from './subnet-folder.js';

export { HOUR, SUBNET };

export interface SubnetOptions {
  /** Its name; `east` without it. */
  readonly subnet?: Id;
  /** Its IP prefixes. */
  readonly prefixes?: readonly string[];
  /** What single other nets are told beyond that. */
  readonly nets?: OwnNet['nets'];
  readonly settings?: SettingsChoice;
  readonly tuning?: KeyServerOptions['tuning'];
  readonly limits?: KeyServerOptions['limits'];
  readonly log?: Logger;
  readonly clock?: Clock;
  /** Runs the folder's KMS in this process, and has the settings name it with `verify`. */
  readonly kms?: boolean;
  /** Another key server of the subnet whose first one made this token. */
  readonly cascade?: { readonly token: string; readonly operatorKey: string };
}

/** A key server's folder, and the server while it runs. */
export class TestSubnet extends SubnetFolder {
  server!: KeyServer;
  store!: Store;
  driver!: SqlDriver;
  readonly #options: SubnetOptions;
  #port = 0;
  #kms: TestKms | undefined;

  private constructor(dir: string, options: SubnetOptions, server?: Id) {
    super(dir, options.subnet, server, options.cascade?.operatorKey);
    this.#options = options;
  }

  /** Makes a subnet and starts its server. */
  static async start(options: SubnetOptions = {}): Promise<TestSubnet> {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-keyserver-'));
    const { cascade } = options;
    if (cascade !== undefined) {
      const { token } = cascade;
      const how = { token, dir, listen: '127.0.0.1:7900', advertise: [] };
      const { server } = await joinCascade(how);
      const another = new TestSubnet(dir, options, server);
      await another.startServer();
      return another;
    }
    await initSubnet({
      subnet: options.subnet ?? SUBNET,
      dir,
      listen: '127.0.0.1:7900',
      advertise: [],
      // No KMS runs beside it, unless a test starts one.
      settings: { identity: options.kms === true ? 'verify' : 'off', ...options.settings },
      ...(await storeChoice()),
    });
    const subnet = new TestSubnet(dir, options);
    await subnet.startServer();
    return subnet;
  }

  get port(): number {
    return this.#port;
  }

  async startServer(): Promise<void> {
    const { tuning, limits, log, clock } = this.#options;
    if (this.#options.kms === true) this.#kms ??= await TestKms.start(this.paths);
    this.driver = await openToServe(this.paths);
    this.store = await openStore(this.driver, {
      onlyWriter: true,
      ring: await ringOf(this.driver, this.paths),
    });
    this.server = await KeyServer.start({
      store: this.store,
      listen: [{ scheme: 'tcp', host: '127.0.0.1', port: this.#port }],
      staticKeys: keyPairFromPrivate(readKeyFile(this.paths.serverKey, KEY_KIND.server)),
      tokenKey: this.tokenKey,
      auditKey: this.auditKey,
      auditSignKey: auditSignKey(this.paths),
      auditWitnessFile: this.paths.auditWitnesses,
      net: {
        id: this.subnet,
        prefixes: this.#options.prefixes ?? [],
        nets: this.#options.nets ?? new Map(),
      },
      auditHeadFile: this.paths.auditHead,
      log: log ?? createLogger('test', { level: 'silent' }),
      ...(this.#kms === undefined ? {} : { kms: this.#kms.client }),
      ...(tuning === undefined ? {} : { tuning }),
      ...(limits === undefined ? {} : { limits }),
      ...(clock === undefined ? {} : { clock }),
    });
    this.#port = this.server.addresses[0]?.port ?? 0;
  }

  async stopServer(): Promise<void> {
    await this.server.close();
    await this.store.close();
  }

  /** The KMS that runs in this process. */
  get kms(): TestKms {
    if (this.#kms === undefined) throw new Error('no KMS runs in this process');
    return this.#kms;
  }

  async close(): Promise<void> {
    this.stopClients();
    await this.stopServer();
    await this.#kms?.close();
    await removeDatabase(this.paths.database);
    rmSync(this.dir, { recursive: true, force: true });
  }

  /** A member that is enrolled and connected, not registered. */
  async enrolled(id: string, wish: Partial<GrantWish> = {}): Promise<TestMember> {
    const member = new TestMember(this, id);
    await member.enrol(this.token({ id, ...wish }));
    return member;
  }

  /** A member that is enrolled, connected and registered. */
  async member(id: string, wish: Partial<GrantWish> = {}): Promise<TestMember> {
    const member = await this.enrolled(id, wish);
    await member.register();
    return member;
  }

  /** One that has been told everything, too. */
  async ready(id: string, wish: Partial<GrantWish> = {}): Promise<TestMember> {
    const member = await this.member(id, wish);
    await member.syncAll();
    return member;
  }

  async audit(): Promise<
    readonly { action: string; actor: string; detail: unknown; count: number }[]
  > {
    const entries = await this.store.listAudit(this.serverId, 0, 10_000);
    return entries.map(({ action, actor, detail, count }) => ({
      action,
      actor,
      detail: JSON.parse(detail) as unknown,
      count,
    }));
  }
}

/** One identity with its keys; speaks the protocol as a gateway would. */
export class TestMember {
  readonly id: Id;
  readonly subnet: Pick<TestSubnet, 'client' | 'subnet'>;
  readonly sign = generateRawKeyPair('ed25519');
  readonly box = generateRawKeyPair('x25519');
  channelKeys = generateRawKeyPair('x25519');
  machine = randomBytes(16);
  nonce = randomBytes(16);
  sequence = 0;
  bootKey = generateRawKeyPair('x25519').publicKey;
  readonly pushes: Envelope[] = [];
  onPush: (message: Envelope) => void = () => {};
  client!: ChannelClient;

  constructor(subnet: Pick<TestSubnet, 'client' | 'subnet'>, id: string) {
    this.subnet = subnet;
    this.id = parseId(id);
  }

  membership(token: Token, channel: Uint8Array = this.channelKeys.publicKey): Signed {
    const key = importPrivate('ed25519', this.sign.privateKey);
    const identity = signRecord(
      LABEL.identity,
      {
        subnet: this.subnet.subnet,
        id: this.id,
        sign: this.sign.publicKey,
        box: this.box.publicKey,
      },
      key,
    );
    return signRecord(LABEL.member, { grant: token.grant, identity, channel }, key);
  }

  grantOf(token: Token): Grant {
    return readUnverified(LABEL.grant, token.grant, grantSchema);
  }

  /** Connects with a token and enrols; afterwards the connection stays. */
  async enrol(token: Token, membership: Signed = this.membership(token)): Promise<Envelope> {
    this.client?.stop();
    this.connect({ id: this.grantOf(token).tokenId, psk: token.psk });
    const answer = await this.client.request({ t: 'enrol', membership });
    this.client.forgetToken();
    return answer;
  }

  connect(token?: { id: Uint8Array; psk: Uint8Array }): ChannelClient {
    this.client = this.subnet.client(this.channelKeys.privateKey, {
      ...(token === undefined ? {} : { token }),
      onPush: (message) => {
        pushSchema.parse(message);
        this.pushes.push(message);
        this.onPush(message);
      },
    });
    return this.client;
  }

  bootRecord(change: Record<string, unknown> = {}, key = this.sign.privateKey): Signed {
    return signRecord(
      LABEL.boot,
      {
        subnet: this.subnet.subnet,
        id: this.id,
        boot: this.bootKey,
        sequence: this.sequence,
        macs: [],
        notAfter: Date.now() + HOUR,
        ...change,
      },
      importPrivate('ed25519', key),
    );
  }

  /** Registers the next start of the data plane. */
  async register(boot?: Signed): Promise<{ index: number; tag: number }> {
    this.sequence += 1;
    this.bootKey = generateRawKeyPair('x25519').publicKey;
    return this.registerAgain(boot ?? this.bootRecord());
  }

  async registerAgain(boot: Signed = this.bootRecord()): Promise<{ index: number; tag: number }> {
    return this.client.request(
      { t: 'register', boot, machine: this.machine, nonce: this.nonce },
      { parse: (answer) => answerSchemas.register.parse(answer) },
    );
  }

  keyByMac(mac: string, requester: string = this.id): Promise<KeyAnswer> {
    return this.client.request(
      { t: 'key.mac', requester, mac },
      { parse: (answer) => answerSchemas['key.mac'].parse(answer) },
    );
  }

  keyByIndex(index: number, group = false, requester: string = this.id): Promise<KeyAnswer> {
    return this.client.request(
      { t: 'key.index', requester, index, kid: 7, group },
      { parse: (answer) => answerSchemas['key.mac'].parse(answer) },
    );
  }

  async sync(cursor = 0, epoch?: Uint8Array, run?: Uint8Array): Promise<SyncAnswer> {
    return this.client.request(
      { t: 'sync', cursor, epoch, run },
      { parse: (answer) => answerSchemas.sync.parse(answer) },
    );
  }

  /** All changes after a cursor. */
  async syncAll(cursor = 0, epoch?: Uint8Array): Promise<{ changes: Change[]; cursor: number }> {
    const changes: Change[] = [];
    let at = cursor;
    let known = epoch;
    for (;;) {
      const page = await this.sync(at, known);
      changes.push(...page.changes);
      at = page.cursor;
      known = page.epoch;
      if (!page.more) return { changes, cursor: at };
    }
  }

  /** All changes that were pushed so far. */
  pushed(): Change[] {
    return this.pushes.flatMap((push) => (push.t === 'changes' ? (push.changes as Change[]) : []));
  }
}

export type KeyAnswer = ReturnType<(typeof answerSchemas)['key.mac']['parse']>;
export type SyncAnswer = ReturnType<(typeof answerSchemas)['sync']['parse']>;

/** Waits until something holds. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  what: string,
  patienceMs = 10_000,
): Promise<void> {
  const end = Date.now() + patienceMs;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
