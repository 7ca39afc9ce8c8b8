/**
 * What each part of a default installation shows to whoever takes it: its real bytes, a capture of real traffic, and the keys of one member,
 * whose program is the test, to search for and to compare with. Each test says what is learned and what is not; that what is searched for can
 * be found at all is shown where it must be.
 *
 *   alice ── data plane ──┐
 *   mallory ── the test ──┴── underlay (captured) ── key server ── KMS
 */
import { createSecretKey } from 'node:crypto';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { x25519 } from '@noble/curves/ed25519.js';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadKeyServerConfig, pathsOf } from '../../keyserver/config.js';
import { LocalDeks } from '../../keyserver/kms/local-deks.js';
import { copyDatabase } from '../../keyserver/storage/snapshot.js';
import { blob } from '../../keyserver/storage/sql.js';
import { SqliteDriver } from '../../keyserver/storage/sqlite.js';
import { pidsIn } from '../../scripts/laboratory/network.js';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { openKey } from '../../src/protocol/envelope.js';
import { openFrame } from '../../src/protocol/frame.js';
import { parseId } from '../../src/protocol/ids.js';
import { groupTrafficKey, pairTrafficKey } from '../../src/protocol/kdf.js';
import { defaultMac } from '../../src/protocol/mac.js';
import { childWith, filesIn, type Loot, learned, memoryOf } from './helpers/loot.js';
import { type KnownPeer, ModifiedMember } from './helpers/modified-member.js';
import { echoRequest } from './helpers/packets.js';
import { DATA_PORT, inner4, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';
import { type SeenFrame, sealedFrames } from './helpers/wire.js';

const MALLORY_OUTER = '192.0.2.66';
const MALLORY_IP = '198.51.100.66';
const MARKER = 'what-alice-says-to-this-member-alone';
const suite = 'aes-256-gcm';
const NOTHING = new Uint8Array(0);

const handle = useLab(threeHosts({ offload: 'wire', ethernet: false, members: ['alice'] }), {
  startPrograms: false,
});

let serverPid: number;
let kmsPid: number;
let folder: string;
let member: ModifiedMember;
let alice: KnownPeer;
/** Frames of the underlay. */
let pairFrame: SeenFrame;
let groupFrame: SeenFrame;
/** What must stay with the two ends, what the key server knows, and what the KMS knows. */
let atTheEnds: Record<string, Uint8Array>;
let atTheServer: Record<string, Uint8Array>;
let atTheKms: Record<string, Uint8Array>;
let work: string;

beforeAll(async () => {
  const { lab } = handle;
  work = mkdtempSync(join(tmpdir(), 'pairwire-view-'));
  await lab.initKeyServer(SUBNET);
  ({ pid: serverPid } = await lab.startKeyServer(SUBNET));
  folder = lab.serverDir(SUBNET);
  kmsPid = childWith(serverPid, 'kms');
  await lab.joinGateway('alice');
  await lab.startGateway('alice');
  const place = { host: 'mallory', address: MALLORY_OUTER, port: DATA_PORT };
  member = await ModifiedMember.join(lab, place, SUBNET, 'mallory');
  alice = await member.pairWith('alice');
  const group = await member.group();
  const { to, from } = member.trafficKeys(alice);
  lab.exec('alice', ['ip', 'neighbour', 'replace', MALLORY_IP, 'lladdr', member.mac, 'dev', 'pw0']);

  const capture = await lab.capture('alice', { interface: 'eth0' });
  const request = echoRequest({
    to: defaultMac(parseId(SUBNET), parseId('alice')),
    from: member.mac,
    fromIp: MALLORY_IP,
    toIp: inner4('alice'),
    marker: MARKER,
  });
  const seen = (): SeenFrame[] => sealedFrames(capture.packets()).frames;
  const fromAlice = (kind: FrameKind) => (one: SeenFrame) =>
    one.shim.index === alice.index && one.shim.kind === kind;
  await waitFor(
    () => {
      member.port.send('alice', member.seal(to, request));
      return seen().some(fromAlice(FrameKind.pair));
    },
    { what: "alice's answer", everyMs: 200 },
  );
  await waitFor(
    () => {
      lab.exec('alice', ['arping', '-c', '1', '-w', '1', '-I', 'pw0', '198.51.100.99'], {
        check: false,
      });
      return seen().some(fromAlice(FrameKind.group));
    },
    { what: "alice's broadcast", everyMs: 200 },
  );
  await capture.stop();
  const find = (kind: FrameKind): SeenFrame => {
    const found = seen().find(fromAlice(kind));
    if (found === undefined) throw new Error('a frame is gone');
    return found;
  };
  pairFrame = find(FrameKind.pair);
  groupFrame = find(FrameKind.group);

  atTheEnds = {
    'traffic key to alice': to.key,
    'traffic key from alice': from.key,
    'private boot key': member.boot.privateKey,
    'X25519 result': x25519.getSharedSecret(member.boot.privateKey, alice.boot),
  };
  atTheServer = { 'pair key': alice.key, 'group key': group.key };
  const root = readFileSync(join(folder, 'kms', 'root-1.key'), 'latin1')
    .trim()
    .split(/\s+/)
    .at(-1);
  atTheKms = { 'root key': Buffer.from(root ?? '', 'base64url') };
});
afterAll(() => {
  member?.leave();
  rmSync(work, { recursive: true, force: true });
});

const all = (): Record<string, Uint8Array> => ({ ...atTheEnds, ...atTheServer, ...atTheKms });

/** The payload of a recorded frame, under a key. */
const opened = ({ bytes, aadTail }: SeenFrame, key: Uint8Array): Buffer | undefined => {
  const frame = openFrame({ suite, key, frame: bytes, aadTail });
  return frame === undefined ? undefined : Buffer.from(frame.payload);
};

/** The database as its files are now, and as one file after a checkpoint. */
function* databaseFiles(): Generator<Loot> {
  const { database } = pathsOf(folder, loadKeyServerConfig(folder));
  for (const end of ['', '-wal', '-shm']) {
    if (!existsSync(`${database}${end}`)) continue;
    const copy = join(work, `as-it-is${end}`);
    copyFileSync(`${database}${end}`, copy);
    yield { from: copy, bytes: readFileSync(copy) };
  }
  const whole = join(work, 'whole.db');
  rmSync(whole, { force: true });
  copyDatabase(database, whole);
  yield { from: whole, bytes: readFileSync(whole) };
}

/** Every 32 bytes in a row that something has, tried as a key. */
function tryAll(loot: Iterable<Loot>, opens: (key: Buffer) => boolean): number {
  let found = 0;
  for (const { bytes } of loot) {
    for (let at = 0; at + 32 <= bytes.length; at += 1) {
      const key = bytes.subarray(at, at + 32);
      if (key[0] === key[1] && key[1] === key[2]) continue;
      if (opens(key)) found += 1;
    }
  }
  return found;
}

test("an end has all of it: alice's frame opens in the test, and her data plane's memory has its key (so the search finds what is there)", async () => {
  const key = atTheEnds['traffic key from alice'] ?? NOTHING;
  expect(opened(pairFrame, key)?.includes(MARKER)).toBe(true);
  const pids = await pidsIn(handle.lab.namespace('alice'));
  const dataPlane = pids.find((pid) => readlinkSync(`/proc/${pid}/exe`).includes('dataplane'));
  expect(learned(memoryOf(dataPlane ?? 0), atTheEnds)).toContain('traffic key from alice');
});

test('the database alone shows who is a member, and no key of a pair, the group, a boot or traffic, no root key, and no 32 bytes that open a frame', () => {
  const loot = [...databaseFiles()];
  expect(loot.length).toBeGreaterThan(2);
  expect(learned(loot, all())).toEqual([]);
  // The control: what is said to be there.
  expect(learned(loot, { boot: member.boot.publicKey })).toEqual(['boot']);
  const whole = loot.slice(-1);
  expect(tryAll(whole, (key) => opened(pairFrame, key) !== undefined)).toBe(0);
  const planted = {
    from: 'planted',
    bytes: Buffer.from(atTheEnds['traffic key from alice'] ?? ''),
  };
  expect(tryAll([planted], (key) => opened(pairFrame, key) !== undefined)).toBe(1);
}, 120_000);

test('the key server alone has pair and group keys: group frames open with them, pair frames do not without a private boot key, which it never had', () => {
  expect(learned(memoryOf(serverPid), all())).toEqual(['group key', 'pair key']);
  const from = { id: 'alice', boot: alice.boot };
  const mine = { id: 'mallory', boot: member.boot.publicKey };
  const { pwId } = alice;
  const common = { pairKey: alice.key, subnet: SUBNET, pwId, from, to: mine };
  // What a thief of the server has instead of a private boot key: nothing that any of these is.
  const guesses = [alice.key, alice.boot, member.boot.publicKey, Buffer.alloc(32, 1)];
  for (const ownBootPrivate of guesses) {
    for (const peerBoot of [alice.boot, member.boot.publicKey]) {
      const { key } = pairTrafficKey({ ...common, ownBootPrivate, peerBoot });
      expect(opened(pairFrame, key)).toBeUndefined();
    }
  }
  expect(opened(pairFrame, alice.key)).toBeUndefined();
  // The controls: with the private boot key it does; and the group's does with what the server has.
  const right = pairTrafficKey({
    ...common,
    ownBootPrivate: member.boot.privateKey,
    peerBoot: alice.boot,
  });
  expect(opened(pairFrame, right.key)?.includes(MARKER)).toBe(true);
  const groupKey = atTheServer['group key'] ?? NOTHING;
  const ofGroup = groupTrafficKey({ groupKey, subnet: SUBNET, from, pwId: 1n });
  expect(ofGroup.kid).toBe(groupFrame.shim.kid);
  expect(opened(groupFrame, ofGroup.key)).toBeDefined();
});

test('the key server after a rotation of DEK and root key has the pair keys that it has handed out, and no root key', async () => {
  const { lab } = handle;
  await lab.pairwire(lab.keyServer(SUBNET).host, ['kms', 'rotate', '--root', '--dir', folder]);
  await waitFor(
    async () => {
      const { stdout } = await lab.pairwire(lab.keyServer(SUBNET).host, [
        ...['kms', 'status', '--dir', folder, '--json'],
      ]);
      return (JSON.parse(stdout) as { deks: number }).deks === 1;
    },
    { what: 'all keys to be sealed anew' },
  );
  const newest = readFileSync(join(folder, 'kms', 'root-2.key'), 'latin1')
    .trim()
    .split(/\s+/);
  const roots = { ...all(), 'root key 2': Buffer.from(newest.at(-1) ?? '', 'base64url') };
  expect(learned(memoryOf(serverPid), roots)).toEqual(['group key', 'pair key']);
  // What is stored is sealed by the new ones, and shows nothing either.
  expect(learned(databaseFiles(), roots)).toEqual([]);
});

test('the KMS alone has its root keys, and digests of identity documents: no key of a member in its folder or its memory, no record in its folder', async () => {
  const { database } = pathsOf(folder, loadKeyServerConfig(folder));
  const copy = join(work, 'for-rows.db');
  copyDatabase(database, copy);
  const driver = await SqliteDriver.open(copy);
  const rows = await driver.reader.all(
    'SELECT channel, membership, identity_digest FROM members',
    [],
  );
  await driver.close();
  const records: Record<string, Uint8Array> = {};
  for (const [at, row] of rows.entries()) {
    for (const name of ['channel', 'membership', 'identity_digest']) {
      const value = blob(row, name);
      if (value.length >= 32 && new Set(value).size > 8) records[`${name} ${at}`] = value;
    }
  }
  expect(Object.keys(records).length).toBeGreaterThan(5);
  const digests = Object.keys(records).filter((name) => name.startsWith('identity_digest'));
  const there = learned(filesIn(join(folder, 'kms')), { ...all(), ...records });
  expect(there).toContain('root key');
  expect(there.filter((name) => name !== 'root key' && !digests.includes(name))).toEqual([]);
  // Records that members have shown it may still be in its memory; nothing in them is secret.
  expect(learned(memoryOf(kmsPid), all())).toEqual(['root key']);
  // The control: they are found where they are.
  expect(learned(databaseFiles(), records)).toEqual(Object.keys(records).sort());
});

test('the database together with all that was recorded opens no pair frame and no group frame; with the root key it opens the group frame, and still no pair frame', async () => {
  const whole = [...databaseFiles()].slice(-1);
  const from = { id: 'alice', boot: alice.boot };
  const opensGroup = (key: Uint8Array): boolean => {
    const of = groupTrafficKey({ groupKey: key, subnet: SUBNET, from, pwId: 1n });
    return of.kid === groupFrame.shim.kid && opened(groupFrame, of.key) !== undefined;
  };
  // Sealed keys, at any place of their columns.
  const copy = join(work, 'for-keys.db');
  copyFileSync(whole[0]?.from ?? '', copy);
  const driver = await SqliteDriver.open(copy);
  const sealed = await driver.reader.all('SELECT key FROM group_keys', []);
  const deks = await driver.reader.all('SELECT id, sealed FROM deks', []);
  const loot = [
    ...sealed.map((row) => blob(row, 'key')),
    ...deks.map((row) => blob(row, 'sealed')),
  ];
  expect(
    tryAll(
      loot.map((bytes) => ({ from: 'rows', bytes })),
      opensGroup,
    ),
  ).toBe(0);
  // Who has the KMS's folder as well has the keys: pair keys open no frame by themselves.
  const service = LocalDeks.load(join(folder, 'kms'));
  const [dek] = await service.open(
    deks.map((row) => ({ id: blob(row, 'id'), sealed: blob(row, 'sealed') })),
  );
  const [row] = deks;
  if (dek === undefined || row === undefined) throw new Error('there is no DEK');
  const [store] = await driver.reader.all("SELECT value FROM meta WHERE name = 'store_id'", []);
  const [group] = await driver.reader.all('SELECT id, pw_id, key FROM group_keys', []);
  if (store === undefined || group === undefined) throw new Error('there is no group key');
  const key = openKey(
    { id: blob(row, 'id'), key: createSecretKey(dek) },
    {
      ...{ store: blob(store, 'value'), table: 'group_keys', column: 'key' },
      ...{ ids: [String(group.id)], pwId: Number(group.pw_id) },
    },
    blob(group, 'key'),
  );
  await driver.close();
  expect(opensGroup(key)).toBe(true);
  expect(opened(pairFrame, alice.key)).toBeUndefined();
}, 120_000);
