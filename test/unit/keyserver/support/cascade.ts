/** What tests of several key servers of one subnet need: tokens and records as another server has them, and what members hear. */
import { numberOf } from '../../../../keyserver/cascade/join.js';
import { makeToken } from '../../../../keyserver/tokens.js';
import { type Id, parseId } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { answerSchemas, type CascadeWord, type Change } from '../../../../src/protocol/messages.js';
import { parseToken, type Token } from '../../../../src/protocol/token.js';
import { HOUR, TestMember, type TestSubnet } from './subnet.js';
import type { SubnetFolder } from './subnet-folder.js';

/** A token for another server, made at this one. */
export function serverToken(at: SubnetFolder, server: string, id = server): string {
  return makeToken(
    {
      ...{ subnet: at.subnet, server: at.serverId },
      ...{ listen: `127.0.0.1:${at.port}`, advertise: [] },
    },
    { operator: at.operator, tokenKey: at.tokenKey, serverPublic: at.serverPublic },
    {
      ...{ id, role: 'server', server: server as Id, ips: [], notAfter: Date.now() + HOUR },
      ...{ macs: [], rights: [], uses: 1 },
    },
  ).text;
}

/** A token with which that many members with an id that begins with m enrol at a server. */
export function serverGrant(at: TestSubnet, home: string, uses: number): Token {
  return memberToken(at, home, { id: 'm*', uses });
}

/** A token for members at home at a server. */
export function memberToken(
  at: TestSubnet,
  home: string,
  wish: { readonly id: string; readonly uses: number; readonly notAfter?: number },
): Token {
  const { id, uses, notAfter = Date.now() + HOUR } = wish;
  const { text } = makeToken(
    {
      ...{ subnet: at.subnet, server: parseId(home) },
      ...{ listen: `127.0.0.1:${at.port}`, advertise: [] },
    },
    { operator: at.operator, tokenKey: at.tokenKey, serverPublic: at.serverPublic },
    {
      ...{ id, role: 'host', macs: [], ips: [], rights: [], uses, notAfter },
    },
  );
  return parseToken(text);
}

/** A member's record as a server tells it, with a grant that names a server as its home. */
export function recordOf(
  at: TestSubnet,
  id: string,
  home: string,
  token: Token = memberToken(at, home, { id, uses: 1 }),
) {
  const member = new TestMember(at, id);
  member.sequence = 1;
  const membership = member.membership(token);
  const boot = member.bootRecord();
  return {
    ...{ id: member.id, role: 'host' as const, online: true, membership, boot },
    ...{ ips: [], endpoints: [] },
  };
}

/** The MAC address that is made of a member's id. */
export const macOf = (member: TestMember): string => defaultMac(member.subnet.subnet, member.id);

/** The last change of a kind that a member was pushed. */
export function told<K extends Change['kind']>(
  member: TestMember,
  kind: K,
): Extract<Change, { kind: K }> | undefined {
  return member
    .pushed()
    .filter((one): one is Extract<Change, { kind: K }> => one.kind === kind)
    .at(-1);
}

/** The last that a member was pushed of its key with another. */
export const pairTold = (member: TestMember, peer: TestMember) =>
  member
    .pushed()
    .filter((one) => one.kind === 'pair')
    .filter((one) => one.peer === peer.id)
    .at(-1);

/** A server that says whatever a test likes: enrolled at this one, it speaks over the real channel. */
export class RogueServer {
  readonly member: TestMember;
  readonly #word: CascadeWord;

  private constructor(member: TestMember, word: CascadeWord) {
    this.member = member;
    this.#word = word;
  }

  get number(): number {
    return this.#word.number;
  }

  static async at(one: TestSubnet, server: string): Promise<RogueServer> {
    const number = numberOf(one.subnet, parseId(server));
    const member = await one.enrolled(server, { role: 'server', server: parseId(server) });
    return new RogueServer(member, {
      ...{ server: parseId(server), number, first: one.serverId, tag: one.store.meta.tag },
      ...{ epoch: Buffer.alloc(8, 1), time: Date.now(), wants: [], confirms: [] },
      ...{ seeks: [], places: [], have: { epoch: Buffer.alloc(8), cursor: 0 } },
    });
  }

  say(change: Partial<CascadeWord>): Promise<CascadeWord> {
    return this.member.client.request(
      { t: 'cascade.sync', word: { ...this.#word, ...change } },
      { parse: (it) => answerSchemas['cascade.sync'].parse(it).word },
    );
  }

  /** Says these changes, as all that is new at home there. */
  tell(...changes: NonNullable<CascadeWord['state']>['changes']): Promise<CascadeWord> {
    return this.say({ state: { from: 0, cursor: 1, more: false, changes } });
  }
}
