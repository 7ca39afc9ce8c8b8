/**
 * The cipher of a subnet and who computes it: the suite is the subnet's, the library each machine's own
 * choice, and both are seen where an operator looks.
 */
import { expect, test } from 'vitest';
import { z } from 'zod';
import { ping } from './helpers/hosts.js';
import { inner4, inner6, threeHosts } from './helpers/topologies.js';
import { randomFile, sendFile } from './helpers/transfer.js';
import { useLab } from './helpers/use-lab.js';

const SUITE = 'chacha20-poly1305';
const MiB = 1 << 20;

const topology = threeHosts({ init: ['--suite', SUITE] });
const handle = useLab({
  ...topology,
  gateways: (topology.gateways ?? []).map((gateway) => ({
    ...gateway,
    config:
      gateway.host === 'alice'
        ? { 'performance.backend': 'ipsec-mb' }
        : gateway.host === 'bob'
          ? { 'performance.backend': 'libcrypto' }
          : {},
  })),
});

test('ends with different libraries understand each other', async () => {
  const { lab } = handle;
  const file = await randomFile(8 * MiB);
  try {
    for (const address of [inner4('bob'), inner6('bob')]) {
      expect(await ping(lab, 'alice', address, { count: 3 })).toMatchObject({ received: 3 });
    }
    const there = { from: 'alice', to: 'bob', address: inner4('bob') };
    const back = { from: 'bob', to: 'alice', address: inner6('alice') };
    expect(await sendFile(lab, there, file, 6001)).toBe(file.sha256);
    expect(await sendFile(lab, back, file, 6002)).toBe(file.sha256);
  } finally {
    file.remove();
  }
});

test('status says which suite and which library are in use, and what else is there', async () => {
  const { lab } = handle;
  for (const [host, backend, other] of [
    ['alice', 'ipsec-mb', 'libcrypto'],
    ['bob', 'libcrypto', 'ipsec-mb'],
    ['carol', 'ipsec-mb', 'libcrypto'],
  ] as const) {
    expect(await lab.port(host), host).toMatchObject({ suite: SUITE, backend });
    const { stdout } = await lab.pairwire(host, ['status', '--dir', lab.gatewayDir(host)]);
    expect(stdout).toContain(`${SUITE} by ${backend} (also here: ${other})`);
  }
});

test('doctor measures both and says when the slower one was chosen', async () => {
  const { lab } = handle;
  const schema = z.object({
    findings: z.array(z.object({ check: z.string(), state: z.string(), message: z.string() })),
  });
  const aead = async (host: string) => {
    const args = ['doctor', '--json', '--dir', lab.gatewayDir(host)];
    const { stdout } = await lab.pairwire(host, args, { check: false });
    return schema.parse(JSON.parse(stdout)).findings.find(({ check }) => check === 'aead');
  };
  const alice = await aead('alice');
  expect(alice?.state).toBe('ok');
  expect(alice?.message).toContain(`${SUITE} by ipsec-mb`);
  const bob = await aead('bob');
  expect(bob?.state).toBe('warn');
  expect(bob?.message).toContain(`${SUITE} by libcrypto, as configured`);
  for (const finding of [alice, bob]) {
    const figures = finding?.message.match(/(ipsec-mb|libcrypto) [\d.]+ Gbit\/s/g);
    expect(figures, finding?.message).toHaveLength(2);
  }
});
