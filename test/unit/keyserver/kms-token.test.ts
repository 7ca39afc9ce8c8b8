/** Root keys in a PKCS#11 token (SoftHSM): made there, moved to and fro, pulled and put back, with a wrong PIN, gone. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadKmsConfig } from '../../../keyserver/kms/config.js';
import { makeKms } from '../../../keyserver/kms/folder.js';
import { RootKeys } from '../../../keyserver/kms/root-keys.js';
import { Token } from '../../../keyserver/kms/token.js';
import { tokenSchema } from '../../../keyserver/kms/token-config.js';
import { leaveToken, useToken } from '../../../keyserver/kms/use-token.js';
import { parseId } from '../../../src/protocol/ids.js';
import { defaultMac } from '../../../src/protocol/mac.js';
import { pairwire } from './support/commands.js';
import { ServerProcess } from './support/server-process.js';
import { openKeys } from './support/store.js';
import { SUBNET, TestMember, until } from './support/subnet.js';

const MODULE = '/usr/lib/softhsm/libsofthsm2.so';
const PIN = '739154';
const owner = { subnet: SUBNET, server: 's1' };
const mac = (id: string): string => defaultMac(SUBNET, parseId(id));

/** A SoftHSM of our own: its tokens are a folder, which can be moved away as a token can be pulled. */
class SoftHsm {
  readonly dir = mkdtempSync(join(tmpdir(), 'pairwire-hsm-'));
  readonly tokens = join(this.dir, 'tokens');
  readonly conf = join(this.dir, 'softhsm2.conf');
  readonly environment = { SOFTHSM2_CONF: this.conf };

  constructor() {
    mkdirSync(this.tokens);
    writeFileSync(
      this.conf,
      `directories.tokendir = ${this.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n`,
    );
  }

  add(label: string): void {
    execFileSync(
      'softhsm2-util',
      ['--init-token', '--free', '--label', label, '--so-pin', '12345678', '--pin', PIN],
      { env: { ...process.env, ...this.environment }, stdio: 'ignore' },
    );
  }

  /** Lets the user that a KMS runs as have it. */
  giveTo(uid: number, gid: number): void {
    chmodSync(this.dir, 0o755);
    for (const name of ['', ...(readdirSync(this.tokens, { recursive: true }) as string[])]) {
      chownSync(join(this.tokens, name), uid, gid);
    }
  }

  pull(): void {
    renameSync(this.tokens, `${this.tokens}.away`);
    mkdirSync(this.tokens);
  }

  putBack(): void {
    rmSync(this.tokens, { recursive: true, force: true });
    renameSync(`${this.tokens}.away`, this.tokens);
  }

  remove(): void {
    rmSync(this.dir, { recursive: true, force: true });
  }
}

describe('root keys in a token', () => {
  const hsm = new SoftHsm();
  let root: string;
  let dir: string;
  let count = 0;
  /** As long as one that was looked for in vain is not looked for again. */
  let now = 0;

  beforeAll(() => {
    hsm.add('east');
    root = mkdtempSync(join(tmpdir(), 'pairwire-kms-token-'));
  });
  afterAll(() => {
    hsm.remove();
    rmSync(root, { recursive: true, force: true });
  });
  beforeEach(() => {
    count += 1;
    dir = join(root, `kms${count}`);
    const [serverKey, operator] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
    makeKms(dir, { subnet: SUBNET, server: SUBNET, serverKey, operator });
  });

  const input = () => ({
    module: MODULE,
    label: 'east',
    key: `root-${count}`,
    environment: hsm.environment,
  });
  const use = (more: object = {}, pin = PIN) => useToken(dir, { ...input(), ...more }, pin);
  const load = () => RootKeys.load(dir, loadKmsConfig(dir).token);
  const stored = ({ id, sealed }: ReturnType<RootKeys['makeDek']>) => ({ id, sealed });
  const token = () => {
    const { pinFile: _pin, ...config } = tokenSchema.parse({ ...input() });
    return Token.open(dir, { ...config, pinFile: 'token.pin' }, () => (now += 2_000));
  };

  it('are made there by rotation, cannot leave it, and open what they sealed; back in files by rotation', () => {
    const before = load().makeDek(owner);
    use();
    const keys = load();
    expect(keys.rotate(1)).toBe(2);
    expect(keys.rotate(1)).toBe(2);
    expect({ all: keys.generations, inToken: keys.inToken }).toEqual({ all: [1, 2], inToken: [2] });
    expect(existsSync(join(dir, 'root-2.key'))).toBe(false);
    const inToken = keys.makeDek(owner);
    expect(keys.openDek(owner, stored(inToken))).toEqual(inToken.key);
    expect(keys.openDek(owner, stored(before))).toEqual(before.key);
    keys.close();
    const shown = execFileSync(
      'pkcs11-tool',
      [
        '--module',
        MODULE,
        '--token-label',
        'east',
        '--login',
        '--pin',
        PIN,
        '-O',
        '--type',
        'secrkey',
      ],
      { env: { ...process.env, ...hsm.environment } },
    ).toString();
    expect(shown).toMatch(new RegExp(`label: +root-${count}[\\s\\S]*never extractable`));

    leaveToken(dir);
    const after = load();
    expect(after.rotate(2)).toBe(3);
    expect(after.inToken).toEqual([2]);
    const inFile = after.makeDek(owner);
    expect(existsSync(join(dir, 'root-3.key'))).toBe(true);
    for (const made of [before, inToken, inFile]) {
      expect(after.openDek(owner, stored(made))).toEqual(made.key);
    }
  });

  it('seal in the format of docs/protocol.md 11.2: bound to generation, subnet, key server and DEK', () => {
    use();
    const keys = load();
    keys.rotate(1);
    const made = keys.makeDek(owner);
    expect(made.sealed).toHaveLength(65);
    expect(made.sealed.subarray(0, 5).toString('hex')).toBe('0100000002');
    const flipped = Buffer.from(made.sealed);
    flipped[40] = (flipped[40] ?? 0) ^ 1;
    const broken = expect.objectContaining({ code: 'SEAL_BROKEN' });
    for (const [whose, dek] of [
      [owner, { id: made.id, sealed: flipped }],
      [owner, { id: Buffer.alloc(8), sealed: made.sealed }],
      [{ ...owner, server: 's2' }, stored(made)],
      [{ ...owner, subnet: 'west' }, stored(made)],
    ] as const) {
      expect(() => keys.openDek(whose, dek)).toThrow(broken);
    }
    // It has not cost the token.
    expect(keys.openDek(owner, stored(made))).toEqual(made.key);
  });

  it('pulled while in use: a clear error, and as before once it is back', () => {
    use();
    const it = token();
    it.make(2);
    const cipher = it.cipher(2);
    const [nonce, data, plain] = [Buffer.alloc(12, 1), Buffer.alloc(3), Buffer.alloc(32, 7)];
    const box = cipher.seal(nonce, data, plain);
    hsm.pull();
    const away = expect.objectContaining({ code: 'KMS_TOKEN', message: 'the token is not there' });
    expect(() => cipher.open(nonce, data, box)).toThrow(away);
    expect(() => cipher.seal(nonce, data, plain)).toThrow(away);
    expect(it.generations).toEqual([2]);
    hsm.putBack();
    expect(cipher.open(nonce, data, box)).toEqual(plain);
    // Out and in again, with nothing asked meanwhile.
    hsm.pull();
    hsm.putBack();
    expect(cipher.open(nonce, data, cipher.seal(nonce, data, plain))).toEqual(plain);
  });

  it('one that was removed is missed, and its number is not given again', () => {
    use();
    const keys = load();
    keys.rotate(1);
    const made = keys.makeDek(owner);
    execFileSync(
      'pkcs11-tool',
      [
        ...['--module', MODULE, '--token-label', 'east', '--login', '--pin', PIN],
        ...['--delete-object', '--type', 'secrkey', '--label', `root-${count}`],
      ],
      { env: { ...process.env, ...hsm.environment }, stdio: 'ignore' },
    );
    const gone = expect.objectContaining({
      code: 'KMS_TOKEN',
      message: 'generation 2 of the root key is not in the token any more',
    });
    expect(() => keys.openDek(owner, stored(made))).toThrow(gone);
    expect(() => keys.makeDek(owner)).toThrow(gone);
    keys.close();
    const fresh = expect.objectContaining({ message: 'there is no generation 2 of the root key' });
    expect(() => load().openDek(owner, stored(made))).toThrow(fresh);
  });

  it('a PIN that was refused is not tried again, by whatever process, until another one is written', () => {
    use();
    const pinFile = join(dir, 'token.pin');
    writeFileSync(pinFile, '000000\n');
    const refused = expect.objectContaining({
      code: 'KMS_TOKEN',
      message: 'the token has refused the PIN',
    });
    const before = expect.objectContaining({
      message: 'the token has refused this PIN: it is not tried again',
    });
    expect(() => load()).toThrow(refused);
    for (let time = 0; time < 20; time += 1) expect(() => load()).toThrow(before);
    writeFileSync(pinFile, `${PIN}\n`);
    expect(load().generations).toEqual([1]);
    expect(existsSync(join(dir, 'token.pin-refused'))).toBe(false);
    chmodSync(pinFile, 0o640);
    expect(() => load()).toThrow(expect.objectContaining({ code: 'FILE_MODE' }));
  });

  it('a module or token that is not there, or another one, is told and changes nothing', () => {
    const yaml = readFileSync(join(dir, 'kms.yaml'), 'utf8');
    const cases = [
      [{ module: '/usr/lib/none.so' }, PIN, 'FILE_UNREADABLE', /none\.so/],
      [{ module: join(dir, 'kms.yaml') }, PIN, 'KMS_TOKEN', /cannot be loaded/],
      [{ label: 'west' }, PIN, 'KMS_TOKEN', /is not there/],
      [{ serial: '0' }, PIN, 'KMS_TOKEN', /is not there/],
      [{}, '1', 'KMS_TOKEN', /refused the PIN/],
      [{ label: undefined }, PIN, 'CONFIG_INVALID', /label/],
    ] as const;
    for (const [more, pin, code, message] of cases) {
      expect(() => use(more, pin)).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(message) }),
      );
    }
    expect(readFileSync(join(dir, 'kms.yaml'), 'utf8')).toBe(yaml);
    expect(readdirSync(dir).filter((name) => name.startsWith('token.pin.'))).toEqual([]);
    use();
    expect(() => use({ key: 'others' })).toThrow(expect.objectContaining({ code: 'CONFLICT' }));
    chmodSync(join(dir, 'kms.yaml'), 0o662);
    expect(() => loadKmsConfig(dir)).toThrow(expect.objectContaining({ code: 'FILE_MODE' }));
  });

  it('a key under their label that could be taken out of the token is not used', () => {
    use();
    execFileSync(
      'pkcs11-tool',
      [
        ...['--module', MODULE, '--token-label', 'east', '--login', '--pin', PIN, '--keygen'],
        ...[
          '--key-type',
          'AES:32',
          '--extractable',
          '--label',
          `root-${count}`,
          '--id',
          '00000002',
        ],
      ],
      { env: { ...process.env, ...hsm.environment }, stdio: 'ignore' },
    );
    expect(() => load()).toThrow(
      expect.objectContaining({
        message: 'generation 2 of the root key can be taken out of the token',
      }),
    );
  });
});

describe('a key server whose root key is in a token', () => {
  it('starts as before, rotates into the token, lives through its being pulled, and does not start without it', async () => {
    const hsm = new SoftHsm();
    const server = await ServerProcess.make();
    try {
      hsm.add('east');
      const kms = server.paths.kms;
      const made = await pairwire(
        [
          ...['kms', 'token', '--dir', kms, '--module', MODULE, '--label', 'east', '--json'],
          ...['--env', `SOFTHSM2_CONF=${hsm.conf}`],
        ],
        `${PIN}\n`,
      );
      expect(made).toMatchObject({ code: 0, err: '' });
      giveToKmsUser(hsm);
      await server.start();
      const alice = new TestMember(server, 'alice');
      await alice.enrol(server.token({ id: 'alice' }));
      await alice.register();
      const bob = new TestMember(server, 'bob');
      await bob.enrol(server.token({ id: 'bob' }));
      await bob.register();
      const { key } = await alice.keyByMac(mac('bob'));
      const admin = server.admin();
      const status = () => admin.request({ t: 'kms.status' });
      expect((await admin.request({ t: 'kms.rotate', root: true })).generation).toBe(2);
      await until(async () => (await status()).deks === 1, 'all to be sealed anew');
      expect(await status()).toMatchObject({ generations: [1, 2], inToken: [2], broken: 0 });
      // From now on the token alone opens the store.
      rmSync(join(kms, 'root-1.key'));

      hsm.pull();
      expect((await alice.keyByMac(mac('bob'))).key).toEqual(key);
      await expect(admin.request({ t: 'kms.rotate', root: false })).rejects.toMatchObject({
        message: expect.stringContaining('unavailable'),
      });
      await until(() => server.log.includes('the token is not there'), 'the log to say so');
      hsm.putBack();
      await until(
        () =>
          admin.request({ t: 'kms.rotate', root: false }).then(
            () => true,
            () => false,
          ),
        'the token to be found again',
      );
      await until(async () => (await status()).deks === 1, 'all to be sealed anew');
      await server.kill();
      server.stopClients();

      // Without its token it does not start, and says why.
      hsm.pull();
      await expect(server.start()).rejects.toThrow(
        /KMS_TOKEN.*the token is not there|the token is not there/,
      );
      hsm.putBack();
      const store = await openKeys(server.paths);
      expect((await store.pairKey(parseId('alice'), parseId('bob')))?.key).toEqual(
        Buffer.from(key),
      );
      await store.close();
    } finally {
      await server.remove();
      hsm.remove();
    }
    // For a machine that is busy: two starts of a server and a command.
  }, 240_000);
});

/** Lets the user have the token that the KMS of a server runs as: that of its folder from the first start on. */
function giveToKmsUser(hsm: SoftHsm): void {
  if (process.getuid?.() !== 0) return;
  const line = /^pairwire-kms:[^:]*:(\d+):(\d+):/m.exec(readFileSync('/etc/passwd', 'utf8'));
  if (line !== null) hsm.giveTo(Number(line[1]), Number(line[2]));
}
