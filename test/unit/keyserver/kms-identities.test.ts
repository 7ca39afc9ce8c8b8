/** What the KMS answers members, and what its file of identities does with everything that may become of a file. */
import { createSecretKey, randomBytes } from 'node:crypto';
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { KmsAudit } from '../../../keyserver/kms/audit-file.js';
import { kmsPaths } from '../../../keyserver/kms/config.js';
import { Identities } from '../../../keyserver/kms/identities.js';
import { IdentityDirectory } from '../../../keyserver/kms/identity-directory.js';
import { RootKeys } from '../../../keyserver/kms/root-keys.js';
import { generateKeyPair, type KeyPair } from '../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { sealDocument } from '../../../src/protocol/envelope.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import {
  ask,
  type ExchangeAnswer,
  type ExchangeRequest,
  type NamedPair,
} from '../../../src/protocol/kms-exchange.js';
import { signTicket, type Ticket } from '../../../src/protocol/kms-ticket.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
  publicOf,
} from '../../../src/protocol/public-keys.js';
import {
  identityDigest,
  type Membership,
  membershipSchema,
  signMembership,
} from '../../../src/protocol/records.js';
import { readUnverified, type Signed, signRecord } from '../../../src/protocol/signed.js';
import { createLogger } from '../../../src/runtime/log.js';

const SUBNET = parseId('east');
const S1 = parseId('s1');
const MINUTE = 60_000;
const log = createLogger('test', { level: 'silent' });
const newKey = () => importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pairwire-kms-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe('the directory', () => {
  const key = randomBytes(32);
  const ids = ['alice', 'bob', 'carol'].map(parseId);
  const digests = ids.map(() => randomBytes(32));
  const open = () => new IdentityDirectory(kmsPaths(dir), key);
  const file = () => kmsPaths(dir).identities;
  const head = () => kmsPaths(dir).identitiesHead;

  /** Three ids in three lines. */
  function fill(): void {
    const directory = open();
    for (const [at, id] of ids.entries()) {
      directory.keep(id, digests[at] ?? Buffer.alloc(0), 'first');
    }
    directory.close();
  }
  const lines = () => readFileSync(file(), 'utf8').trimEnd().split('\n');
  /** Opened again, it says why it does not answer. */
  function broken(): string | undefined {
    const directory = open();
    directory.close();
    if (directory.broken === undefined) return undefined;
    for (const act of [
      () => directory.digestOf(parseId('alice')),
      () => directory.keep(parseId('dave'), randomBytes(32), 'first'),
    ]) {
      expect(act).toThrow('the identity directory is damaged');
    }
    return directory.broken;
  }

  it('has after a start what it had before, and no keys; the file is for its user alone', () => {
    fill();
    const directory = open();
    expect(directory.broken).toBeUndefined();
    expect(ids.map((id) => directory.digestOf(id))).toEqual(digests);
    const next = randomBytes(32);
    directory.keep(parseId('alice'), next, 'operator');
    directory.close();
    const again = open();
    expect(again.digestOf(parseId('alice'))).toEqual(next);
    expect(again.size).toBe(3);
    again.close();
    expect(statSync(file()).mode & 0o777).toBe(0o600);
    expect(statSync(head()).mode & 0o777).toBe(0o600);
    const words = lines().flatMap((line) => Object.keys(JSON.parse(line) as object));
    expect([...new Set(words)].sort()).toEqual(['at', 'by', 'digest', 'id', 'mac', 'seq']);
  });

  it('cuts off a torn last line, which nobody was answered, wherever it was torn', () => {
    fill();
    const whole = readFileSync(file());
    const line = Buffer.from(`${lines().at(-1) ?? ''}\n`);
    for (let size = 1; size < line.length; size += 17) {
      writeFileSync(file(), Buffer.concat([whole, line.subarray(0, size)]));
      const directory = open();
      expect(directory.broken).toBeUndefined();
      expect(directory.torn).toBe(size);
      directory.close();
      expect(readFileSync(file())).toEqual(whole);
    }
  });

  it('goes on where a line is on the disk and its head is not', () => {
    fill();
    const before = readFileSync(head());
    const directory = open();
    directory.keep(parseId('dave'), randomBytes(32), 'first');
    directory.close();
    writeFileSync(head(), before);
    expect(broken()).toBeUndefined();
    expect(readFileSync(head(), 'utf8')).toContain('"seq":4');
  });

  it('answers nothing more when its end was cut, a line was changed, exchanged or left out', () => {
    fill();
    const [one = '', two = '', three = ''] = lines();
    const changed = three.replace('carol', 'david');
    const other = one.replace(/"digest":"..../, '"digest":"AAAA');
    for (const [text, why] of [
      [`${one}\n${two}\n`, 'it ends with line 2, not 3'],
      ['', 'it ends with line 0, not 3'],
      [`${one}\n${two}\n${changed}\n`, 'line 3'],
      [`${other}\n${two}\n${three}\n`, 'line 1'],
      [`${two}\n${one}\n${three}\n`, 'line 1 is missing'],
      [`${one}\n${three}\n`, 'line 2 is missing'],
      [`${one}\nnonsense\n${three}\n`, 'a line is none'],
      [`${one}\n${'x'.repeat(2_000)}`, 'too long'],
    ] as const) {
      writeFileSync(file(), text);
      expect(broken(), text.slice(0, 80)).toContain(why);
      expect(readFileSync(file(), 'utf8'), 'it stays as it is found').toBe(text);
    }
  });

  it('notices a cut end also without its head, or with a head of another file', () => {
    fill();
    rmSync(head());
    expect(broken()).toContain('identities.head is missing');
    writeFileSync(head(), '{"seq":3}');
    expect(broken()).toContain('can not be read');
    rmSync(file());
    const directory = new IdentityDirectory(kmsPaths(dir), randomBytes(32));
    directory.close();
    expect(directory.broken).toContain('can not be read');
  });

  it('takes no line while somebody else writes', () => {
    fill();
    const directory = open();
    appendFileSync(file(), 'x');
    expect(() => directory.keep(parseId('dave'), randomBytes(32), 'first')).toThrow(
      'another process',
    );
    directory.close();
    truncateSync(file(), readFileSync(file()).length - 1);
    expect(existsSync(head())).toBe(true);
  });
});

/** A member, or who pretends to be one. */
class Asker {
  readonly sign = newKey();
  readonly channel: KeyPair = generateKeyPair();
  readonly box = generateKeyPair().publicKey;

  constructor(readonly id: Id) {}

  membership(grant: Signed): Signed {
    return signMembership(SUBNET, this.id, grant, {
      ...{ sign: this.sign, signPublic: publicOf(this.sign), boxPublic: this.box },
      channelPublic: this.channel.publicKey,
    });
  }
}

describe('the KMS', () => {
  const operator = newKey();
  const server = newKey();
  const kms = generateKeyPair();
  let now: number;
  let identities: Identities;
  let directory: IdentityDirectory;
  let audit: KmsAudit;
  let roots: RootKeys;

  beforeEach(() => {
    now = Date.now();
    roots = RootKeys.make(dir);
    start();
  });
  afterEach(() => {
    directory.close();
    audit.close();
  });

  function start(): void {
    const key = Buffer.alloc(32, 7);
    audit = KmsAudit.open(kmsPaths(dir).auditLog, key).audit;
    directory = new IdentityDirectory(kmsPaths(dir), key);
    identities = new Identities({
      ...{ subnet: SUBNET, operator: importPublic('ed25519', publicOf(operator)) },
      ...{ staticKeys: kms, roots, directory, audit, log, now: () => now },
    });
  }

  const grant = (id: string, more: Record<string, unknown> = {}, key = operator): Signed =>
    signRecord(
      LABEL.grant,
      {
        ...{ subnet: SUBNET, tokenId: randomBytes(16), id, role: 'host', home: S1, macs: [] },
        ...{ ips: [], rights: [], uses: 1, notAfter: now + MINUTE, ...more },
      },
      key,
    );

  const ticket = (who: Asker, more: Partial<Ticket> = {}, key = server): Signed =>
    signTicket(
      {
        ...{ subnet: SUBNET, server: S1, id: who.id, channel: who.channel.publicKey },
        ...{ kms: kms.publicKey, ...more },
      },
      key,
      now,
    );

  function exchange(who: Asker, request: ExchangeRequest, keys = who.channel): ExchangeAnswer {
    const question = ask(kms.publicKey, keys, request);
    return question.answer(identities.exchange(S1, publicOf(server), question.message));
  }

  const seal = (who: Asker, more: Partial<Extract<ExchangeRequest, { t: 'identity.seal' }>> = {}) =>
    exchange(who, {
      ...{ t: 'identity.seal', ticket: ticket(who), membership: who.membership(grant(who.id)) },
      ...more,
    });

  function sealed(who: Asker): NamedPair {
    const answer = seal(who);
    if (answer.t !== 'sealed') throw new Error(`not sealed: ${JSON.stringify(answer)}`);
    return { id: who.id, document: answer.document, dek: answer.dek };
  }

  const open = (who: Asker, pairs: readonly NamedPair[], shown = ticket(who)) =>
    exchange(who, { t: 'identity.open', ticket: shown, pairs: [...pairs] });
  const is = (answer: ExchangeAnswer): readonly string[] =>
    answer.t === 'opened' ? answer.opened.map((one) => one.is) : [answer.t];
  const refused = (why: string) => ({ t: 'no', why });
  const documentOf = (who: Asker): Signed => {
    const body: Membership = readUnverified(
      LABEL.member,
      who.membership(grant(who.id)),
      membershipSchema,
    );
    return body.identity;
  };
  const log_ = (): string => readFileSync(kmsPaths(dir).auditLog, 'utf8');

  it('opens for a member what it has sealed for others, after a restart and another root key as well', () => {
    const [alice, bob, carol] = ['alice', 'bob', 'carol'].map((id) => new Asker(parseId(id)));
    if (alice === undefined || bob === undefined || carol === undefined) throw new Error();
    const pairs = [sealed(bob), sealed(carol)];
    roots.rotate(1);
    directory.close();
    audit.close();
    start();
    const answer = open(alice, pairs);
    const found = answer.t === 'opened' ? answer.opened : [];
    expect(found.map((one) => one.is === 'document' && identityDigest(one.document))).toEqual([
      identityDigest(documentOf(bob)),
      identityDigest(documentOf(carol)),
    ]);
    // Once more is nothing new, but sealed by the root key of today.
    const lines = readFileSync(kmsPaths(dir).identities, 'utf8');
    const again = sealed(bob);
    expect(Buffer.from(again.dek).readUInt32BE(1)).toBe(2);
    expect(readFileSync(kmsPaths(dir).identities, 'utf8')).toBe(lines);
    expect(is(open(alice, [again]))).toEqual(['document']);
    expect(log_()).toContain('"actor":"s1/alice","action":"identity.open","outcome":"done"');
    expect(log_()).toContain('"actor":"s1/bob","action":"identity.seal","outcome":"done"');
  });

  it('refuses a ticket that has expired, is for others, or is not of the key server that carries it', () => {
    const alice = new Asker(parseId('alice'));
    const bob = new Asker(parseId('bob'));
    const pair = sealed(bob);
    const bad: Record<string, Signed> = {
      expired: ticket(alice, { notAfter: now - 2 * MINUTE }),
      'good for a year': ticket(alice, { notAfter: now + 365 * 24 * 60 * MINUTE }),
      'of another member': ticket(bob),
      'for another KMS': ticket(alice, { kms: generateKeyPair().publicKey }),
      'of another server': ticket(alice, { server: parseId('s2') }),
      'of another subnet': ticket(alice, { subnet: parseId('west') }),
      'signed by somebody': ticket(alice, {}, newKey()),
    };
    for (const [what, shown] of Object.entries(bad)) {
      expect(open(alice, [pair], shown), what).toEqual(refused('refused'));
      expect(seal(alice, { ticket: shown }), what).toEqual(refused('refused'));
    }
    expect(directory.digestOf(alice.id)).toBeUndefined();
    expect(log_()).toContain('"reason":"RECORD_EXPIRED"');
    expect(is(open(alice, [pair]))).toEqual(['document']);
    // A ticket that somebody has copied is nothing without the channel key in it.
    const thief = { t: 'identity.open', ticket: ticket(alice), pairs: [pair] } as const;
    expect(exchange(alice, { ...thief, pairs: [pair] }, bob.channel)).toEqual(refused('refused'));
  });

  it('opens for a member of another key server by a ticket that says so, and seals nothing for it', () => {
    const erin = new Asker(parseId('erin'));
    const pair = sealed(new Asker(parseId('bob')));
    const home = parseId('s2');
    const shown = ticket(erin, { home });
    expect(is(open(erin, [pair], shown))).toEqual(['document']);
    expect(log_()).toContain('"actor":"s1/s2/erin","action":"identity.open","outcome":"done"');
    for (const membership of [
      erin.membership(grant(erin.id, { home })),
      erin.membership(grant(erin.id)),
    ]) {
      expect(seal(erin, { ticket: shown, membership })).toEqual(refused('refused'));
    }
    expect(directory.digestOf(erin.id)).toBeUndefined();
  });

  it('opens nothing that was changed, exchanged between members, or sealed under another id', () => {
    const [alice, bob] = ['alice', 'bob'].map((id) => new Asker(parseId(id)));
    if (alice === undefined || bob === undefined) throw new Error();
    const ours = sealed(alice);
    const theirs = sealed(bob);
    expect(is(open(alice, [{ ...ours, id: bob.id }]))).toEqual(['broken']);
    expect(is(open(alice, [{ ...theirs, document: ours.document }]))).toEqual(['broken']);
    expect(is(open(alice, [{ ...theirs, dek: ours.dek }]))).toEqual(['broken']);
    const changed = Buffer.from(theirs.document);
    changed.writeUInt8(changed.readUInt8(50) ^ 1, 50);
    expect(is(open(alice, [theirs, { ...theirs, document: changed }]))).toEqual([
      'document',
      'broken',
    ]);
    expect(log_()).toContain('bob broken');
  });

  it('remembers the first document of an id, and takes no other, whoever grants it', () => {
    const bob = new Asker(parseId('bob'));
    const puppet = new Asker(parseId('bob'));
    const first = sealed(bob);
    expect(seal(puppet)).toEqual(refused('taken'));
    // A puppet of whoever has the root key and the database opens, and is not the one that is remembered.
    const { key, sealed: dek } = roots.makeDocumentDek({ subnet: SUBNET, id: bob.id });
    const place = { subnet: SUBNET, id: bob.id };
    const document = sealDocument(createSecretKey(key), place, documentOf(puppet));
    expect(is(open(bob, [first, { id: bob.id, document, dek }]))).toEqual(['document', 'other']);
    expect(log_()).toContain('"reason":"TAKEN"');
  });

  it('lets another document follow by the signature of the one before, or of the operator, and by no other', () => {
    const before = new Asker(parseId('bob'));
    const old = sealed(before);
    const after = new Asker(parseId('bob'));
    const digests = {
      before: identityDigest(documentOf(before)),
      after: identityDigest(documentOf(after)),
    };
    const body = { subnet: SUBNET, id: 'bob', ...digests };
    const by = (key = operator, more: Record<string, unknown> = {}) => ({
      record: signRecord(LABEL.identityChange, { ...body, ...more }, key),
    });
    const change = (one: { record: Signed; before?: Signed }) => seal(after, { change: one });
    const documentBefore = documentOf(before);
    expect(change(by(newKey()))).toEqual(refused('refused'));
    expect(change(by(after.sign))).toEqual(refused('refused'));
    expect(change({ ...by(after.sign), before: documentOf(after) })).toEqual(refused('taken'));
    expect(change({ ...by(newKey()), before: documentBefore })).toEqual(refused('refused'));
    for (const other of [{ id: 'eve' }, { after: randomBytes(32) }, { before: randomBytes(32) }]) {
      expect(change(by(operator, other))).toEqual(refused('taken'));
    }
    expect(directory.digestOf(before.id)).toEqual(digests.before);
    expect(change({ ...by(before.sign), before: documentBefore }).t).toBe('sealed');
    expect(directory.digestOf(before.id)).toEqual(digests.after);
    // The one before is nobody's any more, and does not come back with an old signature.
    expect(is(open(after, [old]))).toEqual(['other']);
    expect(seal(before)).toEqual(refused('taken'));
    const back = { before: digests.after, after: digests.before };
    expect(seal(before, { change: by(operator, back) }).t).toBe('sealed');
  });

  it('seals for nobody whom the operator has not granted the id, or who is at home elsewhere', () => {
    const eve = new Asker(parseId('eve'));
    const other = new Asker(parseId('eve'));
    const ours = grant('eve');
    for (const membership of [
      eve.membership(grant('eve', {}, newKey())),
      eve.membership(grant('bob')),
      eve.membership(grant('eve', { subnet: 'west' })),
      eve.membership(grant('eve', { home: 's2' })),
      other.membership(ours),
    ]) {
      expect(seal(eve, { membership })).toEqual(refused('refused'));
    }
    expect(directory.digestOf(eve.id)).toBeUndefined();
    expect(seal(eve, { membership: eve.membership(ours) }).t).toBe('sealed');
  });

  it('notices by a pair that it has sealed that its directory was put back', () => {
    const alice = new Asker(parseId('alice'));
    const bob = new Asker(parseId('bob'));
    sealed(alice);
    const files = [kmsPaths(dir).identities, kmsPaths(dir).identitiesHead];
    const earlier = files.map((path) => readFileSync(path));
    const pair = sealed(bob);
    directory.close();
    audit.close();
    for (const [at, path] of files.entries()) writeFileSync(path, earlier[at] ?? '');
    start();
    expect(directory.broken).toBeUndefined();
    expect(is(open(alice, [pair]))).toEqual(['unknown']);
    expect(log_()).toContain('bob unknown');
    // The member mends it.
    expect(is(open(alice, [sealed(bob)]))).toEqual(['document']);
  });

  it('says that it is not available, and goes on, when the directory is damaged', () => {
    const alice = new Asker(parseId('alice'));
    const pair = sealed(alice);
    directory.close();
    audit.close();
    writeFileSync(kmsPaths(dir).identities, 'nonsense\n');
    start();
    expect(open(alice, [pair])).toEqual(refused('unavailable'));
    expect(seal(alice)).toEqual(refused('unavailable'));
    expect(roots.makeDek({ subnet: SUBNET, server: S1 }).key).toHaveLength(32);
  });

  it('answers what is no question with a refusal, or not at all', () => {
    const alice = new Asker(parseId('alice'));
    const question = ask(kms.publicKey, alice.channel, {
      ...{ t: 'identity.open', ticket: ticket(alice), pairs: [] },
    });
    expect(question.answer(identities.exchange(S1, publicOf(server), question.message))).toEqual(
      refused('refused'),
    );
    for (const message of [Buffer.alloc(0), randomBytes(96), randomBytes(65_535)]) {
      expect(() => identities.exchange(S1, publicOf(server), message)).toThrow('not authentic');
    }
  });
});
