/**
 * What the KMS does for members, docs/protocol.md 11.7: it seals their identity documents and remembers which one an id has,
 * and opens those of others. It believes the operator's signatures, the member's own, and, that somebody is a member, a fresh
 * ticket of the key server; never that server's word about an identity.
 */
import { createSecretKey, type KeyObject } from 'node:crypto';
import type { KeyPair } from '../../src/protocol/channel/keys.js';
import { LABEL } from '../../src/protocol/constants.js';
import { openDocument, sealDocument } from '../../src/protocol/envelope.js';
import type { Id } from '../../src/protocol/ids.js';
import {
  type Asked,
  type ExchangeAnswer,
  type ExchangeRequest,
  identityChangeSchema,
  type NamedPair,
  type Opened,
  openQuestion,
} from '../../src/protocol/kms-exchange.js';
import { openTicket, type Ticket } from '../../src/protocol/kms-ticket.js';
import { importPublic } from '../../src/protocol/public-keys.js';
import { identityDigest, identitySchema, verifyMembership } from '../../src/protocol/records.js';
import { openSigned, readUnverified, type Signed } from '../../src/protocol/signed.js';
import { messageOf, PairwireError } from '../../src/runtime/errors.js';
import type { Logger } from '../../src/runtime/log.js';
import type { KmsAudit } from './audit-file.js';
import type { IdentityDirectory, KeptBy } from './identity-directory.js';
import type { RootKeys } from './root-keys.js';

export interface IdentitiesOptions {
  readonly subnet: Id;
  /** Undefined: nothing is answered. */
  readonly operator: KeyObject | undefined;
  readonly staticKeys: KeyPair;
  readonly roots: RootKeys;
  readonly directory: IdentityDirectory;
  readonly audit: KmsAudit;
  readonly log: Logger;
  readonly now?: () => number;
}

/** Somebody else's document for an id, without the signatures that this takes. */
class Taken extends Error {}

export class Identities {
  readonly #options: IdentitiesOptions;
  readonly #now: () => number;

  constructor(options: IdentitiesOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
  }

  /**
   * Answers a member's question that a key server carries.
   * @param server the key server, by its channel
   * @param signer its public signing key
   * @throws PairwireError CHANNEL_HANDSHAKE for what is no question to this KMS
   */
  exchange(server: Id, signer: Uint8Array, message: Uint8Array): Buffer {
    const asked = openQuestion(this.#options.staticKeys, message);
    return asked.answer(this.#answer(server, signer, asked));
  }

  #answer(server: Id, signer: Uint8Array, { channel, request }: Asked): ExchangeAnswer {
    if (request === undefined) return this.#refuse(server, 'exchange', 'CHANNEL_MALFORMED');
    let actor: string = server;
    try {
      const { subnet, staticKeys } = this.#options;
      const expected = { subnet, server, channel, kms: staticKeys.publicKey };
      const key = importPublic('ed25519', signer);
      const ticket = openTicket(request.ticket, key, expected, this.#now());
      // Of another key server's member the home stands between: this one's word alone says that it is one.
      actor = [server, ...(ticket.home === undefined ? [] : [ticket.home]), ticket.id].join('/');
      return request.t === 'identity.seal'
        ? this.#seal(actor, ticket, request)
        : this.#open(actor, request.pairs);
    } catch (thrown) {
      if (thrown instanceof Taken) return this.#refuse(actor, request.t, 'TAKEN', 'taken');
      if (!(thrown instanceof PairwireError)) {
        this.#options.log.error({ err: thrown }, 'an exchange failed');
        return { t: 'no', why: 'unavailable' };
      }
      const { code } = thrown;
      this.#options.log.warn({ err: thrown, actor }, 'an exchange was refused');
      const ours = code === 'KMS_FAILED' || code === 'LIMIT';
      return this.#refuse(actor, request.t, code, ours ? 'unavailable' : 'refused');
    }
  }

  /** Remembers a document at its first sight, and seals it each time. */
  #seal(
    actor: string,
    ticket: Ticket,
    request: Extract<ExchangeRequest, { t: 'identity.seal' }>,
  ): ExchangeAnswer {
    const { subnet, operator, directory, roots, audit } = this.#options;
    if (operator === undefined) {
      throw new PairwireError('KMS_FAILED', 'kms.yaml names no operator', {
        hint: "write operator: KEY into it, the key in the key server's operator.pub, and start the KMS again",
      });
    }
    const member = verifyMembership(subnet, request.membership, operator);
    const own =
      ticket.home === undefined &&
      member.id === ticket.id &&
      Buffer.compare(member.channel, ticket.channel) === 0 &&
      member.grant.home === ticket.server;
    if (!own) {
      throw new PairwireError('RECORD_MISMATCH', 'a membership is not that of the ticket', {
        where: member.id,
      });
    }
    const { id, document, identityDigest: digest } = member;
    const known = directory.digestOf(id);
    let kept: KeptBy | 'again' = 'again';
    if (known === undefined || !known.equals(digest)) {
      kept = known === undefined ? 'first' : this.#mayFollow(id, known, digest, request.change);
      directory.keep(id, digest, kept);
    }
    const { key, sealed } = roots.makeDocumentDek({ subnet, id });
    try {
      const answer: ExchangeAnswer = {
        t: 'sealed',
        document: sealDocument(createSecretKey(key), { subnet, id }, document),
        dek: sealed,
      };
      const detail = { document: digest.toString('hex'), kept, generation: roots.generation };
      audit.note({ actor, action: 'identity.seal', outcome: 'done', detail });
      return answer;
    } finally {
      key.fill(0);
    }
  }

  /** Whose signature lets another document follow. @throws Taken without one */
  #mayFollow(
    id: Id,
    before: Buffer,
    after: Buffer,
    change: Extract<ExchangeRequest, { t: 'identity.seal' }>['change'],
  ): KeptBy {
    const { subnet, operator } = this.#options;
    if (change === undefined || operator === undefined) throw new Taken();
    let signer = operator;
    let by: KeptBy = 'operator';
    if (change.before !== undefined) {
      if (!identityDigest(change.before).equals(before)) throw new Taken();
      const { sign } = readUnverified(LABEL.identity, change.before, identitySchema);
      signer = importPublic('ed25519', sign);
      by = 'identity';
    }
    const said = openSigned(LABEL.identityChange, change.record, signer, identityChangeSchema);
    const fits =
      said.subnet === subnet &&
      said.id === id &&
      before.equals(said.before) &&
      after.equals(said.after);
    if (!fits) throw new Taken();
    return by;
  }

  #open(actor: string, pairs: readonly NamedPair[]): ExchangeAnswer {
    const { audit } = this.#options;
    const opened = pairs.map((pair) => this.#openOne(actor, pair));
    const not = opened.filter(({ is }) => is !== 'document').length;
    const detail = { ids: pairs.length, last: pairs.at(-1)?.id ?? '', not };
    audit.note({ actor, action: 'identity.open', outcome: 'done', detail });
    return { t: 'opened', opened };
  }

  #openOne(actor: string, { id, document, dek }: NamedPair): Opened {
    const { subnet, roots, directory, log } = this.#options;
    const digest = directory.digestOf(id);
    let opened: Signed;
    try {
      const key = roots.openDocumentDek({ subnet, id }, dek);
      try {
        opened = openDocument(createSecretKey(key), { subnet, id }, document);
      } finally {
        key.fill(0);
      }
    } catch (thrown) {
      if (!(thrown instanceof PairwireError) || thrown.code !== 'SEAL_BROKEN') throw thrown;
      log.warn({ id, actor, reason: messageOf(thrown) }, 'this is not what was sealed for the id');
      this.#refuse(actor, 'identity.open', `${id} broken`);
      return { is: 'broken' };
    }
    if (digest === undefined) {
      log.error({ id }, 'a document that was sealed here is not in the directory: it was cut');
      this.#refuse(actor, 'identity.open', `${id} unknown`);
      return { is: 'unknown' };
    }
    if (!identityDigest(opened).equals(digest)) {
      this.#refuse(actor, 'identity.open', `${id} other`);
      return { is: 'other' };
    }
    return { is: 'document', document: opened };
  }

  #refuse(
    actor: string,
    action: string,
    reason: string,
    why: 'taken' | 'refused' | 'unavailable' = 'refused',
  ): ExchangeAnswer {
    const { audit, log } = this.#options;
    audit.refused(actor, action, reason, (err) =>
      log.error({ err }, 'the audit log cannot be written'),
    );
    return { t: 'no', why };
  }
}
