/** Members with real signatures. */
import { LABEL } from '../../../../src/protocol/constants.js';
import { type Id, parseId } from '../../../../src/protocol/ids.js';
import { defaultMac, type MacAddress } from '../../../../src/protocol/mac.js';
import type { PeerRecord } from '../../../../src/protocol/messages.js';
import { generateRawKeyPair, importPrivate } from '../../../../src/protocol/public-keys.js';
import type { Right, Role, Settings } from '../../../../src/protocol/records.js';
import { type Signed, signRecord } from '../../../../src/protocol/signed.js';

export const SUBNET = parseId('east');
export const NOW = 1_800_000_000_000;

/** An operator key and what it signs. */
export class TestOperator {
  readonly #raw = generateRawKeyPair('ed25519');
  readonly key = importPrivate('ed25519', this.#raw.privateKey);
  readonly public = this.#raw.publicKey;

  grant(
    id: string,
    macs: readonly MacAddress[],
    role: Role = 'host',
    rights: readonly Right[] = [],
  ): Signed {
    return signRecord(
      LABEL.grant,
      {
        subnet: SUBNET,
        tokenId: Buffer.alloc(16, 1),
        id,
        role,
        home: 's1',
        macs,
        ips: [],
        rights,
        uses: 1,
        notAfter: NOW,
      },
      this.key,
    );
  }

  settings(version: number, more: Partial<Settings> = {}): Signed {
    const settings: Settings = {
      subnet: SUBNET,
      version,
      suite: 'aes-256-gcm',
      freshnessMs: 30_000,
      hold: 64,
      leaseSeconds: 86_400,
      rekeySeconds: 3_600,
      bootSeconds: 3_600,
      verify: 'verify',
      group: { mode: 'shared', replicate: 256, rekey: 86_400 },
      unknown: 'refuse',
      plain: {},
      ...more,
    };
    return signRecord(LABEL.settings, settings, this.key);
  }
}

/** A member's keys, and its records in any state of repair. */
export class TestPeer {
  readonly id: Id;
  readonly mac: MacAddress;
  readonly #sign = importPrivate('ed25519', generateRawKeyPair('ed25519').privateKey);
  readonly #membership: Signed;
  readonly #channel = generateRawKeyPair('x25519').publicKey;

  constructor(
    readonly operator: TestOperator,
    id: string,
    macs: readonly MacAddress[] = [],
    readonly role: Role = 'host',
    grantFrom: TestOperator = operator,
    rights: readonly Right[] = [],
  ) {
    this.id = parseId(id);
    this.mac = macs[0] ?? defaultMac(SUBNET, id);
    this.#membership = this.#makeMembership(grantFrom.grant(id, macs, role, rights));
  }

  boot(
    sequence: number,
    more: { key?: Buffer; macs?: readonly MacAddress[]; notAfter?: number } = {},
  ): Signed {
    return signRecord(
      LABEL.boot,
      {
        subnet: SUBNET,
        id: this.id,
        boot: more.key ?? generateRawKeyPair('x25519').publicKey,
        sequence,
        macs: more.macs ?? [this.mac],
        notAfter: more.notAfter ?? NOW + 86_400_000,
      },
      this.#sign,
    );
  }

  record(index: number, sequence: number, more: Partial<PeerRecord> = {}): PeerRecord {
    return {
      id: this.id,
      role: this.role,
      online: true,
      membership: this.#membership,
      boot: this.boot(sequence),
      index,
      ips: [],
      endpoints: [{ ip: Buffer.from([192, 0, 2, index & 0xff]), port: 51_820 }],
      ...more,
    };
  }

  #makeMembership(grant: Signed): Signed {
    const sign = this.#sign.export({ format: 'jwk' });
    const identity = signRecord(
      LABEL.identity,
      {
        subnet: SUBNET,
        id: this.id,
        sign: Buffer.from(sign.x ?? '', 'base64url'),
        box: generateRawKeyPair('x25519').publicKey,
      },
      this.#sign,
    );
    return signRecord(LABEL.member, { grant, identity, channel: this.#channel }, this.#sign);
  }
}
