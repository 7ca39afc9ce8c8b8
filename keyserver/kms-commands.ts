/**
 * Commands of the KMS: `kms` runs one, `kms status` and `kms rotate` ask the key server about it, `kms check` looks at a KMS's folder,
 * `kms token` has root keys made in a PKCS#11 token, `kms forget-keys` goes on without those that are lost.
 */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { action, printFields } from '../src/cli/output.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import type { KmsLimited } from '../src/protocol/kms-messages.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { asOperator, example, isoTime } from './command-tools.js';
import { KEY_KIND, loadKeyServerConfig, pathsOf } from './config.js';
import { forgetKeys } from './forget-keys.js';
import { checkKmsAudit } from './kms/audit-file.js';
import { KMS_KEY_KIND, kmsPaths, loadKmsConfig } from './kms/config.js';
import { RootKeys } from './kms/root-keys.js';
import { runKms } from './kms/run.js';
import { requireOwnSecret } from './kms/secret-files.js';
import { leaveToken, useToken } from './kms/use-token.js';
import { acceptRows, rowMarkOf } from './storage/unlock.js';

/** Adds them to a program. */
export function kmsCommands(program: Command): void {
  const command = program
    .command('kms')
    // `kms status --dir` is an option of `status`.
    .enablePositionalOptions()
    .description('the KMS, whose root key protects the keys that a key server stores')
    .option(
      '--dir <dir>',
      "run the KMS of this folder in the foreground: a key server's folder kms, wherever it was moved",
    )
    .addHelpText(
      'after',
      example('pairwire kms --dir /etc/pairwire/east-kms') +
        '  $ pairwire kms status --dir /etc/pairwire/east\n',
    )
    .action(
      action(async (_target, flags: { readonly dir?: string }) => {
        if (flags.dir === undefined) {
          throw new PairwireError('USAGE', 'name the folder of the KMS', {
            hint: 'pairwire kms --dir DIR; or: pairwire kms status, rotate, check',
          });
        }
        await runKms(flags.dir);
      }),
    );
  statusCommand(command);
  rotateCommand(command);
  checkCommand(command);
  acceptRowsCommand(command);
  tokenCommand(command);
  forgetCommand(command);
}

function statusCommand(kms: Command): void {
  kms
    .command('status')
    .description('how the keys that the running key server stores are sealed')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire kms status --dir /etc/pairwire/east'))
    .action(
      action(async (target, flags: { readonly dir: string }) => {
        await asOperator(flags.dir, async (client) => {
          const { generations, inToken, since, limitedBy, ...status } = await client.kmsStatus();
          const paths = pathsOf(flags.dir, loadKeyServerConfig(flags.dir));
          const own = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
          printFields(target, {
            ...status,
            since: isoTime(since),
            limitedBy: limitedText(limitedBy),
            rootKeys: rootKeysText({ generations, inToken }),
            keyServer: own.publicKey.toString('base64url'),
          });
        });
      }),
    );
}

function rotateCommand(kms: Command): void {
  kms
    .command('rotate')
    .description('seal all stored keys by another DEK, in the background; members notice nothing')
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--root', 'by another root key, too')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire kms rotate --dir /etc/pairwire/east --root'))
    .action(
      action(async (target, flags: { readonly dir: string; readonly root?: true }) => {
        await asOperator(flags.dir, async (client) => {
          const rootKey = await client.kmsRotate(flags.root === true);
          printFields(target, {
            rootKey,
            next: `pairwire kms status --dir ${flags.dir}`,
          });
        });
      }),
    );
}

function checkCommand(kms: Command): void {
  kms
    .command('check')
    .description(
      "check a KMS's folder: its root keys, whom it serves, and the chain of its audit log",
    )
    .requiredOption('--dir <dir>', 'folder of the KMS')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire kms check --dir /etc/pairwire/east/kms'))
    .action(
      action(async (target, flags: { readonly dir: string }) => {
        const config = loadKmsConfig(flags.dir);
        const paths = kmsPaths(flags.dir);
        for (const file of [paths.key, paths.auditKey]) requireOwnSecret(file);
        const { publicKey } = keyPairFromPrivate(readKeyFile(paths.key, KMS_KEY_KIND.channel));
        const roots = RootKeys.load(paths.dir, config.token);
        const auditKey = readKeyFile(paths.auditKey, KMS_KEY_KIND.audit);
        const { entries, broken } = await checkKmsAudit(paths.auditLog, auditKey);
        auditKey.fill(0);
        if (broken !== undefined) {
          throw new PairwireError('KMS_FAILED', `the audit log is broken: ${broken.reason}`, {
            where: `${broken.file}:${broken.line}`,
            hint: 'somebody has written to it: look for who may',
          });
        }
        printFields(target, {
          subnet: config.subnet,
          key: publicKey.toString('base64url'),
          keyServers: config.keyServers.map(({ server }) => server).join(', '),
          rootKeys: rootKeysText(roots),
          auditEntries: entries,
        });
      }),
    );
}

function acceptRowsCommand(kms: Command): void {
  kms
    .command('accept-rows')
    .description(
      'after somebody has changed the database: have the next start take its rows as they are then',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire kms accept-rows --dir /etc/pairwire/east'))
    .action(
      action((target, flags: { readonly dir: string }) => {
        const paths = pathsOf(flags.dir, loadKeyServerConfig(flags.dir));
        acceptRows(rowMarkOf(paths.sealMark));
        printFields(target, { next: 'start the key server again' });
      }),
    );
}

function forgetCommand(kms: Command): void {
  kms
    .command('forget-keys')
    .description(
      'where the root keys are lost for good: drop all keys that they sealed, and go on with new ones',
    )
    .requiredOption('--dir <dir>', 'folder of the key server, which is stopped')
    .option('--yes', 'drop them')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire kms forget-keys --dir /etc/pairwire/east --yes'))
    .action(
      action(async (target, flags: { readonly dir: string; readonly yes?: true }) => {
        if (flags.yes !== true) {
          throw new PairwireError('USAGE', 'every key of pairs, group and nets would be dropped', {
            hint: 'only if no copy of the root keys and no token with them is left anywhere: once more with --yes; members, grants and revocations stay, and all get new keys',
          });
        }
        printFields(target, { ...(await forgetKeys(flags.dir)), next: 'start the key server' });
      }),
    );
}

interface TokenFlags {
  readonly dir: string;
  readonly module?: string;
  readonly label?: string;
  readonly serial?: string;
  readonly key?: string;
  readonly pinFile: string;
  readonly env?: readonly string[];
  readonly off?: true;
}

function tokenCommand(kms: Command): void {
  kms
    .command('token')
    .description('have the next root keys made in a PKCS#11 token, or in files again')
    .requiredOption('--dir <dir>', 'folder of the KMS')
    .option('--module <file>', 'the PKCS#11 module')
    .option('--label <label>', 'label of the token')
    .option('--serial <number>', 'serial number of the token')
    .option('--key <label>', 'label of the root keys in it (default: pairwire-SUBNET)')
    .option('--pin-file <file>', 'where the PIN is read from; - for standard input', '-')
    .option('--env <name=value...>', 'what the module wants to find in its environment')
    .option('--off', 'make root keys in files again')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example(
        'pairwire kms token --dir /etc/pairwire/east/kms --module /usr/lib/softhsm/libsofthsm2.so --label east < pin',
      ),
    )
    .action(
      action(async (target, flags: TokenFlags) => {
        const next = 'restart the KMS, then: pairwire kms rotate --root --dir DIR';
        if (flags.off === true) {
          leaveToken(flags.dir);
          printFields(target, { newRootKeys: 'in files', next });
          return;
        }
        const { module, label, serial } = flags;
        if (module === undefined) {
          throw new PairwireError('USAGE', 'name the PKCS#11 module', {
            hint: 'pairwire kms token --dir DIR --module FILE --label LABEL; or --off',
          });
        }
        const { subnet } = loadKmsConfig(flags.dir);
        const token = {
          module,
          ...(label === undefined ? {} : { label }),
          ...(serial === undefined ? {} : { serial }),
          key: flags.key ?? `pairwire-${subnet}`,
          ...(flags.env === undefined ? {} : { environment: variables(flags.env) }),
        };
        const generations = useToken(flags.dir, token, pinFrom(flags.pinFile));
        printFields(target, { newRootKeys: 'in the token', there: generations.join(', '), next });
      }),
    );
}

/** @throws PairwireError FILE_UNREADABLE */
function pinFrom(file: string): string {
  try {
    return readFileSync(file === '-' ? process.stdin.fd : file, 'utf8').replace(/\r?\n$/, '');
  } catch (cause) {
    throw new PairwireError('FILE_UNREADABLE', `the PIN cannot be read: ${messageOf(cause)}`, {
      where: file,
      cause,
    });
  }
}

function variables(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      return at < 0 ? [pair, ''] : [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

/** The limits of kms.yaml that were met. */
function limitedText(limitedBy: KmsLimited): readonly string[] {
  return Object.entries(limitedBy).flatMap(([name, count]) =>
    count === 0 ? [] : [`${name} ${count}`],
  );
}

/** Generations, and which of them are not in files. */
function rootKeysText(keys: {
  readonly generations: readonly number[];
  readonly inToken: readonly number[];
}): string {
  return keys.generations
    .map((generation) => (keys.inToken.includes(generation) ? `${generation} (token)` : generation))
    .join(', ');
}
