/** The KMS of a key server: the one that its configuration names, or a child in the folder `kms`, which is made if there is none. */
import { parseChannelAddress } from '../src/net/address.js';
import type { KeyPair } from '../src/protocol/channel/keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import type { Logger } from '../src/runtime/log.js';
import { KEY_KIND, type KeyServerConfig, type KeyServerPaths } from './config.js';
import { KmsClient } from './kms/client.js';
import { hasKms, kmsPublicKey, makeKms } from './kms/folder.js';
import { KmsProcess } from './kms-process.js';

/** The channel to a KMS, and the process if it is ours. */
export class KmsLink {
  readonly client: KmsClient;
  readonly #process: KmsProcess | undefined;
  readonly #started: Promise<void>;

  constructor(client: KmsClient, process?: KmsProcess) {
    this.client = client;
    this.#process = process;
    this.#started = process === undefined ? Promise.resolve() : process.start();
    // `ready` tells; until it is called, a failure must not count as nobody's.
    this.#started.catch(() => undefined);
  }

  /** Restarts of the child. */
  get restarts(): number {
    return this.#process?.restarts ?? 0;
  }

  /** Settles when it listens, as far as that is for us to see. @throws PairwireError KMS_FAILED if a child can't start */
  ready(): Promise<void> {
    return this.#started;
  }

  async close(): Promise<void> {
    this.client.close();
    await this.#process?.stop();
  }
}

/**
 * Connects to the KMS.
 * @param sealed whether the store was ever sealed: asked if there is no KMS yet, which is then made
 * @throws PairwireError KMS_FAILED if its folder is gone: what it sealed can't be opened without it
 */
export async function linkKms(
  config: KeyServerConfig,
  paths: KeyServerPaths,
  keys: KeyPair,
  log: Logger,
  sealed: () => Promise<boolean>,
): Promise<KmsLink> {
  const client = new KmsClient(keys, log);
  const { address, key, user } = config.kms;
  if (address !== undefined && key !== undefined) {
    const place = parseChannelAddress(address);
    if (place === undefined) throw new PairwireError('CONFIG_INVALID', `kms.address: ${address}`);
    client.setAddress({ ...place, publicKey: Buffer.from(key, 'base64url') });
    return new KmsLink(client);
  }
  if (!hasKms(paths.kms)) {
    if (await sealed()) {
      throw new PairwireError('KMS_FAILED', 'the folder of the KMS is not there', {
        where: paths.kms,
        hint: 'put it back from your backup, or name the KMS under kms: in keyserver.yaml',
      });
    }
    const { subnet, server } = config;
    const operator = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true });
    makeKms(paths.kms, { subnet, server, serverKey: keys.publicKey, operator });
    log.warn({ folder: paths.kms }, 'made a KMS: back its root key up, apart from the database');
  }
  const publicKey = kmsPublicKey(paths.kms);
  const child = new KmsProcess(paths.kms, user, log, (port) =>
    client.setAddress({ scheme: 'tcp', host: '127.0.0.1', port, publicKey }),
  );
  return new KmsLink(client, child);
}
