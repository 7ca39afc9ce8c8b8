/** `pairwire audit`: lists the audit log, checks it, shows its signed head, and writes it out. */
import { once } from 'node:events';
import { createReadStream, existsSync } from 'node:fs';
import type { Command } from 'commander';
import { z } from 'zod';
import {
  action,
  type OutputTarget,
  parseDuration,
  parseInteger,
  printFields,
} from '../src/cli/output.js';
import { openStoredHead } from '../src/protocol/audit-head.js';
import { importPrivate, publicOf } from '../src/protocol/public-keys.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { type AuditCheck, readAuditHead, verifyAudit } from './audit.js';
import { exportAudit, linesOf, verifyExport } from './audit-export.js';
import { shareWitnesses } from './audit-shared.js';
import { type AuditWitness, AuditWitnesses, OWN_WITNESS } from './audit-witnesses.js';
import { withStore } from './change-settings.js';
import { columns, example, isoTime, type ListCommand, printList } from './command-tools.js';
import { KEY_KIND, type KeyServerPaths, loadKeyServerConfig, pathsOf } from './config.js';

const AUDIT_LIST: ListCommand = {
  name: 'audit',
  about: 'list the audit log',
  columns: columns('seq', 'at', 'actor', 'action', 'outcome', 'count', 'detail'),
};

interface Place {
  readonly dir: string;
}

/** Adds the commands about the audit log. */
export function auditCommands(program: Command): void {
  const command = program
    .command('audit')
    .description('the audit log: list it, check it, show its signed head, write it out')
    .addHelpText('after', example('pairwire audit --dir /etc/pairwire/east'));
  command
    .command('list', { isDefault: true })
    .description(AUDIT_LIST.about)
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--limit <n>', 'most rows')
    .option('--verify', 'as `audit verify`')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire audit list --dir /etc/pairwire/east'))
    .action(
      action(async (target, flags: Place & { limit?: string; verify?: true }) => {
        if (flags.verify === true) await verify(target, pathsIn(flags));
        else await printList(target, flags.dir, AUDIT_LIST, flags.limit);
      }),
    );
  command
    .command('verify')
    .description(
      'check the chain of the log in the database (without the server), that its noted head is in it, and what members have seen; or an exported file',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--file <file>', 'check what `audit export` wrote, or - for standard input')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire audit verify --dir /etc/pairwire/east'))
    .action(
      action(async (target, flags: Place & { file?: string }) => {
        if (flags.file === undefined) await verify(target, pathsIn(flags));
        else await verifyFile(target, pathsIn(flags), flags.file);
      }),
    );
  command
    .command('head')
    .description(
      'show the newest head that was noted, the public key that signs heads, and who has seen entries that the log does not have',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--json', 'print JSON')
    .addHelpText('after', example('pairwire audit head --dir /etc/pairwire/east'))
    .action(action((target, flags: Place) => showHead(target, flags)));
  command
    .command('export')
    .description(
      'write the log out as JSON lines, one entry a line, from the database (with or without the server)',
    )
    .requiredOption('--dir <dir>', 'folder of the key server')
    .option('--after <seq>', 'only entries behind this one')
    .option('--since <time>', 'only from the first entry not older than this: 2026-01-31, or 7d')
    .option('--json', 'print errors as JSON, too')
    .addHelpText(
      'after',
      example('pairwire audit export --dir /etc/pairwire/east --since 7d > audit.jsonl'),
    )
    .action(
      action(async (_target, flags: Place & { after?: string; since?: string }) => {
        const { after, since } = flags;
        const range = {
          after:
            after === undefined ? 0 : parseInteger(after, '--after', 0, Number.MAX_SAFE_INTEGER),
          since: since === undefined ? 0 : parseSince(since),
        };
        await withStore(pathsIn(flags), (store) => exportAudit(store, range, toStandardOutput));
      }),
    );
}

function pathsIn({ dir }: Place): KeyServerPaths {
  return pathsOf(dir, loadKeyServerConfig(dir));
}

async function verify(target: OutputTarget, paths: KeyServerPaths): Promise<void> {
  const key = readKeyFile(paths.auditKey, KEY_KIND.audit);
  // Read before the log, which a running server goes on with.
  const head = readAuditHead(paths.auditHead);
  const witnesses = new AuditWitnesses(paths.auditWitnesses, false);
  const signed = publicKey(paths);
  try {
    await withStore(paths, async (store) => {
      const { meta } = store;
      if (signed !== null) {
        const sign = Buffer.from(signed, 'base64url');
        await shareWitnesses(store, witnesses, { subnet: meta.subnet, server: meta.server, sign });
      }
      const seen = witnesses.all.map((one) => checked(one, meta.subnet, paths));
      const { entries, broken } = await verifyAudit(store, meta.server, key, head, seen);
      if (broken !== undefined) throw brokenLog(broken, paths.database);
      printFields(target, { entries, head: head?.seq ?? null, intact: true });
    });
  } finally {
    key.fill(0);
  }
}

async function verifyFile(
  target: OutputTarget,
  paths: KeyServerPaths,
  file: string,
): Promise<void> {
  const key = readKeyFile(paths.auditKey, KEY_KIND.audit);
  const head = readAuditHead(paths.auditHead);
  const noted = head === undefined ? [] : [{ ...head, witness: OWN_WITNESS }];
  const seen = [...noted, ...new AuditWitnesses(paths.auditWitnesses).all];
  const input = file === '-' ? process.stdin : createReadStream(file);
  input.setEncoding('utf8');
  try {
    const { broken, entries, first, last } = await verifyExport(linesOf(input), key, seen);
    if (broken !== undefined) throw brokenLog(broken, file);
    printFields(target, { entries, first, last, head: head?.seq ?? null, intact: true });
  } catch (thrown) {
    if (thrown instanceof PairwireError) throw thrown;
    throw new PairwireError('FILE_UNREADABLE', `cannot read the file: ${messageOf(thrown)}`, {
      where: file,
      cause: thrown,
    });
  } finally {
    key.fill(0);
  }
}

/** A witness counts by the server's own signature; the file may have been edited. */
function checked(
  one: AuditWitness,
  subnet: Parameters<typeof openStoredHead>[0],
  { auditWitnesses: where }: KeyServerPaths,
): AuditWitness {
  const { record, seq, mac, witness } = one;
  if (record === undefined && witness === OWN_WITNESS) return one;
  const head = record === undefined ? undefined : openStoredHead(subnet, record).head;
  const isSame = head?.seq === seq && Buffer.from(head.mac).toString('base64url') === mac;
  if (isSame) return one;
  throw new PairwireError('FILE_UNREADABLE', `what ${witness} has seen is not what was signed`, {
    where,
  });
}

function brokenLog(broken: NonNullable<AuditCheck['broken']>, where: string): PairwireError {
  return new PairwireError('STORE_FAILED', `entry ${broken.seq}: ${broken.reason}`, {
    where,
    hint: 'somebody has written to it, or a backup was put back; after a restore that you know of: pairwire restore confirm',
  });
}

function showHead(target: OutputTarget, { dir }: Place): void {
  const config = loadKeyServerConfig(dir);
  const paths = pathsOf(dir, config);
  const head = readAuditHead(paths.auditHead);
  const { all, settledAt } = new AuditWitnesses(paths.auditWitnesses);
  const signed =
    head?.signed === undefined ? undefined : openStoredHead(config.subnet, head.signed).head;
  printFields(target, {
    server: head?.server ?? null,
    seq: head?.seq ?? null,
    mac: head?.mac ?? null,
    signed: signed === undefined ? null : isoTime(signed.time),
    key: publicKey(paths),
    confirmed: settledAt === undefined ? null : isoTime(settledAt),
    contradictedBy: all.map(({ witness, seq }) => `${witness} (entry ${seq})`),
  });
}

/** Only read: the server makes it. */
function publicKey({ auditSignKey }: KeyServerPaths): string | null {
  if (!existsSync(auditSignKey)) return null;
  const raw = readKeyFile(auditSignKey, KEY_KIND.auditSign);
  try {
    return publicOf(importPrivate('ed25519', raw)).toString('base64url');
  } finally {
    raw.fill(0);
  }
}

function parseSince(text: string): number {
  if (/^\d+[a-z]+$/.test(text)) return Date.now() - parseDuration(text, '--since');
  const parsed = z.union([z.iso.date(), z.iso.datetime({ offset: true })]).safeParse(text);
  if (parsed.success) return Date.parse(parsed.data);
  throw new PairwireError('USAGE', `--since: "${text}" is no time`, {
    hint: 'write 2026-01-31, 2026-01-31T12:00:00Z, or how long ago, as in 7d',
  });
}

/** Waits while whoever reads is slower. */
async function toStandardOutput(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, 'drain');
}
