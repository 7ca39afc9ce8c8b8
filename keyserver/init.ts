/**
 * Makes a subnet: operator key, the server's own keys, database with group key, signed
 * settings, and an administrator (a member with the role operator) for the commands that
 * talk to the running server.
 *
 * Every key lies in a file of its own with mode 0600. The operator key is better kept off
 * this machine (`--operator-key`): the server itself never needs it.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { KEY_SIZE, LABEL, type Suite } from '../src/protocol/constants.js';
import type { Id } from '../src/protocol/ids.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
  publicOf,
} from '../src/protocol/public-keys.js';
import {
  type Settings,
  signMembership,
  verifyMembership,
  verifySettings,
} from '../src/protocol/records.js';
import { type Signed, signRecord } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import {
  makeSecretFolder,
  readKeyFile,
  writeFileAtomic,
  writeKeyFile,
} from '../src/runtime/files.js';
import { createLogger } from '../src/runtime/log.js';
import { AuditLog } from './audit.js';
import { makeAuditSignKey } from './audit-key.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerConfigInput,
  type KeyServerPaths,
  keyServerConfigSchema,
  pathsOf,
} from './config.js';
import { groupInterval, installSettings } from './current-settings.js';
import { makeGroupKey } from './keys/group-key.js';
import { kmsPublicKey, makeKms } from './kms/folder.js';
import { LocalDeks } from './kms/local-deks.js';
import type { RootKeys } from './kms/root-keys.js';
import { openDatabase } from './storage/open.js';
import { isPostgres } from './storage/postgres-target.js';
import { initialiseStore, openStore } from './storage/sql-store.js';
import type { StoreMeta, StoreTransaction } from './storage/store.js';
import { unlock } from './storage/unlock.js';
import { ADMIN_ID, adminGrant } from './tokens.js';

export const DEFAULT_SERVER = 's1' as Id;

/** Settings that `init` and `settings` can choose. */
export interface SettingsChoice {
  /** Whether gateways have the KMS confirm who a peer is. */
  readonly identity?: Settings['verify'] | undefined;
  /** The KMSes of key servers, to be named from now on; without a key: to be named no more. */
  readonly kms?:
    | readonly { readonly server: Id; readonly key?: Uint8Array | undefined }[]
    | undefined;
  readonly hold?: number | undefined;
  readonly suite?: Suite | undefined;
  readonly freshnessMs?: number | undefined;
  readonly leaseSeconds?: number | undefined;
  readonly rekeySeconds?: number | undefined;
  readonly bootSeconds?: number | undefined;
  readonly groupRekey?: Settings['group']['rekey'] | undefined;
  readonly replicate?: number | undefined;
  readonly unknown?: Settings['unknown'] | undefined;
  /** The default plain port; null: none is named. */
  readonly defaultPlain?: Id | null | undefined;
}

export interface InitOptions {
  readonly subnet: Id;
  readonly server?: Id;
  readonly dir: string;
  readonly listen: string | readonly string[];
  readonly advertise: readonly string[];
  /** Where the operator key is or shall be; DIR/operator.key without it. */
  readonly operatorKey?: string;
  readonly metrics?: string;
  /** A file of SQLite, or the URL of a PostgreSQL server with an empty database; DIR/keyserver.db without it. */
  readonly database?: string;
  /** File with the password for PostgreSQL. */
  readonly databasePasswordFile?: string;
  /** IP:PORT where members reach the relay; none without it. */
  readonly relay?: string;
  /** Its net id; its name without it. */
  readonly net?: Id;
  /** IP prefixes of the subnet, as others are told of them. */
  readonly prefixes?: readonly string[];
  readonly settings: SettingsChoice;
}

/** The settings of a new subnet. */
export function defaultSettings(subnet: Id): Settings {
  return {
    subnet,
    version: 1,
    suite: 'aes-256-gcm',
    freshnessMs: 30_000,
    hold: 64,
    leaseSeconds: 86_400,
    rekeySeconds: 3_600,
    bootSeconds: 3_600,
    verify: 'verify',
    group: { mode: 'shared', replicate: 256, rekey: 86_400 },
    unknown: 'refuse',
    plain: {},
  };
}

/** Settings with what was chosen in place. */
export function choose(before: Settings, version: number, choice: SettingsChoice): Settings {
  const { kms } = choice;
  const named = new Map((before.kms ?? []).map(({ server, key }) => [server, key]));
  for (const { server, key } of kms ?? []) {
    if (key === undefined) named.delete(server);
    else named.set(server, key);
  }
  return {
    ...before,
    version,
    verify: choice.identity ?? before.verify,
    ...(kms === undefined ? {} : { kms: [...named].map(([server, key]) => ({ server, key })) }),
    suite: choice.suite ?? before.suite,
    freshnessMs: choice.freshnessMs ?? before.freshnessMs,
    hold: choice.hold ?? before.hold,
    leaseSeconds: choice.leaseSeconds ?? before.leaseSeconds,
    rekeySeconds: choice.rekeySeconds ?? before.rekeySeconds,
    bootSeconds: choice.bootSeconds ?? before.bootSeconds,
    group: {
      ...before.group,
      replicate: choice.replicate ?? before.group.replicate,
      rekey: choice.groupRekey ?? before.group.rekey,
    },
    unknown: choice.unknown ?? before.unknown,
    plain:
      choice.defaultPlain === undefined
        ? before.plain
        : choice.defaultPlain === null
          ? {}
          : { default: choice.defaultPlain },
  };
}

/**
 * Makes a subnet in a folder.
 * @throws PairwireError FILE_EXISTS: nothing is ever overwritten
 */
export function initSubnet(options: InitOptions): Promise<KeyServerPaths> {
  const { subnet, dir } = options;
  const server = options.server ?? DEFAULT_SERVER;
  return makeFolder(dir, configInput({ ...options, server }), (paths) =>
    makeFirst(subnet, options.settings, server, paths),
  );
}

/** What stands in keyserver.yaml. */
export function configInput(
  options: Omit<InitOptions, 'settings' | 'dir'> & { readonly server: Id },
): KeyServerConfigInput {
  const { subnet, server } = options;
  return {
    subnet,
    server,
    listen: typeof options.listen === 'string' ? options.listen : [...options.listen],
    ...(options.advertise.length === 0 ? {} : { advertise: [...options.advertise] }),
    ...(options.operatorKey === undefined ? {} : { operatorKey: resolve(options.operatorKey) }),
    ...(options.database === undefined
      ? {}
      : {
          database: isPostgres(options.database) ? options.database : resolve(options.database),
        }),
    ...(options.databasePasswordFile === undefined
      ? {}
      : { databasePasswordFile: resolve(options.databasePasswordFile) }),
    ...(options.relay === undefined ? {} : { relay: { listen: options.relay } }),
    ...(options.net === undefined ? {} : { net: options.net }),
    ...((options.prefixes ?? []).length === 0 ? {} : { prefixes: [...(options.prefixes ?? [])] }),
    ...(options.metrics === undefined ? {} : { metrics: { listen: options.metrics } }),
  };
}

/**
 * Makes the folder of a key server; if that fails, nothing of it stays.
 * @param make makes all but the configuration
 * @throws PairwireError FILE_EXISTS: nothing is ever overwritten
 */
export async function makeFolder(
  dir: string,
  input: KeyServerConfigInput,
  make: (paths: KeyServerPaths) => Promise<void>,
): Promise<KeyServerPaths> {
  const folder = resolve(dir);
  makeSecretFolder(folder);
  const paths = pathsOf(folder, checkedConfig(input));
  // An operator key that exists is used: one operator may have several subnets.
  for (const path of [
    paths.config,
    paths.database,
    paths.serverKey,
    paths.tokenKey,
    paths.auditKey,
    paths.auditSignKey,
    paths.adminKey,
    paths.kms,
  ]) {
    if (existsSync(path)) {
      throw new PairwireError('FILE_EXISTS', 'there is a key server in this folder already', {
        where: path,
        hint: 'choose an empty folder, or start this one: pairwire keyserver --dir',
      });
    }
  }
  const before = new Set(readdirSync(folder));
  try {
    await make(paths);
    // Last: a folder with a configuration is complete.
    writeFileAtomic(paths.config, configText(input), { exclusive: true });
  } catch (thrown) {
    for (const name of readdirSync(folder)) {
      if (!before.has(name)) {
        rmSync(join(folder, name), { recursive: true });
      }
    }
    throw thrown;
  }
  return paths;
}

/** @throws PairwireError USAGE for what the configuration would not take */
function checkedConfig(input: KeyServerConfigInput): KeyServerConfig {
  const checked = keyServerConfigSchema.safeParse(input);
  if (checked.success) return checked.data;
  const [issue] = checked.error.issues;
  throw new PairwireError(
    'USAGE',
    `${issue?.path.join('.') ?? 'the configuration'}: ${issue?.message ?? 'cannot be used'}`,
  );
}

/** What the parts of a new key server need of its keys. */
export interface NewKeys {
  readonly tokenKey: Buffer;
  readonly auditKey: Buffer;
  readonly adminPublic: Buffer;
  readonly serverPublic: Buffer;
}

/**
 * Makes a server's own keys, and pins the operator's.
 * @param tokenKey one that was made before, by which others know this server
 */
export function writeServerKeys(
  paths: KeyServerPaths,
  operatorPublic: Uint8Array,
  tokenKey: Buffer = randomBytes(KEY_SIZE),
): NewKeys {
  writeKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, Buffer.from(operatorPublic), {
    public: true,
    replace: true,
  });
  const server = generateRawKeyPair('x25519');
  writeKeyFile(paths.serverKey, KEY_KIND.server, server.privateKey);
  writeKeyFile(paths.tokenKey, KEY_KIND.token, tokenKey);
  const auditKey = randomBytes(KEY_SIZE);
  writeKeyFile(paths.auditKey, KEY_KIND.audit, auditKey);
  makeAuditSignKey(paths);
  const admin = generateRawKeyPair('x25519');
  writeKeyFile(paths.adminKey, KEY_KIND.admin, admin.privateKey);
  for (const secret of [server.privateKey, admin.privateKey]) secret.fill(0);
  return {
    ...{ tokenKey, auditKey },
    adminPublic: admin.publicKey,
    serverPublic: server.publicKey,
  };
}

/** What a new store holds. */
export interface NewStore extends Omit<StoreMeta, 'epoch'> {
  readonly settings: Signed;
  /** The grant of its administrator. */
  readonly admin: Signed;
  readonly now: number;
  readonly auditDetail: Readonly<Record<string, string>>;
  /** The root key of a KMS that was made already. */
  readonly roots?: RootKeys;
  /** Stores the group key and whatever else there is. */
  fill(tx: StoreTransaction): Promise<void>;
}

/** Makes a server's store, and the KMS whose root key seals its keys. @throws PairwireError RECORD_...: settings or grant are not the operator's */
export async function makeStore(
  paths: KeyServerPaths,
  { auditKey, adminPublic, serverPublic }: NewKeys,
  made: NewStore,
): Promise<void> {
  const { subnet, server, now } = made;
  const driver = await openDatabase(paths, { create: true });
  await initialiseStore(driver, { ...made, epoch: randomBytes(8) });
  // Both are made here, so this once the root key is at hand; from the first start on only the KMS has it.
  const { operator: operatorKey } = made;
  const whom = { subnet, server, serverKey: serverPublic, operator: operatorKey };
  const roots = made.roots ?? makeKms(paths.kms, whom);
  const service = new LocalDeks(roots, { subnet, server });
  const store = await openStore(driver, {
    ring: await unlock(driver, { service, markFile: paths.sealMark }),
  });
  const audit = new AuditLog({
    store,
    server,
    key: auditKey,
    now: () => now,
    log: createLogger('init', { level: 'warn' }),
    headFile: paths.auditHead,
  });
  try {
    const operator = importPublic('ed25519', made.operator);
    const settings = verifySettings(subnet, made.settings, operator, 0);
    const membership = adminMembership(subnet, made.admin, adminPublic);
    const admin = verifyMembership(subnet, membership, operator);
    await store.write(async (tx) => {
      await made.fill(tx);
      await installSettings(tx, made.settings, settings, undefined, now);
      const number = await tx.nextChange();
      await tx.insertMember({
        id: ADMIN_ID,
        serial: number,
        role: 'operator',
        channel: adminPublic,
        membership,
        identityDigest: admin.identityDigest,
        tokenId: Buffer.from(admin.grant.tokenId),
        ips: [],
        enrolledAt: now,
        changed: number,
      });
      const detail = made.auditDetail;
      await audit.append(tx, { actor: '-', action: 'init', outcome: 'done', detail });
    });
  } finally {
    await audit.close();
    await store.close();
  }
}

async function makeFirst(
  subnet: Id,
  choice: SettingsChoice,
  server: Id,
  paths: KeyServerPaths,
): Promise<void> {
  const operatorRaw = existsSync(paths.operatorKey)
    ? readKeyFile(paths.operatorKey, KEY_KIND.operatorPrivate)
    : makeOperatorKey(paths.operatorKey);
  const operator = importPrivate('ed25519', operatorRaw);
  operatorRaw.fill(0);
  const operatorPublic = publicOf(operator);
  const keys = writeServerKeys(paths, operatorPublic);
  const now = Date.now();
  const { serverPublic } = keys;
  const roots = makeKms(paths.kms, {
    ...{ subnet, server, serverKey: serverPublic, operator: operatorPublic },
  });
  const kms = [{ server, key: kmsPublicKey(paths.kms) }];
  const settings = choose({ ...defaultSettings(subnet), kms }, 1, choice);
  await makeStore(paths, keys, {
    ...{ subnet, server, tag: randomInt(0, 64), operator: operatorPublic, number: 0, now, roots },
    settings: signRecord(LABEL.settings, { ...settings }, operator),
    admin: adminGrant(subnet, server, operator, now),
    auditDetail: { subnet },
    fill: (tx) => makeGroupKey(tx, now, groupInterval(settings.group.rekey)),
  });
  for (const secret of [keys.tokenKey, keys.auditKey]) secret.fill(0);
}

function makeOperatorKey(path: string): Buffer {
  const { privateKey } = generateRawKeyPair('ed25519');
  writeKeyFile(path, KEY_KIND.operatorPrivate, privateKey);
  return privateKey;
}

/** The membership of the administrator. Nobody uses its identity again, so only its channel key is kept. */
function adminMembership(subnet: Id, grant: Signed, channel: Buffer): Signed {
  const sign = generateRawKeyPair('ed25519');
  const box = generateRawKeyPair('x25519');
  const signKey = importPrivate('ed25519', sign.privateKey);
  for (const secret of [sign.privateKey, box.privateKey]) secret.fill(0);
  return signMembership(subnet, ADMIN_ID, grant, {
    sign: signKey,
    signPublic: sign.publicKey,
    boxPublic: box.publicKey,
    channelPublic: channel,
  });
}

/** The text of keyserver.yaml. */
function configText(config: KeyServerConfigInput): string {
  return [
    '# Pairwire key server. Every setting is explained in config/keyserver.example.yaml.',
    stringify(config),
  ].join('\n');
}
