/** Tests of datagram.ts, admission.ts, datagram-record.ts and replay-window.ts: vectors by another implementation, every decoder against any bytes. */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeBody, encodeBody } from '../../../../../src/net/channel-http.js';
import {
  Admission,
  COOKIE_SECRET_LIFETIME_MS,
  mac1Of,
  openCookieReply,
  publicMacKeys,
  stampOpening,
  TICKET_LIFETIME_MS,
} from '../../../../../src/protocol/channel/admission.js';
import {
  COOKIE_REPLY_SIZE,
  DatagramType,
  encodeOpening,
  MAX_MESSAGE_1,
  MIN_MESSAGE_1,
  type Opening,
  parseCookieReply,
  parseOpening,
  parseReset,
  RESET_SIZE,
} from '../../../../../src/protocol/channel/datagram.js';
import {
  DatagramOpener,
  DatagramSealer,
  FRAMES_AT,
} from '../../../../../src/protocol/channel/datagram-record.js';
import {
  parseDatagramWelcome,
  parseGreeting,
} from '../../../../../src/protocol/channel/handshake-payload.js';
import { generateKeyPair, keyPairFromPrivate } from '../../../../../src/protocol/channel/keys.js';
import { Direction } from '../../../../../src/protocol/channel/otp.js';
import { REPLAY_WINDOW, ReplayWindow } from '../../../../../src/protocol/channel/replay-window.js';
import { FakeClock } from '../../../../../src/runtime/clock.js';

const vectors = JSON.parse(
  readFileSync(new URL('../../../../vectors/channel.json', import.meta.url), 'utf8'),
) as {
  admission: Record<string, string> & { ticketTime: number };
  records: {
    key: string;
    otpKey: string;
    receiver: string;
    number: number;
    time: number;
    frames: string;
    datagram: string;
  }[];
};
const bytes = (name: string): Buffer => Buffer.from(vectors.admission[name] ?? '', 'hex');
const anyBytes = fc.uint8Array({ maxLength: 1_400 }).map((data) => Buffer.from(data));

function opening(datagram: Buffer): Opening {
  const parsed = parseOpening(datagram);
  if (parsed === undefined) throw new Error('not a message 1');
  return parsed;
}

describe('vectors', () => {
  const clock = new FakeClock({ wallMs: vectors.admission.ticketTime });
  const address = Buffer.from(vectors.admission.address ?? '', 'ascii');
  const fixed = [bytes('cookieSecret'), bytes('salt')];
  const server = new Admission(keyPairFromPrivate(bytes('serverPrivate')), clock, {
    random: () => fixed.shift() ?? randomBytes(32),
  });
  const keys = publicMacKeys(bytes('serverPublic'));
  const datagram = encodeOpening(DatagramType.message1, bytes('sender'), bytes('noise'));

  it('mac1, cookie and mac2', () => {
    stampOpening(datagram, keys);
    expect(mac1Of(datagram)).toEqual(bytes('mac1'));
    const reply = server.cookieReply(opening(datagram), address);
    expect(reply).toEqual(bytes('cookieReply'));
    const cookie = openCookieReply(reply, keys, mac1Of(datagram));
    expect(cookie).toEqual(bytes('cookie'));
    stampOpening(datagram, keys, { cookie: bytes('cookie') });
    expect(datagram).toEqual(bytes('withCookie'));
    expect(server.judge(opening(datagram), address)).toBe('address');
  });

  it('ticket and reset', () => {
    stampOpening(datagram, keys, { ticket: { name: bytes('ticket'), key: bytes('ticketKey') } });
    expect(datagram).toEqual(bytes('withTicket'));
    expect(server.judge(opening(datagram), address)).toBe('known');
    expect(server.resetToken(bytes('channel'))).toEqual(bytes('resetToken'));
  });

  it('records', () => {
    for (const vector of vectors.records) {
      const [key, otpKey, receiver, frames] = [
        Buffer.from(vector.key, 'hex'),
        Buffer.from(vector.otpKey, 'hex'),
        Buffer.from(vector.receiver, 'hex'),
        Buffer.from(vector.frames, 'hex'),
      ];
      const sealer = new DatagramSealer(key, otpKey, Direction.toResponder, receiver);
      const plain = (): Buffer => Buffer.concat([Buffer.alloc(FRAMES_AT), frames]);
      for (let skipped = 0; skipped < vector.number; skipped += 1)
        sealer.seal(plain(), vector.time);
      expect(sealer.seal(plain(), vector.time).toString('hex')).toBe(vector.datagram);
      const opener = new DatagramOpener(key, otpKey, Direction.toResponder);
      const datagram = Buffer.from(vector.datagram, 'hex');
      const opened = opener.open(datagram, vector.time, 30_000);
      expect(opened).toMatchObject({ ok: true, newest: true });
      if (opened.ok) expect(opened.frames).toEqual(frames);
      expect(opener.open(datagram, vector.time, 30_000)).toEqual({ ok: false, reason: 'replayed' });
    }
  });
});

describe('admission', () => {
  const staticKeys = generateKeyPair();
  const keys = publicMacKeys(staticKeys.publicKey);
  const here = Buffer.from('192.0.2.7:4000');
  const make = (): Buffer => encodeOpening(DatagramType.message1, randomBytes(8), randomBytes(100));

  it('a message 1 for another server is a stranger', () => {
    const server = new Admission(staticKeys, new FakeClock());
    const datagram = make();
    stampOpening(datagram, publicMacKeys(generateKeyPair().publicKey));
    expect(server.isOurs(opening(datagram))).toBe(false);
    stampOpening(datagram, keys);
    expect(server.judge(opening(datagram), here)).toBe('unproven');
  });

  it('a cookie is good at one address, for one server, for two to four minutes', () => {
    const clock = new FakeClock();
    const server = new Admission(staticKeys, clock);
    const datagram = make();
    stampOpening(datagram, keys);
    const reply = server.cookieReply(opening(datagram), here);
    expect(openCookieReply(reply, keys, randomBytes(16))).toBeUndefined();
    const cookie = openCookieReply(reply, keys, mac1Of(datagram));
    if (cookie === undefined) throw new Error('no cookie');
    stampOpening(datagram, keys, { cookie });
    const judge = (address = here) => server.judge(opening(datagram), address);
    expect(judge()).toBe('address');
    expect(judge(Buffer.from('192.0.2.7:4001'))).toBe('unproven');
    expect(new Admission(staticKeys, clock).judge(opening(datagram), here)).toBe('unproven');
    clock.advance(COOKIE_SECRET_LIFETIME_MS);
    expect(judge()).toBe('address');
    clock.advance(COOKIE_SECRET_LIFETIME_MS);
    expect(judge()).toBe('unproven');
  });

  it('a ticket counts once, for the message that it was put on, within a week, after a restart too', () => {
    const clock = new FakeClock();
    const ticket = new Admission(staticKeys, clock).ticket();
    const datagram = make();
    stampOpening(datagram, keys, { ticket });
    const restarted = new Admission(staticKeys, clock);
    const altered = Buffer.from(datagram);
    altered[20] = (altered[20] ?? 0) ^ 1;
    expect(restarted.isOurs(opening(altered))).toBe(false);
    expect(restarted.judge(opening(datagram), here)).toBe('known');
    expect(restarted.judge(opening(datagram), here)).toBe('unproven');
    const other = new Admission(generateKeyPair(), clock);
    expect(other.isOurs(opening(datagram))).toBe(false);
    const late = new Admission(staticKeys, clock);
    clock.advance(TICKET_LIFETIME_MS + 1);
    expect(late.judge(opening(datagram), here)).toBe('unproven');
  });
});

describe('used tickets', () => {
  it('so many are remembered; with one more the oldest counts again, and that is counted', () => {
    const staticKeys = generateKeyPair();
    const keys = publicMacKeys(staticKeys.publicKey);
    let forgotten = 0;
    const server = new Admission(staticKeys, new FakeClock(), {
      forgotten: () => {
        forgotten += 1;
      },
    });
    const here = Buffer.from('192.0.2.7:4000');
    const use = (): Opening => {
      const datagram = encodeOpening(DatagramType.message1, randomBytes(8), Buffer.alloc(100, 1));
      stampOpening(datagram, keys, { ticket: server.ticket() });
      const made = opening(datagram);
      expect(server.judge(made, here)).toBe('known');
      return made;
    };
    const first = use();
    const second = use();
    for (let n = 2; n < 16_384; n += 1) use();
    expect(server.judge(first, here)).toBe('unproven');
    expect(forgotten).toBe(0);
    use();
    expect(forgotten).toBe(1);
    // The second is still known as used; the first counts once more, which costs the second its place.
    expect(server.judge(second, here)).toBe('unproven');
    expect(server.judge(first, here)).toBe('known');
    expect(server.judge(first, here)).toBe('unproven');
  }, 60_000);
});

describe('the window of record numbers', () => {
  it('takes each number once, in any order, as a plain set does', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(3 * REPLAY_WINDOW), { maxLength: 300 }), (numbers) => {
        const window = new ReplayWindow();
        const seen = new Set<number>();
        let highest = -1;
        for (const number of numbers) {
          const allowed = !seen.has(number) && number > highest - REPLAY_WINDOW;
          expect(window.allows(number)).toBe(allowed);
          if (!allowed) continue;
          window.mark(number);
          seen.add(number);
          highest = Math.max(highest, number);
        }
      }),
    );
  });

  it('forgets nothing over a jump and the whole way round', () => {
    const window = new ReplayWindow();
    window.mark(0);
    window.mark(REPLAY_WINDOW - 1);
    expect(window.allows(0)).toBe(false);
    window.mark(REPLAY_WINDOW);
    expect(window.allows(0)).toBe(false);
    expect(window.allows(1)).toBe(true);
    expect(window.allows(REPLAY_WINDOW - 1)).toBe(false);
    window.mark(10 * REPLAY_WINDOW);
    expect(window.allows(9 * REPLAY_WINDOW)).toBe(false);
    expect(window.allows(9 * REPLAY_WINDOW + 1)).toBe(true);
  });
});

describe('every decoder', () => {
  it('takes any bytes without a throw, and no message 1 of a wrong size', () => {
    fc.assert(
      fc.property(anyBytes, fc.nat(7), (data, type) => {
        for (const datagram of [data, Buffer.concat([Buffer.from([type]), data])]) {
          const parsed = parseOpening(datagram);
          if (parsed !== undefined) {
            expect(datagram.length).toBeGreaterThanOrEqual(MIN_MESSAGE_1);
            expect(datagram.length).toBeLessThanOrEqual(MAX_MESSAGE_1);
            expect(parsed.noise.length).toBeLessThan(datagram.length);
          }
          if (parseCookieReply(datagram) !== undefined) {
            expect(datagram.length).toBe(COOKIE_REPLY_SIZE);
          }
          if (parseReset(datagram) !== undefined) expect(datagram.length).toBe(RESET_SIZE);
          parseGreeting(datagram, true);
          parseDatagramWelcome(datagram);
        }
      }),
    );
  });

  it('opens no record that was altered, cut or lengthened', () => {
    const key = randomBytes(32);
    const sealer = new DatagramSealer(key, key, Direction.toResponder, randomBytes(8));
    const record = sealer.seal(Buffer.alloc(FRAMES_AT + 50), 1_000);
    const opener = new DatagramOpener(key, key, Direction.toResponder);
    fc.assert(
      fc.property(fc.nat(record.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const altered = Buffer.from(record);
        altered[at] = (altered[at] ?? 0) ^ flip;
        // The type is the adapter's to look at, and authenticated as well.
        expect(opener.open(altered, 1_000, 30_000).ok).toBe(false);
        expect(opener.open(record.subarray(0, at), 1_000, 30_000).ok).toBe(false);
        expect(opener.open(Buffer.concat([record, altered]), 1_000, 30_000).ok).toBe(false);
      }),
    );
    expect(opener.open(record, 32_000, 30_000)).toEqual({ ok: false, reason: 'otp' });
    expect(opener.open(record, 1_000, 30_000).ok).toBe(true);
  });

  it('a body of datagrams survives the way there and back, and any other bytes are refused or a row', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 })), (parts) => {
        const datagrams = parts.map((part) => Buffer.from(part));
        expect(decodeBody(encodeBody(datagrams))).toEqual(datagrams);
      }),
    );
    fc.assert(
      fc.property(anyBytes, (body) => {
        const datagrams = decodeBody(body);
        if (datagrams !== undefined) expect(encodeBody(datagrams)).toEqual(body);
      }),
    );
  });
});
