/** gateway.yaml: the example loads, mistakes name file and line, the JSON Schema is up to date. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import {
  CONFIG_TITLE,
  defaultRunDir,
  gatewayConfigSchema,
  loadGatewayConfig,
  spinMicroseconds,
  splitHostPort,
} from '../../../gateway/config.js';
import { runPaths } from '../../../gateway/paths.js';
import { ConfigError, jsonSchemaOf } from '../../../src/settings/load-yaml.js';

const root = new URL('../../..', import.meta.url).pathname;
const KEY = Buffer.alloc(32, 7).toString('base64url');
const GOOD = {
  subnet: 'office',
  member: 'alice',
  servers: [{ address: '192.0.2.1:7900', key: KEY }],
  operator: KEY,
  ports: [{ name: 'host', interface: 'pw0' }],
};

describe('gateway.yaml', () => {
  let dir = '';
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'pairwire-config-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const load = (text: string) => {
    const path = join(dir, 'gateway.yaml');
    writeFileSync(path, text);
    return loadGatewayConfig(path);
  };
  const issuesOf = (text: string) => {
    try {
      load(text);
    } catch (thrown) {
      if (thrown instanceof ConfigError) return thrown;
      throw thrown;
    }
    throw new Error('it was accepted');
  };

  it('the example loads', () => {
    const config = loadGatewayConfig(join(root, 'config/gateway.example.yaml'));
    expect(config).toMatchObject({ subnet: 'office', member: 'alice', user: 'pairwire' });
  });

  it('the example of the transport ethernet, which stands in it as a comment, loads too', () => {
    const text = readFileSync(join(root, 'config/gateway.example.yaml'), 'utf8');
    const shown = /^# transport:\n((?:# {3}.*\n)+)/m
      .exec(text.slice(text.indexOf('straight on the Ethernet')))?.[0]
      .replace(/^# /gm, '');
    const { transport } = load(`${stringify(GOOD)}${shown}`);
    expect(transport).toEqual({ kind: 'ethernet', device: 'eth1' });
  });

  it('the example of a plain port, which stands in it as a comment, loads too and shows the defaults', () => {
    const text = readFileSync(join(root, 'config/gateway.example.yaml'), 'utf8');
    const shown = /^# ports:\n((?:# {3}.*\n)+)/m.exec(text)?.[0].replace(/^# /gm, '');
    const rest = { ...GOOD, ports: undefined };
    const [port] = load(`${stringify(rest)}${shown}`).ports;
    const least = { name: 'plain', kind: 'plain', interface: 'pw0', bridge: 'br0' };
    const [plain] = load(stringify({ ...GOOD, ports: [least] })).ports;
    expect(port).toEqual({ ...plain, bridgePorts: ['eth1'] });
  });

  it('a plain port has a bridge, and what carries the sealed frames is not in it', () => {
    const least = { name: 'plain', kind: 'plain', interface: 'pw0', bridge: 'br0' };
    const message = (port: object, transport: object = {}) =>
      issuesOf(stringify({ ...GOOD, ports: [{ ...least, ...port }], transport })).message;
    expect(message({ bridge: undefined })).toContain('bridge: is missing');
    expect(message({ addresses: ['10.0.0.1/24'] })).toContain('addresses: is not a setting');
    expect(message({ bridgePorts: Array.from({ length: 9 }, (_one, at) => `eth${at}`) })).toContain(
      'bridgePorts',
    );
    const bad = { ...GOOD, ports: [{ ...least, bridgePorts: ['eth1'] }] };
    const together = (transport: object) => () => load(stringify({ ...bad, transport }));
    expect(together({ device: 'eth1' })).toThrow('carries the sealed frames');
    expect(together({ kind: 'ethernet', device: 'eth1' })).toThrow('carries the sealed frames');
    expect(together({ kind: 'ethernet', device: 'br0' })).toThrow('carries the sealed frames');
    expect(together({ kind: 'ethernet', device: 'eth2' })).not.toThrow();
    const self = { ...GOOD, ports: [{ ...least, bridgePorts: ['pw0'] }] };
    expect(() => load(stringify(self))).toThrow('must differ');
  });

  it('the example of a link port, which stands in it as a comment, loads too', () => {
    const text = readFileSync(join(root, 'config/gateway.example.yaml'), 'utf8');
    const shown = /^# ports:\n(?:# {3}.*\n)+?# {5}kind: link\n(?:# {3}.*\n)+/m
      .exec(text.slice(text.indexOf('role link')))?.[0]
      .replace(/^# /gm, '');
    const [port] = load(`${stringify({ ...GOOD, ports: undefined })}${shown}`).ports;
    expect(port).toMatchObject({
      ...{ kind: 'link', level: 'udp', net: 'east', inside: ['pw0'] },
      nets: { west: { prefixes: ['10.78.0.0/24', 'fd78::/64'] } },
    });
  });

  it('the example of level ip loads, and it is on the transport ip, apart from its bridge', () => {
    const text = readFileSync(join(root, 'config/gateway.example.yaml'), 'utf8');
    const from = text.indexOf('as a bump in the wire');
    const shown = text
      .slice(
        text.indexOf('# ports:', from),
        text.indexOf('\n\n', text.indexOf('# transport:', from)),
      )
      .replace(/^# /gm, '');
    const config = load(
      `${stringify({ ...GOOD, ports: undefined, transport: undefined })}${shown}`,
    );
    expect(config.ports[0]).toMatchObject({ kind: 'link', level: 'ip', bridge: 'br0' });
    expect(config.transport).toEqual({ kind: 'ip', device: 'eth1' });
    const { ports } = config;
    const loading = (port: object, transport: object) => () =>
      load(stringify({ ...GOOD, ports: [{ ...ports[0], ...port }], transport }));
    const wire = { kind: 'ip', device: 'eth1' };
    expect(loading({}, wire)).not.toThrow();
    expect(loading({}, {})).toThrow('of level ip is on the transport ip');
    expect(loading({}, { kind: 'ip', device: 'br0' })).toThrow("can't be part of the bridge");
    expect(loading({ bridgePorts: ['eth1'] }, wire)).toThrow("can't be part of the bridge");
    expect(loading({ pass: ['tcp'] }, wire)).toThrow('pass');
    expect(loading({ inside: ['pw0'] }, wire)).toThrow('inside');
    expect(() => load(stringify({ ...GOOD, transport: wire }))).toThrow(
      'for link ports of level ip',
    );
  });
  it.each(['two', 'member', 'triangle', 'row-end', 'row-middle-a', 'row-middle-c'])(
    'the example of linked subnets link-%s.yaml loads',
    (name) => {
      const config = loadGatewayConfig(join(root, `config/examples/link-${name}.yaml`));
      expect(config.ports[0]?.kind).toBe(name === 'member' ? 'host' : 'link');
    },
  );

  it('a link port is on udp, and knows of each address which one subnet it is in', () => {
    const least = {
      ...{ name: 'link', kind: 'link', interface: 'link0', inside: ['pw0'] },
      prefixes: ['10.1.0.0/16'],
      nets: { west: { prefixes: ['10.2.0.0/16'] } },
    };
    const loading =
      (port: object, transport: object = {}) =>
      () =>
        load(stringify({ ...GOOD, ports: [{ ...least, ...port }], transport }));
    expect(loading({})).not.toThrow();
    expect(loading({}, { kind: 'ethernet', device: 'eth1' })).toThrow(
      'of level udp is on the transport udp',
    );
    expect(loading({ inside: ['link0'] })).toThrow('inside names the link itself');
    expect(loading({}, { device: 'pw0' })).toThrow('carries the sealed frames');
    expect(loading({ nets: {} })).toThrow('between 1 and 64 nets');
    expect(loading({ inside: undefined })).toThrow('inside');
    const nets = (one: string, other: string) => ({
      nets: { west: { prefixes: [one] }, north: { prefixes: [other] } },
    });
    expect(loading(nets('10.2.0.0/16', '10.3.0.0/16'))).not.toThrow();
    expect(loading(nets('10.2.0.0/16', '10.2.7.0/24'))).toThrow('is in two subnets');
    expect(loading(nets('10.2.0.0/16', '10.0.0.0/8'))).toThrow('is in two subnets');
  });

  it('every default that the example shows as a comment is the default', () => {
    const text = readFileSync(join(root, 'config/gateway.example.yaml'), 'utf8');
    const config = load(stringify(GOOD));
    const shown = (name: string) => new RegExp(`# ${name}: (\\S+)`).exec(text)?.[1];
    expect(shown('user')).toBe(config.user);
    expect(shown('dataplaneUser')).toBe(config.dataplaneUser);
    expect(shown('orphan')).toBe(String(config.orphan));
    const [port] = config.ports;
    if (port?.kind !== 'host') throw new Error('the default is not host');
    expect(shown('storm')).toBe(String(port.storm));
    expect(shown('forward')).toBe(String(port.forward));
    expect(shown('perPeer')).toBe(String(config.metrics.perPeer));
    if (config.transport.kind !== 'udp') throw new Error('the default is not udp');
    expect(shown('loopback')).toBe(String(config.transport.loopback));
  });

  it('defaults are filled in and the whole is frozen', () => {
    const config = load(stringify(GOOD));
    expect(config.transport).toEqual({ kind: 'udp', port: 51_820, endpoints: [], loopback: false });
    expect(config.run).toBe(defaultRunDir(dir));
    expect(Object.isFrozen(config.transport)).toBe(true);
  });

  it('the transport ethernet has an interface and nothing of udp', () => {
    const transport = { kind: 'ethernet', device: 'eth1' };
    expect(load(stringify({ ...GOOD, transport })).transport).toEqual(transport);
    const message = (changes: object) =>
      issuesOf(stringify({ ...GOOD, transport: { ...transport, ...changes } })).message;
    expect(message({ port: 51_820 })).toContain('transport.port: is not a setting');
    expect(message({ device: undefined })).toContain('transport.device: is missing');
    expect(message({ device: 'lo' })).toContain('lo is no Ethernet');
    expect(message({ device: 'eth1;x' })).toContain('an interface name');
    expect(message({ kind: 'pigeon' })).toContain('udp');
  });

  it('the run directory is absolute, one for each directory, and short enough for a socket', () => {
    expect(load(stringify({ ...GOOD, run: 'r' })).run).toBe(join(dir, 'r'));
    const long = join(dir, 'x'.repeat(200));
    expect(runPaths(defaultRunDir(long)).control.length).toBeLessThan(100);
    expect(defaultRunDir('/a/gateway')).not.toBe(defaultRunDir('/b/gateway'));
  });

  it('a mistake is reported with file, line and what is allowed', () => {
    const text = stringify({ ...GOOD, log: { level: 'loud' } });
    const error = issuesOf(text);
    const line = text.split('\n').findIndex((one) => one.includes('level: loud')) + 1;
    expect(error.code).toBe('CONFIG_INVALID');
    expect(error.message).toContain(`gateway.yaml:${line}:`);
    expect(error.message).toContain('must be one of: trace, debug, info, warn, error');
  });

  it.each([
    ['an unknown setting', { ...GOOD, colour: 'red' }, 'colour: is not a setting'],
    ['no member', { ...GOOD, member: undefined }, 'member: is missing'],
    [
      'a server without port',
      { ...GOOD, servers: [{ address: 'x', key: KEY }] },
      'must be HOST:PORT',
    ],
    ['a short key', { ...GOOD, operator: 'abc' }, 'a public key is 43 characters'],
    ['two ports', { ...GOOD, ports: [...GOOD.ports, ...GOOD.ports] }, 'one port in each gateway'],
    [
      'an interface name for a shell',
      { ...GOOD, ports: [{ name: 'host', interface: 'a;b' }] },
      'the name of a TAP',
    ],
    [
      'a library that nobody knows',
      { ...GOOD, performance: { backend: 'rot13' } },
      'must be one of: auto, ipsec-mb, libcrypto',
    ],
    ['an MTU below 1280', { ...GOOD, ports: [{ ...GOOD.ports[0], mtu: 500 }] }, '1280'],
  ])('%s is refused', (_what, config, message) => {
    expect(issuesOf(stringify(config)).message).toContain(message);
  });

  it('by itself nobody waits awake where cores are few, and a number is taken as it is', () => {
    const spin = gatewayConfigSchema.parse(GOOD).performance.spin;
    expect([1, 2, 3, 4, 64].map((cores) => spinMicroseconds(spin, cores))).toEqual([
      0, 0, 0, 200, 200,
    ]);
    expect(spinMicroseconds(50, 2)).toBe(50);
  });

  it('metrics never listen beyond this machine', () => {
    expect(() => load(stringify({ ...GOOD, metrics: { listen: '0.0.0.0:9464' } }))).toThrow(
      'must be a loopback address',
    );
  });

  it('config/schema/gateway.json is what the schema says', () => {
    const stored: unknown = JSON.parse(
      readFileSync(join(root, 'config/schema/gateway.json'), 'utf8'),
    );
    expect(stored).toEqual(
      JSON.parse(JSON.stringify(jsonSchemaOf(gatewayConfigSchema, CONFIG_TITLE))),
    );
  });
});

describe('HOST:PORT', () => {
  it.each([
    ['192.0.2.1:80', '192.0.2.1', 80],
    ['[2001:db8::1]:80', '2001:db8::1', 80],
    ['keys.example.net:7900', 'keys.example.net', 7900],
  ])('%s', (text, host, port) => expect(splitHostPort(text)).toEqual({ host, port }));

  it.each(['', ':80', 'host', 'host:0', 'host:65536', '2001:db8::1:80', 'a b:80', '[x]:80'])(
    'refuses %j',
    (text) => expect(splitHostPort(text)).toBeUndefined(),
  );
});
