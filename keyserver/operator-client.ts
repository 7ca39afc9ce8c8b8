/** The operator's end of the channel to the running key server of a folder: for the commands. */
import { type ChannelAddress, formatChannelAddress, SCHEMES } from '../src/net/address.js';
import { RequestError } from '../src/net/channel.js';
import { ChannelClient } from '../src/net/channel-client.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import type { Id } from '../src/protocol/ids.js';
import type { MacAddress } from '../src/protocol/mac.js';
import { answerSchemas, type ListName, MAX_ROWS } from '../src/protocol/messages.js';
import type { Signed } from '../src/protocol/signed.js';
import { messageOf, PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import {
  isWildcard,
  KEY_KIND,
  type KeyServerConfig,
  listenAddresses,
  pathsOf,
  requireChannelAddress,
} from './config.js';
import type { VaultStatus } from './key-vault.js';
import type { KeyServer } from './server.js';
import { isPostgres } from './storage/postgres-target.js';

const REQUEST_TIMEOUT_MS = 15_000;
/** Channels to an address that may end before they were of use: one that starts, or is busy, may be slow or close the first. */
const TRIES = 3;

/** What an operator may ask. */
export class OperatorClient {
  readonly #client: ChannelClient;
  readonly #down: Promise<never>;

  /** @throws PairwireError FILE_UNREADABLE, FILE_MODE */
  constructor(dir: string, config: KeyServerConfig) {
    const paths = pathsOf(dir, config);
    const server = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
    const admin = keyPairFromPrivate(readKeyFile(paths.adminKey, KEY_KIND.admin));
    const own = listenAddresses(config).map((address) => ({
      ...address,
      host: localHost(address.host),
    }));
    // Of several on one PostgreSQL one serves, which need not be the one on this machine.
    const others = isPostgres(config.database)
      ? config.advertise.map((text) => requireChannelAddress(text, 'advertise'))
      : [];
    const servers = [...own, ...others].map((address) => ({
      ...address,
      publicKey: server.publicKey,
    }));
    // Where nobody listens is known at once; the client asks the first one twice before it goes round.
    let left = TRIES * (servers.length + 1);
    const [first, ...more] = servers.toSorted(byScheme);
    if (first === undefined) throw new PairwireError('CONFIG_INVALID', 'listen names no address');
    let fail: (error: PairwireError) => void = () => {};
    this.#down = new Promise((_resolve, reject) => {
      fail = reject;
    });
    this.#down.catch(() => {});
    this.#client = new ChannelClient({
      servers: [first, ...more],
      staticKeys: admin,
      onState: (state) => {
        if (state.kind !== 'down') return;
        left -= state.error.code === 'CHANNEL_UNREACHABLE' ? TRIES : 1;
        if (left > 0) return;
        fail(
          new PairwireError(
            'CHANNEL_UNREACHABLE',
            `the key server does not answer: ${messageOf(state.error)}`,
            {
              where: formatChannelAddress(first),
              hint: `start it: pairwire keyserver --dir ${dir}`,
              cause: state.error,
            },
          ),
        );
      },
    });
    this.#client.start();
  }

  /** Reads a list, page by page. @param limit most rows */
  async *list(what: ListName, limit = Number.POSITIVE_INFINITY): AsyncIterable<ListRow> {
    let after: number | undefined;
    let left = limit;
    while (left > 0) {
      const { rows, next } = await this.#ask(
        { t: 'list', what, after, limit: Math.min(left, MAX_ROWS) },
        (answer) => answerSchemas.list.parse(answer),
      );
      yield* rows;
      if (next === undefined) return;
      left -= rows.length;
      after = next;
    }
  }

  /** Installs security settings. @returns their version */
  async setSettings(settings: Signed): Promise<number> {
    const answer = await this.#ask({ t: 'settings.set', settings }, (value) =>
      answerSchemas['settings.set'].parse(value),
    );
    return answer.version;
  }

  /** Renews pair keys: of (a, b), of all pairs of one of them, or of all. @returns how many */
  async rekey(what: {
    readonly a: Id | undefined;
    readonly b: Id | undefined;
    readonly force: boolean;
  }): Promise<number> {
    const { a, b, force } = what;
    const ends = { ...(a === undefined ? {} : { a }), ...(b === undefined ? {} : { b }) };
    const answer = await this.#ask({ t: 'rekey', ...ends, force }, (value) =>
      answerSchemas.rekey.parse(value),
    );
    return answer.pairs;
  }

  /** Renews the group key. @returns the number of the generation */
  async rekeyGroup(force: boolean): Promise<number> {
    const answer = await this.#ask({ t: 'rekey', group: true, force }, (value) =>
      answerSchemas.rekey.parse(value),
    );
    return answer.group ?? 0;
  }

  /** Renews the net key with a subnet, or with all. @returns how many */
  async rekeyNets(net: Id | true, force: boolean): Promise<number> {
    const answer = await this.#ask({ t: 'rekey', net, force }, (value) =>
      answerSchemas.rekey.parse(value),
    );
    return answer.nets ?? 0;
  }

  /** Peers with the key server that made a token. @returns its net id, its server id if it is of our subnet, and our id there */
  async addPeer(
    token: string,
    prefixes: readonly string[],
  ): Promise<{ readonly net: Id; readonly server: Id | undefined; readonly member: Id }> {
    const { net, server, member } = await this.#ask({ t: 'peer.add', token, prefixes }, (value) =>
      answerSchemas['peer.add'].parse(value),
    );
    return { net, server, member };
  }

  /** Ends what `addPeer` began, by net id or server id; `agreed`: also if that makes another server the first one. @returns whether the other net's key server knows; undefined for a server of this subnet */
  async removePeer(net: Id, agreed: boolean): Promise<boolean | undefined> {
    const { told } = await this.#ask({ t: 'peer.remove', net, agreed }, (value) =>
      answerSchemas['peer.remove'].parse(value),
    );
    return told;
  }

  /** Takes a member out, for ever. @returns `server` if it was another key server, which is out with its members */
  async revoke(
    member: Id,
  ): Promise<{ readonly number: number; readonly fresh: boolean; readonly server?: Id }> {
    const { number, fresh, server } = await this.#ask({ t: 'revoke', member }, (value) =>
      answerSchemas.revoke.parse(value),
    );
    return { number, fresh, ...(server === undefined ? {} : { server }) };
  }

  /** Ties an address outside to a plain member. */
  async pinMac(vlan: number, mac: MacAddress, member: Id): Promise<void> {
    await this.#ask({ t: 'mac.pin', vlan, mac, member }, (value) =>
      answerSchemas['mac.pin'].parse(value),
    );
  }

  /** Frees an address. @returns how many tombstones and pins it had */
  async freeMac(mac: MacAddress): Promise<{ readonly tombstones: number; readonly pins: number }> {
    const { tombstones, pins } = await this.#ask({ t: 'mac.free', mac }, (value) =>
      answerSchemas['mac.free'].parse(value),
    );
    return { tombstones, pins };
  }

  /** Ties an IP address to a MAC address. */
  async pinIp(ip: string, mac: MacAddress): Promise<void> {
    await this.#ask({ t: 'ip.pin', ip, mac }, (value) => answerSchemas['ip.pin'].parse(value));
  }

  /** Frees an IP address. @returns what it was, and for which MAC address */
  async freeIp(ip: string): Promise<{ readonly was: string; readonly mac: MacAddress }> {
    const { was, mac } = await this.#ask({ t: 'ip.free', ip }, (value) =>
      answerSchemas['ip.free'].parse(value),
    );
    return { was, mac };
  }

  /** Lets a key server whose database was put back serve again. @returns the last revocation's number from now on */
  async confirmRestore(): Promise<number> {
    const answer = await this.#ask({ t: 'restore.confirm' }, (value) =>
      answerSchemas['restore.confirm'].parse(value),
    );
    return answer.revocation;
  }

  /** How the stored keys are sealed, and what is wrong with the rest of the database. */
  async kmsStatus(): Promise<VaultStatus & KeyServer['alarms']> {
    const {
      t: _t,
      id: _id,
      ...status
    } = await this.#ask({ t: 'kms.status' }, (value) => answerSchemas['kms.status'].parse(value));
    return status;
  }

  /** Has all stored keys sealed by another DEK. @returns the generation of the root key that seals it */
  async kmsRotate(root: boolean): Promise<number> {
    const { generation } = await this.#ask({ t: 'kms.rotate', root }, (value) =>
      answerSchemas['kms.rotate'].parse(value),
    );
    return generation;
  }

  close(): void {
    this.#client.stop();
  }

  async #ask<T>(
    message: { readonly t: string; readonly [key: string]: unknown },
    parse: (answer: unknown) => T,
  ): Promise<T> {
    try {
      return await Promise.race([
        this.#client.request(message, { timeoutMs: REQUEST_TIMEOUT_MS, parse }),
        this.#down,
      ]);
    } catch (thrown) {
      if (!(thrown instanceof RequestError)) throw thrown;
      throw new PairwireError('REFUSED', `the key server refused: ${thrown.message}`, {
        cause: thrown,
      });
    }
  }
}

/** TCP first: it says at once that nobody listens. */
function byScheme(a: ChannelAddress, b: ChannelAddress): number {
  return SCHEMES.indexOf(a.scheme) - SCHEMES.indexOf(b.scheme);
}

/** Where a server on this machine is reached that listens there. */
function localHost(host: string): string {
  if (!isWildcard(host)) return host;
  return host === '::' ? '::1' : '127.0.0.1';
}

export type ListRow = Readonly<Record<string, unknown>>;
