/**
 * Faults that are nobody's attack: a line that loses, repeats and reorders one frame in ten; a full disk
 * under the key server, and under a gateway.
 *
 *   alice ── left ── [mixer] ── right ──┬── bob
 *                                       ├── carol
 *                                       └── server
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { killDataPlane } from '../../scripts/laboratory/gateway-programs.js';
import { isAlive, signal, waitFor } from '../../scripts/laboratory/processes.js';
import { NumberedStream } from '../../scripts/laboratory/stream.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { fillDisk } from '../unit/keyserver/support/fill-disk.js';
import { ping } from './helpers/hosts.js';
import { randomFile, sendFile, waitForLine } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';

const MIXER = fileURLToPath(new URL('./helpers/programs/mixer.py', import.meta.url));
const SUBNET = 'lan';
const NUMBER = { alice: 11, bob: 12, carol: 13 } as const;
type Host = keyof typeof NUMBER;
const inner = (host: Host) => `198.51.100.${NUMBER[host]}`;
const PER_MILLE = 100;
const FILE_BYTES = 1 << 20;
/** Enough for what is stored, little enough to be filled in no time. */
const DISK = '8m';

const place = (segment: string, number: number) => ({
  interfaces: [
    {
      segment,
      name: 'eth0',
      addresses: [`192.0.2.${number}/24`],
      // The mixer carries frames of a wire only.
      offload: 'wire' as const,
    },
  ],
});
const topology: TopologyInput = {
  segments: { left: {}, right: {} },
  hosts: {
    alice: place('left', NUMBER.alice),
    bob: place('right', NUMBER.bob),
    carol: place('right', NUMBER.carol),
    server: place('right', 1),
    mixer: {
      interfaces: [
        { segment: 'left', name: 'left', addresses: [], offload: 'wire' },
        { segment: 'right', name: 'right', addresses: [], offload: 'wire' },
      ],
    },
  },
  keyServers: { [SUBNET]: { host: 'server', listen: '192.0.2.1:7100' } },
  gateways: (['alice', 'bob', 'carol'] as const).map((host) => ({
    host,
    subnet: SUBNET,
    addresses: [`${inner(host)}/24`],
  })),
};
const handle = useLab(topology, { restarts: true, startPrograms: false });

const disks: string[] = [];

/** A small file system of its own for a directory. */
function ownDisk(dir: string): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${DISK},mode=700`, 'tmpfs', dir]);
  disks.push(dir);
}
afterAll(() => {
  // Before the laboratory removes its folders; what still runs in them keeps it.
  for (const dir of disks) execFileSync('umount', ['--lazy', dir]);
});

let mixer: Awaited<ReturnType<typeof startMixer>>;

/** A line that loses, repeats and delays so many frames of 1,000. */
async function startMixer(perMille: number) {
  const shares = Array.from({ length: 3 }, () => String(perMille));
  const started = handle.lab.spawn('mixer', ['python3', MIXER, 'left', 'right', ...shares]);
  await waitForLine(started.log, 'ready');
  return started;
}

beforeAll(async () => {
  const { lab } = handle;
  mixer = await startMixer(0);
  ownDisk(lab.serverDir(SUBNET));
  ownDisk(lab.gatewayDir('bob'));
  await lab.startPrograms();
});

test('over a line that loses, repeats and reorders one frame in ten, TCP delivers every byte and no datagram comes twice', async () => {
  const { lab } = handle;
  const file = await randomFile(FILE_BYTES);
  await lab.stop(mixer);
  mixer = await startMixer(PER_MILLE);
  try {
    const stream = await NumberedStream.start(lab, {
      ...{ from: 'alice', to: 'bob', address: inner('bob') },
      ...{ port: 9_001, perSecond: 200, size: 100 },
    });
    const before = (await lab.port('bob')).drops;
    const digests = await Promise.all([
      sendFile(lab, { from: 'alice', to: 'bob', address: inner('bob') }, file, 6_001),
      sendFile(lab, { from: 'bob', to: 'alice', address: inner('alice') }, file, 6_002),
    ]);
    expect(digests).toEqual([file.sha256, file.sha256]);
    await stream.more(500);
    const { sent, lost, repeated } = await stream.stop();
    const { drops } = await lab.port('bob');
    expect(repeated).toBe(0);
    expect(lost).toBeGreaterThan(0);
    expect(drops.replayed).toBeGreaterThan(before.replayed ?? 0);
    expect(drops.not_authentic).toBe(before.not_authentic);
    // The line has been as bad as it should: else all of this says nothing.
    signal(mixer, 'SIGTERM');
    const text = await waitFor(() => /\{.*\}/.exec(readFileSync(mixer.log, 'utf8'))?.[0], {
      what: 'what the bad line did',
    });
    const did = z
      .object({ frames: z.int(), lost: z.int(), repeated: z.int(), late: z.int() })
      .parse(JSON.parse(text));
    console.log(`bad line: ${text}; ${lost} of ${sent} datagrams lost`);
    for (const what of ['lost', 'repeated', 'late'] as const) {
      expect(did[what], what).toBeGreaterThan(did.frames / 20);
    }
  } finally {
    file.remove();
    mixer = await startMixer(0);
  }
});

describe('a full disk', () => {
  test('under the key server: who has keys goes on, new pairs wait, and with room it works again by itself', async () => {
    const { lab } = handle;
    await waitFor(async () => (await ping(lab, 'alice', inner('bob'))).received === 1, {
      what: 'alice and bob to have keys',
    });
    const process = lab.processOf('server', 'keyserver');
    const free = fillDisk(lab.serverDir(SUBNET));
    try {
      const known = await ping(lab, 'alice', inner('bob'), { count: 20, intervalMs: 20 });
      expect(known.received).toBe(20);
      // bob and carol have never spoken, so their key would have to be stored.
      const fresh = await ping(lab, 'bob', inner('carol'), { count: 2, waitMs: 500 });
      expect(fresh.received).toBe(0);
    } finally {
      free();
    }
    await waitFor(async () => (await ping(lab, 'bob', inner('carol'))).received === 1, {
      what: 'bob and carol to get their key',
      timeoutMs: 20_000,
    });
    expect(process !== undefined && isAlive(process), 'the key server went on').toBe(true);
    // What it acknowledged before and after is there for its next life.
    await lab.stopKeyServer(SUBNET, 'SIGKILL');
    await lab.startKeyServer(SUBNET);
    const argv = ['keys', '--json', '--dir', lab.serverDir(SUBNET)];
    const keys = z
      .array(z.object({ kind: z.string() }))
      .parse(JSON.parse((await lab.pairwire('server', argv)).stdout));
    expect(keys.filter(({ kind }) => kind === 'pair').length).toBeGreaterThanOrEqual(2);
  });

  test('under a gateway: traffic goes on; a data plane that dies meanwhile is replaced once there is room', async () => {
    const { lab } = handle;
    const dir = lab.gatewayDir('bob');
    const control = lab.processOf('bob', 'up');
    if (control === undefined) throw new Error('bob has no control plane');
    const descriptors = () => readdirSync(`/proc/${control.pid}/fd`).length;
    const before = descriptors();
    const free = fillDisk(dir);
    try {
      const meanwhile = await ping(lab, 'alice', inner('bob'), { count: 20, intervalMs: 20 });
      expect(meanwhile.received).toBe(20);
      await killDataPlane(lab, 'bob');
      // Numbers that must never repeat are on disk before they are used: without disk there is no new start.
      await waitFor(
        async () =>
          (await lab.status('bob')).problems.some(({ code }) => code === 'DATAPLANE_GONE'),
        { what: 'bob to say what is wrong' },
      );
      await new Promise((resolve) => setTimeout(resolve, 3_000));
      expect((await ping(lab, 'alice', inner('bob'), { waitMs: 300 })).received).toBe(0);
      expect(isAlive(control)).toBe(true);
      expect(descriptors(), 'descriptors while it tries').toBeLessThanOrEqual(before + 3);
    } finally {
      free();
    }
    const begin = performance.now();
    await waitFor(
      async () => (await ping(lab, 'alice', inner('bob'), { waitMs: 300 })).received === 1,
      {
        what: 'bob to be back',
        timeoutMs: 30_000,
      },
    );
    console.log(
      `full disk: traffic ${(performance.now() - begin).toFixed(0)} ms after there was room`,
    );
    // Not one temporary file is left behind.
    expect(readdirSync(dir).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});
