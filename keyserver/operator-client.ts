/** The operator's end of the channel to the running key server of a folder: for the commands. */
import { ChannelClient, RequestError } from '../src/net/channel-tcp.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { answerSchemas, type ListName, MAX_ROWS } from '../src/protocol/messages.js';
import type { Signed } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import { isWildcard, KEY_KIND, type KeyServerConfig, pathsOf, requireHostPort } from './config.js';

const REQUEST_TIMEOUT_MS = 15_000;

/** What an operator may ask. */
export class OperatorClient {
  readonly #client: ChannelClient;
  readonly #down: Promise<never>;

  /** @throws PairwireError FILE_UNREADABLE, FILE_MODE */
  constructor(dir: string, config: KeyServerConfig) {
    const paths = pathsOf(dir, config);
    const server = keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server));
    const admin = keyPairFromPrivate(readKeyFile(paths.adminKey, KEY_KIND.admin));
    const { host, port } = requireHostPort(config.listen, 'listen');
    const local = isWildcard(host) ? (host === '::' ? '::1' : '127.0.0.1') : host;
    let fail: (error: PairwireError) => void = () => {};
    this.#down = new Promise((_resolve, reject) => {
      fail = reject;
    });
    this.#down.catch(() => {});
    this.#client = new ChannelClient({
      servers: [{ host: local, port, publicKey: server.publicKey }],
      staticKeys: admin,
      onState: (state) => {
        if (state.kind !== 'down') return;
        fail(
          new PairwireError('CHANNEL_UNREACHABLE', 'the key server does not answer', {
            where: `${local}:${port}`,
            hint: `start it: pairwire keyserver --dir ${dir}`,
            cause: state.error,
          }),
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

export type ListRow = Readonly<Record<string, unknown>>;
