/** The commands as a user runs them: what they print, what they refuse, and with which exit code. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { keyserverCommands } from '../../../keyserver/cli.js';
import { createProgram } from '../../../src/cli/output.js';
import { LABEL } from '../../../src/protocol/constants.js';
import { grantSchema } from '../../../src/protocol/records.js';
import { readUnverified } from '../../../src/protocol/signed.js';
import { parseToken } from '../../../src/protocol/token.js';
import { keyServerProgram } from '../../programs/key-server.js';
import { type CommandResult, pairwire as run } from './support/commands.js';

const pairwire = (...args: string[]): Promise<CommandResult> => run(args);

describe('key server commands', () => {
  let root: string;
  let dir: string;
  let port: number;

  beforeAll(async () => {
    root = mkdtempSync(join(tmpdir(), 'pairwire-cli-'));
    dir = join(root, 'east');
    port = await new Promise((resolve) => {
      const server = createServer().listen(0, '127.0.0.1', () => {
        const address = server.address();
        server.close(() =>
          resolve(typeof address === 'object' && address !== null ? address.port : 0),
        );
      });
    });
    const made = await pairwire(
      'init',
      '--subnet',
      'east',
      '--dir',
      dir,
      '--listen',
      `127.0.0.1:${port}`,
      '--json',
    );
    expect(made).toMatchObject({ code: 0, err: '' });
    expect(JSON.parse(made.out)).toMatchObject({
      subnet: 'east',
      config: join(dir, 'keyserver.yaml'),
    });
  });
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  it('init keeps its secrets to itself and overwrites nothing', async () => {
    for (const name of [
      'operator.key',
      'server.key',
      'token.key',
      'audit.key',
      'audit-sign.key',
      'admin.key',
      'keyserver.db',
      'kms/root-1.key',
      'kms/kms.key',
      'kms/audit.key',
    ]) {
      expect(statSync(join(dir, name)).mode & 0o777, name).toBe(0o600);
    }
    expect(statSync(dir).mode & 0o777).toBe(0o700);
    const before = readFileSync(join(dir, 'operator.key'));
    const again = await pairwire('init', '--subnet', 'east', '--dir', dir);
    expect(again.code).toBe(1);
    expect(again.err).toContain('there is a key server in this folder already');
    expect(readFileSync(join(dir, 'operator.key'))).toEqual(before);
  });

  it('init takes an operator key that exists, and leaves nothing behind when it fails', async () => {
    const away = join(root, 'operator.key');
    const west = join(root, 'west');
    const made = await pairwire('init', '--subnet', 'west', '--dir', west, '--operator-key', away);
    expect(made.code).toBe(0);
    const key = readFileSync(away);
    const north = join(root, 'north');
    expect(
      (await pairwire('init', '--subnet', 'north', '--dir', north, '--operator-key', away)).code,
    ).toBe(0);
    expect(readFileSync(away)).toEqual(key);
    expect(readFileSync(join(north, 'operator.pub'))).toEqual(
      readFileSync(join(west, 'operator.pub')),
    );
    chmodSync(away, 0o644);
    const south = join(root, 'south');
    const failed = await pairwire(
      'init',
      '--subnet',
      'south',
      '--dir',
      south,
      '--operator-key',
      away,
      '--json',
    );
    expect(failed.code).toBe(1);
    expect(JSON.parse(failed.err)).toMatchObject({ error: { code: 'FILE_MODE', where: away } });
    expect(existsSync(join(south, 'server.key'))).toBe(false);
  });

  it('token prints the token and nothing else, with what was asked for in its grant', async () => {
    const made = await pairwire(
      ...['token', '--dir', dir, '--id', 'alice', '--role', 'plain', '--mac', '02-00-00-00-00-0A'],
      ...['--mac', '02:00:00:00:00:0b', '--ip', '10.1.0.0/24', '--grant', 'router,dhcp'],
      ...['--ttl', '15m', '--uses', '2'],
    );
    expect(made).toMatchObject({ code: 0, err: '' });
    expect(made.out).toMatch(/^pwt1_[A-Za-z0-9_-]+\n$/);
    const token = parseToken(made.out);
    const grant = readUnverified(LABEL.grant, token.grant, grantSchema);
    expect(grant).toMatchObject({
      id: 'alice',
      role: 'plain',
      home: 's1',
      macs: ['02:00:00:00:00:0a', '02:00:00:00:00:0b'],
      ips: ['10.1.0.0/24'],
      rights: ['router', 'dhcp'],
      uses: 2,
    });
    expect(Math.abs(grant.notAfter - Date.now() - 900_000)).toBeLessThan(60_000);
    expect(token.servers).toMatchObject([{ host: '127.0.0.1', port }]);
  });

  it('init takes several addresses, and tokens name them with their scheme', async () => {
    const east = join(dir, 'several');
    const made = await pairwire(
      ...['init', '--subnet', 'several', '--dir', east, '--listen', '127.0.0.1:7901'],
      ...['--listen', 'udp://127.0.0.1:7901', '--listen', 'http://[::1]:7980'],
    );
    expect(made).toMatchObject({ code: 0, err: '' });
    expect(readFileSync(join(east, 'keyserver.yaml'), 'utf8')).toContain('- udp://127.0.0.1:7901');
    const check = await pairwire('keyserver', '--dir', east, '--check');
    expect(check.out).toContain('127.0.0.1:7901, udp://127.0.0.1:7901, http://[::1]:7980');
    const token = await pairwire('token', '--dir', east, '--id', 'alice');
    const servers = parseToken(token.out).servers.map(({ key: _key, ...address }) => address);
    expect(servers).toEqual([
      { host: '127.0.0.1', port: 7901 },
      { scheme: 'udp', host: '127.0.0.1', port: 7901 },
      { scheme: 'http', host: '::1', port: 7980 },
    ]);
  });

  it.each([
    [['token', '--id', 'x'], "required option '--dir <dir>' not specified"],
    [['token', '--dir', 'DIR', '--id', 'UPPER'], 'id:'],
    [['token', '--dir', 'DIR', '--id', 'x', '--role', 'king'], 'Allowed choices are host'],
    [['token', '--dir', 'DIR', '--id', 'x', '--grant', 'root'], 'allowed: router, dhcp, shared'],
    [['token', '--dir', 'DIR', '--id', 'x', '--ip', '10.1'], 'ips'],
    [['token', '--dir', 'DIR', '--id', 'x', '--ttl', 'soon'], '--ttl'],
    [['token', '--dir', 'DIR', '--id', 'x', '--uses', '0'], '--uses'],
    [['init', '--subnet', 'x', '--dir', '/nonexistent/x', '--listen', 'nowhere'], 'HOST:PORT'],
    [['settings', '--dir', 'DIR', '--hold', '4096'], '--hold'],
    [['settings', '--dir', 'DIR', '--suite', 'rot13'], 'Allowed choices'],
    [['members', '--dir', 'DIR', '--nonsense'], 'unknown option'],
    [['nonsense'], 'unknown command'],
  ])('wrong use ends with 2 and says what is wrong: %j', async (args, text) => {
    const result = await pairwire(...args.map((arg) => (arg === 'DIR' ? dir : arg)));
    expect(result.err).toContain(text);
    expect(result.code).toBe(2);
    expect(result.out).toBe('');
  });

  it('every command has an example in its help', () => {
    const program = createProgram('pairwire', 'test');
    keyserverCommands(program);
    expect(program.commands.length).toBe(17);
    // A command with commands of its own (`restore confirm`) is described by those.
    const all = program.commands.flatMap((one) => (one.commands.length > 0 ? one.commands : [one]));
    for (const command of all) {
      const group = command.parent === program ? '' : `${command.parent?.name() ?? ''} `;
      const name = `${group}${command.name()}`;
      let help = '';
      command.configureOutput({ writeOut: (text) => (help += text) });
      command.outputHelp();
      expect(help, name).toContain(`$ pairwire ${name} --`);
      expect(help, name).toContain('--json');
    }
  });

  describe('with a running server', () => {
    let server: ChildProcess;
    let log = '';

    beforeAll(async () => {
      const nobody = await pairwire('members', '--dir', dir);
      expect(nobody).toMatchObject({ code: 1 });
      expect(nobody.err).toContain(`pairwire keyserver --dir ${dir}`);
      server = spawn(process.execPath, keyServerProgram('keyserver', '--dir', dir), {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      await new Promise<void>((resolve) => {
        server.stderr?.on('data', (chunk: Buffer) => {
          log += chunk.toString();
          if (log.includes('key server listens')) resolve();
        });
      });
    });
    afterAll(() => {
      server.kill('SIGKILL');
    });

    it('lists members, keys, macs and audit without any secret', async () => {
      const outputs = await Promise.all(
        ['members', 'keys', 'macs', 'audit'].flatMap((name) => [
          pairwire(name, '--dir', dir),
          pairwire(name, '--dir', dir, '--json'),
        ]),
      );
      for (const { code } of outputs) expect(code).toBe(0);
      expect(JSON.parse(outputs[1]?.out ?? '')).toMatchObject([{ id: 'admin', role: 'operator' }]);
      expect(JSON.parse(outputs[3]?.out ?? '')).toMatchObject([
        { kind: 'group', a: 'all', pwId: 1 },
      ]);
      expect(outputs[0]?.out).toMatch(/^ID +ROLE/);
      const all = outputs.map(({ out }) => out).join('');
      expect(all).not.toMatch(/[A-Za-z0-9_-]{43}|[0-9a-f]{64}/);
    });

    it('pins and frees addresses outside, of plain members that are there', async () => {
      const free = await pairwire('mac', 'free', '--dir', dir, '02:aa:00:00:00:01');
      expect(free.code).toBe(1);
      expect(free.err).toContain('not_found');
      const pin = await pairwire('mac', 'pin', '--dir', dir, '0', '02:aa:00:00:00:01', 'admin');
      expect(pin.code).toBe(1);
      for (const wrong of [
        ['4095', '02:aa:00:00:00:01', 'gate'],
        ['0', '02:aa', 'gate'],
        ['0', '02:aa:00:00:00:01', 'No'],
      ]) {
        expect(await pairwire('mac', 'pin', '--dir', dir, ...wrong)).toMatchObject({ code: 2 });
      }
    });

    it('pins, lists and frees IP addresses', async () => {
      const at = ['--dir', dir];
      const pin = await pairwire('ip', 'pin', ...at, '2001:DB8::1', '02-aa-00-00-00-01', '--json');
      expect(JSON.parse(pin.out)).toEqual({
        ip: '2001:db8::1',
        mac: '02:aa:00:00:00:01',
        state: 'pinned',
      });
      const [listed, text, wrong, group] = await Promise.all([
        pairwire('ip', ...at, '--json'),
        pairwire('ip', 'list', ...at),
        pairwire('ip', 'pin', ...at, '10.0.0', '02:aa:00:00:00:01'),
        pairwire('ip', 'pin', ...at, '224.0.0.1', '02:aa:00:00:00:01'),
      ]);
      expect(JSON.parse(listed.out)).toMatchObject([
        { ip: '2001:db8::1', mac: '02:aa:00:00:00:01', member: null, kind: 'pinned' },
      ]);
      expect(text.out).toMatch(/^IP +MAC/);
      expect([wrong.code, group.code]).toEqual([2, 1]);
      const [free, none] = await Promise.all([
        pairwire('ip', 'free', ...at, '2001:db8::1', '--json'),
        pairwire('ip', 'free', ...at, '2001:db8::2'),
      ]);
      expect(JSON.parse(free.out)).toEqual({
        ip: '2001:db8::1',
        was: 'pinned',
        mac: '02:aa:00:00:00:01',
      });
      expect(none.err).toContain('not_found');
    });

    it('takes new settings over the channel, signs with the right key only, and keeps them', async () => {
      const set = await pairwire(
        'settings',
        '--dir',
        dir,
        '--hold',
        '0',
        '--freshness',
        '10s',
        '--unknown',
        'plain',
        '--default-plain',
        'gate1',
        '--json',
      );
      expect(JSON.parse(set.out)).toMatchObject({
        version: 2,
        hold: 0,
        freshnessMs: 10_000,
        unknown: 'plain',
        plain: { default: 'gate1' },
      });
      const audit = await pairwire('audit', '--dir', dir, '--json');
      expect(JSON.parse(audit.out)).toContainEqual(
        expect.objectContaining({ actor: 'admin', action: 'settings', detail: { version: 2 } }),
      );
      const foreign = join(root, 'foreign.key');
      renameSync(join(root, 'operator.key'), foreign);
      chmodSync(foreign, 0o600);
      const wrong = await pairwire(
        'settings',
        '--dir',
        dir,
        '--hold',
        '1',
        '--operator-key',
        foreign,
      );
      expect(wrong.code).toBe(1);
      expect(wrong.err).toContain('not the operator key');
    });

    it('ends in order at SIGTERM; then settings go into the database, audited, and the chain holds', async () => {
      server.kill('SIGTERM');
      const [code] = (await once(server, 'exit')) as [number];
      expect(code).toBe(0);
      const set = await pairwire('settings', '--dir', dir, '--lease', '12h', '--json');
      expect(JSON.parse(set.out)).toMatchObject({ version: 3, leaseSeconds: 43_200 });
      const checked = await pairwire('audit', '--dir', dir, '--verify', '--json');
      expect(JSON.parse(checked.out)).toMatchObject({ entries: 6, intact: true });
    });
  });
});
