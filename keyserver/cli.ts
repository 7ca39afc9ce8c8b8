/**
 * Commands of the key server: init, keyserver, token, settings, and the lists
 * members, keys, macs, audit and ip. Each takes --json and has an example in its --help.
 */
import { join } from 'node:path';
import { type Command, Option } from 'commander';
import {
  action,
  collectOption,
  type OutputTarget,
  parseDuration,
  parseInteger,
  printFields,
} from '../src/cli/output.js';
import { readTokenInput } from '../src/cli/token-input.js';
import { SUITES, type Suite } from '../src/protocol/constants.js';
import { ipSchema } from '../src/protocol/ip.js';
import { type MacAddress, macSchema } from '../src/protocol/mac.js';
import { tagSchema } from '../src/protocol/policy.js';
import { RIGHTS, type Right, ROLES, type Role, type Settings } from '../src/protocol/records.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { auditCommands } from './audit-commands.js';
import { backupCommands } from './backup-commands.js';
import { joinCascade } from './cascade/join.js';
import { changeSettings, withSettings } from './change-settings.js';
import {
  asOperator,
  columns,
  example,
  type ListCommand,
  printList,
  printToken,
  readTokenKeys,
  usable,
} from './command-tools.js';
import {
  DEFAULT_PORT,
  KEY_KIND,
  loadKeyServerConfig,
  pathsOf,
  requireChannelAddress,
  requireHostPort,
} from './config.js';
import { choose, DEFAULT_SERVER, initSubnet, type SettingsChoice } from './init.js';
import { kmsPaths, loadKmsConfig } from './kms/config.js';
import { kmsPublicKey } from './kms/folder.js';
import { kmsCommands } from './kms-commands.js';
import { peerCommands } from './peer-commands.js';
import { policyCommands } from './policy-commands.js';
import { runKeyServer } from './run.js';

/** Adds the key server's commands to a program. */
export function keyserverCommands(program: Command): void {
  initCommand(program);
  runCommand(program);
  tokenCommand(program);
  settingsCommand(program);
  policyCommands(program);
  rekeyCommand(program);
  revokeCommand(program);
  backupCommands(program);
  kmsCommands(program);
  macCommand(program);
  ipCommand(program);
  peerCommands(program);
  listCommands(program);
  auditCommands(program);
}

// ------------------------------------------------------------------------------ init

interface SettingsFlags {
  readonly identity?: Settings['verify'];
  readonly hold?: string;
  readonly suite?: Suite;
  readonly freshness?: string;
  readonly lease?: string;
  readonly rekey?: string;
  readonly rekeyBoot?: string;
  readonly rekeyGroup?: string;
  readonly replicate?: string;
  readonly unknown?: Settings['unknown'];
  readonly defaultPlain?: string;
}

interface InitFlags extends SettingsFlags {
  readonly subnet?: string;
  readonly cascade?: string;
  readonly tokenFile?: string;
  readonly dir: string;
  readonly server?: string;
  readonly listen: readonly string[];
  readonly advertise: readonly string[];
  readonly operatorKey?: string;
  readonly metrics?: string;
  readonly database?: string;
  readonly databasePasswordFile?: string;
  readonly relay?: string;
  readonly net?: string;
  readonly prefix: readonly string[];
}

function initCommand(program: Command): void {
  const command = program
    .command('init')
    .description(
      'make a subnet: operator key, configuration, keys, database; or another key server of one (--cascade)',
    )
    .option('--subnet <name>', 'name of the subnet')
    .requiredOption('--dir <dir>', 'folder of the key server; made if it does not exist')
    .option('--server <id>', `id of this key server (default: ${DEFAULT_SERVER})`)
    .option(
      '--cascade <token>',
      'make another key server of the subnet whose first one printed this token (`peer token --server`), or - for standard input',
    )
    .option('--token-file <file>', 'read the token of --cascade from a file')
    .option(
      '--listen <address>',
      `where it accepts members: HOST:PORT (TCP), udp://HOST:PORT, http://HOST:PORT; repeatable (default: 0.0.0.0:${DEFAULT_PORT})`,
      collectOption,
      [],
    )
    .option('--advertise <address>', 'address that join tokens name; repeatable', collectOption, [])
    .option('--operator-key <file>', 'operator key, used if it exists; best off this machine')
    .option(
      '--database <where>',
      'SQLite file, or postgres://USER@HOST/DATABASE (an empty one); default: keyserver.db in the folder',
    )
    .option('--database-password-file <file>', 'file with the password for PostgreSQL (mode 0600)')
    .option('--relay <ip:port>', 'run a relay for members behind NAT boxes at this UDP address')
    .option('--metrics <host:port>', 'serve /metrics here (loopback)')
    .option('--net <net>', 'net id by which other subnets know this one; default: its name')
    .option('--prefix <prefix>', 'IP prefix of this subnet; repeatable', collectOption, []);
  settingsOptions(command)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire init --subnet east --dir /etc/pairwire/east --advertise 192.0.2.10:7900') +
        '  $ pairwire init --cascade - --dir /etc/pairwire/east --advertise 192.0.2.11:7900 < token\n',
    )
    .action(
      action(async (target, flags: InitFlags) => {
        for (const address of flags.advertise) requireChannelAddress(address, '--advertise');
        for (const address of flags.listen) requireChannelAddress(address, '--listen');
        if (flags.metrics !== undefined) requireHostPort(flags.metrics, '--metrics');
        if (flags.relay !== undefined) requireHostPort(flags.relay, '--relay');
        if (flags.cascade !== undefined || flags.tokenFile !== undefined) {
          await joinByToken(target, flags);
          return;
        }
        if (flags.subnet === undefined) {
          throw new PairwireError('USAGE', 'name the subnet', {
            hint: 'pairwire init --subnet NAME; or --cascade TOKEN for another key server of one',
          });
        }
        const subnet = usable(flags.subnet, '--subnet');
        const paths = await initSubnet({
          subnet,
          server: usable(flags.server ?? DEFAULT_SERVER, '--server'),
          dir: flags.dir,
          listen: oneOrAll(flags.listen) ?? `0.0.0.0:${DEFAULT_PORT}`,
          advertise: flags.advertise,
          settings: settingsChoice(flags),
          ...(flags.operatorKey === undefined ? {} : { operatorKey: flags.operatorKey }),
          ...(flags.metrics === undefined ? {} : { metrics: flags.metrics }),
          ...(flags.relay === undefined ? {} : { relay: flags.relay }),
          ...(flags.database === undefined ? {} : { database: flags.database }),
          ...(flags.databasePasswordFile === undefined
            ? {}
            : { databasePasswordFile: flags.databasePasswordFile }),
          ...(flags.net === undefined ? {} : { net: usable(flags.net, '--net') }),
          prefixes: flags.prefix,
        });
        const operator = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, {
          public: true,
        });
        printFields(target, {
          subnet,
          config: paths.config,
          operatorKey: paths.operatorKey,
          operator: operator.toString('base64url'),
          rootKey: join(paths.kms, 'root-1.key'),
          next: `pairwire keyserver --dir ${flags.dir}`,
        });
      }),
    );
}

/** Makes another key server of a subnet. */
async function joinByToken(target: OutputTarget, flags: InitFlags): Promise<void> {
  const { subnet: name, server: wished } = flags;
  if (Object.values(settingsChoice(flags)).some((value) => value !== undefined)) {
    throw new PairwireError(
      'USAGE',
      'the settings of a subnet are those of its other key servers',
      {
        hint: 'change them with `pairwire settings`',
      },
    );
  }
  if (name !== undefined || wished !== undefined) {
    throw new PairwireError('USAGE', 'the token says of which subnet and which server it is');
  }
  const usage = 'pairwire init --dir DIR --cascade';
  const token = readTokenInput(target, flags.cascade, flags.tokenFile, usage).trim();
  const { paths, subnet, server } = await joinCascade({
    token,
    dir: flags.dir,
    listen: oneOrAll(flags.listen) ?? `0.0.0.0:${DEFAULT_PORT}`,
    advertise: flags.advertise,
    prefixes: flags.prefix,
    ...(flags.operatorKey === undefined ? {} : { operatorKey: flags.operatorKey }),
    ...(flags.metrics === undefined ? {} : { metrics: flags.metrics }),
    ...(flags.relay === undefined ? {} : { relay: flags.relay }),
    ...(flags.net === undefined ? {} : { net: usable(flags.net, '--net') }),
  });
  const next = `pairwire keyserver --dir ${flags.dir}`;
  // Only the operator's signature makes gateways ask it: his key is at another server.
  const kms = kmsPublicKey(paths.kms).toString('base64url');
  const nameKms = `pairwire settings --dir DIR --kms ${server}=${kms}, where the operator key is`;
  printFields(target, { subnet, server, config: paths.config, kms, next, nameKms });
}

/** A single address stands in the file as it is. */
function oneOrAll(addresses: readonly string[]): string | readonly string[] | undefined {
  return addresses.length > 1 ? addresses : addresses[0];
}

// ------------------------------------------------------------------------- keyserver

function runCommand(program: Command): void {
  program
    .command('keyserver')
    .description('run the key server in the foreground')
    .requiredOption('--dir <dir>', 'folder that `pairwire init` made')
    .option('--check', 'check the configuration and exit')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire keyserver --dir /etc/pairwire/east'))
    .action(
      action(async (target, flags: { dir: string; check?: true }) => {
        if (flags.check !== true) {
          await runKeyServer(flags.dir);
          return;
        }
        const config = loadKeyServerConfig(flags.dir);
        printFields(target, {
          subnet: config.subnet,
          server: config.server,
          listen: [config.listen].flat().join(', '),
        });
      }),
    );
}

// ----------------------------------------------------------------------------- token

interface TokenFlags {
  readonly dir: string;
  readonly id: string;
  readonly role: Role;
  readonly mac: readonly string[];
  readonly ip: readonly string[];
  readonly grant: readonly string[];
  readonly tag: readonly string[];
  readonly ttl: string;
  readonly uses: string;
  readonly operatorKey?: string;
}

function tokenCommand(program: Command): void {
  program
    .command('token')
    .description('print a join token (works without the server)')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .requiredOption('--id <id>', 'id of the new member; web-* serves every id that begins so')
    .addOption(new Option('--role <role>', 'role of the member').choices(ROLES).default('host'))
    .option(
      '--mac <mac>',
      'MAC address it may use; repeatable; default: one made from its id',
      collectOption,
      [],
    )
    .option(
      '--ip <prefix>',
      'IP address or prefix that is bound to it; repeatable',
      collectOption,
      [],
    )
    .option(
      '--grant <rights>',
      `rights, separated by commas: ${RIGHTS.join(', ')}`,
      collectOption,
      [],
    )
    .option('--tag <tag>', 'what a policy may call it; repeatable', collectOption, [])
    .option('--ttl <time>', 'how long it may be used', '1h')
    .option('--uses <n>', 'how many members may enrol with it', '1')
    .option('--operator-key <file>', 'operator key, if it is not where the configuration says')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire token --dir /etc/pairwire/east --id alice --ip 10.1.0.2 --ttl 15m'),
    )
    .action(
      action((target, flags: TokenFlags) => {
        const config = loadKeyServerConfig(flags.dir);
        const paths = pathsOf(flags.dir, config);
        const rights = flags.grant.flatMap((text) => text.split(',')).filter((text) => text !== '');
        const wrong = rights.find((right) => !(RIGHTS as readonly string[]).includes(right));
        if (wrong !== undefined) {
          throw new PairwireError('USAGE', `--grant: "${wrong}" is no right`, {
            hint: `allowed: ${RIGHTS.join(', ')}`,
          });
        }
        const macs = flags.mac.map((text) => macAddress(text, '--mac'));
        const uses = parseInteger(flags.uses, '--uses', 1, 1_000_000);
        const notAfter = Date.now() + parseDuration(flags.ttl, '--ttl');
        printToken(target, config, readTokenKeys(paths, flags.operatorKey), {
          id: flags.id,
          role: flags.role,
          macs,
          ips: [...flags.ip],
          rights: rights as Right[],
          ...(flags.tag.length === 0 ? {} : { tags: flags.tag.map(policyTag) }),
          uses,
          notAfter,
        });
      }),
    );
}

// -------------------------------------------------------------------------- settings

interface SettingsCommandFlags extends SettingsFlags {
  readonly dir: string;
  readonly operatorKey?: string;
  readonly kms?: readonly string[];
}

function settingsCommand(program: Command): void {
  const command = program
    .command('settings')
    .description("show the subnet's security settings, or sign and install new ones")
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--operator-key <file>', 'operator key, if it is not where the configuration says');
  settingsOptions(command)
    .option(
      '--kms <server=key...>',
      'public key of the KMS of another key server of the subnet, that gateways ask about its members; `SERVER=-`: none any more',
    )
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire settings --dir /etc/pairwire/east --freshness 10s'))
    .action(
      action(async (target, flags: SettingsCommandFlags) => {
        const chosen = settingsChoice(flags);
        const own = flags.identity === undefined ? [] : [namedKms(flags.dir)];
        const kms = [...own, ...(flags.kms ?? []).map(kmsNamed)];
        const choice = { ...chosen, ...(kms.length === 0 ? {} : { kms }) };
        const wanted = Object.values(choice).some((value) => value !== undefined);
        const settings = wanted
          ? await changeSettings(flags, (current, version) => choose(current, version, choice))
          : await withSettings(flags.dir, (current) => current);
        printSettings(target, settings);
      }),
    );
}

function printSettings(target: OutputTarget, { policy, kms = [], ...settings }: Settings): void {
  const named = kms.map(({ server, key }) => ({
    ...{ server, key: Buffer.from(key).toString('base64url') },
  }));
  if (target.json) {
    printFields(target, { ...settings, kms: named, policy });
    return;
  }
  const seen = policy === undefined ? {} : { policy: 'see `pairwire policy show`' };
  const who = named.map(({ server, key }) => `${server} ${key}`).join(', ');
  printFields(target, { ...settings, kms: who || 'none named', ...seen });
}

type KmsChoice = NonNullable<SettingsChoice['kms']>[number];

/** `SERVER=KEY`. @throws PairwireError USAGE */
function kmsNamed(text: string): KmsChoice {
  const at = text.indexOf('=');
  const server = usable(text.slice(0, Math.max(at, 0)), '--kms');
  const key = text.slice(at + 1);
  if (key === '-') return { server };
  if (!/^[A-Za-z0-9_-]{43}$/.test(key)) {
    throw new PairwireError('USAGE', `--kms: ${text} names no public key`, {
      hint: 'as s2=KEY, with `kms` of `pairwire init --cascade`, or `key` of `pairwire kms check` at that server; or s2=-',
    });
  }
  return { server, key: Buffer.from(key, 'base64url') };
}

/** The KMS of a key server's folder, for the settings that name it. @throws PairwireError CONFIG_INVALID for one that keeps no identities */
function namedKms(dir: string): KmsChoice {
  const config = loadKeyServerConfig(dir);
  const { server } = config;
  if (config.kms.key !== undefined) {
    return { server, key: Buffer.from(config.kms.key, 'base64url') };
  }
  const paths = pathsOf(dir, config);
  if (loadKmsConfig(paths.kms).operator === undefined) {
    const operator = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true });
    throw new PairwireError('CONFIG_INVALID', 'the KMS does not know the operator key', {
      where: kmsPaths(paths.kms).config,
      hint: `write "operator: ${operator.toString('base64url')}" into it, and start the key server again`,
    });
  }
  return { server, key: kmsPublicKey(paths.kms) };
}

// ----------------------------------------------------------------------------- rekey

interface RekeyFlags {
  readonly dir: string;
  readonly group?: boolean;
  readonly net?: string | true;
  readonly force?: boolean;
}

function rekeyCommand(program: Command): void {
  program
    .command('rekey [id] [id2]')
    .description(
      'renew the key of a pair, of all pairs of a member, of all pairs, of the group, or with other subnets',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--group', 'the group key')
    .option('--net [net]', 'the net key with another subnet, or with all')
    .option('--force', 'do not wait until its holders can receive under the new key')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire rekey --dir /etc/pairwire/east alice bob'))
    .action(
      action(async (target, a: string | undefined, b: string | undefined, flags: RekeyFlags) => {
        const { group, net } = flags;
        if ((group === true || net !== undefined) && a !== undefined) {
          throw new PairwireError('USAGE', '--group and --net are about everybody: name no member');
        }
        if (group === true && net !== undefined) {
          throw new PairwireError('USAGE', 'either --group or --net');
        }
        const state = flags.force === true ? 'in force' : 'prepared';
        await asOperator(flags.dir, async (client) => {
          if (net !== undefined) {
            const which = net === true ? net : usable(net, '--net');
            printFields(target, {
              nets: await client.rekeyNets(which, flags.force === true),
              state,
            });
            return;
          }
          if (group === true) {
            printFields(target, { group: await client.rekeyGroup(flags.force === true), state });
            return;
          }
          const pairs = await client.rekey({
            a: a === undefined ? undefined : usable(a, 'id'),
            b: b === undefined ? undefined : usable(b, 'id2'),
            force: flags.force === true,
          });
          printFields(target, { pairs, state });
        });
      }),
    );
}

// ---------------------------------------------------------------------------- revoke

function revokeCommand(program: Command): void {
  program
    .command('revoke <id>')
    .description(
      'take a member out, for ever: nobody has a key with it any more; or another key server of this subnet with all its members, to be done at every server',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire revoke --dir /etc/pairwire/east mallory'))
    .action(
      action(async (target, id: string, flags: { readonly dir: string }) => {
        await asOperator(flags.dir, async (client) => {
          const member = usable(id, 'id');
          const { number, fresh, server } = await client.revoke(member);
          printFields(target, {
            ...{ member, number, state: fresh ? 'revoked' : 'revoked before' },
            ...(server === undefined
              ? {}
              : { server, todo: `pairwire revoke ${server} at every other key server, too` }),
          });
        });
      }),
    );
}

// ------------------------------------------------------------------------------- mac

function macCommand(program: Command): void {
  const command = program
    .command('mac')
    .description("addresses outside the subnet, and addresses that were members' own")
    .addHelpText(
      'after',
      example('pairwire mac pin --dir /etc/pairwire/east 0 02:aa:00:00:00:01 gate1'),
    );
  command
    .command('pin <vlan> <mac> <member>')
    .description('tie an address outside to one plain port, as a router (VLAN 0: untagged)')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire mac pin --dir /etc/pairwire/east 0 02:aa:00:00:00:01 gate1'),
    )
    .action(
      action(
        async (
          target,
          vlanText: string,
          macText: string,
          id: string,
          flags: { readonly dir: string },
        ) => {
          const vlan = parseInteger(vlanText, 'vlan', 0, 4_094);
          const mac = macAddress(macText, 'mac');
          const member = usable(id, 'member');
          await asOperator(flags.dir, async (client) => {
            await client.pinMac(vlan, mac, member);
            printFields(target, { vlan, mac, member, state: 'pinned' });
          });
        },
      ),
    );
  command
    .command('free <mac>')
    .description('free the address of a member that is gone, or one that was pinned')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire mac free --dir /etc/pairwire/east 02:aa:00:00:00:01'))
    .action(
      action(async (target, text: string, flags: { readonly dir: string }) => {
        const mac = macAddress(text, 'mac');
        await asOperator(flags.dir, async (client) => {
          printFields(target, { mac, ...(await client.freeMac(mac)) });
        });
      }),
    );
}

// -------------------------------------------------------------------------------- ip

function ipCommand(program: Command): void {
  const command = program
    .command('ip')
    .description('IP addresses of the subnet, and the MAC addresses that alone may announce them')
    .addHelpText('after', example('pairwire ip --dir /etc/pairwire/east'));
  listCommand(command, IP_LIST, 'list', { isDefault: true });
  command
    .command('pin <ip> <mac>')
    .description('tie an address to one MAC address, as that of a router outside')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire ip pin --dir /etc/pairwire/east 10.1.0.1 02:aa:00:00:00:01'),
    )
    .action(
      action(async (target, ipText: string, macText: string, flags: { readonly dir: string }) => {
        const ip = ipAddress(ipText, 'ip');
        const mac = macAddress(macText, 'mac');
        await asOperator(flags.dir, async (client) => {
          await client.pinIp(ip, mac);
          printFields(target, { ip, mac, state: 'pinned' });
        });
      }),
    );
  command
    .command('free <ip>')
    .description('free an address that was pinned, or that a member has announced')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire ip free --dir /etc/pairwire/east 10.1.0.1'))
    .action(
      action(async (target, text: string, flags: { readonly dir: string }) => {
        const ip = ipAddress(text, 'ip');
        await asOperator(flags.dir, async (client) => {
          printFields(target, { ip, ...(await client.freeIp(ip)) });
        });
      }),
    );
}

// ----------------------------------------------------------------------------- lists

const IP_LIST: ListCommand = {
  name: 'ips',
  about: 'list IP addresses: which MAC address announces them, and why',
  columns: columns('ip', 'mac', 'member', 'kind', 'since', 'seenAt'),
};

const LIST_COMMANDS: readonly ListCommand[] = [
  {
    name: 'members',
    about: 'list members',
    columns: columns(
      'id',
      'role',
      'home',
      'state',
      'online',
      'index',
      'ips',
      'endpoints',
      'registeredAt',
    ),
  },
  {
    name: 'keys',
    about: 'list pair keys and group keys: who, generation, why, when; never a key',
    columns: columns('kind', 'a', 'b', 'pwId', 'reason', 'createdAt'),
  },
  {
    name: 'macs',
    about: 'list MAC addresses: whose they are, or which plain port they are behind',
    columns: columns('mac', 'vlan', 'member', 'kind', 'shared', 'since', 'seenAt', 'frozenUntil'),
  },
];

function listCommands(program: Command): void {
  for (const list of LIST_COMMANDS) listCommand(program, list, list.name);
}

/** Adds a command that prints a list. */
function listCommand(
  parent: Command,
  list: ListCommand,
  word: string,
  options: { readonly isDefault?: boolean } = {},
): Command {
  const path = parent.parent === null ? word : `${parent.name()} ${word}`;
  return parent
    .command(word, options)
    .description(list.about)
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--limit <n>', 'most rows')
    .option('--json', 'print JSON')
    .addHelpText('after', example(`pairwire ${path} --dir /etc/pairwire/east`))
    .action(
      action(async (target, flags: { dir: string; limit?: string }) => {
        await printList(target, flags.dir, list, flags.limit);
      }),
    );
}

// --------------------------------------------------------------------------- helpers

function settingsOptions(command: Command): Command {
  return command
    .option(
      '--hold <n>',
      "frames held for each destination while its key is fetched; 0: the documents' own rule",
    )
    .addOption(
      new Option(
        '--identity <mode>',
        'whether gateways have the KMS confirm who a peer unknown so far is (default of a new subnet: verify)',
      ).choices(['verify', 'off']),
    )
    .addOption(new Option('--suite <suite>', 'AEAD of sealed frames').choices(SUITES))
    .option('--freshness <time>', 'largest age of a frame, as 30s; 0s turns the check off')
    .option('--lease <time>', 'how long a gateway without key server uses its keys, as 24h')
    .option('--rekey <time>', 'age at which a pair key is renewed, as 1h; 0s: never by age')
    .option(
      '--rekey-boot <time>',
      'age at which a gateway makes a fresh boot key, as 1h; 0s: never by age',
    )
    .option(
      '--rekey-group <when>',
      'when the group key is renewed: never, on-revoke, or an age, as 24h (and when a member is revoked)',
    )
    .option('--replicate <n>', 'receivers up to which a sender copies group frames itself')
    .addOption(
      new Option(
        '--unknown <where>',
        'frames for an address that nobody knows go to the default plain port, or nowhere',
      ).choices(['plain', 'refuse']),
    )
    .option(
      '--default-plain <id>',
      'the default plain port; `-`: the one with the lowest id that is online',
    );
}

function settingsChoice(flags: SettingsFlags): SettingsChoice {
  const { hold, suite, freshness, lease, rekey, rekeyBoot, rekeyGroup, replicate } = flags;
  const { unknown, defaultPlain } = flags;
  return {
    identity: flags.identity,
    suite,
    unknown,
    defaultPlain:
      defaultPlain === undefined
        ? undefined
        : defaultPlain === '-'
          ? null
          : usable(defaultPlain, '--default-plain'),
    hold: hold === undefined ? undefined : parseInteger(hold, '--hold', 0, 1024),
    freshnessMs:
      freshness === undefined
        ? undefined
        : inRange(parseDuration(freshness, '--freshness'), '--freshness', 0, 3_600_000),
    leaseSeconds:
      lease === undefined
        ? undefined
        : inRange(Math.floor(parseDuration(lease, '--lease') / 1_000), '--lease', 10, 31_536_000),
    rekeySeconds: rekey === undefined ? undefined : interval(rekey, '--rekey', 10),
    bootSeconds: rekeyBoot === undefined ? undefined : interval(rekeyBoot, '--rekey-boot', 30),
    groupRekey: rekeyGroup === undefined ? undefined : groupRekey(rekeyGroup),
    replicate:
      replicate === undefined ? undefined : parseInteger(replicate, '--replicate', 1, 4096),
  };
}

/** Whole seconds; 0 is off. */
function interval(text: string, option: string, least: number): number {
  const seconds = Math.floor(parseDuration(text, option) / 1_000);
  return seconds === 0 ? 0 : inRange(seconds, option, least, 31_536_000);
}

function groupRekey(text: string): Settings['group']['rekey'] {
  if (text === 'never' || text === 'on-revoke') return text;
  const seconds = Math.floor(parseDuration(text, '--rekey-group') / 1_000);
  return inRange(seconds, '--rekey-group', 10, 31_536_000);
}

function inRange(value: number, option: string, min: number, max: number): number {
  if (value >= min && value <= max) return value;
  throw new PairwireError('USAGE', `${option} is out of range`);
}

function policyTag(text: string): string {
  const parsed = tagSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new PairwireError('USAGE', `--tag: "${text}" is not a tag`, {
    hint: 'a tag has up to 31 of a-z, 0-9, ".", "_" and "-"',
  });
}

function macAddress(text: string, option: string): MacAddress {
  const parsed = macSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new PairwireError('USAGE', `${option}: "${text}" is not a MAC address`, {
    hint: 'a MAC address looks like 02:00:5e:10:00:01',
  });
}

function ipAddress(text: string, option: string): string {
  const parsed = ipSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new PairwireError('USAGE', `${option}: "${text}" is not an IP address`, {
    hint: 'an IP address looks like 10.1.0.2 or 2001:db8::2',
  });
}
