/** Commands for backups: `backup` makes one, `backup verify` checks one, `restore` puts one back, `restore confirm` serves on after it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { action, collectOption, type OutputTarget, printFields } from '../src/cli/output.js';
import { PairwireError } from '../src/runtime/errors.js';
import { type CheckedBackup, checkBackup } from './backup/check.js';
import { makeBackup } from './backup/make.js';
import { restoreBackup } from './backup/restore.js';
import { asOperator, example } from './command-tools.js';

/** Adds them to a program. */
export function backupCommands(program: Command): void {
  backupCommand(program);
  restoreCommand(program);
}

function backupCommand(program: Command): void {
  const command = program
    .command('backup')
    // `backup verify --json` is an option of `verify`.
    .enablePositionalOptions()
    .description('make a backup of a key server in one file, also while it runs')
    .argument('[file]', 'file to make')
    .option('--dir <dir>', 'folder of the key server')
    .option(
      '--with-keys',
      'put all key files in, the root key too: who has the file has the subnet',
    )
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire backup --dir /etc/pairwire/east /backup/east-2026-11-27.pwb') +
        '  $ pairwire backup verify --keys /etc/pairwire/east /backup/east-2026-11-27.pwb\n',
    )
    .action(
      action(
        async (
          target,
          file: string | undefined,
          flags: { readonly dir?: string; readonly withKeys?: true },
        ) => {
          const dir = required(flags.dir, '--dir DIR');
          await backup(target, dir, required(file, 'FILE'), flags.withKeys === true);
        },
      ),
    );
  command
    .command('verify <file>')
    .description('check a backup: whole, unchanged, its audit log, and that its keys open')
    .option(
      '--keys <dir>',
      "folder with the key files, as the key server's own; repeatable",
      collectOption,
      [],
    )
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire backup verify --keys /etc/pairwire/east /backup/east-2026-11-27.pwb'),
    )
    .action(
      action(async (target, file: string, flags: { readonly keys: readonly string[] }) => {
        const work = mkdtempSync(join(tmpdir(), 'pairwire-verify-'));
        try {
          const folders = flags.keys.map((one) => resolve(one));
          const checked = await checkBackup(resolve(file), join(work, 'check'), folders);
          printFields(target, { file: resolve(file), ...shown(checked) });
        } finally {
          rmSync(work, { recursive: true, force: true });
        }
      }),
    );
}

async function backup(
  target: OutputTarget,
  dir: string,
  file: string,
  withKeys: boolean,
): Promise<void> {
  const made = await makeBackup(dir, file, withKeys);
  const { checked, path, size, keptApart, rootKey, operatorKeyIn } = made;
  if (withKeys) {
    const what = [
      'the keys of this key server',
      ...(rootKey === undefined ? ['the root key'] : []),
      ...(operatorKeyIn ? ["the operator's private key"] : []),
    ];
    target.err(
      `WARNING: ${path} holds ${what.join(', ')}: who reads it has every key of the subnet. Encrypt it, and keep it where nobody else gets.\n`,
    );
  } else {
    target.err(
      `note: no key is in it. It is worth nothing without ${[...keptApart, ...(rootKey === undefined ? [] : [rootKey])].join(', ')}: keep copies of those, apart from it\n`,
    );
  }
  if (withKeys && rootKey !== undefined) {
    target.err(`note: the root key is not in it: keep a copy of ${rootKey}\n`);
  }
  printFields(target, {
    file: path,
    size,
    ...shown(checked),
    rootKey: rootKey ?? 'in it',
  });
}

/** What a check found, for the user. */
function shown(checked: CheckedBackup): Readonly<Record<string, unknown>> {
  const { manifest, authentic, auditEntries, seals } = checked;
  const { subnet, server, madeAt, change, revocation, schema, keys } = manifest;
  return {
    ...{ subnet, server, madeAt, change, revocation, schema },
    keyFiles: keys ? 'in it' : 'not in it',
    authentic,
    database: 'whole',
    auditEntries: auditEntries ?? 'not checked: no audit.key',
    keysOpened: seals ?? 'not checked: no root key',
  };
}

function restoreCommand(program: Command): void {
  const command = program
    .command('restore')
    // `restore confirm --dir` is an option of `confirm`.
    .enablePositionalOptions()
    .description('put a backup back, in the folder of its key server or on another machine')
    .argument('[file]', 'backup that `pairwire backup` made')
    .option('--dir <dir>', 'folder of the key server; made if it does not exist')
    .option(
      '--keys <dir>',
      'folder with key files that are neither there nor in the backup; repeatable',
      collectOption,
      [],
    )
    .option('--force', 'put it in the place of the database that is there')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      example('pairwire restore --dir /etc/pairwire/east /backup/east-2026-11-27.pwb') +
        '  $ pairwire restore confirm --dir /etc/pairwire/east\n',
    )
    .action(
      action(
        async (
          target,
          file: string | undefined,
          flags: {
            readonly dir?: string;
            readonly keys: readonly string[];
            readonly force?: true;
          },
        ) => {
          const dir = required(flags.dir, '--dir DIR');
          const { checked, database, before, placed, kept } = await restoreBackup(
            resolve(required(file, 'FILE')),
            { dir, keyFolders: flags.keys, force: flags.force === true },
          );
          target.err(
            'note: no other copy of this key server may run any more. Members that know more than the backup, and addresses that nobody is known to have, wait for `pairwire restore confirm`: revoke first whoever was revoked since\n',
          );
          printFields(target, {
            ...shown(checked),
            database,
            before: before ?? '-',
            placed: placed.join(', '),
            kept: kept.join(', '),
            next: `pairwire keyserver --dir ${dir}; then: pairwire restore confirm --dir ${dir}`,
          });
        },
      ),
    );
  command
    .command('confirm')
    .description(
      'serve members again that know of more revocations than the database, and send what is for nobody known to the default plain port again',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire restore confirm --dir /etc/pairwire/east'))
    .action(
      action(async (target, flags: { readonly dir: string }) => {
        await asOperator(flags.dir, async (client) => {
          printFields(target, { revocation: await client.confirmRestore() });
        });
      }),
    );
}

/** An argument that the command with others of its own can't demand by itself. */
function required(value: string | undefined, what: string): string {
  if (value !== undefined) return value;
  throw new PairwireError('USAGE', `${what} is missing`, {
    hint: 'pairwire backup --dir DIR FILE; pairwire restore --dir DIR FILE',
  });
}
