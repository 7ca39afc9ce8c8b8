/** Peering as operators do it, by commands on two folders whose servers are processes; and the servers killed with -9 while they change the key. */
import { randomInt } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Net } from '../../../keyserver/storage/store.js';
import type { ChannelClient } from '../../../src/net/channel-client.js';
import { type Id, parseId } from '../../../src/protocol/ids.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { type CommandResult, pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { openKeys } from './support/store.js';
import { sleep, until } from './support/subnet.js';

/** Kills in one run; more by hand. */
const KILLS = Number(process.env.PAIRWIRE_NET_KILLS ?? 4);
const EAST = ['198.51.100.0/24'];
const WEST = ['203.0.113.0/24'];

describe('two key servers', () => {
  let east: ServerProcess;
  let west: ServerProcess;

  beforeEach(async () => {
    east = await ServerProcess.make({}, { prefixes: EAST });
    west = await ServerProcess.make({}, { subnet: parseId('west'), prefixes: WEST });
    await Promise.all([east.start(), west.start()]);
  }, 60_000);
  afterEach(async () => {
    await east.remove();
    await west.remove();
  });

  const at = (server: ServerProcess, args: readonly string[], input = ''): Promise<CommandResult> =>
    pairwire([...args, '--dir', server.dir, '--json'], input);

  async function peer(): Promise<void> {
    const token = await at(east, ['peer', 'token', '--net', 'west', '--prefix', '203.0.113.0/24']);
    expect(token).toMatchObject({ code: 0, err: '' });
    const text = (JSON.parse(token.out) as { token: string }).token;
    const added = await at(west, ['peer', 'add', '-', '--prefix', '198.51.100.0/24'], text);
    expect(added).toMatchObject({ code: 0, err: '' });
    expect(JSON.parse(added.out)).toMatchObject({ net: 'east', member: 'west' });
  }

  /** What `peer list` shows, without the time that a program takes to begin. */
  async function listed(server: ServerProcess): Promise<Record<string, unknown>> {
    const { rows } = await admins(server).request(
      { t: 'list', what: 'nets' },
      { parse: (it) => answerSchemas.list.parse(it) },
    );
    return rows[0] ?? {};
  }

  const clients = new Map<ServerProcess, ChannelClient>();
  /** The administrator's channel, which finds its server again. */
  function admins(server: ServerProcess): ChannelClient {
    const client = clients.get(server) ?? server.admin();
    clients.set(server, client);
    return client;
  }

  /** The row in the database of a server that does not run. */
  async function stored(server: ServerProcess, net: string): Promise<Net | undefined> {
    const store = await openKeys(server.paths);
    try {
      return await store.net(net as Id);
    } finally {
      await store.close();
    }
  }

  it('are peered by a token, list each other, renew the key from either side, and are parted', async () => {
    await peer();
    const { out } = await at(east, ['peer', 'list']);
    expect(JSON.parse(out)).toMatchObject([await listed(east)]);
    expect(await listed(east)).toMatchObject({
      net: 'west',
      key: 'made here',
      state: 'connected',
      pwId: 1,
      prefixes: WEST,
    });
    expect(await listed(west)).toMatchObject({
      net: 'east',
      key: 'made there',
      state: 'connected',
      pwId: 1,
      prefixes: EAST,
    });
    const renewed = await at(east, ['rekey', '--net', 'west']);
    expect(renewed).toMatchObject({ code: 0 });
    expect(JSON.parse(renewed.out)).toMatchObject({ nets: 1 });
    await until(async () => (await listed(west)).pwId === 2, 'the second key');
    // Too young for another's asking: the refusal comes through.
    expect(await at(west, ['rekey', '--net'])).toMatchObject({ code: 1 });
    expect(await at(west, ['peer', 'remove', 'east'])).toMatchObject({ code: 0 });
    expect(await listed(west)).toMatchObject({ state: 'ended', pwId: null });
  }, 120_000);

  it('say what is wrong with what they are told', async () => {
    const says = async (server: ServerProcess, ...args: string[]) => {
      const { code, err } = await at(server, args);
      expect(code).not.toBe(0);
      return err;
    };
    const token = ['peer', 'token', '--net'];
    expect(await says(east, ...token, 'west')).toContain('--prefix');
    expect(await says(east, ...token, 'east', '--prefix', '203.0.113.0/24')).toContain(
      'own net id',
    );
    expect(await says(west, ...token, 'east', '--prefix', '198.51.100.0/24')).toContain(
      'made by east',
    );
    expect(await says(east, ...token, 'west', '--prefix', '198.51.100.0/25')).toContain(
      'not foreign',
    );
    expect(await says(east, ...token, 'west', '--prefix', 'west')).toContain('no IP prefix');
    expect(await says(west, 'peer', 'remove', 'east')).toContain('not_found');
  }, 120_000);

  it(
    `agree on the key after one of them was killed at a moment of its renewal, ${KILLS} times`,
    async () => {
      await peer();
      let made = 0;
      for (let round = 0; round < KILLS; round += 1) {
        const victim = round % 2 === 0 ? east : west;
        const order = at(east, ['rekey', '--net', 'west']).catch(() => undefined);
        // The command itself takes a while to begin.
        await sleep(randomInt(0, 2_500));
        await victim.kill();
        await order;
        await victim.start();
        await until(
          async () => {
            const [one, other] = [await listed(east), await listed(west)];
            const agreed = one.pwId === other.pwId && one.next === null && other.next === null;
            return agreed && one.state === 'connected' && other.state === 'connected';
          },
          'both to agree again',
          60_000,
        );
        await Promise.all([east.kill(), west.kill()]);
        const [one, other] = [await stored(east, 'west'), await stored(west, 'east')];
        expect(one?.key?.equals(other?.key ?? Buffer.alloc(0))).toBe(true);
        expect(one?.pwId).toBe(other?.pwId);
        expect(one?.pwId).toBeGreaterThanOrEqual(made);
        made = one?.pwId ?? 0;
        await Promise.all([east.start(), west.start()]);
      }
    },
    60_000 + KILLS * 60_000,
  );
});
