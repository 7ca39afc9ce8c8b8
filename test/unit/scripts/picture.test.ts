/** The picture of a topology: everything is on it, in its place, and nothing in a name can break it. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { drawTopology } from '../../../scripts/laboratory/picture.js';
import { readTopology } from '../../../scripts/laboratory/topology.js';

const LABS = 'config/lab';

/** Left, top, right and bottom of each box of a host. */
function boxesOf(svg: string): number[][] {
  const boxes = svg.matchAll(/<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" rx="6"/g);
  return [...boxes].map(([, ...numbers]) => {
    const [x = 0, y = 0, width = 0, height = 0] = numbers.map(Number);
    return [x, y, x + width, y + height];
  });
}

describe('the picture of a topology', () => {
  it.each(readdirSync(LABS))('%s: every host has a box of its own inside the picture', (file) => {
    const topology = readTopology(join(LABS, file));
    const svg = drawTopology(topology, file);
    const boxes = boxesOf(svg);
    expect(boxes).toHaveLength(Object.keys(topology.hosts).length);
    for (const name of [...Object.keys(topology.hosts), ...Object.keys(topology.segments)]) {
      expect(svg).toContain(`>${name}</text>`);
    }
    const [, width = 0, height = 0] = /width="(\d+)" height="(\d+)"/.exec(svg)?.map(Number) ?? [];
    boxes.forEach(([left = 0, top = 0, right = 0, bottom = 0], at) => {
      expect([left >= 0, top >= 0, right <= width, bottom <= height]).not.toContain(false);
      for (const [l = 0, t = 0, r = 0, b = 0] of boxes.slice(at + 1)) {
        expect(right <= l || r <= left || bottom <= t || b <= top).toBe(true);
      }
    });
  });

  it('shows who is what, and addresses inside and outside', () => {
    const svg = drawTopology(readTopology(join(LABS, 'two-subnets.yaml')), 'a < b & c');
    for (const text of [
      'link0 in east',
      'pw0 in west 203.0.113.13/24',
      'eth0 192.0.2.77/26',
      'key server of west',
      'NAT',
      'a &lt; b &amp; c',
    ]) {
      expect(svg).toContain(text);
    }
    expect(svg).not.toContain('a < b');
  });
});
