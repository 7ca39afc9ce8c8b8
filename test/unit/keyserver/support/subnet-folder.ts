/** The folder of a key server: its keys, tokens for it, and clients of whoever serves it. */
import type { KeyObject } from 'node:crypto';
import { KEY_KIND, loadKeyServerConfig, pathsOf } from '../../../../keyserver/config.js';
import { type GrantWish, makeToken } from '../../../../keyserver/tokens.js';
import { ChannelClient, type ChannelClientOptions } from '../../../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../../../src/protocol/channel/keys.js';
import { type Id, parseId } from '../../../../src/protocol/ids.js';
import { importPrivate } from '../../../../src/protocol/public-keys.js';
import { parseToken, type Token } from '../../../../src/protocol/token.js';
import { readKeyFile } from '../../../../src/runtime/files.js';

export const SUBNET = parseId('east');
export const HOUR = 3_600_000;

/** What `init` has made; how it is served is the subclass's business. */
export abstract class SubnetFolder {
  readonly operator: KeyObject;
  readonly tokenKey: Buffer;
  readonly auditKey: Buffer;
  readonly serverPublic: Buffer;
  readonly adminKey: Buffer;
  readonly #clients: ChannelClient[] = [];
  #paths: ReturnType<typeof pathsOf> | undefined;

  protected constructor(
    readonly dir: string,
    readonly subnet: Id = SUBNET,
    readonly serverId: Id = parseId('s1'),
    operatorKey?: string,
  ) {
    const { paths } = this;
    const operator = operatorKey ?? paths.operatorKey;
    this.operator = importPrivate('ed25519', readKeyFile(operator, KEY_KIND.operatorPrivate));
    this.tokenKey = readKeyFile(paths.tokenKey, KEY_KIND.token);
    this.auditKey = readKeyFile(paths.auditKey, KEY_KIND.audit);
    this.adminKey = readKeyFile(paths.adminKey, KEY_KIND.admin);
    this.serverPublic = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server)).publicKey;
  }

  /** Where it is served on loopback. */
  abstract get port(): number;

  get paths(): ReturnType<typeof pathsOf> {
    this.#paths ??= pathsOf(this.dir, loadKeyServerConfig(this.dir));
    return this.#paths;
  }

  token(wish: Partial<GrantWish> & { id: string }): Token {
    const { text } = makeToken(
      {
        subnet: this.subnet,
        server: this.serverId,
        listen: `127.0.0.1:${this.port}`,
        advertise: [],
      },
      { operator: this.operator, tokenKey: this.tokenKey, serverPublic: this.serverPublic },
      {
        role: 'host',
        macs: [],
        ips: [],
        rights: [],
        uses: 1,
        notAfter: Date.now() + HOUR,
        ...wish,
      },
    );
    return parseToken(text);
  }

  /** A client with the administrator's key. */
  admin(): ChannelClient {
    return this.client(this.adminKey);
  }

  /** A client with this channel key; it reconnects by itself. */
  client(channelPrivate: Buffer, more: Partial<ChannelClientOptions> = {}): ChannelClient {
    const client = new ChannelClient({
      servers: [{ host: '127.0.0.1', port: this.port, publicKey: this.serverPublic }],
      staticKeys: keyPairFromPrivate(channelPrivate),
      ...more,
    });
    this.#clients.push(client);
    client.start();
    return client;
  }

  stopClients(): void {
    for (const client of this.#clients.splice(0)) client.stop();
  }
}
