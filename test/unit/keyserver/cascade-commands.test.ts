/** Several key servers of one subnet as operators make them: by commands, the servers as processes. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { ChannelClient } from '../../../src/net/channel-client.js';
import { parseId } from '../../../src/protocol/ids.js';
import { answerSchemas } from '../../../src/protocol/messages.js';
import { parseToken } from '../../../src/protocol/token.js';
import { type CommandResult, pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { TestMember, until } from './support/subnet.js';

describe('another key server of a subnet', () => {
  let one: ServerProcess;

  beforeEach(async () => {
    one = await ServerProcess.make();
    await one.start();
  }, 60_000);
  afterEach(() => one.remove());

  const at = (server: ServerProcess, args: readonly string[], input = ''): Promise<CommandResult> =>
    pairwire([...args, '--dir', server.dir, '--json'], input);

  async function tokenFor(server: string): Promise<string> {
    const { out, code, err } = await at(one, ['peer', 'token', '--server', server]);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(JSON.parse(out)).toMatchObject({ role: 'server', server, id: server });
    return (JSON.parse(out) as { token: string }).token;
  }

  const rows = async (server: ServerProcess, list: readonly string[]) => {
    const { out, err } = await at(server, list);
    expect(err).toBe('');
    return JSON.parse(out) as Record<string, unknown>[];
  };

  /** The same without the time that a program takes to begin. */
  const listed = async (server: ServerProcess, what: 'members' | 'nets') => {
    const client = admins.get(server) ?? server.admin();
    admins.set(server, client);
    const { rows: shown } = await client.request(
      { t: 'list', what },
      { parse: (it) => answerSchemas.list.parse(it) },
    );
    return shown;
  };
  const admins = new Map<ServerProcess, ChannelClient>();

  it('is made with a token, serves members with tokens of its own, and shows those of the other', async () => {
    const two = await ServerProcess.join(one, parseId('s2'), await tokenFor('s2'));
    try {
      // The operator's private key stays where it was.
      expect(existsSync(two.paths.operatorKey)).toBe(false);
      await two.start();
      const without = await at(two, ['token', '--id', 'bob']);
      expect(without.code).not.toBe(0);
      const made = await at(two, ['token', '--id', 'bob', '--operator-key', one.paths.operatorKey]);
      expect(made).toMatchObject({ code: 0 });
      const bob = new TestMember(two, 'bob');
      await bob.enrol(parseToken((JSON.parse(made.out) as { token: string }).token));
      await bob.register();
      const alice = new TestMember(one, 'alice');
      await alice.enrol(one.token({ id: 'alice' }));
      await alice.register();

      await until(
        async () => {
          const [here, there] = [await listed(one, 'members'), await listed(two, 'members')];
          const sees = (list: Record<string, unknown>[], id: string, home: string): boolean =>
            list.some((it) => it.id === id && it.home === home && it.online === true);
          return sees(here, 'bob', 's2') && sees(there, 'alice', 's1');
        },
        'each to show the member of the other',
        60_000,
      );
      expect(await rows(one, ['members'])).toContainEqual(
        expect.objectContaining({ id: 'bob', home: 's2' }),
      );
      expect(await rows(one, ['peer', 'list'])).toMatchObject([
        { server: 's2', peer: 's2', state: 'connected' },
      ]);
      expect(await rows(two, ['peer', 'list'])).toMatchObject([
        { server: 's1', peer: 's2', state: 'connected' },
      ]);
      // Killed in the middle of its work, it goes on where it was.
      await two.kill();
      await two.start();
      await until(
        async () => (await listed(two, 'nets'))[0]?.state === 'connected',
        'the first server again',
        60_000,
      );
      const careless = await at(two, ['peer', 'remove', 's1']);
      expect(careless.code).not.toBe(0);
      expect(careless.err).toMatch(
        /s1 is the first server: without it s2 makes the group key.*--yes/,
      );
      const parted = await at(two, ['peer', 'remove', 's1', '--yes']);
      expect(parted).toMatchObject({ code: 0 });
      expect(await rows(two, ['peer', 'list'])).toEqual([]);
    } finally {
      await two.remove();
    }
  }, 400_000);

  it('is refused with what does not fit, and leaves nothing behind', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'pairwire-cascade-'));
    try {
      const init = (args: readonly string[], input = '') =>
        pairwire(['init', '--dir', dir, ...args], input);
      const token = await tokenFor('s2');
      const member = await at(one, ['token', '--id', 'bob']);
      const { token: other } = JSON.parse(member.out) as { token: string };
      for (const [args, input, why] of [
        [['--cascade', '-'], other, 'not for a key server'],
        [['--cascade', '-'], 'pwt1_AAAA', 'not a whole token'],
        [['--cascade', '-', '--subnet', 'east'], token, 'the token says'],
        [['--cascade', '-', '--hold', '3'], token, 'settings'],
        [[], '', 'name the subnet'],
      ] as const) {
        const { code, err } = await init(args, input);
        expect(code).not.toBe(0);
        expect(err).toContain(why);
        expect(readdirSync(dir)).toEqual([]);
      }
      await one.kill();
      const away = await init(['--cascade', '-'], token);
      expect(away.code).not.toBe(0);
      expect(readdirSync(dir)).toEqual([]);
      const wrong = await at(one, ['peer', 'token', '--server', 'a1']);
      expect(wrong.err).toContain('does not come after s1');
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }, 400_000);
});
