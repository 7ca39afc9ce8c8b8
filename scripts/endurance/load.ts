/** What goes on during an endurance run: streams, TCP, broadcasts, new members, and restarts of every process. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { defaultRunDir } from '../../gateway/config.js';
import { killProgram } from '../laboratory/gateway-programs.js';
import type { Lab } from '../laboratory/lab.js';
import { waitFor } from '../laboratory/processes.js';
import { NumberedStream } from '../laboratory/stream.js';

export const SUBNET = 'lan';
export const SERVER = 'server';
/** alice is never restarted: whatever others' restarts leave behind adds up there. */
export const MEMBERS = ['alice', 'bob', 'carol'] as const;
type Member = (typeof MEMBERS)[number];
const GUEST = 'dave';
const PREFIX = '198.51.100';
const NUMBER = { alice: 11, bob: 12, carol: 13 } as const;
const GUEST_NUMBER = 77;
/** Addresses of guests, each with another: one that is gone keeps its own for an hour. */
const GUESTS = { first: 100, count: 150 } as const;
const STREAM = { perSecond: 100, size: 64 } as const;
const TCP_SECONDS = 4;
const PATIENCE_MS = 30_000;

export function inner(member: Member): string {
  return `${PREFIX}.${NUMBER[member]}`;
}

/** The topology: three members, a key server, and a host where new members come and go. */
export function enduranceTopology() {
  const place = (number: number) => ({
    ipv6: false,
    interfaces: [{ segment: 'wire', name: 'eth0', addresses: [`192.0.2.${number}/24`] }],
  });
  return {
    segments: { wire: {} },
    hosts: {
      alice: place(11),
      bob: place(12),
      carol: place(13),
      [SERVER]: place(1),
      [GUEST]: place(GUEST_NUMBER),
    },
    keyServers: { [SUBNET]: { host: SERVER, listen: '192.0.2.1:7100' } },
    gateways: MEMBERS.map((host) => ({
      host,
      subnet: SUBNET,
      addresses: [`${inner(host)}/24`],
    })),
  };
}

/** Small UDP between every two, each datagram numbered. */
export function startStreams(lab: Lab): Promise<NumberedStream[]> {
  const pairs: readonly (readonly [Member, Member])[] = [
    ['alice', 'bob'],
    ['bob', 'carol'],
    ['carol', 'alice'],
  ];
  return Promise.all(
    pairs.map(([from, to], at) => {
      const way = { from, to, address: inner(to), port: 9_000 + at };
      return NumberedStream.start(lab, { ...way, ...STREAM });
    }),
  );
}

const iperfSchema = z.object({
  end: z.object({ sum_received: z.object({ bytes: z.number() }).optional() }).optional(),
  error: z.string().optional(),
});

/** TCP for some seconds, both ways. @returns bytes that arrived; 0 if a restart broke it */
export async function runTcp(lab: Lab, to: Member): Promise<number> {
  const argv = [
    'iperf3',
    '-c',
    inner(to),
    '-t',
    String(TCP_SECONDS),
    '--bitrate',
    '200M',
    '--json',
  ];
  const { stdout } = await lab.exec('alice', argv, { check: false, timeoutMs: PATIENCE_MS });
  const result = iperfSchema.safeParse(JSON.parse(stdout === '' ? '{}' : stdout));
  return result.success ? (result.data.end?.sum_received?.bytes ?? 0) : 0;
}

export async function shout(lab: Lab): Promise<void> {
  const argv = ['socat', '-u', '-', `UDP4-DATAGRAM:${PREFIX}.255:9,broadcast`];
  await lab.exec('alice', argv, { input: 'to whom it may concern' });
}

/**
 * Somebody new joins, pings alice and goes for good.
 * @returns ms from the start of its gateway to the first answer
 */
export async function newMember(lab: Lab, number: number): Promise<number> {
  const scratch = mkdtempSync(join(tmpdir(), 'pairwire-endurance-'));
  // The control plane gives up root, and must reach its folder then.
  chmodSync(scratch, 0o755);
  const dir = join(scratch, 'gateway');
  const tokenFile = join(scratch, 'token');
  try {
    const token = await lab.token(SUBNET, `guest-${number}`);
    writeFileSync(tokenFile, `${token}\n`, { mode: 0o600 });
    const place = ['--interface', 'pw0', '--port', '7000'];
    const own = `${PREFIX}.${GUESTS.first + (number % GUESTS.count)}`;
    const address = ['--address', `${own}/24`];
    await lab.pairwire(GUEST, [
      'join',
      '--dir',
      dir,
      '--token-file',
      tokenFile,
      ...place,
      ...address,
    ]);
    const begin = performance.now();
    const up = lab.spawnPairwire(GUEST, ['up', '--dir', dir], 'guest');
    try {
      await waitFor(
        async () => {
          const ping = ['ping', '-n', '-c', '1', '-W', '1', inner('alice')];
          return (await lab.exec(GUEST, ping, { check: false })).code === 0;
        },
        { what: `an answer to guest-${number}`, timeoutMs: PATIENCE_MS, everyMs: 100 },
      );
      return performance.now() - begin;
    } finally {
      await lab.pairwire(GUEST, ['down', '--dir', dir], { check: false });
      await lab.stop(up);
    }
  } finally {
    rmSync(defaultRunDir(dir), { recursive: true, force: true });
    rmSync(scratch, { recursive: true, force: true });
  }
}

export interface Restart {
  readonly what: string;
  /** Only in the first third, so that it has a long life in the end. */
  readonly early?: boolean;
  readonly run: (lab: Lab) => Promise<void>;
}

/** Each process of a gateway and of the key server, one after the other. */
export const RESTARTS: readonly Restart[] = [
  {
    what: "kill -9 of bob's data plane",
    run: (lab) => killProgram(lab, 'bob', 'pairwire-dataplane'),
  },
  {
    what: "kill -9 of bob's control plane, and a new one",
    run: async (lab) => {
      await lab.stopGateway('bob', 'SIGKILL');
      await sleep(500);
      await lab.startGateway('bob', { connected: false });
    },
  },
  {
    what: 'kill -9 of the key server, and a new one',
    early: true,
    run: async (lab) => {
      await lab.stopKeyServer(SUBNET, 'SIGKILL');
      await sleep(500);
      await lab.startKeyServer(SUBNET);
    },
  },
  {
    what: "kill -9 of carol's broker and control plane, and new ones",
    run: async (lab) => {
      await killProgram(lab, 'carol', 'pairwire-devices');
      await lab.stopGateway('carol', 'SIGKILL');
      await lab.startGateway('carol', { connected: false });
    },
  },
  {
    what: 'carol taken down and up again',
    run: async (lab) => {
      await lab.downGateway('carol');
      await lab.stopGateway('carol');
      await lab.startGateway('carol', { connected: false });
    },
  },
];
