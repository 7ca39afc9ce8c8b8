/**
 * `pairwire peer`: the key servers of other subnets, and other ones of this subnet (docs/protocol.md 10). The subnet with the smaller net id makes the key of two
 * nets; its operator makes a token, and the other one adds it (docs/protocol.md 9).
 */
import type { Command } from 'commander';
import {
  action,
  collectOption,
  type OutputTarget,
  parseDuration,
  printFields,
} from '../src/cli/output.js';
import { readTokenInput } from '../src/cli/token-input.js';
import type { Id } from '../src/protocol/ids.js';
import { networkOf, overlap } from '../src/protocol/prefixes.js';
import { prefixSchema } from '../src/protocol/records.js';
import { parseToken } from '../src/protocol/token.js';
import { PairwireError } from '../src/runtime/errors.js';
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
  type KeyServerConfig,
  loadKeyServerConfig,
  type OwnNet,
  ownNet,
  pathsOf,
} from './config.js';

const NET_LIST: ListCommand = {
  name: 'nets',
  about:
    'list linked subnets (who makes the key, its generation) and other key servers of this subnet: whether they hear each other, and how far their clocks differ',
  columns: columns(
    ...['net', 'server', 'peer', 'key', 'state', 'pwId', 'next', 'reason', 'createdAt', 'prefixes'],
    ...['skewMs', 'problem'],
  ),
};

interface PeerTokenFlags {
  readonly dir: string;
  readonly net?: string;
  readonly server?: string;
  readonly prefix: readonly string[];
  readonly id?: string;
  readonly ttl: string;
  readonly operatorKey?: string;
}

/** Adds the commands about other subnets. */
export function peerCommands(program: Command): void {
  const command = program
    .command('peer')
    .description(
      'other key servers: those of other subnets, that exchange net keys with this one, and others of this subnet',
    )
    .addHelpText('after', example('pairwire peer --dir /etc/pairwire/east'));
  command
    .command('list', { isDefault: true })
    .description(NET_LIST.about)
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire peer list --dir /etc/pairwire/east'))
    .action(
      action((target, flags: { readonly dir: string }) =>
        printList(target, flags.dir, NET_LIST, undefined),
      ),
    );
  command
    .command('token')
    .description(
      'print a token for the key server of a subnet with a larger net id, or for another one of this subnet',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--net <net>', 'net id of the other subnet')
    .option(
      '--server <id>',
      'id of another key server of this subnet; larger than that of this one',
    )
    .option('--prefix <prefix>', 'IP prefix that is behind it; repeatable', collectOption, [])
    .option('--id <id>', 'id of its key server here; default: its net id, or server id')
    .option('--ttl <time>', 'how long it may be used', '1h')
    .option('--operator-key <file>', 'operator key, if it is not where the configuration says')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire peer token --dir /etc/pairwire/east --net west --prefix 10.2.0.0/16') +
        '  $ pairwire peer token --dir /etc/pairwire/east --server s2\n',
    )
    .action(action(printPeerToken));
  command
    .command('add')
    .argument('[token]', 'the token, or - for standard input (better than the command line)')
    .description(
      'peer with the key server that made a token; the key server of the folder must run',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option(
      '--prefix <prefix>',
      'IP prefix that is behind the other; repeatable',
      collectOption,
      [],
    )
    .option('--token-file <file>', 'read the token from a file')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire peer add --dir /etc/pairwire/west --prefix 10.1.0.0/16 - < token'),
    )
    .action(
      action(
        async (
          target,
          argument: string | undefined,
          flags: {
            readonly dir: string;
            readonly prefix: readonly string[];
            readonly tokenFile?: string;
          },
        ) => {
          const own = ownNet(loadKeyServerConfig(flags.dir));
          const usage = 'pairwire peer add --dir DIR --prefix PREFIX';
          const token = readTokenInput(target, argument, flags.tokenFile, usage).trim();
          if (parseToken(token).cascade !== undefined) {
            await addServer(target, flags.dir, token);
            return;
          }
          const prefixes = foreignPrefixes(own, flags.prefix);
          await asOperator(flags.dir, async (client) => {
            const { net, member } = await client.addPeer(token, prefixes);
            printFields(target, { net, member, prefixes, state: 'peered' });
          });
        },
      ),
    );
  command
    .command('remove <name>')
    .description(
      "end what `peer add` or `init --cascade` began, by net id, on both sides, or by server id: link ports forget that net's key, members of that server are offline",
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option(
      '--yes',
      "also remove this subnet's first key server: the next one makes group key and time",
    )
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire peer remove --dir /etc/pairwire/west east'))
    .action(
      action(async (target, text: string, flags: { readonly dir: string; readonly yes?: true }) => {
        const net = usable(text, 'name');
        await asOperator(flags.dir, async (client) => {
          const told = await client.removePeer(net, flags.yes === true);
          printFields(target, {
            ...{ net, state: 'removed' },
            ...(told === undefined ? {} : { otherSide: otherSide(told) }),
          });
        });
      }),
    );
}

function printPeerToken(target: OutputTarget, flags: PeerTokenFlags): void {
  const config = loadKeyServerConfig(flags.dir);
  const own = ownNet(config);
  if (flags.server !== undefined) {
    printServerToken(target, config, flags, flags.server);
    return;
  }
  if (flags.net === undefined) {
    throw new PairwireError('USAGE', 'say for whom the token is', {
      hint: 'another subnet: --net NET --prefix PREFIX; another key server of this subnet: --server ID',
    });
  }
  const net = usable(flags.net, '--net');
  requireLarger(own, net);
  const prefixes = foreignPrefixes(own, flags.prefix);
  printToken(target, config, readTokenKeys(pathsOf(flags.dir, config), flags.operatorKey), {
    id: flags.id === undefined ? net : usable(flags.id, '--id'),
    role: 'server',
    net,
    ips: prefixes,
    ...{ macs: [], rights: [], uses: 1 },
    notAfter: Date.now() + parseDuration(flags.ttl, '--ttl'),
  });
}

/** A token for another key server of this subnet. */
function printServerToken(
  target: OutputTarget,
  config: KeyServerConfig,
  flags: PeerTokenFlags,
  text: string,
): void {
  const server = usable(text, '--server');
  if (flags.net !== undefined || flags.prefix.length > 0) {
    throw new PairwireError('USAGE', '--server goes without --net and --prefix');
  }
  if (server <= config.server) {
    throw new PairwireError('USAGE', `${server} does not come after ${config.server}`, {
      hint: 'ids are compared as text: choose a larger one, so that the first server stays the first',
    });
  }
  printToken(target, config, readTokenKeys(pathsOf(flags.dir, config), flags.operatorKey), {
    id: flags.id === undefined ? server : usable(flags.id, '--id'),
    role: 'server',
    server,
    ...{ macs: [], ips: [], rights: [], uses: 1 },
    notAfter: Date.now() + parseDuration(flags.ttl, '--ttl'),
  });
}

async function addServer(target: OutputTarget, dir: string, token: string): Promise<void> {
  await asOperator(dir, async (client) => {
    const { server, member } = await client.addPeer(token, []);
    printFields(target, { server: server ?? '', member, state: 'peered' });
  });
}

/** @throws PairwireError USAGE if the other one makes the key */
function requireLarger(own: OwnNet, net: Id): void {
  if (net === own.id) throw new PairwireError('USAGE', `--net: ${net} is this subnet's own net id`);
  if (net > own.id) return;
  throw new PairwireError('USAGE', `the key of ${net} and ${own.id} is made by ${net}`, {
    hint: `make the token there (pairwire peer token --net ${own.id}) and add it here (pairwire peer add)`,
  });
}

/** The prefixes that may be behind another net. @throws PairwireError USAGE */
function foreignPrefixes(own: OwnNet, texts: readonly string[]): string[] {
  if (own.prefixes.length === 0) {
    throw new PairwireError('USAGE', 'keyserver.yaml does not say which prefixes this subnet has', {
      hint: 'write them there, as in `prefixes: [10.1.0.0/16]`, and restart the key server',
    });
  }
  if (texts.length === 0) {
    throw new PairwireError('USAGE', 'say which prefixes are behind the other subnet', {
      hint: 'add --prefix 10.2.0.0/16; what its key server claims can only narrow this',
    });
  }
  return texts.map((text) => {
    if (!prefixSchema.safeParse(text).success) {
      throw new PairwireError('USAGE', `--prefix: "${text}" is no IP prefix`, {
        hint: 'a prefix looks like 10.2.0.0/16 or 2001:db8:2::/48',
      });
    }
    const prefix = networkOf(text);
    const ours = own.prefixes.find((one) => overlap(one, prefix));
    if (ours === undefined) return prefix;
    throw new PairwireError(
      'USAGE',
      `--prefix: ${prefix} is not foreign: ${ours} is this subnet's`,
    );
  });
}

/** Whether the key server of another net knows that a link has ended. */
function otherSide(told: boolean): string {
  return told ? 'told' : 'not reached: its operator ends it there, by `revoke`';
}
