/** What a member may take of the key server, at the edge: refused with a code, counted by kind, and others are served. */
import { afterEach, describe, expect, it } from 'vitest';
import { defaultMac } from '../../../src/protocol/mac.js';
import { ON_POSTGRES } from './support/store.js';
import { SUBNET, TestSubnet } from './support/subnet.js';

let subnet: TestSubnet;
afterEach(() => subnet.close());

async function refusals(kind: string): Promise<number> {
  const metric = await subnet.server.metrics.registry
    .getSingleMetric('pairwire_keyserver_refusals_total')
    ?.get();
  return metric?.values.find((one) => one.labels.kind === kind)?.value ?? 0;
}

describe('limits', () => {
  it('key requests: a burst of one member, as configured', async () => {
    subnet = await TestSubnet.start({ limits: { keyRequestBurst: 3, keyRequestsPerSecond: 1 } });
    const alice = await subnet.member('alice');
    const bob = await subnet.member('bob');
    for (let i = 0; i < 3; i += 1) await alice.keyByMac(defaultMac(SUBNET, 'bob'));
    await expect(alice.keyByMac(defaultMac(SUBNET, 'bob'))).rejects.toMatchObject({
      code: 'limit',
    });
    expect(await refusals('lookup_rate')).toBe(1);
    await bob.keyByMac(defaultMac(SUBNET, 'alice'));
  });

  it('boot records: three new boot keys in a row', async () => {
    subnet = await TestSubnet.start();
    const alice = await subnet.enrolled('alice');
    const register = () => alice.register();
    for (let i = 0; i < 3; i += 1) await register();
    await expect(register()).rejects.toMatchObject({ code: 'limit' });
    expect(await refusals('register_rate')).toBe(1);
    const bob = await subnet.member('bob');
    expect(bob.id).toBe('bob');
  });

  it('sender indices: when none is found in 1,000 draws, the start is told to come again', async () => {
    subnet = await TestSubnet.start();
    const alice = await subnet.enrolled('alice');
    // As if each index were somebody's already.
    const sql = (text: string) => subnet.driver.transaction((tx) => tx.run(text, []));
    if (ON_POSTGRES) {
      await sql(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
      );
    }
    const instead = ON_POSTGRES
      ? 'FOR EACH ROW EXECUTE FUNCTION nothing()'
      : 'BEGIN SELECT RAISE(IGNORE); END';
    await sql(`CREATE TRIGGER taken BEFORE INSERT ON sender_indices ${instead}`);
    await expect(alice.register()).rejects.toMatchObject({ code: 'unavailable' });
    const requests = await subnet.server.metrics.registry
      .getSingleMetric('pairwire_keyserver_requests_total')
      ?.get();
    const failed = requests?.values.find(
      ({ labels }) => labels.type === 'register' && labels.result === 'unavailable',
    );
    expect(failed?.value).toBe(1);
    await sql(ON_POSTGRES ? 'DROP TRIGGER taken ON sender_indices' : 'DROP TRIGGER taken');
    expect((await alice.register()).index).toBeGreaterThan(0);
  });

  it('endpoints: twenty changes in a row', async () => {
    subnet = await TestSubnet.start();
    const alice = await subnet.member('alice');
    const move = (port: number) =>
      alice.client.request({
        t: 'endpoints',
        endpoints: [{ ip: Buffer.from([192, 0, 2, 1]), port }],
      });
    for (let i = 0; i < 20; i += 1) await move(1_000 + i);
    // One more for each second that those have taken.
    const more = async () => {
      for (let i = 0; i < 20; i += 1) await move(2_000 + i);
    };
    await expect(more()).rejects.toMatchObject({ code: 'limit' });
    expect(await refusals('endpoints_rate')).toBe(1);
  });

  it('connections: as many as configured', async () => {
    subnet = await TestSubnet.start({ limits: { connections: 2 } });
    const alice = await subnet.member('alice');
    await subnet.enrolled('bob');
    const late = subnet.admin();
    await expect(late.request({ t: 'ping' }, { timeoutMs: 1_000 })).rejects.toBeDefined();
    const closed = await subnet.server.metrics.registry
      .getSingleMetric('pairwire_channel_closed')
      ?.get();
    const many = closed?.values.find((one) => one.labels.reason === 'too_many_connections');
    expect(many?.value).toBeGreaterThan(0);
    await alice.client.request({ t: 'ping' });
  });
});
