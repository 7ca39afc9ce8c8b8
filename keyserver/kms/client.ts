/** The key server's channel to its KMS: DEKs made and opened, and what the KMS says of itself. */
import type { ChannelAddress } from '../../src/net/address.js';
import { formatChannelAddress } from '../../src/net/address.js';
import { type Message, RequestError } from '../../src/net/channel.js';
import { ChannelClient } from '../../src/net/channel-client.js';
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import {
  type KmsLimited,
  kmsAnswerSchemas,
  type StoredDek,
} from '../../src/protocol/kms-messages.js';
import { PairwireError, type PeerCode } from '../../src/runtime/errors.js';
import type { Logger } from '../../src/runtime/log.js';
import type { MadeDek } from './root-keys.js';

const REQUEST_TIMEOUT_MS = 15_000;

/** Where a KMS is, and its public key. */
export interface KmsAddress extends ChannelAddress {
  readonly publicKey: Uint8Array;
}

/** Requests that a KMS did not fulfil. */
export interface KmsFailures {
  readonly type: string;
  /** What it answered: `limit` over a limit of its kms.yaml. */
  readonly code: PeerCode | 'no_answer';
  readonly count: number;
}

/** What a KMS says of itself. */
export interface KmsStatus {
  /** Of the root key that seals. */
  readonly generation: number;
  readonly generations: readonly number[];
  /** Those of them that are in a PKCS#11 token. */
  readonly inToken: readonly number[];
  /** Requests of all key servers that went over a limit of kms.yaml, since it began. */
  readonly limited: number;
  /** The same, by limit. */
  readonly limitedBy: KmsLimited;
  /** Bytes of the file of its log that it writes to. */
  readonly auditBytes: number;
  /** Full files of it that are kept. */
  readonly auditFiles: number;
  /** Entries of it that are gone, because no more files than that are kept. */
  readonly auditGone: number;
}

/** One KMS, wherever it is; the channel comes back by itself. */
export class KmsClient {
  readonly #keys: KeyPair;
  readonly #log: Logger;
  #client: ChannelClient | undefined;
  #where = '';
  #publicKey: Buffer | undefined;
  #closed = false;
  readonly #failures = new Map<string, KmsFailures>();
  /** Those who wait for the first address. */
  #waiting: (() => void)[] = [];

  constructor(keys: KeyPair, log: Logger) {
    this.#keys = keys;
    this.#log = log;
  }

  /** Where the KMS is from now on. */
  setAddress(address: KmsAddress): void {
    if (this.#closed) return;
    const { publicKey, ...place } = address;
    this.#publicKey = Buffer.from(publicKey);
    const before = this.#client;
    this.#where = formatChannelAddress(place);
    this.#client = new ChannelClient({
      servers: [{ ...place, publicKey: Buffer.from(publicKey) }],
      staticKeys: this.#keys,
      onState: (state) => {
        if (state.kind === 'open' && !state.renewed) this.#log.info('the KMS is there');
        if (state.kind === 'down') {
          this.#log.warn(
            { err: state.error, retryInMs: Math.round(state.retryInMs) },
            'no channel to the KMS; keys that are open stay in use',
          );
        }
      },
    });
    this.#client.start();
    before?.stop();
    for (const go of this.#waiting.splice(0)) go();
  }

  /** What it did not do for this key server since the start, by request and by what it said. */
  get failures(): readonly KmsFailures[] {
    return [...this.#failures.values()];
  }

  /** True while there is a channel. */
  get connected(): boolean {
    return this.#client?.state.kind === 'open';
  }

  /** @throws PairwireError KMS_FAILED if it refuses or does not answer */
  async make(): Promise<MadeDek> {
    const { dek, key, sealed } = await this.#ask({ t: 'dek.make' }, (answer) =>
      kmsAnswerSchemas['dek.make'].parse(answer),
    );
    return { id: Buffer.from(dek), key: Buffer.from(key), sealed: Buffer.from(sealed) };
  }

  /** @throws PairwireError KMS_FAILED, also for a DEK of another KMS or subnet */
  async open(deks: readonly StoredDek[]): Promise<readonly Buffer[]> {
    const { keys } = await this.#ask({ t: 'dek.open', deks }, (answer) =>
      kmsAnswerSchemas['dek.open'].parse(answer),
    );
    if (keys.length !== deks.length) {
      throw new PairwireError('KMS_FAILED', 'the KMS has opened other DEKs than were asked');
    }
    return keys.map((key) => Buffer.from(key));
  }

  /** @throws PairwireError KMS_FAILED */
  status(): Promise<KmsStatus> {
    return this.#ask({ t: 'kms.status' }, (answer) => kmsAnswerSchemas['kms.status'].parse(answer));
  }

  /** Has it make the root key after this one. @returns the generation that seals. @throws PairwireError KMS_FAILED */
  async rotateRoot(after: number): Promise<number> {
    const { generation } = await this.#ask({ t: 'root.rotate', after }, (answer) =>
      kmsAnswerSchemas['root.rotate'].parse(answer),
    );
    return generation;
  }

  /** Its public channel key; undefined until it is known. */
  get publicKey(): Buffer | undefined {
    return this.#publicKey;
  }

  /** Carries a member's question. @param signer our public signing key, of tickets. @throws PairwireError KMS_FAILED */
  async exchange(message: Uint8Array, signer: Uint8Array): Promise<Buffer> {
    const answer = await this.#ask({ t: 'member.exchange', message, signer }, (it) =>
      kmsAnswerSchemas['member.exchange'].parse(it),
    );
    return Buffer.from(answer.message);
  }

  /** Ends the channel; what is asked fails. */
  close(): void {
    this.#closed = true;
    this.#client?.stop();
    for (const go of this.#waiting.splice(0)) go();
  }

  async #ask<T>(message: Message, parse: (answer: unknown) => T): Promise<T> {
    try {
      const client = await this.#ready();
      return await client.request(message, { timeoutMs: REQUEST_TIMEOUT_MS, parse });
    } catch (thrown) {
      this.#count(message.t, thrown instanceof RequestError ? thrown.code : 'no_answer');
      if (thrown instanceof RequestError) {
        const what = thrown.code === 'unavailable' ? 'can not do' : 'refuses';
        throw new PairwireError('KMS_FAILED', `the KMS ${what} ${message.t}: ${thrown.message}`, {
          where: this.#where,
          hint: 'its own log and audit.log say why; its folder must be the one whose root key sealed these DEKs',
          cause: thrown,
        });
      }
      if (thrown instanceof PairwireError && thrown.code === 'KMS_FAILED') throw thrown;
      throw new PairwireError('KMS_FAILED', 'the KMS does not answer', {
        where: this.#where,
        hint: 'see that it runs, and that kms.key and kms.address in keyserver.yaml are its own',
        cause: thrown,
      });
    }
  }

  #count(type: string, code: KmsFailures['code']): void {
    const name = `${type} ${code}`;
    const count = (this.#failures.get(name)?.count ?? 0) + 1;
    this.#failures.set(name, { type, code, count });
  }

  async #ready(): Promise<ChannelClient> {
    if (this.#client === undefined && !this.#closed) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
        timer = setTimeout(resolve, REQUEST_TIMEOUT_MS);
      });
      clearTimeout(timer);
    }
    if (this.#client === undefined || this.#closed) {
      throw new PairwireError('KMS_FAILED', 'there is no KMS');
    }
    return this.#client;
  }
}
