/** Commands of the KMS: `kms` runs one, `kms status` and `kms rotate` ask the key server about it, `kms check` looks at a KMS's folder. */
import type { Command } from 'commander';
import { action, printFields } from '../src/cli/output.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { asOperator, example, isoTime } from './command-tools.js';
import { KEY_KIND, loadKeyServerConfig, pathsOf } from './config.js';
import { checkKmsAudit } from './kms/audit-file.js';
import { KMS_KEY_KIND, kmsPaths, loadKmsConfig, requireOwnSecret } from './kms/config.js';
import { RootKeys } from './kms/root-keys.js';
import { runKms } from './kms/run.js';
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
          const { generations, since, ...status } = await client.kmsStatus();
          const paths = pathsOf(flags.dir, loadKeyServerConfig(flags.dir));
          const own = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
          printFields(target, {
            ...status,
            since: isoTime(since),
            rootKeys: generations.join(', '),
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
        const { generations } = RootKeys.load(paths.dir);
        const auditKey = readKeyFile(paths.auditKey, KMS_KEY_KIND.audit);
        const { entries, broken } = await checkKmsAudit(paths.auditLog, auditKey);
        auditKey.fill(0);
        if (broken !== undefined) {
          throw new PairwireError('KMS_FAILED', `the audit log is broken: ${broken.reason}`, {
            where: `${paths.auditLog}:${broken.line}`,
            hint: 'somebody has written to it: look for who may',
          });
        }
        printFields(target, {
          subnet: config.subnet,
          key: publicKey.toString('base64url'),
          keyServers: config.keyServers.map(({ server }) => server).join(', '),
          rootKeys: generations.join(', '),
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
