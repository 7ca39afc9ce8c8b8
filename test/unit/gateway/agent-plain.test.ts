/**
 * Plain ports between a real key server and real data planes: machines outside, who are the tests, talk to
 * members and to each other, and what a restart loses is told again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BROADCAST_MAC, type MacAddress } from '../../../src/protocol/mac.js';
import { TestSubnet } from '../keyserver/support/subnet.js';
import { TestGateway } from './support/gateway.js';
import { until } from './support/until.js';

const PRINTER = '0a:00:00:00:00:01' as MacAddress;
const CAMERA = '0a:00:00:00:00:02' as MacAddress;
const STRANGER = '0a:00:00:00:00:99' as MacAddress;

describe('the agent of a plain port', () => {
  let subnet: TestSubnet;
  let alice: TestGateway;
  let gate1: TestGateway;
  let gate2: TestGateway;
  const opened: { close(): Promise<void> }[] = [];

  beforeEach(async () => {
    subnet = await TestSubnet.start({ settings: { unknown: 'plain' } });
    opened.push(subnet);
    const make = async (id: string, role: 'host' | 'plain') => {
      const gateway = await TestGateway.make(subnet, id, role);
      opened.unshift(gateway);
      return gateway;
    };
    alice = await make('alice', 'host');
    gate1 = await make('gate1', 'plain');
    gate2 = await make('gate2', 'plain');
    await Promise.all([alice, gate1, gate2].map((one) => one.start()));
    for (const gate of [gate1, gate2]) {
      await until('it forwards', async () => (await plain(gate))?.loop === 'forward');
    }
  });
  afterEach(async () => {
    for (const one of opened.splice(0)) await one.close();
  });

  const plain = async (gate: TestGateway) => (await gate.status()).ports[0]?.plain;
  /** A frame of a machine outside, or of a member, to wherever its destination is. */
  const reach = (
    from: TestGateway,
    source: MacAddress,
    to: TestGateway,
    dest: MacAddress,
    text: string,
  ) => from.plane.tap.reach(to.plane.tap, { to: dest, from: source, text });
  const holder = async (mac: MacAddress) => (await subnet.store.learned(0, mac))?.member;

  it('lets machines outside talk to members, to those behind other plain ports, and be found', async () => {
    await reach(gate1, PRINTER, alice, alice.mac, 'printer to alice');
    await until('the report', async () => (await holder(PRINTER)) === 'gate1');
    await reach(alice, alice.mac, gate1, PRINTER, 'alice to printer');
    // Nobody has heard of the camera: the default is gate1, so it has to speak first.
    gate2.plane.tap.send({ to: BROADCAST_MAC, from: CAMERA, text: 'I am here' });
    await until('the report', async () => (await holder(CAMERA)) === 'gate2');
    await reach(alice, alice.mac, gate2, CAMERA, 'alice to camera');
    expect(gate1.plane.tap.has('alice to camera')).toBe(false);
    await reach(gate1, PRINTER, gate2, CAMERA, 'printer to camera');
    await reach(gate2, CAMERA, gate1, PRINTER, 'camera to printer');
    expect(await plain(gate1)).toMatchObject({ bridge: 'br0', learned: 1, reportsRefused: 0 });
    // Who nobody knows is looked for at the default port alone.
    await reach(alice, alice.mac, gate1, STRANGER, 'alice to a stranger');
    expect(gate2.plane.tap.has('alice to a stranger')).toBe(false);
  });

  it('follows a machine from one port to the other and back, within a second of its first frame', async () => {
    await reach(gate1, PRINTER, alice, alice.mac, 'at gate1');
    await reach(alice, alice.mac, gate1, PRINTER, 'to gate1');
    for (const [gate, text] of [
      [gate2, 'moved'],
      [gate1, 'back'],
    ] as const) {
      // Nobody pulls a cable and plugs it in again faster: a port tells of an address twice a second at most.
      await sleep(600);
      const began = performance.now();
      gate.plane.tap.send({ to: BROADCAST_MAC, from: PRINTER, text: `here: ${text}` });
      await reach(alice, alice.mac, gate, PRINTER, `found: ${text}`);
      expect(performance.now() - began, text).toBeLessThan(1_000);
    }
  });

  it('lets nobody outside speak as a member, and the key server writes it down', async () => {
    const bob = await TestGateway.make(subnet, 'bob');
    opened.unshift(bob);
    await bob.start();
    await reach(gate1, PRINTER, bob, bob.mac, 'printer to bob');
    for (const member of [alice, bob]) {
      gate1.plane.tap.send({ to: bob.mac, from: member.mac, text: `as ${member.mac}` });
    }
    await until('the drops', async () => (await gate1.plane.drops('plain_spoof')) === 2);
    await until('the entry', async () =>
      (await subnet.audit()).some(
        ({ action, actor, detail }) =>
          action === 'learned_own' &&
          actor === 'gate1' &&
          [alice.mac, bob.mac].some((mac) => JSON.stringify(detail).includes(mac)),
      ),
    );
    expect(bob.plane.tap.has(`as ${alice.mac}`)).toBe(false);
    expect((await plain(gate1))?.spoofed).toBeGreaterThan(0);
  });

  it('never emits what was meant for a member that is offline or revoked', async () => {
    const bob = await TestGateway.make(subnet, 'bob');
    opened.unshift(bob);
    await bob.start();
    await alice.reach(bob, 'hello');
    await reach(alice, alice.mac, gate1, STRANGER, 'to a stranger');
    await bob.stop();
    alice.plane.tap.send({ to: bob.mac, from: alice.mac, text: 'to bob, who is away' });
    await subnet.admin().request({ t: 'revoke', member: 'bob' });
    await until('alice forgets bob', async () => (await alice.plane.peer('bob')) === undefined);
    for (let at = 0; at < 20; at += 1) {
      alice.plane.tap.send({ to: bob.mac, from: alice.mac, text: 'to bob, who is out' });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await reach(alice, alice.mac, gate1, STRANGER, 'to a stranger, after it');
    for (const gate of [gate1, gate2]) {
      for (const text of ['to bob, who is away', 'to bob, who is out']) {
        expect(gate.plane.tap.has(text), text).toBe(false);
      }
    }
    expect(await alice.plane.drops('no_such_member')).toBeGreaterThan(0);
  });

  it('has everything again after restarts of data plane, control plane and key server', async () => {
    await reach(gate1, PRINTER, alice, alice.mac, 'first');
    await reach(alice, alice.mac, gate1, PRINTER, 'and back');

    await gate1.plane.kill();
    await gate1.plane.start();
    await until('it forwards again', async () => (await plain(gate1))?.loop === 'forward');
    await reach(alice, alice.mac, gate1, PRINTER, 'after the data plane');
    // It knows again whose addresses are members' own.
    await gate1.plane.tap.send({ to: alice.mac, from: alice.mac, text: 'as alice' });
    await until('the drop', async () => (await gate1.plane.drops('plain_spoof')) > 0);

    await gate1.stop();
    await reach(alice, alice.mac, gate1, PRINTER, 'without control');
    await gate1.start();
    await until('it has joined in', async () => (await gate1.status()).server.connected);
    await reach(alice, alice.mac, gate1, PRINTER, 'after the control plane');

    await subnet.stopServer();
    gate1.plane.tap.send({ to: BROADCAST_MAC, from: CAMERA, text: 'seen meanwhile' });
    await subnet.startServer();
    await until('the report', async () => (await holder(CAMERA)) === 'gate1');
    await alice.plane.kill();
    await alice.plane.start();
    await reach(alice, alice.mac, gate1, PRINTER, "after alice's data plane");
  });

  it('does not start with a role that its port does not have', async () => {
    const wrong = await TestGateway.make(subnet, 'wrong', 'plain');
    opened.unshift(wrong);
    await subnet.admin().request({ t: 'ping' });
    const { readFileSync, writeFileSync } = await import('node:fs');
    const text = readFileSync(wrong.paths.config, 'utf8');
    writeFileSync(
      wrong.paths.config,
      text.replace('kind: plain', 'kind: host').replace(/ +bridge: br0\n/, ''),
    );
    await expect(wrong.start()).rejects.toMatchObject({ code: 'CONFIG_INVALID' });
  });
});
