/**
 * What a gateway does when it meets a member for the first time, in memory: what it says to the key server and hears from it, what it
 * says to its data plane and hears from that, and how it verifies the member and takes its key. Who is met does not exist.
 */
import { FirstContact, recordOf } from '../src/net/first-contact.js';
import { KEY_SIZE, LABEL } from '../src/protocol/constants.js';
import { parseId } from '../src/protocol/ids.js';
import { defaultMac } from '../src/protocol/mac.js';
import type { PeerRecord } from '../src/protocol/messages.js';
import { generateRawKeyPair, importPrivate, importPublic } from '../src/protocol/public-keys.js';
import { type BootRecord, type Grant, signMembership } from '../src/protocol/records.js';
import { signRecord } from '../src/protocol/signed.js';
import { PairwireError } from '../src/runtime/errors.js';
import type { Part } from '../src/runtime/rehearsal.js';
import type { CommandPort } from './dataplane/client.js';
import { encodeMessage, MessageReader } from './dataplane/framing.js';
import {
  type AnswerTo,
  type CommandFields,
  type CommandType,
  type Upward,
  upwardSchema,
} from './dataplane/messages.gen.js';
import { PeerTable } from './key-table/peer-table.js';
import { Pins } from './key-table/pins.js';
import { Verifier } from './key-table/verifier.js';

const SUBNET = parseId('rehearsal');
const SELF = { id: parseId('asker'), tags: [] };
const MET = parseId('asked');
const PORT = 0;
const YEAR_MS = 31_536_000_000;
/** What a data plane says then. */
const UPWARD: readonly Upward[] = [
  { t: 'miss.mac', port: PORT, mac: new Uint8Array(6), vlan: 0 },
  {
    ...{ t: 'miss.index', port: PORT, index: 1, kid: 1, group: false },
    from: { ip: new Uint8Array(4), port: 1 },
  },
  { t: 'done', id: 1 },
  { t: 'key.installed', id: 2, kidSend: 1, kidReceive: 1, fresh: true },
];

/** Its parts. */
export function gatewayRehearsal(): Readonly<Record<string, Part>> {
  const contact = new FirstContact();
  const { record, operator } = metMember(Date.now());
  return {
    channel: () => contact.play(),
    'data plane': hearDataPlane,
    member: () => meet(record, operator),
  };
}

/** A member with records that hold, of a subnet with an operator of its own. */
function metMember(now: number): { readonly record: PeerRecord; readonly operator: Buffer } {
  const [operator, sign, other] = [
    generateRawKeyPair('ed25519'),
    generateRawKeyPair('ed25519'),
    generateRawKeyPair('x25519'),
  ];
  const signKey = importPrivate('ed25519', sign.privateKey);
  const notAfter = now + YEAR_MS;
  const grant: Grant = {
    ...{ subnet: SUBNET, tokenId: new Uint8Array(16), id: MET, role: 'host' },
    ...{ home: parseId('ks1'), macs: [], ips: [], rights: [], uses: 1, notAfter },
  };
  const signedGrant = signRecord(LABEL.grant, grant, importPrivate('ed25519', operator.privateKey));
  const membership = signMembership(SUBNET, MET, signedGrant, {
    sign: signKey,
    signPublic: sign.publicKey,
    boxPublic: other.publicKey,
    channelPublic: other.publicKey,
  });
  const boot: BootRecord = {
    ...{ subnet: SUBNET, id: MET, boot: other.publicKey, sequence: 1 },
    ...{ macs: [defaultMac(SUBNET, MET)], notAfter },
  };
  const record = {
    ...recordOf(MET, 2),
    membership,
    boot: signRecord(LABEL.boot, boot, signKey),
  };
  return { record, operator: operator.publicKey };
}

function hearDataPlane(): void {
  const reader = new MessageReader();
  for (const message of UPWARD) {
    for (const heard of reader.push(encodeMessage(message))) upwardSchema.parse(heard);
  }
}

/** Takes in a member whom nobody knew before, and its key. @throws PairwireError if that did not go as it should */
async function meet(record: PeerRecord, operator: Buffer): Promise<void> {
  const failures: PairwireError[] = [];
  const told: CommandType[] = [];
  const pins = new Pins(undefined, operator);
  const key = importPublic('ed25519', operator);
  const table = new PeerTable({
    self: SELF,
    port: PORT,
    verifier: new Verifier({ subnet: SUBNET, operator: key, pins, now: Date.now }),
    dataPlane: listener(told),
    acceptsEndpoint: () => true,
    isNear: () => true,
    onRefused: (_id, error) => failures.push(error),
    onDenied: () => {},
    onCommandFailed: (error) => failures.push(error),
    onPrepared: () => {},
    onGroupPrepared: () => {},
    onAddress: () => {},
  });
  await table.installAll(1);
  table.takeMember(record, 1);
  table.takePair(record.id, { pwId: 1, key: new Uint8Array(KEY_SIZE) }, 2);
  table.wipe();
  const [failure] = failures;
  if (failure !== undefined) throw failure;
  if (told.join() === 'peer.set,key.pair') return;
  throw new PairwireError('DATAPLANE_PROTOCOL', `the data plane was told ${told.join()}`);
}

/** Writes down what a data plane is told. */
function listener(told: CommandType[]): CommandPort {
  return {
    request: <T extends CommandType>(type: T, fields: CommandFields<T>): Promise<AnswerTo<T>> => {
      encodeMessage({ ...fields, t: type, id: 1 });
      told.push(type);
      const answer = { t: 'done', id: 1 };
      return Promise.resolve(answer as unknown as AnswerTo<T>);
    },
  };
}
