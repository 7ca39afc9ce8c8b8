/** A gateway as far as it has the KMS confirm who its peers are: the real parts over a member's real channel, without a data plane. */
import { Identities } from '../../../../gateway/control/identities.js';
import type { IdentityServer } from '../../../../gateway/control/peer-questions.js';
import { PeerTable } from '../../../../gateway/key-table/peer-table.js';
import { Pins } from '../../../../gateway/key-table/pins.js';
import { Verifier } from '../../../../gateway/key-table/verifier.js';
import { defaultSettings } from '../../../../keyserver/init.js';
import { keyPairFromPrivate } from '../../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../../src/protocol/constants.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { answerSchemas, type PeerRecord } from '../../../../src/protocol/messages.js';
import { importPublic, publicOf } from '../../../../src/protocol/public-keys.js';
import {
  grantSchema,
  type Membership,
  membershipSchema,
  type Settings,
} from '../../../../src/protocol/records.js';
import { readUnverified, type Signed } from '../../../../src/protocol/signed.js';
import type { PairwireError } from '../../../../src/runtime/errors.js';
import { TestMember } from './subnet.js';
import type { SubnetFolder } from './subnet-folder.js';

/** What it needs of a subnet, whatever its server is. */
export type Home = SubnetFolder & ConstructorParameters<typeof TestMember>[0];

/** A member with its membership at hand. */
export class Confirming extends TestMember {
  membershipRecord!: Signed;
  pins!: Pins;
  identities!: Identities;
  table!: PeerTable;
  /** Ids that the data plane may hear, and what it was told of them. */
  readonly installed = new Set<string>();
  readonly refusals: PairwireError[] = [];
  readonly problems: (string | undefined)[] = [];
  /** Questions to the key server, by kind. */
  readonly asked = { get: 0, put: 0, exchange: 0 };
  /** KMSes of other key servers that the settings name. */
  others: NonNullable<Settings['kms']> = [];
  /** Between us and a key server that lies. */
  lie: Partial<IdentityServer> = {};

  static async join(
    home: Home,
    id: string,
    kms: Uint8Array,
    others: Confirming['others'] = [],
  ): Promise<Confirming> {
    const member = new Confirming(home, id);
    member.others = others;
    const token = home.token({ id });
    member.membershipRecord = member.membership(token);
    await member.enrol(token, member.membershipRecord);
    await member.register();
    member.begin(home, kms);
    return member;
  }

  /** Begins anew, as after a restart. @param verify off: what the settings said before */
  begin(
    home: Home,
    kms: Uint8Array,
    verify: Settings['verify'] = 'verify',
    pins = new Pins(undefined, publicOf(home.operator)),
  ): void {
    this.identities?.stop();
    this.installed.clear();
    this.pins = pins;
    const operator = importPublic('ed25519', publicOf(home.operator));
    this.identities = new Identities({
      ...{ id: this.id, home: home.serverId, membership: this.membershipRecord, pins },
      channel: keyPairFromPrivate(this.channelKeys.privateKey),
      server: {
        get: (ids, at) => (this.lie.get ?? this.server.get)(ids, at),
        put: (pair) => (this.lie.put ?? this.server.put)(pair),
        exchange: (message, at) => (this.lie.exchange ?? this.server.exchange)(message, at),
      },
      onConfirmed: (id) => this.table.takeAgain(id),
      onRefused: (id, error) => this.table.refuse(id, error),
      onMode: () => this.table.takeAgain(),
      onProblem: (problem) => this.problems.push(problem),
    });
    const verifier = new Verifier({
      ...{ subnet: home.subnet, operator, pins, now: Date.now },
      judge: (member, isThere) => this.identities.judge(member, isThere),
    });
    this.table = new PeerTable({
      ...{ self: { id: this.id, tags: [] }, port: 1, verifier },
      dataPlane: {
        request: (type, fields) => {
          const { peer } = fields as { peer?: string };
          if (type === 'peer.set' && peer !== undefined) this.installed.add(peer);
          if (type === 'peer.remove' && peer !== undefined) this.installed.delete(peer);
          return Promise.resolve({} as never);
        },
      },
      ...{ acceptsEndpoint: () => true, isNear: () => true },
      onRefused: (_id, error) => this.refusals.push(error),
      onCommandFailed: (error) => {
        throw error;
      },
      ...{ onDenied: () => {}, onPrepared: () => {}, onGroupPrepared: () => {} },
      onAddress: () => {},
    });
    void this.table.installAll(1);
    this.useSettings(home, kms, verify);
  }

  useSettings(home: Home, kms: Uint8Array, verify: Settings['verify'] = 'verify'): void {
    const named = [{ server: home.serverId, key: kms }, ...this.others];
    this.identities.useSettings({ ...defaultSettings(home.subnet), kms: named, verify });
  }

  /** As the key server answers. */
  readonly server: IdentityServer = {
    get: (ids, home) => {
      this.asked.get += 1;
      return this.client.request(
        { t: 'identity.get', ids, ...(home === undefined ? {} : { home }) },
        { parse: (it) => answerSchemas['identity.get'].parse(it) },
      );
    },
    put: (pair) => {
      this.asked.put += 1;
      return this.client.request({ t: 'identity.put', ...pair });
    },
    exchange: async (message, home) => {
      this.asked.exchange += 1;
      const parse = (it: unknown) => answerSchemas['kms.exchange'].parse(it);
      const request = { t: 'kms.exchange', message, ...(home === undefined ? {} : { home }) };
      return (await this.client.request(request, { parse })).message;
    },
  };

  /** Has its document sealed and stored. */
  async publish(): Promise<void> {
    this.identities.registered(false);
    await this.until(() => this.identities.status.own !== 'not yet', 'its own document');
  }

  /** What the key server tells of another member. */
  async recordOf(id: string): Promise<PeerRecord> {
    const answer = await this.keyByMac(defaultMac(this.subnet.subnet, id));
    if (answer.peer === undefined) throw new Error('no pair key');
    return answer.peer;
  }

  stateOf(id: string): string {
    return this.table.get(parseId(id))?.state ?? 'unknown';
  }

  /** Waits until what is known of a peer is this. */
  whose(id: string, state: string): Promise<void> {
    return this.until(() => this.stateOf(id) === state, `${id} to be ${state}`);
  }

  async until(holds: () => boolean, what: string): Promise<void> {
    const end = Date.now() + 20_000;
    while (!holds()) {
      if (Date.now() > end) {
        const { problem } = this.identities.status;
        throw new Error(`${this.id} waited in vain for ${what}; ${problem ?? 'no problem'}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

/** Somebody with the grant of a member, which its key server has seen, and keys of his own. */
export function puppetOf(home: Home, member: Confirming): PeerRecord {
  const { grant }: Membership = readUnverified(
    LABEL.member,
    member.membershipRecord,
    membershipSchema,
  );
  const puppet = new TestMember(home, member.id);
  puppet.sequence = Date.now();
  const { role } = readUnverified(LABEL.grant, grant, grantSchema);
  return {
    ...{ id: member.id, role, online: true, index: 77, ips: [], endpoints: [] },
    membership: puppet.membership({ grant } as Parameters<TestMember['membership']>[0]),
    boot: puppet.bootRecord(),
  };
}
