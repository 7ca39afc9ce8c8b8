/** What the key server's commands share: the operator's channel and key, lists, checks of arguments. */
import {
  type Column,
  type OutputTarget,
  parseInteger,
  printJson,
  printRows,
} from '../src/cli/output.js';
import { keyPairFromPrivate } from '../src/protocol/channel/keys.js';
import { idSchema, type parseId } from '../src/protocol/ids.js';
import type { ListName } from '../src/protocol/messages.js';
import { importPrivate, publicOf } from '../src/protocol/public-keys.js';
import { PairwireError } from '../src/runtime/errors.js';
import { readKeyFile } from '../src/runtime/files.js';
import {
  KEY_KIND,
  type KeyServerConfig,
  type KeyServerPaths,
  loadKeyServerConfig,
} from './config.js';
import { type ListRow, OperatorClient } from './operator-client.js';
import { type GrantWish, makeToken, type TokenKeys } from './tokens.js';

/** A command that prints one of the key server's lists. */
export interface ListCommand {
  readonly name: ListName;
  readonly about: string;
  readonly columns: readonly Column<ListRow>[];
}

/** Speaks with the key server of a folder as its operator; the channel ends with `use`. */
export async function asOperator(
  dir: string,
  use: (client: OperatorClient) => Promise<void>,
): Promise<void> {
  const client = new OperatorClient(dir, loadKeyServerConfig(dir));
  try {
    await use(client);
  } finally {
    client.close();
  }
}

/** Prints a list. @param limit most rows, as the option has it */
export async function printList(
  target: OutputTarget,
  dir: string,
  list: ListCommand,
  limit: string | undefined,
): Promise<void> {
  const most = limit === undefined ? undefined : parseInteger(limit, '--limit', 1, 100_000_000);
  await asOperator(dir, async (client) => {
    const rows: ListRow[] = [];
    for await (const row of client.list(list.name, most)) rows.push(row);
    printRows(target, list.columns, rows);
  });
}

/** Makes a token and prints it: as it is, or as JSON with what is in it. */
export function printToken(
  target: OutputTarget,
  config: KeyServerConfig,
  keys: TokenKeys,
  wish: GrantWish,
): void {
  const { text, grant } = makeToken(config, keys, wish);
  if (!target.json) {
    target.out(`${text}\n`);
    return;
  }
  const { id, role, uses, notAfter, net, server } = grant;
  const other = {
    ...(net === undefined ? {} : { net }),
    ...(server === undefined ? {} : { server }),
  };
  printJson(target, { token: text, id, role, ...other, uses, notAfter: isoTime(notAfter) });
}

/** The keys that tokens are made with. @throws PairwireError FILE_UNREADABLE, FILE_MODE, PIN_MISMATCH */
export function readTokenKeys(paths: KeyServerPaths, operatorKey: string | undefined): TokenKeys {
  return {
    operator: readOperator(paths, operatorKey),
    tokenKey: readKeyFile(paths.tokenKey, KEY_KIND.token),
    serverPublic: keyPairFromPrivate(readKeyFile(paths.serverKey, KEY_KIND.server)).publicKey,
  };
}

/** The operator's private key, checked against the public half that the folder pins. */
export function readOperator(
  paths: KeyServerPaths,
  file: string | undefined,
): ReturnType<typeof importPrivate> {
  const path = file ?? paths.operatorKey;
  const raw = readKeyFile(path, KEY_KIND.operatorPrivate);
  const key = importPrivate('ed25519', raw);
  raw.fill(0);
  const pinned = readKeyFile(paths.operatorPublic, KEY_KIND.operatorPublic, { public: true });
  if (!publicOf(key).equals(pinned)) {
    throw new PairwireError('PIN_MISMATCH', "this is not the operator key of the folder's subnet", {
      where: path,
    });
  }
  return key;
}

/** An id in an argument. @throws PairwireError USAGE */
export function usable(text: string, option: string): ReturnType<typeof parseId> {
  const parsed = idSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new PairwireError('USAGE', `${option}: ${parsed.error.issues[0]?.message ?? 'wrong'}`);
}

export function columns(...fields: readonly string[]): Column<ListRow>[] {
  return fields.map((field) => ({ field, title: field.toUpperCase() }));
}

export function example(text: string): string {
  return `\nExample:\n  $ ${text}\n`;
}

export function isoTime(ms: number): string {
  return new Date(ms).toISOString();
}
