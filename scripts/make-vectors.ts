/**
 * Writes test/vectors/kdf.json and frame.json from the TypeScript codec on @noble. The
 * C++ tests read the same files, so two independent implementations hold each other.
 * Inputs come from a fixed hash chain: the files change only if the protocol does.
 *
 *   npx tsx scripts/make-vectors.ts [--check]
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { x25519 } from '@noble/curves/ed25519.js';
import { FLAG_GROUP, FrameKind, SUITES, type Suite } from '../src/protocol/constants.js';
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

const files = {
  'kdf.json': { pair: pairVectors(), net: netVectors(), group: groupVectors() },
  'frame.json': frameVectors(),
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
