/** The underlay: addresses in all forms, what may be told and used, and the MTU. */
import type { NetworkInterfaceInfo } from 'node:os';
import { describe, expect, it } from 'vitest';
import {
  endpointsOf,
  endpointText,
  isUsable,
  type LocalAddress,
  OwnNetworks,
  tapMtu,
  tapMtuOnEthernet,
} from '../../../gateway/underlay.js';
import { ipToBytes } from '../../../src/protocol/ip.js';

const address = (name: string, text: string): LocalAddress => ({
  interface: name,
  address: text,
  family: text.includes(':') ? 6 : 4,
  internal: name === 'lo',
});
const ADDRESSES = [
  address('lo', '127.0.0.1'),
  address('lo', '::1'),
  address('eth0', '2001:db8::5'),
  address('eth0', 'fe80::5'),
  address('eth0', '192.0.2.5'),
  address('eth1', '10.0.0.5'),
  address('eth1', '169.254.0.5'),
  address('pw0', '10.77.0.5'),
];
const RULES = { port: 51_820, exclude: ['pw0'], loopback: false, extra: [] };
const texts = (rules: Partial<Parameters<typeof endpointsOf>[0]>) =>
  endpointsOf({ ...RULES, ...rules }, ADDRESSES).map(endpointText);

describe('endpoints', () => {
  it('are the addresses of the underlay, never those of the TAP, loopback or link-local', () => {
    expect(texts({})).toEqual(['10.0.0.5:51820', '192.0.2.5:51820', '[2001:db8::5]:51820']);
  });

  it('are limited to a bound address or device', () => {
    expect(texts({ bind: '192.0.2.5' })).toEqual(['192.0.2.5:51820']);
    expect(texts({ device: 'eth1' })).toEqual(['10.0.0.5:51820']);
  });

  it('may be loopback where that is configured', () => {
    expect(texts({ loopback: true, device: 'lo' })).toEqual(['127.0.0.1:51820', '[::1]:51820']);
  });

  it('begin with configured ones, without repetition, and are at most 8', () => {
    const extra = ['203.0.113.7:1', '192.0.2.5:51820'];
    expect(texts({ extra })).toEqual([...extra, '10.0.0.5:51820', '[2001:db8::5]:51820']);
    expect(
      texts({ extra: Array.from({ length: 20 }, (_, i) => `203.0.113.${i + 1}:1`) }).length,
    ).toBe(8);
  });
});

describe('addresses of others', () => {
  it.each([
    '0.0.0.0',
    '127.0.0.1',
    '169.254.169.254',
    '224.0.0.251',
    '255.255.255.255',
    '::',
    '::1',
    'fe80::1',
    'ff02::1',
    '::ffff:127.0.0.1',
  ])('%s is not used', (text) =>
    expect(isUsable(ipToBytes(text) ?? Buffer.alloc(0), false)).toBe(false),
  );
  it.each(['10.1.2.3', '192.0.2.1', '2001:db8::1', 'fd00::1'])('%s is used', (text) =>
    expect(isUsable(ipToBytes(text) ?? Buffer.alloc(0), false)).toBe(true),
  );
});

describe('our own networks', () => {
  const of = (address: string, netmask: string) => ({ address, netmask }) as NetworkInterfaceInfo;
  const ip = (text: string) => ipToBytes(text) as Uint8Array;

  it('are those of all interfaces, of IPv4 and IPv6', () => {
    const networks = new OwnNetworks(() => ({
      lo: [of('127.0.0.1', '255.0.0.0')],
      eth0: [of('192.0.2.11', '255.255.255.128'), of('2001:db8:2::11', 'ffff:ffff:ffff:ffff::')],
    }));
    expect(networks.has(ip('192.0.2.127'))).toBe(true);
    expect(networks.has(ip('192.0.2.128'))).toBe(false);
    expect(networks.has(ip('2001:db8:2:0:ffff::1'))).toBe(true);
    expect(networks.has(ip('2001:db8:3::11'))).toBe(false);
    // Four bytes of an IPv6 address that happen to be those of one of ours.
    expect(networks.has(ip('c000:20b::'))).toBe(false);
    expect(new OwnNetworks(() => ({})).has(ip('192.0.2.1'))).toBe(false);
  });

  it('are what they were at the last look', () => {
    let netmask = '255.255.255.0';
    const networks = new OwnNetworks(() => ({ eth0: [of('192.0.2.11', netmask)] }));
    netmask = '255.255.255.128';
    expect(networks.has(ip('192.0.2.200'))).toBe(true);
    networks.look();
    expect(networks.has(ip('192.0.2.200'))).toBe(false);
  });
});

describe('text and bytes', () => {
  it.each([
    ['2001:db8::1', '[2001:db8::1]:1'],
    ['2001:0db8:0:0:1:0:0:1', '[2001:db8::1:0:0:1]:1'],
    ['fe80::1%eth0', '[fe80::1]:1'],
    ['::', '[::]:1'],
    ['1::', '[1::]:1'],
    ['64:ff9b::192.0.2.1', '[64:ff9b::c000:201]:1'],
    ['::ffff:192.0.2.1', '192.0.2.1:1'],
    ['192.0.2.1', '192.0.2.1:1'],
  ])('%s is %s', (text, expected) =>
    expect(endpointText({ ip: ipToBytes(text) ?? Buffer.alloc(0), port: 1 })).toBe(expected),
  );
  it('on an Ethernet a member is at a MAC address', () => {
    const ip = Buffer.from('02005e10000f', 'hex');
    expect(endpointText({ ip, port: 0 })).toBe('02:00:5e:10:00:0f');
  });
  it('what is no address has no bytes', () => {
    expect(ipToBytes('keys.example.net')).toBeUndefined();
    expect(endpointText({ ip: Buffer.alloc(0), port: 0 })).toBe('');
  });
});

describe('the MTU of a TAP', () => {
  it('is what is left of the underlay', () => {
    expect(tapMtu(1_500, 6)).toBe(1_398);
    expect(tapMtu(1_500, 4)).toBe(1_418);
    expect(tapMtu(9_000, 4)).toBe(8_918);
  });
  it('is 54 less on an Ethernet, where a group frame is sealed with its addresses', () => {
    expect(tapMtuOnEthernet(1_500)).toBe(1_446);
    expect(tapMtuOnEthernet(9_000)).toBe(8_946);
    expect(tapMtuOnEthernet(1_300)).toBe(1_280);
  });
  it('is never below what IPv6 needs', () => expect(tapMtu(1_280, 6)).toBe(1_280));
});
