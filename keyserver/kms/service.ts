/**
 * The KMS: makes DEKs, opens them for the key servers that kms.yaml names, answers members whose questions these carry
 * (identities.ts), and notes all of it. It has no database and never sees a key of members; whoever else comes is turned away at the
 * handshake.
 */
import {
  type Answer,
  type ListenAddress,
  RequestError,
  type Session,
} from '../../src/net/channel.js';
import { ChannelServer } from '../../src/net/channel-server.js';
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import type { Id } from '../../src/protocol/ids.js';
import { type KmsRequest, kmsRequestSchema } from '../../src/protocol/kms-messages.js';
import { importPublic } from '../../src/protocol/public-keys.js';
import { type ErrorCode, PairwireError, type PeerCode } from '../../src/runtime/errors.js';
import type { Logger } from '../../src/runtime/log.js';
import type { KmsAudit } from './audit-file.js';
import type { KmsConfig } from './config.js';
import { Identities } from './identities.js';
import type { IdentityDirectory } from './identity-directory.js';
import { Quotas } from './quota.js';
import type { RootKeys } from './root-keys.js';

const SWEEP_MS = 10_000;
/** A key server needs one channel; more of them are of one that was restarted. */
const CONNECTIONS = { maxConnections: 256, maxHalfOpen: 64, maxPerKey: 8 };
const TYPES: ReadonlySet<string> = new Set(
  kmsRequestSchema.options.map((option) => option.shape.t.value),
);

/** What a key server hears of an error; of all others, that it was refused. */
const PEER_CODE: Partial<Record<ErrorCode, PeerCode>> = {
  LIMIT: 'limit',
  KMS_TOKEN: 'unavailable',
};

export interface KmsOptions {
  readonly config: Pick<KmsConfig, 'subnet' | 'keyServers' | 'operator' | 'limits'>;
  readonly roots: RootKeys;
  readonly directory: IdentityDirectory;
  readonly audit: KmsAudit;
  readonly staticKeys: KeyPair;
  readonly listen: readonly ListenAddress[];
  readonly log: Logger;
  readonly now?: () => number;
}

/** A KMS that runs. */
export class Kms {
  readonly #options: KmsOptions;
  readonly #servers: ReadonlyMap<string, Id>;
  readonly #identities: Identities;
  readonly #channels: ChannelServer<KmsRequest>;
  readonly #quotas: Quotas;
  readonly #sweeper: NodeJS.Timeout;

  private constructor(options: KmsOptions) {
    const { config, staticKeys, listen, log } = options;
    this.#options = options;
    this.#quotas = new Quotas(config.limits);
    const { subnet, operator } = config;
    this.#identities = new Identities({
      ...options,
      subnet,
      operator:
        operator === undefined
          ? undefined
          : importPublic('ed25519', Buffer.from(operator, 'base64url')),
    });
    this.#servers = new Map(config.keyServers.map(({ server, key }) => [key, server]));
    this.#channels = new ChannelServer<KmsRequest>({
      listen,
      staticKeys,
      authorise: (key) => this.#serverOf(key) !== undefined,
      psk: () => undefined,
      types: TYPES,
      parse: (message) => kmsRequestSchema.parse(message),
      onRequest: (session, request) => this.#request(session, request),
      onClose: ({ address, reason }) => {
        if (reason !== 'unknown_key') return;
        if (this.#refused('-', 'channel', address.slice(0, address.lastIndexOf(':')))) {
          log.warn({ address }, 'somebody unknown was turned away');
        }
      },
      onError: (err) => log.error({ err }, 'a request failed'),
      limits: CONNECTIONS,
    });
    this.#sweeper = setInterval(() => {
      try {
        options.audit.sweep();
      } catch (err) {
        log.error({ err }, 'the audit log cannot be written');
      }
    }, SWEEP_MS);
    this.#sweeper.unref();
  }

  /** @returns also where it listens. @throws PairwireError CHANNEL_UNREACHABLE */
  static async start(
    options: KmsOptions,
  ): Promise<{ readonly kms: Kms; readonly addresses: readonly ListenAddress[] }> {
    const kms = new Kms(options);
    const addresses = await kms.#channels.listen();
    options.audit.note({
      ...{ actor: '-', action: 'start', outcome: 'done' },
      detail: { generation: options.roots.generation },
    });
    return { kms, addresses };
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper);
    await this.#channels.close();
    this.#options.directory.close();
    this.#options.audit.close();
  }

  #serverOf(key: Uint8Array): Id | undefined {
    return this.#servers.get(Buffer.from(key).toString('base64url'));
  }

  #request(session: Session, request: KmsRequest): Answer {
    const { log } = this.#options;
    const server = this.#serverOf(session.remoteKey);
    if (server === undefined) throw new RequestError('refused');
    try {
      return this.#handle(server, request);
    } catch (thrown) {
      if (!(thrown instanceof PairwireError)) throw thrown;
      // Its repeats are counted in the audit log: whoever is refused must not fill ours.
      if (this.#refused(server, request.t, thrown.code)) {
        log.warn({ err: thrown, server, type: request.t }, 'a request was refused');
      }
      throw new RequestError(PEER_CODE[thrown.code] ?? 'refused');
    }
  }

  #handle(server: Id, request: KmsRequest): Answer {
    const { roots, audit, config } = this.#options;
    const quotas = this.#quotas;
    quotas.take(server, request.t === 'member.exchange' ? 'question' : 'request');
    const owner = { subnet: config.subnet, server };
    const done = (detail: Record<string, string | number>): void =>
      audit.note({ actor: server, action: request.t, outcome: 'done', detail });
    switch (request.t) {
      case 'ping':
        return {};
      case 'kms.status':
        return {
          generation: roots.generation,
          generations: roots.generations,
          inToken: roots.inToken,
          limited: Object.values(quotas.refusals).reduce((sum, count) => sum + count, 0),
          limitedBy: quotas.refusals,
          auditBytes: audit.size,
          auditFiles: audit.files,
          auditGone: audit.gone,
        };
      case 'dek.make': {
        const { id, key, sealed } = quotas.spend(server, 'make', () => roots.makeDek(owner));
        done({ dek: id.toString('hex'), generation: roots.generation });
        return { dek: id, key, sealed };
      }
      case 'dek.open': {
        quotas.take(server, 'open', request.deks.length);
        const keys = request.deks.map((dek) => roots.openDek(owner, dek));
        done({
          deks: request.deks.length,
          last: Buffer.from(request.deks.at(-1)?.id ?? []).toString('hex'),
        });
        return { keys };
      }
      case 'root.rotate': {
        const before = roots.generation;
        const make = (): number => roots.rotate(request.after);
        // What is made already is told for nothing.
        const generation = request.after === before ? quotas.spend(server, 'root', make) : make();
        if (generation !== before) done({ generation });
        return { generation };
      }
      case 'member.exchange':
        return { message: this.#identities.exchange(server, request.signer, request.message) };
    }
  }

  /** @returns true for the first of its kind in a minute */
  #refused(actor: string, action: string, reason: string): boolean {
    const { audit, log } = this.#options;
    return audit.refused(actor, action, reason, (err) =>
      log.error({ err }, 'the audit log cannot be written'),
    );
  }
}
