/**
 * What a key server does when a member asks for the key with another one for the first time, in memory and in its own database: there with statements
 * that change nothing, and a key that is taken back before anybody could see it. If there are members with these names, nothing happens to them.
 */
import { randomBytes } from 'node:crypto';
import { FirstContact, recordOf } from '../../src/net/first-contact.js';
import { KEY_SIZE } from '../../src/protocol/constants.js';
import { orderedPair } from '../../src/protocol/ids.js';
import { defaultMac } from '../../src/protocol/mac.js';
import type { Part } from '../../src/runtime/rehearsal.js';
import { isOwned } from '../registry/directory.js';
import type { Store } from '../storage/store.js';

const [ASKER, ASKED] = [recordOf('rehearsal-1', 1), recordOf('rehearsal-2', 2)];

/** Its parts, for a server with this store. */
export function keyServerRehearsal(store: Store): Readonly<Record<string, Part>> {
  const contact = new FirstContact({ asker: ASKER, asked: ASKED });
  return {
    channel: () => contact.play(),
    'look-ups': () => lookUp(store),
    'pair key': () => makeAndTakeBack(store),
  };
}

async function lookUp(store: Store): Promise<void> {
  const mac = defaultMac(store.meta.subnet, ASKED.id);
  await store.member(ASKER.id);
  await store.memberByMac(mac);
  await isOwned(store, mac);
  await store.anyPair(ASKER.id, ASKED.id);
}

/** Has the transaction rolled back. */
class TakenBack extends Error {}

async function makeAndTakeBack(store: Store): Promise<void> {
  const [a, b] = orderedPair(ASKER.id, ASKED.id);
  const times = { createdAt: 0, dueAt: 0 };
  try {
    await store.write(async (tx) => {
      const number = await tx.nextChange();
      await tx.member(a);
      await tx.member(b);
      await tx.settingsVersion();
      const key = randomBytes(KEY_SIZE);
      const numbers = { pwId: 1, serial: number, askedA: number, askedB: 0, changed: number };
      await tx.insertPair({ a, b, key, reason: 'first_request', ...times, ...numbers });
      throw new TakenBack();
    });
  } catch (thrown) {
    if (!(thrown instanceof TakenBack)) throw thrown;
  }
}
