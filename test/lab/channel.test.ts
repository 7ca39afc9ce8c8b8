/**
 * Gateways whose channel to the key server goes over UDP, and over HTTP: they join, learn keys,
 * and come back to a key server that was stopped or killed, as over TCP.
 */
import { describe, expect, test } from 'vitest';
import { waitFor } from '../../scripts/laboratory/processes.js';
import { ping } from './helpers/hosts.js';
import { inner4, inner6, SERVER_PORT, SUBNET, threeHosts } from './helpers/topologies.js';
import { useLab } from './helpers/use-lab.js';

describe.each(['udp', 'http'] as const)('a key server at %s://', (scheme) => {
  const handle = useLab(threeHosts({ scheme, members: ['alice', 'bob'] }));

  async function connected(): Promise<void> {
    const { lab } = handle;
    await waitFor(
      async () =>
        (await Promise.all([lab.status('alice'), lab.status('bob')])).every(
          (status) => status.server.connected,
        ),
      { what: 'both gateways to be connected', timeoutMs: 40_000, everyMs: 100 },
    );
  }

  test('gateways join, connect and reach each other', async () => {
    const { lab } = handle;
    await connected();
    expect((await lab.status('alice')).server.address).toBe(`${scheme}://192.0.2.1:${SERVER_PORT}`);
    expect(await ping(lab, 'alice', inner4('bob'))).toMatchObject({ sent: 1, received: 1 });
    const back = await ping(lab, 'bob', inner6('alice'), { count: 5, intervalMs: 20 });
    expect(back).toMatchObject({ sent: 5, received: 5 });
  });

  test('nothing else carries their channel', async () => {
    const { lab } = handle;
    const flags = scheme === 'udp' ? '-Hltn' : '-Hlun';
    const { stdout } = await lab.exec('server', ['ss', flags, `sport = :${SERVER_PORT}`]);
    expect(stdout).toBe('');
  });

  test.each(['SIGTERM', 'SIGKILL'] as const)(
    'they are back after the key server had a %s and was started again',
    async (signal) => {
      const { lab } = handle;
      const before = (await lab.status('alice')).server.connects;
      await lab.stopKeyServer(SUBNET, signal);
      const meanwhile = await ping(lab, 'alice', inner4('bob'), { count: 5, intervalMs: 20 });
      expect(meanwhile.received).toBe(5);
      await lab.startKeyServer(SUBNET);
      await waitFor(async () => (await lab.status('alice')).server.connects > before, {
        what: 'alice to have come back',
        timeoutMs: 40_000,
        everyMs: 100,
      });
      await connected();
      expect((await ping(lab, 'bob', inner4('alice'), { count: 3 })).received).toBe(3);
    },
  );

  test('a gateway whose control plane was killed is let in again, and is no duplicate', async () => {
    const { lab } = handle;
    await connected();
    await lab.stopGateway('bob', 'SIGKILL');
    await lab.startGateway('bob');
    await connected();
    expect((await lab.status('bob')).state).toBe('up');
    expect((await ping(lab, 'alice', inner4('bob'), { count: 3 })).received).toBe(3);
  });
});
