/**
 * Join tokens: a grant signed by the operator, the secret for the first contact, and whom to
 * contact. Made from the key files alone; the server need not run, and stores nothing until
 * the token is used.
 */
import { type KeyObject, randomBytes } from 'node:crypto';
import { parseChannelAddress } from '../src/net/address.js';
import { LABEL } from '../src/protocol/constants.js';
import type { Id } from '../src/protocol/ids.js';
import { publicOf } from '../src/protocol/public-keys.js';
import { type Grant, grantSchema, ownMacs } from '../src/protocol/records.js';
import { type Signed, signRecord } from '../src/protocol/signed.js';
import { formatToken, type ServerAddress, tokenPsk } from '../src/protocol/token.js';
import { PairwireError } from '../src/runtime/errors.js';
import { isWildcard, type KeyServerConfig } from './config.js';

/** Whom the commands that talk to a running server are. */
export const ADMIN_ID = 'admin' as Id;

/** What a grant says, apart from what the server adds. */
export type GrantWish = Omit<Grant, 'subnet' | 'tokenId' | 'home'>;

export interface TokenKeys {
  readonly operator: KeyObject;
  readonly tokenKey: Buffer;
  /** The server's static channel key. */
  readonly serverPublic: Buffer;
}

/** A token in text form with the grant in it. */
export interface MadeToken {
  readonly text: string;
  readonly grant: Grant;
}

/** Makes a join token. @throws PairwireError USAGE, RECORD_MISMATCH for an address that can't be granted */
export function makeToken(
  config: Pick<KeyServerConfig, 'subnet' | 'server' | 'listen' | 'advertise'> & {
    readonly net?: Id | undefined;
  },
  keys: TokenKeys,
  wish: GrantWish,
): MadeToken {
  const tokenId = randomBytes(16);
  const parsed = grantSchema.safeParse({
    ...wish,
    subnet: config.subnet,
    home: config.server,
    tokenId,
  });
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new PairwireError('USAGE', `${issue?.path.join('.') ?? ''}: ${issue?.message ?? ''}`);
  }
  const grant = parsed.data;
  if (grant.id.endsWith('*') && grant.macs.length > 0) {
    throw new PairwireError('USAGE', 'a token for several ids cannot name MAC addresses');
  }
  if (!grant.id.endsWith('*')) ownMacs(grant, grant.id as Id);
  return {
    grant,
    text: formatToken({
      subnet: config.subnet,
      grant: signRecord(LABEL.grant, { ...grant }, keys.operator),
      psk: tokenPsk(keys.tokenKey, tokenId),
      operator: publicOf(keys.operator),
      servers: serversOf(config, keys.serverPublic),
      ...(grant.server === undefined
        ? {}
        : {
            cascade: {
              server: config.server,
              admin: adminGrant(config.subnet, grant.server, keys.operator, grant.notAfter),
            },
          }),
      // Key servers and link ports deal with other subnets, to which ours has this name.
      ...(grant.net === undefined && grant.role !== 'link'
        ? {}
        : { net: config.net ?? config.subnet }),
    }),
  };
}

/** The grant of a server's administrator. */
export function adminGrant(subnet: Id, home: Id, operator: KeyObject, notAfter: number): Signed {
  return signRecord(
    LABEL.grant,
    {
      ...{ subnet, tokenId: randomBytes(16), id: ADMIN_ID, role: 'operator', home },
      ...{ macs: [], ips: [], rights: [], uses: 1, notAfter },
    },
    operator,
  );
}

/** The addresses that a token names. @throws PairwireError USAGE if members could not reach any */
function serversOf(
  config: Pick<KeyServerConfig, 'listen' | 'advertise'>,
  key: Buffer,
): ServerAddress[] {
  const texts = config.advertise.length > 0 ? config.advertise : [config.listen].flat();
  return texts.map((text) => {
    const address = parseChannelAddress(text);
    if (address === undefined || isWildcard(address.host)) {
      throw new PairwireError('USAGE', `members cannot connect to ${text}`, {
        hint: 'name the address that members reach under `advertise:` in keyserver.yaml',
      });
    }
    const { scheme, host, port } = address;
    // Without a scheme a token reads as before there were others.
    return { ...(scheme === 'tcp' ? {} : { scheme }), host, port, key };
  });
}
