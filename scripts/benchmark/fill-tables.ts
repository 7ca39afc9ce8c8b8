/**
 * Puts members with keys into a running data plane, by the same commands on the same socket as the control
 * plane: the real tables, keys derived and held as for real members, only that nobody is behind them.
 */
import { randomBytes } from 'node:crypto';
import { DataPlaneClient } from '../../gateway/dataplane/client.js';
import { generateRawKeyPair } from '../../src/protocol/public-keys.js';

/** Commands on their way at a time. */
const IN_FLIGHT = 64;
/** Sender indexes of our members; the key server draws others at random, so a clash is one in a million. */
const FIRST_INDEX = 0xa000_0000;

/**
 * Takes control of the data plane and adds `members` members, each with an address, an endpoint, a pair key in
 * use for sending and a receiving start of the group key. They count as offline, so that a broadcast is not
 * sent to ten thousand hosts that don't exist.
 * @returns the connection; while it is open, the data plane does not think itself orphaned
 */
export async function fillTables(socket: string, members: number): Promise<DataPlaneClient> {
  let ended: unknown;
  const client = await DataPlaneClient.connect(socket, {
    event: () => undefined,
    close: (error) => {
      ended = error;
    },
  });
  const attached = await client.request('attach', { epoch: Date.now() + 1 });
  const port = attached.ports[0];
  const boot = port?.boots.at(-1);
  if (port === undefined || boot === undefined) throw new Error('the data plane has no port');
  const waiting = new Set<Promise<unknown>>();
  const send = async (answer: Promise<unknown>) => {
    const entry = answer.finally(() => waiting.delete(entry));
    waiting.add(entry);
    if (waiting.size >= IN_FLIGHT) await Promise.race(waiting);
  };
  for (let i = 0; i < members; i++) {
    const mac = Buffer.from([0x02, 0xfe, 0, i >> 16, (i >> 8) & 0xff, i & 0xff]);
    await send(
      client.request('peer.set', {
        port: port.port,
        peer: `crowd-${i}`,
        index: FIRST_INDEX + i,
        boot: generateRawKeyPair('x25519').publicKey,
        macs: [mac],
        endpoints: [{ ip: Buffer.from([203, 0, 113, 1 + (i % 250)]), port: 1024 + i }],
        online: false,
        relayFirst: false,
        plain: false,
        rights: 0,
      }),
    );
    await send(
      client.request('key.pair', {
        port: port.port,
        peer: `crowd-${i}`,
        boot: boot.boot,
        key: randomBytes(32),
        pwId: 1,
        send: true,
      }),
    );
  }
  await Promise.all(waiting);
  const stats = await client.request('stats', {});
  if (ended !== undefined || stats.ports.length === 0) throw new Error('the data plane is gone');
  return client;
}
