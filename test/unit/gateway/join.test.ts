/** `join` against a real key server in this process: once, again, after a crash, and with wrong tokens. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join as joinPath } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { loadGatewayConfig } from '../../../gateway/config.js';
import { loadIdentity } from '../../../gateway/identity.js';
import { type JoinOptions, join } from '../../../gateway/join.js';
import { gatewayPaths } from '../../../gateway/paths.js';
import { parseId } from '../../../src/protocol/ids.js';
import { formatToken, type Token } from '../../../src/protocol/token.js';
import { TestSubnet } from '../keyserver/support/subnet.js';

let subnet: TestSubnet;
beforeAll(async () => {
  subnet = await TestSubnet.start();
});
afterAll(() => subnet.close());

describe('join', () => {
  let dir = '';
  beforeEach(() => {
    dir = joinPath(mkdtempSync(joinPath(tmpdir(), 'pairwire-join-')), 'gateway');
  });
  afterEach(() => rmSync(joinPath(dir, '..'), { recursive: true, force: true }));

  const options = (token: Token, more: Partial<JoinOptions> = {}): JoinOptions => ({
    dir,
    token: formatToken(token),
    interface: 'pw0',
    addresses: ['10.7.0.1/24'],
    port: 51_900,
    timeoutMs: 3_000,
    ...more,
  });

  it('enrols, and leaves what `up` needs, readable by its owner only', async () => {
    const joined = await join(options(subnet.token({ id: 'alice' })));
    expect(joined).toMatchObject({
      subnet: 'east',
      member: 'alice',
      role: 'host',
      configKept: false,
    });
    const paths = gatewayPaths(dir);
    const config = loadGatewayConfig(paths.config);
    expect(config.ports[0]).toMatchObject({ interface: 'pw0', addresses: ['10.7.0.1/24'] });
    expect(config.transport).toMatchObject({ kind: 'udp', port: 51_900 });
    const operator = Buffer.from(config.operator, 'base64url');
    expect(loadIdentity(paths, config.subnet, config.member, operator).member.id).toBe('alice');
    for (const file of readdirSync(dir)) {
      expect([file, statSync(joinPath(dir, file)).mode & 0o777]).toEqual([file, 0o600]);
    }
    expect((await subnet.store.member(config.member))?.id).toBe('alice');
  });

  it('the same command again changes nothing, though the token has one use', async () => {
    const token = subnet.token({ id: 'bob' });
    await join(options(token));
    const before = snapshot(dir);
    const again = await join(options(token));
    expect(again.configKept).toBe(true);
    expect(snapshot(dir)).toEqual(before);
  });

  it('after a crash before gateway.yaml the same keys are enrolled', async () => {
    const token = subnet.token({ id: 'carol' });
    await join(options(token));
    const before = snapshot(dir);
    rmSync(gatewayPaths(dir).config);
    await join(options(token));
    expect(snapshot(dir)).toEqual(before);
  });

  it('after a crash before enrolment the keys on the disk are used', async () => {
    const token = subnet.token({ id: 'dave' });
    await subnet.stopServer();
    await expect(join(options(token, { timeoutMs: 300 }))).rejects.toThrow(
      'no key server could be reached',
    );
    const keys = readFileSync(gatewayPaths(dir).identity, 'utf8');
    await subnet.startServer();
    await join(options(token));
    expect(readFileSync(gatewayPaths(dir).identity, 'utf8')).toBe(keys);
  });

  it('a directory belongs to one member', async () => {
    await join(options(subnet.token({ id: 'erin' })));
    const before = snapshot(dir);
    await expect(join(options(subnet.token({ id: 'frank' })))).rejects.toMatchObject({
      code: 'FILE_EXISTS',
    });
    expect(snapshot(dir)).toEqual(before);
  });

  it('a token for several ids wants one named', async () => {
    const token = subnet.token({ id: 'web-*', uses: 5 });
    await expect(join(options(token))).rejects.toMatchObject({ code: 'USAGE' });
    await expect(join(options(token, { id: 'db-1' }))).rejects.toMatchObject({ code: 'USAGE' });
    expect((await join(options(token, { id: 'web-1' }))).member).toBe('web-1');
  });

  it('another machine with the used token is refused', async () => {
    const token = subnet.token({ id: 'grace' });
    await join(options(token));
    const other = joinPath(dir, '..', 'other');
    await expect(join(options(token, { dir: other }))).rejects.toMatchObject({ code: 'REFUSED' });
  });

  it('a token that was changed on the way is refused before anybody is asked', async () => {
    const good = subnet.token({ id: 'heidi' });
    const foreign = await TestSubnet.start();
    try {
      const forged = { ...good, operator: foreign.token({ id: 'heidi' }).operator };
      await expect(join(options(forged))).rejects.toMatchObject({ code: 'RECORD_SIGNATURE' });
    } finally {
      await foreign.close();
    }
    await expect(join(options(good, { token: 'pwt1_nonsense' }))).rejects.toMatchObject({
      code: 'TOKEN_MALFORMED',
    });
  });

  it('on the transport ethernet an interface is named, and no UDP port', async () => {
    const token = subnet.token({ id: 'judy' });
    const lan = { transport: 'ethernet' as const, device: 'eth1' };
    await expect(join(options(token, lan))).rejects.toMatchObject({ code: 'USAGE' });
    await join(options(token, { ...lan, port: undefined }));
    const { transport } = loadGatewayConfig(gatewayPaths(dir).config);
    expect(transport).toEqual({ kind: 'ethernet', device: 'eth1' });
  });

  it('a token of the role link gives a port to other nets, and no other token does', async () => {
    const token: Token = {
      ...subnet.token({ id: 'link', role: 'link' }),
      net: parseId('east-net'),
    };
    const link = {
      ...{ addresses: [], interface: 'link0', prefixes: ['10.1.0.0/16'], inside: ['pw0'] },
      nets: { west: ['10.2.0.0/16', '10.3.0.0/16'] },
    };
    for (const missing of [{ prefixes: [] }, { nets: {} }]) {
      await expect(join(options(token, { ...link, ...missing }))).rejects.toThrow(
        'a link port knows its own prefixes',
      );
    }
    for (const odd of [{ inside: [] }, { bridge: 'br0' }, { pass: ['ospf'] }]) {
      await expect(join(options(token, { ...link, ...odd }))).rejects.toThrow(
        'a link of level udp has interfaces that lead into our subnet',
      );
    }
    await expect(join(options(subnet.token({ id: 'gina' }), link))).rejects.toThrow(
      'only link has other nets',
    );
    await expect(join(options(token, { ...link, forward: ['eth1'] }))).rejects.toThrow(
      '--forward is for hosts',
    );
    expect((await join(options(token, link))).role).toBe('link');
    const config = loadGatewayConfig(gatewayPaths(dir).config);
    expect(config.ports[0]).toMatchObject({
      ...{ kind: 'link', net: 'east-net', inside: ['pw0'], prefixes: ['10.1.0.0/16'] },
      nets: { west: { prefixes: ['10.2.0.0/16', '10.3.0.0/16'] } },
    });
  });

  it('a link of level ip is between a bridge and an interface to the router', async () => {
    const token = subnet.token({ id: 'wire', role: 'link' });
    const wire = {
      ...{ addresses: [], interface: 'link0', prefixes: ['10.1.0.0/16'], port: undefined },
      ...{ nets: { west: ['10.2.0.0/16'] }, transport: 'ip' as const, pass: ['ospf'] },
      ...{ bridge: 'br0', device: 'eth1' },
    };
    const { bridge, device, ...neither } = wire;
    await expect(join(options(token, { ...neither, device }))).rejects.toThrow('between a bridge');
    await expect(join(options(token, { ...neither, bridge }))).rejects.toThrow('has an interface');
    for (const odd of [{ inside: ['pw0'] }, { addresses: ['10.1.0.9/16'] }]) {
      await expect(join(options(token, { ...wire, ...odd }))).rejects.toThrow('between a bridge');
    }
    await expect(join(options(token, { ...wire, pass: ['tcp'] }))).rejects.toThrow(
      'what may pass in clear is one of icmp, igmp',
    );
    await join(options(token, wire));
    const config = loadGatewayConfig(gatewayPaths(dir).config);
    expect(config.ports[0]).toMatchObject({ level: 'ip', bridge: 'br0', pass: ['ospf'] });
    expect(config.transport).toEqual({ kind: 'ip', device: 'eth1' });
  });

  it('a host may be told where it may forward to', async () => {
    await join(options(subnet.token({ id: 'router' }), { forward: ['link0'] }));
    expect(loadGatewayConfig(gatewayPaths(dir).config).ports[0]).toMatchObject({
      forward: ['link0'],
    });
  });

  it('a token of the role plain gives a port in a bridge, and no other token does', async () => {
    const token = subnet.token({ id: 'gate', role: 'plain' });
    const plain = { addresses: [], bridge: 'br0', bridgePorts: ['eth1'] };
    await expect(join(options(token))).rejects.toThrow('a plain port has a bridge');
    await expect(join(options(token, { ...plain, addresses: ['10.7.0.1/24'] }))).rejects.toThrow(
      'no addresses of its own',
    );
    await expect(join(options(subnet.token({ id: 'greta' }), plain))).rejects.toThrow(
      'only plain has a bridge',
    );
    expect((await join(options(token, plain))).role).toBe('plain');
    expect(loadGatewayConfig(gatewayPaths(dir).config).ports[0]).toMatchObject({
      kind: 'plain',
      bridge: 'br0',
      bridgePorts: ['eth1'],
      broadcast: 'all',
      stp: 'drop',
      learnSeconds: 300,
    });
  });

  it('options that gateway.yaml would refuse are refused before keys are made', async () => {
    const token = subnet.token({ id: 'ivan' });
    await expect(join(options(token, { interface: 'a b' }))).rejects.toMatchObject({
      code: 'USAGE',
    });
    await expect(join(options(token, { addresses: ['nonsense'] }))).rejects.toMatchObject({
      code: 'USAGE',
    });
    expect(() => readdirSync(dir)).toThrow();
  });
});

function snapshot(dir: string): Record<string, string> {
  return Object.fromEntries(
    readdirSync(dir).map((file) => [file, readFileSync(joinPath(dir, file), 'latin1')]),
  );
}
