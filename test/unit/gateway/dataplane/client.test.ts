/** The data-plane client: commands and answers of a real one; and one that lies, babbles or is silent. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { DataPlaneClient } from '../../../../gateway/dataplane/client.js';
import { encodeMessage, MessageReader } from '../../../../gateway/dataplane/framing.js';
import { DataPlaneLink } from '../../../../gateway/dataplane/link.js';
import { type Event, MAX_MESSAGE } from '../../../../gateway/dataplane/messages.gen.js';
import { parseId } from '../../../../src/protocol/ids.js';
import { defaultMac } from '../../../../src/protocol/mac.js';
import { PairwireError } from '../../../../src/runtime/errors.js';
import { TestDataPlane } from '../support/data-plane.js';
import { HostileDataPlane } from '../support/hostile-data-plane.js';
import { until } from '../support/until.js';

const MAC = defaultMac(parseId('east'), 'alice');

let dir = '';
let path = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pw-dp-'));
  path = join(dir, 's');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

async function startPlane(): Promise<TestDataPlane> {
  const plane = await TestDataPlane.make(path, MAC);
  onTestFinished(() => plane.close());
  return plane;
}

interface Heard {
  client: DataPlaneClient;
  events: Event[];
  closed: Promise<PairwireError>;
}

async function connected(): Promise<Heard> {
  const events: Event[] = [];
  let ended: (error: PairwireError) => void = () => {};
  const closed = new Promise<PairwireError>((resolve) => {
    ended = resolve;
  });
  const client = await DataPlaneClient.connect(path, {
    event: (event) => events.push(event),
    close: (error) => ended(error),
  });
  return { client, events, closed };
}

describe('the data-plane client', () => {
  it('asks and is answered, many at once', async () => {
    await startPlane();
    const { client, closed } = await connected();
    const attached = await client.request('attach', { epoch: 5 });
    expect(attached).toMatchObject({ version: 1, ports: [] });
    expect(attached.instance).toHaveLength(16);
    expect(attached.backends).toContain('libcrypto');
    const answers = await Promise.all(
      Array.from({ length: 500 }, () => client.request('stats', {})),
    );
    expect(answers.every((answer) => answer.t === 'stats')).toBe(true);
    await expect(client.request('attach', { epoch: 5 })).rejects.toMatchObject({
      code: 'DATAPLANE_REFUSED',
    });
    await expect(client.request('boot.make', { port: 1 })).rejects.toMatchObject({
      code: 'DATAPLANE_REFUSED',
      message: expect.stringContaining('unknown port'),
    });
    client.close();
    await expect(client.request('stats', {})).rejects.toMatchObject({ code: 'DATAPLANE_GONE' });
    expect((await closed).code).toBe('DATAPLANE_GONE');
  });

  it('who only observes gives no orders, and a higher epoch takes them over', async () => {
    await startPlane();
    const first = await connected();
    const second = await connected();
    await second.client.request('observe', {});
    await second.client.request('stats', {});
    await expect(second.client.request('wipe', {})).rejects.toMatchObject({
      code: 'DATAPLANE_REFUSED',
    });
    await first.client.request('attach', { epoch: 5 });
    await second.client.request('attach', { epoch: 6 });
    expect((await first.closed).code).toBe('DATAPLANE_GONE');
    await second.client.request('wipe', {});
    second.client.close();
  });

  it('a data plane that dies fails what was asked', async () => {
    const plane = await startPlane();
    const { client, closed } = await connected();
    await client.request('observe', {});
    plane.freeze();
    const asked = expect(client.request('stats', {})).rejects.toMatchObject({
      code: 'DATAPLANE_GONE',
    });
    await plane.kill();
    await asked;
    expect((await closed).code).toBe('DATAPLANE_GONE');
    await expect(client.request('stats', {})).rejects.toMatchObject({ code: 'DATAPLANE_GONE' });
  });

  it('nobody there is an error with a hint', async () => {
    await expect(connected()).rejects.toMatchObject({ code: 'DATAPLANE_GONE' });
  });

  it('a data plane that does not answer is given up', async () => {
    const plane = await startPlane();
    const { client, closed } = await connected();
    plane.freeze();
    const asked = client.request('stats', {}, 50);
    await expect(asked).rejects.toMatchObject({ code: 'DATAPLANE_GONE' });
    expect((await closed).message).toContain('50 ms');
  });

  it('random bytes end the connection and nothing else', async () => {
    let bytes: Buffer = Buffer.alloc(0);
    const server = await HostileDataPlane.listen(path, (socket) => socket.end(bytes));
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 4_096 }), async (random) => {
        bytes = Buffer.from(random);
        const { client, events } = await connected();
        await expect(client.request('stats', {}, 2_000)).rejects.toBeInstanceOf(PairwireError);
        expect(events).toEqual([]);
      }),
      { numRuns: 100 },
    );
    await server.close();
  });

  it('framed random bytes, nested arrays and huge lengths end the connection', async () => {
    const frames: Buffer[] = [
      Buffer.from('ffffffff', 'hex'),
      Buffer.from('00000000', 'hex'),
      framed(Buffer.alloc(1_000, 0x91)),
      framed(Buffer.from('dd7fffffff', 'hex')),
      framed(Buffer.from('c1', 'hex')),
    ];
    let bytes: Buffer = Buffer.alloc(0);
    const server = await HostileDataPlane.listen(path, (socket) => socket.end(bytes));
    for (const frame of frames) {
      bytes = frame;
      const { client, closed } = await connected();
      await expect(client.request('stats', {})).rejects.toMatchObject({
        code: 'DATAPLANE_PROTOCOL',
      });
      expect((await closed).code).toBe('DATAPLANE_PROTOCOL');
    }
    await server.close();
  });

  it.each([
    ['an answer to no question', { t: 'done', id: 77 }],
    ['an answer of another type', { t: 'done', id: 1 }],
    ['an event with a field too many', { t: 'miss.group', port: 1, extra: 1 }],
    ['an event with a field too long', { t: 'log', level: 1, text: 'x'.repeat(501) }],
    ['an event nobody knows', { t: 'give.keys', port: 1 }],
  ])('%s ends the connection', async (_what, message) => {
    const server = await HostileDataPlane.listen(path, (socket) =>
      socket.write(encodeMessage(message)),
    );
    const { client, events, closed } = await connected();
    await expect(client.request('stats', {})).rejects.toMatchObject({ code: 'DATAPLANE_PROTOCOL' });
    expect((await closed).code).toBe('DATAPLANE_PROTOCOL');
    expect(events).toEqual([]);
    await server.close();
  });

  it('a flood of events is cut to what we take', async () => {
    const one = encodeMessage({ t: 'miss.group', port: 1 });
    const server = await HostileDataPlane.listen(path, (socket) => {
      for (let i = 0; i < 20_000; i += 1) socket.write(one);
      socket.write(encodeMessage({ t: 'failed', id: 1, why: 'enough' }));
    });
    const { client, events } = await connected();
    await expect(client.request('stats', {})).rejects.toMatchObject({ code: 'DATAPLANE_REFUSED' });
    expect(events.length).toBeLessThan(10_000);
    expect(events.length + client.eventsRefused).toBe(20_000);
    client.close();
    await server.close();
  });
});

describe('framing', () => {
  it('messages come out whole, however the stream is cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 64 }), { minLength: 1, maxLength: 20 }),
        fc.integer({ min: 1, max: 17 }),
        (bodies, step) => {
          const stream = Buffer.concat(bodies.map((b) => encodeMessage({ b })));
          const reader = new MessageReader();
          const got: unknown[] = [];
          for (let at = 0; at < stream.length; at += step) {
            got.push(...reader.push(stream.subarray(at, at + step)));
          }
          expect(got).toEqual(bodies.map((b) => ({ b: Buffer.from(b) })));
        },
      ),
    );
  });

  it('a message that is too long is never sent', () => {
    expect(() => encodeMessage({ b: Buffer.alloc(MAX_MESSAGE) })).toThrow('longer');
  });
});

describe('the link', () => {
  it('finds the data plane again and attaches with a higher epoch', async () => {
    const plane = await startPlane();
    let epoch = 0;
    const attached: { epoch: number; instance: string }[] = [];
    const link = new DataPlaneLink(
      path,
      () => {
        epoch += 1;
        return epoch;
      },
      {
        attached: (answer) => {
          attached.push({ epoch, instance: Buffer.from(answer.instance).toString('hex') });
        },
        event: () => {},
        gone: () => {},
      },
    );
    link.start();
    await until('attached', () => attached.length === 1);
    await plane.kill();
    await until('gone', () => link.state !== 'attached');
    await plane.start();
    await until('attached again', () => attached.length === 2);
    const [first, second] = attached;
    expect(second?.epoch).toBeGreaterThan(first?.epoch ?? 0);
    expect(second?.instance).not.toBe(first?.instance);
    expect(link.restarts).toBe(1);
    // The same one again is no restart: a change of the cipher does that.
    link.reattach();
    await until('attached once more', () => attached.length === 3);
    expect(attached[2]?.instance).toBe(second?.instance);
    expect(link.restarts).toBe(1);
    await link.stop();
    expect(link.state).toBe('stopped');
  });
});

function framed(body: Buffer): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, body]);
}
