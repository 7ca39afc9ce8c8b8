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
import { type Settings, signMembership, verifyMembership } from '../src/protocol/records.js';
import { signRecord } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import {
  makeSecretFolder,
  readKeyFile,
  writeFileAtomic,
  writeKeyFile,
} from '../src/runtime/files.js';
import { createLogger } from '../src/runtime/log.js';
import { AuditLog } from './audit.js';
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
import { openDatabase } from './storage/open.js';
import { isPostgres } from './storage/postgres-target.js';
import { initialiseStore, openStore } from './storage/sql-store.js';

export const ADMIN_ID = 'admin' as Id;
export const DEFAULT_SERVER = 's1' as Id;

/** Settings that `init` and `settings` can choose. */
export interface SettingsChoice {
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
  return {
    ...before,
    version,
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
export async function initSubnet(options: InitOptions): Promise<KeyServerPaths> {
  const { subnet, dir } = options;
  const folder = resolve(dir);
  makeSecretFolder(folder);
  const input: KeyServerConfigInput = {
    subnet,
    server: options.server ?? DEFAULT_SERVER,
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
  const config = checkedConfig(input);
  const paths = pathsOf(folder, config);
  // An operator key that exists is used: one operator may have several subnets.
  for (const path of [
    paths.config,
    paths.database,
    paths.serverKey,
    paths.tokenKey,
    paths.auditKey,
    paths.adminKey,
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
    await makeFiles(options, config.server, paths);
    // Last: a folder with a configuration is complete.
    writeFileAtomic(paths.config, configText(input), { exclusive: true });
  } catch (thrown) {
    for (const name of readdirSync(folder)) if (!before.has(name)) rmSync(join(folder, name));
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

async function makeFiles(options: InitOptions, home: Id, paths: KeyServerPaths): Promise<void> {
  const { subnet } = options;
  const operatorRaw = existsSync(paths.operatorKey)
    ? readKeyFile(paths.operatorKey, KEY_KIND.operatorPrivate)
    : makeOperatorKey(paths.operatorKey);
  const operator = importPrivate('ed25519', operatorRaw);
  operatorRaw.fill(0);
  const operatorPublic = publicOf(operator);
  writeKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, operatorPublic, {
    public: true,
    replace: true,
  });
  const server = generateRawKeyPair('x25519');
  writeKeyFile(paths.serverKey, KEY_KIND.server, server.privateKey);
  writeKeyFile(paths.tokenKey, KEY_KIND.token, randomBytes(KEY_SIZE));
  const auditKey = randomBytes(KEY_SIZE);
  writeKeyFile(paths.auditKey, KEY_KIND.audit, auditKey);
  const adminChannel = generateRawKeyPair('x25519');
  writeKeyFile(paths.adminKey, KEY_KIND.admin, adminChannel.privateKey);

  const now = Date.now();
  const driver = await openDatabase(paths, { create: true });
  await initialiseStore(driver, {
    epoch: randomBytes(8),
    subnet,
    server: home,
    tag: randomInt(0, 64),
    operator: operatorPublic,
  });
  const store = await openStore(driver);
  const audit = new AuditLog({
    store,
    server: home,
    key: auditKey,
    now: () => now,
    log: createLogger('init', { level: 'warn' }),
    headFile: paths.auditHead,
  });
  try {
    const settings = choose(defaultSettings(subnet), 1, options.settings);
    const record = signRecord(LABEL.settings, { ...settings }, operator);
    const membership = adminMembership(subnet, home, operator, adminChannel.publicKey);
    const admin = verifyMembership(subnet, membership, importPublic('ed25519', operatorPublic));
    await store.write(async (tx) => {
      await makeGroupKey(tx, now, groupInterval(settings.group.rekey));
      await installSettings(tx, record, settings, undefined, now);
      const number = await tx.nextChange();
      await tx.insertMember({
        id: ADMIN_ID,
        serial: number,
        role: 'operator',
        channel: adminChannel.publicKey,
        membership,
        identityDigest: admin.identityDigest,
        tokenId: Buffer.from(admin.grant.tokenId),
        ips: [],
        enrolledAt: now,
        changed: number,
      });
      await audit.append(tx, { actor: '-', action: 'init', outcome: 'done', detail: { subnet } });
    });
  } finally {
    await audit.close();
    await store.close();
  }
  for (const secret of [server.privateKey, adminChannel.privateKey, auditKey]) secret.fill(0);
}

function makeOperatorKey(path: string): Buffer {
  const { privateKey } = generateRawKeyPair('ed25519');
  writeKeyFile(path, KEY_KIND.operatorPrivate, privateKey);
  return privateKey;
}

/** The membership of the administrator. Nobody uses its identity again, so only its channel key is kept. */
function adminMembership(
  subnet: Id,
  home: Id,
  operator: Parameters<typeof signRecord>[2],
  channel: Buffer,
): ReturnType<typeof signRecord> {
  const sign = generateRawKeyPair('ed25519');
  const box = generateRawKeyPair('x25519');
  const signKey = importPrivate('ed25519', sign.privateKey);
  for (const secret of [sign.privateKey, box.privateKey]) secret.fill(0);
  const grant = signRecord(
    LABEL.grant,
    {
      subnet,
      tokenId: randomBytes(16),
      id: ADMIN_ID,
      role: 'operator',
      home,
      macs: [],
      ips: [],
      rights: [],
      uses: 1,
      notAfter: Date.now(),
    },
    operator,
  );
  return signMembership(subnet, ADMIN_ID, grant, {
    sign: signKey,
    signPublic: sign.publicKey,
    boxPublic: box.publicKey,
    channelPublic: channel,
  });
}

function configText(config: KeyServerConfigInput): string {
  return [
    '# Pairwire key server. Every setting is explained in config/keyserver.example.yaml.',
    stringify(config),
  ].join('\n');
}
