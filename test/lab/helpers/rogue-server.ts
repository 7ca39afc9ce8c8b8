/**
 * A key server that lies: enrolled at a real one of the laboratory as another one of its subnet, or as that of another
 * net, or not even that. It speaks over the real channel and says what a test likes.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeKeys, signMembership } from '../../../gateway/identity.js';
import { gatewayPaths } from '../../../gateway/paths.js';
import { numberOf } from '../../../keyserver/cascade/join.js';
import type { Lab } from '../../../scripts/laboratory/lab.js';
import { ChannelClient } from '../../../src/net/channel-client.js';
import { keyPairFromPrivate } from '../../../src/protocol/channel/keys.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { parseId } from '../../../src/protocol/ids.js';
import { answerSchemas, type CascadeWord } from '../../../src/protocol/messages.js';
import { generateRawKeyPair } from '../../../src/protocol/public-keys.js';
import { grantSchema } from '../../../src/protocol/records.js';
import { readUnverified } from '../../../src/protocol/signed.js';
import { parseToken, type Token } from '../../../src/protocol/token.js';
import { openRelay } from './modified-member.js';

const PATIENCE_MS = 10_000;

/** The channel of a key server that says what it likes. */
export interface RogueClient {
  readonly client: ChannelClient;
  readonly token: Token;
  stop(): void;
}

/**
 * Comes from a host with a token for a key server.
 * @param isEnrolled with the token; otherwise with keys that nobody knows
 */
export async function rogueClient(
  lab: Lab,
  host: string,
  tokenText: string,
  isEnrolled = true,
): Promise<RogueClient> {
  const dir = mkdtempSync(join(tmpdir(), 'pairwire-rogue-'));
  const token = parseToken(tokenText.trim());
  const [far] = token.servers;
  if (far === undefined) throw new Error('the token names no server');
  const relay = await openRelay(lab, host, `${far.host}:${far.port}`, dir);
  const keys = makeKeys(gatewayPaths(dir));
  const grant = readUnverified(LABEL.grant, token.grant, grantSchema);
  const client = new ChannelClient({
    servers: [{ host: '127.0.0.1', port: relay.port, publicKey: Buffer.from(far.key) }],
    staticKeys: isEnrolled
      ? keys.channel
      : keyPairFromPrivate(generateRawKeyPair('x25519').privateKey),
    ...(isEnrolled ? { token: { id: grant.tokenId, psk: token.psk } } : {}),
  });
  client.start();
  if (isEnrolled) {
    const membership = signMembership(token.subnet, parseId(grant.id), token.grant, keys);
    await client.request(
      { t: 'enrol', membership },
      { timeoutMs: PATIENCE_MS, parse: (it) => answerSchemas.enrol.parse(it) },
    );
    client.forgetToken();
  }
  return {
    client,
    token,
    stop: () => {
      client.stop();
      relay.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

export class RogueServer {
  private constructor(
    private readonly rogue: RogueClient,
    private readonly word: CascadeWord,
  ) {}

  /** Speaks to a key server from a host as another one of its subnet. */
  static async at(
    lab: Lab,
    host: string,
    keyServer: string,
    server: string,
    isEnrolled = true,
  ): Promise<RogueServer> {
    const text = await lab.serverToken(keyServer, server);
    const rogue = await rogueClient(lab, host, text, isEnrolled);
    const { subnet, cascade } = rogue.token;
    if (cascade === undefined) throw new Error('not a token for a key server of the subnet');
    const id = parseId(server);
    return new RogueServer(rogue, {
      ...{ server: id, number: numberOf(subnet, id), first: cascade.server },
      ...{ epoch: Buffer.alloc(8, 1), time: Date.now(), wants: [], confirms: [] },
      ...{ seeks: [], places: [], have: { epoch: Buffer.alloc(8), cursor: 0 } },
    });
  }

  /** Says a word. @returns the answer @throws RequestError for one that is refused, or not answered within a while */
  say(change: Partial<CascadeWord>, timeoutMs = PATIENCE_MS): Promise<CascadeWord> {
    return this.rogue.client.request(
      { t: 'cascade.sync', word: { ...this.word, ...change } },
      { timeoutMs, parse: (it) => answerSchemas['cascade.sync'].parse(it).word },
    );
  }

  /** Says these changes, as all that is new at home there. */
  tell(...changes: NonNullable<CascadeWord['state']>['changes']): Promise<CascadeWord> {
    return this.say({ state: { from: 0, cursor: 1, more: false, changes } });
  }

  stop(): void {
    this.rogue.stop();
  }
}
