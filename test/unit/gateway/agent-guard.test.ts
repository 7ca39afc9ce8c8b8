/**
 * The address guard between a real key server and real data planes: whose IP address it is, who may say so, and who
 * is told (threats.md C2).
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { MacAddress } from '../../../src/protocol/mac.js';
import { TestSubnet } from '../keyserver/support/subnet.js';
import { TestGateway } from './support/gateway.js';
import { until } from './support/until.js';

const ROUTER = '0a:00:00:00:00:01' as MacAddress;

describe('the agent and the address guard', () => {
  let subnet: TestSubnet;
  let alice: TestGateway;
  let bob: TestGateway;
  const opened: { close(): Promise<void> }[] = [];

  beforeEach(async () => {
    subnet = await TestSubnet.start();
    opened.push(subnet);
    alice = await TestGateway.make(subnet, 'alice');
    bob = await TestGateway.make(subnet, 'bob');
    opened.unshift(alice, bob);
    await Promise.all([alice.start(), bob.start()]);
    await alice.reach(bob, 'there is a key');
    await bob.reach(alice, 'and back');
    alice.plane.tap.sendArp({ from: alice.mac, ip: '10.1.0.2', target: '10.1.0.2' });
    await until('it is bound', async () => (await bound('10.1.0.2')) === alice.mac);
    await until('bob is told', async () => (await guard(bob))?.bindings === 1);
    await until("bob's data plane is", async () => (await counter(bob, 'bindings')) === 1);
  });
  afterEach(async () => {
    for (const one of opened.splice(0)) await one.close();
  });

  const guard = async (gateway: TestGateway) => (await gateway.status()).ports[0]?.guard;
  const counter = async (gateway: TestGateway, name: string) =>
    (await gateway.status()).ports[0]?.counters[name];
  const bound = async (ip: string) => {
    const entry = await subnet.store.binding(ip);
    return entry === undefined || entry.kind === 'freed' ? undefined : entry.mac;
  };
  const audited = async (action: string) =>
    (await subnet.audit()).filter((entry) => entry.action === action);

  it('lets nobody announce the address of another, and the key server writes it down', async () => {
    bob.plane.tap.sendArp({ from: bob.mac, ip: '10.1.0.2', target: '10.1.0.9' });
    await until('the drop', async () => (await guard(bob))?.refused.arp === 1);
    await until('the entry', async () => (await audited('arp_spoof')).length === 1);
    expect(await audited('arp_spoof')).toMatchObject([
      { actor: 'bob', detail: { mac: bob.mac, ip: '10.1.0.2', frames: 1 } },
    ]);
    bob.plane.tap.sendArp({ from: bob.mac, sender: alice.mac, ip: '10.1.0.7', target: '10.1.0.9' });
    await until('the drop', async () => (await guard(bob))?.refused.arp === 2);
    await bob.reach(alice, 'behind them');
    expect(alice.plane.tap.arps()).toEqual([]);
    expect(await bound('10.1.0.2')).toBe(alice.mac);
  });

  it('answers questions for bound addresses here, and lets others through', async () => {
    const { tap } = bob.plane;
    tap.sendArp({ from: bob.mac, ip: '10.1.0.3', target: '10.1.0.2' });
    await until('the answer', () => tap.arps().includes(`2 10.1.0.2 ${alice.mac}`));
    tap.sendArp({ from: bob.mac, ip: '10.1.0.3', target: '10.1.0.77' });
    await until('the question', () => alice.plane.tap.arps().length > 0);
    expect(alice.plane.tap.arps()).toEqual([`1 10.1.0.3 ${bob.mac}`]);
    expect((await guard(bob))?.answered).toEqual({ arp: 1, nd: 0 });
    await until('bob is bound', async () => (await bound('10.1.0.3')) === bob.mac);
  });

  it('follows what the operator pins and frees', async () => {
    const admin = subnet.admin();
    await admin.request({ t: 'ip.pin', ip: '10.1.0.1', mac: ROUTER });
    await until('bob is told', async () => (await counter(bob, 'bindings')) === 2);
    bob.plane.tap.sendArp({ from: bob.mac, ip: '10.1.0.1', target: '10.1.0.1' });
    await until('the drop', async () => (await guard(bob))?.refused.arp === 1);
    // The machine says it is his all the same, and is not believed.
    await until('the entry', async () => (await audited('ip_taken')).length === 1);
    expect((await guard(bob))?.claimsRefused).toBe(1);
    await admin.request({ t: 'ip.free', ip: '10.1.0.1' });
    await until('bob is told', async () => (await counter(bob, 'bindings')) === 1);
    // He is told of every 2 s.
    await until('it is his', async () => {
      bob.plane.tap.sendArp({ from: bob.mac, ip: '10.1.0.1', target: '10.1.0.1' });
      return (await bound('10.1.0.1')) === bob.mac;
    });
  });

  it('brings a new data plane, and one under a new control plane, to the same state', async () => {
    await bob.plane.kill();
    await bob.plane.start();
    await until('it is told', async () => (await counter(bob, 'bindings')) === 1);
    await bob.stop();
    await bob.start();
    await until('it is known', async () => (await guard(bob))?.bindings === 1);
    expect(await counter(bob, 'bindings')).toBe(1);
    await until('it is told of whom it hears', async () => (await bob.status()).server.connected);
    bob.plane.tap.sendArp({ from: bob.mac, ip: '10.1.0.2', target: '10.1.0.9' });
    await until('the drop', async () => (await bob.plane.drops('arp_spoof')) > 0);
  });
});
