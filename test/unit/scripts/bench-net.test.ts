/** The load generator of the benchmark, both ends on loopback, with a path between that misbehaves in known ways. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server, connect as tcpConnect } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { until } from '../gateway/support/until.js';

const execute = promisify(execFile);
const PROGRAM = fileURLToPath(
  new URL('../../../gateway/native/build/release/pairwire-bench-net', import.meta.url),
);
const LOOPBACK = '127.0.0.1';

let far: ChildProcess;
let farPort: number;

/** Whether somebody on this machine accepts TCP connections at a port. */
function isListening(port: number): boolean {
  const place = `:${port.toString(16).toUpperCase().padStart(4, '0')} `;
  return ['/proc/net/tcp', '/proc/net/tcp6'].some((file) =>
    readFileSync(file, 'latin1')
      .split('\n')
      .some((line) => /^ *\d+: \S+ /.exec(line)?.[0].endsWith(place) && / 0A /.test(line)),
  );
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, LOOPBACK);
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

beforeEach(async () => {
  farPort = await freePort();
  far = spawn(PROGRAM, ['serve', '--port', `${farPort}`], { stdio: 'ignore' });
  // Not by a connection: it would be taken for a measurement.
  await until('the far end listens', () => isListening(farPort));
});

afterEach(() => {
  far.kill('SIGKILL');
});

async function generate(...words: readonly string[]): Promise<Record<string, number>> {
  const places = ['--control', LOOPBACK, '--target', LOOPBACK];
  const { stdout } = await execute(PROGRAM, [...words.slice(0, 1), ...places, ...words.slice(1)]);
  return JSON.parse(stdout) as Record<string, number>;
}

/**
 * Stands between both ends: passes the conversation on, but names a UDP port of its own, and gives each
 * datagram with its number to `forward`.
 */
class Between {
  readonly #tcp: Server;
  readonly #udp: UdpSocket;
  #to = 0;
  #count = 0;
  #waiting: (() => void) | undefined;

  constructor(forward: (number: number, send: () => void) => void) {
    this.#udp = createSocket('udp4');
    this.#udp.on('message', (message) => {
      const number = this.#count++;
      forward(number, () => this.#udp.send(message, this.#to, LOOPBACK));
      this.#waiting?.();
    });
    this.#tcp = createServer((near) => {
      const beyond = tcpConnect(farPort, LOOPBACK);
      near.on('error', () => beyond.destroy());
      near.on('end', () => beyond.end());
      createInterface({ input: near }).on('line', (line) => {
        // Only when all datagrams have passed, so that no slow machine turns into a loss.
        this.#when(Number(/^sent (\d+)$/.exec(line)?.[1] ?? 0), () => beyond.write(`${line}\n`));
      });
      createInterface({ input: beyond }).on('line', (line) => {
        const port = /^ready (\d+)$/.exec(line)?.[1];
        if (port !== undefined) this.#to = Number(port);
        near.write(port === undefined ? `${line}\n` : `ready ${this.#udp.address().port}\n`);
      });
    });
  }

  /** Does something once so many datagrams have come. */
  #when(count: number, action: () => void): void {
    this.#waiting = () => {
      if (this.#count < count) return;
      this.#waiting = undefined;
      action();
    };
    this.#waiting();
  }

  /** Where the far end takes datagrams; 0 before it has said so. */
  get target(): number {
    return this.#to;
  }

  async open(): Promise<number> {
    this.#udp.bind(0, LOOPBACK);
    this.#tcp.listen(0, LOOPBACK);
    await Promise.all([once(this.#udp, 'listening'), once(this.#tcp, 'listening')]);
    return (this.#tcp.address() as AddressInfo).port;
  }

  close(): void {
    this.#udp.close();
    this.#tcp.close();
  }
}

describe('pairwire-bench-net', () => {
  it('counts what a path loses, sends twice and puts out of order', async () => {
    let held: (() => void) | undefined;
    const between = new Between((number, send) => {
      if (number % 10 === 3) return;
      if (number % 10 === 5) send();
      // 7 comes behind 8.
      if (number % 10 === 7) held = send;
      else send();
      if (number % 10 === 8) held?.();
    });
    const port = await between.open();
    try {
      const words = ['--port', `${port}`, '--pps', '400', '--ms', '500', '--size', '200'];
      const run = await generate('rate', ...words);
      // They are so few that any socket's buffer holds them all; the last ten may be cut anywhere.
      const tens = Math.floor((run.sent ?? 0) / 10);
      expect(tens).toBeGreaterThan(0);
      const about = (name: string, expected: number) => {
        expect(run[name], name).toBeGreaterThanOrEqual(expected - 1);
        expect(run[name], name).toBeLessThanOrEqual(expected + 2);
      };
      about('lost', tens);
      about('duplicate', tens);
      about('reordered', tens);
      expect((run.received ?? 0) + (run.lost ?? 0)).toBe(run.sent);
      expect(run.foreign).toBe(0);
    } finally {
      between.close();
    }
  });

  it('does not take the packets of others for its own', async () => {
    const stranger = createSocket('udp4');
    const between = new Between((_, send) => send());
    const port = await between.open();
    try {
      const run = generate('rate', '--port', `${port}`, '--pps', '400', '--ms', '300');
      const noise = setInterval(() => {
        if (between.target !== 0) stranger.send(Buffer.alloc(36, 1), between.target, LOOPBACK);
      }, 20);
      const result = await run;
      clearInterval(noise);
      expect(result.foreign).toBeGreaterThan(0);
      expect(result.received).toBeLessThanOrEqual(result.sent ?? 0);
      expect(result.duplicate).toBe(0);
    } finally {
      between.close();
      stranger.close();
    }
  });

  it('measures round trips, and counts the unanswered as lost instead of waiting for ever', async () => {
    // Passes questions on and no answers back.
    const between = new Between((_, send) => send());
    const port = await between.open();
    try {
      const direct = await generate(
        'echo',
        '--port',
        `${farPort}`,
        '--count',
        '50',
        '--gap-us',
        '0',
      );
      expect(direct).toMatchObject({ count: 50, lost: 0 });
      expect(direct.p50_us).toBeGreaterThan(0);
      expect(direct.p99_us).toBeGreaterThanOrEqual(direct.p50_us ?? 0);
      const words = ['--port', `${port}`, '--count', '1', '--gap-us', '0'];
      await expect(generate('echo', ...words)).rejects.toThrow(/no request was answered/);
    } finally {
      between.close();
    }
  });

  it.each([
    [['rate', '--pps'], /lacks its value/],
    [['rate', '--size', '20'], /--size must be a number from 44/],
    [['echo', '--colour', 'blue'], /unknown option --colour/],
    [['listen'], /first word/],
  ])('refuses %j', async (words, message) => {
    await expect(generate(...words)).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringMatching(message),
    });
  });
});
