/**
 * Every decoder of bytes or text that somebody else may have written, in one table. For each:
 * random, cut and altered input gives a value or an error of the kind that its callers expect, and what
 * an encoder wrote is read back the same. A hang is found by the time limit of the runner.
 *
 * Decoders that stand behind a key or keep state have properties of their own: frame, record, framing,
 * datagram-connection, reliable, exchange and admission beside their tests.
 */
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encode } from '@msgpack/msgpack';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { ZodError, type z } from 'zod';
import { gatewayConfigSchema } from '../../gateway/config.js';
import { encodeMessage as frameMessage, MessageReader } from '../../gateway/dataplane/framing.js';
import { upwardSchema } from '../../gateway/dataplane/messages.gen.js';
import { readMembership } from '../../gateway/identity.js';
import { Pins } from '../../gateway/key-table/pins.js';
import { gatewayPaths } from '../../gateway/paths.js';
import { GatewayState } from '../../gateway/state.js';
import { askStatus } from '../../gateway/status/read.js';
import { findUser } from '../../gateway/users.js';
import { readAuditHead } from '../../keyserver/audit.js';
import { keyServerConfigSchema } from '../../keyserver/config.js';
import { parseDuration, parseInteger } from '../../src/cli/output.js';
import { formatChannelAddress, parseChannelAddress } from '../../src/net/address.js';
import { decodeEnvelope, decodeMessage, encodeMessage } from '../../src/protocol/channel/codec.js';
import {
  cookieHeader,
  encodeOpening,
  encodeReset,
  parseCookieReply,
  parseOpening,
  parseReset,
} from '../../src/protocol/channel/datagram.js';
import {
  encodeGreeting,
  encodeWelcome,
  parseDatagramWelcome,
  parseGreeting,
  parseWelcome,
} from '../../src/protocol/channel/handshake-payload.js';
import { SEALED_DEK_SIZE } from '../../src/protocol/envelope.js';
import { decodeDescription, encodeDescription } from '../../src/protocol/frame.js';
import { idSchema } from '../../src/protocol/ids.js';
import { ipToBytes } from '../../src/protocol/ip.js';
import { macFromBytes, macSchema, macToBytes } from '../../src/protocol/mac.js';
import { answerSchemas, pushSchema, requestSchema } from '../../src/protocol/messages.js';
import { importPublic } from '../../src/protocol/public-keys.js';
import {
  prefixSchema,
  verifyBoot,
  verifyMembership,
  verifySettings,
} from '../../src/protocol/records.js';
import { type Signed, signedSchema } from '../../src/protocol/signed.js';
import { formatToken, parseToken } from '../../src/protocol/token.js';
import { type ErrorCode, PairwireError } from '../../src/runtime/errors.js';
import { readKeyFile, writeKeyFile } from '../../src/runtime/files.js';
import { parseYaml } from '../../src/settings/load-yaml.js';
import { NOW, SUBNET, TestOperator, TestPeer } from './gateway/support/records.js';

const folder = mkdtempSync(join(tmpdir(), 'pairwire-decoders-'));
afterAll(() => rmSync(folder, { recursive: true }));

interface Row {
  readonly name: string;
  /** Gives a value, undefined or a thrown error of the kinds named here. */
  readonly decode: (bytes: Buffer) => unknown;
  readonly codes?: readonly ErrorCode[];
  /** Its caller catches what a schema throws. */
  readonly zod?: boolean;
  /** Valid input to cut and alter. */
  readonly samples: readonly Buffer[];
  /** Runs, where one is dear. */
  readonly runs?: number;
}

const text = (bytes: Buffer) => bytes.toString('utf8');
const utf8 = (...lines: readonly string[]) => lines.map((line) => Buffer.from(line));

/** What a decoder does with a file of these contents. */
function inFile<T>(name: string, read: (path: string) => T): (bytes: Buffer) => T {
  const path = join(folder, name);
  return (bytes) => {
    writeFileSync(path, bytes, { mode: 0o600 });
    return read(path);
  };
}

// --- Samples ---------------------------------------------------------------------------------------

const operator = new TestOperator();
const operatorKey = importPublic('ed25519', operator.public);
const alice = new TestPeer(operator, 'alice').record(7, 1);
const { membership } = alice;
const boot = signedSchema.parse(alice.boot);
const settings = operator.settings(3);
const member = verifyMembership(SUBNET, membership, operatorKey);
const signedBytes = (record: Signed) => Buffer.from(encode(record));
const asSigned = (bytes: Buffer) => signedSchema.parse(decodeMessage(bytes));

const grant = operator.grant('alice', []);
const token = {
  subnet: SUBNET,
  grant: { b: Buffer.from(grant.b), s: Buffer.from(grant.s) },
  psk: Buffer.alloc(32, 1),
  operator: operator.public,
  servers: [{ host: 'keys.example', port: 7900, key: Buffer.alloc(32, 2) }],
};
const no = Buffer.alloc(8, 5);
const sealedPair = { document: Buffer.alloc(90, 6), dek: Buffer.alloc(SEALED_DEK_SIZE, 7) };
const word = {
  ...{ server: 's2', number: 7, first: 's1', tag: 3, epoch: Buffer.alloc(8), time: 5 },
  have: { epoch: Buffer.alloc(8), cursor: 0 },
  ...{ wants: [], confirms: [], seeks: [], places: [] },
  asks: [
    { is: 'pairs', no, asker: 'bob', ids: ['alice'] },
    { is: 'question', no, asker: 'bob', message: Buffer.alloc(40, 8) },
  ],
  answers: [
    { is: 'pairs', no, ticket: settings, pairs: [{ id: 'alice', ...sealedPair }] },
    { is: 'message', no, message: Buffer.alloc(40, 9) },
    { is: 'no', no, why: 'refused' },
  ],
};
const requests = [
  { t: 'ping', id: 1 },
  { t: 'enrol', id: 2, membership },
  { t: 'register', id: 3, boot, machine: Buffer.alloc(16), nonce: Buffer.alloc(16) },
  { t: 'endpoints', id: 4, endpoints: [{ ip: Buffer.from([192, 0, 2, 1]), port: 4242 }] },
  { t: 'key.mac', id: 5, requester: 'alice', mac: '02:00:00:00:00:01' },
  { t: 'key.index', id: 6, requester: 'alice', index: 7, kid: 8, group: false, pwId: 9 },
  { t: 'sync', id: 7, cursor: 0, epoch: Buffer.alloc(8), run: Buffer.alloc(8, 1) },
  { t: 'list', id: 8, what: 'members', after: 0, limit: 10 },
  { t: 'settings.set', id: 9, settings },
  {
    t: 'learned',
    id: 10,
    entries: [{ vlan: 7, mac: Buffer.alloc(6, 2), seq: 1, ago: 20 }],
    gone: [{ vlan: 0, mac: Buffer.alloc(6, 4) }],
  },
  { t: 'mac.pin', id: 11, vlan: 7, mac: '02:00:00:00:00:01', member: 'gate' },
  { t: 'mac.free', id: 12, mac: '02:00:00:00:00:01' },
  { t: 'bind', id: 13, entries: [{ ip: '10.0.0.1', mac: '02:00:00:00:00:01' }] },
  {
    t: 'guarded',
    id: 14,
    entries: [{ kind: 'arp', peer: 'bob', mac: '02:00:00:00:00:01', ip: 'fe80::1', count: 3 }],
  },
  { t: 'ip.pin', id: 15, ip: '2001:db8::1', mac: '02:00:00:00:00:01' },
  { t: 'ip.free', id: 16, ip: '10.0.0.1' },
  { t: 'identity.get', id: 17, ids: ['bob'], home: 's2' },
  { t: 'kms.exchange', id: 18, message: Buffer.alloc(40, 1), home: 's2' },
  { t: 'cascade.sync', id: 19, word },
];
const behind = { vlan: 7, mac: '02:00:00:00:00:01', ms: 900_000, pinned: false };
const plainChanges = [
  { kind: 'own', seq: 5, mac: '02:00:00:00:00:02' },
  { kind: 'own.freed', seq: 6, mac: '02:00:00:00:00:02' },
  { kind: 'behind', seq: 7, member: 'gate', ...behind },
  { kind: 'ip', seq: 8, ip: '10.0.0.1', mac: '02:00:00:00:00:02' },
  { kind: 'ip.freed', seq: 9, ip: '10.0.0.1' },
];
const change = { kind: 'member', seq: 4, member: alice };
const pushes = [
  { t: 'expire' },
  { t: 'duplicate' },
  { t: 'changes', epoch: Buffer.alloc(8), changes: [change, ...plainChanges] },
];
const answers = {
  ping: { t: 'ok', id: 1, time: 5 },
  register: { t: 'ok', id: 1, index: 7, tag: 3, settings },
  'key.mac': { t: 'ok', id: 1, kind: 'pair', peer: alice, key: Buffer.alloc(32), pwId: 1, behind },
  learned: { t: 'ok', id: 1, refused: 2 },
  'mac.free': { t: 'ok', id: 1, tombstones: 1, pins: 0 },
  bind: { t: 'ok', id: 1, refused: ['10.0.0.1'] },
  sync: {
    t: 'ok',
    id: 1,
    epoch: Buffer.alloc(8),
    run: Buffer.alloc(8, 1),
    changes: [change],
    cursor: 4,
    more: false,
  },
  list: { t: 'ok', id: 1, rows: [{ a: 1 }] },
  'cascade.sync': { t: 'ok', id: 1, word },
} as const;
const upward = [
  { t: 'done', id: 1 },
  { t: 'failed', id: 1, why: 'no' },
  { t: 'miss.mac', port: 1, mac: Buffer.alloc(6, 2), vlan: 0 },
  {
    t: 'miss.index',
    port: 1,
    index: 2,
    kid: 3,
    group: true,
    from: { ip: Buffer.alloc(4), port: 1 },
  },
  { t: 'log', level: 1, text: 'hello' },
];
const packed = (values: readonly object[]) =>
  values.map((value) => Buffer.from(encodeMessage(value)));

const terms = { lifetimeMs: 3_600_000, recordLimit: 1_000, validityMs: 30_000 };
const datagramTerms = {
  channel: Buffer.alloc(8, 1),
  reset: Buffer.alloc(16, 2),
  ticket: Buffer.alloc(16, 3),
  key: Buffer.alloc(32, 4),
};
const gatewayYaml = `subnet: lab
member: alice
operator: ${operator.public.toString('base64url')}
servers:
  - { address: "192.0.2.1:7900", key: ${Buffer.alloc(32).toString('base64url')} }
ports:
  - { name: main, kind: host, interface: pw0 }
`;

const rows: readonly Row[] = [
  // The channel.
  {
    name: 'envelope of a message',
    decode: decodeEnvelope,
    codes: ['CHANNEL_MALFORMED'],
    samples: packed([...requests, ...pushes]),
  },
  {
    name: 'request to the key server',
    decode: (bytes) => requestSchema.parse(decodeEnvelope(bytes)),
    codes: ['CHANNEL_MALFORMED'],
    zod: true,
    samples: packed(requests),
  },
  {
    name: 'push of the key server',
    decode: (bytes) => pushSchema.parse(decodeEnvelope(bytes)),
    codes: ['CHANNEL_MALFORMED'],
    zod: true,
    samples: packed(pushes),
  },
  ...Object.entries(answers).map(([type, answer]): Row => {
    const schema: z.ZodType = answerSchemas[type as keyof typeof answers];
    return {
      name: `answer to ${type}`,
      decode: (bytes) => schema.parse(decodeEnvelope(bytes)),
      codes: ['CHANNEL_MALFORMED'],
      zod: true,
      samples: packed([answer]),
    };
  }),
  {
    name: 'payload of message 1',
    decode: (bytes) => [parseGreeting(bytes, true), parseGreeting(bytes, false)],
    samples: [
      Buffer.from(encodeGreeting(Buffer.alloc(16, 9))),
      Buffer.from(encodeGreeting(undefined)),
    ],
  },
  {
    name: 'payload of message 2',
    decode: (bytes) => [parseWelcome(bytes), parseDatagramWelcome(bytes)],
    samples: [
      Buffer.from(encodeWelcome(NOW, terms)),
      Buffer.from(encodeWelcome(NOW, terms, datagramTerms)),
    ],
  },
  {
    name: 'message 1 as a datagram',
    decode: parseOpening,
    samples: [encodeOpening(1, Buffer.alloc(8, 1), Buffer.alloc(120, 2))],
  },
  {
    name: 'cookie reply and reset',
    decode: (bytes) => [parseCookieReply(bytes), parseReset(bytes)],
    samples: [
      encodeReset(Buffer.alloc(8, 1), Buffer.alloc(16, 2)),
      Buffer.concat([cookieHeader(Buffer.alloc(8, 1)), Buffer.alloc(48, 3)]),
    ],
  },
  // Records that others signed.
  {
    name: 'membership',
    decode: (bytes) => verifyMembership(SUBNET, asSigned(bytes), operatorKey),
    codes: ['RECORD_MALFORMED', 'RECORD_SIGNATURE', 'RECORD_MISMATCH', 'CHANNEL_MALFORMED'],
    zod: true,
    samples: [signedBytes(membership)],
  },
  {
    name: 'boot record',
    decode: (bytes) => verifyBoot(member, asSigned(bytes), NOW - 1, 0),
    codes: ['RECORD_MALFORMED', 'RECORD_SIGNATURE', 'RECORD_MISMATCH', 'CHANNEL_MALFORMED'],
    zod: true,
    samples: [signedBytes(boot)],
  },
  {
    name: 'settings',
    decode: (bytes) => verifySettings(SUBNET, asSigned(bytes), operatorKey, 1),
    codes: ['RECORD_MALFORMED', 'RECORD_SIGNATURE', 'RECORD_MISMATCH', 'CHANNEL_MALFORMED'],
    zod: true,
    samples: [signedBytes(settings)],
  },
  {
    name: 'join token',
    decode: (bytes) => parseToken(text(bytes)),
    codes: ['TOKEN_MALFORMED'],
    samples: utf8(formatToken(token)),
  },
  {
    name: 'raw public key',
    decode: (bytes) => [importPublic('ed25519', bytes), importPublic('x25519', bytes)],
    codes: ['RECORD_MALFORMED'],
    samples: [operator.public],
  },
  // The data plane and this machine.
  {
    name: 'answer or event of the data plane',
    decode: (bytes) => [...new MessageReader().push(bytes)].map((one) => upwardSchema.parse(one)),
    codes: ['DATAPLANE_PROTOCOL'],
    zod: true,
    samples: upward.map((one) => frameMessage(one)),
  },
  {
    name: 'description in a frame',
    decode: (bytes) => (bytes.length < 4 ? undefined : decodeDescription(bytes)),
    samples: [Buffer.from([0x0d, 1, 0, 7])],
  },
  {
    name: 'stored membership',
    decode: inFile('membership', (path) =>
      readMembership({ ...gatewayPaths(folder), membership: path }),
    ),
    codes: ['FILE_UNREADABLE'],
    samples: [signedBytes(membership)],
    runs: 100,
  },
  {
    name: 'key file',
    decode: inFile('a.key', (path) => readKeyFile(path, 'channel')),
    codes: ['FILE_UNREADABLE'],
    samples: utf8(`pairwire channel ${Buffer.alloc(32, 7).toString('base64url')}\n`),
    runs: 100,
  },
  {
    name: 'pins',
    decode: inFile('pins.json', (path) => new Pins(path, operator.public).settingsVersion),
    codes: ['FILE_UNREADABLE', 'PIN_MISMATCH'],
    samples: utf8(
      JSON.stringify({
        version: 1,
        operator: operator.public.toString('hex'),
        settings: { version: 1 },
        members: [['alice', { identity: 'a'.repeat(64), sequence: 1 }]],
        macs: [['02:00:00:00:00:01', 'alice']],
      }),
    ),
    runs: 100,
  },
  {
    name: 'state.json',
    decode: inFile('state.json', (path) => new GatewayState(path).tag),
    codes: ['FILE_UNREADABLE'],
    samples: utf8('{"bootSequence":7,"controlEpoch":8,"tag":9}'),
    runs: 100,
  },
  {
    name: 'passwd',
    decode: inFile('passwd', (path) => findUser('pairwire', path)),
    samples: utf8('root:x:0:0:root:/root:/bin/sh\npairwire:x:999:998::/nonexistent:/bin/false\n'),
    runs: 100,
  },
  {
    name: 'noted head of the audit log',
    decode: inFile('head', readAuditHead),
    codes: ['FILE_UNREADABLE'],
    samples: utf8('{"server":"s1","seq":3,"mac":"AAAA"}'),
    runs: 100,
  },
  // What people write.
  {
    name: 'gateway.yaml',
    decode: (bytes) => parseYaml(text(bytes), gatewayConfigSchema, 'gateway.yaml'),
    codes: ['CONFIG_INVALID'],
    samples: utf8(gatewayYaml),
    runs: 200,
  },
  {
    name: 'keyserver.yaml',
    decode: (bytes) => parseYaml(text(bytes), keyServerConfigSchema, 'keyserver.yaml'),
    codes: ['CONFIG_INVALID'],
    samples: utf8(
      'subnet: lab\nserver: s1\nlisten: [192.0.2.1:7900, "udp://[2001:db8::1]:7900"]\n',
    ),
    runs: 200,
  },
  {
    name: 'address of a key server',
    decode: (bytes) => parseChannelAddress(text(bytes)),
    samples: utf8('192.0.2.1:7900', 'udp://[2001:db8::1]:7900', 'http://keys.example:80'),
  },
  {
    name: 'IP address',
    decode: (bytes) => ipToBytes(text(bytes)),
    samples: utf8('192.0.2.1', '2001:db8::1', '::ffff:192.0.2.1'),
  },
  {
    name: 'id, MAC address, prefix',
    decode: (bytes) =>
      [idSchema, macSchema, prefixSchema].map((schema) => schema.safeParse(text(bytes)).success),
    samples: utf8('alice', '02:00:00:00:00:01', '2001:db8::/32'),
  },
  {
    name: 'duration on a command line',
    decode: (bytes) => parseDuration(text(bytes), '--for'),
    codes: ['USAGE'],
    samples: utf8('90s', '500ms'),
  },
  {
    name: 'number on a command line',
    decode: (bytes) => parseInteger(text(bytes), '--count', 0, 9),
    codes: ['USAGE'],
    samples: utf8('7'),
  },
];

// --- The properties --------------------------------------------------------------------------------

/** Fails unless the decoder keeps to its contract. */
function decodes(row: Row, bytes: Buffer): unknown {
  try {
    return row.decode(Buffer.from(bytes));
  } catch (thrown) {
    if (row.zod === true && thrown instanceof ZodError) return undefined;
    if (thrown instanceof PairwireError && row.codes?.includes(thrown.code) === true)
      return undefined;
    throw thrown;
  }
}

/** A sample after some changes: bytes replaced, taken out, put in, a piece doubled. */
const altered = (samples: readonly Buffer[]) =>
  fc
    .tuple(
      fc.constantFrom(...samples),
      fc.array(fc.tuple(fc.nat(3), fc.nat(0xffff), fc.uint8Array({ minLength: 1, maxLength: 4 })), {
        minLength: 1,
        maxLength: 4,
      }),
    )
    .map(([sample, changes]) => {
      let bytes = sample;
      for (const [how, place, patch] of changes) {
        const at = place % (bytes.length + 1);
        const rest = how === 2 ? at : at + patch.length;
        const middle =
          how === 0 || how === 2 ? patch : how === 1 ? Buffer.alloc(0) : bytes.subarray(at);
        bytes = Buffer.concat([bytes.subarray(0, at), middle, bytes.subarray(rest)]);
      }
      return bytes;
    });

describe.each(rows)('decoder of $name', (row) => {
  const options = { numRuns: row.runs ?? 500 };

  it('reads its samples', () => {
    for (const sample of row.samples) expect(row.decode(Buffer.from(sample))).toBeDefined();
  });

  it('takes random bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        decodes(row, Buffer.from(bytes));
      }),
      options,
    );
  });

  it('takes its samples cut short and altered', () => {
    for (const sample of row.samples) {
      const step = Math.max(1, Math.floor(sample.length / options.numRuns));
      for (let size = 0; size < sample.length; size += step) decodes(row, sample.subarray(0, size));
    }
    fc.assert(
      fc.property(altered(row.samples), (bytes) => {
        decodes(row, bytes);
      }),
      options,
    );
  });
});

describe('what listens on a control socket', () => {
  it('and is no gateway is told from one, whatever it says', async () => {
    const path = join(folder, 'control.sock');
    let line = '';
    const server = createServer((socket) => socket.end(`${line}\n`)).listen(path);
    await once(server, 'listening');
    const status = fc.record({ ok: fc.constant(true), status: fc.jsonValue() });
    const says = fc.oneof(
      fc.string(),
      fc.json(),
      status.map((one) => JSON.stringify(one)),
    );
    try {
      await fc.assert(
        fc.asyncProperty(says, async (text) => {
          line = text;
          await expect(askStatus(path)).rejects.toBeInstanceOf(PairwireError);
        }),
        { numRuns: 100 },
      );
    } finally {
      server.close();
    }
  });
});

describe('what was written is read back the same', () => {
  const bytes = (size: number) =>
    fc.uint8Array({ minLength: size, maxLength: size }).map((value) => Buffer.from(value));
  const port = fc.integer({ min: 1, max: 65_535 });

  it('a join token', () => {
    const servers = fc.array(fc.record({ host: fc.domain(), port, key: bytes(32) }), {
      minLength: 1,
      maxLength: 16,
    });
    fc.assert(
      fc.property(bytes(32), servers, (psk, list) => {
        const one = { ...token, psk, servers: list };
        expect(parseToken(`  ${formatToken(one)}\n`)).toEqual(one);
      }),
      { numRuns: 100 },
    );
  });

  it('an address of a key server', () => {
    const host = fc.oneof(fc.domain(), fc.ipV4(), fc.ipV6());
    const scheme = fc.constantFrom('tcp' as const, 'udp' as const, 'http' as const);
    fc.assert(
      fc.property(scheme, host, port, (one, name, number) => {
        const address = { scheme: one, host: name, port: number };
        expect(parseChannelAddress(formatChannelAddress(address))).toEqual(address);
      }),
    );
  });

  it('a MAC address', () => {
    fc.assert(
      fc.property(bytes(6), (mac) => {
        const name = macFromBytes(mac);
        expect(macToBytes(macSchema.parse(name.toUpperCase().replaceAll(':', '-')))).toEqual(mac);
      }),
    );
  });

  it('what message 2 says', () => {
    const some = fc.record({
      lifetimeMs: fc.integer({ min: 1, max: 86_400 }).map((s) => s * 1_000),
      recordLimit: fc.integer({ min: 1, max: 2 ** 32 }),
      validityMs: fc.integer({ min: 1, max: 3_600_000 }),
    });
    const more = fc.record({
      channel: bytes(8),
      reset: bytes(16),
      ticket: bytes(16),
      key: bytes(32),
    });
    fc.assert(
      fc.property(fc.nat(2 ** 40), some, more, (time, saysTerms, extra) => {
        const written = encodeWelcome(time, saysTerms, extra);
        expect(parseWelcome(written)).toEqual({ time, terms: saysTerms });
        expect(parseDatagramWelcome(written)).toEqual({ time, terms: saysTerms, ...extra });
      }),
    );
  });

  it('message 1 as a datagram', () => {
    const noise = fc.uint8Array({ minLength: 96, maxLength: 900 });
    fc.assert(
      fc.property(
        fc.constantFrom(1 as const, 2 as const),
        bytes(8),
        noise,
        (type, sender, inside) => {
          const opening = parseOpening(encodeOpening(type, sender, inside));
          expect(opening).toMatchObject({ type, sender, noise: Buffer.from(inside) });
        },
      ),
    );
  });

  it('a description in a frame', () => {
    const description = fc.record({
      partialChecksum: fc.boolean(),
      part: fc.nat(2),
      lastPart: fc.boolean(),
      trainPlace: fc.nat(255),
      padding: fc.nat(65_535),
    });
    fc.assert(
      fc.property(description, (one) => {
        expect(decodeDescription(encodeDescription(one))).toEqual(one);
      }),
    );
  });

  it('a key file', () => {
    const path = join(folder, 'written.key');
    fc.assert(
      fc.property(bytes(32), (key) => {
        writeKeyFile(path, 'channel', key, { replace: true });
        expect(readKeyFile(path, 'channel')).toEqual(key);
      }),
      { numRuns: 50 },
    );
  });

  it('a message of the channel', () => {
    for (const request of requests) {
      expect(requestSchema.parse(decodeEnvelope(encodeMessage(request)))).toMatchObject({
        t: request.t,
        id: request.id,
      });
    }
  });
});
