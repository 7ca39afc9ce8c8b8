/** The KMS of a key server's folder in this process, reached over its real channel; it may go and come back. */
import type { KeyServerPaths } from '../../../../keyserver/config.js';
import { KEY_KIND } from '../../../../keyserver/config.js';
import { KmsAudit } from '../../../../keyserver/kms/audit-file.js';
import { KmsClient } from '../../../../keyserver/kms/client.js';
import { KMS_KEY_KIND, kmsPaths, loadKmsConfig } from '../../../../keyserver/kms/config.js';
import { IdentityDirectory } from '../../../../keyserver/kms/identity-directory.js';
import { RootKeys } from '../../../../keyserver/kms/root-keys.js';
import { Kms } from '../../../../keyserver/kms/service.js';
import { keyPairFromPrivate } from '../../../../src/protocol/channel/keys.js';
import { readKeyFile } from '../../../../src/runtime/files.js';
import { createLogger } from '../../../../src/runtime/log.js';

const log = createLogger('test', { level: 'silent' });

export class TestKms {
  readonly client: KmsClient;
  readonly dir: string;
  #kms: Kms | undefined;
  #port = 0;

  private constructor(paths: KeyServerPaths) {
    const raw = readKeyFile(paths.serverKey, KEY_KIND.server);
    this.client = new KmsClient(keyPairFromPrivate(raw), log);
    this.dir = paths.kms;
  }

  static async start(paths: KeyServerPaths): Promise<TestKms> {
    const kms = new TestKms(paths);
    await kms.run();
    return kms;
  }

  get publicKey(): Buffer {
    return keyPairFromPrivate(readKeyFile(kmsPaths(this.dir).key, KMS_KEY_KIND.channel)).publicKey;
  }

  /** Starts it, again at the same port. */
  async run(): Promise<void> {
    const paths = kmsPaths(this.dir);
    const auditKey = readKeyFile(paths.auditKey, KMS_KEY_KIND.audit);
    const { kms, addresses } = await Kms.start({
      ...{ config: loadKmsConfig(this.dir), roots: RootKeys.load(this.dir), log },
      directory: new IdentityDirectory(paths, auditKey),
      audit: KmsAudit.open(paths.auditLog, auditKey).audit,
      staticKeys: keyPairFromPrivate(readKeyFile(paths.key, KMS_KEY_KIND.channel)),
      listen: [{ scheme: 'tcp', host: '127.0.0.1', port: this.#port }],
    });
    this.#kms = kms;
    this.#port = addresses[0]?.port ?? 0;
    const { publicKey } = this;
    this.client.setAddress({ scheme: 'tcp', host: '127.0.0.1', port: this.#port, publicKey });
  }

  /** Ends it; who asks waits. */
  async halt(): Promise<void> {
    await this.#kms?.close();
    this.#kms = undefined;
  }

  async close(): Promise<void> {
    this.client.close();
    await this.halt();
  }
}
