/**
 * Enrolment: a grant of the operator, presented over a channel that was made with its token,
 * makes an identity a member. Everything is decided in one transaction, so a race of two for
 * the last use of a token, an id or an address has one winner.
 */
import type { Id } from '../../src/protocol/ids.js';
import { defaultMac, type MacAddress } from '../../src/protocol/mac.js';
import {
  requireGrantValid,
  TALKER_ROLES,
  type VerifiedMember,
  verifyMembership,
} from '../../src/protocol/records.js';
import type { Signed } from '../../src/protocol/signed.js';
import { claimServer } from '../cascade/peer-members.js';
import { claimNet, dropNetsOf, renumberNets } from '../nets/net-members.js';
import { Refusal, refusing } from '../refusal.js';
import type { Services } from '../services.js';
import type { Learned, Member, Net, StoreTransaction } from '../storage/store.js';
import { grantBindings } from './bindings.js';
import { dropAllBehind, dropLearned } from './plain-side.js';

/** The channel that the request came over. */
export interface EnrolChannel {
  readonly remoteKey: Buffer;
  readonly tokenId: Buffer | undefined;
}

/** A member as enrolled; `fresh` is false if nothing had to be done. */
export interface Enrolled {
  readonly verified: VerifiedMember;
  readonly fresh: boolean;
  /** IP addresses that another MAC address announces from now on, or anybody. */
  readonly bindings: readonly string[];
  /** Addresses that were behind it, when it was a plain port's member. */
  readonly behind: readonly Learned[];
  /** Nets that it speaks for from now on, or no more. */
  readonly nets: readonly Net[];
  /** It was a link port before. */
  readonly wasLink: boolean;
}

/**
 * Enrols a member, or finds that it is enrolled with the same grant already.
 * @throws Refusal
 */
export async function enrol(
  services: Services,
  channel: EnrolChannel,
  record: Signed,
): Promise<Enrolled> {
  const { store, subnet, server, operator, audit, now } = services;
  const verified = refusing('enrol_record', () => verifyMembership(subnet, record, operator));
  const { id, grant } = verified;
  if (channel.tokenId === undefined || !channel.tokenId.equals(grant.tokenId)) {
    throw new Refusal('refused', 'enrol_token', 'the grant is not that of the join token', { id });
  }
  if (!channel.remoteKey.equals(verified.channel)) {
    throw new Refusal('refused', 'enrol_record', 'the membership names another channel key', {
      id,
    });
  }
  if (grant.home !== server) {
    throw new Refusal('refused', 'enrol_record', 'the id is at home on another server', { id });
  }
  return store.write(async (tx) => {
    const known = await tx.member(id);
    if (known?.state === 'revoked') {
      throw new Refusal('refused', 'enrol_id', 'the id was revoked; ids are not used again', {
        id,
      });
    }
    if (known?.home !== undefined) {
      throw new Refusal('refused', 'enrol_id', 'the id is at home on another server', { id });
    }
    if (known !== undefined && !known.identityDigest.equals(verified.identityDigest)) {
      throw new Refusal('refused', 'enrol_id', 'the id belongs to another identity', { id });
    }
    const isTold = known !== undefined && TALKER_ROLES.includes(known.role);
    if (isTold && !TALKER_ROLES.includes(verified.role) && (await tx.peerServers()).length > 0) {
      const why = 'other key servers know the id as one that takes part in traffic: revoke it';
      throw new Refusal('refused', 'enrol_id', why, { id });
    }
    const sameGrant = known?.tokenId.equals(grant.tokenId) === true;
    if (known !== undefined && sameGrant && known.channel.equals(verified.channel)) {
      return { verified, fresh: false, bindings: [], behind: [], nets: [], wasLink: false };
    }
    const time = now();
    refusing('enrol_expired', () => requireGrantValid(grant, time));
    if (!sameGrant) {
      if ((await tx.tokenUses(grant.tokenId)) >= grant.uses) {
        throw new Refusal('refused', 'enrol_token', 'the join token has been used up', { id });
      }
      await tx.countToken(grant.tokenId, time);
    }
    const holder = await tx.memberByChannel(verified.channel);
    if (holder !== undefined && holder.id !== id) {
      throw new Refusal('refused', 'enrol_record', 'the channel key belongs to another member', {
        id,
      });
    }
    const number = await tx.nextChange();
    const member = {
      id,
      serial: known?.serial ?? number,
      role: verified.role,
      channel: Buffer.from(verified.channel),
      membership: record,
      identityDigest: verified.identityDigest,
      tokenId: Buffer.from(grant.tokenId),
      ips: grant.ips,
      enrolledAt: time,
      changed: number,
    };
    if (known === undefined) await tx.insertMember(member);
    else await tx.updateMembership(member);
    const talks = TALKER_ROLES.includes(verified.role);
    const bindings = talks ? await claimAddresses(tx, verified, time) : [];
    const wasPlain = known?.role === 'plain' && verified.role !== 'plain';
    const behind = wasPlain ? await dropAllBehind(tx, id, time) : [];
    if (verified.role === 'link' && known !== undefined && known.role !== 'link') {
      await renumberNets(tx);
    }
    const dropped = await dropNetsOf(tx, id, verified.role === 'server' ? grant.net : undefined);
    const claimed = await claimNet(tx, services, verified);
    const nets = claimed === undefined ? dropped : [...dropped, claimed];
    await claimServer(tx, services, verified);
    await audit.append(tx, {
      actor: id,
      action: known === undefined ? 'enrol' : 'enrol_again',
      outcome: 'done',
      detail: {
        role: verified.role,
        token: Buffer.from(grant.tokenId).toString('hex'),
        macs: verified.macs,
        ...(claimed === undefined ? {} : { net: claimed.net }),
        ...(grant.server === undefined ? {} : { server: grant.server }),
      },
    });
    return { verified, fresh: true, bindings, behind, nets, wasLink: known?.role === 'link' };
  });
}

/** The member of a store's row, verified again. @throws PairwireError if the database was tampered with */
export function verifyStored(services: Services, member: Member): VerifiedMember {
  return verifyMembership(services.subnet, member.membership, services.operator);
}

/**
 * Gives a member the MAC and IP addresses of its grant; those it had and lost keep a
 * tombstone, so that they never resolve to a plain port. @returns IP addresses of which others are to be told
 */
async function claimAddresses(
  tx: StoreTransaction,
  member: VerifiedMember,
  now: number,
): Promise<readonly string[]> {
  const { id, grant, macs } = member;
  const shared = grant.rights.includes('shared');
  await claimMacs(tx, member, macs, now);
  for (const entry of await tx.macsOf(id)) {
    if (entry.kind === 'own' && !(macs.includes(entry.mac) && entry.shared === shared)) {
      await tx.putMac({ ...entry, kind: 'tombstone', seenAt: now });
    }
  }
  const prefixes = grant.ips.map(canonicalPrefix);
  for (const prefix of prefixes) {
    const owner = await tx.ipOwner(prefix);
    if (owner !== undefined && owner !== id && !shared) {
      throw new Refusal('refused', 'enrol_address', `${prefix} belongs to another member`, { id });
    }
  }
  await tx.bindIps(id, prefixes, shared, now);
  return grantBindings(tx, member, prefixes, now);
}

/** Makes addresses a member's own. @throws Refusal for one that another member owns or owned, before it writes anything of it */
export async function claimMacs(
  tx: StoreTransaction,
  { id, grant }: VerifiedMember,
  macs: readonly MacAddress[],
  now: number,
): Promise<void> {
  const shared = grant.rights.includes('shared');
  for (const mac of macs) {
    const named = grant.macs.includes(mac) && mac !== defaultMac(grant.subnet, id);
    await requireFree(tx, id, mac, { shared, named });
    const number = await tx.nextChange();
    await tx.putMac({
      mac,
      shared,
      member: id,
      kind: 'own',
      serial: number,
      seenAt: now,
      changed: number,
    });
    // Own before learned: from now on nobody is sent to a plain port for it.
    for (const entry of await tx.learnedAt(mac)) {
      if (entry.member !== undefined) await dropLearned(tx, entry, now);
    }
  }
}

/**
 * An address that was learned outside is no hindrance: a member's addresses are those that its grant names, or the one
 * made of its id, which somebody uses outside only to keep the member out.
 * @throws Refusal for an address that another member owns or owned
 */
async function requireFree(
  tx: StoreTransaction,
  id: Id,
  mac: MacAddress,
  claim: { readonly shared: boolean; readonly named: boolean },
): Promise<void> {
  const own = await tx.macEntries(mac);
  for (const entry of own) {
    if (entry.member === id || entry.kind === 'freed') continue;
    if (entry.kind === 'own' && entry.shared && claim.shared) continue;
    // The machine of a member that is out gets a new identity: the operator says so by naming the address.
    const revoked = (await tx.member(entry.member))?.state === 'revoked';
    if (entry.kind === 'tombstone' && revoked && claim.named) continue;
    throw new Refusal('refused', 'enrol_address', `${mac} belongs to another member`, { id });
  }
}

/** One spelling for each address: lower case, IPv6 shortened, no /32 or /128. */
export function canonicalPrefix(text: string): string {
  const [address = '', length] = text.split('/');
  const v6 = address.includes(':');
  const plain = v6 ? new URL(`http://[${address}]`).hostname.slice(1, -1) : address;
  return length === undefined || length === (v6 ? '128' : '32') ? plain : `${plain}/${length}`;
}
