/**
 * The agent between a real key server and a real data plane: start, misses, and everything that may
 * restart. Looked at from outside: frames that arrive, the data plane's own figures, the status.
 */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Status, statusSchema } from '../../../gateway/status/snapshot.js';
import { askGateway } from '../../../gateway/status/socket.js';
import { BROADCAST_MAC, defaultMac } from '../../../src/protocol/mac.js';
import { SUBNET, TestSubnet } from '../keyserver/support/subnet.js';
import { TestGateway } from './support/gateway.js';
import { renderedMetrics } from './support/metrics.js';
import { until } from './support/until.js';

const NOBODY = defaultMac(SUBNET, 'nobody');
/** Far more than it takes, far less than any interval at which anybody looks again by himself. */
const SOON_MS = 3_000;

const statusUntil = (gateway: TestGateway, what: string, holds: (status: Status) => boolean) =>
  until(what, async () => holds(await gateway.status()));
const connected = (gateway: TestGateway) =>
  statusUntil(gateway, 'connected', (status) => status.server.connected);
const portOf = async (gateway: TestGateway) => (await gateway.status()).ports[0];

describe('the agent', () => {
  let subnet: TestSubnet;
  let alice: TestGateway;
  let bob: TestGateway;
  const opened: { close(): Promise<void> }[] = [];
  async function gateway(id: string): Promise<TestGateway> {
    const made = await TestGateway.make(subnet, id);
    opened.unshift(made);
    return made;
  }
  beforeEach(async () => {
    subnet = await TestSubnet.start();
    opened.push(subnet);
    alice = await gateway('alice');
    bob = await gateway('bob');
  });
  afterEach(async () => {
    for (const one of opened.splice(0)) await one.close();
  });

  async function bothUp(): Promise<void> {
    await Promise.all([alice.start(), bob.start()]);
    await Promise.all([connected(alice), connected(bob)]);
    await until('bob is known', async () => (await alice.plane.peer('bob')) !== undefined);
    await until('alice is known', async () => (await bob.plane.peer('alice')) !== undefined);
  }

  /** Frames in both directions, sealed and opened. */
  async function bothTalk(text: string): Promise<void> {
    await alice.reach(bob, `${text}, to bob`);
    await bob.reach(alice, `${text}, to alice`);
  }

  it('comes up: the data plane has its port, an index, the time, a lease and the group key', async () => {
    expect((await alice.plane.stats()).ports).toEqual([]);
    await bothUp();
    expect(await alice.plane.port()).toMatchObject({ port: 1, tap: 'pw0', mtu: 1_398 });
    const status = await alice.status();
    expect(status).toMatchObject({ state: 'up', clock: { known: true } });
    expect(status.lease.secondsLeft).toBeGreaterThan(0);
    expect(Math.abs(status.clock.serverTime - Date.now())).toBeLessThan(60_000);
    // Before anybody has sent anything: the first broadcast need not wait.
    await statusUntil(alice, 'the group key', (now) => now.ports[0]?.group.pwId === 1);
    // Nothing is sealed without index, clock, lease and key.
    const broadcast = { to: BROADCAST_MAC, from: alice.mac, text: 'to all' };
    expect(await alice.plane.tap.reach(bob.plane.tap, broadcast)).toEqual(broadcast);
    expect((await alice.status()).misses).toMatchObject({ group: 0 });
    await alice.stop();
    const [held] = (await alice.plane.held()).ports;
    expect(held).toMatchObject({ subnet: 'east', member: 'alice' });
    expect(held?.boots).toMatchObject([{ index: status.ports[0]?.index }]);
    expect(held?.groupKeys).toEqual([{ pwId: 1, send: true }]);
  });

  it('the first frame to a member brings the key at both ends, soon', async () => {
    await bothUp();
    expect(await alice.plane.peer('bob')).toMatchObject({ hasKey: false });
    const began = performance.now();
    const got = await alice.reach(bob, 'hello');
    expect(performance.now() - began).toBeLessThan(SOON_MS);
    expect(got).toEqual({ to: bob.mac, from: alice.mac, text: 'hello' });
    expect(await alice.plane.peer('bob')).toMatchObject({ hasKey: true, pwId: 1 });
    await bob.reach(alice, 'hello to you');
    expect(await bob.plane.peer('alice')).toMatchObject({ hasKey: true, pwId: 1 });
  });

  it('nobody has an address: its frames are dropped without a question for 2 s', async () => {
    await bothUp();
    const send = (text: string) => alice.plane.tap.send({ to: NOBODY, from: alice.mac, text });
    const misses = async () => (await alice.status()).misses;
    const dropped = () => alice.plane.drops('no_such_member');
    send('is anybody there?');
    await until('the held frame is dropped', async () => (await dropped()) === 1);
    const refused = performance.now();
    expect(await misses()).toMatchObject({ mac: 1, asked: 1, none: 1 });
    send('anybody?');
    await until('the next frame is dropped', async () => (await dropped()) === 2);
    expect(await misses()).toMatchObject({ mac: 1, asked: 1 });
    await until('another question', async () => {
      send('anybody now?');
      return ((await misses()).asked ?? 0) > 1;
    });
    expect(performance.now() - refused).toBeGreaterThan(1_500);
  });

  it('status on the control socket has the whole schema, and metrics are made from it', async () => {
    await bothUp();
    await bothTalk('hello');
    alice.plane.tap.send({ to: bob.mac, from: NOBODY, text: 'from somebody else' });
    await until('port security', async () => (await alice.plane.drops('tap_source_mac')) === 1);
    await until(
      'a probe is answered',
      async () => ((await alice.plane.peer('bob'))?.rttUs ?? 0) > 0,
    );
    const answer = await askGateway(alice.control, 'status');
    const status = statusSchema.parse(answer.status);
    expect(status).toMatchObject({ state: 'up', member: 'alice', problems: [] });
    expect(status.dataPlane).toMatchObject({ state: 'attached', commandsFailed: 0 });
    const [port] = status.ports;
    const figures = await alice.plane.port();
    expect(port).toMatchObject({ interface: 'pw0', mtu: 1_398, suite: figures?.suite });
    expect(status.dataPlane.backends).toContain(port?.backend);
    const peer = port?.peers.find((one) => one.id === 'bob');
    expect(peer).toMatchObject({ state: 'ready', hasKey: true, sendPwId: 1, alive: true });
    expect(peer?.rttMs).toBeGreaterThan(0);
    expect(peer?.endpoint).toMatch(new RegExp(`:${bob.plane.udpPort}$`));
    expect(peer?.tx.frames).toBeGreaterThan(0);
    expect(peer?.rx.frames).toBeGreaterThan(0);
    const page = await renderedMetrics(status);
    expect(page).toContain(
      'pairwire_gateway_dropped_frames_total{port="host",reason="tap_source_mac"} 1',
    );
    expect(page).toContain('pairwire_gateway_up 1');
    expect(page).not.toContain('peer="bob"');
  });

  it('a second gateway on the same directory is refused, and the first goes on', async () => {
    await bothUp();
    await expect(alice.start()).rejects.toMatchObject({ code: 'CONFLICT' });
    await bothTalk('as before');
    expect(alice.ended).toBe('not yet');
  });

  it('the data plane dies: new boot key, new index, everything installed, soon', async () => {
    await bothUp();
    await bothTalk('before');
    const before = await alice.status();
    await alice.plane.kill();
    await statusUntil(alice, 'noticed', (status) => status.dataPlane.state !== 'attached');
    expect(await alice.status()).toMatchObject({
      problems: [{ code: 'DATAPLANE_GONE' }],
      server: { connected: false },
      ports: [{ boot: null }],
    });
    const began = performance.now();
    await alice.plane.start();
    await bothTalk('after');
    expect(performance.now() - began).toBeLessThan(SOON_MS);
    await connected(alice);
    const after = await alice.status();
    expect(after).toMatchObject({ state: 'up', dataPlane: { restarts: 1 } });
    expect(after.dataPlane.instance).not.toBe(before.dataPlane.instance);
    expect(after.ports[0]?.index).not.toBe(before.ports[0]?.index);
    expect((await bob.plane.peer('alice'))?.index).toBe(after.ports[0]?.index);
    const broadcast = { to: BROADCAST_MAC, from: alice.mac, text: 'to all again' };
    await alice.plane.tap.reach(bob.plane.tap, broadcast);
  });

  it('the control plane restarts: same boot key, same index, nothing dropped', async () => {
    await bothUp();
    await bothTalk('before');
    const before = await alice.status();
    await alice.stop();
    await bothTalk('without a control plane');
    const held = await alice.plane.held();
    expect(held.ports[0]?.pairKeys.map((key) => key.peer)).toEqual(['bob']);
    await alice.start();
    await connected(alice);
    await statusUntil(alice, 'synchronised', (status) => status.server.syncs > 0);
    const after = await alice.status();
    expect(after.dataPlane.instance).toBe(before.dataPlane.instance);
    const [was, is] = [before.ports[0], after.ports[0]];
    expect([is?.boot, is?.index]).toEqual([was?.boot, was?.index]);
    // Counters are those of one port from beginning to end, and each frame is counted once.
    expect(is?.counters.outbound_frames).toBeGreaterThan(was?.counters.outbound_frames ?? 0);
    expect(await alice.plane.peer('bob')).toMatchObject({ hasKey: true, pwId: 1 });
    await bothTalk('after');
    await alice.stop();
    expect(await alice.plane.held()).toEqual(held);
  });

  it('a fresh boot key: new index, both boot keys for a while, and a control plane that dies in between', async () => {
    await bothUp();
    await bothTalk('before');
    const before = await portOf(alice);
    expect(before).toMatchObject({ boot: 1, bootRenewals: 0 });
    expect(await askGateway(alice.control, 'renew')).toMatchObject({ boot: 2 });
    await expect(askGateway(alice.control, 'renew')).rejects.toMatchObject({ code: 'REFUSED' });
    await until('bob is told', async () => {
      const index = (await bob.plane.peer('alice'))?.index;
      return index !== undefined && index !== before?.index;
    });
    await connected(alice);
    const after = await portOf(alice);
    expect(after).toMatchObject({ boot: 2, bootRenewals: 1 });
    expect(after?.bootAgeMs).toBeTypeOf('number');
    expect((await bob.plane.peer('alice'))?.index).toBe(after?.index);
    const page = await renderedMetrics(await alice.status());
    expect(page).toContain('pairwire_gateway_boot_key_renewals_total{port="host"} 1');
    expect(page).toContain('pairwire_gateway_boot_key_age_seconds{port="host"} ');
    await alice.stop();
    const boots = async () => (await alice.plane.held()).ports[0]?.boots ?? [];
    expect(await boots()).toMatchObject([{ index: before?.index }, { index: after?.index }]);
    await bothTalk('without a control plane');
    // Its times run without a control plane, too.
    await until('it is sent with', async () => (await boots())[1]?.send === true);
    await alice.start();
    await connected(alice);
    expect(await portOf(alice)).toMatchObject({ boot: 2, index: after?.index });
    await bothTalk('after');
    await alice.stop();
    await until('the old one is gone', async () => (await boots()).length === 1, 20_000);
    expect(await boots()).toMatchObject([{ boot: 2, index: after?.index, send: true }]);
    await bothTalk('with nothing of the old one');
  }, 60_000);

  it('the key server is away: traffic goes on; back again, it is found', async () => {
    await bothUp();
    await bothTalk('before');
    const before = await portOf(alice);
    await subnet.stopServer();
    await statusUntil(alice, 'degraded', (status) => status.state === 'degraded');
    alice.plane.tap.send({ to: NOBODY, from: alice.mac, text: 'is anybody there?' });
    await statusUntil(alice, 'no answer', (status) => (status.misses.failed ?? 0) > 0);
    await bothTalk('without a key server');
    expect(await alice.plane.peer('bob')).toMatchObject({ hasKey: true });
    await subnet.startServer();
    await connected(alice);
    await statusUntil(alice, 'up', (status) => status.state === 'up');
    const after = await portOf(alice);
    expect([after?.boot, after?.index]).toEqual([before?.boot, before?.index]);
    await bothTalk('after');
  });

  it('a data plane that is there before the key server keeps waiting for it', async () => {
    await subnet.stopServer();
    await alice.start();
    await statusUntil(alice, 'a boot key', (status) => typeof status.ports[0]?.boot === 'number');
    expect(await alice.status()).toMatchObject({ state: 'starting', ports: [{ index: null }] });
    await subnet.startServer();
    await connected(alice);
    expect((await portOf(alice))?.index).toBeTypeOf('number');
  });

  it('down wipes the keys, takes the devices away and ends', async () => {
    await bothUp();
    await bothTalk('before');
    await askGateway(alice.control, 'down');
    await until('the end', () => alice.ended === undefined);
    expect(alice.devices.leftAtClose?.ports).toEqual([]);
    expect(alice.plane.running).toBe(false);
  });

  it('reload takes over what it can and names what it can not', async () => {
    await alice.start();
    const text = readFileSync(alice.paths.config, 'utf8');
    const moved = text.replace(`port: ${alice.plane.udpPort}`, 'port: 51821');
    writeFileSync(alice.paths.config, `${moved}log:\n  level: warn\n`);
    const answer = await askGateway(alice.control, 'reload');
    expect(answer).toMatchObject({ changed: ['log.level'], needRestart: ['transport'] });
    writeFileSync(alice.paths.config, 'subnet: [');
    await expect(askGateway(alice.control, 'reload')).rejects.toMatchObject({ code: 'REFUSED' });
    expect(alice.ended).toBe('not yet');
  });

  it('a copied directory on another machine stops with a clear error and does not try again', async () => {
    await bothUp();
    const copy = await gateway('carol');
    mkdirSync(copy.paths.dir, { recursive: true });
    for (const file of readdirSync(alice.paths.dir)) {
      copyFileSync(join(alice.paths.dir, file), join(copy.paths.dir, file));
    }
    // Another machine has the port for itself.
    const text = readFileSync(copy.paths.config, 'utf8');
    const own = text.replace(`port: ${alice.plane.udpPort}`, `port: ${copy.plane.udpPort}`);
    writeFileSync(copy.paths.config, own);
    await copy.start('the copy');
    await until('a port', async () => (await copy.plane.port()) !== undefined);
    await until('the copy ends', () => copy.ended !== 'not yet', 15_000);
    expect(copy.ended).toMatchObject({ code: 'CONFLICT' });
    expect(await copy.plane.port()).toBeUndefined();
    expect((await copy.status()).server.state).toBe('stopped');
    expect(alice.ended).toBe('not yet');
    await connected(alice);
    await bothTalk('as before');
  });
});
