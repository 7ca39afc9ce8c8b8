/** Tests of src/net/address.ts and prefix-limit.ts: addresses with and without a scheme, prefixes. */
import { describe, expect, it } from 'vitest';
import { formatChannelAddress, parseChannelAddress } from '../../../../src/net/address.js';
import { PrefixLimit, prefixOf } from '../../../../src/net/prefix-limit.js';
import { FakeClock } from '../../../../src/runtime/clock.js';

describe('an address', () => {
  it.each([
    ['192.0.2.1:7900', 'tcp', '192.0.2.1', 7900],
    ['tcp://192.0.2.1:7900', 'tcp', '192.0.2.1', 7900],
    ['udp://keys.example.net:7900', 'udp', 'keys.example.net', 7900],
    ['http://[2001:db8::1]:80', 'http', '2001:db8::1', 80],
  ] as const)('%s', (text, scheme, host, port) => {
    const address = parseChannelAddress(text);
    expect(address).toEqual({ scheme, host, port });
    if (address === undefined) return;
    expect(parseChannelAddress(formatChannelAddress(address))).toEqual(address);
  });

  it.each(['', 'here', 'ftp://a:1', 'udp://a', 'udp://a:0', 'http://a:80/x', '//a:1', 'a:65536'])(
    'not "%s"',
    (text) => expect(parseChannelAddress(text)).toBeUndefined(),
  );

  it('reads as it always did without a scheme', () => {
    expect(formatChannelAddress({ host: '2001:db8::1', port: 1 })).toBe('[2001:db8::1]:1');
    expect(formatChannelAddress({ scheme: 'udp', host: 'a', port: 1 })).toBe('udp://a:1');
  });
});

describe('a limit by prefix', () => {
  it('knows /32 and /64, and mapped addresses', () => {
    expect(prefixOf('192.0.2.1')).toBe('192.0.2.1');
    expect(prefixOf('::ffff:192.0.2.1')).toBe('192.0.2.1');
    expect(prefixOf('2001:db8:0:7::1')).toBe('2001:db8:0:7');
    expect(prefixOf('2001:db8:0:7:ffff:ffff:ffff:1')).toBe('2001:db8:0:7');
    expect(prefixOf('2001:DB8::1')).toBe('2001:db8:0:0');
    expect(prefixOf('fe80::1%eth0')).toBe('fe80:0:0:0');
    expect(prefixOf('::1')).toBe('0:0:0:0');
  });

  it('gives each its burst and its rate, and remembers a bounded number', () => {
    const clock = new FakeClock();
    const limit = new PrefixLimit(clock, { burst: 2, perSecond: 1 });
    expect([1, 2, 3].map(() => limit.take('192.0.2.1'))).toEqual([true, true, false]);
    expect(limit.take('192.0.2.2')).toBe(true);
    expect(limit.take('2001:db8::1')).toBe(true);
    expect(limit.take('2001:db8::2')).toBe(true);
    expect(limit.take('2001:db8::3')).toBe(false);
    clock.advance(1_000);
    expect([1, 2].map(() => limit.take('192.0.2.1'))).toEqual([true, false]);
    for (let i = 0; i < 10_000; i += 1) limit.take(`10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`);
    // Forgotten, so it begins anew.
    expect(limit.take('192.0.2.1')).toBe(true);
  });
});
