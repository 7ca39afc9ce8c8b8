/**
 * Writes the seeds of the fuzzers that take structured input to gateway/native/fuzz/corpus/NAME/seed-*: a fuzzer
 * finds neither a MessagePack map with every field nor a right checksum by itself. What fuzzers
 * found since lies beside them (scripts/fuzz).
 *
 *   npx tsx scripts/make-fuzz-seeds.ts
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { encode } from '@msgpack/msgpack';

const CORPUS = 'gateway/native/fuzz/corpus';

const u16 = (value: number) => Buffer.from([value >> 8, value & 0xff]);
const sized = (bytes: Uint8Array) => Buffer.concat([u16(bytes.length), bytes]);

function write(fuzzer: string, name: string, bytes: Uint8Array): void {
  mkdirSync(`${CORPUS}/${fuzzer}`, { recursive: true });
  writeFileSync(`${CORPUS}/${fuzzer}/seed-${name}`, bytes);
}

// --- Messages: one of each command, from the schema ------------------------------------------------

type Fields = Readonly<Record<string, string>>;
interface Schema {
  structs: Readonly<Record<string, Fields>>;
  commands: Readonly<Record<string, { fields: Fields }>>;
}
const schema = JSON.parse(readFileSync('gateway/dataplane/schema.json', 'utf8')) as Schema;

/** Values that a running data plane accepts; what is not here gets the smallest of its type. */
const USUAL: Readonly<Record<string, unknown>> = {
  port: 1,
  subnet: 'lab',
  member: 'bob',
  tap: 'pw0',
  transport: 'udp',
  udpPort: 7,
  macs: [Buffer.from('020000000001', 'hex')],
  suite: 'aes-256-gcm',
  backend: 'auto',
  peer: 'alice',
  boot: 1,
  index: 1001,
  pwId: 1,
  epoch: 1,
  freshnessMs: 30_000,
  holdFrames: 64,
  holdMs: 1000,
  holdBytes: 4 << 20,
  send: true,
  online: true,
  kind: 'host',
  broadcast: 'all',
  stp: 'drop',
  learnSeconds: 300,
  rights: 3,
  answer: true,
  endpoints: [{ ip: Buffer.from([192, 0, 2, 1]), port: 4242 }],
  offsetMs: 1_800_000_000_000,
  notAfterMs: 1_900_000_000_000,
};

function sample(type: string): unknown {
  const [, list] = /^list:\d+ of (.+)$/.exec(type) ?? [];
  if (list !== undefined) return [sample(list)];
  if (type === 'bool') return false;
  if (type.startsWith('str:')) return '';
  if (type.startsWith('bytes<=')) return Buffer.from([192, 0, 2, 255]);
  if (type.startsWith('bytes:')) return Buffer.alloc(Number(type.slice(6)), 2);
  const struct = schema.structs[type];
  if (struct !== undefined) return fields(struct);
  return 1;
}

function fields(of: Fields): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(of).map(([name, type]) => {
      const usual = USUAL[name];
      const fits = usual !== undefined && !(name === 'boot' && type.startsWith('bytes'));
      return [name, fits ? usual : sample(type)];
    }),
  );
}

const commands = new Map(
  Object.entries(schema.commands).map(([t, command], id) => [
    t,
    Buffer.from(encode({ t, id: id + 1, ...fields(command.fields) })),
  ]),
);
for (const [t, message] of commands) write('fuzz-messages', t, message);

// --- The control socket: whole conversations ------------------------------------------------------

const CONNECT = Buffer.from([0]);
const TURN = Buffer.from([5]);
const message = (which: number, t: string) =>
  Buffer.concat([Buffer.from([2, which]), sized(commands.get(t) ?? Buffer.alloc(0)), TURN]);
const device = (text: string) => Buffer.concat([Buffer.from([4]), sized(Buffer.from(text)), TURN]);

const TAP = 'tap pw0 mac 02:00:00:00:00:01 mtu 1400 offload 1';
write('fuzz-control-socket', 'devices', Buffer.concat([device(TAP), device('udp 7')]));
write(
  'fuzz-control-socket',
  'ethernet-device',
  device('ethernet eth0 mac 02:00:00:00:00:01 mtu 1500'),
);
write(
  'fuzz-control-socket',
  'observer',
  Buffer.concat([CONNECT, message(0, 'observe'), message(0, 'stats'), message(0, 'wipe')]),
);
write(
  'fuzz-control-socket',
  'two-controllers',
  Buffer.concat([
    CONNECT,
    CONNECT,
    message(0, 'attach'),
    message(1, 'attach'),
    message(0, 'stats'),
  ]),
);
write(
  'fuzz-control-socket',
  'pieces',
  Buffer.concat([
    CONNECT,
    Buffer.from([1, 0]),
    sized(Buffer.from('000000', 'hex')),
    TURN,
    Buffer.from([1, 0]),
    sized(Buffer.from('ff01', 'hex')),
    TURN,
  ]),
);
write(
  'fuzz-control-socket',
  'whole-life',
  Buffer.concat([
    device(TAP),
    device('udp 7'),
    CONNECT,
    message(0, 'attach'),
    ...[...commands.keys()]
      .filter((t) => t !== 'attach' && t !== 'observe')
      .map((t) => message(0, t)),
  ]),
);

// --- The data path: the frames of fuzz-headers in every way it can take them ---------------------

const OWN_ADDRESSES = 0x20;
const NEXT = 0x40;
const frames = readdirSync(`${CORPUS}/fuzz-headers`)
  .filter((name) => !/^[0-9a-f]{40}$/.test(name) && !name.startsWith('seed-'))
  .map((name) => ({ name, frame: readFileSync(`${CORPUS}/fuzz-headers/${name}`) }));
const DELIVER = Buffer.from([5]);
for (const { name, frame } of frames) {
  for (const options of [0, 1]) {
    const where = options === 0 ? 'udp' : 'ethernet';
    const first = Buffer.concat([Buffer.from([1, OWN_ADDRESSES, 0]), sized(frame)]);
    const next = Buffer.from([1, NEXT, 0]);
    write(
      'fuzz-data-path',
      `${where}-train-${name}`,
      Buffer.concat([Buffer.from([options]), first, next, next, DELIVER]),
    );
  }
  const plain = Buffer.alloc(10);
  write(
    'fuzz-data-path',
    `tap-${name}`,
    Buffer.concat([Buffer.from([0, 2, 0]), plain, sized(frame)]),
  );
  write(
    'fuzz-data-path',
    `group-${name}`,
    Buffer.concat([Buffer.from([0, 1, 0x01 | OWN_ADDRESSES, 4]), sized(frame), DELIVER]),
  );
}
const [some] = frames;
if (some !== undefined) {
  for (const other of [0x08, 0x10]) {
    const frame = Buffer.concat([
      Buffer.from([0, 1, OWN_ADDRESSES, other]),
      sized(some.frame),
      DELIVER,
    ]);
    write('fuzz-data-path', `other-address-${other}`, frame);
  }
}
const path = Buffer.from('010000000102030405060708', 'hex');
write(
  'fuzz-data-path',
  'probe',
  Buffer.concat([Buffer.from([0, 1, 0x02, 0]), sized(path), DELIVER]),
);
const [any] = frames;
if (any !== undefined) {
  const sealed = Buffer.concat([Buffer.from([1, OWN_ADDRESSES, 0]), sized(any.frame)]);
  const replay = Buffer.from([3, 0, 255, 0]);
  write(
    'fuzz-data-path',
    'replay',
    Buffer.concat([Buffer.from([0]), sealed, DELIVER, replay, replay, DELIVER]),
  );
  const control = (which: number, argument: number) => Buffer.from([4, which, argument]);
  const tables = Array.from({ length: 10 }, (_, i) =>
    Buffer.concat([control(i, 1), sealed, DELIVER]),
  );
  write('fuzz-data-path', 'tables', Buffer.concat([Buffer.from([0]), sealed, ...tables]));
  write(
    'fuzz-data-path',
    'key-comes-late',
    Buffer.concat([
      Buffer.from([8]),
      control(0, 1),
      sealed,
      control(2, 1),
      sealed,
      control(0, 2),
      DELIVER,
    ]),
  );
}

// --- A relay: two members register, then one sends to the other ----------------------------------

const hello = (at: number, member: number) => Buffer.from([1, at, member]);
const forward = (at: number, own: number, to: number) =>
  Buffer.concat([Buffer.from([2, at, own, to]), sized(Buffer.alloc(40, 7))]);
const pair = Buffer.concat([hello(0, 0), hello(0, 0), hello(1, 1), hello(1, 1)]);
write('fuzz-relay', 'pair', Buffer.concat([pair, forward(0, 0, 1), forward(1, 1, 0)]));
// One moves to another place, one takes the other's, one was never there.
const moved = Buffer.concat([hello(2, 0), hello(2, 0), hello(1, 2), hello(1, 2)]);
write('fuzz-relay', 'moved', Buffer.concat([pair, moved, forward(2, 0, 1), forward(3, 0, 1)]));
write(
  'fuzz-relay',
  'stranger',
  Buffer.concat([Buffer.from([0, 4]), sized(Buffer.from('1500000000000001', 'hex'))]),
);

// --- Texts and answers of the system --------------------------------------------------------------

write(
  'fuzz-device-texts',
  'list',
  Buffer.from(
    '# devices\ntap pw0 mac 02:00:00:00:00:01 mtu 1400 txqueuelen 1000 address 192.0.2.1/24 address 2001:db8::1/64 forward allow\n' +
      'udp 4242 bind 192.0.2.9 device eth0 mark 0x10\nudp 4243 bind ::\nethernet eth0.1 mac 02:00:00:00:00:01 mac 02:00:00:00:00:02\n',
  ),
);
write('fuzz-device-texts', 'tap', Buffer.from(TAP));
write('fuzz-device-texts', 'udp', Buffer.from('udp 4242'));
write('fuzz-device-texts', 'ethernet', Buffer.from('ethernet eth0 mac 02:00:00:00:00:01 mtu 1500'));

const u16le = (value: number) => Buffer.from([value & 0xff, value >> 8]);
const u32le = (value: number) =>
  Buffer.from([value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24]);
const attribute = (type: number, value: Uint8Array) =>
  Buffer.concat([
    u16le(4 + value.length),
    u16le(type),
    value,
    Buffer.alloc((4 - (value.length % 4)) % 4),
  ]);
const netlink = (type: number, body: Uint8Array) =>
  Buffer.concat([u32le(16 + body.length), u16le(type), u16le(2), u32le(1), u32le(0), body]);
const tun = attribute(
  18,
  Buffer.concat([
    attribute(1, Buffer.from('tun\0')),
    attribute(
      2,
      Buffer.concat([
        attribute(1, u32le(1000)),
        attribute(3, Buffer.from([2])),
        attribute(6, Buffer.from([1])),
      ]),
    ),
  ]),
);
const link = netlink(
  16,
  Buffer.concat([
    u16le(0),
    u16le(1),
    u32le(5),
    u32le(0x1043),
    u32le(0),
    attribute(1, Buffer.from('020000000001', 'hex')),
    attribute(4, u32le(1400)),
    attribute(10, u32le(3)),
    tun,
  ]),
);
const address = netlink(
  20,
  Buffer.concat([
    Buffer.from([2, 24, 0, 0]),
    u32le(5),
    attribute(1, Buffer.from([192, 0, 2, 2])),
    attribute(2, Buffer.from([192, 0, 2, 1])),
  ]),
);
const kernel = (which: number, answer: Uint8Array) => Buffer.concat([Buffer.from([which]), answer]);
write('fuzz-kernel-answers', 'link', kernel(0, link));
write(
  'fuzz-kernel-answers',
  'addresses',
  kernel(1, Buffer.concat([address, address, netlink(3, u32le(0))])),
);
write('fuzz-kernel-answers', 'error', kernel(0, netlink(2, u32le(0xffff_ffed))));
write(
  'fuzz-kernel-answers',
  'nft',
  kernel(
    2,
    Buffer.from(
      'table inet pairwire_pw0 {\n\tcounter underlay_0 {\n\t\tpackets 12 bytes 900\n\t}\n}\n',
    ),
  ),
);
write(
  'fuzz-kernel-answers',
  'stat',
  kernel(3, Buffer.from('7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0\n')),
);
write(
  'fuzz-kernel-answers',
  'uevent',
  kernel(4, Buffer.from('change@/devices/x\0ACTION=change\0NEW_VMGENID=1\0')),
);

// --- Frames ---------------------------------------------------------------------------------------

const shim = Buffer.from('1100beef000003e90000000000000007', 'hex');
write('fuzz-frame', 'pair', Buffer.concat([shim, Buffer.alloc(60, 1)]));
write(
  'fuzz-frame',
  'header',
  Buffer.concat([Buffer.from('0102030401070004', 'hex'), Buffer.alloc(40)]),
);
write('fuzz-frame', 'path', path);

// --- A plain side ---------------------------------------------------------------------------------

for (const { name, frame } of frames) write('fuzz-plain-side', name.replace(/^seed-/, ''), frame);
const probe = Buffer.concat([
  Buffer.from('03505700000102000000000788b6', 'hex'),
  Buffer.from('PWLP'),
  Buffer.from('01010000000001a3185c507b000000000000002a04', 'hex'),
  Buffer.from('gate'),
  Buffer.alloc(16, 0xaa),
]);
write('fuzz-plain-side', 'probe', probe);
write('fuzz-plain-side', 'probe-padded', Buffer.concat([probe, Buffer.alloc(20)]));
const neighbour = Buffer.concat([
  Buffer.from('33330000000102000000000286dd6000000000183aff', 'hex'),
  Buffer.alloc(32, 0xfe),
  Buffer.from('87000000', 'hex'),
  Buffer.alloc(20),
]);
write('fuzz-plain-side', 'neighbour-solicitation', neighbour);

// --- What the address guard reads -----------------------------------------------------------------

for (const { name, frame } of frames) write('fuzz-announcement', name, frame);
write('fuzz-announcement', 'no-options', neighbour);
const SENDER = '020000000002';
const toNodes = (next: number, hops: number, inside: Buffer) =>
  Buffer.concat([
    Buffer.from(`333300000001${SENDER}86dd60000000`, 'hex'),
    u16(inside.length),
    Buffer.from([next, hops]),
    Buffer.from('fe800000000000000000000000000002ff020000000000000000000000000001', 'hex'),
    inside,
  ]);
const ND = {
  'router-solicitation': `8500000000000000 0101${SENDER}`,
  'router-advertisement': `8600000040000708 0000000000000000 0101${SENDER}`,
  solicitation: `8700000000000000 fd000000000000000000000000000022 0101${SENDER}`,
  advertisement: `8800000060000000 fd000000000000000000000000000022 0201${SENDER}`,
  redirect: `8900000000000000 ${'fd'.repeat(16)} ${'fe'.repeat(16)} 0201${SENDER}`,
};
for (const [name, hex] of Object.entries(ND)) {
  const inside = Buffer.from(hex.replaceAll(' ', ''), 'hex');
  const behind = (type: number, rest: string) =>
    toNodes(type, 255, Buffer.concat([Buffer.from(rest, 'hex'), inside]));
  write('fuzz-announcement', name, toNodes(58, 255, inside));
  write('fuzz-announcement', `${name}-hop-by-hop`, behind(0, '3a00010400000000'));
  write('fuzz-announcement', `${name}-fragment`, behind(44, '3a0000010000004d'));
  write('fuzz-announcement', `${name}-authentication`, behind(51, '3a0100000000000000000000'));
}
write(
  'fuzz-announcement',
  'dhcpv6',
  toNodes(17, 64, Buffer.from('02230222000c000002000001', 'hex')),
);

// --- What comes to a link port of level `ip` from its router --------------------------------------
// The first byte says where the opened packet begins.

/** The Internet checksum (RFC 1071). */
function checksum(bytes: Buffer): Buffer {
  let sum = 0;
  for (let at = 0; at + 1 < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return u16(~sum & 0xffff);
}
function ipv4(protocol: number, payload: Buffer): Buffer {
  const header = Buffer.from('4500000000004000400000000a0102030a010204', 'hex');
  header.writeUInt16BE(header.length + payload.length, 2);
  header.writeUInt8(protocol, 9);
  checksum(header).copy(header, 10);
  return Buffer.concat([header, payload]);
}
const ADDRESSES6 = Buffer.concat([Buffer.alloc(16, 0xfd), Buffer.alloc(16, 0xfc)]);
const ipv6 = (next: number, payload: Buffer) =>
  Buffer.concat([
    Buffer.from('60000000', 'hex'),
    u16(payload.length),
    Buffer.from([next, 64]),
    ADDRESSES6,
    payload,
  ]);
const NET_SHIM = Buffer.from('13000102000003e90000000000000005', 'hex');
const outer4 = ipv4(253, Buffer.concat([NET_SHIM, ipv4(17, Buffer.alloc(20, 1))]));
const outer6 = ipv6(253, Buffer.concat([NET_SHIM, ipv6(17, Buffer.alloc(20, 1))]));
const tooBig4 = Buffer.concat([Buffer.from('0304000000000514', 'hex'), outer4]);
checksum(tooBig4).copy(tooBig4, 2);
const tooBig6 = Buffer.concat([Buffer.from('0200000000000514', 'hex'), outer6]);
const pseudo = Buffer.concat([ADDRESSES6, u16(0), u16(tooBig6.length), Buffer.from([0, 0, 0, 58])]);
checksum(Buffer.concat([pseudo, tooBig6])).copy(tooBig6, 2);
const WIRE: Readonly<Record<string, readonly [number, Buffer]>> = {
  outer4: [36, outer4],
  outer6: [56, outer6],
  'too-big4': [64, ipv4(1, tooBig4)],
  'too-big6': [104, ipv6(58, tooBig6)],
  'source-route': [
    0,
    Buffer.from('48000030000040004006000000000000000000008307040a0102030000000000', 'hex'),
  ],
};
for (const [name, [opened, packet]] of Object.entries(WIRE)) {
  write('fuzz-wire', name, Buffer.concat([Buffer.from([opened]), packet]));
}
