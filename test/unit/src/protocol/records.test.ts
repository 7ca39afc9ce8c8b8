/** Signed records (docs/protocol.md section 5): what holds, and every way in which one must be refused. */
import { describe, expect, it } from 'vitest';
import { LABEL } from '../../../../src/protocol/constants.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { defaultMac, isGroupMac, macSchema } from '../../../../src/protocol/mac.js';
import {
  generateRawKeyPair,
  importPrivate,
  importPublic,
} from '../../../../src/protocol/public-keys.js';
import {
  type Role,
  requireGrantValid,
  verifyBoot,
  verifyMembership,
  verifySettings,
} from '../../../../src/protocol/records.js';
import { type Signed, signRecord } from '../../../../src/protocol/signed.js';
import { formatToken, parseToken, tokenPsk } from '../../../../src/protocol/token.js';

const subnet = parseId('lab');
const operator = generateRawKeyPair('ed25519');
const operatorKey = importPrivate('ed25519', operator.privateKey);
const operatorPublic = importPublic('ed25519', operator.publicKey);
const mac = (text: string) => macSchema.parse(text);

function makeGrant(more: Record<string, unknown> = {}, key = operatorKey): Signed {
  return signRecord(
    LABEL.grant,
    {
      subnet,
      tokenId: Buffer.alloc(16, 1),
      id: 'alice',
      role: 'host' satisfies Role,
      home: 's1',
      macs: [],
      ips: [],
      rights: [],
      uses: 1,
      notAfter: 2_000_000,
      ...more,
    },
    key,
  );
}

function makeMember(id = 'alice', grant = makeGrant(), docSubnet: string = subnet) {
  const sign = generateRawKeyPair('ed25519');
  const box = generateRawKeyPair('x25519');
  const channel = generateRawKeyPair('x25519');
  const key = importPrivate('ed25519', sign.privateKey);
  const identity = signRecord(
    LABEL.identity,
    { subnet: docSubnet, id, sign: sign.publicKey, box: box.publicKey },
    key,
  );
  const record = signRecord(LABEL.member, { grant, identity, channel: channel.publicKey }, key);
  return { record, key, grant, identity, channel: channel.publicKey };
}

const codeOf = (act: () => unknown): string => {
  try {
    act();
  } catch (error) {
    if (error instanceof Error && 'code' in error) return String(error.code);
    throw error;
  }
  return 'accepted';
};

describe('membership', () => {
  it('gives id, role and the default address', () => {
    const member = verifyMembership(subnet, makeMember().record, operatorPublic);
    expect(member.id).toBe('alice');
    expect(member.macs).toEqual([defaultMac('lab', 'alice')]);
  });

  it('is refused with a grant of another operator', () => {
    const other = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
    const member = makeMember('alice', makeGrant({}, other));
    expect(codeOf(() => verifyMembership(subnet, member.record, operatorPublic))).toBe(
      'RECORD_SIGNATURE',
    );
  });

  it('is refused for an id that the grant does not cover', () => {
    const member = makeMember('mallory');
    expect(codeOf(() => verifyMembership(subnet, member.record, operatorPublic))).toBe(
      'RECORD_MISMATCH',
    );
  });

  it('is refused for another subnet, in the grant and in the identity document', () => {
    const foreignGrant = makeMember('alice', makeGrant({ subnet: 'other' }));
    expect(codeOf(() => verifyMembership(subnet, foreignGrant.record, operatorPublic))).toBe(
      'RECORD_MISMATCH',
    );
    const foreignDocument = makeMember('alice', makeGrant(), 'other');
    expect(codeOf(() => verifyMembership(subnet, foreignDocument.record, operatorPublic))).toBe(
      'RECORD_MISMATCH',
    );
  });

  it("is refused when somebody else signs with a stolen grant and the victim's identity document", () => {
    const victim = makeMember();
    const thief = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
    const channel = generateRawKeyPair('x25519').publicKey;
    const forged = signRecord(
      LABEL.member,
      { grant: victim.grant, identity: victim.identity, channel },
      thief,
    );
    expect(codeOf(() => verifyMembership(subnet, forged, operatorPublic))).toBe('RECORD_SIGNATURE');
  });

  it('is refused with any byte of body or signature changed', () => {
    const { record } = makeMember();
    for (let i = 0; i < record.b.length; i += 7) {
      const b = Buffer.from(record.b);
      b.writeUInt8(b.readUInt8(i) ^ 1, i);
      expect(codeOf(() => verifyMembership(subnet, { ...record, b }, operatorPublic))).not.toBe(
        'accepted',
      );
    }
    const s = Buffer.from(record.s);
    s.writeUInt8(s.readUInt8(5) ^ 1, 5);
    expect(codeOf(() => verifyMembership(subnet, { ...record, s }, operatorPublic))).toBe(
      'RECORD_SIGNATURE',
    );
  });

  it('a grant record is not accepted as a record of another kind', () => {
    expect(codeOf(() => verifySettings(subnet, makeGrant(), operatorPublic, 0))).toBe(
      'RECORD_SIGNATURE',
    );
  });

  it('a grant with a star covers ids with that beginning only', () => {
    const grant = makeGrant({ id: 'worker-*', uses: 5 });
    expect(verifyMembership(subnet, makeMember('worker-7', grant).record, operatorPublic).id).toBe(
      'worker-7',
    );
    for (const id of ['worker-', 'other-1']) {
      expect(
        codeOf(() => verifyMembership(subnet, makeMember(id, grant).record, operatorPublic)),
      ).toBe('RECORD_MISMATCH');
    }
  });

  it('group addresses and reserved ones can not be granted', () => {
    for (const bad of [
      '01:00:5e:00:00:01',
      'ff:ff:ff:ff:ff:ff',
      '00:00:00:00:00:00',
      '00:00:5e:00:01:01',
    ]) {
      const member = makeMember('alice', makeGrant({ macs: [mac(bad)] }));
      expect(codeOf(() => verifyMembership(subnet, member.record, operatorPublic))).toBe(
        'RECORD_MISMATCH',
      );
    }
  });

  it('a shared grant may name a virtual router, and still no group address', () => {
    const shared = (text: string) =>
      makeMember('alice', makeGrant({ macs: [mac(text)], rights: ['shared'] })).record;
    expect(verifyMembership(subnet, shared('00:00:5e:00:01:01'), operatorPublic).id).toBe('alice');
    for (const bad of ['ff:ff:ff:ff:ff:ff', '00:00:00:00:00:00']) {
      expect(codeOf(() => verifyMembership(subnet, shared(bad), operatorPublic))).toBe(
        'RECORD_MISMATCH',
      );
    }
  });

  it('an expired grant is refused at enrolment', () => {
    const { grant } = verifyMembership(subnet, makeMember().record, operatorPublic);
    expect(codeOf(() => requireGrantValid(grant, 2_000_001))).toBe('RECORD_EXPIRED');
    expect(codeOf(() => requireGrantValid(grant, 2_000_000))).toBe('accepted');
  });
});

describe('boot record', () => {
  const { record, key } = makeMember();
  const member = verifyMembership(subnet, record, operatorPublic);
  const own = defaultMac('lab', 'alice');
  const boot = (more: Record<string, unknown> = {}, signer = key) =>
    signRecord(
      LABEL.boot,
      {
        subnet,
        id: 'alice',
        boot: Buffer.alloc(32, 9),
        sequence: 5,
        macs: [own],
        notAfter: 1000,
        ...more,
      },
      signer,
    );

  it.each([
    ['as it should be', boot(), 'accepted'],
    ['the same sequence again', boot({ sequence: 5 }), 'accepted'],
    ['an older sequence', boot({ sequence: 4 }), 'RECORD_ROLLBACK'],
    ['expired', boot({ notAfter: 99 }), 'RECORD_EXPIRED'],
    ['of another member', boot({ id: 'bob' }), 'RECORD_MISMATCH'],
    ['of another subnet', boot({ subnet: 'other' }), 'RECORD_MISMATCH'],
    [
      'with an address that was not granted',
      boot({ macs: [mac('02:00:00:00:00:01')] }),
      'RECORD_MISMATCH',
    ],
    ['signed by another', boot({}, operatorKey), 'RECORD_SIGNATURE'],
    ['with a short key', boot({ boot: Buffer.alloc(31) }), 'RECORD_MALFORMED'],
  ])('%s', (_, signed, expected) => {
    expect(codeOf(() => verifyBoot(member, signed, 100, 5))).toBe(expected);
  });
});

describe('settings', () => {
  const settings = (version: number) =>
    signRecord(
      LABEL.settings,
      {
        subnet,
        version,
        suite: 'aes-256-gcm',
        freshnessMs: 30_000,
        hold: 64,
        leaseSeconds: 86_400,
        verify: 'verify',
        group: { mode: 'shared', replicate: 256 },
        unknown: 'refuse',
      },
      operatorKey,
    );

  it('older ones than those seen are refused', () => {
    expect(verifySettings(subnet, settings(3), operatorPublic, 3).version).toBe(3);
    expect(codeOf(() => verifySettings(subnet, settings(2), operatorPublic, 3))).toBe(
      'RECORD_ROLLBACK',
    );
  });
});

describe('token', () => {
  const token = {
    subnet,
    grant: makeGrant(),
    psk: tokenPsk(Buffer.alloc(32, 4), Buffer.alloc(16, 1)),
    operator: operator.publicKey,
    servers: [{ host: '192.0.2.1', port: 7400, key: Buffer.alloc(32, 6) }],
  };

  it('comes back as it went, also with white space around it', () => {
    const parsed = parseToken(`  ${formatToken(token)}\n`);
    expect(Buffer.from(parsed.psk).equals(token.psk)).toBe(true);
    expect(parsed.servers[0]?.host).toBe('192.0.2.1');
  });

  it('a cut or foreign text is refused without repeating it', () => {
    const text = formatToken(token);
    for (const bad of [
      '',
      'pwt1_',
      text.slice(0, -9),
      text.replace('pwt1_', 'pwt2_'),
      `${text}!`,
    ]) {
      try {
        parseToken(bad);
        expect.fail('accepted');
      } catch (error) {
        expect(String(error)).not.toContain(text.slice(10, 40));
      }
    }
  });
});

describe('default address', () => {
  it('is an individual, locally administered one, and differs by id and subnet', () => {
    const macs = ['alice', 'bob', 'carol'].flatMap((id) => [
      defaultMac('lab', id),
      defaultMac('lab2', id),
    ]);
    expect(new Set(macs).size).toBe(macs.length);
    for (const address of macs) {
      expect(isGroupMac(address)).toBe(false);
      expect(Number.parseInt(address.slice(0, 2), 16) & 2).toBe(2);
    }
  });
});
