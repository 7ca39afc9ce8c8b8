/** Sealed identity documents, membership tickets and exchanges with the KMS: bytes by test/vectors/identity.json, and what must not open. */
import { createSecretKey, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { generateKeyPair } from '../../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../../src/protocol/constants.js';
import {
  MAX_DOCUMENT_BODY,
  openDek,
  openDocument,
  sealDek,
  sealDocument,
} from '../../../../src/protocol/envelope.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { ask, openQuestion } from '../../../../src/protocol/kms-exchange.js';
import {
  openTicket,
  signTicket,
  TICKET_MS,
  TICKET_SKEW_MS,
} from '../../../../src/protocol/kms-ticket.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
  publicOf,
} from '../../../../src/protocol/public-keys.js';
import { identityDigest } from '../../../../src/protocol/records.js';
import { signRecord } from '../../../../src/protocol/signed.js';

const hex = z.string().transform((text) => Buffer.from(text, 'hex'));
const vectors = z
  .object({
    document: z.object({
      ...{ subnet: z.string(), id: z.string(), seed: hex, box: hex },
      ...{ body: hex, signature: hex, digest: hex },
    }),
    sealed: z.object({
      ...{ dek: hex, nonce: hex, document: hex, root: hex, generation: z.number() },
      ...{ dekNonce: hex, sealedDek: hex },
    }),
    ticket: z.object({
      ...{ signer: hex, server: z.string(), channel: hex, kms: hex, notAfter: z.number() },
      ...{ body: hex, signature: hex },
    }),
  })
  .parse(
    JSON.parse(readFileSync(new URL('../../../vectors/identity.json', import.meta.url), 'utf8')),
  );

const place = { subnet: vectors.document.subnet, id: vectors.document.id };
const document = { b: vectors.document.body, s: vectors.document.signature };

const codeOf = (act: () => unknown): unknown => {
  try {
    act();
    return 'nothing';
  } catch (thrown) {
    return (thrown as { code?: unknown }).code;
  }
};

describe('an identity document', () => {
  it('is signed, digested and sealed as the vectors say', () => {
    const { seed, box, digest } = vectors.document;
    const sign = importPrivate('ed25519', seed);
    const body = { ...place, sign: publicOf(sign), box };
    const made = signRecord(LABEL.identity, body, sign);
    expect(Buffer.from(made.b)).toEqual(document.b);
    expect(Buffer.from(made.s)).toEqual(document.s);
    expect(identityDigest(made)).toEqual(digest);
    const { dek, nonce, root, generation, dekNonce } = vectors.sealed;
    const key = createSecretKey(dek);
    expect(sealDocument(key, place, document, nonce)).toEqual(vectors.sealed.document);
    expect(openDocument(key, place, vectors.sealed.document)).toEqual(document);
    const owner = ['identity', place.subnet, place.id];
    const by = { generation, key: createSecretKey(root) };
    expect(sealDek(by, owner, dek, dekNonce)).toEqual(vectors.sealed.sealedDek);
    expect(openDek(by.key, owner, vectors.sealed.sealedDek)).toEqual(dek);
  });

  it('opens for no other id or subnet, by no other DEK, and not with a bit or the end changed', () => {
    const key = createSecretKey(vectors.sealed.dek);
    const sealed = vectors.sealed.document;
    const broken = (act: () => unknown) => expect(codeOf(act)).toBe('SEAL_BROKEN');
    broken(() => openDocument(key, { ...place, id: 'bob' }, sealed));
    broken(() => openDocument(key, { ...place, subnet: 'west' }, sealed));
    broken(() => openDocument(createSecretKey(randomBytes(32)), place, sealed));
    for (const at of [0, 1, 13, sealed.length - 1]) {
      const changed = Buffer.from(sealed);
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at);
      broken(() => openDocument(key, place, changed));
    }
    for (const size of [0, 1, 40, sealed.length - 1]) {
      broken(() => openDocument(key, place, sealed.subarray(0, size)));
    }
    const long = { b: Buffer.alloc(MAX_DOCUMENT_BODY + 1), s: Buffer.alloc(64) };
    expect(codeOf(() => sealDocument(key, place, long))).toBe('RECORD_MALFORMED');
  });
});

describe('a membership ticket', () => {
  const { server, channel, kms, notAfter } = vectors.ticket;
  const signer = importPrivate('ed25519', vectors.ticket.signer);
  const verify = importPublic('ed25519', publicOf(signer));
  const expected = {
    ...{ subnet: parseId(place.subnet), server: parseId(server), channel, kms },
  };
  const what = { ...expected, id: parseId(place.id) };

  it('is as the vectors say, and good for ten minutes', () => {
    const issued = notAfter - TICKET_MS;
    const made = signTicket(what, signer, issued);
    expect(Buffer.from(made.b)).toEqual(vectors.ticket.body);
    expect(Buffer.from(made.s)).toEqual(vectors.ticket.signature);
    for (const now of [issued, notAfter, issued - TICKET_SKEW_MS, notAfter + TICKET_SKEW_MS]) {
      expect(openTicket(made, verify, expected, now).id).toBe(place.id);
    }
    for (const now of [issued - TICKET_SKEW_MS - 1, notAfter + TICKET_SKEW_MS + 1]) {
      expect(codeOf(() => openTicket(made, verify, expected, now))).toBe('RECORD_EXPIRED');
    }
  });

  it('is nothing to another KMS, key, server or subnet, nor from another signer or record', () => {
    const made = signTicket(what, signer, notAfter - TICKET_MS);
    const open = (other: Partial<typeof expected>, key = verify) =>
      codeOf(() => openTicket(made, key, { ...expected, ...other }, notAfter));
    expect(open({})).toBe('nothing');
    expect(open({ kms: channel })).toBe('RECORD_MISMATCH');
    expect(open({ channel: kms })).toBe('RECORD_MISMATCH');
    expect(open({ server: parseId('s2') })).toBe('RECORD_MISMATCH');
    expect(open({ subnet: parseId('west') })).toBe('RECORD_MISMATCH');
    const stranger = importPublic('ed25519', generateRawKeyPair('ed25519').publicKey);
    expect(open({}, stranger)).toBe('RECORD_SIGNATURE');
    // The same key signs heads of the audit log: under another label that is no ticket.
    const head = signRecord(LABEL.auditHead, { ...what, notAfter }, signer);
    expect(codeOf(() => openTicket(head, verify, expected, notAfter))).toBe('RECORD_SIGNATURE');
  });
});

describe('an exchange', () => {
  const kms = generateKeyPair();
  const member = generateKeyPair();
  const record = { b: Buffer.from('b'), s: Buffer.alloc(64) };
  const request = { t: 'identity.seal', ticket: record, membership: record } as const;

  it('is between the member and the KMS alone', () => {
    const question = ask(kms.publicKey, member, request);
    const asked = openQuestion(kms, question.message);
    expect(asked.channel).toEqual(member.publicKey);
    expect(asked.request?.t).toBe('identity.seal');
    const reply = asked.answer({ t: 'no', why: 'taken' });
    expect(question.answer(reply)).toEqual({ t: 'no', why: 'taken' });
    // What was said is not in what is carried, and another KMS, or who carries it, can't answer.
    expect(question.message.includes(Buffer.from('identity.seal'))).toBe(false);
    expect(codeOf(() => openQuestion(generateKeyPair(), question.message))).toBe(
      'CHANNEL_HANDSHAKE',
    );
  });

  it('takes no answer that was changed, is of another question, or comes twice', () => {
    const first = ask(kms.publicKey, member, request);
    const second = ask(kms.publicKey, member, request);
    const reply = openQuestion(kms, second.message).answer({ t: 'no', why: 'refused' });
    expect(codeOf(() => first.answer(reply))).toBe('CHANNEL_HANDSHAKE');
    expect(second.answer(reply).t).toBe('no');
    expect(codeOf(() => second.answer(reply))).toBe('CHANNEL_HANDSHAKE');
    const third = ask(kms.publicKey, member, request);
    const message = Buffer.from(third.message);
    message.writeUInt8(message.readUInt8(100) ^ 1, 100);
    expect(codeOf(() => openQuestion(kms, message))).toBe('CHANNEL_HANDSHAKE');
  });
});
