/**
 * Writes test/vectors/kdf.json, frame.json and fragment.json from the TypeScript codec on @noble. The
 * C++ tests read the same files, so two independent implementations hold each other. What
 * channel.json holds is computed from docs/protocol.md 6.7 and 6.8 with @noble, here; the
 * channel itself computes with node:crypto.
 * Inputs come from a fixed hash chain: the files change only if the protocol does.
 *
 *   npx tsx scripts/make-vectors.ts [--check]
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { encode } from '@msgpack/msgpack';
import { ecb, gcm } from '@noble/ciphers/aes.js';
import { ed25519, x25519 } from '@noble/curves/ed25519.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import {
  FLAG_FRAGMENT,
  FLAG_GROUP,
  FrameKind,
  SUITES,
  type Suite,
} from '../src/protocol/constants.js';
import { fields } from '../src/protocol/fields.js';
import { encodeDescription, PLAIN_DESCRIPTION, sealFrame } from '../src/protocol/frame.js';
import { groupTrafficKey, netTrafficKey, pairTrafficKey } from '../src/protocol/kdf.js';

const DIRECTORY = 'test/vectors';

/** Deterministic bytes: SHA-256 in counter mode over a name. */
function bytes(name: string, length: number): Buffer {
  const blocks: Buffer[] = [];
  for (let i = 0; i * 32 < length; i++) {
    blocks.push(createHash('sha256').update(`pairwire vector ${name} ${i}`).digest());
  }
  return Buffer.concat(blocks).subarray(0, length);
}

const hex = (data: Uint8Array) => Buffer.from(data).toString('hex');

const seal = (key: Buffer, header: Buffer, nonce: Buffer, data: Buffer, plain: Buffer) =>
  hex(Buffer.concat([header, nonce, gcm(key, nonce, data).encrypt(plain)]));

function bootPair(name: string) {
  const privateKey = bytes(name, 32);
  return { privateKey, publicKey: Buffer.from(x25519.getPublicKey(privateKey)) };
}

function pairVectors() {
  const cases = [
    { subnet: 'lab', a: 'alice', b: 'bob', pwId: 1 },
    { subnet: 'lab', a: 'bob', b: 'alice', pwId: 1 },
    { subnet: 'lab', a: 'alice', b: 'bob', pwId: 65_537 },
    { subnet: 'x'.repeat(63), a: 'a', b: 'b.c_d-e', pwId: Number.MAX_SAFE_INTEGER },
  ];
  return cases.map(({ subnet, a, b, pwId }, i) => {
    const bootA = bootPair(`pair ${i} boot ${a}`);
    const bootB = bootPair(`pair ${i} boot ${b}`);
    const key = bytes(`pair ${i} key`, 32);
    const traffic = pairTrafficKey({
      pairKey: key,
      ownBootPrivate: bootA.privateKey,
      peerBoot: bootB.publicKey,
      subnet,
      from: { id: a, boot: bootA.publicKey },
      to: { id: b, boot: bootB.publicKey },
      pwId: BigInt(pwId),
    });
    return {
      subnet,
      a,
      b,
      key: hex(key),
      bootPrivA: hex(bootA.privateKey),
      bootPubA: hex(bootA.publicKey),
      bootPrivB: hex(bootB.privateKey),
      bootPubB: hex(bootB.publicKey),
      pwId,
      trafficKeyAB: hex(traffic.key),
      kidAB: traffic.kid,
    };
  });
}

function netVectors() {
  const [a, b] = ['east/p1', 'west/p1'] as const;
  const bootA = bootPair(`net boot ${a}`);
  const bootB = bootPair(`net boot ${b}`);
  const key = bytes('net key', 32);
  const traffic = netTrafficKey({
    netKey: key,
    ownBootPrivate: bootA.privateKey,
    peerBoot: bootB.publicKey,
    from: { id: a, boot: bootA.publicKey },
    to: { id: b, boot: bootB.publicKey },
    pwId: 7n,
  });
  return [
    {
      a,
      b,
      key: hex(key),
      bootPrivA: hex(bootA.privateKey),
      bootPubA: hex(bootA.publicKey),
      bootPrivB: hex(bootB.privateKey),
      bootPubB: hex(bootB.publicKey),
      pwId: 7,
      trafficKeyAB: hex(traffic.key),
      kidAB: traffic.kid,
    },
  ];
}

function groupVectors() {
  return [
    { subnet: 'lab', a: 'alice', pwId: 1 },
    { subnet: 'lab', a: 'bob', pwId: 2 },
  ].map(({ subnet, a, pwId }, i) => {
    const boot = bootPair(`group ${i} boot`);
    const key = bytes(`group ${i} key`, 32);
    const traffic = groupTrafficKey({
      groupKey: key,
      subnet,
      from: { id: a, boot: boot.publicKey },
      pwId: BigInt(pwId),
    });
    return {
      subnet,
      a,
      bootPubA: hex(boot.publicKey),
      key: hex(key),
      pwId,
      trafficKey: hex(traffic.key),
      kid: traffic.kid,
    };
  });
}

function frameVectors() {
  const sizes = [0, 1, 14, 15, 16, 60, 64, 512, 1434, 8972];
  return SUITES.flatMap((suite: Suite) =>
    sizes.map((size, i) => {
      const key = bytes(`frame ${suite} ${size} key`, 32);
      const payload = bytes(`frame ${suite} ${size} payload`, size);
      const group = i % 3 === 1;
      const shim = {
        kind: group ? FrameKind.group : FrameKind.pair,
        flags: group ? FLAG_GROUP : 0,
        kid: (i * 7919) & 0xffff,
        index: i * 104_729 + 1,
        counter: i === 9 ? 2n ** 36n - 1n : BigInt(i * 1000),
      };
      const aadTail = i % 4 === 3 ? bytes(`frame ${size} addresses`, 12) : Buffer.alloc(0);
      const description = { ...PLAIN_DESCRIPTION, partialChecksum: i % 2 === 1, trainPlace: i };
      const time = (0xffff_fff0 + i * 5) >>> 0;
      const sealed = sealFrame({ suite, key, shim, time, description, payload, aadTail });
      return {
        suite,
        key: hex(key),
        kind: shim.kind,
        flags: shim.flags,
        kid: shim.kid,
        index: shim.index,
        counter: shim.counter.toString(),
        aadTail: hex(aadTail),
        time,
        desc: hex(encodeDescription(description)),
        payload: hex(payload),
        sealed: hex(sealed),
      };
    }),
  );
}

/** Frames in 2 and 3 parts, on `udp` and between the addresses of an Ethernet. */
function fragmentVectors() {
  return [
    { size: 1_434, parts: 2, kind: FrameKind.pair, partial: true, counter: 0n, outer: false },
    { size: 3_001, parts: 3, kind: FrameKind.group, partial: false, counter: 77n, outer: false },
    {
      size: 2_000,
      parts: 2,
      kind: FrameKind.pair,
      partial: false,
      counter: 2n ** 32n,
      outer: true,
    },
  ].map(({ size, parts, kind, partial, counter, outer }, i) => {
    const suite = SUITES[i % SUITES.length] ?? SUITES[0];
    const key = bytes(`fragment ${i} key`, 32);
    const frame = bytes(`fragment ${i} frame`, size);
    // On an Ethernet the addresses at the front of the frame stand outside the seal.
    const aadTail = frame.subarray(0, outer ? 12 : 0);
    const payload = frame.subarray(aadTail.length);
    const each = Math.ceil(payload.length / parts);
    const sealed = Array.from({ length: parts }, (_, part) =>
      sealFrame({
        suite,
        key,
        shim: {
          kind,
          flags: FLAG_FRAGMENT,
          kid: 4_711,
          index: 1_001,
          counter: counter + BigInt(part),
        },
        time: 1_000_000,
        description: {
          ...PLAIN_DESCRIPTION,
          partialChecksum: partial,
          part,
          lastPart: part + 1 === parts,
        },
        payload: payload.subarray(part * each, (part + 1) * each),
        aadTail,
      }),
    );
    return {
      suite,
      key: hex(key),
      counter: counter.toString(),
      partialChecksum: partial,
      aadTail: hex(aadTail),
      parts: sealed.map(hex),
      frame: hex(frame),
    };
  });
}

// ------------------------------------------------------------------ the channel on datagrams

const ascii = (words: string) => Buffer.from(words, 'ascii');
const mac16 = (key: Uint8Array, data: Uint8Array) =>
  Buffer.from(hmac(sha256, key, data)).subarray(0, 16);

/** mac1, cookie and mac2 of a message 1, by @noble alone. */
function admissionVector() {
  const privateKey = bytes('channel server', 32);
  const publicKey = Buffer.from(x25519.getPublicKey(privateKey));
  const sender = bytes('channel sender', 8);
  const noise = bytes('channel noise', 100);
  const size = Buffer.alloc(2);
  size.writeUInt16BE(noise.length);
  const head = Buffer.concat([Buffer.from([1]), sender, size, noise]);
  const before = Buffer.concat([head, Buffer.alloc(320 - 48 - head.length)]);
  const mac1 = mac16(sha256(Buffer.concat([ascii('pairwire/1 mac1'), publicKey])), before);
  const cookieSecret = bytes('channel cookie secret', 32);
  const address = '192.0.2.7:4000';
  const cookie = mac16(cookieSecret, ascii(address));
  const salt = bytes('channel salt', 16);
  const cookieKey = sha256(Buffer.concat([ascii('pairwire/1 cookie'), publicKey]));
  const replyKey = hmac(sha256, cookieKey, Buffer.concat([salt, mac1]));
  const replyHead = Buffer.concat([Buffer.from([5]), sender]);
  const sealed = gcm(replyKey, new Uint8Array(12), replyHead).encrypt(cookie);
  const withoutTicket = Buffer.concat([before, mac1, Buffer.alloc(16)]);
  const point = sha256(ascii('pairwire/1 server secrets'));
  const shared = x25519.getSharedSecret(privateKey, point);
  const ticketSecret = hmac(sha256, shared, ascii('pairwire/1 ticket'));
  const ticket = Buffer.concat([Buffer.from('01a3185c5000', 'hex'), bytes('channel ticket', 10)]);
  const ticketKey = hmac(sha256, ticketSecret, ticket);
  const withTicket = Buffer.concat([before, mac1, ticket]);
  const resetSecret = hmac(sha256, shared, ascii('pairwire/1 reset'));
  const channel = bytes('channel server id', 8);
  return {
    serverPrivate: hex(privateKey),
    serverPublic: hex(publicKey),
    sender: hex(sender),
    noise: hex(noise),
    mac1: hex(mac1),
    cookieSecret: hex(cookieSecret),
    address,
    cookie: hex(cookie),
    salt: hex(salt),
    cookieReply: hex(Buffer.concat([replyHead, salt, sealed])),
    withCookie: hex(Buffer.concat([withoutTicket, mac16(cookie, withoutTicket)])),
    ticket: hex(ticket),
    ticketTime: 1_800_000_000_000,
    ticketKey: hex(ticketKey),
    withTicket: hex(Buffer.concat([withTicket, mac16(ticketKey, withTicket)])),
    channel: hex(channel),
    resetToken: hex(mac16(resetSecret, channel)),
  };
}

/** Sealed records, by @noble alone. */
function recordVectors() {
  const key = bytes('channel record key', 32);
  const otpKey = bytes('channel otp key', 32);
  const receiver = bytes('channel receiver', 8);
  const time = 1_800_000_000_000;
  return [0, 1, 40, 1_183].map((length, number) => {
    const frames = bytes(`channel frames ${length}`, length);
    const stamp = Buffer.alloc(6);
    stamp.writeUIntBE(time, 0, 6);
    const count = Buffer.alloc(8);
    count.writeUInt32BE(number, 4);
    const input = Buffer.concat([Buffer.from([1]), stamp, count]);
    const password = Buffer.from(hmac(sha256, otpKey, input)).subarray(0, 10);
    const header = Buffer.concat([Buffer.from([4]), receiver, count]);
    const nonce = Buffer.concat([Buffer.alloc(4), count]);
    const sealed = gcm(key, nonce, header).encrypt(Buffer.concat([stamp, password, frames]));
    return {
      key: hex(key),
      otpKey: hex(otpKey),
      direction: 1,
      receiver: hex(receiver),
      number,
      time,
      frames: hex(frames),
      datagram: hex(Buffer.concat([header, sealed])),
    };
  });
}

/** A ticket's key and a receipt, computed from docs/protocol.md section 2.6. */
function relayVectors() {
  const relayKey = bytes('relay key', 32);
  const index = 0x00a1b2c3;
  const notAfter = 1_800_000_360_000;
  const time = 1_800_000_000_000;
  const nonce = 0x1122334455;
  const token = 0x66778899aa;
  const ip = Buffer.from('00000000000000000000ffffcb007103', 'hex');
  const port = 40_123;
  const big = (value: number) => {
    const out = Buffer.alloc(8);
    out.writeBigUInt64BE(BigInt(value));
    return out;
  };
  const head = Buffer.from([0x15, 0, 0, 2, 0, 0, 0, 0]);
  head.writeUInt32BE(index, 4);
  const portBytes = Buffer.alloc(2);
  portBytes.writeUInt16BE(port);
  const proof = fields('pairwire/1 relay receipt', index, time, ip, port);
  const receipt = Buffer.concat([
    ...[head, big(token), big(nonce), big(time), ip, portBytes, Buffer.from([1, 0, 0, 0, 0, 0])],
    hmac(sha256, relayKey, proof).subarray(0, 16),
  ]);
  return {
    relayKey: hex(relayKey),
    ticket: {
      index,
      notAfter,
      key: hex(hmac(sha256, relayKey, fields('pairwire/1 relay ticket', index, notAfter))),
    },
    receipt: { ip: hex(ip), port, nonce, token, time, bytes: hex(receipt) },
  };
}

/** Sealed keys and DEKs, computed from docs/protocol.md section 11. */
function envelopeVectors() {
  const places = [
    { table: 'pair_keys', column: 'key', ids: ['alice', 'bob'], pwId: 1 },
    { table: 'pair_keys', column: 'next_key', ids: ['alice', 'bob'], pwId: 2 },
    { table: 'group_keys', column: 'key', ids: ['all'], pwId: 4_294_967_296 },
    { table: 'nets', column: 'key', ids: ['west'], pwId: Number.MAX_SAFE_INTEGER },
  ];
  const store = bytes('envelope store', 16);
  const dekId = bytes('envelope dek id', 8);
  const dek = bytes('envelope dek', 32);
  const keys = places.map(({ table, column, ids, pwId }, i) => {
    const key = bytes(`envelope ${i} key`, 32);
    const nonce = bytes(`envelope ${i} nonce`, 12);
    const header = Buffer.concat([Buffer.of(1), dekId]);
    const label = 'pairwire/1 envelope';
    const data = fields(label, header, store, table, column, ids.length, ...ids, pwId);
    return {
      ...{ store: hex(store), table, column, ids, pwId, dekId: hex(dekId), dek: hex(dek) },
      ...{ key: hex(key), nonce: hex(nonce), sealed: seal(dek, header, nonce, data, key) },
    };
  });
  const deks = [1, 70_000].map((generation) => {
    const root = bytes(`envelope root ${generation}`, 32);
    const nonce = bytes(`envelope root ${generation} nonce`, 12);
    const header = Buffer.of(1, 0, 0, 0, 0);
    header.writeUInt32BE(generation, 1);
    const data = fields('pairwire/1 dek', header, 'store', 'lab', 's1', dekId);
    return {
      ...{
        subnet: 'lab',
        server: 's1',
        generation,
        root: hex(root),
        dekId: hex(dekId),
        dek: hex(dek),
      },
      ...{ nonce: hex(nonce), sealed: seal(root, header, nonce, data, dek) },
    };
  });
  return { keys, deks };
}

/** MACs, terms and a head of rows, computed from docs/protocol.md 11.9. */
function rowVectors() {
  const store = bytes('rows store', 16);
  const rowKey = bytes('rows key', 32);
  const derive = (label: string, ...more: number[]) =>
    Buffer.from(hmac(sha256, rowKey, fields(label, ...more)));
  const counted = (type: number, data: Uint8Array) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(data.length);
    return Buffer.concat([Buffer.of(type), length, data]);
  };
  const integer = (value: number) => {
    const data = Buffer.alloc(9, 1);
    data.writeBigInt64BE(BigInt(value), 1);
    return data;
  };
  const rows = [
    {
      table: 'revocations',
      name: '7',
      bucket: 3,
      version: 12,
      columns: ['alice', 7, 1_700_000_000_000],
    },
    {
      table: 'macs',
      name: '02:00:00:00:00:01\n',
      bucket: 127,
      version: 2 ** 40,
      columns: ['', -1, null],
    },
    {
      table: 'tokens_used',
      name: 'beef',
      bucket: 0,
      version: 1,
      columns: [Buffer.from('beef', 'hex'), 1],
    },
  ];
  const macs = rows.map(({ table, name, bucket, version, columns }) => {
    const encoded = columns.map((value) => {
      if (value === null) return Buffer.of(0);
      if (typeof value === 'number') return integer(value);
      return typeof value === 'string' ? counted(2, Buffer.from(value)) : counted(3, value);
    });
    const place = fields(store, table, name, bucket, version, columns.length);
    const mac = hmac(sha256, derive('pairwire/1 row mac'), Buffer.concat([place, ...encoded]));
    return Buffer.from(mac.subarray(0, 16));
  });
  const termKey = derive('pairwire/1 row term');
  const terms = macs.map((mac) => Buffer.from(ecb(termKey, { disablePadding: true }).encrypt(mac)));
  const sums = Buffer.alloc(128 * 16);
  for (const [at, { bucket }] of rows.entries()) terms[at]?.copy(sums, bucket * 16);
  const version = 2 ** 24 + 5;
  const nonce = bytes('rows nonce', 12);
  const data = fields('pairwire/1 row head', store, version);
  const sealed = gcm(derive('pairwire/1 row head', 1), nonce, data).encrypt(sums);
  return {
    ...{ store: hex(store), rowKey: hex(rowKey) },
    rows: rows.map(({ columns, ...place }, at) => ({
      ...place,
      columns: columns.map((value) => (value instanceof Uint8Array ? { hex: hex(value) } : value)),
      mac: hex(macs[at] ?? Buffer.alloc(0)),
      term: hex(terms[at] ?? Buffer.alloc(0)),
    })),
    buckets: ['member alice', 'settings'].map((subject) => ({
      subject,
      bucket: (createHash('sha256').update(subject).digest()[0] ?? 0) % 128,
    })),
    head: { version, nonce: hex(nonce), sealed: hex(Buffer.concat([nonce, sealed])) },
  };
}

function identityVectors() {
  const [subnet, id] = ['lab', 'alice'];
  const signed = (label: string, seed: Buffer, body: Record<string, unknown>) => {
    const b = Buffer.from(encode(body, { sortKeys: true }));
    return { b, s: Buffer.from(ed25519.sign(fields(label, b), seed)) };
  };
  const seed = bytes('identity seed', 32);
  const identity = {
    ...{ subnet, id, sign: Buffer.from(ed25519.getPublicKey(seed)) },
    box: bootPair('identity box').publicKey,
  };
  const document = signed('pairwire/1 identity', seed, identity);
  const digest = Buffer.from(sha256(Buffer.concat([document.b, document.s])));
  const dek = bytes('identity dek', 32);
  const nonce = bytes('identity nonce', 12);
  const header = Buffer.of(1);
  const data = fields('pairwire/1 kms document', header, subnet, id);
  const plain = Buffer.concat([document.s, document.b]);
  const generation = 3;
  const root = bytes('identity root', 32);
  const dekNonce = bytes('identity dek nonce', 12);
  const dekHeader = Buffer.of(1, 0, 0, 0, generation);
  const dekData = fields('pairwire/1 dek', dekHeader, 'identity', subnet, id);
  const signer = bytes('ticket signer', 32);
  const ticket = {
    ...{ subnet, server: 's1', id, channel: bootPair('ticket channel').publicKey },
    ...{ kms: bootPair('ticket kms').publicKey, notAfter: 1_700_000_600_000 },
  };
  const record = signed('pairwire/1 kms ticket', signer, ticket);
  return {
    document: {
      ...{ subnet, id, seed: hex(seed), box: hex(identity.box) },
      ...{ body: hex(document.b), signature: hex(document.s), digest: hex(digest) },
    },
    sealed: {
      ...{ dek: hex(dek), nonce: hex(nonce), document: seal(dek, header, nonce, data, plain) },
      ...{ root: hex(root), generation, dekNonce: hex(dekNonce) },
      sealedDek: seal(root, dekHeader, dekNonce, dekData, dek),
    },
    ticket: {
      ...{ signer: hex(signer), server: ticket.server, channel: hex(ticket.channel) },
      ...{ kms: hex(ticket.kms), notAfter: ticket.notAfter },
      ...{ body: hex(record.b), signature: hex(record.s) },
    },
  };
}

const files = {
  'identity.json': identityVectors(),
  'channel.json': { admission: admissionVector(), records: recordVectors() },
  'kdf.json': { pair: pairVectors(), net: netVectors(), group: groupVectors() },
  'frame.json': frameVectors(),
  'fragment.json': fragmentVectors(),
  'relay.json': relayVectors(),
  'envelope.json': envelopeVectors(),
  'rows.json': rowVectors(),
};
const check = process.argv.includes('--check');
mkdirSync(DIRECTORY, { recursive: true });
for (const [name, content] of Object.entries(files)) {
  const path = `${DIRECTORY}/${name}`;
  const text = `${JSON.stringify(content, null, 1)}\n`;
  if (!check) writeFileSync(path, text);
  else if (readFileSync(path, 'utf8') !== text) {
    process.stderr.write(`${path} is not what scripts/make-vectors.ts makes\n`);
    process.exitCode = 1;
  }
}
