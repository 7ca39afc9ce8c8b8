/**
 * The KMS as a process: `pairwire kms --dir`, or the child of a key server that names no other. As a child it listens on
 * loopback at a free port, says which on its standard output, and ends with its parent, whose end it sees by its standard input.
 */

import { formatChannelAddress, parseChannelAddress } from '../../src/net/address.js';
import type { ListenAddress } from '../../src/net/channel.js';
import { keyPairFromPrivate } from '../../src/protocol/channel/keys.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile } from '../../src/runtime/files.js';
import { lockFolder } from '../../src/runtime/folder-lock.js';
import { Lifecycle } from '../../src/runtime/lifecycle.js';
import { createLogger } from '../../src/runtime/log.js';
import { KmsAudit } from './audit-file.js';
import { KMS_KEY_KIND, kmsPaths, loadKmsConfig } from './config.js';
import { IdentityDirectory } from './identity-directory.js';
import { RootKeys } from './root-keys.js';
import { requireOwnSecret } from './secret-files.js';
import { Kms } from './service.js';

/** Runs the KMS of a folder until a signal, as a child also until its parent ends. @throws PairwireError if it can't start */
export async function runKms(
  dir: string,
  options: { readonly child?: boolean } = {},
): Promise<void> {
  const config = loadKmsConfig(dir);
  const paths = kmsPaths(dir);
  const log = createLogger('kms', config.log);
  const life = new Lifecycle(log);
  // The one before may have been a child of a key server that was killed, and see that only now.
  const unlock = lockFolder(paths.dir, 'a KMS', LOCK_WAIT_MS);
  for (const file of [paths.key, paths.auditKey]) requireOwnSecret(file);
  const staticKeys = keyPairFromPrivate(readKeyFile(paths.key, KMS_KEY_KIND.channel));
  const roots = RootKeys.load(paths.dir, config.token);
  life.started('root keys', async () => roots.close());
  const auditKey = readKeyFile(paths.auditKey, KMS_KEY_KIND.audit);
  const { audit, torn } = KmsAudit.open(paths.auditLog, auditKey, Date.now, config.audit);
  if (torn > 0)
    log.warn({ bytes: torn }, 'the last line of the audit log was torn, and is cut off');
  const listen = options.child === true ? LOOPBACK : requireAddress(config.listen);
  try {
    const directory = new IdentityDirectory(paths, auditKey);
    if (directory.broken !== undefined) {
      log.error(
        { file: paths.identities, reason: directory.broken },
        'the identity directory is damaged: nothing is answered about identities',
      );
    }
    if (config.operator === undefined) {
      log.warn('kms.yaml names no operator: no identity documents are kept (docs/operations.md)');
    }
    const parts = { config, roots, directory, audit, staticKeys, listen, log };
    const { kms, addresses } = await Kms.start(parts);
    life.started('kms', () => kms.close());
    const { subnet } = config;
    const shown = addresses.map(formatChannelAddress);
    const publicKey = staticKeys.publicKey.toString('base64url');
    log.info({ subnet, addresses: shown, publicKey, generation: roots.generation }, 'KMS listens');
    if (options.child === true) {
      process.stdout.write(`${JSON.stringify({ port: addresses[0]?.port ?? 0 })}\n`);
    }
    await (options.child === true ? endWithParent() : life.untilSignal());
  } finally {
    await life.stop();
    auditKey.fill(0);
    unlock();
  }
}

const LOCK_WAIT_MS = 10_000;

const LOOPBACK: readonly ListenAddress[] = [{ scheme: 'tcp', host: '127.0.0.1', port: 0 }];

function requireAddress(text: string): readonly ListenAddress[] {
  const address = parseChannelAddress(text);
  if (address === undefined) throw new PairwireError('CONFIG_INVALID', `listen: ${text}`);
  return [address];
}

/**
 * At once, for the parent's successor may start another KMS in this folder; what was answered is on the disk. A signal that goes to
 * both (Ctrl-C, the end of a unit) is the parent's business: it stops us when it needs us no more.
 */
function endWithParent(): Promise<never> {
  const end = (): void => process.exit(0);
  process.stdin.on('end', end).on('error', end);
  process.stdin.resume();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
  return new Promise(() => {
    // It ends with its parent only.
  });
}
