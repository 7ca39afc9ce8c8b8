/**
 * A policy on a real subnet: the pairs that it denies stop talking within a moment, the others lose nothing;
 * broadcast goes to those who may hear it, each copy under its own key; and all of it comes back.
 *
 *   alice, bob (tag office)   printer   guest (tag guest)
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { waitFor } from '../../scripts/laboratory/processes.js';
import type { TopologyInput } from '../../scripts/laboratory/topology.js';
import { FrameKind } from '../../src/protocol/constants.js';
import { ping } from './helpers/hosts.js';
import { useLab } from './helpers/use-lab.js';
import { sealedFrames } from './helpers/wire.js';

const SUBNET = 'lan';
const NUMBER = { alice: 11, bob: 12, printer: 13, guest: 14 } as const;
type Host = keyof typeof NUMBER;
const HOSTS = Object.keys(NUMBER) as Host[];
const TAG: Partial<Record<Host, string>> = { alice: 'office', bob: 'office', guest: 'guest' };
const inner = (host: Host) => `198.51.100.${NUMBER[host]}`;
const SEGMENT = 'wire';
/** A change of policy is to have its effect within a second; a busy machine gets more. */
const EFFECT_MS = 5_000;

const POLICY = `
groups:
  office: { tags: [office] }
  guests: { tags: [guest] }
rules:
  - deny: [guests, office]
`;
const QUIET = `${POLICY}silent: [guests]\n`;

function topology(ethernet: boolean): TopologyInput {
  const place = (host: string, number: number) => ({
    [host]: {
      interfaces: [
        { segment: SEGMENT, name: 'eth0', addresses: [`192.0.2.${number}/24`] },
        ...(ethernet ? [{ segment: 'lan', name: 'eth1' }] : []),
      ],
    },
  });
  return {
    segments: { [SEGMENT]: {}, ...(ethernet ? { lan: { hub: true } } : {}) },
    hosts: Object.assign(
      place('server', 1),
      ...HOSTS.map((host) => place(host, NUMBER[host])),
    ) as TopologyInput['hosts'],
    keyServers: { [SUBNET]: { host: 'server', listen: '192.0.2.1:7100' } },
    gateways: HOSTS.map((host) => ({
      host,
      subnet: SUBNET,
      addresses: [`${inner(host)}/24`],
      token: TAG[host] === undefined ? [] : ['--tag', TAG[host]],
      ...(ethernet ? { ethernet: 'eth1' } : {}),
    })),
  };
}

const dir = mkdtempSync(join(tmpdir(), 'pairwire-policy-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const explanation = z.object({ allowed: z.boolean(), group: z.boolean(), reason: z.string() });

describe.each(['udp', 'ethernet'] as const)('a policy over %s', (transport) => {
  const handle = useLab(topology(transport === 'ethernet'), { restarts: true });
  const onWire = transport === 'ethernet' ? 'lan' : SEGMENT;

  const policy = (argv: readonly string[]) => {
    const [command = '', ...rest] = argv;
    const args = ['policy', command, '--json', '--dir', handle.lab.serverDir(SUBNET), ...rest];
    return handle.lab.pairwire('server', args);
  };
  async function install(text: string): Promise<void> {
    const file = join(dir, 'policy.yaml');
    writeFileSync(file, text);
    await policy(['set', file]);
  }
  const reaches = async (from: Host, to: Host): Promise<boolean> =>
    (await ping(handle.lab, from, inner(to), { waitMs: 300 })).received === 1;
  async function took(what: string, condition: () => Promise<boolean>): Promise<void> {
    const begin = performance.now();
    await waitFor(condition, { what, timeoutMs: EFFECT_MS });
    const ms = Math.round(performance.now() - begin);
    console.log(`policy, ${transport}: ${what} after ${ms} ms`);
  }
  /** Who of the others hears a broadcast of `from`, and of what kind its frames are on the wire. */
  async function hearers(from: Host, marker: string) {
    const { lab } = handle;
    const others = HOSTS.filter((host) => host !== from);
    const wire = await lab.capture(onWire);
    const taps = await Promise.all(others.map((host) => lab.capture(host, { interface: 'pw0' })));
    const shout = ['socat', '-u', '-', 'UDP4-DATAGRAM:198.51.100.255:9,broadcast'];
    for (let time = 0; time < 3; time += 1) await lab.exec(from, shout, { input: marker });
    await new Promise((resolve) => setTimeout(resolve, 500));
    const heard = await Promise.all(taps.map((tap) => tap.stop()));
    const { frames } = sealedFrames(await wire.stop());
    return {
      who: others.filter((_host, at) => heard[at]?.some(({ bytes }) => bytes.includes(marker))),
      groups: frames.filter(({ shim }) => shim.kind === FrameKind.group).length,
    };
  }

  test('without one everybody reaches everybody, and broadcast has the group key', async () => {
    for (const from of HOSTS) {
      for (const to of HOSTS) {
        if (from === to) continue;
        await waitFor(() => reaches(from, to), { what: `${to} to answer ${from}` });
      }
    }
    const { who, groups } = await hearers('alice', 'open-to-everybody');
    expect(who).toEqual(['bob', 'printer', 'guest']);
    expect(groups).toBeGreaterThan(0);
  });

  test('what it denies stops at once, and nothing else loses a frame', async () => {
    const { lab } = handle;
    // Runs across the change.
    const stream = ping(lab, 'alice', inner('bob'), { count: 400, intervalMs: 10 });
    const beside = ping(lab, 'guest', inner('printer'), { count: 400, intervalMs: 10 });
    await new Promise((resolve) => setTimeout(resolve, 500));
    await install(POLICY);
    await took('the office is closed to a guest', async () => !(await reaches('guest', 'alice')));
    await took('and a guest to the office', async () => !(await reaches('bob', 'guest')));
    expect((await stream).received).toBe(400);
    expect((await beside).received).toBe(400);
  });

  test('it is neither one direction nor only for a moment', async () => {
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    for (const office of ['alice', 'bob'] as const) {
      expect(await reaches(office, 'guest')).toBe(false);
      expect(await reaches('guest', office)).toBe(false);
    }
    expect(await reaches('printer', 'guest')).toBe(true);
    expect(await reaches('printer', 'alice')).toBe(true);
  });

  test('broadcast is heard by whom it may be heard, under pair keys', async () => {
    await waitFor(
      async () => (await handle.lab.status('alice')).ports[0]?.group.mode === 'pairwise',
      { what: 'alice to seal for each' },
    );
    const { who, groups } = await hearers('alice', 'not-for-guests!!');
    expect(who).toEqual(['bob', 'printer']);
    expect(groups).toBe(0);
    expect((await hearers('guest', 'from-a-guest....')).who).toEqual(['printer']);
  });

  test('the commands say what it says', async () => {
    const say = async (one: Host, other: Host) =>
      explanation.parse(JSON.parse((await policy(['test', one, other])).stdout));
    expect(await say('guest', 'alice')).toEqual({
      allowed: false,
      group: false,
      reason: 'rule 1: deny guests - office',
    });
    expect(await say('alice', 'bob')).toMatchObject({ allowed: true, group: true });
    const shown = await policy(['show']);
    expect(JSON.parse(shown.stdout)).toMatchObject({
      groupMode: 'pairwise',
      policy: { rules: [{ deny: ['guests', 'office'] }] },
    });
  });

  test('who is kept out of group traffic neither hears nor is heard, and goes on talking', async () => {
    await install(QUIET);
    await took('a guest is silent', async () => {
      const { who } = await hearers('guest', 'a silent guest..');
      return who.length === 0;
    });
    const { who } = await hearers('printer', 'printer to office');
    expect(who).toEqual(['alice', 'bob']);
    expect(await reaches('printer', 'guest')).toBe(true);
  });

  test('it holds after a start of a gateway, whose server need not be there', async () => {
    const { lab } = handle;
    await lab.stopKeyServer(SUBNET);
    await lab.stopGateway('alice');
    await lab.startGateway('alice', { connected: false });
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    expect(await reaches('guest', 'alice')).toBe(false);
    await lab.startKeyServer(SUBNET);
    await waitFor(() => reaches('alice', 'bob'), { what: 'alice to be back', timeoutMs: 20_000 });
    expect(await reaches('alice', 'guest')).toBe(false);
  });

  test('taken back, all is as before', async () => {
    await policy(['clear']);
    await took('a guest reaches the office', () => reaches('guest', 'alice'));
    await took('and the office a guest', () => reaches('bob', 'guest'));
    const { who, groups } = await hearers('alice', 'open again.......');
    expect(who).toEqual(['bob', 'printer', 'guest']);
    expect(groups).toBeGreaterThan(0);
  });
});
