/** The laboratory itself: what it makes is there, what it takes down is gone, also after a crash. */
import { existsSync } from 'node:fs';
import { describe, expect, onTestFinished, test } from 'vitest';
import { Lab } from '../../scripts/laboratory/lab.js';
import { isAlive, run, waitFor } from '../../scripts/laboratory/processes.js';
import { listLabs, stateDir } from '../../scripts/laboratory/state.js';
import { parseTopology, readTopology, TopologyError } from '../../scripts/laboratory/topology.js';
import { ping } from './helpers/hosts.js';

async function namespaces(): Promise<string[]> {
  const { stdout } = await run(['ip', '-json', 'netns', 'list']);
  const list: unknown = stdout.trim() === '' ? [] : JSON.parse(stdout);
  return Array.isArray(list) ? list.map((one: { name: string }) => one.name) : [];
}

async function make(file: string): Promise<Lab> {
  const lab = await Lab.create(readTopology(file), { startPrograms: false });
  onTestFinished(() => lab.destroy());
  return lab;
}

describe('a topology', () => {
  test('has its segments, routes, NAT boxes and impairments', async () => {
    const lab = await make('config/lab/nat.yaml');
    expect((await ping(lab, 'alice', '203.0.113.13')).received).toBe(1);
    // Hidden behind its NAT box, bob can't be reached from outside.
    await lab.exec('carol', ['ip', 'route', 'add', '192.0.2.128/25', 'via', '203.0.113.3']);
    expect((await ping(lab, 'carol', '192.0.2.140', { waitMs: 300 })).received).toBe(0);
    const seen = await lab.capture('wire', { filter: 'icmp' });
    await ping(lab, 'bob', '203.0.113.13', { count: 3, intervalMs: 20 });
    const sources = (await seen.stop()).map(({ bytes }) => bytes.subarray(26, 30).join('.'));
    expect(sources).toContain('203.0.113.3');
    expect(sources).not.toContain('192.0.2.140');
    const { stdout } = await lab.exec('nat-b', ['nft', 'list', 'ruleset']);
    expect(stdout).toContain('numgen random mod 1000 < 10');
  });

  test('with a mistake is refused with its line', () => {
    const text =
      'segments: { wire: {} }\nhosts:\n  a:\n    interfaces:\n      - { segment: wir, name: eth0 }\n';
    expect(() => parseTopology(text, 'x.yaml')).toThrow(TopologyError);
    expect(() => parseTopology(text, 'x.yaml')).toThrow(/x\.yaml:5: .*there is no segment wir/);
    const real = text.replace('wir,', 'wire,').replace('eth0', 'eth0, addresses: [8.8.8.8/24]');
    expect(() => parseTopology(real, 'x.yaml')).toThrow(/documentation addresses/);
  });
});

describe('taking down', () => {
  test('ends every process and takes every namespace away, and may be repeated', async () => {
    const lab = await make('config/lab/three-hosts.yaml');
    const child = lab.spawn('alice', ['sleep', '1000']);
    // One that no longer belongs to what was recorded.
    await lab.exec('bob', ['sh', '-c', 'setsid sleep 1000 >/dev/null 2>&1 &']);
    await lab.destroy();
    expect(isAlive(child)).toBe(false);
    expect((await namespaces()).filter((one) => one.startsWith(`pwl-${lab.name}-`))).toEqual([]);
    expect(existsSync(stateDir(lab.name))).toBe(false);
    await lab.destroy();
  });

  test('works from another process, after the one that made it was killed', async () => {
    const script = `
      import { Lab } from './scripts/laboratory/lab.js';
      import { readTopology } from './scripts/laboratory/topology.js';
      const lab = await Lab.create(readTopology('config/lab/three-hosts.yaml'), { startPrograms: false });
      lab.spawn('alice', ['sleep', '1000']);
      console.log(lab.name);
      process.kill(process.pid, 'SIGKILL');`;
    const argv = [process.execPath, '--import', 'tsx', '--input-type=module', '-e', script];
    const { stdout, code } = await run(argv, { check: false });
    expect(code).toBe(137);
    const name = stdout.trim();
    expect(listLabs()).toContain(name);
    await run(['scripts/lab', 'down', name]);
    expect(listLabs()).not.toContain(name);
    await waitFor(async () => !(await namespaces()).some((one) => one.startsWith(`pwl-${name}-`)), {
      what: 'the namespaces to be gone',
    });
    expect((await run(['scripts/lab', 'down', name])).stdout).toContain('is not up');
  });
});
