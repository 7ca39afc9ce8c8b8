/**
 * Makes another key server of a subnet that exists: it enrols at the server that made the token, takes over what every
 * server has in common (settings, tag, group key), and has a store and keys of its own for all else. The operator's private key
 * is not needed: the token carries the grant of its administrator.
 *
 * What fails after the enrolment can be repeated with the same token: the key from which the keys of the peering are
 * derived stays in the folder (`joining.key`) until it has succeeded.
 */
import { createHash } from 'node:crypto';
import { existsSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ChannelClient } from '../../src/net/channel-client.js';
import { serverEndpoints } from '../../src/net/client-link.js';
import { fields } from '../../src/protocol/fields.js';
import { GROUP_ID, type Id } from '../../src/protocol/ids.js';
import { answerSchemas, type CascadeWord, type HomeChange } from '../../src/protocol/messages.js';
import type { Grant } from '../../src/protocol/records.js';
import type { Token } from '../../src/protocol/token.js';
import { SystemClock } from '../../src/runtime/clock.js';
import { PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile, writeKeyFile } from '../../src/runtime/files.js';
import { KEY_KIND, type KeyServerPaths } from '../config.js';
import { configInput, type InitOptions, makeFolder, makeStore, writeServerKeys } from '../init.js';
import { enrolByToken, grantIn, type PeeringKeys, peeringKeys, readPeerToken } from '../peering.js';
import { Refusal } from '../refusal.js';
import { newPeer } from './peer-members.js';

const ASK_TIMEOUT = 15_000;
const PENDING_KEY = 'joining.key';

export interface JoinOptions extends Omit<InitOptions, 'subnet' | 'server' | 'settings'> {
  readonly token: string;
}

/** What a new server has in common with the others. */
interface Common {
  readonly word: CascadeWord;
  readonly group: Extract<HomeChange, { kind: 'group' }>;
}

/** The high 8 bits of the sender indices of a server that is not a subnet's first: made from its id, 1 to 255. */
export function numberOf(subnet: Id, server: Id): number {
  const digest = createHash('sha256')
    .update(fields('sender number', subnet, server))
    .digest();
  return 1 + (digest.readUInt32BE(0) % 255);
}

/**
 * Makes it in a folder.
 * @throws PairwireError USAGE for a token that is not for this, REFUSED if the other server does not take it, FILE_EXISTS
 */
export async function joinCascade(
  options: JoinOptions,
): Promise<{ readonly paths: KeyServerPaths; readonly subnet: Id; readonly server: Id }> {
  const { token, grant } = judge(options.token);
  const { subnet } = token;
  const { server } = grant;
  const input = configInput({ ...options, subnet, server });
  const pending = join(resolve(options.dir), PENDING_KEY);
  const isAgain = existsSync(pending);
  let enrolled: Buffer | undefined;
  try {
    const before = isAgain ? readKeyFile(pending, KEY_KIND.token) : undefined;
    const paths = await makeFolder(options.dir, input, (made) =>
      fill(token, grant, made, before, (key) => {
        enrolled = Buffer.from(key);
      }),
    );
    rmSync(pending, { force: true });
    return { paths, subnet, server };
  } catch (thrown) {
    if (enrolled !== undefined && !isAgain) writeKeyFile(pending, KEY_KIND.token, enrolled);
    throw thrown;
  } finally {
    enrolled?.fill(0);
  }
}

type ServerToken = Token & { readonly cascade: NonNullable<Token['cascade']> };
type ServerGrant = Grant & { readonly server: Id };

function judge(text: string): { readonly token: ServerToken; readonly grant: ServerGrant } {
  const token = asUser(() => readPeerToken(text));
  const grant = asUser(() => grantIn(token));
  const { cascade } = token;
  if (cascade === undefined || grant.server === undefined || grant.role !== 'server') {
    throw new PairwireError('USAGE', 'this token is not for a key server of the same subnet', {
      hint: 'make one at the first key server: pairwire peer token --dir DIR --server ID',
    });
  }
  return { token: { ...token, cascade }, grant: { ...grant, server: grant.server } };
}

async function fill(
  token: ServerToken,
  { server, ...grant }: ServerGrant,
  paths: KeyServerPaths,
  tokenKey: Buffer | undefined,
  enrolled: (tokenKey: Buffer) => void,
): Promise<void> {
  const { subnet, operator, servers, cascade } = token;
  const member = grant.id as Id;
  const keys = writeServerKeys(paths, operator, tokenKey);
  const peering = peeringKeys(keys.tokenKey, { subnet, operator, member });
  const clock = new SystemClock();
  const number = numberOf(subnet, server);
  try {
    await enrolByToken(token, { ...grant, server }, member, peering, clock);
    enrolled(keys.tokenKey);
    const { word, group } = await askCommon(token, server, number, peering);
    if (word.server !== cascade.server || word.first !== cascade.server) {
      throw new PairwireError('REFUSED', `${word.first} is the first server of the subnet`, {
        hint: `make the token there: pairwire peer token --dir DIR --server ${server}`,
      });
    }
    const { time: now, tag, settings } = word;
    if (tag === undefined || settings === undefined) {
      throw new PairwireError('REFUSED', 'the other key server is not a whole one');
    }
    await makeStore(paths, keys, {
      ...{ subnet, server, number, tag, operator: Buffer.from(operator), now },
      ...{ settings, admin: cascade.admin },
      auditDetail: { subnet, server, first: cascade.server },
      fill: async (tx) => {
        const change = await tx.nextChange();
        const next = group.next;
        await tx.learnGroup({
          ...{ id: GROUP_ID, key: Buffer.from(group.key), pwId: group.pwId, oldest: group.oldest },
          ...{ reason: 'learned', createdAt: now, serial: change, changed: change, dueAt: 0 },
          next:
            next === undefined
              ? undefined
              : { key: Buffer.from(next.key), pwId: next.pwId, reason: 'learned' },
        });
        const contact = { member, servers };
        await tx.putPeerServer(newPeer(cascade.server, { contact }, await tx.nextChange()));
      },
    });
  } catch (thrown) {
    if (!(thrown instanceof Refusal)) throw thrown;
    throw new PairwireError('REFUSED', thrown.message, { cause: thrown });
  } finally {
    for (const secret of [keys.tokenKey, keys.auditKey]) secret.fill(0);
  }
}

/** Reads on until the group key has come. */
async function askCommon(
  token: ServerToken,
  server: Id,
  number: number,
  { channel }: PeeringKeys,
): Promise<Common> {
  const client = new ChannelClient({
    servers: serverEndpoints(token.servers),
    staticKeys: channel,
    clock: new SystemClock(),
  });
  client.start();
  let have: CascadeWord['have'] = { epoch: Buffer.alloc(8), cursor: 0 };
  try {
    for (;;) {
      const word: CascadeWord = {
        ...{ server, number, first: token.cascade.server, epoch: Buffer.alloc(8) },
        ...{ time: Date.now(), have, wants: [], confirms: [], seeks: [], places: [] },
      };
      const answer = await client.request(
        { t: 'cascade.sync', word },
        { timeoutMs: ASK_TIMEOUT, parse: (it) => answerSchemas['cascade.sync'].parse(it).word },
      );
      const { state, epoch } = answer;
      const group = state?.changes.find((one) => one.kind === 'group');
      if (group?.kind === 'group') return { word: answer, group };
      if (state?.more !== true) {
        throw new PairwireError('REFUSED', 'the key server tells no group key', {
          hint: 'make the token at the first key server of the subnet',
        });
      }
      have = { epoch, cursor: state.cursor };
    }
  } finally {
    client.stop();
  }
}

/** What is wrong with a token is the user's mistake. */
function asUser<T>(read: () => T): T {
  try {
    return read();
  } catch (thrown) {
    if (!(thrown instanceof Refusal)) throw thrown;
    throw new PairwireError('USAGE', thrown.message);
  }
}
